//! SIGKILL to either side under load: nothing flushed is lost, only marked blocks are sent, and the
//! copies end equal, byte for byte.

use kagami::commands::demo::load::{Journal, Load};
use kagami::commands::demo::node::{Node, wait_until};
use kagami::commands::demo::scratch::{MIRROR, Scratch, in_sync};
use kagami::config::Config;
use kagami::control::report::Condition;

use crate::support::{DEADLINE, KAGAMI, MIB, finish, laid_out, ok, pair, program, until, up};

const LOADED: std::ops::Range<u64> = 0..32 * MIB;

fn load_on(node: &Node, journal: Journal) -> Load {
    let load = Load::start(
        &ok(Scratch::socket(node)),
        MIRROR,
        LOADED,
        DEADLINE,
        journal,
    );
    let before = load.progress().flushes();
    flushes_after(&load, before, 4);
    load
}

fn flushes_after(load: &Load, before: u64, more: u64) {
    ok(wait_until("the load", "flushes", DEADLINE, || {
        (load.progress().flushes() >= before + more || load.has_ended()).then_some(())
    }));
}

#[test]
fn a_secondary_that_is_killed_under_load_is_resynchronised_from_the_marks() {
    let mut pair = pair("always", "64M");
    let load = load_on(&pair.nodes.alpha, Journal::default());
    ok(pair.nodes.beta.kill());
    until(&mut pair.nodes.alpha, Condition::Alone);
    flushes_after(&load, load.progress().flushes(), 4);
    let (mut journal, fault) = load.stop();
    assert!(
        fault.is_none(),
        "a write failed when the Secondary died: {fault:?}"
    );

    let before = ok(pair.nodes.alpha.mirror(MIRROR));
    assert!(before.marked_bytes > 0, "{before:?}");
    up(&mut pair.nodes.beta);
    let after = ok(pair
        .nodes
        .alpha
        .wait(MIRROR, "the end of the resync", DEADLINE, in_sync));
    let sent = after.counters.resync_bytes - before.counters.resync_bytes;
    assert!(
        sent > 0 && sent * 100 <= before.marked_bytes * 105,
        "{sent} sent, {before:?}"
    );

    let found = journal.check(&mut pair.on_alpha()).expect("reads");
    assert!(found.promised > 0 && found.broken.is_empty(), "{found:?}");
    pair.stop_and_compare();
}

#[test]
fn a_primary_that_is_killed_under_load_loses_nothing_that_was_flushed() {
    let mut pair = pair("arbiter", "64M");
    let load = load_on(&pair.nodes.alpha, Journal::default());
    ok(pair.nodes.alpha.kill());
    let (mut journal, fault) = load.stop();
    assert!(fault.is_some(), "a load that outlives its daemon");
    ok(wait_until("beta", "a promotion", DEADLINE, || {
        ok(pair.nodes.beta.try_run(&["promote", MIRROR]))
            .success
            .then_some(())
    }));
    until(&mut pair.nodes.beta, Condition::Alone);
    let found = journal.check(&mut pair.on_beta()).expect("reads");
    assert!(found.promised > 0 && found.broken.is_empty(), "{found:?}");

    // The other goes on with the same journal, and the old Primary comes back as a target.
    let load = load_on(&pair.nodes.beta, journal);
    up(&mut pair.nodes.alpha);
    ok(pair.nodes.wait_in_sync(DEADLINE));
    let (mut journal, fault) = load.stop();
    assert!(
        fault.is_none(),
        "a write failed when the old Primary came back: {fault:?}"
    );
    let found = journal.check(&mut pair.on_beta()).expect("reads");
    assert!(found.broken.is_empty(), "{found:?}");
    pair.stop_and_compare();
}

#[test]
fn a_target_that_is_killed_in_its_resync_goes_on_where_it_was() {
    let mut pair = pair("always", "64M");
    ok(pair.nodes.beta.kill());
    let load = load_on(&pair.nodes.alpha, Journal::default());
    until(&mut pair.nodes.alpha, Condition::Alone);
    for _ in 0..3 {
        up(&mut pair.nodes.beta);
        ok(pair
            .nodes
            .alpha
            .wait(MIRROR, "a resync to begin", DEADLINE, |state| {
                state.condition == Condition::Resynchronising || in_sync(state)
            }));
        ok(pair.nodes.beta.kill());
        until(&mut pair.nodes.alpha, Condition::Alone);
    }
    up(&mut pair.nodes.beta);
    ok(pair.nodes.wait_in_sync(DEADLINE));
    let (mut journal, fault) = load.stop();
    assert!(fault.is_none(), "{fault:?}");
    let found = journal.check(&mut pair.on_alpha()).expect("reads");
    assert!(found.promised > 0 && found.broken.is_empty(), "{found:?}");
    pair.stop_and_compare();
}

#[test]
fn both_killed_under_load_come_back_equal() {
    let mut pair = pair("arbiter", "64M");
    let load = load_on(&pair.nodes.alpha, Journal::default());
    ok(pair.nodes.alpha.kill());
    ok(pair.nodes.beta.kill());
    let (mut journal, _) = load.stop();
    pair.up();
    ok(pair.nodes.wait_in_sync(DEADLINE));
    ok(pair.nodes.beta.run(&["promote", MIRROR]));
    let found = journal.check(&mut pair.on_beta()).expect("reads");
    assert!(found.promised > 0 && found.broken.is_empty(), "{found:?}");
    pair.stop_and_compare();
}

/// The one before may have died between a rename and its folder's sync: what memory alone has is not answered for.
#[test]
fn a_witness_whose_registers_can_not_be_synced_does_not_begin() {
    let mut pair = laid_out("arbiter", "16M");
    let witness = pair.nodes.witness.as_mut().expect("a witness");
    ok(witness.kill());
    let config = Config::load(&witness.config()).expect("a configuration");
    let registers = config.node.state_dir.join("witness/registers");
    let mut traced = program("strace");
    traced
        .args([
            "-f",
            "-qq",
            "-e",
            "trace=fsync",
            "-e",
            "inject=fsync:error=EIO",
            "-P",
        ])
        .arg(&registers)
        .args([KAGAMI, "--config"])
        .arg(witness.config())
        .arg("witness");
    let ended = finish(&mut traced);
    let words = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success(), "{words}");
    assert!(
        words.contains("sync the folder") && words.contains("registers"),
        "{words}"
    );
}
