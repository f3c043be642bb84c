//! What a script sees: every `CLP_*`, `ARMS_*` and `KAGAMI_*` variable.
//!
//! Scripts written for CLUSTERPRO branch on these words; they are facts about that product.

use crate::config::resource::{Kind, Resource};
use crate::config::{Cluster, Group};

use super::Manager;
use super::durable::{Run, Step, Why};
use super::state::{GroupId, Node};

/// What scripts are told of the machine and the program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Where the program is installed.
    pub path: String,
    /// Where the scripts of groups are.
    pub scripts: String,
    /// `uname -s`
    pub os: String,
    /// `uname -r`
    pub os_version: String,
    /// The program's version, as in `1.2.3`.
    pub version: String,
}

type Variables = Vec<(String, String)>;

/// What the variables of a resource's script follow from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'f> {
    /// The configuration.
    pub cluster: &'f Cluster,
    /// The group.
    pub group: &'f Group,
    /// The resource; `None`: a script of the whole group.
    pub resource: Option<&'f Resource>,
    /// This node.
    pub me: Node,
    /// The group's start that this belongs to.
    pub run: Run,
    /// The group's disks are there.
    pub disk: bool,
    /// The machine.
    pub host: &'f Host,
}

fn set(to: &mut Variables, name: &str, value: impl Into<String>) {
    to.push((name.to_owned(), value.into()));
}

/// What start and stop scripts both see.
pub fn variables(facts: &Facts<'_>) -> Variables {
    let mut all = Vec::new();
    let Facts {
        cluster,
        group,
        host,
        ..
    } = *facts;
    let me = &cluster.nodes[facts.me];
    let place = group.attributes.nodes.iter().position(|node| node == me);
    let event = match facts.run.why {
        Why::Start => "START",
        Why::Failover => "FAILOVER",
        Why::Recover => "RECOVER",
    };
    let disk = if facts.disk { "SUCCESS" } else { "FAILURE" };
    let server = if place == Some(0) { "HOME" } else { "OTHER" };
    for (name, value) in [("EVENT", event), ("DISK", disk), ("SERVER", server)] {
        set(&mut all, &format!("CLP_{name}"), value);
        set(&mut all, &format!("ARMS_{name}"), value);
    }
    let priority = place.map_or(0, |place| place + 1);
    set(&mut all, "CLP_PRIORITY", priority.to_string());
    set(&mut all, "CLP_GROUPNAME", &group.name);
    let resource = facts.resource.map(|r| r.name.as_str());
    set(&mut all, "CLP_RESOURCENAME", resource.unwrap_or_default());
    if let Some(from) = facts.run.from {
        set(&mut all, "CLP_SERVER_PREV", &cluster.nodes[from]);
    }
    set(&mut all, "CLP_PATH", &host.path);
    set(&mut all, "CLP_SCRIPT_PATH", &host.scripts);
    set(&mut all, "CLP_OSNAME", &host.os);
    set(&mut all, "CLP_OSVER", &host.os_version);
    set(&mut all, "CLP_VERSION_FULL", &host.version);
    let major = host.version.split('.').next().unwrap_or_default();
    set(&mut all, "CLP_VERSION_MAJOR", major);
    set(&mut all, "KAGAMI_CLUSTER", &cluster.name);
    set(&mut all, "KAGAMI_NODE", me);
    set(&mut all, "KAGAMI_OTHER_NODE", &cluster.nodes[1 - facts.me]);
    let mut list = |name: &str, values: Vec<String>| set(&mut all, name, values.join(" "));
    let resources = &group.resources;
    list(
        "KAGAMI_MIRROR",
        group.mirrors().map(str::to_owned).collect(),
    );
    list(
        "KAGAMI_DEVICE",
        (resources.iter())
            .filter_map(|r| match &r.kind {
                Kind::Mirror(m) => Some(match &m.disk.device {
                    Some(device) => device.display().to_string(),
                    None => format!("/dev/kagami/{}", m.disk.mirror),
                }),
                Kind::Disk(d) => Some(d.device.display().to_string()),
                _ => None,
            })
            .collect(),
    );
    list(
        "KAGAMI_MOUNT",
        (resources.iter())
            .filter_map(|r| match &r.kind {
                Kind::Mirror(m) => m.mount.mount.as_ref(),
                Kind::Disk(d) => d.mount.mount.as_ref(),
                _ => None,
            })
            .map(|mount| mount.display().to_string())
            .collect(),
    );
    list(
        "KAGAMI_ADDRESS",
        (resources.iter())
            .filter_map(|r| match &r.kind {
                Kind::FloatingIp(f) => Some(f.address.address.to_string()),
                _ => None,
            })
            .collect(),
    );
    all
}

fn of(manager: &Manager, group: GroupId, at: usize) -> Variables {
    let config = &manager.cluster.groups[group];
    let record = &manager.durable.groups[group];
    let is_disk = |kind: &Kind| matches!(kind, Kind::Mirror(_) | Kind::Disk(_));
    let disk = (config.resources.iter().zip(&record.resources))
        .filter(|(config, _)| is_disk(&config.kind))
        .all(|(_, record)| record.state == super::ResourceState::Online);
    variables(&Facts {
        cluster: &manager.cluster,
        group: config,
        resource: Some(&config.resources[at]),
        me: manager.me,
        run: record.run,
        disk,
        host: &manager.host,
    })
}

/// What a resource's start script sees.
pub(super) fn start(manager: &Manager, group: GroupId, at: usize) -> Variables {
    of(manager, group, at)
}

/// What a resource's stop script sees: what its start script saw, and why it is stopped.
pub(super) fn stop(
    manager: &Manager,
    group: GroupId,
    at: usize,
    factor: &str,
    last: &str,
) -> Variables {
    let mut all = of(manager, group, at);
    set(&mut all, "CLP_FACTOR", factor);
    set(&mut all, "CLP_LASTACTION", last);
    all
}

/// What the script before a recovery action, and a recovery script, see.
pub(super) fn recovery(manager: &Manager, monitor: usize, step: Step) -> Variables {
    let config = &manager.cluster.monitors[monitor];
    let record = &manager.durable.monitors[monitor];
    let key = format!("monitor {}", config.name);
    let groups = manager.durable.groups.iter();
    let failovers = groups.map(|g| g.counts.of(&key)).max();
    let mut all = Vec::new();
    let action = match step {
        Step::Script => "RECOVERY",
        Step::Reactivate => "RESTART",
        Step::Failover => "FAILOVER",
        Step::Final => "FINALACTION",
    };
    set(&mut all, "CLP_ACTION", action);
    set(&mut all, "CLP_MONITORNAME", &config.name);
    match step {
        Step::Script => set(&mut all, "CLP_RECOVERYCOUNT", record.scripts.to_string()),
        Step::Reactivate => set(
            &mut all,
            "CLP_RESTARTCOUNT",
            record.reactivations.to_string(),
        ),
        Step::Failover => {
            // The one that is about to be made is counted with its order.
            let count = failovers.unwrap_or_default() + 1;
            set(&mut all, "CLP_FAILOVERCOUNT", count.to_string());
        }
        Step::Final => {}
    }
    set(&mut all, "KAGAMI_CLUSTER", &manager.cluster.name);
    set(&mut all, "KAGAMI_NODE", &manager.cluster.nodes[manager.me]);
    all
}

/// What a fence script sees that has to stop the other node.
pub(super) fn fence(cluster: &Cluster, me: Node) -> Variables {
    let mut all = Vec::new();
    set(&mut all, "CLP_FORCESTOP_MODE", "1");
    set(&mut all, "CLP_SERVER_LOCAL", &cluster.nodes[me]);
    set(&mut all, "CLP_SERVER_DOWN", &cluster.nodes[1 - me]);
    all
}

/// What a fence script sees that is only asked whether it would work.
pub fn fence_check(cluster: &Cluster, me: Node) -> Variables {
    let mut all = Vec::new();
    set(&mut all, "CLP_FORCESTOP_MODE", "0");
    set(&mut all, "CLP_SERVER_LOCAL", &cluster.nodes[me]);
    set(&mut all, "CLP_SERVER_DOWN", &cluster.nodes[1 - me]);
    all
}
