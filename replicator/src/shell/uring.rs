//! The ring: one `io_uring` for each data-plane thread, driven by that thread's loop.
//!
//! Decides how operations get to the kernel and back: they queue in memory without bound, go to the
//! kernel in batches at [`Ring::submit`], and come back whole. A short read or write is continued, an
//! interrupted one repeated; only a whole success or a final error is a [`Completion`].
//!
//! Keeps every operation's file and memory from [`Ring::push`] until the kernel has answered, whoever
//! loses interest meanwhile; dropping the ring waits for the kernel to be done with all of them.
//!
//! Leaves to others: what operations mean, which may overlap, and in which order they go. There is no
//! future for an operation, and no cancelling.
//!
//! The ring's descriptor is watched by the runtime ([`Ring::ready`]), so the loop sleeps beside the
//! sockets (docs/decisions/0002-own-ring-and-flushing.md).

#![allow(unsafe_code)] // Submission hands raw pointers to the kernel: the interface demands it.

mod operation;

use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use io_uring::IoUring;
use rustix::io::Errno;
use slab::Slab;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::buffers::Buffer;
use super::runtime;
use operation::{InFlight, Next};
pub use operation::{Operation, Payload};

/// Entries of the submission queue: the largest batch of one system call.
const SUBMISSION_ENTRIES: u32 = 256;

/// Operations that the kernel may hold at once; the rest wait in memory. As many as the completion
/// queue has entries, so that it can't overflow.
pub const KERNEL_DEPTH: u32 = 4096;

/// How long to wait before trying again when the kernel takes nothing and owes nothing.
const REFUSED_PAUSE: Duration = Duration::from_millis(1);

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel or a sandbox forbids `io_uring` to this process.
    #[error(
        "io_uring is not available to this process ({0}): look at `sysctl kernel.io_uring_disabled` \
         (0 allows it) and at the container's seccomp profile"
    )]
    NotPermitted(io::Error),
    /// Any other failure, e.g. too little lockable memory or too many open files.
    #[error("setting up an io_uring: {0}")]
    Setup(io::Error),
}

/// A finished operation.
#[derive(Debug)]
pub struct Completion {
    /// As given to [`Ring::push`].
    pub tag: u64,
    /// The filled buffer of a read, nothing for others; or the kernel's error number.
    pub result: Result<Option<Buffer>, Errno>,
}

/// An `io_uring` of this thread and the operations it holds.
#[derive(Debug)]
pub struct Ring {
    watched: AsyncFd<RingFd>,
    /// Every operation that is queued or in the kernel; the key is the kernel's `user_data`.
    operations: Slab<InFlight>,
    /// Operations not yet handed to the kernel, in order.
    queued: VecDeque<usize>,
    /// Operations in the submission queue or in the kernel.
    in_kernel: usize,
    /// The kernel refused to take a batch (`EAGAIN`, `EBUSY`); it is offered again.
    refused: bool,
}

struct RingFd(IoUring);

impl std::fmt::Debug for RingFd {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "RingFd({})", self.0.as_raw_fd())
    }
}

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for RingFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and keeps it open as long as it lives, and the borrow
        // is of the ring.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl Ring {
    /// A ring for this thread. It must be used and dropped here (it is not `Send`).
    ///
    /// # Errors
    ///
    /// [`RingError`], which says what to look at.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new() -> Result<Self, RingError> {
        let ring = Self::build().map_err(|error| match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => RingError::NotPermitted(error),
            _ => RingError::Setup(error),
        })?;
        // SAFETY: `RingFd` owns its descriptor, always names the same one, and closes it only when
        // it is dropped, after the `AsyncFd` around it has taken it out of the runtime's set.
        let watched = unsafe { AsyncFd::register_with_interest(RingFd(ring), Interest::READABLE) }
            .map_err(|refused| RingError::Setup(refused.into_parts().1))?;
        Ok(Self {
            watched,
            operations: Slab::with_capacity(256),
            queued: VecDeque::with_capacity(256),
            in_kernel: 0,
            refused: false,
        })
    }

    fn build() -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        // Cooperative task work spares the thread an interrupt for each completion. Deferred task
        // work would spare more, but does not wake a thread that sleeps in epoll.
        builder
            .setup_cqsize(KERNEL_DEPTH)
            .dontfork()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_taskrun_flag();
        match builder.build(SUBMISSION_ENTRIES) {
            // A kernel before 6.0 knows not all of these.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::builder()
                .setup_cqsize(KERNEL_DEPTH)
                .dontfork()
                .build(SUBMISSION_ENTRIES),
            built => built,
        }
    }

    /// Queues an operation on `file` at `offset` (bytes). Nothing reaches the kernel before
    /// [`Ring::submit`]. The ring owns the operation's memory and holds the file open until it
    /// completes.
    pub fn push(&mut self, tag: u64, file: &Rc<File>, offset: u64, operation: Operation) {
        let key = self
            .operations
            .insert(InFlight::new(tag, Rc::clone(file), offset, operation));
        self.queued.push_back(key);
    }

    /// Hands what is queued to the kernel, in batches; what it has no room for stays queued and goes
    /// with a later call. Call it once for each turn of the loop.
    ///
    /// # Errors
    ///
    /// A ring that the kernel has broken (`EBADF` and the like); refusals for want of memory are
    /// no error: the operations are offered again.
    pub fn submit(&mut self) -> io::Result<()> {
        let ring = &mut self.watched.get_mut().0;
        let mut room = ring.params().cq_entries() as usize - self.in_kernel;
        self.refused = false;
        loop {
            let mut queue = ring.submission();
            while room > 0 && !queue.is_full() {
                let Some(key) = self.queued.pop_front() else {
                    break;
                };
                let entry = self.operations[key].entry().user_data(key as u64);
                // SAFETY: the memory and the file that the entry points to are owned by the
                // operation, which stays in the slab under `key` until its completion is reaped (or
                // forever, see `Drop`); neither moves in memory when the slab grows.
                let pushed = unsafe { queue.push(&entry) };
                assert!(pushed.is_ok(), "a queue with room refused an entry");
                self.in_kernel += 1;
                room -= 1;
            }
            queue.sync();
            if queue.is_empty() {
                return Ok(());
            }
            drop(queue);
            match ring.submit() {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // No memory for requests, or completions to be reaped first.
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {
                        self.refused = true;
                        return Ok(());
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// Appends what has completed to `out`; never blocks. What must go on (a short write's rest) is
    /// queued for the next [`Ring::submit`].
    ///
    /// # Errors
    ///
    /// As [`Ring::submit`].
    pub fn drain(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        let ring = &mut self.watched.get_mut().0;
        // Completions held back by cooperative task work are posted when the thread asks for them.
        let (held_back, overflown) = {
            let queue = ring.submission();
            (queue.taskrun(), queue.cq_overflow())
        };
        if held_back || overflown {
            match ring.submit() {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {}
                    _ => return Err(error),
                },
            }
        }
        for entry in ring.completion() {
            self.in_kernel -= 1;
            let key = entry.user_data() as usize;
            match self.operations[key].answered(entry.result()) {
                Next::Again => self.queued.push_back(key),
                Next::Done(outcome) => {
                    let (tag, buffer) = self.operations.remove(key).finish();
                    out.push(Completion {
                        tag,
                        result: outcome.map(|()| buffer),
                    });
                }
            }
        }
        Ok(())
    }

    /// Submits what is queued and waits until [`Ring::drain`] has something. Safe to drop at any
    /// await (for `select!`). Waits forever if nothing is in flight.
    ///
    /// # Errors
    ///
    /// As [`Ring::submit`].
    pub async fn ready(&mut self) -> io::Result<()> {
        loop {
            self.submit()?;
            if self.has_completions() {
                return Ok(());
            }
            if self.refused && self.in_kernel == self.unsubmitted() {
                tokio::time::sleep(REFUSED_PAUSE).await;
                continue;
            }
            poll_fn(|cx| {
                // A completion interrupts the thread's sleep, and is there when the runtime goes on.
                if self.has_completions() {
                    return Poll::Ready(Ok(()));
                }
                if self.in_kernel > 0 {
                    runtime::wake_when_interrupted(cx.waker());
                }
                // The state is looked at again after the readiness is cleared, so no wake-up is lost.
                self.watched
                    .poll_read_ready(cx)
                    .map_ok(|mut ready| ready.clear_ready())
            })
            .await?;
        }
    }

    fn has_completions(&mut self) -> bool {
        let ring = &mut self.watched.get_mut().0;
        let held_back = ring.submission().taskrun();
        held_back || !ring.completion().is_empty()
    }

    /// Entries that lie in the submission queue because the kernel refused them.
    fn unsubmitted(&mut self) -> usize {
        self.watched.get_mut().0.submission().len()
    }

    /// How many operations wait to be handed to the kernel.
    pub fn queued(&self) -> usize {
        self.queued.len()
    }

    /// Operations pushed and not yet completed.
    pub fn in_flight(&self) -> usize {
        self.operations.len()
    }
}

impl Drop for Ring {
    /// Waits for every operation that the kernel has begun: it writes into memory that the
    /// operations own. What was only queued never starts.
    fn drop(&mut self) {
        while self.in_kernel > 0 {
            let ring = &mut self.watched.get_mut().0;
            if let Err(error) = ring.submit_and_wait(1)
                && !matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                )
            {
                // The kernel may still write: keep the memory for the rest of the process.
                std::mem::forget(std::mem::take(&mut self.operations));
                return;
            }
            self.in_kernel -= ring.completion().count();
        }
    }
}
