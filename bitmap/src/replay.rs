//! From the ring of the activity log to the hot set.
//!
//! A ring that no disk damaged holds whole records, and at most one torn one: in the place
//! behind the newest whole record, where the write was that a crash cut short. That record was
//! never acknowledged, so nothing was written under what it heats, and what it cools was hot
//! until then: the hot set is that of the newest whole record, found by walking back from it.
//! Everything else is damage, and the caller marks every block.

use std::collections::HashSet;
use std::fmt;

use crate::activity_log::LogState;
use crate::geometry::Extent;
use crate::record::{LogSector, RecordKind, ring_records, windows};
use crate::sector::{
    self, Kind, Place, SECTOR_BYTES, SECTORS_PER_UNIT, Sector, SectorFault, UNIT_BYTES,
};

const UNIT_SECTORS: u32 = SECTORS_PER_UNIT as u32;

/// Why the log can't be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogDamage {
    /// A sector failed its checks.
    Sector {
        /// The record's place in the ring.
        index: u32,
        /// Which of its eight sectors.
        nth: usize,
        /// What is wrong.
        fault: SectorFault,
    },
    /// A sector passed its checks and says what can't be.
    Nonsense {
        /// The record's place in the ring.
        index: u32,
    },
    /// A torn record where no crash leaves one.
    Torn {
        /// The record's place in the ring.
        index: u32,
    },
    /// A record that must be there is not: an acknowledged write was lost.
    Gap {
        /// The sequence number that is missing.
        seq: u64,
        /// Where it should be.
        index: u32,
    },
    /// No whole record at all.
    Empty,
    /// An extent in two slots.
    Twice(Extent),
}

impl fmt::Display for LogDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogDamage::Sector { index, nth, fault } => {
                write!(f, "record {index}, sector {nth}: {fault}")
            }
            LogDamage::Nonsense { index } => write!(f, "record {index} says what can't be"),
            LogDamage::Torn { index } => {
                write!(
                    f,
                    "record {index} is a mix of writes, and is not the newest"
                )
            }
            LogDamage::Gap { seq, index } => {
                write!(f, "record {index} should be write {seq}, and is not")
            }
            LogDamage::Empty => write!(f, "no record is whole"),
            LogDamage::Twice(extent) => write!(f, "{extent} is in two slots"),
        }
    }
}

/// What a sound ring says.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    pub(crate) state: LogState,
    /// A torn record's place, and the extents that it would have made hot, as far as it got.
    pub(crate) torn: Option<(u32, Vec<Extent>)>,
}

/// Why there is none, and the highest sequence number seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Damaged {
    pub(crate) damage: LogDamage,
    pub(crate) highest_seq: u64,
}

/// Reads the whole ring: [`ring_records`] × 4096 bytes.
pub(crate) fn replay(
    ring: &[u8],
    capacity: u32,
    extents: u32,
    tag: u64,
) -> Result<Replay, Damaged> {
    assert_eq!(
        ring.len(),
        ring_records(capacity) as usize * UNIT_BYTES,
        "the whole ring"
    );
    let mut highest_seq = 0;
    let mut first_damage = None;
    let mut sectors = Vec::with_capacity(ring.len() / SECTOR_BYTES);
    for (index, bytes) in (0u32..).zip(ring.chunks_exact(SECTOR_BYTES)) {
        let place = Place {
            kind: Kind::Log,
            index,
            tag: Some(tag),
        };
        match sector::decode(bytes, place) {
            Ok(sector) => {
                highest_seq = highest_seq.max(sector.seq);
                sectors.push(sector);
            }
            Err(fault) => {
                let (index, nth) = (index / UNIT_SECTORS, (index % UNIT_SECTORS) as usize);
                first_damage.get_or_insert(LogDamage::Sector { index, nth, fault });
            }
        }
    }
    let read = match first_damage {
        None => understand(&sectors, capacity, extents)
            .and_then(|records| read_back(&records, capacity, highest_seq)),
        Some(damage) => Err(damage),
    };
    read.map_err(|damage| Damaged {
        damage,
        highest_seq,
    })
}

/// What the sound sectors say, by record.
fn understand(
    sectors: &[Sector<'_>],
    capacity: u32,
    extents: u32,
) -> Result<Vec<Vec<LogSector>>, LogDamage> {
    (0..)
        .zip(sectors.chunks_exact(SECTORS_PER_UNIT))
        .map(|(index, record)| {
            record
                .iter()
                .map(|sector| LogSector::decode(sector.seq, sector.payload, capacity, extents))
                .collect::<Option<_>>()
                .ok_or(LogDamage::Nonsense { index })
        })
        .collect()
}

/// A record whose eight sectors are of one write.
fn whole(sectors: &[LogSector]) -> Option<&LogSector> {
    let first = &sectors[0];
    sectors
        .iter()
        .all(|sector| sector.seq == first.seq)
        .then_some(first)
}

/// A slot, on the way back through the records.
#[derive(Clone, Copy, PartialEq)]
enum Slot {
    Unknown,
    Holds(Option<Extent>),
}

/// Walks back from the newest whole record until every slot is known.
fn read_back(
    records: &[Vec<LogSector>],
    capacity: u32,
    highest_seq: u64,
) -> Result<Replay, LogDamage> {
    let newest = (0..records.len())
        .filter_map(|index| Some((whole(&records[index])?.seq, index)))
        .max()
        .ok_or(LogDamage::Empty)?;
    let torn = find_torn(records, newest)?;
    let mut slots = vec![Slot::Unknown; capacity as usize];
    let mut unknown = slots.len();
    let (mut seq, mut index) = newest;
    for _ in 0..records.len() {
        let first = whole(&records[index])
            .filter(|first| first.seq == seq)
            .ok_or(LogDamage::Gap {
                seq,
                index: index as u32,
            })?;
        for (nth, sector) in records[index].iter().enumerate() {
            let consistent = sector.kind == first.kind
                && sector.previous == first.previous
                && sector.previous < seq
                && sector.window == (first.window + nth as u32) % windows(capacity);
            if !consistent {
                return Err(LogDamage::Nonsense {
                    index: index as u32,
                });
            }
            for &(slot, extent) in &sector.slots {
                let known = &mut slots[slot as usize];
                if *known == Slot::Unknown {
                    *known = Slot::Holds(extent);
                    unknown -= 1;
                }
            }
        }
        if unknown == 0 || first.kind == RecordKind::Reset {
            return finish(&slots, records, newest, highest_seq, torn);
        }
        seq = first.previous;
        index = (index + records.len() - 1) % records.len();
    }
    Err(LogDamage::Gap {
        seq,
        index: index as u32,
    })
}

/// The torn record, which only the place behind the newest may have.
fn find_torn(
    records: &[Vec<LogSector>],
    (newest_seq, newest): (u64, usize),
) -> Result<Option<(u32, Vec<Extent>)>, LogDamage> {
    let mut torn = None;
    for (index, sectors) in records.iter().enumerate() {
        if whole(sectors).is_some() {
            continue;
        }
        let heats: Vec<Extent> = sectors
            .iter()
            .filter(|sector| sector.seq > newest_seq)
            .flat_map(|sector| &sector.slots)
            .filter_map(|&(_, extent)| extent)
            .collect();
        let is_next = index == (newest + 1) % records.len();
        if !is_next || sectors.iter().all(|sector| sector.seq < newest_seq) {
            return Err(LogDamage::Torn {
                index: index as u32,
            });
        }
        torn = Some((index as u32, heats));
    }
    Ok(torn)
}

fn finish(
    slots: &[Slot],
    records: &[Vec<LogSector>],
    (newest_seq, newest): (u64, usize),
    highest_seq: u64,
    torn: Option<(u32, Vec<Extent>)>,
) -> Result<Replay, LogDamage> {
    let slots: Vec<Option<Extent>> = slots
        .iter()
        .map(|slot| match slot {
            Slot::Holds(extent) => *extent,
            // A reset does not name it.
            Slot::Unknown => None,
        })
        .collect();
    let mut hot = HashSet::new();
    for &extent in slots.iter().flatten() {
        if !hot.insert(extent) {
            return Err(LogDamage::Twice(extent));
        }
    }
    let torn = torn.map(|(index, mut heats)| {
        heats.retain(|extent| !hot.contains(extent));
        heats.sort_unstable();
        heats.dedup();
        (index, heats)
    });
    let capacity = slots.len() as u32;
    let window = records[newest][0].window;
    Ok(Replay {
        state: LogState {
            slots,
            newest_seq,
            newest_index: newest as u32,
            next_window: (window + SECTORS_PER_UNIT as u32) % windows(capacity),
            next_seq: highest_seq.saturating_add(1),
        },
        torn,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity_log::{ActivityLog, empty_ring};

    const CAPACITY: u32 = 64;
    const TAG: u64 = 77;

    /// A ring whose newest record, in place 0, made extents 0 to 9 hot.
    fn ring() -> Vec<u8> {
        let mut ring: Vec<u8> = empty_ring(CAPACITY, 0, TAG)
            .flat_map(|(_, image)| image.to_vec())
            .collect();
        let mut log = ActivityLog::new(CAPACITY, 0, TAG);
        (0..10).for_each(|extent| log.want(Extent(extent)));
        let cut = log.cut_record(|_| true).unwrap();
        ring[cut.offset as usize..][..UNIT_BYTES].copy_from_slice(&cut.image);
        ring
    }

    fn read(ring: &[u8]) -> Result<Replay, LogDamage> {
        replay(ring, CAPACITY, 100, TAG).map_err(|damaged| damaged.damage)
    }

    #[test]
    fn a_sound_ring_gives_the_hot_set_and_where_to_go_on() {
        let replay = read(&ring()).unwrap();
        assert_eq!(replay.state.slots.iter().flatten().count(), 10);
        let state = replay.state;
        assert_eq!(
            (state.newest_seq, state.newest_index, state.next_seq),
            (9, 0, 10)
        );
        assert!(replay.torn.is_none());
    }

    #[test]
    fn no_flipped_bit_of_a_record_passes() {
        let mut ring = ring();
        for bit in 0..UNIT_BYTES * 8 {
            ring[bit / 8] ^= 1 << (bit % 8);
            let found = read(&ring).unwrap_err();
            let nth = bit / 8 / SECTOR_BYTES;
            assert!(matches!(found, LogDamage::Sector { index: 0, nth: n, .. } if n == nth));
            ring[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn what_no_crash_leaves_is_damage() {
        let sound = ring();
        let unit = |index: usize| index * UNIT_BYTES..(index + 1) * UNIT_BYTES;
        // A mix in a place that is not behind the newest.
        let mut torn = sound.clone();
        let other = ActivityLog::new(CAPACITY, 0, TAG);
        let mut other = ActivityLog::resume(
            LogState {
                newest_index: 3,
                ..LogState::emptied(CAPACITY, other.next_seq() - 9)
            },
            TAG,
        );
        other.want(Extent(1));
        let cut = other.cut_record(|_| true).unwrap();
        assert_eq!(cut.index, 4);
        torn[unit(4)][..SECTOR_BYTES].copy_from_slice(&cut.image[..SECTOR_BYTES]);
        assert_eq!(read(&torn).unwrap_err(), LogDamage::Torn { index: 4 });
        // A record in another's place: every sector says where it belongs.
        let mut moved = sound.clone();
        moved.copy_within(unit(1), unit(2).start);
        assert!(matches!(
            read(&moved),
            Err(LogDamage::Sector { index: 2, .. })
        ));
        // Another mirror's log.
        let other = replay(&sound, CAPACITY, 100, TAG + 1).unwrap_err();
        let fault = SectorFault::OtherMirror(TAG);
        assert_eq!(
            other.damage,
            LogDamage::Sector {
                index: 0,
                nth: 0,
                fault
            }
        );
    }
}
