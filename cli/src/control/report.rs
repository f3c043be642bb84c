//! The state of a node as `kagami status --json` gives it (docs/status-json.md).
//!
//! The daemon makes it from the engine's status and its configuration; everything that people see
//! is rendered from it and nothing else. Fields are only ever added; [`SCHEMA`] is raised when one
//! changes its meaning. Times are milliseconds since 1970 (UTC), sizes are bytes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The version of this schema.
pub const SCHEMA: u32 = 1;

/// Everything one daemon has to say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// [`SCHEMA`]
    pub schema: u32,
    /// When this was true.
    pub time_ms: u64,
    /// Who says it.
    pub node: NodeReport,
    /// In the order of the configuration.
    pub mirrors: Vec<MirrorReport>,
}

/// The node that answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// The daemon's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// When the daemon began.
    pub since_ms: u64,
    /// What this node is known by to its peers.
    pub fingerprint: Option<String>,
}

/// Declares an enumeration that is spelled the same in JSON and to people.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {$(
            $(#[$vdoc])*
            #[serde(rename = $word)]
            $variant,
        )+}

        impl $name {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// As JSON and people spell it.
            pub const fn word(self) -> &'static str {
                match self {$(Self::$variant => $word,)+}
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

words! {
    /// What a node does with the mirror.
    Role {
        /// Serves I/O.
        Primary = "Primary",
        /// Applies the peer's writes.
        Secondary = "Secondary",
    }
}

words! {
    /// What a copy is worth.
    Disk {
        /// There is no local store.
        Diskless = "Diskless",
        /// The local store failed.
        Failed = "Failed",
        /// Partly overwritten by a resynchronisation that has not ended.
        Inconsistent = "Inconsistent",
        /// Good, and known to be older than the other.
        Outdated = "Outdated",
        /// Good, not known to be the newest.
        Consistent = "Consistent",
        /// Good and the newest.
        UpToDate = "UpToDate",
        /// Nothing is known.
        Unknown = "Unknown",
    }
}

words! {
    /// Whether there is a session with the peer.
    Connection {
        /// None, and none is looked for.
        StandAlone = "StandAlone",
        /// Looking for it.
        Connecting = "Connecting",
        /// There is one.
        Connected = "Connected",
    }
}

words! {
    /// What the two copies are doing together.
    Replication {
        /// Nothing.
        Off = "Off",
        /// Every write goes to both.
        Established = "Established",
        /// This copy brings the peer's up to date.
        SyncSource = "SyncSource",
        /// The peer brings this copy up to date.
        SyncTarget = "SyncTarget",
        /// A resynchronisation is held.
        PausedSync = "PausedSync",
        /// Both copies are compared, from here.
        VerifySource = "VerifySource",
        /// Both copies are compared, from the peer.
        VerifyTarget = "VerifyTarget",
    }
}

words! {
    /// The state of a mirror in a word, from which exit statuses and colours follow.
    Condition {
        /// Every write goes to both copies.
        InSync = "in-sync",
        /// Both copies are compared while every write goes to both.
        Verifying = "verifying",
        /// One copy is being brought up to date.
        Resynchronising = "resynchronising",
        /// The same, held by an operator.
        Paused = "paused",
        /// Answering writes that only this copy holds.
        Alone = "alone",
        /// This node serves, but one of the two copies has no disk.
        OneCopy = "one-copy",
        /// Connected, and neither in sync nor resynchronising yet.
        Meeting = "meeting",
        /// The peer is looked for; nothing is served here.
        Connecting = "connecting",
        /// An operator's word keeps the peer away; nothing is served here.
        StandAlone = "stand-alone",
        /// Requests wait for permission or for the peer.
        Held = "held",
        /// This copy can't be used without the peer.
        Unusable = "unusable",
        /// The copies are not brought together without an operator's word.
        Refused = "refused",
        /// No good copy with permission is left.
        BothStale = "both-stale",
        /// There is no peer yet.
        NotPaired = "not-paired",
        /// The stores have not answered yet, or somebody else holds them.
        Opening = "opening",
        /// The daemon could not open the stores.
        NotOpened = "not-opened",
        /// Both copies went on alone.
        SplitBrain = "split-brain",
    }
}

words! {
    /// Why two copies are not brought together.
    Refusal {
        /// They are copies of different mirrors.
        OtherMirror = "other-mirror",
        /// One copy has been grown, the other has not.
        OtherSize = "other-size",
        /// Neither was written, and they may differ.
        NameSource = "name-source",
        /// No good copy is left.
        BothStale = "both-stale",
        /// Both went on alone.
        SplitBrain = "split-brain",
        /// Nothing in common.
        Unrelated = "unrelated",
        /// The only copy with what was answered has lost its disk.
        NewestLost = "newest-lost",
        /// Both are Primary, and neither has written.
        TwoPrimaries = "two-primaries",
        /// What the protocol rules out: a cloned or restored disk.
        Impossible = "impossible",
        /// The copy that an operator chose is not the newer one.
        ChosenIsBehind = "chosen-is-behind",
    }
}

/// One mirror on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MirrorReport {
    /// Its name.
    pub name: String,
    /// Which mirror it is, 32 hexadecimal digits.
    pub uuid: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its state in a word.
    pub condition: Condition,
    /// What to do, a line each; empty when there is nothing to do.
    pub next: Vec<String>,
    /// This node's role.
    pub role: Role,
    /// This node's copy.
    pub disk: Disk,
    /// This node is Primary and has no good copy: the other node's answers, and every request goes there.
    #[serde(default)]
    pub served_by_peer: bool,
    /// The backing store.
    pub backing: String,
    /// The metadata store.
    pub metadata: String,
    /// Where it is served: NBD URIs, devices.
    pub served_at: Vec<String>,
    /// The block device of this machine's kernel; `null` where it is not attached.
    #[serde(default)]
    pub device: Option<DeviceReport>,
    /// The other node; `null` until paired.
    pub peer: Option<PeerReport>,
    /// The session.
    pub connection: Connection,
    /// Since when it is what it is.
    pub connection_since_ms: u64,
    /// What both do together.
    pub replication: Replication,
    /// The version of the data; `null` before the first.
    pub generation: Option<GenerationReport>,
    /// Answering writes that only this copy holds.
    pub alone: Option<AloneReport>,
    /// Bytes of blocks in which the copies may differ.
    pub marked_bytes: u64,
    /// Requests of front ends in flight.
    pub in_flight: u64,
    /// Why requests are held.
    pub held: Option<String>,
    /// What the last handshake found.
    pub verdict: Option<VerdictReport>,
    /// Whose copy is to stay when the nodes meet; `null` where nobody has chosen, and from then on.
    #[serde(default)]
    pub chosen: Option<ChosenReport>,
    /// The running resynchronisation or verification.
    pub progress: Option<ProgressReport>,
    /// When a write is answered: `A`, `B` or `C`.
    pub protocol: String,
    /// Permission to go on alone: `never`, `arbiter` or `always`.
    pub solo: String,
    /// Who decides.
    pub arbiter: Option<String>,
    /// The mirror whose decision it follows.
    #[serde(default)]
    pub follows: Option<String>,
    /// Why the arbiter is not asked whether this copy may go on alone.
    #[serde(default)]
    pub held_back: Option<String>,
    /// What is wrong with the arbiter, where this node asks it.
    #[serde(default)]
    pub arbiter_fault: Option<ArbiterFaultReport>,
    /// Why the stores could not be opened, or have not been yet.
    pub fault: Option<String>,
    /// They are still tried: the mirror is served by itself when they can be opened.
    #[serde(default)]
    pub opening: bool,
    /// Why this copy has no disk; the other node's copy is used.
    #[serde(default)]
    pub disk_fault: Option<String>,
    /// Requests of the last seconds; `null` until there are two samples.
    pub load: Option<LoadReport>,
    /// Counted since the daemon began.
    pub counters: CountersReport,
}

words! {
    /// How a mirror's device in the kernel is served.
    DeviceState {
        /// It is served.
        Attached = "attached",
        /// It is not served now; the kernel keeps its requests.
        Waiting = "waiting",
        /// It will not be served again: what the kernel holds for it is not what the mirror holds.
        Stale = "stale",
    }
}

/// A mirror's device in this machine's kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// `/dev/nbdN` or `/dev/ublkbN`
    pub path: String,
    /// `/dev/kagami/NAME`, which leads there.
    pub link: String,
    /// How it is served.
    pub state: DeviceState,
    /// Why it is not served.
    pub why: Option<String>,
    /// Where it is mounted: `ext4 on /srv`.
    pub mounted: Vec<String>,
    /// Since when it is attached.
    pub since_ms: u64,
}

/// The other node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its name.
    pub name: String,
    /// Its role, while connected.
    pub role: Option<Role>,
    /// Its copy.
    pub disk: Disk,
    /// The address in use, or the first configured one.
    pub address: Option<String>,
    /// Newest round trip.
    pub round_trip_ns: Option<u64>,
    /// The protocol version that both speak, while connected.
    #[serde(default)]
    pub link_version: Option<u16>,
}

/// A version of the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationReport {
    /// For people.
    pub number: u64,
    /// What is compared, 16 hexadecimal digits.
    pub tag: String,
}

/// Going on alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AloneReport {
    /// Since when.
    pub since_ms: u64,
    /// By which permission.
    pub by: Option<String>,
}

/// An operator's word that waits for the peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenReport {
    /// Whose copy is to stay.
    pub node: String,
    /// The word counts until then.
    pub until_ms: u64,
}

/// The arbiter's answers come to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArbiterFaultReport {
    /// Since when no question was answered.
    pub since_ms: u64,
    /// What the newest one came to.
    pub why: String,
    /// It answered, and the register is other nodes'.
    pub refused: bool,
}

/// What a handshake found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictReport {
    /// The row of docs/protocol.md §6.
    pub row: u8,
    /// Its name.
    pub rule: String,
    /// What follows from it, in words.
    pub outcome: String,
    /// Set when the copies are not brought together.
    pub refused: Option<Refusal>,
    /// This copy.
    pub here: Option<SideReport>,
    /// The peer's copy.
    pub there: Option<SideReport>,
}

/// One copy as a handshake saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideReport {
    /// Its generation; `null`: never written.
    pub generation: Option<GenerationReport>,
    /// When it began to go on alone, where known.
    pub from_ms: Option<u64>,
    /// When it stopped, where known.
    pub to_ms: Option<u64>,
    /// Bytes of blocks written since, where known.
    pub written_bytes: Option<u64>,
}

/// A running resynchronisation or verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressReport {
    /// Bytes of blocks to do.
    pub total_bytes: u64,
    /// Bytes of blocks done: copied, or compared.
    pub done_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// When it began.
    pub since_ms: u64,
    /// Bytes of blocks done per second, of late.
    pub rate: u64,
    /// Seconds left at that rate; `null` while it stands still.
    pub seconds_left: Option<u64>,
    /// Held by an operator.
    pub paused: bool,
    /// At this node.
    #[serde(default)]
    pub paused_here: bool,
    /// At the peer.
    #[serde(default)]
    pub paused_there: bool,
    /// Bytes of blocks found different (verification).
    pub different_bytes: u64,
}

/// What applications ask for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Over how many seconds it was counted.
    pub seconds: f64,
    /// Reads per second.
    pub reads_per_second: f64,
    /// Bytes read per second.
    pub read_bytes_per_second: f64,
    /// Writes per second.
    pub writes_per_second: f64,
    /// Bytes written per second.
    pub write_bytes_per_second: f64,
    /// Mean time from a write's arrival to its answer.
    pub write_mean_ns: Option<u64>,
    /// Median of the same, where the engine measures it.
    pub write_p50_ns: Option<u64>,
    /// 99th percentile of the same, where the engine measures it.
    pub write_p99_ns: Option<u64>,
}

/// Counted since the daemon began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersReport {
    /// Requests to read.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Requests to write, zero or discard.
    pub writes: u64,
    /// Their bytes.
    pub write_bytes: u64,
    /// Flushes asked for.
    pub flushes: u64,
    /// Nanoseconds from arrival to answer of all writes together.
    pub write_ns: u64,
    /// Activity-log records written.
    pub log_records: u64,
    /// Bitmap pages written.
    pub bitmap_pages: u64,
    /// Superblock updates.
    pub superblocks: u64,
    /// Bytes sent to the peer by writes.
    pub replicated_bytes: u64,
    /// Bytes sent by resynchronisations.
    pub resync_bytes: u64,
    /// Bytes of blocks found equal by checksum, and not sent.
    pub resync_equal_bytes: u64,
    /// Bytes of blocks received from the peer and applied.
    pub applied_bytes: u64,
}

words! {
    /// What being Primary rests on (docs/protocol.md §3).
    Standing {
        /// It is not Primary.
        Secondary = "secondary",
        /// The session with the peer, and its lease.
        Session = "session",
        /// Permission to go on alone.
        Alone = "alone",
        /// Nothing: `solo` is `always`, or no other node has a copy.
        Free = "free",
        /// Permission is wanted and not there yet.
        Sought = "sought",
        /// The arbiter has refused it.
        Refused = "refused",
        /// The stores are not open.
        NotOpened = "not-opened",
    }
}

/// What a mirror's being Primary rests on, for a failover manager and its guard. Times are
/// milliseconds of `CLOCK_BOOTTIME`, which all processes of a machine share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RightReport {
    /// Which mirror.
    pub mirror: String,
    /// What it rests on.
    pub standing: Standing,
    /// The end of the session's lease, if nothing newer is heard.
    pub lease_ends_ms: Option<u64>,
    /// There is a session with the peer.
    pub connected: bool,
    /// The peer is Primary.
    pub peer_is_primary: bool,
    /// Both copies are the same and every write goes to both.
    pub in_sync: bool,
    /// There is a session with the peer, whose disk has failed, and this copy has everything.
    #[serde(default)]
    pub only_copy: bool,
    /// This node has no store under it, or none that can be used.
    #[serde(default)]
    pub diskless: bool,
    /// This node's copy is Inconsistent or Outdated: it is not promoted without the peer, unless by force.
    #[serde(default)]
    pub untrusted: bool,
    /// The end of the peer's lease, as this node must count it.
    pub peer_lease_ends_ms: u64,
    /// Why requests are held, if they are.
    pub held: Option<String>,
}

/// One line of `kagami events --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventReport {
    /// [`SCHEMA`]
    pub schema: u32,
    /// When.
    pub time_ms: u64,
    /// Which mirror.
    pub mirror: String,
    /// What kind of event, a word.
    pub event: String,
    /// How bad: `info`, `warn` or `error`.
    pub severity: Severity,
    /// The event in words.
    pub text: String,
    /// Facts by name: before, after, cause, …
    pub facts: std::collections::BTreeMap<String, serde_json::Value>,
}

words! {
    /// How bad an event is.
    Severity {
        /// As expected.
        Info = "info",
        /// Something is lost that redundancy covers.
        Warn = "warn",
        /// A person must look.
        Error = "error",
    }
}
