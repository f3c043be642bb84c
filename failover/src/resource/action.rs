//! An action script with the verbs start, stop, check and clean, as Oracle Clusterware calls them:
//! each verb is followed by a check, and clean undoes by force what start or stop could not.

use super::Subject;
use crate::config::Ms;
use crate::config::resource::ActionScript;
use crate::process::{Deadline, Failure, Step, remove_control_group};

async fn verb(subject: Subject<'_>, own: &ActionScript, verb: &str, deadline: Deadline) -> Step {
    let program = vec![(&own.script).into(), verb.into()];
    let mut script = subject.script(verb, program);
    let add = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    script.environment.extend([
        add("_CRS_NAME", &subject.resource.name),
        add("_CRS_ACTION_SCRIPT", &own.script.display().to_string()),
        add(
            "_CRS_CHECK_INTERVAL",
            &(own.check_interval.0 / 1000).to_string(),
        ),
    ]);
    script.must(subject.place, deadline).await
}

/// `Ok`: it runs.
async fn check(subject: Subject<'_>, own: &ActionScript, most: Ms) -> Step {
    verb(subject, own, "check", Deadline::after(most)).await
}

/// By force; true if nothing runs any more.
async fn clean(subject: Subject<'_>, own: &ActionScript) -> Step {
    let deadline = Deadline::after(own.timeouts.stop);
    verb(subject, own, "clean", deadline).await?;
    match check(subject, own, own.timeouts.check).await {
        Err(Failure::Failed(_)) => Ok(()),
        Ok(()) => Err(Failure::Failed("it still runs after `clean`".to_owned())),
        Err(failure) => Err(failure),
    }
}

pub(super) async fn start(subject: Subject<'_>, own: &ActionScript, deadline: Deadline) -> Step {
    let started = match verb(subject, own, "start", deadline).await {
        Ok(()) => check(subject, own, own.timeouts.check).await,
        failed => failed,
    };
    let Err(failure) = started else {
        return Ok(());
    };
    // What was begun must not stay half there; the start's failure is what is told.
    if let Err(cleaned) = clean(subject, own).await {
        tracing::warn!(
            resource = subject.resource.name,
            ?cleaned,
            "`clean` failed after a failed start"
        );
    }
    Err(failure)
}

pub(super) async fn stop(subject: Subject<'_>, own: &ActionScript, deadline: Deadline) -> Step {
    let stopped = verb(subject, own, "stop", deadline).await;
    let runs = check(subject, own, own.timeouts.check).await;
    match (stopped, runs) {
        (Ok(()), Err(Failure::Failed(_))) => {}
        _ => clean(subject, own).await?,
    }
    if let Some(group) = subject.control_group() {
        remove_control_group(&group);
    }
    Ok(())
}

pub(super) async fn probe(subject: Subject<'_>, own: &ActionScript, deadline: Deadline) -> Step {
    verb(subject, own, "check", deadline).await
}
