//! `clpgrp`: starts, stops and moves groups, and waits for them.

use std::time::Duration;

use kagami_failover::control::{ClusterReport, Order};

use super::options::{Given, Known, parse};
use crate::commands::cluster::group::{bring_down, bring_up, elsewhere, known_group};
use crate::commands::cluster::known_node;
use crate::commands::{Context, print_out};
use crate::exit::{DONE, Failure, Outcome};

const NAME: &str = "clpgrp";
const KNOWN: Known = Known {
    name: NAME,
    flags: &["-s", "-t", "-m", "-n", "-f"],
    values: &["-a", "-h", "--apito"],
    optional: &[],
    words: 1,
};

/// Without a time-out of its own: as long as an exec may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Does it to the group that is named, else to all that it concerns.
///
/// # Errors
/// One of them did not get there.
pub async fn run(context: &Context, arguments: &[String]) -> Outcome {
    let given = parse(&KNOWN, arguments)?;
    let verb = given.one_of(NAME, &["-s", "-t", "-m", "-n"])?;
    let limit = given
        .number(NAME, "--apito")?
        .map_or(PATIENCE, Duration::from_secs);
    let report = context.cluster().await?;
    let host = given.value("-h").unwrap_or(&report.local).to_owned();
    known_node(&report, &host)?;
    if let Some(node) = given.value("-a") {
        known_node(&report, node)?;
    }
    if let Some(group) = given.words.first() {
        known_group(&report, group)?;
    }
    if verb == "-n" {
        return current(&report, given.words.first());
    }
    let groups = concerned(&report, &given, verb, &host);
    let mut last = DONE;
    for group in groups {
        let order = order(&report, &given, verb, &host, &group);
        let ended = match order {
            Order::StopGroup { .. } => bring_down(context, &group, order, limit).await,
            Order::StartGroup { on: ref to, .. } | Order::MoveGroup { ref to, .. } => {
                let to = to.clone();
                bring_up(context, &group, order, to, limit).await
            }
            _ => continue,
        };
        match ended {
            Ok(words) => print_out(&format!("group {group}: {words}\n"))?,
            // One that fails does not keep the others from moving.
            Err(failure) => {
                if let Err(earlier) = last {
                    anstream::eprintln!("{NAME}: {}", earlier.words);
                }
                last = Err(failure);
            }
        }
    }
    last
}

/// `clpgrp -n GROUP`: where it is.
fn current(report: &ClusterReport, group: Option<&String>) -> Outcome {
    let Some(group) = group else {
        return Err(super::misused(NAME, "-n: a group is missing"));
    };
    match report.group(group).and_then(|group| group.current.as_ref()) {
        Some(node) => print_out(&format!("{node}\n")).and(DONE),
        None => Err(Failure::refused(format!(
            "group {group}: it runs nowhere\n  next: start it"
        ))),
    }
}

/// The named group, or those of the node that the verb can be said of.
fn concerned(report: &ClusterReport, given: &Given, verb: &str, host: &str) -> Vec<String> {
    if let Some(group) = given.words.first() {
        return vec![group.clone()];
    }
    let here = |group: &&kagami_failover::control::status::GroupReport| match verb {
        "-s" => group.current.is_none() && group.nodes.iter().any(|node| node == host),
        _ => group.current.as_deref() == Some(host),
    };
    report
        .groups
        .iter()
        .filter(here)
        .map(|group| group.name.clone())
        .collect()
}

fn order(report: &ClusterReport, given: &Given, verb: &str, host: &str, group: &str) -> Order {
    let group = group.to_owned();
    let named = given.value("-a").map(str::to_owned);
    match verb {
        "-s" => Order::StartGroup {
            group,
            on: Some(named.unwrap_or_else(|| host.to_owned())),
            not_elsewhere: given.has("-f"),
        },
        "-t" => Order::StopGroup { group },
        _ => Order::MoveGroup {
            to: named.or_else(|| elsewhere(report, &group)),
            group,
        },
    }
}
