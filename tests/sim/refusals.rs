//! *Liveness*: a request is refused only for a reason that is there.

use kagami_replicator::core::event::{Command, IoError};
use kagami_replicator::core::state::Role;
use kagami_replicator::core::{Connection, DiskState};

use super::check::brief;
use super::faults::Fault;
use super::lines::Term;
use super::orders::Ordered;
use super::workload::{Op, Pending};
use super::world::{Checked, World};

impl World {
    /// The node has refused a request.
    pub(super) fn check_refusal(&self, node: usize, pending: &Pending, error: IoError) -> Checked {
        let role = self.nodes[node].mirror.as_ref().map(|mirror| mirror.role());
        let there = match error {
            IoError::NotPrimary => {
                let stepping_down = |ordered: &Ordered| {
                    ordered.node == node
                        && matches!(ordered.command, Command::Demote { .. } | Command::Stop)
                };
                // What it was asked in an earlier time as Primary nobody answers in this one.
                let again = |term: &Term| term.node == node && term.began > pending.start;
                role == Some(Role::Secondary)
                    || self.nodes[node].seen.role == Role::Secondary
                    || self.ghost.terms.iter().any(again)
                    || self.ordered.values().any(stepping_down)
            }
            IoError::Io => {
                // a full store in sync is a failed one, for this copy
                let faults = [
                    Fault::ReadFails,
                    Fault::DiskFails,
                    Fault::FlushFails,
                    Fault::StoreFull,
                    Fault::MetadataFails,
                ];
                let broken = faults.iter().any(|fault| self.stats.count(*fault) > 0);
                // (and one that the other copy has no room for fails)
                let full = self.stats.count(Fault::StoreFull) > 0
                    && !matches!(pending.op, Op::Read { .. });
                let served = self.has_other_copy(node, pending.since) && !full;
                role == Some(Role::Secondary) || broken && !served
            }
            IoError::NoSpace => {
                let writes = pending.op.is_write() || matches!(pending.op, Op::Discard { .. });
                writes && self.stats.count(Fault::StoreFull) > 0
            }
            IoError::OutOfRange | IoError::Unaligned => false,
        };
        if there {
            return Ok(());
        }
        let what = format!(
            "{} refuses {} with {error:?}",
            self.nodes[node].name,
            brief(&pending.op)
        );
        Err(self.violation("Liveness", what))
    }

    /// True if the other copy has been good since then, and is in a session with this node: what this node's disk does is
    /// not its clients' to see. (Where blocks of the other copy could not be read since then, an answer on its way may still
    /// say so; and with protocols A and B that copy may lack what was answered.)
    fn has_other_copy(&self, node: usize, since: u64) -> bool {
        let status = |node: usize| {
            let mirror = self.nodes[node].mirror.as_ref();
            mirror.map(|mirror| mirror.status(self.local(node)))
        };
        let (Some(here), Some(there)) = (status(node), status(1 - node)) else {
            return false;
        };
        let met = [here.connection, there.connection] == [Connection::Connected; 2];
        let good = [here.peer_disk, there.disk] == [DiskState::UpToDate; 2];
        let there = &self.nodes[1 - node].store;
        let bad_until = self.ghost.unreadable_until[1 - node];
        let readable = there.unreadable.is_empty() && bad_until.is_none_or(|until| until < since);
        let steady = self.ghost.not_good[1 - node] < since;
        let sound = !there.failed && readable && steady;
        met && good && sound && !self.may_answer_early()
    }
}
