//! One measurement: writes to a range of a mirror, and how long each took.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::client::{Client, ClientError, LONGEST};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of the mirror that are overwritten; both ends are multiples of `block`.
    pub range: Range<u64>,
    /// Bytes of one write.
    pub block: usize,
    /// Writes in flight.
    pub depth: usize,
    /// At random places, or one after the other.
    pub random: bool,
    /// A flush after so many writes; 0: one at the end.
    pub flush_each: u64,
    /// For so long.
    pub time: Duration,
}

/// How long requests of one kind took, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latencies {
    /// How many there were.
    pub count: u64,
    /// The quickest.
    pub min_ns: u64,
    /// Their mean.
    pub mean_ns: u64,
    /// Half of them took at most so long.
    pub p50_ns: u64,
    /// Nine of ten.
    pub p90_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// 999 of 1,000.
    pub p999_ns: u64,
    /// The slowest.
    pub max_ns: u64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// From the first write to the last answer, the last flush included.
    pub seconds: f64,
    /// Writes per second.
    pub writes_per_second: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// From a write's sending to its answer.
    pub write: Latencies,
    /// From a flush's sending to its answer.
    pub flush: Latencies,
}

/// Sixty seconds, in nanoseconds; whatever takes longer counts as that.
const LONGEST_WAIT: u64 = 60_000_000_000;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_WAIT, 3).expect("the bounds are constants")
}

impl Latencies {
    fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            min_ns: histogram.min(),
            mean_ns: histogram.mean() as u64,
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
        }
    }
}

/// Writes the whole range once, so that the measurement overwrites and does not allocate.
///
/// # Errors
/// The mirror failed.
pub fn prepare(
    client: &mut Client,
    range: &Range<u64>,
    stop: &AtomicBool,
) -> Result<(), ClientError> {
    let step = LONGEST.min(1 << 20) as u64;
    let content = noise(step as usize);
    let mut offset = range.start;
    while offset < range.end && !stop.load(Ordering::Relaxed) {
        while client.in_flight() >= 8 {
            client.next_answer()?;
        }
        let len = step.min(range.end - offset);
        client.submit_write(offset, &content[..len as usize], false)?;
        offset += len;
    }
    client.flush()
}

/// Carries out a plan; ends early when `stop` is set.
///
/// # Errors
/// The mirror failed.
pub fn measure(
    client: &mut Client,
    plan: &Plan,
    stop: &AtomicBool,
) -> Result<Figures, ClientError> {
    let (mut writes, mut flushes) = (histogram(), histogram());
    let mut sent: HashMap<u64, Instant> = HashMap::with_capacity(plan.depth);
    let mut content = noise(plan.block);
    let places = (plan.range.end - plan.range.start) / plan.block as u64;
    assert!(places > 0, "a range without room for a block");
    let mut dice = 0x6B61_6761_6D69;
    let (mut number, mut since_flush) = (0_u64, 0_u64);
    let began = Instant::now();
    let deadline = began + plan.time;
    while Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
        if plan.flush_each > 0 && since_flush >= plan.flush_each {
            drain(client, &mut sent, &mut writes, 0)?;
            flush(client, &mut flushes)?;
            since_flush = 0;
        }
        let place = if plan.random {
            next(&mut dice) % places
        } else {
            number % places
        };
        number += 1;
        since_flush += 1;
        // No two writes are the same: a store that saves equal blocks would measure itself.
        content[..8].copy_from_slice(&number.to_le_bytes());
        let now = Instant::now();
        let offset = plan.range.start + place * plan.block as u64;
        let cookie = client.submit_write(offset, &content, false)?;
        sent.insert(cookie, now);
        drain(client, &mut sent, &mut writes, plan.depth - 1)?;
    }
    drain(client, &mut sent, &mut writes, 0)?;
    flush(client, &mut flushes)?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Figures {
        seconds,
        writes_per_second: number as f64 / seconds,
        bytes_per_second: (number * plan.block as u64) as f64 / seconds,
        write: Latencies::of(&writes),
        flush: Latencies::of(&flushes),
    })
}

fn drain(
    client: &mut Client,
    sent: &mut HashMap<u64, Instant>,
    histogram: &mut Histogram<u64>,
    leave: usize,
) -> Result<(), ClientError> {
    while client.in_flight() > leave {
        let cookie = client.next_answer()?;
        let began = sent.remove(&cookie).expect("it was sent");
        histogram.saturating_record(nanos(began));
    }
    Ok(())
}

fn flush(client: &mut Client, histogram: &mut Histogram<u64>) -> Result<(), ClientError> {
    let began = Instant::now();
    client.flush()?;
    histogram.saturating_record(nanos(began));
    Ok(())
}

fn nanos(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Bytes that don't compress.
fn noise(len: usize) -> Vec<u8> {
    let mut dice = 0x6E6F_6973_6521;
    let mut content = Vec::with_capacity(len + 8);
    while content.len() < len {
        content.extend(next(&mut dice).to_le_bytes());
    }
    content.truncate(len);
    content
}

/// The next pseudo-random number (splitmix64): a measurement needs spread, not secrecy.
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
