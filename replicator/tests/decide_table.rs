//! The handshake's table, whole (docs/protocol.md §6): every pair of small records is symmetric,
//! every row is reached, and each row's verdict is told by an example.

use std::collections::BTreeMap;

use kagami_bitmap::superblock::{Generation, StoredDisk};
use kagami_replicator::core::NodeId;
use kagami_replicator::core::decide::{Refused, Row, Strategy, Verdict, decide};
use kagami_replicator::core::message::Hello;
use kagami_replicator::core::settings::{AfterSb0, AfterSb1, SplitBrainPolicy};
use kagami_replicator::core::state::{Protocol, Role, Solo};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

fn generation(tag: u64) -> Generation {
    Generation { counter: tag, tag }
}

/// A good, unmarked copy in generation 1, Secondary.
fn copy(node: NodeId) -> Hello {
    Hello {
        mirror: 7,
        node,
        size: 1 << 20,
        arbiter: None,
        current: Some(generation(1)),
        history: Vec::new(),
        base: None,
        alone: false,
        was_primary: false,
        disk: StoredDisk::Consistent,
        diskless: false,
        forced_bad: false,
        zeroed: false,
        marks: 0,
        role: Role::Secondary,
        unbroken: false,
        unmap_zeroes: false,
        protocol: Protocol::C,
        solo: Solo::Never,
        timeout_ms: 2_000,
        split_brain: SplitBrainPolicy::default(),
        keep: None,
        full: false,
        boot: None,
    }
}

fn with(node: NodeId, change: impl FnOnce(&mut Hello)) -> Hello {
    let mut hello = copy(node);
    change(&mut hello);
    hello
}

/// The copy after it went on alone from generation 1 as `tag`.
fn ahead(node: NodeId, tag: u64) -> Hello {
    with(node, |h| {
        h.current = Some(generation(tag));
        h.history = vec![generation(1)];
        h.base = Some(generation(1));
        h.alone = true;
    })
}

fn verdict(mine: &Hello, theirs: &Hello) -> Verdict {
    let verdict = decide(mine, theirs);
    assert_eq!(
        verdict,
        decide(theirs, mine),
        "asymmetric: {mine:?} / {theirs:?}"
    );
    verdict
}

fn expect(mine: &Hello, theirs: &Hello, row: Row, strategy: Strategy) {
    assert_eq!(verdict(mine, theirs), Verdict { row, strategy });
}

fn refuse(mine: &Hello, theirs: &Hello, row: Row, why: Refused) {
    expect(mine, theirs, row, Strategy::Refuse(why));
}

#[test]
#[expect(clippy::too_many_lines, reason = "an example for each row")]
fn each_row_by_example() {
    let marks = |source| Strategy::Marks { source };
    let full = |source| Strategy::Full { source };
    let bad = |node| with(node, |h| h.disk = StoredDisk::Inconsistent);
    let unwritten = |node| with(node, |h| h.current = None);
    let zeroed = |node| {
        with(node, |h| {
            h.current = None;
            h.zeroed = true;
        })
    };

    refuse(
        &copy(A),
        &with(B, |h| h.mirror = 8),
        Row::OtherMirror,
        Refused::OtherMirror,
    );
    refuse(
        &copy(A),
        &with(B, |h| h.size += 512),
        Row::OtherMirror,
        Refused::OtherSize {
            smaller: A,
            size: (1 << 20) + 512,
        },
    );
    expect(
        &copy(A),
        &with(B, |h| h.diskless = true),
        Row::Diskless,
        Strategy::Serve,
    );
    expect(
        &zeroed(A),
        &zeroed(B),
        Row::BothUnwritten,
        Strategy::First { source: A },
    );
    refuse(
        &zeroed(A),
        &unwritten(B),
        Row::BothUnwritten,
        Refused::NameSource,
    );
    expect(&unwritten(A), &copy(B), Row::OneUnwritten, full(B));
    refuse(
        &unwritten(A),
        &bad(B),
        Row::OneUnwritten,
        Refused::BothStale,
    );
    refuse(
        &copy(A),
        &with(B, |h| h.alone = true),
        Row::SharedAlone,
        Refused::Impossible,
    );
    let primary = |node| with(node, |h| h.role = Role::Primary);
    refuse(
        &primary(A),
        &primary(B),
        Row::SharedAlone,
        Refused::TwoPrimaries,
    );
    refuse(&bad(A), &bad(B), Row::SameBothBad, Refused::BothStale);
    expect(&bad(A), &copy(B), Row::SameOneBad, marks(B));
    expect(&copy(A), &copy(B), Row::SameClean, Strategy::Nothing);

    let marked = |node, change: fn(&mut Hello)| {
        with(node, |h| {
            h.marks = 3;
            change(h);
        })
    };
    expect(&marked(A, |_| {}), &copy(B), Row::SameMarked, marks(A));
    expect(&copy(A), &marked(B, |_| {}), Row::SameMarked, marks(A));
    expect(
        &marked(A, |_| {}),
        &with(B, |h| h.was_primary = true),
        Row::SameMarked,
        marks(B),
    );
    let crashed = marked(A, |h| h.was_primary = true);
    expect(
        &crashed,
        &with(B, |h| h.unbroken = true),
        Row::SameMarked,
        marks(B),
    );
    expect(
        &marked(A, |h| h.unbroken = true),
        &primary(B),
        Row::SameMarked,
        marks(B),
    );

    let both = with(A, |h| {
        h.current = Some(generation(3));
        h.history = vec![generation(1)];
    });
    let back = with(B, |h| h.history = vec![generation(3)]);
    refuse(&both, &back, Row::EachAhead, Refused::Impossible);
    let stale = |h: &Hello| Hello {
        disk: StoredDisk::Outdated,
        ..h.clone()
    };
    refuse(
        &stale(&ahead(A, 2)),
        &copy(B),
        Row::AheadBad,
        Refused::BothStale,
    );
    refuse(
        &ahead(A, 2),
        &with(B, |h| h.alone = true),
        Row::BehindAlone,
        Refused::Impossible,
    );
    let forced = Hello {
        forced_bad: true,
        ..ahead(A, 2)
    };
    refuse(&forced, &copy(B), Row::AheadForcedBad, Refused::SplitBrain);
    expect(&ahead(A, 2), &copy(B), Row::AheadMarked, marks(A));
    expect(&copy(A), &ahead(B, 2), Row::AheadMarked, marks(B));
    let bases_forgotten = Hello {
        base: None,
        ..ahead(A, 2)
    };
    expect(&bases_forgotten, &copy(B), Row::AheadFull, full(A));
    refuse(&ahead(A, 2), &ahead(B, 3), Row::Forked, Refused::SplitBrain);
    refuse(
        &copy(A),
        &with(B, |h| h.current = Some(generation(9))),
        Row::Unrelated,
        Refused::Unrelated,
    );
}

#[test]
fn an_operators_word_ends_a_split_brain_and_a_contradiction_does_not() {
    let keep = |h: &Hello, id| Hello {
        keep: Some(id),
        ..h.clone()
    };
    let (a, b) = (ahead(A, 2), ahead(B, 3));
    expect(&keep(&a, A), &b, Row::Forked, Strategy::Marks { source: A });
    expect(&a, &keep(&b, A), Row::Forked, Strategy::Marks { source: A });
    expect(
        &keep(&a, B),
        &keep(&b, B),
        Row::Forked,
        Strategy::Marks { source: B },
    );
    refuse(&keep(&a, A), &keep(&b, B), Row::Forked, Refused::SplitBrain);
    let forgotten = Hello {
        base: None,
        ..b.clone()
    };
    expect(
        &keep(&a, A),
        &forgotten,
        Row::Forked,
        Strategy::Full { source: A },
    );
    let forced = Hello {
        forced_bad: true,
        ..a.clone()
    };
    let counted = with(B, |h| h.base = Some(generation(1)));
    expect(
        &keep(&forced, A),
        &counted,
        Row::AheadForcedBad,
        Strategy::Marks { source: A },
    );
    expect(
        &keep(&forced, B),
        &copy(B),
        Row::AheadForcedBad,
        Strategy::Full { source: B },
    );
    let stranger = with(B, |h| h.current = Some(generation(9)));
    expect(
        &keep(&copy(A), A),
        &stranger,
        Row::Unrelated,
        Strategy::Full { source: A },
    );
    // A word given for nothing changes nothing.
    expect(
        &keep(&copy(A), B),
        &copy(B),
        Row::SameClean,
        Strategy::Nothing,
    );
}

#[test]
fn split_brain_policies_choose_only_when_both_nodes_name_them() {
    let least = SplitBrainPolicy {
        after_sb_0pri: AfterSb0::DiscardLeastChanges,
        ..SplitBrainPolicy::default()
    };
    let set = |h: Hello, policy, marks, role| Hello {
        split_brain: policy,
        marks,
        role,
        ..h
    };
    let (a, b) = (ahead(A, 2), ahead(B, 3));
    let (pri, sec) = (Role::Primary, Role::Secondary);
    let few = set(a.clone(), least, 1, sec);
    expect(
        &few,
        &set(b.clone(), least, 5, sec),
        Row::Forked,
        Strategy::Marks { source: B },
    );
    refuse(
        &few,
        &set(b.clone(), SplitBrainPolicy::default(), 5, sec),
        Row::Forked,
        Refused::SplitBrain,
    );
    refuse(
        &few,
        &set(b.clone(), least, 5, pri),
        Row::Forked,
        Refused::SplitBrain,
    );
    let discard = SplitBrainPolicy {
        after_sb_1pri: AfterSb1::DiscardSecondary,
        ..least
    };
    let primary = set(a.clone(), discard, 1, pri);
    expect(
        &primary,
        &set(b.clone(), discard, 5, sec),
        Row::Forked,
        Strategy::Marks { source: A },
    );
    refuse(
        &primary,
        &set(b, discard, 5, pri),
        Row::Forked,
        Refused::SplitBrain,
    );
}

#[test]
fn a_policy_goes_by_who_has_changed_something() {
    let set = |h: Hello, rule, after_sb_1pri, marks, role| Hello {
        split_brain: SplitBrainPolicy {
            after_sb_0pri: rule,
            after_sb_1pri,
            ..SplitBrainPolicy::default()
        },
        marks,
        role,
        ..h
    };
    let secondaries = |rule, marks_a, marks_b| {
        let (rest, role) = (AfterSb1::Disconnect, Role::Secondary);
        verdict(
            &set(ahead(A, 2), rule, rest, marks_a, role),
            &set(ahead(B, 3), rule, rest, marks_b, role),
        )
        .strategy
    };
    let refused = Strategy::Refuse(Refused::SplitBrain);
    let from = |source| Strategy::Marks { source };
    let zero = AfterSb0::DiscardZeroChanges;
    assert_eq!(secondaries(zero, 0, 5), from(B));
    assert_eq!(secondaries(zero, 5, 0), from(A));
    assert_eq!(secondaries(zero, 1, 5), refused, "both have changes");
    assert_eq!(secondaries(zero, 0, 0), refused, "neither has");
    let least = AfterSb0::DiscardLeastChanges;
    assert_eq!(secondaries(least, 1, 5), from(B));
    assert_eq!(secondaries(least, 5, 5), refused, "none has fewer");

    let beside_primary = |marks_a, marks_b| {
        verdict(
            &set(
                ahead(A, 2),
                least,
                AfterSb1::Consensus,
                marks_a,
                Role::Primary,
            ),
            &set(
                ahead(B, 3),
                least,
                AfterSb1::Consensus,
                marks_b,
                Role::Secondary,
            ),
        )
        .strategy
    };
    assert_eq!(beside_primary(5, 1), from(A));
    assert_eq!(beside_primary(1, 5), refused, "the Primary would lose");
}

#[test]
fn a_loser_whose_marks_count_from_elsewhere_is_copied_whole() {
    let winner = with(A, |h| {
        h.current = Some(generation(2));
        h.history = vec![generation(1)];
        h.base = Some(generation(1));
        h.keep = Some(A);
    });
    // Its marks reach back to a generation that the winner never had.
    let loser = with(B, |h| {
        h.current = Some(generation(3));
        h.history = vec![generation(4), generation(1)];
        h.base = Some(generation(4));
    });
    expect(&winner, &loser, Row::Forked, Strategy::Full { source: A });
    let whole = Hello {
        full: true,
        base: Some(generation(1)),
        ..loser
    };
    expect(&winner, &whole, Row::Forked, Strategy::Full { source: A });
}

#[test]
fn nobody_serves_a_primary_without_a_disk_whose_newest_writes_it_lacks() {
    let without = |h: Hello, role| Hello {
        diskless: true,
        role,
        ..h
    };
    let lost = (Row::Diskless, Refused::NewestLost);
    let primary = without(ahead(A, 2), Role::Primary);
    refuse(&primary, &copy(B), lost.0, lost.1);
    expect(&primary, &ahead(B, 2), lost.0, Strategy::Serve);
    // A Secondary answers nothing, and one with a disk has it still.
    let secondary = without(ahead(A, 2), Role::Secondary);
    expect(&secondary, &copy(B), lost.0, Strategy::Serve);
    let with_disk = Hello {
        role: Role::Primary,
        ..ahead(A, 2)
    };
    let gone = without(copy(B), Role::Secondary);
    expect(&with_disk, &gone, lost.0, Strategy::Serve);
}

/// Every pair of records over a small set of values: symmetric, no row unreached, and a source is
/// always a good copy.
#[test]
fn all_small_pairs() {
    let lines: [(Option<u64>, &[u64], Option<u64>); 7] = [
        (None, &[], None),
        (Some(1), &[], None),
        (Some(2), &[1], Some(1)),
        (Some(2), &[1], None),
        (Some(3), &[1], Some(1)),
        (Some(3), &[2, 1], Some(2)),
        (Some(1), &[3], None),
    ];
    let views = |node: NodeId| {
        let mut all = Vec::new();
        for (current, history, base) in lines {
            for bits in 0..128u32 {
                let bit = |n: u32| bits >> n & 1 == 1;
                for disk in [StoredDisk::Consistent, StoredDisk::Inconsistent] {
                    all.push(with(node, |h| {
                        h.current = current.map(generation);
                        h.history = history.iter().copied().map(generation).collect();
                        h.base = base.map(generation);
                        h.alone = bit(0);
                        h.was_primary = bit(1);
                        h.unbroken = bit(2);
                        h.marks = u64::from(bit(3));
                        h.role = if bit(4) {
                            Role::Primary
                        } else {
                            Role::Secondary
                        };
                        h.forced_bad = bit(5);
                        h.zeroed = bit(6);
                        h.disk = disk;
                    }));
                }
            }
        }
        all
    };
    let mut rows: BTreeMap<Row, u64> = BTreeMap::new();
    let theirs = views(B);
    for mine in views(A) {
        for theirs in &theirs {
            let verdict = verdict(&mine, theirs);
            *rows.entry(verdict.row).or_default() += 1;
            if let Some(source) = verdict.source() {
                let source = if source == A { &mine } else { theirs };
                assert_eq!(
                    source.disk,
                    StoredDisk::Consistent,
                    "No-stale-promotion: {verdict:?}"
                );
            }
        }
    }
    let unreached = [Row::OtherMirror, Row::Diskless, Row::Unrelated];
    let all = [
        Row::BothUnwritten,
        Row::OneUnwritten,
        Row::SharedAlone,
        Row::SameBothBad,
        Row::SameOneBad,
        Row::SameClean,
        Row::SameMarked,
        Row::EachAhead,
        Row::AheadBad,
        Row::BehindAlone,
        Row::AheadForcedBad,
        Row::AheadMarked,
        Row::AheadFull,
        Row::Forked,
    ];
    for row in all {
        assert!(rows.contains_key(&row), "{row:?} is not reached");
    }
    assert!(
        unreached.iter().all(|row| !rows.contains_key(row)),
        "{rows:?}"
    );
}
