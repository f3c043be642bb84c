//! A Primary that its peer answers for, as a guest or without a disk, and whose peer's machine crashes:
//! what was answered and not flushed is not there any more, so it must not go on (docs/protocol.md §5).
//! Seeds show either too seldom.

use kagami_replicator::core::message::Message;
use kagami_replicator::core::{Request, Role};

use super::pair::Pair;
use super::stands::build;

const STANDS: [&str; 2] = ["Dv", "Pt"];

fn flush(pair: &mut Pair, node: usize) {
    let (id, _) = pair.request(node, Request::Flush);
    pair.pump();
    assert!(matches!(pair.reply(node, id), Some(Ok(_))));
}

/// The link is lost and comes back, the peer's machine perhaps in another boot.
fn role_after(pair: &mut Pair, node: usize, other_boot: bool) -> Role {
    pair.cut();
    pair.pump();
    pair.sides[node].hold.messages = true;
    pair.meet();
    pair.linked = true;
    pair.pump();
    let mut greeted = false;
    for (_, message) in &mut pair.sides[node].messages {
        if let Message::Hello(hello) = message {
            greeted = true;
            if other_boot {
                hello.boot = hello.boot.map(|boot| boot + 100);
            }
        }
    }
    assert!(greeted, "the peer has said hello");
    pair.sides[node].hold.messages = false;
    pair.pump();
    pair.sides[node].mirror.role()
}

#[test]
fn what_a_crash_took_ends_a_primary_that_was_answered_for() {
    for stand in STANDS {
        let (mut pair, node) = build(stand);
        pair.write(node, 3);
        assert_eq!(
            role_after(&mut pair, node, true),
            Role::Secondary,
            "{stand}"
        );
    }
}

#[test]
fn a_lost_link_does_not() {
    for stand in STANDS {
        let (mut pair, node) = build(stand);
        pair.write(node, 3);
        assert_eq!(role_after(&mut pair, node, false), Role::Primary, "{stand}");
    }
}

#[test]
fn a_crash_that_took_nothing_does_not() {
    for stand in STANDS {
        let (mut pair, node) = build(stand);
        pair.write(node, 3);
        flush(&mut pair, node);
        assert_eq!(role_after(&mut pair, node, true), Role::Primary, "{stand}");
    }
}

/// Who answers again flushes what it had answered before, whether anybody asks for a flush or not: a crash takes nothing then.
#[test]
fn after_a_lost_link_it_is_flushed_soon() {
    for stand in STANDS {
        let (mut pair, node) = build(stand);
        pair.write(node, 3);
        assert_eq!(role_after(&mut pair, node, false), Role::Primary, "{stand}");
        pair.elapse(3_000);
        assert_eq!(role_after(&mut pair, node, true), Role::Primary, "{stand}");
    }
}
