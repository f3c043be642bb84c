//! `kagami monitor`: a monitor is held, or made to fail, on one node or on both.

use kagami_failover::control::{ClusterReport, Order};
use serde_json::json;

use super::{Context, known, known_node, print_json, print_out};
use crate::args::{MonitorArgs, MonitorVerb};
use crate::exit::{DONE, Failure, Outcome};

/// Orders it.
///
/// # Errors
/// There is no such monitor or node; a node does not answer; no failover manager.
pub async fn run(context: &Context, verb: MonitorVerb) -> Outcome {
    let report = context.cluster().await?;
    let (args, words, order): (MonitorArgs, &str, fn(String) -> Order) = match verb {
        MonitorVerb::Suspend(args) => (args, "watches no more", |monitor| Order::SuspendMonitor {
            monitor,
        }),
        MonitorVerb::Resume(args) => (args, "watches again", |monitor| Order::ResumeMonitor {
            monitor,
        }),
        MonitorVerb::Fail {
            monitor,
            node,
            clear,
            timeout,
            json,
        } => {
            let node = match node {
                None if !clear => {
                    known_monitor(&report, &monitor)?;
                    Some(where_it_matters(&report, &monitor))
                }
                node => node,
            };
            let args = MonitorArgs {
                monitor,
                node,
                timeout,
                json,
            };
            if clear {
                (args, "sees again what there is", |monitor| {
                    Order::FailMonitor {
                        monitor,
                        fails: false,
                    }
                })
            } else {
                (
                    args,
                    "fails from now on; what follows is real: `--clear` ends it",
                    |monitor| Order::FailMonitor {
                        monitor,
                        fails: true,
                    },
                )
            }
        }
    };
    known_monitor(&report, &args.monitor)?;
    let nodes = match &args.node {
        Some(node) => {
            known_node(&report, node)?;
            vec![node.clone()]
        }
        None => report.nodes.iter().map(|node| node.name.clone()).collect(),
    };
    let object = format!("monitor {}", args.monitor);
    let mut done = Vec::new();
    for node in nodes {
        let order = order(args.monitor.clone());
        let ordered = context.order(&object, Some(node.clone()), order, args.timeout);
        if let Err(mut failure) = ordered.await {
            if !done.is_empty() {
                failure.words = format!(
                    "monitor {}: done on {}, and not on {node}\n{}",
                    args.monitor,
                    done.join(", "),
                    failure.words
                );
            }
            return Err(failure);
        }
        done.push(node);
    }
    if args.json {
        print_json(
            &json!({"monitor": args.monitor, "nodes": done, "outcome": "done", "text": words}),
        )?;
    } else {
        print_out(&format!(
            "monitor {}: {words} (on {})\n",
            args.monitor,
            done.join(" and ")
        ))?;
    }
    DONE
}

fn known_monitor(report: &ClusterReport, monitor: &str) -> Result<(), Failure> {
    known(
        "monitor",
        monitor,
        report.monitors.iter().map(|one| one.name.as_str()),
    )
}

/// The node where a monitor's failure has something to recover: where its target's group runs.
fn where_it_matters(report: &ClusterReport, monitor: &str) -> String {
    let target = report.monitors.iter().find(|one| one.name == monitor);
    let group = target.and_then(|one| one.target.split('/').next());
    let group = group.and_then(|name| report.group(name));
    group
        .and_then(|group| group.current.clone())
        .unwrap_or_else(|| report.local.clone())
}
