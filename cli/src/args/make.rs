//! Arguments of the commands that make a copy: where it is kept, what the node is called, whom it is paired with.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};

use super::{logical_block, name, size, time};

/// Where this node's copy is kept.
#[derive(Args, Clone, Debug, Default)]
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

impl StoreArgs {
    /// True where one of them was given.
    pub fn names_any(&self) -> bool {
        self.device.is_some()
            || self.backing.is_some()
            || self.metadata.is_some()
            || self.max_size.is_some()
    }
}

/// Who this node is, where its configuration does not say yet.
#[derive(Args, Clone, Debug, Default)]
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
#[derive(Args, Clone, Debug)]
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
    #[arg(long, requires = "join", conflicts_with_all = ["mirror", "rotate", "device", "backing", "metadata", "max_size"])]
    pub give_up_copy: bool,
    /// Give it up though it may be the only good one: what only it holds is lost
    #[arg(long, requires = "give_up_copy")]
    pub force: bool,
    /// Don't ask; needed where there is no terminal to ask on
    #[arg(long, short, requires = "give_up_copy")]
    pub yes: bool,
    /// Give this node another key, without a break: peers and arbiters learn it first
    #[arg(long, conflicts_with = "join")]
    pub rotate: bool,
    /// This node, which has no mirror with this one and can't be told, has the next key in its
    /// configuration already; may be given more than once
    #[arg(long, value_name = "NODE", requires = "rotate")]
    pub told: Vec<String>,
    /// Say what the token is for and what would be made, and do nothing
    #[arg(long, requires = "join", conflicts_with_all = ["mirror", "rotate"])]
    pub dry_run: bool,
    /// Print what was agreed as JSON
    #[arg(long)]
    pub json: bool,
}
