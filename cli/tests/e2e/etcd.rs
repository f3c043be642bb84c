//! A pair whose arbiter is a real etcd: who may go on alone, and an arbiter that takes another's place.

use std::fs;
use std::rc::Rc;

use kagami::commands::demo::node::{Node, wait_until};
use kagami::commands::demo::scratch::{MIRROR, in_sync};
use kagami::config::{Arbiter, Config};
use kagami::control::report::Condition;
use kagami_replicator::core::register::{ArbiterAnswer, Ask};
use kagami_replicator::shell::arbiter::raw::RegisterId;
use kagami_replicator::shell::arbiter::{Arbiter as _, MirrorRegister};
use kagami_replicator::shell::etcd;

use crate::support::{
    DEADLINE, Pair, down, get, is_held_until, laid_out, noise, ok, pair, put, refused, until, up,
};

#[path = "../../../replicator/tests/support/etcd.rs"]
pub mod server;
use server::Etcd;

/// Writes `[arbiter.kv]` into a node's file, as a person with an editor would.
fn write(node: &Node, section: &str) {
    let file = node.config();
    let text = fs::read_to_string(&file).expect("the file");
    fs::write(&file, format!("{text}\n{section}")).expect("written");
}

fn clear(etcd: &Etcd) -> String {
    format!(
        "[arbiter.kv]\nkind = \"etcd\"\nendpoints = [\"{}\"]\n",
        etcd.endpoint()
    )
}

fn with_certificates(etcd: &Etcd) -> String {
    let (certificate, key) = etcd.identity();
    format!(
        "{}ca = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
        clear(etcd),
        etcd.ca().display(),
        certificate.display(),
        key.display()
    )
}

/// Both nodes take the arbiter kv.
fn use_kv(pair: &Pair, more: &[&str]) {
    let take = [&["arbiter", "use", "kv", "--mirror", MIRROR], more].concat();
    for node in [&pair.nodes.alpha, &pair.nodes.beta] {
        let words = ok(node.run(&take));
        assert!(words.contains("etcd kv answers"), "{words}");
    }
}

/// Waits until the register in etcd names both copies.
fn registered(node: &Node) {
    let config = Config::load(&node.config()).unwrap_or_else(|e| panic!("{e}"));
    let etcd = config.arbiter("kv").and_then(Arbiter::as_etcd);
    let mirror = config.mirror(MIRROR).expect("the mirror");
    let id = RegisterId(u128::from_be_bytes(mirror.uuid));
    let remote = etcd::Remote::new(etcd.expect("an etcd"));
    let register = MirrorRegister::new(etcd::Client::new(remote, id));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    ok(wait_until(
        "etcd",
        "a register of both copies",
        DEADLINE,
        || match runtime.block_on(Rc::clone(&register).ask(Ask::Read)) {
            ArbiterAnswer::Register(Some(register)) => (register.copies.len() == 2).then_some(()),
            ArbiterAnswer::Register(None) => None,
            other => panic!("{other:?}"),
        },
    ));
}

/// A pair with the arbiter kv that runs and is in sync, alpha Primary.
fn pair_with(section: &str) -> Pair {
    let mut pair = laid_out("never", "32M");
    for node in [&pair.nodes.alpha, &pair.nodes.beta] {
        write(node, section);
    }
    use_kv(&pair, &[]);
    pair.up();
    pair.promote_alpha();
    registered(&pair.nodes.alpha);
    pair
}

/// The Primary dies, the other goes on by etcd's word; the dead one returns and may not be Primary before it
/// has what it missed.
fn beta_takes_over(pair: &mut Pair) {
    put(&mut pair.on_alpha(), 0, &noise(1 << 20, 1));
    ok(pair.nodes.alpha.kill());
    until(&mut pair.nodes.beta, Condition::Connecting);
    ok(pair
        .nodes
        .beta
        .run(&["promote", MIRROR, "--timeout", "30s"]));
    let mut on_beta = pair.on_beta();
    assert_eq!(get(&mut on_beta, 0, 1 << 20), noise(1 << 20, 1));
    put(&mut on_beta, 4096, &noise(65536, 2));
    drop(on_beta);
    let state = until(&mut pair.nodes.beta, Condition::Alone);
    let by = state.alone.and_then(|alone| alone.by).unwrap_or_default();
    assert!(by.contains("arbiter"), "{by}");
    let screen = ok(pair.nodes.beta.run(&["status"]));
    assert!(screen.contains("permission from arbiter kv"), "{screen}");

    // beta dies too: alpha, which etcd no longer names, is refused.
    ok(pair.nodes.beta.kill());
    up(&mut pair.nodes.alpha);
    until(&mut pair.nodes.alpha, Condition::Connecting);
    let printed = ok(pair
        .nodes
        .alpha
        .try_run(&["promote", MIRROR, "--timeout", "20s"]));
    assert!(!printed.success, "the stale copy was promoted: {printed:?}");
    up(&mut pair.nodes.beta);
    ok(pair.nodes.wait_in_sync(DEADLINE));
    registered(&pair.nodes.alpha);
    ok(pair.nodes.alpha.run(&["promote", MIRROR]));
    assert_eq!(get(&mut pair.on_alpha(), 4096, 65536), noise(65536, 2));
}

#[test]
fn etcd_with_certificates_lets_the_survivor_go_on_and_not_the_other() {
    let etcd = Etcd::start_with_certificates();
    let mut pair = pair_with(&with_certificates(&etcd));
    beta_takes_over(&mut pair);
    // Its keys are none of etcd's business.
    let words = ok(pair.nodes.alpha.run(&["pair", "--rotate"]));
    assert!(!words.contains("arbiter kv"), "{words}");
    pair.stop_and_compare();
}

#[test]
fn an_etcd_that_hangs_changes_nothing_while_in_sync() {
    let etcd = Etcd::start();
    let mut pair = pair_with(&clear(&etcd));
    let log = fs::read_to_string(pair.nodes.alpha.log()).expect("a log");
    assert!(log.contains("etcd is asked in clear text"), "{log}");
    etcd.pause();
    put(&mut pair.on_alpha(), 0, &noise(1 << 20, 4));
    assert!(in_sync(&ok(pair.nodes.alpha.mirror(MIRROR))));
    is_held_until(&mut pair, |_| etcd.resume());
    pair.stop_and_compare();
}

#[test]
fn etcd_takes_a_witness_place_and_gives_it_back() {
    let mut pair = pair("arbiter", "32M");
    let take = ["arbiter", "use", "kv", "--mirror", MIRROR];
    let replace = [&take[..], &["--replace"]].concat();
    let words = refused(&pair.nodes.alpha, &take, 1);
    assert!(
        words.contains("there is no [arbiter.kv]") && words.contains("next:"),
        "{words}"
    );
    let mut etcd = Etcd::start();
    for node in [&pair.nodes.alpha, &pair.nodes.beta] {
        write(node, &clear(&etcd));
    }
    let words = refused(&pair.nodes.alpha, &take, 1);
    assert!(words.contains("its arbiter is witness"), "{words}");
    // One that does not answer takes nobody's place.
    etcd.kill();
    let words = refused(&pair.nodes.alpha, &replace, 1);
    assert!(
        words.contains("arbiter not changed") && words.contains(&etcd.endpoint()),
        "{words}"
    );
    etcd.again();
    use_kv(&pair, &["--replace"]);
    registered(&pair.nodes.alpha);
    ok(pair.nodes.witness.as_mut().expect("a witness").kill());
    beta_takes_over(&mut pair);

    // And back, while they are in sync and not else.
    let witness = pair.nodes.witness.as_mut().expect("a witness");
    ok(witness.start(&["witness"]));
    let back = ["arbiter", "use", "witness", "--mirror", MIRROR, "--replace"];
    down(&mut pair.nodes.beta);
    let words = refused(&pair.nodes.alpha, &back, 1);
    assert!(words.contains("arbiter not replaced"), "{words}");
    up(&mut pair.nodes.beta);
    ok(pair.nodes.wait_in_sync(DEADLINE));
    for node in [&pair.nodes.alpha, &pair.nodes.beta] {
        let words = ok(node.run(&back));
        assert!(words.contains("witness witness answers"), "{words}");
    }
    etcd.kill();
    pair.stop_and_compare();
}
