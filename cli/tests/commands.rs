//! The binary against a daemon whose engine does what the test says: words and exit statuses.

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use kagami::control::client::Client;
use kagami::control::message::{Answer, Ask};
use kagami_replicator::core::decide::{Refused, Row, Strategy, Verdict};
use kagami_replicator::core::event::{Command, From, Refusal, Reply};
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Connection, DiskState, Replication, Role};
use kagami_replicator::core::status::Progress;
use kagami_replicator::shell::identity::NodeKeys;

use kagami::daemon::service::Service;
use support::{Node, eventually};

#[test]
fn no_daemon_is_status_3() {
    let node = Node::without_daemon();
    for arguments in [
        &["status"][..],
        &["status", "--exit-code"],
        &["events"],
        &["promote", "pg"],
        &["demote", "pg"],
        &["resync", "pg"],
        &["pause-sync", "pg"],
        &["resume-sync", "pg"],
        &["verify", "pg"],
        &["invalidate", "pg", "--yes"],
        &["disconnect", "pg"],
        &["connect", "pg"],
        &["reload"],
        &["down"],
    ] {
        let ended = node.run(arguments);
        assert_eq!(ended.code, 3, "{arguments:?}: {ended:?}");
        assert_eq!(
            ended.err,
            format!(
                "no daemon answers on {}: there is no such socket\n  next: start one with `kagami up` (or `systemctl start kagami`); --config names the configuration it runs by\n",
                node.socket().display()
            ),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_socket_that_nobody_serves_is_no_daemon() {
    let node = Node::without_daemon();
    std::fs::create_dir_all(node.socket().parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(node.socket()).unwrap());
    let ended = node.run(&["status"]);
    assert_eq!(ended.code, 3);
    assert!(ended.err.contains("nobody listens on it"), "{}", ended.err);
}

#[test]
fn wrong_usage_and_configuration_are_status_2() {
    let node = Node::with_daemon();
    assert_eq!(node.run(&["frobnicate"]).code, 2);
    assert_eq!(node.run(&["resync", "pg", "--from", "nowhere"]).code, 2);
    assert_eq!(node.run(&["init", "pg2"]).code, 2);
    assert_eq!(node.run(&["init", "pg2", "--size", "2s"]).code, 2);
    // What would be done all the same.
    assert_eq!(node.run(&["pair", "pg", "--dry-run"]).code, 2);
    assert_eq!(node.run(&["pair", "--rotate", "--dry-run"]).code, 2);
    assert_eq!(node.run(&["pair", "pg", "--give-up-copy"]).code, 2);
    // What destroys something asks; without a terminal it needs --yes.
    let ended = node.run(&["invalidate", "pg"]);
    assert_eq!(ended.code, 2);
    assert_eq!(
        ended.err,
        "not done: mirror pg: this node's copy (/dev/vg0/pg, 20.0 GiB, generation 42) is declared bad: all of it is fetched from beta again, and until then it can't be used without beta\n  next: there is no terminal to ask on; add --yes if that is meant\n"
    );
    assert!(node.engine.orders.lock().unwrap().is_empty());
    std::fs::write(node.file(), "[nodes]\n").unwrap();
    let ended = node.run(&["config", "check"]);
    assert_eq!(ended.code, 2);
    assert!(
        ended
            .err
            .contains(":1: unknown section [nodes]\n  next: did you mean [node]?"),
        "{}",
        ended.err
    );
    assert_eq!(node.run(&["status"]).code, 2);
    std::fs::remove_file(node.file()).unwrap();
    let ended = node.run(&["up"]);
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("there is no such file"), "{}", ended.err);
}

#[test]
fn orders_reach_the_engine() {
    let node = Node::with_daemon();
    let cases: [(&[&str], Command, &str); 8] = [
        (
            &["promote", "pg"],
            Command::Promote {
                force: false,
                while_resyncing: false,
            },
            "mirror pg: Primary here\n",
        ),
        (
            &["demote", "pg"],
            Command::Demote { force: false },
            "mirror pg: Secondary here\n",
        ),
        (
            &["pause-sync", "pg"],
            Command::PauseSync,
            "mirror pg: resynchronisation held; `kagami resume-sync pg` goes on with it\n",
        ),
        (
            &["resume-sync", "pg"],
            Command::ResumeSync,
            "mirror pg: resynchronisation goes on\n",
        ),
        (
            &["invalidate", "pg", "--yes"],
            Command::Invalidate,
            "mirror pg: this copy is Inconsistent now, with every block marked\n",
        ),
        (
            &["disconnect", "pg"],
            Command::Disconnect,
            "mirror pg: disconnected; `kagami connect pg` looks for the peer again\n",
        ),
        (
            &["connect", "pg"],
            Command::Connect,
            "mirror pg: the peer is looked for\n",
        ),
        (
            &["resync", "pg", "--from", "local", "--yes", "--no-wait"],
            Command::Resync {
                from: Some(From::Local),
                full: false,
            },
            "mirror pg: resynchronised\n",
        ),
    ];
    for (arguments, command, words) in cases {
        let ended = node.run(arguments);
        assert_eq!(
            (ended.code, ended.out.as_str()),
            (0, words),
            "{arguments:?}: {}",
            ended.err
        );
        assert_eq!(node.engine.orders.lock().unwrap().pop(), Some(command));
    }
    let ended = node.run(&["promote", "pg", "--json"]);
    assert_eq!(
        ended.out,
        "{\"mirror\":\"pg\",\"outcome\":\"done\",\"text\":\"Primary here\"}\n"
    );
    node.engine
        .answers(|_, _| Ok(Reply::Nothing("this node is Primary already".to_owned())));
    let ended = node.run(&["promote", "pg"]);
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (
            0,
            "mirror pg: nothing to do: this node is Primary already\n"
        )
    );
}

#[test]
fn a_refusal_is_status_1_with_facts_and_next_step() {
    let node = Node::with_daemon();
    node.engine.answers(|_, _| {
        Err(Refusal {
            what: "not promoted: this copy is Outdated".to_owned(),
            facts: vec!["node alpha stopped at generation 41".to_owned()],
            next: "connect beta and let it resync".to_owned(),
        })
    });
    let ended = node.run(&["promote", "pg"]);
    assert_eq!(ended.code, 1);
    assert_eq!(
        ended.err,
        "mirror pg: not promoted: this copy is Outdated\n  node alpha stopped at generation 41\n  next: connect beta and let it resync\n"
    );
    let ended = node.run(&["promote", "pgg"]);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (
            1,
            "mirror pgg: there is no such mirror\n  next: did you mean pg?\n"
        )
    );
    let ended = node.run(&["status", "pgg"]);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (
            1,
            "mirror pgg: there is no such mirror\n  next: did you mean pg?\n"
        )
    );
}

#[test]
fn force_is_used_where_the_rules_refuse_alone() {
    let promotions = |node: &Node| {
        let orders = std::mem::take(&mut *node.engine.orders.lock().unwrap());
        let forced = orders.into_iter().map(|order| match order {
            Command::Promote { force, .. } => force,
            other => panic!("{other:?}"),
        });
        forced.collect::<Vec<_>>()
    };
    let refused = |next: &str| {
        let next = next.to_owned();
        move |_: &support::Fake, command: &Command| match command {
            Command::Promote { force: true, .. } => Ok(Reply::Done),
            _ => Err(Refusal {
                what: "not promoted".to_owned(),
                facts: Vec::new(),
                next: next.clone(),
            }),
        }
    };
    let node = Node::with_daemon();
    let promote = |more: &[&str]| node.run(&[&["promote", "pg", "--force"], more].concat());
    let ended = promote(&[]);
    assert_eq!((ended.code, promotions(&node)), (0, vec![false]));
    assert!(!ended.out.contains("by force"), "{}", ended.out);

    // The peer is Primary: force would not help.
    node.engine.answers(refused("demote it there first"));
    assert_eq!(
        (promote(&["--yes"]).code, promotions(&node)),
        (1, vec![false])
    );

    // It went away after it was looked at: that is asked about first.
    let lost = refused("name an arbiter, or `kagami promote --force`");
    node.engine.answers(move |engine, command| {
        engine.set(|status| status.connection = Connection::Connecting);
        lost(engine, command)
    });
    assert_eq!((promote(&[]).code, promotions(&node)), (2, vec![false]));
    node.engine
        .set(|status| status.connection = Connection::Connected);
    assert_eq!(
        (promote(&["--yes"]).code, promotions(&node)),
        (0, vec![false, true])
    );

    // It is away already.
    assert_eq!(
        (promote(&["--yes"]).code, promotions(&node)),
        (0, vec![true])
    );
}

/// The way out of a stale device is on the node that is Secondary now.
#[test]
fn a_detached_device_is_told_with_the_role_that_is_left() {
    let node = Node::with_daemon();
    let detach = || node.run(&["detach", "pg"]).out;
    assert_eq!(
        detach(),
        "mirror pg: detached; it stays Primary here until `kagami demote pg`\n"
    );
    node.engine.set(|status| {
        status.role = Role::Secondary;
        status.peer_role = Some(Role::Primary);
    });
    assert_eq!(detach(), "mirror pg: detached; beta is Primary\n");
    node.engine
        .set(|status| status.connection = Connection::Connecting);
    assert_eq!(detach(), "mirror pg: detached; it is Secondary here\n");
}

#[test]
fn a_peer_that_no_link_tells_of_a_key_is_not_forgotten() {
    let node = Node::with_daemon();
    let file = std::fs::read_to_string(node.file()).unwrap();
    let gamma = format!(
        "[peer.gamma]\nid = 3\naddresses = [\"10.0.0.4:7789\"]\nfingerprints = [\"sha256:{}\"]\n",
        "33".repeat(32)
    );
    std::fs::write(node.file(), file + &gamma).unwrap();
    NodeKeys::load_or_create(&node.folder.path().join("state/keys")).unwrap();
    let ended = node.run(&["pair", "--rotate"]);
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert!(
        ended.err.contains("gamma has no mirror with this node")
            && ended.err.contains("the next key is sha256:")
            && ended.err.contains("[peer.alpha]"),
        "{}",
        ended.err
    );
    let ended = node.run(&["pair", "--rotate", "--told", "delta"]);
    assert!(ended.err.contains("no [peer.delta]"), "{}", ended.err);
    // The daemon is asked then; this one has no link.
    let ended = node.run(&["pair", "--rotate", "--told", "gamma"]);
    assert!(ended.err.contains("no peers to tell"), "{}", ended.err);
}

#[test]
fn exit_codes_of_status() {
    let node = Node::with_daemon();
    let code = || node.run(&["status", "--exit-code"]).code;
    assert_eq!(code(), 0);
    node.engine.set(|status| {
        status.replication = Replication::SyncSource;
        status.progress = Some(Progress::default());
    });
    assert_eq!(code(), 10);
    node.engine.set(|status| {
        status.replication = Replication::Off;
        status.connection = Connection::Connecting;
        status.alone_since = Some(kagami_replicator::core::state::Time(0));
        status.peer_disk = DiskState::Unknown;
    });
    assert_eq!(code(), 11);
    node.engine.set(|status| {
        status.alone_since = None;
        status.role = Role::Secondary;
    });
    assert_eq!(code(), 12);
    node.engine.set(|status| {
        status.connection = Connection::StandAlone;
        status.verdict = Some(Verdict {
            row: Row::Forked,
            strategy: Strategy::Refuse(Refused::SplitBrain),
        });
    });
    assert_eq!(code(), 13);
}

#[test]
fn resync_waits_for_the_end_and_sums_up() {
    let node = Node::with_daemon();
    node.engine.answers(|engine, _| {
        // In sync as before, then the work, then its end: none of it may be taken for another.
        let engine = engine.clone();
        std::thread::spawn(move || {
            engine.set(|status| {
                status.replication = Replication::SyncSource;
                status.progress = Some(Progress {
                    total_blocks: 1024,
                    done_blocks: 512,
                    ..Progress::default()
                });
            });
            engine.set(|status| {
                status.replication = Replication::Established;
                status.progress = None;
            });
            engine.notice(Notice::ResyncDone {
                marked: 4 << 20,
                sent: 4 << 20,
                ms: 100,
            });
        });
        Ok(Reply::Started)
    });
    let ended = node.run(&["resync", "pg", "--full", "--wait"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(
        ended
            .out
            .starts_with("mirror pg: in sync; 4.0 MiB were marked, 4.0 MiB sent, in "),
        "{}",
        ended.out
    );
}

#[test]
fn time_out_is_status_4_and_the_work_goes_on() {
    let node = Node::with_daemon();
    node.engine
        .set(|status| status.replication = Replication::SyncSource);
    node.engine.answers(|_, _| Ok(Reply::Started));
    let ended = node.run(&["resync", "pg", "--wait", "--timeout", "300ms"]);
    assert_eq!(ended.code, 4);
    assert!(
        ended.err.ends_with("mirror pg: it took longer than --timeout; the resynchronisation goes on in the daemon\n  next: `kagami status pg` shows how far it is\n"),
        "{}",
        ended.err
    );
}

#[test]
fn ctrl_c_is_status_5_and_the_work_goes_on() {
    let node = Node::with_daemon();
    node.engine
        .set(|status| status.replication = Replication::SyncSource);
    node.engine.answers(|_, _| Ok(Reply::Started));
    let mut child = node
        .command(&["resync", "pg", "--wait"])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut first = String::new();
    stderr.read_line(&mut first).unwrap();
    assert!(first.starts_with("resync pg: "), "{first}");
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(
        rest.contains("interrupted; the resynchronisation goes on in the daemon"),
        "{rest}"
    );
}

#[test]
fn verify_tells_by_its_status_whether_the_copies_differ() {
    let node = Node::with_daemon();
    node.engine.answers(|engine, _| {
        engine.notice(Notice::VerifyDone {
            compared: 256,
            different: 0,
            unreadable: 0,
        });
        Ok(Reply::Nothing("1048576 compared, no difference".to_owned()))
    });
    let ended = node.run(&["verify", "pg", "--wait"]);
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (0, "mirror pg: compared 1.0 MiB: no difference\n"),
        "{}",
        ended.err
    );
    node.engine.answers(|engine, _| {
        engine.notice(Notice::VerifyDone {
            compared: 256,
            different: 2,
            unreadable: 0,
        });
        Ok(Reply::Nothing(
            "2 blocks differ; they are marked".to_owned(),
        ))
    });
    let ended = node.run(&["verify", "pg", "--wait", "--json"]);
    assert_eq!(ended.code, 7);
    assert_eq!(
        ended.out,
        "{\"compared_bytes\":1048576,\"different_bytes\":8192,\"mirror\":\"pg\",\"outcome\":\"done\",\"repaired\":false,\"unreadable_bytes\":0}\n"
    );
    // What neither can read is no success of a repair.
    node.engine.answers(|engine, _| {
        engine.notice(Notice::VerifyDone {
            compared: 256,
            different: 0,
            unreadable: 1,
        });
        Ok(Reply::Nothing(
            "1 blocks can be read on neither node".to_owned(),
        ))
    });
    let ended = node.run(&["verify", "pg", "--wait", "--repair"]);
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (
            7,
            "mirror pg: compared 1.0 MiB: no difference; 4.0 KiB can be read on neither node: write what is there anew, from a backup\n"
        ),
        "{}",
        ended.err
    );
}

#[test]
fn events_begin_with_the_present_state() {
    let node = Node::with_daemon();
    let mut child = node
        .command(&["events", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let present = next();
    assert_eq!(present["event"], "present");
    assert_eq!(present["facts"]["condition"], "in-sync");
    node.engine.notice(Notice::Connection {
        from: Connection::Connected,
        to: Connection::Connecting,
        cause: "nothing heard for 2 s".to_owned(),
    });
    let event = next();
    assert_eq!(event["event"], "connection");
    assert_eq!(event["severity"], "warn");
    assert_eq!(
        event["text"],
        "connection Connected -> Connecting: nothing heard for 2 s"
    );
    assert_eq!(event["facts"]["cause"], "nothing heard for 2 s");
    node.engine.notice(Notice::Role {
        from: Role::Primary,
        to: Role::Secondary,
        cause: "demoted",
    });
    let event = next();
    assert_eq!(event["text"], "role Primary -> Secondary: demoted");
    assert_eq!(event["facts"]["cause"], "demoted");
    node.engine.notice(Notice::Disk {
        from: DiskState::UpToDate,
        to: DiskState::Failed,
    });
    let event = next();
    assert_eq!(event["text"], "disk UpToDate -> Failed");
    assert_eq!(event["severity"], "error");
    assert!(event["facts"].get("cause").is_none(), "{event}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_resolver_that_is_dead_holds_up_a_reload_alone() {
    let node = Node::with_daemon();
    let text = std::fs::read_to_string(node.file()).unwrap();
    node.engine.unresolved.send_replace(true);
    let reload = node
        .command(&["reload"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let asked = || node.engine.looked_up.lock().unwrap().clone();
    eventually("names are looked up", || asked().len() == 1);
    let ended = node.run(&["promote", "pg", "--timeout", "5s"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(node.run(&["status"]).code, 0);

    // What counts is what the file says when it is over; what is new in it is looked up, too.
    let later = text
        .replace("10.0.0.2:7789", "beta.example:7789")
        .replace("id = 2", "id = 2\ntimeout = \"7s\"");
    std::fs::write(node.file(), &later).unwrap();
    node.engine.unresolved.send_replace(false);
    let ended = reload.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(said.contains("timeout = \"7s\""), "{said}");
    let asked: Vec<Vec<String>> = asked()
        .into_iter()
        .map(|names| names.into_iter().collect())
        .collect();
    assert_eq!(asked, [["10.0.0.2:7789"], ["beta.example:7789"]]);
}

#[test]
fn an_arbiter_stays_as_long_as_a_mirror_that_runs_asks_it() {
    let mut node = Node::without_daemon();
    let text = std::fs::read_to_string(node.file()).unwrap();
    let arbiter = format!(
        "\n[arbiter.%]\naddresses = [\"10.0.0.3:7790\"]\nfingerprints = [\"sha256:{}\"]\n",
        "22".repeat(32)
    );
    let of = |name: &str| {
        arbiter
            .replace("22", if name == "w" { "22" } else { "44" })
            .replace('%', name)
    };
    let asks = text.replace(
        "peer = \"beta\"",
        "peer = \"beta\"\nsolo = \"arbiter\"\narbiter = \"w\"",
    );
    std::fs::write(node.file(), asks + &of("w") + &of("v")).unwrap();
    node.begin(Service::none());
    // The mirror is gone from the file, and runs on until a restart.
    let (head, rest) = text.split_once("[mirror.pg]").unwrap();
    let (_, peer) = rest.split_once("[peer.beta]").unwrap();
    std::fs::write(node.file(), format!("{head}[peer.beta]{peer}")).unwrap();
    let ended = node.run(&["reload"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(
        ended.out.contains("needs a restart: [arbiter.w] is gone")
            && ended.out.contains("in force: [arbiter.v] is gone"),
        "{}",
        ended.out
    );
}

#[test]
fn reload_takes_over_what_it_can() {
    let node = Node::with_daemon();
    let text = std::fs::read_to_string(node.file()).unwrap();
    let changed = text
        .replace(
            "peer = \"beta\"",
            "peer = \"beta\"\nprotocol = \"B\"\nactivity-log-extents = 512",
        )
        .replace("id = 2", "id = 2\ntimeout = \"5s\"");
    std::fs::write(node.file(), &changed).unwrap();
    let ended = node.run(&["reload"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(
        ended.out,
        "in force: [mirror.pg] protocol = \"B\" (was \"C\")\n\
         in force: [peer.beta] timeout = \"5s\" (was \"2s\")\n\
         needs a restart: [mirror.pg] activity-log-extents = 512 (was 1024)\n\
         next: `kagami down && kagami up` when it suits\n"
    );
    let order = node.engine.orders.lock().unwrap().pop();
    let Some(Command::Set(settings)) = order else {
        panic!("{order:?}");
    };
    assert_eq!(settings.timeout_ms, 5_000);
    assert_eq!(
        settings.protocol,
        kagami_replicator::core::state::Protocol::B
    );
    // What waits for a restart is said again; what is in force is not.
    let ended = node.run(&["reload"]);
    assert!(
        ended
            .out
            .starts_with("needs a restart: [mirror.pg] activity-log-extents"),
        "{}",
        ended.out
    );
    std::fs::write(
        node.file(),
        changed.replace("protocol = \"B\"", "protocol = \"D\""),
    )
    .unwrap();
    let ended = node.run(&["reload"]);
    assert_eq!(ended.code, 2);
    assert!(
        ended
            .err
            .contains("protocol: `D` is not one of the choices"),
        "{}",
        ended.err
    );
}

#[test]
fn down_stops_the_engine_and_frees_the_socket() {
    let mut node = Node::with_daemon();
    let ended = node.run(&["down", "--timeout", "300ms"]);
    // The daemon is this test's own process: it has stopped, and the process lives on.
    assert_eq!(ended.code, 4, "{ended:?}");
    node.wait();
    assert!(*node.engine.stopped.lock().unwrap());
    eventually("the socket is gone", || !node.socket().exists());
    assert_eq!(node.run(&["status"]).code, 3);
}

/// Whoever asked for it goes on with the disk that he takes away.
#[test]
fn a_stop_that_was_not_clean_is_told_as_that() {
    let mut node = Node::with_daemon();
    let left = "mirror pg: not stopped cleanly within 30s".to_owned();
    *node.engine.unclean.lock().unwrap() = vec![left.clone()];
    let socket = node.socket();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answer = runtime.block_on(async {
        let mut client = Client::connect(&socket).await.unwrap();
        client.ask(Ask::Stop).await.unwrap()
    });
    let Answer::Refused(refusal) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(refusal.facts, [left]);
    assert!(refusal.next.contains("kagami up"), "{refusal:?}");
    node.wait();
}

#[test]
fn help_completions_and_man_pages() {
    let node = Node::without_daemon();
    for shell in ["bash", "zsh", "fish"] {
        let ended = node.run(&["completions", shell]);
        assert_eq!(ended.code, 0);
        assert!(ended.out.contains("pause-sync"), "{shell}");
    }
    let folder = node.folder.path().join("man");
    assert_eq!(node.run(&["man", folder.to_str().unwrap()]).code, 0);
    for page in ["kagami.1", "kagami-status.1", "kagami-config-check.1"] {
        assert!(folder.join(page).exists(), "{page}");
    }
    let ended = node.run(&["status", "--help"]);
    assert_eq!(ended.code, 0);
    assert!(ended.out.contains("Examples:"));
}
