//! What becomes of an operator's word on whose copy stays (*No-silent-fork*).
//!
//! It is carried out or refused, never turned round; it never overwrites a Primary; and a node that was
//! Primary since it was told says it no more.

use kagami_bitmap::superblock::StoredDisk;
use kagami_replicator::core::decide::{Row, kept};
use kagami_replicator::core::message::Hello;
use kagami_replicator::core::settings::BothStalePolicy;
use kagami_replicator::core::state::Role;

use super::lines::Term;
use super::world::{Checked, World};

/// What was said of whose copy stays.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// The connection and the hello that each node sent last.
    hellos: [Option<(u64, Hello)>; 2],
    /// The event at which each was last told a word.
    told: [u64; 2],
}

impl World {
    /// A node is told whose copy is to stay.
    pub(super) fn tell_word(&mut self, node: usize) {
        self.ghost.words.told[node] = self.tick;
    }

    /// A node says hello.
    pub(super) fn hear_hello(&mut self, node: usize, session: u64, hello: &Hello) -> Checked {
        let name = self.nodes[node].name;
        if let Some(keep) = hello.keep {
            let told = self.ghost.words.told[node];
            let since = |term: &&Term| term.node == node && term.began > told;
            let by_person = self.options.settings.both_stale == BothStalePolicy::Wait;
            if by_person && let Some(term) = self.ghost.terms.iter().find(since) {
                let what = format!(
                    "{name} says to keep {keep}'s copy: it was told so at event {told}, and was Primary from event {}",
                    term.began
                );
                return Err(self.violation("No-silent-fork", what));
            }
            if keep != hello.node {
                // Whose copy is chosen may repeat it.
                self.tell_word(1 - node);
            }
        }
        self.ghost.words.hellos[node] = Some((connection(session), hello.clone()));
        Ok(())
    }

    /// A node has done what the verdict demands of it.
    pub(super) fn check_word(&self, node: usize, session: u64) -> Checked {
        let [Some((first, mine)), Some((second, theirs))] = &self.ghost.words.hellos else {
            return Ok(());
        };
        let status = self.nodes[node]
            .mirror
            .as_ref()
            .map(|m| m.status(self.local(node)));
        let verdict = status.and_then(|status| status.verdict);
        let (Some(chosen), Some(verdict)) = (kept(mine, theirs), verdict) else {
            return Ok(());
        };
        let Some(source) = verdict
            .source()
            .filter(|_| [*first, *second] == [connection(session); 2])
        else {
            return Ok(());
        };
        let (winner, loser) = if mine.node == chosen {
            (mine, theirs)
        } else {
            (theirs, mine)
        };
        // A copy that is partly overwritten goes on as the target that it was, whatever is said.
        if source != chosen {
            if winner.disk == StoredDisk::Inconsistent {
                return Ok(());
            }
            let what = format!(
                "{chosen}'s copy was chosen, and {source}'s stays ({:?})",
                verdict.row
            );
            return Err(self.violation("No-silent-fork", what));
        }
        let by_word = matches!(
            verdict.row,
            Row::Forked | Row::Unrelated | Row::AheadForcedBad
        );
        if by_word && loser.role == Role::Primary && loser.disk != StoredDisk::Inconsistent {
            let what = format!("{chosen}'s copy was chosen, and overwrites a Primary's");
            return Err(self.violation("No-silent-fork", what));
        }
        Ok(())
    }
}

/// Each end has a session of its own (`World::node_session`).
fn connection(session: u64) -> u64 {
    session >> 1
}
