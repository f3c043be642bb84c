//! Activating and deactivating a group's resources, in the order of their dependencies, up to
//! their thresholds.

use crate::config::{Final, Severity};
use crate::planted::{Defect, planted};

use super::action::{Action, Actions, Work};
use super::alert::Object;
use super::durable::{Cause, EndKind, Why};
use super::event::OpResult;
use super::right_to_run::{Hold, reason};
use super::state::{GroupId, OpId, ResourceState, Time};
use super::{Fence, Manager, environment};

use ResourceState as R;

impl Manager {
    /// Activates what can be activated now. The right to run is held.
    pub(super) fn activate(&mut self, group: GroupId, out: &mut Actions) {
        if !self.durable.groups[group].bounce.is_empty() {
            self.advance_bounce(group, out);
            return;
        }
        if self.is_blocked(group) {
            return;
        }
        for at in 0..self.durable.groups[group].resources.len() {
            let record = &self.durable.groups[group].resources[at];
            let begins = match record.state {
                R::Offline => true,
                R::Failed => !record.given_up,
                _ => false,
            };
            let failed = record.state == R::Failed;
            if begins && failed && record.tries > self.tries_allowed(group, at) {
                self.give_up(group, at, out);
                return;
            }
            if failed && self.is_pausing(group, at) && !planted(Defect::NoPause) {
                continue;
            }
            let needs = &self.groups[group].depends[at];
            if begins && record.op.is_none() && needs.iter().all(|on| self.is_satisfied(group, *on))
            {
                self.start_resource(group, at, out);
            }
        }
    }

    /// Mounts the mirrors' file systems, which answers nobody: what else there is waits until the other node has surely
    /// lost the group's address. Nothing is tried again here.
    pub(super) fn activate_mirrors(&mut self, group: GroupId, out: &mut Actions) {
        for at in 0..self.durable.groups[group].resources.len() {
            let record = &self.durable.groups[group].resources[at];
            let begins = record.state == R::Offline && record.op.is_none();
            let needs = &self.groups[group].depends[at];
            if begins
                && self.cluster.groups[group].resources[at].answers_nobody()
                && needs.iter().all(|on| self.is_satisfied(group, *on))
            {
                self.start_resource(group, at, out);
            }
        }
    }

    /// It could not be activated, and what was in its way gets some time to go.
    pub(super) fn is_pausing(&self, group: GroupId, at: usize) -> bool {
        self.now < self.groups[group].again[at]
    }

    /// A resource that could not be activated keeps the others from being activated.
    fn is_blocked(&self, group: GroupId) -> bool {
        let resources = self.durable.groups[group].resources.iter();
        let configs = &self.cluster.groups[group].resources;
        resources.zip(configs).any(|(record, config)| {
            let given_up = record.state == R::Failed && record.given_up;
            record.state == R::StopFailed
                || (given_up && config.common.final_action != Final::ActivateNext)
        })
    }

    fn is_satisfied(&self, group: GroupId, at: usize) -> bool {
        let record = &self.durable.groups[group].resources[at];
        // Given up, and still here: its final action lets the next one be activated.
        record.state == R::Online || (record.state == R::Failed && record.given_up)
    }

    /// Reactivation: down with those resources, whoever needs another first, and up again.
    fn advance_bounce(&mut self, group: GroupId, out: &mut Actions) {
        let bounce = self.durable.groups[group].bounce.clone();
        let offline =
            |m: &Self, at: usize| m.durable.groups[group].resources[at].state == R::Offline;
        for at in bounce.iter().rev() {
            self.stop_resource_if_free(group, *at, out);
        }
        if bounce.iter().all(|at| offline(self, *at)) {
            self.group_record(group).bounce.clear();
        }
    }

    /// Deactivates what can be deactivated now, and then gives up the right.
    pub(super) fn take_down(&mut self, group: GroupId, out: &mut Actions) {
        self.groups[group].online_since = None;
        // Frozen processes can't be stopped; the lease's end has an end of its own.
        if self.groups[group].right == Hold::Frozen && self.is_begun(group) {
            return;
        }
        let early = planted(Defect::ReleaseBeforeStopped)
            && self.is_begun(group)
            && self.groups[group].right == Hold::Held;
        if early {
            self.groups[group].right = Hold::Releasing;
            self.act(Action::ReleaseRight { group });
        }
        for at in (0..self.durable.groups[group].resources.len()).rev() {
            self.stop_resource_if_free(group, at, out);
        }
        if self.is_begun(group) {
            return;
        }
        if !self.durable.groups[group].bounce.is_empty() {
            self.group_record(group).bounce.clear();
        }
        // It waits for the disk: who has not asked has nothing to give up, and keeps nobody waiting.
        if self.groups[group].right == Hold::Asked && self.recall_question(group) {
            self.groups[group].right = Hold::None;
        }
        match self.groups[group].right {
            Hold::Asked | Hold::MirrorsOnly | Hold::Held | Hold::Frozen => {
                self.groups[group].right = Hold::Releasing;
                self.act(Action::ReleaseRight { group });
                self.alert(out, Severity::Info, self.group_object(group), "stopped", "");
            }
            Hold::Lost => {
                self.groups[group].right = Hold::None;
                self.act(Action::Stopped { group });
                let what = "stopped, since this node may not run it";
                self.alert(out, Severity::Warning, self.group_object(group), what, "");
            }
            Hold::None | Hold::Releasing => {}
        }
    }

    fn stop_resource_if_free(&mut self, group: GroupId, at: usize, out: &mut Actions) {
        let record = &self.durable.groups[group].resources[at];
        if record.op.is_some() || !matches!(record.state, R::Online | R::Failed) {
            return;
        }
        let is_down = |by: &usize| {
            let record = &self.durable.groups[group].resources[*by];
            let config = &self.cluster.groups[group].resources[*by].common;
            record.state == R::Offline
                || (record.state == R::StopFailed && config.stop_final == Final::ActivateNext)
        };
        let needed_by = &self.groups[group].needed_by[at];
        if !needed_by.iter().all(is_down) && !planted(Defect::DependentsLeft) {
            return;
        }
        if record.stop_tries > self.cluster.groups[group].resources[at].common.stop_retries {
            self.leave_unstopped(group, at, out);
            return;
        }
        let op = self.next_op();
        let environment = self.stop_environment(group, at);
        let timeout = self.cluster.groups[group].resources[at].time_outs().1;
        let record = &mut self.group_record(group).resources[at];
        record.state = R::Stopping;
        record.op = Some(op);
        self.act(Action::Run {
            op,
            work: Work::Stop {
                group,
                resource: at,
            },
            environment,
            timeout,
        });
        let object = self.resource_object(group, at);
        self.alert(out, Severity::Info, object, "is deactivated", "");
    }

    fn start_resource(&mut self, group: GroupId, at: usize, out: &mut Actions) {
        let op = self.next_op();
        let environment = environment::start(self, group, at);
        let timeout = self.cluster.groups[group].resources[at].time_outs().0;
        let record = &mut self.group_record(group).resources[at];
        record.state = R::Starting;
        record.op = Some(op);
        let tries = record.tries;
        self.act(Action::Run {
            op,
            work: Work::Start {
                group,
                resource: at,
            },
            environment,
            timeout,
        });
        let what = match tries {
            0 => "is activated".to_owned(),
            _ => format!("is activated: retry {tries}"),
        };
        let object = self.resource_object(group, at);
        self.alert(out, Severity::Info, object, what, "");
    }

    fn stop_environment(&self, group: GroupId, at: usize) -> Vec<(String, String)> {
        let record = &self.durable.groups[group];
        let order = &record.order.value;
        let factor = if let Some(ending) = self.durable.ending {
            if ending.cluster {
                "CLUSTERSHUTDOWN"
            } else {
                "SERVERSHUTDOWN"
            }
        } else if self.groups[group].right == Hold::Lost {
            "GROUPFAILOVER"
        } else if self.should_run(group) {
            if record.bounce.len() == record.resources.len() {
                "GROUPRESTART"
            } else {
                "RESOURCERESTART"
            }
        } else if !order.wanted {
            "GROUPSTOP"
        } else {
            match order.cause {
                Cause::Stop => "GROUPSTOP",
                Cause::Move => "GROUPMOVE",
                Cause::Failover => "GROUPFAILOVER",
                Cause::Shutdown => "SERVERSHUTDOWN",
            }
        };
        let last = match self.durable.ending.map(|ending| ending.kind) {
            Some(EndKind::Reboot) => "REBOOT",
            Some(EndKind::Shutdown) => "HALT",
            _ => "NONE",
        };
        environment::stop(self, group, at, factor, last)
    }

    /// An operation has ended.
    pub(super) fn on_op(&mut self, op: OpId, result: &OpResult, out: &mut Actions) {
        if self.fence == Fence::Running(op) {
            self.on_fenced(result, out);
            return;
        }
        if self.on_recovery_op(op, result, out) {
            return;
        }
        let Some((group, at)) = self.resource_of(op) else {
            // Of a resource that an newer configuration does not have.
            return;
        };
        let state = self.durable.groups[group].resources[at].state;
        self.group_record(group).resources[at].op = None;
        match (state, result) {
            (R::Starting, OpResult::Done) => {
                let record = &mut self.group_record(group).resources[at];
                record.state = R::Online;
                (record.tries, record.stop_tries) = (0, 0);
                let object = self.resource_object(group, at);
                self.alert(out, Severity::Info, object, "active", "");
                self.note_online(group, out);
            }
            (R::Starting, _) => self.on_start_failed(group, at, result, out),
            (R::Stopping, OpResult::Done) => {
                let record = &mut self.group_record(group).resources[at];
                record.state = R::Offline;
                (record.tries, record.stop_tries, record.given_up) = (0, 0, false);
                self.groups[group].again[at] = Time(0);
                let object = self.resource_object(group, at);
                self.alert(out, Severity::Info, object, "inactive", "");
            }
            (R::Stopping, _) => self.on_stop_failed(group, at, result, out),
            _ => {}
        }
    }

    /// All of the group may be active here now.
    pub(super) fn note_online(&mut self, group: GroupId, out: &mut Actions) {
        if self.is_online(group) {
            self.groups[group].online_since = Some(self.now);
            self.alert(out, Severity::Info, self.group_object(group), "online", "");
        }
    }

    /// An operation of an earlier manager was never begun: it is begun now.
    pub(super) fn on_op_never(&mut self, op: OpId) {
        if let Some((group, at)) = self.resource_of(op) {
            // Whether it is still right is decided anew. Something of it may be there, from before.
            let record = &mut self.group_record(group).resources[at];
            record.op = None;
            record.state = R::Failed;
            return;
        }
        let found =
            (self.durable.monitors.iter()).position(|m| m.recovering.is_some_and(|r| r.op == op));
        if let Some(monitor) = found {
            self.run_recovery_op(monitor, op);
        }
    }

    fn resource_of(&self, op: OpId) -> Option<(GroupId, usize)> {
        let mut groups = self.durable.groups.iter().enumerate();
        groups.find_map(|(group, record)| {
            let at = record.resources.iter().position(|r| r.op == Some(op))?;
            Some((group, at))
        })
    }

    fn on_start_failed(&mut self, group: GroupId, at: usize, result: &OpResult, out: &mut Actions) {
        let object = self.resource_object(group, at);
        let why = reason(result);
        // Asked: what an earlier manager has begun under the right that it held.
        let right = self.groups[group].right;
        let may_run = matches!(right, Hold::Held | Hold::MirrorsOnly | Hold::Asked);
        let counts = self.should_run(group) && may_run;
        let record = &mut self.group_record(group).resources[at];
        record.state = R::Failed;
        if !counts {
            // It is on its way down, or frozen: that says nothing of the resource.
            self.alert(out, Severity::Warning, object, "not activated", why);
            return;
        }
        record.tries += 1;
        let tries = record.tries;
        let pause = self.cluster.groups[group].resources[at].common.retry_pause;
        self.groups[group].again[at] = self.now.after(pause.0);
        let more = tries <= self.tries_allowed(group, at) && !self.is_blocked(group);
        let what = if more && pause.0 > 0 {
            format!("not activated, tried again in {pause}")
        } else {
            "not activated".to_owned()
        };
        self.alert(out, Severity::Warning, object, what, why);
    }

    /// Failed activations after which a resource is tried again.
    fn tries_allowed(&self, group: GroupId, at: usize) -> u32 {
        let more = u32::from(planted(Defect::OneRetryMore));
        let less = u32::from(planted(Defect::OneRetryLess));
        (self.cluster.groups[group].resources[at].retries() + more).saturating_sub(less)
    }

    /// A resource's retries are used up: the group fails over, or the final action is next.
    fn give_up(&mut self, group: GroupId, at: usize, out: &mut Actions) {
        let cluster = self.cluster.clone();
        let config = &cluster.groups[group].resources[at];
        let record = &mut self.group_record(group).resources[at];
        record.given_up = true;
        let what = format!("not activated in {} tries", record.tries);
        let object = self.resource_object(group, at);
        self.alert(out, Severity::Error, object, what, "");
        let key = format!("resource {}", config.name);
        let done = self.durable.groups[group].counts.of(&key);
        let fails_over = done < config.common.failovers && !planted(Defect::NoFailover);
        if fails_over && self.peer_can(group) {
            self.fail_over(group, &key, out);
        } else {
            self.final_action(group, config.common.final_action, &key, out);
        }
    }

    fn on_stop_failed(&mut self, group: GroupId, at: usize, result: &OpResult, out: &mut Actions) {
        let record = &mut self.group_record(group).resources[at];
        record.stop_tries += 1;
        record.state = R::Failed;
        let object = self.resource_object(group, at);
        self.alert(
            out,
            Severity::Warning,
            object,
            "not deactivated",
            reason(result),
        );
    }

    /// A resource can't be stopped: what follows is the final action of that.
    fn leave_unstopped(&mut self, group: GroupId, at: usize, out: &mut Actions) {
        let cluster = self.cluster.clone();
        let config = &cluster.groups[group].resources[at];
        let record = &mut self.group_record(group).resources[at];
        record.state = R::StopFailed;
        let what = format!("not deactivated in {} tries", record.stop_tries);
        let object = self.resource_object(group, at);
        self.alert(out, Severity::Error, object, what, "");
        let key = format!("resource {}", config.name);
        self.final_action(group, config.common.stop_final, &key, out);
    }

    /// The group goes to the other node, which can run it.
    pub(super) fn fail_over(&mut self, group: GroupId, key: &str, out: &mut Actions) {
        let (me, other) = (self.me, self.other());
        let key = key.to_owned();
        let cause = key.clone();
        self.set_order(group, |order| {
            order.owner = other;
            order.from = Some(me);
            order.why = Why::Failover;
            order.cause = Cause::Failover;
        });
        if !planted(Defect::FailoverNotCounted) {
            let counts = &mut self.group_record(group).counts;
            *counts.failovers.entry(key).or_default() += 1;
        }
        let what = format!("fails over to node {}", self.name(other));
        self.alert(out, Severity::Error, self.group_object(group), what, cause);
    }

    /// Everything else was tried.
    pub(super) fn final_action(
        &mut self,
        group: GroupId,
        action: Final,
        key: &str,
        out: &mut Actions,
    ) {
        let object = self.group_object(group);
        let what = match action {
            Final::Nothing => "final action: nothing, and the next resource is not activated",
            Final::ActivateNext => "final action: nothing, and the next resource is activated",
            Final::StopGroup => "final action: the group stops",
            Final::StopManager => "final action: the failover manager stops",
            Final::Shutdown => "final action: the node is shut down",
            Final::Reboot => "final action: the node reboots",
        };
        self.alert(out, Severity::Error, object, what, key);
        match action {
            Final::Nothing | Final::ActivateNext => {}
            Final::StopGroup => self.order_stop(group),
            Final::StopManager => self.begin_end(EndKind::Manager, false, out),
            Final::Shutdown => self.begin_end(EndKind::Shutdown, false, out),
            Final::Reboot => self.begin_end(EndKind::Reboot, false, out),
        }
    }

    pub(super) fn resource_object(&self, group: GroupId, at: usize) -> Object {
        let group = &self.cluster.groups[group];
        Object::Resource(group.name.clone(), group.resources[at].name.clone())
    }
}
