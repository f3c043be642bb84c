//! TLS of the server: reading certificates, and who may connect.
//!
//! TLS 1.2 and 1.3 (the protocol demands 1.2). Sessions are never resumed: a resumed one would skip
//! the check of the client's certificate.

use std::fmt::{self, Write as _};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

/// Whether the clients of a listener may or must use TLS.
#[derive(Clone, Default)]
pub enum TlsPolicy {
    /// They can't.
    #[default]
    Off,
    /// They may; exports marked `tls_only` are shown to those alone who do.
    Optional(TlsServer),
    /// They must, before anything else.
    Required(TlsServer),
}

impl TlsPolicy {
    /// What does the TLS handshake, where TLS is possible.
    pub(crate) fn acceptor(&self) -> Option<&TlsAcceptor> {
        match self {
            Self::Off => None,
            Self::Optional(server) | Self::Required(server) => Some(&server.acceptor),
        }
    }
}

impl fmt::Debug for TlsPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "Off",
            Self::Optional(_) => "Optional",
            Self::Required(_) => "Required",
        })
    }
}

/// A server's certificate, key and rules for clients, ready for use.
#[derive(Clone)]
pub struct TlsServer {
    acceptor: TlsAcceptor,
}

/// Where the server's TLS material is.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// PEM: the server's certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// PEM: the certificate's private key.
    pub key: PathBuf,
    /// Who may connect.
    pub clients: Clients,
}

/// Which clients may connect.
#[derive(Clone, Debug)]
pub enum Clients {
    /// Whoever can reach the port.
    Anybody,
    /// Who has a certificate of an authority in this PEM file.
    SignedBy(PathBuf),
    /// Who has one of these certificates; dates and authorities don't matter.
    Pinned(Vec<Fingerprint>),
}

/// TLS material that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFault {
    /// A file can't be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds nothing of the kind.
    #[error("{}: no {what} in PEM form in it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// A file's PEM is broken.
    #[error("{}: not readable as PEM: {reason}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// Key and certificate don't fit each other, or can't be used.
    #[error("{} with {}: {source}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What the TLS library said.
        source: rustls::Error,
    },
    /// A client authority can't be used.
    #[error("{}: not usable as an authority for clients: {reason}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What the TLS library said.
        reason: String,
    },
    /// Pinned clients, but none named.
    #[error("client certificates are pinned, but no fingerprint is named: nobody could connect")]
    NobodyPinned,
}

impl TlsServer {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// Which file is unusable and why.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsFault> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificates = certificates(&files.certificate)?;
        let key = private_key(&files.key)?;
        let pair = |source| TlsFault::Pair {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(pair)?;
        let builder = match &files.clients {
            Clients::Anybody => builder.with_no_client_auth(),
            Clients::SignedBy(path) => {
                builder.with_client_cert_verifier(signed_by(path, Arc::clone(&provider))?)
            }
            Clients::Pinned(pins) if pins.is_empty() => return Err(TlsFault::NobodyPinned),
            Clients::Pinned(pins) => builder.with_client_cert_verifier(Arc::new(PinnedClients {
                pins: pins.clone(),
                provider: Arc::clone(&provider),
            })),
        };
        let mut config = builder.with_single_cert(certificates, key).map_err(pair)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }
}

fn signed_by(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsFault> {
    let fault = |reason: String| TlsFault::Authority {
        path: path.to_owned(),
        reason,
    };
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots
            .add(authority)
            .map_err(|error| fault(error.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| fault(error.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| pem_fault(path, "certificate", &error))?;
    if found.is_empty() {
        return Err(TlsFault::Missing {
            path: path.to_owned(),
            what: "certificate",
        });
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFault> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|error| pem_fault(path, "private key", &error))
}

fn pem_fault(path: &Path, what: &'static str, error: &pem::Error) -> TlsFault {
    let path = path.to_owned();
    match error {
        pem::Error::NoItemsFound => TlsFault::Missing { path, what },
        other => TlsFault::Pem {
            path,
            reason: other.to_string(),
        },
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsFault> {
    std::fs::read(path).map_err(|source| TlsFault::File {
        path: path.to_owned(),
        source,
    })
}

/// SHA-256 of a certificate (its DER form), as `openssl x509 -fingerprint -sha256` prints it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// Text that is no fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no certificate fingerprint: 'sha256:' and 64 hexadecimal digits, colons allowed")]
pub struct FingerprintFault(String);

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate.as_ref()).into())
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintFault;

    fn from_str(text: &str) -> Result<Self, FingerprintFault> {
        let fault = || FingerprintFault(text.to_owned());
        let digits: String = text
            .strip_prefix("sha256:")
            .unwrap_or(text)
            .replace(':', "");
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(fault());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).ok_or_else(fault);
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::from("sha256:");
        for byte in self.0 {
            write!(text, "{byte:02x}")?;
        }
        f.write_str(&text)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Accepts the holders of certain certificates.
#[derive(Debug)]
struct PinnedClients {
    pins: Vec<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for PinnedClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if self.pins.contains(&Fingerprint::of(end_entity)) {
            return Ok(ClientCertVerified::assertion());
        }
        Err(rustls::CertificateError::ApplicationVerificationFailure.into())
    }

    // The certificate is public: the signature is what shows that the client holds its key.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
