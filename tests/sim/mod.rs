//! The simulator: two cores and all that surrounds them, from one seed.
//!
//! A seed draws a mirror, its settings, its load and what breaks ([`options`]), and then every
//! delay and every choice of a [`world`]. After each event the core asserts what one node can
//! see, and the checks what both show ([`check`], [`lines`], [`marked`]). At the end the faults
//! stop, and the pair must come to rest ([`calm`]). Nothing reads a clock, and nothing is
//! iterated in an order that a seed does not fix: a seed is a run, for ever.
//!
//! docs/simulation.md says what is covered and how to read a trace.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub mod arbiter;
mod calm;
pub mod check;
pub mod content;
pub mod coverage;
pub mod disk;
pub mod faults;
pub mod fleet;
mod guests;
pub mod history;
mod host;
pub mod impossible;
mod in_time;
#[cfg(test)]
mod kept;
mod life;
pub mod lines;
mod link;
mod marked;
pub mod member;
pub mod meta;
pub mod net;
pub mod node;
pub mod options;
pub mod orders;
pub mod permission;
pub mod planted;
pub mod profile;
mod questions;
mod refusals;
pub mod replay;
mod restore;
pub mod rng;
pub mod room;
pub mod stall;
pub mod stats;
mod words;
pub mod workload;
pub mod world;

use check::Violation;
use fleet::Fleet;
use profile::Profile;
use replay::Trace;
use stats::Stats;
use world::World;

/// What became of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What must never be, and was.
    pub violation: Option<Violation>,
    /// What was counted.
    pub stats: Stats,
    /// The lines of the trace, if one was kept.
    pub trace: Trace,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the words of a failed assertion in a core instead of printing them. Once for a process.
pub fn catch_assertions() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or("a panic without words");
        let place = info
            .location()
            .map_or_else(String::new, |at| format!(" ({}:{})", at.file(), at.line()));
        PANIC.with(|kept| *kept.borrow_mut() = Some(format!("{text}{place}")));
    }));
}

/// Runs a seed of the general mix to its end.
pub fn run_seed(seed: u64, trace: Trace) -> Outcome {
    run_profile(Profile::General, seed, trace)
}

/// Runs a seed of a profile to its end.
pub fn run_profile(profile: Profile, seed: u64, trace: Trace) -> Outcome {
    match fleet::mirrors(profile, seed) {
        1 => run_world(seed, World::new(profile, seed, trace)),
        count => run_fleet(seed, Fleet::new(profile, seed, count, trace)),
    }
}

fn run_fleet(seed: u64, mut fleet: Fleet) -> Outcome {
    PANIC.with(|kept| kept.borrow_mut().take());
    let ended = catch_unwind(AssertUnwindSafe(|| fleet.run()));
    let (mut stats, impossible) = fleet.counted();
    stats.seeds = 1;
    let violation = match ended {
        Ok(checked) => checked.err().or(impossible),
        Err(_) => Some(assertion()),
    };
    Outcome {
        seed,
        violation,
        stats,
        trace: fleet.into_trace(),
    }
}

fn run_world(seed: u64, mut world: World) -> Outcome {
    PANIC.with(|kept| kept.borrow_mut().take());
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match ended {
        Ok(checked) => checked
            .err()
            .or_else(|| coverage::reached_the_impossible(&world.stats)),
        Err(_) => Some(assertion()),
    };
    world.stats.seeds = 1;
    world.stats.virtual_ns = world.now;
    Outcome {
        seed,
        violation,
        stats: world.stats,
        trace: world.trace,
    }
}

/// An assertion of a core is named by the invariant it begins with.
fn assertion() -> Violation {
    let text = PANIC
        .with(|kept| kept.borrow_mut().take())
        .unwrap_or_else(|| "a panic".to_owned());
    let name = text.split(':').next().unwrap_or_default();
    let is_name = name.contains('-') && !name.contains(' ') && name.starts_with(char::is_uppercase);
    Violation::new(if is_name { name } else { "Assertion" }, text.clone())
}
