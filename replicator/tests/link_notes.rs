//! Notes between nodes, the versions that have them, and a node that shows another key.

mod link_support;

use kagami_replicator::shell::identity::{Fingerprint, NodeKey, NodeKeys};
use kagami_replicator::shell::quic::{LinkEvent, LinkFault, Note, PeerConfig};
use link_support::*;

async fn note(node: &mut Node) -> Note {
    node.until("note", |event| match event {
        LinkEvent::Note { note, .. } => Some(note),
        _ => None,
    })
    .await
}

async fn shown(node: &mut Node) -> Fingerprint {
    node.until("connection", |event| match event {
        LinkEvent::Connected { key, .. } => Some(key),
        _ => None,
    })
    .await
}

#[test]
fn notes_go_both_ways_beside_the_sessions() {
    run(async {
        let (mut a, in_a, mut b, in_b) = connected().await;
        let key = Fingerprint::from_bytes([9; 32]);
        for n in 0..50_u8 {
            let next = Note::NextKey(Fingerprint::from_bytes([n; 32]));
            assert!(a.link.tell(B, next.clone()));
            assert_eq!(note(&mut b).await, next);
        }
        assert!(b.link.tell(A, Note::NotPinned(key, "no room".to_owned())));
        assert_eq!(
            note(&mut a).await,
            Note::NotPinned(key, "no room".to_owned())
        );
        // The sessions know nothing of it.
        a.send(in_a, kagami_replicator::wire::frame::Class::Control, "x");
        assert_eq!(b.frame(in_b).await.1.head[..], b"x"[..]);
        assert!(!a.link.tell(A, Note::Pinned(key)), "there is no such peer");
    });
}

#[test]
fn version_one_has_none() {
    run(async {
        let (a, b) = pair_with(
            |config| {
                if config.node == B {
                    config.versions = vec![1];
                }
            },
            Memory::new(64 << 20),
        );
        let (a, in_a, mut b, in_b) = connect(a, b).await;
        let status = a.link.peer_status(B).expect("a connection");
        assert_eq!(status.version, 1);
        assert!(
            !a.link
                .tell(B, Note::NextKey(Fingerprint::from_bytes([9; 32])))
        );
        a.send(in_a, kagami_replicator::wire::frame::Class::Control, "x");
        assert_eq!(b.frame(in_b).await.1.head[..], b"x"[..]);
    });
}

/// A key and what peers pin of it, twice: one is moved into a link.
fn key_twice(folder: &std::path::Path) -> (NodeKey, NodeKey) {
    let load = || NodeKeys::load_or_create(folder).expect("keys").current;
    (load(), load())
}

#[test]
fn another_key_is_shown_where_it_is_pinned_and_nowhere_else() {
    run(async {
        let folder = tempfile::tempdir().expect("tempdir");
        let (first, _) = key_twice(&folder.path().join("first"));
        let (next, again) = key_twice(&folder.path().join("next"));
        let (stranger, _) = key_twice(&folder.path().join("stranger"));
        let key_a = key();
        let old = first.fingerprint();
        let both = |mut peer: PeerConfig| {
            peer.fingerprints = vec![old, next.fingerprint()];
            peer
        };
        // b is dialled, so its listeners have to take the key, too.
        let mut of_b = config(B);
        of_b.peers = vec![peer(A, vec![], &key_a)];
        let template = peer(B, vec![], &first);
        let mut b = Node::new(of_b, first);
        let mut of_a = config(A);
        let of_peer = both(PeerConfig {
            addresses: vec![b.address()],
            ..template
        });
        of_a.peers = vec![of_peer.clone()];
        let mut a = Node::new(of_a, key_a);
        a.sees_connections = true;
        want(&a, B, &[PG]);
        want(&b, A, &[PG]);
        assert_eq!(shown(&mut a).await, old);
        let in_b = b.up().await;

        b.link.set_key(again).expect("a key");
        b.down(in_b).await;
        assert_eq!(shown(&mut a).await, next.fingerprint());
        b.up().await;
        // Now the old one is not pinned any more, and the connection stays.
        a.link.set_peers(vec![PeerConfig {
            fingerprints: vec![next.fingerprint()],
            ..of_peer
        }]);
        let status = a.link.peer_status(B).expect("a connection");
        assert_eq!(status.key, next.fingerprint());

        b.link.set_key(stranger).expect("a key");
        let fault = a.failure().await;
        assert!(matches!(fault, LinkFault::UnknownKey(_)), "{fault:?}");
    });
}
