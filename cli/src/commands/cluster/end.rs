//! The end of a node or of the cluster: its groups first, then the managers, then the machines.

use kagami_failover::control::status::{NodeReport, NodeState};
use kagami_failover::control::{ClusterReport, Order};
use kagami_failover::core::durable::EndKind;
use serde_json::json;

use super::{Context, confirm, known_node, print_dry_run, print_json, print_out};
use crate::args::{EndArgs, NodeEndArgs, NodeVerb};
use crate::exit::{DONE, Outcome};

/// What ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The failover manager alone.
    Stop,
    /// The machine, too.
    Shutdown,
    /// The machine, and it comes back.
    Reboot,
}

impl Kind {
    /// As the core calls it.
    pub fn core(self) -> EndKind {
        match self {
            Self::Stop => EndKind::Manager,
            Self::Shutdown => EndKind::Shutdown,
            Self::Reboot => EndKind::Reboot,
        }
    }

    fn of_node(self) -> &'static str {
        match self {
            Self::Stop => "its failover manager ends",
            Self::Shutdown => "the machine is shut down",
            Self::Reboot => "the machine reboots",
        }
    }

    fn of_cluster(self) -> &'static str {
        match self {
            Self::Stop => "both failover managers end",
            Self::Shutdown => "both machines are shut down",
            Self::Reboot => "both machines reboot",
        }
    }
}

/// `kagami node`
///
/// # Errors
/// Not confirmed, refused, no failover manager.
pub async fn node(context: &Context, verb: NodeVerb) -> Outcome {
    let (kind, args): (_, NodeEndArgs) = match verb {
        NodeVerb::Stop(args) => (Kind::Stop, args),
        NodeVerb::Shutdown(args) => (Kind::Shutdown, args),
        NodeVerb::Reboot(args) => (Kind::Reboot, args),
    };
    let report = context.cluster_within(args.end.timeout).await?;
    let node = args.node.unwrap_or_else(|| report.local.clone());
    known_node(&report, &node)?;
    let what = format!(
        "node {node}: {}, then {}",
        leaving(&report, &node),
        kind.of_node()
    );
    if args.end.danger.dry_run {
        return print_dry_run("node", &node, &what, args.end.json);
    }
    confirm(&what, args.end.danger.yes)?;
    let order = Order::EndNode { kind: kind.core() };
    let object = format!("node {node}");
    (context.order(&object, Some(node.clone()), order, args.end.timeout)).await?;
    if args.end.json {
        print_json(&json!({"node": node, "outcome": "started", "text": what}))?;
    } else {
        print_out(&format!(
            "node {node}: ordered; `kagami cluster status` on the other node shows how it goes\n"
        ))?;
    }
    DONE
}

/// What becomes of the groups that run on a node which ends.
fn leaving(report: &ClusterReport, node: &str) -> String {
    let all: Vec<String> = (report.groups.iter())
        .filter(|group| group.current.as_deref() == Some(node))
        .map(|group| {
            let other = group.nodes.iter().find(|name| *name != node);
            let up = |name: &String| {
                let mut nodes = report.nodes.iter();
                nodes.any(|node| node.name == *name && node.state.words() != "offline")
            };
            match other {
                Some(other) if up(other) && group.other_ready != Some(false) => {
                    format!("group {} moves to {other}", group.name)
                }
                _ => format!("group {} STOPS: no other node can run it", group.name),
            }
        })
        .collect();
    if all.is_empty() {
        "no group runs there".to_owned()
    } else {
        all.join(", ")
    }
}

/// `kagami cluster stop`, `shutdown`, `reboot`
///
/// # Errors
/// Not confirmed, refused, not taken in time, no failover manager; the other node could not be told, and this one ends.
pub async fn cluster(context: &Context, kind: Kind, args: &EndArgs) -> Outcome {
    let report = context.cluster_within(args.timeout).await?;
    let running: Vec<&str> = (report.groups.iter())
        .filter(|group| group.current.is_some())
        .map(|group| group.name.as_str())
        .collect();
    let groups = match running[..] {
        [] => "no group runs".to_owned(),
        [one] => format!("group {one} stops"),
        _ => format!("groups {} stop", running.join(", ")),
    };
    let heard = |state| matches!(state, NodeState::Online | NodeState::Caution);
    let unheard = |node: &&NodeReport| !node.answers && !heard(node.state);
    let unheard = report.other().filter(unheard).map(|node| {
        let node = &node.name;
        format!("; node {node} is not heard: if it can't be told, it goes on, and may take the groups over")
    });
    let what = format!(
        "cluster {}: {groups}, then {}{}",
        report.cluster,
        kind.of_cluster(),
        unheard.unwrap_or_default()
    );
    if args.danger.dry_run {
        return print_dry_run("cluster", &report.cluster, &what, args.json);
    }
    confirm(&what, args.danger.yes)?;
    let order = Order::EndCluster { kind: kind.core() };
    let object = format!("cluster {}", report.cluster);
    context.order(&object, None, order, args.timeout).await?;
    if args.json {
        print_json(&json!({"cluster": report.cluster, "outcome": "started", "text": what}))?;
    } else {
        print_out(&format!("cluster {}: ordered\n", report.cluster))?;
    }
    DONE
}
