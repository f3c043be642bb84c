//! Time, what happens next, what breaks, and the register.

use std::collections::BTreeMap;

use kagami_failover::core::Time;
use kagami_failover::lives::Life;
use kagami_failover::right::lease::{Event, Kept, Question, Said, Terms, Word};
use kagami_failover::right::register::{Id, Record};

use crate::failover::check::Violation;
use crate::failover::stats::FAULTS;
use crate::sim::rng::Rng;

use super::nodes::Node;

/// A change of the register: what it must hold, and what it is to hold.
pub type Change = (Option<Id>, (Id, Record));

/// What a seed is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Everything breaks.
    Everything,
    /// Only the arbiter breaks: the first node, which alone wants the group, must not notice.
    OnlyArbiter,
    /// Only the other node and the channel break: it must not notice either.
    OnlyPeer,
}

/// What happens at a time.
#[derive(Clone, Debug)]
pub enum Item {
    /// To a manager, if it is that life of it.
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
    /// A question reaches the arbiter.
    Arrive {
        node: usize,
        life: u64,
        attempt: u64,
        change: Option<Change>,
    },
    /// A question reaches the other manager.
    Asked {
        to: usize,
        from_life: u64,
        nonce: u64,
        question: Question,
    },
    Marked {
        node: usize,
        life: u64,
        boot: u64,
        writer: Life,
        kept: Kept,
    },
    Guarded {
        node: usize,
        life: u64,
        attempt: u64,
        until: Time,
    },
    /// A guard looks: both do before each step.
    Look,
    /// What was to stop has stopped.
    Stopped {
        node: usize,
        stop: u64,
        lost: bool,
    },
    AskAgain {
        node: usize,
        life: u64,
    },
    ManagerStart {
        node: usize,
        boot: u64,
    },
    NodeStart {
        node: usize,
    },
    Resume {
        node: usize,
        boot: u64,
    },
    Want,
    Fault,
    HealArbiter,
    HealReach(usize),
    HealLink,
    Calm,
    End,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    pub rng: Rng,
    pub profile: Profile,
    /// How long leases are by the revisions of the configuration that there are.
    pub lengths: [u64; 2],
    pub longest: u64,
    pub margin: u64,
    pub now: u64,
    queue: BTreeMap<(u64, u64), Item>,
    next: u64,
    pub nodes: [Node; 2],
    /// There is one, unless the nodes' configurations differ: then there are two.
    pub registers: [Option<(Id, Record)>; 2],
    /// Which of them a node asks.
    pub asks: [usize; 2],
    /// Configurations may differ.
    pub apart: bool,
    pub arbiter_up: bool,
    pub reach: [bool; 2],
    /// What a node says arrives at the other one.
    pub link: [bool; 2],
    pub calm: bool,
    pub gone: Option<usize>,
    fault_every: u64,
    want_every: u64,
    pub steps: u64,
    pub faults: [u64; FAULTS.len()],
    pub grants: u64,
    pub losses: u64,
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let profile = match rng.below(10) {
            0 => Profile::OnlyArbiter,
            1 => Profile::OnlyPeer,
            _ => Profile::Everything,
        };
        let length = rng.between(3000, 10_000);
        let other = match rng.below(3) {
            0 => rng.between(3000, 20_000),
            _ => length,
        };
        let lengths = [length, other];
        let longest = length.max(other);
        let margin = rng.between(100, 600);
        let nodes = [0, 1].map(|_| {
            let length = lengths[usize::from(rng.coin())];
            Node::new(&mut rng, length)
        });
        let mut world = Self {
            profile,
            lengths,
            longest,
            margin,
            now: 0,
            queue: BTreeMap::new(),
            next: 0,
            nodes,
            registers: [None, None],
            asks: [0; 2],
            apart: profile == Profile::Everything && rng.one_in(4),
            arbiter_up: true,
            reach: [true; 2],
            link: [true; 2],
            calm: false,
            gone: None,
            fault_every: rng.between(1500, 20_000),
            want_every: rng.between(2000, 30_000),
            steps: 0,
            faults: [0; FAULTS.len()],
            grants: 0,
            losses: 0,
            trace: trace.then(Vec::new),
            rng,
        };
        let shown = format!("seed {seed}: {profile:?}, leases of {lengths:?}, margin {margin}");
        world.note(|| shown);
        for node in 0..2 {
            let delay = world.rng.below(3000);
            world.later(delay, Item::NodeStart { node });
        }
        if profile == Profile::Everything {
            world.later(1, Item::Want);
        } else {
            world.nodes[0].wants = true;
        }
        // The first lease is there before anything breaks that must not be noticed.
        let first = 4 * world.longest_wait();
        world.later(first, Item::Fault);
        let lasts = world.rng.between(60_000, 300_000);
        world.later(first + lasts, Item::Calm);
        world
    }

    fn longest_wait(&self) -> u64 {
        let (length, margin) = (self.longest, self.margin);
        Terms { length, margin }.wait()
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
            self.steps += 1;
            if matches!(item, Item::End) {
                return self.check_end();
            }
            self.look_all()?;
            self.step(item)?;
            self.check_step()?;
        }
        Err(Violation::new("World", "nothing happens any more"))
    }

    fn step(&mut self, item: Item) -> Result<(), Violation> {
        match item {
            Item::Deliver { node, life, event } => return self.deliver(node, life, event),
            Item::Timer { node, life, at } => {
                if self.nodes[node].timer == at {
                    return self.deliver(node, life, Event::Timer);
                }
            }
            Item::Arrive {
                node,
                life,
                attempt,
                change,
            } => self.arrive(node, life, attempt, change),
            Item::Asked {
                to,
                from_life,
                nonce,
                question,
            } => return self.asked(to, from_life, nonce, question),
            Item::Marked {
                node,
                life,
                boot,
                writer,
                kept,
            } => return self.marked(node, (life, boot), &writer, kept),
            Item::Guarded {
                node,
                life,
                attempt,
                until,
            } => return self.guarded(node, (life, attempt), until),
            Item::Look => {}
            Item::Stopped { node, stop, lost } => return self.stopped(node, stop, lost),
            Item::AskAgain { node, life } => {
                if life == self.nodes[node].life {
                    return self.upkeep(node);
                }
            }
            Item::ManagerStart { node, boot } => {
                let host = &self.nodes[node];
                if host.up && host.boot == boot && host.lease.is_none() {
                    return self.start_manager(node);
                }
            }
            Item::NodeStart { node } => return self.start_node(node),
            Item::Resume { node, boot } => return self.resume(node, boot),
            Item::Want => return self.on_want(),
            Item::Fault => self.on_fault(),
            Item::HealArbiter => self.arbiter_up = true,
            Item::HealReach(node) => self.reach[node] = true,
            Item::HealLink => self.link = [true; 2],
            Item::Calm => return self.on_calm(),
            Item::End => {}
        }
        Ok(())
    }

    /// How long something takes on a line.
    pub fn travel(&mut self) -> u64 {
        let usual = self.rng.between(1, 20);
        if self.profile != Profile::Everything || self.calm {
            return usual;
        }
        match self.rng.below(30) {
            0 => self.rng.between(20, 2 * self.longest),
            1..=3 => self.rng.between(20, 1000),
            _ => usual,
        }
    }

    fn arrive(&mut self, node: usize, life: u64, attempt: u64, change: Option<Change>) {
        let asked = self.asks[node];
        let found = self.registers[asked].clone();
        let said = match change {
            Some((expect, new)) if found.as_ref().map(|(id, _)| *id) == expect => {
                self.note(|| format!("register {asked}: {}", new.1));
                self.registers[asked] = Some(new);
                Said::Swapped
            }
            None | Some(_) => Said::Found(found),
        };
        if self.arbiter_up && self.reach[node] {
            let delay = self.travel();
            let event = Event::Arbiter { attempt, said };
            self.later(delay, Item::Deliver { node, life, event });
        }
    }

    fn asked(
        &mut self,
        to: usize,
        from_life: u64,
        nonce: u64,
        question: Question,
    ) -> Result<(), Violation> {
        let host = &mut self.nodes[to];
        if host.lease.is_none() {
            return Ok(());
        }
        host.tokens += 1;
        let token = host.tokens;
        host.asked.insert(token, (from_life, nonce));
        let life = host.life;
        self.deliver(to, life, Event::Question { token, question })
    }

    /// A node's answer travels back.
    pub fn answer(&mut self, node: usize, token: u64, word: Word) {
        let Some((life, nonce)) = self.nodes[node].asked.get(&token).copied() else {
            return;
        };
        if self.link[node] {
            let delay = self.travel();
            let event = Event::Peer { nonce, word };
            let to = 1 - node;
            let item = Item::Deliver {
                node: to,
                life,
                event,
            };
            if self.rng.one_in(50) {
                let late = self.rng.between(1, 3 * self.longest);
                self.later(late, item.clone());
            }
            self.later(delay, item);
        }
    }

    fn on_want(&mut self) -> Result<(), Violation> {
        if self.calm {
            return Ok(());
        }
        let next = self.rng.around(self.want_every);
        self.later(next, Item::Want);
        // Mostly one of them; sometimes both, as when they don't hear each other.
        let wants = match self.rng.below(8) {
            0 => [true, true],
            1 => [false, false],
            2..=4 => [true, false],
            _ => [false, true],
        };
        self.note(|| format!("wanted: {wants:?}"));
        for (node, wants) in wants.into_iter().enumerate() {
            self.nodes[node].wants = wants;
            self.upkeep(node)?;
        }
        Ok(())
    }

    fn on_fault(&mut self) {
        if self.calm {
            return;
        }
        let next = self.rng.around(self.fault_every);
        self.later(next, Item::Fault);
        let node = self.rng.node();
        let lasts = if self.rng.coin() {
            self.rng.around(2000)
        } else {
            self.rng.around(15_000)
        };
        let kind = match self.profile {
            Profile::Everything => self.rng.weighted(&[4, 6, 3, 5, 4, 4, 5, 1]),
            Profile::OnlyArbiter => self.rng.weighted(&[0, 0, 0, 0, 0, 5, 5]),
            Profile::OnlyPeer => self.rng.weighted(&[3, 3, 3, 5, 4, 0, 0]),
        };
        let kind = kind.unwrap_or_default();
        let node = if self.profile == Profile::OnlyPeer {
            1
        } else {
            node
        };
        self.faults[kind] += 1;
        match kind {
            0 => self.crash_node(node),
            1 => self.kill_manager(node),
            2 => self.pause(node, lasts),
            3 | 4 => {
                if kind == 3 {
                    self.link = [false; 2];
                } else {
                    self.link[node] = false;
                }
                self.note(|| "channel: lost".to_owned());
                self.later(lasts, Item::HealLink);
            }
            5 => {
                self.note(|| "arbiter: down".to_owned());
                self.arbiter_up = false;
                self.later(lasts, Item::HealArbiter);
            }
            6 => {
                self.note(|| format!("arbiter: not reached from {node}"));
                self.reach[node] = false;
                self.later(lasts, Item::HealReach(node));
            }
            _ => {
                let asked = self.asks[node];
                self.note(|| format!("register {asked}: deleted"));
                self.registers[asked] = None;
            }
        }
    }

    fn on_calm(&mut self) -> Result<(), Violation> {
        self.note(|| "calm: no more faults".to_owned());
        self.calm = true;
        self.arbiter_up = true;
        self.reach = [true; 2];
        self.link = [true; 2];
        self.asks = [0; 2];
        let runs = self.rng.node();
        for node in 0..2 {
            self.nodes[node].wants = node == runs;
            let boot = self.nodes[node].boot;
            self.resume(node, boot)?;
        }
        // Alone it may have the right only in the register that both had agreed on, and a node that has found
        // another one meanwhile has given that up.
        let instance = self.registers[0].as_ref().map(|(id, _)| id.instance);
        let knows = |node: &Node| node.mark.is_some_and(|(kept, _)| kept.instance == instance);
        if !self.apart && instance.is_some() && knows(&self.nodes[runs]) && self.rng.one_in(3) {
            self.crash_node(1 - runs);
            self.gone = Some(1 - runs);
        }
        for node in 0..2 {
            self.start_node(node)?;
            if self.nodes[node].up && self.nodes[node].lease.is_none() {
                self.start_manager(node)?;
            }
            self.upkeep(node)?;
        }
        // One more question that was refused, and all waits after it.
        self.later(6 * self.longest_wait() + 10_000, Item::End);
        Ok(())
    }
}
