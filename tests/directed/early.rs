//! What the protocols A and B answer early (docs/protocol.md §2), and what becomes of a write that nobody is known to
//! have: it is sent again, or known to be missing.

use bytes::Bytes;
use kagami_replicator::core::event::Request;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::{Protocol, RequestId, Solo, Time};
use kagami_replicator::core::{DiskFault, DiskOp, IoError, Settings};

use super::pair::{Hold, MS, PROMOTE, Pair, write};
use super::stands::{carried, cut, guest, primary};

const BLOCK: u32 = 4096;

fn with(protocol: Protocol) -> Settings {
    Settings {
        solo: Solo::Arbiter,
        protocol,
        ..Settings::default()
    }
}

/// In sync, node 0 Primary.
fn primary_of(protocol: Protocol) -> Pair {
    let mut pair = Pair::with(&with(protocol));
    pair.elapse(500);
    pair.done(0, PROMOTE);
    pair.write(0, 3);
    pair.elapse(2_500);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    pair
}

fn forced_through(block: u64) -> Request {
    Request::Write {
        offset: block * 4096,
        data: Bytes::from(vec![block as u8 + 1; 4096]),
        fua: true,
    }
}

fn is_written(pair: &Pair, node: usize, id: RequestId) -> bool {
    pair.reply(node, id) == Some(&Ok(Bytes::new()))
}

/// The writes that a node's disk has not ended.
fn disk_writes(pair: &Pair, node: usize) -> usize {
    let ops = pair.sides[node].disk.iter();
    ops.filter(|(_, op)| matches!(op, DiskOp::Write { .. }))
        .count()
}

/// The `early` of each write on its way to a node.
fn asked_early(pair: &Pair, node: usize) -> Vec<bool> {
    let messages = pair.sides[node].messages.iter();
    messages
        .filter_map(|(_, message)| match message {
            Message::Write { early, .. } => Some(*early),
            _ => None,
        })
        .collect()
}

#[test]
fn a_write_is_answered_when_its_protocol_says_so() {
    // Whether it is answered on the local disk, in the peer's memory, on its disk; with and without fua.
    let rows = [
        (Protocol::A, false, [true, true, true]),
        (Protocol::B, false, [false, true, true]),
        (Protocol::C, false, [false, false, true]),
        (Protocol::A, true, [false, false, true]),
        (Protocol::B, true, [false, false, true]),
    ];
    for (protocol, fua, [here, received, there]) in rows {
        let mut pair = primary_of(protocol);
        let before = pair.sides[0].mirror.status(Time(pair.now)).counters;
        pair.sides[1].hold.messages = true;
        pair.sides[1].hold.writes = true;
        let request = if fua { forced_through(9) } else { write(9) };
        let (id, _) = pair.request(0, request);
        pair.pump();
        assert_eq!(asked_early(&pair, 1), [protocol == Protocol::B && !fua]);
        assert_eq!(is_written(&pair, 0, id), here, "{protocol:?} {fua}: here");
        pair.sides[1].hold.messages = false;
        pair.pump();
        let is = is_written(&pair, 0, id);
        assert_eq!(is, received, "{protocol:?} {fua}: in memory");
        pair.sides[1].hold.writes = false;
        pair.pump();
        assert_eq!(is_written(&pair, 0, id), there, "{protocol:?} {fua}");
        let after = pair.sides[0].mirror.status(Time(pair.now)).counters;
        assert_eq!(after.replicated_bytes - before.replicated_bytes, 4096);
    }
}

/// Nothing of a guest's is answered before its source has it.
#[test]
fn a_guest_answers_nothing_early() {
    let mut pair = guest();
    for node in [0, 1] {
        pair.done(
            node,
            kagami_replicator::core::Command::Set(with(Protocol::B)),
        );
    }
    pair.sides[0].hold.messages = true;
    pair.sides[0].hold.writes = true;
    let (id, _) = pair.request(1, write(9));
    pair.pump();
    assert_eq!(asked_early(&pair, 0), [false]);
    pair.sides[0].hold.messages = false;
    pair.pump();
    assert!(!is_written(&pair, 1, id));
    pair.sides[0].hold.writes = false;
    pair.pump();
    assert!(is_written(&pair, 1, id));
}

/// A write that only the peer could have is sent again once it answers for this node again.
#[test]
fn what_only_the_peer_could_have_is_sent_again() {
    for (build, node) in [(carried as fn() -> Pair, 0), (guest, 1)] {
        let mut pair = build();
        let other = 1 - node;
        pair.sides[other].hold.messages = true;
        let (id, _) = pair.request(node, write(9));
        pair.pump();
        pair.cut();
        pair.pump();
        assert!(!is_written(&pair, node, id));
        // (What a guest may lack is copied first.)
        pair.sides[other].hold = Hold::default();
        pair.linked = true;
        pair.elapse(3_000);
        assert!(is_written(&pair, node, id), "node {node}");
        let there = pair.content(other, 9 * 4096, BLOCK);
        assert_eq!(there, [10; 4096][..], "node {node}");
    }
}

/// So is one that was answered early, before the disk failed that had it.
#[test]
fn what_was_answered_early_is_sent_again_without_a_disk() {
    let mut pair = primary_of(Protocol::A);
    pair.sides[1].hold.messages = true;
    pair.write(0, 9);
    pair.sides[0].hold.writes = true;
    pair.request(0, write(10));
    fail_disk(&mut pair);
    pair.cut();
    pair.pump();
    pair.sides[1].hold.messages = false;
    pair.linked = true;
    pair.elapse(3_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Dv", "Sv"]);
    assert_eq!(pair.content(1, 9 * 4096, BLOCK), [10; 4096][..]);
}

/// Node 0's disk does not carry out the write that it has.
fn fail_disk(pair: &mut Pair) {
    let mut ops = pair.sides[0].disk.iter();
    let at = ops.position(|(_, op)| matches!(op, DiskOp::Write { .. }));
    pair.end_disk(0, at.expect("a write"), Err(DiskFault::Io(5)));
    pair.sides[0].hold.writes = false;
    pair.pump();
}

/// A write that was answered and is on no disk but one that fails then: the peer's copy is an older one, and answers
/// nothing for this node. One that was not answered is no such loss.
#[test]
fn a_peer_that_lacks_what_was_answered_carries_nobody() {
    for (protocol, lacks) in [(Protocol::A, true), (Protocol::C, false)] {
        let mut pair = primary_of(protocol);
        pair.sides[0].hold.asks = true;
        pair.sides[1].hold.messages = true;
        let (wrote, _) = pair.request(0, write(9));
        pair.pump();
        assert_eq!(is_written(&pair, 0, wrote), lacks);
        pair.sides[0].hold.writes = true;
        pair.request(0, write(10));
        pair.cut();
        pair.pump();
        fail_disk(&mut pair);
        pair.sides[1].hold.messages = false;
        pair.linked = true;
        pair.elapse(3_000);
        let (read, _) = pair.request(
            0,
            Request::Read {
                offset: 0,
                len: BLOCK,
            },
        );
        pair.pump();
        let answer = pair.reply(0, read);
        if lacks {
            assert_eq!(answer, Some(&Err(IoError::Io)));
        } else {
            assert!(matches!(answer, Some(Ok(_))), "{answer:?}");
        }
    }
}

/// In sync the local disk has it: it is answered once this copy may go on alone, and not written again.
#[test]
fn what_this_disk_has_is_not_written_again() {
    let mut pair = primary();
    pair.sides[0].hold = Hold {
        asks: true,
        ..Hold::default()
    };
    pair.sides[1].hold.messages = true;
    let (id, _) = pair.request(0, write(9));
    pair.pump();
    let mut pair = cut(pair);
    pair.sides[0].hold.writes = true;
    assert!(!is_written(&pair, 0, id), "nobody has said that it may");
    pair.sides[0].hold.asks = false;
    pair.elapse(100);
    assert!(is_written(&pair, 0, id));
    assert_eq!(disk_writes(&pair, 0), 0);
}

/// What a source sent is on its way to its guest's disk when the guest is forced to go on by its own copy: a write there
/// lands after it.
#[test]
fn who_is_forced_writes_after_what_its_source_sent() {
    let mut pair = guest();
    pair.sides[1].hold.writes = true;
    let (first, _) = pair.request(1, write(9));
    pair.pump();
    assert!(is_written(&pair, 1, first), "its source has it");
    assert_eq!(disk_writes(&pair, 1), 1, "which sent it back");
    pair.cut();
    pair.done(1, super::pair::FORCE);
    let newer = Bytes::from(vec![0xaa; 4096]);
    let (second, _) = pair.request(
        1,
        Request::Write {
            offset: 9 * 4096,
            data: newer.clone(),
            fua: false,
        },
    );
    let (beside, _) = pair.request(1, write(11));
    pair.pump();
    assert_eq!(disk_writes(&pair, 1), 2, "what is beside it need not wait");
    pair.sides[1].hold.writes = false;
    pair.pump();
    for id in [second, beside] {
        assert!(is_written(&pair, 1, id));
    }
    assert_eq!(pair.content(1, 9 * 4096, BLOCK), newer);
    pair.write(1, 9);
}

/// Requests that wait for an extent or for each other are failed with the role, and nothing of them comes later.
#[test]
fn what_waits_when_a_role_ends_is_over() {
    let force = kagami_replicator::core::Command::Demote { force: true };
    for waits_for_an_extent in [true, false] {
        let mut pair = super::stands::alone();
        let block = if waits_for_an_extent { 3_000 } else { 9 };
        pair.sides[0].hold.metadata = waits_for_an_extent;
        pair.sides[0].hold.writes = true;
        let ids = [0, 1, 2].map(|_| pair.request(0, write(block)).0);
        pair.pump();
        assert_eq!(disk_writes(&pair, 0), usize::from(!waits_for_an_extent));
        pair.order(0, force.clone());
        pair.sides[0].hold = Hold::default();
        pair.pump();
        for id in ids {
            assert!(pair.reply(0, id).is_some());
        }
        pair.order(0, PROMOTE);
        pair.elapse(5_000);
        pair.write(0, block);
        pair.write(0, block + 1);
    }
}

/// What a write took, from its arrival to its answer, is counted; not what a read took, nor a write that failed.
#[test]
fn the_time_of_writes_is_counted() {
    let mut pair = super::stands::alone();
    let took = |pair: &Pair| {
        pair.sides[0]
            .mirror
            .status(Time(pair.now))
            .counters
            .write_ns
    };
    let before = took(&pair);
    let slowly = |pair: &mut Pair, request: Request, result: Result<(), DiskFault>| {
        pair.sides[0].hold.reads = true;
        pair.sides[0].hold.writes = true;
        let (id, _) = pair.request(0, request);
        pair.elapse(5);
        pair.end_disk(0, 0, result);
        assert!(pair.reply(0, id).is_some());
    };
    slowly(&mut pair, write(9), Ok(()));
    assert_eq!(took(&pair) - before, 5 * MS);
    let read = Request::Read {
        offset: 0,
        len: BLOCK,
    };
    slowly(&mut pair, read, Ok(()));
    slowly(&mut pair, write(9), Err(DiskFault::NoSpace));
    assert_eq!(took(&pair) - before, 5 * MS);
    slowly(&mut pair, write(9), Ok(()));
    assert_eq!(took(&pair) - before, 10 * MS);
}

/// So is one that waits for another one, whose end then wakes nothing.
#[test]
fn what_waits_for_another_write_is_over_with_the_role() {
    let mut pair = primary();
    pair.sides[0].hold.asks = true;
    pair.sides[0].hold.writes = true;
    pair.sides[1].hold.messages = true;
    let ids = [0, 1].map(|_| pair.request(0, write(9)).0);
    pair.pump();
    pair.cut();
    pair.order(0, kagami_replicator::core::Command::Demote { force: true });
    for id in ids {
        assert_eq!(pair.reply(0, id), Some(&Err(IoError::NotPrimary)));
    }
    pair.sides[0].hold = Hold::default();
    pair.pump();
    pair.sides[1].hold.messages = false;
    pair.linked = true;
    pair.elapse(5_000);
    pair.done(0, PROMOTE);
    pair.write(0, 9);
}
