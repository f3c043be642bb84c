//! What people, and whoever watches a manager, can see of it.

use super::Manager;
use super::durable::{Durable, Order};
use super::message::{Brief, Phase};
use super::right_to_run::Hold;
use super::state::{GroupId, GroupStatus, MonitorStatus, ResourceState};

impl Manager {
    /// What it is at.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What will be written, or was.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// Where a group should run.
    pub fn order_of(&self, group: GroupId) -> &Order {
        self.order(group)
    }

    /// Every resource of the group is active here, and it may run.
    pub(super) fn is_online(&self, group: GroupId) -> bool {
        let resources = &self.durable.groups[group].resources;
        self.groups[group].right == Hold::Held
            && resources.iter().all(|r| r.state == ResourceState::Online)
    }

    /// What a group is at on this node.
    pub fn group_status(&self, group: GroupId) -> GroupStatus {
        use ResourceState as R;
        let resources = &self.durable.groups[group].resources;
        let any = |state: R| resources.iter().any(|r| r.state == state);
        let up = self.should_run(group);
        if any(R::StopFailed) {
            GroupStatus::OfflineFailure
        } else if !self.is_begun(group) {
            match self.groups[group].right {
                Hold::Releasing | Hold::Lost => GroupStatus::OfflinePending,
                _ if up || self.groups[group].intent.is_some() => GroupStatus::OnlinePending,
                _ => GroupStatus::Offline,
            }
        } else if !up {
            GroupStatus::OfflinePending
        } else if resources.iter().any(|r| r.state == R::Failed && r.given_up) {
            GroupStatus::OnlineFailure
        } else if resources.iter().all(|r| r.state == R::Online)
            && self.durable.groups[group].bounce.is_empty()
        {
            GroupStatus::Online
        } else {
            GroupStatus::OnlinePending
        }
    }

    /// The group's lease has ended, and it is frozen until permission comes.
    pub fn is_frozen(&self, group: GroupId) -> bool {
        self.groups[group].right == Hold::Frozen
    }

    /// What the other node said last of a group; `None` while it is not heard.
    pub fn other_says(&self, group: GroupId) -> Option<&Brief> {
        self.peer_brief(group)
    }

    /// The other node is there and can run the group, as far as this one knows.
    pub fn other_can(&self, group: GroupId) -> bool {
        self.peer_can(group)
    }

    /// What a monitor is at on this node.
    pub fn monitor_status(&self, monitor: usize) -> MonitorStatus {
        self.watches[monitor].status
    }
}
