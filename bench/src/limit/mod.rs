//! The limit: what kagami's own parts do without a mirror around them.
//!
//! The bare disk through the shell's ring, the bare link through the shell's QUIC, the NBD front end
//! over a device that does nothing. A replicated write can't be faster than
//! `front end + max(local write, round trip + remote write)`.

pub mod disk;
pub mod front_end;
pub mod link;
