//! What ends in another stand than it began in: disk operations, metadata writes, questions to the arbiter.
//!
//! late.txt has a line for each: the event, the stand in which it comes, what was begun, what happened
//! between, and what it does; `ways` knows what can be begun, and what can happen. `KAGAMI_LATE=write`
//! searches a shortest way to each of the cells anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use kagami_replicator::core::message::Message;
use kagami_replicator::core::register::ArbiterAnswer;
use kagami_replicator::core::state::Time;
use kagami_replicator::core::{DiskFault, Event};

use super::cells::told;
use super::pair::{Kept, MS, Pair};
use super::rest::come_to_rest;
use super::routes::routes;
use super::stands::build;
use super::ways::{SIMPLE, STEPS, beginnings, say, walk};

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

/// "event @ stand" and what it does.
fn end(pair: &mut Pair, node: usize, how: &str) -> Option<(String, String)> {
    let stand = pair.stand(node);
    let event = ending(pair, node, how)?;
    let occasion = pair.sides[node].mirror.occasion(Time(pair.now), &event);
    Some((format!("{occasion} @ {stand}"), told(pair, node, event)))
}

/// The peer is alive, and nothing else is answered: the deadlines that become due, one after the other, until
/// one is the one that is sought. What each is, and where.
fn deadlines(pair: &mut Pair, node: usize, sought: Option<&str>) -> Vec<String> {
    let end = pair.now + 40_000 * MS;
    let mut cells = Vec::new();
    while let Some(at) = pair.sides[node].due().filter(|at| at.0 < end) {
        // A little late, so that two deadlines do not always fall together.
        pair.now = pair.now.max(at.0 + 3 * MS);
        let mirror = &pair.sides[node].mirror;
        let occasion = mirror.occasion(Time(pair.now), &Event::Timer);
        cells.push(format!("{occasion} @ {}", pair.stand(node)));
        if sought.is_some_and(|sought| cells.last().is_some_and(|cell| cell == sought)) {
            break;
        }
        pair.handle(node, Event::Timer);
        if let Some(session) = pair.sides[node].session {
            let message = Message::Pong { sent: pair.now };
            pair.handle(node, Event::Message { session, message });
        }
    }
    cells
}

/// That deadline is due after all.
fn due(pair: &mut Pair, node: usize, cell: &str) -> Option<(String, String)> {
    let cells = deadlines(pair, node, Some(cell));
    (cells.last().map(String::as_str) == Some(cell))
        .then(|| (cell.to_owned(), told(pair, node, Event::Timer)))
}

/// None where it fails, which is told.
fn tried<T>(what: &str, way: &[&str], run: impl FnOnce() -> Option<T>) -> Option<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        eprintln!("{what}: {way:?}: it fails");
        None
    })
}

/// For each cell the length of its way, and its line.
type Found = BTreeMap<String, (usize, String)>;

/// Notes what can end, or become due, where a way leads: the shortest way to each cell stays.
fn note(found: &mut Found, beginning: &str, way: &[&str], pair: &mut Pair, node: usize) {
    let mut keep = |cell: String, how: &str, outcome: String| {
        let known = found.get(&cell).map(|(length, _)| *length);
        if known.is_none_or(|length| length > way.len()) {
            let line = format!("{beginning} / {} / {how} / {outcome}", way.join(", "));
            found.insert(cell, (way.len(), line));
        }
    };
    if let Some(kept) = pair.sides[node].kept {
        for how in endings(kept) {
            let ended = tried(beginning, way, || {
                let (mut pair, node) = walk(beginning, way)?;
                end(&mut pair, node, how)
            });
            if let Some((cell, outcome)) = ended {
                keep(cell, how, outcome);
            }
        }
    } else {
        let all = tried(beginning, way, || Some(deadlines(pair, node, None)));
        let all: BTreeSet<String> = all.into_iter().flatten().collect();
        for cell in all {
            let ended = tried(beginning, way, || {
                let (mut pair, node) = walk(beginning, way)?;
                due(&mut pair, node, &cell)
            });
            if let Some((cell, outcome)) = ended {
                keep(cell, "due", outcome);
            }
        }
    }
}

/// A shortest way to each cell.
fn search() -> BTreeMap<String, String> {
    let mut found = Found::new();
    for (beginning, most) in beginnings() {
        let mut seen = BTreeSet::new();
        let mut ways: VecDeque<Vec<&str>> = VecDeque::from([vec![]]);
        while let Some(way) = ways.pop_front() {
            let Some((mut pair, node)) = tried(&beginning, &way, || walk(&beginning, &way)) else {
                continue;
            };
            let of_time = beginning.starts_with("time in ");
            if pair.sides[node].kept.is_none() && !of_time {
                continue;
            }
            let is_new = seen.insert([pair.stand(node), pair.stand(1 - node)]);
            // (What was done may set a deadline, and change nothing else.)
            if !(is_new || of_time && way.len() == 1) {
                continue;
            }
            note(&mut found, &beginning, &way, &mut pair, node);
            if way.len() < most {
                // (The last of several is a simple one: there are enough of the others.)
                let steps = if way.len() < 2 {
                    STEPS
                } else {
                    &STEPS[..SIMPLE]
                };
                ways.extend(steps.iter().map(|step| [way.as_slice(), &[*step]].concat()));
            }
        }
    }
    for (beginning, way) in routes() {
        match tried(&beginning, &way, || walk(&beginning, &way)) {
            Some((mut pair, node)) => note(&mut found, &beginning, &way, &mut pair, node),
            None => eprintln!("{beginning}: {way:?}: there is no such way"),
        }
    }
    let lines = found.into_iter().map(|(cell, (_, line))| (cell, line));
    lines.collect()
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
        let (mut pair, node) =
            walk(beginning, &way).unwrap_or_else(|| panic!("no such way: {line}"));
        let ended = match how {
            "due" => due(&mut pair, node, cell),
            _ => end(&mut pair, node, how),
        };
        let (now, does) = ended.unwrap_or_else(|| panic!("it has ended: {line}"));
        assert_eq!((now.as_str(), does.as_str()), (cell, outcome), "{line}");
        come_to_rest(&mut pair);
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
