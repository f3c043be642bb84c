//! A node is replaced by a new one, or the arbiter by another (docs/protocol.md §4, §5).

use super::bounds::{Bounds, Mode};
use super::mistake::Mistake;
use super::permission::has_room;
use super::state::{Meeting, Node, Register, State, Write};
use super::steps::{Step, Steps};

/// The steps that an operator at node `i` takes.
pub fn steps(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    if s.used.replaced < b.replace_node {
        another_peer(b, s, i, out);
    }
    if i == 0 && s.register.instance <= b.replace_arbiter && b.mode == Mode::Arbiter {
        // Both are told of another arbiter, at any time; what the old one knew is gone.
        let to = s.with(|t| {
            t.register = Register {
                instance: s.register.instance + 1,
                ..Register::default()
            };
        });
        out.add(Step::ReplaceArbiter, to);
    }
}

/// *Another peer*: only while not connected, by a Consistent copy, with an arbiter only while
/// alone by its word. One durable write: mint, no base, all marked. The other node is new, or it
/// is the old one with its old copy, which the peer's identity would refuse: it must not pass for a newer one.
fn another_peer(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let node = &s.node[i];
    let by_word = b.mode != Mode::Arbiter || node.may_answer && node.alone;
    let hasty = b.mistake == Mistake::ReplacedWithoutWord;
    let able =
        !s.link.open[i] && !node.is_bad() && !node.disk_failed && node.current != 0 && has_room(s);
    if !able || !(by_word || hasty) || node.attempt != 0 {
        return;
    }
    for fresh in [false, true] {
        let to = s.with(|t| {
            t.used.replaced += 1;
            let generation = t.draw_generation();
            let copy = &mut t.node[i];
            if b.mistake != Mistake::ReplacedWithoutMint {
                copy.mint(generation);
            }
            copy.base = 0;
            copy.marks = b.all_marks();
            copy.durable_marks = b.all_marks();
            // Named still, by its line. A Primary goes on alone: no other copy has anything.
            copy.may_answer |= copy.primary && b.mode != Mode::Arbiter;
            let old = t.node[1 - i];
            t.node[1 - i] = if fresh {
                Node {
                    instance: old.instance,
                    ..Node::default()
                }
            } else {
                Node {
                    up: false,
                    daemon_down: false,
                    primary: false,
                    may_answer: false,
                    lease: false,
                    attempt: 0,
                    data: [0; 2],
                    marks: 0,
                    write: Write::default(),
                    late: Write::default(),
                    unbroken: false,
                    disk_failed: false,
                    unrecorded: 0,
                    meeting: Meeting::No,
                    ..old
                }
            };
            t.link.open[1 - i] = false;
            t.forget_closed_session();
            // The operator gave up what the old node had by itself.
            t.ghost.kept &= s.ghost.flushed[i];
            t.ghost.line[1 - i] = 0;
            t.ghost.flushed[1 - i] = 0;
            for at in 0..usize::from(b.blocks) {
                t.ghost.last[at] = s.ghost.last[at].min(node.data[at]);
                t.ghost.last_flushed[at] = s.ghost.last_flushed[at].min(node.data[at]);
            }
        });
        out.add(Step::ReplaceNode(i, fresh), to);
    }
}
