//! Roles: promote, force (docs/protocol.md §3, §5); [`super::demote`] is the way back.
//!
//! Connected, the peer grants, for that session only; alone, permission is what `solo` says.
//! *No-stale-promotion*: an Inconsistent or Outdated copy is refused unless forced. A fence script stands in for
//! permission, and for nothing else.

use kagami_bitmap::planted::{Defect, planted};

use super::durable::After;
use super::event::{Refusal, Reply};
use super::link::Phase;
use super::message::Message;
use super::overdue::Awaited;
use super::request::Gate;
use super::solo::FENCE;
use super::state::{CommandId, DiskState, Role, SessionId, Solo};
use super::{Action, Actions, Mirror, Store};

/// What a promotion goes past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Nothing.
    Plain,
    /// Permission to go on alone: the other node is down, a fence script says.
    Fenced,
    /// Permission, and what is known of the copy.
    Forced,
}

impl Order {
    pub(super) fn by(force: bool) -> Self {
        if force { Self::Forced } else { Self::Plain }
    }
}

/// A promotion under way.
#[derive(Debug)]
pub(super) struct Promoting {
    command: CommandId,
    /// Without the peer no permission is needed.
    fenced: bool,
    /// Also as a guest.
    pub(super) while_resyncing: bool,
    pub(super) stage: Promotion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promotion {
    /// To be decided by what there is: a session, or not.
    Begin,
    /// The peer was asked.
    Asked,
    /// The peer granted; `was_primary` is being written.
    Granted,
    /// Without the peer: permission is sought, or written.
    Alone,
    /// In the session of a peer without a disk that this copy has carried; `was_primary` is being written.
    Carrier,
}

pub(super) fn refusal(
    what: impl Into<String>,
    facts: Vec<String>,
    next: impl Into<String>,
) -> Refusal {
    Refusal {
        what: what.into(),
        facts,
        next: next.into(),
    }
}

impl Mirror {
    #[allow(clippy::unused_self)] // reads like the other effects
    pub(super) fn answer(&self, id: CommandId, result: Result<Reply, Refusal>, out: &mut Actions) {
        out.push(Action::CommandDone { id, result });
    }

    pub(super) fn promote(
        &mut self,
        command: CommandId,
        order: Order,
        while_resyncing: bool,
        out: &mut Actions,
    ) {
        let (force, fenced) = (order == Order::Forced, order == Order::Fenced);
        let holds = self.wants_permission() || self.is_guest();
        if self.is_primary() && force && self.link.is_none() && holds {
            // It holds its I/O: the operator's word lets it go on.
            return self.force(Some(command), true, out);
        }
        if self.is_primary() {
            return self.answer(
                command,
                Ok(Reply::Nothing("this node is Primary already".into())),
                out,
            );
        }
        let waits = matches!(
            self.promoting,
            Some(Promoting {
                stage: Promotion::Begin | Promotion::Alone,
                ..
            })
        );
        if order != Order::Plain && waits {
            let word = if force { "forced" } else { "fenced" };
            let why = refusal(
                format!("not promoted: a {word} promotion replaces it"),
                vec![],
                "see `kagami status`",
            );
            self.refuse_promotion(why, out);
        }
        if self.promoting.is_some() || self.demoting.is_some() {
            let next = "wait for it: `kagami status`";
            let busy = refusal("not promoted: a change of role is under way", vec![], next);
            return self.answer(command, Err(busy), out);
        }
        if self.local.store != Store::Usable {
            let facts = vec![format!("the local copy is {}", self.disk_state())];
            let next = "promote the other node, or replace this node's disk";
            return self.answer(
                command,
                Err(refusal(
                    "not promoted: this copy has no usable disk",
                    facts,
                    next,
                )),
                out,
            );
        }
        let alone = force && self.up().is_none();
        self.promoting = Some(Promoting {
            command,
            fenced,
            while_resyncing,
            stage: if alone {
                Promotion::Alone
            } else {
                Promotion::Begin
            },
        });
        if alone {
            self.force(Some(command), true, out);
        }
    }

    /// True while a promotion without the peer is sought.
    pub(super) fn is_promoting_alone(&self) -> bool {
        matches!(
            self.promoting,
            Some(Promoting {
                stage: Promotion::Alone,
                ..
            })
        )
    }

    /// Takes changes of role as far as they can go.
    pub(super) fn advance_roles(&mut self, out: &mut Actions) {
        if self.is_promoting_alone() && self.link.is_some() && !self.durable.is_changing() {
            // The peer came back before permission did: it is asked instead.
            if let Some(promoting) = &mut self.promoting {
                promoting.stage = Promotion::Begin;
            }
        }
        if let Some(Promoting {
            stage: Promotion::Begin,
            ..
        }) = self.promoting
        {
            self.begin_promotion(out);
        }
        self.advance_demotion(out);
        self.advance_stop(out);
    }

    fn begin_promotion(&mut self, out: &mut Actions) {
        if self.is_meeting() {
            // The peer is there again: what a fence script has said of it is over.
            if let Some(promoting) = &mut self.promoting {
                promoting.fenced = false;
            }
            return;
        }
        let Some(up) = self.up() else {
            return self.promote_without_peer(out);
        };
        let copying = self.is_copying();
        match &up.phase {
            _ if (up.peer.role == Role::Primary
                && !planted(Defect::PrimaryGrants)
                && !planted(Defect::CarrierPromotedBesideThePrimary))
                || up.granted =>
            {
                let next = "demote it there first (`kagami demote`), then promote here";
                let facts = vec![format!("node {} is Primary", self.peer)];
                self.refuse_promotion(
                    refusal("not promoted: the peer is Primary", facts, next),
                    out,
                );
            }
            // In sync in a moment.
            Phase::Target(target) if target.offer.is_some() => {}
            Phase::Target(_) => self.ask_to_be_guest(out),
            Phase::Serve(_) if self.may_lead_as_carrier() => {
                // What is on its way may take `alone` back, or the copy's worth.
                if self.durable.is_changing() {
                    return;
                }
                if let Some(promoting) = &mut self.promoting {
                    promoting.stage = Promotion::Carrier;
                }
                self.change_record(After::Promoted, |r| r.was_primary = true);
            }
            Phase::Serve(_) => {
                let facts = vec![format!("the peer's disk is {}", up.peer.disk)];
                let next = "wait for the peer's disk to be replaced, or disconnect it first";
                self.refuse_promotion(
                    refusal("not promoted: one copy has no disk", facts, next),
                    out,
                );
            }
            // A source that is about to settle is Primary a moment later.
            Phase::Source(_) if !copying => {}
            // An operator kept a copy that had left: it is good when both are in sync.
            Phase::Source(_) if !self.is_good() => {
                let facts = vec!["it is until the resynchronisation from it ends".to_owned()];
                let next = "wait for it: `kagami status --watch`";
                let what = "not promoted: this copy is Outdated";
                self.refuse_promotion(refusal(what, facts, next), out);
            }
            Phase::InSync | Phase::Source(_) => {
                if let Some(promoting) = &mut self.promoting {
                    promoting.stage = Promotion::Asked;
                }
                self.send(Message::PromoteAsk, out);
                self.await_answer(Awaited::Grant);
            }
        }
    }

    fn promote_without_peer(&mut self, out: &mut Actions) {
        if self.durable.is_changing() {
            return;
        }
        if planted(Defect::FormerPrimaryNeedNotAsk) && self.record().was_primary && self.is_good() {
            if let Some(promoting) = &mut self.promoting {
                promoting.stage = Promotion::Alone;
            }
            let tag = self.draw_tag();
            return self.mint_as(tag, After::Minted { by: "planted" });
        }
        if !self.is_good() && !planted(Defect::InconsistentMayAsk) {
            let state = self.disk_state();
            let facts = vec![format!(
                "this copy is {state}, and the peer is not connected"
            )];
            let next = "connect the peer and let it resync, or `kagami promote --force` (loses the peer's writes since)";
            return self.refuse_promotion(
                refusal(format!("not promoted: this copy is {state}"), facts, next),
                out,
            );
        }
        if self.record().is_never_written() && self.has_peer() {
            let facts = vec!["neither copy was ever written".into()];
            let next = "connect the peer first (`kagami pair`), or `kagami promote --force` to begin with this copy";
            return self.refuse_promotion(
                refusal("not promoted: this mirror has no data yet", facts, next),
                out,
            );
        }
        let fenced = self.promoting.as_ref().is_some_and(|p| p.fenced);
        if self.solo_rule() == Solo::Never && !fenced {
            let facts = vec![format!(
                "node {} is not connected, and solo = \"never\"",
                self.peer
            )];
            let next = "connect the peer, name an arbiter, or `kagami promote --force` if the peer is surely not Primary";
            return self.refuse_promotion(
                refusal("not promoted: no permission to go on alone", facts, next),
                out,
            );
        }
        if let Some(promoting) = &mut self.promoting {
            promoting.stage = Promotion::Alone;
        }
        if self.alone.is_some() {
            // It carried a Primary that has gone: named already, once that one's lease has ended.
            return self.promoted_alone(out);
        }
        if self.solo_rule() == Solo::Always {
            self.change_record(After::Promoted, |r| r.was_primary = true);
        } else if fenced {
            self.end_attempt();
            self.mint(FENCE, out);
        } else {
            self.seek_permission(out);
        }
    }

    /// Permission to go on alone is there, durably: the promotion that waited for it is done.
    pub(super) fn promoted_alone(&mut self, out: &mut Actions) {
        if !self.is_promoting_alone() {
            return;
        }
        if self.record().was_primary {
            self.become_primary(out);
        } else {
            self.change_record(After::Promoted, |r| r.was_primary = true);
        }
    }

    /// True if this copy has carried a Primary without a disk that is none any more, in the session there
    /// is. *One-writer*: it has a generation of its own already, durably, and the peer has nothing to be
    /// Primary with: neither is it granted anything, nor does an operator's force help it, before its
    /// daemon starts with another disk, and that is another session. So nobody is asked, and no lease is
    /// waited for: who says that it is Secondary answers nothing any more.
    fn may_lead_as_carrier(&self) -> bool {
        let Some(up) = self.up() else { return false };
        let gone = matches!(up.peer.disk, DiskState::Failed | DiskState::Diskless);
        matches!(up.phase, Phase::Serve(_))
            && gone
            && !up.granted
            && (up.peer.role == Role::Secondary || planted(Defect::CarrierPromotedBesideThePrimary))
            && self.alone.is_some()
            && self.is_still_alone()
            && self.is_good()
    }

    fn become_primary(&mut self, out: &mut Actions) {
        assert!(
            self.record().was_primary,
            "`was_primary` is durable before the first write"
        );
        assert!(
            self.is_good(),
            "No-stale-promotion: {:?}",
            self.record().disk
        );
        let Some(promoting) = &self.promoting else {
            return;
        };
        self.role_cause = match promoting.stage {
            Promotion::Carrier => "promoted beside the peer without a disk",
            Promotion::Alone => "promoted without the peer",
            Promotion::Begin | Promotion::Asked | Promotion::Granted => {
                "promoted, and the peer agrees"
            }
        };
        self.role = Role::Primary;
        self.forget_word();
        self.gate = Gate::Open;
        self.guest_flushed();
        self.promotion_done(out);
        if self.is_copying() && self.alone.is_none() {
            self.go_on_by_consent(out);
        }
        if self.is_in_sync() {
            self.seek_to_rejoin(out);
        }
    }

    pub(super) fn promotion_done(&mut self, out: &mut Actions) {
        if let Some(promoting) = self.promoting.take() {
            self.answer(promoting.command, Ok(Reply::Done), out);
        }
    }

    pub(super) fn refuse_promotion(&mut self, why: Refusal, out: &mut Actions) {
        if let Some(promoting) = self.promoting.take() {
            self.answer(promoting.command, Err(why), out);
        }
    }

    /// The peer granted, and this node is about to be Primary.
    pub(super) fn is_granted(&self) -> bool {
        self.promoting
            .as_ref()
            .is_some_and(|promoting| promoting.stage == Promotion::Granted)
    }

    /// The peer asks to be Primary in this session.
    pub(super) fn on_promote_ask(&mut self, out: &mut Actions) -> Result<(), String> {
        if self.is_in_sync() && self.has_repairs() && !planted(Defect::RepairOutlivesTheRole) {
            // What it writes as Primary could be overtaken by them.
            if let Some(up) = self.up_mut() {
                up.asked_late = true;
            }
            return Ok(());
        }
        let stage = self.promoting.as_ref().map(|promoting| promoting.stage);
        let asked = stage == Some(Promotion::Asked);
        let why = if planted(Defect::PrimaryGrants) || (asked && planted(Defect::BothGrant)) {
            None
        } else if self.is_primary() {
            Some(format!("node {} is Primary", self.me))
        } else if stage == Some(Promotion::Granted) || (asked && self.me < self.peer) {
            Some(format!("node {} is being promoted itself", self.me))
        } else if self.stopping.is_some() {
            Some(format!("node {} is stopping", self.me))
        } else if self.is_source() && !self.is_good() {
            let me = self.me;
            Some(format!(
                "node {me}'s own copy is Outdated until the resynchronisation ends"
            ))
        } else if self.is_source() && self.told_boot().is_some() {
            return self.on_guest_asks(out);
        } else if self.is_source() || self.up().is_some_and(|up| up.resolved) {
            Some("this copy is the target of a resynchronisation".to_owned())
        } else {
            None
        };
        if let Some(why) = why {
            self.send(Message::PromoteRefuse { why }, out);
        } else {
            if let Some(up) = self.up_mut() {
                up.granted = true;
            }
            self.yield_verify(out);
            let remembers = self.record().was_primary && !planted(Defect::GrantKeepsWasPrimary);
            if let Some(session) = self.session().filter(|_| remembers) {
                // One copy at most remembers that it was Primary: with protocols A and B it has
                // answered writes that the other one lacks (docs/protocol.md §6, row 9).
                self.change_record(After::Granted { session }, |r| r.was_primary = false);
            } else {
                self.send(Message::PromoteGrant, out);
            }
        }
        Ok(())
    }

    pub(super) fn on_grant_durable(&mut self, session: SessionId, out: &mut Actions) {
        if self.is_session(session) {
            self.send(Message::PromoteGrant, out);
        }
    }

    pub(super) fn on_promote_grant(&mut self, out: &mut Actions) -> Result<(), String> {
        self.on_answered(Awaited::Grant);
        match &mut self.promoting {
            Some(promoting) if promoting.stage == Promotion::Asked => {
                promoting.stage = Promotion::Granted
            }
            _ => return Err("it grants what was not asked".into()),
        }
        if matches!(self.up().map(|up| &up.phase), Some(Phase::Target(_))) {
            return self.become_guest(out);
        }
        self.change_record(After::Promoted, |r| r.was_primary = true);
        Ok(())
    }

    pub(super) fn on_promote_refuse(&mut self, why: &str, out: &mut Actions) -> Result<(), String> {
        self.on_answered(Awaited::Grant);
        match &self.promoting {
            Some(promoting) if promoting.stage == Promotion::Asked => {}
            _ => return Err("it refuses what was not asked".into()),
        }
        let next = "look at the other node: `kagami status` there";
        self.refuse_promotion(
            refusal("not promoted: the peer refuses", vec![why.to_owned()], next),
            out,
        );
        Ok(())
    }

    pub(super) fn on_promoted_durable(&mut self, out: &mut Actions) {
        match self.promoting.as_ref().map(|p| p.stage) {
            Some(Promotion::Granted)
                if (self.up().is_some() || planted(Defect::GrantOutlivesItsSession))
                    && self.is_good() =>
            {
                self.become_primary(out);
            }
            Some(Promotion::Alone)
                if self.up().is_none() && !self.is_frozen() && self.is_good() =>
            {
                self.become_primary(out);
            }
            Some(Promotion::Carrier) if self.may_lead_as_carrier() => self.become_primary(out),
            Some(_) => {
                if let Some(promoting) = &mut self.promoting {
                    promoting.stage = Promotion::Begin;
                }
            }
            None => {}
        }
    }

    /// A grant counts for its session only, and so does what the peer said of itself.
    pub(super) fn on_session_end_promoting(&mut self) {
        if let Some(promoting) = &mut self.promoting
            && matches!(
                promoting.stage,
                Promotion::Asked | Promotion::Granted | Promotion::Carrier
            )
            && !(planted(Defect::GrantOutlivesItsSession) && promoting.stage == Promotion::Granted)
        {
            promoting.stage = Promotion::Begin;
        }
    }

    /// The forced generation is durable.
    pub(super) fn on_forced(
        &mut self,
        command: Option<CommandId>,
        promote: bool,
        held: bool,
        out: &mut Actions,
    ) {
        if self.local.store != Store::Usable {
            return self.on_not_forced(command.filter(|_| held), out);
        }
        if promote {
            self.on_forced_minted(out);
        } else {
            // The kept copy of two that an operator chose between; nobody is made Primary.
            self.open_door(out);
        }
        if let Some(command) = command.filter(|_| !promote || held) {
            self.answer(command, Ok(Reply::Done), out);
        }
    }

    /// The local disk failed before a Primary that held its I/O could be forced to go on.
    pub(super) fn on_not_forced(&mut self, command: Option<CommandId>, out: &mut Actions) {
        if let Some(command) = command {
            let what = "not forced: the local disk failed";
            let next = "promote the other node, or replace this node's disk";
            self.answer(command, Err(refusal(what, vec![], next)), out);
        }
    }

    /// Secondary from now on; `cause` is for people.
    pub(super) fn lose_role(&mut self, cause: &'static str) {
        self.role_cause = cause;
        self.term += u64::from(self.is_primary());
        self.role = Role::Secondary;
        self.gate = Gate::Open;
    }

    /// Stops being Primary at once; what front ends wait for is failed by the caller.
    pub(super) fn stop_being_primary(&mut self, cause: &'static str, out: &mut Actions) {
        self.lose_role(cause);
        if let Some(demoting) = self.demoting.take()
            && let Some(command) = demoting.command
        {
            self.answer(command, Ok(Reply::Done), out);
        }
        self.refuse_promotion(
            refusal(
                format!("not promoted: {cause}"),
                vec![],
                "see `kagami status`",
            ),
            out,
        );
    }
}
