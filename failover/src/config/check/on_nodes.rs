//! What the nodes must have: networks for addresses, programs, mirrors, an arbiter elsewhere.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Check, host};
use crate::config::cluster::{ArbiterKind, HeartbeatKind};
use crate::config::facts::{Facts, NodeFacts, Program};
use crate::config::fault::choose;
use crate::config::resource::Kind;

impl Check<'_> {
    pub(super) fn networks(&mut self, facts: &Facts) {
        for group in &self.cluster.groups {
            for resource in &group.resources {
                let Kind::FloatingIp(floating) = &resource.kind else {
                    continue;
                };
                let at = format!("group.{}.resource.{}", group.name, resource.name);
                for node in &group.attributes.nodes {
                    let Some(known) = facts.nodes.get(node) else {
                        continue;
                    };
                    let of_interface: Vec<_> = known
                        .networks
                        .iter()
                        .filter(|(name, _)| floating.interface.as_ref().is_none_or(|i| i == name))
                        .collect();
                    let has: Vec<String> = known
                        .networks
                        .iter()
                        .map(|(name, n)| format!("{name} {n}"))
                        .collect();
                    let has = if has.is_empty() {
                        "no network".to_owned()
                    } else {
                        has.join(", ")
                    };
                    let address = floating.address.address;
                    if let Some(interface) = floating
                        .interface
                        .as_ref()
                        .filter(|_| of_interface.is_empty())
                    {
                        let what = format!(
                            "interface: node {node} has no {interface} with an address (it has {has})"
                        );
                        self.fault(
                            &at,
                            what,
                            "name an interface of that node, or leave `interface` out",
                        );
                    } else if !of_interface
                        .iter()
                        .any(|(_, network)| network.contains(address))
                    {
                        let what = format!(
                            "address: {} is on no network of node {node} (it has {has})",
                            floating.address
                        );
                        self.fault(
                            &at,
                            what,
                            "choose an address of a network that both nodes are in",
                        );
                    }
                }
            }
        }
        for heartbeat in &self.cluster.heartbeats {
            let HeartbeatKind::Lan(lan) = &heartbeat.kind else {
                continue;
            };
            for (node, address) in &lan.addresses {
                let Some(known) = facts.nodes.get(node) else {
                    continue;
                };
                if !known
                    .networks
                    .iter()
                    .any(|(_, network)| network.address == address.ip())
                {
                    let has: Vec<String> = known
                        .networks
                        .iter()
                        .map(|(_, n)| n.address.to_string())
                        .collect();
                    let what = format!(
                        "addresses: node {node} does not have {} (it has {})",
                        address.ip(),
                        has.join(", ")
                    );
                    self.fault(
                        format!("heartbeat.{}", heartbeat.name),
                        what,
                        "name an address of that node",
                    );
                }
            }
        }
    }

    pub(super) fn programs(&mut self, facts: &Facts) {
        for (table, key, path) in self.cluster.programs() {
            for (node, known) in &facts.nodes {
                let shown = path.display();
                let (what, next) = match known.programs.get(path) {
                    None | Some(Program::Executable) => continue,
                    Some(Program::NotExecutable(mode)) => (
                        format!(
                            "{key}: {shown} is not executable on node {node} (mode {mode:04o})"
                        ),
                        format!("on {node}: chmod +x {shown}"),
                    ),
                    Some(Program::NotAFile) => (
                        format!("{key}: {shown} on node {node} is not a file"),
                        "name the script itself".to_owned(),
                    ),
                    Some(Program::Missing) => (
                        format!("{key}: node {node} has no {shown}"),
                        format!(
                            "put it there, the same as on the other node, or name it in a resource of type \"files\" (node {node})"
                        ),
                    ),
                };
                self.fault(&table, what, next);
            }
        }
    }

    pub(super) fn mirrors(&mut self, facts: &Facts) {
        for group in &self.cluster.groups {
            for resource in &group.resources {
                let Kind::Mirror(mirror) = &resource.kind else {
                    continue;
                };
                let name = &mirror.disk.mirror;
                for node in &group.attributes.nodes {
                    let known = facts
                        .nodes
                        .get(node)
                        .and_then(|facts| facts.mirrors.as_ref());
                    let Some(known) = known.filter(|known| !known.contains_key(name)) else {
                        continue;
                    };
                    let table = format!("group.{}.resource.{}", group.name, resource.name);
                    let what = format!("mirror: node {node} has no mirror \"{name}\"");
                    self.fault(table, what, choose(name, known.keys().map(String::as_str)));
                }
            }
        }
    }

    /// Both nodes look in the same place of it: two registers would grant to both.
    fn arbiter_same(&mut self, name: &str, facts: &Facts) {
        let of = |(node, known): (&String, &NodeFacts)| {
            let found = known.arbiters.as_ref()?.get(name)?;
            Some((node.clone(), found.prefix.clone()?))
        };
        let found: Vec<(String, String)> = facts.nodes.iter().filter_map(of).collect();
        if let [(one, its), (other, theirs)] = &found[..]
            && its != theirs
        {
            let what = format!(
                "name: the prefix of [arbiter.{name}] is {its} on node {one} and {theirs} on node {other}: each would have a register of its own"
            );
            self.fault(
                "arbiter",
                what,
                "write the same prefix into both kagami.toml",
            );
        }
    }

    /// The arbiter's addresses are no addresses of the nodes.
    pub(super) fn arbiter_apart(&mut self, facts: &Facts) {
        let arbiter = &self.cluster.arbiter;
        let addresses: Vec<(IpAddr, &String)> = facts
            .nodes
            .iter()
            .flat_map(|(node, f)| f.networks.iter().map(move |(_, n)| (n.address, node)))
            .collect();
        if let Some(name) = &arbiter.name {
            self.arbiter_same(name, facts);
        }
        let mut told = BTreeSet::new();
        for (node, known) in &facts.nodes {
            let mut asked: Vec<(&str, &str)> = arbiter
                .endpoints
                .iter()
                .map(|e| ("endpoints", e.as_str()))
                .collect();
            if let (Some(name), Some(arbiters)) = (&arbiter.name, &known.arbiters) {
                if let Some(its) = arbiters.get(name) {
                    let is_etcd = its.places.iter().any(|place| place.contains("://"));
                    if is_etcd != (arbiter.kind == ArbiterKind::Etcd) {
                        let (is, other) = if is_etcd {
                            ("an etcd", "etcd")
                        } else {
                            ("a witness", "witness")
                        };
                        let what =
                            format!("kind: [arbiter.{name}] in node {node}'s kagami.toml is {is}");
                        let next = format!("write kind = \"{other}\", or name another");
                        self.fault("arbiter", what, next);
                    }
                    asked.extend(its.places.iter().map(|a| ("name", a.as_str())));
                } else {
                    let what =
                        format!("name: node {node} has no [arbiter.{name}] in its kagami.toml");
                    let next = choose(name, arbiters.keys().map(String::as_str));
                    self.fault("arbiter", what, next);
                }
            }
            for (key, endpoint) in asked {
                let Ok(host) = host(endpoint).parse::<IpAddr>() else {
                    continue;
                };
                let of = addresses.iter().find(|(address, _)| *address == host);
                if let Some((_, of)) = of.filter(|_| told.insert(endpoint.to_owned())) {
                    let what = format!(
                        "{key}: {endpoint} is an address of node {of}: an arbiter that is one of the two nodes is lost with it, and the other may never go on alone"
                    );
                    self.fault("arbiter", what, "let a third machine decide");
                }
            }
        }
    }
}
