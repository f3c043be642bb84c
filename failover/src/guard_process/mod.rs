//! The guard, a small process beside the manager and the mirrors' daemon: what happens at the end of
//! a lease happens whoever else has died.
//!
//! The manager starts it and tells it by a Unix socket ([`message`], [`client`]) which groups to
//! watch; it hears the mirrors' daemon itself, and outlives the manager. [`server`] hosts a
//! [`crate::core::guard::Guard`] for each group; [`deeds`] freezes, drops addresses, and holds the
//! watchdog: for as long as a group is watched it is fed, so a guard that has died or hangs resets
//! the node. It waits for no disk: what it says goes through [`log`].

pub mod client;
pub mod deeds;
pub mod log;
pub mod message;
pub mod server;

#[cfg(test)]
mod tests;
