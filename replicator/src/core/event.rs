//! Everything that can happen to a mirror. Each event is handed in with its time.

use bytes::Bytes;

use super::disk::{DiskFault, DiskResult};
use super::message::Message;
use super::register::ArbiterAnswer;
use super::settings::Settings;
use super::state::{Attempt, CommandId, DiskId, MetaId, NodeId, RequestId, SessionId};

/// An input of the core.
#[derive(Clone, Debug)]
pub enum Event {
    /// A front end asks for I/O.
    Request {
        /// Comes back in [`super::Action::Complete`], exactly once.
        id: RequestId,
        /// What is asked.
        request: Request,
    },
    /// There is memory for the answer of a request.
    Room {
        /// Of [`super::Action::Room`].
        id: RequestId,
    },
    /// A disk operation ended.
    Disk {
        /// Of [`super::Action::Disk`].
        id: DiskId,
        /// The bytes of a read; empty otherwise.
        result: DiskResult,
    },
    /// A metadata write is on stable storage, or failed.
    MetadataDone {
        /// Of [`super::Action::Metadata`].
        id: MetaId,
        /// A failure is final for the store.
        result: Result<(), DiskFault>,
    },
    /// A new set of streams to the peer is open.
    LinkUp {
        /// Never used before.
        session: SessionId,
        /// The protocol version both speak.
        version: u16,
    },
    /// The session's streams are gone.
    LinkDown {
        /// A stale one is ignored.
        session: SessionId,
        /// For the log.
        reason: String,
    },
    /// A message arrived, in order within its class, whole and with its checksums verified.
    Message {
        /// A stale one is ignored.
        session: SessionId,
        /// The message.
        message: Message,
    },
    /// The arbiter answered the question of this attempt.
    Arbiter {
        /// Of [`super::Action::AskArbiter`].
        attempt: Attempt,
        /// What it said.
        answer: ArbiterAnswer,
    },
    /// The deadline of [`super::Action::SetTimer`] has passed. One too early or too many does no harm.
    Timer,
    /// An operator's command.
    Command {
        /// Comes back in [`super::Action::CommandDone`], exactly once.
        id: CommandId,
        /// What is wanted.
        command: Command,
    },
    /// Random tags, as [`super::Action::DrawTags`] asked for.
    Tags(Vec<u64>),
}

/// What a front end can ask for. Offsets and lengths are bytes, multiples of 512.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reads `len` bytes; the blocks that they touch are at most 1 MiB.
    Read {
        /// Bytes from the start of the device.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Writes `data`.
    Write {
        /// Bytes from the start of the device.
        offset: u64,
        /// The payload.
        data: Bytes,
        /// On stable storage of both copies when answered.
        fua: bool,
    },
    /// The range reads as zeroes afterwards, on both copies.
    WriteZeroes {
        /// Bytes from the start of the device.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The store may give the space back.
        unmap: bool,
        /// As for a write.
        fua: bool,
    },
    /// The content of the range is not needed any more.
    Discard {
        /// Bytes from the start of the device.
        offset: u64,
        /// Bytes.
        len: u64,
        /// As for a write.
        fua: bool,
    },
    /// Everything answered before is on stable storage of both copies when this is answered.
    Flush,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// This node is Secondary, or stopped being Primary while the request waited.
    #[error("this node is not Primary")]
    NotPrimary,
    /// Beyond the end of the device.
    #[error("out of range")]
    OutOfRange,
    /// Not in units of 512 bytes, or empty.
    #[error("not aligned to 512 bytes")]
    Unaligned,
    /// No copy can carry it out.
    #[error("input/output error")]
    Io,
    /// The backing store is full.
    #[error("no space left on the backing store")]
    NoSpace,
}

/// Which copy a resynchronisation takes the data from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// This node's copy; the peer's own changes are lost.
    Local,
    /// The peer's copy; this node's own changes are lost.
    Peer,
}

/// What an operator can order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Become Primary. `force` overrides permission and staleness, and is recorded.
    Promote {
        /// Override the rules that refuse it.
        force: bool,
        /// Also while this copy is the target of a resynchronisation: its source answers for it
        /// (docs/protocol.md §5, *A target that is Primary*).
        while_resyncing: bool,
    },
    /// Become Primary, where a fence script has said that the other node is down: without the peer that is the permission
    /// to go on alone, whatever `solo` and the register say, and is recorded as such. It says nothing of this copy: one
    /// that a plain promotion refuses without the peer is refused.
    PromoteFenced,
    /// Stop being Primary; answered when everything is on both disks.
    /// `force` gives up what waits for a peer that does not answer (those requests fail).
    Demote {
        /// Fail what can't be finished.
        force: bool,
    },
    /// Resynchronise: after a split brain, for a first copy between two disks that may differ,
    /// or again.
    Resync {
        /// Whose data stays. `None`: whatever the handshake says.
        from: Option<From>,
        /// All blocks, not only marked ones.
        full: bool,
    },
    /// Hold the running resynchronisation.
    PauseSync,
    /// Go on with it.
    ResumeSync,
    /// Compare both copies.
    Verify {
        /// Resynchronise what differs, when done.
        repair: bool,
    },
    /// Stop a verification; what it found stays marked.
    StopVerify,
    /// This node's copy is not to be trusted: it becomes Inconsistent, with every block marked.
    Invalidate,
    /// End the session and stay without one. A Secondary leaves cleanly (Outdated).
    Disconnect,
    /// Look for the peer again.
    Connect,
    /// The other copy is that node's from now on; [`NodeId::NOBODY`]: there is none. The copy of
    /// the peer before is never believed again.
    SetPeer {
        /// It.
        peer: NodeId,
    },
    /// Clean stop of the daemon: demote, leave, flush, empty the activity log.
    Stop,
    /// New settings.
    Set(Settings),
}

/// A command that was refused: what, the facts, and the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Refusal {
    /// What was refused, and why, in a line.
    pub what: String,
    /// The facts behind it, a line each.
    pub facts: Vec<String>,
    /// What to do next.
    pub next: String,
}

/// A command's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Done,
    /// Begun; its progress is in the status.
    Started,
    /// There was nothing to do, and why.
    Nothing(String),
}
