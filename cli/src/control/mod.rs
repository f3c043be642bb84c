//! The control channel: how commands reach the daemon, over a Unix socket with permissions.
//!
//! [`message`] is what is said, [`driver`] its words for a mirror's device, [`frame`] how it is framed,
//! [`report`] the state as JSON with a schema of its own, [`condition`] what that comes to for people,
//! [`client`] the side of the commands. The daemon's side is [`crate::daemon::server`].

pub mod client;
pub mod condition;
pub mod driver;
pub mod frame;
pub mod message;
pub mod report;
