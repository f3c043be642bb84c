//! What an operator orders.

use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::superblock::StoredDisk;

use super::decide::Strategy;
use super::durable::After;
use super::event::{Command, From, Refusal, Reply};
use super::flush::FlushOf;
use super::link::Phase;
use super::message::Message;
use super::promote::Order;
use super::state::{CommandId, NodeId, Role, Solo};
use super::{Actions, DiskFault, DiskOp, DiskWork, Mirror, Store};

fn refusal(what: &str, facts: Vec<String>, next: &str) -> Refusal {
    Refusal {
        what: what.into(),
        facts,
        next: next.into(),
    }
}

/// Why there is nobody to connect.
const NO_PEER: &str = "no other node has a copy";
/// What helps a copy without a usable disk.
const NO_DISK_HERE: &str = "put this very disk right and start kagami here again; `kagami replace-disk` makes a copy on a new one";
/// The same, of the peer.
const NO_DISK_THERE: &str = "put that very disk right and start kagami there again; `kagami replace-disk` there makes a copy on a new one";

impl Mirror {
    pub(super) fn on_command(&mut self, id: CommandId, command: Command, out: &mut Actions) {
        if self.stopping.is_some() {
            let why = refusal(
                "refused: the daemon is stopping",
                vec![],
                "start it again: `kagami up`",
            );
            return self.answer(id, Err(why), out);
        }
        match command {
            Command::Promote {
                force,
                while_resyncing,
            } => self.promote(id, Order::by(force), while_resyncing, out),
            Command::PromoteFenced => self.promote(id, Order::Fenced, false, out),
            Command::Demote { force } => self.demote(Some(id), force, out),
            Command::Resync { from, full } => self.order_resync(id, from, full, out),
            Command::PauseSync => self.order_pause(id, true, out),
            Command::ResumeSync => self.order_pause(id, false, out),
            Command::Verify { repair } => self.begin_verify(id, repair, out),
            Command::StopVerify => self.stop_verify(id, out),
            Command::Invalidate => self.order_invalidate(id, out),
            Command::Disconnect => self.order_disconnect(id, out),
            Command::Connect => self.order_connect(id, out),
            Command::SetPeer { peer } => self.order_set_peer(id, peer, out),
            Command::Stop => {
                self.stopping = Some(id);
                self.stop_progress = Stopping::Begin;
            }
            Command::Set(settings) => {
                self.set(settings, out);
                self.answer(id, Ok(Reply::Done), out);
            }
        }
    }

    fn order_pause(&mut self, id: CommandId, pause: bool, out: &mut Actions) {
        let running = matches!(
            self.up().map(|up| &up.phase),
            Some(Phase::Source(_) | Phase::Target(_))
        );
        if !running {
            return self.answer(
                id,
                Ok(Reply::Nothing("no resynchronisation runs".into())),
                out,
            );
        }
        let here = self.up().is_some_and(|up| up.paused_here);
        self.pause(pause, out);
        let there = self.up().is_some_and(|up| up.paused_there);
        if !pause && there {
            let too = if here { " too" } else { "" };
            let facts = vec![format!("it is paused at the other node{too}")];
            let why = refusal("not resumed", facts, "run `kagami resume-sync` there");
            return self.answer(id, Err(why), out);
        }
        self.answer(id, Ok(Reply::Done), out);
    }

    /// `kagami resync`: after a split brain or for a first copy an operator's word decides the next
    /// handshake; in sync it makes the copy that is not kept a target.
    fn order_resync(&mut self, id: CommandId, from: Option<From>, full: bool, out: &mut Actions) {
        if matches!(
            self.up().map(|up| &up.phase),
            Some(Phase::Source(_) | Phase::Target(_))
        ) {
            let why = refusal(
                "refused: a resynchronisation runs",
                vec![],
                "watch it with `kagami status --watch`",
            );
            return self.answer(id, Err(why), out);
        }
        if self.local.store != Store::Usable {
            let why = refusal(
                "refused: this copy has no usable disk",
                vec![],
                NO_DISK_HERE,
            );
            return self.answer(id, Err(why), out);
        }
        let from = match from {
            Some(from) => from,
            None if self.is_in_sync() && !full && self.bitmap.count() == 0 => {
                return self.answer(
                    id,
                    Ok(Reply::Nothing(
                        "the copies are in sync, nothing is marked".into(),
                    )),
                    out,
                );
            }
            None if self.is_in_sync() && self.is_primary() => From::Local,
            None if self.is_in_sync()
                && self.up().is_some_and(|up| up.peer.role == Role::Primary) =>
            {
                From::Peer
            }
            None => {
                let next = "say whose data stays: `--from local` or `--from peer`";
                let why = refusal(
                    "refused: it is not clear which copy is to stay",
                    vec![],
                    next,
                );
                return self.answer(id, Err(why), out);
            }
        };
        let keep = match from {
            From::Local => self.me,
            From::Peer => self.peer,
        };
        if keep == self.peer && (self.is_primary() || self.promoting.is_some()) {
            let next = "demote this node first (`kagami demote`)";
            let why = refusal(
                "refused: this node is Primary, its own copy would be overwritten",
                vec![],
                next,
            );
            return self.answer(id, Err(why), out);
        }
        if let Some(why) = self.can_not_stay(keep) {
            return self.answer(id, Err(why), out);
        }
        if self.is_in_sync() {
            if keep == self.peer
                && let Some(why) = self.gives_up_the_peer()
            {
                return self.answer(id, Err(why), out);
            }
            if keep == self.me && self.peer_may_write() {
                let next = "demote the other node first";
                let why = refusal(
                    "refused: the other node is Primary, its copy would be overwritten",
                    vec![],
                    next,
                );
                return self.answer(id, Err(why), out);
            }
            if keep == self.me {
                if let Some(up) = self.up_mut() {
                    up.resolved = true;
                }
                self.send(Message::Resolve { keep, full }, out);
            } else {
                self.become_invalid(full, None, out);
            }
        } else {
            self.take_word(keep, full);
            self.door.cause = "an operator chose the copy that stays".to_owned();
            self.door.shut = false;
            self.door.refused = 0;
            if self.link.is_some() {
                self.close_session("an operator chose the copy that stays", out);
            }
            self.open_door(out);
        }
        self.answer(id, Ok(Reply::Started), out);
    }

    /// Why a word for this copy would be let go unheard when the nodes meet, as far as is known here. (A word
    /// between two bad copies is heard: docs/protocol.md §6.)
    fn can_not_stay(&self, keep: NodeId) -> Option<Refusal> {
        if let Some(up) = self.up()
            && matches!(up.phase, Phase::Serve(_))
        {
            return Some(refusal(
                "refused: the other node has no disk, there is nothing to choose from",
                vec![format!("node {}'s disk is {}", self.peer, up.peer.disk)],
                NO_DISK_THERE,
            ));
        }
        let between_bad_ones = matches!(
            self.last_verdict.map(|verdict| verdict.strategy),
            Some(Strategy::Refuse(why)) if why.waits_for_any_word()
        );
        let cut = self.record().disk == StoredDisk::Inconsistent;
        (keep == self.me && cut && !between_bad_ones).then(|| {
            refusal(
                "refused: this copy is Inconsistent, it can't be the one that stays",
                vec!["it is partly overwritten, or was invalidated".to_owned()],
                "`kagami resync --from peer`; if that copy is gone for good, `kagami promote --force` here",
            )
        })
    }

    /// The operator at the other end chose.
    ///
    /// Errors: it would overwrite a Primary in sync.
    pub(super) fn on_resolve(
        &mut self,
        keep: NodeId,
        full: bool,
        out: &mut Actions,
    ) -> Result<(), String> {
        if keep != self.peer {
            return Err("it orders that its own copy be overwritten".into());
        }
        if !self.is_in_sync() {
            return Ok(()); // no more: the session is about to end
        }
        if self.up().is_some_and(|up| up.resolved) && self.me < self.peer {
            return Ok(()); // two operators at once: the word at the lower id stands
        }
        if self.is_primary() || self.is_granted() {
            return Err("it wants to overwrite the copy of a Primary".into());
        }
        self.become_invalid(full, None, out);
        Ok(())
    }

    fn order_invalidate(&mut self, id: CommandId, out: &mut Actions) {
        if self.is_primary() || self.promoting.is_some() {
            let why = refusal(
                "refused: this node is Primary",
                vec![],
                "demote it first, or invalidate the other node",
            );
            return self.answer(id, Err(why), out);
        }
        if self.local.store != Store::Usable {
            let why = refusal(
                "refused: this copy has no usable disk",
                vec![],
                NO_DISK_HERE,
            );
            return self.answer(id, Err(why), out);
        }
        if !self.has_peer() {
            let why = refusal(
                "refused: no other node has a copy, this is the only one",
                vec![],
                "`kagami pair` brings a second node; it can be fetched from there when both are in sync",
            );
            return self.answer(id, Err(why), out);
        }
        if let Some(why) = self.gives_up_the_peer() {
            return self.answer(id, Err(why), out);
        }
        self.forget_word();
        self.become_invalid(true, Some(id), out);
    }

    /// The peer has no copy, or it is being overwritten with this one, or may be about to: with this
    /// one given up too, none would be left.
    fn gives_up_the_peer(&self) -> Option<Refusal> {
        if self.is_meeting() {
            return Some(refusal(
                "refused: the nodes are just finding out which copy is the newer one",
                vec![],
                "again in a moment",
            ));
        }
        if self.is_source() {
            return Some(refusal(
                "refused: the other copy is being brought up to date from this one",
                vec!["it is Inconsistent until that has ended".to_owned()],
                "wait until `kagami status` says that both are in sync, then again",
            ));
        }
        if let Some(up) = self.up()
            && matches!(up.phase, Phase::Serve(_))
        {
            return Some(refusal(
                "refused: the other node has no disk, this is the only copy",
                vec![format!("node {}'s disk is {}", self.peer, up.peer.disk)],
                NO_DISK_THERE,
            ));
        }
        self.up().filter(|up| up.resolved)?;
        Some(refusal(
            "refused: the other copy is about to be overwritten with this one",
            vec!["`kagami resync --from local` was ordered here".to_owned()],
            "wait until `kagami status` says that both are in sync, then again",
        ))
    }

    /// This copy is not to be trusted: Inconsistent, durably, then the handshake makes it a target.
    fn become_invalid(&mut self, full: bool, command: Option<CommandId>, out: &mut Actions) {
        self.alone = None;
        // At once: a resynchronisation that is about to end would clear the marks of the blocks
        // that it never compared, and its adoption take the word back.
        self.close_session("this copy was invalidated", out);
        if full {
            self.bitmap.mark_all();
            self.want_pages();
        }
        self.change_record(After::Invalidated { command }, |r| {
            r.disk = StoredDisk::Inconsistent;
            r.zeroed = false;
            r.all_marked |= full && !planted(Defect::AllMarkedNotWritten);
        });
    }

    pub(super) fn on_invalidated_durable(&mut self, command: Option<CommandId>, out: &mut Actions) {
        self.end_attempt();
        self.local.up_to_date = false;
        if let Some(id) = command {
            self.answer(id, Ok(Reply::Done), out);
        }
    }

    fn order_connect(&mut self, id: CommandId, out: &mut Actions) {
        let nothing = if !self.has_peer() {
            Some(NO_PEER)
        } else if self.up().is_some() && !self.door.shut {
            Some("the peer is connected already")
        } else {
            None
        };
        if let Some(why) = nothing {
            return self.answer(id, Ok(Reply::Nothing(why.into())), out);
        }
        self.door.cause = "an operator connected it".to_owned();
        self.door.shut = false;
        self.door.refused = 0;
        self.open_door(out);
        self.answer(id, Ok(Reply::Started), out);
    }

    fn order_disconnect(&mut self, id: CommandId, out: &mut Actions) {
        self.forget_word();
        let nothing = if !self.has_peer() {
            Some(NO_PEER)
        } else if self.door.shut && self.link.is_none() {
            Some("the peer is disconnected already")
        } else {
            None
        };
        if let Some(why) = nothing {
            return self.answer(id, Ok(Reply::Nothing(why.into())), out);
        }
        let held = self.is_primary() && self.is_in_sync() && self.solo_rule() == Solo::Never;
        if held {
            let facts =
                vec!["solo = \"never\": without the peer this node answers nothing".to_owned()];
            let next = "run `kagami disconnect` on the other node: it leaves cleanly, and this one goes on";
            return self.answer(
                id,
                Err(refusal("refused: this node is Primary", facts, next)),
                out,
            );
        }
        if self.is_guest() {
            let facts = vec!["the other node answers for it until its copy is in sync".to_owned()];
            let next = "demote it first (`kagami demote`), or wait for the resynchronisation";
            return self.answer(
                id,
                Err(refusal("refused: this node is Primary", facts, next)),
                out,
            );
        }
        self.door.cause = "an operator disconnected it".to_owned();
        self.door.shut = true;
        let leaves = self.is_in_sync() && self.up().is_some_and(|up| up.peer.role == Role::Primary);
        if leaves {
            self.submit(DiskWork::Flush(FlushOf::Leave(id)), DiskOp::Flush, out);
            return;
        }
        self.close_session("an operator disconnected it", out);
        self.open_door(out);
        self.answer(id, Ok(Reply::Done), out);
    }

    /// docs/protocol.md §5, clean leave: flushed, then Outdated, durably, then told.
    pub(super) fn on_flushed_to_leave(
        &mut self,
        id: CommandId,
        result: Result<(), DiskFault>,
        out: &mut Actions,
    ) {
        if !self.door.shut {
            let what = "not disconnected: it was told to connect meanwhile";
            let next = "`kagami disconnect` again, if it is to stay without the other node";
            self.answer(id, Err(refusal(what, vec![], next)), out);
        } else if result.is_ok() && self.is_in_sync() && !self.is_primary() && !self.is_granted() {
            if planted(Defect::LeaveBeforeOutdated) {
                self.send(Message::Leave, out);
            }
            self.change_record(After::Outdated { command: id }, |r| {
                r.disk = StoredDisk::Outdated
            });
        } else {
            self.left(id, out);
        }
    }

    pub(super) fn on_outdated_durable(&mut self, id: CommandId, out: &mut Actions) {
        self.end_attempt();
        if self.is_in_sync() {
            self.send(Message::Leave, out);
        } else if self.is_last_copy() {
            // The Primary's disk failed meanwhile. It was not told, has answered nothing since,
            // and this copy has everything: it must not go as a stale one.
            let after = After::Reclaimed { command: id };
            return self.change_record(after, |r| r.disk = StoredDisk::Consistent);
        }
        self.left(id, out);
    }

    pub(super) fn on_reclaimed_durable(&mut self, id: CommandId, out: &mut Actions) {
        if self.stopping == Some(id) {
            return self.left(id, out);
        }
        self.door.shut = false;
        let why = refusal(
            "not disconnected: the Primary's disk failed, and this is the only copy now",
            vec![format!("node {} goes on with this node's disk", self.peer)],
            NO_DISK_THERE,
        );
        self.answer(id, Err(why), out);
        self.seek_to_carry(out);
    }

    fn left(&mut self, id: CommandId, out: &mut Actions) {
        self.local.up_to_date = self.alone.is_some();
        self.close_session("this node leaves", out);
        self.open_door(out);
        if self.stopping == Some(id) {
            self.stop_progress = Stopping::Left;
        } else {
            self.answer(id, Ok(Reply::Done), out);
        }
    }

    /// Takes a clean stop as far as it can go: demoted, gone from the session, everything
    /// flushed, pages written, the activity log empty.
    pub(super) fn advance_stop(&mut self, out: &mut Actions) {
        let Some(id) = self.stopping else { return };
        match self.stop_progress {
            Stopping::Begin => {
                self.door.cause = "it is stopped".to_owned();
                self.door.shut = true;
                self.drop_verify(Ok(Reply::Nothing("stopped".into())), out);
                if self.promoting.is_some() {
                    let why = refusal(
                        "not promoted: the daemon is stopping",
                        vec![],
                        "start it again",
                    );
                    self.refuse_promotion(why, out);
                }
                if self.is_primary() {
                    if self.demoting.is_none() {
                        self.demote(None, true, out);
                        self.advance_demotion(out);
                    }
                } else if self.is_in_sync()
                    && self.up().is_some_and(|up| up.peer.role == Role::Primary)
                {
                    self.stop_progress = Stopping::Leaving;
                    self.submit(DiskWork::Flush(FlushOf::Leave(id)), DiskOp::Flush, out);
                } else {
                    if self.up().is_some() {
                        self.send(Message::Bye, out);
                    }
                    self.close_session("this node stops", out);
                    self.open_door(out);
                    self.stop_progress = Stopping::Left;
                    self.advance_stop(out);
                }
            }
            Stopping::Left | Stopping::Flushing | Stopping::Pages | Stopping::Log
                if self.local.store != Store::Usable =>
            {
                self.stopped(out);
            }
            Stopping::Left
                if self.writes.is_empty()
                    && self.reads.is_empty()
                    && !self.durable.is_changing() =>
            {
                self.stop_progress = Stopping::Flushing;
                self.submit(DiskWork::Flush(FlushOf::Stop), DiskOp::Flush, out);
            }
            Stopping::Pages if self.are_pages_written() && self.log.is_record_on_its_way() => {}
            Stopping::Pages if self.are_pages_written() || planted(Defect::LogEmptiedEarly) => {
                self.stop_progress = Stopping::Log;
                if self.log.is_empty() {
                    self.stopped(out);
                } else {
                    self.empty_log(out);
                }
            }
            Stopping::Pages => self.want_pages(),
            Stopping::Left
            | Stopping::Leaving
            | Stopping::Flushing
            | Stopping::Log
            | Stopping::Done => {}
        }
    }

    pub(super) fn on_flushed_to_stop(&mut self) {
        if self.stop_progress == Stopping::Flushing {
            self.stop_progress = Stopping::Pages;
        }
    }

    pub(super) fn on_log_emptied(&mut self, out: &mut Actions) {
        if self.stop_progress == Stopping::Log {
            self.stopped(out);
        }
    }

    fn stopped(&mut self, out: &mut Actions) {
        self.stop_progress = Stopping::Done;
        if let Some(id) = self.stopping {
            self.answer(id, Ok(Reply::Done), out);
        }
    }
}

/// How far a clean stop is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stopping {
    #[default]
    Begin,
    Leaving,
    Left,
    Flushing,
    Pages,
    Log,
    Done,
}
