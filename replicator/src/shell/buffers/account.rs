//! What each user of a pool may hold of it: its account.
//!
//! Keeps how much each account holds, and decides what it may take beside the others. A user is a mirror,
//! and what it holds may be held for ever: writes that wait for a peer, replies that a client doesn't take.
//!
//! With `n` accounts open, one may bring its own use up to 1/n of each share's limit, as all together may
//! bring the pool's use up to the limit; one account alone has all of it. Beyond that it still has one
//! request of each kind at a time (what a client sends, what the peer is asked for, a read, what the peer sends), so that
//! none of them waits for another. Whoever asks for more waits, and only others of its account behind it.
//!
//! Two things could take from an account what is its own: the others may hold more than their parts (one
//! was alone until now, or has one request that is longer), and reads go deeper than front ends. So
//! front ends within their parts may use what the pool keeps for answers.
//!
//! A request longer than its account's part gets its turn though the others never pause: while it waits,
//! they have what it would leave of the share.

use std::sync::Arc;

use bytes::Bytes;
use kagami_bitmap::planted::{Defect, planted};
use slab::Slab;

use crate::core::Memory;

use super::{Buffer, Limits, Pool, Share, WaitAlloc, page_count};

/// A user's part of a pool. It lasts as long as one of its clones or any memory charged to it; a closed
/// one no longer counts among those that share.
#[derive(Clone, Debug)]
pub struct Account {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: Pool,
    index: u32,
}

impl Account {
    pub(super) fn new(pool: Pool, index: u32) -> Self {
        let inner = Arc::new(Inner { pool, index });
        Self { inner }
    }

    pub(super) fn index(&self) -> u32 {
        self.inner.index
    }

    /// As [`Pool::alloc`], for this account.
    pub fn alloc(&self, len: usize, share: Share) -> Option<Buffer> {
        let ask = Ask::new(page_count(len), share, Some(self.inner.index));
        self.inner.pool.alloc_for(len, ask)
    }

    /// As [`Pool::wait_alloc`], for this account.
    pub fn wait_alloc(&self, len: usize, share: Share) -> WaitAlloc {
        let mut wait = self.inner.pool.wait_alloc(len, share);
        wait.account = Some(self.clone());
        wait
    }

    /// Memory for a front end's payload in place of as much that was given for a read, which the caller drops before
    /// anybody else asks for memory. It is had at once: what is charged is the same afterwards.
    pub fn take_over(&self, len: usize) -> Buffer {
        let ask = Ask::new(page_count(len), Share::FrontEnd, Some(self.inner.index));
        self.inner.pool.take_over(len, ask)
    }

    /// The user is gone: the others share without it. What it holds still counts.
    pub fn close(&self) {
        let mut state = self.inner.pool.lock();
        state.accounts.close(self.inner.index);
        self.inner.pool.shared.wake_heads(state);
    }

    /// The pool that it is a part of.
    pub fn pool(&self) -> &Pool {
        &self.inner.pool
    }
}

/// What the core puts together for a write takes the place of what was read for it.
impl Memory for Account {
    fn put_together(&self, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> Bytes {
        let mut buffer = self.take_over(len);
        fill(&mut buffer);
        buffer.freeze()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.accounts.forget(self.index);
        self.pool.shared.wake_heads(state);
    }
}

/// Memory that somebody wants, or has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) pages: u32,
    pub(super) share: Share,
    pub(super) account: Option<u32>,
}

impl Ask {
    pub(super) fn new(pages: u32, share: Share, account: Option<u32>) -> Self {
        Self {
            pages,
            share,
            account,
        }
    }
}

/// The accounts of a pool.
#[derive(Debug)]
pub(super) struct Accounts {
    held: Slab<Held>,
    /// Those that share.
    open: u32,
}

/// What an account holds.
#[derive(Debug, Default)]
struct Held {
    /// Pages of each [`kind`].
    pages: [u32; KINDS],
    is_open: bool,
    /// Nobody can ask for more.
    is_forgotten: bool,
}

const KINDS: usize = 4;

/// Of what kind a request is: one of each needs no room beside others of its account.
fn kind(share: Share) -> usize {
    match share {
        Share::FrontEnd => 0,
        Share::Answer if !planted(Defect::AnswerCountsAsRead) => 1,
        Share::Answer | Share::Read => 2,
        Share::Peer | Share::Bounce => 3,
    }
}

impl Held {
    fn all(&self) -> u64 {
        self.pages.iter().copied().map(u64::from).sum()
    }

    /// Whether it would hold at most `part` with `ask`, or nothing else of the kind.
    fn admits(&self, ask: Ask, part: u32) -> bool {
        self.pages[kind(ask.share)] == 0 || self.all() + u64::from(ask.pages) <= u64::from(part)
    }
}

impl Accounts {
    pub(super) fn new() -> Self {
        Self {
            held: Slab::new(),
            open: 0,
        }
    }

    pub(super) fn open(&mut self) -> u32 {
        self.open += 1;
        let held = Held {
            is_open: true,
            ..Held::default()
        };
        u32::try_from(self.held.insert(held)).expect("no pool has 2^32 users")
    }

    fn close(&mut self, index: u32) {
        let held = &mut self.held[index as usize];
        if std::mem::take(&mut held.is_open) {
            self.open -= 1;
        }
    }

    fn forget(&mut self, index: u32) {
        self.close(index);
        self.held[index as usize].is_forgotten = true;
        self.release(index);
    }

    /// Its number is free again when nothing is charged to it any more.
    fn release(&mut self, index: u32) {
        let held = &self.held[index as usize];
        if held.is_forgotten && held.all() == 0 {
            self.held.remove(index as usize);
        }
    }

    pub(super) fn charge(&mut self, ask: Ask) {
        if let Some(index) = ask.account {
            self.held[index as usize].pages[kind(ask.share)] += ask.pages;
        }
    }

    pub(super) fn give_back(&mut self, ask: Ask) {
        if let Some(index) = ask.account {
            self.held[index as usize].pages[kind(ask.share)] -= ask.pages;
            self.release(index);
        }
    }

    /// Up to how many pages in use of the whole pool this may be had.
    pub(super) fn depth(&self, limits: &Limits, ask: Ask) -> u32 {
        if ask.share == Share::FrontEnd && ask.account.is_some() && self.open > 1 {
            limits[Share::Answer as usize]
        } else {
            limits[ask.share as usize]
        }
    }

    /// Whether its account has room for it.
    pub(super) fn admit(&self, limits: &Limits, ask: Ask) -> bool {
        ask.account.is_none_or(|index| {
            let part = limits[ask.share as usize] / self.open.max(1);
            self.held[index as usize].admits(ask, part)
        })
    }

    /// Whether `first`, which waits, is to have memory before `ask`, which came later to its share, or asks of a
    /// shallower one.
    pub(super) fn goes_before(&self, limits: &Limits, first: Ask, ask: Ask) -> bool {
        if first.account == ask.account {
            return true;
        }
        // Who waits for its own account takes nothing from others when memory comes back.
        if !self.admit(limits, first) {
            return planted(Defect::SpentAccountHoldsUpOthers);
        }
        let (Some(index), Some(_)) = (ask.account, first.account) else {
            return true;
        };
        // What it leaves is at least their parts, unless it is longer than its own.
        let limit = limits[first.share as usize];
        let left = limit.saturating_sub(first.pages) / self.open.saturating_sub(1).max(1);
        !self.held[index as usize].admits(ask, left)
    }
}
