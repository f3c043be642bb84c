//! How a connection and a stream begin: the hello and the preamble, encoded and judged.
//!
//! ```text
//! hello, the whole of one unidirectional stream each way, right after the TLS handshake:
//!   0       4       6       8              24      26      28            28+2n     32+2n
//!   | magic | version | count | node (u128)  | thread | reserved | versions u16×n | crc32c |
//!
//! preamble, first on every bidirectional stream, both ways:
//!   0       4        6       7      8           16             32     36         40       44       48
//!   | magic | version | class | 0   | nonce     | mirror (u128) | code | text_len | reserved | crc32c |
//!   | text: text_len bytes, only in an answer that refuses                                          |
//! ```
//!
//! Little-endian. The dialer's preamble has code 0; in the answer 0 accepts, anything else is the
//! reason for refusing. Checksums cover all bytes before them.

use bytes::{Buf, BufMut};

use super::config::{MirrorId, NodeId};
use crate::wire::frame::Class;
use crate::wire::limits::MAX_REASON;

/// The first four bytes of a hello: "KGMH".
const HELLO_MAGIC: u32 = u32::from_le_bytes(*b"KGMH");
/// The first four bytes of a preamble: "KGMP".
const PREAMBLE_MAGIC: u32 = u32::from_le_bytes(*b"KGMP");
/// Versions that a hello can name.
const MAX_VERSIONS: usize = 32;
const HELLO_FIXED: usize = 28;
/// Bytes of the longest hello.
pub(super) const MAX_HELLO: usize = HELLO_FIXED + 2 * MAX_VERSIONS + 4;
/// Bytes of a preamble without text.
pub(super) const PREAMBLE_LEN: usize = 48;

/// A hello or preamble that isn't one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpeningFault {
    /// Not as long as it must be.
    #[error("{0} of {1} bytes")]
    Length(&'static str, usize),
    /// Other bytes than it must start with.
    #[error("no {0} where one must start: found {1:#010x}")]
    Magic(&'static str, u32),
    /// Damaged.
    #[error("{0} with a bad checksum")]
    Checksum(&'static str),
    /// Another version than the one agreed on.
    #[error("a preamble of protocol version {found} on a connection of version {agreed}")]
    Version {
        /// The version in it.
        found: u16,
        /// The version agreed on.
        agreed: u16,
    },
    /// No such class of streams.
    #[error("no class of streams has number {0}")]
    Class(u8),
    /// No such kind of note.
    #[error("no kind of note has number {0}")]
    Note(u8),
    /// Bits that must be zero.
    #[error("reserved bits are set in a {0}")]
    Reserved(&'static str),
    /// A stream that its session has already, or that belongs to another mirror's session.
    #[error("a second {0} stream for the session, or one of another mirror's session")]
    Repeated(Class),
    /// The answer is about another session than the one asked for.
    #[error("an answer for another session than the one asked for")]
    OtherSession,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// The version agreed on; 0 when none is common.
    pub version: u16,
    pub node: NodeId,
    pub thread: u16,
    /// All versions that the sender speaks, the newest first.
    pub versions: Vec<u16>,
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let versions = &self.versions[..self.versions.len().min(MAX_VERSIONS)];
        let mut out = Vec::with_capacity(MAX_HELLO);
        out.put_u32_le(HELLO_MAGIC);
        out.put_u16_le(self.version);
        out.put_u16_le(versions.len() as u16);
        out.put_u128_le(self.node.0);
        out.put_u16_le(self.thread);
        out.put_u16_le(0);
        for version in versions {
            out.put_u16_le(*version);
        }
        out.put_u32_le(crc32c::crc32c(&out));
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, OpeningFault> {
        const WHAT: &str = "hello";
        let wrong_length = || OpeningFault::Length(WHAT, bytes.len());
        if bytes.len() < HELLO_FIXED + 4 || bytes.len() > MAX_HELLO {
            return Err(wrong_length());
        }
        let (mut body, mut sum) = bytes.split_at(bytes.len() - 4);
        let computed = crc32c::crc32c(body);
        let magic = body.get_u32_le();
        if magic != HELLO_MAGIC {
            return Err(OpeningFault::Magic(WHAT, magic));
        }
        if sum.get_u32_le() != computed {
            return Err(OpeningFault::Checksum(WHAT));
        }
        let version = body.get_u16_le();
        let count = usize::from(body.get_u16_le());
        let node = NodeId(body.get_u128_le());
        let thread = body.get_u16_le();
        let reserved = body.get_u16_le();
        if reserved != 0 {
            return Err(OpeningFault::Reserved(WHAT));
        }
        if body.len() != 2 * count {
            return Err(wrong_length());
        }
        let versions = (0..count).map(|_| body.get_u16_le()).collect();
        Ok(Self {
            version,
            node,
            thread,
            versions,
        })
    }
}

/// What a stream is for, or the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Preamble {
    pub version: u16,
    pub class: Class,
    pub nonce: u64,
    pub mirror: MirrorId,
    /// 0, or why the session is refused.
    pub code: u32,
    /// Bytes of text that follow.
    pub text_len: usize,
}

impl Preamble {
    pub(super) fn encode(&self) -> [u8; PREAMBLE_LEN] {
        let mut out = [0; PREAMBLE_LEN];
        let mut at = &mut out[..];
        at.put_u32_le(PREAMBLE_MAGIC);
        at.put_u16_le(self.version);
        at.put_u8(self.class as u8);
        at.put_u8(0);
        at.put_u64_le(self.nonce);
        at.put_u128_le(self.mirror.0);
        at.put_u32_le(self.code);
        at.put_u32_le(self.text_len as u32);
        at.put_u32_le(0);
        let sum = crc32c::crc32c(&out[..PREAMBLE_LEN - 4]);
        out[PREAMBLE_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; PREAMBLE_LEN], agreed: u16) -> Result<Self, OpeningFault> {
        const WHAT: &str = "preamble";
        let (mut body, mut sum) = bytes.split_at(PREAMBLE_LEN - 4);
        let computed = crc32c::crc32c(body);
        let magic = body.get_u32_le();
        if magic != PREAMBLE_MAGIC {
            return Err(OpeningFault::Magic(WHAT, magic));
        }
        if sum.get_u32_le() != computed {
            return Err(OpeningFault::Checksum(WHAT));
        }
        let version = body.get_u16_le();
        if version != agreed {
            return Err(OpeningFault::Version {
                found: version,
                agreed,
            });
        }
        let class = body.get_u8();
        let class = Class::from_wire(class).ok_or(OpeningFault::Class(class))?;
        let zero = body.get_u8();
        let nonce = body.get_u64_le();
        let mirror = MirrorId(body.get_u128_le());
        let code = body.get_u32_le();
        let text_len = body.get_u32_le() as usize;
        let reserved = body.get_u32_le();
        if zero != 0 || reserved != 0 {
            return Err(OpeningFault::Reserved(WHAT));
        }
        if text_len > MAX_REASON || (code == 0 && text_len != 0) {
            return Err(OpeningFault::Length("a refusal's text", text_len));
        }
        Ok(Self {
            version,
            class,
            nonce,
            mirror,
            code,
            text_len,
        })
    }
}

/// Cuts a text to what a reason may have, at a character's boundary.
pub(super) fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
