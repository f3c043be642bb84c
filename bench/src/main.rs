//! `kagami-bench`: what kagami costs, beside its own limit and beside others, measured in one run.
//!
//! docs/performance.md keeps the figures.

mod candidate;
mod client;
mod error;
mod job;
mod limit;
mod load;
mod memory;
mod metadata;
mod mirror;
mod outage;
mod peers;
mod process;
mod report;
mod rounds;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use candidate::{Candidate, Room};
use error::BenchError;
use job::JOBS;
use peers::Between;
use report::{Row, Setting};

#[derive(Parser)]
#[command(
    name = "kagami-bench",
    version,
    about = "Measures kagami beside its own limit and beside others",
    after_help = "Example: kagami-bench all --dir /var/tmp --json all.json"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// Where the test files are made (and removed again): a disk with direct I/O, no tmpfs
    #[arg(long, global = true, default_value = "/var/tmp")]
    dir: PathBuf,
    /// MiB of each test disk
    #[arg(long, global = true, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..1 << 24))]
    region: u64,
    /// The daemon's program [default: the one beside this program]
    #[arg(long, global = true)]
    kagami: Option<PathBuf>,
    /// Also write everything measured to this file
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Comparison {
    /// Runs of each job with each candidate
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Only jobs whose name contains this
    #[arg(long)]
    only: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// kagami's own parts: bare disk, bare link, front end over nothing
    Limit(Comparison),
    /// kagami without a peer, and as a pair
    Mirror(Comparison),
    /// fio on the file, qemu-storage-daemon with one file, and with its quorum driver
    Peers(Comparison),
    /// All of these in turn, with their ratios
    All(Comparison),
    /// Outages of the peer: bytes sent for each byte marked, and how fast
    Resync {
        /// Outages of each kind
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// How much is written in each, as a share of the disk
        #[arg(long, default_value_t = 0.2)]
        share: f64,
    },
    /// Writes of metadata for each 1,000 writes
    Metadata {
        /// Writes of each kind
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1000..))]
        writes: u64,
    },
    /// Memory of the daemons of large mirrors
    Memory {
        /// Sizes of sparse mirrors, in TiB (ext4 refuses a file of 16)
        #[arg(long, value_delimiter = ',', default_values_t = [1, 15])]
        tebibytes: Vec<u64>,
    },
    /// Serves a null device: the front end's share, for `limit`
    #[command(hide = true)]
    ServeNull {
        #[arg(long)]
        socket: PathBuf,
        #[arg(long)]
        size: u64,
    },
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.1 to 3600".to_owned()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kagami-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), BenchError> {
    if let Command::ServeNull { socket, size } = &cli.command {
        return limit::front_end::serve(socket, *size);
    }
    let common = &cli.common;
    let setting = Setting::here(&common.dir);
    let folder = tempfile::Builder::new()
        .prefix("kagami-bench-")
        .tempdir_in(&common.dir)
        .map_err(BenchError::io(common.dir.display().to_string()))?;
    clean_up_when_interrupted(folder.path().to_owned())?;
    let room = Room {
        dir: folder.path().to_owned(),
        region: common.region << 20,
        kagami: match &common.kagami {
            Some(path) => path.clone(),
            None => beside_this("kagami")?,
        },
    };
    let json = common.json.as_deref();
    println!("{}", setting.text());
    match &cli.command {
        Command::Limit(how) => compare(&room, how, &setting, json, &[limits]),
        Command::Mirror(how) => compare(&room, how, &setting, json, &[mirrors]),
        Command::Peers(how) => compare(&room, how, &setting, json, &[others]),
        Command::All(how) => compare(&room, how, &setting, json, &[limits, others, mirrors]),
        Command::Resync { rounds, share } => {
            let outages = outage::measure(&room, *rounds, *share)?;
            println!("{}", outage::table(&outages));
            save(json, &setting, &outages)
        }
        Command::Metadata { writes } => {
            let costs = metadata::measure(&room, *writes)?;
            println!("{}", metadata::table(&costs));
            save(json, &setting, &costs)
        }
        Command::Memory { tebibytes } => {
            let held = memory::measure(&room, tebibytes)?;
            println!("{}", memory::table(&held));
            save(json, &setting, &held)
        }
        Command::ServeNull { .. } => unreachable!("served above"),
    }
}

type Candidates = Vec<Box<dyn Candidate>>;
/// Sets some candidates up.
type Group = fn(&Room) -> Result<Candidates, BenchError>;

fn limits(room: &Room) -> Result<Candidates, BenchError> {
    room.check(1)?;
    Ok(vec![
        Box::new(limit::disk::BareDisk::new(room)?),
        Box::new(limit::link::BareLink),
        Box::new(limit::front_end::candidate(room)?),
    ])
}

fn others(room: &Room) -> Result<Candidates, BenchError> {
    // Missing programs are told before anything is written.
    process::program("fio")?;
    process::program("qemu-storage-daemon")?;
    room.check(5)?;
    let local = peers::qemu_local(room)?;
    Ok(vec![
        Box::new(peers::Fio::new(room, peers::shared_file(room))?),
        Box::new(local),
        Box::new(peers::qemu_quorum(room, Between::Tcp)?),
        Box::new(peers::qemu_quorum(room, Between::Unix)?),
    ])
}

fn mirrors(room: &Room) -> Result<Candidates, BenchError> {
    room.check(3)?;
    Ok(vec![
        Box::new(mirror::candidate(room, false)?),
        Box::new(mirror::candidate(room, true)?),
    ])
}

fn compare(
    room: &Room,
    how: &Comparison,
    setting: &Setting,
    json: Option<&Path>,
    groups: &[Group],
) -> Result<(), BenchError> {
    let only = how.only.as_deref().unwrap_or_default();
    let jobs: Vec<job::Job> = JOBS
        .into_iter()
        .filter(|job| job.name.contains(only))
        .collect();
    let mut candidates = Vec::new();
    for group in groups {
        candidates.append(&mut group(room)?);
    }
    let time = Duration::from_secs_f64(how.seconds);
    let all = rounds::alternate(
        &mut candidates,
        &jobs,
        how.rounds,
        time,
        |job, name, sample| {
            eprintln!(
                "{:46} {name:26} {:9.0} op/s  p50 {:8.1} us  p99 {:8.1} us",
                job.name, sample.rate, sample.p50, sample.p99
            );
        },
    )?;
    println!("{}", report::tables(&all));
    let rows: Vec<Row> = all
        .iter()
        .map(|series| Row {
            series,
            summary: series.summary(),
        })
        .collect();
    save(json, setting, &rows)
}

fn save<T: Serialize>(
    path: Option<&Path>,
    setting: &Setting,
    results: &T,
) -> Result<(), BenchError> {
    path.map_or(Ok(()), |path| report::write_json(path, setting, results))
}

/// A program in the folder that this one is in.
fn beside_this(name: &str) -> Result<PathBuf, BenchError> {
    let this = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
    Ok(this.with_file_name(name))
}

/// On SIGINT or SIGTERM ends the programs under test and removes the test files.
fn clean_up_when_interrupted(folder: PathBuf) -> Result<(), BenchError> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BenchError::io("a runtime"))?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) = (
                signal(SignalKind::interrupt()),
                signal(SignalKind::terminate()),
            ) else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            process::stop_all();
            // They remove files of their own first.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = std::fs::remove_dir_all(folder);
            std::process::exit(130);
        });
    });
    Ok(())
}
