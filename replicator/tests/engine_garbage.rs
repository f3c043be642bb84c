//! A peer with the right key that says what no peer says: its session ends, the mirror goes on.

mod engine_support;
mod link_support;

use bytes::Bytes;
use engine_support::{DEADLINE, Node, PG, run};
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Connection, Role, Solo};
use kagami_replicator::shell::identity::NodeKeys;
use kagami_replicator::shell::quic::{LinkConfig, LinkEvent, MirrorId, NodeId};
use kagami_replicator::wire::frame::{Class, OutFrame};
use tokio::task::LocalSet;

#[test]
fn garbage_ends_the_session_and_nothing_else() {
    run(LocalSet::new().run_until(async {
        let (mut a, b) = (Node::new(1), Node::new(2));
        a.make_copy("pg", PG, true);
        a.start();
        let mut config = LinkConfig::new(NodeId(2));
        config.listen = vec![([127, 0, 0, 1], 0).into()];
        config.peers = vec![a.as_peer()];
        let keys = NodeKeys::load(&b.path("key")).expect("key");
        let mut fake = link_support::Node::new(config, keys.current);
        let mut peer = b.as_peer();
        peer.addresses = vec![fake.address()];
        a.engine().set_peers(&[peer]);
        fake.link.set_mirrors(&[(MirrorId(PG), NodeId(1))]);
        fake.link.want(MirrorId(PG), true);
        let mut events = a.engine().events();
        a.add(a.mirror("pg", PG, 2, Solo::Never))
            .await
            .expect("added");

        let frame = |kind, head: &'static [u8]| OutFrame {
            kind,
            head: Bytes::from_static(head),
            payload: None,
        };
        // No such kind; a head that is none; a ping (a good message) on the stream of data.
        let ping =
            kagami_replicator::wire::message::encode(&kagami_replicator::core::Message::Ping {
                sent: 1,
            });
        let ping = OutFrame {
            kind: ping.kind,
            head: ping.head,
            payload: None,
        };
        let garbage = [
            (Class::Control, frame(250, b"")),
            (Class::Control, frame(1, b"no hello")),
            (Class::Data, ping),
        ];
        for (class, frame) in garbage {
            let session = fake
                .until("a session", |event| match event {
                    LinkEvent::Up { session, .. } => Some(session),
                    _ => None,
                })
                .await;
            fake.link.send(session, class, frame);
            let told = async {
                loop {
                    let event = events.recv().await.expect("events");
                    if let Notice::PeerFault { what } = event.notice {
                        return what;
                    }
                }
            };
            let told = tokio::time::timeout(DEADLINE, told)
                .await
                .expect("reported");
            assert!(!told.is_empty());
            fake.until("the end of the session", |event| match event {
                LinkEvent::Down { session: down, .. } if down == session => Some(()),
                _ => None,
            })
            .await;
        }
        let status = a.status().await;
        assert_eq!(status.core.role, Role::Secondary);
        assert_ne!(status.core.connection, Connection::StandAlone);
        a.stop().await;
    }));
}
