//! What the simulator leaves out: time that clears counters, fencing, life without an arbiter,
//! groups that wait for others, heartbeats that lie, every refusal, and what scripts see.

use std::collections::BTreeMap;
use std::path::Path;

use super::durable::{EndKind, Stamp};
use super::guard::{Deed, Guard, Word};
use super::message::Brief;
use super::*;

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
}

impl TestHost {
    fn new(text: &str) -> Self {
        Self::from(text, Durable::default(), 1)
    }

    fn from(text: &str, durable: Durable, boot: u128) -> Self {
        let cluster = Cluster::parse(Path::new("cluster.toml"), text);
        let cluster = Arc::new(cluster.unwrap_or_else(|error| panic!("{error}")));
        let mut out = Actions::new();
        let start = Start {
            cluster,
            me: 0,
            durable,
            boot,
            incarnation: 0,
            host: Host {
                version: "4.3.2".to_owned(),
                ..Host::default()
            },
        };
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
                Action::Persist { seq, state } => {
                    self.durable = *state;
                    self.handle(Event::Persisted { seq, done: true });
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
                    let result = if self.fails.iter().any(|word| shown.contains(word)) {
                        OpResult::Failed("no".to_owned())
                    } else {
                        OpResult::Done
                    };
                    self.handle(Event::OpDone { op, result });
                }
                Action::Inquire { op } => self.handle(Event::OpNever { op }),
                Action::Probe { probe, .. } => {
                    let result = if self.probe_fails {
                        OpResult::TimedOut
                    } else {
                        OpResult::Done
                    };
                    self.handle(Event::Probed { probe, result });
                }
                Action::AskRight { group, fenced } => self.asked.push((group, fenced)),
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
                Action::Stopped { .. } => {}
            }
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
    assert_eq!(
        host.runs.len(),
        1 + 6,
        "the mount, and 1 + 5 tries of the address"
    );
    // Nobody is there to fail over to: the final action, which is nothing.
    assert_eq!(host.manager.group_status(0), GroupStatus::OnlineFailure);
    assert_eq!(host.told("not activated in 6 tries"), 1);
    host.until(400_000);
    assert_eq!(host.runs.len(), 7);
    // An operator's word is another six, and a healthy node takes it afterwards.
    host.hear();
    assert_eq!(host.command(Command::Start { group: 0, on: None }), Ok(()));
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
fn a_monitors_counters_are_cleared_by_time() {
    let mut host = TestHost::alone_and_online(CLUSTER);
    host.probe_fails = true;
    let began = host.now;
    host.until(began + 45_000);
    assert_eq!(host.told("recovers: reactivation"), 1, "{:?}", host.alerts);
    assert_eq!(host.told("recovers: final action"), 1);
    assert_eq!(host.durable.monitors[0].reactivations, 1);
    host.probe_fails = false;
    host.until(host.now + 590_000);
    assert_eq!(host.durable.monitors[0].reactivations, 1);
    host.until(host.now + 30_000);
    let record = &host.durable.monitors[0];
    assert_eq!((record.reactivations, record.final_done), (0, false));
    host.probe_fails = true;
    host.until(host.now + 45_000);
    assert_eq!(host.told("recovers: reactivation"), 2);
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
fn switches_of_a_monitor() {
    let with = |keys: &str| {
        replaced(
            "failovers = 0\nclear-after",
            &format!("failovers = 0\n{keys}\nclear-after"),
        )
    };
    let mut host = TestHost::alone_and_online(&with("no-retry-after-timeout = true"));
    host.probe_fails = true;
    host.until(host.now + 11_000);
    assert_eq!(
        host.told("recovers: reactivation"),
        1,
        "the first time-out counts"
    );
    let mut host = TestHost::alone_and_online(&with("no-recovery-after-timeout = true"));
    host.probe_fails = true;
    host.until(host.now + 60_000);
    assert_eq!(host.told("recovers"), 0);
    assert_eq!(
        host.told("nothing is recovered: it failed by its time-out"),
        1,
        "told once"
    );
    let mut host =
        TestHost::alone_and_online(&with("final-needs-other-node = true\nfinal = \"reboot\""));
    host.probe_fails = true;
    host.until(host.now + 120_000);
    assert_eq!(host.told("no other healthy node is left"), 1);
    assert_eq!(host.ended, None);
    // A rehearsal, and an operator's pause of it.
    let mut host = TestHost::alone_and_online(CLUSTER);
    assert_eq!(host.command(Command::FailMonitor(0, true)), Ok(()));
    host.until(host.now + 25_000);
    assert_eq!(host.told("recovers: reactivation"), 1);
    assert_eq!(host.command(Command::SuspendMonitor(0)), Ok(()));
    assert_eq!(host.manager.monitor_status(0), MonitorStatus::Suspended);
    host.until(host.now + 60_000);
    assert_eq!(host.told("recovers"), 1);
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
fn without_an_arbiter_a_lost_nodes_group_is_taken_over_only_as_permitted() {
    let none = |more: &str| {
        replaced(
            "kind = \"witness\"\nname = \"gamma\"",
            &format!("kind = \"none\"\n{more}"),
        )
    };
    let lost = |text: &str| {
        let mut host = TestHost::new(text);
        host.handle(Event::Ready {
            group: 0,
            ready: true,
        });
        let mut message = host.snapshot(1);
        message.groups[0].order.version = 5;
        message.groups[0].order.value.wanted = true;
        message.groups[0].order.value.owner = 1;
        message.groups[0].busy = true;
        message.groups[0].active = true;
        host.beat(0, message);
        assert_eq!(host.manager.order_of(0).owner, 1);
        host.until(host.now + 60_000);
        host
    };
    let manual = none("").replacen("[group.pg]\n", "[group.pg]\nfailover = \"manual\"\n", 1);
    let host = lost(&manual);
    assert!(host.asked.is_empty());
    assert_eq!(host.told("not taken over from the lost node"), 1);
    let risk = format!(
        "accepted-risk = \"{}\"",
        crate::config::cluster::ACCEPTED_RISK
    );
    assert_eq!(lost(&none(&risk)).asked, [(0, false)]);
    let fenced = none("") + "[fence]\nscript = \"/fence\"\n";
    let host = lost(&fenced);
    assert_eq!(host.asked, [(0, true)]);
    assert!(matches!(host.runs[0].0, Work::Fence { node: 1 }));
    assert!(
        host.runs[0]
            .1
            .contains(&("CLP_SERVER_DOWN".to_owned(), "beta".to_owned()))
    );
    // With an arbiter nobody needs a power switch.
    let host = lost(&(CLUSTER.to_owned() + "[fence]\nscript = \"/fence\"\n"));
    assert_eq!(host.asked, [(0, false)]);
    // Who reaches none of the ping addresses does not take over.
    let host = lost(&replaced(
        "name = \"gamma\"",
        "name = \"gamma\"\nping = [\"10.0.0.254\"]",
    ));
    assert!(host.asked.is_empty());
    assert_eq!(host.told("reaches none of the `ping` addresses"), 1);
}

#[test]
fn a_fence_script_that_fails_is_asked_again_and_nothing_starts() {
    let text = replaced("kind = \"witness\"\nname = \"gamma\"", "kind = \"none\"")
        + "[fence]\nscript = \"/fence\"\n";
    let mut host = TestHost::new(&text);
    host.fails = vec!["Fence"];
    host.until(320_000);
    assert!(host.asked.is_empty(), "{:?}", host.alerts);
    assert!(host.runs.len() >= 3, "every five seconds");
    host.fails.clear();
    host.until(326_000);
    assert_eq!(host.asked, [(0, true)]);
}

#[test]
fn a_group_waits_for_another_one_and_not_for_ever() {
    let text = CLUSTER.to_owned()
        + "[group.web]\nnodes = [\"alpha\", \"beta\"]\nwait-for = [\"pg\"]\nwait-timeout = \"1m\"\n\
           resource.u = { type = \"systemd\", unit = \"nginx\" }\n";
    let mut host = TestHost::new(&text);
    host.until(300_000);
    assert_eq!(host.asked, [(0, false)], "web waits");
    host.until(330_000);
    host.right(0, Right::Granted);
    assert_eq!(host.asked, [(0, false), (1, false)]);
    let mut host = TestHost::new(&text);
    host.until(400_000);
    assert_eq!(
        host.told("group web: not started: group pg is not online after 60s"),
        1
    );
    host.right(0, Right::Granted);
    assert_eq!(host.asked.len(), 1);
    // An operator's word, and now that the other one is online, it starts.
    let start = Command::Start { group: 1, on: None };
    assert_eq!(host.command(start), Ok(()));
    assert_eq!(host.asked.len(), 2);
}

#[test]
fn heartbeats_of_strangers_replays_and_old_lives_count_for_nothing() {
    let mut host = TestHost::new(CLUSTER);
    // It does not say that it hears this life: it could be of yesterday.
    let mut old = host.snapshot(1);
    old.echo = 0;
    host.beat(0, old);
    assert_eq!(host.manager.node_status(), state::NodeStatus::Unknown);
    assert_eq!(
        host.said.as_ref().map(|said| said.echo),
        Some(7),
        "but it is answered"
    );
    let message = host.snapshot(1);
    host.beat(0, message.clone());
    assert!(host.manager.peer_up());
    // Again: nothing new is heard, so that it is lost in time.
    host.until(1_900);
    host.beat(0, message.clone());
    host.until(2_100);
    assert!(host.manager.peer_lost());
    // An earlier life, whatever it says.
    let mut earlier = message;
    earlier.incarnation = 6;
    earlier.seq = 1_000_000;
    host.beat(0, earlier);
    assert!(host.manager.peer_lost());
    // Another revision: it is there, and what it says of groups is not taken over.
    let mut other = host.snapshot(1);
    other.revision = 4;
    other.groups[0].order.version = 99;
    host.beat(1, other);
    assert!(host.manager.peer_up());
    assert_eq!(
        host.told("has revision 4 of the configuration: this node has revision 3"),
        1
    );
    assert_ne!(host.manager.durable.groups[0].order.version, 99);
    // A heartbeat that the configuration does not have.
    let message = host.snapshot(1);
    host.beat(9, message);
}

#[test]
fn a_node_is_lost_when_all_heartbeats_are_silent() {
    let mut host = TestHost::new(CLUSTER);
    host.hear();
    let message = host.snapshot(1);
    host.beat(1, message);
    host.until(2_500);
    assert_eq!(host.manager.node_status(), state::NodeStatus::Caution);
    assert_eq!(
        host.manager.heartbeat_status(0),
        state::HeartbeatStatus::Caution
    );
    assert_eq!(
        host.manager.heartbeat_status(1),
        state::HeartbeatStatus::Normal
    );
    host.until(4_100);
    assert_eq!(host.manager.node_status(), state::NodeStatus::Offline);
    assert_eq!(
        host.manager.heartbeat_status(1),
        state::HeartbeatStatus::Error
    );
    assert_eq!(host.told("node beta: lost"), 1);
}

#[test]
fn commands_are_refused_with_the_reason_and_nothing_changes() {
    let mut host = TestHost::new(CLUSTER);
    let start = Command::Start { group: 0, on: None };
    let refused = |host: &mut TestHost, command, words: &[&str]| {
        let before = host.durable.clone();
        let refusal = host
            .command(command)
            .err()
            .unwrap_or_else(|| panic!("{command:?} is taken"));
        let said = refusal.to_string();
        for word in words.iter().chain(&["\n  next: "]) {
            assert!(said.contains(word), "no `{word}` in: {said}");
        }
        assert_eq!(host.durable, before, "{command:?}");
    };
    refused(&mut host, start, &["group pg", "has just started"]);
    refused(&mut host, Command::Stop { group: 9 }, &["no such group"]);
    refused(&mut host, Command::SuspendMonitor(9), &["no such monitor"]);
    let mut host = TestHost::alone_and_online(CLUSTER);
    refused(&mut host, start, &["running on node alpha already"]);
    refused(
        &mut host,
        Command::Move { group: 0, to: 0 },
        &["running on node alpha already"],
    );
    refused(
        &mut host,
        Command::Move { group: 0, to: 1 },
        &["node beta can't run it now", "not heard"],
    );
    refused(
        &mut host,
        Command::Move { group: 0, to: 2 },
        &["not in its list"],
    );
    let mut message = host.snapshot(1);
    message.groups[0].ready = false;
    host.beat(0, message);
    refused(
        &mut host,
        Command::Move { group: 0, to: 1 },
        &["copy of the data is not in sync"],
    );
    assert_eq!(host.command(Command::Suspend), Ok(()));
    refused(
        &mut host,
        Command::Stop { group: 0 },
        &["the cluster is suspended"],
    );
    assert_eq!(host.command(Command::Resume), Ok(()));
    assert_eq!(host.command(Command::Stop { group: 0 }), Ok(()));
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
    refused(&mut host, Command::Stop { group: 0 }, &["does not run"]);
    refused(
        &mut host,
        Command::Move { group: 0, to: 1 },
        &["does not run"],
    );
    assert_eq!(host.command(Command::EndNode(EndKind::Manager)), Ok(()));
    assert_eq!(host.ended, Some(EndKind::Manager));
}

#[test]
fn a_command_for_a_node_that_is_not_heard_is_refused() {
    let mut host = TestHost::new(CLUSTER);
    let mut message = host.snapshot(1);
    message.groups[0].order.version = 5;
    message.groups[0].order.value.wanted = true;
    message.groups[0].order.value.owner = 1;
    message.groups[0].busy = true;
    host.beat(0, message);
    host.handle(Event::Ready {
        group: 0,
        ready: true,
    });
    host.until(10_000);
    let refusal = host
        .command(Command::Stop { group: 0 })
        .err()
        .map(|r| r.to_string());
    let refusal = refusal.unwrap_or_else(|| panic!("the group may run on beta"));
    assert!(
        refusal.contains("ran on node beta last, which is not heard"),
        "{refusal}"
    );
}

#[test]
fn home_comes_back_and_takes_its_group() {
    let text = replaced(
        "nodes = [\"alpha\", \"beta\"]\n[group.pg.r",
        "nodes = [\"beta\", \"alpha\"]\nfailback = \"automatic\"\n[group.pg.r",
    );
    let mut host = TestHost::alone_and_online(&text);
    host.hear();
    assert_eq!(host.told("goes back to its home"), 1);
    assert_eq!(host.manager.order_of(0).owner, 1);
    assert_eq!(host.manager.group_status(0), GroupStatus::Offline);
    host.hear_until(host.now + 5_000);
    assert_eq!(host.told("goes back to its home"), 1);
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
    let lost = [Deed::DropAddresses, Deed::Thaw, Deed::SayLost];
    assert_eq!(guard.handle(Time(1000), Word::LeaseEnded), [Deed::Freeze]);
    assert_eq!(guard.handle(Time(1499), Word::Timer), []);
    assert_eq!(guard.handle(Time(1500), Word::Timer), lost);
    assert!(guard.is_stopping());
    assert_eq!(guard.handle(Time(1501), Word::Renewed), [], "too late");
    assert_eq!(guard.handle(Time(9000), Word::Stopped), []);
    assert!(!guard.is_stopping());
    assert_eq!(guard.handle(Time(10_000), Word::Lost)[1..], lost);
    assert_eq!(guard.handle(Time(20_000), Word::Timer), [Deed::Reset]);
    assert_eq!(guard.handle(Time(20_001), Word::Stopped), []);
    assert!(guard.is_stopping(), "the node is on its way down");
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
