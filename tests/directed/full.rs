//! A store without room (docs/design.md §5.9): a write fails, and a copy only where the other one goes on without it.

use bytes::Bytes;
use kagami_replicator::core::state::RequestId;
use kagami_replicator::core::{DiskFault, DiskOp, IoError};

use super::pair::{Pair, write};
use super::stands::{alone, build, carried, copying, primary};

const FULL: Result<(), DiskFault> = Err(DiskFault::NoSpace);

fn stands(pair: &Pair) -> [&'static str; 2] {
    [pair.stand(0), pair.stand(1)]
}

/// A write of node 0 is on its way to both disks.
fn under_way(mut pair: Pair) -> (Pair, RequestId) {
    for side in &mut pair.sides {
        side.hold.writes = true;
    }
    let (id, _) = pair.request(0, write(9));
    pair.pump();
    (pair, id)
}

/// A node's disk has no room for the write that is under way.
fn fill(pair: &mut Pair, node: usize) {
    let mut ops = pair.sides[node].disk.iter();
    let at = ops.position(|(_, op)| matches!(op, DiskOp::Write { .. }));
    pair.end_disk(node, at.expect("a write"), FULL);
}

fn flow(pair: &mut Pair) {
    for side in &mut pair.sides {
        side.hold.writes = false;
    }
    pair.pump();
}

fn has_no_room(pair: &Pair, id: RequestId) -> bool {
    pair.reply(0, id) == Some(&Err(IoError::NoSpace))
}

/// With room both copies are equal again.
fn comes_together(mut pair: Pair) {
    flow(&mut pair);
    pair.linked = true;
    pair.elapse(20_000);
    assert_eq!(stands(&pair), ["Pi", "Si"]);
    pair.write(0, 9);
    pair.elapse(2_500);
    assert!(pair.is_equal());
    assert_eq!(pair.sides[0].mirror.dirty().count(), 0);
}

#[test]
fn alone_only_the_write_fails() {
    let (mut pair, id) = under_way(alone());
    fill(&mut pair, 0);
    flow(&mut pair);
    assert!(has_no_room(&pair, id));
    assert_eq!(pair.stand(0), "Pn");
    pair.write(0, 3);
    comes_together(pair);
}

#[test]
fn so_it_is_before_the_arbiter_has_said_that_this_copy_is_alone() {
    let (mut pair, id) = under_way(primary());
    pair.sides[0].hold.asks = true;
    pair.cut();
    pair.pump();
    fill(&mut pair, 0);
    assert_eq!(pair.stand(0), "Pn", "the only copy there is");
    assert!(has_no_room(&pair, id));
    pair.sides[0].hold.asks = false;
    flow(&mut pair);
    pair.write(0, 3);
    comes_together(pair);
}

#[test]
fn in_sync_the_primarys_gives_way_once_the_peer_has_the_write() {
    let (mut pair, id) = under_way(primary());
    fill(&mut pair, 0);
    pair.pump();
    assert_eq!(
        stands(&pair),
        ["Pi", "Si"],
        "the peer has not said anything"
    );
    assert_eq!(pair.reply(0, id), None);
    flow(&mut pair);
    assert_eq!(stands(&pair), ["Dv", "Sv"]);
    assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
}

#[test]
fn a_primary_whose_peer_is_gone_unnoticed_keeps_its_copy() {
    let (mut pair, id) = under_way(primary());
    fill(&mut pair, 0);
    pair.pump();
    pair.cut();
    pair.pump();
    assert_eq!(pair.stand(0), "Pn");
    assert!(has_no_room(&pair, id));
    flow(&mut pair);
    pair.write(0, 3);
    comes_together(pair);
}

#[test]
fn of_two_that_are_full_at_once_none_is_lost() {
    for first in [0, 1] {
        let (mut pair, id) = under_way(primary());
        fill(&mut pair, first);
        pair.sides[1 - first].hold.messages = true;
        pair.pump();
        fill(&mut pair, 1 - first);
        pair.sides[1 - first].hold.messages = false;
        pair.pump();
        assert!(has_no_room(&pair, id), "{first} first");
        let stores = stands(&pair);
        assert!(
            stores.iter().all(|stand| !stand.starts_with(['D', 'G'])),
            "{stores:?}"
        );
        comes_together(pair);
    }
}

#[test]
fn a_carrier_refuses_the_write_and_carries_on() {
    let (mut pair, id) = under_way(carried());
    let session = pair.sides[1].session;
    fill(&mut pair, 1);
    pair.pump();
    assert_eq!(pair.sides[1].session, session, "it need not meet anew");
    assert!(has_no_room(&pair, id));
    assert_eq!(stands(&pair), ["Dv", "Sv"]);
    flow(&mut pair);
    pair.write(0, 3);
    assert_eq!(stands(&pair), ["Dv", "Sv"]);
}

#[test]
fn what_lands_after_its_session_takes_no_copy_away() {
    let (mut pair, _) = under_way(primary());
    pair.cut();
    pair.pump();
    fill(&mut pair, 1);
    assert_eq!(pair.stand(1), "Sn", "it may have to take over");
    comes_together(pair);
}

#[test]
fn a_target_gives_way() {
    let mut pair = copying();
    pair.sides[1].hold.writes = true;
    pair.sides[0].hold.reads = false;
    pair.pump();
    fill(&mut pair, 1);
    pair.pump();
    assert_eq!(pair.stand(1), "Gn");
    pair.write(0, 3);
    assert_eq!(pair.stand(0), "Pn");
}

#[test]
fn what_lands_after_its_session_takes_no_targets_copy_away_either() {
    let mut pair = copying();
    pair.sides[1].hold.writes = true;
    pair.sides[0].hold.reads = false;
    pair.pump();
    pair.cut();
    pair.pump();
    fill(&mut pair, 1);
    assert_eq!(pair.stand(1), "Bn");
    comes_together(pair);
}

/// It has adopted: it may be the last good copy in a moment.
#[test]
fn a_target_whose_copy_is_good_keeps_it() {
    let (pair, _) = build("St");
    let (mut pair, _) = under_way(pair);
    fill(&mut pair, 1);
    pair.pump();
    assert!(!pair.stand(1).starts_with('G'), "{}", pair.stand(1));
    comes_together(pair);
}

/// A source's copy is the only good one: it waits for no word of the target.
#[test]
fn a_sources_write_fails_at_once() {
    let (mut pair, id) = under_way(copying());
    fill(&mut pair, 0);
    assert!(has_no_room(&pair, id));
    pair.pump();
    assert!(pair.stand(0).starts_with('P'), "{}", pair.stand(0));
    pair.sides[0].hold.reads = false;
    flow(&mut pair);
    comes_together(pair);
}

#[test]
fn in_sync_the_primarys_gives_way_at_once_where_the_peer_has_the_write() {
    let (mut pair, id) = under_way(primary());
    pair.sides[1].hold.writes = false;
    pair.pump();
    assert_eq!(pair.reply(0, id), None);
    fill(&mut pair, 0);
    pair.pump();
    assert_eq!(stands(&pair), ["Dv", "Sv"]);
    assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
}
