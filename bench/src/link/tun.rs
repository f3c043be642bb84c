//! A network interface whose packets this program carries.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::ioctl::{Updater, ioctl, opcode};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::BenchError;

const DEVICE: &str = "/dev/net/tun";
/// Packets as they are, without a head before them (`linux/if_tun.h`).
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);

/// `struct ifreq`, as far as this request has to do with it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Makes the interface `name` in a network namespace. It is there as long as the file is open, and its packets are
/// read and written without waiting.
///
/// # Errors
/// The kernel won't: it needs rights over the namespace, and /dev/net/tun.
pub fn open(namespace: &Path, name: &str) -> Result<File, BenchError> {
    within(namespace, || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(DEVICE)?;
        attach(&file, name)?;
        Ok(file)
    })
}

/// Does something in a network namespace: what is opened there belongs to it.
///
/// # Errors
/// It can't be entered, or the work failed.
pub fn within<T: Send>(
    namespace: &Path,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> Result<T, BenchError> {
    let fault = || BenchError::io(namespace.display().to_string());
    let entered = File::open(namespace).map_err(fault())?;
    // A thread of its own: whoever enters a namespace stays there.
    let done = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            move_into_link_name_space(entered.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        worker.join().expect("it does not panic")
    });
    done.map_err(fault())
}

#[expect(
    unsafe_code,
    reason = "the kernel makes such an interface by ioctl alone"
)]
fn attach(file: &File, name: &str) -> std::io::Result<()> {
    let mut request = Request {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI,
        rest: [0; 22],
    };
    // The last byte stays 0, for the kernel reads a string.
    let len = name.len().min(15);
    request.name[..len].copy_from_slice(&name.as_bytes()[..len]);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, 40 bytes on 64-bit machines, which `Request` is; it
    // lives until the call returns. The file is /dev/net/tun, where the request has this meaning.
    unsafe { ioctl(file, Updater::<TUNSETIFF, Request>::new(&mut request)) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_kernels_length() {
        assert_eq!(size_of::<Request>(), 40);
        assert_eq!(TUNSETIFF, 0x4004_54ca);
    }
}
