//! What the manager and the guard tell each other: JSON, a line each.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The longest line, in bytes.
pub const LINE_MAX: usize = 65_536;

/// A group to be watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Its name.
    pub group: String,
    /// Its mirrors.
    pub mirrors: Vec<String>,
    /// The control group of its processes; without it they can't be frozen.
    pub control_group: Option<PathBuf>,
    /// Its systemd units: their processes are in control groups of their own, while there are some.
    #[serde(default)]
    pub units: Vec<String>,
    /// Its floating addresses.
    pub addresses: Vec<IpAddr>,
    /// How long permission is waited for after a lease's end, in milliseconds.
    pub margin_ms: u64,
    /// How long the group may then take to stop, in milliseconds.
    pub bound_ms: u64,
    /// Of a group without a mirror: the end of its lease, on the clock that both processes read.
    #[serde(default)]
    pub lease_ends_ms: Option<u64>,
}

impl Watched {
    /// What the configuration makes of the group now. What it had before may still be there, so it stays
    /// on the lists; the times are the new ones.
    pub fn become_too(&mut self, new: Self) {
        fn add<T: PartialEq>(to: &mut Vec<T>, new: Vec<T>) {
            for one in new {
                if !to.contains(&one) {
                    to.push(one);
                }
            }
        }
        add(&mut self.mirrors, new.mirrors);
        add(&mut self.units, new.units);
        add(&mut self.addresses, new.addresses);
        self.control_group = new.control_group.or(self.control_group.take());
        (self.margin_ms, self.bound_ms) = (new.margin_ms, new.bound_ms);
        self.lease_ends_ms = new.lease_ends_ms;
    }
}

/// What the manager wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Want {
    /// Watch a group from now on; one that is watched stays so, with what it has become.
    Arm {
        /// Which.
        watched: Watched,
        /// The right is held: it counts before the daemon has said so.
        held: bool,
    },
    /// The lease of a group without a mirror ends later than was said.
    Extend {
        /// Which.
        group: String,
        /// When, on the clock that both processes read.
        ends_ms: u64,
    },
    /// Nothing of a group runs here any more.
    Disarm(String),
    /// User space runs: if this is not said again within so many milliseconds, the node is reset; 0: nobody
    /// will say it.
    Alive(u64),
    /// The node is reset, at once: something of it has to stop, and the manager can't stop it; why.
    Reset(String),
}

impl Want {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Arm { .. } => "arm",
            Self::Extend { .. } => "extend",
            Self::Disarm(_) => "disarm",
            Self::Alive(_) => "alive",
            Self::Reset(_) => "reset",
        }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the answer.
    pub id: u64,
    /// What is wanted.
    pub want: Want,
}

/// What is understood of a request in any case.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Numbered {
    pub id: u64,
}

/// What a guard says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Say {
    /// Done.
    Done {
        /// Of the request.
        id: u64,
        /// The guard is stopping the group.
        stopping: bool,
    },
    /// The right to run this group is lost; its addresses are gone, and it has to stop.
    Lost(String),
    /// The guard does not know what is wanted: the manager is of a later build.
    Unknown {
        /// Of the request.
        id: u64,
        /// In words.
        why: String,
    },
}
