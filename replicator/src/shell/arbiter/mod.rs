//! Arbiters: who decides which copy may go on alone (docs/protocol.md §4).
//!
//! The core asks and judges the answers; an arbiter only carries a question to a register and an
//! answer back. Behind the one trait: [`NoArbiter`], and the witness
//! ([`crate::shell::witness::Client`]); etcd has its place here too.
//!
//! What every implementation owes the core: a swap that it reports as done is on the register's
//! stable storage; a swap whose outcome it does not know is [`ArbiterAnswer::Unreachable`], never a
//! guess; an answer belongs to the very question asked.

pub mod register;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use crate::core::register::{ArbiterAnswer, Ask};
use crate::core::state::Attempt;

/// An answer on its way. Dropping it gives the question up; a swap may take place all the same.
pub type Pending = Pin<Box<dyn Future<Output = ArbiterAnswer>>>;

/// The register of one mirror (or group) at some arbiter; it lives on the mirror's thread.
pub trait Arbiter {
    /// Puts one question. Always answers, within a time-out of its own.
    fn ask(self: Rc<Self>, attempt: Attempt, ask: Ask) -> Pending;

    /// Name and place, for people.
    fn describe(&self) -> String;
}

/// No arbiter is configured: nothing is ever granted.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoArbiter;

impl Arbiter for NoArbiter {
    fn ask(self: Rc<Self>, _attempt: Attempt, _ask: Ask) -> Pending {
        Box::pin(async { ArbiterAnswer::Unreachable("no arbiter is configured".to_owned()) })
    }

    fn describe(&self) -> String {
        "none".to_owned()
    }
}
