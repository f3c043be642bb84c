//! One attached mirror, from `attach` to `detach`: the kernel's device is served whenever the mirror may
//! be Primary here.
//!
//! A connection that ends is followed by another on the same device. Before the kernel gets a new
//! socket the old session is over, with everything that it had given to the disks: what the kernel
//! sends again can't be overtaken by its older self (*Once*).
//!
//! A device whose mirror has been Primary on the other node is **never** given a socket again: what the
//! kernel holds for it, a file system's memory and its waiting writes, belongs to data that are
//! no more.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kagami_nbd_server::kernel::client::{is_hung_up, socket_pair};
use kagami_nbd_server::kernel::sysfs::Owner;
use kagami_replicator::core::event::Refusal;
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Replication, Role};
use kagami_replicator::core::status::Status;
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::{error, info, warn};

use super::super::engine::Noticed;
use super::device::{DeviceFault, Kernel};
use super::host::{Go, Host, Link};
use super::record::{Record, Records};

/// How often what is waited for is looked at first when nothing is heard of it, ...
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// ... and in the end.
const LOOK_AT_LEAST: Duration = Duration::from_secs(5);
/// Events that belong together come within.
const BURST: Duration = Duration::from_millis(50);
/// Requests that have begun may be answered within, at a stop; the kernel sends the rest again.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// What is known of the device, for the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// It is served.
    Attached,
    /// It is not served now, and why. The kernel keeps its requests, if it is set up.
    Waiting(String),
    /// It will not be served again, and why.
    Stale(String),
}

/// An order to a keeper.
#[derive(Debug)]
pub enum Order {
    /// Take the device down.
    Detach {
        /// Whoever uses it, whatever waits.
        force: bool,
        /// How it went; a keeper that did it ends.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// The daemon stops: leave the device to the next one.
    Stop {
        /// Told when no request of the kernel is in flight here.
        reply: oneshot::Sender<()>,
    },
    /// The kernel holds the connection for dead.
    LinkDead,
}

/// What an attached mirror is.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The mirror's name.
    pub mirror: String,
    /// What the device is known by in the kernel.
    pub identifier: String,
    /// On disk.
    pub record: Record,
}

/// Keeps a mirror attached.
#[derive(Debug)]
pub struct Keeper<H> {
    host: H,
    kernel: Kernel,
    records: Records,
    kept: Kept,
    shown: Arc<Mutex<Shown>>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Our end of the socket: tells whether the kernel's is closed.
    socket: Option<UnixStream>,
    /// It was served by this daemon.
    was_served: bool,
    /// Until the next attempt.
    pause: Duration,
}

/// Why a mirror is not attached now.
#[derive(Debug)]
pub enum Wait {
    /// Something that may pass.
    Refused(Refusal),
    /// Another program took the device down.
    Gone,
}

impl From<Refusal> for Wait {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<DeviceFault> for Wait {
    fn from(fault: DeviceFault) -> Self {
        match fault {
            DeviceFault::Refused(refusal) => Self::Refused(refusal),
            DeviceFault::Gone => Self::Gone,
        }
    }
}

/// A refusal in one line.
fn words(refusal: &Refusal) -> String {
    let mut words = refusal.what.clone();
    if !refusal.facts.is_empty() {
        words.push_str(&format!(" ({})", refusal.facts.join("; ")));
    }
    words
}

/// Runs what blocks where it may.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // It panicked (the release build has ended already), or the runtime ends.
        Err(error) => panic!("work of the daemon's own was lost: {error}"),
    }
}

/// Sets up a device for a mirror that is Primary here, and serves it.
///
/// # Errors
/// Why not; nothing is set up then.
pub async fn connect<H: Host>(
    host: &H,
    kernel: &Kernel,
    mirror: &str,
    identifier: &str,
    device: Option<u32>,
) -> Result<(Link, UnixStream, u32), Wait> {
    let (theirs, ours, probe) = pair().map_err(no_socket)?;
    let (mut link, facts) = host.serve(mirror, ours).await?;
    let (kernel, name) = (kernel.clone(), mirror.to_owned());
    let identifier = identifier.to_owned();
    let made = blocking(move || {
        let made = kernel.connect(device, &identifier, &facts, &theirs);
        if let Ok(index) = made {
            kernel.dress(&name, index, &facts);
        }
        made
    })
    .await;
    match made {
        Ok(index) => Ok((link, probe, index)),
        Err(fault) => {
            link.set(Go::Cut);
            link.ended().await;
            Err(fault.into())
        }
    }
}

/// The kernel's end, ours, and a second hold on ours.
fn pair() -> io::Result<(UnixStream, UnixStream, UnixStream)> {
    let (theirs, ours) = socket_pair()?;
    let probe = ours.try_clone()?;
    Ok((theirs, ours, probe))
}

fn no_socket(error: io::Error) -> Refusal {
    Refusal {
        what: format!("not attached: no socket can be made: {error}"),
        facts: Vec::new(),
        next: "raise the limit of open files".to_owned(),
    }
}

impl<H: Host> Keeper<H> {
    /// A keeper, with a session if one is there already.
    pub fn new(
        host: H,
        kernel: Kernel,
        records: Records,
        kept: Kept,
        orders: mpsc::UnboundedReceiver<Order>,
        shown: Arc<Mutex<Shown>>,
    ) -> Self {
        Self {
            host,
            kernel,
            records,
            kept,
            shown,
            orders,
            socket: None,
            was_served: false,
            pause: LOOK_EVERY,
        }
    }

    /// Keeps the mirror attached until it is detached or the daemon stops. `session`: it was
    /// connected just now.
    pub async fn run(mut self, session: Option<(Link, UnixStream)>) {
        let mut events = self.host.events();
        let mut link = None;
        if let Some((session, socket)) = session {
            self.serves(socket);
            link = Some(session);
        }
        loop {
            let go_on = match link.take() {
                Some(session) => self.serve(session, &mut link).await,
                None => self.wait(&mut events, &mut link).await,
            };
            if !go_on {
                return;
            }
        }
    }

    fn show(&self, shown: Shown) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    fn device(&self) -> String {
        self.kernel
            .path(self.kept.record.device)
            .display()
            .to_string()
    }

    fn serves(&mut self, socket: UnixStream) {
        self.socket = Some(socket);
        self.was_served = true;
        self.pause = LOOK_EVERY;
        self.show(Shown::Attached);
    }

    /// Until the session ends or an order is carried out. False: the keeper is done.
    async fn serve(&mut self, mut session: Link, link: &mut Option<Link>) -> bool {
        let mirror = self.kept.mirror.clone();
        loop {
            let order = tokio::select! {
                () = session.ended() => {
                    // Now the kernel sees the end, too.
                    self.socket = None;
                    warn!(mirror, device = self.device(), "the kernel's connection ended; it gets another");
                    return true;
                }
                order = self.orders.recv() => order,
            };
            match order {
                Some(Order::LinkDead) => {
                    let is_dead = self.socket.as_ref().map(is_hung_up);
                    if matches!(is_dead, Some(Ok(true))) {
                        // What is unread in the socket is sent again: it is not carried out twice.
                        session.set(Go::Cut);
                    }
                }
                Some(Order::Detach { force, reply }) => {
                    let detached = self.detach(force, Some(&mut session)).await;
                    let done = detached.is_ok();
                    let _ = reply.send(detached);
                    if done {
                        return false;
                    }
                }
                Some(Order::Stop { reply }) => {
                    self.leave(&mut session).await;
                    let _ = reply.send(());
                    return false;
                }
                None => {
                    *link = None;
                    return false;
                }
            }
        }
    }

    /// Tries to serve, then waits for what keeps it from that. False: the keeper is done.
    async fn wait(
        &mut self,
        events: &mut broadcast::Receiver<Noticed>,
        link: &mut Option<Link>,
    ) -> bool {
        let mirror = self.kept.mirror.clone();
        if let Some(why) = self.kept.record.stale.clone() {
            if self.owner().await == Owner::Nobody {
                return self.forget("nothing is left of the device").await;
            }
            self.show(Shown::Stale(why));
        } else {
            match self.attempt().await {
                Ok((session, socket)) => {
                    info!(mirror, device = self.device(), "attached again");
                    self.serves(socket);
                    *link = Some(session);
                    return true;
                }
                Err(Wait::Gone) if self.was_served => {
                    return self.forget("another program took it down").await;
                }
                Err(Wait::Gone) => self.waits(format!(
                    "{} was taken down while it was in use; end that use, and it is attached anew",
                    self.device()
                )),
                Err(Wait::Refused(refusal)) => {
                    if !self.look(None).await {
                        return false;
                    }
                    if self.kept.record.stale.is_none() {
                        self.waits(words(&refusal));
                    }
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(self.pause) => {
                self.pause = (self.pause * 2).min(LOOK_AT_LEAST);
                true
            }
            order = self.orders.recv() => self.ordered(order).await,
            notice = heard(events, &mirror) => {
                self.pause = LOOK_EVERY;
                // A burst of events is one reason to look.
                tokio::time::sleep(BURST).await;
                self.look(notice.as_ref()).await
            }
        }
    }

    fn waits(&self, why: String) {
        let news = Shown::Waiting(why.clone());
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if *shown != news {
            *shown = news;
            warn!(
                mirror = self.kept.mirror,
                device = self.device(),
                "not attached yet: {why}"
            );
        }
    }

    /// An order while nothing is served. False: the keeper is done.
    async fn ordered(&mut self, order: Option<Order>) -> bool {
        match order {
            Some(Order::LinkDead) => true,
            Some(Order::Detach { force, reply }) => {
                let detached = self.detach(force, None).await;
                let done = detached.is_ok();
                let _ = reply.send(detached);
                !done
            }
            Some(Order::Stop { reply }) => {
                let _ = reply.send(());
                false
            }
            None => false,
        }
    }

    async fn owner(&self) -> Owner {
        let (kernel, index) = (self.kernel.clone(), self.kept.record.device);
        blocking(move || kernel.sysfs().owner(index)).await
    }

    fn is_ours(&self, owner: &Owner) -> bool {
        matches!(owner, Owner::Connected { backend: Some(found), .. } if *found == self.kept.identifier)
    }

    /// Promotes, and gives the kernel a socket: of the device that waits, or of a new one.
    async fn attempt(&mut self) -> Result<(Link, UnixStream), Wait> {
        let mirror = self.kept.mirror.clone();
        let owner = self.owner().await;
        if owner == Owner::Nobody && self.was_served {
            return Err(Wait::Gone);
        }
        let status = self.host.status(&mirror).await;
        if status.is_none_or(|status| status.role != Role::Primary) {
            self.host.promote(&mirror).await?;
        }
        let index = self.kept.record.device;
        let (session, socket) = if self.is_ours(&owner) {
            let (kernel, identifier) = (self.kernel.clone(), self.kept.identifier.clone());
            let ours =
                blocking(move || kernel.reconfigure(index, &identifier, &socket_pair)).await?;
            let probe = ours.try_clone().map_err(no_socket)?;
            let (session, facts) = self.host.serve(&mirror, ours).await?;
            let (kernel, name) = (self.kernel.clone(), mirror.clone());
            blocking(move || kernel.dress(&name, index, &facts)).await;
            (session, probe)
        } else {
            let (session, probe, _) = connect(
                &self.host,
                &self.kernel,
                &mirror,
                &self.kept.identifier,
                Some(index),
            )
            .await?;
            (session, probe)
        };
        self.kept.record.stopped_at = None;
        self.write().await;
        Ok((session, socket))
    }

    /// Looks whether the other node has been Primary. False: the keeper is done.
    async fn look(&mut self, notice: Option<&Notice>) -> bool {
        if self.kept.record.stale.is_some() {
            return true;
        }
        let told = match notice {
            Some(Notice::Peer {
                role: Role::Primary,
                ..
            }) => Some(OVER_THERE),
            Some(Notice::Replication {
                to: Replication::SyncTarget,
                ..
            }) => Some(OVERWRITTEN),
            _ => None,
        };
        let why = match told {
            Some(why) => Some(why),
            None => {
                let status = self.host.status(&self.kept.mirror).await;
                status.as_ref().and_then(moved)
            }
        };
        let Some(why) = why else { return true };
        if !self.is_ours(&self.owner().await) {
            return self.forget(why).await;
        }
        let mirror = &self.kept.mirror;
        error!(mirror, device = self.device(), "not attached again: {why}");
        self.kept.record.stale = Some(why.to_owned());
        self.write().await;
        self.show(Shown::Stale(why.to_owned()));
        true
    }

    /// The mirror is no longer attached here. Gives false, for the keeper's end.
    async fn forget(&mut self, why: &str) -> bool {
        let mirror = self.kept.mirror.clone();
        warn!(mirror, device = self.device(), "no longer attached: {why}");
        let (records, kernel) = (self.records.clone(), self.kernel.clone());
        let index = self.kept.record.device;
        let removed = blocking(move || {
            kernel.remove_link(&mirror, index);
            records.remove(&mirror)
        })
        .await;
        if let Err(fault) = removed {
            error!("what is attached can't be remembered: {fault}");
        }
        false
    }

    async fn write(&self) {
        let (records, kept) = (self.records.clone(), self.kept.clone());
        let written = blocking(move || records.write(&kept.mirror, &kept.record)).await;
        if let Err(fault) = written {
            error!("what is attached can't be remembered: {fault}");
        }
    }

    /// Leaves the device to the next daemon: nothing fails, the kernel keeps what was not answered.
    async fn leave(&mut self, session: &mut Link) {
        session.set(Go::Leave);
        if tokio::time::timeout(LEAVE_PATIENCE, session.ended())
            .await
            .is_err()
        {
            // It waits for a peer or a permission. Its answer is dropped, and it is sent again.
            session.set(Go::Cut);
        }
        let status = self.host.status(&self.kept.mirror).await;
        let generation = status.and_then(|status| status.generation);
        self.kept.record.stopped_at = generation.map(|generation| generation.tag);
        self.write().await;
        // Only now: a kernel that sees its end earlier would say so to a daemon that listens.
        self.socket = None;
    }

    /// Takes the device down, if nobody uses it.
    async fn detach(&mut self, force: bool, session: Option<&mut Link>) -> Result<(), Refusal> {
        let mirror = self.kept.mirror.clone();
        let index = self.kept.record.device;
        let served = session.is_some();
        let is_ours = self.is_ours(&self.owner().await);
        let held = if is_ours && !force {
            let kernel = self.kernel.clone();
            let held = blocking(move || kernel.hold(index, served)).await;
            Some(held.map_err(|fault| gone(fault, &self.device()))?)
        } else {
            None
        };
        if force {
            warn!(
                mirror,
                device = self.device(),
                "taken down by force: what waits there fails"
            );
        }
        let fault = |fault: super::record::RecordFault| Refusal {
            what: format!("not detached: {fault}"),
            facts: Vec::new(),
            next: "make room there, or put the folder right, and detach again".to_owned(),
        };
        let (records, name) = (self.records.clone(), mirror.clone());
        // First: a crash in between must not attach it again.
        blocking(move || records.remove(&name))
            .await
            .map_err(fault)?;
        if is_ours {
            let kernel = self.kernel.clone();
            match blocking(move || kernel.disconnect(index)).await {
                Ok(()) | Err(DeviceFault::Gone) => {}
                Err(DeviceFault::Refused(refusal)) => {
                    self.write().await;
                    return Err(refusal);
                }
            }
        }
        if let Some(session) = session {
            if tokio::time::timeout(LEAVE_PATIENCE, session.ended())
                .await
                .is_err()
            {
                session.set(Go::Cut);
            }
            self.socket = None;
        }
        let kernel = self.kernel.clone();
        let name = mirror.clone();
        blocking(move || {
            drop(held);
            kernel.remove_link(&name, index);
        })
        .await;
        info!(mirror, device = self.device(), "detached");
        Ok(())
    }
}

fn gone(fault: DeviceFault, device: &str) -> Refusal {
    match fault {
        DeviceFault::Refused(refusal) => refusal,
        DeviceFault::Gone => Refusal {
            what: format!("not detached: {device} was taken down by another program"),
            facts: Vec::new(),
            next: "see `kagami status`".to_owned(),
        },
    }
}

/// Why a device is stale.
const OVER_THERE: &str = "the other node has become Primary: what this machine's kernel holds for the device is not what the mirror holds now";
/// Likewise.
const OVERWRITTEN: &str = "this copy is overwritten with the other node's data: what this machine's kernel holds for the device is not what the mirror holds now";

/// Whether the mirror has moved to the other node, and why.
fn moved(status: &Status) -> Option<&'static str> {
    if status.role == Role::Primary {
        None
    } else if status.peer_role == Some(Role::Primary) {
        Some(OVER_THERE)
    } else if status.replication == Replication::SyncTarget {
        Some(OVERWRITTEN)
    } else {
        None
    }
}

/// The next thing that happens to a mirror; `None`: events were missed.
async fn heard(events: &mut broadcast::Receiver<Noticed>, mirror: &str) -> Option<Notice> {
    loop {
        match events.recv().await {
            Ok(noticed) if noticed.mirror == mirror => return Some(noticed.notice),
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => return None,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Whether a device that waits belongs to what the mirror holds, as a daemon finds both at its start.
///
/// A Primary that died has it in its record until another takes its place (docs/protocol.md §1,
/// `was_primary`); one that was stopped cleanly has left the generation that it stopped at.
pub fn is_current(record: &Record, status: &Status) -> bool {
    let generation = status.generation.map(|generation| generation.tag);
    record.stale.is_none()
        && (status.role == Role::Primary
            || status.was_primary
            || (record.stopped_at.is_some() && record.stopped_at == generation))
}
