//! From the bytes of a metadata store to the state of a copy.
//!
//! Marks = what the pages say OR all blocks of the hot extents (docs/design.md §6). Decides
//! what a crash explains and what is damage; damage is never trusted: what a damaged page
//! would have said is marked, a damaged log marks everything, and each is reported as a
//! [`Finding`]. Reads nothing itself: [`Recovery`] is fed the areas in the order superblock,
//! log, directory, pages, the pages in chunks of any size.
//!
//! Flush the store before reading it: what a killed daemon wrote may be in the disk's cache.

use std::fmt;

use bytes::Bytes;

use crate::activity_log::{LogState, empty_ring};
use crate::dirty::DirtyBitmap;
use crate::geometry::{Extent, Geometry};
use crate::layout::{Layout, Placement, SLOTS_BYTES};
use crate::page::{
    DIRECTORY_WORDS_PER_SECTOR, EXTENTS_PER_PAGE, EXTENTS_PER_SECTOR, directory_word, extent_bits,
};
use crate::planted::{Defect, planted};
use crate::replay::{LogDamage, Replay, replay};
use crate::sector::{
    self, Kind, Place, SECTOR_BYTES, SECTORS_PER_UNIT, Sector, SectorFault, UNIT_BYTES,
    sector_index,
};
use crate::slots::{ReadSlots, Repair, SlotFault, SuperblockFault, read_slots};
use crate::superblock::Superblock;

/// Something worth a line in the log, found at start-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// One slot of the superblock is not the other's equal.
    Slot {
        /// 0 or 1.
        slot: usize,
        /// Why.
        repair: Repair,
    },
    /// The newest record of the activity log was cut short by a crash: what it would have
    /// heated is marked.
    TornRecord {
        /// Its place in the ring.
        index: u32,
        /// Extents marked for it.
        extents: usize,
    },
    /// The activity log is damaged: every block is marked.
    Log(LogDamage),
    /// Sectors of bitmap pages are damaged: their blocks are marked.
    Pages {
        /// The first sector, counted over all pages.
        first_sector: u32,
        /// How many in a row.
        sectors: u32,
        /// What is wrong with the first.
        fault: SectorFault,
    },
    /// Sectors of the directory are damaged: blank pages that they tell about count as damaged.
    Directory {
        /// The sector, counted over the directory.
        sector: u32,
        /// What is wrong with it.
        fault: SectorFault,
    },
    /// The record says that every block is marked.
    AllMarked,
}

impl Finding {
    /// True if no crash explains it: a disk, a controller or a person did this.
    pub fn is_damage(&self) -> bool {
        match self {
            Finding::Slot { repair, .. } => {
                !matches!(repair, Repair::Older | Repair::Fault(SlotFault::Torn))
            }
            Finding::TornRecord { .. } | Finding::AllMarked => false,
            Finding::Log(_) | Finding::Pages { .. } | Finding::Directory { .. } => true,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Slot { slot, repair } => match repair {
                Repair::Older => write!(
                    f,
                    "superblock slot {slot} is one update behind (a crash between its two writes); it is written anew"
                ),
                Repair::Fault(fault) => {
                    write!(f, "superblock slot {slot} is {fault}; it is written anew")
                }
            },
            Finding::TornRecord { index, extents } => write!(
                f,
                "activity log: record {index} was cut short by a crash; {extents} extents are marked for it"
            ),
            Finding::Log(damage) => write!(
                f,
                "activity log damaged ({damage}): every block is marked and will be compared"
            ),
            Finding::Pages {
                first_sector,
                sectors,
                fault,
            } => {
                let page = first_sector / SECTORS_PER_UNIT as u32;
                let extent = first_sector * EXTENTS_PER_SECTOR;
                let extents = sectors * EXTENTS_PER_SECTOR;
                write!(
                    f,
                    "bitmap page {page} damaged ({sectors} sectors; {fault}): {extents} extents from extent {extent} are marked"
                )
            }
            Finding::Directory { sector, fault } => write!(
                f,
                "page directory damaged (sector {sector}: {fault}): blank pages under it count as damaged"
            ),
            Finding::AllMarked => write!(f, "every block is marked: a full resync has not ended"),
        }
    }
}

/// The state of a copy, as its metadata tell.
///
/// Before anything is served, `repair` is carried out.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The superblock. If the log was damaged, its record says `all_marked`.
    pub superblock: Superblock,
    /// The marks, and which pages have to be written.
    pub bitmap: DirtyBitmap,
    /// The hot extents, whose blocks are all marked.
    pub hot: Vec<Extent>,
    /// For [`crate::ActivityLog::resume`].
    pub log: LogState,
    /// What has to be written before anything is served, empty after a clean stop: offset
    /// from the start of the metadata, and bytes; each step is on stable storage before the
    /// next begins. (The superblock, where a slot was not whole or is older, or the log was
    /// damaged; then a new ring in place of a damaged one.)
    pub repair: Vec<Vec<(u64, Bytes)>>,
    /// Higher than any page's sequence number.
    pub next_page_seq: u64,
    /// What was found, in the order in which it was found.
    pub findings: Vec<Finding>,
}

impl Recovered {
    /// What recovery finds where [`crate::Format`] has just made a store for `superblock`, its pages
    /// [`Blank`](crate::Fill::Blank).
    pub fn of_new(superblock: Superblock) -> Self {
        let blocks = superblock.geometry().blocks();
        let mut bitmap = DirtyBitmap::new(blocks).with_tag(superblock.tag());
        let mut findings = Vec::new();
        if superblock.record.all_marked {
            bitmap.mark_all();
            findings.push(Finding::AllMarked);
        }
        Self {
            bitmap,
            hot: Vec::new(),
            log: LogState::fresh(superblock.layout.log_capacity),
            superblock,
            repair: Vec::new(),
            next_page_seq: 2, // the directory's pages have 1
            findings,
        }
    }
}

/// A recovery under way: feed it the log, the directory and every page, then finish it.
#[derive(Debug)]
pub struct Recovery {
    superblock: Superblock,
    superblock_differs: bool,
    geometry: Geometry,
    bitmap: DirtyBitmap,
    log: Option<Result<Replay, u64>>,
    /// A bit for each bitmap page; all set where the directory is damaged.
    directory: Vec<u64>,
    next_page: u32,
    highest_page_seq: u64,
    findings: Vec<Finding>,
}

impl Recovery {
    /// Begins with the superblock that [`read_slots`] found.
    pub fn new(read: ReadSlots) -> Self {
        let (geometry, tag) = (read.superblock.geometry(), read.superblock.tag());
        let findings = read
            .repair
            .map(|(slot, repair)| Finding::Slot { slot, repair });
        Self {
            geometry,
            bitmap: DirtyBitmap::new(geometry.blocks()).with_tag(tag),
            superblock_differs: read.repair.is_some(),
            log: None,
            directory: Vec::new(),
            next_page: 0,
            highest_page_seq: 0,
            findings: findings.into_iter().collect(),
            superblock: read.superblock,
        }
    }

    /// Where the areas are.
    pub fn layout(&self) -> &Layout {
        &self.superblock.layout
    }

    /// How many bitmap pages are wanted: those of the present size, not of the maximum.
    pub fn pages_wanted(&self) -> u32 {
        self.bitmap.pages()
    }

    /// Takes the whole ring: `log_records` × 4096 bytes from `log_offset`.
    pub fn log(&mut self, ring: &[u8]) {
        let layout = self.layout();
        assert_eq!(ring.len(), layout.log_records as usize * UNIT_BYTES, "log");
        let read = replay(
            ring,
            layout.log_capacity,
            self.geometry.extents(),
            self.tag(),
        );
        self.log = Some(match read {
            Ok(replay) => {
                if let Some((index, heats)) = &replay.torn {
                    self.findings.push(Finding::TornRecord {
                        index: *index,
                        extents: heats.len(),
                    });
                }
                Ok(replay)
            }
            Err(damaged) => {
                self.findings.push(Finding::Log(damaged.damage));
                Err(damaged.highest_seq)
            }
        });
    }

    /// Takes the whole directory: `directory_pages` × 4096 bytes from `directory_offset`.
    pub fn directory(&mut self, bytes: &[u8]) {
        let pages = self.layout().directory_pages as usize;
        assert_eq!(bytes.len(), pages * UNIT_BYTES, "directory");
        for (index, bytes) in (0u32..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
            match self.decode(Kind::Directory, index, bytes) {
                Ok(sector) => {
                    self.highest_page_seq = self.highest_page_seq.max(sector.seq);
                    let words = 0..DIRECTORY_WORDS_PER_SECTOR;
                    let words = words.map(|nth| directory_word(sector.payload, nth));
                    self.directory.extend(words);
                }
                Err(fault) => {
                    let sector = index;
                    self.findings.push(Finding::Directory { sector, fault });
                    self.bitmap
                        .load_stale_directory(index / SECTORS_PER_UNIT as u32);
                    self.directory.extend([!0; DIRECTORY_WORDS_PER_SECTOR]);
                }
            }
        }
    }

    /// Takes the next bitmap pages, whole ones, in order, after the directory. Those behind
    /// [`Self::pages_wanted`] are not looked at.
    pub fn pages(&mut self, bytes: &[u8]) {
        assert!(!self.directory.is_empty(), "the directory comes first");
        assert!(bytes.len().is_multiple_of(UNIT_BYTES), "whole pages");
        for bytes in bytes.chunks_exact(UNIT_BYTES) {
            if self.next_page < self.pages_wanted() {
                self.page(self.next_page, bytes);
            }
            self.next_page += 1;
        }
    }

    fn page(&mut self, page: u32, bytes: &[u8]) {
        let in_directory = self.directory[page as usize / 64] >> (page % 64) & 1 == 1;
        if sector::is_blank(bytes) && !in_directory {
            return; // never written
        }
        // Of a first write that was cut short some sectors are blank still, perhaps behind the end
        // of the mirror, where no mark would have the page written again: the directory must not
        // say that it was written before it is.
        let mut sectors = bytes.chunks_exact(SECTOR_BYTES);
        if in_directory || !sectors.any(sector::is_blank) {
            self.bitmap.load_written(page, in_directory);
        }
        for (nth, bytes) in bytes.chunks_exact(SECTOR_BYTES).enumerate() {
            let index = sector_index(page, nth);
            let first = page * EXTENTS_PER_PAGE + nth as u32 * EXTENTS_PER_SECTOR;
            let extents = (first..self.geometry.extents()).take(EXTENTS_PER_SECTOR as usize);
            match self.decode(Kind::Page, index, bytes) {
                Ok(sector) => {
                    self.highest_page_seq = self.highest_page_seq.max(sector.seq);
                    for (nth, extent) in extents.enumerate() {
                        let words = extent_bits(sector.payload, nth);
                        self.bitmap.load_extent(Extent(extent), &words);
                    }
                }
                // The first write of the page was cut short.
                Err(SectorFault::Blank) if !in_directory => {}
                Err(fault) => {
                    extents.for_each(|extent| self.bitmap.load_damaged(Extent(extent)));
                    self.report_page(index, fault);
                }
            }
        }
    }

    /// Adds a damaged sector to the finding before it, if it follows it: a lost device must
    /// not make a million findings.
    fn report_page(&mut self, index: u32, fault: SectorFault) {
        if let Some(Finding::Pages {
            first_sector,
            sectors,
            ..
        }) = self.findings.last_mut()
            && *first_sector + *sectors == index
        {
            *sectors += 1;
            return;
        }
        self.findings.push(Finding::Pages {
            first_sector: index,
            sectors: 1,
            fault,
        });
    }

    /// Joins it all. Everything must have been fed.
    pub fn finish(mut self) -> Recovered {
        assert!(self.next_page >= self.pages_wanted(), "pages are missing");
        let capacity = self.layout().log_capacity;
        let (log, ring) = match self.log.take().expect("the log was fed") {
            Ok(replay) => {
                let torn = replay.torn.iter().flat_map(|(_, heats)| heats);
                let hot = replay.state.slots.iter().flatten();
                let hot = hot.filter(|_| !planted(Defect::HotNotMarked));
                for &extent in hot.chain(torn) {
                    self.bitmap.mark(self.geometry.extent_run(extent));
                }
                (replay.state, Vec::new())
            }
            Err(highest_seq) => {
                // The mark of everything must be durable before the ring is made anew.
                self.superblock_differs |= !self.superblock.record.all_marked;
                self.superblock.record.all_marked = true;
                let ring = empty_ring(capacity, highest_seq, self.tag())
                    .map(|(index, image)| (self.layout().record_offset(index), image));
                (LogState::emptied(capacity, highest_seq), ring.collect())
            }
        };
        if self.superblock.record.all_marked {
            self.findings.push(Finding::AllMarked);
            self.bitmap.mark_all();
        }
        let mut repair = Vec::new();
        if self.superblock_differs {
            self.superblock.seq = self.superblock.seq.saturating_add(1);
            repair = self.superblock.steps();
        }
        if !ring.is_empty() {
            repair.push(ring);
        }
        Recovered {
            hot: log.slots.iter().flatten().copied().collect(),
            superblock: self.superblock,
            bitmap: self.bitmap,
            log,
            repair,
            next_page_seq: self.highest_page_seq.saturating_add(1),
            findings: self.findings,
        }
    }

    fn decode<'b>(
        &self,
        kind: Kind,
        index: u32,
        bytes: &'b [u8],
    ) -> Result<Sector<'b>, SectorFault> {
        let tag = Some(self.tag());
        sector::decode(bytes, Place { kind, index, tag })
    }

    fn tag(&self) -> u64 {
        self.superblock.tag()
    }
}

/// Recovers a copy from a metadata store that is in memory whole: the simulator's disks, and
/// small stores. `expected`: the uuid of the mirror, if it is known.
///
/// # Errors
///
/// As [`read_slots`].
pub fn recover(
    store: &[u8],
    placement: Placement,
    expected: Option<u128>,
) -> Result<Recovered, SuperblockFault> {
    let store_len = store.len() as u64;
    let truncated = |needs| SuperblockFault::Truncated {
        has: store_len,
        needs,
    };
    let slots = placement
        .slots_at(store_len)
        .ok_or(truncated(SLOTS_BYTES))?;
    let read = read_slots(&store[slots as usize..], store_len, expected)?;
    let layout = read.superblock.layout;
    let start = layout.area_start(store_len);
    let start = start.map_err(|_| truncated(layout.total_len))?;
    let area = |offset: u64, units: u32| {
        &store[(start + offset) as usize..][..units as usize * UNIT_BYTES]
    };
    let mut recovery = Recovery::new(read);
    recovery.log(area(layout.log_offset, layout.log_records));
    recovery.directory(area(layout.directory_offset, layout.directory_pages));
    recovery.pages(area(layout.pages_offset, recovery.pages_wanted()));
    Ok(recovery.finish())
}
