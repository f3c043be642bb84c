//! A metadata store: bytes that change by steps, each durable before the next.
//!
//! Decides what a crash leaves of a step under way: any of its 512-byte sectors. A daemon's
//! death stops after the step under way, of which any whole writes land, in a cache that nobody
//! flushes before the next start does. A write or flush that fails leaves anything of it, and what
//! is seen of it then may be gone later. What the bytes mean is left to the bitmap crate: a crash
//! is followed by its own recovery of these bytes.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kagami_bitmap::layout::{Placement, SLOTS_BYTES};
use kagami_bitmap::recover::{Finding, Recovered, recover};
use kagami_bitmap::sector::SectorFault;
use kagami_bitmap::slots::{SuperblockFault, read_slots};
use kagami_bitmap::superblock::{Record, Superblock};
use kagami_replicator::core::disk::DiskFault;

use super::content::SECTOR;
use super::faults::metadata::covers;
use super::rng::Rng;

/// Superblock and activity log of the smallest capacity, which every run has, end here.
const LOG_END: u64 = SLOTS_BYTES + 8 * 4096;

type Step = Vec<(u64, Bytes)>;

type SectorBytes = [u8; SECTOR];

/// A sector that went bad.
#[derive(Clone, Copy, Debug)]
struct Bad {
    /// What it held, and would hold still.
    good: SectorBytes,
    /// What it reads as.
    reads: SectorBytes,
}

/// One node's metadata store.
#[derive(Clone, Debug)]
pub struct Metadata {
    bytes: Vec<u8>,
    in_flight: BTreeMap<u64, VecDeque<Step>>,
    /// The record as a crash now would leave it, if no step that touches it is under way.
    record: Option<Record>,
    /// What is on stable storage of the sectors that nothing flushed since they were written.
    volatile: BTreeMap<u64, SectorBytes>,
    /// Those of them that were bad.
    bad_before: BTreeMap<u64, Bad>,
    /// A flush failed: what it should have covered is covered by none.
    lost_flush: bool,
    /// The next write of a daemon fails like this.
    pub fail_next: Option<DiskFault>,
    /// A write of the daemon that lives has failed, and all later ones do.
    pub failed: Option<DiskFault>,
    /// Nothing ends until then.
    pub stalled_until: u64,
    /// Sectors go bad before the next start.
    pub harm_at_start: bool,
    /// Sectors that went bad and were not written since.
    bad: BTreeMap<u64, Bad>,
    directory_was_bad: bool,
    /// What the units of superblock and log held before the last write of each.
    older: BTreeMap<u64, Bytes>,
}

impl Metadata {
    /// A store that holds these bytes, durably.
    pub fn new(bytes: Vec<u8>) -> Self {
        let mut made = Self {
            bytes,
            in_flight: BTreeMap::new(),
            record: None,
            volatile: BTreeMap::new(),
            bad_before: BTreeMap::new(),
            lost_flush: false,
            fail_next: None,
            failed: None,
            stalled_until: 0,
            harm_at_start: false,
            bad: BTreeMap::new(),
            directory_was_bad: false,
            older: BTreeMap::new(),
        };
        made.read_record();
        made
    }

    /// The record on disk. `None` while it can't be read.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// True if no write is under way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Takes a write of several steps; the id is the caller's, unused so far.
    pub fn submit(&mut self, id: u64, steps: Vec<Step>) {
        for (offset, bytes) in steps.iter().flatten() {
            let end = *offset as usize + bytes.len();
            assert!(
                end <= self.bytes.len(),
                "a metadata write at {offset} beyond the store"
            );
            assert!(
                offset.is_multiple_of(SECTOR as u64) && bytes.len().is_multiple_of(SECTOR),
                "a metadata write of part of a sector"
            );
        }
        // A store that failed is written to no more: such a write only fails.
        let steps = match self.failed {
            Some(_) => vec![Step::new()],
            None => steps,
        };
        let taken = self.in_flight.insert(id, steps.into()).is_some();
        assert!(!taken, "metadata write {id} twice");
    }

    /// True if this write is under way.
    pub fn has(&self, id: u64) -> bool {
        self.in_flight.contains_key(&id)
    }

    /// Ends the step under way of a write. True if that was the last. `heard`: a daemon waits for
    /// it, so that it was flushed too.
    pub fn step(&mut self, id: u64, heard: bool) -> bool {
        let steps = self
            .in_flight
            .get_mut(&id)
            .expect("a metadata write under way");
        let done = steps.pop_front();
        let last = steps.is_empty();
        if last {
            self.in_flight.remove(&id);
        }
        for (offset, bytes) in done.into_iter().flatten() {
            if !heard {
                self.keep_durable(offset, bytes.len());
            }
            self.put(offset, &bytes);
        }
        last
    }

    /// Writes and flushes at once, while no daemon has the store.
    pub fn write_now(&mut self, step: Step) {
        for (offset, bytes) in step {
            self.put(offset, &bytes);
        }
    }

    /// A write fails in the step under way, of which any sectors are there; the steps after it are
    /// not begun.
    pub fn fail_step(&mut self, id: u64, rng: &mut Rng) {
        let steps = self.in_flight.remove(&id);
        let chance = rng.pick(&[0, 50, 100]);
        for (offset, bytes) in steps.into_iter().flatten().next().into_iter().flatten() {
            for (nth, sector) in (0u64..).zip(bytes.chunks_exact(SECTOR)) {
                if rng.percent(chance) {
                    let at = offset + nth * SECTOR as u64;
                    self.keep_durable(at, SECTOR);
                    self.put(at, sector);
                }
            }
        }
        self.lost_flush = true;
        self.read_record();
    }

    /// A daemon starts: it flushes the store before it reads it. What a failed flush lost is gone,
    /// and shows.
    pub fn open(&mut self, rng: &mut Rng) {
        if std::mem::take(&mut self.lost_flush) {
            let mut bytes = std::mem::take(&mut self.bytes);
            self.forget_volatile(&mut bytes, rng);
            self.bytes = bytes;
        }
        self.settle_bad();
        self.failed = None;
        self.fail_next = None;
        self.read_record();
    }

    /// Sectors that nothing flushed are there or not, each by itself.
    fn forget_volatile(&self, bytes: &mut [u8], rng: &mut Rng) {
        if self.volatile.is_empty() {
            return;
        }
        let chance = rng.pick(&[0, 50, 100]);
        for (offset, before) in &self.volatile {
            if rng.percent(chance) {
                bytes[*offset as usize..][..SECTOR].copy_from_slice(before);
            }
        }
    }

    /// Nothing is volatile any more; what was bad before may be so again.
    fn settle_bad(&mut self) {
        self.volatile.clear();
        for (at, bad) in std::mem::take(&mut self.bad_before) {
            self.bad.entry(at).or_insert(bad);
        }
    }

    fn keep_durable(&mut self, offset: u64, len: usize) {
        for at in (offset..offset + len as u64).step_by(SECTOR) {
            let now = self.sector(at);
            if self.volatile.contains_key(&at) {
                continue;
            }
            self.volatile.insert(at, now);
            if let Some(bad) = self.bad.get(&at) {
                self.bad_before.insert(at, *bad);
            }
        }
    }

    /// The daemon died: nothing but the step under way of each write may still land.
    pub fn daemon_died(&mut self, rng: &mut Rng) {
        for steps in self.in_flight.values_mut() {
            steps.truncate(1);
            for step in steps {
                step.retain(|_| rng.percent(80));
            }
        }
    }

    /// The machine crashed: of each step under way any sectors are there.
    pub fn crash(&mut self, rng: &mut Rng) {
        self.bytes = self.after_crash(rng);
        self.in_flight.clear();
        self.settle_bad();
        self.lost_flush = false;
        self.read_record();
    }

    /// What a crash now might leave.
    pub fn after_crash(&self, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        self.forget_volatile(&mut bytes, rng);
        for steps in self.in_flight.values() {
            let chance = rng.pick(&[0, 30, 70, 100]);
            for (offset, write) in steps.front().into_iter().flatten() {
                for (nth, sector) in write.chunks_exact(SECTOR).enumerate() {
                    if rng.percent(chance) {
                        let at = *offset as usize + nth * SECTOR;
                        bytes[at..at + SECTOR].copy_from_slice(sector);
                    }
                }
            }
        }
        bytes
    }

    /// What the death of the daemon now might leave, once all has landed.
    pub fn after_death(&self, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if self.lost_flush {
            self.forget_volatile(&mut bytes, rng);
        }
        for (offset, write) in self
            .in_flight
            .values()
            .filter_map(VecDeque::front)
            .flatten()
        {
            if rng.coin() {
                let at = *offset as usize;
                bytes[at..at + write.len()].copy_from_slice(write);
            }
        }
        bytes
    }

    /// Reads what is there, as a daemon does when it starts.
    ///
    /// # Errors
    /// As the bitmap crate's recovery.
    pub fn recover(&self) -> Result<Recovered, SuperblockFault> {
        recover_bytes(&self.bytes)
    }

    /// Bytes of the store.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// True if the store has no bytes: none has.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What a read of a sector finds; `offset` in bytes.
    pub fn sector(&self, offset: u64) -> SectorBytes {
        std::array::from_fn(|nth| self.bytes[offset as usize + nth])
    }

    /// What a read of a sector would find if nothing had gone bad.
    pub fn good_sector(&self, offset: u64) -> SectorBytes {
        let reads = self.sector(offset);
        match self.bad.get(&offset) {
            Some(bad) if bad.reads == reads => bad.good,
            _ => reads, // never bad, or written since
        }
    }

    /// The store as it would be if nothing had gone bad: what is held against what is read. (What
    /// was bad before may only be assumed to be marked: it is not yet durable that it is.)
    pub fn recover_undamaged(&self) -> Result<Recovered, SuperblockFault> {
        let mut bytes = self.bytes.clone();
        for offset in self.bad.keys() {
            bytes[*offset as usize..][..SECTOR].copy_from_slice(&self.good_sector(*offset));
        }
        recover_bytes(&bytes)
    }

    /// A sector goes bad.
    pub fn damage(&mut self, offset: u64, sector: &SectorBytes) {
        let good = self.good_sector(offset);
        let reads = *sector;
        self.bytes[offset as usize..][..SECTOR].copy_from_slice(sector);
        self.bad.insert(offset, Bad { good, reads });
        if let Some((superblock, _)) = self.superblock() {
            let layout = superblock.layout;
            self.directory_was_bad |=
                (layout.directory_offset..layout.pages_offset).contains(&offset);
        }
        self.read_record();
    }

    /// The last write of a unit of superblock or log was lost. False if none is known.
    pub fn lose_write(&mut self, unit: u64) -> bool {
        let Some(older) = self.older.remove(&unit) else {
            return false;
        };
        let at = unit as usize;
        if self.bytes[at..at + older.len()] == older[..] {
            return false;
        }
        let sectors = (unit..unit + older.len() as u64).step_by(SECTOR);
        let good: Vec<_> = sectors.map(|at| (at, self.good_sector(at))).collect();
        self.bytes[at..at + older.len()].copy_from_slice(&older);
        for (at, good) in good {
            let reads = self.sector(at);
            self.bad.insert(at, Bad { good, reads });
        }
        self.read_record();
        true
    }

    /// The superblock, and whether each slot is whole and says the same.
    pub fn superblock(&self) -> Option<(Superblock, bool)> {
        let slots = &self.bytes[..SLOTS_BYTES as usize];
        let read = read_slots(slots, self.len(), None).ok()?;
        Some((read.superblock, read.repair.is_none()))
    }

    /// True if a finding is no damage, or comes from a sector that went bad.
    pub fn explains(&self, finding: &Finding) -> bool {
        // Written anew after it was bad, the directory names pages that are yet to be written.
        let blank = matches!(
            finding,
            Finding::Pages {
                fault: SectorFault::Blank,
                ..
            }
        );
        if !finding.is_damage() || self.directory_was_bad && blank {
            return true;
        }
        let layout = self.superblock().map(|(superblock, _)| superblock.layout);
        let mut bad = self.bad.keys().chain(self.bad_before.keys());
        layout.is_some_and(|layout| bad.any(|at| covers(&layout, finding, *at)))
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let at = offset as usize;
        if !self.bad.is_empty() {
            let end = offset + bytes.len() as u64;
            self.bad.retain(|bad, _| !(offset..end).contains(bad));
        }
        if bytes.len() == 4096 && offset < LOG_END {
            let before = Bytes::copy_from_slice(&self.bytes[at..at + bytes.len()]);
            self.older.insert(offset, before);
        }
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        if offset < SLOTS_BYTES {
            self.read_record();
        }
    }

    fn read_record(&mut self) {
        let mut slots = Bytes::new();
        let mut volatile = self.volatile.range(..SLOTS_BYTES).peekable();
        if volatile.peek().is_some() {
            let mut durable = self.bytes[..SLOTS_BYTES as usize].to_vec();
            for (at, before) in volatile {
                durable[*at as usize..][..SECTOR].copy_from_slice(before);
            }
            slots = durable.into();
        }
        let slots = if slots.is_empty() {
            &self.bytes[..SLOTS_BYTES as usize]
        } else {
            &slots
        };
        let read = read_slots(slots, self.bytes.len() as u64, None);
        self.record = read.ok().map(|read| read.superblock.record);
    }
}

/// Reads bytes as a daemon does when it starts.
///
/// # Errors
/// As the bitmap crate's recovery.
pub fn recover_bytes(bytes: &[u8]) -> Result<Recovered, SuperblockFault> {
    recover(bytes, Placement::Own, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(offset: u64, byte: u8, len: usize) -> Step {
        vec![(offset, Bytes::from(vec![byte; len]))]
    }

    #[test]
    fn steps_follow_each_other() {
        let mut store = Metadata::new(vec![0; 16 << 10]);
        store.submit(1, vec![step(8192, 1, 512), step(8704, 2, 512)]);
        assert!(!store.step(1, true));
        assert_eq!((store.bytes[8192], store.bytes[8704]), (1, 0));
        assert!(store.step(1, true) && store.is_idle());
        assert_eq!(store.bytes[8704], 2);
    }

    #[test]
    fn a_crash_tears_the_step_under_way_and_no_other() {
        let mut torn = 0;
        for seed in 0..60 {
            let mut store = Metadata::new(vec![0; 16 << 10]);
            store.submit(1, vec![step(8192, 1, 4096), step(12288, 2, 512)]);
            store.crash(&mut Rng::new(seed));
            let sectors: Vec<u8> = store.bytes[8192..12288]
                .chunks(512)
                .map(|sector| sector[0])
                .collect();
            torn += usize::from(sectors.contains(&0) && sectors.contains(&1));
            assert!(store.bytes[12288..].iter().all(|byte| *byte == 0));
            assert!(store.is_idle());
        }
        assert!(torn > 10, "{torn} of 60 torn");
    }

    #[test]
    fn a_death_lets_whole_writes_land_and_no_later_step() {
        let mut store = Metadata::new(vec![0; 16 << 10]);
        store.submit(1, vec![step(8192, 1, 4096), step(12288, 2, 512)]);
        store.daemon_died(&mut Rng::new(3));
        assert!(store.step(1, false));
        let first = store.bytes[8192];
        assert!(store.bytes[8192..12288].iter().all(|byte| *byte == first));
        assert_eq!(store.bytes[12288], 0);
    }
}
