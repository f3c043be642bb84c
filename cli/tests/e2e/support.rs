//! A pair for a test, and the clients that use it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kagami::commands::bench::client::Client;
use kagami::commands::demo::DemoError;
use kagami::commands::demo::node::{Node, wait_until};
use kagami::commands::demo::scratch::{self, MIRROR, Scratch, Wanted};
use kagami::control::report::{Condition, MirrorReport};

#[path = "../../../nbd-server/tests/support/programs.rs"]
mod programs;
pub use programs::{finish, program, succeed};

/// The built program.
pub const KAGAMI: &str = env!("CARGO_BIN_EXE_kagami");
/// Whatever has not happened by then does not happen.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const MIB: u64 = 1 << 20;

/// A pair in a folder of its own.
pub struct Pair {
    pub nodes: Scratch,
    _folder: tempfile::TempDir,
}

/// A pair that is laid out, without running daemons but its witness.
pub fn laid_out(solo: &str, size: &str) -> Pair {
    let folder = tempfile::Builder::new()
        .prefix("kgm")
        .tempdir()
        .expect("a folder for temporary files");
    let wanted = Wanted {
        folder: folder.path().join("pair"),
        size: size.to_owned(),
        protocol: "C".to_owned(),
        solo: solo.to_owned(),
    };
    let nodes =
        Scratch::lay_out(Path::new(KAGAMI), &wanted, &mut quiet).unwrap_or_else(|e| panic!("{e}"));
    Pair {
        nodes,
        _folder: folder,
    }
}

/// Nobody listens.
pub fn quiet(_: &str, _: &str) {}

/// A pair that runs and is in sync, alpha Primary.
pub fn pair(solo: &str, size: &str) -> Pair {
    let mut pair = laid_out(solo, size);
    pair.up();
    pair.promote_alpha();
    pair
}

/// What must have worked.
pub fn ok<T>(result: Result<T, DemoError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

impl Pair {
    /// Starts both daemons.
    pub fn up(&mut self) {
        up(&mut self.nodes.alpha);
        up(&mut self.nodes.beta);
    }

    /// Waits for the meeting, then makes alpha Primary.
    pub fn promote_alpha(&mut self) {
        until(&mut self.nodes.alpha, Condition::InSync);
        ok(self.nodes.alpha.run(&["promote", MIRROR]));
        ok(self.nodes.wait_in_sync(DEADLINE));
        if self.nodes.witness.is_some() {
            registered(self);
        }
    }

    /// A client of alpha.
    pub fn on_alpha(&self) -> Client {
        client(&self.nodes.alpha)
    }

    /// A client of beta.
    pub fn on_beta(&self) -> Client {
        client(&self.nodes.beta)
    }

    /// Stops both cleanly and compares every byte of both copies.
    pub fn stop_and_compare(&mut self) {
        ok(self.nodes.wait_in_sync(DEADLINE));
        down(&mut self.nodes.alpha);
        down(&mut self.nodes.beta);
        assert_eq!(ok(self.nodes.first_difference()), None, "the copies differ");
    }
}

pub fn up(node: &mut Node) {
    ok(node.start(&["up"]));
}

/// `kagami down`, and the daemon's clean end.
pub fn down(node: &mut Node) {
    ok(node.run(&["down"]));
    ok(node.stop(DEADLINE));
}

pub fn client(node: &Node) -> Client {
    Client::connect(&ok(Scratch::socket(node)), MIRROR, DEADLINE).unwrap_or_else(|e| panic!("{e}"))
}

/// Waits for a state in a word.
pub fn until(node: &mut Node, condition: Condition) -> MirrorReport {
    ok(node.wait(MIRROR, condition.word(), DEADLINE, |state| {
        state.condition == condition
    }))
}

/// Waits until the witness keeps a register: it is made in sync, names both copies, and until then nobody is
/// let go on.
pub fn registered(pair: &Pair) {
    let witness = pair.nodes.witness.as_ref().expect("a witness");
    let registers = witness.folder().join("witness").join("registers");
    let is_there = || {
        let files = std::fs::read_dir(&registers).ok()?;
        let whole = files
            .flatten()
            .find(|file| file.path().extension().is_none());
        whole.map(drop)
    };
    ok(wait_until(
        witness.name(),
        "a register of both copies",
        DEADLINE,
        is_there,
    ));
}

/// A command that must end with `code`; its standard error.
pub fn refused(node: &Node, args: &[&str], code: i32) -> String {
    let printed = ok(node.try_run(args));
    assert_eq!(
        printed.code,
        Some(code),
        "{args:?}: {}{}",
        printed.out,
        printed.err
    );
    printed.err
}

/// The URI of a node's mirror on its Unix socket.
pub fn uri(node: &Node) -> String {
    format!(
        "nbd+unix:///{MIRROR}?socket={}",
        ok(Scratch::socket(node)).display()
    )
}

/// Bytes that are like no others.
pub fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut dice = seed;
    let mut bytes = Vec::with_capacity(len as usize + 8);
    while (bytes.len() as u64) < len {
        bytes.extend(kagami::commands::bench::measure::next(&mut dice).to_le_bytes());
    }
    bytes.truncate(len as usize);
    bytes
}

/// Without arbiter and peer nobody permits: a write on alpha is held until `comes_back` has brought the arbiter back.
pub fn is_held_until(pair: &mut Pair, comes_back: impl FnOnce(&mut Pair)) {
    ok(pair.nodes.beta.kill());
    let socket = ok(Scratch::socket(&pair.nodes.alpha));
    let held = std::thread::spawn(move || {
        Client::connect(&socket, MIRROR, DEADLINE)
            .and_then(|mut client| client.write(0, &[7; 4096]))
    });
    let state = until(&mut pair.nodes.alpha, Condition::Held);
    assert!(
        !held.is_finished(),
        "answered without permission: {state:?}"
    );
    comes_back(pair);
    until(&mut pair.nodes.alpha, Condition::Alone);
    held.join().expect("the client").expect("its write");
    up(&mut pair.nodes.beta);
}

/// Writes `bytes` at `offset` and flushes.
pub fn put(client: &mut Client, offset: u64, bytes: &[u8]) {
    for (number, chunk) in bytes.chunks(MIB as usize).enumerate() {
        client
            .write(offset + number as u64 * MIB, chunk)
            .unwrap_or_else(|e| panic!("{e}"));
    }
    client.flush().unwrap_or_else(|e| panic!("{e}"));
}

/// Reads `len` bytes from `offset`.
pub fn get(client: &mut Client, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    for (number, chunk) in bytes.chunks_mut(MIB as usize).enumerate() {
        client
            .read(offset + number as u64 * MIB, chunk)
            .unwrap_or_else(|e| panic!("{e}"));
    }
    bytes
}

/// A file beside a node's own.
pub fn beside(node: &Node, name: &str) -> PathBuf {
    node.folder().join(name)
}

/// Runs a command that prints a line to paste, and pastes it at another node.
pub fn meet(offer: &mut Node, args: &[&str], joiner: &Node, after: &[&str]) {
    let mut all = args.to_vec();
    all.extend(["--address", "127.0.0.1"]);
    let joined = scratch::join(
        offer,
        &all,
        "kgm1-",
        joiner,
        &["pair", "--join"],
        after,
        &mut quiet,
    );
    ok(joined);
}

impl Pair {
    /// One more machine, on which nothing is known yet.
    pub fn another(&self, name: &str) -> Node {
        let folder = self.nodes.alpha.folder().with_file_name(name);
        let listen = format!("127.0.0.1:{}", ok(scratch::free_port()));
        ok(Node::new(Path::new(KAGAMI), folder, name, &listen, ""))
    }
}

/// Sets a key of a node's own section, as a person with an editor would.
pub fn set_node(node: &Node, key: &str, value: &str) {
    let mut document: toml_edit::DocumentMut = std::fs::read_to_string(node.config())
        .expect("the configuration")
        .parse()
        .expect("TOML");
    document["node"][key] = value.parse().expect("a value");
    std::fs::write(node.config(), document.to_string()).expect("written");
}

/// Where the copies of two nodes differ first; their daemons must not run.
pub fn difference(one: &Node, other: &Node) -> Option<usize> {
    let read = |node: &Node| {
        std::fs::read(ok(Scratch::backing(node))).unwrap_or_else(|error| panic!("{error}"))
    };
    let (one, other) = (read(one), read(other));
    assert_eq!(one.len(), other.len(), "the copies' lengths");
    one.iter().zip(&other).position(|(a, b)| a != b)
}
