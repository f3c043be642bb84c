//! What two cores say to each other. `wire::message` encodes it; the simulator delivers the same bytes.

use bytes::Bytes;
use kagami_bitmap::Run;
use kagami_bitmap::superblock::{Generation, Record, StoredDisk};

use super::action::Class;
use super::disk::DiskFault;
use super::settings::{Settings, SplitBrainPolicy};
use super::state::{DiskState, NodeId, Protocol, Role, Seq, Solo};

/// A 128-bit BLAKE3 hash of a block: long enough that equal hashes mean equal blocks.
pub type BlockHash = [u8; 16];

/// One message. The comment on each says who sends it, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Both, first. Its sender is frozen until the session is up (docs/protocol.md §6).
    Hello(Box<Hello>),
    /// Both, after a verdict to resynchronise by marks: marked runs in order, in pieces.
    Marks {
        /// Disjoint, ascending.
        runs: Vec<Run>,
        /// No more will follow.
        last: bool,
    },
    /// Both: what the verdict demands of me is durable.
    Ready,
    /// Both, all the time: the sender's clock, to come back in [`Message::Pong`].
    Ping {
        /// The sender's `CLOCK_BOOTTIME` in nanoseconds.
        sent: u64,
    },
    /// The echo of a ping.
    Pong {
        /// The ping's time.
        sent: u64,
    },
    /// Both: my role or my disk changed (durably where docs/protocol.md demands it).
    State {
        /// The sender's role.
        role: Role,
        /// The sender's disk.
        disk: DiskState,
    },

    /// Primary, or resync source: apply this. `seq` counts up by one over all of
    /// Write, Zero and `ResyncBlocks` of a session.
    Write {
        /// Its number.
        seq: Seq,
        /// Bytes, a multiple of 4096.
        offset: u64,
        /// Whole blocks.
        data: Bytes,
        /// Durable when answered.
        fua: bool,
        /// Answer when in memory (protocol B), and again when on disk.
        early: bool,
    },
    /// As Write: the range becomes zeroes.
    Zero {
        /// Its number.
        seq: Seq,
        /// Bytes, a multiple of 4096.
        offset: u64,
        /// Bytes, a multiple of 4096.
        len: u64,
        /// The store may deallocate.
        unmap: bool,
        /// Durable when answered.
        fua: bool,
    },
    /// Resync source: as Write, on the Resync class.
    ResyncBlocks {
        /// Its number.
        seq: Seq,
        /// Bytes, a multiple of 4096.
        offset: u64,
        /// Whole blocks.
        data: Bytes,
    },
    /// The receiver of one of these three, early (protocol B): it is in my memory.
    Received {
        /// Its number.
        seq: Seq,
    },
    /// The receiver of one of these three: it is applied.
    Done {
        /// Its number.
        seq: Seq,
        /// A failure ends the session.
        result: Result<(), DiskFault>,
    },
    /// Primary or source: flush, once everything up to `after` is applied (streams overtake).
    Flush {
        /// Counts up from 1 in a session.
        id: u64,
        /// Covers these.
        after: Seq,
    },
    /// The receiver of a flush.
    Flushed {
        /// Its number.
        id: u64,
        /// A failure ends the session.
        result: Result<(), DiskFault>,
    },
    /// Source: both copies have flushed these blocks; clear your own marks (docs/protocol.md §5 step 3).
    Cleared {
        /// Disjoint, ascending.
        runs: Vec<Run>,
    },

    /// Source, step 4 done: `alone` is off, durably. From now both must hold every write.
    Offer {
        /// The generation to adopt.
        current: Generation,
        /// And its history, newest first.
        history: Vec<Generation>,
    },
    /// Target, step 5 done: adopted, durably.
    Adopted,
    /// Source, step 6 done: in sync.
    Settled,

    /// Secondary: may I be Primary in this session?
    PromoteAsk,
    /// The answer: yes, and I will not ask while you are. To a target: my copy answers for you
    /// (docs/protocol.md §5, *A target that is Primary*).
    PromoteGrant,
    /// The answer: no, and why.
    PromoteRefuse {
        /// A line for the operator.
        why: String,
    },
    /// Secondary of a Primary whose disk failed: my generation of my own is durable,
    /// I answer for both (docs/protocol.md §4 *carry*). Source of a target that came back as
    /// Primary: the same.
    Carrying,

    /// Primary without a usable block of its own: send me this.
    Read {
        /// Echoed in the answer.
        id: u64,
        /// Bytes, a multiple of 4096.
        offset: u64,
        /// Bytes, a multiple of 4096, at most 1 MiB.
        len: u32,
    },
    /// The answer to Read.
    ReadReply {
        /// Of the Read.
        id: u64,
        /// The bytes.
        result: Result<Bytes, DiskFault>,
    },
    /// Compare these blocks with yours (verify, or a resync that asks before it sends).
    Compare {
        /// Echoed in the answer.
        id: u64,
        /// First byte, a multiple of 4096.
        offset: u64,
        /// A hash for each block.
        hashes: Vec<BlockHash>,
    },
    /// The answer to Compare.
    Compared {
        /// Of the Compare.
        id: u64,
        /// Indices of the blocks that differ, ascending; or the copy can't be read.
        result: Result<Vec<u32>, DiskFault>,
    },
    /// Verification or resync pause: what the other side shows.
    Progress {
        /// What this side is doing.
        doing: Doing,
    },

    /// Primary, in sync: record this register instance (docs/protocol.md §4 *create*);
    /// `None` forgets the old one.
    ArbiterInstance {
        /// The register's instance.
        instance: Option<u64>,
    },
    /// The answer, durably recorded.
    ArbiterRecorded {
        /// What is recorded.
        instance: Option<u64>,
    },

    /// Secondary, before it leaves: my copy is Outdated, durably; go on alone if you like.
    Leave,
    /// Primary, before a clean stop: I am Secondary, durably, and about to go.
    Bye,
    /// Operator at the other end: start over with this wish (docs/protocol.md §6: split brain, first copy).
    Resolve {
        /// The copy that stays.
        keep: NodeId,
        /// All blocks.
        full: bool,
    },
}

/// What a side is busy with beside replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Nothing.
    Nothing,
    /// Resync, running.
    Sync,
    /// Resync, paused by an operator.
    Paused,
    /// Verification.
    Verify,
}

/// The record of a copy as its owner sees it, with what else the verdict needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The mirror.
    pub mirror: u128,
    /// The sender.
    pub node: NodeId,
    /// Bytes of the mirror.
    pub size: u64,
    /// The register's instance.
    pub arbiter: Option<u64>,
    /// Version of the data; none: never written.
    pub current: Option<Generation>,
    /// Versions before it, newest first.
    pub history: Vec<Generation>,
    /// Where both copies were last equal.
    pub base: Option<Generation>,
    /// `current` was never offered to the peer.
    pub alone: bool,
    /// Was Primary, not cleanly demoted.
    pub was_primary: bool,
    /// The durable state of the copy.
    pub disk: StoredDisk,
    /// There is no usable local store.
    pub diskless: bool,
    /// `current` came from forcing a bad copy.
    pub forced_bad: bool,
    /// The store is known to read as zeroes.
    pub zeroed: bool,
    /// Marked blocks.
    pub marks: u64,
    /// The sender's role.
    pub role: Role,
    /// No completed write was lost since the copies were last in sync.
    pub unbroken: bool,
    /// The store unmaps to zeroes.
    pub unmap_zeroes: bool,
    /// The sender's setting; for the log and for policy, the Primary's counts.
    pub protocol: Protocol,
    /// The sender's setting.
    pub solo: Solo,
    /// The sender's time-out T: the lease is the smaller of both.
    pub timeout_ms: u64,
    /// The sender's policy.
    pub split_brain: SplitBrainPolicy,
    /// An operator's word: the copy that stays.
    pub keep: Option<NodeId>,
    /// An operator's word: all blocks.
    pub full: bool,
    /// The boot of the sender's machine; none before protocol version 2.
    pub boot: Option<u128>,
}

impl Hello {
    /// What the record and the settings say, for a Secondary with a store and without marks, of which
    /// nothing is known that only a running node finds out, and that has no word of its operator.
    pub fn of(record: &Record, settings: &Settings) -> Self {
        Self {
            mirror: record.mirror,
            node: NodeId(record.node),
            size: record.size,
            arbiter: record.arbiter,
            current: record.current,
            history: record.history.clone(),
            base: record.base,
            alone: record.alone,
            was_primary: record.was_primary,
            disk: record.disk,
            diskless: false,
            forced_bad: record.forced_bad,
            zeroed: record.zeroed,
            marks: 0,
            role: Role::Secondary,
            unbroken: false,
            unmap_zeroes: false,
            protocol: settings.protocol,
            solo: settings.solo,
            timeout_ms: settings.timeout_ms,
            split_brain: settings.split_brain,
            keep: None,
            full: false,
            boot: None,
        }
    }
}

impl Message {
    /// The class of stream that the message travels on.
    pub fn class(&self) -> Class {
        match self {
            Self::Write { .. } | Self::Zero { .. } | Self::Read { .. } | Self::ReadReply { .. } => {
                Class::Data
            }
            Self::ResyncBlocks { .. } | Self::Compare { .. } | Self::Compared { .. } => {
                Class::Resync
            }
            _ => Class::Control,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_application_waits_for_overtakes_the_resynchronisation() {
        let (seq, offset, data) = (Seq(1), 0, Bytes::new());
        let (result, fua, unmap, early) = (Ok(Bytes::new()), false, false, false);
        let (id, len) = (1, 4096);
        for message in [
            Message::Write {
                seq,
                offset,
                data: data.clone(),
                fua,
                early,
            },
            Message::Zero {
                seq,
                offset,
                len: 4096,
                unmap,
                fua,
            },
            Message::Read { id, offset, len },
            Message::ReadReply { id, result },
        ] {
            assert_eq!(message.class(), Class::Data, "{message:?}");
        }
        for message in [
            Message::ResyncBlocks { seq, offset, data },
            Message::Compare {
                id,
                offset,
                hashes: vec![],
            },
            Message::Compared {
                id,
                result: Ok(vec![]),
            },
        ] {
            assert_eq!(message.class(), Class::Resync, "{message:?}");
        }
        assert_eq!(Message::Received { seq }.class(), Class::Control);
    }
}
