//! The handshake's table (docs/protocol.md §6): two records in, one verdict out.
//!
//! Pure and symmetric: both nodes call [`decide`] with the same two hellos, each with its own
//! first, and come to the same verdict. The first row that fits counts. *bad* is Inconsistent
//! or Outdated; a *line* is `current` with its history.
//!
//! | row | mine / theirs | how a pair gets there |
//! |---|---|---|
//! | 1 OtherMirror | mirror or size differ | wrong configuration |
//! | 2 Diskless | a copy has no usable store | a disk failed |
//! | 3 `BothUnwritten` | no generation on either | just created |
//! | 4 `OneUnwritten` | no generation on one | a node or disk was replaced |
//! | 5 `SharedAlone` | same generation, one alone in it | *never*: a cloned or restored disk |
//! |   | same generation, both Primary | `solo = always`, and neither has written |
//! | 6 `SameBothBad` | same generation, both bad | a target whose source was retired |
//! | 7 `SameOneBad` | same generation, one bad | a clean leave; a resync cut before anything was minted |
//! | 8 `SameClean` | same generation, no marks | the link dropped while idle |
//! | 9 `SameMarked` | same generation, marks | the link dropped, or a machine crashed, under writes |
//! | 10 `EachAhead` | each in the other's history | *never* |
//! | 11 `AheadBad` | they are behind, I am bad | the newer copy was left while a target itself |
//! | 12 `BehindAlone` | they are behind in a generation never offered | *never* |
//! | 13 `AheadForcedBad` | they are behind, I was forced from a bad copy | an operator forced |
//! | 14 `AheadMarked` | they are behind, marks reach back far enough | the peer was away |
//! | 15 `AheadFull` | they are behind, marks do not | a disk came back after years, or a restored one |
//! | 16 Forked | a common ancestor | both went on alone |
//! | 17 Unrelated | nothing in common | another history |

use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::superblock::{Generation, StoredDisk};

use super::message::Hello;
use super::settings::{AfterSb0, AfterSb1};
use super::state::{NodeId, Role};

/// The row of the table that fired. Operators quote these words for years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the table above
pub enum Row {
    OtherMirror = 1,
    Diskless,
    BothUnwritten,
    OneUnwritten,
    SharedAlone,
    SameBothBad,
    SameOneBad,
    SameClean,
    SameMarked,
    EachAhead,
    AheadBad,
    BehindAlone,
    AheadForcedBad,
    AheadMarked,
    AheadFull,
    Forked,
    Unrelated,
}

/// What the two copies are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// They are equal.
    Nothing,
    /// The source sends what either side marked.
    Marks {
        /// Whose data stays.
        source: NodeId,
    },
    /// The source sends everything.
    Full {
        /// Whose data stays.
        source: NodeId,
    },
    /// Both read as zeroes: one mints, the other adopts, nothing is copied.
    First {
        /// Who mints.
        source: NodeId,
    },
    /// One has no disk: the other serves, or carries.
    Serve,
    /// Not without an operator's word or a policy.
    Refuse(Refused),
}

/// Why the copies are not brought together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// They are copies of different mirrors, or of one node.
    OtherMirror,
    /// One copy has been grown, the other has not.
    OtherSize {
        /// Whose is to be grown.
        smaller: NodeId,
        /// To so many bytes.
        size: u64,
    },
    /// Neither was written, and they may differ: an operator names the source.
    NameSource,
    /// No good copy is left.
    BothStale,
    /// Both went on alone.
    SplitBrain,
    /// Nothing in common.
    Unrelated,
    /// The only copy with what was answered has failed.
    NewestLost,
    /// Both nodes were made Primary while apart (`solo = always`), and neither wrote: one is demoted.
    TwoPrimaries,
    /// What the protocol rules out: a cloned or restored disk.
    Impossible,
    /// An operator chose the copy that is behind: neither it nor the other one is overwritten.
    ChosenIsBehind {
        /// Whose was chosen.
        chosen: NodeId,
    },
}

impl Refused {
    /// True if no copy is known to be good: the one that is chosen mints, whatever it is.
    pub fn waits_for_any_word(self) -> bool {
        matches!(self, Self::BothStale | Self::NameSource)
    }
}

/// A row and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Verdict {
    /// Which row fired.
    pub row: Row,
    /// What to do.
    pub strategy: Strategy,
}

impl Verdict {
    /// Whose data stays, where one copy is brought up to date from the other.
    pub fn source(self) -> Option<NodeId> {
        match self.strategy {
            Strategy::Marks { source } | Strategy::Full { source } | Strategy::First { source } => {
                Some(source)
            }
            _ => None,
        }
    }
}

fn is_bad(copy: &Hello) -> bool {
    copy.disk != StoredDisk::Consistent
}

fn has_ancestor(copy: &Hello, tag: u64) -> bool {
    let looked_at = if planted(Defect::HistoryCutShort) {
        1
    } else {
        copy.history.len()
    };
    copy.history.iter().take(looked_at).any(|g| g.tag == tag)
}

fn line_has(copy: &Hello, tag: u64) -> bool {
    copy.current.is_some_and(|g| g.tag == tag) || has_ancestor(copy, tag)
}

/// The table. `mine` and `theirs` may be swapped: the verdict names nodes, not sides.
pub fn decide(mine: &Hello, theirs: &Hello) -> Verdict {
    let verdict = by_record(mine, theirs);
    let Strategy::Refuse(refused) = verdict.strategy else {
        return heeding(verdict, mine, theirs);
    };
    let strategy = match refused {
        Refused::SplitBrain | Refused::Unrelated => {
            survivor(mine, theirs, refused).map(|source| loser_follows(mine, theirs, source))
        }
        // The others need the kept copy to mint first (see `promote`), or are final.
        _ => None,
    };
    Verdict {
        row: verdict.row,
        strategy: strategy.unwrap_or(verdict.strategy),
    }
}

/// A verdict that has a source, unless an operator chose the other copy: his word is never turned round.
fn heeding(verdict: Verdict, mine: &Hello, theirs: &Hello) -> Verdict {
    let chosen = kept(mine, theirs).filter(|chosen| verdict.source().is_some_and(|s| s != *chosen));
    let Some(chosen) = chosen.filter(|_| !planted(Defect::WordTurnedRound)) else {
        return verdict;
    };
    let strategy = match verdict.strategy {
        // Both read as zeroes: either may begin.
        Strategy::First { .. } => Strategy::First { source: chosen },
        _ => Strategy::Refuse(Refused::ChosenIsBehind { chosen }),
    };
    Verdict {
        row: verdict.row,
        strategy,
    }
}

/// The operator's word, where both hellos do not contradict each other.
pub fn kept(mine: &Hello, theirs: &Hello) -> Option<NodeId> {
    match (mine.keep, theirs.keep) {
        (Some(a), Some(b)) if a != b => None,
        (a, b) => a.or(b).filter(|id| *id == mine.node || *id == theirs.node),
    }
}

fn survivor(mine: &Hello, theirs: &Hello, refused: Refused) -> Option<NodeId> {
    // A copy that was chosen as the loser before is partly overwritten: it can only go on as the
    // target it was, whatever is said now.
    let cut = |copy: &Hello| copy.disk == StoredDisk::Inconsistent;
    match (cut(mine), cut(theirs)) {
        (true, false) => return Some(theirs.node),
        (false, true) => return Some(mine.node),
        (true, true) => return None,
        (false, false) => {}
    }
    let policy = || {
        (refused == Refused::SplitBrain)
            .then(|| by_policy(mine, theirs))
            .flatten()
    };
    // *No-silent-fork*: what a Primary has written since it was chosen was nobody's choice.
    let loses_a_primary = |kept: NodeId| {
        let loser = if kept == mine.node { theirs } else { mine };
        loser.role == Role::Primary && !planted(Defect::WordOverAPrimary)
    };
    match kept(mine, theirs) {
        Some(kept) if loses_a_primary(kept) => None,
        word => word.or_else(policy),
    }
}

fn by_policy(mine: &Hello, theirs: &Hello) -> Option<NodeId> {
    if mine.split_brain != theirs.split_brain {
        return None;
    }
    let policy = mine.split_brain;
    let fewest = |rule: AfterSb0| {
        let (least, most) = if mine.marks <= theirs.marks {
            (mine, theirs)
        } else {
            (theirs, mine)
        };
        match rule {
            AfterSb0::DiscardZeroChanges if least.marks == 0 && most.marks > 0 => Some(most.node),
            AfterSb0::DiscardLeastChanges if least.marks < most.marks => Some(most.node),
            _ => None,
        }
    };
    match (mine.role, theirs.role) {
        (Role::Secondary, Role::Secondary) => fewest(policy.after_sb_0pri),
        (Role::Primary, Role::Primary) => None,
        (Role::Primary, Role::Secondary) | (Role::Secondary, Role::Primary) => {
            let primary = if mine.role == Role::Primary {
                mine.node
            } else {
                theirs.node
            };
            match policy.after_sb_1pri {
                AfterSb1::Disconnect => None,
                AfterSb1::DiscardSecondary => Some(primary),
                AfterSb1::Consensus => {
                    fewest(policy.after_sb_0pri).filter(|source| *source == primary)
                }
            }
        }
    }
}

/// After a fork: marks do where both counted from a common ancestor.
fn loser_follows(mine: &Hello, theirs: &Hello, source: NodeId) -> Strategy {
    let common = |base: Option<Generation>| {
        base.is_some_and(|b| line_has(mine, b.tag) && line_has(theirs, b.tag))
    };
    if (common(mine.base) && common(theirs.base) || planted(Defect::LoserByMarks))
        && !mine.full
        && !theirs.full
    {
        Strategy::Marks { source }
    } else {
        Strategy::Full { source }
    }
}

fn refuse(row: Row, why: Refused) -> Verdict {
    Verdict {
        row,
        strategy: Strategy::Refuse(why),
    }
}

/// The copy of the node with the lower number: both nodes choose it.
fn lower<'a>(mine: &'a Hello, theirs: &'a Hello) -> &'a Hello {
    if mine.node < theirs.node {
        mine
    } else {
        theirs
    }
}

fn by_record(mine: &Hello, theirs: &Hello) -> Verdict {
    if mine.mirror != theirs.mirror || mine.node == theirs.node {
        return refuse(Row::OtherMirror, Refused::OtherMirror);
    }
    if mine.size != theirs.size {
        let smaller = if mine.size < theirs.size {
            mine.node
        } else {
            theirs.node
        };
        let size = mine.size.max(theirs.size);
        return refuse(Row::OtherMirror, Refused::OtherSize { smaller, size });
    }
    if mine.diskless || theirs.diskless {
        return diskless(mine, theirs);
    }
    let (Some(current), Some(other)) = (mine.current, theirs.current) else {
        return unwritten(mine, theirs);
    };
    if current.tag == other.tag {
        return same_generation(mine, theirs);
    }
    let i_am_ahead = has_ancestor(mine, other.tag);
    let they_are_ahead = has_ancestor(theirs, current.tag);
    match (i_am_ahead, they_are_ahead) {
        (true, true) => refuse(Row::EachAhead, Refused::Impossible),
        (true, false) => ahead(mine, theirs, other),
        (false, true) => ahead(theirs, mine, current),
        (false, false) => {
            let forked = line_has(theirs, current.tag)
                || mine.history.iter().any(|g| line_has(theirs, g.tag));
            if forked {
                refuse(Row::Forked, Refused::SplitBrain)
            } else {
                refuse(Row::Unrelated, Refused::Unrelated)
            }
        }
    }
}

/// Row 2.
fn diskless(mine: &Hello, theirs: &Hello) -> Verdict {
    // A Primary that lost its disk while it was ahead has nobody to serve from: the other
    // copy lacks what was answered.
    let ahead = |primary: &Hello, other: &Hello| {
        primary.diskless
            && primary.role == Role::Primary
            && primary.current.is_some_and(|g| !line_has(other, g.tag))
    };
    if ahead(mine, theirs) || ahead(theirs, mine) {
        return refuse(Row::Diskless, Refused::NewestLost);
    }
    Verdict {
        row: Row::Diskless,
        strategy: Strategy::Serve,
    }
}

/// Rows 3 and 4: one copy, or neither, has a generation.
fn unwritten(mine: &Hello, theirs: &Hello) -> Verdict {
    let written = match (mine.current, theirs.current) {
        (Some(_), _) => mine,
        (None, Some(_)) => theirs,
        (None, None) => {
            let fresh = |h: &Hello| h.zeroed && h.disk == StoredDisk::Consistent && h.marks == 0;
            if !fresh(mine) || !fresh(theirs) {
                return refuse(Row::BothUnwritten, Refused::NameSource);
            }
            return Verdict {
                row: Row::BothUnwritten,
                strategy: Strategy::First {
                    source: lower(mine, theirs).node,
                },
            };
        }
    };
    if is_bad(written) {
        return refuse(Row::OneUnwritten, Refused::BothStale);
    }
    Verdict {
        row: Row::OneUnwritten,
        strategy: Strategy::Full {
            source: written.node,
        },
    }
}

/// Rows 5 to 9.
fn same_generation(mine: &Hello, theirs: &Hello) -> Verdict {
    let marks = |row, source: &Hello| Verdict {
        row,
        strategy: Strategy::Marks {
            source: source.node,
        },
    };
    if mine.alone || theirs.alone {
        return refuse(Row::SharedAlone, Refused::Impossible);
    }
    // (Not a Primary whose copy is bad: it answers nothing by itself, and gives way.)
    let serves = |hello: &Hello| hello.role == Role::Primary && !is_bad(hello);
    if serves(mine) && serves(theirs) {
        return refuse(Row::SharedAlone, Refused::TwoPrimaries);
    }
    match (is_bad(mine), is_bad(theirs)) {
        (true, true) => return refuse(Row::SameBothBad, Refused::BothStale),
        (true, false) => return marks(Row::SameOneBad, theirs),
        (false, true) => return marks(Row::SameOneBad, mine),
        (false, false) => {}
    }
    if mine.marks == 0 && theirs.marks == 0 || planted(Defect::EqualNothingToDo) {
        return Verdict {
            row: Row::SameClean,
            strategy: Strategy::Nothing,
        };
    }
    let only = |has: fn(&Hello) -> bool| match (has(mine), has(theirs)) {
        (true, false) => Some(mine),
        (false, true) => Some(theirs),
        _ => None,
    };
    let source = only(|h| h.role == Role::Primary)
        .or_else(|| only(|h| h.unbroken && !planted(Defect::CrashedPrimaryIsSource)))
        .or_else(|| only(|h| h.was_primary))
        .unwrap_or_else(|| lower(mine, theirs));
    marks(Row::SameMarked, source)
}

/// Rows 11 to 15.
fn ahead(newer: &Hello, older: &Hello, behind: Generation) -> Verdict {
    if is_bad(newer) && !planted(Defect::BadAheadWins) {
        return refuse(Row::AheadBad, Refused::BothStale);
    }
    if older.alone {
        return refuse(Row::BehindAlone, Refused::Impossible);
    }
    if newer.forced_bad {
        return refuse(Row::AheadForcedBad, Refused::SplitBrain);
    }
    let covered = newer
        .base
        .is_some_and(|b| b.tag == behind.tag || has_ancestor(older, b.tag));
    let source = newer.node;
    if covered || planted(Defect::AlwaysMarks) {
        Verdict {
            row: Row::AheadMarked,
            strategy: Strategy::Marks { source },
        }
    } else {
        Verdict {
            row: Row::AheadFull,
            strategy: Strategy::Full { source },
        }
    }
}
