//! Another peer (docs/protocol.md §5): what is recorded and told, when it is refused, and that a mirror without one
//! needs nobody.

use kagami_bitmap::superblock::Generation;
use kagami_replicator::core::event::Reply;
use kagami_replicator::core::state::{NodeId, Solo, Time};
use kagami_replicator::core::status::Standing;
use kagami_replicator::core::{Command, DiskFault, Notice, Request, Settings, Start};

use super::pair::{DEMOTE, FORCE, PROMOTE, Pair, SIZE, start, write};
use super::stands::{alone, cut, in_sync, primary};

const THIRD: NodeId = NodeId(3);

fn set(peer: NodeId) -> Command {
    Command::SetPeer { peer }
}

/// Node 0 by itself, from what it begins with.
fn single(solo: Solo, change: impl Fn(&mut Start)) -> Pair {
    let settings = Settings {
        solo,
        ..Settings::default()
    };
    let mut starts = [0, 1].map(|node| start(node, &settings, SIZE));
    change(&mut starts[0]);
    let mut pair = Pair::of(starts);
    pair.linked = false;
    pair.pump();
    pair
}

fn no_peer(start: &mut Start) {
    start.peer = NodeId::NOBODY;
    start.recovered.superblock.record.peer = None;
}

/// A copy that has data, and the generation of both.
fn written(start: &mut Start) {
    let record = &mut start.recovered.superblock.record;
    record.current = Some(Generation { counter: 1, tag: 5 });
    record.zeroed = false;
}

fn asked_an_arbiter(start: &mut Start) {
    start.recovered.superblock.record.arbiter = Some(9);
}

/// What node 0 answers to an order, once all has come to rest.
fn says(pair: &mut Pair, command: Command) -> String {
    let (id, _) = pair.order(0, command);
    pair.pump();
    match pair.answer(0, id) {
        None => "nothing yet".to_owned(),
        Some(Ok(Reply::Nothing(text))) => text.clone(),
        Some(Ok(_)) => "done".to_owned(),
        Some(Err(why)) => why.what.clone(),
    }
}

fn peers_told(pair: &Pair) -> Vec<(Option<NodeId>, Option<NodeId>)> {
    let notices = pair.sides[0].notices.iter();
    notices
        .filter_map(|notice| match notice {
            Notice::PeerSet { from, to } => Some((*from, *to)),
            _ => None,
        })
        .collect()
}

fn permissions(pair: &Pair) -> Vec<&'static str> {
    let notices = pair.sides[0].notices.iter();
    notices
        .filter_map(|notice| match notice {
            Notice::Minted { permission, .. } => Some(*permission),
            _ => None,
        })
        .collect()
}

#[test]
fn a_mirror_without_a_peer_asks_nobody() {
    let mut pair = single(Solo::Arbiter, no_peer);
    assert!(
        pair.sides[0].stored.is_empty(),
        "there is nothing to record"
    );
    assert_eq!(says(&mut pair, set(NodeId::NOBODY)), "it has no peer");
    // There is nobody to meet; and whoever comes is not turned away for an order of before.
    for order in [Command::Connect, Command::Disconnect] {
        assert_eq!(says(&mut pair, order), "no other node has a copy");
    }
    pair.done(0, PROMOTE);
    let standing = |pair: &Pair| pair.sides[0].mirror.status(Time(pair.now)).standing;
    assert_eq!(standing(&pair), Standing::Free);
    pair.write(0, 3);
    assert_eq!(standing(&pair), Standing::Alone);
    pair.elapse(30_000);
    assert_eq!(pair.sides[0].asked, 0);
    assert_eq!(permissions(&pair), ["no peer"]);
    assert_eq!(pair.sides[0].mirror.record().peer, None);
}

#[test]
fn the_peer_of_the_configuration_is_recorded_where_there_is_none() {
    let pair = single(Solo::Arbiter, |start| {
        start.recovered.superblock.record.peer = None;
    });
    assert_eq!(pair.sides[0].mirror.record().peer, Some(2));
    assert!(pair.sides[1].stored.is_empty(), "that one has it already");
}

#[test]
fn it_is_set_once_and_whoever_was_there_is_told_of_no_more() {
    let mut pair = alone();
    let before = pair.sides[0].mirror.record().clone();
    assert_eq!(
        says(&mut pair, set(NodeId(2))),
        "node 2 is the peer already"
    );
    assert_eq!(
        says(&mut pair, set(NodeId(1))),
        "refused: that is this node itself"
    );
    pair.sides[0].hold.metadata = true;
    let (first, _) = pair.order(0, set(THIRD));
    for meanwhile in [THIRD, NodeId(2)] {
        assert_eq!(
            says(&mut pair, set(meanwhile)),
            "refused: a change is under way"
        );
    }
    assert_eq!(pair.answer(0, first), None, "it is not durable");
    assert_eq!(pair.sides[0].mirror.peer(), NodeId(2));
    pair.sides[0].hold.metadata = false;
    pair.pump();
    assert!(matches!(pair.answer(0, first), Some(Ok(Reply::Done))));
    let record = pair.sides[0].mirror.record();
    assert_eq!((record.peer, record.base), (Some(3), None));
    assert_ne!(record.current, before.current);
    assert!(record.alone);
    assert_eq!(pair.sides[0].mirror.dirty().count(), SIZE / 4096);
    assert_eq!(peers_told(&pair), [(Some(NodeId(2)), Some(THIRD))]);
    pair.write(0, 9);
}

#[test]
fn one_is_taken_away_and_another_one_comes() {
    let mut pair = alone();
    assert_eq!(says(&mut pair, set(NodeId::NOBODY)), "done");
    assert_eq!(pair.sides[0].mirror.record().peer, None);
    let current = pair.sides[0].mirror.record().current;
    assert_eq!(says(&mut pair, set(THIRD)), "done");
    let record = pair.sides[0].mirror.record();
    assert_eq!(
        (record.peer, record.current),
        (Some(3), current),
        "nobody else had a copy"
    );
    let told = [(Some(NodeId(2)), None), (None, Some(THIRD))];
    assert_eq!(peers_told(&pair), told);
    pair.write(0, 9);
}

#[test]
fn it_is_refused_while_a_role_changes() {
    let promoting = || {
        let mut pair = cut(in_sync());
        pair.sides[0].hold.asks = true;
        pair.order(0, PROMOTE);
        pair
    };
    let demoting = || {
        let mut pair = alone();
        pair.sides[0].hold.writes = true;
        pair.request(0, write(9));
        pair.order(0, DEMOTE);
        pair
    };
    let forced = || {
        let mut pair = primary();
        pair.sides[0].hold.asks = true;
        let mut pair = cut(pair);
        pair.sides[0].hold.metadata = true;
        pair.order(0, FORCE);
        pair
    };
    for build in [promoting as fn() -> Pair, demoting, forced] {
        let mut pair = build();
        let said = says(&mut pair, set(THIRD));
        assert_eq!(said, "refused: a change is under way");
        assert_eq!(pair.sides[0].mirror.record().peer, Some(2));
    }
}

/// Only where the arbiter may let a peer go on that has a copy does its word come first.
#[test]
fn the_arbiter_is_heard_before_where_the_peer_may_go_on() {
    type Rows = [(&'static str, Solo, fn(&mut Start), &'static str); 6];
    let rows: Rows = [
        (
            "an arbiter may name the peer",
            Solo::Arbiter,
            |s| {
                written(s);
                asked_an_arbiter(s);
            },
            "refused: the arbiter has not named this copy",
        ),
        ("it was never asked", Solo::Arbiter, written, "done"),
        (
            "it is asked no more",
            Solo::Always,
            |s| {
                written(s);
                asked_an_arbiter(s);
            },
            "done",
        ),
        (
            "no copy was written",
            Solo::Arbiter,
            asked_an_arbiter,
            "done",
        ),
        (
            "nobody else has a copy",
            Solo::Arbiter,
            |s| {
                no_peer(s);
                written(s);
                asked_an_arbiter(s);
            },
            "done",
        ),
        (
            "this copy is bad",
            Solo::Always,
            |s| {
                written(s);
                let record = &mut s.recovered.superblock.record;
                record.disk = kagami_bitmap::superblock::StoredDisk::Outdated;
            },
            "refused: this copy is not good, the peer's is",
        ),
    ];
    for (what, solo, change, answer) in rows {
        let mut pair = single(solo, change);
        assert_eq!(says(&mut pair, set(THIRD)), answer, "{what}");
        let peer = pair.sides[0].mirror.record().peer;
        assert_eq!(peer == Some(3), answer == "done", "{what}");
    }
}

#[test]
fn a_copy_that_served_begins_the_mirror_and_one_that_did_not_waits() {
    let mut pair = single(Solo::Arbiter, |_| {});
    assert_eq!(says(&mut pair, set(THIRD)), "done");
    assert_eq!(pair.sides[0].mirror.record().current, None);
    let mut pair = single(Solo::Arbiter, no_peer);
    pair.done(0, PROMOTE);
    assert_eq!(says(&mut pair, set(NodeId(2))), "done");
    assert!(pair.sides[0].mirror.record().current.is_some());
    assert!(pair.sides[0].mirror.record().alone);
    assert_eq!(pair.sides[0].mirror.dirty().count(), SIZE / 4096);
    pair.write(0, 9);
}

/// A Primary that needed no word yet goes on at once: the peer that comes has nothing. Whoever is Secondary asks when
/// it is promoted, and so does a Primary whose copy is not the only one.
#[test]
fn only_a_primary_goes_on_by_it() {
    for (primary, settings) in [
        (false, "replaced"),
        (true, "replaced"),
        (true, "as recorded"),
    ] {
        let mut pair = single(Solo::Always, |start| {
            written(start);
            if settings == "as recorded" {
                start.peer = THIRD;
            }
        });
        if primary {
            pair.done(0, PROMOTE);
        }
        let next = if settings == "as recorded" {
            NodeId(2)
        } else {
            THIRD
        };
        assert_eq!(says(&mut pair, set(next)), "done");
        let goes_on = primary && settings == "replaced";
        let expected = if goes_on {
            vec!["the peer before was given up"]
        } else {
            vec![]
        };
        assert_eq!(permissions(&pair), expected, "{primary} {settings}");
        let alone = pair.sides[0].mirror.status(Time(pair.now)).alone_since;
        assert_eq!(alone.is_some(), goes_on);
    }
}

#[test]
fn it_can_t_be_recorded() {
    let mut pair = alone();
    pair.sides[0].hold.metadata = true;
    let (id, _) = pair.order(0, set(THIRD));
    pair.end_metadata(0, 0, Err(DiskFault::Io(5)));
    let Some(Err(why)) = pair.answer(0, id) else {
        panic!("{:?}", pair.answer(0, id))
    };
    assert_eq!(why.what, "not done: the metadata store failed");
    assert_eq!(pair.sides[0].mirror.peer(), NodeId(2));
    let (id, _) = pair.request(0, Request::Flush);
    pair.pump();
    assert!(pair.reply(0, id).is_none_or(Result::is_err));
}

/// A copy that is being given up is not good any more, though its record says so still.
#[test]
fn it_is_refused_for_a_copy_that_is_being_invalidated() {
    let mut pair = single(Solo::Always, written);
    pair.sides[0].hold.metadata = true;
    pair.order(0, Command::Invalidate);
    let refused = "refused: this copy is not good, the peer's is";
    assert_eq!(says(&mut pair, set(THIRD)), refused);
}

/// Nobody has what it would be fetched from.
#[test]
fn the_only_copy_is_not_given_up() {
    let mut pair = single(Solo::Always, |start| {
        no_peer(start);
        written(start);
    });
    let refused = "refused: no other node has a copy, this is the only one";
    assert_eq!(says(&mut pair, Command::Invalidate), refused);
    pair.done(0, PROMOTE);
    pair.write(0, 3);
}
