//! A demotion flushes what both disks have not flushed yet, at once: it waits for the disks and the peer, and
//! for no timer.
//!
//! It once asked for the flush when the event's own turn to begin one was over, and so got it with the next
//! event: a ping, or whatever came.

use kagami_replicator::core::Command;
use kagami_replicator::core::state::CommandId;

use super::pair::{DEMOTE, Pair, write};
use super::stands::{alone, cut, in_sync, primary};

fn flushes(pair: &Pair) -> [usize; 2] {
    [pair.sides[0].flushes, pair.sides[1].flushes]
}

#[test]
fn what_is_unflushed_is_flushed_at_the_moment_of_the_order() {
    let mut pair = primary();
    pair.write(0, 7);
    let before = flushes(&pair);
    // No time passes in it.
    pair.done(0, DEMOTE);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
    let [a, b] = flushes(&pair);
    assert_eq!([a - before[0], b - before[1]], [1, 1], "once on each disk");
}

#[test]
fn it_flushes_when_the_last_write_has_ended() {
    for slow in [0, 1] {
        let mut pair = primary();
        pair.sides[slow].hold.writes = true;
        let (wrote, _) = pair.request(0, write(7));
        let (demoted, _) = pair.order(0, DEMOTE);
        pair.pump();
        let before = flushes(&pair);
        assert!(pair.answer(0, demoted).is_none(), "a write is under way");
        pair.sides[slow].hold.writes = false;
        pair.pump();
        assert!(pair.reply(0, wrote).is_some_and(Result::is_ok));
        assert!(pair.answer(0, demoted).is_some_and(Result::is_ok));
        let [a, b] = flushes(&pair);
        assert_eq!([a - before[0], b - before[1]], [1, 1], "once on each disk");
    }
}

#[test]
fn a_flush_that_is_under_way_does_not_cover_what_came_after_it() {
    let mut pair = primary();
    pair.write(0, 7);
    pair.sides[1].hold.flushes = true;
    let (flushed, _) = pair.request(0, kagami_replicator::core::event::Request::Flush);
    pair.pump();
    pair.write(0, 8);
    let (demoted, _) = pair.order(0, DEMOTE);
    pair.pump();
    assert!(pair.answer(0, demoted).is_none());
    let before = flushes(&pair);
    pair.sides[1].hold.flushes = false;
    pair.pump();
    assert!(pair.reply(0, flushed).is_some_and(Result::is_ok));
    assert!(pair.answer(0, demoted).is_some_and(Result::is_ok));
    let [a, b] = flushes(&pair);
    assert_eq!(
        [a - before[0], b - before[1]],
        [1, 1],
        "once more for block 8"
    );
    assert!(pair.is_equal());
}

#[test]
fn without_the_peer_the_one_disk_is_flushed() {
    let mut pair = alone();
    let before = flushes(&pair);
    pair.done(0, DEMOTE);
    assert_eq!(pair.stand(0), "Sn");
    assert_eq!(flushes(&pair)[0] - before[0], 1);
}

/// Node 1 has lost its peer and asks the arbiter, which is silent, whether it may be Primary.
fn waits_for_permission() -> (Pair, usize, CommandId) {
    let (mut pair, node) = (cut(in_sync()), 1);
    pair.sides[node].hold.asks = true;
    let (id, _) = pair.order(
        node,
        Command::Promote {
            force: false,
            while_resyncing: false,
        },
    );
    pair.elapse(2_200);
    assert!(!pair.sides[node].asks.is_empty(), "the arbiter is asked");
    assert!(pair.answer(node, id).is_none());
    (pair, node, id)
}

#[test]
fn it_takes_back_a_promotion_that_waits() {
    let (mut pair, node, promoted) = waits_for_permission();
    pair.done(node, DEMOTE);
    assert!(matches!(pair.answer(node, promoted), Some(Err(_))));
    // With the link back there is nothing that it waits for.
    pair.sides[node].hold.asks = false;
    pair.linked = true;
    pair.meet();
    pair.elapse(8_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
}

#[test]
fn permission_that_comes_after_it_makes_nobody_primary() {
    let (mut pair, node, _) = waits_for_permission();
    pair.done(node, DEMOTE);
    pair.sides[node].hold.asks = false;
    pair.elapse(8_000);
    assert_eq!(pair.stand(node), "Sn");
}
