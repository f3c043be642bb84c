//! `kagami cluster status`: both nodes, what runs where, what watches it.

use std::io::IsTerminal as _;

use kagami_failover::control::status::{NodeState, RunState};
use kagami_failover::control::{Answer, Ask, ClusterReport};

use super::{Context, known_node, print_json, print_out, unexpected};
use crate::args::ClusterStatusArgs;
use crate::exit::{DONE, Failure, Outcome, Status};
use crate::render::Look;
use crate::render::cluster::{Parts, screen};

/// Shows the state, once or again and again.
///
/// # Errors
/// There is no failover manager.
pub async fn run(context: &Context, args: &ClusterStatusArgs) -> Outcome {
    if args.watch {
        return watch(context, args).await;
    }
    let report = only(context.cluster().await?, args)?;
    if args.json {
        print_json(&report)?;
    } else {
        print_out(&screen(&report, parts(args), &Look::of_stdout()))?;
    }
    if args.exit_code {
        Ok(exit_code(&report))
    } else {
        DONE
    }
}

fn parts(args: &ClusterStatusArgs) -> Parts {
    let all = !(args.groups || args.monitors || args.heartbeats);
    Parts {
        nodes: all,
        heartbeats: all || args.heartbeats,
        groups: all || args.groups,
        monitors: all || args.monitors,
    }
}

/// The report with the wanted node's part alone.
fn only(mut report: ClusterReport, args: &ClusterStatusArgs) -> Result<ClusterReport, Failure> {
    if let Some(node) = &args.node {
        known_node(&report, node)?;
        report.nodes.retain(|one| one.name == *node);
        for heartbeat in &mut report.heartbeats {
            heartbeat.nodes.retain(|name, _| name == node);
        }
        for group in &mut report.groups {
            group.on.retain(|name, _| name == node);
            for resource in &mut group.resources {
                resource.on.retain(|name, _| name == node);
            }
        }
        report.groups.retain(|group| group.nodes.contains(node));
        for monitor in &mut report.monitors {
            monitor.on.retain(|name, _| name == node);
        }
    }
    Ok(report)
}

/// `--exit-code`: the worst of all that is shown.
pub fn exit_code(report: &ClusterReport) -> u8 {
    use RunState as R;
    let group = |state: RunState, wanted: bool| match state {
        R::Online => 0,
        R::Offline if !wanted => 0,
        R::OnlinePending | R::OfflinePending => 10,
        R::Offline | R::OnlineFailure | R::OfflineFailure | R::Unknown => 12,
    };
    let groups = report.groups.iter().map(|one| {
        // Online, and nowhere else to go.
        let alone = one.state == R::Online && one.nodes.len() > 1 && one.other_ready == Some(false);
        group(one.state, one.wanted).max(if alone { 11 } else { 0 })
    });
    let nodes = report.nodes.iter().map(|node| match node.state {
        NodeState::Online => 0,
        NodeState::Caution | NodeState::Offline | NodeState::Unknown => 11,
    });
    // A node that is lost is not taken over from without the arbiter's word.
    let cannot_act = report.suspended || report.arbiter_answers == Some(false);
    let amiss = if cannot_act { 11 } else { 0 };
    groups.chain(nodes).max().unwrap_or(0).max(amiss)
}

async fn watch(context: &Context, args: &ClusterStatusArgs) -> Outcome {
    let look = Look::of_stdout();
    let on_screen = std::io::stdout().is_terminal();
    let mut client = context.manager().await?;
    let every_ms = u64::try_from(args.every.as_millis()).unwrap_or(u64::MAX);
    client.send(Ask::Watch { every_ms }).await?;
    loop {
        let answer = tokio::select! {
            answer = client.next() => answer?,
            // Looking is all this command did.
            _ = tokio::signal::ctrl_c() => return DONE,
        };
        let report = match answer {
            Some(Answer::Cluster(report)) => only(*report, args)?,
            Some(other) => return Err(unexpected(&other)),
            None => return Err(ended()),
        };
        if args.json {
            print_json(&report)?;
            continue;
        }
        let text = screen(&report, parts(args), &look);
        if on_screen {
            // Home, each line to its end, the rest of the screen: no flicker.
            let text = text.replace('\n', "\x1b[K\n");
            print_out(&format!("\x1b[H{text}\x1b[J"))?;
        } else {
            print_out(&format!("{text}\n"))?;
        }
    }
}

/// The manager has stopped.
pub fn ended() -> Failure {
    Failure::new(
        Status::NoDaemon,
        "the failover manager of this node stopped\n  next: ask the other node, or start it here (`systemctl start kagami-failover`)",
    )
}
