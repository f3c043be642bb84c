//! Blocks, extents, and spans of blocks.
//!
//! Decides how bytes of the mirror become blocks and extents, and the largest mirror there
//! is. Every conversion from bytes is checked here; the rest of the crate counts in blocks.

use std::fmt;

/// Bytes in a sector: what a disk writes whole or not at all (docs/on-disk-format.md).
pub const SECTOR: u64 = 512;
/// Bytes in a block: the unit of checksums and of the bitmap's finest level.
pub const BLOCK: u64 = 4096;
/// Bytes in an extent: the unit of the activity log.
pub const EXTENT: u64 = 4 << 20;
/// Blocks in an extent.
pub const BLOCKS_PER_EXTENT: u64 = EXTENT / BLOCK;
/// The bitmap's 64-bit words in an extent.
pub const WORDS_PER_EXTENT: usize = (BLOCKS_PER_EXTENT / 64) as usize;
/// The largest mirror, bytes: 256 TiB, whose bitmap takes 8 GiB of memory.
pub const MAX_SIZE: u64 = 256 << 40;

/// The number of a block, from the start of the mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(pub u64);

impl Block {
    /// The extent that the block lies in.
    pub fn extent(self) -> Extent {
        Extent((self.0 / BLOCKS_PER_EXTENT) as u32)
    }

    /// Bytes from the start of the mirror.
    pub fn byte_offset(self) -> u64 {
        self.0 * BLOCK
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.0)
    }
}

/// The number of an extent, from the start of the mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent(pub u32);

impl Extent {
    /// The extent's first block.
    pub fn first_block(self) -> Block {
        Block(u64::from(self.0) * BLOCKS_PER_EXTENT)
    }

    /// All blocks of a whole extent; the mirror's last one may be shorter
    /// ([`Geometry::extent_run`]).
    pub fn run(self) -> Run {
        Run {
            first: self.first_block(),
            count: BLOCKS_PER_EXTENT,
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "extent {}", self.0)
    }
}

/// A span of blocks; `count` may be 0, and `first + count` never overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// The first block.
    pub first: Block,
    /// How many blocks.
    pub count: u64,
}

impl Run {
    /// The span of `count` blocks from `first`.
    pub fn new(first: Block, count: u64) -> Self {
        assert!(
            first.0.checked_add(count).is_some(),
            "run of {count} blocks from {first} overflows"
        );
        Self { first, count }
    }

    /// The blocks that the bytes touch, partly covered ones included.
    ///
    /// `offset`, `len`: bytes, of any alignment. None where their sum overflows.
    pub fn touching_bytes(offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        let first = offset / BLOCK;
        let count = if len == 0 {
            0
        } else {
            end.div_ceil(BLOCK) - first
        };
        Some(Self {
            first: Block(first),
            count,
        })
    }

    /// The blocks that the bytes are, exactly.
    ///
    /// `offset`, `len`: bytes. None unless both are multiples of [`BLOCK`] and their sum fits.
    pub fn from_bytes(offset: u64, len: u64) -> Option<Self> {
        if !offset.is_multiple_of(BLOCK) || !len.is_multiple_of(BLOCK) {
            return None;
        }
        Self::touching_bytes(offset, len)
    }

    /// The block after the last.
    pub fn end(self) -> Block {
        Block(self.first.0 + self.count)
    }

    /// True if it spans no block.
    pub fn is_empty(self) -> bool {
        self.count == 0
    }

    /// Bytes from the start of the mirror.
    pub fn byte_offset(self) -> u64 {
        self.first.byte_offset()
    }

    /// Bytes spanned, counting every block as whole.
    pub fn byte_len(self) -> u64 {
        self.count * BLOCK
    }

    /// True if the block is in the span.
    pub fn contains(self, block: Block) -> bool {
        self.first <= block && block < self.end()
    }

    /// True if `other` lies in this span whole (an empty one always does).
    pub fn covers(self, other: Run) -> bool {
        other.is_empty() || (self.first <= other.first && other.end() <= self.end())
    }

    /// True if the two share a block.
    pub fn overlaps(self, other: Run) -> bool {
        self.intersect(other).is_some()
    }

    /// The blocks in both; None if there are none.
    pub fn intersect(self, other: Run) -> Option<Run> {
        let first = self.first.max(other.first);
        let end = self.end().min(other.end());
        (first < end).then(|| Run {
            first,
            count: end.0 - first.0,
        })
    }

    /// The extents that the span touches, in order.
    pub fn extents(self) -> impl DoubleEndedIterator<Item = Extent> + ExactSizeIterator + use<> {
        let first = self.first.extent().0;
        let end = if self.is_empty() {
            first
        } else {
            Block(self.end().0 - 1).extent().0 + 1
        };
        (first..end).map(Extent)
    }

    /// The span cut at extent boundaries: each extent with its part of the span, in order.
    pub fn by_extent(self) -> impl Iterator<Item = (Extent, Run)> + use<> {
        self.extents().map(move |extent| {
            let part = self.intersect(extent.run());
            (extent, part.expect("a touched extent shares a block"))
        })
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "{}", self.first),
            n => write!(f, "{n} blocks from {}", self.first),
        }
    }
}

/// A mirror size that can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No bytes at all.
    #[error("a mirror of 0 bytes holds nothing; give it at least one 4 KiB block")]
    Zero,
    /// Not whole sectors.
    #[error("{0} bytes are not whole 512-byte sectors; use {down} or {up}", down = .0 / SECTOR * SECTOR, up = .0.div_ceil(SECTOR) * SECTOR)]
    NotSectors(u64),
    /// More than [`MAX_SIZE`].
    #[error("{0} bytes are more than the 256 TiB that one mirror can have; use several mirrors")]
    TooLarge(u64),
}

/// The size of a mirror, in bytes, blocks and extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    size: u64,
}

impl Geometry {
    /// The geometry of a mirror of `size` bytes; the last block and extent may be partial.
    ///
    /// # Errors
    ///
    /// A size of 0, of no whole sectors, or above [`MAX_SIZE`].
    pub fn new(size: u64) -> Result<Self, SizeError> {
        match size {
            0 => Err(SizeError::Zero),
            n if !n.is_multiple_of(SECTOR) => Err(SizeError::NotSectors(n)),
            n if n > MAX_SIZE => Err(SizeError::TooLarge(n)),
            size => Ok(Self { size }),
        }
    }

    /// Bytes.
    pub fn size(self) -> u64 {
        self.size
    }

    /// Blocks, a partial last one included.
    pub fn blocks(self) -> u64 {
        self.size.div_ceil(BLOCK)
    }

    /// Extents, a partial last one included.
    pub fn extents(self) -> u32 {
        self.size.div_ceil(EXTENT) as u32
    }

    /// Every block of the mirror.
    pub fn all(self) -> Run {
        Run {
            first: Block(0),
            count: self.blocks(),
        }
    }

    /// The blocks of `extent` that the mirror has; empty for an extent behind its end.
    pub fn extent_run(self, extent: Extent) -> Run {
        let none = Run {
            first: extent.first_block(),
            count: 0,
        };
        extent.run().intersect(self.all()).unwrap_or(none)
    }

    /// The blocks that a request touches.
    ///
    /// `offset`, `len`: bytes. None if any of it lies behind the end of the mirror.
    pub fn run_of_bytes(self, offset: u64, len: u64) -> Option<Run> {
        let end = offset.checked_add(len)?;
        (end <= self.size)
            .then(|| Run::touching_bytes(offset, len))
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> Run {
        Run::new(Block(first), count)
    }

    #[test]
    fn bytes_become_the_blocks_they_touch() {
        assert_eq!(Run::touching_bytes(4095, 2), Some(run(0, 2)));
        assert_eq!(Run::touching_bytes(4096, 4096), Some(run(1, 1)));
        assert_eq!(Run::touching_bytes(8191, 1), Some(run(1, 1)));
        assert_eq!(Run::touching_bytes(8192, 0), Some(run(2, 0)));
        assert_eq!(Run::touching_bytes(u64::MAX, 1), None);
        assert_eq!(Run::from_bytes(4096, 8192), Some(run(1, 2)));
        assert_eq!(Run::from_bytes(4096, 512), None);
        assert_eq!(Run::from_bytes(512, 4096), None);
        assert_eq!(
            (run(3, 2).byte_offset(), run(3, 2).byte_len()),
            (12288, 8192)
        );
    }

    #[test]
    fn spans_meet_or_do_not() {
        assert_eq!(run(0, 4).intersect(run(2, 9)), Some(run(2, 2)));
        assert_eq!(run(0, 4).intersect(run(4, 9)), None);
        assert!(run(0, 4).overlaps(run(3, 1)) && !run(0, 4).overlaps(run(2, 0)));
        assert!(run(0, 4).contains(Block(3)) && !run(0, 4).contains(Block(4)));
        assert!(run(0, 4).covers(run(1, 3)) && !run(0, 4).covers(run(1, 4)));
        assert!(run(0, 0).covers(run(9, 0)));
    }

    #[test]
    fn a_span_is_cut_at_extents() {
        let cut: Vec<_> = run(1000, 1100).by_extent().collect();
        assert_eq!(
            cut,
            [
                (Extent(0), run(1000, 24)),
                (Extent(1), run(1024, 1024)),
                (Extent(2), run(2048, 52)),
            ]
        );
        assert_eq!(run(1024, 0).extents().count(), 0);
        assert_eq!(run(1024, 1024).extents().collect::<Vec<_>>(), [Extent(1)]);
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(Geometry::new(0), Err(SizeError::Zero));
        assert_eq!(Geometry::new(4097), Err(SizeError::NotSectors(4097)));
        assert_eq!(
            Geometry::new(MAX_SIZE + 512),
            Err(SizeError::TooLarge(MAX_SIZE + 512))
        );
        assert!(Geometry::new(MAX_SIZE).is_ok());
        assert!(
            SizeError::NotSectors(4097)
                .to_string()
                .contains("use 4096 or 4608")
        );
    }

    #[test]
    fn the_last_block_and_extent_may_be_partial() {
        let geometry = Geometry::new(EXTENT + BLOCK + 512).unwrap();
        assert_eq!((geometry.blocks(), geometry.extents()), (1026, 2));
        assert_eq!(geometry.extent_run(Extent(1)), run(1024, 2));
        assert!(geometry.extent_run(Extent(2)).is_empty());
        assert_eq!(
            geometry.run_of_bytes(EXTENT + BLOCK, 512),
            Some(run(1025, 1))
        );
        assert_eq!(geometry.run_of_bytes(EXTENT + BLOCK, 513), None);
    }
}
