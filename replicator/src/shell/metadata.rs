//! A mirror's metadata on a store: ordered, durable updates.
//!
//! Decides how a step becomes durable: a single write as one synchronous write where that is honest
//! and needs no copy, several as writes and one flush (shared with whoever else flushes the store). A
//! step begins when the one before it is on stable storage; submissions don't wait for each other.
//!
//! **A failed write or flush ends the store for good**: what it holds is no longer known, so nothing
//! more is written to it, and every submission fails. The encoding is the bitmap crate's matter; the
//! store is read at start with [`super::fence::StoreFile::read_steps`], before it is added here.

use std::collections::VecDeque;

use bytes::Bytes;
use rustix::io::Errno;
use slab::Slab;

use super::buffers::{Buffer, PAGE};
use super::storage::{Area, Io, MetadataId, StorageCompletion, StoreId, Tag, fault};
use super::uring::Payload;
use crate::core::disk::DiskFault;

/// Bytes of one copy for alignment.
const BOUNCE_STEP: usize = 16 << 10;

/// A finished submission of [`super::storage::Storage::submit_metadata`].
#[derive(Debug)]
pub struct MetadataCompletion {
    /// The metadata store.
    pub store: MetadataId,
    /// The caller's number.
    pub id: u64,
    /// `Ok`: every step is on stable storage. A fault: any part of any step may be there.
    pub result: Result<(), DiskFault>,
}

/// A mirror's metadata on a store.
#[derive(Debug)]
pub(super) struct MetadataStore {
    id: MetadataId,
    pub(super) store: StoreId,
    area: Area,
    submissions: Slab<Submission>,
    failed: Option<Errno>,
}

#[derive(Debug)]
struct Submission {
    id: u64,
    steps: VecDeque<Vec<(u64, Bytes)>>,
    /// Parts of the present step that wait to be copied: offset in the store, bytes.
    uncopied: VecDeque<(u64, Bytes)>,
    /// Operations of the present step that are under way or wait.
    outstanding: usize,
    /// The present step's writes are followed by a flush.
    then_flush: bool,
    /// The present step is one synchronous write: its failure is a lost flush.
    durable: bool,
    error: Option<Errno>,
}

impl MetadataStore {
    pub(super) fn new(id: MetadataId, store: StoreId, area: Area) -> Self {
        Self {
            id,
            store,
            area,
            submissions: Slab::new(),
            failed: None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.submissions.is_empty()
    }

    pub(super) fn submit(
        &mut self,
        io: &mut Io,
        id: u64,
        steps: Vec<Vec<(u64, Bytes)>>,
        done: &mut Vec<StorageCompletion>,
    ) {
        let slot = self.submissions.insert(Submission {
            id,
            steps: steps.into(),
            uncopied: VecDeque::new(),
            outstanding: 0,
            then_flush: false,
            durable: false,
            error: None,
        });
        self.advance(io, slot, done);
    }

    /// An operation of the submission in `slot` has ended.
    pub(super) fn on_answer(
        &mut self,
        io: &mut Io,
        slot: u32,
        error: Option<Errno>,
        done: &mut Vec<StorageCompletion>,
    ) {
        let slot = slot as usize;
        let submission = &mut self.submissions[slot];
        submission.outstanding -= 1;
        if let Some(error) = error {
            submission.error.get_or_insert(error);
            self.failed.get_or_insert(error);
            if submission.durable && fault(error) != DiskFault::NoSpace {
                io.fail_flushes(self.store, error);
            }
        }
        if submission.outstanding > 0 {
            return;
        }
        if submission.then_flush && submission.error.is_none() && self.failed.is_none() {
            submission.then_flush = false;
            submission.outstanding = 1;
            io.flush(self.store, Tag::metadata(self.id, slot));
        } else {
            self.advance(io, slot, done);
        }
    }

    /// The memory that a write of the submission in `slot` waited for.
    pub(super) fn on_memory(&mut self, io: &mut Io, slot: u32, buffer: Buffer) {
        let slot = slot as usize;
        let next = self.submissions[slot].uncopied.pop_front();
        let (offset, data) = next.expect("a write waited for this memory");
        self.copy(io, slot, offset, &data, buffer);
    }

    /// The present step is done: starts the next one, or ends the submission.
    fn advance(&mut self, io: &mut Io, slot: usize, done: &mut Vec<StorageCompletion>) {
        if self.failed.is_none() {
            // A flush that the store lost through its other user counts here too.
            self.failed = io.flush_failure(self.store);
        }
        let submission = &mut self.submissions[slot];
        let step = match self.failed {
            None => submission.steps.pop_front(),
            Some(_) => None,
        };
        if let Some(step) = step {
            self.start(io, slot, step);
            return;
        }
        let submission = self.submissions.remove(slot);
        let result = match submission.error.or(self.failed) {
            None => Ok(()),
            Some(error) => Err(fault(error)),
        };
        done.push(StorageCompletion::Metadata(MetadataCompletion {
            store: self.id,
            id: submission.id,
            result,
        }));
    }

    fn start(&mut self, io: &mut Io, slot: usize, step: Vec<(u64, Bytes)>) {
        let tag = Tag::metadata(self.id, slot);
        let alone = step.len() == 1 && io.store(self.store).capabilities.dsync;
        let mut direct = Vec::with_capacity(step.len());
        let mut unaligned = Vec::new();
        for (offset, data) in step {
            let offset = self.place(offset, data.len());
            if io.is_aligned(self.store, &data) {
                direct.push((offset, data));
            } else {
                unaligned.extend((0..data.len()).step_by(BOUNCE_STEP).map(|from| {
                    let to = data.len().min(from + BOUNCE_STEP);
                    (offset + from as u64, data.slice(from..to))
                }));
            }
        }
        let parts = direct.len() + unaligned.len();
        let dsync = alone && parts == 1;
        let submission = &mut self.submissions[slot];
        submission.then_flush = !dsync;
        submission.durable = dsync;
        submission.outstanding = parts;
        if parts == 0 {
            submission.then_flush = false;
            submission.outstanding = 1;
            io.flush(self.store, tag);
        }
        for (offset, data) in direct {
            io.write(self.store, tag, offset, Payload::Bytes(data), dsync);
        }
        for (offset, data) in unaligned {
            if let Some(buffer) = io.alloc_copy(data.len()) {
                self.copy(io, slot, offset, &data, buffer);
            } else {
                io.starve_copy(tag, data.len());
                self.submissions[slot].uncopied.push_back((offset, data));
            }
        }
    }

    fn copy(&mut self, io: &mut Io, slot: usize, offset: u64, data: &[u8], mut buffer: Buffer) {
        buffer.copy_from_slice(data);
        let dsync = self.submissions[slot].durable;
        let tag = Tag::metadata(self.id, slot);
        io.write(self.store, tag, offset, Payload::Buffer(buffer), dsync);
    }

    /// Where in the store a range of the metadata lies.
    fn place(&self, offset: u64, len: usize) -> u64 {
        let (page, len) = (PAGE as u64, len as u64);
        assert!(
            offset.is_multiple_of(page) && len.is_multiple_of(page) && len > 0,
            "metadata: {len} bytes at {offset} are not whole blocks"
        );
        assert!(
            offset
                .checked_add(len)
                .is_some_and(|end| end <= self.area.len),
            "metadata: {len} bytes at {offset} end beyond the {} there are",
            self.area.len
        );
        self.area.start + offset
    }
}
