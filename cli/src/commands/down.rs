//! `kagami down`: a clean stop, and the word that it is over.

use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Context, print_out, unexpected, within};
use crate::args::DownArgs;
use crate::control::message::{Answer, Ask};
use crate::exit::{DONE, Failure, Outcome};

/// Stops the daemon and waits until its process is gone: then its stores are free.
///
/// # Errors
/// There is no daemon, or it takes longer than `--timeout`.
pub async fn run(context: &Context, args: &DownArgs) -> Outcome {
    let mut client = context.client().await?;
    // Held from before the order, so that no other process can be taken for it.
    let process = client
        .process()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let limit = args.timeout;
    let said = || {
        format!(
            "the daemon has not ended within {}; it goes on stopping\n  next: `kagami status` shows what it waits for; run `kagami down` again to wait longer",
            humantime::format_duration(limit)
        )
    };
    let interrupted = || "interrupted; the daemon goes on stopping".to_owned();
    within(Some(limit), said, interrupted, async {
        match client.ask(Ask::Stop).await {
            Ok(Answer::Done) => {}
            Ok(other) => return Err(unexpected(&other)),
            Err(error) => return Err(error.into()),
        }
        let Some(process) = process else {
            return Ok(());
        };
        // Readable: it has ended.
        let ended = AsyncFd::register_with_interest(process, Interest::READABLE);
        match ended {
            Ok(process) => process.readable().await.map(drop),
            Err(error) => Err(error),
        }
        .map_err(|error| Failure::system(format!("the wait for the daemon's end failed: {error}")))
    })
    .await?;
    print_out("stopped: everything is flushed and the stores are free\n")?;
    DONE
}
