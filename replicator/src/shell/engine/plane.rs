//! One data-plane thread: its disks, its end of the link, its mirrors, and the one loop over them.
//!
//! The loop waits until any of these has something: disks, link, front ends and arbiters (the inbox),
//! orders from other threads, the earliest deadline. Then it takes everything there is, hands each event
//! to its mirror's core with the time stamped after the taking, carries the core's actions out in their
//! order, and submits what the turn asked of the disks with one system call. There is no task for a
//! request and no other thread for anything (docs/decisions/0004-engine-loop.md).

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use slab::Slab;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, Sleep};

use super::config::{ArbiterConfig, MirrorConfig, link_node, peers_of};
use super::device::{Inbox, Item, MirrorDevice};
use super::host::{Answerer, Host, Ready, Stores};
use super::start::{Opened, StartError};
use super::status::{MirrorEvent, MirrorStatus, log};
use crate::core::action::{Action, Actions, Class};
use crate::core::disk::DiskFault;
use crate::core::event::Refusal;
use crate::core::notice::Notice;
use crate::core::state::{DiskId, MetaId, NodeId, Replication, SessionId, Time};
use crate::core::{self, Event, Mirror, Start, TAGS};
use crate::shell::arbiter::{Arbiter, NoArbiter};
use crate::shell::boot::Boot;
use crate::shell::buffers::{Buffer, Pool, Share};
use crate::shell::identity::{Fingerprint, NodeKeys};
use crate::shell::probe::StoreKind;
use crate::shell::quic::{
    self, BufferSource, CloseReason, Link, LinkEvent, MirrorId, PeerConfig, code,
};
use crate::shell::storage::{Storage, StorageCompletion};
use crate::shell::time::{now, until, wall};
use crate::shell::witness::{Client, RegisterId, Remote};
use crate::wire::frame::{self, OutFrame, PayloadBuffer};
use crate::wire::message;

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
    /// This mirror asks another arbiter from now on.
    SetArbiter(String, ArbiterConfig, oneshot::Sender<Result<(), StartError>>),
    /// Forget a mirror and close its stores.
    Remove(String, oneshot::Sender<()>),
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
            host: Rc::clone(host),
            inbox: Rc::clone(&self.shared.inbox),
            pool: self.shared.pool.clone(),
        })
    }

    /// The thread's payload memory.
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }
}

/// Payloads from the peer go where the disks can write them from without a copy.
struct PeerMemory(Pool);

/// A piece of it.
struct PeerBuffer(Buffer);

impl BufferSource for PeerMemory {
    type Buffer = PeerBuffer;

    async fn take(&self, _class: frame::Class, len: usize) -> Option<PeerBuffer> {
        self.0.wait_alloc(len, Share::Peer).await.ok().map(PeerBuffer)
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
    pub(super) keys: NodeKeys,
    pub(super) storage: Storage,
    pub(super) link: quic::LinkConfig,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
    pub(super) events: broadcast::Sender<MirrorEvent>,
}

/// The loop's own state.
pub(super) struct Loop {
    index: u16,
    node: NodeId,
    boot: Boot,
    keys: NodeKeys,
    storage: Storage,
    link: Link,
    peers: Vec<PeerConfig>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Taken while waiting.
    received: VecDeque<Order>,
    events: broadcast::Sender<MirrorEvent>,
    plane: Plane,
    by_id: HashMap<MirrorId, usize>,
    remotes: HashMap<String, Rc<Remote>>,
    leaving: Vec<(usize, Option<oneshot::Sender<()>>)>,
    /// Reused by every turn.
    actions: Actions,
    follow_ups: VecDeque<Event>,
    answers: Vec<Ready>,
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Orderly,
    Abrupt,
}

/// A core's number together with its mirror's slot, as one number for the storage.
const SLOT_SHIFT: u32 = 48;

fn tagged(slot: usize, id: u64) -> u64 {
    assert!(id >> SLOT_SHIFT == 0 && slot < 1 << 16, "id {id} of slot {slot}");
    (slot as u64) << SLOT_SHIFT | id
}

fn untagged(tag: u64) -> (usize, u64) {
    ((tag >> SLOT_SHIFT) as usize, tag & ((1 << SLOT_SHIFT) - 1))
}

impl Loop {
    /// Opens the link; everything else is there.
    pub(super) fn new(parts: Parts, key: crate::shell::identity::NodeKey) -> Result<Self, quic::LinkError> {
        let pool = parts.storage.pool().clone();
        let peers = parts.link.peers.clone();
        let link = Link::new(parts.link, key, PeerMemory(pool.clone()))?;
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
            keys: parts.keys,
            storage: parts.storage,
            link,
            peers,
            orders: parts.orders,
            received: VecDeque::new(),
            events: parts.events,
            plane: Plane { shared: Rc::new(shared) },
            by_id: HashMap::new(),
            remotes: HashMap::new(),
            leaving: Vec::new(),
            actions: Vec::new(),
            follow_ups: VecDeque::new(),
            answers: Vec::new(),
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
            if let Some(end) = self.turn(&mut turn) {
                break end;
            }
        };
        if end == End::Orderly {
            // What was said last still goes out.
            self.link.shutdown().await;
        }
        // The storage's ring waits for whatever the kernel has begun.
    }

    /// Waits until there is something to do. When there was at once, the thread's other tasks (the
    /// link's, the front ends') get a turn all the same.
    async fn wait(&mut self, sleep: &mut std::pin::Pin<&mut Sleep>, armed: &mut Option<Time>) {
        let deadline = self.deadline();
        if let Some(deadline) = deadline.filter(|deadline| *armed != Some(*deadline)) {
            sleep.as_mut().reset(Instant::now() + until(now(), deadline));
            *armed = Some(deadline);
        }
        let Self { storage, link, plane, orders, received, .. } = self;
        let ready = async {
            tokio::select! {
                biased;
                ready = storage.ready() => {
                    if let Err(error) = ready {
                        // Nothing can be read or written any more: no answer may be given.
                        panic!("this thread's io_uring is broken: {error}");
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
        let drained = self.storage.drain(&mut turn.completions);
        self.link.drain(&mut turn.link);
        self.plane.shared.inbox.take(&mut turn.inbox);
        while let Ok(order) = self.orders.try_recv() {
            self.received.push_back(order);
        }
        // After the taking: no event happened later than its stamp says.
        let now = now();
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
        for ready in self.answers.drain(..) {
            ready.requester.complete(ready.ticket, ready.result);
        }
        if let Err(error) = drained.and_then(|()| self.storage.submit_queued()) {
            panic!("this thread's io_uring is broken: {error}");
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
        named.find(|host| &*host.borrow().name == name && !host.borrow().is_leaving).cloned()
    }

    fn on_completion(&mut self, completion: StorageCompletion, now: Time) {
        let (slot, event) = match completion {
            StorageCompletion::Disk(done) => {
                let (slot, id) = untagged(done.id);
                (slot, Event::Disk { id: DiskId(id), result: done.result })
            }
            StorageCompletion::Metadata(done) => {
                let (slot, id) = untagged(done.id);
                (slot, Event::MetadataDone { id: MetaId(id), result: done.result })
            }
        };
        let host = self.host(slot);
        host.borrow_mut().stores.in_flight -= 1;
        self.handle(&host, event, now);
    }

    fn on_link(&mut self, event: LinkEvent, now: Time) {
        match event {
            LinkEvent::Up { mirror, session, version, .. } => {
                let Some(host) = self.host_of(mirror) else { return };
                {
                    let mut host = host.borrow_mut();
                    host.session = Some(session);
                    host.link_trouble = None;
                }
                self.handle(&host, Event::LinkUp { session: SessionId(session.0), version }, now);
            }
            LinkEvent::Frame { mirror, session, class, frame } => {
                let Some(host) = self.host_of(mirror) else { return };
                let kind = frame.kind;
                let fault = match message::decode(kind, &frame.head, frame.payload) {
                    Ok(message) if wire_class(message.class()) == class => {
                        let session = SessionId(session.0);
                        return self.handle(&host, Event::Message { session, message }, now);
                    }
                    Ok(_) => format!("a message of kind {kind} on the {class} stream"),
                    Err(fault) => fault.to_string(),
                };
                self.link.close(session, CloseReason::new(code::PROTOCOL, fault.clone()));
                self.report(&mut host.borrow_mut(), Notice::PeerFault { what: fault.clone() }, now);
                let reason = format!("the peer broke the protocol: {fault}");
                self.handle(&host, Event::LinkDown { session: SessionId(session.0), reason }, now);
            }
            LinkEvent::Down { mirror, session, reason } => {
                let Some(host) = self.host_of(mirror) else { return };
                let reason = reason.to_string();
                {
                    let mut host = host.borrow_mut();
                    host.session.take_if(|up| *up == session);
                    host.link_trouble = Some(reason.clone());
                }
                self.handle(&host, Event::LinkDown { session: SessionId(session.0), reason }, now);
            }
            LinkEvent::ConnectFailed { peer, address, error, repeated } => {
                let address = address.map(|address| format!("{address}: ")).unwrap_or_default();
                tracing::warn!(repeated, "no connection: {address}{error}");
                let hosts = self.plane.shared.hosts.borrow();
                for (_, host) in hosts.iter() {
                    let mut host = host.borrow_mut();
                    if peer == Some(link_node(host.mirror.peer())) && host.session.is_none() {
                        host.link_trouble = Some(format!("{address}{error}"));
                    }
                }
            }
        }
    }

    fn on_item(&mut self, item: Item, events: &mut Vec<Event>, now: Time) {
        match item {
            Item::Request { host, request, requester, ticket } => {
                if host.borrow().is_leaving {
                    let result = Err(core::IoError::Io);
                    return self.answers.push(Ready { requester, ticket, result });
                }
                host.borrow_mut().requests.begin(request, requester, ticket, now, events);
                for event in events.drain(..) {
                    self.handle(&host, event, now);
                }
            }
            Item::Arbiter { host, attempt, answer } => {
                if let Some(host) = host.upgrade() {
                    self.handle(&host, Event::Arbiter { attempt, answer }, now);
                }
            }
        }
    }

    fn on_deadlines(&mut self, now: Time) {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let hosts: Vec<_> = self.plane.shared.hosts.borrow().iter().map(|(_, host)| Rc::clone(host)).collect();
        for host in hosts {
            let (is_due, look) = {
                let mut host = host.borrow_mut();
                if host.is_leaving {
                    continue;
                }
                let due = |at: &mut Time| *at <= now;
                (host.timer.take_if(due).is_some(), host.want_from.take_if(due).map(|_| host.id))
            };
            if let Some(mirror) = look {
                self.link.want(mirror, true);
            }
            if is_due {
                self.handle(&host, Event::Timer, now);
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        let hosts = self.plane.shared.hosts.borrow();
        hosts.iter().filter_map(|(_, host)| host.borrow().deadline()).min()
    }

    /// One event of one mirror, and everything that follows from it at once.
    fn handle(&mut self, host: &Rc<RefCell<Host>>, event: Event, now: Time) {
        let mut mirror = host.borrow_mut();
        if mirror.is_leaving {
            return;
        }
        let mut next = Some(event);
        while let Some(event) = next {
            mirror.mirror.handle(now, event, &mut self.actions);
            self.carry_out(host, &mut mirror, now);
            next = self.follow_ups.pop_front();
        }
    }

    /// Carries the core's actions out, in their order.
    fn carry_out(&mut self, shared: &Rc<RefCell<Host>>, host: &mut Host, now: Time) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Disk { id, op } => match &host.stores.disk {
                    Ok((_, disk)) => {
                        host.stores.in_flight += 1;
                        self.storage.submit(*disk, tagged(host.slot, id.0), op);
                    }
                    Err(_) => {
                        let result = Err(DiskFault::Io(rustix::io::Errno::NODEV.raw_os_error()));
                        self.follow_ups.push_back(Event::Disk { id, result });
                    }
                },
                Action::Metadata { id, steps } => {
                    host.stores.in_flight += 1;
                    self.storage.submit_metadata(host.stores.metadata, tagged(host.slot, id.0), steps);
                }
                Action::Send { session, class, message } => {
                    let encoded = message::encode(&message);
                    let frame = OutFrame { kind: encoded.kind, head: encoded.head, payload: encoded.payload };
                    self.link.send(quic::SessionId(session.0), wire_class(class), frame);
                }
                Action::CloseSession { session, reason } => {
                    let session = quic::SessionId(session.0);
                    host.session.take_if(|up| *up == session);
                    self.link.close(session, CloseReason::new(code::FIRST_OF_ENGINE, reason));
                }
                Action::WantSession { from } => {
                    host.want_from = from.filter(|from| *from > now);
                    self.link.want(host.id, from.is_some_and(|from| from <= now));
                }
                Action::AskArbiter { attempt, ask } => {
                    let pending = Rc::clone(&host.arbiter).ask(attempt, ask);
                    let (inbox, host) = (Rc::clone(&self.plane.shared.inbox), Rc::downgrade(shared));
                    tokio::task::spawn_local(async move {
                        let answer = pending.await;
                        inbox.push(Item::Arbiter { host, attempt, answer });
                    });
                }
                Action::Complete { id, result } => {
                    let ready = host.requests.end(id, result, now, &mut host.latency);
                    self.answers.extend(ready);
                }
                Action::CommandDone { id, result } => host.answer_command(id, result),
                Action::SetTimer { at } => host.timer = at,
                Action::DrawTags(count) => self.follow_ups.push_back(Event::Tags(random_tags(count))),
                Action::BreakToken => {
                    if let Err(error) = host.token.break_it() {
                        tracing::error!(mirror = &*host.name, path = %host.token.path().display(), %error,
                            "the token of an unbroken copy can't be removed: remove the file before the daemon starts again");
                    }
                }
                Action::Report(notice) => self.report(host, notice, now),
            }
        }
        self.actions = actions;
    }

    fn report(&self, host: &mut Host, notice: Notice, now: Time) {
        log(&host.name, &notice, &mut host.repeats, now);
        // In sync: the record names this boot durably, and from here on a lost write removes the token.
        if let Notice::Replication { to: Replication::Established, .. } = notice
            && let Err(error) = host.token.make()
        {
            tracing::warn!(mirror = &*host.name, path = %host.token.path().display(), %error,
                "no token can be made: after a restart of the daemon this copy counts as one that lost writes");
        }
        // Nobody may be listening.
        let _ = self.events.send(MirrorEvent { mirror: Arc::clone(&host.name), at: wall(), notice });
    }
}

impl Loop {
    fn on_order(&mut self, order: Order, now: Time) -> Option<End> {
        match order {
            Order::Add(opened, reply) => {
                let _ = reply.send(self.add(*opened, now));
            }
            Order::Command(name, command, answerer) => match self.host_named(&name) {
                Some(host) => {
                    let event = host.borrow_mut().command(command, answerer);
                    self.handle(&host, event, now);
                }
                None => {
                    let _ = answerer.send(Err(no_such_mirror(&name)));
                }
            },
            Order::Status(reply) => {
                let hosts = self.plane.shared.hosts.borrow();
                let hosts = hosts.iter().map(|(_, host)| host.borrow_mut()).filter(|host| !host.is_leaving);
                let status = hosts.map(|mut host| {
                    MirrorStatus::of(&mut host, self.index, now, &self.storage, &self.link)
                });
                let _ = reply.send(status.collect());
            }
            Order::SetPeers(peers) => {
                self.peers = peers_of(&peers, self.index);
                self.link.set_peers(self.peers.clone());
            }
            Order::SetArbiter(name, config, reply) => {
                // Its place and keys may have changed under the same name.
                self.remotes.clear();
                let changed = match self.host_named(&name) {
                    None => Err(StartError::Arbiter { mirror: name, error: "there is no such mirror".to_owned() }),
                    Some(host) => {
                        let mut host = host.borrow_mut();
                        host.config.arbiter = config;
                        self.arbiter(&host.config).map(|arbiter| host.arbiter = arbiter)
                    }
                };
                let _ = reply.send(changed);
            }
            Order::Remove(name, reply) => match self.host_named(&name) {
                None => drop(reply.send(())),
                Some(host) => self.forget(&host, Some(reply)),
            },
            Order::Spawn(spawn) => spawn(self.plane.clone()),
            Order::End => return Some(End::Orderly),
            Order::Abandon => return Some(End::Abrupt),
        }
        None
    }

    fn add(&mut self, opened: Opened, now: Time) -> Result<(), StartError> {
        let Opened { config, recovered, findings, data, metadata_file, metadata_area } = opened;
        let id = MirrorId(config.mirror);
        if self.by_id.contains_key(&id) || self.host_named(&config.name).is_some() {
            return Err(StartError::Exists(config.name));
        }
        let arbiter = self.arbiter(&config)?;
        let mut map = None;
        let (mut unmap_zeroes, mut rotational) = (false, false);
        let data_start = recovered.superblock.backing.data_offset;
        let disk = data.map(|(file, area)| {
            let can = file.capabilities();
            unmap_zeroes = can.unmap_zeroes;
            rotational = can.rotational.unwrap_or(false);
            if can.kind == StoreKind::File {
                // Its locks are the other descriptor's; this one only looks for holes.
                map = std::fs::File::open(&config.backing).ok();
            }
            let store = self.storage.add_store(file);
            (store, self.storage.add_disk(store, area))
        });
        let metadata_store = metadata_file.map(|file| self.storage.add_store(file));
        let store = match (metadata_store, &disk) {
            (Some(store), _) => store,
            (None, Ok((store, _))) => *store,
            (None, Err(_)) => unreachable!("metadata in the tail of a store that is not open"),
        };
        let metadata = self.storage.add_metadata(store, metadata_area);
        let name: Arc<str> = config.name.as_str().into();
        if let Err(why) = &disk {
            tracing::error!(mirror = &*name, "this copy is diskless: {why}");
        }
        let token = self.boot.token(&config.name, config.mirror);
        let start = Start {
            node: self.node,
            peer: config.peer,
            recovered,
            settings: config.settings.clone(),
            boot: self.boot.id(),
            token: token.is_whole(),
            disk_usable: disk.is_ok(),
            unmap_zeroes,
            tags: random_tags(TAGS),
        };
        let mut mirrors = self.mirrors();
        mirrors.push((id, link_node(config.peer)));
        self.link.set_mirrors(&mirrors);
        let mirror = Mirror::new(start, now, &mut self.actions);
        let stores = Stores { disk, metadata_store, metadata, in_flight: 0, data_start, map, rotational };
        let host = Host::new(Arc::clone(&name), config, mirror, token, arbiter, stores, findings, now);
        let host = Rc::new(RefCell::new(host));
        let slot = self.plane.shared.hosts.borrow_mut().insert(Rc::clone(&host));
        self.by_id.insert(id, slot);
        tracing::info!(mirror = &*name, thread = self.index, "started");
        let mut mirror = host.borrow_mut();
        mirror.slot = slot;
        self.carry_out(&host, &mut mirror, now);
        drop(mirror);
        // What the first actions wanted answered at once.
        while let Some(event) = self.follow_ups.pop_front() {
            self.handle(&host, event, now);
        }
        Ok(())
    }

    fn mirrors(&self) -> Vec<(MirrorId, quic::NodeId)> {
        let hosts = self.plane.shared.hosts.borrow();
        let hosts = hosts.iter().map(|(_, host)| host.borrow()).filter(|host| !host.is_leaving);
        hosts.map(|host| (host.id, link_node(host.mirror.peer()))).collect()
    }

    fn arbiter(&mut self, config: &MirrorConfig) -> Result<Rc<dyn Arbiter>, StartError> {
        let ArbiterConfig::Witness { witness, register } = &config.arbiter else {
            return Ok(Rc::new(NoArbiter));
        };
        let remote = match self.remotes.get(&witness.name) {
            Some(remote) => Rc::clone(remote),
            None => {
                let remote = Remote::new(&self.keys.current, witness.clone());
                let remote = remote.map_err(|error| StartError::Arbiter {
                    mirror: config.name.clone(),
                    error: error.to_string(),
                })?;
                self.remotes.insert(witness.name.clone(), Rc::clone(&remote));
                remote
            }
        };
        let register = RegisterId(register.unwrap_or(config.mirror));
        Ok(Client::new(remote, register, self.members(config.peer)))
    }

    /// The keys that a register of a mirror shared with `peer` is bound to.
    fn members(&self, peer: NodeId) -> Vec<Fingerprint> {
        let peer = self.peers.iter().filter(|config| config.node == link_node(peer));
        let peer = peer.flat_map(|peer| peer.fingerprints.iter().copied()).take(2);
        let mine = [Some(&self.keys.current), self.keys.next.as_ref()];
        mine.into_iter().flatten().map(|key| key.fingerprint()).chain(peer).collect()
    }

    /// Stops serving a mirror; its stores close when nothing is on its way to them any more.
    fn forget(&mut self, host: &Rc<RefCell<Host>>, reply: Option<oneshot::Sender<()>>) {
        let (id, slot) = {
            let mut host = host.borrow_mut();
            host.is_leaving = true;
            host.requests.fail_all(&mut self.answers);
            (host.id, host.slot)
        };
        self.by_id.remove(&id);
        let mirrors = self.mirrors();
        self.link.set_mirrors(&mirrors);
        self.leaving.push((slot, reply));
    }

    fn release(&mut self) {
        let Self { leaving, plane, storage, .. } = self;
        leaving.retain_mut(|(slot, reply)| {
            let host = Rc::clone(&plane.shared.hosts.borrow()[*slot]);
            let host = host.borrow();
            if host.stores.in_flight > 0 {
                return true;
            }
            storage.remove_metadata(host.stores.metadata);
            if let Ok((store, disk)) = host.stores.disk {
                storage.remove_disk(disk);
                storage.remove_store(store);
            }
            if let Some(store) = host.stores.metadata_store {
                storage.remove_store(store);
            }
            plane.shared.hosts.borrow_mut().remove(*slot);
            tracing::info!(mirror = &*host.name, "stopped, its stores are closed");
            if let Some(reply) = reply.take() {
                let _ = reply.send(());
            }
            false
        });
    }
}

fn wire_class(class: Class) -> frame::Class {
    match class {
        Class::Control => frame::Class::Control,
        Class::Data => frame::Class::Data,
        Class::Resync => frame::Class::Resync,
    }
}

/// Tags drawn at random. The system always has some; a tag that is not random could be another's.
fn random_tags(count: usize) -> Vec<u64> {
    let draw = |_| getrandom::u64().unwrap_or_else(|error| panic!("the system gives no random numbers: {error}"));
    (0..count).map(draw).collect()
}

/// The refusal of a command for a mirror that this node doesn't have.
pub(super) fn no_such_mirror(name: &str) -> Refusal {
    Refusal {
        what: format!("mirror {name}: not known here, or not started"),
        facts: Vec::new(),
        next: "`kagami status` shows the mirrors of this node; the log says why one was not started".to_owned(),
    }
}
