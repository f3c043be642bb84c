//! `kagami-bench link`: kagami and qemu's quorum with certificates, over links that are slow and lose packets.
//!
//! Two network namespaces stand for two machines; each has one interface, and [`relay`] carries packets between
//! them. Everything is made for the run and goes with it; nothing outside is touched.

mod relay;
mod tun;

use std::fmt::Write as _;
use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::candidate::{Candidate, Room};
use crate::error::BenchError;
use crate::job::{Job, SEQUENTIAL, SMALL_DEEP};
use crate::mirror::{self, End, Mirror, PAIR, Peer};
use crate::peers::{Between, Ends, QUORUM_X509, quorum_at};
use crate::process::{self, Process};
use crate::rounds::{self, Row};
use crate::setting::{Document, Kind, Setting};
use relay::{Conditions, PERFECT, Relay};

/// Which links, and how long each is measured.
#[derive(Args)]
pub struct LinkArgs {
    /// Round trips, in milliseconds
    #[arg(long, value_delimiter = ',', default_values_t = [0.2, 2.0, 10.0, 50.0])]
    delays: Vec<f64>,
    /// Lost packets, in percent
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.1, 1.0])]
    losses: Vec<f64>,
    /// Largest packets, in bytes; all but the first are measured at the first delay, without loss
    #[arg(long, value_delimiter = ',', default_values_t = [1500, 4000, 9000, 65_535])]
    mtus: Vec<u32>,
    /// Mbit/s each way
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Measure every combination of all three
    #[arg(long)]
    every: bool,
    /// Runs of each cell with each candidate
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 2.0, value_parser = crate::compare::seconds)]
    seconds: f64,
}

/// One link, and what was measured over it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// Milliseconds of a round trip, as asked for.
    pub delay_ms: f64,
    /// As a small datagram found it on the idle link, there and back.
    pub ping_ms: f64,
    /// Percent of packets lost, as asked for.
    pub loss: f64,
    /// Mbit/s.
    pub rate: u64,
    /// Both candidates at each job.
    pub rows: Vec<Row>,
}

/// Enough in flight for a large product of bandwidth and delay, and many small ones.
const JOBS: [Job; 2] = [
    Job {
        depth: 16,
        ..SEQUENTIAL
    },
    SMALL_DEEP,
];
/// The addresses of both machines.
const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const PINGS: usize = 9;
const INTERFACE: &str = "bench0";
/// Bytes of each disk: as much as a slow link needs.
const REGION: u64 = 256 << 20;
/// After the link has changed, before anything counts.
const WARM_UP: Duration = Duration::from_millis(1500);

/// Two machines and what is between them.
struct World {
    // Dropped in this order.
    relay: Relay,
    _interfaces: [File; 2],
    holders: [Process; 2],
}

impl World {
    fn new(dir: &Path, mtu: u32) -> Result<Self, BenchError> {
        let holders = [hold(dir, "machine-1")?, hold(dir, "machine-2")?];
        let interfaces = [
            tun::open(&namespace(&holders[0]), INTERFACE)?,
            tun::open(&namespace(&holders[1]), INTERFACE)?,
        ];
        let relay =
            Relay::start(&interfaces[0], &interfaces[1]).map_err(BenchError::io("the relay"))?;
        let world = Self {
            relay,
            _interfaces: interfaces,
            holders,
        };
        for (at, address) in ADDRESSES.iter().enumerate() {
            for words in [
                format!("address add {address}/24 dev {INTERFACE}"),
                format!("link set {INTERFACE} mtu {mtu} txqueuelen 10000 up"),
                "link set lo up".to_owned(),
            ] {
                let mut ip = Command::new(process::program("ip")?);
                ip.args(words.split(' '));
                process::output("ip", &mut process::within(&world.entry(at), &ip))?;
            }
        }
        Ok(world)
    }

    /// What starts a program on one of the machines.
    fn entry(&self, at: usize) -> Vec<String> {
        let file = namespace(&self.holders[at]);
        vec!["nsenter".to_owned(), format!("--net={}", file.display())]
    }

    /// Milliseconds of a round trip, the median of some.
    fn ping(&self) -> Result<f64, BenchError> {
        let socket = |at: usize| {
            tun::within(&namespace(&self.holders[at]), move || {
                let socket = UdpSocket::bind((ADDRESSES[at], 0))?;
                socket.set_read_timeout(Some(Duration::from_secs(2)))?;
                Ok(socket)
            })
        };
        let (here, there) = (socket(0)?, socket(1)?);
        let measured = || -> std::io::Result<f64> {
            here.connect(there.local_addr()?)?;
            there.connect(here.local_addr()?)?;
            let mut times = Vec::new();
            let mut buffer = [0; 8];
            for _ in 0..PINGS {
                let began = Instant::now();
                here.send(&buffer)?;
                there.recv(&mut buffer)?;
                there.send(&buffer)?;
                here.recv(&mut buffer)?;
                times.push(began.elapsed().as_secs_f64() * 1e3);
            }
            Ok(rounds::Spread::of(times.into_iter()).median)
        };
        measured().map_err(BenchError::io("a datagram over the link"))
    }
}

fn namespace(holder: &Process) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", holder.id()))
}

/// A program that does nothing but hold a network namespace; it ends when this program does.
fn hold(dir: &Path, name: &str) -> Result<Process, BenchError> {
    let mut command = Command::new(process::program("unshare")?);
    command.args([
        "--net",
        "setpriv",
        "--pdeathsig",
        "TERM",
        "sleep",
        "infinity",
    ]);
    let mut holder = Process::start(name, &mut command, dir)?;
    let (file, own) = (namespace(&holder), Path::new("/proc/self/ns/net"));
    holder.wait_for("network namespace", Duration::from_secs(10), || {
        let there = std::fs::read_link(&file).ok();
        there.is_some() && there != std::fs::read_link(own).ok()
    })?;
    Ok(holder)
}

/// Measures the links asked for; what is measured is written after each.
///
/// # Errors
/// A candidate fails, or the machine allows no namespaces.
pub fn measure(
    room: &Room,
    args: &LinkArgs,
    setting: &Setting,
    json: Option<&Path>,
) -> Result<(), BenchError> {
    room.check(1)?;
    let mut document = Document {
        kind: Kind::Link,
        setting: setting.clone(),
        results: Vec::new(),
    };
    for (at, mtu) in args.mtus.iter().enumerate() {
        let room = Room {
            dir: room.dir.join(format!("mtu-{mtu}")),
            region: REGION,
            ..room.clone()
        };
        std::fs::create_dir_all(&room.dir)
            .map_err(BenchError::io(room.dir.display().to_string()))?;
        let world = World::new(&room.dir, *mtu)?;
        world.relay.set(&PERFECT);
        let mut candidates = candidates(&room, &world)?;
        for (delay, loss) in cells(args, at == 0) {
            let conditions = Conditions {
                round_trip: Duration::from_secs_f64(delay / 1e3),
                lost: (loss * 1e4).round() as u32,
                rate: args.rate * 1_000_000 / 8,
            };
            world.relay.set(&Conditions {
                lost: 0,
                ..conditions
            });
            let ping_ms = world.ping()?;
            world.relay.set(&conditions);
            let cell = Cell {
                mtu: *mtu,
                delay_ms: delay,
                ping_ms,
                loss,
                rate: args.rate,
                rows: rows(&mut candidates, args)?,
            };
            let (carried, dropped) = world.relay.counts();
            eprint!("{}", line(&cell));
            eprintln!("  ({carried} packets so far, {dropped} dropped)");
            document.results.push(cell);
            document.write(json)?;
        }
        world.relay.set(&PERFECT);
    }
    println!("{}", table(&document.results));
    Ok(())
}

/// The links of one packet size.
fn cells(args: &LinkArgs, first: bool) -> Vec<(f64, f64)> {
    if !first && !args.every {
        return args
            .delays
            .first()
            .map(|delay| (*delay, 0.0))
            .into_iter()
            .collect();
    }
    let delays = args.delays.iter();
    delays
        .flat_map(|delay| args.losses.iter().map(move |loss| (*delay, *loss)))
        .collect()
}

fn candidates(room: &Room, world: &World) -> Result<Vec<Box<dyn Candidate>>, BenchError> {
    let ends = Ends {
        within: [world.entry(0), world.entry(1)],
        address: ADDRESSES[1].to_owned(),
        name: QUORUM_X509,
        tag: "quorum",
    };
    let quorum = quorum_at(room, Between::X509, &ends)?;
    let end = |at: usize| End {
        within: world.entry(at),
        listen: format!("{}:7789", ADDRESSES[at]),
        ..End::default()
    };
    let mebibytes = room.region >> 20;
    let pair = Mirror::start_at(room, "pair", mebibytes, Peer::There, &[end(0), end(1)])?;
    let pair = mirror::candidate_of(room, PAIR, Peer::There, pair)?;
    Ok(vec![Box::new(quorum), Box::new(pair)])
}

fn rows(candidates: &mut [Box<dyn Candidate>], args: &LinkArgs) -> Result<Vec<Row>, BenchError> {
    for candidate in candidates.iter_mut() {
        candidate.run(&JOBS[0], WARM_UP, 3)?;
    }
    let time = Duration::from_secs_f64(args.seconds);
    let mut all = Vec::new();
    for job in &JOBS {
        let series = rounds::alternate(candidates, job, args.rounds, time, |_, _| {})?;
        all.extend(series.into_iter().map(Row::from));
    }
    Ok(all)
}

/// The table, in Markdown.
pub fn table(cells: &[Cell]) -> String {
    let mut text = String::from(
        "\n| MTU | round trip ms (found) | lost % | 1 MiB × 16 MB/s: kagami | quorum x509 | ÷ | of the link | 4 KiB × 32 op/s: kagami | quorum x509 | ÷ | p99 ms: kagami | quorum |\n|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for cell in cells {
        text += &line(cell);
    }
    let won = cells
        .iter()
        .filter(|cell| ratios(cell).is_some_and(|ratios| ratios.iter().all(|r| *r > 1.0)));
    let _ = writeln!(
        text,
        "\nAhead of quorum in both jobs in {} of {} cells.",
        won.count(),
        cells.len()
    );
    text
}

fn find<'a>(cell: &'a Cell, job: &Job, candidate: &str) -> Option<&'a Row> {
    cell.rows
        .iter()
        .find(|row| row.series.shape == *job && row.series.candidate == candidate)
}

/// kagami ÷ quorum at both jobs.
fn ratios(cell: &Cell) -> Option<[f64; 2]> {
    let ratio = |job: &Job| {
        let [pair, quorum] = [PAIR, QUORUM_X509].map(|name| find(cell, job, name));
        Some(pair?.summary.rate.median / quorum?.summary.rate.median)
    };
    Some([ratio(&JOBS[0])?, ratio(&JOBS[1])?])
}

fn line(cell: &Cell) -> String {
    let rows = (
        ratios(cell),
        find(cell, &JOBS[0], PAIR),
        find(cell, &JOBS[0], QUORUM_X509),
        find(cell, &JOBS[1], PAIR),
        find(cell, &JOBS[1], QUORUM_X509),
    );
    let (Some([large, small]), Some(a), Some(b), Some(c), Some(d)) = rows else {
        return String::new();
    };
    let (a, b, c, d) = (&a.summary, &b.summary, &c.summary, &d.summary);
    let link = cell.rate as f64 / 8.0;
    format!(
        "| {} | {} ({:.2}) | {} | {:.1} | {:.1} | {large:.2} | {:.0} % | {:.0} | {:.0} | {small:.2} | {:.1} | {:.1} |\n",
        cell.mtu,
        cell.delay_ms,
        cell.ping_ms,
        cell.loss,
        a.megabytes,
        b.megabytes,
        100.0 * a.megabytes / link,
        c.rate.median,
        d.rate.median,
        c.p99.median / 1e3,
        d.p99.median / 1e3
    )
}
