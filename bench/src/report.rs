//! `kagami-bench report`: kept measurements become tables and plots in docs/.
//!
//! A table goes between two comments of docs/performance.md that name what it is made from; everything
//! around them is people's. Plots are files of docs/plots.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::compare::{self, Kept};
use crate::error::BenchError;
use crate::job::{Job, READ_DEEP, SMALL, SMALL_DEEP, SMALL_FLUSHED, size};
use crate::memory::{self, Held};
use crate::metadata::{self, Cost};
use crate::mirror::PAIR;
use crate::resync::{self, Resync};
use crate::rounds::{Row, Spread};
use crate::setting::{Document, Kind};
use crate::svg::{Axis, Line, Plot, Scale};

/// What is read, and where what is made goes.
#[derive(Args)]
pub struct Report {
    /// Files that --json kept
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The folder with performance.md
    #[arg(long, default_value = "docs")]
    docs: PathBuf,
}

/// The page in it.
const PAGE: &str = "performance.md";
/// The folder of plots in it.
const PLOTS: &str = "plots";

/// Makes everything that the files allow.
///
/// # Errors
/// A file can't be read, or the page has no place for what is in it.
pub fn make(report: &Report) -> Result<(), BenchError> {
    let page = report.docs.join(PAGE);
    let mut text = fs::read_to_string(&page).map_err(BenchError::io(page.display().to_string()))?;
    for file in &report.files {
        let document: Document<Value> = Document::read(file)?;
        let made = Made::of(&document).map_err(|error| BenchError::NotKept {
            file: file.display().to_string(),
            words: error.to_string(),
        })?;
        let in_memory = document.setting.file_system == "tmpfs";
        let section = section(document.kind, in_memory);
        let body = format!("{}\n{}", document.setting.text(), made.text.trim_end());
        text = placed(&text, section, &body).ok_or_else(|| BenchError::NoPlace {
            page: page.clone(),
            section: section.to_owned(),
        })?;
        println!("{}: {section}", page.display());
        // The plots are of the disk's run.
        if !in_memory {
            write_plots(&report.docs.join(PLOTS), &made.plots)?;
        }
    }
    fs::write(&page, text).map_err(BenchError::io(page.display().to_string()))
}

fn write_plots(folder: &Path, plots: &[(&str, Plot)]) -> Result<(), BenchError> {
    fs::create_dir_all(folder).map_err(BenchError::io(folder.display().to_string()))?;
    for (name, plot) in plots {
        let path = folder.join(format!("{name}.svg"));
        fs::write(&path, plot.svg()).map_err(BenchError::io(path.display().to_string()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// What a file's place on the page is called.
fn section(kind: Kind, in_memory: bool) -> &'static str {
    match kind {
        Kind::Comparison if in_memory => "comparison in memory",
        Kind::Comparison => "comparison",
        Kind::Sweep => "sweep",
        Kind::Resync => "resync",
        Kind::Metadata => "metadata",
        Kind::Memory => "memory",
        Kind::Costs => "costs",
        Kind::Link => "link",
    }
}

/// The page with `body` between the two comments of that section, in place of what was there.
fn placed(page: &str, section: &str, body: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- kagami-bench report: {section} -->\n"),
        "<!-- end of report -->",
    );
    let (before, rest) = page.split_once(&begin)?;
    let after = &rest[rest.find(end)?..];
    Some(format!("{before}{begin}\n{body}\n\n{after}"))
}

/// What a file gives.
struct Made {
    text: String,
    plots: Vec<(&'static str, Plot)>,
}

impl Made {
    fn of(document: &Document<Value>) -> Result<Self, serde_json::Error> {
        let results = document.results.clone();
        let text = |text| Self {
            text,
            plots: Vec::new(),
        };
        Ok(match document.kind {
            Kind::Comparison => {
                let kept: Kept = serde_json::from_value(results)?;
                Self {
                    text: compare::text(&kept, &document.setting),
                    plots: latencies(&kept.rows),
                }
            }
            Kind::Sweep => {
                let kept: Kept = serde_json::from_value(results)?;
                Self {
                    text: sweep_table(&kept.rows),
                    plots: sweeps(&kept.rows),
                }
            }
            Kind::Resync => {
                let kept: Resync = serde_json::from_value(results)?;
                Self {
                    text: resync::text(&kept),
                    plots: resyncs(&kept),
                }
            }
            Kind::Metadata => {
                let kept: Vec<Cost> = serde_json::from_value(results)?;
                text(metadata::table(&kept))
            }
            Kind::Memory => {
                let kept: Vec<Held> = serde_json::from_value(results)?;
                text(memory::table(&kept))
            }
            Kind::Costs => {
                let kept: Vec<crate::costs::Cost> = serde_json::from_value(results)?;
                text(crate::costs::table(&kept))
            }
            Kind::Link => {
                let kept: Vec<crate::link::Cell> = serde_json::from_value(results)?;
                text(crate::link::table(&kept))
            }
        })
    }
}

fn axis(label: &str, scale: Scale) -> Axis {
    Axis {
        label: label.to_owned(),
        scale,
        ticks: Vec::new(),
    }
}

/// Latency over percentiles, a plot for each job.
fn latencies(rows: &[Row]) -> Vec<(&'static str, Plot)> {
    let plots = [
        (SMALL, "latency-write"),
        (SMALL_FLUSHED, "latency-write-flush"),
        (SMALL_DEEP, "latency-write-deep"),
        (READ_DEEP, "latency-read-deep"),
    ];
    let plot = |job: Job| Plot {
        title: format!("{}: answered within", job.name()),
        x: axis("% of the operations", Scale::Percentile),
        y: axis("µs", Scale::Log),
        lines: rows
            .iter()
            .filter(|row| row.series.shape == job)
            .map(|row| line(&row.series.candidate, percentiles(row)))
            .collect(),
        marks: Vec::new(),
    };
    plots
        .into_iter()
        .map(|(job, name)| (name, plot(job)))
        .filter(|(_, plot)| !plot.lines.is_empty())
        .collect()
}

/// The medians of each percentile over the rounds.
fn percentiles(row: &Row) -> Vec<(f64, f64)> {
    let samples = &row.series.samples;
    let Some(first) = samples.first() else {
        return Vec::new();
    };
    first
        .percentiles
        .iter()
        .enumerate()
        .map(|(at, (percent, _))| {
            let values = samples
                .iter()
                .filter_map(|sample| sample.percentiles.get(at));
            (*percent, Spread::of(values.map(|(_, time)| *time)).median)
        })
        .collect()
}

fn line(name: &str, points: Vec<(f64, f64)>) -> Line {
    Line {
        strong: name == PAIR,
        name: name.to_owned(),
        points,
    }
}

/// The names of candidates, in their order.
fn candidates(rows: &[&Row]) -> Vec<String> {
    let mut names = Vec::new();
    for row in rows {
        if !names.contains(&row.series.candidate) {
            names.push(row.series.candidate.clone());
        }
    }
    names
}

/// The depths and the block sizes of a sweep.
fn halves(rows: &[Row]) -> [Vec<&Row>; 2] {
    let (depths, sizes) = rows
        .iter()
        .partition(|row| row.series.shape.pattern == SMALL.pattern);
    [depths, sizes]
}

fn sweeps(rows: &[Row]) -> Vec<(&'static str, Plot)> {
    let [depths, sizes] = halves(rows);
    let lines = |rows: &[&Row], point: &dyn Fn(&Row) -> (f64, f64)| {
        candidates(rows)
            .into_iter()
            .map(|name| {
                let points = rows.iter().filter(|row| row.series.candidate == name);
                line(&name, points.map(|row| point(row)).collect())
            })
            .collect()
    };
    let mut depth = axis("writes in flight", Scale::Log);
    depth.ticks = (0..8).map(|power| f64::from(1 << power)).collect();
    let mut kibibytes = axis("KiB of each write", Scale::Log);
    kibibytes.ticks = (2..=12)
        .step_by(2)
        .map(|power| f64::from(1 << power))
        .collect();
    vec![
        (
            "iops-over-depth",
            Plot {
                title: "4 KiB random writes a second".to_owned(),
                x: depth,
                y: axis("writes a second", Scale::Log),
                lines: lines(&depths, &|row| {
                    (row.series.shape.depth as f64, row.summary.rate.median)
                }),
                marks: Vec::new(),
            },
        ),
        (
            "throughput-over-size",
            Plot {
                title: "sequential writes, depth 4: MB/s".to_owned(),
                x: kibibytes,
                y: axis("MB/s", Scale::Log),
                lines: lines(&sizes, &|row| {
                    (f64::from(row.series.shape.len >> 10), row.summary.megabytes)
                }),
                marks: Vec::new(),
            },
        ),
    ]
}

/// A line for each candidate, a column for each depth, and so for block sizes.
fn sweep_table(rows: &[Row]) -> String {
    let mut text = String::new();
    let [depths, sizes] = halves(rows);
    for (rows, what, head, value) in [
        (
            depths,
            "4 KiB random write, op/s at depth",
            (|row: &Row| row.series.shape.depth.to_string()) as fn(&Row) -> String,
            (|row: &Row| row.summary.rate.median) as fn(&Row) -> f64,
        ),
        (
            sizes,
            "sequential write, depth 4, MB/s at",
            |row| size(row.series.shape.len),
            |row| row.summary.megabytes,
        ),
    ] {
        let mut heads: Vec<String> = Vec::new();
        for row in &rows {
            if !heads.contains(&head(row)) {
                heads.push(head(row));
            }
        }
        let _ = write!(
            text,
            "\n| {what} | {} |\n|---|{}\n",
            heads.join(" | "),
            "---:|".repeat(heads.len())
        );
        for name in candidates(&rows) {
            let values: Vec<String> = heads
                .iter()
                .map(|wanted| {
                    let cell = rows
                        .iter()
                        .find(|row| row.series.candidate == name && head(row) == *wanted);
                    cell.map_or_else(String::new, |row| format!("{:.0}", value(row)))
                })
                .collect();
            let _ = writeln!(text, "| {name} | {} |", values.join(" | "));
        }
    }
    text
}

fn resyncs(kept: &Resync) -> Vec<(&'static str, Plot)> {
    let points =
        |looks: &[resync::busy::Look]| looks.iter().map(|look| (look.at, look.done)).collect();
    let busy = &kept.busy;
    let windows = |value: fn(&resync::busy::Window) -> f64| {
        busy.windows
            .iter()
            .map(|window| (window.at, value(window)))
            .collect()
    };
    let end = busy.windows.last().map_or(1.0, |window| window.at);
    let mut marks = Vec::new();
    if let Some(reached) = busy.summary().reached {
        marks.push((reached, "reached".to_owned()));
    }
    vec![
        (
            "resync-over-time",
            Plot {
                title: "marked blocks resynchronised over time".to_owned(),
                x: axis("seconds", Scale::Linear),
                y: axis("MB", Scale::Linear),
                lines: vec![
                    line("idle", points(&busy.idle)),
                    line("beside 4 KiB writes, depth 8", points(&busy.looks)),
                ],
                marks: Vec::new(),
            },
        ),
        (
            "latency-during-resync",
            Plot {
                title: "4 KiB writes at depth 8 during a resynchronisation".to_owned(),
                x: axis("seconds since the writes began", Scale::Linear),
                y: axis("µs, in pieces of 100 ms", Scale::Log),
                lines: vec![
                    line("p99", windows(|window| window.p99)),
                    line("p50", windows(|window| window.p50)),
                    line(
                        "p99 without",
                        vec![(0.0, busy.before.p99), (end, busy.before.p99)],
                    ),
                    line(
                        "p50 without",
                        vec![(0.0, busy.before.p50), (end, busy.before.p50)],
                    ),
                ],
                marks,
            },
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_rest_stays() {
        let page = "a\n<!-- kagami-bench report: sweep -->\nold\n<!-- end of report -->\nb\n\
                    <!-- kagami-bench report: link -->\n<!-- end of report -->\n";
        let new = placed(page, "sweep", "new").expect("there is a place");
        assert!(new.starts_with("a\n") && new.contains("\nnew\n") && !new.contains("old"));
        assert!(
            new.contains("-->\nb\n<!-- kagami-bench report: link -->\n<!-- end of report -->\n")
        );
        assert_eq!(placed(&new, "sweep", "new").as_deref(), Some(new.as_str()));
        assert_eq!(placed(page, "memory", "new"), None);
    }
}
