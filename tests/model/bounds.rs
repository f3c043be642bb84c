//! What a run may do, and how often: the bounds of a search.

use std::fmt;

use super::mistake::Mistake;

/// The setting `solo` of the mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Arbiter,
    Always,
    Never,
}

/// How the two copies begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum First {
    /// In sync, A Primary.
    InSync,
    /// Never written, both stores read as zeroes, both Secondary.
    Zeroed,
    /// A holds data that are to be kept, B was never written.
    Keep,
}

macro_rules! bounds {
    ($($name:ident: $type:ty = $default:expr, $what:literal;)*) => {
        /// The bounds. Counts are of both nodes together.
        #[derive(Clone, Copy, Debug)]
        pub struct Bounds {
            $(#[doc = $what] pub $name: $type,)*
        }

        impl Default for Bounds {
            fn default() -> Self {
                Bounds { $($name: $default,)* }
            }
        }

        impl Bounds {
            /// Every key, its default, and what it means.
            pub fn keys() -> Vec<(&'static str, String, &'static str)> {
                let standard = Bounds::default();
                vec![$((stringify!($name), standard.$name.word(), $what),)*]
            }

            /// Sets one bound from `key=value`.
            ///
            /// Errors: what is wrong with it, in words.
            pub fn set(&mut self, assignment: &str) -> Result<(), String> {
                let Some((key, value)) = assignment.split_once('=') else {
                    return Err(format!("`{assignment}` is not KEY=VALUE"));
                };
                match key {
                    $(stringify!($name) => self.$name = <$type>::parse(value)
                        .ok_or_else(|| format!("`{value}` is no value of `{key}`"))?,)*
                    _ => return Err(format!("`{key}` is not a bound; `kagami-model check --help` lists them")),
                }
                Ok(())
            }
        }

        impl fmt::Display for Bounds {
            /// The bounds that are not as by default.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let standard = Bounds::default();
                let mut first = true;
                $(if self.$name != standard.$name {
                    if !std::mem::take(&mut first) {
                        write!(f, " ")?;
                    }
                    write!(f, "{}={}", stringify!($name), self.$name.word())?;
                })*
                if first { write!(f, "defaults") } else { Ok(()) }
            }
        }
    };
}

bounds! {
    mode: Mode = Mode::Arbiter, "arbiter, always or never: the setting `solo`";
    first: First = First::InSync, "insync, zeroed or keep: how the copies begin";
    blocks: u8 = 1, "blocks of the mirror, 1 or 2";
    writes: u8 = 1, "writes of clients";
    crashes: u8 = 1, "crashes of a machine";
    deaths: u8 = 0, "deaths of a daemon whose machine lives";
    drops: u8 = 1, "link ends that close by themselves";
    handshakes: u8 = 2, "handshakes";
    attempts: u8 = 1, "attempts at the arbiter";
    force: u8 = 0, "promotions that an operator forces";
    leave: bool = false, "a Secondary may leave cleanly";
    disk_failures: u8 = 0, "disks that fail";
    wipes: u8 = 0, "times that the register is lost";
    fine: bool = false, "local writes and cooling extents are steps of their own";
    served_target: bool = false, "a resync target may be Primary";
    guest: bool = false, "a resync target may be Primary, and its source answers for it";
    messages: bool = false, "handshake and promotion are made of messages";
    promotions: u8 = 9, "promotions in a session";
    late: bool = false, "what an older session sent to a disk may land after it ended (ack-timeout)";
    replace_node: u8 = 0, "nodes replaced by new ones";
    replace_arbiter: u8 = 0, "arbiters replaced by another";
    source_only: bool = false, "writes during a resync go to the source alone (an older rule)";
    mistake: Mistake = Mistake::None, "a planted mistake";
}

/// A value of a bound, as a person writes it.
trait Word: Sized + PartialEq {
    fn parse(text: &str) -> Option<Self>;
    fn word(&self) -> String;
}

impl Word for u8 {
    fn parse(text: &str) -> Option<Self> {
        // More would overflow what a state has room for.
        text.parse().ok().filter(|n| *n <= 9)
    }
    fn word(&self) -> String {
        self.to_string()
    }
}

impl Word for bool {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "0" | "no" => Some(false),
            "1" | "yes" => Some(true),
            _ => None,
        }
    }
    fn word(&self) -> String {
        u8::from(*self).to_string()
    }
}

impl Word for Mode {
    fn parse(text: &str) -> Option<Self> {
        [Mode::Arbiter, Mode::Always, Mode::Never]
            .into_iter()
            .find(|mode| mode.word() == text)
    }
    fn word(&self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

impl Word for First {
    fn parse(text: &str) -> Option<Self> {
        [First::InSync, First::Zeroed, First::Keep]
            .into_iter()
            .find(|first| first.word() == text)
    }
    fn word(&self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

impl Word for Mistake {
    fn parse(text: &str) -> Option<Self> {
        Mistake::ALL.iter().copied().find(|m| m.name() == text)
    }
    fn word(&self) -> String {
        self.name().to_owned()
    }
}

impl Bounds {
    /// Bounds from assignments separated by spaces; for lists in the code.
    ///
    /// Panics: the list is wrong.
    pub fn of(assignments: &str) -> Self {
        let mut bounds = Bounds::default();
        for assignment in assignments.split_whitespace() {
            if let Err(what) = bounds.set(assignment) {
                panic!("{what}");
            }
        }
        bounds
    }

    /// Blocks of this run.
    pub fn each_block(&self) -> impl Iterator<Item = u8> + use<> {
        0..self.blocks
    }

    /// All blocks marked.
    pub fn all_marks(&self) -> u8 {
        (1 << self.blocks) - 1
    }

    /// The checks of clients' data hold: not after a force, and `solo = always` promises nothing.
    pub fn promises(&self, forced: bool) -> bool {
        self.mode != Mode::Always && !forced
    }
}
