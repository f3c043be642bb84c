//! A shared block device: held against the other node where the device can do that, checked, mounted.
//!
//! The right to run keeps the other node away. Beside it the device is reserved for this node
//! (persistent reservations, by util-linux's `blkpr`), so that even a node that has lost its mind
//! can't write; a device that can't be reserved is locked on this node alone.

use std::fs;
use std::path::Path;
use std::sync::PoisonError;

use rustix::fs::{FlockOperation, flock};

use super::{Subject, mount};
use crate::config::resource::Disk;
use crate::process::{Deadline, Failure, Step, tool};

/// Only those who hold the reservation write; all may read.
const KIND: &str = "write-exclusive-reg-only";

/// A node's key: the same after a reboot, and no other node's.
fn key(cluster: &str, node: &str) -> String {
    let digest = blake3::hash(format!("{cluster}\n{node}").as_bytes());
    let mut eight = [0; 8];
    eight.copy_from_slice(&digest.as_bytes()[..8]);
    // 0 is no key.
    format!("{:#x}", u64::from_be_bytes(eight).max(1))
}

pub(super) async fn start(subject: Subject<'_>, own: &Disk, deadline: Deadline) -> Step {
    hold(subject, &own.device)?;
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
fn hold(subject: Subject<'_>, device: &Path) -> Step {
    let mut held = subject
        .place
        .held
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if held.contains_key(device) {
        return Ok(());
    }
    let shown = device.display();
    let file = fs::File::open(device).map_err(|error| format!("{shown}: {error}"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        format!("{shown} is locked by another program of this node ({error})\n  next: see `lsof {shown}`")
    })?;
    held.insert(device.to_owned(), file);
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

async fn pr(subject: Subject<'_>, words: &[&str], deadline: Deadline) -> Step<tool::Said> {
    tool::ask(subject.place, "blkpr", words, &[], deadline).await
}

/// True if the device, or this machine, knows no reservations.
fn knows_none(said: &tool::Said) -> bool {
    let error = said.error.to_lowercase();
    ["not supported", "inappropriate ioctl", "invalid argument"]
        .iter()
        .any(|word| error.contains(word))
}

async fn reserve(subject: Subject<'_>, device: &Path, deadline: Deadline) -> Step {
    let place = subject.place;
    let path = device.display().to_string();
    let mine = key(&place.cluster.name, &place.cluster.nodes[place.me]);
    let theirs = key(&place.cluster.name, place.other());
    let register = [
        "--command",
        "register",
        "--key",
        &mine,
        "--flag",
        "ignore-key",
        &path,
    ];
    let said = match pr(subject, &register, deadline).await {
        Ok(said) => said,
        Err(Failure::Failed(why)) => {
            tracing::warn!(
                path,
                why,
                "the disk is not reserved against the other node: only the right to run keeps it away"
            );
            return Ok(());
        }
        Err(failure) => return Err(failure),
    };
    if knows_none(&said) {
        tracing::warn!(
            path,
            said.error,
            "the disk can't be reserved against the other node: only the right to run keeps it away"
        );
        return Ok(());
    }
    refuse(&path, "this node is not registered", &said)?;
    let reserve = [
        "--command",
        "reserve",
        "--key",
        &mine,
        "--type",
        KIND,
        &path,
    ];
    let said = pr(subject, &reserve, deadline).await?;
    if said.status == 0 {
        // The other node's registration, of a time when it ran here, lets it write.
        let preempt = [
            "--command",
            "preempt",
            "--key",
            &mine,
            "--oldkey",
            &theirs,
            "--type",
            KIND,
            &path,
        ];
        // Where it has none this is refused, and all is well.
        pr(subject, &preempt, deadline).await?;
        return Ok(());
    }
    // The other node holds it. The right to run says that it may not.
    let preempt = [
        "--command",
        "preempt",
        "--key",
        &mine,
        "--oldkey",
        &theirs,
        "--type",
        KIND,
        &path,
    ];
    let said = pr(subject, &preempt, deadline).await?;
    refuse(
        &path,
        "another node holds it and can't be pushed away",
        &said,
    )
}

fn refuse(path: &str, what: &str, said: &tool::Said) -> Step {
    if said.status == 0 {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{path}: not reserved: {what}: {}\n  next: see who is registered with `sg_persist -k {path}`",
        said.error
    )))
}

async fn release(subject: Subject<'_>, device: &Path, deadline: Deadline) -> Step {
    let place = subject.place;
    let path = device.display().to_string();
    let mine = key(&place.cluster.name, &place.cluster.nodes[place.me]);
    for command in ["release", "clear"] {
        let mut words = vec!["--command", command, "--key", &mine];
        if command == "release" {
            words.extend(["--type", KIND]);
        }
        words.push(&path);
        match pr(subject, &words, deadline).await {
            // The other node pushes away what could not be released.
            Ok(_) | Err(Failure::Failed(_)) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}
