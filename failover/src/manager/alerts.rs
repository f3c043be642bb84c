//! What people are told: to the log, to a file of lines that are kept, and to whoever listens.
//!
//! The file is JSON, one alert a line; when it has [`FULL`] bytes it becomes `….1`, and what that
//! was `….2`, up to [`OLD`]. A disk that takes no line costs the line, and is told in the log.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use tokio::sync::broadcast;

use crate::clock;
use crate::config::Severity;
use crate::control::AlertReport;
use crate::core::Alert;

/// The file is put aside when it is longer, in bytes.
const FULL: u64 = 4 << 20;
/// So many files that were put aside are kept.
const OLD: u32 = 4;

/// Where alerts go.
#[derive(Clone, Debug)]
pub struct Alerts {
    node: String,
    lines: Sender<AlertReport>,
    listeners: broadcast::Sender<AlertReport>,
}

impl Alerts {
    /// Opens the file's writer, a thread of its own.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(node: &str, file: PathBuf) -> io::Result<Self> {
        let (lines, queue) = channel::<AlertReport>();
        thread::Builder::new()
            .name("failover-alerts".to_owned())
            .spawn(move || {
                while let Ok(line) = queue.recv() {
                    if let Err(error) = append(&file, &line, FULL) {
                        let file = file.display();
                        tracing::error!("an alert was not kept: {file}: {error}");
                    }
                }
            })?;
        let (listeners, _) = broadcast::channel(1024);
        Ok(Self {
            node: node.to_owned(),
            lines,
            listeners,
        })
    }

    /// Tells people.
    pub fn tell(&self, alert: &Alert) {
        match alert.severity {
            Severity::Info => tracing::info!("{alert}"),
            Severity::Warning => tracing::warn!("{alert}"),
            Severity::Error => tracing::error!("{alert}"),
        }
        self.pass_on(AlertReport::of(alert, &self.node, clock::wall_ms()));
    }

    /// Words of a person or a script.
    pub fn note(&self, text: String, id: Option<u32>, severity: Severity) {
        tracing::info!("message: {text}");
        self.pass_on(AlertReport {
            time_ms: clock::wall_ms(),
            node: self.node.clone(),
            severity,
            kind: "message".to_owned(),
            name: id.map_or_else(String::new, |id| id.to_string()),
            what: text,
            cause: String::new(),
        });
    }

    fn pass_on(&self, line: AlertReport) {
        // Nobody may be listening.
        let _ = self.listeners.send(line.clone());
        let _ = self.lines.send(line);
    }

    /// Alerts from now on. A listener that lags misses the oldest.
    pub fn listen(&self) -> broadcast::Receiver<AlertReport> {
        self.listeners.subscribe()
    }
}

fn aside(file: &Path, number: u32) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn append(file: &Path, line: &AlertReport, full: u64) -> io::Result<()> {
    if fs::metadata(file).is_ok_and(|found| found.len() >= full) {
        for number in (1..OLD).rev() {
            let _ = fs::rename(aside(file, number), aside(file, number + 1));
        }
        fs::rename(file, aside(file, 1))?;
    }
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let mut file = OpenOptions::new().append(true).create(true).open(file)?;
    // One call a line: a crash leaves no half of one before another.
    file.write_all(&text)
}

/// The alerts that are kept, the oldest first. Lines that make no sense (the machine died while one
/// was written) are left out.
///
/// # Errors
/// A file can't be read.
pub fn kept(file: &Path) -> io::Result<Vec<AlertReport>> {
    let mut all = Vec::new();
    let files = (1..=OLD).rev().map(|number| aside(file, number));
    for file in files.chain([file.to_owned()]) {
        match fs::read_to_string(&file) {
            Ok(text) => all.extend(text.lines().filter_map(|l| serde_json::from_str(l).ok())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Object;

    #[test]
    fn lines_are_kept_in_their_order_over_files_put_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("alerts");
        let alert = |at: u32| Alert {
            severity: Severity::Warning,
            object: Object::Resource("pg".to_owned(), "data".to_owned()),
            what: format!("step {at}"),
            cause: String::new(),
        };
        for at in 0..40 {
            append(&file, &AlertReport::of(&alert(at), "alpha", at.into()), 700).expect("kept");
        }
        let all = kept(&file).expect("read");
        let steps: Vec<&str> = all.iter().map(|line| &*line.what).collect();
        assert_eq!(steps.last(), Some(&"step 39"));
        assert!(steps.len() < 40, "the oldest are gone");
        let first: u32 = steps[0][5..].parse().expect("a number");
        let wanted: Vec<String> = (first..40).map(|at| format!("step {at}")).collect();
        assert_eq!(steps, wanted);
        assert_eq!((&*all[0].kind, &*all[0].name), ("resource", "pg/data"));
    }
}
