//! The one table of keys: name, kind, default, what a running daemon does with a change, and a
//! line of explanation.
//!
//! The reader, `kagami config check`, `kagami config show --defaults`, `kagami reload` and
//! docs/configuration.md all go by this table, so they can't drift apart. What keys mean together
//! (a peer that must exist, two mirrors on one store) is in [`super::check`].

/// A kind of table in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// `[node]`
    Node,
    /// `[nbd]`
    Nbd,
    /// `[mirror.NAME]`
    Mirror,
    /// `[mirror.NAME.resync]`
    Resync,
    /// `[peer.NAME]`
    Peer,
    /// `[arbiter.NAME]`
    Arbiter,
    /// `[witness]`
    Witness,
}

impl Section {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::Node,
        Self::Mirror,
        Self::Resync,
        Self::Peer,
        Self::Arbiter,
        Self::Nbd,
        Self::Witness,
    ];

    /// The word its headings begin with.
    pub fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Nbd => "nbd",
            Self::Mirror | Self::Resync => "mirror",
            Self::Peer => "peer",
            Self::Arbiter => "arbiter",
            Self::Witness => "witness",
        }
    }

    /// The heading with `name` where the file's has one.
    pub fn heading(self, name: &str) -> String {
        let word = self.word();
        match self {
            Self::Node | Self::Nbd | Self::Witness => format!("[{word}]"),
            Self::Mirror | Self::Peer | Self::Arbiter => format!("[{word}.{name}]"),
            Self::Resync => format!("[{word}.{name}.resync]"),
        }
    }

    /// What the section is about, for the documentation.
    pub fn about(self) -> &'static str {
        match self {
            Self::Node => "This machine. Written by `kagami init`.",
            Self::Nbd => {
                "NBD over TCP, beside the Unix socket that each mirror has. Off loopback it needs TLS with client certificates."
            }
            Self::Mirror => "One mirror. Written by `kagami init` and `kagami pair`.",
            Self::Resync => {
                "How a resynchronisation shares disks and network with the application."
            }
            Self::Peer => "The other node of one or more mirrors. Written by `kagami pair`.",
            Self::Arbiter => {
                "Who decides which copy may go on alone, for mirrors with `solo = \"arbiter\"`."
            }
            Self::Witness => {
                "This machine as an arbiter for others (`kagami witness`). It serves the nodes named in `[peer.NAME]` sections."
            }
        }
    }
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A name: see [`super::value::check_name`].
    Name,
    /// An absolute path.
    Path,
    /// `true` or `false`.
    Flag,
    /// A size within bounds, bytes.
    Size {
        /// Least.
        min: u64,
        /// Must be a multiple of this.
        multiple: u64,
    },
    /// A time within bounds, milliseconds.
    Time {
        /// Least.
        min_ms: u64,
        /// Most.
        max_ms: u64,
    },
    /// A whole number within bounds.
    Number {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// One of these words (or whole numbers).
    Choice(&'static [&'static str]),
    /// A list of `address:port`; with `names`, host names are allowed too.
    Addresses {
        /// Host names are allowed.
        names: bool,
    },
    /// A list of `sha256:…`, at most two (a second one while a key is rotated).
    Fingerprints,
    /// `"unlimited"` or bytes per second.
    Rate,
    /// `"2x"` or a time.
    Latency,
    /// 32 hexadecimal digits.
    Uuid,
    /// The NAME of a section of this kind.
    NameOf(Section),
}

/// What holds when the key is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The key must be there.
    Required,
    /// As if this were written.
    Value(&'static str),
    /// Nothing, which means this.
    Nothing(&'static str),
    /// Worked out from other facts, as this says.
    Derived(&'static str),
}

/// What a running daemon does with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `kagami reload` takes it over.
    Live,
    /// It needs a restart of the daemon.
    Restart,
    /// It never changes once the store exists.
    Never,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Where it belongs.
    pub section: Section,
    /// How it is written.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What holds without it.
    pub fallback: Fallback,
    /// What a running daemon does with a change.
    pub change: Change,
    /// One line of explanation.
    pub explanation: &'static str,
}

const fn key(
    section: Section,
    name: &'static str,
    kind: Kind,
    fallback: Fallback,
    change: Change,
    explanation: &'static str,
) -> Key {
    Key {
        section,
        name,
        kind,
        fallback,
        change,
        explanation,
    }
}

use Change::{Live, Never, Restart};
use Fallback::{Derived, Nothing, Required, Value};
use Section::{Arbiter, Mirror, Nbd, Node, Peer, Resync, Witness};

const COUNT_MAX: u64 = i64::MAX as u64;
const TIMEOUT: Kind = Kind::Time {
    min_ms: 100,
    max_ms: 600_000,
};

/// Every key there is.
pub const KEYS: &[Key] = &[
    key(
        Node,
        "name",
        Kind::Name,
        Required,
        Restart,
        "The name of this node; the other node uses it in its [peer.NAME].",
    ),
    key(
        Node,
        "id",
        Kind::Number {
            min: 1,
            max: COUNT_MAX,
        },
        Required,
        Never,
        "This node's identity for the peer, drawn by `kagami init`. The lower of two dials, and wins a tie.",
    ),
    key(
        Node,
        "listen",
        Kind::Addresses { names: false },
        Value("[::]:7789"),
        Restart,
        "Where the peers reach this node (UDP), IPv4 and IPv6.",
    ),
    key(
        Node,
        "threads",
        Kind::Number { min: 1, max: 256 },
        Value("1"),
        Restart,
        "Data-plane threads. A mirror belongs to one of them.",
    ),
    key(
        Node,
        "buffers",
        Kind::Size {
            min: 4 << 20,
            multiple: 4096,
        },
        Value("64MiB"),
        Restart,
        "Memory for data in flight, for each data-plane thread.",
    ),
    key(
        Node,
        "state-dir",
        Kind::Path,
        Derived("/var/lib/kagami for root, else the user's state folder"),
        Restart,
        "This node's key and the stores that `kagami init` creates without being told where.",
    ),
    key(
        Node,
        "run-dir",
        Kind::Path,
        Derived("/run/kagami for root, else the user's runtime folder"),
        Restart,
        "Sockets.",
    ),
    key(
        Node,
        "control",
        Kind::Path,
        Derived("control.sock in run-dir"),
        Restart,
        "The Unix socket over which commands reach the daemon.",
    ),
    key(
        Node,
        "control-group",
        Kind::Text,
        Nothing("only the user that runs the daemon"),
        Restart,
        "A group whose members may give commands, too.",
    ),
    key(
        Node,
        "log-level",
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        Value("info"),
        Live,
        "The least severity that is logged.",
    ),
    key(
        Node,
        "log-format",
        Kind::Choice(&["text", "json"]),
        Value("text"),
        Restart,
        "How a line of the log is written.",
    ),
    key(
        Mirror,
        "uuid",
        Kind::Uuid,
        Required,
        Never,
        "Which mirror this is, the same on both nodes; drawn by `kagami init`.",
    ),
    key(
        Mirror,
        "size",
        Kind::Size {
            min: 1 << 20,
            multiple: 4096,
        },
        Required,
        Never,
        "The size of the device, the same on both nodes; a multiple of 4096 bytes.",
    ),
    key(
        Mirror,
        "backing",
        Kind::Path,
        Required,
        Restart,
        "The backing store: the file or block device that holds this node's copy.",
    ),
    key(
        Mirror,
        "metadata",
        Kind::Path,
        Required,
        Restart,
        "The metadata store: superblock, bitmap and activity log of this copy.",
    ),
    key(
        Mirror,
        "protocol",
        Kind::Choice(&["A", "B", "C"]),
        Value("C"),
        Live,
        "A write is answered when it is on this disk (A), in the peer's memory too (B), on both disks (C).",
    ),
    key(
        Mirror,
        "solo",
        Kind::Choice(&["never", "arbiter", "always"]),
        Value("never"),
        Live,
        "Whether a copy that loses its peer may go on alone: only with consent or by force, if the arbiter says so, or always.",
    ),
    key(
        Mirror,
        "peer",
        Kind::NameOf(Peer),
        Nothing("not paired yet: only this node has a copy"),
        Restart,
        "The other node.",
    ),
    key(
        Mirror,
        "arbiter",
        Kind::NameOf(Arbiter),
        Nothing("no arbiter"),
        Restart,
        "Who decides for `solo = \"arbiter\"`.",
    ),
    key(
        Mirror,
        "thread",
        Kind::Number { min: 0, max: 255 },
        Value("0"),
        Restart,
        "The data-plane thread the mirror belongs to, counted from 0.",
    ),
    key(
        Mirror,
        "logical-block",
        Kind::Choice(&["512", "4096"]),
        Value("512"),
        Restart,
        "The least unit of I/O that clients are told, bytes.",
    ),
    key(
        Mirror,
        "nbd-socket",
        Kind::Path,
        Derived("NAME.nbd in run-dir"),
        Restart,
        "The Unix socket on which the mirror is served.",
    ),
    key(
        Mirror,
        "after-sb-0pri",
        Kind::Choice(&[
            "disconnect",
            "discard-zero-changes",
            "discard-least-changes",
        ]),
        Value("disconnect"),
        Live,
        "After a split brain, neither copy Primary: tell and wait, or drop the copy with no changes, or the one with fewer.",
    ),
    key(
        Mirror,
        "after-sb-1pri",
        Kind::Choice(&["disconnect", "discard-secondary", "consensus"]),
        Value("disconnect"),
        Live,
        "After a split brain, one copy Primary: tell and wait, drop the Secondary's changes, or do so if after-sb-0pri agrees.",
    ),
    key(
        Mirror,
        "after-sb-2pri",
        Kind::Choice(&["disconnect"]),
        Value("disconnect"),
        Live,
        "After a split brain, both copies Primary: tell and wait.",
    ),
    key(
        Mirror,
        "both-stale",
        Kind::Choice(&["wait", "prefer-last-primary", "prefer-local"]),
        Value("wait"),
        Live,
        "When no good copy has permission to serve: wait for a word, or force the last Primary's copy, or this node's.",
    ),
    key(
        Mirror,
        "flush-after",
        Kind::Time {
            min_ms: 10,
            max_ms: 60_000,
        },
        Value("1s"),
        Live,
        "Both copies are flushed after this long with unflushed writes, though no client asks.",
    ),
    key(
        Mirror,
        "activity-log-extents",
        Kind::Number {
            min: 64,
            max: 65_536,
        },
        Value("1024"),
        Restart,
        "Extents of 4 MiB that may be written without a metadata write; they are resynchronised after a crash of the Primary.",
    ),
    key(
        Resync,
        "latency-target",
        Kind::Latency,
        Value("2x"),
        Live,
        "How far a resynchronisation may raise the application's p99 latency: a multiple, or a time.",
    ),
    key(
        Resync,
        "max-rate",
        Kind::Rate,
        Value("unlimited"),
        Live,
        "The most a resynchronisation sends, bytes per second.",
    ),
    key(
        Resync,
        "window",
        Kind::Size {
            min: 64 << 10,
            multiple: 4096,
        },
        Value("8MiB"),
        Live,
        "The most data of a resynchronisation in flight.",
    ),
    key(
        Resync,
        "checksum-first",
        Kind::Flag,
        Value("true"),
        Live,
        "Compare checksums before sending where whole extents are marked.",
    ),
    key(
        Peer,
        "id",
        Kind::Number {
            min: 1,
            max: COUNT_MAX,
        },
        Required,
        Restart,
        "The peer's [node] id.",
    ),
    key(
        Peer,
        "addresses",
        Kind::Addresses { names: true },
        Required,
        Restart,
        "Where the peer is reached, tried in turn.",
    ),
    key(
        Peer,
        "fingerprints",
        Kind::Fingerprints,
        Required,
        Restart,
        "The keys the peer is known by, and nothing else; two while a key is rotated.",
    ),
    key(
        Peer,
        "timeout",
        TIMEOUT,
        Value("2s"),
        Live,
        "Silence for this long means that the peer is not reachable; also the lease under which reads are answered.",
    ),
    key(
        Peer,
        "ack-timeout",
        TIMEOUT,
        Value("10s"),
        Live,
        "A write or flush that the peer leaves unanswered for this long closes the session.",
    ),
    key(
        Arbiter,
        "addresses",
        Kind::Addresses { names: true },
        Required,
        Restart,
        "Where the arbiter is reached, tried in turn.",
    ),
    key(
        Arbiter,
        "fingerprints",
        Kind::Fingerprints,
        Required,
        Restart,
        "The keys the arbiter is known by; two while a key is rotated.",
    ),
    key(
        Arbiter,
        "timeout",
        TIMEOUT,
        Value("2s"),
        Live,
        "A question to the arbiter is given up and asked again after this long.",
    ),
    key(
        Nbd,
        "listen",
        Kind::Addresses { names: false },
        Nothing("Unix sockets only"),
        Restart,
        "TCP addresses on which all mirrors are served, each as an export of its name.",
    ),
    key(
        Nbd,
        "certificate",
        Kind::Path,
        Nothing("no TLS"),
        Restart,
        "The server's certificate chain, PEM.",
    ),
    key(
        Nbd,
        "key",
        Kind::Path,
        Nothing("no TLS"),
        Restart,
        "The certificate's private key, PEM.",
    ),
    key(
        Nbd,
        "client-ca",
        Kind::Path,
        Nothing("no client certificates are asked for"),
        Restart,
        "Clients must show a certificate that this authority signed, PEM.",
    ),
    key(
        Witness,
        "listen",
        Kind::Addresses { names: false },
        Value("[::]:7790"),
        Restart,
        "Where nodes reach this arbiter (UDP).",
    ),
];

/// The key of that name in that section.
pub fn find(section: Section, name: &str) -> Option<&'static Key> {
    KEYS.iter()
        .find(|key| key.section == section && key.name == name)
}

/// The keys of a section, in the table's order.
pub fn of(section: Section) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section == section)
}

/// The nearest of `known` to what was written, if any is near enough to be meant.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
    let written = plain(written);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&written, &plain(name)), name))
        .min()
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .map(|(_, name)| name)
}

impl Kind {
    /// What may be written, for the documentation.
    pub fn spelled(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Name => "a name".to_owned(),
            Self::Path => "an absolute path".to_owned(),
            Self::Flag => "`true` or `false`".to_owned(),
            Self::Size { .. } => "a size, like `\"20G\"`".to_owned(),
            Self::Time { .. } => "a time, like `\"2s\"`".to_owned(),
            Self::Number { min, max } if max == COUNT_MAX => format!("a number from {min}"),
            Self::Number { min, max } => format!("a number from {min} to {max}"),
            Self::Choice(words) => words
                .iter()
                .map(|word| {
                    if word.parse::<u64>().is_ok() {
                        format!("`{word}`")
                    } else {
                        format!("`\"{word}\"`")
                    }
                })
                .collect::<Vec<_>>()
                .join(", "),
            Self::Addresses { names: false } => "a list of `\"address:port\"`".to_owned(),
            Self::Addresses { names: true } => "a list of `\"address-or-name:port\"`".to_owned(),
            Self::Fingerprints => "a list of one or two `\"sha256:…\"`".to_owned(),
            Self::Rate => "`\"unlimited\"` or a rate, like `\"100MiB/s\"`".to_owned(),
            Self::Latency => "a multiple, like `\"2x\"`, or a time, like `\"5ms\"`".to_owned(),
            Self::Uuid => "32 hexadecimal digits".to_owned(),
            Self::NameOf(section) => format!("the NAME of a `{}`", section.heading("NAME")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_the_table_once() {
        for (index, key) in KEYS.iter().enumerate() {
            assert!(
                !KEYS[..index]
                    .iter()
                    .any(|k| k.section == key.section && k.name == key.name),
                "{} {}",
                key.section.heading("NAME"),
                key.name
            );
            assert!(key.explanation.ends_with('.'), "{}", key.name);
        }
    }

    #[test]
    fn the_nearest_key_is_one_that_was_meant() {
        let names = || of(Mirror).map(|key| key.name);
        assert_eq!(nearest("protocl", names()), Some("protocol"));
        assert_eq!(nearest("logical_block", names()), Some("logical-block"));
        assert_eq!(nearest("soło", names()), Some("solo"));
        assert_eq!(nearest("colour", names()), None);
    }
}
