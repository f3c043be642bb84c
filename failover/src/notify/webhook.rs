//! An alert as JSON, posted to a URL: one request an alert, HTTP/1.1, a connection each.

use std::time::Duration;

use serde_json::json;

use super::{Channel, Failed, Trust, back_off};
use crate::config::cluster;
use crate::control::AlertReport;
use crate::web::Page;

/// The document's version.
const SCHEMA: u32 = 1;

/// Where alerts are posted.
pub struct Webhook {
    name: String,
    cluster: String,
    page: Page,
    retries: u32,
    timeout: Duration,
}

impl Webhook {
    /// From its configuration.
    pub fn new(
        cluster: &str,
        name: &str,
        config: &cluster::Webhook,
        trust: &Trust,
    ) -> Result<Self, String> {
        Ok(Self {
            name: format!("webhook {name}"),
            cluster: cluster.to_owned(),
            page: Page::new(&config.url, trust)?,
            retries: config.retries,
            timeout: Duration::from_millis(config.timeout.0),
        })
    }

    fn document(&self, alert: &AlertReport, lost: u64) -> String {
        json!({
            "schema": SCHEMA,
            "cluster": self.cluster,
            "time_ms": alert.time_ms,
            "node": alert.node,
            "severity": alert.severity,
            "kind": alert.kind,
            "name": alert.name,
            "what": alert.what,
            "cause": alert.cause,
            // What chat programs show.
            "text": format!("[{}] {} {}: {}: {}{}", self.cluster, alert.severity, alert.node, alert.object(), alert.what,
                if alert.cause.is_empty() { String::new() } else { format!(": {}", alert.cause) }),
            "lost": lost,
        })
        .to_string()
    }
}

impl Channel for Webhook {
    fn name(&self) -> &str {
        &self.name
    }

    fn at_once(&self) -> usize {
        1
    }

    async fn send(&self, alerts: &[AlertReport], lost: u64) -> Result<(), Failed> {
        for alert in alerts {
            let posted = self.page.post(self.document(alert, lost));
            let failed = |why, for_good| Failed { why, for_good };
            match tokio::time::timeout(self.timeout, posted).await {
                Err(_) => {
                    let why = format!("no answer within {} ms", self.timeout.as_millis());
                    return Err(failed(why, false));
                }
                Ok(Err(why)) => return Err(failed(why, false)),
                Ok(Ok(200..=299)) => {}
                // It does not want this one, however often it is said: but later it may (408, 429).
                Ok(Ok(status)) => {
                    let for_good = (300..=499).contains(&status) && !matches!(status, 408 | 429);
                    return Err(failed(format!("it answers {status}"), for_good));
                }
            }
        }
        Ok(())
    }

    fn again(&self, number: u32) -> Option<Duration> {
        (number <= self.retries)
            .then(|| back_off(number, Duration::from_secs(1), Duration::from_secs(60)))
    }
}
