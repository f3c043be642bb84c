//! `--dry-run`: says what would be done, to people and to scripts, and does nothing.

mod support;

use kagami_replicator::core::event::Command;
use kagami_replicator::core::state::{Connection, DiskState, Replication, Role, Time};

use support::Node;

/// Says it as text and as JSON, the same words.
fn told(node: &Node, arguments: &[&str]) -> String {
    let with = |more: &[&str]| {
        let ended = node.run(&[arguments, &["--dry-run"], more].concat());
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.err);
        ended.out
    };
    let words = with(&[]);
    let json: serde_json::Value = serde_json::from_str(&with(&["--json"]))
        .unwrap_or_else(|error| panic!("{arguments:?} --json: {error}"));
    assert_eq!(json["outcome"], "dry-run", "{arguments:?}");
    assert!(json["mirror"].is_string(), "{arguments:?}");
    let text = json["text"].as_str().expect("words");
    assert_eq!(format!("{text}\n"), words, "{arguments:?}");
    words
}

#[test]
fn dry_runs_do_nothing() {
    let node = Node::with_daemon();
    for arguments in [
        &["promote", "pg", "--force"][..],
        &["demote", "pg", "--force"],
        &["resync", "pg", "--from", "peer"],
        &["invalidate", "pg"],
        &["detach", "pg"],
        &["init", "other", "--size", "1G"],
    ] {
        let words = told(&node, arguments);
        assert!(words.starts_with("mirror "), "{arguments:?}: {words}");
    }
    node.engine.set(|status| {
        status.connection = Connection::Connecting;
        status.replication = Replication::Off;
        status.peer_role = None;
        status.peer_disk = DiskState::Unknown;
    });
    for verb in ["replace-peer", "remove-peer"] {
        let words = told(&node, &[verb, "pg"]);
        assert!(words.contains("beta"), "{verb}: {words}");
    }
    assert!(node.engine.orders.lock().unwrap().is_empty());
    assert!(!node.folder.path().join("state").exists());
}

#[test]
fn what_is_done_without_a_daemon_is_told_the_same_way() {
    let node = Node::without_daemon();
    let at = |name: &str| node.folder.path().join(name);
    let made = node.run(&["init", "own", "--size", "16M"]);
    assert_eq!(made.code, 0, "{}", made.err);
    let words = told(&node, &["resize", "own", "--grow", "32M"]);
    assert_eq!(
        words,
        "mirror own: this node's copy would grow from 16MiB to 32MiB\n"
    );
    let ended = node.run(&["resize", "own", "--grow", "16M", "--json"]);
    assert_eq!(
        ended.out,
        "{\"mirror\":\"own\",\"outcome\":\"nothing\",\"text\":\"nothing to do: it has 16MiB already\"}\n"
    );
    let new = at("new.data");
    let new = new.to_str().expect("text");
    let words = told(&node, &["replace-disk", "own", "--backing", new, "--force"]);
    assert!(words.contains("new.data"), "{words}");
    assert!(!at("new.data").exists());
}

/// No force makes a second Primary of a pair that is connected.
#[test]
fn a_promotion_that_would_be_refused_is_told_as_that() {
    let node = Node::with_daemon();
    for force in [&[][..], &["--force"]] {
        let arguments = [&["promote", "pg"], force].concat();
        assert_eq!(
            told(&node, &arguments),
            "mirror pg: nothing to do: this node is Primary already\n"
        );
    }
    node.engine.set(|status| {
        status.role = Role::Secondary;
        status.peer_role = Some(Role::Primary);
    });
    for disk in [DiskState::UpToDate, DiskState::Inconsistent] {
        node.engine.set(|status| status.disk = disk);
        for force in [&[][..], &["--force"]] {
            let arguments = [&["promote", "pg"], force].concat();
            assert_eq!(
                told(&node, &arguments),
                "mirror pg: it would be refused, by force too: beta is Primary\n  next: `kagami demote pg` on beta, then again\n"
            );
        }
    }
    node.engine
        .set(|status| status.peer_role = Some(Role::Secondary));
    node.engine.set(|status| status.disk = DiskState::UpToDate);
    assert_eq!(
        told(&node, &["promote", "pg"]),
        "mirror pg: this node becomes Primary; beta is asked and nothing is lost\n"
    );
}

/// The newest writes may be nowhere else.
#[test]
fn the_only_copy_of_the_newest_writes_is_not_invalidated_unlooked_at() {
    let node = Node::with_daemon();
    node.engine.set(|status| {
        status.role = Role::Secondary;
        status.connection = Connection::Connecting;
        status.replication = Replication::Off;
        status.peer_role = None;
        status.peer_disk = DiskState::Unknown;
        status.alone_since = Some(Time(0));
        status.marked_blocks = (200 << 30) / 4096;
    });
    let words = told(&node, &["invalidate", "pg"]);
    assert!(
        words.contains("alone since ")
            && words.contains("200 GiB marked that beta lacks are lost")
            && words.contains("--force"),
        "{words}"
    );
    let ended = node.run(&["invalidate", "pg", "--yes"]);
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert!(
        ended.err.contains("200 GiB") && ended.err.contains("--force"),
        "{}",
        ended.err
    );
    // Nor where it was demoted since, and only its marks tell.
    node.engine.set(|status| status.alone_since = None);
    assert_eq!(node.run(&["invalidate", "pg", "--yes"]).code, 1);
    assert!(node.engine.orders.lock().unwrap().is_empty());
    let ended = node.run(&["invalidate", "pg", "--force", "--yes"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(ended.err.contains("200 GiB"), "{}", ended.err);
    assert_eq!(
        node.engine.orders.lock().unwrap().pop(),
        Some(Command::Invalidate)
    );
    // What differs here is older than the peer's, or nothing does: that is what the order is for.
    for (disk, marked) in [(DiskState::Outdated, 512), (DiskState::Consistent, 0)] {
        node.engine.set(|status| {
            status.disk = disk;
            status.marked_blocks = marked;
        });
        let words = told(&node, &["invalidate", "pg"]);
        assert!(!words.contains("--force"), "{words}");
        assert_eq!(node.run(&["invalidate", "pg", "--yes"]).code, 0);
    }
}

/// It is refused without the flag; with it nothing is broken, and all waits where the other node is lost.
#[test]
fn a_promotion_of_a_target_is_told_as_what_it_is() {
    let node = Node::with_daemon();
    node.engine.set(|status| {
        status.role = Role::Secondary;
        status.peer_role = Some(Role::Secondary);
        status.disk = DiskState::Inconsistent;
        status.replication = Replication::SyncTarget;
    });
    let words = told(&node, &["promote", "pg"]);
    assert!(
        words.contains("it would be refused") && words.contains("--while-resyncing"),
        "{words}"
    );
    let words = told(&node, &["promote", "pg", "--while-resyncing"]);
    assert!(
        words.contains("every read and write goes to beta") && !words.contains("broken"),
        "{words}"
    );
}

/// In sync no handshake decides: the Primary's copy goes over the other.
#[test]
fn a_full_resynchronisation_names_the_copy_that_is_overwritten() {
    let node = Node::with_daemon();
    let full = ["resync", "pg", "--full"];
    let words = told(&node, &full);
    assert!(
        words.contains("sent from this node, which is Primary, over the copy of beta")
            && words.contains("what beta holds is lost"),
        "{words}"
    );
    node.engine.set(|status| {
        status.role = Role::Secondary;
        status.peer_role = Some(Role::Primary);
    });
    assert!(told(&node, &full).contains("sent from beta"));
    node.engine
        .set(|status| status.peer_role = Some(Role::Secondary));
    assert!(told(&node, &full).contains("it would be refused: it is not clear"));
}

/// In sync there is nothing to send, unless blocks are marked.
#[test]
fn a_resynchronisation_in_sync_is_told_as_what_it_is() {
    let node = Node::with_daemon();
    let words = told(&node, &["resync", "pg"]);
    assert_eq!(
        words,
        "mirror pg: nothing to do: the copies are in sync, nothing is marked\n"
    );
    node.engine.set(|status| status.marked_blocks = 16);
    let words = told(&node, &["resync", "pg"]);
    assert!(
        words.contains("what differs is sent from this node"),
        "{words}"
    );
    // The very copy that clients use is not overwritten under them.
    let words = told(&node, &["resync", "pg", "--from", "peer"]);
    assert!(
        words.contains("while this node is Primary it is refused"),
        "{words}"
    );
}
