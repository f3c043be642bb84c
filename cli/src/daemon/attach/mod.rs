//! Mirrors as block devices of this machine's kernel: `kagami attach`, `kagami detach`, and what a
//! daemon that starts again finds.
//!
//! Each attached mirror has a [`keeper`]: a task that serves the device whenever the mirror may be Primary
//! here ([`bring_up`], [`take_down`]), and never again once the mirror has [`moved`]. [`device`] is the
//! kernel's side, [`over_ublk`] what is different where its driver is ublk, [`helper`] what is done to a
//! device by another process, [`record`] what is remembered on disk, [`host`] the mirror's side, [`changing`] who may
//! change what is attached. Only a daemon that has the stores of a mirror, behind their fence, keeps its device.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kagami_nbd_server::kernel::{Events, Nbd};
use kagami_replicator::core::event::{Refusal, Reply};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

pub mod bring_up;
mod changing;
pub mod device;
pub mod helper;
pub mod host;
pub mod keeper;
#[cfg(test)]
mod made;
#[cfg(test)]
mod made_nbd;
#[cfg(test)]
mod made_ublk;
pub mod moved;
mod over_ublk;
pub mod record;
mod take_down;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_nbd;
#[cfg(test)]
mod tests_ublk;
pub mod ublk;
pub mod ublk_child;

use super::engine::Attached;
use super::report::wall_ms;
use crate::config::Config;
use crate::config::value::spell_hex;
use crate::control::driver::{DeviceId, Driver, Wanted};
use crate::control::report::{DeviceReport, DeviceState};
use bring_up::{Session, Wait, blocking, demoted_meanwhile};
use changing::{Changing, stops};
use device::Kernel;
use host::Host;
use keeper::{Keeper, Kept, Order, Shown};
use moved::{Moved, Moves};
use record::{Record, Records};

/// A keeper stops within; what it still waits for is dropped, and sent again by the kernel.
const STOP_PATIENCE: Duration = Duration::from_secs(8);
/// One that did not, because it waits for the kernel or a child, notes for the next daemon how it leaves its device,
/// within. Its stop is over then.
const NOTE_PATIENCE: Duration = Duration::from_secs(2);
/// An attach that is under way at a stop has its device within: all that it waits for after this node is Primary. What
/// is left then, the next daemon holds for stale.
const CHANGE_PATIENCE: Duration = over_ublk::MAKE_PATIENCE;
/// A [stop](Attachments::stop) takes no longer.
pub const LEAVE_ALL_PATIENCE: Duration = Duration::from_secs(
    CHANGE_PATIENCE.as_secs() + STOP_PATIENCE.as_secs() + NOTE_PATIENCE.as_secs(),
);
/// How often the kernel's driver is looked for while a device is waited for.
const DRIVER_EVERY: Duration = Duration::from_secs(5);

/// The attached mirrors of a daemon. Clones are handles on the same.
#[derive(Clone, Debug)]
pub struct Attachments<H> {
    inner: Arc<Inner<H>>,
}

#[derive(Debug)]
struct Inner<H> {
    host: H,
    kernel: Kernel,
    records: Records,
    /// Identifier and uuid of each mirror of the configuration.
    mirrors: BTreeMap<String, (String, String)>,
    keepers: Mutex<BTreeMap<String, Entry>>,
    /// What happens to a mirror from before it is open, until it is looked at.
    moves: Mutex<BTreeMap<String, Moves>>,
    changing: watch::Sender<Changing>,
    listener: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Entry {
    device: DeviceId,
    since_ms: u64,
    shown: Arc<Mutex<Shown>>,
    orders: mpsc::UnboundedSender<Order>,
    /// To leave at once.
    last_call: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// A lock that a panic elsewhere does not poison: what it guards is whole between any two steps.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a mirror's device is known by in the kernel: this mirror, on this node.
pub fn identifier(mirror: &[u8; 16], node: u64) -> String {
    format!("kagami-{}-{node:016x}", spell_hex(mirror))
}

fn refusal_of(fault: impl Into<Wait>) -> Refusal {
    match fault.into() {
        Wait::Refused(refusal) => refusal,
        Wait::Gone | Wait::Moved(_) | Wait::Stale(_) | Wait::Ordered(_) => Refusal {
            what: "not attached: the device was taken down at once by another program".to_owned(),
            facts: Vec::new(),
            next: "attach it again".to_owned(),
        },
    }
}

impl<H: Host> Attachments<H> {
    /// Nothing is kept yet. `state`: the node's state folder.
    pub fn new(host: H, kernel: Kernel, config: &Config, state: &Path) -> Self {
        let mirrors = config.mirrors.iter().map(|mirror| {
            let identifier = identifier(&mirror.uuid, config.node.id);
            (mirror.name.clone(), (identifier, spell_hex(&mirror.uuid)))
        });
        Self {
            inner: Arc::new(Inner {
                host,
                kernel,
                records: Records::of(state),
                mirrors: mirrors.collect(),
                keepers: Mutex::default(),
                moves: Mutex::default(),
                changing: watch::Sender::default(),
                listener: Mutex::default(),
            }),
        }
    }

    /// What happens to a mirror is heard from now on. To be called before it is opened.
    pub fn hear(&self, mirror: &str) {
        let moves = Moves::new(mirror, self.inner.host.events());
        lock(&self.inner.moves).insert(mirror.to_owned(), moves);
    }

    /// Takes back what was attached: a mirror that is remembered, or a device of the kernel that is this
    /// node's mirror. A keeper does the rest. To be called when the mirror is open and before
    /// anybody can order anything of it; a daemon that stops leaves it to the next.
    pub async fn resume(&self, mirror: &str) {
        let heard = lock(&self.inner.moves).remove(mirror);
        let moves = heard.unwrap_or_else(|| Moves::new(mirror, self.inner.host.events()));
        let Ok(_change) = self.change(mirror) else {
            return;
        };
        let Some((identifier, uuid)) = self.inner.mirrors.get(mirror) else {
            return;
        };
        let Some(status) = self.inner.host.status(mirror).await else {
            return;
        };
        let (kernel, records) = (self.inner.kernel.clone(), self.inner.records.clone());
        let (name, known_by) = (mirror.to_owned(), identifier.clone());
        let (found, read) = blocking(move || {
            let read = records.read(&name);
            let remembered = read.as_ref().ok().and_then(Option::as_ref);
            let remembered = remembered.map(Record::id);
            (kernel.find(&known_by, remembered), read)
        })
        .await;
        let mut record = match (read, found) {
            (Ok(Some(record)), _) if record.mirror == *uuid => record,
            (Ok(_), None) => return,
            // The kernel's word is enough: a crash came between it and the file.
            (Ok(_), Some(id)) => Record::new(uuid, id, wall_ms()),
            (Err(fault), None) => {
                return error!(
                    mirror,
                    "whether it was attached is not known: {fault}; put it right, or remove the file and attach it again"
                );
            }
            (Err(fault), Some(id)) => {
                warn!(
                    mirror,
                    "what was attached is found in the kernel alone: {fault}"
                );
                Record::new(uuid, id, wall_ms())
            }
        };
        if let Some(id) = found {
            record.set_id(id);
            if !moved::is_current(&record, &status) && record.stale.is_none() {
                record.stale = Some(Moved::Unseen.words());
            }
        } else if record.stale.is_some() {
            // Whoever used the device is gone with the kernel that had it: a stale one is none.
            record.stale = None;
            record.stopped_at = None;
        }
        if let Some(why) = &record.stale {
            error!(mirror, device = %record.id(), "not attached again: {why}");
        }
        let kept = Kept {
            mirror: mirror.to_owned(),
            identifier: identifier.clone(),
            record,
        };
        self.keep(kept, None, moves);
    }

    /// Attaches a mirror. `unless_primary`: why this node is not made Primary for that, if it is not.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub async fn attach(
        &self,
        mirror: &str,
        wanted: Wanted,
        unless_primary: Option<Refusal>,
    ) -> Result<Attached, Refusal> {
        let inner = &*self.inner;
        let _change = self.change(mirror)?;
        if let Some(kept) = self.kept(mirror) {
            return self.again(mirror, wanted, &kept);
        }
        let Some((identifier, uuid)) = inner.mirrors.get(mirror).cloned() else {
            return Err(Refusal {
                what: "not attached: it came into the configuration after the daemon began"
                    .to_owned(),
                facts: Vec::new(),
                next: "restart the daemon".to_owned(),
            });
        };
        if let Some(refusal) = &unless_primary
            && !self.is_primary(mirror).await
        {
            return Err(refusal.clone());
        }
        let kernel = inner.kernel.clone();
        // Before anything is changed: a node that can't attach needn't be Primary.
        let known_by = identifier.clone();
        blocking(move || kernel.check(wanted, &known_by))
            .await
            .map_err(refusal_of)?;
        let mut changing = inner.changing.subscribe();
        let promoted = tokio::select! {
            promoted = self.promote(mirror, unless_primary) => promoted?,
            // It may wait for an arbiter as long as that is away. What it comes to is demoted with all mirrors.
            _ = changing.wait_for(|changing| changing.closed) => return Err(stops()),
        };
        let (host, kernel) = (&inner.host, &inner.kernel);
        // From before it is served: its keeper comes later.
        let moves = Moves::new(mirror, host.events());
        let Some(term) = host.term(mirror).await else {
            return Err(demoted_meanwhile());
        };
        let of = (mirror, term);
        let made = bring_up::connect(host, kernel, of, &identifier, wanted).await;
        let (session, id) = match made {
            Ok(made) => made,
            Err(wait) => {
                self.give_up(mirror, promoted).await;
                return Err(refusal_of(wait));
            }
        };
        let record = Record::new(&uuid, id, wall_ms());
        let (records, name, written) = (inner.records.clone(), mirror.to_owned(), record.clone());
        if let Err(fault) = blocking(move || records.write(&name, &written)).await {
            // Nobody uses it yet: better none than one that a crash forgets.
            bring_up::undo(kernel, session, id).await;
            self.give_up(mirror, promoted).await;
            return Err(Refusal {
                what: format!("not attached: it can't be remembered: {fault}"),
                facts: Vec::new(),
                next: "make room there, or put the folder right, and attach again".to_owned(),
            });
        }
        // Until its keeper is there nobody who demotes the mirror sees the device; from then on nobody can.
        if host.term(mirror).await != Some(term) {
            bring_up::undo(kernel, session, id).await;
            let (records, name) = (inner.records.clone(), mirror.to_owned());
            if let Err(fault) = blocking(move || records.remove(&name)).await {
                warn!(
                    mirror,
                    "what was not attached is remembered as attached: {fault}"
                );
            }
            return Err(demoted_meanwhile());
        }
        info!(mirror, device = %inner.kernel.path(id).display(), "attached");
        let kept = Kept {
            mirror: mirror.to_owned(),
            identifier,
            record,
        };
        self.keep(kept, Some(session), moves);
        Ok(self.attached(mirror, id, false))
    }

    async fn is_primary(&self, mirror: &str) -> bool {
        self.inner.host.term(mirror).await.is_some()
    }

    /// Makes this node Primary, if it may be; true if it was not.
    async fn promote(
        &self,
        mirror: &str,
        unless_primary: Option<Refusal>,
    ) -> Result<bool, Refusal> {
        if self.is_primary(mirror).await {
            return Ok(false);
        }
        if let Some(refusal) = unless_primary {
            return Err(refusal);
        }
        match self.inner.host.promote(mirror).await {
            Ok(reply) => Ok(reply == Reply::Done),
            Err(refusal) => Err(Refusal {
                what: format!(
                    "not attached: this node may not be Primary: {}",
                    refusal.what
                ),
                ..refusal
            }),
        }
    }

    /// What was refused leaves the roles as they were.
    async fn give_up(&self, mirror: &str, promoted: bool) {
        if promoted && let Err(refusal) = self.inner.host.demote(mirror).await {
            warn!(
                mirror,
                "not attached, and Primary still: {}; {}", refusal.what, refusal.next
            );
        }
    }

    fn attached(&self, mirror: &str, id: DeviceId, already: bool) -> Attached {
        Attached {
            device: self.inner.kernel.path(id).display().to_string(),
            link: self.inner.kernel.link(mirror).display().to_string(),
            already,
        }
    }

    /// The answer to an attach of what is kept already.
    fn again(
        &self,
        mirror: &str,
        wanted: Wanted,
        (id, shown): &(DeviceId, Shown),
    ) -> Result<Attached, Refusal> {
        let path = self.inner.kernel.path(*id);
        let path = path.display();
        let refused = |what: String, facts, next: &str| {
            let next = next.to_owned();
            Err(Refusal { what, facts, next })
        };
        match shown {
            Shown::Attached if wanted.is(*id) => Ok(self.attached(mirror, *id, true)),
            Shown::Attached => refused(
                format!("not attached: it is attached already, as {path}"),
                Vec::new(),
                "detach it first (`kagami detach`)",
            ),
            Shown::Waiting(why) => refused(
                format!("not attached: {path} waits, and is attached by itself when it can be"),
                vec![why.clone()],
                "put right what it waits for, or `kagami detach` it",
            ),
            Shown::Stale(why) => refused(
                format!("not attached: {path} is stale"),
                vec![why.clone()],
                "end who uses it (`umount -l`), then `kagami detach --force` and attach again",
            ),
        }
    }

    /// Detaches a mirror.
    ///
    /// # Errors
    /// Who uses it, or why not.
    pub async fn detach(&self, mirror: &str, force: bool) -> Result<Reply, Refusal> {
        let _change = self.change(mirror)?;
        let orders = {
            let keepers = lock(&self.inner.keepers);
            keepers
                .get(mirror)
                .filter(|entry| !entry.task.is_finished())
                .map(|entry| entry.orders.clone())
        };
        let nothing = || Ok(Reply::Nothing("it is not attached".to_owned()));
        let Some(orders) = orders else {
            return nothing();
        };
        let (reply, answer) = oneshot::channel();
        if orders.send(Order::Detach { force, reply }).is_err() {
            return nothing();
        }
        match answer.await {
            Ok(done) => done?,
            // It ended by itself just now.
            Err(_) => return nothing(),
        }
        lock(&self.inner.keepers).remove(mirror);
        Ok(Reply::Done)
    }

    /// Device and state of a mirror that is kept.
    fn kept(&self, mirror: &str) -> Option<(DeviceId, Shown)> {
        let keepers = lock(&self.inner.keepers);
        let entry = keepers
            .get(mirror)
            .filter(|entry| !entry.task.is_finished())?;
        let shown = lock(&entry.shown).clone();
        Some((entry.device, shown))
    }

    /// The device of a mirror that is kept, as `/dev/nbdN`.
    pub fn device_of(&self, mirror: &str) -> Option<String> {
        let (id, _) = self.kept(mirror)?;
        Some(self.inner.kernel.path(id).display().to_string())
    }

    /// The device of a mirror, for its status.
    pub fn report(&self, mirror: &str) -> Option<DeviceReport> {
        let (id, shown) = self.kept(mirror)?;
        let since_ms = lock(&self.inner.keepers).get(mirror)?.since_ms;
        let (state, why) = match shown {
            Shown::Attached => (DeviceState::Attached, None),
            Shown::Waiting(why) => (DeviceState::Waiting, Some(why)),
            Shown::Stale(why) => (DeviceState::Stale, Some(why)),
        };
        let kernel = &self.inner.kernel;
        Some(DeviceReport {
            path: kernel.path(id).display().to_string(),
            link: kernel.link(mirror).display().to_string(),
            state,
            why,
            mounted: kernel.mounted(id),
            since_ms,
        })
    }

    /// Leaves all devices to the next daemon: they stay, and the kernel keeps what was not answered.
    pub async fn stop(&self) {
        self.stop_within(STOP_PATIENCE).await;
    }

    async fn stop_within(&self, patience: Duration) {
        let inner = &self.inner;
        inner
            .changing
            .send_modify(|changing| changing.closed = true);
        // What has begun comes to a device with a keeper, which then leaves it as it should be left, or to none.
        let mut changing = inner.changing.subscribe();
        let ended = changing.wait_for(|changing| changing.mirrors.is_empty());
        if tokio::time::timeout(CHANGE_PATIENCE, ended).await.is_err() {
            warn!("a device is still being attached or detached: it is left in the middle of that");
        }
        let entries = std::mem::take(&mut *lock(&self.inner.keepers));
        let mut stopping = Vec::new();
        for (mirror, entry) in entries {
            let (reply, done) = oneshot::channel();
            let told = entry.orders.send(Order::Stop { reply }).is_ok();
            stopping.push((mirror, entry, told.then_some(done)));
        }
        // For all together: a state folder that does not answer holds up each of them.
        let deadline = tokio::time::Instant::now() + patience;
        let mut called = Vec::new();
        for (mirror, entry, done) in stopping {
            if let Some(done) = done
                && tokio::time::timeout_at(deadline, done).await.is_err()
            {
                warn!(mirror, "its device is left in the middle of a change");
                // It has ended since: then it has nothing to note.
                let _ = entry.last_call.send(());
                called.push(entry.task);
            } else {
                entry.task.abort();
            }
        }
        let deadline = tokio::time::Instant::now() + NOTE_PATIENCE;
        for mut task in called {
            // An error: it panicked, and has said so.
            let _ = tokio::time::timeout_at(deadline, &mut task).await;
            task.abort();
        }
        if let Some(listener) = lock(&self.inner.listener).take() {
            listener.abort();
        }
    }

    fn keep(&self, kept: Kept, session: Option<Session>, moves: Moves) {
        if kept.record.driver == Driver::Nbd {
            self.listen();
        }
        let inner = &self.inner;
        let (orders, received) = mpsc::unbounded_channel();
        let begin = if session.is_some() {
            Shown::Attached
        } else {
            Shown::Waiting("it is being taken back".to_owned())
        };
        let shown = Arc::new(Mutex::new(begin));
        let (mirror, device) = (kept.mirror.clone(), kept.record.id());
        let since_ms = kept.record.since_ms;
        let with = (
            inner.host.clone(),
            inner.kernel.clone(),
            inner.records.clone(),
        );
        let (last_call, called) = oneshot::channel();
        let keeper = Keeper::new(with, kept, moves, received, Arc::clone(&shown));
        let entry = Entry {
            device,
            since_ms,
            shown,
            orders,
            last_call,
            task: tokio::spawn(keeper.run(session, called)),
        };
        lock(&inner.keepers).insert(mirror, entry);
    }

    /// Hears from the kernel which connections of nbd it holds for dead, from the first device on.
    fn listen(&self) {
        let mut listener = lock(&self.inner.listener);
        if listener.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let this = self.clone();
        *listener = Some(tokio::spawn(async move { this.hear_dead().await }));
    }

    async fn hear_dead(&self) {
        let family = loop {
            let open = Arc::clone(&self.inner.kernel.open);
            let found = blocking(move || Some(Nbd::new(open().ok()?).ok()?.family())).await;
            match found {
                Some(family) => break family,
                // The module may be loaded later than this daemon.
                None => tokio::time::sleep(DRIVER_EVERY).await,
            }
        };
        let events = match Events::listen(family) {
            Ok(events) => events,
            // The end of a session says the same, unless that waits for memory.
            Err(error) => return debug!("dead connections are not heard of: {error}"),
        };
        loop {
            match events.dead().await {
                Ok(devices) => {
                    let keepers = lock(&self.inner.keepers);
                    let dead = keepers
                        .values()
                        .filter(|entry| entry.device.driver == Driver::Nbd)
                        .filter(|entry| devices.contains(&entry.device.index));
                    for entry in dead {
                        // Its keeper may have ended: then nobody minds.
                        let _ = entry.orders.send(Order::LinkDead);
                    }
                }
                Err(error) => return debug!("dead connections are no longer heard of: {error}"),
            }
        }
    }
}
