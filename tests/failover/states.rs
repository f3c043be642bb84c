//! What a manager believes of its resources, beside what they are.

use kagami_failover::core::ResourceState;

use super::check::Violation;
use super::mirror::name;
use super::world::{Live, World};

impl World {
    /// What a manager takes for active is, and what it takes for inactive has nothing left.
    pub(super) fn check_states(&self) -> Result<(), Violation> {
        for (node, host) in self.nodes.iter().enumerate() {
            let Some(manager) = &host.manager else {
                continue;
            };
            for (group, record) in manager.durable().groups.iter().enumerate() {
                let live = &host.live[group];
                for (resource, live) in record.resources.iter().zip(live) {
                    let wrong = match resource.state {
                        ResourceState::Online => *live != Live::On,
                        ResourceState::Offline => *live != Live::Off,
                        _ => false,
                    };
                    if wrong {
                        let what = format!(
                            "{}: {} of g{group} counts as {:?}, and is {live:?}",
                            name(node),
                            resource.name,
                            resource.state
                        );
                        return Err(Violation::new("Says-what-is", what));
                    }
                }
            }
        }
        Ok(())
    }
}
