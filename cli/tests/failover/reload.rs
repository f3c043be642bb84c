//! A manager after another in one process: what a reload and a push take over, and what they must not disturb.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kagami_failover::watch_list::WatchList;
use kagami_replicator::shell::identity::NodeKeys;
use rustix::process::Signal;

use crate::pair::{Ground, NODES, Pair};

/// How many times another manager has begun; the log has a line that comes again at once only once.
fn begun_anew(pair: &Pair, node: usize) -> usize {
    let log = fs::read_to_string(pair.path(&format!("{}.log", NODES[node]))).unwrap();
    log.matches("another failover manager begins").count()
}

fn alerts(pair: &Pair, node: usize) -> String {
    let found = pair.run(node, &["alerts"]);
    String::from_utf8_lossy(&found.stdout).into_owned()
}

/// The other manager has answered.
fn hears_all(pair: &Pair, node: usize) -> bool {
    let found = pair.run(node, &["alerts"]);
    let words = String::from_utf8_lossy(&found.stderr).into_owned();
    found.status.success() && !words.contains("some alerts are missing")
}

fn at_work(pair: &Pair, revision: u64) -> bool {
    [0, 1].iter().all(|node| {
        let found = pair.run(*node, &["cluster", "status", "--json"]);
        let found: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap_or_default();
        let nodes = found["nodes"].as_array().cloned().unwrap_or_default();
        nodes.len() == 2
            && nodes.iter().all(|node| {
                node["revision"] == revision
                    && node["state"] == "online"
                    && node["phase"] == "running"
            })
            && found["groups"][0]["on"]["alpha"] == "online"
    })
}

#[test]
fn a_manager_that_begins_anew_waits_for_no_client() {
    let mut pair = Pair::on(Ground::Witness);
    pair.start_witness();
    pair.start(0);
    pair.start(1);
    pair.until("online at home", |pair| pair.is_active(0));
    pair.until("both at work", |pair| at_work(pair, 1));
    let noted = pair.noted();

    // It asks nothing, and has ten seconds for that.
    let mut slow = UnixStream::connect(pair.path("alpha/run/failover.sock")).unwrap();
    // Whoever comes later is answered: it was let in.
    assert!(at_work(&pair, 1));
    let signalled = Instant::now();
    pair.signal(0, Signal::HUP);
    pair.until("another manager has begun", |pair| begun_anew(pair, 0) == 1);
    let took = signalled.elapsed();
    // A lease, which nobody renews meanwhile, is four seconds long.
    assert!(took < Duration::from_secs(8), "{took:?}");
    slow.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(slow.read(&mut [0; 1]).unwrap(), 0, "it was cut off");
    pair.until("at work again", |pair| at_work(pair, 1));
    pair.until("leases have passed", |pair| {
        assert!(pair.is_active(0), "{:?}", pair.noted());
        signalled.elapsed() > Duration::from_secs(6)
    });
    assert_eq!(pair.noted(), noted);
    assert!(
        pair.managers[0]
            .as_mut()
            .unwrap()
            .try_wait()
            .unwrap()
            .is_none()
    );
}

#[test]
fn what_is_wrong_is_not_taken_over() {
    let mut pair = Pair::new();
    pair.start(0);
    pair.start(1);
    pair.until("both at work", |pair| at_work(pair, 1));
    let noted = pair.noted();
    let file = pair.path("alpha/cluster.toml");
    let own = pair.path("alpha/kagami.toml");
    let key = pair.path("alpha/state/failover/cluster.key");
    let state = pair.path("alpha/state/failover/failover.state");
    let times_told = |pair: &Pair| {
        let alerts = fs::read_to_string(pair.path("alpha/state/failover/alerts"));
        alerts.unwrap().matches("what was in force stays").count()
    };
    for (told, file) in [(1, &file), (2, &own), (3, &key), (4, &state)] {
        let right = fs::read_to_string(file).unwrap();
        fs::write(file, format!("{right}\n[group.web\n")).unwrap();
        pair.signal(0, Signal::HUP);
        pair.until("it is told", |pair| times_told(pair) == told);
        fs::write(file, right).unwrap();
        assert_eq!(
            begun_anew(&pair, 0),
            0,
            "the manager that was there goes on"
        );
        assert!(at_work(&pair, 1));
    }
    let text = fs::read_to_string(&file).unwrap();
    let next = text.replace("revision = 1", "revision = 2");

    // What is pushed is in the other's place whole, and as private as it was.
    let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode() & 0o777;
    for node in NODES {
        let file = pair.path(node).join("cluster.toml");
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let new = pair.path("new.toml");
    fs::write(&new, &next).unwrap();
    let push = |pair: &Pair| pair.run(0, &["cluster", "push", new.to_str().unwrap()]);
    // A state that the next manager could not go on from: the node that is asked says so, and keeps its own.
    let right = fs::read(&state).unwrap();
    fs::write(&state, "nothing").unwrap();
    let refused = push(&pair);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(words.contains("failover.state is damaged"), "{words}");
    fs::write(&state, right).unwrap();
    // A key that others may read: the one of before goes on.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let pushed = push(&pair);
    assert!(pushed.status.success(), "{pushed:?}");
    pair.until("both at work by it", |pair| at_work(pair, 2));
    assert_eq!(times_told(&pair), 5);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    for node in NODES {
        let file = pair.path(node).join("cluster.toml");
        assert_eq!(
            (fs::read_to_string(&file).unwrap(), mode(&file)),
            (next.clone(), 0o600)
        );
    }
    // And so is what is fetched.
    let folder = pair.path("beta");
    let folder = folder.to_str().unwrap();
    let pulled = pair.run(0, &["clp", "clpcfctrl", "--pull", "-x", folder]);
    assert!(pulled.status.success(), "{pulled:?}");
    assert_eq!(mode(&pair.path("beta/cluster.toml")), 0o600);

    // A manager that can't begin after another one is tried again until it can.
    let records = pair.path("alpha/run/failover/operations");
    let away = pair.path("alpha/run/failover/away");
    fs::rename(&records, &away).unwrap();
    fs::write(&records, "").unwrap();
    pair.signal(0, Signal::HUP);
    pair.until("it can't begin", |pair| {
        let log = fs::read_to_string(pair.path("alpha.log")).unwrap();
        log.contains("not started: records")
    });
    fs::remove_file(&records).unwrap();
    fs::rename(&away, &records).unwrap();
    pair.until("both at work again", |pair| at_work(pair, 2));
    assert_eq!(pair.noted(), noted);
}

#[test]
fn keys_and_arbiters_that_are_new_are_found_without_another_process() {
    let mut pair = Pair::on(Ground::Witness);
    pair.start_witness();
    // Nobody knows of the arbiter yet.
    let section = |text: &str| text.find("\n[arbiter").unwrap();
    let mut own =
        NODES.map(|node| fs::read_to_string(pair.path(node).join("kagami.toml")).unwrap());
    let cluster = fs::read_to_string(pair.path("alpha/cluster.toml")).unwrap();
    let without = cluster.replace(
        "kind = \"witness\"\nname = \"gamma\"",
        "kind = \"none\"\naccepted-risk = \"both nodes may run a group at once and their data may differ\"",
    );
    assert_ne!(cluster, without);
    for (node, own) in NODES.iter().zip(&own) {
        fs::write(pair.path(node).join("kagami.toml"), &own[..section(own)]).unwrap();
        fs::write(pair.path(node).join("cluster.toml"), &without).unwrap();
    }
    pair.start(0);
    pair.start(1);
    pair.until("both at work", |pair| at_work(pair, 1));
    let noted = pair.noted();

    for (node, own) in NODES.iter().zip(&own) {
        fs::write(pair.path(node).join("kagami.toml"), own).unwrap();
    }
    for (node, name) in NODES.iter().enumerate() {
        let next = cluster.replace("revision = 1", "revision = 2");
        fs::write(pair.path(name).join("cluster.toml"), next).unwrap();
        pair.signal(node, Signal::HUP);
    }
    pair.until("the arbiter answers both", |pair| {
        at_work(pair, 2)
            && [0, 1]
                .iter()
                .all(|node| pair.arbiter_answers(*node) == Some(true))
    });
    assert_eq!(pair.noted(), noted);

    // The first node shows another key from its next manager on. The second one's file has it, and the witness's.
    let mut keys = NodeKeys::load(&pair.path("alpha/state/keys")).unwrap();
    let old = keys.current.fingerprint().to_string();
    keys.prepare_next().unwrap();
    let key = keys.switch_to_next().unwrap().to_string();
    own[1] = own[1].replace(&old, &key);
    fs::write(pair.path("beta/kagami.toml"), &own[1]).unwrap();
    let witness = pair.path("gamma/kagami.toml");
    let text = fs::read_to_string(&witness).unwrap();
    fs::write(&witness, text.replace(&old, &key)).unwrap();
    pair.kill_witness();
    pair.start_witness();
    pair.kill(0);
    pair.start(0);
    pair.until("the second node asks the first", |pair| hears_all(pair, 1));
    pair.until("the first node asks the second", |pair| hears_all(pair, 0));
    // The second one has told the arbiter.
    pair.until("the arbiter answers both", |pair| {
        [0, 1]
            .iter()
            .all(|node| pair.arbiter_answers(*node) == Some(true))
    });
    assert_eq!((begun_anew(&pair, 1), pair.noted()), (1, noted));
}

#[test]
fn a_program_that_is_replaced_is_found_by_its_name() {
    let mut pair = Pair::new();
    let program = pair.path("program/kagami");
    fs::create_dir(program.parent().unwrap()).unwrap();
    let install = || {
        let new = program.with_extension("new");
        // By another process: a program that this one has open for writing, or has given to a child, can't be run.
        let mut copy = std::process::Command::new("cp");
        let copied = copy.arg(env!("CARGO_BIN_EXE_kagami")).arg(&new).status();
        assert!(copied.unwrap().success());
        fs::rename(&new, &program).unwrap();
    };
    install();
    pair.program.clone_from(&program);
    pair.start(0);
    let link = pair.path("alpha/run/failover/bin/clpstat");
    pair.until("its names are there", |_| link.exists());
    pair.until("it answers", |pair| {
        pair.run(0, &["cluster", "status"]).status.code() != Some(3)
    });
    install();
    pair.signal(0, Signal::HUP);
    pair.until("another manager has begun", |pair| begun_anew(pair, 0) == 1);
    assert_eq!(fs::read_link(&link).unwrap(), program);
    let called = std::process::Command::new(&link).arg("--help").output();
    let called = called.unwrap();
    assert!(called.status.success(), "{called:?}");
    // And so is the guard, when it is needed again.
    pair.end_guard(0);
    pair.until("another guard is there", |pair| {
        UnixStream::connect(pair.path("alpha/run/failover/guard.sock")).is_ok()
    });
}

/// What others than its owner may open, or look into, but for `bin`.
fn open_to_others(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let facts = fs::symlink_metadata(&path).unwrap();
        if path.ends_with("failover/bin") {
            continue;
        }
        // Whoever may not look into it reaches nothing in it.
        if facts.permissions().mode().trailing_zeros() >= 6 {
            continue;
        }
        found.push(path.clone());
        if facts.is_dir() {
            open_to_others(&path, found);
        }
    }
}

#[test]
fn the_end_of_a_program_counts_when_its_group_is_up() {
    let mut pair = Pair::new();
    let at = pair.path("").display().to_string();
    let text = fs::read_to_string(pair.path("start")).unwrap();
    let text = text.replace(
        "touch ",
        &format!(
            "case $CLP_RESOURCENAME in\n\
             base) ARMLOAD service /M sleep 120 || exit 1;;\n\
             page) while [ ! -e {at}/go ]; do sleep 0.02; done;;\n\
             esac\ntouch "
        ),
    );
    pair.script("start", &text);
    pair.start(0);
    pair.start(1);
    let list =
        |pair: &Pair, node: usize| WatchList::new(&pair.path(NODES[node]).join("run/failover"));
    pair.until("the program runs, and its group is not up", |pair| {
        pair.noted()
            .last()
            .is_some_and(|last| last == "alpha starts page START")
    });
    let loaded = list(&pair, 0).entries().unwrap();
    let [entry] = &loaded[..] else {
        panic!("{loaded:?}");
    };
    // Its script's environment is nobody else's; nor is a lock, which would hold everybody up.
    let mut open = Vec::new();
    open_to_others(&pair.path("alpha/run/failover"), &mut open);
    assert_eq!(open, Vec::<PathBuf>::new());
    for private in [
        "failover.lock",
        "failover/guard.lock",
        "failover/watch/.lock",
        "failover/watch/service.json",
    ] {
        let facts = fs::metadata(pair.path("alpha/run").join(private)).unwrap();
        assert_eq!(facts.permissions().mode() & 0o777, 0o600, "{private}");
    }

    let pid = rustix::process::Pid::from_raw(entry.pid).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    pair.until("it is missed", |pair| {
        alerts(pair, 0).contains("watched program service ended unexpectedly")
    });
    // Another manager knows it as well.
    pair.kill(0);
    pair.start(0);
    assert!(!pair.is_active(0) && !pair.is_active(1));
    fs::write(pair.path("go"), "").unwrap();
    pair.until("the group is on the other node", |pair| {
        pair.is_active(1) && !pair.is_active(0)
    });
    pair.until("that is the end of it", |pair| {
        list(pair, 0).entries().unwrap().is_empty()
    });
    assert_eq!(alerts(&pair, 0).matches("ended unexpectedly").count(), 1);
    list(&pair, 1).kill("service", Duration::ZERO).unwrap();
}
