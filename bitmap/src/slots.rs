//! The two slots of the superblock, read back.
//!
//! Decides what a pair of slots means after a crash or damage, and so which slot the next
//! update writes first: never the only good one. What a superblock says is superblock.rs's.

use std::fmt;

use crate::layout::SLOTS_BYTES;
use crate::sector::{
    self, Kind, PAYLOAD_BYTES, Place, SECTOR_BYTES, SECTORS_PER_UNIT, SectorFault, UNIT_BYTES,
};
use crate::superblock::{BadField, Superblock};

/// What is wrong with one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotFault {
    /// Every sector is good, but they come from different writes: a crash during an update.
    Torn,
    /// A sector is damaged, or was lost.
    Sector {
        /// Which of the eight.
        nth: usize,
        /// What is wrong with it.
        fault: SectorFault,
    },
    /// The sectors are good, and a field says what can't be.
    Field(BadField),
}

impl fmt::Display for SlotFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotFault::Torn => write!(f, "torn: a power cut came during its update"),
            SlotFault::Sector { nth, fault } => write!(f, "damaged: sector {nth}: {fault}"),
            SlotFault::Field(field) => write!(f, "unusable: {field}"),
        }
    }
}

/// Why a store gives no superblock. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockFault {
    /// The place of the superblock reads as zeroes.
    #[error(
        "no metadata here: the superblock's place is blank\n  next: check the path, or create the copy with `kagami init`"
    )]
    Blank,
    /// Something else's bytes.
    #[error(
        "no metadata of kagami here: the superblock's place holds other data\n  next: check the path; nothing was changed"
    )]
    Foreign,
    /// Written by a newer kagami.
    #[error("the metadata have format version {found}, and this kagami reads up to {known}\n  next: run the kagami that wrote them, or a newer one; nothing was changed", known = sector::FORMAT_VERSION)]
    Newer {
        /// The version found.
        found: u16,
    },
    /// A good superblock of another mirror.
    #[error(
        "the metadata belong to mirror {found:032x}, not to {expected:032x}\n  next: check the path in the configuration; nothing was changed"
    )]
    OtherMirror {
        /// The uuid found.
        found: u128,
        /// The uuid of this mirror.
        expected: u128,
    },
    /// The store is shorter than its metadata.
    #[error(
        "the store is truncated: it has {has} bytes, and its metadata need {needs}\n  next: restore the file or device to its full size"
    )]
    Truncated {
        /// Bytes there.
        has: u64,
        /// Bytes needed.
        needs: u64,
    },
    /// Neither slot can be used.
    #[error(
        "both copies of the superblock are unusable\n  first: {first}\n  second: {second}\n  next: {}", next_step([*first, *second])
    )]
    BothDamaged {
        /// What is wrong with the first.
        first: SlotFault,
        /// What is wrong with the second.
        second: SlotFault,
    },
    /// Both slots are whole, and are of different mirrors or differ in the same update.
    #[error(
        "both copies of the superblock are whole, and contradict each other (updates {first} and {second}): two writers had this store, or its creation was interrupted\n  next: create this copy anew with `kagami init` and let it resync from the peer"
    )]
    SlotsDisagree {
        /// The sequence number of the first.
        first: u64,
        /// The sequence number of the second.
        second: u64,
    },
}

/// What to do where neither slot can be used.
fn next_step(slots: [SlotFault; 2]) -> &'static str {
    let is_unread = |slot: &SlotFault| matches!(slot, SlotFault::Sector { fault, .. } if *fault == SectorFault::Unreadable);
    if slots.iter().any(is_unread) {
        // What is on it may be whole, and the only copy.
        "look in the system's log for what is wrong with the disk, and try again once it is put right; if it can't be, create this copy anew on another one with `kagami init` and let it resync from the peer"
    } else {
        "create this copy anew with `kagami init` and let it resync from the peer"
    }
}

/// The superblock read from its two slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSlots {
    /// The newest whole one. Its `seq` is the highest seen, torn updates included.
    pub superblock: Superblock,
    /// The slot that is not the superblock's equal, and why: write an update before anything
    /// is served.
    pub repair: Option<(usize, Repair)>,
}

/// Why a slot has to be written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Whole, of an earlier update: a crash came between the two writes.
    Older,
    /// Not whole.
    Fault(SlotFault),
}

/// Reads the superblock from the 8 KiB of its two slots
/// ([`crate::layout::Placement::slots_at`]); what the disk refused to read is filled with
/// [`sector::UNREADABLE`].
///
/// `store_len`: bytes of the store, to see that all metadata are there; `expected`: the uuid
/// of the mirror, if it is known.
///
/// # Errors
///
/// [`SuperblockFault`], each with what to do.
pub fn read_slots(
    bytes: &[u8],
    store_len: u64,
    expected: Option<u128>,
) -> Result<ReadSlots, SuperblockFault> {
    if (bytes.len() as u64) < SLOTS_BYTES {
        return Err(SuperblockFault::Truncated {
            has: bytes.len() as u64,
            needs: SLOTS_BYTES,
        });
    }
    let bytes = &bytes[..SLOTS_BYTES as usize];
    refuse_what_is_not_ours(bytes)?;
    let slots = [0, 1].map(|slot| read_slot(slot, &bytes[slot * UNIT_BYTES..][..UNIT_BYTES]));
    let highest = bytes
        .chunks_exact(SECTOR_BYTES)
        .enumerate()
        .filter_map(|(index, bytes)| sector::decode(bytes, place(index)).ok())
        .map(|sector| sector.seq)
        .max();
    let (good, read, repair) = match slots {
        [Ok(first), Ok(second)] if contradict(&first, &second) => {
            return Err(SuperblockFault::SlotsDisagree {
                first: first.seq,
                second: second.seq,
            });
        }
        [Ok(first), Ok(second)] if first.seq == second.seq => (1, first, None),
        [Ok(first), Ok(second)] if first.seq > second.seq => (0, first, Some((1, Repair::Older))),
        [Ok(_), Ok(second)] => (1, second, Some((0, Repair::Older))),
        [Ok(first), Err(fault)] => (0, first, Some((1, Repair::Fault(fault)))),
        [Err(fault), Ok(second)] => (1, second, Some((0, Repair::Fault(fault)))),
        [Err(first), Err(second)] => return Err(SuperblockFault::BothDamaged { first, second }),
    };
    let superblock = read;
    if let Some(expected) = expected
        && superblock.record.mirror != expected
    {
        return Err(SuperblockFault::OtherMirror {
            found: superblock.record.mirror,
            expected,
        });
    }
    if superblock.layout.area_start(store_len).is_err() {
        return Err(SuperblockFault::Truncated {
            has: store_len,
            needs: superblock.layout.total_len,
        });
    }
    Ok(ReadSlots {
        superblock: Superblock {
            // Above every sector there is, so that no two attempts share a number.
            seq: highest.unwrap_or(superblock.seq),
            first_slot: 1 - good,
            ..superblock
        },
        repair,
    })
}

/// Blank, foreign and newer stores, which no good sector of this version speaks against.
fn refuse_what_is_not_ours(bytes: &[u8]) -> Result<(), SuperblockFault> {
    if sector::is_blank(bytes) {
        return Err(SuperblockFault::Blank);
    }
    let mut foreign = true;
    for (index, bytes) in bytes.chunks_exact(SECTOR_BYTES).enumerate() {
        match sector::decode(bytes, place(index)) {
            Err(SectorFault::Newer(found)) => return Err(SuperblockFault::Newer { found }),
            Err(SectorFault::Foreign | SectorFault::Blank) => {}
            _ => foreign = false,
        }
    }
    if foreign {
        return Err(SuperblockFault::Foreign);
    }
    Ok(())
}

fn place(index: usize) -> Place {
    Place {
        kind: Kind::Superblock,
        index: index as u32,
        tag: None,
    }
}

/// Two whole slots that no sequence of updates leaves.
fn contradict(first: &Superblock, second: &Superblock) -> bool {
    first.record.mirror != second.record.mirror || (first.seq == second.seq && first != second)
}

fn read_slot(slot: usize, bytes: &[u8]) -> Result<Superblock, SlotFault> {
    let mut body = Vec::with_capacity(SECTORS_PER_UNIT * PAYLOAD_BYTES);
    let mut first = None;
    let mut torn = false;
    for (nth, bytes) in bytes.chunks_exact(SECTOR_BYTES).enumerate() {
        let sector = sector::decode(bytes, place(slot * SECTORS_PER_UNIT + nth))
            .map_err(|fault| SlotFault::Sector { nth, fault })?;
        let (seq, tag) = *first.get_or_insert((sector.seq, sector.tag));
        if tag != sector.tag {
            let fault = SectorFault::OtherMirror(sector.tag);
            return Err(SlotFault::Sector { nth, fault });
        }
        torn |= seq != sector.seq;
        body.extend_from_slice(sector.payload);
    }
    let Some((seq, tag)) = first.filter(|_| !torn) else {
        return Err(SlotFault::Torn);
    };
    let superblock = Superblock::from_body(&body, seq).map_err(SlotFault::Field)?;
    if superblock.tag() != tag {
        let fault = SectorFault::OtherMirror(tag);
        return Err(SlotFault::Sector { nth: 0, fault });
    }
    Ok(superblock)
}
