//! A session: three streams of one mirror, from the opening to the one `Down`.
//!
//! The dialer opens it, the other side admits or refuses it; both hold it up as soon as they have all
//! three streams. Nothing of an ended session can reach a later one: that has streams of its own.
//! Whoever ends it resets the data and resync streams at once, lets what waits on the control stream
//! go out (a last word to the peer must arrive) with the reason behind it, and forgets it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quinn::VarInt;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;

use super::Inner;
use super::config::MirrorId;
use super::connection::{Conn, LastWord};
use super::event::{CloseReason, DownReason, LinkEvent, PeerFault, SessionId, Undrained, code};
use super::opening::cut;
use super::streams::{self, RecvHalf, SendHalf};
use crate::shell::fields::shown;
use crate::wire::frame::{Class, KIND_CLOSE, OutFrame};
use crate::wire::limits::MAX_REASON;

/// How long the last words of a session may take to go out, and how long the reason may lag behind
/// the reset of a stream.
const LINGER: Duration = Duration::from_millis(500);

pub(super) struct Session {
    pub id: SessionId,
    pub mirror: MirrorId,
    pub conn: Rc<Conn>,
    inner: Rc<Inner>,
    lanes: [Lane; 3],
    state: Cell<State>,
    /// The number that streams are reset with, shared with their halves.
    code: Rc<Cell<u32>>,
    tasks: RefCell<Tasks>,
    /// From the end of the session until its writer has handed over what is said last.
    last_word: RefCell<Option<LastWord>>,
    gone: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Down,
    /// Down by the engine's own word: it wants to hear no more of it.
    Muted,
}

#[derive(Default)]
struct Tasks {
    readers: Vec<AbortHandle>,
    writers: Vec<AbortHandle>,
}

/// One stream's side of a session.
#[derive(Debug, Default)]
pub(super) struct Lane {
    queue: RefCell<VecDeque<OutFrame>>,
    /// Bytes of frames handed to `send` that the transport hasn't taken.
    queued: Cell<usize>,
    wake: Notify,
    /// No frame will follow: the writer ends the stream when the queue is empty.
    last: Cell<bool>,
    pub undrained: Undrained,
}

impl Lane {
    /// Moves frames of about `bytes` from the queue to `out`. `None`: the stream is to end.
    pub(super) async fn next(&self, out: &mut Vec<OutFrame>, bytes: usize) -> Option<()> {
        loop {
            self.take(out, bytes);
            if !out.is_empty() {
                return Some(());
            }
            if self.last.get() {
                return None;
            }
            self.wake.notified().await;
        }
    }

    fn take(&self, out: &mut Vec<OutFrame>, bytes: usize) {
        let mut queue = self.queue.borrow_mut();
        let mut taken = 0;
        while taken < bytes
            && let Some(frame) = queue.pop_front()
        {
            taken += frame.wire_len();
            out.push(frame);
        }
    }

    /// The transport has taken this many bytes of frames.
    pub(super) fn sent(&self, bytes: usize) {
        self.queued.set(self.queued.get() - bytes);
    }

    fn push(&self, frame: OutFrame) -> usize {
        let queued = self.queued.get() + frame.wire_len();
        self.queued.set(queued);
        let mut queue = self.queue.borrow_mut();
        queue.push_back(frame);
        if queue.len() == 1 {
            self.wake.notify_one();
        }
        queued
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("mirror", &self.mirror)
            .finish_non_exhaustive()
    }
}

/// The halves of a session's streams, in the order of their classes.
pub(super) type Streams = [(SendHalf, RecvHalf); 3];

impl Session {
    /// Takes a session up: it counts as the mirror's, and its streams run. `first` goes out before
    /// any frame, one for each stream.
    pub(super) fn start(
        inner: &Rc<Inner>,
        conn: &Rc<Conn>,
        mirror: MirrorId,
        nonce: u64,
        streams: Streams,
        first: [Bytes; 3],
    ) -> Rc<Self> {
        let session = Rc::new(Self {
            id: inner.new_session_id(),
            mirror,
            conn: Rc::clone(conn),
            inner: Rc::clone(inner),
            lanes: Default::default(),
            state: Cell::new(State::Up),
            code: Rc::new(Cell::new(code::NORMAL)),
            tasks: RefCell::default(),
            last_word: RefCell::default(),
            gone: Notify::new(),
        });
        inner.add_session(&session);
        conn.add_session(&session);
        inner.events.push(LinkEvent::Up {
            mirror,
            session: session.id,
            peer: conn.peer.node,
            nonce,
            version: conn.version,
        });
        tracing::info!(
            mirror = %mirror,
            peer = %conn.peer.name(),
            address = %conn.quic.remote_address(),
            nonce = format_args!("{nonce:016x}"),
            "session up"
        );
        for ((class, (mut send, mut recv)), first) in Class::ALL.into_iter().zip(streams).zip(first)
        {
            send.set_code(&session.code);
            recv.set_code(&session.code);
            let write = spawn_local(streams::write(Rc::clone(&session), class, send, first));
            let read = (inner.start_reader)(Rc::clone(&session), class, recv);
            let mut tasks = session.tasks.borrow_mut();
            tasks.writers.push(write.abort_handle());
            tasks.readers.push(read);
        }
        session
    }

    pub(super) fn lane(&self, class: Class) -> &Lane {
        &self.lanes[class as usize]
    }

    /// What a payload of this class goes by that has `received` bytes of its stream: a resynchronisation's has its
    /// turn when the application has sent its own, on whatever session of the connection.
    pub(super) fn progress(&self, class: Class, received: u64) -> u64 {
        match class {
            Class::Control | Class::Data => received,
            Class::Resync => received + self.conn.data_received.get(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.get() == State::Up
    }

    pub(super) fn is_muted(&self) -> bool {
        self.state.get() == State::Muted
    }

    pub(super) fn inner(&self) -> &Rc<Inner> {
        &self.inner
    }

    /// Waits until the session is down.
    pub(super) async fn wait_gone(&self) {
        let gone = self.gone.notified();
        if self.is_up() {
            gone.await;
        }
    }

    pub(super) fn take_last_word(&self) -> Option<LastWord> {
        self.last_word.borrow_mut().take()
    }

    pub(super) fn queued(&self, class: Class) -> usize {
        self.lane(class).queued.get()
    }

    pub(super) fn send(self: &Rc<Self>, class: Class, frame: OutFrame) {
        if !self.is_up() {
            return;
        }
        let limit = self.inner.config.tuning.max_queued;
        let queued = self.lane(class).push(frame);
        if queued > limit {
            self.down(DownReason::QueueFull {
                class,
                queued,
                limit,
            });
        }
    }

    /// The stream was reset or stopped by the peer: the session ends, with the reason that the
    /// control stream brings, or without one when that takes too long.
    pub(super) fn expect_close(self: &Rc<Self>, code: VarInt) {
        let session = Rc::clone(self);
        spawn_local(async move {
            sleep(LINGER).await;
            session.down(DownReason::ClosedByPeer(reason_of(code, String::new())));
        });
    }

    /// The peer's word on the control stream that the session is over.
    pub(super) fn on_close_frame(self: &Rc<Self>, head: &Bytes) {
        let (number, text) = head.split_at_checked(4).unwrap_or_default();
        let code = number.try_into().map_or(code::PROTOCOL, u32::from_le_bytes);
        let text = shown(text, MAX_REASON);
        self.down(DownReason::ClosedByPeer(CloseReason { code, text }));
    }

    /// Ends the session, once; later calls do nothing.
    pub(super) fn down(self: &Rc<Self>, reason: DownReason) {
        if !self.is_up() {
            return;
        }
        let by_engine = matches!(reason, DownReason::ClosedHere(_));
        self.state
            .set(if by_engine { State::Muted } else { State::Down });
        let word = last_word(&reason);
        self.code
            .set(word.as_ref().map_or(code::NORMAL, |word| word.code));

        let tasks = self.tasks.take();
        tasks.readers.iter().for_each(AbortHandle::abort);
        // Writers are in the order of the classes: the control stream's comes first.
        let (control, others) = tasks.writers.split_at(tasks.writers.len().min(1));
        others.iter().for_each(AbortHandle::abort);
        if let Some(word) = word
            && self.conn.is_open()
        {
            let lane = self.lane(Class::Control);
            lane.push(OutFrame {
                kind: KIND_CLOSE,
                head: encode_close(&word),
                payload: None,
            });
            lane.last.set(true);
            *self.last_word.borrow_mut() = Some(self.conn.begin_last_word());
            let (session, control) = (Rc::clone(self), control.to_vec());
            spawn_local(async move {
                sleep(LINGER).await;
                control.iter().for_each(AbortHandle::abort);
                // It never went out.
                drop(session.take_last_word());
            });
        } else {
            control.iter().for_each(AbortHandle::abort);
        }

        self.inner.remove_session(self);
        self.conn.remove_session(self);
        tracing::info!(mirror = %self.mirror, peer = %self.conn.peer.name(), %reason, "session down");
        let (mirror, session) = (self.mirror, self.id);
        self.inner.events.push(LinkEvent::Down {
            mirror,
            session,
            reason,
        });
        self.gone.notify_waiters();
    }
}

/// What the peer is told when a session ends here; nothing when it was the peer that ended it.
fn last_word(reason: &DownReason) -> Option<CloseReason> {
    match reason {
        DownReason::ClosedHere(reason) => Some(reason.clone()),
        DownReason::Replaced => Some(CloseReason::new(
            code::REPLACED,
            "replaced by a newer session",
        )),
        DownReason::QueueFull { .. } => {
            Some(CloseReason::new(code::QUEUE_FULL, reason.to_string()))
        }
        DownReason::NoMemory(_) => Some(CloseReason::new(code::NO_MEMORY, reason.to_string())),
        DownReason::PeerFault(fault @ PeerFault::Stalled { .. }) => {
            Some(CloseReason::new(code::SLOW, fault.to_string()))
        }
        DownReason::PeerFault(fault) => Some(CloseReason::new(code::DAMAGED, fault.to_string())),
        DownReason::ClosedByPeer(_)
        | DownReason::TimedOut(_)
        | DownReason::PeerRestarted
        | DownReason::Transport(_) => None,
    }
}

fn encode_close(reason: &CloseReason) -> Bytes {
    let text = cut(&reason.text);
    let mut head = BytesMut::with_capacity(4 + text.len());
    head.put_u32_le(reason.code);
    head.put_slice(text.as_bytes());
    head.freeze()
}

/// A number that came as QUIC's, with what text there is.
pub(super) fn reason_of(code: VarInt, text: String) -> CloseReason {
    CloseReason {
        code: u32::try_from(code.into_inner()).unwrap_or(u32::MAX),
        text,
    }
}
