//! A guard and a keeper, with mirrors and a machine that are made up: what happens at the end of a
//! lease, in real time.

mod addresses;
mod keeper;
mod next;
mod none;

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, ready};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::client::{Armed, Guards, Starter};
use super::deeds::Deeds;
use super::message::Watched;
use super::server;
use crate::clock;
use crate::config::Cluster;
use crate::core::{Event, Object, Right, Time};
use crate::manager::{Inputs, Rights, channel};
use crate::right::basis::{Says, Standing};
use crate::right::keeper::Keeper;
use crate::right::{MARGIN, Mirrors, Word};

/// Something that should happen has happened within.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than a test takes.
const LONG: u64 = 100_000;

#[derive(Debug, Default)]
struct Daemon {
    says: BTreeMap<String, Says>,
    /// Whether it has the mirrors in hand, and where its words go.
    watchers: Vec<(bool, UnboundedSender<Word>)>,
    /// Who has them in hand hears nothing yet.
    lagging: bool,
    refuses: Option<String>,
    promoted_to: Option<Standing>,
    /// How often it was told to be Primary.
    asked: usize,
    demoted: usize,
    gone: bool,
}

/// Mirrors that are made up.
#[derive(Clone, Debug, Default)]
struct Made(Arc<Mutex<Daemon>>);

impl Made {
    fn of(&self) -> MutexGuard<'_, Daemon> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, standing: Standing) {
        self.change(|says| {
            says.standing = standing;
            says.connected = matches!(standing, Standing::Session(_));
        });
    }

    fn change(&self, change: impl FnOnce(&mut Says)) {
        self.change_of("pg", change);
    }

    fn change_of(&self, mirror: &str, change: impl FnOnce(&mut Says)) {
        let mut daemon = self.of();
        let says = daemon
            .says
            .entry(mirror.to_owned())
            .or_insert_with(|| Says {
                mirror: mirror.to_owned(),
                standing: Standing::Secondary,
                connected: true,
                peer_is_primary: false,
                in_sync: true,
                only_copy: false,
                diskless: false,
                untrusted: false,
                peer_lease_ends: Time(0),
            });
        change(says);
        let says = says.clone();
        let word = Word::Says(says);
        let lagging = daemon.lagging;
        daemon
            .watchers
            .retain(|(in_hand, to)| (lagging && *in_hand) || to.send(word.clone()).is_ok());
    }
}

impl Made {
    /// The daemon ends; what is attached to it is Primary no more.
    fn end(&self) {
        let mut daemon = self.of();
        daemon.gone = true;
        (daemon.watchers).retain(|(_, to)| to.send(Word::Gone).is_ok());
    }

    /// Another one begins.
    fn begin(&self, standing: Standing) {
        self.of().gone = false;
        self.set(standing);
    }

    async fn becomes(&self, wanted: impl Fn(&Daemon) -> bool) {
        let wait = async {
            while !wanted(&self.of()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("it comes to it");
    }
}

impl Mirrors for Made {
    fn promote(
        &self,
        _: &str,
        _: bool,
    ) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let (refuses, to) = {
            let mut daemon = self.of();
            daemon.asked += 1;
            let gone = daemon.gone.then(|| "nobody listens".to_owned());
            (gone.or_else(|| daemon.refuses.clone()), daemon.promoted_to)
        };
        if let (None, Some(to)) = (&refuses, to) {
            self.change(|says| says.peer_is_primary = false);
            self.set(to);
        }
        ready(refuses.map_or(Ok(()), Err))
    }

    fn demote(
        &self,
        _: &str,
        _: bool,
    ) -> impl Future<Output = Result<(), String>> + Send + 'static {
        if self.of().gone {
            return ready(Err("nobody listens".to_owned()));
        }
        self.of().demoted += 1;
        self.set(Standing::Secondary);
        ready(Ok(()))
    }

    fn watch(&self, _: Vec<String>, in_hand: bool) -> UnboundedReceiver<Word> {
        let (to, words) = unbounded_channel();
        let mut daemon = self.of();
        if daemon.gone {
            to.send(Word::Gone).expect("just made");
        } else {
            for says in daemon.says.values() {
                to.send(Word::Says(says.clone())).expect("just made");
            }
        }
        daemon.watchers.push((in_hand, to));
        words
    }
}

/// What a guard has done, in words.
#[derive(Clone, Debug)]
struct Done {
    told: UnboundedSender<String>,
    /// The groups.
    frozen: Arc<Mutex<BTreeSet<String>>>,
    /// What becomes of the next removals of addresses, the last one first.
    removals: Arc<Mutex<Vec<Removal>>>,
}

#[derive(Clone, Copy, Debug)]
enum Removal {
    Fails,
    Hangs,
}

impl Done {
    fn tell(&self, what: &str) {
        let _ = self.told.send(what.to_owned());
    }
}

impl Deeds for Done {
    fn freeze(&mut self, group: &Watched, frozen: bool) -> io::Result<()> {
        let mut all = self.frozen.lock().unwrap();
        if frozen {
            all.insert(group.group.clone());
        } else {
            all.remove(&group.group);
        }
        drop(all);
        self.tell(if frozen { "freeze" } else { "thaw" });
        Ok(())
    }

    fn learn(&mut self, _: &Watched) {}

    fn is_frozen(&self, group: &Watched) -> bool {
        self.frozen.lock().unwrap().contains(&group.group)
    }

    fn drop_addresses(
        &mut self,
        group: &Watched,
    ) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let mut words = vec!["drop".to_owned()];
        words.extend(group.addresses.iter().map(ToString::to_string));
        let (done, words) = (self.clone(), words.join(" "));
        async move {
            done.tell(&words);
            let removal = done.removals.lock().unwrap().pop();
            match removal {
                Some(Removal::Fails) => Err(io::Error::other("no such program")),
                Some(Removal::Hangs) => std::future::pending().await,
                None => Ok(()),
            }
        }
    }

    fn feed(&mut self) {}

    fn rest(&mut self) {
        self.tell("rest");
    }

    fn reset(&mut self, _: &str) {
        self.tell("reset");
    }
}

struct Scene {
    folder: TempDir,
    mirrors: Made,
    deeds: UnboundedReceiver<String>,
    done: Done,
    guard: Option<JoinHandle<()>>,
}

impl Scene {
    fn new() -> Self {
        let (told, deeds) = unbounded_channel();
        let mut scene = Self {
            folder: tempfile::tempdir().expect("a folder"),
            mirrors: Made::default(),
            deeds,
            done: Done {
                told,
                frozen: Arc::default(),
                removals: Arc::default(),
            },
            guard: None,
        };
        scene.mirrors.set(Standing::Secondary);
        scene.start_guard();
        scene
    }

    fn start_guard(&mut self) {
        let socket = self.folder.path().join("guard.sock");
        let (mirrors, done) = (Arc::new(self.mirrors.clone()), self.done.clone());
        self.guard = Some(tokio::spawn(async move {
            let (listener, _lock) = server::bind(&socket).expect("bound").expect("the only one");
            server::serve(listener, mirrors, done).await;
        }));
    }

    async fn kill_guard(&mut self) {
        let guard = self.guard.take().expect("one runs");
        guard.abort();
        let _ = guard.await;
    }

    fn guards(&self) -> (Guards, UnboundedReceiver<String>) {
        let starter = Starter {
            socket: self.folder.path().join("guard.sock"),
            command: None,
            log: None,
            within: PATIENCE,
        };
        Guards::start(starter, |trouble| panic!("{trouble:?}"))
    }

    async fn does(&mut self, wanted: &[&str]) {
        for wanted in wanted {
            let deed = timeout(PATIENCE, self.deeds.recv()).await;
            let deed = deed.unwrap_or_else(|_| panic!("not done in time: {wanted}"));
            assert_eq!(deed.as_deref(), Some(*wanted));
        }
    }
}

fn watched(margin_ms: u64, bound_ms: u64) -> Watched {
    Watched {
        group: "g".to_owned(),
        mirrors: vec!["pg".to_owned()],
        control_group: None,
        units: Vec::new(),
        addresses: Vec::new(),
        margin_ms,
        bound_ms,
        lease_ends_ms: None,
    }
}

fn session(ms: u64) -> Standing {
    Standing::Session(clock::now().after(ms))
}

#[tokio::test]
async fn a_lease_that_ends_freezes_and_permission_thaws() {
    let mut scene = Scene::new();
    let (guards, _lost) = scene.guards();
    assert_eq!(guards.arm(&watched(LONG, LONG)).await, Armed::Watching);
    // Not Primary yet: nothing to freeze. Then the lease ends by the clock; nobody says so.
    scene.mirrors.set(session(150));
    scene.does(&["freeze"]).await;
    scene.mirrors.set(Standing::Alone);
    scene.does(&["thaw"]).await;
    scene.mirrors.set(Standing::Sought);
    scene.does(&["freeze"]).await;
    scene.mirrors.set(session(LONG));
    scene.does(&["thaw"]).await;
    guards.disarm("g").await;
    scene.does(&["thaw", "rest"]).await;
}

#[tokio::test]
async fn without_permission_the_address_goes_and_a_group_that_does_not_stop_resets_the_node() {
    let mut scene = Scene::new();
    let (guards, mut lost) = scene.guards();
    guards.arm(&watched(100, 2000)).await;
    scene.mirrors.set(session(LONG));
    scene.mirrors.set(Standing::Sought);
    scene.does(&["freeze", "drop", "thaw"]).await;
    assert_eq!(lost.recv().await.as_deref(), Some("g"));
    // It is lost for good: permission that comes now is not for what runs here.
    scene.mirrors.set(session(LONG));
    assert_eq!(guards.arm(&watched(100, 2000)).await, Armed::Stopping);
    scene.does(&["reset"]).await;
}

#[tokio::test]
async fn a_group_that_stops_in_time_resets_nothing() {
    let mut scene = Scene::new();
    let (guards, mut lost) = scene.guards();
    guards.arm(&watched(LONG, 2000)).await;
    scene.mirrors.set(session(LONG));
    scene.mirrors.set(Standing::Refused);
    scene.does(&["freeze", "drop", "thaw"]).await;
    assert_eq!(lost.recv().await.as_deref(), Some("g"));
    guards.disarm("g").await;
    scene.does(&["thaw", "rest"]).await;
    // Watched anew, the bound of before is over and means nothing: the next lease's end freezes.
    guards.arm(&watched(LONG, 2000)).await;
    scene.mirrors.set(session(3000));
    scene.does(&["freeze"]).await;
}

#[tokio::test]
async fn a_group_that_is_armed_again_is_watched_with_what_it_has_become() {
    let mut scene = Scene::new();
    let (guards, mut lost) = scene.guards();
    let with = |addresses: &[&str], margin, bound| Watched {
        addresses: addresses.iter().map(|a| a.parse().expect("one")).collect(),
        ..watched(margin, bound)
    };
    scene.mirrors.set(session(LONG));
    guards.arm(&with(&["10.0.0.1"], LONG, LONG)).await;
    // The first one may still be there.
    let again = guards.arm(&with(&["10.0.0.2"], 50, 2000)).await;
    assert_eq!(again, Armed::Watching);
    scene.mirrors.set(Standing::Sought);
    scene
        .does(&["freeze", "drop 10.0.0.1 10.0.0.2", "thaw"])
        .await;
    assert_eq!(lost.recv().await.as_deref(), Some("g"));
    scene.does(&["reset"]).await;
}

#[tokio::test]
async fn a_mirror_that_a_running_group_has_got_counts_once_it_is_promoted() {
    let mut scene = Scene::new();
    let (guards, _lost) = scene.guards();
    let both = Watched {
        mirrors: vec!["pg".to_owned(), "wal".to_owned()],
        ..watched(LONG, LONG)
    };
    let wal = |standing| move |says: &mut Says| says.standing = standing;
    scene.mirrors.set(session(LONG));
    scene.mirrors.change_of("wal", wal(Standing::Secondary));
    guards.arm(&watched(LONG, LONG)).await;
    guards.arm(&both).await;
    // Until then what it rested on before counts, and nothing else.
    scene.mirrors.set(Standing::Sought);
    scene.does(&["freeze"]).await;
    scene.mirrors.set(session(LONG));
    scene.does(&["thaw"]).await;
    scene.mirrors.change_of("wal", wal(session(LONG)));
    // It is watched by its words, and by its lease, of which nobody says that it has ended.
    scene.mirrors.change_of("wal", wal(session(150)));
    scene.does(&["freeze"]).await;
    scene.mirrors.change_of("wal", wal(Standing::Alone));
    scene.does(&["thaw"]).await;
    scene.mirrors.set(Standing::Sought);
    scene.does(&["freeze"]).await;
    guards.disarm("g").await;
    scene.does(&["thaw", "rest"]).await;
}

#[tokio::test]
async fn a_group_that_has_got_its_first_mirror_outlives_the_lease_that_it_had() {
    let mut scene = Scene::new();
    let (guards, _lost) = scene.guards();
    let ends = clock::now().after(2000);
    scene.mirrors.set(session(LONG));
    guards.arm(&leased("g", ends)).await;
    guards.arm(&watched(LONG, LONG)).await;
    while clock::now() <= ends {
        tokio::time::sleep(Duration::from_millis(ends.since(clock::now()) + 1)).await;
    }
    scene.mirrors.set(Standing::Sought);
    scene.does(&["freeze"]).await;
    scene.mirrors.set(Standing::Alone);
    scene.does(&["thaw"]).await;
    // And back: each lease that is told counts, beside the mirror that may still be there.
    guards.arm(&leased("g", clock::now().after(LONG))).await;
    guards.disarm("g").await;
    scene.does(&["thaw", "rest"]).await;
}

fn leased(group: &str, ends: Time) -> Watched {
    Watched {
        group: group.to_owned(),
        mirrors: Vec::new(),
        lease_ends_ms: Some(ends.0),
        ..watched(LONG, LONG)
    }
}

#[tokio::test]
async fn user_space_that_need_not_be_heard_any_more_resets_nothing_and_gives_the_watchdog_back() {
    let mut scene = Scene::new();
    let (guards, _lost) = scene.guards();
    let until = clock::now().after(2000);
    guards.alive(2000).await.expect("heard");
    guards.alive(0).await.expect("heard");
    scene.does(&["rest"]).await;
    while clock::now() <= until {
        tokio::time::sleep(Duration::from_millis(until.since(clock::now()) + 1)).await;
    }
    // Of a group that is watched nothing is given back.
    let leased = leased("g", clock::now().after(LONG));
    assert_eq!(guards.arm(&leased).await, Armed::Watching);
    guards.alive(LONG).await.expect("heard");
    guards.alive(0).await.expect("heard");
    guards.disarm("g").await;
    scene.does(&["thaw", "rest"]).await;
    // And what is not said resets the node.
    guards.alive(50).await.expect("heard");
    scene.does(&["reset"]).await;
    // A watchdog that is to reset the node is not given back.
    guards.alive(0).await.expect("heard");
    guards.arm(&leased).await;
    guards.disarm("g").await;
    scene.does(&["thaw"]).await;
    assert!(scene.deeds.try_recv().is_err());
}

struct Kept {
    keeper: Keeper,
    inputs: Inputs,
}

impl Kept {
    fn new(scene: &Scene) -> Self {
        Self::with(scene, scene.guards())
    }

    fn with(scene: &Scene, (guards, lost): (Guards, UnboundedReceiver<String>)) -> Self {
        let text = r#"
[cluster]
name = "shop"
revision = 1
nodes = ["alpha", "beta"]
stop-bound = "60s"
[arbiter]
kind = "witness"
name = "gamma"
[heartbeat.lan]
type = "lan"
priority = 1
addresses = { alpha = "127.0.0.1:1", beta = "127.0.0.1:2" }
[group.g]
nodes = ["alpha", "beta"]
[group.g.resource.data]
type = "mirror"
mirror = "pg"
[group.bare]
nodes = ["alpha", "beta"]
[group.bare.resource.r]
type = "exec"
start = "/bin/true"
"#;
        let cluster = Cluster::parse(Path::new("cluster.toml"), text).expect("right");
        let (handle, inputs) = channel();
        let mirrors = Arc::new(scene.mirrors.clone());
        let none = Arc::new(|_: &str| None);
        let keeper = Keeper::start(Arc::new(cluster), mirrors, None, guards, lost, none, handle);
        Self { keeper, inputs }
    }

    /// The next word of the right; those of readiness are passed over.
    async fn hears(&mut self) -> (usize, Right) {
        let wait = async {
            loop {
                if let Event::Right { group, change } = self.inputs.event().await {
                    return (group, change);
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("told in time")
    }
}

#[tokio::test]
async fn a_node_whose_manager_can_stop_nothing_is_reset_at_its_word() {
    let mut scene = Scene::new();
    let mut kept = Kept::new(&scene);
    kept.keeper.reset("its disk hangs".to_owned());
    scene.does(&["reset"]).await;
    // The watchdog that is to do it where the kernel does not is not given back.
    scene.mirrors.of().promoted_to = Some(session(LONG));
    kept.keeper.ask(0, false, false);
    assert_eq!(kept.hears().await, (0, Right::Granted));
    kept.keeper.release(0);
    scene.does(&["thaw"]).await;
    assert_eq!(kept.hears().await, (0, Right::Released));
    assert!(scene.deeds.try_recv().is_err());
}
