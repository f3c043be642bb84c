//! The kagami failover manager: a service runs on exactly one of two nodes, and moves by itself
//! when its node, disk, network or process fails.
//!
//! [`config`] is what the operator writes: one file, the same on both nodes, checked strictly.
//! [`core`] decides, without a clock, socket or process of its own. [`control`] is how commands, and
//! the manager of the other node, reach a manager. docs/failover-design.md says
//! what is decided here and what is left to the shell around it.

//!
//! [`place`] says what a node has, [`process`] runs scripts and programs, [`resource`] activates and
//! deactivates, [`probe`] looks, [`watch_list`] keeps what scripts have started to be watched.

pub mod config;
pub mod control;
pub mod core;
pub mod place;
pub mod planted;
pub mod probe;
pub mod process;
pub mod resource;
pub mod watch_list;
