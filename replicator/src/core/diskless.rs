//! A copy whose disk failed, and the peer that carries it (docs/protocol.md §4 *carry*, §5).
//!
//! A Primary without a disk serves on through the peer's copy, once that has a generation of
//! its own, durably: *One-writer*, a write that only one copy holds is answered in a generation
//! that the other does not have. The carrier marks what it applies.

use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::superblock::StoredDisk;

use super::durable::After;
use super::event::IoError;
use super::link::{Phase, Up};
use super::message::{Hello, Message};
use super::state::{DiskState, Role, SessionId};
use super::{Action, Actions, DiskFault, Mirror, Notice, Store};

/// One of the two copies has no disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Serve {
    /// The peer carries this node, or this node the peer.
    pub carried: bool,
}

impl Mirror {
    /// The local store failed: the copy is detached, for good. A failed flush is never trusted
    /// again, whatever a later one says.
    pub(super) fn on_local_failed(
        &mut self,
        fault: DiskFault,
        doing: &'static str,
        out: &mut Actions,
    ) {
        if self.local.store != Store::Usable {
            return;
        }
        out.push(Action::Report(Notice::DiskFailed { fault, doing }));
        out.push(Action::BreakToken);
        let was_newest = self.alone.is_some();
        if self.is_guest() {
            self.give_up_guest("its disk failed while it was being resynchronised", out);
        }
        self.local.store = Store::Failed;
        self.local.up_to_date = false;
        self.local.unbroken = false;
        self.alone = None;
        // The store may be beyond recording it; the token says the same for this boot.
        // What is there at the next start may be another disk.
        self.change_record(After::Nothing, |r| {
            r.boot = None;
            r.store_lost = true;
        });
        self.end_attempt();
        self.cancel_cycle();
        self.release_cold(out);
        self.end_verify_without_disk(fault, out);
        if !self.is_primary() {
            // The peer goes on without this copy, which stays away until its disk is replaced.
            self.close_session("the local disk failed", out);
            self.open_door(out);
            let why = super::Refusal {
                what: "not promoted: the local disk failed".into(),
                facts: vec![fault.to_string()],
                next: "promote the other node, or replace this node's disk".into(),
            };
            self.refuse_promotion(why, out);
            return;
        }
        if self.target_mut().is_some() {
            // A guest that has adopted: its source's copy is as good, and carries it in another session. In this one it would
            // be taken for a copy that is in sync.
            return self.close_session("the local disk failed", out);
        }
        if was_newest || !self.is_in_sync() {
            // The only good copy is gone; the peer's is older.
            if self.is_source() || self.is_frozen() {
                self.close_session("the local disk failed", out);
            }
            self.fail_requests(IoError::Io, out);
            return;
        }
        self.remember_unflushed();
        self.unflushed.move_into(&mut self.bitmap);
        if let Some(up) = self.up_mut() {
            let boot = up.peer.boot;
            up.phase = Phase::Serve(Serve::default());
            self.served_by(boot);
        }
    }

    /// True if this node has neither a disk nor a peer to serve from: EIO, at once. A peer that
    /// lacks what protocol A or B answered is none: its blocks would be old ones. Nor is one whose own disk is gone.
    pub(super) fn has_lost_all(&self) -> bool {
        let gone = |up: &Up| matches!(up.peer.disk, DiskState::Failed | DiskState::Diskless);
        self.local.store != Store::Usable && (self.up().is_none_or(gone) || self.local.ahead)
    }

    /// Why this Primary without a disk can't go on as one through the peer, if it can't: the data are not
    /// those any more that its applications know.
    pub(super) fn is_displaced(&self, theirs: &Hello) -> Option<&'static str> {
        if self.local.store == Store::Usable || !self.is_primary() {
            return None;
        }
        if theirs.role == Role::Primary {
            return Some("the other node is Primary");
        }
        // *One-writer*: cleared when it began to carry, and kept by whoever was Primary alone.
        if theirs.was_primary && !planted(Defect::CarriedOutlivesAPrimary) {
            return Some("the other node was Primary meanwhile");
        }
        // *Durable-both*: a later flush would say of these writes that they are there.
        if self.has_lost_unflushed(theirs) {
            return Some("the other machine crashed with writes that were not flushed");
        }
        None
    }

    fn serve(&mut self) -> Option<&mut Serve> {
        match self.up_mut().map(|up| &mut up.phase) {
            Some(Phase::Serve(serve)) => Some(serve),
            _ => None,
        }
    }

    /// This node is a Primary without a disk, and the peer answers for both.
    pub(super) fn is_carried(&self) -> bool {
        self.local.store != Store::Usable
            && !self.local.ahead
            && matches!(
                self.up().map(|up| &up.phase),
                Some(Phase::Serve(Serve { carried: true }))
            )
    }

    /// The peer has no disk, and this copy answers for it.
    pub(super) fn carries(&self) -> bool {
        self.local.store == Store::Usable
            && matches!(
                self.up().map(|up| &up.phase),
                Some(Phase::Serve(Serve { carried: true }))
            )
    }

    /// The peer is a Primary without a disk, and this copy is not yet its carrier.
    pub(super) fn must_carry(&self) -> bool {
        let stays_good = self.durable.next_record().disk == StoredDisk::Consistent;
        self.is_good() && stays_good && self.is_last_copy()
    }

    /// The peer is a Primary that lost its disk in this session, and nobody carries it yet.
    pub(super) fn is_last_copy(&self) -> bool {
        let Some(up) = self.up() else { return false };
        let lost = matches!(up.peer.disk, DiskState::Failed | DiskState::Diskless);
        !self.is_primary()
            && lost
            && up.peer.role == Role::Primary
            && matches!(up.phase, Phase::Serve(Serve { carried: false }))
    }

    /// Goes on as the only copy, for the Primary whose disk failed.
    pub(super) fn seek_to_carry(&mut self, out: &mut Actions) {
        if !self.must_carry() {
            return;
        }
        if self.alone.is_some() {
            self.begin_to_carry(out);
        } else {
            self.ask_to_carry(out);
        }
    }

    pub(super) fn on_minted_to_carry(&mut self, session: SessionId, out: &mut Actions) {
        if self.is_session(session) && self.must_carry() {
            self.alone = Some(super::solo::Alone {
                since: self.now,
                by: "carrying",
            });
            self.local.up_to_date = true;
            if let Some(generation) = self.record().current {
                out.push(Action::Report(Notice::Minted {
                    generation,
                    permission: "carrying",
                }));
            }
            self.begin_to_carry(out);
        }
    }

    fn begin_to_carry(&mut self, out: &mut Actions) {
        self.watch_register();
        if let Some(serve) = self.serve() {
            serve.carried = true;
        }
        self.send(Message::Carrying, out);
    }

    /// The peer's generation of its own is durable.
    ///
    /// Errors: from a peer that has nothing to carry.
    pub(super) fn on_carrying(&mut self, out: &mut Actions) -> Result<(), String> {
        let lost = self.local.store != Store::Usable;
        let is_target = self.target_mut().is_some();
        match self.serve() {
            Some(serve) if lost => {
                serve.carried = true;
                let boot = self.up().and_then(|up| up.peer.boot);
                self.served_by(boot);
            }
            None if !lost && is_target => return self.on_served_again(),
            _ => return Err("it carries a Primary that has a disk".into()),
        }
        self.answer_waiting_writes(out);
        Ok(())
    }

    /// Writes that wait for extents need none any more.
    fn release_cold(&mut self, out: &mut Actions) {
        for key in self.take_cold() {
            self.start_write(key, out);
        }
    }
}
