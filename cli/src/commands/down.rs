//! `kagami down`: a clean stop, and the word that it is over.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use super::{Context, print_out, unexpected, within};
use crate::args::DownArgs;
use crate::control::message::{Answer, Ask, RefusalReport};
use crate::exit::{DONE, Failure, Outcome};

/// How soon the daemon's end is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

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
    let mut unclean = None;
    within(Some(limit), said, interrupted, async {
        match client.ask(Ask::Stop).await {
            Ok(Answer::Done) => {}
            Ok(Answer::Refused(refusal)) => unclean = Some(refusal),
            Ok(other) => return Err(unexpected(&other)),
            Err(error) => return Err(error.into()),
        }
        let Some(process) = process else {
            return Ok(());
        };
        // Readable: it has ended. Looked at now and then: a thread that waits could not be left.
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        let at_once = Timespec::default();
        while rustix::event::poll(&mut fds, Some(&at_once)) != Ok(1) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    })
    .await?;
    if let Some(refusal) = unclean {
        return Err(not_cleanly(&refusal));
    }
    print_out("stopped: everything is flushed and the stores are free\n")?;
    DONE
}

/// It has ended, and its next start has something to put right.
fn not_cleanly(refusal: &RefusalReport) -> Failure {
    Failure::system(Failure::of_refusal("", refusal).words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Status;

    /// Status 1 would say that it still runs.
    #[test]
    fn a_daemon_that_ended_is_no_refusal() {
        let refusal = RefusalReport {
            what: "the daemon has stopped, and not every mirror cleanly".to_owned(),
            facts: vec!["mirror pg: its disk hangs".to_owned()],
            next: String::new(),
        };
        let failure = not_cleanly(&refusal);
        assert_eq!(failure.status, Status::System);
        assert!(failure.words.contains("its disk hangs"), "{failure:?}");
    }
}
