//! What a session needs of a device's queues.

use std::io;
use std::task::{Context, Poll};

use super::abi::Descriptor;

/// A place for one request: the kernel fills it, and has it back with [`Endpoint::commit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// Which queue, from 0.
    pub queue: u16,
    /// Which of its places, from 0.
    pub tag: u16,
}

/// How a device was made; it stays so until it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many queues.
    pub queues: u16,
    /// Places of each queue.
    pub depth: u16,
    /// The longest payload of one request, bytes.
    pub max_io: u32,
}

/// The queues of one device, all on this thread.
pub trait Endpoint {
    /// How the device was made.
    fn shape(&self) -> Shape;

    /// Appends what came from the kernel since the last call: a tag, and 0 for a new request or a negative
    /// error number. Ready once there is at least one; the waker is kept otherwise.
    ///
    /// # Errors
    /// The ring is broken; nothing will come from it any more.
    fn poll_arrived(
        &mut self,
        context: &mut Context<'_>,
        arrived: &mut Vec<(Tag, i32)>,
    ) -> Poll<io::Result<()>>;

    /// The request in `tag`. It stays as it is until it is committed.
    fn descriptor(&self, tag: Tag) -> Descriptor;

    /// Copies the first `into.len()` bytes of the payload of the write in `tag`.
    ///
    /// # Errors
    /// `EINVAL`: the request is gone, as the device was stopped.
    fn copy_in(&self, tag: Tag, into: &mut [u8]) -> io::Result<()>;

    /// Gives `from` to the read in `tag`, from `offset` bytes behind its start.
    ///
    /// # Errors
    /// As [`copy_in`](Self::copy_in).
    fn copy_out(&self, tag: Tag, offset: usize, from: &[u8]) -> io::Result<()>;

    /// Queues an answer, which gives the place back for another request: bytes of a read or write, 0 for
    /// the rest, or a negative error number. Nothing reaches the kernel before [`submit`](Self::submit).
    fn commit(&mut self, tag: Tag, result: i32);

    /// Hands the kernel what is queued.
    ///
    /// # Errors
    /// The ring is broken.
    fn submit(&mut self) -> io::Result<()>;
}
