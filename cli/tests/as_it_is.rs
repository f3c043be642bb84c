//! Orders that find everything as it was wanted, names that nobody has, and what status knows before it is needed.

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
            "mirror third: {} has it, and the daemon that runs does not know it: a new mirror is taken up when the daemon starts\n  next: `kagami down && kagami up` (or `systemctl restart kagami`) when it suits\n",
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
