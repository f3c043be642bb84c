//! What ends in another stand than it began in: disk operations, metadata writes, questions to the arbiter.
//!
//! late.txt has a line for each: the event, the stand in which it comes, what was begun, what happened
//! between, and what it does. `KAGAMI_LATE=write` searches a shortest way to each of the cells anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use kagami_replicator::core::event::Request;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::register::ArbiterAnswer;
use kagami_replicator::core::state::Time;
use kagami_replicator::core::{Command, DiskFault, DiskOp, Event, Role};

use super::cells::told;
use super::pair::{Hold, Kept, Pair, write};
use super::stands::{alone, build, copying, in_sync, primary};

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
    "promotion without the peer",
];

/// What can happen meanwhile.
const STEPS: &[&str] = &[
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
];

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

fn say(pair: &mut Pair, node: usize, message: Message) {
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
        "carry" => (primary(), 1),
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

/// The next write to a node's disk fails. False if there is nobody to write.
fn lose(pair: &mut Pair, node: usize) -> bool {
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
        _ => return false,
    }
    pair.pump();
    true
}

/// How what was begun can end.
fn endings(kept: Kept) -> &'static [&'static str] {
    match kept {
        Kept::Disk(_) | Kept::Metadata(_) => &["well", "badly"],
        Kept::Ask(_) => &["as it is", "swapped", "not ours", "unreachable"],
    }
}

/// The event that ends what was begun. None if it has ended otherwise.
fn ending(pair: &mut Pair, node: usize, how: &str) -> Option<Event> {
    let side = &mut pair.sides[node];
    let result = if how == "badly" {
        Err(DiskFault::Io(5))
    } else {
        Ok(())
    };
    match side.kept.take()? {
        Kept::Disk(id) => {
            let at = side.disk.iter().position(|(of, _)| *of == id)?;
            Some(pair.disk_event(node, at, result))
        }
        Kept::Metadata(id) => {
            let at = side.metadata.iter().position(|of| *of == id)?;
            side.metadata.remove(at);
            Some(Event::MetadataDone { id, result })
        }
        Kept::Ask(attempt) => {
            let at = side.asks.iter().position(|(of, _)| *of == attempt)?;
            let (_, ask) = side.asks.remove(at)?;
            let answer = match how {
                "swapped" => ArbiterAnswer::Swapped,
                "not ours" => ArbiterAnswer::NotOurs("it is another mirror's".into()),
                "unreachable" => ArbiterAnswer::Unreachable("no way there".into()),
                _ => pair.arbiter.answer(&ask),
            };
            Some(Event::Arbiter { attempt, answer })
        }
    }
}

/// Where the way leads: the pair, and the node.
fn walk(beginning: &str, steps: &[&str]) -> Option<(Pair, usize)> {
    let (mut pair, node) = begin(beginning);
    steps
        .iter()
        .all(|name| step(&mut pair, node, name))
        .then_some((pair, node))
}

/// "event @ stand" and what it does.
fn end(mut pair: Pair, node: usize, how: &str) -> Option<(String, String)> {
    let stand = pair.stand(node);
    let event = ending(&mut pair, node, how)?;
    let occasion = pair.sides[node].mirror.occasion(Time(pair.now), &event);
    Some((
        format!("{occasion} @ {stand}"),
        told(&mut pair, node, event),
    ))
}

/// A shortest way to each cell.
fn search() -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for beginning in BEGINNINGS {
        let mut seen = BTreeSet::new();
        let mut ways: VecDeque<Vec<&str>> = VecDeque::from([vec![]]);
        while let Some(way) = ways.pop_front() {
            let tried = catch_unwind(AssertUnwindSafe(|| walk(beginning, &way)));
            let Ok(tried) = tried else {
                eprintln!("{beginning}: {way:?}: it fails");
                continue;
            };
            let Some((pair, node)) = tried else { continue };
            let Some(kept) = pair.sides[node].kept else {
                continue;
            };
            let at = [pair.stand(node), pair.stand(1 - node)];
            if !seen.insert(at) {
                continue;
            }
            for how in endings(kept) {
                let tried = catch_unwind(AssertUnwindSafe(|| {
                    let (pair, node) = walk(beginning, &way)?;
                    end(pair, node, how)
                }));
                let Ok(tried) = tried else {
                    eprintln!("{beginning}: {way:?}, {how}: it fails");
                    continue;
                };
                let Some((cell, outcome)) = tried else {
                    continue;
                };
                if found
                    .get(&cell)
                    .is_none_or(|(length, _)| *length > way.len())
                {
                    let line = format!("{beginning} / {} / {how} / {outcome}", way.join(", "));
                    found.insert(cell, (way.len(), line));
                }
            }
            if way.len() < 3 {
                ways.extend(STEPS.iter().map(|step| [way.as_slice(), &[*step]].concat()));
            }
        }
    }
    found
        .into_iter()
        .map(|(cell, (_, line))| (cell, line))
        .collect()
}

#[test]
fn what_ends_in_another_stand_than_it_began_does_what_the_table_says() {
    let found = || {
        let lines = search()
            .into_iter()
            .map(|(cell, line)| cell + " / " + &line + "\n");
        lines.collect::<String>()
    };
    let Some(table) = super::table("late.txt", "KAGAMI_LATE", found) else {
        return;
    };
    assert!(table.lines().count() > 50);
    for line in table.lines() {
        let parts: Vec<&str> = line.split(" / ").collect();
        let [cell, beginning, way, how, outcome] = parts[..] else {
            panic!("{line}");
        };
        let way: Vec<&str> = way.split(", ").filter(|step| !step.is_empty()).collect();
        let (pair, node) = walk(beginning, &way).unwrap_or_else(|| panic!("no such way: {line}"));
        let (now, does) = end(pair, node, how).unwrap_or_else(|| panic!("it has ended: {line}"));
        assert_eq!((now.as_str(), does.as_str()), (cell, outcome), "{line}");
    }
}

#[test]
fn marks_come_in_pieces_and_the_last_one_counts() {
    for stand in ["Pm", "Sm", "Bm"] {
        let (mut pair, node) = build(stand);
        let hello = super::cells::hello(&pair.sides[1 - node].mirror);
        say(&mut pair, node, Message::Hello(Box::new(hello)));
        pair.pump();
        let before = pair.sides[node].mirror.dirty().count();
        let piece = |first, last| Message::Marks {
            runs: vec![kagami_bitmap::Run::new(kagami_bitmap::Block(first), 2)],
            last,
        };
        say(&mut pair, node, piece(1_000, false));
        assert_eq!(
            pair.sides[node].mirror.dirty().count(),
            before + 2,
            "{stand}"
        );
        say(&mut pair, node, Message::Ready);
        assert!(
            matches!(pair.stand(node), "Pm" | "Bm"),
            "{stand}: not all is told yet"
        );
        say(&mut pair, node, piece(1_010, true));
        assert_eq!(
            pair.sides[node].mirror.dirty().count(),
            before + 4,
            "{stand}"
        );
        let up = if stand == "Pm" { "Ps" } else { "Bt" };
        assert_eq!(pair.stand(node), up, "{stand}");
        // A piece behind the last one is a fault.
        say(&mut pair, node, piece(1_020, false));
        assert_eq!(pair.sides[node].session, None);
    }
}
