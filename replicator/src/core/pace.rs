//! How much of a resynchronisation may be in flight: as much as the application's latency
//! allows (docs/design.md §8).
//!
//! Every tick the mean latency of the application's writes is compared with what it was while
//! no resynchronisation ran; above the operator's multiple of that the window is halved, below
//! it grows by a step. Without application writes the window is the operator's bound.

use super::settings::Settings;
use super::state::Time;

/// Length of a tick, milliseconds.
pub(super) const TICK_MS: u64 = 100;
/// The window never shrinks below this: a resynchronisation always makes progress.
const SMALLEST: u64 = 128 << 10;
/// Growth of the window in a tick.
const STEP: u64 = 512 << 10;

/// The controller's state.
#[derive(Debug, Default)]
pub(super) struct Pace {
    window: u64,
    /// Mean write latency without a resynchronisation, nanoseconds; 0: not known.
    baseline_ns: u64,
    writes_before: u64,
    ns_before: u64,
    /// Bytes that the rate bound allows until the next tick. Below zero: a chunk that was larger than what
    /// was left is paid for by the ticks to come.
    allowance: Option<i64>,
    sent_before: u64,
    ticked: Time,
    /// Bytes per second of late.
    pub rate: u64,
}

impl Pace {
    /// Writes answered so far and the sum of their latencies.
    fn mean(&mut self, writes: u64, ns: u64) -> Option<u64> {
        let (count, sum) = (writes - self.writes_before, ns - self.ns_before);
        (self.writes_before, self.ns_before) = (writes, ns);
        sum.checked_div(count)
    }

    /// No resynchronisation runs: learn what latency is without one.
    pub fn learn(&mut self, writes: u64, ns: u64) {
        if let Some(mean) = self.mean(writes, ns) {
            self.baseline_ns = if self.baseline_ns == 0 {
                mean
            } else {
                (self.baseline_ns * 7 + mean) / 8
            };
        }
    }

    /// A resynchronisation begins.
    pub fn begin(&mut self, now: Time, writes: u64, ns: u64, settings: &Settings) {
        self.learn(writes, ns);
        self.window = settings.resync_window / 2;
        self.ticked = now;
        self.sent_before = 0;
        self.rate = 0;
        self.allowance = settings
            .resync_max_rate
            .map(|rate| share(rate, TICK_MS * 1_000_000));
    }

    /// A tick of a running resynchronisation that has sent `sent` bytes.
    pub fn tick(&mut self, now: Time, writes: u64, ns: u64, sent: u64, settings: &Settings) {
        let most = settings.resync_window.max(SMALLEST);
        match self.mean(writes, ns) {
            None => self.window = most,
            Some(mean) => {
                if self.baseline_ns == 0 {
                    // Nothing to compare with: take the first latency under load as twice too high.
                    self.baseline_ns = mean / 2;
                }
                let bound = self
                    .baseline_ns
                    .saturating_mul(u64::from(settings.resync_latency_percent))
                    / 100;
                self.window = if mean > bound {
                    self.window / 2
                } else {
                    self.window + STEP
                };
            }
        }
        self.window = self.window.clamp(SMALLEST, most);
        let elapsed = now.since(self.ticked).max(1);
        let bytes = sent.saturating_sub(self.sent_before);
        let rate = (u128::from(bytes) * 1_000_000_000 / u128::from(elapsed)) as u64;
        self.rate = if self.rate == 0 {
            rate
        } else {
            (self.rate * 3 + rate) / 4
        };
        self.sent_before = sent;
        self.ticked = now;
        let debt = self.allowance.map_or(0, |left| left.min(0));
        self.allowance = settings
            .resync_max_rate
            .map(|max| share(max, elapsed).saturating_add(debt));
    }

    /// Whether another chunk of `bytes` may be sent while `in_flight` bytes are.
    pub fn admits(&mut self, bytes: u64, in_flight: u64) -> bool {
        if in_flight > 0 && in_flight + bytes > self.window {
            return false;
        }
        match &mut self.allowance {
            None => true,
            Some(left) if *left <= 0 => false,
            Some(left) => {
                *left = left.saturating_sub_unsigned(bytes);
                true
            }
        }
    }
}

/// What a bound of `rate` bytes per second allows in so many nanoseconds.
fn share(rate: u64, ns: u64) -> i64 {
    let bytes = u128::from(rate) * u128::from(ns) / 1_000_000_000;
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_below_a_chunk_for_each_tick_is_kept() {
        let settings = Settings {
            resync_max_rate: Some(256 << 10),
            ..Settings::default()
        };
        let mut pace = Pace::default();
        pace.begin(Time(0), 0, 0, &settings);
        let (chunk, mut sent) = (1u64 << 20, 0);
        for tick in 1..=600 {
            while pace.admits(chunk, 0) {
                sent += chunk;
            }
            pace.tick(Time(tick * TICK_MS * 1_000_000), 0, 0, sent, &settings);
        }
        // A minute of it, and the chunk that was begun last.
        assert!((15 << 20..=16 << 20).contains(&sent), "{sent}");
    }

    #[test]
    fn latency_above_the_bound_halves_the_window_and_idleness_opens_it() {
        let settings = Settings::default();
        let mut pace = Pace::default();
        pace.learn(100, 100 * 100_000);
        pace.begin(Time(0), 100, 100 * 100_000, &settings);
        let before = pace.window;
        pace.tick(Time(1), 110, 100 * 100_000 + 10 * 500_000, 0, &settings);
        assert_eq!(pace.window, before / 2);
        pace.tick(Time(2), 110, 100 * 100_000 + 10 * 500_000, 0, &settings);
        assert_eq!(pace.window, settings.resync_window);
        assert!(pace.admits(1 << 20, 1 << 20));
        assert!(!pace.admits(1 << 20, settings.resync_window));
        assert!(pace.admits(64 << 20, 0), "one chunk always goes");
    }
}
