//! Copies that are not what they were: a disk set back to an old image, and one that an operator
//! distrusts for good reason.
//!
//! An old image is put back only where the protocol promises to notice: its generation is not the
//! copy's newest, and the other copy does not count marks from it or from before (a rollback
//! *within* a generation is invisible, docs/protocol.md §6). Outside of runs that may fork the
//! other copy also has to be alone, by the arbiter if there is one, so that nothing that was
//! answered is on the copy that is set back only.

use kagami_bitmap::superblock::Record;
use kagami_replicator::core::Connection;
use kagami_replicator::core::state::Solo;

use super::disk::Store;
use super::meta::Metadata;
use super::profile::Cause;
use super::world::{Checked, Happening, Phase, World};

/// What a machine's disks held once, as a crash would have left it.
#[derive(Clone, Debug)]
pub struct Image {
    store: Store,
    meta: Metadata,
    record: Record,
}

impl World {
    /// Carries out what follows something else.
    pub(super) fn follow(&mut self, node: usize, then: Cause) -> Checked {
        if self.phase != Phase::Storm {
            return Ok(());
        }
        match then {
            Cause::Fault(fault) => self.inject(fault, node),
            Cause::Order(order) => self.give(order, node),
        }
    }

    /// A machine is set back to its image, where that is to be noticed; else an image is made.
    pub(super) fn put_back(&mut self, node: usize, down: u64) -> bool {
        let at = &self.nodes[node];
        if at.store.failed || at.store_suspect || !at.store.unreadable.is_empty() {
            return false;
        }
        let Some(image) = self.ghost.images[node].clone() else {
            self.ghost.images[node] = self.image(node);
            return false;
        };
        if !self.shall_notice(node, &image.record) {
            if self.fault_rng.one_in(8) {
                self.ghost.images[node] = self.image(node);
            }
            return false;
        }
        if self.nodes[node].up {
            self.crash(node);
            self.plan(down, Happening::Boot { node });
        }
        self.ghost.invalidated = true;
        self.ghost.operator_chose |= self.options.may_fork();
        self.ghost.records[node] = Some(image.record);
        self.ghost.damage_due[node] = false;
        let at = &mut self.nodes[node];
        at.store = image.store;
        at.meta = image.meta;
        self.ghost.images[node] = None;
        true
    }

    fn image(&mut self, node: usize) -> Option<Image> {
        let at = &self.nodes[node];
        let mut meta = at.meta.clone();
        meta.crash(&mut self.fault_rng);
        let mut store = at.store.clone();
        store.crash(&mut self.fault_rng);
        // One that is alone is told from its successors, and may say so to nobody before it serves.
        let whole = |record: &&Record| record.current.is_some() && !record.alone;
        let record = meta.record().filter(whole)?;
        Some(Image {
            record: record.clone(),
            store,
            meta,
        })
    }

    fn shall_notice(&self, node: usize, old: &Record) -> bool {
        let (Some(mine), Some(theirs)) = (
            self.nodes[node].meta.record(),
            self.nodes[1 - node].meta.record(),
        ) else {
            return false;
        };
        let (Some(mine), Some(current), Some(then)) = (mine.current, theirs.current, old.current)
        else {
            return false;
        };
        let newer = then.tag != mine.tag && then.tag != current.tag && !old.in_line(current.tag);
        let covered = theirs.base.is_some_and(|base| old.in_line(base.tag));
        if !newer || covered || !self.nodes[node].meta.is_idle() {
            return false;
        }
        if self.options.may_fork() {
            return true;
        }
        let by_arbiter = self.options.settings.solo != Solo::Arbiter
            || self
                .arbiter
                .register()
                .is_some_and(|register| register.copies == [self.nodes[1 - node].id]);
        theirs.alone && theirs.in_line(then.tag) && theirs.in_line(mine.tag) && by_arbiter
    }

    /// An operator invalidated a copy, and was right: once nobody counts on it in a session any
    /// more, part of it is something else.
    pub(super) fn damage_invalidated(&mut self) {
        for node in 0..2 {
            if !self.ghost.damage_due[node] {
                continue;
            }
            if self.connection(node) == Connection::Connected {
                self.ghost.damage_due[node] = false; // its resynchronisation has begun
                continue;
            }
            if self.connection(1 - node) == Connection::Connected {
                continue; // the other one has not noticed yet
            }
            self.ghost.damage_due[node] = false;
            let bad = self.nodes[node].meta.record().is_some_and(Record::is_bad);
            if !bad || !self.nodes[node].store.is_idle() {
                continue;
            }
            for block in self.ghost.touched.clone() {
                if self.check_rng.coin() {
                    self.nodes[node].store.damage(block);
                }
            }
        }
    }
}
