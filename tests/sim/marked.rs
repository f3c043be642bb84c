//! *Marked-before-different* and *Cleared-only-when-equal*, for whatever happens next.
//!
//! For a pair of fates (nothing, the daemon dies, the machine crashes; one for each node) it is
//! worked out what each store and each metadata store would hold, what the handshake's table
//! would say, and whether every block that differs is marked on a side. Fates are drawn: over a
//! run all are seen, and over the seeds all at every moment.

use kagami_bitmap::superblock::Record;
use kagami_bitmap::{Block, DirtyBitmap, Run};
use kagami_replicator::core::decide::{Refused, Strategy, decide};
use kagami_replicator::core::message::Hello;
use kagami_replicator::core::state::Role;

use super::content::{self, BlockValue, SECTORS};
use super::history::Level;
use super::meta::recover_bytes;
use super::node::Node;
use super::rng::Rng;
use super::world::{Checked, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Nothing,
    DaemonDies,
    MachineCrashes,
}

/// A node after its fate.
struct After<'a> {
    node: &'a Node,
    fate: Fate,
    /// The chance in percent that the disk's cache is not lost.
    keep: u64,
    record: Record,
    /// None: those of the daemon, which lives.
    bitmap: Option<DirtyBitmap>,
}

impl<'a> After<'a> {
    fn of(node: &'a Node, fate: Fate, rng: &mut Rng) -> Result<Self, String> {
        let fate = match fate {
            _ if !node.up => Fate::MachineCrashes,
            Fate::Nothing if node.mirror.is_none() => Fate::DaemonDies,
            fate => fate,
        };
        let keep = rng.pick(&[0, 0, 50, 90]);
        let bytes = match fate {
            Fate::Nothing => None,
            Fate::DaemonDies => Some(node.meta.after_death(rng)),
            Fate::MachineCrashes => Some(node.meta.after_crash(rng)),
        };
        let (record, bitmap) = match (bytes, &node.mirror) {
            (None, Some(mirror)) => (mirror.record().clone(), None),
            (bytes, _) => {
                let bytes = bytes.unwrap_or_else(|| node.meta.after_death(rng));
                let mut recovered = recover_bytes(&bytes)
                    .map_err(|fault| format!("{} can't be read: {fault}", node.name))?;
                if let Some(damage) = recovered
                    .findings
                    .iter()
                    .find(|finding| !node.meta.explains(finding))
                {
                    return Err(format!("{} would find damage: {damage}", node.name));
                }
                // (With the repair under way that has been done.)
                node.meet_store(&mut recovered);
                (recovered.superblock.record, Some(recovered.bitmap))
            }
        };
        Ok(Self {
            node,
            fate,
            keep,
            record,
            bitmap,
        })
    }

    fn is_marked(&self, block: u64) -> bool {
        match (&self.bitmap, &self.node.mirror) {
            (Some(bitmap), _) => bitmap.is_marked(Block(block)),
            (None, Some(mirror)) => mirror.lacks(Run::new(Block(block), 1)),
            (None, None) => false,
        }
    }

    fn block(&self, block: u64, rng: &mut Rng) -> BlockValue {
        let store = &self.node.store;
        if store.told || self.fate == Fate::MachineCrashes {
            return store.after_crash(block, self.keep, rng);
        }
        store.after_all_landed(block)
    }

    fn hello(&self, touched: impl Iterator<Item = u64>) -> Hello {
        let marks = match (&self.bitmap, &self.node.mirror) {
            (Some(bitmap), _) => bitmap.count(),
            (None, Some(mirror)) => {
                let unflushed = touched.filter(|block| self.is_marked(*block)).count() as u64;
                mirror.dirty().count().max(unflushed)
            }
            (None, None) => 0,
        };
        let role = match (&self.bitmap, &self.node.mirror) {
            (None, Some(mirror)) => mirror.role(),
            _ => Role::Secondary,
        };
        let record = &self.record;
        let settings = self
            .node
            .mirror
            .as_ref()
            .map(|mirror| mirror.settings().clone())
            .unwrap_or_default();
        Hello {
            node: self.node.id,
            marks,
            role,
            unbroken: self.fate != Fate::MachineCrashes && self.node.is_unbroken(record),
            split_brain: kagami_replicator::core::settings::SplitBrainPolicy::default(),
            ..Hello::of(record, &settings)
        }
    }
}

impl World {
    /// Draws a pair of fates and checks what they would lead to.
    pub(super) fn check_marked(&mut self) -> Checked {
        let fates = [Fate::Nothing, Fate::DaemonDies, Fate::MachineCrashes];
        let (first, second) = (self.check_rng.pick(&fates), self.check_rng.pick(&fates));
        self.stats.foresights += 1;
        let mut rng = self.check_rng.fork();
        let torn = |what| super::check::Violation::new("No-torn-metadata", what);
        let a = After::of(&self.nodes[0], first, &mut rng).map_err(torn)?;
        let b = After::of(&self.nodes[1], second, &mut rng).map_err(torn)?;
        let touched = || self.ghost.touched.iter().copied();
        let verdict = decide(&a.hello(touched()), &b.hello(touched()));
        let source = match verdict.strategy {
            Strategy::Nothing => None,
            Strategy::Marks { source } => Some(source),
            Strategy::Refuse(Refused::Impossible)
                if !self.options.forced && !self.ghost.operator_chose =>
            {
                let what = format!("fates {:?}/{:?} would lead to {verdict:?}", a.fate, b.fate);
                return Err(self.violation("No-silent-fork", what));
            }
            _ => return Ok(()),
        };
        let weak = self.is_weak();
        for block in touched().filter(|block| !self.rot.has(*block)) {
            let (x, y) = (a.block(block, &mut rng), b.block(block, &mut rng));
            if x != y && !a.is_marked(block) && !b.is_marked(block) {
                let what = format!(
                    "fates {:?}/{:?}: block {block} would be {:?} on a, {:?} on b, unmarked, verdict {:?}",
                    a.fate,
                    b.fate,
                    x.map(content::writer),
                    y.map(content::writer),
                    verdict.row
                );
                return Err(self.violation("Marked-before-different", what));
            }
            if weak {
                continue;
            }
            // the source's data stay: nothing that was flushed may be missing there
            let stays = if source.is_some_and(|source| source == b.node.id) {
                y
            } else {
                x
            };
            for (nth, value) in stays.into_iter().enumerate() {
                let sector = block * SECTORS as u64 + nth as u64;
                if !self
                    .history
                    .may_find(sector, value, self.tick, Level::Flushed)
                {
                    let what = format!(
                        "fates {:?}/{:?}: sector {sector} (block {block}) would be w{} on the copy that stays, {verdict:?}; there are: {}",
                        a.fate,
                        b.fate,
                        content::writer(value),
                        self.history.describe(sector)
                    );
                    return Err(self.violation("Durable-both", what));
                }
            }
        }
        Ok(())
    }

    /// The same for the handshake that takes place: every block that differs is marked on a side
    /// (*Cleared-only-when-equal*).
    pub(super) fn check_marked_as_they_are(&self, _source: Option<usize>) -> Checked {
        let marked = |node: usize, block: u64| {
            let mirror = self.nodes[node].mirror.as_ref();
            mirror.is_some_and(|mirror| mirror.lacks(Run::new(Block(block), 1)))
        };
        for block in self
            .ghost
            .touched
            .iter()
            .filter(|block| !self.rot.has(**block))
        {
            let [x, y] = [0, 1].map(|node| self.nodes[node].store.after_all_landed(*block));
            if x != y && !marked(0, *block) && !marked(1, *block) {
                let what = format!(
                    "they meet, and block {block} is {:?} on a, {:?} on b, unmarked",
                    x.map(content::writer),
                    y.map(content::writer)
                );
                return Err(self.violation("Cleared-only-when-equal", what));
            }
        }
        Ok(())
    }
}
