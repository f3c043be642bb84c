//! What a manager's core knows, as a document.

use super::status::{
    BeatState, GroupView, ManagerPhase, MonitorView, NodeState, NodeView, OrderView, RunState,
    Seen, WatchState,
};
use crate::config::Cluster;
use crate::core::message::Phase;
use crate::core::state::{HeartbeatStatus, NodeStatus};
use crate::core::{GroupStatus, Manager, MonitorStatus, ResourceState};

impl From<GroupStatus> for RunState {
    fn from(status: GroupStatus) -> Self {
        match status {
            GroupStatus::Offline => Self::Offline,
            GroupStatus::OnlinePending => Self::OnlinePending,
            GroupStatus::Online => Self::Online,
            GroupStatus::OfflinePending => Self::OfflinePending,
            GroupStatus::OnlineFailure => Self::OnlineFailure,
            GroupStatus::OfflineFailure => Self::OfflineFailure,
        }
    }
}

impl From<ResourceState> for RunState {
    fn from(state: ResourceState) -> Self {
        match state {
            ResourceState::Offline => Self::Offline,
            ResourceState::Starting => Self::OnlinePending,
            ResourceState::Online => Self::Online,
            ResourceState::Stopping => Self::OfflinePending,
            ResourceState::Failed => Self::OnlineFailure,
            ResourceState::StopFailed => Self::OfflineFailure,
        }
    }
}

impl From<MonitorStatus> for WatchState {
    fn from(status: MonitorStatus) -> Self {
        match status {
            MonitorStatus::Unused => Self::Unused,
            MonitorStatus::Unknown => Self::Unknown,
            MonitorStatus::Normal => Self::Normal,
            MonitorStatus::Caution => Self::Caution,
            MonitorStatus::Error => Self::Error,
            MonitorStatus::Suspended => Self::Suspended,
        }
    }
}

impl From<NodeStatus> for NodeState {
    fn from(status: NodeStatus) -> Self {
        match status {
            NodeStatus::Unknown => Self::Unknown,
            NodeStatus::Online => Self::Online,
            NodeStatus::Caution => Self::Caution,
            NodeStatus::Offline => Self::Offline,
        }
    }
}

impl From<HeartbeatStatus> for BeatState {
    fn from(status: HeartbeatStatus) -> Self {
        match status {
            HeartbeatStatus::Normal => Self::Normal,
            HeartbeatStatus::Caution => Self::Caution,
            HeartbeatStatus::Error => Self::Error,
            HeartbeatStatus::Unknown => Self::Unknown,
        }
    }
}

impl From<Phase> for ManagerPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Waiting => Self::Waiting,
            Phase::Running => Self::Running,
            Phase::Ending => Self::Ending,
            Phase::Gone => Self::Gone,
        }
    }
}

/// What the manager of node `me` knows; version and process are this program's, and whether the
/// arbiter answers is for the caller to say.
pub fn of(manager: &Manager, cluster: &Cluster, me: usize) -> NodeView {
    let durable = manager.durable();
    let group = |at: usize| {
        let record = &durable.groups[at];
        let order = &record.order;
        GroupView {
            state: manager.group_status(at).into(),
            frozen: manager.is_frozen(at),
            order: OrderView {
                version: order.version,
                by: order.by,
                wanted: order.value.wanted,
                owner: order.value.owner,
            },
            resources: record.resources.iter().map(|r| r.state.into()).collect(),
            failovers: record.counts.failovers.clone(),
            other: manager.other_says(at).map(|brief| Seen {
                active: brief.active,
                online: brief.online,
                ready: brief.ready,
            }),
        }
    };
    let monitor = |at: usize| MonitorView {
        state: manager.monitor_status(at).into(),
        made_to_fail: durable.monitors[at].made_to_fail,
        reactivations: durable.monitors[at].reactivations,
    };
    NodeView {
        node: cluster.nodes[me].clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        revision: cluster.revision,
        phase: manager.phase().into(),
        suspended: durable.suspended.value,
        other: manager.node_status().into(),
        heartbeats: (0..cluster.heartbeats.len())
            .map(|at| manager.heartbeat_status(at).into())
            .collect(),
        groups: (0..cluster.groups.len()).map(group).collect(),
        monitors: (0..cluster.monitors.len()).map(monitor).collect(),
        arbiter: None,
    }
}
