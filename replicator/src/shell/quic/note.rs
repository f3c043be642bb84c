//! Notes between two nodes, beside their mirrors' sessions: from protocol version 2 on.
//!
//! ```text
//! a note, the whole of one unidirectional stream, any time after the hellos:
//!   0       4         6      7   8             40         42         44          44+n     48+n
//!   | magic | version | kind | 0 | fingerprint | n, u16   | reserved | text: n   | crc32c |
//! ```
//!
//! Little-endian; the checksum covers all before it. Kinds: 1, the sender is about to show the key of
//! this fingerprint; 2, the receiver of that has pinned it, durably; 3, it has not, and why. A note
//! has no answer of its own and may be repeated. On a connection of version 1 there are none.

use std::rc::Rc;

use bytes::{Buf, BufMut};
use tokio::time::timeout;

use super::Inner;
use super::connection::Conn;
use super::event::{LinkEvent, PeerFault};
use super::opening::{OpeningFault, cut};
use crate::shell::fields::shown;
use crate::shell::identity::Fingerprint;
use crate::wire::limits::MAX_REASON;

/// The protocol version from which on notes are understood.
pub const NOTES_SINCE: u16 = 2;

/// The first four bytes of a note: "KGMN".
const MAGIC: u32 = u32::from_le_bytes(*b"KGMN");
const FIXED: usize = 44;
/// Bytes of the longest note.
pub(super) const MAX_NOTE: usize = FIXED + MAX_REASON + 4;

/// What one node tells the other about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The sender will show the key of this fingerprint instead of its present one: pin both.
    NextKey(Fingerprint),
    /// That key of the receiver's is pinned here, durably.
    Pinned(Fingerprint),
    /// It is not, and why.
    NotPinned(Fingerprint, String),
}

impl Note {
    pub(super) fn encode(&self, version: u16) -> Vec<u8> {
        let (kind, key, text) = match self {
            Self::NextKey(key) => (1, key, ""),
            Self::Pinned(key) => (2, key, ""),
            Self::NotPinned(key, why) => (3, key, cut(why)),
        };
        let mut out = Vec::with_capacity(FIXED + text.len() + 4);
        out.put_u32_le(MAGIC);
        out.put_u16_le(version);
        out.put_u8(kind);
        out.put_u8(0);
        out.put_slice(key.as_bytes());
        out.put_u16_le(text.len() as u16);
        out.put_u16_le(0);
        out.put_slice(text.as_bytes());
        out.put_u32_le(crc32c::crc32c(&out));
        out
    }

    pub(super) fn decode(bytes: &[u8], agreed: u16) -> Result<Self, OpeningFault> {
        const WHAT: &str = "note";
        let wrong_length = || OpeningFault::Length(WHAT, bytes.len());
        if bytes.len() < FIXED + 4 || bytes.len() > MAX_NOTE {
            return Err(wrong_length());
        }
        let (mut body, mut sum) = bytes.split_at(bytes.len() - 4);
        let computed = crc32c::crc32c(body);
        let magic = body.get_u32_le();
        if magic != MAGIC {
            return Err(OpeningFault::Magic(WHAT, magic));
        }
        if sum.get_u32_le() != computed {
            return Err(OpeningFault::Checksum(WHAT));
        }
        let found = body.get_u16_le();
        if found != agreed {
            return Err(OpeningFault::Version { found, agreed });
        }
        let kind = body.get_u8();
        let zero = body.get_u8();
        let mut hash = [0; 32];
        body.copy_to_slice(&mut hash);
        let key = Fingerprint::from_bytes(hash);
        let len = usize::from(body.get_u16_le());
        let reserved = body.get_u16_le();
        if zero != 0 || reserved != 0 {
            return Err(OpeningFault::Reserved(WHAT));
        }
        if body.len() != len || (kind != 3 && len != 0) {
            return Err(wrong_length());
        }
        match kind {
            1 => Ok(Self::NextKey(key)),
            2 => Ok(Self::Pinned(key)),
            3 => Ok(Self::NotPinned(key, shown(body, MAX_REASON))),
            other => Err(OpeningFault::Note(other)),
        }
    }
}

/// Takes the peer's notes until the connection ends.
pub(super) async fn serve(inner: Rc<Inner>, conn: Rc<Conn>) {
    while let Ok(mut recv) = conn.quic.accept_uni().await {
        let read = timeout(conn.timeout, recv.read_to_end(MAX_NOTE)).await;
        let fault = match read {
            Ok(Ok(bytes)) => match Note::decode(&bytes, conn.version) {
                Ok(note) => {
                    if !conn.peer.still_admits(&inner, &conn) {
                        return;
                    }
                    inner.events.push(LinkEvent::Note {
                        peer: conn.peer.node,
                        note,
                    });
                    continue;
                }
                Err(fault) => PeerFault::Opening(fault),
            },
            Ok(Err(quinn::ReadToEndError::TooLong)) => {
                PeerFault::Opening(OpeningFault::Length("a note", MAX_NOTE + 1))
            }
            // The stream or the connection was given up.
            Ok(Err(quinn::ReadToEndError::Read(_))) => continue,
            Err(_) => PeerFault::Slow("a note", conn.timeout),
        };
        return conn.fail(&inner, fault);
    }
}

/// Sends a note; what becomes of the connection says whether it arrives.
pub(super) async fn send(conn: Rc<Conn>, note: Note) {
    let bytes = note.encode(conn.version);
    let sent = async {
        let mut send = conn.quic.open_uni().await.ok()?;
        send.write_all(&bytes).await.ok()?;
        send.finish().ok()?;
        send.stopped().await.ok()
    };
    let _ = timeout(conn.timeout, sent).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_survive_and_damage_does_not() {
        let key = Fingerprint::from_bytes([7; 32]);
        for note in [
            Note::NextKey(key),
            Note::Pinned(key),
            Note::NotPinned(key, "the file can't be written".to_owned()),
        ] {
            let bytes = note.encode(2);
            assert_eq!(Note::decode(&bytes, 2), Ok(note));
            for bit in 0..bytes.len() * 8 {
                let mut bytes = bytes.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Note::decode(&bytes, 2).is_err(), "bit {bit}");
            }
            for len in 0..bytes.len() {
                assert!(Note::decode(&bytes[..len], 2).is_err());
            }
            assert!(Note::decode(&bytes, 3).is_err(), "another version");
        }
    }
}
