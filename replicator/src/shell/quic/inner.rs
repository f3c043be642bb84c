//! What the tasks of a link share: peers, mirrors, sessions, and the failures told of.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kagami_strangers::Strangers;
use tokio::task::AbortHandle;

use super::config::{DEFAULT_TIMEOUT, LinkConfig, MirrorId, NodeId};
use super::connection::Conn;
use super::endpoint::{self, Allowance, transport};
use super::event::{CloseReason, EventQueue, LinkEvent, LinkFault, SessionId, code};
use super::peer::Peer;
use super::session::Session;
use super::streams::RecvHalf;
use crate::shell::identity::{Fingerprint, NodeKey};
use crate::shell::tls::Pins;
use crate::wire::frame::Class;

/// Equal failures are told once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(30);
/// Failures remembered so as not to repeat them; strangers can cause any number of different ones.
const MAX_TOLD: usize = 1024;

/// Starts the task that reads a stream into the caller's memory.
pub(super) type StartReader = Box<dyn Fn(Rc<Session>, Class, RecvHalf) -> AbortHandle>;

/// See the module.
pub(super) struct Inner {
    pub config: LinkConfig,
    /// The key that this node shows.
    pub key: RefCell<Rc<NodeKey>>,
    /// The keys of all peers.
    pub pins: Pins,
    pub server: RefCell<quinn::ServerConfig>,
    pub endpoints: RefCell<Vec<quinn::Endpoint>>,
    pub peers: RefCell<HashMap<NodeId, Rc<Peer>>>,
    pub mirrors: RefCell<HashMap<MirrorId, Mirror>>,
    pub sessions: RefCell<HashMap<SessionId, Rc<Session>>>,
    pub next_session: Cell<u64>,
    pub handshakes: Cell<u32>,
    /// The endpoints are closed, or about to be.
    pub is_stopping: Cell<bool>,
    pub events: EventQueue,
    pub told: RefCell<HashMap<Failing, Told>>,
    pub strangers: Strangers,
    pub start_reader: StartReader,
}

/// A mirror that this thread has.
pub(super) struct Mirror {
    pub peer: NodeId,
    pub wanted: bool,
    pub session: Option<Rc<Session>>,
    /// The task that opens its sessions, where this node dials.
    pub keeper: Option<AbortHandle>,
}

/// Whom a failure is about: a peer, an address, or both.
pub(super) type Failing = (Option<NodeId>, Option<IpAddr>);

/// A failure that was told.
pub(super) struct Told {
    pub error: LinkFault,
    pub at: Instant,
    pub repeated: u64,
}

impl Inner {
    /// Whether this node is the one that dials.
    pub(super) fn dials(&self, peer: NodeId) -> bool {
        self.config.node < peer
    }

    /// The key that this node shows.
    pub(super) fn key(&self) -> Rc<NodeKey> {
        Rc::clone(&self.key.borrow())
    }

    pub(super) fn new_session_id(&self) -> SessionId {
        let id = self.next_session.get();
        self.next_session.set(id + 1);
        SessionId(id)
    }

    pub(super) fn add_session(&self, session: &Rc<Session>) {
        if let Some(mirror) = self.mirrors.borrow_mut().get_mut(&session.mirror) {
            mirror.session = Some(Rc::clone(session));
        }
        self.sessions
            .borrow_mut()
            .insert(session.id, Rc::clone(session));
    }

    pub(super) fn remove_session(&self, session: &Session) {
        self.sessions.borrow_mut().remove(&session.id);
        if let Some(mirror) = self.mirrors.borrow_mut().get_mut(&session.mirror)
            && mirror
                .session
                .as_ref()
                .is_some_and(|current| current.id == session.id)
        {
            mirror.session = None;
        }
    }

    /// Whether a peer may open a session for a mirror; the one that it replaces.
    pub(super) fn may_open(
        &self,
        mirror: MirrorId,
        peer: NodeId,
    ) -> Result<Option<Rc<Session>>, CloseReason> {
        let mirrors = self.mirrors.borrow();
        let Some(entry) = mirrors.get(&mirror).filter(|entry| entry.peer == peer) else {
            let text = format!(
                "this node has no mirror {mirror} with you: was it set up by `kagami pair` on both?"
            );
            return Err(CloseReason::new(code::UNKNOWN_MIRROR, text));
        };
        if entry.wanted {
            Ok(entry.session.clone())
        } else {
            let text = "the mirror is disconnected here (StandAlone): `kagami connect` ends that";
            Err(CloseReason::new(code::NOT_WANTED, text))
        }
    }

    /// Lets a connection's peer open as many streams as its mirrors need.
    pub(super) fn allow(&self, conn: &Conn, mirrors: usize) {
        let allow = Allowance::for_mirrors(&self.config.tuning, mirrors);
        conn.quic.set_receive_window(allow.window);
        if !self.dials(conn.peer.node) {
            conn.quic
                .set_max_concurrent_bi_streams(allow.streams.into());
        }
    }

    pub(super) fn mirrors_with(&self, peer: NodeId) -> usize {
        self.mirrors
            .borrow()
            .values()
            .filter(|mirror| mirror.peer == peer)
            .count()
    }

    pub(super) fn peer_with_key(&self, key: &Fingerprint) -> Option<Rc<Peer>> {
        self.peers
            .borrow()
            .values()
            .find(|peer| peer.pins.contains(key))
            .cloned()
    }

    /// How to treat who dials from there: with the time-out of the peer that has the address, or the
    /// longest of all.
    pub(super) fn server_config_for(&self, from: IpAddr) -> (Arc<quinn::ServerConfig>, Duration) {
        let peers = self.peers.borrow();
        let at_address = peers
            .values()
            .find(|p| p.config.borrow().addresses.iter().any(|a| a.ip() == from));
        let timeout = match at_address {
            Some(peer) => peer.config.borrow().timeout,
            None => peers
                .values()
                .map(|p| p.config.borrow().timeout)
                .max()
                .unwrap_or(DEFAULT_TIMEOUT),
        };
        let mirrors = peers
            .keys()
            .map(|node| self.mirrors_with(*node))
            .max()
            .unwrap_or_default();
        let allow = Allowance::for_mirrors(&self.config.tuning, mirrors).before_sessions();
        let mut config = self.server.borrow().clone();
        config.transport_config(transport(&self.config.tuning, timeout, allow).into());
        (config.into(), timeout)
    }

    /// The endpoints that can send to an address; one is made where there is none.
    pub(super) fn endpoints_for(&self, address: SocketAddr) -> Vec<quinn::Endpoint> {
        let mut endpoints = self.endpoints.borrow_mut();
        let same_family = |endpoint: &&quinn::Endpoint| {
            endpoint
                .local_addr()
                .is_ok_and(|local| local.is_ipv4() == address.is_ipv4())
        };
        let found: Vec<_> = endpoints.iter().filter(same_family).cloned().collect();
        if !found.is_empty() {
            return found;
        }
        match endpoint::open(
            endpoint::any_address(address),
            &self.config.tuning,
            &self.key(),
            None,
        ) {
            Ok(endpoint) => {
                endpoints.push(endpoint.clone());
                vec![endpoint]
            }
            Err(error) => {
                tracing::warn!(%address, %error, "no socket to dial from");
                Vec::new()
            }
        }
    }

    /// To be called where an endpoint says that it is at its end: quinn's task for it is gone then, and nothing makes
    /// another on its address while connections hold this one. No error of a socket does that (`runtime`).
    pub(super) fn assert_stopping(&self, endpoint: &quinn::Endpoint) {
        assert!(
            self.is_stopping.get(),
            "the link's socket at {:?} has lost its driver: no peer could be met any more",
            endpoint.local_addr()
        );
    }

    /// Tells of a failure, unless the same was told a moment ago, or too much of strangers.
    pub(super) fn report(
        &self,
        peer: Option<NodeId>,
        address: Option<SocketAddr>,
        error: LinkFault,
    ) {
        let mut told = self.told.borrow_mut();
        // Strangers come from any port.
        let key = (peer, address.map(|address| address.ip()));
        let mut repeated = 0;
        if let Some(before) = told.get_mut(&key)
            && before.error == error
        {
            if before.at.elapsed() < TELL_AGAIN {
                before.repeated += 1;
                return;
            }
            repeated = before.repeated;
        }
        if peer.is_none()
            && let Some(address) = address
            && !self.strangers.may_tell(address.ip())
        {
            return;
        }
        if told.len() >= MAX_TOLD {
            told.clear();
        }
        told.insert(
            key,
            Told {
                error: error.clone(),
                at: Instant::now(),
                repeated: 0,
            },
        );
        drop(told);
        let name = peer.and_then(|node| Some(self.peers.borrow().get(&node)?.name()));
        tracing::warn!(
            peer = name.as_deref().unwrap_or("unknown"),
            address = address.map(tracing::field::display),
            %error,
            repeated,
            "not connected"
        );
        self.events.push(LinkEvent::ConnectFailed {
            peer,
            address,
            error,
        });
    }
}
