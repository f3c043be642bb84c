//! The register's content as arbiters store it: bytes that mean nothing to them.
//!
//! An arbiter compares (instance, seq) and keeps the nonce; the rest is the content encoded here:
//!
//! ```text
//!   0         1        2               3                 3+8n         11+8n     19+8n
//!   | version | forced | count n (1-8) | copies: u64 × n | generation | parent |
//! ```
//!
//! Little-endian. Version 1 is the register of one mirror; a group's, with a generation and a parent
//! for each mirror, becomes version 2 without a change at the arbiter.

use bytes::BufMut;

use crate::core::register::Register;
use crate::core::state::{Attempt, NodeId};
use crate::shell::fields::{FieldFault, Fields};

/// The content of one mirror's register.
const VERSION: u8 = 1;

/// Copies that a register can name.
const MAX_COPIES: usize = 8;

/// A content that this build can't read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentFault {
    /// Written by a newer build, or for a group.
    #[error("the register's content has version {0}, this build reads version {VERSION}")]
    Version(u8),
    /// It breaks its own format.
    #[error("the register's content can't be read: {0}")]
    Fields(#[from] FieldFault),
}

/// The content of `register`: all of it but instance, seq and nonce.
pub fn encode(register: &Register) -> Vec<u8> {
    let copies = &register.copies;
    assert!(
        (1..=MAX_COPIES).contains(&copies.len()),
        "a register that names {} copies",
        copies.len()
    );
    let mut out = Vec::with_capacity(19 + 8 * copies.len());
    out.put_u8(VERSION);
    out.put_u8(u8::from(register.forced));
    out.put_u8(copies.len() as u8);
    copies.iter().for_each(|copy| out.put_u64_le(copy.0));
    out.put_u64_le(register.generation);
    out.put_u64_le(register.parent);
    out
}

/// The register with this content.
///
/// # Errors
///
/// [`ContentFault`]: such a register grants nothing and is not overwritten.
pub fn decode(
    instance: u64,
    seq: u64,
    nonce: u64,
    content: &[u8],
) -> Result<Register, ContentFault> {
    if seq == u64::MAX {
        // No change makes it so ([`super::raw::judge`]), and none could follow.
        return Err(FieldFault::Meaningless("seq").into());
    }
    let mut fields = Fields::new(content);
    let version = fields.u8("version")?;
    if version != VERSION {
        return Err(ContentFault::Version(version));
    }
    let forced = fields.bool("forced")?;
    let count = usize::from(fields.u8("count of copies")?);
    if !(1..=MAX_COPIES).contains(&count) {
        return Err(FieldFault::Meaningless("count of copies").into());
    }
    let copies = (0..count)
        .map(|_| fields.u64("copies").map(NodeId))
        .collect::<Result<_, _>>()?;
    let register = Register {
        instance,
        seq,
        copies,
        generation: fields.u64("generation")?,
        parent: fields.u64("parent")?,
        nonce: Attempt(nonce),
        forced,
    };
    fields.end()?;
    Ok(register)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_register_survives(
            copies in prop::collection::vec(any::<u64>(), 1..=MAX_COPIES),
            numbers: [u64; 5],
            forced: bool,
        ) {
            let [instance, seq, nonce, generation, parent] = numbers;
            let seq = seq.min(u64::MAX - 1);
            let copies = copies.into_iter().map(NodeId).collect();
            let register = Register { instance, seq, copies, generation, parent, nonce: Attempt(nonce), forced };
            let content = encode(&register);
            prop_assert_eq!(decode(instance, seq, nonce, &content), Ok(register));
            for len in 0..content.len() {
                prop_assert!(decode(instance, seq, nonce, &content[..len]).is_err());
            }
        }

        #[test]
        fn garbage_is_refused_or_read_whole(content in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(register) = decode(1, 2, 3, &content) {
                prop_assert_eq!(encode(&register), content);
            }
        }
    }

    #[test]
    fn a_seq_that_none_can_follow_is_damage() {
        let register = Register {
            instance: 1,
            seq: u64::MAX - 1,
            copies: vec![NodeId(2)],
            generation: 3,
            parent: 0,
            nonce: Attempt(4),
            forced: false,
        };
        let content = encode(&register);
        assert_eq!(decode(1, u64::MAX - 1, 4, &content), Ok(register));
        let fault = FieldFault::Meaningless("seq").into();
        assert_eq!(decode(1, u64::MAX, 4, &content), Err(fault));
    }

    #[test]
    fn a_newer_content_is_named() {
        assert_eq!(decode(0, 0, 0, &[2, 0]), Err(ContentFault::Version(2)));
    }
}
