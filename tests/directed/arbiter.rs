//! What a node asks the arbiter, and what it makes of each answer (docs/protocol.md §4).

use kagami_replicator::core::event::Reply;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::register::{ArbiterAnswer, Ask, Register};
use kagami_replicator::core::state::{Attempt, NodeId, Time};
use kagami_replicator::core::status::ArbiterFault;
use kagami_replicator::core::{Command, DiskFault, Event, Notice};

use super::pair::{DEMOTE, FORCE, MS, PROMOTE, Pair};
use super::stands::{alone, build, copying, cut, in_sync, lose_disk, primary};

/// The arbiter's time-out, ms.
const PATIENCE: u64 = 2_000;
/// Longer than any lease, and than all pauses between questions, ms.
const LONG: u64 = 8_000;

/// What happens to a question.
type Way = fn(&mut Pair);
/// What somebody else writes into the register.
type Change = fn(&mut Register);

fn register(pair: &Pair) -> Register {
    pair.arbiter.register().expect("a register").clone()
}

/// Somebody else writes the register.
fn rewrite(pair: &mut Pair, change: impl FnOnce(&mut Register)) {
    let held = register(pair);
    let expect = Some((held.instance, held.seq));
    let mut register = Register {
        seq: held.seq + 1,
        nonce: Attempt(1),
        ..held
    };
    change(&mut register);
    let swap = Ask::Swap { expect, register };
    assert_eq!(pair.arbiter.answer(&swap), ArbiterAnswer::Swapped);
}

fn next(pair: &mut Pair, node: usize) -> (Attempt, Ask) {
    pair.sides[node].asks.pop_front().expect("a question")
}

/// The node is to swap the register, and what it wants there has not reached the arbiter.
fn about_to_swap(pair: &mut Pair, node: usize) {
    let (attempt, ask) = next(pair, node);
    assert_eq!(ask, Ask::Read);
    let answer = pair.arbiter.answer(&ask);
    pair.handle(node, Event::Arbiter { attempt, answer });
    assert!(matches!(
        pair.sides[node].asks.front(),
        Some((_, Ask::Swap { .. }))
    ));
}

/// Node 0, Primary, has lost its peer, and asks.
fn asking() -> Pair {
    let mut pair = primary();
    pair.sides[0].hold.asks = true;
    cut(pair)
}

fn meet_again(pair: &mut Pair) {
    pair.sides[0].asks.clear();
    pair.sides[0].hold.asks = false;
    pair.linked = true;
    pair.until(0, "Pi");
    pair.elapse(LONG);
}

/// A swap that was asked for may land whenever it likes, and names one copy: both are named once more, in sync.
#[test]
fn a_swap_without_an_answer_is_overwritten_when_both_are_in_sync() {
    let read_only = |_: &mut Pair| {};
    let swap = |pair: &mut Pair| about_to_swap(pair, 0);
    let give_up = |pair: &mut Pair| {
        about_to_swap(pair, 0);
        pair.elapse(PATIENCE + 100);
    };
    for (way, swaps) in [(read_only as Way, 0), (swap, 1), (give_up, 1)] {
        let mut pair = asking();
        let before = pair.arbiter.swaps;
        way(&mut pair);
        meet_again(&mut pair);
        assert_eq!(pair.arbiter.swaps - before, swaps);
        assert_eq!(register(&pair).copies, [NodeId(1), NodeId(2)]);
    }
}

/// The swap took place, its answer was lost, and the arbiter tells the register to the same question that comes again.
#[test]
fn ones_own_nonce_in_the_register_is_the_grant() {
    let mut pair = asking();
    about_to_swap(&mut pair, 0);
    let (attempt, ask) = next(&mut pair, 0);
    assert_eq!(pair.arbiter.answer(&ask), ArbiterAnswer::Swapped);
    let answer = ArbiterAnswer::Register(pair.arbiter.register().cloned());
    pair.handle(0, Event::Arbiter { attempt, answer });
    pair.pump();
    pair.write(0, 9);
    assert!(pair.sides[0].asks.is_empty(), "it needs no other word");
}

/// What another one has written there meanwhile is none, whoever asked.
#[test]
fn another_nonce_in_the_register_is_no_grant() {
    let mut pair = asking();
    about_to_swap(&mut pair, 0);
    rewrite(&mut pair, |register| register.copies = vec![NodeId(2)]);
    let (attempt, ask) = next(&mut pair, 0);
    let answer = pair.arbiter.answer(&ask);
    assert!(matches!(answer, ArbiterAnswer::Register(Some(_))));
    pair.handle(0, Event::Arbiter { attempt, answer });
    pair.pump();
    let (id, _) = pair.request(0, super::pair::write(9));
    pair.elapse(LONG);
    assert_eq!(pair.reply(0, id), None);
}

/// docs/protocol.md §4, *go alone*: this copy is named, and the register's generation, or its parent, is in its line.
#[test]
fn the_register_grants_to_a_named_copy_in_whose_line_it_is() {
    let current = register(&primary()).generation;
    let foreign = 0xdead;
    // (named, generation, parent, granted)
    let rows = [
        (true, current, current, true),
        (true, current, 0, true),
        (true, current, foreign, true),
        (true, foreign, current, true),
        (true, foreign, foreign, false),
        (true, foreign, 0, false),
        (false, current, current, false),
    ];
    for (named, generation, parent, granted) in rows {
        let mut pair = primary();
        rewrite(&mut pair, |register| {
            register.generation = generation;
            register.parent = parent;
            register.copies = if named {
                vec![NodeId(1)]
            } else {
                vec![NodeId(2)]
            };
        });
        let mut pair = cut(pair);
        let (id, _) = pair.request(0, super::pair::write(9));
        pair.pump();
        let is_granted = pair.reply(0, id).is_some();
        assert_eq!(is_granted, granted, "{named} {generation:x} {parent:x}");
    }
}

#[test]
fn another_instance_grants_nothing() {
    let mut pair = primary();
    rewrite(&mut pair, |register| register.instance += 2);
    let mut pair = cut(pair);
    let (id, _) = pair.request(0, super::pair::write(9));
    pair.elapse(LONG);
    assert_eq!(pair.reply(0, id), None);
}

#[test]
fn a_new_register_is_the_first_of_an_instance_that_both_have_recorded() {
    let mut pair = in_sync();
    let mut instances = Vec::new();
    for _ in 0..4 {
        let new = register(&pair);
        assert_eq!((new.seq, new.forced), (1, false));
        assert_eq!(new.copies, [NodeId(1), NodeId(2)]);
        for side in &pair.sides {
            let record = side.mirror.record();
            assert_eq!(record.arbiter, Some(new.instance));
            assert_eq!(record.current.map(|g| g.tag), Some(new.generation));
        }
        assert_eq!(
            new.instance % 2,
            1,
            "never 0, which says that there is none"
        );
        instances.push(new.instance);
        pair.arbiter.wipe();
        pair.elapse(40_000);
    }
    instances.sort_unstable();
    instances.dedup();
    assert_eq!(instances.len(), 4, "each is another one: {instances:x?}");
    // The lower id looks after it while nobody is Primary.
    assert_eq!(pair.sides[1].asked, 0);
}

/// Both nodes' words about the arbiter.
fn faults(pair: &Pair) -> [Option<ArbiterFault>; 2] {
    [0, 1].map(|node| {
        let status = pair.sides[node].mirror.status(Time(pair.now));
        status.arbiter_fault
    })
}

/// It is needed when a node is lost; whoever looks after the register tells before that an answer is missing.
#[test]
fn an_arbiter_that_does_not_answer_is_told_in_sync() {
    let mut pair = primary();
    assert_eq!(faults(&pair), [None, None]);
    pair.sides[0].hold.asks = true;
    let asked_before = pair.sides[0].asked;
    let before = Time(pair.now);
    pair.elapse(40_000);
    let first = faults(&pair);
    let fault = first[0].clone().expect("no answer came");
    assert_eq!(
        (fault.why.as_str(), fault.refused),
        ("no answer in time", false)
    );
    assert!(fault.since > before && first[1].is_none(), "{first:?}");
    // It is asked again, and since when stays.
    let asked = pair.sides[0].asked;
    pair.elapse(LONG);
    assert!(pair.sides[0].asked > asked && asked > asked_before);
    assert_eq!(faults(&pair), first);
    pair.write(0, 9);
    // Whoever is not Primary any more asks no more.
    pair.done(0, DEMOTE);
    pair.done(1, PROMOTE);
    pair.elapse(LONG);
    assert_eq!(
        faults(&pair),
        [None, None],
        "the other one asks, and is answered"
    );
    pair.done(1, DEMOTE);
    pair.done(0, PROMOTE);
    pair.elapse(LONG);
    assert!(faults(&pair)[0].is_some());
    pair.sides[0].asks.clear();
    pair.sides[0].hold.asks = false;
    pair.elapse(LONG);
    assert_eq!(faults(&pair), [None, None]);
}

/// A register of other nodes is an answer, and as bad as none.
#[test]
fn an_arbiter_that_refuses_is_told_in_sync() {
    let mut pair = primary();
    pair.sides[0].hold.asks = true;
    while pair.sides[0].asks.is_empty() {
        pair.elapse(1_000);
    }
    let (attempt, _) = next(&mut pair, 0);
    let answer = ArbiterAnswer::NotOurs("the register belongs to other nodes".to_owned());
    pair.handle(0, Event::Arbiter { attempt, answer });
    let fault = faults(&pair)[0].clone().expect("it refused");
    assert_eq!(
        (fault.why.as_str(), fault.refused, fault.since),
        ("the register belongs to other nodes", true, Time(pair.now))
    );
}

#[test]
fn the_register_says_who_goes_on_alone_and_by_whose_word() {
    let pair = alone();
    let granted = register(&pair);
    let record = pair.sides[0].mirror.record();
    assert_eq!(
        (granted.copies.as_slice(), granted.forced),
        ([NodeId(1)].as_slice(), false)
    );
    assert_eq!(Some(granted.generation), record.current.map(|g| g.tag));
    assert_eq!(Some(granted.parent), record.history.first().map(|g| g.tag));

    let mut pair = cut(in_sync());
    let before = register(&pair);
    pair.done(1, FORCE);
    pair.elapse(LONG);
    let forced = register(&pair);
    let record = pair.sides[1].mirror.record();
    assert_eq!(
        (forced.copies.as_slice(), forced.forced),
        ([NodeId(2)].as_slice(), true)
    );
    assert_eq!(
        (forced.instance, forced.seq),
        (before.instance, before.seq + 1)
    );
    assert_eq!(Some(forced.generation), record.current.map(|g| g.tag));
    assert_eq!(Some(forced.parent), record.history.first().map(|g| g.tag));
    assert_eq!(forced.parent, before.generation);
}

/// A word that the register has is not told again, nor is one taken for it that is another's, or of another generation.
#[test]
fn a_forced_word_is_told_once() {
    let rows = [
        ("it is there", (|_| {}) as Change, 0),
        ("it names the other copy", |r| r.copies = vec![NodeId(2)], 1),
        ("it names both", |r| r.copies.push(NodeId(2)), 1),
        ("it is of another generation", |r| r.generation += 1, 1),
    ];
    for (what, change, swaps) in rows {
        let mut pair = cut(in_sync());
        pair.sides[0].hold.asks = true;
        pair.done(0, FORCE);
        pair.elapse(100);
        about_to_swap(&mut pair, 0);
        let (_, ask) = next(&mut pair, 0);
        assert_eq!(pair.arbiter.answer(&ask), ArbiterAnswer::Swapped);
        if swaps > 0 {
            rewrite(&mut pair, change);
        }
        let before = pair.arbiter.swaps;
        // Nobody hears of it.
        pair.sides[0].hold.asks = false;
        pair.elapse(PATIENCE + LONG);
        assert_eq!(pair.arbiter.swaps - before, swaps, "{what}");
        assert_eq!(register(&pair).copies, [NodeId(1)], "{what}");
    }
}

/// *Still alone* (docs/protocol.md §3): it has not offered its generation to anybody since.
#[test]
fn who_is_still_alone_needs_no_new_generation_and_no_arbiter() {
    for down in [false, true] {
        let mut pair = alone();
        let current = pair.sides[0].mirror.record().current.expect("one").tag;
        pair.done(0, DEMOTE);
        pair.arbiter.down = down;
        pair.sides[0].hold.asks = true;
        let (id, _) = pair.order(0, PROMOTE);
        pair.elapse(3_000);
        if down {
            let why = "no answer".to_owned();
            pair.arbiter_says(0, ArbiterAnswer::Unreachable(why));
        } else {
            about_to_swap(&mut pair, 0);
            let (attempt, ask) = next(&mut pair, 0);
            let Ask::Swap { register, .. } = &ask else {
                panic!("{ask:?}")
            };
            assert_eq!((register.generation, register.parent), (current, current));
            let answer = pair.arbiter.answer(&ask);
            pair.handle(0, Event::Arbiter { attempt, answer });
        }
        pair.pump();
        assert!(
            matches!(pair.answer(0, id), Some(Ok(Reply::Done))),
            "{down}"
        );
        pair.write(0, 9);
    }
}

/// A refusal outlives an arbiter that is gone afterwards.
#[test]
fn who_was_refused_is_not_let_go_by_silence() {
    let mut pair = alone();
    pair.done(0, DEMOTE);
    rewrite(&mut pair, |register| register.copies = vec![NodeId(2)]);
    let (id, _) = pair.order(0, PROMOTE);
    pair.elapse(3_000);
    assert!(matches!(pair.answer(0, id), Some(Err(_))));
    pair.sides[0].hold.asks = true;
    let (id, _) = pair.order(0, PROMOTE);
    pair.elapse(6_000);
    while !pair.sides[0].asks.is_empty() {
        pair.arbiter_says(0, ArbiterAnswer::Unreachable("no answer".into()));
        pair.pump();
    }
    assert!(!matches!(pair.answer(0, id), Some(Ok(_))));
}

/// Neither is one that never was alone.
#[test]
fn silence_lets_nobody_go_who_was_not_alone() {
    let (mut pair, node) = build("Sn");
    pair.sides[node].hold.asks = true;
    let (id, _) = pair.order(node, PROMOTE);
    pair.elapse(6_000);
    pair.arbiter_says(node, ArbiterAnswer::Unreachable("no answer".into()));
    pair.pump();
    assert!(!matches!(pair.answer(node, id), Some(Ok(_))));
}

/// An arbiter that is not reached is asked again after a quarter of its time-out, and told once for each reason.
#[test]
fn an_arbiter_that_is_not_reached_is_asked_again_soon_and_told_once() {
    let mut pair = asking();
    let whys = ["no route", "no route", "no route", "refused"];
    for why in whys {
        pair.arbiter_says(0, ArbiterAnswer::Unreachable(why.into()));
        pair.pump();
        assert!(pair.sides[0].asks.is_empty());
        pair.elapse(PATIENCE / 4 - 1);
        assert!(pair.sides[0].asks.is_empty());
        pair.elapse(1);
        assert_eq!(pair.sides[0].asks.len(), 1, "{why}");
    }
    let notices = pair.sides[0].notices.iter();
    let told: Vec<&str> = notices
        .filter_map(|notice| match notice {
            Notice::ArbiterUnreachable { why } => Some(why.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(told, ["no route", "refused"]);
}

/// One that refuses is asked again after five seconds, and told once for each reason.
#[test]
fn a_refusal_is_told_once_and_asked_about_again() {
    let mut pair = primary();
    rewrite(&mut pair, |register| register.copies = vec![NodeId(2)]);
    let mut pair = cut(pair);
    let refusals = |pair: &Pair| {
        let notices = pair.sides[0].notices.iter();
        notices
            .filter(|notice| matches!(notice, Notice::ArbiterRefused { .. }))
            .count()
    };
    let asked = pair.sides[0].asked;
    assert_eq!(refusals(&pair), 1);
    pair.elapse(4_999);
    assert_eq!(pair.sides[0].asked, asked);
    pair.elapse(1);
    assert_eq!((pair.sides[0].asked, refusals(&pair)), (asked + 1, 1));
    rewrite(&mut pair, |register| register.instance += 2);
    pair.elapse(5_000);
    assert_eq!((pair.sides[0].asked, refusals(&pair)), (asked + 2, 2));
}

/// No arbiter counts as far, but one that lies stops no daemon.
#[test]
fn a_register_that_can_t_be_counted_further_grants_nothing() {
    let mut pair = asking();
    let register = Register {
        seq: u64::MAX,
        ..register(&pair)
    };
    pair.arbiter_says(0, ArbiterAnswer::Register(Some(register)));
    pair.pump();
    assert!(pair.sides[0].asks.is_empty());
    pair.elapse(PATIENCE / 4);
    assert_eq!(pair.sides[0].asks.len(), 1, "it is asked again");
    assert_eq!(pair.stand(0), "Pn");
    let (id, _) = pair.request(0, super::pair::write(9));
    pair.pump();
    assert_eq!(pair.reply(0, id), None);
}

/// What was to be told in a session is nothing to a node without one: it asks at once whether it may go on.
#[test]
fn a_look_at_the_register_ends_with_its_session() {
    let mut pair = primary();
    pair.sides[0].hold.asks = true;
    while pair.sides[0].asks.is_empty() {
        pair.elapse(500);
    }
    pair.cut();
    pair.pump();
    assert_eq!(pair.sides[0].asks.len(), 2);
    pair.sides[0].asks.pop_front();
    pair.sides[0].hold.asks = false;
    pair.write(0, 9);
}

/// The look of a source that is alone says as much as the question that the end of its resynchronisation needs.
#[test]
fn the_end_of_a_resynchronisation_takes_the_answer_to_a_look_that_is_under_way() {
    let mut pair = copying();
    pair.sides[0].hold.asks = true;
    pair.elapse(2_500);
    assert_eq!(pair.sides[0].asks.len(), 1);
    pair.sides[0].hold.reads = false;
    pair.pump();
    assert_ne!(pair.stand(1), "Si");
    assert_eq!(pair.sides[0].asks.len(), 1);
    let (attempt, ask) = next(&mut pair, 0);
    let answer = pair.arbiter.answer(&ask);
    pair.handle(0, Event::Arbiter { attempt, answer });
    pair.pump();
    assert_eq!(pair.stand(1), "Si");
}

/// *One-writer*: a register that is found may let a copy go, so both have forgotten the one before when either records it.
#[test]
fn in_sync_both_record_the_register_that_is_there_and_forget_the_old_one_first() {
    let mut pair = in_sync();
    rewrite(&mut pair, |register| register.instance += 2);
    let found = Some(register(&pair).instance);
    let mut told = Vec::new();
    let end = pair.now + 40_000 * MS;
    while pair.now < end {
        let new = pair.sides[1].messages.front();
        if let Some((_, Message::ArbiterInstance { instance })) = new {
            told.push(*instance);
        }
        if !pair.step() {
            pair.tick(end);
        }
    }
    told.dedup();
    assert_eq!(told, [None, found]);
    for side in &pair.sides {
        assert_eq!(side.mirror.record().arbiter, found);
    }
    assert_eq!(register(&pair).copies, [NodeId(1), NodeId(2)]);
}

/// What was found may be another arbiter's: at one that has no register another one is created.
#[test]
fn a_register_that_was_found_is_not_created_anew() {
    let mut pair = in_sync();
    rewrite(&mut pair, |register| register.instance += 2);
    let found = Some(register(&pair).instance);
    let end = pair.now + 40_000 * MS;
    while pair.sides[0].mirror.record().arbiter != found {
        assert!(pair.now < end);
        if !pair.step() {
            pair.tick(end);
        }
    }
    pair.arbiter.wipe();
    pair.elapse(40_000);
    let new = register(&pair).instance;
    assert_ne!(Some(new), found);
    for side in &pair.sides {
        assert_eq!(side.mirror.record().arbiter, Some(new));
    }
}

/// The answer to a look in sync does not put off the question that the Primary without a disk waits for.
#[test]
fn who_is_to_carry_asks_so_as_soon_as_an_earlier_look_is_answered() {
    let mut pair = in_sync();
    pair.sides[0].hold.asks = true;
    while pair.sides[0].asks.is_empty() {
        pair.elapse(500);
    }
    pair.done(1, PROMOTE);
    pair.sides[1].hold.writes = true;
    pair.request(1, super::pair::write(9));
    pair.pump();
    pair.end_disk(1, 0, Err(DiskFault::Io(5)));
    pair.sides[1].hold.writes = false;
    pair.pump();
    assert_eq!(pair.sides[0].asks.len(), 1, "one at a time");
    pair.sides[0].hold.asks = false;
    pair.elapse(500);
    assert_eq!([pair.stand(0), pair.stand(1)], ["Sv", "Dv"]);
    pair.write(1, 10);
}

/// Whoever is promoted while the register is looked at asks no second question.
#[test]
fn one_question_is_open_at_a_time() {
    let mut pair = in_sync();
    pair.sides[0].hold.asks = true;
    while pair.sides[0].asks.is_empty() {
        pair.elapse(500);
    }
    pair.done(0, PROMOTE);
    assert_eq!(pair.sides[0].asks.len(), 1);
}

/// What holds a question back, or lets it pass, is what it is for.
#[test]
fn a_question_is_known_by_what_it_is_for() {
    let open = |pair: &Pair, node: usize| pair.sides[node].asks.front().expect("a question").0;
    let pair = asking();
    let id = open(&pair, 0);
    let mirror = &pair.sides[0].mirror;
    assert_eq!(mirror.footing().asking, Some(id));
    assert!(!mirror.asks_to_carry(id));

    let mut pair = primary();
    pair.sides[1].hold.asks = true;
    lose_disk(&mut pair);
    let id = open(&pair, 1);
    let mirror = &pair.sides[1].mirror;
    assert_eq!(mirror.footing().asking, None);
    assert!(mirror.asks_to_carry(id));
    assert!(!mirror.asks_to_carry(Attempt(id.0 + 1)));
}

/// A source whose copying is done asks whether the arbiter is there: not with the question that an operator's word is told by.
#[test]
fn a_word_that_is_being_told_is_told_to_its_end() {
    let mut pair = cut(in_sync());
    pair.sides[0].hold.asks = true;
    pair.done(0, FORCE);
    pair.write(0, 5);
    pair.sides[0].hold.reads = true;
    pair.linked = true;
    pair.elapse(100);
    assert_eq!(pair.stand(0), "Ps");
    pair.sides[0].asks.clear();
    pair.elapse(PATIENCE + 500);
    pair.sides[0].hold.reads = false;
    pair.pump();
    assert_eq!(pair.sides[0].mirror.dirty().count(), 0);
    about_to_swap(&mut pair, 0);
    let (_, ask) = next(&mut pair, 0);
    assert!(
        matches!(&ask, Ask::Swap { register, .. } if register.forced),
        "{ask:?}"
    );
}

/// Where no register was ever recorded nobody can be told.
#[test]
fn a_word_for_no_register_is_told_to_none() {
    let mut pair = Pair::new();
    pair.linked = false;
    pair.done(0, FORCE);
    pair.elapse(LONG);
    assert_eq!(pair.sides[0].asked, 1);
    let settings = pair.sides[0].mirror.settings().clone();
    pair.done(0, Command::Set(settings));
    pair.elapse(LONG);
    assert_eq!(pair.sides[0].asked, 1);
}

/// While the peer records the instance that was drawn, no other one is.
#[test]
fn a_register_that_is_being_named_is_named_once() {
    let mut pair = Pair::new();
    pair.sides[0].hold.asks = true;
    pair.elapse(500);
    pair.sides[1].hold.messages = true;
    pair.sides[0].hold.asks = false;
    pair.pump();
    let named = |pair: &Pair| {
        let messages = pair.sides[1].messages.iter();
        let names = |message: &Message| matches!(message, Message::ArbiterInstance { .. });
        messages.filter(|(_, message)| names(message)).count()
    };
    assert_eq!(named(&pair), 1);
    let settings = pair.sides[0].mirror.settings().clone();
    pair.done(0, Command::Set(settings));
    assert_eq!(named(&pair), 1);
    pair.sides[1].hold.messages = false;
    pair.elapse(1_000);
    assert_eq!(register(&pair).copies, [NodeId(1), NodeId(2)]);
}
