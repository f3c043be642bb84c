//! Every decoder of kagami, fed with anything.
//!
//! A target takes bytes, makes of them what a stranger, a peer, a client, a disk or a person could
//! hand in, and asserts more than that nothing panics: what was understood is spelled the same
//! again, what is announced is bounded before it is believed, marks are never lost. The fuzzer
//! (`./do fuzz`, tests/fuzz) searches for inputs with coverage guidance; what it found is kept, and
//! `tests/replay.rs` runs it with every test, on the stable compiler (docs/fuzzing.md).

pub mod config;
pub mod control;
pub mod etcd;
pub mod input;
pub mod link;
pub mod metadata;
pub mod nbd;
pub mod pairing;
pub mod peer;
pub mod witness;

/// A target: its name, as in tests/fuzz/corpus, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("nbd_options", nbd::options),
    ("nbd_requests", nbd::requests),
    ("link_frames", link::frames),
    ("link_messages", link::messages),
    ("link_openings", link::openings),
    ("superblock", metadata::superblock),
    ("activity_log", metadata::activity_log),
    ("metadata_image", metadata::image),
    ("foreign", metadata::foreign),
    ("config", config::text),
    ("control", control::messages),
    ("witness", witness::messages),
    ("etcd_value", etcd::value),
    ("pairing", pairing::messages),
    ("hostile_core", peer::hostile),
];
