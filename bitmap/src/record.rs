//! A record of the activity log, as it is on disk.
//!
//! The hot set is an array of slots, each empty or an extent. A record is eight sectors; each
//! has up to 8 changes (slot, what it holds now) and one *window*: 96 consecutive slots with
//! what they hold after the record. Records carry the windows in rotation, so the newest few
//! records together say what every slot holds ([`records_to_cover`]), and the ring is two
//! records longer than that ([`ring_records`]).
//!
//! Sectors of a record need no other: a torn record is read as far as it got.

use bytes::Bytes;

use crate::geometry::Extent;
use crate::sector::{self, Kind, SECTORS_PER_UNIT, le16, le32, le64, put16, put32, put64};

/// Changes in one sector.
pub const CHANGES_PER_SECTOR: usize = 8;
/// Changes in a record.
pub const CHANGES_PER_RECORD: usize = CHANGES_PER_SECTOR * SECTORS_PER_UNIT;
/// Slots in a window, one window a sector.
pub const WINDOW_SLOTS: u32 = 96;
/// The smallest log: one record can fill it.
pub const MIN_CAPACITY: u32 = 64;
/// The largest log: 256 GiB of hot extents.
pub const MAX_CAPACITY: u32 = 65_536;
/// What operators get if they ask for nothing: 4 GiB of hot extents.
pub const DEFAULT_CAPACITY: u32 = 1024;

/// Offsets in the payload of a log sector, bytes.
pub mod field {
    /// 1: changes; 2: reset (every slot not named in this record is empty), u8.
    pub const KIND: usize = 0;
    /// Changes in this sector, u8, at most 8.
    pub const CHANGES: usize = 1;
    /// Slots in this sector's window, u16, at most 96.
    pub const WINDOW_LEN: usize = 2;
    /// Slots of the log, u32.
    pub const CAPACITY: usize = 4;
    /// The window's first slot, u32.
    pub const WINDOW_FIRST: usize = 8;
    /// Zero, u32.
    pub const RESERVED: usize = 12;
    /// Sequence number of the record before this one in the ring, u64.
    pub const PREVIOUS: usize = 16;
    /// Changes: slot u32, extent u32 (`0xffff_ffff`: empty); 64 bytes.
    pub const CHANGE_LIST: usize = 24;
    /// The window: extent u32 for each slot; 384 bytes.
    pub const WINDOW: usize = 88;
}

/// On disk: no extent.
const EMPTY: u32 = u32::MAX;

/// How many windows the slots make; the last may be short.
pub fn windows(capacity: u32) -> u32 {
    capacity.div_ceil(WINDOW_SLOTS)
}

/// How many records, the newest and those before it, tell about every slot.
pub fn records_to_cover(capacity: u32) -> u32 {
    windows(capacity).div_ceil(SECTORS_PER_UNIT as u32)
}

/// How many records the ring has: those that tell about every slot, one that a crash may have
/// torn, one to spare; at least 8. (1,024 slots: 8 records; 32,768: 45.)
pub fn ring_records(capacity: u32) -> u32 {
    (records_to_cover(capacity) + 2).max(8)
}

/// Whether a record adds to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// Slots keep what earlier records say, unless this one names them.
    Changes,
    /// Slots that this record does not name are empty, whatever was before.
    Reset,
}

/// What one record says, before encoding.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Whether it adds to earlier ones.
    pub kind: RecordKind,
    /// Its own sequence number.
    pub seq: u64,
    /// That of the record before it in the ring.
    pub previous: u64,
    /// The slots that changed, at most 64.
    pub changes: &'a [u32],
    /// The first window; the other seven follow it, in rotation.
    pub window: u32,
    /// All slots as they are after the record.
    pub slots: &'a [Option<Extent>],
}

impl Record<'_> {
    /// Encodes the record for place `index` of the ring: 4096 bytes.
    pub fn encode(&self, index: u32, tag: u64) -> Bytes {
        let capacity = self.slots.len() as u32;
        assert!(self.changes.len() <= CHANGES_PER_RECORD, "too many changes");
        sector::encode_unit(Kind::Log, index, self.seq, tag, |nth, payload| {
            // Spread, so that a torn record loses few of the changes that it brought.
            let changes = self.changes.iter().skip(nth).step_by(SECTORS_PER_UNIT);
            let window = (self.window + nth as u32) % windows(capacity);
            let first = window * WINDOW_SLOTS;
            let len = WINDOW_SLOTS.min(capacity - first);
            payload[field::KIND] = match self.kind {
                RecordKind::Changes => 1,
                RecordKind::Reset => 2,
            };
            payload[field::CHANGES] = changes.len() as u8;
            put16(payload, field::WINDOW_LEN, len as u16);
            put32(payload, field::CAPACITY, capacity);
            put32(payload, field::WINDOW_FIRST, first);
            put64(payload, field::PREVIOUS, self.previous);
            for (nth, &slot) in changes.enumerate() {
                let at = field::CHANGE_LIST + nth * 8;
                put32(payload, at, slot);
                put32(payload, at + 4, on_disk(self.slots[slot as usize]));
            }
            for nth in 0..len {
                let at = field::WINDOW + nth as usize * 4;
                put32(payload, at, on_disk(self.slots[(first + nth) as usize]));
            }
        })
    }
}

fn on_disk(slot: Option<Extent>) -> u32 {
    slot.map_or(EMPTY, |extent| extent.0)
}

/// What one sector of a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogSector {
    pub(crate) seq: u64,
    pub(crate) kind: RecordKind,
    pub(crate) previous: u64,
    pub(crate) window: u32,
    /// Changes and window as one list: slot, and what it holds after the record.
    pub(crate) slots: Vec<(u32, Option<Extent>)>,
}

impl LogSector {
    /// Reads the payload of a sector that passed its checks. None if it says what no record
    /// of a log of `capacity` slots over `extents` extents can say.
    pub(crate) fn decode(seq: u64, payload: &[u8], capacity: u32, extents: u32) -> Option<Self> {
        let kind = match payload[field::KIND] {
            1 => RecordKind::Changes,
            2 => RecordKind::Reset,
            _ => return None,
        };
        let changes = usize::from(payload[field::CHANGES]);
        let first = le32(payload, field::WINDOW_FIRST);
        let len = u32::from(le16(payload, field::WINDOW_LEN));
        let well_formed = le32(payload, field::CAPACITY) == capacity
            && changes <= CHANGES_PER_SECTOR
            && first < capacity
            && first.is_multiple_of(WINDOW_SLOTS)
            && len == WINDOW_SLOTS.min(capacity - first);
        if !well_formed {
            return None;
        }
        let changes = (0..changes).map(|nth| {
            let at = field::CHANGE_LIST + nth * 8;
            (le32(payload, at), le32(payload, at + 4))
        });
        let window = (0..len).map(|nth| {
            let at = field::WINDOW + nth as usize * 4;
            (first + nth, le32(payload, at))
        });
        let slots = changes
            .chain(window)
            .map(|(slot, extent)| match extent {
                _ if slot >= capacity => None,
                EMPTY => Some((slot, None)),
                extent if extent < extents => Some((slot, Some(Extent(extent)))),
                _ => None,
            })
            .collect::<Option<_>>()?;
        Some(Self {
            seq,
            kind,
            previous: le64(payload, field::PREVIOUS),
            window: first / WINDOW_SLOTS,
            slots,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sector::{PAYLOAD_BYTES, Place, SECTOR_BYTES};

    #[test]
    fn a_sector_holds_its_changes_and_its_window() {
        const { assert!(field::CHANGE_LIST + CHANGES_PER_SECTOR * 8 == field::WINDOW) };
        const { assert!(field::WINDOW + WINDOW_SLOTS as usize * 4 == PAYLOAD_BYTES) };
    }

    #[test]
    fn the_ring_is_long_enough() {
        assert_eq!((ring_records(64), ring_records(DEFAULT_CAPACITY)), (8, 8));
        assert_eq!((records_to_cover(32_768), ring_records(32_768)), (43, 45));
        for capacity in [MIN_CAPACITY, 1000, 1024, 6144, 6145, 32_768, MAX_CAPACITY] {
            assert!(ring_records(capacity) > records_to_cover(capacity));
        }
    }

    #[test]
    fn a_record_comes_back() {
        let mut slots = vec![None; 1000];
        slots[999] = Some(Extent(7));
        slots[3] = Some(Extent(8));
        let changes: Vec<u32> = (0..20).chain([999]).collect();
        let record = Record {
            kind: RecordKind::Changes,
            seq: 12,
            previous: 10,
            changes: &changes,
            window: 8,
            slots: &slots,
        };
        let image = record.encode(4, 99);
        let mut seen = vec![];
        for (nth, bytes) in image.chunks(SECTOR_BYTES).enumerate() {
            let place = Place {
                kind: Kind::Log,
                index: 32 + nth as u32,
                tag: Some(99),
            };
            let sector = sector::decode(bytes, place).unwrap();
            let log = LogSector::decode(sector.seq, sector.payload, 1000, 9).unwrap();
            assert_eq!((log.seq, log.previous), (12, 10));
            assert_eq!(log.window, (8 + nth as u32) % 11);
            for (slot, extent) in log.slots {
                assert_eq!(slots[slot as usize], extent);
                seen.push(slot);
            }
            assert_eq!(LogSector::decode(12, sector.payload, 1001, 9), None);
        }
        assert!(changes.iter().all(|slot| seen.contains(slot)));
        // Slot 3, in the fourth sector's changes, holds extent 8: none of a mirror of 8.
        let fourth = &image[3 * SECTOR_BYTES + sector::field::PAYLOAD..4 * SECTOR_BYTES];
        assert!(LogSector::decode(12, fourth, 1000, 9).is_some());
        assert!(LogSector::decode(12, fourth, 1000, 8).is_none());
    }

    #[test]
    fn what_names_a_slot_behind_the_last_is_no_sector_of_the_log() {
        let slots = vec![None; 96];
        let record = Record {
            kind: RecordKind::Changes,
            seq: 12,
            previous: 10,
            changes: &[95],
            window: 0,
            slots: &slots,
        };
        let image = record.encode(0, 99);
        let sound = &image[sector::field::PAYLOAD..SECTOR_BYTES];
        assert!(LogSector::decode(12, sound, 96, 9).is_some());
        let mut change = sound.to_vec();
        put32(&mut change, field::CHANGE_LIST, 96);
        assert_eq!(LogSector::decode(12, &change, 96, 9), None);
        let mut window = sound.to_vec();
        put32(&mut window, field::WINDOW_FIRST, 96);
        put16(&mut window, field::WINDOW_LEN, 0);
        assert_eq!(LogSector::decode(12, &window, 96, 9), None);
    }
}
