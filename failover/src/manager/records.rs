//! What became of each operation: a record in a place that a reboot clears.
//!
//! The manager may die while an operation runs, and a new one must not begin it again. So a record
//! is made before an operation begins, and its outcome is put beside it by whoever ran it. The
//! record's file is locked for as long as somebody runs it: whoever gets the lock and finds no
//! outcome knows that nobody will bring one any more. Nothing here is synced: a power cut ends the
//! machine's boot, and with it what the records speak of.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::core::{OpId, OpResult, Work};
use crate::place::private_folder;

/// Records this far behind the newest are forgotten: the core asks only for what was under way when
/// its predecessor died.
const KEPT: u64 = 1000;

/// An operation, as it is begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// What.
    pub work: Work,
    /// The group and the resource that it is about, by their names: another configuration has them in
    /// other places. Of anything else two empty names.
    pub subject: (String, String),
    /// What its scripts see.
    pub environment: Vec<(String, String)>,
    /// How long it may take, in milliseconds.
    pub timeout_ms: u64,
}

/// What is known of an operation.
#[derive(Debug)]
pub enum Known {
    /// It was never begun.
    Never,
    /// It was begun, and has no outcome yet.
    Begun(Box<Begun>),
    /// It has ended.
    Ended(OpResult),
}

/// The records of this boot.
#[derive(Clone, Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// Opens the folder; records of another boot are deleted.
    ///
    /// # Errors
    /// The folder can't be made, read or cleared.
    pub fn open(folder: &Path, boot: u128) -> io::Result<Self> {
        let mark = folder.join("boot");
        let boot = format!("{boot:032x}");
        if fs::read_to_string(&mark).ok().as_ref() != Some(&boot) {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => private_folder(folder)?,
            }
            fs::write(&mark, &boot)?;
        }
        // What scripts see is nobody else's, and who could open a record could lock it.
        private_folder(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// A handle on records that are open already, for whoever runs an operation.
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, op: OpId, what: &str) -> PathBuf {
        self.folder.join(format!("{}.{what}", op.0))
    }

    /// Records that an operation begins; the file is locked until every descriptor of it is closed.
    /// `None`: it was begun before, and must not be begun again.
    ///
    /// # Errors
    /// It can't be recorded: it must not be begun.
    pub fn begin(&self, op: OpId, begun: &Begun) -> io::Result<Option<File>> {
        let path = self.path(op, "begun");
        if path.exists() {
            return Ok(None);
        }
        let new = self.path(op, "new");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        serde_json::to_writer(&mut file, begun)?;
        // What has its name is whole.
        fs::rename(&new, &path)?;
        if let Some(old) = op.0.checked_sub(KEPT) {
            for what in ["begun", "ended"] {
                let _ = fs::remove_file(self.path(OpId(old), what));
            }
        }
        Ok(Some(file))
    }

    /// Records how an operation ended.
    ///
    /// # Errors
    /// It can't be recorded.
    pub fn end(&self, op: OpId, result: &OpResult) -> io::Result<()> {
        let new = self.path(op, "ending");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&new)?;
        file.write_all(&serde_json::to_vec(result)?)?;
        fs::rename(&new, self.path(op, "ended"))
    }

    /// What is known of an operation.
    ///
    /// # Errors
    /// A record can't be read, or makes no sense.
    pub fn known(&self, op: OpId) -> io::Result<Known> {
        if let Some(bytes) = read(&self.path(op, "ended"))? {
            return Ok(Known::Ended(serde_json::from_slice(&bytes)?));
        }
        Ok(match read(&self.path(op, "begun"))? {
            Some(bytes) => Known::Begun(Box::new(serde_json::from_slice(&bytes)?)),
            None => Known::Never,
        })
    }

    /// Waits until nobody runs an operation any more, and takes its lock. Blocks.
    ///
    /// # Errors
    /// There is no record, or it can't be locked.
    pub fn wait(&self, op: OpId) -> io::Result<File> {
        let file = File::open(self.path(op, "begun"))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes).map(|_| Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Begun {
        Begun {
            work: Work::Start {
                group: 0,
                resource: 1,
            },
            subject: ("g".to_owned(), "r".to_owned()),
            environment: vec![("CLP_EVENT".to_owned(), "START".to_owned())],
            timeout_ms: 1000,
        }
    }

    #[test]
    fn an_operation_is_begun_once_in_a_boot() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("operations");
        let records = Records::open(&path, 5).expect("open");
        assert!(matches!(
            records.known(OpId(3)).expect("read"),
            Known::Never
        ));
        let lock = records.begin(OpId(3), &begun()).expect("recorded");
        assert!(lock.is_some());
        // A new manager of the same boot.
        let records = Records::open(&path, 5).expect("open");
        assert!(records.begin(OpId(3), &begun()).expect("read").is_none());
        match records.known(OpId(3)).expect("read") {
            Known::Begun(found) => assert_eq!(*found, begun()),
            other => panic!("{other:?}"),
        }
        let result = OpResult::Failed("no".to_owned());
        records.end(OpId(3), &result).expect("recorded");
        match records.known(OpId(3)).expect("read") {
            Known::Ended(found) => assert_eq!(found, result),
            other => panic!("{other:?}"),
        }
        // Another boot knows nothing of it.
        let records = Records::open(&path, 6).expect("open");
        assert!(matches!(
            records.known(OpId(3)).expect("read"),
            Known::Never
        ));
    }

    #[test]
    fn the_lock_is_held_for_as_long_as_somebody_has_the_record_open() {
        let folder = tempfile::tempdir().expect("a folder");
        let records = Records::open(&folder.path().join("operations"), 1).expect("open");
        let lock = records.begin(OpId(1), &begun()).expect("recorded");
        let lock = lock.expect("first");
        let held = lock
            .try_clone()
            .expect("a second descriptor, as a child has it");
        drop(lock);
        let (told, heard) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn({
            let records = records.clone();
            move || {
                let waited = records.wait(OpId(1)).is_ok();
                let known = records.known(OpId(1));
                let _ = told.send((waited, matches!(known, Ok(Known::Ended(OpResult::Done)))));
            }
        });
        assert!(heard.try_recv().is_err());
        records.end(OpId(1), &OpResult::Done).expect("recorded");
        drop(held);
        // Whoever waited sees the outcome: it was written before the lock was given up.
        assert_eq!(heard.recv().expect("told"), (true, true));
        waiter.join().expect("ended");
    }
}
