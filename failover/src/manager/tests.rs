//! Two managers in one process, with real heartbeats over loopback, and with resources and a right
//! to run that are made up: who has what active is one table of both.

use std::collections::BTreeSet;
use std::future::ready;
use std::net::UdpSocket;
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::core::durable::Why;
use crate::core::state::NodeStatus;
use crate::core::{GroupStatus, ResourceState, Right, Work};
use crate::heartbeat::key::Key;

/// Something that should happen has happened within.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is true of both machines.
#[derive(Debug, Default)]
struct World {
    /// (node, group, resource)
    active: BTreeSet<(Node, GroupId, usize)>,
    /// Who has the right to run each group.
    holder: BTreeMap<GroupId, Node>,
    /// How often each operation was begun, (node, number).
    begun: BTreeMap<(Node, OpId), u32>,
    /// Starts of a node's resources wait for as long as it is in here.
    held: BTreeSet<Node>,
    /// Starts fail there.
    broken: BTreeSet<Node>,
    /// A group was active on two nodes.
    twice: bool,
    /// What the guards were asked for.
    resets: Vec<(Node, String)>,
    /// What goes on beside a node's resources has begun so often, (node, group, resource).
    resumed: BTreeMap<(Node, GroupId, usize), u32>,
    /// What a node's watchdog was told last: user space runs, or nobody will say it.
    alive: BTreeMap<Node, bool>,
}

type Shared = Arc<Mutex<World>>;

fn of(world: &Shared) -> std::sync::MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct FakeHands {
    world: Shared,
    node: Node,
    records: Records,
}

impl FakeHands {
    /// As a helper would: it goes on, and records its outcome, whoever waits.
    fn work(&self, op: OpId, begun: Begun, record: File) -> JoinHandle<OpResult> {
        let (world, node, records) = (Arc::clone(&self.world), self.node, self.records.clone());
        *of(&world).begun.entry((node, op)).or_default() += 1;
        tokio::spawn(async move {
            let result = match begun.work {
                Work::Start { group, resource } => {
                    while of(&world).held.contains(&node) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    let mut world = of(&world);
                    if world.broken.contains(&node) {
                        OpResult::Failed("broken".to_owned())
                    } else {
                        world.active.insert((node, group, resource));
                        let other = world.active.iter();
                        let twice = other.clone().any(|(n, g, _)| *n != node && *g == group);
                        world.twice |= twice;
                        OpResult::Done
                    }
                }
                Work::Stop { group, resource } => {
                    of(&world).active.remove(&(node, group, resource));
                    OpResult::Done
                }
                _ => OpResult::Done,
            };
            records.end(op, &result).expect("recorded");
            drop(record);
            result
        })
    }
}

impl Hands for FakeHands {
    fn run(
        &self,
        op: OpId,
        begun: Begun,
        record: File,
    ) -> impl Future<Output = OpResult> + Send + 'static {
        let work = self.work(op, begun, record);
        async move { work.await.expect("it does not panic") }
    }

    fn wait(&self, op: OpId, _: Begun) -> impl Future<Output = OpResult> + Send + 'static {
        let records = self.records.clone();
        async move {
            let waited = records.clone();
            let lock = tokio::task::spawn_blocking(move || waited.wait(op)).await;
            lock.expect("waited").expect("locked");
            match records.known(op).expect("read") {
                Known::Ended(result) => result,
                other => panic!("{op}: {other:?}"),
            }
        }
    }

    fn resume(&self, group: GroupId, resource: usize) {
        let mut world = of(&self.world);
        let key = (self.node, group, resource);
        assert!(world.active.contains(&key), "{key:?} is not active");
        *world.resumed.entry(key).or_default() += 1;
    }

    fn probe(&self, _: usize, _: Ms) -> impl Future<Output = OpResult> + Send + 'static {
        of(&self.world).alive.insert(self.node, true);
        ready(OpResult::Done)
    }

    fn rest(&self) {
        of(&self.world).alive.insert(self.node, false);
    }

    fn outside(&self) -> impl Future<Output = bool> + Send + 'static {
        ready(true)
    }

    fn check_fence(
        &self,
        _: Vec<(String, String)>,
        _: Ms,
    ) -> impl Future<Output = OpResult> + Send + 'static {
        ready(OpResult::Done)
    }
}

#[derive(Debug)]
struct FakeRights {
    world: Shared,
    node: Node,
    handle: Handle,
}

impl Rights for FakeRights {
    fn ask(&mut self, group: GroupId, _: bool, _: bool) {
        let mut world = of(&self.world);
        let holder = *world.holder.entry(group).or_insert(self.node);
        let change = if holder == self.node {
            Right::Granted
        } else {
            Right::Refused("the other node has it".to_owned())
        };
        self.handle.event(Event::Right { group, change });
    }

    fn release(&mut self, group: GroupId) {
        let mut world = of(&self.world);
        if world.holder.get(&group) == Some(&self.node) {
            world.holder.remove(&group);
        }
        let change = Right::Released;
        self.handle.event(Event::Right { group, change });
    }

    fn stopped(&mut self, _: GroupId) {}

    fn reset(&mut self, why: String) {
        of(&self.world).resets.push((self.node, why));
    }
}

/// Two machines.
struct Pair {
    cluster: Arc<Cluster>,
    folder: TempDir,
    world: Shared,
    boots: [u128; 2],
}

struct Node1 {
    handle: Handle,
    task: JoinHandle<Result<Ended, ManagerError>>,
}

impl Pair {
    fn new() -> Self {
        let sockets = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        let [a, b] = sockets.map(|socket| socket.local_addr().expect("bound"));
        let text = format!(
            r#"
[cluster]
name = "shop"
revision = 1
nodes = ["alpha", "beta"]
wait-for-node = "20s"
stop-bound = "1s"
[arbiter]
kind = "none"
accepted-risk = "both nodes may run a group at once and their data may differ"
[heartbeat.lan]
type = "lan"
priority = 1
interval = "50ms"
timeout = "1s"
addresses = {{ alpha = "{a}", beta = "{b}" }}
[group.g]
nodes = ["alpha", "beta"]
[group.g.resource.first]
type = "exec"
start = "/bin/true"
retries = 0
[group.g.resource.second]
type = "exec"
start = "/bin/true"
depends = ["first"]
[monitor.space]
type = "user-space"
interval = "50ms"
target = "g"
"#
        );
        let cluster = Cluster::parse(Path::new("cluster.toml"), &text);
        Self {
            cluster: Arc::new(cluster.expect("a right configuration")),
            folder: tempfile::tempdir().expect("a folder"),
            world: Shared::default(),
            boots: [1, 2],
        }
    }

    fn folder(&self, node: Node) -> std::path::PathBuf {
        let folder = self.folder.path().join(&self.cluster.nodes[node]);
        std::fs::create_dir_all(&folder).expect("made");
        folder
    }

    fn start(&self, node: Node) -> Node1 {
        let folder = self.folder(node);
        let (handle, inputs) = channel();
        let key = Key::new(&[3; 32]);
        let listener = handle.listener();
        let heartbeats = Heartbeats::start(&self.cluster, node, &key, &listener);
        let records = Records::open(&folder.join("operations"), self.boots[node]);
        let records = records.expect("open");
        let parts = Parts {
            cluster: Arc::clone(&self.cluster),
            me: node,
            state: folder.clone(),
            records: records.clone(),
            boot: self.boots[node],
            host: Host::default(),
            hands: Arc::new(FakeHands {
                world: Arc::clone(&self.world),
                node,
                records,
            }),
            rights: FakeRights {
                world: Arc::clone(&self.world),
                node,
                handle: handle.clone(),
            },
            heartbeats: heartbeats.expect("started"),
            alerts: Alerts::start(&self.cluster.nodes[node], folder.join(ALERTS)).expect("started"),
        };
        let task = tokio::spawn({
            let handle = handle.clone();
            async move { run(parts, &handle, inputs).await }
        });
        Node1 { handle, task }
    }

    /// All of the machine is gone at once, and with it what it held.
    async fn crash(&self, node: Node, machine: Node1) {
        machine.kill().await;
        let mut world = of(&self.world);
        world.active.retain(|(at, _, _)| *at != node);
        world.holder.retain(|_, at| *at != node);
    }

    fn is_active(&self, node: Node) -> bool {
        let world = of(&self.world);
        (0..2).all(|at| world.active.contains(&(node, 0, at)))
    }

    fn begun_once(&self) {
        let world = of(&self.world);
        assert!(world.begun.values().all(|times| *times == 1), "{world:?}");
        assert!(!world.twice, "a group was active on both nodes");
    }
}

impl Node1 {
    /// As SIGKILL would: nothing of it is told.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn is(&self, status: GroupStatus) -> bool {
        self.handle.look(|m| m.group_status(0)).await == Some(status)
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_group_starts_at_home_and_is_taken_over_when_its_node_dies() {
    let mut pair = Pair::new();
    let (alpha, beta) = (pair.start(0), pair.start(1));
    until("online at home", || alpha.is(GroupStatus::Online)).await;
    assert!(pair.is_active(0) && !pair.is_active(1));
    assert!(beta.is(GroupStatus::Offline).await);

    let died = Instant::now();
    pair.crash(0, alpha).await;
    until("taken over", || beta.is(GroupStatus::Online)).await;
    println!("taken over {} ms after the end", died.elapsed().as_millis());
    assert!(pair.is_active(1));
    let order = beta.handle.look(|m| m.order_of(0).clone()).await;
    let order = order.expect("it runs");
    assert_eq!(
        (order.owner, order.why, order.from),
        (1, Why::Failover, Some(0))
    );

    // It boots again, and leaves the group where it is.
    pair.boots[0] = 11;
    let alpha = pair.start(0);
    until("heard again", || async {
        let owner = alpha.handle.look(|m| m.order_of(0).owner).await;
        let seen = alpha.handle.look(core::Manager::node_status).await;
        owner == Some(1) && seen == Some(NodeStatus::Online)
    })
    .await;
    assert!(beta.is(GroupStatus::Online).await && alpha.is(GroupStatus::Offline).await);
    pair.begun_once();
    let kept = kept_alerts(&pair.folder(1)).alerts;
    assert!(
        kept.iter()
            .any(|a| a.name == "g" && a.what.contains("fails over"))
    );
}

#[tokio::test]
async fn a_new_manager_begins_nothing_twice_that_the_old_one_has_begun() {
    let pair = Pair::new();
    of(&pair.world).held.insert(0);
    let (alpha, beta) = (pair.start(0), pair.start(1));
    until("its first start is under way", || async {
        !of(&pair.world).begun.is_empty()
    })
    .await;
    alpha.kill().await;
    let alpha = pair.start(0);
    // The start goes on all the while, and its outcome is what the new one hears.
    until("the new one is heard", || async {
        beta.handle.look(core::Manager::node_status).await == Some(NodeStatus::Online)
    })
    .await;
    assert_eq!(of(&pair.world).begun.len(), 1);
    of(&pair.world).held.clear();
    until("online", || alpha.is(GroupStatus::Online)).await;
    pair.begun_once();
    assert_eq!(of(&pair.world).begun.len(), 2, "two resources, two starts");
    // What goes on beside them is the new one's business.
    let resumed = of(&pair.world).resumed.clone();
    assert_eq!(resumed, [((0, 0, 0), 1), ((0, 0, 1), 1)].into());

    // With nothing under way it takes up what is active as it is.
    alpha.kill().await;
    let alpha = pair.start(0);
    until("online without a start", || alpha.is(GroupStatus::Online)).await;
    assert_eq!(of(&pair.world).begun.len(), 2);
    assert!(pair.is_active(0) && beta.is(GroupStatus::Offline).await);

    // And on an order of its own side it ends as if killed.
    alpha.handle.again();
    let ended = alpha.task.await.expect("no panic").expect("no fault");
    assert_eq!(ended, Ended::Again);
    assert!(pair.is_active(0));
}

#[tokio::test]
async fn commands_are_carried_out_or_refused_with_the_reason() {
    let pair = Pair::new();
    let (alpha, beta) = (pair.start(0), pair.start(1));
    let early = alpha.handle.command(Command::Start {
        group: 0,
        on: None,
        sure: false,
    });
    let early = early.await.expect_err("it waits for the other node");
    assert!(early.to_string().contains("next:"), "{early}");
    until("online at home", || alpha.is(GroupStatus::Online)).await;
    let moved = alpha.handle.command(Command::Move { group: 0, to: 1 });
    moved.await.expect("taken");
    until("moved", || beta.is(GroupStatus::Online)).await;
    assert!(!pair.is_active(0));
    let there = beta.handle.command(Command::Start {
        group: 0,
        on: Some(1),
        sure: false,
    });
    let there = there.await.expect_err("it runs there already");
    assert!(matches!(
        there,
        CommandError::Refused(Refusal::Already { .. })
    ));

    // The other node's manager ends: the group goes back, and then it says good-bye.
    let end = beta.handle.command(Command::EndNode(EndKind::Manager));
    end.await.expect("taken");
    until("back", || alpha.is(GroupStatus::Online)).await;
    let ended = beta.task.await.expect("no panic").expect("no fault");
    assert_eq!(ended, Ended::For(EndKind::Manager));
    pair.begun_once();
    let late = beta.handle.command(Command::Stop { group: 0 }).await;
    assert_eq!(late, Err(CommandError::Gone));
}

#[tokio::test]
async fn a_group_that_can_not_start_fails_over_and_a_reboot_forgets_what_was_active() {
    let mut pair = Pair::new();
    of(&pair.world).broken.insert(0);
    of(&pair.world).held.insert(0);
    let (alpha, beta) = (pair.start(0), pair.start(1));
    // A failover without a node to go to would be left out.
    until("beta can take it", || {
        let can = alpha.handle.look(|m| {
            let beta = m.other_says(0);
            beta.is_some_and(|beta| beta.able && beta.ready)
        });
        async { can.await == Some(true) }
    })
    .await;
    of(&pair.world).held.clear();
    until("failed over", || beta.is(GroupStatus::Online)).await;
    assert!(!pair.is_active(0));
    of(&pair.world).broken.clear();
    // Both go down at once, and boot again.
    pair.crash(0, alpha).await;
    pair.crash(1, beta).await;
    pair.boots = [11, 12];
    let (alpha, beta) = (pair.start(0), pair.start(1));
    until("online at home", || alpha.is(GroupStatus::Online)).await;
    assert!(beta.is(GroupStatus::Offline).await && pair.is_active(0));
    let first = alpha
        .handle
        .look(|m| m.durable().groups[0].resources[0].state);
    assert_eq!(first.await, Some(ResourceState::Online));
    assert!(!of(&pair.world).twice);
}

#[tokio::test]
async fn a_monitor_of_user_space_that_looks_no_more_says_so() {
    let pair = Pair::new();
    let (alpha, beta) = (pair.start(0), pair.start(1));
    until("online at home", || alpha.is(GroupStatus::Online)).await;
    let told = |node: Node, alive: bool| {
        let world = Arc::clone(&pair.world);
        move || ready(of(&world).alive.get(&node) == Some(&alive))
    };
    until("it looks", told(0, true)).await;
    let suspend = alpha.handle.command(Command::SuspendMonitor(0));
    suspend.await.expect("taken");
    until("the monitor is suspended", told(0, false)).await;
    let resume = alpha.handle.command(Command::ResumeMonitor(0));
    resume.await.expect("taken");
    until("it looks again", told(0, true)).await;
    alpha.handle.command(Command::Suspend).await.expect("taken");
    until("the cluster is suspended", told(0, false)).await;
    until("there, too", told(1, false)).await;
    // One that begins so says it, too: an earlier one may have ended between two looks.
    of(&pair.world).alive.clear();
    alpha.kill().await;
    let alpha = pair.start(0);
    until("a suspended manager begins", told(0, false)).await;
    alpha.handle.command(Command::Resume).await.expect("taken");
    until("resumed", told(0, true)).await;
    until("resumed there", told(1, true)).await;
    let end = beta.handle.command(Command::EndNode(EndKind::Manager));
    end.await.expect("taken");
    let ended = beta.task.await.expect("no panic").expect("no fault");
    assert_eq!(ended, Ended::For(EndKind::Manager));
    assert!(told(1, false)().await, "a manager ends");
}

#[tokio::test]
async fn a_damaged_state_is_refused() {
    let pair = Pair::new();
    let file = pair.folder(0).join(STATE);
    std::fs::write(&file, b"kagami-failover-state 1 9 00000000\n{}").expect("written");
    let alpha = pair.start(0);
    let refused = alpha.task.await.expect("no panic").expect_err("damaged");
    let words = refused.to_string();
    assert!(
        words.contains("is damaged") && words.contains("next:"),
        "{words}"
    );
    assert_eq!(std::fs::metadata(&file).expect("still there").len(), 37);
}

#[tokio::test]
async fn a_group_that_a_hanging_disk_keeps_on_its_node_has_that_reset() {
    let pair = Pair::new();
    let (alpha, beta) = (pair.start(0), pair.start(1));
    until("online at home", || alpha.is(GroupStatus::Online)).await;
    until("ready", || async {
        let ready = |m: &core::Manager| m.node_status() == NodeStatus::Online;
        alpha.handle.look(ready).await == Some(true)
    })
    .await;
    // Whoever opens a pipe to write waits for a reader. (Between two writes of the state, which make a file of that name.)
    let pipe = pair.folder(0).join(STATE).with_extension("new");
    until("a pipe in the next write's way", || async {
        let pipe = pipe.clone();
        let make = move |m: &core::Manager| {
            let mut mkfifo = std::process::Command::new("mkfifo");
            m.has_written() && mkfifo.arg(&pipe).status().expect("run").success()
        };
        alpha.handle.look(make).await == Some(true)
    })
    .await;
    let ordered = tokio::spawn({
        let handle = alpha.handle.clone();
        async move { handle.command(Command::Move { group: 0, to: 1 }).await }
    });
    until("reset", || async { !of(&pair.world).resets.is_empty() }).await;
    let resets = of(&pair.world).resets.clone();
    let why = "group g can't be stopped: the manager's state could not be written for 1s";
    assert_eq!(resets, [(0, why.to_owned())]);
    assert!(pair.is_active(0) && !ordered.is_finished());
    // That write comes to its end, and the next one finds no pipe.
    let _reader = File::open(&pipe).expect("opened");
    std::fs::remove_file(&pipe).expect("removed");
    let answer = tokio::time::timeout(PATIENCE, ordered).await;
    assert_eq!(answer.expect("in time").expect("answered"), Ok(()));
    until("moved", || beta.is(GroupStatus::Online)).await;
    pair.begun_once();
}
