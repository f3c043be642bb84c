//! Faults of the metadata store, and what a daemon must make of them.
//!
//! A write or a flush that fails is final for the daemon that was told (*a failed flush is never
//! trusted*), though later ones succeed; a sector that was damaged is noticed when it is read
//! next, at a start: every mark that was there is there still, or the daemon refuses to start.
//! Only such damage is injected as docs/on-disk-format.md says is found. It does not find what
//! leaves a good sector of an earlier write in its own place where no other structure knows
//! better: an old bitmap page, the newest record of the log, both slots of the superblock.

use kagami_bitmap::recover::{Finding, Recovered};
use kagami_bitmap::slots::{Repair, SuperblockFault};
use kagami_bitmap::{Block, Layout};
use kagami_replicator::core::Event;
use kagami_replicator::core::disk::DiskFault;
use kagami_replicator::core::state::MetaId;

use super::super::check::Violation;
use super::super::content::SECTOR;
use super::super::disk::EIO;
use super::super::meta::Metadata;
use super::super::rng::Rng;
use super::super::world::{Checked, Happening, MS, World};
use super::Fault;

/// How the sector of a metadata store goes bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// A bit is flipped.
    Flip,
    /// It can't be read.
    Unreadable,
    /// It reads as zeroes.
    Zeroes,
    /// Another sector's write landed in its place.
    Misdirected,
    /// The last write that changed it was lost.
    Old,
}

impl World {
    pub(super) fn inject_metadata(&mut self, fault: Fault, node: usize, lasts: u64) -> bool {
        let at = &mut self.nodes[node];
        match fault {
            Fault::MetadataFails => {
                let waits = at.mirror.is_some() && at.meta.failed.is_none();
                if waits && at.meta.fail_next.is_none() {
                    let full = self.fault_rng.percent(20);
                    at.meta.fail_next = Some(if full {
                        DiskFault::NoSpace
                    } else {
                        DiskFault::Io(EIO)
                    });
                    return true;
                }
                false
            }
            Fault::MetadataStalls => {
                at.meta.stalled_until = at.meta.stalled_until.max(self.now + lasts);
                true
            }
            Fault::MetadataDamage => {
                at.meta.harm_at_start = true;
                if self.fault_rng.coin() && at.mirror.is_some() {
                    self.kill_daemon(node);
                    self.start_in(node, lasts);
                }
                false // counted when it is done
            }
            _ => false,
        }
    }

    /// A step of a metadata write ends: it may fail, and then everything after it does.
    /// `None`: it is not the time yet. `Some(true)`: it has failed.
    pub(in crate::sim) fn fail_metadata(&mut self, node: usize, write: u64) -> Option<bool> {
        let heard = self.lives(node, write >> 40) || self.nodes[node].repairing == Some(write);
        let meta = &mut self.nodes[node].meta;
        if meta.stalled_until > self.now {
            let until = meta.stalled_until;
            let delay = self.rng.around(self.options.meta_ns);
            self.plan_at(until + delay, Happening::Metadata { node, write });
            return None;
        }
        if !heard {
            return Some(false);
        }
        if let Some(fault) = meta.fail_next.take() {
            meta.failed.get_or_insert(fault);
        }
        if meta.failed.is_some() {
            meta.fail_step(write, &mut self.rng);
        }
        Some(meta.failed.is_some())
    }

    /// Tells the daemon that its metadata write has failed.
    pub(in crate::sim) fn metadata_failed(&mut self, node: usize, write: u64) -> Checked {
        let fault = self.nodes[node].meta.failed.unwrap_or(DiskFault::Io(EIO));
        if self.nodes[node].repairing == Some(write) {
            // It can't start: somebody tries again.
            self.stats.mark("start failed: metadata not writable");
            self.die(node);
            let delay = self.rng.around(50 * MS);
            self.start_in(node, delay);
            return Ok(());
        }
        let (life, id) = (write >> 40, MetaId(write & ((1 << 40) - 1)));
        if self.lives(node, life) {
            let result = Err(fault);
            return self.feed(node, Event::MetadataDone { id, result });
        }
        Ok(())
    }

    /// Before a daemon reads its metadata store, sectors of it may go bad. What it would have read if
    /// none ever had is what it is held to: also where an earlier damage was noticed, and the repair
    /// cut short. True if it can't start.
    pub(in crate::sim) fn harm_metadata(&mut self, node: usize) -> Checked<bool> {
        let meta = &mut self.nodes[node].meta;
        if !std::mem::take(&mut meta.harm_at_start) {
            return Ok(false);
        }
        let (Ok(read), Ok(sound)) = (meta.recover(), meta.recover_undamaged()) else {
            return Ok(false);
        };
        if sound.superblock.record.is_never_written() {
            return Ok(false); // marks that nobody can explain: an operator would name the source
        }
        let before = meta.clone();
        let harmed = meta.harm(&read, &mut self.fault_rng);
        if harmed.is_empty() {
            return Ok(false);
        }
        self.stats.fault(Fault::MetadataDamage);
        let name = self.nodes[node].name;
        self.trace
            .line(|| format!("{:>10} {name} metadata harmed: {harmed:?}", self.now / 1000));
        match self.nodes[node].meta.recover() {
            Ok(found) => {
                check_noticed(name, &sound, &found, &harmed)?;
                self.stats.mark(if found.superblock.record.all_marked {
                    "metadata damage: all marked"
                } else {
                    "metadata damage: noticed"
                });
                Ok(false)
            }
            Err(fault) => {
                check_refusal(name, &fault, &before, &harmed)?;
                self.stats.mark("metadata damage: refused");
                // Read again it is good: without that, an operator makes the copy anew.
                self.nodes[node].meta = before;
                let delay = self.rng.around(100 * MS);
                self.start_in(node, delay);
                Ok(true)
            }
        }
    }

    /// Damage that is found is damage that is there.
    pub(in crate::sim) fn check_findings(&self, node: usize, findings: &[Finding]) -> Checked {
        let at = &self.nodes[node];
        if let Some(damage) = findings.iter().find(|one| !at.meta.explains(one)) {
            let what = format!("{} finds damage that no crash explains: {damage}", at.name);
            return Err(Violation::new("No-torn-metadata", what));
        }
        Ok(())
    }
}

/// *No mark is lost silently*: what the sound store would have said is said, or more; and each
/// damaged sector that was looked at is reported.
fn check_noticed(
    name: &str,
    sound: &Recovered,
    found: &Recovered,
    harmed: &[(u64, Harm)],
) -> Checked {
    let violation = |what: String| Err(Violation::new("Damage-is-noticed", what));
    let mut record = found.superblock.record.clone();
    record.all_marked = sound.superblock.record.all_marked;
    if record != sound.superblock.record {
        return violation(format!("{name} reads another record than there was"));
    }
    let blocks = sound.superblock.geometry().blocks();
    let lost = (0..blocks).find(|block| {
        let block = Block(*block);
        sound.bitmap.is_marked(block) && !found.bitmap.is_marked(block)
    });
    if let Some(block) = lost {
        return violation(format!("{name} lost the mark of block {block}: {harmed:?}"));
    }
    let layout = sound.superblock.layout;
    for (offset, harm) in harmed.iter().filter(|(_, harm)| *harm != Harm::Old) {
        let reported = found
            .findings
            .iter()
            .any(|one| covers(&layout, one, *offset));
        if !reported && is_read(sound, *offset) {
            return violation(format!("{name} does not report {harm:?} at {offset}"));
        }
    }
    Ok(())
}

/// A start is refused only if neither slot can be read.
fn check_refusal(
    name: &str,
    fault: &SuperblockFault,
    before: &Metadata,
    harmed: &[(u64, Harm)],
) -> Checked {
    let both = matches!(fault, SuperblockFault::BothDamaged { .. });
    let slots = harmed.iter().any(|(offset, _)| *offset < 8192);
    if both && slots && !before.is_whole() {
        return Ok(());
    }
    let what = format!("{name} does not start: {fault} ({harmed:?})");
    Err(Violation::new("Damage-is-noticed", what))
}

/// True if recovery reads the sector at all: pages behind the end of the mirror it does not.
fn is_read(sound: &Recovered, offset: u64) -> bool {
    let pages_end = sound.superblock.layout.pages_offset + u64::from(sound.bitmap.pages()) * 4096;
    offset < pages_end
}

/// True if the finding may come from this sector.
pub(in crate::sim) fn covers(layout: &Layout, finding: &Finding, offset: u64) -> bool {
    match finding {
        Finding::Slot { slot, .. } => offset / 4096 == *slot as u64,
        Finding::Log(_) => (layout.log_offset..layout.directory_offset).contains(&offset),
        Finding::Directory { sector, .. } => {
            offset == layout.directory_offset + u64::from(*sector) * SECTOR as u64
        }
        Finding::Pages {
            first_sector,
            sectors,
            ..
        } => {
            let first = layout.pages_offset + u64::from(*first_sector) * SECTOR as u64;
            // a bad directory says that each page was written, also a blank one
            (layout.directory_offset..layout.pages_offset).contains(&offset)
                || (first..first + u64::from(*sectors) * SECTOR as u64).contains(&offset)
        }
        Finding::TornRecord { .. } | Finding::AllMarked => false,
    }
}

impl Metadata {
    /// One to three sectors go bad in a way that the format can find. Where, and how.
    fn harm(&mut self, read: &Recovered, rng: &mut Rng) -> Vec<(u64, Harm)> {
        let layout = read.superblock.layout;
        let slot = rng.below(2);
        let mut harmed = Vec::new();
        let (_, whole) = self
            .superblock()
            .unwrap_or((read.superblock.clone(), false));
        // Of two good slots of different updates the newer must stay: it may be acknowledged.
        let torn = read.findings.iter().any(|finding| {
            matches!(
                finding,
                Finding::Slot {
                    repair: Repair::Fault(_),
                    ..
                }
            )
        });
        for _ in 0..rng.pick(&[1, 1, 2, 3]) {
            let (first, end) = match rng.below(10) {
                // one slot: with both gone nothing could be known
                0..2 if whole || torn => (slot * 4096, slot * 4096 + 4096),
                0..5 => (layout.log_offset, layout.directory_offset),
                5..6 => (layout.directory_offset, layout.pages_offset),
                _ => (
                    layout.pages_offset,
                    layout.pages_offset + u64::from(read.bitmap.pages()) * 4096,
                ),
            };
            let offset = first + rng.below((end - first) / SECTOR as u64) * SECTOR as u64;
            let harm = rng.pick(&[
                Harm::Flip,
                Harm::Flip,
                Harm::Unreadable,
                Harm::Zeroes,
                Harm::Misdirected,
                Harm::Old,
            ]);
            let unit = |at: u64| at / 4096;
            if harmed.iter().all(|(at, _)| unit(*at) != unit(offset))
                && self.harm_sector(&layout, offset, harm, rng)
            {
                harmed.push((offset, harm));
            }
        }
        harmed
    }

    /// The last write of a slot, or of a record of the log that is not the newest, was lost: what is
    /// there beside it knows better.
    fn lose_known_write(&mut self, layout: &Layout, offset: u64) -> bool {
        let unit = offset / 4096 * 4096;
        if unit < layout.log_offset {
            return self.superblock().is_some_and(|(_, whole)| whole) && self.lose_write(unit);
        }
        if unit >= layout.directory_offset {
            return false;
        }
        let seq = |unit: u64| {
            let sectors = (unit..unit + 4096).step_by(SECTOR);
            let seq = |at: u64| {
                u64::from_le_bytes(std::array::from_fn(|nth| self.good_sector(at)[24 + nth]))
            };
            sectors.map(seq).max()
        };
        let log = (layout.log_offset..layout.directory_offset).step_by(4096);
        let newest = log.max_by_key(|unit| seq(*unit));
        newest != Some(unit) && self.lose_write(unit)
    }

    /// True if a sector of zeroes there can be told from one that was never written.
    fn is_known_written(&self, layout: &Layout, offset: u64) -> bool {
        let Some(page) = offset.checked_sub(layout.pages_offset).map(|at| at / 4096) else {
            return true;
        };
        let (word, bit) = (page / 64, page % 64);
        let sector = self.good_sector(layout.directory_offset + word / 56 * SECTOR as u64);
        let at = 40 + (word % 56) as usize * 8;
        sector[at + (bit / 8) as usize] >> (bit % 8) & 1 == 1
    }

    /// True if both slots are good, and equal or one update apart.
    fn is_whole(&self) -> bool {
        self.recover().is_ok_and(|read| {
            !read.findings.iter().any(|finding| {
                matches!(
                    finding,
                    Finding::Slot {
                        repair: Repair::Fault(_),
                        ..
                    }
                )
            })
        })
    }

    /// False if that would be no harm, or none that can be found.
    fn harm_sector(&mut self, layout: &Layout, offset: u64, harm: Harm, rng: &mut Rng) -> bool {
        let at = offset as usize;
        let mut sector: [u8; SECTOR] = self.sector(offset);
        let before = sector;
        match harm {
            Harm::Flip => sector[rng.below(SECTOR as u64) as usize] ^= 1 << rng.below(8),
            Harm::Unreadable => sector = [0xff; SECTOR],
            Harm::Zeroes if self.is_known_written(layout, offset) => sector = [0; SECTOR],
            Harm::Misdirected => {
                let from = rng.below(self.len() / SECTOR as u64) * SECTOR as u64;
                sector = self.sector(from);
                let blank = sector.iter().all(|byte| *byte == 0);
                if blank && !self.is_known_written(layout, offset) {
                    return false;
                }
            }
            Harm::Old => return self.lose_known_write(layout, offset),
            Harm::Zeroes => return false,
        }
        // A bit that is flipped back is no harm either.
        if sector == before || sector == self.good_sector(offset) {
            return false;
        }
        self.damage(at as u64, &sector);
        true
    }
}
