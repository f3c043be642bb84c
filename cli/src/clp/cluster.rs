//! `clpcl`, `clpdown`, `clpstdn`: the managers and machines of the cluster. They ask nothing: scripts
//! call them.

use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use kagami_failover::control::status::ManagerPhase;
use kagami_failover::control::{Client, ClusterReport, Order};
use kagami_failover::core::durable::EndKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;

use super::mirror::after;
use super::options::{Known, parse};
use crate::commands::cluster::{PATIENCE, known_node, socket, suspend};
use crate::commands::{Context, print_out};
use crate::config::Config;
use crate::exit::{DONE, Failure, Outcome, Status};

/// The unit of the failover manager.
const UNIT: &str = "kagami-failover.service";
/// A manager that was told to end may have a stop script of two minutes to wait for.
const END_PATIENCE: Duration = Duration::from_secs(3600);

const CLPCL: Known = Known {
    name: "clpcl",
    flags: &[
        "-s",
        "-t",
        "-r",
        "-a",
        "-f",
        "--suspend",
        "--resume",
        "--force",
    ],
    values: &["-h", "-w"],
    optional: &[],
    words: 0,
};

/// Starts, stops, restarts, suspends, resumes.
///
/// # Errors
/// It was refused, or did not come about.
pub async fn clpcl(context: &Context, arguments: &[String]) -> Outcome {
    let given = parse(&CLPCL, arguments)?;
    let verb = given.one_of("clpcl", &["-s", "-t", "-r", "--suspend", "--resume"])?;
    let seconds = given.number("clpcl", "-w")?.map(Duration::from_secs);
    let soon = seconds.unwrap_or(PATIENCE);
    let limit = seconds.unwrap_or(END_PATIENCE);
    let all = given.has("-a");
    match verb {
        "--suspend" => suspend::run(context, true, false, soon).await,
        "--resume" => suspend::run(context, false, false, soon).await,
        "-s" => start(context, all, given.value("-h"), soon).await,
        "-t" => stop(context, all, given.value("-h"), limit).await,
        _ if all => Err(Failure::refused(
            "not restarted: a failover manager can only be started on its own node\n  next: `clpcl -t -a`, then `clpcl -s` on each node",
        )),
        _ => {
            if let Some(host) = given.value("-h") {
                let report = context.cluster_within(soon).await?;
                if host != report.local {
                    return Err(elsewhere(host));
                }
            }
            stop(context, false, None, limit).await?;
            start(context, false, None, soon).await
        }
    }
}

/// A manager that does not run can't be asked to start.
fn elsewhere(host: &str) -> Failure {
    Failure::refused(format!(
        "the failover manager of node {host} can only be started there\n  next: on {host}: clpcl -s"
    ))
}

async fn start(context: &Context, all: bool, host: Option<&str>, limit: Duration) -> Outcome {
    let config = context.config()?;
    if let Some(host) = host.filter(|host| *host != config.node.name) {
        return Err(elsewhere(host));
    }
    let mut done = "";
    if Client::connect(&socket(&config)).await.is_err() {
        systemctl("start")?;
        done = "this node's was started";
    }
    if !all {
        return DONE;
    }
    runs_there(&context.cluster_within(limit).await?).map_err(|failure| after(failure, done))
}

/// The other node's manager runs, and goes on.
fn runs_there(report: &ClusterReport) -> Outcome {
    let ends = |phase| matches!(phase, ManagerPhase::Ending | ManagerPhase::Gone);
    match report.other() {
        Some(other) if !other.answers || ends(other.phase) => Err(elsewhere(&other.name)),
        _ => DONE,
    }
}

fn systemctl(verb: &str) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::system(format!(
            "`systemctl {verb} {UNIT}` {why}\n  next: `systemctl status {UNIT}`, `journalctl -u {UNIT}`"
        ))
    };
    let status = Command::new("systemctl")
        .args([verb, UNIT])
        .status()
        .map_err(|error| failed(&format!("can't be run: {error}")))?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(&format!("failed ({status})")))
    }
}

/// The process of this node's manager. None: it is not seen from here.
async fn process(config: &Config) -> Option<OwnedFd> {
    let stream = UnixStream::connect(socket(config)).await.ok()?;
    let pid = Pid::from_raw(stream.peer_cred().ok()?.pid()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

fn runs(process: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    // An error: it is not known, and the socket is asked.
    matches!(poll(&mut ended, Some(&Timespec::default())), Ok(0))
}

async fn stop(context: &Context, all: bool, host: Option<&str>, limit: Duration) -> Outcome {
    let config = context.config()?;
    let kind = EndKind::Manager;
    let here = host.is_none_or(|host| host == config.node.name);
    let order = if all {
        Order::EndCluster { kind }
    } else {
        Order::EndNode { kind }
    };
    let end = Instant::now() + limit;
    let left = || end.saturating_duration_since(Instant::now());
    if let Some(host) = host {
        known_node(&context.cluster_within(left()).await?, host)?;
    }
    let manager = if here { process(&config).await } else { None };
    let object = match host {
        _ if all => "the cluster".to_owned(),
        host => format!("node {}", host.unwrap_or(&config.node.name)),
    };
    let ordered = context.order_here(&object, host.map(str::to_owned), order, left());
    let lacking = ordered.await?;
    let ended = if here {
        ended(&config, manager.as_ref(), limit, end).await
    } else {
        DONE
    };
    match (lacking, ended) {
        (None, ended) => ended,
        (Some(lacking), Ok(_)) => Err(lacking),
        (Some(lacking), Err(late)) => {
            let words = format!("{}\n{}", lacking.words, late.words);
            Err(Failure::new(late.status, words))
        }
    }
}

/// Waits until this node's manager is gone with its process, not with its socket: until then its unit is active, and
/// starting that does nothing.
async fn ended(
    config: &Config,
    manager: Option<&OwnedFd>,
    limit: Duration,
    end: Instant,
) -> Outcome {
    while manager.is_some_and(runs) || Client::connect(&socket(config)).await.is_ok() {
        if Instant::now() >= end {
            return Err(Failure::new(
                Status::TimedOut,
                format!(
                    "the failover manager has not ended within {}; it goes on with it\n  next: `kagami cluster status`",
                    humantime::format_duration(limit)
                ),
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    print_out("the failover manager has ended\n")?;
    DONE
}

/// `clpdown [-r]`: shuts this node down, its groups move.
///
/// # Errors
/// It was refused.
pub async fn clpdown(context: &Context, arguments: &[String]) -> Outcome {
    const KNOWN: Known = Known {
        name: "clpdown",
        flags: &["-r"],
        values: &["-h"],
        optional: &[],
        words: 0,
    };
    let given = parse(&KNOWN, arguments)?;
    let kind = if given.has("-r") {
        EndKind::Reboot
    } else {
        EndKind::Shutdown
    };
    let host = given.value("-h").map(str::to_owned);
    let order = Order::EndNode { kind };
    context.order("the node", host, order, PATIENCE).await?;
    DONE
}

/// `clpstdn [-r]`: shuts the cluster down.
///
/// # Errors
/// It was refused; or the other node could not be told, and this one is shut down alone.
pub async fn clpstdn(context: &Context, arguments: &[String]) -> Outcome {
    const KNOWN: Known = Known {
        name: "clpstdn",
        flags: &["-r"],
        values: &["-h"],
        optional: &[],
        words: 0,
    };
    let given = parse(&KNOWN, arguments)?;
    let kind = if given.has("-r") {
        EndKind::Reboot
    } else {
        EndKind::Shutdown
    };
    let host = given.value("-h").map(str::to_owned);
    let order = Order::EndCluster { kind };
    context.order("the cluster", host, order, PATIENCE).await?;
    DONE
}

#[cfg(test)]
mod tests {
    use kagami_failover::control::status::NodeReport;

    use super::*;

    #[test]
    fn what_was_started_here_is_not_told_as_nothing() {
        let node = |name: &str, answers, phase| NodeReport {
            name: name.to_owned(),
            answers,
            phase,
            ..NodeReport::default()
        };
        let with = |answers, phase| ClusterReport {
            local: "alpha".to_owned(),
            nodes: vec![
                node("alpha", true, ManagerPhase::Running),
                node("beta", answers, phase),
            ],
            ..ClusterReport::default()
        };
        assert_eq!(runs_there(&with(true, ManagerPhase::Running)), DONE);
        assert_eq!(runs_there(&with(true, ManagerPhase::Waiting)), DONE);
        let missing = runs_there(&with(false, ManagerPhase::Unknown)).unwrap_err();
        assert_eq!(after(missing.clone(), "").status, Status::Refused);
        let half = after(missing, "this node's was started");
        assert_eq!(half.status, Status::System);
        assert!(
            half.words.contains(
                "\n  done before that: this node's was started\n  next: on beta: clpcl -s"
            ),
            "{half:?}"
        );
    }
}
