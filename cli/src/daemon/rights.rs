//! What being Primary rests on, for a failover manager and its guard, and whose business it is.
//!
//! A manager takes the mirrors of its groups in hand for as long as it is connected: then nobody
//! else changes their roles, or takes their devices away, by mistake. That is no protection against
//! who may use the control socket, and not meant as one: `--force` goes past it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kagami_replicator::core::event::Refusal;
use kagami_replicator::core::state::{Connection, DiskState, Replication, Role, Time};
use kagami_replicator::core::status::{Standing, Status};

use super::engine::MirrorStatus;
use crate::control::message::Order;
use crate::control::report::{RightReport, Standing as Word};

/// Mirrors that managers have taken in hand, and how many of them.
#[derive(Clone, Debug, Default)]
pub struct InHand(Arc<Mutex<BTreeMap<String, usize>>>);

/// Gives the mirrors back when it is dropped.
#[derive(Debug)]
pub struct Taken {
    of: InHand,
    mirrors: Vec<String>,
}

impl InHand {
    /// Takes these mirrors in hand.
    pub fn take(&self, mirrors: &[String]) -> Taken {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for mirror in mirrors {
            *all.entry(mirror.clone()).or_default() += 1;
        }
        Taken {
            of: self.clone(),
            mirrors: mirrors.to_vec(),
        }
    }

    /// Why an order of anybody else is refused; `None`: it is not. An [`Order::Attach`] is only where this node
    /// is not Primary: it would promote.
    pub fn refusal(&self, mirror: &str, order: &Order) -> Option<Refusal> {
        let (what, go_past) = match order {
            Order::Promote { force: false, .. } | Order::PromoteFenced => ("promoted", "promote"),
            Order::Attach { .. } => ("attached", "promote"),
            Order::Demote { force: false } => ("demoted", "demote"),
            Order::Detach { force: false } => ("detached", "detach"),
            _ => return None,
        };
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let decides = match order {
            Order::Detach { .. } => "whether it is a device here",
            _ => "where it is Primary",
        };
        all.contains_key(mirror).then(|| Refusal {
            what: format!("not {what}: the failover manager decides {decides}"),
            facts: vec!["it belongs to a failover group".to_owned()],
            next: format!("`kagami group start`, `stop` and `move` are for groups; `kagami {go_past} {mirror} --force` goes past the manager (and overrides the mirror's own rules)"),
        })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut all = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        for mirror in &self.mirrors {
            if let Some(count) = all.get_mut(mirror) {
                *count -= 1;
                if *count == 0 {
                    all.remove(mirror);
                }
            }
        }
    }
}

/// The reports of those of these mirrors that there are.
pub fn report(statuses: &[MirrorStatus], mirrors: &[String]) -> Vec<RightReport> {
    let wanted = |status: &&MirrorStatus| mirrors.contains(&status.name);
    statuses.iter().filter(wanted).map(of).collect()
}

fn of(mirror: &MirrorStatus) -> RightReport {
    match &mirror.core {
        Ok(core) => of_core(&mirror.name, core),
        Err(closed) => RightReport {
            mirror: mirror.name.clone(),
            standing: Word::NotOpened,
            lease_ends_ms: None,
            connected: false,
            peer_is_primary: false,
            in_sync: false,
            only_copy: false,
            diskless: true,
            untrusted: false,
            peer_lease_ends_ms: 0,
            held: Some(closed.why.clone()),
        },
    }
}

fn of_core(name: &str, core: &Status) -> RightReport {
    // Rounded to the safe side: this node's lease down, the peer's up.
    let ms = |time: Time| time.0 / 1_000_000;
    let (standing, lease_ends_ms) = match core.standing {
        Standing::Secondary => (Word::Secondary, None),
        Standing::Session { until } => (Word::Session, Some(ms(until))),
        Standing::Alone => (Word::Alone, None),
        Standing::Free => (Word::Free, None),
        Standing::Sought => (Word::Sought, None),
        Standing::Refused => (Word::Refused, None),
    };
    let connected = core.connection == Connection::Connected;
    let both = matches!(
        core.replication,
        Replication::Established | Replication::VerifySource | Replication::VerifyTarget
    );
    let gone = |disk| matches!(disk, DiskState::Failed | DiskState::Diskless);
    RightReport {
        mirror: name.to_owned(),
        standing,
        lease_ends_ms,
        connected,
        peer_is_primary: core.peer_role == Some(Role::Primary),
        in_sync: connected && both,
        // With a generation of its own, durably: it can be Primary in this session (docs/protocol.md §5).
        only_copy: connected
            && gone(core.peer_disk)
            && core.alone_since.is_some()
            && core.disk == DiskState::UpToDate,
        diskless: gone(core.disk),
        untrusted: matches!(core.disk, DiskState::Inconsistent | DiskState::Outdated),
        peer_lease_ends_ms: ms(core.peer_lease_ends) + 1,
        held: core.held.clone(),
    }
}

/// Something else than times has changed.
pub fn is_news(before: &RightReport, now: &RightReport) -> bool {
    let timeless = |right: &RightReport| RightReport {
        lease_ends_ms: None,
        peer_lease_ends_ms: 0,
        ..right.clone()
    };
    timeless(before) != timeless(now)
}
