//! What a peer may ask for and say, at the edges: a rule that it breaks ends the session, and nothing of it is done.

use bytes::Bytes;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::{DiskState, Role, Seq, Solo, Time};
use kagami_replicator::core::{Command, DiskOp, Notice, PEER_READ, Request, Settings};

use super::pair::{PROMOTE, Pair, SIZE, start};
use super::stands::{copying, in_sync, primary};
use super::ways::say;

/// The longest write that a peer takes, bytes.
const LONGEST: u64 = 64 << 20;

fn broke_a_rule(pair: &Pair, node: usize) -> bool {
    let mut notices = pair.sides[node].notices.iter();
    notices.any(|notice| matches!(notice, Notice::PeerFault { .. }))
}

/// A pair of mirrors of so many bytes, in sync, node 0 Primary.
fn large(size: u64) -> Pair {
    let settings = Settings {
        solo: Solo::Arbiter,
        ..Settings::default()
    };
    let mut pair = Pair::of([0, 1].map(|node| start(node, &settings, size)));
    pair.elapse(500);
    pair.done(0, PROMOTE);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
    pair
}

#[test]
fn a_write_is_of_whole_blocks_in_the_mirror_and_not_too_long() {
    let size = 96 << 20;
    let rows = [
        (0, LONGEST, true),
        (size - LONGEST, LONGEST, true),
        (0, LONGEST + 4096, false),
        (0, size, false),
        (0, 0, false),
        (size - 4096, 4096, true),
        (size - 4096, 8192, false),
        (size, 4096, false),
        (0, 512, false),
    ];
    for (offset, len, taken) in rows {
        let mut pair = large(size);
        pair.sides[1].hold.writes = true;
        let zero = Message::Zero {
            seq: Seq(1),
            offset,
            len,
            unmap: false,
            fua: false,
        };
        say(&mut pair, 1, zero);
        assert_eq!(broke_a_rule(&pair, 1), !taken, "{offset}+{len}");
        assert_eq!(pair.sides[1].disk.len(), usize::from(taken));
    }
}

#[test]
fn a_read_is_of_a_megabyte_at_most_and_answered_by_a_good_copy() {
    let read = |len: u64| Message::Read {
        id: 1,
        offset: 0,
        len: len as u32,
    };
    let asked = |pair: &Pair, node: usize, len: u64| {
        let mut ops = pair.sides[node].disk.iter();
        ops.any(|(_, op)| matches!(op, DiskOp::Read { len: of, .. } if u64::from(*of) == len))
    };
    for (len, taken) in [
        (4096, true),
        (PEER_READ, true),
        (PEER_READ + 4096, false),
        (SIZE, false),
    ] {
        let mut pair = primary();
        pair.sides[1].hold.reads = true;
        say(&mut pair, 1, read(len));
        assert_eq!(broke_a_rule(&pair, 1), !taken, "{len}");
        assert_eq!(asked(&pair, 1, len), taken);
    }
    let mut pair = copying();
    pair.sides[0].hold.messages = true;
    say(&mut pair, 1, read(4096));
    assert!(pair.sides[1].disk.is_empty(), "its copy is a mix");
    let answer = pair.sides[0].messages.back();
    let refused = matches!(answer, Some((_, Message::ReadReply { result: Err(_), .. })));
    assert!(refused, "{answer:?}");
}

/// `fua` reaches the peer's disk where it was asked for, and blocks applied are counted.
#[test]
fn what_is_applied_is_written_through_if_that_was_asked() {
    for fua in [false, true] {
        let mut pair = primary();
        let applied = |pair: &Pair| {
            pair.sides[1]
                .mirror
                .status(Time(pair.now))
                .counters
                .applied_blocks
        };
        let before = applied(&pair);
        pair.sides[1].hold.writes = true;
        pair.request(
            0,
            Request::Write {
                offset: 0,
                data: Bytes::from(vec![7; 3 * 4096]),
                fua,
            },
        );
        pair.pump();
        let mut ops = pair.sides[1].disk.iter();
        assert!(
            ops.any(|(_, op)| matches!(op, DiskOp::Write { fua: of, .. } if *of == fua)),
            "{fua}"
        );
        assert_eq!(applied(&pair) - before, 3);
    }
}

/// A grant holds until whoever it was given to was Primary, whatever it says of itself before.
#[test]
fn what_was_granted_is_not_taken_by_the_one_who_gave_it() {
    let mut pair = in_sync();
    pair.sides[0].hold.metadata = true;
    let (theirs, _) = pair.order(0, PROMOTE);
    pair.pump();
    let state = Message::State {
        role: Role::Secondary,
        disk: DiskState::UpToDate,
    };
    say(&mut pair, 1, state);
    let (mine, _) = pair.order(1, PROMOTE);
    let Some(Err(why)) = pair.answer(1, mine) else {
        panic!("{:?}", pair.answer(1, mine))
    };
    assert_eq!(why.what, "not promoted: the peer is Primary");
    let (verify, _) = pair.order(1, Command::Verify { repair: false });
    let Some(Err(why)) = pair.answer(1, verify) else {
        panic!("{:?}", pair.answer(1, verify))
    };
    assert_eq!(why.what, "not verified: the other node is Primary");
    pair.sides[0].hold.metadata = false;
    pair.pump();
    assert!(matches!(pair.answer(0, theirs), Some(Ok(_))));
}

/// A source that says so before the target has adopted anything breaks a rule.
#[test]
fn in_sync_is_said_to_a_copy_that_has_adopted() {
    let mut pair = copying();
    pair.sides[0].hold.reads = false;
    while pair.sides[0].mirror.dirty().count() > 0 {
        assert!(pair.step());
    }
    pair.sides[1].hold.metadata = true;
    pair.pump();
    assert!(!pair.sides[1].metadata.is_empty(), "it adopts");
    say(&mut pair, 1, Message::Settled);
    assert!(broke_a_rule(&pair, 1));
    assert_eq!(pair.sides[1].session, None);
}

/// How far a verification is; one that repairs and finds nothing leaves the session as it is.
#[test]
fn a_verification_tells_how_far_it_is() {
    let mut pair = primary();
    let before = pair.sides[0].session;
    pair.sides[1].hold.reads = true;
    let (id, _) = pair.order(0, Command::Verify { repair: true });
    pair.pump();
    let progress = |pair: &Pair| pair.sides[0].mirror.status(Time(pair.now)).progress;
    let now = progress(&pair).expect("it runs");
    assert_eq!((now.total_blocks, now.done_blocks), (SIZE / 4096, 0));
    let paused = now.paused_here || now.paused_there;
    assert_eq!((now.since, paused), (Time(pair.now), false));
    pair.end_disk(1, 0, Ok(()));
    pair.pump();
    assert_eq!(progress(&pair).expect("it runs").done_blocks, 256);
    pair.sides[1].hold.reads = false;
    pair.pump();
    assert!(matches!(pair.answer(0, id), Some(Ok(_))));
    assert_eq!(progress(&pair), None);
    assert_eq!(pair.sides[0].session, before);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pi", "Si"]);
}
