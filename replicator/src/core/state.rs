//! The vocabulary of a mirror's state (docs/design.md §1), spelled as users see it.

use std::fmt;

/// A moment of `CLOCK_BOOTTIME`, in nanoseconds. The shell stamps each event with one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The moment `ms` milliseconds later.
    #[must_use]
    pub fn after_ms(self, ms: u64) -> Self {
        self.after_ns(ms.saturating_mul(1_000_000))
    }

    /// The moment `ns` nanoseconds later.
    #[must_use]
    pub fn after_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// Nanoseconds since `earlier`; zero if that is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )+};
}

ids! {
    /// A node's stable identity. The lower one dials, and wins a tie.
    NodeId,
    /// A request of a front end; the front end chooses it, unique among those in flight.
    RequestId,
    /// An operation on the backing store.
    DiskId,
    /// A write to the metadata store.
    MetaId,
    /// A meeting with the peer: one set of streams. Never reused.
    SessionId,
    /// A command of an operator.
    CommandId,
    /// A write on its way to the peer, numbered by the sender within a session from 1.
    Seq,
    /// An attempt at the arbiter. Drawn at random: the arbiter's register keeps it as its nonce.
    Attempt,
}

impl NodeId {
    /// The peer of a mirror that has none. No node has this id.
    pub const NOBODY: Self = Self(0);
}

/// What a node does with the mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Serves I/O.
    Primary,
    /// Applies the peer's writes.
    #[default]
    Secondary,
}

/// What a copy is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DiskState {
    /// There is no local store.
    Diskless,
    /// The local store failed.
    Failed,
    /// Partly overwritten by a resynchronisation that has not ended.
    Inconsistent,
    /// Good, and known to be older than the peer's.
    Outdated,
    /// Good, not known to be the newest.
    Consistent,
    /// Good and the newest.
    UpToDate,
    /// Nothing is known (of the peer's).
    #[default]
    Unknown,
}

/// Whether there is a session with the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Connection {
    /// Not connected, and not trying to: an operator's word is needed.
    #[default]
    StandAlone,
    /// Trying.
    Connecting,
    /// A session is up.
    Connected,
}

/// What the two copies are doing together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Replication {
    /// Nothing.
    #[default]
    Off,
    /// In sync: every write goes to both.
    Established,
    /// This copy is bringing the peer's up to date.
    SyncSource,
    /// The peer is bringing this copy up to date.
    SyncTarget,
    /// A resynchronisation that an operator paused.
    PausedSync,
    /// This copy is being compared with the peer's, from here.
    VerifySource,
    /// As above, from the peer.
    VerifyTarget,
}

macro_rules! display_as_spelled {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    )+};
}
display_as_spelled!(Role, DiskState, Connection, Replication);

/// Whether a copy may go on alone when the peer is lost (docs/protocol.md §3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Solo {
    /// Only with the peer's consent, by a fence script's word or by force.
    #[default]
    Never,
    /// When the arbiter's register says so.
    Arbiter,
    /// Always; two copies may fork.
    Always,
}

/// When a write is answered (docs/protocol.md §2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// On the local disk.
    A,
    /// On the local disk and in the peer's memory.
    B,
    /// On both disks.
    #[default]
    C,
}
