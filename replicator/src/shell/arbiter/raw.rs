//! A register at some arbiter, whatever is kept in it: read, and changed by compare-and-swap.
//!
//! A mirror's arbiter ([`super::MirrorRegister`]) is built on it, and so is whoever keeps something else by the same
//! means (the right to run a group without a mirror). What a content means is the askers' business.
//!
//! [`judge`] is the one place that says what a change comes to; the witness asks it before it writes its
//! file, a client of etcd before it puts its transaction.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// A register's name: the id of the mirror or group that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegisterId(pub u128);

impl fmt::Display for RegisterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Bytes that a register's content may have: a group of some hundred mirrors fits.
pub const MAX_CONTENT: usize = 4096;

/// What a register holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Drawn when the register was created.
    pub instance: u64,
    /// Raised by every change.
    pub seq: u64,
    /// Of the change that wrote it: whoever finds its own knows that the change took place.
    pub nonce: u64,
    /// Opaque to the arbiter; at most [`MAX_CONTENT`].
    pub bytes: Vec<u8>,
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// It took place, now or when it was asked before, and is on stable storage.
    Done,
    /// It did not: the register holds something else than expected, namely this; `None`: it is empty.
    Other(Option<Content>),
}

/// Why there is no answer. Nothing is known then of a change's outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The register is other nodes': this one was replaced, or taken out.
    #[error("{0}")]
    NotOurs(String),
    /// Which arbiter said nothing that could be used, and why.
    #[error("{0}")]
    Unreachable(String),
}

/// An answer on its way. Dropping it gives the question up; a change may take place all the same.
pub type Answering<'a, T> = Pin<Box<dyn Future<Output = Result<T, NoAnswer>> + 'a>>;

/// One register at one arbiter. It answers within a time-out of its own, always.
///
/// What is said to be done is on the arbiter's stable storage; what is read is the last state that
/// anybody was told of, never an older one; an outcome that is not known is [`NoAnswer`], never a guess.
pub trait RawRegister {
    /// What it holds; `None`: there is no such register yet.
    fn read(&self) -> Answering<'_, Option<Content>>;

    /// Makes it hold `new`, if it still holds (instance, seq) `expect`; `None`: if there is none yet.
    /// `new` keeps the instance and raises seq.
    fn swap(&self, expect: Option<(u64, u64)>, new: Content) -> Answering<'_, Swap>;

    /// Lets the nodes that share it now use it, and no others, where the arbiter knows such a thing.
    fn bind(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(async {})
    }

    /// Kind, name and place, for people.
    fn describe(&self) -> String;
}

/// What a change comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is to be written.
    Write,
    /// It is there already: asked before, and the answer was lost.
    Done,
    /// Something else is there than was expected.
    Other,
    /// No change of a register is like that.
    Senseless(String),
}

/// What becomes of a register that holds `present` when it is asked to go from `expect` to `new`.
pub fn judge(present: Option<&Content>, expect: Option<(u64, u64)>, new: &Content) -> Judgement {
    let found = present.map(|content| (content.instance, content.seq));
    if found != expect {
        return match present {
            Some(content) if content == new => Judgement::Done,
            _ => Judgement::Other,
        };
    }
    match found {
        Some((instance, seq)) if new.instance != instance || new.seq <= seq => {
            Judgement::Senseless(format!(
                "a change keeps the instance and raises seq: from ({instance}, {seq}) to ({}, {})",
                new.instance, new.seq
            ))
        }
        // The next change could not raise it, and the register would be stuck.
        _ if new.seq == u64::MAX => Judgement::Senseless("no seq comes after its seq".to_owned()),
        _ => Judgement::Write,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(instance: u64, seq: u64, nonce: u64) -> Content {
        Content {
            instance,
            seq,
            nonce,
            bytes: vec![seq as u8],
        }
    }

    #[test]
    fn a_change_is_written_once() {
        let (old, new) = (content(7, 1, 10), content(7, 2, 11));
        assert_eq!(judge(None, None, &old), Judgement::Write);
        assert_eq!(judge(Some(&old), None, &old), Judgement::Done);
        assert_eq!(judge(Some(&old), Some((7, 1)), &new), Judgement::Write);
        assert_eq!(judge(Some(&new), Some((7, 1)), &new), Judgement::Done);
    }

    #[test]
    fn what_was_not_expected_is_left_alone() {
        let (old, new) = (content(7, 1, 10), content(7, 2, 11));
        // Another asker's change, of the same numbers.
        assert_eq!(
            judge(Some(&content(7, 2, 99)), Some((7, 1)), &new),
            Judgement::Other
        );
        assert_eq!(judge(None, Some((7, 1)), &new), Judgement::Other);
        assert_eq!(judge(Some(&old), None, &new), Judgement::Other);
        assert_eq!(
            judge(Some(&content(8, 1, 10)), Some((7, 1)), &new),
            Judgement::Other
        );
    }

    #[test]
    fn seq_only_rises_and_the_instance_stays() {
        let old = content(7, 5, 10);
        for new in [content(7, 5, 11), content(7, 4, 11), content(8, 6, 11)] {
            let judged = judge(Some(&old), Some((7, 5)), &new);
            assert!(matches!(judged, Judgement::Senseless(_)), "{judged:?}");
        }
        for (present, expect) in [(None, None), (Some(&old), Some((7, 5)))] {
            let judged = judge(present, expect, &content(7, u64::MAX, 11));
            assert!(matches!(judged, Judgement::Senseless(_)), "{judged:?}");
        }
    }
}
