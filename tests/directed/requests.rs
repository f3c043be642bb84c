//! A front end's requests: what is refused at once, what is counted, and what the lease lets a Primary answer
//! (docs/protocol.md §8).

use bytes::Bytes;
use kagami_replicator::core::event::{Reply, Request};
use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::{Connection, Time};
use kagami_replicator::core::status::Standing;
use kagami_replicator::core::{Command, IoError, Notice};

use super::pair::{MS, PROMOTE, Pair, SIZE, write};
use super::stands::{alone, build, copying, in_sync, primary};
use super::ways::say;

/// The time-out, and the lease that the clocks' drift leaves of it, ms.
const TIMEOUT: u64 = 2_000;

fn bytes(len: usize) -> Bytes {
    Bytes::from(vec![7; len])
}

/// The requests of all kinds for a range.
fn of_all_kinds(offset: u64, len: u32) -> [Request; 4] {
    [
        Request::Read { offset, len },
        Request::Write {
            offset,
            data: bytes(len as usize),
            fua: false,
        },
        Request::WriteZeroes {
            offset,
            len: u64::from(len),
            unmap: false,
            fua: false,
        },
        Request::Discard {
            offset,
            len: u64::from(len),
            fua: false,
        },
    ]
}

#[test]
fn what_is_out_of_range_or_no_whole_sector_is_refused_and_not_counted() {
    let mut pair = alone();
    let before = pair.sides[0].mirror.status(Time(pair.now)).counters;
    let rows = [
        (SIZE, 512, IoError::OutOfRange),
        (SIZE - 512, 1024, IoError::OutOfRange),
        (u64::MAX - 511, 512, IoError::OutOfRange),
        (0, 0, IoError::Unaligned),
        (256, 512, IoError::Unaligned),
        (512, 256, IoError::Unaligned),
        (256, 256, IoError::Unaligned),
    ];
    for (offset, len, error) in rows {
        for request in of_all_kinds(offset, len) {
            let words = format!("{request:?}");
            let (id, _) = pair.request(0, request);
            assert_eq!(pair.reply(0, id), Some(&Err(error)), "{}", &words[..40]);
        }
    }
    let after = pair.sides[0].mirror.status(Time(pair.now)).counters;
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
}

#[test]
fn requests_and_their_bytes_are_counted() {
    let mut pair = alone();
    let counters = |pair: &Pair| pair.sides[0].mirror.status(Time(pair.now)).counters;
    let before = counters(&pair);
    for request in of_all_kinds(SIZE - 1536, 1536) {
        let (id, _) = pair.request(0, request);
        pair.pump();
        assert!(matches!(pair.reply(0, id), Some(Ok(_))));
    }
    let (id, _) = pair.request(0, Request::Flush);
    pair.pump();
    assert!(matches!(pair.reply(0, id), Some(Ok(_))));
    let after = counters(&pair);
    assert_eq!(after.reads - before.reads, 1);
    assert_eq!(after.read_bytes - before.read_bytes, 1536);
    assert_eq!(after.writes - before.writes, 3);
    assert_eq!(after.write_bytes - before.write_bytes, 3 * 1536);
    assert_eq!(after.flushes - before.flushes, 1);
}

/// A daemon that was stopped for longer than its lease finds the disk's answer before the clock's.
#[test]
fn a_read_that_ends_after_the_lease_is_not_answered() {
    let read = Request::Read {
        offset: 0,
        len: 4096,
    };
    for (late, answered) in [(false, true), (true, false)] {
        let mut pair = primary();
        pair.sides[0].hold.reads = true;
        let (id, _) = pair.request(0, read.clone());
        pair.pump();
        if late {
            pair.now += TIMEOUT * MS;
        }
        pair.end_disk(0, 0, Ok(()));
        assert_eq!(pair.reply(0, id).is_some(), answered);
    }
}

/// To the moment.
#[test]
fn a_lease_has_ended_at_its_end() {
    for (early, answered) in [(1, true), (0, false)] {
        let mut pair = primary();
        pair.sides[0].hold.reads = true;
        let read = Request::Read {
            offset: 0,
            len: 4096,
        };
        let (id, _) = pair.request(0, read);
        let Standing::Session { until } = pair.sides[0].mirror.status(Time(pair.now)).standing
        else {
            panic!("no session")
        };
        pair.now = until.0 - early;
        pair.end_disk(0, 0, Ok(()));
        assert_eq!(pair.reply(0, id).is_some(), answered);
    }
}

/// Nor is one of a Primary that is alone held: it needs no lease.
#[test]
fn who_is_alone_reads_without_a_lease() {
    let mut pair = alone();
    pair.sides[0].hold.reads = true;
    let (id, _) = pair.request(
        0,
        Request::Read {
            offset: 0,
            len: 4096,
        },
    );
    pair.now += TIMEOUT * MS;
    pair.end_disk(0, 0, Ok(()));
    assert!(pair.reply(0, id).is_some());
}

/// A peer that grants, refuses or settles what nobody asked for breaks a rule, and its session ends.
#[test]
fn an_answer_that_was_not_asked_for_ends_the_session() {
    let rows = [
        Message::PromoteGrant,
        Message::PromoteRefuse { why: "no".into() },
        Message::Adopted,
        Message::Settled,
        Message::Compared {
            id: 1,
            result: Ok(vec![]),
        },
    ];
    for stand in ["Pi", "Ps", "Si"] {
        for message in rows.clone() {
            // With nothing compared there is no verification either, and then it is late, not false.
            if stand != "Ps" && matches!(message, Message::Compared { .. }) {
                continue;
            }
            let (mut pair, node) = build(stand);
            let words = format!("{stand} {message:?}");
            say(&mut pair, node, message);
            assert_eq!(pair.sides[node].session, None, "{words}");
            let mut notices = pair.sides[node].notices.iter();
            assert!(
                notices.any(|n| matches!(n, Notice::PeerFault { .. })),
                "{words}"
            );
        }
    }
}

/// Both ask at once: the one with the lower id is it, and the other one is told.
#[test]
fn of_two_that_ask_for_the_role_the_lower_id_gets_it() {
    let mut pair = in_sync();
    for node in [0, 1] {
        pair.sides[node].hold.messages = true;
    }
    let (mine, _) = pair.order(0, PROMOTE);
    let (theirs, _) = pair.order(1, PROMOTE);
    for node in [0, 1] {
        pair.sides[node].hold.messages = false;
    }
    pair.elapse(1_000);
    assert!(matches!(pair.answer(0, mine), Some(Ok(_))));
    assert!(matches!(pair.answer(1, theirs), Some(Err(_))));
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
}

#[test]
fn the_connection_is_what_it_is_and_why() {
    let connection = |pair: &Pair, node: usize| {
        let status = pair.sides[node].mirror.status(Time(pair.now));
        status.connection
    };
    let mut pair = primary();
    assert_eq!(connection(&pair, 0), Connection::Connected);
    pair.cut();
    pair.pump();
    assert_eq!(connection(&pair, 0), Connection::Connecting);
    pair.meet_at(0);
    assert_eq!(connection(&pair, 0), Connection::Connecting);
    pair.done(0, Command::Disconnect);
    assert_eq!(connection(&pair, 0), Connection::StandAlone);
    let nothing = |pair: &mut Pair, node: usize, command: Command, why: &str| {
        let (id, _) = pair.order(node, command);
        pair.pump();
        let expected = Ok(Reply::Nothing(why.to_owned()));
        assert_eq!(pair.answer(node, id), Some(&expected));
    };
    let already = "the peer is disconnected already";
    nothing(&mut pair, 0, Command::Disconnect, already);
    pair.done(0, Command::Connect);
    assert_eq!(connection(&pair, 0), Connection::Connecting);
    let mut pair = copying();
    assert_eq!(connection(&pair, 1), Connection::Connected);
    let already = "the peer is connected already";
    nothing(&mut pair, 1, Command::Connect, already);
    assert_eq!(pair.stand(1), "Bt", "it goes on");
}

/// A reload is taken over, and asks for what it may change.
#[test]
fn settings_are_taken_over() {
    use kagami_replicator::core::Settings;
    use kagami_replicator::core::state::Solo;
    let mut pair = primary();
    let asked = pair.sides[0].asked;
    let told = |pair: &mut Pair, ack_timeout_ms| {
        let settings = Settings {
            solo: Solo::Arbiter,
            ack_timeout_ms,
            ..Settings::default()
        };
        pair.done(0, Command::Set(settings.clone()));
        assert_eq!(pair.sides[0].mirror.settings(), &settings);
    };
    told(&mut pair, 3_000);
    assert!(pair.sides[0].asked > asked, "it may be another arbiter");
    pair.sides[1].hold.writes = true;
    let (id, _) = pair.request(0, write(9));
    pair.elapse(2_900);
    assert_eq!(pair.reply(0, id), None);
    pair.elapse(TIMEOUT + 1_000);
    assert_eq!(
        pair.reply(0, id),
        Some(&Ok(Bytes::new())),
        "by the new time-out"
    );
}
