//! What the mirrors of one thread may hold of its memory: one that waits stops no other.

mod engine_support;

use std::time::Duration;

use engine_support::*;
use kagami_replicator::core::state::{NodeId, Replication, Solo};
use kagami_replicator::shell::buffers::Share;

const OTHER: u128 = 0x006f_7468_6572;
/// Bytes of a held write.
const HELD: usize = 256 << 10;

/// Adds a mirror without a peer, and makes it Primary.
async fn add_alone(node: &Node, name: &str, mirror: u128) {
    node.make_copy(name, mirror, true);
    let config = node.mirror(name, mirror, NodeId::NOBODY.0, Solo::Never);
    node.add(config).await.expect(name);
    node.promote_mirror(name).await;
}

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
        add_alone(&a, "other", OTHER).await;
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
        add_alone(&a, "other", OTHER).await;
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
            add_alone(&a, name, mirror).await;
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
