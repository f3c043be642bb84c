//! Groups, resources, monitors and those who are told: names that must exist, what is used once.

use std::collections::BTreeMap;
use std::path::Path;

use super::Check;
use crate::config::fault::choose;
use crate::config::group::Group;
use crate::config::monitor::{self, Monitor, Target};
use crate::config::resource::{DISK_RISK, Disk, Kind, Mode, Reserve};

impl Check<'_> {
    pub(super) fn group(&mut self, group: &Group) {
        let at = format!("group.{}", group.name);
        let attributes = &group.attributes;
        self.known_nodes(&at, "nodes", attributes.nodes.iter().map(String::as_str));
        if attributes.nodes.is_empty() {
            self.fault(
                &at,
                "nodes: none is named",
                "name where it may run, its home first",
            );
        }
        if group.name == "cluster" {
            let what = "a group can't be named cluster: monitors name all groups so";
            self.fault(&at, what, "give it another name");
        }
        if group.resources.is_empty() {
            let next = format!("add [{at}.resource.NAME] with a type");
            self.fault(&at, "it has no resource: there is nothing to run", next);
        }
        let groups = self.cluster.groups.iter().map(|g| g.name.as_str());
        for name in &attributes.wait_for {
            if self.cluster.group(name).is_none() {
                let what = format!("wait-for: there is no group \"{name}\"");
                self.fault(&at, what, choose(name, groups.clone()));
            }
        }
        for resource in &group.resources {
            let at = format!("{at}.resource.{}", resource.name);
            match &resource.kind {
                Kind::Files(files) => {
                    for file in &files.files {
                        let mode = file.mode.as_deref().unwrap_or("0");
                        if !u32::from_str_radix(mode, 8).is_ok_and(|mode| mode <= 0o7777) {
                            let what = format!(
                                "files: mode \"{mode}\" of {} is no mode",
                                file.path.display()
                            );
                            self.fault(&at, what, "write an octal mode like \"0640\"");
                        }
                    }
                    if files.files.is_empty() {
                        self.fault(
                            &at,
                            "files: none is named",
                            "add files = [{ path = \"/…\" }]",
                        );
                    }
                }
                Kind::Mirror(mirror) => {
                    let driver = mirror.disk.driver;
                    if let Some(device) = &mirror.disk.device
                        && !driver.has(device)
                    {
                        let what =
                            format!("device: {} is none of driver {driver}", device.display());
                        let next = format!(
                            "write {}, or leave it out: then a free one is taken",
                            driver.devices()
                        );
                        self.fault(&at, what, &next);
                    }
                }
                Kind::Disk(disk) => self.shared_disk(&at, group, disk),
                Kind::Ocf(ocf) if !ocf.agent.contains(':') => {
                    let what = format!("agent: \"{}\" has no provider", ocf.agent);
                    self.fault(
                        &at,
                        what,
                        "write \"PROVIDER:NAME\", like \"heartbeat:pgsql\"",
                    );
                }
                Kind::FloatingIp(floating) => {
                    let address = floating.address.address;
                    let of_node = self
                        .lan_addresses()
                        .into_iter()
                        .find(|(a, _)| *a == address);
                    if let Some((_, node)) = of_node {
                        let what = format!("address: {address} is node {node}'s own address");
                        self.fault(&at, what, "choose an address that no machine has");
                    }
                }
                _ => {}
            }
        }
    }

    /// Where the end of a lease is all that the taker waits for, nothing but the disk itself refuses what a node
    /// writes that is still stopping.
    fn shared_disk(&mut self, at: &str, group: &Group, disk: &Disk) {
        let reserved = disk.reserve == Reserve::Always;
        let cluster = self.cluster;
        // Else the other node is surely down before anybody takes the group, a person says so, or the risk is accepted
        // for all; but a group with mirrors has the arbiters of its mirrors.
        let by_lease = cluster.has_arbiter()
            || group.is_mirrored()
                && cluster.fence.is_none()
                && cluster.arbiter.accepted_risk.is_none();
        match &disk.accepted_risk {
            Some(_) if reserved => {
                let what = "accepted-risk: the disk is reserved, so there is no such risk";
                self.fault(at, what, "take `accepted-risk` out");
            }
            Some(words) if words != DISK_RISK => {
                let what =
                    format!("accepted-risk: \"{words}\" does not accept the risk in so many words");
                let next =
                    format!("write accepted-risk = \"{DISK_RISK}\", or reserve = \"always\"");
                self.fault(at, what, next);
            }
            None if by_lease && !reserved && group.attributes.nodes.len() > 1 => {
                let what = format!(
                    "reserve: \"{}\": a node that loses the right to run may write until it has stopped (`stop-bound`, {}), and the other one mounts the disk before that",
                    disk.reserve, cluster.stop_bound
                );
                let next = format!(
                    "write reserve = \"always\" (a whole disk that knows persistent reservations), or accepted-risk = \"{DISK_RISK}\""
                );
                self.fault(at, what, next);
            }
            Some(_) | None => {}
        }
    }

    /// Mirrors, devices, addresses, mount points and synchronised files belong to one resource.
    pub(super) fn used_once(&mut self) {
        let mut users: BTreeMap<(&str, String), String> = BTreeMap::new();
        for group in &self.cluster.groups {
            for resource in &group.resources {
                let at = format!("group.{}.resource.{}", group.name, resource.name);
                let path = |path: &Path| path.display().to_string();
                let mut uses: Vec<(&str, String)> = Vec::new();
                match &resource.kind {
                    Kind::FloatingIp(f) => uses.push(("address", f.address.address.to_string())),
                    Kind::Mirror(m) => {
                        uses.push(("mirror", m.disk.mirror.clone()));
                        uses.extend(m.disk.device.iter().map(|d| ("device", path(d))));
                        uses.extend(m.mount.mount.iter().map(|m| ("mount", path(m))));
                    }
                    Kind::Disk(d) => {
                        uses.push(("device", path(&d.device)));
                        uses.extend(d.mount.mount.iter().map(|m| ("mount", path(m))));
                    }
                    Kind::Systemd(s) => uses.push(("unit", s.unit.clone())),
                    Kind::Files(f) => uses.extend(f.files.iter().map(|f| ("files", path(&f.path)))),
                    _ => {}
                }
                for (key, what) in uses {
                    let Some(other) = users.insert((key, what.clone()), at.clone()) else {
                        continue;
                    };
                    let (what, next) = match key {
                        "mirror" => (
                            format!(
                                "mirror: {what} belongs to [{other}]: a mirror is Primary where its one group runs"
                            ),
                            "put what needs it into one group, or make a mirror for each group",
                        ),
                        _ => (
                            format!("{key}: {what} belongs to [{other}]"),
                            "give each resource its own",
                        ),
                    };
                    self.fault(&at, what, next);
                }
            }
        }
    }

    /// Groups that wait for each other would wait for ever.
    pub(super) fn waits(&mut self) {
        for group in &self.cluster.groups {
            let mut path = vec![group.name.as_str()];
            let mut at = group;
            // Only the first of each group's waits is followed from its second visit on; one circle is enough.
            while let Some(next) = at
                .attributes
                .wait_for
                .iter()
                .find(|name| !path[1..].contains(&name.as_str()))
                .and_then(|name| self.cluster.group(name))
            {
                if next.name == group.name {
                    let what = format!(
                        "wait-for: a circle: {} -> {}",
                        path.join(" -> "),
                        group.name
                    );
                    let table = format!("group.{}", group.name);
                    self.fault(
                        table,
                        what,
                        "take one of these out: none of them could start first",
                    );
                    break;
                }
                path.push(&next.name);
                at = next;
            }
        }
    }

    fn known_resource(&mut self, at: &str, key: &str, group: &str, resource: &str) -> bool {
        let groups = self.cluster.groups.iter().map(|g| g.name.as_str());
        let Some(found) = self.cluster.group(group) else {
            let what = format!("{key}: there is no group \"{group}\"");
            self.fault(at, what, choose(group, groups));
            return false;
        };
        if found.position(resource).is_none() {
            let what = format!("{key}: group {group} has no resource \"{resource}\"");
            let names = found.resources.iter().map(|r| r.name.as_str());
            self.fault(at, what, choose(resource, names));
            return false;
        }
        true
    }

    pub(super) fn monitor(&mut self, monitor: &Monitor) {
        let at = format!("monitor.{}", monitor.name);
        let common = &monitor.common;
        self.known_nodes(&at, "nodes", common.nodes.iter().map(String::as_str));
        match &monitor.target {
            Target::Cluster => {}
            Target::Group(group) => {
                if self.cluster.group(group).is_none() {
                    let what = format!("target: there is no group \"{group}\"");
                    let groups = self.cluster.groups.iter().map(|g| g.name.as_str());
                    self.fault(&at, what, choose(group, groups));
                }
            }
            Target::Resource(group, resource) => {
                self.known_resource(&at, "target", group, resource);
            }
        }
        if let Some((group, resource)) = &monitor.active
            && self.known_resource(&at, "active", group, resource)
        {
            self.watched(monitor, &at, group, resource);
        }
        if monitor.interval().0 == 0 {
            self.fault(
                &at,
                "interval: 0: it would never rest",
                "write an interval like \"10s\"",
            );
        }
        match (&common.script, common.script_runs) {
            (None, runs @ 1..) => {
                let what = format!("script-runs: {runs}, and no `script`");
                self.fault(&at, what, "name the script, or take `script-runs` out");
            }
            (Some(script), 0) => {
                let what = format!("script: {} would run 0 times", script.display());
                self.fault(&at, what, "add script-runs = 1");
            }
            _ => {}
        }
        match &monitor.kind {
            monitor::Kind::Ip(ip) if ip.targets.is_empty() => {
                self.fault(
                    &at,
                    "targets: none is named",
                    "name what answers when all is well, like the router",
                );
            }
            monitor::Kind::Mirror(m) | monitor::Kind::MirrorLink(m) => {
                let used: Vec<&str> = self
                    .cluster
                    .groups
                    .iter()
                    .flat_map(Group::mirrors)
                    .collect();
                if !used.contains(&m.mirror.as_str()) {
                    let what = format!("mirror: no group has the mirror \"{}\"", m.mirror);
                    self.fault(&at, what, choose(&m.mirror, used));
                }
            }
            monitor::Kind::UserSpace(_)
                if monitor.timeout().0 < monitor.interval().0.saturating_mul(2) =>
            {
                let what = format!(
                    "timeout: the watchdog resets the node after {}, and is told of it each {}",
                    monitor.timeout(),
                    monitor.interval()
                );
                let next = "let the time-out be at least twice the interval, better many times";
                self.fault(&at, what, next);
            }
            _ => {}
        }
    }

    /// A monitor of a resource fits its kind.
    fn watched(&mut self, monitor: &Monitor, at: &str, group: &str, resource: &str) {
        let found = self
            .cluster
            .group(group)
            .and_then(|g| g.resources.iter().find(|r| r.name == resource));
        let Some(found) = found else { return };
        let is = found.kind.name();
        match (&monitor.kind, &found.kind) {
            (monitor::Kind::Pid(_), Kind::Exec(exec)) if exec.mode == Mode::Sync => {
                let what = format!(
                    "resource: the start script of {group}/{resource} ends when the service runs: there is no process to watch"
                );
                self.fault(
                    at,
                    what,
                    "write mode = \"async\" if the script's process is the service",
                );
            }
            (monitor::Kind::Pid(_), Kind::Exec(_))
            | (monitor::Kind::FloatingIp(_), Kind::FloatingIp(_)) => {}
            (monitor::Kind::Pid(_), _) => {
                let what =
                    format!("resource: {group}/{resource} is a {is}, not an asynchronous exec");
                self.fault(
                    at,
                    what,
                    "a pid monitor watches the process of an asynchronous exec",
                );
            }
            (monitor::Kind::FloatingIp(_), _) => {
                let what = format!("resource: {group}/{resource} is a {is}, not a floating-ip");
                self.fault(at, what, "name a floating-ip resource");
            }
            _ => {}
        }
    }

    pub(super) fn alerts(&mut self) {
        let cluster = self.cluster;
        let known: Vec<&str> = (self.node_names())
            .chain(cluster.groups.iter().map(|g| g.name.as_str()))
            .chain(cluster.monitors.iter().map(|m| m.name.as_str()))
            .collect();
        let mail = cluster
            .mail
            .iter()
            .map(|(n, m)| (format!("mail.{n}"), &m.objects));
        let hooks = cluster
            .webhooks
            .iter()
            .map(|(n, w)| (format!("webhook.{n}"), &w.objects));
        for (at, objects) in mail.chain(hooks) {
            for object in objects {
                if !known.contains(&object.as_str()) {
                    let what = format!("objects: there is no node, group or monitor \"{object}\"");
                    self.fault(&at, what, choose(object, known.iter().copied()));
                }
            }
        }
        for (name, mail) in &cluster.mail {
            if mail.to.is_empty() {
                self.fault(
                    format!("mail.{name}"),
                    "to: nobody is named",
                    "add to = [\"ops@example.org\"]",
                );
            }
        }
        for (name, hook) in &cluster.webhooks {
            if !hook.url.starts_with("https://") && !hook.url.starts_with("http://") {
                let what = format!("url: \"{}\" is no http or https address", hook.url);
                self.fault(format!("webhook.{name}"), what, "write \"https://…\"");
            }
        }
    }

    /// Nothing is looked for in whatever folder the manager happens to be in.
    pub(super) fn paths(&mut self) {
        for (table, key, path) in self.cluster.programs() {
            if !path.is_absolute() {
                let what = format!("{key}: {} is not an absolute path", path.display());
                self.fault(
                    table,
                    what,
                    "write the path from `/` on, the same on both nodes",
                );
            }
        }
        for group in &self.cluster.groups {
            for resource in &group.resources {
                let mount = match &resource.kind {
                    Kind::Mirror(mirror) => &mirror.mount.mount,
                    Kind::Disk(disk) => &disk.mount.mount,
                    _ => continue,
                };
                let Some(point) = mount else {
                    continue;
                };
                let up = std::path::Component::ParentDir;
                if !point.is_absolute() || point.components().any(|part| part == up) {
                    let what = format!(
                        "mount: {} is not an absolute path without `..`",
                        point.display()
                    );
                    self.fault(
                        format!("group.{}.resource.{}", group.name, resource.name),
                        what,
                        "write the path from `/` on, the same on both nodes",
                    );
                }
            }
        }
    }
}
