//! The simulator of the failover manager: two managers, their machines, mirrors, heartbeats and an
//! arbiter, from one seed.
//!
//! A seed draws a configuration and what breaks (`options`); `mirror` is what the managers stand
//! on, an abstract one that keeps the promises of docs/protocol.md; `world` runs it, `check` and `states` look
//! at both nodes from outside and counts for itself. docs/failover-design.md names the invariants.
//! [`lease`] is a simulator of its own, of the right to run a group without a mirror.

use std::panic::{AssertUnwindSafe, catch_unwind};

mod calm;
pub mod check;
mod faults;
pub mod lease;
mod machine;
mod mirror;
mod options;
pub mod planted;
mod states;
pub mod stats;
mod world;

use check::Violation;
use stats::Stats;
use world::World;

/// What became of a seed.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    pub violation: Option<Violation>,
    pub stats: Stats,
    pub trace: Vec<String>,
}

/// Runs a seed to its end.
pub fn run_seed(seed: u64, trace: bool) -> Outcome {
    let mut world = World::new(seed, trace);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match ended {
        Ok(checked) => checked.err(),
        Err(panic) => {
            let text = (panic.downcast_ref::<String>().cloned())
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let text = text.unwrap_or_else(|| "a panic".to_owned());
            Some(Violation::new("Assertion", text))
        }
    };
    world.stats.seeds = 1;
    world.stats.ms = world.now;
    Outcome {
        seed,
        violation,
        stats: world.stats,
        trace: world.trace.unwrap_or_default(),
    }
}
