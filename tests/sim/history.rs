//! What a read may find: for each sector, the writes that no answered later one has replaced.
//!
//! A write is a span of time from its request to its answer (or to the moment from which nobody
//! can answer it: its daemon died, it failed). It replaces those that had ended before it began,
//! once it is answered. Of writes whose spans overlap any may be the last. A write without an
//! answer may be found or not until it is replaced.
//!
//! Three levels: *newest*, what a read must find while no copy was lost; *surviving*, what it must
//! find beside what crashes took from the copies that it is answered from, and from those that these were brought up to
//! date by; *flushed*, what it must find whatever has crashed. Time is the world's count of events.

use std::collections::{BTreeMap, BTreeSet};

use super::content::{Value, ZERO};

const OPEN: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    value: Value,
    start: u64,
    /// `OPEN` while its answer is awaited.
    end: u64,
    answered: bool,
    flushed: bool,
    /// A crash took it from these copies, or from the one that such a copy was brought up to date by.
    lost: [bool; 2],
    by: usize,
}

impl Entry {
    fn is_lost(&self) -> bool {
        self.lost[0] || self.lost[1]
    }
}

/// What must be found at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// No answered write is missing.
    Newest,
    /// No answered write is missing that no crash took from these copies.
    Surviving {
        /// By node: it is answered from that copy.
        on: [bool; 2],
    },
    /// No answered write that an answered flush covers is missing.
    Flushed,
    /// The write that began at `start`, and what had been answered before it began: what was
    /// answered beside it may be older than it, or not flushed.
    Write {
        /// When it began.
        start: u64,
    },
}

/// The writes of every sector.
#[derive(Clone, Debug, Default)]
pub struct History {
    sectors: BTreeMap<u64, Vec<Entry>>,
    /// Sectors with an answered write that no flush covers.
    unflushed: BTreeSet<u64>,
    /// Writes may be answered before the peer has them.
    pub early: bool,
}

const BEFORE_ALL: Entry = Entry {
    value: ZERO,
    start: 0,
    end: 0,
    answered: true,
    flushed: true,
    lost: [false; 2],
    by: 0,
};

impl History {
    /// The sector held this before anything was written.
    pub fn preload(&mut self, sector: u64, value: Value) {
        self.sectors.insert(
            sector,
            vec![Entry {
                value,
                ..BEFORE_ALL
            }],
        );
    }

    /// A write was asked for, at node `by`.
    pub fn begin(&mut self, sector: u64, value: Value, start: u64, by: usize) {
        let entries = self
            .sectors
            .entry(sector)
            .or_insert_with(|| vec![BEFORE_ALL]);
        entries.push(Entry {
            value,
            start,
            end: OPEN,
            answered: false,
            flushed: false,
            lost: [false; 2],
            by,
        });
    }

    /// The write that began at `start` ended: answered, or nobody will know.
    pub fn end(&mut self, sector: u64, start: u64, end: u64, answered: bool) {
        let Some(entries) = self.sectors.get_mut(&sector) else {
            return;
        };
        if let Some(entry) = entries.iter_mut().find(|entry| entry.start == start) {
            entry.end = end;
            entry.answered = answered;
            if answered {
                self.unflushed.insert(sector);
            }
        }
    }

    /// True if a read that began at `bound` may find the value.
    pub fn may_find(&self, sector: u64, value: Value, bound: u64, level: Level) -> bool {
        let Some(entries) = self.sectors.get(&sector) else {
            return value == ZERO;
        };
        let counts = |later: &Entry| match level {
            Level::Newest => true,
            Level::Surviving { on } => {
                later.flushed || !(0..2).any(|copy| on[copy] && later.lost[copy])
            }
            Level::Flushed => later.flushed,
            Level::Write { start } => later.start == start || later.end <= start,
        };
        let replaced = |entry: &Entry| {
            entries.iter().any(|later| {
                later.answered && counts(later) && later.end <= bound && entry.end < later.start
            })
        };
        entries
            .iter()
            .any(|entry| entry.value == value && !replaced(entry))
    }

    /// A crash took this value from a copy.
    pub fn lost(&mut self, sector: u64, value: Value, copy: usize) {
        let entries = self.sectors.get_mut(&sector).into_iter().flatten();
        for entry in entries.filter(|entry| entry.value == value) {
            entry.lost[copy] = true;
        }
    }

    /// A copy begins to be overwritten with what another one has: what that one lost is lost there, too.
    pub fn follows(&mut self, copy: usize, source: usize) {
        for entry in self.sectors.values_mut().flatten() {
            entry.lost[copy] |= entry.lost[source];
        }
    }

    /// A copy holds what another one has: what it lost by itself is there again.
    pub fn has_followed(&mut self, copy: usize, source: usize) {
        for entry in self.sectors.values_mut().flatten() {
            entry.lost[copy] = entry.lost[source];
        }
    }

    /// True if a crash took the write that began at `start` from a copy.
    pub fn is_lost(&self, sector: u64, start: u64) -> bool {
        let mut entries = self.sectors.get(&sector).into_iter().flatten();
        entries.any(|entry| entry.start == start && entry.is_lost())
    }

    /// When the first answered write that replaced this value was answered.
    pub fn replaced_at(&self, sector: u64, value: Value) -> Option<u64> {
        let entries = self.sectors.get(&sector)?;
        let ended = entries
            .iter()
            .filter(|entry| entry.value == value)
            .map(|entry| entry.end)
            .max()?;
        let later = entries
            .iter()
            .filter(|later| later.answered && later.start > ended);
        later.map(|later| later.end).min()
    }

    /// This value, answered before `bound`, is on its way to a copy that was found without it: it may
    /// be found there or not from now on, as if it had no answer.
    pub fn doubt(&mut self, sector: u64, value: Value, bound: u64) {
        let entries = self.sectors.get_mut(&sector).into_iter().flatten();
        for entry in entries.filter(|entry| entry.value == value && entry.end <= bound) {
            entry.answered = false;
        }
    }

    /// Writes answered before `bound` were lost, as they may be, and this value is what is left
    /// of that time.
    pub fn settle(&mut self, sector: u64, value: Value, bound: u64) {
        if let Some(entries) = self.sectors.get_mut(&sector) {
            // What this value replaced may come back, if it goes, too.
            let found = entries.iter().filter(|entry| entry.value == value);
            let ended = found.map(|entry| entry.end).max();
            entries.retain(|entry| {
                entry.value == value
                    || !entry.answered
                    || entry.end > bound
                    || ended.is_some_and(|ended| entry.start <= ended)
            });
        }
    }

    /// True if a write that no crash took was answered before this moment, and no flush covers it.
    pub fn owes_flush(&self, before: u64) -> bool {
        let owed = |entry: &Entry| {
            entry.answered && !entry.flushed && !entry.is_lost() && entry.end < before
        };
        let mut entries = self.unflushed.iter().filter_map(|at| self.sectors.get(at));
        entries.any(|entries| entries.iter().any(owed))
    }

    /// Sectors with answered writes that no flush covers.
    pub fn unflushed(&self) -> impl Iterator<Item = u64> + '_ {
        self.unflushed.iter().copied()
    }

    /// A flush that began at `start` was answered: what had been answered before is flushed.
    /// No read that is under way began before `oldest`.
    pub fn flushed(&mut self, start: u64, oldest: u64) {
        let mut left = BTreeSet::new();
        for sector in std::mem::take(&mut self.unflushed) {
            if self.flush_sector(sector, start, oldest, |entry| entry.end < start) {
                left.insert(sector);
            }
        }
        self.unflushed = left;
    }

    /// The write that began at `start` was answered, and was to be flushed by itself.
    pub fn flushed_one(&mut self, sector: u64, start: u64, oldest: u64) {
        if !self.flush_sector(sector, start, oldest, |entry| entry.start == start) {
            self.unflushed.remove(&sector);
        }
    }

    /// True if something answered is left unflushed.
    fn flush_sector(
        &mut self,
        sector: u64,
        start: u64,
        oldest: u64,
        covers: impl Fn(&Entry) -> bool,
    ) -> bool {
        let Some(entries) = self.sectors.get_mut(&sector) else {
            return false;
        };
        let mut replaced_before = 0;
        let covered = |entry: &Entry| entry.answered && covers(entry);
        let begun = |counts: &dyn Fn(&Entry) -> bool| {
            let counted = entries.iter().filter(|entry| counts(entry));
            counted.map(|entry| entry.start).max().unwrap_or(0)
        };
        let newest = begun(&covered);
        let newest_beside = begun(&|entry| covered(entry) || entry.end >= start);
        for entry in entries.iter_mut().filter(|entry| covered(entry)) {
            // What a newer write replaced was not there to be flushed, if a crash took it before, or
            // the one that answered it early did not pass it on: a read beside that newer write
            // may miss both.
            let replaced_by = if entry.is_lost() || self.early {
                newest_beside
            } else {
                newest
            };
            entry.flushed |= entry.end >= replaced_by;
            if entry.flushed && entry.end < oldest {
                replaced_before = replaced_before.max(entry.start);
            }
        }
        entries.retain(|entry| entry.end >= replaced_before);
        entries
            .iter()
            .any(|entry| entry.answered && !entry.flushed && !entry.is_lost())
    }

    /// The sectors that anything was ever written to.
    pub fn sectors(&self) -> impl Iterator<Item = u64> + '_ {
        self.sectors.keys().copied()
    }

    /// The writes that a read might find, for a person.
    pub fn describe(&self, sector: u64) -> String {
        let entries = self.sectors.get(&sector).map_or(&[][..], Vec::as_slice);
        let one = |entry: &Entry| {
            let writer = super::content::writer(entry.value);
            let state = match (entry.end == OPEN, entry.answered, entry.flushed) {
                (true, ..) => "under way",
                (_, false, _) => "without an answer",
                (_, _, false) if entry.is_lost() => "answered, lost in a crash,",
                (_, _, false) => "answered",
                (_, _, true) => "flushed",
            };
            let node = ["a", "b"][entry.by];
            format!(
                "w{writer} {state} at {node} (event {}..{})",
                entry.start, entry.end as i64
            )
        };
        entries.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(history: &History, value: Value, bound: u64) -> bool {
        history.may_find(5, value, bound, Level::Newest)
    }

    #[test]
    fn an_answered_write_replaces_what_ended_before_it() {
        let mut history = History::default();
        history.begin(5, 1, 10, 0);
        assert!(newest(&history, ZERO, 11) && newest(&history, 1, 11));
        history.end(5, 10, 12, true);
        assert!(!newest(&history, ZERO, 12));
        assert!(
            newest(&history, ZERO, 11),
            "a read that began before the answer"
        );
        history.begin(5, 2, 13, 0);
        assert!(newest(&history, 1, 14) && newest(&history, 2, 14));
        history.end(5, 13, 15, false);
        assert!(
            newest(&history, 1, 20) && newest(&history, 2, 20),
            "nobody knows"
        );
    }

    #[test]
    fn of_overlapping_writes_any_may_be_last() {
        let mut history = History::default();
        history.begin(5, 1, 10, 0);
        history.begin(5, 2, 11, 0);
        history.end(5, 10, 12, true);
        history.end(5, 11, 13, true);
        assert!(newest(&history, 1, 20) && newest(&history, 2, 20) && !newest(&history, ZERO, 20));
    }

    #[test]
    fn what_was_flushed_is_never_lost() {
        let mut history = History::default();
        for (value, start) in [(1, 10), (2, 20)] {
            history.begin(5, value, start, 0);
            history.end(5, start, start + 1, true);
            if value == 1 {
                history.flushed(15, 15);
            }
        }
        let flushed = |history: &History, value| history.may_find(5, value, 30, Level::Flushed);
        assert!(!newest(&history, 1, 30) && flushed(&history, 1) && !flushed(&history, ZERO));
        assert_eq!(
            (history.replaced_at(5, 1), history.replaced_at(5, 2)),
            (Some(21), None)
        );
        assert_eq!(history.unflushed().collect::<Vec<_>>(), [5]);
        history.settle(5, 1, 30);
        assert!(newest(&history, 1, 30) && !newest(&history, 2, 30));
    }

    #[test]
    fn a_flush_does_not_bring_back_what_a_crash_took() {
        let found = |beside: bool| {
            let mut history = History::default();
            history.begin(5, 1, 10, 0);
            history.end(5, 10, 11, true);
            history.lost(5, 1, 0);
            if beside {
                // begun before the flush was answered: what the flush found may be this one
                history.begin(5, 2, 21, 0);
                history.end(5, 21, 22, true);
            }
            history.flushed(20, 20);
            history.may_find(5, ZERO, 19, Level::Flushed)
        };
        assert!(found(true), "neither need be there for a read beside both");
        assert!(!found(false), "what the flush found there is flushed");
    }

    #[test]
    fn what_a_lost_write_had_replaced_may_come_back() {
        let mut history = History::default();
        for (value, start) in [(1, 10), (2, 20), (3, 30)] {
            history.begin(5, value, start, 0);
            history.end(5, start, start + 1, true);
        }
        history.lost(5, 3, 0);
        history.settle(5, 2, 40);
        assert!(newest(&history, 2, 50) && !newest(&history, 3, 50));
        history.lost(5, 2, 0);
        assert!(
            history.may_find(5, 1, 50, Level::Surviving { on: [true, false] })
                && !newest(&history, 1, 50)
        );
    }

    #[test]
    fn what_one_copy_lost_is_missed_on_the_other() {
        let mut history = History::default();
        history.begin(5, 1, 10, 0);
        history.end(5, 10, 11, true);
        history.lost(5, 1, 1);
        let excused = |history: &History, copy: usize| {
            let on = [copy == 0, copy == 1];
            history.may_find(5, ZERO, 20, Level::Surviving { on })
        };
        assert!(excused(&history, 1) && !excused(&history, 0));
        assert!(
            !history.owes_flush(10) && !history.owes_flush(20),
            "it may be gone"
        );
        // The copy without it is the source: it is gone on both.
        let mut overwritten = history.clone();
        overwritten.follows(0, 1);
        assert!(excused(&overwritten, 0) && excused(&overwritten, 1));
        // Or the other one is, and brings it back.
        history.follows(1, 0);
        assert!(excused(&history, 1), "not before its end");
        history.has_followed(1, 0);
        assert!(!excused(&history, 1));
        assert!(!history.owes_flush(10) && history.owes_flush(20));
    }

    #[test]
    fn an_early_answer_that_was_not_passed_on_is_not_flushed_by_what_replaced_it() {
        let mut history = History {
            early: true,
            ..History::default()
        };
        history.begin(5, 1, 10, 0);
        history.end(5, 10, 11, true);
        // another node took over, without it; a read began at 15, and this is written beside
        history.begin(5, 2, 20, 1);
        history.end(5, 20, 21, true);
        history.flushed(30, 15);
        assert!(history.may_find(5, ZERO, 15, Level::Flushed));
        assert!(!history.may_find(5, ZERO, 25, Level::Flushed));
    }
}
