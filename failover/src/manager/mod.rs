//! The manager's shell: it hosts the [core](crate::core), gives it the time and everything that
//! happens, and carries out what it decides, in its order.
//!
//! One task owns the core. What takes time is done elsewhere and comes back as an event: the state
//! is written by [`store`], operations are run by [`Hands`] with a record of each in [`records`],
//! the right to run is asked for by [`Rights`], alerts go through [`alerts`]. A manager may be ended
//! at any moment: the next one begins with what is on disk, asks what became of each operation, and
//! goes on. It decides nothing about groups.

pub mod alerts;
pub mod hands;
pub mod records;
pub mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::clock;
use crate::config::{Cluster, Ms, Severity, monitor};
use crate::core::durable::EndKind;
use crate::core::environment::{Host, fence_check};
use crate::core::{
    self, Action, Actions, Alert, Command, Event, GroupId, MonitorStatus, Node, Object, OpId,
    OpResult, Refusal, ResourceState, Start, Time, Work,
};
use crate::heartbeat::{Heard, Heartbeats, Listener};
use crate::lives::Life;

use alerts::Alerts;
use records::{Begun, Known, Records};
use store::{Store, StoreError};

/// The name of the state's file in the manager's state folder.
pub const STATE: &str = "failover.state";
/// The name of the alerts' file there.
pub const ALERTS: &str = "alerts";
/// How often the `ping` addresses of the arbiter are asked.
const OUTSIDE_EVERY: Duration = Duration::from_secs(1);

/// Who does the manager's work on resources and monitors.
pub trait Hands: Send + Sync + 'static {
    /// Runs an operation that was just recorded, whether or not anybody waits for it: its outcome is
    /// in the records before the record's lock (`record`) is given up.
    fn run(
        &self,
        op: OpId,
        begun: Begun,
        record: File,
    ) -> impl Future<Output = OpResult> + Send + 'static;

    /// Waits for an operation that an earlier manager began, and that has no outcome yet.
    fn wait(&self, op: OpId, begun: Begun) -> impl Future<Output = OpResult> + Send + 'static;

    /// A resource is active, since now or since before this manager began: what goes on beside it does.
    fn resume(&self, group: GroupId, resource: usize);

    /// Lets a monitor look once. `timeout`: 0 for as long as it likes. What it tells a watchdog is told
    /// before this returns.
    fn probe(&self, monitor: usize, timeout: Ms)
    -> impl Future<Output = OpResult> + Send + 'static;

    /// Nobody looks whether user space runs: what resets the node when it is not told so rests.
    fn rest(&self);

    /// True if one of the arbiter's `ping` addresses answers.
    fn outside(&self) -> impl Future<Output = bool> + Send + 'static;

    /// Asks the fence script whether it would work.
    fn check_fence(
        &self,
        environment: Vec<(String, String)>,
        timeout: Ms,
    ) -> impl Future<Output = OpResult> + Send + 'static;
}

/// Who asks for the right to run groups. What becomes of it comes back as [`Event::Right`], in
/// its order.
pub trait Rights: Send + 'static {
    /// The right is wanted; `fenced`: the fence script has said that the other node is down; `begun`: an earlier
    /// manager has left something of the group active.
    fn ask(&mut self, group: GroupId, fenced: bool, begun: bool);
    /// The right, or the question for it, is given up; nothing of the group runs here.
    fn release(&mut self, group: GroupId);
    /// Nothing of a group whose right was lost runs here any more.
    fn stopped(&mut self, group: GroupId);
    /// The guard is to reset the node.
    fn reset(&mut self, why: String);
}

/// Why a manager did not begin, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// Its state can't be taken over.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refused something.
    #[error("the failover manager: {doing}: {source}\n  next: put it right and start it again")]
    System {
        /// What was being done.
        doing: String,
        /// The system's word.
        source: io::Error,
    },
}

/// Why a command was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The manager refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The manager ended before it answered.
    #[error(
        "the failover manager ended before it answered\n  next: see the status when it is back"
    )]
    Gone,
}

/// Something for the task that owns the core.
enum Input {
    Event(Event),
    Command(Command, oneshot::Sender<Result<(), Refusal>>),
    Look(Box<dyn FnOnce(&core::Manager) + Send>),
    Alert(Alert),
    Again,
}

/// A handle on a manager that runs, or will. Clones are handles on the same.
#[derive(Clone)]
pub struct Handle {
    inputs: mpsc::UnboundedSender<Input>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

/// What is handed in, for [`run`].
pub struct Inputs(mpsc::UnboundedReceiver<Input>);

impl std::fmt::Debug for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inputs")
    }
}

/// A handle, and what [`run`] takes of it.
pub fn channel() -> (Handle, Inputs) {
    let (inputs, queue) = mpsc::unbounded_channel();
    (Handle { inputs }, Inputs(queue))
}

#[cfg(test)]
impl Inputs {
    /// The next event, without a manager.
    pub(crate) async fn event(&mut self) -> Event {
        loop {
            match self.0.recv().await {
                Some(Input::Event(event)) => return event,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// The next alert, without a manager.
    pub(crate) async fn alert(&mut self) -> Alert {
        loop {
            match self.0.recv().await {
                Some(Input::Alert(alert)) => return alert,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }
}

impl Handle {
    /// Something happened. After the manager's end nobody hears it.
    pub fn event(&self, event: Event) {
        let _ = self.inputs.send(Input::Event(event));
    }

    /// People should know this.
    pub fn alert(&self, alert: Alert) {
        let _ = self.inputs.send(Input::Alert(alert));
    }

    /// An operator's command: it is recorded and will be carried out, or is refused.
    ///
    /// # Errors
    /// It is refused, or there is no manager any more.
    pub async fn command(&self, command: Command) -> Result<(), CommandError> {
        let (answer, answered) = oneshot::channel();
        let _ = self.inputs.send(Input::Command(command, answer));
        Ok(answered.await.map_err(|_| CommandError::Gone)??)
    }

    /// What `look` sees of the core; `None`: there is no manager any more.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&core::Manager) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let look = move |manager: &core::Manager| {
            let _ = answer.send(look(manager));
        };
        let _ = self.inputs.send(Input::Look(Box::new(look)));
        answered.await.ok()
    }

    /// The manager ends as if it had been killed, for another one to go on: groups stay as they are.
    pub fn again(&self) {
        let _ = self.inputs.send(Input::Again);
    }

    /// What heartbeats bring goes to this manager.
    pub fn listener(&self) -> Listener {
        let handle = self.clone();
        Arc::new(move |heard| match heard {
            Heard::Beat { heartbeat, message } => handle.event(Event::Beat { heartbeat, message }),
            Heard::Alert(alert) => handle.alert(alert),
        })
    }
}

/// What a manager is made of.
#[derive(Debug)]
pub struct Parts<H, R> {
    /// The configuration, checked.
    pub cluster: Arc<Cluster>,
    /// This node.
    pub me: Node,
    /// Where its state and alerts are.
    pub state: std::path::PathBuf,
    /// What became of operations.
    pub records: Records,
    /// This boot of the machine.
    pub boot: u128,
    /// What scripts are told of the machine.
    pub host: Host,
    /// Who works on resources and monitors.
    pub hands: Arc<H>,
    /// Who asks for the right to run.
    pub rights: R,
    /// How the other node is heard.
    pub heartbeats: Heartbeats,
    /// Where alerts go.
    pub alerts: Alerts,
}

/// How a manager ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its groups have stopped, and this is to follow.
    For(EndKind),
    /// [`Handle::again`]: another one goes on.
    Again,
}

/// Runs a manager to its end.
///
/// # Errors
/// It can't begin: its state is damaged, or the system refuses something.
pub async fn run<H: Hands, R: Rights>(
    parts: Parts<H, R>,
    handle: &Handle,
    inputs: Inputs,
) -> Result<Ended, ManagerError> {
    let path = parts.state.join(STATE);
    let life = {
        let path = path.clone();
        let begun = tokio::task::spawn_blocking(move || Life::of(&path)).await;
        begun.map_err(|error| ManagerError::System {
            doing: "a thread for its state".to_owned(),
            source: error.into(),
        })?
    };
    let durable = store::load(&path)?;
    if durable.is_none() {
        tracing::info!(
            "no state of an earlier failover manager in {}",
            path.display()
        );
    }
    let done = handle.clone();
    let store = Store::start(path, life, move |seq, done_well| {
        let done_well = Event::Persisted {
            seq,
            done: done_well,
        };
        done.event(done_well);
    });
    let store = store.map_err(|source| ManagerError::System {
        doing: "a thread for its state".to_owned(),
        source,
    })?;
    let start = Start {
        cluster: Arc::clone(&parts.cluster),
        me: parts.me,
        durable: durable.unwrap_or_default(),
        boot: parts.boot,
        incarnation: clock::wall_ms(),
        host: parts.host.clone(),
    };
    let mut driver = Driver {
        parts,
        handle: handle.clone(),
        store,
        tasks: JoinSet::new(),
        timer: None,
        asked: BTreeMap::new(),
        next_command: 0,
        told_alive: BTreeSet::new(),
    };
    driver.watch_outside();
    driver.watch_fence();
    Ok(driver.run(start, inputs.0).await)
}

/// Reads the alerts that a node has kept.
pub fn kept_alerts(state: &Path) -> alerts::Kept {
    alerts::kept(&state.join(ALERTS))
}

/// The resources that are active here.
fn online(manager: &core::Manager) -> BTreeSet<(GroupId, usize)> {
    let groups = manager.durable().groups.iter().enumerate();
    groups
        .flat_map(|(group, record)| {
            let all = record.resources.iter().enumerate();
            let online = all.filter(|(_, record)| record.state == ResourceState::Online);
            online.map(move |(resource, _)| (group, resource))
        })
        .collect()
}

struct Driver<H, R> {
    parts: Parts<H, R>,
    handle: Handle,
    store: Store,
    /// What runs for this manager; it ends with it. (Operations go on in [`Hands`].)
    tasks: JoinSet<()>,
    timer: Option<Time>,
    asked: BTreeMap<u64, oneshot::Sender<Result<(), Refusal>>>,
    next_command: u64,
    /// The monitors of user space that look.
    told_alive: BTreeSet<usize>,
}

impl<H: Hands, R: Rights> Driver<H, R> {
    async fn run(&mut self, start: Start, mut inputs: mpsc::UnboundedReceiver<Input>) -> Ended {
        let mut out = Actions::new();
        let mut manager = core::Manager::new(start, clock::now(), &mut out);
        self.resume(online(&manager));
        // An earlier manager may have promised looks that this one's configuration or state has none of.
        self.parts.hands.rest();
        loop {
            if let Some(kind) = self.carry_out(&mut out) {
                return Ended::For(kind);
            }
            self.rest_unwatched(&manager);
            while self.tasks.try_join_next().is_some() {}
            let input = match self.timer {
                Some(at) => {
                    let wait = at.since(clock::now());
                    let wake = Instant::now() + Duration::from_millis(wait);
                    tokio::select! {
                        biased;
                        input = inputs.recv() => input,
                        () = sleep_until(wake) => Some(Input::Event(Event::Timer)),
                    }
                }
                None => inputs.recv().await,
            };
            let event = match input {
                // This driver's own handle keeps the channel open.
                None | Some(Input::Again) => return Ended::Again,
                Some(Input::Event(event)) => event,
                Some(Input::Command(command, answer)) => {
                    self.next_command += 1;
                    self.asked.insert(self.next_command, answer);
                    Event::Command {
                        id: self.next_command,
                        command,
                    }
                }
                Some(Input::Look(look)) => {
                    look(&manager);
                    continue;
                }
                Some(Input::Alert(alert)) => {
                    self.parts.alerts.tell(&alert);
                    continue;
                }
            };
            if matches!(event, Event::Timer) {
                self.timer = None;
            }
            let begun = match &event {
                Event::OpDone { result, .. } if *result == OpResult::Done => Some(online(&manager)),
                _ => None,
            };
            manager.handle(clock::now(), event, &mut out);
            if let Some(before) = begun {
                self.resume(online(&manager).difference(&before).copied());
            }
        }
    }

    /// Whoever began an operation may be an earlier manager: what goes on beside its resource is this one's.
    fn resume(&self, resources: impl IntoIterator<Item = (GroupId, usize)>) {
        for (group, resource) in resources {
            self.parts.hands.resume(group, resource);
        }
    }

    /// A monitor of user space that looks no more says so: its silence is no sign that user space has stalled.
    fn rest_unwatched(&mut self, manager: &core::Manager) {
        for (at, monitor) in self.parts.cluster.monitors.iter().enumerate() {
            if !matches!(monitor.kind, monitor::Kind::UserSpace(_)) {
                continue;
            }
            let looks = !matches!(
                manager.monitor_status(at),
                MonitorStatus::Unused | MonitorStatus::Suspended
            );
            if looks {
                self.told_alive.insert(at);
            } else if self.told_alive.remove(&at) {
                // If another one looks, it says so at its next look.
                self.parts.hands.rest();
            }
        }
    }

    /// Carries actions out in their order; what the end of the manager is for, if it ends.
    fn carry_out(&mut self, out: &mut Actions) -> Option<EndKind> {
        for action in out.drain(..) {
            match action {
                Action::Persist { seq, state } => self.store.write(seq, state),
                Action::Beat { heartbeat, message } => {
                    self.parts.heartbeats.send(heartbeat, &message);
                }
                Action::Run {
                    op,
                    work,
                    environment,
                    timeout,
                } => {
                    let begun = Begun {
                        subject: self.subject(work),
                        work,
                        environment,
                        timeout_ms: timeout.0,
                    };
                    self.begin(op, begun);
                }
                Action::Inquire { op } => self.inquire(op),
                Action::Probe {
                    probe,
                    monitor,
                    timeout,
                } => {
                    let looked = self.parts.hands.probe(monitor, timeout);
                    let handle = self.handle.clone();
                    self.tasks.spawn(async move {
                        let result = looked.await;
                        handle.event(Event::Probed { probe, result });
                    });
                }
                Action::AskRight {
                    group,
                    fenced,
                    begun,
                } => self.parts.rights.ask(group, fenced, begun),
                Action::ReleaseRight { group } => self.parts.rights.release(group),
                Action::Stopped { group } => self.parts.rights.stopped(group),
                Action::Reset { why } => self.parts.rights.reset(why),
                Action::CommandDone { id, result } => {
                    if let Some(answer) = self.asked.remove(&id) {
                        // Who asked may have gone.
                        let _ = answer.send(result);
                    }
                }
                Action::SetTimer { at } => {
                    self.timer = (at < Time(u64::MAX)).then_some(at);
                }
                Action::End { op, kind } => {
                    if self.is_ended(op) {
                        tracing::warn!("{op}: this end was carried out before");
                    }
                    return Some(kind);
                }
                Action::Alert(alert) => self.parts.alerts.tell(&alert),
            }
        }
        None
    }

    /// Records the manager's end; true if it was recorded before.
    fn is_ended(&self, op: OpId) -> bool {
        let records = &self.parts.records;
        if matches!(records.known(op), Ok(Known::Ended(_))) {
            return true;
        }
        if let Err(error) = records.end(op, &OpResult::Done) {
            tracing::warn!("{op}: its end was not recorded: {error}");
        }
        false
    }

    fn subject(&self, work: Work) -> (String, String) {
        let (Work::Start { group, resource } | Work::Stop { group, resource }) = work else {
            return (String::new(), String::new());
        };
        let group = &self.parts.cluster.groups[group];
        (group.name.clone(), group.resources[resource].name.clone())
    }

    fn begin(&mut self, op: OpId, begun: Begun) {
        let handle = self.handle.clone();
        match self.parts.records.begin(op, &begun) {
            Ok(Some(record)) => {
                let ended = self.parts.hands.run(op, begun, record);
                self.tasks.spawn(async move {
                    let result = ended.await;
                    handle.event(Event::OpDone { op, result });
                });
            }
            // Never twice: whatever came of it before counts.
            Ok(None) => self.inquire(op),
            Err(error) => {
                let why = format!("not begun, it can't be recorded: {error}");
                let result = OpResult::Failed(why);
                handle.event(Event::OpDone { op, result });
            }
        }
    }

    fn inquire(&mut self, op: OpId) {
        let handle = self.handle.clone();
        match self.parts.records.known(op) {
            Ok(Known::Never) => handle.event(Event::OpNever { op }),
            Ok(Known::Ended(result)) => handle.event(Event::OpDone { op, result }),
            Ok(Known::Begun(begun)) => {
                let ended = self.parts.hands.wait(op, *begun);
                self.tasks.spawn(async move {
                    let result = ended.await;
                    handle.event(Event::OpDone { op, result });
                });
            }
            Err(error) => {
                let why = format!("what became of it can't be read: {error}");
                let result = OpResult::Failed(why);
                handle.event(Event::OpDone { op, result });
            }
        }
    }

    /// Tells the core whether the world outside is reached, where the configuration asks for it.
    fn watch_outside(&mut self) {
        if self.parts.cluster.arbiter.ping.is_empty() {
            return;
        }
        let (hands, handle) = (Arc::clone(&self.parts.hands), self.handle.clone());
        self.tasks.spawn(async move {
            loop {
                let reachable = hands.outside().await;
                handle.event(Event::Outside { reachable });
                tokio::time::sleep(OUTSIDE_EVERY).await;
            }
        });
    }

    /// Asks the fence script now and then whether it would work.
    fn watch_fence(&mut self) {
        let cluster = Arc::clone(&self.parts.cluster);
        let Some(fence) = cluster.fence.clone() else {
            return;
        };
        let (hands, handle) = (Arc::clone(&self.parts.hands), self.handle.clone());
        let environment = fence_check(&cluster, self.parts.me);
        self.tasks.spawn(async move {
            let mut worked = true;
            loop {
                let result = hands.check_fence(environment.clone(), fence.timeout).await;
                let works = result == OpResult::Done;
                if works != worked {
                    let (severity, what, cause) = match result {
                        OpResult::Done => (Severity::Info, "the fence script works again", None),
                        OpResult::Failed(why) | OpResult::Warned(why) => (
                            Severity::Error,
                            "the fence script would not work",
                            Some(why),
                        ),
                        OpResult::TimedOut => {
                            let why = format!("it did not answer within {}", fence.timeout);
                            (
                                Severity::Error,
                                "the fence script would not work",
                                Some(why),
                            )
                        }
                    };
                    handle.alert(Alert {
                        severity,
                        object: Object::Cluster,
                        what: what.to_owned(),
                        cause: cause.unwrap_or_default(),
                    });
                }
                worked = works;
                tokio::time::sleep(Duration::from_millis(fence.check_interval.0)).await;
            }
        });
    }
}

#[cfg(test)]
mod tests;
