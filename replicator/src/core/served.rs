//! A returning node that serves before its resynchronisation is done: its source answers for it.
//!
//! A target may be Primary as a *guest*. Its own copy is a mix of old and new, so nothing is read
//! from it and no request is answered by it: reads, writes and flushes go to the source, which
//! is alone (docs/protocol.md §3, consent), marks what it writes, and sends it back like every
//! write of a source. The copies are brought together as if the source were Primary, and when
//! they are in sync the guest is a Primary like any other (docs/protocol.md §5, *A target that is
//! Primary*; docs/decisions/0009-a-target-that-is-primary.md).
//!
//! Without its source a guest holds what it is asked: it has nothing to answer from. It never asks
//! for permission, since its copy is bad; so it stays a guest over a lost session, until the
//! source was Primary itself, or has lost what it answered and had not flushed.

use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::superblock::StoredDisk;

use super::durable::After;
use super::event::{IoError, Refusal};
use super::link::{Link, LinkStage, Owed, Phase};
use super::message::{Hello, Message};
use super::overdue::Awaited;
use super::promote::Promotion;
use super::resync::Stage;
use super::secondary::NOT_NOW;
use super::state::{Role, Seq};
use super::write::{Copy, Origin, Work};
use super::{Actions, Mirror, Store};
use kagami_bitmap::Run;

/// The oldest protocol version in which a target may be Primary.
const SINCE: u16 = 2;

/// What a guest remembers of its source over the end of a session, or a Primary without a disk of its carrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Guest {
    /// The boot of the machine that answered.
    boot: Option<u128>,
    /// It answered writes and has not flushed since.
    unflushed: bool,
}

/// A guest's write that comes when the source takes none: it waits for the end of the
/// resynchronisation.
#[derive(Debug)]
pub(super) struct Late {
    pub seq: Seq,
    pub span: Run,
    pub work: Work,
    pub fua: bool,
}

/// True if a target that greets as Primary stays Primary: the source can answer for it, and nobody
/// else was Primary meanwhile. Both nodes ask this of the same two hellos.
pub(super) fn stays_primary(target: &Hello, source: &Hello) -> bool {
    target.role == Role::Primary
        && target.disk == StoredDisk::Inconsistent
        && !target.diskless
        && source.role == Role::Secondary
        && source.disk == StoredDisk::Consistent
        && (!source.was_primary || planted(Defect::GuestOutlivesAPrimary))
        && target.boot.is_some()
        && source.boot.is_some()
}

impl Mirror {
    /// True if this node is Primary and its own copy is bad.
    pub(super) fn is_guest(&self) -> bool {
        self.role == Role::Primary
            && self.local.store == Store::Usable
            && self.record().disk == StoredDisk::Inconsistent
    }

    /// True if requests are answered by this node's own copy, alone or with the peer's.
    pub fn has_copy(&self) -> bool {
        self.local.store == Store::Usable && !self.is_guest()
    }

    /// True if a read would be answered from the copy here, and now.
    pub fn reads_here(&self) -> bool {
        self.has_copy() && self.may_read()
    }

    /// True if the source answers for this guest now.
    pub(super) fn is_served(&self) -> bool {
        self.is_guest()
            && matches!(
                self.up().map(|up| &up.phase),
                Some(Phase::Target(target)) if target.served && target.offer.is_none()
            )
    }

    /// True if the session's protocol knows guests.
    pub(super) fn may_be_guest(&self) -> bool {
        let knows = |link: &Link| link.version >= SINCE;
        self.link.as_ref().is_some_and(knows)
            && self.up().is_some_and(|up| up.peer.boot.is_some())
            && matches!(
                self.up().map(|up| &up.phase),
                Some(Phase::Target(target)) if target.offer.is_none()
            )
    }

    /// The boot to greet with, where the protocol has it. Without the token, this boot may have lost
    /// a write to a failing disk: then a start of the daemon counts as a boot of its own.
    pub(super) fn told_boot(&self) -> Option<u128> {
        let knows = |link: &Link| link.version >= SINCE;
        self.link.as_ref().filter(|link| knows(link))?;
        Some(if self.local.token {
            self.boot
        } else {
            self.boot ^ (u128::from(self.started.0) << 64)
        })
    }

    /// The handshake makes this copy a target: may its node stay Primary?
    pub(super) fn stays_guest(&self, mine: &Hello, theirs: &Hello) -> bool {
        self.is_guest() && stays_primary(mine, theirs) && !self.has_lost_unflushed(theirs)
    }

    /// This copy is a target, and is to be Primary: its source is asked to answer for it, if it was
    /// said that it may be so.
    pub(super) fn ask_to_be_guest(&mut self, out: &mut Actions) {
        let asks = self.promoting.as_ref().is_some_and(|p| p.while_resyncing);
        let can = self.may_be_guest();
        if asks && can {
            if let Some(promoting) = &mut self.promoting {
                promoting.stage = Promotion::Asked;
            }
            self.send(Message::PromoteAsk, out);
            self.await_answer(Awaited::Grant);
            return;
        }
        let mut facts =
            vec!["this copy is Inconsistent until the resynchronisation ends".to_owned()];
        if asks {
            facts.push(format!(
                "node {} runs a version that can't answer for it",
                self.peer
            ));
        }
        let next = if can {
            "wait for it (`kagami status --watch`), promote the other node, or `kagami promote --while-resyncing` (every read and write goes to the other node until it ends, and stops with the link)"
        } else {
            "wait for it (`kagami status --watch`), or promote the other node"
        };
        let what = "not promoted: this copy is being resynchronised".to_owned();
        let next = next.to_owned();
        self.refuse_promotion(Refusal { what, facts, next }, out);
    }

    // The source's side.

    /// A target asks to be Primary; or, found out again as a session came up, is.
    pub(super) fn advance_serving(&mut self, out: &mut Actions) {
        let Some(up) = self.up() else { return };
        if up.asked_late && (self.is_copying() || self.is_in_sync() && !self.has_repairs()) {
            if let Some(up) = self.up_mut() {
                up.asked_late = false;
            }
            if let Err(what) = self.on_promote_ask(out) {
                return self.on_peer_fault(what, out);
            }
        }
        let asked = match self.up().map(|up| &up.phase) {
            Some(Phase::Source(source)) if !source.serves && source.stage == Stage::Copying => {
                match (source.asked, source.guest_stays) {
                    (false, false) => return,
                    (asked, _) => asked,
                }
            }
            _ => return,
        };
        if self.durable.is_changing() || self.stopping.is_some() {
            return;
        }
        if self.alone.is_none() {
            // What only this copy holds is about to be answered: a generation of its own (rule 1).
            return self.go_on_by_consent(out);
        }
        if self.record().was_primary {
            // As for every grant: one copy at most remembers that it was Primary.
            return self.change_record(After::Nothing, |r| r.was_primary = false);
        }
        if let Some(source) = self.source() {
            source.serves = true;
            source.served = true;
            source.asked = false;
        }
        if asked {
            self.send(Message::PromoteGrant, out);
        } else {
            self.send(Message::Carrying, out);
        }
    }

    /// A target asks to be Primary.
    pub(super) fn on_guest_asks(&mut self, out: &mut Actions) -> Result<(), String> {
        let copying = self.is_copying();
        let Some(up) = self.up_mut() else {
            return Ok(());
        };
        if up.peer.boot.is_none() {
            return Err("it asks to be Primary as a target, in a protocol without that".into());
        }
        if !copying {
            // It is in sync in a moment, and asked again.
            up.asked_late = true;
            return Ok(());
        }
        // From here on this node asks for nothing itself, as after every grant.
        if let Some(up) = self.up_mut() {
            up.granted = true;
        }
        if let Some(source) = self.source() {
            source.asked = true;
        }
        self.advance_serving(out);
        Ok(())
    }

    /// A write of the guest. The source carries it out like its own, sends it back, and answers
    /// when its own copy has it.
    ///
    /// Errors: from a target that is not served.
    pub(super) fn on_guest_write(&mut self, late: Late, out: &mut Actions) -> Result<(), String> {
        let Some(session) = self.session() else {
            return Ok(());
        };
        let Some(source) = self.source() else {
            return Ok(());
        };
        if !source.serves && source.served {
            // It was demoted since it sent this, and has failed it.
            self.put_off(late.seq, out);
            return Ok(());
        }
        if !source.serves {
            return Err("it writes to its source, which does not answer for it".into());
        }
        match source.stage {
            Stage::Copying | Stage::Probing => {
                let Late {
                    seq,
                    span,
                    work,
                    fua,
                } = late;
                let origin = Origin::Peer { session, seq };
                self.add_write(origin, span, work, fua, out);
            }
            Stage::Freezing | Stage::Leaving => source.late.push(late),
            Stage::Offered | Stage::Settling => self.put_off(late.seq, out),
        }
        Ok(())
    }

    /// The generation is offered: what waits here is the guest's own to carry out, in sync.
    pub(super) fn put_off_late(&mut self, out: &mut Actions) {
        let late = self
            .source()
            .map(|source| std::mem::take(&mut source.late))
            .unwrap_or_default();
        for late in late {
            self.put_off(late.seq, out);
        }
    }

    fn put_off(&mut self, seq: Seq, out: &mut Actions) {
        if let Some(up) = self.up_mut() {
            up.applied.apply(seq);
        }
        let result = Err(NOT_NOW);
        self.send(Message::Done { seq, result }, out);
        self.begin_peer_flushes(out);
    }

    // The guest's side.

    /// The source grants: Primary from now on, by the source's copy.
    pub(super) fn become_guest(&mut self, out: &mut Actions) -> Result<(), String> {
        if !self.be_served()? {
            return Ok(());
        }
        // What the source answered before may not be flushed either, and this node is about to read it.
        self.guest.unflushed = true;
        self.flush.wanted = true;
        self.role = Role::Primary;
        self.role_cause = "promoted while its copy is resynchronised";
        self.gate = super::request::Gate::Open;
        self.promotion_done(out);
        Ok(())
    }

    /// The source answers for this guest again, in a new session.
    ///
    /// Errors: this node is no guest.
    pub(super) fn on_served_again(&mut self) -> Result<(), String> {
        if !self.is_guest() {
            return Ok(()); // demoted meanwhile; it is told
        }
        self.be_served().map(|_| ())
    }

    /// From now on the source answers, and flushes what it had answered before. False: the session is gone.
    ///
    /// Errors: this copy is not its target.
    fn be_served(&mut self) -> Result<bool, String> {
        let Some(up) = self.up_mut() else {
            return Ok(false);
        };
        let boot = up.peer.boot;
        match &mut up.phase {
            Phase::Target(target) if target.offer.is_none() => target.served = true,
            _ => return Err("it answers for a copy that is not its target".into()),
        }
        self.served_by(boot);
        Ok(true)
    }

    /// The peer's machine, in this boot of it, has what is answered from now on; what it answered before is flushed soon.
    pub(super) fn served_by(&mut self, boot: Option<u128>) {
        self.guest.boot = boot;
        self.flush.wanted |= self.guest.unflushed;
    }

    /// The peer answered what it had not flushed, and its machine has crashed since.
    pub(super) fn has_lost_unflushed(&self, theirs: &Hello) -> bool {
        self.guest.unflushed && theirs.boot != self.guest.boot
    }

    /// The session is about to go: what was answered and not flushed may be lost with the source.
    pub(super) fn remember_unflushed(&mut self) {
        if self.is_guest() || self.is_primary() && self.local.store != Store::Usable {
            self.guest.unflushed |= !self.unflushed.is_empty();
        }
    }

    /// True if this guest was answered what its source may not have flushed.
    pub(super) fn is_guest_unflushed(&self) -> bool {
        self.is_guest() && (self.guest.unflushed || !self.unflushed.is_empty())
    }

    /// True if the peer, which answers for this node, may not have flushed what it answered before this session, or before
    /// this node became its guest.
    pub(super) fn is_answerer_unflushed(&self) -> bool {
        self.guest.unflushed && self.is_primary() && (self.is_served() || self.is_carried())
    }

    /// The peer has flushed, after everything that it answered before; or nothing of this term was.
    pub(super) fn guest_flushed(&mut self) {
        self.guest.unflushed = false;
    }

    /// The source has answered all of the guest's writes, or put them off: is it time to adopt?
    pub(super) fn awaits_source(&self) -> bool {
        self.up().is_some_and(|up| {
            up.owed
                .values()
                .any(|(owed, _)| matches!(owed, Owed::Write(_)))
        })
    }

    /// A write failed at the copy that answers for this node, or was put off. True if that is all there is to it.
    pub(super) fn on_write_refused(
        &mut self,
        key: super::write::WriteKey,
        fault: super::DiskFault,
        out: &mut Actions,
    ) -> bool {
        let write = &self.writes[key.0];
        if !write.forwarded {
            // Whoever carries this node is as good as its disk: that is full, and an early answer is kept.
            let fails = fault == super::DiskFault::NoSpace
                && self.is_carried()
                && matches!(write.origin, Origin::Front(_));
            if fails {
                self.writes[key.0].peer = Copy::NoSpace;
                self.advance_write(key, out);
            }
            return fails;
        }
        match fault {
            NOT_NOW => {
                // It is begun anew; unless it was failed meanwhile, since this node is demoted.
                self.writes[key.0].peer = Copy::Lost;
                self.advance_write(key, out);
            }
            super::DiskFault::NoSpace => {
                self.writes[key.0].peer = Copy::NoSpace;
                self.advance_write(key, out);
            }
            super::DiskFault::Io(_) => return false,
        }
        true
    }

    /// A guest loses its own disk: it has nothing to bring up to date any more.
    pub(super) fn give_up_guest(&mut self, cause: &'static str, out: &mut Actions) {
        self.stop_being_primary(cause, out);
        self.fail_requests(IoError::Io, out);
    }

    /// A session that is up, of which this copy is the target.
    pub(super) fn target_mut(&mut self) -> Option<&mut super::resync::Target> {
        match self.link.as_mut().map(|link| &mut link.stage) {
            Some(LinkStage::Up(up)) => match &mut up.phase {
                Phase::Target(target) => Some(target),
                _ => None,
            },
            _ => None,
        }
    }
}
