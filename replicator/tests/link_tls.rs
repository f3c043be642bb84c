//! What of a certificate counts: the pinned key, proven by a signature, and nothing else.

use std::sync::Arc;

use kagami_replicator::shell::identity::NodeKey;
use kagami_replicator::shell::tls::{self, Admit, Pins};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConnection, Error, ServerConnection, SignatureScheme};

fn key() -> NodeKey {
    NodeKey::generate().expect("a key")
}

fn pinned(keys: &[&NodeKey]) -> Admit {
    Admit::Pinned(Pins::new(keys.iter().map(|key| key.fingerprint())))
}

fn names() -> Vec<Vec<u8>> {
    vec![b"kagami/1".to_vec()]
}

/// The handshake in memory: what each side makes of it.
fn shake(
    client: rustls::ClientConfig,
    server: rustls::ServerConfig,
) -> (Result<(), Error>, Result<(), Error>) {
    let name = tls::SERVER_NAME.try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(client), name).expect("a client");
    let mut server = ServerConnection::new(Arc::new(server)).expect("a server");
    let (mut at_client, mut at_server) = (Ok(()), Ok(()));
    for _ in 0..6 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() && at_server.is_ok() {
            server.read_tls(&mut wire).expect("memory");
            at_server = server.process_new_packets().map(drop);
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory");
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() && at_client.is_ok() {
            client.read_tls(&mut wire).expect("memory");
            at_client = client.process_new_packets().map(drop);
        }
    }
    let done = !client.is_handshaking() && !server.is_handshaking();
    assert!(
        done || at_client.is_err() || at_server.is_err(),
        "it came to no end"
    );
    (at_client, at_server)
}

/// Shows one certificate and signs with some key, whether they belong together or not.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl Shows {
    fn new(certificate: CertificateDer<'static>, key: &PrivateKeyDer<'static>) -> Arc<Self> {
        let key = rustls::crypto::ring::sign::any_supported_type(key).expect("a key");
        Arc::new(Self(Arc::new(CertifiedKey::new(vec![certificate], key))))
    }
}

impl rustls::client::ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Shows {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Shows no certificate.
#[derive(Debug)]
struct Nothing;
impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

fn configs(a: &NodeKey, b: &NodeKey) -> (rustls::ClientConfig, rustls::ServerConfig) {
    (
        tls::client_config(a, pinned(&[b]), names()).expect("TLS"),
        tls::server_config(b, pinned(&[a]), names()).expect("TLS"),
    )
}

#[test]
fn pinned_keys_meet() {
    let (a, b) = (key(), key());
    let (client, server) = configs(&a, &b);
    assert_eq!(shake(client, server), (Ok(()), Ok(())));
}

#[test]
fn dates_and_names_count_for_nothing() {
    let (a, b) = (key(), key());
    let around = |key: &NodeKey, from: i32, to: i32| {
        let pair = KeyPair::try_from(key.private_key().secret_der()).expect("the same key");
        let mut params = CertificateParams::new(vec!["example.org".to_owned()]).expect("params");
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let certificate = params
            .self_signed(&pair)
            .expect("a certificate")
            .der()
            .clone();
        Shows::new(certificate, &key.private_key())
    };
    let (mut client, mut server) = configs(&a, &b);
    client.client_auth_cert_resolver = around(&a, 1990, 1991); // long expired
    server.cert_resolver = around(&b, 3000, 3001); // not yet valid
    assert_eq!(shake(client, server), (Ok(()), Ok(())));
}

#[test]
fn a_certificate_without_its_key_is_worth_nothing() {
    let (a, b, thief) = (key(), key(), key());
    let (mut client, server) = configs(&a, &b);
    client.client_auth_cert_resolver = Shows::new(a.certificate().clone(), &thief.private_key());
    let (_, at_server) = shake(client, server);
    assert!(
        matches!(at_server, Err(Error::InvalidCertificate(_))),
        "{at_server:?}"
    );

    let (client, mut server) = configs(&a, &b);
    server.cert_resolver = Shows::new(b.certificate().clone(), &thief.private_key());
    let (at_client, _) = shake(client, server);
    assert!(
        matches!(at_client, Err(Error::InvalidCertificate(_))),
        "{at_client:?}"
    );

    // Even where anyone is admitted, what is shown must be proven.
    let anyone = tls::server_config(&b, Admit::Anyone, names()).expect("TLS");
    let (mut client, _) = configs(&a, &b);
    client.client_auth_cert_resolver = Shows::new(a.certificate().clone(), &thief.private_key());
    assert!(shake(client, anyone).1.is_err());
}

#[test]
fn strangers_and_the_nameless_are_refused() {
    let (a, b, stranger) = (key(), key(), key());
    let (_, server) = configs(&a, &b);
    let client = tls::client_config(&stranger, pinned(&[&b]), names()).expect("TLS");
    let (_, at_server) = shake(client, server);
    let error = at_server.expect_err("refused").to_string();
    assert!(
        error.contains(&stranger.fingerprint().to_string()),
        "{error}"
    );

    let (mut client, server) = configs(&a, &b);
    client.client_auth_cert_resolver = Arc::new(Nothing);
    assert_eq!(shake(client, server).1, Err(Error::NoCertificatesPresented));
}

#[test]
fn anyone_is_admitted_where_that_is_asked_for() {
    let (a, b) = (key(), key());
    let client = tls::client_config(&a, Admit::Anyone, names()).expect("TLS");
    let server = tls::server_config(&b, Admit::Anyone, names()).expect("TLS");
    assert_eq!(shake(client, server), (Ok(()), Ok(())));
}

#[test]
fn a_change_of_pins_counts_from_the_next_handshake() {
    let (a, b) = (key(), key());
    let pins = Pins::default();
    let server = || {
        let admit = Admit::Pinned(pins.clone());
        tls::server_config(&b, admit, names()).expect("TLS")
    };
    let client = || tls::client_config(&a, pinned(&[&b]), names()).expect("TLS");
    let kept = server();
    assert!(shake(client(), server()).1.is_err());
    pins.replace([a.fingerprint()]);
    assert_eq!(shake(client(), kept), (Ok(()), Ok(())));
}

#[test]
fn other_protocols_are_refused() {
    let (a, b) = (key(), key());
    let (_, server) = configs(&a, &b);
    let client = tls::client_config(&a, pinned(&[&b]), vec![b"kagami-pair/1".to_vec()]);
    let (at_client, at_server) = shake(client.expect("TLS"), server);
    assert_eq!(at_server, Err(Error::NoApplicationProtocol));
    assert_eq!(
        at_client,
        Err(Error::AlertReceived(
            AlertDescription::NoApplicationProtocol
        ))
    );
}
