//! What an operator does in a year: verify, invalidate, pause, a second mirror, other settings.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use kagami::commands::bench::client::Client;
use kagami::commands::demo::scratch::{MIRROR, Scratch, in_sync};
use kagami::config::Config;
use kagami::control::report::Condition;

use crate::support::{
    DEADLINE, MIB, client, down, get, laid_out, noise, ok, pair, put, refused, until, up,
};

#[test]
fn verify_finds_what_was_changed_behind_its_back_and_repair_mends_it() {
    let mut pair = pair("always", "64M");
    put(&mut pair.on_alpha(), 0, &noise(8 * MIB, 1));
    // Roles go to nobody, so that a stop leaves both copies current.
    ok(pair.nodes.alpha.run(&["demote", MIRROR]));
    down(&mut pair.nodes.beta);
    down(&mut pair.nodes.alpha);
    let backing = OpenOptions::new()
        .write(true)
        .open(ok(Scratch::backing(&pair.nodes.beta)))
        .expect("the backing file");
    backing.write_all_at(b"rot", 5 * MIB + 17).expect("written");
    drop(backing);
    pair.up();
    ok(pair.nodes.wait_in_sync(DEADLINE));

    let printed = ok(pair
        .nodes
        .alpha
        .try_run(&["verify", MIRROR, "--wait", "--json"]));
    assert_eq!(printed.code, Some(7), "{printed:?}");
    assert!(
        printed.out.contains("\"different_bytes\":4096"),
        "{printed:?}"
    );
    let printed = ok(pair
        .nodes
        .alpha
        .try_run(&["verify", MIRROR, "--repair", "--wait", "--json"]));
    assert!(printed.out.contains("\"repaired\":true"), "{printed:?}");
    ok(pair.nodes.wait_in_sync(DEADLINE));
    let printed = ok(pair
        .nodes
        .alpha
        .try_run(&["verify", MIRROR, "--wait", "--json"]));
    assert_eq!(printed.code, Some(0), "{printed:?}");
    pair.stop_and_compare();
}

#[test]
fn an_invalidated_copy_is_fetched_again() {
    let mut pair = pair("always", "64M");
    put(&mut pair.on_alpha(), 0, &noise(8 * MIB, 2));
    refused(&pair.nodes.beta, &["invalidate", MIRROR], 2);
    let before = ok(pair.nodes.alpha.mirror(MIRROR)).counters;
    ok(pair.nodes.beta.run(&["invalidate", MIRROR, "--yes"]));
    ok(pair
        .nodes
        .alpha
        .wait(MIRROR, "the whole resync", DEADLINE, |state| {
            let all = state.counters.resync_bytes + state.counters.resync_equal_bytes;
            in_sync(state) && all >= before.resync_bytes + before.resync_equal_bytes + 8 * MIB
        }));
    pair.stop_and_compare();
}

#[test]
fn a_resync_is_held_and_goes_on() {
    let mut pair = pair("always", "64M");
    down(&mut pair.nodes.beta);
    put(&mut pair.on_alpha(), 0, &noise(24 * MIB, 3));
    // Slow enough to be caught.
    for node in [&pair.nodes.alpha, &pair.nodes.beta] {
        let file = node.config();
        let text = fs::read_to_string(&file).expect("the configuration");
        fs::write(
            &file,
            format!("{text}\n[mirror.{MIRROR}.resync]\nmax-rate = \"4MiB/s\"\n"),
        )
        .expect("written");
    }
    ok(pair.nodes.alpha.run(&["reload"]));
    up(&mut pair.nodes.beta);
    until(&mut pair.nodes.alpha, Condition::Resynchronising);
    ok(pair.nodes.alpha.run(&["pause-sync", MIRROR]));
    let held = until(&mut pair.nodes.alpha, Condition::Paused);
    put(&mut pair.on_alpha(), 30 * MIB, &noise(MIB, 4));
    let later = ok(pair.nodes.alpha.mirror(MIRROR));
    assert_eq!(later.condition, Condition::Paused);
    assert!(held.counters.resync_bytes < 24 * MIB, "{held:?}");
    ok(pair.nodes.alpha.run(&["resume-sync", MIRROR]));
    pair.stop_and_compare();
}

#[test]
fn two_mirrors_on_one_pair_live_apart() {
    let mut pair = laid_out("always", "32M");
    ok(pair
        .nodes
        .add_mirror("second", "16M", &mut crate::support::quiet));
    pair.up();
    pair.promote_alpha();
    ok(pair
        .nodes
        .beta
        .wait("second", "its meeting", DEADLINE, |state| {
            state.condition == Condition::InSync
        }));
    ok(pair.nodes.beta.run(&["promote", "second"]));
    let config = Config::load(&pair.nodes.beta.config()).expect("a configuration");
    let socket = &config
        .mirror("second")
        .expect("the second mirror")
        .nbd_socket;
    let mut second = Client::connect(socket, "second", DEADLINE).expect("served by beta");
    put(&mut client(&pair.nodes.alpha), 0, &noise(4 * MIB, 5));
    put(&mut second, 0, &noise(4 * MIB, 6));
    assert_eq!(
        get(&mut client(&pair.nodes.alpha), 0, 4 * MIB),
        noise(4 * MIB, 5)
    );
    assert_eq!(get(&mut second, 0, 4 * MIB), noise(4 * MIB, 6));
    second.disconnect();
    let copies = [&pair.nodes.alpha, &pair.nodes.beta].map(|node| {
        let config = Config::load(&node.config()).expect("a configuration");
        config
            .mirror("second")
            .expect("the second mirror")
            .backing
            .clone()
    });
    pair.stop_and_compare();
    let [one, other] = copies.map(|path| fs::read(path).expect("a copy"));
    assert!(one == other, "the second mirror's copies differ");
}

#[test]
fn protocols_a_and_b_serve_and_end_equal() {
    for protocol in ["A", "B"] {
        let mut pair = laid_out("always", "32M");
        ok(pair
            .nodes
            .set("protocol", protocol, &mut crate::support::quiet));
        pair.up();
        pair.promote_alpha();
        assert_eq!(ok(pair.nodes.alpha.mirror(MIRROR)).protocol, protocol);
        put(&mut pair.on_alpha(), 0, &noise(8 * MIB, 7));
        assert_eq!(get(&mut pair.on_alpha(), 0, 8 * MIB), noise(8 * MIB, 7));
        pair.stop_and_compare();
    }
}
