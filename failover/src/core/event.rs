//! Everything that can happen to a manager. Each event is handed in with its time.

use serde::{Deserialize, Serialize};

use super::durable::EndKind;
use super::message::Snapshot;
use super::state::{GroupId, Node, OpId};

/// An input of the core.
#[derive(Clone, Debug)]
pub enum Event {
    /// The time asked for with [`super::Action::SetTimer`] has come. One too early or too many does no harm.
    Timer,
    /// A write is durable, or could not be made so.
    Persisted {
        /// Of [`super::Action::Persist`].
        seq: u64,
        /// It is durable.
        done: bool,
    },
    /// A heartbeat of the other node, authenticated.
    Beat {
        /// Which of the configuration's heartbeats carried it.
        heartbeat: usize,
        /// What it says.
        message: Box<Snapshot>,
    },
    /// An operation ended; for one that ended before this manager started: after [`super::Action::Inquire`].
    OpDone {
        /// Which.
        op: OpId,
        /// How.
        result: OpResult,
    },
    /// An operation that was asked for with [`super::Action::Inquire`] was never begun.
    OpNever {
        /// Which.
        op: OpId,
    },
    /// The right to run a group; what is said of it arrives in its order.
    Right {
        /// Whose.
        group: GroupId,
        /// What became of it.
        change: Right,
    },
    /// What a group needs is ready on this node, or is not: the copies of its mirrors are in sync.
    Ready {
        /// Whose.
        group: GroupId,
        /// Whether.
        ready: bool,
    },
    /// A disk under what a group needs has failed on this node, or is there again: until then the group can't
    /// be started here, whatever else comes.
    Diskless {
        /// Whose.
        group: GroupId,
        /// Whether.
        diskless: bool,
    },
    /// A copy under what a group needs is not to be trusted on this node (Inconsistent or Outdated), or is
    /// again: until then the group can't be started here without the other node, whatever else comes.
    Untrusted {
        /// Whose.
        group: GroupId,
        /// Whether.
        untrusted: bool,
    },
    /// A monitor has looked.
    Probed {
        /// Of [`super::Action::Probe`]; a stale one is ignored.
        probe: u64,
        /// What it saw.
        result: OpResult,
    },
    /// One of the arbiter's `ping` addresses answers, or none does.
    Outside {
        /// Whether.
        reachable: bool,
    },
    /// An operator's command.
    Command {
        /// Comes back in [`super::Action::CommandDone`], exactly once.
        id: u64,
        /// What is wanted.
        command: Command,
    },
}

/// How an operation, or a probe, ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpResult {
    /// Well.
    Done,
    /// With a failure; why.
    Failed(String),
    /// It took too long and was given up.
    TimedOut,
    /// Of a probe alone: what is watched is there, and something is wrong that a recovery would not
    /// put right; what. It is told, and nothing is recovered.
    Warned(String),
}

/// What became of the right to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Right {
    /// The group's mirrors are this node's, and nothing else yet: the other node may still have the group's address for
    /// a moment. [`Right::Granted`] follows.
    MirrorsOnly,
    /// This node may run the group; it may be told so again.
    Granted,
    /// It may not; why.
    Refused(String),
    /// Its lease ended: the group is frozen, and permission is asked for.
    LeaseEnded,
    /// Permission came: the group goes on.
    Renewed,
    /// No permission came in time, or it was refused: the address is gone, the group must stop.
    Lost,
    /// It was given up, as [`super::Action::ReleaseRight`] asked, or was not held.
    Released,
}

/// What an operator can want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start a group: there, or where it is best.
    Start {
        /// Which.
        group: GroupId,
        /// Where.
        on: Option<Node>,
        /// An operator has made sure that it does not run on the other node: counts where nothing else can say.
        sure: bool,
    },
    /// Stop a group.
    Stop {
        /// Which.
        group: GroupId,
    },
    /// Move a running group.
    Move {
        /// Which.
        group: GroupId,
        /// Where to.
        to: Node,
    },
    /// Nobody acts any more; the services go on.
    Suspend,
    /// They act again.
    Resume,
    /// A monitor stops watching.
    SuspendMonitor(usize),
    /// It watches again.
    ResumeMonitor(usize),
    /// A monitor fails, or does so no longer.
    FailMonitor(usize, bool),
    /// This node's groups go to the other one, and the manager ends.
    EndNode(EndKind),
    /// All groups stop, and both managers end.
    EndCluster(EndKind),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such group or monitor.
    #[error("there is no such {0}\n  next: the status names them all")]
    Unknown(&'static str),
    /// The cluster is suspended.
    #[error("group {0}: the cluster is suspended: nobody acts\n  next: resume it first")]
    Suspended(String),
    /// The manager has just started.
    #[error(
        "group {0}: this node has just started and waits for the other one\n  next: wait until it is heard, or its time is over"
    )]
    Waiting(String),
    /// The manager is ending.
    #[error("this node's failover manager is ending\n  next: ask the other node")]
    Ending,
    /// The group does what was asked for already.
    #[error("group {group}: it is {what} already\n  next: nothing to do")]
    Already {
        /// Which.
        group: String,
        /// `running on node alpha`, `stopped`
        what: String,
    },
    /// It runs on the other node, and a start moves nothing.
    #[error(
        "group {group}: not started on node {to}: it is running on node {node}\n  next: `kagami group move {group} --to {to}` moves it"
    )]
    Elsewhere {
        /// Which.
        group: String,
        /// Where it runs.
        node: String,
        /// Where it was to start.
        to: String,
    },
    /// The group is on its way.
    #[error(
        "group {group}: it is being started, stopped or moved (node {node})\n  next: wait until it is done"
    )]
    Busy {
        /// Which.
        group: String,
        /// Where.
        node: String,
    },
    /// The group does not run.
    #[error("group {0}: it does not run\n  next: start it")]
    NotRunning(String),
    /// The node may not run the group.
    #[error(
        "group {group}: node {node} is not in its list of nodes\n  next: name one of its nodes"
    )]
    NotItsNode {
        /// Which.
        group: String,
        /// Where.
        node: String,
    },
    /// The other node can't run the group now.
    #[error(
        "group {group}: node {node} can't run it now: {why}\n  next: see the status of node {node}"
    )]
    Unfit {
        /// Which.
        group: String,
        /// Where.
        node: String,
        /// Why.
        why: &'static str,
    },
    /// Nothing says that the other node does not run it.
    #[error(
        "group {group}: node {node} may run it: it is not heard, or has another configuration, and neither an arbiter nor the fence \
         script says that it does not\n  next: make sure that node {node} does not run it (power it off), then \
         `kagami group start {group} --not-elsewhere`"
    )]
    Unsure {
        /// Which.
        group: String,
        /// Where.
        node: String,
    },
    /// This manager stood still just now: when an operator said so is not known.
    #[error(
        "group {group}: this manager stood still until just now, and node {node} may have started it since you made sure that it does not \
         run it\n  next: make sure again, then `kagami group start {group} --not-elsewhere`"
    )]
    Late {
        /// Which.
        group: String,
        /// Where.
        node: String,
    },
    /// The other node runs it, or did, and is not heard.
    #[error(
        "group {group}: it ran on node {node} last, which is not heard: it can't be told\n  next: bring node {node} back, or start the group here"
    )]
    NotHeard {
        /// Which.
        group: String,
        /// Where.
        node: String,
    },
}

impl Refusal {
    /// Nothing was done, because all is as it was wanted: not a failure.
    pub fn is_nothing_to_do(&self) -> bool {
        matches!(self, Self::Already { .. })
    }
}
