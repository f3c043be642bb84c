//! The manager's side of its guard: starts one where there is none, and tells it everything again
//! when it had to be started anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::message::{LINE_MAX, Request, Say, Want, Watched};
use crate::config::Ms;
use crate::core::Time;
use crate::process::Deadline;
use crate::resource::apart;

/// Between two looks for a guard, at first: one that was started is there soon …
const AGAIN: Duration = Duration::from_millis(50);
/// … and at most.
const AGAIN_AT_MOST: Duration = Duration::from_secs(2);
/// The guard's log is open within, or what it writes goes where this process's words go.
const LOG_WITHIN: Ms = Ms::seconds(2);
/// A guard that hangs up this often when it was asked the same is not asked it any more.
const HANG_UPS: u32 = 3;

/// How a guard is started where there is none.
#[derive(Clone, Debug)]
pub struct Starter {
    /// The guard's socket.
    pub socket: PathBuf,
    /// The program and its arguments; `None`: one is started by somebody else.
    pub command: Option<(PathBuf, Vec<OsString>)>,
    /// Where it writes its log; `None`: where this process does.
    pub log: Option<PathBuf>,
    /// Where none is there within this, people are told, and what is wanted of one is refused.
    pub within: Duration,
}

/// What people are told of the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// `no guard runs: …`
    pub what: String,
    /// Why.
    pub why: String,
}

/// What a guard answers to [`Guards::arm`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Armed {
    /// It watches the group.
    Watching,
    /// It is stopping the group: the right is lost.
    Stopping,
    /// No guard watches it, and why.
    Not(String),
}

/// What becomes of what is wanted: whether the guard is stopping the group; or why it is not done.
type Done = Result<bool, String>;

#[derive(Debug)]
struct Asked {
    want: Want,
    answer: oneshot::Sender<Done>,
    /// So often the guard has hung up instead of an answer.
    hung_up: u32,
}

/// A handle on the guard. Clones are handles on the same.
#[derive(Clone)]
pub struct Guards {
    asks: mpsc::UnboundedSender<Asked>,
    _task: Arc<Ended>,
}

struct Ended(tokio::task::AbortHandle);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl std::fmt::Debug for Guards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guards")
    }
}

impl Guards {
    /// Connects to the guard, or starts one, for as long as this handle is there. The groups whose
    /// right is lost come out of the receiver. `tell`: tells people.
    pub fn start(
        starter: Starter,
        tell: impl Fn(Trouble) + Send + Sync + 'static,
    ) -> (Self, mpsc::UnboundedReceiver<String>) {
        let (asks, queue) = mpsc::unbounded_channel();
        let (lost, told) = mpsc::unbounded_channel();
        let client = Client {
            starter,
            lost,
            tell: Box::new(tell),
            told: BTreeSet::new(),
            waiting: BTreeMap::new(),
            armed: BTreeMap::new(),
            next: 0,
        };
        let task = tokio::spawn(client.run(queue)).abort_handle();
        let guards = Self {
            asks,
            _task: Arc::new(Ended(task)),
        };
        (guards, told)
    }

    /// Asks now; the answer comes when it is waited for, or not.
    fn begin(&self, want: Want) -> oneshot::Receiver<Done> {
        let (answer, answered) = oneshot::channel();
        let _ = self.asks.send(Asked {
            want,
            answer,
            hung_up: 0,
        });
        answered
    }

    /// Has a group watched; waits until it is.
    pub async fn arm(&self, watched: &Watched) -> Armed {
        self.begin_arm(watched, false).await
    }

    /// The same; it is asked for before this returns, and so in the order of calls. `held`: the group is active, under a
    /// right that counts before the daemon has said so.
    pub fn begin_arm(
        &self,
        watched: &Watched,
        held: bool,
    ) -> impl Future<Output = Armed> + Send + 'static {
        let watched = watched.clone();
        let armed = self.begin(Want::Arm { watched, held });
        async move {
            match armed.await {
                Ok(Ok(false)) => Armed::Watching,
                Ok(Err(why)) => Armed::Not(why),
                // The task ends only with its handles.
                Ok(Ok(true)) | Err(_) => Armed::Stopping,
            }
        }
    }

    /// The lease of a group without a mirror that is watched ends then, and not before.
    pub fn extend(&self, group: &str, ends: Time) {
        let group = group.to_owned();
        let ends_ms = ends.0;
        drop(self.begin(Want::Extend { group, ends_ms }));
    }

    /// As [`Self::disarm`], in the order of calls; it is not waited for.
    pub fn begin_disarm(&self, group: &str) {
        drop(self.begin(Want::Disarm(group.to_owned())));
    }

    /// Nothing of a group runs here any more. Where no guard can be had nobody watches it, either.
    pub async fn disarm(&self, group: &str) {
        drop(self.begin(Want::Disarm(group.to_owned())).await);
    }

    /// The node is reset, at once, or as soon as there is a guard. It is asked for before this returns.
    pub fn begin_reset(&self, why: String) {
        drop(self.begin(Want::Reset(why)));
    }

    /// User space runs: the node is reset if this is not said again within so many milliseconds; 0:
    /// it need not be said any more. It is said before this returns, and so in the order of calls; it is
    /// heard when the answer is there.
    ///
    /// # Errors
    /// No guard hears it, in words.
    pub fn alive(&self, within_ms: u64) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let said = self.begin(Want::Alive(within_ms));
        async move {
            match said.await {
                Ok(Err(why)) => Err(why),
                // The task ends only with its handles.
                Ok(Ok(_)) | Err(_) => Ok(()),
            }
        }
    }
}

struct Client {
    starter: Starter,
    lost: mpsc::UnboundedSender<String>,
    tell: Box<dyn Fn(Trouble) + Send + Sync>,
    /// What was told of a guard that does not do all that it is asked: once of each.
    told: BTreeSet<String>,
    /// What was not answered yet, by its number.
    waiting: BTreeMap<u64, Asked>,
    /// What a new guard is told.
    armed: BTreeMap<String, Watched>,
    next: u64,
}

/// Between two tries: longer each time.
struct Pause(Duration);

impl Pause {
    async fn pass(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(AGAIN_AT_MOST);
    }
}

impl Client {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Asked>) {
        // One that hangs up again and again is not asked without a pause.
        let mut pause = Pause(AGAIN);
        loop {
            let stream = self.connect(&mut queue).await;
            let connected = Instant::now();
            if self.converse(stream, &mut queue).await.is_none() {
                return;
            }
            tracing::error!("the guard is gone: another one is started");
            self.has_hung_up();
            if connected.elapsed() > AGAIN_AT_MOST {
                pause = Pause(AGAIN);
            }
            pause.pass().await;
        }
    }

    /// Until the guard has gone; `None`: nobody wants anything of it any more.
    async fn converse(
        &mut self,
        stream: UnixStream,
        queue: &mut mpsc::UnboundedReceiver<Asked>,
    ) -> Option<()> {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::with_capacity(LINE_MAX, read).lines();
        if self.tell_again(&mut write).await.is_err() {
            return Some(());
        }
        loop {
            tokio::select! {
                asked = queue.recv() => {
                    let id = self.keep(asked?);
                    if self.send(&mut write, id).await.is_err() {
                        return Some(());
                    }
                }
                line = lines.next_line() => {
                    let Ok(Some(line)) = line else {
                        return Some(());
                    };
                    match serde_json::from_str(&line) {
                        Ok(say) => self.take(say),
                        Err(error) => tracing::warn!("the guard made no sense: {error}"),
                    }
                }
            }
        }
    }

    async fn connect(&mut self, queue: &mut mpsc::UnboundedReceiver<Asked>) -> UnixStream {
        let mut started: Option<tokio::process::Child> = None;
        let (begun, mut pause, mut told) = (Instant::now(), Pause(AGAIN), false);
        loop {
            let mut why = match UnixStream::connect(&self.starter.socket).await {
                Ok(stream) => {
                    if let Some(mut child) = started {
                        // It outlives this process; while this one lives it is waited for.
                        tokio::spawn(async move { child.wait().await });
                    }
                    if told {
                        tracing::info!("a guard runs again");
                    }
                    return stream;
                }
                Err(error) => format!("{}: {error}", self.starter.socket.display()),
            };
            let running = match started.as_mut().map(tokio::process::Child::try_wait) {
                Some(Ok(None)) => true,
                Some(Ok(Some(status))) => {
                    why = format!("it has ended: {status}");
                    if let Some(log) = &self.starter.log {
                        why = format!("{why}; see {}", log.display());
                    }
                    false
                }
                Some(Err(_)) | None => false,
            };
            if !running {
                started = Self::begin(&self.starter).await.unwrap_or_else(|error| {
                    why = error;
                    None
                });
            }
            if begun.elapsed() >= self.starter.within {
                if !std::mem::replace(&mut told, true) {
                    (self.tell)(Trouble {
                        what: "no guard runs: no group can be started, and none that runs is stopped should the manager die"
                            .to_owned(),
                        why: why.clone(),
                    });
                }
                self.refuse(queue, &format!("no guard runs: {why}"));
            }
            pause.pass().await;
        }
    }

    /// A guard's process; `None`: it is somebody else's to start one.
    ///
    /// Errors: in words.
    async fn begin(starter: &Starter) -> Result<Option<tokio::process::Child>, String> {
        let Some((program, arguments)) = starter.command.as_ref() else {
            return Ok(None);
        };
        let mut command = tokio::process::Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // A process group of its own: a signal to this one's does not reach it.
        command.process_group(0).kill_on_drop(false);
        if let Some(path) = starter.log.clone() {
            // Its disk may hang.
            let opening = move || File::options().append(true).create(true).open(path);
            match apart::call(Deadline::after(LOG_WITHIN), opening).await {
                Ok(Ok(log)) => {
                    command.stderr(log);
                }
                Ok(Err(error)) => tracing::warn!("the guard's log: {error}"),
                Err(why) => tracing::warn!(?why, "the guard's log"),
            }
        }
        let spawned = command.spawn();
        let spawned = spawned.map_err(|error| format!("{}: {error}", program.display()))?;
        Ok(Some(spawned))
    }

    /// Nobody does what is wanted.
    fn refuse(&mut self, queue: &mut mpsc::UnboundedReceiver<Asked>, why: &str) {
        while let Ok(asked) = queue.try_recv() {
            self.keep(asked);
        }
        // A node that has to be reset has to be all the same.
        let refused = |_: &u64, asked: &mut Asked| !matches!(asked.want, Want::Reset(_));
        for (_, asked) in self.waiting.extract_if(.., refused) {
            // Who asked may not wait.
            let _ = asked.answer.send(Err(why.to_owned()));
        }
    }

    /// The guard has gone. It may have been for what it was asked: the first of what it has not answered.
    fn has_hung_up(&mut self) {
        let Some(mut first) = self.waiting.first_entry() else {
            return;
        };
        first.get_mut().hung_up += 1;
        if first.get().hung_up >= HANG_UPS {
            let id = *first.key();
            self.not_done(
                id,
                format!("it has hung up {HANG_UPS} times when it was asked"),
            );
        }
    }

    /// The guard does not do what was asked with this number.
    fn not_done(&mut self, id: u64, why: String) {
        let Some(asked) = self.waiting.remove(&id) else {
            tracing::error!("the guard does not watch all that it is to: {why}");
            return;
        };
        let what = asked.want.name();
        if self.told.insert(what.to_owned()) {
            (self.tell)(Trouble {
                what: format!(
                    "the guard that runs does not know \"{what}\": it may be of an older build; it ends with this node's \
                     groups and manager, and the next one is of this build"
                ),
                why: why.clone(),
            });
        }
        let why = format!("the guard that runs does not know \"{what}\": {why}");
        let _ = asked.answer.send(Err(why));
    }

    fn keep(&mut self, asked: Asked) -> u64 {
        match &asked.want {
            Want::Disarm(group) => {
                self.armed.remove(group);
            }
            Want::Extend { group, ends_ms } => {
                if let Some(watched) = self.armed.get_mut(group) {
                    watched.lease_ends_ms = Some(*ends_ms);
                }
            }
            Want::Arm { .. } | Want::Alive(_) | Want::Reset(_) => {}
        }
        self.next += 1;
        self.waiting.insert(self.next, asked);
        self.next
    }

    async fn send(&self, write: &mut OwnedWriteHalf, id: u64) -> std::io::Result<()> {
        let Some(asked) = self.waiting.get(&id) else {
            return Ok(());
        };
        let want = asked.want.clone();
        say(write, &Request { id, want }).await
    }

    /// A guard that has just been started knows nothing: the groups that are watched, and what was
    /// not answered.
    async fn tell_again(&mut self, write: &mut OwnedWriteHalf) -> std::io::Result<()> {
        for watched in self.armed.values() {
            let want = Want::Arm {
                watched: watched.clone(),
                held: true,
            };
            say(write, &Request { id: 0, want }).await?;
        }
        let waiting: Vec<u64> = self.waiting.keys().copied().collect();
        for id in waiting {
            self.send(write, id).await?;
        }
        Ok(())
    }

    fn take(&mut self, say: Say) {
        match say {
            Say::Lost(group) => {
                let _ = self.lost.send(group);
            }
            Say::Done { id, stopping } => {
                let Some(asked) = self.waiting.remove(&id) else {
                    return;
                };
                if let Want::Arm { watched, .. } = asked.want {
                    self.has_armed(id, watched);
                }
                let _ = asked.answer.send(Ok(stopping));
            }
            Say::Unknown { id, why } => self.not_done(id, why),
        }
    }
}

impl Client {
    /// The guard has done what was asked with this number. What was asked after it, and is not answered yet, counts too.
    fn has_armed(&mut self, id: u64, mut watched: Watched) {
        for later in self.waiting.range(id..).map(|(_, asked)| &asked.want) {
            match later {
                // A guard that is started now would watch what nobody will take off it.
                Want::Disarm(group) if *group == watched.group => return,
                Want::Extend { group, ends_ms } if *group == watched.group => {
                    watched.lease_ends_ms = Some(*ends_ms);
                }
                _ => {}
            }
        }
        self.armed.insert(watched.group.clone(), watched);
    }
}

async fn say(write: &mut OwnedWriteHalf, request: &Request) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    write.write_all(&line).await
}
