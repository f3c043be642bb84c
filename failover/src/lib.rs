//! The kagami failover manager: a service runs on exactly one of two nodes, and moves by itself
//! when its node, disk, network or process fails.
//!
//! [`config`] is what the operator writes: one file, the same on both nodes, checked strictly.
//! [`core`] decides, without a clock, socket or process of its own. [`manager`] hosts it: it gives
//! it the time and what happens, and carries out what it decides; [`heartbeat`] is how two of them
//! hear each other, [`right`] is who may run a group, and [`guard_process`] what sees to it that
//! nobody else does. docs/failover-design.md says what is decided where.
//!
//! [`control`] is how commands reach a manager, [`channel`] how the other one does, [`notify`] who is told of
//! alerts. [`place`] says what a node has, [`process`] runs scripts and programs, [`resource`] activates and
//! deactivates, [`probe`] looks, [`watch_list`] keeps what scripts have started to be
//! watched, [`web`] asks a server. [`clock`] has the clocks, [`lives`] sees to it that of two managers in one
//! process (a reload) only one writes a file, and [`planted`] has the defects that tests plant.

pub mod channel;
pub mod clock;
pub mod config;
pub mod control;
pub mod core;
pub mod guard_process;
pub mod heartbeat;
pub mod lives;
pub mod manager;
pub mod notify;
pub mod place;
pub mod planted;
pub mod probe;
pub mod process;
pub mod resource;
pub mod right;
pub mod watch_list;
pub mod web;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock that a panic elsewhere does not poison: what it guards is whole between any two steps.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
