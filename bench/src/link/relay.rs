//! A link between two interfaces: each packet takes its time, and some are lost.
//!
//! One thread for each direction. A packet waits for those before it (the rate), is dropped when too much waits
//! (the queue of a router), or by chance (the loss), and arrives half a round trip later. It sees packets and not
//! streams, so TCP's are lost as QUIC's are.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The longest packet.
const LONGEST: usize = 65_536;
/// Packets taken at once, before those that are due are given.
const BATCH: usize = 64;
/// It looks at least so often whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// The queue before a slow link holds at least this.
const LEAST_QUEUE: u64 = 512 << 10;

/// What the link is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// Both ways together.
    pub round_trip: Duration,
    /// Of 1,000,000 packets so many are lost.
    pub lost: u32,
    /// Bytes a second each way; 0 for as fast as it goes.
    pub rate: u64,
}

/// Nothing is slow, and nothing lost.
pub const PERFECT: Conditions = Conditions {
    round_trip: Duration::ZERO,
    lost: 0,
    rate: 0,
};

/// A link that is up; it goes down with this.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    one_way_ns: AtomicU64,
    lost: AtomicU64,
    rate: AtomicU64,
    stop: AtomicBool,
    carried: AtomicU64,
    dropped: AtomicU64,
}

impl Relay {
    /// Carries packets between two interfaces.
    ///
    /// # Errors
    /// A file can't be had twice.
    pub fn start(one: &File, other: &File) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for (from, to, seed) in [(one, other, 1), (other, one, 2)] {
            let direction = Direction {
                from: from.try_clone()?,
                to: to.try_clone()?,
                shared: Arc::clone(&shared),
                waiting: VecDeque::new(),
                free_at: Instant::now(),
                dice: 0x9e37_79b9_7f4a_7c15 ^ seed,
            };
            threads.push(std::thread::spawn(move || direction.run()));
        }
        Ok(Self { shared, threads })
    }

    /// Changes what the link is like, for packets that come from now on.
    pub fn set(&self, conditions: &Conditions) {
        let one_way = conditions.round_trip.as_nanos() as u64 / 2;
        self.shared.one_way_ns.store(one_way, Ordering::Relaxed);
        self.shared
            .lost
            .store(u64::from(conditions.lost), Ordering::Relaxed);
        self.shared.rate.store(conditions.rate, Ordering::Relaxed);
    }

    /// Packets carried, and packets dropped.
    pub fn counts(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.shared.carried), count(&self.shared.dropped))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has told so already.
            let _ = thread.join();
        }
    }
}

/// A link does not wait for the processors of the machines at its ends: where it may, this thread runs before
/// everything else whenever it has something to do. The round trip that is found tells how well that went.
fn go_first() {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let _ = Command::new("chrt")
        .args(["--fifo", "--pid", "10", &thread])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

struct Direction {
    from: File,
    to: File,
    shared: Arc<Shared>,
    waiting: VecDeque<(Instant, Vec<u8>)>,
    /// When the link has sent everything that it was given.
    free_at: Instant,
    dice: u64,
}

impl Direction {
    fn run(mut self) {
        go_first();
        let mut buffer = vec![0; LONGEST];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let wait = self.waiting.front().map_or(LOOK, |(due, _)| {
                due.saturating_duration_since(Instant::now()).min(LOOK)
            });
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: wait.as_nanos() as _,
            };
            let mut files = [PollFd::new(&self.from, PollFlags::IN)];
            // Interrupted or timed out: what is due is given all the same.
            let _ = poll(&mut files, Some(&timeout));
            for _ in 0..BATCH {
                match self.from.read(&mut buffer) {
                    Ok(len) => self.take(&buffer[..len]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // Nothing there, or the interface is going.
                    Err(_) => break,
                }
            }
            self.give();
        }
    }

    fn take(&mut self, packet: &[u8]) {
        let now = Instant::now();
        let relaxed = Ordering::Relaxed;
        let rate = self.shared.rate.load(relaxed);
        let one_way = Duration::from_nanos(self.shared.one_way_ns.load(relaxed));
        let mut leaves = now;
        if rate > 0 {
            let begins = self.free_at.max(now);
            let queued = (begins - now).as_secs_f64() * rate as f64;
            let product = 2.0 * one_way.as_secs_f64() * rate as f64;
            if queued > product.max(LEAST_QUEUE as f64) {
                self.shared.dropped.fetch_add(1, relaxed);
                return;
            }
            leaves = begins + Duration::from_secs_f64(packet.len() as f64 / rate as f64);
            self.free_at = leaves;
        }
        if self.draw() % 1_000_000 < self.shared.lost.load(relaxed) {
            self.shared.dropped.fetch_add(1, relaxed);
            return;
        }
        self.waiting.push_back((leaves + one_way, packet.to_vec()));
    }

    fn give(&mut self) {
        let now = Instant::now();
        while self.waiting.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, packet)) = self.waiting.pop_front() else {
                break;
            };
            // The other side's queue is full, or it is gone: packets get lost, as they do.
            let counter = match self.to.write(&packet) {
                Ok(_) => &self.shared.carried,
                Err(_) => &self.shared.dropped,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// xorshift64
    fn draw(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }
}
