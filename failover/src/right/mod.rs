//! The right to run a group is the right to be Primary of its mirrors (docs/protocol.md §§3, 4):
//! who asks the mirrors' daemon for it, gives it up, and hears what becomes of it.
//!
//! [`basis`] judges what the daemon says; the manager's [`keeper`] and the guard
//! ([`crate::guard_process`]) hear it both, each for itself. The keeper tells the core that a lease
//! has ended, or that permission came; that the right is lost it hears from the guard, which has
//! dropped the group's address by then.
//!
//! A group without a mirror has a register of its own at the arbiter: [`lease`] decides, [`register`]
//! is what is kept there, and [`tenancy`] carries out for the keeper what a lease asks for.

pub mod basis;
pub mod keeper;
pub mod lease;
pub mod mark;
mod promotion;
pub mod register;
pub mod tenancy;

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;

use basis::Says;

/// How long permission is waited for after a lease's end before a group loses its address, and
/// how much longer whoever takes over waits than the lease: in milliseconds.
pub const MARGIN: u64 = 500;

/// How often the daemon says again what it has said, so that leases are known to run on.
pub const SAYS_EVERY: Duration = Duration::from_millis(200);

/// A word of the mirrors' daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Of one mirror.
    Says(Says),
    /// The daemon is not there; it is looked for.
    Gone,
}

/// The mirrors' daemon of this node.
pub trait Mirrors: Send + Sync + 'static {
    /// Makes this node Primary of a mirror; a node that is Primary stays so. It takes as long as
    /// permission takes. `fenced`: the fence script has said that the other node is down, which is the permission; of this
    /// node's copy it says nothing.
    ///
    /// `Err`: it is refused, and why.
    fn promote(
        &self,
        mirror: &str,
        fenced: bool,
    ) -> impl Future<Output = Result<(), String>> + Send + 'static;

    /// Makes it Secondary; one that is Secondary stays so. `force`: what can't be finished fails.
    ///
    /// `Err`: it is Primary still, and why.
    fn demote(
        &self,
        mirror: &str,
        force: bool,
    ) -> impl Future<Output = Result<(), String>> + Send + 'static;

    /// What the daemon says of these mirrors from now on, what is true now first. `take_in_hand`:
    /// their roles are the asker's business for as long as the receiver is there.
    fn watch(&self, mirrors: Vec<String>, take_in_hand: bool) -> mpsc::UnboundedReceiver<Word>;
}
