//! The last word of a link that shuts down, over a network that loses packets.

mod link_support;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use kagami_replicator::shell::quic::{DownReason, code};
use kagami_replicator::wire::frame::Class;
use link_support::*;
use tokio::net::UdpSocket;

/// What is between two nodes: it passes datagrams on, but for as many from the dialler as it is to lose.
struct Way {
    address: SocketAddr,
    losing: Rc<Cell<u32>>,
    /// Nothing arrives any more, in either direction.
    cut: Rc<Cell<bool>>,
}

impl Way {
    async fn to(node: SocketAddr) -> Self {
        let inside = UdpSocket::bind(any_port()).await.expect("a socket");
        let outside = UdpSocket::bind(any_port()).await.expect("a socket");
        let address = inside.local_addr().expect("bound");
        let (losing, cut) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let way = Self {
            address,
            losing: Rc::clone(&losing),
            cut: Rc::clone(&cut),
        };
        tokio::task::spawn_local(async move {
            let (mut there, mut back) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            let mut dialler = None;
            loop {
                tokio::select! {
                    got = inside.recv_from(&mut there) => {
                        let Ok((len, from)) = got else { return };
                        dialler = Some(from);
                        if cut.get() {
                            continue;
                        }
                        match losing.get() {
                            0 => drop(outside.send_to(&there[..len], node).await),
                            left => losing.set(left - 1),
                        }
                    }
                    got = outside.recv_from(&mut back) => {
                        let Ok((len, _)) = got else { return };
                        if let Some(dialler) = dialler.filter(|_| !cut.get()) {
                            drop(inside.send_to(&back[..len], dialler).await);
                        }
                    }
                }
            }
        });
        way
    }
}

/// Two nodes that are connected over a way; the first dials.
async fn far_apart() -> (Node, Node, Way) {
    let (key_a, key_b) = (key(), key());
    let mut of_b = config(B);
    of_b.peers = vec![peer(A, vec![], &key_a)];
    let template = peer(B, vec![], &key_b);
    let b = Node::new(of_b, key_b);
    let way = Way::to(b.address()).await;
    let mut of_a = config(A);
    of_a.peers = vec![kagami_replicator::shell::quic::PeerConfig {
        addresses: vec![way.address],
        ..template
    }];
    (Node::new(of_a, key_a), b, way)
}

#[test]
fn a_last_word_arrives_though_the_packets_with_it_are_lost() {
    // The mirror is removed before the link is shut down, as the engine does it; or it is not.
    for removed_before in [true, false] {
        run(async {
            let (a, b, way) = far_apart().await;
            let (a, in_a, mut b, in_b) = connect(a, b).await;
            way.losing.set(3);
            a.send(in_a, Class::Control, &b"this node leaves"[..]);
            if removed_before {
                a.link.set_mirrors(&[]);
            }
            a.link.shutdown().await;
            assert_eq!(way.losing.get(), 0, "nothing was lost");
            let (class, frame) = b.frame(in_b).await;
            assert_eq!(
                (class, &frame.head[..]),
                (Class::Control, &b"this node leaves"[..])
            );
            let reason = b.down(in_b).await;
            let said = if removed_before {
                code::UNKNOWN_MIRROR
            } else {
                code::STOPPING
            };
            assert!(
                matches!(&reason, DownReason::ClosedByPeer(reason) if reason.code == said),
                "{reason}"
            );
        });
    }
}

#[test]
fn a_peer_that_is_gone_is_waited_for_no_longer_than_its_time_out() {
    run(async {
        let (a, b, way) = far_apart().await;
        let (a, in_a, _b, _) = connect(a, b).await;
        way.cut.set(true);
        a.send(in_a, Class::Control, &b"this node leaves"[..]);
        let began = Instant::now();
        a.link.shutdown().await;
        // A second for the connections to end, and one for a busy machine.
        assert!(began.elapsed() < TIMEOUT * 2, "{:?}", began.elapsed());
    });
}
