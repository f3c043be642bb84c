//! Arguments of `kagami witness` and `kagami arbiter`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{NodeArgs, time};

/// `kagami witness`
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n\
    \x20 witness1# kagami witness              # answer questions, in the foreground\n\
    \x20 witness1# kagami witness enrol        # prints a line for a node that may ask\n\
    \x20 alpha#    kagami arbiter join kgw1-... --mirror pg"
)]
pub struct WitnessArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub node: NodeArgs,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub verb: Option<WitnessVerb>,
}

/// `kagami witness ...`
#[derive(Debug, Subcommand)]
pub enum WitnessVerb {
    /// Let a node use this witness: prints a line for it, and waits
    #[command(after_help = "Example:\n  kagami witness enrol")]
    Enrol {
        /// An address under which nodes reach this machine [default: found out]
        #[arg(long, value_name = "ADDRESS")]
        address: Vec<std::net::IpAddr>,
        /// How long the token is valid
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
        valid: Duration,
    },
    /// Let a node that was replaced or taken away use this witness no more
    #[command(after_help = "Example:\n  kagami witness forget beta")]
    Forget {
        /// The node, or the fingerprint of one key
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Show which nodes may use this witness
    #[command(after_help = "Example:\n  kagami witness list")]
    List {
        /// An array of objects
        #[arg(long)]
        json: bool,
    },
}

/// `kagami arbiter`
#[derive(Debug, Subcommand)]
pub enum ArbiterVerb {
    /// Enrol this node at the witness that printed the line
    #[command(after_help = "Example:\n  kagami arbiter join kgw1-... --mirror pg")]
    Join {
        /// The line that `kagami witness enrol` printed
        #[arg(value_name = "TOKEN")]
        token: String,
        /// Let this mirror's copies go on alone by its word (`solo = "arbiter"`)
        #[arg(long)]
        mirror: Vec<String>,
        /// Take it instead of the arbiter that the mirror has; the copies must be in sync
        #[arg(long, requires = "mirror")]
        replace: bool,
    },
    /// Let an [arbiter.NAME] of the configuration, a witness or an etcd, decide for a mirror
    #[command(
        after_help = "Examples:\n  kagami arbiter use kv --mirror pg             # a mirror without an arbiter\n  kagami arbiter use kv --mirror pg --replace   # instead of the one it has"
    )]
    Use {
        /// The NAME of an [arbiter.NAME] in this node's kagami.toml
        #[arg(value_name = "NAME")]
        name: String,
        /// Let this mirror's copies go on alone by its word (`solo = "arbiter"`)
        #[arg(long, required = true)]
        mirror: Vec<String>,
        /// Take it instead of the arbiter that the mirror has; the copies must be in sync
        #[arg(long)]
        replace: bool,
    },
}
