//! Who may use a witness: a file for each enrolled key, looked up at every request.
//!
//! ```text
//! STATE/clients/<64 hex>     line 1: the node's name
//!                            line 2, perhaps: after sha256:<64 hex>   the key whose place it takes
//! STATE/forgotten/<64 hex>   a key that a person took out; the content is its node's name
//! ```
//!
//! A key with a file in both folders is out: whoever takes it out, or in again, does one after the other, may die
//! between the two, and has no word with the running witness, which may write a file of it at the same time.
//!
//! A key that was never enrolled is a stranger and hears so; one that was taken out is told that no
//! register is its any more, for its node must not take the silence for a witness that is gone
//! (docs/protocol.md §3, *still alone*).

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::store::{StoreError, at};
use crate::shell::identity::Fingerprint;

/// Who may use a witness, looked up in its folder each time.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    state: PathBuf,
    /// Keys that the configuration names.
    configured: BTreeSet<Fingerprint>,
}

impl Clients {
    pub(super) fn of(state: &Path, configured: impl IntoIterator<Item = Fingerprint>) -> Self {
        Self {
            state: state.to_owned(),
            configured: configured.into_iter().collect(),
        }
    }

    /// Whether a key may use this witness at all. A person's word goes before what the configuration says.
    pub(super) fn is_enrolled(&self, key: &Fingerprint) -> bool {
        let is_in = self.configured.contains(key) || file_in(&self.state, CLIENTS, key).is_file();
        is_in && !self.is_forgotten(key)
    }

    /// Whether a person took the key out: it is told so, and nothing else.
    pub(super) fn is_forgotten(&self, key: &Fingerprint) -> bool {
        is_forgotten(&self.state, key)
    }
}

const CLIENTS: &str = "clients";
const FORGOTTEN: &str = "forgotten";
/// Introduces the key whose place another takes.
const AFTER: &str = "after ";

/// The folders of a witness.
const FOLDERS: [&str; 3] = ["registers", CLIENTS, FORGOTTEN];

/// Makes the folders of a witness.
///
/// # Errors
///
/// The system refuses.
pub(super) fn make_folders(state: &Path) -> Result<(), StoreError> {
    for folder in FOLDERS.map(|folder| state.join(folder)) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(at("create the folder", &folder))?;
    }
    File::open(state)
        .and_then(|folder| folder.sync_all())
        .map_err(at("sync the folder", state))
}

fn file_in(state: &Path, folder: &str, key: &Fingerprint) -> PathBuf {
    let text = key.to_string();
    state.join(folder).join(text.trim_start_matches("sha256:"))
}

/// Whether a person took the key out.
pub fn is_forgotten(state: &Path, key: &Fingerprint) -> bool {
    file_in(state, FORGOTTEN, key).is_file()
}

pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Puts a key's file in its folder, whole and durably.
fn put(state: &Path, folder: &str, key: &Fingerprint, text: &str) -> Result<(), StoreError> {
    make_folders(state)?;
    let path = file_in(state, folder, key);
    let new = path.with_extension("new");
    write_synced(&new, text.as_bytes()).map_err(at("write", &new))?;
    fs::rename(&new, &path).map_err(at("rename", &new))?;
    sync(state, folder)
}

fn take(state: &Path, folder: &str, key: &Fingerprint) -> Result<(), StoreError> {
    let path = file_in(state, folder, key);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", &path)(error)),
        _ => sync(state, folder),
    }
}

/// Makes durable which files the folders have.
///
/// # Errors
///
/// The system refuses.
pub(super) fn sync_folders(state: &Path) -> Result<(), StoreError> {
    FOLDERS
        .into_iter()
        .try_for_each(|folder| sync(state, folder))
}

fn sync(state: &Path, folder: &str) -> Result<(), StoreError> {
    let folder = state.join(folder);
    File::open(&folder)
        .and_then(|folder| folder.sync_all())
        .map_err(at("sync the folder", &folder))
}

/// Enrols a key: its holder may use the witness from its next request on, running or not.
///
/// # Errors
///
/// The system refuses.
pub fn enrol(state: &Path, key: &Fingerprint, name: &str) -> Result<(), StoreError> {
    put(state, CLIENTS, key, &format!("{name}\n"))?;
    take(state, FORGOTTEN, key)
}

/// Takes out the keys of the node `which`, or the one key that it spells; gives them. `configured`: keys that
/// the configuration names, with their nodes' names.
///
/// # Errors
///
/// The system refuses.
pub fn forget(
    state: &Path,
    which: &str,
    configured: &[(Fingerprint, String)],
) -> Result<Vec<(Fingerprint, String)>, StoreError> {
    let mut forgotten = Vec::new();
    loop {
        // Again after the stones are there: the node may have named its next key meanwhile. One that it names from
        // now on is not taken in (`Store::succeed`).
        let mut found = in_folder(state)?;
        let configured = configured.iter().cloned();
        found.extend(configured.filter(|(key, _)| !is_forgotten(state, key)));
        found.retain(|(key, name)| name == which || key.to_string() == which);
        if found.is_empty() {
            forgotten.sort();
            return Ok(forgotten);
        }
        for (key, name) in found {
            // First the stone, then the file: between the two the key is out already.
            put(state, FORGOTTEN, &key, &format!("{name}\n"))?;
            take(state, CLIENTS, &key)?;
            if forgotten.iter().all(|(known, _)| *known != key) {
                forgotten.push((key, name));
            }
        }
    }
}

/// A key's node, and the key whose place it takes.
fn read(state: &Path, key: &Fingerprint) -> Option<(String, Option<Fingerprint>)> {
    let text = fs::read_to_string(file_in(state, CLIENTS, key)).ok()?;
    let mut lines = text.lines();
    let name = lines.next().unwrap_or_default().to_owned();
    let after = lines.next().and_then(|line| line.strip_prefix(AFTER));
    Some((name, after.and_then(|key| key.parse().ok())))
}

/// Enrols `new` in the place of `old`, which stays until `new` first asks. A successor that was
/// named before and never asked is dropped. `name`: of a node whose key has no file.
///
/// # Errors
///
/// The system refuses.
pub(super) fn succeed(
    state: &Path,
    old: &Fingerprint,
    new: &Fingerprint,
    name: &str,
) -> Result<(), StoreError> {
    for (key, _) in in_folder(state)? {
        let is_waiting = read(state, &key).is_some_and(|(_, after)| after == Some(*old));
        if is_waiting && key != *new {
            take(state, CLIENTS, &key)?;
        }
    }
    let name = read(state, old).map_or_else(|| name.to_owned(), |(name, _)| name);
    put(state, CLIENTS, new, &format!("{name}\n{AFTER}{old}\n"))
}

/// Takes back what [`succeed`] did.
///
/// # Errors
///
/// The system refuses.
pub(super) fn withdraw(state: &Path, new: &Fingerprint) -> Result<(), StoreError> {
    take(state, CLIENTS, new)
}

/// `key` asks: if it takes another's place, that one is forgotten now.
///
/// # Errors
///
/// The system refuses.
pub(super) fn settle(state: &Path, key: &Fingerprint) -> Result<(), StoreError> {
    if let Some((name, Some(old))) = read(state, key) {
        take(state, CLIENTS, &old)?;
        put(state, CLIENTS, key, &format!("{name}\n"))?;
    }
    Ok(())
}

/// The keys that may use a witness with their nodes' names, for people: those enrolled, and those `configured` besides.
///
/// # Errors
///
/// The folder can't be read.
pub fn enrolled(
    state: &Path,
    configured: &[(Fingerprint, String)],
) -> Result<Vec<(Fingerprint, String)>, StoreError> {
    let mut found = in_folder(state)?;
    for (key, name) in configured {
        if found.iter().all(|(known, _)| known != key) {
            found.push((*key, name.clone()));
        }
    }
    found.sort();
    found.retain(|(key, _)| !is_forgotten(state, key));
    Ok(found)
}

/// The keys that have a file, with their nodes' names.
fn in_folder(state: &Path) -> Result<Vec<(Fingerprint, String)>, StoreError> {
    let folder = state.join(CLIENTS);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(at("read the folder", &folder))? {
        let entry = entry.map_err(at("read the folder", &folder))?;
        let hex = entry.file_name().to_string_lossy().into_owned();
        if let Ok(key) = format!("sha256:{hex}").parse()
            && let Some((name, _)) = read(state, &key)
        {
            found.push((key, name));
        }
    }
    found.sort();
    Ok(found)
}
