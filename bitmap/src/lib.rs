//! The metadata of a kagami copy: dirty bitmap, activity log and superblock.
//!
//! Pure data structures and their on-disk encoding: no I/O, no clock, no randomness. The core
//! owns the structures and says when what is written; the shell moves the bytes. The format is
//! specified in docs/on-disk-format.md, the rules it serves in docs/design.md §6 and
//! docs/protocol.md §1 and §7.
//!
//! | module | |
//! |---|---|
//! | [`geometry`] | blocks, extents, spans |
//! | [`dirty`], [`runs`] | the dirty bitmap and its stale pages; walking its marks |
//! | [`activity_log`] | the hot set and what its next record says |
//! | [`sector`] | the self-validating sector that everything on disk is made of |
//! | [`superblock`], [`slots`], [`page`], [`record`] | the structures on disk |
//! | [`layout`], [`format`] | where they are; creating them |
//! | [`recover`], [`replay`] | from the bytes read back to marks, hot set and record |
//! | [`store`] | is the backing store the one that the metadata speak of |
//! | `bits`, `summary` | a set of numbers as words, and which of them are not zero |
//! | [`planted`] | the defects that tests plant |

const _: () = assert!(usize::BITS >= 64, "kagami needs a 64-bit machine");

pub mod activity_log;
mod bits;
pub mod dirty;
pub mod format;
pub mod geometry;
pub mod layout;
pub mod page;
pub mod planted;
pub mod record;
pub mod recover;
pub mod replay;
pub mod runs;
pub mod sector;
pub mod slots;
pub mod store;
mod summary;
pub mod superblock;

pub use activity_log::{ActivityLog, CutRecord, LogState};
pub use dirty::DirtyBitmap;
pub use format::{Chunk, Fill, Format};
pub use geometry::{
    BLOCK, BLOCKS_PER_EXTENT, Block, EXTENT, Extent, Geometry, Run, SECTOR, SizeError,
    WORDS_PER_EXTENT,
};
pub use layout::{Layout, LayoutError, Placement};
pub use page::{ExtentWords, Page};
pub use recover::{Finding, Recovered, Recovery, recover};
pub use slots::{ReadSlots, SuperblockFault, read_slots};
pub use store::{FoundStore, OtherStore};
pub use superblock::{Backing, Generation, Record, StoredDisk, Superblock, mirror_tag};
