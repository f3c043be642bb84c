//! What is done to a device by a process of its own.
//!
//! Opening the device, flushing it or changing its queue may wait for an answer that only this daemon
//! can give. A thread of the daemon that waits so can't be killed, and while it lives the stores stay
//! fenced: no next daemon could ever answer. A child has none of the daemon's files; killed or not, it
//! keeps nobody from going on.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kagami_nbd_server::kernel::Sysfs;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tracing::{error, info};

use super::lock;
use crate::control::driver::DeviceId;

/// What the child says when it is done.
const DONE: &str = "done";
/// Somebody else has the device exclusively.
const BUSY: &str = "busy";

/// A child says at most, bytes.
const SAYS_MAX: u64 = 1 << 20;

/// A child that has nothing to wait for is gone within.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// Why a child did not do it.
#[derive(Debug, thiserror::Error)]
pub enum HelperFault {
    /// A mount, LVM, md or another exclusive user has the device.
    #[error("another program has the device for itself")]
    Busy,
    /// It waits for the device.
    #[error("the device does not answer")]
    NoAnswer,
    /// A child that was given up waits in the kernel still.
    #[error("`kagami kernel-device {what}` (process {process}) was given up and has not ended")]
    Stuck {
        /// Its process.
        process: u32,
        /// Its arguments.
        what: String,
    },
    /// Anything else, in words.
    #[error("{0}")]
    Failed(String),
}

/// A device that is open exclusively, in a child, until this is dropped.
#[derive(Debug)]
pub struct Held {
    // Its standard input: the child ends with it.
    child: Option<Child>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            reap(child);
        }
    }
}

impl Held {
    /// Closes the device, and waits until it is closed; a child that is stuck is left.
    pub fn release(mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        drop(child.stdin.take());
        if !has_ended_within(&mut child, CLOSE_PATIENCE) {
            reap(child);
        }
    }
}

/// Waits for a child elsewhere: it may be stuck in the kernel.
fn reap(mut child: Child) {
    drop(child.stdin.take());
    // Without a thread it stays a zombie until the daemon ends: nothing else is lost.
    let _ = std::thread::Builder::new()
        .name("kagami-reap".to_owned())
        .spawn(move || drop(child.wait()));
}

/// Children that were given up and have not ended, with what they are for: who can't be interrupted in the kernel stays
/// there, for ever perhaps, and whoever asks the same again would wait behind it. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Stuck(Arc<Mutex<Vec<(Child, String)>>>);

/// Stuck children at a time; as long as there are as many, no other is begun.
const STUCK_MAX: usize = 16;

impl Stuck {
    /// Whether a child for `what` may be begun.
    ///
    /// # Errors
    /// [`HelperFault::Stuck`]: one for the same is stuck, or too many are.
    fn admit(&self, what: &str) -> Result<(), HelperFault> {
        let mut list = lock(&self.0);
        list.retain_mut(|(child, what)| {
            let is_there = matches!(child.try_wait(), Ok(None));
            if !is_there {
                let process = child.id();
                info!(
                    process,
                    "`kagami kernel-device {what}`, which was given up, has ended"
                );
            }
            is_there
        });
        let same = list.iter().find(|(_, stuck)| *stuck == what);
        let one = same.or_else(|| list.first().filter(|_| list.len() >= STUCK_MAX));
        match one {
            None => Ok(()),
            Some((child, what)) => Err(HelperFault::Stuck {
                process: child.id(),
                what: what.clone(),
            }),
        }
    }

    /// `child`, which was begun for `what`, is given up.
    fn add(&self, mut child: Child, what: String) {
        drop(child.stdin.take());
        let process = child.id();
        error!(
            process,
            "`kagami kernel-device {what}` was given up and does not end: the kernel holds it (`cat /proc/{process}/stack`); it is not begun again before it has ended"
        );
        lock(&self.0).push((child, what));
    }
}

/// Opens `device` exclusively, writes back what the kernel holds for it if `flush`, and keeps it open.
/// Blocks up to `patience`.
///
/// # Errors
/// [`HelperFault`]
pub fn hold(
    program: &Path,
    device: &Path,
    flush: bool,
    patience: Duration,
) -> Result<Held, HelperFault> {
    let mut command = Command::new(program);
    command.args(["kernel-device", "hold"]).arg(device);
    if flush {
        command.arg("--flush");
    }
    run(command, patience).map(|child| Held { child: Some(child) })
}

/// Makes the settings of [`Sysfs::tune`]. Blocks up to `patience`.
///
/// # Errors
/// [`HelperFault`]
pub fn tune(
    program: &Path,
    sysfs: &Path,
    id: DeviceId,
    max_kb: u32,
    patience: Duration,
) -> Result<(), HelperFault> {
    let mut command = Command::new(program);
    command
        .args(["kernel-device", "tune", "--sysfs"])
        .arg(sysfs)
        .args([id.to_string(), max_kb.to_string()]);
    run(command, patience).map(reap)
}

/// Runs a child until it says that it is done.
fn run(command: Command, patience: Duration) -> Result<Child, HelperFault> {
    let mut talk = Talk::begin(command, true)?;
    let line = talk.line(patience)?;
    match line.as_str() {
        DONE => Ok(talk.into_child()),
        BUSY => Err(HelperFault::Busy),
        _ => Err(HelperFault::Failed(line)),
    }
}

/// A child that says line by line how it goes. Its input is closed when this is dropped.
#[derive(Debug)]
pub struct Talk {
    // Its standard input is open as long as it is wanted.
    child: Option<Child>,
    /// It is killed, too.
    is_killed: bool,
    /// Where it is listed, and as what, should it be given up.
    stuck: Option<(Stuck, String)>,
    /// It was asked last, and said nothing.
    is_silent: bool,
    lines: mpsc::Receiver<io::Result<String>>,
}

impl Drop for Talk {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            if self.is_killed {
                let _ = child.kill();
            }
            match self.stuck.take() {
                Some((stuck, what)) if self.is_silent => stuck.add(child, what),
                _ => reap(child),
            }
        }
    }
}

impl Talk {
    /// Starts it. `is_killed`: nothing comes of killing it, should it not be wanted any more.
    ///
    /// # Errors
    /// [`HelperFault::Failed`]
    pub fn begin(mut command: Command, is_killed: bool) -> Result<Self, HelperFault> {
        let failed =
            |error: io::Error| HelperFault::Failed(format!("no process can be made: {error}"));
        if !is_killed {
            // A terminal's Ctrl-C goes to the daemon, and the child hears of it from there.
            command.process_group(0);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .map_err(failed)?;
        let output = child.stdout.take();
        let (tell, lines) = mpsc::channel();
        let talk = Self {
            child: Some(child),
            is_killed,
            stuck: None,
            is_silent: false,
            lines,
        };
        let Some(output) = output else {
            return Err(HelperFault::Failed("its output is lost".to_owned()));
        };
        let reader = std::thread::Builder::new().name("kagami-helper".to_owned());
        let reading = reader.spawn(move || {
            for line in BufReader::new(output.take(SAYS_MAX)).lines() {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        reading.map_err(failed)?;
        Ok(talk)
    }

    /// Starts one that is never killed, for `what`; only if none for the same is stuck.
    ///
    /// # Errors
    /// [`HelperFault::Stuck`], [`HelperFault::Failed`]
    pub fn begin_unless_stuck(
        command: Command,
        stuck: &Stuck,
        what: String,
    ) -> Result<Self, HelperFault> {
        stuck.admit(&what)?;
        let mut talk = Self::begin(command, false)?;
        talk.stuck = Some((stuck.clone(), what));
        Ok(talk)
    }

    /// What it says next. Blocks up to `patience`.
    ///
    /// # Errors
    /// [`HelperFault::NoAnswer`]: nothing yet. [`HelperFault::Failed`]: it has ended.
    pub fn line(&mut self, patience: Duration) -> Result<String, HelperFault> {
        let said = self.lines.recv_timeout(patience);
        self.is_silent = matches!(said, Err(RecvTimeoutError::Timeout));
        match said {
            Ok(Ok(line)) => Ok(line.trim().to_owned()),
            Ok(Err(error)) => Err(HelperFault::Failed(error.to_string())),
            Err(RecvTimeoutError::Timeout) => Err(HelperFault::NoAnswer),
            Err(RecvTimeoutError::Disconnected) => {
                Err(HelperFault::Failed("it ended without a word".to_owned()))
            }
        }
    }

    fn into_child(mut self) -> Child {
        let child = self.child.take();
        child.expect("a child that is talked with is there until it is dropped")
    }

    /// Closes its input, and waits until it has ended: what it had asked of the kernel is over then. False if
    /// that takes longer than `patience`.
    pub fn end(mut self, patience: Duration) -> bool {
        let Some(mut child) = self.child.take() else {
            return true;
        };
        drop(child.stdin.take());
        let has_ended = has_ended_within(&mut child, patience);
        if !has_ended {
            match self.stuck.take() {
                Some((stuck, what)) => stuck.add(child, what),
                None => reap(child),
            }
        }
        has_ended
    }
}

/// Whether a child ended, and was waited for, within `patience`.
fn has_ended_within(child: &mut Child, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            // An error: it was waited for already.
            Ok(Some(_)) | Err(_) => return true,
            Ok(None) if Instant::now() >= deadline => return false,
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// The child's side of [`hold`]: says how it went, and keeps the device until its input ends.
pub fn hold_here(device: &Path, flush: bool) {
    let held = open_exclusively(device).and_then(|file| {
        if flush {
            rustix::fs::fsync(&file)?;
        }
        Ok(file)
    });
    match held {
        Ok(file) => {
            say(DONE);
            // Ends when the daemon closes its end, or is gone.
            let _ = io::stdin().lock().read_to_end(&mut Vec::new());
            drop(file);
        }
        Err(Errno::BUSY) => say(BUSY),
        Err(errno) => say(&format!("{}: {errno}", device.display())),
    }
}

fn open_exclusively(device: &Path) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::open(device, flags, Mode::empty())
}

/// The child's side of [`tune`].
pub fn tune_here(sysfs: PathBuf, id: DeviceId, max_kb: u32) {
    match Sysfs::new(sysfs, id.driver.kind()).tune(id.index, max_kb) {
        Ok(()) => say(DONE),
        Err(fault) => say(&fault.to_string()),
    }
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    // Nobody listens: then nobody needs it.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The process group of a child that is begun so.
    fn group_of(is_killed: bool) -> i32 {
        let mut command = Command::new("sh");
        let says = "read -r pid name state parent group rest </proc/self/stat; echo $group";
        command.args(["-c", says]);
        let mut talk = Talk::begin(command, is_killed).expect("a shell");
        let line = talk.line(Duration::from_secs(30)).expect("a line");
        line.parse().expect("a number")
    }

    /// What a terminal sends to the daemon's group would kill it.
    #[test]
    fn a_child_that_is_not_to_be_killed_has_a_group_of_its_own() {
        let ours = rustix::process::getpgrp().as_raw_nonzero().get();
        assert_eq!(group_of(true), ours);
        assert_ne!(group_of(false), ours);
    }
}
