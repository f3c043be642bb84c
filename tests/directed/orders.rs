//! An operator's orders: what each is answered, and what comes of it.

use kagami_replicator::core::event::{From, Reply};
use kagami_replicator::core::state::{Replication, Time};
use kagami_replicator::core::{Command, DiskState, IoError, Role};

use super::meeting::recorded_all;
use super::pair::{DEMOTE, Kept, PROMOTE, Pair};
use super::stands::{alone, build, copying, cut, guest, in_sync, lose_disk, primary};

/// How a pair is, and which of its nodes is meant.
type Stand = fn() -> (Pair, usize);

/// Longer than a meeting and a resynchronisation of these, ms.
const LONG: u64 = 10_000;

fn replication(pair: &Pair, node: usize) -> Replication {
    pair.sides[node].mirror.status(Time(pair.now)).replication
}

fn resync(from: Option<From>, full: bool) -> Command {
    Command::Resync { from, full }
}

fn is_refused(pair: &mut Pair, node: usize, command: Command) -> bool {
    let (id, _) = pair.order(node, command);
    pair.pump();
    matches!(pair.answer(node, id), Some(Err(_)))
}

fn records(pair: &Pair, node: usize) -> bool {
    pair.sides[node].mirror.record().was_primary
}

#[test]
fn a_resynchronisation_is_paused_at_either_node_and_resumed_where_it_was_paused() {
    let mut pair = copying();
    assert_eq!(replication(&pair, 0), Replication::SyncSource);
    assert_eq!(replication(&pair, 1), Replication::SyncTarget);
    for node in [0, 1] {
        pair.done(node, Command::PauseSync);
        for either in [0, 1] {
            assert_eq!(replication(&pair, either), Replication::PausedSync);
        }
        assert!(
            is_refused(&mut pair, 1 - node, Command::ResumeSync),
            "it is paused at the other one"
        );
        assert_eq!(replication(&pair, 1 - node), Replication::PausedSync);
        pair.done(node, Command::ResumeSync);
        assert_eq!(replication(&pair, 0), Replication::SyncSource);
        assert_eq!(replication(&pair, 1), Replication::SyncTarget);
    }
    pair.sides[0].hold.reads = false;
    pair.elapse(LONG);
    assert_eq!(replication(&pair, 0), Replication::Established);
}

/// Whose data stay is clear where one is Primary.
#[test]
fn in_sync_the_primarys_copy_stays() {
    for at in [0, 1] {
        let mut pair = primary();
        pair.rot(1, 7);
        pair.sides[0].hold.reads = true;
        let (id, _) = pair.order(at, resync(None, true));
        pair.pump();
        assert_eq!(pair.answer(at, id), Some(&Ok(Reply::Started)));
        pair.elapse(500);
        assert_eq!([pair.stand(0), pair.stand(1)], ["Ps", "Bt"], "by {at}");
        pair.sides[0].hold.reads = false;
        pair.elapse(LONG);
        assert!(pair.is_equal());
    }
}

#[test]
fn in_sync_and_none_primary_it_is_not_clear_which_one_stays() {
    for at in [0, 1] {
        let mut pair = in_sync();
        assert!(is_refused(&mut pair, at, resync(None, true)));
        let (id, _) = pair.order(at, resync(None, false));
        assert!(matches!(pair.answer(at, id), Some(Ok(Reply::Nothing(_)))));
        assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
    }
}

#[test]
fn of_two_operators_at_once_the_word_at_the_lower_id_stands() {
    let mut pair = in_sync();
    pair.rot(1, 7);
    for side in &mut pair.sides {
        side.hold.messages = true;
    }
    for node in [0, 1] {
        let (id, _) = pair.order(node, resync(Some(From::Local), true));
        assert_eq!(pair.answer(node, id), Some(&Ok(Reply::Started)));
    }
    for side in &mut pair.sides {
        side.hold.messages = false;
    }
    pair.elapse(LONG);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
    assert!(pair.is_equal());
    assert_eq!(pair.content(1, 7 * 4096, 4096), vec![0; 4096]);
}

/// The other copy is about to be overwritten: this one is the last.
#[test]
fn a_copy_that_was_chosen_is_not_given_up_as_well() {
    let mut pair = in_sync();
    pair.sides[1].hold.messages = true;
    pair.done(0, resync(Some(From::Local), true));
    assert!(is_refused(&mut pair, 0, resync(Some(From::Peer), true)));
    assert!(is_refused(&mut pair, 0, Command::Invalidate));
    // The same word again is no other one.
    pair.done(0, resync(Some(From::Local), true));
    pair.sides[1].hold.messages = false;
    pair.elapse(LONG);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
}

/// As for a meeting whose verdict is to copy all.
#[test]
fn who_is_to_be_copied_to_in_full_has_it_recorded() {
    let rows = [
        (Command::Invalidate, true),
        (resync(Some(From::Peer), true), true),
        (resync(Some(From::Peer), false), false),
    ];
    for (order, full) in rows {
        let mut pair = in_sync();
        pair.linked = false;
        pair.order(1, order);
        assert_eq!(recorded_all(&mut pair), [false, full]);
        assert_eq!(pair.sides[1].mirror.disk_state(), DiskState::Inconsistent);
        pair.linked = true;
        pair.elapse(LONG);
        assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
    }
}

/// Whoever was Primary and not in sync at its end may have what the other one lacks.
#[test]
fn a_clean_hand_over_forgets_who_was_primary() {
    let mut pair = primary();
    assert!(records(&pair, 0));
    pair.write(0, 9);
    pair.done(0, DEMOTE);
    assert!(!records(&pair, 0));

    let mut pair = cut(primary());
    assert_eq!(pair.sides[0].mirror.dirty().count(), 0);
    pair.done(0, DEMOTE);
    assert!(records(&pair, 0), "the peer is not there");

    let mut pair = primary();
    pair.rot(1, 7);
    pair.done(0, Command::Verify { repair: false });
    pair.elapse(LONG);
    assert!(pair.sides[0].mirror.dirty().count() > 0);
    assert!(pair.stand(0) == "Pi", "it is in sync");
    pair.done(0, DEMOTE);
    assert!(records(&pair, 0), "a block differs");
}

#[test]
fn a_copy_is_worth_after_a_demotion_what_is_known_of_it() {
    let rows: [(Stand, DiskState); 5] = [
        (|| (primary(), 0), DiskState::UpToDate),
        (|| build("Pv"), DiskState::UpToDate),
        (|| (copying(), 0), DiskState::UpToDate),
        (|| (alone(), 0), DiskState::Consistent),
        (|| (guest(), 1), DiskState::Inconsistent),
    ];
    for (nth, (stand, state)) in rows.into_iter().enumerate() {
        let (mut pair, node) = stand();
        pair.done(node, DEMOTE);
        assert_eq!(pair.sides[node].mirror.role(), Role::Secondary);
        assert_eq!(pair.sides[node].mirror.disk_state(), state, "row {nth}");
    }
}

/// What is under way in the session that ends is flushed here all the same before the role is given up.
#[test]
fn a_demotion_whose_peer_is_lost_flushes_its_own_disk() {
    let mut pair = primary();
    pair.write(0, 7);
    for side in &mut pair.sides {
        side.hold.flushes = true;
    }
    let (id, _) = pair.order(0, DEMOTE);
    pair.pump();
    assert_eq!(pair.sides[0].disk.len(), 1);
    pair.cut();
    pair.pump();
    for left in [2, 1] {
        assert_eq!(pair.sides[0].disk.len(), left, "its own, after the cycle's");
        assert_eq!(pair.answer(0, id), None);
        pair.end_disk(0, 0, Ok(()));
        pair.pump();
    }
    assert_eq!(pair.answer(0, id), Some(&Ok(Reply::Done)));
}

/// What it has read, its source may not have flushed: that is done for it, once, and it is demoted.
#[test]
fn a_guest_that_has_written_nothing_is_demoted_at_once() {
    let mut pair = guest();
    let flushes = pair.sides[0].flushes;
    pair.done(1, DEMOTE);
    assert_eq!(pair.stand(1), "Bt");
    assert!(pair.sides[0].flushes <= flushes + 1);
    pair.elapse(LONG);
    assert_eq!(pair.stand(1), "Bt", "it is being brought up to date");
}

/// What a guest was answered lies in its source's cache. (The resynchronisation need not end for that.)
#[test]
fn a_guest_whose_source_is_lost_is_demoted_when_that_is_back_and_has_flushed() {
    let mut pair = guest();
    pair.write(1, 9);
    pair.sides[0].hold.flushes = true;
    let (id, _) = pair.order(1, DEMOTE);
    pair.pump();
    assert_eq!(pair.answer(1, id), None, "it is being flushed");
    pair.cut();
    pair.elapse(LONG);
    assert_eq!(pair.answer(1, id), None, "its source is not there");
    pair.sides[0].hold.flushes = false;
    pair.linked = true;
    pair.elapse(LONG);
    assert_eq!(pair.answer(1, id), Some(&Ok(Reply::Done)));
    assert_eq!(pair.stand(1), "Bt");
}

/// A Secondary leaves; its record as Outdated is not durable yet when the Primary's disk fails.
fn leaving(order: Command) -> (Pair, kagami_replicator::core::state::CommandId) {
    let mut pair = primary();
    pair.sides[1].hold.metadata = true;
    let (id, _) = pair.order(1, order);
    pair.pump();
    assert_eq!(pair.sides[1].metadata.len(), 1);
    lose_disk(&mut pair);
    assert_eq!(pair.answer(1, id), None);
    pair.sides[1].hold.metadata = false;
    pair.pump();
    (pair, id)
}

#[test]
fn the_last_copy_does_not_leave() {
    let (mut pair, id) = leaving(Command::Disconnect);
    assert!(matches!(pair.answer(1, id), Some(Err(_))));
    pair.elapse(LONG);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Dv", "Sv"]);
    pair.write(0, 11);
}

#[test]
fn the_last_copy_is_stopped_when_it_is_told_to_and_is_no_stale_one() {
    let (mut pair, id) = leaving(Command::Stop);
    pair.elapse(LONG);
    assert_eq!(pair.answer(1, id), Some(&Ok(Reply::Done)));
    assert_eq!(pair.sides[1].session, None);
    assert_eq!(pair.sides[1].mirror.disk_state(), DiskState::Consistent);
}

/// A stop empties the activity log, and not while a record of it is on its way.
#[test]
fn a_stop_waits_for_a_record_of_the_log() {
    let (mut pair, node) = build("Pn");
    pair.sides[node].hold.metadata = true;
    pair.request(node, super::pair::write(3_000));
    pair.pump();
    let (id, _) = pair.order(node, Command::Stop);
    pair.pump();
    assert_eq!(pair.answer(node, id), None);
    pair.sides[node].hold.metadata = false;
    pair.elapse(LONG);
    assert_eq!(pair.answer(node, id), Some(&Ok(Reply::Done)));
}

/// A Primary that crashed remembers it, until the other one is: then one copy does, as before.
#[test]
fn whoever_grants_the_role_forgets_that_it_had_it() {
    let mut pair = primary();
    pair.sides[0].hold.asks = true;
    pair.cut();
    pair.sides[0].asks.clear();
    pair.restart(0);
    pair.sides[0].hold.asks = false;
    pair.linked = true;
    pair.elapse(LONG);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
    assert!(records(&pair, 0));
    pair.done(1, PROMOTE);
    assert_eq!([records(&pair, 0), records(&pair, 1)], [false, true]);
    // With nothing to forget nothing is recorded.
    let mut pair = in_sync();
    let stored = pair.sides[0].stored.len();
    pair.done(1, PROMOTE);
    assert_eq!(pair.sides[0].stored.len(), stored);
}

/// That a write was failed ends no record that it asked for.
#[test]
fn a_stop_waits_for_the_record_of_a_write_that_was_failed() {
    let mut pair = primary();
    pair.sides[0].hold.asks = true;
    pair.sides[0].hold.metadata = true;
    let (write, _) = pair.request(0, super::pair::write(3_000));
    pair.pump();
    let record = pair.sides[0].metadata[0];
    pair.sides[0].kept = Some(Kept::Metadata(record));
    pair.sides[0].hold.metadata = false;
    pair.cut();
    let (id, _) = pair.order(0, Command::Stop);
    pair.pump();
    assert_eq!(pair.reply(0, write), Some(&Err(IoError::NotPrimary)));
    assert_eq!(pair.answer(0, id), None);
    assert_eq!(pair.sides[0].metadata, [record], "the log is not emptied");
    pair.sides[0].kept = None;
    pair.pump();
    assert_eq!(pair.answer(0, id), Some(&Ok(Reply::Done)));
}

#[test]
fn whoever_is_promoted_in_sync_has_it_recorded() {
    let mut pair = in_sync();
    assert!(!records(&pair, 0));
    pair.done(0, PROMOTE);
    assert!(records(&pair, 0));
}
