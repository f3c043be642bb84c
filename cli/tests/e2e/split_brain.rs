//! Two copies that both went on alone: recognised, told, and solved by a word.

use kagami::commands::demo::scratch::MIRROR;
use kagami::control::report::{Condition, Connection};

use crate::support::{DEADLINE, MIB, Pair, get, noise, ok, pair, put, refused, until};

/// Both went on alone: alpha wrote 1 MiB at 0, beta 2 MiB at 1 MiB; they look for each other again.
fn fork() -> Pair {
    let mut pair = pair("always", "64M");
    put(&mut pair.on_alpha(), 0, &noise(4 * MIB, 1));
    ok(pair.nodes.alpha.run(&["disconnect", MIRROR]));
    ok(pair.nodes.beta.run(&["disconnect", MIRROR]));
    ok(pair
        .nodes
        .beta
        .wait(MIRROR, "the end of the session", DEADLINE, |state| {
            state.connection == Connection::StandAlone
        }));
    ok(pair.nodes.beta.run(&["promote", MIRROR]));
    put(&mut pair.on_alpha(), 0, &noise(MIB, 2));
    put(&mut pair.on_beta(), MIB, &noise(2 * MIB, 3));
    ok(pair.nodes.alpha.run(&["connect", MIRROR]));
    ok(pair.nodes.beta.run(&["connect", MIRROR]));
    pair
}

fn told(pair: &mut Pair) {
    for node in [&mut pair.nodes.alpha, &mut pair.nodes.beta] {
        let state = until(node, Condition::SplitBrain);
        assert!(
            state.next.iter().any(|line| line.contains("--from local")),
            "{state:?}"
        );
        assert_eq!(ok(node.try_run(&["status", "--exit-code"])).code, Some(13));
        let screen = ok(node.run(&["status"]));
        assert!(
            screen.contains("SPLIT BRAIN")
                && screen.contains("--from")
                && screen.contains("demote"),
            "{screen}"
        );
    }
}

#[test]
fn the_local_changes_win_where_that_is_said() {
    let mut pair = fork();
    told(&mut pair);
    // It destroys something: without a terminal it needs --yes.
    refused(&pair.nodes.alpha, &["resync", MIRROR, "--from", "local"], 2);
    told(&mut pair);
    // A Primary's copy is not overwritten under its clients there either: the screen says what to do first.
    ok(pair.nodes.beta.run(&["demote", MIRROR]));
    ok(pair
        .nodes
        .alpha
        .run(&["resync", MIRROR, "--from", "local", "--yes"]));
    ok(pair.nodes.wait_in_sync(DEADLINE));
    let mut client = pair.on_alpha();
    assert_eq!(get(&mut client, 0, MIB), noise(MIB, 2));
    assert_eq!(
        get(&mut client, MIB, 3 * MIB),
        noise(4 * MIB, 1)[MIB as usize..]
    );
    drop(client);
    pair.stop_and_compare();
}

#[test]
fn the_peers_changes_win_where_that_is_said() {
    let mut pair = fork();
    told(&mut pair);
    // A Primary's copy is not overwritten under its clients: it says what to do first.
    let words = refused(
        &pair.nodes.alpha,
        &["resync", MIRROR, "--from", "peer", "--yes"],
        1,
    );
    assert!(words.contains("kagami demote"), "{words}");
    told(&mut pair);
    ok(pair.nodes.alpha.run(&["demote", MIRROR]));
    ok(pair
        .nodes
        .alpha
        .run(&["resync", MIRROR, "--from", "peer", "--yes"]));
    ok(pair.nodes.wait_in_sync(DEADLINE));
    let mut client = pair.on_beta();
    assert_eq!(get(&mut client, 0, MIB), noise(4 * MIB, 1)[..MIB as usize]);
    assert_eq!(get(&mut client, MIB, 2 * MIB), noise(2 * MIB, 3));
    drop(client);
    pair.stop_and_compare();
}
