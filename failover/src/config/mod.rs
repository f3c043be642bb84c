//! A cluster's configuration: `cluster.toml`, the same on both nodes.
//!
//! `read` turns the text into a [`Cluster`] and refuses unknown words; [`check`](mod@check) knows
//! what words mean together, and what the nodes must have for them. Both tell everything that is
//! wrong at once. Nothing here touches a disk: what the nodes have is passed in as [`Facts`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub mod check;
pub mod cluster;
pub mod facts;
pub mod fault;
pub mod group;
pub mod monitor;
mod read;
pub mod resource;
pub mod value;

pub use cluster::{Arbiter, ArbiterKind, Heartbeat, HeartbeatKind, Severity};
pub use facts::{ArbiterFacts, Facts, MirrorFacts, NodeFacts, Program};
pub use fault::{ConfigError, Fault};
pub use group::{Group, Start};
pub use monitor::{Monitor, Target};
pub use resource::{Final, Resource};
pub use value::{Ms, Network};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Raised with each change.
    pub revision: u64,
    /// The two nodes.
    pub nodes: [String; 2],
    /// How long a node that starts waits for the other one.
    pub wait_for_node: Ms,
    /// How long a group that lost its right may take to stop.
    pub stop_bound: Ms,
    /// Counters of resources are cleared after this long without a failure.
    pub clear_after: Ms,
    /// What decides when the nodes do not hear each other.
    pub arbiter: Arbiter,
    /// How they hear each other; the first in the order of priority comes first.
    pub heartbeats: Vec<Heartbeat>,
    /// The groups, in the file's order.
    pub groups: Vec<Group>,
    /// The monitors, in the file's order.
    pub monitors: Vec<Monitor>,
    /// A script that makes sure that the other node is down.
    pub fence: Option<cluster::Fence>,
    /// A script before each recovery action.
    pub preaction: Option<cluster::Preaction>,
    /// Who gets mail.
    pub mail: BTreeMap<String, cluster::Mail>,
    /// Who gets JSON.
    pub webhooks: BTreeMap<String, cluster::Webhook>,
    /// The line of each table, by its path.
    pub lines: BTreeMap<String, usize>,
}

impl Cluster {
    /// Reads a text and checks all that can be checked without the nodes; `file` is for messages.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::parse_with(file, text, &Facts::default())
    }

    /// Reads a text and checks it, also against what is known of the nodes.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse_with(file: &Path, text: &str, facts: &Facts) -> Result<Self, ConfigError> {
        let (cluster, mut faults) = read::read(text);
        if let Some(cluster) = cluster.as_ref().filter(|_| faults.is_empty()) {
            faults = check::check(cluster);
            faults.extend(check::check_facts(cluster, facts));
        }
        faults.sort_by_key(|fault| fault.line);
        match cluster {
            Some(cluster) if faults.is_empty() => Ok(cluster),
            _ => Err(ConfigError {
                file: file.to_owned(),
                faults,
            }),
        }
    }

    /// What is not wrong, and better otherwise, as far as the nodes are known.
    pub fn warnings(&self, facts: &Facts) -> Vec<Fault> {
        check::warnings(self, facts)
    }

    /// A group by its name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// True if an arbiter decides between nodes that do not hear each other.
    pub fn has_arbiter(&self) -> bool {
        self.arbiter.kind != ArbiterKind::None
    }

    /// True if something decides between nodes that do not hear each other, or the risk that
    /// nothing does was accepted.
    pub fn may_fail_over(&self) -> bool {
        self.has_arbiter() || self.fence.is_some() || self.arbiter.accepted_risk.is_some()
    }

    /// Every program that the file names: the table, the key, the path.
    pub fn programs(&self) -> Vec<(String, &'static str, &PathBuf)> {
        let mut all = Vec::new();
        for group in &self.groups {
            for resource in &group.resources {
                let table = format!("group.{}.resource.{}", group.name, resource.name);
                let scripts = resource.scripts().into_iter();
                all.extend(scripts.map(|(key, path)| (table.clone(), key, path)));
            }
        }
        for monitor in &self.monitors {
            let table = format!("monitor.{}", monitor.name);
            let probe = match &monitor.kind {
                monitor::Kind::Script(script) => Some(&script.probe),
                _ => None,
            };
            let common = &monitor.common;
            for (key, path) in [
                ("script", common.script.as_ref()),
                ("preaction", common.preaction.as_ref()),
                ("probe", probe),
            ] {
                all.extend(path.map(|path| (table.clone(), key, path)));
            }
        }
        let fence = self.fence.as_ref().map(|f| ("fence", &f.script));
        let preaction = self.preaction.as_ref().map(|p| ("preaction", &p.script));
        for (table, path) in fence.into_iter().chain(preaction) {
            all.push((table.to_owned(), "script", path));
        }
        all
    }
}

#[cfg(test)]
mod tests;
