//! Everything a mirror can want done. The shell carries actions out in their order.

use bytes::Bytes;

use super::disk::DiskOp;
use super::event::{IoError, Refusal, Reply};
use super::message::Message;
use super::notice::Notice;
use super::register::Ask;
use super::state::{Attempt, CommandId, DiskId, MetaId, RequestId, SessionId, Time};

/// A class of stream: within one, messages arrive in order; the first has priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Handshake, states, acknowledgements, pings.
    Control,
    /// The application's writes and reads.
    Data,
    /// Resynchronisation and verification.
    Resync,
}

/// Metadata to be written: each step's writes, all of them on stable storage before the next
/// step begins. (offset in the metadata store, bytes).
pub type Steps = Vec<Vec<(u64, Bytes)>>;

/// An output of the core.
#[derive(Clone, Debug)]
pub enum Action {
    /// Submit this to the backing store.
    Disk {
        /// Comes back in [`super::Event::Disk`].
        id: DiskId,
        /// The operation.
        op: DiskOp,
    },
    /// Write this to the metadata store, durably.
    Metadata {
        /// Comes back in [`super::Event::MetadataDone`].
        id: MetaId,
        /// What, in which order.
        steps: Steps,
    },
    /// Send this to the peer.
    Send {
        /// The session it belongs to; not sent if that has gone.
        session: SessionId,
        /// On this class of stream.
        class: Class,
        /// The message.
        message: Message,
    },
    /// Close the session; the core has done so on its side. No [`super::Event::LinkDown`] is needed.
    CloseSession {
        /// Which.
        session: SessionId,
        /// For both logs.
        reason: String,
    },
    /// Whether to look for the peer (and to accept it): a refused handshake backs off.
    WantSession {
        /// From when on; `None`: not at all.
        from: Option<Time>,
    },
    /// Ask the arbiter; the answer comes back with the attempt.
    AskArbiter {
        /// Whose question it is; an answer to another one is ignored.
        attempt: Attempt,
        /// The question.
        ask: Ask,
    },
    /// Keep memory for the answer of this request: the peer is asked for it as soon as [`super::Event::Room`] says
    /// that there is. It is the request's until it is answered; a request asks once.
    Room {
        /// Of [`super::Event::Request`].
        id: RequestId,
        /// Bytes.
        len: u32,
    },
    /// Answer a front end's request.
    Complete {
        /// Of [`super::Event::Request`].
        id: RequestId,
        /// The bytes of a read; empty otherwise.
        result: Result<Bytes, IoError>,
    },
    /// Answer an operator's command.
    CommandDone {
        /// Of [`super::Event::Command`].
        id: CommandId,
        /// What came of it.
        result: Result<Reply, Refusal>,
    },
    /// Call back at this time; replaces the one set before.
    SetTimer {
        /// `None`: no call is needed.
        at: Option<Time>,
    },
    /// Hand in this many random tags with [`super::Event::Tags`].
    DrawTags(usize),
    /// Remove the token that says that this copy lost no completed write since boot
    /// (docs/protocol.md §1, `unbroken`): its disk failed and the record may not be writable.
    BreakToken,
    /// Make that token anew: the copies are in sync, the record names this boot durably, and no operation of the disk
    /// hangs that may yet fail when nobody hears it.
    MakeToken,
    /// Tell people.
    Report(Notice),
}

/// The actions of one event, in order.
pub type Actions = Vec<Action>;
