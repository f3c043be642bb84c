//! `clpmdctrl`, `clpmdstat`: the mirror's own commands under these names. A mirror is named by itself,
//! or by the resource that it is in cluster.toml.

use std::time::{Duration, Instant};

use kagami_failover::config::Cluster;
use kagami_failover::config::resource::Kind;

use super::options::{Known, parse};
use crate::args::{DangerArgs, OrderArgs, PromoteArgs};
use crate::commands::cluster::file;
use crate::commands::order::{self, Carried};
use crate::commands::{Context, print_out};
use crate::control::message::{Answer, Order};
use crate::control::report::{Condition, Connection, Disk, MirrorReport, Role};
use crate::exit::{DONE, Failure, Outcome, Status};

const NAME: &str = "clpmdctrl";
const CTRL: Known = Known {
    name: NAME,
    flags: &[],
    values: &[
        "-a",
        "--active",
        "-d",
        "--deactive",
        "-b",
        "--break",
        "-f",
        "--force",
        "-r",
        "--recovery",
        "-c",
        "--cancel",
        "-w",
        "--rwait",
        "-timeout",
        "--timeout",
    ],
    optional: &[],
    words: 0,
};

/// Each verb: how it is spelt.
const VERBS: [[&str; 2]; 7] = [
    ["-a", "--active"],
    ["-d", "--deactive"],
    ["-b", "--break"],
    ["-f", "--force"],
    ["-r", "--recovery"],
    ["-c", "--cancel"],
    ["-w", "--rwait"],
];
/// How long an order is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// An order to a mirror.
///
/// # Errors
/// It was refused, or did not come about.
pub async fn clpmdctrl(context: &Context, arguments: &[String]) -> Outcome {
    let given = parse(&CTRL, arguments)?;
    let all: Vec<&str> = VERBS.iter().flatten().copied().collect();
    let verb = given.one_of(NAME, &all)?;
    let mirror = mirror(context, given.value(verb).unwrap_or_default());
    let short = VERBS
        .iter()
        .find(|spelt| spelt.contains(&verb))
        .map_or(verb, |spelt| spelt[0]);
    let seconds = match given.number(NAME, "-timeout")? {
        None => given.number(NAME, "--timeout")?,
        seconds => seconds,
    };
    let orders: &[Order] = match short {
        "-a" => &[Order::Attach {
            device: None,
            driver: None,
        }],
        "-d" => &[
            Order::Detach { force: false },
            Order::Demote { force: false },
        ],
        "-b" => &[Order::Disconnect],
        "-f" => &[
            Order::Promote {
                force: true,
                while_resyncing: false,
            },
            Order::Attach {
                device: None,
                driver: None,
            },
        ],
        "-r" => &[
            Order::Connect,
            Order::Resync {
                from: None,
                full: false,
            },
        ],
        "-c" => &[Order::PauseSync],
        _ => return recovered(context, &mirror, seconds.map(Duration::from_secs)).await,
    };
    let mut done = String::new();
    for one in orders {
        let carried = carry_out(context, &mirror, one.clone()).await;
        if carried.map_err(|failure| after(failure, &done))? {
            done = one.to_string();
        }
    }
    DONE
}

/// A refusal that leaves something changed is no mere refusal.
pub(super) fn after(failure: Failure, done: &str) -> Failure {
    if done.is_empty() || failure.status != Status::Refused {
        return failure;
    }
    let said = format!("\n  done before that: {done}\n  next:");
    let words = failure.words.replacen("\n  next:", &said, 1);
    Failure::system(words)
}

/// True: something is another than before.
async fn carry_out(context: &Context, mirror: &str, order: Order) -> Result<bool, Failure> {
    match order {
        Order::Promote { force: true, .. } => force(context, mirror).await,
        Order::Attach { .. } => attach(context, mirror, order).await,
        Order::Resync { .. } => resync(context, mirror, order).await,
        order => give(context, mirror, order).await,
    }
}

async fn give(context: &Context, mirror: &str, order: Order) -> Result<bool, Failure> {
    let connect = order == Order::Connect;
    let carried = order::give(context, mirror, order, PATIENCE).await?;
    let words = match &carried {
        Carried::Nothing(_) if connect => return Ok(false),
        Carried::Nothing(why) => why,
        Carried::Done | Carried::Started | Carried::Waits(_) if connect => return Ok(true),
        Carried::Done => "done",
        Carried::Started | Carried::Waits(_) => "begun",
    };
    print_out(&format!("mirror {mirror}: {words}\n"))?;
    Ok(!matches!(carried, Carried::Nothing(_)))
}

/// Nobody is asked under these names; what is overridden is said all the same, and only where something is.
async fn force(context: &Context, mirror: &str) -> Result<bool, Failure> {
    let args = PromoteArgs {
        order: OrderArgs {
            mirror: mirror.to_owned(),
            timeout: PATIENCE,
            json: false,
        },
        while_resyncing: false,
        force: true,
        danger: DangerArgs {
            yes: true,
            dry_run: false,
        },
    };
    let carried = order::promote_now(context, &args).await?;
    Ok(!matches!(carried, Carried::Nothing(_)))
}

async fn attach(context: &Context, mirror: &str, order: Order) -> Result<bool, Failure> {
    match order::ask(context, mirror, order, PATIENCE).await? {
        Answer::Attached {
            device, already, ..
        } => {
            print_out(&format!("mirror {mirror}: {device}\n"))?;
            Ok(!already)
        }
        Answer::Refused(refusal) => Err(Failure::of_refusal(mirror, &refusal)),
        other => Err(crate::commands::unexpected(&other)),
    }
}

/// What `-r` comes to in the state that the mirror is in.
async fn resync(context: &Context, mirror: &str, order: Order) -> Result<bool, Failure> {
    let report = context.mirror(mirror).await?;
    match report.condition {
        // `-c` held it, at this node.
        Condition::Paused if report.progress.as_ref().is_some_and(|p| p.paused_here) => {
            return give(context, mirror, Order::ResumeSync).await;
        }
        Condition::Paused => {
            let next = report.next.join("; ");
            return Err(Failure::refused(format!(
                "mirror {mirror}: {}: it is held at the other node\n  next: {next}",
                status(&report)
            )));
        }
        // What was connected just now first finds out who lacks what, and begins by itself.
        Condition::InSync | Condition::Resynchronising | Condition::Meeting => {}
        _ if report.connection != Connection::Connected => {}
        _ => return give(context, mirror, order).await,
    }
    print_out(&format!("mirror {mirror}: {}\n", status(&report)))?;
    Ok(false)
}

/// `--rwait`: until both copies are the same.
async fn recovered(context: &Context, mirror: &str, limit: Option<Duration>) -> Outcome {
    let end = limit.map(|limit| Instant::now() + limit);
    loop {
        let report = context.mirror(mirror).await?;
        match report.condition {
            Condition::InSync | Condition::Verifying => {
                print_out(&format!("mirror {mirror}: {}\n", status(&report)))?;
                return DONE;
            }
            // These get nowhere by waiting.
            Condition::SplitBrain
            | Condition::StandAlone
            | Condition::Paused
            | Condition::NotPaired => {
                return Err(Failure::refused(format!(
                    "mirror {mirror}: {}: it does not resynchronise\n  next: `kagami status {mirror}`",
                    status(&report)
                )));
            }
            _ => {}
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Err(Failure::new(
                Status::TimedOut,
                format!(
                    "mirror {mirror}: {}: not the same on both nodes in time\n  next: `kagami status {mirror}`",
                    status(&report)
                ),
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The mirror of that name, or of the resource of that name.
fn mirror(context: &Context, name: &str) -> String {
    let of_resource = || {
        let path = file(&context.file);
        let text = std::fs::read_to_string(&path).ok()?;
        let cluster = Cluster::parse(&path, &text).ok()?;
        let mut resources = cluster.groups.into_iter().flat_map(|group| group.resources);
        resources.find_map(|resource| match resource.kind {
            Kind::Mirror(mirror) if resource.name == name => Some(mirror.disk.mirror),
            _ => None,
        })
    };
    let own = context.config().ok();
    let known = own.is_some_and(|config| config.mirrors.iter().any(|mirror| mirror.name == name));
    if known { None } else { of_resource() }.unwrap_or_else(|| name.to_owned())
}

/// `clpmdstat -m NAME`, `-l`
///
/// # Errors
/// There is no daemon, or no such mirror.
pub async fn clpmdstat(context: &Context, arguments: &[String]) -> Outcome {
    const KNOWN: Known = Known {
        name: "clpmdstat",
        flags: &["-l", "--list"],
        values: &["-m", "--mirror", "-a", "--active"],
        optional: &[],
        words: 0,
    };
    let given = parse(&KNOWN, arguments)?;
    let verb = given.one_of(
        "clpmdstat",
        &["-l", "--list", "-m", "--mirror", "-a", "--active"],
    )?;
    if verb == "-l" || verb == "--list" {
        let report = context.report().await?;
        let width = report
            .mirrors
            .iter()
            .map(|one| one.name.len())
            .max()
            .unwrap_or(0);
        let line = |one: &MirrorReport| {
            let device = one
                .device
                .as_ref()
                .map_or("-", |device| device.path.as_str());
            format!(" {:<width$}   {device}   {}\n", one.name, one.backing)
        };
        print_out(&report.mirrors.iter().map(line).collect::<String>())?;
        return DONE;
    }
    let name = given.value(verb).unwrap_or_default();
    let all = context.report().await?;
    let report = context.mirror(&mirror(context, name)).await?;
    let peer = report.peer.as_ref().map_or("-", |peer| peer.name.as_str());
    let text = if verb == "-a" || verb == "--active" {
        let there = report.peer.as_ref().and_then(|peer| peer.role);
        format!(
            " Mirror Disk Active Status\n {name} : {} {}\n Active Status  {} {}\n",
            all.node.name,
            peer,
            activity(Some(report.role)),
            activity(there)
        )
    } else {
        let (here, there) = colours(&report);
        let mut text = format!(
            " Status: {}\n {name} : {} {peer}\n Mirror Color  {here} {there}\n",
            status(&report),
            all.node.name
        );
        if let Some(progress) = &report.progress {
            let done = crate::render::units::percent(progress.done_bytes, progress.total_bytes);
            text.push_str(&format!(" Recovery Status  {done}\n"));
        }
        text
    };
    print_out(&text)?;
    DONE
}

fn activity(role: Option<Role>) -> &'static str {
    match role {
        Some(Role::Primary) => "Active",
        Some(Role::Secondary) => "Inactive",
        None => "Unknown",
    }
}

/// The state of both copies in one word.
fn status(report: &MirrorReport) -> &'static str {
    match report.condition {
        Condition::InSync | Condition::Verifying => "Normal",
        Condition::Resynchronising => "Recovering",
        Condition::Meeting | Condition::Connecting | Condition::Opening => "Unknown",
        Condition::Paused
        | Condition::Alone
        | Condition::OneCopy
        | Condition::StandAlone
        | Condition::Held
        | Condition::Unusable
        | Condition::Refused
        | Condition::BothStale
        | Condition::NotPaired
        | Condition::NotOpened
        | Condition::SplitBrain => "Abnormal",
    }
}

/// This node's copy, and the other one: green as it should be, yellow being brought up to date, red
/// stale or broken, grey not known.
fn colours(report: &MirrorReport) -> (&'static str, &'static str) {
    let syncing = matches!(
        report.condition,
        Condition::Resynchronising | Condition::Paused
    );
    let colour = |disk: Disk| match disk {
        Disk::UpToDate => "GREEN",
        Disk::Inconsistent if syncing => "YELLOW",
        Disk::Unknown => "GRAY",
        _ => "RED",
    };
    let here = match report.condition {
        Condition::Opening | Condition::NotOpened => "GRAY",
        Condition::SplitBrain => "RED",
        _ => colour(report.disk),
    };
    // A peer that went away while this node went on has what is known to be stale.
    let stale = matches!(report.condition, Condition::SplitBrain | Condition::Alone);
    let there = match &report.peer {
        Some(_) if stale => "RED",
        Some(peer) if report.connection == Connection::Connected => colour(peer.disk),
        _ => "GRAY",
    };
    (here, there)
}
