//! A shared block device: held against the other node where the device can do that, checked, mounted.
//!
//! The right to run keeps the other node from mounting it. Beside it the device is reserved for this node
//! ([`reservation`]), so that a node that has lost the right and is still stopping, or has lost its mind,
//! can't write; a device that can't be reserved is locked on this node alone.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use tokio::time::sleep;

use super::mount::Known;
use super::note::Note;
use super::reservation::{self, Held};
use super::{Subject, apart, mount};
use crate::config::Ms;
use crate::config::resource::{Disk, Reserve};
use crate::lock;
use crate::process::{Deadline, Failure, Step};

/// How long a lock of another program is waited for.
const PATIENCE: Ms = Ms(3000);

const AGAIN: Duration = Duration::from_millis(100);

pub(super) async fn start(subject: Subject<'_>, own: &Disk, deadline: Deadline) -> Step {
    hold(subject, &own.device, deadline).await?;
    if let Err(failure) = reserve(subject, own, deadline).await {
        let_go(subject, &own.device);
        return Err(failure);
    }
    mount::up(subject, &own.device, &own.mount, deadline).await
}

pub(super) async fn stop(subject: Subject<'_>, own: &Disk, deadline: Deadline) -> Step {
    mount::down(subject, &own.mount, deadline).await?;
    let taken = taken(subject);
    let was = Known::from_words(&taken.words());
    mount::quiet(subject, Some(&own.device), was.as_ref(), deadline).await?;
    // A reservation that was given up may still be on its way, and must not come when another node
    // has the disk.
    let under_way = reserving(&own.device);
    subject.place.apart.returned(&under_way, deadline).await?;
    // The configuration may have come after the reservation, which would keep the other node's writes away.
    let known = reserved(subject);
    if own.reserve != Reserve::Never || known.is_there() {
        let given_up = release(subject, &own.device, was.as_ref(), deadline).await?;
        if given_up && own.reserve == Reserve::Never {
            known.forget();
        }
    }
    let_go(subject, &own.device);
    taken.forget();
    Ok(())
}

/// The device that the resource has taken, by what it is to the kernel.
fn taken(subject: Subject<'_>) -> Note {
    Note::of(&subject.place.run, "disks", &subject.key())
}

/// That the resource has reserved its disk on this node.
fn reserved(subject: Subject<'_>) -> Note {
    Note::of(&subject.place.state, "reserved", &subject.key())
}

/// What is asked of one device, one at a time.
fn reserving(device: &Path) -> String {
    format!("reserving {}", device.display())
}

/// Opens it, which may wait for a disk that recovers from an error.
async fn open(device: &Path, deadline: Deadline) -> Step<std::io::Result<fs::File>> {
    let owned = device.to_owned();
    apart::call(deadline, move || fs::File::open(owned)).await
}

/// Nothing else on this node that asks holds it.
async fn hold(subject: Subject<'_>, device: &Path, deadline: Deadline) -> Step {
    let held = &subject.place.held;
    if lock(held).contains_key(device) {
        return Ok(());
    }
    let shown = device.display();
    let file = open(device, deadline).await?;
    let file = file.map_err(|error| format!("{shown}: {error}"))?;
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
    if let Some(known) = Known::of(&file) {
        taken(subject).write(&known.words())?;
    }
    lock(held).insert(device.to_owned(), file);
    Ok(())
}

fn let_go(subject: Subject<'_>, device: &Path) {
    let mut held = lock(&subject.place.held);
    held.remove(device);
}

/// The device, open as it is held.
fn handle(subject: Subject<'_>, device: &Path) -> Step<fs::File> {
    let held = lock(&subject.place.held);
    let Some(file) = held.get(device) else {
        return Err(Failure::Failed(format!("{} is not held", device.display())));
    };
    Ok(file.try_clone().map_err(|error| error.to_string())?)
}

/// What is not waited for any more goes no further.
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

async fn reserve(subject: Subject<'_>, own: &Disk, deadline: Deadline) -> Step {
    if own.reserve == Reserve::Never {
        return Ok(());
    }
    let place = subject.place;
    let file = handle(subject, &own.device)?;
    let mine = reservation::key(&place.cluster.name, &place.cluster.nodes[place.me]);
    let theirs = reservation::key(&place.cluster.name, place.other());
    let given_up = GiveUp(Arc::default());
    let flag = given_up.0.clone();
    let hold = move || reservation::hold(&file, mine, theirs, &flag);
    let name = reserving(&own.device);
    let held = place.apart.run(&name, deadline, hold).await?;
    let shown = own.device.display();
    let known = reserved(subject);
    match held {
        Ok(Held::Reserved) => {
            // Noted once: what a disk could do it has to do.
            if !known.is_there() {
                known.write(&shown.to_string())?;
            }
            Ok(())
        }
        Ok(Held::NotKnown(why)) if own.reserve == Reserve::Always => Err(Failure::Failed(format!(
            "{shown} can't be reserved ({why}), and `reserve` is \"always\"\n  next: see `sg_persist -k {shown}`; a partition never can: name a whole disk"
        ))),
        Ok(Held::NotKnown(why)) if known.is_there() => Err(Failure::Failed(format!(
            "{shown} was reserved by this resource before, and can't be now: {why}\n  next: see `sg_persist -k {shown}`; \
             if the disk is another one that knows no reservations, remove {}",
            known.path().display()
        ))),
        Ok(Held::NotKnown(why)) => {
            tracing::warn!(
                device = %shown,
                why,
                "the disk can't be reserved against the other node, which may write it until it has stopped"
            );
            Ok(())
        }
        Err(why) => Err(Failure::Failed(format!(
            "{shown}: not reserved for this node: {why}\n  next: see who is registered with `sg_persist -k {shown}`"
        ))),
    }
}

/// Gives the reservation up; whether the device has heard it.
async fn release(
    subject: Subject<'_>,
    device: &Path,
    was: Option<&Known>,
    deadline: Deadline,
) -> Step<bool> {
    let place = subject.place;
    let file = match handle(subject, device) {
        Ok(file) => file,
        // A manager that has just started does not hold what an earlier one reserved.
        Err(_) => match (open(device, deadline).await?, was) {
            (Ok(file), _) => file,
            (Err(_), None) => return Ok(false),
            (Err(_), Some(was)) => match open(&was.path, deadline).await? {
                Ok(file) => file,
                Err(_) => return Ok(false),
            },
        },
    };
    let mine = reservation::key(&place.cluster.name, &place.cluster.nodes[place.me]);
    let release = move || reservation::release(&file, mine);
    let released = place
        .apart
        .run(&reserving(device), deadline, release)
        .await?;
    if let Err(error) = &released {
        // The other node takes what could not be given up.
        tracing::warn!(device = %device.display(), error, "the disk's reservation is not given up");
    }
    Ok(released.is_ok())
}
