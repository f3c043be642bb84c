//! What a used disk looks like: the marks of file systems, volume managers, partition tables.
//!
//! Keeps a table of marks in the first and last mebibyte. They only give what is found a name: any
//! byte that is not zero there counts as use. Reading the disk is left to [`super::store`].

use std::fmt;

use kagami_bitmap::layout::SLOTS_BYTES;
use kagami_bitmap::sector::{Kind, UNIT_BYTES};

/// A mark that says whose a disk is.
struct Signature {
    /// What it is the mark of, as a person knows it.
    name: &'static str,
    place: Place,
    /// The bytes there.
    magic: &'static [u8],
}

/// Where a mark stands in a store.
#[derive(Clone, Copy)]
enum Place {
    /// Bytes from the start.
    Start(u64),
    /// Bytes before the end.
    End(u64),
    /// Bytes before the end, from there down to a multiple of the second number.
    EndAligned(u64, u64),
}

impl Place {
    fn resolve(self, size: u64) -> Option<u64> {
        match self {
            Self::Start(offset) => Some(offset),
            Self::End(before) => size.checked_sub(before),
            Self::EndAligned(before, align) => Some(size.checked_sub(before)? / align * align),
        }
    }
}

/// What was found on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The name of the mark, or nothing for bytes of unknown meaning.
    pub name: Option<&'static str>,
    /// Where, in bytes from the start.
    pub offset: u64,
}

impl fmt::Display for Found {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => write!(
                formatter,
                "{name} (its mark stands at byte {})",
                self.offset
            ),
            None => write!(
                formatter,
                "data of an unknown kind (the first byte that is not zero stands at {})",
                self.offset
            ),
        }
    }
}

const fn at(name: &'static str, offset: u64, magic: &'static [u8]) -> Signature {
    Signature {
        name,
        place: Place::Start(offset),
        magic,
    }
}

const fn end(name: &'static str, before: u64, magic: &'static [u8]) -> Signature {
    Signature {
        name,
        place: Place::End(before),
        magic,
    }
}

const MD_MAGIC: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
const BCACHE_MAGIC: &[u8] = &[
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];
const BCACHEFS_MAGIC: &[u8] = &[
    0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef,
];

/// The known marks: kagami's own, then others' as util-linux's libblkid and the kernel's headers give them. The
/// first that fits names the disk, so the more telling ones stand first: a partition table's boot mark is shared
/// by several file systems.
const KNOWN: &[Signature] = &[
    at("a kagami metadata store", 0, Kind::Superblock.magic()),
    Signature {
        name: "a disk that ends in the metadata of a kagami mirror",
        place: Place::EndAligned(SLOTS_BYTES, UNIT_BYTES as u64),
        magic: Kind::Superblock.magic(),
    },
    at("a LUKS encrypted volume", 0, b"LUKS\xba\xbe"),
    at("an LVM physical volume", 512, b"LABELONE"),
    at("an LVM physical volume", 0, b"LABELONE"),
    at("an LVM physical volume", 1024, b"LABELONE"),
    at("an LVM physical volume", 1536, b"LABELONE"),
    at("a member of an md array", 4096, MD_MAGIC),
    at("a member of an md array", 0, MD_MAGIC),
    Signature {
        name: "a member of an md array",
        place: Place::EndAligned(8192, 4096),
        magic: MD_MAGIC,
    },
    Signature {
        name: "a member of an md array",
        place: Place::EndAligned(65536, 65536),
        magic: MD_MAGIC,
    },
    end("DRBD metadata", 4096 - 60, b"\x83\x74\x02\x6b"),
    end("DRBD metadata", 4096 - 60, b"\x83\x74\x02\x6c"),
    end("DRBD metadata", 4096 - 60, b"\x83\x74\x02\x6d"),
    at("a bcache device", 4096 + 24, BCACHE_MAGIC),
    at("a bcachefs file system", 4096 + 24, BCACHEFS_MAGIC),
    at("an xfs file system", 0, b"XFSB"),
    at("an ext2, ext3 or ext4 file system", 1024 + 56, b"\x53\xef"),
    at("a btrfs file system", 65536 + 64, b"_BHRfS_M"),
    at("an f2fs file system", 1024, b"\x10\x20\xf5\xf2"),
    at("swap space", 4096 - 10, b"SWAPSPACE2"),
    at("swap space", 16384 - 10, b"SWAPSPACE2"),
    at("swap space", 65536 - 10, b"SWAPSPACE2"),
    at("an NTFS file system", 3, b"NTFS    "),
    at("an exFAT file system", 3, b"EXFAT   "),
    at("a FAT file system", 54, b"FAT12   "),
    at("a FAT file system", 54, b"FAT16   "),
    at("a FAT file system", 82, b"FAT32   "),
    at("an ISO 9660 file system", 32769, b"CD001"),
    at("a squashfs file system", 0, b"hsqs"),
    at("a GPT partition table", 512, b"EFI PART"),
    at("a GPT partition table", 4096, b"EFI PART"),
    end("the second copy of a GPT partition table", 512, b"EFI PART"),
    end(
        "the second copy of a GPT partition table",
        4096,
        b"EFI PART",
    ),
    at("a qcow2 image", 0, b"QFI\xfb"),
    at("an MBR partition table or boot sector", 510, b"\x55\xaa"),
];

/// ZFS writes its uberblocks round a ring of 1 KiB slots, in either byte order; any of them counts.
const ZFS_RING: std::ops::Range<u64> = 128 << 10..256 << 10;
const ZFS_SLOT: usize = 1 << 10;
const ZFS_MAGIC: [u8; 8] = 0x00ba_b10c_u64.to_le_bytes();

/// Looks at `pieces` (offset in the store, bytes) of a store of `size` bytes, for known marks, then for any
/// byte that is not zero.
pub fn look(pieces: &[(u64, &[u8])], size: u64) -> Option<Found> {
    KNOWN
        .iter()
        .find_map(|signature| {
            let offset = signature.place.resolve(size)?;
            (bytes_at(pieces, offset, signature.magic.len())? == signature.magic).then_some(Found {
                name: Some(signature.name),
                offset,
            })
        })
        .or_else(|| find_zfs(pieces))
        .or_else(|| find_data(pieces))
}

fn bytes_at<'a>(pieces: &[(u64, &'a [u8])], offset: u64, len: usize) -> Option<&'a [u8]> {
    pieces.iter().find_map(|&(start, bytes)| {
        let from = usize::try_from(offset.checked_sub(start)?).ok()?;
        bytes.get(from..from.checked_add(len)?)
    })
}

fn find_zfs(pieces: &[(u64, &[u8])]) -> Option<Found> {
    ZFS_RING.step_by(ZFS_SLOT).find_map(|offset| {
        let magic = bytes_at(pieces, offset, 8)?;
        (magic == ZFS_MAGIC || magic.iter().rev().eq(&ZFS_MAGIC)).then_some(Found {
            name: Some("a member of a ZFS pool"),
            offset,
        })
    })
}

fn find_data(pieces: &[(u64, &[u8])]) -> Option<Found> {
    pieces.iter().find_map(|&(start, bytes)| {
        let index = bytes.iter().position(|&byte| byte != 0)?;
        Some(Found {
            name: None,
            offset: start + index as u64,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{KNOWN, ZFS_MAGIC, look};

    const SIZE: u64 = 64 << 20;
    const LOOK: usize = 1 << 20;

    /// What is found on a disk that holds `magic` at `offset` and nothing else.
    fn found(offset: u64, magic: &[u8]) -> Option<(Option<&'static str>, u64)> {
        let tail_start = SIZE - LOOK as u64;
        let (mut head, mut tail) = (vec![0; LOOK], vec![0; LOOK]);
        let (piece, from) = if offset < LOOK as u64 {
            (&mut head, offset as usize)
        } else {
            (&mut tail, (offset - tail_start) as usize)
        };
        piece[from..from + magic.len()].copy_from_slice(magic);
        look(&[(0, &head), (tail_start, &tail)], SIZE).map(|found| (found.name, found.offset))
    }

    #[test]
    fn every_known_mark_is_named() {
        for signature in KNOWN {
            let offset = signature.place.resolve(SIZE).expect("fits");
            assert_eq!(
                found(offset, signature.magic),
                Some((Some(signature.name), offset))
            );
        }
        assert_eq!(
            found(200 << 10, &ZFS_MAGIC),
            Some((Some("a member of a ZFS pool"), 200 << 10))
        );
    }

    #[test]
    fn unknown_bytes_count_and_zeroes_do_not() {
        assert_eq!(found(777, &[1]), Some((None, 777)));
        assert_eq!(found(SIZE - 1, &[1]), Some((None, SIZE - 1)));
        assert_eq!(found(0, &[0]), None);
    }
}
