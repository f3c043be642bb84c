//! The end of a resynchronisation waits for what it must, and for nothing else.
//!
//! Each of these was once a seed: a source that flushed without a pause, one that waited for the
//! arbiter though it had heard of it, one that waited to read a block that had been written anew.

use kagami_replicator::core::DiskFault;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::register::ArbiterAnswer;

use super::pair::{Pair, write};
use super::stands::{alone, copying};

/// Lets the source copy all it has to, and stops at its question whether the arbiter is there.
fn probing() -> Pair {
    let mut pair = copying();
    // The next regular look at the register comes before a pause would be over.
    pair.elapse(1_200);
    pair.sides[0].hold.asks = true;
    pair.sides[0].hold.reads = false;
    pair.until_count(0);
    pair
}

#[test]
fn a_last_write_on_a_slow_disk_is_not_flushed_for_again_and_again() {
    let mut pair = probing();
    pair.pump();
    // One write, answered by the peer, stands still on the local disk; then the arbiter answers, and new
    // writes have to wait.
    pair.sides[0].hold.writes = true;
    let (id, _) = pair.request(0, write(2));
    pair.pump();
    pair.sides[0].hold.asks = false;
    pair.pump();
    assert_eq!(pair.stand(0), "Pf");
    assert_eq!(pair.reply(0, id), None);
    let (flushes, peers) = (pair.sides[0].flushes, pair.sides[1].flushes);
    pair.elapse(8_000);
    assert_eq!(pair.stand(0), "Pf", "it waits for the write");
    let covers_nothing = [
        pair.sides[0].flushes - flushes,
        pair.sides[1].flushes - peers,
    ];
    assert_eq!(
        covers_nothing,
        [0, 0],
        "flushes while the only unflushed write is under way"
    );

    pair.sides[0].hold.writes = false;
    pair.pump();
    assert!(pair.reply(0, id).is_some_and(Result::is_ok));
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    let covers_it = [
        pair.sides[0].flushes - flushes,
        pair.sides[1].flushes - peers,
    ];
    assert_eq!(covers_it, [1, 1], "one flush of each disk covers it");
    assert!(pair.is_equal());
}

#[test]
fn any_answer_of_the_arbiter_ends_the_pause_of_a_source_with_nothing_left_to_copy() {
    let mut pair = probing();
    pair.pump();
    assert_eq!(pair.stand(0), "Ps");
    // Its question is not answered: it stays alone, and pauses.
    pair.arbiter_says(0, ArbiterAnswer::Unreachable("no way there".into()));
    let (asked, paused_at) = (pair.sides[0].asked, pair.now);
    assert_eq!(pair.stand(0), "Ps");
    // The next look at the register is answered before the pause is over.
    while pair.sides[0].asked == asked {
        pair.elapse(10);
    }
    let waited = (pair.now - paused_at) / 1_000_000;
    let pause = pair.sides[0].mirror.settings().arbiter_timeout_ms;
    assert!(
        waited < pause,
        "it looks at the register before the pause of {pause} ms is over: {waited} ms"
    );
    assert_eq!(pair.stand(0), "Ps", "still alone, and nobody has answered");
    pair.sides[0].hold.asks = false;
    pair.pump();
    assert!((pair.now - paused_at) / 1_000_000 < pause);
    assert_eq!(
        [pair.stand(0), pair.stand(1)],
        ["Pi", "Si"],
        "in sync at the moment of the answer"
    );
    assert!(pair.is_equal());
}

#[test]
fn a_block_that_could_not_be_read_and_was_written_anew_is_not_waited_for() {
    let mut pair = copying();
    // Of the two blocks to copy, one can't be read.
    let bad = pair.read_of(0, 5);
    pair.end_disk(0, bad, Err(DiskFault::Io(5)));
    pair.sides[0].hold.reads = false;
    pair.pump();
    assert_eq!(pair.stand(0), "Ps");
    assert_eq!(pair.sides[0].mirror.dirty().count(), 1);
    let at = pair.now;
    // Left alone it tries again, but not at once.
    pair.elapse(200);
    assert_eq!(pair.stand(0), "Ps");
    pair.write(0, 5);
    pair.elapse(pair.sides[0].mirror.settings().flush_after_ms.min(500));
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    assert!(pair.now - at < 1_000_000_000, "before the next try was due");
    assert!(pair.is_equal());
}

#[test]
fn a_block_that_could_not_be_read_is_read_again_after_a_second() {
    let mut pair = copying();
    let bad = pair.read_of(0, 5);
    pair.end_disk(0, bad, Err(DiskFault::Io(5)));
    pair.sides[0].hold.reads = false;
    pair.elapse(900);
    assert_eq!(pair.stand(0), "Ps");
    pair.elapse(400);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    assert!(pair.is_equal());
}

#[test]
fn a_copy_that_is_behind_is_brought_up_to_date() {
    let mut pair = alone();
    pair.linked = true;
    pair.pump();
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    assert!(pair.is_equal());
}

/// Also where the session ends before that is durable.
#[test]
fn a_source_that_has_settled_has_lost_nothing() {
    let mut pair = copying();
    pair.sides[0].hold.reads = false;
    while !matches!(pair.sides[0].messages.front(), Some((_, Message::Adopted))) {
        assert!(pair.step());
    }
    pair.sides[0].hold.metadata = true;
    pair.pump();
    assert_eq!(pair.sides[0].metadata.len(), 1);
    pair.cut();
    pair.sides[0].hold.metadata = false;
    pair.pump();
    assert!(super::meeting::greet(&mut pair, 0).unbroken);
}
