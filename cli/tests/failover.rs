//! Two failover managers on one machine, as the processes that they are, over loopback: a group of
//! services whose effects are files.

use std::fmt::Write as _;
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kagami_replicator::shell::identity::NodeKeys;
use tempfile::TempDir;

/// Something that should happen has happened within.
const PATIENCE: Duration = Duration::from_secs(60);
const NODES: [&str; 2] = ["alpha", "beta"];

struct Pair {
    folder: TempDir,
    managers: [Option<Child>; 2],
    witness: Option<Child>,
}

/// What the two managers stand on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ground {
    /// What they tell each other.
    NoArbiter,
    /// A witness beside it.
    Witness,
    /// A witness alone: they never hear each other.
    Apart,
}

impl Pair {
    fn new() -> Self {
        Self::on(Ground::NoArbiter)
    }

    fn on(ground: Ground) -> Self {
        let pair = Self {
            folder: tempfile::tempdir().unwrap(),
            managers: [None, None],
            witness: None,
        };
        let sockets = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        let [a, b] = sockets.map(|socket| socket.local_addr().unwrap());
        // Two resources, the second on top of the first; what they do is written down.
        let note = |what: &str| {
            format!(
                "#!/bin/sh\necho \"$KAGAMI_NODE {what} $CLP_RESOURCENAME $CLP_EVENT $CLP_FACTOR\" >> {log}\n",
                log = pair.path("log").display()
            )
        };
        let active = format!(
            "{}/active.$CLP_RESOURCENAME.$KAGAMI_NODE",
            pair.path("").display()
        );
        pair.script("start", &format!("{}touch {active}\n", note("starts")));
        pair.script("stop", &format!("{}rm -f {active}\n", note("stops")));
        let (start, stop) = (pair.path("start"), pair.path("stop"));
        let (start, stop) = (start.display(), stop.display());
        let (arbiter, timeout, wait) = match ground {
            Ground::NoArbiter => (
                "kind = \"none\"\naccepted-risk = \"both nodes may run a group at once and their data may differ\"",
                "2s",
                "5m",
            ),
            Ground::Witness => ("kind = \"witness\"\nname = \"gamma\"", "4s", "5m"),
            Ground::Apart => ("kind = \"witness\"\nname = \"gamma\"", "4s", "2s"),
        };
        let cluster = format!(
            r#"
[cluster]
name = "shop"
revision = 1
nodes = ["alpha", "beta"]
wait-for-node = "{wait}"
[arbiter]
{arbiter}
[heartbeat.lan]
type = "lan"
priority = 1
interval = "100ms"
timeout = "{timeout}"
addresses = {{ alpha = "{a}", beta = "{b}" }}
[group.web]
nodes = ["alpha", "beta"]
[group.web.resource.base]
type = "exec"
start = "{start}"
stop = "{stop}"
[group.web.resource.page]
type = "exec"
start = "{start}"
stop = "{stop}"
depends = ["base"]
"#
        );
        for (at, node) in NODES.iter().enumerate() {
            let folder = pair.path(node);
            fs::create_dir_all(&folder).unwrap();
            let cluster = match ground {
                // The other one is looked for where nobody is.
                Ground::Apart => cluster.replace(&[b, a][at].to_string(), "127.0.0.1:9"),
                Ground::NoArbiter | Ground::Witness => cluster.clone(),
            };
            fs::write(folder.join("cluster.toml"), cluster).unwrap();
            let shown = folder.display();
            let id = at + 1;
            let other = NODES[1 - at];
            let key = NodeKeys::load_or_create(&pair.path(other).join("state/keys")).unwrap();
            let key = key.current.fingerprint();
            let other_id = 2 - at;
            let text = format!(
                "[node]\nname = \"{node}\"\nid = {id}\nstate-dir = \"{shown}/state\"\nrun-dir = \"{shown}/run\"\n\n\
                 [peer.{other}]\nid = {other_id}\naddresses = [\"127.0.0.1:9\"]\nfingerprints = [\"{key}\"]\n"
            );
            fs::write(folder.join("kagami.toml"), text).unwrap();
        }
        if ground != Ground::NoArbiter {
            pair.configure_witness();
        }
        // One key, on both.
        let made = pair.run(0, &["failover", "init-key"]);
        assert!(made.status.success(), "{made:?}");
        let again = pair.run(0, &["failover", "init-key"]);
        assert!(!again.status.success(), "a key is never overwritten");
        let key = |node: usize| pair.path(NODES[node]).join("state/failover/cluster.key");
        fs::create_dir_all(key(1).parent().unwrap()).unwrap();
        fs::copy(key(0), key(1)).unwrap();
        pair
    }

    /// A third machine, known to both nodes.
    fn configure_witness(&self) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = socket.local_addr().unwrap();
        let key = |node: &str| {
            let keys = NodeKeys::load_or_create(&self.path(node).join("state/keys")).unwrap();
            keys.current.fingerprint()
        };
        let folder = self.path("gamma");
        fs::create_dir_all(&folder).unwrap();
        let shown = folder.display();
        let mut text = format!(
            "[node]\nname = \"gamma\"\nid = 3\nstate-dir = \"{shown}/state\"\nrun-dir = \"{shown}/run\"\n\n\
             [witness]\nlisten = [\"{listen}\"]\n"
        );
        for (at, node) in NODES.iter().enumerate() {
            let _ = write!(
                text,
                "\n[peer.{node}]\nid = {}\naddresses = [\"127.0.0.1:9\"]\nfingerprints = [\"{}\"]\n",
                at + 1,
                key(node)
            );
            let file = self.path(node).join("kagami.toml");
            let mut own = fs::read_to_string(&file).unwrap();
            let _ = write!(
                own,
                "\n[arbiter.gamma]\naddresses = [\"{listen}\"]\nfingerprints = [\"{}\"]\n",
                key("gamma")
            );
            fs::write(file, own).unwrap();
        }
        fs::write(folder.join("kagami.toml"), text).unwrap();
    }

    /// Lets the nodes of [`Ground::Apart`] hear each other; what they were configured with before.
    fn bring_together(&self) -> [String; 2] {
        let files = NODES.map(|node| self.path(node).join("cluster.toml"));
        let before = files.clone().map(|file| fs::read_to_string(file).unwrap());
        let heard = |text: &str, at: usize| {
            let of = format!("{} = \"", NODES[at]);
            let line = text.lines().find(|line| line.starts_with("addresses"));
            let (_, rest) = line.unwrap().split_once(&of).unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        for (at, file) in files.iter().enumerate() {
            let other = heard(&before[1 - at], 1 - at);
            let text = before[at].replace("127.0.0.1:9\"", &format!("{other}\""));
            fs::write(file, text).unwrap();
        }
        before
    }

    fn take_apart(&self, before: &[String; 2]) {
        for (node, text) in NODES.iter().zip(before) {
            fs::write(self.path(node).join("cluster.toml"), text).unwrap();
        }
    }

    /// Both disks tell the same register of the one group.
    fn have_agreed(&self) -> bool {
        let told = NODES.map(|node| {
            let mut marks = fs::read_dir(self.path(node).join("state/failover/right")).ok()?;
            let mark = fs::read_to_string(marks.next()?.ok()?.path()).ok()?;
            let register = mark.trim_end().rsplit_once(' ')?.1.to_owned();
            (register != "-").then_some(register)
        });
        told[0].is_some() && told[0] == told[1]
    }

    fn start_witness(&mut self) {
        let log = fs::File::create(self.path("gamma.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_kagami"))
            .arg("--config")
            .arg(self.path("gamma/kagami.toml"))
            .arg("witness")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.witness = Some(child);
    }

    fn kill_witness(&mut self) {
        let mut child = self.witness.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The node dies: its manager, its guard, and all that it ran.
    fn crash(&mut self, node: usize) {
        self.kill(node);
        end_guard(&self.path(NODES[node]).join("run/failover/guard.sock"));
        for resource in ["page", "base"] {
            let _ = fs::remove_file(self.active(resource, node));
        }
    }

    /// Whether the arbiter answers, as a node's status has it.
    fn arbiter_answers(&self, node: usize) -> Option<bool> {
        let found = self.run(node, &["cluster", "status", "--json"]);
        let found: serde_json::Value = serde_json::from_slice(&found.stdout).ok()?;
        found["arbiter_answers"].as_bool()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, node: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kagami"));
        command
            .arg("--config")
            .arg(self.path(NODES[node]).join("kagami.toml"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, node: usize, arguments: &[&str]) -> Output {
        self.command(node).args(arguments).output().unwrap()
    }

    fn start(&mut self, node: usize) {
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.path(&format!("{}.log", NODES[node])))
            .unwrap();
        let child = self
            .command(node)
            .args(["failover", "--no-reset"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.managers[node] = Some(child);
    }

    fn kill(&mut self, node: usize) {
        let mut child = self.managers[node].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn active(&self, resource: &str, node: usize) -> PathBuf {
        self.path(&format!("active.{resource}.{}", NODES[node]))
    }

    fn is_active(&self, node: usize) -> bool {
        ["base", "page"]
            .iter()
            .all(|resource| self.active(resource, node).exists())
    }

    /// What scripts have noted.
    fn noted(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    fn status(&self, node: usize) -> String {
        let output = self.run(node, &["cluster", "status"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            let log = |node: &str| {
                fs::read_to_string(self.path(&format!("{node}.log"))).unwrap_or_default()
            };
            assert!(
                begun.elapsed() < PATIENCE,
                "not in time: {what}\n{:?}\nalpha:\n{}\nbeta:\n{}",
                self.noted(),
                log("alpha"),
                log("beta")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in self
            .managers
            .iter_mut()
            .chain([&mut self.witness])
            .flatten()
        {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Guards end by themselves when nobody talks to them; these are not waited for.
        for node in NODES {
            let socket = self.path(node).join("run/failover/guard.sock");
            end_guard(&socket);
        }
    }
}

/// Ends the guard of a test: its process is who holds the socket's other end.
fn end_guard(socket: &Path) {
    use rustix::net::sockopt::socket_peercred;
    let Ok(stream) = std::os::unix::net::UnixStream::connect(socket) else {
        return;
    };
    if let Ok(peer) = socket_peercred(&stream) {
        let _ = rustix::process::kill_process(peer.pid, rustix::process::Signal::KILL);
    }
}

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
        words.contains("node gamma is not in cluster shop"),
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
