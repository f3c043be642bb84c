//! kagami itself: a mirror made for the run, of one node or of two.
//!
//! The daemons, their commands and their counters are used as a person would use them: through the
//! program, with a configuration file for each node.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::candidate::{Candidate, Room, START, Served};
use crate::client::Client;
use crate::error::BenchError;
use crate::job::{Action, Job, Sample};
use crate::process::{self, Process};

/// Between two looks at the state of a mirror.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The same of [`Mirror::follow`], as the program takes it, and how often it is read what it printed.
const FOLLOW_EVERY: &str = "100ms";
const READ_AGAIN: Duration = Duration::from_millis(50);

/// The mirror's name, and the export's.
const EXPORT: &str = "bench";

/// What a mirror has besides its own copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It never had another.
    None,
    /// Both are in sync.
    There,
    /// It has left, and this copy goes on alone: every write marks.
    Away,
}

/// Where a node runs.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// What its programs are started by: nothing, or a program that enters a namespace.
    pub within: Vec<String>,
    /// What its daemon is started by besides: a program that watches it.
    pub daemon: Vec<String>,
    /// Its address and port for the peer; empty for any free port of 127.0.0.1.
    pub listen: String,
    /// Lines of its `[node]` besides.
    pub settings: String,
}

/// A mirror that is up; its daemons end with this.
#[derive(Debug)]
pub struct Mirror {
    /// The Primary first.
    nodes: Vec<Node>,
    /// Of both nodes; ended first to last.
    processes: Vec<Process>,
}

/// A node: a folder with its configuration, its key, its stores and its sockets.
#[derive(Debug)]
struct Node {
    program: PathBuf,
    folder: PathBuf,
    within: Vec<String>,
    daemon: Vec<String>,
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
    pub progress: Option<Progress>,
    /// Since the daemon began.
    pub counters: Counters,
    /// When this was true.
    #[serde(skip)]
    pub time_ms: u64,
}

/// How far a resynchronisation is.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Progress {
    /// Bytes of blocks done.
    pub done_bytes: u64,
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

impl State {
    /// Of what `kagami status --json` printed.
    fn read(text: &str) -> Result<Self, BenchError> {
        let json = |what: String| BenchError::Json {
            program: "kagami status",
            what,
        };
        let report: Report = serde_json::from_str(text)
            .map_err(|error| json(format!("what is needed ({error})")))?;
        let mut state = report
            .mirrors
            .into_iter()
            .find(|state| state.name == EXPORT)
            .ok_or_else(|| json(format!("mirror {EXPORT}")))?;
        state.time_ms = report.time_ms;
        Ok(state)
    }
}

/// The lines of a file that grows.
struct Lines {
    file: BufReader<File>,
    /// The beginning of the next line.
    begun: String,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: BufReader::new(File::open(path)?),
            begun: String::new(),
        })
    }

    /// The next line, once all of it is there.
    fn next_line(&mut self) -> io::Result<Option<String>> {
        self.file.read_line(&mut self.begun)?;
        let is_whole = self.begun.ends_with('\n');
        Ok(is_whole.then(|| std::mem::take(&mut self.begun)))
    }
}

impl Node {
    /// Writes the configuration.
    fn new(room: &Room, folder: PathBuf, number: u64, end: &End) -> Result<Self, BenchError> {
        let fault = || BenchError::io(folder.display().to_string());
        std::fs::create_dir_all(&folder).map_err(fault())?;
        let listen = if end.listen.is_empty() {
            format!("127.0.0.1:{}", free_port()?)
        } else {
            end.listen.clone()
        };
        let at = folder.display();
        let text = format!(
            "[node]\nname = \"node{number}\"\nid = {number}\nlisten = [\"{listen}\"]\n\
             state-dir = \"{at}\"\nrun-dir = \"{at}\"\n{}",
            end.settings
        );
        std::fs::write(folder.join("kagami.toml"), text).map_err(fault())?;
        Ok(Self {
            program: room.kagami.clone(),
            folder,
            within: end.within.clone(),
            daemon: end.daemon.clone(),
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(self.folder.join("kagami.toml"))
            .args(args);
        process::within(&self.within, &command)
    }

    fn run(&self, args: &[&str]) -> Result<String, BenchError> {
        let name = format!("kagami {}", args.first().unwrap_or(&""));
        process::output(&name, &mut self.command(args))
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(format!("{EXPORT}.nbd"))
    }

    fn up(&self, name: &str) -> Result<Process, BenchError> {
        let mut command = process::within(&self.daemon, &self.command(&["up"]));
        let mut process = Process::start(name, &mut command, &self.folder)?;
        let control = self.folder.join("control.sock");
        process.wait_for("control socket", START, || control.exists())?;
        Ok(process)
    }
}

/// Makes `second` the peer of `first`: a line that one prints is given to the other.
fn pair(first: &Node, second: &Node, address: &str) -> Result<(), BenchError> {
    let mut command = first.command(&["pair", EXPORT, "--address", address]);
    let mut offer = Process::start("pair", &mut command, &first.folder)?;
    let log = first.folder.join("pair.log");
    let mut token = None;
    offer.wait_for("line for the other node", START, || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        token = text
            .split(|c: char| c.is_whitespace() || matches!(c, '`' | '\'' | '"'))
            .find(|word| word.starts_with("kgm1-"))
            .filter(|_| text.ends_with('\n'))
            .map(str::to_owned);
        token.is_some()
    })?;
    let token = token.expect("the wait ended with it");
    second.run(&["pair", "--join", &token])?;
    offer.wait_for_end(START)
}

impl Mirror {
    /// Makes a mirror of `mebibytes` in a folder of that name.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(room: &Room, name: &str, mebibytes: u64, peer: Peer) -> Result<Self, BenchError> {
        Self::start_at(
            room,
            name,
            mebibytes,
            peer,
            &[End::default(), End::default()],
        )
    }

    /// The same, with each node where `ends` says.
    ///
    /// # Errors
    /// As [`Mirror::start`].
    pub fn start_at(
        room: &Room,
        name: &str,
        mebibytes: u64,
        peer: Peer,
        ends: &[End; 2],
    ) -> Result<Self, BenchError> {
        if !room.kagami.is_file() {
            return Err(BenchError::MissingKagami {
                path: room.kagami.clone(),
            });
        }
        let folder = room.dir.join(name);
        let first = Node::new(room, folder.join("primary"), 1, &ends[0])?;
        first.run(&["init", EXPORT, "--size", &format!("{mebibytes}M")])?;
        let mut mirror = Self {
            nodes: vec![first],
            processes: Vec::new(),
        };
        if peer != Peer::None {
            let second = Node::new(room, folder.join("secondary"), 2, &ends[1])?;
            let address = ends[0].listen.split(':').next().unwrap_or_default();
            let address = if address.is_empty() {
                "127.0.0.1"
            } else {
                address
            };
            pair(&mirror.nodes[0], &second, address)?;
            mirror.nodes.push(second);
        }
        for (node, role) in mirror.nodes.iter().zip(["primary", "secondary"]) {
            mirror.processes.push(node.up(role)?);
        }
        if peer != Peer::None {
            mirror.wait("the peer to be met", START, |state| {
                state.condition == "in-sync"
            })?;
        }
        mirror.nodes[0].run(&["promote", EXPORT])?;
        if peer != Peer::None {
            mirror.wait("both copies to be in sync", START, |state| {
                state.condition == "in-sync" && state.marked_bytes == 0
            })?;
        }
        if peer == Peer::Away {
            mirror.leave()?;
        }
        Ok(mirror)
    }

    /// The Secondary leaves cleanly, and the Primary goes on alone.
    ///
    /// # Errors
    /// It does not.
    pub fn leave(&self) -> Result<(), BenchError> {
        self.order_secondary("disconnect")?;
        self.wait("the peer to have left", START, |state| {
            state.condition == "alone"
        })?;
        Ok(())
    }

    /// A connection to the Primary.
    ///
    /// # Errors
    /// It does not serve.
    pub fn client(&self) -> Result<Client, BenchError> {
        Client::connect(&self.nodes[0].socket(), EXPORT, START)
    }

    /// The daemons: what they are called in tables, and their process ids.
    pub fn daemons(&self) -> Vec<(String, u32)> {
        let names = ["primary", "secondary"].map(str::to_owned);
        names
            .into_iter()
            .zip(self.processes.iter().map(Process::id))
            .collect()
    }

    /// Runs a command at the Secondary, on the mirror. There `disconnect` is a clean leave, after
    /// which the Primary goes on alone by consent, whatever `solo` is.
    ///
    /// # Errors
    /// It failed.
    pub fn order_secondary(&self, verb: &str) -> Result<(), BenchError> {
        self.nodes[1].run(&[verb, EXPORT]).map(drop)
    }

    /// The Primary's state.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn state(&self) -> Result<State, BenchError> {
        State::read(&self.nodes[0].run(&["status", "--json"])?)
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

    /// Looks at the Primary's state ten times a second until `enough` says so. One program does all the looking: to start
    /// one for each look, as [`Mirror::wait`] does, takes a processor for milliseconds, for which whoever is measured
    /// meanwhile waits.
    ///
    /// # Errors
    /// As [`Mirror::wait`].
    pub fn follow(
        &self,
        what: &str,
        patience: Duration,
        mut enough: impl FnMut(&State) -> bool,
    ) -> Result<State, BenchError> {
        let node = &self.nodes[0];
        let words = ["status", "--json", "--watch", "--every", FOLLOW_EVERY];
        let mut command = process::within(&node.within, &node.command(&words));
        let mut follower = Process::start("follow", &mut command, &node.folder)?;
        let log = node.folder.join("follow.log");
        let mut lines = Lines::open(&log).map_err(BenchError::io(log.display().to_string()))?;
        let deadline = Instant::now() + patience;
        loop {
            while let Some(line) = lines
                .next_line()
                .map_err(BenchError::io(log.display().to_string()))?
            {
                let state = State::read(&line)?;
                if enough(&state) {
                    return Ok(state);
                }
            }
            follower.check()?;
            if Instant::now() > deadline {
                let seconds = patience.as_secs();
                return Err(follower.fault(format!("{what} did not come in {seconds} s")));
            }
            std::thread::sleep(READ_AGAIN);
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // The Primary first: a Secondary that goes first has it ask whether it may go on alone.
        while !self.processes.is_empty() {
            self.processes.remove(0);
        }
    }
}

/// kagami as a candidate.
#[derive(Debug)]
pub struct Kagami {
    served: Served,
    peer: Peer,
    _mirror: Mirror,
}

/// kagami with a peer, without, or with one that is away.
///
/// # Errors
/// It does not come up.
pub fn candidate(room: &Room, peer: Peer) -> Result<Kagami, BenchError> {
    let (name, folder) = match peer {
        Peer::There => (PAIR, "pair"),
        Peer::None => (ALONE, "alone"),
        Peer::Away => (AWAY, "away"),
    };
    let mirror = Mirror::start(room, folder, room.region >> 20, peer)?;
    candidate_of(room, name, peer, mirror)
}

/// A mirror that is up, as a candidate.
///
/// # Errors
/// It does not serve.
pub fn candidate_of(
    room: &Room,
    name: &'static str,
    peer: Peer,
    mirror: Mirror,
) -> Result<Kagami, BenchError> {
    let socket = mirror.nodes[0].socket();
    let served = Served::connect(name, Vec::new(), mirror.daemons(), &socket, EXPORT, room)?;
    Ok(Kagami {
        served,
        peer,
        _mirror: mirror,
    })
}

/// What tables call a mirror in sync.
pub const PAIR: &str = "kagami, pair";
/// One that never had a peer.
pub const ALONE: &str = "kagami, no peer";
/// One whose peer has left.
pub const AWAY: &str = "kagami, peer away";

impl Candidate for Kagami {
    fn name(&self) -> &'static str {
        self.served.name()
    }

    /// Reads without the peer are those without marks: they ask nobody.
    fn takes(&self, job: &Job) -> bool {
        self.peer != Peer::Away || job.action == Action::Write
    }

    fn run(&mut self, job: &Job, time: Duration, seed: u64) -> Result<Sample, BenchError> {
        self.served.run(job, time, seed)
    }
}

/// A UDP port that was free a moment ago.
fn free_port() -> Result<u16, BenchError> {
    let fault = || BenchError::io("a free port");
    let socket = UdpSocket::bind(("127.0.0.1", 0)).map_err(fault())?;
    Ok(socket.local_addr().map_err(fault())?.port())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_line_is_read_once_it_is_whole() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let mut lines = Lines::open(file.path()).expect("it is there");
        let mut more = |text: &str| {
            file.write_all(text.as_bytes()).expect("written");
            lines.next_line().expect("read")
        };
        assert_eq!(more("one"), None);
        assert_eq!(
            more(" and a half\ntwo\nth").as_deref(),
            Some("one and a half\n")
        );
        assert_eq!(more("ree").as_deref(), Some("two\n"));
        assert_eq!(more(""), None);
        assert_eq!(more("\n").as_deref(), Some("three\n"));
    }

    #[test]
    fn the_status_is_read() {
        let text = r#"{"schema": 1, "time_ms": 5, "mirrors": [{"name": "demo", "condition": "in-sync",
            "marked_bytes": 0, "progress": {"done_bytes": 8192, "since_ms": 3, "paused": false}, "new": 1,
            "counters": {"writes": 7, "log_records": 2, "bitmap_pages": 1, "superblocks": 1}}]}"#;
        let state = State::read(&text.replace("demo", EXPORT)).expect("it is whole");
        assert_eq!((state.counters.metadata(), state.time_ms), (4, 5));
        assert!(state.progress.is_some());
        State::read(text).expect_err("another mirror's");
    }
}
