//! What the engine tells people: a mirror's whole state, and each thing that happens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::host::Host;
use super::latency::Latencies;
use crate::core::notice::Notice;
use crate::core::state::{Connection, NodeId, Protocol, Solo, Time};
use crate::core::status::Status;
use crate::shell::buffers;
use crate::shell::disk;
use crate::shell::identity::Fingerprint;
use crate::shell::quic::{Link, Note, PeerStatus};
use crate::shell::storage::Storage;

/// A mirror on this node, for `kagami status`.
#[derive(Clone, Debug)]
pub struct MirrorStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Its id.
    pub mirror: u128,
    /// Its data-plane thread.
    pub thread: u16,
    /// What the core says. Its times are of the clock of `now`.
    pub core: Status,
    /// When this was said.
    pub now: Time,
    /// The peer.
    pub peer: NodeId,
    /// The backing store.
    pub backing: PathBuf,
    /// The metadata store; `None`: in the backing store's tail.
    pub metadata: Option<PathBuf>,
    /// Bytes of a logical block.
    pub logical_block: u32,
    /// When a write is answered.
    pub protocol: Protocol,
    /// Permission to go on alone.
    pub solo: Solo,
    /// Who is asked for it.
    pub arbiter: String,
    /// The mirror whose decision it follows.
    pub follows: Option<String>,
    /// Why its question to go alone is not put to the arbiter, where that is so.
    pub held_back: Option<String>,
    /// Why there is no backing store, if there was none at the start.
    pub diskless: Option<String>,
    /// What was found in the metadata at the start.
    pub findings: Vec<String>,
    /// The connection that the mirror's sessions use.
    pub link: Option<PeerStatus>,
    /// Why there is no connection, as was found out last.
    pub link_trouble: Option<String>,
    /// Writes of front ends, of the last ten to twenty seconds.
    pub writes: Latencies,
    /// Requests of front ends that wait for their answer.
    pub requests: usize,
    /// What the backing store has done.
    pub disk: Option<disk::Counters>,
    /// The thread's payload memory.
    pub pool: buffers::Stats,
    /// That memory is locked.
    pub pool_locked: bool,
}

impl MirrorStatus {
    pub(super) fn of(
        host: &mut Host,
        thread: u16,
        now: Time,
        storage: &Storage,
        link: &Link,
    ) -> Self {
        let record = host.mirror.record();
        let settings = host.mirror.settings();
        let place = host.gate.as_ref().map(|gate| gate.place());
        let core = host.mirror.status(now);
        let is_decided = core.connection == Connection::Connected || core.alone_since.is_some();
        Self {
            name: Arc::clone(&host.name),
            mirror: host.config.mirror,
            thread,
            core,
            now,
            peer: host.mirror.peer(),
            backing: host.config.backing.clone(),
            metadata: host.config.metadata.clone(),
            logical_block: record.logical_block,
            protocol: settings.protocol,
            solo: settings.solo,
            arbiter: host.arbiter.describe(),
            follows: place.and_then(|place| place.leader.clone()),
            held_back: host
                .gate
                .as_ref()
                .filter(|_| !is_decided)
                .and_then(|gate| gate.held()),
            diskless: host.stores.disk.as_ref().err().cloned(),
            findings: host.findings.clone(),
            link: link.peer_status(super::config::link_node(host.mirror.peer())),
            link_trouble: host.link_trouble.clone(),
            writes: host.latency.read(now),
            requests: host.requests.len(),
            disk: host
                .stores
                .disk
                .as_ref()
                .ok()
                .map(|(_, disk)| storage.counters(*disk)),
            pool: storage.pool().stats(),
            pool_locked: storage.pool().is_locked(),
        }
    }
}

/// Something that a peer did or told, on any data-plane thread.
#[derive(Clone, Debug)]
pub struct PeerEvent {
    /// The peer.
    pub peer: NodeId,
    /// What.
    pub word: PeerWord,
}

/// What a peer did or told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerWord {
    /// It connected, and showed this key.
    Key(Fingerprint),
    /// It told something.
    Note(Note),
}

/// Something that happened to a mirror.
#[derive(Clone, Debug)]
pub struct MirrorEvent {
    /// The mirror.
    pub mirror: Arc<str>,
    /// When, by the wall clock.
    pub at: SystemTime,
    /// What.
    pub notice: Notice,
}
