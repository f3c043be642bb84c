//! A disk on a file of a test, and the loop that drives it.
#![allow(dead_code)] // Each test binary uses its own part.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use kagami_replicator::core::disk::{DiskOp, DiskResult};
use kagami_replicator::shell::buffers::{Pool, PoolConfig, Share};
use kagami_replicator::shell::disk::Counters;
use kagami_replicator::shell::fence::StoreFile;
use kagami_replicator::shell::storage::{
    Area, DiskId, MetadataId, Storage, StorageCompletion, StoreId,
};
use kagami_replicator::shell::store::create_backing_file;
use tempfile::TempDir;

/// No test waits longer for an event.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A folder on the file system that the build uses, which has direct I/O.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the test")
}

/// A new sparse file of `size` bytes, not open.
pub fn store_file(folder: &TempDir, name: &str, size: u64) -> PathBuf {
    let path = folder.path().join(name);
    drop(create_backing_file(&path, size, true).expect("a new store"));
    path
}

/// One disk and what it has answered.
pub struct Rig {
    pub storage: Storage,
    pub store: StoreId,
    pub disk: DiskId,
    pub answers: HashMap<u64, DiskResult>,
    pub metadata_answers: HashMap<u64, Result<(), kagami_replicator::core::disk::DiskFault>>,
    drained: Vec<StorageCompletion>,
}

impl Rig {
    /// The whole of `path` as a disk, with a pool of `memory` bytes.
    pub fn new(path: &Path, memory: usize) -> Self {
        Self::with_start(path, memory, 0)
    }

    /// The data begins at `start`.
    pub fn with_start(path: &Path, memory: usize, start: u64) -> Self {
        let pool = Pool::new(&PoolConfig::with_bytes(memory)).expect("memory");
        let file = StoreFile::open(path, Duration::ZERO).expect("a free store");
        let area = Area {
            start,
            len: file.capabilities().usable_from(start),
        };
        let mut storage = Storage::new(pool).expect("a ring");
        let store = storage.add_store(file);
        let disk = storage.add_disk(store, area);
        Self {
            storage,
            store,
            disk,
            answers: HashMap::new(),
            metadata_answers: HashMap::new(),
            drained: Vec::new(),
        }
    }

    pub fn add_metadata(&mut self, area: Area) -> MetadataId {
        self.storage.add_metadata(self.store, area)
    }

    pub fn submit(&mut self, id: u64, operation: DiskOp) {
        self.storage.submit(self.disk, id, operation);
    }

    pub fn counters(&self) -> Counters {
        self.storage.counters(self.disk)
    }

    /// One turn of the loop.
    pub async fn turn(&mut self) {
        tokio::time::timeout(DEADLINE, self.storage.ready())
            .await
            .expect("the disk answers in time")
            .expect("the ring works");
        self.storage
            .drain(&mut self.drained)
            .expect("the ring works");
        for completion in self.drained.drain(..) {
            match completion {
                StorageCompletion::Disk(done) => {
                    assert!(self.answers.insert(done.id, done.result).is_none());
                }
                StorageCompletion::Metadata(done) => {
                    assert!(self.metadata_answers.insert(done.id, done.result).is_none());
                }
            }
        }
    }

    /// Waits for everything in flight.
    pub async fn settle(&mut self) {
        while self.counters().in_flight > 0 {
            self.turn().await;
        }
    }

    /// Waits for the answer to `id`.
    pub async fn answer(&mut self, id: u64) -> DiskResult {
        loop {
            if let Some(result) = self.answers.remove(&id) {
                return result;
            }
            self.turn().await;
        }
    }

    /// One operation from submission to answer.
    pub async fn run(&mut self, operation: DiskOp) -> DiskResult {
        self.submit(u64::MAX, operation);
        self.answer(u64::MAX).await
    }

    /// One metadata submission from start to end.
    pub async fn run_metadata(
        &mut self,
        store: MetadataId,
        steps: Vec<Vec<(u64, Bytes)>>,
    ) -> Result<(), kagami_replicator::core::disk::DiskFault> {
        self.storage.submit_metadata(store, u64::MAX, steps);
        loop {
            if let Some(result) = self.metadata_answers.remove(&u64::MAX) {
                return result;
            }
            self.turn().await;
        }
    }

    pub async fn read(&mut self, offset: u64, len: u32) -> Bytes {
        let result = self.run(DiskOp::Read { offset, len }).await;
        result.expect("a good disk")
    }

    /// Memory that suits every store, filled with `byte`.
    pub fn aligned(&self, len: usize, byte: u8) -> Bytes {
        let mut buffer = self
            .storage
            .pool()
            .alloc(len, Share::FrontEnd)
            .expect("memory");
        buffer.fill(byte);
        buffer.freeze()
    }
}

/// Memory that suits no store, filled with `byte`.
pub fn unaligned(len: usize, byte: u8) -> Bytes {
    let bytes = Bytes::from(vec![byte; len + 4096]);
    let odd = 4096 - bytes.as_ptr().addr() % 4096 + 1;
    bytes.slice(odd % 4096..odd % 4096 + len)
}

pub fn write(offset: u64, data: Bytes) -> DiskOp {
    DiskOp::Write {
        offset,
        data,
        fua: false,
    }
}

/// Numbers without a pattern, the same in each run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
