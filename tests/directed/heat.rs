//! The activity log is full: a write waits until an extent may cool, which is not before its marks need it no more
//! (docs/protocol.md §7), and no write is begun before those that came before it.

use bytes::Bytes;
use kagami_replicator::core::event::Request;
use kagami_replicator::core::state::{RequestId, Solo, Time};
use kagami_replicator::core::{DiskOp, IoError, Settings};

use super::pair::{PROMOTE, Pair, start, write};
use super::stands::{lose_disk, primary};

/// Blocks of an extent.
const EXTENT: u64 = 1024;
/// Extents that the log has room for.
const SLOTS: u64 = 64;

/// Node 0 is Primary, alone or with its peer, of a mirror of more extents than the log has room for.
fn large(with_peer: bool) -> Pair {
    let settings = Settings {
        solo: Solo::Always,
        flush_after_ms: 600_000,
        timeout_ms: 1_000_000,
        ack_timeout_ms: 2_000_000,
        ..Settings::default()
    };
    let mut pair = Pair::of([0, 1].map(|node| start(node, &settings, 2 * SLOTS * EXTENT * 4096)));
    pair.pump();
    pair.elapse(500);
    pair.done(0, PROMOTE);
    if !with_peer {
        pair.cut();
        pair.pump();
    }
    pair
}

fn begin(pair: &mut Pair, extent: u64) -> RequestId {
    let (id, _) = pair.request(0, write(extent * EXTENT));
    pair.pump();
    id
}

/// How many writes are on a node's disk.
fn writes(pair: &Pair, node: usize) -> usize {
    let ops = pair.sides[node].disk.iter();
    ops.filter(|(_, op)| matches!(op, DiskOp::Write { .. }))
        .count()
}

fn records(pair: &Pair) -> u64 {
    let status = pair.sides[0].mirror.status(Time(pair.now));
    status.counters.log_records
}

#[test]
fn a_write_heats_its_extent_once() {
    let mut pair = large(false);
    let before = records(&pair);
    pair.write(0, 1);
    assert_eq!(records(&pair), before + 1);
    pair.write(0, 2);
    assert_eq!(records(&pair), before + 1, "it is hot");
    pair.write(0, EXTENT);
    assert_eq!(records(&pair), before + 2);
}

#[test]
fn as_many_extents_are_written_at_once_as_the_log_has_room_for() {
    for with_peer in [false, true] {
        let mut pair = large(with_peer);
        pair.sides[0].hold.writes = true;
        for extent in 0..SLOTS {
            begin(&mut pair, extent);
            assert_eq!(writes(&pair, 0) as u64, extent + 1);
        }
        // One that is hot and in use has room.
        let (hot, _) = pair.request(0, write(5 * EXTENT + 1));
        pair.pump();
        assert_eq!(writes(&pair, 0) as u64, SLOTS + 1);
        let waits = begin(&mut pair, SLOTS);
        assert_eq!(writes(&pair, 0) as u64, SLOTS + 1);
        // It is not overtaken for ever.
        let (behind, _) = pair.request(0, write(6 * EXTENT + 1));
        pair.pump();
        assert_eq!(writes(&pair, 0) as u64, SLOTS + 1);
        for id in [hot, waits, behind] {
            assert_eq!(pair.reply(0, id), None);
        }
        pair.sides[0].hold.writes = false;
        pair.elapse(1_000);
        for id in [hot, waits, behind] {
            assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
        }
    }
}

/// Alone, an extent cools when the page on disk says what is marked.
#[test]
fn an_extent_cools_when_its_marks_are_on_disk() {
    let mut pair = large(false);
    for extent in 0..2 * SLOTS {
        let id = begin(&mut pair, extent);
        pair.elapse(0);
        assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())), "{extent}");
    }
    // And not before.
    pair.sides[0].hold.metadata = true;
    let before = records(&pair);
    let id = begin(&mut pair, 0);
    assert_eq!(records(&pair), before, "the log waits for pages");
    assert!(!pair.sides[0].metadata.is_empty());
    pair.sides[0].hold.metadata = false;
    pair.pump();
    assert!(records(&pair) > before);
    assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
}

/// With the peer there is nothing marked, and what is not flushed on both disks does not cool.
#[test]
fn an_extent_cools_when_both_disks_have_flushed_it() {
    let mut pair = large(true);
    for side in &mut pair.sides {
        side.hold.flushes = true;
    }
    for extent in 0..SLOTS {
        let id = begin(&mut pair, extent);
        assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())), "{extent}");
    }
    let waits = begin(&mut pair, SLOTS);
    for node in [0, 1] {
        assert_eq!(pair.reply(0, waits), None);
        pair.sides[node].hold.flushes = false;
        pair.pump();
    }
    assert_eq!(pair.reply(0, waits), Some(&Ok(Bytes::new())));
    for extent in SLOTS..2 * SLOTS {
        let id = begin(&mut pair, extent);
        assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())), "{extent}");
    }
}

fn flushes(pair: &Pair) -> [usize; 2] {
    [pair.sides[0].flushes, pair.sides[1].flushes]
}

/// The place in a node's queue of the write to this block.
fn write_of(pair: &Pair, node: usize, block: u64) -> usize {
    let is = |op: &DiskOp| matches!(op, DiskOp::Write { offset, .. } if *offset == block * 4096);
    let at = pair.sides[node].disk.iter().position(|(_, op)| is(op));
    at.expect("a write of it")
}

/// All extents are in use or not flushed, and the flush that ran covered too little: the next one waits for no clock.
#[test]
fn who_waits_for_an_extent_that_is_not_flushed_has_it_flushed() {
    let mut pair = large(true);
    pair.sides[0].hold.writes = true;
    pair.sides[1].hold.flushes = true;
    for extent in 0..SLOTS {
        begin(&mut pair, extent);
    }
    pair.request(0, write(1));
    pair.pump();
    let waits = begin(&mut pair, SLOTS);
    let before = flushes(&pair);
    // One of the two that are under way in this extent.
    let at = write_of(&pair, 0, 0);
    pair.end_disk(0, at, Ok(()));
    pair.pump();
    assert_eq!(flushes(&pair)[0], before[0] + 1);
    for extent in 1..SLOTS {
        let at = write_of(&pair, 0, extent * EXTENT);
        pair.end_disk(0, at, Ok(()));
    }
    pair.pump();
    assert_eq!(pair.reply(0, waits), None);
    pair.sides[1].hold.flushes = false;
    pair.pump();
    assert_eq!(flushes(&pair)[0], before[0] + 2);
    assert_eq!(writes(&pair, 0), 2, "it is begun");
}

/// An extent that is not flushed is no reason to flush where another one may cool.
#[test]
fn nothing_is_flushed_for_an_extent_that_need_not_cool() {
    const FEW: u64 = 20;
    let mut pair = large(true);
    pair.sides[0].hold.writes = true;
    for extent in 0..FEW {
        begin(&mut pair, extent);
    }
    for extent in FEW..SLOTS {
        begin(&mut pair, extent);
        let at = write_of(&pair, 0, extent * EXTENT);
        pair.end_disk(0, at, Ok(()));
        pair.pump();
    }
    let (flushed, _) = pair.request(0, Request::Flush);
    pair.pump();
    assert_eq!(pair.reply(0, flushed), Some(&Ok(Bytes::new())));
    pair.sides[0].hold.writes = false;
    pair.pump();
    let before = flushes(&pair);
    let id = begin(&mut pair, SLOTS);
    assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
    assert_eq!(flushes(&pair), before);
}

/// The disk fails while writes wait for the log: they need it no more.
#[test]
fn writes_that_wait_for_the_log_are_carried_by_the_peer() {
    let mut pair = primary();
    pair.sides[0].hold.metadata = true;
    let (cold, _) = pair.request(0, write(3_000));
    pair.pump();
    assert_eq!(pair.reply(0, cold), None);
    lose_disk(&mut pair);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Dv", "Sv"]);
    assert_eq!(pair.reply(0, cold), Some(&Ok(Bytes::new())));
    assert!(
        pair.content(1, 3_000 * 4096, 4096)
            .iter()
            .any(|byte| *byte != 0)
    );
    let read = Request::Read {
        offset: 3_000 * 4096,
        len: 4096,
    };
    let (read, _) = pair.request(0, read);
    pair.pump();
    assert!(matches!(pair.reply(0, read), Some(Ok(data)) if data.len() == 4096));
    assert_ne!(pair.reply(0, read), Some(&Err(IoError::Io)));
}
