//! Nodes for tests: an engine each, with files as stores, on loopback.
#![allow(dead_code)] // Each test file uses a part of it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use kagami_bitmap::{Backing, Fill, Format, Layout, Placement, Record, Superblock};
use kagami_replicator::core::event::{IoError, Request};
use kagami_replicator::core::settings::Settings;
use kagami_replicator::core::state::{NodeId, Replication, Solo};
use kagami_replicator::core::{Command, Reply};
use kagami_replicator::shell::boot::Boot;
use kagami_replicator::shell::buffers::{Pool, PoolConfig};
use kagami_replicator::shell::engine::{
    ArbiterConfig, Engine, EngineConfig, MirrorConfig, MirrorDevice, MirrorStatus, Payload, Plane,
    Requester, StartError,
};
use kagami_replicator::shell::identity::{Fingerprint, NodeKeys};
use kagami_replicator::shell::patience::DEFAULT_BUSY_POLL;
use kagami_replicator::shell::quic::{self, PeerConfig};
use kagami_replicator::shell::store::{create_backing_file, create_metadata_store};
use tokio::sync::oneshot;

pub const PG: u128 = 0x7067;
pub const SIZE: u64 = 64 << 20;
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Runs a test with a deadline.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(100), test)
            .await
            .expect("in time");
    });
}

/// A node's disk and identity; an engine may run on it.
pub struct Node {
    pub id: u64,
    pub folder: tempfile::TempDir,
    pub boot: u128,
    pub busy_poll: Duration,
    pub engine: Option<Engine>,
}

impl Node {
    pub fn new(id: u64) -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        NodeKeys::load_or_create(&folder.path().join("key")).expect("key");
        Self {
            id,
            folder,
            boot: 1,
            busy_poll: DEFAULT_BUSY_POLL,
            engine: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn key(&self) -> Fingerprint {
        NodeKeys::load(&self.path("key"))
            .expect("key")
            .current
            .fingerprint()
    }

    /// Makes a fresh copy of the mirror `name`.
    pub fn make_copy(&self, name: &str, mirror: u128, zeroed: bool) {
        make_copy(self.folder.path(), name, mirror, self.id, zeroed);
    }

    /// Starts the engine; peers come later.
    pub fn start(&mut self) {
        let boot = Boot::with_id(self.boot, &self.path("run"));
        let mut config = EngineConfig::new(NodeId(self.id), self.path("key"), boot);
        config.listen = vec![([127, 0, 0, 1], 0).into()];
        config.buffers = 8 << 20;
        config.lock_buffers = false;
        config.busy_poll = self.busy_poll;
        self.engine = Some(Engine::start(&config).expect("engine"));
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("running")
    }

    pub fn as_peer(&self) -> PeerConfig {
        PeerConfig {
            node: quic::NodeId(u128::from(self.id)),
            name: format!("node{}", self.id),
            addresses: self
                .engine
                .as_ref()
                .map(|engine| engine.addresses(0))
                .unwrap_or_default(),
            fingerprints: vec![self.key()],
            timeout: Duration::from_millis(1500),
        }
    }

    pub fn mirror(&self, name: &str, mirror: u128, peer: u64, solo: Solo) -> MirrorConfig {
        MirrorConfig {
            name: name.to_owned(),
            mirror,
            size: Some(SIZE),
            backing: self.path(&format!("{name}.img")),
            metadata: Some(self.path(&format!("{name}.meta"))),
            peer: NodeId(peer),
            thread: 0,
            settings: Settings {
                solo,
                timeout_ms: 1500,
                ack_timeout_ms: 3000,
                ..Settings::default()
            },
            arbiter: ArbiterConfig::None,
            fence_wait: Duration::from_secs(10),
        }
    }

    pub async fn add(&self, config: MirrorConfig) -> Result<(), StartError> {
        self.engine().add_mirror(config).await
    }

    pub async fn status(&self) -> MirrorStatus {
        let mut all = self.engine().status().await;
        assert_eq!(all.len(), 1, "one mirror");
        all.remove(0)
    }

    /// Waits until the mirror's status is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&MirrorStatus) -> bool) -> MirrorStatus {
        let mut events = self.engine().events();
        let begun = std::time::Instant::now();
        loop {
            let status = self.status().await;
            if wanted(&status) {
                return status;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "node {}: never {what}: {status:#?}",
                self.id
            );
            // Progress has no events: look again at times.
            let _ = tokio::time::timeout(Duration::from_millis(20), events.recv()).await;
        }
    }

    pub async fn in_sync(&self) -> MirrorStatus {
        self.until("in sync", |status| {
            status.core.replication == Replication::Established
        })
        .await
    }

    pub async fn promote(&self) {
        self.promote_mirror("pg").await;
    }

    pub async fn promote_mirror(&self, name: &str) {
        let reply = self
            .engine()
            .command(
                name,
                Command::Promote {
                    force: false,
                    while_resyncing: false,
                },
            )
            .await;
        assert_eq!(reply, Ok(Reply::Done));
    }

    /// Adds a mirror without a peer, and makes it Primary.
    pub async fn add_alone(&self, name: &str, mirror: u128) {
        self.make_copy(name, mirror, true);
        let config = self.mirror(name, mirror, NodeId::NOBODY.0, Solo::Never);
        self.add(config).await.expect(name);
        self.promote_mirror(name).await;
    }

    pub async fn demote(&self) {
        let demote = Command::Demote { force: false };
        let reply = self.engine().command("pg", demote).await;
        assert_eq!(reply, Ok(Reply::Done));
    }

    /// Ends the engine as a crash of the process would.
    pub async fn crash(&mut self) {
        self.engine.take().expect("running").abandon().await;
    }

    pub async fn stop(&mut self) {
        let left = self.engine.take().expect("running").stop(DEADLINE).await;
        assert!(left.is_empty(), "{left:?}");
    }

    /// Does something with the device on its own thread.
    pub async fn with_device<T, F, R>(&self, work: F) -> R
    where
        F: FnOnce(Disk) -> T + Send + 'static,
        T: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        self.with_device_for(DEADLINE, work).await
    }

    /// As [`Node::with_device`], for work that takes its time.
    pub async fn with_device_for<T, F, R>(&self, deadline: Duration, work: F) -> R
    where
        F: FnOnce(Disk) -> T + Send + 'static,
        T: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        self.on_plane(deadline, |plane| work(Disk::of(&plane, "pg")))
            .await
    }

    /// Does something on the data-plane thread.
    pub async fn on_plane<T, F, R>(&self, deadline: Duration, work: F) -> R
    where
        F: FnOnce(Plane) -> T + Send + 'static,
        T: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let spawned = self.engine().spawn_on(0, |plane| {
            let work = work(plane);
            async move {
                let _ = done.send(work.await);
            }
        });
        assert!(spawned);
        tokio::time::timeout(deadline, result)
            .await
            .expect("in time")
            .expect("done")
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(self.path("pg.img")).expect("read")
    }
}

pub fn layout() -> Layout {
    Layout::new(SIZE, 64, Placement::Own).expect("layout")
}

/// Makes the stores of a fresh copy in `folder`.
pub fn make_copy(folder: &Path, name: &str, mirror: u128, node: u64, zeroed: bool) {
    create_backing_file(&folder.join(format!("{name}.img")), SIZE, true).expect("backing");
    let mut record = Record::new(mirror, node, SIZE);
    record.zeroed = zeroed;
    let superblock = Superblock::new(
        layout(),
        Backing {
            data_offset: 0,
            store_size: SIZE,
        },
        0,
        record,
    );
    let path = folder.join(format!("{name}.meta"));
    let store = create_metadata_store(&path, layout().total_len, &[]).expect("metadata");
    let pool = Pool::new(&PoolConfig {
        bytes: 4 << 20,
        reserve: 0,
        lock: false,
    })
    .expect("pool");
    for chunk in Format::new(&superblock, Fill::Blank) {
        store
            .write_durably(&pool, chunk.offset, &chunk.bytes)
            .expect("write");
    }
}

/// Makes two nodes known to each other.
pub fn introduce(a: &Node, b: &Node) {
    a.engine().set_peers(&[b.as_peer()]);
    b.engine().set_peers(&[a.as_peer()]);
}

/// Two nodes with fresh copies of pg, connected and in sync; the first is Primary.
pub async fn pair(solo: Solo) -> (Node, Node) {
    pair_that_looks(solo, DEFAULT_BUSY_POLL).await
}

/// The same, whose threads look so long before they sleep.
pub async fn pair_that_looks(solo: Solo, busy_poll: Duration) -> (Node, Node) {
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    for node in [&mut a, &mut b] {
        node.busy_poll = busy_poll;
        node.make_copy("pg", PG, true);
        node.start();
    }
    introduce(&a, &b);
    a.add(a.mirror("pg", PG, 2, solo)).await.expect("a");
    b.add(b.mirror("pg", PG, 1, solo)).await.expect("b");
    a.in_sync().await;
    b.in_sync().await;
    a.promote().await;
    (a, b)
}

/// A device with futures for answers.
#[derive(Clone)]
pub struct Disk {
    pub device: MirrorDevice,
    /// When it was opened.
    term: u64,
    waiting: Rc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: RefCell<u64>,
    by_ticket: RefCell<HashMap<u64, oneshot::Sender<Result<Payload, IoError>>>>,
}

impl Requester for Waiting {
    fn complete(&self, ticket: u64, result: Result<Payload, IoError>) {
        let waiting = self
            .by_ticket
            .borrow_mut()
            .remove(&ticket)
            .expect("answered once");
        let _ = waiting.send(result);
    }
}

impl Disk {
    /// The mirror `name` on its thread.
    pub fn of(plane: &Plane, name: &str) -> Self {
        let device = plane.device(name).expect("device");
        Self {
            term: device.term(),
            device,
            waiting: Rc::default(),
        }
    }

    pub async fn ask(&self, request: Request) -> Result<Payload, IoError> {
        let ticket = {
            let mut next = self.waiting.next.borrow_mut();
            *next += 1;
            *next
        };
        let (sender, answer) = oneshot::channel();
        self.waiting.by_ticket.borrow_mut().insert(ticket, sender);
        self.device.submit(
            self.term,
            request,
            Rc::clone(&self.waiting) as Rc<dyn Requester>,
            ticket,
        );
        answer.await.expect("answered")
    }

    pub async fn write(&self, offset: u64, byte: u8, len: usize) -> Result<(), IoError> {
        let mut buffer = self.device.buffer(len).await;
        buffer.fill(byte);
        self.ask(Request::Write {
            offset,
            data: buffer.freeze(),
            fua: false,
        })
        .await
        .map(drop)
    }

    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, IoError> {
        self.ask(Request::Read { offset, len })
            .await
            .map(|payload| match payload {
                Payload::Whole(bytes) => bytes,
                Payload::Parts(parts) => parts.concat().into(),
            })
    }

    /// Whether anything is told to be a hole.
    pub async fn has_holes(&self) -> bool {
        let stretches = self.device.allocation(0, SIZE, 64).await;
        stretches.iter().any(|stretch| stretch.is_set)
    }

    pub async fn flush(&self) -> Result<(), IoError> {
        self.ask(Request::Flush).await.map(drop)
    }
}
