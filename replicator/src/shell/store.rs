//! Making stores, and refusing to make one of what is used already.
//!
//! Decides when a file or device may be taken: a file must be new or empty; a device must be free
//! (its locks are held from then on) and must show nothing in its first and last mebibyte. What is
//! found is named, with its place. All of it blocks; it is for `init`, `pair` and their like.
//!
//! How a new store lies on its file system:
//!
//! - A backing file is sparse, or allocated without being written. A write to either is volatile until
//!   a flush even when the disk under it has no cache, which is what the core assumes of every write.
//! - A metadata area is allocated whole, so that a full file system can't stop it later. Its hot parts
//!   (superblock, activity log) are written besides, because a synchronous write into a range that was
//!   only allocated has to change the file system too and takes almost twice as long; the bitmap pages
//!   are many and written seldom, and are only allocated.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::buffers::{Pool, PoolConfig};
use super::fence::{FenceError, StoreFile};
use super::probe::StoreKind;
use super::signature::{self, Found};
use super::storage::Area;

/// Bytes looked at from either end of a device.
pub const LOOK: u64 = 1 << 20;

/// Bytes zeroed at once.
const STEP: usize = 1 << 20;

/// Why a store was not made.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is a file with something in it.
    #[error("{path}: there is a file of {len} bytes already, and it is not overwritten")]
    FileNotEmpty {
        /// The path as given.
        path: PathBuf,
        /// Bytes in the file.
        len: u64,
    },
    /// The device looks used.
    #[error("{path}: looks used: {found}; nothing was changed")]
    LooksUsed {
        /// The path as given.
        path: PathBuf,
        /// What was found, and where.
        found: Found,
    },
    /// The file system is too full.
    #[error("{path}: no room for {wanted} bytes: its file system has {free} free")]
    NoSpace {
        /// The path as given.
        path: PathBuf,
        /// Bytes wanted.
        wanted: u64,
        /// Bytes free to this user.
        free: u64,
    },
    /// The file system has no files of that size.
    #[error("{path}: its file system has no files of {wanted} bytes (ext4 stops below 16 TiB)")]
    FileTooLarge {
        /// The path as given.
        path: PathBuf,
        /// Bytes wanted.
        wanted: u64,
    },
    /// The device, or the area named in it, is too small.
    #[error("{path}: has {have} usable bytes, and {wanted} are needed")]
    TooSmall {
        /// The path as given.
        path: PathBuf,
        /// Bytes there are, in whole blocks.
        have: u64,
        /// Bytes needed.
        wanted: u64,
    },
    /// It can't be opened, or is in use.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// Any other failure.
    #[error("{path}: {doing}: {error}")]
    Io {
        /// The path as given.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
}

impl StoreError {
    /// What a person can do about it.
    pub fn next(&self) -> &'static str {
        match self {
            Self::FileNotEmpty { .. } => {
                "name another file, or remove this one first if nobody needs it"
            }
            Self::LooksUsed { .. } => {
                "`--keep-data` makes a mirror of a disk as it is; if nobody needs what is there, clear it (`wipefs --all`, and zero its first and last MiB); or name another device"
            }
            Self::NoSpace { .. } => "make room there, or name another place",
            Self::FileTooLarge { .. } => "use xfs, or a block device",
            Self::TooSmall { .. } => "enlarge it, or name another",
            Self::Fence(FenceError::Missing { .. }) => "check the name",
            Self::Fence(_) => "end that use, or name another store",
            Self::Io { .. } => "put that right, and try again",
        }
    }
}

/// A store made or taken.
#[derive(Debug)]
pub struct NewStore {
    /// Open and locked.
    pub file: StoreFile,
    /// Whether every byte is known to read as zero, so that a first full copy can be skipped where
    /// the peer's is known to, too.
    pub zeroed: bool,
}

/// Makes a file of `size` bytes (a multiple of 512) to hold a mirror's data; `sparse` leaves its
/// space to be allocated by the writes. A file that exists must be empty.
///
/// # Errors
///
/// [`StoreError`]; a file that this call made is removed again.
pub fn create_backing_file(path: &Path, size: u64, sparse: bool) -> Result<NewStore, StoreError> {
    let file = create_file(path, size, sparse)?;
    Ok(NewStore { file, zeroed: true })
}

/// Opens and locks a device (or file) that is to become a store, after a look at what is on it. A
/// device that is mounted or held by another is refused, as is one with anything in its first or last
/// mebibyte. Nothing is changed.
///
/// # Errors
///
/// [`StoreError`], which names what was found.
pub fn claim_unused(path: &Path) -> Result<StoreFile, StoreError> {
    let file = StoreFile::open(path, Duration::ZERO)?;
    check_unused(&file)?;
    Ok(file)
}

/// Looks for signs of use in the first and last mebibyte of an open store.
///
/// # Errors
///
/// [`StoreError::LooksUsed`], or a disk's error.
pub fn check_unused(store: &StoreFile) -> Result<(), StoreError> {
    let failed = |error| StoreError::Io {
        path: store.path().to_owned(),
        doing: "looking at what is on it",
        error,
    };
    let pool = working_pool().map_err(failed)?;
    let size = store.capabilities().size;
    // The odd tail of a store is never used, so what lies there is left alone.
    let usable = store.capabilities().usable_from(0);
    let head_len = LOOK.min(usable) as usize;
    let tail_start = usable.saturating_sub(LOOK).max(head_len as u64);
    let head = store.read(&pool, 0, head_len).map_err(failed)?;
    let tail = store
        .read(&pool, tail_start, (usable - tail_start) as usize)
        .map_err(failed)?;
    let pieces = [(0, &head[..]), (tail_start, &tail[..])];
    match signature::look(&pieces, size) {
        None => Ok(()),
        Some(found) => Err(StoreError::LooksUsed {
            path: store.path().to_owned(),
            found,
        }),
    }
}

/// Makes a metadata store of `size` bytes (a multiple of 4096) at `path`: a new file, or a device that
/// shows no use. It is allocated whole and reads as zeroes; the ranges `written` (bytes, multiples of
/// 4096: superblocks and activity log) are written extents.
///
/// # Errors
///
/// [`StoreError`]; a file that this call made is removed again.
pub fn create_metadata_store(
    path: &Path,
    size: u64,
    written: &[Range<u64>],
) -> Result<StoreFile, StoreError> {
    let is_device = std::fs::metadata(path).is_ok_and(|metadata| {
        std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type())
    });
    let is_ours = !is_device && !path.exists();
    let file = if is_device {
        claim_unused(path)?
    } else {
        create_file(path, size, false)?
    };
    let area = Area {
        start: 0,
        len: size,
    };
    let prepared = prepare_metadata(&file, area, written);
    if prepared.is_err() && is_ours {
        remove(path);
    }
    prepared.map(|()| file)
}

/// Makes an area of an open store ready to hold metadata, as [`create_metadata_store`] says: for
/// metadata in the tail of a backing store. What the area held is gone. `written` counts from the
/// area's start.
///
/// # Errors
///
/// [`StoreError`]: too small, full, or a disk's error.
pub fn prepare_metadata(
    store: &StoreFile,
    area: Area,
    written: &[Range<u64>],
) -> Result<(), StoreError> {
    let failed = |error| StoreError::Io {
        path: store.path().to_owned(),
        doing: "allocating and zeroing the metadata",
        error,
    };
    let have = store.capabilities().usable_from(area.start);
    if area.len > have {
        return Err(StoreError::TooSmall {
            path: store.path().to_owned(),
            have,
            wanted: area.len,
        });
    }
    let pool = working_pool().map_err(failed)?;
    let zeroed = loop {
        // On a file this leaves the range allocated; a device writes or unmaps.
        match rustix::fs::fallocate(
            store.file(),
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            area.start,
            area.len,
        ) {
            Ok(()) => break true,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => break false,
            Err(error) => return Err(no_space(store.path(), area.len, error)),
        }
    };
    if !zeroed {
        write_zeroes(store, &pool, area.start, area.len).map_err(failed)?;
    } else if store.capabilities().kind == StoreKind::File {
        for range in written {
            assert!(
                range.start <= range.end && range.end <= area.len,
                "{range:?} lies outside the metadata"
            );
            let len = range.end - range.start;
            write_zeroes(store, &pool, area.start + range.start, len).map_err(failed)?;
        }
    }
    store.file().sync_all().map_err(failed)
}

fn write_zeroes(store: &StoreFile, pool: &Pool, start: u64, len: u64) -> io::Result<()> {
    let zeroes = vec![0; STEP];
    let mut at = 0;
    while at < len {
        let count = (STEP as u64).min(len - at);
        store.write_durably(pool, start + at, &zeroes[..count as usize])?;
        at += count;
    }
    Ok(())
}

/// Memory for the blocking work here; small, and gone with it.
fn working_pool() -> io::Result<Pool> {
    Pool::new(&PoolConfig {
        bytes: 2 * STEP,
        reserve: 0,
        lock: false,
    })
}

fn create_file(path: &Path, size: u64, sparse: bool) -> Result<StoreFile, StoreError> {
    assert!(
        size > 0 && size.is_multiple_of(512),
        "a store of {size} bytes"
    );
    let failed = |doing| {
        move |error| StoreError::Io {
            path: path.to_owned(),
            doing,
            error,
        }
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let (file, is_ours) = match options.clone().create_new(true).open(path) {
        Ok(file) => (file, true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Not through `open` below: a FIFO would block it.
            let metadata = std::fs::metadata(path).map_err(failed("looking at it"))?;
            if !metadata.is_file() || metadata.len() > 0 {
                return Err(StoreError::FileNotEmpty {
                    path: path.to_owned(),
                    len: metadata.len(),
                });
            }
            (options.open(path).map_err(failed("opening it"))?, false)
        }
        Err(error) => return Err(failed("making the file")(error)),
    };
    let made = allocate(&file, path, size, sparse)
        .and_then(|()| file.sync_all().map_err(failed("making it durable")))
        .and_then(|()| sync_folder(path).map_err(failed("making its name durable")));
    drop(file);
    let opened =
        made.and_then(|()| StoreFile::open(path, Duration::ZERO).map_err(StoreError::Fence));
    if opened.is_err() && is_ours {
        remove(path);
    }
    opened
}

fn allocate(file: &File, path: &Path, size: u64, sparse: bool) -> Result<(), StoreError> {
    let refused = |error: io::Error| match error.raw_os_error() {
        Some(code) => no_space(path, size, Errno::from_raw_os_error(code)),
        None => no_space(path, size, Errno::IO),
    };
    if !sparse {
        loop {
            match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(refused(error.into())),
            }
        }
    }
    file.set_len(size).map_err(refused)
}

/// Names a failed allocation.
fn no_space(path: &Path, wanted: u64, error: Errno) -> StoreError {
    let path = path.to_owned();
    match error {
        Errno::NOSPC | Errno::DQUOT => {
            let free = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .map_or_else(|| rustix::fs::statvfs("."), rustix::fs::statvfs)
                .map_or(0, |stat| stat.f_bavail * stat.f_frsize);
            StoreError::NoSpace { path, wanted, free }
        }
        Errno::FBIG => StoreError::FileTooLarge { path, wanted },
        error => StoreError::Io {
            path,
            doing: "allocating its space",
            error: error.into(),
        },
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

/// Takes back a file of our own after a failure; that failure is the one to report.
fn remove(path: &Path) {
    let _already_gone = std::fs::remove_file(path);
}
