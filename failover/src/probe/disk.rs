//! Reads a device, or writes and reads a file, past the page cache.
//!
//! A disk that hangs holds the thread that asks it, for ever perhaps. So each path has one thread at
//! most: the next look fails while the last one has not returned.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::Builder;

use rustix::fs::OFlags;

use crate::lock;
use crate::process::{Failure, Step};

/// What is read and written, in bytes: a block of every disk.
const BLOCK: usize = 4096;

static ASKED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Aligned as `O_DIRECT` wants it.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// Looks at it once.
///
/// # Errors
/// It can't be read or written, reads something else than what was written, or the last look has not
/// returned yet.
pub async fn look(path: &Path, write: bool) -> Step {
    look_in(Builder::new(), path, write).await
}

async fn look_in(thread: Builder, path: &Path, write: bool) -> Step {
    let owned = path.to_owned();
    {
        let mut asked = lock(&ASKED);
        if !asked.insert(owned.clone()) {
            return Err(Failure::Failed(format!(
                "{}: the disk has not answered the last look yet",
                path.display()
            )));
        }
    }
    let (done, answer) = tokio::sync::oneshot::channel();
    let no_more = |path: &Path| {
        let mut asked = lock(&ASKED);
        asked.remove(path);
    };
    // Not one of the runtime's threads: at its end the program would wait for it.
    let begun = thread.spawn(move || {
        let result = ask(&owned, write);
        no_more(&owned);
        // Who asked may have given up.
        let _ = done.send(result);
    });
    if let Err(error) = begun {
        no_more(path);
        let why = format!("{}: no thread can be begun: {error}", path.display());
        return Err(Failure::Failed(why));
    }
    let result = answer.await.map_err(|error| error.to_string())?;
    Ok(result.map_err(|error| format!("{}: {error}", path.display()))?)
}

/// Past the page cache where the file system can do that (tmpfs can't).
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let direct = OFlags::DIRECT.bits().cast_signed();
    match options.custom_flags(direct).open(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            options.custom_flags(0).open(path)
        }
        other => other,
    }
}

fn ask(path: &Path, write: bool) -> io::Result<()> {
    let mut block = Box::new(Block([0; BLOCK]));
    if write {
        let is_device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        if is_device {
            return Err(io::Error::other(
                "a device is not written: name a file on it",
            ));
        }
        let now = jiff::Timestamp::now().as_nanosecond().to_be_bytes();
        block.0[..16].copy_from_slice(&now);
        block.0[16..24].copy_from_slice(b"kagami-d");
        let mut options = OpenOptions::new();
        let file = open(
            options.read(true).write(true).create(true).truncate(false),
            path,
        )?;
        file.write_all_at(&block.0, 0)?;
        file.sync_data()?;
        let mut back = Box::new(Block([0; BLOCK]));
        file.read_exact_at(&mut back.0, 0)?;
        if back.0 != block.0 {
            return Err(io::Error::other("what was written reads as something else"));
        }
        return Ok(());
    }
    let file = open(OpenOptions::new().read(true), path)?;
    // A short file is read to its end.
    file.read_at(&mut block.0, 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_written_and_a_missing_one_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe");
        assert_eq!(look(&path, true).await, Ok(()));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), BLOCK as u64);
        assert_eq!(look(&path, false).await, Ok(()));
        let missing = folder.path().join("gone/probe");
        assert!(look(&missing, false).await.is_err());
        assert!(look(&missing, true).await.is_err());
    }

    #[tokio::test]
    async fn a_thread_that_can_t_be_begun_is_a_failure_of_that_look() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe");
        let too_large = Builder::new().stack_size(1 << 60);
        let failed = look_in(too_large, &path, true).await.unwrap_err();
        assert!(format!("{failed:?}").contains("no thread"), "{failed:?}");
        assert_eq!(look(&path, true).await, Ok(()));
    }

    #[tokio::test]
    async fn a_disk_that_has_not_answered_is_not_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        // A pipe that nobody writes to hangs whoever opens it, as a dead disk does.
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let short = std::time::Duration::from_millis(100);
        let first = tokio::time::timeout(short, look(&pipe, false)).await;
        assert!(first.is_err(), "it hangs");
        let second = look(&pipe, false).await.unwrap_err();
        assert!(format!("{second:?}").contains("not answered the last look"));
        // It comes back to life: one who writes lets the reader go on, whenever that opens it.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while ASKED.lock().unwrap().contains(&pipe) {
            let quick = OFlags::NONBLOCK.bits().cast_signed();
            drop(
                OpenOptions::new()
                    .write(true)
                    .custom_flags(quick)
                    .open(&pipe),
            );
            assert!(std::time::Instant::now() < until, "the thread returns");
            tokio::task::yield_now().await;
        }
    }
}
