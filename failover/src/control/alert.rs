//! Alerts as documents: a line each in a node's alert log, merged from both nodes for people.

use serde::{Deserialize, Serialize};

use crate::config::Severity;
use crate::core::{Alert, Object};

/// An alert, with the node that tells it and the time there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertReport {
    /// When, milliseconds since 1970 on that node's clock.
    pub time_ms: u64,
    /// Who tells it.
    pub node: String,
    /// How severe it is.
    pub severity: Severity,
    /// `cluster`, `node`, `heartbeat`, `group`, `resource`, `monitor`, or `message` for a person's or script's words.
    pub kind: String,
    /// The object's name: of a resource `GROUP/NAME`, of a message the number that its sender gave it, or empty.
    pub name: String,
    /// What happened.
    pub what: String,
    /// Why; may be empty.
    #[serde(default)]
    pub cause: String,
}

impl AlertReport {
    /// An alert of the core.
    pub fn of(alert: &Alert, node: &str, time_ms: u64) -> Self {
        let (kind, name) = match &alert.object {
            Object::Cluster => ("cluster", String::new()),
            Object::Node(name) => ("node", name.clone()),
            Object::Heartbeat(name) => ("heartbeat", name.clone()),
            Object::Group(name) => ("group", name.clone()),
            Object::Resource(group, name) => ("resource", format!("{group}/{name}")),
            Object::Monitor(name) => ("monitor", name.clone()),
        };
        Self {
            time_ms,
            node: node.to_owned(),
            severity: alert.severity,
            kind: kind.to_owned(),
            name,
            what: alert.what.clone(),
            cause: alert.cause.clone(),
        }
    }

    /// `group pg`, `cluster`, `message 12`
    pub fn object(&self) -> String {
        if self.name.is_empty() {
            self.kind.clone()
        } else {
            format!("{} {}", self.kind, self.name)
        }
    }

    /// It is about this group, monitor, node or heartbeat: an alert of a group's resource is one of the group.
    pub fn is_about(&self, name: &str) -> bool {
        let group = self.name.split('/').next();
        self.name == name
            || (self.kind == "resource" && group == Some(name))
            || (self.kind == "cluster" && name == "cluster")
    }
}

/// Which alerts are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertFilter {
    /// Not older: milliseconds since 1970.
    #[serde(default)]
    pub since_ms: Option<u64>,
    /// Not younger.
    #[serde(default)]
    pub until_ms: Option<u64>,
    /// At least so severe.
    #[serde(default)]
    pub severity: Severity,
    /// About one of these kinds; empty: all.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// About one of these objects ([`AlertReport::is_about`]); empty: all.
    #[serde(default)]
    pub objects: Vec<String>,
    /// The last so many; none: [`ALERTS_MAX`].
    #[serde(default)]
    pub last: Option<usize>,
}

/// So many alerts are told at once, the last ones.
pub const ALERTS_MAX: usize = 10_000;

impl AlertFilter {
    /// It is wanted.
    pub fn wants(&self, alert: &AlertReport) -> bool {
        self.since_ms.is_none_or(|since| alert.time_ms >= since)
            && self.until_ms.is_none_or(|until| alert.time_ms <= until)
            && alert.severity >= self.severity
            && (self.kinds.is_empty() || self.kinds.contains(&alert.kind))
            && (self.objects.is_empty() || self.objects.iter().any(|name| alert.is_about(name)))
    }

    /// Those that are wanted, of both nodes, in the order of their times.
    pub fn of(&self, mut alerts: Vec<AlertReport>) -> Vec<AlertReport> {
        alerts.retain(|alert| self.wants(alert));
        // What one node tells stays in its order: the sort is stable.
        alerts.sort_by_key(|alert| alert.time_ms);
        let most = self.last.unwrap_or(ALERTS_MAX).min(ALERTS_MAX);
        alerts.drain(..alerts.len().saturating_sub(most));
        alerts
    }
}
