//! The world of a seed: time, what happens next, two machines with their managers, and what breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kagami_failover::config::Final;
use kagami_failover::core::durable::{Durable, EndKind};
use kagami_failover::core::environment::Host;
use kagami_failover::core::guard::{Guard, Word};
use kagami_failover::core::message::Phase;
use kagami_failover::core::{
    Action, Actions, Command, Event, GroupStatus, Manager, Object, OpId, OpResult, Snapshot, Time,
    Work,
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
    Resume,
    Calm,
    End,
}

/// What is whole again.
#[derive(Clone, Copy, Debug)]
pub enum Heal {
    Beats { heartbeat: usize, from: usize },
    Link,
    Network,
    Arbiter,
    ArbiterOf(usize),
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
    pub written: u64,
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
    beats_up: Vec<[bool; 2]>,
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
    gone: Option<usize>,
    commands: u64,
    asked: BTreeMap<u64, Command>,
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
            let delay = world.rng.below(8000);
            world.later(delay, Item::NodeStart { node });
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

    fn step(&mut self, item: Item) -> Result<(), Violation> {
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
                if done {
                    self.nodes[node].disk = *state;
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
            Item::Fault => self.on_fault(),
            Item::Heal(heal) => self.heal(heal),
            Item::Resume => {
                self.command(0, Command::Resume)?;
                self.command(1, Command::Resume)?;
            }
            Item::Command => self.on_command()?,
            Item::Calm => self.on_calm()?,
            Item::End => {}
        }
        Ok(())
    }

    fn handle(&mut self, node: usize, event: Event) -> Result<(), Violation> {
        let now = Time(self.now);
        let mut out = Actions::new();
        let Some(manager) = self.nodes[node].manager.as_mut() else {
            return Ok(());
        };
        manager.handle(now, event, &mut out);
        self.carry_out(node, out)
    }

    fn carry_out(&mut self, node: usize, actions: Actions) -> Result<(), Violation> {
        let life = self.nodes[node].life;
        for action in &actions {
            if let Action::Persist { seq, .. } = action {
                self.nodes[node].written = *seq;
            }
        }
        for action in actions {
            match action {
                Action::Persist { seq, state } => {
                    let fails = !self.calm && self.rng.below(1000) < self.options.persist_fails;
                    let delay = if self.rng.one_in(50) {
                        500
                    } else {
                        self.rng.between(1, 15)
                    };
                    let after = self.nodes[node].manager.is_some();
                    debug_assert!(after || life == self.nodes[node].life);
                    // Writes end in their order.
                    let at = self.seen.persist_after(node, self.now + delay);
                    let item = Item::Persisted {
                        node,
                        life,
                        seq,
                        state,
                        done: !fails,
                    };
                    self.later(at - self.now, item);
                }
                Action::Beat { heartbeat, message } => {
                    if self.beats_up[heartbeat][node] && self.nodes[1 - node].up {
                        let most = if self.rng.one_in(20) { 300 } else { 10 };
                        let delay = self.rng.between(1, most);
                        let item = Item::Beat {
                            to: 1 - node,
                            heartbeat,
                            message: message.clone(),
                        };
                        self.later(delay, item);
                        if self.rng.one_in(100) {
                            let item = Item::Beat {
                                to: 1 - node,
                                heartbeat,
                                message,
                            };
                            let late = self.rng.between(1, 60_000);
                            self.later(late, item);
                        }
                    }
                }
                Action::Run {
                    op,
                    work,
                    environment,
                    timeout,
                } => {
                    self.check_run(node, op, work, &environment)?;
                    self.begin_op(node, op, work, timeout.0);
                }
                Action::Inquire { op } => {
                    let event = match self.nodes[node].ops.get(&op) {
                        None => Event::OpNever { op },
                        Some(Op::Ended(result)) => Event::OpDone {
                            op,
                            result: result.clone(),
                        },
                        // It will be told when it ends.
                        Some(Op::Running { .. }) => continue,
                    };
                    self.later(1, Item::Deliver { node, life, event });
                }
                Action::Probe {
                    probe,
                    monitor,
                    timeout,
                } => {
                    let delay = self.rng.between(1, 200);
                    if self.nodes[node].failing[monitor] > self.now && self.rng.one_in(10) {
                        // The shell does not answer: the core gives it up.
                        let late = timeout.0 + 5000;
                        self.later(
                            late,
                            Item::Probe {
                                node,
                                life,
                                probe,
                                monitor,
                                late: true,
                            },
                        );
                        self.see_probe(node, monitor, &OpResult::TimedOut);
                    } else {
                        self.later(
                            delay,
                            Item::Probe {
                                node,
                                life,
                                probe,
                                monitor,
                                late: false,
                            },
                        );
                    }
                }
                Action::AskRight { group, .. } => self.ask(node, group),
                Action::ReleaseRight { group } => {
                    self.check_release(node, group)?;
                    self.guard(node, group, Word::Stopped);
                    self.nodes[node].dropped[group] = false;
                    self.nodes[node].frozen[group] = false;
                    self.release(node, group);
                }
                Action::Stopped { group } => {
                    self.guard(node, group, Word::Stopped);
                    self.nodes[node].dropped[group] = false;
                    self.nodes[node].frozen[group] = false;
                }
                Action::CommandDone { id, result } => {
                    let command = self.asked.remove(&id);
                    let Some(command) = command else {
                        return Err(Violation::new(
                            "Command-once",
                            format!("command {id} twice"),
                        ));
                    };
                    self.note(|| format!("{}: {command:?}: {result:?}", name(node)));
                    if result.is_ok() {
                        self.stats.commands += 1;
                        self.seen.obeyed(command, self.now);
                    }
                }
                Action::SetTimer { at } => {
                    if at.0 != self.nodes[node].timer {
                        self.nodes[node].timer = at.0;
                        if at.0 < u64::MAX {
                            let delay = at.0.saturating_sub(self.now);
                            self.later(
                                delay,
                                Item::Timer {
                                    node,
                                    life,
                                    at: at.0,
                                },
                            );
                        }
                    }
                }
                Action::End { op, kind } => {
                    self.note(|| format!("{}: ends: {kind:?}", name(node)));
                    if self.nodes[node]
                        .ops
                        .insert(op, Op::Ended(OpResult::Done))
                        .is_some()
                    {
                        return Err(Violation::new(
                            "No-action-twice",
                            format!("{op} ends twice"),
                        ));
                    }
                    self.stats.ends += 1;
                    match kind {
                        EndKind::Manager => self.stop_manager(node, 20_000),
                        EndKind::Shutdown | EndKind::Reboot => self.crash_node(node, false),
                    }
                    return Ok(());
                }
                Action::Alert(alert) => {
                    self.note(|| format!("{}: {alert}", name(node)));
                    let monitor = match &alert.object {
                        Object::Monitor(name) => self.monitor_of(&format!("monitor {name}")),
                        _ => None,
                    };
                    self.seen
                        .alert(node, self.nodes[node].written, alert, monitor);
                }
            }
            if self.nodes[node].life != life {
                return Ok(());
            }
        }
        Ok(())
    }

    fn begin_op(&mut self, node: usize, op: OpId, work: Work, timeout: u64) {
        self.note(|| format!("{}: {op}: {work:?}", name(node)));
        let hangs = !self.calm && self.rng.below(1000) < self.options.hangs;
        let took = if self.rng.one_in(5) {
            self.rng.between(100, 4000)
        } else {
            self.rng.between(5, 200)
        };
        let delay = if hangs { timeout } else { took.min(timeout) };
        let boot = self.nodes[node].boot;
        if let Work::Start { group, resource } = work {
            self.nodes[node].live[group][resource] = Live::Half;
        }
        let until = self.now + timeout;
        self.nodes[node].ops.insert(op, Op::Running { work, until });
        self.later(
            delay,
            Item::OpEnd {
                node,
                boot,
                op,
                hung: hangs,
            },
        );
    }

    fn on_op_end(
        &mut self,
        node: usize,
        boot: u128,
        op: OpId,
        hung: bool,
    ) -> Result<(), Violation> {
        let host = &self.nodes[node];
        if !host.up || host.boot != boot {
            return Ok(());
        }
        let Some(Op::Running { work, until }) = host.ops.get(&op).cloned() else {
            return Ok(());
        };
        let group = match work {
            Work::Start { group, .. } | Work::Stop { group, .. } => Some(group),
            _ => None,
        };
        let frozen = group.is_some_and(|group| host.frozen[group]);
        if frozen && self.now < until {
            let delay = (until - self.now).min(50);
            self.later(
                delay,
                Item::OpEnd {
                    node,
                    boot,
                    op,
                    hung,
                },
            );
            return Ok(());
        }
        let (start, stop) = (self.options.start_fails, self.options.stop_fails);
        let fails = |rng: &mut Rng, thousandth: u64| rng.below(1000) < thousandth;
        let result = if hung || frozen {
            OpResult::TimedOut
        } else {
            let failed = match work {
                Work::Start { group, .. } => {
                    self.nodes[node].broken[group] > self.now
                        || (!self.calm && fails(&mut self.rng, start))
                }
                Work::Stop { .. } => !self.calm && fails(&mut self.rng, stop),
                _ => self.rng.one_in(5),
            };
            if failed {
                OpResult::Failed("as drawn".to_owned())
            } else {
                OpResult::Done
            }
        };
        match (work, &result) {
            (Work::Start { group, resource }, OpResult::Done) => {
                self.nodes[node].live[group][resource] = Live::On;
            }
            (Work::Stop { group, resource }, OpResult::Done) => {
                self.nodes[node].live[group][resource] = Live::Off;
            }
            (Work::Stop { group, resource }, _) => {
                self.nodes[node].live[group][resource] = Live::Half;
            }
            _ => {}
        }
        self.note(|| format!("{}: {op} ended: {result:?}", name(node)));
        self.see_op_end(node, work, &result);
        self.nodes[node].ops.insert(op, Op::Ended(result.clone()));
        self.handle(node, Event::OpDone { op, result })
    }

    fn start_node(&mut self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].up || self.gone == Some(node) {
            return Ok(());
        }
        let boot = u128::from(self.rng.next_u64());
        let options = &self.options;
        let bound = options.cluster.stop_bound.0;
        let guards = vec![Guard::new(options.margin, bound); self.mirrors.len()];
        let host = &mut self.nodes[node];
        host.up = true;
        host.boot = boot;
        host.started = self.now;
        host.guards = guards;
        self.note(|| format!("{}: boots", name(node)));
        self.try_connect();
        self.start_manager(node)
    }

    fn start_manager(&mut self, node: usize) -> Result<(), Violation> {
        let mut out = Actions::new();
        let host = &mut self.nodes[node];
        host.life += 1;
        host.written = 0;
        host.timer = u64::MAX;
        let start = kagami_failover::core::Start {
            cluster: self.options.cluster.clone(),
            me: node,
            durable: host.disk.clone(),
            boot: host.boot,
            incarnation: 0,
            host: Host::default(),
        };
        let manager = Manager::new(start, Time(self.now), &mut out);
        host.manager = Some(manager);
        self.note(|| format!("{}: its manager starts", name(node)));
        self.carry_out(node, out)?;
        self.tell_ready();
        Ok(())
    }

    fn stop_manager(&mut self, node: usize, again: u64) {
        let host = &mut self.nodes[node];
        host.manager = None;
        host.life += 1;
        let boot = host.boot;
        self.seen.forget_uncommitted(node);
        let delay = self.rng.between(500, again);
        self.later(delay, Item::ManagerStart { node, boot });
    }

    pub fn crash_node(&mut self, node: usize, fault: bool) {
        if !self.nodes[node].up {
            return;
        }
        self.note(|| {
            format!(
                "{}: {}",
                name(node),
                if fault { "crashes" } else { "goes down" }
            )
        });
        let groups = self.mirrors.len();
        let host = &mut self.nodes[node];
        host.up = false;
        host.manager = None;
        host.life += 1;
        host.ops.clear();
        host.guards.clear();
        for resources in &mut host.live {
            resources.fill(Live::Off);
        }
        host.frozen = vec![false; groups];
        host.dropped = vec![false; groups];
        host.lost_at = vec![None; groups];
        self.seen.forget_uncommitted(node);
        self.seen.rebooted(node);
        self.disconnect();
        for mirror in &mut self.mirrors {
            mirror.hold[node] = super::mirror::Hold::No;
            mirror.ask[node] = None;
        }
        let delay = self.rng.between(2000, 40_000);
        self.later(delay, Item::NodeStart { node });
    }

    fn on_fault(&mut self) {
        if self.calm {
            return;
        }
        let next = self.rng.around(self.options.fault_every);
        self.later(next, Item::Fault);
        let node = self.rng.node();
        let lasts = if self.rng.coin() {
            self.rng.around(3000)
        } else {
            self.rng.around(20_000)
        };
        let kind = self
            .rng
            .weighted(&[3, 5, 4, 4, 3, 3, 4, 6, 1, 3])
            .unwrap_or_default();
        self.stats.faults[kind] += 1;
        match kind {
            0 => self.crash_node(node, true),
            1 => {
                if self.nodes[node].manager.is_some() {
                    self.note(|| format!("{}: its manager dies", name(node)));
                    self.stop_manager(node, 8000);
                }
            }
            2 => {
                let heartbeat = self.rng.below(self.beats_up.len() as u64) as usize;
                self.beats_up[heartbeat][node] = false;
                self.note(|| format!("heartbeat {heartbeat} from {}: lost", name(node)));
                self.later(
                    lasts,
                    Item::Heal(Heal::Beats {
                        heartbeat,
                        from: node,
                    }),
                );
            }
            3 => {
                self.cut_link();
                self.later(lasts, Item::Heal(Heal::Link));
            }
            4 => {
                self.cut_link();
                self.beats_up.fill([false; 2]);
                self.note(|| "network between the nodes: lost".to_owned());
                self.later(lasts, Item::Heal(Heal::Network));
            }
            5 => {
                self.note(|| "arbiter: down".to_owned());
                self.arbiter_up = false;
                self.later(lasts, Item::Heal(Heal::Arbiter));
            }
            6 => {
                self.note(|| format!("arbiter: not reached from {}", name(node)));
                self.arbiter_reached[node] = false;
                // Often together with the link: the node is cut off from the world.
                if self.rng.coin() {
                    self.cut_link();
                    self.beats_up.fill([false; 2]);
                    self.later(lasts, Item::Heal(Heal::Network));
                }
                self.later(lasts, Item::Heal(Heal::ArbiterOf(node)));
            }
            7 => {
                let monitor = self.rng.below(self.options.cluster.monitors.len() as u64) as usize;
                let both = self.rng.one_in(3);
                let until = self.now + lasts;
                for at in 0..2 {
                    if both || at == node {
                        self.nodes[at].failing[monitor] = until;
                    }
                }
                self.note(|| {
                    format!(
                        "m{monitor} fails for {lasts} ms at {} (both: {both})",
                        name(node)
                    )
                });
            }
            8 => {
                self.crash_node(0, true);
                self.crash_node(1, true);
            }
            _ => {
                let group = self.rng.below(self.mirrors.len() as u64) as usize;
                self.nodes[node].broken[group] = self.now + lasts;
                self.note(|| {
                    format!(
                        "g{group} can't be activated at {} for {lasts} ms",
                        name(node)
                    )
                });
            }
        }
    }

    fn cut_link(&mut self) {
        self.link_up = false;
        self.disconnect();
    }

    fn heal(&mut self, heal: Heal) {
        self.note(|| format!("whole again: {heal:?}"));
        match heal {
            Heal::Beats { heartbeat, from } => self.beats_up[heartbeat][from] = true,
            Heal::Link => self.link_up = true,
            Heal::Network => {
                self.link_up = true;
                self.beats_up.fill([true; 2]);
            }
            Heal::Arbiter => self.arbiter_up = true,
            Heal::ArbiterOf(node) => self.arbiter_reached[node] = true,
        }
        self.try_connect();
    }

    fn on_command(&mut self) -> Result<(), Violation> {
        if self.calm {
            return Ok(());
        }
        let next = self.rng.around(self.options.command_every);
        self.later(next, Item::Command);
        let node = self.rng.node();
        let group = self.rng.below(self.mirrors.len() as u64) as usize;
        let monitor = self.rng.below(self.options.cluster.monitors.len() as u64) as usize;
        let on = self.rng.coin().then(|| self.rng.node());
        let to = self.rng.node();
        let kind = self
            .rng
            .pick(&[EndKind::Manager, EndKind::Shutdown, EndKind::Reboot]);
        let command = match self
            .rng
            .weighted(&[8, 4, 8, 1, 2, 1, 1, 1, 1, 1])
            .unwrap_or_default()
        {
            0 => Command::Start { group, on },
            1 => Command::Stop { group },
            2 => Command::Move { group, to },
            3 => Command::Suspend,
            4 => Command::Resume,
            5 => Command::SuspendMonitor(monitor),
            6 => Command::ResumeMonitor(monitor),
            // Never left failing: a rehearsal ends.
            7 => Command::FailMonitor(monitor, false),
            8 => Command::EndNode(kind),
            _ => Command::EndCluster(kind),
        };
        self.command(node, command)
    }

    fn command(&mut self, node: usize, command: Command) -> Result<(), Violation> {
        if self.nodes[node].manager.is_none() {
            return Ok(());
        }
        self.commands += 1;
        let id = self.commands;
        self.asked.insert(id, command);
        self.handle(node, Event::Command { id, command })
    }

    /// The faults stop; whatever was broken is whole.
    fn on_calm(&mut self) -> Result<(), Violation> {
        self.note(|| "calm: no more faults".to_owned());
        self.calm = true;
        self.link_up = true;
        self.arbiter_up = true;
        self.arbiter_reached = [true; 2];
        self.beats_up.fill([true; 2]);
        for node in &mut self.nodes {
            node.broken.fill(0);
            node.failing.fill(0);
        }
        if self.rng.one_in(3) {
            let node = self.rng.node();
            self.note(|| format!("{} stays down", name(node)));
            self.crash_node(node, true);
            self.gone = Some(node);
        }
        self.try_connect();
        for node in 0..2 {
            if !self.nodes[node].up {
                self.start_node(node)?;
            } else if self.nodes[node].manager.is_none() {
                self.start_manager(node)?;
            }
        }
        // An end that was ordered just now is over by then.
        self.later(60_000, Item::Resume);
        self.command(0, Command::Resume)?;
        self.command(1, Command::Resume)?;
        let wait = self.options.cluster.wait_for_node.0;
        let bound = self.options.cluster.stop_bound.0;
        self.later(wait + 2 * bound + 180_000, Item::End);
        Ok(())
    }

    /// The one that is left runs what may run there.
    fn check_survivor(&mut self, node: usize) -> Result<(), Violation> {
        let host = &self.nodes[node];
        let Some(manager) = host
            .manager
            .as_ref()
            .filter(|_| self.now - host.started > 150_000)
        else {
            return Ok(());
        };
        let mut online = 0;
        for (group, config) in self.options.cluster.groups.iter().enumerate() {
            let status = manager.group_status(group);
            let mirror = &self.mirrors[group];
            let may = mirror.register[node] && !mirror.bad[node];
            let failed = matches!(
                status,
                GroupStatus::OnlineFailure | GroupStatus::OfflineFailure
            );
            let manual = config.attributes.startup == kagami_failover::config::Start::Manual;
            let waits = !config.attributes.wait_for.is_empty() && !self.is_online_somewhere(0);
            let wanted = manager.order_of(group).wanted;
            if status != GroupStatus::Online && wanted && may && !failed && !manual && !waits {
                let order = manager.order_of(group);
                let what = format!(
                    "{}: {status:?} at {}, the only node, {order:?}",
                    config.name,
                    name(node)
                );
                return Err(Violation::new("Taken-over", what));
            }
            online += u64::from(status == GroupStatus::Online);
        }
        self.stats.online += online;
        Ok(())
    }

    /// The group is to run, and runs on one node.
    fn check_end(&mut self) -> Result<(), Violation> {
        if let Some(gone) = self.gone {
            return self.check_survivor(1 - gone);
        }
        let managers: Vec<&Manager> = self
            .nodes
            .iter()
            .filter_map(|n| n.manager.as_ref())
            .collect();
        let [a, b] = managers[..] else {
            // A final action has just ended one, which is not what is looked at here.
            return Ok(());
        };
        let settled = |m: &Manager| m.phase() == Phase::Running && !m.durable().suspended.value;
        if !settled(a) || !settled(b) {
            let what = format!("at the end {:?} and {:?}", a.phase(), b.phase());
            return Err(Violation::new("Runs-somewhere", what));
        }
        let ended = self
            .nodes
            .iter()
            .any(|node| self.now - node.started < 150_000);
        let cluster = Arc::clone(&self.options.cluster);
        for (group, config) in cluster.groups.iter().enumerate() {
            let (at_a, at_b) = (a.group_status(group), b.group_status(group));
            if a.order_of(group) != b.order_of(group) {
                let stamp = |m: &Manager| m.durable().groups[group].order.clone();
                let what = format!("{}: {:?} and {:?}", config.name, stamp(a), stamp(b));
                return Err(Violation::new("One-word", what));
            }
            let failed = |status| {
                matches!(
                    status,
                    GroupStatus::OnlineFailure | GroupStatus::OfflineFailure
                )
            };
            let manual = config.attributes.startup == kagami_failover::config::Start::Manual;
            let excused = failed(at_a)
                || failed(at_b)
                || manual
                || ended
                || config.resources.iter().any(|r| {
                    // A group that can't be stopped may have taken its node down just now.
                    r.common.stop_final != Final::Nothing && self.seen.stop_failed_in_calm
                })
                || config
                    .attributes
                    .wait_for
                    .iter()
                    .any(|_| !self.is_online_somewhere(0));
            if !a.order_of(group).wanted {
                continue;
            }
            let online = [at_a, at_b]
                .iter()
                .filter(|s| **s == GroupStatus::Online)
                .count();
            if online != 1 && !excused {
                let what = format!(
                    "{}: {at_a:?} at a, {at_b:?} at b, {:?}",
                    config.name,
                    a.order_of(group)
                );
                return Err(Violation::new("Runs-somewhere", what));
            }
            self.stats.online += u64::from(online == 1);
        }
        Ok(())
    }

    fn is_online_somewhere(&self, group: usize) -> bool {
        let managers = self.nodes.iter().filter_map(|n| n.manager.as_ref());
        managers
            .into_iter()
            .any(|m| m.group_status(group) == GroupStatus::Online)
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
