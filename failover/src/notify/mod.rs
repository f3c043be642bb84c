//! Who is told of alerts: by mail and by webhook.
//!
//! Each recipient has a queue and a task of its own. An alert is put into the queues and forgotten: a
//! server that is slow, or away, holds up nothing but its own queue, which is bounded, and what does
//! not fit is counted and told with the next one that goes out. Nothing here outlives the manager:
//! what was not sent when it ends is in the alert log.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::config::{Cluster, Severity};
use crate::control::AlertReport;
pub use crate::web::Trust;

mod mail;
mod webhook;

#[cfg(test)]
mod tests;

/// So many alerts wait for one recipient.
const QUEUE: usize = 1000;
/// So many are sent at once, where that is possible.
const AT_ONCE: usize = 100;

/// What a recipient does with alerts.
trait Channel: Send + 'static {
    /// For messages: `mail ops`.
    fn name(&self) -> &str;

    /// How many go out at once.
    fn at_once(&self) -> usize;

    /// Sends them once. Errors: why not, and whether it may help to try again.
    fn send(
        &self,
        alerts: &[AlertReport],
        lost: u64,
    ) -> impl Future<Output = Result<(), Failed>> + Send;

    /// How long to wait before try `number` (from 1) is repeated; `None`: it is given up.
    fn again(&self, number: u32) -> Option<Duration>;
}

/// A try that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failed {
    why: String,
    /// Trying again changes nothing: it was refused.
    for_good: bool,
}

/// What a recipient wants to be told.
#[derive(Debug)]
struct Wants {
    severity: Severity,
    objects: Vec<String>,
}

impl Wants {
    fn has(&self, alert: &AlertReport) -> bool {
        alert.severity >= self.severity
            && (self.objects.is_empty() || self.objects.iter().any(|name| alert.is_about(name)))
    }
}

/// A recipient's end of the queue.
struct Line {
    wants: Wants,
    queue: mpsc::Sender<AlertReport>,
    name: String,
    lost: Arc<std::sync::atomic::AtomicU64>,
}

/// Tells everybody that the configuration names of each alert, until the alerts end. Dropping the
/// future ends it at once.
pub async fn run(
    cluster: Arc<Cluster>,
    mut alerts: broadcast::Receiver<AlertReport>,
    trust: Trust,
) {
    let mut tasks = JoinSet::new();
    let mut lines = Vec::new();
    for (name, config) in &cluster.mail {
        let wants = Wants {
            severity: config.severity,
            objects: config.objects.clone(),
        };
        match mail::Mailer::new(&cluster.name, name, config, &trust) {
            Ok(mailer) => lines.push(begin(&mut tasks, mailer, wants)),
            Err(why) => warn!("mail {name}: nobody is told: {why}"),
        }
    }
    for (name, config) in &cluster.webhooks {
        let wants = Wants {
            severity: config.severity,
            objects: config.objects.clone(),
        };
        match webhook::Webhook::new(&cluster.name, name, config, &trust) {
            Ok(webhook) => lines.push(begin(&mut tasks, webhook, wants)),
            Err(why) => warn!("webhook {name}: nobody is told: {why}"),
        }
    }
    loop {
        match alerts.recv().await {
            Ok(alert) => {
                for line in lines.iter().filter(|line| line.wants.has(&alert)) {
                    if line.queue.try_send(alert.clone()).is_err() {
                        line.lost.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        debug!("{}: its queue is full", line.name);
                    }
                }
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                for line in &lines {
                    line.lost
                        .fetch_add(missed, std::sync::atomic::Ordering::Relaxed);
                }
            }
            Err(broadcast::error::RecvError::Closed) => break,
        }
    }
    // The queues end; what is in them still goes out.
    drop(lines);
    while tasks.join_next().await.is_some() {}
}

fn begin(tasks: &mut JoinSet<()>, channel: impl Channel + Sync, wants: Wants) -> Line {
    let (queue, waiting) = mpsc::channel(QUEUE);
    let lost = Arc::default();
    let line = Line {
        wants,
        queue,
        name: channel.name().to_owned(),
        lost: Arc::clone(&lost),
    };
    tasks.spawn(deliver(channel, waiting, lost));
    line
}

async fn deliver(
    channel: impl Channel + Sync,
    mut waiting: mpsc::Receiver<AlertReport>,
    lost: Arc<std::sync::atomic::AtomicU64>,
) {
    let mut some = Vec::new();
    while waiting
        .recv_many(&mut some, channel.at_once().min(AT_ONCE))
        .await
        > 0
    {
        let missed = lost.swap(0, std::sync::atomic::Ordering::Relaxed);
        for number in 1.. {
            let failed = match channel.send(&some, missed).await {
                Ok(()) => break,
                Err(failed) => failed,
            };
            let name = channel.name();
            let again = channel.again(number).filter(|_| !failed.for_good);
            if let Some(wait) = again {
                debug!("{name}: try {number}: {}", failed.why);
                tokio::time::sleep(wait).await;
                continue;
            }
            let count = some.len() as u64;
            warn!(
                "{name}: {count} alerts were not sent, and are given up after {number} tries: {}",
                failed.why
            );
            lost.fetch_add(missed + count, std::sync::atomic::Ordering::Relaxed);
            break;
        }
        some.clear();
    }
}

/// Doubles from `first` to at most `most`.
fn back_off(number: u32, first: Duration, most: Duration) -> Duration {
    first
        .saturating_mul(2_u32.saturating_pow(number.saturating_sub(1)))
        .min(most)
}
