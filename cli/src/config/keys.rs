//! The one table of keys: name, kind, default, what a running daemon does with a change, and a
//! line of explanation.
//!
//! The reader, `kagami config check`, `kagami config show --defaults`, `kagami reload` and
//! docs/configuration.md all go by this table, so they can't drift apart. What keys mean together
//! (a peer that must exist, two mirrors on one store) is in [`super::check`].

mod table;

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
    /// A list of `https://host:port` or `http://host:port`.
    Endpoints,
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

pub use table::KEYS;

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
            Self::Number { min, max } if max == table::COUNT_MAX => format!("a number from {min}"),
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
            Self::Endpoints => {
                "a list of `\"https://address-or-name:port\"`, or of `\"http://…\"`".to_owned()
            }
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
        let names = || of(Section::Mirror).map(|key| key.name);
        assert_eq!(nearest("protocl", names()), Some("protocol"));
        assert_eq!(nearest("logical_block", names()), Some("logical-block"));
        assert_eq!(nearest("soło", names()), Some("solo"));
        assert_eq!(nearest("colour", names()), None);
    }
}
