//! Generic netlink sockets: one to ask with, one that listens for dead links.
//!
//! `setsockopt` with `NETLINK_ADD_MEMBERSHIP` has no safe wrapper (group numbers of generic families go
//! beyond the 32 that binding can name), nor has a descriptor's registration with the event queue.
#![allow(unsafe_code)]

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::panic::resume_unwind;
use std::time::Duration;
use std::{fs, io, thread};

use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
    sockopt,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::client::Transport;
use super::message::{Family, read_dead};

/// An answer must be there within: all commands are carried out before they are answered.
const PATIENCE: Duration = Duration::from_secs(30);
/// The machine's first process never leaves the first network namespace.
const FIRST_NETWORK: &str = "/proc/1/ns/net";
const OWN_NETWORK: &str = "/proc/thread-self/ns/net";
/// Answers are far shorter; the state of some hundred devices is the longest.
const DATAGRAM_MAX: usize = 64 << 10;

/// The socket that asks. Its calls block, up to 30 s.
#[derive(Debug)]
pub struct NetlinkSocket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

fn open(flags: SocketFlags) -> io::Result<OwnedFd> {
    let fd = in_first_network(move || {
        socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags | SocketFlags::CLOEXEC,
            Some(GENERIC),
        )
    })?;
    // The kernel gives the port and no group.
    bind(&fd, &SocketAddrNetlink::new(0, 0))?;
    Ok(fd)
}

/// Makes a socket in the network namespace of process 1, on a thread of its own; in this one's if that is the
/// same, or not to be entered.
fn in_first_network<F>(make: F) -> rustix::io::Result<OwnedFd>
where
    F: FnOnce() -> rustix::io::Result<OwnedFd> + Send,
{
    let (Ok(first), Ok(own)) = (fs::File::open(FIRST_NETWORK), fs::metadata(OWN_NETWORK)) else {
        return make();
    };
    if first.metadata().is_ok_and(|first| first.ino() == own.ino()) {
        return make();
    }
    let made = thread::scope(|scope| {
        let made = scope.spawn(|| {
            let network = Some(LinkNameSpaceType::Network);
            if let Err(errno) = move_into_link_name_space(first.as_fd(), network) {
                debug!(%errno, "the machine's first network namespace can't be entered");
            }
            make()
        });
        made.join()
    });
    made.unwrap_or_else(|panic| resume_unwind(panic))
}

impl NetlinkSocket {
    /// A socket of the machine's first network namespace: the nbd driver lives in that one alone, wherever
    /// the daemon does.
    ///
    /// # Errors
    /// The system's answer.
    pub fn new() -> io::Result<Self> {
        let fd = open(SocketFlags::empty())?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self {
            fd,
            buffer: vec![0; DATAGRAM_MAX],
        })
    }
}

impl Transport for NetlinkSocket {
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        let sent = send(&self.fd, request, SendFlags::empty())?;
        if sent == request.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((len, _)) => return Ok(self.buffer[..len].to_vec()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Hears of connections that the kernel holds for dead.
#[derive(Debug)]
pub struct Events {
    fd: AsyncFd<OwnedFd>,
    family: Family,
}

impl Events {
    /// Listens from now on. Inside a tokio runtime.
    ///
    /// # Errors
    /// The kernel has no such group, or the system refuses.
    pub fn listen(family: Family) -> io::Result<Self> {
        let group = family.group.ok_or(io::ErrorKind::Unsupported)?;
        let fd = open(SocketFlags::NONBLOCK)?;
        let value: libc::c_uint = group;
        // SAFETY: `fd` is an open socket for the whole call, and `value` lives through it and is as long
        // as is said.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                (&raw const value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: an `OwnedFd` names one open descriptor until it is dropped, and `AsyncFd` drops it only
        // after it left the event queue.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { fd, family })
    }

    /// Waits for dead links, and gives their devices' numbers. May give none.
    ///
    /// # Errors
    /// The socket failed. (Events that came too fast are lost without an error: the end of
    /// a session says the same, a little later.)
    pub async fn dead(&self) -> io::Result<Vec<u32>> {
        let mut buffer = [0; 4096];
        loop {
            let mut ready = self.fd.readable().await?;
            let received = ready.try_io(|fd| {
                let received = recv(fd.get_ref().as_fd(), &mut buffer[..], RecvFlags::empty());
                received.map(|(len, _)| len).map_err(io::Error::from)
            });
            match received {
                Ok(Ok(len)) => return Ok(read_dead(&buffer[..len], self.family)),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(Vec::new());
                }
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::client::{KernelFault, Nbd};

    /// A kernel is there in every test; its nbd driver may not be, and both are an answer.
    #[test]
    fn this_kernel_answers() {
        let Ok(socket) = NetlinkSocket::new() else {
            return; // a sandbox without netlink
        };
        match Nbd::new(socket) {
            Ok(nbd) => assert!(nbd.family().id > 0),
            Err(fault) => assert!(
                matches!(fault, KernelFault::NoModule | KernelFault::Io { .. }),
                "{fault}"
            ),
        }
    }
}
