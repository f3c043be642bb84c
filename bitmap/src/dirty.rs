//! The dirty bitmap: which blocks the two copies may differ in, and which of its pages on
//! disk say something else.
//!
//! Owned by the mirror's core. Keeps one bit for each block, and for each extent what is
//! known about its page: nothing here writes, the core writes a page's image and reports how
//! that went. A page is compared with what disk holds at extent level, by three facts:
//!
//! - `lacks`: memory may have marks that the page does not;
//! - `over`: the page may have marks that memory does not;
//! - `on_page`: the newest image of the page had marks for the extent.
//!
//! An extent that is empty in memory and was empty in its image differs in nothing, so a
//! write that is marked, made durable on both copies and cleared again costs no page write.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::bits::Bits;
use crate::geometry::{BLOCKS_PER_EXTENT, Block, Extent, Run, WORDS_PER_EXTENT};
use crate::page::{self, EXTENTS_PER_PAGE, ExtentWords, PAGES_PER_DIRECTORY_PAGE, Page};

/// A page image on its way to disk, and what was true of its extents before it was cut.
#[derive(Clone, Debug)]
struct InFlight {
    seq: u64,
    lacks: u32,
    over: u32,
    on_page: u32,
}

/// One bit for each block, and the state of the pages that hold them on disk.
#[derive(Clone, Debug)]
pub struct DirtyBitmap {
    bits: Bits,
    tag: u64,
    lacks: Bits,
    over: Bits,
    on_page: Bits,
    /// Bitmap pages with an extent that lacks marks or has too many.
    stale: Bits,
    /// Bitmap pages that were ever written, as the directory shall say.
    written: Bits,
    stale_directory: Bits,
    in_flight: BTreeMap<Page, InFlight>,
}

/// Bit index of a block or extent; the bounds were checked by the caller.
fn at(number: u64) -> usize {
    number as usize
}

impl DirtyBitmap {
    /// An all-clean bitmap of `blocks` blocks over pages that were never written.
    ///
    /// Costs no memory until marks touch it: 32 MiB for each TiB when all of it was touched.
    pub fn new(blocks: u64) -> Self {
        let extents = blocks.div_ceil(BLOCKS_PER_EXTENT);
        assert!(u32::try_from(extents).is_ok(), "{blocks} blocks");
        let pages = page::pages_for(extents as u32);
        let flags = || Bits::new(at(extents));
        Self {
            bits: Bits::new(at(blocks)),
            tag: 0,
            lacks: flags(),
            over: flags(),
            on_page: flags(),
            stale: Bits::new(pages as usize),
            written: Bits::new(pages as usize),
            stale_directory: Bits::new(page::directory_pages_for(pages) as usize),
            in_flight: BTreeMap::new(),
        }
    }

    /// The same for the mirror whose pages carry `tag` ([`crate::mirror_tag`]). Pages of a
    /// bitmap without its tag are refused by recovery, and their blocks all marked.
    #[must_use]
    pub fn with_tag(mut self, tag: u64) -> Self {
        self.tag = tag;
        self
    }

    /// Adds unmarked blocks at the end, over pages that were never written. No image may be under
    /// way.
    pub fn grow(&mut self, blocks: u64) {
        assert!(
            blocks >= self.blocks() && self.in_flight.is_empty(),
            "from {} to {blocks} blocks",
            self.blocks()
        );
        let mut new = Self::new(blocks).with_tag(self.tag);
        let pairs = [
            (&self.bits, &mut new.bits),
            (&self.lacks, &mut new.lacks),
            (&self.over, &mut new.over),
            (&self.on_page, &mut new.on_page),
            (&self.stale, &mut new.stale),
            (&self.written, &mut new.written),
            (&self.stale_directory, &mut new.stale_directory),
        ];
        for (old, new) in pairs {
            let mut from = 0;
            while let Some(first) = old.next(from) {
                let end = old.next_absent(first, old.len());
                new.set(first, end);
                from = end;
            }
        }
        *self = new;
    }

    /// How many blocks it has bits for.
    pub fn blocks(&self) -> u64 {
        self.bits.len() as u64
    }

    /// How many extents it has bits for, a partial last one included.
    pub fn extents(&self) -> u32 {
        self.lacks.len() as u32
    }

    /// How many bitmap pages hold its bits on disk.
    pub fn pages(&self) -> u32 {
        self.stale.len() as u32
    }

    // Marks.

    /// Marks the blocks; gives how many were not marked.
    pub fn mark(&mut self, run: Run) -> u64 {
        self.check(run);
        let mut newly = 0;
        for (extent, part) in run.by_extent() {
            let marked = self.bits.set(at(part.first.0), at(part.end().0));
            if marked > 0 {
                newly += marked;
                self.on_marked(extent);
            }
        }
        newly
    }

    /// Clears the blocks' marks; gives how many were marked.
    pub fn clear(&mut self, run: Run) -> u64 {
        self.check(run);
        let mut newly = 0;
        for (extent, part) in run.by_extent() {
            let cleared = self.bits.clear(at(part.first.0), at(part.end().0));
            if cleared > 0 {
                newly += cleared;
                self.on_cleared(extent);
            }
        }
        newly
    }

    /// Marks every block.
    pub fn mark_all(&mut self) -> u64 {
        self.mark(self.all())
    }

    /// Clears every mark, and gives the bits' memory back.
    pub fn clear_all(&mut self) -> u64 {
        let cleared = self.count();
        let mut next = 0;
        let mut extents = Vec::new();
        while let Some(block) = self.bits.next(next) {
            let extent = Block(block as u64).extent();
            extents.push(extent);
            next = block / at(BLOCKS_PER_EXTENT) * at(BLOCKS_PER_EXTENT) + at(BLOCKS_PER_EXTENT);
        }
        self.bits.clear_all();
        for extent in extents {
            self.on_cleared(extent);
        }
        cleared
    }

    /// Marks the blocks whose bits are set in `words`; gives how many were not marked. Bits
    /// behind the end of the mirror (a peer may send them) are dropped.
    pub fn or_extent(&mut self, extent: Extent, words: &ExtentWords) -> u64 {
        let newly = self.or_words(extent, words);
        if newly > 0 {
            self.on_marked(extent);
        }
        newly
    }

    fn or_words(&mut self, extent: Extent, words: &ExtentWords) -> u64 {
        let range = self.word_range(extent);
        range
            .zip(words)
            .map(|(index, &word)| self.bits.or_word(index, word))
            .sum()
    }

    // Questions.

    /// True if the block is marked.
    pub fn is_marked(&self, block: Block) -> bool {
        self.bits.contains(at(block.0))
    }

    /// True if any block of the span is marked.
    pub fn any(&self, run: Run) -> bool {
        self.check(run);
        !run.is_empty()
            && self
                .next_marked(run.first)
                .is_some_and(|block| block < run.end())
    }

    /// True if any block of the extent is marked: one look at the summary.
    pub fn any_in_extent(&self, extent: Extent) -> bool {
        assert!(extent.0 < self.extents(), "{extent} of {}", self.extents());
        self.bits
            .any_of_words(extent.0 as usize * WORDS_PER_EXTENT, WORDS_PER_EXTENT)
    }

    /// How many blocks are marked; maintained, not counted.
    pub fn count(&self) -> u64 {
        self.bits.count()
    }

    /// How many blocks of the span are marked; empty parts are skipped.
    pub fn count_in(&self, run: Run) -> u64 {
        self.check(run);
        self.bits.count_in(at(run.first.0), at(run.end().0))
    }

    /// The first marked block at or after `from`; microseconds even if there is none.
    pub fn next_marked(&self, from: Block) -> Option<Block> {
        self.bits.next(at(from.0)).map(|bit| Block(bit as u64))
    }

    /// The first maximal run of marked blocks at or after `from`, cut at `max_blocks`.
    pub fn next_run(&self, from: Block, max_blocks: u64) -> Option<Run> {
        assert!(max_blocks > 0, "a run of no blocks was asked for");
        let first = self.next_marked(from)?;
        let limit = first.0.saturating_add(max_blocks).min(self.blocks());
        let end = self.bits.next_absent(at(first.0), at(limit)) as u64;
        Some(Run::new(first, end - first.0))
    }

    /// The bits of an extent, 64 blocks a word; 0 behind the end of the mirror.
    pub fn extent_words(&self, extent: Extent) -> ExtentWords {
        let mut words = [0; WORDS_PER_EXTENT];
        let range = self.word_range(extent);
        words[..range.len()].copy_from_slice(&self.bits.words()[range]);
        words
    }

    /// Every block.
    pub fn all(&self) -> Run {
        Run::new(Block(0), self.blocks())
    }

    fn check(&self, run: Run) {
        assert!(
            run.end().0 <= self.blocks(),
            "{run} in a bitmap of {} blocks",
            self.blocks()
        );
    }

    /// The words of an extent; fewer, or none, at and behind the end of the mirror.
    fn word_range(&self, extent: Extent) -> std::ops::Range<usize> {
        let words = self.bits.words().len();
        let first = (extent.0 as usize * WORDS_PER_EXTENT).min(words);
        first..(first + WORDS_PER_EXTENT).min(words)
    }

    // Pages.

    /// True if memory has marks for the extent that its page on disk does not (or may not:
    /// a write of the page that is under way counts for nothing). Its page has to be written
    /// before the extent cools.
    pub fn lacks_marks(&self, extent: Extent) -> bool {
        let flight = self.in_flight.get(&Page::of(extent));
        let lost_with_flight = flight.is_some_and(|f| f.lacks & flag(extent) != 0);
        (lost_with_flight || self.lacks.contains(extent.0 as usize)) && self.any_in_extent(extent)
    }

    /// True if the page differs from memory, now or once its image under way is on disk.
    pub fn is_page_stale(&self, page: Page) -> bool {
        let set = if page.is_directory() {
            &self.stale_directory
        } else {
            &self.stale
        };
        set.contains(page.index() as usize)
    }

    /// True if the page on disk lacks marks that memory has ([`Self::lacks_marks`]); false: it
    /// is equal, or has marks too many.
    pub fn page_lacks_marks(&self, page: Page) -> bool {
        page.extents()
            .take_while(|extent| extent.0 < self.extents())
            .any(|extent| self.lacks_marks(extent))
    }

    /// True if an image of the page was cut and neither [`Self::page_written`] nor
    /// [`Self::page_failed`] was told.
    pub fn is_page_in_flight(&self, page: Page) -> bool {
        self.in_flight.contains_key(&page)
    }

    /// The stale pages: those of the bitmap in order, then those of the directory. A page in
    /// flight is among them if it changed since its image was cut.
    pub fn stale_pages(&self) -> impl Iterator<Item = Page> + '_ {
        let bitmap = each(&self.stale).map(Page::bitmap);
        bitmap.chain(self.stale_directory_pages())
    }

    /// Those of the directory among them.
    pub fn stale_directory_pages(&self) -> impl Iterator<Item = Page> + '_ {
        each(&self.stale_directory).map(Page::directory)
    }

    /// The stale pages of which an older image is on its way.
    pub fn outdated_in_flight(&self) -> impl Iterator<Item = Page> + '_ {
        let pages = self.in_flight.keys().copied();
        pages.filter(|page| self.is_page_stale(*page))
    }

    /// How many pages are stale.
    pub fn stale_page_count(&self) -> u64 {
        self.stale.count() + self.stale_directory.count()
    }

    /// Cuts the page's image, to be written at [`crate::Layout::page_offset`]: 4096 bytes. It
    /// is no longer stale, until something changes. One image of a page at a time.
    pub fn page_image(&mut self, page: Page, seq: u64) -> Bytes {
        assert!(!self.is_page_in_flight(page), "{page} is being written");
        let mut flight = InFlight {
            seq,
            lacks: 0,
            over: 0,
            on_page: 0,
        };
        let image = if page.is_directory() {
            let bit = page.index() as usize;
            self.stale_directory.clear(bit, bit + 1);
            page::encode_directory(page.index(), seq, self.tag, |word| {
                self.written.words().get(word).copied().unwrap_or(0)
            })
        } else {
            for extent in self.extents_of(page) {
                let bit = extent.0 as usize;
                let any = self.any_in_extent(extent);
                flight.lacks |= take(&mut self.lacks, bit, false) * flag(extent);
                flight.over |= take(&mut self.over, bit, false) * flag(extent);
                flight.on_page |= take(&mut self.on_page, bit, any) * flag(extent);
            }
            let bit = page.index() as usize;
            self.stale.clear(bit, bit + 1);
            page::encode_page(page.index(), seq, self.tag, |extent| {
                self.extent_words(extent)
            })
        };
        self.in_flight.insert(page, flight);
        image
    }

    /// The image cut as `seq` is on stable storage. What changed since is stale still.
    pub fn page_written(&mut self, page: Page, seq: u64) {
        self.land(page, seq);
        if crate::planted::planted(crate::planted::Defect::PageOfTheFuture) {
            for extent in self.extents_of(page) {
                take(&mut self.lacks, extent.0 as usize, false);
            }
        }
        let bit = page.index() as usize;
        if !page.is_directory() && self.written.set(bit, bit + 1) > 0 {
            let directory = page.named_in().index() as usize;
            self.stale_directory.set(directory, directory + 1);
        }
    }

    /// The write of the image cut as `seq` failed: each sector may be the old or the new one,
    /// so what differed before differs again.
    pub fn page_failed(&mut self, page: Page, seq: u64) {
        let flight = self.land(page, seq);
        if page.is_directory() {
            let bit = page.index() as usize;
            self.stale_directory.set(bit, bit + 1);
            return;
        }
        for extent in self.extents_of(page) {
            let (bit, flag) = (extent.0 as usize, flag(extent));
            for (set, before) in [
                (&mut self.lacks, flight.lacks),
                (&mut self.over, flight.over),
                (&mut self.on_page, flight.on_page),
            ] {
                if before & flag != 0 {
                    set.set(bit, bit + 1);
                }
            }
            self.settle(extent);
        }
    }

    fn land(&mut self, page: Page, seq: u64) -> InFlight {
        let flight = self.in_flight.remove(&page);
        let flight = flight.unwrap_or_else(|| panic!("{page} is not being written"));
        assert_eq!(flight.seq, seq, "{page}: an image that was not cut last");
        flight
    }

    fn extents_of(&self, page: Page) -> impl Iterator<Item = Extent> + use<> {
        let extents = self.extents();
        page.extents().take_while(move |extent| extent.0 < extents)
    }

    fn on_marked(&mut self, extent: Extent) {
        let bit = extent.0 as usize;
        if self.lacks.set(bit, bit + 1) > 0 {
            let page = (extent.0 / EXTENTS_PER_PAGE) as usize;
            self.stale.set(page, page + 1);
        }
    }

    fn on_cleared(&mut self, extent: Extent) {
        let bit = extent.0 as usize;
        if self.on_page.contains(bit) {
            self.over.set(bit, bit + 1);
        }
        self.settle(extent);
    }

    /// Drops what can't be true of the extent, and keeps its page's staleness in step.
    fn settle(&mut self, extent: Extent) {
        let bit = extent.0 as usize;
        if !self.any_in_extent(extent) {
            self.lacks.clear(bit, bit + 1);
        }
        if !self.on_page.contains(bit) {
            self.over.clear(bit, bit + 1);
        }
        let page = (extent.0 / EXTENTS_PER_PAGE) as usize;
        let first = page * EXTENTS_PER_PAGE as usize;
        let end = (first + EXTENTS_PER_PAGE as usize).min(self.lacks.len());
        if self.lacks.any_in(first, end) || self.over.any_in(first, end) {
            self.stale.set(page, page + 1);
        } else {
            self.stale.clear(page, page + 1);
        }
    }

    // What recovery read.

    /// The page on disk has these bits for the extent.
    pub(crate) fn load_extent(&mut self, extent: Extent, words: &ExtentWords) {
        if self.or_words(extent, words) > 0 {
            let bit = extent.0 as usize;
            self.on_page.set(bit, bit + 1);
        }
    }

    /// The page is not blank on disk, though the directory may not say so yet.
    pub(crate) fn load_written(&mut self, page: u32, in_directory: bool) {
        let bit = page as usize;
        self.written.set(bit, bit + 1);
        if !in_directory {
            let directory = (page / PAGES_PER_DIRECTORY_PAGE) as usize;
            self.stale_directory.set(directory, directory + 1);
        }
    }

    /// The directory page on disk is damaged and has to be written.
    pub(crate) fn load_stale_directory(&mut self, index: u32) {
        let bit = index as usize;
        if bit < self.stale_directory.len() {
            self.stale_directory.set(bit, bit + 1);
        }
    }

    /// The page on disk holds nobody knows what: all blocks of the extent are marked, and
    /// its page has to be written whatever becomes of the marks.
    pub(crate) fn load_damaged(&mut self, extent: Extent) {
        let bit = extent.0 as usize;
        let run = extent.run().intersect(self.all());
        self.on_page.set(bit, bit + 1);
        self.over.set(bit, bit + 1);
        self.lacks.set(bit, bit + 1);
        self.mark(run.expect("an extent of the mirror"));
        self.settle(extent);
    }
}

/// The extent's bit in an [`InFlight`].
fn flag(extent: Extent) -> u32 {
    1 << (extent.0 % EXTENTS_PER_PAGE)
}

/// Replaces a bit; gives the old one as 0 or 1.
fn take(bits: &mut Bits, bit: usize, new: bool) -> u32 {
    let before = u32::from(bits.contains(bit));
    if new {
        bits.set(bit, bit + 1);
    } else {
        bits.clear(bit, bit + 1);
    }
    before
}

fn each(bits: &Bits) -> impl Iterator<Item = u32> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        let bit = bits.next(from)?;
        from = bit + 1;
        Some(bit as u32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(bitmap: &mut DirtyBitmap, page: Page, seq: u64) {
        bitmap.page_image(page, seq);
        bitmap.page_written(page, seq);
    }

    #[test]
    fn a_loaded_page_knows_which_of_its_extents_had_marks() {
        let (mut bitmap, mut words) = (DirtyBitmap::new(2048), [0; WORDS_PER_EXTENT]);
        bitmap.load_written(0, true);
        bitmap.load_extent(Extent(1), &words);
        words[0] = 1;
        bitmap.load_extent(Extent(0), &words);
        assert_eq!((bitmap.count(), bitmap.stale_page_count()), (1, 0));
        bitmap.mark(Run::new(Block(1024), 1));
        bitmap.clear(Run::new(Block(1024), 1));
        assert_eq!(bitmap.stale_page_count(), 0, "it was empty, and is");
        bitmap.clear(Run::new(Block(0), 1));
        assert_eq!(bitmap.stale_page_count(), 1, "the page has a mark too many");
        write(&mut bitmap, Page::bitmap(0), 1);
        assert_eq!(bitmap.stale_page_count(), 0, "the directory has it");
    }

    #[test]
    fn a_loaded_page_that_the_directory_lacks_is_added_to_it() {
        let mut bitmap = DirtyBitmap::new(2048);
        bitmap.load_written(0, false);
        let stale: Vec<_> = bitmap.stale_pages().collect();
        assert_eq!(stale, [Page::directory(0)]);
        write(&mut bitmap, Page::directory(0), 1);
        bitmap.mark(Run::new(Block(0), 1));
        write(&mut bitmap, Page::bitmap(0), 2);
        assert_eq!(bitmap.stale_page_count(), 0, "it was known as written");
    }

    #[test]
    fn each_page_is_told_in_its_own_page_of_the_directory() {
        let pages = PAGES_PER_DIRECTORY_PAGE + 1;
        let extents = u64::from(pages) * u64::from(EXTENTS_PER_PAGE);
        for (page, directory) in [
            (1, 0),
            (PAGES_PER_DIRECTORY_PAGE - 1, 0),
            (PAGES_PER_DIRECTORY_PAGE, 1),
        ] {
            let mut bitmap = DirtyBitmap::new(extents * BLOCKS_PER_EXTENT);
            bitmap.load_written(page, false);
            let stale: Vec<_> = bitmap.stale_pages().collect();
            assert_eq!(stale, [Page::directory(directory)], "page {page}");
            let mut bitmap = DirtyBitmap::new(extents * BLOCKS_PER_EXTENT);
            let extent = Extent(page * EXTENTS_PER_PAGE);
            bitmap.mark(Run::new(extent.first_block(), 1));
            write(&mut bitmap, Page::bitmap(page), 1);
            let stale: Vec<_> = bitmap.stale_pages().collect();
            assert_eq!(stale, [Page::directory(directory)], "page {page}");
        }
    }

    #[test]
    fn a_damaged_page_is_written_whatever_becomes_of_its_marks() {
        let mut bitmap = DirtyBitmap::new(30 * BLOCKS_PER_EXTENT + 5);
        let pages = [(Extent(2), 0, 1024), (Extent(30), 1, 5)];
        for (extent, _, blocks) in pages {
            let before = bitmap.count();
            bitmap.load_damaged(extent);
            assert_eq!(bitmap.count() - before, blocks);
            assert!(bitmap.lacks_marks(extent));
        }
        bitmap.clear_all();
        for (extent, page, _) in pages {
            assert!(!bitmap.lacks_marks(extent));
            assert!(bitmap.is_page_stale(Page::bitmap(page)), "{extent}");
        }
    }

    #[test]
    fn a_directory_page_behind_the_end_is_not_this_bitmaps() {
        let mut bitmap = DirtyBitmap::new(2048);
        bitmap.load_stale_directory(1);
        assert_eq!(bitmap.stale_page_count(), 0, "room to grow into");
        bitmap.load_stale_directory(0);
        assert_eq!(bitmap.stale_page_count(), 1);
    }
}
