//! What is measured: a job, and the sample that one run of it gives.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// The order in which a job goes over its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Any multiple of the request's length.
    Random,
    /// From the start to the end, and again.
    Sequential,
}

/// What a job asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Writes.
    Write,
    /// Reads.
    Read,
}

/// Requests of one kind, one after the other in each of `depth` slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Writes or reads.
    pub action: Action,
    /// Bytes of each request.
    pub len: u32,
    /// Requests in flight.
    pub depth: usize,
    /// Where they go.
    pub pattern: Pattern,
    /// Each write is followed by a flush in its slot; the two together are one operation.
    pub flush: bool,
}

impl Job {
    /// Writes all over the region.
    pub const fn write(len: u32, depth: usize) -> Self {
        Self {
            action: Action::Write,
            len,
            depth,
            pattern: Pattern::Random,
            flush: false,
        }
    }

    /// Reads all over the region.
    const fn read(len: u32, depth: usize) -> Self {
        Self {
            action: Action::Read,
            ..Self::write(len, depth)
        }
    }

    /// The same, from the start to the end, and again.
    pub const fn in_order(self) -> Self {
        Self {
            pattern: Pattern::Sequential,
            ..self
        }
    }

    /// For people and JSON: `4 KiB random write, depth 1, flush after each`.
    pub fn name(&self) -> String {
        let pattern = match self.pattern {
            Pattern::Random => "random",
            Pattern::Sequential => "sequential",
        };
        let action = match self.action {
            Action::Write => "write",
            Action::Read => "read",
        };
        let flush = if self.flush { ", flush after each" } else { "" };
        format!(
            "{} {pattern} {action}, depth {}{flush}",
            size(self.len),
            self.depth
        )
    }
}

/// `4 KiB`, `1 MiB`
pub fn size(bytes: u32) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{} KiB", bytes >> 10)
    }
}

/// One small write at a time.
pub const SMALL: Job = Job::write(BLOCK as u32, 1);
/// The same, each made durable.
pub const SMALL_FLUSHED: Job = Job {
    flush: true,
    ..SMALL
};
/// Many small writes at a time.
pub const SMALL_DEEP: Job = Job::write(BLOCK as u32, 32);
/// Middling writes.
pub const MIDDLE: Job = Job::write(64 << 10, 4);
/// Large writes; fills a disk, too.
pub const SEQUENTIAL: Job = Job::write(1 << 20, 4).in_order();
/// One small read at a time.
pub const READ: Job = Job::read(BLOCK as u32, 1);
/// Many small reads at a time.
pub const READ_DEEP: Job = Job::read(BLOCK as u32, 32);

/// The jobs of the main table.
pub const JOBS: [Job; 7] = [
    SMALL,
    SMALL_FLUSHED,
    SMALL_DEEP,
    MIDDLE,
    SEQUENTIAL,
    READ,
    READ_DEEP,
];

/// What one run of a job gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Operations finished.
    pub operations: u64,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Operations a second.
    pub rate: f64,
    /// Bytes moved a second, in units of 1,000,000.
    pub megabytes: f64,
    /// Microseconds from request to answer: median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Pairs of a percentage ([`PERCENTAGES`]) and the microseconds within which so many were answered.
    #[serde(default)]
    pub percentiles: Vec<(f64, f64)>,
    /// Processor microseconds for each operation, by program.
    pub cpu: BTreeMap<String, f64>,
}

/// The percentiles that are kept of each run: those that fio gives by itself.
pub const PERCENTAGES: [f64; 17] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95,
    99.99,
];

/// Longer times count as this: ten minutes, in nanoseconds.
const LONGEST: u64 = 600 * 1_000_000_000;

/// Counts the operations of a run.
#[derive(Debug)]
pub struct Tally {
    times: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            // Bounded, because a histogram that grows by itself does not when it saturates.
            times: Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are in order"),
        }
    }
}

impl Tally {
    /// An operation took this long.
    pub fn record(&mut self, time: Duration) {
        self.times
            .saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Forgets all operations, and keeps its memory.
    pub fn clear(&mut self) {
        self.times.reset();
    }

    /// Microseconds within which a share of the operations was answered.
    pub fn at(&self, share: f64) -> f64 {
        self.times.value_at_quantile(share) as f64 / 1e3
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.times.len()
    }

    /// The sample, of operations of `len` bytes that took `elapsed` together.
    pub fn sample(&self, len: u32, elapsed: Duration) -> Sample {
        let seconds = elapsed.as_secs_f64();
        let rate = self.times.len() as f64 / seconds;
        let at = |share| self.at(share);
        Sample {
            operations: self.times.len(),
            seconds,
            rate,
            megabytes: rate * f64::from(len) / 1e6,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            percentiles: PERCENTAGES.map(|p| (p, at(p / 100.0))).to_vec(),
            cpu: BTreeMap::new(),
        }
    }
}

/// Where a job's requests go: a small generator that needs spread, not secrecy.
#[derive(Clone, Debug)]
pub struct Places {
    state: u64,
    next: u64,
    slots: u64,
    len: u64,
    pattern: Pattern,
}

impl Places {
    /// Places of requests of `len` bytes in the first `region` bytes.
    pub fn new(pattern: Pattern, len: u32, region: u64, seed: u64) -> Self {
        let len = u64::from(len);
        let slots = region / len;
        assert!(
            slots > 0,
            "a region of {region} bytes for requests of {len}"
        );
        Self {
            // Odd, for a state of zero stays zero; and another one for each seed.
            state: seed << 1 | 1,
            next: 0,
            slots,
            len,
            pattern,
        }
    }

    /// The next pseudo-random number (xorshift64).
    pub fn draw(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// Where the next request begins, in bytes.
    pub fn next_offset(&mut self) -> u64 {
        let slot = match self.pattern {
            Pattern::Random => self.draw() % self.slots,
            Pattern::Sequential => {
                let slot = self.next;
                self.next = (slot + 1) % self.slots;
                slot
            }
        };
        slot * self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_whole_requests_inside_the_region() {
        let mut random = Places::new(Pattern::Random, 4096, (1 << 20) + 100, 7);
        for _ in 0..10_000 {
            let offset = random.next_offset();
            assert!(offset.is_multiple_of(4096) && offset + 4096 <= 1 << 20);
        }
        let mut ordered = Places::new(Pattern::Sequential, 4096, 3 * 4096, 7);
        let offsets: Vec<u64> = (0..4).map(|_| ordered.next_offset()).collect();
        assert_eq!(offsets, [0, 4096, 8192, 0]);
    }

    #[test]
    fn a_job_is_named_by_what_it_does() {
        assert_eq!(
            SMALL_FLUSHED.name(),
            "4 KiB random write, depth 1, flush after each"
        );
        assert_eq!(SEQUENTIAL.name(), "1 MiB sequential write, depth 4");
        assert_eq!(READ_DEEP.name(), "4 KiB random read, depth 32");
    }

    #[test]
    fn a_sample_is_in_its_units() {
        let mut tally = Tally::default();
        for _ in 0..1000 {
            tally.record(Duration::from_micros(100));
        }
        let sample = tally.sample(4096, Duration::from_millis(100));
        assert_eq!(sample.operations, 1000);
        assert!((sample.rate - 10_000.0).abs() < 1e-6);
        assert!((sample.megabytes - 40.96).abs() < 1e-6);
        assert!((sample.p50 - 100.0).abs() < 0.1, "{}", sample.p50);
    }
}
