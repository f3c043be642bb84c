//! What the core tells people: `kagami events`, the log, and alerts are made of these.

use kagami_bitmap::Run;
use kagami_bitmap::superblock::Generation;

use super::decide::Verdict;
use super::disk::DiskFault;
use super::state::{Connection, DiskState, NodeId, Replication, Role};

/// One thing that happened. The shell adds the mirror's name and the wall-clock time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The local role changed.
    Role {
        /// Before.
        from: Role,
        /// After.
        to: Role,
        /// Why.
        cause: &'static str,
    },
    /// The local copy's worth changed.
    Disk {
        /// Before.
        from: DiskState,
        /// After.
        to: DiskState,
    },
    /// The peer's copy's worth or role changed.
    Peer {
        /// Its role.
        role: Role,
        /// Its disk.
        disk: DiskState,
    },
    /// The connection changed.
    Connection {
        /// Before.
        from: Connection,
        /// After.
        to: Connection,
        /// Why.
        cause: String,
    },
    /// What the copies do together changed.
    Replication {
        /// Before.
        from: Replication,
        /// After.
        to: Replication,
    },
    /// A handshake's verdict, with the row that gave it and the ids it compared.
    Verdict {
        /// The verdict.
        verdict: Verdict,
        /// This copy's generation.
        mine: Option<Generation>,
        /// The peer's.
        theirs: Option<Generation>,
    },
    /// The mirror has another peer from now on, or none.
    PeerSet {
        /// Before.
        from: Option<NodeId>,
        /// After.
        to: Option<NodeId>,
    },
    /// A generation was minted.
    Minted {
        /// It.
        generation: Generation,
        /// By which permission (docs/protocol.md §3).
        permission: &'static str,
    },
    /// I/O is held: it needs permission that is not there.
    Held {
        /// Why, and who holds the right.
        why: String,
    },
    /// Held I/O goes on.
    Released,
    /// The arbiter refused: it names another copy.
    ArbiterRefused {
        /// Whom it names.
        named: Vec<NodeId>,
    },
    /// The arbiter did not answer.
    ArbiterUnreachable {
        /// Why.
        why: String,
    },
    /// The local store failed.
    DiskFailed {
        /// How.
        fault: DiskFault,
        /// Doing what.
        doing: &'static str,
    },
    /// A read failed here and was served from the peer.
    ReadRepaired {
        /// Where.
        run: Run,
    },
    /// A resynchronisation ended.
    ResyncDone {
        /// Bytes of blocks that were marked.
        marked: u64,
        /// Bytes sent.
        sent: u64,
        /// Milliseconds it took.
        ms: u64,
    },
    /// A verification ended.
    VerifyDone {
        /// Blocks compared.
        compared: u64,
        /// Blocks that differ (marked now).
        different: u64,
        /// Blocks that neither node can read (not marked: neither could mend the other).
        unreadable: u64,
    },
    /// A verification found blocks that differ.
    VerifyFound {
        /// Where.
        run: Run,
    },
    /// The peer broke a rule; the session was closed.
    PeerFault {
        /// Which.
        what: String,
    },
    /// A disk, the metadata store or the peer takes longer than `ack-timeout`.
    Stalled {
        /// "local disk", "metadata store" or "peer".
        who: &'static str,
    },
}
