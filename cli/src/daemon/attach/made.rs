//! A mirror and a machine that are made up, for the tests beside this. The drivers are [`super::made_nbd`]'s and
//! [`super::made_ublk`]'s.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use kagami_bitmap::superblock::Generation;
use kagami_nbd_server::kernel::wire::Builder;
use kagami_nbd_server::ublk::Shape;
use kagami_replicator::core::event::{Refusal, Reply};
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Connection, DiskState, Replication, Role, Time};
use kagami_replicator::core::status::{Counters, Standing, Status};
use kagami_replicator::shell::engine::{DeviceFacts, MirrorEvent};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{broadcast, watch};

use super::super::front_end::Term;
use super::device::Kernel;
use super::host::{Go, Host, Link, NotServed};
use super::made_nbd::{Asking, NbdDriver};
use super::made_ublk::{Driver as UblkDriver, SHAPE, Ublk};
use super::record::{Record, Records};
use super::ublk::{Mark, State};
use super::{Attachments, lock};
use crate::config::Config;
use crate::control::driver::{DeviceId, Driver};
use crate::control::report::DeviceState;

pub(super) const DEADLINE: Duration = Duration::from_secs(30);
pub(super) const UUID: &str = "00112233445566778899aabbccddeeff";
pub(super) const IDENTIFIER: &str = "kagami-00112233445566778899aabbccddeeff-0000000000000007";

// ---- the mirror -----------------------------------------------------------------------------

#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) status: Status,
    /// How a promotion ends.
    pub(super) promotes: Result<(), &'static str>,
    /// A promotion waits for ever, as for an arbiter that is away.
    pub(super) waits: bool,
    pub(super) promotions: usize,
    pub(super) sessions: usize,
    /// Queues can't be opened, and why.
    pub(super) opens: Result<(), &'static str>,
    /// They are opened in part, and stay so.
    pub(super) keeps_queues: bool,
    /// It is being demoted: its role is the old one, and it answers nothing.
    pub(super) demotes: bool,
    /// Requests are refused that only a Primary may answer.
    pub(super) refuses: watch::Sender<bool>,
    /// A request comes from the kernel.
    pub(super) requests: watch::Sender<usize>,
    /// How many of them were answered.
    pub(super) answered: usize,
    /// Ends the running session from the mirror's side.
    pub(super) cut: watch::Sender<usize>,
}

pub(super) const FACTS: DeviceFacts = DeviceFacts {
    size: 1 << 20,
    logical_block: 512,
    max_payload: 1 << 20,
    rotational: false,
};

#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) mirror: Arc<Mutex<Mirror>>,
    pub(super) ublk: Ublk,
    pub(super) events: broadcast::Sender<MirrorEvent>,
}

pub(super) fn status(role: Role) -> Status {
    Status {
        size: 1 << 20,
        role,
        term: 0,
        disk: DiskState::UpToDate,
        peer_role: Some(Role::Secondary),
        peer_disk: DiskState::UpToDate,
        connection: Connection::Connected,
        connection_since: Time(0),
        replication: Replication::Established,
        generation: Some(Generation { counter: 3, tag: 9 }),
        was_primary: false,
        alone_since: None,
        alone_by: None,
        standing: Standing::Secondary,
        peer_lease_ends: Time(0),
        marked_blocks: 0,
        in_flight: 0,
        held: None,
        arbiter_fault: None,
        verdict: None,
        chosen: None,
        progress: None,
        round_trip_ns: None,
        counters: Counters::default(),
    }
}

pub(super) fn refusal(what: &str) -> Refusal {
    Refusal {
        what: what.to_owned(),
        facts: Vec::new(),
        next: "wait".to_owned(),
    }
}

impl Made {
    pub(super) fn new() -> Self {
        let mirror = Mirror {
            status: status(Role::Secondary),
            promotes: Ok(()),
            waits: false,
            promotions: 0,
            sessions: 0,
            opens: Ok(()),
            keeps_queues: false,
            demotes: false,
            refuses: watch::Sender::new(false),
            requests: watch::Sender::new(0),
            answered: 0,
            cut: watch::Sender::new(0),
        };
        Self {
            mirror: Arc::new(Mutex::new(mirror)),
            ublk: Ublk::default(),
            events: broadcast::Sender::new(64),
        }
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Mirror) -> T) -> T {
        change(&mut lock(&self.mirror))
    }

    pub(super) fn happens(&self, notice: Notice) {
        let event = MirrorEvent {
            mirror: "pg".into(),
            at: SystemTime::now(),
            notice,
        };
        let _ = self.events.send(event);
    }

    pub(super) fn is_overwritten(&self) {
        self.happens(Notice::Replication {
            from: Replication::Off,
            to: Replication::SyncTarget,
        });
    }

    /// It stops being Primary, or is again; no front end asks for anything meanwhile.
    pub(super) fn is_primary(&self, is: bool) {
        let (from, to) = self.change(|mirror| {
            let from = mirror.status.role;
            let to = if is { Role::Primary } else { Role::Secondary };
            mirror.status.term += u64::from(from == Role::Primary && !is);
            mirror.status.role = to;
            mirror.promotes = if is { Ok(()) } else { Err("the peer is away") };
            (from, to)
        });
        let cause = "made up";
        self.happens(Notice::Role { from, to, cause });
    }

    pub(super) fn asks(&self) {
        self.change(|mirror| mirror.requests.send_modify(|asked| *asked += 1));
    }

    /// Answers a request of a session that is served in that term, if the mirror does.
    fn answers(&self, term: &Term) -> bool {
        self.change(|mirror| {
            let status = &mirror.status;
            let in_term = status.role == Role::Primary && status.term == term.get();
            let answers = in_term && !mirror.demotes;
            mirror.answered += usize::from(answers);
            answers
        })
    }

    pub(super) fn cut_session(&self) {
        self.change(|mirror| mirror.cut.send_modify(|cuts| *cuts += 1));
    }
}

impl Host for Made {
    async fn status(&self, _: &str) -> Option<Status> {
        Some(self.change(|mirror| mirror.status.clone()))
    }

    async fn promote(&self, _: &str) -> Result<Reply, Refusal> {
        let waits = self.change(|mirror| {
            mirror.promotions += 1;
            mirror.waits
        });
        if waits {
            std::future::pending::<()>().await;
        }
        self.change(|mirror| {
            mirror.promotes.map_err(refusal)?;
            mirror.status.role = Role::Primary;
            Ok(Reply::Done)
        })
    }

    async fn demote(&self, _: &str) -> Result<Reply, Refusal> {
        self.change(|mirror| {
            mirror.status.term += u64::from(mirror.status.role == Role::Primary);
            mirror.status.role = Role::Secondary;
        });
        Ok(Reply::Done)
    }

    async fn serve(
        &self,
        _: &str,
        term: u64,
        socket: UnixStream,
    ) -> Result<(Link, DeviceFacts), Refusal> {
        let (link, ends) = Link::new(term);
        let mut order = ends.order;
        let (mut cut, mut requests) = self.change(|mirror| {
            mirror.sessions += 1;
            (mirror.cut.subscribe(), mirror.requests.subscribe())
        });
        let mirror = self.clone();
        socket.set_nonblocking(true).expect("set");
        let mut socket = tokio::net::UnixStream::from_std(socket).expect("a socket");
        tokio::spawn(async move {
            let mut byte = [0; 1];
            loop {
                tokio::select! {
                    _ = requests.changed() => {
                        if mirror.answers(&ends.term) {
                            continue;
                        }
                    }
                    _ = socket.read(&mut byte) => {}
                    _ = order.wait_for(|go| *go != Go::On) => {}
                    _ = cut.changed() => {}
                }
                break;
            }
            drop(socket);
            drop(ends.end);
        });
        Ok((link, FACTS))
    }

    async fn facts(&self, _: &str) -> Result<DeviceFacts, Refusal> {
        Ok(FACTS)
    }

    async fn serve_queues(
        &self,
        _: &str,
        term: u64,
        (id, shape): (u32, Shape),
    ) -> Result<Link, NotServed> {
        assert_eq!(shape, SHAPE);
        self.change(|mirror| mirror.opens).map_err(refusal)?;
        if self.change(|mirror| mirror.keeps_queues) {
            return Err(NotServed {
                refusal: refusal("no locked memory"),
                holds_queues: true,
            });
        }
        let (link, ends) = Link::new(term);
        let (mut order, park) = (ends.order, ends.parked);
        let (mut cut, mut refuses, mut requests) = self.change(|mirror| {
            mirror.sessions += 1;
            let (cut, refuses) = (mirror.cut.subscribe(), mirror.refuses.subscribe());
            (cut, refuses, mirror.requests.subscribe())
        });
        let mirror = self.clone();
        let ublk = self.ublk.clone();
        let fetched = lock(&ublk.0).fetch(id, order.clone());
        fetched.map_err(|fault| refusal(&fault.words))?;
        tokio::spawn(async move {
            let (mut go, mut holds) = (Go::On, false);
            loop {
                holds = holds && go == Go::On && !mirror.answers(&ends.term);
                match go {
                    Go::On => park.send_replace(*refuses.borrow_and_update() || holds),
                    Go::Refuse => false,
                    // The queues stay open.
                    Go::Leave | Go::Cut => break,
                    Go::Close => {
                        lock(&ublk.0).close(id);
                        break;
                    }
                };
                tokio::select! {
                    changed = order.changed() => {
                        go = if changed.is_ok() { *order.borrow_and_update() } else { Go::Leave };
                        if matches!(go, Go::On | Go::Leave) {
                            let word = format!("{go:?} {id}").to_lowercase();
                            lock(&ublk.0).log.push(word);
                        }
                    }
                    _ = requests.changed(), if go == Go::On && !*park.borrow() => holds = true,
                    _ = refuses.wait_for(|refuses| *refuses), if go == Go::On && !*park.borrow() => {}
                    // The kernel's end of it is gone, or it broke.
                    _ = cut.changed() => break,
                }
            }
            drop(ends.end);
        });
        Ok(link)
    }

    fn events(&self) -> broadcast::Receiver<MirrorEvent> {
        self.events.subscribe()
    }
}

// ---- a machine ------------------------------------------------------------------------------

/// Those that the machine's tree has files of.
const DEVICES: [[DeviceId; 4]; 2] = [
    [
        DeviceId::nbd(0),
        DeviceId::nbd(1),
        DeviceId::nbd(2),
        DeviceId::nbd(3),
    ],
    [
        DeviceId::ublk(0),
        DeviceId::ublk(1),
        DeviceId::ublk(2),
        DeviceId::ublk(3),
    ],
];

/// A machine with four devices of each driver and one mirror.
pub(super) struct Machine {
    pub(super) folder: tempfile::TempDir,
    pub(super) driver: Arc<Mutex<NbdDriver>>,
    pub(super) mirror: Made,
}

impl Machine {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        for name in DEVICES.iter().flat_map(|kind| kind.map(|id| id.name())) {
            let device = path.join("sys/block").join(name);
            fs::create_dir_all(device.join("queue")).expect("made");
            fs::write(device.join("size"), "0\n").expect("written");
            fs::write(device.join("queue/io_timeout"), "1000\n").expect("written");
        }
        fs::create_dir_all(path.join("dev")).expect("made");
        fs::create_dir_all(path.join("proc/self")).expect("made");
        let machine = Self {
            driver: Arc::default(),
            mirror: Made::new(),
            folder,
        };
        machine.helper("echo done\nexec cat >/dev/null\n");
        machine
    }

    /// Every device's helper is a shell that does this.
    fn helper(&self, script: &str) {
        // Written by another process: a program that this one has open for writing, in any thread's
        // child, could not be run.
        let write = "printf '#!/bin/sh\\n%s' \"$1\" >$0 && chmod 755 $0";
        let written = std::process::Command::new("sh")
            .args(["-c", write])
            .arg(self.path().join("helper"))
            .arg(script)
            .status();
        assert!(written.expect("a shell").success());
    }

    /// Every device has to be set up by the helper, which waits until it is released.
    pub(super) fn helper_waits(&self) {
        for name in DEVICES.iter().flat_map(|kind| kind.map(|id| id.name())) {
            let queue = format!("sys/block/{name}/queue");
            fs::write(self.path().join(queue).join("io_timeout"), "30000\n").expect("written");
        }
        let at = self.path().display();
        self.helper(&format!(
            ": >{at}/begun\nuntil [ -e {at}/released ]; do sleep 0.01; done\necho done\nexec cat >/dev/null\n"
        ));
    }

    pub(super) fn helper_has_begun(&self) -> bool {
        self.path().join("begun").exists()
    }

    pub(super) fn release_helper(&self) {
        fs::write(self.path().join("released"), "").expect("written");
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn records(&self) -> Records {
        Records::of(&self.path().join("state"))
    }

    pub(super) fn record(&self) -> Option<Record> {
        self.records().read("pg").expect("read")
    }

    /// A daemon that begins.
    pub(super) async fn daemon(&self) -> Attachments<Made> {
        let daemon = self.daemon_before_resume();
        daemon.resume("pg").await;
        daemon
    }

    pub(super) fn daemon_before_resume(&self) -> Attachments<Made> {
        let (driver, sysfs) = (Arc::clone(&self.driver), self.path().join("sys"));
        let kernel = Kernel {
            open: Arc::new(move || {
                Ok(Box::new(Asking {
                    driver: Arc::clone(&driver),
                    sysfs: sysfs.clone(),
                    answers: VecDeque::new(),
                }))
            }),
            ublk: Arc::new(self.mirror.ublk.clone()),
            sysfs: self.path().join("sys"),
            procfs: self.path().join("proc"),
            dev: self.path().join("dev"),
            helper: self.path().join("helper"),
            disconnected: Arc::default(),
        };
        let text = format!(
            "[node]\nname = \"alpha\"\nid = 7\n[mirror.pg]\nuuid = \"{UUID}\"\nsize = \"1MiB\"\nbacking = \"/d/pg\"\nmetadata = \"/d/pg.meta\"\n"
        );
        let file = self.path().join("kagami.toml");
        fs::write(&file, text).expect("written");
        let config = Config::load(&file).expect("a configuration");
        let state = self.path().join("state");
        let daemon = Attachments::new(self.mirror.clone(), kernel, &config, &state);
        daemon.hear("pg");
        daemon
    }

    /// A device that a daemon before this one set up, and left dead.
    pub(super) fn left_behind(&self, record: &Record) {
        self.records().write("pg", record).expect("written");
        if record.driver == Driver::Ublk {
            let mark = Mark::of(IDENTIFIER);
            return self.ublk(|ublk| ublk.leave_behind(record.device, mark, State::Quiesced));
        }
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
    }

    pub(super) fn ublk<T>(&self, change: impl FnOnce(&mut UblkDriver) -> T) -> T {
        change(&mut lock(&self.mirror.ublk.0))
    }

    /// How often a device that was there was served by another session.
    pub(super) fn served_again(&self) -> usize {
        lock(&self.driver).reconfigured + self.ublk(|ublk| ublk.count("recover"))
    }

    pub(super) fn is_set_up(&self, id: DeviceId) -> bool {
        match id.driver {
            Driver::Nbd => lock(&self.driver).devices.contains_key(&id.index),
            Driver::Ublk => self.ublk(|ublk| ublk.devices.contains_key(&id.index)),
        }
    }

    /// Another program takes a device down.
    pub(super) fn taken_down(&self, id: DeviceId) {
        match id.driver {
            Driver::Nbd => {
                let mut asking = Asking {
                    driver: Arc::clone(&self.driver),
                    sysfs: self.path().join("sys"),
                    answers: VecDeque::new(),
                };
                let down = Builder::new(0x22, 1, 2, 1).u32(1, id.index).finish();
                assert_eq!(asking.carry_out(&down), (1, 0));
            }
            Driver::Ublk => {
                self.ublk(|ublk| ublk.devices.remove(&id.index));
                self.mirror.cut_session();
            }
        }
    }

    /// The daemon's process ends: only now the kernel knows of it.
    pub(super) fn process_ends(&self) {
        self.ublk(UblkDriver::process_ends);
    }
}

/// Waits for an effect.
pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(super) fn shown(daemon: &Attachments<Made>) -> Option<DeviceState> {
    daemon.report("pg").map(|report| report.state)
}
