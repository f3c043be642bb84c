//! A block that one copy can't read (docs/design.md §5): it is written back from the other one, and costs nothing else.

use bytes::Bytes;
use kagami_bitmap::{Block, Run};
use kagami_replicator::core::event::{Reply, Request};
use kagami_replicator::core::state::CommandId;
use kagami_replicator::core::{Command, DiskFault, DiskOp, Event, Notice, Role};

use super::pair::{DEMOTE, PROMOTE, Pair, write};
use super::stands::{copying, in_sync, primary};

const VERIFY: Command = Command::Verify { repair: false };
const REPAIR: Command = Command::Verify { repair: true };

fn read(block: u64) -> Request {
    Request::Read {
        offset: 4096 * block,
        len: 4096,
    }
}

fn content(block: u64) -> Bytes {
    Bytes::from(vec![block as u8 + 1; 4096])
}

/// Node 0 has answered a read by the peer's block, and its disk takes its time to write it back.
fn writing_back(mut pair: Pair) -> Pair {
    pair.sides[0].bad.insert(3);
    pair.sides[0].hold.writes = true;
    let (id, _) = pair.request(0, read(3));
    pair.pump();
    assert_eq!(pair.reply(0, id), Some(&Ok(content(3))));
    assert_eq!(pair.sides[0].disk.len(), 1, "it is written back");
    pair
}

fn said(pair: &Pair, node: usize, id: CommandId) -> &str {
    match pair.answer(node, id) {
        Some(Ok(Reply::Nothing(text))) => text,
        other => panic!("{other:?}"),
    }
}

fn is_repaired(pair: &Pair, node: usize) -> bool {
    let mut notices = pair.sides[node].notices.iter();
    notices.any(|notice| matches!(notice, Notice::ReadRepaired { .. }))
}

/// As fast as the disk fails, for as long as the write takes, which may be for a hanging peer.
#[test]
fn a_bad_block_is_not_read_again_and_again_while_it_is_written() {
    let mut pair = primary();
    pair.sides[0].bad.insert(3);
    pair.sides[0].hold.writes = true;
    let (written, _) = pair.request(0, write(3));
    let (id, _) = pair.request(0, read(3));
    // It comes to rest.
    pair.pump();
    assert_eq!(pair.reply(0, id), None);
    // The neighbours are read meanwhile.
    let (other, _) = pair.request(0, read(4));
    pair.pump();
    assert!(matches!(pair.reply(0, other), Some(Ok(_))));
    assert_eq!(pair.reply(0, id), None);
    pair.sides[0].hold.writes = false;
    pair.pump();
    assert_eq!(pair.reply(0, written), Some(&Ok(Bytes::new())));
    let now = pair.content(0, 12_288, 4096);
    assert_eq!(pair.reply(0, id), Some(&Ok(now)));
    assert!(pair.is_equal());
}

/// *Read-your-writes*: the block would be older than what the next Primary has written there meanwhile.
#[test]
fn a_demotion_waits_for_a_block_that_is_being_written_back() {
    for force in [false, true] {
        let mut pair = writing_back(primary());
        let (id, _) = pair.order(0, Command::Demote { force });
        pair.pump();
        assert_eq!(pair.answer(0, id), None);
        assert_eq!(pair.sides[0].mirror.role(), Role::Primary);
        pair.sides[0].hold.writes = false;
        pair.pump();
        assert!(matches!(pair.answer(0, id), Some(Ok(Reply::Done))));
        pair.done(1, PROMOTE);
        pair.write(1, 3);
        assert!(pair.is_equal());
    }
}

/// The same where a verification of a Secondary found the block.
#[test]
fn a_promotion_waits_for_a_block_that_the_peer_writes_back() {
    let mut pair = in_sync();
    pair.sides[0].bad.insert(3);
    pair.sides[0].hold.writes = true;
    let (verification, _) = pair.order(0, VERIFY);
    pair.pump();
    assert!(matches!(
        pair.sides[0].disk.front(),
        Some((_, DiskOp::Write { offset: 12_288, .. }))
    ));
    let (id, _) = pair.order(1, PROMOTE);
    pair.pump();
    assert_eq!(pair.answer(1, id), None);
    pair.sides[0].hold.writes = false;
    pair.pump();
    assert!(matches!(pair.answer(1, id), Some(Ok(Reply::Done))));
    assert!(pair.answer(0, verification).is_some());
    pair.write(1, 3);
    assert!(pair.is_equal());
}

/// What the peer was asked for is as old as the question. Whoever is granted the role meanwhile writes there, and
/// nothing older is written back beside it, or after it.
#[test]
fn nothing_is_written_back_for_a_verification_that_is_over() {
    let of_block = |op: &DiskOp| match op {
        DiskOp::Read { offset, len } => (*offset, *len) == (12_288, 4096),
        DiskOp::Write { offset, .. } => *offset == 12_288,
        _ => false,
    };
    for answered_first in [true, false] {
        let mut pair = in_sync();
        pair.sides[0].bad.insert(3);
        pair.sides[1].hold.reads = true;
        let (verification, _) = pair.order(0, VERIFY);
        let asked = |pair: &Pair| pair.sides[1].disk.iter().position(|(_, op)| of_block(op));
        while asked(&pair).is_none() {
            if !pair.step() {
                pair.end_disk(1, 0, Ok(()));
            }
        }
        // Its disk has read, and nobody was told yet.
        let at = asked(&pair).expect("a read of the block");
        let (id, _) = pair.sides[1].disk.remove(at).expect("a read");
        let result = Ok(pair.content(1, 12_288, 4096));
        pair.sides[1].hold.reads = false;
        pair.done(1, PROMOTE);
        assert!(matches!(pair.answer(0, verification), Some(Err(_))));
        pair.sides[0].hold.writes = true;
        if answered_first {
            pair.handle(1, Event::Disk { id, result });
            pair.pump();
            pair.request(1, write(3));
        } else {
            pair.request(1, write(3));
            pair.pump();
            pair.handle(1, Event::Disk { id, result });
        }
        pair.pump();
        let written = pair.sides[0].disk.iter().filter(|(_, op)| of_block(op));
        assert_eq!(written.count(), 1, "the Primary's write alone");
        pair.sides[0].hold.writes = false;
        pair.pump();
        assert_eq!(pair.content(0, 12_288, 4096), content(3));
        assert!(pair.is_equal());
        // And the block is free.
        pair.done(1, DEMOTE);
        pair.done(0, PROMOTE);
        pair.write(0, 3);
    }
}

#[test]
fn a_verification_writes_back_what_can_t_be_read_here_and_marks_nothing() {
    for (node, order) in [(0, VERIFY), (0, REPAIR), (1, VERIFY)] {
        let mut pair = primary();
        if node == 1 {
            pair.done(0, DEMOTE);
        }
        pair.sides[node].bad.extend([3, 255, 2000]);
        let (id, _) = pair.order(node, order);
        pair.pump();
        assert_eq!(said(&pair, node, id), "16777216 compared, no difference");
        assert!(is_repaired(&pair, node));
        assert!(pair.sides[node].bad.is_empty());
        assert_eq!(pair.sides[node].mirror.dirty().count(), 0);
        assert!(pair.is_equal());
        let stands = [pair.stand(0), pair.stand(1)];
        let role = if node == 0 { "Pi" } else { "Si" };
        assert_eq!(stands, [role, "Si"], "nobody became a target");
    }
}

/// What the *peer* can't read is marked: the block here is written there.
#[test]
fn a_verification_sends_what_can_t_be_read_there() {
    let mut pair = primary();
    pair.sides[1].bad.insert(3);
    let (id, _) = pair.order(0, REPAIR);
    pair.pump();
    assert_eq!(said(&pair, 0, id), "1 blocks differ; they are marked");
    pair.elapse(8_000);
    assert!(pair.sides[1].bad.is_empty());
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
}

#[test]
fn what_neither_can_read_is_told_and_marks_nothing() {
    let mut pair = primary();
    pair.sides[0].bad.insert(3);
    pair.sides[1].bad.extend([3, 7]);
    let (id, _) = pair.order(0, VERIFY);
    pair.pump();
    assert_eq!(
        said(&pair, 0, id),
        "1 blocks differ; they are marked; 1 more can be read on neither node"
    );
    let dirty = pair.sides[0].mirror.dirty();
    assert_eq!(dirty.count(), 1);
    assert!(dirty.is_marked(Block(7)));
    let mut notices = pair.sides[0].notices.iter();
    assert!(notices.any(|notice| matches!(
        notice,
        Notice::VerifyDone {
            different: 1,
            unreadable: 1,
            ..
        }
    )));
    pair.write(0, 3);
    assert!(pair.sides.iter().all(|side| !side.bad.contains(&3)));
}

/// The link is lost while the peer is asked for the block: it is free, and looked at once more in the next session.
#[test]
fn a_verification_goes_on_after_a_session_that_ended_under_a_bad_block() {
    let mut pair = primary();
    pair.sides[0].bad.insert(3);
    let (id, _) = pair.order(0, VERIFY);
    pair.sides[1].hold.reads = true;
    while !pair.sides[1].disk.iter().any(|(_, op)| {
        matches!(
            op,
            DiskOp::Read {
                offset: 12_288,
                len: 4096
            }
        )
    }) {
        if !pair.step() {
            pair.end_disk(1, 0, Ok(()));
        }
    }
    pair.cut();
    pair.sides[1].hold.reads = false;
    pair.pump();
    pair.write(0, 3);
    pair.sides[0].bad.insert(4);
    pair.linked = true;
    pair.elapse(8_000);
    assert_eq!(said(&pair, 0, id), "16777216 compared, no difference");
    assert!(pair.sides[0].bad.is_empty());
    assert!(pair.is_equal());
}

/// It holds back itself, and none of its neighbours.
#[test]
fn a_source_sends_the_neighbours_of_what_it_can_t_read() {
    let mut pair = copying();
    pair.cut();
    pair.sides[0].hold.reads = false;
    pair.pump();
    for at in 100..110 {
        pair.write(0, at);
    }
    pair.sides[0].bad.insert(104);
    pair.linked = true;
    pair.elapse(5_000);
    let dirty = pair.sides[0].mirror.dirty();
    assert_eq!(
        dirty.next_run(Block(0), 4096),
        Some(Run::new(Block(104), 1))
    );
    assert_eq!(dirty.count(), 1);
    assert_eq!(pair.content(1, 105 * 4096, 4096), content(105));
    // Written, it is a block like any other.
    pair.write(0, 104);
    pair.elapse(5_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    assert!(pair.is_equal());
}

/// Nothing was lost by it: the block could not be read before either.
#[test]
fn a_copy_that_is_alone_outlives_a_block_that_can_t_be_written_back() {
    for fault in [DiskFault::Io(5), DiskFault::NoSpace] {
        let mut pair = writing_back(primary());
        pair.cut();
        pair.until(0, "Pn");
        pair.end_disk(0, 0, Err(fault));
        pair.sides[0].hold.writes = false;
        pair.pump();
        pair.elapse(3_000);
        assert_eq!(pair.stand(0), "Pn");
        let (id, _) = pair.request(0, write(4));
        pair.pump();
        assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
    }
}

#[test]
fn a_store_without_room_for_what_is_written_back_stays_in_sync() {
    let mut pair = writing_back(primary());
    pair.end_disk(0, 0, Err(DiskFault::NoSpace));
    pair.sides[0].hold.writes = false;
    pair.pump();
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    pair.write(0, 4);
}

#[test]
fn a_disk_that_takes_no_writes_is_given_up_while_the_other_copy_is_there() {
    let mut pair = writing_back(primary());
    pair.end_disk(0, 0, Err(DiskFault::Io(5)));
    pair.sides[0].hold.writes = false;
    pair.pump();
    assert_eq!([pair.stand(0), pair.stand(1)], ["Dv", "Sv"]);
}
