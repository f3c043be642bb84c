//! TLS between nodes: 1.3 alone, a certificate on both sides, and the key in it all that counts.
//!
//! A peer is whoever proves that it holds one of the pinned keys. Names, issuers and dates in the
//! certificate are never looked at, so wrong clocks can't cut a pair in two; the signature over the
//! handshake is what proves the key, and is always verified. Sessions are never resumed and no data
//! goes before the handshake's end: a resumed session would skip the look at the certificate
//! (docs/decisions/0003-link-identity.md).
//!
//! The link, pairing and the witness differ in what they offer as protocols (ALPN) and in whom they
//! admit: [`Admit::Pinned`], or [`Admit::Anyone`] for pairing, which reads the fingerprint off the
//! finished handshake and decides by its one-time secret.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};

use super::identity::{Fingerprint, NodeKey};

/// The name that clients ask for; no certificate is compared with it.
pub const SERVER_NAME: &str = "kagami";

/// The TLS set-up failed: the key doesn't fit the provider. Not a peer's doing.
#[derive(Debug, thiserror::Error)]
#[error("TLS can't be set up with this node's key: {0}")]
pub struct TlsError(String);

/// The keys that are admitted; all clones are the same set, and a change counts from the next
/// handshake on.
#[derive(Clone, Debug, Default)]
pub struct Pins(Arc<RwLock<BTreeSet<Fingerprint>>>);

impl Pins {
    /// A set with these keys.
    pub fn new(keys: impl IntoIterator<Item = Fingerprint>) -> Self {
        Self(Arc::new(RwLock::new(keys.into_iter().collect())))
    }

    /// Puts other keys in the place of all.
    pub fn replace(&self, keys: impl IntoIterator<Item = Fingerprint>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys.into_iter().collect();
    }

    /// Whether this key is pinned.
    pub fn contains(&self, key: &Fingerprint) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(key)
    }
}

/// Whose certificates are admitted.
#[derive(Clone, Debug)]
pub enum Admit {
    /// Holders of these keys.
    Pinned(Pins),
    /// Anyone who proves to hold the key shown; the caller decides by the fingerprint.
    Anyone,
}

/// A certificate whose key isn't pinned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its key {0} is not pinned here")]
pub struct NotPinned(pub Fingerprint);

/// The TLS settings of a node that dials.
///
/// # Errors
///
/// The key doesn't fit the crypto provider.
pub fn client_config(
    key: &NodeKey,
    admit: Admit,
    protocols: Vec<Vec<u8>>,
) -> Result<rustls::ClientConfig, TlsError> {
    let verifier = Verifier::new(admit);
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&verifier.provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![key.certificate().clone()], key.private_key())
        .map_err(refused)?;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = protocols;
    Ok(config)
}

/// The TLS settings of a node that is dialled.
///
/// # Errors
///
/// The key doesn't fit the crypto provider.
pub fn server_config(
    key: &NodeKey,
    admit: Admit,
    protocols: Vec<Vec<u8>>,
) -> Result<rustls::ServerConfig, TlsError> {
    let verifier = Verifier::new(admit);
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&verifier.provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![key.certificate().clone()], key.private_key())
        .map_err(refused)?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = protocols;
    Ok(config)
}

/// [`client_config`] in the form that QUIC takes.
///
/// # Errors
///
/// The key doesn't fit the crypto provider.
pub fn quic_client(
    key: &NodeKey,
    admit: Admit,
    protocols: Vec<Vec<u8>>,
) -> Result<quinn::ClientConfig, TlsError> {
    let tls = client_config(key, admit, protocols)?;
    let tls = QuicClientConfig::try_from(tls).map_err(|error| TlsError(error.to_string()))?;
    Ok(quinn::ClientConfig::new(Arc::new(tls)))
}

/// [`server_config`] in the form that QUIC takes.
///
/// # Errors
///
/// The key doesn't fit the crypto provider.
pub fn quic_server(
    key: &NodeKey,
    admit: Admit,
    protocols: Vec<Vec<u8>>,
) -> Result<quinn::ServerConfig, TlsError> {
    let tls = server_config(key, admit, protocols)?;
    let tls = QuicServerConfig::try_from(tls).map_err(|error| TlsError(error.to_string()))?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(tls)))
}

/// The key that the other end of a finished handshake proved to hold.
pub fn peer_fingerprint(connection: &quinn::Connection) -> Option<Fingerprint> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    Fingerprint::of_certificate(chain.first()?).ok()
}

/// The protocol that both ends agreed on in a finished handshake.
pub fn agreed_protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection
        .handshake_data()?
        .downcast::<quinn::crypto::rustls::HandshakeData>()
        .ok()?;
    data.protocol
}

fn refused(error: impl std::fmt::Display) -> TlsError {
    TlsError(error.to_string())
}

/// The crypto that both roles use: AES first where the processor has instructions for it, which is
/// five times as fast as `ChaCha20` there and slower than it elsewhere.
fn provider() -> CryptoProvider {
    #[cfg(target_arch = "x86_64")]
    let aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let aes = false;

    let mut suites = vec![
        TLS13_AES_128_GCM_SHA256,
        TLS13_AES_256_GCM_SHA384,
        TLS13_CHACHA20_POLY1305_SHA256,
    ];
    if !aes {
        suites.rotate_right(1);
    }
    CryptoProvider {
        cipher_suites: suites,
        ..rustls::crypto::ring::default_provider()
    }
}

#[derive(Debug)]
struct Verifier {
    admit: Admit,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(admit: Admit) -> Arc<Self> {
        Arc::new(Self {
            admit,
            provider: Arc::new(provider()),
        })
    }

    /// Judges a certificate by its key alone.
    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let key = Fingerprint::of_certificate(certificate)?;
        match &self.admit {
            Admit::Anyone => Ok(()),
            Admit::Pinned(pins) if pins.contains(&key) => Ok(()),
            Admit::Pinned(_) => {
                Err(CertificateError::Other(OtherError(Arc::new(NotPinned(key)))).into())
            }
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// TLS 1.2 is never offered; should it be spoken all the same, nothing of it is believed.
fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::PeerIncompatible::Tls12NotOffered.into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(end_entity)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
