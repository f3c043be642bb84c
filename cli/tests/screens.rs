//! What a person sees, for each state of a mirror. The screens are in tests/goldens; run with
//! `KAGAMI_WRITE_GOLDENS=1` to write them anew, and read the difference.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kagami::control::condition::{exit_code, judge};
use kagami::control::report::{
    AloneReport, ArbiterFaultReport, Condition, Connection, CountersReport, DeviceReport,
    DeviceState, Disk, EventReport, GenerationReport, LoadReport, MirrorReport, NodeReport,
    PeerReport, ProgressReport, Refusal, Replication, Role, SCHEMA, Severity, SideReport,
    StatusReport, VerdictReport,
};
use kagami::render::{Look, status};

/// 2025-11-21 14:10:00 UTC.
const NOW: u64 = 1_763_734_200_000;
const MIB: u64 = 1 << 20;

fn at(hours: u64, minutes: u64, seconds: u64) -> u64 {
    NOW - NOW % 86_400_000 + ((hours * 60 + minutes) * 60 + seconds) * 1000
}

fn generation(number: u64) -> Option<GenerationReport> {
    Some(GenerationReport {
        number,
        tag: format!("{:016x}", 0x00ab_0000_0000_0000 + number),
    })
}

/// All is well.
fn well() -> MirrorReport {
    MirrorReport {
        name: "pg".to_owned(),
        uuid: "6f1c2d3e4b5a69788796a5b4c3d2e1f0".to_owned(),
        size_bytes: 20 << 30,
        condition: Condition::InSync,
        next: Vec::new(),
        role: Role::Primary,
        disk: Disk::UpToDate,
        served_by_peer: false,
        backing: "/dev/vg0/pg".to_owned(),
        metadata: "/dev/vg0/pg-meta".to_owned(),
        served_at: vec!["nbd+unix:///pg?socket=/run/kagami/pg.nbd".to_owned()],
        device: None,
        peer: Some(PeerReport {
            link_version: Some(2),
            name: "beta".to_owned(),
            role: Some(Role::Secondary),
            disk: Disk::UpToDate,
            address: Some("10.0.0.2:7789".to_owned()),
            round_trip_ns: Some(210_000),
        }),
        connection: Connection::Connected,
        connection_since_ms: NOW - 3 * 86_400_000 - 5,
        replication: Replication::Established,
        generation: generation(42),
        alone: None,
        marked_bytes: 0,
        in_flight: 0,
        held: None,
        verdict: None,
        chosen: None,
        progress: None,
        protocol: "C".to_owned(),
        solo: "never".to_owned(),
        arbiter: None,
        follows: None,
        held_back: None,
        arbiter_fault: None,
        fault: None,
        opening: false,
        disk_fault: None,
        load: None,
        counters: CountersReport::default(),
    }
}

/// The peer is not reachable.
fn away() -> MirrorReport {
    let mut mirror = well();
    mirror.connection = Connection::Connecting;
    mirror.connection_since_ms = at(14, 2, 11);
    mirror.replication = Replication::Off;
    mirror.generation = generation(43);
    mirror.served_at = vec!["/dev/nbd0".to_owned()];
    let peer = mirror.peer.as_mut().unwrap();
    peer.role = None;
    peer.disk = Disk::Unknown;
    peer.round_trip_ns = None;
    mirror
}

fn verdict(row: u8, rule: &str, outcome: &str, refused: Refusal) -> Option<VerdictReport> {
    let side = |number, written| {
        Some(SideReport {
            generation: generation(number),
            written_bytes: written,
            ..SideReport::default()
        })
    };
    Some(VerdictReport {
        row,
        rule: rule.to_owned(),
        outcome: outcome.to_owned(),
        refused: Some(refused),
        here: side(43, Some(212 * MIB)),
        there: side(44, None),
    })
}

/// As the daemon gives it between two attempts: the peer was met, and tried again later.
fn refused(row: u8, rule: &str, outcome: &str, refusal: Refusal) -> MirrorReport {
    let mut mirror = away();
    mirror.connection = Connection::StandAlone;
    mirror.role = Role::Secondary;
    mirror.disk = Disk::Consistent;
    mirror.verdict = verdict(row, rule, outcome, refusal);
    mirror
}

fn progress(paused: bool) -> Option<ProgressReport> {
    Some(ProgressReport {
        total_bytes: 212 * MIB,
        done_bytes: 80 * MIB,
        sent_bytes: 80 * MIB,
        since_ms: NOW - 1000,
        rate: 94 * MIB,
        seconds_left: if paused { None } else { Some(2) },
        paused,
        paused_here: paused,
        paused_there: false,
        different_bytes: 0,
    })
}

/// Draws it, compares it with its file, and checks exit status and condition.
fn screen(name: &str, mut mirror: MirrorReport, condition: Condition, exit: u8) {
    judge(&mut mirror);
    assert_eq!(mirror.condition, condition, "{name}");
    let report = StatusReport {
        schema: SCHEMA,
        time_ms: NOW,
        node: NodeReport {
            name: "alpha".to_owned(),
            id: 1,
            ..NodeReport::default()
        },
        mirrors: vec![mirror],
    };
    assert_eq!(exit_code(&report), exit, "{name}");
    let text = status::status(&report, &Look::plain());
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens")
        .join(format!("{name}.txt"));
    if std::env::var_os("KAGAMI_WRITE_GOLDENS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text, golden,
        "{name}: KAGAMI_WRITE_GOLDENS=1 writes it anew"
    );
    // Colours add nothing but colours.
    let coloured = Look {
        colour: true,
        ..Look::plain()
    };
    let stripped = anstream::adapter::strip_str(&status::status(&report, &coloured)).to_string();
    assert_eq!(stripped, text, "{name}");
}

#[test]
fn in_sync() {
    let mut mirror = well();
    mirror.served_at = vec!["/dev/nbd0".to_owned()];
    mirror.load = Some(LoadReport {
        seconds: 5.0,
        writes_per_second: 4120.4,
        write_bytes_per_second: 212.0 * MIB as f64,
        write_p50_ns: Some(110_000),
        write_p99_ns: Some(420_000),
        ..LoadReport::default()
    });
    screen("in-sync", mirror, Condition::InSync, 0);
    let mut secondary = well();
    secondary.role = Role::Secondary;
    secondary.peer.as_mut().unwrap().role = Some(Role::Primary);
    screen("in-sync-secondary", secondary, Condition::InSync, 0);
}

/// As the device of this machine.
fn device(state: DeviceState, why: Option<&str>, mounted: &[&str]) -> Option<DeviceReport> {
    Some(DeviceReport {
        path: "/dev/nbd0".to_owned(),
        link: "/dev/kagami/pg".to_owned(),
        state,
        why: why.map(str::to_owned),
        mounted: mounted.iter().map(|place| (*place).to_owned()).collect(),
        since_ms: NOW - 86_400_000,
    })
}

#[test]
fn attached() {
    let mut mirror = well();
    mirror.device = device(DeviceState::Attached, None, &["ext4 on /srv"]);
    screen("attached", mirror.clone(), Condition::InSync, 0);
    mirror.role = Role::Secondary;
    let why = "the peer is looked for";
    mirror.device = device(DeviceState::Waiting, Some(why), &["ext4 on /srv"]);
    screen("attached-waiting", mirror.clone(), Condition::InSync, 0);
    let why = "the other node has become Primary: what this machine's kernel holds for it is not what the mirror holds now";
    mirror.device = device(DeviceState::Stale, Some(why), &["ext4 on /srv"]);
    mirror.peer.as_mut().unwrap().role = Some(Role::Primary);
    screen("attached-stale", mirror, Condition::InSync, 0);
}

#[test]
fn a_store_that_is_not_there() {
    let mut mirror = well();
    mirror.role = Role::Secondary;
    mirror.disk = Disk::Diskless;
    mirror.replication = Replication::Off;
    mirror.connection = Connection::Connecting;
    let peer = mirror.peer.as_mut().unwrap();
    peer.role = None;
    peer.disk = Disk::Unknown;
    mirror.disk_fault = Some("/dev/vg0/pg: there is no such file or device; if it was moved, its new place belongs into the configuration".to_owned());
    screen("disk-moved", mirror, Condition::Unusable, 12);
}

#[test]
fn resynchronising() {
    let mut mirror = well();
    mirror.replication = Replication::SyncSource;
    mirror.generation = generation(43);
    mirror.peer.as_mut().unwrap().disk = Disk::Inconsistent;
    mirror.progress = progress(false);
    screen(
        "resynchronising",
        mirror.clone(),
        Condition::Resynchronising,
        10,
    );
    mirror.progress = progress(true);
    screen("paused", mirror.clone(), Condition::Paused, 10);
    mirror.progress.as_mut().unwrap().paused_there = true;
    screen("paused-twice", mirror.clone(), Condition::Paused, 10);
    mirror.progress.as_mut().unwrap().paused_here = false;
    screen("paused-there", mirror.clone(), Condition::Paused, 10);
    mirror.role = Role::Secondary;
    mirror.disk = Disk::Inconsistent;
    mirror.replication = Replication::SyncTarget;
    mirror.progress = progress(false);
    screen("sync-target", mirror, Condition::Resynchronising, 10);
}

#[test]
fn verifying() {
    let mut mirror = well();
    mirror.replication = Replication::VerifySource;
    mirror.progress = progress(false);
    mirror.progress.as_mut().unwrap().different_bytes = 8192;
    screen("verifying", mirror, Condition::Verifying, 0);
}

/// What a verification found is not repaired by itself, and status is where a person looks.
#[test]
fn in_sync_with_blocks_marked() {
    let mut mirror = well();
    mirror.marked_bytes = 64 << 10;
    screen("in-sync-marked", mirror.clone(), Condition::InSync, 11);
    mirror.role = Role::Secondary;
    mirror.peer.as_mut().unwrap().role = Some(Role::Primary);
    screen(
        "in-sync-marked-secondary",
        mirror.clone(),
        Condition::InSync,
        11,
    );
    mirror.peer.as_mut().unwrap().role = Some(Role::Secondary);
    screen("in-sync-marked-unused", mirror, Condition::InSync, 11);
}

fn arbiter_fault(why: &str) -> Option<ArbiterFaultReport> {
    Some(ArbiterFaultReport {
        since_ms: at(14, 2, 11),
        why: why.to_owned(),
        refused: false,
    })
}

/// It is needed when a node is lost, and then it is too late to hear of it.
#[test]
fn an_arbiter_that_can_not_be_used_is_told_before_it_is_needed() {
    let mut mirror = well();
    mirror.solo = "arbiter".to_owned();
    mirror.arbiter = Some("witness1".to_owned());
    mirror.arbiter_fault = arbiter_fault("witness witness1: connection refused");
    screen("in-sync-no-arbiter", mirror.clone(), Condition::InSync, 11);
    let fault = mirror.arbiter_fault.as_mut().unwrap();
    fault.why = "register 6f1c2d3e4b5a69788796a5b4c3d2e1f0 belongs to other nodes".to_owned();
    fault.refused = true;
    screen("in-sync-not-ours", mirror.clone(), Condition::InSync, 11);
    mirror.replication = Replication::SyncSource;
    mirror.peer.as_mut().unwrap().disk = Disk::Inconsistent;
    mirror.progress = progress(false);
    mirror.arbiter_fault = arbiter_fault("no answer in time");
    screen(
        "resynchronising-no-arbiter",
        mirror,
        Condition::Resynchronising,
        10,
    );
}

#[test]
fn alone() {
    let mut mirror = away();
    mirror.alone = Some(AloneReport {
        since_ms: at(14, 2, 11),
        by: Some("arbiter".to_owned()),
    });
    mirror.solo = "arbiter".to_owned();
    mirror.arbiter = Some("witness1".to_owned());
    mirror.marked_bytes = 212 * MIB;
    screen("alone", mirror.clone(), Condition::Alone, 11);
    mirror.alone.as_mut().unwrap().by = Some("consent".to_owned());
    screen("alone-by-consent", mirror.clone(), Condition::Alone, 11);
    mirror.connection = Connection::StandAlone;
    screen("alone-disconnected", mirror, Condition::Alone, 11);
}

#[test]
fn held_and_connecting() {
    let mut mirror = away();
    mirror.disk = Disk::Consistent;
    mirror.in_flight = 64;
    mirror.held =
        Some("the peer is not connected, and solo = \"never\" lets no copy go on alone".to_owned());
    screen("held", mirror.clone(), Condition::Held, 12);
    // `promote` would say that it is Primary already.
    let mut asking = mirror;
    asking.solo = "arbiter".to_owned();
    asking.arbiter = Some("witness2".to_owned());
    asking.held = Some("the arbiter is not reachable: no answer within 5 s".to_owned());
    // Said once.
    asking.arbiter_fault = arbiter_fault("no answer within 5 s");
    screen("held-arbiter", asking, Condition::Held, 12);
    let mut waiting = away();
    waiting.role = Role::Secondary;
    waiting.disk = Disk::Consistent;
    screen("connecting", waiting.clone(), Condition::Connecting, 12);
    waiting.disk = Disk::Outdated;
    screen("outdated", waiting.clone(), Condition::Connecting, 12);
    waiting.disk = Disk::Consistent;
    waiting.connection = Connection::StandAlone;
    screen("disconnected", waiting, Condition::StandAlone, 12);
}

#[test]
fn disks_that_fail() {
    let mut mirror = well();
    mirror.disk = Disk::Failed;
    mirror.replication = Replication::Off;
    screen("diskless", mirror.clone(), Condition::OneCopy, 11);
    let mut attached = mirror.clone();
    attached.device = device(DeviceState::Attached, None, &["ext4 on /srv"]);
    screen("diskless-attached", attached, Condition::OneCopy, 11);
    let mut named = mirror.clone();
    named.held = Some("meeting the peer".to_owned());
    screen("held-diskless", named, Condition::Held, 12);
    mirror.disk = Disk::UpToDate;
    mirror.peer.as_mut().unwrap().disk = Disk::Diskless;
    screen("peer-diskless", mirror, Condition::OneCopy, 11);
    let mut unusable = away();
    unusable.role = Role::Secondary;
    unusable.disk = Disk::Inconsistent;
    unusable.marked_bytes = 212 * MIB;
    screen("inconsistent", unusable.clone(), Condition::Unusable, 12);
    unusable.disk = Disk::Failed;
    screen("failed", unusable, Condition::Unusable, 12);
}

#[test]
fn refused_handshakes() {
    let mut split = refused(
        16,
        "Forked",
        "split brain, both copies went on alone",
        Refusal::SplitBrain,
    );
    let verdict = split.verdict.as_mut().unwrap();
    let here = verdict.here.as_mut().unwrap();
    (here.from_ms, here.to_ms) = (Some(at(14, 2, 11)), Some(at(14, 9, 30)));
    let there = verdict.there.as_mut().unwrap();
    (there.from_ms, there.to_ms) = (Some(at(14, 2, 40)), Some(at(14, 8, 2)));
    there.written_bytes = Some(1_153_434);
    screen("split-brain", split.clone(), Condition::SplitBrain, 13);
    // A fork found long after: what is known of the other side is its generation.
    let verdict = split.verdict.as_mut().unwrap();
    verdict.there = Some(SideReport {
        generation: generation(44),
        ..SideReport::default()
    });
    screen(
        "split-brain-little-known",
        split.clone(),
        Condition::SplitBrain,
        13,
    );
    split.role = Role::Primary;
    screen("split-brain-primary", split, Condition::SplitBrain, 13);
    screen(
        "both-stale",
        refused(6, "SameBothBad", "no good copy is left", Refusal::BothStale),
        Condition::BothStale,
        12,
    );
    screen(
        "unrelated",
        refused(
            17,
            "Unrelated",
            "the copies have no history in common",
            Refusal::Unrelated,
        ),
        Condition::Refused,
        12,
    );
    screen(
        "other-mirror",
        refused(
            1,
            "OtherMirror",
            "these are not two copies of one mirror",
            Refusal::OtherMirror,
        ),
        Condition::Refused,
        12,
    );
    screen(
        "impossible",
        refused(
            10,
            "EachAhead",
            "a copy was cloned or restored",
            Refusal::Impossible,
        ),
        Condition::Refused,
        12,
    );
    screen(
        "two-primaries",
        refused(
            5,
            "SharedAlone",
            "both nodes are Primary, and neither has written",
            Refusal::TwoPrimaries,
        ),
        Condition::Refused,
        12,
    );
    screen(
        "newest-lost",
        refused(
            2,
            "Diskless",
            "the only copy with what was answered has lost its disk",
            Refusal::NewestLost,
        ),
        Condition::Refused,
        12,
    );
    let mut fresh = refused(
        3,
        "BothUnwritten",
        "neither copy was written, and they may differ",
        Refusal::NameSource,
    );
    fresh.generation = None;
    fresh.verdict.as_mut().unwrap().here = Some(SideReport::default());
    fresh.verdict.as_mut().unwrap().there = Some(SideReport::default());
    screen("name-source", fresh, Condition::Refused, 12);
}

#[test]
fn not_paired_and_not_opened() {
    let mut mirror = away();
    mirror.peer = None;
    mirror.connection = Connection::StandAlone;
    mirror.role = Role::Secondary;
    mirror.disk = Disk::Unknown;
    mirror.generation = None;
    mirror.served_at = Vec::new();
    screen("not-paired", mirror.clone(), Condition::NotPaired, 12);
    mirror.fault = Some("mirror pg: /dev/vg0/pg-meta: it holds no kagami superblock".to_owned());
    screen("not-opened", mirror.clone(), Condition::NotOpened, 12);
    mirror.fault =
        Some("its stores, /dev/vg0/pg and /dev/vg0/pg-meta, have not answered for 41 s".to_owned());
    mirror.opening = true;
    screen("opening", mirror, Condition::Opening, 12);
}

#[test]
fn meeting() {
    let mut mirror = well();
    mirror.replication = Replication::Off;
    mirror.disk = Disk::Consistent;
    screen("meeting", mirror, Condition::Meeting, 10);
}

#[test]
fn a_node_without_mirrors_says_what_to_do() {
    let report = StatusReport {
        node: NodeReport {
            name: "alpha".to_owned(),
            ..NodeReport::default()
        },
        ..StatusReport::default()
    };
    assert_eq!(
        status::status(&report, &Look::plain()),
        "alpha   no mirrors\n  next    make one with `kagami init NAME --size 20G`\n"
    );
}

/// Every name of a field, at any depth.
fn names(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                found.push(name.clone());
                names(value, found);
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| names(value, found)),
        _ => {}
    }
}

#[test]
fn every_field_of_the_json_is_documented() {
    let document = include_str!("../../docs/status-json.md");
    let mut mirror = well();
    mirror.progress = progress(false);
    mirror.load = Some(LoadReport::default());
    mirror.arbiter_fault = arbiter_fault("");
    mirror.device = device(DeviceState::Attached, None, &[]);
    mirror.alone = Some(AloneReport {
        since_ms: 0,
        by: None,
    });
    mirror.verdict = verdict(16, "Forked", "", Refusal::SplitBrain);
    let report = StatusReport {
        mirrors: vec![mirror],
        ..StatusReport::default()
    };
    let event = EventReport {
        schema: SCHEMA,
        time_ms: 0,
        mirror: String::new(),
        event: String::new(),
        severity: Severity::Info,
        text: String::new(),
        facts: BTreeMap::new(),
    };
    let mut found = Vec::new();
    names(&serde_json::to_value(report).unwrap(), &mut found);
    names(&serde_json::to_value(event).unwrap(), &mut found);
    let words = [
        Condition::ALL
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        Refusal::ALL.iter().map(ToString::to_string).collect(),
        Disk::ALL.iter().map(ToString::to_string).collect(),
        Replication::ALL.iter().map(ToString::to_string).collect(),
        DeviceState::ALL.iter().map(ToString::to_string).collect(),
    ];
    for name in found.into_iter().chain(words.into_iter().flatten()) {
        assert!(
            document.contains(&format!("`{name}`")),
            "{name} is not in docs/status-json.md"
        );
    }
}
