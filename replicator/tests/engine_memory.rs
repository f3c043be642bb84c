//! What the mirrors of one thread may hold of its memory: one that waits stops no other.

mod engine_support;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use engine_support::*;
use kagami_replicator::core::state::{Replication, Solo};
use kagami_replicator::core::{Command, Reply};
use kagami_replicator::shell::buffers::Share;

const OTHER: u128 = 0x006f_7468_6572;
/// Bytes of a held write.
const HELD: usize = 256 << 10;

/// A node whose mirror pg is Primary and holds its I/O: its peer has died, and it may not go on alone.
async fn holding() -> Node {
    let (a, mut b) = pair(Solo::Never).await;
    b.crash().await;
    a.until("without its peer", |status| {
        status.core.replication == Replication::Off
    })
    .await;
    a
}

/// Clients of pg write more than the thread's memory for front ends holds, until one waits for some.
/// How much they hold then.
async fn fill(node: &Node) -> usize {
    node.on_plane(DEADLINE, |plane| async move {
        let disk = Disk::of(&plane, "pg");
        let count = plane.pool().limit(Share::FrontEnd) / HELD + 1;
        for index in 0..count {
            let disk = disk.clone();
            tokio::task::spawn_local(async move {
                let _ = disk.write((index * HELD) as u64, 1, HELD).await;
            });
        }
        while plane.pool().stats().waiting == 0 {
            tokio::task::yield_now().await;
        }
        plane.pool().stats().in_use
    })
    .await
}

async fn write_to(node: &Node, name: &'static str, len: usize) {
    node.on_plane(DEADLINE, move |plane| async move {
        let disk = Disk::of(&plane, name);
        disk.write(0, 7, len).await.expect("a good disk");
        disk.flush().await.expect("a good disk");
        let data = disk.read(0, 4096).await.expect("a good disk");
        assert!(data.iter().all(|&byte| byte == 7));
    })
    .await;
}

#[test]
fn a_mirror_that_holds_its_writes_stops_no_other() {
    run(async {
        let mut a = holding().await;
        a.add_alone("other", OTHER).await;
        fill(&a).await;
        for len in [4096, HELD, 1 << 20, 2 << 20] {
            write_to(&a, "other", len).await;
        }
        a.crash().await;
    });
}

/// Alone on its thread, it may have taken all that there is.
#[test]
fn a_mirror_that_held_its_writes_before_stops_no_new_one() {
    run(async {
        let mut a = holding().await;
        let held = fill(&a).await;
        let limit = a
            .on_plane(DEADLINE, |plane| async move {
                plane.pool().limit(Share::FrontEnd)
            })
            .await;
        assert!(held + HELD > limit, "one mirror alone has all of it");
        a.add_alone("other", OTHER).await;
        for len in [4096, HELD] {
            write_to(&a, "other", len).await;
        }
        a.crash().await;
    });
}

#[test]
fn the_longest_write_goes_through_beside_other_mirrors() {
    run(async {
        let mut a = Node::new(1);
        a.start();
        for (name, mirror) in [("pg", PG), ("other", OTHER)] {
            a.add_alone(name, mirror).await;
        }
        a.on_plane(Duration::from_secs(60), |plane| async move {
            let long = Disk::of(&plane, "pg");
            let len = long.device.facts().max_payload;
            assert_eq!(plane.pool().stats().in_use, 0, "an idle pool is empty");
            long.write(0, 3, len).await.expect("a good disk");
            // And while others write.
            let other = Disk::of(&plane, "other");
            let mut writers = Vec::new();
            for index in 0..8u64 {
                let other = other.clone();
                writers.push(tokio::task::spawn_local(async move {
                    for round in 0..20 {
                        let at = (index * 20 + round) * HELD as u64;
                        other.write(at, 1, HELD).await.expect("a good disk");
                    }
                }));
            }
            long.write(0, 4, len).await.expect("a good disk");
            for writer in writers {
                writer.await.expect("no panic");
            }
            let data = long
                .read(len as u64 - 4096, 4096)
                .await
                .expect("a good disk");
            assert!(data.iter().all(|&byte| byte == 4));
        })
        .await;
        a.stop().await;
    });
}

/// A client that takes its answers late holds memory of the pool, whoever's disk they were read from.
#[test]
fn what_the_peer_reads_is_the_pools_until_the_client_has_taken_it() {
    run(async {
        // b lacks nearly everything, is brought up to date without haste, and is Primary meanwhile.
        let (mut a, mut b) = pair(Solo::Always).await;
        b.stop().await;
        a.with_device(|disk| async move {
            for index in 0..4 {
                disk.write(index << 20, 6, 1 << 20).await.expect("write");
            }
        })
        .await;
        let config = |node: &Node, peer| {
            let mut config = node.mirror("pg", PG, peer, Solo::Always);
            config.settings.resync_max_rate = Some(4096);
            config
        };
        let slow = Command::Set(config(&a, 2).settings);
        let reply = a.engine().command("pg", slow).await;
        assert_eq!(reply, Ok(Reply::Done));
        a.demote().await;
        b.start();
        introduce(&a, &b);
        b.add(config(&b, 1)).await.expect("b");
        b.until("a target", |status| {
            status.core.replication == Replication::SyncTarget
        })
        .await;
        let promote = Command::Promote {
            force: false,
            while_resyncing: true,
        };
        let reply = b.engine().command("pg", promote).await;
        assert_eq!(reply, Ok(Reply::Done));
        b.on_plane(DEADLINE, |plane| async move {
            let disk = Disk::of(&plane, "pg");
            let count = plane.pool().limit(Share::Answer) / HELD + 4;
            let answers = Rc::new(RefCell::new(Vec::new()));
            let answered = |answers: &Rc<RefCell<Vec<bytes::Bytes>>>| answers.borrow().len();
            for index in 0..count {
                let (disk, answers) = (disk.clone(), Rc::clone(&answers));
                tokio::task::spawn_local(async move {
                    let at = (index % 16 * HELD) as u64;
                    let data = disk.read(at, HELD as u32).await.expect("the peer's");
                    answers.borrow_mut().push(data);
                });
            }
            // As many as fit come; the others wait for memory, and the link does not.
            let fit = plane.pool().limit(Share::Answer) / HELD;
            while plane.pool().stats().waiting == 0 || answered(&answers) < fit {
                tokio::task::yield_now().await;
            }
            let held = answered(&answers) * HELD;
            assert!(plane.pool().stats().in_use >= held, "{held} bytes are held");
            let mut taken = 0;
            while taken < count {
                for data in answers.borrow_mut().drain(..) {
                    assert!(data.iter().all(|&byte| byte == 6));
                    taken += 1;
                }
                tokio::task::yield_now().await;
            }
            // (The resynchronisation takes some for a moment.)
            while plane.pool().stats().in_use > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        b.crash().await;
        a.crash().await;
    });
}
