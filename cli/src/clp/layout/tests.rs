//! clpstat's layout, by hand from its specification.

use std::collections::BTreeMap;

use kagami_failover::control::status::{
    GroupReport, HeartbeatReport, MonitorReport, ResourceReport,
};

use super::*;

fn on<T: Copy>(here: T, there: T) -> BTreeMap<String, T> {
    BTreeMap::from([("server1".to_owned(), here), ("server2".to_owned(), there)])
}

fn report() -> ClusterReport {
    let node = |name: &str, state| NodeReport {
        name: name.to_owned(),
        state,
        ..NodeReport::default()
    };
    ClusterReport {
        cluster: "cluster".to_owned(),
        local: "server1".to_owned(),
        nodes: vec![
            node("server1", NodeState::Online),
            node("server2", NodeState::Caution),
        ],
        heartbeats: vec![
            HeartbeatReport {
                name: "lankhb1".to_owned(),
                kind: "lan".to_owned(),
                nodes: on(BeatState::Normal, BeatState::Normal),
                ..HeartbeatReport::default()
            },
            HeartbeatReport {
                name: "a-heartbeat-of-a-long-name".to_owned(),
                kind: "serial".to_owned(),
                nodes: on(BeatState::Caution, BeatState::Unknown),
                ..HeartbeatReport::default()
            },
        ],
        groups: vec![
            GroupReport {
                name: "failover1".to_owned(),
                state: RunState::Online,
                current: Some("server1".to_owned()),
                on: on(RunState::Online, RunState::Offline),
                resources: vec![ResourceReport {
                    name: "md1".to_owned(),
                    state: RunState::Online,
                    on: on(RunState::Online, RunState::Offline),
                    ..ResourceReport::default()
                }],
                ..GroupReport::default()
            },
            GroupReport {
                name: "the-group-with-a-long-name-of-34-c".to_owned(),
                state: RunState::OnlineFailure,
                current: Some("server2".to_owned()),
                on: on(RunState::Offline, RunState::OnlineFailure),
                ..GroupReport::default()
            },
            GroupReport {
                name: "exactly-sixteen1".to_owned(),
                state: RunState::Offline,
                on: on(RunState::Offline, RunState::Offline),
                ..GroupReport::default()
            },
        ],
        monitors: vec![
            MonitorReport {
                name: "mdw1".to_owned(),
                state: WatchState::Normal,
                on: on(WatchState::Normal, WatchState::Unused),
                ..MonitorReport::default()
            },
            MonitorReport {
                name: "ipw1".to_owned(),
                state: WatchState::Suspended,
                on: on(WatchState::Suspended, WatchState::Error),
                ..MonitorReport::default()
            },
        ],
        ..ClusterReport::default()
    }
}

#[test]
fn the_summary() {
    let expected = " \
========================  CLUSTER STATUS  ===========================
  Cluster : cluster
  <server>
   *server1 .........: Online           Primary server
      lankhb1        : Normal           LAN Heartbeat
      a-heartbeat-of-: Caution          COM Heartbeat
    server2 .........: Caution          Secondary server
      lankhb1        : Normal           LAN Heartbeat
      a-heartbeat-of-: Unknown          COM Heartbeat
  <group>
    failover1 .......: Online
      current        : server1
      md1            : Online
    the-group-with-a : Online Failure
      current        : server2
    exactly-sixteen1 : Offline
      current        :
  <monitor>
    mdw1             : Normal
    ipw1             : Suspend
 =====================================================================
";
    let said = summary(&report(), Style::default());
    assert_eq!(said, expected);
    for line in said.lines().filter(|line| line.starts_with("   ")) {
        assert_eq!(
            line.find(':'),
            Some(21),
            "the colon stands in column 22: {line}"
        );
    }
    assert_eq!(said.lines().next().unwrap().len(), 70);
    assert_eq!(
        said.lines().last().unwrap().len(),
        70,
        "a blank and 69 of `=`"
    );
}

#[test]
fn the_summary_with_long_names() {
    let style = Style {
        long: true,
        local: false,
    };
    let said = summary(&report(), style);
    for line in said.lines().filter(|line| line.starts_with("   ")) {
        assert_eq!(
            line.find(':'),
            Some(38),
            "the colon stands in column 39: {line}"
        );
    }
    for line in [
        "   *server1 ..........................: Online           Primary server",
        "      a-heartbeat-of-a-long-name      : Caution          COM Heartbeat",
        "    the-group-with-a-long-name-of-34- : Online Failure",
        "      md1                             : Online",
    ] {
        assert!(said.lines().any(|one| one == line), "{line}\n{said}");
    }
}

#[test]
fn the_summary_of_the_local_node() {
    let style = Style {
        long: false,
        local: true,
    };
    let said = summary(&report(), style);
    assert!(!said.contains("server2 ."), "{said}");
    assert!(said.contains("    the-group-with-a : Offline\n"), "{said}");
}

#[test]
fn where_groups_are() {
    let expected = " \
=========================  GROUP STATUS  ============================
  Cluster : cluster
   *server0 : server1
    server1 : server2

   group                           server0   server1
   -----------------------------------------------------------------
   failover1                       o         -
   the-group-with-a-long-name-of-3 -         x
   exactly-sixteen1                -         -
 =====================================================================
";
    assert_eq!(groups(&report()), expected);
}

#[test]
fn what_monitors_see() {
    let said = monitors(&report());
    assert!(
        said.contains("   mdw1 : Normal                   o         -\n"),
        "{said}"
    );
    assert!(
        said.contains("   ipw1 : Suspend                  s         x\n"),
        "{said}"
    );
}

#[test]
fn what_servers_hear() {
    let said = heartbeats(&report());
    let expected = "
    HB0 : lankhb1
    HB1 : a-heartbeat-of-a-long-name

   [on server1 : Online]
   HB              0 1
   -----------------------------------------------------------------
   server1       : o o
   server2       : o x

   [on server2 : Caution]
   HB              0 1
   -----------------------------------------------------------------
   server1       : o ?
   server2       : o o
";
    assert!(said.contains(expected), "{said}");
}
