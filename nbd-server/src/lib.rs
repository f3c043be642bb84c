//! Block-device front ends of kagami: the NBD protocol and its server.
//!
//! The crate knows a [`BlockDevice`], not the replication engine: whoever implements that trait is
//! served to NBD clients over Unix sockets, TCP and TLS (`docs/nbd.md` says what is supported).
//!
//! It runs on one thread: futures are `!Send` and tasks are started with
//! [`tokio::task::spawn_local`], so the caller must be inside a `LocalSet` (or a runtime that is
//! one, as `tokio_uring::start`).

pub mod device;

pub use device::{
    Answer, BlockDevice, Completion, CompletionSink, DeviceInfo, DirtyExtent, Errno, Extent,
    IoError, Opening, ReadData, ReadPart, Refusal, RefusalKind, Request, WriteBuffer,
};
