//! What the link is told: who this node is, who its peers are, and how it treats the network.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::shell::identity::Fingerprint;

/// The protocol versions that this build speaks, the newest first: the present one and the one
/// before (docs/wire-protocol.md, *Versions*).
pub const SUPPORTED: &[u16] = &[2, 1];

/// A node's stable id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u128);

/// A mirror's stable id, the same on both nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MirrorId(pub u128);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for MirrorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The link of one data-plane thread.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// This node.
    pub node: NodeId,
    /// The data-plane thread; only the same thread of a peer is spoken to. Each thread listens on
    /// addresses of its own.
    pub thread: u16,
    /// Where peers reach this thread; port 0 takes any. Without one this node can only dial.
    pub listen: Vec<SocketAddr>,
    /// Everybody that may connect, or is to be dialled.
    pub peers: Vec<PeerConfig>,
    /// Protocol versions to speak, the newest first.
    pub versions: Vec<u16>,
    /// How the network is treated.
    pub tuning: Tuning,
}

impl LinkConfig {
    /// A link with everything at its default, no listener and no peer.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            thread: 0,
            listen: Vec::new(),
            peers: Vec::new(),
            versions: SUPPORTED.to_vec(),
            tuning: Tuning::default(),
        }
    }
}

/// One peer. The node with the lower id dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its id.
    pub node: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Where its thread of the same number listens, the best first.
    pub addresses: Vec<SocketAddr>,
    /// Its key, or two while it is being replaced.
    pub fingerprints: Vec<Fingerprint>,
    /// A peer silent for as long is dead. The lesser of both nodes' values counts; at least 100 ms.
    pub timeout: Duration,
}

/// Default of [`PeerConfig::timeout`].
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// The congestion control of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// Cubic that knows what the path carries, and does not take a few losses for a full queue; the default.
    Path,
    /// Plain cubic.
    Cubic,
    /// Better where packets get lost without congestion, slower where none do.
    Bbr,
}

/// How the network is treated. The defaults are measured (docs/decisions/0003-link-identity.md).
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Mirrors that one connection can carry at most.
    pub max_mirrors: u32,
    /// Bytes that a peer may have on its way on one stream before it must wait; at least a frame.
    pub stream_window: u32,
    /// Bytes asked for as the UDP socket's buffers, each way.
    pub socket_buffer: usize,
    /// The largest UDP payload to try, in bytes; larger than the path allows is found out and not
    /// used. Ten of them must fit into 64 KiB, the kernel's bound for one batch.
    pub max_datagram: u16,
    /// How long the receiver may wait before it acknowledges: a lost last packet costs that more.
    pub ack_delay: Duration,
    /// Packets received before one acknowledgement is due.
    pub ack_every: u32,
    /// The congestion control.
    pub congestion: Congestion,
    /// Bytes that may wait to be sent on one stream; a session over it is closed. Payloads are bounded by the pool that
    /// they lie in, so this has to be more than that has.
    pub max_queued: usize,
    /// Between the starts of two attempts to reach a peer by different addresses.
    pub stagger: Duration,
    /// The pause after a first failure; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause between attempts.
    pub longest_pause: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            max_mirrors: 256,
            stream_window: 8 << 20,
            socket_buffer: 4 << 20,
            max_datagram: 6500,
            ack_delay: Duration::from_millis(1),
            ack_every: 10,
            congestion: Congestion::Path,
            max_queued: 256 << 20,
            stagger: Duration::from_millis(150),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(2),
        }
    }
}
