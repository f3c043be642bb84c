//! Longer ways: what was begun is under way still when roles, copies and sessions have changed several times. A disk
//! that hangs for half a minute sees that.
//!
//! The search (`late`) tries all that is short; it follows each of these from each of its beginnings as well.

use kagami_replicator::core::event::From;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::register::Ask;
use kagami_replicator::core::{Command, DiskFault, Event, Role};

use super::pair::{Hold, Kept, PROMOTE, Pair, write};
use super::stands::{copying, cut, guest, in_sync, primary};
use super::ways::put;

/// The peer goes on by the arbiter's word, and this node is its target.
const TARGET: [&str; 2] = ["taken over", "link slowly"];
/// The same, where the copy was given up by hand.
const INVALID: [&str; 3] = ["peer goes on alone", "invalidate", "link slowly"];
/// It left, and is told to connect again: the Primary has gone on.
const BACK: [&str; 3] = ["peer goes on alone", "connect", "link slowly"];

/// Beginnings, what comes first, and where it goes on from there.
type Route = (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static [&'static str]],
);

const ROUTES: &[Route] = &[
    (
        &[
            "read",
            "edge",
            "flush",
            "verify idle",
            "demote without permission",
        ],
        &TARGET,
        FROM_TARGET,
    ),
    (
        &["flush", "resync", "resync compares", "peer's read"],
        &INVALID,
        FROM_TARGET,
    ),
    (&["leave"], &BACK, FROM_TARGET),
    (
        &["read", "demote without permission", "edge"],
        &["taken over"],
        &[
            &["link unrecorded"],
            &["link unrecorded", "cut"],
            &["half a session"],
        ],
    ),
    (
        &["read", "edge"],
        &["disk lost", "peer takes over", "link"],
        &[&[], &["half a session"], &["link"]],
    ),
    (
        &["demote as the disk fails"],
        &[],
        &[
            &["half a session"],
            &["link"],
            &["peer takes over", "link"],
            &["peer takes over", "link", "half a session"],
            &["peer takes over", "link", "link"],
        ],
    ),
    (
        &["leave"],
        &["takes over", "connect"],
        &[
            &["half a session"],
            &["link slowly"],
            &["link slowly", "on"],
            &["link slowly", "demote"],
            &["link slowly", "demote", "on"],
            &["disk lost", "half a session"],
        ],
    ),
    (
        &["leave"],
        &["disk lost", "connect"],
        &[&["half a session"], &["link"]],
    ),
    (
        &[
            "a forced source's word, frozen",
            "question of a frozen source",
            "question of a frozen guest's source",
            "stop as the disk fails",
        ],
        &[],
        &[&[]],
    ),
    (
        &["a verification writes back"],
        &[],
        &[
            &[],
            &["cut"],
            &["cut", "half a session"],
            &["cut", "invalidate"],
            &["cut", "invalidate", "half a session"],
        ],
    ),
    (
        &["question beside an old write"],
        &[],
        &[&["half a session"]],
    ),
    (
        &["time in Ss"],
        &["at once", "peer promoted", "peer's disk lost"],
        &[&["peer demoted", "promote"]],
    ),
    (
        &["time in Pt"],
        &["write", "at once", "demote", "peer promoted"],
        &[
            &["peer's disk lost"],
            &["peer's disk lost", "peer demoted", "promote"],
            &["leaves as the last copy"],
        ],
    ),
    (&["time in Pt"], &[], &[&["demoted as it is offered"]]),
];

/// From a target on: overwritten, promoted, brought up to date, Primary again, source.
const FROM_TARGET: &[&[&str]] = &[
    &[],
    &["on"],
    &["cut"],
    &["cut", "half a session"],
    &["cut", "at once", "peer's disk lost", "peer demoted", "link"],
    &["peer demoted", "promote while resyncing"],
    &["rest"],
    &["rest", "cut"],
    &["rest", "cut", "half a session"],
    &["rest", "disk lost", "half a session"],
    &["rest", "disk lost", "link"],
    &["rest", "peer demoted", "copies slowly"],
    &["rest", "peer demoted", "copies unrecorded"],
    &["rest", "peer demoted", "promote", "copies unrecorded"],
    &["rest", "peer's disk lost"],
    &["rest", "peer's disk lost", "peer demoted", "promote"],
    &["rest", "peer demoted", "promote"],
    &[
        "rest",
        "peer demoted",
        "promote",
        "goes on alone",
        "half a session",
    ],
    &[
        "rest",
        "peer demoted",
        "promote",
        "goes on alone",
        "link slowly",
    ],
    &[
        "rest",
        "peer demoted",
        "promote",
        "goes on alone",
        "link slowly",
        "on",
    ],
    &[
        "rest",
        "peer demoted",
        "promote",
        "goes on alone",
        "link slowly",
        "demote",
    ],
    &[
        "rest",
        "peer demoted",
        "promote",
        "goes on alone",
        "link slowly",
        "demote",
        "on",
    ],
];

/// All of them: the beginning, and the steps.
pub fn routes() -> Vec<(String, Vec<&'static str>)> {
    let mut routes = Vec::new();
    for (beginnings, first, ends) in ROUTES {
        for beginning in *beginnings {
            let way = |end: &&[&'static str]| ((*beginning).to_owned(), [*first, *end].concat());
            routes.extend(ends.iter().map(way));
        }
    }
    routes
}

/// Without holds from here on, but for what is kept.
fn keep(pair: &mut Pair, node: usize, kept: Option<Kept>) {
    assert!(kept.is_some(), "nothing was begun");
    pair.sides[node].kept = kept;
    pair.sides[node].hold = Hold::default();
    pair.pump();
}

fn last_on_disk(pair: &Pair, node: usize) -> Option<Kept> {
    let last = pair.sides[node].disk.back();
    last.map(|(id, _)| Kept::Disk(*id))
}

fn first_question(pair: &Pair, node: usize) -> Option<Kept> {
    let first = pair.sides[node].asks.front();
    first.map(|(id, _)| Kept::Ask(*id))
}

/// The pair, and the node at which it was begun. None: it is none of these beginnings.
pub fn begin(what: &str) -> Option<(Pair, usize)> {
    Some(match what {
        "demote without permission" | "demote as the disk fails" => (demoted_late(what), 0),
        "stop as the disk fails" => (stopped_late(), 1),
        "question of a frozen source" => (frozen(copying(), 0), 0),
        "question of a frozen guest's source" => (frozen(guest(), 1), 0),
        "a forced source's word, frozen" => (word(), 0),
        "a verification writes back" => (written_back(), 0),
        "question beside an old write" => (question_beside_a_write(), 1),
        _ => return None,
    })
}

/// Without a session and without permission: the flush for a demotion is all that is under way.
fn demoted_late(what: &str) -> Pair {
    let mut pair = primary();
    pair.sides[0].hold.flushes = true;
    let fails = what == "demote as the disk fails";
    if fails {
        // One by the clock, that the session's end leaves to itself.
        pair.write(0, 3);
        pair.elapse(1_100);
    }
    pair.sides[0].hold.asks = true;
    pair.cut();
    pair.pump();
    pair.order(0, Command::Demote { force: false });
    pair.pump();
    let kept = last_on_disk(&pair, 0);
    if fails {
        pair.end_disk(0, 0, Err(DiskFault::Io(5)));
    }
    pair.sides[0].asks.clear();
    keep(&mut pair, 0, kept);
    pair
}

/// A flush that the peer asked for fails after the one for the stop was begun.
fn stopped_late() -> Pair {
    let mut pair = primary();
    pair.write(0, 3);
    pair.sides[1].hold.flushes = true;
    pair.request(0, kagami_replicator::core::Request::Flush);
    pair.pump();
    let mut pair = cut(pair);
    pair.order(1, Command::Stop);
    pair.pump();
    let kept = last_on_disk(&pair, 1);
    pair.end_disk(1, 0, Err(DiskFault::Io(5)));
    keep(&mut pair, 1, kept);
    pair
}

/// Node 0 has nothing left to copy, but `writer` a write under way on node 0's disk, until it asks the arbiter whether
/// it is named still.
fn frozen(mut pair: Pair, writer: usize) -> Pair {
    pair.sides[0].hold.writes = true;
    pair.request(writer, write(9));
    pair.pump();
    pair.sides[0].hold.reads = false;
    pair.pump();
    let frozen = pair.stand(0);
    assert!(matches!(frozen, "Pf" | "Sf"), "{frozen}");
    pair.sides[0].hold.asks = true;
    pair.elapse(2_100);
    let kept = first_question(&pair, 0);
    keep(&mut pair, 0, kept);
    assert_eq!(pair.stand(0), frozen);
    pair
}

/// The same, where node 0 was forced, and tells the arbiter so.
fn word() -> Pair {
    let mut pair = primary();
    pair.sides[0].hold.asks = true;
    pair.cut();
    pair.pump();
    pair.done(
        0,
        Command::Promote {
            force: true,
            while_resyncing: false,
        },
    );
    pair.write(0, 5);
    pair.sides[0].asks.clear();
    pair.sides[0].hold = Hold {
        reads: true,
        ..Hold::default()
    };
    pair.linked = true;
    pair.pump();
    pair.sides[0].hold.writes = true;
    pair.request(0, write(9));
    pair.pump();
    pair.sides[0].hold.reads = false;
    pair.pump();
    assert_eq!(pair.stand(0), "Pf");
    pair.sides[0].hold.asks = true;
    pair.elapse(2_100);
    // It reads the register, and changes it then.
    let (attempt, ask) = pair.sides[0].asks.pop_front().expect("a question");
    let answer = pair.arbiter.answer(&ask);
    pair.handle(0, Event::Arbiter { attempt, answer });
    assert!(matches!(pair.sides[0].asks[0].1, Ask::Swap { .. }));
    let kept = first_question(&pair, 0);
    keep(&mut pair, 0, kept);
    assert_eq!(pair.stand(0), "Pf");
    pair
}

/// Both Secondary; a block that node 0 could not read for a verification is on its way back there.
fn written_back() -> Pair {
    let mut pair = in_sync();
    pair.sides[0].bad.insert(3);
    pair.sides[0].hold.writes = true;
    pair.order(0, Command::Verify { repair: false });
    pair.pump();
    let kept = last_on_disk(&pair, 0);
    keep(&mut pair, 0, kept);
    assert_eq!(pair.stand(0), "Si");
    pair
}

/// Node 1 asks for permission; what the Primary sent last is on its way to node 1's disk, so it greets nobody.
fn question_beside_a_write() -> Pair {
    let mut pair = primary();
    pair.sides[1].hold.writes = true;
    pair.request(0, write(3));
    pair.pump();
    let mut pair = cut(pair);
    pair.sides[1].hold.asks = true;
    pair.order(1, PROMOTE);
    pair.elapse(2_200);
    let side = &mut pair.sides[1];
    side.kept = side.asks.front().map(|(id, _)| Kept::Ask(*id));
    side.hold.asks = false;
    assert!(side.kept.is_some() && side.disk.len() == 1);
    pair
}

/// False if it can't happen there. None: it is none of these steps.
pub fn step(pair: &mut Pair, node: usize, step: &str) -> Option<bool> {
    let peer = 1 - node;
    match step {
        "taken over" => return Some(takes_over(pair, peer, true)),
        "peer takes over" => return Some(takes_over(pair, peer, false)),
        "takes over" => return Some(takes_over(pair, node, true)),
        "connect" => drop(pair.order(node, Command::Connect)),
        "peer promoted" => drop(pair.order(peer, PROMOTE)),
        "promote while resyncing" => drop(pair.order(
            node,
            Command::Promote {
                force: false,
                while_resyncing: true,
            },
        )),
        "link unrecorded" => {
            pair.sides[node].hold.metadata = true;
            pair.linked = true;
            pair.meet();
        }
        "at once" | "rest" => {
            for side in &mut pair.sides {
                side.hold = Hold::default();
            }
            pair.pump();
            if step == "rest" {
                pair.elapse(3_000);
            }
        }
        "copies slowly" | "copies unrecorded" => return Some(copies(pair, node, step)),
        "record fails" => {
            pair.sides[node].hold.metadata = true;
            pair.order(node, Command::Invalidate);
            if pair.sides[node].metadata.is_empty() {
                return Some(false);
            }
            pair.end_metadata(node, 0, Err(DiskFault::Io(5)));
            pair.sides[node].hold.metadata = false;
        }
        "leaves as the last copy" => return Some(leaves_as_the_last(pair, node)),
        "demoted as it is offered" => return Some(demoted_as_it_is_offered(pair, node)),
        _ => return None,
    }
    pair.pump();
    Some(true)
}

/// The link is lost, and this node goes on by the arbiter's word. It does not hear the other one, which is demoted if it
/// can be.
fn takes_over(pair: &mut Pair, node: usize, demotes: bool) -> bool {
    let other = 1 - node;
    pair.sides[other].hold.asks = true;
    pair.cut();
    pair.pump();
    if demotes {
        pair.order(other, Command::Demote { force: true });
        pair.pump();
    }
    pair.order(node, PROMOTE);
    pair.elapse(3_000);
    pair.sides[other].asks.clear();
    pair.sides[other].hold.asks = false;
    put(pair, node, 78) && pair.stand(node) == "Pn"
}

/// The other copy is given up for this one: all of it, which is not read yet; or nothing of it, and this node's record
/// of the end is not written.
fn copies(pair: &mut Pair, node: usize, step: &str) -> bool {
    let full = step == "copies slowly";
    for side in &mut pair.sides {
        side.hold.reads = full;
    }
    let from = Some(From::Local);
    pair.order(node, Command::Resync { from, full });
    while !matches!(pair.stand(node), "Ps" | "Ss" | "Pf" | "Sf") {
        if !pair.step() {
            return false;
        }
    }
    pair.sides[node].hold.metadata = !full;
    pair.pump();
    true
}

/// It is told to leave; as its record says so, the Primary's disk has failed, and it is the only copy.
fn leaves_as_the_last(pair: &mut Pair, node: usize) -> bool {
    pair.sides[node].hold.metadata = true;
    pair.order(node, Command::Disconnect);
    pair.pump();
    if !super::ways::lose(pair, 1 - node) || pair.sides[node].metadata.is_empty() {
        return false;
    }
    pair.end_metadata(node, 0, Ok(()));
    true
}

/// The generation is on its way to a guest that writes, and is demoted before that write is answered.
fn demoted_as_it_is_offered(pair: &mut Pair, node: usize) -> bool {
    let source = 1 - node;
    pair.sides[source].hold = Hold::default();
    let is_offer = |message: &Message| matches!(message, Message::Offer { .. });
    while !pair.sides[node].messages.iter().any(|(_, m)| is_offer(m)) {
        if !pair.step() {
            return false;
        }
    }
    pair.sides[source].hold.messages = true;
    pair.request(node, write(9));
    pair.pump();
    pair.order(node, Command::Demote { force: true });
    pair.pump();
    pair.sides[node].mirror.role() == Role::Secondary
}
