//! The handshake's verdict: the core's own function, called with what the model's copies say.
//!
//! There is one table, `kagami_replicator::core::decide`. A model that had a copy of it would
//! prove the copy. So a [`View`] is turned into the core's `Hello`, and the verdict remembered:
//! a search meets the same few hundred pairs millions of times.

use std::cell::RefCell;
use std::collections::HashMap;

use kagami_bitmap::superblock::{Generation, StoredDisk};
use kagami_replicator::core::NodeId;
use kagami_replicator::core::decide::{Refused, Row, Strategy, decide};
use kagami_replicator::core::message::Hello;
use kagami_replicator::core::settings::SplitBrainPolicy;
use kagami_replicator::core::state::{Protocol, Role, Solo};

use super::mistake::Mistake;
use super::state::{GENERATIONS, Node, in_history};

/// What a copy says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    pub id: u8,
    pub current: u8,
    pub history: u16,
    pub base: u8,
    pub alone: bool,
    pub was_primary: bool,
    pub inconsistent: bool,
    pub outdated: bool,
    pub forced_bad: bool,
    pub zeroed: bool,
    pub marked: bool,
    pub primary: bool,
    pub unbroken: bool,
    pub diskless: bool,
}

impl View {
    /// What `node` would say now.
    pub fn of(node: &Node, id: usize) -> Self {
        View {
            id: id as u8,
            current: node.current,
            history: node.history,
            base: node.base,
            alone: node.alone,
            was_primary: node.was_primary,
            inconsistent: node.inconsistent,
            outdated: node.outdated,
            forced_bad: node.forced_bad,
            zeroed: node.zeroed,
            marked: node.marks != 0,
            primary: node.primary,
            unbroken: node.unbroken,
            diskless: node.disk_failed,
        }
    }

    /// The core's message. Node A is 1, node B is 2; tags are the model's numbers. A history in
    /// the order of its numbers is one in the order of age: they are drawn in ascending order.
    pub fn hello(&self) -> Hello {
        let generation = |tag: u8| Generation {
            counter: u64::from(tag),
            tag: u64::from(tag),
        };
        let some = |tag: u8| (tag != 0).then(|| generation(tag));
        Hello {
            mirror: 7,
            node: NodeId(u64::from(self.id) + 1),
            size: 1 << 20,
            arbiter: None,
            current: some(self.current),
            history: (1..=GENERATIONS + 1)
                .rev()
                .filter(|tag| self.history & in_history(*tag) != 0)
                .map(generation)
                .collect(),
            base: some(self.base),
            alone: self.alone,
            was_primary: self.was_primary,
            disk: if self.inconsistent {
                StoredDisk::Inconsistent
            } else if self.outdated {
                StoredDisk::Outdated
            } else {
                StoredDisk::Consistent
            },
            diskless: self.diskless,
            forced_bad: self.forced_bad,
            zeroed: self.zeroed,
            marks: u64::from(self.marked),
            role: if self.primary {
                Role::Primary
            } else {
                Role::Secondary
            },
            unbroken: self.unbroken,
            unmap_zeroes: false,
            protocol: Protocol::C,
            solo: Solo::Arbiter,
            timeout_ms: 2000,
            split_brain: SplitBrainPolicy::default(),
            keep: None,
            full: false,
            boot: None,
        }
    }

    /// All of it in 40 bits.
    fn packed(self) -> u64 {
        let flags = [
            self.alone,
            self.was_primary,
            self.inconsistent,
            self.outdated,
            self.forced_bad,
            self.zeroed,
            self.marked,
            self.primary,
            self.unbroken,
            self.diskless,
            self.id != 0,
        ];
        let bits = flags
            .iter()
            .fold(0u64, |bits, flag| bits << 1 | u64::from(*flag));
        bits << 24
            | u64::from(self.history) << 8
            | u64::from(self.base) << 4
            | u64::from(self.current)
    }
}

/// A verdict in the model's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The row of the core's table.
    pub row: Row,
    /// What is to be done.
    pub outcome: Outcome,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Nothing,
    Resync { source: u8, full: bool },
    First { source: u8 },
    Serve,
    Refuse(Refused),
}

type Memo = HashMap<(u64, u64), Verdict, std::hash::BuildHasherDefault<super::search::Mix>>;

thread_local! {
    static KNOWN: RefCell<Memo> = RefCell::default();
}

/// The core's verdict over what `mine` and `theirs` say.
pub fn verdict(mine: &View, theirs: &View, mistake: Mistake) -> Verdict {
    if let Some(wrong) = planted(mine, theirs, mistake) {
        return wrong;
    }
    let key = (mine.packed(), theirs.packed());
    KNOWN.with_borrow_mut(|known| {
        *known
            .entry(key)
            .or_insert_with(|| ask_the_core(&mine.hello(), &theirs.hello()))
    })
}

/// Without the memory.
pub fn ask_the_core(mine: &Hello, theirs: &Hello) -> Verdict {
    let verdict = decide(mine, theirs);
    let node = |id: NodeId| (id.0 - 1) as u8;
    Verdict {
        row: verdict.row,
        outcome: match verdict.strategy {
            Strategy::Nothing => Outcome::Nothing,
            Strategy::Marks { source } => Outcome::Resync {
                source: node(source),
                full: false,
            },
            Strategy::Full { source } => Outcome::Resync {
                source: node(source),
                full: true,
            },
            Strategy::First { source } => Outcome::First {
                source: node(source),
            },
            Strategy::Serve => Outcome::Serve,
            Strategy::Refuse(refused) => Outcome::Refuse(refused),
        },
    }
}

/// The mistakes that are planted in the table itself: it is asked about a copy that says
/// something else, so that the wrong rule needs no second table.
fn planted(mine: &View, theirs: &View, mistake: Mistake) -> Option<Verdict> {
    let lie = |change: fn(&mut View)| {
        let (mut a, mut b) = (*mine, *theirs);
        change(&mut a);
        change(&mut b);
        Some(verdict(&a, &b, Mistake::None))
    };
    let same = mine.current == theirs.current;
    match mistake {
        Mistake::NothingDespiteMarks if same => lie(|v| v.marked = false),
        Mistake::CrashedPrimaryWins if same => lie(|v| v.unbroken = false),
        Mistake::TrustForced => lie(|v| v.forced_bad = false),
        _ => None,
    }
}
