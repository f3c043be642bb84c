//! What opens connections and streams, read and spelled again: for the tests that feed it anything
//! (tests/decoders). `None`: refused.

use super::note::Note;
use super::opening::{Hello, PREAMBLE_LEN, Preamble};

/// A hello.
pub fn hello(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(Hello::decode(bytes).ok()?.encode())
}

/// A preamble on a connection of this version.
pub fn preamble(bytes: &[u8], agreed: u16) -> Option<Vec<u8>> {
    let bytes: &[u8; PREAMBLE_LEN] = bytes.try_into().ok()?;
    Some(Preamble::decode(bytes, agreed).ok()?.encode().into())
}

/// A note on a connection of this version.
pub fn note(bytes: &[u8], agreed: u16) -> Option<Vec<u8>> {
    Some(Note::decode(bytes, agreed).ok()?.encode(agreed))
}
