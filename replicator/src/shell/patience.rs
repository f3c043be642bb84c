//! How long a thread looks for something to do before it sleeps: *busy polling*, where it is worth it.
//!
//! To sleep and be woken costs tens of microseconds, on a virtual machine most of all, where an idle
//! processor is handed back to the host. A replicated write at depth 1 has half a dozen such waits, one after the other.
//! A thread that looks again and again instead finds what it waits for at once.
//!
//! It takes nothing from anybody who has work to do:
//!
//! - It looks only while it may expect to find something: the last wait of the same [kind](Awaits) was shorter
//!   than the longest look. So a thread without work sleeps, and one whose client is slow looks while
//!   disks and peer owe it answers, and sleeps between two requests. (KVM's halt polling and QEMU's
//!   I/O threads adapt in the same way.)
//! - Before each look it offers the processor to whoever is waiting for it. Where that takes long ([`AWAY`]), there
//!   is somebody who computes, and looking costs this thread its turn: it does without looking for
//!   [`REST`] times as long as it was away, so that not more than a two-hundredth is lost to such offers.
//! - Not at all on a machine of one processor, where nobody gets on while it looks.

use std::time::Duration;

use crate::core::state::Time;

/// The longest look unless the configuration says otherwise: the round trip of a local network and a write of
/// a fast disk are shorter. Linux's own halt polling in guests has the same.
pub const DEFAULT_BUSY_POLL: Duration = Duration::from_micros(200);

/// So many nanoseconds without the processor are another program's time slice. A shorter absence is an interrupt, the
/// host, or one of those that this thread works with.
const AWAY: u64 = 500_000;

/// So many times as long as an offer took the processor away, the thread does without looking.
const REST: u64 = 200;

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaits {
    /// Disks or a peer, which have something to do for it.
    Answers,
    /// Whatever comes next.
    Requests,
}

/// What one thread knows of its waits.
#[derive(Debug)]
pub(super) struct Patience {
    /// Nanoseconds.
    longest: u64,
    awaits: Awaits,
    /// The last wait of each kind was shorter than `longest`.
    was_short: [bool; 2],
    /// When the wait under way began.
    since: Option<Time>,
    /// Others compute: until then there is no looking.
    rests_until: Time,
}

impl Patience {
    /// One that looks for at most `longest`.
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            longest: u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX),
            awaits: Awaits::Requests,
            was_short: [false; 2],
            since: None,
            rests_until: Time(0),
        }
    }

    /// There is nothing to do at `now`: whether to look again rather than sleep.
    pub(super) fn looks(&mut self, now: Time) -> bool {
        let since = *self.since.get_or_insert(now);
        self.was_short[self.awaits as usize]
            && now >= self.rests_until
            && now.since(since) < self.longest
    }

    /// The processor was offered to others at `from`, and was back at `now`.
    pub(super) fn was_away(&mut self, from: Time, now: Time) {
        let away = now.since(from);
        if away > AWAY {
            self.rests_until = Time(now.0.saturating_add(away.saturating_mul(REST)));
        }
    }

    /// A wait is under way, so somebody has to tell when it [ends](Self::found).
    pub(super) fn is_waiting(&self) -> bool {
        self.since.is_some()
    }

    /// There was something to do at `now`.
    pub(super) fn found(&mut self, now: Time) {
        if let Some(since) = self.since.take() {
            self.was_short[self.awaits as usize] = now.since(since) < self.longest;
        }
    }

    /// Others have computed at some time, so that it did without looking.
    #[cfg(test)]
    pub(super) fn rested(&self) -> bool {
        self.rests_until > Time(0)
    }

    /// What the next wait is for.
    pub(super) fn awaits(&mut self, awaits: Awaits) {
        self.awaits = awaits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1000;

    fn patience() -> Patience {
        Patience::new(Duration::from_micros(100))
    }

    /// A wait from `from` that ended after `us`: until when the thread looked.
    fn wait(patience: &mut Patience, from: u64, us: u64) -> Option<u64> {
        let mut looked = None;
        for at in 0..us {
            if !patience.looks(Time(from + at * US)) {
                break;
            }
            looked = Some(at);
        }
        patience.found(Time(from + us * US));
        looked
    }

    #[test]
    fn it_looks_after_a_short_wait_and_sleeps_after_a_long_one() {
        let mut patience = patience();
        assert_eq!(wait(&mut patience, 0, 30), None, "nothing is known yet");
        assert_eq!(wait(&mut patience, 1_000_000, 30), Some(29));
        let end = 99;
        assert_eq!(wait(&mut patience, 2_000_000, 5_000), Some(end), "bounded");
        assert_eq!(wait(&mut patience, 9_000_000, 5_000), None);
        assert_eq!(wait(&mut patience, 20_000_000, 99), None);
        assert_eq!(wait(&mut patience, 21_000_000, 1), Some(0));
    }

    #[test]
    fn a_slow_client_does_not_end_the_looking_for_answers() {
        let mut patience = patience();
        for round in 0..4 {
            let at = round * 10_000_000;
            patience.awaits(Awaits::Answers);
            let looked = wait(&mut patience, at, 50);
            assert_eq!(looked, (round > 0).then_some(49), "round {round}");
            patience.awaits(Awaits::Requests);
            assert_eq!(wait(&mut patience, at + 1_000_000, 5_000), None);
        }
    }

    #[test]
    fn where_others_compute_it_rests_for_longer() {
        let mut patience = patience();
        wait(&mut patience, 0, 30);
        patience.was_away(Time(0), Time(AWAY));
        assert_eq!(wait(&mut patience, AWAY, 2), Some(1), "a client's turn");
        let from = 1_000_000_000;
        patience.was_away(Time(from), Time(from + AWAY + US));
        let until = from + (AWAY + US) * (1 + REST);
        assert_eq!(wait(&mut patience, until - US, 1), None);
        assert_eq!(wait(&mut patience, until, 1), Some(0));
    }

    #[test]
    fn only_a_wait_that_was_seen_to_begin_has_a_length() {
        let mut patience = patience();
        patience.found(Time(7));
        assert!(!patience.is_waiting() && !patience.looks(Time(8)));
        assert!(patience.is_waiting());
    }
}
