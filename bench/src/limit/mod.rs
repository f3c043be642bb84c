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

pub use parts::{DISK, FRONT_END, LINK, Parts, processor};
