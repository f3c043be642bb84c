//! The words of the core: time, places, and the states as people see them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds on the node's monotonic clock, one that counts while the machine sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// So much later; the end of time stays the end of time.
    #[must_use]
    pub fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds since then; 0 if that is yet to come.
    pub fn since(self, then: Self) -> u64 {
        self.0.saturating_sub(then.0)
    }
}

/// A node: its place in `[cluster] nodes`, 0 or 1.
pub type Node = usize;

/// A group: its place in the configuration.
pub type GroupId = usize;

/// An operation: never used twice on a node, over all restarts of its manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId(pub u64);

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op {}", self.0)
    }
}

/// What a resource is at, on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResourceState {
    /// Inactive.
    #[default]
    Offline,
    /// Being activated.
    Starting,
    /// Active.
    Online,
    /// Being deactivated.
    Stopping,
    /// Could not be activated; something of it may be there.
    Failed,
    /// Could not be deactivated.
    StopFailed,
}

/// What a group is at, as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupStatus {
    /// Nothing of it runs here.
    Offline,
    /// Being activated, or waiting for the right to run.
    OnlinePending,
    /// All of it is active.
    Online,
    /// Being deactivated.
    OfflinePending,
    /// Something of it could not be activated.
    OnlineFailure,
    /// Something of it could not be deactivated.
    OfflineFailure,
}

/// What a monitor is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MonitorStatus {
    /// It has nothing to watch now.
    #[default]
    Unused,
    /// It watches, and has not seen anything yet.
    Unknown,
    /// All is well.
    Normal,
    /// Failures that do not count yet, or a warning.
    Caution,
    /// A failure.
    Error,
    /// An operator has stopped it.
    Suspended,
}

/// What the other node is at, as far as this one knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeStatus {
    /// Not heard yet, and not waited for long enough.
    Unknown,
    /// All heartbeats are heard.
    Online,
    /// Some heartbeats are silent.
    Caution,
    /// All heartbeats are silent for their time-outs, or its manager has said good-bye.
    Offline,
}

/// What one heartbeat is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeartbeatStatus {
    /// Heard.
    Normal,
    /// Silent, and others are not.
    Caution,
    /// Silent, as all are.
    Error,
    /// Never heard yet.
    Unknown,
}
