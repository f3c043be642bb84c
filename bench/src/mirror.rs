//! kagami itself: a scratch pair as `kagami demo --serve` makes it, or one node without a peer.
//!
//! The daemons, their commands and their counters are used as a person would use them: through the
//! program.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::candidate::{Room, START, Served};
use crate::client::Client;
use crate::error::BenchError;
use crate::process::{self, Process};

/// Between two looks at the state of a mirror.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The nodes of a scratch pair: the Primary first.
const NODES: [&str; 2] = ["alpha", "beta"];

/// A scratch mirror that is up; it ends, and its files go, with this.
#[derive(Debug)]
pub struct Mirror {
    process: Process,
    program: PathBuf,
    folder: PathBuf,
    socket: PathBuf,
    export: String,
    daemons: Vec<(String, u32)>,
}

/// A mirror's state, as far as it is looked at here (docs/status-json.md).
#[derive(Clone, Debug, Deserialize)]
pub struct State {
    /// The mirror's name.
    pub name: String,
    /// In a word.
    pub condition: String,
    /// Bytes of blocks that may differ.
    pub marked_bytes: u64,
    /// The running resynchronisation.
    pub progress: Option<serde::de::IgnoredAny>,
    /// Since the daemon began.
    pub counters: Counters,
    /// When this was true.
    #[serde(skip)]
    pub time_ms: u64,
}

/// What a daemon counts.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Requests to write.
    pub writes: u64,
    /// Activity-log records written.
    pub log_records: u64,
    /// Bitmap pages written.
    pub bitmap_pages: u64,
    /// Superblock updates.
    pub superblocks: u64,
    /// Bytes sent by resynchronisations.
    pub resync_bytes: u64,
    /// Bytes found equal and not sent.
    pub resync_equal_bytes: u64,
}

impl Counters {
    /// Writes to the metadata store.
    pub fn metadata(&self) -> u64 {
        self.log_records + self.bitmap_pages + self.superblocks
    }
}

#[derive(Deserialize)]
struct Report {
    time_ms: u64,
    mirrors: Vec<State>,
}

impl Mirror {
    /// Makes a mirror of `mebibytes` in a folder of that name, with a peer or without.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(
        room: &Room,
        name: &str,
        mebibytes: u64,
        with_peer: bool,
    ) -> Result<Self, BenchError> {
        if !room.kagami.is_file() {
            return Err(BenchError::MissingKagami {
                path: room.kagami.clone(),
            });
        }
        let folder = room.dir.join(name);
        let mut command = Command::new(&room.kagami);
        command
            .args(["demo", "--serve", "--dir"])
            .arg(&folder)
            .args(["--size", &format!("{mebibytes}M")]);
        if !with_peer {
            command.arg("--no-peer");
        }
        let mut process = Process::start(name, &mut command, &room.dir, Some(Stdio::piped()))?;
        let uri = first_line(&mut process)?;
        let (export, socket) = unix_uri(&uri)
            .ok_or_else(|| process.fault(format!("'{uri}' is no URI of a Unix socket")))?;
        let daemons = daemons(process.id(), &folder);
        if daemons.is_empty() {
            return Err(process.fault("no daemon is running under it".to_owned()));
        }
        Ok(Self {
            process,
            program: room.kagami.clone(),
            folder,
            socket,
            export,
            daemons,
        })
    }

    /// A connection to the Primary.
    ///
    /// # Errors
    /// It does not serve.
    pub fn client(&self) -> Result<Client, BenchError> {
        Client::connect(&self.socket, &self.export, START)
    }

    /// The daemons: what they are called in tables, and their process ids.
    pub fn daemons(&self) -> &[(String, u32)] {
        &self.daemons
    }

    /// Runs a command at the Secondary, on the mirror. There `disconnect` is a clean leave, after
    /// which the Primary goes on alone by consent, whatever `solo` is.
    ///
    /// # Errors
    /// It failed.
    pub fn order_secondary(&self, verb: &str) -> Result<(), BenchError> {
        let mut command = self.command(NODES[1], &[verb, &self.export]);
        process::output(&format!("kagami {verb}"), &mut command).map(drop)
    }

    /// The Primary's state.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn state(&self) -> Result<State, BenchError> {
        let text = process::output(
            "kagami status",
            &mut self.command(NODES[0], &["status", "--json"]),
        )?;
        let json = |what: String| BenchError::Json {
            program: "kagami status",
            what,
        };
        let report: Report = serde_json::from_str(&text)
            .map_err(|error| json(format!("what is needed ({error})")))?;
        let mut state = report
            .mirrors
            .into_iter()
            .find(|state| state.name == self.export)
            .ok_or_else(|| json(format!("mirror {}", self.export)))?;
        state.time_ms = report.time_ms;
        Ok(state)
    }

    /// Looks at the Primary's state until `enough` says so.
    ///
    /// # Errors
    /// The time is over, or the daemon does not answer.
    pub fn wait(
        &self,
        what: &str,
        patience: Duration,
        mut enough: impl FnMut(&State) -> bool,
    ) -> Result<State, BenchError> {
        let deadline = Instant::now() + patience;
        loop {
            let state = self.state()?;
            if enough(&state) {
                return Ok(state);
            }
            if Instant::now() > deadline {
                return Err(BenchError::TimedOut {
                    what: format!("{what}; the mirror is {}", state.condition),
                    seconds: patience.as_secs(),
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn command(&self, node: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(self.folder.join(node).join("kagami.toml"))
            .args(args);
        command
    }
}

/// kagami as a candidate.
///
/// # Errors
/// It does not come up.
pub fn candidate(room: &Room, with_peer: bool) -> Result<Served, BenchError> {
    let (name, folder) = if with_peer {
        ("kagami, pair", "pair")
    } else {
        ("kagami, no peer", "no-peer")
    };
    let mirror = Mirror::start(room, folder, room.region >> 20, with_peer)?;
    let Mirror {
        process,
        socket,
        export,
        daemons,
        ..
    } = mirror;
    Served::connect(name, vec![process], daemons, &socket, &export, room)
}

/// The first line that the program prints, which it does when the mirror is up.
fn first_line(process: &mut Process) -> Result<String, BenchError> {
    let stdout = process.stdout().expect("piped");
    let (sender, lines) = mpsc::channel();
    // It ends with the program; what comes later is read, so that the program never waits.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut first = None;
    process.wait_for("first line on its standard output", 2 * START, || {
        first = lines.try_recv().ok();
        first.is_some()
    })?;
    Ok(first.expect("the wait ended with it").trim().to_owned())
}

/// Export and socket of `nbd+unix:///EXPORT?socket=PATH`.
fn unix_uri(uri: &str) -> Option<(String, PathBuf)> {
    let rest = uri.strip_prefix("nbd+unix:///")?;
    let (export, query) = rest.split_once('?')?;
    let socket = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("socket="))?;
    Some((export.to_owned(), PathBuf::from(percent_decoded(socket)?)))
}

/// A part of a URI with its `%XX` resolved.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(if *first == b'%' {
            let (digits, tail) = rest.split_at_checked(2)?;
            rest = tail;
            u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
        } else {
            *first
        });
    }
    String::from_utf8(bytes).ok()
}

/// The daemons below the process `id`, by the configuration that they run by.
fn daemons(id: u32, folder: &Path) -> Vec<(String, u32)> {
    let roles = ["primary", "secondary"];
    let below = process::descendants(id);
    NODES
        .iter()
        .zip(roles)
        .filter_map(|(node, role)| {
            let config = folder.join(node).join("kagami.toml");
            let (pid, _) = below.iter().find(|(_, arguments)| {
                arguments
                    .iter()
                    .any(|argument| Path::new(argument) == config)
                    && arguments.iter().any(|argument| argument == "up")
            })?;
            Some((role.to_owned(), *pid))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uri_of_a_unix_socket_is_read() {
        let parts = unix_uri("nbd+unix:///demo?socket=/tmp/a%20b/nbd.sock");
        let parts = parts.expect("it is one");
        assert_eq!(parts, ("demo".into(), PathBuf::from("/tmp/a b/nbd.sock")));
        assert_eq!(unix_uri("nbd://localhost/demo"), None);
        assert_eq!(unix_uri("nbd+unix:///demo?socket=/a%2"), None);
    }

    #[test]
    fn the_status_is_read() {
        let text = r#"{"schema": 1, "time_ms": 5, "mirrors": [{"name": "demo", "condition": "in-sync",
            "marked_bytes": 0, "progress": {"since_ms": 3, "paused": false}, "new": 1,
            "counters": {"writes": 7, "log_records": 2, "bitmap_pages": 1, "superblocks": 1}}]}"#;
        let report: Report = serde_json::from_str(text).expect("it is whole");
        assert_eq!(report.mirrors[0].counters.metadata(), 4);
        assert!(report.mirrors[0].progress.is_some());
    }
}
