//! A resynchronisation on its way: what is read and sent, what is told of it, what stops it, and when it ends.

use kagami_bitmap::superblock::Generation;
use kagami_replicator::core::event::Request;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::{Replication, Solo, Time};
use kagami_replicator::core::status::Progress;
use kagami_replicator::core::{Command, DiskOp, Notice, Settings};

use super::pair::{PROMOTE, Pair, start, write};
use super::stands::{copying, cut, primary};
use super::verification::reads;
use super::ways::say;

/// Blocks of an extent.
const EXTENT: u64 = 1024;

fn connect(pair: &mut Pair) {
    pair.linked = true;
    pair.pump();
}

fn progress(pair: &Pair, node: usize) -> Option<Progress> {
    pair.sides[node].mirror.status(Time(pair.now)).progress
}

fn disk_writes(pair: &Pair, node: usize) -> usize {
    let ops = pair.sides[node].disk.iter();
    ops.filter(|(_, op)| matches!(op, DiskOp::Write { .. }))
        .count()
}

/// Marked bytes, bytes sent and milliseconds of the resynchronisations that a node has ended.
fn ended(pair: &Pair, node: usize) -> Vec<(u64, u64, u64)> {
    let notices = pair.sides[node].notices.iter();
    notices
        .filter_map(|notice| match notice {
            Notice::ResyncDone { marked, sent, ms } => Some((*marked, *sent, *ms)),
            _ => None,
        })
        .collect()
}

#[test]
fn marked_runs_are_read_within_their_extent_and_what_it_came_to_is_told() {
    let mut pair = cut(primary());
    let run = Request::Write {
        offset: (EXTENT - 4) * 4096,
        data: vec![7; 10 * 4096].into(),
        fua: false,
    };
    pair.request(0, run);
    pair.pump();
    pair.sides[0].hold.reads = true;
    let before = pair.sides[0].mirror.status(Time(pair.now)).counters;
    connect(&mut pair);
    assert_eq!(reads(&pair, 0), [(EXTENT - 4, 4), (EXTENT, 6)]);
    let at_source = progress(&pair, 0).expect("it runs");
    assert_eq!((at_source.total_blocks, at_source.done_blocks), (10, 0));
    pair.elapse(7);
    pair.sides[0].hold.reads = false;
    pair.pump();
    let counters = pair.sides[0].mirror.status(Time(pair.now)).counters;
    assert_eq!(counters.resync_bytes - before.resync_bytes, 10 * 4096);
    let told = ended(&pair, 0);
    assert_eq!(told.len(), 2, "the first was the mirror's beginning");
    let (marked, sent, ms) = told[1];
    assert_eq!((marked, sent, ms), (10 * 4096, 10 * 4096, 7));
    assert!(pair.is_equal());
}

#[test]
fn either_node_pauses_it() {
    for node in [0, 1] {
        let mut pair = primary();
        pair.sides[0].hold.reads = true;
        pair.done(1, Command::Invalidate);
        pair.elapse(1_000);
        pair.done(node, Command::PauseSync);
        // What was being read is sent, and nothing more.
        let begun: u64 = reads(&pair, 0).iter().map(|(_, count)| count).sum();
        pair.sides[0].hold.reads = false;
        pair.elapse(3_000);
        for of in [0, 1] {
            let status = pair.sides[of].mirror.status(Time(pair.now));
            assert_eq!(status.replication, Replication::PausedSync);
            let progress = status.progress.expect("it is there");
            let by = (progress.paused_here, progress.paused_there);
            assert_eq!(by, (of == node, of != node));
        }
        let counters = pair.sides[0].mirror.status(Time(pair.now)).counters;
        assert_eq!(counters.resync_equal_blocks, begun);
        assert!(begun < 4 * EXTENT);
        pair.done(node, Command::ResumeSync);
        pair.elapse(3_000);
        assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"], "{node}");
    }
}

/// Nor does it end, where what is left of it is written anew.
#[test]
fn paused_it_stays() {
    let mut pair = cut(primary());
    for block in [5, 2_000] {
        pair.write(0, block);
        pair.sides[0].bad.insert(block);
    }
    connect(&mut pair);
    pair.done(0, Command::PauseSync);
    for block in [5, 2_000] {
        pair.write(0, block);
    }
    pair.elapse(5_000);
    assert_eq!(pair.sides[0].mirror.dirty().count(), 0);
    let status = pair.sides[0].mirror.status(Time(pair.now));
    assert_eq!(status.replication, Replication::PausedSync);
    pair.done(0, Command::ResumeSync);
    pair.elapse(3_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    assert!(pair.is_equal());
}

/// Both nodes measure how fast it goes.
#[test]
fn its_rate_is_told_at_both_ends() {
    let settings = Settings {
        solo: Solo::Always,
        checksum_first: false,
        resync_max_rate: Some(8 << 20),
        ..Settings::default()
    };
    let mut pair = Pair::of([0, 1].map(|node| start(node, &settings, 256 << 20)));
    pair.elapse(500);
    pair.done(1, Command::Invalidate);
    pair.elapse(5_000);
    for node in [0, 1] {
        let rate = progress(&pair, node).expect("it runs").rate;
        assert!(
            (4 << 20..=16 << 20).contains(&rate),
            "node {node}: {rate} bytes/s"
        );
    }
    let at_source = progress(&pair, 0).expect("it runs");
    assert!(at_source.sent_bytes > 16 << 20, "{at_source:?}");
}

/// What is found equal is done, at both ends, before anything is flushed; and that has a rate, though nothing is sent.
#[test]
fn what_is_compared_counts_as_done() {
    let settings = Settings {
        solo: Solo::Always,
        resync_max_rate: Some(8 << 20),
        ..Settings::default()
    };
    let mut pair = Pair::of([0, 1].map(|node| start(node, &settings, 256 << 20)));
    pair.elapse(500);
    pair.done(1, Command::Invalidate);
    pair.elapse(5_000);
    for node in [0, 1] {
        let progress = progress(&pair, node).expect("it runs");
        assert_eq!(
            pair.sides[node].mirror.dirty().count(),
            progress.total_blocks
        );
        let done = progress.done_blocks * 4096;
        assert!((30 << 20..=50 << 20).contains(&done), "node {node}: {done}");
        let rate = progress.rate;
        assert!((4 << 20..=16 << 20).contains(&rate), "node {node}: {rate}");
        assert_eq!(progress.sent_bytes, 0);
    }
}

/// What is equal is not sent, of the rest as much at once as is in a row.
#[test]
fn a_whole_extent_is_compared_before_it_is_sent() {
    let mut pair = primary();
    pair.sides[0].hold.reads = true;
    pair.sides[1].hold.writes = true;
    pair.done(1, Command::Invalidate);
    pair.elapse(1_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Ps", "Bt"]);
    let different = [3, 4, 7, 9, 10, 11, EXTENT + 255];
    for block in different {
        pair.rot(1, block);
    }
    let before = pair.sides[0].mirror.status(Time(pair.now)).counters;
    pair.sides[0].hold.reads = false;
    pair.elapse(1_000);
    assert_eq!(disk_writes(&pair, 1), 4, "3 to 4, 7, 9 to 11, and the last");
    // Its span is locked until all of it is applied.
    pair.end_disk(1, 0, Ok(()));
    pair.pump();
    let (waits, _) = pair.request(0, write(100));
    pair.pump();
    assert_eq!(pair.reply(0, waits), None);
    assert_eq!(disk_writes(&pair, 0), 0, "it has not begun");
    pair.sides[1].hold.writes = false;
    pair.elapse(3_000);
    assert!(matches!(pair.reply(0, waits), Some(Ok(_))));
    assert!(pair.is_equal());
    let after = pair.sides[0].mirror.status(Time(pair.now)).counters;
    let sent = different.len() as u64;
    assert_eq!(after.resync_bytes - before.resync_bytes, sent * 4096);
    let equal = after.resync_equal_blocks - before.resync_equal_blocks;
    assert_eq!(equal, 4 * EXTENT - sent);
}

#[test]
fn an_answer_to_a_comparison_names_blocks_that_were_asked_in_their_order() {
    for blocks in [vec![4, 3], vec![3, 3], vec![256], vec![1, u32::MAX]] {
        let mut pair = primary();
        pair.sides[1].hold.reads = true;
        pair.done(1, Command::Invalidate);
        pair.elapse(1_000);
        assert_eq!(reads(&pair, 1).first(), Some(&(0, 256)));
        let result = Ok(blocks.clone());
        say(&mut pair, 0, Message::Compared { id: 1, result });
        let mut notices = pair.sides[0].notices.iter();
        assert!(
            notices.any(|n| matches!(n, Notice::PeerFault { .. })),
            "{blocks:?}"
        );
    }
}

/// Marks go when both disks have flushed what was copied: in the middle of a long one, too.
#[test]
fn a_long_one_is_flushed_on_its_way() {
    let settings = Settings {
        solo: Solo::Always,
        ..Settings::default()
    };
    let blocks = (160 << 20) / 4096;
    let mut pair = Pair::of([0, 1].map(|node| start(node, &settings, 160 << 20)));
    pair.elapse(500);
    pair.sides[0].hold.reads = true;
    pair.done(1, Command::Invalidate);
    pair.elapse(500);
    let flushes = [0, 1].map(|node| pair.sides[node].flushes);
    pair.sides[0].hold.reads = false;
    let mut left = Vec::new();
    let (mut done, mut steps) = (0, 0);
    while pair.sides[0].mirror.dirty().count() > 0 {
        assert!(pair.step());
        let count = pair.sides[0].mirror.dirty().count();
        if let Some(progress) = progress(&pair, 0) {
            assert_eq!(progress.total_blocks, blocks);
            assert!((blocks - count..=blocks).contains(&progress.done_blocks));
            assert!(progress.done_blocks >= done);
            steps += usize::from(progress.done_blocks > done);
            done = progress.done_blocks;
        }
        if left.last() != Some(&count) {
            left.push(count);
        }
    }
    assert_eq!(left.len(), 4, "twice on its way and at its end: {left:?}");
    assert!(steps > 100, "{steps}: how far it is is told chunk by chunk");
    pair.elapse(1_000);
    for node in [0, 1] {
        let more = pair.sides[node].flushes - flushes[node];
        assert!((3..=4).contains(&more), "node {node}: {more}");
    }
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
}

/// Where no arbiter decides, none is asked whether it is there.
#[test]
fn without_an_arbiter_it_ends_without_a_question() {
    let settings = Settings {
        solo: Solo::Always,
        ..Settings::default()
    };
    let mut starts = [0, 1].map(|node| start(node, &settings, super::pair::SIZE));
    for start in &mut starts {
        let record = &mut start.recovered.superblock.record;
        record.arbiter = Some(9);
        record.current = Some(Generation { counter: 1, tag: 5 });
        record.zeroed = false;
    }
    let mut pair = Pair::of(starts);
    pair.elapse(500);
    pair.done(0, PROMOTE);
    pair.cut();
    pair.pump();
    pair.write(0, 3);
    connect(&mut pair);
    pair.elapse(3_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    assert_eq!(ended(&pair, 0).len(), 1);
    assert_eq!([pair.sides[0].asked, pair.sides[1].asked], [0, 0]);
}

/// A source whose blocks are all copied, with a write under way that holds back the end.
fn freezing() -> (Pair, kagami_replicator::core::state::RequestId) {
    let mut pair = copying();
    pair.sides[0].hold.writes = true;
    let (id, _) = pair.request(0, write(9));
    pair.sides[0].hold.reads = false;
    pair.elapse(100);
    (pair, id)
}

/// A flush adds nothing to what the end waits for: it is not held.
#[test]
fn a_flush_is_begun_near_the_end() {
    let (mut pair, _) = freezing();
    let before = pair.sides[0].flushes;
    pair.request(0, Request::Flush);
    assert_eq!(pair.sides[0].flushes, before + 1);
}

/// The generation is offered when nothing is under way: no write, no flush.
#[test]
fn it_ends_when_all_is_quiet() {
    let (mut pair, first) = freezing();
    assert_eq!(pair.reply(0, first), None);
    let stored = pair.sides[0].stored.len();
    let (second, _) = pair.request(0, write(10));
    pair.sides[0].hold.flushes = true;
    let (flush, _) = pair.request(0, Request::Flush);
    pair.elapse(10);
    assert_eq!(disk_writes(&pair, 0), 1, "new ones wait");
    assert_eq!(pair.sides[0].stored.len(), stored, "a write is under way");
    assert_eq!(pair.stand(0), "Pf");
    pair.sides[0].hold.writes = false;
    pair.elapse(10);
    assert!(matches!(pair.reply(0, first), Some(Ok(_))));
    assert_eq!(pair.sides[0].stored.len(), stored, "a flush is under way");
    assert_eq!(pair.reply(0, flush), None);
    pair.sides[0].hold.flushes = false;
    pair.elapse(1_000);
    for id in [flush, second] {
        assert!(matches!(pair.reply(0, id), Some(Ok(_))));
    }
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    assert!(pair.is_equal());
}

/// Its blocks are locked until the target has all of them that differ.
#[test]
fn a_write_waits_for_all_pieces_of_what_is_copied_there() {
    let mut pair = primary();
    for block in [10, 20] {
        pair.rot(1, block);
    }
    pair.sides[1].hold.writes = true;
    pair.done(1, Command::Invalidate);
    pair.elapse(1_000);
    assert_eq!(disk_writes(&pair, 1), 2);
    let mut ops = pair.sides[1].disk.iter();
    let first = ops.position(|(_, op)| matches!(op, DiskOp::Write { .. }));
    pair.end_disk(1, first.expect("a write"), Ok(()));
    pair.sides[0].hold.writes = true;
    let (id, _) = pair.request(0, write(15));
    pair.pump();
    assert_eq!((disk_writes(&pair, 0), disk_writes(&pair, 1)), (0, 1));
    for side in &mut pair.sides {
        side.hold.writes = false;
    }
    pair.pump();
    assert!(pair.reply(0, id).is_some_and(Result::is_ok));
    pair.elapse(3_000);
    assert!(pair.is_equal());
}
