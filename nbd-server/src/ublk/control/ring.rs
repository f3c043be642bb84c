//! The way to `/dev/ublk-control`: a ring with entries of 128 bytes, an entry a command.
#![allow(unsafe_code)] // Submission hands raw pointers to the kernel: the interface demands it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use rustix::io::Errno;

use super::Control;
use crate::ublk::Shape;
use crate::ublk::abi::{Op, control_command};
use crate::ublk::fault::UblkFault;
use crate::ublk::stand_in::StandIn;

/// The longest memory of a command.
const MEMORY: usize = 256;
/// What the kernel takes for it where it says nothing.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The driver's control file, and the ring that commands go over.
pub struct ControlRing {
    ring: IoUring<Entry128, cqueue::Entry>,
    file: File,
    /// What the kernel reads and fills while a command runs: never the caller's, which may end before the command.
    memory: Box<[u8; MEMORY]>,
    /// A command is in the kernel.
    running: bool,
    stand_in: Option<StandIn>,
    dev: PathBuf,
    sysfs: PathBuf,
    since: Instant,
}

impl std::fmt::Debug for ControlRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlRing")
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

impl ControlRing {
    /// The driver of the machine whose files are below `dev` (`/dev`) and `sysfs` (`/sys`).
    ///
    /// # Errors
    /// [`UblkFault::NoModule`], [`UblkFault::NotPermitted`], or there can be no ring.
    pub fn open(dev: &Path, sysfs: &Path) -> Result<Self, UblkFault> {
        let path = dev.join("ublk-control");
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => UblkFault::NoModule,
            io::ErrorKind::PermissionDenied => UblkFault::NotPermitted,
            _ => match error.raw_os_error() {
                // The node of a module that is not there.
                Some(libc::ENXIO | libc::ENODEV) => UblkFault::NoModule,
                _ => io_fault("opening /dev/ublk-control", error),
            },
        })?;
        let ring = IoUring::<Entry128, cqueue::Entry>::builder()
            .dontfork()
            .build(4)
            .map_err(|error| io_fault("setting up an io_uring", error))?;
        Ok(Self {
            ring,
            file,
            memory: Box::new([0; MEMORY]),
            running: false,
            stand_in: None,
            dev: dev.to_owned(),
            sysfs: sysfs.to_owned(),
            since: Instant::now(),
        })
    }

    /// Hands the kernel a command that has the first `len` bytes of the memory.
    fn submit(&mut self, op: Op, id: u32, data: u64, len: usize) -> Result<(), Errno> {
        assert!(
            !self.running,
            "a command was given before the last one's answer"
        );
        assert!(len <= MEMORY, "a command of {len} bytes");
        let address = if len == 0 {
            0
        } else {
            self.memory.as_mut_ptr().expose_provenance() as u64
        };
        let bytes = control_command(id, address, len as u16, data);
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), op.code())
            .cmd(bytes)
            .build();
        // SAFETY: what the entry points to is `self.memory`, which is neither read, written nor freed while
        // `running` is set, and it is until the kernel has answered; `Drop` leaves it otherwise. The file is
        // open as long as the ring lives.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "a queue with room refused an entry");
        self.running = true;
        loop {
            match self.ring.submit() {
                Ok(1..) => return Ok(()),
                Ok(0) => {}
                Err(error) => match errno(&error) {
                    Errno::INTR | Errno::AGAIN | Errno::BUSY => {}
                    errno => return Err(errno),
                },
            }
        }
    }

    /// Waits for the command's answer.
    fn wait(&mut self) -> Result<i32, Errno> {
        assert!(self.running, "no command was given");
        loop {
            if let Some(entry) = self.ring.completion().next() {
                self.running = false;
                let result = entry.result();
                return match result {
                    ..0 => Err(Errno::from_raw_os_error(-result)),
                    _ => Ok(result),
                };
            }
            if let Err(error) = self.ring.submit_and_wait(1) {
                match errno(&error) {
                    Errno::INTR | Errno::AGAIN | Errno::BUSY => {}
                    errno => return Err(errno),
                }
            }
        }
    }
}

fn io_fault(doing: &'static str, error: io::Error) -> UblkFault {
    UblkFault::Io { doing, error }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Control for ControlRing {
    fn command(&mut self, op: Op, id: u32, data: u64, memory: &mut [u8]) -> Result<i32, Errno> {
        self.memory[..memory.len()].copy_from_slice(memory);
        self.submit(op, id, data, memory.len())?;
        let answer = self.wait()?;
        memory.copy_from_slice(&self.memory[..memory.len()]);
        Ok(answer)
    }

    fn give(&mut self, op: Op, id: u32, data: u64) -> Result<(), Errno> {
        self.submit(op, id, data, 0)
    }

    fn answer(&mut self) -> Result<i32, Errno> {
        self.wait()
    }

    fn stand_in(&mut self, id: u32, shape: Shape) -> Result<(), Errno> {
        let path = self.dev.join(format!("ublkc{id}"));
        let begun = StandIn::begin(&path, shape).map_err(|error| errno(&error))?;
        self.stand_in = Some(begun);
        Ok(())
    }

    fn dismiss(&mut self) {
        self.stand_in = None;
    }

    fn is_held(&mut self, id: u32) -> bool {
        let path = self.dev.join(format!("ublkc{id}"));
        let opened = OpenOptions::new().read(true).write(true).open(path);
        opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
    }

    fn request_timeout(&mut self, id: u32) -> Duration {
        let path = self.sysfs.join(format!("block/ublkb{id}/queue/io_timeout"));
        let text = fs::read_to_string(path).unwrap_or_default();
        let milliseconds = text.trim().parse();
        milliseconds.map_or(REQUEST_TIMEOUT, Duration::from_millis)
    }

    fn now(&mut self) -> Duration {
        self.since.elapsed()
    }

    fn pause(&mut self, time: Duration) {
        thread::sleep(time);
    }
}

impl Drop for ControlRing {
    fn drop(&mut self) {
        if self.running {
            // The kernel may still write to it: it is kept for the rest of the process.
            mem::forget(mem::replace(&mut self.memory, Box::new([0; MEMORY])));
        }
    }
}
