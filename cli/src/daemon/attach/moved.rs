//! Whether what the kernel holds for a device is still what the mirror holds.
//!
//! A device that waits for a daemon has a file system's memory and unanswered writes behind it. They belong
//! to the data as this node last served them. Once the other node has been Primary, or this copy was
//! overwritten with the other's, they belong to nothing, however soon this node is Primary again. So
//! what happens to a mirror is heard from before it is opened, and asked at the last moment before the
//! kernel gets a socket. What was heard is nothing to a node that has been Primary without a break since it served
//! the device: then it is the other that has to give way.

use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Replication, Role};
use kagami_replicator::core::status::Status;
use kagami_replicator::shell::engine::MirrorEvent;
use tokio::sync::broadcast::{self, error::TryRecvError};

use super::record::Record;

/// How a mirror moved away from what the kernel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// The other node is Primary, or was.
    OverThere,
    /// This copy is being overwritten with the other's data, or was.
    Overwritten,
    /// One of both, while no daemon looked.
    Unseen,
}

impl Moved {
    /// For the log, the status and the record.
    pub fn words(self) -> String {
        let how = match self {
            Self::OverThere => "the other node has become Primary",
            Self::Overwritten => "this copy is overwritten with the other node's data",
            Self::Unseen => {
                "this copy was overwritten, or the other node has been Primary, while no daemon served the device"
            }
        };
        format!("{how}: what this machine's kernel holds for it is not what the mirror holds now")
    }
}

/// `primary`: this node is, and stays it while its copy is being overwritten: the other node answers for
/// it meanwhile, with the data that the kernel knows.
fn by_event(notice: &Notice, primary: bool) -> Option<Moved> {
    match notice {
        Notice::Peer {
            role: Role::Primary,
            ..
        } => Some(Moved::OverThere),
        Notice::Replication {
            to: Replication::SyncTarget,
            ..
        } if !primary => Some(Moved::Overwritten),
        _ => None,
    }
}

/// By what the mirror is at this moment.
pub fn by_status(status: &Status) -> Option<Moved> {
    if status.role == Role::Primary {
        None
    } else if status.peer_role == Some(Role::Primary) {
        Some(Moved::OverThere)
    } else if status.replication == Replication::SyncTarget {
        Some(Moved::Overwritten)
    } else {
        None
    }
}

/// Whether a device that waits belongs to what the mirror holds, as a daemon finds both at its start.
///
/// A Primary that died has it in its record until another takes its place (docs/protocol.md §1,
/// `was_primary`); one that was stopped cleanly has left the generation that it stopped at.
pub fn is_current(record: &Record, status: &Status) -> bool {
    let generation = status.generation.map(|generation| generation.tag);
    record.stale.is_none()
        && (status.role == Role::Primary
            || status.was_primary
            || (record.stopped_at.is_some() && record.stopped_at == generation))
}

/// Listens for one mirror.
#[derive(Debug)]
pub struct Moves {
    mirror: String,
    events: broadcast::Receiver<MirrorEvent>,
    found: Option<Moved>,
    /// This node is Primary, by what was heard.
    is_primary: bool,
    /// Something was taken in that nobody has acted upon.
    is_news: bool,
    /// More happened than was kept: a move may be among it.
    has_missed: bool,
}

impl Moves {
    /// From what `events` holds already on.
    pub fn new(mirror: &str, events: broadcast::Receiver<MirrorEvent>) -> Self {
        Self {
            mirror: mirror.to_owned(),
            events,
            found: None,
            is_primary: false,
            is_news: false,
            has_missed: false,
        }
    }

    fn take_in(&mut self, event: &MirrorEvent) {
        let is_ours = *event.mirror == *self.mirror;
        self.is_news |= is_ours;
        if is_ours && let Notice::Role { to, .. } = event.notice {
            self.is_primary = to == Role::Primary;
        }
        if is_ours && let Some(moved) = by_event(&event.notice, self.is_primary) {
            // Where it went counts more than what became of the copy.
            self.found = match self.found {
                Some(Moved::OverThere) => self.found,
                _ => Some(moved),
            };
        }
    }

    fn missed(&mut self) {
        self.is_primary = false;
        self.has_missed = true;
    }

    /// Whether something was missed since this was asked last: the state alone can tell what it was.
    pub fn take_missed(&mut self) -> bool {
        std::mem::take(&mut self.has_missed)
    }

    /// What was missed comes to this.
    pub fn found(&mut self, moved: Moved) {
        self.found.get_or_insert(moved);
    }

    /// What was heard up to now.
    pub fn so_far(&mut self) -> Option<Moved> {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.take_in(&event),
                Err(TryRecvError::Lagged(_)) => self.missed(),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return self.found,
            }
        }
    }

    /// Nothing of the mirror's is in the kernel: what happened before does not matter.
    pub fn forget(&mut self) {
        self.so_far();
        self.disregard();
    }

    /// What was heard concerns others: this node has been Primary all the time. What comes is taken in.
    pub fn disregard(&mut self) {
        self.found = None;
        self.has_missed = false;
    }

    /// From here on the mirror is looked at: what happened before is no news.
    pub fn begin(&mut self) {
        self.so_far();
        self.is_news = false;
    }

    /// Waits until something has happened to the mirror since [`begin`](Self::begin). May be given up and
    /// asked again.
    pub async fn next(&mut self) {
        loop {
            if std::mem::take(&mut self.is_news) {
                return;
            }
            match self.events.recv().await {
                Ok(event) => self.take_in(&event),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    self.missed();
                    return;
                }
                // The engine is gone, and the daemon is about to be.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
