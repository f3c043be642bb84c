//! Taking over a changed configuration without a restart, as far as that goes.
//!
//! What each key allows stands in the table of keys. A change that needs a restart is named every
//! time until the restart; the running configuration keeps its old value.

use std::collections::BTreeSet;

use kagami_replicator::core::event::Command;
use tokio::sync::Mutex;

use super::engine::Engine;
use super::mirrors::addresses::{Addresses, names};
use super::settings;
use crate::config::keys::{self, Change, Key, Section};
use crate::config::read::Value;
use crate::config::{Config, ConfigError, Mirror};

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// In force now, a line each.
    pub applied: Vec<String>,
    /// Needs a restart, a line each.
    pub restart: Vec<String>,
}

/// A difference between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Difference {
    section: Section,
    name: String,
    key: Option<&'static str>,
    change: Change,
    words: String,
}

fn differences(old: &Config, new: &Config) -> Vec<Difference> {
    let mut found = Vec::new();
    for section in Section::ALL {
        let names = |config: &Config| {
            let mut names: BTreeSet<String> = config
                .sheet
                .instances(section)
                .iter()
                .map(|instance| instance.name.clone())
                .collect();
            if section == Section::Resync {
                names = config.mirrors.iter().map(|m| m.name.clone()).collect();
            }
            names
        };
        let (before, after) = (names(old), names(new));
        for name in before.union(&after) {
            if before.contains(name) != after.contains(name) {
                if section != Section::Resync {
                    let what = if after.contains(name) {
                        "is new"
                    } else {
                        "is gone"
                    };
                    found.push(Difference {
                        section,
                        name: name.clone(),
                        key: None,
                        change: Change::Restart,
                        words: format!("{} {what}", section.heading(name)),
                    });
                }
                continue;
            }
            for key in keys::of(section) {
                found.extend(difference(old, new, section, name, key));
            }
        }
    }
    found
}

fn difference(
    old: &Config,
    new: &Config,
    section: Section,
    name: &str,
    key: &'static Key,
) -> Option<Difference> {
    let before = old.sheet.entry(section, name, key.name);
    let after = new.sheet.entry(section, name, key.name);
    if before.map(|entry| &entry.value) == after.map(|entry| &entry.value) {
        return None;
    }
    let written = |entry: Option<&crate::config::read::Entry>| {
        entry.map_or_else(|| "nothing".to_owned(), |entry| entry.written.clone())
    };
    Some(Difference {
        section,
        name: name.to_owned(),
        key: Some(key.name),
        change: key.change,
        words: format!(
            "{} {} = {} (was {})",
            section.heading(name),
            key.name,
            written(after),
            written(before)
        ),
    })
}

/// Reads the file again and hands over what can be handed over. `running` becomes what is in force; it is not locked
/// while names are looked up, which may take as long as a resolver that is dead.
///
/// # Errors
/// The file is wrong; nothing was changed.
pub async fn reload<E: Engine>(
    running: &Mutex<Config>,
    engine: &E,
    set_log_level: impl Fn(&str),
) -> Result<Reloaded, ConfigError> {
    let file = running.lock().await.file.clone();
    loop {
        let looked_up = names(&Config::load(&file)?);
        let found = engine.look_up(&looked_up).await;
        let mut running = running.lock().await;
        // It may have been written since: by an editor, or by this daemon with a peer's next key.
        let new = Config::load(&file)?;
        if names(&new).is_subset(&looked_up) {
            return Ok(take_over(&mut running, &new, &found, engine, set_log_level).await);
        }
    }
}

/// Hands over what can be handed over of `new`, in which names stand for what was `found`.
async fn take_over<E: Engine>(
    running: &mut Config,
    new: &Config,
    found: &Addresses,
    engine: &E,
    set_log_level: impl Fn(&str),
) -> Reloaded {
    let mut done = Reloaded::default();
    let mut next = running.clone();
    let mut relinks = false;
    for difference in differences(running, new) {
        let Difference {
            section, ref name, ..
        } = difference;
        let change = judge(&difference, running, new, &next, engine).await;
        match (change, difference.key) {
            (Change::Live, key) => {
                match key {
                    Some(key) => next.sheet.copy_from(&new.sheet, section, name, key),
                    None => next.sheet.copy_section(&new.sheet, section, name),
                }
                relinks |= matches!(section, Section::Peer | Section::Arbiter)
                    || matches!(key, Some("peer" | "arbiter" | "follows"));
                done.applied.push(difference.words);
            }
            (Change::Never, _) => done.restart.push(format!(
                "{}: it belongs to the store and never changes; write the old value",
                difference.words
            )),
            _ => done.restart.push(difference.words),
        }
    }
    next.refresh();
    engine.in_force(&next);
    if relinks {
        engine.relink(found).await;
    }
    for mirror in &next.mirrors {
        let before = running
            .mirror(&mirror.name)
            .map(|old| settings::of(running, old));
        let after = settings::of(&next, mirror);
        if before.as_ref() == Some(&after) && !relinks {
            continue;
        }
        if let Err(refusal) = engine.command(&mirror.name, Command::Set(after)).await {
            done.restart
                .push(format!("[mirror.{}]: {}", mirror.name, refusal.what));
        }
    }
    if next.node.log_level != running.node.log_level {
        set_log_level(&next.node.log_level);
    }
    *running = next;
    done
}

/// What can be done with a change, where the table of keys does not say it all.
async fn judge<E: Engine>(
    difference: &Difference,
    running: &Config,
    new: &Config,
    next: &Config,
    engine: &E,
) -> Change {
    let Difference {
        section, name, key, ..
    } = difference;
    match (section, key) {
        // A peer or an arbiter may come; it may go when no mirror that runs needs it any more.
        (Section::Peer, None) if new.peer(name).is_some() => Change::Live,
        (Section::Arbiter, None) if new.arbiter(name).is_some() => Change::Live,
        (Section::Peer | Section::Arbiter, None) => {
            let key = match section {
                Section::Peer => "peer",
                _ => "arbiter",
            };
            let is_used = next.mirrors.iter().any(|mirror| {
                let named = next.sheet.entry(Section::Mirror, &mirror.name, key);
                matches!(named.map(|entry| &entry.value), Some(Value::Text(text)) if text == name)
            });
            if is_used {
                Change::Restart
            } else {
                Change::Live
            }
        }
        // A new node may have the name of the one whose place it took.
        (Section::Peer, Some("id")) => {
            let id = new.peer(name).map(|peer| peer.id);
            let is_theirs = |mirror: &&Mirror| mirror.peer.as_ref() == Some(name);
            for mirror in new.mirrors.iter().filter(is_theirs) {
                if engine.peer(&mirror.name).await != id {
                    return Change::Restart;
                }
            }
            Change::Live
        }
        // The core was told by the command that changed it, or it is the same node by another name.
        (Section::Mirror, Some("peer")) => {
            let id = |config: &Config| {
                let mirror = config.mirror(name)?;
                Some(config.peer(mirror.peer.as_deref()?)?.id)
            };
            if id(running) == id(new) || engine.peer(name).await == id(new) {
                Change::Live
            } else {
                Change::Restart
            }
        }
        // A leader that does not run yet is waited for by nobody.
        (Section::Mirror, Some("follows")) => {
            let leader = new.mirror(name).and_then(|mirror| mirror.follows.as_ref());
            match leader {
                Some(leader) if next.mirror(leader).is_none() => Change::Restart,
                _ => difference.change,
            }
        }
        _ => difference.change,
    }
}

/// Takes over one peer's keys from the file, and nothing else that may have changed in it. No name is looked up
/// for it: a peer waits for the answer.
///
/// # Errors
/// The file is wrong; nothing was changed.
pub async fn take_over_keys<E: Engine>(
    running: &mut Config,
    engine: &E,
    peer: &str,
) -> Result<(), ConfigError> {
    let new = Config::load(&running.file)?;
    if new.peer(peer).is_none() || running.peer(peer).is_none() {
        return Ok(());
    }
    running
        .sheet
        .copy_from(&new.sheet, Section::Peer, peer, "fingerprints");
    running.refresh();
    engine.in_force(running);
    engine.relink(&Addresses::default()).await;
    Ok(())
}
