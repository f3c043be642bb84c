//! A copy that was bad when it was forced is known as such until its peer has agreed to it
//! (docs/protocol.md §1, `forced_bad`): however often it is forced, and whatever happens in between.
//!
//! This was once a seed: the second word found the copy good, since the first had made it so, and the peer
//! would have been overwritten by it without a question.

use kagami_replicator::core::Command;

use super::cells::hello;
use super::stands::build;

const FORCE: Command = Command::Promote { force: true };

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
