//! What the kernel's ublk driver refuses, in words.

use std::io;

/// Why the driver does not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UblkFault {
    /// The module is not loaded.
    #[error("this kernel shows no ublk driver here: its module `ublk_drv` is not loaded")]
    NoModule,
    /// `CAP_SYS_ADMIN` is missing.
    #[error("the kernel does not let this process set up ublk devices: it lacks CAP_SYS_ADMIN")]
    NotPermitted,
    /// The driver can't keep a device over the end of its daemon as it must.
    #[error(
        "the ublk driver of this kernel ({release}, features {features:#x}) is too old: Linux 6.12 or newer is needed"
    )]
    TooOld {
        /// The kernel's release.
        release: String,
        /// What it says that it can do; 0 if it can't be asked.
        features: u64,
    },
    /// Another program's, or in a state in which it is not to be taken.
    #[error("/dev/ublkb{id} is in use: {by}")]
    InUse {
        /// Its number.
        id: u32,
        /// By whom.
        by: String,
    },
    /// There is no such device, or nothing waits in it.
    #[error("there is no device /dev/ublkb{id} that could be served: {what}")]
    Gone {
        /// Its number.
        id: u32,
        /// What there is.
        what: &'static str,
    },
    /// The daemon before has not let it go.
    #[error(
        "/dev/ublkb{id} is not free yet: the process {pid} that served it, or a child of it, has it open"
    )]
    Busy {
        /// Its number.
        id: u32,
        /// Who served it.
        pid: i32,
    },
    /// The kernel thinks that it is served, and nobody can take it over any more.
    #[error(
        "/dev/ublkb{id} can't be served any more: the daemon that took it over was killed in the moment in which the kernel began to count on it, and this kernel gives it to no other"
    )]
    Lost {
        /// Its number.
        id: u32,
    },
    /// Another refusal.
    #[error("the kernel's ublk driver refused {doing}: {error}")]
    Io {
        /// The command.
        doing: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

impl UblkFault {
    /// One word for it, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoModule => "no-module",
            Self::NotPermitted => "not-permitted",
            Self::TooOld { .. } => "too-old",
            Self::InUse { .. } => "in-use",
            Self::Gone { .. } => "gone",
            Self::Busy { .. } => "busy",
            Self::Lost { .. } => "lost",
            Self::Io { .. } => "failed",
        }
    }

    /// What a person can do about it.
    pub fn next(&self) -> &'static str {
        next(self.name())
    }
}

/// What a person can do about a fault of that [name](UblkFault::name).
pub fn next(name: &str) -> &'static str {
    match name {
        "no-module" => {
            "load it: `modprobe ublk_drv` (as root; a line `ublk_drv` in /etc/modules-load.d/ does it at every boot). The module belongs to the kernel's package: linux-image-VERSION on Debian (12's own kernel is built without it, that of its backports has it), linux-modules-extra-VERSION on Ubuntu, kernel-modules-core or kernel-modules-extra on Fedora"
        }
        "not-permitted" => {
            "run the daemon as root, or give it CAP_SYS_ADMIN (systemd: AmbientCapabilities=CAP_SYS_ADMIN)"
        }
        "too-old" => {
            "attach it without --ublk: /dev/nbdN works with every kernel; or boot Linux 6.12 or newer"
        }
        "in-use" => {
            "end who uses it, or name another device with --device, or none: then a free one is taken"
        }
        "gone" => "attach it again",
        "busy" => {
            "wait until that process has ended; `kagami status` shows when it is served again"
        }
        "lost" => {
            "unmount what uses it (its requests fail), `kagami detach MIRROR --force`, and attach it again; nothing that was flushed is lost"
        }
        _ => "the kernel's log says more: `dmesg | grep ublk`",
    }
}
