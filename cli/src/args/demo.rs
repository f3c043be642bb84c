//! Arguments of what shows and measures: the demonstrations and `kagami bench`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};

use super::{size, time};

/// `kagami demo`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami demo\n\
    \x20 kagami demo --serve --size 1G     # first line: the NBD URI; ends with Ctrl-C")]
pub struct DemoArgs {
    /// Make the scratch pair and leave it up until SIGTERM or Ctrl-C; the first line on standard
    /// output is the NBD URI of the Primary
    #[arg(long)]
    pub serve: bool,
    /// Where the scratch files go; made if it is not there [default: a new folder in the folder for
    /// temporary files]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// The size of the mirror
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size, requires = "serve")]
    pub size: u64,
    /// When a write is answered: on this disk (A), in the peer's memory too (B), on both disks (C)
    #[arg(long, default_value = "C", value_parser = ["A", "B", "C"], requires = "serve")]
    pub protocol: String,
    /// When a node may go on alone; `arbiter` starts a witness too
    #[arg(long, default_value = "never", value_parser = ["never", "arbiter", "always"], requires = "serve")]
    pub solo: String,
    /// Serve a mirror without its peer, which has left: what a benchmark compares with
    #[arg(long, requires = "serve")]
    pub no_peer: bool,
}

/// `kagami bench`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami bench                                  # a scratch pair on this machine\n\
    \x20 kagami bench --depth 32 --json\n\
    \x20 kagami bench --block 1M --sequential --flush-each 0\n\
    \x20 kagami bench pg --offset 10G --range 1G --yes   # overwrites 1 GiB of mirror pg")]
pub struct BenchArgs {
    /// A running mirror that is Primary here; what is in the range is overwritten [default: a scratch
    /// pair]
    #[arg(requires = "yes")]
    pub mirror: Option<String>,
    /// Bytes of one write
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = size)]
    pub block: u64,
    /// Writes in flight
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub depth: u16,
    /// One after the other, instead of at random places
    #[arg(long)]
    pub sequential: bool,
    /// A flush after every N writes; 0: one at the end
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub flush_each: u64,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    pub time: Duration,
    /// Where the range begins
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size)]
    pub offset: u64,
    /// Bytes that are written to, from --offset on
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub range: u64,
    /// Don't write the whole range once before measuring: writes then allocate
    #[arg(long)]
    pub no_prepare: bool,
    /// The scratch pair's protocol
    #[arg(long, default_value = "C", value_parser = ["A", "B", "C"], conflicts_with = "mirror")]
    pub protocol: String,
    /// The scratch pair's Secondary leaves first: a mirror without a peer
    #[arg(long, conflicts_with = "mirror")]
    pub no_peer: bool,
    /// Where the scratch pair's files go [default: the folder for temporary files]
    #[arg(long, value_name = "DIR", conflicts_with = "mirror", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// The range of a mirror of yours may be overwritten
    #[arg(long, short)]
    pub yes: bool,
    /// Print the figures as JSON
    #[arg(long)]
    pub json: bool,
}

/// `kagami cluster demo`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n\
    \x20 kagami cluster demo\n\
    \x20 kagami cluster demo --json | jq '.without_service'\n\
    \x20 kagami cluster demo --vm ~/src/kagami/tests/vm")]
pub struct ClusterDemoArgs {
    /// Where its files go: an empty folder, or one to be made [default: a new one in /var/tmp]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// What is kept up
    #[arg(long, value_enum, default_value_t)]
    pub service: DemoService,
    /// The folder tests/vm of kagami's source tree, for a machine that can't itself [default: that of
    /// the tree around this folder, or around this program]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub vm: Option<PathBuf>,
    /// In no virtual machine: refuse where this machine can't
    #[arg(long, conflicts_with = "vm")]
    pub here: bool,
    /// Say nothing but how it went, as an object
    #[arg(long)]
    pub json: bool,
}

/// `kagami cluster demo-service`
#[derive(Args, Debug)]
pub struct DemoServiceArgs {
    /// Where records are kept
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Where it listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
}

/// What is wanted of `--service`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DemoService {
    /// PostgreSQL if it is installed, else the demonstration's own
    #[default]
    Auto,
    /// PostgreSQL
    Postgresql,
    /// A small service of the demonstration's own
    Records,
}

impl DemoService {
    /// As it is spelled.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Postgresql => "postgresql",
            Self::Records => "records",
        }
    }
}
