//! Pairing: two nodes that never met come to know each other's keys, by one pasted line.
//!
//! One side makes an [`Offering`]: it prints a [`Token`] and waits. The other joins with the token
//! ([`Joining`]). The token names the offering side's key, so the joining one talks to nobody else; the
//! joining side proves that it knows the token's secret, bound to both keys and to this very TLS session,
//! so the proof is worth nothing to anybody in between. Then both tell their [`facts`], and each side
//! keeps what it learned only after the other has said yes (docs/pairing.md).
//!
//! [`token`] and [`proof`] and [`facts`] are pure; [`meeting`] is the conversation, and serves a node
//! that joins a mirror as well as one that enrols at a witness. Configuration and stores are the
//! caller's business: everything here gives and takes plain data.

mod error;
pub mod facts;
mod meeting;
mod message;
mod proof;
pub mod token;

pub use error::PairError;
pub use meeting::{DEFAULT_VALID, Joining, Met, Offering, Terms};
pub use token::{Purpose, Token, TokenError};

/// A message of a meeting, read and spelled again, kind and length first: for the tests that feed it
/// anything (tests/decoders). `None`: refused.
pub fn respell_message(kind: u8, body: &[u8]) -> Option<Vec<u8>> {
    Some(message::Message::decode(kind, body).ok()?.encode())
}

/// A token's content, likewise.
pub fn respell_token_body(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(Token::decode(Purpose::Mirror, bytes).ok()?.encode())
}

/// The protocol's name in the TLS handshake (ALPN).
pub const PROTOCOL: &[u8] = b"kagami-pair/1";
