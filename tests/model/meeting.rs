//! Meeting and promotion as messages (docs/protocol.md §13): each end computes the verdict from
//! what reached it, does durably what that demands, says ready, and is up by itself.
//!
//! From its hello until the session is up a node is frozen: it neither asks the arbiter nor mints.

use super::bounds::Bounds;
use super::check::is_alarm;
use super::guest;
use super::life::close;
use super::mistake::Mistake;
use super::permission;
use super::resync::{become_target, overwrites};
use super::roles::may_lead;
use super::state::{Meeting, Plan, Promoting, Reply, Session, Stage, State};
use super::steps::{Check, Step, Steps};
use super::verdict::{Outcome, View, verdict};

/// A new connection: both ends begin to meet, and what an older session had is over.
pub fn connect(b: &Bounds, s: &State, out: &mut Steps) {
    let may = s.node[0].up && s.node[1].up && !s.link.is_open() && s.used.handshakes < b.handshakes;
    if !may {
        return;
    }
    let to = s.with(|t| {
        t.used.handshakes += 1;
        for i in 0..2 {
            if t.link.open[i] {
                close(b, t, i);
            }
        }
        t.link = Session {
            open: [true, true],
            ..Session::default()
        };
        for node in &mut t.node {
            node.meeting = Meeting::Connected;
            // Pings are echoed from the first moment (docs/protocol.md §8).
            node.lease = true;
        }
    });
    out.add(Step::Connect, to);
}

/// Node `i` in a meeting: hello, verdict, ready, up.
pub fn greeting(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    let (node, link) = (&s.node[i], &s.link);
    if !link.open[i] {
        return Ok(());
    }
    match node.meeting {
        Meeting::No => {}
        Meeting::Connected => {
            // not while a request of an older session is on its way to the disk
            if node.late.id == 0 || b.mistake == Mistake::HelloBeforeLateWrite {
                let to = s.with(|t| {
                    if b.mistake != Mistake::AttemptSurvivesHandshake {
                        t.node[i].attempt = 0;
                    }
                    t.node[i].meeting = Meeting::Greeted;
                    t.link.hello[i] = Some(View::of(node, i));
                });
                out.add(Step::Greet(i), to);
            }
        }
        Meeting::Greeted => {
            if let Some(theirs) = link.hello[1 - i] {
                let mut to = *s;
                to.link.hello[1 - i] = None;
                judge(b, s, &mut to, i, &theirs)?;
                out.add(Step::TakeHello(i), to);
            }
        }
        Meeting::Ready(plan) => {
            if let Some(marks) = link.ready[1 - i] {
                let mut to = *s;
                to.link.ready[1 - i] = None;
                come_up(b, &mut to, i, plan, marks)?;
                out.add(Step::TakeReady(i), to);
            }
        }
    }
    Ok(())
}

/// The verdict, what it demands of node `i` durably, and its ready.
fn judge(b: &Bounds, s: &State, t: &mut State, i: usize, theirs: &View) -> Check {
    let node = &s.node[i];
    let found = verdict(&View::of(node, i), theirs, b.mistake);
    let plan = match found.outcome {
        Outcome::Nothing => {
            t.node[i].base = 0;
            t.node[i].unbroken = true;
            Plan::Nothing
        }
        Outcome::Resync { source, full } => {
            if usize::from(source) == i {
                if full {
                    t.node[i].marks = b.all_marks();
                    t.node[i].durable_marks = b.all_marks();
                }
            } else if b.mistake == Mistake::ReadyBeforeInconsistent {
                t.node[i].fail_requests();
            } else {
                become_target(b, t, i, theirs);
            }
            Plan::Resync { source, full }
        }
        Outcome::First { source } => {
            if usize::from(source) == i {
                let generation = t.draw_generation();
                t.node[i].mint(generation);
                t.node[i].alone = b.mistake == Mistake::FirstMintedAlone;
            }
            Plan::First { source }
        }
        Outcome::Serve => {
            close(b, t, i);
            return Ok(());
        }
        Outcome::Refuse(refused) => {
            if let Some(alarm) = is_alarm(b, s, refused) {
                return Err(alarm);
            }
            close(b, t, i);
            return Ok(());
        }
    };
    t.node[i].meeting = Meeting::Ready(plan);
    t.link.ready[i] = Some(t.node[i].marks);
    Ok(())
}

/// Node `i` has said ready and heard it: the session is up for it.
fn come_up(b: &Bounds, t: &mut State, i: usize, plan: Plan, marks: u8) -> Check {
    t.node[i].meeting = Meeting::No;
    match plan {
        Plan::Nothing => {
            if t.node[i].may_answer {
                return Err("One-writer: alone in a generation that the peer has".into());
            }
            if t.node[0].data != t.node[1].data
                && t.link.is_open()
                && t.node[1 - i].meeting != Meeting::No
            {
                return Err("No-silent-fork: verdict `nothing` over different copies".into());
            }
        }
        Plan::Resync { source, full } => {
            let first = t.link.source == 0;
            if usize::from(source) != i || first {
                overwrites(b, t, usize::from(source), full)?;
            }
            t.link.source = source + 1;
            let mut joined = t.node[i].marks | marks;
            if full {
                joined = b.all_marks();
            }
            if b.mistake != Mistake::MarksNotJoined {
                t.node[i].marks = joined;
            }
            if usize::from(source) != i && b.mistake == Mistake::TargetTrustsMeeting {
                t.link.stale = joined;
            }
        }
        Plan::First { source } => {
            t.link.source = source + 1;
            if usize::from(source) == i {
                t.link.stage = Stage::Offered;
                t.link.offered = t.node[i].current;
                t.link.offered_history = t.node[i].history;
            }
        }
    }
    Ok(())
}

/// A promotion in a session, message by message; node `i`'s part of it.
///
/// Errors: an invariant is broken.
pub fn promotion(b: &Bounds, s: &State, i: usize, out: &mut Steps) -> Check {
    let (node, peer, link) = (&s.node[i], &s.node[1 - i], &s.link);
    let p = 1 - i;
    let outlives = b.mistake == Mistake::GrantOutlivesSession;
    if !(s.in_session(i) || outlives && node.promoting == Promoting::Granted) {
        return Ok(());
    }
    let unasked =
        node.promoting == Promoting::No && !node.granted && !node.primary && !peer.primary;
    let room = s.used.promotions < b.promotions && !link.ask[i] && link.reply[p] == Reply::None;
    if unasked && room && may_lead(b, s, i) && !peer.disk_failed {
        let to = s.with(|t| {
            if b.promotions < 9 {
                t.used.promotions += 1;
            }
            t.node[i].promoting = Promoting::Asked;
            t.link.ask[i] = true;
        });
        out.add(Step::AskPeer(i), to);
    }
    if link.ask[p] && s.in_session(i) {
        let asks_itself =
            node.promoting == Promoting::Granted || node.promoting == Promoting::Asked && i < p;
        let refuses = node.primary || asks_itself && b.mistake != Mistake::BothGrant;
        let of_target = b.guest && link.is_target(p) && !refuses;
        if of_target && (link.stage != Stage::Copying || !permission::has_room(s)) {
            return Ok(()); // it is in sync in a moment
        }
        let mut begun = *s;
        if of_target {
            guest::go_alone(b, &mut begun, i)?;
        }
        let to = begun.with(|t| {
            t.link.ask[p] = false;
            if refuses {
                t.link.reply[i] = Reply::Refuse;
            } else {
                if b.mistake != Mistake::GrantKeepsWasPrimary {
                    t.node[i].was_primary = false;
                }
                t.node[i].granted = true;
                t.link.reply[i] = Reply::Grant;
                if link.is_target(p) && b.mistake != Mistake::TargetTrustsMeeting {
                    t.link.stale = node.marks;
                }
            }
        });
        out.add(Step::TakeAsk(i), to);
    }
    if link.reply[p] != Reply::None && s.in_session(i) {
        let to = s.with(|t| {
            t.node[i].promoting = match link.reply[p] {
                Reply::Grant => Promoting::Granted,
                _ => Promoting::No,
            };
            t.link.reply[p] = Reply::None;
            if b.guest && link.is_target(i) && t.node[i].promoting == Promoting::Granted {
                // It has nothing to record.
                t.node[i].promoting = Promoting::No;
                guest::become_guest(b, t, i);
            }
        });
        out.add(Step::TakeReply(i), to);
    }
    if node.promoting == Promoting::Granted && (may_lead(b, s, i) || outlives) {
        let to = s.with(|t| {
            t.node[i].promoting = Promoting::No;
            t.node[i].was_primary = true;
            t.node[i].primary = true;
            t.node[i].lease |= outlives;
            t.link.served |= link.is_target(i);
        });
        out.add(Step::BecomePrimary(i), to);
    }
    Ok(())
}
