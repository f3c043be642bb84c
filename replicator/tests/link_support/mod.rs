//! What the link's tests share: nodes on loopback, and waiting for events with a deadline.
#![allow(dead_code)] // each test binary uses its part

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kagami_replicator::shell::identity::NodeKey;
use kagami_replicator::shell::quic::{
    BufferSource, DownReason, Link, LinkConfig, LinkEvent, LinkFault, MirrorId, NodeId, PeerConfig,
    SessionId,
};
use kagami_replicator::wire::frame::{Class, InFrame, OutFrame, PayloadBuffer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::LocalSet;
use tokio::time::{Instant, timeout_at};

/// Every wait of a test ends here at the latest.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// The link's time-out in tests that are not about it.
pub const TIMEOUT: Duration = Duration::from_secs(2);
pub const A: NodeId = NodeId(1);
pub const B: NodeId = NodeId(2);
pub const PG: MirrorId = MirrorId(0x7067);

/// Payload memory with a bound.
#[derive(Clone)]
pub struct Memory(pub Arc<Semaphore>);

impl Memory {
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }
}

pub struct Piece {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl PayloadBuffer for Piece {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl BufferSource for Memory {
    type Buffer = Piece;

    async fn take(&self, _mirror: MirrorId, _class: Class, len: usize) -> Option<Piece> {
        let room = Arc::clone(&self.0)
            .acquire_many_owned(len as u32)
            .await
            .ok()?;
        Some(Piece {
            bytes: vec![0; len],
            _room: room,
        })
    }
}

/// A node of a test: its link and what it has said so far.
pub struct Node {
    pub link: Link,
    /// Whether `Connected` is among its events.
    pub sees_connections: bool,
    pub waiting: std::collections::VecDeque<LinkEvent>,
}

impl Node {
    pub fn new(config: LinkConfig, key: NodeKey) -> Self {
        Self::with_memory(config, key, Memory::new(64 << 20))
    }

    pub fn with_memory(config: LinkConfig, key: NodeKey, memory: impl BufferSource) -> Self {
        let link = Link::new(config, key, memory).expect("the link of a test can be set up");
        Self {
            link,
            sees_connections: false,
            waiting: std::collections::VecDeque::new(),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.link.local_addresses()[0]
    }

    /// The next event, whatever it is.
    pub async fn next(&mut self) -> LinkEvent {
        self.next_within(DEADLINE)
            .await
            .expect("an event before the deadline")
    }

    pub async fn next_within(&mut self, within: Duration) -> Option<LinkEvent> {
        let deadline = Instant::now() + within;
        while self.waiting.is_empty() {
            timeout_at(deadline, self.link.ready()).await.ok()?;
            let mut all = Vec::new();
            self.link.drain(&mut all);
            // Told for each connection, whatever becomes of it; only tests of keys look.
            all.retain(|event| {
                self.sees_connections || !matches!(event, LinkEvent::Connected { .. })
            });
            self.waiting.extend(all);
        }
        self.waiting.pop_front()
    }

    /// Events until one fits; the others are dropped.
    pub async fn until<T>(
        &mut self,
        what: &str,
        mut fits: impl FnMut(LinkEvent) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut others = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(event) = self.next_within(left).await else {
                panic!("no {what} before the deadline, only {others:?}");
            };
            if others.len() < 20 {
                others.push(format!("{event:?}").chars().take(300).collect::<String>());
            }
            if let Some(found) = fits(event) {
                return found;
            }
        }
    }

    pub async fn up(&mut self) -> SessionId {
        self.up_with_nonce().await.0
    }

    pub async fn up_with_nonce(&mut self) -> (SessionId, u64) {
        self.until("session", |event| match event {
            LinkEvent::Up { session, nonce, .. } => Some((session, nonce)),
            _ => None,
        })
        .await
    }

    pub async fn up_of(&mut self, wanted: MirrorId) -> SessionId {
        self.until("session", |event| match event {
            LinkEvent::Up {
                session, mirror, ..
            } if mirror == wanted => Some(session),
            _ => None,
        })
        .await
    }

    pub async fn down(&mut self, of: SessionId) -> DownReason {
        self.until("end of the session", |event| match event {
            LinkEvent::Down {
                session, reason, ..
            } if session == of => Some(reason),
            _ => None,
        })
        .await
    }

    pub async fn frame(&mut self, of: SessionId) -> (Class, InFrame) {
        self.until("frame", |event| match event {
            LinkEvent::Frame {
                session,
                class,
                frame,
                ..
            } if session == of => Some((class, frame)),
            LinkEvent::Down {
                session, reason, ..
            } if session == of => {
                panic!("the session ended instead of bringing a frame: {reason}")
            }
            _ => None,
        })
        .await
    }

    pub async fn failure(&mut self) -> LinkFault {
        self.until("failure to connect", |event| match event {
            LinkEvent::ConnectFailed { error, .. } => Some(error),
            _ => None,
        })
        .await
    }

    pub fn send(&self, session: SessionId, class: Class, head: impl Into<Bytes>) {
        self.link.send(
            session,
            class,
            OutFrame {
                kind: 1,
                head: head.into(),
                payload: None,
            },
        );
    }
}

/// How a node of a test is configured: it listens on any port of 127.0.0.1.
pub fn config(node: NodeId) -> LinkConfig {
    let mut config = LinkConfig::new(node);
    config.listen = vec![any_port()];
    config.tuning.socket_buffer = 256 << 10;
    config
}

pub fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub fn peer(node: NodeId, addresses: Vec<SocketAddr>, key: &NodeKey) -> PeerConfig {
    PeerConfig {
        node,
        name: format!("node{}", node.0),
        addresses,
        fingerprints: vec![key.fingerprint()],
        timeout: TIMEOUT,
    }
}

pub fn key() -> NodeKey {
    NodeKey::generate().expect("a key")
}

/// Two nodes that know each other, and no mirror yet. The first dials.
pub fn pair() -> (Node, Node) {
    pair_with(|_| {}, Memory::new(64 << 20))
}

pub fn pair_with(tune: impl Fn(&mut LinkConfig), memory_of_b: impl BufferSource) -> (Node, Node) {
    let (key_a, key_b) = (key(), key());
    let mut of_b = config(B);
    of_b.peers = vec![peer(A, vec![], &key_a)];
    tune(&mut of_b);
    let mut of_a = config(A);
    let a_peer = |address| peer(B, vec![address], &key_b);
    tune(&mut of_a);
    // The key is moved into the link, so what pins it is made first.
    let template = a_peer(any_port());
    let b = Node::with_memory(of_b, key_b, memory_of_b);
    of_a.peers = vec![PeerConfig {
        addresses: vec![b.address()],
        ..template
    }];
    let a = Node::new(of_a, key_a);
    (a, b)
}

/// Two nodes with a session of [`PG`].
pub async fn connected() -> (Node, SessionId, Node, SessionId) {
    let (a, b) = pair();
    connect(a, b).await
}

pub async fn connect(mut a: Node, mut b: Node) -> (Node, SessionId, Node, SessionId) {
    want(&a, B, &[PG]);
    want(&b, A, &[PG]);
    let (in_a, in_b) = (a.up().await, b.up().await);
    (a, in_a, b, in_b)
}

pub fn want(node: &Node, with: NodeId, mirrors: &[MirrorId]) {
    let all: Vec<_> = mirrors.iter().map(|mirror| (*mirror, with)).collect();
    node.link.set_mirrors(&all);
    for mirror in mirrors {
        node.link.want(*mirror, true);
    }
}

/// Runs a test on one thread, as a data-plane thread does.
pub fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    LocalSet::new().block_on(&runtime, test);
}

/// Bytes that differ from block to block.
pub fn pattern(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out.into()
}
