//! Arguments of the failover manager's commands: cluster, groups, monitors, nodes, alerts, logs.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use kagami_failover::config::Severity;

use super::{ClusterDemoArgs, DangerArgs, DemoServiceArgs, time};

/// `kagami cluster`
#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Show nodes, heartbeats, groups and monitors
    Status(ClusterStatusArgs),
    /// Read cluster.toml as the failover manager would, against what this node has
    #[command(after_help = "Examples:\n\
        \x20 kagami cluster check\n\
        \x20 kagami cluster check new.toml --file-only")]
    Check {
        /// The file [default: cluster.toml beside the configuration file]
        #[arg(value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
        /// Look at the file alone, not at this node's addresses, scripts and mirrors
        #[arg(long)]
        file_only: bool,
        /// Print the faults as JSON
        #[arg(long)]
        json: bool,
    },
    /// Put a new cluster.toml in force on both nodes
    #[command(after_help = "Examples:\n\
        \x20 kagami cluster push new.toml --dry-run\n\
        \x20 kagami cluster push new.toml")]
    Push {
        /// The file, with a higher revision than the one in force
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Though it drops what runs, or the other node does not answer
        #[arg(long)]
        force: bool,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Nobody acts any more: the services go on, nothing is recovered or moved
    #[command(after_help = "Example:\n  kagami cluster suspend    # before work on the network")]
    Suspend(AckArgs),
    /// The failover managers act again
    #[command(after_help = "Example:\n  kagami cluster resume")]
    Resume(AckArgs),
    /// Stop all groups, and the failover manager on both nodes; the machines stay up
    #[command(after_help = "Example:\n  kagami cluster stop --yes")]
    Stop(EndArgs),
    /// Stop all groups and shut both machines down
    #[command(after_help = "Example:\n  kagami cluster shutdown --yes")]
    Shutdown(EndArgs),
    /// Stop all groups and reboot both machines
    #[command(after_help = "Example:\n  kagami cluster reboot --yes")]
    Reboot(EndArgs),
    /// Show a failover cluster at work on this machine: moves, deaths and cuts under a real service
    Demo(ClusterDemoArgs),
    /// What `demo` keeps up where there is no database
    #[command(
        hide = true,
        after_help = "Example:\n  kagami cluster demo-service --file /srv/records --listen 127.0.0.1:5432"
    )]
    DemoService(DemoServiceArgs),
}

/// `kagami cluster status`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami cluster status\n\
    \x20 kagami cluster status --groups --watch\n\
    \x20 kagami cluster status --json | jq -r '.groups[] | .name + \" \" + .state'\n\
    \x20 kagami cluster status --exit-code >/dev/null || echo 'look at the cluster'")]
pub struct ClusterStatusArgs {
    /// Only the groups and their resources
    #[arg(long)]
    pub groups: bool,
    /// Only the monitors
    #[arg(long)]
    pub monitors: bool,
    /// Only the heartbeats
    #[arg(long)]
    pub heartbeats: bool,
    /// Only what concerns this node
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Draw it again and again
    #[arg(long, short)]
    pub watch: bool,
    /// Time between two with --watch
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time, requires = "watch")]
    pub every: Duration,
    /// JSON (docs/cluster-status-json.md); with --watch an object a line
    #[arg(long)]
    pub json: bool,
    /// End with 0 all is well, 10 on its way, 11 no takeover possible, 12 a group does not run
    #[arg(long, conflicts_with = "watch")]
    pub exit_code: bool,
}

/// What a command has that is done once it is recorded.
#[derive(Args, Debug)]
pub struct AckArgs {
    /// How long to wait until the failover manager has recorded it
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = time)]
    pub timeout: Duration,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// What ends machines or managers.
#[derive(Args, Debug)]
pub struct EndArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub danger: DangerArgs,
    /// How long to wait until the failover manager has recorded it
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = time)]
    pub timeout: Duration,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// How an order to a group is waited for.
#[derive(Args, Debug)]
pub struct GroupWaitArgs {
    /// Return when the order is recorded, not when it is carried out
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait until it is carried out
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = time)]
    pub timeout: Duration,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami group`
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// Start a group, and wait until it is online
    #[command(after_help = "Examples:\n\
        \x20 kagami group start pg\n\
        \x20 kagami group start pg --on beta --timeout 2m\n\
        \x20 kagami group start pg --not-elsewhere   # no arbiter, and the other node is surely off")]
    Start {
        /// The group
        group: String,
        /// Where [default: its home where that can run it, else this node]
        #[arg(long, value_name = "NODE")]
        on: Option<String>,
        /// I have made sure that it does not run on the other node (asked for where neither an arbiter, nor that
        /// node, nor the fence script can say so; a group that runs on both destroys its data)
        #[arg(long)]
        not_elsewhere: bool,
        #[command(flatten)]
        #[allow(missing_docs)]
        wait: GroupWaitArgs,
    },
    /// Stop a group, and wait until it is offline
    #[command(after_help = "Example:\n  kagami group stop pg")]
    Stop {
        /// The group
        group: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        wait: GroupWaitArgs,
    },
    /// Move a running group to the other node, and wait until it is online there
    #[command(after_help = "Examples:\n\
        \x20 kagami group move pg\n\
        \x20 kagami group move pg --to beta")]
    Move {
        /// The group
        group: String,
        /// Where to [default: the node where it does not run]
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        #[command(flatten)]
        #[allow(missing_docs)]
        wait: GroupWaitArgs,
    },
}

/// Which monitor, and where.
#[derive(Args, Debug)]
pub struct MonitorArgs {
    /// The monitor
    pub monitor: String,
    /// Only on this node [default: both]
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// How long to wait until the failover manager has recorded it
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = time)]
    pub timeout: Duration,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami monitor`
#[derive(Debug, Subcommand)]
pub enum MonitorVerb {
    /// Let a monitor watch no more; what it watches goes on
    #[command(after_help = "Example:\n  kagami monitor suspend rows")]
    Suspend(MonitorArgs),
    /// Let it watch again
    #[command(after_help = "Example:\n  kagami monitor resume rows")]
    Resume(MonitorArgs),
    /// Make a monitor fail, to rehearse what follows
    #[command(after_help = "Examples:\n\
        \x20 kagami monitor fail rows            # where its target runs now\n\
        \x20 kagami monitor fail rows --clear")]
    Fail {
        /// The monitor
        monitor: String,
        /// Where [default: the node where its target runs, else this one; with --clear both]
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        /// It sees again what there is
        #[arg(long)]
        clear: bool,
        /// How long to wait until the failover manager has recorded it
        #[arg(long, value_name = "TIME", default_value = "1m", value_parser = time)]
        timeout: Duration,
        /// Print the outcome as JSON
        #[arg(long)]
        json: bool,
    },
}

/// `kagami node`
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// Move a node's groups to the other one, and end its failover manager; the machine stays up
    #[command(after_help = "Example:\n  kagami node stop --yes")]
    Stop(NodeEndArgs),
    /// Move a node's groups to the other one, and shut the machine down
    #[command(after_help = "Examples:\n\
        \x20 kagami node shutdown --yes\n\
        \x20 kagami node shutdown beta --dry-run")]
    Shutdown(NodeEndArgs),
    /// Move a node's groups to the other one, and reboot the machine
    #[command(after_help = "Example:\n  kagami node reboot beta --yes")]
    Reboot(NodeEndArgs),
}

/// Which node ends.
#[derive(Args, Debug)]
pub struct NodeEndArgs {
    /// The node [default: this one]
    pub node: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub end: EndArgs,
}

/// A severity on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SeverityArg {
    /// All
    #[default]
    Info,
    /// What is amiss
    Warning,
    /// A service is, or was, down
    Error,
}

impl From<SeverityArg> for Severity {
    fn from(arg: SeverityArg) -> Self {
        match arg {
            SeverityArg::Info => Self::Info,
            SeverityArg::Warning => Self::Warning,
            SeverityArg::Error => Self::Error,
        }
    }
}

/// `kagami alerts`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami alerts\n\
    \x20 kagami alerts --since 2h --severity warning pg\n\
    \x20 kagami alerts --kind monitor --json\n\
    \x20 kagami alerts --follow                 # this node's, as they come")]
pub struct AlertsArgs {
    /// Only about these groups, monitors, nodes or heartbeats, or `cluster`
    pub objects: Vec<String>,
    /// Not older than this: a length of time, or a moment like 2026-05-04T10:00
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Not younger than this
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// At least so severe
    #[arg(long, value_enum, default_value_t)]
    pub severity: SeverityArg,
    /// Only about such objects: cluster, node, heartbeat, group, resource, monitor, message
    #[arg(long, value_name = "KIND", value_parser = ["cluster", "node", "heartbeat", "group", "resource", "monitor", "message"])]
    pub kind: Vec<String>,
    /// The last so many
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 100)]
    pub last: usize,
    /// Go on with those that come, of this node
    #[arg(long, short)]
    pub follow: bool,
    /// An object a line
    #[arg(long)]
    pub json: bool,
}

/// `kagami logs`
#[derive(Debug, Subcommand)]
pub enum LogsVerb {
    /// Gather logs, configuration and state of both nodes in one archive; secrets are left out
    #[command(after_help = "Examples:\n\
        \x20 kagami logs collect\n\
        \x20 kagami logs collect /tmp/for-support.tar --this-node")]
    Collect {
        /// The archive, a tar file [default: kagami-logs-CLUSTER-TIME.tar in this folder]
        #[arg(value_hint = ValueHint::FilePath)]
        archive: Option<PathBuf>,
        /// Only of this node
        #[arg(long)]
        this_node: bool,
        /// Print what is in it as JSON
        #[arg(long)]
        json: bool,
    },
}
