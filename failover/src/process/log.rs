//! What scripts write: a file for each resource, with a bound.
//!
//! Scripts have the file itself, not a pipe: what they leave running goes on writing when the
//! manager has ended. So a file that grows is cut in place, and every writer appends. Whoever writes
//! it, [`keep_short`] looks after it, and after the guard's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Deadline, Step};
use crate::config::Ms;
use crate::place::Place;
use crate::resource::apart::Apart;

/// A log that is longer is cut; as much as this is kept beside it.
pub const BOUND: u64 = 1 << 20;
/// How often they are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A script's log is there within, or the script runs without: it may have to stop a service.
const WITHIN: Ms = Ms(2000);
/// So long is a log waited for that another one waits for already: those that come after it are not each held up by a disk
/// that hangs.
const WITHIN_MORE: Ms = Ms(300);
/// The guard's, in the state folder.
pub const OF_GUARD: &str = "guard.log";

/// Cuts what has grown too long at each tick ([`LOOK_EVERY`]), for as long as it is polled.
pub async fn keep_short<F: Future<Output = ()> + Send>(
    place: Arc<Place>,
    mut tick: impl FnMut() -> F + Send,
) {
    loop {
        tick().await;
        let state = place.state.clone();
        let within = Deadline::after(Ms(LOOK_EVERY.as_millis() as u64));
        // A disk that hangs holds one thread, and nobody else.
        let looked = place.apart.run("logs", within, move || trim_all(&state));
        if let Err(why) = looked.await {
            tracing::warn!(?why, "the logs of scripts are not looked after");
        }
    }
}

fn trim_all(state: &Path) {
    trim(&state.join(OF_GUARD));
    let Ok(found) = fs::read_dir(state.join("logs")) else {
        return;
    };
    let logs = found.flatten().map(|entry| entry.path());
    for log in logs.filter(|path| path.extension().is_some_and(|kind| kind == "log")) {
        trim(&log);
    }
}

/// Opens a log to be appended to; a long one is cut first. Where that can't be done it grows, or what is
/// written is lost: a disk that is full or read-only must not keep a service from being started or stopped.
///
/// # Errors
/// Not even `/dev/null` can be opened.
pub fn open(path: &Path) -> io::Result<File> {
    trim(path);
    let mut options = OpenOptions::new();
    options.append(true).read(true).mode(0o640);
    match options.create(true).open(path) {
        Ok(log) => Ok(log),
        Err(error) => {
            tracing::warn!(%error, log = %path.display(), "a script's log can't be opened: what it writes is lost");
            nowhere()
        }
    }
}

fn nowhere() -> io::Result<File> {
    OpenOptions::new().append(true).read(true).open("/dev/null")
}

/// What is done with one log, one at a time.
fn turn(path: &Path) -> String {
    format!("the log {}", path.display())
}

/// Opens a log as [`open`] does, notes in it what follows, and says where that begins; `None`: in no file. The disk may
/// hang: it is not waited for longer than [`WITHIN`], and what is written is lost then.
///
/// # Errors
/// As [`open`].
pub(super) async fn begin(
    apart: &Apart,
    path: &Path,
    what: String,
) -> io::Result<(File, Option<u64>)> {
    let owned = path.to_owned();
    let opening = move || -> io::Result<_> {
        let mut log = open(&owned)?;
        note(&mut log, &what);
        // What was in a log that can't be written is of others.
        let about = log.metadata().ok().filter(fs::Metadata::is_file);
        Ok((log, about.map(|about| about.len())))
    };
    match apart_from_all(apart, path, opening).await {
        Ok(opened) => opened,
        Err(why) => {
            tracing::warn!(?why, log = %path.display(), "a script's log is not there in time: what it writes is lost");
            Ok((nowhere()?, None))
        }
    }
}

/// Opens the log `name` for a program that is begun again without its script, as [`begin`] does. For a thread that may
/// wait.
///
/// # Errors
/// As [`open`].
///
/// # Panics
/// Outside a tokio runtime, or on a thread of it that must not wait.
pub fn begin_again(place: &Place, name: &str, what: &str) -> io::Result<File> {
    let path = place.log(name);
    let begun = begin(&place.apart, &path, what.to_owned());
    Ok(tokio::runtime::Handle::current().block_on(begun)?.0)
}

async fn apart_from_all<T: Send + 'static>(
    apart: &Apart,
    path: &Path,
    what: impl FnOnce() -> T + Send + 'static,
) -> Step<T> {
    let turn = turn(path);
    apart.returned(&turn, Deadline::after(WITHIN_MORE)).await?;
    apart.run(&turn, Deadline::after(WITHIN), what).await
}

/// Cuts a log that is too long; its last part is kept as `NAME.1`, where there is room for that.
fn trim(path: &Path) {
    if let Err(error) = cut(path) {
        tracing::warn!(%error, log = %path.display(), "a log can't be cut");
    }
}

fn cut(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    if length <= BOUND {
        return Ok(());
    }
    file.seek(SeekFrom::Start(length - BOUND))?;
    let mut last = Vec::new();
    Read::by_ref(&mut file).take(BOUND).read_to_end(&mut last)?;
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    let kept = fs::write(&old, last);
    // A disk that is full is why it must become shorter.
    file.set_len(0)?;
    kept
}

/// Notes in the log what follows.
fn note(file: &mut File, what: &str) {
    let now = jiff::Timestamp::now();
    // As above: it runs all the same.
    if let Err(error) = writeln!(file, "--- {now:.0} {what}") {
        tracing::warn!(%error, what, "the script's log can't be written");
    }
}

/// The last line that was written from there on, for an error's text.
/// `None`: there is none, or the disk does not say in time.
pub(super) async fn last_line(apart: &Apart, path: &Path, from: u64) -> Option<String> {
    let owned = path.to_owned();
    let read = apart_from_all(apart, path, move || read_last_line(&owned, from));
    read.await.ok().flatten()
}

fn read_last_line(path: &Path, from: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(
        from.min(length).max(length.saturating_sub(4096)),
    ))
    .ok()?;
    let mut text = Vec::new();
    file.take(4096).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_line_of_a_log_that_hangs_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (log, pipe) = (folder.path().join("x.log"), folder.path().join("y.log"));
        fs::write(&log, "before\none\ntwo\n\n").unwrap();
        let apart = Apart::default();
        let last = last_line(&apart, &log, 7).await;
        assert_eq!(last.as_deref(), Some("two"));
        // Nobody will ever write to it: who opens it waits.
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        assert_eq!(last_line(&apart, &pipe, 0).await, None);
        let opened = OpenOptions::new().append(true).open(&pipe);
        assert!(opened.is_ok(), "it waits for it still");
    }

    #[test]
    fn a_log_is_cut_in_place_and_its_last_part_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut writer = open(&path).unwrap();
        let line = vec![b'a'; 1000];
        for _ in 0..1100 {
            writer.write_all(&line).unwrap();
        }
        writer.write_all(b"the end\n").unwrap();
        trim(&path);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        let kept = fs::read(folder.path().join("x.log.1")).unwrap();
        assert_eq!(kept.len() as u64, BOUND);
        assert!(kept.ends_with(b"the end\n"));
        // Whoever had it open goes on at its new end.
        writer.write_all(b"on it goes\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"on it goes\n");
        // Where nothing can be kept it becomes shorter all the same.
        fs::remove_file(folder.path().join("x.log.1")).unwrap();
        fs::create_dir(folder.path().join("x.log.1")).unwrap();
        fs::write(&path, vec![b'a'; BOUND as usize + 1]).unwrap();
        trim(&path);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
}
