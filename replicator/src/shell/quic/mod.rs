//! The link of one data-plane thread: QUIC connections with the peers, a session for each mirror.
//!
//! There is one UDP endpoint for each listen address, one connection for each peer, and over it, for
//! each mirror, a *session*: three streams (control, data, resync, urgent in that order) that begin
//! and end together. A session is new in every respect, so no frame of an ended one can appear in
//! its successor. The node with the lower id dials and opens; the other admits. Connections and
//! sessions are made again for ever, as long as [`Link::want`] says so.
//!
//! The engine is told everything by one queue of [`LinkEvent`]s in order ([`Link::ready`],
//! [`Link::drain`]) and says everything by calls that never wait. What it must watch is
//! [`Link::queued_bytes`]; what holds the peer back is the [`BufferSource`].
//!
//! All tasks run on the thread that made the [`Link`], inside its `LocalSet` or
//! local runtime ([`crate::shell::runtime`]). Policy is elsewhere: which mirrors exist and what the frames mean. The
//! bytes on the wire are described in docs/wire-protocol.md.

mod accept;
mod config;
mod congestion;
mod connection;
mod dial;
mod endpoint;
mod event;
mod inner;
mod memory;
mod note;
mod opening;
mod peer;
pub mod respell;
mod runtime;
mod session;
mod streams;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use kagami_strangers::Strangers;
use tokio::task::{JoinSet, spawn_local};
use tokio::time::timeout;

pub use config::{
    Congestion, DEFAULT_TIMEOUT, LinkConfig, MirrorId, NodeId, PeerConfig, SUPPORTED, Tuning,
};
pub use endpoint::BindError;
pub use event::{CloseReason, DownReason, LinkEvent, LinkFault, PeerFault, SessionId, code};
pub use note::{NOTES_SINCE, Note};
pub use opening::OpeningFault;
pub(in crate::shell) use runtime::lasting_endpoint;
pub use streams::BufferSource;

use crate::shell::identity::{Fingerprint, NodeKey};
use crate::shell::tls::{self, Admit, Pins, TlsError};
use crate::wire::frame::{Class, KIND_CLOSE, OutFrame};
use event::EventQueue;
use inner::{Inner, Mirror};
use peer::Peer;

/// The peers' acknowledgement of what is said last is waited for no longer, whatever their time-outs are: a packet that
/// was lost has been sent again many times by then.
pub const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);

/// The link can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// An address can't be listened on.
    #[error("can't listen on {0}")]
    Bind(#[from] BindError),
    /// The key doesn't fit the crypto.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What is known of the connection with a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its address.
    pub address: SocketAddr,
    /// The round trip, smoothed.
    pub round_trip: Duration,
    /// The protocol version agreed on.
    pub version: u16,
    /// The key that it showed.
    pub key: Fingerprint,
    /// Bytes of UDP payload in one datagram.
    pub datagram: u16,
    /// Packets sent and found lost so far.
    pub lost_packets: u64,
    /// Datagrams sent and received so far.
    pub datagrams: (u64, u64),
}

/// The link of one data-plane thread; see the module. Dropped, it closes everything at once.
pub struct Link {
    inner: Rc<Inner>,
}

impl Link {
    /// Opens the sockets and begins to listen. Received payloads go where `source` says.
    ///
    /// # Errors
    ///
    /// An address can't be listened on; the key can't be used.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with a `LocalSet`.
    pub fn new<S: BufferSource>(
        config: LinkConfig,
        key: NodeKey,
        source: S,
    ) -> Result<Self, LinkError> {
        let source = Rc::new(source);
        let pins = Pins::default();
        let names = connection::protocols(&config.versions);
        let server = tls::quic_server(&key, Admit::Pinned(pins.clone()), names)?;
        let mut endpoints = Vec::new();
        for address in &config.listen {
            let server = Some(server.clone());
            endpoints.push(endpoint::open(*address, &config.tuning, &key, server)?);
        }
        let peers = config.peers.clone();
        let inner = Rc::new(Inner {
            config,
            key: RefCell::new(Rc::new(key)),
            pins,
            server: RefCell::new(server),
            endpoints: RefCell::new(endpoints),
            peers: RefCell::default(),
            mirrors: RefCell::default(),
            sessions: RefCell::default(),
            next_session: Cell::new(1),
            handshakes: Cell::new(0),
            is_stopping: Cell::new(false),
            events: EventQueue::default(),
            told: RefCell::default(),
            strangers: Strangers::default(),
            start_reader: Box::new(move |session, class, recv| {
                spawn_local(streams::read(session, class, recv, Rc::clone(&source))).abort_handle()
            }),
        });
        let link = Self { inner };
        link.set_peers(peers);
        for endpoint in link.inner.endpoints.borrow().iter() {
            spawn_local(accept::accept(Rc::clone(&link.inner), endpoint.clone()));
        }
        Ok(link)
    }

    /// The addresses listened on, with the ports that were given.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.inner
            .endpoints
            .borrow()
            .iter()
            .take(self.inner.config.listen.len())
            .filter_map(|e| e.local_addr().ok())
            .collect()
    }

    /// Puts these peers in the place of all. A connection whose peer or key is gone is closed; other
    /// changes count from the next connection on.
    pub fn set_peers(&self, peers: Vec<PeerConfig>) {
        let inner = &self.inner;
        inner.pins.replace(
            peers
                .iter()
                .flat_map(|peer| peer.fingerprints.iter().copied()),
        );
        let mut old = inner.peers.take();
        let mut lost = Vec::new();
        for config in peers {
            let node = config.node;
            let peer = match old.remove(&node) {
                Some(peer) => {
                    peer.pins.replace(config.fingerprints.iter().copied());
                    *peer.config.borrow_mut() = config;
                    lost.extend(
                        peer.connection()
                            .filter(|conn| !peer.pins.contains(&conn.key)),
                    );
                    peer
                }
                None => Peer::new(config),
            };
            if inner.dials(node) && peer.dialer.borrow().is_none() {
                let task = spawn_local(dial::dial(Rc::clone(inner), Rc::clone(&peer)));
                *peer.dialer.borrow_mut() = Some(task.abort_handle());
            }
            inner.peers.borrow_mut().insert(node, peer);
        }
        for peer in old.into_values() {
            if let Some(dialer) = peer.dialer.take() {
                dialer.abort();
            }
            lost.extend(peer.connection());
        }
        for conn in lost {
            let reason = CloseReason::new(code::UNPINNED, "the key is no longer pinned");
            conn.close(&DownReason::ClosedHere(reason));
        }
        self.restart_keepers();
    }

    /// Shows another key from now on. The connections there are end, and are made again at once
    /// with it: the peers must have pinned it.
    ///
    /// # Errors
    ///
    /// The key can't be used; nothing has changed.
    pub fn set_key(&self, key: NodeKey) -> Result<(), LinkError> {
        let inner = &self.inner;
        let names = connection::protocols(&inner.config.versions);
        let server = tls::quic_server(&key, Admit::Pinned(inner.pins.clone()), names)?;
        let listeners = inner.config.listen.len();
        for endpoint in inner.endpoints.borrow().iter().take(listeners) {
            endpoint.set_server_config(Some(server.clone()));
        }
        *inner.server.borrow_mut() = server;
        *inner.key.borrow_mut() = Rc::new(key);
        let peers: Vec<_> = inner.peers.borrow().values().cloned().collect();
        for conn in peers.iter().filter_map(|peer| peer.connection()) {
            let reason = CloseReason::new(code::NEW_KEY, "the node shows its new key from now on");
            conn.close(&DownReason::ClosedHere(reason));
        }
        Ok(())
    }

    /// Tells a peer something of this node. False: there is no connection, or one of a version
    /// that has no notes.
    pub fn tell(&self, peer: NodeId, note: Note) -> bool {
        let peer = self.inner.peers.borrow().get(&peer).cloned();
        let conn = peer.and_then(|peer| peer.connection());
        let Some(conn) = conn.filter(|conn| conn.version >= NOTES_SINCE) else {
            return false;
        };
        spawn_local(note::send(conn, note));
        true
    }

    /// Says which mirrors this thread has, each with its peer. New ones are not wanted yet; sessions
    /// of those that are gone end.
    pub fn set_mirrors(&self, mirrors: &[(MirrorId, NodeId)]) {
        let gone: Vec<MirrorId> = {
            let all = self.inner.mirrors.borrow();
            all.iter()
                .filter(|(id, mirror)| !mirrors.contains(&(**id, mirror.peer)))
                .map(|(id, _)| *id)
                .collect()
        };
        for mirror in gone {
            self.unwant(
                mirror,
                CloseReason::new(code::UNKNOWN_MIRROR, "this mirror was removed"),
            );
            self.inner.mirrors.borrow_mut().remove(&mirror);
        }
        for (mirror, peer) in mirrors {
            self.inner
                .mirrors
                .borrow_mut()
                .entry(*mirror)
                .or_insert(Mirror {
                    peer: *peer,
                    wanted: false,
                    session: None,
                    keeper: None,
                });
        }
        self.restart_keepers();
    }

    /// Whether a mirror is to have a session. Set to false the session ends, and the peer is refused
    /// new ones (`StandAlone`).
    pub fn want(&self, mirror: MirrorId, wanted: bool) {
        if wanted {
            if let Some(mirror) = self.inner.mirrors.borrow_mut().get_mut(&mirror) {
                mirror.wanted = true;
            }
            self.restart_keepers();
        } else {
            let text = "the mirror is disconnected there (StandAlone)";
            self.unwant(mirror, CloseReason::new(code::NOT_WANTED, text));
        }
    }

    /// Sends a frame; it goes out after those of its class before it. Frames for a session that has
    /// ended are dropped, for its `Down` is on its way.
    ///
    /// # Panics
    ///
    /// When the frame is over the bounds of [`crate::wire::limits`], or of the link's own kind.
    pub fn send(&self, session: SessionId, class: Class, frame: OutFrame) {
        assert!(
            frame.kind != KIND_CLOSE,
            "kind {KIND_CLOSE} belongs to the link"
        );
        let session = self.inner.sessions.borrow().get(&session).cloned();
        if let Some(session) = session {
            session.send(class, frame);
        }
    }

    /// Bytes of frames that wait for the transport; 0 for a session that has ended.
    pub fn queued_bytes(&self, session: SessionId, class: Class) -> usize {
        self.inner
            .sessions
            .borrow()
            .get(&session)
            .map_or(0, |session| session.queued(class))
    }

    /// Ends a session. What waits on its control stream still goes out, with the reason behind it;
    /// of this session only its `Down` is still to come. The mirror gets a new one if it is wanted.
    pub fn close(&self, session: SessionId, reason: CloseReason) {
        let session = self.inner.sessions.borrow().get(&session).cloned();
        if let Some(session) = session {
            session.down(DownReason::ClosedHere(reason));
        }
    }

    /// Waits until there are events.
    pub async fn ready(&self) {
        self.inner.events.ready().await;
    }

    /// Moves all events to the end of `out`, in order.
    pub fn drain(&self, out: &mut Vec<LinkEvent>) {
        self.inner.events.drain(out);
    }

    /// The connection with a peer, if there is one.
    pub fn peer_status(&self, peer: NodeId) -> Option<PeerStatus> {
        let conn = self.inner.peers.borrow().get(&peer)?.connection()?;
        let stats = conn.quic.stats();
        Some(PeerStatus {
            address: conn.quic.remote_address(),
            round_trip: stats.path.rtt,
            version: conn.version,
            key: conn.key,
            datagram: stats.path.current_mtu,
            lost_packets: stats.path.lost_packets,
            datagrams: (stats.udp_tx.datagrams, stats.udp_rx.datagrams),
        })
    }

    /// Ends all sessions and connections, and waits for the peers to be told: QUIC forgets what was not acknowledged
    /// when a connection is closed, and a peer that was not told holds its requests. It takes no longer than
    /// [`SHUTDOWN_PATIENCE`], nor than the time-out of a peer that does not answer, and a second.
    pub async fn shutdown(self) {
        self.rest();
        let sessions: Vec<_> = self.inner.sessions.borrow().values().cloned().collect();
        for session in sessions {
            session.down(stopping());
        }
        let peers: Vec<_> = self.inner.peers.borrow().values().cloned().collect();
        let mut waits = JoinSet::new();
        for conn in peers.iter().filter_map(|peer| peer.connection()) {
            let patience = conn.timeout.min(SHUTDOWN_PATIENCE);
            waits.spawn_local(async move {
                // A peer that isn't told finds out by its time-out.
                let _ = timeout(patience, conn.last_words_arrived()).await;
            });
        }
        waits.join_all().await;
        self.stop();
        let endpoints = self.inner.endpoints.take();
        let all_idle = async {
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
        };
        // A peer that isn't told finds out by its time-out.
        let _ = timeout(Duration::from_secs(1), all_idle).await;
    }

    /// From now on no connection is dialled and no session begins.
    fn rest(&self) {
        for mirror in self.inner.mirrors.borrow_mut().values_mut() {
            mirror.wanted = false;
            if let Some(keeper) = mirror.keeper.take() {
                keeper.abort();
            }
        }
        for peer in self.inner.peers.borrow().values() {
            if let Some(dialer) = peer.dialer.take() {
                dialer.abort();
            }
        }
    }

    fn stop(&self) {
        self.rest();
        self.inner.is_stopping.set(true);
        let reason = stopping();
        for peer in self.inner.peers.take().into_values() {
            if let Some(conn) = peer.connection() {
                conn.close(&reason);
            }
        }
        for endpoint in self.inner.endpoints.borrow().iter() {
            endpoint.close(code::STOPPING.into(), b"the daemon stops");
        }
    }

    fn unwant(&self, mirror: MirrorId, reason: CloseReason) {
        let session = {
            let mut mirrors = self.inner.mirrors.borrow_mut();
            let Some(mirror) = mirrors.get_mut(&mirror) else {
                return;
            };
            mirror.wanted = false;
            if let Some(keeper) = mirror.keeper.take() {
                keeper.abort();
            }
            mirror.session.clone()
        };
        if let Some(session) = session {
            session.down(DownReason::ClosedHere(reason));
        }
        self.restart_keepers();
    }

    /// Starts the tasks that open sessions where they are missing, and tells the dialers.
    fn restart_keepers(&self) {
        let inner = &self.inner;
        let peers = inner.peers.borrow();
        let mut mirrors = inner.mirrors.borrow_mut();
        for (id, mirror) in &mut *mirrors {
            let Some(peer) = peers.get(&mirror.peer) else {
                if let Some(keeper) = mirror.keeper.take() {
                    keeper.abort();
                }
                continue;
            };
            if mirror.wanted && inner.dials(mirror.peer) && mirror.keeper.is_none() {
                let task = dial::keep_session(Rc::clone(inner), Rc::clone(peer), *id);
                mirror.keeper = Some(spawn_local(task).abort_handle());
            }
        }
        for (node, peer) in &*peers {
            let with = || mirrors.values().filter(|mirror| mirror.peer == *node);
            let wanted = with().any(|mirror| mirror.wanted);
            peer.wanted
                .send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
            let mirrors = with().count();
            if let Some(conn) = peer.connection() {
                inner.allow(&conn, mirrors);
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop();
    }
}

fn stopping() -> DownReason {
    DownReason::ClosedHere(CloseReason::new(code::STOPPING, "the daemon stops"))
}

/// A random number, for nonces, connection ids and pauses.
fn random() -> u64 {
    getrandom::u64().expect("the system gives random numbers once it has booted")
}
