//! One copy is brought up to date from the other (docs/protocol.md §5): begun, copied, offered, adopted, settled.

use super::bounds::Bounds;
use super::guest;
use super::mistake::Mistake;
use super::name;
use super::state::{Node, Sent, Session, Stage, State, mark};
use super::steps::{Check, Step, Steps, has};
use super::verdict::View;

/// What the target does, durably, before the first block comes.
pub fn become_target(b: &Bounds, t: &mut State, target: usize, source: &View) {
    if !guest::stays(b, &t.node[target], source) {
        t.node[target].fail_requests();
    }
    if b.mistake != Mistake::TargetNotInconsistent {
        t.node[target].inconsistent = true;
    }
    t.node[target].zeroed = false;
}

/// Would this resynchronisation overwrite something that was promised?
pub fn overwrites(b: &Bounds, s: &State, source: usize, full: bool) -> Check {
    let target = 1 - source;
    let excused = s.used.replaced > 0 || s.node[0].current == 0 || s.node[1].current == 0;
    if full && b.promises(s.ghost.forced) && !excused {
        return Err("Converges: a full resync although every difference is marked".into());
    }
    let lost = s.ghost.flushed[target] & s.ghost.kept & !s.ghost.line[source];
    if lost != 0 {
        return Err(format!(
            "No-silent-fork: a resync from {} overwrites flushed writes of {}",
            name(source),
            name(target)
        ));
    }
    let (from, to) = (&s.node[source], &s.node[target]);
    let only_there = s.ghost.line[target] & !s.ghost.line[source] != 0;
    if from.current == to.current && to.unbroken && !to.is_bad() && only_there {
        return Err(format!(
            "Read-your-writes: a resync from {} drops answered writes that {} still has",
            name(source),
            name(target)
        ));
    }
    Ok(())
}

/// The session comes up as a resynchronisation, in one step.
pub fn begin(b: &Bounds, s: &State, t: &mut State, source: usize, full: bool) -> Check {
    let target = 1 - source;
    overwrites(b, s, source, full)?;
    let joined = if full {
        b.all_marks()
    } else {
        s.node[0].marks | s.node[1].marks
    };
    t.link = Session {
        open: [true, true],
        source: source as u8 + 1,
        ..Session::default()
    };
    t.node[source].marks = joined;
    t.node[target].marks = joined;
    if full {
        // It must survive a crash of the source as a full one: it is marked durably first.
        t.node[source].durable_marks |= joined;
    }
    become_target(b, t, target, &View::of(&s.node[source], source));
    t.node[source].lease = t.node[source].primary;
    if b.mistake == Mistake::AdoptAtStart {
        t.link.offered = t.node[source].current;
        t.link.offered_history = t.node[source].history;
        let inconsistent = t.node[target].inconsistent;
        adopt(b, t, target);
        t.node[target].inconsistent = inconsistent;
    }
    Ok(())
}

/// The target takes the offered generation: one durable write.
fn adopt(b: &Bounds, t: &mut State, target: usize) {
    let (current, history, own) = (t.link.offered, t.link.offered_history, t.link.own);
    let was_guest = guest::is_guest(b, &t.node[target]);
    let node = &mut t.node[target];
    let serves = node.primary;
    *node = Node {
        current,
        history,
        base: 0,
        alone: false,
        inconsistent: false,
        outdated: false,
        forced_bad: false,
        zeroed: false,
        unbroken: true,
        was_primary: serves,
        ..*node
    };
    node.marks = if serves && b.mistake != Mistake::TargetForgetsMarks {
        own
    } else {
        0
    };
    if was_guest {
        guest::adopted(t, target);
    }
}

/// The steps of a resynchronisation.
pub fn steps(b: &Bounds, s: &State, out: &mut Steps) -> Check {
    let link = &s.link;
    if link.source == 0 {
        return Ok(());
    }
    let source = usize::from(link.source) - 1;
    let target = 1 - source;
    if s.in_session(source) && link.stage == Stage::Copying {
        send(b, s, source, out);
        flush(b, s, source, out);
        offer(b, s, source, out)?;
    }
    if link.block_sent == Sent::Sent && s.in_session(target) && !s.node[target].disk_failed {
        let to = s.with(|t| {
            // What a serving target wrote itself is newer than anything that was sent.
            if !link.served
                || b.guest
                || has(link.stale, link.block)
                || b.mistake == Mistake::TargetTakesOldBlock
            {
                t.node[target].data[usize::from(link.block)] = link.value;
            }
            if link.served && !b.guest {
                t.link.stale &= !mark(link.block);
            }
            t.link.block_sent = Sent::Applied;
        });
        out.add(Step::ApplyBlock, to);
    }
    if link.block_sent == Sent::Applied && link.open[source] {
        let to = s.with(|t| {
            t.link.block_sent = Sent::No;
            t.link.received |= mark(link.block);
            t.link.block = 0;
            t.link.value = 0;
        });
        out.add(Step::AcknowledgeBlock, to);
    }
    if link.cleared != 0 && link.open[source] {
        let to = s.with(|t| {
            t.node[source].marks &= !link.cleared;
            t.link.cleared = 0;
        });
        out.add(Step::TellCleared, to);
    }
    if link.stage == Stage::Offered {
        guest::put_off(b, s, target, out);
    }
    let ready = guest::may_adopt(b, s, target);
    if link.stage == Stage::Offered && s.in_session(target) && ready {
        let to = s.with(|t| {
            adopt(b, t, target);
            t.link.stage = Stage::Adopted;
        });
        out.add(Step::Adopt, to);
    }
    if link.stage == Stage::Adopted && s.in_session(source) {
        let to = s.with(|t| {
            t.node[source].base = 0;
            t.node[source].unbroken = true;
            t.node[source].zeroed = false;
            t.link = Session {
                source: 0,
                stage: Stage::Copying,
                offered: 0,
                offered_history: 0,
                stale: 0,
                served: false,
                own: 0,
                cleared: 0,
                received: 0,
                ..*link
            };
        });
        out.add(Step::Settle, to);
    }
    Ok(())
}

fn send(b: &Bounds, s: &State, source: usize, out: &mut Steps) {
    let (node, link) = (&s.node[source], &s.link);
    if link.block_sent != Sent::No {
        return;
    }
    let under_flush = if link.flush == Sent::No {
        0
    } else {
        link.covers
    };
    for block in b.each_block() {
        let busy = node.write.id != 0
            && node.write.block == block
            && b.mistake != Mistake::WriteOvertakesBlock;
        if has(node.marks & !link.received & !under_flush, block) && !busy {
            let to = s.with(|t| {
                t.link.block_sent = Sent::Sent;
                t.link.block = block;
                t.link.value = node.data[usize::from(block)];
            });
            out.add(Step::SendBlock(block), to);
        }
    }
}

fn flush(b: &Bounds, s: &State, source: usize, out: &mut Steps) {
    let link = &s.link;
    if link.flush != Sent::No || link.received == 0 {
        return;
    }
    let to = s.with(|t| {
        if b.mistake != Mistake::NoSourceFlush {
            t.node[source].stable = s.node[source].data;
            t.ghost.flushed[source] |= s.ghost.line[source];
        }
        t.link.flush = Sent::Sent;
        t.link.flusher = source as u8;
        t.link.covers = link.received;
    });
    out.add(Step::FlushBlocks, to);
}

/// Step 4: the source is alone no longer, durably, and offers its generation.
fn offer(b: &Bounds, s: &State, source: usize, out: &mut Steps) -> Check {
    let (node, link, target) = (&s.node[source], &s.link, 1 - source);
    let done = node.marks == 0 && link.block_sent == Sent::No && link.flush == Sent::No;
    if !done || node.write.id != 0 || node.attempt != 0 {
        return Ok(());
    }
    if b.guest && link.reply[source] == super::state::Reply::Grant {
        return Ok(()); // the grant goes before the offer, on one stream
    }
    let guest = guest::is_guest(b, &s.node[target]);
    if guest && !link.served && link.open[target] {
        return Ok(()); // first it is served
    }
    let serves = s.node[target].primary && !guest;
    if link.open[target] {
        let pending = if link.sent == Sent::No || guest {
            0
        } else {
            mark(link.write.block)
        };
        for block in b
            .each_block()
            .filter(|block| !has(link.own | pending, *block))
        {
            let at = usize::from(block);
            if s.node[target].data[at] != node.data[at] {
                return Err("Cleared-only-when-equal: caught up with different copies".into());
            }
        }
    }
    let to = s.with(|t| {
        t.node[source].alone = false;
        t.node[source].may_answer = b.mistake == Mistake::OfferWhileAlone && node.may_answer;
        if node.primary && link.open[target] {
            t.node[source].lease = true;
        }
        if b.mistake == Mistake::BaseClearedAtOffer {
            t.node[source].base = 0;
        }
        t.link.stage = Stage::Offered;
        t.link.offered = node.current;
        t.link.offered_history = node.history;
        if link.open[target] {
            let line = s.ghost.line[source];
            if serves {
                // All of it but what the target itself wrote and has not flushed.
                let unflushed = s.ghost.line[target] & !s.ghost.flushed[target];
                t.ghost.line[target] = line;
                t.ghost.flushed[target] = line & !unflushed;
            } else {
                t.ghost.line[target] = line;
                t.ghost.flushed[target] = line;
                t.ghost.flushed[source] = line;
            }
        }
    });
    out.add(Step::Offer, to);
    Ok(())
}
