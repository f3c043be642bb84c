//! Who fetches the queues of a new device while it is started: a thread that ends right after it.
//!
//! A device that is started while the one who fetched its queues dies is a trap of Linux 6.12: the next read of it, by
//! whomever, goes to commands that are no more, and the kernel crashes. And were its partitions read meanwhile, the
//! answer would never come, under a lock that each later command waits for. So a device is not started for the
//! daemon, which may die at any moment, but for this thread, which has nothing else to do; its end leaves a device
//! that waits for another to take it over (docs/decisions/0012-ublk.md), as the end of any daemon does.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::Shape;
use super::queues::fetch;

/// A thread that has fetched all queues of a device, until this is dropped.
#[derive(Debug)]
pub struct StandIn {
    leave: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    /// Fetches all queues of the device that `path` (`/dev/ublkcN`) belongs to.
    ///
    /// # Errors
    /// Another process has it open, or there can be no ring or thread.
    pub fn begin(path: &Path, shape: Shape) -> io::Result<Self> {
        let (tell, told) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        let path = path.to_owned();
        let thread = thread::Builder::new()
            .name("kagami-stand-in".to_owned())
            .spawn(move || {
                let fetched = fetch(&path, shape);
                let (taken, said) = match fetched {
                    Ok(taken) => (Some(taken), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                let _ = tell.send(said);
                // An error, as nothing is ever sent: the other end is gone.
                let _ = left.recv();
                drop(taken);
            })?;
        let begun = Self {
            leave: Some(leave),
            thread: Some(thread),
        };
        match told.recv() {
            Ok(said) => said.map(|()| begun),
            Err(_) => Err(io::Error::other("the thread ended at once")),
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.leave.take());
        if let Some(thread) = self.thread.take() {
            // A panic of it leaves what its end leaves.
            let _ = thread.join();
        }
    }
}

/// What is dropped to leave the device: the ring first.
type Taken = (io_uring::IoUring, std::fs::File);

fn fetch(path: &Path, shape: Shape) -> io::Result<Taken> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut ring = fetch::ring(shape)?;
    give_up_admin()?;
    fetch::all(&mut ring, &file, shape)?;
    let refused = ring.completion().find(|entry| entry.result() < 0);
    match refused {
        None => Ok((ring, file)),
        Some(entry) => Err(io::Error::from_raw_os_error(-entry.result())),
    }
}

/// Takes `CAP_SYS_ADMIN` from this thread. The kernel does not trust the partition table of a device whose queues were
/// fetched so, and reads none when it is started; who wants the partitions adds them (`partx`).
fn give_up_admin() -> io::Result<()> {
    let before: CapabilitySets = rustix::thread::capabilities(None)?;
    let mut without = before;
    without.effective.remove(CapabilitySet::SYS_ADMIN);
    rustix::thread::set_capabilities(None, without)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        queues: 2,
        depth: 4,
        max_io: 4096,
    };

    #[test]
    fn it_fetches_and_leaves() {
        // Takes every command, as the driver does.
        let begun = StandIn::begin(Path::new("/dev/null"), SHAPE).expect("fetched");
        let thread = begun.thread.as_ref().expect("running");
        assert!(!thread.is_finished());
        drop(begun);
    }

    #[test]
    fn what_it_can_not_fetch_is_said() {
        let missing = StandIn::begin(Path::new("/dev/ublkc-none"), SHAPE).expect_err("none");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        // No command goes to it.
        let zero = StandIn::begin(Path::new("/dev/full"), SHAPE).expect_err("refused");
        assert_eq!(zero.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn its_right_is_given_up_on_its_thread_alone() {
        let effective = || {
            let sets = rustix::thread::capabilities(None).expect("readable");
            sets.effective
        };
        let before = effective();
        let there = thread::spawn(move || {
            give_up_admin().expect("given up");
            effective()
        });
        let there = there.join().expect("ended");
        assert_eq!(there, before - CapabilitySet::SYS_ADMIN);
        assert_eq!(effective(), before);
    }
}
