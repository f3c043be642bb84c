//! What two nodes share: the arbiter, the heartbeats, fencing, and who is told.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::value::Ms;

/// The words that accept automatic failover without an arbiter.
pub const ACCEPTED_RISK: &str = "both nodes may run a group at once and their data may differ";

/// `[cluster]`, as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Header {
    /// The cluster's name.
    pub name: String,
    /// Raised with each change; the newer file wins.
    pub revision: u64,
    /// The two nodes' names, as in `[node] name` of their kagami.toml.
    pub nodes: Vec<String>,
    /// How long a node that starts waits for the other one.
    #[serde(default = "five_minutes")]
    pub wait_for_node: Ms,
    /// How long a frozen group may take to lose its address and stop before the watchdog resets the node.
    #[serde(default = "stop_bound")]
    pub stop_bound: Ms,
    /// Counters of a group's resources are cleared after it was online for this long without a failure.
    #[serde(default = "an_hour")]
    pub clear_after: Ms,
}

fn five_minutes() -> Ms {
    Ms::seconds(300)
}
fn stop_bound() -> Ms {
    Ms::seconds(30)
}
fn an_hour() -> Ms {
    Ms::seconds(3600)
}

/// `[arbiter]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Arbiter {
    /// What it is.
    pub kind: ArbiterKind,
    /// A witness or an etcd: the NAME of an `[arbiter.NAME]` of each node's kagami.toml, which says where
    /// it is.
    pub name: Option<String>,
    /// etcd: its endpoints again, so that a check of this file alone sees that it is no node of the cluster.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// A node that reaches none of these addresses does not take over.
    #[serde(default)]
    pub ping: Vec<IpAddr>,
    /// Without an arbiter: the risk of automatic failover, accepted in so many words.
    pub accepted_risk: Option<String>,
}

/// What decides when the two nodes do not hear each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArbiterKind {
    /// `kagami witness` on a third machine.
    Witness,
    /// etcd on a third machine.
    Etcd,
    /// Nothing.
    None,
}

/// A heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Its name.
    pub name: String,
    /// Lower is used first.
    pub priority: u32,
    /// How often one is sent.
    pub interval: Ms,
    /// Silence for this long: this heartbeat is lost.
    pub timeout: Ms,
    /// What it is.
    pub kind: HeartbeatKind,
}

/// What all heartbeats have, as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct HeartbeatCommon {
    pub priority: u32,
    pub interval: Option<Ms>,
    pub timeout: Option<Ms>,
}

/// The keys that every heartbeat has.
pub(super) const HEARTBEAT_KEYS: &[&str] = &["priority", "interval", "timeout"];

/// What a heartbeat is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeartbeatKind {
    /// Authenticated datagrams.
    Lan(Lan),
    /// A serial line.
    Serial(Serial),
    /// A partition or file that both nodes reach.
    Disk(SharedDisk),
}

impl HeartbeatKind {
    /// How the file spells the kinds.
    pub const NAMES: &[&str] = &["lan", "serial", "disk"];
}

/// Datagrams between two addresses.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lan {
    /// Each node's address and port.
    pub addresses: BTreeMap<String, SocketAddr>,
}

/// A serial line.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Serial {
    /// Each node's tty.
    pub devices: BTreeMap<String, PathBuf>,
    /// Bits per second.
    #[serde(default = "baud")]
    pub baud: u32,
}

fn baud() -> u32 {
    19200
}

/// A partition or file that both nodes reach.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SharedDisk {
    /// Where each node has it.
    pub paths: BTreeMap<String, PathBuf>,
}

/// `[fence]`: a script that makes sure that the other node is down.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Fence {
    /// The script; only 0 means that the other node is down.
    pub script: PathBuf,
    /// How long it may take.
    #[serde(default = "a_minute")]
    pub timeout: Ms,
    /// How often it is asked whether it would work (`CLP_FORCESTOP_MODE` 0).
    #[serde(default = "five_minutes")]
    pub check_interval: Ms,
}

fn a_minute() -> Ms {
    Ms::seconds(60)
}

/// `[preaction]`: a script before each recovery action.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Preaction {
    /// The script.
    pub script: PathBuf,
    /// How long it may take; the action follows all the same.
    #[serde(default = "a_minute")]
    pub timeout: Ms,
}

/// How severe an alert is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As wanted.
    #[default]
    Info,
    /// Something is amiss, and the services go on.
    Warning,
    /// A service is, or was, down.
    Error,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// `[mail.NAME]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mail {
    /// `name:port`
    pub server: String,
    /// How the connection is protected.
    #[serde(default)]
    pub tls: Tls,
    /// The sender.
    pub from: String,
    /// Who gets it.
    pub to: Vec<String>,
    /// Who logs in; without it nobody does.
    pub user: Option<String>,
    /// Where the password is.
    pub password_file: Option<PathBuf>,
    /// Alerts that are less severe are not sent.
    #[serde(default)]
    pub severity: Severity,
    /// Groups, monitors and nodes whose alerts are sent; empty: all.
    #[serde(default)]
    pub objects: Vec<String>,
}

/// How a mail server's connection is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// From the start.
    #[default]
    Always,
    /// By STARTTLS; without it nothing is sent.
    Starttls,
}

/// `[webhook.NAME]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Webhook {
    /// Where the JSON is posted.
    pub url: String,
    /// How often it is tried again.
    #[serde(default = "webhook_retries")]
    pub retries: u32,
    /// How long one try may take.
    #[serde(default = "webhook_timeout")]
    pub timeout: Ms,
    /// Alerts that are less severe are not sent.
    #[serde(default)]
    pub severity: Severity,
    /// Groups, monitors and nodes whose alerts are sent; empty: all.
    #[serde(default)]
    pub objects: Vec<String>,
}

fn webhook_retries() -> u32 {
    5
}
fn webhook_timeout() -> Ms {
    Ms::seconds(10)
}
