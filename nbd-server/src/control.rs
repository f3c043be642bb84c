//! What the outside can do to a connection and learn of it: drain, cut off, wait for its end.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

/// How far a connection is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Serve.
    Running,
    /// Finish what is in flight, answer the rest with `NBD_ESHUTDOWN`, close.
    Draining,
    /// Finish what is in flight, read nothing more, close: a client that sends again is not told.
    Leaving,
    /// Stop at once: nothing is read or submitted any more.
    Aborted,
}

/// Shared between a connection's task and its handles.
#[derive(Debug)]
pub struct Control {
    /// Number of the connection, for logs.
    pub id: u64,
    /// Who the client is.
    pub peer: String,
    /// Where it connects from, if from anywhere: a file's permissions let the others in.
    pub address: Option<IpAddr>,
    mode: Cell<Mode>,
    waker: RefCell<Option<Waker>>,
    export: RefCell<Option<String>>,
    tls: Cell<bool>,
    slot: Cell<usize>,
    ended: Cell<bool>,
    end: Notify,
}

impl Control {
    /// A running connection.
    pub fn new(id: u64, peer: String, address: Option<IpAddr>) -> Self {
        Self {
            id,
            peer,
            address,
            mode: Cell::new(Mode::Running),
            waker: RefCell::default(),
            export: RefCell::default(),
            tls: Cell::new(false),
            slot: Cell::new(0),
            ended: Cell::new(false),
            end: Notify::new(),
        }
    }

    /// How far the connection is to go on.
    pub fn mode(&self) -> Mode {
        self.mode.get()
    }

    /// Never goes back: an aborted connection stays aborted.
    pub fn set_mode(&self, mode: Mode) {
        if mode > self.mode.get() {
            self.mode.set(mode);
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Registers the connection's task to be woken by [`set_mode`](Self::set_mode).
    pub fn watch(&self, cx: &Context<'_>) -> Mode {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(old) => old.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        self.mode.get()
    }

    /// Waits until the mode is at least `mode`.
    pub async fn reached(&self, mode: Mode) {
        std::future::poll_fn(|cx| {
            if self.watch(cx) >= mode {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// The export was chosen.
    pub fn set_export(&self, name: &str, tls: bool) {
        *self.export.borrow_mut() = Some(name.to_owned());
        self.tls.set(tls);
    }

    /// The export, once chosen.
    pub fn export(&self) -> Option<String> {
        self.export.borrow().clone()
    }

    /// Where it connects from, as long as it has chosen no export: anybody may be there.
    pub fn stranger(&self) -> Option<IpAddr> {
        self.address.filter(|_| self.export.borrow().is_none())
    }

    /// Where the server keeps the connection.
    pub fn slot(&self) -> usize {
        self.slot.get()
    }

    /// Set once, by the server.
    pub fn set_slot(&self, slot: usize) {
        self.slot.set(slot);
    }

    /// The connection is over and none of its requests is in flight.
    pub fn set_ended(&self) {
        self.ended.set(true);
        self.end.notify_waiters();
    }
}

/// A connection, from outside. Cheap to clone; dropping it changes nothing.
#[derive(Clone)]
pub struct SessionHandle(pub(crate) Rc<Control>);

impl SessionHandle {
    /// Number of the connection, as in the log.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Who the client is: an address, or the process at a Unix socket.
    pub fn peer(&self) -> &str {
        &self.0.peer
    }

    /// The export's canonical name, once it was chosen.
    pub fn export(&self) -> Option<String> {
        self.0.export()
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.0.tls.get()
    }

    /// Lets what is in flight finish and closes; new requests get `NBD_ESHUTDOWN`.
    pub fn drain(&self) {
        self.0.set_mode(Mode::Draining);
    }

    /// Reads nothing more, answers what is in flight, and closes. For a client that keeps what was
    /// not answered and sends it again on another connection: no request of it fails.
    pub fn leave(&self) {
        self.0.set_mode(Mode::Leaving);
    }

    /// Cuts the connection off: from now on nothing of it is submitted, and what is unread in its
    /// socket is dropped. What the device has already runs on; [`ended`](Self::ended) tells when
    /// that is over.
    pub fn abort(&self) {
        self.0.set_mode(Mode::Aborted);
    }

    /// Whether the connection is closed **and** the device has completed all its requests.
    pub fn has_ended(&self) -> bool {
        self.0.ended.get()
    }

    /// Waits until [`has_ended`](Self::has_ended): afterwards nothing of this connection can reach
    /// the device, so requests that it left unanswered may be given out again.
    pub async fn ended(&self) {
        loop {
            let end = self.0.end.notified();
            if self.0.ended.get() {
                return;
            }
            end.await;
        }
    }
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionHandle")
            .field("id", &self.0.id)
            .field("peer", &self.0.peer)
            .field("export", &self.export())
            .finish_non_exhaustive()
    }
}
