//! A device's requests carried to a [`BlockDevice`], and its answers back.
//!
//! One task does it for all queues of a device. What arrives is begun at once: a write is copied into memory of the
//! device's own, which it may have to wait for; nothing else waits behind it but later writes. What the device
//! answers is copied out and committed, and whatever is committed in one turn reaches the kernel with one system
//! call.
//!
//! A request that can't be served at this moment (this node is not Primary) is *parked*: it is not answered, since
//! the kernel would take for good what is so now, and it holds no memory. Its descriptor and its bytes stay with
//! the kernel; [`Go::On`] begins it again from there. Who keeps the device is told of it.
//!
//! The session never closes the queues: it gives them back, and its caller knows whether they may go.

mod answers;
mod asked;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use slab::Slab;
use tokio::sync::watch;
use tracing::{error, warn};

use super::endpoint::{Endpoint, Shape, Tag};
use crate::device::{
    Access, Answer, BlockDevice, Completion, CompletionSink, Errno, ReadData, ReadPart, Request,
    WriteBuffer,
};
use answers::{Answers, Done};
use asked::{Asked, Write};

/// How often a session looks again for what is there at once, before the thread's other tasks have their turn.
const LOOKS: usize = 8;

/// What reads of nothing are answered from.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// How far a session is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// Serve; what was parked is begun again.
    On,
    /// Begin nothing more, answer what is in flight, then end. The queues stay open: what was not answered
    /// is the next daemon's.
    Leave,
    /// End at once; what is in flight is not answered. The queues stay open.
    Cut,
    /// Fail what is parked or in flight, and what comes: the device is taken down.
    Refuse,
    /// After [`Go::Refuse`], when the device was stopped: close the queues, and end.
    Close,
}

/// Why a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// As ordered.
    Ordered,
    /// Another program stopped the device.
    Stopped,
    /// The ring is broken, or the kernel refuses what it may not refuse.
    Broken(io::Error),
}

/// Serves a device's queues until its end, and gives them back.
///
/// When it returns, nothing of it can reach the disks any more: what was begun is done, whoever was told of it.
/// [`Go::Close`] alone does not wait for that; all of it was answered with an error then, and the device is gone.
///
/// `opening` is what `device` was opened with for it. `order` without a sender is [`Go::Leave`]. `parked` is true
/// while requests wait for [`Go::On`].
pub async fn serve<D: BlockDevice, E: Endpoint>(
    device: Rc<D>,
    opening: D::Opening,
    endpoint: E,
    mut order: watch::Receiver<Go>,
    parked: watch::Sender<bool>,
) -> (SessionEnd, E) {
    let device: &D = &device;
    let mut memory = pin!(None);
    let ask = |len| device.buffer(len);
    let mut session = Session::new((device, &opening), endpoint, parked);
    session.ordered(*order.borrow_and_update());
    let mut has_orders = true;
    let end = loop {
        tokio::select! {
            biased;
            changed = order.changed(), if has_orders => {
                has_orders = changed.is_ok();
                if has_orders {
                    session.ordered(*order.borrow_and_update());
                } else {
                    session.is_abandoned();
                }
            }
            end = poll_fn(|cx| session.turn(cx, memory.as_mut(), &ask)) => break end,
        }
    };
    session.answers.close();
    (end, session.endpoint)
}

/// What becomes of a request that arrives, and of what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Serving,
    /// Nothing is begun until it is ordered.
    Parking,
    /// Nothing is begun any more; what was is answered.
    Leaving,
    /// Nothing is answered any more.
    Cut,
    /// Everything fails.
    Refusing,
    /// Everything has failed.
    Closing,
}

/// Who has a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// The kernel, for a request.
    Kernel,
    /// The session: a request that is not committed yet.
    Session,
    /// Nobody: the device was stopped.
    Nobody,
}

/// A request that the device has.
#[derive(Debug)]
struct InFlight {
    /// `None`: it was refused meanwhile, and its answer is nobody's.
    tag: Option<Tag>,
    is_read: bool,
    /// What is committed when it is done.
    result: i32,
}

struct Session<'a, D: BlockDevice, E> {
    device: &'a D,
    opening: &'a D::Opening,
    endpoint: E,
    shape: Shape,
    mode: Mode,
    parked_now: watch::Sender<bool>,
    holders: Vec<Holder>,
    retired: usize,
    parked: VecDeque<Tag>,
    /// Writes without memory, as they came; the first one's is asked for.
    writes: VecDeque<Write>,
    /// How much memory is asked for.
    asked_for: Option<u32>,
    in_flight: Slab<InFlight>,
    answers: Rc<Answers>,
    /// Something is committed that the kernel does not know yet.
    is_unsubmitted: bool,
    broken: Option<io::Error>,
    // Kept for their memory.
    arrived: Vec<(Tag, i32)>,
    done: Vec<Done>,
}

impl<'a, D: BlockDevice, E: Endpoint> Session<'a, D, E> {
    fn new(
        (device, opening): (&'a D, &'a D::Opening),
        endpoint: E,
        parked_now: watch::Sender<bool>,
    ) -> Self {
        let shape = endpoint.shape();
        let places = usize::from(shape.queues) * usize::from(shape.depth);
        assert!(places > 0, "a device without a place: {shape:?}");
        Self {
            device,
            opening,
            endpoint,
            shape,
            mode: Mode::Serving,
            parked_now,
            // All are fetched when the queues are opened.
            holders: vec![Holder::Kernel; places],
            retired: 0,
            parked: VecDeque::new(),
            writes: VecDeque::new(),
            asked_for: None,
            in_flight: Slab::with_capacity(places),
            answers: Rc::default(),
            is_unsubmitted: false,
            broken: None,
            arrived: Vec::with_capacity(places),
            done: Vec::with_capacity(places),
        }
    }

    // ---- orders -----------------------------------------------------------------------------

    fn ordered(&mut self, go: Go) {
        match go {
            Go::On if self.mode == Mode::Parking => {
                self.mode = Mode::Serving;
                self.parked_now.send_replace(false);
                // Only these: the rest of them is parked again where the first one is.
                for _ in 0..self.parked.len() {
                    let tag = self.parked.pop_front().expect("counted");
                    self.begin(tag);
                }
            }
            Go::Leave if matches!(self.mode, Mode::Serving | Mode::Parking) => {
                self.mode = Mode::Leaving;
                self.park_writes();
            }
            // It serves, or it was told to end: that stays.
            Go::On | Go::Leave => {}
            Go::Cut | Go::Refuse if self.mode == Mode::Closing => {}
            Go::Cut => {
                self.mode = Mode::Cut;
                self.park_writes();
            }
            Go::Refuse => self.refuse(Mode::Refusing),
            // What the kernel had not back would hold up the end of the device for ever.
            Go::Close => self.refuse(Mode::Closing),
        }
    }

    /// Nobody orders any more.
    fn is_abandoned(&mut self) {
        match self.mode {
            // All have failed; what would come finds nobody.
            Mode::Refusing => self.ordered(Go::Cut),
            _ => self.ordered(Go::Leave),
        }
    }

    /// Fails everything that the kernel waits for.
    fn refuse(&mut self, mode: Mode) {
        self.mode = mode;
        self.park_writes();
        while let Some(tag) = self.parked.pop_front() {
            self.commit(tag, -libc::EIO);
        }
        // The device still has these, and answers them to nobody.
        let tags: Vec<Tag> = self
            .in_flight
            .iter_mut()
            .filter_map(|(_, request)| request.tag.take())
            .collect();
        for tag in tags {
            self.commit(tag, -libc::EIO);
        }
    }

    // ---- a turn -----------------------------------------------------------------------------

    /// Does what can be done now. Ready at the end.
    fn turn<F: Future<Output = D::Buffer>>(
        &mut self,
        cx: &mut Context<'_>,
        mut memory: Pin<&mut Option<F>>,
        ask: &impl Fn(usize) -> F,
    ) -> Poll<SessionEnd> {
        self.answers.runs(cx.waker());
        for _ in 0..LOOKS {
            let mut is_idle = self.arrivals(cx);
            is_idle &= self.begin_writes(cx, memory.as_mut(), ask);
            is_idle &= self.settle();
            if std::mem::take(&mut self.is_unsubmitted)
                && let Err(error) = self.endpoint.submit()
            {
                self.breaks(error);
            }
            if let Some(end) = self.end() {
                return Poll::Ready(end);
            }
            if is_idle {
                self.answers.sleeps();
                return Poll::Pending;
            }
        }
        self.answers.sleeps();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn end(&mut self) -> Option<SessionEnd> {
        if self.mode == Mode::Closing {
            return Some(SessionEnd::Ordered);
        }
        if !self.in_flight.is_empty() {
            return None;
        }
        if let Some(error) = self.broken.take() {
            return Some(SessionEnd::Broken(error));
        }
        match self.mode {
            Mode::Leaving | Mode::Cut => Some(SessionEnd::Ordered),
            Mode::Serving | Mode::Parking if self.retired == self.holders.len() => {
                Some(SessionEnd::Stopped)
            }
            _ => None,
        }
    }

    /// Takes what the kernel has for the session. Gives whether there was nothing.
    fn arrivals(&mut self, cx: &mut Context<'_>) -> bool {
        let is_over = matches!(self.mode, Mode::Cut | Mode::Closing);
        if is_over || self.broken.is_some() {
            return true;
        }
        let mut arrived = std::mem::take(&mut self.arrived);
        let polled = self.endpoint.poll_arrived(cx, &mut arrived);
        for (tag, result) in arrived.drain(..) {
            let holder = self.holder(tag);
            assert!(
                *holder == Holder::Kernel,
                "{tag:?} comes from the kernel while {holder:?} has it"
            );
            match result {
                0 => {
                    *holder = Holder::Session;
                    self.begin(tag);
                }
                failed if failed == -libc::ENODEV => self.retire(tag),
                failed => {
                    self.breaks(io::Error::from_raw_os_error(failed.wrapping_neg()));
                    break;
                }
            }
        }
        self.arrived = arrived;
        match polled {
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(error)) => {
                self.breaks(error);
                false
            }
            Poll::Pending => true,
        }
    }

    /// Carries the device's answers to the kernel. Gives whether there was none.
    fn settle(&mut self) -> bool {
        let mut done = std::mem::take(&mut self.done);
        self.answers.swap(&mut done);
        let is_idle = done.is_empty();
        for Done { ticket, result } in done.drain(..) {
            let InFlight {
                tag,
                is_read,
                result: whole,
            } = self.in_flight.remove(ticket);
            let Some(tag) = tag else {
                continue;
            };
            match result {
                _ if self.mode == Mode::Cut => self.parked.push_back(tag),
                Ok(answer) => self.answer(tag, is_read, whole, &answer),
                Err(error) if is_about_now(error.code) => self.park(tag),
                Err(error) => self.commit(tag, -errno(error.code)),
            }
        }
        self.done = done;
        is_idle
    }

    // ---- a request --------------------------------------------------------------------------

    /// Begins what is in `tag`, from its descriptor on.
    fn begin(&mut self, tag: Tag) {
        match self.mode {
            Mode::Serving => {}
            Mode::Parking | Mode::Leaving | Mode::Cut => return self.parked.push_back(tag),
            Mode::Refusing | Mode::Closing => return self.commit(tag, -libc::EIO),
        }
        let Ok(info) = self.device.info(Access::ReadWrite) else {
            return self.park(tag);
        };
        let descriptor = self.endpoint.descriptor(tag);
        match Asked::of(tag, &descriptor, &info, self.shape.max_io) {
            Ok(Asked::Write(write)) => self.writes.push_back(write),
            Ok(Asked::Read { offset, len }) => {
                self.submit(tag, true, len, Request::Read { offset, len });
            }
            Ok(Asked::Other(request)) => self.submit(tag, false, 0, request),
            Err(errno) => self.commit(tag, -errno),
        }
    }

    /// Begins the writes that get memory. Gives whether nothing was begun.
    fn begin_writes<F: Future<Output = D::Buffer>>(
        &mut self,
        cx: &mut Context<'_>,
        mut memory: Pin<&mut Option<F>>,
        ask: &impl Fn(usize) -> F,
    ) -> bool {
        let mut is_idle = true;
        loop {
            let first = self.writes.front().copied();
            // Parked meanwhile: whoever is first now may need another amount.
            if self.asked_for != first.map(|write| write.len) {
                memory.set(None);
                self.asked_for = None;
            }
            let Some(write) = first else {
                return is_idle;
            };
            if memory.is_none() {
                self.asked_for = Some(write.len);
                memory.set(Some(ask(write.len as usize)));
            }
            let waiting = memory.as_mut().as_pin_mut().expect("just asked");
            let Poll::Ready(buffer) = waiting.poll(cx) else {
                return is_idle;
            };
            memory.set(None);
            self.asked_for = None;
            self.writes.pop_front();
            self.write(write, buffer);
            is_idle = false;
        }
    }

    fn write(&mut self, write: Write, mut buffer: D::Buffer) {
        let Write {
            tag,
            offset,
            len,
            fua,
        } = write;
        let memory = buffer.as_mut();
        assert!(
            memory.len() == len as usize,
            "the device gave {} bytes for {len}",
            memory.len()
        );
        if let Err(error) = self.endpoint.copy_in(tag, memory) {
            return self.not_copied(tag, &error);
        }
        let data = buffer.freeze();
        self.submit(tag, false, len, Request::Write { offset, data, fua });
    }

    /// Gives a request to the device; `bytes` is its result if it is done.
    fn submit(&mut self, tag: Tag, is_read: bool, bytes: u32, request: Request) {
        assert!(
            *self.holder(tag) == Holder::Session,
            "{tag:?} is begun, but it is not ours"
        );
        let result = i32::try_from(bytes).expect("checked when it arrived");
        let ticket = self.in_flight.insert(InFlight {
            tag: Some(tag),
            is_read,
            result,
        });
        let sink: Rc<dyn CompletionSink> = Rc::<Answers>::clone(&self.answers);
        let completion = Completion::new(sink, ticket as u64);
        self.device.submit(self.opening, request, completion);
    }

    fn answer(&mut self, tag: Tag, is_read: bool, result: i32, answer: &Answer) {
        match answer {
            Answer::Data(data) if is_read => {
                // Before it is committed: then the tag is another request's.
                match self.copy_out(tag, result as usize, data) {
                    Ok(()) => self.commit(tag, result),
                    Err(error) => self.not_copied(tag, &error),
                }
            }
            Answer::Done if !is_read => self.commit(tag, result),
            answer => panic!("{tag:?}: the device answered with {answer:?}"),
        }
    }

    fn copy_out(&self, tag: Tag, len: usize, data: &ReadData) -> io::Result<()> {
        let given = match data {
            ReadData::Whole(bytes) => bytes.len() as u64,
            ReadData::Zeroes => len as u64,
            ReadData::Parts(parts) => parts.iter().map(ReadPart::len).sum(),
        };
        // The kernel would show its reader whatever was in that memory before.
        assert!(
            given == len as u64,
            "{tag:?}: the device answered a read of {len} with {given} bytes"
        );
        match data {
            ReadData::Whole(bytes) => self.endpoint.copy_out(tag, 0, bytes),
            ReadData::Zeroes => self.zero_out(tag, 0, len),
            ReadData::Parts(parts) => {
                let mut at = 0;
                for part in parts {
                    match part {
                        ReadPart::Data(bytes) if bytes.is_empty() => {}
                        ReadPart::Data(bytes) => self.endpoint.copy_out(tag, at, bytes)?,
                        ReadPart::Zeroes(zeroes) => self.zero_out(tag, at, *zeroes as usize)?,
                    }
                    at += part.len() as usize;
                }
                Ok(())
            }
        }
    }

    fn zero_out(&self, tag: Tag, offset: usize, len: usize) -> io::Result<()> {
        let mut at = 0;
        while at < len {
            let piece = ZEROES.len().min(len - at);
            self.endpoint.copy_out(tag, offset + at, &ZEROES[..piece])?;
            at += piece;
        }
        Ok(())
    }

    /// Bytes of a request could not be copied.
    fn not_copied(&mut self, tag: Tag, error: &io::Error) {
        if error.raw_os_error() == Some(libc::EINVAL) {
            warn!(
                "queue {} tag {}: its request is gone, as if the device were stopped",
                tag.queue, tag.tag
            );
            self.retire(tag);
        } else {
            error!(
                "queue {} tag {}: failed, its bytes can't be copied: {error}",
                tag.queue, tag.tag
            );
            self.commit(tag, -libc::EIO);
        }
    }

    // ---- where a tag goes -------------------------------------------------------------------

    /// Keeps a request that can't be served now; and nothing else is begun until it is ordered.
    fn park(&mut self, tag: Tag) {
        self.parked.push_back(tag);
        if self.mode == Mode::Serving {
            self.mode = Mode::Parking;
            self.park_writes();
            self.parked_now.send_replace(true);
        }
    }

    /// Gives up the wait for memory.
    fn park_writes(&mut self) {
        let tags = self.writes.drain(..).map(|write| write.tag);
        self.parked.extend(tags);
    }

    /// Gives a tag back to the kernel, with the request's result.
    fn commit(&mut self, tag: Tag, result: i32) {
        if self.broken.is_some() {
            return;
        }
        let holder = self.holder(tag);
        assert!(
            *holder == Holder::Session,
            "{tag:?} is answered while {holder:?} has it"
        );
        *holder = Holder::Kernel;
        self.endpoint.commit(tag, result);
        self.is_unsubmitted = true;
    }

    /// The device was stopped: nothing comes in this tag any more.
    fn retire(&mut self, tag: Tag) {
        let holder = self.holder(tag);
        assert!(*holder != Holder::Nobody, "{tag:?} is retired twice");
        *holder = Holder::Nobody;
        self.retired += 1;
    }

    /// The kernel does not work with the session any more: nothing is answered from now on.
    fn breaks(&mut self, error: io::Error) {
        if self.broken.is_none() {
            error!("the queues of a ublk device are broken, nothing is answered there: {error}");
            self.broken = Some(error);
            self.park_writes();
        }
    }

    fn holder(&mut self, tag: Tag) -> &mut Holder {
        let Shape { queues, depth, .. } = self.shape;
        assert!(
            tag.queue < queues && tag.tag < depth,
            "{tag:?} of {queues} queues with {depth} places"
        );
        &mut self.holders[usize::from(tag.queue) * usize::from(depth) + usize::from(tag.tag)]
    }
}

/// Whether an error only says that the device is not served at this moment.
fn is_about_now(code: Errno) -> bool {
    matches!(code, Errno::Perm | Errno::Shutdown)
}

/// The kernel's number for an error.
fn errno(code: Errno) -> i32 {
    match code {
        Errno::Perm => libc::EPERM,
        Errno::Io => libc::EIO,
        Errno::NoMem => libc::ENOMEM,
        Errno::Inval => libc::EINVAL,
        Errno::NoSpc => libc::ENOSPC,
        Errno::Overflow => libc::EOVERFLOW,
        Errno::NotSup => libc::EOPNOTSUPP,
        Errno::Shutdown => libc::ESHUTDOWN,
    }
}
