//! Two engines on loopback with files as disks: the main job, with real I/O.

mod engine_support;

use std::time::Duration;

use engine_support::*;
use kagami_replicator::core::state::{Role, Solo};
use kagami_replicator::core::{Command, IoError, Reply};
use tokio::sync::oneshot;

#[test]
fn what_is_written_is_on_both_copies() {
    run(async {
        let (mut a, mut b) = pair(Solo::Never).await;
        a.with_device(|disk| async move {
            disk.write(0, 1, 4096).await.expect("write");
            disk.write(SIZE - 512, 2, 512)
                .await
                .expect("an edge of 512 bytes");
            disk.write(3 << 20, 3, 2 << 20)
                .await
                .expect("a write longer than a frame");
            assert!(
                disk.read(0, 4096)
                    .await
                    .expect("read")
                    .iter()
                    .all(|byte| *byte == 1)
            );
            assert!(
                disk.read(3 << 20, 2 << 20)
                    .await
                    .expect("read")
                    .iter()
                    .all(|byte| *byte == 3)
            );
            disk.flush().await.expect("flush");
        })
        .await;
        let status = a.status().await;
        assert_eq!(
            (status.core.role, status.core.peer_role),
            (Role::Primary, Some(Role::Secondary))
        );
        assert_eq!(status.writes.count, 3);
        a.stop().await;
        b.stop().await;
        let bytes = a.bytes();
        assert!(bytes == b.bytes(), "both copies are the same");
        assert_eq!(
            (
                bytes[0],
                bytes[4096],
                bytes[3 << 20],
                bytes[SIZE as usize - 1]
            ),
            (1, 0, 3, 2)
        );
    });
}

async fn write_durably(node: &Node, offset: u64, byte: u8, len: usize) {
    node.with_device(move |disk| async move {
        disk.write(offset, byte, len).await.expect("write");
        disk.flush().await.expect("flush");
    })
    .await;
}

/// Starts `node` again, whose peer runs.
async fn come_back(peer: &Node, node: &mut Node) {
    node.start();
    introduce(peer, node);
    let mirror = node.mirror("pg", PG, 1, Solo::Always);
    node.add(mirror).await.expect("its mirror again");
}

#[test]
fn a_peer_that_died_is_resynchronised_from_the_marks() {
    run(async {
        let (mut a, mut b) = pair(Solo::Always).await;
        write_durably(&a, 0, 1, 1 << 20).await;
        b.crash().await;
        a.with_device(|disk| async move {
            for block in 0..32 {
                disk.write(block * 2 * 4096, 7, 4096).await.expect("alone");
            }
            disk.flush().await.expect("flush");
        })
        .await;
        let status = a
            .until("alone", |status| status.core.alone_since.is_some())
            .await;
        assert!(status.core.marked_blocks >= 32, "{status:#?}");
        come_back(&a, &mut b).await;
        let status = a.in_sync().await;
        b.in_sync().await;
        let sent = status.core.counters.resync_bytes;
        // b died as a crashed Secondary: its hot extents are none, so what a marked is what is sent.
        assert!((32 * 4096..=4 << 20).contains(&sent), "{sent} bytes sent");
        a.stop().await;
        b.stop().await;
        assert!(a.bytes() == b.bytes(), "both copies are the same");
        assert_eq!((a.bytes()[0], a.bytes()[4096], a.bytes()[8192]), (7, 1, 7));
    });
}

/// The other node's file is gone, and another one, empty, has its name: its metadata are the old ones.
#[test]
fn a_new_file_under_the_old_name_is_copied_whole() {
    run(async {
        for missing_first in [false, true] {
            let (mut a, mut b) = pair(Solo::Always).await;
            write_durably(&a, 0, 1, 1 << 20).await;
            b.stop().await;
            write_durably(&a, 2 << 20, 7, 4096).await;
            std::fs::remove_file(b.path("pg.img")).expect("remove");
            if missing_first {
                come_back(&a, &mut b).await;
                b.stop().await;
            }
            let file = std::fs::File::create(b.path("pg.img")).expect("create");
            file.set_len(SIZE).expect("a sparse file");
            come_back(&a, &mut b).await;
            a.in_sync().await;
            b.in_sync().await;
            a.stop().await;
            b.stop().await;
            assert!(a.bytes() == b.bytes(), "missing first: {missing_first}");
            assert_eq!((b.bytes()[0], b.bytes()[2 << 20]), (1, 7));
        }
    });
}

/// It was not there when the daemon began, and then it was: it is known by its name, and the marks do.
#[test]
fn the_same_file_that_comes_back_is_not_copied_whole() {
    run(async {
        let (mut a, mut b) = pair(Solo::Always).await;
        write_durably(&a, 0, 1, 1 << 20).await;
        b.stop().await;
        std::fs::rename(b.path("pg.img"), b.path("elsewhere")).expect("rename");
        b.start();
        let mirror = b.mirror("pg", PG, 1, Solo::Always);
        b.add(mirror).await.expect("b without its disk");
        b.stop().await;
        std::fs::rename(b.path("elsewhere"), b.path("pg.img")).expect("rename");
        write_durably(&a, 2 << 20, 7, 4096).await;
        come_back(&a, &mut b).await;
        let status = a.in_sync().await;
        b.in_sync().await;
        let sent = status.core.counters.resync_bytes;
        assert!((4096..1 << 20).contains(&sent), "{sent} bytes sent");
        a.stop().await;
        b.stop().await;
        assert!(a.bytes() == b.bytes(), "both copies are the same");
    });
}

async fn hand_over(from: &Node, to: &Node) {
    from.demote().await;
    to.until("the other Secondary", |status| {
        status.core.peer_role == Some(Role::Secondary)
    })
    .await;
    to.promote().await;
}

/// A front end that asked nothing while the other node was Primary is not served over what that one wrote.
#[test]
fn who_was_served_before_a_hand_over_there_and_back_is_not_served_after_it() {
    run(async {
        let (mut a, mut b) = pair(Solo::Never).await;
        let (tell, told) = oneshot::channel();
        let (come_back, back) = oneshot::channel();
        let client = a.with_device(|disk| async move {
            disk.write(0, 1, 4096).await.expect("write");
            let _ = tell.send(());
            back.await.expect("handed over");
            let read = disk.read(0, 4096).await.map(drop);
            (read, disk.write(0, 3, 4096).await)
        });
        let there_and_back = async {
            told.await.expect("written");
            hand_over(&a, &b).await;
            b.with_device(|disk| async move { disk.write(0, 2, 4096).await.expect("write") })
                .await;
            hand_over(&b, &a).await;
            let _ = come_back.send(());
        };
        let (answers, ()) = tokio::join!(client, there_and_back);
        let refused = Err(IoError::NotPrimary);
        assert_eq!(answers, (refused, refused));
        // Who begins now is served.
        let read = a.with_device(|disk| async move { disk.read(0, 4096).await });
        assert_eq!(read.await.expect("read"), vec![2; 4096]);
        a.stop().await;
        b.stop().await;
    });
}

#[test]
fn holes_are_told_only_where_reads_are_answered() {
    run(async {
        let (mut a, mut b) = pair(Solo::Never).await;
        let (tell, told) = (a.with_device(holes).await, b.with_device(holes).await);
        assert!(tell, "most of it was never written");
        assert!(!told, "the Primary may have written it since");
        let demoted = a.engine().command("pg", Command::Demote { force: false });
        assert_eq!(demoted.await, Ok(Reply::Done));
        assert!(!a.with_device(holes).await, "a client that stayed");
        a.stop().await;
        b.stop().await;
    });
}

async fn holes(disk: Disk) -> bool {
    disk.has_holes().await
}

/// The daemon's sign of life: it is the loops that turn, not the process that is there.
#[test]
fn a_thread_that_is_stuck_does_not_beat_and_one_that_waits_for_its_peer_does() {
    run(async {
        let (a, mut b) = pair(Solo::Never).await;
        assert!(a.engine().beat(0).await);
        assert!(!a.engine().beat(1).await, "there is one thread");
        // Its writes wait for a peer that is gone: nothing is stuck.
        b.crash().await;
        let (began, begun) = oneshot::channel();
        a.with_device(|disk| async move {
            tokio::task::spawn_local(async move {
                let _ = began.send(());
                disk.write(0, 9, 4096).await
            });
        })
        .await;
        begun.await.expect("begun");
        a.until("held", |status| status.core.held.is_some()).await;
        assert!(a.engine().beat(0).await);

        let (release, held) = std::sync::mpsc::channel::<()>();
        let (tell, stuck) = oneshot::channel();
        assert!(a.engine().spawn_on(0, move |_| {
            let _ = tell.send(());
            // As a call that does not return.
            let _ = held.recv();
            async {}
        }));
        stuck.await.expect("it runs");
        let engine = a.engine().clone();
        let mut beat = std::pin::pin!(engine.beat(0));
        let soon = Duration::from_millis(300);
        assert!(
            tokio::time::timeout(soon, &mut beat).await.is_err(),
            "a stuck thread beats"
        );
        drop(release);
        assert!(beat.await, "it turns again");
    });
}
