//! A node: its clock, its disk, the shell around its lease, its guard, and a core that wants the group or not.

use std::collections::BTreeMap;

use kagami_failover::core::{Right, Time};
use kagami_failover::right::lease::{
    Action, Actions, Before, Event, Kept, Lease, Left, Mark, Said, Terms,
};

use kagami_failover::lives::{Life, Lives};

use crate::failover::check::Violation;
use crate::sim::rng::Rng;

use super::world::{Change, Item, Profile, World};

/// What the core is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    Idle,
    Asked,
    Running,
    /// The group is being stopped.
    Stopping,
    /// The right is being given up.
    Releasing,
}

/// What the guard knows.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    pub until: Time,
    pub frozen: bool,
    pub dropped: bool,
}

#[derive(Debug)]
pub struct Node {
    /// Parts in a million that its clock is fast.
    drift: i64,
    offset: u64,
    pub up: bool,
    pub boot: u64,
    pub life: u64,
    pub lease: Option<Lease>,
    pub timer: u64,
    /// How long its leases are: its manager's revision of the configuration.
    pub length: u64,
    /// The mark on its disk, and the boot that it is of.
    pub mark: Option<(Kept, u64)>,
    lives: Lives,
    /// Its manager's, as what writes the mark knows it.
    writer: Life,
    pub wants: bool,
    pub core: Core,
    /// The group's processes are there.
    pub running: bool,
    pub guard: Option<Watch>,
    pub paused: bool,
    /// Raised when what was being stopped is not that any more.
    pub stops: u64,
    inbox: Vec<(u64, Event)>,
    pub tokens: u64,
    pub asked: BTreeMap<u64, (u64, u64)>,
}

impl Node {
    pub fn new(rng: &mut Rng, length: u64) -> Self {
        let lives = Lives::default();
        Self {
            writer: lives.begin(),
            lives,
            drift: rng.below(20_001) as i64 - 10_000,
            offset: rng.between(1_000_000, 9_000_000),
            up: false,
            boot: 0,
            life: 0,
            lease: None,
            timer: 0,
            length,
            mark: None,
            wants: false,
            core: Core::Idle,
            running: false,
            guard: None,
            paused: false,
            stops: 0,
            inbox: Vec::new(),
            tokens: 0,
            asked: BTreeMap::new(),
        }
    }

    /// What its clock shows.
    pub fn clock(&self, now: u64) -> Time {
        let gained = now as i64 * self.drift / 1_000_000;
        Time((self.offset + now).saturating_add_signed(gained))
    }

    /// How long until its clock shows that.
    fn until(&self, now: u64, at: Time) -> u64 {
        let ms = at.since(self.clock(now)) as i64;
        (ms * 1_000_000 / (1_000_000 + self.drift)) as u64 + 1
    }
}

pub fn name(node: usize) -> String {
    ["a", "b"][node].to_owned()
}

impl World {
    pub fn start_node(&mut self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].up || self.gone == Some(node) {
            return Ok(());
        }
        let host = &mut self.nodes[node];
        host.up = true;
        host.boot += 1;
        self.note(|| format!("{}: boots", name(node)));
        self.start_manager(node)
    }

    pub fn start_manager(&mut self, node: usize) -> Result<(), Violation> {
        let seed = self.rng.next_u64() >> 1;
        if self.profile == Profile::Everything && self.rng.one_in(3) {
            // It begins with another revision of the configuration.
            self.nodes[node].length = self.lengths[usize::from(self.rng.coin())];
        }
        if self.apart && !self.calm {
            // And with another arbiter, or prefix.
            self.asks[node] = usize::from(self.rng.coin());
        }
        let now = self.now;
        let margin = self.margin;
        let host = &mut self.nodes[node];
        let length = host.length;
        let terms = Terms { length, margin };
        host.life += 1;
        host.stops += 1;
        host.paused = false;
        host.inbox.clear();
        host.writer = host.lives.begin();
        let before = match host.mark {
            Some((kept, boot)) if kept.mark == Mark::Held && boot == host.boot => Before::Held,
            Some((kept, _)) if kept.mark == Mark::Held => Before::HeldBeforeBoot,
            _ => Before::Free,
        };
        let left = Left {
            before,
            length: host.mark.map_or(0, |(kept, _)| kept.length),
            instance: host.mark.and_then(|(kept, _)| kept.instance),
        };
        let nodes = [name(0), name(1)];
        let lease = Lease::new(terms, nodes, node, left, seed, host.clock(now));
        host.lease = Some(lease);
        host.core = Core::Idle;
        let life = host.life;
        self.note(|| format!("{}: its manager starts: {left:?}, {terms:?}", name(node)));
        self.deliver(node, life, Event::Timer)?;
        self.upkeep(node)
    }

    pub fn kill_manager(&mut self, node: usize) {
        let host = &mut self.nodes[node];
        if host.lease.take().is_none() {
            return;
        }
        host.life += 1;
        host.asked.clear();
        let boot = host.boot;
        self.note(|| format!("{}: its manager dies", name(node)));
        let delay = self.rng.between(50, 6000);
        self.later(delay, Item::ManagerStart { node, boot });
    }

    pub fn crash_node(&mut self, node: usize) {
        if !self.nodes[node].up {
            return;
        }
        let host = &mut self.nodes[node];
        host.up = false;
        host.lease = None;
        host.life += 1;
        host.asked.clear();
        host.running = false;
        host.guard = None;
        host.core = Core::Idle;
        self.note(|| format!("{}: crashes", name(node)));
        let delay = self.rng.between(300, 20_000);
        self.later(delay, Item::NodeStart { node });
    }

    pub fn pause(&mut self, node: usize, lasts: u64) {
        let host = &mut self.nodes[node];
        if host.lease.is_some() && !host.paused {
            host.paused = true;
            let boot = host.boot;
            self.note(|| format!("{}: its manager is stopped for {lasts} ms", name(node)));
            self.later(lasts, Item::Resume { node, boot });
        }
    }

    pub fn resume(&mut self, node: usize, boot: u64) -> Result<(), Violation> {
        let host = &mut self.nodes[node];
        if host.boot != boot || !std::mem::take(&mut host.paused) {
            return Ok(());
        }
        self.note(|| format!("{}: its manager goes on", name(node)));
        for (life, event) in std::mem::take(&mut self.nodes[node].inbox) {
            self.deliver(node, life, event)?;
            self.check_step()?;
        }
        self.upkeep(node)
    }

    /// What a manager had under way to its disk, itself dead or alive.
    pub fn marked(
        &mut self,
        node: usize,
        (life, boot): (u64, u64),
        writer: &Life,
        kept: Kept,
    ) -> Result<(), Violation> {
        let host = &mut self.nodes[node];
        if !host.up || host.boot != boot {
            return Ok(());
        }
        if writer
            .carry_out(|| host.mark = Some((kept, boot)))
            .is_none()
        {
            return Ok(());
        }
        self.deliver(node, life, Event::Marked)
    }

    /// Something for a manager.
    pub fn deliver(&mut self, node: usize, life: u64, event: Event) -> Result<(), Violation> {
        let host = &mut self.nodes[node];
        if life != host.life {
            return Ok(());
        }
        if host.paused {
            host.inbox.push((life, event));
            return Ok(());
        }
        let now = host.clock(self.now);
        let Some(lease) = &mut host.lease else {
            return Ok(());
        };
        let mut out = Actions::new();
        if !matches!(event, Event::Timer) {
            let shown = format!("{} <- {event:?}", name(node));
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{:>9.3} {shown}", self.now as f64 / 1000.0));
            }
        }
        lease.handle(now, event, &mut out);
        let next = lease.deadline(now);
        let delay = host.until(self.now, next);
        let at = self.now + delay;
        host.timer = at;
        self.later(delay, Item::Timer { node, life, at });
        self.carry_out(node, out)
    }

    fn carry_out(&mut self, node: usize, actions: Actions) -> Result<(), Violation> {
        let life = self.nodes[node].life;
        for action in actions {
            self.note(|| format!("{} -> {action:?}", name(node)));
            match action {
                Action::Read { attempt } => self.ask_arbiter(node, attempt, None),
                Action::Swap {
                    attempt,
                    expect,
                    new,
                } => self.ask_arbiter(node, attempt, Some((expect, new))),
                Action::Question { nonce, question } => {
                    if self.link[node] && self.nodes[1 - node].up {
                        let item = Item::Asked {
                            to: 1 - node,
                            from_life: life,
                            nonce,
                            question,
                        };
                        let delay = self.travel();
                        if self.rng.one_in(50) {
                            let late = self.rng.between(1, 3 * self.longest);
                            self.later(late, item.clone());
                        }
                        self.later(delay, item);
                    }
                }
                Action::Answer { token, word } => self.answer(node, token, word),
                Action::Mark(kept) => {
                    let slow = self.profile == Profile::Everything && self.rng.one_in(20);
                    let delay = self.rng.between(1, if slow { 8000 } else { 40 });
                    let host = &self.nodes[node];
                    let (boot, writer) = (host.boot, host.writer.clone());
                    let item = Item::Marked {
                        node,
                        life,
                        boot,
                        writer,
                        kept,
                    };
                    self.later(delay, item);
                }
                Action::Arm { attempt, ends } => {
                    let delay = self.rng.between(1, 20);
                    let item = Item::Guarded {
                        node,
                        life,
                        attempt,
                        until: ends,
                    };
                    self.later(delay, item);
                }
                Action::Extend(until) => self.extend(node, until),
                Action::Disarm => self.nodes[node].guard = None,
                Action::SayApart => {}
                Action::Tell(change) => self.told(node, &change)?,
            }
        }
        Ok(())
    }

    fn ask_arbiter(&mut self, node: usize, attempt: u64, change: Option<Change>) {
        let life = self.nodes[node].life;
        if self.arbiter_up && self.reach[node] {
            let delay = self.travel();
            self.later(
                delay,
                Item::Arrive {
                    node,
                    life,
                    attempt,
                    change,
                },
            );
        }
        // If there was an answer before, this one is to nothing.
        let said = Said::Silent("no answer in time".to_owned());
        let event = Event::Arbiter { attempt, said };
        let timeout = self.nodes[node].length / 2;
        self.later(timeout, Item::Deliver { node, life, event });
    }

    pub fn guarded(
        &mut self,
        node: usize,
        (life, attempt): (u64, u64),
        until: Time,
    ) -> Result<(), Violation> {
        if !self.nodes[node].up || life != self.nodes[node].life {
            return Ok(());
        }
        let stopping = self.nodes[node].guard.is_some_and(|watch| watch.dropped);
        if !stopping {
            self.nodes[node].guard.get_or_insert(Watch {
                until,
                frozen: false,
                dropped: false,
            });
            self.extend(node, until);
        }
        self.deliver(node, life, Event::Guarded { attempt, stopping })
    }

    fn extend(&mut self, node: usize, until: Time) {
        let margin = self.margin;
        let now = self.now;
        let host = &mut self.nodes[node];
        let clock = host.clock(now);
        if let Some(watch) = host.guard.as_mut().filter(|watch| !watch.dropped) {
            watch.until = watch.until.max(until);
            if watch.until > clock {
                watch.frozen = false;
            }
            let until = watch.until;
            for at in [until, until.after(margin)] {
                let delay = self.nodes[node].until(now, at);
                self.later(delay, Item::Look);
            }
        }
    }

    /// The guards do what their clocks say.
    pub fn look_all(&mut self) -> Result<(), Violation> {
        for node in 0..2 {
            let clock = self.nodes[node].clock(self.now);
            let margin = self.margin;
            let Some(watch) = &mut self.nodes[node].guard else {
                continue;
            };
            if clock >= watch.until && !std::mem::replace(&mut watch.frozen, true) {
                self.check_frozen(node)?;
            }
            let Some(watch) = &mut self.nodes[node].guard else {
                continue;
            };
            if clock >= watch.until.after(margin) && !std::mem::replace(&mut watch.dropped, true) {
                self.note(|| format!("{}: its guard drops the address", name(node)));
                let life = self.nodes[node].life;
                let event = Event::Lost;
                self.later(0, Item::Deliver { node, life, event });
            }
        }
        Ok(())
    }

    fn told(&mut self, node: usize, change: &Right) -> Result<(), Violation> {
        let life = self.nodes[node].life;
        match change {
            Right::Granted => {
                self.grants += 1;
                self.nodes[node].running = true;
                self.nodes[node].core = Core::Running;
                self.check_granted(node)?;
                self.later(0, Item::AskAgain { node, life });
            }
            Right::Refused(_) => {
                if self.nodes[node].running {
                    self.check_undisturbed(node, "refused")?;
                    self.stop(node, true);
                } else {
                    self.nodes[node].core = Core::Idle;
                    self.later(1000, Item::AskAgain { node, life });
                }
            }
            Right::Lost => {
                self.losses += 1;
                self.check_undisturbed(node, "lost")?;
                self.stop(node, true);
            }
            Right::Released => {
                self.nodes[node].core = Core::Idle;
                self.later(0, Item::AskAgain { node, life });
            }
            Right::LeaseEnded => self.check_undisturbed(node, "ended")?,
            // Of mirrors alone.
            Right::MirrorsOnly => unreachable!("a lease has no mirrors"),
            Right::Renewed => {}
        }
        Ok(())
    }

    fn stop(&mut self, node: usize, lost: bool) {
        self.nodes[node].core = Core::Stopping;
        self.nodes[node].stops += 1;
        let stop = self.nodes[node].stops;
        let delay = self.rng.between(10, 2000);
        self.later(delay, Item::Stopped { node, stop, lost });
    }

    pub fn stopped(&mut self, node: usize, stop: u64, lost: bool) -> Result<(), Violation> {
        let host = &mut self.nodes[node];
        if !host.up || host.stops != stop || host.core != Core::Stopping || host.lease.is_none() {
            return Ok(());
        }
        host.running = false;
        let life = host.life;
        let event = if lost {
            host.core = Core::Idle;
            self.later(1000, Item::AskAgain { node, life });
            Event::Stopped
        } else {
            host.core = Core::Releasing;
            Event::Release
        };
        self.deliver(node, life, event)
    }

    /// What the core would do now.
    pub fn upkeep(&mut self, node: usize) -> Result<(), Violation> {
        let host = &mut self.nodes[node];
        if host.lease.is_none() || host.paused {
            return Ok(());
        }
        let life = host.life;
        match (host.core, host.wants) {
            (Core::Idle, true) => {
                host.core = Core::Asked;
                self.deliver(node, life, Event::Ask)
            }
            (Core::Idle, false) if host.running => {
                self.stop(node, false);
                Ok(())
            }
            (Core::Asked, false) if !host.running => {
                host.core = Core::Releasing;
                self.deliver(node, life, Event::Release)
            }
            (Core::Running | Core::Asked, false) => {
                self.stop(node, false);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
