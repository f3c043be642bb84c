//! *Liveness*: a request is answered in time, while nothing stands in its way (docs/design.md §4).
//!
//! A Primary whose own parts are healthy answers whatever its peer does, if it may go on alone: a peer that answers
//! pings and nothing else costs it the time-outs, and no more. One that needs its peer answers while both are healthy
//! and in a session. Whatever is injected, mended or ordered, and each question that the arbiter does not answer,
//! begins the time anew: how many of these may come in a row is no promise.

use kagami_replicator::core::state::{Role, Solo};
use kagami_replicator::core::{Connection, DiskState};

use super::check::brief;
use super::world::{Checked, MS, Phase, World};

/// What has stood in the way of a node's answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hindered {
    /// Something does.
    now: bool,
    /// When something did last, ns.
    last: u64,
}

impl World {
    /// After each event: no request waits for longer than it may.
    pub(super) fn check_in_time(&mut self) -> Checked {
        if self.phase != Phase::Storm || self.pending.is_empty() {
            return Ok(());
        }
        for node in 0..2 {
            let now = self.hindered_until(node);
            let before = self.ghost.hindered[node];
            let is_now = now > self.now;
            let ever = if is_now || before.now { self.now } else { now };
            let last = before.last.max(ever);
            self.ghost.hindered[node] = Hindered { now: is_now, last };
            let late = |since: u64| self.now.saturating_sub(since.max(last));
            let waits = self.pending.values().filter(|one| one.node == node);
            let Some(oldest) = waits.min_by_key(|one| one.since) else {
                continue;
            };
            if !is_now && late(oldest.since) > self.longest_answer() {
                let what = format!(
                    "{} has not answered {} for {} ms, and nothing stood in its way for {} ms",
                    self.nodes[node].name,
                    brief(&oldest.op),
                    (self.now - oldest.since) / MS,
                    (self.now - last) / MS,
                );
                return Err(self.violation("Liveness", what));
            }
        }
        Ok(())
    }

    /// How long a request takes at most: a meeting that comes to nothing, what the peer then owes in the session, the
    /// end of its lease, and the questions to the arbiter.
    fn longest_answer(&self) -> u64 {
        let o = &self.options;
        let s = &o.settings;
        let limits = 2 * (s.timeout_ms + s.ack_timeout_ms + s.arbiter_timeout_ms);
        // Five steps of each part, two questions to the arbiter: each takes at most 20 times its mean.
        limits * MS + 100 * (o.net_ns + o.disk_ns + o.meta_ns) + 40 * o.arbiter_ns
    }

    /// When whatever stands in the way of a node's answers is over, or was; the end of time if nobody knows.
    fn hindered_until(&self, node: usize) -> u64 {
        if self.nodes[node].seen.role != Role::Primary || self.is_ill(node) || self.waits_for_room()
        {
            return u64::MAX;
        }
        let at = &self.nodes[node];
        let own = [at.stalled_until, at.paused_until, at.meta.stalled_until];
        let ghost = &self.ghost;
        let all = [
            ghost.last_fault,
            ghost.last_order,
            ghost.drags_until,
            ghost.unanswered_until,
        ];
        let until = own.into_iter().chain(all).fold(0, u64::max);
        if self.may_go_on(node) {
            return until;
        }
        let met = (0..2).all(|node| self.connection(node) == Connection::Connected);
        if !met || self.is_ill(1 - node) || !self.net.is_whole() || self.net.slow > 1 {
            return u64::MAX;
        }
        until.max(self.stalls_end())
    }

    /// Something is wrong with a node's own parts.
    fn is_ill(&self, node: usize) -> bool {
        let at = &self.nodes[node];
        let store = &at.store;
        let disk = store.failed || store.full || !store.unreadable.is_empty() || at.slow > 1;
        let meta = at.meta.fail_next.is_some() || at.meta.failed.is_some();
        at.mirror.is_none() || disk || at.store_suspect || at.hangs || meta
    }

    /// It answers without its peer, or would be allowed to.
    fn may_go_on(&self, node: usize) -> bool {
        let at = &self.nodes[node];
        let Some(mirror) = at.mirror.as_ref() else {
            return false;
        };
        if at.seen.disk != DiskState::UpToDate {
            return false;
        }
        let answers = !self.arbiter.down && !self.options.kit.late_answers;
        let status = mirror.status(self.local(node));
        status.alone_since.is_some()
            || match at.settings.solo {
                Solo::Always => true,
                Solo::Never => false,
                Solo::Arbiter => {
                    let register = self.arbiter.register();
                    let is_ours = register.is_some_and(|register| {
                        mirror.record().arbiter == Some(register.instance)
                            && register.copies.contains(&at.id)
                    });
                    answers && self.old_arbiter.is_none() && is_ours
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use super::super::faults::kit::Kit;
    use super::super::orders::Order;
    use super::super::profile::Profile;
    use super::super::replay::Trace;
    use super::super::workload::{Op, Pending};
    use super::*;

    /// Nothing breaks, and both copies are good; which node is Primary.
    fn in_sync(solo: Solo) -> (World, usize) {
        let mut world = World::with(Profile::Hanging, 1, Trace::off(), |o| {
            o.settings.solo = solo;
            // The storm lasts, and a request without an answer is the only one.
            (o.requests, o.depth) = (u64::MAX, 1);
            o.fault_every_ns = None;
            o.orders = vec![(Order::Promote, 1)];
            o.kit = Kit::default();
        });
        loop {
            world.step().unwrap();
            let good = |node: &usize| world.nodes[*node].seen.disk == DiskState::UpToDate;
            let primary = (0..2).find(|node| world.nodes[*node].seen.role == Role::Primary);
            if let Some(primary) = primary.filter(|_| (0..2).all(|node| good(&node))) {
                return (world, primary);
            }
        }
    }

    /// A request that no core has ever heard of: how long after it was sent it is told as late, ns.
    fn lost_request(world: &mut World, node: usize) -> u64 {
        let (op, start, since) = (Op::Flush, world.tick, world.now);
        let lost = Pending {
            node,
            op,
            start,
            since,
        };
        world.pending.insert(u64::MAX, lost);
        loop {
            if let Err(violation) = world.step() {
                assert_eq!(violation.invariant, "Liveness");
                return world.now - since;
            }
            assert_eq!(world.phase, Phase::Storm, "it was never told");
        }
    }

    #[test]
    fn what_is_not_answered_is_told_in_time() {
        for solo in [Solo::Never, Solo::Arbiter, Solo::Always] {
            let (mut world, primary) = in_sync(solo);
            let longest = world.longest_answer();
            let told = lost_request(&mut world, primary);
            // (A question to the arbiter may be lost meanwhile.)
            assert!(
                (longest..2 * longest).contains(&told),
                "{solo:?}: {told} ns"
            );
        }
    }

    #[test]
    fn what_hangs_is_waited_for_where_it_is_needed() {
        for (solo, owner, waits) in [
            (Solo::Never, 0, true),
            (Solo::Never, 1, true),
            (Solo::Always, 0, true),
            (Solo::Always, 1, false),
        ] {
            let (mut world, primary) = in_sync(solo);
            let longest = world.longest_answer();
            let disk = (primary + owner) % 2;
            world.nodes[disk].stalled_until = world.now + 3 * longest;
            let told = lost_request(&mut world, primary);
            assert_eq!(
                told > 3 * longest,
                waits,
                "{solo:?}, node {owner}: {told} ns"
            );
        }
    }
}
