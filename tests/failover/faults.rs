//! What breaks and is whole again, and what an operator says.

use kagami_failover::core::durable::EndKind;
use kagami_failover::core::{Command, Event};

use super::check::Violation;
use super::mirror::name;
use super::world::{Blow, Heal, Item, Live, World};

/// An operator's word counts no longer than the heartbeats' time-out, and who looks takes as long.
const WORD_COUNTS: u64 = 2000;

impl World {
    pub(super) fn on_fault(&mut self) {
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
            .weighted(&[3, 5, 4, 4, 3, 3, 4, 6, 1, 3, 4, 3, 3])
            .unwrap_or_default();
        self.stats.faults[kind] += 1;
        match kind {
            0 => self.blow(node, Blow::Crash),
            1 => self.blow(node, Blow::Death),
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
            9 => {
                let group = self.rng.below(self.mirrors.len() as u64) as usize;
                self.nodes[node].broken[group] = self.now + lasts;
                self.note(|| {
                    format!(
                        "g{group} can't be activated at {} for {lasts} ms",
                        name(node)
                    )
                });
            }
            10 => {
                let group = self.rng.below(self.mirrors.len() as u64) as usize;
                if self.fail_disk(node, group) {
                    self.later(4 * lasts, Item::Heal(Heal::Disk { node, group }));
                }
            }
            11 => {
                // No longer than what may wait for it without a reset. Often the other node is unheard for as long.
                let lasts = lasts.min(6000);
                self.nodes[node].unwritable = self.now + lasts;
                self.note(|| format!("{}: its state can't be written for {lasts} ms", name(node)));
                if self.rng.coin() {
                    self.beats_up.fill([false; 2]);
                    let heal = self.rng.between(2000, lasts.max(2001));
                    self.later(heal, Item::Heal(Heal::Network));
                }
            }
            _ => self.blow(node, Blow::StandStill(lasts)),
        }
    }

    /// It comes now, or while the manager's next write is under way: what is recorded by then is not done, or done
    /// and not recorded as such.
    fn blow(&mut self, node: usize, blow: Blow) {
        if self.rng.coin() {
            self.strike(node, blow);
        } else {
            self.nodes[node].at_next_write = Some(blow);
        }
    }

    pub(super) fn cut_link(&mut self) {
        self.link_up = false;
        self.disconnect();
    }

    pub(super) fn heal(&mut self, heal: Heal) {
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
            Heal::Disk { node, group } => {
                if !self.calm && !self.replace_disk(node, group) && self.mirrors[group].dead[node] {
                    self.later(5000, Item::Heal(heal));
                }
            }
        }
        self.try_connect();
    }

    pub(super) fn on_command(&mut self) -> Result<(), Violation> {
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
            0 => {
                let sure = self.has_looked(node, group);
                if sure && self.options.by_hand && self.rng.one_in(3) {
                    self.hold_up(node, group);
                }
                Command::Start { group, on, sure }
            }
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

    /// Where nothing else decides, an operator's start is the word that the other node does not run the group. Who
    /// says so has looked, and whoever starts it without looking is refused. He finds the machine down; or its manager
    /// hangs, with nothing of the group there, and he has given no such word to that one while it may count.
    fn has_looked(&mut self, node: usize, group: usize) -> bool {
        let other = &self.nodes[1 - node];
        let hangs = |since: u64| self.now - since >= WORD_COUNTS;
        let is_off = other.live[group].iter().all(|live| *live == Live::Off);
        let runs_nothing = self.options.by_hand
            && other.paused.is_some_and(hangs)
            && is_off
            && self.now.saturating_sub(self.sure_at[1 - node]) >= WORD_COUNTS;
        let sure = (!other.up || runs_nothing) && self.rng.coin();
        if sure {
            self.sure_at[node] = self.now;
        }
        sure
    }

    /// The manager that hears this stands still before it has done it, unheard until after that, and the operator
    /// turns to the other node.
    fn hold_up(&mut self, node: usize, group: usize) {
        let lasts = self.rng.between(10_000, 120_000);
        let then = self.rng.between(lasts / 2, lasts);
        let other = 1 - node;
        self.later(then, Item::TurnTo { node: other, group });
        self.nodes[node].at_next_write = Some(Blow::StandStill(lasts));
        self.beats_up.fill([false; 2]);
        let heal = self.rng.between(lasts, 2 * lasts);
        self.later(heal, Item::Heal(Heal::Network));
    }

    pub(super) fn turn_to(&mut self, node: usize, group: usize) -> Result<(), Violation> {
        if self.calm {
            return Ok(());
        }
        let sure = self.has_looked(node, group);
        let on = Some(node);
        self.command(node, Command::Start { group, on, sure })
    }

    pub(super) fn command(&mut self, node: usize, command: Command) -> Result<(), Violation> {
        if self.nodes[node].manager.is_none() {
            return Ok(());
        }
        self.commands += 1;
        let id = self.commands;
        self.asked.insert(id, command);
        let life = self.nodes[node].life;
        let event = Event::Command { id, command };
        self.step(Item::Deliver { node, life, event })
    }
}
