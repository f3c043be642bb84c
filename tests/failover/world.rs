//! The world of a seed: time, what happens next, two machines with their managers, and what breaks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kagami_failover::core::durable::Durable;
use kagami_failover::core::guard::{Guard, Word};
use kagami_failover::core::{
    Actions, Command, Event, Manager, OpId, OpResult, Snapshot, Time, Work,
};

use crate::sim::rng::Rng;

use super::check::{Seen, Violation};
use super::mirror::{Mirror, name};
use super::options::Options;
use super::stats::Stats;

/// What happens at a time.
#[derive(Clone, Debug)]
pub enum Item {
    Deliver {
        node: usize,
        life: u64,
        event: Event,
    },
    Timer {
        node: usize,
        life: u64,
        at: u64,
    },
    Persisted {
        node: usize,
        life: u64,
        seq: u64,
        state: Box<Durable>,
        done: bool,
    },
    Beat {
        to: usize,
        heartbeat: usize,
        message: Box<Snapshot>,
    },
    OpEnd {
        node: usize,
        boot: u128,
        op: OpId,
        hung: bool,
    },
    /// The manager hears that an operation has ended.
    OpTold {
        node: usize,
        life: u64,
        op: OpId,
        work: Work,
        result: OpResult,
    },
    Probe {
        node: usize,
        life: u64,
        probe: u64,
        monitor: usize,
        late: bool,
    },
    ManagerStart {
        node: usize,
        boot: u128,
    },
    /// What was to come while its state is written.
    Blow {
        node: usize,
        life: u64,
        blow: Blow,
    },
    /// A manager that stood still goes on.
    GoOn {
        node: usize,
        life: u64,
    },
    NodeStart {
        node: usize,
    },
    Guard {
        node: usize,
        group: usize,
        boot: u128,
    },
    Connect {
        epoch: u64,
    },
    Synced {
        group: usize,
        epoch: u64,
    },
    LeaseEnd {
        group: usize,
        node: usize,
        epoch: u64,
    },
    MarginOver {
        group: usize,
        node: usize,
        boot: u128,
    },
    Attempt {
        group: usize,
        node: usize,
        attempt: u64,
    },
    Answer {
        group: usize,
        node: usize,
        attempt: u64,
    },
    Fault,
    Heal(Heal),
    Command,
    /// An operator whose word was not carried out elsewhere starts the group on this node.
    TurnTo {
        node: usize,
        group: usize,
    },
    Resume,
    /// In the calm: an operator moves what runs beside a disk that has failed.
    MoveAway,
    Calm,
    End,
}

impl Item {
    /// Whose manager takes it in: it waits while that stands still.
    fn is_for_manager(&self) -> Option<usize> {
        match self {
            Self::Deliver { node, .. }
            | Self::Timer { node, .. }
            | Self::Persisted { node, .. }
            | Self::Beat { to: node, .. }
            | Self::OpTold { node, .. }
            | Self::Probe { node, .. } => Some(*node),
            _ => None,
        }
    }
}

/// What ends a manager, or stops it for so many milliseconds.
#[derive(Clone, Copy, Debug)]
pub enum Blow {
    Crash,
    Death,
    StandStill(u64),
}

/// What is whole again.
#[derive(Clone, Copy, Debug)]
pub enum Heal {
    Beats { heartbeat: usize, from: usize },
    Link,
    Network,
    Arbiter,
    ArbiterOf(usize),
    Disk { node: usize, group: usize },
}

/// What a resource really is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    Off,
    /// Begun, or failed half way.
    Half,
    On,
}

/// An operation of a machine.
#[derive(Clone, Debug)]
pub enum Op {
    Running { work: Work, until: u64 },
    Ended(OpResult),
}

/// A machine.
#[derive(Debug)]
pub struct Node {
    pub up: bool,
    pub boot: u128,
    pub started: u64,
    /// This life of the manager; raised at its end, too, so that what is on its way finds nobody.
    pub life: u64,
    pub manager: Option<Manager>,
    pub timer: u64,
    pub disk: Durable,
    /// Handed out to be written, and the last that the disk has, by this life of the manager.
    pub written: u64,
    pub landed: u64,
    /// Since when the manager stands still, what waits for it, and when it stood still last.
    pub paused: Option<u64>,
    pub inbox: VecDeque<Item>,
    pub stood: Option<(u64, u64)>,
    /// Comes while its next write is under way.
    pub at_next_write: Option<Blow>,
    pub ops: BTreeMap<OpId, Op>,
    pub live: Vec<Vec<Live>>,
    pub frozen: Vec<bool>,
    pub dropped: Vec<bool>,
    pub guards: Vec<Guard>,
    /// When a guard said that the right is lost, and to which life of the manager.
    pub lost_at: Vec<Option<(u64, u64)>>,
    /// Until when activations of a group's resources fail here.
    pub broken: Vec<u64>,
    /// Until when a monitor fails here.
    pub failing: Vec<u64>,
    /// Until when the manager's state can't be written here.
    pub unwritable: u64,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    pub options: Options,
    pub rng: Rng,
    pub now: u64,
    queue: BTreeMap<(u64, u64), Item>,
    next: u64,
    pub nodes: [Node; 2],
    pub mirrors: Vec<Mirror>,
    /// Each heartbeat, in each direction (by its sender).
    pub beats_up: Vec<[bool; 2]>,
    pub link_up: bool,
    pub connected: bool,
    pub connection: u64,
    pub disconnected_at: u64,
    pub attempts: u64,
    /// When what was said last of the right arrives at a node's manager.
    pub told_at: [u64; 2],
    pub arbiter_up: bool,
    pub arbiter_reached: [bool; 2],
    pub calm: bool,
    /// A node that stays down in the calm.
    pub gone: Option<usize>,
    pub commands: u64,
    pub asked: BTreeMap<u64, Command>,
    /// When an operator last told a node that the other one does not run a group.
    pub sure_at: [u64; 2],
    pub seen: Seen,
    pub stats: Stats,
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let options = Options::draw(&mut rng);
        let cluster = options.cluster.clone();
        let groups = cluster.groups.len();
        let nodes = [0, 1].map(|_| Node {
            up: false,
            boot: 0,
            started: 0,
            life: 0,
            manager: None,
            timer: 0,
            disk: Durable::default(),
            written: 0,
            landed: 0,
            paused: None,
            inbox: VecDeque::new(),
            stood: None,
            at_next_write: None,
            ops: BTreeMap::new(),
            live: cluster
                .groups
                .iter()
                .map(|g| vec![Live::Off; g.resources.len()])
                .collect(),
            frozen: vec![false; groups],
            dropped: vec![false; groups],
            guards: Vec::new(),
            lost_at: vec![None; groups],
            broken: vec![0; groups],
            failing: vec![0; cluster.monitors.len()],
            unwritable: 0,
        });
        let mut world = Self {
            now: 0,
            queue: BTreeMap::new(),
            next: 0,
            nodes,
            mirrors: vec![Mirror::new(); groups],
            beats_up: vec![[true; 2]; cluster.heartbeats.len()],
            link_up: true,
            connected: false,
            connection: 0,
            disconnected_at: 0,
            attempts: 0,
            told_at: [0; 2],
            arbiter_up: true,
            arbiter_reached: [true; 2],
            calm: false,
            gone: None,
            commands: 0,
            asked: BTreeMap::new(),
            sure_at: [0; 2],
            seen: Seen::new(&cluster),
            stats: Stats::default(),
            trace: trace.then(Vec::new),
            rng,
            options,
        };
        world.note(|| format!("seed {seed}"));
        let shown = format!("{:#?}", world.options);
        world.note(|| shown);
        for node in 0..2 {
            // So late that the other one has started alone.
            let most = if world.rng.one_in(8) { 120_000 } else { 8000 };
            let delay = world.rng.below(most);
            world.later(delay, Item::NodeStart { node });
        }
        if world.rng.one_in(8) {
            world.arbiter_up = false;
            let delay = world.rng.between(5_000, 120_000);
            world.later(delay, Item::Heal(Heal::Arbiter));
        }
        if world.rng.one_in(16) {
            world.link_up = false;
            world.beats_up.fill([false; 2]);
            let delay = world.rng.between(5_000, 120_000);
            world.later(delay, Item::Heal(Heal::Network));
        }
        if world.options.fault_every > 0 {
            let first = world.rng.between(5_000, 40_000);
            world.later(first, Item::Fault);
        }
        if world.options.command_every > 0 {
            let first = world.rng.between(1_000, 40_000);
            world.later(first, Item::Command);
        }
        world.later(world.options.lasts, Item::Calm);
        world
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9.3} {}", self.now as f64 / 1000.0, line()));
        }
    }

    pub fn later(&mut self, delay: u64, item: Item) {
        self.next += 1;
        self.queue.insert((self.now + delay, self.next), item);
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Result<(), Violation> {
        while let Some(((at, _), item)) = self.queue.pop_first() {
            self.now = at;
            self.stats.steps += 1;
            if matches!(item, Item::End) {
                return self.check_end();
            }
            self.step(item)?;
            self.check_step()?;
        }
        Err(Violation::new("World", "nothing happens any more"))
    }

    pub(super) fn step(&mut self, item: Item) -> Result<(), Violation> {
        if let Some(node) = item.is_for_manager()
            && self.nodes[node].paused.is_some()
        {
            self.nodes[node].inbox.push_back(item);
            return Ok(());
        }
        match item {
            Item::Deliver { node, life, event } if life == self.nodes[node].life => {
                self.handle(node, event)?;
            }
            Item::Timer { node, life, at }
                if life == self.nodes[node].life && at == self.nodes[node].timer =>
            {
                self.nodes[node].timer = u64::MAX;
                self.handle(node, Event::Timer)?;
            }
            Item::Deliver { .. } | Item::Timer { .. } => {}
            Item::Persisted {
                node,
                life,
                seq,
                state,
                done,
            } => {
                if life != self.nodes[node].life {
                    return Ok(());
                }
                // A sync that failed after the rename: the new state may stand all the same.
                if done || self.rng.one_in(4) {
                    (self.nodes[node].disk, self.nodes[node].landed) = (*state, seq);
                }
                if done {
                    self.commit(node, seq)?;
                }
                self.handle(node, Event::Persisted { seq, done })?;
            }
            Item::Beat {
                to,
                heartbeat,
                message,
            } => {
                self.handle(to, Event::Beat { heartbeat, message })?;
            }
            Item::OpEnd {
                node,
                boot,
                op,
                hung,
            } => self.on_op_end(node, boot, op, hung)?,
            Item::OpTold {
                node,
                life,
                op,
                work,
                result,
            } if life == self.nodes[node].life => {
                self.see_op_end(node, work, &result);
                self.handle(node, Event::OpDone { op, result })?;
            }
            Item::OpTold { .. } => {}
            Item::Probe {
                node,
                life,
                probe,
                monitor,
                late,
            } if life == self.nodes[node].life => {
                let failing = self.nodes[node].failing[monitor] > self.now;
                let result = match failing {
                    true if self.rng.one_in(4) => OpResult::TimedOut,
                    true => OpResult::Failed("as drawn".to_owned()),
                    false if self.rng.one_in(50) => OpResult::Warned("as drawn".to_owned()),
                    false => OpResult::Done,
                };
                if !late {
                    self.see_probe(node, monitor, &result);
                }
                self.handle(node, Event::Probed { probe, result })?;
            }
            Item::Probe { .. } => {}
            Item::ManagerStart { node, boot } => {
                let host = &self.nodes[node];
                if host.up && host.boot == boot && host.manager.is_none() {
                    self.start_manager(node)?;
                }
            }
            Item::Blow { node, life, blow } => {
                if life == self.nodes[node].life && !self.calm {
                    self.strike(node, blow);
                }
            }
            Item::GoOn { node, life } => {
                if life == self.nodes[node].life {
                    self.go_on(node)?;
                }
            }
            Item::NodeStart { node } => self.start_node(node)?,
            Item::Guard { node, group, boot } => {
                if self.nodes[node].up && self.nodes[node].boot == boot {
                    self.guard(node, group, Word::Timer);
                }
            }
            Item::Connect { epoch } => self.on_connect(epoch)?,
            Item::Synced { group, epoch } => self.on_synced(group, epoch),
            Item::LeaseEnd { group, node, epoch } => self.on_lease_end(group, node, epoch),
            Item::Attempt {
                group,
                node,
                attempt,
            } => self.on_attempt(group, node, attempt),
            Item::Answer {
                group,
                node,
                attempt,
            } => self.on_answer(group, node, attempt),
            Item::MarginOver { group, node, boot } => self.on_margin_over(group, node, boot),
            Item::Fault => self.on_fault(),
            Item::Heal(heal) => self.heal(heal),
            Item::Resume => {
                self.command(0, Command::Resume)?;
                self.command(1, Command::Resume)?;
            }
            Item::Command => self.on_command()?,
            Item::TurnTo { node, group } => self.turn_to(node, group)?,
            Item::MoveAway => self.move_away()?,
            Item::Calm => self.on_calm()?,
            Item::End => {}
        }
        Ok(())
    }

    pub(super) fn handle(&mut self, node: usize, event: Event) -> Result<(), Violation> {
        let now = Time(self.now);
        let mut out = Actions::new();
        let Some(manager) = self.nodes[node].manager.as_mut() else {
            return Ok(());
        };
        manager.handle(now, event, &mut out);
        self.carry_out(node, out)
    }

    /// A manager's process ends. What it has handed out to be written may be on the disk, though nobody has said so:
    /// some of it, in its order.
    pub(super) fn land(&mut self, node: usize) {
        let of = |item: &Item| match item {
            Item::Persisted {
                node: at,
                life,
                seq,
                state,
                ..
            } if (*at, *life) == (node, self.nodes[node].life) => Some((*seq, state.clone())),
            _ => None,
        };
        let waiting = self.nodes[node].inbox.iter();
        let mut under_way: Vec<_> = waiting.chain(self.queue.values()).filter_map(of).collect();
        let count = self.rng.below(under_way.len() as u64 + 1) as usize;
        if count > 0 {
            let (seq, state) = under_way.swap_remove(count - 1);
            self.stats.landed += 1;
            self.note(|| format!("{}: write {seq} had landed", name(node)));
            (self.nodes[node].disk, self.nodes[node].landed) = (*state, seq);
        }
        let told = self.commit(node, self.nodes[node].landed);
        self.seen.at_the_end = self.seen.at_the_end.take().or(told.err());
        self.seen.forget_uncommitted(node);
    }

    /// Resources that depend on this one.
    pub fn dependents(&self, group: usize, resource: usize) -> BTreeSet<usize> {
        let group = &self.options.cluster.groups[group];
        let name = &group.resources[resource].name;
        (group.resources.iter().enumerate())
            .filter(|(_, r)| r.common.depends.contains(name))
            .map(|(at, _)| at)
            .collect()
    }
}
