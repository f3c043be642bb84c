//! The end of a run: no more faults, and the groups run where they should.

use std::sync::Arc;

use kagami_failover::config::Final;
use kagami_failover::core::message::Phase;
use kagami_failover::core::{Command, GroupStatus, Manager};

use super::check::Violation;
use super::mirror::name;
use super::world::{Item, World};

impl World {
    /// The faults stop; whatever was broken is whole.
    pub(super) fn on_calm(&mut self) -> Result<(), Violation> {
        self.note(|| "calm: no more faults".to_owned());
        self.calm = true;
        self.link_up = true;
        self.arbiter_up = true;
        self.arbiter_reached = [true; 2];
        self.beats_up.fill([true; 2]);
        for node in &mut self.nodes {
            node.broken.fill(0);
            node.failing.fill(0);
            node.unwritable = 0;
        }
        for node in 0..2 {
            self.go_on(node)?;
        }
        // A disk that is not replaced stays as it is: the groups run beside it.
        for group in 0..self.mirrors.len() {
            for node in 0..2 {
                if self.rng.coin() {
                    self.replace_disk(node, group);
                }
            }
        }
        if self.rng.one_in(3) {
            let node = self.rng.node();
            self.note(|| format!("{} stays down", name(node)));
            self.crash_node(node, true);
            self.gone = Some(node);
        }
        self.try_connect();
        for node in 0..2 {
            if !self.nodes[node].up {
                self.start_node(node)?;
            } else if self.nodes[node].manager.is_none() {
                self.start_manager(node)?;
            }
        }
        // An end that was ordered just now is over by then.
        self.later(60_000, Item::Resume);
        self.later(70_000, Item::MoveAway);
        self.command(0, Command::Resume)?;
        self.command(1, Command::Resume)?;
        let wait = self.options.cluster.wait_for_node.0;
        let bound = self.options.cluster.stop_bound.0;
        self.later(wait + 2 * bound + 180_000, Item::End);
        Ok(())
    }

    /// Whoever looks after the groups moves them away from a node whose disk has failed, as soon as that
    /// is possible.
    pub(super) fn move_away(&mut self) -> Result<(), Violation> {
        for group in 0..self.mirrors.len() {
            for dead in 0..2 {
                let manager = self.nodes[dead].manager.as_ref();
                let runs = manager.is_some_and(|m| m.group_status(group) == GroupStatus::Online);
                if self.mirrors[group].dead[dead] && runs {
                    let to = 1 - dead;
                    self.command(dead, Command::Move { group, to })?;
                }
            }
        }
        self.start_by_hand()?;
        self.later(10_000, Item::MoveAway);
        Ok(())
    }

    /// Where nothing else decides what becomes of a lost node's groups, he starts them on the other one.
    fn start_by_hand(&mut self) -> Result<(), Violation> {
        let Some(node) = self.gone.map(|gone| 1 - gone) else {
            return Ok(());
        };
        for group in 0..self.mirrors.len() {
            let manager = self.nodes[node].manager.as_ref();
            let waits = manager.is_some_and(|m| {
                m.order_of(group).wanted && m.group_status(group) != GroupStatus::Online
            });
            if self.options.by_hand && waits {
                let (on, sure) = (Some(node), true);
                self.command(node, Command::Start { group, on, sure })?;
            }
        }
        Ok(())
    }

    /// The one that is left runs what may run there.
    pub(super) fn check_survivor(&mut self, node: usize) -> Result<(), Violation> {
        let host = &self.nodes[node];
        let Some(manager) = host
            .manager
            .as_ref()
            .filter(|_| self.now - host.started > 150_000)
        else {
            return Ok(());
        };
        let mut online = 0;
        for (group, config) in self.options.cluster.groups.iter().enumerate() {
            let status = manager.group_status(group);
            let mirror = &self.mirrors[group];
            let may = mirror.register[node] && !mirror.bad[node] && !mirror.dead[node];
            let failed = matches!(
                status,
                GroupStatus::OnlineFailure | GroupStatus::OfflineFailure
            );
            let manual = config.attributes.startup == kagami_failover::config::Start::Manual;
            let waits = !config.attributes.wait_for.is_empty() && !self.is_online_somewhere(0);
            let wanted = manager.order_of(group).wanted;
            if status != GroupStatus::Online
                && wanted
                && may
                && !failed
                && !manual
                && !waits
                && !self.seen.in_vain[group]
            {
                let order = manager.order_of(group);
                let what = format!(
                    "{}: {status:?} at {}, the only node, {order:?}",
                    config.name,
                    name(node)
                );
                return Err(Violation::new("Taken-over", what));
            }
            online += u64::from(status == GroupStatus::Online);
        }
        self.stats.online += online;
        Ok(())
    }

    /// The group is to run, and runs on one node.
    pub(super) fn check_end(&mut self) -> Result<(), Violation> {
        if let Some(gone) = self.gone {
            return self.check_survivor(1 - gone);
        }
        let managers: Vec<&Manager> = self
            .nodes
            .iter()
            .filter_map(|n| n.manager.as_ref())
            .collect();
        let [a, b] = managers[..] else {
            // A final action has just ended one, which is not what is looked at here.
            return Ok(());
        };
        let settled = |m: &Manager| m.phase() == Phase::Running && !m.durable().suspended.value;
        if !settled(a) || !settled(b) {
            let what = format!("at the end {:?} and {:?}", a.phase(), b.phase());
            return Err(Violation::new("Runs-somewhere", what));
        }
        let ended = self
            .nodes
            .iter()
            .any(|node| self.now - node.started < 150_000);
        let cluster = Arc::clone(&self.options.cluster);
        for (group, config) in cluster.groups.iter().enumerate() {
            let (at_a, at_b) = (a.group_status(group), b.group_status(group));
            if a.order_of(group) != b.order_of(group) {
                let stamp = |m: &Manager| m.durable().groups[group].order.clone();
                let what = format!("{}: {:?} and {:?}", config.name, stamp(a), stamp(b));
                return Err(Violation::new("One-word", what));
            }
            let failed = |status| {
                matches!(
                    status,
                    GroupStatus::OnlineFailure | GroupStatus::OfflineFailure
                )
            };
            let manual = config.attributes.startup == kagami_failover::config::Start::Manual;
            let excused = failed(at_a)
                || failed(at_b)
                || manual
                || ended
                || self.seen.in_vain[group]
                || config.resources.iter().any(|r| {
                    // A group that can't be stopped may have taken its node down just now.
                    r.common.stop_final != Final::Nothing && self.seen.stop_failed_in_calm
                })
                || config
                    .attributes
                    .wait_for
                    .iter()
                    .any(|_| !self.is_online_somewhere(0));
            if !a.order_of(group).wanted {
                if !manual && !ended && !self.seen.stopped[group] {
                    let what = format!("{}: {:?}", config.name, a.order_of(group));
                    return Err(Violation::new("Starts-with-the-cluster", what));
                }
                continue;
            }
            let online = [at_a, at_b]
                .iter()
                .filter(|s| **s == GroupStatus::Online)
                .count();
            if online != 1 && !excused {
                let what = format!(
                    "{}: {at_a:?} at a, {at_b:?} at b, {:?}",
                    config.name,
                    a.order_of(group)
                );
                return Err(Violation::new("Runs-somewhere", what));
            }
            let dead = self.mirrors[group].dead;
            let beside = [at_a, at_b]
                .iter()
                .zip(dead)
                .any(|(status, dead)| dead && *status == GroupStatus::Online);
            if beside && !excused {
                let what = format!(
                    "{}: {at_a:?} at a, {at_b:?} at b, no disk at {dead:?}",
                    config.name
                );
                return Err(Violation::new("Runs-where-the-disk-is", what));
            }
            self.stats.online += u64::from(online == 1);
            self.stats.beside += u64::from(online == 1 && dead != [false; 2]);
        }
        Ok(())
    }

    pub(super) fn is_online_somewhere(&self, group: usize) -> bool {
        let managers = self.nodes.iter().filter_map(|n| n.manager.as_ref());
        managers
            .into_iter()
            .any(|m| m.group_status(group) == GroupStatus::Online)
    }
}
