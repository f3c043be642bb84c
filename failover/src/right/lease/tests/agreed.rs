//! Which register both nodes have agreed on.

use super::*;

fn refused(actions: &Actions) -> bool {
    let silent = |action: &Action| {
        let Action::Answer { word, .. } = action else {
            return false;
        };
        matches!(word, Word::Silent(why) if why.contains("ask different registers"))
    };
    actions.iter().any(silent)
}

#[test]
fn a_record_counts_when_both_nodes_have_agreed_on_its_register() {
    let (before, length, instance) = (Before::Free, TERMS.length, None);
    let fresh = Left {
        before,
        length,
        instance,
    };
    let mut scene = Scene::after(0, fresh);
    scene.tell(Event::Ask);
    // Alone it never makes one.
    scene.arbiter(Said::Found(None));
    scene.wait(TERMS.wait() - 1);
    scene.arbiter(Said::Found(None));
    scene.wait(TERMS.step());
    assert_eq!(scene.lease.may_swap_from(), None);
    // The other node consents, and has not agreed on any.
    scene.now += 10;
    scene.peer(Word::Promised {
        instance,
        token: None,
    });
    let out = scene.arbiter(Said::Found(None));
    let (expect, (id, _)) = swaps(&out).expect("made by consent");
    assert_eq!(expect, None);
    let sent = scene.now;
    scene.now += 10;
    let out = scene.arbiter(Said::Swapped);
    let asks = |action: &Action| matches!(action, Action::Question { question, .. } if question.instance == Some(id.instance));
    assert!(out.iter().any(asks), "at once: {out:?}");
    let promised = scene.lease.by_promise;
    assert_eq!(
        scene.lease.ends(),
        promised,
        "the record counts for nothing"
    );
    // It has recorded this one now.
    let instance = Some(id.instance);
    scene.peer(Word::Promised {
        instance,
        token: None,
    });
    assert_eq!(scene.lease.by_register, Time(sent + TERMS.length));
    scene.tell(Event::Marked);
    let kept = scene.lease.writing.expect("its disk is to know it");
    assert_eq!(kept.instance, instance);
}

#[test]
fn who_promises_has_the_register_on_its_disk_first() {
    let (before, length, instance) = (Before::Free, TERMS.length, None);
    let mut scene = Scene::after(
        1,
        Left {
            before,
            length,
            instance,
        },
    );
    let (token, held, instance) = (7, true, Some(9));
    let question = Question {
        held,
        length,
        instance,
        echo: Some(3),
    };
    let out = scene.tell(Event::Question { token, question });
    assert!(
        !out.contains(&answer(Word::Promised {
            instance,
            token: None
        })),
        "{out:?}"
    );
    let writing = scene.lease.writing.expect("written first");
    assert_eq!((writing.mark, writing.instance), (Mark::Free, instance));
    let out = scene.tell(Event::Marked);
    assert!(
        out.contains(&answer(Word::Promised {
            instance,
            token: None
        })),
        "{out:?}"
    );
}

#[test]
fn who_finds_another_register_gives_up_the_one_that_was_agreed_on_first() {
    let mut scene = Scene::new(0, Before::Free);
    scene.tell(Event::Timer);
    let (seq, instance) = (1, 9);
    let (_, new) = record(seq, None).expect("some");
    let found = Some((Id { instance, seq }, new));
    scene.arbiter(Said::Found(found));
    let asked = |out: &Actions| {
        out.iter().find_map(|action| match action {
            Action::Question { question, .. } => Some(question.instance),
            _ => None,
        })
    };
    assert_eq!(
        asked(&scene.tell(Event::Ask)),
        None,
        "not before its disk has it"
    );
    scene.tell(Event::Timer);
    let kept = scene.lease.writing.expect("written");
    assert_eq!(kept.instance, None);
    assert_eq!(asked(&scene.tell(Event::Marked)), Some(Some(9)));
    // And two that find nothing agree on what one of them knew.
    let mut other = Scene::new(1, Before::Free);
    other.tell(Event::Timer);
    other.arbiter(Said::Found(None));
    let (token, held, length, instance) = (7, true, TERMS.length, Some(9));
    let question = Question {
        held,
        length,
        instance,
        echo: Some(3),
    };
    other.tell(Event::Question { token, question });
    let out = other.tell(Event::Marked);
    assert!(
        out.contains(&answer(Word::Promised {
            instance,
            token: None
        })),
        "{out:?}"
    );
}

#[test]
fn a_question_that_comes_late_agrees_on_nothing() {
    let mut scene = Scene::new(1, Before::Free);
    let (token, held, length, instance) = (7, true, TERMS.length, Some(9));
    let asks = |echo| {
        let question = Question {
            held,
            length,
            instance,
            echo,
        };
        Event::Question { token, question }
    };
    scene.tell(asks(None));
    let out = scene.tell(Event::Marked);
    let fresh = out.iter().find_map(|action| match action {
        Action::Answer {
            word:
                Word::Promised {
                    instance: None,
                    token,
                },
            ..
        } => *token,
        _ => None,
    });
    assert!(fresh.is_some() && scene.lease.agreed.is_none(), "{out:?}");
    // Who repeats it asks now.
    scene.tell(asks(fresh));
    assert_eq!(scene.lease.agreed, instance);
}

#[test]
fn two_nodes_that_ask_different_registers_are_told_apart() {
    let mut scene = Scene::new(1, Before::Free);
    scene.tell(Event::Timer);
    scene.arbiter(Said::Found(record(3, Some("a"))));
    scene.now += 500;
    let (token, held, length) = (7, true, TERMS.length);
    let asks = |instance| {
        let question = Question {
            held,
            length,
            instance: Some(instance),
            echo: Some(3),
        };
        Event::Question { token, question }
    };
    let out = scene.tell(asks(9));
    assert!(refused(&out), "{out:?}");
    let reads = |action: &Action| matches!(action, Action::Read { .. });
    assert!(out.iter().any(reads), "it may be new: {out:?}");
    // It is not: people have to know, once.
    let out = scene.arbiter(Said::Found(record(4, Some("a"))));
    assert!(out.contains(&Action::SayApart), "{out:?}");
    scene.tell(asks(9));
    let out = scene.arbiter(Said::Found(record(5, Some("a"))));
    assert!(!out.contains(&Action::SayApart), "{out:?}");
    // It was made anew, and both see it: another one is agreed on.
    scene.now += 500;
    assert!(refused(&scene.tell(asks(9))));
    let (holder, run) = (Some("a".to_owned()), 1);
    let (seq, instance) = (1, 9);
    let record = Record {
        holder,
        run,
        length,
    };
    let found = Some((Id { instance, seq }, record));
    assert!(
        !scene
            .arbiter(Said::Found(found))
            .contains(&Action::SayApart)
    );
    let out = scene.tell(asks(9));
    assert!(!refused(&out), "{out:?}");
    let instance = Some(9);
    let out = scene.tell(Event::Marked);
    assert!(
        out.contains(&answer(Word::Promised {
            instance,
            token: None
        })),
        "{out:?}"
    );
}
