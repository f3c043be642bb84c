//! The core's notices as events for people and machines: `kagami events` and the log.

use std::collections::BTreeMap;

use kagami_bitmap::BLOCK;
use kagami_bitmap::superblock::Generation;
use kagami_replicator::core::decide::{Refused, Strategy, Verdict};
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Connection, DiskState, NodeId, Replication, Role};
use serde_json::{Value, json};

use super::engine::Noticed;
use crate::config::value::spell_size;
use crate::control::report::{EventReport, Refusal, SCHEMA, Severity};
use crate::render::units::{latency, size};

/// Names of nodes, for what the core knows by id.
pub trait Names {
    /// The configured name of a node.
    fn node(&self, id: NodeId) -> String;
}

/// The event that a notice is.
pub fn event(noticed: &Noticed, names: &impl Names) -> EventReport {
    let notice = &noticed.notice;
    EventReport {
        schema: SCHEMA,
        time_ms: noticed.time_ms,
        mirror: noticed.mirror.clone(),
        event: kind(notice).to_owned(),
        severity: severity(notice),
        text: text(notice, names),
        facts: facts_of(notice, names),
    }
}

/// Its kind's word (docs/status-json.md).
fn kind(notice: &Notice) -> &'static str {
    match notice {
        Notice::Role { .. } => "role",
        Notice::Disk { .. } => "disk",
        Notice::Peer { .. } => "peer",
        Notice::Connection { .. } => "connection",
        Notice::Replication { .. } => "replication",
        Notice::Verdict { .. } => "verdict",
        Notice::PeerSet { .. } => "peer-set",
        Notice::Minted { .. } => "generation",
        Notice::Held { .. } => "held",
        Notice::Released => "released",
        Notice::ArbiterRefused { .. } => "arbiter-refused",
        Notice::ArbiterUnreachable { .. } => "arbiter-unreachable",
        Notice::DiskFailed { .. } => "disk-failed",
        Notice::ReadRepaired { .. } => "read-repaired",
        Notice::ResyncDone { .. } => "resync-done",
        Notice::VerifyDone { .. } => "verify-done",
        Notice::VerifyFound { .. } => "verify-found",
        Notice::PeerFault { .. } => "peer-fault",
        Notice::Stalled { .. } => "stalled",
    }
}

fn severity(notice: &Notice) -> Severity {
    match notice {
        Notice::Disk { to: disk, .. } | Notice::Peer { disk, .. } => disk_severity(*disk),
        Notice::Connection {
            to: Connection::Connected,
            ..
        }
        | Notice::VerifyDone {
            different: 0,
            unreadable: 0,
            ..
        }
        | Notice::Role { .. }
        | Notice::Replication { .. }
        | Notice::Released
        | Notice::ResyncDone { .. } => Severity::Info,
        Notice::Verdict { verdict, .. } => match verdict.strategy {
            Strategy::Refuse(_) => Severity::Error,
            _ => Severity::Info,
        },
        Notice::Connection { .. }
        | Notice::PeerSet { .. }
        | Notice::Minted { .. }
        | Notice::ArbiterRefused { .. }
        | Notice::ArbiterUnreachable { .. }
        | Notice::ReadRepaired { .. } => Severity::Warn,
        Notice::Held { .. }
        | Notice::DiskFailed { .. }
        | Notice::VerifyDone { .. }
        | Notice::VerifyFound { .. }
        | Notice::PeerFault { .. }
        | Notice::Stalled { .. } => Severity::Error,
    }
}

fn text(notice: &Notice, names: &impl Names) -> String {
    let node = |id: &Option<NodeId>| id.map_or_else(|| "nobody".to_owned(), |id| names.node(id));
    match notice {
        Notice::Role { from, to, cause } => format!("role {from} -> {to}: {cause}"),
        Notice::Disk { from, to } => format!("disk {from} -> {to}"),
        Notice::Peer { role, disk } => format!("peer is {role}, {disk}"),
        Notice::Connection { from, to, cause } => format!("connection {from} -> {to}: {cause}"),
        Notice::Replication { from, to } => format!("replication {from} -> {to}"),
        Notice::Verdict {
            verdict,
            mine,
            theirs,
        } => {
            let spell = |generation: &Option<Generation>| {
                generation.map_or_else(
                    || "never written".to_owned(),
                    |g| format!("{} ({:016x})", g.counter, g.tag),
                )
            };
            format!(
                "handshake rule {} {:?}: {}{}; generation here {}, there {}",
                verdict.row as u8,
                verdict.row,
                refusal(verdict).map_or("", |_| "refused: "),
                outcome(verdict, names),
                spell(mine),
                spell(theirs)
            )
        }
        Notice::PeerSet { from, to } => format!(
            "the other copy is {}'s now, no longer {}'s",
            node(to),
            node(from)
        ),
        Notice::Minted {
            generation,
            permission,
        } => format!(
            "goes on alone as generation {}, permission: {permission}",
            generation.counter
        ),
        Notice::Held { why } => format!("requests are held: {why}"),
        Notice::Released => "held requests go on".to_owned(),
        Notice::ArbiterRefused { named } if named.is_empty() => {
            "the arbiter refused: it names no copy".to_owned()
        }
        Notice::ArbiterRefused { named } => {
            let named: Vec<String> = named.iter().map(|id| names.node(*id)).collect();
            format!("the arbiter refused: it names {}", named.join(" and "))
        }
        Notice::ArbiterUnreachable { why } => format!("the arbiter did not answer: {why}"),
        Notice::DiskFailed { fault, doing } => {
            format!("the local store failed while {doing}: {fault}")
        }
        Notice::ReadRepaired { run } => format!(
            "a read of {} at byte {} failed here and was served from the peer",
            size(run.byte_len()),
            run.byte_offset()
        ),
        Notice::ResyncDone { marked, sent, ms } => format!(
            "resynchronised {} marked, {} sent in {}",
            size(*marked),
            size(*sent),
            latency(ms.saturating_mul(1_000_000))
        ),
        Notice::VerifyDone {
            compared,
            different,
            unreadable,
        } => {
            let [compared, differ, bad] =
                [compared, different, unreadable].map(|blocks| size(blocks.saturating_mul(BLOCK)));
            let differences = match different {
                0 => "no difference".to_owned(),
                _ => format!("{differ} differ and are marked"),
            };
            match unreadable {
                0 => format!("compared {compared}: {differences}"),
                _ => {
                    format!("compared {compared}: {differences}; {bad} can be read on neither node")
                }
            }
        }
        Notice::VerifyFound { run } => format!(
            "the copies differ in {} at byte {}",
            size(run.byte_len()),
            run.byte_offset()
        ),
        Notice::PeerFault { what } => {
            format!("the peer broke a rule and the session was closed: {what}")
        }
        Notice::Stalled { who } => format!("the {who} takes longer than ack-timeout"),
    }
}

fn facts_of(notice: &Notice, names: &impl Names) -> Facts {
    let name = |id: &Option<NodeId>| id.map(|id| names.node(id));
    match notice {
        Notice::Role { from, to, cause } => caused(change(from, to), cause),
        Notice::Disk { from, to } => change(from, to),
        Notice::Connection { from, to, cause } => caused(change(from, to), cause),
        Notice::Replication { from, to } => change(from, to),
        Notice::Peer { role, disk } => facts([
            ("role", json!(role.to_string())),
            ("disk", json!(disk.to_string())),
        ]),
        Notice::Verdict {
            verdict,
            mine,
            theirs,
        } => facts([
            ("row", json!(verdict.row as u8)),
            ("rule", json!(format!("{:?}", verdict.row))),
            ("refused", json!(refusal(verdict).map(Refusal::word))),
            ("here", json!(mine.map(|g| format!("{:016x}", g.tag)))),
            ("there", json!(theirs.map(|g| format!("{:016x}", g.tag)))),
        ]),
        Notice::PeerSet { from, to } => {
            facts([("from", json!(name(from))), ("to", json!(name(to)))])
        }
        Notice::Minted {
            generation,
            permission,
        } => facts([
            ("generation", json!(generation.counter)),
            ("tag", json!(format!("{:016x}", generation.tag))),
            ("permission", json!(permission)),
        ]),
        Notice::Held { why } | Notice::ArbiterUnreachable { why } => facts([("why", json!(why))]),
        Notice::Released => Facts::new(),
        Notice::ArbiterRefused { named } => {
            let named: Vec<String> = named.iter().map(|id| names.node(*id)).collect();
            facts([("named", json!(named))])
        }
        Notice::DiskFailed { fault, doing } => {
            facts([("fault", json!(fault.to_string())), ("doing", json!(doing))])
        }
        Notice::ReadRepaired { run } | Notice::VerifyFound { run } => facts([
            ("offset_bytes", json!(run.byte_offset())),
            ("length_bytes", json!(run.byte_len())),
        ]),
        Notice::ResyncDone { marked, sent, ms } => facts([
            ("marked_bytes", json!(marked)),
            ("sent_bytes", json!(sent)),
            ("milliseconds", json!(ms)),
        ]),
        Notice::VerifyDone {
            compared,
            different,
            unreadable,
        } => facts([
            ("compared_bytes", json!(compared.saturating_mul(BLOCK))),
            ("different_bytes", json!(different.saturating_mul(BLOCK))),
            ("unreadable_bytes", json!(unreadable.saturating_mul(BLOCK))),
        ]),
        Notice::PeerFault { what } => facts([("what", json!(what))]),
        Notice::Stalled { who } => facts([("who", json!(who))]),
    }
}

type Facts = BTreeMap<String, Value>;

fn facts<const N: usize>(pairs: [(&str, Value); N]) -> Facts {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn change(from: impl ToString, to: impl ToString) -> Facts {
    facts([
        ("from", json!(from.to_string())),
        ("to", json!(to.to_string())),
    ])
}

fn caused(mut change: Facts, cause: &str) -> Facts {
    change.insert("cause".to_owned(), json!(cause));
    change
}

fn disk_severity(disk: DiskState) -> Severity {
    match disk {
        DiskState::Failed | DiskState::Diskless => Severity::Error,
        DiskState::Inconsistent | DiskState::Outdated | DiskState::Unknown => Severity::Warn,
        DiskState::Consistent | DiskState::UpToDate => Severity::Info,
    }
}

/// What follows from a verdict, in words: where it refuses, why.
pub fn outcome(verdict: &Verdict, names: &impl Names) -> String {
    match verdict.strategy {
        Strategy::Nothing => "the copies are equal".to_owned(),
        Strategy::Marks { source } => {
            format!(
                "marked blocks are resynchronised from {}",
                names.node(source)
            )
        }
        Strategy::Full { source } => {
            format!("everything is resynchronised from {}", names.node(source))
        }
        Strategy::First { source } => format!(
            "both copies read as zeroes, nothing is copied; {} begins",
            names.node(source)
        ),
        Strategy::Serve => "one copy has no disk, the other serves".to_owned(),
        Strategy::Refuse(refused) => match refused {
            Refused::OtherSize { smaller, size } => {
                return format!(
                    "the sizes differ; {}'s copy is to be grown to {}",
                    names.node(smaller),
                    spell_size(size)
                );
            }
            Refused::ChosenIsBehind { chosen } => {
                return format!(
                    "{}'s copy was chosen to stay, and it is not the newer one; nothing was changed",
                    names.node(chosen)
                );
            }
            Refused::OtherMirror => "these are not two copies of one mirror",
            Refused::NameSource => "neither copy was written, and they may differ",
            Refused::BothStale => "no good copy is left",
            Refused::SplitBrain => "split brain, both copies went on alone",
            Refused::Unrelated => "the copies have no history in common",
            Refused::NewestLost => "the only copy with what was answered has lost its disk",
            Refused::TwoPrimaries => "both nodes are Primary, and neither has written",
            Refused::Impossible => "a copy was cloned or restored",
        }
        .to_owned(),
    }
}

/// Why a verdict refuses, if it does.
pub fn refusal(verdict: &Verdict) -> Option<Refusal> {
    let Strategy::Refuse(refused) = verdict.strategy else {
        return None;
    };
    Some(match refused {
        Refused::OtherMirror => Refusal::OtherMirror,
        Refused::OtherSize { .. } => Refusal::OtherSize,
        Refused::NameSource => Refusal::NameSource,
        Refused::BothStale => Refusal::BothStale,
        Refused::SplitBrain => Refusal::SplitBrain,
        Refused::Unrelated => Refusal::Unrelated,
        Refused::NewestLost => Refusal::NewestLost,
        Refused::TwoPrimaries => Refusal::TwoPrimaries,
        Refused::Impossible => Refusal::Impossible,
        Refused::ChosenIsBehind { .. } => Refusal::ChosenIsBehind,
    })
}

/// The present state as an event, with which every stream of events begins.
pub fn present(mirror: &crate::control::report::MirrorReport, time_ms: u64) -> EventReport {
    let peer = mirror.peer.as_ref();
    EventReport {
        schema: SCHEMA,
        time_ms,
        mirror: mirror.name.clone(),
        event: "present".to_owned(),
        severity: Severity::Info,
        text: format!(
            "{}: {}, {}/{}, {}, {}",
            mirror.condition,
            mirror.role,
            mirror.disk,
            peer.map_or("Unknown", |peer| peer.disk.word()),
            mirror.connection,
            mirror.replication
        ),
        facts: facts([
            ("condition", json!(mirror.condition)),
            ("role", json!(mirror.role)),
            ("disk", json!(mirror.disk)),
            ("peer_role", json!(peer.and_then(|peer| peer.role))),
            ("peer_disk", json!(peer.map(|peer| peer.disk))),
            ("connection", json!(mirror.connection)),
            ("replication", json!(mirror.replication)),
            (
                "generation",
                json!(mirror.generation.as_ref().map(|g| g.number)),
            ),
        ]),
    }
}

/// The report's word for the core's.
pub fn role(role: Role) -> crate::control::report::Role {
    use crate::control::report::Role as Word;
    match role {
        Role::Primary => Word::Primary,
        Role::Secondary => Word::Secondary,
    }
}

/// The report's word for the core's.
pub fn disk(disk: DiskState) -> crate::control::report::Disk {
    use crate::control::report::Disk as Word;
    match disk {
        DiskState::Diskless => Word::Diskless,
        DiskState::Failed => Word::Failed,
        DiskState::Inconsistent => Word::Inconsistent,
        DiskState::Outdated => Word::Outdated,
        DiskState::Consistent => Word::Consistent,
        DiskState::UpToDate => Word::UpToDate,
        DiskState::Unknown => Word::Unknown,
    }
}

/// The report's word for the core's.
pub fn connection(connection: Connection) -> crate::control::report::Connection {
    use crate::control::report::Connection as Word;
    match connection {
        Connection::StandAlone => Word::StandAlone,
        Connection::Connecting => Word::Connecting,
        Connection::Connected => Word::Connected,
    }
}

/// The report's word for the core's.
pub fn replication(replication: Replication) -> crate::control::report::Replication {
    use crate::control::report::Replication as Word;
    match replication {
        Replication::Off => Word::Off,
        Replication::Established => Word::Established,
        Replication::SyncSource => Word::SyncSource,
        Replication::SyncTarget => Word::SyncTarget,
        Replication::PausedSync => Word::PausedSync,
        Replication::VerifySource => Word::VerifySource,
        Replication::VerifyTarget => Word::VerifyTarget,
    }
}
