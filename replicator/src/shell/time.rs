//! The clocks: `CLOCK_BOOTTIME` for every decision, the wall clock for people alone.
//!
//! The core's rules about leases and time-outs need a clock that goes on while the machine sleeps and
//! that nobody sets (docs/protocol.md §8); that is `CLOCK_BOOTTIME`. The event loop stamps an event
//! with it after the completion was reaped, so the stamp is never earlier than what it describes.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::core::state::Time;

/// This moment on `CLOCK_BOOTTIME`.
pub fn now() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    Time(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// The wall clock, for logs and events.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// How long it is from `from` until `until`: zero if that has passed.
pub fn until(from: Time, until: Time) -> Duration {
    Duration::from_nanos(until.since(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_converts() {
        let first = now();
        let second = now();
        assert!(second >= first && first > Time(0));
        assert_eq!(until(second, first.after_ms(0)).as_secs(), 0);
        assert_eq!(until(Time(5), Time(3)), Duration::ZERO);
    }
}
