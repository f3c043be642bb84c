//! A failover group: where it may run, when it starts and moves, and what it is made of.

use serde::Deserialize;

use super::resource::{Kind, Resource};
use super::value::Ms;

/// Whether something is done by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// By itself.
    Automatic,
    /// When an operator says so.
    Manual,
}

/// A group's attributes, as the file has them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Attributes {
    /// Where it may run; the first is its home.
    pub nodes: Vec<String>,
    /// Whether it starts with the cluster.
    #[serde(default = "automatic")]
    pub startup: Start,
    /// Whether it goes back to its home when that returns.
    #[serde(default = "manual")]
    pub failback: Start,
    /// Whether it is taken over when its node is lost.
    #[serde(default = "automatic")]
    pub failover: Start,
    /// Groups that must be online, on any node, before it starts.
    #[serde(default)]
    pub wait_for: Vec<String>,
    /// How long it waits for them.
    #[serde(default = "half_an_hour")]
    pub wait_timeout: Ms,
}

impl Attributes {
    /// The keys of a `[group.NAME]` itself.
    pub const KEYS: &[&str] = &[
        "nodes",
        "startup",
        "failback",
        "failover",
        "wait-for",
        "wait-timeout",
    ];
}

fn automatic() -> Start {
    Start::Automatic
}
fn manual() -> Start {
    Start::Manual
}
fn half_an_hour() -> Ms {
    Ms::seconds(1800)
}

/// A failover group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its attributes.
    pub attributes: Attributes,
    /// What it is made of; each comes after those that it depends on.
    pub resources: Vec<Resource>,
}

impl Group {
    /// The mirrors that it needs.
    pub fn mirrors(&self) -> impl Iterator<Item = &str> {
        self.resources.iter().filter_map(|r| match &r.kind {
            Kind::Mirror(m) => Some(m.disk.mirror.as_str()),
            _ => None,
        })
    }

    /// True if it has a mirror.
    pub fn is_mirrored(&self) -> bool {
        self.mirrors().next().is_some()
    }

    /// The place of a resource in [`Group::resources`].
    pub fn position(&self, resource: &str) -> Option<usize> {
        self.resources.iter().position(|r| r.name == resource)
    }
}
