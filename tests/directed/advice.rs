//! What an order is refused or not done for, in a person's words: nodes by their ids, and a next step that is not refused
//! itself.

use kagami_replicator::core::register::ArbiterAnswer;
use kagami_replicator::core::state::{NodeId, Time};
use kagami_replicator::core::{Command, Refusal};

use super::pair::{FORCE, PROMOTE, Pair};
use super::stands::{alone, copying, cut, primary};

const GIVE_UP: Command = Command::SetPeer {
    peer: NodeId::NOBODY,
};

fn refused(pair: &mut Pair, node: usize, command: Command) -> Refusal {
    let (id, _) = pair.order(node, command.clone());
    pair.pump();
    match pair.answer(node, id) {
        Some(Err(refusal)) => refusal.clone(),
        other => panic!("{command:?}: {other:?}"),
    }
}

/// It asks the arbiter by itself: `promote` would say that it is Primary already.
#[test]
fn a_primary_that_has_no_word_of_the_arbiter_is_not_sent_to_promote() {
    let mut pair = primary();
    pair.sides[0].hold.asks = true;
    let mut pair = cut(pair);
    pair.arbiter_says(0, ArbiterAnswer::Unreachable("no way there".into()));
    let why = refused(&mut pair, 0, GIVE_UP);
    assert!(why.next.contains("it is asked again by itself"), "{why:?}");
    assert!(!why.next.contains("`kagami promote`"), "{why:?}");
    // What it names is a way.
    pair.done(0, FORCE);
    pair.done(0, GIVE_UP);
}

/// Said is where it is paused, and "too" only where it was paused here as well.
#[test]
fn a_pause_at_the_other_node_is_named_as_that() {
    let fact = |here: bool| {
        let mut pair = copying();
        pair.done(1, Command::PauseSync);
        if here {
            pair.done(0, Command::PauseSync);
        }
        let progress = pair.sides[0].mirror.status(Time(pair.now)).progress;
        let progress = progress.expect("a resynchronisation");
        assert_eq!((progress.paused_here, progress.paused_there), (here, true));
        refused(&mut pair, 0, Command::ResumeSync).facts.concat()
    };
    assert_eq!(fact(false), "it is paused at the other node");
    assert_eq!(fact(true), "it is paused at the other node too");
}

#[test]
fn whom_the_register_names_is_told_by_the_ids_of_the_configuration() {
    let mut pair = alone();
    let generation = pair.arbiter.register().expect("a register").generation;
    let (id, _) = pair.order(1, PROMOTE);
    pair.elapse(8_000);
    let Some(Err(why)) = pair.answer(1, id) else {
        panic!("{:?}", pair.answer(1, id));
    };
    assert_eq!(
        why.facts,
        [format!("it names node 1 (generation {generation:016x})")]
    );
}
