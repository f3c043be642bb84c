//! The handshake's table, pair by pair: the core's verdict over every pair of small copies.
//!
//! A verdict must not depend on who computes it, and its source must be a copy that may be one.

use std::collections::BTreeMap;

use kagami_replicator::core::message::Hello;

use super::state::in_history;
use super::verdict::{Outcome, View, ask_the_core};

/// Generations that the copies of the table have.
const GENERATIONS: u8 = 4;
/// Of the second copies every so-many-th is taken; the offset walks over all residues.
const STRIDE: usize = 23;

/// Every copy of at most four generations.
pub fn views() -> Vec<View> {
    let mut views = Vec::new();
    for current in 0..=GENERATIONS {
        for set in 0..1u16 << GENERATIONS {
            let history = set << 1;
            let unwritten = current == 0 && history != 0;
            if unwritten || current != 0 && history & in_history(current) != 0 {
                continue;
            }
            let bases =
                (0..=GENERATIONS).filter(|base| *base == 0 || history & in_history(*base) != 0);
            for base in bases {
                for flags in 0..1u16 << 8 {
                    let flag = |bit: u16| flags >> bit & 1 == 1;
                    views.push(View {
                        id: 0,
                        current,
                        history,
                        base,
                        alone: flag(0) && current != 0,
                        was_primary: flag(1),
                        inconsistent: flag(2),
                        outdated: flag(3),
                        forced_bad: flag(4),
                        zeroed: flag(0) && current == 0,
                        marked: flag(5),
                        primary: flag(6),
                        unbroken: flag(7),
                        diskless: false,
                    });
                }
            }
        }
    }
    views
}

/// How often each row came to each outcome.
pub type Counts = BTreeMap<String, u64>;

/// Goes through the pairs.
///
/// Errors: the first pair that has no good verdict.
pub fn check() -> Result<(usize, Counts), String> {
    let views = views();
    let hellos = |id: u8| -> Vec<Hello> {
        views
            .iter()
            .map(|view| View { id, ..*view }.hello())
            .collect()
    };
    let (first, second) = (hellos(0), hellos(1));
    let mut counts = Counts::new();
    for (i, mine) in first.iter().enumerate() {
        for j in (i % STRIDE..second.len()).step_by(STRIDE) {
            let theirs = &second[j];
            let found = ask_the_core(mine, theirs);
            if found != ask_the_core(theirs, mine) {
                return Err(format!("asymmetric: {mine:?} / {theirs:?}"));
            }
            let source = match found.outcome {
                Outcome::Resync { source, .. } | Outcome::First { source } => Some(source),
                _ => None,
            };
            if let Some(source) = source {
                let (from, to) = if source == 0 {
                    (&views[i], &views[j])
                } else {
                    (&views[j], &views[i])
                };
                // The loser of a fork was chosen, by an operator, and may be partly overwritten:
                // it is never a source again, however bad the other one is.
                if from.inconsistent || from.outdated && !to.inconsistent {
                    return Err(format!("a bad copy is the source: {mine:?} / {theirs:?}"));
                }
            }
            let outcome = match found.outcome {
                Outcome::Nothing => "nothing".to_owned(),
                Outcome::Resync { full: true, .. } => "full".to_owned(),
                Outcome::Resync { full: false, .. } => "marks".to_owned(),
                Outcome::First { .. } => "first".to_owned(),
                Outcome::Serve => "serve".to_owned(),
                Outcome::Refuse(refused) => format!("refuse: {refused:?}"),
            };
            let row = format!("{:2} {:?}: {outcome}", found.row as u8, found.row);
            *counts.entry(row).or_default() += 1;
        }
    }
    Ok((views.len(), counts))
}
