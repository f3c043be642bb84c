//! A session's end: how long a node waits before the next one, and what a Primary's standing rests on meanwhile.

use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::{Connection, Time};
use kagami_replicator::core::status::Standing;
use kagami_replicator::core::{Command, Status};

use super::pair::{MS, Pair, write};
use super::stands::{alone, cut, in_sync, primary};
use super::ways::say;

/// The time-out, ms.
const TIMEOUT: u64 = 2_000;

fn status(pair: &Pair, node: usize) -> Status {
    pair.sides[node].mirror.status(Time(pair.now))
}

/// How long a node waits until it looks for its peer, ms.
fn waits(pair: &Pair, node: usize) -> u64 {
    let from = pair.sides[node].wants.expect("it looks for its peer");
    (from.0 - pair.now) / MS
}

#[test]
fn who_is_refused_again_and_again_waits_longer_and_no_longer_than_ten_seconds() {
    let mut pair = in_sync();
    pair.linked = false;
    let mut waited = Vec::new();
    for _ in 0..10 {
        say(&mut pair, 0, Message::PromoteGrant);
        waited.push(waits(&pair, 0));
        pair.now += waits(&pair, 0) * MS;
        pair.meet_at(0);
    }
    let expected = [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000];
    assert_eq!(waited[..7], expected);
    assert_eq!(waited[9], 10_000);
    // A fault is no verdict: it is trying.
    assert_eq!(status(&pair, 0).connection, Connection::Connecting);
    pair.done(0, Command::Connect);
    pair.cut();
    assert_eq!(waits(&pair, 0), 0, "an operator's word ends the wait");
}

#[test]
fn who_was_not_answered_waits_before_the_next_session() {
    let mut pair = primary();
    pair.linked = false;
    pair.sides[1].hold.writes = true;
    pair.request(0, write(9));
    let session = pair.sides[0].session;
    let end = pair.now + 11_000 * MS;
    while pair.sides[0].session == session {
        assert!(pair.now < end);
        if !pair.step() {
            pair.tick(end);
        }
    }
    assert_eq!(waits(&pair, 0), 500);
}

#[test]
fn a_session_that_ends_well_is_sought_again_at_once() {
    assert_eq!(waits(&cut(primary()), 0), 0);
}

/// docs/protocol.md §8.
#[test]
fn a_primary_in_a_session_stands_on_its_lease() {
    let mut pair = primary();
    let mut before = None;
    for _ in 0..8 {
        pair.elapse(TIMEOUT / 8);
        let Standing::Session { until } = status(&pair, 0).standing else {
            panic!("{:?}", status(&pair, 0).standing)
        };
        assert!(until > Time(pair.now), "an echo has come");
        assert!(until <= Time(pair.now + TIMEOUT * MS));
        assert!(before < Some(until), "each echo moves it");
        before = Some(until);
    }
    assert_eq!(status(&pair, 1).standing, Standing::Secondary);
    assert_eq!(status(&alone(), 0).standing, Standing::Alone);
}
