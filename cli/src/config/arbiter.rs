//! `[arbiter.NAME]`: a witness or an etcd, and which keys each of them needs.

use std::path::PathBuf;
use std::time::Duration;

use kagami_replicator::shell::etcd::{EtcdConfig, EtcdLogin, EtcdTls};

use super::Config;
use super::Fields;
use super::fault::Fault;
use super::keys::Section;

/// `[arbiter.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arbiter {
    /// Its name.
    pub name: String,
    /// A witness: `address:port` or `name:port`.
    pub addresses: Vec<String>,
    /// A witness: `sha256:…`
    pub fingerprints: Vec<String>,
    /// An etcd: where, and by what it lets this node in. `None`: a witness.
    pub etcd: Option<Etcd>,
    /// A question is asked again after this long.
    pub timeout: Duration,
}

/// What only an etcd has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// `https://host:port`, or all of them `http://host:port`.
    pub endpoints: Vec<String>,
    /// What its keys begin with.
    pub prefix: String,
    /// Who signed its certificates, PEM.
    pub ca: Option<PathBuf>,
    /// This node's chain, PEM.
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// The user it knows this node as.
    pub user: Option<String>,
    /// Where that one's password is.
    pub password_file: Option<PathBuf>,
}

/// The keys that a kind has for itself.
const OF_A_WITNESS: [&str; 2] = ["addresses", "fingerprints"];
const OF_AN_ETCD: [&str; 7] = [
    "endpoints",
    "prefix",
    "ca",
    "certificate",
    "key",
    "user",
    "password-file",
];

impl Arbiter {
    pub(super) fn from_fields(fields: &Fields<'_>) -> Self {
        let is_etcd = fields.the_text("kind") == "etcd";
        Self {
            name: fields.name.to_owned(),
            addresses: fields.list("addresses"),
            fingerprints: fields.list("fingerprints"),
            etcd: is_etcd.then(|| Etcd {
                endpoints: fields.list("endpoints"),
                prefix: fields.the_text("prefix"),
                ca: fields.path("ca"),
                certificate: fields.path("certificate"),
                key: fields.path("key"),
                user: fields.text("user"),
                password_file: fields.path("password-file"),
            }),
            timeout: fields.time("timeout"),
        }
    }

    /// How it is called: `witness1`, `etcd kv`.
    pub fn called(&self) -> String {
        match self.etcd {
            Some(_) => format!("etcd {}", self.name),
            None => format!("witness {}", self.name),
        }
    }

    /// Where it is, whatever it is.
    pub fn places(&self) -> &[String] {
        self.etcd
            .as_ref()
            .map_or(&self.addresses, |etcd| &etcd.endpoints)
    }

    /// An etcd as the engine asks it; `None`: it is a witness.
    pub fn as_etcd(&self) -> Option<EtcdConfig> {
        let etcd = self.etcd.as_ref()?;
        Some(EtcdConfig {
            name: self.name.clone(),
            endpoints: etcd.endpoints.clone(),
            prefix: etcd.prefix.clone(),
            tls: etcd.ca.clone().map(|ca| EtcdTls {
                ca,
                identity: etcd.certificate.clone().zip(etcd.key.clone()),
            }),
            login: etcd.user.clone().zip(etcd.password_file.clone()).map(
                |(user, password_file)| EtcdLogin {
                    user,
                    password_file,
                },
            ),
            timeout: self.timeout,
        })
    }
}

/// Each arbiter has the keys of its kind, whole, and none of the other's.
pub(super) fn check(config: &Config, faults: &mut Vec<Fault>) {
    for arbiter in &config.arbiters {
        match &arbiter.etcd {
            None => witness(config, arbiter, faults),
            Some(etcd) => check_etcd(config, arbiter, etcd, faults),
        }
    }
}

/// Whether the file itself has the key; a default does not count.
fn is_written(config: &Config, arbiter: &Arbiter, key: &'static str) -> bool {
    config
        .sheet
        .entry(Section::Arbiter, &arbiter.name, key)
        .is_some_and(|entry| entry.line.is_some())
}

fn fault(
    config: &Config,
    arbiter: &Arbiter,
    key: &'static str,
    what: &str,
    next: impl Into<String>,
) -> Fault {
    Fault::at(
        config.sheet.line(Section::Arbiter, &arbiter.name, key),
        format!("{} {what}", Section::Arbiter.heading(&arbiter.name)),
        next,
    )
}

fn witness(config: &Config, arbiter: &Arbiter, faults: &mut Vec<Fault>) {
    let strange = OF_AN_ETCD
        .into_iter()
        .find(|key| is_written(config, arbiter, key));
    if let Some(key) = strange {
        let what = format!("{key}: a witness has no such key");
        let next = "add `kind = \"etcd\"` if it is one, or take the key out";
        faults.push(fault(config, arbiter, key, &what, next));
        return;
    }
    for (key, next) in [
        (
            "addresses",
            "add `addresses = [\"10.0.0.3:7790\"]`, or let `kagami arbiter join TOKEN` write the section (on a third machine: `kagami witness enrol`)",
        ),
        (
            "fingerprints",
            "add `fingerprints = [\"sha256:…\"]`, or let `kagami arbiter join TOKEN` write the section (on a third machine: `kagami witness enrol`)",
        ),
    ] {
        if !is_written(config, arbiter, key) {
            faults.push(fault(
                config,
                arbiter,
                key,
                &format!("has no `{key}`"),
                next,
            ));
        }
    }
}

fn check_etcd(config: &Config, arbiter: &Arbiter, etcd: &Etcd, faults: &mut Vec<Fault>) {
    let mut refuse = |key, what: &str, next: &str| {
        faults.push(fault(config, arbiter, key, what, next));
    };
    for key in OF_A_WITNESS {
        if is_written(config, arbiter, key) {
            refuse(
                key,
                &format!("{key}: an etcd has no such key"),
                "write its `endpoints` (and `ca`, `certificate`, `key`), or take `kind = \"etcd\"` out",
            );
        }
    }
    if etcd.endpoints.is_empty() {
        refuse(
            "kind",
            "has no `endpoints`",
            "add `endpoints = [\"https://10.0.0.3:2379\"]`",
        );
        return;
    }
    let clear = etcd
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.starts_with("http://"))
        .count();
    let is_tls = clear == 0;
    if clear > 0 && clear < etcd.endpoints.len() {
        refuse(
            "endpoints",
            "endpoints: some are https, some are clear text",
            "write https:// for each, or http:// for each",
        );
    } else if is_tls && etcd.ca.is_none() {
        refuse(
            "endpoints",
            "endpoints: https without `ca`",
            "add `ca = \"/etc/kagami/etcd-ca.pem\"`: the authority that signed etcd's certificates (the system's own list is not asked)",
        );
    }
    for (one, there, other, missing) in [
        ("certificate", &etcd.certificate, "key", &etcd.key),
        ("key", &etcd.key, "certificate", &etcd.certificate),
    ] {
        if there.is_some() && missing.is_none() {
            refuse(
                one,
                &format!("{one} without `{other}`"),
                "a client's certificate needs both `certificate` and `key`",
            );
        }
    }
    if !is_tls {
        for key in ["ca", "certificate", "key"] {
            if is_written(config, arbiter, key) {
                refuse(
                    key,
                    &format!("{key}: the endpoints are clear text"),
                    "write https:// for each endpoint, or take the key out",
                );
            }
        }
    }
    if etcd.user.is_some() != etcd.password_file.is_some() {
        let (one, other) = if etcd.user.is_some() {
            ("user", "password-file")
        } else {
            ("password-file", "user")
        };
        refuse(
            one,
            &format!("{one} without `{other}`"),
            "a login needs both `user` and `password-file` (a client's certificate may do without either)",
        );
    }
    if etcd.user.as_ref().is_some_and(String::is_empty) {
        refuse(
            "user",
            "user: it is empty",
            "write the name of a user of etcd's",
        );
    }
    let is_plain = |prefix: &str| {
        prefix.starts_with('/')
            && !prefix.ends_with('/')
            && prefix.chars().all(|c| c.is_ascii_graphic())
            && prefix.len() <= 200
    };
    if !is_plain(&etcd.prefix) {
        refuse(
            "prefix",
            &format!("prefix: `{}` can't begin a key", etcd.prefix),
            "write something like \"/kagami\": a slash, then up to 200 letters, digits and signs, no slash at the end",
        );
    }
}
