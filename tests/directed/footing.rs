//! What lets a node go on alone without an arbiter, what its being Primary rests on, and what is recorded with it
//! (docs/protocol.md §3).

use kagami_bitmap::superblock::{Generation, StoredDisk};
use kagami_replicator::core::event::Request;
use kagami_replicator::core::register::{ArbiterAnswer, Register};
use kagami_replicator::core::settings::BothStalePolicy;
use kagami_replicator::core::state::{DiskState, NodeId, Solo, Time};
use kagami_replicator::core::status::Standing;
use kagami_replicator::core::{Command, Notice, Role, Settings};

use super::pair::{FORCE, MS, PROMOTE, Pair, SIZE, start, write};
use super::stands::{alone, build, cut, guest, in_sync, primary};

fn settings(solo: Solo) -> Settings {
    Settings {
        solo,
        ..Settings::default()
    }
}

/// Node 0 was Primary in sync, and is without its peer; it needs nobody's word.
fn free() -> Pair {
    let mut pair = Pair::with(&settings(Solo::Always));
    pair.elapse(500);
    pair.done(0, PROMOTE);
    pair.write(0, 3);
    pair.elapse(2_500);
    pair.cut();
    pair.elapse(5_000);
    pair
}

fn standing(pair: &Pair, node: usize) -> Standing {
    pair.sides[node].mirror.status(Time(pair.now)).standing
}

fn permissions(pair: &Pair, node: usize) -> Vec<&'static str> {
    let notices = pair.sides[node].notices.iter();
    notices
        .filter_map(|notice| match notice {
            Notice::Minted { permission, .. } => Some(*permission),
            _ => None,
        })
        .collect()
}

const READ: Request = Request::Read {
    offset: 0,
    len: 4096,
};

#[test]
fn whoever_needs_nobody_mints_with_what_changes_data() {
    let rows = [
        (READ, false),
        (Request::Flush, true),
        (write(9), true),
        (
            Request::Discard {
                offset: 0,
                len: 4096,
                fua: false,
            },
            true,
        ),
    ];
    for (request, mints) in rows {
        let mut pair = free();
        assert_eq!(standing(&pair, 0), Standing::Free);
        assert!(permissions(&pair, 0).is_empty());
        let words = format!("{request:?}");
        let (id, _) = pair.request(0, request);
        pair.pump();
        assert!(matches!(pair.reply(0, id), Some(Ok(_))), "{words}");
        let expected = if mints { vec!["always"] } else { vec![] };
        assert_eq!(permissions(&pair, 0), expected, "{words}");
        let now = if mints {
            Standing::Alone
        } else {
            Standing::Free
        };
        assert_eq!(standing(&pair, 0), now);
    }
}

/// So do a write and a flush that were on their way to the peer.
#[test]
fn what_was_under_way_is_answered_with_a_generation_of_its_own() {
    for request in [write(9), Request::Flush] {
        let mut pair = Pair::with(&settings(Solo::Always));
        pair.elapse(500);
        pair.done(0, PROMOTE);
        pair.write(0, 3);
        pair.sides[1].hold.messages = true;
        let (id, _) = pair.request(0, request);
        pair.pump();
        assert_eq!(pair.reply(0, id), None);
        pair.cut();
        pair.pump();
        assert!(matches!(pair.reply(0, id), Some(Ok(_))));
        assert_eq!(permissions(&pair, 0), ["always"]);
    }
}

/// The register as it is, but for whom it names.
fn naming(pair: &Pair, copies: &[u64]) -> ArbiterAnswer {
    let register = pair.arbiter.register().expect("a register").clone();
    let copies = copies.iter().copied().map(NodeId).collect();
    ArbiterAnswer::Register(Some(Register { copies, ..register }))
}

#[test]
fn a_primary_stands_on_its_session_the_arbiter_or_nothing() {
    let mut pair = primary();
    assert!(matches!(standing(&pair, 0), Standing::Session { .. }));
    assert_eq!(standing(&pair, 1), Standing::Secondary);
    pair.sides[0].hold.asks = true;
    let mut pair = cut(pair);
    assert_eq!(standing(&pair, 0), Standing::Sought);
    let footing = pair.sides[0].mirror.footing();
    assert!(footing.asking.is_some() && !footing.refused && !footing.alone);
    let answer = naming(&pair, &[2]);
    pair.arbiter_says(0, answer);
    assert_eq!(standing(&pair, 0), Standing::Refused);
    assert!(pair.sides[0].mirror.footing().refused);
    // What was refused before a session says nothing after it.
    pair.sides[0].asks.clear();
    pair.elapse(10);
    pair.linked = true;
    pair.elapse(3_000);
    assert!(matches!(standing(&pair, 0), Standing::Session { .. }));
    assert!(!pair.sides[0].mirror.footing().refused);
    let pair = cut(pair);
    assert_eq!(standing(&pair, 0), Standing::Sought);
    assert_eq!(standing(&alone(), 0), Standing::Alone);
}

/// What the other mirrors of its group judge it by.
#[test]
fn a_footing_says_who_could_go_on() {
    let of = |pair: &Pair, node: usize| pair.sides[node].mirror.footing();
    let pair = primary();
    let (first, second) = (of(&pair, 0), of(&pair, 1));
    assert!(first.heard.is_some_and(|at| at.0 + 1_000 * MS > pair.now));
    assert_eq!(second.heard, None, "it is Secondary");
    assert!(!first.alone && !second.alone && !first.refused);
    assert_eq!(
        [first.peer_is_primary, second.peer_is_primary],
        [false, true]
    );
    assert_eq!(first.disk, DiskState::UpToDate);
    let instance = pair.arbiter.register().expect("one").instance;
    assert_eq!(first.arbiter, Some(instance));
    assert_eq!(first.asking, None);
    let since = pair.sides[0].mirror.status(Time(pair.now)).connection_since;
    assert_eq!(first.since, since);
    assert_eq!(of(&guest(), 1).heard, None, "its copy is bad");
    assert!(of(&alone(), 0).alone && of(&free(), 0).alone);
}

/// A read may be answered from the copy here: that of a Primary in its session, or alone, and of nobody else.
#[test]
fn reads_are_answered_here_by_a_primary_with_a_good_copy() {
    for (stand, here) in [
        ("Pi", true),
        ("Si", false),
        ("Pn", true),
        ("Sn", false),
        ("Ps", true),
        ("Pt", false),
        ("Dv", false),
    ] {
        let (pair, node) = build(stand);
        assert_eq!(pair.sides[node].mirror.reads_here(), here, "{stand}");
    }
    let mut pair = primary();
    pair.sides[0].hold.asks = true;
    pair.cut();
    pair.elapse(3_000);
    assert!(!pair.sides[0].mirror.reads_here(), "its lease is over");
    assert!(free().sides[0].mirror.reads_here());
}

/// T·(1 + 2·1%) and 50 ms after the start, where no session has been.
#[test]
fn the_lease_of_a_peer_is_waited_for_with_a_margin() {
    for (timeout_ms, wait) in [(2_000, 2_090), (500, 560), (10_000, 10_250)] {
        let settings = Settings {
            timeout_ms,
            ..settings(Solo::Arbiter)
        };
        let pair = Pair::with(&settings);
        let ends = pair.sides[0].mirror.status(Time(pair.now)).peer_lease_ends;
        assert_eq!(ends, Time(pair.now + wait * MS));
    }
}

/// That it was Primary is in the record that lets it answer.
#[test]
fn a_generation_for_a_primary_says_so() {
    for order in [PROMOTE, FORCE] {
        let mut pair = cut(in_sync());
        pair.sides[1].hold.metadata = true;
        let before = pair.sides[1].mirror.record().current;
        pair.order(1, order);
        pair.elapse(5_000);
        pair.end_metadata(1, 0, Ok(()));
        let record = pair.sides[1].mirror.record();
        assert_ne!(record.current, before);
        assert!(record.alone && record.was_primary);
    }
}

/// A source that answers for a guest was no Primary, and says so.
#[test]
fn a_generation_for_a_guest_does_not() {
    let mut pair = in_sync();
    pair.sides[0].hold.reads = true;
    pair.done(1, Command::Invalidate);
    pair.elapse(1_000);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Ss", "Bt"]);
    pair.sides[0].hold.metadata = true;
    pair.order(
        1,
        Command::Promote {
            force: false,
            while_resyncing: true,
        },
    );
    pair.pump();
    pair.end_metadata(0, 0, Ok(()));
    let record = pair.sides[0].mirror.record();
    assert!(record.alone && !record.was_primary);
    assert_eq!(permissions(&pair, 0), ["consent"]);
}

/// The target's consent is one of its session: it says nothing in the next one. What an arbiter granted holds on.
#[test]
fn consent_ends_with_its_session() {
    for consent in [true, false] {
        let mut pair = primary();
        pair.sides[0].hold.asks = true;
        if consent {
            pair.sides[0].hold.reads = true;
            pair.order(1, Command::Invalidate);
            pair.until(1, "Bm");
            pair.until(0, "Ps");
            pair.sides[0].hold.metadata = true;
            pair.cut();
        } else {
            pair.cut();
            pair.sides[0].hold.metadata = true;
            pair.sides[0].hold.asks = false;
            pair.elapse(5_000);
        }
        assert!(!pair.sides[0].metadata.is_empty());
        pair.meet_at(0);
        pair.sides[0].hold.metadata = false;
        while !pair.sides[0].metadata.is_empty() {
            pair.end_metadata(0, 0, Ok(()));
        }
        assert!(pair.sides[0].mirror.record().alone);
        let by = pair.sides[0].mirror.status(Time(pair.now)).alone_by;
        assert_eq!(by, (!consent).then_some("arbiter"), "{consent}");
    }
}

/// docs/protocol.md §9.
#[test]
fn of_two_bad_copies_the_policy_chooses() {
    use BothStalePolicy::{PreferLastPrimary, PreferLocal, Wait};
    type Row = ([BothStalePolicy; 2], [bool; 2], Option<usize>);
    let rows: [Row; 9] = [
        ([Wait, Wait], [true, false], None),
        ([PreferLastPrimary; 2], [true, false], Some(0)),
        ([PreferLastPrimary; 2], [false, true], Some(1)),
        ([PreferLastPrimary; 2], [true, true], None),
        ([PreferLastPrimary; 2], [false, false], None),
        // It is enough that one of them says so.
        ([PreferLastPrimary, Wait], [true, false], Some(0)),
        ([PreferLastPrimary, Wait], [false, true], Some(1)),
        ([PreferLocal, Wait], [false, true], Some(0)),
        ([Wait, PreferLocal], [false, true], Some(1)),
    ];
    for (policies, were_primary, stays) in rows {
        let starts = [0, 1].map(|node| {
            let settings = Settings {
                both_stale: policies[node],
                ..settings(Solo::Never)
            };
            let mut start = start(node, &settings, SIZE);
            let record = &mut start.recovered.superblock.record;
            record.current = Some(Generation { counter: 1, tag: 5 });
            record.zeroed = false;
            record.disk = StoredDisk::Inconsistent;
            record.was_primary = were_primary[node];
            start
        });
        let mut pair = Pair::of(starts);
        pair.rot(0, 3);
        pair.elapse(60_000);
        let words = format!("{policies:?} {were_primary:?}");
        let states = [0, 1].map(|node| pair.sides[node].mirror.disk_state());
        let Some(stays) = stays else {
            assert_eq!(states, [DiskState::Inconsistent; 2], "{words}");
            continue;
        };
        assert_eq!(states, [DiskState::UpToDate; 2], "{words}");
        let kept = pair.content(1 - stays, 3 * 4096, 4096);
        let byte = if stays == 0 { 0xee } else { 0 };
        assert!(kept.iter().all(|b| *b == byte), "{words}: {}", kept[0]);
        assert_eq!(pair.sides[stays].mirror.role(), Role::Secondary);
    }
}
