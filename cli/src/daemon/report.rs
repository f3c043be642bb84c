//! The engine's status, the configuration and what happened so far, as one report.

use std::collections::{BTreeMap, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use kagami_bitmap::BLOCK;
use kagami_bitmap::superblock::Generation;
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{NodeId, Role as CoreRole, Time};
use kagami_replicator::core::status::{Counters, Progress, Status};

use super::engine::{MirrorStatus, Noticed};
use super::notice::{self, Names};
use crate::config::value::spell_hex;
use crate::config::{Config, Mirror, Protocol, Solo};
use crate::control::condition;
use crate::control::report::{
    AloneReport, ArbiterFaultReport, ChosenReport, Condition, Connection, CountersReport, Disk,
    GenerationReport, LoadReport, MirrorReport, NodeReport, PeerReport, ProgressReport,
    Replication, Role, SCHEMA, SideReport, StatusReport, VerdictReport,
};

/// The clocks at one moment: the core's, and the one on the wall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_BOOTTIME`.
    pub boot: Time,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

impl Now {
    /// The clocks of this machine.
    pub fn read() -> Self {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self {
            boot: Time(
                u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000_000_000
                    + u64::try_from(boot.tv_nsec).unwrap_or(0),
            ),
            wall_ms: wall_ms(),
        }
    }

    /// The wall clock at an earlier moment of the core's.
    fn wall_at(self, moment: Time) -> u64 {
        self.wall_ms
            .saturating_sub(self.boot.since(moment) / 1_000_000)
    }
}

/// Milliseconds since 1970.
pub fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

impl Names for Config {
    fn node(&self, id: NodeId) -> String {
        if id.0 == self.node.id {
            return self.node.name.clone();
        }
        self.peers
            .iter()
            .find(|peer| peer.id == id.0)
            .map_or_else(|| format!("node {id}"), |peer| peer.name.clone())
    }
}

/// What the daemon remembers of each mirror, for facts that the core does not keep.
#[derive(Debug, Default)]
pub struct Memory {
    mirrors: BTreeMap<String, Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    /// The generations that the last handshake compared.
    compared: Option<(Option<Generation>, Option<Generation>)>,
    /// When the newest generation was minted here.
    minted_ms: Option<u64>,
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Time,
    counters: Counters,
}

/// Seconds over which load is counted.
const LOAD_SECONDS: usize = 5;

impl Memory {
    /// Takes note of what happened.
    pub fn note(&mut self, noticed: &Noticed) {
        let mirror = self.mirrors.entry(noticed.mirror.clone()).or_default();
        match &noticed.notice {
            Notice::Verdict { mine, theirs, .. } => mirror.compared = Some((*mine, *theirs)),
            Notice::Minted { .. } => mirror.minted_ms = Some(noticed.time_ms),
            _ => {}
        }
    }

    /// Takes a sample of the counters, once a second.
    pub fn sample(&mut self, statuses: &[MirrorStatus], now: Now) {
        for status in statuses {
            let Ok(core) = &status.core else { continue };
            let mirror = self.mirrors.entry(status.name.clone()).or_default();
            mirror.samples.push_back(Sample {
                at: now.boot,
                counters: core.counters,
            });
            while mirror.samples.len() > LOAD_SECONDS + 1 {
                mirror.samples.pop_front();
            }
        }
    }

    /// The load between the oldest sample and now.
    fn load(&self, status: &MirrorStatus, counters: &Counters, now: Now) -> Option<LoadReport> {
        let first = self.mirrors.get(&status.name)?.samples.front()?;
        let seconds = now.boot.since(first.at) as f64 / 1e9;
        if seconds < 0.2 {
            return None;
        }
        let per_second = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        let writes = counters.writes.saturating_sub(first.counters.writes);
        let write_ns = counters.write_ns.saturating_sub(first.counters.write_ns);
        Some(LoadReport {
            seconds,
            reads_per_second: per_second(counters.reads, first.counters.reads),
            read_bytes_per_second: per_second(counters.read_bytes, first.counters.read_bytes),
            writes_per_second: per_second(counters.writes, first.counters.writes),
            write_bytes_per_second: per_second(counters.write_bytes, first.counters.write_bytes),
            write_mean_ns: write_ns.checked_div(writes),
            write_p50_ns: status.write_latency.map(|latency| latency.p50_ns),
            write_p99_ns: status.write_latency.map(|latency| latency.p99_ns),
        })
    }
}

/// The whole report.
pub fn report(
    config: &Config,
    node: &NodeReport,
    statuses: &[MirrorStatus],
    memory: &Memory,
    now: Now,
) -> StatusReport {
    let mirrors = config
        .mirrors
        .iter()
        .map(|mirror| {
            let status = statuses.iter().find(|status| status.name == mirror.name);
            let mut report = skeleton(config, mirror, now);
            match status.map(|status| (status, &status.core)) {
                Some((status, Ok(core))) => fill(&mut report, config, status, core, memory, now),
                Some((_, Err(closed))) => {
                    report.fault = Some(closed.why.clone());
                    report.opening = closed.opening;
                }
                // The engine runs what can run; a mirror without a peer waits to be paired.
                None if mirror.peer.is_none() => {}
                None => {
                    report.fault =
                        Some("it came into the configuration after the daemon began".to_owned());
                }
            }
            condition::judge(&mut report);
            report
        })
        .collect();
    StatusReport {
        schema: SCHEMA,
        time_ms: now.wall_ms,
        node: NodeReport {
            name: config.node.name.clone(),
            ..node.clone()
        },
        mirrors,
    }
}

/// What the configuration alone says.
fn skeleton(config: &Config, mirror: &Mirror, now: Now) -> MirrorReport {
    let peer = mirror.peer.as_deref().and_then(|name| config.peer(name));
    MirrorReport {
        name: mirror.name.clone(),
        uuid: spell_hex(&mirror.uuid),
        size_bytes: mirror.size,
        condition: Condition::NotPaired,
        next: Vec::new(),
        role: Role::Secondary,
        disk: Disk::Unknown,
        served_by_peer: false,
        backing: mirror.backing.display().to_string(),
        metadata: mirror.metadata.display().to_string(),
        served_at: Vec::new(),
        device: None,
        peer: peer.map(|peer| PeerReport {
            name: peer.name.clone(),
            role: None,
            disk: Disk::Unknown,
            address: peer.addresses.first().cloned(),
            round_trip_ns: None,
            link_version: None,
        }),
        connection: Connection::StandAlone,
        connection_since_ms: now.wall_ms,
        replication: Replication::Off,
        generation: None,
        alone: None,
        marked_bytes: 0,
        in_flight: 0,
        held: None,
        verdict: None,
        chosen: None,
        progress: None,
        protocol: match mirror.protocol {
            Protocol::A => "A",
            Protocol::B => "B",
            Protocol::C => "C",
        }
        .to_owned(),
        solo: match mirror.solo {
            Solo::Never => "never",
            Solo::Arbiter => "arbiter",
            Solo::Always => "always",
        }
        .to_owned(),
        arbiter: mirror.arbiter.clone(),
        follows: mirror.follows.clone(),
        held_back: None,
        arbiter_fault: None,
        fault: None,
        opening: false,
        disk_fault: None,
        load: None,
        counters: CountersReport::default(),
    }
}

fn fill(
    report: &mut MirrorReport,
    config: &Config,
    status: &MirrorStatus,
    core: &Status,
    memory: &Memory,
    now: Now,
) {
    report.size_bytes = core.size;
    report.role = notice::role(core.role);
    report.disk = notice::disk(core.disk);
    report.served_by_peer = report.role == Role::Primary
        && matches!(
            report.disk,
            Disk::Inconsistent | Disk::Failed | Disk::Diskless
        );
    report.served_at.clone_from(&status.served_at);
    report.device.clone_from(&status.device);
    report.disk_fault.clone_from(&status.disk_fault);
    report.held_back.clone_from(&status.held_back);
    if let Some(peer) = &mut report.peer {
        peer.role = core.peer_role.map(notice::role);
        peer.disk = notice::disk(core.peer_disk);
        if let Some(address) = &status.peer_address {
            peer.address = Some(address.clone());
        }
        peer.round_trip_ns = core.round_trip_ns;
        peer.link_version = status.link_version;
    }
    report.connection = notice::connection(core.connection);
    report.connection_since_ms = now.wall_at(core.connection_since);
    report.replication = notice::replication(core.replication);
    report.generation = core.generation.map(generation);
    report.alone = core.alone_since.map(|since| AloneReport {
        since_ms: now.wall_at(since),
        by: core.alone_by.map(str::to_owned),
    });
    report.marked_bytes = core.marked_blocks.saturating_mul(BLOCK);
    report.in_flight = core.in_flight as u64;
    report.held.clone_from(&core.held);
    report.arbiter_fault = (core.arbiter_fault.as_ref()).map(|fault| ArbiterFaultReport {
        since_ms: now.wall_at(fault.since),
        why: fault.why.clone(),
        refused: fault.refused,
    });
    report.verdict = verdict(report, config, core, memory);
    report.chosen = core.chosen.map(|chosen| ChosenReport {
        node: config.node(chosen.keep),
        until_ms: now.wall_ms + chosen.until.since(now.boot) / 1_000_000,
    });
    report.progress = core.progress.as_ref().map(|p| progress(p, now));
    report.load = match core.role {
        CoreRole::Primary => memory.load(status, &core.counters, now),
        CoreRole::Secondary => None,
    };
    report.counters = counters(&core.counters);
}

fn generation(generation: Generation) -> GenerationReport {
    GenerationReport {
        number: generation.counter,
        tag: format!("{:016x}", generation.tag),
    }
}

fn verdict(
    report: &MirrorReport,
    config: &Config,
    core: &Status,
    memory: &Memory,
) -> Option<VerdictReport> {
    let verdict = core.verdict?;
    let remembered = memory.mirrors.get(&report.name);
    let compared = remembered.and_then(|mirror| mirror.compared);
    let side = |generation_: Option<Generation>| SideReport {
        generation: generation_.map(generation),
        ..SideReport::default()
    };
    let refused = notice::refusal(&verdict);
    let mut here = compared.map(|(mine, _)| side(mine));
    if let (Some(here), Some(_)) = (&mut here, refused) {
        here.from_ms = report
            .alone
            .as_ref()
            .map(|alone| alone.since_ms)
            .or_else(|| remembered.and_then(|mirror| mirror.minted_ms));
        // The marks count from the last generation that both had.
        here.written_bytes = Some(report.marked_bytes);
    }
    Some(VerdictReport {
        row: verdict.row as u8,
        rule: format!("{:?}", verdict.row),
        outcome: notice::outcome(&verdict, config),
        refused,
        here,
        there: compared.map(|(_, theirs)| side(theirs)),
    })
}

fn progress(progress: &Progress, now: Now) -> ProgressReport {
    let total = progress.total_blocks.saturating_mul(BLOCK);
    let done = progress.done_blocks.saturating_mul(BLOCK).min(total);
    let paused = progress.paused_here || progress.paused_there;
    ProgressReport {
        total_bytes: total,
        done_bytes: done,
        sent_bytes: progress.sent_bytes,
        since_ms: now.wall_at(progress.since),
        rate: progress.rate,
        seconds_left: if paused {
            None
        } else {
            (total - done).checked_div(progress.rate)
        },
        paused,
        paused_here: progress.paused_here,
        paused_there: progress.paused_there,
        different_bytes: progress.different.saturating_mul(BLOCK),
    }
}

fn counters(counters: &Counters) -> CountersReport {
    CountersReport {
        reads: counters.reads,
        read_bytes: counters.read_bytes,
        writes: counters.writes,
        write_bytes: counters.write_bytes,
        flushes: counters.flushes,
        write_ns: counters.write_ns,
        log_records: counters.log_records,
        bitmap_pages: counters.pages,
        superblocks: counters.records,
        replicated_bytes: counters.replicated_bytes,
        resync_bytes: counters.resync_bytes,
        resync_equal_bytes: counters.resync_equal_blocks.saturating_mul(BLOCK),
        applied_bytes: counters.applied_blocks.saturating_mul(BLOCK),
    }
}
