//! What quinn asks of the data-plane thread's runtime: timers, tasks, and UDP sockets that wake it no
//! more often than there is something to do.
//!
//! quinn's own binding to tokio costs a replicated write three needless wake-ups on each node
//! (docs/performance.md has the count): its sockets are watched for room to send, so that every
//! datagram that the receiver takes wakes its sender; and each datagram received arms the timer of its
//! acknowledgement, which is nearly always sent and forgotten before it is due. Here a socket is watched for
//! room only while it has none, and a timer stays armed for a near time as long as it moves. The clock that quinn asks
//! several times for each datagram is read once for all that is done at a time.

#![allow(unsafe_code)] // The runtime's watching of a descriptor for one direction is an unsafe call.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Sleep, sleep_until};

use crate::shell::runtime::{moment, time_passed};

/// The runtime of a data-plane thread, as quinn sees it.
#[derive(Debug)]
pub(super) struct ThreadRuntime;

impl Runtime for ThreadRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(NearTimer {
            deadline: at,
            armed: at,
            sleep: Box::pin(sleep_until(at.into())),
        })
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(WatchedSocket::new(socket, usize::MAX)?))
    }

    fn now(&self) -> Instant {
        moment()
    }
}

/// A timer whose owner moves it with every datagram. Moving the runtime's timer to an earlier time than the
/// thread last slept for costs two system calls, which the timer of each acknowledgement would: it is nearly
/// always answered and forgotten before it is due. So the runtime's timer is never armed for later than
/// [`NEAR`] while its owner moves it, and follows: moving it later costs none. Once nothing has moved it for that
/// long, it fires, and is armed for what is truly due.
struct NearTimer {
    /// When it is due.
    deadline: Instant,
    /// When the runtime wakes it; never after `deadline`.
    armed: Instant,
    sleep: Pin<Box<Sleep>>,
}

/// As long as the wait for an acknowledgement ([`super::Tuning`]'s `ack_delay`), the earliest that a timer is
/// usually due: what is armed in one turn for this time from now is not before what a former turn armed.
const NEAR: Duration = Duration::from_millis(1);
/// The runtime's clock ticks once in a millisecond: moving a timer by less is of no use.
const STEP: Duration = Duration::from_micros(250);

impl NearTimer {
    fn arm(&mut self, at: Instant) {
        self.armed = at;
        self.sleep.as_mut().reset(at.into());
    }
}

impl fmt::Debug for NearTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NearTimer({:?})", self.deadline)
    }
}

impl AsyncTimer for NearTimer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.deadline = at;
        let near = at.min(moment() + NEAR);
        // A sleep that is over (its time has passed) has to be armed anew in any case.
        if near < self.armed || near > self.armed + STEP || self.sleep.is_elapsed() {
            self.arm(near);
        }
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(Future::poll(self.sleep.as_mut(), cx));
            let deadline = self.deadline;
            time_passed();
            if moment() >= deadline {
                return Poll::Ready(());
            }
            self.arm(deadline);
        }
    }
}

/// A QUIC endpoint at this address for little traffic, which no error of its socket ends: for who is listened to, or
/// dials, for as long as the process runs.
///
/// # Errors
///
/// There is no socket at this address, or it can't be set up.
///
/// # Panics
///
/// Outside a tokio runtime.
pub(in crate::shell) fn lasting_endpoint(
    address: SocketAddr,
    server: Option<quinn::ServerConfig>,
) -> io::Result<quinn::Endpoint> {
    let socket = Arc::new(WatchedSocket::new(UdpSocket::bind(address)?, 1)?);
    let config = quinn::EndpointConfig::default();
    quinn::Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(ThreadRuntime))
}

/// A UDP socket that is watched for datagrams always, for room to send only while it has none.
pub(super) struct WatchedSocket {
    socket: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// The last attempt to send found no room.
    is_full: AtomicBool,
    /// Nothing is received before this is over.
    rest: Rest,
    receive_segments: usize,
}

/// quinn ends an endpoint with all its connections, for good, at the first error of its socket. None is for good: a
/// network that is down or memory that is short is told by one, too. So it is told in the log, and tried again.
#[derive(Debug, Default)]
struct Rest {
    /// Looked at first: locking costs something for each datagram.
    is_on: AtomicBool,
    sleep: Mutex<Option<Pin<Box<Sleep>>>>,
}

/// A socket that failed is tried again after.
const REST: Duration = Duration::from_millis(100);

impl Rest {
    fn begin(&self) {
        let sleep = sleep_until((moment() + REST).into());
        *self.lock() = Some(Box::pin(sleep));
        self.is_on.store(true, Ordering::Relaxed);
    }

    fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_on.load(Ordering::Relaxed) {
            let mut sleep = self.lock();
            if let Some(sleep) = &mut *sleep {
                ready!(Future::poll(sleep.as_mut(), cx));
            }
            *sleep = None;
            self.is_on.store(false, Ordering::Relaxed);
        }
        Poll::Ready(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pin<Box<Sleep>>>> {
        self.sleep.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WatchedSocket {
    /// `segments`: the most datagrams joined to one buffer that it announces. quinn takes 32 ×
    /// segments × datagram bytes of memory for them, 13 MiB where 2 do.
    pub(super) fn new(socket: UdpSocket, segments: usize) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self {
            receive_segments: segments.min(state.gro_segments()),
            socket: watch(socket, Interest::READABLE)?,
            state,
            is_full: AtomicBool::new(false),
            rest: Rest::default(),
        })
    }
}

/// Has the runtime wake whoever waits for this of the socket.
fn watch(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: a `UdpSocket` owns its descriptor, always names the same one, and closes it only when
    // it is dropped, after the `AsyncFd` around it has taken it out of the runtime's set.
    let watched = unsafe { AsyncFd::register_with_interest(socket, interest) };
    watched.map_err(|refused| refused.into_parts().1)
}

impl fmt::Debug for WatchedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WatchedSocket({:?})", self.socket.get_ref())
    }
}

impl AsyncUdpSocket for WatchedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room {
            socket: self,
            watch: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self
            .state
            .send(UdpSockRef::from(self.socket.get_ref()), transmit);
        if transmit.segment_size.is_some() {
            // Several datagrams, which takes a while: the next ones are not sent at the same time.
            time_passed();
        }
        if let Err(error) = &sent
            && error.kind() == io::ErrorKind::WouldBlock
        {
            self.is_full.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.rest.poll_over(cx));
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            let received = guard.try_io(|socket| {
                self.state
                    .recv(UdpSockRef::from(socket.get_ref()), buffers, meta)
            });
            // (quinn stops for other tasks by what receiving takes.)
            time_passed();
            let Ok(received) = received else {
                continue;
            };
            if let Err(error) = received {
                if error.kind() == io::ErrorKind::ConnectionReset {
                    // Means nothing here, and a stranger may cause it: no reason to rest.
                    continue;
                }
                tracing::warn!("a socket of the link failed, and is tried again: {error}");
                self.rest.begin();
                continue;
            }
            // Fewer than there was room for: there are no more. The runtime hears of the next one
            // anew, so asking the kernel whether there is one can be spared.
            if received.as_ref().is_ok_and(|count| *count < buffers.len()) {
                guard.clear_ready();
            }
            return Poll::Ready(received);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.receive_segments
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Whether there is room to send, for one connection.
struct Room {
    socket: Arc<WatchedSocket>,
    /// A second descriptor of the socket, watched while there is no room.
    watch: Option<AsyncFd<UdpSocket>>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Room({:?})", self.socket)
    }
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.watch.is_none() {
            if !self.socket.is_full.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
            let again = self.socket.socket.get_ref().try_clone()?;
            self.watch = Some(watch(again, Interest::WRITABLE)?);
        }
        if let Some(watch) = &self.watch {
            let _ready = ready!(watch.poll_write_ready(cx))?;
        }
        self.watch = None;
        self.socket.is_full.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn an_error_is_not_the_end_of_a_socket() {
        let bind = || UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let (ours, theirs) = (bind(), bind());
        let (here, there) = (
            ours.local_addr().expect("bound"),
            theirs.local_addr().expect("bound"),
        );
        drop(theirs);
        // Nobody is there: the next attempt to receive is told so.
        ours.connect(there).expect("connected");
        ours.send(b"?").expect("sent");
        let socket = WatchedSocket::new(ours, 1).expect("watched");
        let theirs = UdpSocket::bind(there).expect("the address is free");
        theirs.send_to(b"here", here).expect("sent");
        let mut bytes = [0; 64];
        let mut meta = [RecvMeta::default()];
        let received = poll_fn(|cx| {
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            socket.poll_recv(cx, &mut buffers, &mut meta)
        });
        assert_eq!(received.await.expect("no error"), 1);
        assert_eq!(&bytes[..meta[0].len], b"here");
    }
}
