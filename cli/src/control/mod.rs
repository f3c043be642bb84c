//! The control channel: how commands reach the daemon, over a Unix socket with permissions.
//!
//! [`message`] is what is said, [`frame`] how it is framed, [`report`] the state as JSON with a
//! schema of its own, [`client`] the side of the commands. The daemon's side is
//! [`crate::daemon::server`].

pub mod client;
pub mod condition;
pub mod frame;
pub mod message;
pub mod report;
