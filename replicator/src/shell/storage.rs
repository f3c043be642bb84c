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

mod io;
mod memory;

use std::future::poll_fn;

use bytes::Bytes;
use slab::Slab;

use super::buffers::{Account, Pool, PoolConfig, Share};
use super::disk::{Counters, Disk, DiskCompletion};
use super::fence::StoreFile;
use super::metadata::{MetadataCompletion, MetadataStore};
use super::probe::Capabilities;
use super::uring::{Completion, Ring, RingError};
use crate::core::disk::DiskOp;
use io::OpenStore;
pub(super) use io::{Answer, Io, Owner, Tag, fault};

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
    /// The system has no memory beside the pool.
    #[error("the system has no memory for {} KiB of zeroes", ZERO_STEP >> 10)]
    NoMemory,
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
    /// Outside a tokio runtime.
    pub fn new(pool: Pool) -> Result<Self, StorageError> {
        let have = pool.stats().total;
        if have < 1 << 20 {
            return Err(StorageError::PoolTooSmall { have });
        }
        // Beside the pool: what is never given back would be missing from every share's limit.
        let config = PoolConfig {
            bytes: ZERO_STEP,
            reserve: 0,
            lock: pool.is_locked(),
        };
        let mut zeroes = Pool::new(&config)
            .ok()
            .and_then(|beside| beside.alloc(ZERO_STEP, Share::Bounce))
            .ok_or(StorageError::NoMemory)?;
        zeroes.fill(0);
        Ok(Self {
            io: Io::new(Ring::new()?, pool, zeroes.freeze()),
            disks: Slab::new(),
            metadata: Slab::new(),
            done: Vec::new(),
            reaped: Vec::new(),
        })
    }

    /// Takes over an open, locked store. It stays open until [`Storage::remove_store`].
    pub fn add_store(&mut self, file: StoreFile) -> StoreId {
        StoreId(index(self.io.stores.insert(OpenStore::new(file))))
    }

    /// Serves the data in `area` of a store.
    pub fn add_disk(&mut self, store: StoreId, area: Area) -> DiskId {
        self.io.use_store(store, area);
        let id = index(self.disks.vacant_key());
        self.disks.insert(Disk::new(DiskId(id), store, area));
        DiskId(id)
    }

    /// Charges the disk's reads to `account`: what clients don't take of them is missing from no other
    /// account. To be said before the first of them.
    pub fn charge_reads(&mut self, disk: DiskId, account: Account) {
        self.io.memory.charge(disk, Some(account));
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
        self.io.memory.charge(id, None);
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

    /// How many operations wait to be handed to the kernel.
    pub fn queued(&self) -> usize {
        self.io.ring.queued()
    }

    /// How many operations the kernel has not completed, or has not got yet.
    pub fn in_flight(&self) -> usize {
        self.io.ring.in_flight()
    }

    /// Hands everything queued to the kernel. Call it once at the end of a turn of the loop.
    ///
    /// # Errors
    ///
    /// The ring is broken; nothing can be done with it any more.
    pub fn submit_queued(&mut self) -> std::io::Result<()> {
        self.settle();
        self.io.start_flushes();
        self.io.ring.submit()
    }

    /// Appends what has completed; never blocks.
    ///
    /// # Errors
    ///
    /// As [`Storage::submit_queued`].
    pub fn drain(&mut self, out: &mut Vec<StorageCompletion>) -> std::io::Result<()> {
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
    pub async fn ready(&mut self) -> std::io::Result<()> {
        self.submit_queued()?;
        if !self.done.is_empty() {
            return Ok(());
        }
        let (ring, memory) = (&mut self.io.ring, &mut self.io.memory);
        if !memory.is_wanted() {
            return ring.ready().await;
        }
        tokio::select! {
            result = ring.ready() => result,
            () = poll_fn(|context| memory.poll_granted(context)) => Ok(()),
        }
    }

    /// What the store can do.
    pub fn capabilities(&self, store: StoreId) -> &Capabilities {
        &self.io.stores[store.0.into()].capabilities
    }

    /// What a disk has done so far.
    pub fn counters(&self, disk: DiskId) -> Counters {
        self.disks[disk.0.into()].counters()
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
            let Some((tag, buffer)) = self.io.memory.feed() else {
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
