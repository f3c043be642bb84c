//! New disks and larger mirrors, with data on them.

use std::fs;

use kagami::commands::bench::client::Client;
use kagami::commands::demo::node::Node;
use kagami::commands::demo::scratch::{MIRROR, Scratch, in_sync};
use kagami::control::report::Condition;

use crate::support::{
    DEADLINE, MIB, beside, down, get, laid_out, noise, ok, pair, put, refused, until, up,
};

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn a_disk_is_replaced_and_filled_from_the_peer() {
    let mut pair = pair("never", "32M");
    put(&mut pair.on_alpha(), 0, &noise(4 * MIB, 1));
    let new = beside(&pair.nodes.beta, "new.data");
    let command = ["replace-disk", MIRROR, "--backing", text(&new), "--yes"];
    let words = refused(&pair.nodes.beta, &command, 1);
    assert!(
        words.contains("the daemon") && words.contains("kagami down"),
        "{words}"
    );
    down(&mut pair.nodes.beta);
    // Something of somebody else's lies there.
    fs::write(&new, b"dear diary").expect("written");
    let words = refused(&pair.nodes.beta, &command, 1);
    assert!(words.contains("not overwritten"), "{words}");
    assert_eq!(fs::read(&new).expect("read"), b"dear diary");
    fs::remove_file(&new).expect("removed");
    let old = ok(Scratch::backing(&pair.nodes.beta));
    let before = fs::read(&old).expect("the old copy");
    let planned =
        ok(pair
            .nodes
            .beta
            .run(&["replace-disk", MIRROR, "--backing", text(&new), "--dry-run"]));
    assert!(
        planned.contains("Outdated") && planned.contains("new.data"),
        "{planned}"
    );
    assert!(!new.exists(), "a dry run made a store");
    let words = ok(pair.nodes.beta.run(&command));
    assert!(words.contains("a new, empty copy"), "{words}");
    put(&mut pair.on_alpha(), 4 * MIB, &noise(MIB, 2));
    up(&mut pair.nodes.beta);
    ok(pair
        .nodes
        .beta
        .wait(MIRROR, "both copies to be in sync", DEADLINE, in_sync));
    assert_eq!(ok(Scratch::backing(&pair.nodes.beta)), new);
    assert_eq!(
        fs::read(&old).expect("the old copy"),
        before,
        "the old store was touched"
    );
    pair.stop_and_compare();
}

#[test]
fn the_only_good_copy_is_not_given_up() {
    let mut pair = pair("always", "16M");
    ok(pair.nodes.beta.kill());
    put(&mut pair.on_alpha(), 0, &noise(MIB, 1));
    until(&mut pair.nodes.alpha, Condition::Alone);
    down(&mut pair.nodes.alpha);
    let new = beside(&pair.nodes.alpha, "new.data");
    let command = ["replace-disk", MIRROR, "--backing", text(&new), "--yes"];
    let words = refused(&pair.nodes.alpha, &command, 1);
    assert!(
        words.contains("went on alone") && words.contains("--force"),
        "{words}"
    );
    assert!(!new.exists());
    // It is what it was.
    up(&mut pair.nodes.alpha);
    up(&mut pair.nodes.beta);
    ok(pair.nodes.wait_in_sync(DEADLINE));
    ok(pair.nodes.alpha.run(&["promote", MIRROR]));
    assert_eq!(get(&mut pair.on_alpha(), 0, MIB), noise(MIB, 1));
    pair.stop_and_compare();
}

/// `kagami resize` on a node that runs: stopped, grown, started.
fn grow(node: &mut Node, size: &str) -> String {
    down(node);
    let words = ok(node.run(&["resize", MIRROR, "--grow", size]));
    up(node);
    words
}

#[test]
fn a_mirror_grows_with_data_on_it() {
    let mut pair = pair("never", "32M");
    let data = noise(4 * MIB, 1);
    put(&mut pair.on_alpha(), 28 * MIB, &data);
    let words = refused(&pair.nodes.beta, &["resize", MIRROR, "--grow", "48M"], 1);
    assert!(
        words.contains("kagami down") && words.contains("kagami resize demo --grow 48MiB"),
        "{words}"
    );
    let words = refused(&pair.nodes.alpha, &["resize", MIRROR, "--grow", "16M"], 1);
    assert!(words.contains("never becomes smaller"), "{words}");
    let words = grow(&mut pair.nodes.beta, "48M");
    assert!(words.contains("reads as zeroes"), "{words}");
    // Half-way: the two say whose is to be grown, and the Primary goes on.
    let state = ok(pair
        .nodes
        .alpha
        .wait(MIRROR, "the sizes to be compared", DEADLINE, |state| {
            let verdict = state.verdict.as_ref();
            verdict.is_some_and(|verdict| verdict.outcome.contains("sizes differ"))
        }));
    assert!(
        state.next[0].contains("alpha's copy is to be grown to 48MiB"),
        "{state:?}"
    );
    put(&mut pair.on_alpha(), 0, &noise(65536, 2));
    let there = ok(pair
        .nodes
        .beta
        .wait(MIRROR, "the sizes to be compared", DEADLINE, |state| {
            state.condition == Condition::Refused
        }));
    assert!(there.next[0].contains("alpha's copy"), "{there:?}");

    grow(&mut pair.nodes.alpha, "48M");
    pair.promote_alpha();
    let mut client = pair.on_alpha();
    assert_eq!(client.size(), 48 * MIB);
    assert_eq!(get(&mut client, 28 * MIB, 4 * MIB), data);
    assert_eq!(get(&mut client, 32 * MIB, MIB), vec![0; MIB as usize]);
    put(&mut client, 31 * MIB + 4096, &noise(16 * MIB, 3));
    drop(client);
    // It fails over in its new size.
    ok(pair.nodes.alpha.run(&["demote", MIRROR]));
    ok(pair.nodes.beta.run(&["promote", MIRROR]));
    let mut client: Client = pair.on_beta();
    assert_eq!(client.size(), 48 * MIB);
    assert_eq!(
        get(&mut client, 31 * MIB + 4096, 16 * MIB),
        noise(16 * MIB, 3)
    );
    drop(client);
    pair.stop_and_compare();
    // Beyond what the metadata were made for: new ones are needed.
    let words = refused(&pair.nodes.alpha, &["resize", MIRROR, "--grow", "2T"], 1);
    assert!(
        words.contains("enough for 1TiB") && words.contains("replace-disk"),
        "{words}"
    );
    let words = ok(pair.nodes.alpha.run(&["resize", MIRROR, "--grow", "48M"]));
    assert!(words.contains("nothing to do"), "{words}");
}

#[test]
fn what_is_new_and_unknown_is_copied() {
    let mut pair = laid_out("never", "16M");
    // Longer files than the mirror: what lies behind its end is not known to be zeroes.
    for (node, seed) in [(&pair.nodes.alpha, 1), (&pair.nodes.beta, 2)] {
        let path = ok(Scratch::backing(node));
        let mut bytes = fs::read(&path).expect("the store");
        bytes.extend(noise(8 * MIB, seed));
        fs::write(&path, bytes).expect("written");
    }
    pair.up();
    pair.promote_alpha();
    put(&mut pair.on_alpha(), 0, &noise(MIB, 3));
    let words = grow(&mut pair.nodes.beta, "24M");
    assert!(words.contains("is marked"), "{words}");
    grow(&mut pair.nodes.alpha, "24M");
    pair.promote_alpha();
    assert_eq!(get(&mut pair.on_alpha(), 0, MIB), noise(MIB, 3));
    pair.stop_and_compare();
}
