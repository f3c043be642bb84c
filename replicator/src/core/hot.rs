//! Heating extents: a block is written only under a durable mark (docs/protocol.md §7), and a
//! hot extent is one for all its blocks.
//!
//! A write is admitted while all extents of admitted writes fit into the activity log, so that
//! writes never wait for each other's extents; it holds its extents (*pins*) until it has ended.

use std::collections::{BTreeMap, VecDeque};

use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::{CutRecord, Extent, Run};

use super::durable::Work;
use super::write::{Stage, WriteKey};
use super::{Actions, Mirror, Store};

/// Who holds and who waits for extents.
#[derive(Debug, Default)]
pub(super) struct Heat {
    pins: BTreeMap<Extent, u32>,
    /// Not admitted yet, in order.
    queue: VecDeque<WriteKey>,
    /// Admitted, and an extent is not hot yet.
    cold: Vec<WriteKey>,
    /// Extents that can't cool before their pages are written, oldest first.
    pub in_the_way: Vec<Extent>,
}

impl Heat {
    pub fn is_pinned(&self, extent: Extent) -> bool {
        self.pins.contains_key(&extent)
    }

    pub fn pinned(&self) -> usize {
        self.pins.len()
    }

    pub fn unpin(&mut self, run: Run) {
        for extent in run.extents() {
            match self.pins.get_mut(&extent) {
                Some(1) => {
                    self.pins.remove(&extent);
                }
                Some(pins) => *pins -= 1,
                None => panic!("{extent} was not pinned"),
            }
        }
    }

    fn pin(&mut self, run: Run) {
        for extent in run.extents() {
            *self.pins.entry(extent).or_default() += 1;
        }
    }

    pub fn forget(&mut self, key: WriteKey) {
        self.queue.retain(|k| *k != key);
        self.cold.retain(|k| *k != key);
    }
}

impl Mirror {
    /// Asks for the extents of a write; it is started once they are hot.
    pub(super) fn heat_for(&mut self, key: WriteKey, out: &mut Actions) {
        let span = self.writes[key.0].span;
        if !self.has_copy() {
            return self.on_heated(key, out);
        }
        assert!(
            span.extents().count() <= self.log.capacity() as usize / 2,
            "{span} is cut to fit the activity log"
        );
        self.writes[key.0].stage = Stage::Cold;
        if self.heat.queue.is_empty() && self.has_room_for(span) {
            self.admit(key, span, out);
        } else {
            self.heat.queue.push_back(key);
        }
    }

    fn has_room_for(&self, span: Run) -> bool {
        let more = span.extents().filter(|e| !self.heat.is_pinned(*e)).count();
        self.heat.pinned() + more <= self.log.capacity() as usize
    }

    fn admit(&mut self, key: WriteKey, span: Run, out: &mut Actions) {
        self.heat.pin(span);
        self.writes[key.0].pinned = true;
        let mut hot = true;
        for extent in span.extents() {
            if self.log.is_hot(extent) {
                self.log.touch(extent);
            } else {
                self.log.want(extent);
                hot = false;
            }
        }
        if hot {
            self.on_heated(key, out);
        } else {
            self.heat.cold.push(key);
        }
    }

    /// Admits what fits, and writes the next record of the activity log if one is wanted.
    pub(super) fn advance_heat(&mut self, out: &mut Actions) {
        while let Some(key) = self.heat.queue.front().copied() {
            let span = self.writes[key.0].span;
            if !self.has_room_for(span) {
                break;
            }
            self.heat.queue.pop_front();
            self.admit(key, span, out);
        }
        if self.log.wants() == 0
            || self.log.is_record_on_its_way()
            || self.local.store != Store::Usable
        {
            return;
        }
        let (pins, unflushed, bitmap) = (&self.heat.pins, &self.unflushed, &self.bitmap);
        let mut held_by_flush = false;
        let mut in_the_way = Vec::new();
        // An extent may leave the log when its marks do not need it (§7).
        let cut = self.log.cut_record(|extent| {
            if pins.contains_key(&extent) {
                return false;
            }
            if unflushed.touches(extent) && !planted(Defect::CoolsUnflushed) {
                held_by_flush = true;
                return false;
            }
            let lacking = bitmap.lacks_marks(extent) && !planted(Defect::CoolsUnwritten);
            if lacking {
                in_the_way.push(extent);
            }
            !lacking
        });
        if self.log.wants() > 0 {
            self.flush.wanted |= held_by_flush;
            self.heat.in_the_way = in_the_way;
        }
        if let Some(record) = cut {
            self.write_log_record(record, out);
        }
    }

    /// The writes that wait for extents, admitted or not: the store failed, they need none.
    pub(super) fn take_cold(&mut self) -> Vec<WriteKey> {
        let mut keys = std::mem::take(&mut self.heat.cold);
        keys.extend(std::mem::take(&mut self.heat.queue));
        keys
    }

    /// A clean stop: the log says that nothing is hot, so the next start marks nothing.
    pub(super) fn empty_log(&mut self, out: &mut Actions) {
        assert!(
            self.heat.pins.is_empty(),
            "an extent is in use at the end of a clean stop"
        );
        let record = self.log.cut_reset();
        self.write_log_record(record, out);
    }

    fn write_log_record(&mut self, record: CutRecord, out: &mut Actions) {
        let offset = self.durable.superblock().layout.log_offset() + record.offset;
        self.counters.log_records += 1;
        if planted(Defect::SkipActivityLog) {
            let steps = vec![vec![(offset, record.image)]];
            self.write_metadata(Work::Pages(Vec::new()), steps, out);
            self.pages.under_way += 1;
            return self.on_log_durable(record.seq, out);
        }
        self.write_metadata(
            Work::Log { seq: record.seq },
            vec![vec![(offset, record.image)]],
            out,
        );
    }

    pub(super) fn on_log_durable(&mut self, seq: u64, out: &mut Actions) {
        self.log.record_done(seq);
        let cold = std::mem::take(&mut self.heat.cold);
        for key in cold {
            let span = self.writes[key.0].span;
            if span.extents().all(|e| self.log.is_hot(e)) {
                self.on_heated(key, out);
            } else {
                self.heat.cold.push(key);
            }
        }
        self.on_log_emptied(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_is_pinned_as_often_as_writes_hold_it() {
        let run = |first, count| Run::new(kagami_bitmap::Block(first), count);
        let (both, second) = (run(1000, 100), run(1024, 1));
        let mut heat = Heat::default();
        heat.pin(both);
        heat.pin(second);
        heat.pin(second);
        assert_eq!(heat.pinned(), 2);
        heat.unpin(second);
        heat.unpin(both);
        assert_eq!(heat.pinned(), 1);
        assert!(heat.is_pinned(Extent(1)) && !heat.is_pinned(Extent(0)));
        heat.unpin(second);
        assert_eq!(heat.pinned(), 0);
    }

    #[test]
    fn a_write_that_is_forgotten_waits_for_no_extent() {
        let mut heat = Heat {
            queue: [1, 2].map(WriteKey).into(),
            cold: [3, 4].map(WriteKey).into(),
            ..Heat::default()
        };
        heat.forget(WriteKey(2));
        heat.forget(WriteKey(3));
        assert_eq!(heat.queue, [WriteKey(1)]);
        assert_eq!(heat.cold, [WriteKey(4)]);
    }
}
