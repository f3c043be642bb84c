//! Where a group should run: takeover of a lost node's groups, the way back home, and the end of
//! a manager.
//!
//! A node that hears nothing of the other one does not know whether that is lost or only unheard.
//! So a takeover is an intention of its own until the right to run is granted, and only then an
//! order that the other node will follow.

use crate::config::{Severity, Start as Automatic};
use crate::planted::{Defect, planted};

use super::Manager;
use super::action::{Action, Actions};
use super::durable::{Cause, EndKind, Ending, Why};
use super::message::{Brief, Phase};
use super::right_to_run::{Hold, ORDER_PATIENCE};
use super::state::{GroupId, ResourceState};

impl Manager {
    pub(super) fn place(&mut self, out: &mut Actions) {
        if self.phase != Phase::Running {
            return;
        }
        for group in 0..self.groups.len() {
            if self.durable.ending.is_some_and(|ending| !ending.cluster) {
                self.hand_over(group, out);
            } else if self.durable.ending.is_some() || self.durable.suspended.value {
                self.drop_intent(group);
            } else if self.peer_up() {
                self.drop_intent(group);
                // It knows what should run where, or the cluster has started with it. Before they have met nothing of that is known.
                if self.durable.groups[group].left_to_start && self.beats.has_met() {
                    self.group_record(group).left_to_start = false;
                }
                self.leave_to_operator(group);
                // That it waited in vain is over where the other node has it.
                let owner = self.order(group).owner;
                self.groups[group].waited_in_vain &= owner == self.me;
                self.pass_on(group, out);
                self.take_back(group, out);
                self.fail_back(group, out);
            } else if self.peer_lost() {
                self.consider_takeover(group, out);
            }
        }
    }

    /// What this node leaves to an operator neither does the other one start, which has not run it either and knows no
    /// newer word: by the order that both remember it would.
    fn leave_to_operator(&mut self, group: GroupId) {
        let record = &self.durable.groups[group];
        let order = &record.order;
        let mine = order.value.wanted && order.value.owner == self.me;
        let agrees = |brief: &Brief| brief.order == *order && !brief.busy;
        if record.dormant && mine && self.peer_brief(group).is_some_and(agrees) {
            self.set_order(group, |order| order.wanted = false);
        }
    }

    fn drop_intent(&mut self, group: GroupId) {
        self.groups[group].intent = None;
    }

    /// Automatic failover is not refused for this group, and this node can do it.
    pub(super) fn may_take_over(&self, group: GroupId) -> bool {
        let nodes = &self.cluster.groups[group].attributes.nodes;
        nodes.contains(&self.cluster.nodes[self.me]) && self.outside && self.cluster.may_fail_over()
    }

    fn consider_takeover(&mut self, group: GroupId, out: &mut Actions) {
        let record = &self.durable.groups[group];
        let order = &record.order.value;
        let lost = order.wanted && order.owner != self.me;
        let left = record.left_to_start;
        if !(lost || left) || record.dormant {
            return;
        }
        // What it had to give up itself, it stops first.
        if self.is_begun(group) {
            return;
        }
        if self.groups[group].waited_in_vain || planted(Defect::NoTakeover) {
            return;
        }
        let automatic = self.cluster.groups[group].attributes.failover == Automatic::Automatic;
        if (lost && !automatic) || !self.may_take_over(group) {
            self.groups[group].intent = None;
            if !self.groups[group].left_told {
                self.groups[group].left_told = true;
                let unreached = "this node reaches none of the `ping` addresses";
                let (what, cause) = match lost {
                    true if !automatic || self.outside => (
                        "not taken over from the lost node",
                        "automatic failover is not allowed here",
                    ),
                    true => ("not taken over from the lost node", unreached),
                    false if !self.outside => ("not started", unreached),
                    false => (
                        "not started",
                        "nothing may decide that the other node does not run it: `kagami group start` starts it",
                    ),
                };
                self.alert(out, Severity::Error, self.group_object(group), what, cause);
            }
            return;
        }
        if lost && self.groups[group].right == Hold::Held {
            // It was on its way to the node that is lost, and this one still has the right.
            let me = self.me;
            self.groups[group].intent = None;
            self.set_order(group, |order| {
                order.owner = me;
                order.why = Why::Start;
                order.cause = Cause::Failover;
            });
            let what = "stays: the node that it was to move to is lost";
            self.alert(out, Severity::Warning, self.group_object(group), what, "");
        } else if self.groups[group].intent.is_none() && left {
            self.groups[group].intent = Some(Why::Start);
            self.changed = true;
        } else if self.groups[group].intent.is_none() {
            self.groups[group].intent = Some(Why::Failover);
            self.changed = true;
            if planted(Defect::TakeoverTold) {
                let me = self.me;
                self.set_order(group, |order| order.owner = me);
            }
            let what = "is to be taken over from the lost node";
            self.alert(out, Severity::Warning, self.group_object(group), what, "");
        }
    }

    /// What this node should run and may not, the other one runs.
    fn pass_on(&mut self, group: GroupId, out: &mut Actions) {
        let order = self.order(group);
        let mine = order.wanted && order.owner == self.me;
        let stuck = self.groups[group].refused.is_some() || !self.is_its_node(group);
        // Without a disk here there is no session in which the other copy could be ready: it asks the arbiter.
        let elsewhere = self.peer_can(group)
            || self.groups[group].diskless
                && self.peer_is_able(group)
                && !planted(Defect::HomeWithoutADiskKeeps);
        if !mine || !stuck || self.is_able(group) || !self.is_idle(group) || !elsewhere {
            return;
        }
        if self.groups[group].right != Hold::None {
            return;
        }
        let other = self.other();
        self.set_order(group, |order| order.owner = other);
        let what = format!(
            "goes to node {}, since this one may not run it",
            self.name(other)
        );
        self.alert(out, Severity::Warning, self.group_object(group), what, "");
    }

    /// The other node was to run the group, and does not even take the order over, since its state can't be written. It knows
    /// nothing of the order that others could have of it, so there is a newer one.
    fn take_back(&mut self, group: GroupId, out: &mut Actions) {
        let order = &self.durable.groups[group].order;
        if !order.value.wanted || order.value.owner == self.me {
            return;
        }
        let can_t = |brief: &Brief| order.is_newer(&brief.order) && !brief.able && !brief.busy;
        if !self.peer_brief(group).is_some_and(can_t) {
            self.groups[group].not_taken_over = None;
            return;
        }
        let since = *self.groups[group].not_taken_over.get_or_insert(self.now);
        let rests = self.groups[group].right == Hold::None && !self.is_begun(group);
        if self.now.since(since) < ORDER_PATIENCE || !rests || !self.is_able(group) {
            return;
        }
        let me = self.me;
        self.set_order(group, |order| {
            order.owner = me;
            order.why = Why::Failover;
            order.from = None;
            order.cause = Cause::Failover;
        });
        let other = self.name(self.other());
        let what = format!("comes back, since node {other} does not take over the order");
        self.alert(
            out,
            Severity::Error,
            self.group_object(group),
            what,
            "perhaps it can't write its state",
        );
    }

    pub(super) fn is_its_node(&self, group: GroupId) -> bool {
        let nodes = &self.cluster.groups[group].attributes.nodes;
        nodes.contains(&self.cluster.nodes[self.me])
    }

    fn fail_back(&mut self, group: GroupId, out: &mut Actions) {
        if !self.durable.groups[group].failback {
            return;
        }
        let order = self.order(group);
        // A newer configuration may not want it any more.
        if !order.wanted || order.owner != self.me || !self.goes_back(group) {
            self.group_record(group).failback = false;
            return;
        }
        if self.is_online(group) && self.peer_can(group) {
            self.group_record(group).failback = false;
            let what = "goes back to its home";
            self.alert(out, Severity::Info, self.group_object(group), what, "");
            self.move_away(group, Cause::Move);
        }
    }

    /// The other node is to run it, as planned.
    pub(super) fn move_away(&mut self, group: GroupId, cause: Cause) {
        let (me, other) = (self.me, self.other());
        self.set_order(group, |order| {
            order.from = Some(me);
            order.owner = other;
            order.why = if cause == Cause::Shutdown {
                Why::Failover
            } else {
                Why::Start
            };
            order.cause = cause;
        });
    }

    /// The other node is there and can run the group.
    pub(super) fn peer_can(&self, group: GroupId) -> bool {
        let ready = self.peer_brief(group).is_some_and(|brief| brief.ready);
        ready && self.peer_is_able(group)
    }

    /// The other node is there, and nothing but its copies could keep it from running the group.
    fn peer_is_able(&self, group: GroupId) -> bool {
        let nodes = &self.cluster.groups[group].attributes.nodes;
        nodes.contains(&self.cluster.nodes[self.other()])
            && self.peer_brief(group).is_some_and(|brief| brief.able)
    }

    /// This manager ends: its groups stop, and the other node takes them unless all ends.
    pub(super) fn begin_end(&mut self, kind: EndKind, cluster: bool, out: &mut Actions) {
        if let Some(ending) = &mut self.durable.ending {
            if ending.finished {
                // It has ended, and what it left to be done is decided: who starts it again wants it to work.
                return;
            }
            // What follows the end may become more, not less.
            ending.kind = ending.kind.max(kind);
            ending.cluster |= cluster;
            self.dirty = true;
            return;
        }
        let op = self.next_op();
        self.record().ending = Some(Ending {
            kind,
            cluster,
            op,
            finished: false,
        });
        let what = match kind {
            EndKind::Manager => "its failover manager ends",
            EndKind::Shutdown => "is shut down",
            EndKind::Reboot => "reboots",
        };
        let object = super::Object::Node(self.name(self.me));
        self.alert(out, Severity::Warning, object, what, "");
    }

    fn hand_over(&mut self, group: GroupId, out: &mut Actions) {
        self.drop_intent(group);
        let order = self.order(group);
        let dormant = self.durable.groups[group].dormant;
        if order.wanted && order.owner == self.me && !dormant && self.peer_can(group) {
            let what = format!(
                "goes to node {}, since this one ends",
                self.name(self.other())
            );
            self.alert(out, Severity::Info, self.group_object(group), what, "");
            self.move_away(group, Cause::Shutdown);
        }
    }

    /// With nothing left to be stopped, the manager ends.
    pub(super) fn finish_ending(&mut self, _out: &mut Actions) {
        let Some(ending) = self.durable.ending else {
            return;
        };
        if self.phase == Phase::Gone {
            return;
        }
        if self.phase == Phase::Waiting {
            self.phase = Phase::Running;
        }
        // A group that could not be stopped ends with the node.
        let is_done = |group: GroupId| {
            let resources = &self.durable.groups[group].resources;
            let stuck = resources
                .iter()
                .any(|r| r.state == ResourceState::StopFailed)
                && resources.iter().all(|r| r.op.is_none());
            stuck || (self.is_idle(group) && self.groups[group].right == Hold::None)
        };
        let told = !ending.cluster || !self.peer_up() || {
            let peer = self.beats.peer.as_ref();
            peer.is_some_and(|peer| !self.durable.shutdown.is_newer(&peer.shutdown))
        };
        if !told || !(0..self.groups.len()).all(is_done) {
            return;
        }
        self.phase = Phase::Gone;
        if let Some(ending) = &mut self.record().ending {
            ending.finished = true;
        }
        self.act(Action::End {
            op: ending.op,
            kind: ending.kind,
        });
    }
}
