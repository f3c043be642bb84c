//! An engine without disks behind a real daemon and the real binary.

#![allow(dead_code)] // Each test file uses a part of it.

pub mod desk;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kagami::config::Config;
use kagami::config::places::Places;
use kagami::daemon::engine::{Engine, MirrorStatus, Noticed};
use kagami::daemon::log::LevelSetter;
use kagami::daemon::mirrors::addresses::Addresses;
use kagami::daemon::service::Service;
use kagami::daemon::socket::ControlSocket;
use kagami::daemon::{self};
use kagami_bitmap::superblock::Generation;
use kagami_replicator::core::event::{Command, Refusal, Reply};
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Connection, DiskState, Replication, Role, Time};
use kagami_replicator::core::status::{Counters, Standing, Status};
use tempfile::TempDir;
use tokio::sync::{broadcast, oneshot, watch};

/// A status in which all is well.
pub fn in_sync() -> Status {
    Status {
        size: 20 << 30,
        role: Role::Primary,
        term: 0,
        disk: DiskState::UpToDate,
        peer_role: Some(Role::Secondary),
        peer_disk: DiskState::UpToDate,
        connection: Connection::Connected,
        connection_since: Time(0),
        replication: Replication::Established,
        generation: Some(Generation {
            counter: 42,
            tag: 0xfeed,
        }),
        was_primary: true,
        alone_since: None,
        alone_by: None,
        standing: Standing::Session {
            until: Time(9_000_000_000),
        },
        peer_lease_ends: Time(0),
        marked_blocks: 0,
        in_flight: 0,
        held: None,
        arbiter_fault: None,
        verdict: None,
        chosen: None,
        progress: None,
        round_trip_ns: Some(210_000),
        counters: Counters::default(),
    }
}

/// Answers an order.
pub type Script = Box<dyn Fn(&Fake, &Command) -> Result<Reply, Refusal> + Send>;

/// An engine that does what a test says.
#[derive(Clone)]
pub struct Fake {
    pub status: Arc<Mutex<Status>>,
    pub orders: Arc<Mutex<Vec<Command>>>,
    pub script: Arc<Mutex<Script>>,
    pub events: broadcast::Sender<Noticed>,
    pub stopped: Arc<Mutex<bool>>,
    /// What it can't stop cleanly.
    pub unclean: Arc<Mutex<Vec<String>>>,
    /// Orders are not done yet.
    pub waits: watch::Sender<bool>,
    /// Its loops don't turn.
    pub stuck: watch::Sender<bool>,
    /// Names are looked up, and there is no answer.
    pub unresolved: watch::Sender<bool>,
    /// What was looked up, each time.
    pub looked_up: Arc<Mutex<Vec<BTreeSet<String>>>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            status: Arc::new(Mutex::new(in_sync())),
            orders: Arc::default(),
            script: Arc::new(Mutex::new(Box::new(|_, _| Ok(Reply::Done)))),
            events: broadcast::Sender::new(64),
            stopped: Arc::default(),
            unclean: Arc::default(),
            waits: watch::Sender::new(false),
            stuck: watch::Sender::new(false),
            unresolved: watch::Sender::new(false),
            looked_up: Arc::default(),
        }
    }
}

impl Fake {
    /// Something happens.
    pub fn notice(&self, notice: Notice) {
        // Nobody may be listening.
        let _ = self.events.send(Noticed {
            mirror: "pg".to_owned(),
            time_ms: 1_763_726_400_000,
            notice,
        });
    }

    /// Changes the state.
    pub fn set(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap());
    }

    /// What orders are answered with.
    pub fn answers(
        &self,
        script: impl Fn(&Self, &Command) -> Result<Reply, Refusal> + Send + 'static,
    ) {
        *self.script.lock().unwrap() = Box::new(script);
    }
}

impl Engine for Fake {
    async fn command(&self, mirror: &str, command: Command) -> Result<Reply, Refusal> {
        assert_eq!(mirror, "pg");
        self.orders.lock().unwrap().push(command.clone());
        let _ = self.waits.subscribe().wait_for(|waits| !waits).await;
        let script = self.script.lock().unwrap();
        script(self, &command)
    }

    async fn look_up(&self, names: &BTreeSet<String>) -> Addresses {
        self.looked_up.lock().unwrap().push(names.clone());
        let mut unresolved = self.unresolved.subscribe();
        let _ = unresolved.wait_for(|unresolved| !unresolved).await;
        Addresses::default()
    }

    async fn detach(&self, mirror: &str, _: bool) -> Result<Reply, Refusal> {
        assert_eq!(mirror, "pg");
        Ok(Reply::Done)
    }

    async fn status(&self) -> Vec<MirrorStatus> {
        vec![MirrorStatus {
            name: "pg".to_owned(),
            core: Ok(self.status.lock().unwrap().clone()),
            peer_address: Some("10.0.0.2:7789".to_owned()),
            served_at: vec!["/dev/nbd0".to_owned()],
            device: None,
            disk_fault: None,
            held_back: None,
            link_version: Some(2),
            write_latency: None,
        }]
    }

    fn events(&self) -> broadcast::Receiver<Noticed> {
        self.events.subscribe()
    }

    async fn beat(&self) {
        let _ = self.stuck.subscribe().wait_for(|stuck| !stuck).await;
    }

    async fn stop(&self) -> Vec<String> {
        *self.stopped.lock().unwrap() = true;
        self.unclean.lock().unwrap().clone()
    }
}

/// A node with its configuration, and perhaps a daemon.
pub struct Node {
    pub folder: TempDir,
    pub engine: Fake,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it was not killed"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Node {
    /// A node with mirror pg, and no daemon.
    pub fn without_daemon() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let text = format!(
            "[node]\nname = \"alpha\"\nid = 1\nstate-dir = \"{at}/state\"\nrun-dir = \"{at}/run\"\n\n\
             [mirror.pg]\nuuid = \"00112233445566778899aabbccddeeff\"\nsize = \"20GiB\"\n\
             backing = \"/dev/vg0/pg\"\nmetadata = \"/dev/vg0/pg-meta\"\npeer = \"beta\"\n\n\
             [peer.beta]\nid = 2\naddresses = [\"10.0.0.2:7789\"]\nfingerprints = [\"sha256:{}\"]\n",
            "11".repeat(32)
        );
        std::fs::write(folder.path().join("kagami.toml"), text).unwrap();
        Self {
            folder,
            engine: Fake::default(),
            stop: None,
            thread: None,
        }
    }

    /// A node with mirror pg and a daemon that answers.
    pub fn with_daemon() -> Self {
        Self::with_service(|_| Service::none())
    }

    /// The same, under a service manager; it may use the node's folder.
    pub fn with_service(service: impl FnOnce(&Path) -> Service) -> Self {
        let mut node = Self::without_daemon();
        let service = service(node.folder.path());
        node.begin(service);
        node
    }

    /// Begins a daemon, by the file as it is.
    pub fn begin(&mut self, service: Service) {
        let node = self;
        let config = Config::parse(
            &node.file(),
            &std::fs::read_to_string(node.file()).unwrap(),
            &Places::of_root(),
        )
        .unwrap();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let engine = node.engine.clone();
        node.thread = Some(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let socket = ControlSocket::bind(&config.node).await.unwrap();
                ready.send(()).unwrap();
                let terminate = async {
                    // A test that ends drops the sender: that is a signal, too.
                    let _ = stopped.await;
                };
                let levels = LevelSetter::none();
                daemon::run(engine, config, socket, None, levels, service, terminate).await;
            });
        }));
        node.stop = Some(stop);
        is_ready.recv().unwrap();
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("kagami.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/control.sock")
    }

    /// The binary with these arguments, ready to run.
    pub fn command(&self, arguments: &[&str]) -> Process {
        let mut process = Process::new(env!("CARGO_BIN_EXE_kagami"));
        process
            .env_clear()
            .env("KAGAMI_CONFIG", self.file())
            .env("TZ", "UTC")
            .stdin(std::process::Stdio::null())
            .args(arguments);
        process
    }

    /// Runs the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().unwrap().into()
    }

    /// Ends the daemon as a signal does, and waits until it is over.
    pub fn terminate(&mut self) {
        drop(self.stop.take());
        self.wait();
    }

    /// Waits until the daemon's thread is over.
    pub fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}

/// Waits for something with a deadline.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
