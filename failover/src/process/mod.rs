//! Processes that resources start: they outlive the manager, so each is known by its number and
//! the time of its start, written down before it begins.
//!
//! [`script`] runs what operators wrote, [`tool`] the system's programs, [`log`] keeps what they say.

pub mod log;
pub mod script;
pub mod tool;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::time::{Instant, sleep};

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

/// What the kernel tells of a process, of which little is asked.
#[derive(Clone, Copy, Debug)]
struct Stat {
    state: char,
    group: i32,
    start: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name may have anything in it, `)` too.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        group: fields.get(2)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

impl Process {
    /// The process that has this number now.
    pub fn of(pid: i32) -> Option<Self> {
        let start = stat(pid)?.start;
        Some(Self { pid, start })
    }

    /// It runs; one that has ended and was not waited for does not.
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|s| s.start == self.start && !matches!(s.state, 'Z' | 'X'))
    }

    /// The process of a record.
    pub fn recorded(record: &Path) -> Option<Self> {
        let text = fs::read_to_string(record).ok()?;
        let (pid, start) = text.trim().split_once(' ')?;
        Some(Self {
            pid: pid.parse().ok()?,
            start: start.parse().ok()?,
        })
    }
}

/// All numbers of processes.
pub(crate) fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
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
    pub fn members(&self) -> Vec<i32> {
        let mut all_of_it = BTreeSet::new();
        if let Some(group) = &self.control_group {
            in_control_group(group, &mut all_of_it);
        }
        if let Some(leader) = self.leader {
            // The number is not given to another process while the group has members: a stranger
            // that has it tells that the group is gone.
            let stranger = stat(leader.pid).is_some_and(|s| s.start != leader.start);
            // Nobody is looked for in a group that is empty, as it is most of the time.
            let empty = Pid::from_raw(leader.pid).is_none_or(|group| {
                rustix::process::test_kill_process_group(group) == Err(rustix::io::Errno::SRCH)
            });
            if !stranger && !empty {
                let ours = |pid: &i32| {
                    stat(*pid).is_some_and(|s| s.group == leader.pid && s.start >= leader.start)
                };
                all_of_it.extend(all().into_iter().filter(ours));
            }
        }
        let runs = |pid: &i32| stat(*pid).is_some_and(|s| !matches!(s.state, 'Z' | 'X'));
        all_of_it.into_iter().filter(runs).collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if signal == Signal::KILL
            && let Some(group) = &self.control_group
        {
            // All at once, so that none can fork away; where the kernel is too old for it, one by one.
            let _ = fs::write(group.join("cgroup.kill"), "1");
        }
        for pid in self.members() {
            if let Some(pid) = Pid::from_raw(pid) {
                // One that has ended meanwhile is what is wanted.
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }

    /// Ends all of it: asks first, and kills what is left after `grace`.
    ///
    /// # Errors
    /// Something of it is still there: the kernel can't end it.
    pub async fn end(&self, grace: Duration) -> Step {
        if self.members().is_empty() {
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
        let left = self.members();
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
            if self.members().is_empty() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            sleep(POLL).await;
        }
    }
}

fn in_control_group(group: &Path, into: &mut BTreeSet<i32>) {
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    into.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
    let Ok(below) = fs::read_dir(group) else {
        return;
    };
    for entry in below.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            in_control_group(&entry.path(), into);
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
