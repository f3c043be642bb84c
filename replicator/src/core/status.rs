//! A mirror's state for people: `kagami status` shows this, whole.

use kagami_bitmap::superblock::Generation;

use super::decide::Verdict;
use super::state::{Attempt, Connection, DiskState, NodeId, Replication, Role, Time};

/// One mirror as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Bytes.
    pub size: u64,
    /// The local role.
    pub role: Role,
    /// How often this node has stopped being Primary since its daemon began: whoever was served before counts on
    /// what may not be so any more.
    pub term: u64,
    /// The local copy.
    pub disk: DiskState,
    /// The peer's role, while connected.
    pub peer_role: Option<Role>,
    /// The peer's copy; Unknown while not connected.
    pub peer_disk: DiskState,
    /// The connection.
    pub connection: Connection,
    /// Since when it is what it is.
    pub connection_since: Time,
    /// What both do together.
    pub replication: Replication,
    /// The version of the data.
    pub generation: Option<Generation>,
    /// This node is Primary, or was when it died, and none has taken its place since: the copy holds
    /// what it answered last (docs/protocol.md §1).
    pub was_primary: bool,
    /// Answering writes that only this copy holds, since then.
    pub alone_since: Option<Time>,
    /// By which permission.
    pub alone_by: Option<&'static str>,
    /// Blocks that the copies may differ in, unflushed writes not counted.
    pub marked_blocks: u64,
    /// Requests of front ends in flight.
    pub in_flight: usize,
    /// What this node's being Primary rests on.
    pub standing: Standing,
    /// From then on nothing that the peer answers can rest on this node's echoes
    /// (docs/protocol.md §8): the end of its lease, as this node must count it.
    pub peer_lease_ends: Time,
    /// Why requests are held, if they are.
    pub held: Option<String>,
    /// What is wrong with the arbiter, by the questions that this node puts to it anyway; `None` also where it puts
    /// none.
    pub arbiter_fault: Option<ArbiterFault>,
    /// The last handshake's verdict.
    pub verdict: Option<Verdict>,
    /// An operator's word that waits for the peer.
    pub chosen: Option<Chosen>,
    /// The running resynchronisation or verification.
    pub progress: Option<Progress>,
    /// The newest round trip measured by pings, nanoseconds.
    pub round_trip_ns: Option<u64>,
    /// Counters since start.
    pub counters: Counters,
}

/// Whose copy is to stay when the nodes meet, as an operator has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Whose.
    pub keep: NodeId,
    /// The word counts until then.
    pub until: Time,
}

/// The arbiter's answers come to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArbiterFault {
    /// Since when no question was answered.
    pub since: Time,
    /// What the newest one came to.
    pub why: String,
    /// It answered, and the register is other nodes'.
    pub refused: bool,
}

/// What a node's being Primary rests on (docs/protocol.md §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not Primary.
    Secondary,
    /// The session with the peer, and its lease until then (§8).
    Session {
        /// The end of the lease, if no newer message is echoed.
        until: Time,
    },
    /// Permission to go on alone, confirmed and minted.
    Alone,
    /// None is needed: `solo` is `always`, or no other node has a copy.
    Free,
    /// Permission is wanted and not there yet.
    Sought,
    /// The arbiter has refused it.
    Refused,
}

/// What the other mirrors of its group judge a mirror by (docs/arbiter.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footing {
    /// It has permission to go on alone, minted, Primary or not; or it is Primary and needs none.
    pub alone: bool,
    /// It is Primary in a session, with a copy that could go on alone: when it sent the newest ping that the peer has
    /// echoed.
    pub heard: Option<Time>,
    /// Since when its own connection is what it is.
    pub since: Time,
    /// The arbiter has refused it, and nothing has changed since.
    pub refused: bool,
    /// The peer is Primary in a session.
    pub peer_is_primary: bool,
    /// The local copy.
    pub disk: DiskState,
    /// The instance of its register that it recorded.
    pub arbiter: Option<u64>,
    /// Its open attempt to go on alone.
    pub asking: Option<Attempt>,
}

/// How far a resynchronisation or verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Blocks to do, at its start (grows with new marks).
    pub total_blocks: u64,
    /// Blocks done: copied, or compared.
    pub done_blocks: u64,
    /// Bytes sent to the peer.
    pub sent_bytes: u64,
    /// When it began.
    pub since: Time,
    /// Bytes of blocks done per second, of late.
    pub rate: u64,
    /// An operator paused it at this node.
    pub paused_here: bool,
    /// An operator paused it at the peer.
    pub paused_there: bool,
    /// Blocks found different (verification).
    pub different: u64,
}

/// Counted since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests to read.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Requests to write, zero or discard.
    pub writes: u64,
    /// Their bytes.
    pub write_bytes: u64,
    /// Flushes asked for.
    pub flushes: u64,
    /// Sum of the nanoseconds from a write's arrival to its answer.
    pub write_ns: u64,
    /// Activity-log records written.
    pub log_records: u64,
    /// Bitmap pages written.
    pub pages: u64,
    /// Superblock updates.
    pub records: u64,
    /// Bytes of data sent to the peer by writes.
    pub replicated_bytes: u64,
    /// Bytes of data sent by resynchronisations.
    pub resync_bytes: u64,
    /// Blocks found equal by checksum, and not sent.
    pub resync_equal_blocks: u64,
    /// Blocks received from the peer and applied.
    pub applied_blocks: u64,
}
