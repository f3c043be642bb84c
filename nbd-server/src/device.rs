//! What a front end asks of a block device, and what the device answers.
//!
//! A device is driven by [`BlockDevice::submit`]: a [`Request`] goes in together with a
//! [`Completion`], and the device completes it when it likes, in any order, also within `submit`.
//! Nothing is boxed or spawned for a request, and a payload is never copied: a write's bytes were
//! read from the socket into memory that the device itself gave ([`BlockDevice::buffer`]), a
//! read's bytes go to the socket from where the device left them.
//!
//! The front end has checked ranges, alignment, flags and read-only exports before a request gets
//! here. The order of overlapping requests in flight is the device's to decide.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

/// A block device that front ends serve. One thread owns it; `&self` is shared by all sessions.
///
/// # A connection's life, as the device sees it
///
/// 1. [`open`](Self::open) at the end of the handshake; a refusal goes to the client as text.
/// 2. [`submit`](Self::submit) for each request, with the opening of its session.
/// 3. The session ends: the client said goodbye, died, or was cut off. **What was submitted runs
///    on to its completion** and its answers are dropped; nothing parsed but not yet submitted is
///    submitted any more, bytes still unread in the socket are dropped with it.
/// 4. When the last completion is in, the [`Opening`](Self::Opening) is dropped. So a device without openings has
///    no request of a front end in flight, and a session reported as ended never writes again.
pub trait BlockDevice: 'static {
    /// Memory for the payload of a write.
    type Buffer: WriteBuffer;

    /// What keeps the device open for a session, and what the device remembers of it; dropped at its end.
    type Opening: 'static;

    /// What clients are told about the device at this moment; asked for by listings as well, so
    /// it opens nothing.
    ///
    /// # Errors
    /// A refusal to be served at all (a Secondary names the node that is Primary).
    fn info(&self, access: Access) -> Result<DeviceInfo, Refusal>;

    /// Admits one more session. The guard is dropped when the session's last request is done.
    ///
    /// What the client was told by [`info`](Self::info) just before stays valid for the session;
    /// the device must itself refuse requests that no longer fit: after a demotion, say, also those of a
    /// session that outlived it, for what its client remembers may be true no more.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    fn open(&self, access: Access) -> Result<Self::Opening, Refusal>;

    /// Gives memory for a write's payload of exactly `len` bytes (at most
    /// [`DeviceInfo::max_payload`]), waiting while there is none: that is the back-pressure that a
    /// client feels. Dropping the future gives up the wait.
    fn buffer(&self, len: usize) -> impl Future<Output = Self::Buffer>;

    /// Starts a request of the session that has `opening`. Never blocks; `completion` may be used before this
    /// returns.
    fn submit(&self, opening: &Self::Opening, request: Request, completion: Completion);
}

/// How an export is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Clients can't write, whatever the device allows.
    ReadOnly,
    /// Clients may write, unless [`DeviceInfo::read_only`] says otherwise.
    ReadWrite,
}

/// Memory that a payload is read into and that then travels as [`Bytes`].
pub trait WriteBuffer: AsMut<[u8]> + 'static {
    /// Ends writing to the memory.
    fn freeze(self) -> Bytes;
}

impl WriteBuffer for BytesMut {
    fn freeze(self) -> Bytes {
        Self::freeze(self)
    }
}

/// What clients are told about a device.
// Each of them is a flag of the protocol.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Bytes, a multiple of `min_block`.
    pub size: u64,
    /// The smallest unit of offsets and lengths: a power of two, 1 to 65536, normally 512 or 4096.
    pub min_block: u32,
    /// What a request should be a multiple of: a power of two, at least `min_block` and 512.
    pub preferred_block: u32,
    /// The longest payload of a read or a write, in bytes; at least `preferred_block`.
    pub max_payload: u32,
    /// Nothing can be written.
    pub read_only: bool,
    /// Several connections see one device: what one has flushed is durable for all, and a write
    /// answered on one is read by every other.
    pub multi_conn: bool,
    /// The disks below have seek times.
    pub rotational: bool,
    /// [`Request::Trim`] does something.
    pub trim: bool,
    /// [`Request::WriteZeroes`] with `fast` may succeed.
    pub fast_zero: bool,
    /// [`Request::Cache`] does something.
    pub cache: bool,
    /// [`Request::BlockStatus`] knows what the peer lacks (`kagami:dirty` is offered).
    pub dirty: bool,
}

impl DeviceInfo {
    /// A writable device of `size` bytes with 512-byte sectors that prefers 4 KiB, takes 32 MiB in
    /// one request, trims, and may be used over several connections.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            min_block: 512,
            preferred_block: 4096,
            max_payload: DEFAULT_MAX_PAYLOAD,
            read_only: false,
            multi_conn: true,
            rotational: false,
            trim: true,
            fast_zero: true,
            cache: true,
            dirty: true,
        }
    }

    /// Panics where the numbers break what the NBD protocol demands of them ("Size constraints").
    pub fn assert_valid(&self) {
        let Self {
            size,
            min_block,
            preferred_block,
            max_payload,
            ..
        } = *self;
        assert!(
            min_block.is_power_of_two() && min_block <= 65536,
            "min_block {min_block}"
        );
        assert!(
            preferred_block.is_power_of_two() && preferred_block >= min_block.max(512),
            "preferred_block {preferred_block}, min_block {min_block}"
        );
        assert!(max_payload >= preferred_block, "max_payload {max_payload}");
        assert!(
            size.is_multiple_of(u64::from(min_block)),
            "size {size}, min_block {min_block}"
        );
    }
}

/// The payload that every client may count on (NBD, "Size constraints"): 32 MiB.
pub const DEFAULT_MAX_PAYLOAD: u32 = 1 << 25;

/// A device that is not served, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Which of the protocol's errors the client gets.
    pub kind: RefusalKind,
    /// The sentence that the client's user reads: the facts and the next step.
    pub message: String,
}

/// The protocol's words for not serving an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The export is known, its state or the configuration forbids it (`NBD_REP_ERR_POLICY`).
    Policy,
    /// There is no such export now (`NBD_REP_ERR_UNKNOWN`).
    Unknown,
    /// It is being shut down (`NBD_REP_ERR_SHUTDOWN`).
    Shutdown,
}

impl Refusal {
    /// A refusal because of state or configuration.
    pub fn policy(message: impl Into<String>) -> Self {
        Self {
            kind: RefusalKind::Policy,
            message: message.into(),
        }
    }
}

/// One operation. Offsets and lengths are bytes, multiples of [`DeviceInfo::min_block`], inside
/// the device's size, and never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Answer: [`Answer::Data`] of exactly `len` bytes.
    Read {
        /// Where.
        offset: u64,
        /// How many bytes, at most [`DeviceInfo::max_payload`].
        len: u32,
    },
    /// Answer: [`Answer::Done`].
    Write {
        /// Where.
        offset: u64,
        /// The payload, in memory from [`BlockDevice::buffer`].
        data: Bytes,
        /// Durable when answered.
        fua: bool,
    },
    /// Every write answered before this was submitted, on any connection, is durable when this is
    /// answered. Answer: [`Answer::Done`].
    Flush,
    /// The range is no longer needed; what it reads as afterwards is the device's choice.
    /// Answer: [`Answer::Done`].
    Trim {
        /// Where.
        offset: u64,
        /// How many bytes, up to 4 GiB - 1.
        len: u32,
        /// Durable when answered.
        fua: bool,
    },
    /// The range reads as zeroes from now on. Answer: [`Answer::Done`].
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How many bytes, up to 4 GiB - 1.
        len: u32,
        /// Durable when answered.
        fua: bool,
        /// The range must stay allocated (no hole).
        no_hole: bool,
        /// Fail with [`Errno::NotSup`], changing nothing, unless this is faster than writing.
        fast: bool,
    },
    /// A hint that the range will be read soon. Answer: [`Answer::Done`].
    Cache {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// What is known about the range. Answer: [`Answer::Status`].
    BlockStatus {
        /// Where.
        offset: u64,
        /// How many bytes are of interest; a shorter answer is allowed, not an empty one.
        len: u32,
        /// Allocation is asked for.
        allocation: bool,
        /// What the peer lacks is asked for.
        dirty: bool,
        /// Stop after so many extents of each kind (1 if the client wants one).
        max_extents: usize,
    },
}

/// What a completed request gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// The bytes of a read.
    Data(ReadData),
    /// The extents of a block status, in order from the request's offset without gaps. A kind that
    /// was asked for has at least one extent, each of at least one byte; past the request's end
    /// they are cut off.
    Status {
        /// Allocation, empty if it was not asked for.
        allocation: Vec<Extent>,
        /// What the peer lacks, empty if it was not asked for.
        dirty: Vec<DirtyExtent>,
    },
}

/// The bytes of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadData {
    /// All of them in one piece.
    Whole(Bytes),
    /// The whole range reads as zeroes.
    Zeroes,
    /// In order; the lengths sum up to the request's. Empty parts are allowed.
    Parts(Vec<ReadPart>),
}

/// One piece of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadPart {
    /// Bytes.
    Data(Bytes),
    /// So many zero bytes, sent as a hole to clients that understand holes.
    Zeroes(u32),
}

impl ReadPart {
    /// Bytes that the part stands for.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(len) => u64::from(*len),
        }
    }

    /// Whether it stands for no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a stretch of the device is stored (`base:allocation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// Not allocated: a write may meet a full disk.
    pub hole: bool,
    /// Known to read as zeroes.
    pub zero: bool,
}

/// Whether the peer lacks a stretch of the device (`kagami:dirty`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyExtent {
    /// Bytes.
    pub len: u64,
    /// The peer lacks it, or may lack it.
    pub dirty: bool,
}

/// The errors that the NBD protocol knows ("Error values"), with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// `NBD_EPERM`: not permitted; a write to a read-only export.
    Perm = 1,
    /// `NBD_EIO`.
    Io = 5,
    /// `NBD_ENOMEM`.
    NoMem = 12,
    /// `NBD_EINVAL`: the request is wrong.
    Inval = 22,
    /// `NBD_ENOSPC`: the store is full, or a write past the end.
    NoSpc = 28,
    /// `NBD_EOVERFLOW`: too long.
    Overflow = 75,
    /// `NBD_ENOTSUP`: zeroing would not be fast.
    NotSup = 95,
    /// `NBD_ESHUTDOWN`: the server is going away.
    Shutdown = 108,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoError {
    /// Which of the protocol's errors.
    pub code: Errno,
    /// Where in the device, if known: inside the request's range.
    pub offset: Option<u64>,
    /// A sentence for the client's user; clients without structured replies don't get it.
    pub message: Cow<'static, str>,
}

impl IoError {
    /// A failure of the whole request.
    pub fn new(code: Errno, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            offset: None,
            message: message.into(),
        }
    }

    /// A failure at one place of the range.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if let Some(offset) = self.offset {
            write!(f, " (at byte {offset})")?;
        }
        Ok(())
    }
}

impl std::error::Error for IoError {}

impl From<Errno> for IoError {
    fn from(code: Errno) -> Self {
        Self::new(code, "")
    }
}

/// The right and duty to answer one request, exactly once.
///
/// Dropped unanswered it answers [`Errno::Io`]: a device that is torn down loses no client.
pub struct Completion {
    sink: Option<Rc<dyn CompletionSink>>,
    ticket: u64,
}

/// Who collects answers: a session, or another front end.
pub trait CompletionSink {
    /// The request that was submitted under `ticket` is done. Called once for each completion,
    /// perhaps within [`BlockDevice::submit`]; must not call the device.
    fn complete(&self, ticket: u64, result: Result<Answer, IoError>);
}

impl Completion {
    /// A completion that answers to `sink` under `ticket`.
    pub fn new(sink: Rc<dyn CompletionSink>, ticket: u64) -> Self {
        Self {
            sink: Some(sink),
            ticket,
        }
    }

    /// Answers the request.
    pub fn complete(mut self, result: Result<Answer, IoError>) {
        if let Some(sink) = self.sink.take() {
            sink.complete(self.ticket, result);
        }
    }

    /// Answers that the request is done.
    pub fn done(self) {
        self.complete(Ok(Answer::Done));
    }

    /// Answers that the request failed.
    pub fn fail(self, error: impl Into<IoError>) {
        self.complete(Err(error.into()));
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            let lost = IoError::new(Errno::Io, "the device went away before it answered");
            sink.complete(self.ticket, Err(lost));
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}
