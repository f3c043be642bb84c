//! Where the structures of a metadata store are.
//!
//! Decides the order and the size of the areas; everything follows from the size that the
//! mirror may grow to, the capacity of the activity log, and whether the metadata have a
//! store of their own or the tail of the backing store. All offsets are multiples of 4096.

use crate::geometry::{Geometry, SizeError};
use crate::page::{Page, directory_pages_for, pages_for};
use crate::record::{MAX_CAPACITY, MIN_CAPACITY, ring_records};
use crate::sector::UNIT_BYTES;

const UNIT: u64 = UNIT_BYTES as u64;

/// Bytes of the two superblock slots together.
pub const SLOTS_BYTES: u64 = 2 * UNIT;

/// Where a copy's metadata are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In a file or device of their own: the superblock is at its start.
    Own,
    /// In the tail of the backing store: the superblock is at its end, so that it is found
    /// without knowing anything else.
    Tail,
}

impl Placement {
    /// Where the superblock slots of a store of `store_len` bytes are: 8 KiB from there.
    ///
    /// None if the store is too short to have any.
    pub fn slots_at(self, store_len: u64) -> Option<u64> {
        match self {
            Placement::Own => (store_len >= SLOTS_BYTES).then_some(0),
            Placement::Tail => (store_len / UNIT * UNIT).checked_sub(SLOTS_BYTES),
        }
    }
}

/// A layout that can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The size that the metadata shall be enough for can't be.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// An activity log that is too small or too large.
    #[error(
        "an activity log of {0} extents can't be; choose {MIN_CAPACITY} to {MAX_CAPACITY} (one extent is 4 MiB)"
    )]
    LogCapacity(u32),
    /// The store is too short for its metadata.
    #[error(
        "the store has {has} bytes, and its metadata need {needs}; enlarge it, or lower the maximum size"
    )]
    StoreTooShort {
        /// Bytes there.
        has: u64,
        /// Bytes needed.
        needs: u64,
    },
}

/// The areas of a metadata store. Offsets count from the start of the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of its own, or a tail.
    pub placement: Placement,
    /// The size that the mirror may grow to without a new layout, bytes.
    pub max_size: u64,
    /// Extents that can be hot at once.
    pub log_capacity: u32,
    /// Offset of the two superblock slots.
    pub slots_offset: u64,
    /// Offset of the activity log's ring.
    pub log_offset: u64,
    /// Records in the ring, 4096 bytes each.
    pub log_records: u32,
    /// Offset of the directory of written pages.
    pub directory_offset: u64,
    /// Pages of the directory.
    pub directory_pages: u32,
    /// Offset of the bitmap pages.
    pub pages_offset: u64,
    /// Bitmap pages.
    pub pages: u32,
    /// Bytes of all of it.
    pub total_len: u64,
}

impl Layout {
    /// The layout for a mirror that may grow to `max_size` bytes.
    ///
    /// 1 TiB needs 43 MiB, and 64 KiB are needed by the smallest.
    ///
    /// # Errors
    ///
    /// A size or a capacity that can't be.
    pub fn new(
        max_size: u64,
        log_capacity: u32,
        placement: Placement,
    ) -> Result<Self, LayoutError> {
        let geometry = Geometry::new(max_size)?;
        if !(MIN_CAPACITY..=MAX_CAPACITY).contains(&log_capacity) {
            return Err(LayoutError::LogCapacity(log_capacity));
        }
        let log_records = ring_records(log_capacity);
        let pages = pages_for(geometry.extents());
        let directory_pages = directory_pages_for(pages);
        let areas = u64::from(log_records) + u64::from(directory_pages) + u64::from(pages);
        let areas = areas * UNIT;
        let (slots_offset, log_offset) = match placement {
            Placement::Own => (0, SLOTS_BYTES),
            Placement::Tail => (areas, 0),
        };
        let directory_offset = log_offset + u64::from(log_records) * UNIT;
        Ok(Self {
            placement,
            max_size,
            log_capacity,
            slots_offset,
            log_offset,
            log_records,
            directory_offset,
            directory_pages,
            pages_offset: directory_offset + u64::from(directory_pages) * UNIT,
            pages,
            total_len: areas + SLOTS_BYTES,
        })
    }

    /// Where the metadata begin in a store of `store_len` bytes: add it to every offset.
    ///
    /// # Errors
    ///
    /// The store is too short.
    pub fn area_start(&self, store_len: u64) -> Result<u64, LayoutError> {
        let room = match self.placement {
            Placement::Own => store_len,
            Placement::Tail => store_len / UNIT * UNIT,
        };
        match (room.checked_sub(self.total_len), self.placement) {
            (None, _) => Err(LayoutError::StoreTooShort {
                has: store_len,
                needs: self.total_len,
            }),
            (Some(_), Placement::Own) => Ok(0),
            (Some(start), Placement::Tail) => Ok(start),
        }
    }

    /// Offset of superblock slot 0 or 1.
    pub fn slot_offset(&self, slot: usize) -> u64 {
        assert!(slot < 2, "superblock slot {slot}");
        self.slots_offset + slot as u64 * UNIT
    }

    /// Offset of a page.
    pub fn page_offset(&self, page: Page) -> u64 {
        let (area, pages) = if page.is_directory() {
            (self.directory_offset, self.directory_pages)
        } else {
            (self.pages_offset, self.pages)
        };
        assert!(page.index() < pages, "{page} of {pages}");
        area + u64::from(page.index()) * UNIT
    }

    /// Offset of the activity log's ring: [`crate::CutRecord::offset`] counts from here.
    pub fn log_offset(&self) -> u64 {
        self.log_offset
    }

    /// Offset of a record of the activity log.
    pub fn record_offset(&self, index: u32) -> u64 {
        assert!(index < self.log_records, "record {index}");
        self.log_offset + u64::from(index) * UNIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(max_size: u64, placement: Placement) -> Layout {
        Layout::new(max_size, 1024, placement).unwrap()
    }

    #[test]
    fn areas_follow_each_other() {
        let own = layout(1 << 40, Placement::Own);
        assert_eq!(
            (own.slots_offset, own.log_offset, own.log_records),
            (0, 8192, 8)
        );
        assert_eq!((own.directory_offset, own.directory_pages), (40_960, 1));
        assert_eq!((own.pages_offset, own.pages), (45_056, 10_923));
        assert_eq!(own.total_len, 45_056 + 10_923 * 4096);
        let tail = layout(1 << 40, Placement::Tail);
        assert_eq!((tail.log_offset, tail.total_len), (0, own.total_len));
        assert_eq!(tail.slots_offset + SLOTS_BYTES, tail.total_len);
        assert_eq!(
            tail.page_offset(Page::bitmap(0)),
            tail.directory_offset + 4096
        );
        assert_eq!(layout(16 << 40, Placement::Own).directory_pages, 7);
    }

    #[test]
    fn a_tail_is_found_from_the_end() {
        let tail = layout(1 << 30, Placement::Tail);
        let store_len = (2 << 30) + 512;
        let start = tail.area_start(store_len).unwrap();
        assert_eq!(
            Placement::Tail.slots_at(store_len),
            Some(start + tail.slots_offset)
        );
        assert_eq!(Placement::Tail.slots_at(8191), None);
        let short = tail.area_start(4096).unwrap_err();
        assert!(short.to_string().contains("enlarge it"), "{short}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |size, capacity| Layout::new(size, capacity, Placement::Own).unwrap_err();
        assert_eq!(refused(0, 1024), LayoutError::Size(SizeError::Zero));
        assert_eq!(refused(4096, 63), LayoutError::LogCapacity(63));
        assert_eq!(refused(4096, 65_537), LayoutError::LogCapacity(65_537));
    }
}
