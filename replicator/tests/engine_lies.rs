//! A peer with the right key that speaks the protocol, and lies: each lie ends its session, with the
//! fault named, and the next session is as good as any (docs/threat-model.md).

mod engine_support;
mod link_support;

use std::time::Duration;

use bytes::Bytes;
use engine_support::{DEADLINE, Disk, Node, PG, SIZE, run};
use kagami_bitmap::superblock::Generation;
use kagami_bitmap::{Block, Run};
use kagami_replicator::core::message::{Hello, Message};
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::settings::Settings;
use kagami_replicator::core::state::{self, Replication, Role, Seq, Solo};
use kagami_replicator::shell::engine::MirrorEvent;
use kagami_replicator::shell::identity::NodeKeys;
use kagami_replicator::shell::quic::{LinkConfig, LinkEvent, MirrorId, NodeId, SessionId};
use kagami_replicator::wire::frame::{Class, OutFrame};
use kagami_replicator::wire::message::{decode, encode};
use tokio::sync::broadcast::Receiver;
use tokio::task::LocalSet;
use tokio::time::timeout;

/// The liar: the peer of `a`, known by its key.
struct Liar {
    node: link_support::Node,
    /// The generation that it adopted.
    current: Option<Generation>,
}

impl Liar {
    fn send(&self, session: SessionId, message: &Message) {
        let spelled = encode(message);
        let class = match message.class() {
            kagami_replicator::core::Class::Control => Class::Control,
            kagami_replicator::core::Class::Data => Class::Data,
            kagami_replicator::core::Class::Resync => Class::Resync,
        };
        let frame = OutFrame {
            kind: spelled.kind,
            head: spelled.head,
            payload: spelled.payload,
        };
        self.node.link.send(session, class, frame);
    }

    async fn session(&mut self) -> SessionId {
        self.node
            .until("a session", |event| match event {
                LinkEvent::Up { session, .. } => Some(session),
                _ => None,
            })
            .await
    }

    /// The next message but pings, which are answered.
    async fn next(&mut self, session: SessionId) -> Message {
        loop {
            let message = self
                .node
                .until("a message", |event| match event {
                    LinkEvent::Frame { frame, .. } => {
                        Some(decode(frame.kind, &frame.head, frame.payload).expect("a message"))
                    }
                    _ => None,
                })
                .await;
            match message {
                Message::Ping { sent } => self.send(session, &Message::Pong { sent }),
                message => return message,
            }
        }
    }

    /// Does all that a peer has to do until both are in sync.
    async fn meet(&mut self) -> SessionId {
        let session = self.session().await;
        loop {
            match self.next(session).await {
                Message::Hello(hello) => self.greet(session, *hello),
                Message::Ready => {
                    self.send(session, &Message::Ready);
                    if self.current.is_some() {
                        return session;
                    }
                }
                Message::Offer { current, .. } => {
                    self.current = Some(current);
                    self.send(session, &Message::Adopted);
                }
                Message::Settled => return session,
                _ => {}
            }
        }
    }

    fn greet(&self, session: SessionId, theirs: Hello) {
        let mine = Hello {
            node: state::NodeId(2),
            role: Role::Secondary,
            current: self.current,
            alone: false,
            base: None,
            marks: 0,
            ..theirs
        };
        self.send(session, &Message::Hello(Box::new(mine)));
    }

    async fn hung_up_on(&mut self, session: SessionId) {
        self.node
            .until("the end of the session", |event| match event {
                LinkEvent::Down { session: down, .. } if down == session => Some(()),
                _ => None,
            })
            .await;
    }
}

async fn a_and_its_liar() -> (Node, Liar) {
    a_and_its_liar_with(|_| {}).await
}

async fn a_and_its_liar_with(tune: impl FnOnce(&mut Settings)) -> (Node, Liar) {
    let (mut a, b) = (Node::new(1), Node::new(2));
    a.make_copy("pg", PG, true);
    a.start();
    let mut config = LinkConfig::new(NodeId(2));
    config.listen = vec![([127, 0, 0, 1], 0).into()];
    config.peers = vec![a.as_peer()];
    let keys = NodeKeys::load(&b.path("key")).expect("key");
    let node = link_support::Node::new(config, keys.current);
    let mut peer = b.as_peer();
    peer.addresses = vec![node.address()];
    a.engine().set_peers(&[peer]);
    node.link.set_mirrors(&[(MirrorId(PG), NodeId(1))]);
    node.link.want(MirrorId(PG), true);
    let mut config = a.mirror("pg", PG, 2, Solo::Never);
    tune(&mut config.settings);
    a.add(config).await.expect("added");
    let liar = Liar {
        node,
        current: None,
    };
    (a, liar)
}

async fn fault(events: &mut Receiver<MirrorEvent>) -> String {
    let told = async {
        loop {
            if let Notice::PeerFault { what } = events.recv().await.expect("events").notice {
                return what;
            }
        }
    };
    timeout(DEADLINE, told).await.expect("the fault is told")
}

fn blocks(count: usize) -> Bytes {
    Bytes::from(vec![7; 4096 * count])
}

fn write(seq: u64, offset: u64, count: usize) -> Message {
    Message::Write {
        seq: Seq(seq),
        offset,
        data: blocks(count),
        fua: false,
        early: false,
    }
}

/// What is said to a Secondary in sync, and what the fault must name.
#[expect(clippy::too_many_lines, reason = "one table")]
fn lies() -> Vec<(Vec<Message>, &'static str)> {
    let end = SIZE;
    let generation = Generation {
        counter: u64::MAX,
        tag: 5,
    };
    let run = |first, count| vec![Run::new(Block(first), count)];
    let marks = |last| Message::Marks {
        runs: run(0, 1),
        last,
    };
    vec![
        (vec![write(1, end, 1)], "of a mirror of"),
        (vec![write(1, end - 4096, 2)], "of a mirror of"),
        (vec![write(1, u64::MAX - 8191, 1)], "of a mirror of"),
        (vec![write(1, 0, 1), write(1, 4096, 1)], "write 1 twice"),
        (
            vec![Message::Zero {
                seq: Seq(1),
                offset: 0,
                len: end + 4096,
                unmap: false,
                fua: false,
            }],
            "of a mirror of",
        ),
        (
            vec![Message::ResyncBlocks {
                seq: Seq(1),
                offset: 0,
                data: blocks(1),
            }],
            "not its target",
        ),
        (
            vec![Message::Done {
                seq: Seq(9),
                result: Ok(()),
            }],
            "write 9, which it does not owe",
        ),
        (
            vec![Message::Received { seq: Seq(9) }],
            "write 9, which it was not sent",
        ),
        (
            vec![Message::Flushed {
                id: 9,
                result: Ok(()),
            }],
            "flush 9, which was not asked",
        ),
        (
            vec![Message::ReadReply {
                id: 9,
                result: Ok(blocks(1)),
            }],
            "read 9, which was not asked",
        ),
        (vec![Message::Cleared { runs: run(0, 1) }], "not its target"),
        (
            vec![Message::Cleared {
                runs: run(1 << 30, 1),
            }],
            "behind the end",
        ),
        (
            vec![Message::Offer {
                current: generation,
                history: Vec::new(),
            }],
            "not its target",
        ),
        (vec![Message::Adopted], "not offered"),
        (vec![Message::Settled], "has not adopted"),
        (vec![Message::Carrying], "has a disk"),
        (vec![Message::PromoteGrant], "not asked"),
        (
            vec![Message::PromoteRefuse {
                why: "no".to_owned(),
            }],
            "not asked",
        ),
        (
            vec![Message::Read {
                id: 1,
                offset: end,
                len: 4096,
            }],
            "of a mirror of",
        ),
        (
            vec![Message::Compare {
                id: 1,
                offset: end - 4096,
                hashes: vec![[0; 16]; 2],
            }],
            "of a mirror of",
        ),
        (
            vec![
                Message::Resolve {
                    keep: state::NodeId(2),
                    full: true,
                },
                Message::Resolve {
                    keep: state::NodeId(1),
                    full: true,
                },
            ],
            "its own copy",
        ),
        (
            vec![Message::Pong { sent: u64::MAX }],
            "a ping that was not sent",
        ),
        (vec![Message::Ready], "greets twice"),
        (vec![marks(true)], "greets twice"),
        (
            (1..40)
                .map(|id| Message::Flush {
                    id,
                    after: Seq(100),
                })
                .collect(),
            "without waiting",
        ),
    ]
}

#[test]
fn every_lie_ends_its_session_with_its_name_and_nothing_else() {
    run(LocalSet::new().run_until(async {
        let (mut a, mut liar) = a_and_its_liar().await;
        for (messages, words) in lies() {
            // The word of an operator there makes this copy a target: not what is tried here.
            let messages = messages
                .into_iter()
                .filter(|message| !matches!(message, Message::Resolve { keep, .. } if keep.0 == 2));
            let session = liar.meet().await;
            a.in_sync().await;
            let mut events = a.engine().events();
            for message in messages {
                liar.send(session, &message);
            }
            let what = fault(&mut events).await;
            assert!(what.contains(words), "{what:?} does not say {words:?}");
            liar.hung_up_on(session).await;
        }
        // Nothing of it has harmed the copy: in sync again, without a block copied.
        liar.meet().await;
        let status = a.in_sync().await;
        assert_eq!(
            (status.core.role, status.core.marked_blocks),
            (Role::Secondary, 0)
        );
        assert_eq!(status.core.counters.resync_bytes, 0);
        a.stop().await;
    }));
}

#[test]
fn marks_that_no_verdict_asks_for_are_refused() {
    run(LocalSet::new().run_until(async {
        let (mut a, mut liar) = a_and_its_liar().await;
        liar.meet().await;
        a.in_sync().await;
        let mut events = a.engine().events();
        // A new session, which the next hello begins: the verdict will be "nothing to do".
        liar.node.link.want(MirrorId(PG), false);
        liar.node.link.want(MirrorId(PG), true);
        let session = liar.session().await;
        loop {
            if let Message::Hello(hello) = liar.next(session).await {
                liar.greet(session, *hello);
                break;
            }
        }
        liar.send(
            session,
            &Message::Marks {
                runs: vec![Run::new(Block(0), 100)],
                last: true,
            },
        );
        let what = fault(&mut events).await;
        assert!(what.contains("before the session is up"), "{what}");
        liar.meet().await;
        assert_eq!(a.in_sync().await.core.marked_blocks, 0);
        a.stop().await;
    }));
}

/// Writes may overtake the end of a handshake. This one never ends.
#[test]
fn what_a_peer_sends_and_never_lets_go_on_is_its_own_mirrors() {
    run(LocalSet::new().run_until(async {
        // It has all the time in the world.
        let patient = |settings: &mut Settings| {
            settings.timeout_ms = 60_000;
            settings.ack_timeout_ms = 60_000;
        };
        let (mut a, mut liar) = a_and_its_liar_with(patient).await;
        a.add_alone("other", 0x006f_7468_6572).await;
        let session = liar.session().await;
        loop {
            match liar.next(session).await {
                Message::Hello(hello) => liar.greet(session, *hello),
                Message::Ready => break,
                _ => {}
            }
        }
        for nth in 0..16 {
            liar.send(session, &write(nth + 1, nth << 20, 256));
        }
        a.on_plane(DEADLINE, |plane| async move {
            while plane.pool().stats().waiting == 0 {
                tokio::task::yield_now().await;
            }
            let other = Disk::of(&plane, "other");
            for len in [4096, 1 << 20, 2 << 20] {
                other.write(0, 7, len).await.expect("a good disk");
                let data = other.read(0, 4096).await.expect("a good disk");
                assert!(data.iter().all(|&byte| byte == 7));
            }
            assert!(plane.pool().stats().waiting > 0, "it is still there");
        })
        .await;
        a.crash().await;
    }));
}

/// A peer that has not answered a write keeps it where it is: in memory that is counted.
#[test]
fn what_is_put_together_for_a_write_is_the_pools() {
    const COUNT: usize = 100;
    run(LocalSet::new().run_until(async {
        let (mut a, mut liar) = a_and_its_liar().await;
        let session = liar.meet().await;
        a.in_sync().await;
        let granting = async {
            loop {
                match liar.next(session).await {
                    Message::PromoteAsk => liar.send(session, &Message::PromoteGrant),
                    Message::Offer { .. } => liar.send(session, &Message::Adopted),
                    _ => {}
                }
            }
        };
        tokio::select! {
            () = a.promote() => {}
            () = granting => {}
        }
        a.on_plane(DEADLINE, |plane| async move {
            let disk = Disk::of(&plane, "pg");
            for index in 0..COUNT {
                let disk = disk.clone();
                tokio::task::spawn_local(async move {
                    // Within a block, and across two.
                    let at = (index * 3 * 4096 + 512) as u64;
                    let _ = disk.write(at, 1, 512 + index % 2 * 4096).await;
                });
            }
        })
        .await;
        let mut writes = 0;
        while writes < COUNT {
            if let Message::Write { data, .. } = liar.next(session).await {
                assert!(data.len().is_multiple_of(4096));
                writes += 1;
            }
        }
        let in_use = a
            .on_plane(DEADLINE, |plane| async move { plane.pool().stats().in_use })
            .await;
        assert!(in_use >= COUNT * 3 / 2 * 4096, "{in_use} bytes of the pool");
        a.crash().await;
    }));
}

#[test]
fn a_flood_that_is_never_read_has_an_end() {
    run(LocalSet::new().run_until(async {
        let (mut a, mut liar) = a_and_its_liar().await;
        let session = liar.meet().await;
        a.in_sync().await;
        let before = resident();
        // Each is answered, and no answer is looked at. (One process has both ends here.)
        for nth in 0..200_000 {
            liar.send(session, &Message::Ping { sent: nth });
        }
        let gone = a.until("rid of a peer that answers nothing", |status| {
            status.core.replication != Replication::Established
        });
        gone.await;
        let grown = resident().saturating_sub(before);
        assert!(grown < 256 << 20, "{} MiB for a flood", grown >> 20);
        // It lives, and takes the liar's word again.
        liar.hung_up_on(session).await;
        liar.meet().await;
        timeout(Duration::from_secs(20), a.in_sync())
            .await
            .expect("in sync again");
        a.stop().await;
    }));
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages: u64 = text
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("statm");
    pages * 4096
}
