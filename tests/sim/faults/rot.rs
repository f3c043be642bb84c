//! Data of one copy that go bad in silence: flipped bits, writes that were lost or misdirected.
//!
//! The mirror keeps no checksums at rest: a read of such a block is wrong, and nothing tells. What
//! it promises is that `verify` finds just those blocks, whatever is written beside them meanwhile,
//! and that an operator's word, or `--repair` from the Primary, mends them. So this comes at the
//! end of a run, once the pair is at rest, and no read meets a bad block before it is mended.

use std::collections::BTreeSet;

use kagami_bitmap::{Block, Run};
use kagami_replicator::core::event::{Command, From};
use kagami_replicator::core::state::Role;

use super::super::content::{BlockValue, SECTORS, ZEROES};
use super::super::meta::recover_bytes;
use super::super::world::{Checked, Phase, World};
use super::Fault;

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// The data are good, or in this run they stay so.
    #[default]
    None,
    /// The Primary compares the copies.
    Verifying,
    /// The good copy's node is to be Primary.
    Turning,
    /// The bad copy is brought up to date.
    Mending,
    /// It was.
    Mended,
}

/// The bad blocks, and what became of them.
#[derive(Clone, Debug, Default)]
pub struct Rot {
    pub stage: Stage,
    /// Whose copy is bad.
    copy: usize,
    /// Its bad blocks.
    pub blocks: BTreeSet<u64>,
    found: BTreeSet<u64>,
    /// The verification's command.
    verify: u64,
    repair: bool,
    /// Requests beside the verification.
    load: u64,
}

impl Rot {
    /// True if the blocks are bad now.
    pub fn is_bad(&self) -> bool {
        !matches!(self.stage, Stage::None | Stage::Mended)
    }

    /// True if the block is bad now, and the bad one is this copy's: what a flush made durable there went bad
    /// afterwards.
    pub fn is_of(&self, copy: usize, block: u64) -> bool {
        self.copy == copy && self.has(block)
    }

    /// True if the block is bad now.
    pub fn has(&self, block: u64) -> bool {
        self.is_bad() && self.blocks.contains(&block)
    }
}

impl World {
    /// At rest: data go bad, if this run is one of those. False: they do not.
    pub(in crate::sim) fn begin_rot(&mut self) -> Checked<bool> {
        if !self.options.kit.rot || self.rot.stage != Stage::None {
            return Ok(false);
        }
        self.rot.copy = self.fault_rng.node();
        let touched: Vec<u64> = self.ghost.touched.iter().copied().collect();
        for _ in 0..self.fault_rng.pick(&[1, 2, 7, 40]) {
            let block = if touched.is_empty() || self.fault_rng.percent(10) {
                self.fault_rng.below(self.options.blocks())
            } else {
                self.fault_rng.pick(&touched)
            };
            self.spoil(block);
        }
        if self.rot.blocks.is_empty() {
            return Ok(false);
        }
        self.trace.line(|| {
            let name = ["a", "b"][self.rot.copy];
            format!(
                "{:>10} {name} data go bad: blocks {:?}",
                self.now / 1000,
                self.rot.blocks
            )
        });
        self.rot.stage = Stage::Verifying;
        self.phase = Phase::Calm { since: self.now };
        // With the bad copy's node as Primary, a repair would copy what is bad.
        let primary = self.primary();
        self.rot.repair = primary != self.rot.copy && self.fault_rng.coin();
        self.rot.verify = self.sent + 1;
        let repair = self.rot.repair;
        self.command(primary, Command::Verify { repair })?;
        Ok(true)
    }

    fn primary(&self) -> usize {
        usize::from(self.nodes[0].seen.role != Role::Primary)
    }

    fn spoil(&mut self, block: u64) {
        let copy = self.rot.copy;
        let good = self.nodes[copy].store.block(block);
        let mut bad: BlockValue = good;
        let nth = self.fault_rng.below(SECTORS as u64) as usize;
        match self.fault_rng.below(4) {
            // a bit: a writer that never was
            0 | 1 => bad[nth] ^= 1 << self.fault_rng.below(31),
            // the last write was lost
            2 => bad = ZEROES,
            // another block's write came here
            _ => {
                let other = self.fault_rng.pick(&self.options.hot_spots);
                bad = self.nodes[copy].store.block(other);
            }
        }
        if bad != good && !self.rot.blocks.contains(&block) {
            self.nodes[copy].store.preload(block, bad);
            self.rot.blocks.insert(block);
            self.ghost.touched.insert(block);
            self.stats.fault(Fault::DataDamage);
        }
    }

    /// A verification says that a run differs.
    pub(in crate::sim) fn rot_found(&mut self, run: Run) {
        if self.rot.is_bad() {
            self.rot.found.extend(run.first.0..run.end().0);
        }
    }

    /// What operators do while data are bad. True if they are.
    pub(in crate::sim) fn tend_rot(&mut self) -> Checked<bool> {
        match self.rot.stage {
            Stage::None | Stage::Mended => return Ok(false),
            Stage::Verifying => self.watch_verify()?,
            Stage::Turning => self.turn()?,
            Stage::Mending => {
                let [a, b] = &self.nodes;
                let equal = a.store.first_difference(&b.store).is_none();
                if equal && self.is_at_rest() {
                    self.rot.stage = Stage::Mended;
                    self.stats.mark("bad data mended");
                    self.ghost.last_words = false;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn watch_verify(&mut self) -> Checked {
        if self.ordered.contains_key(&self.rot.verify) {
            if self.rot.load < 40 {
                self.load_beside()?;
            }
            return Ok(());
        }
        if self.rot.found != self.rot.blocks {
            let (found, bad) = (&self.rot.found, &self.rot.blocks);
            let what = format!("verify found {found:?}, and {bad:?} are bad");
            return Err(self.violation("Verify-finds-just-that", what));
        }
        self.stats.mark("bad data found by verify");
        self.check_found_is_kept()?;
        self.ghost.operator_chose = true;
        let primary = self.primary();
        if self.rot.repair {
            self.rot.stage = Stage::Mending;
        } else if primary == self.rot.copy {
            self.rot.stage = Stage::Turning;
            self.command(primary, Command::Demote { force: false })?;
        } else {
            self.mend_by_word(primary)?;
        }
        Ok(())
    }

    /// What was told as marked is marked whatever happens next (*Marked-before-different*).
    fn check_found_is_kept(&mut self) -> Checked {
        let node = &self.nodes[self.primary()];
        if self.rot.repair {
            // It is being mended by now.
            return Ok(());
        }
        let bytes = node.meta.after_crash(&mut self.check_rng.fork());
        // (Where neither slot of the superblock is whole no daemon starts.)
        let Ok(recovered) = recover_bytes(&bytes) else {
            return Ok(());
        };
        let mut blocks = self.rot.blocks.iter();
        if let Some(lost) = blocks.find(|block| !recovered.bitmap.is_marked(Block(**block))) {
            let what =
                format!("verify has told that block {lost} is marked, and a crash would forget it");
            return Err(self.violation("Marked-before-different", what));
        }
        Ok(())
    }

    fn turn(&mut self) -> Checked {
        let good = 1 - self.rot.copy;
        let role = |node: usize| self.nodes[node].seen.role;
        match (role(good), role(self.rot.copy)) {
            (Role::Primary, _) => self.mend_by_word(good),
            (Role::Secondary, Role::Primary) => {
                self.command(self.rot.copy, Command::Demote { force: false })
            }
            (Role::Secondary, Role::Secondary) => self.command(
                good,
                Command::Promote {
                    force: false,
                    while_resyncing: false,
                },
            ),
        }
    }

    fn mend_by_word(&mut self, good: usize) -> Checked {
        self.rot.stage = Stage::Mending;
        let from = Some(From::Local);
        self.command(good, Command::Resync { from, full: false })
    }

    /// Requests that touch no bad block go on.
    fn load_beside(&mut self) -> Checked {
        let primary = self.primary();
        for _ in 0..4 {
            let op = self.draw_op();
            let unit = SECTORS as u64;
            let spans = match &op {
                super::super::workload::Op::Read { sector, count } => *sector..*sector + *count,
                op => {
                    let mut sectors = op.writes().map(|(sector, _)| sector);
                    let first = sectors.next().unwrap_or(0);
                    first..sectors.last().unwrap_or(first) + 1
                }
            };
            let blocks = spans.start / unit..spans.end.div_ceil(unit);
            if self.rot.blocks.range(blocks).next().is_none() {
                self.rot.load += 1;
                self.request(primary, op)?;
            }
        }
        Ok(())
    }
}

/// What a bit flip makes of a value is no value that was written.
#[cfg(test)]
mod tests {
    use super::super::super::content;

    #[test]
    fn a_flipped_bit_is_another_value() {
        let good = content::value(9, 3);
        for bit in 0..31 {
            assert_ne!(good ^ 1 << bit, good);
            assert!(content::belongs(good ^ 1 << bit, 9));
        }
    }
}
