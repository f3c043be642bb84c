//! What each event does in each stand: cells.txt, and what must hold in all of it.
//!
//! A cell is told in words: what the core does at once ("closes", "says Leave", "records"), and
//! what there is when all that follows has happened ("then done, Sn, minted"). The table is
//! reviewed by people; `KAGAMI_CELLS=write` writes it anew, and the difference is what a change of the core means.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use kagami_replicator::core::event::{From, Reply, Request};
use kagami_replicator::core::message::{Doing, Hello, Message};
use kagami_replicator::core::register::ArbiterAnswer;
use kagami_replicator::core::state::{
    Attempt, CommandId, DiskState, NodeId, RequestId, Seq, SessionId, Time,
};
use kagami_replicator::core::{Action, Command, DiskOp, Event, Mirror, Notice, Role, Settings};

use super::pair::{Effects, Pair, write};
use super::rest::come_to_rest;
use super::stands::build;
use crate::sim::coverage::STANDS;

/// What the table says: for each event, each outcome and the stands that have it.
type Cells = BTreeMap<String, BTreeMap<String, Vec<&'static str>>>;

/// Ids of an order and a request that no other test event has.
const ORDER: CommandId = CommandId(900_000);
const REQUEST: RequestId = RequestId(900_000);

fn commands() -> Vec<(&'static str, Command)> {
    let resync = |from| Command::Resync { from, full: false };
    vec![
        (
            "promote",
            Command::Promote {
                force: false,
                while_resyncing: false,
            },
        ),
        (
            "promote --force",
            Command::Promote {
                force: true,
                while_resyncing: false,
            },
        ),
        ("promote, fenced", Command::PromoteFenced),
        ("demote", Command::Demote { force: false }),
        ("demote --force", Command::Demote { force: true }),
        ("resync", resync(None)),
        ("resync --from local", resync(Some(From::Local))),
        ("resync --from peer", resync(Some(From::Peer))),
        ("pause-sync", Command::PauseSync),
        ("resume-sync", Command::ResumeSync),
        ("verify", Command::Verify { repair: false }),
        ("stop verify", Command::StopVerify),
        ("invalidate", Command::Invalidate),
        ("disconnect", Command::Disconnect),
        ("connect", Command::Connect),
        ("set peer", Command::SetPeer { peer: NodeId(3) }),
        ("down", Command::Stop),
        ("reload", Command::Set(Settings::default())),
    ]
}

fn requests() -> Vec<(&'static str, Request)> {
    let (offset, len) = (8 << 20, 8192);
    let Request::Write {
        offset: at, data, ..
    } = write(2100)
    else {
        unreachable!("a write")
    };
    vec![
        ("read", Request::Read { offset, len }),
        ("write", write(2101)),
        (
            "write, FUA",
            Request::Write {
                offset: at,
                data,
                fua: true,
            },
        ),
        (
            "zeroes",
            Request::WriteZeroes {
                offset,
                len: 8192,
                unmap: false,
                fua: false,
            },
        ),
        (
            "discard",
            Request::Discard {
                offset,
                len: 8192,
                fua: false,
            },
        ),
        ("flush", Request::Flush),
    ]
}

/// Each kind of message, out of the blue: answers to what was never asked, offers to nobody.
fn messages(pair: &Pair, node: usize) -> Vec<(&'static str, Message)> {
    let peer = &pair.sides[1 - node].mirror;
    let generation = peer.record().current.expect("a generation");
    let data = bytes::Bytes::from(vec![7; 4096]);
    let (seq, offset, id, len) = (Seq(77), 4096, 77, 4096);
    let fault = kagami_replicator::core::DiskFault::Io(5);
    vec![
        ("Hello", Message::Hello(Box::new(hello(peer)))),
        (
            "Marks",
            Message::Marks {
                runs: vec![],
                last: false,
            },
        ),
        (
            "Marks, the last",
            Message::Marks {
                runs: vec![],
                last: true,
            },
        ),
        ("Ready", Message::Ready),
        ("Ping", Message::Ping { sent: 5 }),
        ("Pong", Message::Pong { sent: pair.now + 1 }),
        (
            "State",
            Message::State {
                role: Role::Primary,
                disk: DiskState::UpToDate,
            },
        ),
        (
            "Write",
            Message::Write {
                seq: Seq(1),
                offset,
                data: data.clone(),
                fua: false,
                early: false,
            },
        ),
        (
            "Zero",
            Message::Zero {
                seq: Seq(1),
                offset,
                len: 4096,
                unmap: false,
                fua: false,
            },
        ),
        (
            "ResyncBlocks",
            Message::ResyncBlocks {
                seq: Seq(1),
                offset,
                data: data.clone(),
            },
        ),
        ("Received", Message::Received { seq }),
        (
            "Done",
            Message::Done {
                seq,
                result: Ok(()),
            },
        ),
        (
            "Done, failed",
            Message::Done {
                seq,
                result: Err(fault),
            },
        ),
        ("Flush", Message::Flush { id, after: Seq(0) }),
        ("Flushed", Message::Flushed { id, result: Ok(()) }),
        (
            "Flushed, failed",
            Message::Flushed {
                id,
                result: Err(fault),
            },
        ),
        ("Cleared", Message::Cleared { runs: vec![] }),
        (
            "Offer",
            Message::Offer {
                current: generation,
                history: vec![],
            },
        ),
        ("Adopted", Message::Adopted),
        ("Settled", Message::Settled),
        ("PromoteAsk", Message::PromoteAsk),
        ("PromoteGrant", Message::PromoteGrant),
        ("PromoteRefuse", Message::PromoteRefuse { why: "no".into() }),
        ("Carrying", Message::Carrying),
        ("Read", Message::Read { id, offset, len }),
        (
            "ReadReply",
            Message::ReadReply {
                id,
                result: Ok(data),
            },
        ),
        (
            "ReadReply, failed",
            Message::ReadReply {
                id,
                result: Err(fault),
            },
        ),
        (
            "Compare",
            Message::Compare {
                id,
                offset,
                hashes: vec![[0; 16]],
            },
        ),
        (
            "Compared",
            Message::Compared {
                id,
                result: Ok(vec![]),
            },
        ),
        (
            "Compared, failed",
            Message::Compared {
                id,
                result: Err(fault),
            },
        ),
        (
            "Progress",
            Message::Progress {
                doing: Doing::Nothing,
            },
        ),
        (
            "ArbiterInstance",
            Message::ArbiterInstance { instance: Some(5) },
        ),
        (
            "ArbiterRecorded",
            Message::ArbiterRecorded { instance: Some(5) },
        ),
        ("Leave", Message::Leave),
        ("Bye", Message::Bye),
        (
            "Resolve",
            Message::Resolve {
                keep: pair.sides[node].mirror.peer(),
                full: false,
            },
        ),
    ]
}

/// What the copy would say of itself, without a word of its operator.
pub fn hello(of: &Mirror) -> Hello {
    Hello {
        diskless: matches!(of.disk_state(), DiskState::Failed | DiskState::Diskless),
        marks: of.dirty().count(),
        role: of.role(),
        unbroken: true,
        unmap_zeroes: true,
        boot: Some(u128::from(of.record().node)),
        ..Hello::of(of.record(), of.settings())
    }
}

/// What of a node must not change when an event comes to nothing.
#[derive(Clone, Debug, PartialEq)]
struct Standing {
    stand: &'static str,
    role: Role,
    generation: Option<u64>,
    marks: u64,
    session: Option<SessionId>,
}

fn standing(pair: &Pair, node: usize) -> Standing {
    let side = &pair.sides[node];
    Standing {
        stand: pair.stand(node),
        role: side.mirror.role(),
        generation: side.mirror.record().current.map(|g| g.tag),
        marks: side.mirror.dirty().count(),
        session: side.session,
    }
}

fn kind(message: &Message) -> String {
    let text = format!("{message:?}");
    let end = text
        .find(|c: char| !c.is_alphanumeric())
        .unwrap_or(text.len());
    text[..end].to_owned()
}

/// What a core wants done, in words, each once.
fn words(effects: &Effects) -> Vec<String> {
    let mut words = Vec::new();
    for effect in effects {
        let word = match effect {
            Action::CommandDone { result, .. } => match result {
                Ok(Reply::Done) => "done",
                Ok(Reply::Started) => "started",
                Ok(Reply::Nothing(_)) => "nothing",
                Err(_) => "refused",
            }
            .to_owned(),
            Action::Complete { result: Ok(_), .. } => "answered".to_owned(),
            Action::Complete { result: Err(e), .. } => format!("{e:?}"),
            Action::Disk { op, .. } => match op {
                DiskOp::Read { .. } => "reads",
                DiskOp::Write { .. } => "writes",
                DiskOp::Zero { .. } => "zeroes",
                DiskOp::Flush => "flushes",
            }
            .to_owned(),
            Action::Metadata { .. } => "records".to_owned(),
            Action::Send { message, .. } => match message {
                Message::Ping { .. } => continue,
                message => format!("says {}", kind(message)),
            },
            Action::CloseSession { .. } => "closes".to_owned(),
            Action::AskArbiter { .. } => "asks".to_owned(),
            Action::Report(Notice::PeerFault { .. }) => "fault".to_owned(),
            _ => continue,
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words
}

/// Hands the event in, lets all that follows happen, and tells what it was.
pub fn told(pair: &mut Pair, node: usize, event: Event) -> String {
    let before = standing(pair, node);
    let role_may_change = matches!(
        event,
        Event::Command {
            command: Command::Promote { .. } | Command::PromoteFenced,
            ..
        }
    );
    match &event {
        Event::Command { id, .. } => drop(pair.open.insert((node, id.0))),
        Event::Request { id, .. } => drop(pair.open.insert((node, id.0))),
        _ => {}
    }
    let at_once = words(&pair.handle(node, event));
    let after = standing(pair, node);
    let refused = ["refused", "nothing", "NotPrimary"];
    if at_once.iter().any(|word| refused.contains(&word.as_str())) {
        assert_eq!(
            at_once.len(),
            1,
            "{before:?}: who refuses does nothing: {at_once:?}"
        );
        assert_eq!(before, after, "who refuses does nothing");
    }
    pair.pump();
    let rest = standing(pair, node);
    assert!(
        role_may_change || rest.role == before.role || rest.role == Role::Secondary,
        "Primary without an order"
    );
    let mut then = Vec::new();
    let side = &pair.sides[node];
    let answer = side.answers.iter().find(|(id, _)| *id == ORDER);
    let reply = side.replies.iter().find(|(id, _)| *id == REQUEST);
    let late = match (answer, reply) {
        (Some((id, result)), _) => words(&vec![Action::CommandDone {
            id: *id,
            result: result.clone(),
        }]),
        (_, Some((id, result))) => words(&vec![Action::Complete {
            id: *id,
            result: result.clone(),
        }]),
        _ => vec![],
    };
    then.extend(late.into_iter().filter(|word| !at_once.contains(word)));
    if rest.stand != before.stand {
        then.push(rest.stand.to_owned());
    }
    if rest.generation != before.generation {
        then.push("another generation".to_owned());
    }
    if rest.marks != before.marks {
        then.push(
            if rest.marks > before.marks {
                "more marks"
            } else {
                "fewer marks"
            }
            .to_owned(),
        );
    }
    let mut text = if at_once.is_empty() {
        "-".to_owned()
    } else {
        at_once.join(", ")
    };
    if !then.is_empty() {
        let _ = write!(text, "; then {}", then.join(", "));
    }
    text
}

fn put(cells: &mut Cells, event: &str, outcome: String, stand: &'static str) {
    let stands = cells
        .entry(event.to_owned())
        .or_default()
        .entry(outcome)
        .or_default();
    if !stands.contains(&stand) {
        stands.push(stand);
    }
}

/// Everything that can come from outside, in every stand.
fn try_all() -> Cells {
    let mut cells = Cells::new();
    for stand in STANDS.split(' ') {
        for (name, command) in commands() {
            let (mut pair, node) = build(stand);
            let event = Event::Command { id: ORDER, command };
            let outcome = told(&mut pair, node, event);
            put(&mut cells, &format!("command: {name}"), outcome, stand);
            come_to_rest(&mut pair);
        }
        for (name, request) in requests() {
            let (mut pair, node) = build(stand);
            let event = Event::Request {
                id: REQUEST,
                request,
            };
            let outcome = told(&mut pair, node, event);
            put(&mut cells, &format!("request: {name}"), outcome, stand);
            come_to_rest(&mut pair);
        }
        let kinds = match build(stand) {
            (pair, node) if pair.sides[node].session.is_some() => messages(&pair, node).len(),
            _ => 0,
        };
        for kind in 0..kinds {
            let (mut pair, node) = build(stand);
            let session = pair.sides[node].session.expect("a session");
            let (name, message) = messages(&pair, node).swap_remove(kind);
            let outcome = told(&mut pair, node, Event::Message { session, message });
            put(&mut cells, &format!("message: {name}"), outcome, stand);
        }
        let (mut pair, node) = build(stand);
        if let Some(session) = pair.sides[node].session.take() {
            let reason = "lost".to_owned();
            let outcome = told(&mut pair, node, Event::LinkDown { session, reason });
            put(&mut cells, "link: down", outcome, stand);
            come_to_rest(&mut pair);
        }
        let (mut pair, node) = build(stand);
        let session = SessionId(5_000);
        pair.sides[node].session = Some(session);
        let version = 1;
        let outcome = told(&mut pair, node, Event::LinkUp { session, version });
        put(&mut cells, "link: up", outcome, stand);
        timers(stand, &mut cells);
    }
    cells
}

/// Nothing is answered any more, by disks, arbiter or peer; with `echoes` but the pings. What the
/// deadlines do, the first of each kind.
fn timers(stand: &'static str, cells: &mut Cells) {
    for echoes in [false, true] {
        let (mut pair, node) = build(stand);
        let end = pair.now + 12_000_000_000;
        let mut seen = BTreeSet::new();
        let before = standing(&pair, node);
        while let Some(at) = pair.sides[node].due().filter(|at| at.0 < end) {
            // A little late, so that two deadlines do not always fall together.
            pair.now = pair.now.max(at.0 + 3_000_000);
            let event = Event::Timer;
            let name = pair.sides[node].mirror.occasion(Time(pair.now), &event);
            let stand_now = pair.stand(node);
            let effects = pair.handle(node, event);
            let mut outcome = words(&effects).join(", ");
            if outcome.is_empty() {
                outcome.push('-');
            }
            if pair.stand(node) != stand_now {
                let _ = write!(outcome, "; then {}", pair.stand(node));
            }
            if stand_now == stand && seen.insert(name) {
                put(cells, name, outcome, stand);
            }
            let after = standing(&pair, node);
            assert_eq!(before.role, after.role, "{name} changes no role");
            assert_eq!(
                before.generation, after.generation,
                "{name} mints nothing by itself"
            );
            if let Some(session) = pair.sides[node].session.filter(|_| echoes) {
                let message = Message::Pong { sent: pair.now };
                pair.handle(node, Event::Message { session, message });
            }
        }
    }
}

fn render(cells: &Cells) -> String {
    let mut text = String::new();
    for (event, outcomes) in cells {
        let _ = writeln!(text, "{event}");
        for (outcome, stands) in outcomes {
            let _ = writeln!(text, "    {outcome}: {}", stands.join(" "));
        }
    }
    text
}

#[test]
fn what_comes_from_outside_does_in_each_stand_what_the_table_says() {
    let now = render(&try_all());
    let Some(table) = super::table("cells.txt", "KAGAMI_CELLS", || now.clone()) else {
        return;
    };
    for (line, (now, table)) in now.lines().zip(table.lines()).enumerate() {
        assert_eq!(now, table, "line {} of cells.txt", line + 1);
    }
    assert_eq!(now.lines().count(), table.lines().count());
}

#[test]
fn what_belongs_to_the_past_does_nothing_in_any_stand() {
    for stand in STANDS.split(' ') {
        let (mut pair, node) = build(stand);
        let before = standing(&pair, node);
        let past = SessionId(900_000);
        let late = [
            Event::LinkDown {
                session: past,
                reason: "long ago".into(),
            },
            Event::Message {
                session: past,
                message: Message::PromoteGrant,
            },
            Event::Message {
                session: past,
                message: Message::Done {
                    seq: Seq(1),
                    result: Ok(()),
                },
            },
            Event::Arbiter {
                attempt: Attempt(3),
                answer: ArbiterAnswer::Swapped,
            },
            Event::Arbiter {
                attempt: Attempt(3),
                answer: ArbiterAnswer::Register(None),
            },
            Event::Arbiter {
                attempt: Attempt(3),
                answer: ArbiterAnswer::NotOurs("another's".into()),
            },
            Event::Arbiter {
                attempt: Attempt(3),
                answer: ArbiterAnswer::Unreachable("late".into()),
            },
        ];
        for event in late {
            let effects = pair.handle(node, event.clone());
            assert!(effects.is_empty(), "{stand}, {event:?}: {effects:?}");
            assert_eq!(standing(&pair, node), before, "{event:?}");
        }
    }
}
