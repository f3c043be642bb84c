//! Block devices of the kernel through ublk: `/dev/ublkbN`, served over an `io_uring`.
//!
//! A device is made, started, stopped and taken over by [`control`]; its requests arrive at [`queues`]; [`session`]
//! carries them to a [`BlockDevice`](crate::BlockDevice) and commits what that answers. [`abi`] is the kernel's
//! interface in bytes, and [`endpoint`] what a session needs of the queues, so that it is tried without a kernel.
//!
//! Where this follows from and what the kernel does when a daemon dies: docs/decisions/0012-ublk.md.

pub mod abi;
pub mod control;
pub mod endpoint;
pub mod fault;
pub mod queues;
pub mod session;
pub mod stand_in;

pub use endpoint::{Endpoint, Shape, Tag};
pub use fault::UblkFault;
pub use queues::{OpenFault, Queues};
pub use session::{Go, SessionEnd};
