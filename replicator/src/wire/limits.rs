//! The bounds of what a peer may send, checked before anything is allocated for it.
//!
//! Both ends must agree on them: they are part of the protocol (docs/wire-protocol.md), and a change
//! needs a new protocol version.

/// Bytes of a frame's fixed header.
pub const HEADER_LEN: usize = 32;

/// The unit of payload checksums, in bytes: one block (docs/design.md §1).
pub const CHECKSUM_BLOCK: usize = kagami_bitmap::BLOCK as usize;

/// The most bytes a frame's head may have. The largest head is a run list of marks.
pub const MAX_HEAD: usize = 256 * 1024;

/// The most bytes a frame's payload may have: 1 MiB, and a block more for a request of 1 MiB that
/// starts between two blocks and was completed to whole ones.
pub const MAX_PAYLOAD: usize = 1024 * 1024 + CHECKSUM_BLOCK;

/// Payload checksums that a frame can carry at most.
pub const MAX_CHECKSUMS: usize = MAX_PAYLOAD.div_ceil(CHECKSUM_BLOCK);

/// Bytes of text that go with a reason for closing; longer ones are cut.
pub const MAX_REASON: usize = 1024;
