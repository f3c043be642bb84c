//! This boot's id, and the token that a copy lost no completed write in it.
//!
//! `unbroken` (docs/protocol.md §1) is: the copy's record names this boot, and nothing has failed since.
//! The second half must survive the death of a daemon whose store can't record the failure any more,
//! and must not survive the machine: so it is a small file in a folder that a reboot empties. Its
//! content names boot and mirror all the same, for a folder that turns out to be on a disk.
//!
//! The file is made when the copies become in sync, and removed for good at the first failure. A
//! file that is missing or foreign means broken, which costs a resync and no data.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where Linux says which boot this is: a UUID drawn at every boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which boot this is, and where its tokens lie. Tests make their own.
#[derive(Clone, Debug)]
pub struct Boot {
    id: u128,
    folder: PathBuf,
}

impl Boot {
    /// The machine's present boot; tokens lie in `folder` (`/run/kagami`).
    ///
    /// # Errors
    ///
    /// The kernel doesn't tell the boot's id (no `/proc`).
    pub fn of_this_machine(folder: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(BOOT_ID)?;
        let id = parse_uuid(text.trim()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{BOOT_ID} holds no UUID: {text:?}"),
            )
        })?;
        Ok(Self::with_id(id, folder))
    }

    /// A boot with this id: for tests that "reboot".
    pub fn with_id(id: u128, folder: &Path) -> Self {
        Self {
            id,
            folder: folder.to_owned(),
        }
    }

    /// The boot's id.
    pub fn id(&self) -> u128 {
        self.id
    }

    /// The token of the mirror `name` whose id is `mirror`.
    pub fn token(&self, name: &str, mirror: u128) -> Token {
        Token {
            path: self.folder.join(format!("{name}.unbroken")),
            content: format!("boot {:032x}\nmirror {mirror:032x}\n", self.id),
        }
    }
}

/// One mirror's token.
#[derive(Clone, Debug)]
pub struct Token {
    path: PathBuf,
    content: String,
}

impl Token {
    /// Whether it is there, made in this boot for this mirror.
    pub fn is_whole(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|found| found == self.content)
    }

    /// Makes it.
    ///
    /// # Errors
    ///
    /// The folder can't be made or written; the copy then counts as broken after a restart.
    pub fn make(&self) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let half_made = self.path.with_extension("unbroken.tmp");
        fs::write(&half_made, &self.content)?;
        fs::rename(&half_made, &self.path)
    }

    /// Removes it: from here on the copy is broken, whatever happens to this process.
    ///
    /// # Errors
    ///
    /// The file could neither be removed nor emptied.
    pub fn break_it(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // A file without its content is no token either.
                fs::OpenOptions::new()
                    .write(true)
                    .truncate(true)
                    .open(&self.path)
                    .map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The number that a UUID's hexadecimal digits spell.
fn parse_uuid(text: &str) -> Option<u128> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_boot() {
        let folder = tempfile::tempdir().expect("tempdir");
        let boot = Boot::of_this_machine(folder.path()).expect("boot id");
        assert_ne!(boot.id(), 0);
        assert_eq!(
            boot.id(),
            Boot::of_this_machine(folder.path()).expect("again").id()
        );
    }

    #[test]
    fn a_token_is_of_one_boot_and_one_mirror() {
        let folder = tempfile::tempdir().expect("tempdir");
        let run = folder.path().join("run");
        let token = Boot::with_id(1, &run).token("pg", 7);
        assert!(!token.is_whole());
        token.make().expect("make");
        assert!(token.is_whole());
        assert!(
            Boot::with_id(1, &run).token("pg", 7).is_whole(),
            "after a restart of the daemon"
        );
        assert!(
            !Boot::with_id(2, &run).token("pg", 7).is_whole(),
            "after a reboot"
        );
        assert!(
            !Boot::with_id(1, &run).token("pg", 8).is_whole(),
            "another mirror of that name"
        );
        token.break_it().expect("break");
        assert!(!token.is_whole());
        token.break_it().expect("breaking twice is fine");
    }

    #[test]
    fn uuids_are_parsed_and_nonsense_is_not() {
        assert_eq!(
            parse_uuid("00000000-0000-0000-0000-0000000000ff"),
            Some(255)
        );
        assert_eq!(parse_uuid("00000000-0000-0000-0000-0000000000f"), None);
        assert_eq!(parse_uuid("+0000000-0000-0000-0000-0000000000ff"), None);
        assert_eq!(parse_uuid(""), None);
    }
}
