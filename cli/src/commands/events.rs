//! `kagami events`: a line for each change of state with its cause, the present state first.

use super::{Context, print_json, print_out, unexpected};
use crate::args::EventsArgs;
use crate::control::message::{Answer, Ask};
use crate::exit::{DONE, Failure, Outcome, Status};
use crate::render::{self, Look};
use crate::unit::Starter;

/// Prints events until the daemon stops or somebody interrupts.
///
/// # Errors
/// There is no daemon, or it stopped.
pub async fn run(context: &Context, args: &EventsArgs) -> Outcome {
    if let Some(name) = &args.mirror {
        context.mirror(name).await?;
    }
    let look = Look::of_stdout();
    let mut client = context.client().await?;
    client.send(Ask::Events).await?;
    loop {
        let answer = tokio::select! {
            answer = client.next() => answer?,
            _ = tokio::signal::ctrl_c() => return DONE,
        };
        match answer {
            Some(Answer::Event(event)) => {
                if args
                    .mirror
                    .as_ref()
                    .is_some_and(|name| *name != event.mirror)
                {
                    continue;
                }
                if args.json {
                    print_json(&event)?;
                } else {
                    print_out(&format!("{}\n", render::event::event(&event, &look)))?;
                }
            }
            Some(Answer::Missed { events }) => anstream::eprintln!(
                "{events} events came faster than they were read and are not shown; `kagami status` is the present state"
            ),
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
        }
    }
}
