//! How long writes take, of late: for `kagami status`.
//!
//! Two histograms take turns, so that figures are of the last ten to twenty seconds. Recording costs
//! some nanoseconds and allocates nothing.

use hdrhistogram::Histogram;

use crate::core::state::Time;

/// How long one histogram is filled.
const TURN_NS: u64 = 10_000_000_000;

/// The longest latency told apart: a minute, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;

/// Latencies of late, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Operations that the figures are of.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

/// Records latencies.
#[derive(Debug)]
pub(super) struct Recorder {
    current: Histogram<u32>,
    previous: Histogram<u32>,
    since: Time,
}

impl Recorder {
    pub(super) fn new(now: Time) -> Self {
        let empty = || {
            let made = Histogram::new_with_bounds(1_000, LONGEST, 2);
            made.unwrap_or_else(|error| unreachable!("fixed bounds: {error}"))
        };
        Self {
            current: empty(),
            previous: empty(),
            since: now,
        }
    }

    pub(super) fn record(&mut self, now: Time, nanoseconds: u64) {
        self.turn(now);
        self.current.saturating_record(nanoseconds);
    }

    fn turn(&mut self, now: Time) {
        let age = now.since(self.since);
        if age >= TURN_NS {
            std::mem::swap(&mut self.current, &mut self.previous);
            self.current.reset();
            if age >= 2 * TURN_NS {
                self.previous.reset();
            }
            self.since = now;
        }
    }

    pub(super) fn read(&mut self, now: Time) -> Latencies {
        self.turn(now);
        let mut both = self.previous.clone();
        if both.add(&self.current).is_err() || both.is_empty() {
            return Latencies::default();
        }
        Latencies {
            count: both.len(),
            p50: both.value_at_quantile(0.5),
            p99: both.value_at_quantile(0.99),
            p999: both.value_at_quantile(0.999),
            max: both.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_late() {
        let start = Time(1);
        let mut recorder = Recorder::new(start);
        assert_eq!(recorder.read(start), Latencies::default());
        for nanoseconds in (1..=100).map(|n| n * 10_000) {
            recorder.record(start, nanoseconds);
        }
        let read = recorder.read(start.after_ms(15_000));
        assert_eq!(read.count, 100);
        assert!((490_000..=520_000).contains(&read.p50), "{read:?}");
        assert!((980_000..=1_010_000).contains(&read.p99), "{read:?}");
        assert_eq!(
            recorder.read(start.after_ms(60_000)),
            Latencies::default(),
            "long ago"
        );
        recorder.record(start.after_ms(60_000), u64::MAX);
        assert_eq!(recorder.read(start.after_ms(60_001)).count, 1);
    }
}
