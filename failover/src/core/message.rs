//! What two managers tell each other, in every heartbeat: all that the other one decides by.
//!
//! There is no order that could be lost: where a group should run is a state of both
//! ([`super::durable::Order`]), and the newer word counts.

use serde::{Deserialize, Serialize};

use super::durable::{Counts, EndKind, Order, Stamp};

/// What a manager is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It has just started and waits for the other node.
    Waiting,
    /// At work.
    Running,
    /// It stops its groups.
    Ending,
    /// It has stopped them.
    Gone,
}

/// A heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// This life of the manager: higher than any before.
    pub incarnation: u64,
    /// The life of the other manager that it hears; 0: none yet.
    pub echo: u64,
    /// The first life of the other manager that it has heard since it began to work in this boot, once what follows
    /// from that is durable; 0: none yet, the highest: an earlier life of this manager has.
    pub met: u64,
    /// Raised with each heartbeat.
    pub seq: u64,
    /// The revision of its configuration.
    pub revision: u64,
    /// What it is at.
    pub phase: Phase,
    /// Nobody acts.
    pub suspended: Stamp<bool>,
    /// The whole cluster ends.
    pub shutdown: Stamp<Option<EndKind>>,
    /// Its groups, in the configuration's order.
    pub groups: Vec<Brief>,
}

/// A group, as one node tells the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brief {
    /// Where it should run: what is durable there.
    pub order: Stamp<Order>,
    /// The order is what it remembers, from before it started or lost the right, and the other
    /// node's word on it was not heard yet.
    pub unsure: bool,
    /// Its failovers, as far as they are counted there.
    pub counts: Counts,
    /// Something of it is active there, or the right to run is there.
    pub busy: bool,
    /// Something of it is active there.
    pub active: bool,
    /// All of it is active there.
    pub online: bool,
    /// It could run there: nothing has refused it the right just now.
    pub able: bool,
    /// What it needs there is ready: the copies of its mirrors are in sync.
    pub ready: bool,
}
