//! What a store can do, found out before anything is served from it.
//!
//! Decides whether a file or device may be a store at all: direct I/O must be real and in blocks of
//! at most 4096 bytes. Keeps nothing. What the store holds is [`super::store`]'s matter, who else has
//! it open [`super::fence`]'s.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use rustix::io::Errno;

use super::buffers::PAGE;

/// The two kinds of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

/// What a store can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// File or block device.
    pub kind: StoreKind,
    /// Bytes in the store. What lies beyond the last multiple of 4096 is never used.
    pub size: u64,
    /// The smallest unit of direct I/O, in bytes: 512 or 4096.
    pub logical_block: u32,
    /// The unit that the device writes without a read, in bytes (a file reports its file system's).
    pub physical_block: u32,
    /// Alignment in bytes that memory needs for direct I/O; other memory is copied first.
    pub memory_align: usize,
    /// Whether a synchronous write (`RWF_DSYNC`) is durable when it completes. True for the kernel's
    /// own disk file systems and block devices; others get a write and a flush.
    pub dsync: bool,
    /// Whether unmapped ranges read as zeroes and space is really given back.
    pub unmap_zeroes: bool,
    /// Whether the disk turns; unknown for file systems without a device of their own.
    pub rotational: Option<bool>,
}

impl Capabilities {
    /// Bytes that can hold whole 4 KiB blocks when the data begins at `start`: the odd tail of a
    /// store whose size is no multiple of 4096 is not exposed.
    pub fn usable_from(&self, start: u64) -> u64 {
        self.size.saturating_sub(start) / PAGE as u64 * PAGE as u64
    }
}

/// Why a file or device can't be a store.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A directory, a character device, a socket.
    #[error("{path}: not a regular file or block device; name one of these as the store")]
    NotAStore {
        /// The path as given.
        path: PathBuf,
    },
    /// The file system serves direct I/O through the page cache without saying so.
    #[error(
        "{path}: the file system does direct I/O through its cache for this file (ext4 does with \
         data=journal, inline data, encryption or verity), so no flush could be trusted; \
         use a file without these, or a block device"
    )]
    SilentlyBuffered {
        /// The path as given.
        path: PathBuf,
    },
    /// Blocks of the store are larger than 4096 bytes.
    #[error(
        "{path}: direct I/O needs blocks of {block} bytes here, and a store may need at most 4096"
    )]
    BlockTooLarge {
        /// The path as given.
        path: PathBuf,
        /// The store's unit in bytes.
        block: u32,
    },
    /// Asking the kernel failed.
    #[error("{path}: cannot be examined: {error}")]
    Io {
        /// The path as given.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
}

/// Finds out what `file` (opened with `O_DIRECT`, for reading and writing) can do. Changes nothing
/// in it. `path` is for error messages.
///
/// # Errors
///
/// [`ProbeError`], if it can't be a store.
pub fn probe(mut file: &File, path: &Path) -> Result<Capabilities, ProbeError> {
    let failed = |error: io::Error| ProbeError::Io {
        path: path.to_owned(),
        error,
    };
    let file_type = file.metadata().map_err(failed)?.file_type();
    let kind = if file_type.is_file() {
        StoreKind::File
    } else if file_type.is_block_device() {
        StoreKind::BlockDevice
    } else {
        return Err(ProbeError::NotAStore {
            path: path.to_owned(),
        });
    };
    // A device's inode has no size of its own; its end has.
    let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let stat = rustix::fs::statx(
        file,
        "",
        AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN,
    )
    .map_err(|error| failed(error.into()))?;

    // Not every file system answers (tmpfs, older kernels); then the alignment is the block's.
    let told = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    if told && stat.stx_dio_offset_align == 0 {
        return Err(ProbeError::SilentlyBuffered {
            path: path.to_owned(),
        });
    }
    let (logical_block, physical_block) = match kind {
        StoreKind::BlockDevice => {
            let logical =
                rustix::fs::ioctl_blksszget(file).map_err(|error| failed(error.into()))?;
            let physical =
                rustix::fs::ioctl_blkpbszget(file).map_err(|error| failed(error.into()))?;
            (logical, physical)
        }
        StoreKind::File if told => (stat.stx_dio_offset_align, stat.stx_blksize),
        StoreKind::File => (PAGE as u32, stat.stx_blksize),
    };
    if logical_block as usize > PAGE {
        return Err(ProbeError::BlockTooLarge {
            path: path.to_owned(),
            block: logical_block,
        });
    }
    let memory_align = if told {
        stat.stx_dio_mem_align.max(1)
    } else {
        logical_block
    };
    let (major, minor) = match kind {
        StoreKind::BlockDevice => (stat.stx_rdev_major, stat.stx_rdev_minor),
        StoreKind::File => (stat.stx_dev_major, stat.stx_dev_minor),
    };
    let unmap_zeroes = match kind {
        StoreKind::File => punches_holes(file, size),
        StoreKind::BlockDevice => {
            // Both limits: what it can zero at all, and whether it can deallocate on the way.
            queue_number(major, minor, "write_zeroes_max_bytes").is_some_and(|max| max > 0)
                && queue_number(major, minor, "discard_max_bytes").is_some_and(|max| max > 0)
        }
    };
    Ok(Capabilities {
        kind,
        size,
        logical_block,
        physical_block,
        memory_align: memory_align as usize,
        dsync: kind == StoreKind::BlockDevice || is_disk_file_system(file),
        unmap_zeroes,
        rotational: queue_number(major, minor, "rotational").map(|number| number != 0),
    })
}

/// Whether the file system punches holes: asked beyond the end of the file, where there is nothing
/// to lose.
fn punches_holes(file: &File, size: u64) -> bool {
    let beyond = size.div_ceil(PAGE as u64) * PAGE as u64;
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    loop {
        match rustix::fs::fallocate(file, mode, beyond, PAGE as u64) {
            Err(Errno::INTR) => {}
            result => return result.is_ok(),
        }
    }
}

/// Whether the file system is one of those whose `O_DSYNC` handling is the kernel's common code over
/// a block device (or memory, which has nothing to lose).
fn is_disk_file_system(file: &File) -> bool {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const F2FS: u64 = 0xf2f5_2010;
    const TMPFS: u64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|stat| {
        matches!(
            u64::from_ne_bytes(stat.f_type.to_ne_bytes()),
            EXT | XFS | BTRFS | F2FS | TMPFS
        )
    })
}

/// A number from the request queue's folder in sysfs. A partition has its disk's.
fn queue_number(major: u32, minor: u32, name: &str) -> Option<u64> {
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let text = std::fs::read_to_string(device.join("queue").join(name))
        .or_else(|_| std::fs::read_to_string(device.join("../queue").join(name)))
        .ok()?;
    text.trim().parse().ok()
}
