//! Everything a manager can want done. The shell carries actions out in their order.

use serde::{Deserialize, Serialize};

use crate::config::Ms;

use super::alert::Alert;
use super::durable::{Durable, EndKind};
use super::event::Refusal;
use super::message::Snapshot;
use super::state::{GroupId, Node, OpId, Time};

/// An output of the core.
#[derive(Clone, Debug)]
pub enum Action {
    /// Write this, whole and durably; one of a lower number is not needed any more.
    Persist {
        /// Comes back in [`super::Event::Persisted`].
        seq: u64,
        /// What.
        state: Box<Durable>,
    },
    /// Send this.
    Beat {
        /// By which of the configuration's heartbeats.
        heartbeat: usize,
        /// What.
        message: Box<Snapshot>,
    },
    /// Begin this operation. The shell remembers each number with its outcome for as long as the
    /// machine is up, and never begins one twice.
    Run {
        /// Comes back in [`super::Event::OpDone`].
        op: OpId,
        /// What.
        work: Work,
        /// What its scripts see.
        environment: Vec<(String, String)>,
        /// How long it may take.
        timeout: Ms,
    },
    /// Say what became of this operation, which an earlier manager has begun, or not.
    Inquire {
        /// Comes back in [`super::Event::OpDone`], once it has ended, or in [`super::Event::OpNever`].
        op: OpId,
    },
    /// Let a monitor look.
    Probe {
        /// Comes back in [`super::Event::Probed`].
        probe: u64,
        /// Which.
        monitor: usize,
        /// How long it may take; 0: as long as it likes.
        timeout: Ms,
    },
    /// Ask for the right to run a group; one that is held already is granted again.
    AskRight {
        /// Which.
        group: GroupId,
        /// The fence script has said that the other node is down.
        fenced: bool,
        /// Something of it is active, from an earlier manager.
        begun: bool,
    },
    /// Give up the right to run a group, or the question for it. Nothing of it runs any more: its
    /// guard is told so.
    ReleaseRight {
        /// Which.
        group: GroupId,
    },
    /// Nothing of a group whose right was lost runs any more: it need not be watched.
    Stopped {
        /// Which.
        group: GroupId,
    },
    /// Answer an operator's command.
    CommandDone {
        /// Of [`super::Event::Command`].
        id: u64,
        /// It is recorded and will be carried out; or why not.
        result: Result<(), Refusal>,
    },
    /// Call back at this time; replaces the one set before.
    SetTimer {
        /// When.
        at: Time,
    },
    /// End this manager, and what else `kind` says. No event is handed in any more.
    End {
        /// As for [`Action::Run`]: never twice.
        op: OpId,
        /// What ends.
        kind: EndKind,
    },
    /// Have the guard reset this node, which needs no disk: what has to stop can't be stopped.
    Reset {
        /// Why.
        why: String,
    },
    /// Tell people.
    Alert(Alert),
}

/// The actions of one event, in order.
pub type Actions = Vec<Action>;

/// An operation. Where both scripts around a resource are configured, they are part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Activate a resource; one that is active, or half so, becomes active.
    Start {
        /// Its group.
        group: GroupId,
        /// Its place in the group.
        resource: usize,
    },
    /// Deactivate a resource; one that is inactive stays so.
    Stop {
        /// Its group.
        group: GroupId,
        /// Its place in the group.
        resource: usize,
    },
    /// The script before a recovery action.
    Preaction {
        /// Whose.
        monitor: usize,
    },
    /// A monitor's own script.
    Script {
        /// Whose.
        monitor: usize,
    },
    /// The fence script.
    Fence {
        /// Who must be down.
        node: Node,
    },
}
