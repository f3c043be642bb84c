//! The limit: what kagami's own parts do without a mirror around them.
//!
//! The bare disk through the shell's ring, the bare link through the shell's QUIC, the NBD front end
//! over a device that does nothing, checksums and encryption by themselves. What they come to together is
//! in [`Parts`].

pub mod crypto;
pub mod disk;
pub mod front_end;
pub mod link;
mod parts;

use std::future::Future;

use kagami_replicator::shell::patience::DEFAULT_BUSY_POLL;
use kagami_replicator::shell::runtime;

pub use parts::{DISK, FRONT_END, LINK, Parts, processor};

/// Runs a part as a daemon's thread runs: one that looks before it sleeps, and is told what it
/// [waits for](runtime::has_worked).
fn run_part<F: Future>(part: F) -> F::Output {
    runtime::start(async {
        runtime::look_before_sleeping(DEFAULT_BUSY_POLL);
        part.await
    })
}
