//! The runs that are made: which bounds, how far, and in which profile.

use super::bounds::Bounds;

/// A run of a list.
#[derive(Clone, Copy)]
pub struct Run {
    /// What it is about.
    pub about: &'static str,
    /// Its bounds, as a person would write them.
    pub bounds: &'static str,
    /// Most states.
    pub most: usize,
}

const fn run(about: &'static str, bounds: &'static str, most: usize) -> Run {
    Run {
        about,
        bounds,
        most,
    }
}

impl Run {
    /// The bounds.
    pub fn parsed(&self) -> Bounds {
        Bounds::of(self.bounds)
    }
}

const M: usize = 1_000_000;

/// The quick profile: what `./do test` runs.
pub const QUICK: &[Run] = &[
    run("a crash and a cut", "drops=2", 2 * M),
];

/// All that `./do model` runs.
pub const FULL: &[Run] = &[
    run("a crash and a cut", "drops=2", 2 * M),
];
