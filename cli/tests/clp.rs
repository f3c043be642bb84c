//! The compatible names, through links to the binary as scripts call them.

mod support;

use std::fs::File;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::{Command as Process, Stdio};

use kagami_failover::config::Severity;
use kagami_failover::control::Ask;
use kagami_failover::control::message::{Reach, Refused};
use kagami_failover::control::status::{ManagerPhase, NodeState, RunState, WatchState};
use kagami_failover::core::Command;
use kagami_failover::core::durable::EndKind;
use kagami_replicator::core::event::{Command as MirrorCommand, Refusal, Reply};
use kagami_replicator::core::state::{Connection, DiskState, Replication};
use kagami_replicator::core::status::Progress;
use support::desk::Managed;
use support::{Ended, Node};

fn managed() -> Managed {
    Managed::on(Node::without_daemon())
}

/// Runs a link of that name. Its words go to files: what ARMLOAD starts keeps them open.
fn called(node: &Node, line: &str) -> Ended {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap();
    let link = node.folder.path().join(name);
    if !link.exists() {
        symlink(env!("CARGO_BIN_EXE_kagami"), &link).unwrap();
    }
    let (out, err) = (
        node.folder.path().join("out"),
        node.folder.path().join("err"),
    );
    let status = Process::new(link)
        .args(words)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("KAGAMI_CONFIG", node.file())
        .env("KAGAMI_RUN", node.folder.path().join("run/failover"))
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .status()
        .unwrap();
    Ended {
        code: status.code().expect("it was not killed"),
        out: std::fs::read_to_string(out).unwrap(),
        err: std::fs::read_to_string(err).unwrap(),
    }
}

#[test]
fn clpstat_says_what_scripts_cut_out_of_it() {
    let managed = managed();
    let ended = called(&managed.node, "clpstat");
    assert_eq!(
        ended.out,
        " \
========================  CLUSTER STATUS  ===========================
  Cluster : shop
  <server>
   *alpha ...........: Online           Primary server
      lan            : Normal           LAN Heartbeat
      tty            : Normal           COM Heartbeat
    beta ............: Online           Secondary server
      lan            : Normal           LAN Heartbeat
      tty            : Normal           COM Heartbeat
  <group>
    pg ..............: Online
      current        : alpha
      address        : Online
      server         : Online
    web .............: Offline
      current        :
      page           : Offline
  <monitor>
    rows             : Normal
    router           : Normal
 =====================================================================
",
        "{ended:?}"
    );
    // The same by the binary's own name.
    let same = managed.node.run(&["clp", "clpstat", "-s"]);
    assert_eq!(same.out, ended.out);
    let there = called(&managed.node, "clpstat -h beta");
    assert!(
        there.out.contains("   *beta ............: Online"),
        "{there:?}"
    );
    for (line, says) in [
        (
            "clpstat -g",
            "   pg                              o         -",
        ),
        (
            "clpstat -m",
            "   rows : Normal                   o         -",
        ),
        ("clpstat -n", "   [on alpha : Online]"),
        ("clpstat --cl", " [Cluster Name : shop]"),
        ("clpstat --sv beta", " [Server1 : beta]"),
        (
            "clpstat --hb",
            "  Device : alpha 127.0.0.1:7791, beta 10.0.0.2:7791",
        ),
        ("clpstat --grp web", "  Startup : Manual"),
        ("clpstat --rsc address", "  Activation Retry Threshold : 5"),
        ("clpstat --rsc address", "  Activation Retry Interval : 5s"),
        ("clpstat --mon rows", "  Recovery Target : pg/server"),
        ("clpstat --svg", "SERVERGROUP INFORMATION"),
        ("clpstat -i", " [Monitor1 : router]"),
        (
            "clpstat --local --long",
            "    pg ...............................: Online",
        ),
    ] {
        let ended = called(&managed.node, line);
        assert_eq!(ended.code, 0, "{line}: {ended:?}");
        assert!(ended.out.contains(says), "{line}: {}", ended.out);
    }
    for line in [
        "clpstat -s -g",
        "clpstat -h gamma",
        "clpstat --grp nope",
        "clpstat --frob",
    ] {
        let ended = called(&managed.node, line);
        assert_ne!(ended.code, 0, "{line}");
        assert!(ended.err.starts_with("clpstat: "), "{ended:?}");
    }
}

#[test]
fn clpgrp_moves_and_is_1_when_that_fails() {
    let managed = managed();
    managed.desk.obeys(|command, view| {
        let order = |view: &mut kagami_failover::control::NodeView, group: usize, wanted| {
            view.groups[group].order.version += 1;
            view.groups[group].order.wanted = wanted;
            view.groups[group].state = if wanted {
                RunState::Online
            } else {
                RunState::Offline
            };
        };
        match *command {
            Command::Start {
                group, on: Some(0), ..
            } => order(view, group, true),
            Command::Stop { group } => order(view, group, false),
            _ => return Err(Refused::new("group pg: node beta can't run it now", "wait")),
        }
        Ok(())
    });
    let ended = called(&managed.node, "clpgrp -m pg -a beta");
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(
        ended.err,
        "clpgrp: group pg: node beta can't run it now\n  next: wait\n"
    );
    assert_eq!(called(&managed.node, "clpgrp -n pg").out, "alpha\n");
    assert_eq!(called(&managed.node, "clpgrp -n web").code, 1);
    // All that can start here; then all that runs here.
    let ended = called(&managed.node, "clpgrp -s");
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (0, "group web: online on alpha\n"),
        "{ended:?}"
    );
    let ended = called(&managed.node, "clpgrp -t");
    assert_eq!(
        ended.out, "group pg: offline\ngroup web: offline\n",
        "{ended:?}"
    );
    for line in [
        "clpgrp",
        "clpgrp -s -t",
        "clpgrp -m nope",
        "clpgrp -m pg -a gamma",
        "clpgrp -s pg web",
    ] {
        assert_ne!(called(&managed.node, line).code, 0, "{line}");
    }
}

#[test]
fn clpgrp_stops_a_group_within_its_time() {
    let managed = managed();
    managed.desk.obeys(|_, view| {
        view.groups[0].order.version += 1;
        view.groups[0].order.wanted = false;
        view.groups[0].state = RunState::OfflinePending;
        Ok(())
    });
    let ended = called(&managed.node, "clpgrp -t pg --apito 1");
    assert_eq!(ended.code, 4, "{ended:?}");
}

#[test]
fn the_cluster_and_its_machines_end_as_they_are_told() {
    let managed = managed();
    for (line, command) in [
        ("clpdown", Command::EndNode(EndKind::Shutdown)),
        ("clpdown -r", Command::EndNode(EndKind::Reboot)),
        ("clpstdn", Command::EndCluster(EndKind::Shutdown)),
        ("clpstdn -r", Command::EndCluster(EndKind::Reboot)),
        ("clpcl --suspend", Command::Suspend),
    ] {
        let ended = called(&managed.node, line);
        assert_eq!(ended.code, 0, "{line}: {ended:?}");
        assert_eq!(
            managed.desk.commands.lock().unwrap().pop(),
            Some(command),
            "{line}"
        );
    }
    // It runs already, here and there.
    assert_eq!(called(&managed.node, "clpcl -s -a").code, 0);
    assert_ne!(called(&managed.node, "clpcl -s -h beta").code, 0);
    // It was told to end, and does not.
    let ended = called(&managed.node, "clpcl -t -w 1");
    assert_eq!(ended.code, 4, "{ended:?}");
    assert_eq!(
        managed.desk.commands.lock().unwrap().pop(),
        Some(Command::EndNode(EndKind::Manager))
    );
    // Its socket is gone, and its process, this one, is not.
    let path = managed.node.folder.path().join("run/failover.sock");
    *managed.desk.script.lock().unwrap() = Box::new(move |_, _| {
        std::fs::remove_file(&path).unwrap();
        Ok(())
    });
    let ended = called(&managed.node, "clpcl -t -w 1");
    assert_eq!(ended.code, 4, "{ended:?}");
}

#[test]
fn what_another_node_has_to_do_is_not_told_as_done() {
    let managed = managed();
    // Nobody can start the other one from here: nothing is stopped first.
    let ended = called(&managed.node, "clpcl -r -a -w 1");
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.err.contains("`clpcl -s` on each node"), "{ended:?}");
    assert!(managed.desk.commands.lock().unwrap().is_empty());
    // It is about to end, or has.
    let says = "next: on beta: clpcl -s";
    for phase in [ManagerPhase::Ending, ManagerPhase::Gone] {
        managed.desk.other(|beta| beta.phase = phase);
        let ended = called(&managed.node, "clpcl -s -a");
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.err.contains(says), "{ended:?}");
    }
    *managed.desk.other.lock().unwrap() = None;
    let ended = called(&managed.node, "clpcl -s -a");
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.err.contains(says), "{ended:?}");

    // Neither heartbeats nor the channel tell it of the end.
    managed.desk.view.lock().unwrap().other = NodeState::Offline;
    for (line, command, code) in [
        ("clpstdn", Command::EndCluster(EndKind::Shutdown), 6),
        ("clpcl -t -a -w 1", Command::EndCluster(EndKind::Manager), 4),
    ] {
        let ended = called(&managed.node, line);
        assert_eq!(ended.code, code, "{ended:?}");
        assert!(
            (ended.err)
                .contains("node beta has not said that it knows of it: node beta does not answer"),
            "{ended:?}"
        );
        assert_eq!(managed.desk.commands.lock().unwrap().pop(), Some(command));
    }
    // A start script goes on.
    let ended = called(&managed.node, "ARMBCAST /MSG moving /A");
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended
            .err
            .contains("node beta did not get it: node beta does not answer"),
        "{ended:?}"
    );
}

#[test]
fn a_manager_that_answers_nothing_is_waited_for_no_longer_than_told() {
    let node = Node::without_daemon();
    let folder = node.folder.path().join("run");
    std::fs::create_dir_all(&folder).unwrap();
    let _mute = UnixListener::bind(folder.join("failover.sock")).unwrap();
    for line in [
        "clpcl -t -w 1",
        "clpcl -t -a -w 1",
        "clpcl -t -h beta -w 1",
        "clpcl -r -w 1",
        "clpcl --suspend -w 1",
    ] {
        let ended = called(&node, line);
        assert_eq!(ended.code, 4, "{line}: {ended:?}");
        assert!(ended.err.contains("\n  next: "), "{line}: {ended:?}");
    }
}

#[test]
fn words_become_alerts() {
    let managed = managed();
    assert_eq!(
        called(&managed.node, "clplogcmd -m started -i 12 -l WARN").code,
        0
    );
    assert_eq!(called(&managed.node, "ARMLOG the server is up").code, 0);
    assert_eq!(
        called(&managed.node, "ARMBCAST /MSG backup begins /A").code,
        0
    );
    let alerts = managed.desk.alerts.lock().unwrap().clone();
    let said: Vec<(Severity, String, &str)> = alerts
        .iter()
        .map(|one| (one.severity, one.object(), one.what.as_str()))
        .collect();
    assert_eq!(
        said,
        [
            (Severity::Warning, "message 12".to_owned(), "started"),
            (Severity::Info, "message".to_owned(), "the server is up"),
            (Severity::Warning, "message".to_owned(), "backup begins"),
        ]
    );
    let everywhere = Ask::Note {
        text: "backup begins".to_owned(),
        id: None,
        severity: Severity::Warning,
        reach: Reach::Node,
    };
    assert_eq!(*managed.desk.forwarded.lock().unwrap(), [everywhere]);
    for line in [
        "clplogcmd",
        "clplogcmd -m x -l LOUD",
        "clplogcmd -m x -i many",
        "ARMBCAST /A",
        "ARMLOG",
    ] {
        assert_eq!(called(&managed.node, line).code, 2, "{line}");
    }
}

#[test]
fn a_configuration_is_fetched_and_given_back() {
    let managed = managed();
    let own = std::fs::read_to_string(managed.node.file()).unwrap();
    let arbiter = format!(
        "\n[arbiter.gamma]\naddresses = [\"10.0.0.3:7790\"]\nfingerprints = [\"sha256:{}\"]\n",
        "22".repeat(32)
    );
    std::fs::write(managed.node.file(), own + &arbiter).unwrap();
    let folder = managed.node.folder.path().join("work");
    std::fs::create_dir(&folder).unwrap();
    let at = folder.display();
    assert_eq!(
        called(&managed.node, &format!("clpcfctrl --pull -x {at}")).code,
        0
    );
    let file = folder.join("cluster.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("revision = 7", "revision = 8")).unwrap();
    let ended = called(&managed.node, &format!("clpcfctrl --push -x {at}"));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(managed.desk.cluster.lock().unwrap().revision, 8);
    let ended = called(&managed.node, &format!("clplogcc -l -o {at}"));
    assert_eq!(ended.code, 0, "{ended:?}");
    let archives = std::fs::read_dir(&folder).unwrap().flatten();
    assert!(
        archives
            .map(|one| one.file_name())
            .any(|name| name.to_string_lossy().ends_with(".tar"))
    );
}

#[test]
fn a_mirror_is_told_in_colours() {
    let managed = Managed::on(Node::with_daemon());
    let colours = || called(&managed.node, "clpmdstat -m pg").out;
    assert_eq!(
        colours(),
        " Status: Normal\n pg : alpha beta\n Mirror Color  GREEN GREEN\n"
    );
    managed.node.engine.set(|status| {
        status.connection = Connection::Connecting;
        status.replication = Replication::Off;
        status.peer_role = None;
        status.peer_disk = DiskState::Unknown;
        status.alone_since = Some(kagami_replicator::core::state::Time(0));
    });
    assert!(
        colours().contains(" Mirror Color  GREEN RED\n"),
        "{}",
        colours()
    );
    managed.node.engine.set(|status| {
        status.connection = Connection::Connected;
        status.replication = Replication::SyncSource;
        status.alone_since = None;
        status.peer_role = Some(kagami_replicator::core::state::Role::Secondary);
        status.peer_disk = DiskState::Inconsistent;
    });
    assert!(
        colours().contains(" Mirror Color  GREEN YELLOW\n"),
        "{}",
        colours()
    );
    let ended = called(&managed.node, "clpmdctrl --rwait pg -timeout 1");
    assert_eq!(ended.code, 4, "{ended:?}");
    *managed.node.engine.status.lock().unwrap() = support::in_sync();
    assert_eq!(
        called(&managed.node, "clpmdctrl --rwait pg -timeout 1").code,
        0
    );
    assert!(
        called(&managed.node, "clpmdstat -a pg")
            .out
            .contains(" Active Status  Active Inactive\n")
    );
    assert!(
        called(&managed.node, "clpmdstat -l")
            .out
            .starts_with(" pg ")
    );
    assert_eq!(called(&managed.node, "clpmdstat -m nope").code, 1);

    // A part of it was done: not "nothing was changed".
    managed.node.engine.answers(|_, _| {
        Err(Refusal {
            what: "not demoted: requests wait for the peer".to_owned(),
            facts: Vec::new(),
            next: "connect the peer".to_owned(),
        })
    });
    let ended = called(&managed.node, "clpmdctrl -d pg");
    assert_eq!(ended.code, 6, "{ended:?}");
    assert!(ended.err.contains("requests wait"), "{ended:?}");
    assert!(ended.err.contains("done before that: detach"), "{ended:?}");

    managed.node.engine.answers(|_, _| Ok(Reply::Done));
    assert_eq!(called(&managed.node, "clpmdctrl -d pg").code, 0);
    managed.node.engine.orders.lock().unwrap().clear();
    assert_eq!(called(&managed.node, "clpmdctrl -b pg").code, 0);
    assert_eq!(called(&managed.node, "clpmdctrl -r pg").code, 0);
    let orders = managed.node.engine.orders.lock().unwrap().clone();
    assert_eq!(
        orders,
        [MirrorCommand::Disconnect, MirrorCommand::Connect],
        "in sync: nothing to fetch"
    );
}

#[test]
fn a_resynchronisation_that_was_held_goes_on_by_the_name_that_begins_one() {
    let managed = Managed::on(Node::with_daemon());
    let node = &managed.node;
    let ordered = || std::mem::take(&mut *node.engine.orders.lock().unwrap());
    let hold = |here: bool, there: bool| {
        node.engine.set(|status| {
            status.replication = Replication::SyncSource;
            status.progress = Some(Progress {
                paused_here: here,
                paused_there: there,
                ..Progress::default()
            });
        });
    };
    let answers = |connected: bool| {
        node.engine.answers(move |_, command| match command {
            MirrorCommand::Connect if connected => Ok(Reply::Nothing("connected".to_owned())),
            MirrorCommand::Resync { .. } => Err(Refusal {
                what: "refused: a resynchronisation runs".to_owned(),
                facts: Vec::new(),
                next: "watch it".to_owned(),
            }),
            _ => Ok(Reply::Done),
        });
    };
    answers(true);
    hold(true, false);
    let ended = called(node, "clpmdctrl -r pg");
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(
        ordered(),
        [MirrorCommand::Connect, MirrorCommand::ResumeSync]
    );
    // At the other node it is held by somebody's word there.
    hold(false, true);
    let ended = called(node, "clpmdctrl -r pg");
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(
        ended.err.contains("`kagami resume-sync pg` on beta"),
        "{ended:?}"
    );
    assert_eq!(ordered(), [MirrorCommand::Connect]);
    // It runs: that is what was asked for, whether the session came by this command or before.
    for connected in [true, false] {
        answers(connected);
        hold(false, false);
        let ended = called(node, "clpmdctrl -r pg");
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(ended.out.contains("Recovering"), "{ended:?}");
        assert_eq!(ordered(), [MirrorCommand::Connect]);
    }
}

#[test]
fn a_forced_activation_says_what_it_overrides() {
    let managed = Managed::on(Node::with_daemon());
    let node = &managed.node;
    let promoted = || {
        let orders = std::mem::take(&mut *node.engine.orders.lock().unwrap());
        orders
            .into_iter()
            .find_map(|order| match order {
                MirrorCommand::Promote { force, .. } => Some(force),
                _ => None,
            })
            .expect("a promotion")
    };
    // Nothing is to be overridden.
    node.engine
        .set(|status| status.role = kagami_replicator::core::state::Role::Secondary);
    called(node, "clpmdctrl -f pg");
    assert!(!promoted(), "the rules decide where they permit");
    node.engine.set(|status| {
        status.connection = Connection::Connecting;
        status.disk = DiskState::Outdated;
        status.peer_role = None;
    });
    let ended = called(node, "clpmdctrl -f pg");
    assert!(promoted());
    assert!(
        ended
            .err
            .contains("beta holds newer writes, which are lost"),
        "{ended:?}"
    );
}

#[test]
fn programs_are_watched_by_name() {
    let managed = managed();
    let node = &managed.node;
    assert_eq!(called(node, "ARMLOAD db /M /R 2 /H 24 sleep 600").code, 0);
    let again = called(node, "ARMLOAD db /M sleep 600");
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.err.starts_with("ARMLOAD: "), "{again:?}");
    assert_eq!(called(node, "ARMLOADC db /W PAUSE").code, 0);
    assert_eq!(called(node, "ARMLOADC nope /W PAUSE").code, 1);
    assert_eq!(called(node, "ARMKILL db /T 5").code, 0);
    assert_eq!(called(node, "ARMKILL db").code, 1, "it is off the list");
    assert_ne!(called(node, "ARMLOAD x /no/such/program").code, 0);
    assert_eq!(called(node, "ARMSLEEP 0").code, 0);
}

#[test]
fn a_suspended_monitor_is_shown_as_such() {
    let managed = managed();
    managed.desk.view.lock().unwrap().monitors[0].state = WatchState::Suspended;
    let ended = called(&managed.node, "clpstat");
    assert!(
        ended.out.contains("    rows             : Suspend\n"),
        "{ended:?}"
    );
}
