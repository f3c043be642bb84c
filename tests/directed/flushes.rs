//! When both disks are flushed, and which answer of a disk or of the peer ends what.

use bytes::Bytes;
use kagami_replicator::core::event::Request;
use kagami_replicator::core::state::Solo;
use kagami_replicator::core::{Notice, Settings};

use super::pair::{DEMOTE, PROMOTE, Pair, start, write};
use super::stands::{lose_disk, primary};

/// Bytes of an extent.
const EXTENT: u64 = 4 << 20;

fn flushes(pair: &Pair) -> [usize; 2] {
    [pair.sides[0].flushes, pair.sides[1].flushes]
}

/// Node 0 is Primary; a flush by the clock comes late.
fn patient() -> Pair {
    let mut pair = Pair::with(&Settings {
        solo: Solo::Arbiter,
        flush_after_ms: 60_000,
        ..Settings::default()
    });
    pair.pump();
    pair.elapse(500);
    pair.done(0, PROMOTE);
    pair.elapse(500);
    pair
}

#[test]
fn what_is_idle_is_flushed_soon() {
    let mut pair = patient();
    pair.write(0, 3);
    let [a, b] = flushes(&pair);
    pair.elapse(600);
    assert_eq!(flushes(&pair), [a + 1, b + 1]);
    pair.elapse(5_000);
    assert_eq!(flushes(&pair), [a + 1, b + 1], "there is nothing more");
}

#[test]
fn what_is_busy_is_flushed_by_the_clock() {
    let mut pair = patient();
    let before = flushes(&pair);
    for nth in 0..50 {
        pair.write(0, nth);
        pair.elapse(100);
    }
    assert_eq!(flushes(&pair), before);
    // Nor is it idle while a write is under way.
    pair.sides[1].hold.writes = true;
    pair.request(0, write(60));
    pair.elapse(2_000);
    assert_eq!(flushes(&pair), before);
    pair.sides[1].hold.writes = false;
    pair.elapse(600);
    assert_eq!(flushes(&pair), [before[0] + 1, before[1] + 1]);
}

/// A flush that would cover nothing is begun as soon as it would.
#[test]
fn a_flush_that_is_due_waits_for_the_end_of_a_write() {
    let mut pair = primary();
    pair.sides[1].hold.writes = true;
    let (id, _) = pair.request(0, write(9));
    let before = flushes(&pair);
    pair.elapse(1_500);
    assert_eq!(flushes(&pair), before);
    pair.sides[1].hold.writes = false;
    pair.pump();
    assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
    assert_eq!(flushes(&pair), [before[0] + 1, before[1] + 1]);
}

/// More would have to wait for it: the activity log has room for 64 extents.
#[test]
fn half_a_log_of_extents_is_flushed_at_once() {
    let settings = Settings {
        flush_after_ms: 60_000,
        ..Settings::default()
    };
    let mut pair = Pair::of([0, 1].map(|node| start(node, &settings, 64 * EXTENT)));
    pair.pump();
    pair.elapse(500);
    pair.done(0, PROMOTE);
    let before = flushes(&pair);
    for extent in 0..32 {
        assert_eq!(flushes(&pair), before, "{extent}");
        pair.write(0, extent * EXTENT / 4096);
    }
    assert_eq!(flushes(&pair), [before[0] + 1, before[1] + 1]);
}

/// One that came to nothing with its session covers nothing of what is asked of the next one.
#[test]
fn a_flush_of_before_ends_no_later_one() {
    let mut pair = primary();
    pair.write(0, 9);
    pair.sides[0].hold.flushes = true;
    let (id, _) = pair.request(0, Request::Flush);
    pair.pump();
    pair.cut();
    pair.pump();
    for left in [2, 1] {
        assert_eq!(pair.sides[0].disk.len(), left);
        assert_eq!(pair.reply(0, id), None, "{left} are under way");
        pair.end_disk(0, 0, Ok(()));
        pair.pump();
    }
    assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
}

/// The disk fails under a flush: the peer, which carries this node from then on, flushes once more.
#[test]
fn the_peers_answer_to_a_flush_that_came_to_nothing_is_no_answer_to_the_next() {
    let mut pair = primary();
    pair.write(0, 9);
    pair.sides[1].hold.flushes = true;
    let (id, _) = pair.request(0, Request::Flush);
    pair.pump();
    assert_eq!(pair.sides[1].disk.len(), 1);
    lose_disk(&mut pair);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Dv", "Sv"]);
    for left in [2, 1] {
        assert_eq!(pair.sides[1].disk.len(), left);
        assert_eq!(pair.reply(0, id), None, "{left} are under way");
        pair.end_disk(1, 0, Ok(()));
        pair.pump();
    }
    assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
    let mut notices = pair.sides.iter().flat_map(|side| &side.notices);
    assert!(!notices.any(|notice| matches!(notice, Notice::PeerFault { .. })));
}

/// The role is given up when no flush runs: what it covers is marked until it has ended.
#[test]
fn a_demotion_waits_for_a_flush_that_runs() {
    for slow in [0, 1] {
        let mut pair = primary();
        pair.write(0, 9);
        pair.sides[slow].hold.flushes = true;
        pair.elapse(1_500);
        assert_eq!(pair.sides[slow].disk.len(), 1, "by the clock");
        let (id, _) = pair.order(0, DEMOTE);
        pair.pump();
        assert_eq!(pair.answer(0, id), None);
        pair.sides[slow].hold.flushes = false;
        pair.pump();
        assert!(matches!(pair.answer(0, id), Some(Ok(_))));
        assert!(!pair.sides[0].mirror.record().was_primary, "cleanly");
    }
}
