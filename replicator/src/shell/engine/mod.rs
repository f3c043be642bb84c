//! The engine: mirrors on data-plane threads, with their disks, their link and their arbiters.
//!
//! [`Engine`] is what a daemon holds: it starts the threads, adds mirrors, passes commands on, tells the
//! state and what happens. Each thread runs one loop ([`plane`]) over its mirrors ([`host`]); front ends
//! live on the thread of their mirror ([`Engine::spawn_on`]) and see a [`MirrorDevice`].
//!
//! Policy is the core's. What is decided here: which thread carries what, in which order events that
//! arrive together are taken, and what is refused before a core exists ([`start`]).

mod config;
mod device;
mod handle;
mod holes;
mod host;
mod latency;
mod offline;
mod plane;
mod process;
mod start;
mod status;

pub use config::{ArbiterConfig, DEFAULT_BUFFERS, DEFAULT_FENCE_WAIT, EngineConfig, MirrorConfig};
pub use device::{DeviceFacts, MirrorDevice, Payload, Requester, Stretch};
pub use handle::{END_PATIENCE, Engine, EngineError};
pub use latency::Latencies;
pub use offline::OfflineCopy;
pub use plane::Plane;
pub use process::prepare_process;
pub use start::StartError;
pub use status::{MirrorEvent, MirrorStatus, PeerEvent, PeerWord};
