//! What the core asks of a disk, and what a disk answers.
//!
//! The shell's disks carry these out; the simulator's disks do the same with faults.

use bytes::Bytes;

/// One operation on the backing store. Offsets and lengths are bytes, multiples of 4096.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Reads `len` bytes at `offset`.
    Read {
        /// Bytes from the start of the data area.
        offset: u64,
        /// Bytes to read.
        len: u32,
    },
    /// Writes `data` at `offset`; with `fua` it is on stable storage when it completes.
    Write {
        /// Bytes from the start of the data area.
        offset: u64,
        /// The payload, whole blocks. Unaligned memory is allowed and costs a copy.
        data: Bytes,
        /// Force unit access: durable at completion.
        fua: bool,
    },
    /// Makes the range read as zeroes, always; `unmap` allows (not demands) to give space back.
    Zero {
        /// Bytes from the start of the data area.
        offset: u64,
        /// Bytes to zero.
        len: u64,
        /// The store may deallocate.
        unmap: bool,
        /// Durable at completion.
        fua: bool,
    },
    /// Puts every write that completed before its submission on stable storage.
    Flush,
}

/// Why a disk operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskFault {
    /// The store is full (a sparse file on a full file system, a thin volume).
    #[error("no space left on the store")]
    NoSpace,
    /// Any other failure, with the kernel's error number.
    #[error("input/output error (errno {0})")]
    Io(i32),
}

/// What a completed operation gives: the bytes of a read, empty for all others.
pub type DiskResult = Result<Bytes, DiskFault>;
