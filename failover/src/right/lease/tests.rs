//! What a lease does, one situation at a time; every interleaving is the simulator's business.

use super::*;

mod agreed;
mod lengths;

const TERMS: Terms = Terms {
    length: 4000,
    margin: 500,
};

/// The register that both nodes have agreed on.
const AGREED: Option<u64> = Some(5);
const PROMISED: Word = Word::Promised {
    instance: AGREED,
    token: None,
};

/// One node, and all that it wants done.
struct Scene {
    lease: Lease,
    now: u64,
    out: Actions,
}

impl Scene {
    fn new(me: Node, before: Before) -> Self {
        Self::after(me, left(before, TERMS.length))
    }

    fn after(me: Node, left: Left) -> Self {
        let nodes = ["a".to_owned(), "b".to_owned()];
        let now = 100_000;
        let mut lease = Lease::new(TERMS, nodes, me, left, 1000, Time(now));
        lease.token = Some(3);
        let out = Actions::new();
        Self { lease, now, out }
    }

    fn tell(&mut self, event: Event) -> Actions {
        self.out.clear();
        self.lease.handle(Time(self.now), event, &mut self.out);
        self.out.clone()
    }

    fn wait(&mut self, ms: u64) -> Actions {
        self.now += ms;
        self.tell(Event::Timer)
    }

    /// Answers what was asked of the arbiter last; what follows.
    fn arbiter(&mut self, said: Said) -> Actions {
        let attempt = self.lease.asked.as_ref().expect("asked").attempt;
        self.tell(Event::Arbiter { attempt, said })
    }

    /// The other node answers the newest question.
    fn peer(&mut self, word: Word) -> Actions {
        let nonce = *self.lease.questions.keys().next_back().expect("asked");
        self.tell(Event::Peer { nonce, word })
    }

    /// The guard has done what it was asked last.
    fn guarded(&mut self) -> Actions {
        let Guard::Asked(attempt) = self.lease.guard else {
            panic!("it was not asked");
        };
        let stopping = false;
        self.tell(Event::Guarded { attempt, stopping })
    }

    fn question(&mut self, held: bool) -> Actions {
        self.question_of(held, TERMS.length)
    }

    fn question_of(&mut self, held: bool, length: u64) -> Actions {
        let instance = None;
        let question = Question {
            held,
            length,
            instance,
            echo: Some(3),
        };
        self.tell(Event::Question { token: 7, question })
    }

    /// The right is granted by a promise.
    fn granted(me: Node) -> Self {
        let mut scene = Self::new(me, Before::Free);
        scene.tell(Event::Ask);
        scene.peer(PROMISED);
        scene.tell(Event::Marked);
        let told = scene.guarded();
        assert!(told.contains(&Action::Tell(Right::Granted)), "{told:?}");
        scene
    }
}

fn record(seq: u64, holder: Option<&str>) -> Option<(Id, Record)> {
    record_of(seq, holder, TERMS.length)
}

fn record_of(seq: u64, holder: Option<&str>, length: u64) -> Option<(Id, Record)> {
    let holder = holder.map(str::to_owned);
    let (run, instance) = (1, 5);
    let record = Record {
        holder,
        run,
        length,
    };
    Some((Id { instance, seq }, record))
}

fn answer(word: Word) -> Action {
    Action::Answer { token: 7, word }
}

/// What an earlier manager left; both nodes had agreed on the register.
fn left(before: Before, length: u64) -> Left {
    let instance = AGREED;
    Left {
        before,
        length,
        instance,
    }
}

fn kept(mark: Mark, length: u64) -> Kept {
    let instance = AGREED;
    Kept {
        mark,
        length,
        instance,
    }
}

fn marks(mark: Mark) -> Action {
    Action::Mark(kept(mark, TERMS.length))
}

fn swaps(actions: &Actions) -> Option<(Option<Id>, (Id, Record))> {
    actions.iter().find_map(|action| match action {
        Action::Swap { expect, new, .. } => Some((*expect, new.clone())),
        _ => None,
    })
}

fn refusal(actions: &Actions) -> Option<&str> {
    actions.iter().find_map(|action| match action {
        Action::Tell(Right::Refused(why)) => Some(why.as_str()),
        _ => None,
    })
}

#[test]
fn a_promise_is_enough_and_is_acted_on_after_the_disk_and_the_guard_have_it() {
    let mut scene = Scene::new(0, Before::Free);
    let asks = scene.tell(Event::Ask);
    assert!(
        matches!(
            asks[..],
            [Action::Question { question, .. }, Action::Read { .. }] if !question.held
        ),
        "{asks:?}"
    );
    assert!(scene.arbiter(Said::Silent("down".to_owned())).is_empty());
    scene.now += 10;
    assert_eq!(scene.peer(PROMISED), [marks(Mark::Held)]);
    // It counts from when it was asked for.
    let ends = Time(scene.now - 10 + TERMS.length);
    let armed = scene.tell(Event::Marked);
    assert!(matches!(armed[..], [Action::Arm { ends: told, .. }] if told == ends));
    let told = scene.guarded();
    assert_eq!(told, [Action::Tell(Right::Granted)]);
    assert!(scene.lease.holds(Time(ends.0 - 1)) && !scene.lease.holds(ends));
}

#[test]
fn a_lease_that_was_slept_through_is_over_before_anything_else() {
    let mut scene = Scene::granted(0);
    scene.wait(1000);
    // The process is stopped, and the answer waits for it.
    scene.now += TERMS.length;
    let told = scene.peer(PROMISED);
    assert!(told.contains(&Action::Tell(Right::LeaseEnded)), "{told:?}");
    // A question that is asked now renews it.
    let told = scene.peer(PROMISED);
    assert!(told.contains(&Action::Tell(Right::Renewed)), "{told:?}");
    let told = scene.tell(Event::Lost);
    assert!(told.contains(&Action::Tell(Right::Lost)), "{told:?}");
    let busy = scene.question(false);
    assert_eq!(busy[0], answer(Word::Busy), "something may be active still");
}

#[test]
fn a_holder_renews_its_record_seldom_while_promises_come_and_often_when_not() {
    let mut scene = Scene::granted(0);
    let swap = swaps(&scene.arbiter(Said::Found(record(3, Some("b")))));
    let (expect, new) = swap.expect("the promise lets it write over the other one's");
    assert_eq!(
        expect,
        Some(Id {
            instance: 5,
            seq: 3
        })
    );
    let after = Record {
        holder: Some("a".to_owned()),
        run: 2,
        length: TERMS.length,
    };
    assert_eq!(
        new,
        (
            Id {
                instance: 5,
                seq: 4
            },
            after
        )
    );
    scene.arbiter(Said::Swapped);
    let mut written = 0;
    for _ in 0..30 {
        if swaps(&scene.wait(TERMS.step())).is_some() {
            scene.arbiter(Said::Swapped);
            written += 1;
        }
        scene.peer(PROMISED);
    }
    assert!((1..=2).contains(&written), "{written}");
    // They stop: each quarter, and the lease never ends.
    for step in 0..40 {
        let out = scene.wait(TERMS.step() / 2);
        assert!(!out.contains(&Action::Tell(Right::LeaseEnded)), "{step}");
        if swaps(&out).is_some() {
            scene.arbiter(Said::Swapped);
            written += 1;
        }
    }
    assert!(written > 15, "{written}");
}

#[test]
fn who_holds_it_is_told_to_who_asks() {
    let mut holder = Scene::granted(0);
    assert_eq!(holder.question(false)[0], answer(Word::Holds));
    let mut other = Scene::new(1, Before::Free);
    other.tell(Event::Ask);
    let told = other.peer(Word::Holds);
    assert_eq!(refusal(&told), Some("node a holds it"));
    // By the register, too, once it is seen to be renewed.
    other.tell(Event::Ask);
    other.arbiter(Said::Found(record(3, Some("a"))));
    other.wait(TERMS.step());
    let told = other.arbiter(Said::Found(record(4, Some("a"))));
    assert!(
        refusal(&told).is_some_and(|why| why.contains("node a holds it")),
        "{told:?}"
    );
}

#[test]
fn a_challenger_waits_out_its_promise_and_the_record() {
    let mut scene = Scene::new(1, Before::Free);
    scene.tell(Event::Timer);
    scene.arbiter(Said::Found(record(3, Some("a"))));
    scene.now += 1000;
    assert_eq!(scene.question(true)[0], answer(PROMISED));
    let promised = scene.now;
    scene.now += 500;
    scene.tell(Event::Ask);
    let mut swapped = None;
    while swapped.is_none() {
        let next = scene.lease.deadline(Time(scene.now)).0;
        let out = scene.wait(next - scene.now);
        swapped = swaps(&out);
        if scene.lease.asked.is_some() && swapped.is_none() {
            swapped = swaps(&scene.arbiter(Said::Found(record(3, Some("a")))));
        }
    }
    assert_eq!(
        scene.now,
        promised + TERMS.wait(),
        "neither sooner nor later"
    );
    let out = scene.arbiter(Said::Swapped);
    assert!(out.contains(&marks(Mark::Held)), "{out:?}");
}

#[test]
fn a_record_that_changes_is_waited_for_anew() {
    let mut scene = Scene::new(1, Before::HeldBeforeBoot);
    scene.tell(Event::Ask);
    scene.arbiter(Said::Found(None));
    // A register that is not there may have been deleted under a holder, or is elsewhere.
    assert_eq!(scene.lease.may_swap_from(), None);
    scene.wait(TERMS.step());
    scene.arbiter(Said::Found(record(9, Some("a"))));
    let from = scene.lease.may_swap_from();
    assert_eq!(from, Some(Time(scene.now + TERMS.wait())));
    // What nobody holds any more was given up.
    scene.tell(Event::Ask);
    scene.wait(TERMS.step());
    let out = scene.arbiter(Said::Found(record(10, None)));
    assert!(swaps(&out).is_some(), "{out:?}");
}

#[test]
fn a_manager_that_starts_again_takes_its_own_record_at_once_if_it_promised_nothing() {
    for (before, at_once) in [
        (Before::Held, true),
        (Before::HeldBeforeBoot, true),
        (Before::Free, false),
        (Before::Unknown, false),
    ] {
        let mut scene = Scene::new(0, before);
        scene.tell(Event::Ask);
        let out = scene.arbiter(Said::Found(record(3, Some("a"))));
        assert_eq!(swaps(&out).is_some(), at_once, "{before:?}");
    }
    // What its guard may still let run is not promised away.
    let mut scene = Scene::new(0, Before::Held);
    assert_eq!(scene.question(false)[0], answer(Word::Busy));
    let mut scene = Scene::new(0, Before::HeldBeforeBoot);
    let out = scene.question(false);
    assert!(out.contains(&marks(Mark::Free)), "its disk first: {out:?}");
    let out = scene.tell(Event::Marked);
    assert!(out.contains(&answer(PROMISED)), "{out:?}");
}

#[test]
fn a_promise_voids_what_was_asked_before() {
    let mut scene = Scene::new(1, Before::Free);
    scene.tell(Event::Ask);
    let nonce = *scene.lease.questions.keys().next().expect("asked");
    // The other one holds it, and is promised: this one asks no longer.
    let out = scene.question(true);
    assert_eq!(refusal(&out), Some("node a holds it"));
    assert!(out.contains(&answer(PROMISED)), "{out:?}");
    scene.tell(Event::Ask);
    let word = PROMISED;
    scene.tell(Event::Peer { nonce, word });
    assert_eq!(
        scene.lease.ends(),
        Time(0),
        "an answer to an earlier question"
    );
}

#[test]
fn of_two_that_ask_at_once_the_second_one_yields() {
    let mut first = Scene::new(0, Before::Free);
    first.tell(Event::Ask);
    assert_eq!(first.question(false)[0], answer(Word::Asks));
    let mut second = Scene::new(1, Before::Free);
    second.tell(Event::Ask);
    let out = second.question(false);
    assert_eq!(refusal(&out), Some("node a asks for it, too"));
    assert!(out.contains(&answer(PROMISED)), "{out:?}");
}

#[test]
fn what_is_given_up_leaves_the_register_and_may_be_promised_at_once() {
    let mut scene = Scene::granted(0);
    scene.arbiter(Said::Found(record(3, None)));
    scene.arbiter(Said::Swapped);
    let out = scene.tell(Event::Release);
    assert_eq!(out[0], Action::Disarm);
    assert!(out.contains(&marks(Mark::Free)), "{out:?}");
    let (_, (_, record)) = swaps(&out).expect("taken out");
    assert_eq!(record.holder, None);
    assert!(scene.question(false).is_empty(), "when the disk has it");
    let out = scene.tell(Event::Marked);
    assert!(out.contains(&answer(PROMISED)), "{out:?}");
    let out = scene.wait(TERMS.length / 2);
    assert!(out.contains(&Action::Tell(Right::Released)), "{out:?}");
}

#[test]
fn a_guard_that_stops_what_does_not_run_here_is_told_so() {
    let mut scene = Scene::granted(0);
    scene.tell(Event::Release);
    assert!(scene.tell(Event::Lost).contains(&Action::Disarm));
    let mut idle = Scene::new(0, Before::HeldBeforeBoot);
    assert!(idle.tell(Event::Lost).contains(&Action::Disarm));
    // What an earlier manager has started may run: it is stopped first.
    let mut earlier = Scene::new(0, Before::Held);
    assert!(!earlier.tell(Event::Lost).contains(&Action::Disarm));
    let mut holder = Scene::granted(0);
    assert!(!holder.tell(Event::Lost).contains(&Action::Disarm));
    assert!(
        !holder.tell(Event::Lost).contains(&Action::Disarm),
        "it is being stopped"
    );
}

#[test]
fn an_answer_of_the_guard_to_what_was_asked_before_counts_for_nothing() {
    let mut scene = Scene::new(0, Before::Free);
    let arm = |scene: &mut Scene| {
        scene.tell(Event::Ask);
        scene.peer(PROMISED);
        let out = match scene.lease.writing {
            Some(_) => scene.tell(Event::Marked),
            None => scene.out.clone(),
        };
        let attempt = out.iter().find_map(|action| match action {
            Action::Arm { attempt, .. } => Some(*attempt),
            _ => None,
        });
        attempt.unwrap_or_else(|| panic!("{out:?}"))
    };
    let first = arm(&mut scene);
    scene.tell(Event::Release);
    scene.tell(Event::Marked);
    let second = arm(&mut scene);
    let of = |attempt| Event::Guarded {
        attempt,
        stopping: false,
    };
    let granted = Action::Tell(Right::Granted);
    assert!(
        !scene.tell(of(first)).contains(&granted),
        "it was disarmed since"
    );
    assert!(scene.tell(of(second)).contains(&granted));
}

#[test]
fn of_questions_that_wait_for_the_disk_the_newest_is_answered() {
    let mut scene = Scene::new(1, Before::HeldBeforeBoot);
    for token in 1..=1000 {
        let (held, length, instance) = (true, TERMS.length, None);
        let question = Question {
            held,
            length,
            instance,
            echo: Some(3),
        };
        scene.tell(Event::Question { token, question });
        scene.now += 10;
    }
    let out = scene.tell(Event::Marked);
    let answered = |action: &&Action| matches!(action, Action::Answer { .. });
    let all: Vec<&Action> = out.iter().filter(answered).collect();
    let (token, word) = (1000, PROMISED);
    assert_eq!(all, [&Action::Answer { token, word }]);
}

#[test]
fn without_either_source_it_says_what_is_missing() {
    let mut scene = Scene::new(0, Before::Free);
    scene.tell(Event::Ask);
    scene.arbiter(Said::Silent("no answer in time".to_owned()));
    scene.peer(Word::Silent("no connection".to_owned()));
    let out = scene.wait(TERMS.wait() + TERMS.length);
    let why = refusal(&out).expect("refused");
    assert!(
        why.contains("arbiter does not answer") && why.contains("node b does not consent"),
        "{why}"
    );
}

#[test]
fn without_a_guard_the_right_is_refused_and_what_may_run_has_to_stop() {
    let unguarded = |before| {
        let mut scene = Scene::new(0, before);
        scene.tell(Event::Ask);
        scene.peer(PROMISED);
        let mut told = scene.tell(Event::Marked);
        let Guard::Asked(attempt) = scene.lease.guard else {
            panic!("it was not asked: {told:?}");
        };
        let why = "no guard runs".to_owned();
        let late = Event::Unguarded {
            attempt: attempt + 1,
            why: why.clone(),
        };
        assert_eq!(scene.tell(late), [], "it is of another attempt");
        told = scene.tell(Event::Unguarded { attempt, why });
        (scene, told)
    };
    let (mut scene, told) = unguarded(Before::Free);
    let refused = Action::Tell(Right::Refused("no guard runs".to_owned()));
    assert!(told.contains(&refused), "{told:?}");
    assert!(!scene.lease.holds(Time(scene.now)));
    // It may be asked for again.
    scene.tell(Event::Marked);
    scene.tell(Event::Ask);
    assert!(matches!(scene.lease.phase, Phase::Asking(_)));
    let (_, told) = unguarded(Before::Held);
    assert!(told.contains(&Action::Tell(Right::Lost)), "{told:?}");
}
