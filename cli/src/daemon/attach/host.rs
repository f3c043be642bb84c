//! What a keeper needs of the mirror that it keeps attached: its state, promotion, and a session that
//! serves the kernel's end.
//!
//! A trait, so that attaching is tried without disks, link and kernel.

mod queues;

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use kagami_nbd_server::negotiate::Terms;
pub use kagami_nbd_server::ublk::Go;
use kagami_nbd_server::ublk::Shape;
use kagami_nbd_server::{ClientSocket, Export, Exports, Limits, Server};
use kagami_replicator::core::event::{Command, Refusal, Reply};
use kagami_replicator::core::state::Role;
use kagami_replicator::core::status::Status;
use kagami_replicator::shell::engine::{DeviceFacts, Engine as Shell, MirrorEvent, Plane};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::time::timeout;

use super::super::front_end::{Served, Term};
use super::take_down::LEAVE_PATIENCE;

/// The mirrors of this daemon.
pub trait Host: Clone + Send + Sync + 'static {
    /// The core's word; `None` where the mirror is not open.
    fn status(&self, mirror: &str) -> impl Future<Output = Option<Status>> + Send;

    /// The [term](Status::term) in which this node is Primary; `None` where it is not.
    fn term(&self, mirror: &str) -> impl Future<Output = Option<u64>> + Send {
        async move {
            let status = self.status(mirror).await?;
            (status.role == Role::Primary).then_some(status.term)
        }
    }

    /// Makes this node Primary, where that is permitted.
    fn promote(&self, mirror: &str) -> impl Future<Output = Result<Reply, Refusal>> + Send;

    /// Gives that up.
    fn demote(&self, mirror: &str) -> impl Future<Output = Result<Reply, Refusal>> + Send;

    /// Serves a socket that is past its handshake, in that [term](Status::term) as Primary and no other.
    fn serve(
        &self,
        mirror: &str,
        term: u64,
        socket: UnixStream,
    ) -> impl Future<Output = Result<(Link, DeviceFacts), Refusal>> + Send;

    /// What a device of the mirror is to be.
    fn facts(&self, mirror: &str) -> impl Future<Output = Result<DeviceFacts, Refusal>> + Send;

    /// Opens the queues of this device of ublk, all at once, and serves them in that [term](Status::term) as Primary,
    /// until [another is permitted](Link::permit). They are closed when it is stopped by
    /// another program, or at [`Go::Close`]; else they are open as long as this process lives, whatever becomes of
    /// the session.
    fn serve_queues(
        &self,
        mirror: &str,
        term: u64,
        queues: (u32, Shape),
    ) -> impl Future<Output = Result<Link, NotServed>> + Send;

    /// What happens to mirrors from now on. What led to an answer is there before the answer is.
    fn events(&self) -> broadcast::Receiver<MirrorEvent>;
}

/// A device of ublk that is not served.
#[derive(Debug)]
pub struct NotServed {
    /// Why.
    pub refusal: Refusal,
    /// Its queues are this process's all the same, until it ends.
    pub holds_queues: bool,
}

impl From<Refusal> for NotServed {
    fn from(refusal: Refusal) -> Self {
        let holds_queues = false;
        Self {
            refusal,
            holds_queues,
        }
    }
}

/// A session with the kernel. It leaves when this is dropped, and is cut if that takes long.
#[derive(Debug)]
pub struct Link {
    /// Whether the session holds requests that the mirror does not take now, until [`Go::On`]. One of nbd never does:
    /// it ends.
    pub parked: watch::Receiver<bool>,
    /// The only one in which it is served.
    term: Term,
    go: watch::Sender<Go>,
    ended: oneshot::Receiver<()>,
    has_ended: bool,
}

/// The other end of a [`Link`].
#[derive(Debug)]
pub struct Ends {
    /// To be served in no other.
    pub term: Term,
    /// How far to go on; without a sender, as [`Go::Leave`].
    pub order: watch::Receiver<Go>,
    /// To be told of what is parked.
    pub parked: watch::Sender<bool>,
    /// Dropped at the end.
    pub end: oneshot::Sender<()>,
}

impl Link {
    /// A session that is served in that term as Primary.
    pub fn new(term: u64) -> (Self, Ends) {
        let term = Term::of(term);
        let (go, order) = watch::channel(Go::On);
        let (tell, parked) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        let link = Self {
            parked,
            term: term.clone(),
            go,
            ended,
            has_ended: false,
        };
        let ends = Ends {
            term,
            order,
            parked: tell,
            end,
        };
        (link, ends)
    }

    /// The term as Primary in which it is served.
    pub fn term(&self) -> u64 {
        self.term.get()
    }

    /// It is served in that term from now on: who says so has seen that the mirror has not moved before it.
    pub fn permit(&self, term: u64) {
        self.term.set(term);
    }

    /// Orders how far it goes on.
    pub fn set(&self, go: Go) {
        self.go.send_replace(go);
    }

    /// Waits until nothing of this session can reach the disks any more, and a socket is closed: what the kernel was
    /// not answered may be sent again. May be given up and asked again.
    ///
    /// After [`Go::Close`] it waits for the queues to be closed, and not for requests that the mirror still holds:
    /// they failed before.
    pub async fn ended(&mut self) {
        if !self.has_ended() {
            // An error: its thread is gone, and everything on it.
            let _ = (&mut self.ended).await;
            self.has_ended = true;
        }
    }

    /// Whether it has [ended](Self::ended).
    pub fn has_ended(&mut self) -> bool {
        self.has_ended |= !matches!(self.ended.try_recv(), Err(TryRecvError::Empty));
        self.has_ended
    }
}

/// The engine's mirrors.
#[derive(Clone, Debug)]
pub struct Engine {
    shell: Shell,
    /// Thread and peer's name of each mirror.
    places: Arc<BTreeMap<String, (u16, String)>>,
}

impl Engine {
    /// `places`: thread and peer's name of each mirror.
    pub fn new(shell: Shell, places: BTreeMap<String, (u16, String)>) -> Self {
        Self {
            shell,
            places: Arc::new(places),
        }
    }
}

fn not_open() -> Refusal {
    Refusal {
        what: "not attached: it is not open on this node".to_owned(),
        facts: Vec::new(),
        next: "see `kagami status`; a mirror that was paired while the daemon ran needs a restart of it".to_owned(),
    }
}

impl Host for Engine {
    async fn status(&self, mirror: &str) -> Option<Status> {
        let all = self.shell.status().await;
        let found = all.into_iter().find(|status| &*status.name == mirror);
        found.map(|status| status.core)
    }

    async fn promote(&self, mirror: &str) -> Result<Reply, Refusal> {
        if !self.places.contains_key(mirror) {
            return Err(not_open());
        }
        self.shell
            .command(
                mirror,
                Command::Promote {
                    force: false,
                    while_resyncing: false,
                },
            )
            .await
    }

    async fn demote(&self, mirror: &str) -> Result<Reply, Refusal> {
        self.shell
            .command(mirror, Command::Demote { force: false })
            .await
    }

    async fn serve(
        &self,
        mirror: &str,
        term: u64,
        socket: UnixStream,
    ) -> Result<(Link, DeviceFacts), Refusal> {
        let (thread, peer) = self.places.get(mirror).ok_or_else(not_open)?.clone();
        let (link, ends) = Link::new(term);
        let (tell, told) = oneshot::channel();
        let name = mirror.to_owned();
        self.shell.spawn_on(thread, move |plane| {
            serve(plane, name, peer, socket, ends, tell)
        });
        // An error: the thread is gone.
        let facts = told.await.map_err(|_| not_open())??;
        Ok((link, facts))
    }

    async fn facts(&self, mirror: &str) -> Result<DeviceFacts, Refusal> {
        let (thread, _) = self.places.get(mirror).ok_or_else(not_open)?;
        let (tell, told) = oneshot::channel();
        let name = mirror.to_owned();
        self.shell.spawn_on(*thread, move |plane| async move {
            let _ = tell.send(plane.device(&name).map(|device| device.facts()));
        });
        // An error: the thread is gone.
        told.await.ok().flatten().ok_or_else(not_open)
    }

    async fn serve_queues(
        &self,
        mirror: &str,
        term: u64,
        queues: (u32, Shape),
    ) -> Result<Link, NotServed> {
        let (thread, peer) = self.places.get(mirror).ok_or_else(not_open)?.clone();
        let (link, ends) = Link::new(term);
        let (tell, told) = oneshot::channel();
        let name = mirror.to_owned();
        self.shell.spawn_on(thread, move |plane| {
            queues::serve(plane, name, peer, queues, ends, tell)
        });
        // An error: the thread is gone.
        told.await.map_err(|_| not_open())??;
        Ok(link)
    }

    fn events(&self) -> broadcast::Receiver<MirrorEvent> {
        self.shell.events()
    }
}

/// Serves the kernel until the connection ends, on the mirror's own thread.
async fn serve(
    plane: Plane,
    name: String,
    peer: String,
    socket: UnixStream,
    ends: Ends,
    tell: oneshot::Sender<Result<DeviceFacts, Refusal>>,
) {
    let Ends {
        term,
        mut order,
        end: _end,
        ..
    } = ends;
    let refuse = |why: String| Refusal {
        what: format!("not attached: {why}"),
        facts: Vec::new(),
        next: "see `kagami status`".to_owned(),
    };
    let Some(device) = plane.device(&name) else {
        let _ = tell.send(Err(not_open()));
        return;
    };
    let facts = device.facts();
    let exports = Rc::new(Exports::new());
    let served = Rc::new(Served::permitted(device, peer, term));
    if let Err(why) = exports.add(Export::new(name.as_str(), served)) {
        let _ = tell.send(Err(refuse(why.to_string())));
        return;
    }
    let limits = Limits::kernel();
    let server = Server::new(exports, limits.clone());
    let socket = ClientSocket::Unix(socket);
    let session = match server.adopt(socket, &name, Terms::default(), limits) {
        Ok(session) => session,
        Err(why) => {
            let _ = tell.send(Err(refuse(why.to_string())));
            return;
        }
    };
    // Whoever asked may be gone: then the link is, too, and the session leaves.
    let _ = tell.send(Ok(facts));
    loop {
        tokio::select! {
            () = session.ended() => return,
            changed = order.changed() => {
                let go = if changed.is_ok() { *order.borrow_and_update() } else { Go::Leave };
                match go {
                    Go::On => {}
                    Go::Leave => session.leave(),
                    // The kernel fails what it was not answered.
                    Go::Cut | Go::Refuse | Go::Close => session.abort(),
                }
                if changed.is_err() {
                    // Nobody is left to order the cut.
                    if timeout(LEAVE_PATIENCE, session.ended()).await.is_err() {
                        session.abort();
                        session.ended().await;
                    }
                    return;
                }
            }
        }
    }
}
