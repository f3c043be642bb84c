//! What the guard makes of a group that it is to watch: the right is granted only once it does.

use super::words::Actions;
use super::{Action, Guard, Lease, Phase};
use crate::core::{Right, Time};

impl Lease {
    fn is_asked(&self, attempt: u64) -> bool {
        self.guard == Guard::Asked(attempt) && matches!(self.phase, Phase::Asking(_))
    }

    pub(super) fn on_guarded(&mut self, attempt: u64, stopping: bool, out: &mut Actions) {
        if !self.is_asked(attempt) {
            return;
        }
        if stopping {
            self.guard = Guard::Away;
            self.lose(out);
        } else {
            self.guard = Guard::There;
        }
    }

    /// Without a guard nothing would stop the group, should the manager die.
    pub(super) fn on_unguarded(&mut self, now: Time, attempt: u64, why: String, out: &mut Actions) {
        if !self.is_asked(attempt) {
            return;
        }
        if self.may_run {
            // What an earlier manager has left active has to stop first.
            self.guard = Guard::Away;
            self.lose(out);
        } else {
            self.give_up(now, false, out);
            out.push(Action::Tell(Right::Refused(why)));
        }
    }
}
