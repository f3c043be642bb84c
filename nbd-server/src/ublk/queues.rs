//! A device's queues, fetched by this thread over a ring of its own.
//!
//! Decides how requests and answers get from the kernel and back: a place (tag) is given to the kernel by a command
//! that completes when a request is in it; the next command answers that request and gives the place again. Keeps
//! which places are ours: only those are read, copied from and committed.
//!
//! Three things are as they are because of what the kernel does when a daemon dies in the middle
//! (docs/decisions/0012-ublk.md):
//!
//! - **All places of all queues are given in one batch**, so that a queue is never fetched while another is not.
//! - **The descriptors are mapped after it**: a map without a fetched queue keeps every other process out.
//! - **Queues that are dropped stay open** until the thread ends, and only [`Queues::close`] closes them: without
//!   them a device whose daemon lives can't be served by anybody.
#![allow(unsafe_code)] // Commands, a map that the kernel writes to, and a registered descriptor: the interface demands them.

pub(super) mod fetch;

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use io_uring::IoUring;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::param::page_size;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Sleep;
use tracing::warn;

use super::abi::{self, Descriptor};
use super::{Endpoint, Shape, Tag};

/// How long to wait before trying again when the kernel takes nothing for want of memory.
const REFUSED_PAUSE: Duration = Duration::from_millis(1);

/// The queues of one device, all fetched by this thread.
pub struct Queues {
    opened: ManuallyDrop<Opened>,
}

/// Dropped in this order: what the kernel may complete ends before the file's last user does.
struct Opened {
    watched: AsyncFd<RingFd>,
    maps: Vec<Map>,
    file: File,
    shape: Shape,
    /// How many places the kernel took when they were given first.
    taken: usize,
    /// Which places hold a request that is not answered, by [`Opened::place`].
    ours: Vec<bool>,
    /// What came while the queues were opened.
    early: Vec<(Tag, i32)>,
    /// Wakes the task when the thread's sleep was interrupted: a request is there before the ring's descriptor says so.
    wake_when_interrupted: fn(&Waker),
    /// Set while the kernel took nothing for want of memory: then it is offered again.
    refused: Option<Pin<Box<Sleep>>>,
}

struct RingFd(IoUring);

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for RingFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and keeps it open as long as it lives, and the borrow is of the ring.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// Queues that are not opened.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct OpenFault {
    /// The system's word.
    pub error: io::Error,
    /// The kernel has taken places of them all the same: they stay open until this thread ends, and nobody else can
    /// have the device before. Closed, they would leave a device that no other can take.
    pub is_fetched: bool,
}

fn not_fetched(error: io::Error) -> OpenFault {
    let is_fetched = false;
    OpenFault { error, is_fetched }
}

impl std::fmt::Debug for Queues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queues")
            .field("shape", &self.opened.shape)
            .finish_non_exhaustive()
    }
}

impl Queues {
    /// Opens the queues of `/dev/ublkcN` on this thread, which serves them from now on and for the rest of its life,
    /// if they are not closed: requests may come at once. `wake_when_interrupted` wakes a task once when the thread
    /// has slept and was woken by anything.
    ///
    /// **The command that lets the device's users go on must wait in the kernel already**
    /// ([`control::begin`](super::control::begin)).
    ///
    /// # Errors
    /// Another process has it open (`EBUSY`), it is not there, or there can be no ring. [`OpenFault`] says whether
    /// anything is open then.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(
        id: u32,
        shape: Shape,
        wake_when_interrupted: fn(&Waker),
    ) -> Result<Self, OpenFault> {
        // The standard library opens with O_CLOEXEC: a child never keeps the device from the next daemon.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/dev/ublkc{id}"))
            .map_err(not_fetched)?;
        Self::over(file, shape, wake_when_interrupted)
    }

    fn over(
        file: File,
        shape: Shape,
        wake_when_interrupted: fn(&Waker),
    ) -> Result<Self, OpenFault> {
        let opened = Opened::over(file, shape, wake_when_interrupted).map_err(not_fetched)?;
        // From here on it is dropped by nobody: what the kernel was given is its own until this thread ends.
        let mut queues = Self {
            opened: ManuallyDrop::new(opened),
        };
        let opened = &mut *queues.opened;
        let whole = opened
            .fetch_all()
            .and_then(|()| Map::all(&opened.file, shape));
        match whole {
            Ok(maps) => {
                opened.maps = maps;
                Ok(queues)
            }
            Err(error) if opened.taken > 0 => Err(OpenFault {
                error,
                is_fetched: true,
            }),
            Err(error) => {
                queues.close();
                Err(not_fetched(error))
            }
        }
    }

    /// Closes them: what the kernel had given and was not answered it sends again, or fails if the device was stopped.
    /// Only to take the device down: as long as this thread lives, no other daemon could have it in order.
    pub fn close(self) {
        drop(ManuallyDrop::into_inner(self.opened));
    }
}

impl Opened {
    /// A ring for the queues of `file`, of which none is fetched yet.
    fn over(file: File, shape: Shape, wake_when_interrupted: fn(&Waker)) -> io::Result<Self> {
        let ring = fetch::ring(shape)?;
        // SAFETY: `RingFd` owns its descriptor, always names the same one, and closes it only when it is dropped,
        // after the `AsyncFd` around it has taken it out of the runtime's set.
        let watched = unsafe { AsyncFd::register_with_interest(RingFd(ring), Interest::READABLE) }
            .map_err(|refused| refused.into_parts().1)?;
        Ok(Self {
            watched,
            maps: Vec::new(),
            file,
            shape,
            taken: 0,
            ours: vec![false; usize::from(shape.queues) * usize::from(shape.depth)],
            early: Vec::new(),
            wake_when_interrupted,
            refused: None,
        })
    }

    /// Gives the kernel all places of all queues, in one batch.
    fn fetch_all(&mut self) -> io::Result<()> {
        let ring = &mut self.watched.get_mut().0;
        let given = fetch::all(ring, &self.file, self.shape);
        self.taken = self.ours.len() - ring.submission().len();
        given?;
        let mut early = Vec::new();
        self.drain(&mut early)?;
        let failed = |result: i32| result < 0 && result != abi::io::ABORT;
        self.taken -= early.iter().filter(|(_, result)| failed(*result)).count();
        if let Some((_, result)) = early.iter().find(|(_, result)| failed(*result)) {
            return Err(io::Error::from_raw_os_error(-result));
        }
        self.early = early;
        Ok(())
    }

    fn ring(&mut self) -> &mut IoUring {
        &mut self.watched.get_mut().0
    }

    fn place(&self, tag: Tag) -> usize {
        let Tag { queue, tag } = tag;
        assert!(
            queue < self.shape.queues && tag < self.shape.depth,
            "no place {tag} of queue {queue} in {:?}",
            self.shape
        );
        usize::from(queue) * usize::from(self.shape.depth) + usize::from(tag)
    }

    fn assert_ours(&self, tag: Tag) {
        assert!(
            self.ours[self.place(tag)],
            "{tag:?} holds no request of ours: it would be another one's"
        );
    }

    /// Hands over what is queued, and takes what is held back.
    fn enter(&mut self) -> Result<(), Errno> {
        fetch::enter(self.ring())
    }

    /// As [`enter`](Self::enter); what the kernel has no memory for is offered again a moment later.
    fn submit(&mut self) -> io::Result<()> {
        self.refused = None;
        loop {
            if self.ring().submission().is_empty() {
                return Ok(());
            }
            match self.enter() {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => {
                    self.refused = Some(Box::pin(tokio::time::sleep(REFUSED_PAUSE)));
                    return Ok(());
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Appends what has come; never blocks.
    fn drain(&mut self, arrived: &mut Vec<(Tag, i32)>) -> io::Result<()> {
        // Requests held back by cooperative task work are posted when the thread asks for them.
        let (held_back, overflown) = {
            let queue = self.ring().submission();
            (queue.taskrun(), queue.cq_overflow())
        };
        if held_back || overflown {
            match self.enter() {
                Ok(()) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let (shape, ours) = (self.shape, &mut self.ours);
        for entry in self.watched.get_mut().0.completion() {
            let tag = Tag {
                queue: (entry.user_data() >> 16) as u16,
                tag: entry.user_data() as u16,
            };
            let result = entry.result();
            if result > 0 {
                // What such an answer asks for, a device of ours was not made for.
                let words = format!("the kernel answered {result} to a command of {tag:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, words));
            }
            let place = usize::from(tag.queue) * usize::from(shape.depth) + usize::from(tag.tag);
            assert!(!ours[place], "{tag:?} came twice");
            ours[place] = result == 0;
            arrived.push((tag, result));
        }
        Ok(())
    }

    fn poll_arrived(
        &mut self,
        context: &mut Context<'_>,
        arrived: &mut Vec<(Tag, i32)>,
    ) -> Poll<io::Result<()>> {
        loop {
            arrived.append(&mut self.early);
            self.drain(arrived)?;
            if !arrived.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Some(pause) = &mut self.refused
                && pause.as_mut().poll(context).is_ready()
            {
                self.submit()?;
                continue;
            }
            (self.wake_when_interrupted)(context.waker());
            // What is there is looked at again after the readiness is cleared, so no wake-up is lost.
            ready!(self.watched.poll_read_ready(context))?.clear_ready();
        }
    }

    fn descriptor(&self, tag: Tag) -> Descriptor {
        self.assert_ours(tag);
        self.maps[usize::from(tag.queue)].descriptor(tag.tag)
    }

    fn commit(&mut self, tag: Tag, result: i32) {
        self.assert_ours(tag);
        let place = self.place(tag);
        self.ours[place] = false;
        let ring = &mut self.watched.get_mut().0;
        fetch::push(ring, &self.file, tag, abi::io::COMMIT_AND_FETCH, result);
    }

    fn copy_in(&self, tag: Tag, into: &mut [u8]) -> io::Result<()> {
        self.assert_ours(tag);
        let mut done = 0;
        while done < into.len() {
            let position = abi::payload_position(tag, done as u64);
            match rustix::io::pread(&self.file, &mut into[done..], position) {
                Ok(0) => return Err(too_short(tag, into.len())),
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn copy_out(&self, tag: Tag, offset: usize, from: &[u8]) -> io::Result<()> {
        self.assert_ours(tag);
        let mut done = 0;
        while done < from.len() {
            let position = abi::payload_position(tag, (offset + done) as u64);
            match rustix::io::pwrite(&self.file, &from[done..], position) {
                Ok(0) => return Err(too_short(tag, offset + from.len())),
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

fn too_short(tag: Tag, wanted: usize) -> io::Error {
    let words = format!("the payload of {tag:?} has less than {wanted} bytes");
    io::Error::new(io::ErrorKind::UnexpectedEof, words)
}

impl Endpoint for Queues {
    fn shape(&self) -> Shape {
        self.opened.shape
    }

    fn poll_arrived(
        &mut self,
        context: &mut Context<'_>,
        arrived: &mut Vec<(Tag, i32)>,
    ) -> Poll<io::Result<()>> {
        self.opened.poll_arrived(context, arrived)
    }

    fn descriptor(&self, tag: Tag) -> Descriptor {
        self.opened.descriptor(tag)
    }

    fn copy_in(&self, tag: Tag, into: &mut [u8]) -> io::Result<()> {
        self.opened.copy_in(tag, into)
    }

    fn copy_out(&self, tag: Tag, offset: usize, from: &[u8]) -> io::Result<()> {
        self.opened.copy_out(tag, offset, from)
    }

    fn commit(&mut self, tag: Tag, result: i32) {
        self.opened.commit(tag, result);
    }

    fn submit(&mut self) -> io::Result<()> {
        self.opened.submit()
    }
}

/// The descriptors of one queue, which the kernel writes and this process reads.
struct Map {
    begin: NonNull<u8>,
    len: usize,
    depth: u16,
}

impl Map {
    /// A map for each queue.
    fn all(file: &File, shape: Shape) -> io::Result<Vec<Self>> {
        (0..shape.queues)
            .map(|queue| Self::new(file, queue, shape.depth))
            .collect()
    }

    fn new(file: &File, queue: u16, depth: u16) -> io::Result<Self> {
        let page = page_size();
        let len = abi::map_len(depth, page);
        // SAFETY: a new map at a place of the kernel's choice; no memory of ours is touched.
        let begin = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED,
                file,
                abi::map_offset(queue, page),
            )
        }?;
        let begin = NonNull::new(begin.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let map = Self { begin, len, depth };
        // A child that is being started would hold the device open as long as it has the map.
        // SAFETY: the range is the map just made; what is set concerns children alone.
        unsafe { rustix::mm::madvise(begin.as_ptr().cast(), len, Advice::LinuxDontFork) }?;
        Ok(map)
    }

    /// The descriptor in a place that the kernel has given.
    fn descriptor(&self, tag: u16) -> Descriptor {
        assert!(tag < self.depth, "no place {tag} of {}", self.depth);
        let at = usize::from(tag) * Descriptor::LEN;
        assert!(at + Descriptor::LEN <= self.len, "a map of {}", self.len);
        // SAFETY: within the map, which lives as long as `self`; bytes need no alignment, and any are valid. The
        // kernel writes them before it completes the place's command, and again after it is committed: in between,
        // which is when this is called, they don't change.
        let bytes = unsafe {
            let begin = self.begin.as_ptr().add(at);
            begin.cast::<[u8; Descriptor::LEN]>().read_volatile()
        };
        Descriptor::decode(&bytes)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is a map of ours, and no reference into it exists: descriptors are copies.
        if let Err(errno) = unsafe { rustix::mm::munmap(self.begin.as_ptr().cast(), self.len) } {
            warn!(%errno, "the descriptors of a ublk device can't be unmapped");
        }
    }
}

#[cfg(test)]
mod tests;
