//! Persistent reservations of a shared disk (linux/pr.h; SCSI-3, NVMe): the device itself refuses the
//! other node's writes.
//!
//! Each node has a key of its own. Whoever holds the disk registers, reserves it for those who are
//! registered, and takes the other node's registration away.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// A device that may be reserved. Each request waits for it, and answers 0 or the device's refusal.
pub trait Reservable {
    /// Gives this node the key `new_key`, 0 for none, in place of `old_key`.
    ///
    /// # Errors
    /// The kernel's.
    fn register(&self, old_key: u64, new_key: u64, flags: u32) -> rustix::io::Result<i32>;

    /// Reserves it for those who are registered.
    ///
    /// # Errors
    /// The kernel's.
    fn reserve(&self, key: u64) -> rustix::io::Result<i32>;

    /// Ends the reservation.
    ///
    /// # Errors
    /// The kernel's.
    fn release(&self, key: u64) -> rustix::io::Result<i32>;

    /// Takes `old_key`'s registration, and its reservation, away for `new_key`.
    ///
    /// # Errors
    /// The kernel's.
    fn preempt(&self, old_key: u64, new_key: u64) -> rustix::io::Result<i32>;
}

impl Reservable for File {
    fn register(&self, old_key: u64, new_key: u64, flags: u32) -> rustix::io::Result<i32> {
        let words = Registration {
            old_key,
            new_key,
            flags,
            pad: 0,
        };
        call(self, REGISTER, words)
    }

    fn reserve(&self, key: u64) -> rustix::io::Result<i32> {
        let words = Reservation {
            key,
            kind: KIND,
            flags: 0,
        };
        call(self, RESERVE, words)
    }

    fn release(&self, key: u64) -> rustix::io::Result<i32> {
        let words = Reservation {
            key,
            kind: KIND,
            flags: 0,
        };
        call(self, RELEASE, words)
    }

    fn preempt(&self, old_key: u64, new_key: u64) -> rustix::io::Result<i32> {
        let words = Preemption {
            old_key,
            new_key,
            kind: KIND,
            flags: 0,
        };
        call(self, PREEMPT, words)
    }
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

/// What a device's answer to a registration means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Registered,
    /// The device knows registrations, or could not be asked.
    Refused,
    /// It knows no registrations, or has something else to tell first.
    NotKnown,
}

/// The kernel's `pr_status`, of older kernels SCSI's result (status in the lowest byte, then message,
/// host and driver) or that of an `NVMe` disk.
fn judge(answer: i32) -> Answer {
    let status = answer & 0xff;
    match (answer, status) {
        (0, _) => Answer::Registered,
        // The path or the host's adapter has failed.
        _ if answer & 0xff_0000 != 0 => Answer::Refused,
        // SCSI's and NVMe's reservation conflict; busy, reserved in the old way, the queue is full.
        (_, 0x18 | 0x83 | 0x08 | 0x22 | 0x28) => Answer::Refused,
        // A check condition is all that is left of "no such command" (`PR_STS_IOERR`).
        _ => Answer::NotKnown,
    }
}

/// A node whose registration was taken away, or whose disk was reset, is told so in place of the answer
/// to its next command; the one after that is answered.
const TOLD: u32 = 3;

/// Reserves the device for `mine`, and takes it from `theirs`. It waits for the device, and asks nothing
/// more of it once it is given up.
///
/// # Errors
/// Somebody else holds it, or it was given up; in words.
pub fn hold(
    device: &impl Reservable,
    mine: u64,
    theirs: u64,
    given_up: &AtomicBool,
) -> Result<Held, String> {
    let go_on = || {
        let over = given_up.load(Ordering::SeqCst);
        (!over).then_some(()).ok_or("it took too long".to_owned())
    };
    for told in 1.. {
        go_on()?;
        match device.register(0, mine, IGNORE_KEY) {
            Ok(answer) => match judge(answer) {
                Answer::Registered => break,
                Answer::Refused => {
                    return Err(format!("not registered: the device says {answer:#x}"));
                }
                Answer::NotKnown if told < TOLD => {}
                Answer::NotKnown => {
                    return Ok(Held::NotKnown(format!("the device says {answer:#x}")));
                }
            },
            // A partition, a loop device, a driver without it; a device that fails says EIO.
            Err(error @ (rustix::io::Errno::IO | rustix::io::Errno::NODEV)) => {
                return Err(format!("not registered: {error}"));
            }
            Err(error) => return Ok(Held::NotKnown(error.to_string())),
        }
    }
    let mut taken = false;
    loop {
        let conflict = match answered(go_on, || device.reserve(mine))? {
            Ok(0) => break,
            Ok(conflict) if is_conflict(conflict) => conflict,
            Ok(answer) => return Err(format!("not reserved: the device says {answer:#x}")),
            Err(error) => return Err(format!("not reserved: {error}")),
        };
        let foreign = || format!("somebody who is not of this cluster holds it ({conflict:#x})");
        if taken {
            return Err(foreign());
        }
        // The other node holds it. The right to run says that it may not.
        let not_taken = |why: String| format!("the other node's hold was not taken: {why}");
        match answered(go_on, || device.preempt(theirs, mine))? {
            // Whether it held it, or was only registered, the device says when it is asked again.
            Ok(0) => taken = true,
            Ok(answer) if is_conflict(answer) => return Err(foreign()),
            Ok(answer) => return Err(not_taken(format!("the device says {answer:#x}"))),
            Err(error) => return Err(not_taken(error.to_string())),
        }
    }
    if !taken {
        // The other node's registration, of a time when it ran there, would let it write. Where it has
        // none this is refused, and all is well.
        let _ = answered(go_on, || device.preempt(theirs, mine))?;
    }
    Ok(Held::Reserved)
}

/// SCSI's and `NVMe`'s reservation conflict, from the device itself.
fn is_conflict(answer: i32) -> bool {
    answer & 0xff_0000 == 0 && matches!(answer & 0xff, 0x18 | 0x83)
}

/// What a device that is registered with answers to the question, and not what it tells first: it is asked
/// again where it neither does it nor tells of a conflict, [`TOLD`] times at most.
///
/// # Errors
/// It was given up.
fn answered(
    go_on: impl Fn() -> Result<(), String>,
    ask: impl Fn() -> rustix::io::Result<i32>,
) -> Result<rustix::io::Result<i32>, String> {
    for _ in 1..TOLD {
        go_on()?;
        match ask() {
            Ok(answer) if answer != 0 && !is_conflict(answer) => {}
            other => return Ok(other),
        }
    }
    go_on()?;
    Ok(ask())
}

/// Gives it up. It waits for the device.
///
/// # Errors
/// The device fails; in words.
pub fn release(device: &impl Reservable, mine: u64) -> Result<(), String> {
    // What is not held can't be released: refused is as good as done.
    let failed = |error: rustix::io::Errno| error == rustix::io::Errno::IO;
    match device.release(mine) {
        Err(error) if failed(error) => return Err(error.to_string()),
        _ => {}
    }
    match device.register(mine, 0, 0) {
        Err(error) if failed(error) => Err(error.to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::VecDeque;

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
        let go_on = AtomicBool::new(false);
        assert!(matches!(hold(&file, 1, 2, &go_on), Ok(Held::NotKnown(_))));
        assert_eq!(release(&file, 1), Ok(()));
    }

    /// A device with answers to come, which keeps what it was asked.
    #[derive(Default)]
    struct Scripted {
        answers: RefCell<VecDeque<i32>>,
        asked: RefCell<Vec<&'static str>>,
        /// The path comes back only after whoever waits has given up.
        hangs_at: Option<&'static str>,
        given_up: AtomicBool,
    }

    impl Scripted {
        fn with(answers: &[i32]) -> Self {
            Self {
                answers: RefCell::new(answers.iter().copied().collect()),
                ..Self::default()
            }
        }

        #[allow(clippy::unnecessary_wraps)] // as the device's own answers are
        fn ask(&self, what: &'static str) -> rustix::io::Result<i32> {
            self.asked.borrow_mut().push(what);
            if self.hangs_at == Some(what) {
                self.given_up.store(true, Ordering::SeqCst);
            }
            Ok(self.answers.borrow_mut().pop_front().unwrap_or(0))
        }

        fn held(&self) -> Result<Held, String> {
            hold(self, 1, 2, &self.given_up)
        }
    }

    impl Reservable for Scripted {
        fn register(&self, _: u64, _: u64, _: u32) -> rustix::io::Result<i32> {
            self.ask("register")
        }
        fn reserve(&self, _: u64) -> rustix::io::Result<i32> {
            self.ask("reserve")
        }
        fn release(&self, _: u64) -> rustix::io::Result<i32> {
            self.ask("release")
        }
        fn preempt(&self, _: u64, _: u64) -> rustix::io::Result<i32> {
            self.ask("preempt")
        }
    }

    #[test]
    fn a_disk_that_knows_no_reservations_is_told_from_one_that_refuses() {
        for answer in [2, 0x0800_0002, 0x4001] {
            let device = Scripted::with(&[answer; 3]);
            let Ok(Held::NotKnown(why)) = device.held() else {
                panic!("{answer:#x}");
            };
            assert!(why.contains(&format!("{answer:#x}")), "{why}");
            assert_eq!(*device.asked.borrow(), ["register"; 3]);
        }
        for answer in [0x18, 0x83, 0x4083, 0x08, 0x1_0000, 0xe_0000, 0xf_0000] {
            let refused = Scripted::with(&[answer]).held();
            let why = refused.expect_err("it is refused");
            assert!(why.contains(&format!("{answer:#x}")), "{why}");
        }
    }

    #[test]
    fn a_disk_that_tells_of_its_reset_first_is_reserved_all_the_same() {
        let device = Scripted::with(&[2, 0, 0x18, 0]);
        assert_eq!(device.held(), Ok(Held::Reserved));
        let asked = ["register", "register", "reserve", "preempt", "reserve"];
        assert_eq!(*device.asked.borrow(), asked);
    }

    #[test]
    fn what_is_told_first_is_no_conflict_and_no_refusal() {
        let told_at_reserve = ["register", "reserve", "reserve", "preempt"];
        let told_at_preempt = ["register", "reserve", "preempt", "preempt"];
        for (answers, asked) in [
            ([0, 2, 0, 0], told_at_reserve),
            ([0, 8, 0, 0x18], told_at_reserve),
            ([0, 0, 2, 0], told_at_preempt),
        ] {
            let device = Scripted::with(&answers);
            assert_eq!(device.held(), Ok(Held::Reserved));
            assert_eq!(*device.asked.borrow(), asked);
        }
        // The one that holds it is told first, too.
        let device = Scripted::with(&[0, 0x83, 2, 0, 2, 0]);
        assert_eq!(device.held(), Ok(Held::Reserved));
        let asked = [
            "register", "reserve", "preempt", "preempt", "reserve", "reserve",
        ];
        assert_eq!(*device.asked.borrow(), asked);
        for busy in [2, 0x08, 0x28, 0x1_0018] {
            let device = Scripted::with(&[0, busy, busy, busy]);
            let why = device.held().expect_err("it is not reserved");
            assert!(why.contains(&format!("{busy:#x}")), "{why}");
            let asked = ["register", "reserve", "reserve", "reserve"];
            assert_eq!(*device.asked.borrow(), asked, "nothing is taken away");
        }
    }

    #[test]
    fn a_registration_that_was_taken_away_is_no_reservation() {
        // A third one has it, and the other node was only registered.
        let device = Scripted::with(&[0, 0x18, 0, 0x18]);
        let why = device.held().expect_err("it is not reserved");
        assert!(why.contains("not of this cluster"), "{why}");
        let asked = ["register", "reserve", "preempt", "reserve"];
        assert_eq!(*device.asked.borrow(), asked);
    }

    #[test]
    fn what_was_given_up_takes_nothing_from_the_other_node() {
        let asked = ["register", "reserve", "preempt"];
        for (at, last) in asked.iter().enumerate().take(2) {
            let device = Scripted {
                hangs_at: Some(last),
                ..Scripted::with(&[0, 0x18, 0])
            };
            let why = device.held().expect_err("nobody waits for it");
            assert!(why.contains("too long"), "{why}");
            assert_eq!(*device.asked.borrow(), asked[..=at]);
        }
    }
}
