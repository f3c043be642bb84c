//! What a configuration says against the files of certificates and keys that it names: they are tried as the daemon
//! tries them, for `kagami config check`. Without that a wrong one is told when the daemon starts, or when an etcd is
//! first asked.

use std::io::ErrorKind;
use std::path::Path;

use kagami_nbd_server::tls::{Clients, TlsFault};
use kagami_nbd_server::{TlsFiles, TlsServer};

use super::fault::Fault;
use super::keys::Section;
use super::{Config, NbdTls};

impl NbdTls {
    /// As the NBD server reads them.
    pub fn files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            clients: self
                .client_ca
                .clone()
                .map_or(Clients::Anybody, Clients::SignedBy),
        }
    }
}

/// Everything about these files that would keep mirrors from being served over TCP, or an etcd from being asked.
pub fn check(config: &Config) -> Vec<Fault> {
    of_nbd(config).into_iter().chain(of_etcd(config)).collect()
}

fn of_nbd(config: &Config) -> Option<Fault> {
    let tls = config.nbd.as_ref()?.tls.as_ref()?;
    let fault = TlsServer::load(&tls.files()).err()?;
    let key_of = |path: &Path| {
        let is_ca = tls.client_ca.as_deref() == Some(path);
        let files = [
            ("certificate", path == tls.certificate),
            ("key", path == tls.key),
        ];
        let found = files.into_iter().find(|(_, is_it)| *is_it);
        found.map_or(if is_ca { "client-ca" } else { "listen" }, |(key, _)| key)
    };
    let (key, next) = match &fault {
        TlsFault::File { path, source } => (key_of(path), readable(source.kind())),
        TlsFault::Missing { path, .. } | TlsFault::Pem { path, .. } => (
            key_of(path),
            "name the PEM file that has it, or make it anew",
        ),
        TlsFault::Pair { .. } => (
            "key",
            "name the private key that the certificate was made with",
        ),
        TlsFault::Authority { .. } => (
            "client-ca",
            "name the certificate of the authority that signs the clients' ones",
        ),
        _ => ("certificate", "put the files right"),
    };
    Some(Fault::at(
        config.sheet.line(Section::Nbd, "", key),
        format!("[nbd] {key}: {fault}"),
        format!("{next}: until then no mirror is served over TCP"),
    ))
}

/// That they can be read; what is in them is told by etcd's client.
fn of_etcd(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    for arbiter in &config.arbiters {
        let Some(etcd) = &arbiter.etcd else {
            continue;
        };
        let files = [
            ("ca", &etcd.ca),
            ("certificate", &etcd.certificate),
            ("key", &etcd.key),
        ];
        for (key, path) in files {
            let Some(path) = path else { continue };
            if let Err(error) = std::fs::read(path) {
                faults.push(Fault::at(
                    config.sheet.line(Section::Arbiter, &arbiter.name, key),
                    format!(
                        "[arbiter.{}] {key}: {}: {error}",
                        arbiter.name,
                        path.display()
                    ),
                    format!("{}: until then it can't be asked", readable(error.kind())),
                ));
            }
        }
    }
    faults
}

fn readable(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "put the file there, or write where it is",
        ErrorKind::PermissionDenied => {
            "run kagami as the user that owns the file, or let this one read it"
        }
        _ => "name a file that can be read",
    }
}
