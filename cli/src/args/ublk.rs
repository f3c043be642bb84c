//! Arguments of `kagami kernel-device ublk`: the daemon's child.

use std::num::NonZeroU32;

use clap::{Args, Subcommand};

use super::{logical_block, size};

/// `kagami kernel-device ublk`
#[derive(Debug, Subcommand)]
pub enum UblkVerb {
    /// Say what the driver can do
    #[command(after_help = "Example:\n  kagami kernel-device ublk features")]
    Features,
    /// Say which devices there are
    #[command(after_help = "Example:\n  kagami kernel-device ublk list")]
    List,
    /// Make a device that nobody sees yet
    Add(UblkAddArgs),
    /// Start a device; its users go on when a process has opened its queues, unless the input ends
    #[command(after_help = "Example:\n  kagami kernel-device ublk start 0 4711")]
    Start {
        /// N of /dev/ublkbN
        id: u32,
        /// The process that opens its queues
        #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
        pid: u32,
    },
    /// Let the kernel know the partitions of a device, as it does not look for them itself
    #[command(after_help = "Example:\n  kagami kernel-device ublk partitions 0")]
    Partitions {
        /// N of /dev/ublkbN
        id: u32,
    },
    /// Take a device from its users
    #[command(after_help = "Example:\n  kagami kernel-device ublk stop 0")]
    Stop {
        /// N of /dev/ublkbN
        id: u32,
    },
    /// Remove a device
    #[command(after_help = "Example:\n  kagami kernel-device ublk delete 0")]
    Delete {
        /// N of /dev/ublkbN
        id: u32,
    },
    /// Take a device from a daemon that died; its users go on when a process has opened its queues, unless the input
    /// ends
    #[command(
        after_help = "Example:\n  kagami kernel-device ublk recover 0 4711 --mark 0123456789abcdef"
    )]
    Recover {
        /// N of /dev/ublkbN
        id: u32,
        /// The process that opens its queues
        #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
        pid: u32,
        /// Whose it must be
        #[arg(long, value_parser = mark)]
        mark: u64,
    },
}

/// `kagami kernel-device ublk add`
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kagami kernel-device ublk add --mark 0123456789abcdef --size 1G --logical-block 512 --max-payload 33554432"
)]
pub struct UblkAddArgs {
    /// Whose it is, which the kernel keeps: 16 hexadecimal digits
    #[arg(long, value_parser = mark)]
    pub mark: u64,
    /// Its size, bytes
    #[arg(long, value_parser = size)]
    pub size: u64,
    /// The least unit of I/O, bytes
    #[arg(long, value_name = "BYTES", value_parser = logical_block)]
    pub logical_block: u32,
    /// The longest payload that is taken, bytes
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(4096..))]
    pub max_payload: u32,
    /// It is slow to seek
    #[arg(long)]
    pub rotational: bool,
    /// N of /dev/ublkbN [default: a free one]
    #[arg(long, value_name = "N")]
    pub id: Option<u32>,
}

impl UblkAddArgs {
    /// The least unit of I/O, bytes.
    pub fn logical_block(&self) -> NonZeroU32 {
        NonZeroU32::new(self.logical_block).expect("512 or 4096")
    }
}

fn mark(text: &str) -> Result<u64, String> {
    let is_mark = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    match u64::from_str_radix(text, 16) {
        Ok(mark) if is_mark => Ok(mark),
        _ => Err("write 16 hexadecimal digits".to_owned()),
    }
}
