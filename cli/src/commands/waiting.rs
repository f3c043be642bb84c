//! Waiting for work that the daemon does: progress on a terminal, plain lines at intervals elsewhere.
//! Ctrl-C and `--timeout` end the waiting, never the work.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Context, find, unexpected};
use crate::args::WaitArgs;
use crate::control::client::Client;
use crate::control::message::{Answer, Ask};
use crate::control::report::{MirrorReport, StatusReport};
use crate::exit::{Failure, Status};
use crate::render::units::{left, percent, rate, size};

/// Plain lines come so often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// The state is looked at so often.
const LOOK_EVERY_MS: u64 = 250;

/// Whether to wait: as told, else if there is somebody to watch.
pub fn wanted(args: &WaitArgs) -> bool {
    args.wait || args.timeout.is_some() || (!args.no_wait && std::io::stderr().is_terminal())
}

/// A stream of the daemon's states.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    mirror: String,
    /// The configuration.
    file: PathBuf,
}

impl Watch {
    /// Begins to watch a mirror.
    ///
    /// # Errors
    /// There is no daemon.
    pub async fn begin(context: &Context, mirror: &str) -> Result<Self, Failure> {
        let mut client = context.client().await?;
        client
            .send(Ask::Watch {
                every_ms: LOOK_EVERY_MS,
            })
            .await?;
        Ok(Self {
            client,
            mirror: mirror.to_owned(),
            file: context.file.clone(),
        })
    }

    /// The next state.
    ///
    /// # Errors
    /// The daemon stopped.
    pub async fn next(&mut self) -> Result<(StatusReport, MirrorReport), Failure> {
        match self.client.next().await? {
            Some(Answer::Status(report)) => {
                let mirror = find(&report, &self.mirror, &self.file)?.clone();
                Ok((*report, mirror))
            }
            Some(other) => Err(unexpected(&other)),
            None => Err(stopped(&self.mirror)),
        }
    }
}

/// Shows how far the work is.
#[derive(Debug)]
pub struct Shown {
    what: &'static str,
    bar: Option<ProgressBar>,
    said: Option<Instant>,
    waits_for: String,
}

impl Shown {
    /// Nothing is shown before the first state. `what`: "resync", "verify".
    pub fn new(what: &'static str, quiet: bool) -> Self {
        let bar = (std::io::stderr().is_terminal() && !quiet).then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            if let Ok(style) =
                ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3} %  {msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(what);
            bar
        });
        Self {
            what,
            bar,
            said: None,
            waits_for: String::new(),
        }
    }

    /// Shows a state.
    pub fn show(&mut self, mirror: &MirrorReport) {
        let words = words(mirror);
        if let Some(bar) = &self.bar {
            if let Some(progress) = &mirror.progress {
                bar.set_length(progress.total_bytes.max(1));
                bar.set_position(progress.done_bytes);
            }
            bar.set_message(words);
            return;
        }
        // What it waits for is news at once; progress comes at intervals.
        let waits_for = if mirror.progress.is_some() {
            String::new()
        } else {
            words.clone()
        };
        let due = self.said.is_none_or(|said| said.elapsed() >= LINE_EVERY);
        if due || waits_for != self.waits_for {
            anstream::eprintln!("{} {}: {words}", self.what, mirror.name);
            self.said = Some(Instant::now());
            self.waits_for = waits_for;
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Progress, or what is waited for.
fn words(mirror: &MirrorReport) -> String {
    let Some(progress) = &mirror.progress else {
        return format!("waiting ({}, {})", mirror.condition, mirror.connection);
    };
    let mut words = format!(
        "{} of {}",
        percent(progress.done_bytes, progress.total_bytes),
        size(progress.total_bytes)
    );
    if progress.paused {
        words.push_str(", paused");
        return words;
    }
    words.push_str(&format!(", {}", rate(progress.rate as f64)));
    if let Some(seconds) = progress.seconds_left {
        words.push_str(&format!(", {} left", left(seconds)));
    }
    words
}

/// What is said when the waiting ends before the work.
pub fn goes_on(mirror: &str, what: &str, why: &str) -> String {
    format!(
        "mirror {mirror}: {why}; the {what} goes on in the daemon\n  next: `kagami status {mirror}` shows how far it is"
    )
}

/// The daemon ended its streams.
pub fn stopped(mirror: &str) -> Failure {
    Failure::new(
        Status::NoDaemon,
        format!(
            "mirror {mirror}: the daemon stopped; what it was doing goes on when it is back\n  next: `kagami up`, then `kagami status {mirror}`"
        ),
    )
}
