//! A job, run over the NBD client.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::error::BenchError;
use crate::job::{Action, Job, Places, SEQUENTIAL, Tally};

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub enum Until<'a> {
    /// After this time.
    Time(Duration),
    /// After this many operations.
    Operations(u64),
    /// When somebody says so.
    Told(&'a AtomicBool),
}

/// Runs `job` over the first `region` bytes; gives the tally and the time from the first request to
/// the last answer. Whatever was in flight is answered when it returns.
///
/// # Errors
/// The server fails.
pub fn run(
    client: &mut Client,
    job: &Job,
    region: u64,
    until: Until,
    seed: u64,
) -> Result<(Tally, Duration), BenchError> {
    run_watched(client, job, region, until, seed, |_| {})
}

/// The same; `watch` hears of every answered operation how long it took, when it is answered.
///
/// # Errors
/// As [`run`].
pub fn run_watched(
    client: &mut Client,
    job: &Job,
    region: u64,
    until: Until,
    seed: u64,
    mut watch: impl FnMut(Duration),
) -> Result<(Tally, Duration), BenchError> {
    let mut places = Places::new(job.pattern, job.len, region.min(client.size()), seed);
    let mut tally = Tally::default();
    let began = Instant::now();
    let mut slots = vec![
        Slot {
            since: began,
            flushing: false
        };
        job.depth
    ];
    let mut begun = 0;
    let mut begin = |client: &mut Client, slots: &mut [Slot], slot: usize| {
        let goes_on = match until {
            Until::Time(time) => began.elapsed() < time,
            Until::Operations(count) => begun < count,
            Until::Told(stop) => !stop.load(Ordering::Relaxed),
        };
        if goes_on {
            begun += 1;
            slots[slot] = Slot {
                since: Instant::now(),
                flushing: false,
            };
            let offset = places.next_offset();
            match job.action {
                Action::Write => client.write(slot as u64, offset, job.len, places.draw()),
                Action::Read => client.read(slot as u64, offset, job.len),
            }
        }
        goes_on
    };
    let mut in_flight = 0;
    for slot in 0..job.depth {
        in_flight += usize::from(begin(client, &mut slots, slot));
    }
    client.send()?;
    let mut answered = Vec::new();
    while in_flight > 0 {
        client.receive(&mut answered)?;
        for cookie in answered.drain(..) {
            let slot = cookie as usize;
            let Some(state) = slots.get_mut(slot) else {
                return Err(BenchError::Nbd(format!("a reply to request {cookie}")));
            };
            if job.flush && !state.flushing {
                state.flushing = true;
                client.flush(cookie);
                continue;
            }
            let time = state.since.elapsed();
            tally.record(time);
            watch(time);
            in_flight -= usize::from(!begin(client, &mut slots, slot));
        }
        client.send()?;
    }
    Ok((tally, began.elapsed()))
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    since: Instant,
    flushing: bool,
}

/// Writes the first `region` bytes once, so that nothing is measured on holes.
///
/// # Errors
/// The server fails.
pub fn fill(client: &mut Client, region: u64) -> Result<(), BenchError> {
    let count = region / u64::from(SEQUENTIAL.len);
    run(client, &SEQUENTIAL, region, Until::Operations(count), 1)?;
    client.flush_now()
}
