//! Does a store look used? Creation refuses to overwrite what does.
//!
//! Decides by well-known signatures, and by anything that is not zero; which stores are looked
//! at, and whether a person overrides the refusal, is the command's.

use std::fmt;

use crate::sector::Kind;

/// How much of a store's start [`looks_used`] wants to see, bytes (Btrfs signs at 64 KiB).
pub const HEAD_BYTES: usize = 128 << 10;
/// How much of its end (GPT's second table, DRBD's and kagami's internal metadata).
pub const TAIL_BYTES: usize = 64 << 10;

/// What a store seems to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// Metadata of kagami's.
    Kagami,
    /// Something with a well-known signature, by its common name.
    Known(&'static str),
    /// Bytes that are not zero, at this offset from the start of the head or of the tail.
    NotZero {
        /// Bytes from there.
        offset: usize,
        /// In the tail, not in the head.
        in_tail: bool,
    },
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Used::Kagami => write!(f, "it holds metadata of a kagami mirror"),
            Used::Known(what) => write!(f, "it looks like {what}"),
            Used::NotZero { offset, in_tail } => {
                let end = if *in_tail { " of its last part" } else { "" };
                write!(f, "it is not blank: byte {offset}{end} is not zero")
            }
        }
    }
}

/// Name, offset from the start, bytes there.
const SIGNATURES: &[(&str, usize, &[u8])] = &[
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an XFS file system", 0, b"XFSB"),
    ("a qcow2 image", 0, b"QFI\xfb"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("a disk with a GPT partition table", 512, b"EFI PART"),
    ("a disk with a GPT partition table", 4096, b"EFI PART"),
    ("an ext2, ext3 or ext4 file system", 1080, b"\x53\xef"),
    ("a Btrfs file system", 0x1_0040, b"_BHRfS_M"),
    ("an F2FS file system", 1024, b"\x10\x20\xf5\xf2"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("a member of an md array", 0, b"\xfc\x4e\x2b\xa9"),
    ("a member of an md array", 4096, b"\xfc\x4e\x2b\xa9"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("a FAT file system", 82, b"FAT32   "),
    ("a FAT file system", 54, b"FAT16   "),
    ("a bcache device", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    (
        "a disk with a partition table or boot sector",
        510,
        b"\x55\xaa",
    ),
];

/// Looks at a store's first bytes ([`HEAD_BYTES`] if it has them) and last ones
/// ([`TAIL_BYTES`], empty if the tail will not be used). None: blank as far as seen.
pub fn looks_used(head: &[u8], tail: &[u8]) -> Option<Used> {
    if holds_kagami(head) || holds_kagami(tail) {
        return Some(Used::Kagami);
    }
    let known = SIGNATURES
        .iter()
        .find(|(_, at, bytes)| head.get(*at..*at + bytes.len()) == Some(*bytes));
    if let Some((name, ..)) = known {
        return Some(Used::Known(name));
    }
    if tail.len() >= 512 && tail[tail.len() - 512..].starts_with(b"EFI PART") {
        return Some(Used::Known("a disk with a GPT partition table"));
    }
    // DRBD 8.4 and 9: magic 0x8374026b to ..6d, big-endian, near the end of the device.
    let drbd =
        |bytes: &[u8]| bytes.starts_with(b"\x83\x74\x02") && (0x6a..=0x6f).contains(&bytes[3]);
    if tail
        .chunks_exact(512)
        .any(|sector| drbd(sector) || drbd(&sector[60..]))
    {
        return Some(Used::Known("a DRBD backing device"));
    }
    let first = |bytes: &[u8]| bytes.iter().position(|&byte| byte != 0);
    let at = |in_tail| move |offset| Used::NotZero { offset, in_tail };
    first(head)
        .map(at(false))
        .or_else(|| first(tail).map(at(true)))
}

fn holds_kagami(bytes: &[u8]) -> bool {
    let kinds = [Kind::Superblock, Kind::Log, Kind::Directory, Kind::Page];
    bytes
        .chunks_exact(512)
        .any(|sector| kinds.iter().any(|kind| sector.starts_with(kind.magic())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_stores_are_free() {
        assert_eq!(looks_used(&vec![0; HEAD_BYTES], &vec![0; TAIL_BYTES]), None);
        assert_eq!(looks_used(&[], &[]), None);
    }

    #[test]
    fn every_signature_is_seen() {
        for (name, at, bytes) in SIGNATURES {
            let mut head = vec![0; HEAD_BYTES];
            head[*at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(looks_used(&head, &[]), Some(Used::Known(name)));
            assert_eq!(
                looks_used(&head[..*at], &[]),
                None,
                "a short store is no panic"
            );
        }
    }

    #[test]
    fn anything_else_is_seen_too() {
        let mut bytes = vec![0; 4096];
        bytes[77] = 1;
        let used = looks_used(&bytes, &[]).unwrap();
        assert_eq!(used.to_string(), "it is not blank: byte 77 is not zero");
        let used = looks_used(&[], &bytes).unwrap();
        assert!(matches!(used, Used::NotZero { in_tail: true, .. }));
        bytes[2048..2056].copy_from_slice(b"kagamiSB");
        assert_eq!(looks_used(&[], &bytes), Some(Used::Kagami));
        bytes[2048..2056].copy_from_slice(b"\x83\x74\x02\x6d\0\0\0\0");
        let drbd = looks_used(&[], &bytes).unwrap();
        assert_eq!(drbd, Used::Known("a DRBD backing device"));
    }

    #[test]
    fn a_partition_table_is_seen_in_the_last_sector() {
        let mut tail = vec![0; TAIL_BYTES];
        let last = TAIL_BYTES - 512;
        tail[last..last + 8].copy_from_slice(b"EFI PART");
        let used = looks_used(&[], &tail).unwrap();
        assert_eq!(used, Used::Known("a disk with a GPT partition table"));
    }

    #[test]
    fn neither_half_of_drbds_magic_alone_is_drbd() {
        for bytes in [b"\x83\x74\x02\x01", b"\x01\x74\x02\x6b"] {
            let mut tail = vec![0; TAIL_BYTES];
            tail[1024..1028].copy_from_slice(bytes);
            let used = looks_used(&[], &tail).unwrap();
            assert!(matches!(used, Used::NotZero { offset: 1024, .. }));
        }
    }
}
