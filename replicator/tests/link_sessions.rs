//! Sessions of mirrors between two nodes on loopback.

mod link_support;

use bytes::Bytes;
use kagami_replicator::shell::buffers::{Pool, PoolConfig};
use kagami_replicator::shell::quic::{
    CloseReason, DownReason, LinkEvent, LinkFault, MirrorId, code,
};
use kagami_replicator::wire::frame::{Class, OutFrame};
use kagami_replicator::wire::limits::{MAX_HEAD, MAX_PAYLOAD};
use link_support::*;

const OTHER: MirrorId = MirrorId(0x6f);

fn with_payload(payload: Bytes) -> OutFrame {
    OutFrame {
        kind: 7,
        head: Bytes::from_static(b"head"),
        payload: Some(payload),
    }
}

#[test]
fn frames_arrive_whole_and_in_order_in_every_class() {
    run(async {
        let (a, in_a, mut b, in_b) = connected().await;
        for n in 0..100_u32 {
            for class in Class::ALL {
                a.send(in_a, class, n.to_le_bytes().to_vec());
            }
        }
        let mut next = [0_u32; 3];
        for _ in 0..300 {
            let (class, frame) = b.frame(in_b).await;
            assert_eq!(frame.kind, 1);
            assert_eq!(frame.head[..], next[class as usize].to_le_bytes());
            next[class as usize] += 1;
        }
        assert_eq!(next, [100; 3]);
    });
}

#[test]
fn twenty_thousand_small_frames() {
    run(async {
        let (mut a, in_a, mut b, in_b) = connected().await;
        for n in 0..20_000_u32 {
            a.send(in_a, Class::Control, n.to_le_bytes().to_vec());
        }
        for n in 0..20_000_u32 {
            assert_eq!(b.frame(in_b).await.1.head[..], n.to_le_bytes());
            b.send(in_b, Class::Control, n.to_le_bytes().to_vec());
        }
        for n in 0..20_000_u32 {
            assert_eq!(a.frame(in_a).await.1.head[..], n.to_le_bytes());
        }
        assert_eq!(a.link.queued_bytes(in_a, Class::Control), 0);
    });
}

#[test]
fn payloads_of_every_size_keep_their_bytes() {
    run(async {
        let (a, in_a, mut b, in_b) = connected().await;
        let sizes = [1, 511, 4096, 4097, 65_536, 1 << 20, MAX_PAYLOAD];
        for (n, size) in sizes.into_iter().enumerate() {
            a.link
                .send(in_a, Class::Data, with_payload(pattern(size, n as u64)));
        }
        for (n, size) in sizes.into_iter().enumerate() {
            let (class, frame) = b.frame(in_b).await;
            assert_eq!(
                (class, frame.kind, &frame.head[..]),
                (Class::Data, 7, &b"head"[..])
            );
            assert!(
                frame.payload == Some(pattern(size, n as u64)),
                "payload of {size} bytes"
            );
        }
        let largest = pattern(MAX_HEAD, 9);
        a.send(in_a, Class::Control, largest.clone());
        assert!(b.frame(in_b).await.1.head == largest);
    });
}

#[test]
fn a_session_is_closed_with_its_reason_and_made_anew() {
    run(async {
        let (mut a, in_a, mut b, in_b) = connected().await;
        b.send(in_b, Class::Control, "last words");
        b.link
            .close(in_b, CloseReason::new(0x123, "the copy is Outdated"));
        let reason = CloseReason::new(0x123, "the copy is Outdated");
        assert_eq!(b.down(in_b).await, DownReason::ClosedHere(reason.clone()));
        assert_eq!(a.frame(in_a).await.1.head, "last words");
        assert_eq!(a.down(in_a).await, DownReason::ClosedByPeer(reason));

        let (again_a, nonce_a) = a.up_with_nonce().await;
        let (again_b, nonce_b) = b.up_with_nonce().await;
        assert_eq!(nonce_a, nonce_b);
        assert!(again_a != in_a && again_b != in_b);
        // What is sent to the ended session reaches nobody.
        a.send(in_a, Class::Control, "stale");
        a.send(again_a, Class::Control, "new");
        assert_eq!(b.frame(again_b).await.1.head, "new");
    });
}

#[test]
fn both_sides_may_close_at_once() {
    run(async {
        let (mut a, in_a, mut b, in_b) = connected().await;
        a.link.close(in_a, CloseReason::new(code::NORMAL, "a"));
        b.link.close(in_b, CloseReason::new(code::NORMAL, "b"));
        assert!(matches!(a.down(in_a).await, DownReason::ClosedHere(_)));
        assert!(matches!(b.down(in_b).await, DownReason::ClosedHere(_)));
        let (again_a, again_b) = (a.up().await, b.up().await);
        a.send(again_a, Class::Data, "x");
        assert_eq!(b.frame(again_b).await.1.head, "x");
    });
}

#[test]
fn one_mirror_closed_leaves_the_other_and_the_connection_alone() {
    run(async {
        let (mut a, mut b) = pair();
        want(&a, B, &[PG, OTHER]);
        want(&b, A, &[PG, OTHER]);
        let (first, second) = (a.up().await, a.up().await);
        let (one, two) = (b.up().await, b.up().await);
        assert!(first != second && one != two);
        let before = a.link.peer_status(B).expect("connected");
        b.link.want(PG, false);
        let (ended, reason) = a
            .until("end", |event| match event {
                LinkEvent::Down { mirror, reason, .. } => Some((mirror, reason)),
                _ => None,
            })
            .await;
        assert_eq!(ended, PG);
        assert!(matches!(reason, DownReason::ClosedByPeer(r) if r.code == code::NOT_WANTED));
        // The dialer asks again and is told why not.
        assert!(matches!(a.failure().await, LinkFault::Refused(r) if r.code == code::NOT_WANTED));

        let left = if first < second {
            [first, second]
        } else {
            [second, first]
        };
        for session in left {
            a.send(session, Class::Data, "still here");
        }
        let frame = b.until("frame", |event| match event {
            LinkEvent::Frame { mirror, frame, .. } => Some((mirror, frame.head)),
            LinkEvent::Down { mirror: OTHER, .. } => panic!("the other mirror's session ended"),
            _ => None,
        });
        assert_eq!(frame.await, (OTHER, Bytes::from_static(b"still here")));
        assert_eq!(
            a.link.peer_status(B).map(|s| s.address),
            Some(before.address)
        );

        b.link.want(PG, true);
        a.up_of(PG).await;
        b.up_of(PG).await;
    });
}

#[test]
fn a_mirror_that_the_other_node_lacks_is_refused() {
    run(async {
        let (mut a, b) = pair();
        want(&a, B, &[PG]);
        want(&b, A, &[OTHER]);
        let fault = a.failure().await;
        let LinkFault::Refused(reason) = &fault else {
            panic!("{fault:?}")
        };
        assert_eq!(reason.code, code::UNKNOWN_MIRROR);
        assert!(fault.to_string().contains("kagami pair"), "{fault}");
    });
}

#[test]
fn closing_under_load_hangs_nothing() {
    run(async {
        let (mut a, mut in_a, mut b, mut in_b) = connected().await;
        let payload = pattern(1 << 20, 3);
        for round in 0..5 {
            for _ in 0..16 {
                a.link
                    .send(in_a, Class::Data, with_payload(payload.clone()));
                a.link
                    .send(in_a, Class::Resync, with_payload(payload.clone()));
                b.link
                    .send(in_b, Class::Data, with_payload(payload.clone()));
            }
            let _ = b.frame(in_b).await;
            let reason = CloseReason::new(0x200 + round, "enough");
            if round % 2 == 0 {
                a.link.close(in_a, reason.clone());
                assert_eq!(a.down(in_a).await, DownReason::ClosedHere(reason.clone()));
                assert_eq!(b.down(in_b).await, DownReason::ClosedByPeer(reason));
            } else {
                b.link.close(in_b, reason.clone());
                assert_eq!(b.down(in_b).await, DownReason::ClosedHere(reason.clone()));
                assert_eq!(a.down(in_a).await, DownReason::ClosedByPeer(reason));
            }
            assert_eq!(a.link.queued_bytes(in_a, Class::Data), 0);
            in_a = a.up().await;
            in_b = b.up().await;
        }
    });
}

#[test]
fn a_receiver_without_memory_stalls_data_and_not_control() {
    run(async {
        const MEMORY: usize = 2 << 20;
        let memory = Memory::new(MEMORY);
        let tune = |config: &mut kagami_replicator::shell::quic::LinkConfig| {
            config.tuning.stream_window = 1 << 20;
        };
        let (a, b) = pair_with(tune, memory.clone());
        let (a, in_a, mut b, in_b) = connect(a, b).await;
        let payload = pattern(1 << 20, 1);
        for _ in 0..32 {
            a.link
                .send(in_a, Class::Data, with_payload(payload.clone()));
        }
        // The engine holds on to the first two, which are all the memory that there is.
        let held = [b.frame(in_b).await.1, b.frame(in_b).await.1];
        for n in 0..1000_u32 {
            a.send(in_a, Class::Control, n.to_le_bytes().to_vec());
            let (class, frame) = b.frame(in_b).await;
            assert_eq!(
                (class, &frame.head[..]),
                (Class::Control, &n.to_le_bytes()[..])
            );
        }
        // At most the window is on its way, the rest waits where it is counted.
        assert!(a.link.queued_bytes(in_a, Class::Data) >= 28 << 20);
        assert_eq!(memory.0.available_permits(), 0);
        drop(held);
        for _ in 2..32 {
            let (class, frame) = b.frame(in_b).await;
            assert_eq!(class, Class::Data);
            assert!(frame.payload.as_ref() == Some(&payload));
        }
    });
}

#[test]
fn a_queue_over_its_bound_ends_the_session() {
    run(async {
        let tune = |config: &mut kagami_replicator::shell::quic::LinkConfig| {
            config.tuning.max_queued = 8 << 20;
        };
        let (a, b) = pair_with(tune, Memory::new(1 << 20));
        let (mut a, in_a, mut b, in_b) = connect(a, b).await;
        let payload = pattern(1 << 20, 1);
        for _ in 0..16 {
            a.link
                .send(in_a, Class::Data, with_payload(payload.clone()));
        }
        assert!(matches!(
            a.down(in_a).await,
            DownReason::QueueFull {
                class: Class::Data,
                ..
            }
        ));
        assert!(
            matches!(b.down(in_b).await, DownReason::ClosedByPeer(r) if r.code == code::QUEUE_FULL)
        );
    });
}

#[test]
fn it_runs_in_the_shells_runtime_with_its_own_memory() {
    kagami_replicator::shell::runtime::start(async {
        let memory = Pool::new(&PoolConfig::with_bytes(4 << 20)).expect("memory");
        let (a, b) = pair_with(|_| {}, memory.clone());
        let (a, in_a, mut b, in_b) = connect(a, b).await;
        for n in 0..16 {
            a.link
                .send(in_a, Class::Data, with_payload(pattern(1 << 20, n)));
        }
        for n in 0..16 {
            let payload = b.frame(in_b).await.1.payload.expect("a payload");
            assert!(payload == pattern(1 << 20, n));
            assert!(
                payload.as_ptr().addr().is_multiple_of(4096),
                "O_DIRECT needs it aligned"
            );
        }
        assert_eq!(memory.stats().in_use, 0);
        a.link.shutdown().await;
        let reason = b.down(in_b).await;
        assert!(matches!(reason, DownReason::ClosedByPeer(r) if r.code == code::STOPPING));
    });
}
