//! This node's own keys: where the configuration has them, and how a command comes by them.

use std::path::PathBuf;

use kagami_replicator::shell::identity::{IdentityError, NodeKeys};

use super::Config;

/// This node has no key that can be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the key in {} can't be read or made: {error}\n  next: put that right; the folder and what is in it belong to the user who runs kagami, and to nobody else",
    folder.display()
)]
pub struct KeyError {
    folder: PathBuf,
    error: IdentityError,
}

impl Config {
    /// The folder of this node's key.
    pub fn key_folder(&self) -> PathBuf {
        self.node.state_dir.join("keys")
    }

    /// This node's keys, made where there are none.
    ///
    /// # Errors
    /// They can't be read or made.
    pub fn keys(&self) -> Result<NodeKeys, KeyError> {
        let folder = self.key_folder();
        NodeKeys::load_or_create(&folder).map_err(|error| KeyError { folder, error })
    }
}
