//! A flush fails when the daemon that asked for it is gone, and what the next one finds on such a disk.
//!
//! docs/protocol.md §1: a disk that hangs for `ack-timeout` costs the copy its token, so that the next daemon does not trust
//! what the disk did when nobody listened. A daemon that is killed sooner could know of nothing, and no flush fails after it.

use super::super::world::{Happening, MS, Phase, World};
use super::Fault;

impl World {
    /// How long an operation is under way at least when the alarm of its disk has been given.
    fn alarm_ns(&self) -> u64 {
        // (The clock may be slow by 1 %, and its daemon woken late.)
        self.options.settings.ack_timeout_ms * MS * 102 / 100 + 5 * MS
    }

    /// The disk hangs; when that has been told, its daemon is to die.
    pub(super) fn hang_unheard(&mut self, node: usize) -> bool {
        if !self.may_fail_disk(node) || self.nodes[node].mirror.is_none() {
            return false;
        }
        let alarm = self.alarm_ns();
        let dies = alarm + self.fault_rng.below(alarm / 2);
        let at = &mut self.nodes[node];
        at.hangs = true;
        at.stalled_until = at.stalled_until.max(self.now + dies + 20 * MS);
        let (fault, change) = (Fault::FlushFailsUnheard, at.life);
        let mend = Happening::Mend {
            fault,
            node,
            change,
        };
        self.plan(dies, mend);
        self.ghost.last_fault = self.ghost.last_fault.max(self.now);
        false // counted when a flush has failed
    }

    /// Now it dies, if it has had the time to say that its disk hangs.
    pub(super) fn die_unheard(&mut self, node: usize, life: u64) {
        let alarm = self.alarm_ns();
        let at = &mut self.nodes[node];
        let since = at.store.owes_since();
        let hung = since.is_some_and(|since| since + alarm <= self.now);
        let runs = at.life == life && at.mirror.is_some() && at.paused_until <= self.now;
        if !at.hangs || !hung || !runs || self.phase != Phase::Storm {
            at.hangs = false;
            return;
        }
        at.store.fail_unheard = true;
        self.kill_daemon(node);
        let delay = self.fault_rng.around(5 * MS);
        self.start_in(node, delay);
    }

    /// A flush has failed, and nobody heard it.
    pub(in crate::sim) fn failed_unheard(&mut self, node: usize) {
        if self.nodes[node].store.failed {
            return;
        }
        self.ghost.last_fault = self.ghost.last_fault.max(self.now);
        self.stats.fault(Fault::FlushFailsUnheard);
        let (now, name) = (self.now / 1000, self.nodes[node].name);
        self.trace
            .line(|| format!("{now:>10} fault: a flush of {name}'s dead daemon fails"));
    }

    /// A daemon opens the disk: what it has forgotten shows, or a cache answers for it. (That only where the other copy
    /// has all of it: no mirror survives a disk that lies about the only copy.)
    pub(in crate::sim) fn open_store(&mut self, node: usize) {
        // A third of them, and no draw: it would make every seed with a failed disk another run.
        let chosen = (self.nodes[node].life + self.options.seed).is_multiple_of(3);
        let hides = chosen && self.is_answered_for(node);
        let at = &mut self.nodes[node];
        let lost = at.store.come_back(hides, &mut self.rng);
        if hides && at.store.hides() {
            self.stats.mark("a cache answers for what the disk forgot");
        }
        self.lose(node, &lost);
    }

    /// The other copy is newer, or of the same generation and has lost nothing.
    fn is_answered_for(&self, node: usize) -> bool {
        let (Some(mine), Some(theirs)) = (
            self.nodes[node].meta.record(),
            self.nodes[1 - node].meta.record(),
        ) else {
            return false;
        };
        let (Some(here), Some(there)) = (mine.current, theirs.current) else {
            return false;
        };
        let behind = here.tag != there.tag && theirs.in_line(here.tag);
        let whole = self.nodes[1 - node].is_unbroken(theirs);
        !theirs.is_bad() && (behind || here.tag == there.tag && whole)
    }
}
