//! One data-plane thread: its disks, its end of the link, its mirrors, and the one loop over them.
//!
//! The loop waits until any of these has something: disks, link, front ends and arbiters (the inbox),
//! orders from other threads, the earliest deadline. Then it takes everything there is, hands each event
//! to its mirror's core with the time stamped after the taking, carries the core's actions out in their
//! order, lets the link send, and submits what the turn asked of the disks with one system call. There is no task for a
//! request and no other thread for anything (docs/decisions/0004-engine-loop.md).

mod arbiters;
mod carry;
mod orders;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use slab::Slab;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};

use super::config::ArbiterConfig;
use super::device::{Inbox, Item, MirrorDevice};
use super::handle::EngineError;
use super::host::{Answerer, Host, Ready};
use super::start::{Opened, StartError};
use super::status::{MirrorEvent, MirrorStatus, PeerEvent};
use crate::core::action::Actions;
use crate::core::event::Refusal;
use crate::core::state::{NodeId, Time};
use crate::core::{self, Event};
use crate::shell::arbiter::together::{Board, Follow};
use crate::shell::boot::Boot;
use crate::shell::buffers::{Account, Buffer, Pool, Share};
use crate::shell::etcd;
use crate::shell::identity::{NodeKey, NodeKeys};
use crate::shell::patience::Awaits;
use crate::shell::quic::{self, BufferSource, Link, LinkEvent, MirrorId, Note, PeerConfig};
use crate::shell::runtime::{has_worked, step_back, time_passed};
use crate::shell::storage::{Storage, StorageCompletion};
use crate::shell::time::{now, until};
use crate::shell::witness::Remote;
use crate::wire::frame::{self, PayloadBuffer};
use crate::wire::message::Speller;

/// What other threads ask of this one.
pub(super) enum Order {
    /// Serve this mirror.
    Add(Box<Opened>, oneshot::Sender<Result<(), StartError>>),
    /// Carry out an operator's command.
    Command(String, core::Command, Answerer),
    /// Tell the state of every mirror.
    Status(oneshot::Sender<Vec<MirrorStatus>>),
    /// These are the peers now.
    SetPeers(Vec<PeerConfig>),
    /// Tell this peer something.
    Tell(NodeId, Note),
    /// Show the key that is in the folder now.
    NewKey(oneshot::Sender<Result<(), EngineError>>),
    /// This mirror asks another arbiter from now on.
    SetArbiter(
        String,
        ArbiterConfig,
        oneshot::Sender<Result<(), StartError>>,
    ),
    /// These mirrors of the node, on whatever thread, follow others.
    SetFollows(Vec<Follow>),
    /// Forget a mirror and close its stores.
    Remove(String, oneshot::Sender<()>),
    /// Answer, to show that the loop turns.
    Beat(oneshot::Sender<()>),
    /// Run this here.
    Spawn(Spawn),
    /// End: the peers are told, and nothing else is.
    End,
    /// End at once, as the death of the process would.
    Abandon,
}

/// A task to be made on the thread.
pub(super) type Spawn = Box<dyn FnOnce(Plane) + Send>;

/// What tasks on a data-plane thread can reach.
#[derive(Clone)]
pub struct Plane {
    shared: Rc<Shared>,
}

struct Shared {
    index: u16,
    pool: Pool,
    inbox: Rc<Inbox>,
    hosts: RefCell<Slab<Rc<RefCell<Host>>>>,
}

impl Plane {
    /// The thread's number.
    pub fn index(&self) -> u16 {
        self.shared.index
    }

    /// A mirror of this thread.
    pub fn device(&self, mirror: &str) -> Option<MirrorDevice> {
        let hosts = self.shared.hosts.borrow();
        let (_, host) = hosts.iter().find(|(_, host)| {
            let host = host.borrow();
            &*host.name == mirror && !host.is_leaving
        })?;
        Some(MirrorDevice {
            account: host.borrow().account.clone(),
            host: Rc::clone(host),
            inbox: Rc::clone(&self.shared.inbox),
        })
    }

    /// The thread's payload memory.
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }
}

/// The accounts of the thread's mirrors.
type AccountsById = Rc<RefCell<HashMap<MirrorId, Account>>>;

/// Payloads from the peer go where the disks can write them from without a copy, and are charged to their mirror.
struct PeerMemory(AccountsById);

/// A piece of it.
struct PeerBuffer(Buffer);

impl BufferSource for PeerMemory {
    type Buffer = PeerBuffer;

    async fn take(&self, mirror: MirrorId, _class: frame::Class, len: usize) -> Option<PeerBuffer> {
        // One that has none is being removed, and its session with it.
        let wait = self.0.borrow().get(&mirror)?.wait_alloc(len, Share::Peer);
        wait.await.ok().map(PeerBuffer)
    }
}

impl PayloadBuffer for PeerBuffer {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn freeze(self) -> bytes::Bytes {
        self.0.freeze()
    }
}

/// What a thread is made from, on the thread itself.
pub(super) struct Parts {
    pub(super) index: u16,
    pub(super) node: NodeId,
    pub(super) boot: Boot,
    pub(super) key_folder: PathBuf,
    pub(super) keys: NodeKeys,
    pub(super) storage: Storage,
    pub(super) link: quic::LinkConfig,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    pub(super) events: broadcast::Sender<MirrorEvent>,
    pub(super) peer_events: broadcast::Sender<PeerEvent>,
    pub(super) board: Arc<watch::Sender<Board>>,
}

/// The loop's own state.
pub(super) struct Loop {
    index: u16,
    node: NodeId,
    boot: Boot,
    key_folder: PathBuf,
    keys: NodeKeys,
    storage: Storage,
    link: Link,
    peers: Vec<PeerConfig>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Taken while waiting.
    received: VecDeque<Order>,
    events: broadcast::Sender<MirrorEvent>,
    peer_events: broadcast::Sender<PeerEvent>,
    plane: Plane,
    by_id: HashMap<MirrorId, usize>,
    accounts: AccountsById,
    follows: Vec<Follow>,
    board: Arc<watch::Sender<Board>>,
    remotes: HashMap<String, Rc<Remote>>,
    etcds: HashMap<String, Rc<etcd::Remote>>,
    leaving: Vec<(usize, Option<oneshot::Sender<()>>)>,
    /// This turn handed frames to the link.
    has_sent: bool,
    /// Reused by every turn.
    actions: Actions,
    speller: Speller,
    follow_ups: VecDeque<Event>,
    answers: Vec<Ready>,
    /// Requests of front ends that were taken and have no answer yet.
    unanswered: usize,
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Orderly,
    Abrupt,
}

/// Up to so many disk operations wait for the link's tasks.
const FEW: usize = 2;

/// A core's number together with its mirror's slot, as one number for the storage.
const SLOT_SHIFT: u32 = 48;

fn tagged(slot: usize, id: u64) -> u64 {
    assert!(
        id >> SLOT_SHIFT == 0 && slot < 1 << 16,
        "id {id} of slot {slot}"
    );
    (slot as u64) << SLOT_SHIFT | id
}

fn untagged(tag: u64) -> (usize, u64) {
    ((tag >> SLOT_SHIFT) as usize, tag & ((1 << SLOT_SHIFT) - 1))
}

impl Loop {
    /// Opens the link; everything else is there.
    pub(super) fn new(parts: Parts, key: NodeKey) -> Result<Self, quic::LinkError> {
        let pool = parts.storage.pool().clone();
        let peers = parts.link.peers.clone();
        let accounts = AccountsById::default();
        let link = Link::new(parts.link, key, PeerMemory(Rc::clone(&accounts)))?;
        let shared = Shared {
            index: parts.index,
            pool,
            inbox: Rc::default(),
            hosts: RefCell::default(),
        };
        Ok(Self {
            index: parts.index,
            node: parts.node,
            boot: parts.boot,
            key_folder: parts.key_folder,
            keys: parts.keys,
            storage: parts.storage,
            link,
            peers,
            orders: parts.orders,
            received: VecDeque::new(),
            events: parts.events,
            peer_events: parts.peer_events,
            plane: Plane {
                shared: Rc::new(shared),
            },
            by_id: HashMap::new(),
            accounts,
            follows: Vec::new(),
            board: parts.board,
            remotes: HashMap::new(),
            etcds: HashMap::new(),
            leaving: Vec::new(),
            has_sent: false,
            actions: Vec::new(),
            speller: Speller::default(),
            follow_ups: VecDeque::new(),
            answers: Vec::new(),
            unanswered: 0,
        })
    }

    /// Where this thread listens.
    pub(super) fn addresses(&self) -> Vec<std::net::SocketAddr> {
        self.link.local_addresses()
    }

    /// Turns until it is told to end.
    pub(super) async fn run(mut self) {
        let mut sleep = pin!(tokio::time::sleep_until(Instant::now()));
        let mut armed = None;
        let mut turn = Turn::default();
        let end = loop {
            self.wait(&mut sleep, &mut armed).await;
            let end = self.turn(&mut turn);
            if std::mem::take(&mut self.has_sent) && self.storage.queued() <= FEW {
                // The way over the peer is the longer one, and handing a write to the disk takes longer
                // than sending it: the link's tasks go first. (Of many writes the disk has its share
                // at once: it works on them while they are encrypted. A flush begins with the submission
                // and is not among those queued.) Two steps: the stream's writer, and the connection that
                // it wakes.
                step_back().await;
                step_back().await;
            }
            if let Err(error) = self.storage.submit_queued() {
                broken(&error);
            }
            if let Some(end) = end {
                break end;
            }
            has_worked(self.awaits());
        };
        if end == End::Orderly {
            // What was said last still goes out.
            self.link.shutdown().await;
        }
        // The storage's ring waits for whatever the kernel has begun.
    }

    /// What there is to wait for after this turn.
    fn awaits(&self) -> Awaits {
        if self.unanswered > 0 || self.storage.in_flight() > 0 {
            Awaits::Answers
        } else {
            Awaits::Requests
        }
    }

    /// Waits until there is something to do. When there was at once, the thread's other tasks (the
    /// link's, the front ends') get a turn all the same.
    async fn wait(&mut self, sleep: &mut std::pin::Pin<&mut Sleep>, armed: &mut Option<Time>) {
        let deadline = self.deadline();
        if let Some(deadline) = deadline.filter(|deadline| *armed != Some(*deadline)) {
            sleep
                .as_mut()
                .reset(Instant::now() + until(now(), deadline));
            *armed = Some(deadline);
        }
        let Self {
            storage,
            link,
            plane,
            orders,
            received,
            ..
        } = self;
        let ready = async {
            tokio::select! {
                biased;
                ready = storage.ready() => {
                    if let Err(error) = ready {
                        broken(&error);
                    }
                }
                () = link.ready() => {}
                () = plane.shared.inbox.ready() => {}
                // No sender is left: the engine's handle was dropped, and nobody could end this.
                order = orders.recv() => received.push_back(order.unwrap_or(Order::Abandon)),
                () = sleep.as_mut(), if deadline.is_some() => *armed = None,
            }
        };
        let mut ready = pin!(ready);
        let mut waited = false;
        poll_fn(|cx| {
            let poll = ready.as_mut().poll(cx);
            waited |= poll.is_pending();
            poll
        })
        .await;
        if !waited {
            tokio::task::yield_now().await;
        }
    }
}

/// What one turn takes; kept between turns for its memory.
#[derive(Default)]
struct Turn {
    completions: Vec<StorageCompletion>,
    link: Vec<LinkEvent>,
    inbox: VecDeque<Item>,
    requests: Vec<Event>,
}

impl Loop {
    /// Takes everything there is and deals with it.
    fn turn(&mut self, turn: &mut Turn) -> Option<End> {
        if let Err(error) = self.storage.drain(&mut turn.completions) {
            broken(&error);
        }
        self.link.drain(&mut turn.link);
        self.plane.shared.inbox.take(&mut turn.inbox);
        while let Ok(order) = self.orders.try_recv() {
            self.received.push_back(order);
        }
        // After the taking: no event happened later than its stamp says.
        let now = now();
        // A thread that is always busy never sleeps; the link's clock is read anew all the same.
        time_passed();
        for completion in turn.completions.drain(..) {
            self.on_completion(completion, now);
        }
        for event in turn.link.drain(..) {
            self.on_link(event, now);
        }
        for item in turn.inbox.drain(..) {
            self.on_item(item, &mut turn.requests, now);
        }
        let mut end = None;
        while let Some(order) = self.received.pop_front() {
            end = end.or(self.on_order(order, now));
        }
        self.on_deadlines(now);
        self.release();
        self.unanswered -= self.answers.len();
        for ready in self.answers.drain(..) {
            ready.requester.complete(ready.ticket, ready.result);
        }
        end
    }

    fn host(&self, slot: usize) -> Rc<RefCell<Host>> {
        Rc::clone(&self.plane.shared.hosts.borrow()[slot])
    }

    fn host_of(&self, mirror: MirrorId) -> Option<Rc<RefCell<Host>>> {
        self.by_id.get(&mirror).map(|slot| self.host(*slot))
    }

    fn host_named(&self, name: &str) -> Option<Rc<RefCell<Host>>> {
        let hosts = self.plane.shared.hosts.borrow();
        let mut named = hosts.iter().map(|(_, host)| host);
        named
            .find(|host| &*host.borrow().name == name && !host.borrow().is_leaving)
            .cloned()
    }
}

/// Nothing can be read or written any more: no answer may be given.
fn broken(error: &std::io::Error) -> ! {
    panic!("this thread's io_uring is broken: {error}");
}

/// Tags drawn at random. The system always has some; a tag that is not random could be another's.
fn random_tags(count: usize) -> Vec<u64> {
    let draw = |_| {
        getrandom::u64()
            .unwrap_or_else(|error| panic!("the system gives no random numbers: {error}"))
    };
    (0..count).map(draw).collect()
}

/// The refusal of a command for a mirror that this node doesn't have.
pub(super) fn no_such_mirror() -> Refusal {
    Refusal {
        what: "not known here, or not started".to_owned(),
        facts: Vec::new(),
        next:
            "`kagami status` shows the mirrors of this node; the log says why one was not started"
                .to_owned(),
    }
}
