//! Start and stop scripts. A synchronous start script ends when the service runs; the process of an
//! asynchronous one is the service.

use std::time::Duration;

use super::Subject;
use crate::config::resource::{Exec, Mode};
use crate::process::script::Script;
use crate::process::{Deadline, Failure, Family, GRACE, Step, remove_control_group};
use crate::watch_list::WatchList;

fn start_script(subject: Subject<'_>, own: &Exec) -> Script {
    with(subject.script("start", vec![(&own.start).into()]), own)
}

fn with(mut script: Script, own: &Exec) -> Script {
    script.user.clone_from(&own.user);
    script.directory.clone_from(&own.directory);
    // What the operator sets for it does not hide why it runs.
    let added = own
        .environment
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()));
    script.environment.splice(0..0, added);
    script
}

/// The service: what the start script left running, or is.
fn service(subject: Subject<'_>, own: &Exec) -> Step<Family> {
    Ok(Family {
        leader: start_script(subject, own).leader(subject.place)?,
        control_group: subject.control_group(),
    })
}

pub(super) async fn start(subject: Subject<'_>, own: &Exec, deadline: Deadline) -> Step {
    let script = start_script(subject, own);
    match own.mode {
        Mode::Sync => script.must(subject.place, deadline).await,
        Mode::Async => {
            if script.runs(subject.place)? {
                return Ok(());
            }
            // Something of an earlier one would be in the way of this one.
            service(subject, own)?.end(GRACE).await?;
            let mut running = script.begin(subject.place).await?;
            // A monitor looks for it as soon as it is active.
            let record = script.record(subject.place);
            running.recorded(&record, deadline).await?;
            match running.ends_within(subject.place.at_once).await? {
                Some(ended) if ended.status != 0 => Err(Failure::Failed(
                    ended.failure(&own.start.display().to_string()),
                )),
                _ => Ok(()),
            }
        }
    }
}

pub(super) async fn stop(subject: Subject<'_>, own: &Exec, deadline: Deadline) -> Step {
    // A start script that still runs would start again what is stopped here.
    if own.mode == Mode::Sync {
        start_script(subject, own)
            .end_leftover(subject.place)
            .await?;
    }
    if let Some(stop) = &own.stop {
        let script = with(subject.script("stop", vec![stop.into()]), own);
        script.must(subject.place, deadline).await?;
    }
    end_loaded(subject).await?;
    // What was told to stop may need a moment; nothing of the group may run on.
    let family = service(subject, own)?;
    if own.stop.is_some() {
        let patience = deadline.left().min(Duration::from_secs(10));
        family.gone_within(patience).await;
    }
    family.end(GRACE).await?;
    if let Some(group) = subject.control_group() {
        remove_control_group(&group);
    }
    Ok(())
}

/// What its scripts have loaded to be watched ends with it, and is not missed.
pub(super) async fn end_loaded(subject: Subject<'_>) -> Step {
    let list = WatchList::new(&subject.place.run);
    let (group, resource) = (subject.group.name.clone(), subject.resource.name.clone());
    let end = tokio::task::spawn_blocking(move || list.end_of(&group, &resource, GRACE));
    let ended = end.await.map_err(|error| error.to_string())?;
    Ok(ended.map_err(|error| error.to_string())?)
}

/// An asynchronous one's process is there; of a synchronous one nothing is known.
pub(super) fn probe(subject: Subject<'_>, own: &Exec) -> Step {
    if own.mode == Mode::Sync {
        return Ok(());
    }
    let script = start_script(subject, own);
    match script.leader(subject.place)? {
        Some(process) if process.is_alive() => Ok(()),
        Some(process) => Err(Failure::Failed(format!(
            "its process {} has ended",
            process.pid
        ))),
        None => Err(Failure::Failed("no process of it was begun".to_owned())),
    }
}
