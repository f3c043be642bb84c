//! The replication engine of kagami: one mirror on one node.
//!
//! [`core`] is a pure state machine that makes every decision (docs/design.md §3, docs/protocol.md);
//! [`wire`] is the encoding of what it says to the peer; [`shell`] gives it disks, a link, metadata
//! and time, and holds no policy.

pub mod core;
pub mod shell;
pub mod wire;
