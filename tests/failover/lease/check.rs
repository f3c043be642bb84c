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
    pub(super) fn check_undisturbed(&self, node: usize, was: &str) -> Result<(), Violation> {
        let runs = self.nodes[node].core == Core::Running;
        if self.profile == Profile::Everything || node != 0 || self.calm || !runs {
            return Ok(());
        }
        let what = format!("the lease was {was} at {}, {:?}", name(node), self.profile);
        Err(Violation::new("Undisturbed", what))
    }

    /// A guard that freezes a group whose lease runs was not told of it by a manager that could have.
    pub(super) fn check_frozen(&self, node: usize) -> Result<(), Violation> {
        let host = &self.nodes[node];
        let clock = host.clock(self.now);
        let holds = host.lease.as_ref().is_some_and(|lease| lease.holds(clock));
        if !holds || host.paused || host.core != Core::Running {
            return Ok(());
        }
        let what = format!("frozen at {} under a lease that runs", name(node));
        Err(Violation::new("Undisturbed", what))
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
            let serves = host
                .guard
                .is_some_and(|watch| !watch.frozen && !watch.dropped);
            if host.core != Core::Running || !holds || !serves {
                let (core, guard) = (host.core, host.guard);
                let what = format!("{core:?} at {}: {guard:?}, {:?}", name(node), host.lease);
                return Err(Violation::new("Granted-at-last", what));
            }
        }
        Ok(())
    }
}
