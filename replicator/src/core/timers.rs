//! The core's deadlines: an array with a place for each kind, so that arming is an assignment
//! and a cancelled one can't leak.

use super::state::Time;

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Timer {
    /// Send the next ping.
    Ping,
    /// No echo for the time-out: the session ends.
    PeerSilent,
    /// The oldest answer that the peer or the local disk owes is as old as `ack-timeout`.
    AckOverdue,
    /// The attempt at the arbiter: its wait is over, or it is given up.
    Attempt,
    /// Ask the arbiter again: to go alone, to check that this copy is still named, to rejoin.
    AskAgain,
    /// Flush what is unflushed.
    AutoFlush,
    /// Write stale bitmap pages.
    WritePages,
    /// The resynchronisation's controller, and its retries.
    Resync,
    /// How many kinds there are.
    Count,
}

impl Timer {
    /// All of them, in the order in which they are looked at.
    const ALL: [Self; Self::Count as usize] = [
        Self::PeerSilent,
        Self::Ping,
        Self::AckOverdue,
        Self::Attempt,
        Self::AskAgain,
        Self::AutoFlush,
        Self::WritePages,
        Self::Resync,
    ];
}

/// The deadlines of one mirror.
#[derive(Debug, Default)]
pub(super) struct Timers {
    at: [Option<Time>; Timer::Count as usize],
    /// What the shell was told last.
    told: Option<Time>,
    /// It has called since.
    called: bool,
}

impl Timers {
    /// Arms or moves a deadline.
    pub fn set(&mut self, timer: Timer, at: Time) {
        self.at[timer as usize] = Some(at);
    }

    /// Arms a deadline unless it is armed already.
    pub fn set_once(&mut self, timer: Timer, at: Time) {
        self.at[timer as usize].get_or_insert(at);
    }

    /// Arms a deadline, or moves it to an earlier time.
    pub fn set_by(&mut self, timer: Timer, at: Time) {
        let slot = &mut self.at[timer as usize];
        *slot = Some(slot.map_or(at, |set| set.min(at)));
    }

    /// Disarms a deadline.
    pub fn clear(&mut self, timer: Timer) {
        self.at[timer as usize] = None;
    }

    /// True, once, if the deadline has passed.
    pub fn take_due(&mut self, timer: Timer, now: Time) -> bool {
        let due = self.at[timer as usize].is_some_and(|at| at <= now);
        if due {
            self.at[timer as usize] = None;
        }
        due
    }

    /// The shell has called: it is told the next deadline in any case, also one that is what it was.
    pub fn called(&mut self) {
        self.called = true;
    }

    /// The first kind, in their order, whose deadline has passed.
    pub fn first_due(&self, now: Time) -> Option<Timer> {
        Timer::ALL
            .into_iter()
            .find(|timer| self.at[*timer as usize].is_some_and(|at| at <= now))
    }

    /// The next deadline, if the shell was not told of it yet.
    pub fn changed(&mut self) -> Option<Option<Time>> {
        let next = self.at.iter().flatten().min().copied();
        let called = std::mem::take(&mut self.called);
        (called || next != self.told).then(|| {
            self.told = next;
            next
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_has_come_is_told_anew() {
        let mut timers = Timers::default();
        timers.set(Timer::Ping, Time(5));
        assert_eq!(timers.changed(), Some(Some(Time(5))));
        assert_eq!(timers.changed(), None);
        timers.called();
        assert!(timers.take_due(Timer::Ping, Time(5)));
        timers.set(Timer::AckOverdue, Time(5));
        assert_eq!(timers.changed(), Some(Some(Time(5))));
        timers.called();
        timers.clear(Timer::AckOverdue);
        assert_eq!(timers.changed(), Some(None));
    }

    #[test]
    fn a_deadline_is_set_kept_or_moved_to_an_earlier_time() {
        let mut timers = Timers::default();
        let due = |timers: &Timers| timers.at[Timer::Resync as usize];
        timers.set_once(Timer::Resync, Time(5));
        timers.set_once(Timer::Resync, Time(4));
        assert_eq!(due(&timers), Some(Time(5)));
        timers.set_by(Timer::Resync, Time(6));
        assert_eq!(due(&timers), Some(Time(5)));
        timers.set_by(Timer::Resync, Time(3));
        assert_eq!(due(&timers), Some(Time(3)));
        timers.set(Timer::Resync, Time(9));
        assert_eq!(due(&timers), Some(Time(9)));
        timers.clear(Timer::Resync);
        assert_eq!(due(&timers), None);
        timers.set_by(Timer::Resync, Time(6));
        assert_eq!(due(&timers), Some(Time(6)));
    }

    #[test]
    fn what_is_due_is_taken_once_in_its_order_and_the_shell_told_of_each_change() {
        let mut timers = Timers::default();
        timers.set(Timer::Resync, Time(5));
        timers.set(Timer::Ping, Time(6));
        assert_eq!(timers.changed(), Some(Some(Time(5))));
        assert_eq!(timers.changed(), None);
        assert_eq!(timers.first_due(Time(4)), None);
        assert_eq!(timers.first_due(Time(5)), Some(Timer::Resync));
        assert_eq!(timers.first_due(Time(6)), Some(Timer::Ping));
        assert!(!timers.take_due(Timer::Ping, Time(5)));
        assert!(timers.take_due(Timer::Ping, Time(6)));
        assert!(!timers.take_due(Timer::Ping, Time(6)));
        assert_eq!(timers.changed(), None, "the first is as it was");
        timers.clear(Timer::Resync);
        assert_eq!(timers.changed(), Some(None));
    }
}
