//! The metadata store fails under an order: whoever gave it is told, once, and what was to be durable did not happen.

use kagami_bitmap::superblock::StoredDisk;
use kagami_replicator::core::event::Reply;
use kagami_replicator::core::state::CommandId;
use kagami_replicator::core::{Command, DiskFault, Refusal};

use super::pair::{DEMOTE, FORCE, Pair};
use super::stands::{alone, cut, in_sync, lose_disk, primary};

const BROKEN: Result<(), DiskFault> = Err(DiskFault::Io(5));

/// The record that an order wants does not reach the store.
fn unrecorded(mut pair: Pair, node: usize, command: Command) -> (Pair, CommandId) {
    pair.pump();
    pair.sides[node].hold.metadata = true;
    let (id, _) = pair.order(node, command);
    pair.pump();
    assert_eq!(pair.answer(node, id), None, "nothing is durable");
    // That is final: what is asked of it afterwards never ends.
    pair.end_metadata(node, 0, BROKEN);
    pair.pump();
    (pair, id)
}

fn refused(pair: &Pair, node: usize, id: CommandId) -> &Refusal {
    match pair.answer(node, id) {
        Some(Err(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_invalidation() {
    let (pair, id) = unrecorded(cut(in_sync()), 1, Command::Invalidate);
    let what = "not invalidated: the metadata store failed";
    assert_eq!(refused(&pair, 1, id).what, what);
    assert_eq!(pair.sides[1].mirror.record().disk, StoredDisk::Consistent);
}

#[test]
fn a_demotion_happens_all_the_same() {
    let (pair, id) = unrecorded(alone(), 0, DEMOTE);
    assert!(matches!(pair.answer(0, id), Some(Ok(Reply::Done))));
    assert!(pair.sides[0].mirror.record().was_primary);
}

#[test]
fn a_word_that_lets_a_primary_go_on() {
    let mut pair = primary();
    pair.sides[0].hold.asks = true;
    let before = pair.sides[0].mirror.record().current;
    let (pair, id) = unrecorded(cut(pair), 0, FORCE);
    let why = refused(&pair, 0, id);
    assert_eq!(why.what, "not forced: the local disk failed");
    assert_eq!(pair.sides[0].mirror.record().current, before);
}

#[test]
fn a_clean_leave() {
    let (pair, id) = unrecorded(primary(), 1, Command::Disconnect);
    assert!(matches!(pair.answer(1, id), Some(Ok(Reply::Done))));
    assert_eq!(pair.sides[1].mirror.record().disk, StoredDisk::Consistent);
}

/// It was to be Consistent again, since the Primary's disk failed while this node was leaving.
#[test]
fn a_leave_that_was_taken_back() {
    let mut pair = primary();
    pair.sides[1].hold.metadata = true;
    let (id, _) = pair.order(1, Command::Disconnect);
    pair.pump();
    lose_disk(&mut pair);
    assert_eq!(pair.answer(1, id), None);
    pair.end_metadata(1, 0, Ok(()));
    pair.pump();
    assert_eq!(pair.sides[1].mirror.record().disk, StoredDisk::Outdated);
    assert_eq!(pair.sides[1].metadata.len(), 1);
    pair.end_metadata(1, 0, BROKEN);
    pair.pump();
    let what = "not disconnected: the Primary's disk failed, and this is the only copy now";
    assert_eq!(refused(&pair, 1, id).what, what);
}
