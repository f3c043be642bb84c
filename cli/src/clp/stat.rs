//! `clpstat`: the state, and what is configured.

use kagami_failover::config::monitor::Target;
use kagami_failover::config::{Cluster, HeartbeatKind};
use kagami_failover::control::{Answer, Ask, ClusterReport};

use super::layout::{self, Style, footer, title};
use super::misused;
use super::options::{Known, parse};
use crate::commands::cluster::{known_node, unexpected};
use crate::commands::{Context, print_out};
use crate::exit::{DONE, Failure, Outcome};

const NAME: &str = "clpstat";
/// What is shown of the state, and of the configuration.
const STATE: [&str; 4] = ["-s", "-g", "-m", "-n"];
const CONFIGURED: [&str; 8] = [
    "-i", "--cl", "--sv", "--hb", "--svg", "--grp", "--rsc", "--mon",
];

const KNOWN: Known = Known {
    name: NAME,
    flags: &[
        "-s", "-g", "-m", "-n", "-i", "--cl", "--local", "--long", "--detail",
    ],
    values: &["-h"],
    optional: &["--sv", "--hb", "--svg", "--grp", "--rsc", "--mon"],
    words: 0,
};

/// Shows it.
///
/// # Errors
/// No manager answers; there is nothing of that name.
pub async fn run(context: &Context, arguments: &[String]) -> Outcome {
    let given = parse(&KNOWN, arguments)?;
    let shown: Vec<&str> = (STATE.into_iter().chain(CONFIGURED))
        .filter(|option| given.has(option))
        .collect();
    if shown.len() > 1 {
        return Err(misused(
            NAME,
            format!("{} don't go together", shown.join(" and ")),
        ));
    }
    let shown = shown.first().copied().unwrap_or("-s");
    let mut report = context.cluster().await?;
    if let Some(host) = given.value("-h") {
        report = seen_from(report, host)?;
    }
    let style = Style {
        long: given.has("--long"),
        local: given.has("--local"),
    };
    let text = match shown {
        "-s" => layout::summary(&report, style),
        "-g" => layout::groups(&report),
        "-m" => layout::monitors(&report),
        "-n" => layout::heartbeats(&report),
        shown => {
            let cluster = configuration(context).await?;
            configured(&cluster, &report, shown, given.value(shown))?
        }
    };
    print_out(&text)?;
    DONE
}

/// The report as the named node would give it.
fn seen_from(mut report: ClusterReport, host: &str) -> Result<ClusterReport, Failure> {
    known_node(&report, host)?;
    if let Some(node) = report.nodes.iter().find(|node| node.name == host)
        && !node.answers
    {
        return Err(Failure::refused(format!(
            "node {host} does not answer\n  next: see `clpstat` without -h"
        )));
    }
    host.clone_into(&mut report.local);
    Ok(report)
}

/// The configuration in force.
async fn configuration(context: &Context) -> Result<Cluster, Failure> {
    match context.manager().await?.ask(Ask::Configuration).await? {
        Answer::Configuration { text, .. } => Cluster::parse("cluster.toml".as_ref(), &text)
            .map_err(|error| Failure::usage(error.to_string())),
        other => Err(unexpected(&other)),
    }
}

/// One object of the configuration.
struct Item {
    /// `Group0`
    kind: &'static str,
    name: String,
    /// What is configured: (word, value).
    facts: Vec<(&'static str, String)>,
}

fn configured(
    cluster: &Cluster,
    report: &ClusterReport,
    shown: &str,
    name: Option<&str>,
) -> Result<String, Failure> {
    let (heading, items) = match shown {
        "-i" => {
            let all = [
                servers(report),
                heartbeats(cluster),
                groups(cluster),
                resources(cluster),
                monitors(cluster),
            ];
            ("CLUSTER INFORMATION", all.into_iter().flatten().collect())
        }
        "--cl" => ("CLUSTER INFORMATION", Vec::new()),
        "--sv" => ("SERVER INFORMATION", servers(report)),
        "--hb" => ("HEARTBEAT RESOURCE INFORMATION", heartbeats(cluster)),
        // There are none: a group may run on both servers, or on one.
        "--svg" => ("SERVERGROUP INFORMATION", Vec::new()),
        "--grp" => ("GROUP INFORMATION", groups(cluster)),
        "--rsc" => ("RESOURCE INFORMATION", resources(cluster)),
        _ => ("MONITOR RESOURCE INFORMATION", monitors(cluster)),
    };
    if let Some(name) = name
        && !items.iter().any(|item: &Item| item.name == name)
    {
        let names = items.iter().map(|item| item.name.as_str());
        let next = kagami_failover::config::fault::choose(name, names);
        return Err(Failure::refused(format!(
            "there is nothing of the name {name}\n  next: {next}"
        )));
    }
    let mut text = title(heading);
    text.push_str(&format!(" [Cluster Name : {}]\n", cluster.name));
    if matches!(shown, "--cl" | "-i") {
        text.push_str(&format!(
            "  Revision : {}\n  Arbiter : {}\n",
            cluster.revision, report.arbiter
        ));
    }
    let mut kind = "";
    let mut number = 0;
    for item in items {
        (number, kind) = if item.kind == kind {
            (number + 1, kind)
        } else {
            (0, item.kind)
        };
        if name.is_some_and(|name| name != item.name) {
            continue;
        }
        text.push_str(&format!("\n [{}{number} : {}]\n", item.kind, item.name));
        for (word, value) in item.facts {
            text.push_str(&format!("  {word} : {value}\n"));
        }
    }
    text.push_str(&footer());
    Ok(text)
}

fn servers(report: &ClusterReport) -> Vec<Item> {
    let item = |node: &kagami_failover::control::status::NodeReport| Item {
        kind: "Server",
        name: node.name.clone(),
        facts: vec![("Status", layout::node_state(node))],
    };
    report.nodes.iter().map(item).collect()
}

fn heartbeats(cluster: &Cluster) -> Vec<Item> {
    let item = |one: &kagami_failover::config::Heartbeat| {
        let ends: Vec<String> = match &one.kind {
            HeartbeatKind::Lan(lan) => lan
                .addresses
                .iter()
                .map(|(node, at)| format!("{node} {at}"))
                .collect(),
            HeartbeatKind::Serial(tty) => tty
                .devices
                .iter()
                .map(|(node, at)| format!("{node} {}", at.display()))
                .collect(),
            HeartbeatKind::Disk(disk) => disk
                .paths
                .iter()
                .map(|(node, at)| format!("{node} {}", at.display()))
                .collect(),
        };
        let kind = match one.kind {
            HeartbeatKind::Lan(_) => "lan",
            HeartbeatKind::Serial(_) => "serial",
            HeartbeatKind::Disk(_) => "disk",
        };
        Item {
            kind: "HB",
            name: one.name.clone(),
            facts: vec![
                ("Type", layout::heartbeat_comment(kind).to_owned()),
                ("Priority", one.priority.to_string()),
                ("Interval", one.interval.to_string()),
                ("Timeout", one.timeout.to_string()),
                ("Device", ends.join(", ")),
            ],
        }
    };
    cluster.heartbeats.iter().map(item).collect()
}

fn groups(cluster: &Cluster) -> Vec<Item> {
    let item = |one: &kagami_failover::config::Group| {
        let attributes = &one.attributes;
        Item {
            kind: "Group",
            name: one.name.clone(),
            facts: vec![
                ("Type", "failover".to_owned()),
                ("Servers", attributes.nodes.join(" > ")),
                ("Startup", word(attributes.startup)),
                ("Failover", word(attributes.failover)),
                ("Failback", word(attributes.failback)),
            ],
        }
    };
    cluster.groups.iter().map(item).collect()
}

fn word(start: kagami_failover::config::Start) -> String {
    match start {
        kagami_failover::config::Start::Automatic => "Auto".to_owned(),
        kagami_failover::config::Start::Manual => "Manual".to_owned(),
    }
}

fn resources(cluster: &Cluster) -> Vec<Item> {
    let of = |group: &kagami_failover::config::Group| {
        let group_name = group.name.clone();
        let item = move |one: &kagami_failover::config::Resource| Item {
            kind: "Resource",
            name: one.name.clone(),
            facts: vec![
                ("Group", group_name.clone()),
                ("Type", one.kind.name().to_owned()),
                ("Depends on", one.common.depends.join(", ")),
                ("Activation Retry Threshold", one.retries().to_string()),
                (
                    "Activation Retry Interval",
                    one.common.retry_pause.to_string(),
                ),
                ("Failover Threshold", one.common.failovers.to_string()),
            ],
        };
        group.resources.iter().map(item).collect::<Vec<_>>()
    };
    cluster.groups.iter().flat_map(of).collect()
}

fn monitors(cluster: &Cluster) -> Vec<Item> {
    let item = |one: &kagami_failover::config::Monitor| Item {
        kind: "Monitor",
        name: one.name.clone(),
        facts: vec![
            ("Type", one.kind.name().to_owned()),
            ("Interval", one.interval().to_string()),
            ("Timeout", one.timeout().to_string()),
            ("Retry Count", one.retries().to_string()),
            (
                "Recovery Target",
                match &one.target {
                    Target::Cluster => "All Groups".to_owned(),
                    Target::Group(group) => group.clone(),
                    Target::Resource(group, resource) => format!("{group}/{resource}"),
                },
            ),
            ("Reactivation Threshold", one.reactivations().to_string()),
            ("Failover Threshold", one.common.failovers.to_string()),
        ],
    };
    cluster.monitors.iter().map(item).collect()
}
