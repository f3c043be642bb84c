//! The life of a pair: nodes are replaced, taken away and come again, with data on the mirror.

use kagami::commands::demo::node::Node;
use kagami::commands::demo::scratch::{self, MIRROR, in_sync};
use kagami::config::Config;
use kagami::control::report::{Condition, Connection};
use kagami_replicator::shell::identity::Fingerprint;
use kagami_replicator::shell::pairing::token::{Purpose, SECRET_LEN, Token};

use crate::support::{
    self, DEADLINE, KAGAMI, Pair, client, difference, down, get, laid_out, meet, noise, ok, pair,
    put, quiet, refused, until, up,
};

/// Waits until a node's copy is in sync.
fn synced(node: &mut Node) {
    ok(node.wait(MIRROR, "both copies to be in sync", DEADLINE, in_sync));
}

fn peer_of(node: &Node) -> Option<String> {
    let config = Config::load(&node.config()).expect("a configuration");
    config.mirror(MIRROR).expect("the mirror").peer.clone()
}

/// The newest mirror of the pair with data on it, beta dead.
fn beta_dies(solo: &str) -> Pair {
    let mut pair = pair(solo, "32M");
    put(&mut pair.on_alpha(), 0, &noise(1 << 20, 1));
    ok(pair.nodes.beta.kill());
    ok(pair
        .nodes
        .alpha
        .wait(MIRROR, "beta to be missed", DEADLINE, |state| {
            state.connection != Connection::Connected
        }));
    pair
}

#[test]
fn a_dead_node_is_replaced_while_the_primary_serves() {
    let mut pair = pair("never", "32M");
    put(&mut pair.on_alpha(), 0, &noise(1 << 20, 1));
    let words = refused(
        &pair.nodes.alpha,
        &["replace-peer", MIRROR, "--yes", "--address", "127.0.0.1"],
        1,
    );
    assert!(
        words.contains("beta is connected") && words.contains("next:"),
        "{words}"
    );
    ok(pair.nodes.beta.kill());
    until(&mut pair.nodes.alpha, Condition::Connecting);
    // Without a terminal it has to be said.
    let words = refused(&pair.nodes.alpha, &["replace-peer", MIRROR], 2);
    assert!(words.contains("given up for good"), "{words}");

    let pid = pair.nodes.alpha.daemon_id();
    let mut gamma = pair.another("gamma");
    meet(
        &mut pair.nodes.alpha,
        &["replace-peer", MIRROR, "--yes"],
        &gamma,
        &[],
    );
    assert_eq!(peer_of(&pair.nodes.alpha).as_deref(), Some("gamma"));
    let file = std::fs::read_to_string(pair.nodes.alpha.config()).expect("the file");
    assert!(!file.contains("[peer.beta]"), "{file}");
    // No other copy is left that could fork: it serves before the new one is there.
    put(&mut pair.on_alpha(), 1 << 20, &noise(1 << 20, 2));
    up(&mut gamma);
    synced(&mut gamma);
    synced(&mut pair.nodes.alpha);
    put(&mut pair.on_alpha(), 2 << 20, &noise(65536, 3));
    assert_eq!(get(&mut pair.on_alpha(), 0, 1 << 20), noise(1 << 20, 1));
    assert_eq!(pair.nodes.alpha.daemon_id(), pid, "it was restarted");

    // The old one comes back: its key is nobody's any more, and it changes nothing. (Who of the two
    // dials is in their ids: it hears that it is not known, or nothing at all.)
    up(&mut pair.nodes.beta);
    until(&mut pair.nodes.beta, Condition::Connecting);
    let words = refused(&pair.nodes.beta, &["promote", MIRROR], 1);
    assert!(words.contains("permission"), "{words}");
    put(&mut pair.on_alpha(), 3 << 20, &noise(65536, 4));
    synced(&mut pair.nodes.alpha);
    down(&mut pair.nodes.beta);
    down(&mut pair.nodes.alpha);
    down(&mut gamma);
    assert_eq!(difference(&pair.nodes.alpha, &gamma), None);
}

#[test]
fn a_replaced_node_that_went_on_alone_overwrites_nothing() {
    let mut pair = beta_dies("never");
    let mut gamma = pair.another("gamma");
    meet(
        &mut pair.nodes.alpha,
        &["replace-peer", MIRROR, "--yes"],
        &gamma,
        &[],
    );
    up(&mut gamma);
    synced(&mut gamma);
    put(&mut pair.on_alpha(), 0, &noise(65536, 4));
    // beta is forced, and takes writes that nobody knows of.
    up(&mut pair.nodes.beta);
    until(&mut pair.nodes.beta, Condition::Connecting);
    ok(pair
        .nodes
        .beta
        .run(&["promote", MIRROR, "--force", "--yes"]));
    put(&mut pair.on_beta(), 0, &noise(1 << 20, 5));
    down(&mut pair.nodes.beta);
    down(&mut gamma);

    // A configuration that names it again does not make it the peer.
    let file = std::fs::read_to_string(pair.nodes.beta.config()).expect("the file");
    assert!(file.contains("peer = \"alpha\""), "{file}");
    // Paired again, its copy is what it was made from: the survivor's.
    let joined = scratch::join(
        &mut pair.nodes.alpha,
        &["replace-peer", MIRROR, "--yes", "--address", "127.0.0.1"],
        "kgm1-",
        &pair.nodes.beta,
        &["pair", "--join"],
        &[],
        &mut quiet,
    );
    let words = joined.expect_err("its old copy was taken").to_string();
    assert!(words.contains("--give-up-copy"), "{words}");
    // alpha's side ended with beta's refusal; once more, in full knowledge.
    meet(
        &mut pair.nodes.alpha,
        &["replace-peer", MIRROR, "--yes"],
        &pair.nodes.beta,
        &["--give-up-copy", "--force", "--yes"],
    );
    up(&mut pair.nodes.beta);
    synced(&mut pair.nodes.beta);
    assert_eq!(get(&mut pair.on_alpha(), 0, 65536), noise(65536, 4));
    pair.stop_and_compare();
}

#[test]
fn a_record_knows_its_peer_whatever_the_file_says() {
    let mut pair = beta_dies("never");
    let mut gamma = pair.another("gamma");
    let before = std::fs::read_to_string(pair.nodes.alpha.config()).expect("the file");
    meet(
        &mut pair.nodes.alpha,
        &["replace-peer", MIRROR, "--yes"],
        &gamma,
        &[],
    );
    up(&mut gamma);
    synced(&mut gamma);
    down(&mut pair.nodes.alpha);
    let after = std::fs::read_to_string(pair.nodes.alpha.config()).expect("the file");
    std::fs::write(pair.nodes.alpha.config(), before).expect("written");
    up(&mut pair.nodes.alpha);
    let state = until(&mut pair.nodes.alpha, Condition::NotOpened);
    let fault = state.fault.expect("a fault");
    assert!(
        fault.contains("is paired with node") && fault.contains("--again"),
        "{fault}"
    );
    // As after a crash between both: the record's peer is taken, whoever the file names.
    down(&mut gamma);
    meet(
        &mut pair.nodes.alpha,
        &["pair", MIRROR, "--again"],
        &gamma,
        &["--give-up-copy", "--force", "--yes"],
    );
    let mended = std::fs::read_to_string(pair.nodes.alpha.config()).expect("the file");
    assert_eq!(mended, after);
    down(&mut pair.nodes.alpha);
    up(&mut pair.nodes.alpha);
    up(&mut gamma);
    synced(&mut pair.nodes.alpha);
    synced(&mut gamma);
    down(&mut pair.nodes.alpha);
    down(&mut gamma);
    assert_eq!(difference(&pair.nodes.alpha, &gamma), None);
}

#[test]
fn who_is_refused_has_given_up_nothing_and_nobody_is_half_replaced() {
    let mut pair = beta_dies("never");
    let replace = ["replace-peer", MIRROR, "--yes", "--address", "127.0.0.1"];
    let refused = scratch::join(
        &mut pair.nodes.alpha,
        &replace,
        "kgm1-",
        &pair.nodes.beta,
        &["pair", "--join"],
        &["--give-up-copy", "--force", "--yes"],
        &mut quiet,
    );
    let words = refused.expect_err("it is not another node").to_string();
    assert!(words.contains("the very node"), "{words}");
    up(&mut pair.nodes.beta);
    synced(&mut pair.nodes.beta);
    // Nor while a daemon has the copy open: nobody is even asked.
    let token = Token {
        purpose: Purpose::Mirror,
        addresses: vec![([127, 0, 0, 1], 1).into()],
        fingerprint: Fingerprint::from_bytes([0; 32]),
        secret: [0; SECRET_LEN],
        name: "alpha".to_owned(),
        expires: 0,
    };
    let join = ["pair", "--join", &token.to_string(), "--give-up-copy"];
    let words = support::refused(&pair.nodes.beta, &join, 1);
    assert!(words.contains("not joined: the daemon"), "{words}");
    assert!(!words.contains("alpha"), "{words}");
    down(&mut pair.nodes.alpha);
    down(&mut pair.nodes.beta);
    up(&mut pair.nodes.beta);
    let state = until(&mut pair.nodes.beta, Condition::Connecting);
    assert!(state.generation.is_some(), "its history is whole");
    up(&mut pair.nodes.alpha);
    synced(&mut pair.nodes.alpha);
    ok(pair
        .nodes
        .alpha
        .run(&["promote", MIRROR, "--timeout", "30s"]));
    ok(pair.nodes.beta.kill());
    until(&mut pair.nodes.alpha, Condition::Connecting);

    // The daemon dies while somebody walks to the other machine.
    let file = std::fs::read_to_string(pair.nodes.alpha.config()).expect("the file");
    let gamma = pair.another("gamma");
    let daemon = pair.nodes.alpha.daemon_id().expect("it runs");
    let mut dies = |who: &str, _: &str| {
        if who == "gamma" {
            let daemon = i32::try_from(daemon).expect("an id");
            let daemon = rustix::process::Pid::from_raw(daemon).expect("an id");
            rustix::process::kill_process(daemon, rustix::process::Signal::KILL).expect("killed");
        }
    };
    let refused = scratch::join(
        &mut pair.nodes.alpha,
        &replace,
        "kgm1-",
        &gamma,
        &["pair", "--join"],
        &[],
        &mut dies,
    );
    let words = refused.expect_err("nobody changed the record").to_string();
    assert!(words.contains("does not have the mirror open"), "{words}");
    let now = std::fs::read_to_string(pair.nodes.alpha.config()).expect("the file");
    assert_eq!(now, file);
    ok(pair.nodes.alpha.kill());
    up(&mut pair.nodes.alpha);
    up(&mut pair.nodes.beta);
    synced(&mut pair.nodes.alpha);
    pair.stop_and_compare();
}

#[test]
fn an_arbiter_lets_the_survivor_replace_and_the_new_node_ask() {
    let mut pair = beta_dies("arbiter");
    put(&mut pair.on_alpha(), 0, &noise(65536, 6));
    until(&mut pair.nodes.alpha, Condition::Alone);
    let mut gamma = pair.another("gamma");
    meet(
        &mut pair.nodes.alpha,
        &["replace-peer", MIRROR, "--yes"],
        &gamma,
        &[],
    );
    let mut witness = pair.nodes.witness.take().expect("a witness");
    let enrol = ["witness", "enrol", "--address", "127.0.0.1"];
    let join = ["arbiter", "join"];
    let mirror = ["--mirror", MIRROR];
    ok(scratch::join(
        &mut witness,
        &enrol,
        "kgw1-",
        &gamma,
        &join,
        &mirror,
        &mut quiet,
    ));
    let words = ok(witness.run(&["witness", "forget", "beta"]));
    assert!(words.contains("beta may not use"), "{words}");
    let listed = ok(witness.run(&["witness", "list"]));
    assert!(
        listed.contains("gamma") && !listed.contains("beta"),
        "{listed}"
    );
    refused(&witness, &["witness", "forget", "beta"], 1);
    up(&mut gamma);
    synced(&mut gamma);
    synced(&mut pair.nodes.alpha);
    put(&mut pair.on_alpha(), 65536, &noise(65536, 7));
    // The register names both again, and is bound to the new node's key: it may go on.
    ok(kagami::commands::demo::node::wait_until(
        "the witness",
        "the register's new keys",
        DEADLINE,
        || {
            let log = std::fs::read_to_string(witness.log()).unwrap_or_default();
            log.contains("bound to other keys").then_some(())
        },
    ));
    ok(pair.nodes.alpha.kill());
    until(&mut gamma, Condition::Connecting);
    ok(gamma.run(&["promote", MIRROR, "--timeout", "30s"]));
    let mut on_gamma = client(&gamma);
    assert_eq!(get(&mut on_gamma, 65536, 65536), noise(65536, 7));
    put(&mut on_gamma, 0, &noise(4096, 8));
    drop(on_gamma);
    // The old node asks in vain, and is told so.
    up(&mut pair.nodes.beta);
    until(&mut pair.nodes.beta, Condition::Connecting);
    let words = refused(
        &pair.nodes.beta,
        &["promote", MIRROR, "--timeout", "20s"],
        1,
    );
    assert!(words.contains("taken out"), "{words}");
    up(&mut pair.nodes.alpha);
    synced(&mut gamma);
    down(&mut pair.nodes.alpha);
    down(&mut gamma);
    assert_eq!(difference(&pair.nodes.alpha, &gamma), None);
    pair.nodes.witness = Some(witness);
}

#[test]
fn a_node_is_taken_away_and_comes_again() {
    let mut pair = pair("never", "32M");
    put(&mut pair.on_alpha(), 0, &noise(1 << 20, 1));
    let words = refused(&pair.nodes.alpha, &["remove-peer", MIRROR, "--yes"], 1);
    assert!(words.contains("connected"), "{words}");
    down(&mut pair.nodes.beta);
    put(&mut pair.on_alpha(), 0, &noise(65536, 2));
    until(&mut pair.nodes.alpha, Condition::Alone);
    let words = ok(pair.nodes.alpha.run(&["remove-peer", MIRROR, "--yes"]));
    assert!(words.contains("the only copy"), "{words}");
    assert_eq!(peer_of(&pair.nodes.alpha), None);
    put(&mut pair.on_alpha(), 65536, &noise(65536, 3));
    // Restarts included: nobody is asked.
    down(&mut pair.nodes.alpha);
    up(&mut pair.nodes.alpha);
    until(&mut pair.nodes.alpha, Condition::NotPaired);
    ok(pair.nodes.alpha.run(&["promote", MIRROR]));
    put(&mut pair.on_alpha(), 131_072, &noise(65536, 4));
    assert_eq!(
        ok(pair.nodes.alpha.try_run(&["status", "--exit-code"])).code,
        Some(11)
    );
    // The old node is refused, then taken in again as an empty one.
    up(&mut pair.nodes.beta);
    until(&mut pair.nodes.beta, Condition::Connecting);
    down(&mut pair.nodes.beta);
    meet(
        &mut pair.nodes.alpha,
        &["pair", MIRROR],
        &pair.nodes.beta,
        &["--give-up-copy", "--force", "--yes"],
    );
    up(&mut pair.nodes.beta);
    synced(&mut pair.nodes.beta);
    assert_eq!(get(&mut pair.on_alpha(), 0, 65536), noise(65536, 2));
    assert_eq!(get(&mut pair.on_alpha(), 131_072, 65536), noise(65536, 4));
    pair.stop_and_compare();
}

#[test]
fn a_mirror_serves_before_it_has_a_peer() {
    let pair = laid_out("never", "16M");
    let mut alone = pair.another("delta");
    ok(alone.run(&["init", MIRROR, "--size", "16M"]));
    up(&mut alone);
    until(&mut alone, Condition::NotPaired);
    ok(alone.run(&["promote", MIRROR]));
    put(&mut client(&alone), 0, &noise(1 << 20, 1));
    // A crash, and on it goes.
    ok(alone.kill());
    up(&mut alone);
    until(&mut alone, Condition::NotPaired);
    ok(alone.run(&["promote", MIRROR]));
    assert_eq!(get(&mut client(&alone), 0, 1 << 20), noise(1 << 20, 1));
    // A second node comes while it serves.
    let mut other = pair.another("epsilon");
    meet(&mut alone, &["pair", MIRROR], &other, &[]);
    up(&mut other);
    synced(&mut other);
    synced(&mut alone);
    put(&mut client(&alone), 1 << 20, &noise(65536, 2));
    down(&mut other);
    down(&mut alone);
    assert_eq!(difference(&alone, &other), None);
}

#[test]
fn a_primary_without_data_begins_with_its_own_copy() {
    let pair = laid_out("never", "16M");
    // Whoever of both has the lower id.
    for (one, other) in [("eta", "theta"), ("iota", "kappa")] {
        let (mut one, mut other) = (pair.another(one), pair.another(other));
        ok(one.run(&["init", MIRROR, "--size", "16M"]));
        up(&mut one);
        until(&mut one, Condition::NotPaired);
        ok(one.run(&["promote", MIRROR]));
        meet(&mut one, &["pair", MIRROR], &other, &[]);
        up(&mut other);
        synced(&mut other);
        synced(&mut one);
        put(&mut client(&one), 0, &noise(65536, 1));
        // Another node is no peer but by a word of its own.
        let third = pair.another("lambda");
        let joined = scratch::join(
            &mut one,
            &["pair", MIRROR, "--again", "--address", "127.0.0.1"],
            "kgm1-",
            &third,
            &["pair", "--join"],
            &[],
            &mut quiet,
        );
        let words = joined.expect_err("another node came").to_string();
        assert!(words.contains("is another node"), "{words}");
        synced(&mut one);
        down(&mut other);
        down(&mut one);
        assert_eq!(difference(&one, &other), None);
        std::fs::remove_dir_all(third.folder()).expect("removed");
    }
}

#[test]
fn a_second_mirror_shares_the_pair() {
    let mut pair = pair("never", "16M");
    put(&mut pair.on_alpha(), 0, &noise(65536, 1));
    ok(pair.nodes.add_mirror("second", "16M", &mut quiet));
    // Both daemons ran on; a new mirror comes with their next start.
    assert!(in_sync(&ok(pair.nodes.alpha.mirror(MIRROR))));
    for _ in 0..2 {
        down(&mut pair.nodes.beta);
        up(&mut pair.nodes.beta);
        synced(&mut pair.nodes.beta);
        std::mem::swap(&mut pair.nodes.alpha, &mut pair.nodes.beta);
    }
    ok(pair
        .nodes
        .alpha
        .wait("second", "both copies to be in sync", DEADLINE, in_sync));
    ok(pair.nodes.beta.run(&["promote", "second"]));
    ok(pair.nodes.alpha.run(&["promote", MIRROR]));
    assert_eq!(get(&mut pair.on_alpha(), 0, 65536), noise(65536, 1));
    pair.stop_and_compare();
}

#[test]
fn addresses_and_names_change_while_it_runs() {
    let mut pair = pair("never", "16M");
    put(&mut pair.on_alpha(), 0, &noise(65536, 1));
    let listed = ok(pair.nodes.alpha.run(&["peer", "list"]));
    assert!(
        listed.contains("beta") && listed.contains("sha256:") && listed.contains(MIRROR),
        "{listed}"
    );
    // beta moves: another port is another address.
    let config = Config::load(&pair.nodes.beta.config()).expect("a configuration");
    let moved = format!("127.0.0.1:{}", ok(scratch::free_port()));
    assert_ne!(config.node.listen[0].to_string(), moved);
    support::set_node(&pair.nodes.beta, "listen", &format!("[\"{moved}\"]"));
    down(&mut pair.nodes.beta);
    up(&mut pair.nodes.beta);
    let words = ok(pair
        .nodes
        .alpha
        .run(&["peer", "set", "beta", "--address", &moved]));
    assert!(words.contains("running daemon knows"), "{words}");
    synced(&mut pair.nodes.alpha);
    // beta gets another name: its own, and the one that alpha knows it by.
    let words = ok(pair.nodes.alpha.run(&["peer", "rename", "beta", "gamma"]));
    assert!(words.contains("running daemon knows"), "{words}");
    support::set_node(&pair.nodes.beta, "name", "\"gamma\"");
    let words = ok(pair.nodes.beta.run(&["reload"]));
    assert!(words.contains("in force: [node] name"), "{words}");
    let screen = ok(pair.nodes.alpha.run(&["status"]));
    assert!(
        screen.contains("Secondary on gamma") && !screen.contains("beta"),
        "{screen}"
    );
    let words = refused(
        &pair.nodes.alpha,
        &["peer", "set", "gama", "--address", "x:1"],
        1,
    );
    assert!(words.contains("did you mean gamma?"), "{words}");
    refused(
        &pair.nodes.alpha,
        &["peer", "set", "gamma", "--address", "x"],
        2,
    );
    pair.stop_and_compare();
}

#[test]
fn an_arbiter_is_replaced_in_sync_and_not_otherwise() {
    let mut pair = pair("arbiter", "16M");
    put(&mut pair.on_alpha(), 0, &noise(65536, 1));
    let listen = format!("127.0.0.1:{}", ok(scratch::free_port()));
    let more = format!("[witness]\nlisten = [\"{listen}\"]\n");
    let folder = pair.nodes.alpha.folder().with_file_name("other");
    let mut other = ok(Node::new(
        std::path::Path::new(KAGAMI),
        folder,
        "other",
        "127.0.0.1:0",
        &more,
    ));
    let enrol = ["witness", "enrol", "--address", "127.0.0.1"];
    let join = ["arbiter", "join"];
    let mut meets = |node: &Node, after: &[&str]| {
        scratch::join(&mut other, &enrol, "kgw1-", node, &join, after, &mut quiet)
    };
    let words = meets(&pair.nodes.alpha, &["--mirror", MIRROR])
        .expect_err("it has one already")
        .to_string();
    assert!(words.contains("--replace"), "{words}");
    for node in [&pair.nodes.alpha, &pair.nodes.beta] {
        ok(meets(node, &["--mirror", MIRROR, "--replace"]));
    }
    ok(other.start(&["witness"]));
    // The old one is of no use any more.
    ok(pair.nodes.witness.as_mut().expect("a witness").kill());
    ok(kagami::commands::demo::node::wait_until(
        "the new witness",
        "the register",
        DEADLINE,
        || {
            let log = std::fs::read_to_string(other.log()).unwrap_or_default();
            log.contains("register changed").then_some(())
        },
    ));
    ok(pair.nodes.beta.kill());
    put(&mut pair.on_alpha(), 65536, &noise(65536, 2));
    let state = until(&mut pair.nodes.alpha, Condition::Alone);
    assert_eq!(state.arbiter.as_deref(), Some("other"));
    // Alone, nobody may come with an arbiter that knows nothing of it.
    let listen = format!("127.0.0.1:{}", ok(scratch::free_port()));
    let more = format!("[witness]\nlisten = [\"{listen}\"]\n");
    let folder = pair.nodes.alpha.folder().with_file_name("third");
    let mut third = ok(Node::new(
        std::path::Path::new(KAGAMI),
        folder,
        "third",
        "127.0.0.1:0",
        &more,
    ));
    let words = scratch::join(
        &mut third,
        &enrol,
        "kgw1-",
        &pair.nodes.alpha,
        &join,
        &["--mirror", MIRROR, "--replace"],
        &mut quiet,
    )
    .expect_err("it is alone")
    .to_string();
    assert!(words.contains("in sync"), "{words}");
    up(&mut pair.nodes.beta);
    pair.stop_and_compare();
    ok(other.stop(DEADLINE));
}
