//! Two failover managers on one machine, as the processes that they are, over loopback: a group of
//! services whose effects are files.

mod etcd;
mod guard;
mod pair;
mod reload;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use pair::{Ground, NODES, Pair};

#[test]
fn a_group_lives_through_the_death_of_managers_and_of_its_node() {
    let mut pair = Pair::new();
    pair.start(0);
    pair.start(1);
    pair.until("online at home", |pair| pair.is_active(0));
    assert!(!pair.is_active(1));
    let started = ["alpha starts base START", "alpha starts page START"];
    assert_eq!(pair.noted(), started);
    pair.until("told", |pair| {
        let status = pair.status(1);
        status.contains("web") && status.contains("alpha")
    });

    // The manager dies, and the next one finds everything as it was: nothing is begun again.
    pair.kill(0);
    pair.start(0);
    pair.until("at work again", |pair| {
        let found = pair.run(0, &["cluster", "status", "--json"]);
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        found.status.success() && text.contains("\"online\"")
    });
    assert_eq!(pair.noted(), started);

    // A planned move, there and back: the stop comes before the start.
    // (The new manager refuses it until it hears the other node.)
    pair.until("ordered to move", |pair| {
        pair.run(0, &["group", "move", "web"]).status.success()
    });
    pair.until("moved", |pair| pair.is_active(1));
    assert_eq!(
        pair.noted()[2..],
        [
            "alpha stops page START GROUPMOVE",
            "alpha stops base START GROUPMOVE",
            "beta starts base START",
            "beta starts page START",
        ]
    );
    pair.until("ordered to move back", |pair| {
        pair.run(1, &["group", "move", "web"]).status.success()
    });
    pair.until("back", |pair| pair.is_active(0));

    // Another configuration is in force on both nodes, and the group goes on.
    let file = pair.path("new.toml");
    let text = fs::read_to_string(pair.path("alpha/cluster.toml")).unwrap();
    fs::write(&file, text.replace("revision = 1", "revision = 2")).unwrap();
    let noted = pair.noted();
    let pushed = pair.run(0, &["cluster", "push", file.to_str().unwrap()]);
    assert!(pushed.status.success(), "{pushed:?}");
    for node in [0, 1] {
        let file = pair.path(NODES[node]).join("cluster.toml");
        assert!(fs::read_to_string(file).unwrap().contains("revision = 2"));
        // Both managers say so, and hear each other.
        pair.until("at work with the new revision", |pair| {
            let found = pair.run(node, &["cluster", "status", "--json"]);
            let found: serde_json::Value =
                serde_json::from_slice(&found.stdout).unwrap_or_default();
            let nodes = found["nodes"].as_array().cloned().unwrap_or_default();
            nodes.len() == 2
                && nodes.iter().all(|node| {
                    node["revision"] == 2 && node["state"] == "online" && node["phase"] == "running"
                })
                && found["groups"][0]["on"]["alpha"] == "online"
        });
    }
    assert_eq!(pair.noted(), noted, "nothing was stopped or started");
    // What one node has told, the other one's people see, too.
    let alerts = pair.run(1, &["alerts"]);
    let alerts = String::from_utf8_lossy(&alerts.stdout).into_owned();
    assert!(
        alerts.contains("alpha") && alerts.contains("beta"),
        "{alerts}"
    );

    // The node dies: its manager and all that it ran.
    let died = Instant::now();
    pair.kill(0);
    for resource in ["base", "page"] {
        fs::remove_file(pair.active(resource, 0)).unwrap();
    }
    pair.until("taken over", |pair| pair.is_active(1));
    println!(
        "from SIGKILL of a node to its group online on the other: {} ms (heartbeats' time-out 2000 ms)",
        died.elapsed().as_millis()
    );
    assert!(pair.noted().ends_with(&[
        "beta starts base FAILOVER".to_owned(),
        "beta starts page FAILOVER".to_owned(),
    ]));
    let alerts = pair.run(1, &["alerts"]);
    let alerts = String::from_utf8_lossy(&alerts.stdout).into_owned();
    assert!(alerts.contains("fails over to this node"), "{alerts}");

    // SIGTERM with nobody to take it: the group stops, and the manager with it.
    let mut last = pair.managers[1].take().unwrap();
    let pid = rustix::process::Pid::from_child(&last);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = last.wait().unwrap();
    assert!(ended.success(), "{ended}");
    assert!(!pair.is_active(1) && !pair.active("base", 1).exists());
}

#[test]
fn a_group_without_a_mirror_has_a_lease_from_the_other_node_or_from_the_arbiter() {
    let mut pair = Pair::on(Ground::Witness);
    pair.start_witness();
    pair.start(0);
    pair.start(1);
    pair.until("online at home", |pair| pair.is_active(0));
    pair.until("the arbiter answers", |pair| {
        pair.arbiter_answers(0) == Some(true) && pair.arbiter_answers(1) == Some(true)
    });
    let started = ["alpha starts base START", "alpha starts page START"];
    assert_eq!(pair.noted(), started);

    // Without the arbiter it goes on by the other node's word, for longer than any lease.
    pair.kill_witness();
    let killed = Instant::now();
    pair.until("its silence is told, and leases have passed", |pair| {
        assert!(pair.is_active(0), "{:?}", pair.noted());
        pair.arbiter_answers(0) == Some(false) && killed.elapsed() > Duration::from_secs(10)
    });
    assert_eq!(pair.noted(), started);
    pair.start_witness();
    pair.until("the arbiter answers again", |pair| {
        pair.arbiter_answers(0) == Some(true)
    });

    // A manager that is replaced goes on with what it held.
    pair.kill(0);
    pair.start(0);
    pair.until("at work again", |pair| {
        let found = pair.run(0, &["cluster", "status", "--json"]);
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        found.status.success() && text.contains("\"online\"")
    });
    assert_eq!(pair.noted(), started);

    // Planned: given up there, and promised here at once.
    pair.until("ordered to move", |pair| {
        let ordered = Instant::now();
        let moved = pair.run(0, &["group", "move", "web"]).status.success();
        println!(
            "a move, or its refusal ({moved}): {} ms",
            ordered.elapsed().as_millis()
        );
        moved
    });
    pair.until("moved", |pair| pair.is_active(1));
    assert!(!pair.is_active(0));

    // The node dies with its guard: the other one waits until its lease has surely ended.
    let died = Instant::now();
    pair.crash(1);
    pair.until("taken over", |pair| pair.is_active(0));
    println!(
        "from SIGKILL of a node to its group online on the other: {} ms (a lease of 4000 ms)",
        died.elapsed().as_millis()
    );
    assert!(pair.noted().ends_with(&[
        "alpha starts base FAILOVER".to_owned(),
        "alpha starts page FAILOVER".to_owned(),
    ]));
}

#[test]
fn of_two_nodes_that_never_hear_each_other_the_register_lets_one_run_a_group() {
    let mut pair = Pair::on(Ground::Apart);
    pair.start_witness();
    // They meet once, to agree on the register.
    let apart = pair.bring_together();
    pair.start(0);
    pair.start(1);
    pair.until("agreed on the register", Pair::have_agreed);
    // Both boot again, and what ran is forgotten.
    pair.until("online at home", |pair| pair.is_active(0));
    pair.crash(0);
    pair.crash(1);
    pair.take_apart(&apart);
    pair.start(0);
    pair.start(1);
    let one_at_most = |pair: &Pair| {
        let both = (0..2).all(|node| pair.active("base", node).exists());
        assert!(!both, "{:?}", pair.noted());
    };
    pair.until("online on one of them", |pair| {
        one_at_most(pair);
        pair.is_active(0) || pair.is_active(1)
    });
    let runs = usize::from(pair.is_active(1));
    // The other one asks on and is refused, with the name of who has it.
    pair.until("refused", |pair| {
        one_at_most(pair);
        let alerts = pair.run(1 - runs, &["alerts"]);
        let alerts = String::from_utf8_lossy(&alerts.stdout).into_owned();
        alerts.contains(&format!("node {} holds it", NODES[runs]))
    });
    assert!(pair.is_active(runs) && !pair.is_active(1 - runs));
    pair.crash(runs);
    pair.until("taken over", |pair| pair.is_active(1 - runs));
}

#[test]
fn what_is_missing_is_said_with_what_to_do() {
    let mut pair = Pair::new();
    let key = pair.path("alpha/state/failover/cluster.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = pair.run(0, &["failover"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(
        words.contains("can be read by others") && words.contains("next:"),
        "{words}"
    );
    fs::remove_file(&key).unwrap();
    let refused = pair.run(0, &["failover"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("init-key"), "{words}");

    let file = pair.path("beta/kagami.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"beta\"", "\"gamma\"")).unwrap();
    let refused = pair.run(1, &["failover"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{words}");
    assert!(
        words.contains(&format!("node gamma is not in cluster {}", pair.cluster)),
        "{words}"
    );
    fs::write(&file, text).unwrap();

    // A second manager of a node.
    pair.start(1);
    pair.until("it answers", |pair| {
        pair.run(1, &["cluster", "status"]).status.code() != Some(3)
    });
    let second = pair.run(1, &["failover", "--no-reset"]);
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{words}");
    assert!(words.contains("a failover manager runs already"), "{words}");
}
