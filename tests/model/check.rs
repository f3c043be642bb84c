//! What must hold in every state. The names are those of docs/design.md §4.

use kagami_replicator::core::decide::Refused;

use super::bounds::{Bounds, Mode};
use super::guest;
use super::mistake::Mistake;
use super::name;
use super::state::{Meeting, State};
use super::steps::{Check, has};
use super::verdict::{Outcome, View, verdict};

/// Node `i` goes on as the only copy: it must have all that was promised.
pub fn gains_permission(b: &Bounds, s: &State, i: usize, how: &str) -> Check {
    let node = &s.node[i];
    if !b.promises(s.ghost.forced) {
        return Ok(());
    }
    if node.is_bad() {
        return Err(format!(
            "No-stale-promotion: {} {how} while Inconsistent or Outdated",
            name(i)
        ));
    }
    for block in 0..usize::from(b.blocks) {
        if node.data[block] < s.ghost.last_flushed[block] {
            return Err(format!(
                "Read-your-writes: {} {how} without a flushed write of block {block}",
                name(i)
            ));
        }
    }
    if s.ghost.kept & !s.ghost.flushed[i] != 0 {
        return Err(format!(
            "Read-your-writes: {} {how} lacking flushed writes",
            name(i)
        ));
    }
    Ok(())
}

/// All of them.
///
/// Errors: which one does not hold, and why.
pub fn all(b: &Bounds, s: &State) -> Check {
    for i in 0..2 {
        reads(b, s, i)?;
    }
    one_writer(b, s)?;
    marked_before_different(b, s)
}

/// *Read-your-writes*: a read returns what was answered before.
fn reads(b: &Bounds, s: &State, i: usize) -> Check {
    let (node, peer) = (&s.node[i], &s.node[1 - i]);
    if !node.up || !node.primary || !b.promises(s.ghost.forced) {
        return Ok(());
    }
    let serves_target = node.inconsistent;
    let endless = b.mistake == Mistake::ReadsAfterGrant
        || b.mistake == Mistake::TargetServesOn && serves_target;
    let leased = node.lease && node.meeting == Meeting::No || endless;
    let guest = guest::is_guest(b, node);
    if guest && !guest::is_served(b, s, i) {
        return Ok(());
    }
    for block in b.each_block() {
        let at = usize::from(block);
        let elsewhere = node.disk_failed
            || guest
            || serves_target && has(s.link.stale, block) && b.mistake != Mistake::TargetReadsItself;
        let value = if elsewhere {
            // the peer answers, in the session
            if !(s.joined() && node.lease) {
                continue;
            }
            peer.data[at]
        } else if node.may_answer || leased {
            node.data[at]
        } else {
            continue;
        };
        if value < node.seen[at] {
            return Err(format!(
                "Read-your-writes: {} reads write {value} of block {block}, and has read or been answered {}",
                name(i),
                node.seen[at]
            ));
        }
        if node.passed {
            return Err(format!(
                "One-writer: {} reads, and has been Primary since before the other one answered",
                name(i)
            ));
        }
        if value < s.ghost.last[at] {
            return Err(format!(
                "Read-your-writes: {} reads write {value} of block {block}, {} was answered",
                name(i),
                s.ghost.last[at]
            ));
        }
    }
    Ok(())
}

/// *One-writer*: no two nodes can answer.
fn one_writer(b: &Bounds, s: &State) -> Check {
    let can = |i: usize| {
        let node = &s.node[i];
        node.up && node.primary && (node.may_answer || s.in_session(i) && s.link.is_open())
    };
    if can(0) && can(1) && b.promises(s.ghost.forced) {
        return Err("One-writer: both can answer".into());
    }
    if s.joined() && s.node[0].primary && s.node[1].primary {
        return Err("One-writer: two Primaries in one session".into());
    }
    Ok(())
}

/// What befalls a node now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Nothing,
    Machine,
    Daemon,
}

/// *Marked-before-different*, for each set of nodes that meets its fate now: what the next
/// handshake would not copy must be equal.
fn marked_before_different(b: &Bounds, s: &State) -> Check {
    let fates: &[Fate] = if b.deaths > 0 {
        &[Fate::Nothing, Fate::Machine, Fate::Daemon]
    } else {
        &[Fate::Nothing, Fate::Machine]
    };
    for of_a in fates {
        for of_b in fates {
            let (data_a, marks_a, view_a) = after(b, s, 0, *of_a);
            let (data_b, marks_b, view_b) = after(b, s, 1, *of_b);
            if data_a == data_b {
                continue;
            }
            let verdict = verdict(&view_a, &view_b, b.mistake);
            let copies_marks = matches!(
                verdict.outcome,
                Outcome::Nothing | Outcome::Resync { full: false, .. }
            );
            for block in b.each_block() {
                let at = usize::from(block);
                if copies_marks && data_a[at] != data_b[at] && !has(marks_a | marks_b, block) {
                    return Err(format!(
                        "Marked-before-different: block {block} holds {} and {}, unmarked; row {:?}",
                        data_a[at], data_b[at], verdict.row
                    ));
                }
            }
            if verdict.outcome == Outcome::Refuse(Refused::Impossible) {
                return Err(format!(
                    "the handshake finds what is impossible: {:?}",
                    verdict.row
                ));
            }
        }
    }
    Ok(())
}

/// A node's data, marks and hello after its fate.
fn after(b: &Bounds, s: &State, i: usize, fate: Fate) -> ([u8; 2], u8, View) {
    let node = &s.node[i];
    let mut view = View::of(node, i);
    let machine =
        fate == Fate::Machine || !node.up && !node.daemon_down || node.disk_failed && b.deaths == 0;
    if machine {
        view.primary = false;
        view.unbroken = b.mistake == Mistake::BootRefreshedAtRestart;
        view.marked = node.durable_marks != 0;
        return (node.stable, node.durable_marks, view);
    }
    if fate == Fate::Daemon || node.daemon_down || node.disk_failed {
        view.primary = false;
        view.marked = node.durable_marks != 0;
        let data = if node.disk_failed {
            node.stable
        } else {
            node.data
        };
        return (data, node.durable_marks, view);
    }
    (node.data, node.marks, view)
}

/// A verdict that nothing but a force, or `solo = always`, may lead to.
pub fn is_alarm(b: &Bounds, s: &State, refused: Refused) -> Option<String> {
    let calm = b.promises(s.ghost.forced);
    match refused {
        Refused::Impossible | Refused::OtherMirror | Refused::OtherSize { .. } => Some(format!(
            "the handshake finds what is impossible: {refused:?}"
        )),
        Refused::TwoPrimaries if b.mode != Mode::Always => {
            Some("One-writer: two Primaries in one generation".into())
        }
        Refused::SplitBrain | Refused::Unrelated | Refused::BothStale | Refused::NameSource
            if calm =>
        {
            Some(format!(
                "No-silent-fork: false alarm, {refused:?} although nobody forced anything"
            ))
        }
        _ => None,
    }
}
