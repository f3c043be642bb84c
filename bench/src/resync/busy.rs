//! A resynchronisation beside an application: how much each leaves the other, and how soon.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::outage::{PATIENCE, in_sync};
use crate::client::Client;
use crate::error::BenchError;
use crate::job::{BLOCK, Job, SMALL_DEEP, Tally};
use crate::load::{self, Until};
use crate::mirror::{Mirror, State};
use crate::rounds::Spread;

/// The application.
const APPLICATION: Job = Job::write(BLOCK as u32, 8);
/// It is looked at in pieces of this length.
const WINDOW: Duration = Duration::from_millis(100);
/// How long it runs before, for comparison.
const BEFORE: Duration = Duration::from_secs(4);
/// How much of the region is marked: enough that it takes a while.
const SHARE: f64 = 0.6;

/// What the targets ask for.
const MOST_P99: f64 = 2.0;
const LEAST_RATE: f64 = 0.2;
const SOONEST: f64 = 2.0;

/// A piece of the application's time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Window {
    /// Seconds since the application began, at the end.
    pub at: f64,
    /// Operations a second.
    pub rate: f64,
    /// Microseconds.
    pub p50: f64,
    /// Microseconds.
    pub p99: f64,
}

/// A look at a resynchronisation.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Look {
    /// Seconds since it was seen to run; for one beside an application, since that began.
    pub at: f64,
    /// Megabytes (10^6) of marked blocks done.
    pub done: f64,
}

/// What was seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Busy {
    /// The application without a resynchronisation: medians of its windows.
    pub before: Window,
    /// A resynchronisation without an application.
    pub idle: Vec<Look>,
    /// A resynchronisation with one.
    pub looks: Vec<Look>,
    /// The application beside it.
    pub windows: Vec<Window>,
}

/// Runs the application alone, a resynchronisation alone, and then both.
///
/// # Errors
/// The mirror fails.
pub fn measure(mirror: &Mirror, client: &mut Client, region: u64) -> Result<Busy, BenchError> {
    mirror.wait("both copies to be equal", PATIENCE, in_sync)?;
    // Looked at as what it is compared with: neither sees the other's observer.
    let alone = application(mirror, region, 21, |began| {
        mirror.follow("the application's end", PATIENCE, |_| {
            began.elapsed() >= BEFORE
        })?;
        Ok(())
    })?;
    let before = middle(&alone);

    outage(mirror, client, region, 22)?;
    let mut idle = Vec::new();
    watch(mirror, Instant::now(), &mut idle)?;

    outage(mirror, client, region, 23)?;
    mirror.wait("a resynchronisation", PATIENCE, |state| {
        state.progress.is_some()
    })?;
    let mut looks = Vec::new();
    let windows = application(mirror, region, 24, |began| watch(mirror, began, &mut looks))?;
    Ok(Busy {
        before,
        idle,
        looks,
        windows,
    })
}

/// Runs the application as long as `meanwhile` does, which hears when it began.
fn application(
    mirror: &Mirror,
    region: u64,
    seed: u64,
    meanwhile: impl FnOnce(Instant) -> Result<(), BenchError>,
) -> Result<Vec<Window>, BenchError> {
    let stop = AtomicBool::new(false);
    let mut client = mirror.client()?;
    let mut windows = Vec::new();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let application = scope.spawn(|| {
            let mut tally = Tally::default();
            let mut since = began;
            load::run_watched(
                &mut client,
                &APPLICATION,
                region,
                Until::Told(&stop),
                seed,
                |time| {
                    tally.record(time);
                    let length = since.elapsed();
                    if length >= WINDOW {
                        windows.push(Window {
                            at: began.elapsed().as_secs_f64(),
                            rate: tally.operations() as f64 / length.as_secs_f64(),
                            p50: tally.at(0.5),
                            p99: tally.at(0.99),
                        });
                        // A new one would be made while operations wait for it.
                        tally.clear();
                        since = Instant::now();
                    }
                },
            )
        });
        let watched = meanwhile(began);
        stop.store(true, Ordering::Relaxed);
        let ran = application.join().expect("the load does not panic");
        watched.and(ran.map(drop))
    })?;
    Ok(windows)
}

/// The medians of all windows, at the end of the last.
fn middle(windows: &[Window]) -> Window {
    let median = |of: fn(&Window) -> f64| Spread::of(windows.iter().map(of)).median;
    Window {
        at: windows.last().map_or(0.0, |window| window.at),
        rate: median(|window| window.rate),
        p50: median(|window| window.p50),
        p99: median(|window| window.p99),
    }
}

/// The peer leaves, much is marked, and it comes back.
fn outage(mirror: &Mirror, client: &mut Client, region: u64, seed: u64) -> Result<(), BenchError> {
    mirror.leave()?;
    let count = (region as f64 * SHARE) as u64 / BLOCK;
    load::run(client, &SMALL_DEEP, region, Until::Operations(count), seed)?;
    client.flush_now()?;
    mirror.order_secondary("connect")
}

/// Looks until both copies are equal.
fn watch(mirror: &Mirror, began: Instant, looks: &mut Vec<Look>) -> Result<(), BenchError> {
    let mut met = false;
    mirror.follow("the resynchronisation's end", PATIENCE, |state: &State| {
        if let Some(progress) = state.progress {
            met = true;
            looks.push(Look {
                at: began.elapsed().as_secs_f64(),
                done: progress.done_bytes as f64 / 1e6,
            });
        }
        met && in_sync(state)
    })?;
    Ok(())
}

/// What the figures come to.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// MB/s of an idle resynchronisation.
    pub idle_rate: f64,
    /// MB/s beside the application, once what was asked for was reached.
    pub rate: f64,
    /// Microseconds: the application's 99th percentile then, the median of its windows.
    pub p99: f64,
    /// Seconds from the application's beginning until both stayed within what is asked; `None`: never.
    pub reached: Option<f64>,
}

impl Busy {
    /// What the figures come to. A single window is too short for a steady 99th percentile, so a moment counts
    /// as within when the median of the second after it is.
    pub fn summary(&self) -> Summary {
        let idle_rate = rate(&self.idle, 0.0, f64::INFINITY);
        let end = self.looks.last().map_or(0.0, |look| look.at);
        let within = |from: f64, to: f64| {
            let p99 = self.p99(from, to);
            p99 <= MOST_P99 * self.before.p99
                && rate(&self.looks, from, to) >= LEAST_RATE * idle_rate
        };
        let reached = (0..(4.0 * end) as u32)
            .map(|step| f64::from(step) / 4.0)
            .take_while(|at| at + 1.0 <= end)
            .find(|at| within(*at, at + 1.0));
        let from = reached.unwrap_or(0.0);
        Summary {
            idle_rate,
            rate: rate(&self.looks, from, f64::INFINITY),
            p99: self.p99(from, end),
            reached,
        }
    }

    fn p99(&self, from: f64, to: f64) -> f64 {
        let windows = self
            .windows
            .iter()
            .filter(|window| (from..=to).contains(&window.at));
        Spread::of(windows.map(|window| window.p99)).median
    }
}

/// MB/s between the first and the last look in this time.
fn rate(looks: &[Look], from: f64, to: f64) -> f64 {
    let mut inside = looks.iter().filter(|look| (from..=to).contains(&look.at));
    match (inside.next(), inside.next_back()) {
        (Some(first), Some(last)) if last.at > first.at => {
            (last.done - first.done) / (last.at - first.at)
        }
        _ => f64::NAN,
    }
}

/// Sentences, in Markdown.
pub fn text(busy: &Busy) -> String {
    let Summary {
        idle_rate,
        rate,
        p99,
        reached,
    } = busy.summary();
    let told = |met: bool| if met { "pass" } else { "**miss**" };
    let mut text = String::new();
    let _ = writeln!(
        text,
        "- An application ({}) without a resynchronisation: {:.0} op/s, p99 {:.0} µs; a resynchronisation without an \
         application: {idle_rate:.0} MB/s.",
        APPLICATION.name(),
        busy.before.rate,
        busy.before.p99
    );
    let (slower, share) = (p99 / busy.before.p99, rate / idle_rate);
    let _ = writeln!(
        text,
        "- Both: p99 ÷ that without {slower:.2}, wanted ≤ {MOST_P99}: {}; rate ÷ idle rate {share:.2} ({rate:.0} MB/s), \
         wanted ≥ {LEAST_RATE}: {}",
        told(slower <= MOST_P99),
        told(share >= LEAST_RATE)
    );
    let _ = match reached {
        Some(seconds) => writeln!(
            text,
            "- reached {seconds:.2} s after the application began, wanted within {SOONEST} s: {}",
            told(seconds <= SOONEST)
        ),
        None => writeln!(
            text,
            "- never reached for a second while it lasted: **miss**"
        ),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The application suffers for a second and a half, then the resynchronisation makes room.
    #[test]
    fn the_moment_is_found_from_which_both_have_enough() {
        let window = |at: f64| Window {
            at,
            rate: 1000.0,
            p50: 100.0,
            p99: if at < 1.5 { 900.0 } else { 300.0 },
        };
        let look = |at: f64, speed: f64| Look {
            at,
            done: at * speed,
        };
        let busy = Busy {
            before: Window {
                at: 1.0,
                rate: 2000.0,
                p50: 90.0,
                p99: 200.0,
            },
            idle: (0..20).map(|n| look(f64::from(n) / 10.0, 100.0)).collect(),
            looks: (0..50).map(|n| look(f64::from(n) / 10.0, 30.0)).collect(),
            windows: (1..50).map(|n| window(f64::from(n) / 10.0)).collect(),
        };
        let summary = busy.summary();
        assert!((summary.idle_rate - 100.0).abs() < 1e-6 && (summary.rate - 30.0).abs() < 1e-6);
        assert!(
            matches!(summary.reached, Some(at) if (0.9..=1.5).contains(&at)),
            "{summary:?}"
        );
        assert!((summary.p99 - 300.0).abs() < 1e-6);
        assert!(text(&busy).contains("pass"));
    }
}
