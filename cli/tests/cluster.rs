//! The failover manager's commands against a manager that does what the test says: words, documents,
//! exit statuses.

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::atomic::Ordering;

use kagami_failover::config::Severity;
use kagami_failover::control::message::{Order, Refused};
use kagami_failover::control::status::{BeatState, NodeState, RunState, WatchState};
use kagami_failover::control::{AlertReport, Ask, ClusterReport};
use kagami_failover::core::Command;
use kagami_failover::core::durable::EndKind;
use support::desk::{CLUSTER, Managed};
use support::{Node, eventually};

fn managed() -> Managed {
    Managed::on(Node::without_daemon())
}

#[test]
fn no_manager_is_status_3() {
    let node = Node::without_daemon();
    for arguments in [
        &["cluster", "status"][..],
        &["cluster", "suspend"],
        &["cluster", "shutdown", "--yes"],
        &["group", "start", "pg"],
        &["group", "move", "pg"],
        &["monitor", "fail", "rows"],
        &["node", "reboot", "--yes"],
        &["alerts"],
    ] {
        let ended = node.run(arguments);
        assert_eq!(ended.code, 3, "{arguments:?}: {ended:?}");
        assert!(
            ended.err.starts_with("no failover manager answers on ")
                && ended.err.contains("\n  next: "),
            "{ended:?}"
        );
    }
}

#[test]
fn the_whole_state_is_on_one_screen() {
    let managed = managed();
    let ended = managed.node.run(&["cluster", "status"]);
    assert_eq!(
        ended.out,
        "\
shop   revision 7   arbiter witness gamma
  node    alpha   online     this node
  node    beta    online
  beat    lan   lan      normal on alpha, normal on beta
  beat    tty   serial   normal on alpha, normal on beta

pg   online on alpha   beta can take it over
  address   floating-ip   online
  server    exec          online

web   offline
  page   exec          offline

monitors
  rows     tcp           normal      normal on alpha, unused on beta
  router   ip            normal      normal on alpha, normal on beta
",
        "{ended:?}"
    );
    assert_eq!(
        managed.node.run(&["cluster", "status", "--exit-code"]).code,
        0
    );
    let ended = managed.node.run(&["cluster", "status", "--json"]);
    let report: ClusterReport = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(
        report.group("pg").unwrap().current.as_deref(),
        Some("alpha")
    );
    let ended = managed
        .node
        .run(&["cluster", "status", "--heartbeats", "--node", "beta"]);
    assert_eq!(
        ended.out,
        "shop   revision 7   arbiter witness gamma\n  beat    lan   lan      normal on beta\n  beat    tty   serial   normal on beta\n"
    );
    let ended = managed.node.run(&["cluster", "status", "--node", "bta"]);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (1, "there is no node bta\n  next: did you mean \"beta\"?\n")
    );
}

/// Nobody takes over without its word: that is heard before a node is lost, or never.
#[test]
fn a_silent_arbiter_is_in_the_exit_status() {
    let managed = managed();
    let code = || managed.node.run(&["cluster", "status", "--exit-code"]).code;
    for (answers, expected) in [(None, 0), (Some(true), 0), (Some(false), 11)] {
        managed.desk.view.lock().unwrap().arbiter = answers;
        assert_eq!(code(), expected, "{answers:?}");
    }
}

#[test]
fn what_is_amiss_is_said_in_words_and_in_the_exit_status() {
    let managed = managed();
    *managed.desk.other.lock().unwrap() = None;
    {
        let mut view = managed.desk.view.lock().unwrap();
        view.other = NodeState::Offline;
        view.heartbeats = vec![BeatState::Error, BeatState::Error];
        view.suspended = true;
        view.groups[0].other = None;
        view.groups[1].other = None;
        view.monitors[0].made_to_fail = true;
        view.monitors[0].state = WatchState::Error;
    }
    let ended = managed.node.run(&["cluster", "status", "--exit-code"]);
    assert_eq!(ended.code, 11, "{}", ended.out);
    for words in [
        "SUSPENDED: nobody acts",
        "node    beta    offline",
        "error on alpha, unknown on beta",
        "pg   online on alpha   beta is not heard",
        "made to fail: `kagami monitor fail rows --clear` ends it",
    ] {
        assert!(ended.out.contains(words), "{words}: {}", ended.out);
    }
    managed.desk.view.lock().unwrap().groups[0].state = RunState::OnlineFailure;
    assert_eq!(
        managed.node.run(&["cluster", "status", "--exit-code"]).code,
        12
    );
}

#[test]
fn a_move_is_waited_for() {
    let managed = managed();
    managed.desk.obeys(|command, view| {
        assert_eq!(*command, Command::Move { group: 0, to: 1 });
        view.groups[0].order.version += 1;
        view.groups[0].order.owner = 1;
        view.groups[0].state = RunState::OfflinePending;
        Ok(())
    });
    let mut child = managed
        .node
        .command(&["group", "move", "pg"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the order is there", || {
        !managed.desk.commands.lock().unwrap().is_empty()
    });
    assert_eq!(child.try_wait().unwrap(), None, "it waits");
    managed.desk.view.lock().unwrap().groups[0].state = RunState::Offline;
    managed
        .desk
        .other(|beta| beta.groups[0].state = RunState::Online);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "group pg: online on beta\n"
    );
}

#[test]
fn a_move_that_fails_is_status_6_and_says_where_it_is() {
    let managed = managed();
    // It could not be activated on beta, and came back: another order since.
    managed.desk.obeys(|_, view| {
        view.groups[0].order.version += 2;
        Ok(())
    });
    let ended = managed.node.run(&["group", "move", "pg", "--to", "beta"]);
    assert_eq!(ended.code, 6);
    assert_eq!(
        ended.err,
        "group pg: it could not run there, and is to run on alpha now (online)\n  next: `kagami alerts pg` tells what happened\n"
    );
}

#[test]
fn a_refusal_keeps_its_words() {
    let managed = managed();
    managed.desk.obeys(|_, _| {
        Err(kagami_failover::core::Refusal::Unfit {
            group: "pg".to_owned(),
            node: "beta".to_owned(),
            why: "its copy of the data is not in sync",
        }
        .into())
    });
    let ended = managed.node.run(&["group", "start", "web", "--json"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    assert_eq!(
        ended.err,
        "group pg: node beta can't run it now: its copy of the data is not in sync\n  next: see the status of node beta\n"
    );
    let ended = managed.node.run(&["group", "stop", "pgg"]);
    assert_eq!(
        ended.err,
        "there is no group pgg\n  next: did you mean \"pg\"?\n"
    );
}

#[test]
fn what_takes_too_long_is_status_4_and_goes_on() {
    let managed = managed();
    managed.desk.obeys(|_, view| {
        view.groups[0].order.version += 1;
        view.groups[0].order.wanted = false;
        view.groups[0].state = RunState::OfflinePending;
        Ok(())
    });
    let ended = managed
        .node
        .run(&["group", "stop", "pg", "--timeout", "300ms"]);
    assert_eq!(ended.code, 4, "{ended:?}");
    assert!(
        ended
            .err
            .contains("not done within 300ms; the failover managers go on with it"),
        "{ended:?}"
    );
    let ended = managed
        .node
        .run(&["group", "stop", "pg", "--no-wait", "--json"]);
    assert!(ended.out.contains("\"outcome\":\"started\""), "{ended:?}");

    // A disk that takes no state: the order itself is not answered.
    managed.desk.holds.store(true, Ordering::Relaxed);
    let orders: [&[&str]; 8] = [
        &["group", "stop", "pg", "--no-wait"],
        &["group", "start", "web"],
        &["group", "move", "pg"],
        &["cluster", "suspend"],
        &["cluster", "stop", "--yes"],
        &["node", "shutdown", "--yes"],
        &["monitor", "suspend", "rows"],
        &["monitor", "fail", "rows"],
    ];
    for order in orders {
        let ended = (managed.node).run(&[order, &["--timeout", "300ms"]].concat());
        assert_eq!(ended.code, 4, "{ended:?}");
        assert!(
            ended.err.contains(
                "the order was not taken within 300ms; whether it is carried out is not known"
            ) && ended.err.contains("\n  next: "),
            "{ended:?}"
        );
    }
}

#[test]
fn monitors_are_held_on_both_nodes_and_fail_where_it_matters() {
    let managed = managed();
    let ended = managed.node.run(&["monitor", "suspend", "rows"]);
    assert_eq!(
        ended.out, "monitor rows: watches no more (on alpha and beta)\n",
        "{ended:?}"
    );
    assert_eq!(
        *managed.desk.commands.lock().unwrap(),
        [Command::SuspendMonitor(0)]
    );
    let forwarded = Ask::Order {
        node: None,
        order: Order::SuspendMonitor {
            monitor: "rows".to_owned(),
        },
    };
    assert_eq!(*managed.desk.forwarded.lock().unwrap(), [forwarded]);

    managed.desk.commands.lock().unwrap().clear();
    managed.desk.forwarded.lock().unwrap().clear();
    let ended = managed.node.run(&["monitor", "fail", "rows"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(
        *managed.desk.commands.lock().unwrap(),
        [Command::FailMonitor(0, true)]
    );
    assert!(
        managed.desk.forwarded.lock().unwrap().is_empty(),
        "its group runs on alpha alone"
    );
    managed.node.run(&["monitor", "fail", "rows", "--clear"]);
    assert_eq!(managed.desk.forwarded.lock().unwrap().len(), 1);

    *managed.desk.other.lock().unwrap() = None;
    let ended = managed.node.run(&["monitor", "resume", "rows"]);
    assert_eq!(ended.code, 1);
    assert!(
        ended
            .err
            .starts_with("monitor rows: done on alpha, and not on beta\nnode beta does not answer"),
        "{ended:?}"
    );
}

#[test]
fn the_end_of_a_node_says_what_becomes_of_its_groups_and_asks() {
    let managed = managed();
    let ended = managed.node.run(&["node", "shutdown", "--dry-run"]);
    assert_eq!(
        ended.out,
        "node alpha: group pg moves to beta, then the machine is shut down\n"
    );
    for (command, json) in [
        (
            "node",
            r#"{"node":"alpha","outcome":"dry-run","text":"node alpha: group pg moves to beta, then its failover manager ends"}"#,
        ),
        (
            "cluster",
            r#"{"cluster":"shop","outcome":"dry-run","text":"cluster shop: group pg stops, then both failover managers end"}"#,
        ),
    ] {
        let ended = (managed.node).run(&[command, "stop", "--dry-run", "--json"]);
        assert_eq!((ended.code, ended.out), (0, format!("{json}\n")));
    }
    let ended = managed.node.run(&["node", "shutdown"]);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(
        managed.desk.commands.lock().unwrap().is_empty(),
        "nothing was ordered"
    );
    assert_eq!(
        managed.node.run(&["node", "reboot", "alpha", "--yes"]).code,
        0
    );
    assert_eq!(
        *managed.desk.commands.lock().unwrap(),
        [Command::EndNode(EndKind::Reboot)]
    );

    let ended = managed.node.run(&["cluster", "shutdown", "--dry-run"]);
    assert_eq!(
        ended.out,
        "cluster shop: group pg stops, then both machines are shut down\n"
    );
    *managed.desk.other.lock().unwrap() = None;
    managed.desk.view.lock().unwrap().other = NodeState::Offline;
    let ended = managed.node.run(&["node", "stop", "--dry-run"]);
    assert!(
        ended
            .out
            .contains("group pg STOPS: no other node can run it"),
        "{ended:?}"
    );
    // A node that nobody tells goes on, and takes over what stops here.
    let ended = managed.node.run(&["cluster", "shutdown", "--dry-run"]);
    assert!(
        ended
            .out
            .ends_with("; node beta is not heard: if it can't be told, it goes on, and may take the groups over\n"),
        "{ended:?}"
    );
    let ended = managed.node.run(&["cluster", "stop", "--yes"]);
    assert_eq!((ended.code, ended.out.as_str()), (6, ""), "{ended:?}");
    assert!(
        (ended.err).contains(
            "cluster shop: ordered on this node; node beta has not said that it knows of it: node beta does not answer: connection refused\n"
        ),
        "{ended:?}"
    );
    let commands = managed.desk.commands.lock().unwrap();
    assert_eq!(
        commands.last(),
        Some(&Command::EndCluster(EndKind::Manager))
    );
}

#[test]
fn a_cluster_is_suspended_once() {
    let managed = managed();
    managed.desk.obeys(|command, view| {
        view.suspended = *command == Command::Suspend;
        Ok(())
    });
    assert!(
        managed
            .node
            .run(&["cluster", "suspend"])
            .out
            .contains("suspended: the services go on")
    );
    assert_eq!(
        managed.node.run(&["cluster", "suspend"]).out,
        "cluster shop: suspended already\n"
    );
    assert_eq!(
        managed.node.run(&["cluster", "resume"]).out,
        "cluster shop: resumed\n"
    );
    assert_eq!(
        *managed.desk.commands.lock().unwrap(),
        [Command::Suspend, Command::Resume]
    );
}

#[test]
fn alerts_are_filtered_and_followed() {
    let managed = managed();
    let alert = |time_ms, severity, name: &str, what: &str| AlertReport {
        time_ms,
        node: "alpha".to_owned(),
        severity,
        kind: "resource".to_owned(),
        name: name.to_owned(),
        what: what.to_owned(),
        cause: "exit status 1".to_owned(),
    };
    let first = alert(
        1_763_726_400_123,
        Severity::Error,
        "pg/server",
        "could not be\nactivated",
    );
    *managed.desk.alerts.lock().unwrap() = vec![
        first.clone(),
        alert(1_763_726_401_000, Severity::Info, "pg/server", "active"),
        alert(1_763_726_402_000, Severity::Error, "web/page", "x"),
    ];
    let ended = managed.node.run(&["alerts", "pg", "--severity", "warning"]);
    assert_eq!(
        ended.out,
        "2025-11-21 12:00:00.123  alpha  error    resource pg/server: could not be activated: exit status 1\n",
        "{ended:?}"
    );
    let ended = managed
        .node
        .run(&["alerts", "--since", "2025-11-21T12:00:01", "--json"]);
    assert_eq!(ended.out.lines().count(), 2, "{ended:?}");
    assert_eq!(managed.node.run(&["alerts", "--since", "soon"]).code, 2);

    let mut child = managed
        .node
        .command(&["alerts", "--follow", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .contains("resource web/page: x")
    );
    eventually("it listens", || managed.desk.news.receiver_count() > 0);
    managed
        .desk
        .news
        .send(alert(1, Severity::Info, "pg/server", "not this"))
        .unwrap();
    managed
        .desk
        .news
        .send(alert(2, Severity::Info, "web/page", "but this"))
        .unwrap();
    assert!(lines.next().unwrap().unwrap().contains("but this"));
    drop(managed);
    assert_eq!(
        child.wait().unwrap().code(),
        Some(3),
        "the manager has gone"
    );
}

/// A second mirror in a group is no fault, and neither does it keep a manager from its work: it is told.
#[test]
fn mirrors_that_do_not_decide_together_are_told() {
    let node = Node::without_daemon();
    let own = std::fs::read_to_string(node.file()).unwrap();
    let arbiter = format!(
        "\n[arbiter.gamma]\naddresses = [\"10.0.0.3:7790\"]\nfingerprints = [\"sha256:{}\"]\n",
        "22".repeat(32)
    );
    let mirror = |name: &str, digit: &str, more: &str| {
        let store = node.folder.path().join(name).display().to_string();
        format!(
            "\n[mirror.{name}]\nuuid = \"{}\"\nsize = \"16M\"\nbacking = \"{store}\"\nmetadata = \"{store}-meta\"\n\
             solo = \"arbiter\"\narbiter = \"gamma\"\n{more}",
            digit.repeat(32)
        )
    };
    let write = |more: &str| {
        let mirrors = mirror("first", "1", "") + &mirror("later", "2", more);
        std::fs::write(node.file(), format!("{own}{arbiter}{mirrors}")).unwrap();
    };
    let group = |name: &str| {
        format!(
            "\n[group.two.resource.{name}]\ntype = \"mirror\"\nmirror = \"{name}\"\nmount = \"/srv/{name}\"\n"
        )
    };
    let groups = "\n[group.two]\nnodes = [\"alpha\", \"beta\"]\n".to_owned();
    let text = format!("{CLUSTER}{groups}{}{}", group("first"), group("later"));
    std::fs::write(node.folder.path().join("cluster.toml"), text).unwrap();
    write("");
    let ended = node.run(&["cluster", "check"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    for words in [
        "warning: [group.two] on node alpha, mirror later does not follow mirror first",
        "next: write follows = \"first\" into [mirror.later]",
    ] {
        assert!(ended.out.contains(words), "{ended:?}");
    }
    let ended = node.run(&["cluster", "check", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(said["warnings"][0]["table"], "group.two", "{said}");
    write("follows = \"first\"\n");
    let ended = node.run(&["cluster", "check"]);
    assert!(
        ended.code == 0 && !ended.out.contains("warning"),
        "{ended:?}"
    );
}

#[test]
fn a_configuration_is_checked_against_this_node() {
    let node = Node::without_daemon();
    let file = node.folder.path().join("cluster.toml");
    let ended = node.run(&["cluster", "check"]);
    assert_eq!(ended.code, 2, "there is none: {ended:?}");

    std::fs::write(&file, CLUSTER).unwrap();
    let ended = node.run(&["cluster", "check", "--file-only"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    // The witness is not known to this node.
    let ended = node.run(&["cluster", "check"]);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(
        ended.err.contains("node alpha has no [arbiter.gamma]"),
        "{ended:?}"
    );

    let own = std::fs::read_to_string(node.file()).unwrap();
    let arbiter = format!(
        "\n[arbiter.gamma]\naddresses = [\"10.0.0.3:7790\"]\nfingerprints = [\"sha256:{}\"]\n",
        "22".repeat(32)
    );
    std::fs::write(node.file(), own + &arbiter).unwrap();
    let ended = node.run(&["cluster", "check"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended
            .out
            .contains("cluster shop, revision 7: 2 groups, 2 monitors, 2 heartbeats; no fault"),
        "{ended:?}"
    );

    let script = node.folder.path().join("start");
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    let wrong = CLUSTER
        .replacen("/bin/true", &script.display().to_string(), 1)
        .replace("127.0.0.10/8", "198.51.100.7/24")
        .replace(
            "alpha = \"127.0.0.1:7791\"",
            "alpha = \"198.51.100.1:7791\"",
        );
    std::fs::write(&file, wrong).unwrap();
    let ended = node.run(&["cluster", "check"]);
    assert_eq!(ended.code, 2);
    for words in [
        "is not executable on node alpha (mode 0",
        "address: 198.51.100.7/24 is on no network of node alpha",
        "node alpha does not have 198.51.100.1",
    ] {
        assert!(ended.err.contains(words), "{words}: {}", ended.err);
    }
    let ended = node.run(&["cluster", "check", "--json"]);
    assert_eq!((ended.code, ended.err.as_str()), (2, ""));
    let said: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(said["faults"].as_array().unwrap().len(), 3);
}

#[test]
fn a_new_configuration_is_pushed() {
    let managed = managed();
    let own = std::fs::read_to_string(managed.node.file()).unwrap();
    let arbiter = format!(
        "\n[arbiter.gamma]\naddresses = [\"10.0.0.3:7790\"]\nfingerprints = [\"sha256:{}\"]\n",
        "22".repeat(32)
    );
    std::fs::write(managed.node.file(), own + &arbiter).unwrap();
    let file = managed.node.folder.path().join("new.toml");
    let push = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let path = file.display().to_string();
        managed
            .node
            .run(&[&["cluster", "push", &path], more].concat())
    };
    let next = CLUSTER.replace("revision = 7", "revision = 8");
    let ended = push(&next, &["--dry-run"]);
    assert_eq!(
        ended.out, "revision 8 would replace 7 on beta and alpha; nothing was changed\n",
        "{ended:?}"
    );
    let ended = push(&CLUSTER.replace("10.0.0.254", "10.0.0.253"), &[]);
    assert_eq!(ended.code, 1);
    assert!(
        ended.err.contains("raise `revision` in [cluster]"),
        "{ended:?}"
    );
    let moved = next.replace("127.0.0.10/8", "127.0.0.11/8");
    let ended = push(&moved, &[]);
    assert_eq!(ended.code, 1);
    assert!(
        ended
            .err
            .contains("resource pg/address is online on alpha as address 127.0.0.10/8"),
        "{ended:?}"
    );
    assert_eq!(managed.desk.cluster.lock().unwrap().revision, 7);
    let ended = push(&next.replace("kind = \"witness\"", "kind = \"none\""), &[]);
    assert_eq!(ended.code, 2, "{ended:?}");
    let ended = push(&next, &[]);
    assert_eq!(
        ended.out, "revision 8 is in force on beta and alpha (before: 7)\n",
        "{ended:?}"
    );
    assert_eq!(managed.desk.text.lock().unwrap().as_str(), next);
}

#[test]
fn logs_of_both_nodes_are_one_archive_without_secrets() {
    let managed = Managed::on(Node::with_daemon());
    let archive = managed.node.folder.path().join("logs.tar");
    let path = archive.display().to_string();
    let ended = managed.node.run(&["logs", "collect", &path]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended
            .out
            .contains("without the beginning of beta/../../state/alerts"),
        "{ended:?}"
    );
    let tar = |arguments: &[&str]| {
        let output = std::process::Command::new("tar")
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let names = tar(&["-tf", &path]);
    for name in [
        "alpha/kagami.toml",
        "alpha/cluster.toml",
        "alpha/mirrors.json",
        "alpha/state/alerts",
        "beta/state/alerts",
        "cluster.json",
        "alerts.jsonl",
        "lacks.txt",
    ] {
        assert!(names.lines().any(|line| line == name), "{name}: {names}");
    }
    assert_eq!(
        tar(&["-xOf", &path, "alpha/state/alerts"]),
        "alpha's\npassword=(left out)\n"
    );
    let ended = managed.node.run(&["logs", "collect", &path]);
    assert_eq!(ended.code, 6, "it is not written over: {ended:?}");

    // Without anybody who answers it holds what the files say.
    let node = Node::without_daemon();
    let path = node.folder.path().join("logs.tar").display().to_string();
    let ended = node.run(&["logs", "collect", &path, "--json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let said: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert!(said["lacks"].as_array().unwrap().len() >= 2, "{said}");
    assert!(
        said["files"]
            .as_array()
            .unwrap()
            .iter()
            .any(|name| name == "alpha/kagami.toml"),
        "{said}"
    );
}

#[test]
fn a_manager_that_refuses_is_not_a_done_thing() {
    let managed = managed();
    managed
        .desk
        .obeys(|_, _| Err(Refused::new("no", "nothing")));
    for arguments in [
        &["cluster", "suspend"][..],
        &["cluster", "stop", "--yes"],
        &["node", "stop", "--yes"],
        &["group", "start", "web"],
        &["monitor", "fail", "router", "--node", "alpha"],
    ] {
        let ended = managed.node.run(arguments);
        assert_eq!((ended.code, ended.out.as_str()), (1, ""), "{arguments:?}");
        assert!(ended.err.ends_with("no\n  next: nothing\n"), "{ended:?}");
    }
}
