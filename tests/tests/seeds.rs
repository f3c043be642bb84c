//! The first seeds of the simulator as a test: what each mutant has to survive (`./do mutants`).
//!
//! `KAGAMI_SEEDS` says how many; without it a few, since an unoptimised build runs them slowly and
//! `./do sim` runs thousands.

use kagami_tests::sim::profile::Profile;
use kagami_tests::sim::replay::Trace;
use kagami_tests::sim::{catch_assertions, run_profile};

#[test]
fn the_first_seeds_hold() {
    let seeds = std::env::var("KAGAMI_SEEDS").map_or(20, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("KAGAMI_SEEDS={text} is no number"))
    });
    catch_assertions();
    let found = (0..seeds).find_map(|seed| {
        let outcome = run_profile(Profile::General, seed, Trace::off());
        outcome.violation.map(|violation| (seed, violation))
    });
    // The hook above keeps the words of a panic to itself.
    if let Some((seed, violation)) = &found {
        println!("seed {seed}: {violation}");
    }
    assert!(found.is_none());
}

#[test]
fn the_first_seeds_of_the_failover_manager_hold() {
    let found = (0..300).find_map(|seed| {
        let violation = kagami_tests::failover::run_seed(seed, false).violation?;
        Some((seed, violation))
    });
    if let Some((seed, violation)) = &found {
        println!("seed {seed}: {violation}");
    }
    assert!(found.is_none());
}

/// Seeds that once showed a defect of the failover manager.
const MANAGER_ONCE_BROKEN: &[(u64, &str)] = &[
    (
        35_374,
        "a node took a group back from one that it had just begun to hear again, which was about to run it",
    ),
    (
        25_145,
        "a manager ended before it had recorded what follows from a meeting, and nobody started a group",
    ),
    (
        56_015,
        "a heartbeat that was on its way when its node was fenced was believed, and what was started was stopped",
    ),
];

#[test]
fn what_was_broken_once_in_the_failover_manager_holds() {
    for (seed, what) in MANAGER_ONCE_BROKEN {
        let violation = kagami_tests::failover::run_seed(*seed, false).violation;
        if let Some(violation) = &violation {
            println!("{seed} ({what}): {violation}");
        }
        assert!(violation.is_none());
    }
}

/// Seeds that once showed a defect of the daemon.
const ONCE_BROKEN: &[(Profile, u64, &str)] = &[
    (
        Profile::Invalidated,
        2,
        "a copy was invalidated while its resynchronisation ended, which took the word back",
    ),
    (
        Profile::EarlyAnswers,
        150,
        "a resynchronisation never ended: each look at the arbiter met another, by the clock",
    ),
    (
        Profile::BadBlocks,
        258,
        "a guest refused a block that it could not read, which its source had, when it had adopted",
    ),
    (
        Profile::BadBlocks,
        300,
        "a source refused a block that it could not read, and its target had adopted all of it",
    ),
];

#[test]
fn what_was_broken_once_holds() {
    catch_assertions();
    for (profile, seed, what) in ONCE_BROKEN {
        let violation = run_profile(*profile, *seed, Trace::off()).violation;
        if let Some(violation) = &violation {
            println!("{} {seed} ({what}): {violation}", profile.name());
        }
        assert!(violation.is_none());
    }
}
