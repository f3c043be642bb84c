//! The manager's side of its guard: starts one where there is none, and tells it everything again
//! when it had to be started anew.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::message::{LINE_MAX, Request, Say, Want, Watched};
use crate::core::Time;

/// A guard that was started answers within some of these.
const AGAIN: Duration = Duration::from_millis(50);

/// How a guard is started where there is none.
#[derive(Clone, Debug)]
pub struct Starter {
    /// The guard's socket.
    pub socket: PathBuf,
    /// The program and its arguments; `None`: one is started by somebody else.
    pub command: Option<(PathBuf, Vec<OsString>)>,
    /// Where it writes its log; `None`: where this process does.
    pub log: Option<PathBuf>,
}

/// What a guard answers to [`Guards::arm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Armed {
    /// It watches the group.
    Watching,
    /// It is stopping the group: the right is lost.
    Stopping,
}

impl Armed {
    /// It is stopping the group.
    pub fn is_stopping(self) -> bool {
        self == Self::Stopping
    }
}

struct Asked {
    want: Want,
    answer: oneshot::Sender<bool>,
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
    /// right is lost come out of the receiver.
    pub fn start(starter: Starter) -> (Self, mpsc::UnboundedReceiver<String>) {
        let (asks, queue) = mpsc::unbounded_channel();
        let (lost, told) = mpsc::unbounded_channel();
        let client = Client {
            starter,
            lost,
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
    fn begin(&self, want: Want) -> oneshot::Receiver<bool> {
        let (answer, answered) = oneshot::channel();
        let _ = self.asks.send(Asked { want, answer });
        answered
    }

    async fn ask(&self, want: Want) -> bool {
        // The task ends only with its handles.
        self.begin(want).await.unwrap_or(true)
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
                Ok(false) => Armed::Watching,
                Ok(true) | Err(_) => Armed::Stopping,
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

    /// Nothing of a group runs here any more.
    pub async fn disarm(&self, group: &str) {
        self.ask(Want::Disarm(group.to_owned())).await;
    }

    /// The node is reset, at once. It is asked for before this returns.
    pub fn begin_reset(&self, why: String) {
        drop(self.begin(Want::Reset(why)));
    }

    /// User space runs: the node is reset if this is not said again within so many milliseconds; 0:
    /// it need not be said any more. It is said before this returns, and so in the order of calls; it is
    /// heard when the answer is there.
    pub fn alive(&self, within_ms: u64) -> impl Future<Output = ()> + Send + use<> {
        let said = self.begin(Want::Alive(within_ms));
        async move {
            // The task ends only with its handles.
            let _ = said.await;
        }
    }
}

struct Client {
    starter: Starter,
    lost: mpsc::UnboundedSender<String>,
    /// What was not answered yet, by its number.
    waiting: BTreeMap<u64, Asked>,
    /// What a new guard is told.
    armed: BTreeMap<String, Watched>,
    next: u64,
}

impl Client {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Asked>) {
        loop {
            let stream = self.connect().await;
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::with_capacity(LINE_MAX, read).lines();
            if self.tell_again(&mut write).await.is_err() {
                continue;
            }
            loop {
                tokio::select! {
                    asked = queue.recv() => {
                        let Some(asked) = asked else {
                            return;
                        };
                        let id = self.keep(asked);
                        if self.send(&mut write, id).await.is_err() {
                            break;
                        }
                    }
                    line = lines.next_line() => {
                        let Ok(Some(line)) = line else {
                            break;
                        };
                        match serde_json::from_str(&line) {
                            Ok(say) => self.take(say),
                            Err(error) => tracing::warn!("the guard made no sense: {error}"),
                        }
                    }
                }
            }
            tracing::error!("the guard is gone: another one is started");
        }
    }

    async fn connect(&self) -> UnixStream {
        let mut started: Option<tokio::process::Child> = None;
        loop {
            if let Ok(stream) = UnixStream::connect(&self.starter.socket).await {
                if let Some(mut child) = started {
                    // It outlives this process; while this one lives it is waited for.
                    tokio::spawn(async move { child.wait().await });
                }
                return stream;
            }
            let ended = match &mut started {
                Some(child) => !matches!(child.try_wait(), Ok(None)),
                None => true,
            };
            if ended {
                started = self.spawn();
            }
            sleep(AGAIN).await;
        }
    }

    fn spawn(&self) -> Option<tokio::process::Child> {
        let (program, arguments) = self.starter.command.as_ref()?;
        let mut command = tokio::process::Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // A process group of its own: a signal to this one's does not reach it.
        command.process_group(0).kill_on_drop(false);
        if let Some(log) = &self.starter.log {
            let log = std::fs::File::options().append(true).create(true).open(log);
            match log {
                Ok(log) => {
                    command.stderr(log);
                }
                Err(error) => tracing::warn!("the guard's log: {error}"),
            }
        }
        match command.spawn() {
            Ok(child) => Some(child),
            Err(error) => {
                tracing::error!("no guard was started: {}: {error}", program.display());
                None
            }
        }
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
                let _ = asked.answer.send(stopping);
            }
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
