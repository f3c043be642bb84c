//! Who may go on alone: never, arbiter, always, and what a person sees of it.

use std::time::Duration;

use kagami::commands::bench::client::Client;
use kagami::commands::demo::node::wait_until;
use kagami::commands::demo::scratch::{MIRROR, Scratch, in_sync};
use kagami::control::report::{Condition, Disk, MirrorReport};
use kagami_failover::right::Mirrors as _;

use crate::guests::{fast, slow};
use crate::rights::{daemon, run};
use crate::support::{
    DEADLINE, MIB, down, get, is_held_until, laid_out, noise, ok, pair, put, quiet, refused, until,
    up,
};

#[test]
fn never_holds_writes_until_the_peer_is_back() {
    let mut pair = pair("never", "32M");
    let data = noise(4096, 1);
    put(&mut pair.on_alpha(), 0, &noise(8192, 2));
    ok(pair.nodes.beta.kill());

    let socket = ok(Scratch::socket(&pair.nodes.alpha));
    let held = {
        let data = data.clone();
        std::thread::spawn(move || {
            let mut client = Client::connect(&socket, MIRROR, DEADLINE)?;
            client.write(0, &data)?;
            client.flush()
        })
    };
    let state = until(&mut pair.nodes.alpha, Condition::Held);
    assert!(state.held.is_some() && state.in_flight > 0, "{state:?}");
    assert!(!state.next.is_empty(), "nobody says what to do: {state:?}");
    let screen = ok(pair.nodes.alpha.run(&["status"]));
    assert!(screen.contains("HELD"), "{screen}");
    assert_eq!(
        ok(pair.nodes.alpha.try_run(&["status", "--exit-code"])).code,
        Some(12)
    );
    assert!(
        !held.is_finished(),
        "a write was answered without permission"
    );

    up(&mut pair.nodes.beta);
    ok(wait_until("the client", "its answer", DEADLINE, || {
        held.is_finished().then_some(())
    }));
    held.join().expect("the client").expect("its write");
    assert_eq!(get(&mut pair.on_alpha(), 0, 4096), data);
    pair.stop_and_compare();
}

#[test]
fn a_held_request_keeps_no_mirror_from_stopping() {
    let mut pair = laid_out("never", "32M");
    ok(pair.nodes.add_mirror("second", "16M", &mut quiet));
    pair.up();
    pair.promote_alpha();
    let second = |state: &MirrorReport| state.condition == Condition::InSync;
    ok(pair
        .nodes
        .beta
        .wait("second", "its meeting", DEADLINE, second));
    put(&mut pair.on_alpha(), 0, &noise(8192, 2));
    ok(pair.nodes.beta.kill());
    let socket = ok(Scratch::socket(&pair.nodes.alpha));
    let held = std::thread::spawn(move || {
        Client::connect(&socket, MIRROR, DEADLINE)?.write(MIB, &noise(4096, 1))
    });
    until(&mut pair.nodes.alpha, Condition::Held);

    // Clients are cut off first, and what they wait for fails with the mirror's stop.
    ok(pair.nodes.alpha.stop(DEADLINE));
    assert!(held.join().expect("the client").is_err());
    let log = std::fs::read_to_string(pair.nodes.alpha.log()).expect("the log");
    for mirror in [MIRROR, "second"] {
        let closed = format!("{mirror}: stopped, its stores are closed");
        assert!(log.contains(&closed), "{log}");
    }
    assert!(!log.contains("not stopped cleanly"), "{log}");
    pair.up();
    pair.promote_alpha();
    assert!(get(&mut pair.on_alpha(), 0, 8192) == noise(8192, 2));
    pair.stop_and_compare();
}

#[test]
fn arbiter_lets_one_go_on_and_not_the_other() {
    let mut pair = pair("arbiter", "32M");
    ok(pair.nodes.beta.kill());
    let data = noise(65536, 3);
    put(&mut pair.on_alpha(), 4096, &data);
    let state = until(&mut pair.nodes.alpha, Condition::Alone);
    let by = state
        .alone
        .as_ref()
        .and_then(|alone| alone.by.clone())
        .unwrap_or_default();
    assert!(by.contains("arbiter"), "{state:?}");

    // alpha dies; beta, which the witness no longer names, must not go on.
    ok(pair.nodes.alpha.kill());
    up(&mut pair.nodes.beta);
    until(&mut pair.nodes.beta, Condition::Connecting);
    let printed = ok(pair
        .nodes
        .beta
        .try_run(&["promote", MIRROR, "--timeout", "20s"]));
    assert!(
        !printed.success,
        "the stale copy was promoted: {}",
        printed.out
    );
    assert!(matches!(printed.code, Some(1 | 4)), "{printed:?}");

    up(&mut pair.nodes.alpha);
    ok(pair.nodes.wait_in_sync(DEADLINE));
    ok(pair.nodes.alpha.run(&["promote", MIRROR]));
    assert_eq!(get(&mut pair.on_alpha(), 4096, 65536), data);
    pair.stop_and_compare();
}

#[test]
fn a_witness_that_dies_changes_nothing_while_in_sync() {
    let mut pair = pair("arbiter", "32M");
    ok(pair.nodes.witness.as_mut().expect("a witness").kill());
    put(&mut pair.on_alpha(), 0, &noise(1 << 20, 4));
    assert!(in_sync(&ok(pair.nodes.alpha.mirror(MIRROR))));
    is_held_until(&mut pair, |pair| {
        let witness = pair.nodes.witness.as_mut().expect("a witness");
        ok(witness.start(&["witness"]));
    });
    pair.stop_and_compare();
}

#[test]
fn always_goes_on() {
    let mut pair = pair("always", "32M");
    ok(pair.nodes.beta.kill());
    put(&mut pair.on_alpha(), 0, &noise(65536, 5));
    until(&mut pair.nodes.alpha, Condition::Alone);
    assert_eq!(
        ok(pair.nodes.alpha.try_run(&["status", "--exit-code"])).code,
        Some(11)
    );
    let screen = ok(pair.nodes.alpha.run(&["status"]));
    assert!(screen.contains("ALONE"), "{screen}");
    up(&mut pair.nodes.beta);
    pair.stop_and_compare();
}

#[test]
fn roles_change_only_where_they_may() {
    let mut pair = pair("never", "32M");
    // The other is Primary.
    let words = refused(&pair.nodes.beta, &["promote", MIRROR], 1);
    assert!(
        words.contains("Primary") && words.contains("next:"),
        "{words}"
    );
    // A hand-over while connected.
    put(&mut pair.on_alpha(), 0, &noise(65536, 6));
    ok(pair.nodes.alpha.run(&["demote", MIRROR]));
    ok(pair.nodes.beta.run(&["promote", MIRROR]));
    assert_eq!(get(&mut pair.on_beta(), 0, 65536), noise(65536, 6));
    put(&mut pair.on_beta(), 65536, &noise(65536, 7));
    // Without permission: alpha must not follow a dead Primary.
    ok(pair.nodes.beta.kill());
    until(&mut pair.nodes.alpha, Condition::Connecting);
    let words = refused(&pair.nodes.alpha, &["promote", MIRROR], 1);
    assert!(
        words.contains("permission") && words.contains("next:"),
        "{words}"
    );
    // By force it does, and is asked first.
    refused(&pair.nodes.alpha, &["promote", MIRROR, "--force"], 2);
    ok(pair
        .nodes
        .alpha
        .run(&["promote", MIRROR, "--force", "--yes"]));
    assert_eq!(get(&mut pair.on_alpha(), 65536, 65536), noise(65536, 7));
    down(&mut pair.nodes.alpha);
}

#[test]
fn a_clean_leave_gives_consent_at_once() {
    let mut pair = pair("never", "32M");
    let began = std::time::Instant::now();
    down(&mut pair.nodes.beta);
    put(&mut pair.on_alpha(), 0, &noise(65536, 8));
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    until(&mut pair.nodes.alpha, Condition::Alone);
    // The one that left knows that it is Outdated.
    down(&mut pair.nodes.alpha);
    up(&mut pair.nodes.beta);
    until(&mut pair.nodes.beta, Condition::Connecting);
    let words = refused(&pair.nodes.beta, &["promote", MIRROR], 1);
    assert!(words.contains("Outdated"), "{words}");
    up(&mut pair.nodes.alpha);
    pair.stop_and_compare();
}

#[test]
fn a_fence_script_is_permission_and_makes_no_copy_better() {
    let mut pair = pair("never", "64M");
    down(&mut pair.nodes.beta);
    let data = noise(24 * MIB, 9);
    put(&mut pair.on_alpha(), 0, &data);
    for node in [&pair.nodes.alpha, &pair.nodes.beta] {
        slow(node);
    }
    ok(pair.nodes.alpha.run(&["reload"]));
    up(&mut pair.nodes.beta);
    until(&mut pair.nodes.beta, Condition::Resynchronising);
    ok(pair.nodes.alpha.kill());
    until(&mut pair.nodes.beta, Condition::Unusable);
    let beta = daemon(&pair.nodes.beta);
    let refused = run(beta.promote(MIRROR, true)).expect_err("it is half overwritten");
    assert!(refused.contains("Inconsistent"), "{refused}");
    let state = ok(pair.nodes.beta.mirror(MIRROR));
    assert_eq!(state.disk, Disk::Inconsistent, "{state:?}");

    // With a copy that is good it needs nothing else.
    fast(&pair.nodes.beta);
    up(&mut pair.nodes.alpha);
    until(&mut pair.nodes.beta, Condition::Resynchronising);
    fast(&pair.nodes.alpha);
    ok(pair.nodes.wait_in_sync(DEADLINE));
    ok(pair.nodes.alpha.kill());
    until(&mut pair.nodes.beta, Condition::Connecting);
    let refused = run(beta.promote(MIRROR, false)).expect_err("nobody permits it");
    assert!(refused.contains("permission"), "{refused}");
    run(beta.promote(MIRROR, true)).expect("the fence script permits it");
    let state = until(&mut pair.nodes.beta, Condition::Alone);
    let by = state.alone.as_ref().and_then(|alone| alone.by.clone());
    assert_eq!(by.as_deref(), Some("fence"), "{state:?}");
    assert!(get(&mut pair.on_beta(), 0, 24 * MIB) == data);
    up(&mut pair.nodes.alpha);
    pair.stop_and_compare();
}
