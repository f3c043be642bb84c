//! Activating and deactivating what a group is made of, one resource at a time.
//!
//! Every operation can be begun again on what is half there: one that is active stays so, what an
//! earlier manager left is ended or taken over first. Time-outs are enforced here. The core decides
//! when, and in which order; the right to run is held by whoever calls.

pub mod action;
pub(crate) mod apart;
pub mod disk;
pub mod exec;
pub mod files;
pub mod floating_ip;
pub mod mirror;
pub mod mount;
pub mod neighbour;
mod note;
pub mod ocf;
pub mod package;
pub mod reservation;
pub mod service;
pub mod systemd;

use std::ffi::OsString;
use std::path::PathBuf;

use crate::config::resource::Kind;
use crate::config::{Group, Ms, Resource};
use crate::core::OpResult;
use crate::place::Place;
use crate::process::script::Script;
use crate::process::{Deadline, Failure, Step, ended};

/// What an operation is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'s> {
    pub place: &'s Place,
    pub group: &'s Group,
    pub resource: &'s Resource,
    pub environment: &'s [(String, String)],
}

impl Subject<'_> {
    /// Its name as a file's.
    pub fn key(&self) -> String {
        Place::key(self.group, &self.resource.name)
    }

    /// Where all of its processes are.
    pub fn control_group(&self) -> Option<PathBuf> {
        self.place
            .resource_control_group(&self.group.name, &self.resource.name)
    }

    /// A script of it; `part` is the script's name in records and control groups.
    pub fn script(&self, part: &str, program: Vec<OsString>) -> Script {
        Script {
            key: format!("{}@{part}", self.key()),
            log: self.key(),
            program,
            user: None,
            directory: None,
            environment: self.environment.to_vec(),
            control_group: self.control_group().map(|group| group.join(part)),
        }
    }

    /// What its start sees is kept for those who look at it later.
    fn keep_environment(&self) -> Step {
        let text = serde_json::to_vec(self.environment).map_err(|error| error.to_string())?;
        let path = environment_of(self.place, self.group, self.resource);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(())
    }

    async fn around(&self, which: &str, script: Option<&PathBuf>) -> Step {
        let Some(script) = script else {
            return Ok(());
        };
        let script = self.script(which, vec![script.into()]);
        let deadline = Deadline::after(self.resource.common.script_timeout);
        script.must(self.place, deadline).await.map_err(|failure| {
            let why = match failure {
                Failure::Failed(why) | Failure::Warned(why) => why,
                Failure::TimedOut => format!(
                    "took longer than {}: ended",
                    self.resource.common.script_timeout
                ),
            };
            Failure::Failed(format!("{which}: {why}"))
        })
    }
}

fn environment_of(place: &Place, group: &Group, resource: &Resource) -> PathBuf {
    let name = format!("{}@environment", Place::key(group, &resource.name));
    place.run.join("processes").join(name)
}

/// Activates a resource; one that is active, or half so, becomes active. Its scripts before and
/// after are part of it.
///
/// `timeout`: for the resource itself; its scripts have their own.
pub async fn start(
    place: &Place,
    group: &Group,
    resource: &Resource,
    environment: &[(String, String)],
    timeout: Ms,
) -> OpResult {
    let subject = Subject {
        place,
        group,
        resource,
        environment,
    };
    ended(started(subject, timeout).await)
}

async fn started(subject: Subject<'_>, timeout: Ms) -> Step {
    let common = &subject.resource.common;
    subject.keep_environment()?;
    subject
        .around("before-start", common.before_start.as_ref())
        .await?;
    let deadline = Deadline::after(timeout);
    match &subject.resource.kind {
        Kind::FloatingIp(own) => floating_ip::start(subject, own, deadline).await?,
        Kind::Exec(own) => exec::start(subject, own, deadline).await?,
        Kind::Mirror(own) => mirror::start(subject, own, deadline).await?,
        Kind::Disk(own) => disk::start(subject, own, deadline).await?,
        Kind::Ocf(own) => ocf::start(subject, own, deadline).await?,
        Kind::Systemd(own) => systemd::start(subject, own, deadline).await?,
        Kind::Action(own) => action::start(subject, own, deadline).await?,
        Kind::Service(own) => service::start(subject, own, deadline).await?,
        Kind::Package(own) => package::start(subject, own, deadline).await?,
        Kind::Files(own) => files::start(subject, own, deadline).await?,
    }
    subject
        .around("after-start", common.after_start.as_ref())
        .await
}

/// Deactivates a resource; one that is inactive stays so. Its scripts before and after are part of it.
///
/// `timeout`: for the resource itself; its scripts have their own.
pub async fn stop(
    place: &Place,
    group: &Group,
    resource: &Resource,
    environment: &[(String, String)],
    timeout: Ms,
) -> OpResult {
    let subject = Subject {
        place,
        group,
        resource,
        environment,
    };
    ended(stopped(subject, timeout).await)
}

async fn stopped(subject: Subject<'_>, timeout: Ms) -> Step {
    let common = &subject.resource.common;
    subject
        .around("before-stop", common.before_stop.as_ref())
        .await?;
    let deadline = Deadline::after(timeout);
    match &subject.resource.kind {
        Kind::FloatingIp(own) => floating_ip::stop(subject, own, deadline).await?,
        Kind::Exec(own) => exec::stop(subject, own, deadline).await?,
        Kind::Mirror(own) => mirror::stop(subject, own, deadline).await?,
        Kind::Disk(own) => disk::stop(subject, own, deadline).await?,
        Kind::Ocf(own) => ocf::stop(subject, own, deadline).await?,
        Kind::Systemd(own) => systemd::stop(subject, own, deadline).await?,
        Kind::Action(own) => action::stop(subject, own, deadline).await?,
        Kind::Service(own) => service::stop(subject, own, deadline).await?,
        Kind::Package(own) => package::stop(subject, own, deadline).await?,
        Kind::Files(_) => files::stop(subject).await,
    }
    subject
        .around("after-stop", common.after_stop.as_ref())
        .await
}

/// Looks whether an active resource is still there, as its own contract says: the check verb, the
/// probe command, its processes, its address, its mount. Its scripts see what they saw at its start,
/// and `environment`.
pub async fn probe(
    place: &Place,
    group: &Group,
    resource: &Resource,
    environment: &[(String, String)],
    timeout: Ms,
) -> OpResult {
    let kept = std::fs::read(environment_of(place, group, resource)).unwrap_or_default();
    // Before its first start there is none.
    let mut seen: Vec<(String, String)> = serde_json::from_slice(&kept).unwrap_or_default();
    seen.extend_from_slice(environment);
    let subject = Subject {
        place,
        group,
        resource,
        environment: &seen,
    };
    let deadline = Deadline::after(timeout);
    ended(match &resource.kind {
        Kind::FloatingIp(own) => floating_ip::probe(subject, own, deadline).await,
        Kind::Exec(own) => exec::probe(subject, own),
        Kind::Mirror(own) => mount::probe(&own.mount, deadline).await,
        Kind::Disk(own) => mount::probe(&own.mount, deadline).await,
        Kind::Ocf(own) => ocf::probe(subject, own, deadline).await,
        Kind::Systemd(own) => systemd::probe(subject, own, deadline).await,
        Kind::Action(own) => action::probe(subject, own, deadline).await,
        Kind::Service(own) => service::probe(subject, own, deadline).await,
        Kind::Package(own) => package::probe(subject, own),
        Kind::Files(_) => Ok(()),
    })
}

/// What goes on beside an active resource begins, for whoever looks after it from now on: files are sent.
pub fn resume(place: &Place, group: &Group, resource: &Resource) {
    if let Kind::Files(own) = &resource.kind {
        files::keep_sending(place, group, resource, own);
    }
}
