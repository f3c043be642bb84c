//! A monitor's failure, step by step: its script, reactivations, failovers, the final action, each
//! up to its threshold.
//!
//! A step is counted in the same write that begins it, so that a manager that dies on the way
//! neither repeats it nor forgets that it was made. Reactivations are counted by each node;
//! failovers travel with the group. A failover that has no node to go to is left out and not
//! counted: the final action comes next.

use crate::config::{Severity, Target};
use crate::planted::{Defect, planted};

use super::action::{Action, Actions, Work};
use super::alert::Object;
use super::durable::{Recovering, Step};
use super::event::OpResult;
use super::right_to_run::{Hold, reason};
use super::state::{GroupId, OpId};
use super::{Manager, environment};

impl Manager {
    /// The groups that a monitor's recovery is about and that run here, and whether one of them is
    /// on its way up or down.
    pub(super) fn targets(&self, monitor: usize) -> (Vec<GroupId>, bool) {
        let target = &self.cluster.monitors[monitor].target;
        let is_meant = |group: &GroupId| match target {
            Target::Cluster => true,
            Target::Group(name) | Target::Resource(name, _) => {
                self.cluster.groups[*group].name == *name
            }
        };
        let here = |group: &GroupId| self.should_run(*group) && self.is_begun(*group);
        let groups: Vec<GroupId> = (0..self.groups.len())
            .filter(is_meant)
            .filter(here)
            .collect();
        let moving = groups.iter().any(|group| {
            let record = &self.durable.groups[*group];
            !record.bounce.is_empty()
                || self.groups[*group].right != Hold::Held
                || record.resources.iter().any(|r| r.op.is_some())
                // By time: what is blocked by another resource is not tried again after its pause.
                || (0..record.resources.len()).any(|at| self.is_pausing(*group, at))
        });
        (groups, moving)
    }

    fn failover_key(&self, monitor: usize) -> String {
        format!("monitor {}", self.cluster.monitors[monitor].name)
    }

    /// A monitor has failed more often than it is tried again.
    pub(super) fn recover(&mut self, monitor: usize, result: &OpResult, out: &mut Actions) {
        let cluster = self.cluster.clone();
        let config = &cluster.monitors[monitor];
        let common = &config.common;
        if self.durable.suspended.value && !planted(Defect::SuspendedActs) {
            return;
        }
        if *result == OpResult::TimedOut && common.no_recovery_after_timeout {
            self.leave_alone(monitor, "it failed by its time-out", out);
            return;
        }
        let (groups, moving) = self.targets(monitor);
        // What is on its way is not pushed: the next look decides.
        if moving {
            return;
        }
        if groups.is_empty() {
            self.leave_alone(monitor, "its target is not active", out);
            return;
        }
        if let Target::Resource(_, name) = &config.target {
            let found = cluster.groups[groups[0]]
                .resources
                .iter()
                .find(|r| r.name == *name);
            if found.is_some_and(|resource| !resource.common.recovery) {
                self.leave_alone(monitor, "its target's recovery is switched off", out);
                return;
            }
        }
        let record = &self.durable.monitors[monitor];
        let more = u32::from(planted(Defect::OneReactivationMore));
        let key = self.failover_key(monitor);
        let may_fail_over = |group: &GroupId| {
            let done = self.durable.groups[*group].counts.of(&key);
            done < common.failovers && self.peer_can(*group)
        };
        let step = if common.script.is_some() && record.scripts < common.script_runs {
            Step::Script
        } else if record.reactivations < config.reactivations() + more {
            Step::Reactivate
        } else if groups.iter().any(may_fail_over) {
            Step::Failover
        } else if record.final_done && !planted(Defect::FinalActionAgain) {
            self.leave_alone(monitor, "everything was tried", out);
            return;
        } else if common.final_needs_other_node && !self.peer_up() {
            self.leave_alone(
                monitor,
                "no other healthy node is left for the final action",
                out,
            );
            return;
        } else {
            Step::Final
        };
        let what = match step {
            Step::Script => "recovers: script",
            Step::Reactivate => "recovers: reactivation",
            Step::Failover => "recovers: failover",
            Step::Final => "recovers: final action",
        };
        let object = Object::Monitor(config.name.clone());
        self.alert(out, Severity::Error, object, what, reason(result));
        let op = self.next_op();
        let record = &mut self.record().monitors[monitor];
        match step {
            Step::Script => record.scripts += 1,
            Step::Reactivate => record.reactivations += 1,
            // Counted with the order that carries it out.
            Step::Failover => {}
            Step::Final => record.final_done = true,
        }
        record.recovering = Some(Recovering {
            step,
            op,
            prepared: false,
        });
        self.run_recovery_op(monitor, op);
    }

    fn leave_alone(&mut self, monitor: usize, why: &str, out: &mut Actions) {
        if std::mem::replace(&mut self.watches[monitor].told, true) {
            return;
        }
        let object = Object::Monitor(self.cluster.monitors[monitor].name.clone());
        self.alert(out, Severity::Error, object, "nothing is recovered", why);
    }

    /// Begins what a recovery does next: the script before it, its own script; or does it.
    pub(super) fn run_recovery_op(&mut self, monitor: usize, op: OpId) {
        let cluster = self.cluster.clone();
        let config = &cluster.monitors[monitor].common;
        let Some(recovering) = self.durable.monitors[monitor].recovering else {
            return;
        };
        let before = config.preaction.is_some() || cluster.preaction.is_some();
        let (work, timeout) = if before && !recovering.prepared {
            let timeout = cluster.preaction.as_ref().map(|p| p.timeout);
            (
                Work::Preaction { monitor },
                timeout.unwrap_or(config.script_timeout),
            )
        } else {
            // Nothing has to run first. That is recorded: a later configuration may say otherwise.
            if !recovering.prepared {
                self.prepared(monitor);
            }
            if recovering.step != Step::Script {
                return;
            }
            (Work::Script { monitor }, config.script_timeout)
        };
        let environment = environment::recovery(self, monitor, recovering.step);
        self.act(Action::Run {
            op,
            work,
            environment,
            timeout,
        });
    }

    fn prepared(&mut self, monitor: usize) {
        if let Some(recovering) = &mut self.record().monitors[monitor].recovering {
            recovering.prepared = true;
        }
    }

    /// True if the operation was one of a recovery.
    pub(super) fn on_recovery_op(
        &mut self,
        op: OpId,
        result: &OpResult,
        out: &mut Actions,
    ) -> bool {
        let found = (self.durable.monitors.iter().enumerate())
            .find_map(|(at, m)| m.recovering.filter(|r| r.op == op).map(|r| (at, r)));
        let Some((monitor, recovering)) = found else {
            return false;
        };
        let config = &self.cluster.monitors[monitor];
        let object = Object::Monitor(config.name.clone());
        // Whatever the configuration says now, it was the script before.
        if !recovering.prepared {
            if *result != OpResult::Done {
                let what =
                    "the script before its recovery failed; the recovery follows all the same";
                self.alert(out, Severity::Warning, object, what, reason(result));
            }
            if recovering.step == Step::Script {
                let op = self.next_op();
                self.prepared(monitor);
                if let Some(recovering) = &mut self.record().monitors[monitor].recovering {
                    recovering.op = op;
                }
                self.run_recovery_op(monitor, op);
            } else {
                self.prepared(monitor);
            }
            return true;
        }
        if recovering.step == Step::Script {
            let (severity, what) = match result {
                OpResult::Done => (Severity::Warning, "its recovery script has run"),
                _ => (Severity::Error, "its recovery script failed"),
            };
            self.alert(out, severity, object, what, reason(result));
            self.record().monitors[monitor].recovering = None;
        }
        true
    }

    /// Carries out the steps whose scripts have ended, each together with the state that says so.
    pub(super) fn advance_recoveries(&mut self, out: &mut Actions) {
        let suspended = self.durable.suspended.value && !planted(Defect::SuspendedActs);
        for monitor in 0..self.durable.monitors.len() {
            let Some(recovering) = self.durable.monitors[monitor].recovering else {
                continue;
            };
            if suspended || !recovering.prepared || recovering.step == Step::Script {
                continue;
            }
            let (groups, moving) = self.targets(monitor);
            if moving {
                continue;
            }
            self.record().monitors[monitor].recovering = None;
            self.carry_out(monitor, recovering.step, &groups, out);
        }
    }

    fn carry_out(&mut self, monitor: usize, step: Step, groups: &[GroupId], out: &mut Actions) {
        let cluster = self.cluster.clone();
        let config = &cluster.monitors[monitor];
        let key = self.failover_key(monitor);
        let mut done = false;
        if groups.is_empty() {
            let object = Object::Monitor(config.name.clone());
            let what = "the recovery is left out: its target is not active any more";
            self.alert(out, Severity::Warning, object, what, "");
        }
        for group in groups {
            let group = *group;
            match step {
                Step::Reactivate => {
                    let bounce = match &config.target {
                        Target::Resource(_, name) => {
                            self.with_dependents(group, cluster.groups[group].position(name))
                        }
                        Target::Cluster | Target::Group(_) => {
                            (0..cluster.groups[group].resources.len()).collect()
                        }
                    };
                    self.group_record(group).bounce.extend(bounce);
                    let what = match &config.target {
                        Target::Resource(_, name) => format!("resource {name} is reactivated"),
                        _ => "is reactivated".to_owned(),
                    };
                    self.alert(
                        out,
                        Severity::Error,
                        self.group_object(group),
                        what,
                        key.as_str(),
                    );
                }
                Step::Failover => {
                    let before = self.durable.groups[group].counts.of(&key);
                    if before < config.common.failovers && self.peer_can(group) {
                        self.fail_over(group, &key, out);
                    }
                }
                // The manager ends once, whatever number of groups it has.
                Step::Final if !done => {
                    done = true;
                    self.final_action(group, config.common.final_action, &key, out);
                }
                Step::Final if config.common.final_action == crate::config::Final::StopGroup => {
                    self.final_action(group, config.common.final_action, &key, out);
                }
                Step::Final | Step::Script => {}
            }
        }
    }

    /// Reactivations that an earlier manager has begun take in what needs their resources by this configuration: it has
    /// to be inactive before they can be.
    pub(super) fn close_bounces(&mut self) {
        for group in 0..self.groups.len() {
            let bounce = self.durable.groups[group].bounce.iter().copied();
            let closed = self.with_dependents(group, bounce);
            self.group_record(group).bounce.extend(closed);
        }
    }

    /// These resources, and all that need them.
    fn with_dependents(&self, group: GroupId, at: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut all: Vec<usize> = at.into_iter().collect();
        let mut next = 0;
        while let Some(at) = all.get(next).copied() {
            next += 1;
            for by in &self.groups[group].needed_by[at] {
                if !all.contains(by) {
                    all.push(*by);
                }
            }
        }
        all
    }

    pub(super) fn has_counts(&self, monitor: usize) -> bool {
        let record = &self.durable.monitors[monitor];
        record.scripts > 0 || record.reactivations > 0 || record.final_done
    }

    /// Counters go back to 0 after their time without a failure.
    pub(super) fn clear_counts(&mut self) {
        let cluster = self.cluster.clone();
        for (at, config) in cluster.monitors.iter().enumerate() {
            let quiet =
                self.now.since(self.watches[at].last_failure) >= config.common.clear_after.0;
            if !quiet || self.durable.monitors[at].recovering.is_some() {
                continue;
            }
            if self.has_counts(at) {
                let record = &mut self.record().monitors[at];
                (record.scripts, record.reactivations, record.final_done) = (0, 0, false);
            }
            // Where the group runs its failovers are counted, and forgotten.
            let key = self.failover_key(at);
            for group in self.targets(at).0 {
                if self.durable.groups[group].counts.of(&key) > 0 {
                    self.group_record(group).counts.clear(|other| other != key);
                }
            }
        }
        for group in 0..self.groups.len() {
            let since = self.groups[group].online_since;
            if since.is_none_or(|since| self.now.since(since) < cluster.clear_after.0) {
                continue;
            }
            self.groups[group].online_since = None;
            let is_resources = |key: &str| key.starts_with("resource ");
            let counts = &self.durable.groups[group].counts;
            let counted = counts.failovers.keys().any(|key| is_resources(key));
            if counted && self.should_run(group) {
                self.group_record(group)
                    .counts
                    .clear(|key| !is_resources(key));
            }
        }
    }
}
