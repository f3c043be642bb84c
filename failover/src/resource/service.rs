//! Start, stop and probe commands, as Sun Cluster's generic data service has them: the start command
//! leaves processes, and the service is there when the probe says so.

use std::time::Duration;

use tokio::time::sleep;

use super::Subject;
use crate::config::resource::Service;
use crate::process::script::Script;
use crate::process::{Deadline, Failure, Family, GRACE, Step, remove_control_group};

/// Between two probes of a service that starts.
const AGAIN: Duration = Duration::from_millis(250);

fn command(subject: Subject<'_>, part: &str, line: &str) -> Script {
    subject.script(part, vec!["/bin/sh".into(), "-c".into(), line.into()])
}

fn processes(subject: Subject<'_>, own: &Service) -> Step<Family> {
    Ok(Family {
        leader: command(subject, "start", &own.start_command).leader(subject.place)?,
        // The probe's own are not the service's.
        control_group: subject.control_group().map(|group| group.join("start")),
    })
}

async fn asked(subject: Subject<'_>, probe: &str, deadline: Deadline) -> Step {
    let script = command(subject, "probe", probe);
    script.must(subject.place, deadline).await
}

pub(super) async fn start(subject: Subject<'_>, own: &Service, deadline: Deadline) -> Step {
    let script = command(subject, "start", &own.start_command);
    let mut running = if script.runs(subject.place)? {
        None
    } else {
        // Something of an earlier one would be in the way of this one.
        processes(subject, own)?.end(GRACE).await?;
        Some(script.begin(subject.place).await?)
    };
    loop {
        if let Some(process) = &mut running
            && let Some(ended) = process.ends_within(Duration::from_millis(50)).await?
        {
            if ended.status != 0 {
                return Err(Failure::Failed(ended.failure(&own.start_command)));
            }
            running = None;
        }
        let up = match &own.probe_command {
            Some(probe) => asked(subject, probe, deadline.within(own.timeouts.check)).await,
            None => watched(subject, own),
        };
        match up {
            Ok(()) => return Ok(()),
            // Without a probe a start command that has ended and left nothing has failed.
            Err(failure) if own.probe_command.is_none() && running.is_none() => {
                return Err(failure);
            }
            Err(_) if deadline.passed() => break,
            Err(_) => sleep(AGAIN.min(deadline.left())).await,
        }
        if deadline.passed() {
            break;
        }
    }
    processes(subject, own)?.end(GRACE).await?;
    Err(Failure::TimedOut)
}

fn watched(subject: Subject<'_>, own: &Service) -> Step {
    let unseen = |error| format!("whether a process of it runs can't be seen: {error}");
    let members = processes(subject, own)?.members().map_err(unseen)?;
    if members.is_empty() {
        return Err(Failure::Failed("no process of it runs any more".to_owned()));
    }
    Ok(())
}

pub(super) async fn stop(subject: Subject<'_>, own: &Service, deadline: Deadline) -> Step {
    let told = match &own.stop_command {
        Some(stop) => {
            let script = command(subject, "stop", stop);
            script.must(subject.place, deadline).await
        }
        None => Ok(()),
    };
    let family = processes(subject, own)?;
    if own.stop_command.is_some() && told.is_ok() {
        let patience = deadline.left().min(Duration::from_secs(10));
        family.gone_within(patience).await;
    }
    // Whatever the stop command said: nothing of it runs on.
    family.end(GRACE).await?;
    if let Err(failure) = told {
        tracing::warn!(
            resource = subject.resource.name,
            ?failure,
            "the stop command failed; its processes were ended"
        );
    }
    if let Some(group) = subject.control_group() {
        remove_control_group(&group);
    }
    Ok(())
}

pub(super) async fn probe(subject: Subject<'_>, own: &Service, deadline: Deadline) -> Step {
    match &own.probe_command {
        Some(probe) => asked(subject, probe, deadline.within(own.timeouts.check)).await,
        None => watched(subject, own),
    }
}
