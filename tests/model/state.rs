//! One state of the whole world: two copies, what is under way between them, the register, and
//! what was promised to clients.
//!
//! Everything is small on purpose: a generation and a write are numbers from 1 on (0 is none), a
//! history is a set of generations, marks are a set of blocks, and what a block holds is the number of the
//! last write to it. Two states that differ in no field are one state.

/// Blocks that a state has room for; a run uses one or two of them.
pub const BLOCKS: usize = 2;
/// Generations that a state has room for.
pub const GENERATIONS: u8 = 14;

/// The number of a generation as a member of a history.
pub fn in_history(generation: u8) -> u16 {
    1 << generation
}

/// The number of a block as a member of a set of marks.
pub fn mark(block: u8) -> u8 {
    1 << block
}

/// The number of a write as a member of a set of writes.
pub fn written(write: u8) -> u8 {
    1 << (write - 1)
}

/// A write that a Primary is carrying out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Write {
    /// Its number; 0: none.
    pub id: u8,
    /// Where.
    pub block: u8,
    /// It is on the local disk (in its cache).
    pub local: bool,
}

/// One copy and the daemon that serves it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Node {
    // The record of docs/protocol.md §1, durable.
    pub current: u8,
    pub history: u16,
    pub base: u8,
    pub alone: bool,
    pub was_primary: bool,
    pub inconsistent: bool,
    pub outdated: bool,
    pub forced_bad: bool,
    pub zeroed: bool,
    /// Bitmap pages and hot extents together.
    pub durable_marks: u8,
    /// What is on stable storage.
    pub stable: [u8; BLOCKS],
    /// The durable `boot` is this boot; a crash of the machine makes it false.
    pub unbroken: bool,
    /// The register's instance that this copy recorded: 0 none, 1 the first one, 2 another.
    pub instance: u8,

    // What ends with the daemon or the machine.
    pub up: bool,
    /// Only the daemon is down: the machine keeps `data`.
    pub daemon_down: bool,
    /// The local disk failed (a restart brings it back as it was: the worst case).
    pub disk_failed: bool,
    pub primary: bool,
    /// May answer without the peer.
    pub may_answer: bool,
    pub lease: bool,
    pub marks: u8,
    /// What a read of the local disk returns.
    pub data: [u8; BLOCKS],
    pub write: Write,
    /// The nonce of the open attempt at the arbiter; 0: none.
    pub attempt: u8,
    /// A request to the disk that outlived its daemon or its session, and will still land.
    pub late: Write,
    /// Minted and not yet durable (only a planted mistake lets that be seen).
    pub unrecorded: u8,

    // Meeting and promotion as messages (only where a run has them as such).
    pub meeting: Meeting,
    pub promoting: Promoting,
    /// It has granted in this session.
    pub granted: bool,

    /// As a guest: what it remembers of its source.
    pub guest: Guest,
    /// Ghosts: what its applications read or were answered, as a guest, ...
    pub seen: [u8; BLOCKS],
    /// ... and that the other one has answered a write since it is Primary.
    pub passed: bool,
}

/// What a target that is Primary, and that its source answers for, remembers of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Guest {
    /// The source has another boot than when it answered.
    pub other_boot: bool,
    /// 2: it answered what it has not flushed; 1: a flush of that is under way.
    pub unflushed: u8,
}

impl Node {
    /// Inconsistent or Outdated.
    pub fn is_bad(&self) -> bool {
        self.inconsistent || self.outdated
    }

    /// `current` and its history.
    pub fn line(&self) -> u16 {
        (self.history | in_history(self.current)) & !1
    }

    /// A new generation, known to nobody else.
    pub fn mint(&mut self, generation: u8) {
        if self.current != 0 {
            self.history |= in_history(self.current);
            if self.base == 0 {
                self.base = self.current;
            }
        }
        self.current = generation;
        self.alone = true;
        self.forced_bad = false;
        self.zeroed = false;
    }

    /// No longer Primary: what waits is failed.
    pub fn fail_requests(&mut self) {
        self.primary = false;
        self.may_answer = false;
        self.lease = false;
        self.write = Write::default();
        self.guest = Guest::default();
        self.seen = [0; BLOCKS];
        self.passed = false;
    }
}

/// How far a node is with a handshake that is made of messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Meeting {
    /// None: the session is up, or there is none.
    #[default]
    No,
    /// Connected; its hello is not sent.
    Connected,
    /// Its hello is sent: it is frozen.
    Greeted,
    /// The verdict is known, and what it demands is durable: ready is sent.
    Ready(Plan),
}

/// What a verdict demands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Plan {
    /// Equal.
    Nothing,
    /// One is brought up to date from node `source`.
    Resync { source: u8, full: bool },
    /// Both read as zeroes; `source` minted.
    First { source: u8 },
}

/// How far a promotion is that is made of messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Promoting {
    #[default]
    No,
    /// The question is on its way, or with the peer.
    Asked,
    /// The grant arrived; `was_primary` is not yet durable.
    Granted,
}

/// A write on its way from a Primary to its peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Sent {
    #[default]
    No,
    Sent,
    Applied,
    Acknowledged,
}

/// How far a resynchronisation is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub enum Stage {
    #[default]
    Copying,
    /// The source is no longer alone, and has offered its generation.
    Offered,
    /// The target has it.
    Adopted,
}

/// What is between the two ends. Each end closes its side on its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Session {
    pub open: [bool; 2],
    /// The node that is the source, plus one; 0: no resynchronisation.
    pub source: u8,
    pub stage: Stage,
    pub offered: u8,
    pub offered_history: u16,
    /// The write under way, and by whom.
    pub write: Write,
    pub writer: u8,
    pub sent: Sent,
    /// A flush of both copies.
    pub flush: Sent,
    pub flusher: u8,
    pub covers: u8,
    /// Ghosts: what the flush will promise.
    pub flush_line: u8,
    pub flush_last: [u8; BLOCKS],
    /// A block of the resynchronisation.
    pub block_sent: Sent,
    pub block: u8,
    pub value: u8,
    /// Blocks that the target has, and that are not flushed on both.
    pub received: u8,
    /// The target has been Primary in this session.
    pub served: bool,
    /// Its view then: blocks in which its copy may be behind the source's.
    pub stale: u8,
    /// Blocks that a serving target wrote and that are not flushed on both.
    pub own: u8,
    /// The serving target's word that these are flushed on both, on its way to the source.
    pub cleared: u8,
    /// Messages of a meeting on their way from each node: the hello as it was, the ready and its marks.
    pub hello: [Option<super::verdict::View>; 2],
    pub ready: [Option<u8>; 2],
    /// Messages of a promotion on their way from each node.
    pub ask: [bool; 2],
    pub reply: [Reply; 2],
}

/// The answer to a request to be Primary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Reply {
    #[default]
    None,
    Grant,
    Refuse,
}

impl Session {
    /// Node `i` sends blocks to the other one.
    pub fn is_source(&self, i: usize) -> bool {
        usize::from(self.source) == i + 1
    }

    /// Node `i` is brought up to date.
    pub fn is_target(&self, i: usize) -> bool {
        self.source != 0 && !self.is_source(i)
    }

    /// Neither end has closed.
    pub fn is_open(&self) -> bool {
        self.open == [true, true]
    }
}

/// What an attempt at the arbiter is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub enum Purpose {
    #[default]
    GoAlone,
    Rejoin,
    Carry,
}

/// A swap on its way, or its answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct Request {
    /// 0: this slot is empty.
    pub nonce: u8,
    pub node: u8,
    pub purpose: Purpose,
    pub instance: u8,
    pub expects: u8,
    pub generation: u8,
    pub parent: u8,
    /// The answer that is on its way back; none: the request is under way.
    pub answer: Option<bool>,
}

/// The register at the arbiter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Register {
    pub instance: u8,
    pub seq: u8,
    /// 0 empty, 1 node A, 2 node B, 3 both.
    pub copies: u8,
    pub generation: u8,
    pub parent: u8,
}

/// What was promised. No rule may look at it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Ghost {
    /// Answered writes that each copy's line holds.
    pub line: [u8; 2],
    /// Of these, those on its stable storage.
    pub flushed: [u8; 2],
    /// Answered and flushed writes that nobody gave up.
    pub kept: u8,
    /// The newest answered write of each block.
    pub last: [u8; BLOCKS],
    /// The newest that a flush covered.
    pub last_flushed: [u8; BLOCKS],
    /// An operator forced, or chose between two copies.
    pub forced: bool,
}

/// What a run has used up of its bounds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Used {
    pub crashes: u8,
    pub deaths: u8,
    pub drops: u8,
    pub handshakes: u8,
    pub orders: u8,
    pub disk_failures: u8,
    pub wipes: u8,
    pub promotions: u8,
    pub replaced: u8,
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct State {
    pub node: [Node; 2],
    pub link: Session,
    pub register: Register,
    pub asked: [Request; 3],
    pub ghost: Ghost,
    pub writes: u8,
    pub next_generation: u8,
    pub next_nonce: u8,
    pub used: Used,
}

impl State {
    /// For node `i` the session is up.
    pub fn in_session(&self, i: usize) -> bool {
        self.link.open[i] && self.node[i].meeting == Meeting::No
    }

    /// For both it is.
    pub fn joined(&self) -> bool {
        self.in_session(0) && self.in_session(1)
    }

    /// A changed copy of this state.
    #[must_use]
    pub fn with(&self, change: impl FnOnce(&mut State)) -> State {
        let mut next = *self;
        change(&mut next);
        next
    }

    /// A session that neither end holds is gone, with all that was on its way.
    pub fn forget_closed_session(&mut self) {
        if self.link.open == [false, false] {
            self.link = Session::default();
        }
    }

    /// Draws the number of a new generation.
    pub fn draw_generation(&mut self) -> u8 {
        self.next_generation += 1;
        self.next_generation - 1
    }
}
