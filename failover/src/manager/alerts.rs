//! What people are told: to the log, to a file of lines that are kept, and to whoever listens.
//!
//! The file is JSON, one alert a line; when it has [`FULL`] bytes it becomes `….1`, and what that
//! was `….2`, up to [`OLD`]. A disk that takes no line costs the line, and is told in the log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
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
    let mut options = OpenOptions::new();
    let mut file = options.append(true).read(true).create(true).open(file)?;
    let mut text = Vec::new();
    // The disk was full, or the machine died, in the middle of the last one.
    if !ends_with_a_line(&file)? {
        text.push(b'\n');
    }
    serde_json::to_writer(&mut text, line)?;
    text.push(b'\n');
    // One call a line: a crash leaves no half of one before another.
    file.write_all(&text)
}

fn ends_with_a_line(file: &File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    Ok(last == [b'\n'])
}

/// Alerts that are kept.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// The oldest first.
    pub alerts: Vec<AlertReport>,
    /// Why some of them are missing: the files that can't be read.
    pub missing: Option<String>,
}

/// The alerts that are kept. Lines that make no sense (the machine died while one was written) are left out.
pub fn kept(file: &Path) -> Kept {
    let mut all = Kept::default();
    let mut wrong = Vec::new();
    let files = (1..=OLD).rev().map(|number| aside(file, number));
    for file in files.chain([file.to_owned()]) {
        match fs::read(&file) {
            Ok(text) => {
                let lines = text.split(|byte| *byte == b'\n');
                let lines = lines.filter_map(|line| serde_json::from_slice(line).ok());
                all.alerts.extend(lines);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => wrong.push(format!("{}: {error}", file.display())),
        }
    }
    all.missing = (!wrong.is_empty()).then(|| wrong.join("; "));
    all
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
        let all = kept(&file).alerts;
        let steps: Vec<&str> = all.iter().map(|line| &*line.what).collect();
        assert_eq!(steps.last(), Some(&"step 39"));
        assert!(steps.len() < 40, "the oldest are gone");
        let first: u32 = steps[0][5..].parse().expect("a number");
        let wanted: Vec<String> = (first..40).map(|at| format!("step {at}")).collect();
        assert_eq!(steps, wanted);
        assert_eq!((&*all[0].kind, &*all[0].name), ("resource", "pg/data"));
    }

    #[test]
    fn a_line_that_makes_no_sense_costs_no_other_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("alerts");
        let alert = |what: &str| {
            let alert = Alert {
                severity: Severity::Warning,
                object: Object::Cluster,
                what: what.to_owned(),
                cause: String::new(),
            };
            append(&file, &AlertReport::of(&alert, "alpha", 1), FULL)
        };
        alert("first").expect("kept");
        let mut text = fs::read(&file).expect("read");
        // No text, and then half of a line.
        text.extend([0xff, b'\n']);
        text.extend_from_within(..20);
        fs::write(&file, text).expect("written");
        alert("second").expect("kept");
        let all = kept(&file);
        let whats: Vec<&str> = all.alerts.iter().map(|line| &*line.what).collect();
        assert_eq!(
            (whats, all.missing),
            (vec!["first", "second"], None::<String>)
        );
        // A file that can't be read is told of, and the others are there.
        fs::create_dir(aside(&file, 2)).expect("made");
        let all = kept(&file);
        assert_eq!(all.alerts.len(), 2);
        assert!(all.missing.expect("told").contains("alerts.2: "));
    }
}
