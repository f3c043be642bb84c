//! Front ends that deliver a request twice.
//!
//! A client whose connection breaks connects again and asks again for all that was not answered,
//! while the first delivery may still be under way, be done, or wait. It is one request to the
//! client: it ends with the answer to the second delivery, and nothing of it may land after that
//! (*Once*). After the death of a daemon the next one is asked, as the kernel's driver does; that
//! is a write like a new one, since the other node may have served meanwhile.

use kagami_replicator::core::event::Event;
use kagami_replicator::core::state::{RequestId, Role};

use super::super::workload::{Op, Pending};
use super::super::world::{Checked, Phase, World};
use super::Fault;

impl World {
    /// The connection of a node's front end breaks, and it is back at once. True if it had asked
    /// for anything.
    pub(super) fn ask_again(&mut self, node: usize) -> Checked<bool> {
        let mut ids: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.node == node)
            .map(|(id, _)| *id)
            .collect();
        if self.nodes[node].mirror.is_none() || ids.is_empty() {
            return Ok(false);
        }
        let life = self.nodes[node].life;
        while !ids.is_empty() && self.nodes[node].life == life {
            // requests that wait for their answers together come again in any order
            let nth = self.fault_rng.below(ids.len() as u64) as usize;
            let id = ids.swap_remove(nth);
            let Some(pending) = self.pending.remove(&id) else {
                continue; // answered since
            };
            self.abandoned.insert(id, node);
            self.deliver_again(pending)?;
        }
        Ok(true)
    }

    fn deliver_again(&mut self, pending: Pending) -> Checked {
        self.sent += 1;
        let (id, node) = (self.sent, pending.node);
        let request = pending.op.request();
        self.pending.insert(id, pending);
        let id = RequestId(id);
        self.feed(node, Event::Request { id, request })
    }

    /// True if this was the first delivery of a request that came again: nobody hears the answer.
    pub(in crate::sim) fn is_abandoned(&mut self, node: usize, id: u64) -> bool {
        self.abandoned
            .remove(&id)
            .is_some_and(|asked| asked == node)
    }

    /// A daemon died with this unanswered.
    pub(in crate::sim) fn remember_unanswered(&mut self, node: usize, op: &Op) {
        if self.options.kit.asks_again && self.phase == Phase::Storm {
            self.nodes[node].unanswered.push(op.clone());
        }
    }

    /// The daemon that came after it is asked for that.
    pub(in crate::sim) fn ask_next_daemon(&mut self) -> Checked {
        for node in 0..2 {
            let at = &self.nodes[node];
            if at.unanswered.is_empty() || at.seen.role != Role::Primary || at.mirror.is_none() {
                continue;
            }
            for op in std::mem::take(&mut self.nodes[node].unanswered) {
                if self.nodes[node].mirror.is_some() {
                    self.stats.fault(Fault::AsksAgain);
                    self.request(node, op)?;
                }
            }
        }
        Ok(())
    }
}
