//! A verification (docs/design.md §8): what it compares and how much at once, what it finds, what it locks, what ends it.

use kagami_bitmap::{Block, Page, Run};
use kagami_replicator::core::event::Reply;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::{CommandId, Replication, Time};
use kagami_replicator::core::{Action, Command, DiskFault, DiskOp, DiskState, Event, Notice, Role};

use super::pair::{Effects, Pair, SIZE, write};
use super::stands::{alone, in_sync, primary};

const VERIFY: Command = Command::Verify { repair: false };
const REPAIR: Command = Command::Verify { repair: true };
/// Blocks compared by one message, and of the mirror.
const CHUNK: u64 = 256;
const ALL: u64 = 4096;

fn said(pair: &Pair, node: usize, id: CommandId) -> Option<&str> {
    match pair.answer(node, id) {
        None => None,
        Some(Ok(Reply::Nothing(text))) => Some(text),
        Some(Err(refusal)) => Some(&refusal.what),
        Some(other) => panic!("{other:?}"),
    }
}

/// The blocks found different, in the order in which they were; compared and different of the verification that ended.
fn found(pair: &Pair, node: usize) -> (Vec<Run>, Option<(u64, u64)>) {
    let mut runs = Vec::new();
    let mut done = None;
    for notice in &pair.sides[node].notices {
        match notice {
            Notice::VerifyFound { run } => runs.push(*run),
            Notice::VerifyDone {
                compared,
                different,
                ..
            } => {
                assert_eq!(done, None, "ended twice");
                done = Some((*compared, *different));
            }
            _ => {}
        }
    }
    (runs, done)
}

fn block(at: u64) -> Run {
    Run::new(Block(at), 1)
}

/// The reads that a node's disk has not ended, in blocks.
pub(super) fn reads(pair: &Pair, node: usize) -> Vec<(u64, u64)> {
    let ops = pair.sides[node].disk.iter();
    ops.filter_map(|(_, op)| match op {
        DiskOp::Read { offset, len } => Some((offset / 4096, u64::from(*len) / 4096)),
        _ => None,
    })
    .collect()
}

/// Node 1 compares one thing after the other, until it is to look at a single block again.
fn until_looked_at_again(pair: &mut Pair) {
    pair.sides[1].hold.reads = true;
    loop {
        pair.pump();
        match reads(pair, 1).first() {
            Some((_, 1)) => return,
            Some(_) => drop(pair.end_disk(1, 0, Ok(()))),
            None => panic!("nothing is looked at again"),
        }
    }
}

fn closes(effects: &Effects) -> bool {
    let mut actions = effects.iter();
    actions.any(|action| matches!(action, Action::CloseSession { .. }))
}

#[test]
fn equal_copies_are_compared_once_and_whole_four_chunks_at_a_time() {
    for node in [0, 1] {
        let mut pair = in_sync();
        pair.sides[node].hold.reads = true;
        let (id, _) = pair.order(node, VERIFY);
        pair.pump();
        let first = [0, 1, 2, 3].map(|nth| (nth * CHUNK, CHUNK));
        assert_eq!(reads(&pair, node), first);
        let replication = |of: usize| pair.sides[of].mirror.status(Time(pair.now)).replication;
        assert_eq!(replication(node), Replication::VerifySource);
        assert_eq!(replication(1 - node), Replication::VerifyTarget);
        pair.sides[node].hold.reads = false;
        pair.sides[node].hold.messages = true;
        pair.pump();
        assert!(reads(&pair, node).is_empty(), "four are asked of the peer");
        assert_eq!(pair.sides[node].messages.len(), 4);
        // One more for one that is answered.
        pair.sides[node].hold.reads = true;
        let (session, message) = pair.sides[node].messages.pop_front().unwrap();
        pair.handle(node, Event::Message { session, message });
        assert_eq!(reads(&pair, node), [(4 * CHUNK, CHUNK)]);
        assert_eq!(said(&pair, node, id), None);
        pair.sides[node].hold.reads = false;
        pair.sides[node].hold.messages = false;
        pair.pump();
        assert_eq!(
            said(&pair, node, id),
            Some("16777216 compared, no difference")
        );
        assert_eq!(found(&pair, node), (vec![], Some((ALL, 0))));
        assert!(!pair.sides[node].mirror.record().verify_found);
        let replication = |of: usize| pair.sides[of].mirror.status(Time(pair.now)).replication;
        assert_eq!(replication(0), Replication::Established);
        assert_eq!(replication(1), Replication::Established);
    }
}

#[test]
fn what_differs_is_marked_block_by_block_and_brought_in_line_if_that_was_asked() {
    let rotten = [0, 255, 256, 2000, ALL - 1];
    for (rots, order) in [(0, VERIFY), (1, VERIFY), (1, REPAIR)] {
        let mut pair = primary();
        rotten.iter().for_each(|at| pair.rot(rots, *at));
        let (id, _) = pair.order(0, order.clone());
        pair.pump();
        assert_eq!(said(&pair, 0, id), Some("5 blocks differ; they are marked"));
        let (mut runs, done) = found(&pair, 0);
        runs.sort_unstable();
        assert_eq!((runs, done), (rotten.map(block).to_vec(), Some((ALL, 5))));
        if order == REPAIR {
            pair.elapse(8_000);
            let [a, b] = [0, 1].map(|node| pair.content(node, 0, SIZE as u32));
            assert!(a == b, "they are equal again");
            assert!(!pair.sides[0].mirror.record().verify_found);
            assert_eq!(pair.sides[0].mirror.dirty().count(), 0);
        } else {
            let mirror = &pair.sides[0].mirror;
            assert!(mirror.record().verify_found);
            assert_eq!(mirror.dirty().count(), 5);
            assert!(rotten.iter().all(|at| mirror.dirty().is_marked(Block(*at))));
        }
        assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    }
}

/// *Marked-before-different*: what is told as marked is found marked after a crash, though the first of its page was on its
/// way to disk when the others were found.
#[test]
fn what_is_told_as_marked_is_on_disk() {
    let mut pair = primary();
    (0..3).for_each(|at| pair.rot(1, at));
    pair.sides[0].hold.metadata = true;
    let (id, _) = pair.order(0, VERIFY);
    pair.pump();
    assert_eq!(pair.sides[0].mirror.dirty().count(), 3);
    let told_early = said(&pair, 0, id).is_some();
    pair.sides[0].hold.metadata = false;
    pair.pump();
    let dirty = pair.sides[0].mirror.dirty();
    assert!(
        !dirty.page_lacks_marks(Page::bitmap(0)),
        "a crash would forget some of them"
    );
    assert!(!told_early, "nothing was durable");
    assert_eq!(said(&pair, 0, id), Some("3 blocks differ; they are marked"));
    assert!(pair.sides[0].mirror.record().verify_found);
}

#[test]
fn what_the_peer_can_t_read_is_asked_for_again_block_by_block() {
    for again in [Ok(()), Err(DiskFault::Io(5))] {
        let mut pair = primary();
        pair.sides[1].hold.reads = true;
        let (id, _) = pair.order(0, VERIFY);
        pair.pump();
        assert_eq!(reads(&pair, 1)[0], (0, CHUNK));
        pair.end_disk(1, 0, Err(DiskFault::Io(5)));
        until_looked_at_again(&mut pair);
        let (at, _) = reads(&pair, 1)[0];
        assert!(at < CHUNK);
        pair.end_disk(1, 0, again);
        pair.sides[1].hold.reads = false;
        pair.pump();
        let different = again.is_err();
        let (runs, done) = found(&pair, 0);
        assert_eq!(runs, if different { vec![block(at)] } else { vec![] });
        assert_eq!(done, Some((ALL, u64::from(different))));
        assert!(said(&pair, 0, id).is_some());
    }
}

#[test]
fn a_block_that_is_looked_at_again_is_written_afterwards_and_others_meanwhile() {
    for equal in [false, true] {
        let mut pair = primary();
        pair.rot(1, 300);
        let (id, _) = pair.order(0, VERIFY);
        until_looked_at_again(&mut pair);
        assert_eq!(reads(&pair, 1)[0], (300, 1));
        let (waits, _) = pair.request(0, write(300));
        pair.write(0, 301);
        assert_eq!(pair.reply(0, waits), None, "its span is locked");
        if equal {
            // A write that had come to one side only when it was compared first, say.
            let sound = pair.content(0, 300 * 4096, 4096);
            assert_eq!(sound, [0; 4096][..]);
            pair.heal(1, 300);
        }
        pair.sides[1].hold.reads = false;
        pair.pump();
        assert!(pair.reply(0, waits).is_some_and(Result::is_ok));
        let expected = if equal { vec![] } else { vec![block(300)] };
        let (runs, done) = found(&pair, 0);
        assert_eq!(
            (runs.len(), done),
            (expected.len(), Some((ALL, expected.len() as u64)))
        );
        assert!(said(&pair, 0, id).is_some());
        assert_eq!(
            pair.content(0, 300 * 4096, 4096),
            pair.content(1, 300 * 4096, 4096)
        );
    }
}

/// A write waits for a block that is looked at again when the session ends: with the question at the peer, or the block
/// still being read here.
#[test]
fn a_session_that_ends_lets_go_of_what_is_locked_and_the_next_compares_all_of_it() {
    for reading_here in [false, true] {
        let mut pair = primary();
        pair.rot(1, 300);
        let (id, _) = pair.order(0, VERIFY);
        if reading_here {
            pair.sides[0].hold.reads = true;
            loop {
                pair.pump();
                match reads(&pair, 0).first() {
                    Some((_, 1)) => break,
                    _ => drop(pair.end_disk(0, 0, Ok(()))),
                }
            }
        } else {
            until_looked_at_again(&mut pair);
        }
        let (waits, _) = pair.request(0, write(300));
        pair.pump();
        assert_eq!(pair.reply(0, waits), None);
        pair.cut();
        pair.pump();
        if reading_here {
            assert_eq!(pair.reply(0, waits), None, "it is still being read");
        }
        for side in &mut pair.sides {
            side.hold.reads = false;
        }
        pair.elapse(3_000);
        assert!(pair.reply(0, waits).is_some_and(Result::is_ok));
        assert_eq!(said(&pair, 0, id), None, "it goes on in the next session");
        pair.linked = true;
        pair.elapse(20_000);
        assert_eq!(said(&pair, 0, id), Some("16777216 compared, no difference"));
        assert_eq!(found(&pair, 0), (vec![], Some((ALL, 0))));
        assert!(pair.is_equal());
    }
}

#[test]
fn it_is_refused_where_it_can_tell_nothing() {
    let refused = |mut pair: Pair, node: usize| {
        let (id, _) = pair.order(node, VERIFY);
        said(&pair, node, id).expect("an answer").to_owned()
    };
    let not_in_sync = "not verified: the copies are not in sync";
    assert_eq!(refused(alone(), 0), not_in_sync);
    assert_eq!(refused(alone(), 1), not_in_sync);
    let there = "not verified: the other node is Primary";
    assert_eq!(refused(primary(), 1), there);
    let mut pair = primary();
    pair.sides[0].hold.reads = true;
    pair.order(0, VERIFY);
    assert_eq!(refused(pair, 0), "not verified: a verification runs");
}

#[test]
fn it_ends_with_the_disk_and_whoever_ordered_it_is_told() {
    for held in [0, 1] {
        let mut pair = primary();
        pair.sides[held].hold.reads = true;
        let (id, _) = pair.order(0, VERIFY);
        pair.pump();
        assert_eq!(said(&pair, 0, id), None);
        pair.sides[0].hold.writes = true;
        let _ = pair.request(0, write(9));
        pair.pump();
        let ops = &mut pair.sides[0].disk.iter();
        let at = ops.position(|(_, op)| matches!(op, DiskOp::Write { .. }));
        pair.end_disk(0, at.expect("a write"), Err(DiskFault::Io(5)));
        pair.sides[0].hold.writes = false;
        pair.pump();
        assert_eq!([pair.stand(0), pair.stand(1)], ["Dv", "Sv"]);
        let why = said(&pair, 0, id).expect("an answer");
        assert!(why.contains("the local disk failed"), "{why}");
        // What is under way still is nothing to the carrier.
        pair.sides[held].hold.reads = false;
        pair.pump();
        assert_eq!([pair.stand(0), pair.stand(1)], ["Dv", "Sv"]);
        assert_eq!(found(&pair, 0), (vec![], None));
        pair.write(0, 5);
    }
}

#[test]
fn it_gives_way_to_a_primary_on_the_other_node() {
    let mut pair = in_sync();
    pair.sides[1].hold.reads = true;
    let (id, _) = pair.order(1, VERIFY);
    pair.pump();
    assert_eq!(said(&pair, 1, id), None);
    pair.done(
        0,
        Command::Promote {
            force: false,
            while_resyncing: false,
        },
    );
    assert_eq!(
        said(&pair, 1, id),
        Some("the verification was stopped: the other node is Primary now")
    );
    pair.sides[1].hold.reads = false;
    pair.pump();
    assert_eq!(found(&pair, 1), (vec![], None));
    let replication = pair.sides[0].mirror.status(Time(pair.now)).replication;
    assert_eq!(replication, Replication::Established, "the peer is told");
}

#[test]
fn an_operator_stops_it_and_what_comes_late_belongs_to_no_other_one() {
    let mut pair = primary();
    let (none, _) = pair.order(0, Command::StopVerify);
    assert_eq!(said(&pair, 0, none), Some("no verification runs"));
    pair.rot(1, 5);
    pair.sides[0].hold.messages = true;
    let (stopped, _) = pair.order(0, VERIFY);
    pair.pump();
    assert_eq!(pair.sides[0].messages.len(), 4, "answers on their way");
    pair.done(0, Command::StopVerify);
    assert_eq!(said(&pair, 0, stopped), Some("stopped"));
    pair.sides[0].hold.reads = true;
    let (next, _) = pair.order(0, VERIFY);
    pair.sides[0].hold.messages = false;
    pair.pump();
    assert_eq!(reads(&pair, 0).len(), 4, "none of the late ones counts");
    pair.sides[0].hold.reads = false;
    pair.pump();
    assert_eq!(
        said(&pair, 0, next),
        Some("1 blocks differ; they are marked")
    );
    assert_eq!(found(&pair, 0), (vec![block(5)], Some((ALL, 1))));
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
}

#[test]
fn reads_of_one_that_was_stopped_end_without_it() {
    for locked in [false, true] {
        let mut pair = primary();
        pair.rot(1, 5);
        pair.sides[0].hold.reads = true;
        pair.order(0, VERIFY);
        pair.pump();
        while locked && reads(&pair, 0).last().is_none_or(|(_, count)| *count > 1) {
            pair.end_disk(0, 0, Ok(()));
            pair.pump();
        }
        pair.done(0, Command::StopVerify);
        let (waits, _) = pair.request(0, write(5));
        pair.pump();
        assert_eq!(pair.reply(0, waits).is_none(), locked);
        let (next, _) = pair.order(0, VERIFY);
        pair.sides[0].hold.reads = false;
        pair.pump();
        assert!(pair.reply(0, waits).is_some_and(Result::is_ok));
        assert!(said(&pair, 0, next).is_some());
        let (_, done) = found(&pair, 0);
        assert_eq!(done.map(|(compared, _)| compared), Some(ALL));
    }
}

#[test]
fn an_answer_to_nothing_or_about_blocks_that_were_not_asked_ends_the_session() {
    let answers = |id: u64, blocks: Vec<u32>| {
        let mut pair = primary();
        pair.sides[0].hold.messages = true;
        pair.order(0, VERIFY);
        pair.pump();
        let (session, message) = pair.sides[0].messages[0].clone();
        let Message::Compared { id: first, .. } = message else {
            panic!("{message:?}");
        };
        let message = Message::Compared {
            id: first + id,
            result: Ok(blocks),
        };
        closes(&pair.handle(0, Event::Message { session, message }))
    };
    assert!(!answers(0, vec![0, 255]) && !answers(3, vec![]));
    assert!(answers(0, vec![0, 256]));
    assert!(answers(4, vec![]));
}

/// A peer that is leaving is no good copy: what can't be read here is not asked of it.
#[test]
fn what_can_t_be_read_here_is_lost_where_the_peer_is_no_good_copy() {
    let mut pair = primary();
    pair.sides[0].bad.insert(300);
    let (role, disk) = (Role::Secondary, DiskState::Outdated);
    super::ways::say(&mut pair, 0, Message::State { role, disk });
    let (id, _) = pair.order(0, VERIFY);
    pair.pump();
    let answer = "1 blocks can be read on neither node";
    assert_eq!(said(&pair, 0, id), Some(answer));
}

/// Nothing is written back to a disk that has failed meanwhile.
#[test]
fn what_the_peer_reads_for_it_is_too_late_for_a_disk_that_has_failed() {
    let mut pair = primary();
    pair.sides[0].bad.insert(300);
    pair.order(0, VERIFY);
    let asked = |pair: &Pair| {
        let message = pair.sides[1].messages.front();
        matches!(message, Some((_, Message::Read { .. })))
    };
    while !asked(&pair) {
        assert!(pair.step(), "the peer is not asked");
    }
    pair.sides[1].hold.messages = true;
    super::stands::lose_disk(&mut pair);
    pair.sides[0].hold.writes = true;
    pair.sides[1].hold.messages = false;
    pair.pump();
    assert!(pair.sides[0].disk.is_empty(), "{:?}", pair.sides[0].disk);
}
