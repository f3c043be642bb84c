//! What is owed for too long (`ack-timeout`, docs/protocol.md §5): by a peer that answers pings and nothing else,
//! and by this node's own stores.
//!
//! The peer is given up. A store can't be: what it was given may still be carried out. It is told, and a copy whose
//! disk hangs is without its token meanwhile.

use kagami_bitmap::planted::{Defect, planted};

use super::link::{LinkStage, Phase, Up};
use super::state::Time;
use super::timers::Timer;
use super::verify::Verify;
use super::{Action, Actions, Mirror, Notice, Store};

/// A step of the protocol that the peer is to answer, beside writes, flushes, reads and comparisons. Each may have
/// to wait for the peer's disks, and meanwhile holds something back here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// *Offer*: requests are held until it has adopted.
    Adoption,
    /// *Adopted*: a guest's requests are held until its source has settled.
    Settlement,
    /// *`PromoteAsk`*: a promotion waits.
    Grant,
}

impl Up {
    /// Since when the peer owes its oldest answer.
    fn owes_since(&self) -> Option<Time> {
        let write = self.owed.first_key_value().map(|(_, (_, at))| *at);
        let flush = self.owed_flushes.first_key_value().map(|(_, (_, at))| *at);
        let read = self.reads.first_key_value().map(|(_, (_, _, at))| *at);
        let step = self.awaited.iter().map(|(_, at)| *at).min();
        let compared = match &self.phase {
            Phase::Source(source) => source.compares_since(),
            _ => None,
        };
        let owed = [write, flush, read, step, compared];
        owed.into_iter().flatten().min()
    }
}

impl Mirror {
    /// Something is owed from now on.
    pub(super) fn watch_acks(&mut self) {
        self.timers.set_once(
            Timer::AckOverdue,
            self.now.after_ms(self.settings.ack_timeout_ms),
        );
    }

    /// From now on the peer owes the answer to that step.
    pub(super) fn await_answer(&mut self, step: Awaited) {
        let now = self.now;
        if let Some(up) = self.up_mut() {
            up.awaited.push((step, now));
            self.watch_acks();
        }
    }

    pub(super) fn on_answered(&mut self, step: Awaited) {
        if let Some(up) = self.up_mut() {
            up.awaited.retain(|(awaited, _)| *awaited != step);
        }
    }

    /// The session is over. What a store owes is overdue when it would have been.
    pub(super) fn peer_owes_nothing(&mut self) {
        self.timers.clear(Timer::AckOverdue);
        let owed = [self.disk_owes_since(), self.metadata_owes_since()];
        if let Some(since) = owed.into_iter().flatten().min() {
            let due = since.after_ms(self.settings.ack_timeout_ms);
            self.timers.set(Timer::AckOverdue, due);
        }
    }

    /// Something may be owed for as long as `ack-timeout` (docs/protocol.md §5).
    pub(super) fn on_overdue(&mut self, out: &mut Actions) {
        let peer_due = self.on_ack_overdue(out);
        let disk = self.disk_owes_since();
        let was_told = self.told_disk;
        let disk_due = self.on_store_overdue(disk, "local disk", |m| &mut m.told_disk, out);
        if self.told_disk && !was_told && !planted(Defect::HangKeepsToken) {
            // Should this daemon end before the disk answers, nobody hears of a flush that fails then.
            out.push(Action::BreakToken);
        }
        let metadata = self.metadata_owes_since();
        let metadata_due =
            self.on_store_overdue(metadata, "metadata store", |m| &mut m.told_metadata, out);
        let due = [peer_due, disk_due, metadata_due];
        if let Some(at) = due.into_iter().flatten().min() {
            self.timers.set(Timer::AckOverdue, at);
        }
    }

    /// A peer that answers pings and nothing else is lost. When the oldest answer that it owes will be overdue.
    fn on_ack_overdue(&mut self, out: &mut Actions) -> Option<Time> {
        let link = self.link.as_ref()?;
        let since = match &link.stage {
            LinkStage::Meeting(_) => Some(link.opened),
            LinkStage::Up(up) => {
                let verified = self.verify.as_ref().and_then(Verify::asks_since);
                [up.owes_since(), verified].into_iter().flatten().min()
            }
        };
        let due = since?.after_ms(self.settings.ack_timeout_ms);
        if self.now < due {
            return Some(due);
        }
        if planted(Defect::AckOverdueIgnored) {
            return Some(self.now.after_ms(self.settings.ack_timeout_ms));
        }
        out.push(Action::Report(Notice::Stalled { who: "peer" }));
        self.solo.ask_before_hello = true;
        self.door.refused += 1;
        self.close_session("the peer does not answer", out);
        None
    }

    /// When the oldest operation began that the local disk has under way.
    fn disk_owes_since(&self) -> Option<Time> {
        self.disk.iter().map(|(_, op)| op.since).min()
    }

    /// When the oldest metadata write began that is under way.
    fn metadata_owes_since(&self) -> Option<Time> {
        self.metadata.values().map(|write| write.since).min()
    }

    fn is_overdue(&self, since: Option<Time>) -> bool {
        since.is_some_and(|since| self.now >= since.after_ms(self.settings.ack_timeout_ms))
    }

    /// The local disk has ended an operation. That it hangs is over with the last one that is overdue, and this
    /// daemon has heard what came of it all: the token is as it was before.
    pub(super) fn on_disk_answers(&mut self, out: &mut Actions) {
        // What is under way is gone through only where something hung.
        if !self.told_disk {
            return;
        }
        let owes_since = self.disk_owes_since();
        self.told_disk = self.is_overdue(owes_since);
        if self.told_disk {
            return;
        }
        let was_whole = self.local.token && self.local.store == Store::Usable;
        if was_whole && self.record().boot == Some(self.boot) {
            out.push(Action::MakeToken);
        }
        if let Some(since) = owes_since {
            let due = since.after_ms(self.settings.ack_timeout_ms);
            self.timers.set_by(Timer::AckOverdue, due);
        }
    }

    /// The same of the metadata store.
    pub(super) fn on_metadata_answers(&mut self) {
        self.told_metadata = self.told_metadata && self.is_overdue(self.metadata_owes_since());
    }

    /// A store of this node that leaves something unanswered is told, once until it has answered that. `since`: when
    /// its oldest operation began. When that will be overdue.
    fn on_store_overdue(
        &mut self,
        since: Option<Time>,
        who: &'static str,
        told: fn(&mut Self) -> &mut bool,
        out: &mut Actions,
    ) -> Option<Time> {
        if !self.is_overdue(since) {
            return Some(since?.after_ms(self.settings.ack_timeout_ms));
        }
        if !std::mem::replace(told(self), true) {
            out.push(Action::Report(Notice::Stalled { who }));
        }
        Some(self.now.after_ms(self.settings.ack_timeout_ms))
    }
}
