//! Two nodes meet (docs/protocol.md §6): what a node says of itself, what it takes from the other one before the session
//! is up, what a verdict has it record, and what it does about a refusal.

use bytes::Bytes;
use kagami_bitmap::{Block, Run};
use kagami_replicator::core::decide::{Refused, Row, Strategy};
use kagami_replicator::core::event::From;
use kagami_replicator::core::message::{Hello, Message};
use kagami_replicator::core::settings::BothStalePolicy;
use kagami_replicator::core::state::{Connection, DiskState, NodeId, SessionId, Solo, Time};
use kagami_replicator::core::{Action, Command, DiskOp, Event, Notice, Role, Settings, Status};

use super::cells::hello;
use super::pair::{DEMOTE, Effects, MS, PROMOTE, Pair, SIZE, start};
use super::stands::{alone, carried, cut, in_sync, primary};
use super::ways::say;

/// How the pair is, the node that meets, what its peer says that is not so, and what is known of the peer then.
type Peer = (fn() -> Pair, usize, fn(&mut Hello), Role, DiskState);

/// Longer than every pause after a refusal, ms.
const LONG: u64 = 15_000;

fn said(effects: &Effects) -> Vec<Message> {
    let sent = effects.iter().filter_map(|action| match action {
        Action::Send { message, .. } => Some(message.clone()),
        _ => None,
    });
    sent.collect()
}

/// A session with a peer that says what the test says. The node's own hello.
pub fn greet(pair: &mut Pair, node: usize) -> Hello {
    pair.linked = false;
    let session = SessionId(1_000);
    pair.sides[node].session = Some(session);
    let version = 2;
    let effects = pair.handle(node, Event::LinkUp { session, version });
    let hello = said(&effects)
        .into_iter()
        .find_map(|message| match message {
            Message::Hello(hello) => Some(*hello),
            _ => None,
        });
    hello.expect("a hello")
}

/// The node meets the other one of the pair, as far as the verdict's record.
pub fn meet(pair: &mut Pair, node: usize, change: impl FnOnce(&mut Hello)) {
    let mut theirs = hello(&pair.sides[1 - node].mirror);
    greet(pair, node);
    change(&mut theirs);
    say(pair, node, Message::Hello(Box::new(theirs)));
    pair.pump();
}

fn status(pair: &Pair, node: usize) -> Status {
    pair.sides[node].mirror.status(Time(pair.now))
}

/// The peer broke a rule, and the session is over.
fn is_fault(pair: &Pair, node: usize) -> bool {
    let mut notices = pair.sides[node].notices.iter();
    let told = notices.any(|notice| matches!(notice, Notice::PeerFault { .. }));
    assert_eq!(told, pair.sides[node].session.is_none());
    told
}

/// The rows that a node told of.
fn verdicts(pair: &Pair, node: usize) -> Vec<Row> {
    let notices = pair.sides[node].notices.iter();
    let rows = notices.filter_map(|notice| match notice {
        Notice::Verdict { verdict, .. } => Some(verdict.row),
        _ => None,
    });
    rows.collect()
}

/// Both have gone on alone, and are Secondary.
fn forked(settings: &Settings) -> Pair {
    let mut pair = Pair::with(settings);
    pair.pump();
    pair.done(0, PROMOTE);
    pair.write(0, 3);
    pair.elapse(2_500);
    let mut pair = cut(pair);
    pair.write(0, 5);
    pair.done(0, DEMOTE);
    pair.order(1, PROMOTE);
    pair.elapse(5_000);
    pair.write(1, 6);
    pair.done(1, DEMOTE);
    pair
}

fn always() -> Settings {
    Settings {
        solo: Solo::Always,
        ..Settings::default()
    }
}

/// Neither copy is good, and they differ.
fn both_stale(settings: &Settings) -> Pair {
    let mut pair = Pair::with(settings);
    pair.pump();
    pair.elapse(500);
    let mut pair = cut(pair);
    for node in [0, 1] {
        pair.done(node, Command::Invalidate);
    }
    pair.rot(1, 7);
    pair
}

fn link(pair: &mut Pair) {
    pair.linked = true;
    pair.elapse(LONG);
}

// What it says of itself.

#[test]
fn a_hello_says_whether_a_write_may_have_been_lost_since_both_were_in_sync() {
    assert!(!greet(&mut Pair::new(), 0).unbroken, "they never were");
    assert!(greet(&mut cut(primary()), 0).unbroken);
    let mut pair = cut(in_sync());
    pair.restart(0);
    assert!(
        !greet(&mut pair, 0).unbroken,
        "its machine may have crashed"
    );
}

#[test]
fn a_hello_has_its_operators_word() {
    for full in [false, true] {
        for (from, keep) in [(From::Local, 1), (From::Peer, 2)] {
            let mut pair = cut(in_sync());
            let from = Some(from);
            pair.done(0, Command::Resync { from, full });
            let hello = greet(&mut pair, 0);
            assert_eq!((hello.keep, hello.full), (Some(NodeId(keep)), full));
        }
    }
}

#[test]
fn few_marks_are_one_message() {
    let mut pair = alone();
    let theirs = hello(&pair.sides[1].mirror);
    greet(&mut pair, 0);
    let (session, message) = (SessionId(1_000), Message::Hello(Box::new(theirs)));
    let effects = pair.handle(0, Event::Message { session, message });
    let marks: Vec<_> = said(&effects)
        .into_iter()
        .filter(|message| matches!(message, Message::Marks { .. }))
        .collect();
    let runs = pair.sides[0].mirror.dirty().runs().collect::<Vec<_>>();
    assert!(runs.len() > 1);
    assert_eq!(marks, [Message::Marks { runs, last: true }]);
}

/// A message has room for 4,096 runs.
#[test]
fn many_marks_are_several_messages() {
    const MOST: u64 = 4_096;
    let mut pair = Pair::of([0, 1].map(|node| start(node, &always(), 8 * SIZE)));
    pair.pump();
    pair.elapse(500);
    pair.done(0, PROMOTE);
    pair.cut();
    pair.write(0, 1);
    meet(&mut pair, 1, |_| {});
    let odd = |from: u64| (from..from + MOST / 2).map(|nth| Run::new(Block(2 * nth + 1), 1));
    for (from, last) in [(0, false), (MOST / 2, false), (MOST, true)] {
        let runs = odd(from).collect();
        say(&mut pair, 1, Message::Marks { runs, last });
    }
    assert!(!is_fault(&pair, 1));
    pair.cut();
    let theirs = hello(&pair.sides[0].mirror);
    greet(&mut pair, 1);
    let (session, message) = (SessionId(1_000), Message::Hello(Box::new(theirs)));
    let effects = pair.handle(1, Event::Message { session, message });
    let mut count = 0;
    let marks = said(&effects)
        .into_iter()
        .filter_map(|message| match message {
            Message::Marks { runs, last } => Some((runs, last)),
            _ => None,
        });
    let lengths: Vec<_> = marks
        .inspect(|(runs, _)| count += runs.len())
        .map(|(runs, last)| (runs.len(), last))
        .collect();
    assert_eq!(lengths[0], (MOST as usize, false));
    assert_eq!(lengths.len(), 2);
    assert!(lengths[1].1);
    assert_eq!(count as u64, pair.sides[1].mirror.dirty().count());
}

// What it takes from the other one.

#[test]
fn who_says_hello_twice_breaks_a_rule() {
    let mut pair = cut(in_sync());
    meet(&mut pair, 0, |_| {});
    assert!(!is_fault(&pair, 0));
    let theirs = hello(&pair.sides[1].mirror);
    say(&mut pair, 0, Message::Hello(Box::new(theirs)));
    assert!(is_fault(&pair, 0));
}

#[test]
fn marks_are_of_blocks_that_are_there() {
    let blocks = SIZE / 4096;
    let rows = [
        (0, blocks, false),
        (blocks - 1, 1, false),
        (blocks - 1, 2, true),
        (blocks, 1, true),
        (0, 0, true),
    ];
    for (first, count, fault) in rows {
        let mut pair = alone();
        meet(&mut pair, 1, |_| {});
        let runs = vec![Run::new(Block(first), count)];
        let marks = Message::Marks { runs, last: true };
        say(&mut pair, 1, marks);
        assert_eq!(is_fault(&pair, 1), fault, "{count} from {first}");
        let marked = pair.sides[1].mirror.dirty().count();
        assert_eq!(marked, if fault { 0 } else { count });
    }
}

/// Data may overtake the last word before the session is up, and are carried out when it is; there is a bound to them.
#[test]
fn what_overtakes_the_ready_is_carried_out_after_it() {
    let mut pair = cut(in_sync());
    meet(&mut pair, 0, |theirs| theirs.role = Role::Primary);
    let write = Message::Write {
        seq: kagami_replicator::core::state::Seq(1),
        offset: 4096,
        data: Bytes::from(vec![7; 4096]),
        fua: false,
        early: false,
    };
    pair.sides[0].hold.writes = true;
    say(&mut pair, 0, write);
    pair.pump();
    assert!(pair.sides[0].disk.is_empty(), "the session is not up");
    say(&mut pair, 0, Message::Ready);
    pair.pump();
    let (_, op) = pair.sides[0].disk.front().expect("the write");
    assert!(matches!(op, DiskOp::Write { offset: 4096, .. }));
    assert_eq!(status(&pair, 0).connection, Connection::Connected);
}

#[test]
fn as_much_may_overtake_the_ready_as_is_bounded() {
    let read = |id| Message::Read {
        id,
        offset: 0,
        len: 4096,
    };
    let compare = |hashes: usize| Message::Compare {
        id: 1,
        offset: 0,
        hashes: vec![[0; 16]; hashes],
    };
    let reads: Vec<_> = (1..=4096).map(read).collect();
    let rows = [
        (reads, read(5000)),
        (vec![compare(65_536), read(1)], compare(1)),
        (vec![compare(40_000)], compare(40_000)),
        (vec![], compare(65_537)),
    ];
    for (enough, too_much) in rows {
        let mut pair = cut(in_sync());
        meet(&mut pair, 0, |_| {});
        for message in enough {
            say(&mut pair, 0, message);
        }
        assert!(!is_fault(&pair, 0));
        say(&mut pair, 0, too_much);
        assert!(is_fault(&pair, 0));
    }
}

/// What is known of the peer as soon as the session is up, before it says more.
#[test]
fn the_verdict_says_what_the_peer_is() {
    let stale = |theirs: &mut Hello| {
        theirs.role = Role::Primary;
        theirs.disk = kagami_bitmap::superblock::StoredDisk::Inconsistent;
    };
    let as_it_is = |_: &mut Hello| {};
    let primary_there = |theirs: &mut Hello| theirs.role = Role::Primary;
    let (updates, updated) = (DiskState::UpToDate, DiskState::Inconsistent);
    let rows: [Peer; 6] = [
        (alone, 0, as_it_is, Role::Secondary, updated),
        (alone, 1, as_it_is, Role::Primary, updates),
        (|| cut(in_sync()), 0, as_it_is, Role::Secondary, updates),
        (|| cut(in_sync()), 0, primary_there, Role::Primary, updates),
        // A target stays Primary where the source is not.
        (|| cut(in_sync()), 0, stale, Role::Primary, updated),
        (|| cut(primary()), 0, stale, Role::Secondary, updated),
    ];
    for (nth, (stand, node, change, role, disk)) in rows.into_iter().enumerate() {
        let mut pair = stand();
        meet(&mut pair, node, change);
        let marks = Message::Marks {
            runs: vec![],
            last: true,
        };
        if !matches!(verdict(&pair, node), Strategy::Nothing) {
            say(&mut pair, node, marks);
        }
        pair.pump();
        say(&mut pair, node, Message::Ready);
        let status = status(&pair, node);
        assert_eq!(status.connection, Connection::Connected, "row {nth}");
        assert_eq!(
            (status.peer_role, status.peer_disk),
            (Some(role), disk),
            "row {nth}"
        );
    }
}

fn verdict(pair: &Pair, node: usize) -> Strategy {
    status(pair, node).verdict.expect("a verdict").strategy
}

/// A Primary without a disk goes on through the peer's copy, unless that has been written by another one meanwhile.
#[test]
fn a_primary_without_a_disk_gives_way_to_one_that_was_primary_meanwhile() {
    for (meanwhile, stays) in [(false, Role::Primary), (true, Role::Secondary)] {
        let mut pair = cut(carried());
        meet(&mut pair, 0, |theirs| theirs.was_primary = meanwhile);
        assert_eq!(pair.sides[0].mirror.role(), stays);
        assert_eq!(pair.sides[0].session.is_some(), stays == Role::Primary);
    }
}

// What it records.

#[test]
fn copies_in_sync_have_the_boot_recorded_once() {
    for restarted in [[false, false], [true, false], [true, true]] {
        let mut pair = cut(in_sync());
        for node in [0, 1] {
            if restarted[node] {
                pair.restart(node);
            }
        }
        let before = [0, 1].map(|node: usize| pair.sides[node].mirror.record().boot);
        for side in &mut pair.sides {
            side.hold.metadata = true;
            side.hold.asks = true;
        }
        link(&mut pair);
        for node in [0, 1] {
            let writes = pair.sides[node].metadata.len();
            assert_eq!(writes, usize::from(restarted[node]), "{restarted:?} {node}");
            pair.sides[node].hold.metadata = false;
        }
        pair.pump();
        for node in [0, 1] {
            let now = pair.sides[node].mirror.record().boot;
            assert_eq!(now != before[node], restarted[node]);
            assert_eq!(pair.stand(node), "Si");
        }
    }
}

/// Else a crash would let the next meeting copy what is marked, of a bitmap that does not say all.
#[test]
fn who_is_to_copy_all_has_it_recorded() {
    for full in [false, true] {
        let mut pair = forked(&always());
        let from = Some(From::Local);
        pair.order(0, Command::Resync { from, full });
        pair.sides[0].hold.reads = true;
        pair.linked = true;
        assert_eq!(recorded_all(&mut pair), [full; 2]);
        assert_eq!([pair.stand(0), pair.stand(1)], ["Ss", "Bt"]);
        for side in &pair.sides {
            let count = side.mirror.dirty().count();
            assert_eq!(count == SIZE / 4096, full);
        }
        pair.sides[0].hold.reads = false;
        pair.elapse(LONG);
        assert!(pair.is_equal());
        for side in &pair.sides {
            assert!(!side.mirror.record().all_marked);
        }
    }
}

/// Until all happens that does so by itself: whose record has said meanwhile that all is marked?
pub fn recorded_all(pair: &mut Pair) -> [bool; 2] {
    let mut seen = [false; 2];
    let end = pair.now + 1_000 * MS;
    while pair.now < end {
        if !pair.step() {
            pair.tick(end);
        }
        for (seen, side) in seen.iter_mut().zip(&pair.sides) {
            *seen |= side.mirror.record().all_marked;
        }
    }
    seen
}

// What it does about a refusal.

#[test]
fn a_verdict_is_told_again_after_a_session_and_not_after_a_refusal() {
    let mut pair = forked(&always());
    let before = verdicts(&pair, 0).len();
    link(&mut pair);
    assert_eq!(verdicts(&pair, 0)[before..], [Row::Forked]);

    let mut pair = primary();
    for _ in 0..2 {
        pair.cut();
        link(&mut pair);
        let before = verdicts(&pair, 0).len();
        pair.cut();
        link(&mut pair);
        assert_eq!(verdicts(&pair, 0).len(), before + 1);
    }
}

/// The first one after a session that ended badly is another one.
#[test]
fn another_verdict_is_told_after_whatever_was_refused() {
    let mut pair = in_sync();
    let before = verdicts(&pair, 0).len();
    say(&mut pair, 0, Message::PromoteGrant);
    assert!(is_fault(&pair, 0));
    link(&mut pair);
    assert_eq!(verdicts(&pair, 0)[before..], [Row::SameClean]);
}

#[test]
fn a_split_brain_waits_for_a_word() {
    for policy in [
        BothStalePolicy::Wait,
        BothStalePolicy::PreferLocal,
        BothStalePolicy::PreferLastPrimary,
    ] {
        let mut pair = forked(&Settings {
            both_stale: policy,
            ..always()
        });
        // (Of two that prefer their own neither would have its way.)
        pair.done(1, Command::Set(always()));
        link(&mut pair);
        for node in [0, 1] {
            let refused = Strategy::Refuse(Refused::SplitBrain);
            assert_eq!(verdict(&pair, node), refused);
            assert_eq!(status(&pair, node).connection, Connection::StandAlone);
        }
        // An operator's word has it try again, whatever the last verdict was.
        pair.linked = false;
        pair.done(0, Command::Connect);
        assert_eq!(status(&pair, 0).connection, Connection::Connecting);
        pair.linked = true;
        let kept = pair.content(1, 0, 1 << 20);
        let (from, full) = (Some(From::Peer), false);
        pair.done(0, Command::Resync { from, full });
        pair.elapse(LONG);
        assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
        assert_eq!(pair.content(0, 0, 1 << 20), kept);
    }
}

#[test]
fn two_stale_copies_wait_for_a_word_and_the_kept_one_goes_on() {
    for keep in [0, 1] {
        for at in [0, 1] {
            let mut pair = both_stale(&always());
            link(&mut pair);
            for node in [0, 1] {
                let refused = Strategy::Refuse(Refused::BothStale);
                assert_eq!(verdict(&pair, node), refused);
                assert_eq!(
                    pair.sides[node].mirror.disk_state(),
                    DiskState::Inconsistent
                );
            }
            let kept = pair.content(keep, 0, 1 << 20);
            let from = Some(if at == keep { From::Local } else { From::Peer });
            pair.done(at, Command::Resync { from, full: true });
            pair.elapse(LONG);
            for node in [0, 1] {
                assert_eq!(pair.stand(node), "Si", "{keep} by a word at {at}");
                assert_eq!(pair.content(node, 0, 1 << 20), kept);
            }
        }
    }
}

#[test]
fn a_policy_may_choose_between_two_stale_copies() {
    let mut pair = both_stale(&always());
    pair.done(
        1,
        Command::Set(Settings {
            both_stale: BothStalePolicy::PreferLocal,
            ..always()
        }),
    );
    let kept = pair.content(1, 0, 1 << 20);
    pair.linked = true;
    let end = pair.now + LONG * MS;
    while pair.now < end {
        if !pair.step() {
            pair.tick(end);
        }
        for node in [0, 1] {
            assert_eq!(status(&pair, node).chosen, None, "no person has said so");
        }
    }
    for node in [0, 1] {
        assert_eq!(pair.stand(node), "Si");
        assert_eq!(pair.content(node, 0, 1 << 20), kept);
    }
}

/// Neither was written, and one is not known to read as zeroes.
#[test]
fn two_new_copies_that_may_differ_wait_for_a_word() {
    let mut pair = Pair::with(&always());
    pair.linked = false;
    // (That is for stale copies.)
    let both_stale = BothStalePolicy::PreferLocal;
    pair.done(
        1,
        Command::Set(Settings {
            both_stale,
            ..always()
        }),
    );
    pair.done(1, Command::Invalidate);
    pair.rot(1, 7);
    link(&mut pair);
    for node in [0, 1] {
        let refused = Strategy::Refuse(Refused::NameSource);
        assert_eq!(verdict(&pair, node), refused);
        assert_eq!(pair.sides[node].mirror.record().current, None);
    }
    let (from, full) = (Some(From::Peer), false);
    pair.done(1, Command::Resync { from, full });
    pair.elapse(LONG);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Si"]);
    assert!(pair.is_equal());
}
