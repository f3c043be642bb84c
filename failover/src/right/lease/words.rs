//! What a lease is told and wants done, and how long its times are.

use serde::{Deserialize, Serialize};

use crate::config::Cluster;
use crate::core::{Right, Time};
use crate::right::MARGIN;
use crate::right::register::{Id, Record};

/// The shortest lease, in milliseconds: a manager that is replaced needs a moment.
pub(super) const SHORTEST: u64 = 3000;
/// The longest, in milliseconds: [`SLACK`] covers what a drift of 1 % each makes of it beyond 2 %.
pub(crate) const LONGEST: u64 = 60_000;
/// What rounding can come to, in milliseconds.
const SLACK: u64 = 20;

/// How long leases and waits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// A lease, from the moment when its question was sent, in milliseconds.
    pub length: u64,
    /// How long a node may be frozen with its address after its lease's end, in milliseconds.
    pub margin: u64,
}

impl Terms {
    /// Those of a cluster: a lease is as long as the longest time-out of its heartbeats, and at
    /// least three seconds.
    pub fn of(cluster: &Cluster) -> Self {
        let timeouts = cluster.heartbeats.iter().map(|h| h.timeout.0);
        Self {
            length: timeouts.max().unwrap_or(0).clamp(SHORTEST, LONGEST),
            margin: MARGIN,
        }
    }

    /// After this long the other node's lease has surely ended and its address is gone: both clocks
    /// may be wrong by 1 %.
    pub fn wait(self) -> u64 {
        self.wait_for(self.length)
    }

    /// The same of a lease that is this long: the other node may count by another revision of the
    /// configuration.
    pub fn wait_for(self, length: u64) -> u64 {
        let whole = length + self.margin;
        whole + whole.div_ceil(50) + SLACK
    }

    /// A holder renews this often what it has to renew.
    pub fn step(self) -> u64 {
        self.length / 4
    }
}

/// What this node's disk says of the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It held the right and has promised nothing since.
    Held,
    /// It may have promised.
    Free,
}

/// What this node's disk tells the manager that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What it says of the right.
    pub mark: Mark,
    /// No lease that was counted here, and none for which a promise was given, is longer: in milliseconds.
    pub length: u64,
    /// The register that both nodes have agreed on, as this one knows, by its instance.
    pub instance: Option<u64>,
}

/// What an earlier manager left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Of the right.
    pub before: Before,
    /// As [`Kept::length`]; 0: there was no earlier manager.
    pub length: u64,
    /// As [`Kept::instance`].
    pub instance: Option<u64>,
}

/// What a manager finds on its disk when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// [`Mark::Free`], or nothing: it may have promised until just now.
    Free,
    /// [`Mark::Held`], of this boot of the machine: the group may run here still.
    Held,
    /// [`Mark::Held`], of an earlier boot: nothing runs.
    HeldBeforeBoot,
    /// Something that can't be read: the worst of all.
    Unknown,
}

/// What one node asks the other: to promise that it will not challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Question {
    /// The asker holds the right, and wants to go on.
    pub held: bool,
    /// How long the asker counts what it is promised, or what runs there still by an earlier
    /// promise: in milliseconds.
    pub length: u64,
    /// The register that the asker finds at the arbiter, or has agreed on, by its instance; `None`: it
    /// knows of none.
    pub instance: Option<u64>,
    /// The token of the answer before: this question was asked after it.
    pub echo: Option<u64>,
}

/// What one node answers the other that asks for a promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// It has nothing of the group, and will not challenge for the length of a lease.
    Promised {
        /// The only register by which it will ever take the right without the asker's consent, by its
        /// instance.
        instance: Option<u64>,
        /// It would go by the register that was named, if the next question names it and repeats this: one
        /// that comes late must not make it.
        token: Option<u64>,
    },
    /// It holds the right.
    Holds,
    /// It asks for the right itself.
    Asks,
    /// Something of the group may be active there still.
    Busy,
    /// There is no answer; why.
    Silent(String),
}

/// What the arbiter says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The change took place.
    Swapped,
    /// What the register holds; nothing was changed.
    Found(Option<(Id, Record)>),
    /// There is no answer; why. Whether a change took place is not known.
    Silent(String),
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The core wants the right.
    Ask,
    /// The core gives it up, or the question for it: nothing of the group runs here.
    Release,
    /// Nothing of the group, whose right was lost, runs here any more.
    Stopped,
    /// The guard says that the right is lost.
    Lost,
    /// The guard has the group, or is stopping it.
    Guarded {
        /// Of [`Action::Arm`].
        attempt: u64,
        /// It is stopping it.
        stopping: bool,
    },
    /// No guard has the group.
    Unguarded {
        /// Of [`Action::Arm`].
        attempt: u64,
        /// Why.
        why: String,
    },
    /// [`Action::Mark`] is durable.
    Marked,
    /// The arbiter's answer.
    Arbiter {
        /// Of [`Action::Read`] or [`Action::Swap`].
        attempt: u64,
        /// What it says.
        said: Said,
    },
    /// The other node's answer.
    Peer {
        /// Of [`Action::Question`].
        nonce: u64,
        /// What it says.
        word: Word,
    },
    /// The other node's question: [`Action::Answer`] follows, at once or when the disk says so.
    Question {
        /// Comes back in the answer.
        token: u64,
        /// What is asked.
        question: Question,
    },
    /// Time has passed.
    Timer,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the arbiter what the register holds.
    Read {
        /// Comes back with the answer.
        attempt: u64,
    },
    /// Ask it to change the register.
    Swap {
        /// Comes back with the answer.
        attempt: u64,
        /// What it holds now; `None`: there is none.
        expect: Option<Id>,
        /// What it is to hold.
        new: (Id, Record),
    },
    /// Ask the other node for a promise.
    Question {
        /// Comes back with the answer.
        nonce: u64,
        /// What is asked.
        question: Question,
    },
    /// Answer the other node.
    Answer {
        /// Of [`Event::Question`].
        token: u64,
        /// What.
        word: Word,
    },
    /// Make this durable; [`Event::Marked`] follows, and none is asked for before.
    Mark(Kept),
    /// Have the guard watch the group, whose lease ends then; [`Event::Guarded`] or [`Event::Unguarded`] follows.
    Arm {
        /// Comes back with the answer.
        attempt: u64,
        /// The end of the lease.
        ends: Time,
    },
    /// Tell the guard that the lease ends later.
    Extend(Time),
    /// The guard need not watch any more.
    Disarm,
    /// Tell people that the two nodes ask different registers.
    SayApart,
    /// Tell the core.
    Tell(Right),
}

/// Actions, in order.
pub type Actions = Vec<Action>;
