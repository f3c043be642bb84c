//! What people are told: every step, with its object and its cause. The host adds node and time.

use std::fmt;

pub use crate::config::Severity;

/// What an alert is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The cluster.
    Cluster,
    /// A node.
    Node(String),
    /// A heartbeat.
    Heartbeat(String),
    /// A group.
    Group(String),
    /// A resource of a group.
    Resource(String, String),
    /// A monitor.
    Monitor(String),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => write!(f, "cluster"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Heartbeat(name) => write!(f, "heartbeat {name}"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Resource(group, name) => write!(f, "resource {group}/{name}"),
            Self::Monitor(name) => write!(f, "monitor {name}"),
        }
    }
}

/// An alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// How severe it is.
    pub severity: Severity,
    /// What it is about.
    pub object: Object,
    /// What happened.
    pub what: String,
    /// Why; may be empty.
    pub cause: String,
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.what)?;
        if !self.cause.is_empty() {
            write!(f, ": {}", self.cause)?;
        }
        Ok(())
    }
}
