//! A node's key: made once, kept in a folder of its own, known to others by its fingerprint.
//!
//! What peers pin is the key alone (docs/decisions/0003-link-identity.md), so the key is all that is
//! stored; the self-signed certificate that TLS wants around it is made anew at every start, and its
//! names and dates mean nothing to anybody. A key is replaced in three steps that never leave the
//! pair without a key both know: [`NodeKeys::prepare_next`] makes the next one beside the current,
//! the peers pin both fingerprints, [`NodeKeys::switch_to_next`] puts it in the current one's place.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ParsedCertificate;
use sha2::{Digest, Sha256};

/// The file of the key that this node shows.
const CURRENT: &str = "node.key";
/// The file of the key that will replace it.
const NEXT: &str = "node-next.key";
/// A key file is some 120 bytes; what is longer is something else.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// The SHA-256 of a key's `SubjectPublicKeyInfo`: what a peer is known by, written `sha256:<64 hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of the key in a certificate; nothing else of the certificate counts.
    ///
    /// # Errors
    ///
    /// The certificate can't be read.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let spki = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        Ok(Self::of_public_key(&spki))
    }

    /// The fingerprint of a `SubjectPublicKeyInfo` in DER.
    pub fn of_public_key(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }

    /// The fingerprint that is this hash.
    pub const fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The hash itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a fingerprint: {text:?}; it must be sha256: and 64 hexadecimal digits")]
pub struct NotAFingerprint {
    /// What was given.
    pub text: String,
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NotAFingerprint {
            text: text.chars().take(100).collect(),
        };
        let hex = text.strip_prefix("sha256:").ok_or_else(wrong)?.as_bytes();
        if hex.len() != 64 {
            return Err(wrong());
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(hex.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).ok_or_else(wrong);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(Self(hash))
    }
}

/// Why a node's key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no key yet.
    #[error("no key at {path}; `kagami init` or `kagami pair` makes one")]
    Missing {
        /// The file looked for.
        path: PathBuf,
    },
    /// Others than the owner may read or replace the key: it may be known to them.
    #[error(
        "{path} has permissions {mode:04o} and must have {wanted:04o}: others could have read the key; if nobody did, `chmod {wanted:o} {path}`, else make a new key and pin it on the peers"
    )]
    TooOpen {
        /// The file or folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they must be at most.
        wanted: u32,
    },
    /// The key belongs to another user.
    #[error(
        "{path} belongs to user {owner}, and this process runs as user {user}: run it as that user, or `chown` the folder and the files in it"
    )]
    WrongOwner {
        /// The file or folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs this.
        user: u32,
    },
    /// The file holds something else, or was damaged.
    #[error(
        "{path} holds no private key that can be used ({detail}); restore it from a backup, or move it away, make a new key and pin that on the peers"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A next key is there already.
    #[error(
        "{path} exists: a change of key is under way; finish it, or delete that file to give it up"
    )]
    NextExists {
        /// The next key's file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{path}: {action}: {error}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// The key or its certificate couldn't be made.
    #[error("a key couldn't be made: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// A private key with the certificate made around it.
pub struct NodeKey {
    pair: KeyPair,
    certificate: CertificateDer<'static>,
    fingerprint: Fingerprint,
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl NodeKey {
    /// A new key, kept nowhere.
    ///
    /// # Errors
    ///
    /// The system gave no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        Self::of_pair(KeyPair::generate_for(&PKCS_ED25519)?)
    }

    fn of_pair(pair: KeyPair) -> Result<Self, IdentityError> {
        let fingerprint = Fingerprint::of_public_key(&pair.subject_public_key_info());
        let mut params = CertificateParams::new(vec!["kagami".to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "kagami node");
        let certificate = params.self_signed(&pair)?.der().clone();
        Ok(Self {
            pair,
            certificate,
            fingerprint,
        })
    }

    /// What peers pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The self-signed certificate around the key.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The private key in the form that rustls takes.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pair.serialize_der()).into()
    }

    /// A secret for one purpose, the same at every start. The key can't be derived from it.
    pub fn secret(&self, purpose: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update((purpose.len() as u64).to_le_bytes());
        hash.update(purpose.as_bytes());
        hash.update(self.pair.serialized_der());
        hash.finalize().into()
    }
}

/// The keys in a node's folder.
#[derive(Debug)]
pub struct NodeKeys {
    folder: PathBuf,
    /// The key that this node shows.
    pub current: NodeKey,
    /// The key that will replace it, while it is being made known to the peers.
    pub next: Option<NodeKey>,
}

impl NodeKeys {
    /// Reads the keys in `folder`.
    ///
    /// # Errors
    ///
    /// No key, one that others may read, or one that can't be read.
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let current = folder.join(CURRENT);
        if !folder.try_exists().map_err(at("look for", folder))? {
            return Err(IdentityError::Missing { path: current });
        }
        check_private(
            folder,
            &fs::metadata(folder).map_err(at("stat", folder))?,
            0o700,
        )?;
        let next = match read_key(&folder.join(NEXT)) {
            Ok(key) => Some(key),
            Err(IdentityError::Missing { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            folder: folder.to_owned(),
            current: read_key(&current)?,
            next,
        })
    }

    /// Reads the keys in `folder`, and makes folder and key where there are none. Two that do so at
    /// once end with the same key.
    ///
    /// # Errors
    ///
    /// As for [`NodeKeys::load`], or the key can't be stored.
    pub fn load_or_create(folder: &Path) -> Result<Self, IdentityError> {
        match Self::load(folder) {
            Err(IdentityError::Missing { path }) => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(folder)
                    .map_err(at("create the folder", folder))?;
                store_key(&NodeKey::generate()?, &path)?;
                Self::load(folder)
            }
            other => other,
        }
    }

    /// Makes the key that will replace the current one; this node goes on showing the current.
    ///
    /// # Errors
    ///
    /// There is a next key already, or it can't be stored.
    pub fn prepare_next(&mut self) -> Result<Fingerprint, IdentityError> {
        let path = self.folder.join(NEXT);
        let key = NodeKey::generate()?;
        if !store_key(&key, &path)? {
            return Err(IdentityError::NextExists { path });
        }
        let fingerprint = key.fingerprint();
        self.next = Some(key);
        Ok(fingerprint)
    }

    /// Puts the next key in the current one's place, once all peers have pinned it.
    ///
    /// # Errors
    ///
    /// There is no next key, or the file can't be moved.
    pub fn switch_to_next(&mut self) -> Result<Fingerprint, IdentityError> {
        let path = self.folder.join(NEXT);
        if self.next.is_none() {
            return Err(IdentityError::Missing { path });
        }
        fs::rename(&path, self.folder.join(CURRENT)).map_err(at("rename", &path))?;
        sync_folder(&self.folder)?;
        if let Some(key) = self.next.take() {
            self.current = key;
        }
        Ok(self.current.fingerprint())
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |error| IdentityError::Io {
        action,
        path,
        error,
    }
}

/// Refuses what others than this user could read or replace.
fn check_private(path: &Path, meta: &fs::Metadata, wanted: u32) -> Result<(), IdentityError> {
    let user = rustix::process::geteuid().as_raw();
    if meta.uid() != user {
        return Err(IdentityError::WrongOwner {
            path: path.to_owned(),
            owner: meta.uid(),
            user,
        });
    }
    let mode = meta.mode() & 0o7777;
    if mode & !wanted & 0o777 != 0 {
        return Err(IdentityError::TooOpen {
            path: path.to_owned(),
            mode,
            wanted,
        });
    }
    Ok(())
}

fn read_key(path: &Path) -> Result<NodeKey, IdentityError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(IdentityError::Missing {
                path: path.to_owned(),
            });
        }
        other => other.map_err(at("open", path))?,
    };
    check_private(path, &file.metadata().map_err(at("stat", path))?, 0o600)?;
    let unreadable = |detail: String| IdentityError::Unreadable {
        path: path.to_owned(),
        detail,
    };
    let mut pem = String::new();
    file.take(MAX_KEY_FILE + 1)
        .read_to_string(&mut pem)
        .map_err(|error| unreadable(error.to_string()))?;
    if pem.is_empty() || pem.len() as u64 > MAX_KEY_FILE {
        return Err(unreadable(format!("{} bytes", pem.len())));
    }
    let pair = KeyPair::from_pem(&pem).map_err(|error| unreadable(error.to_string()))?;
    NodeKey::of_pair(pair)
}

/// Stores a key whole and durably; `false` when another was there first, which then stays.
fn store_key(key: &NodeKey, path: &Path) -> Result<bool, IdentityError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let half_made = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || -> io::Result<bool> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&half_made)?;
        file.write_all(key.pair.serialize_pem().as_bytes())?;
        file.sync_all()?;
        // A link, not a rename: it never replaces a key that somebody may have pinned already.
        match fs::hard_link(&half_made, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    };
    let outcome = write().map_err(at("store a key", path));
    // What is left behind on failure is a key that nobody knows.
    let _ = fs::remove_file(&half_made);
    sync_folder(folder)?;
    outcome
}

fn sync_folder(folder: &Path) -> Result<(), IdentityError> {
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(at("sync the folder", folder))
}
