//! A core whose peer, arbiter, clients and operator say anything, in any order.
//!
//! The peer here has a valid certificate and lies: it greets with any record, answers what was not
//! asked, names what is not there, and now and then does what is right, so that every state is
//! reached. The core may close the session with a reason; it may not panic, break an invariant that
//! one node can check (`Mirror::check`), or take in more than it states (docs/threat-model.md).

mod draw;
mod lies;

use std::collections::BTreeSet;

use bytes::Bytes;
use kagami_bitmap::recover::Recovered;
use kagami_bitmap::superblock::{Backing, Record, Superblock};
use kagami_bitmap::{EXTENT, Layout, Placement};
use kagami_replicator::core::event::From as Source;
use kagami_replicator::core::message::Hello;
use kagami_replicator::core::register::{ArbiterAnswer, Register};
use kagami_replicator::core::state::{Attempt, CommandId, DiskId, MetaId, RequestId, SessionId};
use kagami_replicator::core::{
    Action, Actions, Command, DiskFault, DiskOp, Event, Heap, Message, Mirror, NodeId, Request,
    Start, TAGS, Time,
};
use kagami_replicator::wire::message::{decode, encode};

use self::draw::{generation, option, run, settings, stored};
use crate::input::Input;

const MIRROR: u128 = 7;
const SIZE: u64 = 2 * EXTENT;
const BLOCKS: u64 = SIZE / 4096;
/// Operations that a peer can have under way on this node's disk, and what this node has itself.
const MOST_DISK: usize = 70_000;

/// Tags that generations have here: few, so that records meet.
const TAGS_KNOWN: u8 = 6;

/// One node: its core, what the core asked for, and the stranger at the other end.
struct World {
    mirror: Mirror,
    now: u64,
    out: Actions,
    disk: Vec<(DiskId, DiskOp)>,
    meta: Vec<MetaId>,
    session: u64,
    /// What the core sent and nobody answered yet.
    sent: Vec<Message>,
    hello: Option<Hello>,
    attempt: Option<Attempt>,
    requests: u64,
    waiting: BTreeSet<RequestId>,
    commands: u64,
    tag: u64,
}

/// An input, from a record of the copy on.
pub fn hostile(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    let mut steps = 0;
    while !input.is_empty() && steps < 400 {
        world.step(&mut input);
        steps += 1;
    }
    // The daemon lives: whatever was said, it takes orders and finishes what is under way.
    world.finish();
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let me = 1 + u64::from(input.coin());
        let mut record = Record::new(MIRROR, me, SIZE);
        let flags = input.u8();
        record.peer = (flags & 1 == 0).then_some(3 - me);
        record.zeroed = flags & 2 != 0;
        record.was_primary = flags & 4 != 0;
        record.all_marked = flags & 8 != 0;
        record.boot = (flags & 16 != 0).then_some(1);
        if flags & 32 != 0 {
            record.zeroed = false;
            record.current = Some(generation(input));
            record.disk = stored(input);
            record.history = (0..input.below(4)).map(|_| generation(input)).collect();
            record.base = record.history.last().copied().filter(|_| flags & 64 != 0);
            record.alone = flags & 128 != 0;
            record.forced_bad = input.coin();
            record.arbiter = option(input, |input| u64::from(input.below(4)));
        }
        let peer = record.peer.map_or(NodeId::NOBODY, NodeId);
        let layout = Layout::new(SIZE, 64, Placement::Own).expect("a layout");
        let backing = Backing {
            data_offset: 0,
            store_size: SIZE,
        };
        let mut superblock = Superblock::new(layout, backing, 0, record);
        superblock.seq = 2;
        // Reading a store is the business of other targets.
        let mut recovered = Recovered::of_new(superblock);
        for _ in 0..input.below(3) {
            if let Some(run) = run(input).intersect(recovered.bitmap.all()) {
                recovered.bitmap.mark(run);
            }
        }
        let start = Start {
            node: NodeId(me),
            peer,
            recovered,
            settings: settings(input),
            boot: 1,
            token: input.coin(),
            disk_usable: input.below(8) != 0,
            unmap_zeroes: input.coin(),
            tags: (1_000..1_000 + TAGS as u64).collect(),
            memory: Box::new(Heap),
        };
        let mut out = Actions::new();
        let now = 1_000_000_000;
        let mirror = Mirror::new(start, Time(now), &mut out);
        let mut world = Self {
            mirror,
            now,
            out,
            disk: Vec::new(),
            meta: Vec::new(),
            session: 0,
            sent: Vec::new(),
            hello: None,
            attempt: None,
            requests: 0,
            waiting: BTreeSet::new(),
            commands: 0,
            tag: 10_000,
        };
        world.carry_out();
        world
    }

    fn handle(&mut self, event: Event) {
        self.mirror.handle(Time(self.now), event, &mut self.out);
        self.carry_out();
        self.mirror.check();
        let _ = self.mirror.status(Time(self.now));
    }

    fn carry_out(&mut self) {
        let mut tags = None;
        let mut rooms = Vec::new();
        for action in std::mem::take(&mut self.out) {
            match action {
                Action::Disk { id, op } => self.disk.push((id, op)),
                Action::Metadata { id, steps } => {
                    assert!(!steps.is_empty());
                    self.meta.push(id);
                }
                Action::Send {
                    session, message, ..
                } => {
                    assert_eq!(
                        session,
                        SessionId(self.session),
                        "sent to a session that is over"
                    );
                    // What is sent can be spelled and read.
                    let spelled = encode(&message);
                    let back = decode(spelled.kind, &spelled.head, spelled.payload);
                    assert_eq!(back.as_ref(), Ok(&message));
                    if let Message::Hello(hello) = &message {
                        self.hello = Some((**hello).clone());
                    }
                    self.sent.push(message);
                }
                Action::CloseSession { reason, .. } => {
                    assert!(!reason.is_empty(), "closed without a reason");
                    self.sent.clear();
                }
                Action::AskArbiter { attempt, .. } => self.attempt = Some(attempt),
                Action::Complete { id, .. } => {
                    assert!(self.waiting.remove(&id), "answered twice");
                }
                Action::Room { id, .. } => rooms.push(id),
                Action::DrawTags(count) => tags = Some(count),
                Action::WantSession { .. }
                | Action::CommandDone { .. }
                | Action::SetTimer { .. }
                | Action::BreakToken
                | Action::MakeToken
                | Action::Report(_) => {}
            }
        }
        assert!(
            self.disk.len() < MOST_DISK,
            "{} disk operations",
            self.disk.len()
        );
        if let Some(count) = tags {
            let from = self.tag;
            self.tag += count as u64;
            self.handle(Event::Tags((from..self.tag).collect()));
        }
        for id in rooms {
            self.handle(Event::Room { id });
        }
    }

    fn say(&mut self, message: Message) {
        // The peer's words arrive as bytes.
        let spelled = encode(&message);
        if let Ok(message) = decode(spelled.kind, &spelled.head, spelled.payload) {
            let session = SessionId(self.session);
            self.handle(Event::Message { session, message });
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        self.now += 1_000;
        match input.below(24) {
            // Without a peer there is nobody to have a session with.
            0 if self.mirror.peer() != NodeId::NOBODY => {
                self.session += 1;
                self.sent.clear();
                self.hello = None;
                let session = SessionId(self.session);
                self.handle(Event::LinkUp {
                    session,
                    version: 2,
                });
            }
            0 | 1 => {
                let (session, reason) = (SessionId(self.session), "lost".to_owned());
                self.sent.clear();
                self.handle(Event::LinkDown { session, reason });
            }
            2..=6 => self.behave(input),
            7 => self.end_disk(input),
            8 => self.end_meta(input),
            9 => {
                self.now += u64::from(input.u16()) * 1_000_000;
                self.handle(Event::Timer);
            }
            10 => self.request(input),
            11 => self.command(input),
            12 => self.arbiter(input),
            // Everything that is under way ends well.
            13 => self.drain(),
            14 => {
                if let Some(hello) = self.greeting(input) {
                    self.say(Message::Hello(Box::new(hello)));
                }
            }
            15 => self.say(Message::Ready),
            _ => {
                if let Some(message) = self.lie(input) {
                    self.say(message);
                }
            }
        }
    }

    /// Does what a peer should do about the oldest message that waits for an answer.
    fn behave(&mut self, input: &mut Input<'_>) {
        if self.sent.is_empty() {
            return;
        }
        let message = self.sent.remove(0);
        let bytes = |len: u32| Ok(Bytes::from(vec![0; len as usize]));
        let answer = match message {
            Message::Hello(_) => match self.greeting(input) {
                Some(hello) => Message::Hello(Box::new(hello)),
                None => return,
            },
            Message::Marks { last: true, .. } => Message::Marks {
                runs: Vec::new(),
                last: true,
            },
            Message::Ready => Message::Ready,
            Message::Ping { sent } => Message::Pong { sent },
            Message::Write { seq, .. }
            | Message::Zero { seq, .. }
            | Message::ResyncBlocks { seq, .. } => Message::Done {
                seq,
                result: Ok(()),
            },
            Message::Flush { id, .. } => Message::Flushed { id, result: Ok(()) },
            Message::Offer { .. } => Message::Adopted,
            Message::Adopted => Message::Settled,
            Message::PromoteAsk => Message::PromoteGrant,
            Message::Compare { id, .. } => Message::Compared {
                id,
                result: Ok(Vec::new()),
            },
            Message::Read { id, len, .. } => Message::ReadReply {
                id,
                result: bytes(len),
            },
            Message::ArbiterInstance { instance } => Message::ArbiterRecorded { instance },
            _ => return,
        };
        self.say(answer);
    }

    fn end_disk(&mut self, input: &mut Input<'_>) {
        if self.disk.is_empty() {
            return;
        }
        let at = usize::from(input.u8()) % self.disk.len();
        let (id, op) = self.disk.swap_remove(at);
        let result = match (input.below(12), op) {
            (0, _) => Err(DiskFault::Io(5)),
            (1, _) => Err(DiskFault::NoSpace),
            (_, DiskOp::Read { len, .. }) => Ok(Bytes::from(vec![0; len as usize])),
            _ => Ok(Bytes::new()),
        };
        self.handle(Event::Disk { id, result });
    }

    fn end_meta(&mut self, input: &mut Input<'_>) {
        if self.meta.is_empty() {
            return;
        }
        let at = usize::from(input.u8()) % self.meta.len();
        let id = self.meta.swap_remove(at);
        let result = if input.below(24) == 0 {
            Err(DiskFault::Io(5))
        } else {
            Ok(())
        };
        self.handle(Event::MetadataDone { id, result });
    }

    /// Ends well what is under way, and what follows from it.
    fn drain(&mut self) {
        for _ in 0..64 {
            if self.disk.is_empty() && self.meta.is_empty() {
                return;
            }
            for id in std::mem::take(&mut self.meta) {
                self.handle(Event::MetadataDone { id, result: Ok(()) });
            }
            for (id, op) in std::mem::take(&mut self.disk) {
                let result = match op {
                    DiskOp::Read { len, .. } => Ok(Bytes::from(vec![0; len as usize])),
                    _ => Ok(Bytes::new()),
                };
                self.handle(Event::Disk { id, result });
            }
        }
    }

    fn request(&mut self, input: &mut Input<'_>) {
        self.requests += 1;
        let id = RequestId(self.requests);
        let offset = u64::from(input.u16()) * 512;
        let len = (u64::from(input.below(32)) + 1) * 512;
        let fua = input.coin();
        let request = match input.below(6) {
            0 => Request::Read {
                offset,
                len: len as u32,
            },
            1 => Request::WriteZeroes {
                offset,
                len,
                unmap: input.coin(),
                fua,
            },
            2 => Request::Discard { offset, len, fua },
            3 => Request::Flush,
            _ => Request::Write {
                offset,
                data: Bytes::from(vec![1; len as usize]),
                fua,
            },
        };
        self.waiting.insert(id);
        self.handle(Event::Request { id, request });
    }

    fn command(&mut self, input: &mut Input<'_>) {
        self.commands += 1;
        let id = CommandId(self.commands);
        let force = input.below(4) == 0;
        let command = match input.below(14) {
            0..=2 => Command::Promote {
                force,
                while_resyncing: self.commands.is_multiple_of(2),
            },
            3 => Command::Demote { force },
            4 => Command::Resync {
                from: option(input, |input| {
                    if input.coin() {
                        Source::Local
                    } else {
                        Source::Peer
                    }
                }),
                full: force,
            },
            5 => Command::PauseSync,
            6 => Command::ResumeSync,
            7 => Command::Verify { repair: force },
            8 => Command::StopVerify,
            9 => Command::Invalidate,
            10 => Command::Disconnect,
            11 => Command::Connect,
            12 => Command::SetPeer {
                peer: NodeId(u64::from(input.below(5))),
            },
            _ => Command::Set(settings(input)),
        };
        self.handle(Event::Command { id, command });
    }

    /// A witness that answers with any register.
    fn arbiter(&mut self, input: &mut Input<'_>) {
        let Some(attempt) = self.attempt else { return };
        let answer = match input.below(6) {
            0 => ArbiterAnswer::Swapped,
            1 => ArbiterAnswer::NotOurs("another's".to_owned()),
            2 => ArbiterAnswer::Unreachable("gone".to_owned()),
            3 => ArbiterAnswer::Register(None),
            _ => ArbiterAnswer::Register(Some(Register {
                instance: u64::from(input.below(4)),
                seq: input.near(3),
                copies: (0..input.below(4))
                    .map(|_| NodeId(u64::from(input.below(4))))
                    .collect(),
                generation: u64::from(input.below(TAGS_KNOWN)),
                parent: u64::from(input.below(TAGS_KNOWN)),
                nonce: if input.coin() {
                    attempt
                } else {
                    Attempt(input.u64())
                },
                forced: input.coin(),
            })),
        };
        self.handle(Event::Arbiter { attempt, answer });
    }

    /// The link is gone for good; what is under way ends, and a forced stop of service works.
    fn finish(&mut self) {
        let (session, reason) = (SessionId(self.session), "lost".to_owned());
        self.sent.clear();
        self.handle(Event::LinkDown { session, reason });
        self.drain();
        self.commands += 1;
        let (id, command) = (CommandId(self.commands), Command::Demote { force: true });
        self.handle(Event::Command { id, command });
        self.drain();
        let left = self.waiting.len();
        assert_eq!(left, 0, "{left} requests are never answered");
    }
}
