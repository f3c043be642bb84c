//! Orders to promote that meet others: what replaces what, what waits, and what a grant is worth.

use kagami_bitmap::superblock::{Generation, StoredDisk};
use kagami_replicator::core::event::{From, Reply};
use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::{CommandId, NodeId, Solo, Time};
use kagami_replicator::core::{Command, DiskState, Notice, Role, Settings};

use super::pair::{DEMOTE, FORCE, PROMOTE, Pair, SIZE, start};
use super::stands::{alone, copying, copying_idle, cut, guest, in_sync, primary};
use super::ways::say;

fn refusal(pair: &Pair, node: usize, id: CommandId) -> &str {
    match pair.answer(node, id) {
        Some(Err(why)) => &why.what,
        other => panic!("{other:?}"),
    }
}

fn is_done(pair: &Pair, node: usize, id: CommandId) -> bool {
    matches!(pair.answer(node, id), Some(Ok(Reply::Done)))
}

fn broke_a_rule(pair: &Pair, node: usize) -> bool {
    let mut notices = pair.sides[node].notices.iter();
    notices.any(|notice| matches!(notice, Notice::PeerFault { .. }))
}

/// The peer granted, and that this node is Primary is not durable yet.
fn granted() -> (Pair, CommandId) {
    let mut pair = in_sync();
    pair.sides[0].hold.metadata = true;
    let (id, _) = pair.order(0, PROMOTE);
    pair.pump();
    assert_eq!((pair.answer(0, id), pair.stand(0)), (None, "Si"));
    (pair, id)
}

#[test]
fn a_primary_that_holds_its_requests_goes_on_by_a_word() {
    let held = || {
        let mut pair = primary();
        pair.sides[0].hold.asks = true;
        cut(pair)
    };
    for (build, node) in [(held as fn() -> Pair, 0), (|| cut(guest()), 1)] {
        let mut pair = build();
        let (id, _) = pair.order(node, FORCE);
        pair.pump();
        assert!(is_done(&pair, node, id), "{:?}", pair.answer(node, id));
        let status = pair.sides[node].mirror.status(Time(pair.now));
        assert_eq!(
            (status.role, status.alone_by),
            (Role::Primary, Some("force"))
        );
        pair.write(node, 9);
    }
}

#[test]
fn only_a_word_replaces_a_promotion_that_waits() {
    let waiting = || {
        let mut pair = cut(in_sync());
        pair.sides[0].hold.asks = true;
        let (id, _) = pair.order(0, PROMOTE);
        pair.pump();
        (pair, id)
    };
    let busy = "not promoted: a change of role is under way";
    let (mut pair, first) = waiting();
    let (second, _) = pair.order(0, PROMOTE);
    assert_eq!(refusal(&pair, 0, second), busy);
    assert_eq!(pair.answer(0, first), None);
    let (mut pair, first) = waiting();
    let (second, _) = pair.order(0, FORCE);
    pair.pump();
    let replaced = "not promoted: a forced promotion replaces it";
    assert_eq!(refusal(&pair, 0, first), replaced);
    assert!(is_done(&pair, 0, second));
    // One that the peer was asked about waits for nothing else.
    let mut pair = in_sync();
    pair.sides[1].hold.messages = true;
    let (first, _) = pair.order(0, PROMOTE);
    let (second, _) = pair.order(0, FORCE);
    assert_eq!(refusal(&pair, 0, second), busy);
    pair.sides[1].hold.messages = false;
    pair.pump();
    assert!(is_done(&pair, 0, first));
}

/// A target that has been offered its generation is no guest any more, and in sync in a moment.
#[test]
fn a_target_that_adopts_is_promoted_a_moment_later() {
    let mut pair = copying_idle();
    pair.sides[0].hold.reads = false;
    while pair.sides[0].mirror.dirty().count() > 0 {
        assert!(pair.step());
    }
    pair.sides[1].hold.metadata = true;
    pair.pump();
    assert_eq!(pair.stand(0), "Sf", "its generation is offered");
    let (id, _) = pair.order(1, PROMOTE);
    pair.pump();
    assert_eq!(pair.answer(1, id), None);
    pair.sides[1].hold.metadata = false;
    pair.pump();
    assert!(is_done(&pair, 1, id), "{:?}", pair.answer(1, id));
    assert_eq!([pair.stand(0), pair.stand(1)], ["Si", "Pi"]);
}

#[test]
fn what_was_granted_is_not_granted_or_refused_again() {
    let again = [
        Message::PromoteGrant,
        Message::PromoteRefuse { why: "no".into() },
    ];
    for message in again {
        let (mut pair, id) = granted();
        say(&mut pair, 0, message);
        assert!(broke_a_rule(&pair, 0));
        assert_eq!(pair.sides[0].session, None);
        assert_eq!(pair.answer(0, id), None, "it is asked for again");
    }
}

/// It is about to answer writes: its copy is overwritten by nobody's word. Before that it gives way.
#[test]
fn the_copy_of_whom_a_role_was_granted_stays() {
    let overwrite = Message::Resolve {
        keep: NodeId(2),
        full: false,
    };
    let (mut pair, _) = granted();
    say(&mut pair, 0, overwrite.clone());
    assert!(broke_a_rule(&pair, 0));
    let mut pair = in_sync();
    pair.sides[1].hold.messages = true;
    pair.order(0, PROMOTE);
    say(&mut pair, 0, overwrite);
    assert!(!broke_a_rule(&pair, 0));
    pair.sides[1].hold.messages = false;
    pair.elapse(5_000);
    let verdicts = pair.sides[0].notices.iter();
    let resynced = verdicts.filter(|n| matches!(n, Notice::Verdict { .. }));
    assert_eq!(resynced.count(), 2, "the next session made it the target");
}

/// A grant is worth as long as its session.
#[test]
fn a_grant_ends_with_its_session() {
    let (mut pair, id) = granted();
    pair.sides[0].hold.asks = true;
    pair.cut();
    pair.sides[0].hold.metadata = false;
    pair.pump();
    assert_eq!(pair.sides[0].mirror.role(), Role::Secondary);
    assert_eq!(pair.answer(0, id), None);
    pair.sides[0].hold.asks = false;
    pair.elapse(5_000);
    assert!(is_done(&pair, 0, id), "by the arbiter's word");
    let status = pair.sides[0].mirror.status(Time(pair.now));
    assert_eq!(status.alone_by, Some("arbiter"));
}

/// Of whom the copy is about to be overwritten by this node's operator the other one is not made Primary.
#[test]
fn a_copy_that_is_to_be_overwritten_is_granted_nothing() {
    let mut pair = in_sync();
    pair.sides[1].hold.messages = true;
    let from = Some(From::Local);
    pair.order(0, Command::Resync { from, full: false });
    say(&mut pair, 0, Message::PromoteAsk);
    let answer = pair.sides[1].messages.back();
    assert!(
        matches!(answer, Some((_, Message::PromoteRefuse { .. }))),
        "{answer:?}"
    );
}

/// In sync with `solo = "never"`, and the link is cut.
fn never() -> Pair {
    let mut pair = Pair::with(&Settings {
        solo: Solo::Never,
        ..Settings::default()
    });
    pair.pump();
    pair.done(0, PROMOTE);
    pair.write(0, 3);
    pair.elapse(2_500);
    cut(pair)
}

#[test]
fn a_fence_script_stands_in_for_permission() {
    let mut pair = never();
    let (id, _) = pair.order(1, PROMOTE);
    let what = "not promoted: no permission to go on alone";
    assert_eq!(refusal(&pair, 1, id), what);
    pair.done(1, Command::PromoteFenced);
    let status = pair.sides[1].mirror.status(Time(pair.now));
    assert_eq!(
        (status.role, status.alone_by),
        (Role::Primary, Some("fence"))
    );
    pair.write(1, 9);

    // The register's word is overruled, and the register told.
    let mut pair = alone();
    let named = |pair: &Pair| {
        let register = pair.arbiter.register().expect("a register");
        (register.copies.clone(), register.forced)
    };
    assert_eq!(named(&pair), (vec![NodeId(1)], false));
    pair.done(1, Command::PromoteFenced);
    pair.elapse(5_000);
    assert_eq!(named(&pair), (vec![NodeId(2)], true));
    // It is one of two lines then, and neither is overwritten.
    pair.linked = true;
    pair.elapse(5_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Pn", "Pn"]);
}

#[test]
fn a_fence_script_makes_no_copy_better() {
    let outdated = || {
        let mut pair = primary();
        pair.done(1, Command::Disconnect);
        cut(pair)
    };
    let unmet = || {
        let mut pair = Pair::new();
        pair.linked = false;
        cut(pair)
    };
    let target = "not promoted: this copy is Inconsistent";
    let left = "not promoted: this copy is Outdated";
    let empty = "not promoted: this mirror has no data yet";
    let builds = [
        ((|| cut(copying())) as fn() -> Pair, target),
        (outdated, left),
        (unmet, empty),
    ];
    for (build, what) in builds {
        let mut pair = build();
        let before = pair.sides[1].mirror.record().clone();
        let (id, _) = pair.order(1, Command::PromoteFenced);
        pair.pump();
        assert_eq!(refusal(&pair, 1, id), what);
        assert_eq!(pair.sides[1].mirror.record(), &before, "{what}");
    }
}

/// In a session the peer decides, and a peer that is met anew is not down.
#[test]
fn what_a_fence_script_has_said_ends_with_a_meeting() {
    let mut pair = primary();
    let (id, _) = pair.order(1, Command::PromoteFenced);
    assert_eq!(refusal(&pair, 1, id), "not promoted: the peer is Primary");

    let mut pair = never();
    pair.meet_at(1);
    let (id, _) = pair.order(1, Command::PromoteFenced);
    pair.pump();
    assert_eq!(pair.answer(1, id), None);
    pair.cut();
    pair.pump();
    let what = "not promoted: no permission to go on alone";
    assert_eq!(refusal(&pair, 1, id), what);
}

/// So it can be taken back, which a grant that counts can't.
#[test]
fn a_promotion_whose_grant_has_ended_is_taken_back() {
    let (mut pair, id) = granted();
    pair.sides[0].hold.asks = true;
    let (busy, _) = pair.order(0, DEMOTE);
    assert_eq!(refusal(&pair, 0, busy), "not demoted: it is being promoted");
    pair.cut();
    let (demoted, _) = pair.order(0, DEMOTE);
    assert!(is_done(&pair, 0, demoted));
    let taken_back = "not promoted: it was told to be Secondary meanwhile";
    assert_eq!(refusal(&pair, 0, id), taken_back);
    pair.sides[0].hold.metadata = false;
    pair.pump();
    assert_eq!(pair.sides[0].mirror.role(), Role::Secondary);
}

/// Whoever leaves as a Secondary records that its copy is Outdated, once its disk has flushed. It may have been granted the
/// role in the meantime: then it leaves as a Primary does, with a copy that stays good.
#[test]
fn a_copy_whose_node_was_granted_the_role_does_not_leave_as_a_stale_one() {
    let mut pair = primary();
    pair.sides[1].hold.flushes = true;
    let (left, _) = pair.order(1, Command::Disconnect);
    pair.done(0, DEMOTE);
    pair.sides[1].hold.metadata = true;
    let (id, _) = pair.order(1, PROMOTE);
    pair.pump();
    assert_eq!((pair.answer(1, left), pair.answer(1, id)), (None, None));
    pair.sides[1].hold.flushes = false;
    pair.pump();
    pair.sides[1].hold.metadata = false;
    pair.pump();
    assert!(is_done(&pair, 1, left));
    assert_eq!(pair.sides[1].session, None);
    pair.elapse(10_000);
    assert!(is_done(&pair, 1, id), "{:?}", pair.answer(1, id));
    let status = pair.sides[1].mirror.status(Time(pair.now));
    assert_eq!(status.alone_by, Some("arbiter"));
    assert_eq!(status.disk, DiskState::UpToDate);
}

/// Node 1 left cleanly, node 0 was forced with a bad copy, and an operator keeps node 1's: its record says Outdated until both are
/// in sync.
fn outdated_source() -> Pair {
    let settings = Settings {
        solo: Solo::Arbiter,
        ..Settings::default()
    };
    let mut starts = [0, 1].map(|node| start(node, &settings, SIZE));
    let [common, forced] = [(1, 5), (2, 6)].map(|(counter, tag)| Generation { counter, tag });
    for start in &mut starts {
        let record = &mut start.recovered.superblock.record;
        record.current = Some(common);
        record.zeroed = false;
    }
    let record = &mut starts[0].recovered.superblock.record;
    record.current = Some(forced);
    record.history = vec![common];
    record.forced_bad = true;
    starts[1].recovered.superblock.record.disk = StoredDisk::Outdated;
    let mut pair = Pair::of(starts);
    pair.sides[1].hold.reads = true;
    let (from, full) = (Some(From::Local), true);
    pair.done(1, Command::Resync { from, full });
    pair.elapse(3_000);
    assert_eq!(pair.sides[1].mirror.record().disk, StoredDisk::Outdated);
    assert_eq!(pair.stand(0), "Bt");
    pair
}

/// It was once promoted, and asked to answer for its target, over and over again, until both were in sync.
#[test]
fn a_source_whose_copy_is_outdated_serves_nobody_before_both_are_in_sync() {
    let while_resyncing = Command::Promote {
        force: false,
        while_resyncing: true,
    };
    for (node, order, why) in [
        (1, PROMOTE, "not promoted: this copy is Outdated"),
        (0, while_resyncing, "not promoted: the peer refuses"),
    ] {
        let mut pair = outdated_source();
        let (id, _) = pair.order(node, order.clone());
        pair.pump();
        assert_eq!(refusal(&pair, node, id), why);
        let (id, offset, len) = (1, 0, 4096);
        pair.sides[0].hold.messages = true;
        say(&mut pair, 1, Message::Read { id, offset, len });
        let answer = pair.sides[0].messages.back();
        assert!(
            matches!(answer, Some((_, Message::ReadReply { result: Err(_), .. }))),
            "{answer:?}"
        );
        let mut pair = outdated_source();
        pair.sides[1].hold.reads = false;
        pair.elapse(5_000);
        pair.done(node, order);
        assert_eq!(pair.sides[node].mirror.role(), Role::Primary);
    }
}
