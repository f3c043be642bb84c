//! What the link tells the engine, in order, and why things ended.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::config::{MirrorId, NodeId};
use super::note::Note;
use super::session::Session;
use crate::shell::identity::Fingerprint;
use crate::wire::frame::{Class, FrameFault, InFrame};

/// One session of one mirror; never used again on this link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What happened. For each session: one `Up`, then frames, then one `Down` and nothing after it.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// Both sides have all streams of a new session.
    Up {
        /// The mirror.
        mirror: MirrorId,
        /// The new session.
        session: SessionId,
        /// With whom.
        peer: NodeId,
        /// The number that both sides know it by.
        nonce: u64,
        /// The protocol version agreed on.
        version: u16,
    },
    /// A frame arrived; in order within a class, classes may overtake each other.
    Frame {
        /// The mirror.
        mirror: MirrorId,
        /// Its session.
        session: SessionId,
        /// The stream it came on.
        class: Class,
        /// The frame, proven.
        frame: InFrame,
    },
    /// The session has ended, whoever ended it.
    Down {
        /// The mirror.
        mirror: MirrorId,
        /// The session that was.
        session: SessionId,
        /// Why.
        reason: DownReason,
    },
    /// There is a connection with a peer, which showed this key.
    Connected {
        /// The peer.
        peer: NodeId,
        /// Its key.
        key: Fingerprint,
    },
    /// A peer told something of itself.
    Note {
        /// The peer.
        peer: NodeId,
        /// What.
        note: Note,
    },
    /// A connection or a session couldn't be had. Attempts go on; equal failures are told once in
    /// half a minute.
    ConnectFailed {
        /// The peer, where it is known.
        peer: Option<NodeId>,
        /// The other end's address, where the failure is about one.
        address: Option<SocketAddr>,
        /// What is wrong, with the next step.
        error: LinkFault,
    },
}

/// Numbers of reasons for closing a session or a connection, as they cross the wire.
pub mod code {
    /// No fault.
    pub const NORMAL: u32 = 0;
    /// The mirror is not to be connected at present.
    pub const NOT_WANTED: u32 = 1;
    /// This node has no such mirror with this peer.
    pub const UNKNOWN_MIRROR: u32 = 2;
    /// A newer session or connection of the same peer took its place.
    pub const REPLACED: u32 = 3;
    /// The peer broke the protocol.
    pub const PROTOCOL: u32 = 4;
    /// Data arrived damaged.
    pub const DAMAGED: u32 = 5;
    /// The peer opens streams too fast.
    pub const TOO_MANY: u32 = 6;
    /// No protocol version is common.
    pub const NO_COMMON_VERSION: u32 = 7;
    /// The peer is not the node, or not the thread, that was expected.
    pub const WRONG_NODE: u32 = 8;
    /// The daemon stops.
    pub const STOPPING: u32 = 9;
    /// An opening, or a payload, was begun and not finished in time.
    pub const SLOW: u32 = 10;
    /// There can be no memory for a payload.
    pub const NO_MEMORY: u32 = 11;
    /// Too much waits to be sent.
    pub const QUEUE_FULL: u32 = 12;
    /// The key that the connection was made with is no longer pinned.
    pub const UNPINNED: u32 = 13;
    /// Another attempt was faster.
    pub const RACE_LOST: u32 = 14;
    /// This node shows another key from now on.
    pub const NEW_KEY: u32 = 15;
    /// From here on the numbers belong to the engine.
    pub const FIRST_OF_ENGINE: u32 = 0x100;
}

/// A reason that crosses the wire: a number for programs, a text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// One of [`code`], or the engine's own from [`code::FIRST_OF_ENGINE`].
    pub code: u32,
    /// At most [`crate::wire::limits::MAX_REASON`] bytes; longer ones are cut.
    pub text: String,
}

impl CloseReason {
    /// A reason.
    pub fn new(code: u32, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() {
            write!(f, "reason {}", self.code)
        } else {
            write!(f, "{}", self.text)
        }
    }
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// This node's engine closed it.
    #[error("closed here: {0}")]
    ClosedHere(CloseReason),
    /// The peer closed it.
    #[error("closed by the peer: {0}")]
    ClosedByPeer(CloseReason),
    /// The peer did what it must not. The connection was closed, but for damaged data and a payload that did not go
    /// on: those end the session alone.
    #[error("the peer broke the protocol: {0}")]
    PeerFault(PeerFault),
    /// Nothing came from the peer within the time-out.
    #[error("nothing heard from the peer for {0:?}")]
    TimedOut(Duration),
    /// The peer's daemon restarted and knows nothing of the connection.
    #[error("the peer restarted")]
    PeerRestarted,
    /// The peer made a new session or connection in place of this one.
    #[error("replaced by a newer one of the peer")]
    Replaced,
    /// Too much waited to be sent.
    #[error("{queued} bytes waited to be sent on the {class} stream, at most {limit} may")]
    QueueFull {
        /// The stream.
        class: Class,
        /// Bytes that waited.
        queued: usize,
        /// The bound.
        limit: usize,
    },
    /// A payload is larger than the memory that payloads may ever have.
    #[error("no memory can be had for a payload of {0} bytes: raise `buffers`")]
    NoMemory(usize),
    /// The transport failed otherwise.
    #[error("the transport failed: {0}")]
    Transport(String),
}

/// What a peer with a valid certificate did that it must not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// Its frames are wrong.
    #[error("{class} stream: {fault}")]
    Frame {
        /// The stream.
        class: Class,
        /// What is wrong.
        fault: FrameFault,
    },
    /// A stream ended without the session being closed.
    #[error("the {0} stream ended while the session was up")]
    StreamEnded(Class),
    /// A close frame where only data belongs.
    #[error("a close frame on the {0} stream")]
    CloseFrame(Class),
    /// The opening of a connection or stream is wrong.
    #[error("{0}")]
    Opening(#[from] super::opening::OpeningFault),
    /// It opened a stream or connection and didn't go on.
    #[error("{0} was not finished within {1:?}")]
    Slow(&'static str, Duration),
    /// It began a payload, for which memory was taken, and sent nothing more of it.
    #[error("{class} stream: a payload was begun, and nothing more of it came for {within:?}")]
    Stalled {
        /// The stream.
        class: Class,
        /// For so long at least.
        within: Duration,
    },
    /// It opens streams without end.
    #[error("{0} streams opened within a second")]
    TooManyStreams(u32),
    /// It connects without end.
    #[error("{0} connections within twice the time-out")]
    TooManyConnections(u32),
}

/// Why a connection or session couldn't be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// The other end shows a key that isn't pinned.
    #[error(
        "the other end shows a key that is not pinned here ({0}): if it is the peer with a new key, add its fingerprint to `fingerprints`"
    )]
    UnknownKey(String),
    /// The other end refuses this node's key.
    #[error("the other end does not know this node's key: pin {0} there")]
    KeyRefused(Fingerprint),
    /// The nodes have no protocol version in common.
    #[error("no common protocol version: the peer speaks versions {}, this node {}: upgrade the older of the two", list(.theirs), list(.ours))]
    NoCommonVersion {
        /// What the peer speaks.
        theirs: Vec<u16>,
        /// What this node speaks.
        ours: Vec<u16>,
    },
    /// The other end is another program or a witness.
    #[error("the other end does not speak the kagami link protocol: is the address a peer's?")]
    OtherProtocol,
    /// The address belongs to another node.
    #[error(
        "this address belongs to node {found}, not to the peer ({expected}): correct `addresses`"
    )]
    WrongNode {
        /// Who is there.
        found: NodeId,
        /// Who was looked for.
        expected: NodeId,
    },
    /// The peer's id contradicts the rule that the lower one dials.
    #[error(
        "the peer has the higher id and dialled all the same: do both configurations name the right nodes?"
    )]
    WrongDirection,
    /// Another data-plane thread of the peer answered.
    #[error(
        "data-plane thread {found} answered where {expected} was to: do both nodes have the same number of threads?"
    )]
    WrongThread {
        /// The thread there.
        found: u16,
        /// The thread here.
        expected: u16,
    },
    /// Nothing answered.
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    /// The peer is configured with no address of a kind that this node can send to.
    #[error("no address of the peer can be dialled: give `addresses` in [peer.{0}]")]
    NoAddress(String),
    /// The peer answered and refused.
    #[error("the peer refused: {0}")]
    Refused(CloseReason),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    PeerFault(#[from] PeerFault),
    /// The network or the transport failed.
    #[error("{0}")]
    Transport(String),
}

fn list(versions: &[u16]) -> String {
    let texts: Vec<_> = versions.iter().map(u16::to_string).collect();
    if texts.is_empty() {
        "none".to_owned()
    } else {
        texts.join(", ")
    }
}

/// Frames of one class of a session that may wait for the engine before its stream is read on.
const MAX_UNDRAINED: u32 = 4096;

/// The queue between the link's tasks and the engine, on one thread.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    events: RefCell<VecDeque<Queued>>,
    ready: Notify,
}

#[derive(Debug)]
enum Queued {
    Event(LinkEvent),
    Frame(Rc<Session>, Class, InFrame),
}

/// Counts the frames of one stream that the engine hasn't taken yet.
#[derive(Debug, Default)]
pub(super) struct Undrained {
    frames: Cell<u32>,
    room: Notify,
}

impl Undrained {
    /// Waits until the engine has taken enough for another frame to be queued.
    pub(super) async fn room(&self) {
        while self.frames.get() >= MAX_UNDRAINED {
            self.room.notified().await;
        }
    }
}

impl EventQueue {
    pub(super) fn push(&self, event: LinkEvent) {
        self.events.borrow_mut().push_back(Queued::Event(event));
        self.ready.notify_one();
    }

    pub(super) fn push_frame(&self, session: &Rc<Session>, class: Class, frame: InFrame) {
        let undrained = &session.lane(class).undrained;
        undrained.frames.set(undrained.frames.get() + 1);
        self.events
            .borrow_mut()
            .push_back(Queued::Frame(Rc::clone(session), class, frame));
        self.ready.notify_one();
    }

    /// Waits until there is something to drain.
    pub(super) async fn ready(&self) {
        while self.events.borrow().is_empty() {
            self.ready.notified().await;
        }
    }

    /// Moves everything to `out`, but for frames of sessions that the engine has closed meanwhile.
    pub(super) fn drain(&self, out: &mut Vec<LinkEvent>) {
        for queued in self.events.borrow_mut().drain(..) {
            match queued {
                Queued::Event(event) => out.push(event),
                Queued::Frame(session, class, frame) => {
                    let undrained = &session.lane(class).undrained;
                    let before = undrained.frames.replace(undrained.frames.get() - 1);
                    if before == MAX_UNDRAINED {
                        undrained.room.notify_one();
                    }
                    if !session.is_muted() {
                        out.push(LinkEvent::Frame {
                            mirror: session.mirror,
                            session: session.id,
                            class,
                            frame,
                        });
                    }
                }
            }
        }
    }
}
