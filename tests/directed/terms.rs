//! What a disk has under way when a role ends, or an order is taken back, is over with it: it answers nothing in
//! a later term, ends nothing that was begun later, and nothing is written beneath what comes after.

use kagami_replicator::core::event::Request;
use kagami_replicator::core::{Command, DiskFault, IoError, Role};

use super::pair::{DEMOTE, Hold, PROMOTE, Pair, write};
use super::stands::{guest, in_sync, primary};

const READ: Request = Request::Read {
    offset: 4096 * 3,
    len: 4096,
};

/// The link is lost, the arbiter's answers do not reach node 0, and node 1 goes on by its word, and writes.
fn taken_over(pair: &mut Pair) {
    pair.sides[0].hold.asks = true;
    pair.cut();
    pair.order(1, PROMOTE);
    pair.elapse(3_000);
    assert_eq!(pair.stand(1), "Pn");
    pair.write(1, 3);
    pair.sides[0].asks.clear();
    pair.sides[0].hold.asks = false;
}

/// They meet, and node 1's disk does not give what is to be copied.
fn meet_slowly(pair: &mut Pair) {
    pair.sides[1].hold.reads = true;
    pair.linked = true;
    pair.meet();
    pair.pump();
}

/// All comes to its end: in sync, and equal.
fn come_to_rest(pair: &mut Pair) {
    for side in &mut pair.sides {
        side.hold = Hold::default();
    }
    pair.linked = true;
    pair.elapse(10_000);
    assert!(matches!(pair.stand(0), "Si" | "Pi"), "{}", pair.stand(0));
    assert!(pair.is_equal());
}

/// Node 0 is Primary again while it is brought up to date, and a read of before is still on its disk.
fn read_of_before() -> (Pair, kagami_replicator::core::state::RequestId) {
    let mut pair = primary();
    pair.sides[0].hold.reads = true;
    let (read, _) = pair.request(0, READ);
    taken_over(&mut pair);
    assert_eq!(pair.stand(0), "Pn", "it waits for permission");
    meet_slowly(&mut pair);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Bt", "Ps"]);
    assert!(pair.reply(0, read).is_none());
    pair.done(1, DEMOTE);
    pair.done(
        0,
        Command::Promote {
            force: false,
            while_resyncing: true,
        },
    );
    assert_eq!(pair.stand(0), "Pt");
    (pair, read)
}

#[test]
fn a_read_of_an_earlier_term_is_not_answered_from_a_copy_that_is_overwritten() {
    for result in [Ok(()), Err(DiskFault::Io(5))] {
        let (mut pair, read) = read_of_before();
        pair.end_disk(0, 0, result);
        assert_eq!(pair.reply(0, read), Some(&Err(IoError::NotPrimary)));
        assert!(pair.sides[0].disk.is_empty(), "nothing is written back");
        come_to_rest(&mut pair);
        assert_eq!(pair.sides[0].mirror.role(), Role::Primary);
    }
}

#[test]
fn a_read_by_a_guest_whose_disk_fails_is_answered() {
    let mut pair = guest();
    assert_eq!([pair.stand(0), pair.stand(1)], ["Ss", "Pt"]);
    let (read, _) = pair.request(1, READ);
    pair.pump();
    assert!(pair.reply(1, read).is_none(), "its source's disk is slow");
    pair.sides[1].hold.writes = true;
    let (wrote, _) = pair.request(1, write(9));
    pair.pump();
    assert!(
        matches!(pair.reply(1, wrote), Some(Ok(_))),
        "its source has it"
    );
    pair.end_disk(1, 0, Err(DiskFault::Io(5)));
    assert_eq!(pair.stand(1), "Gn");
    assert_eq!(pair.reply(1, read), Some(&Err(IoError::NotPrimary)));
}

#[test]
fn a_flush_for_a_demotion_that_is_over_ends_no_later_one() {
    let mut pair = primary();
    pair.sides[0].hold.asks = true;
    pair.sides[0].hold.flushes = true;
    pair.cut();
    pair.pump();
    let (first, _) = pair.order(0, DEMOTE);
    pair.pump();
    let at = pair.sides[0].disk.len() - 1;
    let late = pair.sides[0].disk.remove(at).expect("the flush");
    taken_over(&mut pair);
    pair.sides[0].hold = Hold::default();
    pair.linked = true;
    pair.elapse(5_000);
    assert!(matches!(pair.answer(0, first), Some(Ok(_))), "it is over");
    pair.done(1, DEMOTE);
    pair.done(0, PROMOTE);
    pair.sides[0].hold.writes = true;
    let (wrote, _) = pair.request(0, write(7));
    let (second, _) = pair.order(0, DEMOTE);
    pair.pump();
    pair.sides[0].disk.push_back(late);
    let at = pair.sides[0].disk.len() - 1;
    pair.end_disk(0, at, Ok(()));
    pair.pump();
    assert!(pair.answer(0, second).is_none(), "a write is under way");
    assert_eq!(pair.sides[0].mirror.role(), Role::Primary);
    pair.sides[0].hold.writes = false;
    pair.pump();
    assert!(matches!(pair.reply(0, wrote), Some(Ok(_))));
    assert!(matches!(pair.answer(0, second), Some(Ok(_))));
    come_to_rest(&mut pair);
}

#[test]
fn whoever_is_told_to_connect_leaves_no_more() {
    for fault in [None, Some(DiskFault::Io(5))] {
        let mut pair = primary();
        pair.sides[1].hold.flushes = true;
        let (left, _) = pair.order(1, Command::Disconnect);
        pair.cut();
        pair.pump();
        let (connected, _) = pair.order(1, Command::Connect);
        pair.linked = true;
        pair.sides[1].kept = pair.sides[1]
            .disk
            .front()
            .map(|(id, _)| super::pair::Kept::Disk(*id));
        pair.sides[1].hold.flushes = false;
        pair.elapse(5_000);
        assert_eq!(pair.stand(1), "Si");
        assert!(matches!(pair.answer(1, connected), Some(Ok(_))));
        pair.sides[1].kept = None;
        let before = pair.sides[1].session;
        pair.end_disk(1, 0, fault.map_or(Ok(()), Err));
        pair.pump();
        assert!(
            matches!(pair.answer(1, left), Some(Err(_))),
            "{:?}",
            pair.answer(1, left)
        );
        if fault.is_none() {
            assert_eq!(pair.sides[1].session, before);
            assert_eq!(pair.stand(1), "Si");
        }
    }
}

#[test]
fn whoever_leaves_late_and_is_alone_has_the_newest_copy() {
    let mut pair = in_sync();
    pair.done(0, PROMOTE);
    pair.sides[1].hold.flushes = true;
    let (left, _) = pair.order(1, Command::Disconnect);
    pair.cut();
    pair.sides[0].hold.asks = true;
    pair.pump();
    pair.elapse(3_000);
    pair.order(1, PROMOTE);
    pair.elapse(3_000);
    assert_eq!(pair.stand(1), "Pn");
    let state = pair.sides[1].mirror.disk_state();
    pair.sides[1].hold.flushes = false;
    pair.pump();
    assert!(matches!(pair.answer(1, left), Some(Ok(_))));
    assert_eq!(pair.sides[1].mirror.disk_state(), state);
}
