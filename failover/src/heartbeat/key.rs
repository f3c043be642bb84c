//! The cluster's key: what makes a heartbeat believable. 32 random bytes in a file of each node,
//! the same on both; whoever has it can speak for a node.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ring::hmac;

/// Bytes of the key.
const LEN: usize = 32;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Nobody has made one.
    #[error(
        "there is no cluster key {}\n  next: `kagami failover init-key` makes one; copy it to the other node, readable by root alone",
        .0.display()
    )]
    Missing(PathBuf),
    /// Others may read it.
    #[error(
        "the cluster key {} can be read by others (mode {mode:04o}): whoever reads it can speak for a node\n  next: `chmod 600` it; if somebody else may have read it, make a new one on both nodes",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is no key.
    #[error(
        "{} is no cluster key: {why}\n  next: copy it from the other node again",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
        /// How it is seen.
        why: &'static str,
    },
    /// There is one already.
    #[error(
        "there is a cluster key already: {}\n  next: copy this one to the other node; to make a new one, stop the failover manager on both nodes and move it away first",
        .0.display()
    )]
    Exists(PathBuf),
    /// It can't be read or written.
    #[error("the cluster key {}: {source}\n  next: put it right and try again", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

/// The cluster's key.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(not shown)")
    }
}

impl Key {
    /// From its bytes.
    pub fn new(bytes: &[u8; LEN]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// From its file, which nobody but its owner may read.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => KeyError::Missing(path.to_owned()),
            _ => KeyError::Io {
                path: path.to_owned(),
                source,
            },
        };
        let mode = fs::metadata(path).map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open {
                path: path.to_owned(),
                mode,
            });
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let text = text.trim();
        let no_key = |why| KeyError::NoKey {
            path: path.to_owned(),
            why,
        };
        if text.len() != 2 * LEN || !text.is_ascii() {
            return Err(no_key("it is not 64 hexadecimal digits"));
        }
        let mut bytes = [0; LEN];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16)
                .map_err(|_| no_key("it is not 64 hexadecimal digits"))?;
        }
        Ok(Self::new(&bytes))
    }

    /// Makes a key's file, where there is none.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn create(path: &Path) -> Result<(), KeyError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
            _ => KeyError::Io {
                path: path.to_owned(),
                source,
            },
        };
        let mut bytes = [0; LEN];
        getrandom::fill(&mut bytes).map_err(|error| failed(io::Error::other(error.to_string())))?;
        let mut text = String::with_capacity(2 * LEN + 1);
        for byte in bytes {
            use std::fmt::Write as _;
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    pub(super) fn sign(&self, context: &[u8], bytes: &[u8]) -> hmac::Tag {
        let mut all = hmac::Context::with_key(&self.0);
        all.update(context);
        all.update(bytes);
        all.sign()
    }

    /// In constant time.
    pub(super) fn verify(&self, context: &[u8], bytes: &[u8], tag: &[u8]) -> bool {
        let all = [context, bytes].concat();
        hmac::verify(&self.0, &all, tag).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_from_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cluster.key");
        assert!(matches!(Key::load(&path), Err(KeyError::Missing(_))));
        Key::create(&path).expect("made");
        assert!(matches!(Key::create(&path), Err(KeyError::Exists(_))));
        let key = Key::load(&path).expect("loaded");
        let again = Key::load(&path).expect("loaded");
        let tag = key.sign(b"here", b"word");
        assert!(again.verify(b"here", b"word", tag.as_ref()));
        assert!(!again.verify(b"there", b"word", tag.as_ref()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        assert!(matches!(
            Key::load(&path),
            Err(KeyError::Open { mode: 0o640, .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        fs::write(&path, "abc").expect("written");
        assert!(matches!(Key::load(&path), Err(KeyError::NoKey { .. })));
    }
}
