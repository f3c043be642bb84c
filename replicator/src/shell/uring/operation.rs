//! One operation's life: its entry for the kernel, and what an answer means for it.
//!
//! Keeps the memory and the file while the kernel works. Decides, from each answer, whether the
//! operation is done, failed, or has to be offered again for what is left.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use bytes::Bytes;
use io_uring::{opcode, squeue, types};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::super::buffers::Buffer;

/// After a short answer the rest starts at a multiple of this: the smallest sector.
const SECTOR: usize = 512;

/// How often an interrupted operation is offered again before its error counts.
const MAX_RETRIES: u8 = 100;

/// Memory to write from.
#[derive(Debug)]
pub enum Payload {
    /// Shared memory, as it came.
    Bytes(Bytes),
    /// A buffer of our own, e.g. a copy for alignment.
    Buffer(Buffer),
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Buffer(buffer) => buffer,
        }
    }
}

/// What the kernel is to do. Memory, offsets and lengths must suit the file (`O_DIRECT`).
#[derive(Debug)]
pub enum Operation {
    /// Fills the whole buffer; the end of the file before that is an error (`EIO`).
    Read(Buffer),
    /// Writes the whole payload; with `dsync` it is durable at completion (`RWF_DSYNC`).
    Write {
        /// The bytes.
        data: Payload,
        /// Durable at completion.
        dsync: bool,
    },
    /// `fdatasync`: the offset is ignored.
    Sync,
    /// `fallocate` of `len` bytes.
    Fallocate {
        /// What to do to the range.
        mode: FallocateFlags,
        /// Bytes.
        len: u64,
    },
}

/// An operation that the ring holds.
#[derive(Debug)]
pub(super) struct InFlight {
    tag: u64,
    file: Rc<File>,
    offset: u64,
    operation: Operation,
    /// Bytes read or written so far.
    done: usize,
    retries: u8,
}

/// What an answer of the kernel leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Offer the operation again, for what is left of it.
    Again,
    /// It is over.
    Done(Result<(), Errno>),
}

impl InFlight {
    pub(super) fn new(tag: u64, file: Rc<File>, offset: u64, operation: Operation) -> Self {
        Self {
            tag,
            file,
            offset,
            operation,
            done: 0,
            retries: 0,
        }
    }

    /// The entry for what is left. It points into memory that this operation owns, so the operation
    /// must outlive the kernel's work on it.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        let file = types::Fd(self.file.as_raw_fd());
        let (done, offset) = (self.done, self.offset);
        match &mut self.operation {
            Operation::Read(buffer) => {
                let rest = &mut buffer[done..];
                opcode::Read::new(file, rest.as_mut_ptr(), length(rest))
                    .offset(offset + done as u64)
                    .build()
            }
            Operation::Write { data, dsync } => {
                let rest = &data.as_ref()[done..];
                opcode::Write::new(file, rest.as_ptr(), length(rest))
                    .offset(offset + done as u64)
                    .rw_flags(if *dsync { libc::RWF_DSYNC } else { 0 })
                    .build()
            }
            Operation::Sync => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Operation::Fallocate { mode, len } => opcode::Fallocate::new(file, *len)
                .offset(offset)
                .mode(mode.bits().cast_signed())
                .build(),
        }
    }

    /// Takes the kernel's answer: a count of bytes, or a negative error number.
    pub(super) fn answered(&mut self, answer: i32) -> Next {
        let Ok(count) = usize::try_from(answer) else {
            let error = Errno::from_raw_os_error(-answer);
            if matches!(error, Errno::INTR | Errno::AGAIN) && self.retries < MAX_RETRIES {
                self.retries += 1;
                return Next::Again;
            }
            return Next::Done(Err(error));
        };
        let len = match &self.operation {
            Operation::Read(buffer) => buffer.len(),
            Operation::Write { data, .. } => data.as_ref().len(),
            Operation::Sync | Operation::Fallocate { .. } => return Next::Done(Ok(())),
        };
        assert!(count <= len - self.done, "the kernel moved more than asked");
        if self.done + count == len {
            return Next::Done(Ok(()));
        }
        // Direct I/O can only go on at a sector; the odd bytes are moved again.
        let done = (self.done + count) / SECTOR * SECTOR;
        if done == self.done {
            // The end of the file, or a device that takes nothing and gives no reason.
            return Next::Done(Err(Errno::IO));
        }
        self.done = done;
        Next::Again
    }

    /// Gives up the operation: its tag, and the buffer if it was a read.
    pub(super) fn finish(self) -> (u64, Option<Buffer>) {
        let buffer = match self.operation {
            Operation::Read(buffer) => Some(buffer),
            _ => None,
        };
        (self.tag, buffer)
    }
}

/// Longer transfers than the kernel's limit for one call (2 GiB less a page) come back short and go on.
fn length(rest: &[u8]) -> u32 {
    u32::try_from(rest.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Errno, File, InFlight, MAX_RETRIES, Next, Operation, Payload, Rc};

    fn write(len: usize) -> InFlight {
        let file = Rc::new(File::open("/dev/null").expect("/dev/null"));
        let data = Payload::Bytes(Bytes::from(vec![0; len]));
        InFlight::new(1, file, 0, Operation::Write { data, dsync: false })
    }

    #[test]
    fn a_short_write_goes_on_at_a_sector() {
        let mut operation = write(8192);
        assert_eq!(operation.answered(4096 + 100), Next::Again);
        assert_eq!(operation.done, 4096);
        assert_eq!(operation.answered(512), Next::Again);
        assert_eq!(operation.done, 4608);
        assert_eq!(operation.answered(3584), Next::Done(Ok(())));
    }

    #[test]
    fn no_progress_is_an_error() {
        assert_eq!(write(4096).answered(0), Next::Done(Err(Errno::IO)));
        assert_eq!(write(4096).answered(100), Next::Done(Err(Errno::IO)));
    }

    #[test]
    fn interruptions_are_repeated_within_bounds() {
        let mut operation = write(4096);
        for _ in 0..MAX_RETRIES {
            assert_eq!(operation.answered(-libc::EINTR), Next::Again);
        }
        assert_eq!(
            operation.answered(-libc::EAGAIN),
            Next::Done(Err(Errno::AGAIN))
        );
        assert_eq!(
            write(4096).answered(-libc::ENOSPC),
            Next::Done(Err(Errno::NOSPC))
        );
    }
}
