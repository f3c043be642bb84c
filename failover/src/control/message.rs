//! What commands ask of a manager, and managers of each other, and what is answered.
//!
//! A connection carries one request and its answers: all have one, but for [`Ask::Watch`] and
//! [`Ask::Follow`], which go on until the client hangs up or the manager ends.

use serde::{Deserialize, Serialize};

use super::alert::{AlertFilter, AlertReport};
use super::logs::LogFile;
use super::status::{ClusterReport, NodeView};
use crate::config::Severity;
use crate::core::durable::EndKind;

/// The version of this protocol.
pub const PROTOCOL: u32 = 1;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`PROTOCOL`]
    pub protocol: u32,
    /// What is wanted.
    pub ask: Ask,
}

impl Request {
    /// A request of this version.
    pub fn new(ask: Ask) -> Self {
        Self {
            protocol: PROTOCOL,
            ask,
        }
    }
}

/// Whose word is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Of both nodes; of a node that does not answer nothing is waited for.
    #[default]
    Cluster,
    /// Of the node that is asked.
    Node,
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// [`Answer::Cluster`], once.
    Status,
    /// [`Answer::Node`]: what the node itself knows.
    View,
    /// [`Answer::Cluster`], again and again.
    Watch {
        /// Milliseconds between two; at least 50.
        every_ms: u64,
    },
    /// [`Answer::Done`] once it is recorded, or [`Answer::Refused`]. [`Answer::DoneHere`]: the end of the cluster, which
    /// the other node was not told of.
    Order {
        /// Who shall do it; none: the node that is asked.
        #[serde(default)]
        node: Option<String>,
        /// What.
        order: Order,
    },
    /// [`Answer::Alerts`].
    Alerts {
        /// Which.
        filter: AlertFilter,
        /// Whose.
        #[serde(default)]
        reach: Reach,
    },
    /// [`Answer::Alert`], each when it is told: those of the node that is asked.
    Follow {
        /// Which; its times and its number are not looked at.
        filter: AlertFilter,
    },
    /// A person's or script's words become an alert: [`Answer::Done`], or [`Answer::DoneHere`].
    Note {
        /// The words.
        text: String,
        /// The number that the sender gives it.
        #[serde(default)]
        id: Option<u32>,
        /// How severe.
        severity: Severity,
        /// On which nodes.
        #[serde(default)]
        reach: Reach,
    },
    /// The configuration in force: [`Answer::Configuration`].
    Configuration,
    /// A new configuration, for both nodes: [`Answer::Pushed`] or [`Answer::Refused`].
    Push {
        /// cluster.toml, whole.
        text: String,
        /// Though it drops a running group, or the other node does not answer.
        force: bool,
        /// Say what would happen, and change nothing.
        dry_run: bool,
    },
    /// A new configuration, for this node, from the manager of the other one that was asked to push:
    /// [`Answer::Done`] or [`Answer::Refused`].
    Adopt {
        /// cluster.toml, whole.
        text: String,
        /// The revision that it replaces here: another one is refused.
        replaces: u64,
        /// Though it drops a running group.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
        /// Only say whether it would be adopted.
        dry_run: bool,
    },
    /// What a person who looks for a cause needs: [`Answer::Logs`].
    Logs {
        /// Whose: never both (the command fetches this node's itself).
        #[serde(default)]
        node: Option<String>,
    },
}

/// What an operator orders, by names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// Start a group: there, or where it is best.
    StartGroup {
        /// Which.
        group: String,
        /// Where.
        #[serde(default)]
        on: Option<String>,
        /// An operator has made sure that it does not run on the other node.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        not_elsewhere: bool,
    },
    /// Stop a group.
    StopGroup {
        /// Which.
        group: String,
    },
    /// Move a running group: there, or to the node where it is not.
    MoveGroup {
        /// Which.
        group: String,
        /// Where to.
        #[serde(default)]
        to: Option<String>,
    },
    /// Nobody acts any more; the services go on.
    Suspend,
    /// They act again.
    Resume,
    /// A monitor stops watching, on the node that is ordered.
    SuspendMonitor {
        /// Which.
        monitor: String,
    },
    /// It watches again.
    ResumeMonitor {
        /// Which.
        monitor: String,
    },
    /// A monitor fails, or does so no longer.
    FailMonitor {
        /// Which.
        monitor: String,
        /// Whether.
        fails: bool,
    },
    /// The node's groups go to the other one, and its manager ends.
    EndNode {
        /// What else ends.
        kind: EndKind,
    },
    /// All groups stop, and both managers end.
    EndCluster {
        /// What else ends.
        kind: EndKind,
    },
}

/// What a manager answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Done, or recorded and being done.
    Done,
    /// The same on the node that was asked, and not on the other one, which has not got it.
    DoneHere {
        /// The other node.
        without: String,
        /// `node beta does not answer: connection refused`
        why: String,
    },
    /// Not done.
    Refused(Refused),
    /// The state, of both nodes.
    Cluster(Box<ClusterReport>),
    /// The state, of one node.
    Node(Box<NodeView>),
    /// Alerts.
    Alerts {
        /// The alerts, by time.
        alerts: Vec<AlertReport>,
        /// The node whose alerts are missing, and why.
        missing: Option<String>,
    },
    /// An alert.
    Alert(AlertReport),
    /// Some alerts came faster than they were taken.
    Missed {
        /// So many.
        alerts: u64,
    },
    /// The configuration in force.
    Configuration {
        /// cluster.toml, whole.
        text: String,
        /// Its revision.
        revision: u64,
    },
    /// A new configuration is in force, or would be.
    Pushed(Pushed),
    /// Files.
    Logs {
        /// The files.
        files: Vec<LogFile>,
    },
    /// The request makes no sense to this manager.
    NotUnderstood {
        /// Why.
        why: String,
        /// What it speaks.
        protocol: u32,
    },
}

/// What became of a pushed configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// The revision before, on the node that was asked.
    pub from: u64,
    /// The new one.
    pub revision: u64,
    /// Where it is in force now, or would be.
    pub nodes: Vec<String>,
    /// What it changes for groups that run: each is one sentence.
    pub changes: Vec<String>,
    /// Why a node does not have it.
    pub missing: Option<String>,
}

/// A refusal: what, the facts, the next step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}", self.words())]
pub struct Refused {
    /// `group pg: not moved: …`
    pub what: String,
    /// One sentence each.
    #[serde(default)]
    pub facts: Vec<String>,
    /// What to do.
    #[serde(default)]
    pub next: String,
    /// Nothing was done, because all is as it was wanted: not a failure.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nothing: bool,
    /// No refusal: whether it is done is not known, it was sent and not answered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
}

impl Refused {
    /// Without facts.
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            facts: Vec::new(),
            next: next.into(),
            nothing: false,
            unknown: false,
        }
    }

    /// With one more fact.
    #[must_use]
    pub fn fact(mut self, fact: impl Into<String>) -> Self {
        self.facts.push(fact.into());
        self
    }

    /// Of a text with `next:` in its last line, as errors of this program are.
    pub fn of_words(words: &str) -> Self {
        let mut lines = words.lines();
        let what = lines.next().unwrap_or_default().to_owned();
        let mut refused = Self::new(what, "");
        for line in lines.map(str::trim) {
            match line.strip_prefix("next: ") {
                Some(next) => next.clone_into(&mut refused.next),
                None => refused.facts.push(line.to_owned()),
            }
        }
        refused
    }

    /// For people.
    pub fn words(&self) -> String {
        let mut words = self.what.clone();
        for fact in &self.facts {
            words.push_str("\n  ");
            words.push_str(fact);
        }
        if !self.next.is_empty() {
            words.push_str("\n  next: ");
            words.push_str(&self.next);
        }
        words
    }
}

impl From<crate::core::Refusal> for Refused {
    fn from(refusal: crate::core::Refusal) -> Self {
        Self {
            nothing: refusal.is_nothing_to_do(),
            ..Self::of_words(&refusal.to_string())
        }
    }
}
