//! Programs that scripts have started to be watched (`ARMLOAD`): what their end means for this node's groups.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kagami_failover::clock;
use kagami_failover::config::Severity;
use kagami_failover::core::{Alert, Command, GroupStatus, Object};
use kagami_failover::manager::Handle;
use kagami_failover::place::Place;
use kagami_failover::process::log;
use kagami_failover::watch_list::{Entry, Seen, WatchError, WatchList};
use tracing::warn;

use super::settings::first_line;

/// How often they are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Looks after them. One whose end counts, and that has ended, takes this node's groups to the other node: each as
/// soon as it is up and that node can take it. Which do is on the list, so another manager goes on with it.
pub async fn watch(place: Arc<Place>, handle: Handle) {
    let list = WatchList::new(&place.run);
    // Who stays, and was told of.
    let mut told = BTreeSet::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (list, place_of) = (list.clone(), Arc::clone(&place));
        let of = list.clone();
        let looked = tokio::task::spawn_blocking(move || look(&of, &place_of));
        let (seen, failed) = match looked.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                warn!("{error}");
                continue;
            }
            Err(error) => {
                warn!("the watch list: {error}");
                continue;
            }
        };
        for seen in seen {
            tell(&place, &handle, &seen);
        }
        told.retain(|(id, _)| failed.iter().any(|entry| entry.id == *id));
        for entry in failed {
            let (left, all) = leave(&place, &handle, &entry, &mut told).await;
            if left.is_empty() && !all {
                continue;
            }
            let list = list.clone();
            let noted = tokio::task::spawn_blocking(move || list.leave(&entry, &left, all)).await;
            if let Ok(Err(error)) = noted {
                warn!("{error}");
            }
        }
    }
}

/// What has ended since the last look, and what has failed and not been followed to its end.
fn look(list: &WatchList, place: &Place) -> Result<(Vec<Seen>, Vec<Entry>), WatchError> {
    let seen = list.poll(clock::wall_ms() / 1000, |entry| {
        let name = format!("{}@{}", entry.group, entry.resource);
        // Scripts wait for the list's lock: no disk that hangs may keep it.
        log::begin_again(place, &name, &format!("{} again", entry.id)).ok()
    })?;
    Ok((seen, list.failed()?))
}

fn tell(place: &Place, handle: &Handle, seen: &Seen) {
    let (entry, what) = match seen {
        Seen::Restarted(entry) => (entry, "ended unexpectedly, and was started again"),
        Seen::Ended(entry) => (entry, "ended unexpectedly"),
    };
    let fails = matches!(seen, Seen::Ended(entry) if entry.monitored);
    handle.alert(Alert {
        severity: if fails {
            Severity::Error
        } else {
            Severity::Warning
        },
        object: if entry.group.is_empty() {
            Object::Node(place.cluster.nodes[place.me].clone())
        } else {
            Object::Group(entry.group.clone())
        },
        what: format!("watched program {} {what}", entry.id),
        cause: entry.program.join(" "),
    });
}

/// Moves all groups that are up here to the other node. Answers those that leave now, or are not here, and whether that
/// was the last of them. One on its way up is moved when it is there.
async fn leave(
    place: &Place,
    handle: &Handle,
    failed: &Entry,
    told: &mut BTreeSet<(String, String)>,
) -> (Vec<String>, bool) {
    let mut left = Vec::new();
    let mut all = true;
    for (group, config) in place.cluster.groups.iter().enumerate() {
        let name = &config.name;
        if failed.left.contains(name) {
            continue;
        }
        match handle.look(move |core| core.group_status(group)).await {
            Some(GroupStatus::Offline | GroupStatus::OfflinePending) => {
                left.push(name.clone());
                continue;
            }
            Some(GroupStatus::Online | GroupStatus::OnlineFailure) => {}
            _ => {
                all = false;
                continue;
            }
        }
        let to = 1 - place.me;
        match handle.command(Command::Move { group, to }).await {
            Ok(()) => left.push(name.clone()),
            Err(why) => {
                all = false;
                if told.insert((failed.id.clone(), name.clone())) {
                    handle.alert(Alert {
                        severity: Severity::Error,
                        object: Object::Group(name.clone()),
                        what: format!(
                            "stays here for now, though watched program {} has ended",
                            failed.id
                        ),
                        cause: first_line(&why.to_string()),
                    });
                }
            }
        }
    }
    (left, all)
}
