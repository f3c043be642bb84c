//! Two desks that reach each other, one of them behind a socket.

mod held_up;
mod push;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, watch};

use super::answer::{answer, answer_peer};
use super::desk::{Desk, Unreached};
use super::logs::LogFile;
use super::message::{Answer, Ask, Order, Reach, Refused};
use super::server::{Socket, serve};
use super::status::{
    BeatState, GroupView, ManagerPhase, MonitorView, NodeState, NodeView, OrderView, RunState,
    Seen, WatchState,
};
use super::{AlertFilter, AlertReport, Client, ClientError};
use crate::config::{Cluster, Severity};
use crate::core::Command;
use crate::manager::alerts::Kept;

const TEXT: &str = r#"
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
addresses = { alpha = "10.0.0.1:7791", beta = "10.0.0.2:7791" }
[group.pg]
nodes = ["alpha", "beta"]
[group.pg.resource.address]
type = "floating-ip"
address = "10.0.0.10/24"
[group.pg.resource.server]
type = "exec"
start = "/etc/kagami/pg/start"
[monitor.router]
type = "ip"
targets = ["10.0.0.254"]
target = "cluster"
"#;

#[derive(Debug)]
struct Fake {
    me: usize,
    cluster: Mutex<Arc<Cluster>>,
    text: Mutex<String>,
    view: Mutex<NodeView>,
    commands: Mutex<Vec<Command>>,
    alerts: Mutex<Vec<AlertReport>>,
    news: broadcast::Sender<AlertReport>,
    other: Mutex<Option<Arc<Fake>>>,
    refuses: AtomicBool,
    /// It answers no command.
    holds: AtomicBool,
    /// Where the other one does not answer it may have got the question.
    cuts: AtomicBool,
}

fn cluster(text: &str) -> Arc<Cluster> {
    Arc::new(Cluster::parse("cluster.toml".as_ref(), text).expect("a good file"))
}

impl Fake {
    /// Node `me`; the group runs on alpha, and both nodes hear each other.
    fn new(me: usize) -> Arc<Self> {
        let cluster = cluster(TEXT);
        let at = |here, there| if me == 0 { here } else { there };
        let state = at(RunState::Online, RunState::Offline);
        let view = NodeView {
            node: cluster.nodes[me].clone(),
            version: "0.1.0".to_owned(),
            revision: 7,
            phase: ManagerPhase::Running,
            other: NodeState::Online,
            heartbeats: vec![BeatState::Normal],
            groups: vec![GroupView {
                state,
                order: OrderView {
                    version: 3,
                    by: 0,
                    wanted: true,
                    owner: 0,
                },
                resources: vec![state, state],
                other: Some(Seen {
                    active: me == 1,
                    online: me == 1,
                    ready: true,
                }),
                ..GroupView::default()
            }],
            monitors: vec![MonitorView {
                state: WatchState::Normal,
                ..MonitorView::default()
            }],
            ..NodeView::default()
        };
        Arc::new(Self {
            me,
            cluster: Mutex::new(cluster),
            text: Mutex::new(TEXT.to_owned()),
            view: Mutex::new(view),
            commands: Mutex::new(Vec::new()),
            alerts: Mutex::new(Vec::new()),
            news: broadcast::channel(8).0,
            other: Mutex::new(None),
            refuses: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            cuts: AtomicBool::new(false),
        })
    }

    /// Both nodes.
    fn pair() -> [Arc<Self>; 2] {
        let pair = [Self::new(0), Self::new(1)];
        for me in 0..2 {
            *pair[me].other.lock().unwrap() = Some(Arc::clone(&pair[1 - me]));
        }
        pair
    }

    fn alert(&self, time_ms: u64, name: &str) {
        self.alerts.lock().unwrap().push(AlertReport {
            time_ms,
            node: self.cluster().nodes[self.me].clone(),
            severity: Severity::Warning,
            kind: "group".to_owned(),
            name: name.to_owned(),
            what: "is to move".to_owned(),
            cause: String::new(),
        });
    }
}

impl Desk for Fake {
    fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.cluster.lock().unwrap())
    }
    fn configuration(&self) -> String {
        self.text.lock().unwrap().clone()
    }
    fn me(&self) -> usize {
        self.me
    }
    async fn view(&self) -> NodeView {
        self.view.lock().unwrap().clone()
    }
    async fn command(&self, command: Command) -> Result<(), Refused> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(crate::core::Refusal::Suspended("pg".to_owned()).into());
        }
        self.commands.lock().unwrap().push(command);
        if self.holds.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
    async fn alerts(&self, _since_ms: Option<u64>) -> Kept {
        let unread = self.refuses.load(Ordering::Relaxed);
        Kept {
            alerts: self.alerts.lock().unwrap().clone(),
            missing: unread.then(|| "alerts.1: no such disk".to_owned()),
        }
    }
    fn follow(&self) -> broadcast::Receiver<AlertReport> {
        self.news.subscribe()
    }
    async fn note(&self, text: String, id: Option<u32>, severity: Severity) {
        let alert = AlertReport {
            severity,
            kind: "message".to_owned(),
            name: id.map(|id| id.to_string()).unwrap_or_default(),
            what: text,
            ..AlertReport::default()
        };
        self.alerts.lock().unwrap().push(alert.clone());
        // Nobody may listen.
        let _ = self.news.send(alert);
    }
    async fn adopt(&self, text: String, cluster: Cluster) -> Result<(), Refused> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(Refused::new("cluster.toml can't be written", "make room"));
        }
        self.view.lock().unwrap().revision = cluster.revision;
        *self.cluster.lock().unwrap() = Arc::new(cluster);
        *self.text.lock().unwrap() = text;
        Ok(())
    }
    async fn logs(&self) -> Vec<LogFile> {
        vec![LogFile {
            name: "alerts.log".to_owned(),
            ..LogFile::default()
        }]
    }
    async fn forward(&self, ask: Ask) -> Result<Answer, Unreached> {
        let other = self.other.lock().unwrap().clone();
        match other {
            // As it is on the way: what comes over the channel was a text.
            Some(other) => {
                let text = serde_json::to_string(&ask).unwrap();
                let answer = Box::pin(answer_peer(
                    other.as_ref(),
                    serde_json::from_str(&text).unwrap(),
                ));
                let text = serde_json::to_string(&answer.await).unwrap();
                Ok(serde_json::from_str(&text).unwrap())
            }
            None => Err(Unreached {
                why: "node beta does not answer: connection refused".to_owned(),
                asked: self.cuts.load(Ordering::Relaxed),
            }),
        }
    }
}

/// A desk behind a socket.
struct Served {
    path: PathBuf,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

fn served(desk: &Arc<Fake>) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("failover.sock");
    let socket = Socket::bind(&path).unwrap();
    let (stop, stopped) = watch::channel(false);
    Served {
        server: tokio::spawn(serve(Arc::clone(desk), Arc::new(socket), stopped)),
        path,
        stop,
        _folder: folder,
    }
}

async fn ask(path: &std::path::Path, ask: Ask) -> Answer {
    Client::connect(path).await.unwrap().ask(ask).await.unwrap()
}

fn push_of(text: &str, force: bool) -> Ask {
    Ask::Push {
        text: text.to_owned(),
        force,
        dry_run: false,
    }
}

fn refusal(answer: Answer) -> String {
    match answer {
        Answer::Refused(refused) => refused.words(),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn the_state_is_what_both_nodes_say() {
    let [alpha, beta] = Fake::pair();
    let served = served(&beta);
    let Answer::Cluster(report) = ask(&served.path, Ask::Status).await else {
        panic!("no state");
    };
    assert_eq!(report.local, "beta");
    let group = report.group("pg").unwrap();
    assert_eq!(
        (group.state, group.current.as_deref()),
        (RunState::Online, Some("alpha"))
    );
    assert_eq!(group.resources[0].on["beta"], RunState::Offline);
    assert_eq!(group.other_ready, Some(true));
    assert!(report.nodes.iter().all(|node| node.answers));

    // Alpha's channel is cut: heartbeats say where it runs, and nobody what alpha's monitors see.
    *beta.other.lock().unwrap() = None;
    let Answer::Cluster(report) = ask(&served.path, Ask::Status).await else {
        panic!("no state");
    };
    let group = report.group("pg").unwrap();
    assert_eq!(
        (group.state, group.current.as_deref()),
        (RunState::Online, Some("alpha"))
    );
    assert_eq!(report.monitors[0].on["alpha"], WatchState::Unknown);
    assert!(!report.nodes[0].answers);

    // Its heartbeats, too: it may run there or not.
    {
        let mut view = beta.view.lock().unwrap();
        view.other = NodeState::Offline;
        view.groups[0].other = None;
    }
    let Answer::Cluster(report) = ask(&served.path, Ask::Status).await else {
        panic!("no state");
    };
    assert_eq!(report.group("pg").unwrap().state, RunState::Unknown);
    assert_eq!(report.nodes[0].state, NodeState::Offline);
    drop(alpha);
}

#[tokio::test]
async fn a_report_goes_on_until_the_client_hangs_up_or_the_manager_ends() {
    let [alpha, _beta] = Fake::pair();
    let served = served(&alpha);
    let mut client = Client::connect(&served.path).await.unwrap();
    client.send(Ask::Watch { every_ms: 50 }).await.unwrap();
    for _ in 0..3 {
        assert!(matches!(
            client.next().await.unwrap(),
            Some(Answer::Cluster(_))
        ));
    }
    served.stop.send(true).unwrap();
    while client.next().await.unwrap().is_some() {}
    served.server.await.unwrap();
    assert!(!served.path.exists(), "its socket goes with it");
    let error = Client::connect(&served.path).await.unwrap_err();
    assert!(matches!(error, ClientError::NoManager { .. }));
}

#[tokio::test]
async fn orders_go_to_the_node_that_is_named() {
    let [alpha, beta] = Fake::pair();
    let order = |node: Option<&str>, order| Ask::Order {
        node: node.map(str::to_owned),
        order,
    };
    let moved = Order::MoveGroup {
        group: "pg".to_owned(),
        to: None,
    };
    assert_eq!(
        answer(alpha.as_ref(), order(None, moved.clone())).await,
        Answer::Done
    );
    assert_eq!(
        answer(beta.as_ref(), order(None, moved)).await,
        Answer::Done
    );
    let to_beta = Command::Move { group: 0, to: 1 };
    assert_eq!(
        *alpha.commands.lock().unwrap(),
        [to_beta],
        "from where it is to where it is not"
    );
    assert_eq!(*beta.commands.lock().unwrap(), [to_beta]);

    let fail = Order::FailMonitor {
        monitor: "router".to_owned(),
        fails: true,
    };
    assert_eq!(
        answer(alpha.as_ref(), order(Some("beta"), fail.clone())).await,
        Answer::Done
    );
    assert_eq!(
        beta.commands.lock().unwrap().last(),
        Some(&Command::FailMonitor(0, true))
    );

    let said = refusal(answer(alpha.as_ref(), order(Some("bta"), fail.clone())).await);
    assert_eq!(said, "there is no node bta\n  next: did you mean \"beta\"?");
    let stop = Order::StopGroup {
        group: "pgg".to_owned(),
    };
    let said = refusal(answer(alpha.as_ref(), order(None, stop)).await);
    assert_eq!(said, "there is no group pgg\n  next: did you mean \"pg\"?");

    *alpha.other.lock().unwrap() = None;
    let said = refusal(answer(alpha.as_ref(), order(Some("beta"), fail)).await);
    assert!(
        said.starts_with("node beta does not answer: connection refused\n  next: "),
        "{said}"
    );

    alpha.refuses.store(true, Ordering::Relaxed);
    let start = Order::StartGroup {
        group: "pg".to_owned(),
        on: None,
        not_elsewhere: false,
    };
    let said = refusal(answer(alpha.as_ref(), order(None, start)).await);
    assert!(said.contains("the cluster is suspended"), "{said}");
    assert!(said.ends_with("  next: resume it first"), "{said}");
}

#[tokio::test]
async fn alerts_of_both_nodes_are_one_list() {
    let [alpha, beta] = Fake::pair();
    alpha.alert(10, "pg");
    alpha.alert(30, "pg");
    beta.alert(20, "pg");
    beta.alert(25, "web");
    let filter = AlertFilter {
        objects: vec!["pg".to_owned()],
        since_ms: Some(11),
        ..AlertFilter::default()
    };
    let alerts = Ask::Alerts {
        filter,
        reach: Reach::Cluster,
    };
    let Answer::Alerts {
        alerts: list,
        missing,
    } = answer(alpha.as_ref(), alerts.clone()).await
    else {
        panic!("no alerts");
    };
    let times: Vec<u64> = list.iter().map(|alert| alert.time_ms).collect();
    assert_eq!((times, missing), (vec![20, 30], None));

    *alpha.other.lock().unwrap() = None;
    let Answer::Alerts {
        alerts: list,
        missing,
    } = answer(alpha.as_ref(), alerts).await
    else {
        panic!("no alerts");
    };
    assert_eq!(list.len(), 1);
    assert!(missing.unwrap().contains("beta does not answer"));

    // Either node's file that can't be read is told of, with its node.
    *alpha.other.lock().unwrap() = Some(Arc::clone(&beta));
    for (reader, node) in [(&alpha, "alpha"), (&beta, "beta")] {
        reader.refuses.store(true, Ordering::Relaxed);
        let ask = Ask::Alerts {
            filter: AlertFilter::default(),
            reach: Reach::Cluster,
        };
        let Answer::Alerts { missing, .. } = answer(alpha.as_ref(), ask).await else {
            panic!("no alerts");
        };
        let told = format!("node {node} can't read all of its own: alerts.1: no such disk");
        assert_eq!(missing, Some(told));
        reader.refuses.store(false, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn words_reach_both_nodes_and_those_who_follow() {
    let [alpha, beta] = Fake::pair();
    let served = served(&beta);
    let mut client = Client::connect(&served.path).await.unwrap();
    let filter = AlertFilter {
        severity: Severity::Warning,
        ..AlertFilter::default()
    };
    client.send(Ask::Follow { filter }).await.unwrap();
    while beta.news.receiver_count() == 0 {
        tokio::task::yield_now().await;
    }
    for severity in [Severity::Info, Severity::Error] {
        let note = Ask::Note {
            text: format!("{severity}"),
            id: Some(12),
            severity,
            reach: Reach::Cluster,
        };
        assert_eq!(answer(alpha.as_ref(), note).await, Answer::Done);
    }
    let Some(Answer::Alert(alert)) = client.next().await.unwrap() else {
        panic!("no alert");
    };
    assert_eq!(
        (alert.what.as_str(), alert.object().as_str()),
        ("error", "message 12")
    );
    assert_eq!(alpha.alerts.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_peer_may_not_ask_what_would_come_back() {
    let [alpha, _beta] = Fake::pair();
    for ask in [
        Ask::Status,
        push_of(TEXT, true),
        Ask::Logs {
            node: Some("beta".to_owned()),
        },
    ] {
        let answer = answer_peer(alpha.as_ref(), ask).await;
        assert!(matches!(answer, Answer::NotUnderstood { .. }), "{answer:?}");
    }
}

#[tokio::test]
async fn logs_of_the_other_node_are_fetched_from_it() {
    let [alpha, beta] = Fake::pair();
    let logs = |node: &str| Ask::Logs {
        node: Some(node.to_owned()),
    };
    assert!(matches!(
        answer(alpha.as_ref(), logs("beta")).await,
        Answer::Logs { .. }
    ));
    *alpha.other.lock().unwrap() = None;
    let said = refusal(answer(alpha.as_ref(), logs("beta")).await);
    assert!(said.contains("connection refused"), "{said}");
    drop(beta);
}

#[tokio::test]
async fn garbage_gets_an_answer_or_an_end_and_the_server_lives() {
    let [alpha, _beta] = Fake::pair();
    let served = served(&alpha);
    for (bytes, says) in [
        (&b"{]\n"[..], "a message was not understood"),
        (
            b"{\"protocol\":9,\"ask\":\"status\"}\n",
            "version 9 of the protocol",
        ),
        (
            b"{\"protocol\":1,\"ask\":\"stauts\"}\n",
            "the request makes no sense",
        ),
        (b"{\"protocol\":1,\"ask\":\"status\"", ""),
    ] {
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert!(said.contains(says), "{said}");
        assert_eq!(said.is_empty(), says.is_empty(), "{said}");
    }
    // Without an end of a line, for as long as one likes.
    let mut stream = UnixStream::connect(&served.path).await.unwrap();
    let long = vec![b'x'; 1 << 20];
    let mut sent = 0;
    while stream.write_all(&long).await.is_ok() {
        sent += long.len();
        assert!(sent <= 64 << 20, "it takes whatever comes");
    }
    assert!(matches!(
        ask(&served.path, Ask::View).await,
        Answer::Node(_)
    ));
}

#[tokio::test]
async fn a_socket_is_not_taken_from_a_manager_that_lives() {
    let alpha = Fake::new(0);
    let served = served(&alpha);
    let error = Socket::bind(&served.path).unwrap_err().to_string();
    assert!(error.contains("a failover manager runs already"), "{error}");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&served.path).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}
