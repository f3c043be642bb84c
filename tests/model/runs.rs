//! The runs that are made: which bounds, how far, and in which profile.

use super::bounds::Bounds;

/// A run of a list.
#[derive(Clone, Copy)]
pub struct Run {
    /// What it is about.
    pub about: &'static str,
    /// Its bounds, as a person would write them.
    pub bounds: &'static str,
    /// Most states: a run that has more is cut, and says so.
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
    run("crash, link", "drops=2", M),
    run("writes, link", "writes=2 crashes=0 drops=2", M),
    run("two blocks", "blocks=2 writes=2 crashes=0", M),
    run("disk failure", "disk_failures=1", M),
    run("death of a daemon", "fine=1 deaths=1 crashes=0", M),
    run("solo never", "mode=never writes=2", M),
    run("messages", "messages=1 crashes=0", M),
    run("serving target", "served_target=1", M),
    run("guest", "guest=1", M),
    run("first synchronisation", "first=zeroed", M),
    run("hanging disk", "late=1 crashes=0 drops=2", M),
    run(
        "another arbiter",
        "replace_arbiter=1 attempts=2 crashes=0",
        M,
    ),
];

/// What `./do model` runs: under ten minutes.
pub const FULL: &[Run] = &[
    run("messages", "messages=1", 2 * M),
    run("wiped register", "drops=1 attempts=2 wipes=1", 2 * M),
    run("two writes", "writes=2", 2 * M),
    run(
        "serving target",
        "served_target=1 drops=2 writes=2 promotions=2",
        3 * M,
    ),
    run("guest", "guest=1", M),
    run("guest, link", "guest=1 writes=2 crashes=0 drops=2", M),
    run("guest, death of a daemon", "guest=1 deaths=1 crashes=0", M),
    run("guest, never", "mode=never guest=1 writes=2 crashes=0", M),
    run(
        "guest, two blocks",
        "guest=1 blocks=2 writes=2 promotions=2 crashes=0",
        M,
    ),
    run(
        "messages, guest",
        "messages=1 guest=1 promotions=3 crashes=0",
        M,
    ),
    run("solo always", "mode=always writes=2", 2 * M),
    run("crash, link", "drops=2", M),
    run("two crashes", "crashes=2", M),
    run("clean leave", "leave=1", M),
    run("force", "force=1", M),
    run("disk failure", "disk_failures=1", M),
    run(
        "disk failure, never",
        "mode=never writes=2 disk_failures=1",
        M,
    ),
    run("death of a daemon", "deaths=1", M),
    run("fine steps", "fine=1", M),
    run("two blocks", "blocks=2 writes=2 crashes=0", M),
    run("solo never", "mode=never writes=2 drops=2", M),
    run("messages, never", "mode=never messages=1 drops=2", M),
    run("messages, first", "messages=1 first=zeroed", M),
    run(
        "messages, target serves",
        "messages=1 served_target=1 promotions=3 crashes=0",
        2 * M,
    ),
    run("first synchronisation", "first=zeroed drops=2", M),
    run("first copy kept", "first=keep drops=2", M),
    run("hanging disk", "late=1 drops=2", M),
    run("another node", "replace_node=1 drops=2", M),
    run(
        "another node, never",
        "mode=never replace_node=1 drops=2",
        M,
    ),
    run(
        "another arbiter",
        "replace_arbiter=1 attempts=2 crashes=0",
        M,
    ),
    run(
        "serving target, failing disk",
        "served_target=1 disk_failures=1",
        2 * M,
    ),
    run(
        "serving target, never",
        "mode=never served_target=1 writes=2",
        2 * M,
    ),
    run(
        "serving target, two blocks",
        "served_target=1 blocks=2 writes=2 promotions=2 crashes=0",
        2 * M,
    ),
];

/// Larger ones: hours of two cores, and up to 3 GiB each.
pub const LONG: &[Run] = &[
    run(
        "two writes, two attempts",
        "writes=2 drops=2 attempts=2",
        60 * M,
    ),
    run("three attempts", "drops=2 attempts=3", 60 * M),
    run(
        "serving target",
        "served_target=1 drops=2 writes=2 promotions=3",
        60 * M,
    ),
    run(
        "serving target, blocks",
        "served_target=1 blocks=2 writes=2 promotions=2",
        60 * M,
    ),
    run("messages", "messages=1 writes=2 drops=2 attempts=2", 60 * M),
    run(
        "two blocks, two crashes",
        "blocks=2 writes=2 crashes=2 drops=2",
        60 * M,
    ),
];
