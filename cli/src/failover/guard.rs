//! The guard's process (`kagami guard`, which the failover manager starts).

use std::sync::Arc;

use kagami_failover::guard_process::deeds::{Machine, Resetter};
use kagami_failover::guard_process::log::Log;
use kagami_failover::guard_process::server;
use tracing::info;

use super::mirrors::Daemon;
use crate::args::GuardArgs;
use crate::commands::Context;
use crate::config::Config;
use crate::daemon::log;
use crate::exit::{DONE, Failure, Outcome};

/// Guards until there is nothing to guard.
///
/// # Errors
/// The socket or the log can't be made.
pub async fn run(context: &Context, args: GuardArgs) -> Outcome {
    let log = Log::begin().map_err(|error| {
        Failure::system(format!(
            "the guard: its log: {error}\n  next: raise the limits of open files and threads, or end other programs"
        ))
    })?;
    let ended = serve(context, args).await;
    drop(log);
    ended
}

async fn serve(context: &Context, args: GuardArgs) -> Outcome {
    let config = Config::load(&context.file)?;
    // Its memory stays: a machine without memory is when it is needed.
    for warning in kagami_replicator::shell::engine::prepare_process() {
        tracing::debug!("{warning}");
    }
    let _levels = log::begin(&config.node.log_level, config.node.log_json);
    let bound = server::bind(&args.socket).map_err(|error| {
        Failure::system(format!(
            "the guard: {}: {error}\n  next: run the failover manager as a user who may write there",
            args.socket.display()
        ))
    })?;
    let Some((listener, _lock)) = bound else {
        info!("a guard runs already");
        return DONE;
    };
    let resetter = match args.watchdog {
        Some(device) => Resetter::Watchdog(device),
        None => Resetter::Nothing,
    };
    let mirrors = Arc::new(Daemon::new(config.node.control.clone()));
    server::serve(listener, mirrors, Machine::new(resetter)).await;
    DONE
}
