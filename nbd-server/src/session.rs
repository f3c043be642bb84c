//! The transmission phase of one connection.
//!
//! One task does all of it: a reader that parses requests and gives them to the device, and a
//! writer that sends what completions left in the [`Outbox`]. They are polled one after the other,
//! reader first, so that a request which the device completes at once is answered in the same
//! poll, and a burst of requests is answered with one write. A client at depth 1 costs one read
//! and one write.
//!
//! The end: `NBD_CMD_DISC`, the end of the stream or a fault stop the reader, and what is in
//! flight is still answered; a socket that fails, a stall or an abort stop both at once. In
//! every case the session is over only when the device has completed its last request.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, Sleep};

use crate::connection::{self, Connection, Filled, Inbox};
use crate::control::{Control, Mode};
use crate::device::{
    BlockDevice, Completion, CompletionSink, DeviceInfo, Errno, IoError, Request, WriteBuffer,
};
use crate::error::{ClientFault, SessionEnd};
use crate::handshake::Accepted;
use crate::limits::Limits;
use crate::meta_context::MAX_EXTENTS;
use crate::negotiate::Terms;
use crate::outbox::Outbox;
use crate::reply::Asked;
use crate::request::{Command, REQUEST_LEN, RequestHeader};

/// How long a TLS goodbye may take to leave.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(200);

/// Serves a client until its end; returns when the device has completed all that it asked for.
pub async fn serve<D: BlockDevice>(
    accepted: Accepted<D>,
    limits: &Limits,
    control: &Control,
) -> SessionEnd {
    let Accepted {
        connection,
        mut inbox,
        export,
        info,
        terms,
        opening,
    } = accepted;
    let outbox = Rc::new(Outbox::new(terms, limits));
    let connection = RefCell::new(connection);
    let session = Session {
        device: &*export.device,
        opening: &opening,
        info,
        terms,
        connection: &connection,
        outbox: &outbox,
        control,
        waits_for_room: Cell::new(None),
        waits_for_payload: Cell::new(false),
        payload_progress: Cell::new(0),
    };
    let end = session.transmit(&mut inbox, limits).await;

    outbox.close();
    let connection = connection.into_inner();
    match end {
        // A client that stopped reading would hold up the goodbye, too.
        SessionEnd::Goodbye | SessionEnd::Closed | SessionEnd::Shutdown | SessionEnd::Fault(_) => {
            say_goodbye(connection).await;
        }
        _ => drop(connection),
    }
    drop(inbox);
    poll_fn(|cx| {
        if outbox.in_flight() == 0 {
            return Poll::Ready(());
        }
        outbox.set_waker(cx.waker());
        Poll::Pending
    })
    .await;
    drop(opening);
    end
}

/// Ends TLS if it runs, and closes.
async fn say_goodbye(mut connection: Connection) {
    // Whatever fails here, the client is gone.
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, connection.shutdown()).await;
}

struct Session<'a, D: BlockDevice> {
    device: &'a D,
    opening: &'a D::Opening,
    info: DeviceInfo,
    terms: Terms,
    connection: &'a RefCell<Connection>,
    outbox: &'a Rc<Outbox>,
    control: &'a Control,
    /// The reader waits until a request with so many bytes fits the budget.
    waits_for_room: Cell<Option<u32>>,
    /// The reader waits for the rest of a payload.
    waits_for_payload: Cell<bool>,
    /// Steps that payloads made.
    payload_progress: Cell<u64>,
}

impl<D: BlockDevice> Session<'_, D> {
    /// Reader and writer side by side, until the connection's end.
    async fn transmit(&self, inbox: &mut Inbox, limits: &Limits) -> SessionEnd {
        // Gone as soon as nothing more is read: it may stand in the device's queue for memory, and there
        // holds up those behind it.
        let mut reader = pin!(Some(self.read_requests(inbox)));
        let mut reader_end: Option<SessionEnd> = None;
        let mut watchdog = Watchdog::new(limits);
        poll_fn(|cx| {
            if self.control.watch(cx) == Mode::Aborted {
                return Poll::Ready(SessionEnd::Aborted);
            }
            if self.control.mode() == Mode::Leaving && reader_end.is_none() {
                // What is half read is dropped with what is unread: it is sent again, whole.
                reader_end = Some(SessionEnd::Shutdown);
                self.waits_for_payload.set(false);
                self.waits_for_room.set(None);
                reader.set(None);
            }
            self.outbox.set_waker(cx.waker());
            self.outbox.set_running(true);
            let flow = self.turn(cx, &mut reader, &mut reader_end);
            self.outbox.set_running(false);
            if let Some(code) = self.outbox.withheld() {
                return Poll::Ready(SessionEnd::Withheld(code));
            }
            let written = match flow {
                Ok(written) => written,
                // A client that has left takes no replies; that it left is what counts.
                Err(error) => {
                    return Poll::Ready(reader_end.take().unwrap_or(SessionEnd::Io(error)));
                }
            };
            if written.is_ready() && self.outbox.in_flight() == 0 && reader_end.is_some() {
                return Poll::Ready(reader_end.take().unwrap_or(SessionEnd::Closed));
            }
            let stuck = written.is_pending() || self.waits_for_payload.get();
            let progress = self.outbox.progress() + self.payload_progress.get();
            let leaving = self.control.mode() == Mode::Draining && self.outbox.is_idle();
            watchdog.poll(cx, stuck.then_some(progress), leaving)
        })
        .await
    }

    /// Polls the reader, then the writer, and again while the writer makes room for the reader.
    fn turn(
        &self,
        cx: &mut Context<'_>,
        reader: &mut Pin<&mut Option<impl Future<Output = SessionEnd>>>,
        reader_end: &mut Option<SessionEnd>,
    ) -> io::Result<Poll<()>> {
        loop {
            if let Some(reading) = reader.as_mut().as_pin_mut()
                && let Poll::Ready(end) = reading.poll(cx)
            {
                *reader_end = Some(end);
                reader.set(None);
            }
            let written = match self.outbox.poll_write(cx, self.connection) {
                Poll::Ready(Ok(())) => Poll::Ready(()),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => Poll::Pending,
            };
            match self.waits_for_room.get() {
                Some(bytes) if reader_end.is_none() && self.outbox.has_room(bytes) => {}
                _ => return Ok(written),
            }
        }
    }

    /// Parses and submits requests until the client ends or breaks the protocol.
    async fn read_requests(&self, inbox: &mut Inbox) -> SessionEnd {
        loop {
            match self.read_request(inbox).await {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    async fn read_request(&self, inbox: &mut Inbox) -> Result<(), SessionEnd> {
        let mut bytes = [0; REQUEST_LEN];
        match inbox
            .array(self.connection, &mut bytes)
            .await
            .map_err(SessionEnd::Io)?
        {
            Filled::Full => {}
            Filled::End => return Err(SessionEnd::Closed),
            Filled::Cut => return Err(SessionEnd::Cut),
        }
        let header = RequestHeader::decode(&bytes)?;
        let checked = header.check(&self.info, self.terms);
        let asked = Asked {
            cookie: header.cookie,
            command: checked.as_ref().ok().copied(),
            offset: header.offset,
            len: header.len,
        };
        let command = match checked {
            Ok(Command::Disconnect) => return Err(SessionEnd::Goodbye),
            Ok(command) => command,
            Err(error) => return self.refuse(inbox, &header, &asked, error).await,
        };
        let bytes = match command {
            Command::Read { .. } | Command::Write { .. } => header.len,
            Command::BlockStatus { .. } => self.outbox.status_share(),
            _ => 0,
        };
        self.admit(bytes).await;
        let request = match command {
            Command::Write { fua } => {
                let data = self.read_payload(inbox, header.len).await?;
                Request::Write {
                    offset: header.offset,
                    data,
                    fua,
                }
            }
            other => request(other, header.offset, header.len, self.terms),
        };
        if self.control.mode() == Mode::Running {
            let ticket = self.outbox.register(asked, bytes);
            let sink: Rc<dyn CompletionSink> = Rc::<Outbox>::clone(self.outbox);
            let completion = Completion::new(sink, ticket);
            self.device.submit(self.opening, request, completion);
        } else {
            self.outbox.refuse(&asked, shutting_down(), bytes);
        }
        Ok(())
    }

    /// Answers a request with an error and drops its payload: the next request is where it would
    /// have been.
    async fn refuse(
        &self,
        inbox: &mut Inbox,
        header: &RequestHeader,
        asked: &Asked,
        error: IoError,
    ) -> Result<(), SessionEnd> {
        let len = header.payload_len();
        let limit = self.info.max_payload.saturating_mul(2);
        if len > limit {
            return Err(ClientFault::PayloadTooLong { len, limit }.into());
        }
        self.admit(0).await;
        if len > 0 {
            self.waits_for_payload.set(true);
            let filled = inbox
                .skip(self.connection, len as usize, || self.moved())
                .await;
            self.waits_for_payload.set(false);
            whole(filled)?;
        }
        self.outbox.refuse(asked, error, 0);
        Ok(())
    }

    /// Reads a payload to where the device wants it.
    async fn read_payload(&self, inbox: &mut Inbox, len: u32) -> Result<bytes::Bytes, SessionEnd> {
        let mut buffer = self.memory(len as usize).await?;
        let memory = buffer.as_mut();
        assert!(
            memory.len() == len as usize,
            "the device gave {} bytes",
            memory.len()
        );
        self.waits_for_payload.set(true);
        let filled = inbox
            .read_into(self.connection, memory, || self.moved())
            .await;
        self.waits_for_payload.set(false);
        whole(filled)?;
        Ok(buffer.freeze())
    }

    /// Waits for the device's memory, but not longer than the client is there: what it has sent stays
    /// unread meanwhile, so its end would not be seen.
    async fn memory(&self, len: usize) -> Result<D::Buffer, SessionEnd> {
        let mut memory = pin!(self.device.buffer(len));
        let mut gone = pin!(connection::hung_up(self.connection));
        let mut has_waited = false;
        poll_fn(|cx| {
            if let Poll::Ready(buffer) = memory.as_mut().poll(cx) {
                // It may have gone since it was looked at last.
                let is_gone = has_waited && connection::is_hung_up(self.connection);
                return Poll::Ready(if is_gone {
                    Err(SessionEnd::Cut)
                } else {
                    Ok(buffer)
                });
            }
            has_waited = true;
            gone.as_mut().poll(cx).map(|()| Err(SessionEnd::Cut))
        })
        .await
    }

    /// Waits until a request with `bytes` of payload fits the budget, and takes it in.
    async fn admit(&self, bytes: u32) {
        if !self.outbox.has_room(bytes) {
            self.waits_for_room.set(Some(bytes));
            poll_fn(|_| {
                // `turn` polls again when the writer has made room.
                if self.outbox.has_room(bytes) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            self.waits_for_room.set(None);
        }
        self.outbox.admit(bytes);
    }

    fn moved(&self) {
        self.payload_progress.set(self.payload_progress.get() + 1);
    }
}

fn whole(filled: io::Result<Filled>) -> Result<(), SessionEnd> {
    match filled.map_err(SessionEnd::Io)? {
        Filled::Full => Ok(()),
        Filled::End | Filled::Cut => Err(SessionEnd::Cut),
    }
}

/// The device's request for a command without payload.
fn request(command: Command, offset: u64, len: u32, terms: Terms) -> Request {
    match command {
        Command::Read { .. } => Request::Read { offset, len },
        Command::Flush => Request::Flush,
        Command::Trim { fua } => Request::Trim { offset, len, fua },
        Command::Cache => Request::Cache { offset, len },
        Command::WriteZeroes { fua, no_hole, fast } => Request::WriteZeroes {
            offset,
            len,
            fua,
            no_hole,
            fast,
        },
        Command::BlockStatus { one } => Request::BlockStatus {
            offset,
            len,
            allocation: terms.contexts.allocation,
            dirty: terms.contexts.dirty,
            max_extents: if one { 1 } else { MAX_EXTENTS },
        },
        Command::Write { .. } | Command::Disconnect => unreachable!("handled by the reader"),
    }
}

fn shutting_down() -> IoError {
    IoError::new(Errno::Shutdown, "the server is being shut down")
}

/// The clocks of a session: a client that is stuck, and a drained session's last moment.
struct Watchdog {
    stall_timeout: Option<Duration>,
    linger: Duration,
    /// Progress when the client was last seen moving, and when that was.
    stuck: Option<(u64, Instant)>,
    leaving: Option<Instant>,
    /// Made when it is first needed: most sessions never are.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watchdog {
    fn new(limits: &Limits) -> Self {
        Self {
            stall_timeout: limits.stall_timeout,
            linger: limits.linger,
            stuck: None,
            leaving: None,
            sleep: None,
        }
    }

    /// `stuck` is the client's progress so far while it keeps the session waiting; `leaving` says
    /// that a draining session has nothing left to do.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stuck: Option<u64>,
        leaving: bool,
    ) -> Poll<SessionEnd> {
        if stuck.is_none() && !leaving {
            self.stuck = None;
            self.leaving = None;
            return Poll::Pending;
        }
        let now = Instant::now();
        self.stuck = match (stuck, self.stuck) {
            (None, _) => None,
            (Some(progress), Some((seen, since))) if seen == progress => Some((seen, since)),
            (Some(progress), _) => Some((progress, now)),
        };
        self.leaving = if leaving {
            self.leaving.or(Some(now))
        } else {
            None
        };
        let stalled = self
            .stuck
            .zip(self.stall_timeout)
            .map(|((_, since), t)| (since + t, t));
        let left = self.leaving.map(|since| since + self.linger);
        if let Some((deadline, timeout)) = stalled
            && deadline <= now
        {
            return Poll::Ready(SessionEnd::Stalled(timeout));
        }
        if left.is_some_and(|deadline| deadline <= now) {
            return Poll::Ready(SessionEnd::Shutdown);
        }
        let deadline = match (stalled.map(|(deadline, _)| deadline), left) {
            (Some(a), Some(b)) => a.min(b),
            (Some(deadline), None) | (None, Some(deadline)) => deadline,
            (None, None) => return Poll::Pending,
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // A timer that is early only wakes the session once more: it is not pushed back for each
        // byte that moves.
        if sleep.is_elapsed() || sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        if sleep.as_mut().poll(cx).is_ready() {
            // Elapsed between the two looks at the clock: look again.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
