//! What goes wrong with an engine's links, stores and permission, and what becomes of it.

mod engine_support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use engine_support::*;
use kagami_replicator::core::Command;
use kagami_replicator::core::event::{IoError, Request};
use kagami_replicator::core::register::{ArbiterAnswer, Ask};
use kagami_replicator::core::state::{Connection, DiskState, NodeId, Replication, Role, Solo};
use kagami_replicator::shell::arbiter::{Arbiter, MirrorRegister};
use kagami_replicator::shell::engine::{ArbiterConfig, StartError};
use kagami_replicator::shell::identity::{NodeKey, NodeKeys};
use kagami_replicator::shell::witness::{
    Client, ClientConfig, RegisterId, Remote, Server, ServerConfig,
};
use tokio::sync::oneshot;

#[test]
fn a_link_that_was_cut_is_made_again_and_caught_up() {
    run(async {
        let (mut a, mut b) = pair(Solo::Always).await;
        for round in 1..=3u8 {
            a.engine().set_peers(&[]);
            a.until("cut off", |status| {
                status.core.connection != Connection::Connected
            })
            .await;
            a.with_device(move |disk| async move {
                disk.write(u64::from(round) << 20, round, 64 << 10)
                    .await
                    .expect("alone");
            })
            .await;
            introduce(&a, &b);
            let status = a.in_sync().await;
            b.in_sync().await;
            assert_eq!(status.core.marked_blocks, 0);
        }
        a.with_device(|disk| async move { disk.flush().await.expect("flush") })
            .await;
        a.stop().await;
        b.stop().await;
        assert!(a.bytes() == b.bytes(), "both copies are the same");
        assert_eq!((a.bytes()[1 << 20], a.bytes()[3 << 20]), (1, 3));
    });
}

#[test]
fn without_permission_writes_wait_for_the_peer() {
    run(async {
        let (mut a, mut b) = pair(Solo::Never).await;
        b.crash().await;
        a.until("cut off", |status| {
            status.core.connection != Connection::Connected
        })
        .await;
        let (began, writing) = oneshot::channel();
        let (done, written) = oneshot::channel();
        a.with_device(|disk| async move {
            tokio::task::spawn_local(async move {
                let _ = began.send(());
                let _ = done.send(disk.write(0, 9, 4096).await);
            });
        })
        .await;
        writing.await.expect("begun");
        let status = a
            .until("holding", |status| status.core.held.is_some())
            .await;
        assert_eq!(status.requests, 1);
        b.start();
        introduce(&a, &b);
        b.add(b.mirror("pg", PG, 1, Solo::Never))
            .await
            .expect("b again");
        assert_eq!(written.await.expect("answered"), Ok(()));
        a.stop().await;
        b.stop().await;
        assert!(a.bytes() == b.bytes());
        assert_eq!(b.bytes()[0], 9);
    });
}

#[test]
fn a_secondary_answers_nobody_and_says_who_does() {
    run(async {
        let (mut a, mut b) = pair(Solo::Never).await;
        b.until("told of the Primary", |status| {
            status.core.peer_role == Some(Role::Primary)
        })
        .await;
        b.with_device(|disk| async move {
            assert_eq!(
                disk.ask(Request::Read {
                    offset: 0,
                    len: 4096
                })
                .await,
                Err(IoError::NotPrimary)
            );
            let text = disk.device.refusal("alpha").expect("refused");
            assert!(
                text.contains("alpha is Primary") && text.contains("pg"),
                "{text}"
            );
        })
        .await;
        a.with_device(|disk| async move {
            assert_eq!(disk.device.refusal("beta"), None);
            assert_eq!(disk.read(SIZE, 512).await, Err(IoError::OutOfRange));
            assert_eq!(disk.write(100, 1, 512).await, Err(IoError::Unaligned));
        })
        .await;
        // Hand over: the other serves, and has everything.
        a.with_device(|disk| async move { disk.write(0, 5, 4096).await.expect("write") })
            .await;
        a.engine()
            .command("pg", Command::Demote { force: false })
            .await
            .expect("demoted");
        b.until("told", |status| {
            status.core.peer_role == Some(Role::Secondary)
        })
        .await;
        b.promote().await;
        b.with_device(|disk| async move {
            assert_eq!(disk.read(0, 4096).await.expect("read")[0], 5);
        })
        .await;
        assert_eq!(
            a.until("Secondary", |status| status.core.peer_role
                == Some(Role::Primary))
                .await
                .core
                .role,
            Role::Secondary
        );
        a.stop().await;
        b.stop().await;
    });
}

#[test]
fn a_clean_stop_leaves_nothing_to_resynchronise() {
    run(async {
        let (mut a, mut b) = pair(Solo::Never).await;
        a.with_device(|disk| async move { disk.write(8 << 20, 4, 1 << 20).await.expect("write") })
            .await;
        assert!(
            a.path("run/pg.unbroken").exists(),
            "in sync: the copy counts as unbroken"
        );
        a.stop().await;
        b.stop().await;
        for node in [&mut a, &mut b] {
            node.start();
        }
        introduce(&a, &b);
        a.add(a.mirror("pg", PG, 2, Solo::Never)).await.expect("a");
        b.add(b.mirror("pg", PG, 1, Solo::Never)).await.expect("b");
        let status = a.in_sync().await;
        assert_eq!(
            (status.core.counters.resync_bytes, status.findings.len()),
            (0, 0),
            "{status:#?}"
        );
        a.stop().await;
        b.stop().await;
    });
}

#[test]
fn a_copy_without_its_disk_is_served_from_the_peer() {
    run(async {
        let (mut a, mut b) = pair(Solo::Always).await;
        a.with_device(|disk| async move { disk.write(0, 6, 4096).await.expect("write") })
            .await;
        a.stop().await;
        fs::rename(a.path("pg.img"), a.path("pg.gone")).expect("rename");
        a.start();
        introduce(&a, &b);
        a.add(a.mirror("pg", PG, 2, Solo::Always))
            .await
            .expect("diskless");
        let status = a.status().await;
        assert_eq!(status.core.disk, DiskState::Diskless);
        assert!(status.diskless.expect("why").contains("pg.img"));
        assert!(!a.path("run/pg.unbroken").exists());
        a.stop().await;
        b.stop().await;
    });
}

#[test]
fn stores_that_are_not_this_mirrors_are_refused_untouched() {
    run(async {
        let mut a = Node::new(1);
        a.make_copy("pg", PG, true);
        make_copy(a.folder.path(), "moved", PG, 9, true);
        make_copy(a.folder.path(), "other", 0x1234, 1, true);
        a.start();
        let mine = || a.mirror("pg", PG, 2, Solo::Never);
        let with = |name: &str| {
            let mut config = mine();
            config.backing = a.path(&format!("{name}.img"));
            config.metadata = Some(a.path(&format!("{name}.meta")));
            config
        };
        let before = fs::read(a.path("other.meta")).expect("read");
        let error = a.add(with("other")).await.expect_err("another mirror's");
        assert!(error.to_string().contains("belong to mirror"), "{error}");
        assert!(
            before == fs::read(a.path("other.meta")).expect("read"),
            "untouched"
        );
        assert!(matches!(
            a.add(with("moved")).await,
            Err(StartError::OtherNode {
                found: NodeId(9),
                ..
            })
        ));

        let mut config = mine();
        config.size = Some(SIZE * 2);
        assert!(matches!(
            a.add(config).await,
            Err(StartError::OtherSize { found: SIZE, .. })
        ));
        let mut config = mine();
        config.thread = 7;
        assert!(matches!(
            a.add(config).await,
            Err(StartError::NoThread {
                thread: 7,
                threads: 1,
                ..
            })
        ));
        let mut config = mine();
        config.metadata = Some(a.path("pg.img"));
        config.backing = a.path("pg.meta");
        config.fence_wait = std::time::Duration::ZERO;
        let error = a.add(config).await.expect_err("no metadata there");
        assert!(error.to_string().contains("no metadata"), "{error}");

        // Truncated data, with a damaged slot that a start puts right; then truncated metadata.
        let mut damaged = fs::read(a.path("pg.meta")).expect("read");
        damaged[700] ^= 1;
        fs::write(a.path("pg.meta"), &damaged).expect("damaged");
        OpenOptions::new()
            .write(true)
            .open(a.path("pg.img"))
            .expect("open")
            .set_len(SIZE / 2)
            .expect("truncate");
        assert!(matches!(
            a.add(mine()).await,
            Err(StartError::BackingTooShort { needs: SIZE, .. })
        ));
        let refused = fs::read(a.path("pg.meta")).expect("read");
        assert!(refused == damaged, "a store that is refused is not changed");
        OpenOptions::new()
            .write(true)
            .open(a.path("pg.img"))
            .expect("open")
            .set_len(SIZE)
            .expect("restore");
        let meta = OpenOptions::new()
            .write(true)
            .open(a.path("pg.meta"))
            .expect("open");
        let len = meta.metadata().expect("metadata").len();
        meta.set_len(len - 4096).expect("truncate");
        let error = a.add(mine()).await.expect_err("truncated");
        assert!(error.to_string().contains("truncated"), "{error}");
        meta.set_len(len).expect("restore");

        // A store that another daemon holds.
        let mut other = Node::new(1);
        other.start();
        a.add(mine()).await.expect("started at last");
        let mut config = mine();
        config.fence_wait = std::time::Duration::ZERO;
        let error = other.add(config).await.expect_err("held");
        assert!(error.to_string().contains("in use"), "{error}");
        assert!(matches!(a.add(mine()).await, Err(StartError::Exists(_))));
        a.engine().remove_mirror("pg").await.expect("removed");
        other.add(mine()).await.expect("free again");
        let refusal = a
            .engine()
            .command("pg", Command::Connect)
            .await
            .expect_err("gone");
        assert!(refusal.what.contains("not known here"), "{refusal:?}");
        other.stop().await;
        a.stop().await;
    });
}

#[test]
fn one_flipped_bit_in_the_metadata_costs_no_data() {
    run(async {
        let (mut a, mut b) = pair(Solo::Never).await;
        a.with_device(|disk| async move { disk.write(0, 3, 4096).await.expect("write") })
            .await;
        a.stop().await;
        b.stop().await;
        let meta = OpenOptions::new()
            .read(true)
            .write(true)
            .open(a.path("pg.meta"))
            .expect("open");
        let mut byte = [0];
        meta.read_exact_at(&mut byte, layout().slots_offset + 700)
            .expect("read");
        meta.write_all_at(&[byte[0] ^ 4], layout().slots_offset + 700)
            .expect("write");
        drop(meta);
        for node in [&mut a, &mut b] {
            node.start();
        }
        introduce(&a, &b);
        a.add(a.mirror("pg", PG, 2, Solo::Never))
            .await
            .expect("repaired");
        b.add(b.mirror("pg", PG, 1, Solo::Never)).await.expect("b");
        let status = a.in_sync().await;
        assert!(
            status.findings.iter().any(|text| text.contains("slot")),
            "{:?}",
            status.findings
        );
        a.stop().await;
        b.stop().await;
        assert!(a.bytes() == b.bytes());
    });
}

#[test]
fn a_witness_lets_one_go_on_and_not_the_other() {
    run(async {
        let folder = tempfile::tempdir().expect("tempdir");
        let (mut a, mut b) = (Node::new(1), Node::new(2));
        for node in [&mut a, &mut b] {
            node.make_copy("pg", PG, true);
            node.start();
        }
        let key = NodeKey::generate().expect("key");
        let server = Server::start(
            &key,
            ServerConfig {
                listen: vec![([127, 0, 0, 1], 0).into()],
                state: folder.path().to_owned(),
                clients: vec![a.key(), b.key()],
            },
        )
        .expect("witness");
        let place = ClientConfig {
            name: "w1".to_owned(),
            addresses: server.addresses(),
            fingerprints: vec![key.fingerprint()],
            timeout: std::time::Duration::from_secs(2),
        };
        let witness = tokio::spawn(server.serve(std::future::pending()));
        let with_arbiter = |node: &Node, peer| {
            let mut config = node.mirror("pg", PG, peer, Solo::Arbiter);
            config.arbiter = ArbiterConfig::Witness {
                witness: place.clone(),
                register: None,
            };
            config
        };
        introduce(&a, &b);
        a.add(with_arbiter(&a, 2)).await.expect("a");
        b.add(with_arbiter(&b, 1)).await.expect("b");
        a.in_sync().await;
        b.in_sync().await;
        let keys = NodeKeys::load(&a.path("key")).expect("key");
        let reader = Remote::new(&keys.current, place.clone()).expect("remote");
        let reader = Client::new(reader, RegisterId(PG), vec![a.key(), b.key()]);
        let reader = MirrorRegister::new(reader);
        // In sync, the register comes to name both.
        let begun = std::time::Instant::now();
        loop {
            match std::rc::Rc::clone(&reader).ask(Ask::Read).await {
                ArbiterAnswer::Register(Some(register)) => {
                    assert_eq!(register.copies, [NodeId(1), NodeId(2)]);
                    break;
                }
                ArbiterAnswer::Register(None) => assert!(begun.elapsed() < DEADLINE, "no register"),
                other => panic!("{other:?}"),
            }
            tokio::task::yield_now().await;
        }
        a.promote().await;
        b.crash().await;
        a.with_device(|disk| async move { disk.write(0, 8, 4096).await.expect("permitted") })
            .await;
        let status = a.status().await;
        assert_eq!(status.core.alone_by, Some("arbiter"), "{status:#?}");
        // The other one, without a link: it is not named, and may not be promoted.
        a.engine().set_peers(&[]);
        b.start();
        b.add(with_arbiter(&b, 1)).await.expect("b again");
        let refused = b
            .engine()
            .command(
                "pg",
                Command::Promote {
                    force: false,
                    while_resyncing: false,
                },
            )
            .await;
        assert!(refused.is_err(), "{refused:?}");
        // Together again: resynchronised, and both named.
        introduce(&a, &b);
        a.in_sync().await;
        b.until("in sync", |status| {
            status.core.replication == Replication::Established
        })
        .await;
        a.stop().await;
        b.stop().await;
        assert!(a.bytes() == b.bytes());
        witness.abort();
    });
}
