//! The two managers, what they stand on, and what can happen to them.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use kagami::commands::demo::scratch;
use kagami_failover::{clock, manager};
use kagami_replicator::shell::identity::NodeKeys;
use tempfile::TempDir;

/// Something that should happen has happened within.
const PATIENCE: Duration = Duration::from_secs(60);
pub const NODES: [&str; 2] = ["alpha", "beta"];

pub struct Pair {
    folder: TempDir,
    /// The cluster's name, which no other test has: control groups are the machine's.
    pub cluster: String,
    pub managers: [Option<Child>; 2],
    witness: Option<Child>,
    /// What the managers are.
    pub program: PathBuf,
}

/// What the two managers stand on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// What they tell each other.
    NoArbiter,
    /// A witness beside it.
    Witness,
    /// A witness alone: they never hear each other.
    Apart,
    /// An etcd beside it, which the test starts and writes into both nodes' files.
    Etcd,
}

impl Pair {
    pub fn new() -> Self {
        Self::on(Ground::NoArbiter)
    }

    pub fn on(ground: Ground) -> Self {
        static CLUSTERS: AtomicU16 = AtomicU16::new(0);
        let (process, count) = (std::process::id(), CLUSTERS.fetch_add(1, Ordering::Relaxed));
        let pair = Self {
            folder: tempfile::tempdir().unwrap(),
            cluster: format!("shop-{process}-{count}"),
            managers: [None, None],
            witness: None,
            program: env!("CARGO_BIN_EXE_kagami").into(),
        };
        let [a, b] = [own_address(), own_address()];
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
                "10s",
                "5m",
            ),
            Ground::Witness => ("kind = \"witness\"\nname = \"gamma\"", "4s", "5m"),
            Ground::Apart => ("kind = \"witness\"\nname = \"gamma\"", "4s", "2s"),
            Ground::Etcd => ("kind = \"etcd\"\nname = \"kv\"", "8s", "2s"),
        };
        let name = &pair.cluster;
        let cluster = format!(
            r#"
[cluster]
name = "{name}"
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
                Ground::NoArbiter | Ground::Witness | Ground::Etcd => cluster.clone(),
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
        if matches!(ground, Ground::Witness | Ground::Apart) {
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
        let listen = own_address();
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
    pub fn bring_together(&self) -> [String; 2] {
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

    pub fn take_apart(&self, before: &[String; 2]) {
        for (node, text) in NODES.iter().zip(before) {
            fs::write(self.path(node).join("cluster.toml"), text).unwrap();
        }
    }

    /// Both disks tell the same register of the one group.
    pub fn have_agreed(&self) -> bool {
        let told = NODES.map(|node| {
            let mut marks = fs::read_dir(self.path(node).join("state/failover/right")).ok()?;
            let mark = fs::read_to_string(marks.next()?.ok()?.path()).ok()?;
            let register = mark.trim_end().rsplit_once(' ')?.1.to_owned();
            (register != "-").then_some(register)
        });
        told[0].is_some() && told[0] == told[1]
    }

    pub fn start_witness(&mut self) {
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

    pub fn kill_witness(&mut self) {
        let mut child = self.witness.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The node dies, and would boot again: its manager, its guard, and all that it ran are gone, what a reboot
    /// clears is cleared, and what is on its disk is of an earlier boot.
    pub fn crash(&mut self, node: usize) {
        self.kill(node);
        let run = self.path(NODES[node]).join("run");
        end_guard(&run.join("failover/guard.sock"));
        fs::remove_dir_all(&run).unwrap();
        for resource in ["page", "base"] {
            let _ = fs::remove_file(self.active(resource, node));
        }
        let boot = format!("{:032x}", clock::boot().unwrap());
        let earlier = format!("{:032x}", 1);
        let kept = self.path(NODES[node]).join("state/failover");
        let marks = kept.join("right");
        for mark in fs::read_dir(marks).into_iter().flatten() {
            let mark = mark.unwrap().path();
            let text = fs::read_to_string(&mark).unwrap();
            fs::write(&mark, text.replace(&boot, &earlier)).unwrap();
        }
        let state = kept.join(manager::STATE);
        let mut durable = manager::store::load(&state).unwrap().unwrap();
        durable.boot = 1;
        manager::store::save(&state, &durable).unwrap();
    }

    /// Whether the arbiter answers, as a node's status has it.
    pub fn arbiter_answers(&self, node: usize) -> Option<bool> {
        let found = self.run(node, &["cluster", "status", "--json"]);
        let found: serde_json::Value = serde_json::from_slice(&found.stdout).ok()?;
        found["arbiter_answers"].as_bool()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn script(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, node: usize) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(self.path(NODES[node]).join("kagami.toml"))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, node: usize, arguments: &[&str]) -> Output {
        self.command(node).args(arguments).output().unwrap()
    }

    pub fn start(&mut self, node: usize) {
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

    pub fn kill(&mut self, node: usize) {
        let mut child = self.managers[node].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn signal(&self, node: usize, signal: rustix::process::Signal) {
        let child = self.managers[node].as_ref().unwrap();
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn end_guard(&self, node: usize) {
        let run = self.path(NODES[node]).join("run");
        end_guard(&run.join("failover/guard.sock"));
    }

    pub fn active(&self, resource: &str, node: usize) -> PathBuf {
        self.path(&format!("active.{resource}.{}", NODES[node]))
    }

    pub fn is_active(&self, node: usize) -> bool {
        ["base", "page"]
            .iter()
            .all(|resource| self.active(resource, node).exists())
    }

    /// What scripts have noted.
    pub fn noted(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    pub fn status(&self, node: usize) -> String {
        let output = self.run(node, &["cluster", "status"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            let log = |node: &str| {
                fs::read_to_string(self.path(&format!("{node}.log"))).unwrap_or_default()
            };
            assert!(
                begun.elapsed() < PATIENCE,
                "not in time: {what}\n{:?}\n{}\nalpha:\n{}\nbeta:\n{}",
                self.noted(),
                NODES
                    .map(|node| self.status(usize::from(node == NODES[1])))
                    .join("\n"),
                log("alpha"),
                log("beta")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn own_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, scratch::free_port().expect("a port")))
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
            end_control_groups(&format!("c@{}@{node}", self.cluster));
        }
    }
}

/// Whatever a failed test has left running ends with it.
fn end_control_groups(root: &str) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mount = mounts.lines().find(|line| line.contains(" cgroup2 "));
    let Some(mount) = mount.and_then(|line| line.split(' ').nth(1)) else {
        return;
    };
    let root = Path::new(mount).join("kagami").join(root);
    let _ = fs::write(root.join("cgroup.kill"), "1");
    let begun = Instant::now();
    while !remove(&root) && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// True if the folder is gone, with those below it.
fn remove(folder: &Path) -> bool {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    fs::remove_dir(folder).is_ok() || !folder.exists()
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
