//! Arbiters: who decides which copy may go on alone (docs/protocol.md §4).
//!
//! The core asks and judges the answers; an arbiter only carries a question to a register and an
//! answer back. Behind the one trait: [`NoArbiter`], and [`MirrorRegister`], a mirror's register wherever it
//! is kept: at a witness ([`crate::shell::witness::Client`]) or in etcd ([`crate::shell::etcd::Client`]).
//!
//! [`raw`] is what any register can do, [`register`] what a mirror writes into its own, [`kept`] how both
//! kinds of arbiter spell it on their disks. [`together`] holds back what the mirrors of one group must not ask yet.
//!
//! What every implementation owes the core: a swap that it reports as done is on the register's
//! stable storage; a swap whose outcome it does not know is [`ArbiterAnswer::Unreachable`], never a
//! guess; an answer belongs to the very question asked.

pub mod kept;
pub mod raw;
pub mod register;
pub mod together;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use self::raw::{Content, NoAnswer, RawRegister, Swap};
use crate::core::register::{ArbiterAnswer, Ask};
use crate::core::state::NodeId;

/// An answer on its way. Dropping it gives the question up; a swap may take place all the same.
pub type Pending = Pin<Box<dyn Future<Output = ArbiterAnswer>>>;

/// The register of one mirror (or group) at some arbiter; it lives on the mirror's thread.
pub trait Arbiter {
    /// Puts one question. Always answers, within a time-out of its own.
    fn ask(self: Rc<Self>, ask: Ask) -> Pending;

    /// Name and place, for people.
    fn describe(&self) -> String;
}

/// No arbiter is configured: nothing is ever granted.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoArbiter;

impl Arbiter for NoArbiter {
    fn ask(self: Rc<Self>, _ask: Ask) -> Pending {
        Box::pin(async { ArbiterAnswer::Unreachable("no arbiter is configured".to_owned()) })
    }

    fn describe(&self) -> String {
        "none".to_owned()
    }
}

/// The arbiter of one mirror: its register, wherever it is kept.
pub struct MirrorRegister {
    raw: Rc<dyn RawRegister>,
    /// A register that names both of these is theirs, whoever used it before.
    pair: Option<[NodeId; 2]>,
}

impl MirrorRegister {
    /// The register `raw`.
    pub fn new(raw: Rc<dyn RawRegister>) -> Rc<Self> {
        Rc::new(Self { raw, pair: None })
    }

    /// The same for the pair of nodes `pair`: a register that names both is bound to the two of them,
    /// for a node may be another, or have another key, since it was made.
    pub fn of_pair(raw: Rc<dyn RawRegister>, pair: [NodeId; 2]) -> Rc<Self> {
        Rc::new(Self {
            raw,
            pair: Some(pair),
        })
    }

    async fn put(&self, ask: Ask) -> Result<ArbiterAnswer, NoAnswer> {
        let found = match ask {
            Ask::Read => self.raw.read().await?,
            Ask::Swap { expect, register } => {
                let new = Content {
                    instance: register.instance,
                    seq: register.seq,
                    nonce: register.nonce.0,
                    bytes: register::encode(&register),
                };
                match self.raw.swap(expect, new).await? {
                    Swap::Done => return Ok(ArbiterAnswer::Swapped),
                    Swap::Other(found) => found,
                }
            }
        };
        let Some(content) = found else {
            return Ok(ArbiterAnswer::Register(None));
        };
        let Content {
            instance,
            seq,
            nonce,
            bytes,
        } = content;
        let register = register::decode(instance, seq, nonce, &bytes)
            .map_err(|fault| NoAnswer::Unreachable(format!("{}: {fault}", self.raw.describe())))?;
        let names_both = |pair: [NodeId; 2]| pair.iter().all(|node| register.copies.contains(node));
        if self.pair.is_some_and(names_both) {
            self.raw.bind().await;
        }
        Ok(ArbiterAnswer::Register(Some(register)))
    }
}

impl Arbiter for MirrorRegister {
    fn ask(self: Rc<Self>, ask: Ask) -> Pending {
        Box::pin(async move {
            self.put(ask).await.unwrap_or_else(|none| match none {
                NoAnswer::NotOurs(why) => ArbiterAnswer::NotOurs(why),
                NoAnswer::Unreachable(why) => ArbiterAnswer::Unreachable(why),
            })
        })
    }

    fn describe(&self) -> String {
        self.raw.describe()
    }
}
