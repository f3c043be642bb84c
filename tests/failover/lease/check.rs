//! What is looked at from outside.

use crate::failover::check::Violation;

use super::nodes::{Core, Watch, name};
use super::world::{Profile, World};

impl World {
    /// After each step.
    pub(super) fn check_step(&self) -> Result<(), Violation> {
        let answers = |node: usize| {
            let host = &self.nodes[node];
            host.running && host.guard.is_none_or(|watch: Watch| !watch.frozen)
        };
        if answers(0) && answers(1) {
            return Err(Violation::new("One-holder", "the group runs on both nodes"));
        }
        let holds = |node: usize| {
            let host = &self.nodes[node];
            let clock = host.clock(self.now);
            host.lease.as_ref().is_some_and(|lease| lease.holds(clock))
        };
        if holds(0) && holds(1) {
            return Err(Violation::new("One-holder", "both leases run"));
        }
        Ok(())
    }

    /// Who is granted the right finds no address of the other node's.
    pub(super) fn check_granted(&self, node: usize) -> Result<(), Violation> {
        let other = &self.nodes[1 - node];
        if other.running && other.guard.is_none_or(|watch| !watch.dropped) {
            let what = format!(
                "granted to {} before the other one's margin is over",
                name(node)
            );
            return Err(Violation::new("Margin", what));
        }
        let clock = self.nodes[node].clock(self.now);
        let lease = self.nodes[node].lease.as_ref();
        if !lease.is_some_and(|lease| lease.holds(clock)) {
            return Err(Violation::new("One-holder", "granted without a lease"));
        }
        Ok(())
    }

    /// One source of leases is enough.
    pub(super) fn check_undisturbed(&self, node: usize) -> Result<(), Violation> {
        if self.profile == Profile::Everything || node != 0 || self.calm {
            return Ok(());
        }
        Err(Violation::new(
            "Undisturbed",
            format!("the lease has ended at {}, {:?}", name(node), self.profile),
        ))
    }

    /// Whoever wants the group alone has it.
    pub(super) fn check_end(&self) -> Result<(), Violation> {
        for node in 0..2 {
            let host = &self.nodes[node];
            if !host.wants {
                continue;
            }
            let clock = host.clock(self.now);
            let holds = host.lease.as_ref().is_some_and(|lease| lease.holds(clock));
            if host.core != Core::Running || !holds {
                let what = format!("{:?} at {}: {:?}", host.core, name(node), host.lease);
                return Err(Violation::new("Granted-at-last", what));
            }
        }
        Ok(())
    }
}
