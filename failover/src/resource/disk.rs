//! A shared block device: held against the other node where the device can do that, checked, mounted.
//!
//! The right to run keeps the other node away. Beside it the device is reserved for this node
//! ([`reservation`]), so that even a node that has lost its mind
//! can't write; a device that can't be reserved is locked on this node alone.

use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use tokio::time::sleep;

use super::reservation::{self, Held};
use super::{Subject, mount};
use crate::config::Ms;
use crate::config::resource::Disk;
use crate::process::{Deadline, Failure, Step};

/// How long a lock of another program is waited for.
const PATIENCE: Ms = Ms(3000);

const AGAIN: Duration = Duration::from_millis(100);

pub(super) async fn start(subject: Subject<'_>, own: &Disk, deadline: Deadline) -> Step {
    hold(subject, &own.device, deadline).await?;
    if let Err(failure) = reserve(subject, &own.device, deadline).await {
        let_go(subject, &own.device);
        return Err(failure);
    }
    mount::up(subject, &own.device, &own.mount, deadline).await
}

pub(super) async fn stop(subject: Subject<'_>, own: &Disk, deadline: Deadline) -> Step {
    mount::down(subject, &own.mount, deadline).await?;
    release(subject, &own.device, deadline).await?;
    let_go(subject, &own.device);
    Ok(())
}

/// Nothing else on this node that asks holds it.
async fn hold(subject: Subject<'_>, device: &Path, deadline: Deadline) -> Step {
    let held = &subject.place.held;
    if held
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .contains_key(device)
    {
        return Ok(());
    }
    let shown = device.display();
    let file = fs::File::open(device).map_err(|error| format!("{shown}: {error}"))?;
    // udev holds a device that it looks at, for a moment.
    let patience = deadline.within(PATIENCE);
    while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if patience.passed() {
            return Err(Failure::Failed(format!(
                "{shown} is locked by another program of this node ({error})\n  next: see `lsof {shown}`"
            )));
        }
        sleep(AGAIN).await;
    }
    held.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(device.to_owned(), file);
    Ok(())
}

fn let_go(subject: Subject<'_>, device: &Path) {
    let mut held = subject
        .place
        .held
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    held.remove(device);
}

/// The device, open as it is held.
fn handle(subject: Subject<'_>, device: &Path) -> Step<fs::File> {
    let held = subject
        .place
        .held
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let Some(file) = held.get(device) else {
        return Err(Failure::Failed(format!("{} is not held", device.display())));
    };
    Ok(file.try_clone().map_err(|error| error.to_string())?)
}

async fn reserve(subject: Subject<'_>, device: &Path, deadline: Deadline) -> Step {
    let place = subject.place;
    let file = handle(subject, device)?;
    let mine = reservation::key(&place.cluster.name, &place.cluster.nodes[place.me]);
    let theirs = reservation::key(&place.cluster.name, place.other());
    let hold = tokio::task::spawn_blocking(move || reservation::hold(&file, mine, theirs));
    let held = deadline.wait(hold).await?.map_err(|e| e.to_string())?;
    let shown = device.display();
    match held {
        Ok(Held::Reserved) => Ok(()),
        Ok(Held::NotKnown(why)) => {
            tracing::warn!(
                device = %shown,
                why,
                "the disk can't be reserved against the other node: only the right to run keeps it away"
            );
            Ok(())
        }
        Err(why) => Err(Failure::Failed(format!(
            "{shown}: not reserved for this node: {why}\n  next: see who is registered with `sg_persist -k {shown}`"
        ))),
    }
}

async fn release(subject: Subject<'_>, device: &Path, deadline: Deadline) -> Step {
    let place = subject.place;
    // A manager that has just started does not hold what an earlier one reserved.
    let Ok(file) = handle(subject, device)
        .or_else(|_| fs::File::open(device).map_err(|error| Failure::Failed(error.to_string())))
    else {
        return Ok(());
    };
    let mine = reservation::key(&place.cluster.name, &place.cluster.nodes[place.me]);
    let release = tokio::task::spawn_blocking(move || reservation::release(&file, mine));
    let released = deadline.wait(release).await?.map_err(|e| e.to_string())?;
    if let Err(error) = released {
        // The other node takes what could not be given up.
        tracing::warn!(device = %device.display(), error, "the disk's reservation is not given up");
    }
    Ok(())
}
