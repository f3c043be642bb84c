//! `kagami reload`: what can change without a restart, and what can't.

use serde_json::json;

use super::{Context, print_json, print_out, running, unexpected};
use crate::args::ReloadArgs;
use crate::control::message::{Answer, Ask};
use crate::exit::{DONE, Failure, Outcome};
use crate::unit::Starter;

/// Hands the configuration to the daemon.
///
/// # Errors
/// There is no daemon, or the configuration is wrong.
pub async fn run(context: &Context, args: &ReloadArgs) -> Outcome {
    match context.client().await?.ask(Ask::Reload).await? {
        Answer::Reloaded { applied, restart } => {
            if args.json {
                print_json(&json!({"applied": applied, "restart": restart}))?;
                return DONE;
            }
            let mut text = String::new();
            for line in &applied {
                text.push_str(&format!("in force: {line}\n"));
            }
            for line in &restart {
                text.push_str(&format!("needs a restart: {line}\n"));
            }
            if text.is_empty() {
                text.push_str("nothing changed\n");
            }
            if !restart.is_empty() {
                let report = running(&context.config()?).await?;
                let starter = report.map_or(Starter::Hand, |r| Starter::of_process(r.node.pid));
                text.push_str(&format!("next: `{}` when it suits\n", starter.restart()));
            }
            print_out(&text)?;
            DONE
        }
        Answer::Refused(refusal) => {
            let failure = Failure::of_refusal("", &refusal);
            Err(Failure::usage(failure.words))
        }
        other => Err(unexpected(&other)),
    }
}
