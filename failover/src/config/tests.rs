//! Documents as people write them, and each way to get them wrong.

use std::path::Path;

use super::facts::{Facts, MirrorFacts, NodeFacts};
use super::monitor::Kind;
use super::resource::{Driver, Kind as Resource, Mode};
use super::*;

mod arbiter;
mod nodes;
mod shared_disk;
mod together;

/// The example of docs/cluster-configuration.md.
const EXAMPLE: &str = include_str!("example.toml");

/// A small cluster, and what a test puts at its end.
fn small(more: &str) -> String {
    format!(
        r#"
[cluster]
name = "shop"
revision = 1
nodes = ["alpha", "beta"]

[arbiter]
kind = "witness"
name = "gamma"

[heartbeat.lan]
type = "lan"
priority = 1
addresses = {{ alpha = "10.0.0.1:7791", beta = "10.0.0.2:7791" }}

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

[group.pg.resource.server]
type = "exec"
mode = "async"
start = "/etc/kagami/pg/start"
stop = "/etc/kagami/pg/stop"
depends = ["address"]
{more}"#
    )
}

fn parse(text: &str) -> Result<Cluster, ConfigError> {
    Cluster::parse(Path::new("cluster.toml"), text)
}

/// All that is said about a text.
fn refused(text: &str) -> String {
    refused_with(text, &Facts::default())
}

fn refused_with(text: &str, facts: &Facts) -> String {
    let error = Cluster::parse_with(Path::new("cluster.toml"), text, facts).unwrap_err();
    let said = error.to_string();
    for fault in &error.faults {
        assert!(!fault.what.is_empty() && !fault.next.is_empty(), "{said}");
    }
    said
}

/// `small` with one text replaced is refused in these words.
fn replaced(old: &str, new: &str, words: &[&str]) {
    let text = small("");
    assert!(text.contains(old), "{old}");
    told(&refused(&text.replacen(old, new, 1)), words);
}

/// `small` with more at its end is refused in these words.
fn added(more: &str, words: &[&str]) {
    told(&refused(&small(more)), words);
}

fn told(said: &str, words: &[&str]) {
    for word in words.iter().chain(&["next: "]) {
        assert!(said.contains(word), "no `{word}` in:\n{said}");
    }
}

/// Two nodes on one network.
fn facts() -> Facts {
    let node = |address: &str| NodeFacts {
        networks: vec![("eth0".to_owned(), address.parse().unwrap())],
        mirrors: Some(BTreeMap::from([("pg".to_owned(), MirrorFacts::default())])),
        ..NodeFacts::default()
    };
    Facts {
        nodes: BTreeMap::from([
            ("alpha".to_owned(), node("10.0.0.1/24")),
            ("beta".to_owned(), node("10.0.0.2/24")),
        ]),
    }
}

#[test]
fn the_example_has_every_kind() {
    let cluster = parse(EXAMPLE).unwrap_or_else(|error| panic!("{error}"));
    let resources: Vec<_> = cluster.groups.iter().flat_map(|g| &g.resources).collect();
    for name in resource::Kind::NAMES {
        assert!(resources.iter().any(|r| r.kind.name() == *name), "{name}");
    }
    for name in Kind::NAMES {
        assert!(
            cluster.monitors.iter().any(|m| m.kind.name() == *name),
            "{name}"
        );
    }
    assert_eq!(cluster.heartbeats.len(), 3);
    assert!(cluster.fence.is_some() && cluster.preaction.is_some());
    assert!(!cluster.mail.is_empty() && !cluster.webhooks.is_empty());
}

#[test]
fn the_guide_shows_the_example() {
    let guide = include_str!("../../../docs/cluster-configuration.md");
    assert!(
        guide.contains(EXAMPLE),
        "docs/cluster-configuration.md has another example"
    );
}

#[test]
fn nothing_set_means_the_defaults_of_the_specification() {
    let cluster = parse(&small(
        "[monitor.pid]\ntype = \"pid\"\nresource = \"pg/server\"\n\
         [monitor.ip]\ntype = \"ip\"\ntargets = [\"10.0.0.254\"]\ntarget = \"pg\"\n\
         [monitor.nic]\ntype = \"nic\"\ninterface = \"eth0\"\ntarget = \"pg\"\n\
         [monitor.disk]\ntype = \"disk\"\npath = \"/dev/vda\"\ntarget = \"cluster\"\n\
         [monitor.fip]\ntype = \"floating-ip\"\nresource = \"pg/address\"\n\
         [monitor.mirror]\ntype = \"mirror\"\nmirror = \"pg\"\ntarget = \"pg\"\n",
    ))
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(cluster.wait_for_node, Ms::seconds(300));
    assert_eq!(cluster.heartbeats[0].interval, Ms(500));
    assert_eq!(cluster.heartbeats[0].timeout, Ms::seconds(2));
    let group = &cluster.groups[0];
    assert_eq!(group.attributes.startup, Start::Automatic);
    assert_eq!(group.attributes.failback, Start::Manual);
    assert_eq!(group.attributes.wait_timeout, Ms::seconds(1800));
    let [data, address, server] = &group.resources[..] else {
        panic!("three resources")
    };
    let resource::Kind::Mirror(mirror) = &data.kind else {
        panic!("a mirror")
    };
    let mount = &mirror.mount;
    assert_eq!(
        (mount.mount_timeout, mount.mount_retries),
        (Ms::seconds(120), 3)
    );
    assert_eq!(
        (mount.unmount_timeout, mount.unmount_retries),
        (Ms::seconds(300), 3)
    );
    assert_eq!(mount.fsck_timeout, Ms::seconds(7200));
    assert!(!mirror.disk.initial_mkfs);
    assert_eq!((address.retries(), address.common.failovers), (5, 1));
    assert_eq!(address.common.retry_pause, Ms(5000));
    assert_eq!(address.common.final_action, Final::Nothing);
    assert_eq!(address.common.stop_final, Final::Shutdown);
    assert_eq!(server.retries(), 0);
    let resource::Kind::Exec(exec) = &server.kind else {
        panic!("an exec")
    };
    assert_eq!(
        (exec.start_timeout, exec.stop_timeout),
        (Ms::seconds(1800), Ms::seconds(1800))
    );
    assert_eq!(exec.mode, Mode::Async);
    let seconds: Vec<_> = cluster
        .monitors
        .iter()
        .map(|m| (m.interval().0 / 1000, m.timeout().0 / 1000, m.retries()))
        .collect();
    let as_specified = [
        (5, 60, 0),
        (30, 30, 0),
        (10, 60, 3),
        (60, 120, 0),
        (60, 180, 1),
        (10, 60, 0),
    ];
    assert_eq!(seconds, as_specified);
    // A pid monitor watches its process while that is there, and recovers it.
    let server = ("pg".to_owned(), "server".to_owned());
    assert_eq!(cluster.monitors[0].active, Some(server.clone()));
    assert_eq!(
        cluster.monitors[0].target,
        Target::Resource(server.0, server.1)
    );
}

#[test]
fn resources_come_after_what_they_depend_on() {
    let cluster = parse(&small("").replacen("depends = [\"data\"]", "", 1).replacen(
        "mount = \"/srv/pg\"",
        "mount = \"/srv/pg\"\ndepends = [\"address\"]",
        1,
    ))
    .unwrap_or_else(|error| panic!("{error}"));
    let names: Vec<_> = cluster.groups[0]
        .resources
        .iter()
        .map(|r| &r.name[..])
        .collect();
    assert_eq!(names, ["address", "data", "server"]);
}

#[test]
fn a_device_is_one_of_its_driver() {
    let with = |more: &str| {
        let mount = "mount = \"/srv/pg\"";
        small("").replacen(mount, &format!("{mount}\n{more}"), 1)
    };
    for (good, expected) in [
        ("driver = \"ublk\"", (Driver::Ublk, None)),
        (
            "driver = \"ublk\"\ndevice = \"/dev/ublkb3\"",
            (Driver::Ublk, Some("/dev/ublkb3")),
        ),
        ("device = \"/dev/nbd12\"", (Driver::Nbd, Some("/dev/nbd12"))),
    ] {
        let cluster = parse(&with(good)).unwrap_or_else(|error| panic!("{good}: {error}"));
        let Resource::Mirror(mirror) = &cluster.groups[0].resources[0].kind else {
            panic!("another kind");
        };
        let device = mirror.disk.device.as_deref().and_then(Path::to_str);
        assert_eq!((mirror.disk.driver, device), expected);
    }
    for (wrong, word) in [
        (
            "driver = \"ublk\"\ndevice = \"/dev/nbd0\"",
            "none of driver ublk",
        ),
        (
            "driver = \"nbd\"\ndevice = \"/dev/ublkb0\"",
            "none of driver nbd",
        ),
        ("device = \"/dev/nbd0p1\"", "write /dev/nbdN"),
        ("device = \"/dev/nbd\"", "write /dev/nbdN"),
    ] {
        told(&refused(&with(wrong)), &[word, "group.pg.resource.data"]);
    }
}

#[test]
fn unknown_words_are_refused_where_they_are() {
    replaced(
        "mount = \"/srv/pg\"",
        "mount = \"/srv/pg\"\ndriver = \"ublc\"",
        &["\"ublc\" is not one of its words", "did you mean `ublk`?"],
    );
    replaced(
        "depends = [\"data\"]",
        "dependz = [\"data\"]",
        &[
            "cluster.toml:27: [group.pg.resource.address] there is no key `dependz`",
            "did you mean `depends`?",
        ],
    );
    replaced(
        "type = \"exec\"",
        "type = \"exek\"",
        &["there is no kind \"exek\"", "did you mean \"exec\"?"],
    );
    replaced(
        "mode = \"async\"",
        "mode = \"both\"",
        &[
            "\"both\" is not one of its words",
            "write one of `sync`, `async`",
        ],
    );
    replaced(
        "[arbiter]",
        "[arbitr]",
        &[
            "there is no table `arbitr`",
            "did you mean \"arbiter\"?",
            "there is no [arbiter]",
        ],
    );
    replaced(
        "start = \"/etc/kagami/pg/start\"",
        "",
        &["`start` is missing", "add `start = …`"],
    );
    replaced(
        "type = \"lan\"",
        "",
        &["[heartbeat.lan] it has no `type`", "\"serial\""],
    );
    replaced(
        "priority = 1",
        "priority = \"1\"",
        &["[heartbeat.lan]", "write u32"],
    );
    replaced(
        "10.0.0.10/24",
        "10.0.0.10",
        &[
            "`10.0.0.10` has no prefix",
            "write an address and its prefix",
        ],
    );
    replaced(
        "[group.pg]\n",
        "[group.pg]\nwait-timeout = \"soon\"\n",
        &["`soon` is not a time", "write a time like"],
    );
    replaced(
        "[group.pg]\n",
        "[group.pg]\nstart-up = \"manual\"\n",
        &["there is no key `start-up`", "did you mean `startup`?"],
    );
    replaced(
        "[cluster]",
        "[cluster",
        &["this is not TOML", "cluster.toml:2:"],
    );
    replaced(
        "[group.pg]\n",
        "[group.\"p g\"]\n",
        &["\"p g\" can't be a name"],
    );
    added(
        "[group]\nx = 1\n",
        &["group.x: this is a table, not an integer"],
    );
    added("[fence]\nscript = 1\n", &["[fence] invalid type", "write"]);
}

#[test]
fn dependencies_lead_somewhere_and_in_no_circle() {
    replaced(
        "depends = [\"data\"]",
        "depends = [\"dato\"]",
        &[
            "[group.pg.resource.address] depends: the group has no resource \"dato\"",
            "did you mean \"data\"?",
        ],
    );
    replaced(
        "mount = \"/srv/pg\"",
        "mount = \"/srv/pg\"\ndepends = [\"server\"]",
        &[
            "depends: a circle: data -> server -> address -> data",
            "take one of these dependencies out",
        ],
    );
    replaced(
        "mount = \"/srv/pg\"",
        "mount = \"/srv/pg\"\ndepends = [\"data\"]",
        &["a circle: data -> data"],
    );
}

#[test]
fn nodes_are_those_of_the_cluster() {
    replaced(
        "[group.pg]\nnodes = [\"alpha\", \"beta\"]",
        "[group.pg]\nnodes = [\"alpha\", \"betta\"]",
        &[
            "[group.pg] nodes: \"betta\" is no node of the cluster (\"alpha\" and \"beta\")",
            "did you mean \"beta\"?",
        ],
    );
    replaced(
        "[group.pg]\nnodes = [\"alpha\", \"beta\"]",
        "[group.pg]\nnodes = [\"beta\", \"beta\"]",
        &["\"beta\" is named twice"],
    );
    replaced(
        "[group.pg]\nnodes = [\"alpha\", \"beta\"]",
        "[group.pg]\nnodes = []",
        &["nodes: none is named"],
    );
    replaced(
        "nodes = [\"alpha\", \"beta\"]",
        "nodes = [\"alpha\", \"alpha\"]",
        &["[cluster] nodes: both are \"alpha\""],
    );
    replaced(
        "nodes = [\"alpha\", \"beta\"]",
        "nodes = [\"alpha\", \"beta\", \"gamma\"]",
        &["3 are named, a cluster has two"],
    );
    added(
        "[monitor.m]\ntype = \"nic\"\ninterface = \"eth0\"\ntarget = \"pg\"\nnodes = [\"delta\"]\n",
        &["[monitor.m] nodes: \"delta\" is no node"],
    );
}

#[test]
fn what_is_one_is_used_once() {
    let second = "[group.web]\nnodes = [\"beta\"]\n[group.web.resource.d]\n";
    added(
        &format!("{second}type = \"mirror\"\nmirror = \"pg\"\n"),
        &[
            "[group.web.resource.d] mirror: pg belongs to [group.pg.resource.data]",
            "make a mirror for each group",
        ],
    );
    added(
        &format!("{second}type = \"mirror\"\nmirror = \"web\"\nmount = \"/srv/pg\"\n"),
        &["mount: /srv/pg belongs to"],
    );
    added(
        &format!("{second}type = \"floating-ip\"\naddress = \"10.0.0.10/16\"\n"),
        &["address: 10.0.0.10 belongs to"],
    );
    added(
        &format!("{second}type = \"floating-ip\"\naddress = \"10.0.0.2/24\"\n"),
        &["10.0.0.2 is node beta's own address"],
    );
}

#[test]
fn a_mount_point_is_a_path_that_the_kernel_shows() {
    for point in ["srv/pg", "/srv/../pg"] {
        replaced(
            "mount = \"/srv/pg\"",
            &format!("mount = \"{point}\""),
            &[&format!(
                "[group.pg.resource.data] mount: {point} is not an absolute path without `..`"
            )],
        );
    }
}

#[test]
fn groups_can_be_run_and_waited_for() {
    added(
        "[group.web]\nnodes = [\"beta\"]\n",
        &["[group.web] it has no resource"],
    );
    let web = "[group.web]\nnodes = [\"beta\"]\nwait-for = [\"pg\"]\nresource.u = { type = \"systemd\", unit = \"nginx\" }\n";
    parse(&small(web)).unwrap_or_else(|error| panic!("{error}"));
    let circle = small(web).replacen("[group.pg]\n", "[group.pg]\nwait-for = [\"web\"]\n", 1);
    told(
        &refused(&circle),
        &[
            "wait-for: a circle: pg -> web -> pg",
            "none of them could start first",
        ],
    );
    replaced(
        "[group.pg]\n",
        "[group.pg]\nwait-for = [\"pq\"]\n",
        &["there is no group \"pq\"", "did you mean \"pg\"?"],
    );
    added(
        "[group.cluster]\nnodes = [\"beta\"]\nresource.u = { type = \"systemd\", unit = \"x\" }\n",
        &["can't be named cluster"],
    );
    added(
        "[group.w]\nnodes = [\"beta\"]\nresource.u = { type = \"ocf\", agent = \"pgsql\" }\n",
        &["has no provider"],
    );
    added(
        "[group.w]\nnodes = [\"beta\"]\nresource.u = { type = \"files\", files = [{ path = \"/a\", mode = \"0999\" }] }\n",
        &["mode \"0999\" of /a is no mode"],
    );
}

#[test]
fn a_watchdog_is_fed_in_time() {
    let with = |times: &str| {
        small(&format!(
            "[monitor.node]\ntype = \"user-space\"\ntarget = \"cluster\"\n{times}\n"
        ))
    };
    let said = refused(&with("interval = \"1m\""));
    let words = "timeout: the watchdog resets the node after 90s, and is told of it each 60s";
    assert!(said.contains(words), "{said}");
    assert!(Cluster::parse(Path::new("cluster.toml"), &with("interval = \"45s\"")).is_ok());
}

#[test]
fn heartbeats_have_two_ends() {
    replaced(
        "[heartbeat.lan]\ntype = \"lan\"\npriority = 1\naddresses = { alpha = \"10.0.0.1:7791\", beta = \"10.0.0.2:7791\" }",
        "",
        &["there is no [heartbeat.NAME]"],
    );
    replaced(
        ", beta = \"10.0.0.2:7791\"",
        "",
        &["[heartbeat.lan] addresses: there is none for node beta"],
    );
    replaced(
        "10.0.0.2:7791",
        "10.0.0.1:7791",
        &["10.0.0.1:7791 of beta is used in [heartbeat.lan], too"],
    );
    replaced(
        "priority = 1",
        "priority = 1\ninterval = \"1500ms\"",
        &["timeout: 2s of silence with one each 1500ms"],
    );
    added(
        "[heartbeat.tty]\ntype = \"serial\"\npriority = 1\ndevices = { alpha = \"/dev/ttyS0\", beta = \"/dev/ttyS0\" }\n",
        &["priority: 1 is that of heartbeat lan"],
    );
    added(
        "[heartbeat.tty]\ntype = \"serial\"\npriority = 2\ndevices = { alpha = \"/dev/ttyS0\", gamma = \"/dev/ttyS0\" }\n",
        &["\"gamma\" is no node", "there is none for node beta"],
    );
}

#[test]
fn monitors_watch_and_recover_what_there_is() {
    let monitor = |rest: &str| format!("[monitor.m]\n{rest}\n");
    added(
        &monitor("type = \"pid\"\nresource = \"pg/servr\""),
        &[
            "group pg has no resource \"servr\"",
            "did you mean \"server\"?",
        ],
    );
    added(
        &monitor("type = \"pid\"\nresource = \"pg/data\""),
        &["pg/data is a mirror, not an asynchronous exec"],
    );
    added(
        &monitor("type = \"floating-ip\"\nresource = \"pg/data\""),
        &["not a floating-ip"],
    );
    added(
        &monitor("type = \"pid\"\nresource = \"server\""),
        &["\"server\" is no GROUP/RESOURCE"],
    );
    replaced(
        "[group.pg.resource.server]\ntype = \"exec\"\nmode = \"async\"",
        "[monitor.m]\ntype = \"pid\"\nresource = \"pg/server\"\n[group.pg.resource.server]\ntype = \"exec\"",
        &["there is no process to watch"],
    );
    added(
        &monitor("type = \"nic\"\ninterface = \"eth0\""),
        &["it has no `target`"],
    );
    added(
        &monitor("type = \"nic\"\ninterface = \"eth0\"\ntarget = \"pgx\""),
        &["target: there is no group \"pgx\""],
    );
    added(
        &monitor("type = \"nic\"\ninterface = \"eth0\"\ntarget = \"pg\"\nscript-runs = 2"),
        &["script-runs: 2, and no `script`"],
    );
    added(
        &monitor("type = \"nic\"\ninterface = \"eth0\"\ntarget = \"pg\"\nscript = \"/x\""),
        &["would run 0 times"],
    );
    added(
        &monitor("type = \"nic\"\ninterface = \"eth0\"\ntarget = \"pg\"\ninterval = \"0s\""),
        &["it would never rest"],
    );
    added(
        &monitor("type = \"ip\"\ntargets = []\ntarget = \"pg\""),
        &["targets: none is named"],
    );
    added(
        &monitor("type = \"mirror\"\nmirror = \"web\"\ntarget = \"pg\""),
        &["no group has the mirror \"web\""],
    );
    added(
        &monitor("type = \"script\"\nprobe = \"check\"\ntarget = \"pg\""),
        &["probe: check is not an absolute path"],
    );
}

#[test]
fn alerts_go_to_somebody() {
    added(
        "[mail.ops]\nserver = \"m:465\"\nfrom = \"a@b\"\nto = []\n",
        &["[mail.ops] to: nobody is named"],
    );
    added(
        "[mail.ops]\nserver = \"m:465\"\nfrom = \"a@b\"\nto = [\"c@d\"]\nobjects = [\"pgg\"]\n",
        &["\"pgg\"", "did you mean \"pg\"?"],
    );
    added(
        "[webhook.w]\nurl = \"ftp://x\"\n",
        &["is no http or https address"],
    );
}

#[test]
fn everything_wrong_is_told_at_once_in_the_files_order() {
    let text = small("").replacen(
        "kind = \"witness\"\nname = \"gamma\"",
        "kind = \"witness\"\nname = \"beta\"",
        1,
    );
    let text = text.replacen(
        "[group.pg]\nnodes = [\"alpha\", \"beta\"]",
        "[group.pg]\nnodes = [\"alpha\", \"x\"]",
        1,
    );
    let error = parse(&text).unwrap_err();
    let tables: Vec<_> = error.faults.iter().map(|fault| &fault.table[..]).collect();
    assert_eq!(tables, ["arbiter", "group.pg"]);
}
