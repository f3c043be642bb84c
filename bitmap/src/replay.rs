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
    self, Kind, Place, SECTOR_BYTES, SECTORS_PER_UNIT, SectorFault, UNIT_BYTES, sector_index,
};

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
    let mut highest_seq = 0;
    let mut first_damage = None;
    let mut records = Vec::new();
    for (index, record) in (0..).zip(ring.chunks_exact(UNIT_BYTES)) {
        let mut sectors = Vec::with_capacity(SECTORS_PER_UNIT);
        for (nth, bytes) in record.chunks_exact(SECTOR_BYTES).enumerate() {
            let place = Place {
                kind: Kind::Log,
                index: sector_index(index, nth),
                tag: Some(tag),
            };
            let read = sector::decode(bytes, place)
                .map_err(|fault| LogDamage::Sector { index, nth, fault })
                .and_then(|sector| {
                    highest_seq = highest_seq.max(sector.seq);
                    LogSector::decode(sector.seq, sector.payload, capacity, extents)
                        .ok_or(LogDamage::Nonsense { index })
                });
            match read {
                Ok(sector) => sectors.push(sector),
                Err(damage) => first_damage = first_damage.or(Some(damage)),
            }
        }
        records.push(sectors);
    }
    assert_eq!(
        records.len(),
        ring_records(capacity) as usize,
        "the whole ring"
    );
    let read = match first_damage {
        None => read_back(&records, capacity, highest_seq),
        Some(damage) => Err(damage),
    };
    read.map_err(|damage| Damaged {
        damage,
        highest_seq,
    })
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
