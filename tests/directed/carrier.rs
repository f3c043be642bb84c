//! Whoever carried a Primary without a disk is promoted in that session, once that one is demoted
//! (docs/protocol.md §5, *Disk failure*): without a question to anybody, and never beside it.

use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::DiskState;
use kagami_replicator::core::{Command, DiskFault, Event, IoError, Request, Role};

use super::pair::{DEMOTE, FORCE, PROMOTE, Pair, write};
use super::stands::{carried, lose_disk, primary};

fn stands(pair: &Pair) -> [&'static str; 2] {
    [pair.stand(0), pair.stand(1)]
}

fn is_refused(pair: &mut Pair, node: usize, command: Command) -> bool {
    let (id, _) = pair.order(node, command);
    pair.pump();
    matches!(pair.answer(node, id), Some(Err(_)))
}

fn flush(pair: &mut Pair, node: usize) {
    let (id, _) = pair.request(node, Request::Flush);
    pair.pump();
    assert!(matches!(pair.reply(node, id), Some(Ok(_))));
}

/// Node 0 is demoted, once its carrier has flushed.
fn demoted(pair: &mut Pair) {
    let flushes = pair.sides[1].flushes;
    let (id, _) = pair.order(0, DEMOTE);
    pair.elapse(1_000);
    assert!(matches!(pair.answer(0, id), Some(Ok(_))));
    assert!(pair.sides[1].flushes > flushes);
    assert_eq!(stands(pair), ["Gv", "Sv"]);
}

/// Node 0 has no disk and is demoted; node 1 carried it.
fn given_up() -> Pair {
    let mut pair = carried();
    pair.write(0, 4);
    demoted(&mut pair);
    pair
}

/// And node 1 is being promoted: `was_primary` is not durable yet.
fn recording() -> (Pair, kagami_replicator::core::state::CommandId) {
    let mut pair = given_up();
    pair.sides[1].hold.metadata = true;
    let (id, _) = pair.order(1, PROMOTE);
    pair.pump();
    assert_eq!(pair.sides[1].mirror.role(), Role::Secondary);
    assert_eq!(pair.answer(1, id), None, "nothing is durable yet");
    (pair, id)
}

fn recorded(pair: &mut Pair) {
    pair.sides[1].hold.metadata = false;
    pair.pump();
}

#[test]
fn the_carrier_is_promoted_and_answers_alone() {
    let mut pair = given_up();
    let asked = pair.sides[1].asked;
    pair.done(1, PROMOTE);
    assert_eq!(stands(&pair), ["Gv", "Pv"]);
    assert_eq!(pair.sides[1].asked, asked, "the arbiter has said it before");
    pair.write(1, 5);
    flush(&mut pair, 1);
    pair.elapse(3_000);
    assert_eq!(stands(&pair), ["Gv", "Pv"], "and goes on as it is");
    pair.done(1, DEMOTE);
    pair.done(1, PROMOTE);
    assert_eq!(stands(&pair), ["Gv", "Pv"]);
}

/// Nobody in the session has the data any more: what is asked for fails, and does not wait.
#[test]
fn without_the_second_disk_requests_fail_at_once() {
    let mut pair = given_up();
    pair.done(1, PROMOTE);
    pair.sides[1].hold.writes = true;
    let (wrote, _) = pair.request(1, write(5));
    pair.pump();
    pair.end_disk(1, 0, Err(DiskFault::Io(5)));
    pair.pump();
    assert_eq!(pair.reply(1, wrote), Some(&Err(IoError::Io)));
    assert!(pair.sides[1].session.is_some(), "the session goes on");
    let read = Request::Read {
        offset: 0,
        len: 4096,
    };
    for request in [read, write(6), Request::Flush] {
        let (id, _) = pair.request(1, request.clone());
        assert_eq!(pair.reply(1, id), Some(&Err(IoError::Io)), "{request:?}");
    }
    pair.done(1, DEMOTE);
}

#[test]
fn whoever_has_no_disk_is_not_promoted_by_any_word() {
    for promoted in [false, true] {
        let mut pair = given_up();
        if promoted {
            pair.done(1, PROMOTE);
        }
        for command in [PROMOTE, FORCE] {
            assert!(is_refused(&mut pair, 0, command));
            assert_eq!(pair.sides[0].mirror.role(), Role::Secondary);
        }
    }
}

#[test]
fn it_is_refused_while_the_one_without_a_disk_is_primary() {
    let mut pair = carried();
    assert!(is_refused(&mut pair, 1, PROMOTE));
    assert_eq!(stands(&pair), ["Dv", "Sv"]);
    // A demotion on its way is none yet.
    pair.sides[1].hold.writes = true;
    let (wrote, _) = pair.request(0, write(6));
    pair.pump();
    pair.order(0, DEMOTE);
    pair.pump();
    assert!(is_refused(&mut pair, 1, PROMOTE));
    pair.sides[1].hold.writes = false;
    pair.elapse(1_000);
    assert!(matches!(pair.reply(0, wrote), Some(Ok(_))));
    assert_eq!(stands(&pair), ["Gv", "Sv"]);
    pair.done(1, PROMOTE);
}

/// *Hand over*: also what was answered before the disk failed, a moment ago.
#[test]
fn a_demotion_waits_until_the_carrier_has_flushed_what_was_answered_in_sync() {
    let mut pair = primary();
    pair.write(0, 4);
    pair.sides[1].hold.flushes = true;
    let flushes = pair.sides[1].flushes;
    lose_disk(&mut pair);
    assert_eq!(stands(&pair), ["Dv", "Sv"]);
    let (id, _) = pair.order(0, DEMOTE);
    pair.pump();
    assert_eq!(pair.answer(0, id), None);
    assert_eq!(pair.sides[1].flushes, flushes + 1);
    pair.sides[1].hold.flushes = false;
    pair.pump();
    assert!(matches!(pair.answer(0, id), Some(Ok(_))));
    assert_eq!(pair.sides[1].flushes, flushes + 1, "once");
}

#[test]
fn a_link_that_is_lost_meanwhile_leaves_it_the_only_one() {
    let (mut pair, id) = recording();
    pair.cut();
    pair.pump();
    assert_eq!(pair.sides[1].mirror.role(), Role::Secondary);
    recorded(&mut pair);
    assert!(matches!(pair.answer(1, id), Some(Ok(_))));
    assert_eq!(stands(&pair), ["Gn", "Pn"]);
    pair.write(1, 5);
}

#[test]
fn a_session_that_ends_and_comes_up_again_meanwhile_is_another_one() {
    let (mut pair, id) = recording();
    pair.cut();
    pair.pump();
    pair.meet();
    pair.linked = true;
    recorded(&mut pair);
    assert!(matches!(pair.answer(1, id), Some(Ok(_))));
    assert_eq!(stands(&pair), ["Gv", "Pv"]);
    pair.write(1, 5);
}

#[test]
fn it_is_not_promoted_beside_one_that_says_it_is_primary_after_all() {
    let (mut pair, id) = recording();
    let session = pair.sides[1].session.expect("a session");
    let (role, disk) = (Role::Primary, DiskState::Failed);
    let message = Message::State { role, disk };
    pair.handle(1, Event::Message { session, message });
    recorded(&mut pair);
    assert!(matches!(pair.answer(1, id), Some(Err(_))));
    assert_eq!(pair.sides[1].mirror.role(), Role::Secondary);
}

#[test]
fn a_record_that_can_t_be_written_ends_it() {
    let (mut pair, id) = recording();
    pair.end_metadata(1, 0, Err(DiskFault::Io(5)));
    recorded(&mut pair);
    assert!(matches!(pair.answer(1, id), Some(Err(_))));
    assert_eq!(stands(&pair), ["Gn", "Gn"]);
}

#[test]
fn before_it_carries_it_is_refused_and_afterwards_it_asks_without_a_session() {
    let mut pair = primary();
    pair.sides[1].hold.asks = true;
    lose_disk(&mut pair);
    assert_eq!(stands(&pair), ["Dv", "Sv"]);
    let at = kagami_replicator::core::state::Time(pair.now);
    assert_eq!(pair.sides[1].mirror.status(at).alone_since, None);
    assert!(is_refused(&mut pair, 1, PROMOTE));
    // The one without a disk has nothing left to keep a session for.
    pair.done(0, Command::Demote { force: true });
    assert_eq!(stands(&pair), ["Gn", "Sn"]);
    let (id, _) = pair.order(1, PROMOTE);
    pair.elapse(3_000);
    assert_eq!(pair.answer(1, id), None, "the arbiter has not said it");
    pair.sides[1].hold.asks = false;
    pair.elapse(3_000);
    assert!(matches!(pair.answer(1, id), Some(Ok(_))));
    assert_eq!(stands(&pair), ["Gn", "Pn"]);
    pair.write(1, 5);
}

/// Node 1 is to carry node 0, and waits for the arbiter, or for its record.
fn about_to_carry(asking: bool) -> Pair {
    let mut pair = primary();
    pair.sides[1].hold.asks = asking;
    pair.sides[1].hold.metadata = !asking;
    lose_disk(&mut pair);
    if asking {
        let (attempt, ask) = pair.sides[1].asks.pop_front().expect("a question");
        let answer = pair.arbiter.answer(&ask);
        pair.handle(1, Event::Arbiter { attempt, answer });
        assert_eq!(pair.sides[1].asks.len(), 1, "the register is to be swapped");
    } else {
        assert_eq!(pair.sides[1].metadata.len(), 1, "a generation is minted");
    }
    pair
}

/// It says that it is Secondary before it closes the session, in which nobody needs a carrier any more.
#[test]
fn a_node_that_is_primary_no_more_is_not_carried() {
    for asking in [true, false] {
        let mut pair = about_to_carry(asking);
        let (role, disk) = (Role::Secondary, DiskState::Failed);
        super::ways::say(&mut pair, 1, Message::State { role, disk });
        let recorded = pair.sides[1].stored.len();
        pair.sides[0].hold.messages = true;
        pair.sides[1].hold.asks = false;
        pair.sides[1].hold.metadata = false;
        pair.pump();
        assert_eq!(pair.sides[1].stored.len(), recorded, "{asking}");
        assert!(!pair.sides[1].mirror.footing().alone, "{asking}");
        let mut messages = pair.sides[0].messages.iter();
        let carries = messages.any(|(_, message)| *message == Message::Carrying);
        assert!(!carries, "{asking}");
    }
}

/// Of a write that it could not carry out for any other reason than want of room it has lost its copy.
#[test]
fn a_carrier_that_fails_a_write_is_left() {
    let mut pair = carried();
    pair.sides[1].hold.messages = true;
    pair.request(0, write(9));
    let mut messages = pair.sides[1].messages.iter();
    let seq = messages.find_map(|(_, message)| match message {
        Message::Write { seq, .. } => Some(*seq),
        _ => None,
    });
    let (seq, result) = (seq.expect("a write"), Err(DiskFault::Io(5)));
    super::ways::say(&mut pair, 0, Message::Done { seq, result });
    assert_eq!(pair.sides[0].session, None);
}
