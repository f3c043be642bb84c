//! What an operator can set for a mirror while it runs.

use super::state::{Protocol, Solo};

/// How long an application's writes may take beside a resynchronisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatencyTarget {
    /// A multiple of what it is without, in percent (200 = twice).
    Percent(u32),
    /// Nanoseconds.
    Nanoseconds(u64),
}

/// Settings of one mirror on one node. Times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// When a write is answered.
    pub protocol: Protocol,
    /// Permission to go on alone.
    pub solo: Solo,
    /// The link's time-out T: also the lease of docs/protocol.md §8.
    pub timeout_ms: u64,
    /// A write or flush that the peer leaves unanswered for this long closes the session.
    pub ack_timeout_ms: u64,
    /// An attempt at the arbiter is given up and begun again after this.
    pub arbiter_timeout_ms: u64,
    /// Flush both copies after this long with unflushed writes.
    pub flush_after_ms: u64,
    /// Most bytes of a resynchronisation in flight.
    pub resync_window: u64,
    /// Highest rate of a resynchronisation, bytes per second; `None`: no bound.
    pub resync_max_rate: Option<u64>,
    /// What the application's latency (its 99th percentile) is kept to during a resynchronisation.
    pub resync_latency: LatencyTarget,
    /// Compare by checksum before sending, for runs that cover a whole extent.
    pub checksum_first: bool,
    /// What to do about a split brain.
    pub split_brain: SplitBrainPolicy,
    /// What to do when no good copy has permission.
    pub both_stale: BothStalePolicy,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            protocol: Protocol::C,
            solo: Solo::Never,
            timeout_ms: 2_000,
            ack_timeout_ms: 10_000,
            arbiter_timeout_ms: 2_000,
            flush_after_ms: 1_000,
            resync_window: 8 << 20,
            resync_max_rate: None,
            resync_latency: LatencyTarget::Percent(200),
            checksum_first: true,
            split_brain: SplitBrainPolicy::default(),
            both_stale: BothStalePolicy::default(),
        }
    }
}

/// DRBD's after-sb policies. Both nodes must name the same ones, else the mirror disconnects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitBrainPolicy {
    /// Neither is Primary when they meet.
    pub after_sb_0pri: AfterSb0,
    /// One is.
    pub after_sb_1pri: AfterSb1,
    /// Both are.
    pub after_sb_2pri: AfterSb2,
}

/// after-sb-0pri.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterSb0 {
    /// Tell the operator.
    #[default]
    Disconnect,
    /// The copy with no marks since the fork loses nothing and becomes the target.
    DiscardZeroChanges,
    /// The copy with fewer marks becomes the target.
    DiscardLeastChanges,
}

/// after-sb-1pri.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterSb1 {
    /// Tell the operator.
    #[default]
    Disconnect,
    /// The Secondary becomes the target.
    DiscardSecondary,
    /// As after-sb-0pri says, if that makes the Secondary the target; else disconnect.
    Consensus,
}

/// after-sb-2pri.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterSb2 {
    /// Tell the operator.
    #[default]
    Disconnect,
}

/// docs/protocol.md §9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BothStalePolicy {
    /// Show both copies and wait for a word.
    #[default]
    Wait,
    /// Force the copy that was Primary last.
    PreferLastPrimary,
    /// Force this node's copy.
    PreferLocal,
}
