//! The guard itself: watches the groups that the manager has named, hears the mirrors' daemon, and
//! does what [`Guard`] says.
//!
//! One task; whoever connects is a manager. It ends when it watches nothing and nobody is connected.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::clock;
use crate::core::Time;
use crate::core::guard::{Deed, Guard, Word as GuardWord};
use crate::right::basis::{Basis, Judged};
use crate::right::{Mirrors, Word};

use super::deeds::Deeds;
use super::message::{LINE_MAX, Numbered, Request, Say, Want, Watched};

/// The watchdog is fed this often, in milliseconds.
const FEED_EVERY: u64 = 1000;
/// A guard that watches nothing and has nobody to talk to ends after this, in milliseconds.
const IDLE: u64 = 10_000;
/// Addresses that could not be removed are tried again after this.
const DROP_AGAIN: Duration = Duration::from_millis(200);
/// A right that is held counts for so long before the daemon has said so, in milliseconds.
const HELD_GRACE: u64 = 1000;

#[derive(Debug)]
enum Input {
    Connected(u64, mpsc::UnboundedSender<Say>),
    Request(u64, Request),
    /// A request with this number, and why it makes no sense.
    Unknown(u64, u64, String),
    Gone(u64),
    /// The addresses of a group, by the number of that removal.
    Dropped(String, u64, io::Result<()>),
}

/// What goes on for as long as it is wanted.
struct Removal {
    number: u64,
    task: AbortHandle,
}

impl Drop for Removal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Group {
    watched: Watched,
    guard: Guard,
    basis: Basis,
    /// The right was there since it is watched: from then on its end counts.
    seen_good: bool,
    /// What the guard was told last of the lease.
    good: bool,
    words: mpsc::UnboundedReceiver<Word>,
    /// What its right rests on by a newer configuration. It takes the place of the former from when it is
    /// good: a mirror that has come to it is promoted only once it is watched.
    next: Option<(Basis, mpsc::UnboundedReceiver<Word>)>,
    /// Its addresses are being removed.
    removal: Option<Removal>,
}

struct Server<M, D> {
    mirrors: Arc<M>,
    deeds: D,
    groups: BTreeMap<String, Group>,
    managers: BTreeMap<u64, mpsc::UnboundedSender<Say>>,
    inputs: mpsc::UnboundedSender<Input>,
    /// So many times addresses were removed, or were to be.
    removals: u64,
    fed: Time,
    /// User space is to say that it runs until then.
    alive: Option<Time>,
    idle_since: Time,
    reset: bool,
}

/// Serves managers on `listener` until there is nothing to watch and nobody to talk to.
pub async fn serve<M: Mirrors, D: Deeds>(listener: UnixListener, mirrors: Arc<M>, deeds: D) {
    let (inputs, mut queue) = mpsc::unbounded_channel();
    let mut server = Server {
        mirrors,
        deeds,
        groups: BTreeMap::new(),
        managers: BTreeMap::new(),
        inputs: inputs.clone(),
        removals: 0,
        fed: Time(0),
        alive: None,
        idle_since: clock::now(),
        reset: false,
    };
    let mut connections = 0;
    loop {
        let wait = server.next_deadline().since(clock::now());
        let wake = Instant::now() + Duration::from_millis(wait);
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections += 1;
                connection(connections, stream, inputs.clone());
            },
            input = queue.recv() => if let Some(input) = input {
                server.take(input);
            },
            () = server.hear() => {}
            () = sleep_until(wake) => {}
        }
        server.look();
        let idle = server.groups.is_empty() && server.managers.is_empty() && server.alive.is_none();
        if !idle {
            server.idle_since = clock::now();
        } else if clock::now().since(server.idle_since) >= IDLE {
            return;
        }
    }
}

fn connection(id: u64, stream: UnixStream, inputs: mpsc::UnboundedSender<Input>) {
    let (read, write) = stream.into_split();
    let (says, queue) = mpsc::unbounded_channel();
    let _ = inputs.send(Input::Connected(id, says));
    tokio::spawn(write_all(write, queue));
    tokio::spawn(async move {
        read_all(id, read, &inputs).await;
        let _ = inputs.send(Input::Gone(id));
    });
}

async fn write_all(mut write: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Say>) {
    while let Some(say) = queue.recv().await {
        let Ok(mut line) = serde_json::to_vec(&say) else {
            return;
        };
        line.push(b'\n');
        if write.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn read_all(id: u64, read: OwnedReadHalf, inputs: &mpsc::UnboundedSender<Input>) {
    let mut lines = BufReader::with_capacity(LINE_MAX, read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(request) => {
                let _ = inputs.send(Input::Request(id, request));
            }
            // A manager of a later build: it must not ask the same again and again, and what else it wants is done.
            Err(error) => {
                tracing::warn!("a manager said what makes no sense: {error}");
                let Ok(Numbered { id: number }) = serde_json::from_str(&line) else {
                    return;
                };
                let _ = inputs.send(Input::Unknown(id, number, error.to_string()));
            }
        }
    }
}

impl<M: Mirrors, D: Deeds> Server<M, D> {
    fn take(&mut self, input: Input) {
        match input {
            Input::Connected(id, says) => {
                self.managers.insert(id, says);
            }
            Input::Gone(id) => {
                self.managers.remove(&id);
            }
            Input::Dropped(group, number, dropped) => self.dropped(&group, number, &dropped),
            Input::Unknown(from, id, why) => {
                if let Some(manager) = self.managers.get(&from) {
                    let _ = manager.send(Say::Unknown { id, why });
                }
            }
            Input::Request(from, Request { id, want }) => {
                let stopping = match want {
                    Want::Arm { watched, held } => self.arm(watched, held),
                    Want::Extend { group, ends_ms } => {
                        let group = self.groups.get_mut(&group);
                        group.is_some_and(|group| {
                            group.extend(Time(ends_ms));
                            group.guard.is_stopping()
                        })
                    }
                    Want::Disarm(group) => {
                        self.disarm(&group);
                        false
                    }
                    Want::Alive(within) => {
                        self.alive = (within > 0).then(|| clock::now().after(within));
                        self.rest_if_idle();
                        false
                    }
                    Want::Reset(why) => {
                        // A watchdog that is not held yet would not do it where the kernel does not.
                        self.deeds.feed();
                        self.reset = true;
                        self.deeds.reset(&why);
                        false
                    }
                };
                if let Some(manager) = self.managers.get(&from) {
                    let _ = manager.send(Say::Done { id, stopping });
                }
            }
        }
    }

    /// True if the group is being stopped.
    fn arm(&mut self, watched: Watched, held: bool) -> bool {
        self.deeds.learn(&watched);
        let lease = watched.lease_ends_ms.map(Time);
        if let Some(group) = self.groups.get_mut(&watched.group) {
            // It is active: the end of its right counts, whatever was seen of it.
            group.seen_good |= held;
            group.arm_again(watched, &*self.mirrors);
            return group.guard.is_stopping();
        }
        let now = clock::now();
        // The guard before may have died after it froze the group: whoever thaws it has to know that the right is there.
        let frozen = self.deeds.is_frozen(&watched);
        let basis = match lease {
            Some(ends) => Basis::leased(ends),
            None if held && !frozen => Basis::held_until(&watched.mirrors, now.after(HELD_GRACE)),
            None => Basis::new(&watched.mirrors),
        };
        let mut guard = Guard::new(watched.margin_ms, watched.bound_ms);
        if frozen {
            let _ = guard.handle(now, GuardWord::LeaseEnded);
        }
        let words = if lease.is_some() {
            // Nothing is asked of a daemon.
            mpsc::unbounded_channel().1
        } else {
            self.mirrors.watch(watched.mirrors.clone(), false)
        };
        let group = Group {
            guard,
            basis,
            seen_good: held || frozen || lease.is_some(),
            good: !frozen,
            words,
            next: None,
            removal: None,
            watched: watched.clone(),
        };
        self.groups.insert(watched.group, group);
        false
    }

    fn disarm(&mut self, name: &str) {
        let Some(mut group) = self.groups.remove(name) else {
            return;
        };
        group.removal = None;
        let deeds = group.guard.handle(clock::now(), GuardWord::Stopped);
        self.carry_out(&mut group, deeds);
        // A control group that stays frozen would hold what is started in it next.
        if let Err(error) = self.deeds.freeze(&group.watched, false) {
            tracing::debug!("group {name}: {error}");
        }
        self.rest_if_idle();
    }

    /// A watchdog that is held must be fed, and nobody feeds it where nothing is watched.
    fn rest_if_idle(&mut self) {
        if self.groups.is_empty() && self.alive.is_none() && !self.reset {
            self.deeds.rest();
        }
    }

    /// Waits for a word of the daemon and takes it in.
    async fn hear(&mut self) {
        if self.groups.is_empty() {
            return std::future::pending().await;
        }
        let mut words = Vec::new();
        for (at, group) in self.groups.values_mut().enumerate() {
            let next = group.next.as_mut().map(|(_, words)| words);
            for queue in std::iter::once(&mut group.words).chain(next) {
                words.push(Box::pin(async move {
                    match queue.recv().await {
                        Some(word) => (at, word),
                        None => std::future::pending().await,
                    }
                }));
            }
        }
        let (at, word) = first(words).await;
        if let Word::Says(says) = word
            && let Some(group) = self.groups.values_mut().nth(at)
        {
            let now = clock::now();
            group.basis.take(now, &says);
            if let Some((next, _)) = &mut group.next {
                next.take(now, &says);
            }
        }
    }

    fn next_deadline(&self) -> Time {
        let now = clock::now();
        let mut next = if self.groups.is_empty() && self.alive.is_none() {
            self.idle_since.after(IDLE)
        } else {
            self.fed.after(FEED_EVERY)
        };
        for group in self.groups.values() {
            if let (Judged::Good(Some(until)), true) = (group.basis.judge(now), group.good) {
                next = next.min(until);
            }
            next = next.min(group.guard.deadline().unwrap_or(Time(u64::MAX)));
        }
        next.min(self.alive.unwrap_or(Time(u64::MAX)))
    }

    /// Does what time, and what was heard, ask for.
    fn look(&mut self) {
        let now = clock::now();
        let names: Vec<String> = self.groups.keys().cloned().collect();
        for name in names {
            let Some(mut group) = self.groups.remove(&name) else {
                continue;
            };
            group.take_next(now);
            let mut deeds = Vec::new();
            let judged = group.basis.judge(now);
            let good = matches!(judged, Judged::Good(_));
            group.seen_good |= good;
            if group.seen_good {
                match (judged, group.good) {
                    (Judged::Good(_), false) => {
                        deeds.extend(group.guard.handle(now, GuardWord::Renewed));
                    }
                    (Judged::Ended, true) => {
                        deeds.extend(group.guard.handle(now, GuardWord::LeaseEnded));
                    }
                    (Judged::Refused, _) if !group.guard.is_stopping() => {
                        deeds.extend(group.guard.handle(now, GuardWord::Lost));
                    }
                    _ => {}
                }
                group.good = good;
            }
            deeds.extend(group.guard.handle(now, GuardWord::Timer));
            self.carry_out(&mut group, deeds);
            self.groups.insert(name, group);
        }
        if self.alive.is_some_and(|until| until <= now) && !self.reset {
            self.reset = true;
            let why = "user space has stalled: the manager's monitor was not heard in time";
            self.deeds.reset(why);
        }
        let watching = !self.groups.is_empty() || self.alive.is_some();
        if watching && !self.reset && now.since(self.fed) >= FEED_EVERY {
            self.fed = now;
            self.deeds.feed();
        }
    }

    fn carry_out(&mut self, group: &mut Group, deeds: Vec<Deed>) {
        let name = group.watched.group.clone();
        for deed in deeds {
            // What is said of it comes after it.
            match deed {
                Deed::Freeze | Deed::Thaw => {
                    let frozen = deed == Deed::Freeze;
                    if let Err(error) = self.deeds.freeze(&group.watched, frozen) {
                        tracing::error!("group {name}: {deed:?}: not done: {error}");
                        continue;
                    }
                }
                Deed::DropAddresses => self.drop_addresses(group, Duration::ZERO),
                Deed::SayLost => {
                    for manager in self.managers.values() {
                        let _ = manager.send(Say::Lost(name.clone()));
                    }
                }
                Deed::Reset => {
                    self.reset = true;
                    let bound = group.watched.bound_ms;
                    let why = format!("group {name} has not stopped within {bound} ms");
                    self.deeds.reset(&why);
                }
            }
            tracing::warn!("group {name}: {deed:?}");
        }
    }
}

impl<M: Mirrors, D: Deeds> Server<M, D> {
    /// Has them removed, after a while; what comes of it is an input.
    fn drop_addresses(&mut self, group: &mut Group, after: Duration) {
        self.removals += 1;
        let number = self.removals;
        let removed = self.deeds.drop_addresses(&group.watched);
        let (name, inputs) = (group.watched.group.clone(), self.inputs.clone());
        let task = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let dropped = removed.await;
            let _ = inputs.send(Input::Dropped(name, number, dropped));
        });
        let task = task.abort_handle();
        group.removal = Some(Removal { number, task });
    }

    fn dropped(&mut self, name: &str, number: u64, dropped: &io::Result<()>) {
        let is_it = |group: &Group| matches!(&group.removal, Some(r) if r.number == number);
        // It may have stopped meanwhile.
        let Some(mut group) = self.groups.remove(name) else {
            return;
        };
        if is_it(&group) {
            match dropped {
                Ok(()) => {
                    group.removal = None;
                    let deeds = group.guard.handle(clock::now(), GuardWord::Dropped);
                    self.carry_out(&mut group, deeds);
                }
                Err(error) => {
                    self.drop_addresses(&mut group, DROP_AGAIN);
                    tracing::error!(
                        "group {name}: an address was not removed, and it stays frozen: {error}"
                    );
                }
            }
        }
        self.groups.insert(name.to_owned(), group);
    }
}

impl Group {
    /// The lease of its own ends then.
    fn extend(&mut self, ends: Time) {
        self.basis.extend(ends);
        if let Some((next, _)) = &mut self.next {
            next.extend(ends);
        }
    }

    /// A manager has begun, perhaps with a newer configuration.
    fn arm_again<M: Mirrors>(&mut self, new: Watched, mirrors: &M) {
        let old = self.watched.clone();
        self.watched.become_too(new);
        let now = &self.watched;
        self.guard.set_times(now.margin_ms, now.bound_ms);
        let lease = now.lease_ends_ms.map(Time);
        if let Some(ends) = lease {
            self.extend(ends);
        }
        let now = &self.watched;
        if now.mirrors == old.mirrors && lease.is_some() == old.lease_ends_ms.is_some() {
            return;
        }
        let basis = Basis::new(&now.mirrors).with_lease(lease);
        let words = mirrors.watch(now.mirrors.clone(), false);
        self.next = Some((basis, words));
    }

    /// What it rests on now takes the place of what it rested on before, if it is there.
    fn take_next(&mut self, now: Time) {
        let good = |(next, _): &mut (Basis, _)| matches!(next.judge(now), Judged::Good(_));
        if let Some((basis, words)) = self.next.take_if(good) {
            (self.basis, self.words) = (basis, words);
        }
    }
}

/// What the first of these to be ready comes to.
async fn first<F: Future + Unpin>(mut all: Vec<F>) -> F::Output {
    std::future::poll_fn(|context| {
        for future in &mut all {
            if let std::task::Poll::Ready(output) = std::pin::Pin::new(future).poll(context) {
                return std::task::Poll::Ready(output);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Binds a guard's socket, which nobody but this user may use. `None`: a guard has it.
///
/// # Errors
/// The system refuses.
pub fn bind(path: &Path) -> io::Result<Option<(UnixListener, std::fs::File)>> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let lock = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        // Who could open it could lock it, and keep a guard from starting.
        .mode(0o600)
        .open(path.with_extension("lock"))?;
    lock.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
        Err(std::fs::TryLockError::Error(error)) => return Err(error),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(Some((listener, lock)))
}
