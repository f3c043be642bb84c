//! A connection's requests in flight and its replies on their way out.
//!
//! The outbox is where the device's completions arrive ([`CompletionSink`]); it keeps the budget of
//! the connection, and gathers all replies that are ready into one vectored write. Reader and
//! writer of a connection are one task, so there is one waker, and nothing is woken while that task
//! runs anyway.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use slab::Slab;
use tokio::io::AsyncWrite;

use crate::connection::Connection;
use crate::device::{Answer, CompletionSink, Errno, IoError};
use crate::limits::Limits;
use crate::negotiate::Terms;
use crate::reply::{self, Asked, Body, Segment};

/// Pieces in one vectored write; the kernel takes up to 1024.
const MAX_SLICES: usize = 128;

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Requests in flight and replies of one connection.
#[derive(Debug)]
pub struct Outbox {
    terms: Terms,
    max_requests: usize,
    max_bytes: u64,
    client_resends: bool,
    state: RefCell<State>,
    /// The connection's task runs and will look by itself.
    running: Cell<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// Submitted and not completed, with the bytes that each holds of the budget.
    in_flight: Slab<(Asked, u32)>,
    /// Replies that are not written yet.
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are written.
    written: usize,
    /// A TLS layer holds bytes back.
    unflushed: bool,
    /// Admitted, and the reply not written to its end.
    requests: usize,
    bytes: u64,
    /// Bytes written so far: the sign of life of a slow client.
    progress: u64,
    /// The connection is gone: answers are dropped.
    closed: bool,
    /// A refusal that this client must not get came up: the connection has to end.
    withheld: Option<Errno>,
    waker: Option<Waker>,
}

impl Outbox {
    /// An empty outbox.
    pub fn new(terms: Terms, limits: &Limits) -> Self {
        Self {
            terms,
            max_requests: limits.max_in_flight.max(1),
            max_bytes: limits.max_in_flight_bytes,
            client_resends: limits.client_resends,
            state: RefCell::default(),
            running: Cell::new(false),
        }
    }

    /// Whether a request that holds `bytes` fits the budget now. A lone request always does.
    pub fn has_room(&self, bytes: u32) -> bool {
        let state = self.state.borrow();
        state.requests == 0
            || (state.requests < self.max_requests
                && state.bytes + u64::from(bytes) <= self.max_bytes)
    }

    /// What a block status takes of the budget: its answer is in memory that the device does not count, so that a
    /// client that takes none holds four.
    pub fn status_share(&self) -> u32 {
        u32::try_from(self.max_bytes / 4).unwrap_or(u32::MAX)
    }

    /// Takes a request into the budget; its reply gives the room back when it is written.
    pub fn admit(&self, bytes: u32) {
        let mut state = self.state.borrow_mut();
        state.requests += 1;
        state.bytes += u64::from(bytes);
    }

    /// Registers an admitted request for its completion and gives its ticket.
    pub fn register(&self, asked: Asked, bytes: u32) -> u64 {
        self.state.borrow_mut().in_flight.insert((asked, bytes)) as u64
    }

    /// Answers an admitted request that never reaches the device.
    pub fn refuse(&self, asked: &Asked, error: IoError, bytes: u32) {
        let mut state = self.state.borrow_mut();
        if self.withholds(&error) {
            return state.withhold(error.code);
        }
        reply::encode(&mut state.segments, asked, self.terms, Err(error), bytes);
    }

    /// Whether this client must not be told of an error: it would take for good what is so now.
    fn withholds(&self, error: &IoError) -> bool {
        self.client_resends && matches!(error.code, Errno::Perm | Errno::Shutdown)
    }

    /// Set when the connection must end without another answer.
    pub fn withheld(&self) -> Option<Errno> {
        self.state.borrow().withheld
    }

    /// Requests that the device has not completed.
    pub fn in_flight(&self) -> usize {
        self.state.borrow().in_flight.len()
    }

    /// Nothing is in flight, waiting or half-written.
    pub fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        state.in_flight.is_empty() && state.segments.is_empty() && !state.unflushed
    }

    /// Bytes written so far.
    pub fn progress(&self) -> u64 {
        self.state.borrow().progress
    }

    /// Drops what is not written, and the answers still to come.
    pub fn close(&self) {
        let mut state = self.state.borrow_mut();
        state.closed = true;
        state.segments.clear();
        state.unflushed = false;
    }

    /// Leaves the task that is to be woken by completions.
    pub fn set_waker(&self, waker: &Waker) {
        let mut state = self.state.borrow_mut();
        match &mut state.waker {
            Some(old) => old.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// While set, completions wake nobody: whoever set it looks at the outbox afterwards.
    pub fn set_running(&self, running: bool) {
        self.running.set(running);
    }

    /// Writes what is ready. `Ready` when nothing is left to write.
    pub fn poll_write(
        &self,
        cx: &mut Context<'_>,
        connection: &RefCell<Connection>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut state = self.state.borrow_mut();
            let mut connection = connection.borrow_mut();
            let stream = Pin::new(&mut *connection);
            if state.segments.is_empty() {
                if state.unflushed {
                    ready!(stream.poll_flush(cx))?;
                    state.unflushed = false;
                }
                return Poll::Ready(Ok(()));
            }
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = state.gather(&mut slices);
            let written = ready!(stream.poll_write_vectored(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.unflushed = true;
            state.advance(written);
        }
    }
}

impl State {
    /// Says nothing more on this connection.
    fn withhold(&mut self, code: Errno) {
        self.withheld.get_or_insert(code);
        self.closed = true;
        self.segments.clear();
        self.unflushed = false;
    }

    /// Lays out the waiting bytes in slices, and says how many were used.
    fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let mut skip = self.written;
        let mut push = |piece: &'a [u8]| {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            if skipped < piece.len() && count < slices.len() {
                slices[count] = IoSlice::new(&piece[skipped..]);
                count += 1;
            }
            count < slices.len()
        };
        for segment in &self.segments {
            let more = push(segment.head())
                && match &segment.body {
                    Body::None => true,
                    Body::Bytes(bytes) => push(bytes),
                    Body::Zeroes(len) => {
                        let mut left = *len as usize;
                        loop {
                            let piece = left.min(ZEROES.len());
                            left -= piece;
                            if !push(&ZEROES[..piece]) {
                                break false;
                            }
                            if left == 0 {
                                break true;
                            }
                        }
                    }
                };
            if !more {
                break;
            }
        }
        count
    }

    fn advance(&mut self, written: usize) {
        self.progress += written as u64;
        self.written += written;
        while let Some(first) = self.segments.front() {
            if self.written < first.len() {
                return;
            }
            self.written -= first.len();
            if let Some(bytes) = first.ends_reply {
                self.requests -= 1;
                self.bytes -= u64::from(bytes);
            }
            self.segments.pop_front();
        }
        assert!(self.written == 0, "more was written than there was");
    }
}

impl CompletionSink for Outbox {
    fn complete(&self, ticket: u64, result: Result<Answer, IoError>) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let (asked, bytes) = state.in_flight.remove(ticket as usize);
        let refused = result.as_ref().err().filter(|error| self.withholds(error));
        let news = refused.is_some() && state.withheld.is_none();
        if let Some(error) = refused {
            state.withhold(error.code);
        } else if !state.closed {
            reply::encode(&mut state.segments, &asked, self.terms, result, bytes);
        }
        if self.running.get() {
            return;
        }
        if news || !state.closed || state.in_flight.is_empty() {
            // Taken, so that a burst of completions wakes once.
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
    }
}
