//! The command line. Help, completions and man pages all come from here.

mod arbiter;
mod cluster;
mod demo;
mod failover;
mod life;
mod make;
mod order;
mod ublk;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::config::value;
use crate::control::driver::DeviceId;
pub use arbiter::{ArbiterVerb, WitnessArgs, WitnessVerb};
pub use cluster::{
    AckArgs, AlertsArgs, ClusterStatusArgs, ClusterVerb, EndArgs, GroupVerb, GroupWaitArgs,
    LogsVerb, MonitorArgs, MonitorVerb, NodeEndArgs, NodeVerb, SeverityArg,
};
pub use demo::{BenchArgs, ClusterDemoArgs, DemoArgs, DemoService, DemoServiceArgs};
pub use failover::{FailoverArgs, FailoverVerb, GuardArgs};
pub use life::{PeerVerb, RemovePeerArgs, ReplaceDiskArgs, ReplacePeerArgs, ResizeArgs};
pub use make::{InitArgs, NodeArgs, PairArgs, StoreArgs};
pub use order::{
    AttachArgs, DangerArgs, DemoteArgs, DetachArgs, InvalidateArgs, KernelDeviceVerb, OrderArgs,
    PromoteArgs, ResyncArgs, VerifyArgs, WaitArgs,
};
pub use ublk::UblkVerb;

/// A mirror disk in userspace.
#[derive(Debug, Parser)]
#[command(
    name = "kagami",
    version,
    about = "A mirror disk in userspace: one block device on two nodes",
    long_about = "A mirror disk in userspace: one block device on two nodes.\n\n\
        The daemon (`kagami up`) serves each mirror over NBD, writes every block to the local disk \
        and to the peer, and remembers what a peer that was away lacks. All other commands talk to \
        the daemon of this machine.",
    after_help = "From nothing to a mirror:\n\
        \x20 alpha# kagami init pg --size 20G\n\
        \x20 alpha# kagami pair pg                # prints a line for the other node\n\
        \x20 beta#  kagami pair --join kgm1-...\n\
        \x20 both#  kagami up\n\
        \x20 alpha# kagami promote pg",
    subcommand_required = true,
    arg_required_else_help = true,
    infer_subcommands = false,
    max_term_width = 100
)]
pub struct Cli {
    /// The configuration file; without it /etc/kagami/kagami.toml where that exists, else the
    /// user's own
    #[arg(long, global = true, env = "KAGAMI_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make this node's copy of a new mirror
    Init(InitArgs),
    /// Bring a second node to a mirror, by one line that is pasted there
    Pair(PairArgs),
    /// Run the daemon
    Up(UpArgs),
    /// Stop the daemon cleanly
    Down(DownArgs),
    /// Show the state of all mirrors, or of one
    Status(StatusArgs),
    /// Print a line for each change of state, beginning with the present state
    Events(EventsArgs),
    /// Make this node Primary: it serves I/O
    Promote(PromoteArgs),
    /// Make this node Secondary, when everything is on both disks
    Demote(DemoteArgs),
    /// Make a mirror a block device of this machine: /dev/nbdN or /dev/ublkbN, and /dev/kagami/NAME
    Attach(AttachArgs),
    /// Take that block device away again
    Detach(DetachArgs),
    /// Resynchronise the copies: after a split brain, the first time, or again
    Resync(ResyncArgs),
    /// Hold a running resynchronisation
    #[command(after_help = "Example:\n  kagami pause-sync pg")]
    PauseSync(OrderArgs),
    /// Go on with a resynchronisation that was held
    #[command(after_help = "Example:\n  kagami resume-sync pg")]
    ResumeSync(OrderArgs),
    /// Compare both copies while they are in use
    Verify(VerifyArgs),
    /// Declare this node's copy bad: all of it is fetched from the peer again
    Invalidate(InvalidateArgs),
    /// End the session with the peer and stay without one
    #[command(after_help = "Example:\n  kagami disconnect pg")]
    Disconnect(OrderArgs),
    /// Look for the peer again
    #[command(after_help = "Example:\n  kagami connect pg")]
    Connect(OrderArgs),
    /// Put a new node in the place of the peer, for good
    ReplacePeer(ReplacePeerArgs),
    /// Go on without a peer: its copy is given up for good
    RemovePeer(RemovePeerArgs),
    /// Put a new, empty disk in the place of this node's
    ReplaceDisk(ReplaceDiskArgs),
    /// Make a mirror larger
    Resize(ResizeArgs),
    /// The other nodes: where they are, what they are called
    #[command(subcommand, arg_required_else_help = true)]
    Peer(PeerVerb),
    /// Check or show the configuration
    #[command(subcommand, arg_required_else_help = true)]
    Config(ConfigVerb),
    /// Hand a changed configuration to the running daemon
    Reload(ReloadArgs),
    /// Be the arbiter of other nodes' mirrors
    Witness(WitnessArgs),
    /// Make an arbiter known to this node
    #[command(subcommand, arg_required_else_help = true)]
    Arbiter(ArbiterVerb),
    /// The failover cluster: its state, its configuration, its end
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(ClusterVerb),
    /// Start, stop or move a failover group
    #[command(subcommand, arg_required_else_help = true)]
    Group(GroupVerb),
    /// Hold a monitor, or make it fail to rehearse a recovery
    #[command(subcommand, arg_required_else_help = true)]
    Monitor(MonitorVerb),
    /// Take a node out of service: its groups move first
    #[command(subcommand, arg_required_else_help = true)]
    Node(NodeVerb),
    /// What the failover managers of both nodes told
    Alerts(AlertsArgs),
    /// Gather what is needed to look for a cause
    #[command(subcommand, arg_required_else_help = true)]
    Logs(LogsVerb),
    /// Show a mirror at work on this machine, or leave a scratch pair up for other programs
    Demo(DemoArgs),
    /// Measure how fast a mirror takes writes
    Bench(BenchArgs),
    /// Print a shell's completions
    Completions(CompletionsArgs),
    /// Write the man pages
    Man(ManArgs),
    /// The names that people and scripts know from CLUSTERPRO: clpstat, clpgrp, ...
    #[command(
        hide = true,
        disable_help_flag = true,
        after_help = "Examples:\n  kagami clp clpstat --long\n  kagami clp clpgrp -m pg"
    )]
    Clp {
        /// The command
        name: String,
        /// Its arguments, as it takes them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the failover manager of this node
    #[command(
        long_about = "Run the failover manager of this node, by cluster.toml beside the configuration: it runs each \
            group of services on one of the two nodes, and moves it when its node, disk, network or process fails. \
            SIGTERM moves this node's groups to the other node, or stops them, and ends it; SIGHUP lets it begin \
            anew with the groups as they are.",
        after_help = "Example:\n  kagami failover init-key\n  kagami failover"
    )]
    Failover(FailoverArgs),
    /// What the failover manager starts to enforce the end of a lease
    #[command(
        hide = true,
        after_help = "Example:\n  kagami guard --socket /run/kagami/failover/guard.sock"
    )]
    Guard(GuardArgs),
    /// What the daemon does to a device in a process of its own
    #[command(
        subcommand,
        hide = true,
        after_help = "Example:\n  kagami kernel-device hold /dev/nbd0"
    )]
    KernelDevice(KernelDeviceVerb),
}

fn size(text: &str) -> Result<u64, String> {
    value::parse_size(text)
}

fn time(text: &str) -> Result<Duration, String> {
    value::parse_time(text)
}

fn logical_block(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("write 512 or 4096".to_owned()),
    }
}

fn device_id(text: &str) -> Result<DeviceId, String> {
    DeviceId::parse(text).ok_or_else(|| "write it as /dev/nbd0 or /dev/ublkb0".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    value::check_name(text).map(|()| text.to_owned())
}

/// `kagami up`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami up             # in the foreground, for systemd or a terminal\n\
    \x20 kagami up --detach    # returns when the daemon answers")]
pub struct UpArgs {
    /// Return when the daemon answers, and leave it running; its log goes to kagami.log in the
    /// node's state folder
    #[arg(long)]
    pub detach: bool,
    /// How long --detach waits for the daemon's first answer
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time, requires = "detach")]
    pub timeout: Duration,
    /// This is the daemon that --detach started.
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub detached: bool,
}

/// `kagami down`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kagami down")]
pub struct DownArgs {
    /// How long to wait until the daemon has ended
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub timeout: Duration,
}

/// `kagami status`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami status\n\
    \x20 kagami status pg --watch\n\
    \x20 kagami status --json | jq -r '.mirrors[] | .name + \" \" + .condition'\n\
    \x20 kagami status --exit-code >/dev/null || echo 'look at the mirrors'")]
pub struct StatusArgs {
    /// Only this mirror
    pub mirror: Option<String>,
    /// Draw it again and again
    #[arg(long, short)]
    pub watch: bool,
    /// Time between two with --watch
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time, requires = "watch")]
    pub every: Duration,
    /// JSON (docs/status-json.md); with --watch an object a line
    #[arg(long)]
    pub json: bool,
    /// End with 0 in sync, 10 resynchronising, 11 alone, 12 not usable here, 13 split brain
    #[arg(long, conflicts_with = "watch")]
    pub exit_code: bool,
}

/// `kagami events`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami events\n\
    \x20 kagami events pg --json")]
pub struct EventsArgs {
    /// Only this mirror
    pub mirror: Option<String>,
    /// An object a line (docs/status-json.md)
    #[arg(long)]
    pub json: bool,
}

/// `kagami config`
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Read the configuration as the daemon would
    #[command(after_help = "Example:\n  kagami config check --config /etc/kagami/kagami.toml")]
    Check {
        /// Look at the file alone, not at the disks, certificates and keys that it names
        #[arg(long)]
        file_only: bool,
        /// Print the faults and the warnings as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the configuration: each key, its value and where it came from
    #[command(after_help = "Example:\n  kagami config show --defaults")]
    Show {
        /// Every key there is, also those that the file does not have
        #[arg(long)]
        defaults: bool,
        /// An array of objects
        #[arg(long)]
        json: bool,
    },
}

/// `kagami reload`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kagami config check && kagami reload")]
pub struct ReloadArgs {
    /// Print what was taken over as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami completions`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kagami completions bash > /etc/bash_completion.d/kagami")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `kagami man`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kagami man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// The folder for kagami.1, kagami-status.1, ...
    #[arg(value_hint = ValueHint::DirPath)]
    pub folder: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example_that_parses() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name()).trim().to_owned();
            for inner in command.get_subcommands() {
                if inner.get_name() != "help" {
                    walk(inner, &path);
                }
            }
            let help = command.get_after_help().map(ToString::to_string);
            if command.get_subcommands().next().is_some() && path.contains(' ') && help.is_none() {
                return;
            }
            let help = help.unwrap_or_else(|| panic!("`{path}` has no example"));
            for line in help
                .lines()
                .filter_map(|line| line.find("kagami ").map(|at| &line[at..]))
            {
                let line = line.split(['#', '|', '>', '&']).next().unwrap();
                let words = line.split_whitespace().map(|word| word.trim_matches('\''));
                Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}\n{error}"));
            }
        }
        let mut command = Cli::command();
        command.build();
        walk(&command, "");
    }
}
