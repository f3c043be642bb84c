//! Measures the link without a mirror: two nodes on loopback, each on a thread of its own.
//!
//! `cargo run --release -p kagami-replicator --example link_rate [-- SECONDS [MTU [ACK-EVERY]]]`
//!
//! A write is a frame with a 4 KiB payload on the data stream, answered by a small frame on the
//! control stream: what a replicated write costs the link. Bulk is payloads of 1 MiB one way.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use kagami_replicator::shell::identity::NodeKey;
use kagami_replicator::shell::quic::{
    BufferSource, Link, LinkConfig, LinkEvent, MirrorId, NodeId, PeerConfig, SessionId,
};
use kagami_replicator::wire::frame::{Class, OutFrame};

const MIRROR: MirrorId = MirrorId(1);
const BULK: usize = 1 << 20;

/// The example's payload memory: whatever the allocator gives.
struct Heap;

impl BufferSource for Heap {
    type Buffer = Vec<u8>;

    async fn take(&self, _mirror: MirrorId, _class: Class, len: usize) -> Option<Vec<u8>> {
        Some(vec![0; len])
    }
}

fn config(node: NodeId, peer: PeerConfig) -> LinkConfig {
    let mut args = std::env::args().skip(2);
    let mut config = LinkConfig::new(node);
    if let Some(mtu) = args.next() {
        config.tuning.max_datagram = mtu.parse().expect("MTU: bytes of a datagram");
    }
    if let Some(every) = args.next() {
        config.tuning.ack_every = every.parse().expect("ACK-EVERY: packets");
    }
    config.listen = vec!["127.0.0.1:0".parse().expect("an address")];
    config.peers = vec![peer];
    config
}

fn peer(node: NodeId, addresses: Vec<std::net::SocketAddr>, key: &NodeKey) -> PeerConfig {
    PeerConfig {
        node,
        name: node.to_string(),
        addresses,
        fingerprints: vec![key.fingerprint()],
        timeout: Duration::from_secs(2),
    }
}

async fn connected(link: &Link, with: NodeId, events: &mut Vec<LinkEvent>) -> SessionId {
    link.set_mirrors(&[(MIRROR, with)]);
    link.want(MIRROR, true);
    loop {
        link.ready().await;
        link.drain(events);
        for event in events.drain(..) {
            if let LinkEvent::Up { session, .. } = event {
                return session;
            }
        }
    }
}

/// Answers every frame with a payload; every 16th when it is bulk.
fn serve(key: NodeKey, peer: PeerConfig, address: &mpsc::Sender<std::net::SocketAddr>) {
    kagami_replicator::shell::runtime::start(async {
        let with = peer.node;
        let link = Link::new(config(NodeId(2), peer), key, Heap).expect("a link");
        address
            .send(link.local_addresses()[0])
            .expect("the client waits");
        let mut events = Vec::new();
        let session = connected(&link, with, &mut events).await;
        let mut bulk = 0;
        loop {
            link.ready().await;
            link.drain(&mut events);
            for event in events.drain(..) {
                match event {
                    LinkEvent::Frame { frame, .. } => {
                        if frame.payload.is_some_and(|payload| payload.len() == BULK) {
                            bulk += 1;
                            if bulk % 16 != 0 {
                                continue;
                            }
                        }
                        let frame = OutFrame {
                            kind: 2,
                            head: frame.head,
                            payload: None,
                        };
                        link.send(session, Class::Control, frame);
                    }
                    LinkEvent::Down { .. } => return link.shutdown().await,
                    LinkEvent::Up { .. }
                    | LinkEvent::Connected { .. }
                    | LinkEvent::Note { .. }
                    | LinkEvent::ConnectFailed { .. } => {}
                }
            }
        }
    });
}

/// Keeps `depth` writes under way and gives the times of their answers.
async fn writes(
    link: &Link,
    session: SessionId,
    depth: u64,
    time: Duration,
) -> (Histogram<u64>, f64) {
    let payload = Bytes::from(vec![0x5a; 4096]);
    let mut began = vec![Instant::now(); depth as usize];
    let mut events = Vec::new();
    let mut times = Histogram::new(3).expect("three digits");
    let send = |began: &mut Vec<Instant>, slot: u64| {
        began[slot as usize] = Instant::now();
        let head = Bytes::copy_from_slice(&[slot.to_le_bytes(), [0; 8], [0; 8], [0; 8]].concat());
        link.send(
            session,
            Class::Data,
            OutFrame {
                kind: 1,
                head,
                payload: Some(payload.clone()),
            },
        );
    };
    let start = Instant::now();
    (0..depth).for_each(|slot| send(&mut began, slot));
    while start.elapsed() < time {
        link.ready().await;
        link.drain(&mut events);
        for event in events.drain(..) {
            let LinkEvent::Frame { frame, .. } = event else {
                panic!("{event:?}")
            };
            let slot = u64::from_le_bytes(frame.head[..8].try_into().expect("eight bytes"));
            times
                .record(began[slot as usize].elapsed().as_nanos() as u64)
                .expect("in range");
            send(&mut began, slot);
        }
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    let mut left = depth;
    while left > 0 {
        link.ready().await;
        link.drain(&mut events);
        left -= events.drain(..).count() as u64;
    }
    (times, rate)
}

/// Sends 1 MiB payloads, 64 MiB under way at most; gives MB/s.
async fn bulk(link: &Link, session: SessionId, time: Duration) -> f64 {
    let payload = Bytes::from(vec![0xa5; BULK]);
    let (mut sent, mut answered) = (0_u64, 0_u64);
    let mut events = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time || answered < sent {
        while start.elapsed() < time && sent - answered < 64 {
            for _ in 0..16 {
                let frame = OutFrame {
                    kind: 1,
                    head: Bytes::new(),
                    payload: Some(payload.clone()),
                };
                link.send(session, Class::Resync, frame);
            }
            sent += 16;
        }
        link.ready().await;
        link.drain(&mut events);
        answered += 16 * events.drain(..).count() as u64;
    }
    sent as f64 * BULK as f64 / 1e6 / start.elapsed().as_secs_f64()
}

fn main() {
    let seconds = std::env::args()
        .nth(1)
        .map_or(3.0, |s| s.parse().expect("SECONDS: a number"));
    let time = Duration::from_secs_f64(seconds);
    let (key_a, key_b) = (
        NodeKey::generate().expect("a key"),
        NodeKey::generate().expect("a key"),
    );
    let of_a = peer(NodeId(1), vec![], &key_a);
    let mut of_b = peer(NodeId(2), vec![], &key_b);
    let (sender, address) = mpsc::channel();
    let server = std::thread::spawn(move || serve(key_b, of_a, &sender));
    of_b.addresses = vec![address.recv().expect("the server listens")];
    kagami_replicator::shell::runtime::start(async {
        let link = Link::new(config(NodeId(1), of_b), key_a, Heap).expect("a link");
        let mut events = Vec::new();
        let session = connected(&link, NodeId(2), &mut events).await;
        writes(&link, session, 1, time / 4).await;
        let status = link.peer_status(NodeId(2)).expect("connected");
        println!("datagrams of {} bytes", status.datagram);
        for depth in [1, 8, 32] {
            let before = link.peer_status(NodeId(2)).expect("connected");
            let (times, rate) = writes(&link, session, depth, time).await;
            let after = link.peer_status(NodeId(2)).expect("connected");
            println!(
                "4 KiB, depth {depth:2}: {rate:8.0} op/s   p50 {:6.1} us   p99 {:6.1} us   p99.9 {:6.1} us   datagrams per op {:.2} out {:.2} in, lost {}",
                times.value_at_quantile(0.5) as f64 / 1e3,
                times.value_at_quantile(0.99) as f64 / 1e3,
                times.value_at_quantile(0.999) as f64 / 1e3,
                (after.datagrams.0 - before.datagrams.0) as f64 / times.len() as f64,
                (after.datagrams.1 - before.datagrams.1) as f64 / times.len() as f64,
                after.lost_packets - before.lost_packets,
            );
        }
        println!(
            "1 MiB one way: {:.0} MB/s",
            bulk(&link, session, time).await
        );
        link.shutdown().await;
    });
    server.join().expect("the server ends");
}
