//! Persistent reservations of a shared disk (linux/pr.h; SCSI-3, NVMe): the device itself refuses the
//! other node's writes.
//!
//! Each node has a key of its own. Whoever holds the disk registers, reserves it for those who are
//! registered, and takes the other node's registration away.

use std::fs::File;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// `PR_WRITE_EXCLUSIVE_REG_ONLY`: only the registered write; all may read.
const KIND: u32 = 3;

/// `PR_FL_IGNORE_KEY`: whatever key this node has had before.
const IGNORE_KEY: u32 = 1;

#[repr(C)]
struct Registration {
    old_key: u64,
    new_key: u64,
    flags: u32,
    pad: u32,
}

#[repr(C)]
struct Reservation {
    key: u64,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct Preemption {
    old_key: u64,
    new_key: u64,
    kind: u32,
    flags: u32,
}

const REGISTER: Opcode = opcode::write::<Registration>(b'p', 200);
const RESERVE: Opcode = opcode::write::<Reservation>(b'p', 201);
const RELEASE: Opcode = opcode::write::<Reservation>(b'p', 202);
const PREEMPT: Opcode = opcode::write::<Preemption>(b'p', 203);

/// A request of linux/pr.h. The device's own refusal comes as a positive number.
struct Request<T> {
    opcode: Opcode,
    words: T,
}

// SAFETY: each opcode above only reads the structure whose size is in it, and a request is made by
// `call` with just that structure, which lives for as long as the request.
#[allow(unsafe_code)]
unsafe impl<T> Ioctl for Request<T> {
    type Output = i32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut libc::c_void {
        std::ptr::from_mut(&mut self.words).cast()
    }

    // SAFETY: nothing is read through the pointer.
    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut libc::c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

#[allow(unsafe_code)]
fn call<T>(device: &File, opcode: Opcode, words: T) -> rustix::io::Result<i32> {
    let request = Request { opcode, words };
    // SAFETY: the opcode is one of those above, with its own structure, as in linux/pr.h.
    unsafe { ioctl(device, request) }
}

fn register(device: &File, old_key: u64, new_key: u64, flags: u32) -> rustix::io::Result<i32> {
    let words = Registration {
        old_key,
        new_key,
        flags,
        pad: 0,
    };
    call(device, REGISTER, words)
}

fn preempt(device: &File, old_key: u64, new_key: u64) -> rustix::io::Result<i32> {
    let words = Preemption {
        old_key,
        new_key,
        kind: KIND,
        flags: 0,
    };
    call(device, PREEMPT, words)
}

/// What became of a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// The other node can't write.
    Reserved,
    /// The device, its driver or this kernel knows no reservations; what it said.
    NotKnown(String),
}

/// A node's key: the same after a reboot, and no other node's. 0 is no key.
pub fn key(cluster: &str, node: &str) -> u64 {
    let digest = blake3::hash(format!("{cluster}\n{node}").as_bytes());
    let mut eight = [0; 8];
    eight.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_be_bytes(eight).max(1)
}

/// Reserves the device for `mine`, and takes it from `theirs`. It waits for the device.
///
/// # Errors
/// Somebody else holds it; in words.
pub fn hold(device: &File, mine: u64, theirs: u64) -> Result<Held, String> {
    match register(device, 0, mine, IGNORE_KEY) {
        Ok(0) => {}
        Ok(refused) => return Err(format!("not registered: the device says {refused:#x}")),
        // A partition, a loop device, a driver without it; a device that fails says EIO.
        Err(error @ (rustix::io::Errno::IO | rustix::io::Errno::NODEV)) => {
            return Err(format!("not registered: {error}"));
        }
        Err(error) => return Ok(Held::NotKnown(error.to_string())),
    }
    let words = Reservation {
        key: mine,
        kind: KIND,
        flags: 0,
    };
    match call(device, RESERVE, words) {
        Ok(0) => {
            // The other node's registration, of a time when it ran there, would let it write. Where
            // it has none this is refused, and all is well.
            let _ = preempt(device, theirs, mine);
            Ok(Held::Reserved)
        }
        // The other node holds it. The right to run says that it may not.
        Ok(conflict) => match preempt(device, theirs, mine) {
            Ok(0) => Ok(Held::Reserved),
            Ok(_) => Err(format!(
                "somebody who is not of this cluster holds it ({conflict:#x})"
            )),
            Err(error) => Err(format!("the other node's hold was not taken: {error}")),
        },
        Err(error) => Err(format!("not reserved: {error}")),
    }
}

/// Gives it up. It waits for the device.
///
/// # Errors
/// The device fails; in words.
pub fn release(device: &File, mine: u64) -> Result<(), String> {
    let words = Reservation {
        key: mine,
        kind: KIND,
        flags: 0,
    };
    // What is not held can't be released: refused is as good as done.
    let failed = |error: rustix::io::Errno| error == rustix::io::Errno::IO;
    match call(device, RELEASE, words) {
        Err(error) if failed(error) => return Err(error.to_string()),
        _ => {}
    }
    match register(device, mine, 0, 0) {
        Err(error) if failed(error) => Err(error.to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_the_kernels_header() {
        // _IOW('p', 200, struct pr_registration) and so on: direction, size, kind, number.
        let written = |size: u32, number: u32| (1 << 30) | (size << 16) | (0x70 << 8) | number;
        for (opcode, size, number) in [
            (REGISTER, 24, 200),
            (RESERVE, 16, 201),
            (RELEASE, 16, 202),
            (PREEMPT, 24, 203),
        ] {
            assert_eq!(opcode, written(size, number));
        }
    }

    #[test]
    fn keys_are_of_a_node_and_a_file_knows_none() {
        assert_eq!(key("shop", "alpha"), key("shop", "alpha"));
        assert_ne!(key("shop", "alpha"), key("shop", "beta"));
        assert_ne!(key("shop", "alpha"), key("till", "alpha"));
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(hold(&file, 1, 2), Ok(Held::NotKnown(_))));
        assert_eq!(release(&file, 1), Ok(()));
    }
}
