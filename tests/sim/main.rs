//! `kagami-sim`: runs seeds of the simulator, and replays one.
//!
//! Exit status: 0 nothing found; 1 a violation, or a fault that so many seeds never met; 2 wrong usage.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anstream::{eprintln, println};
use clap::{Args, Parser, Subcommand};
use kagami_tests::sim::coverage;
use kagami_tests::sim::faults::Fault;
use kagami_tests::sim::planted::{self, Form};
use kagami_tests::sim::profile::Profile;
use kagami_tests::sim::replay::Trace;
use kagami_tests::sim::stats::Stats;
use kagami_tests::sim::{Outcome, catch_assertions, run_profile};

/// Runs two nodes with their disks, the link and the arbiter from a seed, breaks them, and checks
/// what docs/design.md promises after every step.
#[derive(Parser)]
#[command(
    name = "kagami-sim",
    version,
    after_help = "Example: kagami-sim run --seeds 20000"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run many seeds; stop at violations.
    Run(Run),
    /// Run one seed again and show what happened.
    Replay(Replay),
    /// Plant defects one at a time, and run seeds until one catches it.
    Planted(Planted),
    /// The names of what runs can be bent towards, a line each.
    Profiles,
}

#[derive(Args)]
struct Run {
    /// How many seeds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// What the runs are bent towards: docs/simulation.md.
    #[arg(long, default_value = "general", value_parser = Profile::parse)]
    profile: Profile,
    /// Threads; a seed runs on one.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Stop after this many violations.
    #[arg(long, default_value_t = 10)]
    stop_after: usize,
    /// The summary as one JSON object.
    #[arg(long)]
    json: bool,
    /// Also show what was reached, and how often.
    #[arg(long)]
    coverage: bool,
}

#[derive(Args)]
struct Replay {
    /// The seed.
    seed: u64,
    /// The profile that it is a seed of.
    #[arg(long, default_value = "general", value_parser = Profile::parse)]
    profile: Profile,
    /// Only the last lines of the trace.
    #[arg(long)]
    tail: Option<usize>,
}

#[derive(Args)]
struct Planted {
    /// Only those whose names contain this.
    #[arg(long)]
    only: Option<String>,
    /// Only some that are caught quickly: what `./do test` runs.
    #[arg(long)]
    quick: bool,
    /// Seeds that a defect may take at most.
    #[arg(long, default_value_t = 8000)]
    seeds: u64,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// One JSON object for each defect.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// The table of docs/simulation.md.
    #[arg(long)]
    markdown: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    catch_assertions();
    let found = match cli.command {
        Command::Profiles => {
            for profile in Profile::ALL {
                println!("{}", profile.name());
            }
            return ExitCode::SUCCESS;
        }
        Command::Run(run) => run_many(&run),
        Command::Replay(replay) => run_one(&replay),
        Command::Planted(args) => {
            let wanted = planted::Wanted {
                only: args.only,
                seeds: args.seeds,
                quick: args.quick,
                threads: args.threads,
                form: match (args.json, args.markdown) {
                    (true, _) => Form::Json,
                    (_, true) => Form::Markdown,
                    _ => Form::Lines,
                },
            };
            return ExitCode::from(planted::run(&wanted));
        }
    };
    ExitCode::from(u8::from(found))
}

fn run_one(replay: &Replay) -> bool {
    let outcome = run_profile(replay.profile, replay.seed, Trace::kept());
    let lines = outcome.trace.lines();
    let skipped = replay
        .tail
        .map_or(0, |tail| lines.len().saturating_sub(tail));
    for line in lines.iter().take(5).take(skipped).chain(&lines[skipped..]) {
        println!("{line}");
    }
    match &outcome.violation {
        Some(violation) => println!("VIOLATION {violation}"),
        None => println!("no violation: {} steps", outcome.stats.steps),
    }
    outcome.violation.is_some()
}

fn run_many(run: &Run) -> bool {
    let profile = run.profile;
    let next = AtomicU64::new(run.from);
    let end = run.from.saturating_add(run.seeds);
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    let (send, receive) = mpsc::channel::<Outcome>();
    let mut total = Stats::default();
    let mut failed = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..run.threads.max(1) {
            let send = send.clone();
            let (next, stop) = (&next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || send.send(run_profile(profile, seed, Trace::off())).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        let mut shown = Instant::now();
        for outcome in receive {
            total.add(&outcome.stats);
            if let Some(violation) = outcome.violation {
                clear_progress();
                if !run.json {
                    println!("seed {}: VIOLATION {violation}", outcome.seed);
                    let of = match profile {
                        Profile::General => String::new(),
                        profile => format!(" --profile {}", profile.name()),
                    };
                    println!("  replay: kagami-sim replay {}{of}", outcome.seed);
                }
                failed.push((outcome.seed, violation));
                if failed.len() >= run.stop_after {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            if shown.elapsed() > Duration::from_millis(200) {
                shown = Instant::now();
                progress(total.seeds, run.seeds, began, failed.len());
            }
        }
    });
    clear_progress();
    failed.sort_by_key(|(seed, _)| *seed);
    let never = never_met(run, &total);
    if run.json {
        let violations: Vec<_> = failed
            .iter()
            .map(|(seed, violation)| {
                serde_json::json!({ "seed": seed, "invariant": violation.invariant, "what": violation.what })
            })
            .collect();
        let faults: serde_json::Map<_, _> = total
            .faults()
            .map(|(fault, count)| (fault.name().to_owned(), count.into()))
            .collect();
        let summary = serde_json::json!({
            "version": 1,
            "from": run.from,
            "seeds": total.seeds,
            "steps": total.steps,
            "seconds": began.elapsed().as_secs_f64(),
            "requests": total.requests,
            "messages": total.messages,
            "sessions": total.sessions,
            "faults": faults,
            "verdicts": total.verdicts(),
            "reached": total.marks(),
            "cells": cells_json(&total),
            "resync_marked_bytes": total.resync_marked,
            "resync_sent_bytes": total.resync_sent,
            "never_met": never,
            "violations": violations,
        });
        println!("{summary}");
    } else {
        summarise(run, &total, failed.len(), began);
        if !never.is_empty() {
            println!("never met: {}: is it still drawn?", never.join(", "));
        }
    }
    !failed.is_empty() || !never.is_empty()
}

/// Each fault of the general mix comes in so many seeds, or it is not drawn any more.
const ALL_FAULTS_COME: u64 = 5_000;

/// The faults that a long enough run has not met.
fn never_met(run: &Run, total: &Stats) -> Vec<&'static str> {
    if run.profile != Profile::General || total.seeds < ALL_FAULTS_COME {
        return Vec::new();
    }
    let faults = Fault::ALL.iter().chain(Fault::MORE);
    faults
        .filter(|fault| total.count(**fault) == 0)
        .map(|fault| fault.name())
        .collect()
}

fn summarise(run: &Run, total: &Stats, violations: usize, began: Instant) {
    if run.coverage {
        println!("handshakes by row:");
        for (row, count) in total.verdicts() {
            println!("  {row:<18} {count:>10}");
        }
        show_cells(total);
        println!("reached:");
        for (name, count) in total.marks() {
            println!("  {name:<26} {count:>10}");
        }
        println!(
            "resync: {} MiB marked, {} MiB sent; {} sessions, {} messages, {} questions to the arbiter, {} records, {} pairs of fates",
            total.resync_marked >> 20,
            total.resync_sent >> 20,
            total.sessions,
            total.messages,
            total.questions,
            total.records,
            total.foresights,
        );
    }
    let faults: Vec<_> = total
        .faults()
        .map(|(fault, count)| format!("{count} {}", fault.name()))
        .collect();
    println!(
        "{} seeds from {} in {:.1} s: {} steps, {:.1} h of the mirrors' time, {} requests; faults: {}; violations: {violations}",
        total.seeds,
        run.from,
        began.elapsed().as_secs_f64(),
        total.steps,
        total.virtual_ns as f64 / 3.6e12,
        total.requests,
        if faults.is_empty() {
            "none".to_owned()
        } else {
            faults.join(", ")
        },
    );
}

fn cells_json(total: &Stats) -> serde_json::Value {
    let cells = coverage::report(total);
    serde_json::json!({
        "situations": cells.situations,
        "pairs": cells.pairs,
        "can_be": cells.can_be,
        "missing": cells.missing,
        "directed": cells.directed,
        "beyond": cells.beyond,
        "impossible": cells.impossible.iter().map(|(cell, why)| serde_json::json!({ "pair": cell, "because": why })).collect::<Vec<_>>(),
        "unexplained": cells.unexplained,
        "missing_verdicts": cells.missing_verdicts,
    })
}

fn show_cells(total: &Stats) {
    let cells = coverage::report(total);
    println!(
        "{} situations, {} pairs of a situation and an event; {} of {} pairs of a stand and an event that can be",
        cells.situations,
        cells.pairs,
        cells.can_be - cells.missing.len() - cells.directed.len(),
        cells.can_be,
    );
    for (what, list) in [
        ("not reached", &cells.missing),
        ("not reached, with a directed test", &cells.directed),
        ("reached, and not in the table", &cells.beyond),
        (
            "neither reached nor tried nor impossible",
            &cells.unexplained,
        ),
    ] {
        if !list.is_empty() {
            println!("{what}: {}", list.join("; "));
        }
    }
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (cell, why) in &cells.impossible {
        reasons.entry(why).or_default().push(cell);
    }
    for (why, list) in reasons {
        println!("impossible, because {why}: {}", list.join("; "));
    }
    if !cells.missing_verdicts.is_empty() {
        println!("verdicts not reached: {}", cells.missing_verdicts.join(";"));
    }
}

fn progress(done: u64, all: u64, began: Instant, violations: usize) {
    if std::io::stderr().is_terminal() {
        let rate = done as f64 / began.elapsed().as_secs_f64();
        let left = (all - done) as f64 / rate.max(0.1);
        eprint(&format!(
            "\r{done} of {all} seeds, {rate:.0}/s, {left:.0} s left, {violations} violations "
        ));
    }
}

fn clear_progress() {
    if std::io::stderr().is_terminal() {
        eprint("\r\x1b[K");
    }
}

fn eprint(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // a terminal that is gone ends nothing
    if stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush())
        .is_err()
    {
        eprintln!();
    }
}
