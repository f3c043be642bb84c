//! What disks and metadata stores share: the ring, the open stores, flushes, memory.
//!
//! Keeps one flush of a store under way at a time and gathers those that ask meanwhile. Every answer goes back to
//! its asker by [`Tag`].

use std::collections::VecDeque;
use std::fs::File;
use std::rc::Rc;

use bytes::Bytes;
use rustix::io::Errno;
use slab::Slab;

use super::super::buffers::{Buffer, PAGE, Pool, Share};
use super::super::fence::StoreFile;
use super::super::probe::Capabilities;
use super::super::uring::{Operation, Payload, Ring};
use super::memory::{Kind, Memory};
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
    pub(super) memory: Memory,
    /// Answers that did not come from the ring.
    pub(super) answers: VecDeque<(Tag, Answer)>,
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
            memory: Memory::of(pool.clone()),
            pool,
            zeroes,
            stores: Slab::new(),
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
        self.memory.alloc(len, Kind::of(Share::Bounce, None))
    }

    /// Queues `tag` for the memory of a copy; the owner's `on_memory` gets it. First come, first
    /// served; whoever wants memory while others of its kind or of a deeper share wait goes behind them.
    pub(in crate::shell) fn starve_copy(&mut self, tag: Tag, len: usize) {
        self.starve(tag, len, (Share::Bounce, None));
    }

    /// As [`Io::alloc_copy`], for a read of `disk`.
    pub(in crate::shell) fn alloc_read(&mut self, len: usize, disk: DiskId) -> Option<Buffer> {
        self.memory.alloc(len, Kind::of(Share::Read, Some(disk)))
    }

    /// As [`Io::starve_copy`], for a read of `disk`.
    pub(in crate::shell) fn starve_read(&mut self, tag: Tag, len: usize, disk: DiskId) {
        self.starve(tag, len, (Share::Read, Some(disk)));
    }

    fn starve(&mut self, tag: Tag, len: usize, kind: (Share, Option<DiskId>)) {
        if len > self.pool.limit(kind.0) {
            self.answers.push_back((tag, Err(Errno::NOMEM)));
        } else {
            self.memory.wait(tag, len, Kind::of(kind.0, kind.1));
        }
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

    /// A long read waits for its turn, and short ones of another disk, which keep coming, don't pass it for ever.
    #[test]
    fn a_long_read_gets_its_turn() {
        let (_folder, path) = store();
        crate::shell::runtime::start(async {
            let config = PoolConfig {
                bytes: 1 << 20,
                ..PoolConfig::with_bytes(1 << 20)
            };
            let pool = Pool::new(&config).expect("memory");
            let mut storage = Storage::new(pool.clone()).expect("storage");
            let store = storage.add_store(StoreFile::open(&path, Duration::ZERO).expect("free"));
            let len = 1 << 20;
            let [short, long] = [(); 2].map(|()| {
                let disk = storage.add_disk(store, Area { start: 0, len });
                storage.charge_reads(disk, pool.open_account());
                disk
            });
            let read = |len| DiskOp::Read { offset: 0, len };
            // More than its half of what reads may have.
            let long_len = 600 << 10;
            // What clients keep of the other disk's reads: as much as they get.
            let mut kept = std::collections::VecDeque::new();
            let mut drained = Vec::new();
            for id in 0..1000 {
                storage.submit(short, id, read(4096));
            }
            let (mut asked, mut served) = (1000, false);
            while !served {
                assert!(asked < 10_000, "it is passed by all others");
                // Where everybody waits for memory, clients give some back.
                let soon = Duration::from_millis(1);
                let _ = tokio::time::timeout(soon, storage.ready()).await;
                storage.drain(&mut drained).expect("ring");
                for done in drained.drain(..) {
                    let StorageCompletion::Disk(done) = done else {
                        continue;
                    };
                    served |= done.id == u64::MAX;
                    kept.push_back(done.result.expect("read"));
                }
                if asked == 1000 {
                    storage.submit(long, u64::MAX, read(long_len));
                }
                kept.pop_front();
                storage.submit(short, asked, read(4096));
                asked += 1;
            }
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
