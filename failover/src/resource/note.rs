//! What a resource has done once and is to know later, whatever its configuration becomes: a small file below
//! the node's state, or below what a reboot clears.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// A resource's note of one kind.
#[derive(Debug)]
pub(super) struct Note(PathBuf);

impl Note {
    /// Of the resource `key` ([`super::Subject::key`]), in the folder `kind` below `state`, a folder of its node.
    pub(super) fn of(state: &Path, kind: &str, key: &str) -> Self {
        Self(state.join(kind).join(key))
    }

    /// Its file, for a person.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Whether it was done.
    pub(super) fn is_there(&self) -> bool {
        self.0.exists()
    }

    /// What is written there, in a line.
    pub(super) fn words(&self) -> String {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.trim().to_owned()
    }

    /// Writes it down: on disk when this returns.
    ///
    /// # Errors
    /// Why not, and to which file.
    pub(super) fn write(&self, words: &str) -> Result<(), String> {
        self.put(words)
            .map_err(|error| format!("{}: {error}", self.0.display()))
    }

    /// It is to be known no more. One that can't be taken away is told, and keeps nobody from what comes next.
    pub(super) fn forget(&self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(note = %self.0.display(), %error, "a note is not taken away");
            }
            _ => {}
        }
    }

    fn put(&self, words: &str) -> io::Result<()> {
        // It has both: a folder for its kind below the state's.
        let folder = self.0.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let mut file = File::create(&self.0)?;
        writeln!(file, "{words}")?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        File::open(folder.parent().unwrap_or(folder))?.sync_all()
    }
}
