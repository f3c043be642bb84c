//! Leases of different lengths, and how long is waited for the end of one.

use super::*;
use crate::right::MARGIN;
use crate::right::lease::words::{LONGEST, SHORTEST};

/// A lease that is longer than this node's, by another revision of the configuration.
const LONG: u64 = 5 * TERMS.length;

fn wait_for_long() -> u64 {
    TERMS.wait_for(LONG)
}

#[test]
fn a_promise_binds_for_the_lease_that_was_asked_for_and_the_disk_has_it_first() {
    let mut scene = Scene::new(1, Before::HeldBeforeBoot);
    scene.tell(Event::Timer);
    scene.arbiter(Said::Found(record(3, None)));
    assert!(!scene.question_of(true, LONG).contains(&answer(PROMISED)));
    let (mark, length) = (Mark::Free, LONG);
    assert_eq!(scene.lease.writing, Some(kept(mark, length)));
    assert!(scene.tell(Event::Marked).contains(&answer(PROMISED)));
    let promised = scene.now;
    // A shorter one, later, takes nothing of it away.
    scene.now += 10;
    assert!(scene.question(true).contains(&answer(PROMISED)));
    assert_eq!(
        scene.lease.may_swap_from(),
        Some(Time(promised + wait_for_long()))
    );
    // Who starts again knows it.
    let before = Before::Free;
    let mut again = Scene::after(1, left(before, length));
    again.tell(Event::Ask);
    again.arbiter(Said::Found(record(3, None)));
    let from = again.lease.may_swap_from();
    assert_eq!(from, Some(Time(again.now + wait_for_long())));
    // It is refused nothing while it waits for that, and its disk forgets it when it is over.
    again.now += wait_for_long() - 1;
    assert_eq!(refusal(&again.tell(Event::Timer)), None);
    let mut idle = Scene::after(1, left(before, length));
    assert!(!idle.wait(wait_for_long() - 1).contains(&marks(Mark::Free)));
    assert!(idle.wait(1).contains(&marks(Mark::Free)));
    let refused = idle.question_of(true, LONGEST + 1);
    assert!(matches!(
        refused[0],
        Action::Answer {
            word: Word::Silent(_),
            ..
        }
    ));
}

#[test]
fn the_record_of_a_longer_lease_is_watched_for_longer() {
    let mut scene = Scene::new(1, Before::HeldBeforeBoot);
    scene.tell(Event::Ask);
    scene.arbiter(Said::Found(record_of(3, Some("a"), LONG)));
    let from = scene.lease.may_swap_from();
    assert_eq!(from, Some(Time(scene.now + wait_for_long())));
}

#[test]
fn a_manager_with_shorter_leases_tells_the_earlier_ones_while_its_guard_may_know_them() {
    let (before, length) = (Before::Held, LONG);
    let mut scene = Scene::after(0, left(before, length));
    let asked = |out: &Actions| {
        out.iter().find_map(|action| match action {
            Action::Question { question, .. } => Some(question.length),
            _ => None,
        })
    };
    assert_eq!(asked(&scene.tell(Event::Ask)), Some(LONG));
    let (_, (_, new)) = swaps(&scene.arbiter(Said::Found(record(3, Some("a"))))).expect("its own");
    assert_eq!(new.length, LONG);
    scene.arbiter(Said::Swapped);
    // Its own lease is no longer than it says.
    assert_eq!(scene.lease.ends(), Time(scene.now + TERMS.length));
    assert_eq!(asked(&scene.wait(wait_for_long() - 1)), Some(LONG));
    assert_eq!(asked(&scene.wait(TERMS.step())), Some(TERMS.length));
}

#[test]
fn a_manager_with_longer_leases_writes_that_before_it_holds_one() {
    let (before, length) = (Before::Held, TERMS.length / 2);
    let mut scene = Scene::after(0, left(before, length));
    scene.tell(Event::Ask);
    assert!(scene.peer(PROMISED).contains(&marks(Mark::Held)));
}

#[test]
fn the_wait_outlasts_a_lease_by_clocks_that_are_wrong_both_ways() {
    for length in [SHORTEST, 7777, LONGEST] {
        let terms = Terms {
            length,
            margin: MARGIN,
        };
        // The holder's clock is slow by 1 %, the challenger's fast by 1 %.
        let holds = (length + MARGIN) as f64 / 0.99;
        let waits = terms.wait() as f64 / 1.01;
        assert!(waits > holds, "{length}: {waits} {holds}");
    }
}
