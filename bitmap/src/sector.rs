//! The self-validating sector: everything in a metadata store is made of these.
//!
//! A power cut leaves any mix of old and new 512-byte sectors of a write, each whole. So each
//! sector says what it is, where it belongs, whose it is and when it was written, and carries
//! a checksum over all of that: a *torn* structure has valid sectors of different sequence
//! numbers, a *corrupt* one has a sector that fails here. Whether either matters is decided
//! by who reads the structure.

use bytes::Bytes;

/// Bytes in a sector.
pub const SECTOR_BYTES: usize = 512;
/// Bytes of a structure that is written as one: a superblock slot, a log record, a page.
pub const UNIT_BYTES: usize = 4096;
/// Sectors in such a unit.
pub const SECTORS_PER_UNIT: usize = UNIT_BYTES / SECTOR_BYTES;
/// The version of the on-disk format that this code writes, and the newest that it reads.
pub const FORMAT_VERSION: u16 = 1;

/// Fill with this what the disk refuses to read: it passes for nothing.
pub const UNREADABLE: u8 = 0xff;

/// Offsets of the header's fields within a sector, bytes. All numbers are little-endian.
pub mod field {
    /// `kagami` and two letters for the kind, 8 bytes.
    pub const MAGIC: usize = 0;
    /// Format version, u16.
    pub const VERSION: usize = 8;
    /// Zero, u16.
    pub const RESERVED_A: usize = 10;
    /// crc32c of the sector with this field zero, u32.
    pub const CRC: usize = 12;
    /// The sector's place in its area: unit × 8 + sector within the unit, u32.
    pub const INDEX: usize = 16;
    /// Zero, u32.
    pub const RESERVED_B: usize = 20;
    /// Sequence number of the write, u64.
    pub const SEQ: usize = 24;
    /// First 64 bits of the mirror's uuid, u64.
    pub const TAG: usize = 32;
    /// The payload, 472 bytes.
    pub const PAYLOAD: usize = 40;
}

/// Bytes of payload in a sector.
pub const PAYLOAD_BYTES: usize = SECTOR_BYTES - field::PAYLOAD;

/// What a sector belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A superblock slot.
    Superblock,
    /// A record of the activity log.
    Log,
    /// The directory of written pages.
    Directory,
    /// A bitmap page.
    Page,
}

impl Kind {
    /// The 8 bytes that open a sector of this kind.
    pub const fn magic(self) -> &'static [u8; 8] {
        match self {
            Kind::Superblock => b"kagamiSB",
            Kind::Log => b"kagamiAL",
            Kind::Directory => b"kagamiDR",
            Kind::Page => b"kagamiBM",
        }
    }

    fn from_magic(magic: &[u8]) -> Option<Self> {
        [Kind::Superblock, Kind::Log, Kind::Directory, Kind::Page]
            .into_iter()
            .find(|kind| kind.magic() == magic)
    }
}

/// Why a sector is not what was expected in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SectorFault {
    /// All zeroes: never written, or wiped.
    #[error("all zeroes")]
    Blank,
    /// Filled with [`UNREADABLE`].
    #[error("the disk refuses to read it, or it is all ones")]
    Unreadable,
    /// Not a sector of kagami's, or its first bytes are damaged.
    #[error("not written by kagami, or its first bytes are damaged")]
    Foreign,
    /// The checksum does not match.
    #[error("checksum {found:#010x}, expected {expected:#010x}")]
    Checksum {
        /// What the sector says.
        found: u32,
        /// What its bytes give.
        expected: u32,
    },
    /// Written by a newer kagami.
    #[error("format version {0}, newer than the {FORMAT_VERSION} known here")]
    Newer(u16),
    /// A good sector that belongs elsewhere: a misdirected write.
    #[error("sector {found} of another place or kind, expected sector {expected}")]
    Misplaced {
        /// The index that the sector carries.
        found: u32,
        /// The index of the place it was read from.
        expected: u32,
    },
    /// A good sector of another mirror.
    #[error("belongs to another mirror (tag {0:016x})")]
    OtherMirror(u64),
}

/// Where a sector is expected to belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is part of.
    pub kind: Kind,
    /// Unit × 8 + sector within the unit.
    pub index: u32,
    /// The mirror's tag; None accepts any.
    pub tag: Option<u64>,
}

/// A sector that passed every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sector<'a> {
    /// The write that it came from.
    pub seq: u64,
    /// The mirror's tag.
    pub tag: u64,
    /// 472 bytes.
    pub payload: &'a [u8],
}

/// Checks the 512 bytes read from `place`.
///
/// # Errors
///
/// What is wrong, in an order that makes each statement true: version, place and
/// mirror are believed only under a good checksum.
pub fn decode(bytes: &[u8], place: Place) -> Result<Sector<'_>, SectorFault> {
    assert_eq!(bytes.len(), SECTOR_BYTES, "a sector is read whole");
    if is_blank(bytes) {
        return Err(SectorFault::Blank);
    }
    if bytes.iter().all(|byte| *byte == UNREADABLE) {
        return Err(SectorFault::Unreadable);
    }
    let Some(kind) = Kind::from_magic(&bytes[field::MAGIC..field::VERSION]) else {
        return Err(SectorFault::Foreign);
    };
    let (found, expected) = (le32(bytes, field::CRC), checksum(bytes));
    if found != expected {
        return Err(SectorFault::Checksum { found, expected });
    }
    let version = le16(bytes, field::VERSION);
    if version > FORMAT_VERSION {
        return Err(SectorFault::Newer(version));
    }
    let tag = le64(bytes, field::TAG);
    if place.tag.is_some_and(|expected| expected != tag) {
        return Err(SectorFault::OtherMirror(tag));
    }
    let index = le32(bytes, field::INDEX);
    if kind != place.kind || index != place.index {
        return Err(SectorFault::Misplaced {
            found: index,
            expected: place.index,
        });
    }
    Ok(Sector {
        seq: le64(bytes, field::SEQ),
        tag,
        payload: &bytes[field::PAYLOAD..],
    })
}

/// Encodes one unit of 4096 bytes: `fill` writes the payload (472 bytes, zeroed) of each of
/// its eight sectors.
pub fn encode_unit(
    kind: Kind,
    unit: u32,
    seq: u64,
    tag: u64,
    mut fill: impl FnMut(usize, &mut [u8]),
) -> Bytes {
    let mut image = vec![0u8; UNIT_BYTES];
    for (nth, sector) in image.chunks_exact_mut(SECTOR_BYTES).enumerate() {
        sector[field::MAGIC..field::VERSION].copy_from_slice(kind.magic());
        put16(sector, field::VERSION, FORMAT_VERSION);
        put32(sector, field::INDEX, sector_index(unit, nth));
        put64(sector, field::SEQ, seq);
        put64(sector, field::TAG, tag);
        fill(nth, &mut sector[field::PAYLOAD..]);
        let crc = checksum(sector);
        put32(sector, field::CRC, crc);
    }
    Bytes::from(image)
}

/// The index that sector `nth` of `unit` carries.
pub fn sector_index(unit: u32, nth: usize) -> u32 {
    unit * SECTORS_PER_UNIT as u32 + nth as u32
}

/// True if all bytes are zero.
pub fn is_blank(bytes: &[u8]) -> bool {
    // Comparing slices is memcmp: 16 TiB of data have 700 MiB of pages to look at.
    bytes
        .chunks(SECTOR_BYTES)
        .all(|part| part == &[0; SECTOR_BYTES][..part.len()])
}

/// crc32c over the sector as if its crc field were zero.
fn checksum(sector: &[u8]) -> u32 {
    let before = crc32c::crc32c(&sector[..field::CRC]);
    let zero = crc32c::crc32c_append(before, &[0; 4]);
    crc32c::crc32c_append(zero, &sector[field::INDEX..])
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(crate) fn le128(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put128(bytes: &mut [u8], at: usize, value: u128) {
    bytes[at..at + 16].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: u64 = 0x1122_3344_5566_7788;

    fn unit() -> Bytes {
        encode_unit(Kind::Page, 3, 9, TAG, |nth, payload| {
            payload.fill(nth as u8);
        })
    }

    fn place(index: u32) -> Place {
        Place {
            kind: Kind::Page,
            index,
            tag: Some(TAG),
        }
    }

    #[test]
    fn each_sector_stands_alone() {
        for (nth, bytes) in unit().chunks(SECTOR_BYTES).enumerate() {
            let sector = decode(bytes, place(24 + nth as u32)).unwrap();
            assert_eq!((sector.seq, sector.tag), (9, TAG));
            assert_eq!(sector.payload, [nth as u8; PAYLOAD_BYTES]);
        }
    }

    #[test]
    fn every_fault_has_its_name() {
        let unit = unit();
        let first = &unit[..SECTOR_BYTES];
        assert_eq!(decode(&[0; 512], place(24)), Err(SectorFault::Blank));
        assert_eq!(decode(&[7; 512], place(24)), Err(SectorFault::Foreign));
        let misplaced = SectorFault::Misplaced {
            found: 24,
            expected: 25,
        };
        assert_eq!(decode(first, place(25)), Err(misplaced));
        let other = Place {
            tag: Some(1),
            ..place(24)
        };
        assert_eq!(decode(first, other), Err(SectorFault::OtherMirror(TAG)));
        let log = Place {
            kind: Kind::Log,
            ..place(24)
        };
        assert!(matches!(
            decode(first, log),
            Err(SectorFault::Misplaced { .. })
        ));

        let mut newer = first.to_vec();
        put16(&mut newer, field::VERSION, 2);
        assert!(matches!(
            decode(&newer, place(24)),
            Err(SectorFault::Checksum { .. })
        ));
        let crc = checksum(&newer);
        put32(&mut newer, field::CRC, crc);
        assert_eq!(decode(&newer, place(24)), Err(SectorFault::Newer(2)));
    }

    #[test]
    fn no_flipped_bit_passes() {
        let mut sector = unit()[..SECTOR_BYTES].to_vec();
        for bit in 0..SECTOR_BYTES * 8 {
            sector[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&sector, place(24)).is_err(), "bit {bit}");
            sector[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
