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
