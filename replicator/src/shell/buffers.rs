//! The memory that payloads live in: aligned, bounded, taken at start, given back from any thread.
//!
//! A [`Pool`] is one locked mapping cut into runs of 4 KiB pages. A [`Buffer`] is a run with a single
//! owner who may write to it; frozen, it becomes [`Bytes`] whose last clone gives the run back. That
//! clone may be dropped on any thread, so the pool is shared by an [`Arc`] and guarded by a mutex,
//! which is free of contention when one thread does all the work (a take and a give together cost
//! tens of nanoseconds).
//!
//! The daemon sits in the write-back path of its own machine (docs/design.md §10): what it needs to
//! finish a write must never wait for memory that only finishing a write gives back. So the pool is
//! taken from the top down by need, each [`Share`] stopping where the deeper ones' reserve begins.
//!
//! Mirrors share a pool, and what one of them holds may be held for ever. So each has an [`Account`],
//! with its part of every share: only its own clients wait when that is used up.
//!
//! Bounds: the budget counts every page, so a request within it always succeeds. When no run of the
//! region is long enough though enough pages are free (a fragmented region), the buffer gets a
//! mapping of its own, charged to the same budget: memory then exceeds the region by at most the
//! region's size, and [`Stats::overflows`] counts it. With `Buffer::is_in_region` a later version can
//! register the region as fixed buffers of the ring.

#![allow(unsafe_code)] // mmap, and slices over the mapping: the kernel's interface to memory.

mod account;
mod page_map;

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use kagami_bitmap::planted::{Defect, planted};
use rustix::mm::{Advice, MapFlags, ProtFlags};

pub use account::Account;
use account::{Accounts, Ask};
use page_map::PageMap;

/// The unit of allocation and the alignment of every buffer, in bytes.
pub const PAGE: usize = 4096;

/// Who asks for memory; later ones may go deeper into the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Share {
    /// Payloads that a client sends: they stop first, and the client waits.
    FrontEnd,
    /// Kept for what the peer is asked to send to a client. Its read may wait for writes, and those for a comparison that
    /// reads the local disk.
    Answer,
    /// Reads from the local disk.
    Read,
    /// Payloads that the peer sends: front ends can't starve it.
    Peer,
    /// Copies for the disk's alignment, which need nothing but the disk to be given back.
    Bounce,
}

/// With this reserve the core's longest read (1 MiB) finds room beside all that front ends and answers may hold.
pub const MIN_RESERVE: usize = 4 << 20;

const SHARES: usize = 5;

/// Pages that each share may bring the whole pool's use up to.
type Limits = [u32; SHARES];

/// How large a pool is and how it is divided.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Bytes of the region; rounded up to whole pages.
    pub bytes: usize,
    /// Bytes that front ends can't take: a quarter for answers of the peer, one for reads, and half for the peer (and
    /// bounces) alone.
    pub reserve: usize,
    /// Whether to lock the region in memory; where that is not permitted the pool works unlocked,
    /// and [`Pool::is_locked`] says so.
    pub lock: bool,
}

impl Default for PoolConfig {
    /// 64 MiB, a quarter of it kept from front ends, locked.
    fn default() -> Self {
        Self::with_bytes(64 << 20)
    }
}

impl PoolConfig {
    /// A pool of `bytes` with the usual division: a quarter kept from front ends, and at least [`MIN_RESERVE`] if
    /// that is not more than half.
    pub fn with_bytes(bytes: usize) -> Self {
        Self {
            bytes,
            reserve: (bytes / 4).max(MIN_RESERVE.min(bytes / 2)),
            lock: true,
        }
    }
}

/// A request that no amount of waiting can satisfy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a buffer of {wanted} bytes can never fit: this share of the pool has {limit} bytes; raise the pool's size"
)]
pub struct TooLarge {
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes that this share may hold at most.
    pub limit: usize,
}

/// A pool's state, for status and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of the whole budget.
    pub total: usize,
    /// Bytes held by buffers, in whole pages.
    pub in_use: usize,
    /// Buffers so far that got a mapping of their own because the region was fragmented.
    pub overflows: u64,
    /// Requests that wait at this moment.
    pub waiting: usize,
}

/// A bounded supply of aligned memory; cloning it shares it.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    region: Mapping,
    locked: bool,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    map: PageMap,
    in_use: u32,
    overflows: u64,
    next_ticket: u64,
    waiters: [VecDeque<Waiter>; SHARES],
    waiting: usize,
    accounts: Accounts,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    ask: Ask,
    waker: Waker,
}

impl Pool {
    /// Takes the region from the system, all of it at once, so that no later allocation waits.
    ///
    /// # Errors
    ///
    /// The mapping failed (`ENOMEM`). A refused lock is no error.
    pub fn new(config: &PoolConfig) -> io::Result<Self> {
        let pages = u32::try_from(config.bytes.div_ceil(PAGE).max(1))
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let region = Mapping::new(pages as usize * PAGE)?;
        let locked = config.lock && region.lock();
        if !locked {
            region.populate();
        }
        let reserve = u32::try_from(config.reserve.div_ceil(PAGE))
            .unwrap_or(pages)
            .min(pages - 1);
        // Enough for several bounced writes at once, and never all of the reserve.
        let bounce = (pages / 32).min(reserve / 4);
        Ok(Self {
            shared: Arc::new(Shared {
                region,
                locked,
                limits: [
                    pages - reserve,
                    pages - reserve / 4 * 3,
                    pages - reserve / 2,
                    pages - bounce,
                    pages,
                ],
                state: Mutex::new(State {
                    map: PageMap::new(pages),
                    in_use: 0,
                    overflows: 0,
                    next_ticket: 0,
                    waiters: Default::default(),
                    waiting: 0,
                    accounts: Accounts::new(),
                }),
            }),
        })
    }

    /// A buffer of `len` bytes, aligned to [`PAGE`]; its contents are whatever was there before.
    /// `None` when the share has no room now, or others of this share or a deeper one wait already.
    pub fn alloc(&self, len: usize, share: Share) -> Option<Buffer> {
        self.alloc_for(len, Ask::new(page_count(len), share, None))
    }

    fn alloc_for(&self, len: usize, ask: Ask) -> Option<Buffer> {
        let mut state = self.lock();
        if state.waiting != 0 && state.someone_waits_before(&self.shared.limits, ask, None) {
            return None;
        }
        let place = self.take(&mut state, ask)?;
        drop(state);
        self.buffer(place, ask, len)
    }

    /// Memory in place of as much that the caller is about to give back: it is had whatever else is taken.
    fn take_over(&self, len: usize, ask: Ask) -> Buffer {
        let place = self.lock().charge(ask);
        let buffer = self.buffer(place, ask, len);
        buffer.unwrap_or_else(|| panic!("the system has no memory for {len} bytes"))
    }

    /// Waits until a buffer of `len` bytes can be had; first come, first served within a share.
    /// Poll it or drop it: one that is kept unpolled holds up those behind it.
    ///
    /// Errors: [`TooLarge`] where waiting would never end.
    pub fn wait_alloc(&self, len: usize, share: Share) -> WaitAlloc {
        WaitAlloc {
            pool: self.clone(),
            len,
            share,
            account: None,
            ticket: None,
        }
    }

    /// A user's own part of the pool, beside those of the others that are open.
    pub fn open_account(&self) -> Account {
        let index = self.lock().accounts.open();
        Account::new(self.clone(), index)
    }

    /// Bytes that `share` can hold at most, if nobody else holds any.
    pub fn limit(&self, share: Share) -> usize {
        self.shared.limits[share as usize] as usize * PAGE
    }

    /// Whether the region is locked in memory.
    pub fn is_locked(&self) -> bool {
        self.shared.locked
    }

    /// What is in use now.
    pub fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            total: self.shared.region.len,
            in_use: state.in_use as usize * PAGE,
            overflows: state.overflows,
            waiting: state.waiting,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    /// Charges what is asked for to the budget and finds it a run.
    fn take(&self, state: &mut State, ask: Ask) -> Option<Place> {
        state
            .has_room(&self.shared.limits, ask)
            .then(|| state.charge(ask))
    }

    /// Makes the buffer of a place already charged. `None` only if the system has no memory for an
    /// overflow mapping; the charge is then given back.
    fn buffer(&self, place: Place, ask: Ask, len: usize) -> Option<Buffer> {
        let start = match place {
            Place::Region { page } => {
                // SAFETY: `page` lies within the region, as the map has one bit per page of it.
                unsafe { self.shared.region.start.add(page as usize * PAGE) }
            }
            Place::Overflow => {
                let Ok(mapping) = Mapping::new(ask.pages as usize * PAGE) else {
                    self.shared.give(None, ask);
                    return None;
                };
                mapping.into_start()
            }
        };
        Some(Buffer {
            shared: Arc::clone(&self.shared),
            start,
            len,
            ask,
            place,
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic can't leave the state half changed: its assertions stand before its changes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what was asked for back to the budget, and its run if it had one in the region.
    fn give(&self, page: Option<u32>, ask: Ask) {
        let mut state = self.lock();
        if let Some(page) = page {
            state.map.give(page, ask.pages);
        }
        state.in_use -= ask.pages;
        state.accounts.give_back(ask);
        if state.waiting != 0 {
            self.wake_heads(state);
        }
    }

    /// Wakes those who may be able to go on now, outside of the lock.
    fn wake_heads(&self, state: MutexGuard<'_, State>) {
        let wakers = state.heads(&self.limits);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl State {
    /// Whether the budget and the account have room for this.
    fn has_room(&self, limits: &Limits, ask: Ask) -> bool {
        let limit = self.accounts.depth(limits, ask);
        let fits = self.in_use.checked_add(ask.pages);
        fits.is_some_and(|used| used <= limit) && self.accounts.admit(limits, ask)
    }

    /// Takes what is asked for, whether there is room or not.
    fn charge(&mut self, ask: Ask) -> Place {
        self.in_use += ask.pages;
        self.accounts.charge(ask);
        if let Some(page) = self.map.take(ask.pages) {
            Place::Region { page }
        } else {
            self.overflows += 1;
            Place::Overflow
        }
    }

    /// Whether somebody is to have memory before `ask`, which waits with `ticket` or comes now: of a
    /// deeper share, or of this one and there before.
    fn someone_waits_before(&self, limits: &Limits, ask: Ask, ticket: Option<u64>) -> bool {
        let own = ask.share as usize;
        let deeper = self.waiters[own + 1..].iter().flatten();
        let earlier = self.waiters[own]
            .iter()
            .take_while(|waiter| Some(waiter.ticket) != ticket);
        deeper
            .chain(earlier)
            .any(|waiter| self.accounts.goes_before(limits, waiter.ask, ask))
    }

    /// The wakers of those who have room and are first of their account in their queue.
    fn heads(&self, limits: &Limits) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for queue in &self.waiters {
            let mut seen: Vec<Option<u32>> = Vec::new();
            for waiter in queue {
                if seen.contains(&waiter.ask.account) {
                    continue;
                }
                seen.push(waiter.ask.account);
                if self.has_room(limits, waiter.ask) {
                    wakers.push(waiter.waker.clone());
                }
                if planted(Defect::FirstWaiterAloneIsWoken) {
                    break;
                }
            }
        }
        wakers
    }

    fn leave(&mut self, share: Share, ticket: u64) {
        let queue = &mut self.waiters[share as usize];
        if let Some(index) = queue.iter().position(|waiter| waiter.ticket == ticket) {
            queue.remove(index);
            self.waiting -= 1;
        }
    }
}

fn page_count(len: usize) -> u32 {
    assert!(len > 0, "a buffer of no bytes");
    u32::try_from(len.div_ceil(PAGE)).unwrap_or(u32::MAX)
}

/// The future of [`Pool::wait_alloc`].
#[derive(Debug)]
pub struct WaitAlloc {
    pool: Pool,
    len: usize,
    share: Share,
    account: Option<Account>,
    ticket: Option<u64>,
}

impl Future for WaitAlloc {
    type Output = Result<Buffer, TooLarge>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let account = this.account.as_ref().map(Account::index);
        let ask = Ask::new(page_count(this.len), this.share, account);
        let limit = this.pool.limit(this.share);
        if ask.pages as usize > limit / PAGE {
            return Poll::Ready(Err(TooLarge {
                wanted: this.len,
                limit,
            }));
        }
        let mut state = this.pool.lock();
        let limits = &this.pool.shared.limits;
        if (state.waiting == 0 || !state.someone_waits_before(limits, ask, this.ticket))
            && let Some(place) = this.pool.take(&mut state, ask)
        {
            if let Some(ticket) = this.ticket.take() {
                state.leave(this.share, ticket);
                this.pool.shared.wake_heads(state);
            } else {
                drop(state);
            }
            if let Some(buffer) = this.pool.buffer(place, ask, this.len) {
                return Poll::Ready(Ok(buffer));
            }
            // The system is out of memory for an overflow mapping: queue for a run of the region.
            state = this.pool.lock();
        }
        let waker = context.waker().clone();
        if let Some(ticket) = this.ticket {
            let queue = &mut state.waiters[this.share as usize];
            if let Some(waiter) = queue.iter_mut().find(|waiter| waiter.ticket == ticket) {
                waiter.waker = waker;
            }
        } else {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiters[this.share as usize].push_back(Waiter { ticket, ask, waker });
            state.waiting += 1;
            this.ticket = Some(ticket);
        }
        Poll::Pending
    }
}

impl Drop for WaitAlloc {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut state = self.pool.lock();
            state.leave(self.share, ticket);
            self.pool.shared.wake_heads(state);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Region { page: u32 },
    Overflow,
}

/// Memory with one owner, aligned to [`PAGE`]; dropping it gives it back to its pool.
#[derive(Debug)]
pub struct Buffer {
    shared: Arc<Shared>,
    start: NonNull<u8>,
    len: usize,
    /// What it is charged as.
    ask: Ask,
    place: Place,
}

// SAFETY: a Buffer is the only handle on its run of pages, and giving the run back locks a mutex.
unsafe impl Send for Buffer {}
// SAFETY: through a shared reference the memory can only be read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Shortens the buffer to `len` bytes; its pages stay taken.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes the buffer read-only and shareable, without a copy. Its memory goes back to the pool
    /// when the last clone or slice is dropped, on whatever thread.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Whether the memory lies in the pool's region (and not in a mapping of its own).
    pub fn is_in_region(&self) -> bool {
        matches!(self.place, Place::Region { .. })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` begins `pages` pages of mapped, initialised memory that this buffer owns
        // alone until it is dropped, and `len` bytes fit in them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow makes this the only slice.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.place {
            Place::Region { page } => self.shared.give(Some(page), self.ask),
            Place::Overflow => {
                drop(Mapping {
                    start: self.start,
                    len: self.ask.pages as usize * PAGE,
                });
                self.shared.give(None, self.ask);
            }
        }
    }
}

/// Anonymous memory of this process, unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process; whoever hands out parts of it sees to exclusion.
unsafe impl Send for Mapping {}
// SAFETY: as above: the mapping itself is never read or written through.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a fresh private anonymous mapping where the kernel likes aliases nothing.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { start, len };
        mapping.advise(Advice::LinuxDontFork);
        Ok(mapping)
    }

    /// Gives the memory away: whoever takes it makes a `Mapping` of it again to unmap it.
    fn into_start(self) -> NonNull<u8> {
        let start = self.start;
        std::mem::forget(self);
        start
    }

    fn lock(&self) -> bool {
        // SAFETY: the range is this mapping, whole.
        unsafe { rustix::mm::mlock(self.start.as_ptr().cast(), self.len) }.is_ok()
    }

    /// Takes the pages now, so that no fault does later.
    fn populate(&self) {
        self.advise(Advice::LinuxPopulateWrite);
    }

    /// Advice that may be refused: an older kernel only loses the benefit. `DontFork` keeps a
    /// child's copy-on-write from moving pages under a direct read.
    fn advise(&self, advice: Advice) {
        if cfg!(miri) {
            return; // Miri has memory, and no advice for it.
        }
        // SAFETY: the range is this mapping, and neither advice used changes its contents.
        let _refused = unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.len, advice) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the owner of the mapping goes, and with it every way to reach the memory. An
        // error could only mean that the range was not ours.
        let result = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        assert!(result.is_ok(), "munmap of a mapping of our own: {result:?}");
    }
}
