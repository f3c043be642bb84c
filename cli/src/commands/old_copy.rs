//! An old copy of a mirror on a node that joins it again: what that holds is told, and it is given up where a person
//! says so.

use std::time::Duration;

use kagami_bitmap::Record;
use kagami_replicator::shell::engine::{OfflineCopy, StartError};
use kagami_replicator::shell::pairing::facts::Facts;

use super::worth::Worth;
use crate::config::value::spell_size;
use crate::config::{Config, Mirror};
use crate::exit::Failure;
use crate::unit::Starter;

/// An old copy that is to count as never written, kept open until the other side has agreed.
pub struct GivesUp {
    /// What is lost with it.
    pub what: String,
    copy: OfflineCopy,
    begun_anew: Record,
}

impl GivesUp {
    /// Whatever it holds, from now on it is only room for what the other side sends.
    ///
    /// # Errors
    /// It was not written.
    pub fn now(mut self) -> Result<(), StartError> {
        let begun_anew = self.begun_anew;
        self.copy.change(|record| *record = begun_anew)
    }
}

/// This node's old copy, which nobody takes up meanwhile, and what it is worth.
///
/// # Errors
/// It can't be opened.
pub fn judge(config: &Config, old: &Mirror) -> Result<(OfflineCopy, Worth), Failure> {
    let id = u128::from_be_bytes(old.uuid);
    let copy = OfflineCopy::open(&old.name, id, &old.metadata, Duration::ZERO)
        .map_err(|error| Failure::refused(format!("mirror {}: not joined: {error}", old.name)))?;
    let worth = Worth::of(&copy, config.node.id, &old.backing);
    Ok((copy, worth))
}

/// What the question says.
pub fn given_up(old: &Mirror, worth: &Worth) -> String {
    let force = worth
        .needed
        .as_ref()
        .map_or_else(String::new, |why| format!(" by force: {why}"));
    format!(
        "mirror {}: this node's copy ({}) is given up{force}\n  {}",
        old.name,
        old.backing.display(),
        worth.words
    )
}

/// What the copy is comes before how it is given up.
pub fn refused(config: &Config, old: &Mirror, peer: &str) -> Failure {
    let name = &old.name;
    let (what, next) = match judge(config, old) {
        Ok((_, worth)) => match worth.needed {
            Some(why) => (
                format!("{}\n  {why}", worth.words),
                keep_or_force(name, peer),
            ),
            None => (
                worth.words,
                format!(
                    "the same command with --give-up-copy takes it in again, and copies all of it from {peer}"
                ),
            ),
        },
        Err(failure) => (
            failure.words,
            format!(
                "put that right (`{}`, where the daemon has it open), then again: what that copy holds is told then",
                Starter::of_file(&config.file).down()
            ),
        ),
    };
    Failure::refused(format!(
        "not joined: node {} has an old copy of mirror {name} already ({})\n  {what}\n  next: {next}",
        config.node.name,
        old.backing.display()
    ))
}

/// What to do with an old copy that may be the only one of what was written here.
fn keep_or_force(name: &str, peer: &str) -> String {
    format!(
        "to keep it, `kagami pair {name} --again` here, and give {peer}'s copy up by that line there; or --give-up-copy --force here, if what only it holds may be lost"
    )
}

/// An old copy of this node's that can be given up for what the other side sends. Nothing is changed yet.
///
/// # Errors
/// It is another one, can't be opened, or may be the only good one and no `force` is used.
pub fn give_up(
    config: &Config,
    old: &Mirror,
    facts: &Facts,
    force: bool,
) -> Result<GivesUp, Failure> {
    let name = &old.name;
    let refused = |why: String| Failure::refused(format!("mirror {name}: not joined: {why}"));
    let id = facts.mirror.mirror;
    let (copy, worth) = judge(config, old)?;
    let (node, size, block) = (
        copy.record().node,
        copy.record().size,
        copy.record().logical_block,
    );
    if node != config.node.id {
        return Err(refused(format!(
            "{} holds the copy of node {node}, and this is node {}\n  next: name other stores",
            old.metadata.display(),
            config.node.id
        )));
    }
    if size != facts.mirror.size {
        return Err(refused(format!(
            "the old copy has {}, and the mirror {}\n  next: `kagami resize {name} --grow {}` here, if that is more; else remove [mirror.{name}] and its stores here, and join with new ones",
            spell_size(size),
            spell_size(facts.mirror.size),
            spell_size(facts.mirror.size)
        )));
    }
    if let (Some(why), false) = (&worth.needed, force) {
        return Err(Failure::refused(format!(
            "mirror {name}: not joined: the old copy here ({}) may be the only good one\n  {}\n  {why}\n  next: {}",
            old.backing.display(),
            worth.words,
            keep_or_force(name, &facts.party.name)
        )));
    }
    let begun_anew = Record {
        logical_block: block,
        peer: Some(facts.party.node.0),
        ..Record::new(id, node, size)
    };
    Ok(GivesUp {
        what: given_up(old, &worth),
        copy,
        begun_anew,
    })
}
