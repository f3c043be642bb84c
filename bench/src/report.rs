//! The tables that people read, and the JSON that programs read. Both say where and when.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::error::BenchError;
use crate::rounds::{Series, Spread, Summary};

/// The version of the JSON; fields are only ever added.
const SCHEMA: u32 = 1;

/// Where and when something was measured, and by which command.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// [`SCHEMA`]
    pub schema: u32,
    /// UTC.
    pub date: String,
    /// As it was typed.
    pub command: String,
    /// Processors that this program may use.
    pub cores: usize,
    /// Their model.
    pub processor: String,
    /// Bytes.
    pub memory: u64,
    /// Name and release.
    pub kernel: String,
    /// Type of the file system that the test files lie on.
    pub file_system: String,
    /// Load average of the minute before.
    pub load: f64,
}

impl Setting {
    /// Here and now.
    pub fn here(dir: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim_start_matches([':', ' ', '\t']).trim().to_owned())
                .unwrap_or_default()
        };
        let uname = rustix::system::uname();
        let kilobytes = field(&read("/proc/meminfo"), "MemTotal");
        let kilobytes = kilobytes.trim_end_matches(" kB").parse().unwrap_or(0_u64);
        let now = jiff::Timestamp::now();
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        Self {
            schema: SCHEMA,
            date: now.strftime("%Y-%m-%d %H:%M UTC").to_string(),
            command: format!("kagami-bench {}", arguments.join(" ")),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            memory: kilobytes << 10,
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy()
            ),
            file_system: file_system(&read("/proc/self/mountinfo"), dir),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or(0.0),
        }
    }

    /// Two lines above a table.
    pub fn text(&self) -> String {
        format!(
            "{}; {} cores ({}), {:.0} GiB, {}, {}; load before: {}\n`{}`\n",
            self.date,
            self.cores,
            self.processor,
            self.memory as f64 / f64::from(1 << 30),
            self.kernel,
            self.file_system,
            self.load,
            self.command
        )
    }
}

/// The type of the file system that `dir` is on, from the kernel's list of mounts.
fn file_system(mounts: &str, dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    mounts
        .lines()
        .filter_map(|line| {
            let (mount, rest) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?;
            dir.starts_with(point)
                .then_some((point.len(), rest.split(' ').next()?))
        })
        // The last of equal ones is mounted on top.
        .max_by_key(|(len, _)| *len)
        .map_or_else(String::new, |(_, kind)| kind.to_owned())
}

/// Everything, as JSON.
#[derive(Debug, Serialize)]
pub struct Document<'a, T> {
    /// Where and when.
    pub setting: &'a Setting,
    /// What.
    pub results: T,
}

/// A series beside its medians.
#[derive(Debug, Serialize)]
pub struct Row<'a> {
    /// All samples.
    #[serde(flatten)]
    pub series: &'a Series,
    /// The medians.
    pub summary: Summary,
}

/// Writes a document where the user wants it.
///
/// # Errors
/// The file can't be written.
pub fn write_json<T: Serialize>(
    path: &Path,
    setting: &Setting,
    results: T,
) -> Result<(), BenchError> {
    let text =
        serde_json::to_string_pretty(&Document { setting, results }).expect("plain data is JSON");
    std::fs::write(path, text + "\n").map_err(BenchError::io(path.display().to_string()))
}

/// The names that ratios are made from.
const PAIR: &str = "kagami, pair";
const ALONE: &str = "kagami, no peer";
const DISK: &str = "bare disk, kagami's ring";
const LINK: &str = "bare link, kagami's QUIC";
const FRONT_END: &str = "front end, null device";

/// The tables, in Markdown: one for each job, then what they come to.
pub fn tables(all: &[Series]) -> String {
    let mut text = String::new();
    let mut jobs: Vec<&str> = all.iter().map(|series| series.job).collect();
    jobs.dedup();
    for job in jobs {
        let rows: Vec<(&str, Summary)> = all
            .iter()
            .filter(|series| series.job == job)
            .map(|series| (series.candidate, series.summary()))
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
    if let (Some(disk), Some(link), Some(front)) = (find(DISK), find(LINK), find(FRONT_END)) {
        // The local write ends within the remote one and its way there.
        let limit = front.p50.median + link.p50.median + disk.p50.median;
        let local = front.p50.median + disk.p50.median;
        let _ = write!(
            text,
            "- sum of the parts' p50: front end + disk {local:.0} µs, with the link {limit:.0} µs"
        );
        if let Some(alone) = find(ALONE) {
            let _ = write!(
                text,
                "; without a peer ÷ sum {:.2}",
                alone.p50.median / local
            );
        }
        if let Some(pair) = pair {
            let _ = write!(text, "; pair ÷ sum {:.2}", pair.p50.median / limit);
        }
        text.push('\n');
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
    use crate::job::Sample;

    fn series(candidate: &'static str, rate: f64, p50: f64) -> Series {
        let sample = Sample {
            rate,
            p50,
            ..Sample::default()
        };
        Series {
            job: "writes",
            candidate,
            samples: vec![sample],
        }
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

    #[test]
    fn the_file_system_is_the_nearest_mount() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /nowhere rw - tmpfs tmpfs rw\n";
        assert_eq!(file_system(mounts, Path::new("/nowhere/else")), "tmpfs");
        assert_eq!(file_system(mounts, Path::new("/elsewhere")), "ext4");
    }
}
