//! Giving places to the kernel.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;
use tracing::warn;

use crate::ublk::abi::{self, DEPTH_MAX, QUEUES_MAX};
use crate::ublk::{Shape, Tag};

/// The largest ring that the kernel makes.
const ENTRIES_MAX: u32 = 32_768;
/// How long to wait before trying again when the kernel takes nothing for want of memory.
const REFUSED_PAUSE: Duration = Duration::from_millis(1);

/// A ring of this thread that holds a command for each place.
///
/// # Errors
/// There can be none, or none for so many places.
pub fn ring(shape: Shape) -> io::Result<IoUring> {
    let places = u32::from(shape.queues) * u32::from(shape.depth);
    if places == 0 || shape.queues > QUEUES_MAX || shape.depth > DEPTH_MAX || places > ENTRIES_MAX {
        let words = format!("a device of {shape:?} can't be served");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
    }
    // The completion queue is twice as long, and a place has one command: it can't overflow.
    IoUring::builder()
        .dontfork()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(places.next_power_of_two())
}

/// Gives the kernel all places of all queues of `file`, in one batch. How each was taken is in the ring.
///
/// # Errors
/// The ring is broken.
pub fn all(ring: &mut IoUring, file: &File, shape: Shape) -> io::Result<()> {
    for queue in 0..shape.queues {
        for tag in 0..shape.depth {
            push(ring, file, Tag { queue, tag }, abi::io::FETCH, 0);
        }
    }
    loop {
        match enter(ring) {
            Ok(()) => {}
            // Half of it must not stay: the kernel has no way back from a queue that is fetched beside one that is
            // not. So it is tried for as long as it takes.
            Err(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => thread::sleep(REFUSED_PAUSE),
            Err(errno) => return Err(errno.into()),
        }
        let left = ring.submission().len();
        if left == 0 {
            return Ok(());
        }
        warn!(
            left,
            "the kernel had no memory to take all places of a ublk device at once; until it has, this process must not be killed"
        );
    }
}

/// Queues a command about a place.
pub fn push(ring: &mut IoUring, file: &File, tag: Tag, command: u32, result: i32) {
    let entry = opcode::UringCmd16::new(types::Fd(file.as_raw_fd()), command)
        .cmd(abi::io_command(tag, result))
        .build()
        .user_data(u64::from(tag.queue) << 16 | u64::from(tag.tag));
    // SAFETY: the entry points to no memory of ours, and what it names the kernel looks up when it takes it: a file
    // that is closed by then would be an error of that command.
    let pushed = unsafe { ring.submission().push(&entry) };
    assert!(pushed.is_ok(), "a place had two commands: {tag:?}");
}

/// Hands over what is queued, and takes what is held back.
///
/// # Errors
/// The kernel's answer, but for an interruption.
pub fn enter(ring: &mut IoUring) -> Result<(), Errno> {
    loop {
        match ring.submit() {
            Ok(_) => return Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR) => {}
                errno => return Err(errno.unwrap_or(Errno::IO)),
            },
        }
    }
}
