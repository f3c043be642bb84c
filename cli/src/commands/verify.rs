//! `kagami verify`: are the copies the same?

use serde_json::json;

use super::order::{Carried, give, tell};
use super::resync::until_in_sync;
use super::waiting::{Shown, Watch, goes_on, wanted};
use super::{Context, print_json, print_out, unexpected, within};
use crate::args::VerifyArgs;
use crate::control::message::{Answer, Ask, Order};
use crate::exit::{DONE, Failure, Outcome, Status};
use crate::render::units::size;

/// How long the daemon may take to begin.
const BEGIN: std::time::Duration = std::time::Duration::from_secs(60);

/// Compares the copies.
///
/// # Errors
/// Refused, timed out, interrupted, no daemon.
pub async fn run(context: &Context, args: &VerifyArgs) -> Outcome {
    let name = &args.mirror;
    if args.stop {
        let carried = give(context, name, Order::StopVerify, BEGIN).await?;
        let done = "verification stopped; what it found stays marked";
        tell(name, &carried, done, args.json)?;
        return DONE;
    }
    // Listen before the order: the end may come at once.
    let mut events = context.client().await?;
    events.send(Ask::Events).await?;
    let order = Order::Verify {
        repair: args.repair,
    };
    let carried = give(context, name, order, BEGIN).await?;
    if !wanted(&args.wait) || matches!(carried, Carried::Nothing(_)) {
        tell(name, &carried, "verified", args.json)?;
        return DONE;
    }
    let found = within(
        args.wait.timeout,
        || goes_on(name, "verification", "it took longer than --timeout"),
        || goes_on(name, "verification", "interrupted"),
        async {
            let found = tokio::select! {
                found = outcome(&mut events, name) => found?,
                failure = progress(context, name, args.json) => return Err(failure),
            };
            if args.repair && found.different > 0 {
                until_in_sync(context, name, args.json).await?;
            }
            Ok(found)
        },
    )
    .await?;
    let repaired = args.repair && found.different > 0;
    if args.json {
        print_json(&json!({
            "mirror": name, "outcome": "done", "compared_bytes": found.compared,
            "different_bytes": found.different, "repaired": repaired,
        }))?;
    } else {
        let words = match (found.different, repaired) {
            (0, _) => "no difference".to_owned(),
            (bytes, true) => format!("{} differed and were resynchronised", size(bytes)),
            (bytes, false) => format!(
                "{} differ and are marked; `kagami events` named where, `kagami resync {name}` repairs them",
                size(bytes)
            ),
        };
        print_out(&format!("mirror {name}: compared {}: {words}\n", size(found.compared)))?;
    }
    if found.different > 0 && !repaired {
        Ok(Status::Different as u8)
    } else {
        DONE
    }
}

struct Found {
    compared: u64,
    different: u64,
}

/// Waits for the verification's last event.
async fn outcome(
    events: &mut crate::control::client::Client,
    name: &str,
) -> Result<Found, Failure> {
    loop {
        match events.next().await? {
            Some(Answer::Event(event)) if event.mirror == name && event.event == "verify-done" => {
                let fact = |key: &str| {
                    event
                        .facts
                        .get(key)
                        .and_then(serde_json::Value::as_u64)
                        .unwrap_or(0)
                };
                return Ok(Found {
                    compared: fact("compared_bytes"),
                    different: fact("different_bytes"),
                });
            }
            Some(Answer::Event(_) | Answer::Missed { .. }) => {}
            Some(other) => return Err(unexpected(&other)),
            None => {
                return Err(Failure::new(
                    Status::NoDaemon,
                    format!("mirror {name}: the daemon stopped; the verification goes on when it is back\n  next: `kagami up`"),
                ));
            }
        }
    }
}

/// Shows how far it is; comes back only when the daemon is gone.
async fn progress(context: &Context, name: &str, quiet: bool) -> Failure {
    let mut watch = match Watch::begin(context, name).await {
        Ok(watch) => watch,
        Err(failure) => return failure,
    };
    let mut shown = Shown::new("verify", quiet);
    loop {
        match watch.next().await {
            Ok((_, mirror)) => shown.show(&mirror),
            Err(failure) => return failure,
        }
    }
}
