//! The model's own tests: it says what it means, small runs are clean, and mistakes are seen.

use kagami_bitmap::superblock::{Generation, Record};

use super::bounds::Bounds;
use super::mistake::Mistake;
use super::runs::{FULL, LONG, QUICK};
use super::search::{self, Found};
use super::state::{Node, in_history};
use super::steps::Step;
use super::verdict::{Outcome, View, verdict};

/// The core's record of a model's copy.
fn record(node: &Node) -> Record {
    let generation = |tag: u8| Generation {
        counter: u64::from(tag),
        tag: u64::from(tag),
    };
    Record {
        current: (node.current != 0).then(|| generation(node.current)),
        base: (node.base != 0).then(|| generation(node.base)),
        history: (1..=8)
            .rev()
            .filter(|tag| node.history & in_history(*tag) != 0)
            .map(generation)
            .collect(),
        alone: node.alone,
        zeroed: node.zeroed,
        ..Record::new(7, 1, 1 << 20)
    }
}

#[test]
fn minting_is_the_codes() {
    let of_history = |current: u8| {
        (0..8u16)
            .map(|set| set << 1)
            .filter(move |set| set & in_history(current) == 0)
    };
    for current in 0..=3 {
        for history in of_history(current).filter(|history| current != 0 || *history == 0) {
            for base in (0..=3).filter(|base| *base == 0 || history & in_history(*base) != 0) {
                let mut node = Node {
                    current,
                    history,
                    base,
                    zeroed: current == 0,
                    ..Node::default()
                };
                let mut expected = record(&node);
                expected.mint(5);
                node.mint(5);
                let got = record(&node);
                let tags = |r: &Record| {
                    let mut tags: Vec<_> = r.history.iter().map(|g| g.tag).collect();
                    tags.sort_unstable();
                    (
                        r.current.map(|g| g.tag),
                        r.base.map(|g| g.tag),
                        tags,
                        r.alone,
                        r.zeroed,
                    )
                };
                assert_eq!(tags(&got), tags(&expected), "{node:?}");
            }
        }
    }
}

#[test]
fn verdicts_are_remembered_as_given() {
    let node = Node {
        current: 1,
        ..Node::default()
    };
    let (mine, mut theirs) = (View::of(&node, 0), View::of(&node, 1));
    for _ in 0..2 {
        assert_eq!(
            verdict(&mine, &theirs, Mistake::None).outcome,
            Outcome::Nothing
        );
    }
    theirs.marked = true;
    theirs.unbroken = true;
    let found = verdict(&mine, &theirs, Mistake::None).outcome;
    assert_eq!(
        found,
        Outcome::Resync {
            source: 1,
            full: false
        }
    );
    // the planted mistake asks the same table about what is not so
    assert_eq!(
        verdict(&mine, &theirs, Mistake::NothingDespiteMarks).outcome,
        Outcome::Nothing
    );
    theirs.id = 0;
    assert_ne!(theirs, View { id: 1, ..theirs });
}

#[test]
fn small_runs_are_clean() {
    for run in QUICK.iter().chain(FULL).chain(LONG) {
        let found = search::run(&run.parsed(), 1_500);
        if let Some(violation) = &found.violation {
            panic!(
                "{}: {} after {:?}",
                run.bounds, violation.what, violation.trace
            );
        }
    }
}

#[test]
fn a_small_run_is_searched_whole() {
    let found = search::run(
        &Bounds::of("mode=never writes=1 crashes=0 drops=1 handshakes=1"),
        50_000,
    );
    assert_eq!(
        (found.word(), found.violation.is_none()),
        ("complete", true)
    );
    assert!(found.states > 100, "{}", found.states);
    let cut = search::run(&Bounds::default(), 100);
    assert_eq!((cut.word(), cut.states), ("cut", 100));
}

#[test]
fn a_mistake_is_found_with_its_shortest_trace() {
    let bounds = Bounds {
        mistake: Mistake::ClearOnReceipt,
        ..Bounds::default()
    };
    let found = search::run(&bounds, 20_000);
    let violation = found.violation.expect("a mark is cleared too early");
    assert!(
        violation.what.starts_with("Marked-before-different"),
        "{}",
        violation.what
    );
    let words: Vec<_> = violation.trace.iter().map(ToString::to_string).collect();
    assert_eq!(words, ["A:write block 0", "apply", "acknowledge"]);
}

#[test]
fn mistakes_that_show_early_are_caught() {
    for mistake in [
        Mistake::MintAtLoss,
        Mistake::ActivityLogSkip,
        Mistake::NothingDespiteMarks,
        Mistake::BothGrant,
        Mistake::BothMintFirst,
        Mistake::DisklessWithoutMint,
        Mistake::CarrierBesideThePrimary,
        Mistake::HelloBeforeLateWrite,
    ] {
        let caught = mistake.bounds().iter().any(|text| {
            let bounds = Bounds {
                mistake,
                ..Bounds::of(text)
            };
            search::run(&bounds, 20_000).violation.is_some()
        });
        assert!(caught, "{}", mistake.name());
    }
}

#[test]
fn every_list_can_be_read() {
    for mistake in Mistake::ALL {
        for text in mistake.bounds() {
            let _ = Bounds::of(text);
        }
        assert_eq!(
            Mistake::ALL
                .iter()
                .filter(|m| m.name() == mistake.name())
                .count(),
            1
        );
    }
    for run in QUICK.iter().chain(FULL).chain(LONG) {
        assert!(!run.about.is_empty() && run.most > 0);
        // the words of bounds are read as they are written
        let bounds = run.parsed();
        let again = Bounds::of(bounds.to_string().trim_start_matches("defaults"));
        assert_eq!(again.to_string(), bounds.to_string());
    }
}

#[test]
fn a_search_that_is_smaller_than_it_was_is_told() {
    let run = QUICK[0];
    let cut = search::run(&run.parsed(), 1_500);
    assert!(run.went_far_enough(&cut).unwrap_err().contains("cut at"));
    let all = |states| Found {
        states,
        complete: true,
        ..search::run(&run.parsed(), 1)
    };
    assert_eq!(run.went_far_enough(&all(run.had)), Ok(()));
    let lost = run.went_far_enough(&all(run.had / 5 * 4));
    assert!(lost.unwrap_err().contains("can't be taken any more"));
}

#[test]
fn bounds_refuse_what_they_do_not_know() {
    let mut bounds = Bounds::default();
    for wrong in [
        "drops",
        "drop=1",
        "drops=x",
        "drops=300",
        "mode=sometimes",
        "fine=2",
        "mistake=Nothing",
    ] {
        assert!(bounds.set(wrong).is_err(), "{wrong}");
    }
    assert!(bounds.set("mode=never").is_ok());
}

#[test]
fn steps_read_aloud() {
    for (step, words) in [
        (Step::Write(0, 1), "A:write block 1"),
        (Step::LeaseEnds(1), "B:lease-ends"),
        (Step::Answered(3, true), "arbiter-answers:yes"),
        (Step::Swap(2), "arbiter-swaps"),
        (Step::SendBlock(1), "send-block"),
        (Step::Force(1, true), "B:force with the register"),
        (Step::Handshake, "handshake"),
    ] {
        assert_eq!(step.to_string(), words);
    }
}
