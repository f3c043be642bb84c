//! `kagami bench`: how fast a mirror takes writes, and how long each takes (docs/demo.md).
//!
//! It measures what an application gets: through the NBD socket, the whole way to both disks and back.
//! [`client`] is the NBD client, [`measure`] one measurement; this module chooses the mirror and prints.

use serde::Serialize;

pub mod client;
pub mod measure;

use super::demo::scratch::{MIRROR, PATIENCE, Scratch, Wanted};
use super::demo::{failure, signals};
use super::{Context, print_json, print_out};
use crate::args::BenchArgs;
use crate::exit::{DONE, Failure, Outcome, Status};
use crate::render::units;
use client::{Client, ClientError};
use measure::{Figures, Latencies, Plan};

/// What is printed with `--json`; fields are only ever added.
#[derive(Debug, Serialize)]
struct BenchReport {
    schema: u32,
    mirror: String,
    scratch: bool,
    protocol: Option<String>,
    connected: bool,
    block_bytes: u64,
    depth: u16,
    pattern: &'static str,
    flush_each: u64,
    offset_bytes: u64,
    range_bytes: u64,
    #[serde(flatten)]
    figures: Figures,
}

/// Measures.
///
/// # Errors
/// There is no such mirror here, its range is too small, or it fails.
pub fn run(context: &Context, args: &BenchArgs) -> Outcome {
    if args.block == 0 || !args.block.is_multiple_of(512) || args.block > client::LONGEST as u64 {
        return Err(Failure::usage(format!(
            "bench: --block {}: not a size that is measured\n  next: give a multiple of 512 bytes up to {}",
            units::size(args.block),
            units::size(client::LONGEST as u64)
        )));
    }
    if args.range < args.block || !args.offset.is_multiple_of(args.block) {
        return Err(Failure::usage(
            "bench: the range has no room for a block, or does not begin at a multiple of one\n  next: give a larger --range, and an --offset that --block divides",
        ));
    }
    signals::watch()
        .map_err(|error| Failure::system(format!("bench: signals can't be watched: {error}")))?;
    let (figures, protocol, connected) = match &args.mirror {
        Some(name) => of_a_mirror(context, name, args)?,
        None => of_a_scratch_pair(args)?,
    };
    if signals::said_stop() {
        return Err(Failure::new(Status::Interrupted, "bench: interrupted"));
    }
    let report = BenchReport {
        schema: 1,
        mirror: args.mirror.clone().unwrap_or_else(|| MIRROR.to_owned()),
        scratch: args.mirror.is_none(),
        protocol,
        connected,
        block_bytes: args.block,
        depth: args.depth,
        pattern: if args.sequential {
            "sequential"
        } else {
            "random"
        },
        flush_each: args.flush_each,
        offset_bytes: args.offset,
        range_bytes: args.range,
        figures,
    };
    if args.json {
        print_json(&report)?;
    } else {
        print_out(&table(&report))?;
    }
    DONE
}

type Measured = (Figures, Option<String>, bool);

fn of_a_mirror(context: &Context, name: &str, args: &BenchArgs) -> Result<Measured, Failure> {
    let config = context.config()?;
    let mirror = config.mirror(name).ok_or_else(|| {
        Failure::refused(format!(
            "bench: there is no mirror {name} in {}\n  next: `kagami status` shows those there are",
            config.file.display()
        ))
    })?;
    let figures = measured(&mirror.nbd_socket, name, args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system(format!("bench: no runtime: {error}")))?;
    // What was measured stays good where the daemon can't be asked any more.
    let state = runtime.block_on(context.mirror(name)).ok();
    let connected = state.as_ref().is_some_and(super::demo::scratch::in_sync);
    Ok((figures, state.map(|state| state.protocol), connected))
}

fn of_a_scratch_pair(args: &BenchArgs) -> Result<Measured, Failure> {
    let folder = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = std::path::absolute(&folder)
        .map_err(|error| Failure::system(format!("bench: {}: {error}", folder.display())))?
        .join(format!("kagami-bench-{}", std::process::id()));
    let wanted = Wanted {
        folder,
        size: (args.offset + args.range)
            .next_multiple_of(64 << 20)
            .to_string(),
        protocol: args.protocol.clone(),
        solo: "never".to_owned(),
    };
    let mut pair =
        super::demo::make_pair(&wanted, args.no_peer).map_err(|error| failure(&error))?;
    let socket = Scratch::socket(&pair.alpha).map_err(|error| failure(&error))?;
    let figures = measured(&socket, MIRROR, args)?;
    let state = pair.alpha.mirror(MIRROR).map_err(|error| failure(&error))?;
    Ok((
        figures,
        Some(state.protocol.clone()),
        super::demo::scratch::in_sync(&state),
    ))
}

fn measured(socket: &std::path::Path, export: &str, args: &BenchArgs) -> Result<Figures, Failure> {
    let words = |error: &ClientError| {
        let next = match error {
            ClientError::Broken { .. } => "is the daemon running (`kagami status`)?",
            ClientError::Refused { .. } => "is this node Primary (`kagami promote`)?",
            _ => "`kagami status` shows the mirror's state, the daemon's log the reason",
        };
        Failure::refused(format!("bench: {error}\n  next: {next}"))
    };
    let mut client = Client::connect(socket, export, PATIENCE).map_err(|error| words(&error))?;
    let range = args.offset..args.offset + args.range / args.block * args.block;
    if range.end > client.size() {
        return Err(Failure::usage(format!(
            "bench: the range ends at {}, and mirror {export} has {}\n  next: give a smaller --range or --offset",
            units::size(range.end),
            units::size(client.size())
        )));
    }
    let plan = Plan {
        range,
        block: args.block as usize,
        depth: usize::from(args.depth),
        random: !args.sequential,
        flush_each: args.flush_each,
        time: args.time,
    };
    if !args.no_prepare {
        measure::prepare(&mut client, &plan.range, signals::flag())
            .map_err(|error| words(&error))?;
    }
    let figures =
        measure::measure(&mut client, &plan, signals::flag()).map_err(|error| words(&error))?;
    client.disconnect();
    Ok(figures)
}

fn table(report: &BenchReport) -> String {
    let figures = &report.figures;
    let row = |name: &str, latencies: &Latencies| {
        if latencies.count == 0 {
            return String::new();
        }
        let ms = |ns: u64| format!("{:.3}", ns as f64 / 1e6);
        format!(
            "  {name:<6} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
            units::count(latencies.count),
            ms(latencies.mean_ns),
            ms(latencies.p50_ns),
            ms(latencies.p90_ns),
            ms(latencies.p99_ns),
            ms(latencies.p999_ns),
            ms(latencies.max_ns)
        )
    };
    format!(
        "mirror {}{}   {} writes of {}, depth {}{}   protocol {}, {}\n\
         {} writes/s   {}   for {:.1} s\n\n\
         \x20 ms          count      mean       p50       p90       p99     p99.9       max\n{}{}",
        report.mirror,
        if report.scratch { " (scratch)" } else { "" },
        report.pattern,
        units::size(report.block_bytes),
        report.depth,
        match report.flush_each {
            0 => String::new(),
            1 => ", a flush after each".to_owned(),
            n => format!(", a flush after each {n}"),
        },
        report.protocol.as_deref().unwrap_or("unknown"),
        if report.connected {
            "both copies"
        } else {
            "this copy alone"
        },
        units::count(figures.writes_per_second.round() as u64),
        units::rate(figures.bytes_per_second),
        figures.seconds,
        row("write", &figures.write),
        row("flush", &figures.flush),
    )
}
