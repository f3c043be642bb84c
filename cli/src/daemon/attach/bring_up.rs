//! A device is given to a mirror, or a mirror's device is served again.
//!
//! Both begin with this node being Primary. Of nbd a session serves our end of a socket pair; how it is with
//! ublk is in [`super::over_ublk`].

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kagami_nbd_server::kernel::client::socket_pair;
use kagami_replicator::core::event::Refusal;
use kagami_replicator::core::state::{Connection, Role};
use tracing::error;

use super::device::{DeviceFault, Kernel, Owner};
use super::host::{Go, Host, Link};
use super::keeper::{Keeper, Order};
use super::moved::Moved;
use super::over_ublk;
use super::take_down::hang_up;
use crate::control::driver::{DeviceId, Driver, Wanted};

/// A peer that lives is met within. A daemon that has just started waits so long before it is made Primary
/// without the peer: that one may be Primary by now.
const MEETING_PATIENCE: Duration = Duration::from_secs(5);

/// Why a mirror is not attached now.
#[derive(Debug)]
pub enum Wait {
    /// Something that may pass.
    Refused(Refusal),
    /// Another program took the device down.
    Gone,
    /// What the kernel holds is not what the mirror holds.
    Moved(Moved),
    /// It will never be served again, and why.
    Stale(String),
    /// An order came first; `None`: nobody gives any more.
    Ordered(Option<Order>),
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

/// A device that is served.
#[derive(Debug)]
pub struct Session {
    /// To whom serves it.
    pub link: Link,
    /// Of nbd, our end of the socket: tells whether the kernel's is closed.
    pub socket: Option<UnixStream>,
}

impl Session {
    /// One of ublk.
    pub fn queues(link: Link) -> Self {
        Self { link, socket: None }
    }
}

/// Runs what blocks where it may.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // It panicked (the release build has ended already), or the runtime ends.
        Err(error) => panic!("work of the daemon's own was lost: {error}"),
    }
}

/// Sets up a device for a mirror that is Primary here in that term, and serves it.
///
/// # Errors
/// Why not; nothing is set up then.
pub async fn connect<H: Host>(
    host: &H,
    kernel: &Kernel,
    (mirror, term): (&str, u64),
    identifier: &str,
    wanted: Wanted,
) -> Result<(Session, DeviceId), Wait> {
    match wanted.driver() {
        Driver::Nbd => connect_nbd(host, kernel, (mirror, term), identifier, wanted.index).await,
        Driver::Ublk => {
            over_ublk::make(host, kernel, (mirror, term), identifier, wanted.index).await
        }
    }
}

/// Takes a device down that was connected just now.
pub async fn undo(kernel: &Kernel, mut session: Session, id: DeviceId) {
    match id.driver {
        Driver::Nbd => {
            hang_up(&session.link, session.socket.as_ref());
            let kernel = kernel.clone();
            let _ = blocking(move || kernel.disconnect(id.index)).await;
            session.link.ended().await;
        }
        Driver::Ublk => over_ublk::unmake(kernel, Some(session.link), id).await,
    }
}

async fn connect_nbd<H: Host>(
    host: &H,
    kernel: &Kernel,
    (mirror, term): (&str, u64),
    identifier: &str,
    device: Option<u32>,
) -> Result<(Session, DeviceId), Wait> {
    let (theirs, ours, probe) = pair().map_err(no_socket)?;
    let (mut link, facts) = host.serve(mirror, term, ours).await?;
    let (kernel, name) = (kernel.clone(), mirror.to_owned());
    let identifier = identifier.to_owned();
    let made = blocking(move || {
        let made = kernel.connect(device, &identifier, &facts, &theirs);
        let made = made.map(DeviceId::nbd);
        if let Ok(id) = made {
            kernel.dress(&name, id, &facts);
        }
        made
    })
    .await;
    match made {
        Ok(id) => {
            let socket = Some(probe);
            Ok((Session { link, socket }, id))
        }
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

/// This node became Primary for it, and is not any more.
pub(super) fn demoted_meanwhile() -> Refusal {
    Refusal {
        what: "not attached: it was demoted meanwhile".to_owned(),
        facts: Vec::new(),
        next: "see `kagami status`, and attach it again where it is to be used".to_owned(),
    }
}

impl<H: Host> Keeper<H> {
    pub(super) async fn owner(&self) -> Result<Owner, DeviceFault> {
        let (kernel, id) = (self.kernel.clone(), self.kept.record.id());
        let identifier = self.kept.identifier.clone();
        blocking(move || kernel.owner(id, &identifier)).await
    }

    /// Promotes, and serves the device that waits, or a new one.
    pub(super) async fn attempt(&mut self) -> Result<Session, Wait> {
        let mirror = self.kept.mirror.clone();
        self.moves.begin();
        let owner = self.owner().await?;
        if owner == Owner::Nobody && self.was_served {
            return Err(Wait::Gone);
        }
        let waits_there = owner == Owner::Ours;
        if !waits_there {
            self.moves.forget();
        }
        // A device that is stale is no reason to be Primary.
        if waits_there && let Some(moved) = self.moved().await {
            return Err(Wait::Moved(moved));
        }
        let term = self.become_primary().await?;
        // Last: whatever happened before this term has been said by now. What happens from now on ends it, and in
        // another one the session answers nothing.
        if waits_there && let Some(moved) = self.moved().await {
            return Err(Wait::Moved(moved));
        }
        let id = self.kept.record.id();
        let session = match id.driver {
            Driver::Nbd if waits_there => self.reconnect(id, term).await?,
            Driver::Ublk if waits_there => self.take_over(id, term).await?,
            Driver::Nbd | Driver::Ublk => {
                let (host, kernel) = (&self.host, &self.kernel);
                let identifier = &self.kept.identifier;
                let wanted = Wanted::exactly(id);
                let of = (mirror.as_str(), term);
                let (session, _) = connect(host, kernel, of, identifier, wanted).await?;
                session
            }
        };
        self.kept.record.stopped_at = None;
        self.write().await;
        Ok(session)
    }

    /// Gives the kernel a socket for a device of nbd that waits.
    async fn reconnect(&self, id: DeviceId, term: u64) -> Result<Session, Wait> {
        let mirror = self.kept.mirror.clone();
        let (kernel, identifier) = (self.kernel.clone(), self.kept.identifier.clone());
        let ours =
            blocking(move || kernel.reconfigure(id.index, &identifier, &socket_pair)).await?;
        let probe = ours.try_clone().map_err(no_socket)?;
        let (link, facts) = self.host.serve(&mirror, term, ours).await?;
        let (kernel, name) = (self.kernel.clone(), mirror);
        blocking(move || kernel.dress(&name, id, &facts)).await;
        let socket = Some(probe);
        Ok(Session { link, socket })
    }

    /// Gives the term in which this node is.
    async fn become_primary(&mut self) -> Result<u64, Wait> {
        let mirror = &self.kept.mirror;
        let status = self.host.status(mirror).await;
        if let Some(status) = &status {
            if status.role == Role::Primary {
                return Ok(status.term);
            }
            let is_looked_for = status.connection == Connection::Connecting;
            if is_looked_for && !self.was_served && self.began.elapsed() < MEETING_PATIENCE {
                return Err(Wait::Refused(Refusal {
                    what: "the peer is looked for".to_owned(),
                    facts: Vec::new(),
                    next: "wait a moment".to_owned(),
                }));
            }
        }
        // It may wait for an arbiter as long as that is away; orders don't.
        tokio::select! {
            promoted = self.host.promote(mirror) => drop(promoted?),
            order = self.orders.recv() => return Err(Wait::Ordered(order)),
        }
        let term = self.host.term(mirror).await;
        term.ok_or_else(|| Wait::Refused(demoted_meanwhile()))
    }

    pub(super) async fn write(&self) {
        let (records, kept) = (self.records.clone(), self.kept.clone());
        let written = blocking(move || records.write(&kept.mirror, &kept.record)).await;
        if let Err(fault) = written {
            error!("what is attached can't be remembered: {fault}");
        }
    }
}
