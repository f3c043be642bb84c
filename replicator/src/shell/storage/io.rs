//! What disks and metadata stores share: the ring, the open stores, flushes, waiting for memory.
//!
//! Keeps one flush of a store under way at a time and gathers those that ask meanwhile. Operations that
//! wait for memory are in order for each share of the pool and each disk, so that reads whose memory
//! clients keep hold up neither metadata nor another disk. Every answer goes back to its asker by [`Tag`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use rustix::io::Errno;
use slab::Slab;

use super::super::buffers::{Account, Buffer, PAGE, Pool, Share};
use super::super::fence::StoreFile;
use super::super::probe::Capabilities;
use super::super::uring::{Operation, Payload, Ring};
use super::{Area, DiskId, MetadataId, StoreId};
use crate::core::disk::DiskFault;

/// What the ring or a gathered flush says to the one who asked: a read's buffer, or nothing.
pub(in crate::shell) type Answer = Result<Option<Buffer>, Errno>;

/// Who asked the ring for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shell) enum Owner {
    Store(u16),
    Disk(u16),
    Metadata(u16),
}

/// An asker and its own number for what it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shell) struct Tag {
    pub(in crate::shell) owner: Owner,
    pub(in crate::shell) slot: u32,
}

impl Tag {
    pub(in crate::shell) fn disk(id: DiskId, slot: usize) -> Self {
        Self::new(Owner::Disk(id.0), slot)
    }

    pub(in crate::shell) fn metadata(id: MetadataId, slot: usize) -> Self {
        Self::new(Owner::Metadata(id.0), slot)
    }

    fn new(owner: Owner, slot: usize) -> Self {
        let slot = u32::try_from(slot).expect("no disk has 2^32 operations in flight");
        Self { owner, slot }
    }

    pub(super) fn encode(self) -> u64 {
        let (kind, index) = match self.owner {
            Owner::Store(index) => (0, index),
            Owner::Disk(index) => (1, index),
            Owner::Metadata(index) => (2, index),
        };
        kind << 48 | u64::from(index) << 32 | u64::from(self.slot)
    }

    pub(super) fn decode(tag: u64) -> Self {
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
pub(in crate::shell) struct Io {
    pub(super) ring: Ring,
    pub(in crate::shell) pool: Pool,
    /// Zeroes to write from.
    pub(in crate::shell) zeroes: Bytes,
    pub(super) stores: Slab<OpenStore>,
    /// What the reads of a disk are charged to, where it is not the pool alone.
    pub(super) accounts: Vec<Option<Account>>,
    /// Operations that wait for memory, in order for each kind; deeper shares first. No queue is empty.
    pub(super) starved: BTreeMap<Kind, VecDeque<Starved>>,
    /// Memory that came for the first of a kind.
    pub(super) granted: Option<(Kind, Buffer)>,
    /// Answers that did not come from the ring.
    pub(super) answers: VecDeque<(Tag, Answer)>,
}

/// Who waits for memory in one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    share: Reverse<Share>,
    /// Whose account is charged.
    disk: Option<u16>,
}

impl Kind {
    fn of(share: Share, disk: Option<DiskId>) -> Self {
        Self {
            share: Reverse(share),
            disk: disk.map(|disk| disk.0),
        }
    }
}

#[derive(Debug)]
pub(super) struct Starved {
    tag: Tag,
    pub(super) len: usize,
}

/// A store and what is known of its flushes.
#[derive(Debug)]
pub(in crate::shell) struct OpenStore {
    file: Rc<File>,
    pub(in crate::shell) capabilities: Capabilities,
    pub(super) users: usize,
    pub(super) flush: FlushState,
    /// The store has refused to punch holes, or to zero ranges.
    pub(in crate::shell) no_punch: bool,
    pub(in crate::shell) no_zero_range: bool,
}

/// At most one `fdatasync` of a store is under way, so that its result can't be taken for that of an
/// earlier one; who asks meanwhile is served by the next, all together.
#[derive(Debug, Default)]
pub(super) struct FlushState {
    under_way: Vec<Tag>,
    waiting: Vec<Tag>,
    pub(super) failed: Option<Errno>,
}

impl OpenStore {
    pub(super) fn new(file: StoreFile) -> Self {
        let (file, capabilities) = file.into_parts();
        Self {
            file: Rc::new(file),
            capabilities,
            users: 0,
            flush: FlushState::default(),
            no_punch: false,
            no_zero_range: false,
        }
    }
}

impl Io {
    pub(super) fn new(ring: Ring, pool: Pool, zeroes: Bytes) -> Self {
        Self {
            ring,
            pool,
            zeroes,
            stores: Slab::new(),
            starved: BTreeMap::new(),
            accounts: Vec::new(),
            granted: None,
            answers: VecDeque::new(),
        }
    }

    pub(super) fn use_store(&mut self, store: StoreId, area: Area) {
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

    pub(in crate::shell) fn store(&mut self, store: StoreId) -> &mut OpenStore {
        &mut self.stores[store.0.into()]
    }

    pub(in crate::shell) fn push(
        &mut self,
        store: StoreId,
        tag: Tag,
        offset: u64,
        operation: Operation,
    ) {
        let file = &self.stores[store.0.into()].file;
        self.ring.push(tag.encode(), file, offset, operation);
    }

    pub(in crate::shell) fn write(
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
    pub(in crate::shell) fn is_aligned(&self, store: StoreId, data: &[u8]) -> bool {
        let align = self.stores[store.0.into()].capabilities.memory_align;
        data.as_ptr().addr().is_multiple_of(align)
    }

    /// Flushes the store once everything that has completed by now is covered; answers `tag`.
    pub(in crate::shell) fn flush(&mut self, store: StoreId, tag: Tag) {
        let flush = &mut self.stores[store.0.into()].flush;
        if let Some(error) = flush.failed {
            self.answers.push_back((tag, Err(error)));
        } else {
            flush.waiting.push(tag);
        }
    }

    /// The error of the flush that was lost, if one was.
    pub(in crate::shell) fn flush_failure(&self, store: StoreId) -> Option<Errno> {
        self.stores[store.0.into()].flush.failed
    }

    /// Notes that the store has lost a flush (or a durable write, which contains one).
    pub(in crate::shell) fn fail_flushes(&mut self, store: StoreId, error: Errno) {
        let flush = &mut self.stores[store.0.into()].flush;
        flush.failed.get_or_insert(error);
        for tag in flush.waiting.drain(..) {
            self.answers.push_back((tag, Err(error)));
        }
    }

    /// Begins a flush for every store that has asked and has none under way.
    pub(super) fn start_flushes(&mut self) {
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
    pub(super) fn flushed(&mut self, index: u16, error: Option<Errno>) {
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

    /// Memory for a copy, at once, unless somebody waits for some already.
    pub(in crate::shell) fn alloc_copy(&mut self, len: usize) -> Option<Buffer> {
        self.alloc(len, Kind::of(Share::Bounce, None))
    }

    /// Queues `tag` for the memory of a copy; the owner's `on_memory` gets it. First come, first
    /// served; whoever wants memory while others of its kind or of a deeper share wait goes behind them.
    pub(in crate::shell) fn starve_copy(&mut self, tag: Tag, len: usize) {
        self.starve(tag, len, Kind::of(Share::Bounce, None));
    }

    /// As [`Io::alloc_copy`], for a read of `disk`.
    pub(in crate::shell) fn alloc_read(&mut self, len: usize, disk: DiskId) -> Option<Buffer> {
        self.alloc(len, Kind::of(Share::Read, Some(disk)))
    }

    /// As [`Io::starve_copy`], for a read of `disk`.
    pub(in crate::shell) fn starve_read(&mut self, tag: Tag, len: usize, disk: DiskId) {
        self.starve(tag, len, Kind::of(Share::Read, Some(disk)));
    }

    fn starve(&mut self, tag: Tag, len: usize, kind: Kind) {
        if len > self.pool.limit(kind.share.0) {
            self.answers.push_back((tag, Err(Errno::NOMEM)));
        } else {
            let queue = self.starved.entry(kind).or_default();
            queue.push_back(Starved { tag, len });
        }
    }

    fn alloc(&mut self, len: usize, kind: Kind) -> Option<Buffer> {
        let is_before = |first: &Kind| first.share < kind.share || *first == kind;
        if !self.starved.is_empty() && self.starved.keys().any(is_before) {
            return None;
        }
        self.take(len, kind)
    }

    fn take(&self, len: usize, kind: Kind) -> Option<Buffer> {
        match self.account(kind) {
            Some(account) => account.alloc(len, kind.share.0),
            None => self.pool.alloc(len, kind.share.0),
        }
    }

    fn account(&self, kind: Kind) -> Option<&Account> {
        self.accounts.get(usize::from(kind.disk?))?.as_ref()
    }

    /// Waits until the first of some kind has its memory.
    pub(super) fn wait_for_memory(&self) -> impl Future<Output = (Kind, Buffer)> + use<> {
        let mut waits: Vec<_> = self
            .starved
            .iter()
            .filter_map(|(kind, queue)| {
                let (len, share) = (queue.front()?.len, kind.share.0);
                let wait = match self.account(*kind) {
                    Some(account) => account.wait_alloc(len, share),
                    None => self.pool.wait_alloc(len, share),
                };
                Some((*kind, wait))
            })
            .collect();
        poll_fn(move |context| {
            for (kind, wait) in &mut waits {
                // Checked against the share's limit before it was queued.
                if let Poll::Ready(Ok(buffer)) = Pin::new(wait).poll(context) {
                    return Poll::Ready((*kind, buffer));
                }
            }
            Poll::Pending
        })
    }

    /// The first of a kind that waits, with its memory, if there is some.
    pub(super) fn feed(&mut self) -> Option<(Tag, Buffer)> {
        let (kind, buffer) = self.granted.take().or_else(|| {
            self.starved.iter().find_map(|(kind, queue)| {
                let buffer = self.take(queue.front()?.len, *kind)?;
                Some((*kind, buffer))
            })
        })?;
        let queue = self.starved.get_mut(&kind)?;
        let first = queue.pop_front()?;
        if queue.is_empty() {
            self.starved.remove(&kind);
        }
        assert!(buffer.len() == first.len, "memory of another's length");
        Some((first.tag, buffer))
    }
}

/// How the core names an error of the kernel.
pub(in crate::shell) fn fault(error: Errno) -> DiskFault {
    match error {
        Errno::NOSPC | Errno::DQUOT => DiskFault::NoSpace,
        other => DiskFault::Io(other.raw_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::super::{DiskId, MetadataId, Storage, StorageCompletion, StoreId};
    use super::{Area, Bytes, Errno, Pool, StoreFile};
    use crate::core::disk::{DiskFault, DiskOp};
    use crate::shell::buffers::PoolConfig;
    use crate::shell::store::create_backing_file;

    /// Half a store as a disk and half as a metadata store.
    struct Halves {
        storage: Storage,
        store: StoreId,
        disk: DiskId,
        metadata: MetadataId,
    }

    impl Halves {
        fn of(file: StoreFile) -> Self {
            let pool = Pool::new(&PoolConfig::with_bytes(2 << 20)).expect("memory");
            let mut storage = Storage::new(pool).expect("storage");
            let store = storage.add_store(file);
            let half = |start| Area {
                start,
                len: 1 << 19,
            };
            Self {
                disk: storage.add_disk(store, half(0)),
                metadata: storage.add_metadata(store, half(1 << 19)),
                storage,
                store,
            }
        }

        /// The results of so many operations, by their ids.
        async fn results(&mut self, count: usize) -> Vec<(u64, Result<(), DiskFault>)> {
            let (mut drained, mut results) = (Vec::new(), Vec::new());
            while results.len() < count {
                self.storage.ready().await.expect("ring");
                self.storage.drain(&mut drained).expect("ring");
                results.extend(drained.drain(..).map(|completion| match completion {
                    StorageCompletion::Disk(done) => (done.id, done.result.map(|_| ())),
                    StorageCompletion::Metadata(done) => (done.id, done.result),
                }));
            }
            results.sort_by_key(|result| result.0);
            results
        }
    }

    /// A store of 1 MiB. Beside the test's binary: the build's file system has direct I/O, /tmp may have none.
    fn store() -> (tempfile::TempDir, PathBuf) {
        let binary = std::env::current_exe().expect("a binary");
        let beside = binary.parent().expect("a folder");
        let folder = tempfile::tempdir_in(beside).expect("a folder");
        let path = folder.path().join("store");
        drop(create_backing_file(&path, 1 << 20, true).expect("a store"));
        (folder, path)
    }

    fn write(data: Bytes, fua: bool) -> DiskOp {
        DiskOp::Write {
            offset: 0,
            data,
            fua,
        }
    }

    /// No kernel makes a flush fail on demand without a device made for it, so the loss is noted by
    /// hand; what follows from it is real.
    #[test]
    fn a_lost_flush_is_final_for_the_store() {
        let (_folder, path) = store();
        crate::shell::runtime::start(async {
            let file = StoreFile::open(&path, Duration::ZERO).expect("free");
            let mut halves = Halves::of(file);
            let (disk, metadata, store) = (halves.disk, halves.metadata, halves.store);
            let storage = &mut halves.storage;
            let block = || Bytes::from_static(&[7; 4096]);

            storage.submit(disk, 1, DiskOp::Flush);
            storage.io.fail_flushes(store, Errno::IO);
            storage.submit(disk, 2, DiskOp::Flush);
            storage.submit(disk, 3, write(block(), true));
            let zero = DiskOp::Zero {
                offset: 0,
                len: 4096,
                unmap: true,
                fua: true,
            };
            storage.submit(disk, 4, zero);
            storage.submit(disk, 5, write(block(), false));
            storage.submit_metadata(metadata, 6, vec![vec![(0, block())]]);
            let lost = Err(DiskFault::Io(Errno::IO.raw_os_error()));
            assert_eq!(
                halves.results(6).await,
                [
                    (1, lost),
                    (2, lost),
                    (3, lost),
                    (4, lost),
                    (5, Ok(())),
                    (6, lost)
                ]
            );
        });
    }

    #[test]
    fn durable_writes_work_without_synchronous_ones() {
        #[repr(align(4096))]
        struct Page([u8; 4096]);
        static ALIGNED: Page = Page([1; 4096]);
        let (_folder, path) = store();
        crate::shell::runtime::start(async {
            let mut file = StoreFile::open(&path, Duration::ZERO).expect("free");
            file.avoid_dsync();
            let mut halves = Halves::of(file);
            let unaligned = Bytes::from(vec![2; 4097]).slice(1..);
            for data in [Bytes::from_static(&ALIGNED.0), unaligned] {
                let steps = vec![vec![(0, data.clone())]];
                halves
                    .storage
                    .submit(halves.disk, 1, write(data.clone(), true));
                halves.storage.submit_metadata(halves.metadata, 2, steps);
                assert_eq!(halves.results(2).await, [(1, Ok(())), (2, Ok(()))]);
                let stored = std::fs::read(&path).expect("a store");
                assert_eq!(stored[..4096], data[..]);
                assert_eq!(stored[1 << 19..][..4096], data[..]);
            }
        });
    }
}
