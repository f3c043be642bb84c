//! `kagami verify`: are the copies the same?
//!
//! The daemon answers the order when all is compared; whoever does not want to wait leaves as soon as
//! it has begun.

use std::time::Duration;

use serde_json::json;

use super::order::{Carried, give, tell};
use super::resync::{events, until_in_sync};
use super::waiting::{Shown, Watch, goes_on, stopped, wanted};
use super::{Context, print_json, print_out, unexpected, within};
use crate::args::VerifyArgs;
use crate::control::client::Client;
use crate::control::message::{Answer, Ask, Order};
use crate::control::report::{Condition, EventReport};
use crate::exit::{DONE, Failure, Outcome, Status};
use crate::render::units::size;

/// How long the daemon may take to stop one.
const STOP: Duration = Duration::from_secs(60);
/// The event with the figures comes this close to the answer, on however busy a machine.
const FIGURES: Duration = Duration::from_secs(10);

/// Compares the copies.
///
/// # Errors
/// Refused, timed out, interrupted, no daemon.
pub async fn run(context: &Context, args: &VerifyArgs) -> Outcome {
    let name = &args.mirror;
    if args.stop {
        let carried = give(context, name, Order::StopVerify, STOP).await?;
        let done = "verification stopped; what it found stays marked";
        tell(name, &carried, done, args.json)?;
        return DONE;
    }
    // Listened to from before the order: the end may come at once.
    let mut happening = events(context).await?;
    let mut order = context.client().await?;
    order
        .send(Ask::Mirror {
            mirror: name.clone(),
            order: Order::Verify {
                repair: args.repair,
            },
        })
        .await?;
    let wait = wanted(&args.wait);
    let result = within(
        args.wait.timeout,
        || goes_on(name, "verification", "it took longer than --timeout"),
        || goes_on(name, "verification", "interrupted"),
        async {
            let end = tokio::select! {
                end = ended(&mut order, &mut happening, name) => end?,
                begun = watch(context, name, !wait, args.json) => {
                    begun?;
                    return Ok(None);
                }
            };
            if args.repair && end.found.is_some_and(|found| found.different > 0) {
                until_in_sync(context, name, happening, args.json).await?;
            }
            Ok(Some(end))
        },
    )
    .await?;
    let Some(end) = result else {
        tell(name, &Carried::Started, "", args.json)?;
        return DONE;
    };
    let Some(found) = end.found else {
        // Stopped, or its end was not heard: nobody may take that for copies that are equal.
        return Err(Failure::refused(format!(
            "mirror {name}: not verified to the end, or its figures did not come: {}\n  next: `kagami status {name}` says how far it came and what was found; `kagami verify {name} --wait` does all of it again",
            end.words
        )));
    };
    let repaired = args.repair && found.different > 0;
    if args.json {
        print_json(&json!({
            "mirror": name, "outcome": "done", "compared_bytes": found.compared,
            "different_bytes": found.different, "unreadable_bytes": found.unreadable,
            "repaired": repaired,
        }))?;
    } else {
        let words = match (found.different, repaired) {
            (0, _) => "no difference".to_owned(),
            (bytes, true) => format!("{} differed and were resynchronised", size(bytes)),
            (bytes, false) => format!(
                "{} differ and are marked; `kagami events` and the log name where, and `kagami status {name}` how they are repaired",
                size(bytes)
            ),
        };
        let unreadable = match found.unreadable {
            0 => String::new(),
            bytes => format!(
                "; {} can be read on neither node: write what is there anew, from a backup",
                size(bytes)
            ),
        };
        print_out(&format!(
            "mirror {name}: compared {}: {words}{unreadable}\n",
            size(found.compared)
        ))?;
    }
    if found.different > 0 && !repaired || found.unreadable > 0 {
        Ok(Status::Different as u8)
    } else {
        DONE
    }
}

/// How a verification ended.
struct End {
    /// The daemon's answer.
    words: String,
    /// The figures; `None`: it did not run to its end.
    found: Option<Found>,
}

#[derive(Clone, Copy)]
struct Found {
    compared: u64,
    different: u64,
    unreadable: u64,
}

/// Waits for the answer, and for the figures that an event brings.
async fn ended(order: &mut Client, events: &mut Client, name: &str) -> Result<End, Failure> {
    let mut found = None;
    let words = loop {
        tokio::select! {
            biased;
            // What comes behind the figures is of the repair, and for who waits for that.
            event = events.next(), if found.is_none() => match event? {
                Some(Answer::Event(event)) => found = figures(&event, name),
                Some(_) => {}
                None => return Err(stopped(name)),
            },
            answer = order.next() => match answer? {
                Some(Answer::Nothing { why }) => break why,
                Some(Answer::Done) => break "verified".to_owned(),
                // It goes on; the event says when it is over.
                Some(Answer::Started) => break String::new(),
                Some(Answer::Refused(refusal)) => return Err(Failure::of_refusal(name, &refusal)),
                Some(other) => return Err(unexpected(&other)),
                None => return Err(stopped(name)),
            },
        }
    };
    let rest = async {
        while found.is_none() {
            match events.next().await? {
                Some(Answer::Event(event)) => found = figures(&event, name),
                Some(_) => {}
                None => return Err(stopped(name)),
            }
        }
        Ok(())
    };
    if words.is_empty() {
        rest.await?;
    } else if let Ok(result) = tokio::time::timeout(FIGURES, rest).await {
        result?;
    }
    Ok(End { words, found })
}

fn figures(event: &EventReport, name: &str) -> Option<Found> {
    if event.mirror != name || event.event != "verify-done" {
        return None;
    }
    let fact = |key: &str| event.facts.get(key).and_then(serde_json::Value::as_u64);
    Some(Found {
        compared: fact("compared_bytes")?,
        different: fact("different_bytes")?,
        // A daemon that is older by an upgrade knows none.
        unreadable: fact("unreadable_bytes").unwrap_or(0),
    })
}

/// Shows how far it is; comes back when the daemon is gone, or, with `until_begun`, when it runs.
async fn watch(
    context: &Context,
    name: &str,
    until_begun: bool,
    quiet: bool,
) -> Result<(), Failure> {
    let mut watch = Watch::begin(context, name).await?;
    let mut shown = Shown::new("verify", quiet || until_begun);
    loop {
        let (_, mirror) = watch.next().await?;
        if mirror.condition == Condition::Verifying {
            if until_begun {
                return Ok(());
            }
            shown.show(&mirror);
        }
    }
}
