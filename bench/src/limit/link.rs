//! The bare link: two nodes on loopback, each on a thread of its own, without mirror and disk.
//!
//! An operation is a frame with a payload on the data stream, answered by a small frame on the control
//! stream: what a replicated write costs the link. Encryption and checksums are on, as always.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kagami_replicator::shell::buffers::{Pool, PoolConfig};
use kagami_replicator::shell::identity::NodeKey;
use kagami_replicator::shell::patience::Awaits;
use kagami_replicator::shell::quic::{
    Link, LinkConfig, LinkEvent, MirrorId, NodeId, PeerConfig, SessionId,
};
use kagami_replicator::shell::runtime::has_worked;
use kagami_replicator::wire::frame::{Class, OutFrame};

use crate::candidate::Candidate;
use crate::error::BenchError;
use crate::job::{Action, Job, Sample, Tally};
use crate::process::own_cpu_time;

const MIRROR: MirrorId = MirrorId(1);
/// Until the path's datagram size is found.
const WARM_UP: Duration = Duration::from_millis(300);
/// Frames of the two kinds here; only the link's own closing kind is reserved.
const WRITE: u8 = 1;
const DONE: u8 = 2;
/// Bytes of a frame's head here: the slot, and as much as a write's head has besides.
const HEAD: usize = 32;

/// A pair of links for each run.
#[derive(Debug, Default)]
pub struct BareLink;

impl Candidate for BareLink {
    fn name(&self) -> &'static str {
        super::LINK
    }

    /// Reads never travel.
    fn takes(&self, job: &Job) -> bool {
        job.action == Action::Write
    }

    /// A flush travels as one more small frame each way: the same path again without payload.
    fn run(&mut self, job: &Job, time: Duration, _seed: u64) -> Result<Sample, BenchError> {
        let key = || NodeKey::generate().map_err(BenchError::part("a node's key"));
        let (key_a, key_b) = (key()?, key()?);
        let of_a = peer(NodeId(1), Vec::new(), &key_a);
        let mut of_b = peer(NodeId(2), Vec::new(), &key_b);
        let (sender, address) = mpsc::channel();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || serve(key_b, of_a, &sender));
            // A server that failed to start has dropped its end.
            let measured = address.recv().ok().map(|address| {
                of_b.addresses.push(address);
                super::run_part(async {
                    let config = config(NodeId(1), of_b);
                    let link = Link::new(config, key_a, memory()?)
                        .map_err(BenchError::part("the link"))?;
                    let mut events = Vec::new();
                    let session = connected(&link, NodeId(2), &mut events).await?;
                    operations(&link, session, job, WARM_UP).await?;
                    let sample = operations(&link, session, job, time).await;
                    link.shutdown().await;
                    sample
                })
            });
            let served = server.join().expect("the server's thread does not panic");
            match measured {
                Some(sample) => sample,
                None => Err(served.err().unwrap_or_else(|| {
                    BenchError::part("the link")("the other side ended by itself")
                })),
            }
        })
    }
}

/// Payload memory as in the engine: aligned, from one pool.
fn memory() -> Result<Pool, BenchError> {
    Pool::new(&PoolConfig::default()).map_err(BenchError::part("the pool"))
}

fn config(node: NodeId, peer: PeerConfig) -> LinkConfig {
    let mut config = LinkConfig::new(node);
    config.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    config.peers = vec![peer];
    config
}

fn peer(node: NodeId, addresses: Vec<SocketAddr>, key: &NodeKey) -> PeerConfig {
    PeerConfig {
        node,
        name: node.to_string(),
        addresses,
        fingerprints: vec![key.fingerprint()],
        timeout: Duration::from_secs(2),
    }
}

async fn connected(
    link: &Link,
    with: NodeId,
    events: &mut Vec<LinkEvent>,
) -> Result<SessionId, BenchError> {
    link.set_mirrors(&[(MIRROR, with)]);
    link.want(MIRROR, true);
    loop {
        link.ready().await;
        link.drain(events);
        for event in events.drain(..) {
            match event {
                LinkEvent::Up { session, .. } => return Ok(session),
                // The other side may not listen yet: the link tries again.
                LinkEvent::ConnectFailed { .. } | LinkEvent::Connected { .. } => {}
                other => return Err(BenchError::part("the link")(format!("{other:?}"))),
            }
        }
    }
}

/// Answers every frame until the session ends.
fn serve(
    key: NodeKey,
    peer: PeerConfig,
    address: &mpsc::Sender<SocketAddr>,
) -> Result<(), BenchError> {
    super::run_part(async {
        let with = peer.node;
        let link = Link::new(config(NodeId(2), peer), key, memory()?)
            .map_err(BenchError::part("the link"))?;
        // The measuring side may have given up.
        let _ = address.send(link.local_addresses()[0]);
        let mut events = Vec::new();
        let session = connected(&link, with, &mut events).await?;
        loop {
            link.ready().await;
            link.drain(&mut events);
            has_worked(Awaits::Requests);
            for event in events.drain(..) {
                match event {
                    LinkEvent::Frame { frame, .. } => {
                        let answer = OutFrame {
                            kind: DONE,
                            head: frame.head,
                            payload: None,
                        };
                        link.send(session, Class::Control, answer);
                    }
                    LinkEvent::Down { .. } => {
                        link.shutdown().await;
                        return Ok(());
                    }
                    LinkEvent::Up { .. }
                    | LinkEvent::Connected { .. }
                    | LinkEvent::Note { .. }
                    | LinkEvent::ConnectFailed { .. } => {}
                }
            }
        }
    })
}

/// Keeps the job's depth of operations under way for `time`.
async fn operations(
    link: &Link,
    session: SessionId,
    job: &Job,
    time: Duration,
) -> Result<Sample, BenchError> {
    let payload = Bytes::from(vec![0x5a; job.len as usize]);
    let (began, cpu) = (Instant::now(), own_cpu_time());
    let mut since = vec![began; job.depth];
    let mut flushing = vec![false; job.depth];
    let mut tally = Tally::default();
    let send = |slot: usize, payload: Option<Bytes>| {
        let mut head = vec![0; HEAD];
        head[..8].copy_from_slice(&(slot as u64).to_le_bytes());
        let frame = OutFrame {
            kind: WRITE,
            head: Bytes::from(head),
            payload,
        };
        link.send(session, Class::Data, frame);
    };
    (0..job.depth).for_each(|slot| send(slot, Some(payload.clone())));
    let mut in_flight = job.depth;
    let mut events = Vec::new();
    while in_flight > 0 {
        link.ready().await;
        link.drain(&mut events);
        has_worked(Awaits::Answers);
        for event in events.drain(..) {
            let LinkEvent::Frame { frame, .. } = event else {
                return Err(BenchError::part("the link")(format!("{event:?}")));
            };
            let slot = frame
                .head
                .first_chunk()
                .map(|bytes| u64::from_le_bytes(*bytes) as usize)
                .filter(|slot| *slot < job.depth)
                .ok_or_else(|| BenchError::part("the link")("an answer to nothing"))?;
            if job.flush && !flushing[slot] {
                flushing[slot] = true;
                send(slot, None);
                continue;
            }
            tally.record(since[slot].elapsed());
            if began.elapsed() < time {
                since[slot] = Instant::now();
                flushing[slot] = false;
                send(slot, Some(payload.clone()));
            } else {
                in_flight -= 1;
            }
        }
    }
    let mut sample = tally.sample(job.len, began.elapsed());
    let cpu = own_cpu_time().saturating_sub(cpu).as_secs_f64() * 1e6 / tally.operations() as f64;
    sample.cpu.insert("both ends".to_owned(), cpu);
    Ok(sample)
}
