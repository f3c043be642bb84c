//! The comparisons: which candidates, at which jobs, kept as they come.
//!
//! What is measured is written to the file of `--json` after every job; a run that was cut goes on from
//! there with `--resume`.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::candidate::{Candidate, Room};
use crate::error::BenchError;
use crate::job::{BLOCK, JOBS, Job};
use crate::limit;
use crate::limit::crypto::{self, Throughput};
use crate::mirror::{self, Peer};
use crate::peers;
use crate::rounds::{self, Row};
use crate::setting::{Document, Kind, Setting};
use crate::{tables, targets};

/// How a comparison is made.
#[derive(Args)]
pub struct Comparison {
    /// Runs of each job with each candidate
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 1.5, value_parser = seconds)]
    seconds: f64,
    /// Only jobs whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Only candidates whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    candidates: Vec<String>,
    /// Keep the jobs that the file of --json has already, of a run that was cut
    #[arg(long, requires = "json")]
    resume: bool,
}

/// A number of seconds, as people write it.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.1 to 3600".to_owned()),
    }
}

/// What is kept of a comparison.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    /// A row for each job and candidate.
    pub rows: Vec<Row>,
    /// Checksums and encryption by themselves.
    #[serde(default)]
    pub crypto: Vec<Throughput>,
}

type Candidates = Vec<Box<dyn Candidate>>;
/// Sets some candidates up.
pub type Group = fn(&Room) -> Result<Candidates, BenchError>;

/// kagami's parts.
///
/// # Errors
/// One does not come up.
pub fn limits(room: &Room) -> Result<Candidates, BenchError> {
    room.check(1)?;
    Ok(vec![
        Box::new(limit::disk::BareDisk::new(room)?),
        Box::new(limit::link::BareLink),
        Box::new(limit::front_end::candidate(room)?),
    ])
}

/// Others.
///
/// # Errors
/// As [`limits`].
pub fn others(room: &Room) -> Result<Candidates, BenchError> {
    peers::candidates(room)
}

/// kagami.
///
/// # Errors
/// As [`limits`].
pub fn mirrors(room: &Room) -> Result<Candidates, BenchError> {
    room.check(5)?;
    [Peer::None, Peer::Away, Peer::There]
        .into_iter()
        .map(|peer| Ok(Box::new(mirror::candidate(room, peer)?) as Box<dyn Candidate>))
        .collect()
}

/// Measures the jobs of the main table.
///
/// # Errors
/// A candidate fails.
pub fn main_table(
    room: &Room,
    how: &Comparison,
    setting: &Setting,
    json: Option<&Path>,
    groups: &[Group],
) -> Result<(), BenchError> {
    let with_limits = groups.contains(&(limits as Group));
    let crypto = if with_limits {
        crypto::measure()?
    } else {
        Vec::new()
    };
    let kept = run(
        room,
        how,
        setting,
        json,
        (Kind::Comparison, groups, &JOBS),
        crypto,
    )?;
    println!("{}", text(&kept, setting));
    Ok(())
}

/// Measures over depths and block sizes.
///
/// # Errors
/// A candidate fails.
pub fn sweep(
    room: &Room,
    how: &Comparison,
    setting: &Setting,
    json: Option<&Path>,
) -> Result<(), BenchError> {
    let mut jobs: Vec<Job> = (0..8)
        .map(|power| Job::write(BLOCK as u32, 1 << power))
        .collect();
    jobs.extend(
        (12..=22)
            .step_by(2)
            .map(|power| Job::write(1 << power, 4).in_order()),
    );
    let kept = run(
        room,
        how,
        setting,
        json,
        (Kind::Sweep, &[peers::few, mirrors], &jobs),
        Vec::new(),
    )?;
    println!("{}", text(&kept, setting));
    Ok(())
}

/// Everything that a comparison says, in Markdown.
pub fn text(kept: &Kept, setting: &Setting) -> String {
    let mut text = tables::tables(&kept.rows);
    if !kept.crypto.is_empty() {
        text += &crypto::table(&kept.crypto);
    }
    let in_memory = matches!(setting.file_system.as_str(), "tmpfs" | "ramfs");
    text + &targets::table(&targets::of(&kept.rows, setting.cores, in_memory))
}

fn run(
    room: &Room,
    how: &Comparison,
    setting: &Setting,
    json: Option<&Path>,
    (kind, groups, jobs): (Kind, &[Group], &[Job]),
    crypto: Vec<Throughput>,
) -> Result<Kept, BenchError> {
    let mut document = Document {
        kind,
        setting: setting.clone(),
        results: Kept {
            rows: Vec::new(),
            crypto,
        },
    };
    if let Some(path) = json.filter(|path| how.resume && path.exists()) {
        let before: Document<Kept> = Document::read(path)?;
        document.results.rows = before.results.rows;
    }
    let only = how.only.as_deref().unwrap_or_default();
    let jobs: Vec<&Job> = jobs
        .iter()
        .filter(|job| {
            let name = job.name();
            let done = document
                .results
                .rows
                .iter()
                .any(|row| row.series.job == name);
            name.contains(only) && !done
        })
        .collect();
    if jobs.is_empty() {
        eprintln!("nothing is left to measure; without --resume everything is measured anew");
        return Ok(document.results);
    }
    let mut candidates = Vec::new();
    for group in groups {
        eprintln!("setting up: each file is written whole");
        candidates.append(&mut group(room)?);
    }
    if !how.candidates.is_empty() {
        candidates.retain(|c| how.candidates.iter().any(|name| c.name().contains(name)));
    }
    let time = Duration::from_secs_f64(how.seconds);
    let runs: usize = jobs
        .iter()
        .map(|job| candidates.iter().filter(|c| c.takes(job)).count() * how.rounds as usize)
        .sum();
    let (began, mut done) = (Instant::now(), 0);
    for job in jobs {
        let all = rounds::alternate(&mut candidates, job, how.rounds, time, |name, sample| {
            done += 1;
            let left =
                began.elapsed().as_secs_f64() / f64::from(done) * (runs as f64 - f64::from(done));
            eprintln!(
                "[{done}/{runs}, {:.0} min left] {:46} {name:30} {:9.0} op/s  p50 {:8.1} us  p99 {:8.1} us",
                (left / 60.0).ceil(),
                job.name(),
                sample.rate,
                sample.p50,
                sample.p99
            );
        })?;
        document.results.rows.extend(all.into_iter().map(Row::from));
        document.write(json)?;
    }
    Ok(document.results)
}
