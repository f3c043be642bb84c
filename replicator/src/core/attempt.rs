//! Attempts at the arbiter's register (docs/protocol.md §4): ask, swap, and what the answer means.
//!
//! One is open at a time; only an answer to its own question counts, and a meeting with the peer
//! ends it. *An empty register grants nothing*: it is created under an instance that both copies
//! recorded in one session.

use kagami_bitmap::planted::{Defect, planted};

use super::durable::After;
use super::event::Refusal;
use super::message::Message;
use super::register::{ArbiterAnswer, Ask, Register};
use super::state::{Attempt as Nonce, Role, SessionId, Solo};
use super::status::ArbiterFault;
use super::timers::Timer;
use super::{Action, Actions, Mirror, Notice};

/// What an attempt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    GoAlone,
    /// For a Primary whose disk failed.
    Carry,
    /// Back to {A, B}.
    Rejoin,
    /// Is the arbiter there at all?
    Probe,
    /// Am I named still?
    Check,
    /// Write down what an operator forced.
    Force,
}

/// An open attempt at the arbiter.
#[derive(Debug)]
pub(super) struct Attempt {
    pub id: Nonce,
    purpose: Purpose,
    /// The generation that a grant is for.
    tag: u64,
    swapping: bool,
}

/// An arbiter that refused is asked again after this.
const ASK_AGAIN_MS: u64 = 5_000;
/// In sync, the register is looked at this often.
const LOOK_AGAIN_MS: u64 = 30_000;

impl Mirror {
    /// Ends the open attempt; an answer that comes later is not listened to.
    pub(super) fn end_attempt(&mut self) {
        self.timers.clear(Timer::Attempt);
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        // Its swap may land yet, and name one copy only: say both once more when in sync.
        self.solo.unknown |= attempt.swapping;
        // Whoever is alone looks at the register still.
        self.watch_register();
    }

    /// The open attempt, if it is to go on alone.
    pub(super) fn attempt_to_go_alone(&self) -> Option<Nonce> {
        let attempt = self.attempt.as_ref()?;
        (attempt.purpose == Purpose::GoAlone).then_some(attempt.id)
    }

    /// True if the open attempt is `id`, and is to carry a Primary without a disk.
    pub fn asks_to_carry(&self, id: Nonce) -> bool {
        let attempt = self.attempt.as_ref();
        attempt.is_some_and(|attempt| attempt.id == id && attempt.purpose == Purpose::Carry)
    }

    fn ask(&mut self, purpose: Purpose, out: &mut Actions) {
        let id = Nonce(self.draw_tag());
        let tag = match (self.is_still_alone(), self.record().current) {
            (true, Some(current)) => current.tag,
            _ => self.draw_tag(),
        };
        self.attempt = Some(Attempt {
            id,
            purpose,
            tag,
            swapping: false,
        });
        self.timers.set(
            Timer::Attempt,
            self.now.after_ms(self.settings.arbiter_timeout_ms),
        );
        out.push(Action::AskArbiter {
            attempt: id,
            ask: Ask::Read,
        });
    }

    pub(super) fn on_ask_again(&mut self, out: &mut Actions) {
        if self.solo_rule() != Solo::Arbiter {
            return;
        }
        if self.attempt.is_some() {
            self.timers
                .set_once(Timer::AskAgain, self.now.after_ms(100));
            return;
        }
        if self.wants_permission() {
            let at = self.peer_lease_ends();
            if self.is_primary() || at <= self.now {
                self.ask(Purpose::GoAlone, out);
            } else {
                self.timers.set(Timer::AskAgain, at);
            }
        } else if self.solo.forced && self.alone.is_some() {
            self.ask(Purpose::Force, out);
        } else if self.alone.is_some() && self.record().arbiter.is_some() {
            self.ask(Purpose::Check, out);
        } else if self.is_in_sync() {
            self.seek_to_rejoin(out);
        } else if self.must_carry() {
            self.ask(Purpose::Carry, out);
        }
    }

    /// Is the arbiter there? A source that is alone stays so until it is (§5 step 4).
    pub(super) fn probe_arbiter(&mut self, out: &mut Actions) {
        match &mut self.attempt {
            None => self.ask(Purpose::Probe, out),
            // The answer to that says as much. To try again later could meet the next one for ever:
            // both come by the clock.
            Some(attempt) if attempt.purpose == Purpose::Check => attempt.purpose = Purpose::Probe,
            Some(_) => self.on_probed(false),
        }
    }

    pub(super) fn ask_to_carry(&mut self, out: &mut Actions) {
        if planted(Defect::DisklessWithoutMint)
            && let Some(session) = self.session()
        {
            self.change_record(After::MintedToCarry { session }, |_| {});
        } else if self.solo_rule() != Solo::Arbiter {
            if let Some(session) = self.session() {
                let tag = self.draw_tag();
                self.mint_as(tag, After::MintedToCarry { session });
            }
        } else if self.attempt.is_none() {
            self.ask(Purpose::Carry, out);
        } else {
            self.timers
                .set_once(Timer::AskAgain, self.now.after_ms(100));
        }
    }

    /// The session is gone: what was to be told to the register in it is not.
    pub(super) fn forget_rejoin(&mut self) {
        self.solo.rejoin = false;
        self.solo.fresh = None;
        self.solo.drawn = None;
        self.solo.naming = false;
        if matches!(&self.attempt, Some(a) if matches!(a.purpose, Purpose::Rejoin | Purpose::Carry | Purpose::Probe))
        {
            self.end_attempt();
        }
    }

    /// In sync again: the register is to name both.
    pub(super) fn seek_to_rejoin(&mut self, out: &mut Actions) {
        let chosen = match (self.role, self.up().map(|up| up.peer.role)) {
            (Role::Primary, _) => true,
            (Role::Secondary, Some(Role::Secondary)) => self.me < self.peer,
            _ => false,
        };
        self.solo.rejoin = chosen && self.solo_rule() == Solo::Arbiter;
        // What a force was to tell the register is over: both copies are in it again.
        self.solo.forced = false;
        if !self.solo.rejoin {
            // The other node asks from now on.
            self.solo.unreachable = None;
        }
        if !self.solo.rejoin || self.attempt.is_some() || !self.is_in_sync() {
            return;
        }
        let peer_instance = self.up().and_then(|up| up.peer.arbiter);
        if self.record().arbiter == peer_instance {
            self.ask(Purpose::Rejoin, out);
        } else {
            self.name_register(None);
        }
    }

    /// §4 *create*: both record the instance before the register exists; `found`: one that exists.
    ///
    /// *One-writer*: one that exists may let a copy go, so both have to have forgotten the one that
    /// they recorded before either records it. Else, while nodes ask different arbiters (one is
    /// being replaced), each could be let go by its own. One that is drawn here lets nobody go yet.
    fn name_register(&mut self, found: Option<u64>) {
        let Some(session) = self.session() else {
            return;
        };
        if self.solo.naming
            || self
                .durable
                .awaits(|after| matches!(after, After::ArbiterNamed { .. }))
        {
            return;
        }
        self.solo.drawn = None;
        let instance = match found {
            Some(_) if self.record().arbiter.is_some() => None,
            Some(found) => Some(found),
            None => {
                self.solo.drawn = Some(self.draw_tag() | 1);
                self.solo.drawn
            }
        };
        self.solo.naming = true;
        self.change_record(After::ArbiterNamed { session }, |r| r.arbiter = instance);
    }

    pub(super) fn on_arbiter_named(&mut self, session: SessionId, out: &mut Actions) {
        if !self.is_session(session) {
            return;
        }
        let instance = self.record().arbiter;
        if self.solo.naming {
            self.send(Message::ArbiterInstance { instance }, out);
        } else {
            self.send(Message::ArbiterRecorded { instance }, out);
            if self.solo.rejoin {
                // This node was promoted while the other one named the register.
                self.timers.set(Timer::AskAgain, self.now);
            }
        }
    }

    pub(super) fn on_arbiter_instance(&mut self, instance: Option<u64>) -> Result<(), String> {
        // It may have been sent before a disk failed: then there is nothing to record.
        let Some(session) = self.session().filter(|_| self.is_in_sync()) else {
            return Ok(());
        };
        if let Some(up) = self.up_mut() {
            up.peer.arbiter = instance;
        }
        // What this node was naming itself gives way.
        self.solo.naming = false;
        self.change_record(After::ArbiterNamed { session }, |r| r.arbiter = instance);
        Ok(())
    }

    pub(super) fn on_arbiter_recorded(&mut self, instance: Option<u64>) -> Result<(), String> {
        if let Some(up) = self.up_mut() {
            up.peer.arbiter = instance;
        }
        self.solo.naming = false;
        // Only what was drawn for the arbiter that is asked now may be created there: an instance
        // that was found may be another arbiter's, of before a reload.
        if instance == self.record().arbiter && instance == self.solo.drawn {
            self.solo.fresh = instance;
        }
        if self.solo.rejoin {
            self.timers.set(Timer::AskAgain, self.now);
        }
        Ok(())
    }

    pub(super) fn on_arbiter(&mut self, id: Nonce, answer: ArbiterAnswer, out: &mut Actions) {
        let late = planted(Defect::LateAnswerAccepted);
        let Some(attempt) = self.attempt.take_if(|attempt| attempt.id == id || late) else {
            return;
        };
        self.timers.clear(Timer::Attempt);
        if matches!(answer, ArbiterAnswer::Swapped | ArbiterAnswer::Register(_)) {
            self.on_arbiter_heard();
        }
        match answer {
            ArbiterAnswer::Unreachable(why) => {
                self.on_no_answer(attempt.purpose, why, false, out);
            }
            ArbiterAnswer::NotOurs(why) => self.on_not_ours(attempt.purpose, why, out),
            ArbiterAnswer::Swapped => self.on_granted(&attempt, out),
            ArbiterAnswer::Register(Some(register))
                if register.nonce == attempt.id && attempt.swapping =>
            {
                // One's own nonce: the swap took place, its answer was lost.
                self.on_granted(&attempt, out);
            }
            ArbiterAnswer::Register(register) => self.on_register(attempt, register, out),
        }
    }

    /// No answer came in time: a request may still be on its way, so the next attempt reads and
    /// swaps again; only a new seq kills the old one.
    pub(super) fn on_attempt_timer(&mut self, out: &mut Actions) {
        if let Some(attempt) = self.attempt.take() {
            self.solo.unknown |= attempt.swapping;
            self.on_no_answer(attempt.purpose, "no answer in time".into(), false, out);
        }
    }

    /// `refused`: there was an answer, and nothing comes of it.
    fn on_no_answer(&mut self, purpose: Purpose, why: String, refused: bool, out: &mut Actions) {
        let before = self.solo.unreachable.take();
        if before.as_ref().is_none_or(|fault| fault.why != why) {
            out.push(Action::Report(Notice::ArbiterUnreachable {
                why: why.clone(),
            }));
        }
        self.solo.unreachable = Some(ArbiterFault {
            since: before.map_or(self.now, |fault| fault.since),
            why,
            refused,
        });
        let again = self.now.after_ms(self.settings.arbiter_timeout_ms / 4);
        match purpose {
            // *Still alone* (§3): never offered since, so the peer has no such generation.
            Purpose::GoAlone
                if self.is_still_alone()
                    && self.solo.refused.is_none()
                    && self.wants_permission() =>
            {
                let tag = self.draw_tag();
                self.mint_as(tag, After::Minted { by: "still alone" });
            }
            Purpose::Probe => self.on_probed(false),
            _ => {}
        }
        self.timers.set_once(Timer::AskAgain, again);
    }

    /// The register has other owners: for permission that is a refusal, and no silence.
    fn on_not_ours(&mut self, purpose: Purpose, why: String, out: &mut Actions) {
        match purpose {
            Purpose::GoAlone | Purpose::Carry => self.on_not_granted(purpose, None, why, out),
            Purpose::Check if !self.is_source() => self.on_not_named(None, out),
            Purpose::Check | Purpose::Rejoin | Purpose::Probe | Purpose::Force => {
                self.on_no_answer(purpose, why, true, out);
            }
        }
    }

    fn on_register(&mut self, attempt: Attempt, register: Option<Register>, out: &mut Actions) {
        self.solo.unreachable = None;
        match attempt.purpose {
            Purpose::GoAlone | Purpose::Carry => match self.why_not_granted(register.as_ref()) {
                None => self.swap(attempt, register, out),
                Some(why) => self.on_not_granted(attempt.purpose, register.as_ref(), why, out),
            },
            Purpose::Rejoin => self.rejoin(attempt, register, out),
            // It is told already: an answer was lost.
            Purpose::Force if self.is_word_told(register.as_ref()) => self.on_word_told(out),
            Purpose::Force => self.swap(attempt, register, out),
            Purpose::Probe => {
                self.watch_register();
                self.on_probed(true);
            }
            Purpose::Check => {
                // In a session the target's consent is the permission: it can't go on itself.
                let named = self.is_source()
                    || register
                        .as_ref()
                        .is_none_or(|r| r.copies.contains(&self.me));
                if named || planted(Defect::NotNamedGoesOn) {
                    self.watch_register();
                } else {
                    self.on_not_named(register.as_ref(), out);
                }
            }
        }
    }

    /// §4 *go alone*: this copy is named, and the register's generation or its parent is in its line.
    fn why_not_granted(&self, register: Option<&Register>) -> Option<String> {
        let Some(register) = register else {
            if planted(Defect::EmptyRegisterGrants) {
                return None;
            }
            return Some("the arbiter's register is empty, and grants nothing".into());
        };
        if self.record().arbiter != Some(register.instance) {
            return Some("the arbiter's register is not the one that this mirror recorded".into());
        }
        if !register.copies.contains(&self.me) && !planted(Defect::GrantIgnoresCopies) {
            return Some("the arbiter's register names the other copy".into());
        }
        let record = self.record();
        if !record.in_line(register.generation)
            && (register.parent == 0 || !record.in_line(register.parent))
        {
            return Some("the arbiter's register knows a newer generation than this copy".into());
        }
        None
    }

    fn swap(&mut self, mut attempt: Attempt, register: Option<Register>, out: &mut Actions) {
        // A new question: an answer to the one before is not for this.
        let id = Nonce(self.draw_tag());
        let current = self.record().current.map_or(0, |g| g.tag);
        let forced = attempt.purpose == Purpose::Force;
        let instance = match (&register, self.record().arbiter) {
            (Some(register), _) => register.instance,
            (None, Some(instance)) => instance,
            // Only what was forced is told without a register, and it can't be told where none was ever recorded.
            (None, None) => {
                self.solo.forced = false;
                return;
            }
        };
        let (copies, generation, parent) = match attempt.purpose {
            Purpose::Rejoin => (
                vec![self.me.min(self.peer), self.me.max(self.peer)],
                current,
                current,
            ),
            // What was forced is minted already.
            Purpose::Force => (
                vec![self.me],
                current,
                self.record().history.first().map_or(0, |g| g.tag),
            ),
            _ => (vec![self.me], attempt.tag, current),
        };
        // No arbiter that counts from 1 gets there.
        let Some(seq) = register.as_ref().map_or(0, |r| r.seq).checked_add(1) else {
            let why = "the arbiter's register was changed too often to be changed again";
            return self.on_no_answer(attempt.purpose, why.into(), true, out);
        };
        let new = Register {
            instance,
            seq,
            copies,
            generation,
            parent,
            nonce: id,
            forced,
        };
        let expect = register.map(|r| (r.instance, r.seq));
        attempt.id = id;
        attempt.swapping = true;
        self.attempt = Some(attempt);
        self.timers.set(
            Timer::Attempt,
            self.now.after_ms(self.settings.arbiter_timeout_ms),
        );
        out.push(Action::AskArbiter {
            attempt: id,
            ask: Ask::Swap {
                expect,
                register: new,
            },
        });
    }

    fn rejoin(&mut self, attempt: Attempt, register: Option<Register>, out: &mut Actions) {
        let instance = self.record().arbiter;
        let current = self.record().current.map(|g| g.tag);
        match &register {
            _ if !self.is_in_sync() => {}
            // Another register than the one both recorded: the creation of an earlier one arrived
            // late, or an operator replaced the arbiter. In sync both may record it (rule 4).
            Some(r) if Some(r.instance) != instance => self.name_register(Some(r.instance)),
            Some(r)
                if r.copies.len() == 2 && Some(r.generation) == current && !self.solo.unknown =>
            {
                self.on_rejoined();
            }
            // Empty: never created, or wiped. A late swap of its past must find nothing to match,
            // so an instance is drawn and recorded by both in this session.
            None if self.solo.fresh.is_none() || self.solo.fresh != instance => {
                self.name_register(None)
            }
            _ => self.swap(attempt, register, out),
        }
    }

    /// The register names both. A swap that was asked for in an earlier life may land yet and name
    /// one copy: look again now and then, before it is needed. (Status then knows, too, whether
    /// the arbiter is there.)
    fn on_rejoined(&mut self) {
        self.solo.rejoin = false;
        self.solo.fresh = None;
        self.timers
            .set(Timer::AskAgain, self.now.after_ms(LOOK_AGAIN_MS));
    }

    /// True if the register says what an operator's force was to tell it.
    fn is_word_told(&self, register: Option<&Register>) -> bool {
        let current = self.record().current.map(|g| g.tag);
        register.is_some_and(|r| {
            Some(r.instance) == self.record().arbiter
                && r.copies == [self.me]
                && Some(r.generation) == current
        })
    }

    fn on_word_told(&mut self, out: &mut Actions) {
        self.solo.forced = false;
        self.watch_register();
        // A promotion may have come while this was asked, and have had to wait.
        self.seek_permission(out);
    }

    fn on_granted(&mut self, attempt: &Attempt, out: &mut Actions) {
        self.solo.refused = None;
        self.solo.refused_at = None;
        match attempt.purpose {
            Purpose::GoAlone if planted(Defect::NamedAlreadyNoMint) && self.wants_permission() => {
                self.change_record(After::Minted { by: "planted" }, |r| r.alone = true);
            }
            Purpose::GoAlone if self.wants_permission() => {
                // By the register now: whoever is forced after this has the last word.
                self.solo.forced = false;
                self.mint_as(attempt.tag, After::Minted { by: "arbiter" })
            }
            Purpose::Carry if self.must_carry() => {
                if let Some(session) = self.session() {
                    self.mint_as(attempt.tag, After::MintedToCarry { session });
                }
            }
            Purpose::Rejoin => {
                self.solo.unknown = false;
                self.on_rejoined();
            }
            Purpose::Force => self.on_word_told(out),
            _ => {}
        }
    }

    fn on_not_granted(
        &mut self,
        purpose: Purpose,
        register: Option<&Register>,
        why: String,
        out: &mut Actions,
    ) {
        let named = register.map(|r| r.copies.clone()).unwrap_or_default();
        if self.solo.refused.as_ref() != Some(&why) {
            out.push(Action::Report(Notice::ArbiterRefused { named }));
        }
        self.solo.refused = Some(why.clone());
        self.solo.refused_at = Some(self.now);
        if purpose == Purpose::GoAlone {
            self.refuse_promotion(
                Refusal {
                    what: format!("not promoted: {why}"),
                    facts: register.iter().map(|r| r.names()).collect(),
                    next: "connect the peer and let it resync, or `kagami promote --force` (loses the peer's writes)".into(),
                },
                out,
            );
        }
        self.timers
            .set_once(Timer::AskAgain, self.now.after_ms(ASK_AGAIN_MS));
    }

    /// Alone, and not named any more: somebody forced the other copy. Stop before it is worse.
    fn on_not_named(&mut self, register: Option<&Register>, out: &mut Actions) {
        let named = register.map(|r| r.copies.clone()).unwrap_or_default();
        out.push(Action::Report(Notice::ArbiterRefused { named }));
        self.solo.refused = Some("the arbiter's register names the other copy".into());
        self.solo.refused_at = Some(self.now);
        self.alone = None;
        self.local.up_to_date = false;
        self.timers
            .set_once(Timer::AskAgain, self.now.after_ms(ASK_AGAIN_MS));
    }
}
