//! A metadata store: bytes that change by steps, each durable before the next.
//!
//! Decides what a crash leaves of a step under way: any of its 512-byte sectors. A daemon's
//! death stops after the step under way, of which any whole writes land. What the bytes mean is
//! left to the bitmap crate: a crash is followed by its own recovery of these bytes.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kagami_bitmap::layout::{Placement, SLOTS_BYTES};
use kagami_bitmap::recover::{Recovered, recover};
use kagami_bitmap::slots::{SuperblockFault, read_slots};
use kagami_bitmap::superblock::Record;

use super::content::SECTOR;
use super::rng::Rng;

type Step = Vec<(u64, Bytes)>;

/// One node's metadata store.
#[derive(Clone, Debug)]
pub struct Metadata {
    bytes: Vec<u8>,
    in_flight: BTreeMap<u64, VecDeque<Step>>,
    /// The record as a crash now would leave it, if no step that touches it is under way.
    record: Option<Record>,
}

impl Metadata {
    /// A store that holds these bytes, durably.
    pub fn new(bytes: Vec<u8>) -> Self {
        let mut made = Self {
            bytes,
            in_flight: BTreeMap::new(),
            record: None,
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
        let taken = self.in_flight.insert(id, steps.into()).is_some();
        assert!(!taken, "metadata write {id} twice");
    }

    /// True if this write is under way.
    pub fn has(&self, id: u64) -> bool {
        self.in_flight.contains_key(&id)
    }

    /// Ends the step under way of a write. True if that was the last.
    pub fn step(&mut self, id: u64) -> bool {
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
            self.put(offset, &bytes);
        }
        last
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
        self.read_record();
    }

    /// What a crash now might leave.
    pub fn after_crash(&self, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
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

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let at = offset as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        if offset < SLOTS_BYTES {
            self.read_record();
        }
    }

    fn read_record(&mut self) {
        let read = read_slots(
            &self.bytes[..SLOTS_BYTES as usize],
            self.bytes.len() as u64,
            None,
        );
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
        assert!(!store.step(1));
        assert_eq!((store.bytes[8192], store.bytes[8704]), (1, 0));
        assert!(store.step(1) && store.is_idle());
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
        assert!(store.step(1));
        let first = store.bytes[8192];
        assert!(store.bytes[8192..12288].iter().all(|byte| *byte == first));
        assert_eq!(store.bytes[12288], 0);
    }
}
