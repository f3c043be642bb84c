//! What is under way for long, and what may not be done before it has ended.

use bytes::Bytes;
use kagami_replicator::core::event::{Reply, Request};
use kagami_replicator::core::message::Message;
use kagami_replicator::core::{Command, DiskFault, DiskOp, Notice};

use super::pair::{Kept, Pair, write};
use super::stands::{alone, build, copying, in_sync, primary};

/// Longer than a lease and a handshake, shorter than `ack-timeout`, ms.
const WHILE: u64 = 5_000;

/// This node's newest disk write stays under way, whatever else goes on.
fn keep_write(pair: &mut Pair, node: usize) {
    let mut disk = pair.sides[node].disk.iter().rev();
    let id = disk.find_map(|(id, op)| matches!(op, DiskOp::Write { .. }).then_some(*id));
    pair.sides[node].kept = Some(Kept::Disk(id.expect("a write")));
}

fn has_said_hello(pair: &Pair, node: usize) -> bool {
    let mut messages = pair.sides[1 - node].messages.iter();
    messages.any(|(_, message)| matches!(message, Message::Hello(_)))
}

/// docs/protocol.md §5: it may land whenever it likes, on what the new session has agreed on.
#[test]
fn no_hello_while_a_write_of_an_older_session_is_under_way() {
    for node in [0, 1] {
        let mut pair = primary();
        pair.sides[node].hold.writes = true;
        pair.request(0, write(9));
        pair.pump();
        keep_write(&mut pair, node);
        pair.sides[node].hold.writes = false;
        pair.cut();
        pair.sides[1 - node].hold.messages = true;
        pair.linked = true;
        pair.until(node, if node == 0 { "Pm" } else { "Sm" });
        pair.elapse(500);
        assert!(!has_said_hello(&pair, node), "node {node}");
        pair.sides[node].kept = None;
        pair.pump();
        assert!(has_said_hello(&pair, node), "node {node}");
        pair.sides[1 - node].hold.messages = false;
        pair.elapse(WHILE);
        assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
        assert!(pair.is_equal());
    }
}

/// *One-writer*, rule 2: a source leaves, and offers, when nothing that both copies are to have is under way.
#[test]
fn the_end_of_a_resynchronisation_waits_for_a_write_that_is_under_way() {
    for node in [0, 1] {
        let mut pair = copying();
        pair.sides[node].hold.writes = true;
        let (id, _) = pair.request(0, write(9));
        pair.pump();
        keep_write(&mut pair, node);
        pair.sides[node].hold.writes = false;
        pair.sides[0].hold.reads = false;
        pair.elapse(WHILE);
        assert!(pair.sides[0].mirror.record().alone, "node {node}");
        assert_ne!(pair.stand(1), "Si", "node {node}");
        pair.sides[node].kept = None;
        pair.elapse(WHILE);
        assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())));
        assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
        assert!(pair.is_equal());
    }
}

#[test]
fn the_end_of_a_resynchronisation_waits_for_a_flush_that_is_under_way() {
    for node in [0, 1] {
        let mut pair = copying();
        pair.sides[node].hold.flushes = true;
        pair.sides[0].hold.reads = false;
        pair.elapse(WHILE);
        assert!(pair.sides[0].mirror.record().alone, "node {node}");
        assert!(
            pair.sides[0].mirror.dirty().count() > 0,
            "not before both have flushed"
        );
        pair.sides[node].hold.flushes = false;
        pair.elapse(WHILE);
        assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    }
}

/// An answer that comes later could let this copy go after it has left.
#[test]
fn the_end_of_a_resynchronisation_waits_for_the_arbiters_answer() {
    let mut pair = copying();
    pair.sides[0].hold.asks = true;
    pair.sides[0].hold.reads = false;
    pair.elapse(1_500);
    assert!(pair.sides[0].mirror.record().alone);
    assert_ne!(pair.stand(1), "Si");
    pair.sides[0].hold.asks = false;
    pair.elapse(WHILE);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
}

/// A Primary whose local write hangs does not answer it by the peer's, nor the other way round.
#[test]
fn a_write_is_answered_when_both_have_it() {
    for node in [0, 1] {
        let mut pair = primary();
        pair.sides[node].hold.writes = true;
        let (id, _) = pair.request(0, write(9));
        pair.elapse(WHILE);
        assert_eq!(pair.reply(0, id), None, "node {node}");
        pair.sides[node].hold.writes = false;
        pair.pump();
        assert_eq!(pair.reply(0, id), Some(&Ok(Bytes::new())), "node {node}");
    }
}

/// What an operator ordered, and the metadata store lost, is told.
#[test]
fn an_order_whose_record_is_lost_is_refused_or_ends() {
    let force = Command::Promote {
        force: true,
        while_resyncing: false,
    };
    // (stand, order, whether it is as good as carried out)
    let rows = [
        ("Sn", Command::Invalidate, false),
        ("Si", Command::Invalidate, false),
        ("Bn", force, false),
        ("Pn", Command::Demote { force: false }, true),
        ("Si", Command::Disconnect, true),
    ];
    for (stand, order, good) in rows {
        let (mut pair, node) = build(stand);
        pair.sides[node].hold.metadata = true;
        let (id, _) = pair.order(node, order.clone());
        pair.pump();
        assert_eq!(pair.answer(node, id), None, "{stand} {order:?}");
        pair.end_metadata(node, 0, Err(DiskFault::Io(5)));
        pair.sides[node].hold.metadata = false;
        pair.pump();
        let said = pair.answer(node, id);
        assert_eq!(
            matches!(said, Some(Ok(Reply::Done))),
            good,
            "{stand} {order:?}: {said:?}"
        );
        assert_eq!(
            matches!(said, Some(Err(_))),
            !good,
            "{stand} {order:?}: {said:?}"
        );
    }
}

/// What is told of a resynchronisation: bytes that were marked and sent, and how long it took.
#[test]
fn the_end_of_a_resynchronisation_tells_what_it_did() {
    let mut pair = copying();
    pair.elapse(1_000);
    pair.sides[0].hold.reads = false;
    pair.elapse(WHILE);
    let mut notices = pair.sides[0].notices.iter().rev();
    let done = notices.find_map(|notice| match notice {
        Notice::ResyncDone { marked, sent, ms } => Some((*marked, *sent, *ms)),
        _ => None,
    });
    let (marked, sent, ms) = done.expect("it ended");
    assert_eq!((marked, sent), (2 * 4096, 2 * 4096));
    assert!((1_000..4_000).contains(&ms), "{ms}");
}

/// Mode `always` goes on alone with the first write, not with the loss of the link; `never` not at all.
#[test]
fn the_first_write_alone_makes_a_generation_where_the_mode_says_so() {
    use kagami_replicator::core::Settings;
    use kagami_replicator::core::state::Solo;
    for (solo, goes_on) in [(Solo::Always, true), (Solo::Never, false)] {
        let mut pair = in_sync();
        for node in [0, 1] {
            let settings = Settings {
                solo,
                ..Settings::default()
            };
            pair.done(node, Command::Set(settings));
        }
        let promote = Command::Promote {
            force: false,
            while_resyncing: false,
        };
        pair.done(0, promote);
        let generation = |pair: &Pair| pair.sides[0].mirror.record().current.map(|g| g.tag);
        let before = generation(&pair);
        pair.cut();
        pair.elapse(WHILE);
        let (read, _) = pair.request(
            0,
            Request::Read {
                offset: 0,
                len: 4096,
            },
        );
        pair.elapse(WHILE);
        assert_eq!(generation(&pair), before, "a read makes none");
        assert_eq!(pair.reply(0, read).is_some(), goes_on);
        let (id, _) = pair.request(0, write(9));
        pair.elapse(WHILE);
        assert_eq!(generation(&pair) != before, goes_on);
        assert_eq!(pair.reply(0, id).is_some(), goes_on);
    }
}

/// A Primary alone, whose record says so: a second loss of a half-made session takes nothing away.
#[test]
fn who_is_alone_answers_while_a_session_is_met_and_lost() {
    let mut pair = alone();
    pair.linked = false;
    for at in 10..13 {
        pair.meet_at(0);
        pair.write(0, at);
        pair.cut();
        pair.write(0, at + 100);
    }
    assert_eq!(pair.stand(0), "Pn");
}
