//! Orders to a mirror that are answered when they are done: promote, demote, invalidate, connect and
//! their like.

use std::time::Duration;

use serde_json::json;

use super::{Context, confirm, print_dry_run, print_json, print_out, unexpected, within};
use crate::args::{DemoteArgs, InvalidateArgs, OrderArgs, PromoteArgs};
use crate::control::message::{Answer, Ask, Order};
use crate::control::report::{Connection, Disk, MirrorReport, Replication, Role};
use crate::exit::{DONE, Failure, Outcome};
use crate::render::units::{moment, size};

/// What the daemon did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carried {
    /// Done.
    Done,
    /// Begun.
    Started,
    /// Taken, and not begun yet: what it waits for.
    Waits(String),
    /// There was nothing to do, and why.
    Nothing(String),
}

/// Gives an order and waits for its answer, whatever it is.
///
/// # Errors
/// Timed out, interrupted, no daemon.
pub async fn ask(
    context: &Context,
    mirror: &str,
    order: Order,
    timeout: Duration,
) -> Result<Answer, Failure> {
    let verb = order.to_string();
    let ask = Ask::Mirror {
        mirror: mirror.to_owned(),
        order,
    };
    let mut client = context.client().await?;
    within(
        Some(timeout),
        || {
            format!(
                "mirror {mirror}: {verb}: no answer within {}; the daemon goes on with it\n  next: `kagami status {mirror}` shows how it ends",
                humantime::format_duration(timeout)
            )
        },
        || {
            format!(
                "mirror {mirror}: {verb}: interrupted; the daemon goes on with it\n  next: `kagami status {mirror}` shows how it ends"
            )
        },
        async { Ok(client.ask(ask).await?) },
    )
    .await
}

/// Gives an order and waits until it is done, begun or refused.
///
/// # Errors
/// Refused, timed out, interrupted, no daemon.
pub async fn give(
    context: &Context,
    mirror: &str,
    order: Order,
    timeout: Duration,
) -> Result<Carried, Failure> {
    carried(mirror, ask(context, mirror, order, timeout).await?)
}

fn carried(mirror: &str, answer: Answer) -> Result<Carried, Failure> {
    match answer {
        Answer::Done => Ok(Carried::Done),
        Answer::Started => Ok(Carried::Started),
        Answer::Nothing { why } => Ok(Carried::Nothing(why)),
        Answer::Refused(refusal) => Err(Failure::of_refusal(mirror, &refusal)),
        other => Err(unexpected(&other)),
    }
}

/// Prints how an order ended.
///
/// # Errors
/// Standard output is gone.
pub fn tell(mirror: &str, carried: &Carried, done: &str, json: bool) -> Result<(), Failure> {
    let (outcome, words) = match carried {
        Carried::Done => ("done", done.to_owned()),
        Carried::Started => (
            "started",
            format!("begun; `kagami status {mirror}` shows how it goes"),
        ),
        Carried::Waits(why) => ("started", format!("not begun yet: {why}")),
        Carried::Nothing(why) => ("nothing", format!("nothing to do: {why}")),
    };
    if json {
        print_json(&json!({"mirror": mirror, "outcome": outcome, "text": words}))
    } else {
        print_out(&format!("mirror {mirror}: {words}\n"))
    }
}

async fn simple(context: &Context, args: &OrderArgs, order: Order, done: &str) -> Outcome {
    let carried = give(context, &args.mirror, order, args.timeout).await?;
    tell(&args.mirror, &carried, done, args.json)?;
    DONE
}

/// `kagami pause-sync`
///
/// # Errors
/// See [`give`].
pub async fn pause(context: &Context, args: &OrderArgs) -> Outcome {
    let done = format!(
        "resynchronisation held; `kagami resume-sync {}` goes on with it",
        args.mirror
    );
    simple(context, args, Order::PauseSync, &done).await
}

/// `kagami resume-sync`
///
/// # Errors
/// See [`give`].
pub async fn resume(context: &Context, args: &OrderArgs) -> Outcome {
    simple(
        context,
        args,
        Order::ResumeSync,
        "resynchronisation goes on",
    )
    .await
}

/// `kagami disconnect`
///
/// # Errors
/// See [`give`].
pub async fn disconnect(context: &Context, args: &OrderArgs) -> Outcome {
    let done = format!(
        "disconnected; `kagami connect {}` looks for the peer again",
        args.mirror
    );
    simple(context, args, Order::Disconnect, &done).await
}

/// `kagami connect`
///
/// # Errors
/// See [`give`].
pub async fn connect(context: &Context, args: &OrderArgs) -> Outcome {
    simple(context, args, Order::Connect, "the peer is looked for").await
}

/// The peer's name in a report.
fn peer(mirror: &MirrorReport) -> &str {
    mirror
        .peer
        .as_ref()
        .map_or("the peer", |peer| peer.name.as_str())
}

/// `kagami promote`
///
/// # Errors
/// See [`give`].
pub async fn promote(context: &Context, args: &PromoteArgs) -> Outcome {
    if args.danger.dry_run {
        let name = &args.order.mirror;
        let report = context.mirror(name).await?;
        let words = promotion(&report, args.force, args.while_resyncing);
        return print_dry_run("mirror", name, &words, args.order.json);
    }
    promote_now(context, args).await.and(DONE)
}

/// The same where it is not tried out, and how it ended.
///
/// # Errors
/// See [`give`].
pub async fn promote_now(context: &Context, args: &PromoteArgs) -> Result<Carried, Failure> {
    let name = &args.order.mirror;
    let order = |force| Order::Promote {
        force,
        while_resyncing: args.while_resyncing,
    };
    if args.force {
        let report = context.mirror(name).await?;
        if harmless(&report) {
            // Nothing is to be overridden, and nothing is, should that change under way: the rules decide.
            match ask(context, name, order(false), args.order.timeout).await? {
                Answer::Refused(refusal) if refusal.next.contains("--force") => {
                    let report = context.mirror(name).await?;
                    if !harmless(&report) {
                        confirm(&promotion(&report, true, false), args.danger.yes)?;
                    }
                }
                answer => {
                    let carried = carried(name, answer)?;
                    promoted(args, &carried, false)?;
                    return Ok(carried);
                }
            }
        } else {
            confirm(&promotion(&report, true, false), args.danger.yes)?;
        }
    }
    let carried = give(context, name, order(args.force), args.order.timeout).await?;
    promoted(args, &carried, args.force)?;
    Ok(carried)
}

fn promoted(args: &PromoteArgs, carried: &Carried, force: bool) -> Result<(), Failure> {
    let done = if force {
        "Primary here, by force; it is recorded in this copy's history"
    } else {
        "Primary here"
    };
    tell(&args.order.mirror, carried, done, args.order.json)
}

/// Whether a promotion overrides nothing: no force makes a second Primary of a pair that is connected.
fn harmless(mirror: &MirrorReport) -> bool {
    mirror.connection == Connection::Connected
        && (mirror.disk == Disk::UpToDate || is_primary_there(mirror))
}

fn is_primary_there(mirror: &MirrorReport) -> bool {
    let role = mirror.peer.as_ref().and_then(|peer| peer.role);
    mirror.connection == Connection::Connected && role == Some(Role::Primary)
}

/// What a promotion does and loses.
fn promotion(mirror: &MirrorReport, force: bool, while_resyncing: bool) -> String {
    let name = &mirror.name;
    let peer = peer(mirror);
    if is_primary_there(mirror) {
        return format!(
            "mirror {name}: it would be refused, by force too: {peer} is Primary\n  next: `kagami demote {name}` on {peer}, then again"
        );
    }
    if harmless(mirror) && mirror.role == Role::Primary {
        return format!("mirror {name}: nothing to do: this node is Primary already");
    }
    if harmless(mirror) {
        return format!(
            "mirror {name}: this node becomes Primary; {peer} is asked and nothing is lost"
        );
    }
    let is_target = mirror.connection == Connection::Connected
        && matches!(
            mirror.replication,
            Replication::SyncTarget | Replication::PausedSync
        )
        && mirror.disk == Disk::Inconsistent;
    if is_target && while_resyncing {
        return format!(
            "mirror {name}: this node becomes Primary while its copy is resynchronised; {peer} is asked and nothing is lost\n  until that ends every read and write goes to {peer}, and waits while {peer} is not connected"
        );
    }
    if is_target && !force {
        return format!(
            "mirror {name}: it would be refused while this copy is resynchronised\n  next: again when it is in sync, or with --while-resyncing: {peer} answers every read and write until then"
        );
    }
    let copy = match mirror.disk {
        Disk::Inconsistent => format!(
            "this copy is Inconsistent: {} of it are not what {peer} has, so files on it may be broken",
            size(mirror.marked_bytes)
        ),
        Disk::Outdated => {
            format!("this copy is Outdated: {peer} holds newer writes, which are lost")
        }
        disk => format!(
            "this copy is {disk}, and whether {peer} went on alone is not known: if it did, this is a split brain"
        ),
    };
    let generation = mirror.generation.as_ref().map_or_else(
        || "never written".to_owned(),
        |g| format!("generation {}", g.number),
    );
    if force {
        format!(
            "mirror {name}: --force overrides the rule that a copy goes on alone only with permission (solo = \"{}\"), and is recorded.\n  {copy}\n  this copy is at {generation}; {peer} was last heard by this daemon at the time `kagami status {name}` shows",
            mirror.solo
        )
    } else {
        format!(
            "mirror {name}: permission is asked for (solo = \"{}\"); it is refused where that does not give it\n  {copy}",
            mirror.solo
        )
    }
}

/// `kagami demote`
///
/// # Errors
/// See [`give`].
pub async fn demote(context: &Context, args: &DemoteArgs) -> Outcome {
    let name = &args.order.mirror;
    if args.force || args.danger.dry_run {
        let report = context.mirror(name).await?;
        let waiting = report.in_flight;
        let words = if args.force {
            format!(
                "mirror {name}: --force fails what can't be finished: {waiting} requests in flight may end with an input/output error, and applications above lose what they had not flushed"
            )
        } else {
            format!(
                "mirror {name}: {waiting} requests in flight are finished and flushed on both copies first; nothing is lost"
            )
        };
        if args.danger.dry_run {
            return print_dry_run("mirror", name, &words, args.order.json);
        }
        if waiting > 0 {
            confirm(&words, args.danger.yes)?;
        }
    }
    let carried = give(
        context,
        name,
        Order::Demote { force: args.force },
        args.order.timeout,
    )
    .await?;
    tell(name, &carried, "Secondary here", args.order.json)?;
    DONE
}

/// `kagami invalidate`
///
/// # Errors
/// See [`give`]; this copy may be the only one of what was written here.
pub async fn invalidate(context: &Context, args: &InvalidateArgs) -> Outcome {
    let name = &args.order.mirror;
    let report = context.mirror(name).await?;
    if report.peer.is_none() {
        return Err(Failure::refused(format!(
            "mirror {name}: not invalidated: no other node has a copy that could be fetched\n  next: `kagami pair {name}` brings one"
        )));
    }
    let peer = peer(&report);
    let mut words = format!(
        "mirror {name}: this node's copy ({}, {}, {}) is declared bad: all of it is fetched from {peer} again, and until then it can't be used without {peer}",
        report.backing,
        size(report.size_bytes),
        report.generation.as_ref().map_or_else(
            || "never written".to_owned(),
            |g| format!("generation {}", g.number)
        ),
    );
    let only_here = only_here(&report);
    if let Some(lost) = &only_here {
        words.push_str(&format!("\n  {lost}"));
    }
    let next = format!(
        "let {peer} fetch it: start kagami there, or `kagami connect {name}`; `kagami resync {name} --from peer` settles a split brain; or --force, if what only this copy holds may be lost"
    );
    if args.danger.dry_run {
        if only_here.is_some() && !args.force {
            words.push_str(&format!("\n  it would be refused\n  next: {next}"));
        }
        return print_dry_run("mirror", name, &words, args.order.json);
    }
    if let (Some(lost), false) = (&only_here, args.force) {
        return Err(Failure::refused(format!(
            "mirror {name}: not invalidated: this copy may be the only one of the newest writes\n  {lost}\n  next: {next}"
        )));
    }
    confirm(&words, args.danger.yes)?;
    let carried = give(context, name, Order::Invalidate, args.order.timeout).await?;
    tell(
        name,
        &carried,
        "this copy is Inconsistent now, with every block marked",
        args.order.json,
    )?;
    DONE
}

/// What is lost with this copy where it may hold what no other does: it went on alone, or has marks that are no
/// older than the peer's blocks, and no peer with a good copy is there.
fn only_here(mirror: &MirrorReport) -> Option<String> {
    let peer = mirror.peer.as_ref()?;
    let verdict = mirror.verdict.as_ref();
    let is_met = mirror.connection == Connection::Connected
        && verdict.is_none_or(|verdict| verdict.refused.is_none());
    let peer_has_all = is_met && peer.disk == Disk::UpToDate;
    let is_older = !matches!(mirror.disk, Disk::Consistent | Disk::UpToDate);
    let nothing_differs = mirror.alone.is_none() && mirror.marked_bytes == 0;
    if peer_has_all || is_older || nothing_differs {
        return None;
    }
    let since = mirror.alone.as_ref().map_or_else(String::new, |alone| {
        let zone = jiff::tz::TimeZone::system();
        format!("it is alone since {}: ", moment(alone.since_ms, 0, &zone))
    });
    Some(format!(
        "{since}{} marked that {} lacks are lost with it",
        size(mirror.marked_bytes),
        peer.name
    ))
}
