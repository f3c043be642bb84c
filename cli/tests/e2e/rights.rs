//! What a failover manager hears of the mirrors' daemon, and what it can order: real daemons, a real
//! witness, and the death of one of them.

use std::time::{Duration, Instant};

use kagami::commands::demo::node::Node;
use kagami::commands::demo::scratch::MIRROR;
use kagami::config::Config;
use kagami::control::report::Condition;
use kagami::failover::mirrors::Daemon;
use kagami_failover::clock;
use kagami_failover::right::basis::{Basis, Judged, Says, Standing};
use kagami_failover::right::{MARGIN, Mirrors as _, Word};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use crate::support::{DEADLINE, get, laid_out, noise, ok, pair, put, registered, until, up};

pub fn daemon(node: &Node) -> Daemon {
    let config = Config::load(&node.config()).unwrap_or_else(|e| panic!("{e}"));
    Daemon::new(config.node.control)
}

/// Runs a future, with others of the same kind; nothing of them runs between two.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

fn listen(daemon: &Daemon, take_in_hand: bool) -> UnboundedReceiver<Word> {
    run(async { daemon.watch(vec![MIRROR.to_owned()], take_in_hand) })
}

/// What is said until `holds`, that word last.
fn said(
    words: &mut UnboundedReceiver<Word>,
    what: &str,
    holds: impl Fn(&Says) -> bool,
) -> Vec<Says> {
    let mut all = Vec::new();
    let hear = async {
        loop {
            if let Word::Says(says) = words.recv().await.expect("it is said for ever") {
                let last = holds(&says);
                all.push(says);
                if last {
                    return;
                }
            }
        }
    };
    let heard = run(async { timeout(DEADLINE, hear).await });
    assert!(heard.is_ok(), "not said in time: {what}; {:?}", all.last());
    all
}

fn is_session(says: &Says) -> bool {
    matches!(says.standing, Standing::Session(_))
}

#[test]
fn a_primary_whose_peer_dies_is_frozen_only_until_the_arbiter_answers() {
    let mut pair = pair("arbiter", "32M");
    let alpha = daemon(&pair.nodes.alpha);
    let mut words = listen(&alpha, false);
    let first = said(&mut words, "a session", is_session);
    assert!(first.iter().all(|says| says.mirror == MIRROR));
    said(&mut words, "in sync", |says| says.in_sync);

    let died = Instant::now();
    ok(pair.nodes.beta.kill());
    let all = said(&mut words, "alone", |says| says.standing == Standing::Alone);
    let mut basis = Basis::new(&[MIRROR.to_owned()]);
    for says in &all {
        // Refused it was never, and Primary it stayed.
        basis.take(clock::now(), says);
        assert_ne!(basis.judge(clock::now()), Judged::Refused, "{says:?}");
        assert!(basis.is_primary(), "{says:?}");
    }
    println!(
        "from SIGKILL of the peer to permission: {} ms",
        died.elapsed().as_millis()
    );
    up(&mut pair.nodes.beta);
    said(&mut words, "a session again", |says| {
        is_session(says) && says.in_sync
    });
    pair.stop_and_compare();
}

#[test]
fn the_other_node_takes_over_after_the_lease_and_the_old_one_is_refused() {
    let mut pair = pair("arbiter", "32M");
    let data = noise(65536, 8);
    put(&mut pair.on_alpha(), 0, &data);
    let beta = daemon(&pair.nodes.beta);
    let mut words = listen(&beta, true);
    said(&mut words, "a Secondary", |says| {
        says.standing == Standing::Secondary
    });
    // A person's promotion is none of theirs now; the manager's is refused by the Primary.
    let refused = ok(pair.nodes.beta.try_run(&["promote", MIRROR]));
    assert!(
        refused.err.contains("failover manager decides"),
        "{refused:?}"
    );
    // Neither is an attach, which would promote, nor a detach.
    for order in ["attach", "detach"] {
        let refused = ok(pair.nodes.beta.try_run(&[order, MIRROR]));
        assert!(
            refused.err.contains("failover manager decides"),
            "{refused:?}"
        );
    }
    let refused = run(beta.promote(MIRROR, false)).expect_err("alpha is Primary");
    assert!(refused.contains("Primary"), "{refused}");

    let died = Instant::now();
    ok(pair.nodes.alpha.kill());
    // It is asked while the session lasts, too: then it is refused, and asked again.
    let promoting = async {
        while let Err(why) = beta.promote(MIRROR, false).await {
            assert!(why.contains("Primary"), "{why}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    run(async { timeout(DEADLINE, promoting).await }).expect("promoted in time");
    let granted = clock::now();
    let all = said(&mut words, "alone", |says| says.standing == Standing::Alone);
    let ends = all.last().expect("said").peer_lease_ends;
    assert!(granted >= ends, "promoted before the other lease has ended");
    println!(
        "from SIGKILL of the Primary's daemon to the other one Primary: {} ms; {MARGIN} ms more for what is frozen",
        died.elapsed().as_millis()
    );
    assert_eq!(get(&mut pair.on_beta(), 0, 65536), data);

    // The old one returns: not Primary, and told that the other one is.
    up(&mut pair.nodes.alpha);
    let alpha = daemon(&pair.nodes.alpha);
    let mut words = listen(&alpha, false);
    let all = said(&mut words, "the other is Primary", |says| {
        says.peer_is_primary
    });
    let mut basis = Basis::new(&[MIRROR.to_owned()]);
    for says in &all {
        basis.take(clock::now(), says);
    }
    assert_eq!(basis.judge(clock::now()), Judged::Refused);
    pair.stop_and_compare();
}

#[test]
fn a_primary_without_peer_and_arbiter_seeks_permission_and_its_lease_has_ended() {
    let mut pair = laid_out("arbiter", "32M");
    pair.up();
    pair.promote_alpha();
    let alpha = daemon(&pair.nodes.alpha);
    let mut words = listen(&alpha, false);
    said(&mut words, "a session", is_session);
    registered(&pair);
    ok(pair.nodes.witness.as_mut().expect("a witness").kill());
    said(
        &mut words,
        "still a session: the arbiter alone changes nothing",
        is_session,
    );
    ok(pair.nodes.beta.kill());
    let all = said(&mut words, "sought", |says| {
        says.standing == Standing::Sought
    });
    let mut basis = Basis::new(&[MIRROR.to_owned()]);
    for says in &all {
        basis.take(clock::now(), says);
    }
    assert_eq!(basis.judge(clock::now()), Judged::Ended);
    ok(pair
        .nodes
        .witness
        .as_mut()
        .expect("a witness")
        .start(&["witness"]));
    said(&mut words, "alone", |says| says.standing == Standing::Alone);
    until(&mut pair.nodes.alpha, Condition::Alone);
    up(&mut pair.nodes.beta);
    pair.stop_and_compare();
}
