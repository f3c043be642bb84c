//! Whether the other node is there: what each heartbeat has heard, and what it says.
//!
//! A node counts as lost only when every heartbeat is silent for its time-out, or when its manager
//! has said good-bye. A heartbeat of an earlier life of the manager, one that was heard before, and
//! one of a manager that does not say that it hears this one, which could be old, count for nothing. Nor does one
//! that was on its way when its node was fenced.

use crate::config::{Cluster, Severity, Start as Automatic};
use crate::planted::{Defect, planted};

use super::action::{Action, Actions};
use super::alert::Object;
use super::durable::{Cause, Order, Why};
use super::message::{Brief, Phase, Snapshot};
use super::state::{HeartbeatStatus, NodeStatus, Time};
use super::{Fence, Manager};

/// What is heard and sent.
#[derive(Debug)]
pub(super) struct Beats {
    lines: Vec<Line>,
    seq: u64,
    /// What was said last, its number apart.
    said: Option<Snapshot>,
    /// What the other node said last.
    pub peer: Option<Snapshot>,
    /// The highest life of the other manager that was heard.
    life: u64,
    /// Until then what is heard may have been on its way when its node was fenced.
    late_until: Time,
    /// It has said that it hears this life of this manager.
    acquainted: bool,
    /// As [`Snapshot::met`] says it, before what follows from that is durable.
    met: u64,
    /// Neither had heard the other before, and nothing has followed from that yet.
    meeting: bool,
    revision_told: bool,
    /// Whether it is there; `None`: not known yet.
    pub up: Option<bool>,
    /// When it is lost if it was never heard at all.
    grace: Time,
}

/// One heartbeat.
#[derive(Debug)]
struct Line {
    interval: u64,
    timeout: u64,
    next: Time,
    heard: Option<Time>,
    /// The highest number heard on it.
    seq: u64,
    silent_told: bool,
}

impl Beats {
    pub fn new(cluster: &Cluster, met: bool, now: Time) -> Self {
        let lines = cluster.heartbeats.iter().map(|heartbeat| Line {
            interval: heartbeat.interval.0,
            timeout: heartbeat.timeout.0,
            next: now,
            heard: None,
            seq: 0,
            silent_told: false,
        });
        let longest = cluster.heartbeats.iter().map(|h| h.timeout.0).max();
        Self {
            lines: lines.collect(),
            seq: 0,
            said: None,
            peer: None,
            life: 0,
            late_until: Time(0),
            acquainted: false,
            met: if met { u64::MAX } else { 0 },
            meeting: false,
            revision_told: false,
            up: None,
            grace: now.after(longest.unwrap_or_default()),
        }
    }

    /// Both have the same configuration, and what follows from their first meeting has.
    pub fn has_met(&self) -> bool {
        self.met() != 0
    }

    /// What is to be told of that.
    pub fn met(&self) -> u64 {
        if self.meeting { 0 } else { self.met }
    }

    /// The fence script has just said that the other node is down. What is heard of it for the longest time-out was on
    /// its way (no node boots so soon); what it says later, it says in spite of the script.
    pub fn fenced(&mut self, now: Time) {
        let longest = self.lines.iter().map(|line| line.timeout).max();
        self.late_until = now.after(longest.unwrap_or_default());
    }

    /// Until when it may be.
    #[cfg(test)]
    pub fn late_until(&self) -> Time {
        self.late_until
    }

    /// `speaks`: this node sends heartbeats.
    pub fn next_deadline(&self, speaks: bool) -> Time {
        let sends = (self.lines.iter()).filter(|_| speaks).map(|line| line.next);
        let silences = (self.lines.iter())
            .filter(|line| !line.silent_told)
            .filter_map(|line| line.heard.map(|heard| heard.after(line.timeout)));
        let grace = self.up.is_none().then_some(self.grace);
        sends
            .chain(silences)
            .chain(grace)
            .min()
            .unwrap_or(Time(u64::MAX))
    }

    fn is_heard(line: &Line, now: Time) -> bool {
        line.heard
            .is_some_and(|heard| now.since(heard) < line.timeout)
    }
}

impl Manager {
    pub(super) fn on_beat(&mut self, heartbeat: usize, mut message: Snapshot, out: &mut Actions) {
        let beats = &mut self.beats;
        let known = beats.peer.as_ref().map(|peer| peer.incarnation);
        if message.incarnation < beats.life || self.now < beats.late_until {
            return;
        }
        if message.incarnation > beats.life {
            beats.life = message.incarnation;
            beats.acquainted = false;
            for line in &mut beats.lines {
                line.seq = 0;
            }
        }
        // Until it has said this manager's own life, it could be an old word, said again.
        beats.acquainted |= message.echo == self.incarnation;
        if !beats.acquainted {
            return;
        }
        if known.is_some_and(|known| known != message.incarnation) {
            beats.peer = None;
        }
        let Some(line) = beats.lines.get_mut(heartbeat) else {
            return;
        };
        if message.seq <= line.seq {
            return;
        }
        line.seq = message.seq;
        line.heard = Some(self.now);
        line.silent_told = false;
        // A slower heartbeat may carry what another has said before.
        if self
            .beats
            .peer
            .as_ref()
            .is_some_and(|peer| peer.seq >= message.seq)
        {
            return;
        }
        // It is there; what it says of groups is said of another configuration's.
        let ours = message.revision == self.cluster.revision
            && message.groups.len() == self.cluster.groups.len();
        if !ours {
            message.groups.clear();
        }
        if !ours && !std::mem::replace(&mut self.beats.revision_told, true) {
            let what = format!("has revision {} of the configuration", message.revision);
            let cause = format!("this node has revision {}", self.cluster.revision);
            let object = Object::Node(self.name(self.other()));
            self.alert(out, Severity::Error, object, what, cause);
        }
        // What one of them could not start alone is seen once both know the same groups.
        if ours && self.beats.met == 0 {
            self.beats.met = message.incarnation;
            self.beats.meeting = message.met == 0 || message.met == self.incarnation;
            if !self.beats.meeting {
                self.record().met = true;
            }
        }
        self.merge(&message, out);
        self.beats.peer = Some(message);
    }

    /// The newer word counts, whoever said it. But what runs counts more than what a manager
    /// remembers that has just started, or lost the right: the other one may have gone on without knowing of that word.
    fn merge(&mut self, message: &Snapshot, out: &mut Actions) {
        for (group, brief) in message.groups.iter().enumerate() {
            let mut counts = self.durable.groups[group].counts.clone();
            if counts.join(&brief.counts) {
                self.group_record(group).counts = counts;
            }
            let left_active = message.phase == Phase::Gone && brief.busy;
            if self.durable.groups[group].left_active != left_active {
                self.group_record(group).left_active = left_active;
            }
            let order = &self.durable.groups[group].order;
            // An operator's word about the other node is over where that speaks itself.
            self.groups[group].by_hand = None;
            let mine = self.is_begun(group);
            let unsure = self.groups[group].unsure;
            let counts = if unsure && brief.active && !mine {
                brief.order != *order
            } else if brief.unsure && mine && self.should_run(group) {
                false
            } else {
                brief.order.is_newer(order)
            };
            if counts && !planted(Defect::OrdersNotMerged) {
                self.groups[group].unsure &= !brief.active;
                let record = self.group_record(group);
                record.high = record.high.max(record.order.version);
                record.order = brief.order.clone();
                record.recover = false;
                record.stopped &= !brief.order.value.wanted;
                (record.dormant, record.failback) = (false, false);
                self.release_stuck(group);
                self.groups[group].waited_in_vain = false;
                self.groups[group].waiting_since = None;
                self.groups[group].not_taken_over = None;
            }
            // What a node that starts alone leaves to an operator is over where the other one runs it, by whatever
            // order: from now on it is a group like any other.
            let runs_it = brief.active && brief.order.value.owner == self.other();
            if runs_it && self.durable.groups[group].dormant {
                self.group_record(group).dormant = false;
            }
        }
        if message.suspended.is_newer(&self.durable.suspended) {
            self.record().suspended = message.suspended;
            let what = if message.suspended.value {
                "suspended: nobody acts"
            } else {
                "resumed"
            };
            self.alert(
                out,
                Severity::Info,
                Object::Cluster,
                what,
                "told by the other node",
            );
        }
        if message.shutdown.is_newer(&self.durable.shutdown) {
            self.record().shutdown = message.shutdown;
            if let Some(kind) = message.shutdown.value {
                self.begin_end(kind, true, out);
            }
        }
    }

    /// Notices that the other node is lost, or back.
    pub(super) fn watch_peer(&mut self, out: &mut Actions) {
        let now = self.now;
        let mut silent = Vec::new();
        for (line, config) in self.beats.lines.iter_mut().zip(&self.cluster.heartbeats) {
            let lost = line.heard.is_some() && !Beats::is_heard(line, now);
            if lost && !line.silent_told {
                line.silent_told = true;
                silent.push((config.name.clone(), line.timeout));
            }
        }
        for (name, timeout) in silent {
            let what = format!("silent for {timeout} ms");
            self.alert(out, Severity::Warning, Object::Heartbeat(name), what, "");
        }
        let heard = self
            .beats
            .lines
            .iter()
            .any(|line| Beats::is_heard(line, now));
        let gone = self
            .beats
            .peer
            .as_ref()
            .is_some_and(|p| p.phase == Phase::Gone);
        let up = match (heard && self.beats.peer.is_some() && !gone, self.beats.up) {
            (true, _) => Some(true),
            (false, None) if now < self.beats.grace && !gone => None,
            (false, _) => Some(false),
        };
        if up == self.beats.up {
            return;
        }
        let was = std::mem::replace(&mut self.beats.up, up);
        self.changed = true;
        let other = Object::Node(self.name(self.other()));
        match up {
            Some(true) => {
                self.recall_fence(out);
                self.fence = Fence::Idle;
                self.fence_failed = false;
                for group in &mut self.groups {
                    group.by_hand = None;
                    group.blocked_told.clear();
                    // Nobody takes over what he does not hear: the time to do so begins now.
                    group.not_taken_over = None;
                }
                self.alert(out, Severity::Info, other, "heard", "");
                if was == Some(false) {
                    self.peer_is_back();
                }
            }
            _ if gone => self.alert(out, Severity::Warning, other, "its manager has ended", ""),
            _ => self.alert(
                out,
                Severity::Error,
                other,
                "lost: no heartbeat is heard",
                "",
            ),
        }
    }

    /// Groups whose home has returned go back to it, where they are meant to.
    fn peer_is_back(&mut self) {
        for group in 0..self.groups.len() {
            self.groups[group].left_told = false;
            let goes_back = self.goes_back(group);
            self.group_record(group).failback = goes_back;
        }
    }

    /// It is a group that goes back to the other node by itself.
    pub(super) fn goes_back(&self, group: usize) -> bool {
        let attributes = &self.cluster.groups[group].attributes;
        attributes.failback == Automatic::Automatic
            && attributes.nodes.first() == Some(&self.cluster.nodes[self.other()])
    }

    /// The other node is heard, and its manager is at work.
    pub(super) fn peer_up(&self) -> bool {
        self.beats.up == Some(true)
    }

    /// The other node was waited for and is not there.
    pub(super) fn peer_lost(&self) -> bool {
        self.beats.up == Some(false)
    }

    /// What the other node said last of a group, if it is there.
    pub(super) fn peer_brief(&self, group: usize) -> Option<&Brief> {
        let peer = self.beats.peer.as_ref().filter(|_| self.peer_up())?;
        peer.groups.get(group)
    }

    /// Ends the time in which this node waits for the other one.
    pub(super) fn leave_waiting(&mut self, out: &mut Actions) {
        if self.phase != Phase::Waiting {
            return;
        }
        let other_is = self
            .beats
            .peer
            .as_ref()
            .filter(|_| self.peer_up())
            .map(|p| p.phase);
        match other_is {
            None if self.now < self.wait_until => return,
            None => self.start_alone(out),
            Some(Phase::Waiting) => self.start_cluster(out),
            // It has not recorded yet what follows from hearing this node: if it went down now nobody would know.
            Some(Phase::Running) if self.peer_is_meeting() && self.now < self.wait_until => return,
            // It knows what should run where.
            Some(_) => {}
        }
        // Whoever has not started alone gives no order where two meet late.
        self.beats.meeting = false;
        self.record().met = self.beats.met != 0;
        self.phase = Phase::Running;
        self.record().settled = true;
    }

    /// The other node has this configuration, and has not met this one.
    fn peer_is_meeting(&self) -> bool {
        let peer = self.beats.peer.as_ref();
        peer.is_some_and(|peer| peer.met == 0 && peer.groups.len() == self.groups.len())
    }

    /// Both nodes have just started.
    fn start_cluster(&mut self, out: &mut Actions) {
        let what = "starts: both nodes are there";
        self.alert(out, Severity::Info, Object::Cluster, what, "");
        for group in 0..self.groups.len() {
            self.start_with_cluster(group);
        }
    }

    fn start_with_cluster(&mut self, group: usize) {
        let automatic = self.is_automatic(group);
        let home = self.cluster.groups[group].attributes.nodes.first();
        let home = self.cluster.nodes.iter().position(|n| Some(n) == home);
        let record = self.group_record(group);
        record.recover = false;
        record.counts.clear(|_| false);
        // What was refused while it was alone says nothing of now.
        self.groups[group].refused = None;
        self.groups[group].ask_again = self.now;
        self.set_order(group, |order| {
            *order = Order {
                wanted: automatic,
                owner: home.unwrap_or(order.owner),
                why: Why::Start,
                from: None,
                cause: Cause::Stop,
            };
        });
    }

    fn is_automatic(&self, group: usize) -> bool {
        self.cluster.groups[group].attributes.startup == Automatic::Automatic
    }

    /// This node has started alone, and here is the other one, which had heard nobody either: the cluster starts
    /// only now. What this node could not start alone is started as it would have been with both there.
    pub(super) fn meet_late(&mut self, out: &mut Actions) {
        if self.phase != Phase::Running || !self.beats.meeting || !self.peer_up() {
            return;
        }
        let knows = self.beats.peer.as_ref().map(|peer| peer.groups.len());
        if knows != Some(self.groups.len()) {
            // It has another configuration now.
            return;
        }
        let ours = |group: usize| self.order(group).wanted || self.is_begun(group);
        let is_asking = |group: usize| {
            let brief = self.peer_brief(group);
            brief.is_some_and(|brief| brief.busy && !brief.active && !brief.order.value.wanted)
        };
        if (0..self.groups.len()).any(|group| !ours(group) && is_asking(group)) {
            // It gives up what it had in an earlier life, or is about to start something by itself: that is seen soon.
            return;
        }
        let is_left = |group: &usize| {
            let brief = self.peer_brief(*group);
            let theirs = brief.is_none_or(|brief| brief.busy || brief.order.value.wanted);
            let stopped = self.durable.groups[*group].stopped;
            self.is_automatic(*group) && !ours(*group) && !theirs && !stopped
        };
        let left: Vec<usize> = (0..self.groups.len()).filter(is_left).collect();
        self.beats.meeting = false;
        self.record().met = true;
        if left.is_empty() || self.durable.ending.is_some() {
            return;
        }
        let what = "starts: both nodes are there";
        self.alert(out, Severity::Info, Object::Cluster, what, "");
        for group in left {
            self.start_with_cluster(group);
        }
    }

    /// The other node did not come. It may run groups all the same, unheard: so no order is given
    /// here before the right to run says that it does not.
    fn start_alone(&mut self, out: &mut Actions) {
        let other = Object::Node(self.name(self.other()));
        let what = "not heard in time: this node starts alone";
        self.alert(out, Severity::Warning, other, what, "");
        self.beats.up = Some(false);
        if self.beats.meeting {
            // Heard, and lost before it had recorded what follows: perhaps it knows nothing of this node any more.
            self.beats.met = 0;
        }
        for group in 0..self.groups.len() {
            let order = self.order(group);
            if !self.is_automatic(group) {
                self.group_record(group).dormant = true;
            } else if !(order.wanted && order.owner == self.me) && self.is_its_node(group) {
                self.group_record(group).left_to_start = true;
            }
        }
    }

    pub(super) fn send_beats(&mut self, out: &mut Actions) {
        // This life's number is said once no later one can have it.
        if self.gate.persisted == 0 {
            return;
        }
        let now = self.now;
        let groups = (0..self.groups.len()).map(|group| Brief {
            order: if planted(Defect::TakeoverTold) {
                self.durable.groups[group].order.clone()
            } else {
                self.told.orders[group].0.clone()
            },
            counts: self.told.orders[group].1.clone(),
            unsure: self.told.unsure[group],
            busy: !self.is_idle(group),
            active: self.is_begun(group),
            online: self.is_online(group),
            able: self.is_able(group),
            ready: self.groups[group].ready,
        });
        // Whoever hears that this node is at work goes by its orders: not before they can be told.
        let phase = if self.phase == Phase::Running && !self.told.at_work {
            Phase::Waiting
        } else {
            self.phase
        };
        let mut say = Snapshot {
            incarnation: self.incarnation,
            seq: 0,
            echo: self.beats.life,
            met: self.told.met,
            revision: self.cluster.revision,
            phase,
            suspended: self.told.suspended,
            shutdown: self.told.shutdown,
            groups: groups.collect(),
        };
        // News travels at once, and by every heartbeat.
        let news = self.beats.said.as_ref() != Some(&say);
        if news {
            self.beats.said = Some(say.clone());
        }
        if !news && self.beats.lines.iter().all(|line| line.next > now) {
            return;
        }
        self.beats.seq += 1;
        say.seq = self.beats.seq;
        for (heartbeat, line) in self.beats.lines.iter_mut().enumerate() {
            if news || line.next <= now {
                line.next = now.after(line.interval);
                out.push(Action::Beat {
                    heartbeat,
                    message: Box::new(say.clone()),
                });
            }
        }
    }

    /// What the other node is at, as people see it.
    pub fn node_status(&self) -> NodeStatus {
        let silent = self
            .beats
            .lines
            .iter()
            .any(|line| !Beats::is_heard(line, self.now));
        match self.beats.up {
            None => NodeStatus::Unknown,
            Some(false) => NodeStatus::Offline,
            Some(true) if silent => NodeStatus::Caution,
            Some(true) => NodeStatus::Online,
        }
    }

    /// What a heartbeat is at, as people see it.
    pub fn heartbeat_status(&self, heartbeat: usize) -> HeartbeatStatus {
        let line = &self.beats.lines[heartbeat];
        if line.heard.is_none() {
            HeartbeatStatus::Unknown
        } else if Beats::is_heard(line, self.now) {
            HeartbeatStatus::Normal
        } else if self
            .beats
            .lines
            .iter()
            .any(|line| Beats::is_heard(line, self.now))
        {
            HeartbeatStatus::Caution
        } else {
            HeartbeatStatus::Error
        }
    }
}
