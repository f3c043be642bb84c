//! Arguments of the commands of a pair's life: other nodes, disks, sizes, names and keys.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueHint};

use super::{DangerArgs, name, size, time};

/// `kagami replace-peer`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 alpha# kagami replace-peer pg                 # beta is dead; prints a line and waits\n\
    \x20 gamma# kagami pair --join kgm1-...            # paste it on the new node")]
pub struct ReplacePeerArgs {
    /// The mirror
    #[arg(value_parser = name)]
    pub mirror: String,
    /// An address under which the new node reaches this one, for the token and its configuration
    /// [default: found out]
    #[arg(long, value_name = "ADDRESS")]
    pub address: Vec<std::net::IpAddr>,
    /// How long the token is valid
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    pub valid: Duration,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub danger: DangerArgs,
    /// Print what was agreed as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami remove-peer`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n\
    \x20 alpha# kagami remove-peer pg                  # beta goes for months; alpha serves without it")]
pub struct RemovePeerArgs {
    /// The mirror
    #[arg(value_parser = name)]
    pub mirror: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub danger: DangerArgs,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami replace-disk`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 beta# kagami down\n\
    \x20 beta# kagami replace-disk pg --device /dev/vg1/pg\n\
    \x20 beta# kagami up                               # all of it is copied from the peer")]
pub struct ReplaceDiskArgs {
    /// The mirror
    #[arg(value_parser = name)]
    pub mirror: String,
    /// The block device for the data
    #[arg(long, value_name = "DEVICE", conflicts_with = "backing", value_hint = ValueHint::FilePath, required_unless_present = "backing")]
    pub device: Option<PathBuf>,
    /// The new file for the data
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub backing: Option<PathBuf>,
    /// The new file or block device for the metadata [default: a new file in the node's state folder]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub metadata: Option<PathBuf>,
    /// The size that the mirror may grow to later [default: as before]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_size: Option<u64>,
    /// Give up this node's copy though it may be the only good one: what only it holds is lost
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub danger: DangerArgs,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami resize`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 beta#  kagami down && kagami resize pg --grow 40G && systemctl start kagami    # the Secondary first\n\
    \x20 alpha# kagami down && kagami resize pg --grow 40G && systemctl start kagami\n\
    \x20 beta#  kagami down && kagami resize pg --grow 40G && kagami up --detach       # without systemd")]
pub struct ResizeArgs {
    /// The mirror
    #[arg(value_parser = name)]
    pub mirror: String,
    /// The new size: more than it is
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub grow: u64,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami peer`
#[derive(Debug, Subcommand)]
pub enum PeerVerb {
    /// Show the other nodes: addresses, keys, mirrors
    #[command(after_help = "Example:\n  kagami peer list")]
    List {
        /// An array of objects
        #[arg(long)]
        json: bool,
    },
    /// Say where a peer is reached from now on
    #[command(after_help = "Example:\n  kagami peer set beta --address 10.0.0.9:7789")]
    Set {
        /// The peer
        #[arg(value_name = "NAME")]
        peer: String,
        /// Where it listens, the best first; all addresses before are forgotten
        #[arg(long, required = true, value_name = "ADDRESS-OR-NAME:PORT")]
        address: Vec<String>,
    },
    /// Give a peer another name here
    #[command(after_help = "Example:\n  kagami peer rename beta gamma")]
    Rename {
        /// The peer
        #[arg(value_name = "NAME")]
        peer: String,
        /// What it is to be called
        #[arg(value_parser = name)]
        new: String,
    },
}
