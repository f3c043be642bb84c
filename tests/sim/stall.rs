//! A mirror that stands still while the others must not.
//!
//! When the faults are over, one mirror of a fleet may be kept from coming to rest: its disk hangs, its store is full,
//! its nodes stay apart or refuse each other, or its front end takes no answers. It is asked for more than its part of
//! the memory holds. The others must come to rest beside it, all their requests answered; then it must, too.

use kagami_replicator::core::event::Command;

use super::content::{self, SECTORS};
use super::faults::Fault;
use super::options::Options;
use super::rng::Rng;
use super::workload::Op;
use super::world::{Checked, MS, World};

/// What keeps a mirror from coming to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// A node's disk does nothing.
    DiskHangs(usize),
    /// A node's store has no room.
    StoreFull(usize),
    /// A node was told to leave the session: its copy is Outdated soon.
    Apart(usize),
    /// Both nodes were forced: they refuse each other.
    SplitBrain,
    /// Its front end takes no answers.
    Deaf,
}

/// Requests that it has at most without an answer.
const DEPTH: usize = 80;

impl Stall {
    /// One that this mirror may have.
    pub fn draw(options: &Options, rng: &mut Rng) -> Self {
        let node = rng.node();
        match rng.below(if options.forced { 8 } else { 6 }) {
            0..2 => Self::DiskHangs(node),
            2 => Self::StoreFull(node),
            3..5 => Self::Apart(node),
            5 => Self::Deaf,
            _ => Self::SplitBrain,
        }
    }

    /// What it is called where it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Self::DiskHangs(_) => "stands still: a disk hangs",
            Self::StoreFull(_) => "stands still: a store is full",
            Self::Apart(_) => "stands still: the nodes are apart",
            Self::SplitBrain => "stands still: a split brain",
            Self::Deaf => "stands still: answers are not taken",
        }
    }

    /// True if answers stay where they are.
    pub fn is_deaf(self) -> bool {
        self == Self::Deaf
    }
}

impl World {
    /// What keeps this mirror from coming to rest, if anything does.
    pub(super) fn stall(&self) -> Option<Stall> {
        self.member.as_ref().and_then(|member| member.stall)
    }

    /// This mirror comes to rest after the others.
    pub(super) fn stand_still(&mut self, stall: Stall) -> Checked {
        let Some(member) = &mut self.member else {
            return Ok(());
        };
        member.stall = Some(stall);
        self.stats.mark(stall.name());
        let name = self.nodes[0].name;
        self.trace.line(|| {
            let now = self.now / 1000;
            format!("{now:>10} {name}'s mirror: {}", stall.name())
        });
        match stall {
            Stall::StoreFull(_) => {
                self.stats.fault(Fault::StoreFull);
                Ok(())
            }
            Stall::Apart(node) => self.command(node, Command::Disconnect),
            Stall::SplitBrain => {
                self.ghost.operator_chose = true;
                self.command(0, Command::Disconnect)
            }
            _ => Ok(()),
        }
    }

    /// It does for a moment more, and its front end goes on asking. `nth`: how many moments before this.
    pub(super) fn lag(&mut self, stall: Stall, look: u64, nth: u64) -> Checked {
        match stall {
            Stall::DiskHangs(node) => self.nodes[node].stalled_until = self.now + look + MS,
            Stall::StoreFull(node) => self.nodes[node].store.full = true,
            Stall::SplitBrain if nth == 10 => {
                let (force, while_resyncing) = (true, false);
                for node in 0..2 {
                    let promote = Command::Promote {
                        force,
                        while_resyncing,
                    };
                    self.command(node, promote)?;
                }
            }
            Stall::SplitBrain if nth == 20 => self.command(0, Command::Connect)?,
            _ => {}
        }
        if nth % 20 == 7 && self.server().is_none() {
            let node = self.fault_rng.node();
            self.promote(node, true)?;
        }
        while let Some(node) = self.server()
            && self.pending.len() + self.asked() < DEPTH
        {
            let op = self.draw_op();
            if matches!(op, Op::Flush) {
                break;
            }
            self.request(node, op)?;
        }
        Ok(())
    }

    /// A mirror among others writes more at once than its part of the memory holds, whatever the others hold.
    pub(super) fn press(&mut self, node: usize) -> Checked {
        if self.member.is_none() {
            return Ok(());
        }
        let sectors = self.options.sectors();
        for _ in 0..DEPTH / 2 {
            let sector = self.load_rng.pick(&self.options.hot_spots) * SECTORS as u64;
            self.writes += 1;
            let number = self.writes;
            let span = sector..(sector + 16 * SECTORS as u64).min(sectors);
            let values = span.map(|sector| content::value(sector, number)).collect();
            let fua = false;
            let write = Op::Write {
                sector,
                values,
                fua,
            };
            self.request(node, write)?;
        }
        Ok(())
    }

    /// It is as free to come to rest as any other.
    pub(super) fn go_free(&mut self) {
        let Some(stall) = self.member.as_mut().and_then(|one| one.stall.take()) else {
            return;
        };
        self.stats.mark("stands still: no more");
        self.ghost.last_fault = self.now;
        let rooms = self.member.iter_mut().flat_map(|one| &mut one.rooms);
        rooms.for_each(|room| room.untaken.clear());
        if let Stall::StoreFull(node) = stall {
            self.nodes[node].store.full = false;
        }
        // (For whatever reason: nobody has restarted a daemon for this mirror meanwhile.)
        (0..2).for_each(|node| self.restart_if_failed(node));
    }
}
