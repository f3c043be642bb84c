//! The command line. Help, completions and man pages all come from here.

mod arbiter;
mod cluster;
mod demo;
mod failover;
mod life;
mod ublk;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::config::value;
use crate::control::driver::DeviceId;
use crate::control::message::Source;
pub use arbiter::{ArbiterVerb, WitnessArgs, WitnessVerb};
pub use cluster::{
    AckArgs, AlertsArgs, ClusterStatusArgs, ClusterVerb, EndArgs, GroupVerb, GroupWaitArgs,
    LogsVerb, MonitorArgs, MonitorVerb, NodeEndArgs, NodeVerb, SeverityArg,
};
pub use demo::{BenchArgs, ClusterDemoArgs, DemoArgs, DemoService, DemoServiceArgs};
pub use failover::{FailoverArgs, FailoverVerb, GuardArgs};
pub use life::{PeerVerb, RemovePeerArgs, ReplaceDiskArgs, ReplacePeerArgs, ResizeArgs};
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

/// Where this node's copy is kept.
#[derive(Args, Debug, Default)]
pub struct StoreArgs {
    /// A block device for the data, instead of a file
    #[arg(long, value_name = "DEVICE", conflicts_with = "backing", value_hint = ValueHint::FilePath)]
    pub device: Option<PathBuf>,
    /// The file for the data [default: NAME.data in the node's state folder]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub backing: Option<PathBuf>,
    /// The file or block device for the metadata [default: NAME.meta in the node's state folder]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub metadata: Option<PathBuf>,
    /// The size that the mirror may grow to later without new metadata [default: the larger of 4
    /// times the size and 1 TiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_size: Option<u64>,
}

/// Who this node is, where its configuration does not say yet.
#[derive(Args, Debug, Default)]
pub struct NodeArgs {
    /// This node's name, where the configuration does not say yet [default: the host name]
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub node_name: Option<String>,
    /// Where peers reach this node, where the configuration does not say yet [default: [::]:7789]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Vec<std::net::SocketAddr>,
}

/// `kagami init`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami init pg --size 20G                        # a sparse file\n\
    \x20 kagami init pg --device /dev/vg0/pg              # an empty device, all of it\n\
    \x20 kagami init pg --device /dev/vg0/pg --keep-data  # what is on it stays, and is the source")]
pub struct InitArgs {
    /// The mirror's name
    #[arg(value_parser = name)]
    pub mirror: String,
    /// The size of the device that the mirror is [default: the whole of --device]
    #[arg(long, value_parser = size, required_unless_present = "device")]
    pub size: Option<u64>,
    /// Keep what is on the device (or in the file), byte for byte where it is; it becomes the source
    #[arg(long)]
    pub keep_data: bool,
    /// The least unit of I/O that clients are told, bytes
    #[arg(long, value_name = "BYTES", default_value_t = 512, value_parser = logical_block)]
    pub logical_block: u32,
    /// Extents of 4 MiB that may be written without a metadata write, 64 to 65536, on both nodes;
    /// they are resynchronised after a crash of the Primary [default: 1024]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(64..=65_536))]
    pub activity_log_extents: Option<u32>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub store: StoreArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub node: NodeArgs,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami pair`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 alpha# kagami pair pg                            # prints a line and waits ten minutes\n\
    \x20 beta#  kagami pair --join kgm1-...               # paste it on the other node\n\
    \x20 beta#  kagami pair --join kgm1-... --device /dev/vg0/pg\n\
    \x20 alpha# kagami pair --rotate                      # another key for this node")]
pub struct PairArgs {
    /// The mirror that a second node is to join
    #[arg(value_parser = name, required_unless_present_any = ["join", "rotate"], conflicts_with_all = ["join", "rotate"])]
    pub mirror: Option<String>,
    /// Join the mirror that this line is for
    #[arg(long, value_name = "TOKEN")]
    pub join: Option<String>,
    /// An address under which the other node reaches this one, for the token and its configuration
    /// [default: found out]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "join")]
    pub address: Vec<std::net::IpAddr>,
    /// How long the token is valid
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time, conflicts_with = "join")]
    pub valid: Duration,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub store: StoreArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub node: NodeArgs,
    /// Pair anew with the same node, though the mirror has a peer already
    #[arg(long, conflicts_with = "join")]
    pub again: bool,
    /// Where this node has an old copy of that mirror: give it up, it is copied anew
    #[arg(long, requires = "join")]
    pub give_up_copy: bool,
    /// Give this node another key, without a break: peers and arbiters learn it first
    #[arg(long, conflicts_with = "join")]
    pub rotate: bool,
    /// Say what the token is for and what would be made, and do nothing
    #[arg(long, requires = "join")]
    pub dry_run: bool,
    /// Print what was agreed as JSON
    #[arg(long)]
    pub json: bool,
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

/// What every order to a mirror has.
#[derive(Args, Debug)]
pub struct OrderArgs {
    /// The mirror
    pub mirror: String,
    /// How long to wait for the daemon's answer
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub timeout: Duration,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// What an order has that destroys something.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct DangerArgs {
    /// Don't ask; needed where there is no terminal to ask on
    #[arg(long, short)]
    pub yes: bool,
    /// Say what would be done and lost, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `kagami promote`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami promote pg\n\
    \x20 kagami promote pg --while-resyncing   # before this copy is in sync: the other node answers\n\
    \x20 kagami promote pg --force --yes   # go on though a rule forbids it; it is recorded")]
pub struct PromoteArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub order: OrderArgs,
    /// Also while this copy is being resynchronised: until that ends every read and write goes to the
    /// other node, and waits when the link is down
    #[arg(long, conflicts_with = "force")]
    pub while_resyncing: bool,
    /// Override permission and staleness: what only the other copy holds is lost or a split brain
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub danger: DangerArgs,
}

/// `kagami attach`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami attach pg                      # the first free /dev/nbdN; promotes where permitted\n\
    \x20 kagami attach pg --device /dev/nbd0\n\
    \x20 kagami attach pg --ublk               # /dev/ublkbN: faster, needs Linux 6.12\n\
    \x20 kagami attach pg --wait 75s           # as it is done while a machine starts\n\
    \x20 mkfs.ext4 /dev/kagami/pg && mount /dev/kagami/pg /srv")]
pub struct AttachArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub order: OrderArgs,
    /// Be this device [default: the first free one]; /dev/ublkbN is one of --ublk
    #[arg(long, value_name = "DEVICE", value_parser = device_id)]
    pub device: Option<DeviceId>,
    /// By the kernel's ublk driver, as /dev/ublkbN, and not by its NBD client; needs Linux 6.12 or newer
    #[arg(long)]
    pub ublk: bool,
    /// Wait up to so long for what may come by itself: the daemon, the peer, a device that is being
    /// taken back; what needs a person, or another Primary, ends it at once
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub wait: Option<Duration>,
}

/// `kagami detach`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 umount /srv && kagami detach pg\n\
    \x20 kagami detach pg --force --yes   # what waits there fails; it is recorded")]
pub struct DetachArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub order: OrderArgs,
    /// Take it down whoever uses it: requests that wait fail with input/output errors
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub danger: DangerArgs,
}

/// `kagami kernel-device`
#[derive(Debug, Subcommand)]
pub enum KernelDeviceVerb {
    /// Hold a device exclusively until the input ends
    #[command(after_help = "Example:\n  kagami kernel-device hold /dev/nbd0 --flush")]
    Hold {
        /// The device
        device: PathBuf,
        /// Write back first what the kernel holds for it
        #[arg(long)]
        flush: bool,
    },
    /// Make a device's settings
    #[command(after_help = "Example:\n  kagami kernel-device tune /dev/nbd0 32768")]
    Tune {
        /// The tree of settings
        #[arg(long, default_value = "/sys")]
        sysfs: PathBuf,
        /// The device
        #[arg(value_parser = device_id)]
        device: DeviceId,
        /// The longest request that is taken, KiB
        max_kb: u32,
    },
    /// Say for udev which mirror a device is
    #[command(after_help = "Example:\n  kagami kernel-device name /dev/nbd0")]
    Name {
        /// The device
        #[arg(value_parser = device_id)]
        device: DeviceId,
    },
    /// Ask the kernel's ublk driver
    #[command(subcommand, after_help = "Example:\n  kagami kernel-device ublk list")]
    Ublk(UblkVerb),
}

/// `kagami demote`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kagami demote pg")]
pub struct DemoteArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub order: OrderArgs,
    /// Fail the requests that wait for a peer that does not answer
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub danger: DangerArgs,
}

/// Waiting for long work.
#[derive(Args, Clone, Copy, Debug)]
pub struct WaitArgs {
    /// Wait for the end and show progress [default on a terminal]
    #[arg(long, conflicts_with = "no_wait")]
    pub wait: bool,
    /// Return when it has begun [default without a terminal]
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait; the work goes on [default: without end]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,
}

/// `kagami resync`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami resync pg --from local        # after a split brain: keep this node's changes\n\
    \x20 kagami resync pg --from peer --yes --wait\n\
    \x20 kagami resync pg --full              # every block, not only marked ones")]
pub struct ResyncArgs {
    /// The mirror
    pub mirror: String,
    /// Whose data stays; what only the other copy holds is lost
    #[arg(long, value_enum)]
    pub from: Option<Source>,
    /// Every block, not only marked ones
    #[arg(long)]
    pub full: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub danger: DangerArgs,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami verify`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami verify pg\n\
    \x20 kagami verify pg --repair --wait     # and resynchronise what differs\n\
    \x20 kagami verify pg --stop")]
pub struct VerifyArgs {
    /// The mirror
    pub mirror: String,
    /// Resynchronise what differs, when done
    #[arg(long)]
    pub repair: bool,
    /// Stop a running verification; what it found stays marked
    #[arg(long, conflicts_with_all = ["repair", "wait"])]
    pub stop: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArgs,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami invalidate`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kagami invalidate pg --yes")]
pub struct InvalidateArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub order: OrderArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub danger: DangerArgs,
}

/// `kagami config`
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Read the configuration as the daemon would
    #[command(after_help = "Example:\n  kagami config check --config /etc/kagami/kagami.toml")]
    Check {
        /// Look at the file alone, not at the disks that it names
        #[arg(long)]
        file_only: bool,
        /// Print the faults as JSON
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
