//! The arbiter's register (docs/protocol.md §4): who may go on alone.

use super::state::{Attempt, NodeId};

/// The register of one mirror. An arbiter changes it only by compare-and-swap on
/// (instance, seq), and keeps it on stable storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// Drawn at creation; both copies have recorded it.
    pub instance: u64,
    /// Raised by every change.
    pub seq: u64,
    /// The copies that may go on alone: one or both.
    pub copies: Vec<NodeId>,
    /// Tag of the generation that the named copy goes on as, or that both are in.
    pub generation: u64,
    /// Tag of the generation before it; 0 for none.
    pub parent: u64,
    /// Whose change this was: finding one's own means that the change took place.
    pub nonce: Attempt,
    /// An operator overrode it.
    pub forced: bool,
}

impl Register {
    /// What it says, for people: nodes by the ids of their configuration, the generation by its tag.
    pub(super) fn names(&self) -> String {
        let copies: Vec<String> = (self.copies.iter())
            .map(|id| format!("node {id}"))
            .collect();
        let copies = copies.join(" and ");
        format!("it names {copies} (generation {:016x})", self.generation)
    }
}

/// One question to the arbiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// What does the register hold?
    Read,
    /// Change it, if it is still what `expect` says.
    Swap {
        /// (instance, seq) of the register to replace; `None`: there is none yet.
        expect: Option<(u64, u64)>,
        /// What it is to hold.
        register: Register,
    },
}

/// The arbiter's answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArbiterAnswer {
    /// The register as read, or as it stands now that a swap was refused. `None`: empty.
    Register(Option<Register>),
    /// The swap took place and is durable.
    Swapped,
    /// The register is other nodes': this one was replaced, or taken out. It grants nothing here.
    NotOurs(String),
    /// No answer, and why. Nothing is known of a swap's outcome.
    Unreachable(String),
}
