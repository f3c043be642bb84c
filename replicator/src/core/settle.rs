//! The end of a resynchronisation: in sync (docs/protocol.md §5, steps 4 to 6).
//!
//! With no marks left the source freezes new writes for a moment, leaves - `alone` goes, durably -,
//! and offers its generation; the target adopts it in one durable write; both settle.

use kagami_bitmap::BLOCK;
use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::superblock::{Generation, StoredDisk};

use super::durable::After;
use super::link::Phase;
use super::message::Message;
use super::overdue::Awaited;
use super::request::Gate;
use super::resync::{RETRY_MS, Stage, Target, Wait};
use super::state::{DiskState, SessionId};
use super::timers::Timer;
use super::{Action, Actions, Mirror, Notice};

impl Mirror {
    /// The arbiter answered a probe, or did not: then this copy stays alone, and tries later.
    pub(super) fn on_probed(&mut self, reachable: bool) {
        let retry = self
            .now
            .after_ms(self.settings.arbiter_timeout_ms.max(RETRY_MS));
        let Some(source) = self.source() else { return };
        if source.stage != Stage::Probing {
            return;
        }
        if reachable {
            self.freeze();
        } else {
            source.stage = Stage::Copying;
            source.wait_until = Some((retry, Wait::Arbiter));
        }
    }

    /// The arbiter answered something: a source that waits to ask it again need not.
    pub(super) fn on_arbiter_heard(&mut self) {
        if let Some(source) = self.source()
            && matches!(source.wait_until, Some((_, Wait::Arbiter)))
        {
            source.wait_until = None;
        }
    }

    pub(super) fn freeze(&mut self) {
        if let Some(source) = self.source() {
            source.stage = Stage::Freezing;
            if self.gate == Gate::Open {
                self.gate = Gate::Frozen;
            }
        }
    }

    /// Step 4: no marks, nothing in flight; then `alone` goes, durably.
    pub(super) fn leave_when_quiet(&mut self) {
        // (A write that fails at one copy marks its blocks as it ends the session.)
        assert_eq!(
            self.bitmap.count(),
            0,
            "Cleared-only-when-equal: marked blocks at the end of a resynchronisation"
        );
        if !self.unflushed.is_empty() {
            self.flush.wanted = true;
            return;
        }
        let quiet = (self.runs_in_flight().next().is_none() || planted(Defect::NoFreezeAtTheEnd))
            && !self.flush.is_running()
            && !self.has_writes_of_peer()
            && self.attempt.is_none()
            && !self.durable.is_changing();
        let Some(session) = self.session().filter(|_| quiet) else {
            return;
        };
        // *One-writer*, rule 2: leave before you offer.
        if planted(Defect::OfferWhileAlone) {
            self.change_record(After::Left { session }, |_| {});
        } else {
            self.alone = None;
            self.change_record(After::Left { session }, |r| r.alone = false);
        }
        if let Some(source) = self.source() {
            source.stage = Stage::Leaving;
        }
    }

    pub(super) fn on_left_durable(&mut self, session: SessionId, out: &mut Actions) {
        if !self.is_session(session) {
            return;
        }
        let record = self.record();
        let (current, history) = (record.current, record.history.clone());
        let Some(current) = current else {
            panic!("a source has a generation")
        };
        assert!(
            !self.record().alone && self.alone.is_none() || planted(Defect::OfferWhileAlone),
            "rule 2: leave before you offer"
        );
        if let Some(source) = self.source() {
            source.stage = Stage::Offered;
        }
        if planted(Defect::BaseClearedAtTheOffer) {
            self.change_record(After::Nothing, |r| r.base = None);
        }
        self.send(Message::Offer { current, history }, out);
        self.await_answer(Awaited::Adoption);
        self.put_off_late(out);
        if planted(Defect::SettledWithoutAdoption) {
            if let Some(source) = self.source() {
                source.stage = Stage::Settling;
            }
            self.change_record(After::Settled { session }, |r| r.base = None);
        }
    }

    /// Step 5: the target adopts, in one durable write. A guest does so when its source has put off
    /// what it sent too late.
    ///
    /// Errors: an offer out of turn.
    pub(super) fn on_offer(
        &mut self,
        current: Generation,
        history: Vec<Generation>,
    ) -> Result<(), String> {
        let idle = self.up().is_none_or(|up| up.applied.is_idle());
        let ready = match self.target_mut() {
            Some(target) if idle && target.offer.is_none() => {
                target.offer = Some((current, history));
                true
            }
            _ => self.session().is_none(),
        };
        if !ready {
            return Err(
                "it offers its generation to a copy that is not its target, or too early".into(),
            );
        }
        if self.is_guest() {
            // All that was answered is on both disks: the source was quiet, with no marks left.
            self.cancel_cycle();
            self.unflushed = super::unflushed::Unflushed::default();
            self.guest = super::served::Guest::default();
        }
        Ok(())
    }

    /// Adopts what was offered, once.
    pub(super) fn advance_adoption(&mut self) {
        let Some(session) = self.session() else {
            return;
        };
        if self.awaits_source() {
            return;
        }
        let Some(Target {
            offer: Some((current, history)),
            adopted: adopted @ false,
            ..
        }) = self.target_mut()
        else {
            return;
        };
        *adopted = true;
        let (current, history) = (*current, history.clone());
        let (boot, primary) = (self.boot, self.is_primary());
        self.bitmap.clear_all();
        self.want_pages();
        self.change_record(After::Adopted { session }, |r| {
            r.current = Some(current);
            r.history = history;
            r.bound_history();
            r.base = None;
            r.alone = false;
            r.disk = StoredDisk::Consistent;
            r.forced_bad = false;
            // A guest is the Primary of this generation: durable before its first write.
            r.was_primary = primary;
            r.zeroed = false;
            r.all_marked = false;
            r.verify_found = false;
            r.boot = Some(boot);
        });
    }

    pub(super) fn on_adopted_durable(&mut self, session: SessionId, out: &mut Actions) {
        self.local.unbroken = true;
        // All of it was written anew. (The source may verify before this copy hears that both are in sync.)
        self.local.doubted = false;
        if self.is_session(session) {
            self.local.up_to_date = true;
            self.send(Message::Adopted, out);
            self.await_answer(Awaited::Settlement);
        }
    }

    /// Step 6: only now the source forgets the base.
    ///
    /// Errors: a confirmation of nothing.
    pub(super) fn on_adopted(&mut self, _out: &mut Actions) -> Result<(), String> {
        let Some(session) = self.session() else {
            return Ok(());
        };
        let boot = self.boot;
        self.on_answered(Awaited::Adoption);
        match self.source() {
            Some(source) if source.stage == Stage::Offered => source.stage = Stage::Settling,
            _ if planted(Defect::SettledWithoutAdoption) => return Ok(()),
            _ => return Err("it has adopted a generation that was not offered".into()),
        }
        self.change_record(After::Settled { session }, |r| {
            r.base = None;
            r.boot = Some(boot);
            r.verify_found = false;
            // Both have what was forced: the next generation comes from a good copy.
            r.forced_bad = false;
            // A source that had left cleanly, where the other copy was given up: it is the newest one now.
            r.disk = StoredDisk::Consistent;
        });
        Ok(())
    }

    pub(super) fn on_settled_durable(&mut self, session: SessionId, out: &mut Actions) {
        self.local.unbroken = self.local.store == super::Store::Usable;
        if !self.is_session(session) {
            return;
        }
        self.local.up_to_date = true;
        self.send(Message::Settled, out);
        if let Some(source) = self.source() {
            let (marked, sent, since) = (
                source.marked_at_start * BLOCK,
                source.sent_bytes,
                source.since,
            );
            let ms = self.now.since(since) / 1_000_000;
            out.push(Action::Report(Notice::ResyncDone { marked, sent, ms }));
        }
        if let Some(up) = self.up_mut() {
            up.peer.disk = DiskState::UpToDate;
            up.phase = Phase::InSync;
        }
        if self.gate == Gate::Frozen {
            self.gate = Gate::Open;
        }
        self.want_pages();
        self.on_in_sync(out);
    }

    /// Errors: out of turn.
    pub(super) fn on_settled(&mut self, out: &mut Actions) -> Result<(), String> {
        let adopting = self
            .durable
            .awaits(|after| matches!(after, After::Adopted { .. }));
        self.on_answered(Awaited::Settlement);
        match self.up_mut() {
            Some(up) => match &up.phase {
                Phase::Target(Target { adopted: true, .. }) if !adopting => {
                    up.peer.disk = DiskState::UpToDate;
                    up.phase = Phase::InSync;
                }
                _ => return Err("it says in sync to a copy that has not adopted".into()),
            },
            None => return Ok(()),
        }
        self.on_in_sync(out);
        Ok(())
    }

    /// In sync from now on.
    pub(super) fn on_in_sync(&mut self, out: &mut Actions) {
        let usable = self.local.store == super::Store::Usable;
        // What hangs yet may fail after the end of this daemon: the next one is not to trust it (docs/protocol.md §1).
        if usable && !self.told_disk {
            out.push(Action::MakeToken);
        }
        self.local.token |= usable;
        self.local.doubted &= !usable;
        self.local.ahead = false;
        self.local.unbroken = usable;
        self.timers.clear(Timer::Resync);
        self.seek_to_rejoin(out);
    }
}
