//! `kagami-failover-sim`: runs seeds of the failover manager's simulator, and replays one.
//!
//! Exit status: 0 nothing found; 1 a violation, or a fault that so many seeds never met; 2 wrong usage.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anstream::println;
use clap::{Parser, Subcommand};
use kagami_tests::failover::stats::{FAULTS, LEASE_FAULTS, Stats};
use kagami_tests::failover::{Outcome, lease, planted, run_seed};

/// Runs two failover managers with their machines, mirrors, heartbeats and an arbiter from a seed,
/// breaks them, and checks what docs/failover-design.md promises after every step.
#[derive(Parser)]
#[command(version, after_help = "Example: kagami-failover-sim run --seeds 2000")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run many seeds; stop at violations.
    Run {
        /// How many seeds.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Threads; a seed runs on one.
        #[arg(long, default_value_t = 2)]
        threads: u64,
        /// Stop after this many violations.
        #[arg(long, default_value_t = 10)]
        stop_after: usize,
        /// Of the leases of groups without a mirror, and not of whole managers.
        #[arg(long)]
        leases: bool,
    },
    /// Run one seed again and show what happened.
    Replay {
        /// The seed.
        seed: u64,
        /// Of the leases of groups without a mirror.
        #[arg(long)]
        leases: bool,
    },
    /// Plant defects one at a time, and run seeds until one catches it.
    Planted {
        /// Only those whose names contain this.
        #[arg(long)]
        only: Option<String>,
        /// Seeds that a defect may take at most.
        #[arg(long, default_value_t = 30_000)]
        seeds: u64,
    },
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // A failed assertion is a violation with a seed, told in its place.
    std::panic::set_hook(Box::new(|_| {}));
    match command {
        Command::Run {
            seeds,
            from,
            threads,
            stop_after,
            leases,
        } => run(seeds, from, threads, stop_after, leases),
        Command::Replay { seed, leases } => {
            let outcome = run_one(seed, true, leases);
            for line in &outcome.trace {
                println!("{line}");
            }
            match &outcome.violation {
                Some(violation) => println!("VIOLATION {violation}"),
                None => println!("no violation: {} steps", outcome.stats.steps),
            }
            ExitCode::from(u8::from(outcome.violation.is_some()))
        }
        Command::Planted { only, seeds } => ExitCode::from(planted::run(only.as_deref(), seeds)),
    }
}

fn run_one(seed: u64, trace: bool, leases: bool) -> Outcome {
    if leases {
        lease::run_seed(seed, trace)
    } else {
        run_seed(seed, trace)
    }
}

/// Each fault comes in so many seeds, or it is not drawn any more.
const ALL_FAULTS_COME: u64 = 5_000;

fn run(seeds: u64, from: u64, threads: u64, stop_after: usize, leases: bool) -> ExitCode {
    let began = Instant::now();
    let next = AtomicU64::new(from);
    let total = Mutex::new((Stats::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from.saturating_add(seeds) {
                        break;
                    }
                    let outcome = run_one(seed, false, leases);
                    let Ok(mut total) = total.lock() else { break };
                    total.0.add(&outcome.stats);
                    if let Some(violation) = outcome.violation {
                        let flag = if leases { " --leases" } else { "" };
                        println!("seed {seed}: VIOLATION {violation}\n  replay: kagami-failover-sim replay {seed}{flag}");
                        total.1.push(seed);
                    }
                    if total.1.len() >= stop_after {
                        break;
                    }
                }
            });
        }
    });
    let Ok((total, failed)) = total.into_inner() else {
        return ExitCode::FAILURE;
    };
    let names: &[&str] = if leases { &LEASE_FAULTS } else { &FAULTS };
    let never: Vec<&str> = (names.iter().zip(total.faults))
        .filter(|(_, count)| *count == 0 && total.seeds >= ALL_FAULTS_COME)
        .map(|(name, _)| *name)
        .collect();
    if !never.is_empty() {
        println!("never met: {}: is it still drawn?", never.join(", "));
    }
    let good = failed.is_empty() && never.is_empty();
    let faults: Vec<String> = (names.iter().zip(total.faults))
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    if leases {
        println!(
            "{} seeds of leases from {from} in {:.1} s: {} steps, {:.1} h, {} grants, {} losses; faults: {}; violations: {}",
            total.seeds,
            began.elapsed().as_secs_f64(),
            total.steps,
            total.ms as f64 / 3.6e6,
            total.grants,
            total.losses,
            faults.join(", "),
            failed.len(),
        );
        return ExitCode::from(u8::from(!good));
    }
    println!(
        "{} seeds from {from} in {:.1} s: {} steps, {:.1} h of the managers' time, {} commands, {} failovers, \
         {} recoveries, {} ends, {} writes landed unheard, {} resets, {} groups online at the end ({} of them beside a failed disk); faults: {}; violations: {}",
        total.seeds,
        began.elapsed().as_secs_f64(),
        total.steps,
        total.ms as f64 / 3.6e6,
        total.commands,
        total.failovers,
        total.recoveries,
        total.ends,
        total.landed,
        total.resets,
        total.online,
        total.beside,
        faults.join(", "),
        failed.len(),
    );
    ExitCode::from(u8::from(!good))
}
