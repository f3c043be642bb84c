//! What is watched: every kind of monitor with its fields and defaults, and what its failure leads to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::group::Group;
use super::resource::{self, Final};
use super::value::Ms;

/// What all monitors have, as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Common {
    /// From the end of one probe to the next. Default: the kind's.
    pub interval: Option<Ms>,
    /// How long a probe may take. Default: the kind's.
    pub timeout: Option<Ms>,
    /// Failures that are tried again before they count. Default: the kind's.
    pub retries: Option<u32>,
    /// From the moment it may begin to its first probe.
    pub start_delay: Ms,
    /// It watches while this `GROUP/RESOURCE` is active; without it always.
    pub active: Option<String>,
    /// Where it watches; without it on all nodes.
    pub nodes: Vec<String>,
    /// What is recovered: `cluster`, a `GROUP`, or `GROUP/RESOURCE`.
    pub target: String,
    /// Runs first, `script-runs` times.
    pub script: Option<PathBuf>,
    /// How often `script` runs.
    pub script_runs: u32,
    /// How long `script` may take.
    pub script_timeout: Ms,
    /// The target is reactivated this often, on each node. Default: the kind's.
    pub reactivations: Option<u32>,
    /// Then the group fails over this often.
    pub failovers: u32,
    /// Then this.
    #[serde(rename = "final")]
    pub final_action: Final,
    /// Counters are cleared after this long without a failure.
    pub clear_after: Ms,
    /// A probe that timed out is not tried again: it counts at once.
    pub no_retry_after_timeout: bool,
    /// A failure by time-out is told and not recovered.
    pub no_recovery_after_timeout: bool,
    /// The final action is not carried out when no other healthy node is left.
    pub final_needs_other_node: bool,
    /// Runs before each recovery action; without it the cluster's `[preaction]`.
    pub preaction: Option<PathBuf>,
}

impl Common {
    /// The keys that every kind has.
    pub const KEYS: &[&str] = &[
        "interval",
        "timeout",
        "retries",
        "start-delay",
        "active",
        "nodes",
        "target",
        "script",
        "script-runs",
        "script-timeout",
        "reactivations",
        "failovers",
        "final",
        "clear-after",
        "no-retry-after-timeout",
        "no-recovery-after-timeout",
        "final-needs-other-node",
        "preaction",
    ];
}

impl Default for Common {
    fn default() -> Self {
        Self {
            interval: None,
            timeout: None,
            retries: None,
            start_delay: Ms(0),
            active: None,
            nodes: Vec::new(),
            target: String::new(),
            script: None,
            script_runs: 0,
            script_timeout: Ms::seconds(60),
            reactivations: None,
            failovers: 1,
            final_action: Final::Nothing,
            clear_after: Ms::seconds(3600),
            no_retry_after_timeout: false,
            no_recovery_after_timeout: false,
            final_needs_other_node: false,
            preaction: None,
        }
    }
}

/// What a monitor's failure is recovered on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// All groups of the node.
    Cluster,
    /// A group.
    Group(String),
    /// A resource of a group, and what depends on it.
    Resource(String, String),
}

/// A monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// Its name.
    pub name: String,
    /// What all monitors have.
    pub common: Common,
    /// What is recovered.
    pub target: Target,
    /// It watches while this resource of this group is active; `None`: always.
    pub active: Option<(String, String)>,
    /// What it does.
    pub kind: Kind,
}

impl Monitor {
    /// From the end of one probe to the next.
    pub fn interval(&self) -> Ms {
        self.common.interval.unwrap_or(self.kind.defaults().0)
    }

    /// How long a probe may take. 0: it is not given up (a process that is there, or is not).
    pub fn timeout(&self) -> Ms {
        self.common.timeout.unwrap_or(self.kind.defaults().1)
    }

    /// Failures that are tried again before they count.
    pub fn retries(&self) -> u32 {
        self.common.retries.unwrap_or(self.kind.defaults().2)
    }

    /// How often the target is reactivated, on each node.
    pub fn reactivations(&self) -> u32 {
        // No copy becomes good, and no session comes back, by stopping a service and starting it again.
        let of_kind = match &self.kind {
            Kind::Mirror(_) | Kind::MirrorLink(_) => 0,
            _ => 3,
        };
        self.common.reactivations.unwrap_or(of_kind)
    }
}

/// What a monitor does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `ip`
    Ip(Ip),
    /// `nic`
    Nic(Nic),
    /// `disk`
    Disk(Disk),
    /// `mirror`
    Mirror(Mirror),
    /// `mirror-link`
    MirrorLink(Mirror),
    /// `pid`
    Pid(Of),
    /// `floating-ip`
    FloatingIp(Of),
    /// `user-space`
    UserSpace(UserSpace),
    /// `tcp`
    Tcp(Tcp),
    /// `http`
    Http(Http),
    /// `database`
    Database(Database),
    /// `agent`
    Agent(Agent),
    /// `script`
    Script(Script),
    /// Not in the file: a resource that is checked as its own contract says (action, service, package).
    Resource(Of),
}

impl Kind {
    /// How the file spells the kinds.
    pub const NAMES: &[&str] = &[
        "ip",
        "nic",
        "disk",
        "mirror",
        "mirror-link",
        "pid",
        "floating-ip",
        "user-space",
        "tcp",
        "http",
        "database",
        "agent",
        "script",
    ];

    /// How the file spells this kind.
    pub fn name(&self) -> &'static str {
        Self::NAMES[match self {
            Self::Resource(_) => return "resource",
            Self::Ip(_) => 0,
            Self::Nic(_) => 1,
            Self::Disk(_) => 2,
            Self::Mirror(_) => 3,
            Self::MirrorLink(_) => 4,
            Self::Pid(_) => 5,
            Self::FloatingIp(_) => 6,
            Self::UserSpace(_) => 7,
            Self::Tcp(_) => 8,
            Self::Http(_) => 9,
            Self::Database(_) => 10,
            Self::Agent(_) => 11,
            Self::Script(_) => 12,
        }]
    }

    /// Interval, time-out, retries, where nothing is set.
    pub fn defaults(&self) -> (Ms, Ms, u32) {
        let (interval, timeout, retries) = match self {
            Self::Pid(_) | Self::Resource(_) => (5, 60, 0),
            Self::Ip(_) => (30, 30, 0),
            Self::Nic(_) => (10, 60, 3),
            Self::Disk(_) | Self::MirrorLink(_) | Self::Agent(_) | Self::Script(_) => (60, 120, 0),
            Self::FloatingIp(_) => (60, 180, 1),
            Self::Mirror(_) => (10, 60, 0),
            Self::UserSpace(_) => (3, 90, 0),
            Self::Tcp(_) | Self::Http(_) | Self::Database(_) => (60, 120, 2),
        };
        (Ms::seconds(interval), Ms::seconds(timeout), retries)
    }
}

/// The monitors that nobody writes: an action script is checked every check interval, a service is
/// probed and restarted so often in its retry interval, a package moves when a service of it ends.
/// Each is named `GROUP/RESOURCE`, which no other monitor can be.
pub(super) fn of_contracts(group: &Group) -> Vec<Monitor> {
    use resource::Kind as R;
    let of = |resource: &resource::Resource| {
        let usual = Common::default();
        let (interval, timeout, reactivations, clear_after) = match &resource.kind {
            // Oracle Clusterware's RESTART_ATTEMPTS.
            R::Action(own) => (own.check_interval, own.timeouts.check, 1, usual.clear_after),
            R::Service(own) => (
                own.probe_interval,
                own.timeouts.check,
                own.retry_count,
                own.retry_interval,
            ),
            // Its services are restarted by their own words, SERVICE_RESTART.
            R::Package(own) => (Ms::seconds(5), own.timeouts.check, 0, usual.clear_after),
            _ => return None,
        };
        let name = format!("{}/{}", group.name, resource.name);
        let place = (group.name.clone(), resource.name.clone());
        Some(Monitor {
            common: Common {
                interval: Some(interval),
                timeout: Some(timeout),
                active: Some(name.clone()),
                target: name.clone(),
                reactivations: Some(reactivations),
                failovers: resource.common.failovers,
                clear_after,
                ..usual
            },
            target: Target::Resource(place.0.clone(), place.1.clone()),
            active: Some(place),
            kind: Kind::Resource(Of {
                resource: name.clone(),
            }),
            name,
        })
    };
    group.resources.iter().filter_map(of).collect()
}

/// Pings: it fails when none of the targets answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ip {
    /// Who is asked.
    pub targets: Vec<IpAddr>,
}

/// The state of an interface's link.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Nic {
    /// Which.
    pub interface: String,
}

/// Reads, or reads and writes, past the page cache.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Disk {
    /// A device, which is read, or a file, which may be written.
    pub path: PathBuf,
    /// It is written, too.
    #[serde(default)]
    pub write: bool,
}

/// A mirror's copies, or its link.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mirror {
    /// The mirror's name.
    pub mirror: String,
}

/// A resource: the process of an asynchronous exec, or an address that is still there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Of {
    /// `GROUP/RESOURCE`
    pub resource: String,
}

/// A stalled user space resets the node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct UserSpace {
    /// The watchdog's device.
    #[serde(default = "watchdog")]
    pub device: PathBuf,
}

fn watchdog() -> PathBuf {
    PathBuf::from("/dev/watchdog")
}

/// A TCP port that takes connections.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Tcp {
    /// `address:port` or `name:port`
    pub address: String,
}

/// An HTTP request that is answered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Http {
    /// What is asked for.
    pub url: String,
    /// The status that it must have.
    #[serde(default = "ok_status")]
    pub status: u16,
}

fn ok_status() -> u16 {
    200
}

/// Connects, writes a row in a table of the monitor, reads it back.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Database {
    /// Which kind.
    pub engine: Engine,
    /// `address:port`, `name:port`, or the path of a socket.
    pub address: String,
    /// The database.
    pub database: String,
    /// Who connects.
    pub user: String,
    /// Where the password is.
    pub password_file: Option<PathBuf>,
    /// The monitor's table.
    #[serde(default = "monitor_table")]
    pub table: String,
}

fn monitor_table() -> String {
    "kagami_monitor".to_owned()
}

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// `PostgreSQL`
    Postgresql,
    /// `MySQL`, `MariaDB`
    Mysql,
}

/// The monitor verb of an OCF agent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Agent {
    /// `PROVIDER:NAME`
    pub agent: String,
    /// Its `OCF_RESKEY_*`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}

/// A script that ends with 0 while all is well.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Script {
    /// The script.
    pub probe: PathBuf,
}
