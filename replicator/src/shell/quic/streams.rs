//! The tasks that move frames between a session and its streams: a writer and a reader for each.
//!
//! A writer hands all frames that wait to the transport at once. A reader decodes what comes, waits
//! for memory where a payload needs some, and queues frames for the engine; while it waits, its
//! stream's window fills and the peer's writer of that class waits too, and no other.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::task::{spawn_local, yield_now};

use super::event::{DownReason, PeerFault};
use super::session::{Session, reason_of};
use crate::wire::frame::{Class, Decoded, Decoder, Encoder, FrameFault, KIND_CLOSE, PayloadBuffer};

/// Where received payloads go: aligned memory in a bounded supply.
pub trait BufferSource: 'static {
    /// One piece of memory.
    type Buffer: PayloadBuffer + 'static;

    /// Waits for memory of at least `len` bytes; the future may be dropped at any time. `None`: it
    /// could never be had, and the session is closed for it.
    fn take(&self, class: Class, len: usize) -> impl Future<Output = Option<Self::Buffer>>;
}

/// Bytes of frames that are encoded and handed over at once.
const BATCH: usize = 1 << 20;
/// Bytes that a reader takes in before it lets the thread's other tasks run.
const TURN: usize = 256 << 10;
/// Pieces of a stream that are taken from the transport at once.
const CHUNKS: usize = 32;

/// The sending half of a stream; dropped before [`SendHalf::finish`] it is reset, so that the peer
/// never takes a torn stream for a finished one.
pub(super) struct SendHalf {
    stream: SendStream,
    code: Rc<Cell<u32>>,
    finished: bool,
}

impl SendHalf {
    pub(super) fn new(stream: SendStream, class: Class) -> Self {
        // Fails only for a stream that is over, which the first write tells.
        let _ = stream.set_priority(-(class as i32));
        Self {
            stream,
            code: Rc::default(),
            finished: false,
        }
    }

    /// The number to reset the stream with, should it come to that.
    pub(super) fn set_code(&mut self, code: &Rc<Cell<u32>>) {
        self.code = Rc::clone(code);
    }

    /// Sends these pieces, in order.
    pub(super) async fn write(&mut self, pieces: &mut [Bytes]) -> Result<(), WriteError> {
        self.stream.write_all_chunks(pieces).await
    }

    /// Ends the stream after what was written. The future is over when the peer has all of it, reads no more of it, or
    /// is gone with the connection.
    pub(super) fn finish(mut self) -> impl Future<Output = ()> + 'static {
        self.finished = self.stream.finish().is_ok();
        let stopped = self.finished.then(|| self.stream.stopped());
        async move {
            if let Some(stopped) = stopped {
                // However it ended: nothing can be done about it any more.
                let _ = stopped.await;
            }
        }
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.finished {
            // Fails only for a stream that is over.
            let _ = self.stream.reset(VarInt::from_u32(self.code.get()));
        }
    }
}

/// The receiving half of a stream; dropped, it tells the sender to stop.
pub(super) struct RecvHalf {
    pub stream: RecvStream,
    code: Rc<Cell<u32>>,
}

impl RecvHalf {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            code: Rc::default(),
        }
    }

    /// The number to stop the sender with.
    pub(super) fn set_code(&mut self, code: &Rc<Cell<u32>>) {
        self.code = Rc::clone(code);
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        // Fails only for a stream that is over.
        let _ = self.stream.stop(VarInt::from_u32(self.code.get()));
    }
}

/// Writes `first` and then the frames of a session's lane until the session ends.
pub(super) async fn write(session: Rc<Session>, class: Class, mut send: SendHalf, first: Bytes) {
    let lane = session.lane(class);
    let mut encoder = Encoder::new(session.conn.version);
    let mut frames = Vec::new();
    let mut pieces = Vec::new();
    if !first.is_empty() {
        pieces.push(first);
    }
    loop {
        if !pieces.is_empty() {
            if let Err(error) = send.write(&mut pieces).await {
                return on_write_error(&session, error);
            }
            pieces.clear();
        }
        if lane.next(&mut frames, BATCH).await.is_none() {
            let arrived = send.finish();
            // In a task of its own: this one is ended when the last words take long to go out, and these are out.
            if let Some(word) = session.take_last_word() {
                spawn_local(async move {
                    arrived.await;
                    drop(word);
                });
            }
            return;
        }
        let mut bytes = 0;
        for frame in frames.drain(..) {
            bytes += frame.wire_len();
            encoder.encode(&frame, &mut pieces);
        }
        encoder.flush(&mut pieces);
        if let Err(error) = send.write(&mut pieces).await {
            return on_write_error(&session, error);
        }
        pieces.clear();
        lane.sent(bytes);
    }
}

fn on_write_error(session: &Rc<Session>, error: WriteError) {
    match error {
        WriteError::Stopped(code) => session.expect_close(code),
        WriteError::ConnectionLost(error) => session.conn.on_lost(error),
        // Ours to close, and closed already; 0-RTT is never used.
        WriteError::ClosedStream | WriteError::ZeroRttRejected => {}
    }
}

/// Reads the frames of a stream until the session ends.
pub(super) async fn read<S: BufferSource>(
    session: Rc<Session>,
    class: Class,
    mut recv: RecvHalf,
    source: Rc<S>,
) {
    let mut decoder = Decoder::<S::Buffer>::new(session.conn.version);
    let mut chunks: [Bytes; CHUNKS] = Default::default();
    let mut since_yield = 0;
    loop {
        if since_yield >= TURN {
            since_yield = 0;
            yield_now().await;
        }
        let count = match recv.stream.read_chunks(&mut chunks).await {
            Ok(Some(count)) => count,
            Ok(None) => return on_end(&session, class, decoder.is_between_frames()),
            Err(error) => return on_read_error(&session, class, error),
        };
        for chunk in &mut chunks[..count] {
            let mut input = std::mem::take(chunk);
            since_yield += input.len();
            loop {
                match decoder.feed(&mut input) {
                    Ok(Decoded::Hungry) => break,
                    Ok(Decoded::NeedsBuffer { len }) => match source.take(class, len).await {
                        Some(buffer) => decoder.supply(buffer),
                        None => return session.down(DownReason::NoMemory(len)),
                    },
                    Ok(Decoded::Frame(frame)) if frame.kind == KIND_CLOSE => {
                        if class == Class::Control {
                            return session.on_close_frame(&frame.head);
                        }
                        let fault = PeerFault::CloseFrame(class);
                        return session.conn.fail(session.inner(), fault);
                    }
                    Ok(Decoded::Frame(frame)) => {
                        session.lane(class).undrained.room().await;
                        session.inner().events.push_frame(&session, class, frame);
                    }
                    Err(fault) => return on_fault(&session, class, fault),
                }
            }
        }
    }
}

/// Damaged data ends the session; a peer that doesn't keep to the protocol loses its connection.
fn on_fault(session: &Rc<Session>, class: Class, fault: FrameFault) {
    let damage = fault.is_damage();
    let fault = PeerFault::Frame { class, fault };
    if damage {
        tracing::warn!(mirror = %session.mirror, peer = %session.conn.peer.name(), %fault, "damaged data from the peer");
        session.down(DownReason::PeerFault(fault));
    } else {
        session.conn.fail(session.inner(), fault);
    }
}

fn on_end(session: &Rc<Session>, class: Class, whole: bool) {
    let fault = if whole {
        PeerFault::StreamEnded(class)
    } else {
        PeerFault::Frame {
            class,
            fault: FrameFault::Truncated,
        }
    };
    session.conn.fail(session.inner(), fault);
}

fn on_read_error(session: &Rc<Session>, class: Class, error: ReadError) {
    match error {
        ReadError::Reset(code) if class == Class::Control => {
            session.down(DownReason::ClosedByPeer(reason_of(code, String::new())));
        }
        ReadError::Reset(code) => session.expect_close(code),
        ReadError::ConnectionLost(error) => session.conn.on_lost(error),
        // Ours to close, and closed already; reads are ordered, 0-RTT is never used.
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {}
    }
}
