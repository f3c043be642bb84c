//! One opener for each store: the locks that keep a second daemon out.
//!
//! Decides who may open a store: on a block device `O_EXCL` (which also keeps out mounts, device
//! mapper and md), and on every store `flock`, both taken on the very open file that does the I/O. A
//! killed daemon's writes may still be on their way to the disk when its process is gone; the locks
//! of that open file last until they have landed, so a pid file would fence nothing.
//!
//! Keeps the open file in a [`StoreFile`]; it moves to the data-plane thread that does the I/O.
//! Everything here blocks, and is meant for start-up or a thread that may block.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::buffers::{PAGE, Pool, Share};
use super::probe::{Capabilities, ProbeError, probe};

/// How often a held store is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(20);

/// Bytes for each step of a blocking read.
const READ_STEP: usize = 1 << 20;

/// A store opened for direct I/O and locked; dropping the last handle unlocks it.
#[derive(Debug)]
pub struct StoreFile {
    file: File,
    path: PathBuf,
    capabilities: Capabilities,
}

/// Who holds a store, as far as it can be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A running process.
    Process {
        /// Its process id.
        pid: u32,
        /// Its command name.
        command: String,
    },
    /// A process that is gone while its last writes are still on their way.
    Gone {
        /// Its process id.
        pid: u32,
    },
    /// A mounted file system.
    Mount {
        /// Where it is mounted.
        at: String,
    },
    /// Another block device built on this one (LVM, md, dm-crypt).
    Device {
        /// Its kernel name.
        name: String,
    },
    /// Swap space.
    Swap,
    /// Not to be found out, e.g. a process of another container.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, command } => write!(
                formatter,
                "{command} (process {pid}) has it open; stop that one, or name another store"
            ),
            Self::Gone { pid } => write!(
                formatter,
                "process {pid} is gone, but its last writes are still on their way to the disk; \
                 try again, and look at the disk if this lasts"
            ),
            Self::Mount { at } => write!(
                formatter,
                "it is mounted on {at}; unmount it, or name another store"
            ),
            Self::Device { name } => write!(
                formatter,
                "the device {name} is built on it; take that down, or name another store"
            ),
            Self::Swap => write!(
                formatter,
                "it is swap space; `swapoff` it, or name another store"
            ),
            Self::Unknown => write!(
                formatter,
                "the holder can't be seen from here (another container, or a kernel user); \
                 find it with `lsof` or `lsblk` on the host"
            ),
        }
    }
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Somebody else has it.
    #[error("{path}: in use (waited {} s): {holder}", waited.as_secs())]
    Held {
        /// The path as given.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
        /// How long it was tried.
        waited: Duration,
    },
    /// The file system has no direct I/O.
    #[error(
        "{path}: its file system has no direct I/O (O_DIRECT), which every store needs; \
         use a file on ext4, xfs or btrfs, or a block device"
    )]
    NoDirectIo {
        /// The path as given.
        path: PathBuf,
    },
    /// It can be read at most.
    #[error("{path}: cannot be written ({error}); a store needs reading and writing")]
    ReadOnly {
        /// The path as given.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// There is nothing of that name.
    #[error(
        "{path}: there is no such file or device; if it was moved, its new place belongs into the configuration"
    )]
    Missing {
        /// The path as given.
        path: PathBuf,
    },
    /// It can't be a store.
    #[error(transparent)]
    Unsuitable(#[from] ProbeError),
    /// Any other failure.
    #[error("{path}: cannot be opened: {error}")]
    Io {
        /// The path as given.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
}

impl FenceError {
    /// Somebody else has it: who asks again later may get it.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }
}

impl StoreFile {
    /// Opens the store at `path` for direct I/O, locks it and finds out what it can do. A store that
    /// is held is tried again for up to `wait`: a killed daemon's writes may still be landing.
    ///
    /// # Errors
    ///
    /// [`FenceError`], which names the holder where it can be known.
    pub fn open(path: &Path, wait: Duration) -> Result<Self, FenceError> {
        let began = Instant::now();
        let mut told = false;
        let file = loop {
            match try_open(path)? {
                Attempt::Ours(file) => break file,
                Attempt::Held(holder) if began.elapsed() >= wait => {
                    return Err(FenceError::Held {
                        path: path.to_owned(),
                        holder,
                        waited: began.elapsed(),
                    });
                }
                Attempt::Held(holder) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            "{}: in use: {holder}; tried again for {} s",
                            path.display(),
                            wait.as_secs()
                        );
                    }
                    std::thread::sleep(RETRY_EVERY.min(wait.saturating_sub(began.elapsed())));
                }
            }
        };
        let capabilities = probe(&file, path)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            capabilities,
        })
    }

    /// What the store can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Makes durable writes of a write and a flush, though the store has honest synchronous ones.
    /// These complete on the processor that took the interrupt, and wait there while it is busy; a
    /// flush goes to any idle one.
    #[cfg(test)]
    pub(in crate::shell) fn avoid_dsync(&mut self) {
        self.capabilities.dsync = false;
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, which holds the locks.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives up the open file (its locks go with it) and what it can do.
    pub fn into_parts(self) -> (File, Capabilities) {
        (self.file, self.capabilities)
    }

    /// Reads `len` bytes at `offset`, both multiples of 4096, in steps, and shows each step to
    /// `visit` with its offset. Blocks.
    ///
    /// # Errors
    ///
    /// The disk's error, or `UnexpectedEof` for a store that is shorter. `OutOfMemory` if the pool
    /// can't spare a page.
    pub fn read_steps(
        &self,
        pool: &Pool,
        offset: u64,
        len: u64,
        visit: &mut dyn FnMut(u64, &[u8]),
    ) -> io::Result<()> {
        assert!(
            offset.is_multiple_of(PAGE as u64) && len.is_multiple_of(PAGE as u64),
            "a read of {len} bytes at {offset} is not in whole blocks"
        );
        let mut step = READ_STEP;
        let mut buffer = loop {
            match pool.alloc(step, Share::Bounce) {
                Some(buffer) => break buffer,
                None if step > PAGE => step /= 2,
                None => return Err(io::ErrorKind::OutOfMemory.into()),
            }
        };
        let mut at = offset;
        while at < offset + len {
            let count = step.min((offset + len - at) as usize);
            let part = &mut buffer[..count];
            self.file.read_exact_at(part, at)?;
            visit(at, part);
            at += count as u64;
        }
        Ok(())
    }

    /// Reads `len` bytes at `offset`, both multiples of 4096, as one piece. Blocks.
    ///
    /// # Errors
    ///
    /// As [`StoreFile::read_steps`].
    pub fn read(&self, pool: &Pool, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut bytes = Vec::with_capacity(len);
        self.read_steps(pool, offset, len as u64, &mut |_, part| {
            bytes.extend_from_slice(part);
        })?;
        Ok(bytes.into())
    }

    /// Writes `data` at `offset`, both in multiples of 4096, and makes it durable. Blocks; for
    /// creating a store, before anything is served from it.
    ///
    /// # Errors
    ///
    /// The disk's error. `OutOfMemory` if the pool can't spare a page.
    pub fn write_durably(&self, pool: &Pool, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(
            offset.is_multiple_of(PAGE as u64) && data.len().is_multiple_of(PAGE),
            "a write of {} bytes at {offset} is not in whole blocks",
            data.len()
        );
        let mut step = READ_STEP.min(data.len().max(PAGE));
        let mut buffer = loop {
            match pool.alloc(step, Share::Bounce) {
                Some(buffer) => break buffer,
                None if step > PAGE => step = (step / 2).next_multiple_of(PAGE),
                None => return Err(io::ErrorKind::OutOfMemory.into()),
            }
        };
        let mut at = offset;
        for part in data.chunks(step) {
            let copy = &mut buffer[..part.len()];
            copy.copy_from_slice(part);
            self.file.write_all_at(copy, at)?;
            at += part.len() as u64;
        }
        self.file.sync_all()
    }
}

enum Attempt {
    Ours(File),
    Held(Holder),
}

fn try_open(path: &Path) -> Result<Attempt, FenceError> {
    let failed = |error: io::Error| FenceError::Io {
        path: path.to_owned(),
        error,
    };
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => FenceError::Missing {
            path: path.to_owned(),
        },
        _ => failed(error),
    })?;
    let is_device = metadata.file_type().is_block_device();
    if !is_device && !metadata.file_type().is_file() {
        // Opening a FIFO could block, and opening a terminal could do worse.
        return Err(ProbeError::NotAStore {
            path: path.to_owned(),
        }
        .into());
    }
    let exclusive = if is_device { libc::O_EXCL } else { 0 };
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | exclusive)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) => {
            return match error.raw_os_error() {
                Some(libc::EBUSY) if is_device => {
                    // Another daemon holds the lock of the same node besides.
                    Ok(Attempt::Held(match device_holder(metadata.rdev()) {
                        Holder::Unknown => lock_holder(&metadata),
                        known => known,
                    }))
                }
                Some(libc::EINVAL) => Err(FenceError::NoDirectIo {
                    path: path.to_owned(),
                }),
                Some(libc::EROFS | libc::EACCES | libc::EPERM) => Err(FenceError::ReadOnly {
                    path: path.to_owned(),
                    error,
                }),
                _ => Err(failed(error)),
            };
        }
    };
    let opened = file.metadata().map_err(failed)?;
    if opened.file_type().is_block_device() != is_device {
        return Err(failed(io::Error::other(
            "it was replaced while it was opened",
        )));
    }
    // The kernel opens a read-only device for writing all the same, and refuses each write.
    if is_device && is_read_only(opened.rdev()) {
        return Err(FenceError::ReadOnly {
            path: path.to_owned(),
            error: Errno::ROFS.into(),
        });
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Attempt::Ours(file)),
        Err(Errno::WOULDBLOCK) => Ok(Attempt::Held(lock_holder(&opened))),
        Err(error) => Err(failed(error.into())),
    }
}

fn is_read_only(device: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro"))
        .is_ok_and(|text| text.trim() == "1")
}

/// Who has a device open exclusively.
fn device_holder(device: u64) -> Holder {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    if let Some(at) = mount_point(major, minor) {
        return Holder::Mount { at };
    }
    let folder = format!("/sys/dev/block/{major}:{minor}/holders");
    if let Ok(mut entries) = std::fs::read_dir(folder)
        && let Some(Ok(entry)) = entries.next()
    {
        return Holder::Device {
            name: entry.file_name().to_string_lossy().into_owned(),
        };
    }
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let is_swap = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .any(|path| std::fs::metadata(path).is_ok_and(|metadata| metadata.rdev() == device));
    if is_swap {
        return Holder::Swap;
    }
    Holder::Unknown
}

/// Where a device is mounted, by the kernel's table.
fn mount_point(major: u32, minor: u32) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let wanted = format!("{major}:{minor}");
    table.lines().find_map(|line| {
        // 36 35 98:0 /root /mount/point options …
        let mut fields = line.split(' ').skip(2);
        (fields.next() == Some(&wanted))
            .then(|| fields.nth(1).map(str::to_owned))
            .flatten()
    })
}

/// Who holds the `flock` on a file, by `/proc/locks`.
fn lock_holder(metadata: &std::fs::Metadata) -> Holder {
    let table = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let device = metadata.dev();
    let wanted = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device),
        metadata.ino()
    );
    let Some(pid) = find_lock(&table, &wanted) else {
        return Holder::Unknown;
    };
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(command) => Holder::Process {
            pid,
            command: command.trim().to_owned(),
        },
        Err(_) => Holder::Gone { pid },
    }
}

/// The process that holds the `flock` on `inode` (`major:minor:inode` as the table has it).
fn find_lock(table: &str, inode: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF; `->` after the number: it only waits.
        let mut fields = line.split_whitespace().skip(1);
        (fields.next() == Some("FLOCK")).then_some(())?;
        let pid = fields.nth(2)?;
        (fields.next() == Some(inode)).then_some(())?;
        // A process of another pid namespace shows as 0 or less.
        pid.parse().ok().filter(|&pid| pid > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::find_lock;

    #[test]
    fn the_lock_table_names_the_holder() {
        let table = "1: POSIX  ADVISORY  WRITE 7 fe:00:99 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 1234 fe:00:99 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 1300 fe:00:99 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 0 fe:00:100 0 EOF\n";
        assert_eq!(find_lock(table, "fe:00:99"), Some(1234));
        assert_eq!(find_lock(table, "fe:00:100"), None);
        assert_eq!(find_lock(table, "fe:00:101"), None);
    }
}
