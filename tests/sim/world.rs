//! The world: two nodes, the link, the arbiter, front ends and operators, on one line of time.
//!
//! Decides the order in which everything happens, all of it from the seed: each thing that can
//! happen is a [`Happening`] with a time; the earliest is next, and of equal ones the first
//! planned. The cores are handed their events and asked to check themselves; what they want done then is
//! carried out in `host`. What must hold is in `check`, what goes wrong in `faults`.

use std::collections::{BTreeMap, BinaryHeap};

use kagami_replicator::core::event::{Command, Event};
use kagami_replicator::core::register::ArbiterAnswer;
use kagami_replicator::core::state::{RequestId, SessionId, Time};
use kagami_replicator::core::{Actions, Role, TAGS};

use super::arbiter::{Arbiter, Question};
use super::check::{Ghost, Violation};
use super::content::SECTORS;
use super::faults::Fault;
use super::faults::rot::Rot;
use super::history::History;
use super::member::Member;
use super::net::Net;
use super::node::{Node, Waiting};
use super::options::{First, Options};
use super::orders::Ordered;
use super::profile::{Cause, Profile};
use super::replay::Trace;
use super::rng::Rng;
use super::stats::Stats;
use super::workload::Pending;

/// What a check or a step comes to.
pub type Checked<T = ()> = Result<T, Violation>;

/// A millisecond of the world's time.
pub const MS: u64 = 1_000_000;

/// Something that is going to happen.
#[derive(Clone, Debug)]
pub enum Happening {
    /// A disk operation ends.
    Disk { node: usize, op: u64 },
    /// A step of a metadata write is durable.
    Metadata { node: usize, write: u64 },
    /// A deadline that the daemon set.
    Timer { node: usize, life: u64, timer: u64 },
    /// Random tags that the daemon asked for.
    Tags { node: usize, life: u64 },
    /// Memory that a request waits for.
    Room {
        node: usize,
        life: u64,
        id: RequestId,
    },
    /// A message may arrive.
    Arrive {
        session: u64,
        from: usize,
        class: usize,
    },
    /// The nodes look for each other.
    Dial,
    /// An end of a session is told that it is open.
    LinkUp { session: u64, node: usize },
    /// An end of a session is told that it is gone.
    LinkDown { session: u64, node: usize },
    /// Nothing was heard for too long, if that blockade still lasts.
    Silence {
        session: u64,
        node: usize,
        change: u64,
    },
    /// A question reaches the arbiter.
    Ask(Box<Question>),
    /// Its answer reaches the asker.
    Answer(Box<Question>, ArbiterAnswer),
    /// A front end may send a request.
    Client,
    /// The daemon starts.
    Start { node: usize },
    /// The machine boots.
    Boot { node: usize },
    /// Something breaks.
    Break,
    /// A daemon that stood still goes on.
    Resume { node: usize },
    /// What a fault broke is mended; `change` tells one blockade of the link from the next.
    Mend {
        fault: Fault,
        node: usize,
        change: u64,
    },
    /// Something that tends to follow what was before.
    Sequel { node: usize, then: Cause },
    /// An operator orders something.
    Order,
    /// An operator orders something at the worst moment.
    Ambush,
    /// An operator gives a command that was planned.
    Command { node: usize, command: Box<Command> },
    /// The faults are over: has the pair come to rest?
    Rest,
}

#[derive(Debug)]
struct Planned {
    at: u64,
    nth: u64,
    what: Happening,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.nth) == (other.at, other.nth)
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    // the earliest first: a BinaryHeap gives its greatest
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.nth).cmp(&(self.at, self.nth))
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Load, faults and orders.
    Storm,
    /// The faults are over since then; the pair must come to rest.
    Calm { since: u64 },
    /// It has.
    Over,
}

/// The world of one seed.
#[derive(Debug)]
pub struct World {
    /// What the seed drew.
    pub options: Options,
    /// The world's time, ns.
    pub now: u64,
    /// Events given to cores, the clock of the history.
    pub tick: u64,
    /// How far the run is.
    pub phase: Phase,
    /// The two nodes.
    pub nodes: [Node; 2],
    /// The link.
    pub net: Net,
    /// The arbiter.
    pub arbiter: Arbiter,
    /// The one that it replaces, while a node asks it still.
    pub old_arbiter: Option<Arbiter>,
    /// Arbiters that there were: the number of the present one.
    pub arbiters: u32,
    /// Somebody ordered the mirror to grow.
    pub growth_begun: bool,
    /// What may be read.
    pub history: History,
    /// Requests without an answer.
    pub pending: BTreeMap<u64, Pending>,
    /// First deliveries of requests that came again, and where.
    pub abandoned: BTreeMap<u64, usize>,
    /// Data that are bad.
    pub rot: Rot,
    /// Commands without an answer.
    pub ordered: BTreeMap<u64, Ordered>,
    /// What the checks remember.
    pub ghost: Ghost,
    /// What it shares with other mirrors; `None`: it is alone.
    pub member: Option<Box<Member>>,
    /// What is counted.
    pub stats: Stats,
    /// Where a trace goes, if one is wanted.
    pub trace: Trace,
    /// Draws of the load.
    pub load_rng: Rng,
    /// Draws of delays.
    pub rng: Rng,
    /// Draws of faults and orders.
    pub fault_rng: Rng,
    /// Draws of the checks, so that they change no run.
    pub check_rng: Rng,
    /// Requests and commands sent so far: their ids.
    pub sent: u64,
    /// Writes so far: their numbers.
    pub writes: u32,
    heap: BinaryHeap<Planned>,
    planned: u64,
    actions: Actions,
}

impl World {
    /// The world of a seed at its beginning.
    pub fn new(profile: Profile, seed: u64, trace: Trace) -> Self {
        Self::with(profile, seed, trace, |_| {})
    }

    /// The world of a seed, with some of what it draws changed.
    pub fn with(
        profile: Profile,
        seed: u64,
        trace: Trace,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let mut rng = Rng::new(seed);
        let mut options = Options::draw(seed, &mut rng);
        profile.bend(&mut options, &mut rng);
        change(&mut options);
        options.grow_from_here();
        let nodes = [0, 1].map(|index| Node::new(index, &options, &mut rng));
        let mut world = Self {
            now: 0,
            tick: 1,
            phase: Phase::Storm,
            nodes,
            net: Net::default(),
            arbiter: Arbiter::default(),
            old_arbiter: None,
            arbiters: 1,
            growth_begun: false,
            history: History::default(),
            pending: BTreeMap::new(),
            abandoned: BTreeMap::new(),
            rot: Rot::default(),
            ordered: BTreeMap::new(),
            ghost: Ghost::default(),
            member: None,
            stats: Stats::default(),
            trace,
            load_rng: rng.fork(),
            fault_rng: rng.fork(),
            check_rng: rng.fork(),
            rng,
            sent: 0,
            writes: 0,
            heap: BinaryHeap::new(),
            planned: 0,
            actions: Actions::new(),
            options,
        };
        world.trace.line(|| world.options.to_string());
        world.preload();
        for node in 0..2 {
            world
                .ghost
                .saw_record(node, world.nodes[node].meta.record());
            let delay = world.rng.below(50 * MS);
            world.plan(delay, Happening::Start { node });
            world.nodes[node].starting = true;
        }
        world.plan(MS, Happening::Client);
        world.plan(60 * MS, Happening::Order);
        if let Some(every) = world.options.fault_every_ns {
            let delay = world.fault_rng.around(every);
            world.plan(delay, Happening::Break);
        }
        world
    }

    /// What the kept disk holds before the mirror is made.
    fn preload(&mut self) {
        let First::Keep(keeper) = self.options.first else {
            return;
        };
        for nth in 0..self.options.hot_spots.len() {
            let block = self.options.hot_spots[nth];
            self.writes += 1;
            let first = block * SECTORS as u64;
            let number = self.writes;
            let values =
                std::array::from_fn(|nth| super::content::value(first + nth as u64, number));
            self.nodes[keeper].store.preload(block, values);
            for (sector, value) in (first..).zip(values) {
                self.history.preload(sector, value);
            }
            // the other disk holds anything: here, what nobody wrote
            self.ghost.touched.insert(block);
        }
    }

    /// Plans something for `delay` from now.
    pub fn plan(&mut self, delay: u64, what: Happening) {
        self.plan_at(self.now + delay, what);
    }

    /// Plans something for a moment, or for now if that has passed.
    pub fn plan_at(&mut self, at: u64, what: Happening) {
        self.planned += 1;
        self.heap.push(Planned {
            at: at.max(self.now),
            nth: self.planned,
            what,
        });
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first violation.
    pub fn run(&mut self) -> Checked {
        while self.phase != Phase::Over {
            self.step()?;
        }
        Ok(())
    }

    /// The next thing happens.
    ///
    /// # Errors
    /// A violation that shows now.
    pub fn step(&mut self) -> Checked {
        let next = self.heap.pop().expect("something is always planned");
        self.now = next.at;
        self.happen(next.what)?;
        self.check_in_time()
    }

    /// When that is, if anything is planned.
    pub fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|next| next.at)
    }

    fn happen(&mut self, what: Happening) -> Checked {
        if let Some(node) = Self::needs_daemon(&what)
            && self.nodes[node].paused_until > self.now
        {
            self.nodes[node].waiting.push_back(Waiting::Happening(what));
            return Ok(());
        }
        match what {
            Happening::Disk { node, op } => self.end_disk(node, op),
            Happening::Metadata { node, write } => self.step_metadata(node, write),
            Happening::Timer { node, life, timer } => {
                let at = &self.nodes[node];
                if at.life == life && at.timer == timer && at.mirror.is_some() {
                    return self.feed(node, Event::Timer);
                }
                Ok(())
            }
            Happening::Tags { node, life } => {
                if self.lives(node, life) {
                    let tags = (0..TAGS).map(|_| self.rng.next_u64()).collect();
                    return self.feed(node, Event::Tags(tags));
                }
                Ok(())
            }
            Happening::Room { node, life, id } => {
                if self.lives(node, life) {
                    return self.feed(node, Event::Room { id });
                }
                Ok(())
            }
            Happening::Arrive {
                session,
                from,
                class,
            } => self.arrive(session, from, class),
            Happening::Dial => self.dial(),
            Happening::LinkUp { session, node } => self.link_up(session, node),
            Happening::LinkDown { session, node } => {
                self.link_down(session, node, "the peer has gone")
            }
            Happening::Silence {
                session,
                node,
                change,
            } => {
                if self.net.changes == change && self.net.blocked != [false, false] {
                    return self.hear_nothing(session, node);
                }
                Ok(())
            }
            Happening::Ask(question) => self.reach_arbiter(question),
            Happening::Answer(question, answer) => {
                if self.hears_answer(&question) {
                    let (node, attempt) = (question.node, question.attempt);
                    let is_first = self.ghost.answered.insert(attempt);
                    let told = is_first && self.is_told_to_stop(&question, &answer);
                    self.feed(node, Event::Arbiter { attempt, answer })?;
                    return if told {
                        self.check_stopped(node)
                    } else {
                        Ok(())
                    };
                }
                Ok(())
            }
            Happening::Client => self.client(),
            Happening::Start { node } => self.start(node),
            Happening::Boot { node } => {
                self.boot(node);
                Ok(())
            }
            Happening::Break => self.break_something(),
            Happening::Resume { node } => self.resume(node),
            Happening::Mend {
                fault,
                node,
                change,
            } => self.mend(fault, node, change),
            Happening::Sequel { node, then } => self.follow(node, then),
            Happening::Order => self.order(),
            Happening::Ambush if self.phase == Phase::Storm => self.order_one(),
            Happening::Ambush => Ok(()),
            Happening::Command { node, command } => self.command(node, *command),
            Happening::Rest => self.rest(),
        }
    }

    /// True if this life of the node's daemon goes on.
    pub fn lives(&self, node: usize, life: u64) -> bool {
        self.nodes[node].life == life && self.nodes[node].mirror.is_some()
    }

    /// What the node's clock shows.
    pub fn local(&self, node: usize) -> Time {
        self.nodes[node].clock.local(self.now)
    }

    /// Hands an event to a node's core, if its daemon lives, and carries out what it wants.
    ///
    /// # Errors
    /// A violation that shows now.
    pub fn feed(&mut self, node: usize, event: Event) -> Checked {
        let at = &mut self.nodes[node];
        if at.mirror.is_some() && at.paused_until > self.now {
            at.waiting.push_back(Waiting::Event(event));
            return Ok(());
        }
        self.feed_now(node, event)
    }

    /// The node whose daemon has to run for this to happen, if it is one's.
    fn needs_daemon(what: &Happening) -> Option<usize> {
        match what {
            Happening::Timer { node, .. }
            | Happening::Tags { node, .. }
            | Happening::Room { node, .. }
            | Happening::LinkUp { node, .. }
            | Happening::LinkDown { node, .. }
            | Happening::Silence { node, .. } => Some(*node),
            Happening::Arrive { from, .. } => Some(1 - from),
            _ => None,
        }
    }

    /// A daemon that stood still takes in what came meanwhile.
    fn resume(&mut self, node: usize) -> Checked {
        if self.nodes[node].paused_until > self.now {
            return Ok(());
        }
        let life = self.nodes[node].life;
        for waiting in std::mem::take(&mut self.nodes[node].waiting) {
            if self.nodes[node].life != life {
                break;
            }
            match waiting {
                Waiting::Event(event) => self.feed_now(node, event)?,
                Waiting::Happening(what) => self.happen(what)?,
            }
        }
        self.dial_soon();
        Ok(())
    }

    fn feed_now(&mut self, node: usize, event: Event) -> Checked {
        let now = self.local(node);
        self.tick += 1;
        self.stats.steps += 1;
        let Some(mirror) = self.nodes[node].mirror.as_mut() else {
            return Ok(());
        };
        self.trace
            .event(self.now, self.tick, self.nodes[node].name, &event);
        self.stats.event(mirror, now, &event);
        let mut actions = std::mem::take(&mut self.actions);
        let (role, term) = (mirror.role(), mirror.term());
        mirror.handle(now, event, &mut actions);
        mirror.check();
        // By it a front end that was opened before is refused: each loss of the role counts, and nothing else does.
        let counted = mirror.term() - term;
        let fits = match (role, mirror.role()) {
            (_, Role::Primary) => counted == 0,
            (Role::Primary, Role::Secondary) => counted == 1,
            // It may have been given the role and lost it by the same event.
            (Role::Secondary, Role::Secondary) => counted <= 1,
        };
        let now = mirror.role();
        assert!(fits, "{counted} terms ended from {role:?} to {now:?}");
        self.carry_out(node, &mut actions)?;
        actions.clear();
        self.actions = actions;
        self.after_step(node)
    }

    /// The session of the world behind a node's session, and whether that is the node's.
    pub fn world_session(session: SessionId, node: usize) -> u64 {
        assert_eq!(session.0 & 1, node as u64, "a session of the other node");
        session.0 >> 1
    }

    /// A node's name for a session of the world.
    pub fn node_session(session: u64, node: usize) -> SessionId {
        SessionId(session << 1 | node as u64)
    }
}
