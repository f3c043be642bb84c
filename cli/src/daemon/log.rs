//! The log: one line an event, on standard error, as journald likes it.
//!
//! Under journald a line begins with its priority (`<3>`) and carries no time, for the journal has
//! its own; elsewhere it begins with the time. The same line again and again is written once, and
//! then once in a while with a count.
//!
//! Data-plane threads log, too, and journald may stand still while its disk hangs: nobody waits for a log that
//! is not read. What does not fit is counted, and told when it is read again.

use std::fmt::{self, Write as _};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry};

/// Changes the least severity that is logged.
#[derive(Clone)]
pub struct LevelSetter(Arc<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for LevelSetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LevelSetter")
    }
}

impl LevelSetter {
    /// Changes nothing, for where the log is somebody else's.
    pub fn none() -> Self {
        Self(Arc::new(|_| {}))
    }
}

impl std::ops::Deref for LevelSetter {
    type Target = dyn Fn(&str) + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Time, level, words, facts.
    Text,
    /// Priority, words, facts.
    Journal,
    /// An object a line.
    Json,
}

/// The same line is written again after so long, with its count.
const WINDOW: Duration = Duration::from_secs(10);
/// Different lines that are being counted at a time.
const COUNTED_MAX: usize = 256;

static REPEATS: OnceLock<Arc<Mutex<Repeats>>> = OnceLock::new();

/// Begins to log to standard error. `KAGAMI_LOG` overrides the level, with the syntax of
/// `tracing`'s `EnvFilter`.
pub fn begin(level: &str, json: bool) -> LevelSetter {
    let form = if json {
        Form::Json
    } else if std::env::var_os("JOURNAL_STREAM").is_some() {
        Form::Journal
    } else {
        Form::Text
    };
    let filter = EnvFilter::try_from_env("KAGAMI_LOG").unwrap_or_else(|_| filter(level));
    let (filter, handle) = reload::Layer::new(filter);
    let repeats = Arc::clone(REPEATS.get_or_init(|| Arc::new(Mutex::new(Repeats::default()))));
    // A second call in one process (tests) keeps the first log.
    let _ = Registry::default()
        .with(filter)
        .with(Lines { form, repeats })
        .try_init();
    LevelSetter(Arc::new(move |level| {
        // It fails only when the log is gone.
        let _ = handle.reload(self::filter(level));
    }))
}

/// Our own lines at `level`; libraries only when they warn.
fn filter(level: &str) -> EnvFilter {
    let libraries = match level {
        "error" => "error",
        "trace" => "debug",
        _ => "warn",
    };
    EnvFilter::new(format!(
        "{libraries},kagami={level},kagami_replicator={level},kagami_nbd_server={level},kagami_bitmap={level}"
    ))
}

/// Writes out counts whose window is over. The daemon calls it once a second.
pub fn write_repeats() {
    if let Some(repeats) = REPEATS.get() {
        let lines = lock(repeats).due(Instant::now());
        print(&lines);
    }
}

fn lock(repeats: &Mutex<Repeats>) -> std::sync::MutexGuard<'_, Repeats> {
    repeats.lock().unwrap_or_else(PoisonError::into_inner)
}

fn print(lines: &[String]) {
    static UNREAD: Mutex<Unread> = Mutex::new(Unread::none());
    let mut unread = UNREAD.lock().unwrap_or_else(PoisonError::into_inner);
    let form = REPEATS.get().and_then(|repeats| lock(repeats).form);
    unread.print(lines, form.unwrap_or(Form::Text), &std::io::stderr());
}

/// A log that somebody does not read.
#[derive(Debug)]
struct Unread {
    /// Lines that there was no room for.
    lost: u64,
}

/// How long a line may wait for a reader that has kept up until now.
const READ_WITHIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// What can be written without waiting where there is room at all: a pipe that can be written to takes as much
/// (pipe(7), `PIPE_BUF`), and a socket's buffer is a quarter full at most.
const PIECE: usize = 4096;

impl Unread {
    const fn none() -> Self {
        Self { lost: 0 }
    }

    /// Writes what there is room for, and counts the rest.
    fn print(&mut self, lines: &[String], form: Form, to: &impl AsFd) {
        for line in lines {
            // One that has stood still is not waited for again until it is read.
            if !has_room(to, self.lost == 0) {
                self.lost += 1;
                continue;
            }
            if self.lost > 0 {
                let line = Line {
                    level: Level::WARN,
                    message: "lines of this log are lost: nobody read it".to_owned(),
                    facts: vec![("lines", self.lost.to_string())],
                };
                self.lost = 0;
                write(&line.spell(form, SystemTime::now(), 0), to);
                if !has_room(to, false) {
                    self.lost = 1;
                    continue;
                }
            }
            write(line, to);
        }
    }
}

/// Whether a piece can be written at once, or soon.
fn has_room(to: &impl AsFd, waits: bool) -> bool {
    let within = if waits {
        READ_WITHIN
    } else {
        Timespec::default()
    };
    let mut polled = [PollFd::new(to, PollFlags::OUT)];
    // An error is no reason to be silent: the write tells what it can.
    !matches!(poll(&mut polled, Some(&within)), Ok(0))
}

/// A line, and its end. What is longer than can be written at once is cut: nobody waits for a log.
fn write(line: &str, to: &impl AsFd) {
    let mut line = line.to_owned();
    if line.len() >= PIECE {
        let end = (0..PIECE).rev().find(|at| line.is_char_boundary(*at));
        line.truncate(end.unwrap_or(0));
    }
    line.push('\n');
    // Nothing can be done about a log that can't be written.
    let _ = rustix::io::write(to, line.as_bytes());
}

/// What was said, without the time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    level: Level,
    message: String,
    facts: Vec<(&'static str, String)>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else if field.name() == "repeated" && format!("{value:?}") == "0" {
            // Counts of nothing are noise.
        } else {
            self.facts.push((field.name(), format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.facts.push((field.name(), value.to_owned()));
        }
    }
}

impl Line {
    fn spell(&self, form: Form, now: SystemTime, count: u64) -> String {
        let repeated = match count {
            0 => String::new(),
            1 => " (once more)".to_owned(),
            n => format!(" ({n} times more)"),
        };
        if form == Form::Json {
            let mut object = serde_json::Map::new();
            let time = humantime::format_rfc3339_millis(now).to_string();
            object.insert("time".to_owned(), time.into());
            object.insert(
                "level".to_owned(),
                self.level.as_str().to_lowercase().into(),
            );
            object.insert("message".to_owned(), self.message.clone().into());
            if count > 0 {
                object.insert("repeated".to_owned(), count.into());
            }
            for (name, value) in &self.facts {
                object.insert((*name).to_owned(), value.clone().into());
            }
            return serde_json::Value::Object(object).to_string();
        }
        let mut text = match form {
            Form::Journal => format!("<{}>", priority(self.level)),
            _ => format!(
                "{} {:<5} ",
                humantime::format_rfc3339_millis(now),
                self.level.as_str().to_lowercase()
            ),
        };
        // The mirror comes first: that is what one looks for.
        if let Some((_, mirror)) = self.facts.iter().find(|(name, _)| *name == "mirror") {
            let _ = write!(text, "{}: ", one_line(mirror));
        }
        text.push_str(&one_line(&self.message));
        text.push_str(&repeated);
        for (name, value) in &self.facts {
            if *name != "mirror" {
                let _ = write!(text, " {name}={}", one_line(value));
            }
        }
        text
    }
}

/// A line stays a line, whatever a peer or a path put into it.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// syslog's number.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Lines seen of late.
#[derive(Debug, Default)]
struct Repeats {
    seen: Vec<Seen>,
    form: Option<Form>,
}

#[derive(Debug)]
struct Seen {
    line: Line,
    since: Instant,
    count: u64,
}

impl Repeats {
    /// Whether the line is to be written now; else it was counted.
    fn take(&mut self, line: &Line, now: Instant) -> bool {
        if let Some(seen) = self.seen.iter_mut().find(|seen| seen.line == *line) {
            seen.count += 1;
            return false;
        }
        if self.seen.len() == COUNTED_MAX {
            // Too many different lines to count them all: the oldest uncounted one makes room.
            match self.seen.iter().position(|seen| seen.count == 0) {
                Some(index) => {
                    self.seen.remove(index);
                }
                None => return true,
            }
        }
        self.seen.push(Seen {
            line: line.clone(),
            since: now,
            count: 0,
        });
        true
    }

    /// The counts whose window is over.
    fn due(&mut self, now: Instant) -> Vec<String> {
        let form = self.form.unwrap_or(Form::Text);
        let mut lines = Vec::new();
        self.seen.retain_mut(|seen| {
            if now.duration_since(seen.since) < WINDOW {
                return true;
            }
            if seen.count == 0 {
                return false;
            }
            lines.push(seen.line.spell(form, SystemTime::now(), seen.count));
            seen.count = 0;
            seen.since = now;
            true
        });
        lines
    }
}

/// The layer that writes.
struct Lines {
    form: Form,
    repeats: Arc<Mutex<Repeats>>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line {
            level: *event.metadata().level(),
            message: String::new(),
            facts: Vec::new(),
        };
        event.record(&mut line);
        let now = Instant::now();
        let lines = {
            let mut repeats = lock(&self.repeats);
            repeats.form = Some(self.form);
            let mut lines = repeats.due(now);
            if repeats.take(&line, now) {
                lines.push(line.spell(self.form, SystemTime::now(), 0));
            }
            lines
        };
        print(&lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> Line {
        Line {
            level: Level::WARN,
            message: message.to_owned(),
            facts: vec![("mirror", "pg".to_owned()), ("errno", "5".to_owned())],
        }
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up() {
        use std::io::Read as _;
        use std::os::unix::net::UnixStream;

        let (log, mut reader) = UnixStream::pair().expect("a pair");
        let mut unread = Unread::none();
        let said = "x".repeat(200);
        let mut count: u64 = 0;
        // (A write that waited would wait for ever: nobody reads.)
        while unread.lost < 100 {
            unread.print(std::slice::from_ref(&said), Form::Text, &log);
            count += 1;
        }
        let mut found = vec![0; 1 << 20];
        let len = reader.read(&mut found).expect("what was written");
        let text = String::from_utf8_lossy(&found[..len]);
        assert_eq!(text.lines().count() as u64, count - 100);
        unread.print(&["again".to_owned()], Form::Text, &log);
        let len = reader.read(&mut found).expect("what was written");
        let text = String::from_utf8_lossy(&found[..len]);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].ends_with("nobody read it lines=100"), "{text}");
        assert_eq!(lines[1..], ["again"]);
    }

    #[test]
    fn a_line_longer_than_is_written_at_once_is_cut_between_characters() {
        let (log, mut reader) = std::os::unix::net::UnixStream::pair().expect("a pair");
        write(&"é".repeat(PIECE), &log);
        let mut found = vec![0; 2 * PIECE];
        let len = std::io::Read::read(&mut reader, &mut found).expect("a line");
        let text = std::str::from_utf8(&found[..len]).expect("whole characters");
        assert!(text.ends_with("é\n") && len <= PIECE, "{len}");
    }

    #[test]
    fn a_thousand_times_is_one_line_with_a_count() {
        let mut repeats = Repeats::default();
        let begin = Instant::now();
        let written = (0..1000)
            .filter(|_| repeats.take(&line("disk error"), begin))
            .count();
        assert_eq!(written, 1);
        assert!(repeats.due(begin + WINDOW / 2).is_empty());
        let due = repeats.due(begin + WINDOW);
        assert_eq!(due.len(), 1);
        assert!(
            due[0].ends_with("pg: disk error (999 times more) errno=5"),
            "{}",
            due[0]
        );
        // Nothing more came: it is forgotten, and would be news again.
        assert!(repeats.due(begin + 2 * WINDOW).is_empty());
        assert!(repeats.take(&line("disk error"), begin + 2 * WINDOW));
    }

    #[test]
    fn forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_763_726_400_123);
        assert_eq!(
            line("disk error").spell(Form::Text, now, 0),
            "2025-11-21T12:00:00.123Z warn  pg: disk error errno=5"
        );
        assert_eq!(
            line("two\nlines").spell(Form::Journal, now, 0),
            "<4>pg: two lines errno=5"
        );
        assert_eq!(
            line("disk error").spell(Form::Json, now, 3),
            r#"{"errno":"5","level":"warn","message":"disk error","mirror":"pg","repeated":3,"time":"2025-11-21T12:00:00.123Z"}"#
        );
    }

    #[test]
    fn many_different_lines_do_not_pile_up() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        for n in 0..10 * COUNTED_MAX {
            assert!(repeats.take(&line(&n.to_string()), now));
        }
        assert!(repeats.seen.len() <= COUNTED_MAX);
    }
}
