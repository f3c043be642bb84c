//! Whether this node may run a group: the right is asked for before anything is activated, and
//! given up when nothing is active any more.

use crate::config::Severity;
use crate::planted::{Defect, planted};

use super::action::{Action, Actions, Work};
use super::durable::{Cause, Run, Why};
use super::event::{OpResult, Right};
use super::gate::LOOK_AGAIN;
use super::message::Phase;
use super::state::{GroupId, OpId, ResourceState, Time};
use super::{Fence, Manager};

/// A right that was refused, or lost, is asked for again after this long, in milliseconds.
const ASK_AGAIN: u64 = 1000;
/// A node that was refused counts as unable for this long, in milliseconds, so that the other one tries.
pub(super) const REFUSED_FOR: u64 = 5000;
/// The other node has this node's orders after so long, in milliseconds.
pub(super) const ORDER_PATIENCE: u64 = 10_000;

/// A fence script that failed is run again after this long, in milliseconds.
const FENCE_AGAIN: u64 = 5000;

/// What this node holds of the right to run a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nothing.
    None,
    /// It has asked.
    Asked,
    /// The mirrors are this node's; the other one may still have the group's address.
    MirrorsOnly,
    /// The right.
    Held,
    /// Its lease has ended; the group is frozen.
    Frozen,
    /// Nothing any more, and the group has to stop.
    Lost,
    /// It has given it up, and waits for the word that this is done.
    Releasing,
}

impl Manager {
    /// This node should have the group: by the order, or because it takes it over.
    fn wants(&self, group: GroupId) -> bool {
        let lost = self.groups[group].right == Hold::Lost;
        self.should_run(group) || (self.groups[group].intent.is_some() && !lost)
    }

    /// The order says that the group runs here, and this node can follow it.
    pub(super) fn should_run(&self, group: GroupId) -> bool {
        let order = self.order(group);
        let begun = !self.is_idle(group);
        order.wanted
            && order.owner == self.me
            && self.durable.ending.is_none()
            && (self.phase == Phase::Running || begun)
            && !self.durable.groups[group].dormant
            && !self.groups[group].waited_in_vain
            && self.groups[group].right != Hold::Lost
    }

    /// Brings a group to where the order wants it, as far as it can be now.
    pub(super) fn run_group(&mut self, group: GroupId, out: &mut Actions) {
        let right = self.groups[group].right;
        // A right that is lost is no matter of opinion: that group stops, suspended or not. And
        // whoever ends a node wants its groups stopped.
        let must = right == Hold::Lost || self.durable.ending.is_some();
        if self.durable.suspended.value && !must {
            self.groups[group].waiting_since = None;
            // What was asked for a takeover, or a start alone, is taken back: those are no more, and nothing would follow
            // from the answer, also when the cluster is resumed.
            if right == Hold::Asked && !self.should_run(group) && !self.is_begun(group) {
                self.take_down(group, out);
            }
            return;
        }
        if !self.wants(group) {
            self.groups[group].waiting_since = None;
            self.take_down(group, out);
            return;
        }
        match right {
            Hold::None if self.may_ask(group, out) => {
                if planted(Defect::StartWithoutTheRight) && self.should_run(group) {
                    self.activate(group, out);
                }
                let fenced = self.fence == Fence::Down;
                self.groups[group].right = Hold::Asked;
                let begun = self.is_begun(group);
                self.act(Action::AskRight {
                    group,
                    fenced,
                    begun,
                });
            }
            Hold::Held if self.should_run(group) => self.activate(group, out),
            Hold::MirrorsOnly if self.should_run(group) => {
                if planted(Defect::AllInTheMargin) {
                    self.activate(group, out);
                }
                self.activate_mirrors(group, out);
            }
            Hold::Asked if planted(Defect::StartWithoutTheRight) && self.should_run(group) => {
                self.activate(group, out);
            }
            _ => {}
        }
    }

    /// Nothing speaks against asking for the right now.
    fn may_ask(&mut self, group: GroupId, out: &mut Actions) -> bool {
        if self.now < self.groups[group].ask_again {
            return false;
        }
        // The other node stops it first; if it can't be heard, the right decides.
        if self.peer_brief(group).is_some_and(|brief| brief.busy) {
            return false;
        }
        let begun = self.is_begun(group);
        if begun {
            return true;
        }
        if !self.other_does_not_run(group, out) {
            self.groups[group].waiting_since = None;
            return false;
        }
        self.others_are_online(group, out)
    }

    /// Something says that the other node does not run the group: that node, or the right that is asked for. Where
    /// neither does, the fence script does, or an operator, or the risk is accepted.
    fn other_does_not_run(&mut self, group: GroupId, out: &mut Actions) -> bool {
        let cluster = self.cluster.clone();
        if let Some(brief) = self.peer_brief(group) {
            // Its word counts from when it knows this order: an earlier one may have just let it start the group.
            let knows = brief.order == self.durable.groups[group].order;
            if knows || !self.is_judged_by_word(group) {
                self.groups[group].not_taken_over = None;
                return true;
            }
            self.wait_for_its_word(group, out);
            return false;
        }
        if cluster.has_arbiter() || self.groups[group].by_hand.is_some() {
            return true;
        }
        if self.beats.up.is_none() {
            // It has not had the time to be heard: a manager that begins anew on a healthy pair begins so.
            return false;
        }
        let silent = !self.peer_up();
        if silent && !self.outside {
            // Rather this node is cut off than the other one lost.
            let what = "not started: this node reaches none of the `ping` addresses";
            let other = self.name(self.other());
            let cause = format!("node {other} is not heard, and may run it");
            self.tell_blocked(group, what.to_owned(), cause, out);
            return false;
        }
        if self.groups[group].intent.is_none() && self.has_left(group) {
            return true;
        }
        if silent && cluster.fence.is_some() {
            // What this node could not run anyway the other one is left to run.
            return self.has_a_copy(group, out) && self.is_fenced(out);
        }
        if self.may_be_asked(group) {
            return true;
        }
        let other = self.name(self.other());
        let what = if silent && self.durable.groups[group].left_active {
            format!("not started: node {other} could not stop it, and its manager has ended")
        } else if silent {
            format!("not started: node {other} is not heard, and may run it")
        } else {
            format!("not started: node {other} has another configuration, and may run it")
        };
        let cause = format!(
            "without an arbiter nothing else can tell; once node {other} surely does not run it: kagami group start {} --not-elsewhere",
            self.cluster.groups[group].name
        );
        self.tell_blocked(group, what, cause, out);
        false
    }

    /// Told once until the other node is heard.
    fn tell_blocked(
        &mut self,
        group: GroupId,
        what: String,
        cause: impl Into<String>,
        out: &mut Actions,
    ) {
        if self.groups[group].blocked_told.insert(what.clone()) {
            self.alert(out, Severity::Error, self.group_object(group), what, cause);
        }
    }

    /// This node has copies under the group that can be promoted without the other node.
    fn has_a_copy(&mut self, group: GroupId, out: &mut Actions) -> bool {
        let state = &self.groups[group];
        let lacks = match (state.diskless, state.untrusted) {
            (true, _) => "has no disk under it",
            (false, true) => "has no copy under it that could be promoted without the other one",
            (false, false) => return true,
        };
        let (me, other) = (self.name(self.me), self.name(self.other()));
        let what = format!("not started: node {me} {lacks}");
        let cause = format!("node {other} is not fenced for it: bring it, or its heartbeats, back");
        self.tell_blocked(group, what, cause, out);
        false
    }

    /// The other node is heard, and has not taken this node's order over. That takes a moment; where it takes long it
    /// is told.
    fn wait_for_its_word(&mut self, group: GroupId, out: &mut Actions) {
        let now = self.now;
        let since = *self.groups[group].not_taken_over.get_or_insert(now);
        if now.since(since) < ORDER_PATIENCE {
            return;
        }
        let other = self.name(self.other());
        let what =
            format!("not started: node {other} does not take over the order, and may run it");
        let cause = format!("perhaps it can't write its state: see node {other}, or power it off");
        self.tell_blocked(group, what, cause, out);
    }

    /// Nothing but an operator can say that the other node does not run the group: no arbiter, no word of that node, no fence
    /// script that works, and nobody has accepted the risk.
    pub(super) fn is_only_known_by_hand(&self, group: GroupId) -> bool {
        if self.cluster.has_arbiter() || self.peer_brief(group).is_some() || self.beats.up.is_none()
        {
            return false;
        }
        let silent = !self.peer_up();
        if silent && !self.outside {
            return true;
        }
        if self.has_left(group) {
            return false;
        }
        if silent && self.cluster.fence.is_some() {
            return self.fence_failed;
        }
        !self.may_be_asked(group)
    }

    /// The mirrors judge, or somebody has accepted the risk that the other node, which is silent, runs the group. That it
    /// may, and not that it has said so: a mirror that may always go on alone would let both of them.
    fn may_be_asked(&self, group: GroupId) -> bool {
        let is_mirrored = self.cluster.groups[group].is_mirrored();
        let is_accepted = self.cluster.arbiter.accepted_risk.is_some() && !self.peer_up();
        (is_mirrored || is_accepted) && !self.durable.groups[group].left_active
    }

    /// The other manager has said good-bye, and had nothing of the group any more.
    fn has_left(&self, group: GroupId) -> bool {
        let peer = self.beats.peer.as_ref();
        let gone = peer.filter(|peer| peer.phase == Phase::Gone);
        let brief = gone.and_then(|peer| peer.groups.get(group));
        brief.is_some_and(|brief| !brief.busy)
    }

    /// The groups that it waits for are online, somewhere.
    fn others_are_online(&mut self, group: GroupId, out: &mut Actions) -> bool {
        let cluster = self.cluster.clone();
        let attributes = &cluster.groups[group].attributes;
        let is_online = |name: &String| {
            let at = cluster.groups.iter().position(|g| g.name == *name);
            at.is_some_and(|at| {
                self.is_online(at) || self.peer_brief(at).is_some_and(|brief| brief.online)
            })
        };
        let missing = attributes.wait_for.iter().find(|name| !is_online(name));
        let Some(missing) = missing else {
            self.groups[group].waiting_since = None;
            return true;
        };
        let since = *self.groups[group].waiting_since.get_or_insert(self.now);
        if self.now.since(since) >= attributes.wait_timeout.0 {
            self.groups[group].waited_in_vain = true;
            self.groups[group].intent = None;
            self.changed = true;
            let what = "not started";
            let cause = format!(
                "group {missing} is not online after {}",
                attributes.wait_timeout
            );
            self.alert(out, Severity::Error, self.group_object(group), what, cause);
        }
        false
    }

    /// The fence script has said that the other node is down; else it is asked.
    fn is_fenced(&mut self, out: &mut Actions) -> bool {
        let cluster = self.cluster.clone();
        let Some(fence) = cluster.fence.as_ref() else {
            return true;
        };
        if self.is_behind() {
            return false;
        }
        match self.fence {
            Fence::Down => true,
            Fence::Running(_) => false,
            Fence::Again(at) if self.now < at => false,
            Fence::Idle | Fence::Again(_) => {
                let node = self.other();
                let op = self.next_op();
                self.fence = Fence::Running(op);
                let what = "is made sure to be down, by the fence script";
                let object = super::Object::Node(self.name(node));
                self.alert(out, Severity::Warning, object, what, "");
                self.act(Action::Run {
                    op,
                    work: Work::Fence { node },
                    environment: super::environment::fence(&cluster, self.me),
                    timeout: fence.timeout,
                });
                false
            }
        }
    }

    /// This process did not run for some time. The node that was down at its beginning may be up again, and has heard
    /// nothing from here: what the fence script said of it counts no more, and it is listened to first.
    pub(super) fn on_stood_still(&mut self, out: &mut Actions) {
        self.behind_until = self.now.after(LOOK_AGAIN);
        self.recall_fence(out);
        if self.fence == Fence::Down {
            self.fence = Fence::Idle;
        }
        self.end_words(true, out);
        for group in &mut self.groups {
            // What it did not take over while nobody listened is not known.
            group.not_taken_over = None;
        }
    }

    /// An operator's word that the other node does not run a group counts for so long: after that time the other one, of
    /// which nothing was heard, may have been started in its turn.
    pub(super) fn word_lasts(&self) -> u64 {
        let timeouts = self.cluster.heartbeats.iter().map(|h| h.timeout.0);
        timeouts.max().unwrap_or_default()
    }

    /// An operator's word about the other node is of the time when it was given. It has done its work once something of
    /// the group was begun by it. A group that was not begun by it in time waits, with nothing of the right: for another
    /// group, or the disk, it may have waited for minutes, while the other node was brought back, unheard.
    /// `all`: this manager stood still, and however short that was, it did not listen.
    pub(super) fn end_words(&mut self, all: bool, out: &mut Actions) {
        for group in 0..self.groups.len() {
            let Some(given) = self.groups[group].by_hand else {
                continue;
            };
            if self.is_really_begun(group) {
                self.groups[group].by_hand = None;
                if self.durable.groups[group].left_active {
                    self.group_record(group).left_active = false;
                }
                continue;
            }
            let lasts = self.word_lasts();
            let is_over = all || self.now.since(given) >= lasts;
            if !is_over || planted(Defect::WordsForEver) {
                continue;
            }
            self.groups[group].by_hand = None;
            self.recall_first_starts(group);
            self.take_down(group, out);
            let other = self.name(self.other());
            let why = if all {
                "this manager stood still since".to_owned()
            } else {
                format!("{lasts} ms have passed since")
            };
            let what = format!("not started: node {other} may run it by now");
            let cause = format!(
                "an operator has said that it does not, and {why}; make sure again: kagami group start {} --not-elsewhere",
                self.cluster.groups[group].name
            );
            let object = self.group_object(group);
            self.alert(out, Severity::Error, object, what, cause);
        }
    }

    /// Something of the group is active here, or was begun, and does not merely wait for the disk to be.
    fn is_really_begun(&self, group: GroupId) -> bool {
        let gated = self.gated_starts(group);
        let resources = self.durable.groups[group].resources.iter();
        resources
            .filter(|r| r.state != ResourceState::Offline)
            .any(|r| r.op.is_none_or(|op| !gated.contains(&op)))
    }

    /// Nothing of the group is begun: nor is what waits for the disk to be.
    fn recall_first_starts(&mut self, group: GroupId) {
        let gated = self.gated_starts(group);
        if gated.is_empty() {
            return;
        }
        (self.gate).retain(|action| start_of(action, group).is_none());
        for resource in &mut self.group_record(group).resources {
            if resource.op.is_some_and(|op| gated.contains(&op)) {
                (resource.op, resource.state) = (None, ResourceState::Offline);
            }
        }
    }

    /// Activations of the group that were decided on and wait for the disk.
    fn gated_starts(&self, group: GroupId) -> Vec<OpId> {
        let actions = self.gate.actions();
        actions
            .filter_map(|action| start_of(action, group))
            .collect()
    }

    pub(super) fn is_behind(&self) -> bool {
        self.now < self.behind_until
    }

    pub(super) fn on_fenced(&mut self, result: &OpResult, out: &mut Actions) {
        let object = super::Object::Node(self.name(self.other()));
        if *result == OpResult::Done && self.is_behind() {
            self.fence = Fence::Idle;
            let what =
                "was down when this manager stood still, the fence script said: that is over";
            self.alert(out, Severity::Warning, object, what, "");
        } else if *result == OpResult::Done {
            self.fence = Fence::Down;
            self.beats.fenced(self.now);
            self.alert(
                out,
                Severity::Warning,
                object,
                "is down, the fence script says",
                "",
            );
        } else {
            self.fence = Fence::Again(self.now.after(FENCE_AGAIN));
            self.fence_failed = true;
            let what = "the fence script could not make sure that it is down";
            self.alert(out, Severity::Error, object, what, reason(result));
        }
    }

    pub(super) fn on_right(&mut self, group: GroupId, change: Right, out: &mut Actions) {
        let hold = self.groups[group].right;
        let object = self.group_object(group);
        match (change, hold) {
            // What an earlier manager has left active waits for the whole right.
            (Right::MirrorsOnly, Hold::Asked) if !self.is_begun(group) => {
                self.take_right(group, Hold::MirrorsOnly, out);
            }
            // Asked for before this manager stood still, on the fence script's word.
            (Right::Granted, Hold::Asked)
                if self.is_behind() && self.is_judged_by_word(group) && !self.is_begun(group) =>
            {
                self.groups[group].right = Hold::Releasing;
                self.act(Action::ReleaseRight { group });
            }
            // Its lease had ended before it was granted: nothing was frozen for that.
            (Right::Granted, Hold::Asked | Hold::MirrorsOnly | Hold::Held | Hold::Frozen)
            | (Right::Renewed, Hold::Asked) => self.take_right(group, Hold::Held, out),
            // Never asked for by this life of the manager.
            (Right::Granted, Hold::None) => {
                self.groups[group].right = Hold::Releasing;
                self.act(Action::ReleaseRight { group });
            }
            (Right::Refused(why), Hold::Asked | Hold::MirrorsOnly) => {
                // Of what an earlier manager has left active nothing may stay.
                let lost = self.is_begun(group);
                self.groups[group].right = if lost { Hold::Lost } else { Hold::None };
                self.groups[group].ask_again = if planted(Defect::RefusedOnce) {
                    Time(u64::MAX)
                } else {
                    self.now.after(ASK_AGAIN)
                };
                if self.groups[group].refused.is_none() {
                    let what = "this node may not run it now";
                    self.alert(out, Severity::Warning, object, what, why);
                }
                self.groups[group].refused = Some(self.now);
            }
            (Right::LeaseEnded, Hold::Held | Hold::MirrorsOnly | Hold::Asked)
                if self.is_begun(group) =>
            {
                self.groups[group].right = Hold::Frozen;
                self.recall_starts(group);
                let what =
                    "frozen: the other node is not heard, and permission to go on is asked for";
                self.alert(out, Severity::Warning, object, what, "");
            }
            (Right::Renewed, Hold::Frozen) => {
                self.groups[group].right = Hold::Held;
                self.alert(out, Severity::Info, object, "goes on, with permission", "");
            }
            (Right::Lost, Hold::Held | Hold::MirrorsOnly | Hold::Frozen | Hold::Asked) => {
                if planted(Defect::LostRightIgnored) {
                    return;
                }
                self.groups[group].right = Hold::Lost;
                self.recall_starts(group);
                self.groups[group].refused = Some(self.now);
                self.groups[group].ask_again = self.now.after(ASK_AGAIN);
                self.groups[group].intent = None;
                self.groups[group].unsure = true;
                self.dirty = true;
                let what = "stops: this node may not run it any more";
                self.alert(out, Severity::Error, object, what, "");
            }
            (Right::Released, Hold::Releasing) => {
                self.groups[group].right = Hold::None;
            }
            _ => {}
        }
        self.changed = true;
    }

    /// Neither an arbiter nor mirrors say that the other node does not run it.
    fn is_judged_by_word(&self, group: GroupId) -> bool {
        !self.cluster.has_arbiter() && !self.cluster.groups[group].is_mirrored()
    }

    /// Activations that were decided on and have not begun are not begun without the right.
    fn recall_starts(&mut self, group: GroupId) {
        let recalled = self.gated_starts(group);
        (self.gate).retain(|action| start_of(action, group).is_none());
        for op in recalled {
            self.on_op_never(op);
        }
    }

    /// The right has not been asked for yet, and is not. False: it has.
    pub(super) fn recall_question(&mut self, group: GroupId) -> bool {
        let is_it =
            |action: &Action| matches!(action, Action::AskRight { group: of, .. } if *of == group);
        let found = self.gate.actions().any(is_it);
        self.gate.retain(|action| !is_it(action));
        found
    }

    /// The other node is heard again, or nobody is to act: a fence script that has not begun, since the state it follows
    /// from was not durable, does not begin, and nothing is asked for by one's word.
    pub(super) fn recall_fence(&mut self, out: &mut Actions) {
        let is_fence = |action: &Action| {
            matches!(
                action,
                Action::Run {
                    work: Work::Fence { .. },
                    ..
                }
            )
        };
        let asked = |action: &Action| match action {
            Action::AskRight {
                group,
                fenced: true,
                ..
            } => Some(*group),
            _ => None,
        };
        if self.gate.actions().any(is_fence) {
            self.fence = Fence::Idle;
            let object = super::Object::Node(self.name(self.other()));
            self.alert(
                out,
                Severity::Info,
                object,
                "the fence script is not run any more",
                "",
            );
        }
        let groups: Vec<GroupId> = self.gate.actions().filter_map(asked).collect();
        self.gate
            .retain(|action| !is_fence(action) && asked(action).is_none());
        for group in groups {
            self.groups[group].right = Hold::None;
        }
    }

    fn take_right(&mut self, group: GroupId, now: Hold, out: &mut Actions) {
        let before = std::mem::replace(&mut self.groups[group].right, now);
        self.groups[group].refused = None;
        self.groups[group].unsure = false;
        self.dirty = true;
        match before {
            Hold::Asked => self.on_granted(group, out),
            // A group may be nothing but its mirrors.
            Hold::MirrorsOnly => self.note_online(group, out),
            _ => {}
        }
    }

    fn on_granted(&mut self, group: GroupId, out: &mut Actions) {
        let (me, other) = (self.me, self.other());
        if let Some(why) = self.groups[group].intent.take() {
            self.group_record(group).dormant = false;
            self.set_order(group, |order| {
                order.wanted = true;
                order.from = (why == Why::Failover).then_some(other);
                order.owner = me;
                order.why = why;
                order.cause = Cause::Failover;
            });
        }
        if self.is_begun(group) {
            return;
        }
        let record = &self.durable.groups[group];
        let order = &record.order;
        // The same order again, after the right was lost and came back: an ordinary start.
        let again = record.run.version == order.version && order.version > 0;
        let run = Run {
            version: order.version,
            why: match order.value.why {
                _ if record.recover => Why::Recover,
                _ if again => Why::Start,
                why => why,
            },
            from: order.value.from,
        };
        let what = match run.why {
            Why::Start => "starts",
            Why::Failover => "fails over to this node",
            Why::Recover => "starts again on its node",
        };
        let record = self.group_record(group);
        record.run = run;
        record.recover = false;
        self.alert(out, Severity::Info, self.group_object(group), what, "");
    }

    /// Nothing of the group is active here, and nothing of the right is held.
    pub(super) fn is_idle(&self, group: GroupId) -> bool {
        matches!(self.groups[group].right, Hold::None | Hold::Asked) && !self.is_begun(group)
    }

    /// Something of the group is active here, or was begun.
    pub(super) fn is_begun(&self, group: GroupId) -> bool {
        let resources = &self.durable.groups[group].resources;
        resources.iter().any(|r| r.state != ResourceState::Offline)
    }

    /// Nothing has refused this node the right just now, and it can run groups at all: with a state that can't be written
    /// nothing would begin.
    pub(super) fn is_able(&self, group: GroupId) -> bool {
        let refused = self.groups[group].refused;
        let refused = refused.is_some_and(|at| self.now.since(at) < REFUSED_FOR);
        let nodes = &self.cluster.groups[group].attributes.nodes;
        self.phase == Phase::Running
            && self.durable.ending.is_none()
            && !refused
            && !self.gate.is_stuck()
            && !self.groups[group].diskless
            && nodes.contains(&self.cluster.nodes[self.me])
    }
}

/// The activation of one of the group's resources.
fn start_of(action: &Action, group: GroupId) -> Option<OpId> {
    match action {
        Action::Run {
            op,
            work: Work::Start { group: of, .. },
            ..
        } if *of == group => Some(*op),
        _ => None,
    }
}

/// Why an operation did not end well.
pub(super) fn reason(result: &OpResult) -> String {
    match result {
        OpResult::Done => String::new(),
        OpResult::Failed(why) | OpResult::Warned(why) => why.clone(),
        OpResult::TimedOut => "it took too long".to_owned(),
    }
}
