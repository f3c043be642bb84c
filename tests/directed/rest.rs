//! What every story ends with: no fault any more, an operator says what is left to say, and the pair comes to rest.

use std::collections::BTreeSet;

use kagami_replicator::core::event::From;
use kagami_replicator::core::state::{Connection, DiskState, NodeId, Solo};
use kagami_replicator::core::{Command, Role, Time};

use super::pair::{Hold, Pair};

/// Everything goes on until nothing more happens. Two copies that can be are in sync then, and equal, and the arbiter
/// names both; whoever asked something was answered.
pub fn come_to_rest(pair: &mut Pair) {
    for side in &mut pair.sides {
        side.hold = Hold::default();
        side.kept = None;
    }
    pair.linked = true;
    let mut stays = [false; 2];
    for node in [0, 1] {
        let (id, _) = pair.order(node, Command::Connect);
        stays[node] = pair.answer(node, id).is_some_and(Result::is_ok);
    }
    pair.elapse(35_000);
    let whole = |node: usize| {
        let mirror = &pair.sides[node].mirror;
        let gone = matches!(mirror.disk_state(), DiskState::Failed | DiskState::Diskless);
        stays[node] && !gone && mirror.peer() == NodeId(2 - node as u64)
    };
    if !(whole(0) && whole(1)) {
        assert_no_two_write(pair);
        // A Primary without permission may hold what it is asked.
        for node in [0, 1] {
            let open = pair.open.iter().filter(|(of, _)| *of == node);
            if pair.sides[node].mirror.role() == Role::Secondary && stays[node] {
                assert_eq!(
                    open.count(),
                    0,
                    "node {node} owes an answer: {:?}",
                    pair.open
                );
            }
        }
        return;
    }
    if !is_in_sync(pair) {
        choose(pair);
        pair.elapse(35_000);
    }
    assert!(
        is_in_sync(pair),
        "{:?}, {:?}",
        [pair.stand(0), pair.stand(1)],
        pair.sides[0].mirror.status(Time(pair.now)).verdict
    );
    assert!(pair.is_equal(), "in sync, and not equal");
    // (What a verification found waits for a word.)
    let mirrors = pair.sides.iter().map(|side| &side.mirror);
    let mut marked = mirrors.filter(|mirror| mirror.dirty().count() > 0);
    assert!(
        marked.all(|mirror| mirror.record().verify_found),
        "in sync, and marked"
    );
    assert_eq!(pair.open, BTreeSet::new(), "answers are owed");
    assert_no_two_write(pair);
    let mut mirrors = pair.sides.iter().map(|side| &side.mirror);
    if !mirrors.all(|mirror| mirror.settings().solo == Solo::Arbiter) {
        return;
    }
    let named = pair.arbiter.register().map(|r| r.copies.len());
    assert_eq!(named, Some(2), "the arbiter names both");
}

fn is_in_sync(pair: &Pair) -> bool {
    [0, 1].iter().all(|node| pair.stand(*node).ends_with('i'))
}

/// An operator says whose data stay: the Primary's, the good copy's.
fn choose(pair: &mut Pair) {
    let refused = |node: &usize| {
        let status = pair.sides[*node].mirror.status(Time(pair.now));
        status.connection == Connection::StandAlone
    };
    let stands = [pair.stand(0), pair.stand(1)];
    assert!([0, 1].iter().any(refused), "no word is missing: {stands:?}");
    let worth = |node: &usize| {
        (
            stands[*node].starts_with('P'),
            stands[*node].starts_with('S'),
            1 - node,
        )
    };
    let stays = [0, 1].into_iter().max_by_key(worth).unwrap_or_default();
    let goes = 1 - stays;
    pair.order(goes, Command::Demote { force: true });
    // An earlier word may have been refused there.
    pair.order(goes, Command::Connect);
    pair.pump();
    let from = Some(From::Local);
    pair.order(stays, Command::Resync { from, full: false });
}

/// *One-writer*: one of both at most is Primary by more than an operator's word at each.
fn assert_no_two_write(pair: &Pair) {
    let in_session =
        pair.sides[0].session.is_some() && pair.sides[0].session == pair.sides[1].session;
    let primaries = [0, 1].map(|node| pair.sides[node].mirror.role() == Role::Primary);
    assert!(
        !in_session || primaries != [true, true],
        "two Primaries in one session"
    );
}
