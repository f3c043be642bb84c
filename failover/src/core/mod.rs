//! The pure core: the failover manager of one node. Events in, actions out; it knows no clock,
//! random number, file, socket or process.
//!
//! A host hands in every [`Event`] with its time through [`Manager::handle`] and carries out the
//! [`Action`]s in their order. Its duties:
//!
//! - what [`Action::Persist`] says is durable before [`Event::Persisted`] says so;
//! - an operation's number is remembered with its outcome for as long as the machine is up, and
//!   none is begun twice ([`Action::Run`], [`Action::Inquire`]);
//! - the right to run is the right to be Primary of the group's mirrors (docs/protocol.md §3); its
//!   loss is enforced by a [`guard::Guard`] in a process of its own, since the manager may be what
//!   has died;
//! - heartbeats are authenticated.
//!
//! Nothing in here is a sequence of steps that a crash could cut: what should be is a state
//! ([`durable`]), what is is a state, and each event's upkeep (`settle`) begins what brings them
//! together. `heartbeat` says whether the other node is there, `place` where a group should run,
//! `right_to_run` whether it may run here, `gate` what waits for the disk, `resource` activates and deactivates, `monitor`
//! watches, `recovery` goes through the thresholds, `command` takes an operator's word.

pub mod action;
pub mod alert;
mod command;
pub mod durable;
pub mod environment;
pub mod event;
mod gate;
pub mod guard;
mod heartbeat;
pub mod message;
mod monitor;
mod place;
mod recovery;
mod resource;
mod right_to_run;
pub mod state;
mod status;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::config::{Cluster, Severity};
use crate::planted::{Defect, planted};

pub use action::{Action, Actions, Work};
pub use alert::{Alert, Object};
pub use durable::Durable;
pub use event::{Command, Event, OpResult, Refusal, Right};
pub use message::{Phase, Snapshot};
pub use state::{GroupId, GroupStatus, MonitorStatus, Node, OpId, ResourceState, Time};

use durable::{Counts, EndKind, GroupRecord, Order, Stamp};
use environment::Host;
use right_to_run::Hold;

/// What a manager starts from.
#[derive(Debug)]
pub struct Start {
    /// The configuration, checked.
    pub cluster: Arc<Cluster>,
    /// This node.
    pub me: Node,
    /// What an earlier manager left; the default where there was none.
    pub durable: Durable,
    /// This boot of the machine.
    pub boot: u128,
    /// This life of the manager: higher than any before, for a manager that has lost its state;
    /// milliseconds since 1970 will do.
    pub incarnation: u64,
    /// What scripts are told of the machine.
    pub host: Host,
}

/// The failover manager of one node.
#[derive(Debug)]
pub struct Manager {
    cluster: Arc<Cluster>,
    me: Node,
    host: Host,
    now: Time,
    phase: Phase,
    wait_until: Time,

    // What is durable, and on its way to be.
    durable: Durable,
    dirty: bool,
    /// What the other node may be told, once it is durable.
    telling: VecDeque<(u64, Told)>,
    told: Told,
    gate: gate::Gate,

    // The other node.
    incarnation: u64,
    beats: heartbeat::Beats,
    /// One of the `ping` addresses answers.
    outside: bool,
    fence: Fence,
    /// This process has stood still, and takes in until then what has come meanwhile.
    behind_until: Time,
    /// When it wanted to be called.
    deadline: Time,
    /// The fence script has failed since the other node was lost.
    fence_failed: bool,

    // What is under way here.
    groups: Vec<Group>,
    watches: Vec<monitor::Watch>,
    next_probe: u64,
    /// Something changed in this round of upkeep.
    changed: bool,
    over: bool,
}

/// What the other node is told of this one's durable state.
#[derive(Clone, Debug)]
struct Told {
    /// It waits for the other one no more, and these are the orders that follow from it.
    at_work: bool,
    /// As [`Snapshot::met`] says it.
    met: u64,
    orders: Vec<(Stamp<Order>, Counts)>,
    unsure: Vec<bool>,
    suspended: Stamp<bool>,
    shutdown: Stamp<Option<EndKind>>,
}

/// What a fence script has said since the other node was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fence {
    /// Nothing was asked.
    Idle,
    /// It runs.
    Running(OpId),
    /// The other node is down.
    Down,
    /// It could not say so; it is asked again then.
    Again(Time),
}

/// A group, what need not outlive the manager.
#[derive(Clone, Debug)]
struct Group {
    right: Hold,
    /// The right is not asked for before.
    ask_again: Time,
    /// It was refused then.
    refused: Option<Time>,
    /// It is to be taken over, and why, once the right is granted.
    intent: Option<durable::Why>,
    ready: bool,
    diskless: bool,
    untrusted: bool,
    /// Its order is what this node remembers: the other one may know better.
    unsure: bool,
    /// An operator has started it while the other node was not heard: that node did not run it then.
    by_hand: Option<Time>,
    /// What was told since the other node was heard last of why it is not started.
    blocked_told: BTreeSet<String>,
    /// Other groups are waited for since then.
    waiting_since: Option<Time>,
    waited_in_vain: bool,
    /// The other node has not taken over the order since then.
    not_taken_over: Option<Time>,
    /// All of it is active since then.
    online_since: Option<Time>,
    /// That nobody takes it over was told.
    left_told: bool,
    /// Each resource that could not be activated is not tried again before.
    again: Vec<Time>,
    /// Each resource's needs: places in the group; and who needs it.
    depends: Vec<Vec<usize>>,
    needed_by: Vec<Vec<usize>>,
}

impl Manager {
    /// The manager, from what an earlier one left.
    pub fn new(start: Start, now: Time, out: &mut Actions) -> Self {
        let Start {
            cluster, me, boot, ..
        } = start;
        assert!(me < 2, "a cluster has two nodes");
        let fresh = start.durable.boot != boot;
        let mut durable = start.durable.fit(&cluster);
        if fresh {
            durable = durable.rebooted(boot, me);
        }
        // Whoever starts a manager that has ended wants it to work again.
        if durable
            .ending
            .is_some_and(|e| e.finished && e.kind == EndKind::Manager)
        {
            durable.ending = None;
            (durable.settled, durable.met) = (false, false);
            for group in &mut durable.groups {
                group.begin_anew();
            }
            durable.shutdown.value = None;
        }
        if planted(Defect::CountsForgotten) {
            for monitor in &mut durable.monitors {
                (monitor.scripts, monitor.reactivations) = (0, 0);
            }
        }
        let incarnation = start.incarnation.max(durable.life + 1);
        durable.life = incarnation;
        let (settled, met) = (durable.settled, durable.met);
        let beats = heartbeat::Beats::new(&cluster, met, now);
        let unsure = vec![true; cluster.groups.len()];
        let told = Told::of(&durable, unsure, Phase::Waiting, beats.met());
        let groups = cluster.groups.iter().map(Group::new).collect();
        let watches = cluster
            .monitors
            .iter()
            .map(|_| monitor::Watch::new(now))
            .collect();
        let mut manager = Self {
            me,
            host: start.host,
            now,
            phase: if settled {
                Phase::Running
            } else {
                Phase::Waiting
            },
            wait_until: now.after(cluster.wait_for_node.0),
            durable,
            dirty: true,
            telling: VecDeque::new(),
            told,
            gate: gate::Gate::default(),
            incarnation,
            beats,
            outside: cluster.arbiter.ping.is_empty(),
            fence: Fence::Idle,
            behind_until: now,
            deadline: now,
            fence_failed: false,
            groups,
            watches,
            next_probe: 1,
            changed: false,
            over: false,
            cluster,
        };
        manager.close_bounces();
        manager.take_up(out);
        manager.settle(out);
        manager
    }

    /// Takes in one event. `now` never goes back.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Actions) {
        assert!(
            now >= self.now,
            "time went back from {:?} to {now:?}",
            self.now
        );
        self.now = now;
        if self.over {
            return;
        }
        if now.since(self.deadline) >= gate::LOOK_AGAIN {
            self.on_stood_still(out);
        }
        match event {
            Event::Timer => {}
            Event::Persisted { seq, done } => self.on_persisted(seq, done, out),
            Event::Beat { heartbeat, message } => self.on_beat(heartbeat, *message, out),
            Event::OpDone { op, result } => self.on_op(op, &result, out),
            Event::OpNever { op } if planted(Defect::NeverBegunCountsAsDone) => {
                self.on_op(op, &OpResult::Done, out);
            }
            Event::OpNever { op } => self.on_op_never(op),
            Event::Right { group, change } => self.on_right(group, change, out),
            Event::Ready { group, ready } => self.groups[group].ready = ready,
            Event::Diskless { group, diskless } => self.groups[group].diskless = diskless,
            Event::Untrusted { group, untrusted } => self.groups[group].untrusted = untrusted,
            Event::Probed { probe, result } => self.on_probed(probe, result, out),
            Event::Outside { reachable } => self.outside = reachable,
            Event::Command { id, command } => self.on_command(id, command, out),
        }
        self.settle(out);
    }

    /// What an earlier manager left under way is asked after, before anything is begun.
    fn take_up(&mut self, out: &mut Actions) {
        let groups = self.durable.groups.iter();
        let ops = groups.flat_map(|g| g.resources.iter().filter_map(|r| r.op));
        let monitors = self.durable.monitors.iter();
        let recoveries = monitors.filter_map(|m| m.recovering.map(|r| r.op));
        let ops: Vec<OpId> = ops.chain(recoveries).collect();
        // An earlier manager may have held a right that it has not recorded the use of.
        for group in 0..self.groups.len() {
            if self.is_begun(group) {
                self.groups[group].right = Hold::Asked;
                self.act(Action::AskRight {
                    group,
                    fenced: false,
                    begun: true,
                });
            } else {
                self.groups[group].right = Hold::Releasing;
                self.act(Action::Stopped { group });
                self.act(Action::ReleaseRight { group });
            }
        }
        for op in ops {
            if planted(Defect::OperationsForgotten) {
                self.on_op_never(op);
            } else {
                out.push(Action::Inquire { op });
            }
        }
    }

    /// Upkeep after each event: whatever became possible is begun.
    fn settle(&mut self, out: &mut Actions) {
        // What one round changes may allow the next one more; each of these only goes forward.
        for round in 0.. {
            assert!(round < 1000, "the upkeep comes to no end");
            self.changed = false;
            self.watch_peer(out);
            self.leave_waiting(out);
            self.meet_late(out);
            self.place(out);
            self.end_words(false, out);
            for group in 0..self.groups.len() {
                self.run_group(group, out);
            }
            self.advance_recoveries(out);
            self.finish_ending(out);
            if !self.changed {
                break;
            }
        }
        self.watch_monitors(out);
        self.clear_counts();
        self.write(out);
        self.send_beats(out);
        self.open_gate(out);
        self.watch_disk(out);
        if !self.over {
            self.deadline = self.next_deadline();
            out.push(Action::SetTimer { at: self.deadline });
        }
    }

    /// The durable state, to be changed.
    fn record(&mut self) -> &mut Durable {
        self.dirty = true;
        self.changed = true;
        &mut self.durable
    }

    fn group_record(&mut self, group: GroupId) -> &mut GroupRecord {
        &mut self.record().groups[group]
    }

    fn order(&self, group: GroupId) -> &Order {
        &self.durable.groups[group].order.value
    }

    /// A new word on where a group should run.
    fn set_order(&mut self, group: GroupId, change: impl FnOnce(&mut Order)) {
        let me = self.me;
        let record = self.group_record(group);
        let order = &mut record.order;
        // A version means one word for ever.
        order.version = order.version.max(record.high);
        let mut value = order.value.clone();
        change(&mut value);
        record.stopped &= !value.wanted;
        record.left_to_start = false;
        order.set(me, value);
        self.groups[group].unsure = false;
        self.groups[group].waited_in_vain = false;
        self.groups[group].waiting_since = None;
        self.groups[group].not_taken_over = None;
    }

    /// The group is to stop, and to stay so until it is wanted again: by an operator's word, or a final action.
    fn order_stop(&mut self, group: GroupId) {
        self.set_order(group, |order| {
            order.wanted = false;
            order.cause = durable::Cause::Stop;
        });
        self.group_record(group).stopped = true;
    }

    fn next_op(&mut self) -> OpId {
        let record = self.record();
        record.next_op += 1;
        OpId(record.next_op)
    }

    #[allow(clippy::unused_self)] // it is this manager's word
    fn alert(
        &self,
        out: &mut Actions,
        severity: Severity,
        object: Object,
        what: impl Into<String>,
        cause: impl Into<String>,
    ) {
        out.push(Action::Alert(Alert {
            severity,
            object,
            what: what.into(),
            cause: cause.into(),
        }));
    }

    fn name(&self, node: Node) -> String {
        self.cluster.nodes[node].clone()
    }

    fn group_object(&self, group: GroupId) -> Object {
        Object::Group(self.cluster.groups[group].name.clone())
    }

    /// The other node.
    fn other(&self) -> Node {
        1 - self.me
    }

    fn next_deadline(&self) -> Time {
        let (mut next, now) = (self.beats.next_deadline(self.gate.persisted > 0), self.now);
        // What has come was looked at.
        let mut by = |at: Time| {
            if at > now {
                next = next.min(at);
            }
        };
        if self.phase == Phase::Waiting {
            by(self.wait_until);
        }
        if let Fence::Again(at) = self.fence {
            by(at);
        }
        by(self.behind_until);
        self.gate.deadlines(self.cluster.stop_bound.0, &mut by);
        for (group, config) in self.groups.iter().zip(&self.cluster.groups) {
            by(group.ask_again);
            group.again.iter().copied().for_each(&mut by);
            if let Some(refused) = group.refused {
                by(refused.after(right_to_run::REFUSED_FOR));
            }
            if let Some(given) = group.by_hand {
                by(given.after(self.word_lasts()));
            }
            if let Some(since) = group.waiting_since {
                by(since.after(config.attributes.wait_timeout.0));
            }
            if let Some(since) = group.online_since {
                by(since.after(self.cluster.clear_after.0));
            }
        }
        self.monitor_deadlines(&mut by);
        next.max(now.after(1))
    }
}

impl Told {
    fn of(durable: &Durable, unsure: Vec<bool>, phase: Phase, met: u64) -> Self {
        let groups = durable.groups.iter();
        Self {
            at_work: phase != Phase::Waiting,
            met,
            orders: groups
                .map(|g| (g.order.clone(), g.counts.clone()))
                .collect(),
            unsure,
            suspended: durable.suspended,
            shutdown: durable.shutdown,
        }
    }
}

impl Group {
    fn new(config: &crate::config::Group) -> Self {
        let depends: Vec<Vec<usize>> = config
            .resources
            .iter()
            .map(|r| {
                r.common
                    .depends
                    .iter()
                    .filter_map(|d| config.position(d))
                    .collect()
            })
            .collect();
        let needed_by = (0..depends.len())
            .map(|at| {
                (0..depends.len())
                    .filter(|by| depends[*by].contains(&at))
                    .collect()
            })
            .collect();
        Self {
            right: Hold::None,
            ask_again: Time(0),
            refused: None,
            intent: None,
            // Without a mirror nothing has to be ready.
            ready: !config.is_mirrored(),
            diskless: false,
            untrusted: false,
            unsure: true,
            by_hand: None,
            not_taken_over: None,
            blocked_told: BTreeSet::new(),
            waiting_since: None,
            waited_in_vain: false,
            online_since: None,
            left_told: false,
            again: vec![Time(0); depends.len()],
            depends,
            needed_by,
        }
    }
}

#[cfg(test)]
mod tests;
