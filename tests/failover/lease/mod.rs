//! The simulator of leases: two nodes that want to run a group without a mirror, their disks, guards
//! and clocks, the channel between their managers, and a register at an arbiter, from one seed.
//!
//! [`world`] runs them, [`nodes`] is what a node's shell, guard and core would do, `check` what is looked
//! at. docs/failover-design.md names the invariants.

mod check;
mod nodes;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Outcome;
use super::check::Violation;
use super::stats::Stats;
use world::World;

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
    Outcome {
        seed,
        violation,
        stats: Stats {
            seeds: 1,
            steps: world.steps,
            ms: world.now,
            faults: world.faults,
            grants: world.grants,
            losses: world.losses,
            ..Stats::default()
        },
        trace: world.trace.unwrap_or_default(),
    }
}
