//! Where and when something was measured, and the JSON that keeps it.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::candidate::Network;
use crate::error::BenchError;
use crate::namespace;

/// The version of the JSON; fields are only ever added.
const SCHEMA: u32 = 1;

/// Where and when something was measured, and by which command.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
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
    /// The network under everything that goes over loopback, in words.
    pub network: String,
    /// Load average of the minute before.
    pub load: f64,
}

impl Setting {
    /// Here and now.
    pub fn here(dir: &Path, network: Network) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
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
        let arguments: Vec<String> = std::env::args()
            .skip(1)
            .filter(|word| word != namespace::INSIDE)
            .collect();
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
            network: match network {
                Network::Own => {
                    "a network namespace of its own; TCP acknowledges at once".to_owned()
                }
                Network::Machine => "the machine's own loopback".to_owned(),
            },
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
            "{}; {} cores ({}), {:.0} GiB, {}, {}; {}; load before: {}\n`{}`\n",
            self.date,
            self.cores,
            self.processor,
            self.memory as f64 / f64::from(1 << 30),
            self.kernel,
            self.file_system,
            self.network,
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

/// What a file of measurements holds, by the command that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Candidates at the jobs of the main table.
    Comparison,
    /// Candidates over depths and block sizes.
    Sweep,
    /// Outages, and a resynchronisation beside an application's load.
    Resync,
    /// Metadata writes.
    Metadata,
    /// Memory.
    Memory,
    /// System calls.
    Costs,
    /// Delayed and lossy links.
    Link,
}

/// A file of measurements.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document<T> {
    /// What it holds.
    pub kind: Kind,
    /// Where and when.
    pub setting: Setting,
    /// What.
    pub results: T,
}

impl<T: Serialize> Document<T> {
    /// Writes it where the user wants it; a file that is there stays whole until the new one is.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: Option<&Path>) -> Result<(), BenchError> {
        let Some(path) = path else {
            return Ok(());
        };
        let fault = || BenchError::io(path.display().to_string());
        let text = serde_json::to_string_pretty(self).expect("plain data is JSON");
        let new = path.with_extension("new");
        fs::write(&new, text + "\n").map_err(fault())?;
        fs::rename(&new, path).map_err(fault())
    }
}

impl<T: DeserializeOwned> Document<T> {
    /// Reads a file.
    ///
    /// # Errors
    /// It is not there, or is no file of this kind.
    pub fn read(path: &Path) -> Result<Self, BenchError> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(BenchError::io(name.clone()))?;
        serde_json::from_str(&text).map_err(|error| BenchError::NotKept {
            file: name,
            words: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_the_nearest_mount() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /nowhere rw - tmpfs tmpfs rw\n";
        assert_eq!(file_system(mounts, Path::new("/nowhere/else")), "tmpfs");
        assert_eq!(file_system(mounts, Path::new("/elsewhere")), "ext4");
    }

    #[test]
    fn what_was_written_can_be_read() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("kept.json");
        let document = Document {
            kind: Kind::Metadata,
            setting: Setting::here(folder.path(), Network::Machine),
            results: vec![1_u32, 2],
        };
        document.write(Some(&path)).expect("it can be written");
        let read: Document<Vec<u32>> = Document::read(&path).expect("it can be read");
        assert_eq!((read.kind, read.results), (Kind::Metadata, vec![1, 2]));
        assert_eq!(read.setting.date, document.setting.date);
        fs::write(&path, "{}").expect("it can be written");
        let error = Document::<u32>::read(&path).expect_err("nothing is in it");
        assert!(error.to_string().contains("kept.json"), "{error}");
    }
}
