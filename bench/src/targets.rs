//! The targets: what kagami is to reach beside its limit and beside qemu, job by job, in one run.
//!
//! They are told, pass or miss, with the figure; nothing fails because of them, for times belong to a
//! machine and a moment.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::job::{Job, MIDDLE, READ, READ_DEEP, SEQUENTIAL, SMALL, SMALL_DEEP, SMALL_FLUSHED};
use crate::limit::{DISK, Parts};
use crate::mirror::{ALONE, AWAY, PAIR};
use crate::peers::{LOCAL, QUORUM_X509};
use crate::rounds::{Row, Summary};

/// One target of one job.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    job: String,
    what: String,
    /// At least, or at most.
    least: bool,
    wanted: f64,
    got: f64,
}

impl Target {
    fn is_met(&self) -> bool {
        if self.least {
            self.got >= self.wanted
        } else {
            self.got <= self.wanted
        }
    }
}

/// What is asked of the pair's rate beside others'.
struct Beside {
    job: Job,
    /// Times qemu's quorum with x509.
    quorum: f64,
    /// Times qemu serving one local file.
    local: f64,
}

const BESIDE: [Beside; 7] = [
    beside(SMALL, 2.5, 1.0),
    beside(SMALL_FLUSHED, 2.5, 1.0),
    beside(SMALL_DEEP, 4.0, 1.3),
    beside(MIDDLE, 2.0, 1.0),
    beside(SEQUENTIAL, 1.3, 0.8),
    beside(READ, 1.5, 1.2),
    beside(READ_DEEP, 1.5, 1.2),
];

const fn beside(job: Job, quorum: f64, local: f64) -> Beside {
    Beside { job, quorum, local }
}

/// Every target that these rows allow to be computed. `in_memory`: the files lie in memory, where a disk's
/// own rate says nothing and the processors' time everything.
pub fn of(rows: &[Row], cores: usize, in_memory: bool) -> Vec<Target> {
    let mut all = Vec::new();
    for Beside { job, quorum, local } in BESIDE {
        let name = job.name();
        let rows: BTreeMap<&str, &Summary> = rows
            .iter()
            .filter(|row| row.series.job == name)
            .map(|row| (row.series.candidate.as_str(), &row.summary))
            .collect();
        let mut add = |what: &str, least: bool, wanted: f64, got: f64| {
            if got.is_finite() {
                all.push(Target {
                    job: name.clone(),
                    what: what.to_owned(),
                    least,
                    wanted,
                    got,
                });
            }
        };
        let Some(pair) = rows.get(PAIR) else { continue };
        let rate = pair.rate.median;
        let times = |name: &str| rows.get(name).map(|row| rate / row.rate.median);
        if let Some(parts) = Parts::of(&rows) {
            beside_limit(&mut add, job, pair, &parts, cores, in_memory);
        }
        if let (READ | READ_DEEP, Some(times)) = (job, times(ALONE)) {
            add("op/s ÷ a mirror without a peer", true, 0.9, times);
        }
        if let Some(times) = times(QUORUM_X509) {
            // The disk takes each write twice: more than half its rate is not to be had.
            let cap = rows.get(DISK).filter(|_| job == SMALL_DEEP);
            let cap = cap.map_or(f64::INFINITY, |disk| {
                disk.rate.median / 2.0 / (rate / times)
            });
            let what = if cap < quorum {
                "op/s ÷ quorum with x509 (what half the disk's rate allows)"
            } else {
                "op/s ÷ quorum with x509"
            };
            add(what, true, quorum.min(cap), times);
        }
        if let Some(times) = times(LOCAL) {
            add("op/s ÷ qemu serving one file", true, local, times);
        }
        if let (Some(away), Some(alone)) = (rows.get(AWAY), rows.get(ALONE)) {
            let got = away.rate.median / alone.rate.median;
            add("op/s with the peer away ÷ without a peer", true, 0.9, got);
        }
    }
    all
}

fn beside_limit(
    add: &mut impl FnMut(&str, bool, f64, f64),
    job: Job,
    pair: &Summary,
    parts: &Parts,
    cores: usize,
    in_memory: bool,
) {
    let rate = pair.rate.median;
    match job {
        SMALL | SMALL_FLUSHED => {
            let most = if job == SMALL { 1.2 } else { 1.3 };
            add(
                "p50 ÷ limit",
                false,
                most,
                pair.p50.median / parts.latency(),
            );
            if job == SMALL {
                add(
                    "p99 ÷ its p50",
                    false,
                    3.0,
                    pair.p99.median / pair.p50.median,
                );
            }
        }
        SMALL_DEEP if in_memory => {
            let got = crate::limit::processor(pair) / parts.processor();
            add("CPU ÷ the parts' CPU", false, 1.1, got);
        }
        SMALL_DEEP => add(
            "op/s ÷ half the disk's",
            true,
            0.85,
            rate / parts.half_disk(),
        ),
        MIDDLE => add(
            "op/s ÷ the slowest part",
            true,
            0.85,
            rate / parts.slowest(),
        ),
        SEQUENTIAL => {
            let limit = parts.slowest().min(parts.busy(cores));
            let what = "op/s ÷ limit (slowest part, or the cores ÷ the parts' CPU)";
            add(what, true, 0.85, rate / limit);
        }
        _ => {}
    }
}

/// The table, in Markdown.
pub fn table(all: &[Target]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let met = all.iter().filter(|target| target.is_met()).count();
    let mut text = format!(
        "\nTargets: {met} of {} met\n\n| job | target | wanted | got | |\n|---|---|---:|---:|---|\n",
        all.len()
    );
    for target in all {
        let _ = writeln!(
            text,
            "| {} | {} | {} {:.2} | {:.2} | {} |",
            target.job,
            target.what,
            if target.least { "≥" } else { "≤" },
            target.wanted,
            target.got,
            if target.is_met() { "pass" } else { "**miss**" }
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Sample;
    use crate::limit::{FRONT_END, LINK};
    use crate::rounds::Series;

    fn row(job: Job, candidate: &str, rate: f64, p50: f64) -> Row {
        let sample = Sample {
            rate,
            p50,
            p99: 2.0 * p50,
            cpu: [("all".to_owned(), 10.0)].into(),
            ..Sample::default()
        };
        Row::from(Series {
            job: job.name(),
            shape: job,
            candidate: candidate.to_owned(),
            samples: vec![sample],
        })
    }

    #[test]
    fn targets_are_met_or_missed_by_their_ratios() {
        let rows = [
            row(SMALL, FRONT_END, 25_000.0, 40.0),
            row(SMALL, DISK, 20_000.0, 50.0),
            row(SMALL, LINK, 15_000.0, 60.0),
            row(SMALL, QUORUM_X509, 3_000.0, 300.0),
            row(SMALL, PAIR, 6_000.0, 150.0),
            row(READ, PAIR, 10_000.0, 90.0),
            row(READ, ALONE, 10_500.0, 90.0),
        ];
        let all = of(&rows, 2, false);
        let told: Vec<(f64, bool)> = all.iter().map(|t| (t.got, t.is_met())).collect();
        assert_eq!(told[0], (1.0, true), "limit");
        assert_eq!(told[1], (2.0, true), "p99");
        assert_eq!(told[2], (2.0, false), "quorum");
        assert!(told[3].1 && told.len() == 4, "{told:?}");
        let text = table(&all);
        assert!(
            text.contains("3 of 4 met") && text.contains("**miss**"),
            "{text}"
        );
    }

    #[test]
    fn half_a_disk_caps_what_is_asked() {
        let rows = [
            row(SMALL_DEEP, DISK, 60_000.0, 1.0),
            row(SMALL_DEEP, QUORUM_X509, 10_000.0, 1.0),
            row(SMALL_DEEP, PAIR, 29_000.0, 1.0),
        ];
        let all = of(&rows, 2, false);
        assert!(
            (all[0].wanted - 3.0).abs() < 1e-9 && !all[0].is_met(),
            "{all:?}"
        );
    }
}
