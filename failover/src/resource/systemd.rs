//! A systemd unit as a resource, by `systemctl`.
//!
//! Its processes are in the unit's control group, not in the resource's: the guard freezes that, too
//! ([`crate::guard_process::deeds`]).

use super::Subject;
use crate::config::resource::Systemd;
use crate::place::Place;
use crate::process::{Deadline, Failure, Step, tool};

async fn active(place: &Place, unit: &str, deadline: Deadline) -> Step<String> {
    let said = tool::ask(place, "systemctl", &["is-active", unit], &[], deadline).await?;
    let word = said.output.trim();
    if word.is_empty() {
        return Err(Failure::Failed(format!(
            "systemctl is-active {unit}: {}",
            said.error
        )));
    }
    Ok(word.to_owned())
}

pub(super) async fn start(subject: Subject<'_>, own: &Systemd, deadline: Deadline) -> Step {
    // One that has failed too often is started again all the same: the thresholds are ours.
    let clear = ["reset-failed", own.unit.as_str()];
    tool::ask(subject.place, "systemctl", &clear, &[], deadline).await?;
    let started = tool::run(subject.place, "systemctl", &["start", &own.unit], deadline).await;
    if let Err(Failure::Failed(why)) = started {
        return Err(Failure::Failed(format!(
            "{why}\n  next: `journalctl -u {}`",
            own.unit
        )));
    }
    started?;
    probe(subject, own, deadline).await
}

pub(super) async fn stop(subject: Subject<'_>, own: &Systemd, deadline: Deadline) -> Step {
    tool::run(subject.place, "systemctl", &["stop", &own.unit], deadline).await?;
    match active(subject.place, &own.unit, deadline).await?.as_str() {
        "inactive" | "failed" | "unknown" => Ok(()),
        word => Err(Failure::Failed(format!(
            "{} is {word} after it was stopped",
            own.unit
        ))),
    }
}

pub(super) async fn probe(subject: Subject<'_>, own: &Systemd, deadline: Deadline) -> Step {
    match active(subject.place, &own.unit, deadline).await?.as_str() {
        "active" | "reloading" | "refreshing" => Ok(()),
        word => Err(Failure::Failed(format!("{} is {word}", own.unit))),
    }
}
