//! The guard of one group: what happens when the lease of its right ends, whoever else has died.
//!
//! It runs in a small process of its own, beside the manager and the mirror's daemon, with the
//! watchdog behind it. Lease end: freeze the group's control group, since its processes could
//! still answer from the page cache. Permission: thaw it. No permission within `margin`, which the
//! one who takes over waits: drop the address, thaw when it is gone, and let the manager stop the group; if it has not
//! stopped within `bound`, reset the node. A group whose address can't be dropped stays frozen until then. From the
//! moment the address is dropped until the group has stopped, nobody adds it again, and whoever asks for the right is
//! told that it is lost.

use crate::planted::{Defect, planted};

use super::state::Time;

/// What a guard is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The lease of the group's right has ended.
    LeaseEnded,
    /// Permission to go on has come.
    Renewed,
    /// Permission was refused, or the right is lost otherwise.
    Lost,
    /// The group's floating addresses are gone.
    Dropped,
    /// Nothing of the group runs here any more.
    Stopped,
    /// The time has come that the guard asked for.
    Timer,
}

/// What a guard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// No process of the group runs on.
    Freeze,
    /// The group's floating addresses are removed, which is tried until it is done: [`Word::Dropped`] says so.
    DropAddresses,
    /// The group's processes run again: to go on, or to be stopped.
    Thaw,
    /// Tell the manager that the group has to stop.
    SayLost,
    /// The watchdog resets the node.
    Reset,
}

/// What a guard is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The group may run, or does not.
    Ease,
    /// Frozen; permission is waited for until then.
    Frozen(Time),
    /// Frozen; the right is lost, and the addresses are being removed. The group has to be stopped by then.
    Dropping(Time),
    /// The group has to be stopped by then.
    Stopping(Time),
    /// The node was reset.
    Reset,
}

/// The guard of one group.
#[derive(Clone, Debug)]
pub struct Guard {
    at: At,
    margin: u64,
    bound: u64,
}

impl Guard {
    /// `margin`: how long permission is waited for after the lease's end; `bound`: how long the
    /// group may take to stop. Milliseconds.
    pub fn new(margin: u64, bound: u64) -> Self {
        Self {
            at: At::Ease,
            margin,
            bound,
        }
    }

    /// From now on these times count, as in [`Self::new`]; what is waited for already stays.
    pub fn set_times(&mut self, margin: u64, bound: u64) {
        (self.margin, self.bound) = (margin, bound);
    }

    /// Takes in a word.
    pub fn handle(&mut self, now: Time, word: Word) -> Vec<Deed> {
        match (word, self.at) {
            (Word::LeaseEnded, At::Ease) => {
                self.at = At::Frozen(now.after(self.margin));
                if planted(Defect::NeverFrozen) {
                    Vec::new()
                } else {
                    vec![Deed::Freeze]
                }
            }
            (Word::Renewed, At::Frozen(_)) => {
                self.at = At::Ease;
                vec![Deed::Thaw]
            }
            (Word::Lost, At::Frozen(_)) => self.lose(now),
            (Word::Timer, At::Frozen(until)) if until <= now => self.lose(now),
            (Word::Lost, At::Ease) => {
                let mut deeds = vec![Deed::Freeze];
                deeds.extend(self.lose(now));
                deeds
            }
            // The address goes first: thawed processes may no longer be reached by it.
            (Word::Dropped, At::Dropping(until)) => {
                self.at = At::Stopping(until);
                vec![Deed::Thaw, Deed::SayLost]
            }
            (Word::Stopped, At::Frozen(_) | At::Dropping(_) | At::Stopping(_)) => {
                self.at = At::Ease;
                Vec::new()
            }
            (Word::Timer, At::Dropping(until) | At::Stopping(until)) if until <= now => {
                self.at = At::Reset;
                vec![Deed::Reset]
            }
            _ => Vec::new(),
        }
    }

    fn lose(&mut self, now: Time) -> Vec<Deed> {
        self.at = At::Dropping(now.after(self.bound));
        vec![Deed::DropAddresses]
    }

    /// The group has to be stopped: the right is not asked for again before it is.
    pub fn is_stopping(&self) -> bool {
        matches!(self.at, At::Dropping(_) | At::Stopping(_) | At::Reset)
    }

    /// When it wants to be called; `None`: not at all.
    pub fn deadline(&self) -> Option<Time> {
        match self.at {
            At::Frozen(until) | At::Dropping(until) | At::Stopping(until) => Some(until),
            At::Ease | At::Reset => None,
        }
    }
}
