//! What words mean together: names that must exist, what may be used once, what a decision needs;
//! and what the nodes must have for it ([`Facts`]).

mod on_nodes;
mod run;
mod together;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;

use super::Cluster;
use super::cluster::{ACCEPTED_RISK, ArbiterKind, HeartbeatKind};
use super::facts::Facts;
use super::fault::{Fault, choose};
use super::group::Start;

/// Everything that is wrong with the file itself.
pub fn check(cluster: &Cluster) -> Vec<Fault> {
    let mut check = Check {
        cluster,
        faults: Vec::new(),
    };
    check.nodes();
    check.arbiter();
    check.heartbeats();
    for group in &cluster.groups {
        check.group(group);
    }
    check.used_once();
    check.waits();
    for monitor in &cluster.monitors {
        check.monitor(monitor);
    }
    check.alerts();
    check.paths();
    check.faults
}

/// Everything that the nodes, as far as they are known, lack for it.
pub fn check_facts(cluster: &Cluster, facts: &Facts) -> Vec<Fault> {
    let mut check = Check {
        cluster,
        faults: Vec::new(),
    };
    check.networks(facts);
    check.programs(facts);
    check.mirrors(facts);
    check.arbiter_apart(facts);
    check.faults
}

/// What is better otherwise on the nodes, as far as they are known. It keeps no manager from its work.
pub fn warnings(cluster: &Cluster, facts: &Facts) -> Vec<Fault> {
    let mut check = Check {
        cluster,
        faults: Vec::new(),
    };
    check.together(facts);
    check.faults
}

struct Check<'c> {
    cluster: &'c Cluster,
    faults: Vec<Fault>,
}

/// The host of `address:port`, `[address]:port` or a URL, if it is an address or a name.
fn host(endpoint: &str) -> &str {
    let rest = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or(rest);
    if let Some(inner) = rest.strip_prefix('[') {
        return inner.split(']').next().unwrap_or(inner);
    }
    rest.rsplit_once(':').map_or(rest, |(host, _)| host)
}

impl<'c> Check<'c> {
    fn fault(&mut self, table: impl Display, what: impl Into<String>, next: impl Into<String>) {
        let table = table.to_string();
        self.faults.push(Fault {
            line: self.cluster.lines.get(&table).copied(),
            table,
            what: what.into(),
            next: next.into(),
        });
    }

    fn node_names(&self) -> impl Iterator<Item = &'c str> + Clone + use<'c> {
        self.cluster.nodes.iter().map(String::as_str)
    }

    /// `named` are nodes of the cluster, each once.
    fn known_nodes<'n>(
        &mut self,
        table: &str,
        key: &str,
        named: impl IntoIterator<Item = &'n str>,
    ) {
        let mut seen = BTreeSet::new();
        for name in named {
            if !self.cluster.nodes.iter().any(|node| node == name) {
                let nodes = self.cluster.nodes.join("\" and \"");
                let what = format!("{key}: \"{name}\" is no node of the cluster (\"{nodes}\")");
                self.fault(table, what, choose(name, self.node_names()));
            } else if !seen.insert(name.to_owned()) {
                let what = format!("{key}: \"{name}\" is named twice");
                self.fault(table, what, "name each node once, the home node first");
            }
        }
    }

    fn nodes(&mut self) {
        let [a, b] = &self.cluster.nodes;
        if a == b {
            let what = format!("nodes: both are \"{a}\"");
            self.fault("cluster", what, "name the two machines that hold copies");
        }
        if a.is_empty() || b.is_empty() {
            let next = "write `[node] name` of each node's kagami.toml";
            self.fault("cluster", "nodes: a node without a name", next);
        }
    }

    fn arbiter(&mut self) {
        let arbiter = &self.cluster.arbiter;
        let at = "arbiter";
        match arbiter.kind {
            ArbiterKind::Witness if arbiter.name.is_none() => {
                let next = "add name = \"NAME\", as in [arbiter.NAME] of each node's kagami.toml";
                self.fault(at, "kind: a witness without `name`", next);
            }
            ArbiterKind::Etcd if arbiter.name.is_none() => {
                let next = "add name = \"NAME\", as in [arbiter.NAME] with kind = \"etcd\" of each node's kagami.toml";
                self.fault(at, "kind: etcd without `name`", next);
            }
            _ => {}
        }
        if let Some(name) = arbiter
            .name
            .as_ref()
            .filter(|n| self.cluster.nodes.contains(n))
        {
            let what = format!(
                "name: \"{name}\" is one of the two nodes: when it is lost, so is the arbiter, and the other node may never go on alone"
            );
            self.fault(
                at,
                what,
                "let a third machine decide: `kagami witness` needs next to nothing",
            );
        }
        let addresses = self.lan_addresses();
        for endpoint in &arbiter.endpoints {
            let host = host(endpoint);
            let is_node = self.cluster.nodes.iter().find(|node| *node == host);
            let by_address = host
                .parse()
                .ok()
                .and_then(|host: IpAddr| addresses.iter().find(|(address, _)| *address == host));
            let node = is_node.map(String::as_str).or(by_address.map(|(_, n)| *n));
            // Loopback is this very machine, whichever of the two reads the file.
            let loopback =
                host == "localhost" || host.parse().is_ok_and(|a: IpAddr| a.is_loopback());
            if let Some(node) = node.or(loopback.then_some("each node itself")) {
                let what = format!(
                    "endpoints: {endpoint} is {node}: an arbiter that is one of the two nodes is lost with it, and the other may never go on alone"
                );
                self.fault(at, what, "let a third machine decide");
            }
        }
        match (&arbiter.accepted_risk, arbiter.kind) {
            (Some(_), ArbiterKind::Witness | ArbiterKind::Etcd) => {
                let what = "accepted-risk: there is an arbiter, so there is no such risk";
                self.fault(at, what, "take `accepted-risk` out");
            }
            (Some(words), ArbiterKind::None) if words != ACCEPTED_RISK => {
                let what =
                    format!("accepted-risk: \"{words}\" does not accept the risk in so many words");
                let next = format!("write accepted-risk = \"{ACCEPTED_RISK}\", or name an arbiter");
                self.fault(at, what, next);
            }
            (None, ArbiterKind::None) if self.cluster.fence.is_none() => {
                let automatic = self
                    .cluster
                    .groups
                    .iter()
                    .find(|g| g.attributes.failover == Start::Automatic);
                if let Some(group) = automatic {
                    let what = format!(
                        "kind: without an arbiter nothing decides who goes on when the nodes do not hear each other, and group {} fails over by itself",
                        group.name
                    );
                    let next = format!(
                        "name an arbiter, add [fence], write failover = \"manual\" in each group, or accepted-risk = \"{ACCEPTED_RISK}\""
                    );
                    self.fault(at, what, next);
                }
            }
            _ => {}
        }
    }

    /// The addresses of the nodes that the file itself tells.
    fn lan_addresses(&self) -> Vec<(IpAddr, &'c str)> {
        let lans = self
            .cluster
            .heartbeats
            .iter()
            .filter_map(|h| match &h.kind {
                HeartbeatKind::Lan(lan) => Some(lan),
                _ => None,
            });
        lans.flat_map(|lan| lan.addresses.iter())
            .map(|(node, address)| (address.ip(), node.as_str()))
            .collect()
    }

    fn heartbeats(&mut self) {
        if self.cluster.heartbeats.is_empty() {
            let next = "add [heartbeat.lan] with type = \"lan\", priority = 1 and addresses";
            self.fault(
                "",
                "there is no [heartbeat.NAME]: the nodes can't hear each other",
                next,
            );
        }
        let mut priorities = BTreeMap::new();
        let mut ends = BTreeMap::new();
        for heartbeat in &self.cluster.heartbeats {
            let at = format!("heartbeat.{}", heartbeat.name);
            let other = priorities.insert(heartbeat.priority, &heartbeat.name);
            if let Some(other) = other {
                let what = format!(
                    "priority: {} is that of heartbeat {other}",
                    heartbeat.priority
                );
                self.fault(
                    &at,
                    what,
                    "give each heartbeat a priority of its own; the lowest is used first",
                );
            }
            if heartbeat.interval.0 == 0
                || heartbeat.timeout.0 < heartbeat.interval.0.saturating_mul(2)
            {
                let what = format!(
                    "timeout: {} of silence with one each {}: a single one that is late would be a lost node",
                    heartbeat.timeout, heartbeat.interval
                );
                self.fault(
                    &at,
                    what,
                    "let the time-out be at least twice the interval, better four times",
                );
            }
            let (key, named): (_, Vec<(&str, String)>) = match &heartbeat.kind {
                HeartbeatKind::Lan(lan) => (
                    "addresses",
                    lan.addresses
                        .iter()
                        .map(|(n, a)| (n.as_str(), a.to_string()))
                        .collect(),
                ),
                HeartbeatKind::Serial(s) => (
                    "devices",
                    s.devices
                        .iter()
                        .map(|(n, d)| (n.as_str(), d.display().to_string()))
                        .collect(),
                ),
                HeartbeatKind::Disk(d) => (
                    "paths",
                    d.paths
                        .iter()
                        .map(|(n, p)| (n.as_str(), p.display().to_string()))
                        .collect(),
                ),
            };
            self.known_nodes(&at, key, named.iter().map(|(node, _)| *node));
            for node in self.node_names() {
                if !named.iter().any(|(name, _)| *name == node) {
                    let what = format!("{key}: there is none for node {node}");
                    self.fault(&at, what, format!("add {node} = \"…\" to {key}"));
                }
            }
            for (node, end) in named {
                // Two LAN addresses that are equal are one machine; two heartbeats on one end are one.
                let whose = if key == "addresses" {
                    String::new()
                } else {
                    node.to_owned()
                };
                if let Some(other) = ends.insert((whose, end.clone()), at.clone()) {
                    let what = format!("{key}: {end} of {node} is used in [{other}], too");
                    self.fault(
                        &at,
                        what,
                        "give each heartbeat and each node an end of its own",
                    );
                }
            }
        }
    }
}
