//! The end of a run: the faults are over, and the pair must come to rest.
//!
//! *Converges*: within a bounded time both copies are UpToDate, nothing is marked, every held
//! request is answered, the register names both, and the copies are equal, byte for byte. Then
//! the Primary is asked for everything that was ever written.

use kagami_bitmap::{Block, Run};
use kagami_replicator::core::event::{Command, From};
use kagami_replicator::core::state::{NodeId, Role, Solo};
use kagami_replicator::core::{Connection, DiskState, Mirror, Replication};

use super::check::{Violation, brief};
use super::content::{self, BlockValue};
use super::workload::Op;
use super::world::{Checked, Happening, MS, Phase, World};

/// A storm is not longer than this, ns.
pub const LONGEST_STORM: u64 = 120_000 * MS;
/// How often it is looked whether the pair is at rest.
const LOOK: u64 = 50 * MS;

impl World {
    /// Ends the storm: everything broken is mended, nobody breaks anything any more.
    pub(super) fn calm(&mut self) {
        self.phase = Phase::Calm { since: self.now };
        self.trace
            .line(|| format!("{:>10} the faults are over", self.now / 1000));
        if !self.net.is_whole() {
            self.block([false, false]);
        }
        self.ghost.last_fault = self.stalls_end();
        self.arbiter.down = false;
        self.net.slow = 1;
        self.net.stalled_until = [[0; 3]; 2];
        for node in 0..2 {
            self.plan(0, Happening::Resume { node });
            let at = &mut self.nodes[node];
            at.slow = 1;
            at.stalled_until = 0;
            at.paused_until = 0;
            at.store.full = false;
            at.meta.fail_next = None;
            at.meta.stalled_until = 0;
            at.meta.harm_at_start = false;
            if !at.store.unreadable.is_empty() {
                self.ghost.unreadable_until[node] = Some(self.now);
            }
            at.store.unreadable.clear();
            if at.store_suspect {
                self.replace_disk(node);
            }
            if !self.nodes[node].up {
                self.plan(MS, Happening::Boot { node });
            } else if self.nodes[node].mirror.is_none() && self.nodes[node].repairing.is_none() {
                self.start_in(node, MS);
            }
        }
        self.plan(LOOK, Happening::Rest);
    }

    /// Has the pair come to rest? Else operators do what they would do, and it goes on.
    pub(super) fn rest(&mut self) -> Checked {
        let Phase::Calm { since } = self.phase else {
            return Ok(());
        };
        if let Some(stall) = self.stall() {
            self.lag(stall, LOOK, (self.now - since) / LOOK)?;
            self.plan(LOOK, Happening::Rest);
            return Ok(());
        }
        if self.rot.is_bad() {
            if self.tend_rot()? {
                self.plan(LOOK, Happening::Rest);
                return self.check_patience(since);
            }
        } else if self.is_at_rest() {
            self.check_converged()?;
            return self.last_words();
        }
        self.check_patience(since)?;
        self.operate((self.now - since) / LOOK)?;
        self.plan(LOOK, Happening::Rest);
        Ok(())
    }

    /// *Converges*: it does not take for ever.
    fn check_patience(&self, since: u64) -> Checked {
        let settings = &self.options.settings;
        let slow = settings.timeout_ms + settings.ack_timeout_ms + settings.arbiter_timeout_ms;
        let waits =
            MS * (20_000 + 30 * slow) + self.options.net_ns * 4000 + self.options.meta_ns * 2000;
        if self.now - since > waits {
            return Err(self.stuck());
        }
        Ok(())
    }

    /// *Converges*: at rest, both copies hold the same bytes, on stable storage, in one generation.
    fn check_converged(&self) -> Checked {
        let [a, b] = &self.nodes;
        if let Some(block) = a.store.first_difference(&b.store) {
            let (x, y): (BlockValue, BlockValue) = (a.store.block(block), b.store.block(block));
            let writers = |values: BlockValue| values.map(content::writer);
            let what = format!(
                "in sync, and block {block} is {:?} on a, {:?} on b",
                writers(x),
                writers(y)
            );
            return Err(self.violation("Converges", what));
        }
        let records = (a.meta.record(), b.meta.record());
        let (Some(x), Some(y)) = records else {
            return Err(self.violation("No-torn-metadata", "a record can't be read at rest"));
        };
        if x.current != y.current || x.base.is_some() || y.base.is_some() || x.alone || y.alone {
            return Err(self.violation(
                "Converges",
                format!("in sync with records that differ: {x:?} / {y:?}"),
            ));
        }
        Ok(())
    }

    /// The pair did not come to rest: what each node says of it.
    fn stuck(&self) -> Violation {
        let mut what = String::from("not at rest in time");
        for node in 0..2 {
            let at = &self.nodes[node];
            let Some(mirror) = &at.mirror else {
                what += &format!("; {} is dead (idle {})", at.name, at.is_idle());
                continue;
            };
            let s = mirror.status(self.local(node));
            what += &format!(
                "; {} {} {}/{} {} {} marks {} held {:?} verdict {:?} all durable {}",
                at.name,
                s.role,
                s.disk,
                s.peer_disk,
                s.connection,
                s.replication,
                s.marked_blocks,
                s.held,
                s.verdict.map(|verdict| verdict.row),
                at.store.is_all_durable(),
            );
        }
        for pending in self.pending.values().take(3) {
            what += &format!(
                "; waits: {} at {}",
                brief(&pending.op),
                self.nodes[pending.node].name
            );
        }
        for ordered in self.ordered.values().take(3) {
            what += &format!(
                "; waits: {:?} at {}",
                ordered.command, self.nodes[ordered.node].name
            );
        }
        what += &self.room_words();
        let current = |node: usize| {
            self.nodes[node]
                .meta
                .record()
                .and_then(|record| record.current)
        };
        what += &format!(
            "; generations {:x?} / {:x?}, register {:x?}",
            current(0),
            current(1),
            self.arbiter.register()
        );
        self.violation("Converges", what)
    }

    /// What operators do in calm: everything on, somebody Primary, forks resolved.
    fn operate(&mut self, nth: u64) -> Checked {
        if nth.is_multiple_of(10) {
            self.finish_orders()?;
        }
        for node in 0..2 {
            let parted = |mirror: &Mirror| mirror.peer() == NodeId::NOBODY;
            if nth.is_multiple_of(20) && self.nodes[node].mirror.as_ref().is_some_and(parted) {
                let peer = self.nodes[node].peer;
                self.command(node, Command::SetPeer { peer })?;
            }
            if nth.is_multiple_of(20) && self.nodes[node].mirror.is_some() {
                self.command(node, Command::ResumeSync)?;
                if self.connection(node) == Connection::StandAlone {
                    self.command(node, Command::Connect)?;
                }
            }
        }
        if nth % 20 == 7 && !self.has_primary() {
            let node = self.fault_rng.node();
            self.promote(node, nth % 40 == 7)?;
        }
        if nth % 20 == 17
            && let Some(node) = (0..2).find(|node| self.has_marks_in_sync(*node))
        {
            let from = match self.nodes[node].seen.role {
                Role::Primary => From::Local,
                Role::Secondary => From::Peer,
            };
            self.ghost.operator_chose = true;
            self.command(
                node,
                Command::Resync {
                    from: Some(from),
                    full: false,
                },
            )?;
        }
        if nth % 20 == 13 && self.may_resolve() {
            self.ghost.operator_chose = true;
            // never over a Primary: it would refuse; nor with a copy that is being copied to
            let is_whole = |node: usize| self.nodes[node].seen.disk != DiskState::Inconsistent;
            let keeper = (0..2)
                .find(|node| self.nodes[*node].seen.role == Role::Primary)
                .or((0..2).find(|node| is_whole(*node) && !is_whole(1 - node)))
                .unwrap_or(nth as usize / 20 % 2);
            let demoted = 1 - keeper;
            if self.options.forced && !is_whole(keeper) && !is_whole(1 - keeper) {
                // Both were chosen as losers, or invalidated: one is taken as it is.
                return self.command(
                    keeper,
                    Command::Promote {
                        force: true,
                        while_resyncing: false,
                    },
                );
            }
            if self.nodes[demoted].seen.role == Role::Primary {
                self.command(demoted, Command::Demote { force: true })?;
            }
            // At both, so that no earlier word contradicts it.
            for (node, from) in [(keeper, From::Local), (demoted, From::Peer)] {
                if self.nodes[node].mirror.is_some() {
                    let from = Some(from);
                    self.command(node, Command::Resync { from, full: false })?;
                }
            }
        }
        Ok(())
    }

    /// What a verification found stays marked until somebody orders otherwise.
    fn has_marks_in_sync(&self, node: usize) -> bool {
        self.nodes[node].mirror.as_ref().is_some_and(|mirror| {
            let status = mirror.status(self.local(node));
            status.replication == Replication::Established && status.marked_blocks > 0
        })
    }

    fn has_primary(&self) -> bool {
        self.nodes
            .iter()
            .any(|node| node.seen.role == Role::Primary)
    }

    /// The copies may have forked, and both nodes know that they can't come together by themselves.
    fn may_resolve(&self) -> bool {
        let forked = self.options.may_fork() || self.ghost.invalidated || self.is_cut_promotion();
        forked && self.ghost.refused_lately()
    }

    pub(super) fn is_at_rest(&self) -> bool {
        let register_fits =
            self.options.settings.solo != Solo::Arbiter || self.register_names_both();
        let both = |node: usize| {
            let Some(mirror) = &self.nodes[node].mirror else {
                return false;
            };
            let status = mirror.status(self.local(node));
            status.connection == Connection::Connected
                && status.replication == Replication::Established
                && status.disk == DiskState::UpToDate
                && status.peer_disk == DiskState::UpToDate
                && status.marked_blocks == 0
        };
        both(0)
            && both(1)
            && self.pending.is_empty()
            && !self.waits_for_room()
            && self.abandoned.is_empty()
            && self.ordered.is_empty()
            && self.has_primary()
            && register_fits
            && self.old_arbiter.is_none()
            && (!self.growth_begun
                || (0..2).all(|node| self.size_of(node) == Some(self.options.grown)))
            && self.is_all_flushed()
            && (0..2).all(|node| {
                self.nodes[node].store.is_idle() && self.nodes[node].store.is_all_durable()
            })
    }

    /// Nothing is on its way to the other copy either (protocol A answers before it arrives).
    fn is_all_flushed(&self) -> bool {
        let lacks = |block: &u64| {
            let run = Run::new(Block(*block), 1);
            self.nodes
                .iter()
                .any(|node| node.mirror.as_ref().is_some_and(|mirror| mirror.lacks(run)))
        };
        !self.ghost.touched.iter().any(lacks)
    }

    fn register_names_both(&self) -> bool {
        let current = self.nodes[0]
            .meta
            .record()
            .and_then(|record| record.current);
        self.arbiter.register().is_some_and(|register| {
            register.copies.len() == 2
                && current.is_some_and(|current| current.tag == register.generation)
        })
    }

    /// The Primary is asked for all that was written, and for a flush; then the run is over.
    fn last_words(&mut self) -> Checked {
        if self.ghost.last_words {
            if self.begin_rot()? {
                self.plan(LOOK, Happening::Rest);
            } else {
                self.phase = Phase::Over;
            }
            return Ok(());
        }
        self.ghost.last_words = true;
        let primary = usize::from(self.nodes[0].seen.role != Role::Primary);
        self.press(primary)?;
        let end = self.options.sectors();
        let sectors: Vec<u64> = self
            .history
            .sectors()
            .filter(|sector| *sector < end)
            .collect();
        for run in sectors.chunk_by(|a, b| a + 1 == *b) {
            for piece in run.chunks(256) {
                let (sector, count) = (piece[0], piece.len() as u64);
                self.request(primary, Op::Read { sector, count })?;
            }
        }
        self.request(primary, Op::Flush)?;
        self.plan(LOOK, Happening::Rest);
        Ok(())
    }
}
