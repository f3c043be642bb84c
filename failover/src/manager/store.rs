//! The manager's state on disk: what [`Durable`] is between two lives of the manager.
//!
//! One file, always written whole: to a new file, synced, renamed over the old one, and the folder
//! synced, so that a crash leaves the old state or the new one. A line before the state says what it
//! is, how long and with which checksum; a file that does not fit its own line is refused, never
//! taken for an empty state. A thread of its own writes, since a disk may take its time; of states
//! that wait, only the newest is written. A manager that begins while an earlier one's thread is at work, after a
//! reload, waits for what is being written, and nothing of that one is written after it has read the file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use crate::core::Durable;
use crate::lives::Life;

/// What the first line begins with.
const MAGIC: &str = "kagami-failover-state";
/// The version of the file.
const VERSION: &str = "1";

/// Why a state was not taken from its file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It can't be read or written.
    #[error("the failover manager's state {}: {doing}: {source}\n  next: put it right and start the manager again", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// It is not what was written.
    #[error(
        "the failover manager's state {} is damaged: {why}\n  next: make sure that no group runs on this node (`kagami cluster status` on the other one), move the file away, and start the manager again: it begins with what the other node tells it",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it is seen.
        why: String,
    },
    /// Another version of the program wrote it.
    #[error(
        "the failover manager's state {} has version {found}, this program knows version {VERSION}\n  next: start the program that wrote it",
        path.display()
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
}

/// Reads the state that an earlier manager left; `None`: there was none.
///
/// # Errors
/// It can't be read, or is damaged.
pub fn load(path: &Path) -> Result<Option<Durable>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(StoreError::Io {
                path: path.to_owned(),
                doing: "read",
                source,
            });
        }
    };
    let damaged = |why: String| StoreError::Damaged {
        path: path.to_owned(),
        why,
    };
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (head, body) = match end {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => return Err(damaged("it has no first line".to_owned())),
    };
    let head = String::from_utf8_lossy(head);
    let mut words = head.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(damaged(format!("its first line is not `{MAGIC} …`")));
    }
    match words.next() {
        Some(VERSION) => {}
        other => {
            return Err(StoreError::OtherVersion {
                path: path.to_owned(),
                found: other.unwrap_or("none").to_owned(),
            });
        }
    }
    let length = words.next().and_then(|word| word.parse::<usize>().ok());
    let sum = words.next().and_then(|w| u32::from_str_radix(w, 16).ok());
    let (Some(length), Some(sum)) = (length, sum) else {
        return Err(damaged("its first line has no length or checksum".into()));
    };
    if body.len() != length {
        let have = body.len();
        return Err(damaged(format!("it has {have} bytes of {length}")));
    }
    if crc32c::crc32c(body) != sum {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    serde_json::from_slice(body)
        .map(Some)
        .map_err(|error| damaged(format!("its words make no sense: {error}")))
}

/// Writes a state, durably.
///
/// # Errors
/// The file could not be written, synced or renamed: the old one stands.
pub fn save(path: &Path, state: &Durable) -> Result<(), StoreError> {
    let failed = |doing| {
        move |source| StoreError::Io {
            path: path.to_owned(),
            doing,
            source,
        }
    };
    let body = serde_json::to_vec(state).map_err(|e| failed("encode")(io::Error::from(e)))?;
    let sum = crc32c::crc32c(&body);
    let head = format!("{MAGIC} {VERSION} {} {sum:08x}\n", body.len());
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed("create"))?;
    file.write_all(head.as_bytes()).map_err(failed("write"))?;
    file.write_all(&body).map_err(failed("write"))?;
    file.sync_all().map_err(failed("sync"))?;
    fs::rename(&new, path).map_err(failed("rename"))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let folder = File::open(folder).map_err(failed("open the folder"))?;
    folder.sync_all().map_err(failed("sync the folder"))
}

/// A thread that writes states in their order.
#[derive(Debug)]
pub struct Store {
    states: Sender<(u64, Box<Durable>)>,
}

impl Store {
    /// Starts the thread, for a life of the manager that began before it read the file. `done` is called with each
    /// number that was written, or could not be; a number stands for all before it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        path: PathBuf,
        life: Life,
        done: impl Fn(u64, bool) + Send + 'static,
    ) -> io::Result<Self> {
        let (states, queue) = channel();
        thread::Builder::new()
            .name("failover-state".to_owned())
            .spawn(move || write_all(&path, &life, &queue, done))?;
        Ok(Self { states })
    }

    /// Writes this one, after what was handed in before.
    pub fn write(&self, seq: u64, state: Box<Durable>) {
        // The thread ends only with this handle.
        let _ = self.states.send((seq, state));
    }
}

fn write_all(
    path: &Path,
    life: &Life,
    queue: &Receiver<(u64, Box<Durable>)>,
    done: impl Fn(u64, bool),
) {
    while let Ok(mut newest) = queue.recv() {
        while let Ok(newer) = queue.try_recv() {
            newest = newer;
        }
        let (seq, state) = newest;
        let Some(saved) = life.carry_out(|| save(path, &state)) else {
            return;
        };
        if let Err(error) = &saved {
            tracing::error!("{error}");
        }
        done(seq, saved.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> Durable {
        Durable {
            boot: u128::MAX - 5,
            life: 3,
            next_op: 42,
            ..Durable::default()
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        assert_eq!(load(&path).expect("no file is no fault"), None);
        save(&path, &state()).expect("saved");
        assert_eq!(load(&path).expect("loaded"), Some(state()));
    }

    #[test]
    fn a_cut_or_changed_file_is_refused_wherever_it_is_cut_or_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        save(&path, &state()).expect("saved");
        let whole = fs::read(&path).expect("there");
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).expect("written");
            assert!(load(&path).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).expect("written");
            assert!(load(&path).is_err(), "changed at {at}");
        }
    }

    #[test]
    fn a_full_disk_leaves_the_old_state() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        save(&path, &state()).expect("saved");
        // A folder stands where the new file should be written.
        fs::create_dir(path.with_extension("new")).expect("made");
        let newer = Durable { life: 4, ..state() };
        assert!(save(&path, &newer).is_err());
        assert_eq!(load(&path).expect("loaded"), Some(state()));
    }

    #[test]
    fn the_thread_reports_the_newest() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        let (told, heard) = channel();
        let life = Life::of(&path);
        let store = Store::start(path.clone(), life, move |seq, done| {
            let _ = told.send((seq, done));
        });
        let store = store.expect("a thread");
        for seq in 1..=50 {
            let state = Durable {
                life: seq,
                ..state()
            };
            store.write(seq, Box::new(state));
        }
        let mut last = 0;
        while last < 50 {
            let (seq, done) = heard.recv().expect("reported");
            assert!(done && seq > last);
            last = seq;
        }
        assert_eq!(load(&path).expect("loaded").expect("there").life, 50);
    }

    #[test]
    fn what_an_earlier_manager_has_not_written_when_the_next_one_begins_is_never_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        let with = |life| Box::new(Durable { life, ..state() });
        // Held after its first state, with another one to be written.
        let (at, written) = channel();
        let (go_on, held) = channel::<()>();
        let earlier = Store::start(path.clone(), Life::of(&path), move |seq, _| {
            at.send(seq).expect("waited for");
            held.recv().expect("let go");
        });
        let earlier = earlier.expect("a thread");
        earlier.write(1, with(1));
        assert_eq!(written.recv(), Ok(1));
        earlier.write(2, with(2));

        let life = Life::of(&path);
        assert_eq!(load(&path).expect("loaded").expect("there").life, 1);
        let (told, heard) = channel();
        let later = Store::start(path.clone(), life, move |seq, done| {
            told.send((seq, done)).expect("waited for");
        });
        later.expect("a thread").write(1, with(3));
        assert_eq!(heard.recv(), Ok((1, true)));
        go_on.send(()).expect("it is held");
        drop(go_on);
        drop(earlier);
        assert!(written.recv().is_err(), "its thread ends");
        assert_eq!(load(&path).expect("loaded").expect("there").life, 3);
    }
}
