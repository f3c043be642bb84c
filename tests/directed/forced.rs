//! A copy that was bad when it was forced is known as such until its peer has agreed to it
//! (docs/protocol.md §1, `forced_bad`): however often it is forced, and whatever happens in between.
//!
//! This was once a seed: the second word found the copy good, since the first had made it so, and the peer
//! would have been overwritten by it without a question.

use kagami_replicator::core::register::ArbiterAnswer;
use kagami_replicator::core::{Command, Event};

use super::cells::hello;
use super::pair::{FORCE, PROMOTE, Pair, write};
use super::stands::{alone, build, cut};

#[test]
fn a_bad_copy_that_is_forced_twice_was_bad() {
    let (mut pair, node) = build("Bn");
    assert!(!hello(&pair.sides[node].mirror).forced_bad);
    pair.done(node, FORCE);
    assert!(hello(&pair.sides[node].mirror).forced_bad);
    pair.done(node, Command::Demote { force: false });
    pair.done(node, FORCE);
    let forced = hello(&pair.sides[node].mirror);
    assert!(forced.forced_bad, "it was bad, and nobody has mended it");
}

#[test]
fn a_second_word_before_the_first_is_durable_changes_nothing_of_it() {
    let (mut pair, node) = build("Bn");
    pair.sides[node].hold.metadata = true;
    pair.order(node, FORCE);
    pair.order(node, FORCE);
    pair.sides[node].hold.metadata = false;
    pair.pump();
    assert!(hello(&pair.sides[node].mirror).forced_bad);
}

#[test]
fn a_good_copy_that_is_forced_is_good() {
    let (mut pair, node) = build("Sn");
    pair.done(node, FORCE);
    assert!(!hello(&pair.sides[node].mirror).forced_bad);
}

/// Node 0, alone, is forced, and its questions to the arbiter wait.
fn forced() -> Pair {
    let mut pair = cut(alone());
    pair.done(0, Command::Demote { force: true });
    pair.sides[0].hold.asks = true;
    pair.done(0, FORCE);
    pair
}

/// The copy that was forced last has the last word. (Also once a seed: an earlier word, of which the arbiter's
/// answer was lost, was given again when it was long carried out, and two copies took the register from each
/// other.)
#[test]
fn a_word_that_was_carried_out_is_not_given_again() {
    let mut pair = forced();
    // It is read, the swap takes place, and nobody hears of it.
    let (attempt, ask) = pair.sides[0].asks.pop_front().expect("it looks first");
    let answer = pair.arbiter.answer(&ask);
    pair.handle(0, Event::Arbiter { attempt, answer });
    let (attempt, ask) = pair.sides[0].asks.pop_front().expect("it swaps");
    assert_eq!(pair.arbiter.answer(&ask), ArbiterAnswer::Swapped);
    let answer = ArbiterAnswer::Unreachable("no answer".into());
    pair.handle(0, Event::Arbiter { attempt, answer });
    pair.done(0, Command::Demote { force: true });
    promote_and_be_overruled(pair);
}

#[test]
fn a_promotion_waits_for_a_word_that_is_being_told() {
    let mut pair = forced();
    pair.done(0, Command::Demote { force: true });
    promote_and_be_overruled(pair);
}

fn promote_and_be_overruled(mut pair: Pair) {
    let (id, _) = pair.order(0, PROMOTE);
    pair.sides[0].hold.asks = false;
    pair.until(0, "Pn");
    let said = pair.answer(0, id);
    assert!(matches!(said, Some(Ok(_))), "{said:?}");
    last_word(pair);
}

/// Node 0 is Primary, and node 1 is forced now: who answers from then on?
fn last_word(mut pair: Pair) {
    pair.done(1, FORCE);
    pair.elapse(8_000);
    pair.write(1, 3);
    let (id, _) = pair.request(0, write(3));
    pair.elapse(8_000);
    assert_eq!(pair.reply(0, id), None, "two go on alone");
    pair.write(1, 4);
}
