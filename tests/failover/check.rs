//! What must never be, looked at from outside: both nodes at once, and counts of its own.
//!
//! What a manager tells in its alerts counts once the state that it follows from is durable: what
//! dies with it before was not done.

use std::collections::BTreeMap;
use std::fmt;

use kagami_failover::config::{Cluster, Final};
use kagami_failover::core::state::NodeStatus;
use kagami_failover::core::{Alert, Command, GroupStatus, Object, OpId, OpResult, Work};

use super::mirror::{Hold, name};
use super::world::{Live, Op, World};

/// What must never be, and was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: String,
    /// What was seen.
    pub what: String,
}

impl Violation {
    pub fn new(invariant: &str, what: impl Into<String>) -> Self {
        Self {
            invariant: invariant.to_owned(),
            what: what.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// An alert, with what was true when it was given.
#[derive(Debug)]
pub struct Said {
    pub node: usize,
    /// The write that makes it true.
    pub written: u64,
    pub alert: Alert,
    /// The monitor's failures in a row.
    pub failures: u32,
    pub suspended: bool,
    /// The other node could have taken the group, as far as this one knew, whose resource is given up.
    pub other_can: bool,
    /// Its failovers for this cause, as this one counts.
    pub failovers: u32,
    pub gave_up: bool,
}

/// What was seen so far: the reference's own counts.
#[derive(Debug)]
pub struct Seen {
    /// Alerts whose state is not durable yet.
    waiting: Vec<Said>,
    last_persist: [u64; 2],
    /// Failed activations in a row, by (node, group, resource).
    tries: BTreeMap<(usize, usize, usize), u32>,
    /// As `tries`, whatever an operator said: no fewer than the core can have counted.
    fails: BTreeMap<(usize, usize, usize), u32>,
    /// When an activation failed last, and in which life of the manager, by (node, group, resource).
    failed_at: BTreeMap<(usize, usize, usize), (u64, u64)>,
    /// Failovers, by (group, what made them).
    failovers: BTreeMap<(usize, String), u32>,
    /// Scripts, reactivations, failovers and final actions that were decided, by (node, monitor).
    steps: BTreeMap<(usize, usize), [u32; 4]>,
    /// Reactivations that were made, and scripts that ran.
    effects: BTreeMap<(usize, usize), u32>,
    scripts: BTreeMap<(usize, usize), u32>,
    /// Failed looks in a row, by (node, monitor).
    failures: BTreeMap<(usize, usize), u32>,
    /// When an operator last spoke of a group.
    spoken: Vec<u64>,
    /// A failover from this node was decided and is on its way: (node, group).
    leaving: Vec<(usize, usize)>,
    pub stop_failed_in_calm: bool,
    /// An operator, or a final action, has stopped a group.
    pub stopped: Vec<bool>,
    /// A group has waited for another one in vain.
    pub in_vain: Vec<bool>,
    /// Since when a group is about to start, by node and group.
    pending: [Vec<Option<u64>>; 2],
    pub unneeded_reset: Option<String>,
    /// What was found as a life of a manager ended.
    pub at_the_end: Option<Violation>,
}

impl Seen {
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            waiting: Vec::new(),
            last_persist: [0; 2],
            tries: BTreeMap::new(),
            fails: BTreeMap::new(),
            failed_at: BTreeMap::new(),
            failovers: BTreeMap::new(),
            steps: BTreeMap::new(),
            effects: BTreeMap::new(),
            scripts: BTreeMap::new(),
            failures: BTreeMap::new(),
            spoken: vec![0; cluster.groups.len()],
            leaving: Vec::new(),
            stop_failed_in_calm: false,
            stopped: vec![false; cluster.groups.len()],
            in_vain: vec![false; cluster.groups.len()],
            pending: [(); 2].map(|()| vec![None; cluster.groups.len()]),
            unneeded_reset: None,
            at_the_end: None,
        }
    }

    /// When a write that could end at `at` ends: after those before it.
    pub fn persist_after(&mut self, node: usize, at: u64) -> u64 {
        self.last_persist[node] = self.last_persist[node].max(at);
        self.last_persist[node]
    }

    /// Failed looks of a monitor in a row.
    pub fn failures_of(&self, node: usize, monitor: Option<usize>) -> u32 {
        let failures = monitor.and_then(|monitor| self.failures.get(&(node, monitor)));
        failures.copied().unwrap_or_default()
    }

    pub fn alert(&mut self, said: Said) {
        self.waiting.push(said);
    }

    pub fn forget_uncommitted(&mut self, node: usize) {
        self.waiting.retain(|said| said.node != node);
    }

    pub fn rebooted(&mut self, node: usize) {
        self.tries.retain(|(at, _, _), _| *at != node);
        self.fails.retain(|(at, _, _), _| *at != node);
        self.failed_at.retain(|(at, _, _), _| *at != node);
        self.failures.retain(|(at, _), _| *at != node);
        self.leaving.retain(|(at, _)| *at != node);
    }

    /// An operator's start and move begin with counts at 0.
    pub fn obeyed(&mut self, command: Command, now: u64) {
        if let Command::Stop { group } = command {
            self.stopped[group] = true;
        }
        let (Command::Start { group, .. } | Command::Move { group, .. }) = command else {
            return;
        };
        self.spoken_of(group, now);
    }

    fn spoken_of(&mut self, group: usize, now: u64) {
        self.failovers.retain(|(of, _), _| *of != group);
        self.tries.retain(|(_, of, _), _| *of != group);
        self.failed_at.retain(|(_, of, _), _| *of != group);
        self.spoken[group] = now;
    }
}

impl World {
    pub fn group_of(&self, object: &Object) -> Option<usize> {
        let (Object::Group(name) | Object::Resource(name, _)) = object else {
            return None;
        };
        self.options
            .cluster
            .groups
            .iter()
            .position(|g| g.name == *name)
    }

    pub fn monitor_of(&self, key: &str) -> Option<usize> {
        let name = key.strip_prefix("monitor ")?;
        self.options
            .cluster
            .monitors
            .iter()
            .position(|m| m.name == name)
    }

    /// What was said up to this write is done.
    pub fn commit(&mut self, node: usize, seq: u64) -> Result<(), Violation> {
        let waiting = std::mem::take(&mut self.seen.waiting);
        let (done, rest): (Vec<Said>, Vec<Said>) =
            (waiting.into_iter()).partition(|said| said.node == node && said.written <= seq);
        self.seen.waiting = rest;
        for said in done {
            self.committed(&said)?;
        }
        Ok(())
    }

    fn committed(&mut self, said: &Said) -> Result<(), Violation> {
        let (node, alert, suspended) = (said.node, &said.alert, said.suspended);
        let cluster = self.options.cluster.clone();
        let Some(group) = self.group_of(&alert.object) else {
            // A cluster's start begins with counts at 0.
            if let Object::Monitor(name) = &alert.object
                && alert.what.starts_with("recovers")
            {
                let mut monitors = self.options.cluster.monitors.iter();
                let monitor = monitors.position(|m| m.name == *name).unwrap_or_default();
                return self.stepped(monitor, said);
            }
            if alert.object == Object::Cluster && alert.what.starts_with("starts") {
                self.seen.failovers.clear();
            }
            return Ok(());
        };
        if alert.what == "is to stop" {
            // Recorded, whether or not the operator has heard so.
            self.seen.stopped[group] = true;
        }
        // An operator's start and move, and another try, begin with counts at 0.
        let again = ["is to start", "is to move", "what could not"];
        if alert.cause == "an operator" && again.iter().any(|what| alert.what.starts_with(what)) {
            self.seen.spoken_of(group, self.now);
        }
        let at = name(node);
        let key = alert.cause.as_str();
        let monitor = self.monitor_of(key);
        if let Object::Resource(_, name) = &alert.object
            && alert.what.starts_with("not activated in ")
            && let Some(resource) = cluster.groups[group].position(name)
        {
            let fails = self.seen.fails.get(&(node, group, resource));
            let fails = fails.copied().unwrap_or_default();
            let needed = 1 + cluster.groups[group].resources[resource].retries();
            if fails < needed {
                let what = format!("{at}: {alert}: after {fails} tries of {needed}");
                return Err(Violation::new("Thresholds", what));
            }
        }
        let resource = key.strip_prefix("resource ");
        let found = resource.and_then(|name| cluster.groups[group].position(name));
        if let Some(found) =
            found.filter(|_| alert.what.starts_with("final action") && said.gave_up)
        {
            let count = said.failovers;
            let threshold = cluster.groups[group].resources[found].common.failovers;
            if count < threshold && said.other_can {
                let what = format!("{at}: {alert}: after {count} failovers of {threshold}");
                return Err(Violation::new("Thresholds", what));
            }
        }
        let by_operator = self.now.saturating_sub(self.seen.spoken[group]) < 10_000;
        if alert.what == "final action: the group stops" {
            // What the rest of its stop is for changes with an older failover that is heard of meanwhile.
            self.seen.leaving.push((node, group));
        }
        if alert.what.starts_with("fails over to node") {
            self.stats.failovers += 1;
            self.seen.leaving.push((node, group));
            if suspended {
                return Err(Violation::new("Suspended", format!("{at}: {alert}")));
            }
            if by_operator {
                return Ok(());
            }
            let threshold = if let Some(monitor) = monitor {
                cluster.monitors[monitor].common.failovers
            } else {
                let name = key.strip_prefix("resource ").unwrap_or_default();
                let found = cluster.groups[group].position(name);
                found.map_or(0, |r| cluster.groups[group].resources[r].common.failovers)
            };
            let count = self
                .seen
                .failovers
                .entry((group, key.to_owned()))
                .or_default();
            *count += 1;
            if *count > threshold {
                let what = format!("{at}: failover {count} of {threshold}: {alert}");
                return Err(Violation::new("Thresholds", what));
            }
        }
        if monitor.is_some() && suspended {
            return Err(Violation::new("Suspended", format!("{at}: {alert}")));
        }
        if let Some(monitor) = monitor.filter(|_| alert.what.ends_with("reactivated")) {
            let effects = self.seen.effects.entry((node, monitor)).or_default();
            *effects += 1;
            let decided = self
                .seen
                .steps
                .get(&(node, monitor))
                .map_or(0, |steps| steps[1]);
            if *effects > decided {
                let what = format!("{at}: {alert}: {effects} times, decided {decided} times");
                return Err(Violation::new("No-action-twice", what));
            }
        }
        Ok(())
    }

    /// A monitor's recovery took a step: the thresholds before it are used up, its own is not.
    fn stepped(&mut self, monitor: usize, said: &Said) -> Result<(), Violation> {
        let (node, alert, failures) = (said.node, &said.alert, said.failures);
        let cluster = self.options.cluster.clone();
        let config = &cluster.monitors[monitor];
        let common = &config.common;
        let at = name(node);
        self.stats.recoveries += 1;
        let needed = if common.no_retry_after_timeout {
            1
        } else {
            config.retries() + 1
        };
        if failures < needed {
            let what = format!("{at}: {alert}: after {failures} failures, {needed} are needed");
            return Err(Violation::new("Thresholds", what));
        }
        let step = match alert.what.as_str() {
            "recovers: script" => 0,
            "recovers: reactivation" => 1,
            "recovers: failover" => 2,
            _ => 3,
        };
        let steps = self.seen.steps.entry((node, monitor)).or_default();
        steps[step] += 1;
        let (scripts, finals) = (common.script_runs, 1);
        let thresholds = [scripts, config.reactivations(), u32::MAX, finals];
        for before in 0..step {
            if before != 2 && steps[before] != thresholds[before] {
                let what = format!("{at}: {alert}: {steps:?} steps of {thresholds:?}");
                return Err(Violation::new("Thresholds", what));
            }
        }
        if steps[step] > thresholds[step] {
            let what = format!("{at}: {alert}: {steps:?} steps of {thresholds:?}");
            return Err(Violation::new("Thresholds", what));
        }
        if said.suspended {
            return Err(Violation::new("Suspended", format!("{at}: {alert}")));
        }
        Ok(())
    }

    pub fn see_probe(&mut self, node: usize, monitor: usize, result: &OpResult) {
        let failures = self.seen.failures.entry((node, monitor)).or_default();
        // A warning is no failure.
        *failures = if matches!(result, OpResult::Done | OpResult::Warned(_)) {
            0
        } else {
            *failures + 1
        };
    }

    /// The reference's own count of activations that failed.
    pub fn see_op_end(&mut self, node: usize, work: Work, result: &OpResult) {
        match (work, result) {
            (Work::Start { group, resource } | Work::Stop { group, resource }, OpResult::Done) => {
                self.seen.tries.remove(&(node, group, resource));
                self.seen.fails.remove(&(node, group, resource));
                self.seen.failed_at.remove(&(node, group, resource));
            }
            (Work::Start { group, resource }, _) => {
                let host = &self.nodes[node];
                let order = host.manager.as_ref().map(|manager| {
                    let order = manager.order_of(group);
                    let here = order.wanted && order.owner == node;
                    here && !manager.is_frozen(group) && manager.durable().ending.is_none()
                });
                let place = (node, group, resource);
                *self.seen.fails.entry(place).or_default() += 1;
                if order == Some(true) {
                    self.seen.failed_at.insert(place, (self.now, host.life));
                }
                // On the way down a failure says nothing of the resource, also where the group comes back before it
                // is down. Without a manager: the next one hears of it, and counts.
                if order != Some(false) {
                    *self.seen.tries.entry(place).or_default() += 1;
                }
            }
            (Work::Stop { .. }, _) => self.seen.stop_failed_in_calm |= self.calm,
            _ => {}
        }
    }

    /// Something of the group answers its users at this node.
    fn serves(&self, node: usize, group: usize) -> bool {
        let host = &self.nodes[node];
        host.up
            && !host.frozen[group]
            && !host.dropped[group]
            && host.live[group].iter().any(|live| *live != Live::Off)
    }

    /// Who gives up waiting for another group has waited for its time.
    pub fn check_alert(&mut self, node: usize, alert: &Alert) -> Result<(), Violation> {
        let Some(group) = self.group_of(&alert.object) else {
            return Ok(());
        };
        if alert.what.starts_with("final action: the group stops") {
            self.seen.stopped[group] = true;
        }
        // Not one that nothing lets start: that waits for no other one.
        if alert.what != "not started" || !alert.cause.contains(" is not online after ") {
            return Ok(());
        }
        self.seen.in_vain[group] = true;
        let since = self.seen.pending[node][group].unwrap_or(self.now);
        let attributes = &self.options.cluster.groups[group].attributes;
        if self.now - since < attributes.wait_timeout.0 {
            let what = format!("{}: {alert}: it waits since {since} ms", name(node));
            return Err(Violation::new("Waits", what));
        }
        Ok(())
    }

    fn see_pending(&mut self) {
        for (node, pending) in self.seen.pending.iter_mut().enumerate() {
            let manager = self.nodes[node].manager.as_ref();
            for (group, since) in pending.iter_mut().enumerate() {
                let is =
                    manager.is_some_and(|m| m.group_status(group) == GroupStatus::OnlinePending);
                *since = is.then(|| since.unwrap_or(self.now));
            }
        }
    }

    pub fn check_step(&mut self) -> Result<(), Violation> {
        self.see_pending();
        if let Some(violation) = self.seen.at_the_end.take() {
            return Err(violation);
        }
        self.check_states()?;
        if let Some(what) = self.seen.unneeded_reset.take() {
            return Err(Violation::new("Stops-in-time", what));
        }
        for group in 0..self.mirrors.len() {
            if self.serves(0, group) && self.serves(1, group) {
                return Err(Violation::new(
                    "Never-two",
                    format!("g{group} runs on both nodes"),
                ));
            }
            let hold = self.mirrors[group].hold;
            if hold[0] != Hold::No && hold[1] != Hold::No && (hold.contains(&Hold::Together)) {
                let what = format!("g{group}: {hold:?}");
                return Err(Violation::new("World", what));
            }
            for (node, hold) in hold.into_iter().enumerate() {
                if hold == Hold::Asking && self.serves(node, group) {
                    let what = format!("g{group} runs at {} after its lease", name(node));
                    return Err(Violation::new("Frozen-at-lease-end", what));
                }
            }
        }
        Ok(())
    }

    pub fn check_run(
        &mut self,
        node: usize,
        op: OpId,
        work: Work,
        environment: &[(String, String)],
    ) -> Result<(), Violation> {
        let at = name(node);
        let twice = |what: &str| {
            Err(Violation::new(
                "No-action-twice",
                format!("{at}: {op} {work:?}: {what}"),
            ))
        };
        if self.nodes[node].ops.contains_key(&op) {
            return twice("its number was used before");
        }
        let manager = self.nodes[node].manager.as_ref();
        if let (Work::Fence { .. }, Some(manager)) = (work, manager) {
            let status = manager.node_status();
            if status != NodeStatus::Offline || manager.durable().suspended.value {
                let what = format!("{at}: the other node is {status:?}");
                return Err(Violation::new("Fences-the-lost", what));
            }
        }
        let same_place = |other: &Work| match (work, *other) {
            (
                Work::Start { group, resource } | Work::Stop { group, resource },
                Work::Start {
                    group: g,
                    resource: r,
                }
                | Work::Stop {
                    group: g,
                    resource: r,
                },
            ) => (group, resource) == (g, r),
            _ => false,
        };
        let mut ops = self.nodes[node].ops.values();
        if ops.any(|op| matches!(op, Op::Running { work, .. } if same_place(work))) {
            return twice("another operation on the same resource runs");
        }
        let cluster = self.options.cluster.clone();
        match work {
            Work::Start { group, resource } => {
                let config = &cluster.groups[group];
                if self.nodes[node].live[group][resource] == Live::On {
                    return twice("it is active already");
                }
                let hold = self.mirrors[group].hold[node];
                let told = self.has_just_lost(node, group);
                if !matches!(hold, Hold::Together | Hold::Alone | Hold::Asking) && !told {
                    let what = format!("{at}: {work:?} without the right to run");
                    return Err(Violation::new("Right-first", what));
                }
                let early = self.mirrors[group].margin[node].is_some();
                if early && !config.resources[resource].answers_nobody() {
                    let what = format!("{at}: {work:?} where the other node may have the address");
                    return Err(Violation::new("Margin", what));
                }
                for (on, needed) in config.resources.iter().enumerate() {
                    let needs = config.resources[resource]
                        .common
                        .depends
                        .contains(&needed.name);
                    let excused = needed.common.final_action == Final::ActivateNext;
                    if needs && !excused && self.nodes[node].live[group][on] != Live::On {
                        let what = format!("{at}: {work:?} before {}", needed.name);
                        return Err(Violation::new("Dependencies", what));
                    }
                }
                let tries = self
                    .seen
                    .tries
                    .get(&(node, group, resource))
                    .copied()
                    .unwrap_or_default();
                let most = config.resources[resource].retries();
                // The right to run that was lost and what an operator said change what counts.
                if tries > most && self.counts_exactly(node, group) {
                    let what = format!("{at}: {work:?}: try {} of 1 + {most}", tries + 1);
                    return Err(Violation::new("Thresholds", what));
                }
                // A pause does not outlive the manager.
                let pause = config.resources[resource].common.retry_pause.0;
                let failed = self.seen.failed_at.get(&(node, group, resource));
                let life = self.nodes[node].life;
                let early = failed.filter(|(when, of)| *of == life && self.now < when + pause);
                if let Some((when, _)) = early.filter(|_| self.counts_exactly(node, group)) {
                    let after = self.now - when;
                    let what = format!("{at}: {work:?}: again after {after} ms of {pause} ms");
                    return Err(Violation::new("Thresholds", what));
                }
            }
            Work::Stop { group, resource } => {
                self.seen.failed_at.remove(&(node, group, resource));
                for by in self.dependents(group, resource) {
                    let config = &cluster.groups[group].resources[by].common;
                    let stuck = config.stop_final == Final::ActivateNext;
                    if self.nodes[node].live[group][by] != Live::Off && !stuck {
                        let what = format!("{at}: {work:?} while resource {by} needs it");
                        return Err(Violation::new("Dependencies", what));
                    }
                }
                let factor = environment.iter().find(|(key, _)| key == "CLP_FACTOR");
                let factor = factor.map(|(_, value)| value.as_str()).unwrap_or_default();
                let mirror = &self.mirrors[group];
                let held = matches!(mirror.hold[node], Hold::Together | Hold::Alone);
                let holds = held && !mirror.lost[node];
                if factor == "GROUPFAILOVER" && holds && !self.seen.leaving.contains(&(node, group))
                {
                    let what =
                        format!("{at}: {work:?}: it stops for a failover that it has not begun");
                    return Err(Violation::new("Undisturbed", what));
                }
            }
            Work::Script { monitor } => {
                let scripts = self.seen.scripts.entry((node, monitor)).or_default();
                *scripts += 1;
                let most = cluster.monitors[monitor].common.script_runs;
                if *scripts > most {
                    let what = format!("{at}: script of m{monitor}: run {scripts} of {most}");
                    return Err(Violation::new("Thresholds", what));
                }
            }
            Work::Preaction { .. } | Work::Fence { .. } => {}
        }
        Ok(())
    }

    /// The word that the right is lost may not have reached the manager.
    fn has_just_lost(&self, node: usize, group: usize) -> bool {
        let host = &self.nodes[node];
        let stood = host.stood.filter(|(_, until)| *until == self.now);
        let unheard = |when: u64| stood.is_some_and(|(since, _)| when + 10 > since);
        host.lost_at[group].is_some_and(|(when, _)| self.now - when < 10 || unheard(when))
    }

    fn counts_exactly(&self, node: usize, group: usize) -> bool {
        let calm_right = self.nodes[node].lost_at[group].is_none();
        calm_right && self.now.saturating_sub(self.seen.spoken[group]) > 10_000
    }

    pub fn check_release(&mut self, node: usize, group: usize) -> Result<(), Violation> {
        if self.nodes[node].live[group]
            .iter()
            .any(|live| *live != Live::Off)
        {
            let what = format!(
                "{}: the right to run g{group} is given up while it runs",
                name(node)
            );
            return Err(Violation::new("Stopped-first", what));
        }
        self.seen
            .leaving
            .retain(|leaving| *leaving != (node, group));
        Ok(())
    }

    /// A node is reset only because something could not be stopped, or nobody was there to stop it.
    pub fn check_reset(&mut self, node: usize, group: usize) {
        let host = &self.nodes[node];
        let stood = host.stood.map(|(_, until)| until);
        let same_life = host.lost_at[group].is_some_and(|(when, life)| {
            life == host.life && stood.is_none_or(|until| until < when)
        });
        let resources = self.options.cluster.groups[group].resources.len() as u64;
        let busy = host.ops.values().any(|op| matches!(op, Op::Running { .. }));
        let clean = self.options.stop_fails == 0
            && self.options.hangs == 0
            && self.options.persist_fails == 0;
        let long = self.options.cluster.stop_bound.0 > resources * 4500 + 1000;
        if same_life && host.manager.is_some() && host.paused.is_none() && clean && long && !busy {
            self.seen.unneeded_reset =
                Some(format!("{}: g{group} was not stopped in time", name(node)));
        }
        self.stats.resets += 1;
    }
}
