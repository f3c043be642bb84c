//! The witness: an arbiter of kagami's own, the same binary on a third machine (docs/arbiter.md).
//!
//! It keeps a register for each mirror or group and changes it by compare-and-swap. What the content
//! means is the askers' business ([`crate::shell::arbiter::register`]); the witness compares (instance,
//! seq), and makes every change durable before it answers.
//!
//! [`wire`] is what is said, pure; [`store`] the registers on disk; [`Server`] the listener; [`Client`]
//! a register as its askers see it; [`enrol`] makes a node known to a witness.

mod client;
mod clients;
pub mod enrol;
mod server;
pub mod store;
pub mod wire;

pub use client::{Client, ClientConfig, ClientError, Remote};
pub use server::{Server, ServerConfig, ServerError};

pub use crate::shell::arbiter::raw::RegisterId;

/// The protocol's names in the TLS handshake (ALPN), the newest first. Version 2 can bind a register
/// to other keys, and let a key take another's place.
pub const PROTOCOLS: [&[u8]; 2] = [b"kagami-witness/2", PROTOCOL_1];
/// Version 1: registers are read and swapped.
pub const PROTOCOL_1: &[u8] = b"kagami-witness/1";

fn protocols() -> Vec<Vec<u8>> {
    PROTOCOLS.iter().map(|name| name.to_vec()).collect()
}
