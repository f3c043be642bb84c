//! Operations in processes of their own, so that a manager's death ends none of them.
//!
//! A helper is this program again with a hidden command. It gets the locked record as its standard
//! input, works, writes the outcome, and ends; the lock ends with it. The manager, or the next one,
//! waits for that.

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use rustix::stdio;

use crate::core::{OpId, OpResult};

use super::records::{Known, Records};

/// What a helper's own children get as standard input.
const NULL: &str = "/dev/null";

/// How helpers are started.
#[derive(Clone, Debug)]
pub struct Helpers {
    /// The program.
    pub program: PathBuf,
    /// Its arguments; the operation's number is put behind them.
    pub arguments: Vec<std::ffi::OsString>,
    /// Where the records are.
    pub records: Records,
}

impl Helpers {
    /// Runs a recorded operation in a helper and waits for its outcome. Dropped, the helper goes on.
    pub fn run(&self, op: OpId, record: File) -> impl Future<Output = OpResult> + Send + 'static {
        let started = tokio::process::Command::new(&self.program)
            .args(&self.arguments)
            .arg(op.0.to_string())
            .stdin(Stdio::from(record))
            .kill_on_drop(false)
            .spawn();
        let records = self.records.clone();
        async move {
            let ended = match started {
                Ok(mut child) => child.wait().await,
                Err(error) => Err(error),
            };
            let why = match ended {
                Ok(status) => format!("its process ended without an outcome: {status}"),
                Err(error) => format!("no process for it: {error}"),
            };
            outcome(&records, op, why)
        }
    }

    /// Waits for a helper that an earlier manager has started.
    pub fn wait(&self, op: OpId) -> impl Future<Output = OpResult> + Send + 'static {
        let records = self.records.clone();
        async move {
            let (waiting, why) = (records.clone(), "its process ended without an outcome");
            // The lock is kept until the outcome is recorded.
            match tokio::task::spawn_blocking(move || waiting.wait(op)).await {
                Ok(Ok(_lock)) => outcome(&records, op, why.to_owned()),
                Ok(Err(error)) => outcome(&records, op, format!("{why}: {error}")),
                Err(error) => outcome(&records, op, format!("{why}: {error}")),
            }
        }
    }
}

/// The recorded outcome; where there is none, none will come, and that is recorded.
fn outcome(records: &Records, op: OpId, why: String) -> OpResult {
    if let Ok(Known::Ended(result)) = records.known(op) {
        return result;
    }
    let result = OpResult::Failed(why);
    if let Err(error) = records.end(op, &result) {
        tracing::warn!("{op}: its outcome was not recorded: {error}");
    }
    result
}

/// A helper's record.
#[derive(Debug)]
pub struct Task {
    records: Records,
    op: OpId,
    /// What is to be done.
    pub begun: super::records::Begun,
    /// Held until the outcome is recorded; no child has it.
    lock: rustix::fd::OwnedFd,
}

impl Task {
    /// In a helper: takes over the record that the manager has handed in as standard input.
    ///
    /// # Errors
    /// This process was not started as a helper, or the operation has ended already.
    pub fn take(records: Records, op: OpId) -> io::Result<Self> {
        // Children get other descriptors: this one is closed when they begin.
        let lock = rustix::io::fcntl_dupfd_cloexec(stdio::stdin(), 3)?;
        let null = File::open(NULL)?;
        stdio::dup2_stdin(&null)?;
        if !records.is_record(op, &lock)? {
            let what = "its record is not this process's standard input: no manager has started it";
            return Err(io::Error::other(what));
        }
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        match records.known(op)? {
            Known::Begun(begun) => Ok(Self {
                records,
                op,
                begun: *begun,
                lock,
            }),
            Known::Never => Err(io::Error::other(format!("{op} was not recorded"))),
            Known::Ended(_) => Err(io::Error::other(format!("{op} has ended already"))),
        }
    }

    /// Records the outcome.
    ///
    /// # Errors
    /// It can't be recorded: the operation counts as failed.
    pub fn end(self, result: &OpResult) -> io::Result<()> {
        let recorded = self.records.end(self.op, result);
        drop(self.lock);
        recorded
    }
}
