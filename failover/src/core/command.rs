//! An operator's word: taken, or refused with the reason, and the running group stays as it is.

use crate::config::Severity;

use super::Manager;
use super::action::{Action, Actions};
use super::alert::Object;
use super::durable::{Cause, Why};
use super::event::{Command, Refusal};
use super::message::Phase;
use super::state::{GroupId, Node, ResourceState, Time};

impl Manager {
    pub(super) fn on_command(&mut self, id: u64, command: Command, out: &mut Actions) {
        let result = self.obey(command, out);
        match &result {
            // Once it is durable it will not be forgotten.
            Ok(()) => self.act(Action::CommandDone { id, result }),
            Err(_) => out.push(Action::CommandDone { id, result }),
        }
    }

    fn obey(&mut self, command: Command, out: &mut Actions) -> Result<(), Refusal> {
        if self.durable.ending.is_some()
            && !matches!(
                command,
                Command::EndNode(_) | Command::EndCluster(_) | Command::Resume
            )
        {
            return Err(Refusal::Ending);
        }
        let monitors = self.durable.monitors.len();
        match command {
            Command::Start { group, on, sure } => self.start(group, on, sure, out)?,
            Command::Stop { group } => self.stop(group, out)?,
            Command::Move { group, to } => self.move_to(group, to, out)?,
            Command::Suspend | Command::Resume => {
                let me = self.me;
                let value = command == Command::Suspend;
                if self.durable.suspended.value != value {
                    self.record().suspended.set(me, value);
                    if value {
                        self.recall_fence(out);
                    }
                    let what = if value {
                        "suspended: nobody acts"
                    } else {
                        "resumed"
                    };
                    self.alert(out, Severity::Warning, Object::Cluster, what, "an operator");
                }
            }
            Command::SuspendMonitor(at)
            | Command::ResumeMonitor(at)
            | Command::FailMonitor(at, _)
                if at >= monitors =>
            {
                return Err(Refusal::Unknown("monitor"));
            }
            Command::SuspendMonitor(at) => self.record().monitors[at].suspended = true,
            Command::ResumeMonitor(at) => self.record().monitors[at].suspended = false,
            Command::FailMonitor(at, fails) => self.record().monitors[at].made_to_fail = fails,
            Command::EndNode(kind) => self.begin_end(kind, false, out),
            Command::EndCluster(kind) => {
                let me = self.me;
                self.record().shutdown.set(me, Some(kind));
                self.begin_end(kind, true, out);
            }
        }
        Ok(())
    }

    /// The group can be spoken of now: its configuration's name.
    fn admitted(&self, group: GroupId) -> Result<String, Refusal> {
        let config = self
            .cluster
            .groups
            .get(group)
            .ok_or(Refusal::Unknown("group"))?;
        let name = config.name.clone();
        if self.durable.suspended.value {
            return Err(Refusal::Suspended(name));
        }
        if self.phase == Phase::Waiting {
            return Err(Refusal::Waiting(name));
        }
        Ok(name)
    }

    /// Where something of it is active.
    fn place_of(&self, group: GroupId) -> Option<Node> {
        if !self.is_idle(group) {
            return Some(self.me);
        }
        let busy = self.peer_brief(group).is_some_and(|brief| brief.busy);
        busy.then_some(self.other())
    }

    /// It neither goes up nor down, as far as is known here.
    fn at_rest(&self, group: GroupId, name: &str) -> Result<(), Refusal> {
        let busy = |node: Node| Refusal::Busy {
            group: name.to_owned(),
            node: self.name(node),
        };
        let record = &self.durable.groups[group];
        // What could not be deactivated stays as it is until somebody says more, also within a reactivation.
        let stuck = (record.resources.iter()).any(|r| r.state == ResourceState::StopFailed);
        let bounces = !record.bounce.is_empty() && !stuck;
        let moves = record.resources.iter().any(|r| r.op.is_some()) || bounces;
        let turning = !self.is_idle(group) && !self.should_run(group) && !stuck;
        if moves || turning {
            return Err(busy(self.me));
        }
        let peer = self.peer_brief(group);
        let order = self.order(group);
        let theirs = order.wanted && order.owner == self.other();
        if peer.is_some_and(|brief| brief.busy && !(brief.online && theirs)) {
            return Err(busy(self.other()));
        }
        Ok(())
    }

    fn can_run_on(&self, group: GroupId, name: &str, node: Node) -> Result<(), Refusal> {
        let at = || {
            (
                name.to_owned(),
                self.cluster.nodes.get(node).cloned().unwrap_or_default(),
            )
        };
        let nodes = &self.cluster.groups[group].attributes.nodes;
        if !self
            .cluster
            .nodes
            .get(node)
            .is_some_and(|node| nodes.contains(node))
        {
            let (group, node) = at();
            return Err(Refusal::NotItsNode { group, node });
        }
        if node == self.me || self.peer_can(group) {
            return Ok(());
        }
        let why = match self.peer_brief(group) {
            None => "it is not heard",
            Some(brief) if !brief.ready => "its copy of the data is not in sync",
            Some(_) => "it may not run it",
        };
        let (group, node) = at();
        Err(Refusal::Unfit { group, node, why })
    }

    fn start(
        &mut self,
        group: GroupId,
        on: Option<Node>,
        sure: bool,
        out: &mut Actions,
    ) -> Result<(), Refusal> {
        let name = self.admitted(group)?;
        let order = self.order(group).clone();
        if let Some(node) = self.place_of(group).filter(|_| order.wanted) {
            // Something of it may be left here although it should be there.
            let here = node == self.me && on.is_none_or(|on| on == node || on == order.owner);
            if here && self.release_stuck(group) {
                let what = "what could not be deactivated is tried again";
                self.tell_ordered(out, group, what);
                return Ok(());
            }
            if here && self.give_another_try(group) {
                let what = "what could not be activated is tried again";
                self.tell_ordered(out, group, what);
                return Ok(());
            }
            return Err(match on {
                // It is on its way there.
                Some(to) if to != node && to == order.owner => Refusal::Busy {
                    group: name,
                    node: self.name(node),
                },
                Some(to) if to != node => Refusal::Elsewhere {
                    group: name,
                    node: self.name(node),
                    to: self.cluster.nodes.get(to).cloned().unwrap_or_default(),
                },
                _ => self.runs_there(name, node),
            });
        }
        self.at_rest(group, &name)?;
        let nodes = &self.cluster.groups[group].attributes.nodes;
        let home = self
            .cluster
            .nodes
            .iter()
            .position(|node| nodes.first() == Some(node));
        let home = home.filter(|home| self.can_run_on(group, &name, *home).is_ok());
        let to = on.or(home).unwrap_or(self.me);
        self.can_run_on(group, &name, to)?;
        let by_hand = self.is_only_known_by_hand(group);
        if by_hand && !sure {
            return Err(Refusal::Unsure {
                group: name,
                node: self.name(self.other()),
            });
        }
        if by_hand && self.is_behind() {
            return Err(Refusal::Late {
                group: name,
                node: self.name(self.other()),
            });
        }
        self.clear_group(group);
        self.release_stuck(group);
        self.set_order(group, |order| {
            order.wanted = true;
            order.owner = to;
            order.why = Why::Start;
            order.from = None;
            order.cause = Cause::Stop;
        });
        self.groups[group].by_hand = by_hand.then_some(self.now);
        let what = format!("is to start on node {}", self.name(to));
        self.tell_ordered(out, group, what);
        Ok(())
    }

    fn runs_there(&self, group: String, node: Node) -> Refusal {
        Refusal::Already {
            group,
            what: format!("running on node {}", self.name(node)),
        }
    }

    /// What an operator's word means for a group.
    fn tell_ordered(&self, out: &mut Actions, group: GroupId, what: impl Into<String>) {
        let object = self.group_object(group);
        self.alert(out, Severity::Info, object, what, "an operator");
    }

    /// A new start begins with counters at 0, and asks for the right at once.
    fn clear_group(&mut self, group: GroupId) {
        let record = self.group_record(group);
        record.counts.clear(|_| false);
        (record.dormant, record.failback) = (false, false);
        let state = &mut self.groups[group];
        state.refused = None;
        state.ask_again = self.now;
        state.intent = None;
        state.again.fill(Time(0));
    }

    /// What could not be deactivated is tried again: somebody may have put it right. True if there was any.
    pub(super) fn release_stuck(&mut self, group: GroupId) -> bool {
        let mut resources = self.durable.groups[group].resources.iter();
        if !resources.any(|r| r.state == ResourceState::StopFailed) {
            return false;
        }
        for resource in &mut self.group_record(group).resources {
            if resource.state == ResourceState::StopFailed {
                resource.state = ResourceState::Failed;
                resource.stop_tries = 0;
            }
        }
        true
    }

    /// Resources whose tries are used up, or that pause between two, are tried again now. True if there were any.
    fn give_another_try(&mut self, group: GroupId) -> bool {
        let mut resources = self.durable.groups[group].resources.iter().enumerate();
        let failed = resources.any(|(at, r)| {
            r.state == ResourceState::Failed && (r.given_up || self.is_pausing(group, at))
        });
        if !failed {
            return false;
        }
        self.groups[group].again.fill(Time(0));
        for resource in &mut self.group_record(group).resources {
            if resource.state == ResourceState::Failed {
                resource.given_up = false;
                resource.tries = 0;
            }
        }
        self.group_record(group).counts.clear(|_| false);
        true
    }

    fn stop(&mut self, group: GroupId, out: &mut Actions) -> Result<(), Refusal> {
        let name = self.admitted(group)?;
        let order = self.order(group).clone();
        // By no order yet: it is to start on this node as soon as that may.
        let is_left = self.durable.groups[group].left_to_start;
        if !order.wanted && self.place_of(group).is_none() && !is_left {
            return Err(Refusal::Already {
                group: name,
                what: "stopped".to_owned(),
            });
        }
        let theirs = order.wanted && order.owner == self.other();
        if theirs && !self.peer_up() && self.is_idle(group) {
            return Err(Refusal::NotHeard {
                group: name,
                node: self.name(self.other()),
            });
        }
        self.order_stop(group);
        self.groups[group].intent = None;
        self.release_stuck(group);
        self.tell_ordered(out, group, "is to stop");
        Ok(())
    }

    fn move_to(&mut self, group: GroupId, to: Node, out: &mut Actions) -> Result<(), Refusal> {
        let name = self.admitted(group)?;
        let Some(at) = self.place_of(group).filter(|_| self.order(group).wanted) else {
            return Err(Refusal::NotRunning(name));
        };
        if at == to {
            return Err(self.runs_there(name, at));
        }
        self.at_rest(group, &name)?;
        self.can_run_on(group, &name, to)?;
        self.clear_group(group);
        self.release_stuck(group);
        self.set_order(group, |order| {
            order.from = Some(at);
            order.owner = to;
            order.why = Why::Start;
            order.cause = Cause::Move;
        });
        let what = format!("is to move to node {}", self.name(to));
        self.tell_ordered(out, group, what);
        Ok(())
    }
}
