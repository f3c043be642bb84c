//! By which settings the next manager of this process begins, where the newest ones may not do.
//!
//! What runs on this node wants a manager. One that can't begin by the newest settings begins by those that were in force
//! before, and gives the newest ones another try after a while: what was in their way may have passed. Where none
//! begins at all for long, that is the end of the process, for its unit's state to show it.

use std::time::{Duration, Instant};

/// The newest settings are tried again after so long, then after twice that, ...
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// ... and in the end.
const LAST_RETRY: Duration = Duration::from_secs(600);
/// Without a manager for so long there is none to be expected.
const PATIENCE: Duration = Duration::from_secs(60);

/// The settings to begin by.
#[derive(Debug)]
pub(super) struct Attempts<S> {
    now: S,
    /// Those of before where `now` is the newest, else the newest; none before a manager has begun.
    other: Option<S>,
    is_newest: bool,
    retry: Duration,
    failing_since: Option<Instant>,
}

impl<S> Attempts<S> {
    /// The first manager's.
    pub(super) fn new(first: S) -> Self {
        Self {
            now: first,
            other: None,
            is_newest: true,
            retry: FIRST_RETRY,
            failing_since: None,
        }
    }

    /// What the next manager begins by.
    pub(super) fn settings(&self) -> &S {
        &self.now
    }

    /// After so long that manager is to give the newest settings another try.
    pub(super) fn retry(&self) -> Option<Duration> {
        (!self.is_newest).then_some(self.retry)
    }

    /// The manager has begun by its settings, and ended for another one, by these.
    pub(super) fn has_ended_for(&mut self, newest: S) {
        self.retry = if self.is_newest {
            FIRST_RETRY
        } else {
            (self.retry * 2).min(LAST_RETRY)
        };
        self.other = Some(std::mem::replace(&mut self.now, newest));
        self.is_newest = true;
        self.failing_since = None;
    }

    /// One has begun in this process: what keeps the next one from it may pass.
    pub(super) fn had_begun(&self) -> bool {
        self.other.is_some()
    }

    /// It could not begin. False: none can.
    pub(super) fn has_not_begun(&mut self, at: Instant) -> bool {
        let since = *self.failing_since.get_or_insert(at);
        let Some(other) = &mut self.other else {
            return false;
        };
        std::mem::swap(other, &mut self.now);
        self.is_newest = !self.is_newest;
        at.duration_since(since) < PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_manager_that_cant_begin_is_the_end() {
        let mut attempts = Attempts::new(1);
        assert!(!attempts.has_not_begun(Instant::now()));
        assert!(!attempts.had_begun());
    }

    #[test]
    fn what_was_in_force_goes_on_and_the_newest_are_tried_again() {
        let at = Instant::now();
        let mut attempts = Attempts::new(1);
        attempts.has_ended_for(2);
        assert_eq!((*attempts.settings(), attempts.retry()), (2, None));
        for retry in [5, 10, 20] {
            assert!(attempts.has_not_begun(at));
            let seconds = attempts.retry().map(|retry| retry.as_secs());
            assert_eq!((*attempts.settings(), seconds), (1, Some(retry)));
            attempts.has_ended_for(2);
            assert_eq!((*attempts.settings(), attempts.retry()), (2, None));
        }
        for _ in 0..20 {
            assert!(attempts.has_not_begun(at));
            attempts.has_ended_for(2);
        }
        assert!(attempts.has_not_begun(at));
        assert_eq!(attempts.retry(), Some(LAST_RETRY));
        // They do, in the end: others may fail again, from the beginning.
        attempts.has_ended_for(2);
        attempts.has_ended_for(3);
        assert!(attempts.has_not_begun(at));
        assert_eq!(
            (*attempts.settings(), attempts.retry()),
            (2, Some(FIRST_RETRY))
        );
    }

    #[test]
    fn where_none_begins_it_is_the_end_after_a_while() {
        let at = Instant::now();
        let mut attempts = Attempts::new(1);
        attempts.has_ended_for(2);
        assert!(attempts.has_not_begun(at));
        assert!(attempts.has_not_begun(at + PATIENCE / 2));
        assert!(!attempts.has_not_begun(at + PATIENCE));
        assert!(attempts.had_begun());
        // A manager in between is a new beginning.
        attempts.has_ended_for(2);
        assert!(attempts.has_not_begun(at + PATIENCE * 2));
    }
}
