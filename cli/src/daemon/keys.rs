//! Keys that are replaced without a break: this node's own (`kagami pair --rotate`), and the peers'.
//!
//! A node makes its next key beside the present one, tells its peers, and switches when each has
//! written it down. A peer pins both, and drops the old one when it has seen the new one at work. Every
//! step is in a file before the next is begun, so a crash anywhere leaves two nodes that know each
//! other; the same command goes on where it stopped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kagami_replicator::core::state::NodeId;
use kagami_replicator::shell::engine::{PeerEvent, PeerWord};
use kagami_replicator::shell::identity::{Fingerprint, NodeKey, NodeKeys};
use kagami_replicator::shell::quic::{NOTES_SINCE, Note};
use tokio::sync::broadcast::error::RecvError;
use tracing::{info, warn};

use super::Shared;
use super::engine::{Engine, PeerLink};
use super::reload;
use crate::config::edit::Editor;
use crate::config::keys::Section;
use crate::config::places::Places;
use crate::control::message::{Answer, RefusalReport};
use crate::unit::Starter;

/// The peers may take so long to write a key down.
const PATIENCE: Duration = Duration::from_secs(15);

/// Takes what peers tell of their keys, as long as the daemon runs.
pub async fn listen<E: Engine>(shared: Arc<Shared<E>>) {
    let Some(mut events) = shared.engine.peer_events() else {
        return;
    };
    loop {
        match events.recv().await {
            Ok(PeerEvent { peer, word }) => match word {
                PeerWord::Note(Note::NextKey(key)) => {
                    let note = match pin(&shared, peer, key).await {
                        Ok(()) => Note::Pinned(key),
                        Err(why) => {
                            warn!(node = peer.0, %key, "the peer's next key is not pinned: {why}");
                            Note::NotPinned(key, why)
                        }
                    };
                    shared.engine.tell(peer, &note).await;
                }
                PeerWord::Key(key) => drop_old(&shared, peer, key).await,
                // For a rotation of this node's own, which listens itself.
                PeerWord::Note(Note::Pinned(_) | Note::NotPinned(..)) => {}
            },
            Err(RecvError::Lagged(missed)) => {
                warn!(missed, "peers told more than could be taken in");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// A peer's name and the keys pinned for it.
async fn known<E: Engine>(shared: &Shared<E>, peer: NodeId) -> Option<(String, Vec<String>)> {
    let config = shared.config.lock().await;
    let found = config.peers.iter().find(|known| known.id == peer.0)?;
    Some((found.name.clone(), found.fingerprints.clone()))
}

/// Pins the key that a peer is about to show, beside the one that it shows.
async fn pin<E: Engine>(shared: &Shared<E>, peer: NodeId, key: Fingerprint) -> Result<(), String> {
    let Some((name, pinned)) = known(shared, peer).await else {
        return Err("this node is not in the configuration there any more".to_owned());
    };
    if pinned.contains(&key.to_string()) {
        return Ok(());
    }
    let links = shared.engine.links().await;
    let shown = links.iter().find(|link| link.peer == peer);
    let shown = shown
        .map(|link| link.key.to_string())
        .filter(|shown| pinned.contains(shown))
        .or_else(|| pinned.first().cloned());
    let keys = shown.into_iter().chain([key.to_string()]).collect();
    write(shared, &name, keys).await?;
    info!(peer = name, %key, "the peer's next key is pinned beside its present one");
    Ok(())
}

/// The peer shows a key: if it is the second of two, it is the only one from now on.
async fn drop_old<E: Engine>(shared: &Shared<E>, peer: NodeId, key: Fingerprint) {
    let key = key.to_string();
    match known(shared, peer).await {
        Some((name, pinned)) if pinned.len() == 2 && pinned[1] == key => {
            match write(shared, &name, vec![key]).await {
                Ok(()) => info!(
                    peer = name,
                    "the peer shows its new key; the old one is out"
                ),
                // Both stay pinned, and the next connection tries again.
                Err(why) => warn!(peer = name, "the peer's old key is pinned still: {why}"),
            }
        }
        _ => {}
    }
}

/// Writes a peer's keys into the configuration, durably, and puts them in force.
async fn write<E: Engine>(shared: &Shared<E>, peer: &str, keys: Vec<String>) -> Result<(), String> {
    let (file, name) = (shared.config.lock().await.file.clone(), peer.to_owned());
    let edit = move || -> Result<(), String> {
        let mut editor = Editor::open(&file).map_err(|error| error.to_string())?;
        let list: toml_edit::Array = keys.iter().map(String::as_str).collect();
        // A file that somebody is in the middle of changing has, perhaps, something else in that place.
        editor
            .config(&Places::of_this_process())
            .map_err(|error| error.to_string())?;
        editor.set(Section::Peer, &name, "fingerprints", list);
        let saved = editor.save(&Places::of_this_process());
        saved.map(drop).map_err(|error| error.to_string())
    };
    // A command may have the file, and wait for this daemon.
    tokio::task::spawn_blocking(edit)
        .await
        .map_err(|error| error.to_string())??;
    let mut config = shared.config.lock().await;
    reload::take_over_keys(&mut config, &shared.engine, peer)
        .await
        .map_err(|error| error.to_string())
}

fn refused(what: &str, facts: Vec<String>, next: &str) -> Answer {
    Answer::Refused(RefusalReport {
        what: format!("key not replaced: {what}"),
        facts,
        next: next.to_owned(),
    })
}

/// Shows this node's next key instead of the present one, once every peer knows it.
pub async fn rotate<E: Engine>(shared: &Shared<E>) -> Answer {
    let Some(mut events) = shared.engine.peer_events() else {
        return refused("this daemon has no peers to tell", Vec::new(), "");
    };
    let (folder, peers) = {
        let config = shared.config.lock().await;
        let of = |peer: &&crate::config::Peer| {
            let mut mirrors = config.mirrors.iter();
            mirrors.any(|mirror| mirror.peer.as_ref() == Some(&peer.name))
        };
        let peers = config.peers.iter().filter(of);
        let peers: BTreeMap<NodeId, String> = peers
            .map(|peer| (NodeId(peer.id), peer.name.clone()))
            .collect();
        (config.key_folder(), peers)
    };
    let mut keys = match NodeKeys::load(&folder) {
        Ok(keys) => keys,
        Err(error) => return refused(&error.to_string(), Vec::new(), "put that right first"),
    };
    let Some(next) = keys.next.as_ref().map(NodeKey::fingerprint) else {
        let next = "`kagami pair --rotate` makes one";
        return refused("there is no next key", Vec::new(), next);
    };
    if let Err(answer) = may_tell(&shared.engine.links().await, &peers) {
        return answer;
    }
    for peer in peers.keys() {
        shared.engine.tell(*peer, &Note::NextKey(next)).await;
    }
    let mut waits = peers.clone();
    let heard = tokio::time::timeout(PATIENCE, async {
        while !waits.is_empty() {
            match events.recv().await {
                Ok(PeerEvent {
                    peer,
                    word: PeerWord::Note(Note::Pinned(key)),
                }) if key == next => {
                    waits.remove(&peer);
                }
                Ok(PeerEvent {
                    peer,
                    word: PeerWord::Note(Note::NotPinned(key, why)),
                }) if key == next => {
                    let name = peers.get(&peer).map_or("a peer", String::as_str);
                    return Err(refused(
                        &format!("{name} did not pin it"),
                        vec![why],
                        "put that right there, then again: it goes on where it stopped",
                    ));
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => break,
            }
        }
        Ok(())
    });
    match heard.await {
        Ok(Ok(())) => {}
        Ok(Err(answer)) => return answer,
        Err(_) => {
            let names: Vec<&str> = waits.values().map(String::as_str).collect();
            return refused(
                &format!(
                    "no word from {} within {} s",
                    names.join(" and "),
                    PATIENCE.as_secs()
                ),
                Vec::new(),
                "see `kagami status` and the log there, then again: it goes on where it stopped",
            );
        }
    }
    let shown = match keys.switch_to_next() {
        Ok(shown) => shown,
        Err(error) => return refused(&error.to_string(), Vec::new(), "put that right, then again"),
    };
    if let Err(why) = shared.engine.show_new_key().await {
        return refused(
            "the new key is in place, and the running daemon could not take it",
            vec![why],
            &format!(
                "`{}`: the peers know both",
                Starter::of_this_process().restart()
            ),
        );
    }
    shared.fingerprint.send_replace(Some(shown.to_string()));
    info!(key = %shown, "this node shows its new key");
    Answer::Rotated {
        fingerprint: shown.to_string(),
        peers: peers.into_values().collect(),
    }
}

/// Every peer is there, and new enough.
fn may_tell(links: &[PeerLink], peers: &BTreeMap<NodeId, String>) -> Result<(), Answer> {
    let of = |node: &NodeId| links.iter().find(|link| link.peer == *node);
    let away: Vec<&str> = peers
        .iter()
        .filter(|(node, _)| of(node).is_none_or(|link| !link.is_used))
        .map(|(_, name)| name.as_str())
        .collect();
    if !away.is_empty() {
        return Err(refused(
            &format!("{} is not connected, and has to learn it", away.join(", ")),
            Vec::new(),
            "bring it back first; one that is gone for good is replaced with `kagami replace-peer`",
        ));
    }
    let old: Vec<String> = peers
        .iter()
        .filter_map(|(node, name)| Some((of(node)?.version, name)))
        .filter(|(version, _)| *version < NOTES_SINCE)
        .map(|(version, name)| format!("with {name} version {version} of the protocol is spoken, and version {NOTES_SINCE} is needed"))
        .collect();
    if old.is_empty() {
        return Ok(());
    }
    Err(refused(
        "the peer's kagami is too old",
        old,
        "upgrade it first (and `link-version` in [node] may hold one of both back)",
    ))
}
