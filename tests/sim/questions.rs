//! The way of a question to the arbiter, and of its answer back: lost, late, twice, or to a daemon that has died since.

use kagami_replicator::core::register::ArbiterAnswer;

use super::arbiter::Question;
use super::faults::Fault;
use super::world::{Checked, Happening, MS, World};

impl World {
    /// True if the asker lives; or, in some runs, the daemon that came after it.
    pub(super) fn hears_answer(&mut self, question: &Question) -> bool {
        let lives = self.lives(question.node, question.life);
        if !lives && self.options.kit.late_answers {
            self.stats.fault(Fault::ArbiterLate);
            return true;
        }
        lives
    }

    /// A question sets out.
    pub(super) fn ask_arbiter(&mut self, question: Question) {
        self.stats.questions += 1;
        if self.options.kit.late_answers && self.fault_rng.percent(20) {
            let most = self.fault_rng.pick(&[2, 10, 100]);
            let delay = self.options.settings.arbiter_timeout_ms * MS;
            let delay = self.fault_rng.below(delay * most);
            self.plan(delay, Happening::Ask(Box::new(question.clone())));
            self.stats.fault(Fault::ArbiterLate);
            if self.fault_rng.coin() {
                return; // it comes late only, else late as well
            }
        }
        match self.rng.below(100) {
            0..4 => self.goes_unanswered(0),
            4..7 => {
                // late: its asker may have given it up, or be dead
                let delay = self.options.settings.arbiter_timeout_ms * MS * self.rng.between(1, 5);
                self.goes_unanswered(delay);
                self.plan(delay, Happening::Ask(Box::new(question)));
            }
            7..9 => {
                let delay = self.rng.around(self.options.arbiter_ns);
                self.plan(delay, Happening::Ask(Box::new(question.clone())));
                self.plan(3 * delay, Happening::Ask(Box::new(question)));
            }
            _ => {
                let delay = self.rng.around(self.options.arbiter_ns);
                self.plan(delay, Happening::Ask(Box::new(question)));
            }
        }
    }

    /// It is at the arbiter, whose answer sets out.
    pub(super) fn reach_arbiter(&mut self, question: Box<Question>) -> Checked {
        if self.arbiter.down {
            if self.rng.coin() {
                let why = ArbiterAnswer::Unreachable("connection refused".to_owned());
                self.plan(self.options.arbiter_ns, Happening::Answer(question, why));
            }
            return Ok(());
        }
        let Some(arbiter) = self.arbiter_of(question.arbiter) else {
            return Ok(()); // nobody runs it any more
        };
        let answer = arbiter.answer(&question.ask);
        self.trace.line(|| {
            let name = self.nodes[question.node].name;
            format!(
                "          arbiter {:?} of {name} -> {answer:?}",
                question.ask
            )
        });
        self.check_register(&question, &answer)?;
        if self.rng.percent(4) {
            self.goes_unanswered(0);
            return Ok(()); // the answer is lost
        }
        let mut delay = self.rng.around(self.options.arbiter_ns);
        if self.rng.percent(4) {
            delay += self.options.settings.arbiter_timeout_ms * MS * self.rng.between(1, 4);
            self.goes_unanswered(delay);
        }
        if self.options.kit.late_answers && self.fault_rng.percent(30) {
            let most = self.fault_rng.pick(&[2, 10, 100]);
            let late = self.options.settings.arbiter_timeout_ms * MS * most;
            let late = self.fault_rng.below(late);
            self.plan(late, Happening::Answer(question.clone(), answer.clone()));
            self.stats.fault(Fault::ArbiterLate);
        }
        if self.rng.percent(3) {
            self.plan(
                delay * 2,
                Happening::Answer(question.clone(), answer.clone()),
            );
        }
        self.plan(delay, Happening::Answer(question, answer));
        Ok(())
    }

    /// An answer does not come, or so much too late: it is waited for, and asked for again.
    fn goes_unanswered(&mut self, late: u64) {
        let again = self.now + late.max(2 * self.options.settings.arbiter_timeout_ms * MS);
        self.ghost.unanswered_until = self.ghost.unanswered_until.max(again);
    }
}
