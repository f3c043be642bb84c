//! A target that is Primary (docs/protocol.md §5): who may be one, what its source takes at the end of the
//! resynchronisation, and how it is served over a lost session.

use bytes::Bytes;
use kagami_replicator::core::event::Request;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::{CommandId, RequestId};
use kagami_replicator::core::{Command, DiskFault, DiskOp, Event, IoError, Notice, Role};

use super::pair::{DEMOTE, MS, PROMOTE, Pair, SIZE, start, write};
use super::stands::{carried, copying_idle, cut, guest};

const WHILE_RESYNCING: Command = Command::Promote {
    force: false,
    while_resyncing: true,
};
const READ: Request = Request::Read {
    offset: 3 * 4096,
    len: 4096,
};

fn is_written(pair: &Pair, node: usize, id: RequestId) -> bool {
    pair.reply(node, id) == Some(&Ok(Bytes::new()))
}

fn refusal(pair: &Pair, id: CommandId) -> (String, Vec<String>) {
    match pair.answer(1, id) {
        Some(Err(why)) => (why.what.clone(), why.facts.clone()),
        other => panic!("{other:?}"),
    }
}

/// In sync after all, with node 1 Primary.
fn comes_together(pair: &mut Pair) {
    for side in &mut pair.sides {
        side.hold = super::pair::Hold::default();
    }
    pair.linked = true;
    pair.elapse(10_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Pi"]);
    assert!(pair.is_equal());
}

#[test]
fn a_target_is_promoted_only_if_that_was_said_and_its_source_can() {
    let mut pair = copying_idle();
    let (id, _) = pair.order(1, PROMOTE);
    pair.pump();
    let (what, facts) = refusal(&pair, id);
    assert_eq!(what, "not promoted: this copy is being resynchronised");
    assert_eq!(facts.len(), 1, "{facts:?}");
    let mut pair = copying_idle();
    pair.version = 1;
    pair.cut();
    pair.linked = true;
    pair.elapse(5_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Ss", "Bt"]);
    let (id, _) = pair.order(1, WHILE_RESYNCING);
    pair.pump();
    let (what, facts) = refusal(&pair, id);
    assert_eq!(what, "not promoted: this copy is being resynchronised");
    assert_eq!(facts.len(), 2, "it is told which of both: {facts:?}");
}

/// A start of the daemon counts as a boot where the disk has failed in this one.
#[test]
fn the_boot_that_is_told_is_another_one_without_the_token() {
    for token in [true, false] {
        let settings = kagami_replicator::core::Settings::default();
        let mut starts = [0, 1].map(|node| start(node, &settings, SIZE));
        starts[0].boot = u128::MAX;
        starts[0].token = token;
        let mut pair = Pair::of(starts);
        let started = u128::from(pair.now);
        pair.sides[1].hold.messages = true;
        pair.pump();
        let told = pair.sides[1].messages.iter().find_map(|(_, m)| match m {
            Message::Hello(hello) => hello.boot,
            _ => None,
        });
        let boot = if token {
            u128::MAX
        } else {
            u128::MAX - (started << 64)
        };
        assert_eq!(told, Some(boot));
    }
}

/// Once in sync a token is whole again.
#[test]
fn a_copy_that_is_in_sync_again_has_lost_nothing_in_this_boot() {
    let settings = kagami_replicator::core::Settings::default();
    let mut starts = [0, 1].map(|node| start(node, &settings, SIZE));
    starts[0].token = false;
    let mut pair = Pair::of(starts);
    pair.elapse(1_000);
    pair.cut();
    pair.sides[1].hold.messages = true;
    pair.linked = true;
    pair.elapse(3_000);
    let mut told = pair.sides[1].messages.iter();
    let hello = told.find_map(|(_, m)| match m {
        Message::Hello(hello) => Some(hello.clone()),
        _ => None,
    });
    let hello = hello.expect("a hello");
    assert_eq!(hello.boot, Some(1));
    assert!(hello.unbroken);
}

/// It holds what it can't know to be true: its lease is over, or a disk is not there.
#[test]
fn without_a_lease_nobody_is_asked_for_a_read() {
    for (build, node) in [(guest as fn() -> Pair, 1), (carried, 0)] {
        let mut pair = build();
        pair.sides[1 - node].hold.messages = true;
        pair.now += 2_000 * MS;
        let (id, _) = pair.request(node, READ);
        let asked = |pair: &Pair| {
            let mut messages = pair.sides[1 - node].messages.iter();
            messages.any(|(_, message)| matches!(message, Message::Read { .. }))
        };
        assert!(!asked(&pair), "node {node}");
        pair.sides[1 - node].hold.messages = false;
        assert_eq!(pair.reply(node, id), None);
    }
}

/// The source of a guest has no blocks left to send, and a write of the guest is under way there: its end is near.
fn ending() -> (Pair, RequestId) {
    let mut pair = guest();
    pair.sides[0].hold.writes = true;
    let (id, _) = pair.request(1, write(9));
    pair.pump();
    pair.sides[0].hold.reads = false;
    pair.elapse(100);
    assert_eq!((pair.reply(1, id), pair.stand(0)), (None, "Sf"));
    (pair, id)
}

/// The guest, whose messages are held, is told of all up to its source's offer.
fn offered(pair: &mut Pair) {
    pair.pump();
    loop {
        let message = pair.sides[1].messages.pop_front();
        let (session, message) = message.expect("an offer");
        let offers = matches!(message, Message::Offer { .. });
        pair.handle(1, Event::Message { session, message });
        if offers {
            return;
        }
        pair.elapse(1);
    }
}

/// What it takes no more is the guest's own to carry out, in sync.
#[test]
fn what_comes_when_the_end_is_near_is_written_in_sync() {
    let (mut pair, first) = ending();
    let (second, _) = pair.request(1, write(10));
    pair.pump();
    assert_eq!(pair.reply(1, second), None);
    pair.sides[1].hold.metadata = true;
    pair.sides[0].hold.writes = false;
    pair.elapse(100);
    assert!(is_written(&pair, 1, first));
    assert_eq!(pair.reply(1, second), None, "put off");
    assert_eq!(pair.stand(1), "Pt");
    // And what comes later still.
    let (third, _) = pair.request(1, write(11));
    pair.pump();
    pair.sides[1].hold.metadata = false;
    pair.elapse(1_000);
    for (id, block) in [(second, 10), (third, 11)] {
        assert!(is_written(&pair, 1, id), "{block}");
        for node in [0, 1] {
            let byte = block as u8 + 1;
            assert_eq!(pair.content(node, block * 4096, 4096), [byte; 4096][..]);
        }
    }
    comes_together(&mut pair);
}

/// The generation is not adopted before the source has said of every write what became of it.
#[test]
fn a_guest_adopts_when_nothing_of_it_is_under_way() {
    let (mut pair, first) = ending();
    let (second, _) = pair.request(1, write(10));
    // (It is on another stream than what comes after it.)
    let late = pair.sides[0].messages.pop_back().expect("a write");
    assert!(matches!(late.1, Message::Write { .. }));
    let stored = pair.sides[1].stored.len();
    pair.sides[0].hold.writes = false;
    pair.elapse(200);
    assert!(is_written(&pair, 1, first));
    assert_eq!(
        pair.sides[1].stored.len(),
        stored,
        "it waits for the second"
    );
    assert_eq!(pair.stand(1), "Pt");
    pair.sides[0].messages.push_back(late);
    pair.elapse(1_000);
    assert!(is_written(&pair, 1, second));
    comes_together(&mut pair);
}

/// Also one that waits for its extent: the source is not quiet before.
#[test]
fn a_source_is_quiet_when_it_has_begun_what_its_guest_sent() {
    let mut pair = guest();
    pair.sides[0].hold.metadata = true;
    let (id, _) = pair.request(1, write(3_000));
    pair.pump();
    assert_eq!(pair.sides[0].metadata.len(), 1, "an extent is to be hot");
    pair.sides[0].hold.reads = false;
    pair.elapse(100);
    assert_eq!(pair.sides[0].metadata.len(), 1, "nothing else is recorded");
    pair.sides[0].hold.metadata = false;
    pair.elapse(1_000);
    assert!(is_written(&pair, 1, id));
    comes_together(&mut pair);
}

/// It was demoted meanwhile: what is put off then is answered already, and over. (As a Primary again it would be written
/// over what came in between.)
#[test]
fn what_is_put_off_after_a_demotion_is_over() {
    let (mut pair, first) = ending();
    let (second, _) = pair.request(1, write(10));
    pair.pump();
    pair.sides[1].hold.messages = true;
    pair.sides[0].hold.writes = false;
    offered(&mut pair);
    pair.order(1, Command::Demote { force: true });
    assert!(is_written(&pair, 1, first));
    assert_eq!(pair.reply(1, second), Some(&Err(IoError::NotPrimary)));
    pair.sides[1].hold.messages = false;
    pair.elapse(10_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
    pair.done(0, PROMOTE);
    let newer = Bytes::from(vec![0xaa; 4096]);
    pair.request(
        0,
        Request::Write {
            offset: 10 * 4096,
            data: newer.clone(),
            fua: false,
        },
    );
    pair.pump();
    pair.done(0, DEMOTE);
    pair.done(1, PROMOTE);
    pair.write(1, 11);
    assert_eq!(pair.content(1, 10 * 4096, 4096), newer);
    comes_together(&mut pair);
}

/// A flush that waits at the source for a write is begun when that write is put off, though nothing follows it.
#[test]
fn a_flush_behind_what_is_put_off_is_answered() {
    let (mut pair, first) = ending();
    let (second, _) = pair.request(1, write(10));
    let (flushed, _) = pair.request(1, Request::Flush);
    pair.pump();
    // From the offer on it is a guest no more, and asks for nothing.
    pair.sides[1].hold.messages = true;
    pair.sides[0].hold.writes = false;
    offered(&mut pair);
    pair.order(1, Command::Demote { force: true });
    assert!(is_written(&pair, 1, first));
    for id in [second, flushed] {
        assert_eq!(pair.reply(1, id), Some(&Err(IoError::NotPrimary)));
    }
    pair.sides[1].hold.messages = false;
    let session = pair.sides[1].session;
    pair.elapse(20_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
    assert_eq!(pair.sides[1].session, session, "nothing is owed");
    let mut notices = pair.sides[1].notices.iter();
    assert!(!notices.any(|notice| matches!(notice, Notice::Stalled { .. })));
}

/// Its source answers again, as soon as they have met, and says so once.
#[test]
fn a_guest_is_served_again_in_the_next_session() {
    let mut pair = cut(guest());
    let (id, _) = pair.request(1, write(9));
    pair.elapse(100);
    assert_eq!(pair.reply(1, id), None);
    let mut told = 0;
    pair.linked = true;
    let end = pair.now + 10_000 * MS;
    while pair.reply(1, id).is_none() {
        assert!(pair.now < end, "it is not served");
        if !pair.step() {
            pair.tick(end);
        }
        let messages = pair.sides[1].messages.iter();
        told += messages
            .filter(|(_, message)| matches!(message, Message::Carrying))
            .count()
            .min(1);
    }
    assert!(is_written(&pair, 1, id));
    assert!(told > 0);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Ss", "Pt"]);
    pair.sides[1].hold.messages = true;
    pair.elapse(500);
    let mut messages = pair.sides[1].messages.iter();
    assert!(!messages.any(|(_, message)| *message == Message::Carrying));
    pair.sides[1].hold.messages = false;
    assert!(pair.sides[0].mirror.dirty().count() > 0, "it is not done");
    pair.write(1, 10);
    comes_together(&mut pair);
}

/// A write that the source has no room for fails, and the guest goes on.
#[test]
fn a_source_without_room_fails_the_write() {
    let mut pair = guest();
    pair.sides[0].hold.writes = true;
    let (id, _) = pair.request(1, write(9));
    pair.pump();
    let mut ops = pair.sides[0].disk.iter();
    let at = ops.position(|(_, op)| matches!(op, DiskOp::Write { .. }));
    pair.end_disk(0, at.expect("a write"), Err(DiskFault::NoSpace));
    pair.pump();
    assert_eq!(pair.reply(1, id), Some(&Err(IoError::NoSpace)));
    assert_eq!(pair.sides[1].mirror.role(), Role::Primary);
    comes_together(&mut pair);
}

/// Away from its source it is known to be on a disk what was answered, or it is not, and then only force demotes it.
#[test]
fn a_guest_is_demoted_without_its_source_if_that_has_flushed() {
    for flushed in [true, false] {
        let mut pair = guest();
        pair.write(1, 9);
        if flushed {
            let (id, _) = pair.request(1, Request::Flush);
            pair.pump();
            assert!(is_written(&pair, 1, id));
        }
        pair.cut();
        pair.pump();
        let (id, _) = pair.order(1, DEMOTE);
        pair.pump();
        let answer = pair.answer(1, id);
        assert_eq!(matches!(answer, Some(Ok(_))), flushed, "{answer:?}");
    }
}

/// Before it answers the source records that it is alone, then that it was not the Primary: each once, whatever happens meanwhile.
#[test]
fn a_source_records_once_that_its_guest_is_the_primary() {
    let mut pair = copying_idle();
    pair.sides[0].hold.metadata = true;
    let stored = pair.sides[0].stored.len();
    let (id, _) = pair.order(1, WHILE_RESYNCING);
    pair.pump();
    assert_eq!(
        (pair.answer(1, id), pair.sides[0].metadata.len()),
        (None, 1)
    );
    for _ in 0..3 {
        pair.handle(0, Event::Tags(vec![]));
    }
    pair.sides[0].hold.metadata = false;
    pair.pump();
    assert!(matches!(pair.answer(1, id), Some(Ok(_))));
    assert_eq!(pair.sides[0].stored.len() - stored, 2);
}

/// A write that the source had not begun when its disk failed never is: the next session waits for nothing of it.
#[test]
fn what_a_source_has_not_begun_ends_with_its_disk() {
    let mut pair = guest();
    pair.sides[0].hold.flushes = true;
    pair.request(1, Request::Flush);
    pair.pump();
    pair.sides[0].hold.metadata = true;
    pair.request(1, write(3_000));
    pair.pump();
    assert_eq!(pair.sides[0].metadata.len(), 1, "an extent is to be hot");
    let mut ops = pair.sides[0].disk.iter();
    let at = ops.position(|(_, op)| *op == DiskOp::Flush);
    pair.end_disk(0, at.expect("a flush"), Err(DiskFault::Io(5)));
    assert_eq!(pair.sides[0].session, None);
    pair.sides[0].hold = super::pair::Hold::default();
    pair.pump();
    pair.meet();
    pair.pump();
    assert_ne!(pair.stand(0), "Gm", "it has greeted");
}

/// Nor does the resynchronisation end before the target is told whether it may be Primary.
#[test]
fn a_target_that_asks_is_answered_before_the_end() {
    let mut pair = copying_idle();
    pair.sides[0].hold.metadata = true;
    let (id, _) = pair.order(1, WHILE_RESYNCING);
    pair.pump();
    pair.sides[0].hold.reads = false;
    pair.pump();
    assert_eq!((pair.answer(1, id), pair.stand(0)), (None, "Ss"));
    pair.sides[0].hold.metadata = false;
    pair.pump();
    assert!(matches!(pair.answer(1, id), Some(Ok(_))));
    comes_together(&mut pair);
}

/// Whoever has been offered the generation is answered for by nobody any more.
#[test]
fn a_copy_that_is_about_to_adopt_is_not_served() {
    let (mut pair, _) = ending();
    pair.sides[1].hold.metadata = true;
    pair.sides[0].hold.writes = false;
    pair.pump();
    assert_eq!(pair.sides[1].metadata.len(), 1, "it adopts");
    super::ways::say(&mut pair, 1, Message::Carrying);
    assert_eq!(pair.sides[1].session, None, "a rule is broken");
}

/// While a write is under way at the copy that answers, a flush there would cover nothing.
#[test]
fn a_slow_write_there_is_not_flushed_for() {
    for (build, node) in [(guest as fn() -> Pair, 1), (carried, 0)] {
        let mut pair = build();
        pair.elapse(2_500);
        let other = 1 - node;
        pair.sides[other].hold.writes = true;
        pair.request(node, write(9));
        pair.pump();
        pair.sides[other].hold.messages = true;
        pair.elapse(1_500);
        let mut messages = pair.sides[other].messages.iter();
        let flushes = messages.any(|(_, message)| matches!(message, Message::Flush { .. }));
        assert!(!flushes, "node {node}");
    }
}
