//! A group with two mirrors whose nodes lose each other while one of their questions is lost as well: who follows keeps
//! both registers with one node.

mod lost;

use std::fs;
use std::path::PathBuf;
use std::rc::Rc;

use kagami::commands::demo::node::{Node, wait_until};
use kagami::commands::demo::scratch::{MIRROR, in_sync};
use kagami::config::{Arbiter, Config};
use kagami::control::report::{Condition, Disk, MirrorReport};
use kagami_replicator::core::register::{ArbiterAnswer, Ask};
use kagami_replicator::shell::arbiter::raw::RegisterId;
use kagami_replicator::shell::arbiter::{Arbiter as _, MirrorRegister};
use kagami_replicator::shell::etcd;

use self::lost::{Link, Questions};
use crate::etcd::server::Etcd;
use crate::support::{DEADLINE, Pair, down, laid_out, ok, quiet, refused, until, up};

const SECOND: &str = "second";
const ALPHA: &str = "alpha";
const BETA: &str = "beta";

/// Two nodes with two mirrors, alpha Primary of both; each fault is ready to be made.
struct Group {
    pair: Pair,
    /// Between the nodes.
    link: Link,
    /// Between alpha and etcd.
    questions: Questions,
    etcd: Etcd,
}

/// Edits a node's file.
fn edit(node: &Node, change: impl FnOnce(&mut toml_edit::DocumentMut)) {
    let text = fs::read_to_string(node.config()).expect("the configuration");
    let mut document = text.parse().expect("TOML");
    change(&mut document);
    fs::write(node.config(), document.to_string()).expect("written");
}

fn config(node: &Node) -> Config {
    Config::load(&node.config()).unwrap_or_else(|error| panic!("{error}"))
}

impl Group {
    fn new(follows: bool) -> Self {
        let mut pair = laid_out("never", "16M");
        ok(pair.nodes.add_mirror(SECOND, "16M", &mut quiet));
        let etcd = Etcd::start();
        let questions = Questions::new(&etcd.endpoint());
        let listen = |node: &Node| config(node).node.listen[0];
        let nodes = [&pair.nodes.alpha, &pair.nodes.beta];
        let link = Link::new(nodes.map(listen));
        let ways = [
            (BETA, link.to(1), questions.endpoint()),
            (ALPHA, link.to(0), etcd.endpoint()),
        ];
        for (node, (peer, address, endpoint)) in nodes.into_iter().zip(ways) {
            edit(node, |file| {
                let list = |text: String| toml_edit::value(toml_edit::Array::from_iter([text]));
                file["peer"][peer]["addresses"] = list(address.to_string());
                file["arbiter"]["kv"]["kind"] = toml_edit::value("etcd");
                file["arbiter"]["kv"]["endpoints"] = list(endpoint);
            });
            ok(node.run(&[
                "arbiter", "use", "kv", "--mirror", MIRROR, "--mirror", SECOND,
            ]));
        }
        pair.up();
        let mut group = Self {
            pair,
            link,
            questions,
            etcd,
        };
        group.promote();
        let nodes = [&group.pair.nodes.alpha, &group.pair.nodes.beta];
        for node in nodes.into_iter().filter(|_| follows) {
            edit(node, |file| {
                file["mirror"][SECOND]["follows"] = toml_edit::value(MIRROR);
            });
            // A running daemon takes it over.
            let said = ok(node.run(&["reload"]));
            assert!(said.contains("follows"), "{said}");
        }
        group
    }

    /// Makes alpha Primary of both, and waits until the registers name both copies.
    fn promote(&mut self) {
        for mirror in [MIRROR, SECOND] {
            let alpha = &mut self.pair.nodes.alpha;
            let met = |state: &MirrorReport| state.condition == Condition::InSync;
            ok(alpha.wait(mirror, "its meeting", DEADLINE, met));
            ok(alpha.run(&["promote", mirror]));
            ok(alpha.wait(mirror, "both copies to be in sync", DEADLINE, in_sync));
        }
        for mirror in [MIRROR, SECOND] {
            let both = || (self.named(mirror) == [ALPHA, BETA]).then_some(());
            ok(wait_until(
                "etcd",
                "a register of both copies",
                DEADLINE,
                both,
            ));
        }
    }

    /// Whom the register of a mirror names.
    fn named(&self, mirror: &str) -> Vec<&'static str> {
        let beta = config(&self.pair.nodes.beta);
        let kv = beta
            .arbiter("kv")
            .and_then(Arbiter::as_etcd)
            .expect("an etcd");
        let id = RegisterId(u128::from_be_bytes(
            beta.mirror(mirror).expect("the mirror").uuid,
        ));
        let register = MirrorRegister::new(etcd::Client::new(etcd::Remote::new(kv), id));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let copies = match runtime.block_on(Rc::clone(&register).ask(Ask::Read)) {
            ArbiterAnswer::Register(register) => register.map(|r| r.copies).unwrap_or_default(),
            other => panic!("{other:?}"),
        };
        let mut names: Vec<_> = copies
            .iter()
            .map(|id| if id.0 == beta.node.id { BETA } else { ALPHA })
            .collect();
        names.sort_unstable();
        names
    }

    /// Alpha's changes of this mirror's register are lost from now on, and the nodes lose each other.
    fn lose(&self, mirror: &str) {
        let alpha = config(&self.pair.nodes.alpha);
        let uuid = u128::from_be_bytes(alpha.mirror(mirror).expect("the mirror").uuid);
        self.questions
            .lose_changes_of(&RegisterId(uuid).to_string());
        self.link.cut();
    }

    fn alpha_until(
        &mut self,
        mirror: &str,
        what: &str,
        wanted: fn(&MirrorReport) -> bool,
    ) -> MirrorReport {
        ok(self.pair.nodes.alpha.wait(mirror, what, DEADLINE, wanted))
    }

    /// Beta takes over in the order of the group: mirror by mirror, until one is refused.
    fn beta_takes_over(&mut self) -> Vec<&'static str> {
        let beta = &mut self.pair.nodes.beta;
        until(beta, Condition::Connecting);
        let mut got = Vec::new();
        for mirror in [MIRROR, SECOND] {
            let printed = ok(beta.try_run(&["promote", mirror, "--timeout", "30s"]));
            if !printed.success {
                assert!(printed.err.contains("names the other copy"), "{printed:?}");
                break;
            }
            got.push(mirror);
        }
        got
    }
}

fn is_alone(state: &MirrorReport) -> bool {
    state.condition == Condition::Alone
}

#[test]
fn the_first_mirrors_question_is_lost_and_the_other_node_gets_both() {
    let mut group = Group::new(true);
    group.lose(MIRROR);
    let waits = |state: &MirrorReport| state.held_back.is_some();
    let state = group.alpha_until(SECOND, "its question held back", waits);
    let why = state.held_back.unwrap_or_default();
    assert!(why.contains("it follows mirror demo"), "{why}");
    assert_eq!(state.follows.as_deref(), Some(MIRROR));
    let screen = ok(group.pair.nodes.alpha.run(&["status", SECOND]));
    assert!(screen.contains("it follows mirror demo"), "{screen}");

    assert_eq!(group.beta_takes_over(), [MIRROR, SECOND]);
    group.questions.lose_nothing();
    // What is asked now is refused, and what follows is still not asked.
    let refused = |state: &MirrorReport| {
        state
            .held_back
            .as_ref()
            .is_some_and(|why| why.contains("refused here"))
    };
    group.alpha_until(SECOND, "its leader's refusal", refused);
    assert_eq!(group.named(MIRROR), [BETA]);
    assert_eq!(group.named(SECOND), [BETA]);
}

/// What the setting is for: without it each node is given one mirror.
#[test]
fn without_the_setting_each_node_gets_one() {
    let mut group = Group::new(false);
    group.lose(MIRROR);
    group.alpha_until(SECOND, "its going alone", is_alone);
    assert_eq!(group.beta_takes_over(), [MIRROR]);
    assert_eq!(group.named(MIRROR), [BETA]);
    assert_eq!(group.named(SECOND), [ALPHA]);
}

#[test]
fn a_later_mirrors_question_is_lost_and_the_other_node_gets_none() {
    let mut group = Group::new(true);
    group.lose(SECOND);
    group.alpha_until(MIRROR, "its going alone", is_alone);
    assert_eq!(group.beta_takes_over(), [""; 0]);
    assert_eq!(group.named(SECOND), [ALPHA, BETA]);
    // Its own session may end a little later than the first one's.
    let is_lost = || (group.questions.lost() > 0).then_some(());
    ok(wait_until(
        "alpha",
        "a question that is lost",
        DEADLINE,
        is_lost,
    ));
    assert_eq!(group.named(SECOND), [ALPHA, BETA]);
    group.questions.lose_nothing();
    group.alpha_until(SECOND, "its going alone", is_alone);
    assert_eq!(group.named(MIRROR), [ALPHA]);
    assert_eq!(group.named(SECOND), [ALPHA]);

    // They meet again: both registers name both, and the other one may have both.
    group.link.mend();
    for mirror in [MIRROR, SECOND] {
        group.alpha_until(mirror, "both copies to be in sync", in_sync);
        let both = || (group.named(mirror) == [ALPHA, BETA]).then_some(());
        ok(wait_until(
            "etcd",
            "a register of both copies",
            DEADLINE,
            both,
        ));
    }
    ok(group.pair.nodes.alpha.kill());
    assert_eq!(group.beta_takes_over(), [MIRROR, SECOND]);
    assert_eq!(group.named(MIRROR), [BETA]);
    assert_eq!(group.named(SECOND), [BETA]);
}

#[test]
fn who_has_lost_the_disk_of_a_later_mirror_does_not_get_the_first() {
    let mut group = Group::new(true);
    down(&mut group.pair.nodes.alpha);
    let backing = config(&group.pair.nodes.alpha)
        .mirror(SECOND)
        .expect("the mirror")
        .backing
        .clone();
    let aside: PathBuf = backing.with_extension("aside");
    fs::rename(&backing, &aside).expect("moved aside");
    up(&mut group.pair.nodes.alpha);
    let met = |state: &MirrorReport| state.condition == Condition::InSync;
    group.alpha_until(MIRROR, "its meeting", met);
    ok(group.pair.nodes.alpha.run(&["promote", MIRROR]));
    let both = || (group.named(MIRROR) == [ALPHA, BETA]).then_some(());
    ok(wait_until(
        "etcd",
        "a register of both copies",
        DEADLINE,
        both,
    ));
    let bad = group.alpha_until(SECOND, "its state", |_| true);
    assert_eq!(bad.disk, Disk::Diskless);

    group.link.cut();
    let waits = |state: &MirrorReport| state.held_back.is_some();
    let why = group
        .alpha_until(MIRROR, "its refusal", waits)
        .held_back
        .unwrap_or_default();
    assert!(
        why.contains("mirror second") && why.contains("Diskless"),
        "{why}"
    );
    assert_eq!(group.beta_takes_over(), [MIRROR, SECOND]);
    assert_eq!(group.named(MIRROR), [BETA]);
    assert_eq!(group.named(SECOND), [BETA]);
    drop(group.etcd);
}

#[test]
fn mirrors_that_decide_together_change_their_arbiter_together() {
    let mut pair = laid_out("never", "16M");
    ok(pair.nodes.add_mirror(SECOND, "16M", &mut quiet));
    let etcd = Etcd::start();
    let alpha = &pair.nodes.alpha;
    edit(alpha, |file| {
        for name in ["kv", "other"] {
            let endpoints = toml_edit::Array::from_iter([etcd.endpoint()]);
            file["arbiter"][name]["kind"] = toml_edit::value("etcd");
            file["arbiter"][name]["endpoints"] = toml_edit::value(endpoints);
        }
    });
    ok(alpha.run(&[
        "arbiter", "use", "kv", "--mirror", MIRROR, "--mirror", SECOND,
    ]));
    edit(alpha, |file| {
        file["mirror"][SECOND]["follows"] = toml_edit::value(MIRROR)
    });
    for (one, other) in [(MIRROR, SECOND), (SECOND, MIRROR)] {
        let words = refused(
            alpha,
            &["arbiter", "use", "other", "--mirror", one, "--replace"],
            1,
        );
        assert!(words.contains(&format!("--mirror {other}")), "{words}");
    }
}
