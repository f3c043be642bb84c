//! Going on without the peer: permission, and the arbiter's register (docs/protocol.md §3, §4).
//!
//! *One-writer*: permission is confirmed, then a generation is minted, durably, and only then is
//! anything answered that this copy alone holds. The questions to the arbiter are in `attempt`.

use kagami_bitmap::planted::{Defect, planted};

use super::durable::After;
use super::link::Phase;
use super::message::Hello;
use super::settings::BothStalePolicy;
use super::state::{Role, Solo, Time};
use super::status::{ArbiterFault, Footing, Standing};
use super::timers::Timer;
use super::{Action, Actions, Mirror, Notice};

/// Permission to answer what only this copy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alone {
    pub since: Time,
    /// docs/protocol.md §3.
    pub by: &'static str,
}

/// What is known and wanted beside the attempt.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    /// The arbiter's last refusal, for people.
    pub refused: Option<String>,
    /// When that was.
    pub refused_at: Option<Time>,
    /// The arbiter was not reached, or had no register of this mirror's nodes.
    pub unreachable: Option<ArbiterFault>,
    /// A swap ended without an answer since the register was last known.
    pub unknown: bool,
    /// The register is to name both again.
    pub rejoin: bool,
    /// The register does not know yet what an operator forced.
    pub forced: bool,
    /// After a hanging peer: ask before the next hello (docs/protocol.md §5).
    pub ask_before_hello: bool,
    /// The longest time-out that a hello told the peer.
    pub told_timeout_ms: u64,
    /// Whose copy stays.
    pub word: Option<super::word::Word>,
    /// Both are recording the instance of a register, or that there is none.
    pub naming: bool,
    /// The instance that was drawn for the arbiter of now, and is being named to the peer.
    pub drawn: Option<u64>,
    /// The instance that both recorded in this session; its register may be created.
    pub fresh: Option<u64>,
}

/// The permission of a fence script.
pub(super) const FENCE: &str = "fence";

/// A margin on the wait for the peer's lease, milliseconds (docs/protocol.md §8).
const MARGIN_MS: u64 = 50;

impl Mirror {
    /// When the peer's lease has surely ended: T·(1 + 2·drift) and a margin after this node's
    /// last echo and its start.
    pub(super) fn peer_lease_ends(&self) -> Time {
        // The peer's lease runs by what this node told it, also if an operator lowered it since.
        let timeout = self.settings.timeout_ms.max(self.solo.told_timeout_ms);
        let wait = timeout + timeout / 50 + MARGIN_MS;
        if planted(Defect::NoWaitForTheLease) {
            return self.now;
        }
        self.echoed_peer
            .unwrap_or(self.started)
            .max(self.started)
            .after_ms(wait)
    }

    /// Starts what may give a Primary, or one that is to be, permission to go on alone.
    pub(super) fn seek_permission(&mut self, _out: &mut Actions) {
        if planted(Defect::MintAtLinkLoss) && self.wants_permission() && self.is_primary() {
            let tag = self.draw_tag();
            self.mint_as(tag, After::Nothing);
        }
        if self.wants_permission() && self.solo_rule() == Solo::Arbiter {
            // A Primary asks at once, a Secondary after its wait (§4).
            let at = if self.is_primary() {
                self.now
            } else {
                self.peer_lease_ends()
            };
            if self.attempt.is_none() {
                self.timers.set_by(Timer::AskAgain, at.max(self.now));
            }
        }
    }

    pub(super) fn wants_permission(&self) -> bool {
        self.alone.is_none()
            && self.up().is_none()
            && !self.is_frozen()
            && (self.is_good() || planted(Defect::InconsistentMayAsk))
            && (self.is_primary() || self.is_promoting_alone())
            && !self
                .durable
                .awaits(|after| matches!(after, After::Minted { .. } | After::Forced { .. }))
    }

    /// Mode `always` mints with the first write alone, not at the loss of the link.
    pub(super) fn advance_solo(&mut self, out: &mut Actions) {
        if self.solo_rule() == Solo::Always
            && self.wants_permission()
            && self.is_primary()
            && self.has_waiting_writes()
        {
            let by = if self.has_peer() { "always" } else { "no peer" };
            self.mint(by, out);
        }
        if self.timers.take_due(Timer::AskAgain, self.now) {
            self.on_ask_again(out);
        }
    }

    fn has_waiting_writes(&self) -> bool {
        self.jobs.iter().any(|(_, job)| job.is_write)
            || !self.flush.requests.is_empty()
            || self
                .held
                .iter()
                .any(|held| !matches!(held.request, super::Request::Read { .. }))
    }

    /// A generation of this copy's own, durably; then it is alone.
    pub(super) fn mint(&mut self, by: &'static str, out: &mut Actions) {
        if self.is_frozen() {
            self.close_session("this copy goes on alone", out);
        }
        let tag = self.draw_tag();
        self.mint_as(tag, After::Minted { by });
    }

    pub(super) fn mint_as(&mut self, tag: u64, after: After) {
        let primary = self.is_primary() || self.is_promoting_alone();
        let carries = matches!(after, After::MintedToCarry { .. });
        let boot = self.boot;
        self.change_record(after, |r| {
            if !r.alone {
                r.mint(tag);
            }
            r.zeroed = false;
            r.may_lose_writes_of(boot);
            // Whoever carries the peer's Primary remembers only what it will have been itself.
            r.was_primary = primary || r.was_primary && !carries;
        });
        if planted(Defect::AnswerBeforeTheMint) && self.link.is_none() {
            self.alone = Some(Alone {
                since: self.now,
                by: "planted",
            });
        }
    }

    /// The target is durably Inconsistent: it can't ask, so no arbiter is needed (§3 consent). For a copy that is not alone
    /// yet, in a session: such a one begins with no change of the record under way.
    pub(super) fn go_on_by_consent(&mut self, _out: &mut Actions) {
        let tag = self.draw_tag();
        self.mint_as(tag, After::Minted { by: "consent" });
    }

    pub(super) fn on_minted(&mut self, by: &'static str, out: &mut Actions) {
        let consented = by == "consent" && (self.is_copying() || self.link.is_none());
        let by_itself = by != "consent"
            && self
                .link
                .as_ref()
                .is_none_or(|_| self.is_meeting() && !self.is_frozen());
        if !self.is_good() || !(consented || by_itself) {
            // The session changed meanwhile: `alone` is set in the record, which the next
            // handshake respects; permission is sought anew.
            return self.seek_permission(out);
        }
        self.become_alone(by, out);
        if by == FENCE {
            self.overrule_register();
        }
    }

    pub(super) fn become_alone(&mut self, by: &'static str, out: &mut Actions) {
        assert!(
            self.record().alone,
            "One-writer: alone in a generation that the peer may have"
        );
        assert!(
            self.is_good(),
            "No-stale-promotion: {:?}",
            self.record().disk
        );
        self.alone = Some(Alone {
            since: self.now,
            by,
        });
        self.local.up_to_date = true;
        self.solo.refused = None;
        self.solo.refused_at = None;
        self.solo.unreachable = None;
        if let Some(generation) = self.record().current {
            out.push(Action::Report(Notice::Minted {
                generation,
                permission: by,
            }));
        }
        self.promoted_alone(out);
        self.answer_waiting_writes(out);
        self.watch_register();
    }

    pub(super) fn watch_register(&mut self) {
        if self.solo_rule() == Solo::Arbiter && (self.alone.is_some() || self.solo.forced) {
            self.timers.set(
                Timer::AskAgain,
                self.now.after_ms(self.settings.arbiter_timeout_ms.max(500)),
            );
        }
    }

    /// `alone` is durable, and no change on its way takes it back.
    pub(super) fn is_still_alone(&self) -> bool {
        self.record().alone && self.durable.next_record().alone
    }

    /// What this node's being Primary rests on.
    pub(super) fn standing(&self) -> Standing {
        if !self.is_primary() {
            return Standing::Secondary;
        }
        if self.alone.is_some() {
            return Standing::Alone;
        }
        if let Some(until) = self.lease_ends() {
            return Standing::Session { until };
        }
        match self.solo_rule() {
            Solo::Always => Standing::Free,
            Solo::Arbiter if self.was_refused() => Standing::Refused,
            _ => Standing::Sought,
        }
    }

    /// What the other mirrors of its group judge this one by. It costs next to nothing: the shell asks after each event.
    pub fn footing(&self) -> Footing {
        let could_go_on = self.is_primary() && self.is_good();
        Footing {
            alone: self.alone.is_some() || self.standing() == Standing::Free,
            heard: self.heard().filter(|_| could_go_on),
            since: self.door.since,
            refused: self.was_refused(),
            peer_is_primary: self.up().is_some_and(|up| up.peer.role == Role::Primary),
            disk: self.disk_state(),
            arbiter: self.record().arbiter,
            asking: self.attempt_to_go_alone(),
        }
    }

    /// Since the connection is what it is; of an earlier time without the peer it says nothing now.
    fn was_refused(&self) -> bool {
        self.solo.refused_at.is_some_and(|at| at >= self.door.since)
    }

    /// What is wrong with the arbiter, while this node asks it. Of a node that has stopped asking an earlier answer says
    /// nothing.
    pub(super) fn arbiter_fault(&self) -> Option<ArbiterFault> {
        let asks = self.solo.rejoin
            || self.alone.is_some()
            || self.wants_permission()
            || self.must_carry();
        let fault = self.solo.unreachable.as_ref();
        fault
            .filter(|_| asks && self.solo_rule() == Solo::Arbiter)
            .cloned()
    }

    /// What held requests wait for.
    pub(super) fn why_held(&self) -> String {
        if self.link.is_some() {
            return "meeting the peer".into();
        }
        if self.is_guest() {
            return "the node that answers for this one until its copy is in sync is not connected"
                .into();
        }
        match self.solo_rule() {
            Solo::Never => {
                "the peer is not connected, and solo = \"never\" lets no copy go on alone".into()
            }
            Solo::Always => "a generation is being minted".into(),
            Solo::Arbiter => match (&self.solo.refused, &self.solo.unreachable) {
                (Some(why), _) => why.clone(),
                (None, Some(fault)) => format!("the arbiter is not reachable: {}", fault.why),
                (None, None) => "asking the arbiter".into(),
            },
        }
    }

    /// An operator forces this copy: minted whatever it is, and recorded as such.
    pub(super) fn force(
        &mut self,
        command: Option<super::state::CommandId>,
        promote: bool,
        out: &mut Actions,
    ) {
        if self.link.is_some() {
            self.close_session("this copy is forced", out);
        }
        self.end_attempt();
        if promote {
            // What is written from now on was not there when it was chosen between the copies.
            self.forget_word();
        }
        let tag = self.draw_tag();
        let after = After::Forced {
            command,
            promote,
            held: self.is_primary(),
        };
        let boot = self.boot;
        self.change_record(after, |r| {
            let bad = r.is_bad();
            r.mint(tag);
            // Of a copy that was forced before, and met nobody since, it stays true.
            r.forced_bad |= bad;
            r.disk = kagami_bitmap::superblock::StoredDisk::Consistent;
            r.was_primary |= promote;
            r.zeroed = false;
            r.may_lose_writes_of(boot);
        });
    }

    pub(super) fn on_forced_minted(&mut self, out: &mut Actions) {
        self.become_alone("force", out);
        self.overrule_register();
    }

    /// The register is told that this copy goes on alone, whatever it says.
    fn overrule_register(&mut self) {
        self.solo.forced = self.solo_rule() == Solo::Arbiter;
        self.timers.set(Timer::AskAgain, self.now);
    }

    /// docs/protocol.md §9.
    pub(super) fn on_both_stale(&mut self, theirs: &Hello) {
        let keep = match self.settings.both_stale {
            BothStalePolicy::Wait => None,
            BothStalePolicy::PreferLocal => Some(self.me),
            BothStalePolicy::PreferLastPrimary => {
                match (self.record().was_primary, theirs.was_primary) {
                    (true, false) => Some(self.me),
                    (false, true) => Some(theirs.node),
                    _ => None,
                }
            }
        };
        self.take_policy(keep);
    }

    /// The peer left cleanly: its copy is Outdated, durably (§3 consent).
    ///
    /// Errors: from a peer that is Primary.
    pub(super) fn on_peer_leave(&mut self, out: &mut Actions) -> Result<(), String> {
        let Some(up) = self.up() else { return Ok(()) };
        if up.peer.role == Role::Primary {
            return Err("it leaves as Primary".into());
        }
        let in_sync = matches!(up.phase, Phase::InSync);
        let consent = in_sync && self.is_primary();
        self.close_session("the peer has left cleanly", out);
        if consent && self.is_good() {
            self.end_attempt();
            self.go_on_by_consent(out);
        }
        Ok(())
    }
}
