//! A package control file (HP Serviceguard): its run commands, its services with their restarts, its
//! halt commands. A service that ends for good moves the package.
//!
//! The file is a program of bash and is read by bash alone (`package.sh`). What is listed when the
//! package starts is written down in `run`, so that it is stopped as it was started.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::Subject;
use crate::config::resource::Package;
use crate::process::script::Script;
use crate::process::{
    Deadline, Failure, Family, GRACE, Step, remove_control_group, tool, unless_gone,
};

const RUNNER: &str = include_str!("package.sh");

/// From TERM to KILL of a service that does not say.
const USUAL: Duration = Duration::from_secs(10);

/// A service of the file: `SERVICE_NAME[index]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    index: u32,
    halt: Duration,
    name: String,
}

fn services_of(text: &str) -> Vec<Service> {
    let of = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let index = words.next()?.parse().ok()?;
        let halt = Duration::from_secs(words.next()?.parse().unwrap_or_default());
        Some(Service {
            index,
            halt: if halt.is_zero() { USUAL } else { halt },
            name: words.next()?.to_owned(),
        })
    };
    text.lines().filter_map(of).collect()
}

fn runner(subject: Subject<'_>, own: &Package, part: &str, verb: &str) -> Script {
    let program = vec![
        "/bin/bash".into(),
        "-c".into(),
        RUNNER.into(),
        (&own.control_file).into(),
        verb.into(),
    ];
    subject.script(part, program)
}

fn service(subject: Subject<'_>, own: &Package, service: &Service) -> Script {
    let part = format!("service-{}", service.index);
    let mut script = runner(subject, own, &part, "service");
    let index = ("SERVICE_INDEX".to_owned(), service.index.to_string());
    script.environment.push(index);
    script
}

fn noted(subject: Subject<'_>) -> PathBuf {
    let name = format!("{}@services", subject.key());
    subject.place.run.join("processes").join(name)
}

/// The services as the package was started with them; `None`: it was not.
fn started(subject: Subject<'_>) -> Step<Option<String>> {
    let path = noted(subject);
    // What can't be read may tell of services that run.
    let unread = |error| format!("{}: {error}", path.display());
    Ok(unless_gone(fs::read_to_string(&path)).map_err(unread)?)
}

pub(super) async fn start(subject: Subject<'_>, own: &Package, deadline: Deadline) -> Step {
    let path = own.control_file.display().to_string();
    let words = ["-c", RUNNER, &path, "list"];
    let list = tool::ask(subject.place, "bash", &words, &[], deadline).await?;
    if list.status != 0 {
        let why = list.error;
        return Err(Failure::Failed(format!("{path} can't be read: {why}")));
    }
    let services = services_of(&list.output);
    let mut running = 0;
    for one in &services {
        running += usize::from(service(subject, own, one).runs(subject.place)?);
    }
    if running > 0 && running == services.len() {
        return Ok(());
    }
    fs::write(noted(subject), &list.output).map_err(|error| error.to_string())?;
    let run = runner(subject, own, "run", "run");
    run.must(subject.place, deadline).await?;
    for one in &services {
        let script = service(subject, own, one);
        if script.runs(subject.place)? {
            continue;
        }
        let mut begun = script.begin(subject.place).await?;
        // A monitor looks for it as soon as it is active.
        let record = script.record(subject.place);
        begun.recorded(&record, deadline).await?;
        if let Some(ended) = begun.ends_within(Duration::from_millis(50)).await? {
            let name = format!("service {}", one.name);
            return Err(Failure::Failed(ended.failure(&name)));
        }
    }
    Ok(())
}

pub(super) async fn stop(subject: Subject<'_>, own: &Package, deadline: Deadline) -> Step {
    let Some(list) = started(subject)? else {
        return Ok(());
    };
    let mut services = services_of(&list);
    services.reverse();
    for one in &services {
        let script = service(subject, own, one);
        script
            .family(subject.place)?
            .end(one.halt.min(deadline.left()))
            .await?;
    }
    let halt = runner(subject, own, "halt", "halt");
    halt.must(subject.place, deadline).await?;
    let rest = Family {
        leader: runner(subject, own, "run", "run").leader(subject.place)?,
        control_group: subject.control_group(),
    };
    rest.end(GRACE).await?;
    if let Some(group) = subject.control_group() {
        remove_control_group(&group);
    }
    fs::remove_file(noted(subject)).map_err(|error| error.to_string())?;
    Ok(())
}

/// All of its services run.
pub(super) fn probe(subject: Subject<'_>, own: &Package) -> Step {
    let list = started(subject)?.ok_or_else(|| "it was not started".to_owned())?;
    for one in services_of(&list) {
        if !service(subject, own, &one).runs(subject.place)? {
            return Err(Failure::Failed(format!("service {} has ended", one.name)));
        }
    }
    Ok(())
}
