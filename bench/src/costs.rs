//! `kagami-bench costs`: the system calls that an operation costs each daemon, and their bounds.
//!
//! Counts don't depend on how fast a machine is, so these are asserted where times never are; `./do test` runs it.
//! `strace -c` counts a daemon from its start to its end: once with few operations, once with many, and the
//! difference is theirs. What happens by itself as time goes by (signs of life, the flush of what nobody flushed) is
//! in it, too, and is little beside a thousand operations. Allocations, datagrams and copies are counted within the
//! engine, in `replicator/tests/costs.rs`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::candidate::Room;
use crate::error::BenchError;
use crate::job::{Job, READ, SEQUENTIAL, SMALL, SMALL_DEEP, SMALL_FLUSHED};
use crate::load::{self, Until};
use crate::mirror::{End, Mirror, Peer};
use crate::process;

/// Operations of the shorter run.
const FEW: u64 = 100;
/// Of every job; it fits its disk many times.
const REGION: u64 = 64 << 20;

/// What is counted, and the most that it may come to.
struct Bound {
    job: Job,
    peer: Peer,
    /// Operations of the longer run.
    many: u64,
    /// System calls for each operation of the Primary, and of the Secondary.
    most: [f64; 2],
    /// Each of [`STEADY`] for each operation; None where one serves many.
    steady: Option<f64>,
}

/// What the link's timers have no part in, so that a busy machine does not make more of it.
const STEADY: [&str; 3] = ["io_uring_enter", "recvfrom", "writev"];

/// So often a job is counted that costs more than it may: a machine that has no processor for a daemon at once
/// adds calls (timers fire that are never due otherwise), and never takes any away.
const ATTEMPTS: usize = 4;

/// About one call above what a quiet machine counts. Writes with a peer have half of what they cost before the link's timers
/// and sockets were tamed (8.0 and 15.2 for a write, 16.9 and 31.3 with its flush, on the Primary): a slow machine has
/// made 6.6 of 5.3, and 13.3 of 9.7, four times in a row.
const BOUNDS: [Bound; 8] = [
    bound(SMALL, Peer::There, 1600, [11.5, 8.0], Some(1.3)),
    bound(SMALL_FLUSHED, Peer::There, 900, [24.0, 16.5], Some(2.5)),
    bound(SMALL_DEEP, Peer::There, 6500, [1.5, 1.5], None),
    bound(SEQUENTIAL, Peer::There, 400, [42.0, 40.0], None),
    bound(READ, Peer::There, 1600, [5.9, 0.7], Some(1.3)),
    bound(READ, Peer::None, 1600, [5.9, 0.0], Some(1.3)),
    bound(SMALL, Peer::Away, 1600, [5.9, 0.7], Some(1.3)),
    bound(SMALL, Peer::None, 1600, [5.9, 0.0], Some(1.3)),
];

const fn bound(job: Job, peer: Peer, many: u64, most: [f64; 2], steady: Option<f64>) -> Bound {
    Bound {
        job,
        peer,
        many,
        most,
        steady,
    }
}

/// Writes within the hot set write no metadata. A session that ends, on a machine where a daemon waits seconds for a
/// processor, does, a few times in a run.
const METADATA: f64 = 0.01;

/// What takes the peer no part in may cost so many times what it does without one: the same counts are wanted, and they
/// vary with what else the machine does.
const SAME: f64 = 1.2;

/// What is compared with the same job without a peer.
const COMPARED: [(Job, Peer); 2] = [(SMALL, Peer::Away), (READ, Peer::There)];

/// System calls of one daemon, for each operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// The job's name.
    pub job: String,
    /// `with a peer`, `peer away`, `no peer`
    pub peer: String,
    /// Which daemon.
    pub daemon: String,
    /// By system call.
    pub calls: BTreeMap<String, f64>,
    /// All of them.
    pub together: f64,
    /// The most that it may be.
    pub most: f64,
    /// The most that each of the calls may be that a busy machine makes no more of.
    #[serde(default)]
    pub steady: Option<f64>,
    /// Metadata writes for each operation, of a Primary.
    pub metadata: f64,
}

/// Counts everything. The table is printed whether or not a bound is exceeded.
///
/// # Errors
/// There is no strace, a mirror fails, or something costs more than it may.
pub fn measure(room: &Room) -> Result<Vec<Cost>, BenchError> {
    process::program("strace")?;
    room.check(1)?;
    let mut counted = Vec::new();
    for (number, bound) in BOUNDS.iter().enumerate() {
        eprintln!(
            "[{}/{}] {}, {}",
            number + 1,
            BOUNDS.len(),
            bound.job.name(),
            words(bound.peer)
        );
        let mut kept = Counted::count(room, &format!("costs-{number}"), bound)?;
        for attempt in 1..ATTEMPTS {
            if over(&kept.costs(bound)).is_empty() {
                break;
            }
            eprintln!("      more than it may be: counted again");
            kept.again(room, &format!("costs-{number}-{attempt}"), bound)?;
        }
        counted.push(kept);
    }
    let costs = |counted: &[Counted]| -> Vec<Cost> {
        let all = BOUNDS.iter().zip(counted);
        all.flat_map(|(bound, kept)| kept.costs(bound)).collect()
    };
    // Each is within its bound, and two of them not within what they may differ by.
    for attempt in 0..ATTEMPTS {
        if over(&costs(&counted)).is_empty() {
            break;
        }
        eprintln!("what is compared with a mirror without a peer: counted again");
        for (number, (bound, kept)) in BOUNDS.iter().zip(&mut counted).enumerate() {
            if bound.is_compared() {
                kept.again(room, &format!("costs-{number}-compared-{attempt}"), bound)?;
            }
        }
    }
    Ok(costs(&counted))
}

impl Bound {
    /// Held against the same without a peer, or what others are held against.
    fn is_compared(&self) -> bool {
        let job = self.job.name();
        let held = |(with, peer): &(Job, Peer)| {
            job == with.name() && (self.peer == *peer || self.peer == Peer::None)
        };
        COMPARED.iter().any(held)
    }
}

/// System calls by name.
type Calls = BTreeMap<String, u64>;

/// What was counted of a job: of either daemon the life with the fewest calls, with few operations and with many. What
/// a busy machine adds to the shorter life would make the difference too small.
struct Counted {
    few: [Calls; 2],
    many: [Calls; 2],
    /// Metadata writes for each operation.
    metadata: f64,
}

impl Counted {
    fn count(room: &Room, name: &str, bound: &Bound) -> Result<Self, BenchError> {
        let (few, _) = counted(room, &format!("{name}-few"), bound, FEW)?;
        let (many, metadata) = counted(room, &format!("{name}-many"), bound, bound.many)?;
        Ok(Self {
            few,
            many,
            metadata,
        })
    }

    fn again(&mut self, room: &Room, name: &str, bound: &Bound) -> Result<(), BenchError> {
        let again = Self::count(room, name, bound)?;
        let fewest = |kept: &mut [Calls; 2], again: [Calls; 2]| {
            for (kept, again) in kept.iter_mut().zip(again) {
                if again.values().sum::<u64>() < kept.values().sum() {
                    *kept = again;
                }
            }
        };
        fewest(&mut self.few, again.few);
        fewest(&mut self.many, again.many);
        self.metadata = self.metadata.min(again.metadata);
        Ok(())
    }

    /// Of the Primary, and of the Secondary where there is one.
    fn costs(&self, bound: &Bound) -> Vec<Cost> {
        let each = (bound.many - FEW) as f64;
        let mut all = Vec::new();
        for (daemon, few, many, most) in [
            ("primary", &self.few[0], &self.many[0], bound.most[0]),
            ("secondary", &self.few[1], &self.many[1], bound.most[1]),
        ] {
            let calls: BTreeMap<String, f64> = many
                .iter()
                .map(|(call, count)| {
                    let before = few.get(call).copied().unwrap_or(0);
                    (call.clone(), (*count as f64 - before as f64) / each)
                })
                .filter(|(_, count)| count.abs() >= 0.005)
                .collect();
            if many.is_empty() {
                continue;
            }
            all.push(Cost {
                job: bound.job.name(),
                peer: words(bound.peer).to_owned(),
                daemon: daemon.to_owned(),
                together: calls.values().sum(),
                calls,
                most,
                steady: bound.steady,
                metadata: if daemon == "primary" {
                    self.metadata
                } else {
                    0.0
                },
            });
        }
        all
    }
}

fn words(peer: Peer) -> &'static str {
    match peer {
        Peer::There => "with a peer",
        Peer::Away => "peer away",
        Peer::None => "no peer",
    }
}

/// The calls of both daemons over a life with so many operations, and the metadata writes of each operation.
fn counted(
    room: &Room,
    name: &str,
    bound: &Bound,
    operations: u64,
) -> Result<([Calls; 2], f64), BenchError> {
    let logs = ["primary", "secondary"].map(|role| room.dir.join(format!("{name}-{role}.strace")));
    let ends = logs.clone().map(|log| End {
        daemon: strace(&log),
        // The calls of a thread that looks before it sleeps depend on how long it looks.
        settings: "busy-poll-us = 0\n".to_owned(),
        ..End::default()
    });
    let mirror = Mirror::start_at(room, name, REGION >> 20, bound.peer, &ends)?;
    let mut client = mirror.client()?;
    // Every block is there, and every extent hot.
    load::fill(&mut client, REGION)?;
    let before = mirror.state()?.counters.metadata();
    load::run(
        &mut client,
        &bound.job,
        REGION,
        Until::Operations(operations),
        9,
    )?;
    let metadata = mirror.state()?.counters.metadata() - before;
    drop((client, mirror));
    let read = |log: &PathBuf| {
        // A mirror of one node has one daemon.
        let there = bound.peer != Peer::None || log == &logs[0];
        if there {
            summary(log)
        } else {
            Ok(BTreeMap::new())
        }
    };
    let calls = [read(&logs[0])?, read(&logs[1])?];
    Ok((calls, metadata as f64 / operations as f64))
}

/// strace as a grandchild: the daemon keeps its process id, and gets the signals meant for it.
fn strace(log: &Path) -> Vec<String> {
    let mut words: Vec<String> = [
        "strace",
        "--daemonize",
        "-f",
        "-qq",
        "-c",
        "-U",
        "calls,name",
        "-o",
    ]
    .map(str::to_owned)
    .to_vec();
    words.push(log.display().to_string());
    words
}

/// Reads strace's table, which it writes when the daemon has ended: waits for its last line.
fn summary(log: &Path) -> Result<BTreeMap<String, u64>, BenchError> {
    let deadline = std::time::Instant::now() + crate::candidate::START;
    loop {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        if let Some(calls) = parse(&text) {
            return Ok(calls);
        }
        if std::time::Instant::now() > deadline {
            return Err(BenchError::TimedOut {
                what: format!("strace's counts in {}", log.display()),
                seconds: crate::candidate::START.as_secs(),
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Lines of a count and a name; the last is the total.
fn parse(text: &str) -> Option<BTreeMap<String, u64>> {
    let mut calls = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(count), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(count) = count.parse() else { continue };
        if name == "total" {
            return Some(calls);
        }
        calls.insert(name.to_owned(), count);
    }
    None
}

/// The table, in Markdown.
pub fn table(all: &[Cost]) -> String {
    let mut text = String::from(
        "\n| job | | daemon | system calls for each | at most | which |\n|---|---|---|---:|---:|---|\n",
    );
    for cost in all {
        let mut calls: Vec<(&String, &f64)> =
            cost.calls.iter().filter(|(_, n)| **n >= 0.05).collect();
        calls.sort_by(|a, b| b.1.total_cmp(a.1));
        let calls: Vec<String> = calls
            .iter()
            .map(|(name, n)| format!("{name} {n:.2}"))
            .collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.2} | {:.1} | {} |",
            cost.job,
            cost.peer,
            cost.daemon,
            cost.together,
            cost.most,
            calls.join(", ")
        );
    }
    text
}

/// What is over its bound, in words; empty when all is well.
pub fn over(all: &[Cost]) -> Vec<String> {
    let mut over = Vec::new();
    for cost in all {
        let what = format!("{}, {}, {}", cost.job, cost.peer, cost.daemon);
        if cost.together > cost.most {
            over.push(format!(
                "{what}: {:.2} system calls for each operation, at most {:.1}",
                cost.together, cost.most
            ));
        }
        for call in STEADY {
            let count = cost.calls.get(call).copied().unwrap_or(0.0);
            if let Some(steady) = cost.steady
                && count > steady
            {
                over.push(format!(
                    "{what}: {count:.2} {call} for each operation, at most {steady:.1}"
                ));
            }
        }
        if cost.metadata > METADATA {
            over.push(format!(
                "{what}: {:.4} metadata writes for each operation within the hot set, at most {METADATA}",
                cost.metadata
            ));
        }
    }
    let primary = |job: Job, peer: Peer| {
        all.iter().find(|cost| {
            cost.job == job.name() && cost.peer == words(peer) && cost.daemon == "primary"
        })
    };
    for (job, peer) in COMPARED {
        if let (Some(this), Some(none)) = (primary(job, peer), primary(job, Peer::None)) {
            let ratio = this.together / none.together;
            if ratio > SAME {
                over.push(format!(
                    "{}, {}: {ratio:.2} times the system calls of a mirror without a peer, at most {SAME}",
                    job.name(),
                    words(peer)
                ));
            }
        }
    }
    over
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_strace_are_read_once_they_are_whole() {
        let text = "    calls syscall\n--------- ----------------\n      120 epoll_wait\n        7 sendmsg\n";
        assert_eq!(parse(text), None);
        let whole = format!("{text}--------- ----------------\n      127 total\n");
        let calls = parse(&whole).expect("it is whole");
        assert_eq!(
            (calls["epoll_wait"], calls["sendmsg"], calls.len()),
            (120, 7, 2)
        );
    }

    #[test]
    fn what_grew_is_named() {
        let cost = |peer: &str, together: f64, metadata: f64| Cost {
            job: SMALL.name(),
            peer: peer.to_owned(),
            daemon: "primary".to_owned(),
            calls: BTreeMap::new(),
            together,
            most: 10.0,
            steady: Some(1.3),
            metadata,
        };
        assert!(over(&[cost("no peer", 9.0, 0.0), cost("peer away", 9.5, 0.0)]).is_empty());
        assert!(over(&[cost("no peer", 11.0, 0.0)])[0].contains("11.00 system calls"));
        assert!(over(&[cost("no peer", 1.0, 0.5)])[0].contains("metadata"));
        let mut steady = cost("no peer", 9.0, 0.0);
        steady.calls.insert("writev".to_owned(), 1.2);
        assert!(over(&[steady.clone()]).is_empty());
        steady.calls.insert("writev".to_owned(), 1.4);
        assert!(over(&[steady])[0].contains("1.40 writev"));
        let grown = over(&[cost("no peer", 7.0, 0.0), cost("peer away", 9.5, 0.0)]);
        assert!(grown[0].contains("1.36 times"), "{grown:?}");
    }
}
