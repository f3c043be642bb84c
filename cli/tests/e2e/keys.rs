//! Protocol versions side by side, and keys that are replaced while the mirror serves.

use std::time::{Duration, Instant};

use kagami::commands::demo::node::{Node, wait_until};
use kagami::commands::demo::scratch::{MIRROR, in_sync};
use kagami::config::Config;
use kagami::control::report::Condition;

use crate::support::{
    DEADLINE, down, get, laid_out, noise, ok, pair, put, refused, set_node, until, up,
};

fn link_version(node: &mut Node) -> Option<u16> {
    ok(node.mirror(MIRROR)).peer.expect("a peer").link_version
}

fn keys_of(node: &Node, peer: &str) -> Vec<String> {
    let config = Config::load(&node.config()).expect("a configuration");
    config.peer(peer).expect("the peer").fingerprints.clone()
}

#[test]
fn two_protocol_versions_work_together() {
    let mut pair = laid_out("never", "32M");
    set_node(&pair.nodes.beta, "link-version", "1");
    pair.up();
    pair.promote_alpha();
    assert_eq!(link_version(&mut pair.nodes.alpha), Some(1));
    put(&mut pair.on_alpha(), 0, &noise(1 << 20, 1));
    // A resynchronisation after a crash, and a fail-over.
    ok(pair.nodes.beta.kill());
    until(&mut pair.nodes.alpha, Condition::Connecting);
    up(&mut pair.nodes.beta);
    ok(pair.nodes.wait_in_sync(DEADLINE));
    ok(pair.nodes.alpha.run(&["demote", MIRROR]));
    ok(pair.nodes.beta.run(&["promote", MIRROR]));
    put(&mut pair.on_beta(), 1 << 20, &noise(65536, 2));
    // What version 1 has no words for.
    let words = refused(&pair.nodes.alpha, &["pair", "--rotate"], 1);
    assert!(
        words.contains("too old") && words.contains("version 1"),
        "{words}"
    );
    assert_eq!(keys_of(&pair.nodes.beta, "alpha").len(), 1);
    // The second step of the upgrade.
    set_node(&pair.nodes.beta, "link-version", "2");
    down(&mut pair.nodes.beta);
    up(&mut pair.nodes.beta);
    ok(pair.nodes.wait_in_sync(DEADLINE));
    assert_eq!(link_version(&mut pair.nodes.alpha), Some(2));
    ok(pair.nodes.alpha.run(&["promote", MIRROR]));
    assert_eq!(get(&mut pair.on_alpha(), 0, 1 << 20), noise(1 << 20, 1));
    assert_eq!(get(&mut pair.on_alpha(), 1 << 20, 65536), noise(65536, 2));
    ok(pair.nodes.alpha.run(&["pair", "--rotate"]));
    pair.stop_and_compare();
}

/// Waits until `node` knows `peer` by this key alone.
fn knows_only(node: &Node, peer: &str, key: &str) {
    ok(wait_until(
        node.name(),
        "the old key to be out",
        DEADLINE,
        || (keys_of(node, peer) == [key.to_owned()]).then_some(()),
    ));
}

#[test]
fn a_key_is_replaced_under_load() {
    let mut pair = pair("never", "32M");
    put(&mut pair.on_alpha(), 0, &noise(1 << 20, 1));
    let old = keys_of(&pair.nodes.beta, "alpha");
    // A client that writes all the while: nothing fails.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let mut client = pair.on_alpha();
    let writer = std::thread::spawn(move || {
        let (mut writes, mut longest) = (0u64, Duration::ZERO);
        while stopped.try_recv().is_err() {
            let block = noise(4096, writes);
            let began = Instant::now();
            client.write(writes % 256 * 4096, &block)?;
            client.flush()?;
            longest = longest.max(began.elapsed());
            writes += 1;
        }
        Ok::<_, kagami::commands::bench::client::ClientError>((writes, longest))
    });
    for rotates in ["alpha", "beta", "alpha"] {
        let (node, other) = match rotates {
            "alpha" => (&pair.nodes.alpha, &pair.nodes.beta),
            _ => (&pair.nodes.beta, &pair.nodes.alpha),
        };
        let words = ok(node.run(&["pair", "--rotate"]));
        let key = words
            .split_whitespace()
            .find(|word| word.starts_with("sha256:"))
            .expect("the new key")
            .to_owned();
        assert!(words.contains("knows it"), "{words}");
        knows_only(other, rotates, &key);
        ok(pair.nodes.wait_in_sync(DEADLINE));
    }
    stop.send(()).expect("the writer");
    let (writes, longest) = writer.join().expect("the writer").expect("no write failed");
    println!("{writes} writes and flushes, the longest took {longest:?}");
    assert!(writes > 10, "{writes} writes");
    assert!(longest < Duration::from_secs(10), "{longest:?}");
    assert_ne!(keys_of(&pair.nodes.beta, "alpha"), old);
    // The keys hold after restarts.
    down(&mut pair.nodes.alpha);
    down(&mut pair.nodes.beta);
    pair.up();
    pair.promote_alpha();
    pair.stop_and_compare();
}

#[test]
fn a_crash_on_the_way_leaves_a_working_pair() {
    let mut pair = pair("never", "16M");
    put(&mut pair.on_alpha(), 0, &noise(65536, 1));
    // The peer is away: the next key is made, and nothing else has happened.
    ok(pair.nodes.beta.kill());
    until(&mut pair.nodes.alpha, Condition::Connecting);
    let words = refused(&pair.nodes.alpha, &["pair", "--rotate"], 1);
    assert!(words.contains("beta is not connected"), "{words}");
    ok(pair.nodes.alpha.kill());
    pair.up();
    pair.promote_alpha();
    // It goes on where it stopped.
    ok(pair.nodes.alpha.run(&["pair", "--rotate"]));
    ok(pair.nodes.wait_in_sync(DEADLINE));
    // beta dies before it has dropped the old key, or after: both are known to it.
    ok(pair.nodes.beta.kill());
    up(&mut pair.nodes.beta);
    ok(pair.nodes.wait_in_sync(DEADLINE));
    ok(wait_until("beta", "one key", DEADLINE, || {
        (keys_of(&pair.nodes.beta, "alpha").len() == 1).then_some(())
    }));
    pair.stop_and_compare();
}

#[test]
fn an_arbiter_learns_the_new_key() {
    let mut pair = pair("arbiter", "16M");
    put(&mut pair.on_alpha(), 0, &noise(65536, 1));
    let witness = pair.nodes.witness.as_mut().expect("a witness");
    ok(wait_until("the witness", "the register", DEADLINE, || {
        let log = std::fs::read_to_string(witness.log()).unwrap_or_default();
        log.contains("register changed").then_some(())
    }));
    let before = ok(witness.run(&["witness", "list"]));
    let words = ok(pair.nodes.alpha.run(&["pair", "--rotate"]));
    assert!(words.contains("arbiter witness knows it"), "{words}");
    ok(pair.nodes.wait_in_sync(DEADLINE));
    // It asks with the new key, and goes on by the arbiter's word.
    ok(pair.nodes.beta.kill());
    put(&mut pair.on_alpha(), 65536, &noise(65536, 2));
    let state = until(&mut pair.nodes.alpha, Condition::Alone);
    assert!(in_sync(&state) || state.alone.is_some());
    let witness = pair.nodes.witness.as_ref().expect("a witness");
    let after = ok(witness.run(&["witness", "list"]));
    assert_eq!(before.lines().count(), after.lines().count(), "{after}");
    assert_ne!(before, after);
    up(&mut pair.nodes.beta);
    pair.stop_and_compare();
}
