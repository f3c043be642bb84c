//! Bounds on what clients can make the server hold and wait for.

use std::time::Duration;

/// Limits of a server. The default suits a daemon with a few busy clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, handshakes and sessions that still wait for their device included.
    /// The next one is closed at once.
    pub max_connections: usize,
    /// From the connection to the choice of an export, TLS handshake included.
    pub negotiation_timeout: Duration,
    /// Options in one handshake.
    pub max_options: u32,
    /// Requests of a connection that are not answered to the last byte. Beyond it nothing more is
    /// read from that client.
    pub max_in_flight: usize,
    /// Payload bytes, of writes and of read replies, of these requests. A single request may go
    /// beyond.
    pub max_in_flight_bytes: u64,
    /// How long a client may leave a reply untaken, or a payload unfinished, before it is cut
    /// off; it holds memory of the device's pool meanwhile. `None`: forever.
    pub stall_timeout: Option<Duration>,
    /// How long a connection without requests in flight stays open at a shutdown, so that a
    /// request on its way is answered `NBD_ESHUTDOWN` instead of with silence.
    pub linger: Duration,
    /// The client keeps what is not answered and sends it again on another connection, as the kernel
    /// does. So a refusal that is about the moment ([`Errno::Perm`](crate::Errno::Perm),
    /// [`Errno::Shutdown`](crate::Errno::Shutdown): the device is not served now) is never
    /// sent: it ends the connection.
    pub client_resends: bool,
}

impl Limits {
    /// For the kernel's end of an attached device: it may leave a reply as long as it likes, and sends
    /// again what was not answered.
    pub fn kernel() -> Self {
        Self {
            stall_timeout: None,
            client_resends: true,
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1000,
            negotiation_timeout: Duration::from_secs(30),
            max_options: 128,
            max_in_flight: 256,
            max_in_flight_bytes: 64 << 20,
            stall_timeout: Some(Duration::from_mins(1)),
            linger: Duration::from_millis(100),
            client_resends: false,
        }
    }
}
