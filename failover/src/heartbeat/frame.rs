//! A heartbeat's bytes, and which of those that arrive are believed.
//!
//! Little-endian:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 4 | `KGHB` |
//! | 4 | 1 | version, 2 |
//! | 5 | 1 | the sender: its place in `[cluster] nodes` |
//! | 6 | 2 | length of the words |
//! | 8 | 8 | the cluster: the first bytes of the SHA-256 of its name |
//! | 16 | 8 | the sender's life: higher than any before |
//! | 24 | 8 | counter: raised with each heartbeat of this life |
//! | 32 | | the words, a [`Snapshot`] in postcard's encoding |
//! | | 32 | HMAC-SHA-256 by the cluster's key over the cluster's name, the heartbeat's name, and all before it |
//!
//! The heartbeat's name is part of what is signed: what was recorded on one line counts for nothing
//! on another. Of what is signed rightly, a lower life and a counter that was heard are refused. A
//! receiver that has just started knows no life yet; there the core wants its own life echoed.

use std::fmt;

use crate::core::{Node, Snapshot};

use super::key::Key;

const MAGIC: &[u8; 4] = b"KGHB";
const VERSION: u8 = 2;
const HEAD: usize = 32;
const TAG: usize = 32;
/// The longest frame, in bytes: what a datagram holds.
pub const FRAME_MAX: usize = 60_000;

/// Why a frame is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// It is no heartbeat, or a damaged one.
    Garbage,
    /// Another version of the program sent it.
    OtherVersion(u8),
    /// It is another cluster's.
    OtherCluster,
    /// It is not signed with the cluster's key.
    Stranger,
    /// It is this node's own.
    Own,
    /// The sender's manager has started again since.
    EarlierLife,
    /// It was heard before, or a later one was.
    Repeated,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Garbage => f.write_str("no heartbeat, or a damaged one"),
            Self::OtherVersion(version) => {
                write!(f, "of version {version}, this program speaks {VERSION}")
            }
            Self::OtherCluster => f.write_str("of another cluster"),
            Self::Stranger => f.write_str(
                "not signed with this cluster's key: a stranger, or the nodes' keys differ",
            ),
            Self::Own => f.write_str("this node's own: is the address, line or disk the other's?"),
            Self::EarlierLife => {
                f.write_str("from before the other node's manager started: recorded and sent again")
            }
            Self::Repeated => f.write_str("heard before: repeated or overtaken on the way"),
        }
    }
}

/// What signs and believes the frames of one heartbeat.
#[derive(Clone, Debug)]
pub struct Seal {
    key: Key,
    me: Node,
    cluster: [u8; 8],
    context: Vec<u8>,
}

impl Seal {
    /// Of the heartbeat of this name, for node `me`.
    pub fn new(key: Key, cluster: &str, heartbeat: &str, me: Node) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, cluster.as_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&digest.as_ref()[..8]);
        // Names have no zero byte: no two pairs of names give the same bytes.
        let context = format!("kagami heartbeat {VERSION}\0{cluster}\0{heartbeat}\0");
        Self {
            key,
            me,
            cluster: id,
            context: context.into_bytes(),
        }
    }

    /// The bytes of a heartbeat; `None`: it is longer than a frame can be.
    pub fn close(&self, snapshot: &Snapshot) -> Option<Vec<u8>> {
        let words = postcard::to_allocvec(snapshot).ok()?;
        if words.len() + HEAD + TAG > FRAME_MAX {
            return None;
        }
        let length = u16::try_from(words.len()).ok()?;
        let mut frame = Vec::with_capacity(HEAD + words.len() + TAG);
        frame.extend_from_slice(MAGIC);
        frame.push(VERSION);
        frame.push(self.me as u8);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&self.cluster);
        frame.extend_from_slice(&snapshot.incarnation.to_le_bytes());
        frame.extend_from_slice(&snapshot.seq.to_le_bytes());
        debug_assert_eq!(frame.len(), HEAD);
        frame.extend_from_slice(&words);
        let tag = self.key.sign(&self.context, &frame);
        frame.extend_from_slice(tag.as_ref());
        Some(frame)
    }

    /// The sender's life, its counter and what it says, if it is signed by the other node; what follows the
    /// frame is ignored.
    ///
    /// # Errors
    /// It is not to be believed.
    pub fn open(&self, bytes: &[u8]) -> Result<Snapshot, Refused> {
        if bytes.len() < HEAD + TAG || &bytes[..4] != MAGIC {
            return Err(Refused::Garbage);
        }
        if bytes[4] != VERSION {
            return Err(Refused::OtherVersion(bytes[4]));
        }
        if bytes[8..16] != self.cluster {
            return Err(Refused::OtherCluster);
        }
        let length = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        let end = HEAD + length;
        if bytes.len() < end + TAG {
            return Err(Refused::Garbage);
        }
        if !self
            .key
            .verify(&self.context, &bytes[..end], &bytes[end..end + TAG])
        {
            return Err(Refused::Stranger);
        }
        // From here on only who has the key can be at fault.
        if usize::from(bytes[5]) != 1 - self.me {
            return Err(Refused::Own);
        }
        let snapshot: Snapshot =
            postcard::from_bytes(&bytes[HEAD..end]).map_err(|_| Refused::Garbage)?;
        let number = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        if (number(16), number(24)) != (snapshot.incarnation, snapshot.seq) {
            return Err(Refused::Garbage);
        }
        Ok(snapshot)
    }
}

/// What was heard on one heartbeat, and what was refused.
#[derive(Debug, Default)]
pub struct Gate {
    life: u64,
    counter: u64,
    refused: std::collections::BTreeMap<Refused, (u64, u64)>,
}

/// People are told of one kind of refused heartbeats at most this often, in milliseconds.
const TOLD_EVERY: u64 = 600_000;

impl Gate {
    /// Lets a heartbeat in that is newer than all before it.
    ///
    /// # Errors
    /// It is not.
    pub fn admit(&mut self, snapshot: &Snapshot) -> Result<(), Refused> {
        if snapshot.incarnation < self.life {
            return Err(Refused::EarlierLife);
        }
        if snapshot.incarnation == self.life && snapshot.seq <= self.counter {
            return Err(Refused::Repeated);
        }
        self.life = snapshot.incarnation;
        self.counter = snapshot.seq;
        Ok(())
    }

    /// Counts one that was refused; so many of its kind are to be told now.
    pub fn count(&mut self, why: Refused, now_ms: u64) -> Option<u64> {
        let (count, told) = self.refused.entry(why).or_insert((0, 0));
        *count += 1;
        if *told != 0 && now_ms.saturating_sub(*told) < TOLD_EVERY {
            return None;
        }
        *told = now_ms.max(1);
        Some(std::mem::take(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Phase;
    use crate::core::durable::Stamp;

    fn snapshot(incarnation: u64, seq: u64) -> Snapshot {
        Snapshot {
            incarnation,
            echo: 7,
            met: 0,
            seq,
            revision: 3,
            phase: Phase::Running,
            suspended: Stamp::default(),
            shutdown: Stamp::default(),
            groups: Vec::new(),
        }
    }

    fn seal(key: u8, cluster: &str, heartbeat: &str, me: Node) -> Seal {
        Seal::new(Key::new(&[key; 32]), cluster, heartbeat, me)
    }

    #[test]
    fn the_other_node_is_believed_and_nobody_else() {
        let alpha = seal(1, "shop", "lan", 0);
        let beta = seal(1, "shop", "lan", 1);
        let frame = alpha.close(&snapshot(5, 9)).expect("short");
        assert_eq!(beta.open(&frame), Ok(snapshot(5, 9)));
        assert_eq!(alpha.open(&frame), Err(Refused::Own));
        assert_eq!(
            seal(2, "shop", "lan", 1).open(&frame),
            Err(Refused::Stranger)
        );
        assert_eq!(
            seal(1, "shop", "tty", 1).open(&frame),
            Err(Refused::Stranger),
            "recorded on another line"
        );
        assert_eq!(
            seal(1, "bank", "lan", 1).open(&frame),
            Err(Refused::OtherCluster)
        );
        assert_eq!(beta.open(b"hello"), Err(Refused::Garbage));
        let mut other = frame.clone();
        other[4] = 9;
        assert_eq!(beta.open(&other), Err(Refused::OtherVersion(9)));
    }

    #[test]
    fn no_changed_or_cut_frame_is_believed() {
        let alpha = seal(1, "shop", "lan", 0);
        let beta = seal(1, "shop", "lan", 1);
        let frame = alpha.close(&snapshot(5, 9)).expect("short");
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut changed = frame.clone();
                changed[at] ^= 1 << bit;
                assert!(beta.open(&changed).is_err(), "bit {bit} of byte {at}");
            }
            assert!(beta.open(&frame[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_was_heard_and_an_earlier_life_are_refused() {
        let mut gate = Gate::default();
        assert_eq!(gate.admit(&snapshot(5, 1)), Ok(()));
        assert_eq!(gate.admit(&snapshot(5, 3)), Ok(()));
        assert_eq!(gate.admit(&snapshot(5, 3)), Err(Refused::Repeated));
        assert_eq!(gate.admit(&snapshot(5, 2)), Err(Refused::Repeated));
        assert_eq!(gate.admit(&snapshot(6, 1)), Ok(()));
        // A higher counter does not help an earlier life.
        assert_eq!(gate.admit(&snapshot(5, 900)), Err(Refused::EarlierLife));
    }

    #[test]
    fn refusals_are_told_once_in_a_while_with_their_number() {
        let mut gate = Gate::default();
        assert_eq!(gate.count(Refused::Stranger, 1000), Some(1));
        for at in 0..10 {
            assert_eq!(gate.count(Refused::Stranger, 1001 + at), None);
        }
        assert_eq!(gate.count(Refused::Repeated, 1100), Some(1));
        assert_eq!(gate.count(Refused::Stranger, 1000 + TOLD_EVERY), Some(11));
    }
}
