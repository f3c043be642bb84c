//! What the engine is told: this node, its threads and peers, and each mirror.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::core::settings::Settings;
use crate::core::state::NodeId;
use crate::shell::boot::Boot;
use crate::shell::etcd::EtcdConfig;
use crate::shell::patience::DEFAULT_BUSY_POLL;
use crate::shell::quic::{self, PeerConfig, Tuning};
use crate::shell::witness::ClientConfig;

/// Memory for payloads of one thread, unless the configuration says otherwise.
pub const DEFAULT_BUFFERS: usize = 64 << 20;

/// How long a store that somebody holds is tried: a killed daemon's writes may still be landing.
pub const DEFAULT_FENCE_WAIT: Duration = Duration::from_secs(30);

/// The engine of a node.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This node.
    pub node: NodeId,
    /// The folder of this node's key ([`crate::shell::identity::NodeKeys`]).
    pub key_folder: PathBuf,
    /// Where peers reach thread 0; thread k listens on port + k. Port 0 takes any, for each thread.
    pub listen: Vec<SocketAddr>,
    /// Everybody that mirrors are shared with; their addresses are those of thread 0 too.
    pub peers: Vec<PeerConfig>,
    /// Data-plane threads, at least one.
    pub threads: u16,
    /// Bytes of payload memory of each thread.
    pub buffers: usize,
    /// Lock that memory (where it is permitted).
    pub lock_buffers: bool,
    /// How long a thread looks at most before it sleeps; zero: not at all ([`patience`](crate::shell::patience)).
    pub busy_poll: Duration,
    /// This boot, and where its tokens lie.
    pub boot: Boot,
    /// How the network is treated.
    pub tuning: Tuning,
    /// The newest protocol version to speak; older ones that this build knows are spoken too.
    pub newest_version: u16,
}

impl EngineConfig {
    /// A node with one thread, no listener and no peer.
    pub fn new(node: NodeId, key_folder: PathBuf, boot: Boot) -> Self {
        Self {
            node,
            key_folder,
            listen: Vec::new(),
            peers: Vec::new(),
            threads: 1,
            buffers: DEFAULT_BUFFERS,
            lock_buffers: true,
            busy_poll: DEFAULT_BUSY_POLL,
            boot,
            tuning: Tuning::default(),
            newest_version: quic::SUPPORTED[0],
        }
    }
}

/// A mirror that this node has a copy of.
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    /// Its name here.
    pub name: String,
    /// Its id; a metadata store of another mirror is refused.
    pub mirror: u128,
    /// Bytes, if the configuration says; a store of another size is refused.
    pub size: Option<u64>,
    /// The file or device with the data.
    pub backing: PathBuf,
    /// The file or device with the metadata; `None`: in the tail of the backing store.
    pub metadata: Option<PathBuf>,
    /// The node that has the other copy; [`NodeId::NOBODY`]: there is none.
    pub peer: NodeId,
    /// The data-plane thread that carries it, the same on both nodes.
    pub thread: u16,
    /// What the operator set.
    pub settings: Settings,
    /// Who is asked for permission to go on alone.
    pub arbiter: ArbiterConfig,
    /// How long a store that somebody holds is tried.
    pub fence_wait: Duration,
}

/// Who grants permission.
#[derive(Clone, Debug, Default)]
pub enum ArbiterConfig {
    /// Nobody.
    #[default]
    None,
    /// A witness.
    Witness {
        /// Where it is.
        witness: ClientConfig,
        /// The register, if not the mirror's own (a failover group's).
        register: Option<u128>,
    },
    /// An etcd.
    Etcd {
        /// Where it is, and by what it lets this node in.
        etcd: EtcdConfig,
        /// The register, if not the mirror's own.
        register: Option<u128>,
    },
}

/// The link's spelling of a node's id.
pub(super) fn link_node(node: NodeId) -> quic::NodeId {
    quic::NodeId(u128::from(node.0))
}

/// `address` as thread `thread` uses it.
pub(super) fn shifted(address: SocketAddr, thread: u16) -> SocketAddr {
    let port = match address.port() {
        0 => 0,
        port => port.saturating_add(thread),
    };
    SocketAddr::new(address.ip(), port)
}

/// The peers as thread `thread` reaches them.
pub(super) fn peers_of(peers: &[PeerConfig], thread: u16) -> Vec<PeerConfig> {
    let mut peers = peers.to_vec();
    for address in peers.iter_mut().flat_map(|peer| &mut peer.addresses) {
        *address = shifted(*address, thread);
    }
    peers
}
