//! A register as arbiters keep it: the witness's file, and the value of etcd's key.
//!
//! ```text
//!   0       4     6     8          24         32    40      48      50
//!   | magic | ver | n   | register | instance | seq | nonce | len   | content | members 32×n | crc32c |
//! ```
//!
//! Little-endian; the checksum covers all before it. `members` are the keys that a witness lets use the
//! register; in etcd there are none, who may use it is etcd's own business there. The register's id is in
//! it, so that a file or value which was copied to another's place is not taken for that one's.

use std::io;

use bytes::BufMut;

use super::raw::{Content, MAX_CONTENT, RegisterId};
use crate::shell::fields::{FieldFault, Fields, put_bytes};
use crate::shell::identity::Fingerprint;

const MAGIC: u32 = u32::from_le_bytes(*b"KGWR");
const VERSION: u16 = 1;

/// Keys that may be bound to one register: two nodes, and each a second one while it changes its key.
pub const MAX_MEMBERS: usize = 4;

/// No register takes more, in bytes.
pub const MAX_KEPT: usize = 50 + MAX_CONTENT + 32 * MAX_MEMBERS + 4;

/// Why a register can't be read.
#[derive(Debug, thiserror::Error)]
pub enum KeptFault {
    /// Bits of it are not what was written.
    #[error("its checksum is wrong ({found:#010x}, must be {computed:#010x})")]
    Checksum {
        /// As it stands there.
        found: u32,
        /// Of the bytes before it.
        computed: u32,
    },
    /// This build does not know its version.
    #[error("it was written by a newer version of kagami ({0})")]
    Newer(u16),
    /// It is whole, and in another's place.
    #[error("it belongs to register {0}")]
    Other(RegisterId),
    /// It breaks its own format.
    #[error("{0}")]
    Fields(#[from] FieldFault),
    /// No register is as long.
    #[error("{0} bytes")]
    Length(usize),
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A register and who may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What it holds.
    pub content: Content,
    /// The keys that a witness lets use it.
    pub members: Vec<Fingerprint>,
}

impl Kept {
    /// Its bytes, at most [`MAX_KEPT`].
    ///
    /// # Panics
    ///
    /// Over the bounds of content or members: the asker's own bug.
    pub fn encode(&self, register: RegisterId) -> Vec<u8> {
        assert!(
            self.members.len() <= MAX_MEMBERS,
            "{} members",
            self.members.len()
        );
        assert!(
            self.content.bytes.len() <= MAX_CONTENT,
            "a content of {} bytes",
            self.content.bytes.len()
        );
        let mut out = Vec::with_capacity(MAX_KEPT);
        out.put_u32_le(MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(self.members.len() as u16);
        out.put_u128_le(register.0);
        out.put_u64_le(self.content.instance);
        out.put_u64_le(self.content.seq);
        out.put_u64_le(self.content.nonce);
        put_bytes(&mut out, &self.content.bytes);
        self.members
            .iter()
            .for_each(|member| out.put_slice(member.as_bytes()));
        out.put_u32_le(crc32c::crc32c(&out));
        out
    }

    /// The register `register` in `file`.
    ///
    /// # Errors
    ///
    /// What is wrong with it: nobody knows then what it held.
    pub fn decode(register: RegisterId, file: &[u8]) -> Result<Self, KeptFault> {
        let (body, sum) = file
            .split_last_chunk::<4>()
            .ok_or(KeptFault::Length(file.len()))?;
        let (found, computed) = (u32::from_le_bytes(*sum), crc32c::crc32c(body));
        if found != computed {
            return Err(KeptFault::Checksum { found, computed });
        }
        let mut fields = Fields::new(body);
        if fields.u32("magic")? != MAGIC {
            return Err(FieldFault::Meaningless("magic").into());
        }
        let version = fields.u16("version")?;
        if version != VERSION {
            return Err(KeptFault::Newer(version));
        }
        let members = fields.count("members", MAX_MEMBERS)?;
        let id = RegisterId(fields.u128("register")?);
        if id != register {
            return Err(KeptFault::Other(id));
        }
        let content = Content {
            instance: fields.u64("instance")?,
            seq: fields.u64("seq")?,
            nonce: fields.u64("nonce")?,
            bytes: fields.bytes("content", MAX_CONTENT)?.to_vec(),
        };
        let members = (0..members)
            .map(|_| fields.array("members").map(Fingerprint::from_bytes))
            .collect::<Result<_, _>>()?;
        fields.end()?;
        Ok(Self { content, members })
    }
}

/// A register's bytes, read and spelled again: for the tests that feed it anything
/// (tests/decoders). `None`: refused.
pub fn respell(register: u128, file: &[u8]) -> Option<Vec<u8>> {
    let register = RegisterId(register);
    Some(Kept::decode(register, file).ok()?.encode(register))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn kept()(
            (instance, seq, nonce) in any::<(u64, u64, u64)>(),
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            members in prop::collection::vec(any::<[u8; 32]>(), 0..=MAX_MEMBERS),
        ) -> Kept {
            Kept {
                content: Content { instance, seq, nonce, bytes },
                members: members.into_iter().map(Fingerprint::from_bytes).collect(),
            }
        }
    }

    proptest! {
        #[test]
        fn a_register_survives(id: u128, kept in kept()) {
            let bytes = kept.encode(RegisterId(id));
            prop_assert!(bytes.len() <= MAX_KEPT);
            prop_assert_eq!(Kept::decode(RegisterId(id), &bytes).ok(), Some(kept));
        }

        #[test]
        fn a_flipped_bit_or_a_lost_end_is_seen(id: u128, kept in kept(), at: prop::sample::Index, bit in 0..8) {
            let mut bytes = kept.encode(RegisterId(id));
            let at = at.index(bytes.len());
            prop_assert!(Kept::decode(RegisterId(id), &bytes[..at]).is_err());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(Kept::decode(RegisterId(id), &bytes).is_err());
        }

        #[test]
        fn what_is_in_anothers_place_is_not_taken_for_it(id: u128, other: u128, kept in kept()) {
            prop_assume!(id != other);
            let found = Kept::decode(RegisterId(other), &kept.encode(RegisterId(id)));
            prop_assert!(matches!(found, Err(KeptFault::Other(RegisterId(named))) if named == id));
        }

        #[test]
        fn garbage_is_refused_or_read_whole(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(again) = respell(0, &bytes) {
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
