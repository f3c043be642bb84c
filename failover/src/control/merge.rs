//! Both nodes' views as one report. A node that does not answer for itself is told by what the other
//! one hears; what nobody can say is unknown.

use std::collections::BTreeMap;

use super::status::{
    BeatState, ClusterReport, GroupReport, GroupView, HeartbeatReport, ManagerPhase, MonitorReport,
    NodeReport, NodeState, NodeView, OrderView, ResourceReport, RunState, SCHEMA, WatchState,
};
use crate::config::monitor::Target;
use crate::config::{ArbiterKind, Cluster, Group, HeartbeatKind, Monitor};

/// The report of a cluster, from the views of node `me` and, where it answers, of the other one.
pub fn merge(
    cluster: &Cluster,
    me: usize,
    mine: &NodeView,
    theirs: Option<&NodeView>,
    time_ms: u64,
) -> ClusterReport {
    let mut views = [None, None];
    views[me] = Some(mine);
    views[1 - me] = theirs;
    let both = Both { cluster, me, views };
    ClusterReport {
        schema: SCHEMA,
        time_ms,
        cluster: cluster.name.clone(),
        revision: cluster.revision,
        local: cluster.nodes[me].clone(),
        suspended: mine.suspended,
        arbiter: match cluster.arbiter.kind {
            ArbiterKind::Witness => {
                format!("witness {}", cluster.arbiter.name.as_deref().unwrap_or("?"))
            }
            ArbiterKind::Etcd => {
                format!("etcd {}", cluster.arbiter.name.as_deref().unwrap_or("?"))
            }
            ArbiterKind::None => "none".to_owned(),
        },
        arbiter_answers: mine.arbiter,
        nodes: (0..2).map(|node| both.node(node)).collect(),
        heartbeats: both.heartbeats(),
        groups: (cluster.groups.iter().enumerate())
            .map(|(at, group)| both.group(at, group))
            .collect(),
        monitors: (cluster.monitors.iter().enumerate())
            .map(|(at, monitor)| both.monitor(at, monitor))
            .collect(),
    }
}

struct Both<'a> {
    cluster: &'a Cluster,
    me: usize,
    views: [Option<&'a NodeView>; 2],
}

impl Both<'_> {
    fn name(&self, node: usize) -> String {
        self.cluster.nodes[node].clone()
    }

    /// What a node says of the configuration's groups and monitors: another revision's are others.
    fn view(&self, node: usize) -> Option<&NodeView> {
        self.views[node].filter(|view| {
            view.revision == self.cluster.revision
                && view.groups.len() == self.cluster.groups.len()
                && view.monitors.len() == self.cluster.monitors.len()
        })
    }

    fn heard(&self) -> NodeState {
        self.views[self.me].map_or(NodeState::Unknown, |mine| mine.other)
    }

    fn node(&self, node: usize) -> NodeReport {
        let view = self.views[node];
        let state = match (node == self.me, self.heard()) {
            (true, NodeState::Caution) => NodeState::Caution,
            (true, _) => NodeState::Online,
            // It answers over the channel, though no heartbeat is heard.
            (false, NodeState::Offline | NodeState::Unknown)
                if view.is_some_and(|view| view.phase != ManagerPhase::Gone) =>
            {
                NodeState::Caution
            }
            (false, heard) => heard,
        };
        NodeReport {
            name: self.name(node),
            state,
            phase: view.map(|view| view.phase).unwrap_or_default(),
            answers: view.is_some(),
            revision: view.map(|view| view.revision),
            version: view.map(|view| view.version.clone()),
        }
    }

    fn heartbeats(&self) -> Vec<HeartbeatReport> {
        let mut all: Vec<_> = (self.cluster.heartbeats.iter().enumerate())
            .map(|(at, heartbeat)| HeartbeatReport {
                name: heartbeat.name.clone(),
                kind: match heartbeat.kind {
                    HeartbeatKind::Lan(_) => "lan",
                    HeartbeatKind::Serial(_) => "serial",
                    HeartbeatKind::Disk(_) => "disk",
                }
                .to_owned(),
                priority: heartbeat.priority,
                nodes: (0..2)
                    .map(|node| {
                        let view = self.views[node];
                        let state = view.and_then(|view| view.heartbeats.get(at).copied());
                        (self.name(node), state.unwrap_or(BeatState::Unknown))
                    })
                    .collect(),
            })
            .collect();
        all.sort_by_key(|heartbeat| heartbeat.priority);
        all
    }

    /// What a group is at on a node.
    fn at(&self, at: usize, node: usize) -> RunState {
        if let Some(view) = self.view(node) {
            return view.groups[at].state;
        }
        let seen = (node != self.me)
            .then(|| self.view(self.me))
            .flatten()
            .and_then(|mine| mine.groups[at].other);
        let order = self.order(at);
        match seen {
            None => RunState::Unknown,
            Some(seen) if seen.online => RunState::Online,
            Some(seen) if seen.active && order.wanted && order.owner == node => {
                RunState::OnlinePending
            }
            Some(seen) if seen.active => RunState::OfflinePending,
            Some(_) => RunState::Offline,
        }
    }

    fn order(&self, at: usize) -> OrderView {
        let orders = (0..2).filter_map(|node| self.view(node).map(|view| &view.groups[at].order));
        orders
            .max_by_key(|order| (order.version, order.by))
            .cloned()
            .unwrap_or_default()
    }

    fn group(&self, at: usize, config: &Group) -> GroupReport {
        let on = [self.at(at, 0), self.at(at, 1)];
        let order = self.order(at);
        let owner = order.owner.min(1);
        let current = current(on);
        let state = match current {
            Some(node) => on[node],
            None if on[owner] == RunState::Unknown && order.wanted => RunState::Unknown,
            None => RunState::Offline,
        };
        let place = current.unwrap_or(owner);
        let view = |node: usize| self.view(node).map(|view| &view.groups[at]);
        let resource = |index: usize, node: usize| match view(node) {
            Some(view) => view.resources.get(index).copied().unwrap_or_default(),
            // All of it, or nothing of it.
            None if matches!(on[node], RunState::Online | RunState::Offline) => on[node],
            None => RunState::Unknown,
        };
        let mut failovers: BTreeMap<String, u32> = BTreeMap::new();
        for view in (0..2).filter_map(view) {
            for (what, count) in &view.failovers {
                let most = failovers.entry(what.clone()).or_default();
                *most = (*most).max(*count);
            }
        }
        // Of the node where it does not run, by the word of the one that hears it.
        let hears = |view: &GroupView| view.other.map(|seen| seen.ready);
        let other_ready = if place == self.me {
            view(self.me).and_then(hears)
        } else {
            view(place).and_then(hears)
        };
        GroupReport {
            name: config.name.clone(),
            state,
            current: current.map(|node| self.name(node)),
            wanted: order.wanted,
            owner: self.name(owner),
            order: order.version,
            frozen: (0..2).filter_map(view).any(|view| view.frozen),
            nodes: config.attributes.nodes.clone(),
            on: (0..2).map(|node| (self.name(node), on[node])).collect(),
            other_ready,
            failovers,
            resources: (config.resources.iter().enumerate())
                .map(|(index, config)| ResourceReport {
                    name: config.name.clone(),
                    kind: config.kind.name().to_owned(),
                    state: match (state, resource(index, place)) {
                        (RunState::Offline, RunState::Unknown) => RunState::Offline,
                        (_, state) => state,
                    },
                    on: (0..2)
                        .map(|node| (self.name(node), resource(index, node)))
                        .collect(),
                })
                .collect(),
        }
    }

    fn monitor(&self, at: usize, config: &Monitor) -> MonitorReport {
        let view = |node: usize| self.view(node).map(|view| &view.monitors[at]);
        let nodes = &config.common.nodes;
        let on = [0, 1].map(|node| {
            if nodes.is_empty() || nodes.contains(&self.cluster.nodes[node]) {
                view(node).map(|view| view.state).unwrap_or_default()
            } else {
                WatchState::Unused
            }
        });
        MonitorReport {
            name: config.name.clone(),
            kind: config.kind.name().to_owned(),
            state: together(on),
            target: match &config.target {
                Target::Cluster => "cluster".to_owned(),
                Target::Group(group) => group.clone(),
                Target::Resource(group, resource) => format!("{group}/{resource}"),
            },
            made_to_fail: (0..2).filter_map(view).any(|view| view.made_to_fail),
            on: (0..2).map(|node| (self.name(node), on[node])).collect(),
        }
    }
}

/// Where something of a group is active: while it moves, where it comes from.
fn current(on: [RunState; 2]) -> Option<usize> {
    let rank = |state: RunState| match state {
        RunState::Online => 5,
        RunState::OfflineFailure => 4,
        RunState::OnlineFailure => 3,
        RunState::OfflinePending => 2,
        RunState::OnlinePending => 1,
        RunState::Offline | RunState::Unknown => 0,
    };
    let best = usize::from(rank(on[1]) > rank(on[0]));
    (rank(on[best]) > 0).then_some(best)
}

/// One word for both nodes.
fn together(on: [WatchState; 2]) -> WatchState {
    use WatchState as W;
    let all = |states: &[W]| on.iter().all(|state| states.contains(state));
    let any = |state: W| on.contains(&state);
    if all(&[W::Unused]) {
        W::Unused
    } else if all(&[W::Unused, W::Unknown]) {
        W::Unknown
    } else if any(W::Error) && all(&[W::Error, W::Unused, W::Unknown]) {
        W::Error
    } else if any(W::Error) || any(W::Caution) {
        W::Caution
    } else if any(W::Normal) {
        W::Normal
    } else {
        W::Suspended
    }
}
