//! What the daemon asks of the engine that runs the mirrors.
//!
//! The engine owns disks, links and cores on threads of its own; this is the handle that the
//! control channel holds. It is a trait so that the control channel is tested without disks.

use std::collections::BTreeSet;
use std::future::Future;

use kagami_replicator::core::event::{Command, Refusal, Reply};
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::NodeId;
use kagami_replicator::core::status::Status;
use kagami_replicator::shell::engine::PeerEvent;
use kagami_replicator::shell::identity::Fingerprint;
use kagami_replicator::shell::quic::Note;
use tokio::sync::broadcast;

use super::mirrors::addresses::Addresses;
use crate::config::Config;
use crate::control::driver::Wanted;
use crate::control::report::DeviceReport;

/// A handle on the running mirrors. Clones are handles on the same.
pub trait Engine: Clone + Send + Sync + 'static {
    /// Gives a command to a mirror and waits until it is done, begun or refused.
    fn command(
        &self,
        mirror: &str,
        command: Command,
    ) -> impl Future<Output = Result<Reply, Refusal>> + Send;

    /// The state of every mirror that the engine was started with.
    fn status(&self) -> impl Future<Output = Vec<MirrorStatus>> + Send;

    /// The node that a mirror's copy is paired with, by its id; `None`: nobody.
    fn peer(&self, mirror: &str) -> impl Future<Output = Option<u64>> + Send {
        let _ = mirror;
        async { None }
    }

    /// Looks up what names stand for, which may take as long as a resolver that is dead.
    fn look_up(&self, names: &BTreeSet<String>) -> impl Future<Output = Addresses> + Send {
        let _ = names;
        async { Addresses::default() }
    }

    /// This configuration is in force from now on; what it says of peers and arbiters is
    /// [told](Self::relink) besides, and a mirror's settings by a [command](Self::command).
    fn in_force(&self, config: &Config) {
        let _ = config;
    }

    /// Peers, their addresses and keys, and arbiters are from now on what is [in force](Self::in_force). `found`: the
    /// addresses of names, where they were looked up anew. It waits for no resolver.
    fn relink(&self, found: &Addresses) -> impl Future<Output = ()> + Send {
        let _ = found;
        async {}
    }

    /// The connections with peers, one for each.
    fn links(&self) -> impl Future<Output = Vec<PeerLink>> + Send {
        async { Vec::new() }
    }

    /// Tells a peer something, if it can be told.
    fn tell(&self, peer: NodeId, note: &Note) -> impl Future<Output = ()> + Send {
        let _ = (peer, note);
        async {}
    }

    /// What peers do and tell from now on; `None`: there are none.
    fn peer_events(&self) -> Option<broadcast::Receiver<PeerEvent>> {
        None
    }

    /// Shows the key that is in the node's folder now.
    fn show_new_key(&self) -> impl Future<Output = Result<(), String>> + Send {
        async { Ok(()) }
    }

    /// Everything that happens from now on. A receiver that lags misses the oldest.
    fn events(&self) -> broadcast::Receiver<Noticed>;

    /// Makes a mirror a block device of this machine's kernel.
    /// `unless_primary`: why this node is not made Primary for that, if it is not.
    fn attach(
        &self,
        mirror: &str,
        wanted: Wanted,
        unless_primary: Option<Refusal>,
    ) -> impl Future<Output = Result<Attached, Refusal>> + Send {
        let _ = (mirror, wanted, unless_primary);
        async { Err(no_devices()) }
    }

    /// Takes that device down again; `force`: whoever uses it.
    fn detach(
        &self,
        mirror: &str,
        force: bool,
    ) -> impl Future<Output = Result<Reply, Refusal>> + Send {
        let _ = (mirror, force);
        async { Err(no_devices()) }
    }

    /// Waits until the loop of every data-plane thread has turned once. While one is stuck it waits.
    fn beat(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Stops every mirror cleanly (demoted, left, flushed, logs emptied) and closes all stores.
    /// When it returns, nothing of this daemon is in flight.
    ///
    /// Gives what was not stopped cleanly, a line for each mirror.
    fn stop(&self) -> impl Future<Output = Vec<String>> + Send;
}

fn no_devices() -> Refusal {
    Refusal {
        what: "this daemon has no devices in the kernel".to_owned(),
        facts: Vec::new(),
        next: "use the NBD socket that `kagami status` shows".to_owned(),
    }
}

/// A connection with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLink {
    /// The peer.
    pub peer: NodeId,
    /// The protocol version that both speak.
    pub version: u16,
    /// The key that it showed.
    pub key: Fingerprint,
    /// A mirror is connected over it: the peer is there.
    pub is_used: bool,
}

/// A mirror that is a device of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// `/dev/nbdN` or `/dev/ublkbN`
    pub device: String,
    /// `/dev/kagami/NAME`
    pub link: String,
    /// It was before, too.
    pub already: bool,
}

/// Why a mirror is not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotOpen {
    /// In words.
    pub why: String,
    /// It is still tried: nobody has to do anything here.
    pub opening: bool,
}

/// One mirror as the engine knows it.
#[derive(Clone, Debug)]
pub struct MirrorStatus {
    /// Its name in the configuration.
    pub name: String,
    /// The core's word, or why there is no core.
    pub core: Result<Status, NotOpen>,
    /// Why this copy has no disk, if it has none.
    pub disk_fault: Option<String>,
    /// Why its question to go alone is not put to the arbiter.
    pub held_back: Option<String>,
    /// The peer's address that the session uses.
    pub peer_address: Option<String>,
    /// The protocol version that both speak.
    pub link_version: Option<u16>,
    /// Where front ends serve it: NBD URIs, devices.
    pub served_at: Vec<String>,
    /// The device in the kernel, where it is attached.
    pub device: Option<DeviceReport>,
    /// How long writes took lately.
    pub write_latency: Option<WriteLatency>,
}

/// From a write's arrival to its answer, over the last seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteLatency {
    /// Median, nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile, nanoseconds.
    pub p99_ns: u64,
}

/// Something that happened to a mirror.
#[derive(Clone, Debug)]
pub struct Noticed {
    /// Its name in the configuration.
    pub mirror: String,
    /// When, milliseconds since 1970.
    pub time_ms: u64,
    /// What.
    pub notice: Notice,
}
