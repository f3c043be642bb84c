//! The tasks that move frames between a session and its streams: a writer and a reader for each.
//!
//! A writer hands all frames that wait to the transport at once. A reader decodes what comes, waits
//! for memory where a payload needs some, and queues frames for the engine; while it waits, its
//! stream's window fills and the peer's writer of that class waits too, and no other.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::task::{spawn_local, yield_now};
use tokio::time::{Instant, Sleep, sleep};

use super::config::MirrorId;
use super::event::{DownReason, PeerFault};
use super::session::{Session, reason_of};
use crate::wire::frame::{Class, Decoded, Decoder, Encoder, FrameFault, KIND_CLOSE, PayloadBuffer};

/// Where received payloads go: aligned memory in a bounded supply.
pub trait BufferSource: 'static {
    /// One piece of memory.
    type Buffer: PayloadBuffer + 'static;

    /// Waits for memory of at least `len` bytes for what a session of `mirror` receives; the future may be dropped at
    /// any time. `None`: it could never be had, and the session is closed for it.
    fn take(
        &self,
        mirror: MirrorId,
        class: Class,
        len: usize,
    ) -> impl Future<Output = Option<Self::Buffer>>;
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
    let mut received: u64 = 0;
    let mut stall = Stall::new(session.conn.timeout);
    loop {
        if since_yield >= TURN {
            since_yield = 0;
            yield_now().await;
        }
        let more = recv.stream.read_chunks(&mut chunks);
        let more = if decoder.is_within_payload() {
            stall
                .unless(more, || session.progress(class, received))
                .await
        } else {
            Some(more.await)
        };
        let Some(more) = more else {
            let within = session.conn.timeout;
            return session.down(DownReason::PeerFault(PeerFault::Stalled { class, within }));
        };
        let count = match more {
            Ok(Some(count)) => count,
            Ok(None) => return on_end(&session, class, decoder.is_between_frames()),
            Err(error) => return on_read_error(&session, class, error),
        };
        for chunk in &mut chunks[..count] {
            let mut input = std::mem::take(chunk);
            since_yield += input.len();
            received += input.len() as u64;
            session.conn.count_received(class, input.len());
            loop {
                match decoder.feed(&mut input) {
                    Ok(Decoded::Hungry) => break,
                    Ok(Decoded::NeedsBuffer { len }) => {
                        match source.take(session.mirror, class, len).await {
                            Some(buffer) => decoder.supply(buffer),
                            None => return session.down(DownReason::NoMemory(len)),
                        }
                    }
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

/// Gives up on what does not go on: a payload that holds memory and of which nothing comes.
struct Stall {
    within: Duration,
    /// Made when it is first needed: most payloads come at once.
    sleep: Option<Pin<Box<Sleep>>>,
    /// Progress when it was last looked at.
    seen: Option<u64>,
}

impl Stall {
    fn new(within: Duration) -> Self {
        Self {
            within,
            sleep: None,
            seen: None,
        }
    }

    /// Waits for `more`. `None`: nothing has moved for `within`, and not for as long again: a thread that was stuck
    /// itself finds its time over, and then what has come meanwhile.
    async fn unless<F: Future>(
        &mut self,
        more: F,
        progress: impl Fn() -> u64,
    ) -> Option<F::Output> {
        let mut more = pin!(more);
        poll_fn(|cx| {
            if let Poll::Ready(output) = more.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            let within = self.within;
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(within)));
            while sleep.as_mut().poll(cx).is_ready() {
                let now = progress();
                if self.seen.replace(now) == Some(now) {
                    return Poll::Ready(None);
                }
                sleep.as_mut().reset(Instant::now() + within);
            }
            Poll::Pending
        })
        .await
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

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const WITHIN: Duration = Duration::from_millis(20);

    fn block_on<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("runtime");
        runtime.block_on(test)
    }

    #[test]
    fn what_does_not_move_is_given_up_after_its_time() {
        block_on(async {
            let begun = Instant::now();
            let more = Stall::new(WITHIN).unless(pending::<()>(), || 7).await;
            assert_eq!(more, None);
            assert!(begun.elapsed() >= 2 * WITHIN);
        });
    }

    #[test]
    fn what_moves_is_waited_for_however_slow_it_is() {
        block_on(async {
            // A byte more whenever it is looked at, and the rest with the tenth.
            let looks = Cell::new(0);
            let rest = poll_fn(|_| {
                if looks.get() < 10 {
                    Poll::Pending
                } else {
                    Poll::Ready("the rest")
                }
            });
            let progress = || {
                looks.set(looks.get() + 1);
                looks.get()
            };
            let more = Stall::new(WITHIN).unless(rest, progress).await;
            assert_eq!(more, Some("the rest"));
        });
    }

    #[test]
    fn each_payload_has_the_whole_time_anew() {
        block_on(async {
            let mut stall = Stall::new(WITHIN);
            // The first payload was waited for, and came; so long ago that its time is over.
            assert_eq!(stall.unless(pending::<()>(), || 1).await, None);
            let begun = Instant::now();
            assert_eq!(stall.unless(pending::<()>(), || 2).await, None);
            assert!(begun.elapsed() >= WITHIN);
        });
    }
}
