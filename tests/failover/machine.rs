//! The machines: what a manager's actions do there, and how machines and managers start and end.

use std::collections::VecDeque;

use kagami_failover::core::durable::EndKind;
use kagami_failover::core::environment::Host;
use kagami_failover::core::guard::{Guard, Word};
use kagami_failover::core::{Action, Actions, Event, Manager, Object, OpId, OpResult, Time, Work};

use crate::sim::rng::Rng;

use super::check::{Said, Violation};
use super::mirror::name;
use super::world::{Blow, Item, Live, Op, World};

impl World {
    pub(super) fn carry_out(&mut self, node: usize, actions: Actions) -> Result<(), Violation> {
        let life = self.nodes[node].life;
        for action in &actions {
            if let Action::Persist { seq, .. } = action {
                self.nodes[node].written = *seq;
            }
        }
        // The alert before this one.
        let mut before = None;
        for action in actions {
            match action {
                Action::Persist { seq, state } => {
                    let drawn = !self.calm && self.rng.below(1000) < self.options.persist_fails;
                    let fails = drawn || self.nodes[node].unwritable > self.now;
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
                    if let Some(blow) = self.nodes[node].at_next_write.take() {
                        let delay = self.rng.below(at - self.now + 1);
                        self.later(delay, Item::Blow { node, life, blow });
                    }
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
                // Each write returns in time here.
                Action::Reset { why } => return Err(Violation::new("No-reset", why)),
                Action::Stopped { group } => {
                    self.guard(node, group, Word::Stopped);
                    self.demote(node, group);
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
                    self.check_alert(node, &alert)?;
                    let monitor = match &alert.object {
                        Object::Monitor(name) => self.monitor_of(&format!("monitor {name}")),
                        _ => None,
                    };
                    let host = &self.nodes[node];
                    let manager = host.manager.as_ref();
                    let group = self.group_of(&alert.object);
                    let can = |group| manager.is_some_and(|m| m.other_can(group));
                    let count = |group: usize| {
                        let groups = manager.map(|m| &m.durable().groups);
                        groups.map_or(0, |groups| groups[group].counts.of(&alert.cause))
                    };
                    let gives_up = |(object, what): (Object, String)| {
                        self.group_of(&object) == group && what.starts_with("not activated in ")
                    };
                    let said = Said {
                        other_can: group.is_some_and(can),
                        failovers: group.map_or(0, count),
                        gave_up: before.take().is_some_and(gives_up),
                        node,
                        written: host.written,
                        failures: self.seen.failures_of(node, monitor),
                        suspended: manager.is_some_and(|m| m.durable().suspended.value),
                        alert,
                    };
                    before = Some((said.alert.object.clone(), said.alert.what.clone()));
                    self.seen.alert(said);
                }
            }
            if self.nodes[node].life != life {
                return Ok(());
            }
        }
        Ok(())
    }

    pub(super) fn begin_op(&mut self, node: usize, op: OpId, work: Work, timeout: u64) {
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

    pub(super) fn on_op_end(
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
            (Work::Fence { node: other }, OpResult::Done) => self.crash_node(other, true),
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
        self.nodes[node].ops.insert(op, Op::Ended(result.clone()));
        if self.nodes[node].manager.is_none() {
            self.see_op_end(node, work, &result);
            return Ok(());
        }
        self.step(Item::OpTold {
            node,
            life: self.nodes[node].life,
            op,
            work,
            result,
        })
    }

    pub(super) fn start_node(&mut self, node: usize) -> Result<(), Violation> {
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

    pub(super) fn start_manager(&mut self, node: usize) -> Result<(), Violation> {
        let mut out = Actions::new();
        let host = &mut self.nodes[node];
        host.life += 1;
        (host.written, host.landed) = (0, 0);
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

    pub(super) fn stop_manager(&mut self, node: usize, again: u64) {
        self.land(node);
        let boot = self.nodes[node].boot;
        for item in self.end_life(node) {
            if let Item::OpTold { work, result, .. } = item {
                self.see_op_end(node, work, &result);
            }
        }
        let delay = self.rng.between(500, again);
        self.later(delay, Item::ManagerStart { node, boot });
    }

    /// What was on its way to the manager finds nobody. Back comes what had waited for it.
    fn end_life(&mut self, node: usize) -> VecDeque<Item> {
        let host = &mut self.nodes[node];
        host.manager = None;
        host.life += 1;
        (host.paused, host.stood, host.at_next_write) = (None, None, None);
        std::mem::take(&mut host.inbox)
    }

    pub(super) fn strike(&mut self, node: usize, blow: Blow) {
        match blow {
            Blow::Crash => self.crash_node(node, true),
            Blow::Death if self.nodes[node].manager.is_some() => {
                self.note(|| format!("{}: its manager dies", name(node)));
                self.stop_manager(node, 8000);
            }
            Blow::Death => {}
            Blow::StandStill(lasts) => self.pause(node, lasts),
        }
    }

    /// The manager's process stands still, as by SIGSTOP or a machine short of memory; its guard, the mirrors'
    /// daemon and what it has begun go on.
    fn pause(&mut self, node: usize, lasts: u64) {
        let now = self.now;
        let host = &mut self.nodes[node];
        if host.manager.is_none() || host.paused.is_some() {
            return;
        }
        host.paused = Some(now);
        let life = host.life;
        self.note(|| format!("{}: its manager stands still for {lasts} ms", name(node)));
        self.later(lasts, Item::GoOn { node, life });
    }

    /// It takes in what came meanwhile, each source's in its order.
    pub(super) fn go_on(&mut self, node: usize) -> Result<(), Violation> {
        let Some(since) = self.nodes[node].paused.take() else {
            return Ok(());
        };
        self.note(|| format!("{}: its manager goes on", name(node)));
        self.nodes[node].stood = Some((since, self.now));
        if self.rng.coin() {
            // It looks at the clock first.
            let (timers, rest): (VecDeque<Item>, VecDeque<Item>) =
                std::mem::take(&mut self.nodes[node].inbox)
                    .into_iter()
                    .partition(|item| matches!(item, Item::Timer { .. }));
            self.nodes[node].inbox = timers.into_iter().chain(rest).collect();
        }
        while let Some(item) = self.nodes[node].inbox.pop_front() {
            self.step(item)?;
            self.check_step()?;
        }
        Ok(())
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
        self.land(node);
        self.end_life(node);
        let groups = self.mirrors.len();
        let host = &mut self.nodes[node];
        host.up = false;
        host.ops.clear();
        host.guards.clear();
        for resources in &mut host.live {
            resources.fill(Live::Off);
        }
        host.frozen = vec![false; groups];
        host.dropped = vec![false; groups];
        host.lost_at = vec![None; groups];
        self.seen.rebooted(node);
        self.disconnect();
        for mirror in &mut self.mirrors {
            mirror.hold[node] = super::mirror::Hold::No;
            mirror.margin[node] = None;
            mirror.ask[node] = None;
            mirror.lost[node] = false;
        }
        let delay = self.rng.between(2000, 40_000);
        self.later(delay, Item::NodeStart { node });
    }
}
