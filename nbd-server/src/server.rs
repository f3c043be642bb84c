//! The server: listeners, connections and their common end.
//!
//! It owns the connections' tasks and counts them. What is served is in [`Exports`]; who may
//! connect is decided for each listener by its [`TlsPolicy`] and, for Unix sockets, the file's
//! permissions.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use kagami_strangers::Strangers;
use slab::Slab;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle, spawn_local};

use crate::connection::{Connection, Inbox, Socket};
use crate::control::{Control, Mode, SessionHandle};
use crate::device::{BlockDevice, Refusal, RefusalKind};
use crate::error::SessionEnd;
use crate::export::Exports;
use crate::handshake::{Accepted, handshake};
use crate::limits::Limits;
use crate::listener::Listener;
use crate::negotiate::{Catalog, Terms};
use crate::session;
use crate::tls::TlsPolicy;

/// How long accepting pauses when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves block devices. Cheap to clone; all clones are one server.
pub struct Server<D> {
    inner: Rc<Inner<D>>,
}

struct Inner<D> {
    exports: Rc<Exports<D>>,
    limits: Limits,
    connections: RefCell<Slab<Rc<Control>>>,
    listeners: RefCell<Vec<JoinHandle<()>>>,
    next_id: Cell<u64>,
    closing: Cell<bool>,
    /// A connection ended.
    ended: Notify,
    strangers: Strangers,
}

/// An accepting socket of a server; dropping the handle changes nothing.
#[derive(Debug)]
pub struct ListenerHandle(AbortHandle);

impl ListenerHandle {
    /// Accepts no more clients; those that are connected stay.
    pub fn stop(&self) {
        self.0.abort();
    }
}

/// A socket to a client that is past its handshake already (the kernel's end of an attached
/// device, say).
#[derive(Debug)]
pub enum ClientSocket {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// Unix; one end of a socket pair will do.
    Unix(std::os::unix::net::UnixStream),
}

/// A socket that the server could not take over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptFault {
    /// The export refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The socket can't be used.
    #[error("the socket cannot be used: {0}")]
    Socket(#[from] io::Error),
    /// The bound on connections.
    #[error("there are {0} connections already, the most that the configuration allows")]
    TooManyConnections(usize),
}

impl<D> Clone for Server<D> {
    fn clone(&self) -> Self {
        Self {
            inner: Rc::clone(&self.inner),
        }
    }
}

impl<D: BlockDevice> Server<D> {
    /// A server without listeners.
    pub fn new(exports: Rc<Exports<D>>, limits: Limits) -> Self {
        Self {
            inner: Rc::new(Inner {
                exports,
                limits,
                connections: RefCell::default(),
                listeners: RefCell::default(),
                next_id: Cell::new(1),
                closing: Cell::new(false),
                ended: Notify::new(),
                strangers: Strangers::default(),
            }),
        }
    }

    /// What is served.
    pub fn exports(&self) -> &Rc<Exports<D>> {
        &self.inner.exports
    }

    /// Accepts clients from `listener` until it is stopped or the server shuts down.
    pub fn listen(&self, listener: Listener, tls: TlsPolicy) -> ListenerHandle {
        let server = self.clone();
        let task = spawn_local(async move { server.accept_all(listener, &Rc::new(tls)).await });
        let handle = ListenerHandle(task.abort_handle());
        self.inner.listeners.borrow_mut().push(task);
        handle
    }

    /// Serves `export` to a client that is in the transmission phase already, on terms agreed
    /// elsewhere. `limits` are its own: the kernel, for one, may hold a reply as long as it likes.
    ///
    /// # Errors
    /// The export or the socket can't be used.
    pub fn adopt(
        &self,
        socket: ClientSocket,
        export: &str,
        terms: Terms,
        limits: Limits,
    ) -> Result<SessionHandle, AdoptFault> {
        let inner = &self.inner;
        if inner.closing.get() {
            let message = "the server is being shut down".to_owned();
            return Err(Refusal {
                kind: RefusalKind::Shutdown,
                message,
            }
            .into());
        }
        let unknown = || Refusal {
            kind: RefusalKind::Unknown,
            message: format!("there is no export '{export}'"),
        };
        let found = inner.exports.find(export).ok_or_else(unknown)?;
        let entry = inner.exports.get(export).ok_or_else(unknown)?;
        let info = found.info?;
        info.assert_valid();
        let socket = match socket {
            ClientSocket::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                Socket::Tcp(TcpStream::from_std(stream)?)
            }
            ClientSocket::Unix(stream) => {
                stream.set_nonblocking(true)?;
                Socket::Unix(UnixStream::from_std(stream)?)
            }
        };
        let opening = entry.device.open(entry.access())?;
        let control = inner
            .register("attached".to_owned(), None)
            .map_err(AdoptFault::TooManyConnections)?;
        control.set_export(&entry.name, false);
        let accepted = Accepted {
            connection: Connection::Clear(socket),
            inbox: Inbox::default(),
            export: entry,
            info,
            terms,
            opening,
        };
        let server = self.clone();
        let handle = SessionHandle(Rc::clone(&control));
        spawn_local(async move {
            let end = session::serve(accepted, &limits, &control).await;
            server.inner.forget(&control, &end);
        });
        Ok(handle)
    }

    /// All connections, those in the handshake and those that wait for their device included.
    pub fn sessions(&self) -> Vec<SessionHandle> {
        let connections = self.inner.connections.borrow();
        connections
            .iter()
            .map(|(_, control)| SessionHandle(Rc::clone(control)))
            .collect()
    }

    /// Stops accepting, answers new requests with `NBD_ESHUTDOWN`, lets those in flight finish,
    /// and closes the connections; after `grace` the rest is cut off. Returns when the device has
    /// completed the last request of the last connection.
    pub async fn shut_down(&self, grace: Duration) {
        self.inner.closing.set(true);
        let listeners = self.inner.listeners.take();
        for listener in &listeners {
            listener.abort();
        }
        for session in self.sessions() {
            session.drain();
        }
        if tokio::time::timeout(grace, self.all_ended()).await.is_err() {
            for session in self.sessions() {
                session.abort();
            }
            self.all_ended().await;
        }
        for listener in listeners {
            // Its socket is closed, and its file gone, when the task is; it was aborted above.
            let _ = listener.await;
        }
    }

    async fn all_ended(&self) {
        loop {
            let ended = self.inner.ended.notified();
            if self.inner.connections.borrow().is_empty() {
                return;
            }
            ended.await;
        }
    }

    async fn accept_all(&self, listener: Listener, tls: &Rc<TlsPolicy>) {
        loop {
            match listener.accept().await {
                Ok((socket, peer, address)) => self.welcome(socket, &peer, address, tls),
                // The client was gone before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // No descriptors or no memory: clients wait in the kernel's queue.
                    tracing::warn!(%error, "no client can be accepted now");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn welcome(&self, socket: Socket, peer: &str, address: Option<IpAddr>, tls: &Rc<TlsPolicy>) {
        let control = match self.inner.register(peer.to_owned(), address) {
            Ok(control) => control,
            Err(limit) => {
                let end = SessionEnd::TooManyConnections(limit);
                if self.inner.may_tell(address) {
                    tracing::warn!(peer, "NBD client turned away: {end}");
                }
                return;
            }
        };
        let (server, tls) = (self.clone(), Rc::clone(tls));
        spawn_local(async move {
            let Inner {
                exports, limits, ..
            } = &*server.inner;
            // Boxed: a session does not carry the handshake's room, TLS and all, through its life.
            let end = match Box::pin(handshake(socket, exports, &tls, limits, &control)).await {
                Ok(accepted) => {
                    let export = &accepted.export.name;
                    tracing::info!(id = control.id, peer = control.peer, export, "NBD client");
                    session::serve(accepted, limits, &control).await
                }
                Err(end) => end,
            };
            server.inner.forget(&control, &end);
        });
    }
}

impl<D> Inner<D> {
    /// Counts a connection in.
    ///
    /// # Errors
    /// The bound that is reached.
    fn register(&self, peer: String, address: Option<IpAddr>) -> Result<Rc<Control>, usize> {
        let mut connections = self.connections.borrow_mut();
        if connections.len() >= self.limits.max_connections {
            return Err(self.limits.max_connections);
        }
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let control = Rc::new(Control::new(id, peer, address));
        if self.closing.get() {
            control.set_mode(Mode::Draining);
        }
        control.set_slot(connections.insert(Rc::clone(&control)));
        Ok(control)
    }

    /// Whether a failure is told: of one who is a stranger at `stranger` still, if not too much was told of them.
    fn may_tell(&self, stranger: Option<IpAddr>) -> bool {
        stranger.is_none_or(|address| self.strangers.may_tell(address))
    }

    /// Counts a connection out, and says how it ended.
    fn forget(&self, control: &Control, end: &SessionEnd) {
        let (id, peer) = (control.id, &control.peer);
        match end {
            SessionEnd::Goodbye | SessionEnd::Closed | SessionEnd::Shutdown => {
                tracing::debug!(id, peer, "NBD connection ended: {end}");
            }
            _ if self.may_tell(control.stranger()) => {
                tracing::warn!(id, peer, "NBD connection ended: {end}");
            }
            // Counted, and told afterwards.
            _ => {}
        }
        self.connections.borrow_mut().remove(control.slot());
        control.set_ended();
        self.ended.notify_waiters();
    }
}
