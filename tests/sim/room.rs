//! The memory of a daemon, of which each of its mirrors has an account: the shell's own pool (`shell/buffers`), taken as
//! the shell takes it.
//!
//! A write waits for memory before the core hears of it, a read before it goes to the disk or to the peer, and a stream
//! stands still at a payload that there is no memory for. What waits is woken by the pool and by nothing else: a wake
//! that is lost is a mirror that stands still. A mirror that is alone has memory without a bound, as it always had.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use kagami_replicator::core::disk::{DiskOp, DiskResult};
use kagami_replicator::core::event::{IoError, Request};
use kagami_replicator::core::state::RequestId;
use kagami_replicator::core::{Heap, Memory};
use kagami_replicator::shell::buffers::{
    Account, Buffer, MIN_RESERVE, PAGE, Pool, PoolConfig, Share, WaitAlloc,
};
use kagami_replicator::wire::message::Encoded;

use super::check::Violation;
use super::net::End;
use super::workload::Op;
use super::world::{Checked, Happening, World};

/// A pool that front ends may have so many pages of, with the least reserve that a daemon's has.
pub fn pool(pages: usize) -> Pool {
    let config = PoolConfig {
        bytes: pages * PAGE + MIN_RESERVE,
        reserve: MIN_RESERVE,
        lock: false,
    };
    Pool::new(&config).expect("memory for a pool")
}

/// Whether the pool has told that it may go on.
#[derive(Debug)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Somebody who waits for memory.
#[derive(Debug)]
struct Wait {
    wait: WaitAlloc,
    bell: Arc<Bell>,
}

impl Wait {
    /// It waits from now on, and is in the pool's queue.
    fn new(account: &Account, len: usize, share: Share) -> Self {
        Self {
            wait: account.wait_alloc(len, share),
            bell: Arc::new(Bell(AtomicBool::new(true))),
        }
    }

    /// The memory, if it was woken and there is some.
    fn poll(&mut self) -> Option<Buffer> {
        if !self.bell.0.swap(false, Ordering::Relaxed) {
            return None;
        }
        let waker = Waker::from(Arc::clone(&self.bell));
        match Pin::new(&mut self.wait).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(Ok(buffer)) => Some(buffer),
            Poll::Ready(Err(error)) => panic!("no pool is that small: {error}"),
            Poll::Pending => None,
        }
    }
}

/// Memory now, or a place in the queue.
fn take(account: &Account, len: usize, share: Share) -> Result<Buffer, Wait> {
    if let Some(buffer) = account.alloc(len, share) {
        return Ok(buffer);
    }
    let mut wait = Wait::new(account, len, share);
    wait.poll().ok_or(wait)
}

/// A stream of a session, towards this node.
type Stream = (u64, usize);

/// What a mirror has of a daemon's memory.
#[derive(Debug)]
pub struct Room {
    /// The daemon's.
    pub pool: Pool,
    account: Option<Account>,
    /// Writes that front ends want to send.
    asked: VecDeque<(Op, Wait)>,
    /// Reads from the disk that have no memory yet, first come, first served.
    starved: VecDeque<(u64, DiskOp, usize)>,
    /// For the first of them.
    feed: Option<Wait>,
    /// What reads under way are to be read into.
    reads: BTreeMap<u64, Buffer>,
    /// Answers that the peer is to send, once there is memory.
    wanted: BTreeMap<RequestId, Wait>,
    /// Memory for answers that the peer is asked for.
    answers: BTreeMap<RequestId, Buffer>,
    /// Streams that stand still.
    streams: BTreeMap<Stream, Wait>,
    /// Memory for what comes next on them.
    granted: BTreeMap<Stream, Buffer>,
    /// Answers that a front end does not take.
    pub untaken: Vec<Bytes>,
}

impl Room {
    /// Nothing of it yet.
    pub fn new(pool: Pool) -> Self {
        Self {
            pool,
            account: None,
            asked: VecDeque::new(),
            starved: VecDeque::new(),
            feed: None,
            reads: BTreeMap::new(),
            wanted: BTreeMap::new(),
            answers: BTreeMap::new(),
            streams: BTreeMap::new(),
            granted: BTreeMap::new(),
            untaken: Vec::new(),
        }
    }

    /// How many wait.
    fn waiting(&self) -> usize {
        self.asked.len() + self.starved.len() + self.wanted.len() + self.streams.len()
    }
}

impl World {
    fn room(&mut self, node: usize) -> Option<(&mut Room, Account)> {
        let room = &mut self.member.as_mut()?.rooms[node];
        let account = room.account.clone()?;
        Some((room, account))
    }

    /// The core's memory: a daemon serves the mirror from now on.
    pub(super) fn open_account(&mut self, node: usize) -> Box<dyn Memory> {
        let Some(member) = &mut self.member else {
            return Box::new(Heap);
        };
        let account = member.rooms[node].pool.open_account();
        member.rooms[node].account = Some(account.clone());
        Box::new(account)
    }

    /// The daemon does not serve the mirror any more.
    pub(super) fn close_account(&mut self, node: usize) {
        if let Some(member) = &mut self.member {
            let pool = member.rooms[node].pool.clone();
            let gone = std::mem::replace(&mut member.rooms[node], Room::new(pool));
            if let Some(account) = gone.account {
                account.close();
            }
        }
    }

    /// How many writes wait until there is memory to send them in.
    pub(super) fn asked(&self) -> usize {
        let Some(member) = &self.member else { return 0 };
        member.rooms.iter().map(|room| room.asked.len()).sum()
    }

    /// True if anything waits for memory.
    pub(super) fn waits_for_room(&self) -> bool {
        let rooms = self.member.iter().flat_map(|member| &member.rooms);
        rooms.map(Room::waiting).sum::<usize>() > 0
    }

    /// What waits for memory, for people.
    pub(super) fn room_words(&self) -> String {
        let Some(member) = &self.member else {
            return String::new();
        };
        let words = |room: &Room| {
            let stats = room.pool.stats();
            format!(
                "{} writes, {} reads (the first of {} KiB), {} answers, {} streams wait; {} KiB held for answers; {} of {} KiB in use",
                room.asked.len(),
                room.starved.len(),
                room.starved.front().map_or(0, |(_, _, len)| len >> 10),
                room.wanted.len(),
                room.streams.len(),
                room.answers.values().map(|room| room.len()).sum::<usize>() >> 10,
                stats.in_use >> 10,
                stats.total >> 10,
            )
        };
        let [a, b] = &member.rooms;
        format!("; memory: {} / {}", words(a), words(b))
    }

    /// A front end has a write: with the memory that it is sent in, or `None` while it waits for that.
    pub(super) fn room_to_ask(&mut self, node: usize, op: Op) -> Option<(Op, Option<Buffer>)> {
        let len = match &op {
            Op::Write { values, .. } => values.len() * super::content::SECTOR,
            _ => return Some((op, None)),
        };
        let Some((room, account)) = self.room(node) else {
            return Some((op, None));
        };
        match take(&account, len, Share::FrontEnd) {
            Ok(buffer) => Some((op, Some(buffer))),
            Err(wait) => {
                room.asked.push_back((op, wait));
                self.stats.mark("memory: a write waits");
                None
            }
        }
    }

    /// A read for the disk: whether there is memory for it, else it waits.
    pub(super) fn room_to_read(&mut self, node: usize, op_id: u64, op: &DiskOp) -> bool {
        let DiskOp::Read { len, .. } = op else {
            return true;
        };
        let len = *len as usize;
        let Some((room, account)) = self.room(node) else {
            return true;
        };
        if room.starved.is_empty() {
            match take(&account, len, Share::Read) {
                Ok(buffer) => {
                    room.reads.insert(op_id, buffer);
                    return true;
                }
                Err(wait) => room.feed = Some(wait),
            }
        }
        room.starved.push_back((op_id, op.clone(), len));
        self.stats.mark("memory: a read waits");
        false
    }

    /// What a read found, in the memory that it was read into; that of one which failed is free again.
    pub(super) fn read_into(&mut self, node: usize, op_id: u64, found: DiskResult) -> DiskResult {
        let room = self.member.as_mut().map(|member| &mut member.rooms[node]);
        match room.and_then(|room| room.reads.remove(&op_id)) {
            Some(buffer) => found.map(|found| fill(buffer, &found)),
            None => found,
        }
    }

    /// Memory for what the peer is to be asked for. False: there is no bound.
    pub(super) fn room_for_answer(&mut self, node: usize, id: RequestId, len: u32) -> bool {
        let life = self.nodes[node].life;
        let Some((room, account)) = self.room(node) else {
            return false;
        };
        match take(&account, len as usize, Share::Answer) {
            Ok(buffer) => {
                room.answers.insert(id, buffer);
                self.plan(0, Happening::Room { node, life, id });
            }
            Err(wait) => {
                room.wanted.insert(id, wait);
                self.stats.mark("memory: an answer waits");
            }
        }
        true
    }

    /// A request was answered: what was kept for the answer holds it, until the front end has taken it.
    pub(super) fn answer_taken(
        &mut self,
        node: usize,
        id: RequestId,
        answer: Result<&Bytes, &IoError>,
    ) {
        let Some(member) = &mut self.member else {
            return;
        };
        let deaf = member.stall.is_some_and(|stall| stall.is_deaf());
        let room = &mut member.rooms[node];
        let kept = room.answers.remove(&id);
        if let (true, Ok(answer)) = (deaf, answer) {
            let answer = kept.map_or_else(|| answer.clone(), |buffer| fill(buffer, answer));
            room.untaken.push(answer);
        }
    }

    /// A payload arrives: in memory of this node, or `None` while the stream waits for some.
    pub(super) fn room_to_arrive(
        &mut self,
        session: u64,
        from: usize,
        class: usize,
    ) -> Option<Option<Buffer>> {
        let len = self.net.next_payload(session, from, class, self.now);
        let Some((room, account)) = self.room(1 - from) else {
            return Some(None);
        };
        let stream = (session, class);
        if room.streams.contains_key(&stream) {
            return None;
        }
        if let Some(buffer) = room.granted.remove(&stream) {
            return Some(Some(buffer));
        }
        let Some(len) = len.filter(|len| *len > 0) else {
            return Some(None);
        };
        match take(&account, len, Share::Peer) {
            Ok(buffer) => Some(Some(buffer)),
            Err(wait) => {
                room.streams.insert(stream, wait);
                self.stats.mark("memory: a stream waits");
                None
            }
        }
    }

    /// Whoever was woken goes on. True if anybody did.
    pub(super) fn go_on(&mut self) -> Checked<bool> {
        if self.member.is_none() {
            return Ok(false);
        }
        self.forget_streams();
        let mut went_on = false;
        for node in 0..2 {
            went_on |= self.feed_streams(node) | self.feed_answers(node);
            went_on |= self.feed_reads(node)? | self.feed_front_end(node)?;
        }
        Ok(went_on)
    }

    /// Streams whose session is over wait no more.
    fn forget_streams(&mut self) {
        for node in 0..2 {
            let (net, Some(member)) = (&mut self.net, &mut self.member) else {
                return;
            };
            let mut is_up = |session: u64| {
                let open = net.session(session);
                open.is_some_and(|open| open.ends[node] == End::Up)
            };
            let room = &mut member.rooms[node];
            room.streams.retain(|(session, _), _| is_up(*session));
            room.granted.retain(|(session, _), _| is_up(*session));
        }
    }

    fn feed_streams(&mut self, node: usize) -> bool {
        let mut fed = Vec::new();
        if let Some((room, _)) = self.room(node) {
            for (stream, wait) in &mut room.streams {
                if let Some(buffer) = wait.poll() {
                    fed.push(*stream);
                    room.granted.insert(*stream, buffer);
                }
            }
            room.streams.retain(|stream, _| !fed.contains(stream));
        }
        let from = 1 - node;
        for (session, class) in &fed {
            let (session, class) = (*session, *class);
            // and what came behind it meanwhile
            for (other, len) in self.net.waiting_in(session, from) {
                for _ in 0..if other == class { len } else { 0 } {
                    let arrive = Happening::Arrive {
                        session,
                        from,
                        class,
                    };
                    self.plan(0, arrive);
                }
            }
        }
        !fed.is_empty()
    }

    fn feed_answers(&mut self, node: usize) -> bool {
        let mut fed = Vec::new();
        if let Some((room, _)) = self.room(node) {
            for (id, wait) in &mut room.wanted {
                if let Some(buffer) = wait.poll() {
                    fed.push(*id);
                    room.answers.insert(*id, buffer);
                }
            }
            room.wanted.retain(|id, _| !fed.contains(id));
        }
        let life = self.nodes[node].life;
        for id in &fed {
            let id = *id;
            self.plan(0, Happening::Room { node, life, id });
        }
        !fed.is_empty()
    }

    fn feed_reads(&mut self, node: usize) -> Checked<bool> {
        let mut fed = false;
        while let Some((room, account)) = self.room(node)
            && let Some(buffer) = room.feed.as_mut().and_then(Wait::poll)
        {
            room.feed = None;
            let first = room.starved.pop_front();
            if let Some((_, _, len)) = room.starved.front() {
                room.feed = Some(Wait::new(&account, *len, Share::Read));
            }
            if let Some((op_id, op, _)) = first {
                room.reads.insert(op_id, buffer);
                self.submit(node, op_id, op);
            }
            fed = true;
        }
        Ok(fed)
    }

    fn feed_front_end(&mut self, node: usize) -> Checked<bool> {
        let mut fed = false;
        while let Some((room, _)) = self.room(node) {
            let mut asked = room.asked.iter_mut().enumerate();
            let ready = asked.find_map(|(nth, (_, wait))| Some((nth, wait.poll()?)));
            let Some((nth, buffer)) = ready else { break };
            if let Some((op, _)) = room.asked.remove(nth) {
                self.ask(node, op, Some(buffer))?;
            }
            fed = true;
        }
        Ok(fed)
    }

    /// *Bounded-memory*: a daemon has no more than its configuration gave it.
    pub(super) fn check_room(&self) -> Checked {
        let rooms = self.member.iter().flat_map(|member| &member.rooms);
        for (room, at) in rooms.zip(&self.nodes) {
            let stats = room.pool.stats();
            if stats.in_use > stats.total {
                let what = format!(
                    "{}'s daemon has {} bytes in use of {}",
                    at.name, stats.in_use, stats.total
                );
                return Err(Violation::new("Bounded-memory", what));
            }
        }
        Ok(())
    }
}

/// The request of an operation, in the memory that it was sent in.
pub(super) fn request_in(op: &Op, buffer: Option<Buffer>) -> Request {
    match (op.request(), buffer) {
        (Request::Write { offset, data, fua }, Some(buffer)) => Request::Write {
            offset,
            data: fill(buffer, &data),
            fua,
        },
        (request, _) => request,
    }
}

/// A message whose payload is in this node's memory.
pub(super) fn received_in(mut encoded: Encoded, buffer: Option<Buffer>) -> Encoded {
    if let Some(buffer) = buffer {
        encoded.payload = encoded.payload.map(|payload| fill(buffer, &payload));
    }
    encoded
}

fn fill(mut buffer: Buffer, bytes: &Bytes) -> Bytes {
    buffer.truncate(bytes.len());
    buffer.copy_from_slice(bytes);
    buffer.freeze()
}
