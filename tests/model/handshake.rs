//! A handshake in one step: what both copies say, the core's verdict, and what it demands.

use kagami_replicator::core::decide::Refused;

use super::bounds::Bounds;
use super::check::is_alarm;
use super::mistake::Mistake;
use super::resync;
use super::state::{Session, Stage, State, in_history};
use super::steps::{Check, Step, Steps};
use super::verdict::{Outcome, View, verdict};

/// The steps of a handshake.
pub fn steps(b: &Bounds, s: &State, out: &mut Steps) -> Check {
    let (x, y) = (&s.node[0], &s.node[1]);
    let lands = x.late.id != 0 || y.late.id != 0;
    let may = x.up && y.up && !s.link.is_open() && s.used.handshakes < b.handshakes;
    if !may || lands && b.mistake != Mistake::HelloBeforeLateWrite {
        return Ok(());
    }
    let (mine, theirs) = (View::of(x, 0), View::of(y, 1));
    let found = verdict(&mine, &theirs, b.mistake);
    if found != verdict(&theirs, &mine, b.mistake) {
        return Err(format!("the verdict is not symmetric: {found:?}"));
    }
    let mut t = s.with(|t| {
        t.used.handshakes += 1;
        for node in &mut t.node {
            if b.mistake != Mistake::AttemptSurvivesHandshake {
                node.attempt = 0;
            }
        }
    });
    match found.outcome {
        Outcome::Nothing => {
            if x.data != y.data {
                return Err("No-silent-fork: verdict `nothing` over different copies".into());
            }
            in_sync(&mut t);
            out.add(Step::Handshake, t);
        }
        Outcome::Resync { source, full } => {
            resync::begin(b, s, &mut t, usize::from(source), full)?;
            out.add(Step::Handshake, t);
        }
        Outcome::First { source } => {
            first(b, &mut t, usize::from(source));
            out.add(Step::Handshake, t);
        }
        Outcome::Serve => {}
        Outcome::Refuse(refused) => {
            if let Some(alarm) = is_alarm(b, s, refused) {
                return Err(alarm);
            }
            if b.mistake == Mistake::PeerIdsIntoHistory && refused == Refused::SplitBrain {
                let to = s.with(|t| {
                    t.used.handshakes += 1;
                    t.node[0].history |= in_history(y.current) | y.history;
                });
                out.add(Step::Handshake, to);
            }
            if matches!(refused, Refused::SplitBrain | Refused::Unrelated) {
                operator_keeps(b, s, &t, out)?;
            }
        }
    }
    Ok(())
}

/// Both are equal, and say so durably.
fn in_sync(t: &mut State) {
    t.link = Session {
        open: [true, true],
        ..Session::default()
    };
    for node in &mut t.node {
        node.base = 0;
        node.unbroken = true;
        node.lease = node.primary;
        node.may_answer = false;
    }
}

/// Row 3: `source` mints what the other adopts; nothing is copied.
fn first(b: &Bounds, t: &mut State, source: usize) {
    let generation = t.draw_generation();
    t.node[source].mint(generation);
    t.node[source].alone = b.mistake == Mistake::FirstMintedAlone;
    if b.mistake == Mistake::BothMintFirst {
        let generation = t.draw_generation();
        t.node[1 - source].mint(generation);
        t.node[1 - source].alone = false;
    }
    t.link = Session {
        open: [true, true],
        source: source as u8 + 1,
        stage: Stage::Offered,
        offered: t.node[source].current,
        offered_history: t.node[source].history,
        ..Session::default()
    };
}

/// The operator gives up what one copy has by itself.
fn operator_keeps(b: &Bounds, s: &State, met: &State, out: &mut Steps) -> Check {
    if s.used.orders > b.force {
        return Ok(());
    }
    for source in 0..2 {
        let target = 1 - source;
        let mut t = met.with(|t| {
            t.used.orders += 1;
            t.ghost.kept = s.ghost.flushed[source];
            t.ghost.flushed[target] &= s.ghost.flushed[source];
            t.ghost.line[target] &= s.ghost.line[source];
            t.ghost.forced = true;
        });
        let (from, to) = (&s.node[source], &s.node[target]);
        let common = from.line() & to.line();
        let by_marks = common & in_history(from.base) != 0 && common & in_history(to.base) != 0;
        let promised = t;
        resync::begin(b, &promised, &mut t, source, !by_marks)?;
        out.add(Step::Keep(source), t);
    }
    Ok(())
}
