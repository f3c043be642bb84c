//! A target that is Primary, a *guest*: its source answers for it (docs/protocol.md §5, *A target that
//! is Primary*).
//!
//! Nothing is read from its copy, nothing is written to it but what the source sends. A write goes to the
//! source, which marks it and sends the block back like any marked one (in the code: like its own
//! writes, at once; here: as a block of the resynchronisation).

use super::bounds::Bounds;
use super::check::gains_permission;
use super::mistake::Mistake;
use super::permission::has_room;
use super::state::{Guest, Node, Sent, Stage, State, Write, mark, written};
use super::steps::{Check, Step, Steps};
use super::verdict::View;

/// Writes or reads answered by the source since it flushed last.
const UNFLUSHED: u8 = 2;
/// A flush of them is under way.
const UNDER_FLUSH: u8 = 1;

/// Node `i` is Primary, and its copy is bad.
pub fn is_guest(b: &Bounds, node: &Node) -> bool {
    b.guest && node.primary && node.inconsistent
}

/// Its source answers for it now.
pub fn is_served(b: &Bounds, s: &State, i: usize) -> bool {
    let link = &s.link;
    is_guest(b, &s.node[i])
        && s.joined()
        && link.is_target(i)
        && link.served
        && link.stage == Stage::Copying
}

/// The handshake makes this copy a target: does its node stay Primary?
pub fn stays(b: &Bounds, node: &Node, source: &View) -> bool {
    let was = source.was_primary && b.mistake != Mistake::GuestOutlivesAPrimary;
    let lost = node.guest.unflushed != 0
        && node.guest.other_boot
        && b.mistake != Mistake::GuestForgetsTheBoot;
    is_guest(b, node) && !source.primary && !was && !lost
}

/// The machine of node `i` lost what it had not flushed.
pub fn lost_unflushed(t: &mut State, i: usize) {
    t.node[1 - i].guest.other_boot = true;
}

/// The source takes a generation of its own, durably: it is about to answer what only it holds.
pub fn go_alone(b: &Bounds, t: &mut State, source: usize) -> Check {
    if !t.node[source].may_answer {
        if !t.node[source].alone {
            let generation = t.draw_generation();
            t.node[source].mint(generation);
        }
        t.node[source].may_answer = true;
        gains_permission(b, t, source, "went on for its target")?;
    }
    t.node[source].was_primary = false;
    Ok(())
}

/// Node `i` is Primary from now on, by its source's copy.
pub fn become_guest(b: &Bounds, t: &mut State, i: usize) {
    let node = &mut t.node[i];
    node.primary = true;
    node.lease = true;
    // What the source answered before may not be flushed either.
    node.guest = Guest {
        other_boot: false,
        unflushed: if b.mistake == Mistake::GuestTrustsUnflushed {
            0
        } else {
            UNFLUSHED
        },
    };
    t.link.served = true;
}

/// The steps of node `i`, if it is one.
pub fn steps(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    if !is_guest(b, &s.node[i]) {
        return Ok(());
    }
    let (node, link, source) = (&s.node[i], &s.link, 1 - i);
    let again = s.joined() && link.is_target(i) && link.stage == Stage::Copying && !link.served;
    if again && has_room(s) {
        if node.passed && b.promises(s.ghost.forced) {
            return Err(format!(
                "One-writer: {} goes on, and has been Primary since before the other one answered",
                super::name(i)
            ));
        }
        // A new session: it is served again.
        let mut to = *s;
        go_alone(b, &mut to, source)?;
        to.link.served = true;
        to.node[i].lease = true;
        to.node[i].guest.other_boot = false;
        out.add(Step::Serve(i), to);
    }
    if is_served(b, s, i) {
        served(b, s, i, out);
    }
    if link.open[i] && link.sent == Sent::Acknowledged && usize::from(link.writer) == i {
        answer(b, s, i, out)?;
    }
    let handed = node.write.id == 0 && node.guest.unflushed == 0;
    if is_served(b, s, i) && handed && link.flush == Sent::No {
        let to = s.with(|t| {
            t.node[i].fail_requests();
            t.node[source].granted = false;
            t.link.served = false;
        });
        out.add(Step::Demote(i), to);
    }
    Ok(())
}

fn served(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let (node, link, source) = (&s.node[i], &s.link, 1 - i);
    let send = |t: &mut State, write: Write| {
        t.link.sent = Sent::Sent;
        t.link.writer = i as u8;
        t.link.write = Write {
            local: false,
            ..write
        };
    };
    if node.write.id != 0 && link.sent == Sent::No {
        out.add(Step::Resend(i), s.with(|t| send(t, node.write)));
    }
    if node.write.id == 0 && link.sent == Sent::No && s.writes < b.writes {
        for block in b.each_block() {
            let to = s.with(|t| {
                t.writes += 1;
                let write = Write {
                    id: t.writes,
                    block,
                    local: true,
                };
                t.node[i].write = write;
                // From here on the source may have it, and a read may find it.
                t.node[i].guest.unflushed = UNFLUSHED;
                send(t, write);
            });
            out.add(Step::Write(i, block), to);
        }
    }
    if node.seen != s.node[source].data {
        let to = s.with(|t| {
            t.node[i].seen = s.node[source].data;
        });
        out.add(Step::Read(i), to);
    }
    if link.flush == Sent::No && node.guest.unflushed == UNFLUSHED {
        let to = s.with(|t| {
            if node.write.id == 0 {
                t.node[i].guest.unflushed = UNDER_FLUSH;
            }
            t.link.flush = Sent::Sent;
            t.link.flusher = i as u8;
            t.link.covers = 0;
            t.link.flush_line = s.ghost.line[source];
            t.link.flush_last = s.ghost.last;
        });
        out.add(Step::Flush(i), to);
    }
}

/// The source carries out a guest's write: marked first, and sent back like any marked block.
pub fn apply(b: &Bounds, t: &mut State, source: usize, write: Write) {
    let node = &mut t.node[source];
    node.data[usize::from(write.block)] = write.id;
    if b.mistake != Mistake::GuestWritesUnmarked {
        node.marks |= mark(write.block);
        node.durable_marks |= mark(write.block);
    }
    t.link.received &= !mark(write.block);
    if usize::from(t.link.flusher) == source {
        t.link.covers &= !mark(write.block);
    }
}

fn answer(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    let (node, source) = (&s.node[i], &s.node[1 - i]);
    let promises = b.promises(s.ghost.forced);
    if promises && source.current == node.current {
        return Err(
            "One-writer: a guest's write is answered in a generation that both have".into(),
        );
    }
    let to = s.with(|t| {
        let (id, at) = (node.write.id, usize::from(node.write.block));
        let lives = source.up || source.daemon_down;
        if lives && source.data[at] == id {
            t.ghost.line[1 - i] |= written(id);
            if node.data[at] == id {
                t.ghost.line[i] |= written(id);
            }
            t.ghost.last[at] = t.ghost.last[at].max(id);
        }
        let node = &mut t.node[i];
        node.seen[at] = node.seen[at].max(id);
        node.guest.unflushed = UNFLUSHED;
        node.write = Write::default();
        t.link.sent = Sent::No;
        t.link.write = Write::default();
    });
    out.add(Step::Answer(i), to);
    Ok(())
}

/// The source has flushed for its guest.
pub fn flushed(t: &mut State, i: usize) {
    let guest = &mut t.node[i].guest;
    if guest.unflushed == UNDER_FLUSH {
        guest.unflushed = 0;
    }
}

/// May the target adopt? A guest's write that came too late for its source is its own to carry out.
pub fn may_adopt(b: &Bounds, s: &State, target: usize) -> bool {
    !is_guest(b, &s.node[target]) || s.link.sent == Sent::No
}

/// The source has offered its generation: what it has not carried out is put off.
pub fn put_off(b: &Bounds, s: &State, target: usize, out: &mut Steps) {
    let link = &s.link;
    let late = link.sent == Sent::Sent && usize::from(link.writer) == target;
    if is_guest(b, &s.node[target]) && late && s.joined() {
        let to = s.with(|t| {
            t.link.sent = Sent::No;
            t.link.write = Write::default();
        });
        out.add(Step::PutOff, to);
    }
}

/// Its copy is good: what waits is begun anew, as by any Primary.
pub fn adopted(t: &mut State, i: usize) {
    let node = &mut t.node[i];
    node.guest = Guest::default();
    if node.write.id != 0 {
        node.write.local = false;
        node.marks |= mark(node.write.block);
        node.durable_marks |= mark(node.write.block);
        t.link.own |= mark(node.write.block);
    }
}
