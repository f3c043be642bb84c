//! The arbiter's register: swaps that travel, are late or are lost, and what an answer grants.
//!
//! Reading it is instant here, swapping is not: the value that a swap expects is the one at the
//! time of the question, and the swap lands at any later time, or never.

use super::bounds::{Bounds, Mode};
use super::check::gains_permission;
use super::disk_failure::carry;
use super::mistake::Mistake;
use super::permission::may_attempt;
use super::state::{Purpose, Register, Request, Stage, State};
use super::steps::{Check, Step, Steps};

/// Node `i` reads the register and sends a swap, if there is room for one more on its way.
pub fn ask(s: &State, i: usize, purpose: Purpose, step: Step, out: &mut Steps) {
    let Some(slot) = s.asked.iter().position(|request| request.nonce == 0) else {
        return;
    };
    let node = &s.node[i];
    let to = s.with(|t| {
        let generation = if node.alone || purpose == Purpose::Rejoin {
            node.current
        } else {
            t.draw_generation()
        };
        t.asked[slot] = Request {
            nonce: s.next_nonce,
            node: i as u8,
            purpose,
            instance: s.register.instance,
            expects: s.register.seq,
            generation,
            parent: node.current,
            answer: None,
        };
        t.node[i].attempt = s.next_nonce;
        t.next_nonce += 1;
    });
    out.add(step, to);
}

/// In sync, the register is to name both.
pub fn rejoining(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let (node, peer, link) = (&s.node[i], &s.node[1 - i], &s.link);
    let apart = b.mistake == Mistake::CreatedApart && !link.open[i] && s.register.copies == 0;
    if apart && node.attempt == 0 && may_attempt(b, s) {
        let mut created = Steps::default();
        ask(s, i, Purpose::Rejoin, Step::Rejoin(i), &mut created);
        for (step, mut to) in created.list {
            to.node[i].instance = s.register.instance;
            out.add(step, to);
        }
    }
    if b.mode != Mode::Arbiter || !s.joined() || !may_attempt(b, s) || node.current == 0 {
        return;
    }
    let disks = !node.disk_failed && !peer.disk_failed;
    let quiet = node.attempt == 0 && peer.attempt == 0 && link.stage == Stage::Copying;
    let behind = s.register.copies != 3 || s.register.generation != node.current;
    if link.source == 0 && disks && quiet {
        let instance = s.register.instance;
        let chosen = node.primary || !peer.primary && i == 0;
        let peer_recorded = peer.instance == instance;
        if node.instance != instance {
            // *Create*: both record the instance first, the one that will create it last.
            let first = !chosen || peer_recorded;
            if first {
                out.add(Step::Record(i), s.with(|t| t.node[i].instance = instance));
            }
        } else if chosen && behind && peer_recorded {
            ask(s, i, Purpose::Rejoin, Step::Rejoin(i), out);
        }
    }
    let early = b.mistake == Mistake::RejoinWhileAlone
        && link.is_source(i)
        && link.stage == Stage::Copying
        && node.marks == 0
        && node.may_answer;
    if early && node.attempt == 0 && s.register.copies != 3 {
        ask(s, i, Purpose::Rejoin, Step::Rejoin(i), out);
    }
}

/// The register is lost, and found empty.
pub fn lost(b: &Bounds, s: &State, out: &mut Steps) {
    if s.used.wipes < b.wipes && b.mode == Mode::Arbiter {
        let to = s.with(|t| {
            t.used.wipes += 1;
            t.register = Register {
                instance: s.register.instance,
                seq: s.register.seq + 8,
                ..Register::default()
            };
        });
        out.add(Step::Wipe, to);
    }
}

/// Swaps land, answers arrive.
pub fn answers(b: &Bounds, s: &State, out: &mut Steps) -> Check {
    for slot in 0..s.asked.len() {
        let request = s.asked[slot];
        if request.nonce == 0 {
            continue;
        }
        match request.answer {
            None => {
                let fits =
                    s.register.seq == request.expects && s.register.instance == request.instance;
                let done = fits || b.mistake == Mistake::SwapWithoutSeq;
                let to = s.with(|t| {
                    if done {
                        t.register = Register {
                            instance: s.register.instance,
                            seq: s.register.seq + 1,
                            copies: if request.purpose == Purpose::Rejoin {
                                3
                            } else {
                                1 << request.node
                            },
                            generation: request.generation,
                            parent: request.parent,
                        };
                    }
                    t.asked[slot].answer = Some(done);
                });
                out.add(Step::Swap(request.nonce), to);
            }
            Some(granted) => arrive(b, s, slot, request, granted, out)?,
        }
    }
    Ok(())
}

fn arrive(
    b: &Bounds,
    s: &State,
    slot: usize,
    request: Request,
    granted: bool,
    out: &mut Steps,
) -> Check {
    let i = usize::from(request.node);
    let node = &s.node[i];
    let stale = b.mistake == Mistake::LateAnswerAccepted
        && request.purpose == Purpose::GoAlone
        && granted
        && !node.is_bad()
        && !node.disk_failed
        && !node.may_answer
        && !s.link.open[i];
    if !node.up || node.attempt != request.nonce && !stale {
        return Ok(());
    }
    let mut to = s.with(|t| {
        t.node[i].attempt = 0;
        t.asked[slot] = Request::default();
        t.asked.sort_by(|x, y| y.cmp(x));
    });
    if granted && request.purpose == Purpose::Carry {
        let peer = &s.node[1 - i];
        if s.joined() && peer.disk_failed && peer.primary {
            carry(b, &mut to, i, request.generation);
            gains_permission(b, &to, i, "carries a diskless Primary")?;
        }
    }
    if granted && request.purpose == Purpose::GoAlone {
        let asker = &mut to.node[i];
        asker.primary = true;
        asker.was_primary = true;
        asker.lease = false;
        if b.mistake == Mistake::AnswerBeforeTheMint {
            if !asker.alone {
                asker.unrecorded = request.generation;
            }
        } else if !asker.alone && request.generation != asker.current {
            asker.mint(request.generation);
        }
        asker.may_answer = true;
        gains_permission(b, &to, i, "went alone with the arbiter's word")?;
    }
    out.add(Step::Answered(request.nonce, granted), to);
    Ok(())
}
