//! What is said to a witness and answered: pure encoding and decoding, bounded.
//!
//! A request is the whole of a bidirectional stream's one direction, its answer the whole of the other,
//! so an answer can't meet the wrong question; it echoes register and nonce all the same.
//!
//! ```text
//! request:
//!   0       4    5         8                 24      32
//!   | magic | op | 0, 0, 0 | register (u128) | nonce |
//!   op 1, read: nothing more
//!   op 2, swap:
//!   | expects (0, 1) | instance | seq |  new: | instance | seq | len u16, content | n u16, members 32×n |
//!
//!   op 3, bind (version 2):
//!   | n u16, members 32×n |
//!   op 4, succeed (version 2); the register is 0:
//!   | key, 32 |
//!
//! answer:
//!   0       4        5         8                 24      32
//!   | magic | status | 0, 0, 0 | register (u128) | nonce |
//!   status 0, the register as it stands:
//!   | exists (0, 1) |  | instance | seq | nonce | len u16, content |   (the latter if it exists)
//!   status 1, swapped, or done: nothing more
//!   status 2, refused:
//!   | reason u16 | len u16, text |
//! ```
//!
//! Little-endian.

use bytes::BufMut;

use super::RegisterId;
pub use crate::shell::arbiter::kept::MAX_MEMBERS;
pub use crate::shell::arbiter::raw::{Content, MAX_CONTENT};
use crate::shell::fields::{FieldFault, Fields, put_bytes, put_text};
use crate::shell::identity::Fingerprint;

const REQUEST: u32 = u32::from_le_bytes(*b"KGWQ");
const ANSWER: u32 = u32::from_le_bytes(*b"KGWA");

/// Bytes of text in a refusal.
const MAX_TEXT: usize = 1024;

/// No request is longer, in bytes.
pub const MAX_REQUEST: usize = 32 + 33 + 2 + MAX_CONTENT + 2 + 32 * MAX_MEMBERS;

/// No answer is longer, in bytes.
pub const MAX_ANSWER: usize = 32 + 25 + 2 + MAX_CONTENT;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which register.
    pub register: RegisterId,
    /// The asker's, echoed in the answer; a swap leaves it in the register.
    pub nonce: u64,
    /// What is wanted.
    pub op: Op,
}

/// What a question wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The register's state.
    Read,
    /// Another state, if the present one is what is expected.
    Swap {
        /// (instance, seq) of the present state; `None`: there is no such register yet.
        expect: Option<(u64, u64)>,
        /// Instance of the new state.
        instance: u64,
        /// Its seq.
        seq: u64,
        /// Its content.
        bytes: Vec<u8>,
        /// The keys that may use the register: recorded when it is created, else without meaning.
        members: Vec<Fingerprint>,
    },
    /// These keys may use the register from now on, and no others; asked by one of those that may.
    Bind {
        /// The asker's own among them.
        members: Vec<Fingerprint>,
    },
    /// This key will take the asker's place: it is enrolled, and when it first asks the asker's is
    /// forgotten.
    Succeed {
        /// The new key.
        key: Fingerprint,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of the request.
    pub register: RegisterId,
    /// Of the request.
    pub nonce: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it stands: the answer to a read, and to a swap that expected something else.
    State(Option<Content>),
    /// The swap took place and is durable.
    Swapped,
    /// Neither read nor changed.
    Refused(Reason, String),
}

/// Why a witness refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Reason {
    /// The asker's key is not enrolled at this witness.
    Stranger = 1,
    /// The register belongs to others.
    NotAMember = 2,
    /// The register's file is damaged: nobody knows what it held.
    Corrupt = 3,
    /// The request makes no sense.
    Invalid = 4,
    /// The witness has as many registers as it may have.
    Full = 5,
    /// The witness's disk failed.
    Storage = 6,
}

impl Reason {
    fn from_wire(number: u16) -> Option<Self> {
        use Reason::{Corrupt, Full, Invalid, NotAMember, Storage, Stranger};
        [Stranger, NotAMember, Corrupt, Invalid, Full, Storage]
            .into_iter()
            .find(|reason| *reason as u16 == number)
    }
}

fn put_head(out: &mut Vec<u8>, magic: u32, what: u8, register: RegisterId, nonce: u64) {
    out.put_u32_le(magic);
    out.put_u8(what);
    out.put_bytes(0, 3);
    out.put_u128_le(register.0);
    out.put_u64_le(nonce);
}

fn head(fields: &mut Fields<'_>, magic: u32) -> Result<(u8, RegisterId, u64), FieldFault> {
    if fields.u32("magic")? != magic {
        return Err(FieldFault::Meaningless("magic"));
    }
    let what = fields.u8("kind")?;
    if fields.array::<3>("reserved")? != [0; 3] {
        return Err(FieldFault::Meaningless("reserved"));
    }
    Ok((
        what,
        RegisterId(fields.u128("register")?),
        fields.u64("nonce")?,
    ))
}

fn put_members(out: &mut Vec<u8>, members: &[Fingerprint]) {
    assert!(members.len() <= MAX_MEMBERS, "{} members", members.len());
    out.put_u16_le(members.len() as u16);
    members
        .iter()
        .for_each(|member| out.put_slice(member.as_bytes()));
}

fn members(fields: &mut Fields<'_>) -> Result<Vec<Fingerprint>, FieldFault> {
    (0..fields.count("members", MAX_MEMBERS)?)
        .map(|_| fields.array("members").map(Fingerprint::from_bytes))
        .collect()
}

impl Request {
    /// The request's bytes, at most [`MAX_REQUEST`].
    ///
    /// # Panics
    ///
    /// Over the bounds of content or members: the asker's own bug.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        match &self.op {
            Op::Read => put_head(&mut out, REQUEST, 1, self.register, self.nonce),
            Op::Swap {
                expect,
                instance,
                seq,
                bytes,
                members,
            } => {
                assert!(
                    bytes.len() <= MAX_CONTENT,
                    "a content of {} bytes",
                    bytes.len()
                );
                put_head(&mut out, REQUEST, 2, self.register, self.nonce);
                out.put_u8(u8::from(expect.is_some()));
                let (old_instance, old_seq) = expect.unwrap_or_default();
                for number in [old_instance, old_seq, *instance, *seq] {
                    out.put_u64_le(number);
                }
                put_bytes(&mut out, bytes);
                put_members(&mut out, members);
            }
            Op::Bind { members } => {
                put_head(&mut out, REQUEST, 3, self.register, self.nonce);
                put_members(&mut out, members);
            }
            Op::Succeed { key } => {
                put_head(&mut out, REQUEST, 4, self.register, self.nonce);
                out.put_slice(key.as_bytes());
            }
        }
        out
    }

    /// The request in `bytes`.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldFault> {
        let mut fields = Fields::new(bytes);
        let (what, register, nonce) = head(&mut fields, REQUEST)?;
        let op = match what {
            1 => Op::Read,
            2 => {
                let expects = fields.bool("expects")?;
                let expect = (fields.u64("old instance")?, fields.u64("old seq")?);
                if !expects && expect != (0, 0) {
                    return Err(FieldFault::Meaningless("old instance"));
                }
                let instance = fields.u64("instance")?;
                let seq = fields.u64("seq")?;
                let bytes = fields.bytes("content", MAX_CONTENT)?.to_vec();
                let members = members(&mut fields)?;
                Op::Swap {
                    expect: expects.then_some(expect),
                    instance,
                    seq,
                    bytes,
                    members,
                }
            }
            3 => Op::Bind {
                members: members(&mut fields)?,
            },
            4 => Op::Succeed {
                key: fields.array("key").map(Fingerprint::from_bytes)?,
            },
            _ => return Err(FieldFault::Meaningless("op")),
        };
        fields.end()?;
        Ok(Self {
            register,
            nonce,
            op,
        })
    }
}

impl Answer {
    /// The answer's bytes, at most [`MAX_ANSWER`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        match &self.outcome {
            Outcome::State(state) => {
                put_head(&mut out, ANSWER, 0, self.register, self.nonce);
                out.put_u8(u8::from(state.is_some()));
                if let Some(content) = state {
                    for number in [content.instance, content.seq, content.nonce] {
                        out.put_u64_le(number);
                    }
                    put_bytes(&mut out, &content.bytes);
                }
            }
            Outcome::Swapped => put_head(&mut out, ANSWER, 1, self.register, self.nonce),
            Outcome::Refused(reason, text) => {
                put_head(&mut out, ANSWER, 2, self.register, self.nonce);
                out.put_u16_le(*reason as u16);
                put_text(&mut out, text, MAX_TEXT);
            }
        }
        out
    }

    /// The answer in `bytes`.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldFault> {
        let mut fields = Fields::new(bytes);
        let (what, register, nonce) = head(&mut fields, ANSWER)?;
        let outcome = match what {
            0 => Outcome::State(if fields.bool("exists")? {
                Some(Content {
                    instance: fields.u64("instance")?,
                    seq: fields.u64("seq")?,
                    nonce: fields.u64("nonce")?,
                    bytes: fields.bytes("content", MAX_CONTENT)?.to_vec(),
                })
            } else {
                None
            }),
            1 => Outcome::Swapped,
            2 => {
                let reason = Reason::from_wire(fields.u16("reason")?);
                let reason = reason.ok_or(FieldFault::Meaningless("reason"))?;
                Outcome::Refused(reason, fields.text("text", MAX_TEXT)?)
            }
            _ => return Err(FieldFault::Meaningless("status")),
        };
        fields.end()?;
        Ok(Self {
            register,
            nonce,
            outcome,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contents() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..200)
    }

    fn ops() -> impl Strategy<Value = Op> {
        let members = prop::collection::vec(
            any::<[u8; 32]>().prop_map(Fingerprint::from_bytes),
            0..=MAX_MEMBERS,
        );
        prop_oneof![
            Just(Op::Read),
            members.clone().prop_map(|members| Op::Bind { members }),
            any::<[u8; 32]>().prop_map(|key| Op::Succeed {
                key: Fingerprint::from_bytes(key)
            }),
            (
                any::<Option<(u64, u64)>>(),
                any::<(u64, u64)>(),
                contents(),
                members
            )
                .prop_map(|(expect, (instance, seq), bytes, members)| Op::Swap {
                    expect,
                    instance,
                    seq,
                    bytes,
                    members
                }),
        ]
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        let content =
            (any::<(u64, u64, u64)>(), contents()).prop_map(|((instance, seq, nonce), bytes)| {
                Content {
                    instance,
                    seq,
                    nonce,
                    bytes,
                }
            });
        prop_oneof![
            prop::option::of(content).prop_map(Outcome::State),
            Just(Outcome::Swapped),
            "[a-z ]{0,40}".prop_map(|text| Outcome::Refused(Reason::Corrupt, text)),
        ]
    }

    proptest! {
        #[test]
        fn requests_survive(register: u128, nonce: u64, op in ops()) {
            let request = Request { register: RegisterId(register), nonce, op };
            let bytes = request.encode();
            prop_assert!(bytes.len() <= MAX_REQUEST);
            prop_assert_eq!(Request::decode(&bytes), Ok(request));
            for len in 0..bytes.len() {
                prop_assert!(Request::decode(&bytes[..len]).is_err());
            }
        }

        #[test]
        fn answers_survive(register: u128, nonce: u64, outcome in outcomes()) {
            let answer = Answer { register: RegisterId(register), nonce, outcome };
            let bytes = answer.encode();
            prop_assert!(bytes.len() <= MAX_ANSWER);
            prop_assert_eq!(Answer::decode(&bytes), Ok(answer));
            for len in 0..bytes.len() {
                prop_assert!(Answer::decode(&bytes[..len]).is_err());
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Request::decode(&bytes);
            let _ = Answer::decode(&bytes);
        }
    }

    #[test]
    fn the_longest_fit() {
        let op = Op::Swap {
            expect: Some((1, 2)),
            instance: 1,
            seq: 3,
            bytes: vec![7; MAX_CONTENT],
            members: vec![Fingerprint::from_bytes([1; 32]); MAX_MEMBERS],
        };
        let request = Request {
            register: RegisterId(1),
            nonce: 1,
            op,
        };
        assert_eq!(request.encode().len(), MAX_REQUEST);
        let content = Content {
            instance: 1,
            seq: 3,
            nonce: 1,
            bytes: vec![7; MAX_CONTENT],
        };
        let answer = Answer {
            register: RegisterId(1),
            nonce: 1,
            outcome: Outcome::State(Some(content)),
        };
        assert_eq!(answer.encode().len(), MAX_ANSWER);
    }
}
