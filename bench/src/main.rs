//! `kagami-bench`: what kagami costs, beside its own limit and beside others, measured in one run.
//!
//! docs/performance.md keeps the figures.

mod candidate;
mod client;
mod compare;
mod costs;
mod error;
mod job;
mod limit;
mod link;
mod load;
mod memory;
mod metadata;
mod mirror;
mod namespace;
mod peers;
mod process;
mod report;
mod resync;
mod rounds;
mod setting;
mod svg;
mod tables;
mod targets;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use candidate::{Network, Room};
use compare::{Comparison, Group, limits, mirrors, others};
use error::BenchError;
use setting::{Document, Kind, Setting};

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
    /// Where the test files are made (and removed again): a disk with direct I/O, or memory (/dev/shm)
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
    /// Use the machine's own loopback, and make no network namespace
    #[arg(long, global = true)]
    machine_network: bool,
    /// Said by this program to itself
    #[arg(long, global = true, hide = true)]
    inside_namespace: bool,
}

#[derive(Subcommand)]
enum Command {
    /// kagami's own parts: bare disk, bare link, front end over nothing
    Limit(Comparison),
    /// kagami without a peer, and as a pair
    Mirror(Comparison),
    /// fio on the file, qemu-storage-daemon with one file, and with its quorum driver, nbdkit
    Peers(Comparison),
    /// All of these in turn, with their ratios and what is made of the targets: about fifteen minutes
    All(Comparison),
    /// The same over depths from 1 to 128 and blocks from 4 KiB to 4 MiB, for the plots
    Sweep(Comparison),
    /// Outages of the peer: bytes sent for each byte marked, how fast, and beside an application
    Resync {
        /// Outages of each kind
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// How much is written in each, as a share of the disk
        #[arg(long, default_value_t = 0.2)]
        share: f64,
    },
    /// System calls for each operation, counted by strace; fails when there are more than there were
    Costs,
    /// Delayed and lossy links between two network namespaces: kagami and qemu's quorum with x509
    Link(link::LinkArgs),
    /// Turns files of --json into the tables of docs/performance.md and the plots of docs/plots
    Report(report::Report),
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
    if let Command::Report(how) = &cli.command {
        return report::make(how);
    }
    let common = &cli.common;
    let network = if common.inside_namespace {
        namespace::prepare()?
    } else {
        if !common.machine_network {
            namespace::enter()?;
        }
        Network::Machine
    };
    let setting = Setting::here(&common.dir, network);
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
        network,
    };
    let json = common.json.as_deref();
    println!("{}", setting.text());
    let save = |kind, results| {
        let setting = setting.clone();
        let document = Document {
            kind,
            setting,
            results,
        };
        document.write(json)
    };
    let compare = |how: &Comparison, groups: &[Group]| {
        compare::main_table(&room, how, &setting, json, groups)
    };
    match &cli.command {
        Command::Limit(how) => compare(how, &[limits]),
        Command::Mirror(how) => compare(how, &[mirrors]),
        Command::Peers(how) => compare(how, &[others]),
        Command::All(how) => compare(how, &[limits, others, mirrors]),
        Command::Sweep(how) => compare::sweep(&room, how, &setting, json),
        Command::Resync { rounds, share } => {
            let kept = resync::measure(&room, *rounds, *share)?;
            println!("{}", resync::text(&kept));
            save(Kind::Resync, value(&kept))
        }
        Command::Metadata { writes } => {
            let costs = metadata::measure(&room, *writes)?;
            println!("{}", metadata::table(&costs));
            save(Kind::Metadata, value(&costs))
        }
        Command::Memory { tebibytes } => {
            let held = memory::measure(&room, tebibytes)?;
            println!("{}", memory::table(&held));
            save(Kind::Memory, value(&held))
        }
        Command::Costs => {
            let counted = costs::measure(&room)?;
            println!("{}", costs::table(&counted));
            save(Kind::Costs, value(&counted))?;
            let over = costs::over(&counted);
            if over.is_empty() {
                return Ok(());
            }
            let words = over.join("\n");
            Err(BenchError::Grown { words })
        }
        Command::Link(how) => link::measure(&room, how, &setting, json),
        Command::ServeNull { .. } | Command::Report(_) => unreachable!("dealt with above"),
    }
}

fn value(results: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(results).expect("plain data is JSON")
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
