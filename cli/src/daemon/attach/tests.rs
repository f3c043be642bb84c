//! Keepers with a kernel and a mirror that are made up: what is given a socket, and what never is.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use kagami_bitmap::superblock::Generation;
use kagami_nbd_server::kernel::Transport;
use kagami_nbd_server::kernel::client::is_hung_up;
use kagami_nbd_server::kernel::wire::{Attribute, Builder, ERROR, Messages};
use kagami_replicator::core::event::{Refusal, Reply};
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Connection, DiskState, Replication, Role};
use kagami_replicator::core::status::{Counters, Status};
use kagami_replicator::shell::engine::{DeviceFacts, MirrorEvent};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{broadcast, watch};

use super::device::Kernel;
use super::host::{Go, Host, Link};
use super::record::{Record, Records};
use super::{Attachments, lock};
use crate::config::Config;
use crate::control::report::DeviceState;

const DEADLINE: Duration = Duration::from_secs(30);
const UUID: &str = "00112233445566778899aabbccddeeff";
const IDENTIFIER: &str = "kagami-00112233445566778899aabbccddeeff-0000000000000007";

// ---- the kernel -----------------------------------------------------------------------------

/// The nbd driver: what it holds for each device that is set up.
#[derive(Debug, Default)]
struct Driver {
    devices: BTreeMap<u32, (String, UnixStream)>,
    reconfigured: usize,
}

/// One netlink socket to it.
struct Asking {
    driver: Arc<Mutex<Driver>>,
    sysfs: PathBuf,
    answers: VecDeque<Vec<u8>>,
}

/// `NLMSG_ERROR`
fn acknowledgement(sequence: u32, errno: i32) -> Vec<u8> {
    let mut bytes = 20u32.to_ne_bytes().to_vec();
    bytes.extend(ERROR.to_ne_bytes());
    bytes.extend([0, 0]);
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend((-errno).to_ne_bytes());
    bytes
}

/// The kernel's own reference to a descriptor of the caller's.
fn taken(number: u32) -> UnixStream {
    let me = rustix::process::getpid();
    let me = rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty()).expect("me");
    let flags = rustix::process::PidfdGetfdFlags::empty();
    let number = i32::try_from(number).expect("a descriptor");
    let fd = rustix::process::pidfd_getfd(me.as_fd(), number, flags).expect("its socket");
    UnixStream::from(fd)
}

impl Asking {
    fn set_up(&self, index: u32, backend: Option<&str>) {
        let device = self.sysfs.join(format!("block/nbd{index}"));
        if let Some(backend) = backend {
            fs::write(device.join("pid"), "4711\n").expect("written");
            fs::write(device.join("backend"), backend).expect("written");
        } else {
            let _ = fs::remove_file(device.join("pid"));
            let _ = fs::remove_file(device.join("backend"));
        }
    }

    fn carry_out(&mut self, request: &[u8]) -> (u32, i32) {
        let message = Messages(request).next().expect("one").expect("whole");
        let (command, attributes) = message.generic().expect("generic");
        let sequence = message.sequence;
        if message.kind == 16 {
            let family = Builder::new(16, sequence, 1, 2).bytes(1, &0x22u16.to_ne_bytes());
            self.answers.push_back(family.finish());
            return (sequence, 0);
        }
        let index = attributes.find(1).and_then(Attribute::u32).expect("index");
        let identifier = attributes.find(10).and_then(Attribute::text);
        let socket = || {
            let list = attributes.find(7).expect("sockets").nested();
            let item = list.find(1).expect("one").nested();
            taken(item.find(1).and_then(Attribute::u32).expect("a number"))
        };
        let mut driver = lock(&self.driver);
        let errno = match command {
            1 if driver.devices.contains_key(&index) => 16,
            1 => {
                let identifier = identifier.expect("always given");
                driver
                    .devices
                    .insert(index, (identifier.to_owned(), socket()));
                self.set_up(index, Some(identifier));
                0
            }
            2 => match driver.devices.remove(&index) {
                Some(_) => {
                    self.set_up(index, None);
                    0
                }
                None => 22,
            },
            3 => match driver.devices.get_mut(&index) {
                Some((known, held)) if Some(known.as_str()) == identifier => {
                    if is_hung_up(held).expect("asked") {
                        *held = socket();
                        driver.reconfigured += 1;
                    }
                    0
                }
                _ => 22,
            },
            other => panic!("command {other}"),
        };
        (sequence, errno)
    }
}

impl Transport for Asking {
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        let (sequence, errno) = self.carry_out(request);
        self.answers.push_back(acknowledgement(sequence, errno));
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        self.answers
            .pop_front()
            .ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

// ---- the mirror -----------------------------------------------------------------------------

#[derive(Debug)]
struct Mirror {
    status: Status,
    /// How a promotion ends.
    promotes: Result<(), &'static str>,
    promotions: usize,
    sessions: usize,
    /// Ends the running session from the mirror's side.
    cut: watch::Sender<usize>,
}

#[derive(Clone, Debug)]
struct Made {
    mirror: Arc<Mutex<Mirror>>,
    events: broadcast::Sender<MirrorEvent>,
}

fn status(role: Role) -> Status {
    Status {
        size: 1 << 20,
        role,
        disk: DiskState::UpToDate,
        peer_role: Some(Role::Secondary),
        peer_disk: DiskState::UpToDate,
        connection: Connection::Connected,
        connection_since: kagami_replicator::core::state::Time(0),
        replication: Replication::Established,
        generation: Some(Generation { counter: 3, tag: 9 }),
        was_primary: false,
        alone_since: None,
        alone_by: None,
        marked_blocks: 0,
        in_flight: 0,
        held: None,
        verdict: None,
        progress: None,
        round_trip_ns: None,
        counters: Counters::default(),
    }
}

fn refusal(what: &str) -> Refusal {
    Refusal {
        what: what.to_owned(),
        facts: Vec::new(),
        next: "wait".to_owned(),
    }
}

impl Made {
    fn new() -> Self {
        let mirror = Mirror {
            status: status(Role::Secondary),
            promotes: Ok(()),
            promotions: 0,
            sessions: 0,
            cut: watch::Sender::new(0),
        };
        Self {
            mirror: Arc::new(Mutex::new(mirror)),
            events: broadcast::Sender::new(64),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Mirror) -> T) -> T {
        change(&mut lock(&self.mirror))
    }

    fn happens(&self, notice: Notice) {
        let event = MirrorEvent {
            mirror: "pg".into(),
            at: SystemTime::now(),
            notice,
        };
        let _ = self.events.send(event);
    }

    fn is_overwritten(&self) {
        self.happens(Notice::Replication {
            from: Replication::Off,
            to: Replication::SyncTarget,
        });
    }

    fn cut_session(&self) {
        self.change(|mirror| mirror.cut.send_modify(|cuts| *cuts += 1));
    }
}

impl Host for Made {
    async fn status(&self, _: &str) -> Option<Status> {
        Some(self.change(|mirror| mirror.status.clone()))
    }

    async fn promote(&self, _: &str) -> Result<Reply, Refusal> {
        self.change(|mirror| {
            mirror.promotions += 1;
            mirror.promotes.map_err(refusal)?;
            mirror.status.role = Role::Primary;
            Ok(Reply::Done)
        })
    }

    async fn demote(&self, _: &str) -> Result<Reply, Refusal> {
        self.change(|mirror| mirror.status.role = Role::Secondary);
        Ok(Reply::Done)
    }

    async fn serve(&self, _: &str, socket: UnixStream) -> Result<(Link, DeviceFacts), Refusal> {
        let (link, mut order, end) = Link::new();
        let mut cut = self.change(|mirror| {
            mirror.sessions += 1;
            mirror.cut.subscribe()
        });
        socket.set_nonblocking(true).expect("set");
        let mut socket = tokio::net::UnixStream::from_std(socket).expect("a socket");
        tokio::spawn(async move {
            let mut byte = [0; 1];
            tokio::select! {
                _ = socket.read(&mut byte) => {}
                _ = order.wait_for(|go| *go != Go::On) => {}
                _ = cut.changed() => {}
            }
            drop(socket);
            drop(end);
        });
        let facts = DeviceFacts {
            size: 1 << 20,
            logical_block: 512,
            max_payload: 1 << 20,
            rotational: false,
        };
        Ok((link, facts))
    }

    fn events(&self) -> broadcast::Receiver<MirrorEvent> {
        self.events.subscribe()
    }
}

// ---- a machine ------------------------------------------------------------------------------

/// A machine with four devices and one mirror.
struct Machine {
    folder: tempfile::TempDir,
    driver: Arc<Mutex<Driver>>,
    mirror: Made,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        for index in 0..4 {
            let device = path.join(format!("sys/block/nbd{index}"));
            fs::create_dir_all(device.join("queue")).expect("made");
            fs::write(device.join("size"), "0\n").expect("written");
            fs::write(device.join("queue/io_timeout"), "1000\n").expect("written");
        }
        fs::create_dir_all(path.join("dev")).expect("made");
        fs::create_dir_all(path.join("proc/self")).expect("made");
        // Written by another process: a program that this one has open for writing, in any thread's
        // child, could not be run.
        let write = "printf '#!/bin/sh\\necho done\\nexec cat >/dev/null\\n' >$0 && chmod 755 $0";
        let written = std::process::Command::new("sh")
            .args(["-c", write])
            .arg(path.join("helper"))
            .status();
        assert!(written.expect("a shell").success());
        Self {
            driver: Arc::default(),
            mirror: Made::new(),
            folder,
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn records(&self) -> Records {
        Records::of(&self.path().join("state"))
    }

    fn record(&self) -> Option<Record> {
        self.records().read("pg").expect("read")
    }

    /// A daemon that begins.
    async fn daemon(&self) -> Attachments<Made> {
        let daemon = self.daemon_before_resume();
        daemon.resume().await;
        daemon
    }

    fn daemon_before_resume(&self) -> Attachments<Made> {
        let (driver, sysfs) = (Arc::clone(&self.driver), self.path().join("sys"));
        let kernel = Kernel {
            open: Arc::new(move || {
                Ok(Box::new(Asking {
                    driver: Arc::clone(&driver),
                    sysfs: sysfs.clone(),
                    answers: VecDeque::new(),
                }))
            }),
            sysfs: self.path().join("sys"),
            procfs: self.path().join("proc"),
            dev: self.path().join("dev"),
            helper: self.path().join("helper"),
        };
        let text = format!(
            "[node]\nname = \"alpha\"\nid = 7\n[mirror.pg]\nuuid = \"{UUID}\"\nsize = \"1MiB\"\nbacking = \"/d/pg\"\nmetadata = \"/d/pg.meta\"\n"
        );
        let file = self.path().join("kagami.toml");
        fs::write(&file, text).expect("written");
        let config = Config::load(&file).expect("a configuration");
        Attachments::new(
            self.mirror.clone(),
            kernel,
            &config,
            &self.path().join("state"),
        )
    }

    /// A device that a daemon before this one set up, and left dead.
    fn left_behind(&self, record: &Record) {
        let (theirs, ours) = UnixStream::pair().expect("a pair");
        drop(ours);
        let asking = Asking {
            driver: Arc::clone(&self.driver),
            sysfs: self.path().join("sys"),
            answers: VecDeque::new(),
        };
        asking.set_up(record.device, Some(IDENTIFIER));
        let device = (IDENTIFIER.to_owned(), theirs);
        lock(&self.driver).devices.insert(record.device, device);
        self.records().write("pg", record).expect("written");
    }

    fn reconfigured(&self) -> usize {
        lock(&self.driver).reconfigured
    }

    fn is_set_up(&self, index: u32) -> bool {
        lock(&self.driver).devices.contains_key(&index)
    }
}

/// Waits for an effect.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn shown(daemon: &Attachments<Made>) -> Option<DeviceState> {
    daemon.report("pg").map(|report| report.state)
}

// ---- what is tried --------------------------------------------------------------------------

#[tokio::test]
async fn attached_found_again_after_a_stop_and_detached() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    let attached = daemon.attach("pg", Some(2)).await.expect("attached");
    assert!(attached.device.ends_with("/dev/nbd2") && !attached.already);
    let link = machine.path().join("dev/kagami/pg");
    assert_eq!(fs::read_link(&link).expect("a link"), Path::new("../nbd2"));
    assert!(daemon.attach("pg", None).await.expect("there").already);
    let other = daemon.attach("pg", Some(1)).await.expect_err("refused");
    assert!(other.what.contains("already") && other.what.contains("nbd2"));

    daemon.stop().await;
    assert!(machine.is_set_up(2), "the kernel keeps it");
    assert_eq!(machine.record().expect("remembered").stopped_at, Some(9));
    machine
        .mirror
        .change(|mirror| mirror.status.role = Role::Secondary);

    let next = machine.daemon().await;
    until("attached again", || {
        shown(&next) == Some(DeviceState::Attached)
    })
    .await;
    assert_eq!(machine.reconfigured(), 1);
    assert_eq!(machine.record().expect("remembered").stopped_at, None);
    next.detach("pg", false).await.expect("detached");
    assert!(!machine.is_set_up(2) && machine.record().is_none() && !link.exists());
    let nothing = next.detach("pg", false).await.expect("nothing to do");
    assert!(matches!(nothing, Reply::Nothing(_)));
}

#[tokio::test]
async fn what_is_refused_leaves_the_roles_as_they_were() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    // Another program's device: said before anything is promoted.
    let device = machine.path().join("sys/block/nbd1");
    fs::write(device.join("pid"), "99\n").expect("written");
    fs::create_dir_all(machine.path().join("proc/99")).expect("made");
    fs::write(machine.path().join("proc/99/comm"), "nbd-client\n").expect("written");
    let refused = daemon.attach("pg", Some(1)).await.expect_err("taken");
    assert!(refused.what.contains("nbd1 is in use by another program"));
    assert!(refused.facts[0].contains("process 99 (nbd-client)"));
    // Without the right.
    let capabilities = machine.path().join("proc/self/status");
    fs::write(&capabilities, "Name:\tkagami\nCapEff:\t0000000000000400\n").expect("written");
    let refused = daemon.attach("pg", None).await.expect_err("no right");
    assert!(refused.what.contains("CAP_SYS_ADMIN"), "{}", refused.what);
    assert_eq!(machine.mirror.change(|mirror| mirror.promotions), 0);
    fs::write(&capabilities, "CapEff:\t000001ffffffffff\n").expect("written");
    // The driver refuses at last: the promotion is taken back.
    fs::remove_file(device.join("pid")).expect("removed");
    let (theirs, _ours) = UnixStream::pair().expect("a pair");
    let hidden = ("of a program that is not seen".to_owned(), theirs);
    lock(&machine.driver).devices.insert(1, hidden);
    let refused = daemon.attach("pg", Some(1)).await.expect_err("busy");
    assert!(refused.what.contains("in use"), "{}", refused.what);
    let role = machine.mirror.change(|mirror| mirror.status.role);
    assert_eq!(role, Role::Secondary);
    // And a promotion that is refused.
    machine
        .mirror
        .change(|mirror| mirror.promotes = Err("the peer is Primary"));
    let refused = daemon.attach("pg", None).await.expect_err("not Primary");
    assert!(refused.what.contains("the peer is Primary"));
    assert!(machine.record().is_none());
}

#[tokio::test]
async fn a_session_that_ends_is_followed_by_another_on_the_same_device() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", Some(0)).await.expect("attached");
    for round in 1..=3 {
        machine.mirror.cut_session();
        until("another socket", || machine.reconfigured() == round).await;
    }
    until("attached", || shown(&daemon) == Some(DeviceState::Attached)).await;
}

#[tokio::test]
async fn another_program_that_takes_it_down_ends_it() {
    let machine = Machine::new();
    let daemon = machine.daemon().await;
    daemon.attach("pg", Some(0)).await.expect("attached");
    let mut asking = Asking {
        driver: Arc::clone(&machine.driver),
        sysfs: machine.path().join("sys"),
        answers: VecDeque::new(),
    };
    let down = Builder::new(0x22, 1, 2, 1).u32(1, 0).finish();
    assert_eq!(asking.carry_out(&down), (1, 0));
    until("it is forgotten", || shown(&daemon).is_none()).await;
    assert!(machine.record().is_none());
}

#[tokio::test]
async fn a_dead_primary_takes_its_device_back_and_a_stranger_to_its_data_does_not() {
    let machine = Machine::new();
    machine.left_behind(&Record::new(UUID, 3, 1));
    // Neither was it Primary when it died, nor did it stop at this generation.
    let daemon = machine.daemon().await;
    until("it is stale", || shown(&daemon) == Some(DeviceState::Stale)).await;
    let refused = daemon.attach("pg", None).await.expect_err("stale");
    assert!(refused.next.contains("umount"), "{}", refused.next);
    assert_eq!((machine.reconfigured(), machine.is_set_up(3)), (0, true));
    daemon.stop().await;

    let machine = Machine::new();
    machine.left_behind(&Record::new(UUID, 3, 1));
    machine
        .mirror
        .change(|mirror| mirror.status.was_primary = true);
    let daemon = machine.daemon().await;
    until("attached", || shown(&daemon) == Some(DeviceState::Attached)).await;
    assert_eq!(machine.reconfigured(), 1);
}

/// However soon this node is Primary again: between, its copy was the other's.
#[tokio::test]
async fn a_device_whose_copy_was_overwritten_gets_no_socket() {
    for before_resume in [true, false] {
        let machine = Machine::new();
        machine.left_behind(&Record::new(UUID, 3, 1));
        machine.mirror.change(|mirror| {
            mirror.status.was_primary = true;
            mirror.promotes = Err("this copy is being resynchronised");
        });
        let daemon = machine.daemon_before_resume();
        if before_resume {
            // It is over before anybody asks: the events alone tell of it.
            machine.mirror.is_overwritten();
            machine.mirror.change(|mirror| mirror.promotes = Ok(()));
        }
        daemon.resume().await;
        if !before_resume {
            let mirror = machine.mirror.clone();
            until("an attempt", || mirror.change(|m| m.promotions) > 0).await;
            machine.mirror.is_overwritten();
            machine.mirror.change(|mirror| mirror.promotes = Ok(()));
        }
        until("it is stale", || shown(&daemon) == Some(DeviceState::Stale)).await;
        assert_eq!(machine.reconfigured(), 0);
        let why = machine.record().expect("remembered").stale;
        assert!(why.expect("why").contains("overwritten"));
        daemon.stop().await;
        // The next daemon knows as well.
        let next = machine.daemon().await;
        until("still stale", || shown(&next) == Some(DeviceState::Stale)).await;
        assert_eq!(machine.reconfigured(), 0);
    }
}

#[tokio::test]
async fn after_a_reboot_it_is_the_same_device_once_the_copy_is_caught_up() {
    let machine = Machine::new();
    machine
        .records()
        .write("pg", &Record::new(UUID, 3, 1))
        .expect("written");
    machine.mirror.change(|mirror| {
        mirror.promotes = Err("this copy is being resynchronised");
        mirror.status.replication = Replication::SyncTarget;
    });
    let daemon = machine.daemon_before_resume();
    machine.mirror.is_overwritten();
    daemon.resume().await;
    let mirror = machine.mirror.clone();
    until("an attempt", || mirror.change(|m| m.promotions) > 0).await;
    assert_eq!(shown(&daemon), Some(DeviceState::Waiting));
    machine.mirror.change(|mirror| {
        mirror.promotes = Ok(());
        mirror.status.replication = Replication::Established;
    });
    machine.mirror.happens(Notice::Replication {
        from: Replication::SyncTarget,
        to: Replication::Established,
    });
    until("attached", || shown(&daemon) == Some(DeviceState::Attached)).await;
    assert!(machine.is_set_up(3));
    assert_eq!(machine.record().expect("remembered").device, 3);
}

#[tokio::test]
async fn after_a_takeover_it_does_not_come_back_by_itself() {
    let machine = Machine::new();
    machine
        .records()
        .write("pg", &Record::new(UUID, 3, 1))
        .expect("written");
    machine.mirror.change(|mirror| {
        mirror.promotes = Err("the peer is Primary");
        mirror.status.peer_role = Some(Role::Primary);
    });
    let daemon = machine.daemon().await;
    until("it is forgotten", || shown(&daemon).is_none()).await;
    assert!(machine.record().is_none() && !machine.is_set_up(3));
}

#[tokio::test]
async fn a_daemon_that_begins_looks_for_the_peer_before_it_goes_on_without() {
    let machine = Machine::new();
    machine.left_behind(&Record::new(UUID, 3, 1));
    machine.mirror.change(|mirror| {
        mirror.status.was_primary = true;
        mirror.status.connection = Connection::Connecting;
    });
    let daemon = machine.daemon().await;
    until("a word", || {
        daemon
            .report("pg")
            .and_then(|report| report.why)
            .is_some_and(|why| why.contains("looked for"))
    })
    .await;
    assert_eq!(machine.mirror.change(|mirror| mirror.promotions), 0);
    machine
        .mirror
        .change(|mirror| mirror.status.connection = Connection::Connected);
    machine.mirror.happens(Notice::Connection {
        from: Connection::Connecting,
        to: Connection::Connected,
        cause: String::new(),
    });
    until("attached", || shown(&daemon) == Some(DeviceState::Attached)).await;
}
