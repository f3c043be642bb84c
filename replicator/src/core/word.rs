//! An operator's word on whose copy stays (`kagami resync --from`), until the nodes meet.
//!
//! It is for the copies as the operator saw them, and it is for soon: a promotion here, `disconnect` and
//! `invalidate` take it back, and after [`LASTS_MS`] it is over. The handshake carries it out or refuses it
//! (`decide`); it never overwrites a Primary, and is never turned round (*No-silent-fork*).

use kagami_bitmap::planted::{Defect, planted};

use super::decide::{Refused, kept};
use super::message::Hello;
use super::state::{NodeId, Time};
use super::status::Chosen;
use super::{Actions, Mirror};

/// How long a word waits for the peer, ms.
pub const LASTS_MS: u64 = 600_000;

/// Whose copy stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    keep: NodeId,
    full: bool,
    since: Time,
    /// A person said so, here; else the configuration (`both-stale`), or the other node.
    by_person: bool,
}

impl Mirror {
    /// An operator has chosen.
    pub(super) fn take_word(&mut self, keep: NodeId, full: bool) {
        self.solo.word = Some(Word {
            keep,
            full,
            since: self.now,
            by_person: true,
        });
    }

    /// The configuration chooses, or nobody.
    pub(super) fn take_policy(&mut self, keep: Option<NodeId>) {
        self.solo.word = keep.map(|keep| Word {
            keep,
            full: false,
            since: self.now,
            by_person: false,
        });
    }

    /// This copy was chosen, here or there, and mints: the next meeting is to know it, too.
    pub(super) fn renew_word(&mut self, full: bool) {
        self.solo.word = Some(Word {
            keep: self.me,
            full,
            since: self.now,
            by_person: self.solo.word.is_some_and(|word| word.by_person),
        });
    }

    pub(super) fn forget_word(&mut self) {
        if !planted(Defect::WordForEver) {
            self.solo.word = None;
        }
    }

    /// The word that the next hello carries, and whether all is to be copied.
    pub(super) fn word(&self) -> (Option<NodeId>, bool) {
        let lasts = |word: &Word| self.now < word.ends() || planted(Defect::WordForEver);
        let word = self.solo.word.filter(lasts);
        (
            word.map(|word| word.keep),
            word.is_some_and(|word| word.full),
        )
    }

    /// For people: whose copy is to stay when the nodes meet.
    pub(super) fn chosen(&self, now: Time) -> Option<Chosen> {
        let word = self
            .solo
            .word
            .filter(|word| word.by_person && now < word.ends())?;
        Some(Chosen {
            keep: word.keep,
            until: word.ends(),
        })
    }

    /// The meeting has refused what this node's word was for: the word is over. One that was a person's
    /// is not followed by its opposite either: the door is shut.
    pub(super) fn word_refused(
        &mut self,
        refused: Refused,
        mine: &Hello,
        theirs: &Hello,
        out: &mut Actions,
    ) {
        let Some(word) = self.solo.word.filter(|_| mine.keep.is_some()) else {
            return;
        };
        let behind = matches!(refused, Refused::ChosenIsBehind { .. });
        let over_a_primary =
            refused == Refused::SplitBrain && kept(mine, theirs) == Some(word.keep);
        if !behind && !over_a_primary {
            return;
        }
        self.forget_word();
        if behind && word.by_person {
            self.door.cause = "the copy that was chosen is behind the other one".to_owned();
            self.door.shut = true;
            self.open_door(out);
        }
    }
}

impl Word {
    fn ends(&self) -> Time {
        self.since.after_ms(LASTS_MS)
    }
}
