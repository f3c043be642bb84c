//! `kagami status`: all that matters on one screen.

use std::io::IsTerminal as _;

use super::{Context, find, print_json, print_out, unexpected};
use crate::args::StatusArgs;
use crate::control::condition::exit_code;
use crate::control::message::{Answer, Ask};
use crate::control::report::StatusReport;
use crate::exit::{DONE, Failure, Outcome, Status};
use crate::render::{self, Look};
use crate::unit::Starter;

/// Shows the state, once or again and again.
///
/// # Errors
/// There is no daemon, or no such mirror.
pub async fn run(context: &Context, args: &StatusArgs) -> Outcome {
    if args.watch {
        return watch(context, args).await;
    }
    let report = only(context.report().await?, context, args)?;
    if args.json {
        print_json(&report)?;
    } else {
        print_out(&render::status::status(&report, &Look::of_stdout()))?;
    }
    if args.exit_code {
        Ok(exit_code(&report))
    } else {
        DONE
    }
}

/// The report with the wanted mirror alone.
fn only(
    mut report: StatusReport,
    context: &Context,
    args: &StatusArgs,
) -> Result<StatusReport, Failure> {
    if let Some(name) = &args.mirror {
        let mirror = find(&report, name, &context.file)?.clone();
        report.mirrors = vec![mirror];
    }
    Ok(report)
}

async fn watch(context: &Context, args: &StatusArgs) -> Outcome {
    let look = Look::of_stdout();
    let screen = std::io::stdout().is_terminal();
    let mut client = context.client().await?;
    let every_ms = u64::try_from(args.every.as_millis()).unwrap_or(u64::MAX);
    client.send(Ask::Watch { every_ms }).await?;
    loop {
        let answer = tokio::select! {
            answer = client.next() => answer?,
            // Looking is all this command did.
            _ = tokio::signal::ctrl_c() => return DONE,
        };
        let report = match answer {
            Some(Answer::Status(report)) => only(*report, context, args)?,
            Some(other) => return Err(unexpected(&other)),
            None => {
                return Err(Failure::new(
                    Status::NoDaemon,
                    format!(
                        "the daemon stopped\n  next: `{}` starts it",
                        Starter::of_file(&context.file).up()
                    ),
                ));
            }
        };
        if args.json {
            print_json(&report)?;
            continue;
        }
        let text = render::status::status(&report, &look);
        if screen {
            // Home, each line to its end, the rest of the screen: no flicker.
            let text = text.replace('\n', "\x1b[K\n");
            print_out(&format!("\x1b[H{text}\x1b[J"))?;
        } else {
            print_out(&format!("{text}\n"))?;
        }
    }
}
