//! Processes that resources start: they outlive the manager, so each is known by its number and
//! the time of its start, written down before it begins.
//!
//! [`script`] runs what operators wrote, [`tool`] the system's programs, [`log`] keeps what they say, `table` is who runs.

pub mod log;
pub mod script;
mod table;
pub mod tool;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::time::{Instant, sleep};

pub(crate) use table::{all, unless_gone};
use table::{in_control_group, stat};

use crate::config::Ms;
use crate::core::OpResult;

/// From TERM to KILL.
pub const GRACE: Duration = Duration::from_secs(5);

/// How long what was killed may take to be gone; a process in a system call of a dead disk may not
/// go at all.
const GONE_WITHIN: Duration = Duration::from_secs(5);

const POLL: Duration = Duration::from_millis(20);

/// Why a step of an operation did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// In words.
    Failed(String),
    /// It took too long.
    TimedOut,
    /// Of a probe alone: in words what is wrong, although nothing has failed.
    Warned(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl From<Failure> for OpResult {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Failed(why) => Self::Failed(why),
            Failure::TimedOut => Self::TimedOut,
            Failure::Warned(why) => Self::Warned(why),
        }
    }
}

/// What a step comes to.
pub type Step<T = ()> = Result<T, Failure>;

/// A step's end as an operation's.
pub fn ended(step: Step) -> OpResult {
    step.map_or_else(OpResult::from, |()| OpResult::Done)
}

/// When an operation has to be over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// So long from now; 0: never.
    pub fn after(time: Ms) -> Self {
        let time = Duration::from_millis(time.0);
        Self((!time.is_zero()).then(|| Instant::now() + time))
    }

    /// The earlier of this one and so long from now.
    #[must_use]
    pub fn within(self, time: Ms) -> Self {
        match (self.0, Self::after(time).0) {
            (Some(a), Some(b)) => Self(Some(a.min(b))),
            (a, b) => Self(a.or(b)),
        }
    }

    /// What is left of it.
    pub fn left(self) -> Duration {
        let year = Duration::from_secs(366 * 86_400);
        self.0
            .map_or(year, |at| at.saturating_duration_since(Instant::now()))
    }

    /// It has passed.
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }

    /// What this comes to before it passes.
    ///
    /// # Errors
    /// It passed first.
    pub async fn wait<T>(self, what: impl Future<Output = T>) -> Step<T> {
        tokio::time::timeout(self.left(), what)
            .await
            .map_err(|_| Failure::TimedOut)
    }
}

/// A process, and no other one that has its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it was started, in clock ticks since the machine was.
    pub start: u64,
}

impl Process {
    /// The process that has this number now.
    pub fn of(pid: i32) -> Option<Self> {
        let start = stat(pid).ok()??.start;
        Some(Self { pid, start })
    }

    /// It runs; one that has ended and was not waited for does not.
    ///
    /// # Errors
    /// That can't be seen.
    pub fn runs(self) -> io::Result<bool> {
        Ok(stat(self.pid)?.is_some_and(|s| s.start == self.start && s.runs()))
    }

    /// It has not ended, as far as can be seen.
    pub fn is_alive(self) -> bool {
        self.runs().unwrap_or(true)
    }

    /// The process of a record; `None`: there is none, or it says nothing yet.
    ///
    /// # Errors
    /// It can't be read.
    pub fn recorded(record: &Path) -> io::Result<Option<Self>> {
        let text = unless_gone(fs::read_to_string(record))?.unwrap_or_default();
        let of = |text: &str| {
            let (pid, start) = text.trim().split_once(' ')?;
            Some(Self {
                pid: pid.parse().ok()?,
                start: start.parse().ok()?,
            })
        };
        Ok(of(&text))
    }
}

/// A process with what it has started: its process group, and a control group where there is one.
#[derive(Clone, Debug, Default)]
pub struct Family {
    /// The first of it.
    pub leader: Option<Process>,
    /// Where all of it are, below.
    pub control_group: Option<PathBuf>,
}

impl Family {
    /// Those that run.
    ///
    /// # Errors
    /// They can't be seen: it is not known that nobody does.
    pub fn members(&self) -> io::Result<Vec<i32>> {
        let mut all_of_it = BTreeSet::new();
        if let Some(group) = &self.control_group {
            in_control_group(group, &mut all_of_it)?;
        }
        if let Some(leader) = self.leader {
            // The number is not given to another process while the group has members: a stranger
            // that has it tells that the group is gone.
            let stranger = stat(leader.pid)?.is_some_and(|s| s.start != leader.start);
            // Nobody is looked for in a group that is empty, as it is most of the time.
            let empty = Pid::from_raw(leader.pid).is_none_or(|group| {
                rustix::process::test_kill_process_group(group) == Err(rustix::io::Errno::SRCH)
            });
            if !stranger && !empty {
                for pid in all()? {
                    let ours = |s: table::Stat| s.group == leader.pid && s.start >= leader.start;
                    if stat(pid)?.is_some_and(ours) {
                        all_of_it.insert(pid);
                    }
                }
            }
        }
        let mut running = Vec::new();
        for pid in all_of_it {
            if stat(pid)?.is_some_and(table::Stat::runs) {
                running.push(pid);
            }
        }
        Ok(running)
    }

    /// Nobody of it runs any more, as far as can be seen.
    pub fn is_gone(&self) -> bool {
        self.members().is_ok_and(|left| left.is_empty())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if signal == Signal::KILL
            && let Some(group) = &self.control_group
        {
            // All at once, so that none can fork away; where the kernel is too old for it, one by one.
            let _ = fs::write(group.join("cgroup.kill"), "1");
        }
        let members = self.members().unwrap_or_else(|error| {
            tracing::warn!(%error, ?signal, "processes that are to hear it can't be seen");
            Vec::new()
        });
        for pid in members {
            if let Some(pid) = Pid::from_raw(pid) {
                // One that has ended meanwhile is what is wanted.
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }

    /// Ends all of it: asks first, and kills what is left after `grace`.
    ///
    /// # Errors
    /// Something of it is still there: the kernel can't end it. Or that can't be seen.
    pub async fn end(&self, grace: Duration) -> Step {
        if self.is_gone() {
            return Ok(());
        }
        self.signal(Signal::TERM);
        // What is stopped does not hear TERM.
        self.signal(Signal::CONT);
        if self.gone_within(grace).await {
            return Ok(());
        }
        self.signal(Signal::KILL);
        if self.gone_within(GONE_WITHIN).await {
            return Ok(());
        }
        let left = self.members().map_err(|error| {
            Failure::Failed(format!(
                "killed, and whether they have ended can't be seen: {error}\n  next: see whether this node has too many open files or processes"
            ))
        })?;
        let names: Vec<String> = left.iter().map(|pid| describe(*pid)).collect();
        Err(Failure::Failed(format!(
            "killed, and still there: {}: a process in a system call that does not return can't be ended",
            names.join(", ")
        )))
    }

    /// True if all of it has ended by itself within this time.
    pub async fn gone_within(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            if self.is_gone() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            sleep(POLL).await;
        }
    }
}

/// Removes a control group in which nothing runs any more, with those below it.
pub(crate) fn remove_control_group(group: &Path) {
    if let Ok(below) = fs::read_dir(group) {
        for entry in below.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_control_group(&entry.path());
            }
        }
    }
    // One that is in use stays.
    let _ = fs::remove_dir(group);
}

/// A process as people know it.
pub(crate) fn describe(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{} ({pid})", name.trim())
}
