//! Operations of disks and metadata stores that wait for memory.
//!
//! They are in order for each share of the pool and each disk, so that reads whose memory clients keep hold up
//! neither metadata nor another disk. The first of each order keeps its place in the pool's own queue until it is
//! served: a long read would else be passed for ever by short ones of others, which need less.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::super::buffers::{Account, Buffer, Pool, Share, WaitAlloc};
use super::DiskId;
use super::io::Tag;

/// Who waits for memory in one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    share: Reverse<Share>,
    /// Whose account is charged.
    disk: Option<u16>,
}

impl Kind {
    pub(super) fn of(share: Share, disk: Option<DiskId>) -> Self {
        Self {
            share: Reverse(share),
            disk: disk.map(|disk| disk.0),
        }
    }
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<(Tag, usize)>,
    /// The place of the first in the pool's queue, once it was looked for.
    first: Option<WaitAlloc>,
}

/// The pool as disks and metadata stores have it.
#[derive(Debug)]
pub(super) struct Memory {
    pool: Pool,
    /// What the reads of a disk are charged to, where it is not the pool alone.
    accounts: Vec<Option<Account>>,
    /// Deeper shares first. No queue is empty.
    queues: BTreeMap<Kind, Queue>,
    /// Memory that came for the first of a queue while the thread slept.
    granted: Option<(Kind, Buffer)>,
}

impl Memory {
    pub(super) fn of(pool: Pool) -> Self {
        Self {
            pool,
            accounts: Vec::new(),
            queues: BTreeMap::new(),
            granted: None,
        }
    }

    /// From now on, the reads of that disk are charged there.
    pub(super) fn charge(&mut self, disk: DiskId, account: Option<Account>) {
        let index = usize::from(disk.0);
        if self.accounts.len() <= index {
            self.accounts.resize_with(index + 1, || None);
        }
        self.accounts[index] = account;
    }

    /// Memory at once, unless others of its kind or of a deeper share wait already.
    pub(super) fn alloc(&self, len: usize, kind: Kind) -> Option<Buffer> {
        let is_before = |first: &Kind| first.share < kind.share || *first == kind;
        if !self.queues.is_empty() && self.queues.keys().any(is_before) {
            return None;
        }
        match account(&self.accounts, kind) {
            Some(account) => account.alloc(len, kind.share.0),
            None => self.pool.alloc(len, kind.share.0),
        }
    }

    /// Queues `tag`, whose `len` the share can hold.
    pub(super) fn wait(&mut self, tag: Tag, len: usize, kind: Kind) {
        let queue = self.queues.entry(kind).or_insert_with(|| Queue {
            waiting: VecDeque::new(),
            first: None,
        });
        queue.waiting.push_back((tag, len));
    }

    /// The first of a queue that has its memory, if one has.
    pub(super) fn feed(&mut self) -> Option<(Tag, Buffer)> {
        let (kind, buffer) = self.granted.take().or_else(|| {
            // Before the thread sleeps, `poll_granted` leaves a waker that wakes it.
            match self.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(fed) => Some(fed),
                Poll::Pending => None,
            }
        })?;
        let queue = self.queues.get_mut(&kind)?;
        let (tag, len) = queue.waiting.pop_front()?;
        if queue.waiting.is_empty() {
            self.queues.remove(&kind);
        }
        assert!(buffer.len() == len, "memory of another's length");
        Some((tag, buffer))
    }

    /// True if somebody waits.
    pub(super) fn is_wanted(&self) -> bool {
        !self.queues.is_empty()
    }

    /// Ready when [`feed`](Self::feed) has something.
    pub(super) fn poll_granted(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.granted.is_none() {
            let Poll::Ready(granted) = self.poll(context) else {
                return Poll::Pending;
            };
            self.granted = Some(granted);
        }
        Poll::Ready(())
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(Kind, Buffer)> {
        for (kind, queue) in &mut self.queues {
            let Some((_, len)) = queue.waiting.front() else {
                continue;
            };
            let first = queue
                .first
                .get_or_insert_with(|| match account(&self.accounts, *kind) {
                    Some(account) => account.wait_alloc(*len, kind.share.0),
                    None => self.pool.wait_alloc(*len, kind.share.0),
                });
            // Checked against the share's limit before it was queued.
            if let Poll::Ready(Ok(buffer)) = Pin::new(first).poll(context) {
                queue.first = None;
                return Poll::Ready((*kind, buffer));
            }
        }
        Poll::Pending
    }
}

fn account(accounts: &[Option<Account>], kind: Kind) -> Option<&Account> {
    accounts.get(usize::from(kind.disk?))?.as_ref()
}
