//! What is durable and what waits for it: the state is written, actions wait at a gate until the one that they follow
//! from is, and a disk that does not let them through is told, or ends the node.

use crate::config::{Final, Severity};
use crate::planted::{Defect, planted};

use super::action::{Action, Actions, Work};
use super::alert::Object;
use super::durable::{EndKind, Step};
use super::state::{GroupId, Time};
use super::{Manager, Told};

/// A state that could not be written is written again after this long, in milliseconds.
const WRITE_AGAIN: u64 = 1000;
/// A write that has not returned after so long is told like one that failed, in milliseconds.
const WRITE_PATIENCE: u64 = 10_000;
/// It may be this process that stood still: the answer is among what it has to take in first. For so long, in milliseconds.
pub(super) const LOOK_AGAIN: u64 = 1000;

/// An action that waits until the state it follows from is durable.
#[derive(Debug)]
struct Gated {
    seq: u64,
    since: Time,
    action: Action,
}

/// The state's way to the disk, and what waits for it.
#[derive(Debug, Default)]
pub(super) struct Gate {
    waiting: std::collections::VecDeque<Gated>,
    /// The last number handed out to be written, and the last that is durable.
    written: u64,
    pub persisted: u64,
    again: Option<Time>,
    /// A write is under way since then.
    writing_since: Option<Time>,
    /// That the state could not be written was told.
    told: bool,
    /// Something is active that has to stop, and has waited too long for that, since then.
    stuck_since: Option<Time>,
    reset: bool,
}

impl Gate {
    pub fn deadlines(&self, bound: u64, by: &mut impl FnMut(Time)) {
        self.again.into_iter().for_each(&mut *by);
        if let Some(since) = self.writing_since.filter(|_| !self.told) {
            by(since.after(WRITE_PATIENCE));
        }
        for gated in self.waiting.iter().filter(|_| !self.reset) {
            by(gated.since.after(bound));
        }
        if let Some(since) = self.stuck_since.filter(|_| !self.reset) {
            by(since.after(LOOK_AGAIN));
        }
    }

    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        self.waiting.iter().map(|gated| &gated.action)
    }

    /// The state could not be written, or the disk has not answered for long: what follows from it would wait.
    pub fn is_stuck(&self) -> bool {
        self.told
    }

    pub fn retain(&mut self, keep: impl Fn(&Action) -> bool) {
        self.waiting.retain(|gated| keep(&gated.action));
    }
}

impl Manager {
    /// Does this once the state of now is durable.
    pub(super) fn act(&mut self, action: Action) {
        // What this follows from may not be marked as changed: it waits for what is under way, too.
        let seq = self.gate.written + u64::from(self.dirty);
        let since = self.now;
        self.gate.waiting.push_back(Gated { seq, since, action });
        self.changed = true;
    }

    pub(super) fn write(&mut self, out: &mut Actions) {
        let gate = &mut self.gate;
        if gate.again.is_some_and(|at| at <= self.now) {
            gate.again = None;
            self.dirty = true;
        }
        if !self.dirty {
            return;
        }
        self.dirty = false;
        gate.written += 1;
        gate.writing_since.get_or_insert(self.now);
        let unsure = self.groups.iter().map(|group| group.unsure).collect();
        let told = Told::of(&self.durable, unsure, self.phase, self.beats.met());
        self.telling.push_back((self.gate.written, told));
        out.push(Action::Persist {
            seq: self.gate.written,
            state: Box::new(self.durable.clone()),
        });
    }

    /// True if nothing is on its way to the disk, or about to be.
    #[cfg(test)]
    pub(crate) fn has_written(&self) -> bool {
        !self.dirty && self.gate.writing_since.is_none() && self.gate.again.is_none()
    }

    pub(super) fn on_persisted(&mut self, seq: u64, done: bool, out: &mut Actions) {
        // Of those that were handed out meanwhile the newest is being written now.
        self.gate.writing_since = (seq < self.gate.written).then_some(self.now);
        if !done {
            // What was to be told with it comes again with the next write.
            self.telling.retain(|(at, _)| *at > seq);
            self.tell_unwritten("", out);
            self.gate.again = Some(self.now.after(WRITE_AGAIN));
            return;
        }
        self.gate.persisted = self.gate.persisted.max(seq);
        self.gate.told = false;
        while let Some((_, told)) = self.telling.pop_front_if(|(at, _)| *at <= seq) {
            self.told = told;
        }
    }

    fn tell_unwritten(&mut self, cause: &str, out: &mut Actions) {
        if !std::mem::replace(&mut self.gate.told, true) {
            let what = "the manager's state can't be written: nothing is begun until it can";
            let object = Object::Node(self.name(self.me));
            self.alert(out, Severity::Error, object, what, cause);
        }
    }

    pub(super) fn open_gate(&mut self, out: &mut Actions) {
        let persisted = self.gate.persisted;
        let open = |gated: &mut Gated| gated.seq <= persisted || planted(Defect::ActBeforeDurable);
        while let Some(gated) = self.gate.waiting.pop_front_if(open) {
            let end = matches!(gated.action, Action::End { .. });
            out.push(gated.action);
            if end {
                self.over = true;
                return;
            }
        }
    }

    /// A disk that answers no more fails no write, and keeps all that waits for one from being done: that is told. And
    /// where something active has to stop, and for the disk can't, the guard ends it with the node, as it does after a
    /// stop that does not succeed: it needs no disk. A node where all goes on well is left as it is.
    pub(super) fn watch_disk(&mut self, out: &mut Actions) {
        let now = self.now;
        let since = self.gate.writing_since;
        if since.is_some_and(|since| now.since(since) >= WRITE_PATIENCE) {
            self.tell_unwritten("the disk does not answer", out);
        }
        let bound = self.cluster.stop_bound;
        let mut due = (self.gate.waiting.iter()).filter(|gated| now.since(gated.since) >= bound.0);
        let stuck = due.find_map(|gated| self.cannot_wait(&gated.action));
        let Some(group) = stuck else {
            (self.gate.stuck_since, self.gate.reset) = (None, false);
            return;
        };
        let since = *self.gate.stuck_since.get_or_insert(now);
        if now.since(since) < LOOK_AGAIN || std::mem::replace(&mut self.gate.reset, true) {
            return;
        }
        let group = &self.cluster.groups[group].name;
        let why = format!(
            "group {group} can't be stopped: the manager's state could not be written for {bound}"
        );
        let object = Object::Node(self.name(self.me));
        self.alert(out, Severity::Error, object, "is reset", why.as_str());
        out.push(Action::Reset { why });
    }

    /// The group that is active, or kept from the other node, and can't be left so until this action is done.
    fn cannot_wait(&self, action: &Action) -> Option<GroupId> {
        if self.durable.suspended.value && self.durable.ending.is_none() {
            return None;
        }
        // What may go on until an operator's stop, or the end of the manager alone, can be written is no worse for that.
        let is_urgent = |group: GroupId| {
            let order = self.order(group);
            match self.durable.ending.map(|ending| ending.kind) {
                Some(EndKind::Manager) => {
                    let bounces = !self.durable.groups[group].bounce.is_empty();
                    order.wanted && (order.owner == self.other() || bounces)
                }
                Some(EndKind::Shutdown | EndKind::Reboot) => true,
                None => order.wanted,
            }
        };
        let any_resets = |group: &GroupId| {
            let resources = &self.cluster.groups[*group].resources;
            (0..resources.len()).any(|at| self.resets(*group, at))
        };
        match action {
            Action::Run { work, .. } => match work {
                Work::Stop { group, resource } => {
                    (is_urgent(*group) && self.resets(*group, *resource)).then_some(*group)
                }
                Work::Preaction { monitor } | Work::Script { monitor } => {
                    let groups = self.targets(*monitor).0.into_iter();
                    let stops = self.leads_to_a_stop(*monitor);
                    groups.filter(|_| stops).find(any_resets)
                }
                Work::Start { .. } | Work::Fence { .. } => None,
            },
            // The other node waits for it.
            Action::ReleaseRight { group } => {
                let order = self.order(*group);
                let theirs = order.wanted && order.owner == self.other();
                let waits = self.peer_brief(*group).is_some_and(|b| b.able && !b.busy);
                (theirs && waits).then_some(*group).filter(any_resets)
            }
            // What could not be stopped was to end with the node.
            Action::End { kind, .. } if *kind != EndKind::Manager => {
                (0..self.groups.len()).find(|group| self.is_begun(*group))
            }
            _ => None,
        }
    }

    /// Where this resource can't be stopped, the node goes down.
    fn resets(&self, group: GroupId, at: usize) -> bool {
        let config = &self.cluster.groups[group].resources[at].common;
        matches!(config.stop_final, Final::Shutdown | Final::Reboot)
    }

    /// The recovery of a monitor would stop its target, now or with one of the steps that follow.
    fn leads_to_a_stop(&self, monitor: usize) -> bool {
        let config = &self.cluster.monitors[monitor];
        let ends = matches!(
            config.common.final_action,
            Final::StopManager | Final::Shutdown | Final::Reboot
        );
        match self.durable.monitors[monitor].recovering.map(|r| r.step) {
            Some(Step::Reactivate | Step::Failover) => true,
            Some(Step::Script) => config.reactivations() > 0 || config.common.failovers > 0 || ends,
            Some(Step::Final) => ends,
            None => false,
        }
    }
}
