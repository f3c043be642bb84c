//! What commands ask of the daemon, and what it answers.
//!
//! A connection carries one request and its answers: most have one; [`Ask::Watch`] and
//! [`Ask::Events`] go on until the client hangs up or the daemon stops.

use serde::{Deserialize, Serialize};

use super::report::{EventReport, RightReport, StatusReport};
use crate::control::driver::{Driver, Wanted};

/// The version of this protocol; both sides are usually the same binary. At an upgrade the failover manager and its
/// guard are replaced after the daemon: where it is raised they hear nothing for so long.
pub const PROTOCOL: u32 = 1;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`PROTOCOL`]
    pub protocol: u32,
    /// What is wanted.
    pub ask: Ask,
}

impl Request {
    /// A request of this version.
    pub fn new(ask: Ask) -> Self {
        Self {
            protocol: PROTOCOL,
            ask,
        }
    }
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// [`Answer::Status`], once.
    Status,
    /// [`Answer::Status`], again and again.
    Watch {
        /// Milliseconds between two; at least 50.
        every_ms: u64,
    },
    /// [`Answer::Event`], the present state first.
    Events,
    /// [`Answer::Done`], [`Answer::Started`], [`Answer::Nothing`] or [`Answer::Refused`].
    Mirror {
        /// Which.
        mirror: String,
        /// What it shall do.
        order: Order,
    },
    /// An order of the failover manager, which has taken these mirrors in hand by [`Ask::Rights`]:
    /// answered as [`Ask::Mirror`] is.
    Managed {
        /// Which.
        mirror: String,
        /// What it shall do.
        order: Order,
    },
    /// [`Answer::Right`]: what being Primary rests on, of each of these mirrors, at once, whenever it
    /// changes, and again and again.
    Rights {
        /// Which.
        mirrors: Vec<String>,
        /// Milliseconds between two of a mirror, at most; at least 20.
        every_ms: u64,
        /// For as long as this connection lasts the roles and devices of these mirrors are the asker's business: a
        /// promotion (an attach that needs one, too), a demotion or a detach by anybody else is refused, unless it
        /// is forced.
        take_in_hand: bool,
    },
    /// Read the configuration again: [`Answer::Reloaded`] or [`Answer::Refused`].
    Reload,
    /// Show the next key instead of the present one: [`Answer::Rotated`] or [`Answer::Refused`].
    Rotate,
    /// Stop cleanly: [`Answer::Done`] when everything is on disk and the daemon is about to end.
    Stop,
}

/// Which copy a resynchronisation takes the data from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// This node's copy; the peer's own changes are lost.
    Local,
    /// The peer's copy; this node's own changes are lost.
    Peer,
}

/// An operator's order to a mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// Become Primary.
    Promote {
        /// Override the rules that refuse it.
        force: bool,
        /// Also while this copy is being resynchronised: the other node answers for it.
        #[serde(default)]
        while_resyncing: bool,
    },
    /// Become Primary: a fence script has said that the other node is down.
    PromoteFenced,
    /// Stop being Primary.
    Demote {
        /// Fail what can't be finished.
        force: bool,
    },
    /// Resynchronise.
    Resync {
        /// Whose data stays.
        from: Option<Source>,
        /// All blocks.
        full: bool,
    },
    /// Hold the resynchronisation.
    PauseSync,
    /// Go on with it.
    ResumeSync,
    /// Compare both copies.
    Verify {
        /// Resynchronise what differs.
        repair: bool,
    },
    /// Stop comparing.
    StopVerify,
    /// This copy is not to be trusted.
    Invalidate,
    /// End the session and stay without one.
    Disconnect,
    /// Look for the peer again.
    Connect,
    /// The other copy is that node's from now on; the one before is never believed again.
    SetPeer {
        /// Its id; none: there is no other copy.
        peer: Option<u64>,
    },
    /// Become a block device of this machine: [`Answer::Attached`].
    Attach {
        /// N of /dev/nbdN or /dev/ublkbN; none: a free one.
        device: Option<u32>,
        /// By which driver; none: nbd, or as it is attached already. A daemon that knows no other refuses one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        driver: Option<Driver>,
    },
    /// Be one no longer.
    Detach {
        /// Whoever uses it.
        force: bool,
    },
}

impl std::fmt::Display for Order {
    /// As it is given on the command line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flag = |set: bool, flag: &'static str| if set { flag } else { "" };
        match self {
            Self::Promote {
                force,
                while_resyncing,
            } => {
                let early = flag(*while_resyncing, " --while-resyncing");
                write!(f, "promote{}{early}", flag(*force, " --force"))
            }
            Self::PromoteFenced => f.write_str("promote (the other node is fenced)"),
            Self::Demote { force } => write!(f, "demote{}", flag(*force, " --force")),
            Self::Resync { from, full } => {
                let from = match from {
                    Some(Source::Local) => " --from local",
                    Some(Source::Peer) => " --from peer",
                    None => "",
                };
                write!(f, "resync{from}{}", flag(*full, " --full"))
            }
            Self::PauseSync => f.write_str("pause-sync"),
            Self::ResumeSync => f.write_str("resume-sync"),
            Self::Verify { repair } => write!(f, "verify{}", flag(*repair, " --repair")),
            Self::StopVerify => f.write_str("verify --stop"),
            Self::Invalidate => f.write_str("invalidate"),
            Self::Disconnect => f.write_str("disconnect"),
            Self::Connect => f.write_str("connect"),
            Self::SetPeer { peer: None } => f.write_str("remove-peer"),
            Self::SetPeer { peer: Some(id) } => write!(f, "replace-peer (node {id})"),
            Self::Attach { device, driver } => {
                let wanted = Wanted {
                    driver: *driver,
                    index: *device,
                };
                match wanted.id() {
                    Some(id) => write!(f, "attach --device {id}"),
                    None => write!(
                        f,
                        "attach{}",
                        flag(*driver == Some(Driver::Ublk), " --ublk")
                    ),
                }
            }
            Self::Detach { force } => write!(f, "detach{}", flag(*force, " --force")),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The state.
    Status(Box<StatusReport>),
    /// What a mirror's being Primary rests on.
    Right(RightReport),
    /// Something happened.
    Event(EventReport),
    /// Events came faster than this client read them.
    Missed {
        /// How many were dropped.
        events: u64,
    },
    /// Done.
    Done,
    /// Begun; its progress is in the status.
    Started,
    /// It is a block device now.
    Attached {
        /// `/dev/nbdN` or `/dev/ublkbN`
        device: String,
        /// `/dev/kagami/NAME`, which leads there.
        link: String,
        /// It was before, too.
        already: bool,
    },
    /// There was nothing to do.
    Nothing {
        /// Why.
        why: String,
    },
    /// Refused because of the state.
    Refused(RefusalReport),
    /// The configuration was read again.
    Reloaded {
        /// In force now, a line each.
        applied: Vec<String>,
        /// Needs a restart, a line each.
        restart: Vec<String>,
    },
    /// This node shows another key.
    Rotated {
        /// Its.
        fingerprint: String,
        /// The peers that have pinned it.
        peers: Vec<String>,
    },
    /// The request was not understood; whose fault is in the words.
    NotUnderstood {
        /// What was wrong.
        why: String,
        /// The daemon's [`PROTOCOL`].
        protocol: u32,
    },
}

/// A refusal: what, the facts, and the next step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalReport {
    /// What was refused, and why, in a line.
    pub what: String,
    /// The facts behind it, a line each.
    pub facts: Vec<String>,
    /// What to do next.
    pub next: String,
}
