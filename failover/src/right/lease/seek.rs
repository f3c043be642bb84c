//! What a lease asks for, of whom, and when.

use crate::core::Time;
use crate::planted::{Defect, planted};
use crate::right::register::{Id, Record};

use super::{Action, Actions, Asked, Lease, Mark, Phase, Question};

impl Lease {
    pub(super) fn next_number(&mut self) -> u64 {
        self.number = self.number.wrapping_add(1);
        self.number
    }

    /// Asks the other node and the arbiter what there is to be asked now.
    pub(super) fn seek(&mut self, now: Time, out: &mut Actions) {
        let step = self.terms.step();
        if self.wants() && self.next_question <= now && self.has_given_up() {
            self.next_question = now.after(step);
            let nonce = self.next_number();
            self.questions.insert(nonce, now);
            let question = Question {
                held: now < self.ends(),
                length: self.told_length(now),
                instance: self.told_instance(),
                echo: self.echo,
            };
            out.push(Action::Question { nonce, question });
        }
        // An answer that never came.
        let length = self.terms.length;
        self.asked.take_if(|asked| now.since(asked.sent) >= length);
        if self.asked.is_some() || now < self.again {
            return;
        }
        if self.wants() && !self.is_written(now) && self.may_swap(now) {
            self.swap(now, Some(self.name(self.me).to_owned()), out);
        } else if self.is_left_over(now) {
            self.swap(now, None, out);
        } else if self.is_to_look(now) {
            let attempt = self.next_number();
            let (sent, new) = (now, None);
            self.asked = Some(Asked { attempt, sent, new });
            out.push(Action::Read { attempt });
        }
    }

    /// The register names this node, which has nothing any more.
    fn is_left_over(&self, now: Time) -> bool {
        let mine = self.record().is_some_and(|record| self.is_mine(record));
        let nothing = match self.phase {
            Phase::Releasing(..) => true,
            Phase::Idle => self.is_kept(Mark::Free) && self.quiet_until <= now,
            _ => false,
        };
        mine && nothing
    }

    /// This node's record need not be written now.
    fn is_written(&self, now: Time) -> bool {
        if planted(Defect::NotRenewed) && self.written.is_some() {
            return true;
        }
        // The last promise is younger than two steps: they come.
        let promised = now.after(2 * self.terms.step()) <= self.by_promise;
        let every = if promised {
            4 * self.terms.length
        } else {
            self.terms.step()
        };
        self.written.is_some_and(|at| now.since(at) < every)
    }

    /// It is time to look at what the register holds.
    fn is_to_look(&self, now: Time) -> bool {
        let Some(looked) = self.looked else {
            return true;
        };
        let (step, length) = (self.terms.step(), self.terms.length);
        // Whoever may have to take over has watched the record from when the holder fell silent.
        let quiet = self.heard.is_some_and(|at| now.since(at) >= length / 2);
        let held = self.record().is_some_and(|record| record.holder.is_some());
        let soon = if self.wants() {
            !self.is_written(now)
        } else {
            quiet && held
        };
        now.since(looked) >= if soon { step } else { length }
    }

    fn swap(&mut self, now: Time, holder: Option<String>, out: &mut Actions) {
        let attempt = self.next_number();
        let found = self.known.as_ref().and_then(|known| known.found.clone());
        let expect = found.as_ref().map(|(id, _)| *id);
        let length = self.told_length(now);
        let new = if let Some((id, before)) = &found {
            let goes_on = before.holder == holder;
            let id = Id {
                instance: id.instance,
                seq: id.seq + 1,
            };
            // A run is the time from one taking to the next.
            let run = before.run + u64::from(!goes_on && holder.is_some());
            let record = Record {
                holder,
                run,
                length,
            };
            (id, record)
        } else {
            let (instance, seq, run) = (attempt, 1, 1);
            let record = Record {
                holder,
                run,
                length,
            };
            (Id { instance, seq }, record)
        };
        self.asked = Some(Asked {
            attempt,
            sent: now,
            new: Some(new.clone()),
        });
        out.push(Action::Swap {
            attempt,
            expect,
            new,
        });
    }
}
