//! Who is Primary: promotion in a session and without one, demotion, leaving, and force.

use super::bounds::{Bounds, Mode};
use super::check::gains_permission;
use super::guest;
use super::life;
use super::mistake::Mistake;
use super::permission;
use super::state::{Register, Sent, Stage, State};
use super::steps::{Check, Step, Steps};

/// May node `i` be Primary in the session that it is in?
pub fn may_lead(b: &Bounds, s: &State, i: usize) -> bool {
    let (node, link) = (&s.node[i], &s.link);
    if node.disk_failed || node.outdated || node.current == 0 && !link.is_target(i) {
        return false;
    }
    // A target is served from the source's copy as long as that has everything.
    let served = b.served_target || b.guest;
    let target = link.is_target(i) && link.stage == Stage::Copying && served;
    let good = !node.inconsistent && (link.source == 0 || link.is_source(i));
    good || target
}

/// The peer grants, in one step: it is Secondary, and forgets that it was Primary.
///
/// Errors: an invariant is broken.
pub fn promote_connected(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    let (node, peer) = (&s.node[i], &s.node[1 - i]);
    if !s.link.is_open()
        || node.primary
        || peer.primary
        || peer.disk_failed
        || s.used.promotions >= b.promotions
        || !may_lead(b, s, i)
    {
        return Ok(());
    }
    if b.guest && s.link.is_target(i) {
        return promote_guest(b, s, i, out);
    }
    let to = s.with(|t| {
        if b.promotions < 9 {
            t.used.promotions += 1;
        }
        if b.mistake != Mistake::GrantKeepsWasPrimary {
            t.node[1 - i].was_primary = false;
        }
        t.node[i].primary = true;
        t.node[i].was_primary = true;
        t.node[i].lease = true;
        if s.link.is_target(i) {
            // The grant carries the source's marks: in these this copy is behind.
            t.link.served = true;
            t.link.stale = peer.marks;
        }
    });
    out.add(Step::Promote(i), to);
    Ok(())
}

/// The source grants once it has a generation of its own.
fn promote_guest(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    if permission::has_room(s) {
        let mut to = *s;
        if b.promotions < 9 {
            to.used.promotions += 1;
        }
        guest::go_alone(b, &mut to, 1 - i)?;
        guest::become_guest(b, &mut to, i);
        out.add(Step::Promote(i), to);
    }
    Ok(())
}

/// The other changes of role.
pub fn steps(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    let (node, peer) = (&s.node[i], &s.node[1 - i]);
    let wrong = b.mistake == Mistake::FormerPrimaryNeedNotAsk;
    if wrong && !node.primary && node.was_primary && !node.is_bad() && !s.link.open[i] {
        let to = s.with(|t| {
            if !node.alone {
                let generation = t.draw_generation();
                t.node[i].mint(generation);
            }
            t.node[i].primary = true;
            t.node[i].may_answer = true;
        });
        gains_permission(b, &to, i, "promoted itself")?;
        out.add(Step::Promote(i), to);
    }
    demote(b, s, i, out);
    give_up_without_a_disk(b, s, i, out);
    promote_carrier(b, s, i, out)?;
    demote_carrier(b, s, i, out);
    if node.may_answer && !node.primary && !s.link.open[i] && !node.disk_failed {
        // A guest reads nothing without its source.
        let waited = !peer.lease || b.guest || b.mistake == Mistake::SourceDoesNotWait;
        if waited {
            let to = s.with(|t| {
                t.node[i].primary = true;
                t.node[i].was_primary = true;
            });
            gains_permission(b, &to, i, "promoted as the only copy")?;
            out.add(Step::PromoteAlone(i), to);
        }
    }
    force(b, s, i, out);
    leave(b, s, i, out);
    Ok(())
}

/// A hand-over: nothing is under way, everything is on both disks. In a resynchronisation all of it is on the source's.
fn demote(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let (node, link) = (&s.node[i], &s.link);
    let idle = node.write.id == 0 && link.flush == Sent::No;
    let all_flushed = s.ghost.line[i] == s.ghost.flushed[i];
    if !s.joined() || !node.primary || node.disk_failed || !idle || guest::is_guest(b, node) {
        return;
    }
    let in_sync = link.source == 0 && node.marks == 0 && !node.may_answer && all_flushed;
    let as_source = (b.served_target || b.guest)
        && link.is_source(i)
        && link.stage == Stage::Copying
        && all_flushed;
    let source_has_all = s.ghost.line[1 - i] & !s.ghost.flushed[1 - i] == 0;
    let told = link.cleared == 0 || b.mistake == Mistake::HandBackBeforeCleared;
    let as_target = link.is_target(i) && link.own == 0 && told && source_has_all;
    if in_sync || as_source || as_target {
        let to = s.with(|t| {
            t.node[i].primary = false;
            t.node[i].lease = false;
            t.node[i].seen = [0; super::state::BLOCKS];
            t.node[i].passed = false;
            t.node[1 - i].granted = false;
            if in_sync {
                t.node[i].was_primary = false;
            }
        });
        out.add(Step::Demote(i), to);
    }
}

/// A Primary without a disk is demoted: everything that it was answered its carrier has. Without a carrier
/// it fails what waits, and closes the session as any Secondary without a disk.
fn give_up_without_a_disk(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let (node, link) = (&s.node[i], &s.link);
    if !node.primary || !node.disk_failed || !s.joined() || guest::is_guest(b, node) {
        return;
    }
    let carried = s.node[1 - i].may_answer;
    let idle = node.write.id == 0 && link.sent == Sent::No && link.flush == Sent::No;
    if carried && !idle {
        return;
    }
    let to = s.with(|t| {
        t.node[i].fail_requests();
        t.node[1 - i].granted = false;
        if !carried {
            life::close(b, t, i);
        }
    });
    out.add(Step::Demote(i), to);
}

/// Whoever carried a Primary without a disk is promoted in that session, once that is none any more: it has
/// a generation of its own, and nobody but itself has a disk to be Primary with.
fn promote_carrier(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    let (node, peer) = (&s.node[i], &s.node[1 - i]);
    let told = !peer.primary || b.mistake == Mistake::CarrierBesideThePrimary;
    let able = node.may_answer && !node.disk_failed && !node.is_bad() && !node.primary;
    if !s.joined() || !peer.disk_failed || !told || !able || s.used.promotions >= b.promotions {
        return Ok(());
    }
    let to = s.with(|t| {
        if b.promotions < 9 {
            t.used.promotions += 1;
        }
        t.node[i].primary = true;
        t.node[i].was_primary = true;
        t.node[i].lease = true;
    });
    gains_permission(b, &to, i, "promoted as the carrier")?;
    out.add(Step::PromoteCarrier(i), to);
    Ok(())
}

/// It is demoted again, and stays what it was before: the only copy, in that session.
fn demote_carrier(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let (node, peer) = (&s.node[i], &s.node[1 - i]);
    let carrier = node.may_answer && !node.disk_failed && peer.disk_failed && s.link.source == 0;
    let idle = node.write.id == 0;
    if s.joined() && node.primary && carrier && idle && b.disk_failures > 0 {
        let to = s.with(|t| {
            t.node[i].primary = false;
            t.node[i].lease = false;
        });
        out.add(Step::Demote(i), to);
    }
}

fn force(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let node = &s.node[i];
    if s.used.orders >= b.force
        || s.link.open[i]
        || node.may_answer
        || node.disk_failed
        || !permission::has_room(s)
    {
        return;
    }
    for reaches in [false, true] {
        if reaches && b.mode != Mode::Arbiter {
            continue;
        }
        let to = s.with(|t| {
            t.used.orders += 1;
            let generation = t.draw_generation();
            let forced = &mut t.node[i];
            forced.mint(generation);
            forced.forced_bad = node.is_bad();
            forced.inconsistent = false;
            forced.outdated = false;
            forced.primary = true;
            forced.was_primary = true;
            forced.may_answer = true;
            forced.attempt = 0;
            t.ghost.forced = true;
            if reaches {
                t.register = Register {
                    instance: s.register.instance,
                    seq: s.register.seq + 1,
                    copies: 1 << i,
                    generation,
                    parent: node.current,
                };
            }
        });
        out.add(Step::Force(i, reaches), to);
    }
}

/// A Secondary leaves cleanly: Outdated, durably; it is a target from here on.
fn leave(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let (node, peer, link) = (&s.node[i], &s.node[1 - i], &s.link);
    let quiet = link.sent == Sent::No && link.flush == Sent::No;
    let good = !node.disk_failed && !peer.disk_failed && !node.primary;
    let asks = node.attempt != 0 || peer.attempt != 0;
    if b.leave && good && s.joined() && link.source == 0 && quiet && !asks && s.used.orders == 0 {
        let to = s.with(|t| {
            t.used.orders += 1;
            t.node[i].outdated = true;
            t.link.source = (1 - i) as u8 + 1;
        });
        out.add(Step::Leave(i), to);
    }
}
