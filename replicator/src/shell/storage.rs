//! The disks of one data-plane thread: its ring, its memory, its stores, and who uses them.
//!
//! Keeps every open store of the thread, the [`disk`](super::disk)s and
//! [`metadata`](super::metadata) stores on them (both may lie in one file), and the operations that
//! wait for memory. Decides what they share: a store's flushes are gathered into one `fdatasync`, and
//! **a failed flush is final for that open store**, because the kernel's next one succeeds though the
//! data is lost. No later flush and no later write with FUA on it succeeds.
//!
//! There is no future for an operation. One loop owns the [`Storage`] and turns like this, with one
//! system call to submit however many operations a turn makes:
//!
//! ```no_run
//! # use kagami_replicator::core::disk::DiskOp;
//! # use kagami_replicator::shell::buffers::{Pool, PoolConfig};
//! # use kagami_replicator::shell::fence::StoreFile;
//! # use kagami_replicator::shell::storage::{Area, Storage, StorageCompletion};
//! # use std::{path::Path, time::Duration};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = Pool::new(&PoolConfig::default())?;
//! let mut storage = Storage::new(pool)?;
//! let file = StoreFile::open(Path::new("pg.img"), Duration::from_secs(5))?;
//! let area = Area { start: 0, len: file.capabilities().usable_from(0) };
//! let store = storage.add_store(file);
//! let disk = storage.add_disk(store, area);
//!
//! storage.submit(disk, 1, DiskOp::Flush); // queued, not yet submitted
//! let mut completions = Vec::new();
//! loop {
//!     // In the engine this is one arm of a `select!` beside the link, the front ends, the timer.
//!     storage.ready().await?;
//!     storage.drain(&mut completions)?;
//!     for completion in completions.drain(..) {
//!         match completion {
//!             StorageCompletion::Disk(done) => { /* the core's event; its actions submit more */ }
//!             StorageCompletion::Metadata(done) => { /* likewise */ }
//!         }
//!     }
//!     storage.submit_queued()?; // everything this turn asked for
//! #   break;
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use rustix::io::Errno;
use slab::Slab;

use super::buffers::{Buffer, PAGE, Pool, Share};
use super::disk::{Counters, Disk, DiskCompletion};
use super::fence::StoreFile;
use super::metadata::{MetadataCompletion, MetadataStore};
use super::probe::Capabilities;
use super::uring::{Completion, Operation, Payload, Ring, RingError};
use crate::core::disk::{DiskFault, DiskOp};

/// Bytes written at once where a range has to be zeroed by writing.
const ZERO_STEP: usize = 256 << 10;

/// An open store of this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId(u16);

/// A mirror's data on a store of this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskId(u16);

/// A mirror's metadata on a store of this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MetadataId(u16);

/// A part of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Bytes from the start of the store, a multiple of 4096.
    pub start: u64,
    /// Bytes, a multiple of 4096: the odd tail of a store is not part of any area.
    pub len: u64,
}

/// Something that [`Storage`] has finished.
#[derive(Debug)]
pub enum StorageCompletion {
    /// An operation of [`Storage::submit`].
    Disk(DiskCompletion),
    /// A submission of [`Storage::submit_metadata`].
    Metadata(MetadataCompletion),
}

/// Why there is no storage for this thread.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The pool is too small to work with.
    #[error("the buffer pool of {have} bytes is too small: give it at least 1 MiB")]
    PoolTooSmall {
        /// Bytes of the pool.
        have: usize,
    },
}

/// The disks of one data-plane thread.
#[derive(Debug)]
pub struct Storage {
    io: Io,
    disks: Slab<Disk>,
    metadata: Slab<MetadataStore>,
    /// Finished, and not yet drained.
    done: Vec<StorageCompletion>,
    /// Emptied and refilled at each drain.
    reaped: Vec<Completion>,
}

impl Storage {
    /// Storage for this thread, with memory from `pool`.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio (or tokio-uring) runtime.
    pub fn new(pool: Pool) -> Result<Self, StorageError> {
        let have = pool.stats().total;
        let mut zeroes = pool
            .alloc(ZERO_STEP.min(have / 16).max(PAGE), Share::Bounce)
            .filter(|_| have >= 1 << 20)
            .ok_or(StorageError::PoolTooSmall { have })?;
        zeroes.fill(0);
        Ok(Self {
            io: Io {
                ring: Ring::new()?,
                pool,
                zeroes: zeroes.freeze(),
                stores: Slab::new(),
                starved: VecDeque::new(),
                granted: None,
                answers: VecDeque::new(),
            },
            disks: Slab::new(),
            metadata: Slab::new(),
            done: Vec::new(),
            reaped: Vec::new(),
        })
    }

    /// Takes over an open, locked store. It stays open until [`Storage::remove_store`].
    pub fn add_store(&mut self, file: StoreFile) -> StoreId {
        let (file, capabilities) = file.into_parts();
        StoreId(index(self.io.stores.insert(OpenStore {
            file: Rc::new(file),
            capabilities,
            users: 0,
            flush: FlushState::default(),
            no_punch: false,
            no_zero_range: false,
        })))
    }

    /// Serves the data in `area` of a store.
    pub fn add_disk(&mut self, store: StoreId, area: Area) -> DiskId {
        self.io.use_store(store, area);
        let id = index(self.disks.vacant_key());
        self.disks.insert(Disk::new(DiskId(id), store, area));
        DiskId(id)
    }

    /// Serves the metadata in `area` of a store, which may hold a disk's data besides.
    pub fn add_metadata(&mut self, store: StoreId, area: Area) -> MetadataId {
        self.io.use_store(store, area);
        let id = index(self.metadata.vacant_key());
        self.metadata
            .insert(MetadataStore::new(MetadataId(id), store, area));
        MetadataId(id)
    }

    /// Forgets a disk. Its operations must have completed ([`Counters::in_flight`] is 0).
    pub fn remove_disk(&mut self, id: DiskId) {
        let disk = self.disks.remove(id.0.into());
        assert!(
            disk.is_idle(),
            "{id:?} is removed with operations in flight"
        );
        self.io.stores[disk.store.0.into()].users -= 1;
    }

    /// Forgets a metadata store. Its submissions must have completed.
    pub fn remove_metadata(&mut self, id: MetadataId) {
        let store = self.metadata.remove(id.0.into());
        assert!(store.is_idle(), "{id:?} is removed with writes in flight");
        self.io.stores[store.store.0.into()].users -= 1;
    }

    /// Closes a store that has no disk and no metadata any more; its locks go with it.
    pub fn remove_store(&mut self, id: StoreId) {
        let store = self.io.stores.remove(id.0.into());
        assert!(store.users == 0, "{id:?} is closed while it is used");
    }

    /// Queues an operation of the core; the answer comes as a [`DiskCompletion`] with the same `id`,
    /// which is the caller's to choose. Operations in flight at once must not overlap unless both
    /// read: the kernel keeps no order. Nothing reaches the kernel before
    /// [`Storage::submit_queued`] or [`Storage::ready`].
    pub fn submit(&mut self, disk: DiskId, id: u64, operation: DiskOp) {
        self.disks[disk.0.into()].submit(&mut self.io, id, operation, &mut self.done);
    }

    /// Queues a metadata update: the writes of the first step (offset in bytes from the start of the
    /// metadata, and bytes, both in multiples of 4096), made durable; then the next step's; and so
    /// on. A step without writes is a flush. Submissions are independent of each other.
    pub fn submit_metadata(&mut self, store: MetadataId, id: u64, steps: Vec<Vec<(u64, Bytes)>>) {
        self.metadata[store.0.into()].submit(&mut self.io, id, steps, &mut self.done);
    }

    /// Hands everything queued to the kernel. Call it once at the end of a turn of the loop.
    ///
    /// # Errors
    ///
    /// The ring is broken; nothing can be done with it any more.
    pub fn submit_queued(&mut self) -> io::Result<()> {
        self.settle();
        self.io.start_flushes();
        self.io.ring.submit()
    }

    /// Appends what has completed; never blocks.
    ///
    /// # Errors
    ///
    /// As [`Storage::submit_queued`].
    pub fn drain(&mut self, out: &mut Vec<StorageCompletion>) -> io::Result<()> {
        let mut reaped = std::mem::take(&mut self.reaped);
        let result = self.io.ring.drain(&mut reaped);
        for completion in reaped.drain(..) {
            self.dispatch(Tag::decode(completion.tag), completion.result);
        }
        self.reaped = reaped;
        self.settle();
        out.append(&mut self.done);
        result
    }

    /// Submits what is queued, and waits until [`Storage::drain`] may have something. Safe to drop
    /// at any await (for `select!`). Waits forever if nothing is in flight.
    ///
    /// # Errors
    ///
    /// As [`Storage::submit_queued`].
    pub async fn ready(&mut self) -> io::Result<()> {
        self.submit_queued()?;
        if !self.done.is_empty() {
            return Ok(());
        }
        let Some(starved) = self.io.starved.front() else {
            return self.io.ring.ready().await;
        };
        let wait = self.io.pool.wait_alloc(starved.len, starved.share);
        tokio::select! {
            result = self.io.ring.ready() => result,
            buffer = wait => {
                // Checked against the share's limit before it was queued.
                self.io.granted = buffer.ok();
                Ok(())
            }
        }
    }

    /// What the store can do.
    pub fn capabilities(&self, store: StoreId) -> &Capabilities {
        &self.io.stores[store.0.into()].capabilities
    }

    /// Whether the store has lost a flush, and with it the right to any other.
    pub fn is_flush_failed(&self, store: StoreId) -> bool {
        self.io.stores[store.0.into()].flush.failed.is_some()
    }

    /// What a disk has done so far.
    pub fn counters(&self, disk: DiskId) -> Counters {
        self.disks[disk.0.into()].counters()
    }

    /// The fault that ended a metadata store, if one did. Nothing is written to it afterwards.
    pub fn metadata_fault(&self, store: MetadataId) -> Option<DiskFault> {
        self.metadata[store.0.into()].fault()
    }

    /// The pool that this thread's reads take their memory from.
    pub fn pool(&self) -> &Pool {
        &self.io.pool
    }

    /// Lets operations that waited for memory start, and delivers what needed no kernel, until
    /// neither is left.
    fn settle(&mut self) {
        loop {
            while let Some((tag, answer)) = self.io.answers.pop_front() {
                self.dispatch(tag, answer);
            }
            let Some((tag, buffer)) = self.io.feed() else {
                return;
            };
            match tag.owner {
                Owner::Disk(index) => {
                    self.disks[index.into()].on_memory(&mut self.io, tag.slot, buffer);
                }
                Owner::Metadata(index) => {
                    self.metadata[index.into()].on_memory(&mut self.io, tag.slot, buffer);
                }
                Owner::Store(_) => unreachable!("a flush needs no memory"),
            }
        }
    }

    fn dispatch(&mut self, tag: Tag, answer: Answer) {
        match tag.owner {
            Owner::Store(index) => self.io.flushed(index, answer.err()),
            Owner::Disk(index) => {
                let disk = &mut self.disks[index.into()];
                disk.on_answer(&mut self.io, tag.slot, answer, &mut self.done);
            }
            Owner::Metadata(index) => {
                let store = &mut self.metadata[index.into()];
                store.on_answer(&mut self.io, tag.slot, answer.err(), &mut self.done);
            }
        }
    }
}

fn index(key: usize) -> u16 {
    u16::try_from(key).expect("no thread has 65,536 stores")
}

/// What the ring or a gathered flush says to the one who asked: a read's buffer, or nothing.
pub(super) type Answer = Result<Option<Buffer>, Errno>;

/// Who asked the ring for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Store(u16),
    Disk(u16),
    Metadata(u16),
}

/// An asker and its own number for what it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) owner: Owner,
    pub(super) slot: u32,
}

impl Tag {
    pub(super) fn disk(id: DiskId, slot: usize) -> Self {
        Self::new(Owner::Disk(id.0), slot)
    }

    pub(super) fn metadata(id: MetadataId, slot: usize) -> Self {
        Self::new(Owner::Metadata(id.0), slot)
    }

    fn new(owner: Owner, slot: usize) -> Self {
        let slot = u32::try_from(slot).expect("no disk has 2^32 operations in flight");
        Self { owner, slot }
    }

    fn encode(self) -> u64 {
        let (kind, index) = match self.owner {
            Owner::Store(index) => (0, index),
            Owner::Disk(index) => (1, index),
            Owner::Metadata(index) => (2, index),
        };
        kind << 48 | u64::from(index) << 32 | u64::from(self.slot)
    }

    fn decode(tag: u64) -> Self {
        let index = (tag >> 32) as u16;
        let owner = match tag >> 48 {
            0 => Owner::Store(index),
            1 => Owner::Disk(index),
            _ => Owner::Metadata(index),
        };
        Self {
            owner,
            slot: tag as u32,
        }
    }
}

/// What disks and metadata stores share: handed to them for the length of a call.
#[derive(Debug)]
pub(super) struct Io {
    ring: Ring,
    pub(super) pool: Pool,
    /// Zeroes to write from.
    pub(super) zeroes: Bytes,
    stores: Slab<OpenStore>,
    /// Operations that wait for memory, in order.
    starved: VecDeque<Starved>,
    /// Memory that came for the first of them.
    granted: Option<Buffer>,
    /// Answers that did not come from the ring.
    answers: VecDeque<(Tag, Answer)>,
}

#[derive(Debug)]
struct Starved {
    tag: Tag,
    len: usize,
    share: Share,
}

/// A store and what is known of its flushes.
#[derive(Debug)]
pub(super) struct OpenStore {
    file: Rc<File>,
    pub(super) capabilities: Capabilities,
    users: usize,
    flush: FlushState,
    /// The store has refused to punch holes, or to zero ranges.
    pub(super) no_punch: bool,
    pub(super) no_zero_range: bool,
}

/// At most one `fdatasync` of a store is under way, so that its result can't be taken for that of an
/// earlier one; who asks meanwhile is served by the next, all together.
#[derive(Debug, Default)]
struct FlushState {
    under_way: Vec<Tag>,
    waiting: Vec<Tag>,
    failed: Option<Errno>,
}

impl Io {
    fn use_store(&mut self, store: StoreId, area: Area) {
        let store = &mut self.stores[store.0.into()];
        let page = PAGE as u64;
        assert!(
            area.start.is_multiple_of(page) && area.len.is_multiple_of(page),
            "{area:?} is not in whole blocks"
        );
        assert!(
            area.len <= store.capabilities.usable_from(area.start),
            "{area:?} is larger than the store ({} bytes)",
            store.capabilities.size
        );
        store.users += 1;
    }

    pub(super) fn store(&mut self, store: StoreId) -> &mut OpenStore {
        &mut self.stores[store.0.into()]
    }

    pub(super) fn push(&mut self, store: StoreId, tag: Tag, offset: u64, operation: Operation) {
        let file = &self.stores[store.0.into()].file;
        self.ring.push(tag.encode(), file, offset, operation);
    }

    pub(super) fn write(
        &mut self,
        store: StoreId,
        tag: Tag,
        offset: u64,
        data: Payload,
        dsync: bool,
    ) {
        self.push(store, tag, offset, Operation::Write { data, dsync });
    }

    /// Whether the store can write from this memory without a copy.
    pub(super) fn is_aligned(&self, store: StoreId, data: &[u8]) -> bool {
        let align = self.stores[store.0.into()].capabilities.memory_align;
        data.as_ptr().addr().is_multiple_of(align)
    }

    /// Flushes the store once everything that has completed by now is covered; answers `tag`.
    pub(super) fn flush(&mut self, store: StoreId, tag: Tag) {
        let flush = &mut self.stores[store.0.into()].flush;
        if let Some(error) = flush.failed {
            self.answers.push_back((tag, Err(error)));
        } else {
            flush.waiting.push(tag);
        }
    }

    /// The error of the flush that was lost, if one was.
    pub(super) fn flush_failure(&self, store: StoreId) -> Option<Errno> {
        self.stores[store.0.into()].flush.failed
    }

    /// Notes that the store has lost a flush (or a durable write, which contains one).
    pub(super) fn fail_flushes(&mut self, store: StoreId, error: Errno) {
        let flush = &mut self.stores[store.0.into()].flush;
        flush.failed.get_or_insert(error);
        for tag in flush.waiting.drain(..) {
            self.answers.push_back((tag, Err(error)));
        }
    }

    /// Begins a flush for every store that has asked and has none under way.
    fn start_flushes(&mut self) {
        for (index, store) in &mut self.stores {
            if !store.flush.waiting.is_empty() && store.flush.under_way.is_empty() {
                std::mem::swap(&mut store.flush.waiting, &mut store.flush.under_way);
                let tag = Tag::new(Owner::Store(index as u16), 0);
                self.ring
                    .push(tag.encode(), &store.file, 0, Operation::Sync);
            }
        }
    }

    /// The flush under way has ended.
    fn flushed(&mut self, index: u16, error: Option<Errno>) {
        if let Some(error) = error {
            self.fail_flushes(StoreId(index), error);
        }
        let flush = &mut self.stores[index.into()].flush;
        // A durable write may have failed while this one ran: its lost data may be this flush's too.
        let failed = flush.failed;
        for tag in flush.under_way.drain(..) {
            self.answers.push_back((tag, failed.map_or(Ok(None), Err)));
        }
    }

    /// Queues `tag` for `len` bytes of memory; the owner's `on_memory` gets them. First come, first
    /// served; whoever wants memory while others wait goes behind them.
    pub(super) fn starve(&mut self, tag: Tag, len: usize, share: Share) {
        if len > self.pool.limit(share) {
            self.answers.push_back((tag, Err(Errno::NOMEM)));
        } else {
            self.starved.push_back(Starved { tag, len, share });
        }
    }

    /// Memory at once, unless somebody waits for some already.
    pub(super) fn alloc(&mut self, len: usize, share: Share) -> Option<Buffer> {
        if self.starved.is_empty() {
            self.pool.alloc(len, share)
        } else {
            None
        }
    }

    /// The first of those who wait, with its memory, if there is some.
    fn feed(&mut self) -> Option<(Tag, Buffer)> {
        let first = self.starved.front()?;
        let buffer = self
            .granted
            .take()
            .or_else(|| self.pool.alloc(first.len, first.share))?;
        let first = self.starved.pop_front()?;
        assert!(buffer.len() == first.len, "memory of another's length");
        Some((first.tag, buffer))
    }
}

/// How the core names an error of the kernel.
pub(super) fn fault(error: Errno) -> DiskFault {
    match error {
        Errno::NOSPC | Errno::DQUOT => DiskFault::NoSpace,
        other => DiskFault::Io(other.raw_os_error()),
    }
}
