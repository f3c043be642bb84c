//! A write's life, and what a flush covers.

use super::bounds::Bounds;
use super::check::gains_permission;
use super::guest;
use super::mistake::Mistake;
use super::state::{Sent, Stage, State, Write, mark, written};
use super::steps::{Check, Step, Steps};

/// Is every write of this Primary given to both copies at this moment?
pub fn mirrors(b: &Bounds, s: &State, i: usize) -> bool {
    let link = &s.link;
    if !s.in_session(i) {
        return false;
    }
    if b.disk_failures > 0 && link.source == 0 && s.node[i].may_answer {
        // It carried the other one, which has no disk.
        return false;
    }
    let as_source = link.is_source(i) && (!b.source_only || link.stage != Stage::Copying);
    let as_target = link.is_target(i) && s.node[i].primary;
    link.source == 0 || as_source || as_target
}

/// The steps of the Primary `i`.
pub fn steps(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    let node = &s.node[i];
    if guest::is_guest(b, node) {
        return Ok(());
    }
    let mirrored = mirrors(b, s, i);
    if node.primary && !node.disk_failed {
        begin(b, s, i, mirrored, out);
        flush(b, s, i, mirrored, out);
    }
    if node.write.id != 0 && !node.write.local && !node.disk_failed {
        let to = s.with(|t| {
            t.node[i].write.local = true;
            t.node[i].data[usize::from(node.write.block)] = node.write.id;
        });
        out.add(Step::Local(i), to);
    }
    if node.write.id != 0
        && mirrored
        && s.link.sent == Sent::No
        && !node.disk_failed
        && !held(b, s, i, node.write.block)
    {
        let to = s.with(|t| send(t, i, node.write));
        out.add(Step::Resend(i), to);
    }
    answer(b, s, i, mirrored, out)
}

/// The source holds a write to a block that is under way to the target.
fn held(b: &Bounds, s: &State, i: usize, block: u8) -> bool {
    s.link.is_source(i)
        && s.link.block_sent != Sent::No
        && s.link.block == block
        && b.mistake != Mistake::WriteOvertakesBlock
}

fn send(t: &mut State, i: usize, write: Write) {
    t.link.sent = Sent::Sent;
    t.link.writer = i as u8;
    t.link.write = Write {
        local: false,
        ..write
    };
}

fn begin(b: &Bounds, s: &State, i: usize, mirrored: bool, out: &mut Steps) {
    let (node, link) = (&s.node[i], &s.link);
    let may = node.write.id == 0 && s.writes < b.writes && (mirrored || node.may_answer);
    if !may || mirrored && link.sent != Sent::No {
        return;
    }
    for block in b.each_block() {
        if held(b, s, i, block) {
            continue;
        }
        let to = s.with(|t| {
            t.writes += 1;
            let write = Write {
                id: t.writes,
                block,
                local: false,
            };
            t.node[i].write = write;
            t.node[i].marks |= mark(block);
            if b.mistake != Mistake::ActivityLogSkip {
                t.node[i].durable_marks |= mark(block);
            }
            if s.link.open[i] {
                if !link.is_target(i) {
                    t.link.received &= !mark(block);
                }
                if usize::from(link.flusher) == i {
                    t.link.covers &= !mark(block);
                }
            }
            if link.is_target(i) {
                // A whole block: this copy is behind in it no longer.
                if b.mistake != Mistake::TargetTakesOldBlock {
                    t.link.stale &= !mark(block);
                }
                t.link.own |= mark(block);
            }
            if mirrored {
                send(t, i, write);
            }
        });
        out.add(Step::Write(i, block), to);
    }
}

fn answer(b: &Bounds, s: &State, i: usize, mirrored: bool, out: &mut Steps) -> Check {
    let (node, peer, link) = (&s.node[i], &s.node[1 - i], &s.link);
    if node.write.id == 0 || !(node.write.local || node.disk_failed) {
        return Ok(());
    }
    let carried = peer.may_answer || b.mistake == Mistake::DisklessWithoutMint;
    let acknowledged =
        link.open[i] && link.sent == Sent::Acknowledged && usize::from(link.writer) == i;
    let hasty = b.mistake == Mistake::TargetAnswersFirst && link.is_target(i) && link.open[i];
    let by_both = (acknowledged || hasty) && (!node.disk_failed || carried);
    let by_self = node.may_answer && !mirrored && !node.disk_failed;
    if !by_both && !by_self {
        return Ok(());
    }
    let promises = b.promises(s.ghost.forced);
    if by_self && peer.current == node.current && node.unrecorded == 0 {
        return Err(format!(
            "One-writer: {} answers alone in a generation that the peer has",
            super::name(i)
        ));
    }
    if by_self && promises {
        gains_permission(b, s, i, "answers alone")?;
    }
    if node.disk_failed && by_both && peer.current == node.current && promises {
        return Err(format!(
            "One-writer: {}, diskless, answers from one copy in a generation that both have",
            super::name(i)
        ));
    }
    let to = s.with(|t| {
        let bit = written(node.write.id);
        if !node.disk_failed {
            t.ghost.line[i] |= bit;
        }
        // The peer's memory may have died since it acknowledged: then no flush has covered
        // the write, and its loss with that copy is the loss of an unflushed write.
        let lives = peer.up || peer.daemon_down;
        let there = lives && peer.data[usize::from(node.write.block)] == node.write.id;
        if by_both && there {
            t.ghost.line[1 - i] |= bit;
        }
        if node.may_answer || hasty || !s.ghost.forced && there {
            let last = &mut t.ghost.last[usize::from(node.write.block)];
            *last = (*last).max(node.write.id);
        }
        t.node[i].write = Write::default();
        t.node[1 - i].passed |= b.guest && by_self && peer.primary;
        if link.open[i] && link.sent != Sent::No && !hasty {
            t.link.sent = Sent::No;
            t.link.write = Write::default();
            if by_both && link.is_source(i) && link.stage == Stage::Copying {
                // its mark goes with the flush of both
                t.link.received |= mark(node.write.block);
            }
        }
    });
    out.add(Step::Answer(i), to);
    Ok(())
}

/// A client's flush, of both copies or of the only one.
fn flush(b: &Bounds, s: &State, i: usize, mirrored: bool, out: &mut Steps) {
    let (node, link) = (&s.node[i], &s.link);
    let unflushed = s.ghost.line[i] != s.ghost.flushed[i];
    if mirrored && s.joined() && link.flush == Sent::No {
        let under_way = if node.write.id == 0 {
            0
        } else {
            mark(node.write.block)
        };
        let wrong = b.mistake == Mistake::FlushOvertakesWrite;
        let mine = if link.source == 0 {
            node.marks
        } else if link.is_source(i) {
            // Before the offer: what the target has. After it there is nothing else.
            if link.stage == Stage::Copying {
                link.received
            } else {
                node.marks
            }
        } else {
            link.own
        };
        let covers = if wrong { mine } else { mine & !under_way };
        // What a target had before it became one is no promise: the source's copy is the good one.
        let good = if link.is_target(i) { 1 - i } else { i };
        let line = s.ghost.line[good];
        if covers != 0 || line != s.ghost.flushed[good] {
            let to = s.with(|t| {
                if b.mistake != Mistake::NoSourceFlush {
                    t.node[i].stable = node.data;
                    t.ghost.flushed[i] |= s.ghost.line[i];
                }
                t.link.flush = Sent::Sent;
                t.link.flusher = i as u8;
                t.link.covers = covers;
                t.link.flush_line = line;
                t.link.flush_last = s.ghost.last;
            });
            out.add(Step::Flush(i), to);
        }
    }
    if node.may_answer && !mirrored && (node.stable != node.data || unflushed) {
        let to = s.with(|t| {
            t.node[i].stable = node.data;
            t.ghost.flushed[i] |= s.ghost.line[i];
            t.ghost.kept |= s.ghost.line[i];
            t.ghost.last_flushed = s.ghost.last;
        });
        out.add(Step::FlushAlone(i), to);
    }
}

/// What a session carries of writes and flushes.
pub fn between(b: &Bounds, s: &State, out: &mut Steps) {
    let link = &s.link;
    let writer = usize::from(link.writer);
    let other = 1 - writer;
    // (Its writer may have died meanwhile.)
    let of_guest = b.guest && link.is_target(writer) && link.stage != Stage::Adopted;
    // A source holds a write to a block that is under way to the target.
    let open = link.served && link.stage == Stage::Copying;
    let takes = !of_guest || open && !held(b, s, other, link.write.block);
    if link.sent == Sent::Sent
        && s.in_session(other)
        && s.node[other].up
        && !s.node[other].disk_failed
        && takes
    {
        let to = s.with(|t| {
            if of_guest {
                guest::apply(b, t, other, link.write);
                t.link.sent = Sent::Applied;
                return;
            }
            let peer = &mut t.node[other];
            if peer.alone && link.source == 0 {
                // It carries: its marks are the only ones.
                peer.marks |= mark(link.write.block);
                peer.durable_marks |= mark(link.write.block);
            }
            peer.data[usize::from(link.write.block)] = link.write.id;
            if link.served && !b.guest && link.is_target(other) {
                t.link.stale &= !mark(link.write.block);
            }
            t.link.sent = Sent::Applied;
        });
        out.add(Step::Apply, to);
    }
    if link.sent == Sent::Applied && link.open[writer] {
        let to = s.with(|t| {
            t.link.sent = Sent::Acknowledged;
            if b.mistake == Mistake::ClearOnReceipt {
                t.node[writer].marks &= !mark(link.write.block);
            }
        });
        out.add(Step::Acknowledge, to);
    }
    let flusher = usize::from(link.flusher);
    let other = 1 - flusher;
    if link.flush == Sent::Sent && s.in_session(other) {
        let to = s.with(|t| {
            if b.mistake != Mistake::NoTargetFlush {
                t.node[other].stable = s.node[other].data;
                t.ghost.flushed[other] |= s.ghost.line[other];
            }
            t.link.flush = Sent::Applied;
        });
        out.add(Step::FlushPeer, to);
    }
    if link.flush == Sent::Applied && link.open[flusher] {
        let to = s.with(|t| {
            t.link.received &= !link.covers;
            if link.is_target(flusher) {
                t.link.own &= !link.covers;
                t.link.cleared |= link.covers;
            }
            t.node[flusher].marks &= !link.covers;
            guest::flushed(t, flusher);
            t.ghost.kept |= link.flush_line;
            for (flushed, last) in t.ghost.last_flushed.iter_mut().zip(link.flush_last) {
                *flushed = (*flushed).max(last);
            }
            t.link.flush = Sent::No;
            t.link.flusher = 0;
            t.link.covers = 0;
            t.link.flush_line = 0;
            t.link.flush_last = [0; 2];
        });
        out.add(Step::Flushed, to);
    }
}
