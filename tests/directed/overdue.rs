//! A peer or a disk that answers pings and nothing else (docs/protocol.md §5): whatever is owed for `ack-timeout` ends the
//! session, so that a Primary whose own copy is good goes on; its own disk is told.

use bytes::Bytes;
use kagami_replicator::core::event::Request;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::register::{ArbiterAnswer, Ask, Register};
use kagami_replicator::core::state::{NodeId, Solo};
use kagami_replicator::core::{Command, Event, Notice, Settings};

use super::pair::{Kept, PROMOTE, Pair, write};
use super::stands::{alone, copying, in_sync, primary};

/// `ack-timeout`, the leases, the arbiter, and some more, ms.
const LONG: u64 = 20_000;

fn stalled(pair: &Pair, node: usize) -> Vec<&'static str> {
    let notices = pair.sides[node].notices.iter();
    notices
        .filter_map(|notice| match notice {
            Notice::Stalled { who } => Some(*who),
            _ => None,
        })
        .collect()
}

/// *Liveness*.
fn goes_on_alone(mut pair: Pair) {
    let (id, _) = pair.request(0, write(9));
    pair.elapse(LONG);
    assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
    assert!(stalled(&pair, 0).contains(&"peer"));
}

#[test]
fn a_target_that_does_not_adopt_is_left() {
    let mut pair = copying();
    pair.sides[0].hold.reads = false;
    pair.until(0, "Pf");
    pair.sides[1].hold.metadata = true;
    goes_on_alone(pair);
}

#[test]
fn a_target_that_does_not_compare_is_left() {
    let mut pair = in_sync();
    pair.order(1, Command::Invalidate);
    pair.sides[1].hold.reads = true;
    pair.pump();
    assert!(!pair.sides[1].disk.is_empty(), "it is to compare");
    pair.done(0, PROMOTE);
    goes_on_alone(pair);
}

#[test]
fn a_peer_that_does_not_verify_is_left() {
    let mut pair = primary();
    pair.sides[1].hold.reads = true;
    pair.order(0, Command::Verify { repair: false });
    pair.elapse(LONG);
    assert_eq!(stalled(&pair, 0), ["peer"]);
}

/// A node that answers pings and nothing else.
#[test]
fn a_promotion_does_not_wait_for_ever_for_a_grant() {
    let mut pair = in_sync();
    pair.sides[0].hold.messages = true;
    let (id, _) = pair.order(1, PROMOTE);
    pair.linked = false;
    let session = pair.sides[1].session;
    for _ in 0..60 {
        for (session, message) in std::mem::take(&mut pair.sides[0].messages) {
            if matches!(message, Message::Ping { .. } | Message::Pong { .. }) {
                pair.handle(0, Event::Message { session, message });
            }
        }
        pair.elapse(250);
    }
    assert_ne!(pair.sides[1].session, session, "it is over");
    assert_eq!(stalled(&pair, 1), ["peer"]);
    // By the arbiter's word now: the session was all that it waited for.
    assert!(matches!(pair.answer(1, id), Some(Ok(_))));
}

#[test]
fn a_local_disk_that_answers_nothing_is_told_once() {
    let mut pair = alone();
    pair.sides[0].hold.writes = true;
    let (id, _) = pair.request(0, write(9));
    pair.elapse(9_900);
    assert!(stalled(&pair, 0).is_empty());
    assert!(pair.sides[0].token);
    pair.elapse(40_000);
    assert_eq!(stalled(&pair, 0), ["local disk"]);
    // Nobody would hear of what fails after the end of this daemon.
    assert!(!pair.sides[0].token);
    // It answers, and hangs again.
    pair.sides[0].hold.writes = false;
    pair.pump();
    assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
    pair.sides[0].hold.writes = true;
    pair.request(0, write(10));
    pair.elapse(LONG);
    assert_eq!(stalled(&pair, 0), ["local disk", "local disk"]);
}

/// What hangs may fail when nobody hears it any more, however well the copies are otherwise; once it is answered, it was heard.
#[test]
fn a_copy_has_no_token_while_its_disk_hangs() {
    let mut pair = primary();
    pair.sides[0].hold.reads = true;
    let read = Request::Read {
        offset: 9 * 4096,
        len: 4096,
    };
    pair.request(0, read);
    let id = pair.sides[0].disk.front().expect("a read").0;
    pair.sides[0].kept = Some(Kept::Disk(id));
    pair.sides[0].hold.reads = false;
    assert!(pair.sides[0].token, "in sync");
    pair.elapse(LONG);
    assert_eq!(stalled(&pair, 0), ["local disk"]);
    assert!(!pair.sides[0].token);
    // It verifies, and is in sync as before; then again after another session.
    pair.done(0, Command::Verify { repair: false });
    assert!(!pair.sides[0].token);
    pair.cut();
    pair.linked = true;
    pair.elapse(2_000);
    assert_eq!(pair.stand(1), "Si");
    assert!(!pair.sides[0].token && pair.sides[1].token);
    pair.sides[0].kept = None;
    pair.pump();
    assert!(pair.sides[0].token);
}

/// The alarm of what comes after does not wait for the time-out of what was before.
#[test]
fn a_disk_that_hangs_again_is_told_in_time() {
    let mut pair = alone();
    pair.sides[0].hold.writes = true;
    pair.request(0, write(9));
    pair.elapse(9_000);
    pair.request(0, write(10));
    pair.elapse(2_000);
    assert!(!pair.sides[0].token);
    pair.end_disk(0, 0, Ok(()));
    assert!(pair.sides[0].token);
    pair.elapse(7_900);
    assert_eq!(stalled(&pair, 0), ["local disk"]);
    pair.elapse(200);
    assert_eq!(stalled(&pair, 0), ["local disk", "local disk"]);
    assert!(!pair.sides[0].token);
}

/// A write that the disk of a node that is alone does not answer; whatever comes later it does.
fn one_write_hangs() -> Pair {
    let mut pair = alone();
    pair.sides[0].hold.writes = true;
    pair.request(0, write(9));
    let id = pair.sides[0].disk.front().expect("a write").0;
    pair.sides[0].kept = Some(Kept::Disk(id));
    pair.sides[0].hold.writes = false;
    pair
}

/// Sessions that come and go put it off by nothing, and make nobody say it again.
#[test]
fn a_disk_that_hangs_is_told_once_whatever_the_link_does() {
    let mut pair = one_write_hangs();
    let told = |pair: &Pair| {
        let all = stalled(pair, 0);
        all.iter().filter(|who| **who == "local disk").count()
    };
    for nth in 1..=12 {
        pair.meet();
        pair.elapse(1_500);
        pair.cut();
        pair.elapse(1_500);
        assert_eq!(told(&pair), usize::from(nth >= 4), "after {nth} sessions");
    }
}

/// One operation hangs, and others end beside it.
#[test]
fn what_hangs_alone_is_told_once() {
    let mut pair = one_write_hangs();
    for at in 10..50 {
        pair.write(0, at);
        pair.elapse(1_000);
    }
    assert_eq!(stalled(&pair, 0), ["local disk"]);
    let mut pair = alone();
    pair.sides[0].hold.metadata = true;
    pair.request(0, write(3_000));
    let id = pair.sides[0].metadata.front().expect("a record of the log");
    pair.sides[0].kept = Some(Kept::Metadata(*id));
    pair.sides[0].hold.metadata = false;
    for nth in 0..20 {
        let peer = [NodeId::NOBODY, NodeId(2)][nth % 2];
        pair.done(0, Command::SetPeer { peer });
        pair.elapse(2_000);
    }
    assert_eq!(stalled(&pair, 0), ["metadata store"]);
}

#[test]
fn a_metadata_store_that_answers_nothing_is_told_once() {
    let mut pair = alone();
    pair.sides[0].hold.metadata = true;
    let (id, _) = pair.order(0, Command::Demote { force: false });
    pair.elapse(9_900);
    assert!(stalled(&pair, 0).is_empty());
    pair.elapse(40_000);
    assert_eq!(stalled(&pair, 0), ["metadata store"]);
    assert_eq!(pair.answer(0, id), None);
    // It answers, and hangs again.
    pair.sides[0].hold.metadata = false;
    pair.pump();
    assert!(matches!(pair.answer(0, id), Some(Ok(_))));
    pair.sides[0].hold.metadata = true;
    pair.order(0, PROMOTE);
    pair.elapse(LONG);
    assert_eq!(stalled(&pair, 0), ["metadata store", "metadata store"]);
}

/// Nothing of it is the session's, whose end it outlives.
#[test]
fn a_store_that_hangs_over_the_end_of_a_session_is_told() {
    let mut pair = primary();
    pair.sides[1].hold.writes = true;
    pair.request(0, write(9));
    pair.pump();
    pair.cut();
    pair.elapse(LONG);
    assert_eq!(stalled(&pair, 1), ["local disk"]);
    let mut pair = in_sync();
    pair.sides[0].hold.metadata = true;
    pair.order(0, PROMOTE);
    pair.pump();
    pair.cut();
    pair.elapse(LONG);
    assert_eq!(stalled(&pair, 0), ["metadata store"]);
}

/// *One-writer*: a node that is alone looks at the register as soon as it is told to ask it.
#[test]
fn a_reload_makes_a_node_that_is_alone_look_at_the_register() {
    let mut pair = alone();
    let reload = |pair: &mut Pair, solo| {
        pair.done(
            0,
            Command::Set(Settings {
                solo,
                ..Settings::default()
            }),
        );
    };
    reload(&mut pair, Solo::Never);
    pair.elapse(40_000);
    let held = pair.arbiter.register().expect("a register").clone();
    let expect = Some((held.instance, held.seq));
    let register = Register {
        seq: held.seq + 1,
        copies: vec![NodeId(2)],
        ..held
    };
    let swap = Ask::Swap { expect, register };
    assert_eq!(pair.arbiter.answer(&swap), ArbiterAnswer::Swapped);
    reload(&mut pair, Solo::Arbiter);
    pair.pump();
    let (id, _) = pair.request(0, write(9));
    pair.elapse(LONG);
    assert_eq!(pair.reply(0, id), None, "the other copy has the register");
}
