//! An operator's word on whose copy stays: it is carried out, or refused, or taken back; never turned round,
//! and never held against what was done after it.

use kagami_replicator::core::decide::{Refused, Strategy};
use kagami_replicator::core::event::From;
use kagami_replicator::core::state::{NodeId, Time};
use kagami_replicator::core::{Command, Connection, Role};

use super::pair::{FORCE, Pair};
use super::stands::{alone, build, primary};

const LONG: u64 = 30_000;
const DEMOTE_FORCE: Command = Command::Demote { force: true };

fn resync(from: From) -> Command {
    let from = Some(from);
    Command::Resync { from, full: false }
}

/// What the last meeting came to, if it was refused.
fn refused(pair: &Pair, node: usize) -> Option<Refused> {
    match pair.sides[node]
        .mirror
        .status(Time(pair.now))
        .verdict?
        .strategy
    {
        Strategy::Refuse(why) => Some(why),
        _ => None,
    }
}

fn holds(pair: &Pair, node: usize, block: u64) -> bool {
    pair.content(node, block * 4096, 4096) == vec![block as u8 + 1; 4096]
}

fn heal(pair: &mut Pair) {
    pair.linked = true;
    pair.elapse(LONG);
}

/// Both went on alone, and neither is Primary any more; the link is down. Block 1 is node 0's, block 2 node 1's.
fn forked() -> Pair {
    let mut pair = alone();
    pair.linked = false;
    pair.write(0, 1);
    pair.done(1, FORCE);
    pair.write(1, 2);
    for node in [0, 1] {
        pair.done(node, DEMOTE_FORCE);
    }
    pair
}

/// Node 1 left cleanly, and node 0 went on by its consent, and wrote block 5; nobody is Primary any more.
fn left_behind() -> Pair {
    let mut pair = primary();
    pair.done(1, Command::Disconnect);
    pair.elapse(100);
    pair.write(0, 5);
    pair.done(0, DEMOTE_FORCE);
    pair
}

#[test]
fn a_word_is_carried_out_when_they_meet() {
    for (node, from, kept) in [(0, From::Peer, 2), (0, From::Local, 1), (1, From::Peer, 1)] {
        let mut pair = forked();
        pair.done(node, resync(from));
        heal(&mut pair);
        assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
        for at in [0, 1] {
            assert!(holds(&pair, at, kept) && !holds(&pair, at, 3 - kept));
        }
    }
}

/// Both words stand against the service's own copy: here it is given where the copy is, there at the other node.
#[test]
fn who_was_promoted_since_is_not_overwritten() {
    for (at, from) in [(0, From::Peer), (1, From::Local)] {
        let mut pair = forked();
        pair.done(at, resync(from));
        pair.done(0, FORCE);
        pair.write(0, 9);
        heal(&mut pair);
        assert_eq!(pair.sides[0].mirror.role(), Role::Primary, "word at {at}");
        assert!(holds(&pair, 0, 9) && holds(&pair, 0, 1), "word at {at}");
        assert!(holds(&pair, 1, 2), "word at {at}");
        assert_eq!(refused(&pair, 0), Some(Refused::SplitBrain), "word at {at}");
    }
}

#[test]
fn a_promotion_takes_the_word_back_for_good() {
    let mut pair = forked();
    pair.done(0, resync(From::Peer));
    pair.done(0, FORCE);
    pair.write(0, 9);
    pair.done(0, DEMOTE_FORCE);
    heal(&mut pair);
    assert!(holds(&pair, 0, 9) && holds(&pair, 1, 2));
    assert_eq!(refused(&pair, 0), Some(Refused::SplitBrain));
}

#[test]
fn a_disconnection_takes_the_word_back() {
    let mut pair = forked();
    pair.done(0, resync(From::Peer));
    pair.done(0, Command::Disconnect);
    pair.done(0, Command::Connect);
    heal(&mut pair);
    assert!(holds(&pair, 0, 1) && holds(&pair, 1, 2));
    assert_eq!(refused(&pair, 0), Some(Refused::SplitBrain));
}

/// The word was to keep the copy that is behind.
#[test]
fn a_word_against_the_newer_copy_is_refused_and_not_turned_round() {
    for (at, from) in [(0, From::Peer), (1, From::Local)] {
        let mut pair = left_behind();
        pair.order(at, resync(from));
        if at == 0 {
            pair.order(1, Command::Connect);
        }
        pair.elapse(LONG);
        assert!(holds(&pair, 0, 5) && !holds(&pair, 1, 5), "word at {at}");
        for node in [0, 1] {
            let status = pair.sides[node].mirror.status(Time(pair.now));
            assert_ne!(status.connection, Connection::Connected, "word at {at}");
        }
        let why = Refused::ChosenIsBehind { chosen: NodeId(2) };
        assert_eq!(refused(&pair, at), Some(why), "word at {at}");
        // To give the newer one up is another word, said of that very copy.
        pair.done(0, Command::Invalidate);
        pair.done(0, resync(From::Peer));
        pair.order(1, Command::Connect);
        pair.elapse(LONG);
        assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
        assert!(!holds(&pair, 0, 5) && pair.is_equal(), "word at {at}");
    }
}

fn is_refused(pair: &mut Pair, node: usize, from: From) -> bool {
    let (id, _) = pair.order(node, resync(from));
    pair.pump();
    matches!(pair.answer(node, id), Some(Err(_)))
}

/// It was accepted, and went on as the target that it was: nobody heard that the word was for nothing.
#[test]
fn a_copy_that_is_partly_overwritten_is_not_chosen() {
    let (mut pair, target) = build("Bn");
    assert!(is_refused(&mut pair, target, From::Local));
    let status = pair.sides[target].mirror.status(Time(pair.now));
    assert_eq!(status.chosen, None);
    heal(&mut pair);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    assert!(pair.is_equal());
    let (mut pair, target) = build("Bn");
    pair.done(target, resync(From::Peer));
}

/// The session was closed for a word, and the next one had nothing to do with it.
#[test]
fn where_one_node_has_no_disk_there_is_nothing_to_choose() {
    for stand in ["Sv", "Pv", "Bv"] {
        for from in [From::Local, From::Peer] {
            let (mut pair, node) = build(stand);
            let session = pair.sides[node].session;
            assert!(is_refused(&mut pair, node, from), "{stand}, {from:?}");
            assert_eq!(pair.sides[node].session, session, "{stand}, {from:?}");
        }
    }
}

/// The operator saw the copies as they were then.
#[test]
fn a_word_lapses() {
    let mut pair = forked();
    pair.done(0, resync(From::Peer));
    let status = pair.sides[0].mirror.status(Time(pair.now));
    let chosen = status.chosen.expect("it waits");
    assert_eq!(chosen.keep, NodeId(2));
    pair.elapse((chosen.until.0 - pair.now) / 1_000_000 + 1);
    assert_eq!(pair.sides[0].mirror.status(Time(pair.now)).chosen, None);
    heal(&mut pair);
    assert!(holds(&pair, 0, 1) && holds(&pair, 1, 2));
    assert_eq!(refused(&pair, 0), Some(Refused::SplitBrain));
}

/// Whose copy is to go was Primary still when the word was heard there: it is not carried out later.
#[test]
fn a_word_that_a_primary_refused_is_over() {
    let mut pair = alone();
    pair.linked = false;
    pair.done(1, FORCE);
    pair.write(1, 2);
    pair.done(1, DEMOTE_FORCE);
    pair.done(1, resync(From::Local));
    heal(&mut pair);
    assert_eq!(pair.sides[0].mirror.role(), Role::Primary);
    pair.done(0, DEMOTE_FORCE);
    pair.elapse(LONG);
    assert!(holds(&pair, 0, 5) && !holds(&pair, 1, 5));
    assert_eq!(refused(&pair, 0), Some(Refused::SplitBrain));
}
