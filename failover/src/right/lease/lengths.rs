//! How long the leases are that others count, or that an earlier manager of this node counted: a new
//! revision of the configuration changes them on one node before the other, and at its manager's restart.

use crate::core::Time;
use crate::planted::{Defect, planted};

use super::words::LONGEST;
use super::{Action, Actions, Kept, Lease, Mark, Phase, Word};

impl Lease {
    /// What this node's questions and its record say of its leases: while a guard may let the group run by a
    /// longer lease of an earlier manager's, that one's length.
    pub(super) fn told_length(&self, now: Time) -> u64 {
        if now < self.quiet_until {
            self.earlier.max(self.terms.length)
        } else {
            self.terms.length
        }
    }

    /// What the disk must tell the next manager.
    pub(super) fn length_to_keep(&self, now: Time) -> u64 {
        let promised = self.promised.keys().copied();
        let asked = self.waiting.iter().map(|(_, question)| question.length);
        let others = promised.chain(asked).max();
        self.told_length(now).max(others.unwrap_or(0))
    }

    /// The disk says so, and tells of leases as long.
    pub(super) fn is_kept_for(&self, mark: Mark, length: u64) -> bool {
        let tells = |kept: Kept| kept.mark == mark && kept.length >= length;
        self.writing.is_none() && self.kept.is_some_and(tells)
    }

    /// The disk says so, and tells of leases as long as this node's are.
    pub(super) fn is_kept(&self, mark: Mark) -> bool {
        self.is_kept_for(mark, self.terms.length)
    }

    pub(super) fn write(&mut self, now: Time, mark: Mark, out: &mut Actions) {
        let length = self.length_to_keep(now);
        let kept = Kept {
            mark,
            length,
            instance: self.agreed,
        };
        self.writing = Some(kept);
        out.push(Action::Mark(kept));
    }

    /// The disk tells of leases longer than any that is left, for which the next manager need not wait, or of another
    /// register.
    pub(super) fn keep_up(&mut self, now: Time, out: &mut Actions) {
        if self.writing.is_some() {
            return;
        }
        let mark = self.kept.map_or(Mark::Free, |kept| kept.mark);
        let idle = matches!(self.phase, Phase::Idle | Phase::Releasing(..));
        let needed = self.length_to_keep(now);
        let is_longer = |kept: Kept| idle && mark == Mark::Free && kept.length > needed;
        if self.kept.is_some_and(is_longer) || self.recorded != self.agreed {
            self.write(now, mark, out);
        }
    }

    /// Marked-first.
    pub(super) fn may_promise(&self, length: u64) -> bool {
        self.recorded == self.agreed && self.is_kept_for(Mark::Free, length)
    }

    /// Waits-out: bound from now on for a lease that is this long, or as long as this node's own.
    pub(super) fn promise(&mut self, now: Time, length: u64) {
        let length = if planted(Defect::AskedLengthIgnored) {
            self.terms.length
        } else {
            length.max(self.terms.length)
        };
        let until = now.after(self.terms.wait_for(length));
        let bound = self.promised.entry(length).or_insert(until);
        *bound = until.max(*bound);
    }

    /// How long the right is asked for before it is refused: all that there may be to wait for, and a
    /// question to the arbiter.
    pub(super) fn patience(&self) -> u64 {
        let promised = self.promised.keys().next_back().copied();
        let record = self.record().map(|record| record.length);
        let longest = promised.max(record).unwrap_or(0).max(self.terms.length);
        self.terms.wait_for(longest) + self.terms.length
    }
}

/// Nobody's leases are as long.
pub(super) fn too_long(length: u64) -> Option<Word> {
    let why = || format!("it is asked for {length} ms, and a lease has {LONGEST} at most");
    (length > LONGEST).then(|| Word::Silent(why()))
}
