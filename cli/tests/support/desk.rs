//! A failover manager that does what a test says, behind a real control socket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kagami_failover::config::{Cluster, Severity};
use kagami_failover::control::logs::LogFile;
use kagami_failover::control::message::Refused;
use kagami_failover::control::server::{Socket, serve};
use kagami_failover::control::status::{
    BeatState, GroupView, ManagerPhase, MonitorView, NodeState, NodeView, OrderView, RunState,
    Seen, WatchState,
};
use kagami_failover::control::{AlertReport, Answer, Ask, Desk, Unreached};
use kagami_failover::core::Command;
use kagami_failover::manager::alerts::Kept;
use tokio::sync::{broadcast, watch};

use super::Node;

/// The cluster of the tests.
pub const CLUSTER: &str = r#"
[cluster]
name = "shop"
revision = 7
nodes = ["alpha", "beta"]
[arbiter]
kind = "witness"
name = "gamma"
[heartbeat.lan]
type = "lan"
priority = 1
addresses = { alpha = "127.0.0.1:7791", beta = "10.0.0.2:7791" }
[heartbeat.tty]
type = "serial"
priority = 2
devices = { alpha = "/dev/ttyS0", beta = "/dev/ttyS0" }
[group.pg]
nodes = ["alpha", "beta"]
[group.pg.resource.address]
type = "floating-ip"
address = "127.0.0.10/8"
[group.pg.resource.server]
type = "exec"
start = "/bin/true"
[group.web]
nodes = ["alpha", "beta"]
startup = "manual"
[group.web.resource.page]
type = "exec"
start = "/bin/true"
[monitor.rows]
type = "tcp"
address = "127.0.0.10:5432"
active = "pg/server"
target = "pg/server"
[monitor.router]
type = "ip"
targets = ["10.0.0.254"]
target = "cluster"
"#;

/// What a command does to the node's view.
pub type Script = Box<dyn Fn(&Command, &mut NodeView) -> Result<(), Refused> + Send>;

/// The desk of alpha.
pub struct FakeDesk {
    pub cluster: Mutex<Arc<Cluster>>,
    pub text: Mutex<String>,
    pub view: Mutex<NodeView>,
    /// What the other node says of itself; none: it does not answer.
    pub other: Mutex<Option<NodeView>>,
    pub script: Mutex<Script>,
    /// It answers no command.
    pub holds: AtomicBool,
    pub commands: Mutex<Vec<Command>>,
    pub forwarded: Mutex<Vec<Ask>>,
    pub alerts: Mutex<Vec<AlertReport>>,
    pub news: broadcast::Sender<AlertReport>,
}

fn view(node: &str, state: RunState, watches: WatchState) -> NodeView {
    let group = |state, wanted, resources: usize| GroupView {
        state,
        order: OrderView {
            version: 3,
            by: 0,
            wanted,
            owner: 0,
        },
        resources: vec![state; resources],
        other: Some(Seen {
            active: node != "alpha",
            online: node != "alpha",
            ready: true,
        }),
        ..GroupView::default()
    };
    let mut web = group(RunState::Offline, false, 1);
    web.other = Some(Seen {
        ready: true,
        ..Seen::default()
    });
    NodeView {
        node: node.to_owned(),
        version: "0.1.0".to_owned(),
        pid: 1,
        revision: 7,
        phase: ManagerPhase::Running,
        other: NodeState::Online,
        heartbeats: vec![BeatState::Normal, BeatState::Normal],
        groups: vec![group(state, true, 2), web],
        monitors: vec![
            MonitorView {
                state: watches,
                ..MonitorView::default()
            },
            MonitorView {
                state: WatchState::Normal,
                ..MonitorView::default()
            },
        ],
        ..NodeView::default()
    }
}

impl Default for FakeDesk {
    fn default() -> Self {
        let cluster = Cluster::parse("cluster.toml".as_ref(), CLUSTER).expect("a good file");
        Self {
            cluster: Mutex::new(Arc::new(cluster)),
            text: Mutex::new(CLUSTER.to_owned()),
            view: Mutex::new(view("alpha", RunState::Online, WatchState::Normal)),
            other: Mutex::new(Some(view("beta", RunState::Offline, WatchState::Unused))),
            script: Mutex::new(Box::new(|_, _| Ok(()))),
            holds: AtomicBool::new(false),
            commands: Mutex::default(),
            forwarded: Mutex::default(),
            alerts: Mutex::default(),
            news: broadcast::channel(16).0,
        }
    }
}

impl FakeDesk {
    /// What commands do.
    pub fn obeys(
        &self,
        script: impl Fn(&Command, &mut NodeView) -> Result<(), Refused> + Send + 'static,
    ) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    /// Changes what the other node says.
    pub fn other(&self, change: impl FnOnce(&mut NodeView)) {
        change(self.other.lock().unwrap().as_mut().expect("it answers"));
    }
}

impl Desk for FakeDesk {
    fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.cluster.lock().unwrap())
    }
    fn configuration(&self) -> String {
        self.text.lock().unwrap().clone()
    }
    fn me(&self) -> usize {
        0
    }
    async fn view(&self) -> NodeView {
        self.view.lock().unwrap().clone()
    }
    async fn command(&self, command: Command) -> Result<(), Refused> {
        self.commands.lock().unwrap().push(command);
        if self.holds.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        (self.script.lock().unwrap())(&command, &mut self.view.lock().unwrap())
    }
    async fn alerts(&self, _since_ms: Option<u64>) -> Kept {
        Kept {
            alerts: self.alerts.lock().unwrap().clone(),
            missing: None,
        }
    }
    fn follow(&self) -> broadcast::Receiver<AlertReport> {
        self.news.subscribe()
    }
    async fn note(&self, text: String, id: Option<u32>, severity: Severity) {
        self.alerts.lock().unwrap().push(AlertReport {
            time_ms: 1_763_726_400_000,
            node: "alpha".to_owned(),
            severity,
            kind: "message".to_owned(),
            name: id.map(|id| id.to_string()).unwrap_or_default(),
            what: text,
            cause: String::new(),
        });
    }
    async fn adopt(&self, text: String, cluster: Cluster) -> Result<(), Refused> {
        self.view.lock().unwrap().revision = cluster.revision;
        *self.cluster.lock().unwrap() = Arc::new(cluster);
        *self.text.lock().unwrap() = text;
        Ok(())
    }
    async fn logs(&self) -> Vec<LogFile> {
        vec![LogFile {
            name: "state/alerts".to_owned(),
            text: "alpha's\npassword=hunter2\n".to_owned(),
            cut: false,
        }]
    }
    async fn forward(&self, ask: Ask) -> Result<Answer, Unreached> {
        let unreached = || Unreached {
            why: "node beta does not answer: connection refused".to_owned(),
            asked: false,
        };
        let view = self.other.lock().unwrap().clone().ok_or_else(unreached)?;
        if ask == Ask::View {
            return Ok(Answer::Node(Box::new(view)));
        }
        self.forwarded.lock().unwrap().push(ask.clone());
        Ok(match ask {
            Ask::Alerts { .. } => Answer::Alerts {
                alerts: Vec::new(),
                missing: None,
            },
            Ask::Logs { .. } => Answer::Logs {
                files: vec![LogFile {
                    name: "../../state/alerts".to_owned(),
                    text: "beta's\n".to_owned(),
                    cut: true,
                }],
            },
            _ => Answer::Done,
        })
    }
}

/// A node with a failover manager.
pub struct Managed {
    pub node: Node,
    pub desk: Arc<FakeDesk>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Managed {
    /// On a node with or without a daemon of mirrors.
    pub fn on(node: Node) -> Self {
        let desk = Arc::new(FakeDesk::default());
        std::fs::write(node.folder.path().join("cluster.toml"), CLUSTER).unwrap();
        let path = node.folder.path().join("run/failover.sock");
        let (stop, stopped) = watch::channel(false);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let served = Arc::clone(&desk);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let socket = Socket::bind(&path).unwrap();
                ready.send(()).unwrap();
                serve(served, Arc::new(socket), stopped).await;
            });
        });
        is_ready.recv().unwrap();
        Self {
            node,
            desk,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}
