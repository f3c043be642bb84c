//! A device in memory, sparse in pages of 4 KiB: for tests and for measuring the front end.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::device::{
    Access, Answer, BlockDevice, Completion, DeviceInfo, DirtyExtent, Errno, Extent, IoError,
    ReadData, ReadPart, Refusal, Request,
};

const PAGE: u64 = 4096;

/// Sparse memory that behaves like a disk. Every write is durable at once; completes within
/// `submit`.
#[derive(Debug)]
pub struct MemoryDevice {
    info: RefCell<DeviceInfo>,
    refusal: RefCell<Option<Refusal>>,
    pages: RefCell<BTreeMap<u64, Box<[u8]>>>,
    /// Pages that the peer is said to lack.
    dirty: RefCell<BTreeSet<u64>>,
    flushes: Cell<u64>,
}

impl MemoryDevice {
    /// An empty device of `size` bytes, as [`DeviceInfo::new`] describes it.
    pub fn new(size: u64) -> Self {
        Self::with_info(DeviceInfo::new(size))
    }

    /// An empty device as `info` describes it.
    pub fn with_info(info: DeviceInfo) -> Self {
        Self {
            info: RefCell::new(info),
            refusal: RefCell::default(),
            pages: RefCell::default(),
            dirty: RefCell::default(),
            flushes: Cell::new(0),
        }
    }

    /// Refuses to be opened from now on, or no more.
    pub fn set_refusal(&self, refusal: Option<Refusal>) {
        *self.refusal.borrow_mut() = refusal;
    }

    /// Says of the pages that touch the range that the peer lacks them.
    pub fn mark_dirty(&self, range: Range<u64>) {
        self.dirty
            .borrow_mut()
            .extend(range.start / PAGE..range.end.div_ceil(PAGE));
    }

    /// Flushes so far, FUA not counted.
    pub fn flushes(&self) -> u64 {
        self.flushes.get()
    }

    /// Pages that hold memory.
    pub fn allocated_pages(&self) -> usize {
        self.pages.borrow().len()
    }

    /// The bytes at `offset`: as a client would read them.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let pages = self.pages.borrow();
        each_page(offset, len as u64, |page, within, at| {
            if let Some(bytes) = pages.get(&page) {
                out[at..at + within.len()].copy_from_slice(&bytes[within]);
            }
        });
        out
    }

    fn read(&self, offset: u64, len: u32) -> ReadData {
        let pages = self.pages.borrow();
        let end = offset + u64::from(len);
        let any = pages
            .range(offset / PAGE..end.div_ceil(PAGE))
            .next()
            .is_some();
        if !any {
            return ReadData::Zeroes;
        }
        // Runs of pages that are there and of pages that aren't.
        let mut parts: Vec<ReadPart> = Vec::new();
        let mut data = BytesMut::new();
        let mut zeroes: u32 = 0;
        each_page(offset, u64::from(len), |page, within, _| {
            if let Some(bytes) = pages.get(&page) {
                if zeroes > 0 {
                    parts.push(ReadPart::Zeroes(std::mem::take(&mut zeroes)));
                }
                data.extend_from_slice(&bytes[within]);
            } else {
                if !data.is_empty() {
                    parts.push(ReadPart::Data(data.split().freeze()));
                }
                zeroes += within.len() as u32;
            }
        });
        if parts.is_empty() && zeroes == 0 {
            return ReadData::Whole(data.freeze());
        }
        parts.push(if zeroes > 0 {
            ReadPart::Zeroes(zeroes)
        } else {
            ReadPart::Data(data.freeze())
        });
        ReadData::Parts(parts)
    }

    fn write(&self, offset: u64, data: &Bytes) {
        let mut pages = self.pages.borrow_mut();
        each_page(offset, data.len() as u64, |page, within, at| {
            let bytes = pages
                .entry(page)
                .or_insert_with(|| vec![0; PAGE as usize].into());
            let len = within.len();
            bytes[within].copy_from_slice(&data[at..at + len]);
        });
    }

    fn zero(&self, offset: u64, len: u32, keep_allocated: bool) {
        let end = offset + u64::from(len);
        let mut pages = self.pages.borrow_mut();
        if keep_allocated {
            each_page(offset, u64::from(len), |page, within, _| {
                let bytes = pages
                    .entry(page)
                    .or_insert_with(|| vec![0; PAGE as usize].into());
                bytes[within].fill(0);
            });
            return;
        }
        let whole = offset.div_ceil(PAGE)..end / PAGE;
        if whole.start < whole.end {
            let mut tail = pages.split_off(&whole.start);
            pages.append(&mut tail.split_off(&whole.end));
        }
        // The ends that cover a part of a page.
        for page in [offset / PAGE, end / PAGE] {
            let start = offset.max(page * PAGE);
            let stop = end.min((page + 1) * PAGE);
            if start < stop
                && let Some(bytes) = pages.get_mut(&page)
            {
                bytes[(start - page * PAGE) as usize..(stop - page * PAGE) as usize].fill(0);
            }
        }
    }

    fn status(&self, request: &Request) -> Answer {
        let &Request::BlockStatus {
            offset,
            len,
            allocation,
            dirty,
            max_extents,
        } = request
        else {
            unreachable!("status of another request");
        };
        let end = offset + u64::from(len);
        let pages = self.pages.borrow();
        let marks = self.dirty.borrow();
        let allocated = |page: &u64| pages.contains_key(page);
        let there = runs(offset, end, max_extents, allocated, |from| {
            pages.range(from..).next().map(|(&page, _)| page)
        });
        let lacking = runs(
            offset,
            end,
            max_extents,
            |page| marks.contains(page),
            |from| marks.range(from..).next().copied(),
        );
        Answer::Status {
            allocation: there
                .into_iter()
                .filter(|_| allocation)
                .map(|(len, there)| Extent {
                    len,
                    hole: !there,
                    zero: !there,
                })
                .collect(),
            dirty: lacking
                .into_iter()
                .filter(|_| dirty)
                .map(|(len, dirty)| DirtyExtent { len, dirty })
                .collect(),
        }
    }
}

/// Calls `visit(page, bytes within the page, bytes before it)` for each page of a range.
fn each_page(offset: u64, len: u64, mut visit: impl FnMut(u64, Range<usize>, usize)) {
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let page = at / PAGE;
        let stop = end.min((page + 1) * PAGE);
        visit(
            page,
            (at - page * PAGE) as usize..(stop - page * PAGE) as usize,
            (at - offset) as usize,
        );
        at = stop;
    }
}

/// Lengths of the stretches from `offset` to `end` whose pages are or aren't in a set. `next` finds
/// the first page of the set from a page on.
fn runs(
    offset: u64,
    end: u64,
    max: usize,
    is_set: impl Fn(&u64) -> bool,
    next: impl Fn(u64) -> Option<u64>,
) -> Vec<(u64, bool)> {
    let mut found = Vec::new();
    let mut at = offset;
    while at < end && found.len() < max {
        let page = at / PAGE;
        let set = is_set(&page);
        let stop = if set {
            let mut stop = page + 1;
            while stop * PAGE < end && is_set(&stop) {
                stop += 1;
            }
            stop * PAGE
        } else {
            next(page).map_or(end, |page| page * PAGE)
        };
        let stop = stop.min(end);
        found.push((stop - at, set));
        at = stop;
    }
    found
}

impl BlockDevice for MemoryDevice {
    type Buffer = BytesMut;
    type Opening = ();

    fn info(&self, _access: Access) -> Result<DeviceInfo, Refusal> {
        match &*self.refusal.borrow() {
            Some(refusal) => Err(refusal.clone()),
            None => Ok(self.info.borrow().clone()),
        }
    }

    fn open(&self, access: Access) -> Result<(), Refusal> {
        self.info(access).map(drop)
    }

    async fn buffer(&self, len: usize) -> BytesMut {
        BytesMut::zeroed(len)
    }

    fn submit(&self, (): &(), request: Request, completion: Completion) {
        let answer = match request {
            Request::Read { offset, len } => Answer::Data(self.read(offset, len)),
            Request::Write { offset, data, .. } => {
                self.write(offset, &data);
                Answer::Done
            }
            Request::Flush => {
                self.flushes.set(self.flushes.get() + 1);
                Answer::Done
            }
            Request::Trim { offset, len, .. } => {
                self.zero(offset, len, false);
                Answer::Done
            }
            Request::WriteZeroes {
                no_hole: true,
                fast: true,
                ..
            } => {
                // Zeroes that must stay allocated are written.
                return completion.fail(IoError::new(Errno::NotSup, "not faster than writing"));
            }
            Request::WriteZeroes {
                offset,
                len,
                no_hole,
                ..
            } => {
                self.zero(offset, len, no_hole);
                Answer::Done
            }
            Request::Cache { .. } => Answer::Done,
            Request::BlockStatus { .. } => self.status(&request),
        };
        completion.complete(Ok(answer));
    }
}
