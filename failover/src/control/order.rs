//! An operator's order, by names, as the core's command, by places.

use super::message::{Order, Refused};
use crate::config::Cluster;
use crate::config::fault::choose;
use crate::core::{Command, GroupId, Node};

fn group(cluster: &Cluster, name: &str) -> Result<GroupId, Refused> {
    let groups = cluster.groups.iter().map(|group| group.name.as_str());
    groups
        .clone()
        .position(|group| group == name)
        .ok_or_else(|| {
            Refused::new(
                format!("there is no group {name}"),
                choose(name, groups.clone()),
            )
        })
}

fn monitor(cluster: &Cluster, name: &str) -> Result<usize, Refused> {
    let monitors = cluster.monitors.iter().map(|monitor| monitor.name.as_str());
    monitors
        .clone()
        .position(|monitor| monitor == name)
        .ok_or_else(|| {
            Refused::new(
                format!("there is no monitor {name}"),
                choose(name, monitors.clone()),
            )
        })
}

/// A node by its name: its place.
///
/// # Errors
/// It is none of the two.
pub fn node(cluster: &Cluster, name: &str) -> Result<Node, Refused> {
    let nodes = cluster.nodes.iter().map(String::as_str);
    nodes.clone().position(|node| node == name).ok_or_else(|| {
        Refused::new(
            format!("there is no node {name}"),
            choose(name, nodes.clone()),
        )
    })
}

/// The command that an order is. `active` says where a group is active, as far as is known.
///
/// # Errors
/// A name that is not in the configuration.
pub fn command(
    cluster: &Cluster,
    order: &Order,
    active: impl Fn(GroupId) -> Option<Node>,
) -> Result<Command, Refused> {
    let place = |name: &Option<String>| name.as_deref().map(|name| node(cluster, name)).transpose();
    Ok(match order {
        Order::StartGroup {
            group: name,
            on,
            not_elsewhere,
        } => Command::Start {
            group: group(cluster, name)?,
            on: place(on)?,
            sure: *not_elsewhere,
        },
        Order::StopGroup { group: name } => Command::Stop {
            group: group(cluster, name)?,
        },
        Order::MoveGroup { group: name, to } => {
            let group = group(cluster, name)?;
            // Where it does not run the core says so, whatever the node.
            let to = place(to)?.unwrap_or_else(|| 1 - active(group).unwrap_or_default());
            Command::Move { group, to }
        }
        Order::Suspend => Command::Suspend,
        Order::Resume => Command::Resume,
        Order::SuspendMonitor { monitor: name } => Command::SuspendMonitor(monitor(cluster, name)?),
        Order::ResumeMonitor { monitor: name } => Command::ResumeMonitor(monitor(cluster, name)?),
        Order::FailMonitor {
            monitor: name,
            fails,
        } => Command::FailMonitor(monitor(cluster, name)?, *fails),
        Order::EndNode { kind } => Command::EndNode(*kind),
        Order::EndCluster { kind } => Command::EndCluster(*kind),
    })
}
