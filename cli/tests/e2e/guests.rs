//! The service goes home before its copy is in sync: the source answers for a target that is Primary.

use std::fs;

use kagami::commands::demo::node::Node;
use kagami::commands::demo::scratch::{MIRROR, in_sync};
use kagami::control::report::{Condition, Disk, MirrorReport, Role};

use crate::support::{
    DEADLINE, MIB, Pair, client, down, get, noise, ok, pair, program, put, refused, succeed, until,
    up, uri,
};

/// What beta lacks when it comes back.
const MISSED: u64 = 24 * MIB;

/// Lines that make a resynchronisation slow enough to be caught.
fn slow_lines() -> String {
    format!("\n[mirror.{MIRROR}.resync]\nmax-rate = \"256KiB/s\"\n")
}

pub fn slow(node: &Node) {
    let text = fs::read_to_string(node.config()).expect("the configuration");
    fs::write(node.config(), text + &slow_lines()).expect("written");
}

pub fn fast(node: &Node) {
    let text = fs::read_to_string(node.config()).expect("the configuration");
    fs::write(node.config(), text.replace(&slow_lines(), "\n")).expect("written");
    ok(node.run(&["reload"]));
}

/// alpha has data that beta lacks and is Secondary, beta is being resynchronised, slowly, and has
/// been promoted.
fn guest() -> Pair {
    let mut pair = pair("always", "64M");
    down(&mut pair.nodes.beta);
    put(&mut pair.on_alpha(), 0, &noise(MISSED, 3));
    slow(&pair.nodes.alpha);
    slow(&pair.nodes.beta);
    ok(pair.nodes.alpha.run(&["reload"]));
    ok(pair.nodes.alpha.run(&["demote", MIRROR]));
    up(&mut pair.nodes.beta);
    until(&mut pair.nodes.beta, Condition::Resynchronising);
    let words = refused(&pair.nodes.beta, &["promote", MIRROR], 1);
    assert!(
        words.contains("being resynchronised") && words.contains("next:"),
        "{words}"
    );
    assert!(words.contains("--while-resyncing"), "{words}");
    ok(pair
        .nodes
        .beta
        .run(&["promote", MIRROR, "--while-resyncing"]));
    pair
}

fn is_guest(state: &MirrorReport) -> bool {
    state.role == Role::Primary && state.disk == Disk::Inconsistent && state.served_by_peer
}

#[test]
fn a_target_serves_what_its_source_has_through_the_death_of_its_daemon() {
    let mut pair = guest();
    let state = ok(pair.nodes.beta.mirror(MIRROR));
    assert!(is_guest(&state), "{state:?}");
    let screen = ok(pair.nodes.beta.run(&["status"]));
    assert!(screen.contains("alpha answers every request"), "{screen}");
    let words = refused(&pair.nodes.alpha, &["promote", MIRROR], 1);
    assert!(words.contains("the peer is Primary"), "{words}");

    // All of the source's data, where this copy has holes and old blocks.
    let mut on_beta = pair.on_beta();
    assert!(get(&mut on_beta, 0, MISSED) == noise(MISSED, 3), "read");
    let at = uri(&pair.nodes.beta);
    let map = succeed(program("nbdinfo").args(["--map", &at]));
    assert!(
        !map.contains("hole"),
        "the target's own holes are told: {map}"
    );
    put(&mut on_beta, 30 * MIB, &noise(2 * MIB, 4));
    put(&mut on_beta, 4096 + 512, &noise(3 * 512, 5));
    let work = "h.zero(1 << 20, 40 << 20); h.trim(1 << 20, 44 << 20); h.flush(); \
                assert h.pread(1 << 20, 40 << 20) == bytes(1 << 20); print('done')";
    assert!(succeed(program("nbdsh").args(["-u", &at, "-c", work])).contains("done"));
    let state = ok(pair.nodes.beta.mirror(MIRROR));
    assert!(is_guest(&state), "in sync too soon: {state:?}");

    // The source's daemon dies: requests wait for it, and go on.
    ok(pair.nodes.alpha.kill());
    let waiting = std::thread::spawn(move || {
        put(&mut on_beta, 34 * MIB, &noise(MIB, 6));
        on_beta
    });
    let held = until(&mut pair.nodes.beta, Condition::Held);
    assert!(
        held.role == Role::Primary && !held.next.is_empty(),
        "{held:?}"
    );
    assert!(!waiting.is_finished(), "a write was answered by nobody");
    up(&mut pair.nodes.alpha);
    let mut on_beta = waiting.join().expect("the write that waited");
    let state = ok(pair.nodes.beta.mirror(MIRROR));
    assert!(is_guest(&state), "{state:?}");
    assert!(get(&mut on_beta, 34 * MIB, MIB) == noise(MIB, 6));

    // In sync it is a Primary like any other, and its clients noticed nothing.
    fast(&pair.nodes.alpha);
    fast(&pair.nodes.beta);
    let state = ok(pair
        .nodes
        .beta
        .wait(MIRROR, "both copies to be in sync", DEADLINE, in_sync));
    assert!(
        state.role == Role::Primary && !state.served_by_peer,
        "{state:?}"
    );
    let mut expected = noise(MISSED, 3);
    expected[4096 + 512..4096 + 2048].copy_from_slice(&noise(3 * 512, 5));
    assert!(get(&mut on_beta, 0, MISSED) == expected, "read in sync");
    assert!(get(&mut on_beta, 30 * MIB, 2 * MIB) == noise(2 * MIB, 4));
    put(&mut on_beta, 50 * MIB, &noise(MIB, 7));
    on_beta.disconnect();
    pair.stop_and_compare();
}

#[test]
fn a_guest_gives_way_to_a_source_that_was_primary_meanwhile() {
    let mut pair = guest();
    let mut old = pair.on_beta();
    put(&mut old, 0, &noise(MIB, 8));
    ok(pair.nodes.alpha.run(&["disconnect", MIRROR]));
    ok(pair.nodes.alpha.run(&["promote", MIRROR]));
    put(&mut pair.on_alpha(), MIB, &noise(MIB, 9));
    ok(pair.nodes.alpha.run(&["demote", MIRROR]));
    let waiting = std::thread::spawn(move || {
        let mut bytes = vec![0; 4096];
        old.read(0, &mut bytes)
    });
    until(&mut pair.nodes.beta, Condition::Held);
    ok(pair.nodes.alpha.run(&["connect", MIRROR]));
    let state = ok(pair
        .nodes
        .beta
        .wait(MIRROR, "beta to be demoted", DEADLINE, |state| {
            state.role == Role::Secondary
        }));
    assert_eq!(state.disk, Disk::Inconsistent, "{state:?}");
    let read = waiting.join().expect("the reader");
    assert!(read.is_err(), "it was answered over the other's head");
    fast(&pair.nodes.alpha);
    fast(&pair.nodes.beta);
    ok(pair.nodes.wait_in_sync(DEADLINE));
    ok(pair.nodes.beta.run(&["promote", MIRROR]));
    let mut on_beta = client(&pair.nodes.beta);
    assert!(get(&mut on_beta, 0, MIB) == noise(MIB, 8));
    assert!(get(&mut on_beta, MIB, MIB) == noise(MIB, 9));
    on_beta.disconnect();
    pair.stop_and_compare();
}
