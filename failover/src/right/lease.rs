//! The lease of a group without a mirror, as one node sees it: events in, actions out, no I/O.
//!
//! A lease has two sources, each of them good for [`Terms::length`] from the moment when this node
//! *sent its question*: this node's own record in the register at the arbiter, written by
//! compare-and-swap, and the other node's promise, given in answer to this node's question, that it
//! has nothing of the group and will not challenge. The later end counts. While promises come, the
//! register is renewed only now and then, so losing the arbiter alone changes nothing; when they
//! stop, it is renewed every quarter of the length, so losing the other node alone changes nothing.
//!
//! The nodes may count by different revisions of the configuration, so each tells how long its leases are, in its
//! questions and in its record, and the other one waits for as long.
//!
//! What keeps two nodes apart (docs/failover-design.md has the argument):
//!
//! - *Promise-voids*: a promise is given only by a node that holds nothing and asks for nothing, and
//!   whatever it had asked before counts for nothing from then on.
//! - *Waits-out*: a node that has promised writes its own record only after [`Terms::wait_for`] the
//!   lease that it was asked for.
//! - *Seen-still*: it writes over the other node's record only if that has not changed for as long
//!   as the record's own lease asks for.
//! - *Agreed-register*: it does either only in the register that both nodes have agreed on ([`agreed`]).
//! - *Marked-first*: that this node holds the right is on its disk before anything is told of it, and
//!   that it may have promised is there before the first promise; so is how long the longest of these leases
//!   is, and which register both nodes have agreed on. So a manager that starts again, maybe with shorter
//!   leases, knows whether it must wait, and how long.
//!
//! Left to others: the wire, the files and the guard ([`super::tenancy`]).

use std::collections::BTreeMap;

use crate::core::{Node, Right, Time};
use crate::planted::{Defect, planted};

use super::register::{Id, Record};

use lengths::too_long;

mod agreed;
mod guarded;
mod lengths;
mod seek;
mod words;

pub(crate) use words::LONGEST;
pub use words::{Action, Actions, Before, Event, Kept, Left, Mark, Question, Said, Terms, Word};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing is held and nothing is asked for.
    Idle,
    /// The core wants the right, since then.
    Asking(Time),
    Held,
    /// The lease has ended; the group is frozen.
    Ended,
    /// The right is lost, and something may be active still.
    Stopping,
    /// The record is taken out of the register, until then at most; the core is told if it waits.
    Releasing(Time, bool),
}

/// Whether the guard watches the group for this lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    Away,
    /// It was asked to, with this attempt.
    Asked(u64),
    There,
}

#[derive(Clone, Debug)]
struct Known {
    found: Option<(Id, Record)>,
    /// It was the same since then, by this node's clock.
    since: Time,
}

#[derive(Clone, Debug)]
struct Asked {
    attempt: u64,
    sent: Time,
    /// What is to be written; `None`: it is read.
    new: Option<(Id, Record)>,
}

/// One group's lease, on one node.
#[derive(Clone, Debug)]
pub struct Lease {
    terms: Terms,
    nodes: [String; 2],
    me: Node,
    phase: Phase,
    /// What is on the disk; `None`: of an earlier boot, or unreadable: it stands for neither.
    kept: Option<Kept>,
    writing: Option<Kept>,
    /// The mark is to become [`Mark::Free`].
    to_free: bool,
    guard: Guard,
    /// What the guard was told last.
    told: Time,
    /// Until when this node is bound by its promises, by the length of the lease that was asked for.
    promised: BTreeMap<u64, Time>,
    /// Something that an earlier manager started may be active until then.
    quiet_until: Time,
    /// The longest lease that an earlier manager counted.
    earlier: u64,
    /// An earlier manager's group may run here, under a guard that is not this one's to end.
    may_run: bool,
    by_promise: Time,
    by_register: Time,
    /// The register that both nodes have agreed on.
    agreed: Option<u64>,
    /// As the disk has it.
    recorded: Option<u64>,
    /// This node's record in another one, which counts when that is agreed on: its instance, and the lease's end.
    not_agreed: Option<(u64, Time)>,
    /// The other node asks this register, and not what this one had seen then.
    differs: Option<(u64, Time)>,
    /// What this node has asked the other one to repeat.
    token: Option<u64>,
    /// What the other one has asked this node to repeat.
    echo: Option<u64>,
    said_apart: bool,
    known: Option<Known>,
    asked: Option<Asked>,
    /// Nothing is asked of the arbiter before: it was silent.
    again: Time,
    /// When it said last what the register holds.
    looked: Option<Time>,
    /// When the change was asked for that wrote this node's record last.
    written: Option<Time>,
    questions: BTreeMap<u64, Time>,
    next_question: Time,
    /// When the other node asked last.
    heard: Option<Time>,
    /// The other node's newest question, if its answer waits for the disk.
    waiting: Option<(u64, Question)>,
    number: u64,
    answers: Option<bool>,
    why_arbiter: String,
    why_peer: String,
}

impl Lease {
    /// A lease of which nothing is held. `left`: what an earlier manager left. `seed`: drawn anew for each
    /// life of a manager, so that nothing of an earlier one is taken for its own.
    pub fn new(
        terms: Terms,
        nodes: [String; 2],
        me: Node,
        left: Left,
        seed: u64,
        now: Time,
    ) -> Self {
        let Left {
            before,
            length,
            instance,
        } = left;
        let held = matches!(before, Before::Held | Before::HeldBeforeBoot);
        let running = matches!(before, Before::Held | Before::Unknown);
        let earlier = if planted(Defect::LengthForgotten) {
            terms.length
        } else {
            length.max(terms.length)
        };
        let over = now.after(terms.wait_for(earlier));
        let mut promised = BTreeMap::new();
        if !held && !planted(Defect::PromiseForgotten) {
            promised.insert(earlier, over);
        }
        let kept = |mark| Kept {
            mark,
            length,
            instance,
        };
        Self {
            terms,
            nodes,
            me,
            phase: Phase::Idle,
            kept: match before {
                Before::Held => Some(kept(Mark::Held)),
                Before::Free => Some(kept(Mark::Free)),
                Before::HeldBeforeBoot | Before::Unknown => None,
            },
            writing: None,
            to_free: false,
            guard: Guard::Away,
            told: Time(0),
            promised,
            quiet_until: if running { over } else { now },
            earlier,
            may_run: running,
            by_promise: Time(0),
            by_register: Time(0),
            agreed: instance,
            recorded: instance,
            not_agreed: None,
            differs: None,
            token: None,
            echo: None,
            said_apart: false,
            known: None,
            asked: None,
            again: now,
            looked: None,
            written: None,
            questions: BTreeMap::new(),
            next_question: now,
            heard: None,
            waiting: None,
            number: seed,
            answers: None,
            why_arbiter: "it was not asked yet".to_owned(),
            why_peer: "it was not asked yet".to_owned(),
        }
    }

    /// When the lease ends, by this node's clock.
    pub fn ends(&self) -> Time {
        self.by_promise.max(self.by_register)
    }

    /// The right is held, and the lease has not ended.
    pub fn holds(&self, now: Time) -> bool {
        self.phase == Phase::Held && now < self.ends()
    }

    /// Whether the arbiter answered when it was asked last; `None`: it was not asked yet.
    pub fn arbiter_answers(&self) -> Option<bool> {
        self.answers
    }

    /// What the register was seen to hold last.
    pub fn record(&self) -> Option<&Record> {
        let found = self.known.as_ref()?.found.as_ref();
        found.map(|(_, record)| record)
    }

    /// When [`Event::Timer`] is due, if nothing happens before.
    pub fn deadline(&self, now: Time) -> Time {
        let mut next = now.after(self.terms.step() / 2);
        if self.phase == Phase::Held && now < self.ends() {
            next = next.min(self.ends());
        }
        if let (Phase::Asking(_), Some(at)) = (self.phase, self.may_swap_from())
            && at > now
        {
            next = next.min(at);
        }
        next
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Actions) {
        match event {
            Event::Ask => self.ask(now, out),
            Event::Release => self.give_up(now, true, out),
            Event::Stopped => self.give_up(now, false, out),
            Event::Lost => {
                if self.wants() {
                    self.lose(out);
                } else if !self.may_run && self.phase != Phase::Stopping {
                    // Nothing of the group runs here: a guard that stops it resets the node in the end.
                    out.push(Action::Disarm);
                }
            }
            Event::Guarded { attempt, stopping } => self.on_guarded(attempt, stopping, out),
            Event::Unguarded { attempt, why } => self.on_unguarded(now, attempt, why, out),
            Event::Marked => self.on_marked(now, out),
            Event::Arbiter { attempt, said } => self.on_arbiter(now, attempt, said, out),
            Event::Peer { nonce, word } => self.on_peer(now, nonce, word, out),
            Event::Question { token, question } => self.on_question(now, token, question, out),
            Event::Timer => {}
        }
        self.settle(now, out);
        self.seek(now, out);
    }

    fn name(&self, node: Node) -> &str {
        &self.nodes[node]
    }

    fn wants(&self) -> bool {
        matches!(self.phase, Phase::Asking(_) | Phase::Held | Phase::Ended)
    }

    fn is_mine(&self, record: &Record) -> bool {
        record.holder.as_deref() == Some(self.name(self.me))
    }

    fn ask(&mut self, now: Time, out: &mut Actions) {
        match self.phase {
            Phase::Held => out.push(Action::Tell(Right::Granted)),
            Phase::Ended => out.push(Action::Tell(Right::LeaseEnded)),
            Phase::Stopping => out.push(Action::Tell(Right::Lost)),
            Phase::Asking(_) => {}
            Phase::Idle | Phase::Releasing(..) => {
                self.phase = Phase::Asking(now);
                self.to_free = false;
                self.next_question = now;
                self.again = now;
            }
        }
    }

    /// The right is not to be had.
    fn refuse(&mut self, why: String, out: &mut Actions) {
        self.phase = Phase::Idle;
        let guard = std::mem::replace(&mut self.guard, Guard::Away);
        if guard != Guard::Away && !self.may_run {
            out.push(Action::Disarm);
        }
        out.push(Action::Tell(Right::Refused(why)));
    }

    fn lose(&mut self, out: &mut Actions) {
        self.phase = Phase::Stopping;
        self.void();
        out.push(Action::Tell(Right::Lost));
    }

    /// Nothing is held any more, and nothing that was asked brings anything.
    fn void(&mut self) {
        (self.by_promise, self.by_register) = (Time(0), Time(0));
        self.not_agreed = None;
        self.questions.clear();
        self.written = None;
        let gives_up = |asked: &Asked| {
            let new = asked.new.as_ref();
            new.is_some_and(|(_, record)| record.holder.is_none())
        };
        self.asked.take_if(|asked| !gives_up(asked));
    }

    fn give_up(&mut self, now: Time, tell: bool, out: &mut Actions) {
        self.void();
        self.guard = Guard::Away;
        out.push(Action::Disarm);
        self.quiet_until = now;
        self.may_run = false;
        self.to_free = true;
        self.again = now;
        self.phase = Phase::Releasing(now.after(self.terms.length / 2), tell);
    }

    fn on_marked(&mut self, now: Time, out: &mut Actions) {
        let Some(kept) = self.writing.take() else {
            return;
        };
        self.kept = Some(kept);
        self.recorded = kept.instance;
        if kept.mark == Mark::Free {
            self.to_free = false;
            if let Some((token, question)) = self.waiting.take() {
                self.on_question(now, token, question, out);
            }
        }
    }

    fn on_arbiter(&mut self, now: Time, attempt: u64, said: Said, out: &mut Actions) {
        let Some(asked) = self.asked.take_if(|asked| asked.attempt == attempt) else {
            return;
        };
        self.answers = Some(!matches!(said, Said::Silent(_)));
        match (said, asked.new) {
            (Said::Swapped, Some((id, record))) => {
                let mine = self.is_mine(&record);
                self.known = Some(Known {
                    found: Some((id, record)),
                    since: now,
                });
                if mine && self.wants() {
                    self.on_recorded(now, id.instance, self.lease_from(now, asked.sent));
                    self.written = Some(asked.sent);
                }
                self.looked = Some(now);
                self.on_looked(asked.sent, out);
            }
            (Said::Swapped, None) => {
                self.why_arbiter = "it answered another question".to_owned();
                self.again = now.after(self.terms.step());
            }
            (Said::Found(found), _) => {
                self.looked = Some(now);
                self.observe(now, found, out);
                self.on_looked(asked.sent, out);
            }
            (Said::Silent(why), _) => {
                self.why_arbiter = why;
                self.again = now.after(self.terms.step() / 2);
            }
        }
    }

    /// The end of a lease whose question was sent then.
    fn lease_from(&self, now: Time, sent: Time) -> Time {
        let from = if planted(Defect::LeaseFromAnswer) {
            now
        } else {
            sent
        };
        from.after(self.terms.length)
    }

    fn observe(&mut self, now: Time, found: Option<(Id, Record)>, out: &mut Actions) {
        let id = |found: &Option<(Id, Record)>| found.as_ref().map(|(id, _)| *id);
        let (before, first) = match &self.known {
            Some(known) => (id(&known.found), false),
            None => (None, true),
        };
        if !first && before == id(&found) {
            return;
        }
        let others = found.as_ref().and_then(|(_, r)| r.holder.clone());
        let others = others.filter(|holder| holder != self.name(self.me));
        self.known = Some(Known { found, since: now });
        if let (false, Phase::Asking(_), Some(holder)) = (first, self.phase, others)
            && self.ends() <= now
        {
            let why = format!("node {holder} holds it, and has just renewed it at the arbiter");
            self.refuse(why, out);
        }
    }

    fn on_peer(&mut self, now: Time, nonce: u64, word: Word, out: &mut Actions) {
        let Some(sent) = self.questions.remove(&nonce) else {
            return;
        };
        match word {
            Word::Promised { instance, token } if self.wants() => {
                self.echo = token;
                if token.is_some() {
                    self.next_question = now;
                }
                // What was asked before brings no longer lease, and may be about another register.
                self.questions.retain(|_, other| *other >= sent);
                self.on_agreed(instance);
                self.by_promise = self.by_promise.max(self.lease_from(now, sent));
            }
            Word::Holds if matches!(self.phase, Phase::Asking(_)) && self.ends() <= now => {
                let why = format!("node {} holds it", self.name(1 - self.me));
                self.refuse(why, out);
            }
            Word::Promised { .. } | Word::Holds => {}
            Word::Asks => "it asks for the right itself".clone_into(&mut self.why_peer),
            Word::Busy => "something may be active there still".clone_into(&mut self.why_peer),
            Word::Silent(why) => self.why_peer = why,
        }
    }

    fn on_question(&mut self, now: Time, token: u64, question: Question, out: &mut Actions) {
        self.heard = Some(now);
        let Question {
            held,
            length,
            instance,
            echo,
        } = question;
        let word = match self.phase {
            Phase::Held | Phase::Ended => Some(Word::Holds),
            Phase::Stopping => Some(Word::Busy),
            Phase::Asking(_) if now < self.ends() => Some(Word::Holds),
            Phase::Asking(_) if planted(Defect::PromiseWhileAsking) => None,
            // What may run here keeps it from yielding, too.
            Phase::Asking(_) | Phase::Idle | Phase::Releasing(..) if now < self.quiet_until => {
                Some(Word::Busy)
            }
            // Of two that ask the second one yields, and to who holds it both do.
            Phase::Asking(_) if held || self.me == 1 => {
                let what = if held { "holds it" } else { "asks for it, too" };
                let why = format!("node {} {what}", self.name(1 - self.me));
                self.refuse(why, out);
                None
            }
            Phase::Asking(_) => Some(Word::Asks),
            Phase::Idle | Phase::Releasing(..) => None,
        };
        let word = word.or_else(|| too_long(length));
        let word = word.or_else(|| self.agree_with(now, instance, echo));
        if let Some(word) = word {
            out.push(Action::Answer { token, word });
        } else if self.may_promise(length) {
            // Promise-voids.
            if !planted(Defect::PromiseWhileAsking) {
                self.void();
            }
            self.promise(now, length);
            let word = self.promised_word(instance);
            out.push(Action::Answer { token, word });
        } else {
            // Marked-first.
            self.to_free = true;
            self.waiting = Some((token, question));
        }
    }

    /// When this node may write its own record, as far as is known; `None`: something has to be
    /// seen first.
    fn may_swap_from(&self) -> Option<Time> {
        let known = self.known.as_ref()?;
        // Agreed-register.
        let of = known.found.as_ref().map(|(id, _)| id.instance);
        if !of.is_some_and(|of| self.is_agreed(of)) && !planted(Defect::AnyRegister) {
            return None;
        }
        // Waits-out.
        let promised = self.promised.values().max().copied();
        let promised = promised.filter(|_| !planted(Defect::PromiseIgnored));
        let still_for = match &known.found {
            Some((_, record)) if record.holder.is_none() || self.is_mine(record) => None,
            Some((_, record)) if !planted(Defect::RecordLengthIgnored) => {
                Some(record.length.max(self.terms.length))
            }
            Some(_) | None => Some(self.terms.length),
        };
        // Seen-still.
        let still_for = still_for.filter(|_| !planted(Defect::RenewalIgnored));
        let seen = still_for.map(|length| known.since.after(self.terms.wait_for(length)));
        Some(promised.max(seen).unwrap_or(Time(0)))
    }

    fn may_swap(&self, now: Time) -> bool {
        // The other node has nothing, and can't have anything before its promise is over.
        let promised = now < self.by_promise && self.known.is_some();
        promised || self.may_swap_from().is_some_and(|from| from <= now)
    }

    /// What follows from the time, and from what is known now.
    fn settle(&mut self, now: Time, out: &mut Actions) {
        let length = self.terms.length;
        self.questions.retain(|_, sent| now.since(*sent) < length);
        self.promised.retain(|_, until| now < *until);
        let ends = self.ends();
        match self.phase {
            Phase::Asking(_) if now < ends => {
                if self.is_kept(Mark::Held) {
                    match self.guard {
                        Guard::There => {
                            self.phase = Phase::Held;
                            out.push(Action::Tell(Right::Granted));
                        }
                        Guard::Away => {
                            let attempt = self.next_number();
                            self.guard = Guard::Asked(attempt);
                            self.told = ends;
                            out.push(Action::Arm { attempt, ends });
                        }
                        Guard::Asked(_) => {}
                    }
                } else if self.writing.is_none() {
                    self.write(now, Mark::Held, out);
                }
            }
            Phase::Asking(since) if now.since(since) >= self.patience() => {
                let why = self.why_not();
                self.refuse(why, out);
            }
            Phase::Held if ends <= now => {
                self.phase = Phase::Ended;
                out.push(Action::Tell(Right::LeaseEnded));
            }
            Phase::Ended if now < ends => {
                self.phase = Phase::Held;
                out.push(Action::Tell(Right::Renewed));
            }
            Phase::Releasing(until, tell) => {
                let mine = self.record().is_some_and(|record| self.is_mine(record));
                if !mine || until <= now {
                    self.phase = Phase::Idle;
                    if tell {
                        out.push(Action::Tell(Right::Released));
                    }
                }
            }
            _ => {}
        }
        let renewed = self.ends() > self.told && !planted(Defect::ExtendForgotten);
        if self.guard == Guard::There && renewed {
            self.told = self.ends();
            out.push(Action::Extend(self.told));
        }
        let free = matches!(self.phase, Phase::Idle | Phase::Releasing(..));
        let frees = free && self.to_free;
        if free && self.writing.is_none() {
            if frees && !self.is_kept_for(Mark::Free, self.length_to_keep(now)) {
                self.write(now, Mark::Free, out);
            } else {
                self.to_free = false;
            }
        }
        self.keep_up(now, out);
        if !frees
            && self.writing.is_none()
            && let Some((token, question)) = self.waiting.take()
        {
            self.on_question(now, token, question, out);
        }
    }

    fn why_not(&self) -> String {
        let other = self.name(1 - self.me);
        let why = match (self.answers, self.record().and_then(|r| r.holder.as_ref())) {
            (Some(true), _) if self.may_swap_from().is_none() => {
                "the register at the arbiter is new: it counts when both nodes have agreed on it"
                    .to_owned()
            }
            (Some(true), Some(holder)) => format!("the register names node {holder}"),
            (Some(true), None) => "the register names nobody, and could not be written".to_owned(),
            _ => format!("the arbiter does not answer: {}", self.why_arbiter),
        };
        format!("{why}; node {other} does not consent: {}", self.why_peer)
    }
}

#[cfg(test)]
mod tests;
