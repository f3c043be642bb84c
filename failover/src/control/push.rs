//! What a new configuration means for what runs, and whether it may take the old one's place.

use std::collections::BTreeMap;

use super::message::Refused;
use super::status::{ClusterReport, GroupReport, RunState};
use crate::config::resource::{Kind, Mode, Resource};
use crate::config::{Cluster, Group};

/// Refuses a configuration that is not the same cluster's next one.
///
/// # Errors
/// It is of another cluster or other nodes, older, or another text of the same revision.
pub fn may_follow(old: &Cluster, new: &Cluster) -> Result<(), Refused> {
    let refused = |what: String, next: &str| {
        let what = format!(
            "cluster {}: the configuration is not taken over: {what}",
            old.name
        );
        Err(Refused::new(what, next))
    };
    if new.name != old.name {
        return refused(
            format!("it is of cluster {}", new.name),
            "stop the cluster on both nodes to give it another name",
        );
    }
    if new.nodes != old.nodes {
        return refused(
            format!(
                "its nodes are {}, and not {}",
                new.nodes.join(" and "),
                old.nodes.join(" and ")
            ),
            "stop the cluster on both nodes to change its nodes, or their order",
        );
    }
    if new.revision < old.revision {
        return refused(
            format!(
                "it has revision {}, and revision {} is in force",
                new.revision, old.revision
            ),
            "begin with the file in force (/etc/kagami/cluster.toml of either node), and raise its revision",
        );
    }
    let mut unlined = (new.clone(), old.clone());
    unlined.0.lines.clear();
    unlined.1.lines.clear();
    if new.revision == old.revision && unlined.0 != unlined.1 {
        return refused(
            format!(
                "it differs from the one in force, which has revision {} as well",
                old.revision
            ),
            "raise `revision` in [cluster]",
        );
    }
    Ok(())
}

/// What of the groups that run now would be dropped, or left behind, by the new configuration: a
/// sentence each, empty where nothing is touched.
pub fn dropped(old: &Cluster, new: &Cluster, now: &ClusterReport) -> Vec<String> {
    let mut all = Vec::new();
    for group in &old.groups {
        let Some(report) = now.group(&group.name) else {
            continue;
        };
        if report.current.is_none() && report.state == RunState::Offline {
            continue;
        }
        let place = report
            .current
            .clone()
            .unwrap_or_else(|| report.owner.clone());
        match new.group(&group.name) {
            None => all.push(format!(
                "group {} is {} on {place}, and is not in it any more",
                group.name, report.state
            )),
            Some(after) => dropped_of(group, after, report, &place, &mut all),
        }
    }
    all
}

fn dropped_of(
    before: &Group,
    after: &Group,
    report: &GroupReport,
    place: &str,
    all: &mut Vec<String>,
) {
    let name = &before.name;
    if !after.attributes.nodes.iter().any(|node| node == place) {
        all.push(format!(
            "group {name} is {} on {place}, where it may not run by it",
            report.state
        ));
    }
    for (resource, state) in before.resources.iter().zip(&report.resources) {
        if matches!(state.state, RunState::Offline) {
            continue;
        }
        let full = format!("{name}/{}", resource.name);
        match after.resources.iter().find(|other| other.name == resource.name) {
            None => all.push(format!(
                "resource {full} is {} on {place}, and is not in it any more: nothing would stop it",
                state.state
            )),
            Some(other) if held(resource) != held(other) => all.push(format!(
                "resource {full} is {} on {place} as {}, and would be {}",
                state.state,
                held(resource),
                held(other)
            )),
            Some(_) => {}
        }
    }
}

/// What a resource holds while it is active: changed under it, the old one would stay behind.
fn held(resource: &Resource) -> String {
    let path = |path: &Option<std::path::PathBuf>| {
        path.as_ref()
            .map_or_else(|| "no folder".to_owned(), |path| path.display().to_string())
    };
    match &resource.kind {
        Kind::FloatingIp(ip) => format!(
            "address {} of {}",
            ip.address,
            ip.interface
                .as_deref()
                .unwrap_or("the interface in its network")
        ),
        Kind::Exec(exec) => match exec.mode {
            Mode::Sync => "a synchronous exec".to_owned(),
            Mode::Async => "an asynchronous exec".to_owned(),
        },
        Kind::Mirror(mirror) => {
            format!(
                "mirror {} on {}",
                mirror.disk.mirror,
                path(&mirror.mount.mount)
            )
        }
        Kind::Disk(disk) => format!(
            "disk {} on {}",
            disk.device.display(),
            path(&disk.mount.mount)
        ),
        Kind::Ocf(ocf) => format!("agent {}{}", ocf.agent, parameters(&ocf.parameters)),
        Kind::Systemd(unit) => format!("unit {}", unit.unit),
        Kind::Action(action) => format!("action script {}", action.script.display()),
        Kind::Service(service) => format!("service `{}`", service.start_command),
        Kind::Package(package) => format!("package {}", package.control_file.display()),
        Kind::Files(_) => "files".to_owned(),
    }
}

/// An agent's parameters say what it stops: their names, and what tells that a value has changed. The values are not told,
/// one may be a secret.
fn parameters(all: &BTreeMap<String, String>) -> String {
    if all.is_empty() {
        return " without parameters".to_owned();
    }
    let mut digest = blake3::Hasher::new();
    for word in all.iter().flat_map(|(name, value)| [name, value]) {
        digest.update(&(word.len() as u64).to_le_bytes());
        digest.update(word.as_bytes());
    }
    let names: Vec<&str> = all.keys().map(String::as_str).collect();
    let digest = digest.finalize().to_hex();
    format!(" with {} (values {})", names.join(", "), &digest[..8])
}
