//! Metadata contexts: which there are, which a query finds, and how extents become descriptors.
//!
//! `base:allocation` is the protocol's own ("The `base:` metadata namespace"). `kagami:dirty` is
//! kagami's: bit 0 of its flags is set where the peer lacks the block or may lack it. Pure.

use bytes::{BufMut, Bytes, BytesMut};

use crate::device::{DirtyExtent, Extent};

/// Name of the allocation context.
pub const ALLOCATION: &str = "base:allocation";
/// Name of the context that shows what the peer lacks.
pub const DIRTY: &str = "kagami:dirty";

/// Id of [`ALLOCATION`] in every session.
pub const ALLOCATION_ID: u32 = 1;
/// Id of [`DIRTY`] in every session.
pub const DIRTY_ID: u32 = 2;

/// `NBD_STATE_HOLE`.
pub const STATE_HOLE: u32 = 1 << 0;
/// `NBD_STATE_ZERO`.
pub const STATE_ZERO: u32 = 1 << 1;
/// Flag of `kagami:dirty`: the peer lacks this.
pub const STATE_DIRTY: u32 = 1 << 0;

/// Most descriptors for a context in one reply. The protocol advises 2^20; this keeps them within 32 KiB.
pub const MAX_EXTENTS: usize = 1 << 12;

/// A set of contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    /// [`ALLOCATION`].
    pub allocation: bool,
    /// [`DIRTY`].
    pub dirty: bool,
}

/// What a query is for: a wildcard lists, but selects nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `NBD_OPT_LIST_META_CONTEXT`.
    List,
    /// `NBD_OPT_SET_META_CONTEXT`.
    Select,
}

impl Contexts {
    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Adds what `query` finds among `offered`. Unknown namespaces and leaves find nothing.
    pub fn add(&mut self, query: &str, offered: Self, purpose: Purpose) {
        let listing = purpose == Purpose::List;
        match query {
            ALLOCATION => self.allocation |= offered.allocation,
            DIRTY => self.dirty |= offered.dirty,
            "base:" if listing => self.allocation |= offered.allocation,
            "kagami:" if listing => self.dirty |= offered.dirty,
            _ => {}
        }
    }

    /// Ids and names.
    pub fn iter(self) -> impl Iterator<Item = (u32, &'static str)> {
        let allocation = self.allocation.then_some((ALLOCATION_ID, ALLOCATION));
        let dirty = self.dirty.then_some((DIRTY_ID, DIRTY));
        allocation.into_iter().chain(dirty)
    }
}

/// Descriptors of `base:allocation` for `len` bytes.
pub fn allocation_descriptors(extents: &[Extent], len: u32, max: usize) -> Bytes {
    let flags =
        |e: &Extent| (if e.hole { STATE_HOLE } else { 0 }) | (if e.zero { STATE_ZERO } else { 0 });
    descriptors(extents.iter().map(|e| (e.len, flags(e))), len, max)
}

/// Descriptors of `kagami:dirty` for `len` bytes.
pub fn dirty_descriptors(extents: &[DirtyExtent], len: u32, max: usize) -> Bytes {
    let flags = |e: &DirtyExtent| if e.dirty { STATE_DIRTY } else { 0 };
    descriptors(extents.iter().map(|e| (e.len, flags(e))), len, max)
}

/// Joins neighbours of equal flags, cuts off what lies past `len`, and keeps at most `max`.
///
/// The extents come from the device: none, or an empty one, is a bug of it.
fn descriptors(extents: impl Iterator<Item = (u64, u32)>, len: u32, max: usize) -> Bytes {
    let mut out = BytesMut::new();
    let mut left = u64::from(len);
    let mut kept = 0;
    let mut open: Option<(u64, u32)> = None;
    for (extent_len, flags) in extents {
        assert!(extent_len > 0, "the device reported an empty extent");
        if left == 0 {
            break;
        }
        let extent_len = extent_len.min(left);
        left -= extent_len;
        open = match open {
            Some((open_len, open_flags)) if open_flags == flags => {
                Some((open_len + extent_len, flags))
            }
            Some((open_len, open_flags)) => {
                put(&mut out, open_len, open_flags);
                kept += 1;
                if kept == max {
                    return out.freeze();
                }
                Some((extent_len, flags))
            }
            None => Some((extent_len, flags)),
        };
    }
    let (open_len, open_flags) = open.expect("the device reported no extent");
    put(&mut out, open_len, open_flags);
    out.freeze()
}

fn put(out: &mut BytesMut, len: u64, flags: u32) {
    // Bounded by the request's 32-bit length.
    out.put_u32(u32::try_from(len).expect("an extent within the request"));
    out.put_u32(flags);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirty(list: &[(u64, bool)]) -> Vec<DirtyExtent> {
        list.iter()
            .map(|&(len, dirty)| DirtyExtent { len, dirty })
            .collect()
    }

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes
            .chunks_exact(4)
            .map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]))
            .collect()
    }

    #[test]
    fn queries_find_what_is_offered() {
        let all = Contexts {
            allocation: true,
            dirty: true,
        };
        let base = Contexts {
            allocation: true,
            dirty: false,
        };
        let none = Contexts::default();
        let kagami = Contexts {
            allocation: false,
            dirty: true,
        };
        for (query, offered, list, select) in [
            ("base:allocation", all, base, base),
            ("base:allocation", none, none, none),
            ("base:", all, base, none),
            ("base:depth", all, none, none),
            ("kagami:dirty", all, kagami, kagami),
            ("kagami:dirty", base, none, none),
            ("kagami:", all, kagami, none),
            ("kagami:clean", all, none, none),
            ("qemu:dirty-bitmap:x", all, none, none),
            ("BASE:allocation", all, none, none),
        ] {
            let found = |purpose| {
                let mut found = Contexts::default();
                found.add(query, offered, purpose);
                found
            };
            assert_eq!(found(Purpose::List), list, "list {query}");
            assert_eq!(found(Purpose::Select), select, "select {query}");
        }
    }

    #[test]
    fn descriptors_join_cut_and_stop() {
        let extents = dirty(&[(4096, true), (4096, true), (8192, false), (1 << 40, true)]);
        assert_eq!(
            words(&dirty_descriptors(&extents, 1 << 20, 9)),
            [8192, 1, 8192, 0, 1_032_192, 1]
        );
        assert_eq!(words(&dirty_descriptors(&extents, 1 << 20, 1)), [8192, 1]);
        assert_eq!(words(&dirty_descriptors(&extents, 512, 1)), [512, 1]);
        let whole = [Extent {
            len: u64::MAX,
            hole: true,
            zero: true,
        }];
        assert_eq!(
            words(&allocation_descriptors(&whole, u32::MAX, 9)),
            [u32::MAX, 3]
        );
    }
}
