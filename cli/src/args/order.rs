//! Arguments of the orders to a mirror that runs.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{UblkVerb, device_id, time};
use crate::control::driver::DeviceId;
use crate::control::message::Source;

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
    /// Give this copy up though it may be the only one of the newest writes: they are lost
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub danger: DangerArgs,
}
