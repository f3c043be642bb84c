//! Permission to go on alone (docs/protocol.md §3).

use super::bounds::{Bounds, Mode};
use super::check::gains_permission;
use super::mistake::Mistake;
use super::register::ask;
use super::state::{GENERATIONS, Purpose, Stage, State, in_history};
use super::steps::{Check, Step, Steps};

/// A generation and a nonce are left.
pub fn has_room(s: &State) -> bool {
    s.next_generation < GENERATIONS
}

/// Attempts are left.
pub fn may_attempt(b: &Bounds, s: &State) -> bool {
    s.next_nonce <= b.attempts
}

/// The register names node `i`, and knows a generation that its copy has (docs/protocol.md §4).
pub fn is_named(b: &Bounds, s: &State, i: usize) -> bool {
    let (node, register) = (&s.node[i], &s.register);
    let named = register.copies >> i & 1 == 1
        || b.mistake == Mistake::GrantToCopyBehind
        || b.mistake == Mistake::EmptyRegisterGrants && register.copies == 0;
    let line = node.line();
    let lifted = matches!(
        b.mistake,
        Mistake::GrantToCopyBehind | Mistake::EmptyRegisterGrants
    );
    let has = |generation: u8| line & in_history(generation) != 0;
    let known = has(register.generation) || has(register.parent) || lifted;
    named && known && node.instance == register.instance
}

/// The steps of node `i`.
pub fn steps(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    let node = &s.node[i];
    if b.mode == Mode::Arbiter {
        ask_to_go_alone(b, s, i, out)?;
    }
    if node.attempt != 0 && may_attempt(b, s) {
        out.add(Step::Abandon(i), s.with(|t| t.node[i].attempt = 0));
    }
    if b.mode == Mode::Always {
        always(b, s, i, out);
    }
    if node.unrecorded != 0 {
        let to = s.with(|t| {
            t.node[i].mint(node.unrecorded);
            t.node[i].unrecorded = 0;
        });
        out.add(Step::GenerationDurable(i), to);
    }
    consent(b, s, i, out)
}

fn may_ask(b: &Bounds, s: &State, i: usize) -> bool {
    let node = &s.node[i];
    !node.disk_failed && (!node.is_bad() || b.mistake == Mistake::InconsistentMayAsk)
}

fn ask_to_go_alone(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    let (node, peer) = (&s.node[i], &s.node[1 - i]);
    let closed = !s.link.open[i]
        || b.mistake == Mistake::AsksWhileMeeting && node.meeting != super::state::Meeting::No;
    let free = node.attempt == 0 && !node.may_answer && may_attempt(b, s) && has_room(s);
    if !closed || !free || !may_ask(b, s, i) {
        return Ok(());
    }
    // A Primary asks at once: no other can be one.
    let waited = !peer.lease || b.messages && node.primary || b.mistake == Mistake::ReadsAfterGrant;
    if !waited {
        return Ok(());
    }
    if b.mistake == Mistake::GenerationOfBoth && s.register.copies == 1 << i {
        let to = s.with(|t| {
            t.node[i].primary = true;
            t.node[i].was_primary = true;
            t.node[i].may_answer = true;
        });
        gains_permission(b, &to, i, "resumed")?;
        out.add(Step::GoAlone(i), to);
    } else if is_named(b, s, i) {
        ask(s, i, Purpose::GoAlone, Step::Ask(i), out);
    }
    Ok(())
}

/// `solo = always`: minted with the first write that is answered alone.
fn always(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let node = &s.node[i];
    let wants = node.write.id != 0 || s.writes < b.writes || node.alone && s.writes < 2 * b.writes;
    if s.link.open[i]
        || node.may_answer
        || !may_ask(b, s, i)
        || !has_room(s)
        || !wants
        || node.current == 0
    {
        return;
    }
    let to = s.with(|t| {
        t.node[i].primary = true;
        t.node[i].was_primary = true;
        if b.mistake == Mistake::AnswerBeforeTheMint && !node.alone {
            t.node[i].unrecorded = t.draw_generation();
        } else if !node.alone && b.mistake != Mistake::GenerationOfBoth {
            let generation = t.draw_generation();
            t.node[i].mint(generation);
        }
        t.node[i].may_answer = true;
    });
    out.add(Step::GoAlone(i), to);
}

/// The peer made its copy bad, durably, and said so.
fn consent(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    let (node, peer, link) = (&s.node[i], &s.node[1 - i], &s.link);
    let copying = link.is_source(i) && link.stage == Stage::Copying;
    let wants = node.primary && !node.may_answer && !node.disk_failed && has_room(s);
    if s.joined() && copying && peer.is_bad() && wants {
        let to = s.with(|t| {
            if !node.alone {
                let generation = t.draw_generation();
                t.node[i].mint(generation);
            }
            t.node[i].may_answer = true;
        });
        gains_permission(b, &to, i, "went on with the peer's consent")?;
        out.add(Step::ConsentMint(i), to);
    }
    Ok(())
}
