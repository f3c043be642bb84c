//! Bitmap pages and the directory of written pages, as they are on disk.
//!
//! A page is eight sectors, each with the bits of three whole extents: a mix of old and new
//! sectors is a mix of extents, and each extent is safe alone, because it stays hot until its
//! page's write is acknowledged.
//!
//! A store for many TiB is not written whole at creation: a page that was never written reads
//! as zeroes and is clean. So that a wiped page is not taken for one, the directory has a bit
//! for each page that was ever written; a sector of zeroes under a set bit is corrupt.
//! Directory pages are written like bitmap pages, after them, and are never blank.

use std::fmt;

use bytes::Bytes;

use crate::geometry::{Extent, WORDS_PER_EXTENT};
use crate::sector::{self, Kind, SECTORS_PER_UNIT, le64, put64};

/// Extents whose bits one sector of a page holds.
pub const EXTENTS_PER_SECTOR: u32 = 3;
/// Extents whose bits a page holds: 96 MiB of data.
pub const EXTENTS_PER_PAGE: u32 = EXTENTS_PER_SECTOR * SECTORS_PER_UNIT as u32;
/// Words of 64 pages in one sector of the directory.
pub const DIRECTORY_WORDS_PER_SECTOR: usize = 56;
/// Pages that a page of the directory tells about: 2.6 TiB of data.
pub const PAGES_PER_DIRECTORY_PAGE: u32 =
    (DIRECTORY_WORDS_PER_SECTOR * 64 * SECTORS_PER_UNIT) as u32;

/// The bits of one extent, 64 blocks a word, lowest block in the lowest bit.
pub type ExtentWords = [u64; WORDS_PER_EXTENT];

/// A page of the bitmap or of the directory; both are written in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page(u32);

/// Numbers from here on are pages of the directory.
const DIRECTORY: u32 = 1 << 31;

impl Page {
    /// Page `index` of the bitmap.
    pub fn bitmap(index: u32) -> Self {
        assert!(index < DIRECTORY, "page {index}");
        Self(index)
    }

    /// Page `index` of the directory.
    pub fn directory(index: u32) -> Self {
        assert!(index < DIRECTORY, "directory page {index}");
        Self(index | DIRECTORY)
    }

    /// The page that holds the bits of `extent`.
    pub fn of(extent: Extent) -> Self {
        Self(extent.0 / EXTENTS_PER_PAGE)
    }

    /// True for a page of the directory, which holds no marks.
    pub fn is_directory(self) -> bool {
        self.0 & DIRECTORY != 0
    }

    /// The page of the directory that says whether this page was written; of the directory's own, itself.
    #[must_use]
    pub fn named_in(self) -> Self {
        if self.is_directory() {
            return self;
        }
        Self::directory(self.0 / PAGES_PER_DIRECTORY_PAGE)
    }

    /// The number within the bitmap's or the directory's area.
    pub fn index(self) -> u32 {
        self.0 & !DIRECTORY
    }

    /// The extents whose bits a bitmap page holds; none for a page of the directory.
    pub fn extents(self) -> impl DoubleEndedIterator<Item = Extent> + use<> {
        let first = self.index() * EXTENTS_PER_PAGE;
        let count = if self.is_directory() {
            0
        } else {
            EXTENTS_PER_PAGE
        };
        (first..first + count).map(Extent)
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_directory() {
            "directory page"
        } else {
            "page"
        };
        write!(f, "{kind} {}", self.index())
    }
}

/// How many pages the bits of `extents` extents take.
pub fn pages_for(extents: u32) -> u32 {
    extents.div_ceil(EXTENTS_PER_PAGE)
}

/// How many pages the directory of `pages` pages takes.
pub fn directory_pages_for(pages: u32) -> u32 {
    pages.div_ceil(PAGES_PER_DIRECTORY_PAGE)
}

/// Encodes bitmap page `index`: `words` gives the bits of each of its 24 extents.
pub fn encode_page(index: u32, seq: u64, tag: u64, words: impl Fn(Extent) -> ExtentWords) -> Bytes {
    let first = index * EXTENTS_PER_PAGE;
    sector::encode_unit(Kind::Page, index, seq, tag, |nth, payload| {
        let first = first + nth as u32 * EXTENTS_PER_SECTOR;
        for (extent, out) in (first..).zip(extent_slices(payload)) {
            for (word, out) in words(Extent(extent)).iter().zip(out.chunks_exact_mut(8)) {
                out.copy_from_slice(&word.to_le_bytes());
            }
        }
    })
}

fn extent_slices(payload: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    payload
        .chunks_exact_mut(WORDS_PER_EXTENT * 8)
        .take(EXTENTS_PER_SECTOR as usize)
}

/// The bits of extent `nth` (below 3) in the payload of a page's sector.
pub(crate) fn extent_bits(payload: &[u8], nth: usize) -> ExtentWords {
    let start = nth * WORDS_PER_EXTENT * 8;
    std::array::from_fn(|word| le64(payload, start + word * 8))
}

/// Encodes directory page `index`: `words` gives 64 pages a word, counted over the whole
/// directory.
pub fn encode_directory(index: u32, seq: u64, tag: u64, words: impl Fn(usize) -> u64) -> Bytes {
    let first = index as usize * SECTORS_PER_UNIT * DIRECTORY_WORDS_PER_SECTOR;
    sector::encode_unit(Kind::Directory, index, seq, tag, |nth, payload| {
        let first = first + nth * DIRECTORY_WORDS_PER_SECTOR;
        for word in 0..DIRECTORY_WORDS_PER_SECTOR {
            put64(payload, word * 8, words(first + word));
        }
    })
}

/// Word `nth` (below 56) in the payload of a directory's sector.
pub(crate) fn directory_word(payload: &[u8], nth: usize) -> u64 {
    le64(payload, nth * 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sector::{PAYLOAD_BYTES, Place, SECTOR_BYTES};

    #[test]
    fn three_whole_extents_fit_a_sector() {
        assert!(EXTENTS_PER_SECTOR as usize * WORDS_PER_EXTENT * 8 <= PAYLOAD_BYTES);
        const { assert!(DIRECTORY_WORDS_PER_SECTOR * 8 <= PAYLOAD_BYTES) };
        assert_eq!((EXTENTS_PER_PAGE, PAGES_PER_DIRECTORY_PAGE), (24, 28_672));
        assert_eq!((pages_for(1), pages_for(24), pages_for(25)), (1, 1, 2));
    }

    #[test]
    fn pages_know_their_extents() {
        assert_eq!(Page::of(Extent(47)), Page::bitmap(1));
        let extents: Vec<_> = Page::bitmap(1).extents().collect();
        assert_eq!(
            (extents[0], extents[23], extents.len()),
            (Extent(24), Extent(47), 24)
        );
        assert_eq!(Page::directory(1).extents().count(), 0);
        assert_eq!(Page::directory(1).to_string(), "directory page 1");
    }

    #[test]
    fn the_directorys_words_come_back() {
        let image = encode_directory(1, 5, 7, |word| word as u64);
        for (nth, bytes) in image.chunks(SECTOR_BYTES).enumerate() {
            let place = Place {
                kind: Kind::Directory,
                index: 8 + nth as u32,
                tag: Some(7),
            };
            let payload = sector::decode(bytes, place).unwrap().payload;
            for word in 0..DIRECTORY_WORDS_PER_SECTOR {
                let number = (8 + nth) * DIRECTORY_WORDS_PER_SECTOR + word;
                assert_eq!(directory_word(payload, word), number as u64);
            }
        }
    }

    #[test]
    fn bits_come_back() {
        let image = encode_page(2, 5, 7, |extent| [u64::from(extent.0); WORDS_PER_EXTENT]);
        for (nth, bytes) in image.chunks(SECTOR_BYTES).enumerate() {
            let place = Place {
                kind: Kind::Page,
                index: 16 + nth as u32,
                tag: Some(7),
            };
            let payload = sector::decode(bytes, place).unwrap().payload;
            for extent in 0..3 {
                let number = 48 + nth as u64 * 3 + extent as u64;
                assert_eq!(extent_bits(payload, extent), [number; WORDS_PER_EXTENT]);
            }
        }
    }
}
