//! Orders that find everything as it was wanted, names that nobody has or a restart alone gives, and what status knows
//! before it is needed.

mod support;

use kagami_failover::core::Refusal;
use kagami_replicator::core::state::Time;
use kagami_replicator::core::status::ArbiterFault;
use support::Node;
use support::desk::Managed;

fn managed() -> Managed {
    Managed::on(Node::without_daemon())
}

/// The group is what was asked for.
fn already(managed: &Managed, what: &'static str) {
    managed.desk.obeys(move |_, _| {
        let group = "pg".to_owned();
        let what = what.to_owned();
        Err(Refusal::Already { group, what }.into())
    });
}

#[test]
fn a_group_that_is_as_it_is_wanted_is_no_failure() {
    let managed = managed();
    already(&managed, "running on node alpha");
    let start = |more: &[&str]| {
        let ended = managed
            .node
            .run(&[&["group", "start", "pg"], more].concat());
        (ended.code, ended.out + &ended.err)
    };
    let words = "nothing to do: it is running on node alpha already";
    let told = (0, format!("group pg: {words}\n"));
    assert_eq!(start(&[]), told);
    assert_eq!(start(&["--on", "alpha"]), told);
    assert_eq!(start(&["--no-wait"]), told);
    let json = format!(r#"{{"group":"pg","outcome":"nothing","text":"{words}"}}"#);
    assert_eq!(start(&["--json"]), (0, json + "\n"));

    // It runs, and not here.
    {
        let mut view = managed.desk.view.lock().unwrap();
        view.groups[0].order.owner = 1;
        view.groups[0].state = kagami_failover::control::status::RunState::Offline;
        managed.desk.other(|beta| {
            beta.groups[0].order.owner = 1;
            beta.groups[0].state = kagami_failover::control::status::RunState::Online;
        });
    }
    already(&managed, "running on node beta");
    assert_eq!(
        start(&[]),
        (
            0,
            "group pg: nothing to do: it is running on node beta already; `kagami group move pg --to alpha` brings it here\n"
                .to_owned()
        )
    );
    managed.desk.obeys(|_, _| {
        Err(Refusal::Elsewhere {
            group: "pg".to_owned(),
            node: "beta".to_owned(),
            to: "alpha".to_owned(),
        }
        .into())
    });
    assert_eq!(
        start(&["--on", "alpha"]),
        (
            1,
            "group pg: not started on node alpha: it is running on node beta\n  next: `kagami group move pg --to alpha` moves it\n"
                .to_owned()
        )
    );
}

#[test]
fn a_group_that_is_on_its_way_is_waited_for() {
    let managed = managed();
    managed.desk.view.lock().unwrap().groups[0].state =
        kagami_failover::control::status::RunState::OnlinePending;
    already(&managed, "running on node alpha");
    let ended = managed
        .node
        .run(&["group", "start", "pg", "--timeout", "300ms"]);
    assert_eq!((ended.code, ended.out.as_str()), (4, ""), "{ended:?}");
}

#[test]
fn a_group_that_does_not_run_is_stopped() {
    let managed = managed();
    already(&managed, "stopped");
    let ended = managed.node.run(&["group", "stop", "pg"]);
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (0, "group pg: nothing to do: it is stopped already\n"),
        "{ended:?}"
    );
}

#[test]
fn alerts_of_what_nobody_has_are_refused() {
    let managed = managed();
    let alerts = |name: &str| {
        let ended = managed.node.run(&["alerts", name]);
        (ended.code, ended.err)
    };
    let (code, words) = alerts("nope");
    assert_eq!(code, 1);
    assert!(
        words.starts_with("there is no group, monitor, node or heartbeat nope\n  next: "),
        "{words}"
    );
    let (code, words) = alerts("pgg");
    assert_eq!(code, 1);
    assert!(words.ends_with("next: did you mean \"pg\"?\n"), "{words}");
    for name in ["pg", "pg/server", "rows", "beta", "lan", "cluster", "12"] {
        assert_eq!(alerts(name), (0, String::new()), "{name}");
    }
    // It has left the configuration, and not the log.
    let told = kagami_failover::control::AlertReport {
        kind: "group".to_owned(),
        name: "nope".to_owned(),
        ..Default::default()
    };
    managed.desk.alerts.lock().unwrap().push(told);
    assert_eq!(alerts("nope"), (0, String::new()));
}

/// `init` has written a mirror into the file, and the daemon was not started again.
#[test]
fn a_mirror_that_the_daemon_does_not_know_is_told_from_one_that_nobody_has() {
    let node = Node::with_daemon();
    let file = std::fs::read_to_string(node.file()).unwrap();
    let third = "\n[mirror.third]\nuuid = \"00112233445566778899aabbccddee00\"\nsize = \"1GiB\"\n\
                 backing = \"/dev/vg0/third\"\nmetadata = \"/dev/vg0/third-meta\"\n";
    std::fs::write(node.file(), file + third).unwrap();
    for command in [
        &["status", "third"][..],
        &["promote", "third"],
        &["promote", "third", "--dry-run"],
        &["resync", "third", "--wait"],
    ] {
        let ended = node.run(command);
        assert_eq!(ended.code, 1, "{ended:?}");
        let expected = format!(
            "mirror third: {} has it, and the daemon that runs does not know it: a new mirror is taken up when the daemon starts\n  next: `kagami down && kagami up` when it suits\n",
            node.file().display()
        );
        assert_eq!(ended.err, expected, "{command:?}");
    }
    assert!(node.engine.orders.lock().unwrap().is_empty());
    let ended = node.run(&["status", "fourth"]);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (
            1,
            "mirror fourth: there is no such mirror\n  next: name one of pg\n"
        )
    );
}

#[test]
fn a_warning_is_no_fault() {
    let node = Node::without_daemon();
    let check = |more: &[&str]| node.run(&[&["config", "check", "--file-only"], more].concat());
    let ended = check(&["--json"]);
    let of_all = serde_json::from_str::<serde_json::Value>(&ended.out).unwrap();
    assert_eq!(of_all["warnings"], serde_json::json!([]));
    let file = std::fs::read_to_string(node.file()).unwrap();
    std::fs::write(node.file(), file + "ack-timeout = \"1s\"\n").unwrap();
    let ended = check(&[]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.out.contains(": right: "), "{ended:?}");
    assert!(
        ended.err.starts_with("warning: ")
            && ended.err.contains("[peer.beta] ack-timeout: 1s is shorter")
            && ended.err.contains("\n  next: "),
        "{ended:?}"
    );
    let ended = check(&["--json"]);
    let said = serde_json::from_str::<serde_json::Value>(&ended.out).unwrap();
    assert_eq!(
        (ended.code, said["faults"].as_array().unwrap().len()),
        (0, 0)
    );
    assert_eq!(said["warnings"].as_array().unwrap().len(), 1, "{said}");
}

#[test]
fn an_arbiter_that_does_not_answer_is_in_the_document() {
    let node = Node::with_daemon();
    let told = || {
        let ended = node.run(&["status", "--json"]);
        let said = serde_json::from_str::<serde_json::Value>(&ended.out).unwrap();
        said["mirrors"][0]["arbiter_fault"].clone()
    };
    assert!(told().is_null());
    node.engine.set(|status| {
        status.arbiter_fault = Some(ArbiterFault {
            since: Time(0),
            why: "no answer in time".to_owned(),
            refused: false,
        });
    });
    let fault = told();
    assert_eq!(
        (&fault["why"], &fault["refused"]),
        (&"no answer in time".into(), &false.into())
    );
    assert!(fault["since_ms"].as_u64().unwrap() > 0, "{fault}");
}

/// Nobody is told that a mirror follows one which only a restart makes.
#[test]
fn a_reload_leaves_a_leader_that_does_not_run_to_the_restart() {
    let node = Node::with_daemon();
    let asking = "peer = \"beta\"\nsolo = \"arbiter\"\narbiter = \"gamma\"";
    let text = std::fs::read_to_string(node.file()).unwrap();
    let text = text.replace("peer = \"beta\"", asking)
        + &format!(
            "\n[arbiter.gamma]\naddresses = [\"10.0.0.3:7790\"]\nfingerprints = [\"sha256:{}\"]\n",
            "22".repeat(32)
        );
    let at = text.find("[mirror.pg]").expect("the mirror");
    let end = text.find("[peer.beta]").expect("the peer");
    let first = text[at..end]
        .replace("[mirror.pg]", "[mirror.first]")
        .replace("00112233", "99112233")
        .replace("/pg", "/first");
    let follows = format!("{asking}\nfollows = \"first\"");
    let second = text.replace(asking, &follows);
    std::fs::write(node.file(), format!("{second}\n{first}")).unwrap();
    let ended = node.run(&["reload"]);
    assert_eq!(ended.code, 0, "{} {}", ended.out, ended.err);
    assert!(
        ended
            .out
            .contains("needs a restart: [mirror.pg] follows = \"first\""),
        "{}",
        ended.out
    );
}

/// What `kagami config check` says of [nbd], in a file with these three.
fn nbd_fault(node: &Node, plain: &str, [certificate, key, ca]: [&std::path::Path; 3]) -> String {
    let files = format!(
        "{plain}\n[nbd]\nlisten = [\"127.0.0.1:10809\"]\ncertificate = \"{}\"\nkey = \"{}\"\nclient-ca = \"{}\"\n",
        certificate.display(),
        key.display(),
        ca.display()
    );
    std::fs::write(node.file(), files).unwrap();
    let of_file = node.run(&["config", "check", "--file-only"]);
    assert_eq!(of_file.code, 0, "{of_file:?}");
    // Its stores are not there either.
    let ended = node.run(&["config", "check"]);
    assert_eq!(ended.code, 2, "{ended:?}");
    let mut lines = ended.err.lines().skip_while(|line| !line.contains("[nbd]"));
    let lines = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    format!("{}\n{}", lines.0, lines.1)
}

/// They kept TCP out when the daemon started, and nothing said so before.
#[test]
fn certificates_and_keys_are_tried_by_config_check() {
    let node = Node::without_daemon();
    let plain = std::fs::read_to_string(node.file()).unwrap();
    let folder = node.file().parent().unwrap().to_owned();
    let [certificate, key, ca, other, text, none] = [
        "crt.pem",
        "key.pem",
        "ca.pem",
        "other.pem",
        "text.pem",
        "none.pem",
    ]
    .map(|n| folder.join(n));
    let names = || vec!["localhost".to_owned()];
    let own = rcgen::generate_simple_self_signed(names()).unwrap();
    let another = rcgen::generate_simple_self_signed(names()).unwrap();
    std::fs::write(&certificate, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    std::fs::write(&ca, another.cert.pem()).unwrap();
    std::fs::write(&other, another.signing_key.serialize_pem()).unwrap();
    std::fs::write(&text, "no certificate\n").unwrap();
    let said = |files| nbd_fault(&node, &plain, files);
    assert_eq!(
        said([&certificate, &key, &ca].map(std::path::PathBuf::as_path)),
        "\n"
    );
    for (files, begins, path) in [
        ([&none, &key, &ca], "[nbd] certificate: ", &none),
        ([&certificate, &none, &ca], "[nbd] key: ", &none),
        ([&certificate, &key, &none], "[nbd] client-ca: ", &none),
        ([&text, &key, &ca], "[nbd] certificate: ", &text),
        ([&certificate, &text, &ca], "[nbd] key: ", &text),
        ([&certificate, &key, &text], "[nbd] client-ca: ", &text),
        ([&certificate, &other, &ca], "[nbd] key: ", &other),
    ] {
        let said = said(files.map(std::path::PathBuf::as_path));
        assert!(
            said.contains(begins)
                && said.contains(path.to_str().unwrap())
                && said.contains("next: "),
            "{files:?}: {said}"
        );
    }
    let etcd = format!(
        "{plain}\n[arbiter.e1]\nkind = \"etcd\"\nendpoints = [\"https://127.0.0.1:2379\"]\nca = \"{}\"\n",
        none.display()
    );
    std::fs::write(node.file(), etcd).unwrap();
    let ended = node.run(&["config", "check"]);
    assert!(
        ended
            .err
            .contains(&format!("[arbiter.e1] ca: {}: ", none.display())),
        "{ended:?}"
    );
}
