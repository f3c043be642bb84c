//! The state of a cluster as documents: what one node knows ([`NodeView`]), and what both nodes'
//! views together say ([`ClusterReport`]), which is what people and programs are shown.
//!
//! Fields are only ever added to a report of one [`SCHEMA`].

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The version of [`ClusterReport`].
pub const SCHEMA: u32 = 1;

/// Defines a state with its words: for people, and for JSON with a dash for the blank.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $words:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$of])* $variant,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// As people are told.
            pub fn words(self) -> &'static str {
                match self { $(Self::$variant => $words,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.words())
            }
        }
    };
}

words! {
    /// What a node is at.
    NodeState {
        /// All heartbeats are heard.
        Online = "online",
        /// Some heartbeats are silent.
        Caution = "caution",
        /// Its manager has ended, or no heartbeat is heard.
        Offline = "offline",
        /// It was not heard yet.
        #[default]
        Unknown = "unknown",
    }
}

words! {
    /// What a heartbeat is at, seen from one node.
    BeatState {
        /// Heard.
        Normal = "normal",
        /// Silent, and others are not.
        Caution = "caution",
        /// Silent, as all are.
        Error = "error",
        /// Not used by this node.
        Unused = "unused",
        /// Not heard yet, or the node does not say.
        #[default]
        Unknown = "unknown",
    }
}

words! {
    /// What a group or resource is at.
    RunState {
        /// Nothing of it is active.
        Offline = "offline",
        /// Being activated, or waiting for the right to run.
        OnlinePending = "online pending",
        /// Active.
        Online = "online",
        /// Being deactivated.
        OfflinePending = "offline pending",
        /// Could not be activated.
        OnlineFailure = "online failure",
        /// Could not be deactivated.
        OfflineFailure = "offline failure",
        /// The node where it would be does not say.
        #[default]
        Unknown = "unknown",
    }
}

words! {
    /// What a monitor is at, on one node or on the worse of both.
    WatchState {
        /// It has nothing to watch now.
        Unused = "unused",
        /// All is well.
        Normal = "normal",
        /// An operator has stopped it.
        Suspended = "suspended",
        /// Failures that do not count yet, a warning, or a failure on one node.
        Caution = "caution",
        /// A failure.
        Error = "error",
        /// It has not looked yet, or the node does not say.
        #[default]
        Unknown = "unknown",
    }
}

words! {
    /// What a manager is at.
    ManagerPhase {
        /// It has just started and waits for the other node.
        Waiting = "waiting for the other node",
        /// At work.
        Running = "running",
        /// It stops its groups.
        Ending = "ending",
        /// It has stopped them.
        Gone = "gone",
        /// The node does not say.
        #[default]
        Unknown = "unknown",
    }
}

/// What one node knows, of itself and of the other one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub node: String,
    /// Of the program.
    pub version: String,
    /// Of its manager.
    pub pid: u32,
    /// The revision of the configuration in force there.
    pub revision: u64,
    /// What its manager is at.
    pub phase: ManagerPhase,
    /// Nobody acts.
    pub suspended: bool,
    /// What it thinks of the other node.
    pub other: NodeState,
    /// What it hears, in the configuration's order.
    pub heartbeats: Vec<BeatState>,
    /// Its groups, in the configuration's order.
    pub groups: Vec<GroupView>,
    /// Its monitors, in the configuration's order.
    pub monitors: Vec<MonitorView>,
    /// The arbiter, where the shell knows.
    #[serde(default)]
    pub arbiter: Option<bool>,
}

/// A group on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// What it is at there.
    pub state: RunState,
    /// Its lease has ended, and it waits for permission.
    pub frozen: bool,
    /// Where it should run, as far as that node knows.
    pub order: OrderView,
    /// Its resources, in the configuration's order.
    pub resources: Vec<RunState>,
    /// Failovers so far, by what made them: `resource NAME`, `monitor NAME`.
    pub failovers: BTreeMap<String, u32>,
    /// What the heartbeats say of it on the other node; none while that is not heard.
    pub other: Option<Seen>,
}

/// Where a group should run: one word of both nodes, the newer one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderView {
    /// Raised with each change.
    pub version: u64,
    /// Who changed it; decides between two of one version.
    pub by: usize,
    /// It should run.
    pub wanted: bool,
    /// Where it should run, or did so last: a node's place in the configuration.
    pub owner: usize,
}

/// A group on the other node, as heartbeats tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Something of it is active.
    pub active: bool,
    /// All of it is active.
    pub online: bool,
    /// What it needs is ready: the copies of its mirrors are in sync.
    pub ready: bool,
}

/// A monitor on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorView {
    /// What it is at there.
    pub state: WatchState,
    /// An operator lets it fail.
    pub made_to_fail: bool,
    /// Reactivations so far.
    pub reactivations: u32,
}

/// A cluster, as both nodes together see it. The document of `kagami cluster status --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterReport {
    /// [`SCHEMA`]
    pub schema: u32,
    /// When it was made, milliseconds since 1970.
    pub time_ms: u64,
    /// The cluster's name.
    pub cluster: String,
    /// The revision of its configuration, on the node that was asked.
    pub revision: u64,
    /// The node that was asked.
    pub local: String,
    /// Nobody acts; the services go on.
    pub suspended: bool,
    /// What decides when the nodes do not hear each other: `witness NAME`, `etcd NAME`, `none`.
    pub arbiter: String,
    /// Whether the arbiter answers; none: not known.
    pub arbiter_answers: Option<bool>,
    /// The nodes, in the configuration's order.
    pub nodes: Vec<NodeReport>,
    /// The heartbeats, in the order of priority.
    pub heartbeats: Vec<HeartbeatReport>,
    /// The groups, in the configuration's order.
    pub groups: Vec<GroupReport>,
    /// The monitors, in the configuration's order.
    pub monitors: Vec<MonitorReport>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// What it is at.
    pub state: NodeState,
    /// What its manager is at.
    pub phase: ManagerPhase,
    /// It has answered for itself; else what is said of it is what the other one knows.
    pub answers: bool,
    /// The revision of the configuration in force there; none: it does not say.
    pub revision: Option<u64>,
    /// Its program's version; none: it does not say.
    pub version: Option<String>,
}

/// A heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReport {
    /// Its name.
    pub name: String,
    /// `lan`, `serial`, `disk`
    pub kind: String,
    /// Lower is used first.
    pub priority: u32,
    /// What it is at, by the node that listens.
    pub nodes: BTreeMap<String, BeatState>,
}

/// A group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    /// Its name.
    pub name: String,
    /// What it is at: where it runs, or where it should.
    pub state: RunState,
    /// The node where something of it is active; none: nowhere, as far as is known.
    pub current: Option<String>,
    /// It should run.
    pub wanted: bool,
    /// Where it should run, or did so last.
    pub owner: String,
    /// The version of that word.
    pub order: u64,
    /// Its lease has ended, and it waits for permission.
    pub frozen: bool,
    /// Where it may run, its home first.
    pub nodes: Vec<String>,
    /// What it is at, by node.
    pub on: BTreeMap<String, RunState>,
    /// The other node could take it over: the copies of its mirrors are in sync. None: not known.
    pub other_ready: Option<bool>,
    /// Failovers so far, by what made them: `resource NAME`, `monitor NAME`.
    pub failovers: BTreeMap<String, u32>,
    /// Its resources, each after those that it depends on.
    pub resources: Vec<ResourceReport>,
}

/// A resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceReport {
    /// Its name.
    pub name: String,
    /// Its kind, as the configuration spells it.
    pub kind: String,
    /// What it is at where the group is, or should be.
    pub state: RunState,
    /// What it is at, by node.
    pub on: BTreeMap<String, RunState>,
}

/// A monitor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorReport {
    /// Its name.
    pub name: String,
    /// Its kind, as the configuration spells it.
    pub kind: String,
    /// What it is at: normal where it watches, caution when it warns, or fails on one of two nodes.
    pub state: WatchState,
    /// What it recovers, as the configuration spells it.
    pub target: String,
    /// An operator lets it fail, on one node at least.
    pub made_to_fail: bool,
    /// What it is at, by node.
    pub on: BTreeMap<String, WatchState>,
}

impl ClusterReport {
    /// A group by its name.
    pub fn group(&self, name: &str) -> Option<&GroupReport> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// The node that is not the local one.
    pub fn other(&self) -> Option<&NodeReport> {
        self.nodes.iter().find(|node| node.name != self.local)
    }
}
