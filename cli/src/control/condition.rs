//! The state of a mirror in a word, and what a person is to do about it.
//!
//! A function of the report's other fields, and of who starts the daemon that makes it, so that the daemon, scripts and the
//! screen agree.

use super::report::{
    Condition, Connection, Disk, MirrorReport, Refusal, Replication, Role, StatusReport,
};
use crate::unit::Starter;

/// Exit status of `kagami status --exit-code`, the worst of all mirrors.
pub fn exit_code(report: &StatusReport) -> u8 {
    report
        .mirrors
        .iter()
        .map(|mirror| code(mirror.condition).max(if lacks_help(mirror) { 11 } else { 0 }))
        .max()
        .unwrap_or(0)
}

/// In sync, and something needs a person before a node is lost: the arbiter can't be used, so neither copy may go on
/// alone; or blocks are marked that a verification found different.
fn lacks_help(mirror: &MirrorReport) -> bool {
    match mirror.condition {
        Condition::InSync => mirror.arbiter_fault.is_some() || mirror.marked_bytes > 0,
        Condition::Verifying => mirror.arbiter_fault.is_some(),
        _ => false,
    }
}

/// Exit status for a mirror of which nothing else is told: 0 in sync, 10 resynchronising, 11 alone, 12 not usable here,
/// 13 split brain.
pub fn code(condition: Condition) -> u8 {
    match condition {
        Condition::InSync | Condition::Verifying => 0,
        Condition::Resynchronising | Condition::Paused | Condition::Meeting => 10,
        Condition::Alone | Condition::OneCopy => 11,
        Condition::Connecting
        | Condition::StandAlone
        | Condition::Held
        | Condition::Unusable
        | Condition::Refused
        | Condition::BothStale
        | Condition::NotPaired
        | Condition::Opening
        | Condition::NotOpened => 12,
        Condition::SplitBrain => 13,
    }
}

/// Fills in `condition` and `next` from the other fields.
pub fn judge(mirror: &mut MirrorReport) {
    mirror.condition = condition(mirror);
    mirror.next = next(mirror);
}

/// The state in a word.
pub fn condition(mirror: &MirrorReport) -> Condition {
    if mirror.fault.is_some() {
        return if mirror.opening {
            Condition::Opening
        } else {
            Condition::NotOpened
        };
    }
    if mirror.peer.is_none() {
        // Nobody else has a copy: where it serves, it serves alone.
        return match mirror.role {
            _ if matches!(mirror.disk, Disk::Diskless | Disk::Failed) => Condition::Unusable,
            Role::Primary => Condition::Alone,
            Role::Secondary => Condition::NotPaired,
        };
    }
    if mirror.connection == Connection::Connected {
        return connected(mirror);
    }
    match mirror.verdict.as_ref().and_then(|verdict| verdict.refused) {
        Some(Refusal::SplitBrain) => return Condition::SplitBrain,
        Some(Refusal::BothStale) => return Condition::BothStale,
        // A refused handshake does not end what this copy has permission for.
        Some(_) if mirror.alone.is_none() => return Condition::Refused,
        _ => {}
    }
    if mirror.held.is_some() {
        return Condition::Held;
    }
    if mirror.alone.is_some() {
        return Condition::Alone;
    }
    match (mirror.disk, mirror.connection) {
        (Disk::Diskless | Disk::Failed | Disk::Inconsistent, _) => Condition::Unusable,
        (_, Connection::StandAlone) => Condition::StandAlone,
        _ => Condition::Connecting,
    }
}

fn connected(mirror: &MirrorReport) -> Condition {
    match mirror.verdict.as_ref().and_then(|verdict| verdict.refused) {
        Some(Refusal::SplitBrain) => return Condition::SplitBrain,
        Some(Refusal::BothStale) => return Condition::BothStale,
        Some(_) => return Condition::Refused,
        None => {}
    }
    if mirror.held.is_some() {
        return Condition::Held;
    }
    let diskless = |disk| matches!(disk, Disk::Diskless | Disk::Failed);
    match mirror.replication {
        Replication::SyncSource | Replication::SyncTarget => {
            if mirror.progress.as_ref().is_some_and(|p| p.paused) {
                Condition::Paused
            } else {
                Condition::Resynchronising
            }
        }
        Replication::PausedSync => Condition::Paused,
        Replication::VerifySource | Replication::VerifyTarget => Condition::Verifying,
        _ if diskless(mirror.disk) || mirror.peer.as_ref().is_some_and(|p| diskless(p.disk)) => {
            Condition::OneCopy
        }
        Replication::Established => Condition::InSync,
        Replication::Off => Condition::Meeting,
    }
}

/// What to do, a line each.
pub fn next(mirror: &MirrorReport) -> Vec<String> {
    let mut lines: Vec<String> = chosen(mirror).into_iter().collect();
    lines.extend(by_condition(mirror));
    lines.extend(arbiter(mirror));
    lines
}

/// An operator's word that waits for the peer.
pub fn chosen(mirror: &MirrorReport) -> Option<String> {
    let chosen = mirror.chosen.as_ref()?;
    let (name, node) = (&mirror.name, &chosen.node);
    let peer = mirror.peer.as_ref().map_or("the peer", |p| p.name.as_str());
    let zone = jiff::tz::TimeZone::system();
    let until = crate::render::units::moment(chosen.until_ms, 0, &zone);
    Some(format!(
        "a word waits: {node}'s copy stays when {peer} is met before {until}; `kagami disconnect {name}` or a promotion takes it back"
    ))
}

/// Who starts and stops the daemon here, and likely at the peer.
fn starter() -> Starter {
    Starter::of_this_process()
}

/// Another disk, and the very same one.
fn new_disk(mirror: &MirrorReport) -> String {
    format!(
        "for a new disk `{}`, `kagami replace-disk {}`, `{}` on that node",
        starter().down(),
        mirror.name,
        starter().up()
    )
}

/// What waits for an arbiter that can't be used. Where requests do, the condition's own line says so.
fn arbiter(mirror: &MirrorReport) -> Option<String> {
    let fault = mirror.arbiter_fault.as_ref()?;
    let arbiter = mirror.arbiter.as_ref()?;
    let waits = match mirror.condition {
        Condition::InSync | Condition::Verifying => {
            "neither node may go on alone if the other is lost"
        }
        Condition::Alone | Condition::Resynchronising | Condition::Paused => {
            "no resynchronisation comes to its end"
        }
        _ => return None,
    };
    Some(if fault.refused {
        format!(
            "until arbiter {arbiter} lets this node use it again, {waits}; `kagami arbiter use` gives the mirror another one"
        )
    } else {
        format!("see to arbiter {arbiter}: until it answers, {waits}")
    })
}

fn by_condition(mirror: &MirrorReport) -> Vec<String> {
    let name = &mirror.name;
    let peer = mirror.peer.as_ref().map_or("the peer", |p| p.name.as_str());
    let line = |text: String| vec![text];
    match mirror.condition {
        Condition::InSync if mirror.marked_bytes > 0 => line(repair(mirror, peer)),
        Condition::InSync
        | Condition::Verifying
        | Condition::Resynchronising
        | Condition::Meeting => Vec::new(),
        Condition::Paused => line(resume(mirror, peer)),
        Condition::Alone if mirror.peer.is_none() => line(format!(
            "no other node has a copy: `kagami pair {name}` brings one"
        )),
        Condition::Alone
            if mirror.connection == Connection::StandAlone
                && mirror.verdict.as_ref().is_none_or(|v| v.refused.is_none()) =>
        {
            line(format!(
                "`kagami connect {name}` looks for {peer} again; it resynchronises by itself then"
            ))
        }
        Condition::Alone => match mirror.verdict.as_ref().and_then(|v| v.refused) {
            Some(refusal) => refused(mirror, refusal),
            None if left_by_itself(mirror) => line(left(name, peer)),
            None => line(format!(
                "when {peer} is back it resynchronises by itself; nothing to do"
            )),
        },
        // Its copy is brought up to date with the peer's then, and what the kernel holds belongs to neither.
        Condition::OneCopy if has_lost_disk(mirror) && mirror.device.is_some() => line(format!(
            "{peer} serves from the only copy; to replace the disk here end who uses the device, `kagami detach {name}` (it becomes stale otherwise), and start kagami here again with the very same disk; {}", new_disk(mirror)
        )),
        Condition::OneCopy => {
            let (where_, whose) = if has_lost_disk(mirror) {
                ("here", format!("{peer} serves"))
            } else {
                ("there", "this node serves".to_owned())
            };
            line(format!(
                "{whose} from the only copy; if the very same disk comes back {where_}, start that daemon again: it resynchronises by itself; {}",
                new_disk(mirror)
            ))
        }
        Condition::Connecting => line(match (mirror.role, mirror.disk) {
            (Role::Secondary, Disk::Outdated) => format!(
                "start kagami on {peer}, or check the way to it; this copy is older than {peer}'s: `kagami promote {name} --force` would lose {peer}'s newer writes"
            ),
            _ => format!(
                "start kagami on {peer}, or check the way to it; {}",
                without_peer(mirror, peer)
            ),
        }),
        Condition::StandAlone => line(format!("`kagami connect {name}` looks for {peer} again")),
        // The peer is there, and may not go on: this node has its permission, and not its disk.
        Condition::Held if has_lost_disk(mirror) && mirror.connection == Connection::Connected => {
            line(format!(
                "this node's disk failed when it was to go on alone, so {peer} may not: put this very disk right and start kagami here again; if it can't be, `{}` here and `kagami promote {name} --force` on {peer}",
                starter().down()
            ))
        }
        Condition::Held | Condition::Unusable if is_guest(mirror) => line(format!(
            "start kagami on {peer}, or check the way to it: it answers for this node until the resynchronisation ends; to give the service back, `kagami demote {name} --force` here and `kagami promote {name}` on {peer}"
        )),
        Condition::Held => line(format!(
            "start kagami on {peer}, or check the way to it; {}",
            without_peer(mirror, peer)
        )),
        // It has nothing to serve, and does not look for the peer.
        Condition::Unusable if has_lost_disk(mirror) && mirror.role == Role::Secondary => {
            let or_elsewhere = if mirror.disk_fault.is_some() {
                ", or write into the configuration where it is now,"
            } else {
                ""
            };
            line(format!(
                "put this node's disk right{or_elsewhere} and start kagami here again ({}); {peer} can serve meanwhile",
                new_disk(mirror)
            ))
        }
        Condition::Unusable => match mirror.disk {
            Disk::Inconsistent => line(format!(
                "start kagami on {peer}, or check the way to it: the resynchronisation goes on where it stopped"
            )),
            _ => vec![
                format!("start kagami on {peer}: it can serve from its copy"),
                format!("put this node's disk right and start kagami here again; {}", new_disk(mirror)),
            ],
        },
        Condition::SplitBrain => refused(mirror, Refusal::SplitBrain),
        Condition::BothStale => refused(mirror, Refusal::BothStale),
        Condition::Refused => match mirror.verdict.as_ref().and_then(|v| v.refused) {
            Some(refusal) => refused(mirror, refusal),
            None => Vec::new(),
        },
        Condition::NotPaired => line(format!(
            "`kagami promote {name}` serves it from here; `kagami pair {name}` brings a second node"
        )),
        Condition::Opening => line(
            "it is served by itself once they can be opened; if that lasts, look after them, or end who holds them".to_owned(),
        ),
        Condition::NotOpened => line("put it right and start kagami again".to_owned()),
    }
}

/// Where the pause was said.
fn resume(mirror: &MirrorReport, peer: &str) -> String {
    let by = mirror.progress.as_ref();
    let at = match by.map_or((true, false), |p| (p.paused_here, p.paused_there)) {
        (true, true) => format!(" here and on {peer}"),
        (false, true) => format!(" on {peer}"),
        (_, false) => String::new(),
    };
    format!("`kagami resume-sync {}`{at} goes on with it", mirror.name)
}

/// In sync, with blocks that may differ all the same: a verification found them. The Primary's are copied.
fn repair(mirror: &MirrorReport, peer: &str) -> String {
    let name = &mirror.name;
    let peer_role = mirror.peer.as_ref().and_then(|peer| peer.role);
    match (mirror.role, peer_role) {
        (Role::Primary, _) => {
            format!(
                "`kagami verify {name} --repair` compares again, and copies what differs to {peer}"
            )
        }
        (_, Some(Role::Primary)) => {
            format!("`kagami resync {name}` copies what is marked from {peer}, which is Primary")
        }
        _ => format!("`kagami resync {name} --from local` on the node whose blocks are right"),
    }
}

/// The peer left cleanly (`kagami down`, `disconnect`), and this node goes on by its consent.
pub fn left_by_itself(mirror: &MirrorReport) -> bool {
    let by = mirror.alone.as_ref().and_then(|alone| alone.by.as_deref());
    by == Some("consent")
}

/// What brings it back.
fn left(name: &str, peer: &str) -> String {
    let up = starter().up();
    format!(
        "{peer} left: `{up}` there, or `kagami connect {name}` there if its daemon runs; it resynchronises by itself then"
    )
}

fn has_lost_disk(mirror: &MirrorReport) -> bool {
    matches!(mirror.disk, Disk::Diskless | Disk::Failed)
}

/// Primary, and its copy is being resynchronised.
fn is_guest(mirror: &MirrorReport) -> bool {
    mirror.role == Role::Primary && mirror.disk == Disk::Inconsistent
}

/// What can be done while the peer stays away.
fn without_peer(mirror: &MirrorReport, peer: &str) -> String {
    let name = &mirror.name;
    let force = format!(
        "if {peer} is gone for good, `kagami promote {name} --force` goes on alone (what only {peer} wrote is lost, or a split brain)"
    );
    // A Primary seeks permission by itself: only the arbiter's word is missing, or a person's.
    match (mirror.role, mirror.solo.as_str(), &mirror.arbiter) {
        (Role::Primary, "arbiter", Some(arbiter)) => {
            return format!(
                "or see to arbiter {arbiter}: it is asked again and again by itself; {force}"
            );
        }
        (Role::Primary, "always", _) => return "this node goes on alone by itself".to_owned(),
        (Role::Primary, ..) => return force,
        (Role::Secondary, ..) => {}
    }
    match mirror.solo.as_str() {
        "arbiter" => format!(
            "if it stays away, `kagami promote {name}` asks arbiter {}",
            mirror.arbiter.as_deref().unwrap_or("(none is configured)")
        ),
        "always" => format!("if it stays away, `kagami promote {name}` goes on alone"),
        _ => force,
    }
}

fn refused(mirror: &MirrorReport, refusal: Refusal) -> Vec<String> {
    let name = &mirror.name;
    let peer = mirror.peer.as_ref().map_or("the peer", |p| p.name.as_str());
    let bytes = |side: Option<&super::report::SideReport>| {
        side.and_then(|side| side.written_bytes)
            .map(crate::render::units::size)
    };
    match refusal {
        Refusal::SplitBrain => {
            let verdict = mirror.verdict.as_ref();
            let theirs = bytes(verdict.and_then(|v| v.there.as_ref())).map_or_else(
                || format!("loses what {peer} wrote alone"),
                |size| format!("loses {peer}'s {size}"),
            );
            let ours = bytes(verdict.and_then(|v| v.here.as_ref())).map_or_else(
                || "loses what was written here alone".to_owned(),
                |size| format!("loses {size} here"),
            );
            // A Primary's copy is not overwritten under its users.
            let first = if mirror.role == Role::Primary {
                format!(", after `kagami demote {name}`")
            } else {
                String::new()
            };
            vec![
                format!(
                    "choose whose changes to keep: `kagami resync {name} --from local` ({theirs}) or `--from peer` ({ours}{first})"
                ),
                format!(
                    "a Primary's copy is not overwritten: before `--from local`, `kagami demote {name}` on {peer} if it is Primary"
                ),
            ]
        }
        Refusal::BothStale => vec![format!(
            "neither copy is known to be good and newest; choose one: `kagami resync {name} --from local` or `--from peer`, or here `kagami promote {name} --force`"
        )],
        Refusal::NameSource => vec![format!(
            "neither copy was written yet, and they may differ; say which to begin with: `kagami resync {name} --from local` or `--from peer` copies it whole"
        )],
        Refusal::OtherMirror => vec![format!(
            "compare `uuid` of [mirror.{name}] on both nodes; `kagami pair {name}` makes a fitting copy"
        )],
        Refusal::OtherSize => {
            let outcome = mirror.verdict.as_ref().map_or("", |v| v.outcome.as_str());
            vec![format!(
                "{outcome}: there `{}`, `kagami resize {name} --grow SIZE`, `{}`",
                starter().down(),
                starter().up()
            )]
        }
        Refusal::Unrelated => vec![format!(
            "the copies have no history in common; to keep one whole: `kagami resync {name} --full --from local` (overwrites {peer}'s copy) or `--from peer` (overwrites this one)"
        )],
        Refusal::NewestLost => vec![
            "the copy that is left lacks writes that were answered; put the disk right that failed, if that can be done, and start its daemon again".to_owned(),
            format!("to go on without those writes, on the node whose disk is good: `kagami promote {name} --force`"),
        ],
        Refusal::TwoPrimaries => vec![format!(
            "both nodes were made Primary while apart, and neither has written: `kagami demote {name}` on the one that is not in use"
        )],
        Refusal::ChosenIsBehind => vec![
            format!("to take the newer copy after all: `kagami connect {name}` where the other one was chosen"),
            format!(
                "to give the newer one up, with all that only it holds: on its node `kagami invalidate {name} --force`, then there `kagami resync {name} --from peer`"
            ),
        ],
        Refusal::Impossible => vec![
            "one of the copies was cloned or restored from a backup; nothing was changed"
                .to_owned(),
            format!(
                "on the node with the restored copy: `kagami invalidate {name} --force` (what only it holds is lost), then `kagami connect {name}`"
            ),
        ],
    }
}
