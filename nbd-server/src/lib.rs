//! Block-device front ends of kagami: the NBD protocol and its server.
//!
//! The crate knows a [`BlockDevice`], not the replication engine: whoever implements that trait is
//! served to NBD clients over Unix sockets, TCP and TLS (`docs/nbd.md` says what is supported).
//!
//! What looks at a client's bytes is pure: [`option`] and [`negotiate`] for the handshake,
//! [`meta_context`] for its contexts, [`request`] and [`reply`] for the transmission phase. The
//! rest moves bytes: `handshake`, `session` and `outbox` for a connection, [`server`] for all.
//!
//! It runs on one thread: futures are `!Send` and tasks are started with
//! [`tokio::task::spawn_local`], so the caller must be inside a `LocalSet` or a
//! tokio `LocalRuntime`.

mod connection;
mod control;
pub mod device;
pub mod error;
pub mod export;
mod handshake;
pub mod kernel;
pub mod limits;
pub mod listener;
pub mod memory;
pub mod meta_context;
pub mod negotiate;
pub mod null;
pub mod option;
mod option_reply;
mod outbox;
pub mod proto;
pub mod reply;
pub mod request;
pub mod server;
mod session;
pub mod tls;
pub mod ublk;

pub use control::SessionHandle;
pub use device::{
    Access, Answer, BlockDevice, Completion, CompletionSink, DeviceInfo, DirtyExtent, Errno,
    Extent, IoError, ReadData, ReadPart, Refusal, RefusalKind, Request, WriteBuffer,
};
pub use export::{Export, ExportFault, Exports};
pub use limits::Limits;
pub use listener::{ListenFault, Listener};
pub use memory::MemoryDevice;
pub use null::NullDevice;
pub use server::{AdoptFault, ClientSocket, ListenerHandle, Server};
pub use tls::{Clients, Fingerprint, TlsFault, TlsFiles, TlsPolicy, TlsServer};
