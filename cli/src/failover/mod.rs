//! The failover manager as a process: what ties [`kagami_failover`] to this machine and to the mirrors'
//! daemon. [`mirrors`] asks the daemon; [`guard`] is the guard's process.

pub mod guard;
pub mod mirrors;

use crate::args::{FailoverArgs, FailoverVerb};
use crate::commands::Context;
use crate::exit::Outcome;

/// Runs the failover manager, or makes its key.
///
/// # Errors
/// It can't begin, or go on.
pub fn run(_context: &Context, _args: FailoverArgs) -> Outcome {
    crate::exit::DONE
}
