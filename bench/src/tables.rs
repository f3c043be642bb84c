//! The tables of a comparison: one for each job, with what its parts come to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::limit;
use crate::mirror::{ALONE, AWAY, PAIR};
use crate::rounds::{Row, Spread, Summary};

/// The tables, in Markdown: one for each job, then what they come to.
pub fn tables(all: &[Row]) -> String {
    let mut text = String::new();
    let mut jobs: Vec<&str> = all.iter().map(|row| row.series.job.as_str()).collect();
    jobs.dedup();
    for job in jobs {
        let rows: Vec<(&str, Summary)> = all
            .iter()
            .filter(|row| row.series.job == job)
            .map(|row| (row.series.candidate.as_str(), row.summary.clone()))
            .collect();
        table(&mut text, job, &rows);
    }
    text
}

fn table(text: &mut String, job: &str, rows: &[(&str, Summary)]) {
    let find = |name: &str| rows.iter().find(|row| row.0 == name).map(|row| &row.1);
    let pair = find(PAIR);
    let last = if pair.is_some() {
        " pair ÷ this |"
    } else {
        ""
    };
    let rule = if pair.is_some() { "---:|" } else { "" };
    let _ = writeln!(
        text,
        "\n**{job}**\n\n| candidate | op/s | least - most | MB/s | p50 µs | p99 µs | CPU µs/op |{last}\n|---|---:|---:|---:|---:|---:|---|{rule}"
    );
    for (name, summary) in rows {
        let Summary {
            rate,
            megabytes,
            p50,
            p99,
            cpu,
        } = summary;
        let _ = write!(
            text,
            "| {name} | {:.0} | {:.0} - {:.0} | {megabytes:.0} | {:.0} | {:.0} | {} |",
            rate.median,
            rate.min,
            rate.max,
            p50.median,
            p99.median,
            programs(cpu)
        );
        if let Some(pair) = pair {
            let _ = write!(text, " {:.2} |", pair.rate.median / rate.median);
        }
        text.push('\n');
    }
    text.push('\n');
    let ratio = |a: &Spread, b: &Spread| a.median / b.median;
    if let (Some(pair), Some(alone)) = (pair, find(ALONE)) {
        let _ = writeln!(
            text,
            "- with a peer ÷ without: p50 {:.2}, time for each operation {:.2}",
            ratio(&pair.p50, &alone.p50),
            ratio(&alone.rate, &pair.rate)
        );
    }
    if let (Some(away), Some(alone)) = (find(AWAY), find(ALONE)) {
        let _ = writeln!(
            text,
            "- with the peer away ÷ without a peer: operations a second {:.2}",
            ratio(&away.rate, &alone.rate)
        );
    }
    let named: BTreeMap<&str, &Summary> = rows.iter().map(|(name, row)| (*name, row)).collect();
    if let Some(parts) = limit::Parts::of(&named) {
        text.push_str(&parts.text(pair, find(ALONE)));
    }
}

/// `client 4.1, primary 20.3`
fn programs(cpu: &BTreeMap<String, f64>) -> String {
    let parts: Vec<String> = cpu
        .iter()
        .map(|(name, each)| format!("{name} {each:.1}"))
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{SMALL, Sample};
    use crate::rounds::Series;

    fn series(candidate: &'static str, rate: f64, p50: f64) -> Row {
        let sample = Sample {
            rate,
            p50,
            ..Sample::default()
        };
        Row::from(Series {
            job: SMALL.name(),
            shape: SMALL,
            candidate: candidate.to_owned(),
            samples: vec![sample],
        })
    }

    #[test]
    fn ratios_are_against_the_pair() {
        let text = tables(&[series(ALONE, 10_000.0, 90.0), series(PAIR, 5_000.0, 180.0)]);
        assert!(text.contains("| kagami, no peer | 10000 |"), "{text}");
        assert!(text.contains(" 0.50 |\n"), "{text}");
        assert!(
            text.contains("p50 2.00, time for each operation 2.00"),
            "{text}"
        );
        assert!(!tables(&[series(ALONE, 1.0, 1.0)]).contains("pair ÷ this"));
    }
}
