//! Does the simulator find bugs? Defects are planted one at a time, and each should be caught.
//!
//! A defect is a wrong line behind a switch (`kagami_bitmap::planted`). Seeds run from 0 on until one
//! shows a violation; a defect that none shows within the bound is a hole in the simulator, and
//! the exit status says so.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anstream::{eprintln, println};
use kagami_bitmap::planted::Defect;

use super::check::Violation;
use super::replay::Trace;
use super::run_seed;

/// What is asked for.
#[derive(Debug)]
pub struct Wanted {
    /// Only those whose names contain this.
    pub only: Option<String>,
    /// Seeds that a defect may take at most.
    pub seeds: u64,
    /// Threads.
    pub threads: usize,
    /// One JSON object for each defect.
    pub json: bool,
}

/// What became of a defect.
#[derive(Debug)]
struct Found {
    defect: Defect,
    /// The seed that caught it, and how.
    caught: Option<(u64, Violation)>,
    took: Duration,
}

#[cfg(planted)]
fn plant(defect: Option<Defect>) {
    kagami_bitmap::planted::plant(defect);
}

#[cfg(not(planted))]
fn plant(_: Option<Defect>) {}

/// Plants each defect and tells what caught it. Exit status: 0 all were caught, 1 some were not,
/// 2 there is nothing to plant.
pub fn run(wanted: &Wanted) -> u8 {
    if !cfg!(planted) {
        eprintln!("this build has no defects to plant: use `./do planted`");
        return 2;
    }
    let chosen: Vec<Defect> = Defect::ALL
        .iter()
        .copied()
        .filter(|defect| {
            let name = defect.name();
            wanted
                .only
                .as_ref()
                .is_none_or(|only| name.contains(only.as_str()))
        })
        .collect();
    if chosen.is_empty() {
        eprintln!("no defect has a name like that");
        return 2;
    }
    let next = AtomicUsize::new(0);
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..wanted.threads.max(1) {
            scope.spawn(|| {
                while let Some(defect) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = hunt(*defect, wanted.seeds);
                    tell(&found, wanted);
                    if found.caught.is_none()
                        && let Ok(mut missed) = missed.lock()
                    {
                        missed.push(*defect);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap_or_default();
    if !wanted.json {
        println!(
            "{} defects planted, {} caught, {} missed",
            chosen.len(),
            chosen.len() - missed.len(),
            missed.len()
        );
    }
    u8::from(!missed.is_empty())
}

fn hunt(defect: Defect, seeds: u64) -> Found {
    let began = Instant::now();
    plant(Some(defect));
    let caught = (0..seeds).find_map(|seed| {
        run_seed(seed, Trace::off())
            .violation
            .map(|violation| (seed, violation))
    });
    plant(None);
    Found {
        defect,
        caught,
        took: began.elapsed(),
    }
}

fn tell(found: &Found, wanted: &Wanted) {
    let (defect, seconds) = (found.defect, found.took.as_secs_f64());
    if wanted.json {
        let caught = found.caught.as_ref();
        println!(
            "{}",
            serde_json::json!({
                "version": 1,
                "defect": defect.name(),
                "what": defect.what(),
                "caught_by": caught.map(|(_, violation)| &violation.invariant),
                "seeds": caught.map_or(wanted.seeds, |(seed, _)| seed + 1),
                "seconds": seconds,
            })
        );
        return;
    }
    match &found.caught {
        Some((seed, violation)) => {
            let (count, name) = (seed + 1, &violation.invariant);
            println!(
                "{:<26} {name:<24} {count:>5} seeds  {}",
                defect.name(),
                defect.what()
            );
        }
        None => println!(
            "{:<26} NOT CAUGHT in {} seeds ({seconds:.0} s): {}",
            defect.name(),
            wanted.seeds,
            defect.what()
        ),
    }
}
