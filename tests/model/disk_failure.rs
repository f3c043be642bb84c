//! A disk fails: a Secondary leaves the session, a Primary goes on through the peer's copy once
//! that has permission of its own (*carry*).

use super::bounds::{Bounds, Mode};
use super::mistake::Mistake;
use super::permission::{has_room, is_named, may_attempt};
use super::register::ask;
use super::state::{Purpose, Sent, State, Write};
use super::steps::{Check, Step, Steps};

/// The copy of node `i` goes on alone for a Primary whose own disk failed.
pub fn carry(b: &Bounds, t: &mut State, i: usize, generation: u8) {
    let peer = t.node[1 - i];
    let node = &mut t.node[i];
    if b.mistake != Mistake::DisklessMarksNotHanded {
        node.marks |= peer.marks;
        node.durable_marks |= peer.marks;
    }
    if !node.alone {
        node.mint(generation);
    }
    node.may_answer = true;
}

/// The steps of node `i`.
pub fn steps(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    fail(b, s, i, out);
    seek_to_carry(b, s, i, out);
    let (node, peer, link) = (&s.node[i], &s.node[1 - i], &s.link);
    let carried = peer.may_answer || b.mistake == Mistake::DisklessWithoutMint;
    if !node.primary || !node.disk_failed || !s.joined() || !carried {
        return Ok(());
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
                t.link.sent = Sent::Sent;
                t.link.writer = i as u8;
                t.link.write = Write {
                    local: false,
                    ..write
                };
            });
            out.add(Step::DisklessWrite(i, block), to);
        }
    }
    let p = 1 - i;
    if s.ghost.line[p] != s.ghost.flushed[p] {
        let to = s.with(|t| {
            t.node[p].stable = peer.data;
            t.ghost.flushed[p] |= s.ghost.line[p];
            t.ghost.kept |= s.ghost.line[p];
            t.ghost.last_flushed = s.ghost.last;
        });
        out.add(Step::DisklessFlush, to);
    }
    Ok(())
}

fn fail(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let (node, link) = (&s.node[i], &s.link);
    if s.used.disk_failures >= b.disk_failures || node.disk_failed {
        return;
    }
    let keeps_boot = node.unbroken && b.mistake == Mistake::DiskFailureKeepsBoot;
    let target = link.is_target(i) && link.open[i];
    if !node.primary || target {
        // It leaves; the failed copy may be back after a restart.
        let to = s.with(|t| {
            t.used.disk_failures += 1;
            super::life::close(b, t, i);
            t.node[i].disk_failed = true;
            t.node[i].unbroken = keeps_boot;
        });
        out.add(Step::DiskFails(i), to);
        return;
    }
    let quiet = link.source == 0 && link.flush == Sent::No && !node.may_answer && node.attempt == 0;
    if s.joined() && quiet {
        let to = s.with(|t| {
            t.used.disk_failures += 1;
            t.node[i].disk_failed = true;
            t.node[i].unbroken = keeps_boot;
            t.node[i].data = node.stable;
            t.ghost.line[i] = s.ghost.flushed[i];
        });
        out.add(Step::DiskFails(i), to);
    }
}

fn seek_to_carry(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let (node, peer) = (&s.node[i], &s.node[1 - i]);
    let needed = s.joined() && peer.disk_failed && peer.primary;
    let able = !node.may_answer && node.attempt == 0 && !node.is_bad() && !node.disk_failed;
    if !needed || !able || !has_room(s) {
        return;
    }
    if b.mode == Mode::Arbiter {
        if is_named(b, s, i) && may_attempt(b, s) {
            ask(s, i, Purpose::Carry, Step::CarryAsk(i), out);
        }
    } else {
        let to = s.with(|t| {
            let generation = t.draw_generation();
            carry(b, t, i, generation);
        });
        out.add(Step::CarryMint(i), to);
    }
}
