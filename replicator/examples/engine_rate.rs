//! What a pair of engines does in some seconds: writes with and without the peer, beside the disk alone.
//!
//! `cargo run --release --example engine_rate [SECONDS]`: two engines in this process on loopback, files
//! in the temporary folder (`TMPDIR`) as disks. The bare figures are the same operations on the same file
//! through this project's own ring, without an engine.

#[path = "../tests/engine_support/mod.rs"]
mod engine_support;

use std::rc::Rc;
use std::time::{Duration, Instant};

use engine_support::{Disk, Node, SIZE, pair};
use hdrhistogram::Histogram;
use kagami_replicator::core::disk::DiskOp;
use kagami_replicator::core::event::Request;
use kagami_replicator::core::state::{Connection, Solo};
use kagami_replicator::shell::buffers::{Pool, PoolConfig, Share};
use kagami_replicator::shell::fence::StoreFile;
use kagami_replicator::shell::storage::{Area, Storage, StorageCompletion};

/// Offsets that look random and are the same every time.
struct Offsets(u64);

impl Offsets {
    fn next(&mut self, len: usize) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % (SIZE / len as u64) * len as u64
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("fixed bounds")
}

struct Figures {
    operations: u64,
    seconds: f64,
    latency: Histogram<u64>,
}

impl Figures {
    fn print(&self, what: &str, len: usize) {
        println!(
            "{what:<34} {:>9.0} op/s {:>7.0} MB/s   p50 {:>7.1} us   p99 {:>8.1} us",
            self.operations as f64 / self.seconds,
            self.operations as f64 * len as f64 / self.seconds / 1e6,
            self.latency.value_at_quantile(0.5) as f64 / 1e3,
            self.latency.value_at_quantile(0.99) as f64 / 1e3,
        );
    }
}

async fn writes(disk: Disk, len: usize, depth: usize, time: Duration) -> Figures {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..depth)
        .map(|nth| {
            let disk = disk.clone();
            tokio::task::spawn_local(async move {
                let mut offsets = Offsets(nth as u64 + 1);
                let mut latency = histogram();
                while begun.elapsed() < time {
                    let mut buffer = disk.device.buffer(len).await;
                    buffer.fill(7);
                    let write = Request::Write {
                        offset: offsets.next(len),
                        data: buffer.freeze(),
                        fua: false,
                    };
                    let asked = Instant::now();
                    disk.ask(write).await.expect("written");
                    latency.saturating_record(asked.elapsed().as_nanos() as u64);
                }
                latency
            })
        })
        .collect();
    let mut latency = histogram();
    for task in tasks {
        latency.add(task.await.expect("task")).expect("add");
    }
    Figures {
        operations: latency.len(),
        seconds: begun.elapsed().as_secs_f64(),
        latency,
    }
}

/// The same on the file alone.
async fn bare(path: &std::path::Path, len: usize, depth: usize, time: Duration) -> Figures {
    let pool = Pool::new(&PoolConfig::with_bytes(64 << 20)).expect("pool");
    let mut storage = Storage::new(pool.clone()).expect("storage");
    let file = StoreFile::open(path, Duration::from_secs(5)).expect("store");
    let store = storage.add_store(file);
    let disk = storage.add_disk(
        store,
        Area {
            start: 0,
            len: SIZE,
        },
    );
    let mut offsets = Offsets(1);
    let mut begun_at = vec![Instant::now(); depth];
    let mut latency = histogram();
    let mut done = Vec::new();
    let mut idle: Vec<usize> = (0..depth).collect();
    let begun = Instant::now();
    while begun.elapsed() < time || idle.len() < depth {
        while begun.elapsed() < time
            && let Some(nth) = idle.pop()
        {
            let mut buffer = pool.alloc(len, Share::FrontEnd).expect("memory");
            buffer.fill(7);
            begun_at[nth] = Instant::now();
            let write = DiskOp::Write {
                offset: offsets.next(len),
                data: buffer.freeze(),
                fua: false,
            };
            storage.submit(disk, nth as u64, write);
        }
        storage.ready().await.expect("ring");
        storage.drain(&mut done).expect("ring");
        for completion in done.drain(..) {
            let StorageCompletion::Disk(write) = completion else {
                continue;
            };
            write.result.expect("written");
            latency.saturating_record(begun_at[write.id as usize].elapsed().as_nanos() as u64);
            idle.push(write.id as usize);
        }
    }
    Figures {
        operations: latency.len(),
        seconds: begun.elapsed().as_secs_f64(),
        latency,
    }
}

const LOADS: [(&str, usize, usize); 4] = [
    ("4 KiB, depth 1", 4096, 1),
    ("4 KiB, depth 32", 4096, 32),
    ("64 KiB, depth 8", 64 << 10, 8),
    ("1 MiB, depth 4", 1 << 20, 4),
];

async fn all(node: &Node, who: &str, time: Duration) {
    for (what, len, depth) in LOADS {
        let figures = node
            .with_device_for(time * 4, move |disk| async move {
                // Once over, so that extents are hot and blocks allocated.
                writes(disk.clone(), len, depth, time / 4).await;
                writes(disk, len, depth, time).await
            })
            .await;
        figures.print(&format!("{who}: {what}"), len);
    }
}

fn main() {
    let seconds = std::env::args()
        .nth(1)
        .map_or(2.0, |text| text.parse().expect("seconds"));
    let time = Duration::from_secs_f64(seconds);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        let (mut a, mut b) = pair(Solo::Always).await;
        // Allocated blocks, not holes, as in a mirror of some age.
        a.with_device_for(Duration::from_secs(60), |disk| async move {
            let disk = Rc::new(disk);
            for mib in 0..SIZE >> 20 {
                disk.write(mib << 20, 1, 1 << 20).await.expect("written");
            }
            disk.flush().await.expect("flushed");
        })
        .await;
        all(&a, "both copies", time).await;
        b.crash().await;
        a.until("alone", |status| {
            status.core.connection != Connection::Connected
        })
        .await;
        a.with_device(|disk| async move { disk.write(0, 1, 4096).await.expect("alone") })
            .await;
        all(&a, "one copy", time).await;
        a.crash().await;
        for (what, len, depth) in LOADS {
            let path = a.path("pg.img");
            bare(&path, len, depth, time)
                .await
                .print(&format!("the file alone: {what}"), len);
        }
    });
}
