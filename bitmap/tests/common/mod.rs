//! A metadata store in memory, for the tests of this crate.
#![allow(dead_code, reason = "each test file uses a part of it")]

use kagami_bitmap::recover::Recovered;
use kagami_bitmap::superblock::{Backing, Generation, Record, Superblock};
use kagami_bitmap::{EXTENT, Fill, Format, Layout, Placement, recover};

pub const MIRROR: u128 = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;
pub const SECTOR: usize = 512;

/// A store as a disk has it after a power cut: only what was flushed or happened to land.
#[derive(Clone)]
pub struct Store {
    pub bytes: Vec<u8>,
    pub layout: Layout,
}

pub fn superblock(size: u64, log_capacity: u32, placement: Placement) -> Superblock {
    let layout = Layout::new(size, log_capacity, placement).expect("a good layout");
    let backing = Backing {
        data_offset: 0,
        store_size: size,
    };
    let mut record = Record::new(MIRROR, 1, size);
    record.peer = Some(2);
    record.mint(7);
    Superblock::new(layout, backing, 1_750_000_000, record)
}

impl Store {
    pub fn format(superblock: &Superblock, fill: Fill) -> Self {
        let layout = superblock.layout;
        let mut store = Self {
            bytes: vec![0; layout.total_len as usize],
            layout,
        };
        for chunk in Format::new(superblock, fill) {
            store.write(chunk.offset, &chunk.bytes);
        }
        store
    }

    /// A store for `extents` whole extents.
    pub fn new(extents: u32, log_capacity: u32, fill: Fill) -> Self {
        let size = u64::from(extents) * EXTENT;
        Self::format(&superblock(size, log_capacity, Placement::Own), fill)
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// A power cut during the write: only the sectors in `mask` are new.
    pub fn tear(&mut self, offset: u64, bytes: &[u8], mask: u8) {
        for (nth, sector) in bytes.chunks(SECTOR).enumerate() {
            if mask >> nth & 1 == 1 {
                self.write(offset + (nth * SECTOR) as u64, sector);
            }
        }
    }

    pub fn flip(&mut self, bit: usize) {
        self.bytes[bit / 8] ^= 1 << (bit % 8);
    }

    /// Recovers, and carries out the repair that it asks for.
    pub fn recover(&mut self) -> Recovered {
        let recovered = self.look();
        for (offset, bytes) in recovered.repair.iter().flatten() {
            self.write(*offset, bytes);
        }
        recovered
    }

    /// Recovers without touching the store.
    pub fn look(&self) -> Recovered {
        recover(&self.bytes, self.layout.placement, Some(MIRROR)).expect("a readable superblock")
    }
}

/// A record with every field set.
pub fn full_record(size: u64) -> Record {
    let mut record = Record::new(MIRROR, 1, size);
    record.peer = Some(u64::MAX);
    record.logical_block = 4096;
    record.arbiter = Some(0);
    for tag in 1..=80 {
        record.mint(tag);
    }
    record.boot = Some(u128::MAX - 5);
    record.was_primary = true;
    record.forced_bad = true;
    record.verify_found = true;
    record.disk = kagami_bitmap::StoredDisk::Outdated;
    record.base = record
        .history
        .last()
        .copied()
        .or(Some(Generation { counter: 1, tag: 1 }));
    record
}
