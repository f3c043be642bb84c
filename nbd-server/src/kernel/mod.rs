//! Kernel attach: a mirror as `/dev/nbdN`, by the kernel's own NBD client.
//!
//! The kernel is given one end of a socket pair over generic netlink ([`Nbd`]); the other end is
//! served like any client past its handshake ([`crate::Server::adopt`]). How a device is set up is
//! what was found safe for a daemon that may die under a mounted file system:
//!
//! - **One connection, `TIMEOUT` 0, a dead-connection time-out of days** ([`Connect`]): a request is
//!   held as long as it takes, never failed.
//! - **`queue/io_timeout` of one second** ([`sysfs`]): with the former it fails nothing, but makes
//!   the kernel send again within a second what a dead connection had taken.
//! - **A backend identifier**: only who knows it can hand a new socket to the device.
//!
//! [`wire`] is the netlink encoding and pure, [`message`] the nbd family's commands and pure, [`client`]
//! asks the kernel and names its refusals, [`socket`] moves the bytes, [`sysfs`] is what the kernel
//! shows and lets be set about a device, [`holders`] who uses it. Nothing here opens a device: an
//! open can wait for an answer that only this process can give.

pub mod client;
pub mod holders;
pub mod message;
pub mod socket;
pub mod sysfs;
pub mod wire;

pub use client::{KernelFault, Nbd, Transport};
pub use message::{Connect, DeviceState, Reconfigure};
pub use socket::{Events, NetlinkSocket};
pub use sysfs::Sysfs;
