//! Orders that change what a mirror is made of, and orders at the worst moment.
//!
//! Another protocol while it runs; another arbiter, on one node after the other; another disk in
//! the place of one whose peer has everything; a larger size, on one node after the other; both
//! copies forced at once. In some runs an operator also orders something whenever a node's
//! connection or replication changes: in the middle of a handshake, of a promotion, of a
//! resynchronisation's first or last step.

use kagami_bitmap::{Block, Page, Run};
use kagami_replicator::core::event::Command;
use kagami_replicator::core::state::{Protocol, Role};
use kagami_replicator::core::{Connection, DiskState, Replication};

use super::super::arbiter::Arbiter;
use super::super::history::Level;
use super::super::node::fresh_copy;
use super::super::orders::Order;
use super::super::world::{Checked, Happening, MS, Phase, World};

/// What a node's status showed last, in runs with orders at the worst moment.
pub type Moment = (Connection, Replication);

impl World {
    pub(in crate::sim) fn order_more(&mut self, order: Order, node: usize) -> Checked {
        match order {
            Order::ForceBoth => {
                self.ghost.operator_chose = true;
                for node in [node, 1 - node] {
                    self.command(
                        node,
                        Command::Promote {
                            force: true,
                            while_resyncing: false,
                        },
                    )?;
                }
                Ok(())
            }
            Order::Protocol => {
                let protocols = [Protocol::A, Protocol::B, Protocol::C];
                self.nodes[node].settings.protocol = self.fault_rng.pick(&protocols);
                let settings = self.nodes[node].settings.clone();
                self.command(node, Command::Set(settings))
            }
            Order::Arbiter => self.begin_arbiter(node),
            Order::Disk => self.replace_copy(node),
            Order::Grow => self.begin_growth(node),
            _ => Ok(()),
        }
    }

    /// Another arbiter takes the place of the one there is: first for this node.
    fn begin_arbiter(&mut self, node: usize) -> Checked {
        if self.old_arbiter.is_some() || !self.is_in_sync(node) {
            return self.finish_arbiter();
        }
        self.old_arbiter = Some(std::mem::take(&mut self.arbiter));
        self.arbiters += 1;
        self.ghost.old_register = self.ghost.register.take();
        self.nodes[1 - node].old_arbiter = true;
        self.stats.mark("arbiter replaced on the first node");
        self.reload(node)
    }

    /// And then for the other, once the copies are in sync there.
    pub(in crate::sim) fn finish_arbiter(&mut self) -> Checked {
        for node in 0..2 {
            if self.nodes[node].old_arbiter && self.is_in_sync(node) {
                self.nodes[node].old_arbiter = false;
                self.old_arbiter = None;
                self.ghost.old_register = None;
                self.stats.mark("arbiter replaced on both nodes");
                self.reload(node)?;
            }
        }
        Ok(())
    }

    fn reload(&mut self, node: usize) -> Checked {
        let settings = self.nodes[node].settings.clone();
        self.command(node, Command::Set(settings))
    }

    /// The arbiter of this number, if anybody runs it still.
    pub(in crate::sim) fn arbiter_of(&mut self, number: u32) -> Option<&mut Arbiter> {
        if number == self.arbiters {
            Some(&mut self.arbiter)
        } else if number + 1 == self.arbiters {
            self.old_arbiter.as_mut()
        } else {
            None
        }
    }

    /// As the node's status says.
    fn is_in_sync(&self, node: usize) -> bool {
        self.nodes[node].mirror.as_ref().is_some_and(|mirror| {
            let status = mirror.status(self.local(node));
            status.replication == Replication::Established
                && status.disk == DiskState::UpToDate
                && status.peer_disk == DiskState::UpToDate
        })
    }

    /// A disk is replaced, and with it the copy: the other one has everything.
    fn replace_copy(&mut self, node: usize) -> Checked {
        let other = 1 - node;
        let at = &self.nodes[node];
        let idle = at.up && at.repairing.is_none() && at.seen.role == Role::Secondary;
        if !idle || self.growing() || !self.has_everything(other) {
            return Ok(());
        }
        if self.nodes[node].mirror.is_some() {
            self.kill_daemon(node);
        }
        if !self.nodes[node].is_idle() {
            self.start_in(node, MS);
            return Ok(()); // its last writes are landing: another time
        }
        let name = format!("serial at {}", self.tick);
        let (store, meta) = fresh_copy(node, &self.options, &name);
        // Perhaps nobody says so: another disk is there, under the old metadata.
        let told = self.fault_rng.coin();
        let at = &mut self.nodes[node];
        at.store = store;
        at.disk_name = name;
        if told {
            at.meta = meta;
        }
        at.store_suspect = false;
        at.disk_since = at.life;
        let record = at.meta.record().cloned();
        self.ghost.records[node] = record;
        self.stats.mark(if told {
            "disk replaced"
        } else {
            "disk replaced under its metadata"
        });
        let name = self.nodes[node].name;
        self.trace
            .line(|| format!("{:>10} {name} has another disk, empty", self.now / 1000));
        self.start_in(node, 5 * MS);
        Ok(())
    }

    /// True if nothing would be lost with the other copy: this one is Primary, good, and has all
    /// that was answered on stable storage.
    fn has_everything(&self, node: usize) -> bool {
        let at = &self.nodes[node];
        let good = at.mirror.as_ref().is_some_and(|mirror| {
            mirror.role() == Role::Primary
                && mirror.disk_state() == DiskState::UpToDate
                && mirror.record().current.is_some()
        });
        let suspect = self.nodes.iter().any(|node| node.store_suspect);
        good && !suspect
            && self.history.sectors().all(|sector| {
                let (block, nth) = (sector / 8, (sector % 8) as usize);
                let value = at.store.durable(block)[nth];
                self.history
                    .may_find(sector, value, self.tick, Level::Newest)
            })
    }

    fn growing(&self) -> bool {
        self.options.grown > self.options.size
    }

    /// The mirror is to be larger: this node's daemon stops for it first.
    fn begin_growth(&mut self, node: usize) -> Checked {
        if !self.growing() {
            return Ok(());
        }
        self.grow_next(node)
    }

    /// A node whose copy has not the new size yet stops for it.
    pub(in crate::sim) fn grow_next(&mut self, node: usize) -> Checked {
        let at = &self.nodes[node];
        // (A daemon that was starting already when it was told has not stopped for it.)
        let is_on_its_way = at.grow && at.mirror.is_none();
        if is_on_its_way || self.size_of(node) == Some(self.options.grown) {
            return Ok(());
        }
        self.nodes[node].grow = true;
        self.growth_begun = true;
        self.command(node, Command::Stop)
    }

    pub(in crate::sim) fn size_of(&self, node: usize) -> Option<u64> {
        self.nodes[node].meta.record().map(|record| record.size)
    }

    /// Before a daemon starts: its copy grows, if it was stopped for that.
    pub(in crate::sim) fn grow_copy(&mut self, node: usize) -> Checked {
        if !std::mem::take(&mut self.nodes[node].grow) {
            return Ok(());
        }
        let Ok(mut copy) = self.nodes[node].meta.recover() else {
            return Ok(());
        };
        let size = self.options.grown;
        let record = &copy.superblock.record;
        if !copy.repair.is_empty() || record.size >= size {
            return Ok(());
        }
        let (first, end) = (record.size / 4096, size / 4096);
        copy.bitmap.grow(end);
        // marks on copies without data would need an operator's word on whose they are
        let zeroed = self.fault_rng.coin() || record.is_never_written();
        if !zeroed {
            copy.bitmap.mark(Run::new(Block(first), end - first));
        }
        let pages: Vec<Page> = copy.bitmap.stale_pages().collect();
        let layout = copy.superblock.layout;
        let mut steps = Vec::new();
        for (page, seq) in pages.into_iter().zip(copy.next_page_seq..) {
            let image = copy.bitmap.page_image(page, seq);
            copy.bitmap.page_written(page, seq);
            steps.push((layout.page_offset(page), image));
        }
        copy.superblock.record.size = size;
        copy.superblock.record.zeroed &= zeroed;
        copy.superblock.seq += 1;
        let mut all = vec![steps];
        all.extend(copy.superblock.steps());
        // it may be cut short at any step, and is then begun again or not
        let done = self.fault_rng.below(all.len() as u64 * 3) as usize;
        let name = self.nodes[node].name;
        self.trace
            .line(|| format!("{:>10} {name} grows to {size} bytes", self.now / 1000));
        for (nth, step) in all.into_iter().enumerate() {
            if nth == done {
                self.stats.mark("growth cut short");
                break;
            }
            self.nodes[node].meta.write_now(step);
        }
        self.ghost_record(node)?;
        if (0..2).all(|node| self.size_of(node) == Some(size)) {
            self.options.size = size;
            self.stats.mark("both copies grown");
        }
        Ok(())
    }

    /// Orders at the worst moment: something has just changed.
    pub(in crate::sim) fn ambush(&mut self, node: usize) {
        if !self.options.kit.ambush || self.phase != Phase::Storm {
            return;
        }
        let Some(mirror) = &self.nodes[node].mirror else {
            return;
        };
        let status = mirror.status(self.local(node));
        let moment = (status.connection, status.replication);
        if self.nodes[node].moment != Some(moment) {
            self.nodes[node].moment = Some(moment);
            if self.fault_rng.percent(25) {
                let delay = self.fault_rng.below(2 * MS);
                self.plan(delay, Happening::Ambush);
            }
        }
    }

    /// What is left to do once the faults are over.
    pub(in crate::sim) fn finish_orders(&mut self) -> Checked {
        self.finish_arbiter()?;
        if self.growth_begun {
            // one node at a time, and not while the other is on its way
            let behind = (0..2).find(|node| self.size_of(*node) != Some(self.options.grown));
            if let Some(node) = behind {
                return self.grow_next(node);
            }
        }
        Ok(())
    }
}
