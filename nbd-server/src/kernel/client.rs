//! Asking the kernel's nbd driver, and naming what it refuses.

use std::io;
use std::os::fd::AsFd as _;

use super::message::{
    self, Acknowledged, Connect, DeviceState, Family, Reconfigure, acknowledged, read_family,
    read_index, read_status,
};
use super::wire::Malformed;

/// Carries requests to the kernel. A trait, so that the client is tried without one.
pub trait Transport: Send {
    /// Sends a request.
    ///
    /// # Errors
    /// The system's answer.
    fn send(&mut self, request: &[u8]) -> io::Result<()>;

    /// The next datagram of the answer.
    ///
    /// # Errors
    /// The system's answer, a time-out included.
    fn receive(&mut self) -> io::Result<Vec<u8>>;
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        (**self).send(request)
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        (**self).receive()
    }
}

/// Why the kernel does not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelFault {
    /// The module is not loaded.
    #[error("this kernel shows no network block devices here: its module `nbd` is not loaded")]
    NoModule,
    /// `CAP_SYS_ADMIN` is missing.
    #[error("the kernel does not let this process set up devices: it lacks CAP_SYS_ADMIN")]
    NotPermitted,
    /// The device is set up, or somebody has it open still.
    #[error("the device is in use")]
    Busy,
    /// There is no device of that number, and none can be made.
    #[error("there is no such device")]
    NoDevice,
    /// Not set up, or set up by somebody else.
    #[error("the device is not set up under this identifier")]
    NotOurs,
    /// Another refusal.
    #[error("the kernel refused {doing}: {error}")]
    Refused {
        /// The command.
        doing: &'static str,
        /// Its errno.
        error: io::Error,
    },
    /// The kernel could not be asked.
    #[error("the kernel's nbd driver cannot be asked ({doing}): {error}")]
    Io {
        /// The command.
        doing: &'static str,
        /// The system's answer.
        error: io::Error,
    },
    /// Its answer makes no sense.
    #[error("the kernel's answer to {doing} makes no sense: {error}")]
    Answer {
        /// The command.
        doing: &'static str,
        /// How.
        error: Malformed,
    },
}

impl KernelFault {
    /// What a person can do about it.
    pub fn next(&self) -> String {
        match self {
            Self::NoModule => {
                "load it: `modprobe nbd` (as root; a line `nbd` in /etc/modules-load.d/ does it at every boot). The module belongs to the kernel's package: linux-image-VERSION on Debian, linux-modules-extra-VERSION on Ubuntu, kernel-modules-core or kernel-modules-extra on Fedora".to_owned()
            }
            Self::NotPermitted => {
                "run the daemon as root, or give it CAP_SYS_ADMIN (systemd: AmbientCapabilities=CAP_SYS_ADMIN)".to_owned()
            }
            Self::Busy => {
                "end who uses it, or name another device with --device, or none: then a free one is taken".to_owned()
            }
            Self::NoDevice => {
                "name a device that exists (`ls /dev/nbd*`), or none: then a free one is taken".to_owned()
            }
            Self::NotOurs => "see `kagami status`, and attach it again".to_owned(),
            Self::Refused { .. } | Self::Io { .. } | Self::Answer { .. } => {
                "the kernel's log says more: `dmesg | grep nbd`".to_owned()
            }
        }
    }
}

/// The kernel's nbd driver.
#[derive(Debug)]
pub struct Nbd<T> {
    transport: T,
    family: Family,
    sequence: u32,
}

mod errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EBUSY: i32 = 16;
    pub const ENODEV: i32 = 19;
    pub const EINVAL: i32 = 22;
}

impl<T: Transport> Nbd<T> {
    /// Finds the driver.
    ///
    /// # Errors
    /// [`KernelFault::NoModule`], or it can't be asked.
    pub fn new(mut transport: T) -> Result<Self, KernelFault> {
        let doing = "GETFAMILY";
        let answer = exchange(&mut transport, doing, &message::get_family(1), 1);
        let answer = answer.map_err(|fault| match fault {
            KernelFault::Refused { error, .. } if error.raw_os_error() == Some(errno::ENOENT) => {
                KernelFault::NoModule
            }
            other => other,
        })?;
        let family = read_family(&answer).map_err(|error| KernelFault::Answer { doing, error })?;
        Ok(Self {
            transport,
            family,
            sequence: 1,
        })
    }

    /// The driver's numbers.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Sets a device up, and says which.
    ///
    /// # Errors
    /// [`KernelFault`]
    pub fn connect(&mut self, connect: &Connect<'_>) -> Result<u32, KernelFault> {
        let sequence = self.next();
        let doing = "CONNECT";
        let request = connect.encode(self.family, sequence);
        let answer = self.ask(doing, &request)?;
        read_index(&answer)
            .ok()
            .or(connect.index)
            .ok_or(KernelFault::Answer {
                doing,
                error: Malformed("it names no device"),
            })
    }

    /// Offers a new socket to a device. The kernel takes it only where the old connection is dead,
    /// and says nothing else where it is not: whether the other end of the socket hangs up
    /// (after this process closed its copy of this end) is the only sign.
    ///
    /// # Errors
    /// [`KernelFault::NotOurs`] where the device is not set up under the identifier.
    pub fn reconfigure(&mut self, reconfigure: &Reconfigure<'_>) -> Result<(), KernelFault> {
        let sequence = self.next();
        let request = reconfigure.encode(self.family, sequence);
        self.ask("RECONFIGURE", &request)
            .map(drop)
            .map_err(not_ours)
    }

    /// Takes a device down. There is no check whether somebody uses it.
    ///
    /// # Errors
    /// [`KernelFault`]
    pub fn disconnect(&mut self, index: u32) -> Result<(), KernelFault> {
        let sequence = self.next();
        let request = message::disconnect(self.family, sequence, index);
        self.ask("DISCONNECT", &request).map(drop).map_err(not_ours)
    }

    /// All devices there are.
    ///
    /// # Errors
    /// [`KernelFault`]
    pub fn status(&mut self) -> Result<Vec<DeviceState>, KernelFault> {
        let sequence = self.next();
        let request = message::status(self.family, sequence);
        Ok(read_status(&self.ask("STATUS", &request)?))
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    fn ask(&mut self, doing: &'static str, request: &[u8]) -> Result<Vec<u8>, KernelFault> {
        let answer = exchange(&mut self.transport, doing, request, self.sequence);
        answer.map_err(|fault| match fault {
            KernelFault::Refused { doing, error } => match error.raw_os_error() {
                Some(errno::EPERM) => KernelFault::NotPermitted,
                Some(errno::EBUSY) => KernelFault::Busy,
                Some(errno::ENODEV) => KernelFault::NoDevice,
                // The family is gone: the module was removed.
                Some(errno::ENOENT) => KernelFault::NoModule,
                _ => KernelFault::Refused { doing, error },
            },
            other => other,
        })
    }
}

fn not_ours(fault: KernelFault) -> KernelFault {
    match fault {
        KernelFault::Refused { error, .. } if error.raw_os_error() == Some(errno::EINVAL) => {
            KernelFault::NotOurs
        }
        other => other,
    }
}

/// Datagrams of one answer; more is no answer to anything asked here.
const DATAGRAMS_MAX: usize = 64;

/// Sends a request, and gathers what comes up to its acknowledgement.
fn exchange(
    transport: &mut impl Transport,
    doing: &'static str,
    request: &[u8],
    sequence: u32,
) -> Result<Vec<u8>, KernelFault> {
    let io = |error| KernelFault::Io { doing, error };
    transport.send(request).map_err(io)?;
    let mut answer = Vec::new();
    for _ in 0..DATAGRAMS_MAX {
        let datagram = transport.receive().map_err(io)?;
        match acknowledged(&datagram, sequence) {
            Ok(Some(Acknowledged::Errno(errno))) => {
                let error = io::Error::from_raw_os_error(errno);
                return Err(KernelFault::Refused { doing, error });
            }
            Ok(end) => {
                answer.extend(datagram);
                if end.is_some() {
                    return Ok(answer);
                }
            }
            Err(error) => return Err(KernelFault::Answer { doing, error }),
        }
    }
    let error = Malformed("it has no end");
    Err(KernelFault::Answer { doing, error })
}

/// One end of a socket pair for the kernel, the other for us.
///
/// # Errors
/// No descriptors or no memory.
pub fn socket_pair() -> io::Result<(
    std::os::unix::net::UnixStream,
    std::os::unix::net::UnixStream,
)> {
    std::os::unix::net::UnixStream::pair()
}

/// Whether the other end of a socket is closed. After [`Nbd::reconfigure`], with this process's copy
/// of the kernel's end closed: the kernel did not take it.
///
/// # Errors
/// The socket can't be asked.
pub fn is_hung_up(socket: &std::os::unix::net::UnixStream) -> io::Result<bool> {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(
        socket.as_fd(),
        rustix::event::PollFlags::empty(),
    )];
    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default()))?;
    Ok(fds[0]
        .revents()
        .intersects(rustix::event::PollFlags::HUP | rustix::event::PollFlags::ERR))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::kernel::wire::{Builder, ERROR};

    /// Answers with what was put in, and keeps what was asked.
    #[derive(Debug, Default)]
    struct Script {
        answers: VecDeque<io::Result<Vec<u8>>>,
    }

    impl Transport for Script {
        fn send(&mut self, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn receive(&mut self) -> io::Result<Vec<u8>> {
            let nothing = || Err(io::ErrorKind::TimedOut.into());
            self.answers.pop_front().unwrap_or_else(nothing)
        }
    }

    fn ack(sequence: u32, errno: i32) -> io::Result<Vec<u8>> {
        let mut bytes = 20u32.to_ne_bytes().to_vec();
        bytes.extend(ERROR.to_ne_bytes());
        bytes.extend([0, 0]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend((-errno).to_ne_bytes());
        Ok(bytes)
    }

    fn family() -> io::Result<Vec<u8>> {
        let family = Builder::new(16, 1, 1, 2).bytes(1, &0x22u16.to_ne_bytes());
        Ok(family.finish())
    }

    /// A driver that answers its next command so.
    fn driver(answers: impl IntoIterator<Item = io::Result<Vec<u8>>>) -> Nbd<Script> {
        let begin = [family(), ack(1, 0)];
        let answers = begin.into_iter().chain(answers).collect();
        Nbd::new(Script { answers }).expect("found")
    }

    #[test]
    fn without_the_module_it_is_named_with_its_package() {
        let answers = [ack(1, 2)].into();
        let fault = Nbd::new(Script { answers }).expect_err("not there");
        assert!(matches!(fault, KernelFault::NoModule));
        let words = format!("{fault}; {}", fault.next());
        assert!(words.contains("`nbd`") && words.contains("modprobe nbd"));
        assert!(words.contains("linux-image"), "{words}");
    }

    #[test]
    fn refusals_have_names() {
        let refused = |errno| driver([ack(2, errno)]).disconnect(0).expect_err("refused");
        assert!(matches!(refused(1), KernelFault::NotPermitted));
        assert!(refused(1).next().contains("CAP_SYS_ADMIN"));
        assert!(matches!(refused(16), KernelFault::Busy));
        assert!(matches!(refused(19), KernelFault::NoDevice));
        assert!(matches!(refused(22), KernelFault::NotOurs));
        assert!(matches!(refused(2), KernelFault::NoModule));
        assert!(matches!(refused(12), KernelFault::Refused { .. }));
    }

    #[test]
    fn silence_noise_and_old_answers() {
        let mut silent = driver([]);
        assert!(matches!(silent.status(), Err(KernelFault::Io { .. })));
        let mut noisy = driver([Ok(vec![1, 2, 3])]);
        assert!(matches!(noisy.status(), Err(KernelFault::Answer { .. })));
        // What answers an earlier question is passed over.
        let mut late = driver([ack(1, 16), ack(2, 0)]);
        assert_eq!(late.status().expect("answered"), []);
        let endless = (0..100).map(|_| family());
        let mut endless = driver(endless);
        assert!(matches!(endless.status(), Err(KernelFault::Answer { .. })));
    }

    #[test]
    fn a_socket_that_was_not_taken_hangs_up() {
        let (kernel, ours) = socket_pair().expect("a pair");
        assert!(!is_hung_up(&ours).expect("asked"));
        drop(kernel);
        assert!(is_hung_up(&ours).expect("asked"));
    }
}
