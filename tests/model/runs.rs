//! The runs that are made: which bounds, how far, and in which profile.

use super::bounds::Bounds;
use super::search::Found;

/// A run of a list.
#[derive(Clone, Copy)]
pub struct Run {
    /// What it is about.
    pub about: &'static str,
    /// Its bounds, as a person would write them.
    pub bounds: &'static str,
    /// Most states: a run that has more is cut, and says so.
    pub most: usize,
    /// States that it had when it was last looked at; [`Run::most`] where it is known to be cut, 0 where nobody has run it.
    pub had: usize,
}

const fn run(about: &'static str, bounds: &'static str, most: usize, had: usize) -> Run {
    Run {
        about,
        bounds,
        most,
        had: if had < most { had } else { most },
    }
}

/// It was cut at its most.
const CUT: usize = usize::MAX;
/// Nobody has run it to its end.
const UNKNOWN: usize = 0;

impl Run {
    /// The bounds.
    pub fn parsed(&self) -> Bounds {
        Bounds::of(self.bounds)
    }

    /// What is wrong with a search that found no violation: it is much smaller than it was, as one in which a
    /// step can't be taken any more, or it does not end any more.
    ///
    /// # Errors
    ///
    /// In words.
    pub fn went_far_enough(&self, found: &Found) -> Result<(), String> {
        if !found.complete && 0 < self.had && self.had < self.most {
            return Err(format!(
                "cut at {} states; it was complete at {}: give it more (tests/model/runs.rs)",
                found.states, self.had
            ));
        }
        // A rule that changed may well take some with it; a step that is gone takes more.
        if found.states < self.had / 10 * 9 {
            return Err(format!(
                "{} states, and it had {}: is there a step that can't be taken any more? Where it is meant, write it into \
                 tests/model/runs.rs and docs/model.md",
                found.states, self.had
            ));
        }
        Ok(())
    }
}

const M: usize = 1_000_000;

/// The quick profile: what `./do test` runs.
pub const QUICK: &[Run] = &[
    run("crash, link", "drops=2", M, 460_915),
    run("writes, link", "writes=2 crashes=0 drops=2", M, 282_994),
    run("two blocks", "blocks=2 writes=2 crashes=0", M, 272_730),
    run("disk failure", "disk_failures=1", M, 359_011),
    run("death of a daemon", "fine=1 deaths=1 crashes=0", M, 87_426),
    run("solo never", "mode=never writes=2", M, 168_415),
    run("messages", "messages=1 crashes=0", M, 14_313),
    run("serving target", "served_target=1", M, 473_129),
    run("guest", "guest=1", M, 605_905),
    run("first synchronisation", "first=zeroed", M, 108_552),
    run("hanging disk", "late=1 crashes=0 drops=2", M, 29_942),
    run(
        "another arbiter",
        "replace_arbiter=1 attempts=2 crashes=0",
        M,
        59_578,
    ),
];

/// What `./do model` runs: under ten minutes.
pub const FULL: &[Run] = &[
    run("messages", "messages=1", 2 * M, 431_941),
    run(
        "wiped register",
        "drops=1 attempts=2 wipes=1",
        2 * M,
        1_919_864,
    ),
    run("two writes", "writes=2", 2 * M, 1_388_366),
    run(
        "serving target",
        "served_target=1 drops=2 writes=2 promotions=2",
        3 * M,
        CUT,
    ),
    run("guest", "guest=1", M, 605_905),
    run("guest, link", "guest=1 writes=2 crashes=0 drops=2", M, CUT),
    run(
        "guest, death of a daemon",
        "guest=1 deaths=1 crashes=0",
        M,
        259_211,
    ),
    run(
        "guest, never",
        "mode=never guest=1 writes=2 crashes=0",
        M,
        13_310,
    ),
    run(
        "guest, two blocks",
        "guest=1 blocks=2 writes=2 promotions=2 crashes=0",
        M,
        CUT,
    ),
    run(
        "messages, guest",
        "messages=1 guest=1 promotions=3 crashes=0",
        M,
        112_446,
    ),
    run("solo always", "mode=always writes=2", 2 * M, 1_936_395),
    run("crash, link", "drops=2", M, 460_915),
    run("two crashes", "crashes=2", M, 735_766),
    run("clean leave", "leave=1", M, 905_262),
    run("force", "force=1", 2 * M, 1_064_350),
    run("disk failure", "disk_failures=1", M, 359_011),
    run(
        "disk failure, never",
        "mode=never writes=2 disk_failures=1",
        M,
        618_705,
    ),
    run("death of a daemon", "deaths=1", 2 * M, 1_114_463),
    run("fine steps", "fine=1", M, 154_006),
    run("two blocks", "blocks=2 writes=2 crashes=0", M, 272_730),
    run("solo never", "mode=never writes=2 drops=2", M, 620_932),
    run(
        "messages, never",
        "mode=never messages=1 drops=2",
        M,
        159_133,
    ),
    run("messages, first", "messages=1 first=zeroed", M, 326_800),
    run(
        "messages, target serves",
        "messages=1 served_target=1 promotions=3 crashes=0",
        2 * M,
        122_073,
    ),
    run("first synchronisation", "first=zeroed drops=2", M, 243_219),
    run("first copy kept", "first=keep drops=2", M, 464_223),
    run("hanging disk", "late=1 drops=2", M, 483_515),
    run("another node", "replace_node=1 drops=2", M, 729_135),
    run(
        "another node, never",
        "mode=never replace_node=1 drops=2",
        M,
        273_209,
    ),
    run(
        "another arbiter",
        "replace_arbiter=1 attempts=2 crashes=0",
        M,
        59_578,
    ),
    run(
        "serving target, failing disk",
        "served_target=1 disk_failures=1",
        2 * M,
        1_535_018,
    ),
    run(
        "serving target, never",
        "mode=never served_target=1 writes=2",
        2 * M,
        652_267,
    ),
    run(
        "serving target, two blocks",
        "served_target=1 blocks=2 writes=2 promotions=2 crashes=0",
        2 * M,
        1_183_701,
    ),
];

/// Larger ones: hours of two cores, and up to 3 GiB each.
pub const LONG: &[Run] = &[
    run(
        "two writes, two attempts",
        "writes=2 drops=2 attempts=2",
        60 * M,
        UNKNOWN,
    ),
    run("three attempts", "drops=2 attempts=3", 60 * M, UNKNOWN),
    run(
        "serving target",
        "served_target=1 drops=2 writes=2 promotions=3",
        60 * M,
        UNKNOWN,
    ),
    run(
        "serving target, blocks",
        "served_target=1 blocks=2 writes=2 promotions=2",
        60 * M,
        UNKNOWN,
    ),
    run(
        "messages",
        "messages=1 writes=2 drops=2 attempts=2",
        60 * M,
        UNKNOWN,
    ),
    run(
        "two blocks, two crashes",
        "blocks=2 writes=2 crashes=2 drops=2",
        60 * M,
        UNKNOWN,
    ),
];
