//! The end of serving a device: taken down for good, left to the next daemon, or forgotten.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kagami_replicator::core::event::Refusal;
use tracing::{error, info, warn};

use super::bring_up::blocking;
use super::device::{DeviceFault, Owner};
use super::helper::Held;
use super::host::{Go, Host, Link};
use super::keeper::Keeper;
use super::over_ublk::{self, told};
use super::record::RecordFault;
use crate::control::driver::Driver;

/// Requests that have begun may be answered within, at a stop; the kernel sends the rest again.
pub(super) const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// Lets a session answer what it has begun; what waits for a peer or a permission is dropped, and the kernel
/// sends it again, or fails it where the device is taken down.
async fn end(session: &mut Link) {
    let ended = tokio::time::timeout(LEAVE_PATIENCE, session.ended()).await;
    if ended.is_err() {
        session.set(Go::Cut);
    }
}

/// Ends a session of nbd at once: nothing more is read, and the kernel's sender gets an error.
///
/// It may wait in the socket until we read, which waits for memory, which held writes have; and the kernel takes no device
/// down while its sender waits, uninterruptibly, and no other device of nbd meanwhile.
pub(super) fn hang_up(session: &Link, socket: Option<&UnixStream>) {
    session.set(Go::Cut);
    // The session has the same socket: it is shut for both, whatever the session does. An error: it is shut already.
    let _ = socket.map(|socket| socket.shutdown(Shutdown::Both));
}

impl<H: Host> Keeper<H> {
    /// Leaves the device to the next daemon: nothing fails, the kernel keeps what was not answered.
    pub(super) async fn leave(&mut self, session: &mut Link) {
        session.set(Go::Leave);
        end(session).await;
        let generation = self.generation().await;
        match self.moved().await {
            Some(moved) => self.is_stale(moved.words()).await,
            None => self.note_stop(generation).await,
        }
        self.socket = None;
    }

    /// The same in the middle of what takes too long: the next daemon is told what is known now.
    pub(super) async fn leave_in_the_middle(&mut self) {
        let generation = self.generation().await;
        if self.kept.record.stale.is_some() || self.moved().await.is_some() {
            return;
        }
        let (records, name) = (self.records.clone(), self.kept.mirror.clone());
        // Without a record it is being detached, and stays so.
        if matches!(blocking(move || records.read(&name)).await, Ok(Some(_))) {
            self.note_stop(generation).await;
        }
    }

    /// The same where a session has the queues and serves nothing.
    pub(super) async fn leave_idle(&mut self) {
        if let Some(mut idle) = self.idle.take() {
            idle.set(Go::Leave);
            end(&mut idle).await;
        }
    }

    /// The version of the data, to be [noted](Self::note_stop). To be asked for before it is asked whether the mirror
    /// has moved: one that came with that is never noted.
    pub(super) async fn generation(&self) -> Option<u64> {
        let status = self.host.status(&self.kept.mirror).await;
        let generation = status.and_then(|status| status.generation);
        generation.map(|generation| generation.tag)
    }

    /// The next daemon knows by the generation whether the mirror moved in between.
    pub(super) async fn note_stop(&mut self, generation: Option<u64>) {
        self.kept.record.stopped_at = generation;
        self.write().await;
    }

    /// Takes the device down, if nobody uses it.
    ///
    /// # Errors
    /// Who uses it, or why not; the device stays as it was.
    pub(super) async fn detach(
        &mut self,
        force: bool,
        served: Option<&mut Link>,
    ) -> Result<(), Refusal> {
        let is_served = served.is_some();
        let mut idle = self.idle.take();
        let detached = self
            .take_down(force, is_served, served.or(idle.as_mut()))
            .await;
        if detached.is_err() {
            self.idle = idle;
        }
        detached
    }

    async fn take_down(
        &mut self,
        force: bool,
        is_served: bool,
        mut session: Option<&mut Link>,
    ) -> Result<(), Refusal> {
        let mirror = self.kept.mirror.clone();
        let id = self.kept.record.id();
        let is_ours = match self.owner().await {
            Ok(owner) => owner == Owner::Ours,
            // By force it is tried.
            Err(_) if force => true,
            Err(fault) => return Err(gone(fault, &self.device())),
        };
        let held = if is_ours && !force {
            let kernel = self.kernel.clone();
            let held = blocking(move || kernel.hold(id, is_served)).await;
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
        let (records, name) = (self.records.clone(), mirror.clone());
        // First: a crash in between must not attach it again.
        let removed = blocking(move || records.remove(&name)).await;
        removed.map_err(|fault| unrecorded(&fault))?;
        match id.driver {
            Driver::Nbd => {
                if force && let Some(session) = session.as_deref() {
                    hang_up(session, self.socket.as_ref());
                }
                if is_ours {
                    let kernel = self.kernel.clone();
                    match blocking(move || kernel.disconnect(id.index)).await {
                        Ok(()) | Err(DeviceFault::Gone) => {}
                        Err(DeviceFault::Refused(refusal)) => {
                            self.write().await;
                            return Err(refusal);
                        }
                    }
                }
                if let Some(session) = session {
                    end(session).await;
                    self.socket = None;
                }
                // Until it is closed the device can't be set up again.
                release(held).await;
            }
            Driver::Ublk => {
                if is_ours {
                    self.stop_queues(session.as_deref_mut()).await?;
                }
                release(held).await;
                if is_ours {
                    over_ublk::delete(&self.kernel, session, id).await;
                } else if let Some(session) = session {
                    session.set(Go::Close);
                    end(session).await;
                }
                self.sweep().await;
            }
        }
        let (kernel, name) = (self.kernel.clone(), mirror.clone());
        blocking(move || kernel.remove_link(&name, id)).await;
        info!(mirror, device = self.device(), "detached");
        Ok(())
    }

    /// Stops a device of ublk. Its record is removed already, and comes back if this fails.
    async fn stop_queues(&mut self, session: Option<&mut Link>) -> Result<(), Refusal> {
        let is_refusing = session.is_some();
        let id = self.kept.record.id();
        let Err(fault) = over_ublk::stop(&self.kernel, session, id).await else {
            return Ok(());
        };
        if is_refusing {
            // Its session fails all requests by now: nobody may take it for served again.
            let why = format!("it was being detached, and the kernel did not let it go: {fault}");
            self.kept.record.stale = Some(why);
        }
        self.write().await;
        Err(gone(told("not detached", fault), &self.device()))
    }

    /// Removes what is left of a device of ublk that is none any more.
    async fn sweep(&self) {
        let (kernel, mark) = (self.kernel.clone(), self.mark());
        blocking(move || kernel.sweep(mark)).await;
    }

    /// The mirror is no longer attached here. Gives false, for the keeper's end.
    pub(super) async fn forget(&mut self, why: &str) -> bool {
        let mirror = self.kept.mirror.clone();
        warn!(mirror, device = self.device(), "no longer attached: {why}");
        if let Some(mut idle) = self.idle.take() {
            idle.set(Go::Close);
            end(&mut idle).await;
        }
        if self.kept.record.driver == Driver::Ublk {
            self.sweep().await;
        }
        let (records, kernel) = (self.records.clone(), self.kernel.clone());
        let id = self.kept.record.id();
        let removed = blocking(move || {
            kernel.remove_link(&mirror, id);
            records.remove(&mirror)
        })
        .await;
        if let Err(fault) = removed {
            error!("what is attached can't be remembered: {fault}");
        }
        false
    }
}

async fn release(held: Option<Held>) {
    if let Some(held) = held {
        blocking(move || held.release()).await;
    }
}

fn unrecorded(fault: &RecordFault) -> Refusal {
    Refusal {
        what: format!("not detached: {fault}"),
        facts: Vec::new(),
        next: "make room there, or put the folder right, and detach again".to_owned(),
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
