//! Ways to events that end later than they began: what is begun, and what happens meanwhile.
//!
//! A beginning is something that the node's disk, metadata store or arbiter does not end (`kept`), in one
//! of a few usual pairs, or in any stand ("write in Ps"). "time in Ps" begins nothing: time passes there.

use bytes::Bytes;
use kagami_replicator::core::event::Request;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::{NodeId, Seq};
use kagami_replicator::core::{Command, DiskFault, DiskOp, Event, Role};

use super::pair::{FORCE, Hold, Kept, MS, Pair, write};
use super::stands::{alone, build, copying, in_sync, primary};
use crate::sim::coverage::STANDS;

/// What is begun, and does not end.
const BEGINNINGS: &[&str] = &[
    "read",
    "edge",
    "edge alone",
    "write",
    "write alone",
    "peer's write",
    "flush",
    "flush alone",
    "peer's flush",
    "peer's read",
    "peer's read of the Primary",
    "peer's compare",
    "peer's compare with the Primary",
    "peer's compare with the target",
    "verify",
    "verify idle",
    "resync",
    "resync idle",
    "resync compares",
    "leave",
    "demote alone",
    "stop",
    "repair",
    "log record",
    "log record alone",
    "promotion",
    "invalidation",
    "ask at the loss",
    "look at the register",
    "rejoin",
    "rejoin idle",
    "carry",
    "carry record",
    "promotion without the peer",
];

/// What can happen meanwhile.
pub const STEPS: &[&str] = &[
    "cut",
    "half a session",
    "link",
    "disk lost",
    "demote",
    "promote",
    "force",
    "invalidate",
    "peer forced",
    "peer demoted",
    "peer's disk lost",
    "wait",
    "link slowly",
    "on",
    "write",
    "goes on alone",
    "peer goes on alone",
    "guest",
    "peer a guest",
];

/// So many of them are tried as the third one.
pub const SIMPLE: usize = 14;

/// What can be begun in any stand.
const KINDS: &[&str] = &[
    "read",
    "edge",
    "write",
    "flush",
    "peer's write",
    "peer's flush",
    "peer's read",
    "peer's compare",
    "verify",
    "leave",
    "demote",
    "stop",
    "log record",
    "record",
    "record of set-peer",
    "record of invalidate",
    "record of promote --force",
    "record of demote --force",
    "question",
    "time",
];

/// All beginnings: the usual ones, and how many steps may follow.
pub fn beginnings() -> Vec<(String, usize)> {
    let usual = BEGINNINGS.iter().map(|what| ((*what).to_owned(), 3));
    let anywhere = KINDS.iter().flat_map(|kind| {
        let stands = STANDS.split(' ');
        stands.map(move |stand| (format!("{kind} in {stand}"), 1))
    });
    usual.chain(anywhere).collect()
}

fn hold(pair: &mut Pair, node: usize, reads: bool, writes: bool, flushes: bool) {
    pair.sides[node].hold = Hold {
        reads,
        writes,
        flushes,
        ..Hold::default()
    };
}

fn partial(block: u64) -> Request {
    Request::Write {
        offset: block * 4096 + 512,
        data: Bytes::from(vec![9; 512]),
        fua: false,
    }
}

/// The peer says something.
pub fn say(pair: &mut Pair, node: usize, message: Message) {
    let session = pair.sides[node].session.expect("a session");
    pair.handle(node, Event::Message { session, message });
}

/// The pair, and the node at which it was begun.
fn begin(what: &str) -> (Pair, usize) {
    let compare = Message::Compare {
        id: 1,
        offset: 4096,
        hashes: vec![[0; 16]],
    };
    let read = Message::Read {
        id: 1,
        offset: 4096,
        len: 4096,
    };
    let (mut pair, node) = match what {
        "edge alone" | "write alone" | "flush alone" | "demote alone" | "log record alone" => {
            (alone(), 0)
        }
        "verify idle" | "rejoin idle" => (in_sync(), 0),
        "peer's write" | "peer's flush" | "peer's read" | "peer's compare" | "leave" => {
            (primary(), 1)
        }
        "promotion" | "invalidation" => (in_sync(), 1),
        "peer's compare with the target" => (copying(), 1),
        "resync" => (copying(), 0),
        "resync idle" => (build("Ss").0, 0),
        "stop" => (build("Sn").0, 1),
        "carry" | "carry record" => (primary(), 1),
        "promotion without the peer" => (build("Sn").0, 1),
        _ => (primary(), 0),
    };
    let reads = !matches!(what, "rejoin" | "carry");
    match what {
        "read" => {
            hold(&mut pair, node, true, false, false);
            pair.request(
                0,
                Request::Read {
                    offset: 0,
                    len: 4096,
                },
            );
        }
        "edge" | "edge alone" => {
            hold(&mut pair, node, true, false, false);
            pair.request(0, partial(3));
        }
        "write" | "write alone" | "peer's write" => {
            hold(&mut pair, node, false, true, false);
            pair.request(0, write(3));
        }
        "flush" | "flush alone" | "peer's flush" => {
            pair.write(0, 3);
            hold(&mut pair, node, false, false, true);
            pair.request(0, Request::Flush);
        }
        "peer's read" | "peer's read of the Primary" => {
            hold(&mut pair, node, reads, false, false);
            say(&mut pair, node, read);
        }
        "peer's compare" | "peer's compare with the Primary" | "peer's compare with the target" => {
            hold(&mut pair, node, true, false, false);
            say(&mut pair, node, compare);
        }
        "verify" | "verify idle" => {
            hold(&mut pair, node, true, false, false);
            pair.order(node, Command::Verify { repair: false });
        }
        "resync compares" => {
            hold(&mut pair, node, true, false, false);
            pair.done(0, Command::Demote { force: false });
            pair.order(1, Command::Invalidate);
        }
        "leave" => {
            hold(&mut pair, node, false, false, true);
            pair.order(node, Command::Disconnect);
        }
        "demote alone" => {
            hold(&mut pair, node, false, false, true);
            pair.order(node, Command::Demote { force: false });
        }
        "stop" => {
            hold(&mut pair, node, false, false, true);
            pair.order(node, Command::Stop);
        }
        "repair" => {
            hold(&mut pair, node, true, true, false);
            pair.request(
                0,
                Request::Read {
                    offset: 4096 * 3,
                    len: 4096,
                },
            );
            pair.pump();
            pair.end_disk(0, 0, Err(DiskFault::Io(5)));
        }
        "log record" | "log record alone" => {
            pair.sides[node].hold.metadata = true;
            pair.request(0, write(3_000));
        }
        "promotion" => {
            pair.sides[node].hold.metadata = true;
            pair.order(
                node,
                Command::Promote {
                    force: false,
                    while_resyncing: false,
                },
            );
        }
        "invalidation" => {
            pair.sides[node].hold.metadata = true;
            pair.order(node, Command::Invalidate);
        }
        "ask at the loss" => {
            pair.sides[node].hold.asks = true;
            pair.cut();
        }
        "look at the register" => {
            pair.cut();
            pair.pump();
            pair.sides[node].hold.asks = true;
            pair.elapse(2_010);
        }
        "rejoin" | "rejoin idle" => {
            pair.sides[node].hold.asks = true;
            pair.elapse(31_000);
        }
        "carry" => {
            pair.sides[node].hold.asks = true;
            lose(&mut pair, 0);
        }
        "carry record" => {
            pair.sides[node].hold.metadata = true;
            lose(&mut pair, 0);
        }
        "promotion without the peer" => {
            pair.sides[node].hold.asks = true;
            pair.order(
                node,
                Command::Promote {
                    force: false,
                    while_resyncing: false,
                },
            );
            pair.elapse(2_200);
        }
        _ => {}
    }
    if !what.starts_with("resync") || what == "resync compares" {
        pair.pump();
    }
    let side = &mut pair.sides[node];
    side.kept = match () {
        () if side.hold.asks => side.asks.front().map(|(id, _)| Kept::Ask(*id)),
        () if side.hold.metadata => side.metadata.front().map(|id| Kept::Metadata(*id)),
        () => side.disk.front().map(|(id, _)| Kept::Disk(*id)),
    };
    assert!(side.kept.is_some(), "nothing was begun: {what}");
    side.hold = Hold::default();
    if !what.starts_with("resync") {
        pair.pump();
    }
    (pair, node)
}

/// The pair in a stand, and its node, at which a kind of thing was begun. None: it is not begun there.
fn begin_in(kind: &str, stand: &str) -> Option<(Pair, usize)> {
    let (mut pair, node) = build(stand);
    if kind == "time" {
        return Some((pair, node));
    }
    let holds = [pair.sides[0].hold, pair.sides[1].hold];
    let before = under_way(&pair, node, kind);
    let hold = &mut pair.sides[node].hold;
    match kind {
        "read" | "edge" | "peer's read" | "peer's compare" | "verify" => hold.reads = true,
        "write" | "peer's write" => hold.writes = true,
        "flush" | "peer's flush" | "leave" | "demote" | "stop" => hold.flushes = true,
        // (So that a frozen source stays one.)
        "question" => (hold.asks, hold.flushes, hold.metadata) = (true, true, true),
        _ => hold.metadata = true,
    }
    let has_session = pair.sides[node].session.is_some();
    let order = match kind {
        "verify" => Some(Command::Verify { repair: false }),
        "leave" => Some(Command::Disconnect),
        "demote" => Some(Command::Demote { force: false }),
        "stop" => Some(Command::Stop),
        "record of set-peer" => Some(Command::SetPeer { peer: NodeId(3) }),
        "record of invalidate" => Some(Command::Invalidate),
        "record of promote --force" => Some(FORCE),
        "record of demote --force" => Some(Command::Demote { force: true }),
        _ => None,
    };
    let request = match kind {
        "read" => Some(Request::Read {
            offset: 0,
            len: 4096,
        }),
        "edge" => Some(partial(3)),
        "write" | "peer's write" => Some(write(3)),
        "log record" => Some(write(3_000)),
        "flush" => Some(Request::Flush),
        _ => None,
    };
    let message = match kind {
        "peer's flush" => Some(Message::Flush {
            id: 1,
            after: Seq(0),
        }),
        "peer's read" => Some(Message::Read {
            id: 1,
            offset: 4096,
            len: 4096,
        }),
        "peer's compare" => Some(Message::Compare {
            id: 1,
            offset: 4096,
            hashes: vec![[0; 16]],
        }),
        _ => None,
    };
    if kind == "flush" || kind == "demote" {
        pair.request(node, write(3));
    }
    match (order, request, message) {
        (Some(order), ..) => drop(pair.order(node, order)),
        (_, Some(request), _) if kind == "peer's write" => {
            pair.request(1 - node, request);
        }
        (_, Some(request), _) => drop(pair.request(node, request)),
        (.., Some(message)) if has_session => say(&mut pair, node, message),
        (.., Some(_)) => return None,
        _ => {}
    }
    let end = pair.now + 35_000 * MS;
    let waits = matches!(kind, "question" | "record");
    let begun = loop {
        let now = under_way(&pair, node, kind);
        if let Some(begun) = now.into_iter().find(|kept| !before.contains(kept)) {
            break begun;
        }
        if pair.stand(node) != stand {
            return None;
        }
        if !pair.step() {
            if !waits || pair.now >= end {
                return None;
            }
            pair.tick(end);
        }
    };
    for (side, hold) in pair.sides.iter_mut().zip(holds) {
        side.hold = hold;
    }
    pair.sides[node].kept = Some(begun);
    Some((pair, node))
}

/// What a node has under way of what such a beginning is.
fn under_way(pair: &Pair, node: usize, kind: &str) -> Vec<Kept> {
    let side = &pair.sides[node];
    let disk = |is: fn(&DiskOp) -> bool| {
        let ops = side.disk.iter().filter(move |(_, op)| is(op));
        ops.map(|(id, _)| Kept::Disk(*id)).collect()
    };
    match kind {
        "read" | "edge" | "peer's read" | "peer's compare" | "verify" => {
            disk(|op| matches!(op, DiskOp::Read { .. }))
        }
        "write" | "peer's write" => {
            disk(|op| matches!(op, DiskOp::Write { .. } | DiskOp::Zero { .. }))
        }
        "flush" | "peer's flush" | "leave" | "demote" | "stop" => {
            disk(|op| matches!(op, DiskOp::Flush))
        }
        "question" => side.asks.iter().map(|(id, _)| Kept::Ask(*id)).collect(),
        _ => side.metadata.iter().map(|id| Kept::Metadata(*id)).collect(),
    }
}

/// The next write to a node's disk fails. False if there is nobody to write.
pub fn lose(pair: &mut Pair, node: usize) -> bool {
    let Some(writer) = [0, 1]
        .into_iter()
        .find(|n| pair.sides[*n].mirror.role() == Role::Primary)
    else {
        return false;
    };
    pair.sides[node].hold.writes = true;
    pair.request(writer, write(9));
    pair.pump();
    let kept = pair.sides[node].kept;
    let at = pair.sides[node]
        .disk
        .iter()
        .position(|(id, op)| matches!(op, DiskOp::Write { .. }) && kept != Some(Kept::Disk(*id)));
    if let Some(at) = at {
        pair.end_disk(node, at, Err(DiskFault::Io(5)));
    }
    pair.sides[node].hold.writes = false;
    pair.pump();
    at.is_some()
}

/// False if it can't happen there.
fn step(pair: &mut Pair, node: usize, step: &str) -> bool {
    let has_session = pair.sides[node].session.is_some();
    match step {
        "cut" if has_session => pair.cut(),
        "half a session" if !has_session => {
            pair.linked = false;
            pair.meet_at(node);
        }
        "link" if !has_session => {
            pair.linked = true;
            pair.meet();
        }
        "disk lost" => return lose(pair, node),
        "peer's disk lost" => return lose(pair, 1 - node),
        "demote" => drop(pair.order(node, Command::Demote { force: true })),
        "promote" => drop(pair.order(
            node,
            Command::Promote {
                force: false,
                while_resyncing: false,
            },
        )),
        "force" => drop(pair.order(
            node,
            Command::Promote {
                force: true,
                while_resyncing: false,
            },
        )),
        "invalidate" => drop(pair.order(node, Command::Invalidate)),
        "peer forced" => drop(pair.order(
            1 - node,
            Command::Promote {
                force: true,
                while_resyncing: false,
            },
        )),
        "peer demoted" => drop(pair.order(1 - node, Command::Demote { force: true })),
        "wait" => pair.elapse(3_000),
        "write" => return put(pair, 0, 77) || put(pair, 1, 77),
        "goes on alone" => return goes_on_alone(pair, node),
        "peer goes on alone" => return goes_on_alone(pair, 1 - node),
        "link slowly" if !has_session => slowly(pair),
        "on" => return on(pair, node),
        "guest" => return guest(pair, node),
        "peer a guest" => return guest(pair, 1 - node),
        _ => return super::routes::step(pair, node, step).unwrap_or(false),
    }
    pair.pump();
    true
}

/// A Primary is written to. False if it is none.
pub fn put(pair: &mut Pair, node: usize, block: u64) -> bool {
    if pair.sides[node].mirror.role() != Role::Primary {
        return false;
    }
    pair.request(node, write(block));
    pair.pump();
    true
}

/// The link is lost, and this node goes on, whatever becomes of the other one.
fn goes_on_alone(pair: &mut Pair, node: usize) -> bool {
    pair.cut();
    pair.pump();
    pair.order(1 - node, Command::Demote { force: true });
    pair.pump();
    if pair.sides[node].mirror.role() != Role::Primary {
        pair.order(node, FORCE);
        pair.pump();
    }
    put(pair, node, 78)
}

/// They meet, and what is read to be copied stays on its way.
fn slowly(pair: &mut Pair) {
    for side in &mut pair.sides {
        side.hold.reads = true;
    }
    pair.linked = true;
    pair.meet();
}

/// It goes on until this node stands elsewhere. False if it does not.
fn on(pair: &mut Pair, node: usize) -> bool {
    for side in &mut pair.sides {
        side.hold = Hold::default();
    }
    let before = pair.stand(node);
    while pair.stand(node) == before {
        if !pair.step() {
            return false;
        }
    }
    true
}

/// The other one goes on alone, is demoted, and this node is promoted while it is brought up to date.
fn guest(pair: &mut Pair, node: usize) -> bool {
    let went = goes_on_alone(pair, 1 - node);
    pair.order(1 - node, Command::Demote { force: false });
    pair.pump();
    slowly(pair);
    pair.pump();
    let while_resyncing = true;
    let force = false;
    pair.order(
        node,
        Command::Promote {
            force,
            while_resyncing,
        },
    );
    pair.pump();
    went && pair.stand(node) == "Pt"
}

/// Where the way leads: the pair, and the node.
pub fn walk(beginning: &str, steps: &[&str]) -> Option<(Pair, usize)> {
    let (mut pair, node) = match beginning.rsplit_once(" in ") {
        Some((kind, stand)) => begin_in(kind, stand)?,
        None => super::routes::begin(beginning).unwrap_or_else(|| begin(beginning)),
    };
    steps
        .iter()
        .all(|name| step(&mut pair, node, name))
        .then_some((pair, node))
}
