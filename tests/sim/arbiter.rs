//! The arbiter: one register that changes by compare-and-swap, and the ways to it.
//!
//! Decides nothing but whether a swap fits. Requests and answers are carried by the world, which
//! delays, loses and repeats them; a request may arrive long after its asker has died.

use kagami_replicator::core::register::{ArbiterAnswer, Ask, Register};
use kagami_replicator::core::state::{Attempt, NodeId};

/// The arbiter.
#[derive(Clone, Debug, Default)]
pub struct Arbiter {
    register: Option<Register>,
    /// It answers nobody.
    pub down: bool,
    /// Swaps that took place.
    pub swaps: u64,
}

/// A question on its way, or its answer on the way back.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who asked.
    pub node: usize,
    /// In which life of its daemon.
    pub life: u64,
    /// Comes back with the answer.
    pub attempt: Attempt,
    /// Which arbiter was asked: they are numbered as they replace each other.
    pub arbiter: u32,
    /// What was asked.
    pub ask: Ask,
    /// When, ns.
    pub asked: u64,
}

impl Arbiter {
    /// What it holds.
    pub fn register(&self) -> Option<&Register> {
        self.register.as_ref()
    }

    /// True if this node may go on alone by the register.
    pub fn names(&self, node: NodeId) -> bool {
        self.register
            .as_ref()
            .is_some_and(|register| register.copies.contains(&node))
    }

    /// Carries out a question that arrived.
    pub fn answer(&mut self, ask: &Ask) -> ArbiterAnswer {
        match ask {
            Ask::Read => ArbiterAnswer::Register(self.register.clone()),
            Ask::Swap { expect, register } => {
                let here = self.register.as_ref().map(|held| (held.instance, held.seq));
                if here == *expect {
                    self.register = Some(register.clone());
                    self.swaps += 1;
                    ArbiterAnswer::Swapped
                } else {
                    ArbiterAnswer::Register(self.register.clone())
                }
            }
        }
    }

    /// The arbiter's disk is replaced: it knows nothing any more.
    pub fn wipe(&mut self) {
        self.register = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_fits_or_changes_nothing() {
        let register = |seq| Register {
            instance: 7,
            seq,
            copies: vec![NodeId(1)],
            generation: 5,
            parent: 4,
            nonce: Attempt(seq),
            forced: false,
        };
        let swap = |expect, seq| Ask::Swap {
            expect,
            register: register(seq),
        };
        let mut arbiter = Arbiter::default();
        assert_eq!(arbiter.answer(&Ask::Read), ArbiterAnswer::Register(None));
        assert_eq!(arbiter.answer(&swap(None, 1)), ArbiterAnswer::Swapped);
        assert_eq!(
            arbiter.answer(&swap(None, 1)),
            ArbiterAnswer::Register(Some(register(1)))
        );
        assert_eq!(
            arbiter.answer(&swap(Some((7, 1)), 2)),
            ArbiterAnswer::Swapped
        );
        assert_eq!(
            arbiter.answer(&swap(Some((7, 1)), 3)),
            ArbiterAnswer::Register(Some(register(2)))
        );
        assert!(arbiter.names(NodeId(1)) && !arbiter.names(NodeId(2)));
    }
}
