//! The engine as the daemon holds it: start, mirrors, commands, status, events, stop.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::config::{ArbiterConfig, EngineConfig, MirrorConfig, peers_of, shifted};
use super::plane::{Loop, Order, Parts, Plane, no_such_mirror};
use super::start::{self, StartError};
use super::status::{MirrorEvent, MirrorStatus, PeerEvent};
use crate::core::event::{Refusal, Reply};
use crate::core::{Command, NodeId, Settings};
use crate::shell::arbiter::together::{Board, Follow};
use crate::shell::buffers::{Pool, PoolConfig};
use crate::shell::identity::{IdentityError, NodeKeys};
use crate::shell::quic::{LinkConfig, LinkError, Note, PeerConfig, SHUTDOWN_PATIENCE};
use crate::shell::runtime;
use crate::shell::storage::{Storage, StorageError};

/// Events that a slow listener may be behind; it is told how many it missed.
const EVENTS: usize = 1024;
/// Stores close within, and threads end within, once their mirrors have stopped or been given up and the peers
/// were told.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);
/// A [stop](Engine::stop) takes so much longer than its mirrors: their stores are closed, and the peers told.
pub const END_PATIENCE: Duration =
    Duration::from_secs(2 * CLOSE_PATIENCE.as_secs() + SHUTDOWN_PATIENCE.as_secs());

/// Why the engine can't start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The node's key can't be had.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The link can't be set up.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A thread has no disks.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The system refused.
    #[error("{doing}: {error}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        error: std::io::Error,
    },
}

/// A running engine. Clones are the same engine; when the last is dropped its threads end at once.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: NodeId,
    threads: Vec<Thread>,
    events: broadcast::Sender<MirrorEvent>,
    peer_events: broadcast::Sender<PeerEvent>,
    places: Mutex<Places>,
}

/// Which mirror is on which thread.
#[derive(Debug, Default)]
struct Places {
    of: Vec<(String, u16)>,
    /// The engine stops: no more of them.
    closed: bool,
}

struct Thread {
    orders: mpsc::UnboundedSender<Order>,
    addresses: Vec<SocketAddr>,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Thread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Thread")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the data-plane threads; they listen when this returns. No mirror runs yet. Blocks for
    /// some milliseconds.
    ///
    /// # Errors
    ///
    /// [`EngineError`].
    pub fn start(config: &EngineConfig) -> Result<Self, EngineError> {
        assert!(config.threads >= 1, "an engine without a thread");
        let (events, _) = broadcast::channel(EVENTS);
        let (peer_events, _) = broadcast::channel(EVENTS);
        let board = Arc::new(watch::Sender::new(Board::new()));
        let mut threads = Vec::new();
        for index in 0..config.threads {
            let told = Told {
                events: events.clone(),
                peer_events: peer_events.clone(),
                board: Arc::clone(&board),
            };
            match start_thread(config, index, told) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    end_all(&threads, true);
                    return Err(error);
                }
            }
        }
        let inner = Inner {
            node: config.node,
            threads,
            events,
            peer_events,
            places: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Where data-plane thread `thread` listens.
    pub fn addresses(&self, thread: u16) -> Vec<SocketAddr> {
        self.inner
            .threads
            .get(usize::from(thread))
            .map(|thread| thread.addresses.clone())
            .unwrap_or_default()
    }

    /// Data-plane threads.
    pub fn threads(&self) -> u16 {
        self.inner.threads.len() as u16
    }

    /// Opens, fences and reads a mirror's stores on a thread that may block, then serves it. It takes as long as
    /// the stores do. Given up half-way, the stores are closed again once they have answered, or
    /// the mirror is served all the same; one whose stores answer after [`stop`](Self::stop) has begun is not.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing was changed in a store that is refused.
    pub async fn add_mirror(&self, config: MirrorConfig) -> Result<(), StartError> {
        let (name, index) = (config.name.clone(), config.thread);
        let Some(thread) = self.inner.threads.get(usize::from(index)) else {
            let threads = self.threads();
            return Err(StartError::NoThread {
                mirror: name,
                thread: index,
                threads,
            });
        };
        if self.inner.place(&name).is_some() {
            return Err(StartError::Exists(name));
        }
        let node = self.inner.node;
        let (opened, open) = oneshot::channel();
        let opener = std::thread::Builder::new().name("kagami-open".to_owned());
        let spawned = opener.spawn(move || drop(opened.send(start::open(config, node))));
        let stopping = || StartError::Stopping(name.clone());
        spawned.map_err(|_| stopping())?;
        let opened = open.await.map_err(|_| stopping())??;
        let (reply, answer) = oneshot::channel();
        {
            // At once: a stop finds it, or it is not begun.
            let mut places = self.inner.places();
            if places.closed {
                return Err(stopping());
            }
            if places.of.iter().any(|(other, _)| *other == name) {
                return Err(StartError::Exists(name));
            }
            thread
                .orders
                .send(Order::Add(Box::new(opened), reply))
                .map_err(|_| stopping())?;
            places.of.push((name.clone(), index));
        }
        let added = answer.await.unwrap_or_else(|_| Err(stopping()));
        if added.is_err() {
            self.inner.places().of.retain(|(other, _)| *other != name);
        }
        added
    }

    /// Stops a mirror cleanly and closes its stores.
    ///
    /// # Errors
    ///
    /// The core refused to stop; the mirror runs on.
    pub async fn remove_mirror(&self, mirror: &str) -> Result<(), Refusal> {
        self.command(mirror, Command::Stop).await?;
        self.forget(mirror).await;
        Ok(())
    }

    async fn forget(&self, mirror: &str) {
        if let Some(thread) = self.inner.thread_of(mirror) {
            let (reply, answer) = oneshot::channel();
            if thread
                .orders
                .send(Order::Remove(mirror.to_owned(), reply))
                .is_ok()
            {
                let _ = answer.await;
            }
        }
        self.inner.places().of.retain(|(name, _)| name != mirror);
    }

    /// Carries out an operator's command.
    ///
    /// # Errors
    ///
    /// The core's refusal, or that there is no such mirror.
    pub async fn command(&self, mirror: &str, command: Command) -> Result<Reply, Refusal> {
        let Some(thread) = self.inner.thread_of(mirror) else {
            return Err(no_such_mirror());
        };
        let (answerer, answer) = oneshot::channel();
        let sent = thread
            .orders
            .send(Order::Command(mirror.to_owned(), command, answerer));
        match (sent, answer.await) {
            (Ok(()), Ok(result)) => result,
            _ => Err(Refusal {
                what: format!("mirror {mirror}: the daemon stopped before the command was done"),
                facts: Vec::new(),
                next: "start it again (`kagami up`) and look at `kagami status`".to_owned(),
            }),
        }
    }

    /// New settings for a mirror.
    ///
    /// # Errors
    ///
    /// As [`Engine::command`].
    pub async fn set(&self, mirror: &str, settings: Settings) -> Result<(), Refusal> {
        self.command(mirror, Command::Set(settings)).await.map(drop)
    }

    /// Puts these peers in the place of all; addresses are those of thread 0.
    pub fn set_peers(&self, peers: &[PeerConfig]) {
        for thread in &self.inner.threads {
            let _ = thread.orders.send(Order::SetPeers(peers.to_vec()));
        }
    }

    /// Tells a peer something of this node, over whatever connections there are with it that have
    /// notes; whether it arrives is not known.
    pub fn tell(&self, peer: NodeId, note: &Note) {
        for thread in &self.inner.threads {
            let _ = thread.orders.send(Order::Tell(peer, note.clone()));
        }
    }

    /// Shows the key that is in the node's folder now. Connections are made again with it.
    ///
    /// # Errors
    ///
    /// It can't be read or used: the threads that could not take it show the old one until a restart.
    pub async fn show_new_key(&self) -> Result<(), EngineError> {
        for thread in &self.inner.threads {
            let (reply, answer) = oneshot::channel();
            if thread.orders.send(Order::NewKey(reply)).is_ok()
                && let Ok(result) = answer.await
            {
                result?;
            }
        }
        Ok(())
    }

    /// What peers do and tell, from now on.
    pub fn peer_events(&self) -> broadcast::Receiver<PeerEvent> {
        self.inner.peer_events.subscribe()
    }

    /// Another arbiter for a mirror, from its next question on.
    ///
    /// # Errors
    ///
    /// It can't be used.
    pub async fn set_arbiter(
        &self,
        mirror: &str,
        arbiter: ArbiterConfig,
    ) -> Result<(), StartError> {
        let stopping = || StartError::Stopping(mirror.to_owned());
        let thread = self.inner.thread_of(mirror).ok_or_else(stopping)?;
        let (reply, answer) = oneshot::channel();
        let order = Order::SetArbiter(mirror.to_owned(), arbiter, reply);
        thread.orders.send(order).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// These mirrors follow others from their next question on (docs/arbiter.md); all others decide for themselves.
    /// It may name mirrors that do not run: a leader waits for its followers, and they for it. One that follows
    /// has the same arbiter as its leader, which follows nobody.
    pub fn set_follows(&self, follows: &[Follow]) {
        for thread in &self.inner.threads {
            let _ = thread.orders.send(Order::SetFollows(follows.to_vec()));
        }
    }

    /// The state of every mirror, by name.
    pub async fn status(&self) -> Vec<MirrorStatus> {
        let mut all = Vec::new();
        for thread in &self.inner.threads {
            let (reply, answer) = oneshot::channel();
            if thread.orders.send(Order::Status(reply)).is_ok()
                && let Ok(status) = answer.await
            {
                all.extend(status);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Waits until the loop of a data-plane thread has turned: it has taken what there was, and
    /// deals with it. A disk, a peer or a client that is slow keeps no loop from turning; a thread
    /// that is stuck in one call, or in a task of its own, does. `false`: there is no such thread, or
    /// it has ended.
    pub async fn beat(&self, thread: u16) -> bool {
        let Some(thread) = self.inner.threads.get(usize::from(thread)) else {
            return false;
        };
        let (reply, answer) = oneshot::channel();
        thread.orders.send(Order::Beat(reply)).is_ok() && answer.await.is_ok()
    }

    /// Everything that happens to mirrors from now on.
    pub fn events(&self) -> broadcast::Receiver<MirrorEvent> {
        self.inner.events.subscribe()
    }

    /// Runs a task on a data-plane thread, beside its loop: a front end's listener. `make` is called
    /// there and gives the task. `false`: there is no such thread.
    pub fn spawn_on<F, T>(&self, thread: u16, make: F) -> bool
    where
        F: FnOnce(Plane) -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        let Some(thread) = self.inner.threads.get(usize::from(thread)) else {
            return false;
        };
        let spawn = Box::new(|plane: Plane| {
            tokio::task::spawn_local(make(plane));
        });
        thread.orders.send(Order::Spawn(spawn)).is_ok()
    }

    /// Stops every mirror cleanly (demoted, everything on both disks, the peer told), closes the stores
    /// and ends the threads, once the peers have acknowledged that ([`SHUTDOWN_PATIENCE`]).
    /// A mirror that isn't done within `patience` is left as a crash would; a store that
    /// the kernel does not let go of within some seconds more is left to the end of the process, and its thread with
    /// it: what it was given may be written until then, which the next daemon waits for (`shell/fence.rs`).
    ///
    /// Gives the mirrors that were not stopped cleanly, and why.
    pub async fn stop(&self, patience: Duration) -> Vec<(String, Refusal)> {
        let names: Vec<_> = {
            let mut places = self.inner.places();
            places.closed = true;
            places.of.iter().map(|(name, _)| name.clone()).collect()
        };
        let (reply, mut replies) = mpsc::unbounded_channel();
        for name in &names {
            let (engine, name, reply) = (self.clone(), name.clone(), reply.clone());
            tokio::spawn(async move {
                let stopped =
                    tokio::time::timeout(patience, engine.command(&name, Command::Stop)).await;
                let result = stopped.unwrap_or_else(|_| {
                    Err(Refusal {
                        what: format!("mirror {name}: not stopped cleanly within {patience:?}"),
                        facts: Vec::new(),
                        next: "nothing is lost: what was not flushed is marked, and resynchronised later".to_owned(),
                    })
                });
                if tokio::time::timeout(CLOSE_PATIENCE, engine.forget(&name))
                    .await
                    .is_err()
                {
                    tracing::warn!(
                        mirror = name,
                        "its stores are left open: they have not answered what they were given"
                    );
                }
                let _ = reply.send((name, result.err()));
            });
        }
        drop(reply);
        let mut left = Vec::new();
        while let Some((name, refusal)) = replies.recv().await {
            left.extend(refusal.map(|refusal| (name, refusal)));
        }
        let patience = SHUTDOWN_PATIENCE + CLOSE_PATIENCE;
        if tokio::time::timeout(patience, self.end(false))
            .await
            .is_err()
        {
            tracing::warn!("a data-plane thread waits for its disks, and is left to do so");
        }
        left
    }

    /// Ends everything at once, as the death of the process would: nothing is flushed, no mirror is
    /// demoted, no peer is told. For tests, and for a daemon that must not go on.
    pub async fn abandon(&self) {
        self.end(true).await;
    }

    async fn end(&self, abandon: bool) {
        let (done, wait) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        std::thread::spawn(move || {
            end_all(&inner.threads, abandon);
            let _ = done.send(());
        });
        let _ = wait.await;
    }
}

impl Inner {
    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, mirror: &str) -> Option<u16> {
        self.places()
            .of
            .iter()
            .find(|(name, _)| name == mirror)
            .map(|(_, thread)| *thread)
    }

    fn thread_of(&self, mirror: &str) -> Option<&Thread> {
        self.place(mirror)
            .and_then(|thread| self.threads.get(usize::from(thread)))
    }
}

/// Ends data-plane threads, and waits until they are gone.
fn end_all(threads: &[Thread], abandon: bool) {
    // All are told first: one that waits for a disk keeps no other one's peers waiting.
    for thread in threads {
        let _ = thread
            .orders
            .send(if abandon { Order::Abandon } else { Order::End });
    }
    for thread in threads {
        thread.join();
    }
}

impl Thread {
    /// Waits until the thread, which has its last order, is gone.
    fn join(&self) {
        let join = self
            .join
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(join) = join {
            // It panicked: that was told where it happened.
            let _ = join.join();
        }
    }
}

/// Where a thread tells what others are to know.
struct Told {
    events: broadcast::Sender<MirrorEvent>,
    peer_events: broadcast::Sender<PeerEvent>,
    board: Arc<watch::Sender<Board>>,
}

/// Makes one data-plane thread, and waits until it listens.
fn start_thread(config: &EngineConfig, index: u16, told: Told) -> Result<Thread, EngineError> {
    let mut link = LinkConfig::new(super::config::link_node(config.node));
    link.thread = index;
    link.listen = config
        .listen
        .iter()
        .map(|address| shifted(*address, index))
        .collect();
    link.peers = peers_of(&config.peers, index);
    link.tuning = config.tuning.clone();
    // What the pool has room for is no overload: it may all wait for one slow link, beside frames' heads and what was
    // copied to make whole blocks of it.
    link.tuning.max_queued = link.tuning.max_queued.max(2 * config.buffers);
    link.versions
        .retain(|version| *version <= config.newest_version);
    let (orders, received) = mpsc::unbounded_channel();
    let (up, started) = std::sync::mpsc::channel();
    let config = config.clone();
    let body = move || {
        let runtime = match runtime::build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let doing = "starting a data-plane thread's runtime";
                return drop(up.send(Err(EngineError::Io { doing, error })));
            }
        };
        runtime::run(&runtime, async move {
            runtime::look_before_sleeping(config.busy_poll);
            match prepare(&config, index, link, received, told) {
                Ok(this) => {
                    let told = up.send(Ok(this.addresses()));
                    if told.is_ok() {
                        this.run().await;
                    }
                }
                Err(error) => drop(up.send(Err(error))),
            }
        });
    };
    let named = std::thread::Builder::new().name(format!("kagami-data-{index}"));
    let io = |error| EngineError::Io {
        doing: "starting a data-plane thread",
        error,
    };
    let join = named.spawn(body).map_err(io)?;
    let addresses = started
        .recv()
        .map_err(|_| io(std::io::Error::other("it ended at once")))??;
    Ok(Thread {
        orders,
        addresses,
        join: Mutex::new(Some(join)),
    })
}

/// Everything that a thread's loop needs, made on the thread.
fn prepare(
    config: &EngineConfig,
    index: u16,
    link: LinkConfig,
    orders: mpsc::UnboundedReceiver<Order>,
    told: Told,
) -> Result<Loop, EngineError> {
    let mut buffers = PoolConfig::with_bytes(config.buffers);
    buffers.lock = config.lock_buffers;
    let doing = "taking memory for payloads";
    let pool = Pool::new(&buffers).map_err(|error| EngineError::Io { doing, error })?;
    if config.lock_buffers && !pool.is_locked() {
        tracing::warn!(
            thread = index,
            bytes = config.buffers,
            "payload memory is not locked: raise LimitMEMLOCK"
        );
    }
    let storage = Storage::new(pool)?;
    let keys = NodeKeys::load(&config.key_folder)?;
    // The link keeps a key of its own.
    let key = NodeKeys::load(&config.key_folder)?.current;
    let parts = Parts {
        index,
        node: config.node,
        boot: config.boot.clone(),
        key_folder: config.key_folder.clone(),
        keys,
        storage,
        link,
        orders,
        events: told.events,
        peer_events: told.peer_events,
        board: told.board,
    };
    Ok(Loop::new(parts, key)?)
}
