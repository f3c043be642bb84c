//! A group without a mirror whose register is in a real etcd. Its service is a process, and holds a lock for as
//! long as it lives: a second one beside it would be found out, however short both run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kagami::config::{Arbiter, Config};
use kagami_failover::config::Cluster;
use kagami_failover::right::register;
use kagami_replicator::shell::arbiter::raw::{RawRegister as _, RegisterId};
use kagami_replicator::shell::etcd;
use rustix::process::{Pid, Signal, kill_process};

use crate::pair::{Ground, NODES, Pair};

#[path = "../../../replicator/tests/support/etcd.rs"]
#[allow(dead_code)] // this test needs a part of it
mod server;
use server::Etcd;

/// Two nodes with an etcd as their arbiter, and services that are processes.
fn pair_with(etcd: &Etcd) -> Pair {
    let pair = Pair::on(Ground::Etcd);
    let (certificate, key) = etcd.identity();
    let section = format!(
        "\n[arbiter.kv]\nkind = \"etcd\"\nendpoints = [\"{}\"]\nca = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
        etcd.endpoint(),
        etcd.ca().display(),
        certificate.display(),
        key.display()
    );
    for node in NODES {
        let file = pair.path(node).join("kagami.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, text + &section).unwrap();
    }
    let at = pair.path("").display().to_string();
    // Both nodes' services of a name share a lock, which is the process's: who finds it taken is a second one.
    pair.script(
        "start",
        &format!(
            "#!/bin/sh\ncd {at}\necho \"$KAGAMI_NODE starts $CLP_RESOURCENAME $CLP_EVENT\" >>log\n\
             (flock -n 9 || {{ echo \"$KAGAMI_NODE $CLP_RESOURCENAME\" >>both; exit 1; }}; exec sleep 100000) \
             9>lock.$CLP_RESOURCENAME </dev/null >/dev/null 2>&1 &\n\
             echo $! >pid.$CLP_RESOURCENAME.$KAGAMI_NODE.new\n\
             mv pid.$CLP_RESOURCENAME.$KAGAMI_NODE.new pid.$CLP_RESOURCENAME.$KAGAMI_NODE\n"
        ),
    );
    pair.script(
        "stop",
        &format!(
            "#!/bin/sh\ncd {at}\necho \"$KAGAMI_NODE stops $CLP_RESOURCENAME $CLP_EVENT\" >>log\n\
             read -r pid <pid.$CLP_RESOURCENAME.$KAGAMI_NODE || exit 0\n\
             kill \"$pid\" 2>/dev/null || exit 0\n\
             while kill -0 \"$pid\" 2>/dev/null; do sleep 0.02; done\n"
        ),
    );
    pair
}

fn pid_file(pair: &Pair, resource: &str, node: usize) -> PathBuf {
    pair.path(&format!("pid.{resource}.{}", NODES[node]))
}

/// A process that lives, by its number in a file.
fn lives(file: &Path) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, state) = stat.rsplit_once(") ")?;
    Pid::from_raw(pid).filter(|_| !state.starts_with('Z'))
}

/// How many of the node's two services live.
fn services(pair: &Pair, node: usize) -> usize {
    let services = ["base", "page"];
    services.map(|of| usize::from(lives(&pid_file(pair, of, node)).is_some()))[..]
        .iter()
        .sum()
}

fn serves(pair: &Pair, node: usize) -> bool {
    services(pair, node) == 2
}

/// Two services of a name have never lived at once.
fn never_two(pair: &Pair) {
    let both = fs::read_to_string(pair.path("both")).unwrap_or_default();
    assert!(both.is_empty(), "found another one at work: {both}");
}

/// SIGKILL of all that runs on the node.
fn kill_node(pair: &mut Pair, node: usize) {
    pair.crash(node);
    for resource in ["base", "page"] {
        if let Some(pid) = lives(&pid_file(pair, resource, node)) {
            kill_process(pid, Signal::KILL).expect("a process of this test's own");
        }
    }
    pair.until("nothing of the node is left", |pair| {
        services(pair, node) == 0
    });
}

/// Whom the group's register in etcd names, and how often the right was taken.
fn in_etcd(pair: &Pair) -> (Option<String>, u64) {
    let folder = pair.path(NODES[0]);
    let config = Config::load(&folder.join("kagami.toml")).unwrap_or_else(|e| panic!("{e}"));
    let file = folder.join("cluster.toml");
    let text = fs::read_to_string(&file).unwrap();
    let cluster = Cluster::parse(&file, &text).unwrap_or_else(|e| panic!("{e}"));
    let etcd = config.arbiter("kv").and_then(Arbiter::as_etcd);
    let remote = etcd::Remote::new(etcd.expect("an etcd"));
    let client = etcd::Client::new(remote, RegisterId(register::id(&cluster, "web")));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let found = runtime.block_on(client.read()).expect("etcd answers");
    let record = register::decode(&found.expect("a register").bytes).expect("a group's");
    (record.holder, record.run)
}

fn arbiter_answers(pair: &Pair) -> bool {
    [0, 1]
        .iter()
        .all(|node| pair.arbiter_answers(*node) == Some(true))
}

#[test]
fn a_group_runs_on_one_node_by_the_word_of_etcd() {
    let mut etcd = Etcd::start_with_certificates();
    let mut pair = pair_with(&etcd);
    pair.start(0);
    pair.start(1);
    pair.until("online at home", |pair| serves(pair, 0));
    pair.until("etcd answers both", arbiter_answers);
    assert_eq!(services(&pair, 1), 0);
    let (holder, run) = in_etcd(&pair);
    assert_eq!(holder.as_deref(), Some("alpha"));

    // Losing etcd alone changes nothing.
    etcd.kill();
    pair.until("its silence is told", |pair| {
        pair.arbiter_answers(0) == Some(false)
    });
    etcd.again();
    pair.until("etcd answers both again", arbiter_answers);
    assert_eq!((services(&pair, 0), services(&pair, 1)), (2, 0));

    // The node dies, all of it at once.
    let died = Instant::now();
    kill_node(&mut pair, 0);
    pair.until("taken over", |pair| serves(pair, 1));
    println!(
        "from SIGKILL of a node to its group online on the other: {} ms (a lease of 3000 ms)",
        died.elapsed().as_millis()
    );
    never_two(&pair);
    let (now, later) = in_etcd(&pair);
    assert_eq!(now.as_deref(), Some("beta"));
    assert!(later > run, "the right was taken: {run}, {later}");
    assert_eq!(
        pair.noted(),
        [
            "alpha starts base START",
            "alpha starts page START",
            "beta starts base FAILOVER",
            "beta starts page FAILOVER",
        ]
    );

    // It comes back, and the group stays.
    pair.start(0);
    pair.until("both managers know where it is", |pair| {
        arbiter_answers(pair) && [0, 1].iter().all(|node| is_online_on_beta(pair, *node))
    });
    assert_eq!((services(&pair, 0), services(&pair, 1)), (0, 2));

    // Neither etcd nor the other node: it stops when its lease has ended, and runs again by the word of either.
    etcd.kill();
    kill_node(&mut pair, 0);
    pair.until("stopped for want of a lease", |pair| services(pair, 1) == 0);
    etcd.again();
    pair.until("it runs again", |pair| serves(pair, 1));
    never_two(&pair);
    kill_node(&mut pair, 1);
}

fn is_online_on_beta(pair: &Pair, node: usize) -> bool {
    let found = pair.run(node, &["cluster", "status", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap_or_default();
    found["groups"][0]["on"]["beta"] == "online"
}
