//! Arguments of the failover manager's process.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

/// `kagami failover`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct FailoverArgs {
    /// What to do instead of running it
    #[command(subcommand)]
    pub verb: Option<FailoverVerb>,

    /// The watchdog that resets this node when a group that has lost its right to run does not stop
    #[arg(long, value_name = "DEVICE", default_value = "/dev/watchdog", value_hint = ValueHint::FilePath)]
    pub watchdog: PathBuf,

    /// Never reset this node: for trying things out, since a group that does not stop goes on then
    #[arg(long, conflicts_with = "watchdog")]
    pub no_reset: bool,
}

/// `kagami failover …`
#[derive(Debug, Subcommand)]
pub enum FailoverVerb {
    /// Make the cluster's key, which both nodes must have
    #[command(
        long_about = "Make the cluster's key: what makes heartbeats of the other node believable. It is a file in this \
            node's state folder; copy it to the same place of the other node, readable by root alone.",
        after_help = "Example:\n  kagami failover init-key"
    )]
    InitKey,
}

/// `kagami guard`
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// Where the failover manager reaches it
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,

    /// The watchdog; without it nothing is reset
    #[arg(long, value_name = "DEVICE", value_hint = ValueHint::FilePath)]
    pub watchdog: Option<PathBuf>,
}
