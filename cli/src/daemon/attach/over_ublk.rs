//! A device of ublk: made, taken over from a daemon that died, and taken down.
//!
//! What the kernel forgives and what it does not is in docs/decisions/0012-ublk.md. Two rules are kept here.
//! The command that makes the kernel count on us waits in the kernel **before** the queues are fetched. And
//! queues that were fetched are closed for nothing but to take the device down: what can't be served now
//! is parked in them.

use std::time::Duration;

use kagami_nbd_server::ublk::Shape;
use kagami_replicator::core::event::Refusal;
use kagami_replicator::shell::engine::DeviceFacts;
use tracing::{debug, error, warn};

use super::bring_up::{Session, Wait, blocking};
use super::device::{DRESS_PATIENCE, DeviceFault, Kernel, Owner};
use super::host::{Go, Host, Link};
use super::keeper::Keeper;
use super::take_down::LEAVE_PATIENCE;
use super::ublk::{FaultKind, Form, Going, Mark, New, PATIENCE, State, UblkFault};
use crate::control::driver::{DeviceId, Driver};

/// A device is started within, the reading of its partitions through us included.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// The kernel lets go of a dead daemon, or never will, within: the child that asks it gives up before.
const RECOVER_PATIENCE: Duration = Duration::from_secs(60);
/// With all queues fetched the kernel goes on within.
const GO_ON_PATIENCE: Duration = Duration::from_secs(5);
/// A device is made within: it is looked whether there is one already, it is added, started, and dressed.
pub(super) const MAKE_PATIENCE: Duration = Duration::from_secs(
    2 * PATIENCE.as_secs() + 2 * START_PATIENCE.as_secs() + DRESS_PATIENCE.as_secs(),
);
/// Orders are looked at this often meanwhile.
const SLICE: Duration = Duration::from_millis(50);

/// The driver's refusal in the daemon's words.
pub(super) fn told(not: &str, fault: UblkFault) -> DeviceFault {
    match fault.kind {
        FaultKind::Gone => DeviceFault::Gone,
        _ => DeviceFault::Refused(Refusal {
            what: format!("{not}: {}", fault.words),
            facts: Vec::new(),
            next: fault.next().to_owned(),
        }),
    }
}

fn not_attached(fault: UblkFault) -> Wait {
    told("not attached", fault).into()
}

fn silent(what: &str, patience: Duration) -> UblkFault {
    UblkFault {
        kind: FaultKind::Failed,
        words: format!("the kernel did not {what} within {} s", patience.as_secs()),
    }
}

impl Kernel {
    /// Whether a device could be made as far as can be told without doing it.
    pub(super) fn check_ublk(&self, wanted: Option<u32>, mark: Mark) -> Result<(), DeviceFault> {
        let refused = |fault| told("not attached", fault);
        self.ublk.check().map_err(refused)?;
        for known in self.ublk.devices().map_err(refused)? {
            let id = DeviceId::ublk(known.id);
            if known.mark == mark && known.state != State::Dead {
                return Err(self.has_it_still(id));
            }
            if known.mark != mark && wanted == Some(known.id) {
                return Err(self.taken(id, u32::try_from(known.pid).ok(), None));
            }
        }
        Ok(())
    }

    /// Makes a device, which is not started yet.
    fn add_ublk(
        &self,
        wanted: Option<u32>,
        mark: Mark,
        facts: &DeviceFacts,
    ) -> Result<(DeviceId, Shape), DeviceFault> {
        self.check_ublk(wanted, mark)?;
        self.sweep(mark);
        let new = New {
            id: wanted,
            mark,
            size: facts.size,
            logical_block: facts.logical_block,
            max_payload: u32::try_from(facts.max_payload).unwrap_or(u32::MAX),
            rotational: facts.rotational,
        };
        let added = self.ublk.add(&new);
        let (id, shape) = added.map_err(|fault| told("not attached", fault))?;
        Ok((DeviceId::ublk(id), shape))
    }

    /// Removes what was never started, or stopped and not removed: nobody can use it.
    pub(super) fn sweep(&self, mark: Mark) {
        let known = self.ublk.devices().unwrap_or_default();
        for known in known {
            if known.mark == mark && known.state == State::Dead {
                let path = self.path(DeviceId::ublk(known.id));
                // It may be about to be started by a child of a daemon that is no more: a stop waits for that.
                let stopped = self.ublk.stop(known.id);
                match stopped.and_then(|()| self.ublk.delete(known.id)) {
                    Ok(()) => debug!("{} was left unfinished, and is removed", path.display()),
                    Err(fault) => warn!("{} was left unfinished: {fault}", path.display()),
                }
            }
        }
    }

    /// Who has a device; one that is not started, or was stopped, is nobody's.
    pub(super) fn owner_by_ublk(&self, index: u32, mark: Mark) -> Result<Owner, UblkFault> {
        let known = self.ublk.devices()?;
        let known = known.into_iter().find(|known| known.id == index);
        Ok(match known {
            None => Owner::Nobody,
            Some(known) if known.mark != mark => Owner::Another,
            Some(known) if known.state == State::Dead => Owner::Nobody,
            Some(_) => Owner::Ours,
        })
    }

    /// The device that is a mirror's; `remembered` if the kernel does not say which it has.
    pub(super) fn find_by_ublk(
        &self,
        mark: Mark,
        remembered: Option<DeviceId>,
    ) -> Option<DeviceId> {
        match self.ublk.devices() {
            Ok(known) => known
                .iter()
                .find(|known| known.mark == mark && known.state != State::Dead)
                .map(|known| DeviceId::ublk(known.id)),
            Err(fault) => {
                let found = remembered.filter(|id| {
                    id.driver == Driver::Ublk && self.sysfs(id.driver).exists(id.index)
                });
                error!(
                    "whose the devices of ublk are can't be told: {fault}; {}",
                    fault.next()
                );
                found
            }
        }
    }
}

type Asked<T> = fn(&mut dyn Going, Duration) -> Option<Result<T, UblkFault>>;

/// Asks on a thread that may wait.
async fn ask<T: Send + 'static>(
    mut going: Box<dyn Going>,
    asked: Asked<T>,
    patience: Duration,
) -> (Box<dyn Going>, Option<Result<T, UblkFault>>) {
    blocking(move || {
        let said = asked(going.as_mut(), patience);
        (going, said)
    })
    .await
}

/// Gives up a command, and waits for its end: only then another may be given.
async fn give_up(going: Box<dyn Going>) {
    if !blocking(move || going.give_up()).await {
        warn!("a command to the kernel's ublk driver was given up, and does not end");
    }
}

/// Makes a device for a mirror that is Primary here in that term, and serves it.
///
/// # Errors
/// Why not; no device is left then.
pub(super) async fn make<H: Host>(
    host: &H,
    kernel: &Kernel,
    (mirror, term): (&str, u64),
    identifier: &str,
    wanted: Option<u32>,
) -> Result<(Session, DeviceId), Wait> {
    let facts = host.facts(mirror).await?;
    let mark = Mark::of(identifier);
    let adding = kernel.clone();
    let (id, shape, facts) = blocking(move || {
        let (id, shape) = adding.add_ublk(wanted, mark, &facts)?;
        Ok::<_, DeviceFault>((id, shape, facts))
    })
    .await?;
    match start(host, kernel, (mirror, term), id, shape).await {
        Ok(link) => {
            let (kernel, name) = (kernel.clone(), mirror.to_owned());
            blocking(move || kernel.dress(&name, id, &facts)).await;
            Ok((Session::queues(link), id))
        }
        Err((link, wait)) => {
            unmake(kernel, link, id).await;
            Err(wait)
        }
    }
}

/// Starts a device that was made. What was begun of it is given back with the reason.
async fn start<H: Host>(
    host: &H,
    kernel: &Kernel,
    (mirror, term): (&str, u64),
    id: DeviceId,
    shape: Shape,
) -> Result<Link, (Option<Link>, Wait)> {
    let control = kernel.ublk.clone();
    let going = blocking(move || control.start(id.index)).await;
    let going = going.map_err(|fault| (None, not_attached(fault)))?;
    let (going, said) = ask(
        going,
        |going, patience| going.waiting(patience),
        START_PATIENCE,
    )
    .await;
    if let Err(fault) = said.unwrap_or_else(|| Err(silent("begin to start it", START_PATIENCE))) {
        give_up(going).await;
        return Err((None, not_attached(fault)));
    }
    let link = match host.serve_queues(mirror, term, (id.index, shape)).await {
        Ok(link) => link,
        Err(why) => {
            give_up(going).await;
            return Err((None, why.refusal.into()));
        }
    };
    let (going, said) = ask(
        going,
        |going, patience| going.done(patience),
        START_PATIENCE,
    )
    .await;
    match said.unwrap_or_else(|| Err(silent("start it", START_PATIENCE))) {
        Ok(()) => Ok(link),
        Err(fault) => {
            // Nobody uses it: what comes all the same fails.
            link.set(Go::Refuse);
            give_up(going).await;
            Err((Some(link), not_attached(fault)))
        }
    }
}

/// Takes down what nobody uses yet.
pub(super) async fn unmake(kernel: &Kernel, mut link: Option<Link>, id: DeviceId) {
    let stopped = stop(kernel, link.as_mut(), id).await;
    match stopped {
        Ok(()) => delete(kernel, link.as_mut(), id).await,
        Err(fault) => error!(
            "{} is left unfinished in the kernel: {fault}; restart the daemon",
            kernel.path(id).display()
        ),
    }
}

/// Makes a device no block device any more; what waits in it fails. The queues stay open.
pub(super) async fn stop(
    kernel: &Kernel,
    link: Option<&mut Link>,
    id: DeviceId,
) -> Result<(), UblkFault> {
    if let Some(link) = link {
        // The kernel waits until we have answered what we took of it.
        link.set(Go::Refuse);
    }
    let control = kernel.ublk.clone();
    match blocking(move || control.stop(id.index)).await {
        Err(fault) if fault.kind != FaultKind::Gone => Err(fault),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Closes the queues of a device that was stopped, and removes it.
pub(super) async fn delete(kernel: &Kernel, link: Option<&mut Link>, id: DeviceId) {
    if let Some(link) = link {
        link.set(Go::Close);
        if tokio::time::timeout(LEAVE_PATIENCE, link.ended())
            .await
            .is_err()
        {
            warn!(
                "the queues of {} are not closed yet",
                kernel.path(id).display()
            );
        }
    }
    let control = kernel.ublk.clone();
    match blocking(move || control.delete(id.index)).await {
        Err(fault) if fault.kind != FaultKind::Gone => warn!(
            "the kernel has not given back {} yet: {fault}",
            kernel.path(id).display()
        ),
        Ok(()) | Err(_) => {}
    }
}

impl<H: Host> Keeper<H> {
    pub(super) fn mark(&self) -> Mark {
        Mark::of(&self.kept.identifier)
    }

    /// Serves a device that waits in the kernel: by the session that is parked, or as the one that follows a
    /// daemon that died. To be called as a Primary in that term.
    pub(super) async fn take_over(&mut self, id: DeviceId, term: u64) -> Result<Session, Wait> {
        if let Some(link) = self.idle.take() {
            return self.go_on(id, term, link).await;
        }
        if self.was_served {
            // Queues that a process has fetched are its own until it ends.
            return Err(Wait::Refused(Refusal {
                what: format!("this daemon's queues of {} are broken", self.device()),
                facts: Vec::new(),
                next: "restart the daemon: the next one takes the device over".to_owned(),
            }));
        }
        let mirror = self.kept.mirror.clone();
        let facts = self.host.facts(&mirror).await?;
        let (control, mark) = (self.kernel.ublk.clone(), self.mark());
        let going = blocking(move || control.recover(id.index, mark)).await;
        let (going, form) = self.until_it_waits(going.map_err(not_attached)?).await?;
        if form.size > facts.size || form.logical_block != facts.logical_block {
            give_up(going).await;
            return Err(Wait::Stale(format!(
                "{} was made for another size: {} bytes in blocks of {}, and the mirror has {} in blocks of {}",
                self.device(),
                form.size,
                form.logical_block,
                facts.size,
                facts.logical_block
            )));
        }
        // The last moment: with the queues fetched the kernel sends its requests again.
        if let Some(moved) = self.moved().await {
            give_up(going).await;
            return Err(Wait::Moved(moved));
        }
        let link = match self
            .host
            .serve_queues(&mirror, term, (id.index, form.shape()))
            .await
        {
            Ok(link) => link,
            Err(why) => {
                self.was_served |= why.holds_queues;
                give_up(going).await;
                return Err(why.refusal.into());
            }
        };
        self.was_served = true;
        let (going, said) = ask(
            going,
            |going, patience| going.done(patience),
            GO_ON_PATIENCE,
        )
        .await;
        if !matches!(said, Some(Ok(()))) {
            give_up(going).await;
            if !self.is_live(id).await.unwrap_or(false) {
                self.idle = Some(link);
                return Err(self.not_confirmed());
            }
        }
        let (kernel, name) = (self.kernel.clone(), mirror);
        blocking(move || kernel.dress(&name, id, &facts)).await;
        Ok(Session::queues(link))
    }

    /// Lets the session that is parked begin again.
    async fn go_on(&mut self, id: DeviceId, term: u64, mut link: Link) -> Result<Session, Wait> {
        match self.is_live(id).await {
            Ok(true) => {
                // The last moment, once more.
                if let Some(moved) = self.moved().await {
                    self.idle = Some(link);
                    return Err(Wait::Moved(moved));
                }
                link.permit(term);
                link.parked.mark_unchanged();
                link.set(Go::On);
                Ok(Session::queues(link))
            }
            Ok(false) => {
                self.idle = Some(link);
                Err(self.not_confirmed())
            }
            Err(wait) => {
                self.idle = Some(link);
                Err(wait)
            }
        }
    }

    /// The queues are this process's, and the kernel sends nothing to them. Nobody but another process
    /// can try again.
    fn not_confirmed(&self) -> Wait {
        Wait::Refused(Refusal {
            what: format!(
                "the kernel did not go on with {} when it was taken over",
                self.device()
            ),
            facts: Vec::new(),
            next: "restart the daemon: the next one takes the device over".to_owned(),
        })
    }

    async fn is_live(&self, id: DeviceId) -> Result<bool, Wait> {
        let control = self.kernel.ublk.clone();
        let known = blocking(move || control.devices()).await;
        let known = known.map_err(not_attached)?;
        Ok(known
            .iter()
            .any(|known| known.id == id.index && known.state == State::Live))
    }

    /// Until the kernel has let go of the daemon before, and waits for the queues; an order comes first.
    async fn until_it_waits(
        &mut self,
        mut going: Box<dyn Going>,
    ) -> Result<(Box<dyn Going>, Form), Wait> {
        let deadline = tokio::time::Instant::now() + RECOVER_PATIENCE;
        loop {
            let (asked, said) = ask(going, |going, patience| going.waiting(patience), SLICE).await;
            going = asked;
            let wait = match said {
                Some(Ok(form)) => return Ok((going, form)),
                Some(Err(fault)) if fault.kind == FaultKind::Lost => Wait::Stale(fault.words),
                Some(Err(fault)) => not_attached(fault),
                None => match self.orders.try_recv() {
                    Ok(order) => Wait::Ordered(Some(order)),
                    Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => {
                        Wait::Ordered(None)
                    }
                    Err(tokio::sync::mpsc::error::TryRecvError::Empty)
                        if tokio::time::Instant::now() < deadline =>
                    {
                        continue;
                    }
                    Err(tokio::sync::mpsc::error::TryRecvError::Empty) => {
                        not_attached(silent("let go of the daemon before", RECOVER_PATIENCE))
                    }
                },
            };
            give_up(going).await;
            return Err(wait);
        }
    }
}
