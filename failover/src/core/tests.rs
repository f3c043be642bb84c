//! What the simulator leaves out: time that clears counters, fencing, life without an arbiter,
//! groups that wait for others, heartbeats that lie, every refusal, and what scripts see.

use std::collections::BTreeMap;
use std::path::Path;

use super::durable::{EndKind, Stamp};
use super::guard::{Deed, Guard, Word};
use super::message::Brief;
use super::*;

mod alone;
mod anew;
mod meeting;
mod monitors;
mod pause;
mod right;
mod stuck;
mod two_nodes;
mod without_arbiter;

const CLUSTER: &str = r#"
[cluster]
name = "shop"
revision = 3
nodes = ["alpha", "beta"]
[arbiter]
kind = "witness"
name = "gamma"
[heartbeat.lan]
type = "lan"
priority = 1
addresses = { alpha = "10.0.0.1:7791", beta = "10.0.0.2:7791" }
[heartbeat.tty]
type = "serial"
priority = 2
timeout = "4s"
devices = { alpha = "/dev/ttyS0", beta = "/dev/ttyS0" }
[group.pg]
nodes = ["alpha", "beta"]
[group.pg.resource.data]
type = "mirror"
mirror = "pg"
mount = "/srv/pg"
[group.pg.resource.address]
type = "floating-ip"
address = "10.0.0.10/24"
depends = ["data"]
retries = 5
[monitor.port]
type = "tcp"
address = "10.0.0.10:5432"
active = "pg/address"
target = "pg"
interval = "10s"
retries = 1
reactivations = 1
failovers = 0
clear-after = "10m"
"#;

/// A manager whose host does at once what it is asked, and keeps what the manager said.
/// Without having looked whether it runs on the other node.
const START: Command = Command::Start {
    group: 0,
    on: None,
    sure: false,
};

struct TestHost {
    manager: Manager,
    now: u64,
    seq: u64,
    /// What is answered, by a word of the operation: else it is done.
    fails: Vec<&'static str>,
    alerts: Vec<String>,
    runs: Vec<(Work, Vec<(String, String)>)>,
    asked: Vec<(GroupId, bool)>,
    answers: BTreeMap<u64, Result<(), Refusal>>,
    timer: Time,
    said: Option<Snapshot>,
    ended: Option<EndKind>,
    durable: Durable,
    probe_fails: bool,
    probe_warns: bool,
    /// A probe that has not answered, in this case.
    probe_hangs: bool,
    probing: Option<u64>,
    persist_fails: bool,
    /// A write that has not returned, in this case.
    persist_hangs: bool,
    hanging: Option<(u64, Box<Durable>)>,
    /// It hangs from when this is begun.
    hangs_at: Option<&'static str>,
    resets: Vec<String>,
    /// What became of an operation of an earlier manager.
    inquiry: fn(OpId) -> Event,
}

fn start_of(text: &str, durable: Durable, boot: u128) -> Start {
    let cluster = Cluster::parse(Path::new("cluster.toml"), text);
    let cluster = Arc::new(cluster.unwrap_or_else(|error| panic!("{error}")));
    Start {
        cluster,
        me: 0,
        durable,
        boot,
        incarnation: 0,
        host: Host {
            version: "4.3.2".to_owned(),
            ..Host::default()
        },
    }
}

impl TestHost {
    fn new(text: &str) -> Self {
        Self::from(text, Durable::default(), 1)
    }

    fn from(text: &str, durable: Durable, boot: u128) -> Self {
        Self::after(text, durable, boot, |op| Event::OpNever { op })
    }

    fn after(text: &str, durable: Durable, boot: u128, inquiry: fn(OpId) -> Event) -> Self {
        let mut out = Actions::new();
        let start = start_of(text, durable, boot);
        let manager = Manager::new(start, Time(0), &mut out);
        let mut host = Self {
            manager,
            now: 0,
            seq: 0,
            fails: Vec::new(),
            alerts: Vec::new(),
            runs: Vec::new(),
            asked: Vec::new(),
            answers: BTreeMap::new(),
            timer: Time(0),
            said: None,
            ended: None,
            durable: Durable::default(),
            probe_fails: false,
            probe_warns: false,
            probe_hangs: false,
            probing: None,
            persist_fails: false,
            persist_hangs: false,
            hanging: None,
            hangs_at: None,
            resets: Vec::new(),
            inquiry,
        };
        host.carry_out(out);
        host
    }

    fn handle(&mut self, event: Event) {
        let mut out = Actions::new();
        self.manager.handle(Time(self.now), event, &mut out);
        self.carry_out(out);
    }

    fn carry_out(&mut self, actions: Actions) {
        for action in actions {
            match action {
                Action::Persist { seq, state } if self.persist_hangs => {
                    self.hanging = Some((seq, state));
                }
                Action::Persist { seq, state } => {
                    let done = !self.persist_fails;
                    if done {
                        self.durable = *state;
                    }
                    self.handle(Event::Persisted { seq, done });
                }
                Action::Beat { message, .. } => self.said = Some(*message),
                Action::Run {
                    op,
                    work,
                    environment,
                    ..
                } => {
                    self.runs.push((work, environment));
                    let shown = format!("{work:?}");
                    self.persist_hangs |= self.hangs_at.is_some_and(|word| shown.contains(word));
                    let result = if self.fails.iter().any(|word| shown.contains(word)) {
                        OpResult::Failed("no".to_owned())
                    } else {
                        OpResult::Done
                    };
                    self.handle(Event::OpDone { op, result });
                }
                Action::Inquire { op } => self.handle((self.inquiry)(op)),
                Action::Probe { probe, .. } if self.probe_hangs => self.probing = Some(probe),
                Action::Probe { probe, .. } => {
                    let result = if self.probe_fails {
                        OpResult::TimedOut
                    } else if self.probe_warns {
                        OpResult::Warned("somebody else has it".to_owned())
                    } else {
                        OpResult::Done
                    };
                    self.handle(Event::Probed { probe, result });
                }
                Action::AskRight { group, fenced, .. } => self.asked.push((group, fenced)),
                Action::ReleaseRight { group } => {
                    let change = Right::Released;
                    self.handle(Event::Right { group, change });
                }
                Action::CommandDone { id, result } => {
                    let before = self.answers.insert(id, result);
                    assert_eq!(before, None, "command {id} is answered once");
                }
                Action::SetTimer { at } => self.timer = at,
                Action::Alert(alert) => self.alerts.push(alert.to_string()),
                Action::End { kind, .. } => self.ended = Some(kind),
                Action::Reset { why } => self.resets.push(why),
                Action::Stopped { .. } => {}
            }
        }
    }

    /// The disk answers again.
    fn disk_answers(&mut self) {
        self.persist_hangs = false;
        if let Some((seq, state)) = self.hanging.take() {
            self.durable = *state;
            self.handle(Event::Persisted { seq, done: true });
        }
    }

    /// Lets time pass up to then.
    fn until(&mut self, ms: u64) {
        while self.timer.0 <= ms && self.ended.is_none() {
            self.now = self.now.max(self.timer.0);
            self.handle(Event::Timer);
        }
        self.now = ms;
    }

    fn right(&mut self, group: GroupId, change: Right) {
        self.handle(Event::Right { group, change });
    }

    /// What the other node says: `groups` of them idle, with an order that is older than any.
    fn snapshot(&mut self, groups: usize) -> Snapshot {
        self.seq += 1;
        let brief = Brief {
            order: Stamp::default(),
            unsure: true,
            counts: Counts::default(),
            busy: false,
            active: false,
            online: false,
            able: true,
            ready: true,
        };
        Snapshot {
            incarnation: 7,
            echo: self.manager.incarnation,
            met: self.manager.incarnation,
            seq: self.seq,
            revision: 3,
            phase: Phase::Running,
            suspended: Stamp::default(),
            shutdown: Stamp::default(),
            groups: vec![brief; groups],
        }
    }

    fn beat(&mut self, heartbeat: usize, message: Snapshot) {
        let message = Box::new(message);
        self.handle(Event::Beat { heartbeat, message });
    }

    fn hear(&mut self) {
        let message = self.snapshot(self.manager.groups.len());
        self.beat(0, message);
    }

    /// What the other node tells that has taken over this one's orders.
    fn agreed(&mut self) -> Snapshot {
        let mut message = self.snapshot(self.manager.groups.len());
        for (brief, group) in message.groups.iter_mut().zip(&self.durable.groups) {
            brief.order = group.order.clone();
            brief.unsure = false;
        }
        message
    }

    /// Hears it.
    fn agree(&mut self) {
        let message = self.agreed();
        self.beat(0, message);
    }

    /// Hears the other node for so long.
    fn hear_until(&mut self, ms: u64) {
        while self.now < ms {
            self.hear();
            self.until((self.now + 500).min(ms));
        }
    }

    fn command(&mut self, command: Command) -> Result<(), Refusal> {
        let id = self.answers.len() as u64 + 1;
        self.handle(Event::Command { id, command });
        self.answers
            .remove(&id)
            .unwrap_or_else(|| panic!("{command:?} is answered"))
    }

    /// Alone, and the group runs.
    fn alone_and_online(text: &str) -> Self {
        let mut host = Self::new(text);
        host.until(300_000);
        assert_eq!(host.asked, [(0, false)], "{:?}", host.alerts);
        host.right(0, Right::Granted);
        assert_eq!(
            host.manager.group_status(0),
            GroupStatus::Online,
            "{:?}",
            host.alerts
        );
        host
    }

    fn told(&self, words: &str) -> usize {
        self.alerts
            .iter()
            .filter(|alert| alert.contains(words))
            .count()
    }
}

fn replaced(old: &str, new: &str) -> String {
    assert!(CLUSTER.contains(old), "{old}");
    CLUSTER.replacen(old, new, 1)
}

#[test]
fn a_node_alone_waits_five_minutes_and_asks_before_it_starts_anything() {
    let mut host = TestHost::new(CLUSTER);
    host.until(299_999);
    assert_eq!(host.manager.phase(), Phase::Waiting);
    assert!(host.asked.is_empty() && host.runs.is_empty());
    host.until(300_000);
    assert_eq!(host.asked, [(0, false)]);
    assert!(host.runs.is_empty());
    host.right(0, Right::Granted);
    let works: Vec<Work> = host.runs.iter().map(|(work, _)| *work).collect();
    let start = |resource| Work::Start { group: 0, resource };
    assert_eq!(works, [start(0), start(1)]);
}

#[test]
fn an_address_is_tried_as_often_as_the_specification_says() {
    let mut host = TestHost::new(CLUSTER);
    host.fails = vec!["Start { group: 0, resource: 1 }"];
    host.until(300_000);
    host.right(0, Right::Granted);
    // The mount and 1 + 5 tries of the address, five seconds apart.
    for tries in 1..=6 {
        assert_eq!(host.runs.len(), 1 + tries, "{:?}", host.alerts);
        assert_eq!(host.told("not activated, tried again in 5s"), tries.min(5));
        let state = if tries < 6 {
            GroupStatus::OnlinePending
        } else {
            GroupStatus::OnlineFailure
        };
        assert_eq!(host.manager.group_status(0), state);
        host.until(host.now + 4_999);
        assert_eq!(host.runs.len(), 1 + tries, "not one earlier");
        host.until(host.now + 1);
    }
    // Nobody is there to fail over to: the final action, which is nothing.
    assert_eq!(host.told("not activated in 6 tries"), 1);
    host.until(400_000);
    assert_eq!(host.runs.len(), 7);
    // An operator's word is another six, and a healthy node takes it afterwards.
    host.hear();
    assert_eq!(host.command(START), Ok(()));
    assert_eq!(host.runs.len(), 8);
    host.hear_until(host.now + 24_999);
    assert_eq!(host.runs.len(), 12);
    assert_eq!(host.told("fails over to node beta"), 0);
    host.hear_until(host.now + 1);
    assert_eq!(host.told("fails over to node beta"), 1);
    assert_eq!(host.manager.order_of(0).owner, 1);
    let factor = |(_, e): &(Work, Vec<(String, String)>)| {
        e.iter()
            .find(|(k, _)| k == "CLP_FACTOR")
            .map(|(_, v)| v.clone())
    };
    let stops: Vec<String> = host.runs.iter().filter_map(factor).collect();
    assert_eq!(stops, ["GROUPFAILOVER", "GROUPFAILOVER"]);
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
}

#[test]
fn a_groups_failovers_are_cleared_by_time_online() {
    let mut host = TestHost::alone_and_online(&replaced(
        "revision = 3",
        "revision = 3\nclear-after = \"10m\"",
    ));
    host.manager.durable.groups[0].counts.failovers = BTreeMap::from([
        ("resource address".to_owned(), 1),
        ("monitor port".to_owned(), 1),
    ]);
    host.until(host.now + 599_000);
    assert_eq!(
        host.manager.durable.groups[0].counts.of("resource address"),
        1
    );
    host.until(host.now + 2_000);
    assert_eq!(
        host.manager.durable.groups[0].counts.of("resource address"),
        0
    );
    assert_eq!(
        host.manager.durable.groups[0].counts.epoch, 2,
        "and the monitor's, apart"
    );
}

#[test]
fn a_final_action_that_reboots_stops_the_group_first() {
    let mut host = TestHost::alone_and_online(&replaced(
        "failovers = 0\nclear",
        "failovers = 0\nfinal = \"reboot\"\nclear",
    ));
    host.probe_fails = true;
    host.until(host.now + 60_000);
    assert_eq!(host.ended, Some(EndKind::Reboot));
    let (work, environment) = &host.runs[host.runs.len() - 1];
    assert_eq!(
        *work,
        Work::Stop {
            group: 0,
            resource: 0
        }
    );
    let find = |name: &str| {
        environment
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| &v[..])
    };
    assert_eq!(find("CLP_FACTOR"), Some("SERVERSHUTDOWN"));
    assert_eq!(find("CLP_LASTACTION"), Some("REBOOT"));
    // After it the group was running here when the machine went down? No: it was stopped.
    let mut host = TestHost::from(CLUSTER, host.durable, 2);
    host.until(300_000);
    host.right(0, Right::Granted);
    let (_, environment) = &host.runs[0];
    assert!(environment.contains(&("CLP_EVENT".to_owned(), "START".to_owned())));
}

#[test]
fn a_group_that_ran_at_a_power_cut_starts_to_recover() {
    let host = TestHost::alone_and_online(CLUSTER);
    let mut host = TestHost::from(CLUSTER, host.durable, 2);
    host.until(300_000);
    host.right(0, Right::Granted);
    let (_, environment) = &host.runs[0];
    assert!(environment.contains(&("CLP_EVENT".to_owned(), "RECOVER".to_owned())));
    assert!(environment.contains(&("ARMS_EVENT".to_owned(), "RECOVER".to_owned())));
}

#[test]
fn every_variable_of_a_script() {
    let text = CLUSTER.to_owned() + "[preaction]\nscript = \"/before\"\n";
    let mut host = TestHost::alone_and_online(&text);
    let (_, start) = host.runs[1].clone();
    let expected = [
        ("CLP_EVENT", "START"),
        ("CLP_DISK", "SUCCESS"),
        ("CLP_SERVER", "HOME"),
        ("ARMS_EVENT", "START"),
        ("ARMS_DISK", "SUCCESS"),
        ("ARMS_SERVER", "HOME"),
        ("CLP_PRIORITY", "1"),
        ("CLP_GROUPNAME", "pg"),
        ("CLP_RESOURCENAME", "address"),
        ("CLP_VERSION_FULL", "4.3.2"),
        ("CLP_VERSION_MAJOR", "4"),
        ("KAGAMI_CLUSTER", "shop"),
        ("KAGAMI_NODE", "alpha"),
        ("KAGAMI_OTHER_NODE", "beta"),
        ("KAGAMI_MIRROR", "pg"),
        ("KAGAMI_DEVICE", "/dev/kagami/pg"),
        ("KAGAMI_MOUNT", "/srv/pg"),
        ("KAGAMI_ADDRESS", "10.0.0.10"),
    ];
    for (name, value) in expected {
        assert!(
            start.contains(&(name.to_owned(), value.to_owned())),
            "{name}={value} in {start:?}"
        );
    }
    let names: Vec<&str> = start.iter().map(|(name, _)| name.as_str()).collect();
    for unset in ["CLP_SERVER_PREV", "CLP_FACTOR", "CLP_LASTACTION"] {
        assert!(!names.contains(&unset), "{unset}");
    }
    for set in ["CLP_PATH", "CLP_SCRIPT_PATH", "CLP_OSNAME", "CLP_OSVER"] {
        assert!(names.contains(&set), "{set}");
    }
    host.probe_fails = true;
    host.until(host.now + 25_000);
    let before = host
        .runs
        .iter()
        .find(|(work, _)| matches!(work, Work::Preaction { .. }));
    let (_, before) = before.unwrap_or_else(|| panic!("a script before the recovery"));
    for (name, value) in [
        ("CLP_ACTION", "RESTART"),
        ("CLP_MONITORNAME", "port"),
        ("CLP_RESTARTCOUNT", "1"),
    ] {
        assert!(
            before.contains(&(name.to_owned(), value.to_owned())),
            "{name} in {before:?}"
        );
    }
    let stop = host
        .runs
        .iter()
        .find(|(work, _)| matches!(work, Work::Stop { .. }));
    let (_, stop) = stop.unwrap_or_else(|| panic!("a stop"));
    assert!(stop.contains(&("CLP_FACTOR".to_owned(), "GROUPRESTART".to_owned())));
    assert!(
        stop.contains(&("CLP_EVENT".to_owned(), "START".to_owned())),
        "what its start saw"
    );
}

#[test]
fn a_guard_freezes_thaws_drops_and_resets() {
    let mut guard = Guard::new(500, 10_000);
    assert_eq!(guard.handle(Time(100), Word::LeaseEnded), [Deed::Freeze]);
    assert_eq!(guard.deadline(), Some(Time(600)));
    assert_eq!(guard.handle(Time(200), Word::Renewed), [Deed::Thaw]);
    assert_eq!(guard.deadline(), None);
    let gone = [Deed::Thaw, Deed::SayLost];
    assert_eq!(guard.handle(Time(1000), Word::LeaseEnded), [Deed::Freeze]);
    assert_eq!(guard.handle(Time(1499), Word::Timer), []);
    assert_eq!(guard.handle(Time(1500), Word::Timer), [Deed::DropAddresses]);
    assert!(guard.is_stopping());
    assert_eq!(guard.handle(Time(1501), Word::Renewed), [], "too late");
    assert_eq!(guard.handle(Time(1600), Word::Dropped), gone);
    assert_eq!(guard.handle(Time(1601), Word::Dropped), []);
    assert_eq!(guard.handle(Time(9000), Word::Stopped), []);
    assert!(!guard.is_stopping());
    let lost = [Deed::Freeze, Deed::DropAddresses];
    assert_eq!(guard.handle(Time(10_000), Word::Lost), lost);
    assert_eq!(guard.handle(Time(10_100), Word::Dropped), gone);
    assert_eq!(guard.handle(Time(20_000), Word::Timer), [Deed::Reset]);
    assert_eq!(guard.handle(Time(20_001), Word::Stopped), []);
    assert!(guard.is_stopping(), "the node is on its way down");
}

#[test]
fn a_group_whose_address_stays_is_not_thawed() {
    let mut guard = Guard::new(500, 10_000);
    guard.handle(Time(0), Word::LeaseEnded);
    assert_eq!(guard.handle(Time(500), Word::Timer), [Deed::DropAddresses]);
    assert_eq!(guard.handle(Time(10_499), Word::Timer), []);
    assert_eq!(guard.handle(Time(10_500), Word::Timer), [Deed::Reset]);
    assert_eq!(guard.handle(Time(10_501), Word::Dropped), [], "too late");
}

#[test]
fn a_durable_state_fits_a_changed_configuration() {
    let host = TestHost::alone_and_online(CLUSTER);
    let more = CLUSTER.to_owned()
        + "[group.pg.resource.server]\ntype = \"exec\"\nstart = \"/s\"\ndepends = [\"address\"]\n";
    let mut host = TestHost::from(&more, host.durable, 1);
    // The same boot: the group is active, and what is new is activated.
    assert_eq!(host.manager.phase(), Phase::Running);
    assert_eq!(host.asked, [(0, false)]);
    host.right(0, Right::Granted);
    let works: Vec<Work> = host.runs.iter().map(|(work, _)| *work).collect();
    assert_eq!(
        works,
        [Work::Start {
            group: 0,
            resource: 2
        }]
    );
    assert_eq!(host.manager.group_status(0), GroupStatus::Online);
}
