//! What two nodes tell each other when they pair, as plain data.
//!
//! A node's key is not among it: that is the key which the TLS session proved, and nothing that is
//! said counts beside it.

use std::net::SocketAddr;

use bytes::BufMut;

use super::token::{address, put_address};
use crate::core::state::{NodeId, Protocol};
use crate::shell::fields::{FieldFault, Fields, put_text};

const VERSION: u8 = 1;
const MAX_NAME: usize = 64;
const MAX_ADDRESSES: usize = 32;
const MAX_SETTINGS: usize = 32;
const MAX_SETTING: usize = 256;

/// A node, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where its daemon listens, the best first.
    pub addresses: Vec<SocketAddr>,
    /// Data-plane threads that it has; a mirror's thread is the same on both nodes.
    pub threads: u16,
}

/// A mirror, as one node has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorFacts {
    /// Its id.
    pub mirror: u128,
    /// Its name on this node.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block, 512 or 4096.
    pub logical_block: u32,
    /// When a write is answered.
    pub protocol: Protocol,
    /// The store is known to read as zeroes: with the same on the other node no first copy is needed.
    pub zeroed: bool,
    /// The data-plane thread that carries it.
    pub thread: u16,
}

/// What one side tells the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The node.
    pub party: Party,
    /// The mirror.
    pub mirror: MirrorFacts,
    /// Settings that both nodes should share (arbiter, permission, time-outs), as the configuration
    /// spells them; who receives them takes what it knows.
    pub settings: Vec<(String, String)>,
}

impl Facts {
    /// The facts' bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.put_u8(VERSION);
        out.put_u64_le(self.party.node.0);
        put_text(&mut out, &self.party.name, MAX_NAME);
        let addresses = &self.party.addresses[..self.party.addresses.len().min(MAX_ADDRESSES)];
        out.put_u16_le(addresses.len() as u16);
        addresses
            .iter()
            .for_each(|address| put_address(&mut out, *address));
        out.put_u16_le(self.party.threads);
        out.put_u128_le(self.mirror.mirror);
        put_text(&mut out, &self.mirror.name, MAX_NAME);
        out.put_u64_le(self.mirror.size);
        out.put_u32_le(self.mirror.logical_block);
        out.put_u8(match self.mirror.protocol {
            Protocol::A => b'A',
            Protocol::B => b'B',
            Protocol::C => b'C',
        });
        out.put_u8(u8::from(self.mirror.zeroed));
        out.put_u16_le(self.mirror.thread);
        let settings = &self.settings[..self.settings.len().min(MAX_SETTINGS)];
        out.put_u16_le(settings.len() as u16);
        for (key, value) in settings {
            put_text(&mut out, key, MAX_SETTING);
            put_text(&mut out, value, MAX_SETTING);
        }
        out
    }

    /// The facts in `bytes`.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldFault> {
        let mut fields = Fields::new(bytes);
        if fields.u8("version")? != VERSION {
            return Err(FieldFault::Meaningless("version"));
        }
        let facts = Self {
            party: Party {
                node: NodeId(fields.u64("node id")?),
                name: name(&mut fields, "node name")?,
                addresses: (0..fields.count("addresses", MAX_ADDRESSES)?)
                    .map(|_| address(&mut fields))
                    .collect::<Result<_, _>>()?,
                threads: fields.u16("threads")?,
            },
            mirror: MirrorFacts {
                mirror: fields.u128("mirror id")?,
                name: name(&mut fields, "mirror name")?,
                size: fields.u64("size")?,
                logical_block: match fields.u32("logical block")? {
                    block @ (512 | 4096) => block,
                    _ => return Err(FieldFault::Meaningless("logical block")),
                },
                protocol: match fields.u8("protocol")? {
                    b'A' => Protocol::A,
                    b'B' => Protocol::B,
                    b'C' => Protocol::C,
                    _ => return Err(FieldFault::Meaningless("protocol")),
                },
                zeroed: fields.bool("zeroed")?,
                thread: fields.u16("thread")?,
            },
            settings: (0..fields.count("settings", MAX_SETTINGS)?)
                .map(|_| {
                    Ok((
                        fields.text("setting", MAX_SETTING)?,
                        fields.text("setting", MAX_SETTING)?,
                    ))
                })
                .collect::<Result<_, FieldFault>>()?,
        };
        fields.end()?;
        Ok(facts)
    }
}

/// A name that can be a key of the configuration and part of a file's name.
fn name(fields: &mut Fields<'_>, what: &'static str) -> Result<String, FieldFault> {
    let name = fields.text(what, MAX_NAME)?;
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        return Err(FieldFault::Meaningless(what));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> Facts {
        Facts {
            party: Party {
                node: NodeId(7),
                name: "alpha".to_owned(),
                addresses: vec![
                    ([10, 0, 0, 1], 7789).into(),
                    ([0xfd00, 0, 0, 0, 0, 0, 0, 2], 7789).into(),
                ],
                threads: 2,
            },
            mirror: MirrorFacts {
                mirror: 0x1234_5678_9abc,
                name: "pg".to_owned(),
                size: 20 << 30,
                logical_block: 512,
                protocol: Protocol::C,
                zeroed: true,
                thread: 1,
            },
            settings: vec![("solo".to_owned(), "arbiter".to_owned())],
        }
    }

    #[test]
    fn facts_survive() {
        let bytes = facts().encode();
        assert_eq!(Facts::decode(&bytes), Ok(facts()));
        for len in 0..bytes.len() {
            assert!(Facts::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn names_that_could_hurt_are_refused() {
        for bad in ["", "../pg", ".pg", "a b", "a/b", "a\nb"] {
            let mut facts = facts();
            facts.mirror.name = bad.to_owned();
            assert!(Facts::decode(&facts.encode()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Facts::decode(&bytes);
        }
    }
}
