//! The protocol as a model: every interleaving of two nodes, their link, their disks and the
//! arbiter, within bounds (docs/model.md).
//!
//! Where the simulator runs the code and draws what happens, the model runs the rules and leaves
//! nothing out. [`steps`] lists what may happen in a [`state`]; the chapters beside it say when:
//! [`life`], [`roles`], [`writes`], [`permission`], [`register`], [`disk_failure`], [`resync`], [`guest`],
//! [`replace`], and a [`handshake`] in one step or as the messages of a [`meeting`]. [`check`] is what
//! must hold in every state, [`heal`] that the pair comes to rest from every state, [`search`]
//! goes through them, within the [`bounds`] of the [`runs`]. Verdicts are the core's own ([`verdict`]),
//! and [`table`] goes through them pair by pair; [`mistake`] lifts one condition of one rule.

pub mod bounds;
pub mod check;
pub mod disk_failure;
pub mod guest;
pub mod handshake;
pub mod heal;
pub mod life;
pub mod meeting;
pub mod mistake;
pub mod permission;
pub mod register;
pub mod replace;
pub mod resync;
pub mod roles;
pub mod runs;
pub mod search;
pub mod state;
pub mod steps;
pub mod table;
#[cfg(test)]
mod tests;
pub mod verdict;
pub mod writes;

/// What a node is called.
pub fn name(i: usize) -> &'static str {
    ["A", "B"][i]
}
