//! UDP sockets and the QUIC transport over them: buffers, datagram sizes, time-outs, windows.
//!
//! The numbers come from measurements (docs/decisions/0003-link-identity.md): datagrams over 6,550
//! bytes make a batch of ten exceed UDP's 64 KiB, which the kernel refuses and quinn takes for loss;
//! an acknowledgement delay of 25 ms is what a lost last packet would cost; QUIC's send window is
//! shared by all streams of a connection, so that a bound there would let data hold up control.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{
    AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, TransportConfig, VarInt, congestion,
};
use rustix::net::sockopt;
use sha2::{Digest, Sha256};
use socket2::{Domain, Protocol, Socket, Type};

use super::config::{Congestion, Tuning};
use super::congestion::PathCubicConfig;
use super::runtime::{ThreadRuntime, WatchedSocket};
use crate::shell::identity::NodeKey;
use crate::wire::frame::Class;

/// The address can't be listened on, or no socket can be had.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {error}; is another program using the address, and is it this machine's?")]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// The system's answer.
    pub error: io::Error,
}

/// The least time-out of a peer: below it a busy machine looks dead.
const LEAST_TIMEOUT: Duration = Duration::from_millis(100);
/// The largest UDP payload that the kernel can join to one buffer on receiving.
const MAX_JOINED: usize = 65_535;
/// Bytes sent before the first acknowledgement. QUIC's default of 12 KB is two of our datagrams, and
/// quinn holds back even the close of a connection while its window is full.
const INITIAL_WINDOW: u64 = 256 << 10;
/// Streams beyond what the mirrors need: sessions being closed while their successors open.
const SPARE_SESSIONS: u32 = 4;

/// What a connection's peer may have open and on its way, for this many mirrors with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowance {
    /// Streams at once.
    pub streams: u32,
    /// Bytes not yet read, on all streams together.
    pub window: VarInt,
}

/// Bytes not yet read on a connection that no session was opened on: preambles, and nothing else.
const WINDOW_BEFORE_SESSIONS: u32 = 256 << 10;

impl Allowance {
    /// Before the first session. (Who is dialled gives what the mirrors need with the first preamble:
    /// a peer that only connects, again and again, must not fill this node's memory.)
    pub(super) fn before_sessions(self) -> Self {
        Self {
            window: WINDOW_BEFORE_SESSIONS.into(),
            ..self
        }
    }

    pub(super) fn for_mirrors(tuning: &Tuning, mirrors: usize) -> Self {
        let mirrors = (mirrors as u32).min(tuning.max_mirrors);
        let classes = Class::ALL.len() as u32;
        // The data and resync streams of all mirrors may be full and unread, and control goes on.
        let streams = u64::from((classes - 1) * mirrors + 2);
        let window = streams * u64::from(tuning.stream_window);
        Self {
            streams: classes * (2 * mirrors + SPARE_SESSIONS),
            window: VarInt::try_from(window).unwrap_or(VarInt::MAX),
        }
    }
}

/// How a connection behaves, with a peer's time-out.
pub(super) fn transport(tuning: &Tuning, timeout: Duration, allow: Allowance) -> TransportConfig {
    let timeout = timeout.max(LEAST_TIMEOUT);
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(
            IdleTimeout::try_from(timeout).unwrap_or_else(|_| VarInt::MAX.into()),
        ))
        .keep_alive_interval(Some(timeout / 4))
        .max_concurrent_bidi_streams(allow.streams.into())
        // Each side says hello on one stream, and each note on one.
        .max_concurrent_uni_streams(2u32.into())
        .stream_receive_window(tuning.stream_window.into())
        .receive_window(allow.window)
        .send_window(u64::MAX)
        // Lost packets of a handshake are sent again after three of these.
        .initial_rtt(Duration::from_millis(50))
        .datagram_receive_buffer_size(None);
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(tuning.max_datagram);
    config.mtu_discovery_config(Some(mtu));
    let mut ack = AckFrequencyConfig::default();
    ack.max_ack_delay(Some(tuning.ack_delay))
        .ack_eliciting_threshold(tuning.ack_every.into());
    config.ack_frequency_config(Some(ack));
    match tuning.congestion {
        Congestion::Path => {
            let path = PathCubicConfig {
                initial_window: INITIAL_WINDOW,
            };
            config.congestion_controller_factory(Arc::new(path));
        }
        Congestion::Cubic => {
            let mut cubic = congestion::CubicConfig::default();
            cubic.initial_window(INITIAL_WINDOW);
            config.congestion_controller_factory(Arc::new(cubic));
        }
        Congestion::Bbr => {
            let mut bbr = congestion::BbrConfig::default();
            bbr.initial_window(INITIAL_WINDOW);
            config.congestion_controller_factory(Arc::new(bbr));
        }
    }
    config
}

/// Opens a UDP socket and the QUIC endpoint on it.
pub(super) fn open(
    address: SocketAddr,
    tuning: &Tuning,
    key: &NodeKey,
    server: Option<quinn::ServerConfig>,
) -> Result<quinn::Endpoint, BindError> {
    let attempt = || -> io::Result<quinn::Endpoint> {
        let segments = MAX_JOINED.div_ceil(usize::from(tuning.max_datagram));
        let socket = WatchedSocket::new(udp_socket(address, tuning.socket_buffer)?, segments)?;
        let mut config = EndpointConfig::new(Arc::new(ResetKey(key.secret("stateless reset"))));
        config
            .cid_generator(|| Box::new(RandomIds))
            .max_udp_payload_size(tuning.max_datagram)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let runtime = Arc::new(ThreadRuntime);
        quinn::Endpoint::new_with_abstract_socket(config, server, Arc::new(socket), runtime)
    };
    attempt().map_err(|error| BindError { address, error })
}

/// The address to bind for dialling alone, of the same family as `peer`.
pub(super) fn any_address(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn udp_socket(address: SocketAddr, buffer: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        // So that the same port can be listened on for IPv4 by a socket of its own.
        socket.set_only_v6(true)?;
    }
    enlarge_buffers(&socket, buffer)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Asks for large buffers past the system's bound, else up to it, and says when that is too little.
fn enlarge_buffers(socket: &Socket, wanted: usize) -> io::Result<()> {
    if sockopt::set_socket_recv_buffer_size_force(socket, wanted).is_err() {
        socket.set_recv_buffer_size(wanted)?;
    }
    if sockopt::set_socket_send_buffer_size_force(socket, wanted).is_err() {
        socket.set_send_buffer_size(wanted)?;
    }
    // The kernel reports twice what was granted, for its own bookkeeping.
    let granted = (socket.recv_buffer_size()? / 2).min(socket.send_buffer_size()? / 2);
    if granted < wanted {
        tracing::warn!(
            wanted,
            granted,
            "the system allows only small UDP buffers, packets will be lost under load: raise \
             net.core.rmem_max and net.core.wmem_max, or give the daemon CAP_NET_ADMIN"
        );
    }
    Ok(())
}

/// Signs stateless resets with a secret that outlives the daemon: a peer that goes on talking to a
/// daemon that restarted is told at once, instead of waiting for its time-out.
struct ResetKey([u8; 32]);

impl ResetKey {
    /// Hashed twice, so that no signature of a longer text follows from one known.
    fn digest(&self, data: &[u8]) -> [u8; 32] {
        let inner = Sha256::new()
            .chain_update(self.0)
            .chain_update(data)
            .finalize();
        Sha256::new()
            .chain_update(self.0)
            .chain_update(inner)
            .finalize()
            .into()
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(&self.digest(data)[..signature_out.len()]);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let differs = self
            .digest(data)
            .iter()
            .zip(signature)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        if signature.len() == self.signature_len() && differs == 0 {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}

/// Connection ids that any daemon of this node takes for its own, so that it resets those it lost.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&super::random().to_le_bytes())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
