//! `kagami up`: from the configuration to a running daemon.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use kagami_replicator::shell::engine::prepare_process;
use tokio::signal::unix::{SignalKind, signal as on_signal};
use tracing::warn;

use crate::args::UpArgs;
use crate::commands::Context;
use crate::config::{Config, disks};
use crate::control::client::Client;
use crate::control::message::{Answer, Ask};
use crate::daemon::mirrors::Mirrors;
use crate::daemon::mirrors::opening::Patience;
use crate::daemon::service::Service;
use crate::daemon::socket::ControlSocket;
use crate::daemon::{self, log};
use crate::exit::{DONE, Failure, Outcome, Status};
use crate::unit::Starter;

/// A daemon that runs answers within.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// How often is looked whether one that was started answers, or has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Runs the daemon, or starts one and leaves it running.
///
/// # Errors
/// The configuration is wrong, a daemon runs already, the system refuses.
pub fn run(context: &Context, args: &UpArgs) -> Outcome {
    if args.detach {
        return runtime()?.block_on(detach(context, args));
    }
    if args.detached {
        // Its own session: no terminal's end reaches it. It fails only where that is so already.
        let _ = rustix::process::setsid();
    }
    let config = Config::load(&context.file)?;
    // First thing, before there are threads.
    let warnings = prepare_process();
    let levels = log::begin(&config.node.log_level, config.node.log_json);
    for warning in warnings {
        warn!("{warning}");
    }
    for fault in disks::check(&config) {
        warn!("{}: {}; {}", config.file.display(), fault.what, fault.next);
    }
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        // Before its stores and ports are tried: they are taken, and that would be all that is said.
        if let Some(pid) = answers(&config).await {
            return Err(runs_already(&config, pid));
        }
        let keys = config
            .keys()
            .map_err(|error| Failure::system(format!("not started: {error}")))?;
        let fingerprint = keys.current.fingerprint().to_string();
        let socket = ControlSocket::bind(&config.node).await?;
        let service = Service::of_this_process();
        let mirrors = Mirrors::start(&config, &service, Patience::default()).await?;
        let name = Some(fingerprint);
        daemon::run(mirrors, config, socket, name, levels, service, signal()).await;
        log::write_repeats();
        DONE
    });
    // A thread that waits for a disk that does not answer would be waited for without an end.
    runtime.shutdown_background();
    ended
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::system(format!(
                "not started: the system gives no event queue: {error}\n  next: raise the limit of open files, or end other programs"
            ))
        })
}

/// Waits for SIGTERM or SIGINT.
pub async fn signal() {
    let signals = (
        on_signal(SignalKind::terminate()),
        on_signal(SignalKind::interrupt()),
    );
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        // Without handlers a signal ends the process at once, as a crash would: nothing to wait for.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Starts a daemon of its own session and waits for its first answer.
async fn detach(context: &Context, args: &UpArgs) -> Outcome {
    let config = Config::load(&context.file)?;
    not_beside_its_unit(Starter::of_file(&context.file))?;
    if let Some(pid) = answers(&config).await {
        return Err(runs_already(&config, pid));
    }
    let log_file = config.node.state_dir.join("kagami.log");
    let fault = |error: io::Error| {
        Failure::system(format!(
            "not started: {}: {error}\n  next: run the command as a user who may write there",
            log_file.display()
        ))
    };
    fs::create_dir_all(&config.node.state_dir).map_err(fault)?;
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(&log_file)
        .map_err(fault)?;
    let started = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .arg("--config")
            .arg(&context.file)
            .args(["up", "--detached"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .current_dir("/")
            .spawn()
    });
    let mut child = started.map_err(|error| {
        Failure::system(format!(
            "not started: no process could be made: {error}\n  next: raise the limit of processes, or free memory"
        ))
    })?;
    let pid = child.id();
    let answered = async {
        while answers(&config).await != Some(pid) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let ended = async {
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return status;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        biased;
        () = answered => {
            anstream::println!(
                "the daemon runs (process {pid}); its log is {}",
                log_file.display()
            );
            DONE
        }
        status = ended => Err(Failure::new(
            status_of(status),
            format!(
                "the daemon ended at once ({status}); the end of its log:\n{}",
                tail(&log_file)
            ),
        )),
        () = tokio::time::sleep(args.timeout) => Err(Failure::new(
            Status::TimedOut,
            format!(
                "the daemon (process {pid}) has not answered within {}; it goes on starting\n  next: look at {}",
                humantime::format_duration(args.timeout),
                log_file.display()
            ),
        )),
    }
}

/// The machine's daemon belongs to its unit, where that is enabled: beside it, nobody would start it again when it dies,
/// and at a shutdown nothing would be unmounted before it ends.
///
/// Errors: the unit is enabled.
fn not_beside_its_unit(starter: Starter) -> Result<(), Failure> {
    if starter == Starter::Unit {
        return Err(Failure::refused(
            "not started: kagami.service is enabled, and systemd would neither restart this daemon nor stop it after what is mounted\n  next: `systemctl start kagami`; or `systemctl disable kagami` first, where it is to run without systemd",
        ));
    }
    Ok(())
}

/// What is told of a daemon that ended at once: its own status. One that a signal ended said nothing.
fn status_of(ended: ExitStatus) -> Status {
    let is_told = |status: &Status| ended.code() == Some(i32::from(*status as u8));
    let mut all = Status::ALL.iter().map(|(status, _)| *status);
    all.find(|status| *status != Status::Done && is_told(status))
        .unwrap_or(Status::System)
}

/// The process that answers on the control socket, if one does soon. One that does not is told by its lock
/// ([`ControlSocket::bind`]).
async fn answers(config: &Config) -> Option<u32> {
    let ask = async {
        let mut client = Client::connect(&config.node.control).await.ok()?;
        match client.ask(Ask::Status).await {
            Ok(Answer::Status(report)) => Some(report.node.pid),
            _ => None,
        }
    };
    tokio::time::timeout(ANSWER_PATIENCE, ask).await.ok()?
}

fn runs_already(config: &Config, pid: u32) -> Failure {
    let path = config.node.control.clone();
    daemon::StartError::RunsAlready { path, pid }.into()
}

/// The last lines of a log.
fn tail(file: &Path) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_daemon_is_started_beside_a_unit_that_is_enabled() {
        let refused = not_beside_its_unit(Starter::Unit).expect_err("it is enabled");
        assert_eq!(refused.status, Status::Refused);
        assert!(
            refused.words.contains("systemctl start kagami"),
            "{refused:?}"
        );
        assert_eq!(not_beside_its_unit(Starter::Hand), Ok(()));
    }
}
