//! A made-up kernel, a made-up disk, and a session between them that runs when it is woken and not otherwise.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::BytesMut;
use tokio::sync::watch;

use super::super::{Go, SessionEnd, serve};
use crate::device::{
    Access, Answer, BlockDevice, Completion, DeviceInfo, Errno, IoError, Refusal, Request,
};
use crate::memory::MemoryDevice;
use crate::ublk::abi::{Descriptor, SECTOR, io_flag, op};
use crate::ublk::{Endpoint, Shape, Tag};

pub(super) const SHAPE: Shape = Shape {
    queues: 2,
    depth: 4,
    max_io: 128 << 10,
};
pub(super) const SIZE: u64 = 1 << 20;

/// A place of the first queue.
pub(super) fn tag(tag: u16) -> Tag {
    Tag { queue: 0, tag }
}

/// A request of `len` bytes at `offset`.
pub(super) fn ask(op: u8, offset: u64, len: u64) -> Descriptor {
    Descriptor {
        op,
        flags: 0,
        sectors: u32::try_from(len / SECTOR).expect("fits"),
        start: offset / SECTOR,
    }
}

pub(super) fn durable(descriptor: Descriptor) -> Descriptor {
    let flags = descriptor.flags | io_flag::FUA;
    Descriptor {
        flags,
        ..descriptor
    }
}

pub(super) fn flush() -> Descriptor {
    Descriptor {
        op: op::FLUSH,
        flags: 0,
        sectors: 0,
        start: u64::MAX,
    }
}

// ---- the kernel -----------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    /// The kernel, for its next request.
    Kernel,
    /// The session.
    Session,
    /// The session has answered, and the kernel does not know.
    Committed,
    /// The device was stopped.
    Nobody,
}

#[derive(Debug)]
struct Place {
    has: Has,
    descriptor: Descriptor,
    /// What a write carries, or a read has got.
    bytes: Vec<u8>,
    /// What copying gives from now on.
    fault: Option<i32>,
}

#[derive(Debug)]
struct Driver {
    places: BTreeMap<Tag, Place>,
    arrived: Vec<(Tag, i32)>,
    waker: Option<Waker>,
    committed: Vec<(Tag, i32)>,
    results: Vec<(Tag, i32)>,
    submits: usize,
    is_stopped: bool,
    is_broken: bool,
    /// Every answer is followed by the same request again.
    repeats: bool,
}

/// The kernel's end of a device: it checks that a tag is only used by whoever has it.
#[derive(Clone, Debug)]
pub(super) struct Kernel(Rc<RefCell<Driver>>);

impl Kernel {
    fn new() -> Self {
        let mut places = BTreeMap::new();
        for queue in 0..SHAPE.queues {
            for tag in 0..SHAPE.depth {
                let place = Place {
                    has: Has::Kernel,
                    descriptor: flush(),
                    bytes: Vec::new(),
                    fault: None,
                };
                places.insert(Tag { queue, tag }, place);
            }
        }
        Self(Rc::new(RefCell::new(Driver {
            places,
            arrived: Vec::new(),
            waker: None,
            committed: Vec::new(),
            results: Vec::new(),
            submits: 0,
            is_stopped: false,
            is_broken: false,
            repeats: false,
        })))
    }

    /// Gives the session a request; `bytes` is what a write carries.
    pub(super) fn asks(&self, tag: Tag, descriptor: Descriptor, bytes: &[u8]) {
        let mut driver = self.0.borrow_mut();
        let place = driver.places.get_mut(&tag).expect("a place");
        assert_eq!(place.has, Has::Kernel, "the test asks in {tag:?} twice");
        *place = Place {
            has: Has::Session,
            descriptor,
            bytes: bytes.to_vec(),
            fault: None,
        };
        driver.arrives(tag, 0);
    }

    /// Whether it may ask in `tag`.
    pub(super) fn has(&self, tag: Tag) -> bool {
        self.0.borrow().places[&tag].has == Has::Kernel
    }

    /// Answers a fetch with an error.
    pub(super) fn fails(&self, tag: Tag, errno: i32) {
        self.0.borrow_mut().arrives(tag, -errno);
    }

    /// The device is stopped: what it has, and what it gets back, is over.
    pub(super) fn stops(&self) {
        let mut driver = self.0.borrow_mut();
        driver.is_stopped = true;
        let tags = driver.places.keys().copied().collect::<Vec<_>>();
        for tag in tags {
            driver.stop(tag);
        }
    }

    /// What copying in `tag` gives from now on.
    pub(super) fn can_not_copy(&self, tag: Tag, errno: i32) {
        let mut driver = self.0.borrow_mut();
        driver.places.get_mut(&tag).expect("a place").fault = Some(errno);
    }

    /// Takes no answer any more.
    pub(super) fn breaks(&self) {
        self.0.borrow_mut().is_broken = true;
    }

    pub(super) fn repeats(&self) {
        self.0.borrow_mut().repeats = true;
    }

    /// What a write carries is another thing from now on.
    pub(super) fn changes(&self, tag: Tag, bytes: &[u8]) {
        let mut driver = self.0.borrow_mut();
        driver.places.get_mut(&tag).expect("a place").bytes = bytes.to_vec();
    }

    /// What the last read in `tag` has got.
    pub(super) fn got(&self, tag: Tag) -> Vec<u8> {
        self.0.borrow().places[&tag].bytes.clone()
    }

    /// The answers since the last call.
    pub(super) fn results(&self) -> Vec<(Tag, i32)> {
        std::mem::take(&mut self.0.borrow_mut().results)
    }

    /// The system calls so far.
    pub(super) fn submits(&self) -> usize {
        self.0.borrow().submits
    }
}

impl Driver {
    fn arrives(&mut self, tag: Tag, result: i32) {
        self.arrived.push((tag, result));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn stop(&mut self, tag: Tag) {
        let place = self.places.get_mut(&tag).expect("a place");
        if place.has == Has::Kernel {
            place.has = Has::Nobody;
            self.arrives(tag, -libc::ENODEV);
        }
    }

    fn ours(&self, tag: Tag) -> &Place {
        let place = &self.places[&tag];
        assert_eq!(place.has, Has::Session, "{tag:?} is used");
        place
    }
}

impl Endpoint for Kernel {
    fn shape(&self) -> Shape {
        SHAPE
    }

    fn poll_arrived(
        &mut self,
        context: &mut Context<'_>,
        arrived: &mut Vec<(Tag, i32)>,
    ) -> Poll<io::Result<()>> {
        let mut driver = self.0.borrow_mut();
        if driver.arrived.is_empty() {
            driver.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        arrived.append(&mut driver.arrived);
        Poll::Ready(Ok(()))
    }

    fn descriptor(&self, tag: Tag) -> Descriptor {
        self.0.borrow().ours(tag).descriptor
    }

    fn copy_in(&self, tag: Tag, into: &mut [u8]) -> io::Result<()> {
        let driver = self.0.borrow();
        let place = driver.ours(tag);
        assert_eq!(place.descriptor.op, op::WRITE);
        if let Some(errno) = place.fault {
            return Err(io::Error::from_raw_os_error(errno));
        }
        into.copy_from_slice(&place.bytes);
        Ok(())
    }

    fn copy_out(&self, tag: Tag, offset: usize, from: &[u8]) -> io::Result<()> {
        let mut driver = self.0.borrow_mut();
        let descriptor = driver.ours(tag).descriptor;
        assert_eq!(descriptor.op, op::READ);
        let place = driver.places.get_mut(&tag).expect("a place");
        if let Some(errno) = place.fault {
            return Err(io::Error::from_raw_os_error(errno));
        }
        place
            .bytes
            .resize((u64::from(descriptor.sectors) * SECTOR) as usize, 0xee);
        place.bytes[offset..offset + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn commit(&mut self, tag: Tag, result: i32) {
        let mut driver = self.0.borrow_mut();
        driver.ours(tag);
        driver.places.get_mut(&tag).expect("a place").has = Has::Committed;
        driver.committed.push((tag, result));
    }

    fn submit(&mut self) -> io::Result<()> {
        let mut driver = self.0.borrow_mut();
        if driver.is_broken {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        driver.submits += 1;
        let committed = std::mem::take(&mut driver.committed);
        for &(tag, _) in &committed {
            driver.places.get_mut(&tag).expect("a place").has = Has::Kernel;
            if driver.is_stopped {
                driver.stop(tag);
            } else if driver.repeats {
                driver.places.get_mut(&tag).expect("a place").has = Has::Session;
                driver.arrives(tag, 0);
            }
        }
        driver.results.extend(committed);
        Ok(())
    }
}

// ---- the disk -------------------------------------------------------------------------------

/// Memory that answers at once, or when it is told to.
pub(super) struct Disk {
    pub(super) memory: MemoryDevice,
    holds: Cell<bool>,
    held: RefCell<Vec<(Request, Completion)>>,
    /// All that was asked of it.
    log: RefCell<Vec<Request>>,
    /// Bytes for payloads that are left.
    room: Cell<usize>,
    wants_room: RefCell<Option<Waker>>,
}

impl Disk {
    fn new(info: DeviceInfo) -> Self {
        Self {
            memory: MemoryDevice::with_info(info),
            holds: Cell::new(false),
            held: RefCell::default(),
            log: RefCell::default(),
            room: Cell::new(usize::MAX),
            wants_room: RefCell::default(),
        }
    }

    /// Answers nothing by itself any more.
    pub(super) fn holds(&self) {
        self.holds.set(true);
    }

    /// Has so many bytes of memory for payloads.
    pub(super) fn has_room(&self, bytes: usize) {
        self.room.set(bytes);
        if let Some(waker) = self.wants_room.take() {
            waker.wake();
        }
    }

    /// How many requests wait for an answer.
    pub(super) fn held(&self) -> usize {
        self.held.borrow().len()
    }

    /// The request that was held at `index`.
    pub(super) fn at(&self, index: usize) -> Request {
        self.held.borrow()[index].0.clone()
    }

    /// Carries out what is held at `index`.
    pub(super) fn does(&self, index: usize) {
        let (request, completion) = self.held.borrow_mut().remove(index);
        self.memory.submit(&(), request, completion);
    }

    /// Refuses what is held at `index`.
    pub(super) fn refuses(&self, index: usize, code: Errno) {
        let (_, completion) = self.held.borrow_mut().remove(index);
        completion.fail(IoError::from(code));
    }

    /// Answers what is held at `index` as given.
    pub(super) fn answers(&self, index: usize, answer: Answer) {
        let (_, completion) = self.held.borrow_mut().remove(index);
        completion.complete(Ok(answer));
    }

    /// What it was asked since the last call.
    pub(super) fn log(&self) -> Vec<Request> {
        self.log.take()
    }

    /// Is not served, or is again.
    pub(super) fn is_served(&self, is_served: bool) {
        let refusal = (!is_served).then(|| Refusal::policy("this node is Secondary"));
        self.memory.set_refusal(refusal);
    }
}

impl BlockDevice for Disk {
    type Buffer = BytesMut;
    type Opening = ();

    fn info(&self, access: Access) -> Result<DeviceInfo, Refusal> {
        self.memory.info(access)
    }

    fn open(&self, access: Access) -> Result<(), Refusal> {
        self.memory.open(access)
    }

    async fn buffer(&self, len: usize) -> BytesMut {
        poll_fn(|cx| {
            let Some(left) = self.room.get().checked_sub(len) else {
                *self.wants_room.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            };
            self.room.set(left);
            Poll::Ready(BytesMut::zeroed(len))
        })
        .await
    }

    fn submit(&self, (): &(), request: Request, completion: Completion) {
        self.log.borrow_mut().push(request.clone());
        if self.holds.get() {
            self.held.borrow_mut().push((request, completion));
        } else {
            self.memory.submit(&(), request, completion);
        }
    }
}

// ---- a session ------------------------------------------------------------------------------

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A device that is served.
pub(super) struct Machine {
    pub(super) kernel: Kernel,
    pub(super) disk: Rc<Disk>,
    order: Option<watch::Sender<Go>>,
    pub(super) parked: watch::Receiver<bool>,
    session: Pin<Box<dyn Future<Output = (SessionEnd, Kernel)>>>,
    woken: Arc<Woken>,
    pub(super) end: Option<SessionEnd>,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self::with_info(DeviceInfo::new(SIZE))
    }

    pub(super) fn with_info(info: DeviceInfo) -> Self {
        let mut machine = Self::not_run(info, Go::On);
        machine.runs();
        machine
    }

    /// One that is given its order before it runs.
    pub(super) fn ordered(go: Go) -> Self {
        Self::not_run(DeviceInfo::new(SIZE), go)
    }

    fn not_run(info: DeviceInfo, go: Go) -> Self {
        let kernel = Kernel::new();
        let disk = Rc::new(Disk::new(info));
        let (order, orders) = watch::channel(go);
        let (tell, parked) = watch::channel(false);
        let session = serve(Rc::clone(&disk), (), kernel.clone(), orders, tell);
        Self {
            kernel,
            disk,
            order: Some(order),
            parked,
            session: Box::pin(session),
            woken: Arc::new(Woken(AtomicBool::new(true))),
            end: None,
        }
    }

    /// Polls the session once, if it was woken. Gives whether it was.
    pub(super) fn runs_once(&mut self) -> bool {
        if self.end.is_some() || !self.woken.0.swap(false, Ordering::Relaxed) {
            return false;
        }
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut context = Context::from_waker(&waker);
        if let Poll::Ready((end, _)) = self.session.as_mut().poll(&mut context) {
            self.end = Some(end);
        }
        true
    }

    /// Polls the session as long as something wakes it.
    pub(super) fn runs(&mut self) {
        while self.runs_once() {}
    }

    /// Orders, which the session finds when it runs.
    pub(super) fn orders(&self, go: Go) {
        self.order.as_ref().expect("ordered").send_replace(go);
    }

    pub(super) fn goes(&mut self, go: Go) {
        self.orders(go);
        self.runs();
    }

    /// Nobody orders any more.
    pub(super) fn is_abandoned(&mut self) {
        self.order = None;
        self.runs();
    }

    /// Asks, and gives what was answered up to then.
    pub(super) fn asks(
        &mut self,
        tag: Tag,
        descriptor: Descriptor,
        bytes: &[u8],
    ) -> Vec<(Tag, i32)> {
        self.kernel.asks(tag, descriptor, bytes);
        self.runs();
        self.kernel.results()
    }

    /// Whether it was told that something is parked since the last call; and whether something is.
    pub(super) fn told(&mut self) -> (bool, bool) {
        let is_news = self.parked.has_changed().unwrap_or(false);
        (is_news, *self.parked.borrow_and_update())
    }
}
