//! What is counted of guests: targets that are Primary, for whom their source answers
//! (docs/protocol.md §5, *A target that is Primary*).

use kagami_replicator::core::DiskState;
use kagami_replicator::core::situation::With;
use kagami_replicator::core::state::Role;

use super::node::Seen;
use super::workload::Op;
use super::world::World;

fn is_guest(seen: Seen) -> bool {
    seen.role == Role::Primary && seen.disk == DiskState::Inconsistent
}

impl World {
    /// A guest answered a request.
    pub(super) fn mark_guest(&mut self, node: usize, op: &Op) {
        if is_guest(self.nodes[node].seen) {
            self.stats.mark(match op {
                Op::Read { .. } => "guest: a read answered",
                Op::Flush => "guest: a flush answered",
                _ => "guest: a write answered",
            });
        }
    }

    /// A node did a step, and was `before` it what it says.
    pub(super) fn mark_guest_step(&mut self, node: usize, before: Seen) {
        let now = self.nodes[node].seen;
        match (is_guest(before), is_guest(now)) {
            (false, true) => self.stats.mark("guest: promoted"),
            (true, false) if now.role == Role::Primary => {
                self.stats.mark("guest: in sync, and Primary still");
            }
            (true, false) => self.stats.mark("guest: Primary no more before in sync"),
            _ => {}
        }
        if !is_guest(now) {
            self.ghost.guest_waits[node] = false;
            return;
        }
        let Some(mirror) = &self.nodes[node].mirror else {
            return;
        };
        match mirror.situation().peer {
            With::Nobody => self.ghost.guest_waits[node] = true,
            With::Target if std::mem::take(&mut self.ghost.guest_waits[node]) => {
                self.stats.mark("guest: goes on in another session");
            }
            _ => {}
        }
    }
}
