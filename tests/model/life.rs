//! Death and life: machines crash, daemons die and start again, link ends close, disks cool.

use super::bounds::Bounds;
use super::mistake::Mistake;
use super::state::{Meeting, Node, Promoting, Sent, State, Write};
use super::steps::{Step, Steps};

/// What ends with the process in any case.
fn halt(node: &mut Node) {
    node.fail_requests();
    node.up = false;
    node.daemon_down = true;
    node.disk_failed = false;
    node.marks = 0;
    node.attempt = 0;
    node.unrecorded = 0;
    node.meeting = Meeting::No;
    node.promoting = Promoting::No;
    node.granted = false;
}

/// The machine of node `i` crashes: what is not on stable storage is gone.
pub fn crash(s: &mut State, i: usize) {
    let node = &mut s.node[i];
    halt(node);
    node.unbroken = false;
    node.data = [0; 2];
    node.daemon_down = false;
    node.late = Write::default();
    s.ghost.line[i] = s.ghost.flushed[i];
    s.ghost.last = s.ghost.last_flushed;
    s.link.open[i] = false;
    super::guest::lost_unflushed(s, i);
    s.forget_closed_session();
}

/// The daemon of node `i` dies, its machine lives. `lose`: a disk that had failed comes back
/// without what was not flushed, like the disk of a machine that crashed.
fn die(s: &mut State, i: usize, lose: bool) {
    let before = s.node[i];
    let node = &mut s.node[i];
    halt(node);
    if before.write.id != 0 && !before.write.local && !before.disk_failed {
        node.late = before.write;
    }
    if lose {
        node.data = node.stable;
        s.ghost.line[i] = s.ghost.flushed[i];
        s.ghost.last = s.ghost.last_flushed;
        super::guest::lost_unflushed(s, i);
    }
    s.link.open[i] = false;
    s.forget_closed_session();
}

/// Node `i` closes its side of the session. A Primary that is a resync target stops with it
/// (docs/protocol.md §5): it has no good copy.
pub fn close(b: &Bounds, s: &mut State, i: usize) {
    let node = &mut s.node[i];
    if node.meeting != Meeting::No {
        // The lease of a session that never was gives no read.
        node.meeting = Meeting::No;
        node.lease = false;
    }
    node.granted = false;
    if b.mistake != Mistake::GrantOutlivesSession || node.promoting != Promoting::Granted {
        node.promoting = Promoting::No;
    }
    if node.primary && node.inconsistent && !b.guest && b.mistake != Mistake::TargetServesOn {
        if !node.write.local && node.write.id != 0 {
            node.late = node.write;
        }
        node.fail_requests();
    }
    s.link.open[i] = false;
    s.forget_closed_session();
}

/// A request of a daemon or a session that is gone lands on the disk.
pub fn landing(s: &State, i: usize, out: &mut Steps) {
    let late = s.node[i].late;
    if late.id != 0 {
        let landed = s.with(|t| {
            t.node[i].data[usize::from(late.block)] = late.id;
            t.node[i].late = Write::default();
        });
        out.add(Step::Late(i), landed);
    }
}

fn write_back(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    for block in b.each_block() {
        let at = usize::from(block);
        if s.node[i].stable[at] != s.node[i].data[at] {
            let to = s.with(|t| t.node[i].stable[at] = s.node[i].data[at]);
            out.add(Step::WriteBack(i, block), to);
        }
    }
}

/// While the daemon is down.
pub fn while_down(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let node = &s.node[i];
    // The next daemon starts when the requests of the last one have ended (the fence).
    let hasty = matches!(
        b.mistake,
        Mistake::HelloBeforeLateWrite | Mistake::StartBeforeLateWrite
    );
    if node.late.id == 0 || hasty {
        let to = s.with(|t| {
            let started = &mut t.node[i];
            started.up = true;
            started.daemon_down = false;
            if !node.daemon_down {
                started.data = node.stable;
            }
            started.marks = node.durable_marks;
            if b.mistake == Mistake::BootRefreshedAtRestart {
                started.unbroken = true;
            }
            if b.mistake == Mistake::RestartKeepsPermission && node.alone {
                started.primary = true;
                started.may_answer = true;
            }
        });
        out.add(Step::Restart(i), to);
    }
    if node.daemon_down && s.used.crashes < b.crashes {
        let to = s.with(|t| {
            t.used.crashes += 1;
            crash(t, i);
        });
        out.add(Step::Crash(i), to);
    }
    if node.daemon_down {
        write_back(b, s, i, out);
    }
}

/// What may befall a node that is up.
pub fn faults(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let node = &s.node[i];
    if s.used.deaths < b.deaths {
        for lose in [false, true] {
            if lose && !node.disk_failed || !lose && node.disk_failed && node.primary {
                continue;
            }
            let to = s.with(|t| {
                t.used.deaths += 1;
                die(t, i, lose);
            });
            out.add(Step::Die(i), to);
        }
    }
    if s.used.crashes < b.crashes {
        let to = s.with(|t| {
            t.used.crashes += 1;
            crash(t, i);
        });
        out.add(Step::Crash(i), to);
    }
    if s.link.open[i] && s.used.drops < b.drops {
        let to = s.with(|t| {
            t.used.drops += 1;
            if b.mistake == Mistake::MintAtLoss
                && node.primary
                && b.mode == super::bounds::Mode::Arbiter
            {
                let generation = t.draw_generation();
                t.node[i].mint(generation);
                t.node[i].alone = false; // the mistake: nothing says that it was never used
            }
            if b.late && node.late.id == 0 {
                leave_request_at_disk(t, i);
            }
            close(b, t, i);
        });
        out.add(Step::Close(i), to);
        if b.late && to_be_applied(s, i).is_some() {
            // or it was not yet received
            let to = s.with(|t| {
                t.used.drops += 1;
                close(b, t, i);
            });
            out.add(Step::Close(i), to);
        }
    }
}

/// What the peer sent and this node's disk has not ended.
fn to_be_applied(s: &State, i: usize) -> Option<Write> {
    let link = &s.link;
    if link.sent == Sent::Sent && usize::from(link.writer) != i {
        return Some(link.write);
    }
    (link.block_sent == Sent::Sent && link.is_target(i)).then_some(Write {
        id: link.value,
        block: link.block,
        local: false,
    })
}

/// The disk hangs with a write of the peer (it is why the session is closed): it lands later.
fn leave_request_at_disk(t: &mut State, i: usize) {
    if let Some(write) = to_be_applied(t, i).filter(|write| write.id != 0) {
        t.node[i].late = Write {
            local: false,
            ..write
        };
    }
}

/// What time does.
pub fn upkeep(b: &Bounds, s: &State, i: usize, out: &mut Steps) {
    let node = &s.node[i];
    if node.lease && !s.link.is_open() {
        let to = s.with(|t| {
            t.node[i].lease = false;
            if b.mistake != Mistake::LateAcknowledgementAnswers {
                // the lease is the link's time-out: no answer of any kind outlives it
                close(b, t, i);
            }
        });
        out.add(Step::LeaseEnds(i), to);
    }
    if (b.messages || b.served_target || b.guest)
        && s.link.open[i]
        && !s.link.is_open()
        && !node.lease
    {
        let to = s.with(|t| close(b, t, i));
        out.add(Step::GivesUp(i), to);
    }
    if node.durable_marks & !node.marks != 0 {
        let to = s.with(|t| t.node[i].durable_marks &= node.marks);
        out.add(Step::Cool(i), to);
    }
    if !node.disk_failed {
        write_back(b, s, i, out);
    }
}
