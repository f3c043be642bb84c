//! Defects are planted one at a time, and each has to be caught.

use anstream::{eprintln, println};
use kagami_failover::planted::Defect;

use super::{lease, run_seed};

#[cfg(planted)]
fn plant(defect: Option<Defect>) {
    kagami_failover::planted::plant(defect);
}

#[cfg(not(planted))]
fn plant(_: Option<Defect>) {}

/// Plants each defect and tells what caught it. Exit status: 0 all were caught, 1 some were not,
/// 2 there is nothing to plant.
pub fn run(only: Option<&str>, seeds: u64) -> u8 {
    if !cfg!(planted) {
        eprintln!("this build has no defects to plant: use `./do planted`");
        return 2;
    }
    let mut missed = 0;
    for defect in Defect::ALL {
        if only.is_some_and(|only| !defect.name().contains(only)) {
            continue;
        }
        plant(Some(*defect));
        let caught = (0..seeds).find_map(|seed| {
            let violation = run_seed(seed, false).violation;
            let violation = violation.or_else(|| lease::run_seed(seed, false).violation)?;
            Some((seed, violation))
        });
        plant(None);
        let (name, what) = (defect.name(), defect.what());
        if let Some((seed, violation)) = caught {
            println!(
                "{name:<22} {:<20} {:>5} seeds: {what}",
                violation.invariant,
                seed + 1
            );
        } else {
            missed += 1;
            println!("{name:<22} NOT CAUGHT in {seeds} seeds: {what}");
        }
    }
    u8::from(missed > 0)
}
