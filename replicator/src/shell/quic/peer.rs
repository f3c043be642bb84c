//! A peer as the link knows it: its settings, its keys, and the one connection with it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Inner;
use super::config::{NodeId, PeerConfig};
use super::connection::Conn;
use super::event::{CloseReason, DownReason, LinkEvent, code};
use crate::shell::tls::Pins;

pub(super) struct Peer {
    pub node: NodeId,
    pub config: RefCell<PeerConfig>,
    pub pins: Pins,
    /// The connection that sessions are opened on.
    pub conn: watch::Sender<Option<Rc<Conn>>>,
    /// Whether any mirror wants a session with it.
    pub wanted: watch::Sender<bool>,
    /// The task that dials it, where this node does.
    pub dialer: RefCell<Option<AbortHandle>>,
    /// The index in its addresses of the one that answered last.
    pub last_good: Cell<usize>,
    /// Connections that it dialled of late.
    pub dialled: Cell<u32>,
}

impl Peer {
    pub(super) fn new(config: PeerConfig) -> Rc<Self> {
        Rc::new(Self {
            node: config.node,
            pins: Pins::new(config.fingerprints.iter().copied()),
            config: RefCell::new(config),
            conn: watch::Sender::new(None),
            wanted: watch::Sender::new(false),
            dialer: RefCell::new(None),
            last_good: Cell::new(0),
            dialled: Cell::new(0),
        })
    }

    pub(super) fn name(&self) -> String {
        self.config.borrow().name.clone()
    }

    pub(super) fn connection(&self) -> Option<Rc<Conn>> {
        self.conn.borrow().clone()
    }

    /// Whether this is a peer still, and the key that `conn` showed in its handshake one of its keys: both may have
    /// changed since, and a connection that no session is opened on is nobody's until then. It is closed if not.
    pub(super) fn still_admits(&self, inner: &Inner, conn: &Conn) -> bool {
        let known = inner.peers.borrow().get(&self.node).map(Rc::as_ptr);
        let admits =
            known.is_some_and(|known| std::ptr::eq(known, self)) && self.pins.contains(&conn.key);
        if !admits {
            let reason = CloseReason::new(code::UNPINNED, "the key is no longer pinned");
            conn.close(&DownReason::ClosedHere(reason));
        }
        admits
    }

    /// Makes `conn` the connection with this peer; sessions of an older one go down first. False: it is not admitted
    /// any more.
    #[must_use]
    pub(super) fn adopt(&self, inner: &Inner, conn: &Rc<Conn>) -> bool {
        if !self.still_admits(inner, conn) {
            return false;
        }
        let older = self.connection();
        if let Some(older) = older {
            if Rc::ptr_eq(&older, conn) {
                return true;
            }
            older.close(&DownReason::Replaced);
        }
        // Mirrors may have come since the handshake.
        inner.allow(conn, inner.mirrors_with(self.node));
        self.conn.send_replace(Some(Rc::clone(conn)));
        inner.events.push(LinkEvent::Connected {
            peer: self.node,
            key: conn.key,
        });
        tracing::info!(
            peer = %self.name(),
            address = %conn.quic.remote_address(),
            version = conn.version,
            "connected"
        );
        true
    }

    /// `conn` has ended.
    pub(super) fn forget(&self, conn: &Conn) {
        self.conn.send_if_modified(|current| {
            let ours = current
                .as_ref()
                .is_some_and(|current| std::ptr::eq(&raw const **current, conn));
            if ours {
                *current = None;
            }
            ours
        });
    }
}
