//! Two cores and what is around them, one event at a time: nothing happens unless a test lets it.
//!
//! What a core asks for lies in a queue of its node until it is taken: disk operations, metadata
//! writes, messages from the peer, questions to the arbiter. [`Pair::pump`] takes whatever is not
//! held, in a fixed order; no time passes in it. Both cores' invariants are asserted after every event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use kagami_bitmap::superblock::{Backing, Record, Superblock};
use kagami_bitmap::{Layout, Placement, Recovered};
use kagami_replicator::core::event::{Reply, Request};
use kagami_replicator::core::message::Message;
use kagami_replicator::core::register::{ArbiterAnswer, Ask};
use kagami_replicator::core::state::{
    Attempt, CommandId, DiskId, MetaId, NodeId, RequestId, SessionId, Solo, Time,
};
use kagami_replicator::core::{
    Action, Actions, Command, DiskFault, DiskOp, DiskResult, Event, Heap, IoError, Mirror, Notice,
    Refusal, Settings, Start, TAGS,
};

use crate::sim::arbiter::Arbiter;
use crate::sim::coverage;

/// Bytes of the mirror: four extents.
pub const SIZE: u64 = 16 << 20;
/// More events than that at one moment are a livelock.
const MOST: usize = 50_000;
pub const MS: u64 = 1_000_000;

// Orders.
pub const DEMOTE: Command = Command::Demote { force: false };
pub const PROMOTE: Command = Command::Promote {
    force: false,
    while_resyncing: false,
};
/// Whatever the other node knows.
pub const FORCE: Command = Command::Promote {
    force: true,
    while_resyncing: false,
};

/// What is not taken from a node's queues.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hold {
    pub reads: bool,
    pub writes: bool,
    pub flushes: bool,
    pub metadata: bool,
    /// Messages from the peer.
    pub messages: bool,
    pub asks: bool,
    /// Memory for what the peer is asked for.
    pub rooms: bool,
}

/// One thing that ends when a test says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Disk(DiskId),
    Metadata(MetaId),
    Ask(Attempt),
}

/// One node.
#[derive(Debug)]
pub struct Side {
    /// The token of a copy that has lost no completed write since boot.
    pub token: bool,
    /// This stays in its queue, whatever else is taken.
    pub kept: Option<Kept>,
    pub mirror: Mirror,
    pub hold: Hold,
    pub disk: VecDeque<(DiskId, DiskOp)>,
    pub metadata: VecDeque<MetaId>,
    /// What was to be written there, from the beginning: the steps of each write, and the places in a step.
    pub stored: Vec<Vec<Vec<(u64, Bytes)>>>,
    pub messages: VecDeque<(SessionId, Message)>,
    pub asks: VecDeque<(Attempt, Ask)>,
    pub rooms: VecDeque<RequestId>,
    pub session: Option<SessionId>,
    /// It looks for its peer, from then on.
    pub wants: Option<Time>,
    deadline: Option<Time>,
    /// By block; what is not there reads as zeroes.
    data: BTreeMap<u64, Bytes>,
    /// Blocks that can't be read until they are written.
    pub bad: BTreeSet<u64>,
    next_tag: u64,
    /// What was answered, in order.
    pub answers: Vec<(CommandId, Result<Reply, Refusal>)>,
    pub replies: Vec<(RequestId, Result<Bytes, IoError>)>,
    pub notices: Vec<Notice>,
    /// Flushes that the disk was asked for.
    pub flushes: usize,
    /// Questions that the arbiter was asked.
    pub asked: usize,
}

/// The two of them; node 0 has the lower id.
#[derive(Debug)]
pub struct Pair {
    pub now: u64,
    pub sides: [Side; 2],
    pub arbiter: Arbiter,
    /// The link is there.
    pub linked: bool,
    /// Of the protocol, in sessions to come.
    pub version: u16,
    /// Orders and requests that are not answered: the node, and the id.
    pub open: BTreeSet<(usize, u64)>,
    sessions: u64,
    orders: u64,
}

/// What the core was made to do by one event.
pub type Effects = Actions;

/// A new copy of so many bytes, whose peer is the other node.
pub fn start(node: usize, settings: &Settings, size: u64) -> Start {
    let mut record = Record::new(7, node as u64 + 1, size);
    record.peer = Some(2 - node as u64);
    record.zeroed = true;
    let layout = Layout::new(size, 64, Placement::Own).expect("a layout");
    let backing = Backing {
        data_offset: 0,
        store_size: size,
    };
    let mut superblock = Superblock::new(layout, backing, 0, record);
    superblock.seq = 2;
    Start {
        node: NodeId(node as u64 + 1),
        peer: NodeId(2 - node as u64),
        recovered: Recovered::of_new(superblock),
        settings: settings.clone(),
        boot: node as u128 + 1,
        token: true,
        disk_usable: true,
        unmap_zeroes: true,
        tags: (1..=TAGS as u64).map(|n| first_tag(node) + n).collect(),
        memory: Box::new(Heap),
    }
}

fn first_tag(node: usize) -> u64 {
    (node as u64 + 1) << 32
}

impl Side {
    /// The core's next deadline.
    pub fn due(&self) -> Option<Time> {
        self.deadline
    }

    fn read(&self, offset: u64, len: u32) -> DiskResult {
        let mut blocks = offset / 4096..(offset + u64::from(len)) / 4096;
        if blocks.any(|at| self.bad.contains(&at)) {
            return Err(DiskFault::Io(5));
        }
        Ok(self.content(offset, len))
    }

    fn content(&self, offset: u64, len: u32) -> Bytes {
        let mut data = Vec::with_capacity(len as usize);
        for at in offset / 4096..(offset + u64::from(len)) / 4096 {
            match self.data.get(&at) {
                Some(block) => data.extend_from_slice(block),
                None => data.resize(data.len() + 4096, 0),
            }
        }
        data.into()
    }
}

impl Pair {
    /// Two new copies that ask an arbiter, linked, and nothing has happened yet.
    pub fn new() -> Self {
        Self::with(&Settings {
            solo: Solo::Arbiter,
            ..Settings::default()
        })
    }

    pub fn with(settings: &Settings) -> Self {
        Self::of([0, 1].map(|node| start(node, settings, SIZE)))
    }

    /// Of what the two nodes begin with.
    pub fn of(starts: [Start; 2]) -> Self {
        let now = 1_000_000 * MS;
        let [first, second] = starts;
        let side = |node, start| {
            let mut out = Actions::new();
            let mirror = Mirror::new(start, Time(now), &mut out);
            let side = Side {
                token: true,
                kept: None,
                mirror,
                hold: Hold::default(),
                disk: VecDeque::new(),
                metadata: VecDeque::new(),
                stored: Vec::new(),
                messages: VecDeque::new(),
                asks: VecDeque::new(),
                rooms: VecDeque::new(),
                session: None,
                wants: None,
                deadline: None,
                data: BTreeMap::new(),
                bad: BTreeSet::new(),
                next_tag: first_tag(node) + 1_000,
                answers: Vec::new(),
                replies: Vec::new(),
                notices: Vec::new(),
                flushes: 0,
                asked: 0,
            };
            (side, out)
        };
        let ((a, out_a), (b, out_b)) = (side(0, first), side(1, second));
        let mut pair = Self {
            now,
            sides: [a, b],
            arbiter: Arbiter::default(),
            linked: true,
            version: 2,
            open: BTreeSet::new(),
            sessions: 0,
            orders: 0,
        };
        pair.carry_out(0, &out_a);
        pair.carry_out(1, &out_b);
        pair
    }

    /// A node's machine starts anew. Nothing of its copy is marked, or lost; nothing is under way.
    pub fn restart(&mut self, node: usize) {
        let before = self.sides[node].mirror.record().boot;
        self.begin(node, |start| start.boot += before.unwrap_or_default());
    }

    /// A node's daemon starts anew, with its token or without. Nothing of its copy is marked; nothing is under way.
    pub fn respawn(&mut self, node: usize, token: bool) {
        self.begin(node, |start| start.token = token);
    }

    /// The same, of what a test says.
    pub fn begin(&mut self, node: usize, change: impl FnOnce(&mut Start)) {
        let before = &self.sides[node].mirror;
        assert_eq!(before.dirty().count(), 0);
        let mut start = start(node, before.settings(), SIZE);
        start.recovered.superblock.record = before.record().clone();
        change(&mut start);
        let mut out = Actions::new();
        self.sides[node].mirror = Mirror::new(start, Time(self.now), &mut out);
        self.carry_out(node, &out);
    }

    /// Where a node stands, in the two letters of [`coverage`].
    pub fn stand(&self, node: usize) -> &'static str {
        coverage::stand(self.sides[node].mirror.situation())
    }

    /// Hands one event to a node's core, and carries out what it wants.
    pub fn handle(&mut self, node: usize, event: Event) -> Effects {
        let mut out = Actions::new();
        let side = &mut self.sides[node];
        side.mirror.handle(Time(self.now), event, &mut out);
        side.mirror.check();
        let more = self.carry_out(node, &out);
        out.extend(more);
        out
    }

    /// What followed from it at once: there is memory, unless a test says otherwise.
    fn carry_out(&mut self, node: usize, out: &Effects) -> Effects {
        let mut drawn = None;
        let mut rooms = Vec::new();
        for action in out {
            let side = &mut self.sides[node];
            match action {
                Action::Disk { id, op } => {
                    side.flushes += usize::from(*op == DiskOp::Flush);
                    side.disk.push_back((*id, op.clone()));
                }
                Action::Metadata { id, steps } => {
                    side.metadata.push_back(*id);
                    side.stored.push(steps.clone());
                }
                Action::Send {
                    session, message, ..
                } => {
                    assert_eq!(
                        side.session,
                        Some(*session),
                        "sent to a session that is over"
                    );
                    let other = &mut self.sides[1 - node];
                    if other.session == Some(*session) {
                        other.messages.push_back((*session, message.clone()));
                    }
                }
                Action::CloseSession { session, .. } => {
                    if side.session == Some(*session) {
                        side.session = None;
                    }
                }
                Action::WantSession { from } => side.wants = *from,
                Action::AskArbiter { attempt, ask } => {
                    side.asked += 1;
                    side.asks.push_back((*attempt, ask.clone()));
                }
                Action::Complete { id, result } => {
                    self.open.remove(&(node, id.0));
                    side.replies.push((*id, result.clone()));
                }
                Action::CommandDone { id, result } => {
                    self.open.remove(&(node, id.0));
                    side.answers.push((*id, result.clone()));
                }
                Action::Room { id, .. } if side.hold.rooms => side.rooms.push_back(*id),
                Action::Room { id, .. } => rooms.push(*id),
                Action::SetTimer { at } => side.deadline = *at,
                Action::DrawTags(count) => drawn = Some(*count),
                Action::Report(notice) => side.notices.push(notice.clone()),
                Action::BreakToken => side.token = false,
                Action::MakeToken => side.token = true,
            }
        }
        if let Some(count) = drawn {
            let side = &mut self.sides[node];
            let tags = (0..count as u64).map(|n| side.next_tag + n).collect();
            side.next_tag += count as u64;
            self.handle(node, Event::Tags(tags));
        }
        let given = rooms.into_iter();
        given
            .flat_map(|id| self.handle(node, Event::Room { id }))
            .collect()
    }

    /// A session at one node: the other does not know of it (yet).
    pub fn meet_at(&mut self, node: usize) -> SessionId {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.link_up(node, session);
        session
    }

    fn link_up(&mut self, node: usize, session: SessionId) {
        self.sides[node].session = Some(session);
        self.sides[node].wants = None;
        let version = self.version;
        self.handle(node, Event::LinkUp { session, version });
    }

    /// A session at both, whether they look for one or not.
    pub fn meet(&mut self) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        for node in [0, 1] {
            self.sides[node].session = Some(session);
        }
        for node in [0, 1] {
            self.link_up(node, session);
        }
    }

    /// The link is lost, with all that is on its way.
    pub fn cut(&mut self) {
        self.linked = false;
        for node in [0, 1] {
            self.sides[node].messages.clear();
            self.lose(node);
        }
    }

    fn lose(&mut self, node: usize) {
        if let Some(session) = self.sides[node].session.take() {
            let reason = "the link is lost".to_owned();
            self.handle(node, Event::LinkDown { session, reason });
        }
    }

    /// Takes one thing that is not held. False if there is none.
    pub fn step(&mut self) -> bool {
        for node in [0, 1] {
            if self.step_at(node) {
                return true;
            }
        }
        let sessions = [self.sides[0].session, self.sides[1].session];
        match sessions {
            // One has closed it, or a newer one came up.
            [Some(a), Some(b)] if a < b => self.lose(0),
            [Some(a), Some(b)] if b < a => self.lose(1),
            [Some(_), None] if self.linked => self.lose(0),
            [None, Some(_)] if self.linked => self.lose(1),
            [None, None] if self.linked && self.both_want() => self.meet(),
            _ => return false,
        }
        true
    }

    fn both_want(&self) -> bool {
        let now = Time(self.now);
        self.sides
            .iter()
            .all(|side| side.wants.is_some_and(|from| from <= now))
    }

    fn step_at(&mut self, node: usize) -> bool {
        let side = &mut self.sides[node];
        let (hold, kept) = (side.hold, side.kept);
        let mut metadata = side.metadata.iter();
        let free = metadata.position(|id| kept != Some(Kept::Metadata(*id)));
        if let Some(at) = free.filter(|_| !hold.metadata) {
            self.end_metadata(node, at, Ok(()));
            return true;
        }
        let free = side.disk.iter().position(|(id, op)| {
            kept != Some(Kept::Disk(*id))
                && match op {
                    DiskOp::Read { .. } => !hold.reads,
                    DiskOp::Write { .. } | DiskOp::Zero { .. } => !hold.writes,
                    DiskOp::Flush => !hold.flushes,
                }
        });
        if let Some(at) = free {
            self.end_disk(node, at, Ok(()));
            return true;
        }
        if !hold.messages
            && let Some((session, message)) = side.messages.pop_front()
        {
            self.handle(node, Event::Message { session, message });
            return true;
        }
        if !hold.rooms
            && let Some(id) = side.rooms.pop_front()
        {
            self.handle(node, Event::Room { id });
            return true;
        }
        let mut asks = side.asks.iter();
        let free = asks.position(|(id, _)| kept != Some(Kept::Ask(*id)));
        if let Some(at) = free.filter(|_| !hold.asks) {
            let (attempt, ask) = side.asks.remove(at).expect("a question");
            let answer = self.arbiter.answer(&ask);
            self.handle(node, Event::Arbiter { attempt, answer });
            return true;
        }
        false
    }

    /// Ends the metadata write at this place of the queue, well or badly.
    pub fn end_metadata(&mut self, node: usize, at: usize, result: Result<(), DiskFault>) {
        let id = self.sides[node].metadata.remove(at);
        let id = id.expect("a metadata write");
        self.handle(node, Event::MetadataDone { id, result });
    }

    /// Ends the disk operation at this place of the queue, well or badly.
    pub fn end_disk(&mut self, node: usize, at: usize, result: Result<(), DiskFault>) -> Effects {
        let event = self.disk_event(node, at, result);
        self.handle(node, event)
    }

    /// The end of that operation, which is carried out, or not.
    pub fn disk_event(&mut self, node: usize, at: usize, result: Result<(), DiskFault>) -> Event {
        let side = &mut self.sides[node];
        let (id, op) = side.disk.remove(at).expect("a disk operation");
        let result: DiskResult = result.and_then(|()| {
            Ok(match op {
                DiskOp::Read { offset, len } => side.read(offset, len)?,
                DiskOp::Write { offset, data, .. } => {
                    for (at, block) in (offset / 4096..).zip(data.chunks(4096)) {
                        side.data.insert(at, Bytes::copy_from_slice(block));
                        side.bad.remove(&at);
                    }
                    Bytes::new()
                }
                DiskOp::Zero { offset, len, .. } => {
                    side.data
                        .retain(|at, _| !(offset / 4096..(offset + len) / 4096).contains(at));
                    Bytes::new()
                }
                DiskOp::Flush => Bytes::new(),
            })
        });
        Event::Disk { id, result }
    }

    /// Takes whatever is not held until there is nothing more at this moment.
    pub fn pump(&mut self) {
        for _ in 0..MOST {
            if !self.step() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Takes one thing after the other until a node stands there; time passes when nothing else does.
    pub fn until(&mut self, node: usize, stand: &str) {
        let end = self.now + 60_000 * MS;
        while self.stand(node) != stand {
            if !self.step() {
                assert!(
                    self.now < end,
                    "{} never stands at {stand}, but at {}",
                    node,
                    self.stand(node)
                );
                self.tick(end);
            }
        }
    }

    /// Time passes; what becomes due happens, and what follows from it.
    pub fn elapse(&mut self, ms: u64) {
        let end = self.now + ms * MS;
        self.pump();
        while self.now < end {
            self.tick(end);
            self.pump();
        }
    }

    /// The next moment at which something is due, or the end.
    pub fn tick(&mut self, end: u64) {
        let due = |side: &Side| {
            let wants = side.wants.filter(|from| self.linked && from.0 > self.now);
            [side.deadline, wants].into_iter().flatten().min()
        };
        let next = self.sides.iter().filter_map(due).min();
        self.now = next.map_or(end, |at| at.0.clamp(self.now, end));
        for node in [0, 1] {
            let due = self.sides[node].deadline.is_some_and(|at| at.0 <= self.now);
            if due {
                self.sides[node].deadline = None;
                self.handle(node, Event::Timer);
            }
        }
    }

    /// An operator's order.
    pub fn order(&mut self, node: usize, command: Command) -> (CommandId, Effects) {
        self.orders += 1;
        let id = CommandId(self.orders);
        self.open.insert((node, id.0));
        (id, self.handle(node, Event::Command { id, command }))
    }

    /// An order that is carried out at once.
    pub fn done(&mut self, node: usize, command: Command) {
        let (id, _) = self.order(node, command.clone());
        self.pump();
        let answer = self.answer(node, id);
        assert!(matches!(answer, Some(Ok(_))), "{command:?}: {answer:?}");
    }

    /// What an order was answered.
    pub fn answer(&self, node: usize, id: CommandId) -> Option<&Result<Reply, Refusal>> {
        let mut answers = self.sides[node].answers.iter().filter(|(of, _)| *of == id);
        let first = answers.next();
        assert!(answers.next().is_none(), "answered twice");
        first.map(|(_, result)| result)
    }

    /// A front end's request.
    pub fn request(&mut self, node: usize, request: Request) -> (RequestId, Effects) {
        self.orders += 1;
        let id = RequestId(self.orders);
        self.open.insert((node, id.0));
        (id, self.handle(node, Event::Request { id, request }))
    }

    /// What a request was answered.
    pub fn reply(&self, node: usize, id: RequestId) -> Option<&Result<Bytes, IoError>> {
        let mut replies = self.sides[node].replies.iter().filter(|(of, _)| *of == id);
        let first = replies.next();
        assert!(replies.next().is_none(), "answered twice");
        first.map(|(_, result)| result)
    }

    /// Writes a block, which is answered at once.
    pub fn write(&mut self, node: usize, block: u64) {
        let (id, _) = self.request(node, write(block));
        self.pump();
        assert_eq!(self.reply(node, id), Some(&Ok(Bytes::new())));
    }

    /// Until nothing is marked at a node any more.
    pub fn until_count(&mut self, node: usize) {
        while self.sides[node].mirror.dirty().count() > 0 {
            assert!(self.step(), "something stays marked");
        }
    }

    /// The place in a node's queue of the read that has this block.
    pub fn read_of(&self, node: usize, block: u64) -> usize {
        let has = |op: &DiskOp| matches!(op, DiskOp::Read { offset, len } if (*offset..*offset + u64::from(*len)).contains(&(block * 4096)));
        let at = self.sides[node].disk.iter().position(|(_, op)| has(op));
        at.expect("a read of it")
    }

    /// What the arbiter answers to the oldest question of a node.
    pub fn arbiter_says(&mut self, node: usize, answer: ArbiterAnswer) -> Effects {
        let (attempt, _) = self.sides[node].asks.pop_front().expect("a question");
        self.handle(node, Event::Arbiter { attempt, answer })
    }

    /// A block of a node's disk is another one now, and nobody was told.
    pub fn rot(&mut self, node: usize, block: u64) {
        let rotten = Bytes::from(vec![0xee; 4096]);
        self.sides[node].data.insert(block, rotten);
    }

    /// A block of a node's disk reads as zeroes again.
    pub fn heal(&mut self, node: usize, block: u64) {
        self.sides[node].data.remove(&block);
    }

    /// What a node's disk holds.
    pub fn content(&self, node: usize, offset: u64, len: u32) -> Bytes {
        self.sides[node].content(offset, len)
    }

    /// Both stores hold the same. (A block of zeroes is as good as one that was never written.)
    pub fn is_equal(&self) -> bool {
        let [a, b] = [0, 1].map(|node: usize| {
            let blocks = self.sides[node].data.iter();
            blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0))
        });
        a.eq(b)
    }
}

/// A write of one block, with content of its own.
pub fn write(block: u64) -> Request {
    Request::Write {
        offset: block * 4096,
        data: Bytes::from(vec![block as u8 + 1; 4096]),
        fua: false,
    }
}
