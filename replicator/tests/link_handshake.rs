//! Who may connect, by which version and address, and how a dead peer is noticed.

mod link_support;

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kagami_replicator::shell::identity::{Fingerprint, IdentityError, NodeKey, NodeKeys};
use kagami_replicator::shell::quic::{
    CloseReason, DownReason, LinkConfig, LinkEvent, LinkFault, NodeId, PeerConfig, code,
};
use kagami_replicator::wire::frame::Class;
use link_support::*;

/// A node on a thread of its own, which dies without a word when told.
struct Mortal {
    address: SocketAddr,
    kill: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mortal {
    fn start(config: LinkConfig, key: NodeKey) -> Self {
        let (kill, killed) = tokio::sync::oneshot::channel();
        let (sender, address) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            run(async move {
                let node = Node::new(config, key);
                want(&node, A, &[PG]);
                sender.send(node.address()).expect("the test waits");
                // The runtime ends with this future, before anything that a destructor asks for
                // could be sent.
                let _ = killed.await;
            });
        });
        let address = address.recv_timeout(DEADLINE).expect("it listens");
        Self {
            address,
            kill: Some(kill),
            thread: Some(thread),
        }
    }

    fn kill(mut self) {
        let _ = self.kill.take().expect("alive").send(());
        self.thread.take().expect("alive").join().expect("it ends");
    }
}

fn reload(path: &std::path::Path) -> NodeKey {
    NodeKeys::load(path).expect("the key is there").current
}

#[test]
fn a_killed_peer_is_noticed_within_the_time_out_and_met_again() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("keys");
        let key_b = NodeKeys::load_or_create(&folder).expect("a key").current;
        let key_a = key();
        let timeout = Duration::from_secs(3);
        let of_a = PeerConfig {
            timeout,
            ..peer(A, vec![], &key_a)
        };
        let mut config_b = config(B);
        config_b.peers = vec![of_a];
        let b = Mortal::start(config_b.clone(), reload(&folder));
        let address = b.address;
        let mut config_a = config(A);
        config_a.peers = vec![PeerConfig {
            timeout,
            ..peer(B, vec![address], &key_b)
        }];
        let mut a = Node::new(config_a, key_a);
        want(&a, B, &[PG]);
        let first = a.up().await;

        // Another socket on its port takes what comes and answers nothing: the machine is dead.
        b.kill();
        let died = Instant::now();
        let silent = UdpSocket::bind(address).expect("the port is free");
        let reason = a.down(first).await;
        assert_eq!(reason, DownReason::TimedOut(timeout));
        assert!(
            died.elapsed() < timeout * 3 / 2,
            "noticed after {:?}",
            died.elapsed()
        );

        drop(silent);
        config_b.listen = vec![address];
        let b = Mortal::start(config_b.clone(), reload(&folder));
        let second = a.up().await;

        // Only the daemon died: its successor says at once that it knows nothing of the session.
        b.kill();
        let died = Instant::now();
        let b = Mortal::start(config_b, reload(&folder));
        let reason = a.down(second).await;
        assert_eq!(
            reason,
            DownReason::PeerRestarted,
            "after {:?}",
            died.elapsed()
        );
        a.up().await;
        b.kill();
    });
}

#[test]
fn the_newer_connection_of_a_restarted_peer_replaces_the_older() {
    run(async {
        let (key_a, key_b) = (key(), key());
        let mut config_b = config(B);
        config_b.peers = vec![PeerConfig {
            timeout: Duration::from_mins(1),
            ..peer(A, vec![], &key_a)
        }];
        let template = peer(B, vec![], &key_b);
        let mut b = Node::new(config_b, key_b);
        want(&b, A, &[PG]);

        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys");
        drop(NodeKeys::load_or_create(&path).expect("a key"));
        // The first life of the dialer: it dies silently, and nothing answers on its port.
        let address = b.address();
        let dialer = |key: NodeKey| {
            let mut config = config(A);
            config.listen.clear();
            let timeout = Duration::from_mins(1);
            config.peers = vec![PeerConfig {
                addresses: vec![address],
                timeout,
                ..template.clone()
            }];
            (config, key)
        };
        let key_of_a = reload(&path);
        b.link.set_peers(vec![PeerConfig {
            timeout: Duration::from_mins(1),
            ..peer(A, vec![], &key_of_a)
        }]);
        let (kill, killed) = tokio::sync::oneshot::channel::<()>();
        let (first_config, first_key) = dialer(key_of_a);
        let thread = std::thread::spawn(move || {
            run(async move {
                let node = Node::new(first_config, first_key);
                want(&node, B, &[PG]);
                let _ = killed.await;
            });
        });
        let (first, nonce) = b.up_with_nonce().await;
        drop(kill);
        thread.join().expect("it ends");

        let (config, key) = dialer(reload(&path));
        let a = Node::new(config, key);
        want(&a, B, &[PG]);
        // The old session goes down before the new one comes up.
        let reason = b
            .until("end", |event| match event {
                LinkEvent::Down {
                    session, reason, ..
                } if session == first => Some(reason),
                LinkEvent::Up { .. } => panic!("up before the old one was down"),
                _ => None,
            })
            .await;
        assert_eq!(reason, DownReason::Replaced);
        let (second, again) = b.up_with_nonce().await;
        assert!(second != first && again != nonce);
    });
}

#[test]
fn a_key_that_is_not_pinned_is_refused_on_both_ends() {
    // The dialer doesn't know the other's key.
    run(async {
        let (key_a, key_b, wrong) = (key(), key(), key());
        let mut config_b = config(B);
        config_b.peers = vec![peer(A, vec![], &key_a)];
        let shown = key_b.fingerprint();
        let mut b = Node::new(config_b, key_b);
        want(&b, A, &[PG]);
        let mut config_a = config(A);
        config_a.peers = vec![peer(B, vec![b.address()], &wrong)];
        let mut a = Node::new(config_a, key_a);
        want(&a, B, &[PG]);
        let fault = a.failure().await;
        assert!(matches!(fault, LinkFault::UnknownKey(_)), "{fault:?}");
        assert!(fault.to_string().contains(&shown.to_string()), "{fault}");
        assert_eq!(b.failure().await, LinkFault::KeyRefused(shown));
    });
    // The other doesn't know the dialer's.
    run(async {
        let (key_a, key_b, wrong) = (key(), key(), key());
        let mut config_b = config(B);
        config_b.peers = vec![peer(A, vec![], &wrong)];
        let of_b = peer(B, vec![], &key_b);
        let mut b = Node::new(config_b, key_b);
        want(&b, A, &[PG]);
        let mut config_a = config(A);
        config_a.peers = vec![PeerConfig {
            addresses: vec![b.address()],
            ..of_b
        }];
        let shown = key_a.fingerprint();
        let mut a = Node::new(config_a, key_a);
        want(&a, B, &[PG]);
        assert_eq!(a.failure().await, LinkFault::KeyRefused(shown));
        let fault = b.failure().await;
        assert!(matches!(fault, LinkFault::UnknownKey(_)), "{fault:?}");
        assert!(fault.to_string().contains(&shown.to_string()), "{fault}");
    });
}

#[test]
fn a_stranger_with_many_keys_is_not_told_of_each_time() {
    run(async {
        let (key_a, key_b) = (key(), key());
        let mut config_b = config(B);
        config_b.peers = vec![peer(A, vec![], &key_a)];
        let of_b = peer(B, vec![], &key_b);
        let mut b = Node::new(config_b, key_b);
        want(&b, A, &[PG]);
        let config_a = || {
            let mut config_a = config(A);
            config_a.peers = vec![PeerConfig {
                addresses: vec![b.address()],
                ..of_b.clone()
            }];
            config_a
        };
        for _ in 0..20 {
            let mut stranger = Node::new(config_a(), key());
            want(&stranger, B, &[PG]);
            stranger.failure().await;
        }
        // The peer is heard all the same.
        let a = Node::new(config_a(), key_a);
        want(&a, B, &[PG]);
        let mut told = 0;
        loop {
            match b.next().await {
                LinkEvent::ConnectFailed { .. } => told += 1,
                LinkEvent::Up { .. } => break,
                _ => {}
            }
        }
        assert!((1..=6).contains(&told), "told {told} times");
    });
}

#[test]
fn the_pins_can_change_while_connected() {
    run(async {
        let (a, in_a, mut b, in_b) = connected().await;
        let mut a = a;
        let stranger = key();
        b.link.set_peers(vec![peer(A, vec![], &stranger)]);
        assert!(
            matches!(b.down(in_b).await, DownReason::ClosedHere(r) if r.code == code::UNPINNED)
        );
        let reason = a.down(in_a).await;
        assert!(
            matches!(&reason, DownReason::ClosedByPeer(r) if r.code == code::UNPINNED),
            "{reason:?}"
        );
        assert!(matches!(a.failure().await, LinkFault::KeyRefused(_)));
    });
}

#[test]
fn one_of_two_pinned_keys_is_enough() {
    run(async {
        let (key_a, old, new) = (key(), key(), key());
        let mut config_b = config(B);
        config_b.peers = vec![peer(A, vec![], &key_a)];
        let mut of_b = peer(B, vec![], &old);
        of_b.fingerprints.push(new.fingerprint());
        let mut b = Node::new(config_b, new);
        want(&b, A, &[PG]);
        let mut config_a = config(A);
        of_b.addresses = vec![b.address()];
        config_a.peers = vec![of_b];
        let mut a = Node::new(config_a, key_a);
        want(&a, B, &[PG]);
        a.up().await;
        b.up().await;
    });
}

#[test]
fn the_newest_common_version_is_agreed_on() {
    run(async {
        let versions = |config: &mut LinkConfig| {
            config.versions = if config.node == A {
                vec![4, 3, 2]
            } else {
                vec![3, 2, 1]
            };
        };
        let (a, b) = pair_with(versions, Memory::new(1 << 20));
        want(&a, B, &[PG]);
        want(&b, A, &[PG]);
        for mut node in [a, b] {
            let version = node.until("session", |event| match event {
                LinkEvent::Up { version, .. } => Some(version),
                _ => None,
            });
            assert_eq!(version.await, 3);
        }
    });
}

#[test]
fn without_a_common_version_both_sides_name_both_lists() {
    run(async {
        let versions = |config: &mut LinkConfig| {
            config.versions = if config.node == A {
                vec![4, 3]
            } else {
                vec![2, 1]
            };
        };
        let (mut a, mut b) = pair_with(versions, Memory::new(1 << 20));
        want(&a, B, &[PG]);
        want(&b, A, &[PG]);
        let fault = a.failure().await;
        assert_eq!(
            fault,
            LinkFault::NoCommonVersion {
                theirs: vec![2, 1],
                ours: vec![4, 3]
            }
        );
        assert!(
            fault
                .to_string()
                .contains("the peer speaks versions 2, 1, this node 4, 3"),
            "{fault}"
        );
        let fault = b.failure().await;
        assert_eq!(
            fault,
            LinkFault::NoCommonVersion {
                theirs: vec![4, 3],
                ours: vec![2, 1]
            }
        );
    });
}

#[test]
fn a_dead_first_address_and_ipv6_are_no_hindrance() {
    run(async {
        let (key_a, key_b) = (key(), key());
        let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let dead = silent.local_addr().expect("an address");
        let mut config_b = config(B);
        config_b.listen = vec![(Ipv6Addr::LOCALHOST, 0).into()];
        config_b.peers = vec![peer(A, vec![], &key_a)];
        let of_b = peer(B, vec![dead], &key_b);
        let mut b = Node::new(config_b, key_b);
        want(&b, A, &[PG]);
        let mut config_a = config(A);
        config_a.peers = vec![PeerConfig {
            addresses: vec![dead, b.address()],
            ..of_b
        }];
        let mut a = Node::new(config_a, key_a);
        let began = Instant::now();
        want(&a, B, &[PG]);
        let session = a.up().await;
        assert!(
            began.elapsed() < TIMEOUT,
            "waited for the dead address: {:?}",
            began.elapsed()
        );
        assert_eq!(a.link.peer_status(B).map(|s| s.address), Some(b.address()));
        let in_b = b.up().await;
        a.send(session, Class::Control, "over IPv6");
        assert_eq!(b.frame(in_b).await.1.head, "over IPv6");
    });
}

#[test]
fn an_address_of_another_node_is_named() {
    run(async {
        let (key_a, key_b) = (key(), key());
        let mut config_b = config(NodeId(7));
        config_b.peers = vec![peer(A, vec![], &key_a)];
        let of_b = peer(B, vec![], &key_b);
        let b = Node::new(config_b, key_b);
        let mut config_a = config(A);
        config_a.peers = vec![PeerConfig {
            addresses: vec![b.address()],
            ..of_b
        }];
        let mut a = Node::new(config_a, key_a);
        want(&a, B, &[PG]);
        assert_eq!(
            a.failure().await,
            LinkFault::WrongNode {
                found: NodeId(7),
                expected: B
            }
        );
    });
}

#[test]
fn without_an_address_the_configuration_is_named() {
    run(async {
        let (key_a, key_b) = (key(), key());
        let mut config_a = config(A);
        config_a.peers = vec![peer(B, vec![], &key_b)];
        let mut a = Node::new(config_a, key_a);
        want(&a, B, &[PG]);
        let fault = a.failure().await;
        assert!(fault.to_string().contains("[peer.node2]"), "{fault}");
        // Nobody was reached, nobody is told twice.
        assert!(a.next_within(Duration::from_millis(500)).await.is_none());
    });
}

#[test]
fn a_stopped_daemon_takes_leave() {
    run(async {
        let (a, in_a, b, _) = connected().await;
        let mut a = a;
        b.link.shutdown().await;
        let expected = CloseReason::new(code::STOPPING, "the daemon stops");
        assert_eq!(a.down(in_a).await, DownReason::ClosedByPeer(expected));
    });
}

#[test]
fn a_key_is_made_once_and_replaced_in_steps() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys");
    assert!(matches!(
        NodeKeys::load(&path),
        Err(IdentityError::Missing { .. })
    ));
    let mut keys = NodeKeys::load_or_create(&path).expect("a key");
    let first = keys.current.fingerprint();
    assert_eq!(
        NodeKeys::load_or_create(&path)
            .expect("a key")
            .current
            .fingerprint(),
        first
    );
    let mode = |name: &str| {
        fs::metadata(path.join(name))
            .expect("there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("."), mode("node.key")), (0o700, 0o600));

    let next = keys.prepare_next().expect("a next key");
    assert!(matches!(
        keys.prepare_next(),
        Err(IdentityError::NextExists { .. })
    ));
    let loaded = NodeKeys::load(&path).expect("two keys");
    assert_eq!(loaded.current.fingerprint(), first);
    assert_eq!(loaded.next.map(|key| key.fingerprint()), Some(next));
    assert_eq!(keys.switch_to_next().expect("switched"), next);
    assert!(matches!(
        keys.switch_to_next(),
        Err(IdentityError::Missing { .. })
    ));
    let loaded = NodeKeys::load(&path).expect("one key");
    assert_eq!(loaded.current.fingerprint(), next);
    assert!(loaded.next.is_none());
    let names: Vec<_> = fs::read_dir(&path)
        .expect("readable")
        .map(|e| e.expect("entry").file_name())
        .collect();
    assert_eq!(names, ["node.key"]);
}

#[test]
fn a_key_that_others_could_read_or_that_is_damaged_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys");
    NodeKeys::load_or_create(&path).expect("a key");
    let file = path.join("node.key");
    let set = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    };
    set(&file, 0o640);
    let error = NodeKeys::load(&path).expect_err("too open");
    assert!(
        matches!(error, IdentityError::TooOpen { mode: 0o640, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("chmod 600"), "{error}");
    set(&file, 0o600);
    set(&path, 0o755);
    assert!(matches!(
        NodeKeys::load_or_create(&path),
        Err(IdentityError::TooOpen { wanted: 0o700, .. })
    ));
    set(&path, 0o700);
    for text in [
        "",
        "garbage",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ] {
        fs::write(&file, text).expect("written");
        let error = NodeKeys::load_or_create(&path).expect_err("damaged");
        assert!(matches!(error, IdentityError::Unreadable { .. }), "{error}");
    }
}

#[test]
fn a_fingerprint_reads_back_as_written() {
    let fingerprint = key().fingerprint();
    assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
    for text in [
        "",
        "sha256:",
        "sha1:00",
        &format!("sha256:{}", "g".repeat(64)),
        &"ä".repeat(40),
    ] {
        assert!(text.parse::<Fingerprint>().is_err(), "{text}");
    }
}
