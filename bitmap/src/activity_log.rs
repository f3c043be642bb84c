//! The activity log in memory: which extents are hot, and what the next record says.
//!
//! Owned by the mirror's core, which asks for extents ([`ActivityLog::want`]), cuts a record
//! when none is on its way, writes it, and reports how that went. Decides which extents give
//! way (least recently touched, if the core lets them cool) and in which slots they are.
//! Keeps a hot extent hot until a record without it is cut, and no extent hot before its
//! record is durable. What is on disk: record.rs; reading it back: recover.rs.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;

use crate::geometry::Extent;
use crate::record::{
    self, CHANGES_PER_RECORD, MAX_CAPACITY, MIN_CAPACITY, Record, RecordKind, ring_records,
};
use crate::sector::{SECTORS_PER_UNIT, UNIT_BYTES};

/// A record to be written, durably, before [`ActivityLog::record_done`] is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutRecord {
    /// Its sequence number: names it in `record_done` and `record_failed`.
    pub seq: u64,
    /// Its place in the ring.
    pub index: u32,
    /// Bytes from the start of the log's area: `index` × 4096.
    pub offset: u64,
    /// 4096 bytes.
    pub image: Bytes,
}

/// Where the log stands on disk: what recovery found, or what a fresh store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogState {
    /// What each slot holds; its length is the capacity.
    pub slots: Vec<Option<Extent>>,
    /// Sequence number of the newest complete record.
    pub newest_seq: u64,
    /// Its place in the ring.
    pub newest_index: u32,
    /// The window that the next record starts with.
    pub next_window: u32,
    /// Higher than any sequence number in the ring, torn records included.
    pub next_seq: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heat {
    /// In a record that is on its way, or whose write failed.
    Heating,
    /// In durable records.
    Hot,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: u32,
    heat: Heat,
}

/// The hot set and its log.
#[derive(Clone, Debug)]
pub struct ActivityLog {
    tag: u64,
    /// As after the record cut last.
    slots: Vec<Option<Extent>>,
    entries: HashMap<Extent, Entry>,
    age: Age,
    free: Vec<u32>,
    queue: VecDeque<Extent>,
    queued: HashSet<Extent>,
    cooling: VecDeque<Extent>,
    /// Slots changed by the record on its way, or by failed ones since the newest durable one.
    unsettled: Vec<u32>,
    on_its_way: Option<u64>,
    /// The next record must be a reset: one was cut and is not known to be durable.
    reset: bool,
    hot: u32,
    newest_seq: u64,
    next_index: u32,
    next_window: u32,
    next_seq: u64,
}

impl ActivityLog {
    /// The log of a store as [`crate::Format`] left it, for the mirror with `tag`: nothing is
    /// hot. `next_seq`: [`LogState::fresh`]'s, or any higher number.
    pub fn new(capacity: u32, next_seq: u64, tag: u64) -> Self {
        let mut state = LogState::fresh(capacity);
        state.next_seq = state.next_seq.max(next_seq);
        Self::resume(state, tag)
    }

    /// The log as recovery found it: what was hot is hot.
    pub fn resume(state: LogState, tag: u64) -> Self {
        let capacity = state.slots.len() as u32;
        assert!(
            (MIN_CAPACITY..=MAX_CAPACITY).contains(&capacity),
            "an activity log of {capacity} extents"
        );
        let mut log = Self {
            tag,
            entries: HashMap::with_capacity(state.slots.len()),
            age: Age::new(capacity),
            // Popped from the end: low slots first.
            free: Vec::with_capacity(state.slots.len()),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            cooling: VecDeque::new(),
            unsettled: Vec::new(),
            on_its_way: None,
            reset: false,
            hot: 0,
            newest_seq: state.newest_seq,
            next_index: (state.newest_index + 1) % ring_records(capacity),
            next_window: state.next_window % record::windows(capacity),
            next_seq: state.next_seq,
            slots: state.slots,
        };
        for slot in (0..capacity).rev() {
            let Some(extent) = log.slots[slot as usize] else {
                log.free.push(slot);
                continue;
            };
            let heat = Heat::Hot;
            let before = log.entries.insert(extent, Entry { slot, heat });
            assert!(before.is_none(), "{extent} in two slots");
            log.age.push_young(slot);
            log.hot += 1;
        }
        log
    }

    /// How many extents can be hot at once.
    pub fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    /// How many extents are hot.
    pub fn len(&self) -> u32 {
        self.hot
    }

    /// True if no extent is hot.
    pub fn is_empty(&self) -> bool {
        self.hot == 0
    }

    /// True if the extent is durably hot: blocks in it may be written.
    pub fn is_hot(&self, extent: Extent) -> bool {
        matches!(self.entries.get(&extent), Some(entry) if entry.heat == Heat::Hot)
    }

    /// The hot extents, in no useful order, the same in every run.
    pub fn hot(&self) -> impl Iterator<Item = Extent> + '_ {
        let slots = self.slots.iter().flatten().copied();
        slots.filter(|&extent| self.is_hot(extent))
    }

    /// The hot extents, the least recently touched first.
    pub fn by_age(&self) -> impl Iterator<Item = Extent> + '_ {
        let slots = std::iter::successors(self.age.oldest(), |&slot| self.age.younger(slot));
        slots.filter_map(|slot| self.slots[slot as usize])
    }

    /// The sequence number of the next record.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// A hot extent was used: it is the last to give way.
    pub fn touch(&mut self, extent: Extent) {
        if let Some(entry) = self.entries.get(&extent)
            && entry.heat == Heat::Hot
        {
            self.age.remove(entry.slot);
            self.age.push_young(entry.slot);
        }
    }

    /// Asks that the extent become hot with the next record. Nothing happens if it is hot,
    /// heating or asked for.
    pub fn want(&mut self, extent: Extent) {
        if !self.entries.contains_key(&extent) && self.queued.insert(extent) {
            self.queue.push_back(extent);
        }
    }

    /// How many extents wait for a record to be cut; those of a failed record wait again.
    pub fn wants(&self) -> usize {
        let heating = match self.on_its_way {
            Some(_) => 0,
            None => self.heating().count(),
        };
        self.queue.len() + heating
    }

    /// Lets the extent cool with the next record, if the core still allows it then.
    pub fn cool(&mut self, extent: Extent) {
        if self.is_hot(extent) && !self.cooling.contains(&extent) {
            self.cooling.push_back(extent);
        }
    }

    /// True between a cut and its `record_done` or `record_failed`.
    pub fn is_record_on_its_way(&self) -> bool {
        self.on_its_way.is_some()
    }

    /// Cuts the next record: up to 64 changes, for extents that are wanted, or may cool.
    ///
    /// `may_cool` is asked for hot extents, oldest first, and answers true only if no write
    /// is under way in the extent, none unflushed on either copy, and its page on disk lacks
    /// no marks ([`crate::DirtyBitmap::lacks_marks`]). An extent that gives way is not hot
    /// from now on, whatever becomes of the record.
    ///
    /// None if a record is on its way, nothing is asked for, or nothing may cool.
    pub fn cut_record(&mut self, mut may_cool: impl FnMut(Extent) -> bool) -> Option<CutRecord> {
        if self.on_its_way.is_some() {
            return None;
        }
        let mut changed: HashSet<u32> = self.unsettled.iter().copied().collect();
        while self.unsettled.len() < CHANGES_PER_RECORD {
            let Some(extent) = self.cooling.pop_front() else {
                break;
            };
            if let Some(&entry) = self.entries.get(&extent)
                && entry.heat == Heat::Hot
                && may_cool(extent)
            {
                self.empty_slot(extent, entry.slot);
                self.note(entry.slot, &mut changed);
            }
        }
        let mut victims = self.age.oldest();
        while self.unsettled.len() < CHANGES_PER_RECORD && !self.queue.is_empty() {
            let Some(slot) = self.free_slot(&mut victims, &mut may_cool) else {
                break;
            };
            let extent = self.queue.pop_front().expect("checked above");
            self.queued.remove(&extent);
            let heat = Heat::Heating;
            self.entries.insert(extent, Entry { slot, heat });
            self.slots[slot as usize] = Some(extent);
            self.note(slot, &mut changed);
        }
        if self.unsettled.is_empty() && !self.reset {
            return None;
        }
        Some(self.cut())
    }

    /// Cuts the record of a clean stop: from now on nothing is hot.
    ///
    /// The caller has stopped writing, both copies are flushed, and no page on disk lacks
    /// marks. No record may be on its way. What was asked for is forgotten.
    pub fn cut_reset(&mut self) -> CutRecord {
        assert!(self.on_its_way.is_none(), "a record is on its way");
        let state = LogState {
            slots: vec![None; self.slots.len()],
            newest_seq: self.newest_seq,
            newest_index: self.newest_index(),
            next_window: self.next_window,
            next_seq: self.next_seq,
        };
        *self = Self::resume(state, self.tag);
        self.reset = true;
        self.cut()
    }

    /// The record is durable: gives the extents that are hot by it.
    pub fn record_done(&mut self, seq: u64) -> Vec<Extent> {
        self.landed(seq);
        self.newest_seq = seq;
        self.next_index = (self.next_index + 1) % ring_records(self.capacity());
        self.next_window =
            (self.next_window + SECTORS_PER_UNIT as u32) % record::windows(self.capacity());
        self.reset = false;
        let mut newly = Vec::new();
        for slot in std::mem::take(&mut self.unsettled) {
            let Some(extent) = self.slots[slot as usize] else {
                self.free.push(slot);
                continue;
            };
            let entry = self.entries.get_mut(&extent).expect("a slot's extent");
            if entry.heat == Heat::Heating {
                entry.heat = Heat::Hot;
                self.age.push_young(slot);
                self.hot += 1;
                newly.push(extent);
            }
        }
        newly
    }

    /// The record's write failed. On disk it may be old, torn or complete, so its changes are
    /// in the next record again, which goes to the same place of the ring: extents that gave
    /// way stay cold, those it brought wait for the next record.
    pub fn record_failed(&mut self, seq: u64) {
        self.landed(seq);
    }

    fn landed(&mut self, seq: u64) {
        assert_eq!(self.on_its_way, Some(seq), "not the record on its way");
        self.on_its_way = None;
    }

    fn heating(&self) -> impl Iterator<Item = Extent> + '_ {
        let slots = self.unsettled.iter();
        slots
            .filter_map(|&slot| self.slots[slot as usize])
            .filter(|extent| !self.is_hot(*extent))
    }

    fn newest_index(&self) -> u32 {
        let records = ring_records(self.capacity());
        (self.next_index + records - 1) % records
    }

    /// A slot for a new extent: a free one, or that of the oldest extent that may cool.
    fn free_slot(
        &mut self,
        victims: &mut Option<u32>,
        may_cool: &mut impl FnMut(Extent) -> bool,
    ) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        while let Some(slot) = *victims {
            *victims = self.age.younger(slot);
            let extent = self.slots[slot as usize].expect("an aged slot holds an extent");
            if may_cool(extent) {
                self.empty_slot(extent, slot);
                return Some(slot);
            }
        }
        None
    }

    fn empty_slot(&mut self, extent: Extent, slot: u32) {
        self.entries.remove(&extent);
        self.age.remove(slot);
        self.slots[slot as usize] = None;
        self.hot -= 1;
    }

    fn note(&mut self, slot: u32, changed: &mut HashSet<u32>) {
        if changed.insert(slot) {
            self.unsettled.push(slot);
        }
    }

    fn cut(&mut self) -> CutRecord {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.on_its_way = Some(seq);
        let record = Record {
            kind: if self.reset {
                RecordKind::Reset
            } else {
                RecordKind::Changes
            },
            seq,
            previous: self.newest_seq,
            changes: &self.unsettled,
            window: self.next_window,
            slots: &self.slots,
        };
        CutRecord {
            seq,
            index: self.next_index,
            offset: u64::from(self.next_index) * UNIT_BYTES as u64,
            image: record.encode(self.next_index, self.tag),
        }
    }
}

impl LogState {
    /// What [`crate::Format`] writes: a ring of resets with sequence numbers from 1.
    pub fn fresh(capacity: u32) -> Self {
        Self::emptied(capacity, 0)
    }

    /// A ring of resets, with sequence numbers above `seq`; [`empty_ring`] makes it.
    pub fn emptied(capacity: u32, seq: u64) -> Self {
        let records = ring_records(capacity);
        Self {
            slots: vec![None; capacity as usize],
            newest_seq: seq + u64::from(records),
            newest_index: records - 1,
            next_window: 0,
            next_seq: seq + u64::from(records) + 1,
        }
    }
}

/// The records of an empty ring, each with its place: sequence numbers above `seq`.
pub fn empty_ring(capacity: u32, seq: u64, tag: u64) -> impl Iterator<Item = (u32, Bytes)> {
    let slots = vec![None; capacity as usize];
    (0..ring_records(capacity)).map(move |index| {
        let record = Record {
            kind: RecordKind::Reset,
            seq: seq + 1 + u64::from(index),
            previous: seq + u64::from(index),
            changes: &[],
            window: 0,
            slots: &slots,
        };
        (index, record.encode(index, tag))
    })
}

/// The hot slots by age: a doubly linked list in arrays.
#[derive(Clone, Debug)]
struct Age {
    /// Links of slot s at s; the list's ends at the index behind the last slot.
    younger: Vec<u32>,
    older: Vec<u32>,
}

impl Age {
    fn new(capacity: u32) -> Self {
        Self {
            younger: vec![capacity; capacity as usize + 1],
            older: vec![capacity; capacity as usize + 1],
        }
    }

    fn end(&self) -> u32 {
        self.younger.len() as u32 - 1
    }

    fn oldest(&self) -> Option<u32> {
        self.younger(self.end())
    }

    fn younger(&self, slot: u32) -> Option<u32> {
        let next = self.younger[slot as usize];
        (next != self.end()).then_some(next)
    }

    fn push_young(&mut self, slot: u32) {
        let end = self.end();
        let last = self.older[end as usize];
        self.link(last, slot);
        self.link(slot, end);
    }

    fn remove(&mut self, slot: u32) {
        self.link(self.older[slot as usize], self.younger[slot as usize]);
    }

    fn link(&mut self, older: u32, younger: u32) {
        self.younger[older as usize] = younger;
        self.older[younger as usize] = older;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u32 = 64;

    fn log() -> ActivityLog {
        ActivityLog::new(CAPACITY, 0, 1)
    }

    fn heat(log: &mut ActivityLog, extents: std::ops::Range<u32>) -> Vec<Extent> {
        extents.for_each(|extent| log.want(Extent(extent)));
        let record = log.cut_record(|_| true).expect("something to record");
        log.record_done(record.seq)
    }

    #[test]
    fn an_extent_is_hot_when_its_record_is_durable() {
        let mut log = log();
        assert!(log.cut_record(|_| true).is_none());
        log.want(Extent(5));
        log.want(Extent(5));
        assert_eq!(log.wants(), 1);
        let record = log.cut_record(|_| true).unwrap();
        assert_eq!((record.seq, record.index, record.image.len()), (9, 0, 4096));
        assert!(!log.is_hot(Extent(5)) && log.wants() == 0);
        log.want(Extent(6));
        assert!(log.cut_record(|_| true).is_none(), "one at a time");
        assert_eq!(log.record_done(record.seq), [Extent(5)]);
        assert!(log.is_hot(Extent(5)) && log.wants() == 1);
        assert_eq!(log.cut_record(|_| true).unwrap().index, 1);
    }

    #[test]
    fn the_oldest_that_may_cool_gives_way_at_the_cut() {
        let mut log = log();
        heat(&mut log, 0..CAPACITY);
        log.touch(Extent(0));
        log.want(Extent(100));
        assert!(log.cut_record(|_| false).is_none());
        assert_eq!((log.wants(), log.len()), (1, CAPACITY));
        let record = log.cut_record(|extent| extent != Extent(1)).unwrap();
        assert!(!log.is_hot(Extent(2)) && log.is_hot(Extent(1)) && log.is_hot(Extent(0)));
        assert_eq!(log.record_done(record.seq), [Extent(100)]);
        assert_eq!(log.len(), CAPACITY);
    }

    #[test]
    fn a_batch_has_at_most_64_changes() {
        let mut log = ActivityLog::new(1024, 0, 1);
        assert_eq!(heat(&mut log, 0..100).len(), 64);
        assert_eq!(log.wants(), 36);
        assert_eq!(heat(&mut log, 0..0).len(), 36);
    }

    #[test]
    fn what_a_failed_record_brought_waits_and_what_gave_way_is_cold() {
        let mut log = log();
        heat(&mut log, 0..CAPACITY);
        log.want(Extent(100));
        let failed = log.cut_record(|_| true).unwrap();
        log.record_failed(failed.seq);
        assert!(!log.is_hot(Extent(0)) && !log.is_hot(Extent(100)));
        assert_eq!(log.wants(), 1);
        log.want(Extent(0));
        let again = log.cut_record(|_| true).unwrap();
        assert_eq!((again.seq, again.index), (failed.seq + 1, failed.index));
        assert_eq!(log.record_done(again.seq), [Extent(100), Extent(0)]);
    }

    #[test]
    fn extents_cool_early_if_allowed() {
        let mut log = log();
        heat(&mut log, 0..3);
        log.cool(Extent(1));
        log.cool(Extent(2));
        log.cool(Extent(9));
        let record = log.cut_record(|extent| extent == Extent(1)).unwrap();
        assert!(log.record_done(record.seq).is_empty());
        assert_eq!(log.hot().collect::<Vec<_>>(), [Extent(0), Extent(2)]);
        assert!(log.cut_record(|_| true).is_none());
    }

    #[test]
    fn a_reset_empties_the_set_even_if_its_write_fails() {
        let mut log = log();
        heat(&mut log, 0..CAPACITY);
        let reset = log.cut_reset();
        assert!(log.is_empty());
        log.record_failed(reset.seq);
        let again = log.cut_record(|_| true).unwrap();
        assert_eq!(again.index, reset.index);
        assert!(log.record_done(again.seq).is_empty());
        assert!(log.cut_record(|_| true).is_none());
        assert_eq!(heat(&mut log, 0..CAPACITY).len(), 64);
    }
}
