//! Is the backing store the one that the metadata speak of?
//!
//! With a metadata store of its own a copy's marks and generation outlive its disk: a new, empty
//! one under the same path would be taken for the old copy, and only what was written since would be
//! copied to it. So the superblock keeps a name of the store, and whether it was lost meanwhile; a
//! start that finds another store, or can't tell after a loss, distrusts the copy: Inconsistent,
//! every block marked, as if an operator had invalidated it (docs/on-disk-format.md, *The store's
//! name*). Where the names come from is the host's to know.

use std::fmt;

use crate::planted::{Defect, planted};
use crate::recover::Recovered;
use crate::superblock::StoredDisk;

/// The longest name that is kept, bytes.
pub const NAME_MAX: usize = 192;

/// A backing store as it was found at a start.
#[derive(Clone, Copy, Debug)]
pub struct FoundStore<'a> {
    /// What names it, the best first: a kind, a blank, and what is never another store's of that
    /// kind. None: nothing names it.
    pub names: &'a [String],
    /// Bytes.
    pub size: u64,
}

/// Why the store is not taken for the one that the metadata speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherStore {
    /// It has another name.
    Named,
    /// The store had failed or was missing, and nothing says that this is it.
    AfterLoss,
    /// It is smaller than the store was, and has no name.
    Smaller,
}

impl fmt::Display for OtherStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Named => "another one than the copy was on",
            Self::AfterLoss => {
                "perhaps another one than the copy was on: that had failed or was missing, and nothing names it"
            }
            Self::Smaller => "smaller than the one that the copy was on",
        })
    }
}

/// The kind of a name: up to its first blank.
fn kind(name: &str) -> &str {
    name.split(' ').next().unwrap_or_default()
}

impl Recovered {
    /// Holds the backing store that was found against the one that the metadata speak of; `None`:
    /// there is none that can be used. To be called before anything is served, where the metadata
    /// have a store of their own; what is to be written for it joins `repair`. Why it is another one, if it is:
    /// what it holds counts for nothing then.
    pub fn meet_store(&mut self, found: Option<FoundStore<'_>>) -> Option<OtherStore> {
        let before = self.superblock.clone();
        let why = found.and_then(|found| self.other_store(found));
        match found {
            None => self.superblock.record.store_lost = true,
            Some(found) => {
                if why.is_some() && !planted(Defect::OtherStoreTrusted) {
                    self.distrust();
                }
                let superblock = &mut self.superblock;
                superblock.record.store_lost = false;
                superblock.backing.store_size = found.size;
                let known = found.names.contains(&superblock.store_name);
                if let Some(best) = found.names.first().filter(|_| !known) {
                    superblock.store_name.clone_from(best);
                } else if !known && why.is_some() {
                    superblock.store_name.clear();
                }
            }
        }
        if self.superblock != before {
            self.superblock.seq = self.superblock.seq.saturating_add(1);
            self.repair.extend(self.superblock.steps());
        }
        why
    }

    fn other_store(&self, found: FoundStore<'_>) -> Option<OtherStore> {
        let name = self.superblock.store_name.as_str();
        let comparable = !name.is_empty();
        if comparable && found.names.iter().any(|now| now == name) {
            return None;
        }
        if comparable && found.names.iter().any(|now| kind(now) == kind(name)) {
            return Some(OtherStore::Named);
        }
        if self.superblock.record.store_lost {
            return Some(OtherStore::AfterLoss);
        }
        (found.size < self.superblock.backing.store_size).then_some(OtherStore::Smaller)
    }

    /// Nothing is known of what the store holds.
    fn distrust(&mut self) {
        let record = &mut self.superblock.record;
        record.zeroed = false;
        record.boot = None;
        if record.peer.is_none() {
            return; // nobody to compare with: it is the copy that there is
        }
        record.disk = StoredDisk::Inconsistent;
        record.all_marked = true;
        self.bitmap.mark_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::superblock::{Backing, Record, Superblock};
    use crate::{DirtyBitmap, Layout, Placement};

    const SIZE: u64 = 16 << 20;

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    /// The name that is known, whether it was lost, the names and the size that are found; why it is another one.
    type Row = (
        &'static str,
        bool,
        &'static [&'static str],
        u64,
        Option<OtherStore>,
    );

    /// A copy that was in sync with its peer, on this store.
    fn copy(name: &str, lost: bool) -> Recovered {
        let mut record = Record::new(7, 1, SIZE);
        record.peer = Some(2);
        record.mint(11);
        record.alone = false;
        record.boot = Some(5);
        record.store_lost = lost;
        let layout = Layout::new(SIZE, 64, Placement::Own).expect("a layout");
        let backing = Backing {
            data_offset: 0,
            store_size: SIZE,
        };
        let mut superblock = Superblock::new(layout, backing, 0, record);
        name.clone_into(&mut superblock.store_name);
        Recovered::of_new(superblock)
    }

    fn meet(copy: &mut Recovered, now: &[&str], size: u64) -> Option<OtherStore> {
        let found = copy.meet_store(Some(FoundStore {
            names: &names(now),
            size,
        }));
        let marked = copy.bitmap.count();
        let record = &copy.superblock.record;
        assert!(!record.store_lost);
        let bad = record.disk == StoredDisk::Inconsistent;
        assert_eq!(bad, found.is_some());
        assert_eq!(record.all_marked, bad);
        assert_eq!(marked, if bad { SIZE / 4096 } else { 0 });
        assert_eq!(record.boot.is_none(), bad);
        found
    }

    #[test]
    fn a_store_is_known_by_its_name() {
        let rows: [Row; 12] = [
            ("wwid a", false, &["wwid a", "serial s"], SIZE, None),
            ("wwid a", true, &["wwid a"], SIZE, None),
            ("wwid a", false, &["wwid b"], SIZE, Some(OtherStore::Named)),
            ("wwid a", true, &["wwid b"], SIZE, Some(OtherStore::Named)),
            ("serial s", false, &["wwid a", "serial s"], SIZE, None),
            // Of another kind it says nothing.
            ("wwid a", false, &["serial s"], SIZE, None),
            (
                "wwid a",
                true,
                &["serial s"],
                SIZE,
                Some(OtherStore::AfterLoss),
            ),
            ("", false, &["wwid a"], SIZE, None),
            ("", true, &["wwid a"], SIZE, Some(OtherStore::AfterLoss)),
            ("", true, &[], SIZE, Some(OtherStore::AfterLoss)),
            ("", false, &[], SIZE / 2, Some(OtherStore::Smaller)),
            ("", false, &[], SIZE * 2, None),
        ];
        for (nth, (name, lost, now, size, why)) in rows.into_iter().enumerate() {
            let mut copy = copy(name, lost);
            assert_eq!(meet(&mut copy, now, size), why, "row {nth}");
            // What was found is what is known from now on.
            copy.repair.clear();
            copy.bitmap = DirtyBitmap::new(SIZE / 4096);
            let settled = copy.superblock.clone();
            let why = copy.meet_store(Some(FoundStore {
                names: &names(now),
                size,
            }));
            assert_eq!(why, None, "row {nth}");
            assert_eq!(copy.superblock, settled, "row {nth}");
            assert!(copy.repair.is_empty(), "row {nth}");
        }
    }

    #[test]
    fn a_store_that_is_not_there_is_remembered() {
        let mut copy = copy("", false);
        copy.meet_store(None);
        assert_eq!(copy.repair.len(), 2, "both slots");
        assert!(copy.superblock.record.store_lost);
        assert_eq!(copy.superblock.record.disk, StoredDisk::Consistent);
        copy.repair.clear();
        copy.meet_store(None);
        assert!(copy.repair.is_empty(), "it is recorded already");
        assert_eq!(meet(&mut copy, &[], SIZE), Some(OtherStore::AfterLoss));
    }

    #[test]
    fn a_name_outlasts_a_start_that_finds_none_but_not_its_store() {
        let mut same = copy("wwid a", false);
        assert_eq!(meet(&mut same, &[], SIZE), None);
        assert_eq!(same.superblock.store_name, "wwid a");
        // So another store is still told from it.
        let another = meet(&mut same, &["wwid b"], SIZE);
        assert_eq!(another, Some(OtherStore::Named));

        let mut after_loss = copy("wwid a", true);
        let why = meet(&mut after_loss, &[], SIZE);
        assert_eq!(why, Some(OtherStore::AfterLoss));
        assert_eq!(after_loss.superblock.store_name, "");
    }

    #[test]
    fn where_nobody_else_has_a_copy_there_is_nothing_to_compare_with() {
        let mut copy = copy("wwid a", false);
        copy.superblock.record.peer = None;
        let why = copy.meet_store(Some(FoundStore {
            names: &names(&["wwid b"]),
            size: SIZE,
        }));
        assert_eq!(why, Some(OtherStore::Named));
        assert_eq!(copy.superblock.record.disk, StoredDisk::Consistent);
        assert_eq!(copy.superblock.store_name, "wwid b");
    }
}
