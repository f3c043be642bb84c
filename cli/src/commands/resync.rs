//! `kagami resync`: which copy stays, and the way until both are equal.

use serde_json::json;

use super::order::{Carried, give, tell};
use super::waiting::{Shown, Watch, goes_on, wanted};
use super::{Context, confirm, print_dry_run, print_json, print_out, within};
use crate::args::ResyncArgs;
use crate::control::client::Client;
use crate::control::condition;
use crate::control::message::{Answer, Ask, Order, Source};
use crate::control::report::{Condition, EventReport, MirrorReport, Role};
use crate::exit::{DONE, Failure, Outcome};
use crate::render::units::{left, size};

/// How long the daemon may take to begin.
const BEGIN: std::time::Duration = std::time::Duration::from_secs(60);

/// Resynchronises.
///
/// # Errors
/// Refused, timed out, interrupted, no daemon.
pub async fn run(context: &Context, args: &ResyncArgs) -> Outcome {
    let name = &args.mirror;
    if args.from.is_some() || args.full || args.danger.dry_run {
        let words = loss(&context.mirror(name).await?, args);
        if args.danger.dry_run {
            return print_dry_run("mirror", name, &words, args.json);
        }
        if args.from.is_some() {
            confirm(&words, args.danger.yes)?;
        }
    }
    let order = Order::Resync {
        from: args.from,
        full: args.full,
    };
    // Listened to from before the order: the work may be over at once.
    let events = events(context).await?;
    let carried = give(context, name, order, BEGIN).await?;
    if !wanted(&args.wait) || matches!(carried, Carried::Nothing(_)) {
        let carried = match carried {
            Carried::Started if args.from.is_some() => begun(&context.mirror(name).await?),
            carried => carried,
        };
        tell(name, &carried, "resynchronised", args.json)?;
        return DONE;
    }
    let done = within(
        args.wait.timeout,
        || goes_on(name, "resynchronisation", "it took longer than --timeout"),
        || goes_on(name, "resynchronisation", "interrupted"),
        until_in_sync(context, name, events, args.json),
    )
    .await?;
    if args.json {
        print_json(&json!({
            "mirror": name, "outcome": "done", "total_bytes": done.total, "sent_bytes": done.sent,
            "seconds": done.seconds,
        }))?;
    } else {
        print_out(&format!("mirror {name}: {}\n", done.words()))?;
    }
    DONE
}

/// Where the peer is not there, the word waits for it.
fn begun(mirror: &MirrorReport) -> Carried {
    condition::chosen(mirror).map_or(Carried::Started, Carried::Waits)
}

/// What a resynchronisation moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of blocks that were marked.
    pub total: u64,
    /// Bytes sent, as far as seen from here.
    pub sent: u64,
    /// How long it was watched.
    pub seconds: u64,
}

impl Moved {
    /// A summary that can be read tomorrow.
    fn words(self) -> String {
        if self.total == 0 {
            return "in sync; nothing had to be sent".to_owned();
        }
        format!(
            "in sync; {} were marked, {} sent, in {}",
            size(self.total),
            size(self.sent),
            left(self.seconds)
        )
    }
}

/// A stream of the daemon's events.
///
/// # Errors
/// There is no daemon.
pub async fn events(context: &Context) -> Result<Client, Failure> {
    let mut events = context.client().await?;
    events.send(Ask::Events).await?;
    Ok(events)
}

/// Waits until a resynchronisation that was ordered is over: `events` was begun before the order.
///
/// # Errors
/// It will not get there without an operator's word; the daemon stopped.
pub async fn until_in_sync(
    context: &Context,
    name: &str,
    mut events: Client,
    quiet: bool,
) -> Result<Moved, Failure> {
    let mut watch = Watch::begin(context, name).await?;
    let mut shown = Shown::new("resync", quiet);
    let began = std::time::Instant::now();
    let mut moved = Moved::default();
    // In sync as it was before the order is not the end.
    let mut is_over = false;
    loop {
        let mirror = tokio::select! {
            biased;
            answer = events.next() => {
                match answer? {
                    Some(Answer::Event(event)) if event.mirror == name => {
                        is_over |= ends(&event);
                        moved.take(&event);
                    }
                    Some(_) => {}
                    None => return Err(super::waiting::stopped(name)),
                }
                continue;
            }
            next = watch.next() => next?.1,
        };
        moved.seconds = began.elapsed().as_secs();
        if let Some(progress) = &mirror.progress {
            moved.total = moved.total.max(progress.total_bytes);
            moved.sent = moved.sent.max(progress.sent_bytes);
        }
        match mirror.condition {
            Condition::InSync | Condition::Verifying if is_over => return Ok(moved),
            Condition::SplitBrain
            | Condition::BothStale
            | Condition::Refused
            | Condition::NotOpened
            | Condition::NotPaired
                if began.elapsed() > SETTLE =>
            {
                return Err(stuck(&mirror));
            }
            _ => shown.show(&mirror),
        }
    }
}

/// What was refused before the order is shown until the nodes have met again, with its attempts backing off:
/// on a busy machine that takes longer than a moment.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(30);

/// Both copies are equal from this event on.
fn ends(event: &EventReport) -> bool {
    match event.event.as_str() {
        "resync-done" => true,
        "replication" => event.facts.get("to").is_some_and(|to| to == "Established"),
        _ => false,
    }
}

impl Moved {
    /// The exact figures, where the event has them.
    fn take(&mut self, event: &EventReport) {
        if event.event != "resync-done" {
            return;
        }
        let fact = |key: &str| event.facts.get(key).and_then(serde_json::Value::as_u64);
        if let (Some(total), Some(sent)) = (fact("marked_bytes"), fact("sent_bytes")) {
            self.total = self.total.max(total);
            self.sent = self.sent.max(sent);
        }
    }
}

/// It does not go on by itself.
fn stuck(mirror: &MirrorReport) -> Failure {
    let mut words = format!(
        "mirror {}: not resynchronised: {}",
        mirror.name,
        mirror
            .verdict
            .as_ref()
            .map_or_else(|| mirror.condition.word().to_owned(), |v| v.outcome.clone())
    );
    for next in &mirror.next {
        words.push_str("\n  next: ");
        words.push_str(next);
    }
    // The order was given, and the door of a refused handshake opened again.
    Failure::system(words)
}

/// What is overwritten, how much and since when.
fn loss(mirror: &MirrorReport, args: &ResyncArgs) -> String {
    let name = &mirror.name;
    let peer = mirror.peer.as_ref().map_or("the peer", |p| p.name.as_str());
    let verdict = mirror.verdict.as_ref();
    let what = if args.full {
        format!("all of it, {}", size(mirror.size_bytes))
    } else {
        "what differs".to_owned()
    };
    let since = |side: Option<&crate::control::report::SideReport>| {
        let Some(side) = side else {
            return String::new();
        };
        let mut facts = Vec::new();
        if let Some(generation) = &side.generation {
            facts.push(format!("generation {}", generation.number));
        }
        if let Some(ms) = side.from_ms {
            let zone = jiff::tz::TimeZone::system();
            facts.push(format!(
                "since {}",
                crate::render::units::moment(ms, 0, &zone)
            ));
        }
        if let Some(bytes) = side.written_bytes {
            facts.push(format!("{} written", size(bytes)));
        }
        if facts.is_empty() {
            String::new()
        } else {
            format!(" ({})", facts.join(", "))
        }
    };
    match args.from {
        Some(Source::Local) => format!(
            "mirror {name}: this node's copy stays; {what} is overwritten on {peer}, and what only {peer} holds{} is lost; while {peer} is Primary it is refused",
            since(verdict.and_then(|v| v.there.as_ref()))
        ),
        Some(Source::Peer) => format!(
            "mirror {name}: {peer}'s copy stays; {what} is overwritten here, and what only this copy holds{} is lost; while this node is Primary it is refused",
            since(verdict.and_then(|v| v.here.as_ref()))
        ),
        None => without_from(mirror, peer, &what, args.full),
    }
}

/// In sync the Primary's copy stays; else nothing says which, and it is refused.
fn without_from(mirror: &MirrorReport, peer: &str, what: &str, full: bool) -> String {
    let name = &mirror.name;
    let there = mirror.peer.as_ref().and_then(|peer| peer.role);
    let is_in_sync = match mirror.condition {
        Condition::Resynchronising | Condition::Paused => {
            return format!(
                "mirror {name}: it would be refused: a resynchronisation runs already\n  next: `kagami status {name}` shows how far it is"
            );
        }
        Condition::InSync if !full && mirror.marked_bytes == 0 => {
            return format!(
                "mirror {name}: nothing to do: the copies are in sync, nothing is marked"
            );
        }
        Condition::InSync | Condition::Verifying | Condition::OneCopy => true,
        _ => false,
    };
    let (from, to) = match (mirror.role, there) {
        (Role::Primary, _) if is_in_sync => ("this node", peer),
        (Role::Secondary, Some(Role::Primary)) if is_in_sync => (peer, "this node"),
        _ => {
            return format!(
                "mirror {name}: it would be refused: it is not clear which copy is to stay\n  next: say whose data stays: `--from local` or `--from peer`"
            );
        }
    };
    format!(
        "mirror {name}: {what} is sent from {from}, which is Primary, over the copy of {to}; where they differ, what {to} holds is lost"
    )
}
