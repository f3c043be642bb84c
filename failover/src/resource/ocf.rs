//! OCF resource agents: the verbs start, stop and monitor, their variables, and what their statuses say.
//! (Open Cluster Framework, resource agent API 1.1.)

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Subject;
use crate::config::Ms;
use crate::config::resource::Ocf;
use crate::place::Place;
use crate::process::script::Script;
use crate::process::{Deadline, Failure, GRACE, Step, remove_control_group};

const NOT_RUNNING: i32 = 7;
const PROMOTED: i32 = 8;

/// What a status means.
fn meaning(status: i32) -> &'static str {
    match status {
        0 => "all is well",
        1 => "it failed",
        2 => "a parameter is wrong",
        3 => "the agent does not know this verb",
        4 => "it lacks a permission",
        5 => "what it needs is not installed",
        6 => "its configuration is wrong",
        NOT_RUNNING => "it does not run",
        PROMOTED => "it runs as promoted",
        9 => "it runs as promoted, and failed",
        _ => "a status that agents do not have",
    }
}

/// The agent's file and its name's parts.
fn agent(place: &Place, name: &str) -> Result<(PathBuf, String, String), String> {
    let Some((provider, agent)) = name.split_once(':') else {
        return Err(format!("agent {name}: write PROVIDER:NAME"));
    };
    let path = place.ocf_root.join("resource.d").join(provider).join(agent);
    if !path.exists() {
        return Err(format!(
            "agent {name}: there is no {}\n  next: install the package that has it",
            path.display()
        ));
    }
    Ok((path, provider.to_owned(), agent.to_owned()))
}

/// What an agent sees.
fn variables(
    place: &Place,
    instance: &str,
    (provider, agent): (&str, &str),
    parameters: &BTreeMap<String, String>,
    timeout: Ms,
    interval: Ms,
) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = [
        ("OCF_ROOT", place.ocf_root.display().to_string()),
        ("OCF_RA_VERSION_MAJOR", "1".to_owned()),
        ("OCF_RA_VERSION_MINOR", "1".to_owned()),
        ("OCF_RESOURCE_INSTANCE", instance.to_owned()),
        ("OCF_RESOURCE_PROVIDER", provider.to_owned()),
        ("OCF_RESOURCE_TYPE", agent.to_owned()),
        // What the agents' library notes of a resource is gone after a reboot.
        (
            "HA_RSCTMP",
            place.run.join("resource-agents").display().to_string(),
        ),
        ("HA_LOGTAG", instance.to_owned()),
        ("HA_LOGFACILITY", "none".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let mut parameter = |name: &str, value: String| all.push((format!("OCF_RESKEY_{name}"), value));
    parameter("CRM_meta_timeout", timeout.0.to_string());
    parameter("CRM_meta_interval", interval.0.to_string());
    for (name, value) in parameters {
        parameter(name, value.clone());
    }
    all
}

fn script(subject: Subject<'_>, own: &Ocf, verb: &str, timeout: Ms) -> Step<Script> {
    let (path, provider, agent) = agent(subject.place, &own.agent)?;
    std::fs::create_dir_all(subject.place.run.join("resource-agents"))
        .map_err(|error| error.to_string())?;
    let mut script = subject.script(verb, vec![path.into(), verb.into()]);
    script.environment.extend(variables(
        subject.place,
        &subject.resource.name,
        (&provider, &agent),
        &own.parameters,
        timeout,
        Ms(0),
    ));
    Ok(script)
}

async fn verb(
    subject: Subject<'_>,
    own: &Ocf,
    verb: &str,
    timeout: Ms,
    deadline: Deadline,
) -> Step<(i32, String)> {
    let ended = script(subject, own, verb, timeout)?
        .run(subject.place, deadline)
        .await?;
    let what = format!(
        "{} {verb}: status {} ({})",
        own.agent,
        ended.status,
        meaning(ended.status)
    );
    let why = ended
        .last
        .map_or(what.clone(), |last| format!("{what}: {last}"));
    Ok((ended.status, why))
}

pub(super) async fn start(subject: Subject<'_>, own: &Ocf, deadline: Deadline) -> Step {
    match verb(subject, own, "start", own.timeouts.start, deadline).await? {
        (0, _) => Ok(()),
        (_, why) => Err(Failure::Failed(why)),
    }
}

pub(super) async fn stop(subject: Subject<'_>, own: &Ocf, deadline: Deadline) -> Step {
    match verb(subject, own, "stop", own.timeouts.stop, deadline).await? {
        (0 | NOT_RUNNING, _) => {}
        (_, why) => return Err(Failure::Failed(why)),
    }
    if let Some(group) = subject.control_group() {
        let family = crate::process::Family {
            leader: None,
            control_group: Some(group.clone()),
        };
        family.end(GRACE).await?;
        remove_control_group(&group);
    }
    Ok(())
}

pub(super) async fn probe(subject: Subject<'_>, own: &Ocf, deadline: Deadline) -> Step {
    match verb(subject, own, "monitor", own.timeouts.check, deadline).await? {
        (0 | PROMOTED, _) => Ok(()),
        (_, why) => Err(Failure::Failed(why)),
    }
}

/// The monitor verb alone, for a monitor of its own.
pub(crate) async fn look(
    place: &Place,
    monitor: &str,
    name: &str,
    parameters: &BTreeMap<String, String>,
    (timeout, interval): (Ms, Ms),
    deadline: Deadline,
) -> Step {
    let (path, provider, kind) = agent(place, name)?;
    let script = Script {
        key: format!("monitor@{monitor}"),
        log: format!("monitor@{monitor}"),
        program: vec![path.into(), "monitor".into()],
        environment: variables(
            place,
            monitor,
            (&provider, &kind),
            parameters,
            timeout,
            interval,
        ),
        ..Script::default()
    };
    let ended = script.run(place, deadline).await?;
    match ended.status {
        0 | PROMOTED => Ok(()),
        status => Err(Failure::Failed(format!(
            "{name} monitor: status {status} ({}): {}",
            meaning(status),
            ended.last.unwrap_or_default()
        ))),
    }
}
