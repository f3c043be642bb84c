//! Creating a metadata store: the bytes that make an empty file or device into one.
//!
//! Decides the order, so that an interrupted creation is no store: first the superblock's
//! place is blanked, then log, directory and pages are written, last the superblock. Pages
//! can be left out where the store is known to read as zeroes.

use bytes::{Bytes, BytesMut};

use crate::activity_log::empty_ring;
use crate::geometry::{Extent, WORDS_PER_EXTENT};
use crate::layout::SLOTS_BYTES;
use crate::page::{Page, encode_directory, encode_page};
use crate::sector::UNIT_BYTES;
use crate::superblock::Superblock;

/// What the bitmap pages of a new store say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Nothing is marked, and the pages are not written: the place of the pages is known to
    /// read as zeroes (a new file; a device that was zeroed). Takes 16 TiB in milliseconds.
    Blank,
    /// Nothing is marked; every page is written.
    Clean,
    /// Every block is marked; every page is written.
    Marked,
}

/// A piece of a new store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Flush all earlier chunks before this one is written. Flush also after the last.
    pub flush_before: bool,
    /// Bytes from the start of the metadata.
    pub offset: u64,
    /// At most 1 MiB, a multiple of 4096.
    pub bytes: Bytes,
}

/// Pages in a chunk.
const PAGES_PER_CHUNK: u32 = 256;

/// The chunks of a new store, in the order in which they are to be written.
#[derive(Debug)]
pub struct Format<'a> {
    superblock: &'a Superblock,
    fill: Fill,
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    BlankSlots,
    Log,
    Directory,
    Pages { next: u32 },
    Slot { next: usize },
}

impl<'a> Format<'a> {
    /// A store for `superblock`, with an empty log and pages as `fill` says.
    pub fn new(superblock: &'a Superblock, fill: Fill) -> Self {
        Self {
            superblock,
            fill,
            step: Step::BlankSlots,
        }
    }

    /// Bytes that will be written; for progress.
    pub fn total_bytes(&self) -> u64 {
        let layout = &self.superblock.layout;
        let pages = match self.fill {
            Fill::Blank => 0,
            Fill::Clean | Fill::Marked => layout.pages,
        };
        let units =
            u64::from(layout.log_records) + u64::from(layout.directory_pages) + u64::from(pages);
        units * UNIT_BYTES as u64 + 2 * SLOTS_BYTES
    }

    fn log(&self) -> Bytes {
        let capacity = self.superblock.layout.log_capacity;
        join(empty_ring(capacity, 0, self.superblock.tag()).map(|(_, image)| image))
    }

    fn directory(&self) -> Bytes {
        let layout = &self.superblock.layout;
        let written = match self.fill {
            Fill::Blank => 0,
            Fill::Clean | Fill::Marked => layout.pages as usize,
        };
        let words = |word: usize| match written.saturating_sub(word * 64) {
            0 => 0,
            bits if bits < 64 => (1 << bits) - 1,
            _ => !0,
        };
        let pages = 0..layout.directory_pages;
        join(pages.map(|index| encode_directory(index, 1, self.superblock.tag(), words)))
    }

    fn pages(&self, first: u32, end: u32) -> Bytes {
        let blocks = match self.fill {
            Fill::Marked => self.superblock.geometry().blocks(),
            Fill::Blank | Fill::Clean => 0,
        };
        let words = |extent: Extent| {
            let before = extent.first_block().0;
            std::array::from_fn::<u64, WORDS_PER_EXTENT, _>(|word| {
                match blocks.saturating_sub(before + word as u64 * 64) {
                    0 => 0,
                    bits if bits < 64 => (1 << bits) - 1,
                    _ => !0,
                }
            })
        };
        join((first..end).map(|index| encode_page(index, 1, self.superblock.tag(), words)))
    }
}

impl Iterator for Format<'_> {
    type Item = Chunk;

    fn next(&mut self) -> Option<Chunk> {
        let layout = &self.superblock.layout;
        let (flush_before, offset, bytes, step) = match self.step {
            Step::BlankSlots => {
                let zeroes = Bytes::from(vec![0; SLOTS_BYTES as usize]);
                (false, layout.slots_offset, zeroes, Step::Log)
            }
            Step::Log => (true, layout.log_offset, self.log(), Step::Directory),
            Step::Directory => {
                let next = match self.fill {
                    Fill::Blank => Step::Slot { next: 0 },
                    Fill::Clean | Fill::Marked => Step::Pages { next: 0 },
                };
                (false, layout.directory_offset, self.directory(), next)
            }
            Step::Pages { next: first } => {
                let end = layout.pages.min(first + PAGES_PER_CHUNK);
                let step = if end == layout.pages {
                    Step::Slot { next: 0 }
                } else {
                    Step::Pages { next: end }
                };
                let offset = layout.page_offset(Page::bitmap(first));
                (false, offset, self.pages(first, end), step)
            }
            Step::Slot { next } => {
                let step = self.superblock.steps().into_iter().nth(next)?;
                let (offset, image) = step.into_iter().next()?;
                (true, offset, image, Step::Slot { next: next + 1 })
            }
        };
        self.step = step;
        Some(Chunk {
            flush_before,
            offset,
            bytes,
        })
    }
}

fn join(units: impl Iterator<Item = Bytes>) -> Bytes {
    let mut joined = BytesMut::new();
    units.for_each(|unit| joined.extend_from_slice(&unit));
    joined.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{BLOCK, BLOCKS_PER_EXTENT};
    use crate::layout::{Layout, Placement};
    use crate::page::{
        DIRECTORY_WORDS_PER_SECTOR, EXTENTS_PER_PAGE, EXTENTS_PER_SECTOR, directory_word,
        extent_bits,
    };
    use crate::sector::{self, Kind, Place, SECTOR_BYTES};
    use crate::superblock::{Backing, Record};

    const PAGE: u64 = EXTENTS_PER_PAGE as u64 * BLOCKS_PER_EXTENT;
    const FILLS: [Fill; 3] = [Fill::Blank, Fill::Clean, Fill::Marked];

    fn superblock(blocks: u64) -> Superblock {
        let size = blocks * BLOCK;
        let layout = Layout::new(size, 64, Placement::Own).unwrap();
        let backing = Backing {
            data_offset: 0,
            store_size: size,
        };
        Superblock::new(layout, backing, 0, Record::new(1 << 64, 1, size))
    }

    /// The bytes of an area, from all chunks.
    fn area(superblock: &Superblock, fill: Fill, kind: Kind) -> Vec<u8> {
        let layout = &superblock.layout;
        let (start, pages) = match kind {
            Kind::Directory => (layout.directory_offset, layout.directory_pages),
            _ => (layout.pages_offset, layout.pages),
        };
        let mut store = vec![0; layout.total_len as usize];
        for chunk in Format::new(superblock, fill) {
            store[chunk.offset as usize..][..chunk.bytes.len()].copy_from_slice(&chunk.bytes);
        }
        store[start as usize..][..pages as usize * UNIT_BYTES].to_vec()
    }

    fn payloads(area: &[u8], kind: Kind) -> impl Iterator<Item = &[u8]> {
        let sectors = (0..).zip(area.chunks(SECTOR_BYTES));
        sectors.map(move |(index, bytes)| {
            let tag = Some(1);
            let sector = sector::decode(bytes, Place { kind, index, tag });
            sector.unwrap().payload
        })
    }

    /// Which bits are set, lowest first; they follow each other.
    fn ones(words: impl Iterator<Item = u64>) -> u64 {
        let words: Vec<u64> = words.collect();
        let count = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let first = words.iter().map(|word| u64::from(word.trailing_ones()));
        let in_a_row: u64 = first
            .scan(true, |all, ones| {
                let these = if *all { ones } else { 0 };
                *all &= ones == 64;
                Some(these)
            })
            .sum();
        assert_eq!(in_a_row, count, "a gap");
        count
    }

    #[test]
    fn what_will_be_written_is_told_before() {
        for blocks in [1, 30 * PAGE, 257 * PAGE] {
            let superblock = superblock(blocks);
            for fill in FILLS {
                let format = Format::new(&superblock, fill);
                let told = format.total_bytes();
                let written: usize = format.map(|chunk| chunk.bytes.len()).sum();
                assert_eq!(told, written as u64, "{fill:?}, {blocks} blocks");
            }
        }
    }

    #[test]
    fn the_directory_has_the_pages_that_are_written_and_no_other() {
        for pages in [1, 63, 64, 65, 130] {
            let superblock = superblock(pages * PAGE);
            for (fill, written) in FILLS.into_iter().zip([0, pages, pages]) {
                let area = area(&superblock, fill, Kind::Directory);
                let words = payloads(&area, Kind::Directory).flat_map(|payload| {
                    (0..DIRECTORY_WORDS_PER_SECTOR).map(|nth| directory_word(payload, nth))
                });
                assert_eq!(ones(words), written, "{fill:?}, {pages} pages");
            }
        }
    }

    #[test]
    fn pages_mark_every_block_and_none_behind_the_end() {
        for blocks in [1, 63, 64, 65, 1024, 5 * 1024 + 70, PAGE + 128] {
            let superblock = superblock(blocks);
            for (fill, marked) in [(Fill::Clean, 0), (Fill::Marked, blocks)] {
                let area = area(&superblock, fill, Kind::Page);
                let words = payloads(&area, Kind::Page).flat_map(|payload| {
                    (0..EXTENTS_PER_SECTOR as usize).flat_map(|nth| extent_bits(payload, nth))
                });
                assert_eq!(ones(words), marked, "{fill:?}, {blocks} blocks");
            }
        }
    }
}
