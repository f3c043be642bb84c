//! The first seeds of the simulator as a test: what each mutant has to survive (`./do mutants`).
//!
//! `KAGAMI_SEEDS` says how many; without it a few, since an unoptimised build runs them slowly and
//! `./do sim` runs thousands.

use kagami_tests::sim::replay::Trace;
use kagami_tests::sim::{catch_assertions, run_seed};

#[test]
fn the_first_seeds_hold() {
    let seeds = std::env::var("KAGAMI_SEEDS").map_or(20, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("KAGAMI_SEEDS={text} is no number"))
    });
    catch_assertions();
    let found = (0..seeds).find_map(|seed| {
        let outcome = run_seed(seed, Trace::off());
        outcome.violation.map(|violation| (seed, violation))
    });
    // The hook above keeps the words of a panic to itself.
    if let Some((seed, violation)) = &found {
        println!("seed {seed}: {violation}");
    }
    assert!(found.is_none());
}
