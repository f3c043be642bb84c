//! `kagami config show`: each key, its value, where it came from, and with `--defaults` every key
//! there is.

use serde::Serialize;

use super::Config;
use super::keys::{self, Fallback, Key, Section};

/// One key of one section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// `[mirror.pg]`
    pub section: String,
    /// `solo`
    pub key: &'static str,
    /// As it would be written; `None` where nothing is in force.
    pub value: Option<String>,
    /// "line 12", "default", or what its absence means.
    pub origin: String,
    /// One line.
    pub explanation: &'static str,
}

/// Everything in force; with `defaults` also what the file does not say.
pub fn shown(config: &Config, defaults: bool) -> Vec<Shown> {
    let mut lines = Vec::new();
    for section in [
        Section::Node,
        Section::Mirror,
        Section::Peer,
        Section::Arbiter,
        Section::Nbd,
        Section::Witness,
    ] {
        let instances = config.sheet.instances(section);
        for instance in instances {
            rows(config, section, &instance.name, defaults, &mut lines);
            if section == Section::Mirror {
                rows(
                    config,
                    Section::Resync,
                    &instance.name,
                    defaults,
                    &mut lines,
                );
            }
        }
        if instances.is_empty() && defaults {
            rows(config, section, "NAME", true, &mut lines);
        }
    }
    lines
}

fn rows(config: &Config, section: Section, name: &str, defaults: bool, lines: &mut Vec<Shown>) {
    for key in keys::of(section) {
        let entry = config.sheet.entry(section, name, key.name);
        let written = entry.is_some_and(|entry| entry.line.is_some());
        if !written && !defaults {
            continue;
        }
        let (value, origin) = match entry {
            Some(entry) => (
                Some(entry.written.clone()),
                entry
                    .line
                    .map_or_else(|| "default".to_owned(), |line| format!("line {line}")),
            ),
            None => absent(config, key, name),
        };
        lines.push(Shown {
            section: section.heading(name),
            key: key.name,
            value,
            origin,
            explanation: key.explanation,
        });
    }
}

/// What holds for a key that the file does not have.
fn absent(config: &Config, key: &Key, name: &str) -> (Option<String>, String) {
    match key.fallback {
        Fallback::Required => (None, "to be written".to_owned()),
        Fallback::Value(text) => (
            Some(super::read::default_entry(key, text).written),
            "default".to_owned(),
        ),
        Fallback::Nothing(meaning) => (None, format!("none: {meaning}")),
        Fallback::Derived(how) => (derived(config, key, name), format!("derived: {how}")),
    }
}

/// The value that was worked out.
fn derived(config: &Config, key: &Key, name: &str) -> Option<String> {
    let node = &config.node;
    let path = match (key.section, key.name) {
        (Section::Node, "state-dir") => &node.state_dir,
        (Section::Node, "run-dir") => &node.run_dir,
        (Section::Node, "control") => &node.control,
        (Section::Mirror, "nbd-socket") => &config.mirror(name)?.nbd_socket,
        _ => unreachable!("{} has no derivation", key.name),
    };
    Some(format!("\"{}\"", path.display()))
}

/// The lines for people: valid TOML where a value is in force, comments for all else.
pub fn text(lines: &[Shown]) -> String {
    let mut text = String::new();
    let mut section = None;
    for line in lines {
        if section != Some(&line.section) {
            if section.is_some() {
                text.push('\n');
            }
            text.push_str(&line.section);
            text.push('\n');
            section = Some(&line.section);
        }
        let assignment = match &line.value {
            Some(value) if line.origin.starts_with("line ") => format!("{} = {value}", line.key),
            Some(value) => format!("#{} = {value}", line.key),
            None => format!("#{} =", line.key),
        };
        text.push_str(&format!(
            "{assignment:<44} # {}. {}\n",
            line.origin, line.explanation
        ));
    }
    text
}
