//! The core's notices as events for people and machines: `kagami events` and the log.

use std::collections::BTreeMap;

use kagami_replicator::core::decide::{Refused, Strategy, Verdict};
use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Connection, DiskState, NodeId, Replication, Role};
use serde_json::{Value, json};

use super::engine::Noticed;
use crate::config::value::spell_size;
use crate::control::report::{EventReport, Refusal, SCHEMA, Severity};

/// Names of nodes, for what the core knows by id.
pub trait Names {
    /// The configured name of a node.
    fn node(&self, id: NodeId) -> String;
}

/// The event that a notice is.
pub fn event(noticed: &Noticed, names: &impl Names) -> EventReport {
    let (event, severity, text, facts) = parts(&noticed.notice, names);
    EventReport {
        schema: SCHEMA,
        time_ms: noticed.time_ms,
        mirror: noticed.mirror.clone(),
        event: event.to_owned(),
        severity,
        text,
        facts,
    }
}

type Facts = BTreeMap<String, Value>;

fn facts<const N: usize>(pairs: [(&str, Value); N]) -> Facts {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn parts(notice: &Notice, names: &impl Names) -> (&'static str, Severity, String, Facts) {
    use crate::render::units::size;
    let run_facts = |run: &kagami_bitmap::Run| {
        facts([
            ("offset_bytes", json!(run.byte_offset())),
            ("length_bytes", json!(run.byte_len())),
        ])
    };
    match notice {
        Notice::Role { from, to, cause } => (
            "role",
            Severity::Info,
            format!("role {from} -> {to}: {cause}"),
            change(from, to, cause),
        ),
        Notice::Disk { from, to, cause } => (
            "disk",
            disk_severity(*to),
            format!("disk {from} -> {to}: {cause}"),
            change(from, to, cause),
        ),
        Notice::Peer { role, disk } => (
            "peer",
            disk_severity(*disk),
            format!("peer is {role}, {disk}"),
            facts([
                ("role", json!(role.to_string())),
                ("disk", json!(disk.to_string())),
            ]),
        ),
        Notice::Connection { from, to, cause } => (
            "connection",
            if *to == Connection::Connected {
                Severity::Info
            } else {
                Severity::Warn
            },
            format!("connection {from} -> {to}: {cause}"),
            change(from, to, cause),
        ),
        Notice::Replication { from, to } => (
            "replication",
            Severity::Info,
            format!("replication {from} -> {to}"),
            facts([
                ("from", json!(from.to_string())),
                ("to", json!(to.to_string())),
            ]),
        ),
        Notice::Verdict {
            verdict,
            mine,
            theirs,
        } => {
            let spell = |generation: &Option<kagami_bitmap::superblock::Generation>| {
                generation.map_or_else(
                    || "never written".to_owned(),
                    |g| format!("{} ({:016x})", g.counter, g.tag),
                )
            };
            let refused = matches!(verdict.strategy, Strategy::Refuse(_));
            (
                "verdict",
                if refused {
                    Severity::Error
                } else {
                    Severity::Info
                },
                format!(
                    "handshake rule {} {:?}: {}; generation here {}, there {}",
                    verdict.row as u8,
                    verdict.row,
                    outcome(verdict, names),
                    spell(mine),
                    spell(theirs)
                ),
                facts([
                    ("row", json!(verdict.row as u8)),
                    ("rule", json!(format!("{:?}", verdict.row))),
                    ("refused", json!(refusal(verdict).map(Refusal::word))),
                    ("here", json!(mine.map(|g| format!("{:016x}", g.tag)))),
                    ("there", json!(theirs.map(|g| format!("{:016x}", g.tag)))),
                ]),
            )
        }
        Notice::PeerSet { from, to } => {
            let name = |id: &Option<NodeId>| id.map(|id| names.node(id));
            let words = |id: &Option<NodeId>| name(id).unwrap_or_else(|| "nobody".to_owned());
            (
                "peer-set",
                Severity::Warn,
                format!(
                    "the other copy is {}'s now, no longer {}'s",
                    words(to),
                    words(from)
                ),
                facts([("from", json!(name(from))), ("to", json!(name(to)))]),
            )
        }
        Notice::Minted {
            generation,
            permission,
        } => (
            "generation",
            Severity::Warn,
            format!(
                "goes on alone as generation {}, permission: {permission}",
                generation.counter
            ),
            facts([
                ("generation", json!(generation.counter)),
                ("tag", json!(format!("{:016x}", generation.tag))),
                ("permission", json!(permission)),
            ]),
        ),
        Notice::Held { why } => (
            "held",
            Severity::Error,
            format!("requests are held: {why}"),
            facts([("why", json!(why))]),
        ),
        Notice::Released => (
            "released",
            Severity::Info,
            "held requests go on".to_owned(),
            Facts::new(),
        ),
        Notice::ArbiterRefused { named } => {
            let named: Vec<String> = named.iter().map(|id| names.node(*id)).collect();
            (
                "arbiter-refused",
                Severity::Warn,
                if named.is_empty() {
                    "the arbiter refused: it names no copy".to_owned()
                } else {
                    format!("the arbiter refused: it names {}", named.join(" and "))
                },
                facts([("named", json!(named))]),
            )
        }
        Notice::ArbiterUnreachable { why } => (
            "arbiter-unreachable",
            Severity::Warn,
            format!("the arbiter did not answer: {why}"),
            facts([("why", json!(why))]),
        ),
        Notice::DiskFailed { fault, doing } => (
            "disk-failed",
            Severity::Error,
            format!("the local store failed while {doing}: {fault}"),
            facts([("fault", json!(fault.to_string())), ("doing", json!(doing))]),
        ),
        Notice::ReadRepaired { run } => (
            "read-repaired",
            Severity::Warn,
            format!(
                "a read of {} at byte {} failed here and was served from the peer",
                size(run.byte_len()),
                run.byte_offset()
            ),
            run_facts(run),
        ),
        Notice::ResyncDone { marked, sent, ms } => (
            "resync-done",
            Severity::Info,
            format!(
                "resynchronised {} marked, {} sent in {}",
                size(*marked),
                size(*sent),
                crate::render::units::latency(ms.saturating_mul(1_000_000))
            ),
            facts([
                ("marked_bytes", json!(marked)),
                ("sent_bytes", json!(sent)),
                ("milliseconds", json!(ms)),
            ]),
        ),
        Notice::VerifyDone {
            compared,
            different,
        } => (
            "verify-done",
            if *different == 0 {
                Severity::Info
            } else {
                Severity::Error
            },
            format!(
                "compared {}: {}",
                size(compared.saturating_mul(BLOCK)),
                if *different == 0 {
                    "no difference".to_owned()
                } else {
                    format!(
                        "{} differ and are marked",
                        size(different.saturating_mul(BLOCK))
                    )
                }
            ),
            facts([
                ("compared_bytes", json!(compared.saturating_mul(BLOCK))),
                ("different_bytes", json!(different.saturating_mul(BLOCK))),
            ]),
        ),
        Notice::VerifyFound { run } => (
            "verify-found",
            Severity::Error,
            format!(
                "the copies differ in {} at byte {}",
                size(run.byte_len()),
                run.byte_offset()
            ),
            run_facts(run),
        ),
        Notice::PeerFault { what } => (
            "peer-fault",
            Severity::Error,
            format!("the peer broke a rule and the session was closed: {what}"),
            facts([("what", json!(what))]),
        ),
        Notice::Stalled { who } => (
            "stalled",
            Severity::Error,
            format!("the {who} takes longer than ack-timeout"),
            facts([("who", json!(who))]),
        ),
    }
}

/// Bytes of a block (docs/design.md §1).
pub const BLOCK: u64 = 4096;

fn change(from: impl ToString, to: impl ToString, cause: impl ToString) -> Facts {
    facts([
        ("from", json!(from.to_string())),
        ("to", json!(to.to_string())),
        ("cause", json!(cause.to_string())),
    ])
}

fn disk_severity(disk: DiskState) -> Severity {
    match disk {
        DiskState::Failed | DiskState::Diskless => Severity::Error,
        DiskState::Inconsistent | DiskState::Outdated | DiskState::Unknown => Severity::Warn,
        DiskState::Consistent | DiskState::UpToDate => Severity::Info,
    }
}

/// What follows from a verdict, in words.
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
                    "refused: the sizes differ; {}'s copy is to be grown to {}",
                    names.node(smaller),
                    spell_size(size)
                );
            }
            Refused::OtherMirror => "refused: these are not two copies of one mirror",
            Refused::NameSource => "refused: neither copy was written, and they may differ",
            Refused::BothStale => "refused: no good copy is left",
            Refused::SplitBrain => "refused: split brain, both copies went on alone",
            Refused::Unrelated => "refused: the copies have no history in common",
            Refused::NewestLost => {
                "refused: the only copy with what was answered has lost its disk"
            }
            Refused::TwoPrimaries => "refused: both nodes are Primary, and neither has written",
            Refused::Impossible => "refused: a copy was cloned or restored",
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
