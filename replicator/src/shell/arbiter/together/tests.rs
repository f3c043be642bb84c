use std::cell::Cell;

use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};

use super::*;
use crate::core::register::Register;

const ME: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);
const INSTANCE: u64 = 7;
/// What nobody answers is not waited for longer.
const SHORT: Duration = Duration::from_millis(10);
const ASKED: Attempt = Attempt(40);

fn place(mirror: &str) -> Place {
    let follow = |mirror: &str| Follow {
        mirror: mirror.to_owned(),
        id: if mirror == "second" { 2 } else { 3 },
        leader: "first".to_owned(),
        leader_id: 1,
    };
    Place::of(mirror, &[follow("second"), follow("third")]).expect("a place")
}

fn good() -> Footing {
    Footing {
        disk: DiskState::Consistent,
        arbiter: Some(INSTANCE),
        ..Footing::default()
    }
}

fn board(of: &[(&str, Footing)]) -> Board {
    let owned = |(name, footing): &(&str, Footing)| ((*name).to_owned(), *footing);
    of.iter().map(owned).collect()
}

fn register(copies: &[NodeId]) -> ArbiterAnswer {
    ArbiterAnswer::Register(Some(Register {
        instance: INSTANCE,
        seq: 3,
        copies: copies.to_vec(),
        generation: 5,
        parent: 5,
        nonce: Attempt(9),
        forced: false,
    }))
}

fn words(verdict: Verdict) -> String {
    match verdict {
        Verdict::Send => "send".to_owned(),
        Verdict::Look => "look".to_owned(),
        Verdict::Wait(why) => format!("wait: {why}"),
        Verdict::Refuse(why) => format!("refuse: {why}"),
    }
}

#[test]
fn who_follows_nobody_and_is_not_followed_has_no_place() {
    assert_eq!(Place::of("fourth", &[]), None);
    let first = place("first");
    assert_eq!((first.looks, first.leader), (vec![2, 3], None));
    assert_eq!(first.followers, ["second", "third"]);
    let second = place("second");
    assert_eq!(
        (second.looks, second.leader.as_deref()),
        (vec![1], Some("first"))
    );
}

#[test]
fn a_follower_asks_when_its_leader_may_run_here() {
    let mine = Footing {
        since: Time(100),
        ..good()
    };
    let judged = |leader: Option<Footing>| {
        let mut of = vec![("second", mine)];
        of.extend(leader.map(|leader| ("first", leader)));
        words(judge(&place("second"), &board(&of)))
    };
    let alone = Footing {
        alone: true,
        ..good()
    };
    let session = |heard| Footing {
        heard: Some(Time(heard)),
        ..good()
    };
    let refused = Footing {
        refused: true,
        ..good()
    };
    assert_eq!(judged(Some(alone)), "send");
    assert_eq!(judged(Some(session(101))), "look");
    // It was refused while alone, and a person forced it.
    assert_eq!(
        judged(Some(Footing {
            alone: true,
            ..refused
        })),
        "send"
    );
    // Of a link that is lost the sessions end one after the other.
    assert!(judged(Some(session(100))).contains("has not been heard since"));
    assert!(judged(Some(good())).contains("does not go on alone here"));
    assert!(judged(Some(refused)).contains("was refused"));
    assert!(judged(None).contains("first, which is not started here"));
}

#[test]
fn a_leader_asks_when_every_follower_could_go_on_here() {
    let judged = |of: &[(&str, Footing)]| words(judge(&place("first"), &board(of)));
    let with = |disk| Footing { disk, ..good() };
    for disk in [DiskState::Consistent, DiskState::UpToDate] {
        assert_eq!(judged(&[("second", with(disk)), ("third", good())]), "look");
    }
    for disk in [
        DiskState::Inconsistent,
        DiskState::Outdated,
        DiskState::Diskless,
        DiskState::Failed,
        DiskState::Unknown,
    ] {
        let said = judged(&[("second", good()), ("third", with(disk))]);
        assert!(said.starts_with("refuse: mirror third"), "{said}");
        assert!(said.contains(&disk.to_string()), "{said}");
    }
    let elsewhere = Footing {
        peer_is_primary: true,
        ..good()
    };
    let said = judged(&[("second", elsewhere), ("third", good())]);
    assert!(
        said.starts_with("wait: ") && said.contains("the other node"),
        "{said}"
    );
    let said = judged(&[("second", good())]);
    assert!(
        said.starts_with("wait: ") && said.contains("third"),
        "{said}"
    );
    // What no waiting changes is told, whatever else is missing.
    let said = judged(&[("third", with(DiskState::Failed))]);
    assert!(said.starts_with("refuse: mirror third"), "{said}");
}

#[test]
fn a_look_wants_a_register_that_names_this_copy() {
    let judged =
        |answer: &ArbiterAnswer| words(looked(&place("first"), "second", &good(), ME, answer));
    assert_eq!(judged(&register(&[ME, OTHER])), "send");
    assert_eq!(judged(&register(&[ME])), "send");
    assert!(judged(&register(&[OTHER])).contains("names the other copy"));
    assert!(judged(&ArbiterAnswer::Register(None)).starts_with("refuse: mirror second"));
    assert!(judged(&ArbiterAnswer::NotOurs("taken out".into())).contains("taken out"));
    assert!(judged(&ArbiterAnswer::Swapped).starts_with("refuse: "));
    assert!(judged(&ArbiterAnswer::Unreachable("gone".into())).starts_with("wait: "));
    let another = Footing {
        arbiter: Some(8),
        ..good()
    };
    let said = words(looked(
        &place("first"),
        "second",
        &another,
        ME,
        &register(&[ME]),
    ));
    assert!(said.contains("not the one that it recorded"), "{said}");
    // In its session a leader's register is put right: nothing of that lasts.
    let said = words(looked(
        &place("second"),
        "first",
        &good(),
        ME,
        &register(&[OTHER]),
    ));
    assert!(
        said.starts_with("wait: ") && said.contains("names the other copy"),
        "{said}"
    );
}

/// A register that answers when it is let, and counts what it was asked.
#[derive(Default)]
struct Kept {
    names: RefCell<Vec<NodeId>>,
    asked: Cell<usize>,
    held: Cell<bool>,
    let_go: Notify,
}

impl Arbiter for Kept {
    fn ask(self: Rc<Self>, ask: Ask) -> Pending {
        self.asked.set(self.asked.get() + 1);
        Box::pin(async move {
            if self.held.get() {
                self.let_go.notified().await;
            }
            match ask {
                Ask::Read => register(&self.names.borrow()),
                Ask::Swap { .. } => ArbiterAnswer::Swapped,
            }
        })
    }

    fn describe(&self) -> String {
        "kept".to_owned()
    }
}

fn kept(names: &[NodeId]) -> Rc<Kept> {
    let kept = Kept::default();
    kept.names.replace(names.to_vec());
    Rc::new(kept)
}

fn asking() -> Footing {
    Footing {
        asking: Some(ASKED),
        ..good()
    }
}

struct Bench {
    board: watch::Sender<Board>,
    gate: Rc<Gate>,
    arbiter: Rc<Kept>,
    looks: Vec<Rc<Kept>>,
}

impl Bench {
    fn new(mirror: &str, of: &[(&str, Footing)]) -> Self {
        let place = place(mirror);
        let sender = watch::Sender::new(board(of));
        let looks: Vec<_> = place.looks.iter().map(|_| kept(&[ME, OTHER])).collect();
        let registers = looks
            .iter()
            .map(|one| Rc::clone(one) as Rc<dyn Arbiter>)
            .collect();
        let gate = Gate::new(place, ME, sender.subscribe(), registers);
        Self {
            board: sender,
            gate,
            arbiter: kept(&[ME, OTHER]),
            looks,
        }
    }

    fn pass(&self) -> JoinHandle<ArbiterAnswer> {
        self.pass_within(Duration::from_secs(60))
    }

    fn pass_within(&self, patience: Duration) -> JoinHandle<ArbiterAnswer> {
        let ask = Ask::Swap {
            expect: None,
            register: match register(&[ME]) {
                ArbiterAnswer::Register(Some(register)) => register,
                other => panic!("{other:?}"),
            },
        };
        let arbiter = Rc::clone(&self.arbiter) as Rc<dyn Arbiter>;
        spawn_local(Rc::clone(&self.gate).pass(ASKED, ask, arbiter, patience))
    }

    fn post(&self, name: &str, footing: Footing) {
        self.board.send_modify(|board| {
            board.insert(name.to_owned(), footing);
        });
    }
}

fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

/// Every task has had its turn, and whom it woke, too.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

#[test]
fn a_held_question_goes_out_when_the_leader_has_decided() {
    run(async {
        let bench = Bench::new("second", &[("first", good()), ("second", asking())]);
        let answer = bench.pass();
        settle().await;
        assert_eq!(bench.arbiter.asked.get(), 0, "sent before its leader");
        assert!(bench.gate.held().expect("a reason").contains("first"));
        bench.post(
            "first",
            Footing {
                alone: true,
                ..good()
            },
        );
        settle().await;
        assert!(answer.is_finished(), "it was not woken");
        assert_eq!(answer.await.expect("an answer"), ArbiterAnswer::Swapped);
        assert_eq!((bench.arbiter.asked.get(), bench.gate.held()), (1, None));
    });
}

#[test]
fn a_question_that_was_held_too_long_or_given_up_is_never_sent() {
    run(async {
        let bench = Bench::new("second", &[("first", good()), ("second", asking())]);
        let answer = bench.pass_within(SHORT).await.expect("an answer");
        assert!(
            matches!(&answer, ArbiterAnswer::Unreachable(why) if why.contains("first")),
            "{answer:?}"
        );

        let answer = bench.pass();
        settle().await;
        // It has met the peer meanwhile: the attempt is no more.
        bench.post("second", good());
        bench.post(
            "first",
            Footing {
                alone: true,
                ..good()
            },
        );
        assert!(matches!(answer.await, Ok(ArbiterAnswer::Unreachable(_))));
        assert_eq!(bench.arbiter.asked.get(), 0);
    });
}

#[test]
fn a_leader_reads_the_registers_of_its_followers_first() {
    run(async {
        let of = [("first", asking()), ("second", good()), ("third", good())];
        let bench = Bench::new("first", &of);
        assert_eq!(
            bench.pass().await.expect("an answer"),
            ArbiterAnswer::Swapped
        );
        assert!(bench.looks.iter().all(|look| look.asked.get() == 1));

        bench.looks[1].names.replace(vec![OTHER]);
        let answer = bench.pass().await.expect("an answer");
        assert!(
            matches!(&answer, ArbiterAnswer::NotOurs(why) if why.contains("mirror third")),
            "{answer:?}"
        );
        assert_eq!(
            bench
                .gate
                .held()
                .as_deref()
                .map(|why| why.contains("third")),
            Some(true)
        );

        // A register that says nothing is waited for as long as a question may take.
        bench.looks[1].held.set(true);
        let answer = bench.pass_within(SHORT).await.expect("an answer");
        assert!(
            matches!(answer, ArbiterAnswer::Unreachable(_)),
            "{answer:?}"
        );
        assert_eq!(bench.arbiter.asked.get(), 1);
    });
}

#[test]
fn a_copy_that_turns_bad_during_the_look_counts() {
    run(async {
        let of = [("first", asking()), ("second", good()), ("third", good())];
        let bench = Bench::new("first", &of);
        bench.looks[0].held.set(true);
        let answer = bench.pass();
        settle().await;
        bench.post(
            "third",
            Footing {
                disk: DiskState::Failed,
                ..good()
            },
        );
        bench.looks[0].let_go.notify_one();
        let answer = answer.await.expect("an answer");
        assert!(
            matches!(&answer, ArbiterAnswer::NotOurs(why) if why.contains("Failed")),
            "{answer:?}"
        );
        assert_eq!(bench.arbiter.asked.get(), 0);
    });
}

#[test]
fn beside_its_leaders_session_a_follower_reads_its_leaders_register() {
    run(async {
        let session = Footing {
            heard: Some(Time(1)),
            ..good()
        };
        let bench = Bench::new("second", &[("first", session), ("second", asking())]);
        bench.looks[0].names.replace(vec![OTHER]);
        let answer = bench.pass().await.expect("an answer");
        assert!(
            matches!(answer, ArbiterAnswer::Unreachable(_)),
            "{answer:?}"
        );
        assert_eq!(bench.arbiter.asked.get(), 0);
        bench.looks[0].names.replace(vec![ME, OTHER]);
        assert_eq!(
            bench.pass().await.expect("an answer"),
            ArbiterAnswer::Swapped
        );
        // By its leader's own permission it needs no look.
        bench.post(
            "first",
            Footing {
                alone: true,
                ..good()
            },
        );
        assert_eq!(
            bench.pass().await.expect("an answer"),
            ArbiterAnswer::Swapped
        );
        assert_eq!(bench.looks[0].asked.get(), 2);
    });
}
