//! Which register counts. Nothing but the configuration of each node says where its arbiter is, so two nodes may ask
//! different ones, and an empty register would grant to whoever asks first.
//!
//! A register has an instance, drawn when it was created. Alone, by a record, a node has the right only in the
//! instance that both have agreed on: it was in the question for a promise, and the disk of the node that promised has it
//! (*Agreed-register*). Another one is created, or taken, only with the other node's consent.

use crate::core::Time;
use crate::planted::{Defect, planted};

use super::{Action, Actions, Lease, Word};

/// What who asks is told where the registers differ.
const APART: &str =
    "the two nodes ask different registers: compare [arbiter.NAME] of both kagami.toml";

impl Lease {
    /// The register that this node finds at the arbiter.
    fn found_instance(&self) -> Option<u64> {
        let found = self.known.as_ref()?.found.as_ref();
        found.map(|(id, _)| id.instance)
    }

    /// What this node's questions say.
    pub(super) fn told_instance(&self) -> Option<u64> {
        self.found_instance().or(self.agreed)
    }

    /// This node finds another register than was agreed on: that one counts no more here, durably, before the other node
    /// is asked to agree on this. False: the disk does not say so yet.
    pub(super) fn has_given_up(&mut self) -> bool {
        let Some(found) = self.found_instance() else {
            return true;
        };
        if self.agreed.is_some_and(|agreed| agreed != found) {
            self.agreed = None;
        }
        self.recorded.is_none_or(|recorded| recorded == found)
    }

    /// What the arbiter has shown is the register that both have agreed on.
    pub(super) fn is_agreed(&self, instance: u64) -> bool {
        self.agreed == Some(instance) || planted(Defect::AnyRegister)
    }

    /// The other node, which has nothing to fear of this one, goes by this register. `Some`: what it is answered, since
    /// this one finds another.
    pub(super) fn agree_with(
        &mut self,
        now: Time,
        asked: Option<u64>,
        echo: Option<u64>,
    ) -> Option<Word> {
        let theirs = asked?;
        let found = self.found_instance();
        if found == Some(theirs) {
            self.differs = None;
            self.said_apart = false;
        } else {
            // It may have been made anew since this node has looked.
            self.differs = Some((theirs, now));
            self.looked = None;
        }
        // What this node does not find it can't use: it may agree.
        if found.is_some_and(|found| found != theirs) && !planted(Defect::AnyRegister) {
            return Some(Word::Silent(APART.to_owned()));
        }
        if self.agreed != Some(theirs) {
            let fresh = self.token.is_some() && self.token == echo;
            self.agreed = fresh.then_some(theirs);
            self.token = None;
        }
        None
    }

    /// What who promises says of the register that was asked for.
    pub(super) fn promised_word(&mut self, asked: Option<u64>) -> Word {
        let instance = self.agreed;
        let token = (asked.is_some() && instance != asked).then(|| self.next_number());
        self.token = token.or(self.token);
        Word::Promised { instance, token }
    }

    /// The arbiter has answered a question that was sent then.
    pub(super) fn on_looked(&mut self, sent: Time, out: &mut Actions) {
        let Some((theirs, _)) = self.differs.take_if(|(_, since)| *since <= sent) else {
            return;
        };
        let differs = self.found_instance() != Some(theirs);
        if differs && !std::mem::replace(&mut self.said_apart, true) {
            out.push(Action::SayApart);
        }
    }

    /// The other node has promised, and goes by this register from now on.
    pub(super) fn on_agreed(&mut self, instance: Option<u64>) {
        let Some(instance) = instance else {
            return;
        };
        self.agreed = Some(instance);
        if let Some((of, ends)) = self.not_agreed.take()
            && of == instance
        {
            self.by_register = self.by_register.max(ends);
        }
    }

    /// This node's record is in the register, and lasts until then.
    pub(super) fn on_recorded(&mut self, now: Time, instance: u64, ends: Time) {
        if self.is_agreed(instance) {
            self.by_register = self.by_register.max(ends);
        } else {
            self.not_agreed = Some((instance, ends));
            // Without the other node it counts for nothing until then.
            self.next_question = now;
        }
    }
}
