//! What outlives the manager: written before it is acted on, so that a manager that starts again
//! neither forgets what it has begun nor begins it twice.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::Cluster;

use super::state::{Node, OpId, ResourceState};

/// Everything that a manager must find again. The host keeps it, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    /// The machine's boot in which this was written.
    pub boot: u128,
    /// How many managers there were, this one included.
    pub life: u64,
    /// The manager has taken up its work in this boot.
    pub settled: bool,
    /// It has heard the other one in this boot.
    #[serde(default)]
    pub met: bool,
    /// The next operation's number.
    pub next_op: u64,
    /// Nobody acts. Both nodes', the newer one counts.
    pub suspended: Stamp<bool>,
    /// The whole cluster ends. Both nodes', the newer one counts.
    pub shutdown: Stamp<Option<EndKind>>,
    /// The groups.
    pub groups: Vec<GroupRecord>,
    /// The monitors.
    pub monitors: Vec<MonitorRecord>,
    /// The manager is ending.
    pub ending: Option<Ending>,
}

/// A value that both nodes write; the newer one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp<T> {
    /// Raised with each change.
    pub version: u64,
    /// Who changed it; decides between two of one version.
    pub by: Node,
    /// The value.
    pub value: T,
}

impl<T> Stamp<T> {
    /// A change by this node.
    pub fn set(&mut self, by: Node, value: T) {
        self.version += 1;
        self.by = by;
        self.value = value;
    }

    /// True if this one counts, and not the other.
    pub fn is_newer(&self, other: &Self) -> bool {
        (self.version, self.by) > (other.version, other.by)
    }
}

/// How a manager ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EndKind {
    /// The manager alone.
    Manager,
    /// The node is shut down.
    Shutdown,
    /// The node reboots.
    Reboot,
}

/// The end of a manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// How.
    pub kind: EndKind,
    /// The whole cluster ends: nothing moves to the other node.
    pub cluster: bool,
    /// Its operation.
    pub op: OpId,
    /// Nothing is left to be stopped.
    pub finished: bool,
}

/// Why a group is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// With the cluster, by an operator, by a planned move.
    #[default]
    Start,
    /// Its node, or something on it, has failed.
    Failover,
    /// Its node has failed, and came back with nobody having taken it over.
    Recover,
}

/// Why a group leaves a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// An operator, or a final action, stops it.
    #[default]
    Stop,
    /// An operator, or a failback, moves it.
    Move,
    /// A failure moves it.
    Failover,
    /// Its node, or its manager, ends.
    Shutdown,
}

/// Where a group should run: one word of the two nodes, the newer one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// It should run.
    pub wanted: bool,
    /// Where it should run, or did so last.
    pub owner: Node,
    /// Why it starts there.
    pub why: Why,
    /// Where it comes from; `None`: from nowhere.
    pub from: Option<Node>,
    /// Why it left there.
    pub cause: Cause,
}

/// Failovers so far. Both nodes count, and neither's count is lost: the higher one of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Raised when counts go back to 0.
    pub epoch: u64,
    /// By what made them: `resource NAME` or `monitor NAME`.
    pub failovers: BTreeMap<String, u32>,
}

impl Counts {
    /// What was counted by this one or the other. True if the other knew more.
    pub fn join(&mut self, other: &Self) -> bool {
        if other.epoch < self.epoch {
            return false;
        }
        if other.epoch > self.epoch {
            self.clone_from(other);
            return true;
        }
        let mut more = false;
        for (key, count) in &other.failovers {
            let mine = self.failovers.entry(key.clone()).or_default();
            if count > mine {
                *mine = *count;
                more = true;
            }
        }
        more
    }

    /// Forgets those for which `keep` is false.
    pub fn clear(&mut self, keep: impl Fn(&str) -> bool) {
        self.epoch += 1;
        self.failovers.retain(|key, _| keep(key));
    }

    /// How often this has made a group fail over.
    pub fn of(&self, key: &str) -> u32 {
        self.failovers.get(key).copied().unwrap_or_default()
    }
}

/// A group, on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Its name.
    pub name: String,
    /// Where it should run.
    pub order: Stamp<Order>,
    /// The highest version of it that this node has known.
    pub high: u64,
    /// Its failovers.
    pub counts: Counts,
    /// What its scripts see, from its start to its stop.
    pub run: Run,
    /// It ran here when the machine went down.
    pub recover: bool,
    /// An operator or a final action has stopped it since this node began to work: it does not start by itself.
    #[serde(default)]
    pub stopped: bool,
    /// This node has started alone since it began to work, and leaves it to an operator.
    #[serde(default)]
    pub dormant: bool,
    /// This node has started alone, and starts it as soon as it may: nobody has said since where it should run.
    #[serde(default)]
    pub left_to_start: bool,
    /// Its home has returned, and it goes back there.
    #[serde(default)]
    pub failback: bool,
    /// The other node's manager has ended with something of it active, and was not heard since.
    #[serde(default)]
    pub left_active: bool,
    /// Resources that are deactivated and activated again.
    pub bounce: BTreeSet<usize>,
    /// Its resources, in the configuration's order.
    pub resources: Vec<ResourceRecord>,
}

/// What a group's scripts see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The order that it was started by.
    pub version: u64,
    /// Why it was started.
    pub why: Why,
    /// Where it came from.
    pub from: Option<Node>,
}

/// A resource, on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceRecord {
    /// Its name.
    pub name: String,
    /// What it is at.
    pub state: ResourceState,
    /// What is under way.
    pub op: Option<OpId>,
    /// Activations that failed since it was last inactive.
    pub tries: u32,
    /// Its retries are used up.
    pub given_up: bool,
    /// Deactivations that failed since it was last active.
    pub stop_tries: u32,
}

/// A monitor's counters, on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorRecord {
    /// Its name.
    pub name: String,
    /// An operator has stopped it.
    pub suspended: bool,
    /// An operator lets it fail.
    pub made_to_fail: bool,
    /// Runs of its script.
    pub scripts: u32,
    /// Reactivations.
    pub reactivations: u32,
    /// The final action was carried out.
    pub final_done: bool,
    /// What is under way.
    pub recovering: Option<Recovering>,
}

/// A recovery that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovering {
    /// What will be done, or is.
    pub step: Step,
    /// The script before it; then, for a script, the script itself.
    pub op: OpId,
    /// The script before it has ended.
    pub prepared: bool,
}

/// A step of a monitor's recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    /// Its script runs.
    Script,
    /// The target is reactivated.
    Reactivate,
    /// The target's group fails over.
    Failover,
    /// The final action.
    Final,
}

impl GroupRecord {
    /// The node begins to work: what was to be as long as it did is over.
    pub fn begin_anew(&mut self) {
        (self.stopped, self.dormant, self.failback) = (false, false, false);
        self.left_to_start = false;
    }
}

impl Durable {
    /// This state in the places of a configuration: what that does not have goes, what it has and
    /// this lacks begins anew.
    #[must_use]
    pub fn fit(mut self, cluster: &Cluster) -> Self {
        let node = |name: &str| cluster.nodes.iter().position(|node| node == name);
        let mut old = std::mem::take(&mut self.groups);
        for group in &cluster.groups {
            let found = old.iter().position(|record| record.name == group.name);
            let mut record = found.map(|at| old.swap_remove(at)).unwrap_or_default();
            if found.is_none() {
                let home = group.attributes.nodes.first().and_then(|home| node(home));
                record.order.value.owner = home.unwrap_or_default();
            }
            record.name.clone_from(&group.name);
            let mut kept = std::mem::take(&mut record.resources);
            let bounced: Vec<String> = (record.bounce.iter())
                .filter_map(|at| kept.get(*at).map(|r| r.name.clone()))
                .collect();
            for (at, resource) in group.resources.iter().enumerate() {
                let found = kept.iter().position(|record| record.name == resource.name);
                let mut state = found.map(|at| kept.swap_remove(at)).unwrap_or_default();
                state.name.clone_from(&resource.name);
                record.resources.push(state);
                record.bounce.remove(&at);
                if bounced.contains(&resource.name) {
                    record.bounce.insert(at);
                }
            }
            record.bounce.retain(|at| *at < group.resources.len());
            self.groups.push(record);
        }
        let mut old = std::mem::take(&mut self.monitors);
        for monitor in &cluster.monitors {
            let found = old.iter().position(|record| record.name == monitor.name);
            let mut record = found.map(|at| old.swap_remove(at)).unwrap_or_default();
            record.name.clone_from(&monitor.name);
            self.monitors.push(record);
        }
        self
    }

    /// This state after the machine has started again: nothing is active any more.
    #[must_use]
    pub fn rebooted(mut self, boot: u128, me: Node) -> Self {
        self.boot = boot;
        (self.settled, self.met) = (false, false);
        self.ending = None;
        self.shutdown.value = None;
        for group in &mut self.groups {
            let ran = group
                .resources
                .iter()
                .any(|r| r.state != ResourceState::Offline);
            let order = &group.order.value;
            group.recover = ran && order.wanted && order.owner == me;
            group.begin_anew();
            group.bounce.clear();
            for resource in &mut group.resources {
                let name = std::mem::take(&mut resource.name);
                *resource = ResourceRecord {
                    name,
                    ..ResourceRecord::default()
                };
            }
        }
        for monitor in &mut self.monitors {
            monitor.recovering = None;
            monitor.made_to_fail = false;
        }
        self
    }
}
