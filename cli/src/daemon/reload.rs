//! Taking over a changed configuration without a restart, as far as that goes.
//!
//! What each key allows stands in the table of keys. A change that needs a restart is named every
//! time until the restart; the running configuration keeps its old value.

use std::collections::BTreeSet;

use kagami_replicator::core::event::Command;

use super::engine::Engine;
use super::settings;
use crate::config::keys::{self, Change, Key, Section};
use crate::config::{Config, ConfigError, Solo};

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

/// Reads the file again and hands over what can be handed over. `running` becomes what is in force.
///
/// # Errors
/// The file is wrong; nothing was changed.
pub async fn reload<E: Engine>(
    running: &mut Config,
    engine: &E,
    set_log_level: impl Fn(&str),
) -> Result<Reloaded, ConfigError> {
    let new = Config::load(&running.file)?;
    let mut done = Reloaded::default();
    let mut next = running.clone();
    for mut difference in differences(running, &new) {
        // Permission by an arbiter is worth nothing before the daemon knows the arbiter.
        let no_arbiter = running
            .mirror(&difference.name)
            .is_some_and(|mirror| mirror.arbiter.is_none());
        let asks_arbiter = new
            .mirror(&difference.name)
            .is_some_and(|mirror| mirror.solo == Solo::Arbiter);
        if difference.key == Some("solo") && no_arbiter && asks_arbiter {
            difference.change = Change::Restart;
        }
        match (difference.change, difference.key) {
            (Change::Live, Some(key)) => {
                next.sheet
                    .copy_from(&new.sheet, difference.section, &difference.name, key);
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
    for mirror in &next.mirrors {
        let before = running
            .mirror(&mirror.name)
            .map(|old| settings::of(running, old));
        let after = settings::of(&next, mirror);
        if before.as_ref() == Some(&after) {
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
    Ok(done)
}
