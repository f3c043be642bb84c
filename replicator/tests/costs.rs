//! What an operation costs, counted: allocations, datagrams, wake-ups, readings of the clock, metadata writes, copies of its
//! payload.
//!
//! None of this depends on how fast a machine is, so it is asserted where times are not. The bounds are what was
//! counted when they were set, and some room; whoever lowers a count lowers its bound, so that it stays low. The
//! system calls of whole daemons are counted by `kagami-bench costs`.

#![allow(unsafe_code)] // A global allocator that counts is an unsafe trait, and the C library's clock is replaced.

mod engine_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine_support::*;
use kagami_replicator::core::state::Solo;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED: AtomicU64 = AtomicU64::new(0);

fn count(bytes: usize) {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    ALLOCATED.fetch_add(bytes as u64, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

static READINGS: AtomicU64 = AtomicU64::new(0);

/// In the place of the C library's: the clock as the standard library reads it, and with it the runtime and the link. (The
/// engine's own stamps, one for each turn of its loop, go another way.)
///
/// # Safety
///
/// `to` is null or points to a `timespec`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    to: *mut libc::timespec,
) -> libc::c_int {
    READINGS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the caller's promise is passed on.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, to) as libc::c_int }
}

/// Operations of one kind.
#[derive(Clone, Copy, Debug)]
struct Work {
    name: &'static str,
    /// Bytes of each.
    len: usize,
    /// At a time.
    depth: u64,
    /// Of each at a time.
    count: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Write,
    WriteAndFlush,
    Read,
}

/// What both nodes together spent on each operation.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Of the heap; the futures with which this test waits are among them.
    allocations: f64,
    /// Bytes of it, for each byte of payload: one copy that is not in the pool adds 1. There is one, the datagrams that
    /// the link receives.
    allocated: f64,
    /// Sent by the Primary.
    sent: f64,
    /// Received by it.
    received: f64,
    /// Times that a thread slept and was woken.
    wakes: f64,
    /// Readings of the clock.
    readings: f64,
}

/// The most that each may be.
struct Bound {
    work: Work,
    most: Cost,
}

const fn work(name: &'static str, len: usize, depth: u64, count: u64, kind: Kind) -> Work {
    Work {
        name,
        len,
        depth,
        count,
        kind,
    }
}

const fn most(
    allocations: f64,
    allocated: f64,
    [sent, received]: [f64; 2],
    wakes: f64,
    readings: f64,
) -> Cost {
    Cost {
        allocations,
        allocated,
        sent,
        received,
        wakes,
        readings,
    }
}

/// An operation that takes so long waits for a processor: meanwhile the link's timers acknowledge and ask, which nobody
/// is to blame for. Half of what it costs counts then.
const STARVED: Duration = Duration::from_millis(10);
/// And whatever is over its bound is counted again, so often at most: the least of each cost counts, for a busy machine
/// adds wake-ups and makes batches smaller, and never the other way.
const TRIES: u32 = 20;

const BOUNDS: [Bound; 5] = [
    Bound {
        work: work("4 KiB write, depth 1", 4096, 1, 200, Kind::Write),
        most: most(11.0, 1.5, [1.3, 1.4], 5.5, 28.0),
    },
    Bound {
        work: work(
            "4 KiB write and flush, depth 1",
            4096,
            1,
            80,
            Kind::WriteAndFlush,
        ),
        most: most(23.5, 2.0, [2.6, 2.8], 14.0, 62.0),
    },
    Bound {
        work: work("4 KiB write, depth 32", 4096, 32, 15, Kind::Write),
        most: most(6.5, 1.5, [1.0, 0.6], 1.0, 6.0),
    },
    Bound {
        work: work("1 MiB write, depth 4", 1 << 20, 4, 10, Kind::Write),
        most: most(90.0, 1.2, [180.0, 12.0], 6.0, 65.0),
    },
    Bound {
        work: work("4 KiB read, depth 1", 4096, 1, 200, Kind::Read),
        most: most(3.4, 0.1, [0.3, 0.3], 2.0, 6.0),
    },
];

/// Alone in its file: other tests' allocations and sleeps would be counted, too.
#[test]
fn no_operation_costs_more_than_it_did() {
    run(async {
        let (mut a, mut b) = pair_that_looks(Solo::Never, Duration::ZERO).await;
        // Every block written once: all extents are hot, and nothing is a hole.
        let len = 1 << 20;
        perform(
            &a,
            work("all of it", len, 1, SIZE / len as u64, Kind::Write),
        )
        .await;
        let mut over = Vec::new();
        for bound in &BOUNDS {
            let mut least: Option<Cost> = None;
            for _ in 0..TRIES {
                let cost = spent(&a, &b, bound).await;
                let cost = least.map_or(cost, |least| least.least(cost));
                least = Some(cost);
                if cost.over(bound).is_empty() {
                    break;
                }
            }
            over.extend(least.expect("it was tried").over(bound));
        }
        // The disk gets every payload where it lies.
        for (name, node) in [("a", &a), ("b", &b)] {
            let disk = node.status().await.disk.expect("it has one");
            assert_eq!(
                (disk.copies, disk.copied_bytes),
                (0, 0),
                "copies on {name}'s way to its disk"
            );
        }
        a.stop().await;
        b.stop().await;
        assert!(over.is_empty(), "more than it was:\n{}", over.join("\n"));
    });
}

/// What the work costs, halved where it waited for a processor.
async fn spent(a: &Node, b: &Node, Bound { work, .. }: &Bound) -> Cost {
    // Found path, grown buffers.
    perform(a, Work { count: 10, ..*work }).await;
    let began = Instant::now();
    let cost = measure(a, b, *work).await;
    let each = began.elapsed() / (work.count as u32 * work.depth as u32);
    println!("{}: {cost:.2?}", work.name);
    if each > STARVED {
        cost.each(cost, |cost, _| cost / 2.0)
    } else {
        cost
    }
}

impl Cost {
    fn least(self, other: Self) -> Self {
        self.each(other, f64::min)
    }

    fn each(self, other: Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            allocations: of(self.allocations, other.allocations),
            allocated: of(self.allocated, other.allocated),
            sent: of(self.sent, other.sent),
            received: of(self.received, other.received),
            wakes: of(self.wakes, other.wakes),
            readings: of(self.readings, other.readings),
        }
    }

    /// What costs more than it did.
    fn over(self, Bound { work, most }: &Bound) -> Vec<String> {
        let costs = [
            ("allocations", self.allocations, most.allocations),
            (
                "bytes allocated for each byte",
                self.allocated,
                most.allocated,
            ),
            ("datagrams sent", self.sent, most.sent),
            ("datagrams received", self.received, most.received),
            ("wake-ups", self.wakes, most.wakes),
            ("readings of the clock", self.readings, most.readings),
        ];
        let over = costs.into_iter().filter(|(_, got, most)| got > most);
        over.map(|(what, got, most)| format!("{}: {got:.2} {what}, at most {most:.2}", work.name))
            .collect()
    }
}

async fn measure(a: &Node, b: &Node, work: Work) -> Cost {
    let before = (a.status().await, b.status().await);
    let counts = counted();
    perform(a, work).await;
    let now = counted();
    let [allocations, allocated, wakes, readings] =
        std::array::from_fn(|count| now[count] - counts[count]);
    let after = (a.status().await, b.status().await);
    for (before, after) in [(&before.0, &after.0), (&before.1, &after.1)] {
        let metadata = |status: &kagami_replicator::shell::engine::MirrorStatus| {
            let counters = status.core.counters;
            counters.log_records + counters.pages + counters.records
        };
        let written = metadata(after) - metadata(before);
        // A write within the hot set writes none; a session that ends for want of a processor does, a few times.
        assert!(
            written <= 4 + work.depth * work.count / 100,
            "{}: {written} metadata writes within the hot set",
            work.name
        );
    }
    let link = |status: &kagami_replicator::shell::engine::MirrorStatus| {
        status.link.as_ref().expect("connected").datagrams
    };
    let (sent, received) = link(&before.0);
    let (sent_after, received_after) = link(&after.0);
    let operations = (work.depth * work.count) as f64;
    let each = |count: u64| count as f64 / operations;
    Cost {
        allocations: each(allocations),
        allocated: each(allocated) / work.len as f64,
        sent: each(sent_after.saturating_sub(sent)),
        received: each(received_after.saturating_sub(received)),
        wakes: each(wakes),
        readings: each(readings),
    }
}

/// Allocations, their bytes, times that any thread of this process slept by its own will, and readings of the clock.
fn counted() -> [u64; 4] {
    let mut wakes = 0;
    for task in std::fs::read_dir("/proc/self/task")
        .expect("Linux has /proc")
        .flatten()
    {
        // A thread may end meanwhile.
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        wakes += line.map_or(0, |count| count.trim().parse::<u64>().expect("a number"));
    }
    [
        ALLOCATIONS.load(Ordering::Relaxed),
        ALLOCATED.load(Ordering::Relaxed),
        wakes,
        READINGS.load(Ordering::Relaxed),
    ]
}

/// Does the work on the node's own thread, each slot of the depth within a part of its own.
async fn perform(node: &Node, work: Work) {
    node.with_device_for(DEADLINE * 3, move |disk| async move {
        let slots: Vec<_> = (0..work.depth)
            .map(|slot| tokio::task::spawn_local(one_slot(disk.clone(), work, slot)))
            .collect();
        for slot in slots {
            slot.await.expect("no slot panics");
        }
    })
    .await;
}

async fn one_slot(disk: Disk, work: Work, slot: u64) {
    let part = SIZE / work.depth;
    let places = part / work.len as u64;
    for number in 0..work.count {
        // Some order that leaves no neighbours to be joined.
        let offset = slot * part + (number * 7919 % places) * work.len as u64;
        match work.kind {
            Kind::Read => {
                let data = disk.read(offset, work.len as u32).await.expect("read");
                assert_eq!(data.len(), work.len);
            }
            Kind::Write | Kind::WriteAndFlush => {
                disk.write(offset, number as u8, work.len)
                    .await
                    .expect("write");
                if work.kind == Kind::WriteAndFlush {
                    disk.flush().await.expect("flush");
                }
            }
        }
    }
}
