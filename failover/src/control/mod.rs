//! How people's commands, and the manager of the other node, reach a manager.
//!
//! [`message`] is what is asked and answered, [`status`] and [`alert`] the documents in it: JSON, a
//! line each ([`line`](mod@line)). [`client`] asks on a Unix socket, [`server`] serves one. [`answer`](mod@answer) has the
//! answers, for those who ask over the channel between the nodes, too; it brings together what
//! both nodes say ([`merge`](mod@merge)) and knows nothing of how a manager works: that is the
//! [`Desk`], which the manager implements. [`push`] judges a new configuration, `adopt` brings it into force, [`logs`] gathers
//! what a person would ask for.

mod adopt;
pub mod alert;
pub mod answer;
pub mod client;
pub mod desk;
pub mod line;
pub mod logs;
pub mod merge;
pub mod message;
pub mod order;
pub mod push;
pub mod server;
pub mod status;
pub mod view;

pub use alert::{AlertFilter, AlertReport};
pub use client::{Client, ClientError};
pub use desk::{Desk, Unreached};
pub use message::{Answer, Ask, Order, Reach, Refused};
pub use status::{ClusterReport, NodeView};

#[cfg(test)]
mod tests;
