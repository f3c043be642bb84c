//! A backing store with a volatile cache.
//!
//! Decides what a disk may do to what it was given: operations end in any order; a flush makes
//! durable what had *ended* before it was submitted; a machine's crash loses any sectors that no
//! flush covered, whole or torn at 512 bytes; a daemon's death loses nothing, and what was under
//! way lands later. What a failed flush forgot is gone when the disk is opened anew, or a cache answers for it
//! until the machine crashes. Faults of single blocks, of the whole disk and a full store are set from outside.
//!
//! When an operation ends is the world's business: it calls [`Store::complete`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kagami_replicator::core::disk::{DiskFault, DiskOp, DiskResult};

use super::content::{self, BLOCK, BlockValue, SECTORS, Value, ZEROES};
use super::rng::Rng;

/// An input/output error, as the kernel numbers it.
pub const EIO: i32 = 5;

/// A block whose newest content is not all on stable storage.
#[derive(Clone, Debug)]
struct Volatile {
    /// On stable storage.
    durable: BlockValue,
    /// Written since, oldest first, each with the count of operations ended then (`u64::MAX`
    /// where a failed flush lost track of it).
    newer: Vec<(u64, BlockValue)>,
}

#[derive(Clone, Debug)]
struct InFlight {
    op: DiskOp,
    /// Operations that had ended when it was submitted.
    submitted: u64,
    /// When that was, in the world's time.
    since: u64,
    /// What a read finds, if it looked at once.
    seen: Option<Bytes>,
}

impl InFlight {
    /// The blocks that it changes.
    fn written(&self) -> Option<std::ops::Range<u64>> {
        match &self.op {
            DiskOp::Write { offset, data, .. } => Some(blocks_of(*offset, data.len() as u64)),
            DiskOp::Zero { offset, len, .. } => Some(blocks_of(*offset, *len)),
            DiskOp::Read { .. } | DiskOp::Flush => None,
        }
    }

    fn touches(&self, block: u64) -> bool {
        self.written().is_some_and(|range| range.contains(&block))
    }
}

/// One node's backing store.
#[derive(Clone, Debug)]
pub struct Store {
    blocks: u64,
    /// What a read finds.
    now: Vec<Value>,
    volatile: BTreeMap<u64, Volatile>,
    in_flight: BTreeMap<u64, InFlight>,
    ended: u64,
    /// Blocks that can't be read until they are written.
    pub unreadable: BTreeSet<u64>,
    /// Every write and flush fails, and reads too.
    pub failed: bool,
    /// Writes to blocks without space fail.
    pub full: bool,
    /// A failed flush, once.
    pub fail_flush: bool,
    /// The same for a flush whose daemon is gone.
    pub fail_unheard: bool,
    /// A write or a flush failed, and whoever could know of it was told: a daemon that lives, or one that saw it hang.
    pub told: bool,
    /// What a failed flush forgot is read all the same.
    hidden: bool,
    allocated: Vec<u64>,
}

impl Store {
    /// A store of zeroes.
    pub fn new(blocks: u64) -> Self {
        Self {
            blocks,
            now: vec![content::ZERO; blocks as usize * SECTORS],
            volatile: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            ended: 0,
            unreadable: BTreeSet::new(),
            failed: false,
            full: false,
            fail_flush: false,
            fail_unheard: false,
            told: false,
            hidden: false,
            allocated: vec![0; blocks.div_ceil(64) as usize],
        }
    }

    /// What a read of the block finds.
    pub fn block(&self, block: u64) -> BlockValue {
        let at = block as usize * SECTORS;
        std::array::from_fn(|nth| self.now[at + nth])
    }

    /// What a read of the sector finds.
    pub fn sector(&self, sector: u64) -> Value {
        self.now[sector as usize]
    }

    /// What is on stable storage of the block.
    pub fn durable(&self, block: u64) -> BlockValue {
        self.volatile
            .get(&block)
            .map_or_else(|| self.block(block), |entry| entry.durable)
    }

    /// True if the block's newest content could be lost.
    pub fn is_volatile(&self, block: u64) -> bool {
        self.volatile.contains_key(&block)
    }

    /// True if everything is on stable storage.
    pub fn is_all_durable(&self) -> bool {
        self.volatile.is_empty()
    }

    /// True if nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Puts content there from the start, durably.
    pub fn preload(&mut self, block: u64, values: BlockValue) {
        self.set(block, values);
    }

    /// The block holds zeroes now, durably, and nobody was told.
    pub fn damage(&mut self, block: u64) {
        self.volatile.remove(&block);
        self.set(block, ZEROES);
    }

    /// Takes an operation at this moment of the world's time; the id is the caller's, unused so far.
    pub fn submit(&mut self, id: u64, op: DiskOp, now: u64, rng: &mut Rng) {
        let seen = match &op {
            // A read looks at any moment between its start and its end.
            DiskOp::Read { offset, len } if rng.coin() => Some(self.read(*offset, *len)),
            _ => None,
        };
        let op = InFlight {
            op,
            submitted: self.ended,
            since: now,
            seen,
        };
        let taken = self.in_flight.insert(id, op).is_some();
        assert!(!taken, "disk operation {id} twice");
    }

    /// True if it writes a block that can't be read.
    pub fn mends(&self, op: &DiskOp) -> bool {
        writes_of(op).any(|(block, _)| self.unreadable.contains(&block))
    }

    /// When the oldest operation began that is under way.
    pub fn owes_since(&self) -> Option<u64> {
        self.in_flight.values().map(|one| one.since).min()
    }

    /// True if this operation is under way.
    pub fn has(&self, id: u64) -> bool {
        self.in_flight.contains_key(&id)
    }

    /// True if the operation changes or flushes something.
    pub fn is_write(&self, id: u64) -> bool {
        self.in_flight
            .get(&id)
            .is_some_and(|one| !matches!(one.op, DiskOp::Read { .. }))
    }

    /// Ends an operation: carries it out and says what came of it. The blocks that now hold
    /// something else are told to `landed`. `heard`: a daemon waits for it.
    pub fn complete(&mut self, id: u64, heard: bool, landed: &mut impl FnMut(u64)) -> DiskResult {
        let InFlight {
            op,
            submitted,
            seen,
            since: _,
        } = self.in_flight.remove(&id).expect("an operation under way");
        if self.failed {
            return Err(DiskFault::Io(EIO));
        }
        match op {
            DiskOp::Read { offset, len } => {
                if self
                    .unreadable
                    .range(blocks_of(offset, u64::from(len)))
                    .next()
                    .is_some()
                {
                    return Err(DiskFault::Io(EIO));
                }
                Ok(seen.unwrap_or_else(|| self.read(offset, len)))
            }
            DiskOp::Write { offset, data, fua } => {
                let blocks = blocks_of(offset, data.len() as u64);
                if self.full && blocks.clone().any(|block| !self.is_allocated(block)) {
                    return Err(DiskFault::NoSpace);
                }
                self.ended += 1;
                for (block, values) in blocks.zip(block_values(&data)) {
                    self.land(block, values, fua, landed);
                    self.allocated[block as usize / 64] |= 1 << (block % 64);
                }
                Ok(Bytes::new())
            }
            DiskOp::Zero {
                offset,
                len,
                unmap,
                fua,
            } => {
                self.ended += 1;
                for block in blocks_of(offset, len) {
                    self.land(block, ZEROES, fua, landed);
                    if unmap {
                        self.allocated[block as usize / 64] &= !(1 << (block % 64));
                    }
                }
                Ok(Bytes::new())
            }
            DiskOp::Flush => {
                let fails = if heard {
                    &mut self.fail_flush
                } else {
                    &mut self.fail_unheard
                };
                if std::mem::take(fails) {
                    self.forget(submitted);
                    self.told |= !heard;
                    return Err(DiskFault::Io(EIO));
                }
                self.flush(submitted);
                Ok(Bytes::new())
            }
        }
    }

    /// The machine has crashed: what no flush covered is there or not, sector by sector.
    /// What was under way may have reached the disk. The sectors that were set back, and from what.
    pub fn crash(&mut self, rng: &mut Rng) -> Vec<(u64, Value)> {
        for (_, in_flight) in std::mem::take(&mut self.in_flight) {
            for (block, values) in writes_of(&in_flight.op) {
                if rng.coin() && !self.failed {
                    self.land(block, values, false, &mut |_| {});
                }
            }
        }
        self.settle_volatile(rng)
    }

    /// The disk is back after it failed, with any part of what no flush covered; `hides`: a cache has all of it still,
    /// none of which any flush will cover. (One that failed and told nobody lost nothing: no mirror survives a disk that
    /// forgets in silence.)
    pub fn come_back(&mut self, hides: bool, rng: &mut Rng) -> Vec<(u64, Value)> {
        self.failed = false;
        self.fail_flush = false;
        self.fail_unheard = false;
        if !std::mem::take(&mut self.told) {
            return Vec::new();
        }
        if !hides {
            return self.settle_volatile(rng);
        }
        self.forget(u64::MAX);
        self.hidden = !self.volatile.is_empty();
        Vec::new()
    }

    /// True if what was forgotten is read all the same.
    pub fn hides(&self) -> bool {
        self.hidden
    }

    /// What was forgotten is remembered: a later flush covers it after all.
    pub fn remember(&mut self) {
        if std::mem::take(&mut self.hidden) {
            for entry in self.volatile.values_mut() {
                for (ended, _) in entry.newer.iter_mut().filter(|(at, _)| *at == u64::MAX) {
                    *ended = 0;
                }
            }
        }
    }

    fn settle_volatile(&mut self, rng: &mut Rng) -> Vec<(u64, Value)> {
        self.hidden = false;
        let keep = rng.pick(&[0, 0, 50, 90, 100]);
        let mut lost = Vec::new();
        for block in self.volatile.keys().copied().collect::<Vec<_>>() {
            let after = self.after_crash(block, keep, rng);
            let entry = self.volatile.remove(&block);
            let first = block * SECTORS as u64;
            for (_, newer) in entry.into_iter().flat_map(|entry| entry.newer) {
                let gone = (0..SECTORS).filter(|nth| newer[*nth] != after[*nth]);
                lost.extend(gone.map(|nth| (first + nth as u64, newer[nth])));
            }
            self.set(block, after);
        }
        lost
    }

    /// What the block might hold if the machine crashed now; `keep`: the chance in percent that
    /// a sector's newer content is there.
    pub fn after_crash(&self, block: u64, keep: u64, rng: &mut Rng) -> BlockValue {
        if let Some(under_way) = self
            .in_flight
            .values()
            .find(|one| one.touches(block) && !self.failed)
            && rng.percent(40)
            && let Some((_, values)) = writes_of(&under_way.op).find(|(at, _)| *at == block)
        {
            return values;
        }
        let Some(entry) = self.volatile.get(&block) else {
            return self.block(block);
        };
        let torn = rng.percent(20);
        let one = |rng: &mut Rng| {
            if rng.percent(keep) {
                let newest = entry.newer.len() - 1;
                let nth = if rng.percent(80) {
                    newest
                } else {
                    rng.below(newest as u64 + 1) as usize
                };
                entry.newer[nth].1
            } else {
                entry.durable
            }
        };
        if torn {
            std::array::from_fn(|nth| one(rng)[nth])
        } else {
            one(rng)
        }
    }

    /// What the block holds once everything under way has landed.
    pub fn after_all_landed(&self, block: u64) -> BlockValue {
        let mut values = self.block(block);
        if !self.failed {
            for in_flight in self.in_flight.values().filter(|one| one.touches(block)) {
                let newer = writes_of(&in_flight.op).find(|(at, _)| *at == block);
                values = newer.map_or(values, |(_, newer)| newer);
            }
        }
        values
    }

    /// Blocks in it.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// A block of the range that a write under way changes.
    pub fn write_under_way(&self, blocks: &std::ops::Range<u64>) -> Option<u64> {
        let writes = self.in_flight.values().filter_map(InFlight::written);
        writes
            .filter(|range| range.start < blocks.end && blocks.start < range.end)
            .map(|range| range.start)
            .next()
    }

    /// The first block in which the two stores differ.
    pub fn first_difference(&self, other: &Self) -> Option<u64> {
        if self.now == other.now {
            return None;
        }
        let differs = |(a, b): (&Value, &Value)| a != b;
        self.now
            .iter()
            .zip(&other.now)
            .position(differs)
            .map(|sector| (sector / SECTORS) as u64)
    }

    fn is_allocated(&self, block: u64) -> bool {
        self.allocated[block as usize / 64] >> (block % 64) & 1 == 1
    }

    fn read(&self, offset: u64, len: u32) -> Bytes {
        let (first, count) = (
            offset as usize / content::SECTOR,
            len as usize / content::SECTOR,
        );
        assert!(
            first + count <= self.now.len(),
            "a read at {offset} beyond the store"
        );
        content::to_bytes(&self.now[first..first + count])
    }

    fn set(&mut self, block: u64, values: BlockValue) {
        let at = block as usize * SECTORS;
        self.now[at..at + SECTORS].copy_from_slice(&values);
    }

    fn land(&mut self, block: u64, values: BlockValue, fua: bool, landed: &mut impl FnMut(u64)) {
        assert!(
            block < self.blocks,
            "a write to block {block} of {}",
            self.blocks
        );
        let before = self.block(block);
        self.unreadable.remove(&block);
        if values == before && !self.volatile.contains_key(&block) {
            return; // untouched zeroes stay untouched
        }
        if fua {
            self.volatile.remove(&block);
        } else {
            let entry = self.volatile.entry(block).or_insert_with(|| Volatile {
                durable: before,
                newer: Vec::new(),
            });
            entry.newer.push((self.ended, values));
        }
        self.set(block, values);
        landed(block);
    }

    fn flush(&mut self, submitted: u64) {
        self.volatile.retain(|_, entry| {
            let covered = entry
                .newer
                .iter()
                .rposition(|(ended, _)| *ended <= submitted);
            if let Some(newest) = covered {
                entry.durable = entry.newer[newest].1;
                entry.newer.drain(..=newest);
            }
            !entry.newer.is_empty()
        });
    }

    /// The kernel drops what it could not write: no later flush covers it, though it succeeds.
    fn forget(&mut self, submitted: u64) {
        let dropped = self
            .volatile
            .values_mut()
            .flat_map(|entry| &mut entry.newer);
        for (ended, _) in dropped.filter(|(ended, _)| *ended <= submitted) {
            *ended = u64::MAX;
        }
    }
}

fn blocks_of(offset: u64, len: u64) -> std::ops::Range<u64> {
    let block = BLOCK as u64;
    assert!(
        offset.is_multiple_of(block) && len.is_multiple_of(block) && len > 0,
        "{offset}+{len} are not whole blocks"
    );
    offset / block..(offset + len) / block
}

fn block_values(data: &Bytes) -> impl Iterator<Item = BlockValue> + '_ {
    data.chunks_exact(BLOCK).map(|block| {
        let mut values = content::from_bytes(block);
        std::array::from_fn(|_| {
            let value = values.next().expect("eight sectors");
            value.unwrap_or_else(|| {
                panic!("Integrity: bytes that nobody wrote are written to a disk")
            })
        })
    })
}

fn writes_of(op: &DiskOp) -> Box<dyn Iterator<Item = (u64, BlockValue)> + '_> {
    match op {
        DiskOp::Write { offset, data, .. } => {
            Box::new(blocks_of(*offset, data.len() as u64).zip(block_values(data)))
        }
        DiskOp::Zero { offset, len, .. } => {
            Box::new(blocks_of(*offset, *len).map(|block| (block, ZEROES)))
        }
        DiskOp::Read { .. } | DiskOp::Flush => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(block: u64, number: u32, fua: bool) -> (DiskOp, BlockValue) {
        let values = std::array::from_fn(|nth| content::value(block * 8 + nth as u64, number));
        let data = content::to_bytes(&values);
        let offset = block * 4096;
        (DiskOp::Write { offset, data, fua }, values)
    }

    fn run(store: &mut Store, id: u64, op: DiskOp) -> DiskResult {
        store.submit(id, op, 0, &mut Rng::new(id));
        store.complete(id, true, &mut |_| {})
    }

    #[test]
    fn a_flush_covers_what_ended_before_it_was_submitted() {
        let mut rng = Rng::new(1);
        let mut store = Store::new(4);
        let (early, first) = write(1, 1, false);
        let (late, _) = write(2, 2, false);
        run(&mut store, 1, early).unwrap();
        store.submit(2, late, 0, &mut rng);
        store.submit(3, DiskOp::Flush, 0, &mut rng);
        store.complete(2, true, &mut |_| {}).unwrap();
        store.complete(3, true, &mut |_| {}).unwrap();
        assert_eq!(store.durable(1), first);
        assert_eq!(
            store.durable(2),
            ZEROES,
            "it ended after the flush had left"
        );
        assert!(store.is_volatile(2) && !store.is_volatile(1));
    }

    #[test]
    fn a_crash_keeps_what_was_flushed_and_any_part_of_the_rest() {
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..400 {
            let mut rng = Rng::new(seed);
            let mut store = Store::new(4);
            let (old, before) = write(1, 1, true);
            let (new, after) = write(1, 2, false);
            run(&mut store, 1, old).unwrap();
            run(&mut store, 2, new).unwrap();
            let gone = store.crash(&mut rng);
            let now = store.block(1);
            assert!((0..SECTORS).all(|nth| now[nth] == before[nth] || now[nth] == after[nth]));
            match now {
                now if now == after => kept += 1,
                now if now == before => lost += 1,
                _ => torn += 1,
            }
            assert_eq!(gone.contains(&(8, after[0])), now[0] != after[0]);
            assert!(!store.is_volatile(1));
        }
        assert!(
            kept > 50 && lost > 50 && torn > 5,
            "{kept} kept, {lost} lost, {torn} torn"
        );
    }

    #[test]
    fn what_is_under_way_lands_after_a_death_and_perhaps_after_a_crash() {
        let (mut there, mut gone) = (0, 0);
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let mut store = Store::new(4);
            let (op, values) = write(3, 9, false);
            store.submit(1, op, 0, &mut rng);
            assert_eq!(store.block(3), ZEROES);
            let mut dead = store.clone();
            dead.complete(1, false, &mut |block| assert_eq!(block, 3))
                .unwrap();
            assert_eq!(dead.block(3), values);
            store.crash(&mut rng);
            if store.block(3) == ZEROES {
                gone += 1
            } else {
                there += 1
            }
        }
        assert!(there > 0 && gone > 0);
    }

    #[test]
    fn what_a_failed_flush_forgot_is_gone_or_read_until_the_machine_crashes() {
        for hides in [false, true] {
            let mut gone = 0;
            for seed in 0..50 {
                let mut rng = Rng::new(seed);
                let mut store = Store::new(4);
                let (op, values) = write(3, 9, false);
                run(&mut store, 1, op).unwrap();
                store.fail_unheard = true;
                store.submit(2, DiskOp::Flush, 0, &mut rng);
                assert!(store.complete(2, false, &mut |_| {}).is_err());
                store.come_back(hides, &mut rng);
                assert_eq!(store.hides(), hides);
                run(&mut store, 3, DiskOp::Flush).unwrap();
                assert_eq!(store.is_volatile(3), hides, "no flush covers it");
                assert!(!hides || store.block(3) == values);
                if hides && seed % 2 == 0 {
                    store.remember();
                    run(&mut store, 4, DiskOp::Flush).unwrap();
                    assert_eq!(store.durable(3), values);
                    continue;
                }
                store.crash(&mut rng);
                gone += u64::from(store.block(3) != values);
            }
            assert!(gone > 5, "{gone} of 50 were lost");
        }
    }

    #[test]
    fn faults_say_what_failed() {
        let mut store = Store::new(8);
        store.unreadable.insert(2);
        let read = DiskOp::Read {
            offset: 4096,
            len: 8192,
        };
        assert_eq!(run(&mut store, 1, read.clone()), Err(DiskFault::Io(EIO)));
        run(&mut store, 2, write(2, 1, false).0).unwrap();
        assert!(run(&mut store, 3, read).is_ok(), "writing a block heals it");
        store.full = true;
        assert_eq!(
            run(&mut store, 4, write(5, 1, false).0),
            Err(DiskFault::NoSpace)
        );
        assert!(run(&mut store, 5, write(2, 2, false).0).is_ok());
        store.fail_flush = true;
        assert_eq!(run(&mut store, 6, DiskOp::Flush), Err(DiskFault::Io(EIO)));
        assert!(
            run(&mut store, 7, DiskOp::Flush).is_ok(),
            "the next one lies"
        );
        assert!(
            store.is_volatile(2),
            "and has put nothing on stable storage"
        );
        store.failed = true;
        assert!(run(&mut store, 8, write(2, 3, false).0).is_err());
    }
}
