//! The manager's work on this machine: resources are activated and deactivated, monitors look, scripts
//! run. An operation goes on when the manager that began it is replaced within this process; when
//! the process has died it is begun again under its own number by the next one, since what
//! [`crate::resource`] does to something half there makes it whole.

use std::fs::File;
use std::future::Future;
use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::config::{Group, Ms, Resource};
use crate::core::{GroupId, OpId, OpResult, Work};
use crate::place::Place;
use crate::process::Deadline;
use crate::{probe, resource};

use super::Hands;
use super::records::{Begun, Known, Records};

/// One of the `ping` addresses answers within this.
const OUTSIDE_WITHIN: Ms = Ms(1500);

/// Works on a place.
#[derive(Debug)]
pub struct LocalHands {
    place: Arc<Place>,
    records: Records,
}

impl LocalHands {
    /// Hands for this place.
    pub fn new(place: Arc<Place>, records: Records) -> Self {
        Self { place, records }
    }
}

impl Hands for LocalHands {
    fn run(
        &self,
        op: OpId,
        begun: Begun,
        record: File,
    ) -> impl Future<Output = OpResult> + Send + 'static {
        let (place, records) = (Arc::clone(&self.place), self.records.clone());
        // Spawned: whoever waits may be replaced.
        let work = tokio::spawn(async move {
            let result = work(&place, &begun).await;
            end(&records, op, result, record)
        });
        ended(work)
    }

    fn wait(&self, op: OpId, begun: Begun) -> impl Future<Output = OpResult> + Send + 'static {
        let (place, records) = (Arc::clone(&self.place), self.records.clone());
        let work = tokio::spawn(async move {
            let waited = records.clone();
            let lock = match tokio::task::spawn_blocking(move || waited.wait(op)).await {
                Ok(Ok(lock)) => lock,
                Ok(Err(error)) => return OpResult::Failed(format!("its record: {error}")),
                Err(error) => return OpResult::Failed(format!("its record: {error}")),
            };
            if let Ok(Known::Ended(result)) = records.known(op) {
                return result;
            }
            // Whoever ran it has died, and what it began may be half there.
            let result = again(&place, &begun).await;
            end(&records, op, result, lock)
        });
        ended(work)
    }

    fn resume(&self, group: GroupId, at: usize) {
        let group = &self.place.cluster.groups[group];
        resource::resume(&self.place, group, &group.resources[at]);
    }

    fn probe(
        &self,
        monitor: usize,
        timeout: Ms,
    ) -> impl Future<Output = OpResult> + Send + 'static {
        let place = Arc::clone(&self.place);
        let alive = probe::alive(&place, &place.cluster.monitors[monitor], timeout);
        async move {
            if let Some(alive) = alive {
                return alive.await;
            }
            let monitor = &place.cluster.monitors[monitor];
            probe::probe(&place, monitor, &[], timeout).await
        }
    }

    fn rest(&self) {
        self.place.watchdog.rest();
    }

    fn outside(&self) -> impl Future<Output = bool> + Send + 'static {
        let place = Arc::clone(&self.place);
        async move {
            let targets = &place.cluster.arbiter.ping;
            let deadline = Deadline::after(OUTSIDE_WITHIN);
            probe::ping::any(targets, deadline).await.is_ok()
        }
    }

    fn check_fence(
        &self,
        environment: Vec<(String, String)>,
        timeout: Ms,
    ) -> impl Future<Output = OpResult> + Send + 'static {
        let place = Arc::clone(&self.place);
        async move {
            match &place.cluster.fence {
                Some(fence) => probe::fence(&place, &fence.script, &environment, timeout).await,
                None => OpResult::Failed("there is no fence script".to_owned()),
            }
        }
    }
}

async fn ended(work: JoinHandle<OpResult>) -> OpResult {
    work.await
        .unwrap_or_else(|error| OpResult::Failed(format!("it ended without an outcome: {error}")))
}

/// Records an outcome; then the record's lock is given up.
fn end(records: &Records, op: OpId, result: OpResult, record: File) -> OpResult {
    if let Err(error) = records.end(op, &result) {
        tracing::error!("{op}: its outcome was not recorded: {error}");
    }
    drop(record);
    result
}

fn subject<'p>(place: &'p Place, begun: &Begun) -> Result<(&'p Group, &'p Resource), OpResult> {
    let (group, name) = &begun.subject;
    let found = place.cluster.group(group);
    let found = found.and_then(|g| Some((g, &g.resources[g.position(name)?])));
    found.ok_or_else(|| {
        OpResult::Failed(format!(
            "{group}/{name} is not in the configuration any more"
        ))
    })
}

async fn work(place: &Arc<Place>, begun: &Begun) -> OpResult {
    let (environment, timeout) = (&begun.environment, Ms(begun.timeout_ms));
    let cluster = &place.cluster;
    let script = |name: &str, script: Option<&std::path::PathBuf>| {
        script
            .cloned()
            .map(|script| (name.to_owned(), script))
            .ok_or_else(|| OpResult::Failed(format!("monitor {name} has no script for it")))
    };
    let script = match begun.work {
        Work::Start { .. } => {
            return match subject(place, begun) {
                Ok((group, of)) => resource::start(place, group, of, environment, timeout).await,
                Err(result) => result,
            };
        }
        Work::Stop { .. } => {
            return match subject(place, begun) {
                Ok((group, of)) => resource::stop(place, group, of, environment, timeout).await,
                Err(result) => result,
            };
        }
        Work::Fence { .. } => {
            return match &cluster.fence {
                Some(fence) => probe::fence(place, &fence.script, environment, timeout).await,
                None => OpResult::Failed("there is no fence script".to_owned()),
            };
        }
        Work::Preaction { monitor } => {
            let monitor = &cluster.monitors[monitor];
            let usual = cluster
                .preaction
                .as_ref()
                .map(|preaction| &preaction.script);
            script(&monitor.name, monitor.common.preaction.as_ref().or(usual))
        }
        Work::Script { monitor } => {
            let monitor = &cluster.monitors[monitor];
            script(&monitor.name, monitor.common.script.as_ref())
        }
    };
    match script {
        Ok((monitor, script)) => {
            probe::recovery_script(place, &monitor, &script, environment, timeout).await
        }
        Err(result) => result,
    }
}

/// What an earlier process began and did not end.
async fn again(place: &Arc<Place>, begun: &Begun) -> OpResult {
    match begun.work {
        Work::Start { .. } | Work::Stop { .. } => work(place, begun).await,
        // What it would say now is not what was asked for then.
        Work::Preaction { .. } | Work::Script { .. } | Work::Fence { .. } => {
            OpResult::Failed("its manager has died while it ran".to_owned())
        }
    }
}
