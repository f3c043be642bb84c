//! A mirror's data on a store: carries out the core's [`DiskOp`]s.
//!
//! Decides how each operation reaches the store: reads into pooled memory; writes straight from the
//! memory they came in where its alignment suits the store, else through copies of bounded size
//! (counted); FUA as one synchronous write where that is honest, else a write and a flush; zeroing by
//! punching, zeroing or writing, whichever the store can.
//!
//! Keeps the operations in flight. Leaves to the core that no two of them overlap, to
//! [`super::storage`] the flushes and the memory, and to [`super::uring`] short and interrupted I/O.

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use slab::Slab;

use super::buffers::{Buffer, PAGE};
use super::probe::StoreKind;
use super::storage::{Answer, Area, DiskId, Io, StorageCompletion, StoreId, Tag, fault};
use super::uring::{Operation, Payload};
use crate::core::disk::{DiskFault, DiskOp, DiskResult};

/// Bytes copied at once for alignment; less when memory is short.
const BOUNCE_STEP: usize = 1 << 20;

/// Bytes that a starved copy asks for.
const BOUNCE_STARVED: usize = 16 << 10;

/// Bytes for each `fallocate` of a file, so that other operations on its inode come between.
const FILE_ZERO_STEP: u64 = 1 << 30;

/// Bytes for each `fallocate` of a device, which may have to write them.
const DEVICE_ZERO_STEP: u64 = 64 << 20;

/// A finished operation of [`super::storage::Storage::submit`].
#[derive(Debug)]
pub struct DiskCompletion {
    /// The disk.
    pub disk: DiskId,
    /// The caller's number.
    pub id: u64,
    /// The outcome.
    pub result: DiskResult,
}

/// What a disk has done since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Operations submitted and not yet completed.
    pub in_flight: u64,
    /// Reads submitted.
    pub reads: u64,
    /// Writes submitted.
    pub writes: u64,
    /// Zeroings submitted.
    pub zeroes: u64,
    /// Flushes submitted; several may be served by one `fdatasync`.
    pub flushes: u64,
    /// Operations that ended with a fault.
    pub faults: u64,
    /// Copies made because a payload's memory did not suit the store.
    pub copies: u64,
    /// Bytes copied for that reason.
    pub copied_bytes: u64,
}

/// A mirror's data on a store.
#[derive(Debug)]
pub(super) struct Disk {
    id: DiskId,
    pub(super) store: StoreId,
    area: Area,
    operations: Slab<Pending>,
    counters: Counters,
}

#[derive(Debug)]
struct Pending {
    id: u64,
    stage: Stage,
}

/// Where an operation stands. Offsets are bytes from the start of the store.
#[derive(Debug)]
enum Stage {
    Reading {
        offset: u64,
    },
    Writing {
        /// The store gets a flush before the answer.
        then_flush: bool,
        /// The write itself is durable: its failure is a lost flush.
        durable: bool,
    },
    /// A payload whose memory does not suit the store: copied and written a part at a time.
    Copying {
        offset: u64,
        /// What is not yet copied.
        rest: Bytes,
        fua: bool,
        /// Nothing is copied yet.
        is_first: bool,
        /// The part being written is the whole payload, and durable.
        durable: bool,
    },
    Zeroing {
        position: u64,
        end: u64,
        method: ZeroMethod,
        unmap: bool,
        fua: bool,
        /// Bytes of the part under way.
        step: u64,
    },
    Flushing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZeroMethod {
    Punch,
    ZeroRange,
    Write,
}

impl Disk {
    pub(super) fn new(id: DiskId, store: StoreId, area: Area) -> Self {
        Self {
            id,
            store,
            area,
            operations: Slab::new(),
            counters: Counters::default(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.operations.is_empty()
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            in_flight: self.operations.len() as u64,
            ..self.counters
        }
    }

    pub(super) fn submit(
        &mut self,
        io: &mut Io,
        id: u64,
        operation: DiskOp,
        done: &mut Vec<StorageCompletion>,
    ) {
        match operation {
            DiskOp::Read { offset, len } => {
                let offset = self.place(offset, len.into());
                self.counters.reads += 1;
                let slot = self.begin(id, Stage::Reading { offset });
                match io.alloc_read(len as usize, self.id) {
                    Some(buffer) => self.read(io, slot, offset, buffer),
                    None => io.starve_read(Tag::disk(self.id, slot), len as usize, self.id),
                }
            }
            DiskOp::Write { offset, data, fua } => {
                let offset = self.place(offset, data.len() as u64);
                self.counters.writes += 1;
                if fua && let Some(error) = io.flush_failure(self.store) {
                    let slot = self.begin(id, Stage::Flushing);
                    return self.finish(slot, Err(fault(error)), done);
                }
                self.write(io, id, offset, data, fua);
            }
            DiskOp::Zero {
                offset,
                len,
                unmap,
                fua,
            } => {
                let position = self.place(offset, len);
                self.counters.zeroes += 1;
                let slot = self.begin(
                    id,
                    Stage::Zeroing {
                        position,
                        end: position + len,
                        method: ZeroMethod::Punch,
                        unmap,
                        fua,
                        step: 0,
                    },
                );
                if fua && let Some(error) = io.flush_failure(self.store) {
                    return self.finish(slot, Err(fault(error)), done);
                }
                self.zero(io, slot);
            }
            DiskOp::Flush => {
                self.counters.flushes += 1;
                let slot = self.begin(id, Stage::Flushing);
                io.flush(self.store, Tag::disk(self.id, slot));
            }
        }
    }

    /// The ring, or a flush, has answered the operation in `slot`.
    pub(super) fn on_answer(
        &mut self,
        io: &mut Io,
        slot: u32,
        answer: Answer,
        done: &mut Vec<StorageCompletion>,
    ) {
        let slot = slot as usize;
        match (&mut self.operations[slot].stage, answer) {
            (Stage::Zeroing { .. }, Err(error)) => self.on_zero_refused(io, slot, error, done),
            (Stage::Writing { durable, .. } | Stage::Copying { durable, .. }, Err(error)) => {
                if *durable && fault(error) != DiskFault::NoSpace {
                    io.fail_flushes(self.store, error);
                }
                self.finish(slot, Err(fault(error)), done);
            }
            (_, Err(error)) => self.finish(slot, Err(fault(error)), done),
            (Stage::Reading { .. }, Ok(buffer)) => {
                let buffer = buffer.expect("a read completes with its buffer");
                self.finish(slot, Ok(buffer.freeze()), done);
            }
            (Stage::Flushing, Ok(_)) => self.finish(slot, Ok(Bytes::new()), done),
            (Stage::Writing { then_flush, .. }, Ok(_)) => {
                if *then_flush {
                    self.flush(io, slot);
                } else {
                    self.finish(slot, Ok(Bytes::new()), done);
                }
            }
            (
                Stage::Copying {
                    rest, fua, durable, ..
                },
                Ok(_),
            ) => {
                if !rest.is_empty() {
                    self.copy(io, slot);
                } else if *fua && !*durable {
                    self.flush(io, slot);
                } else {
                    self.finish(slot, Ok(Bytes::new()), done);
                }
            }
            (
                Stage::Zeroing {
                    position,
                    end,
                    step,
                    fua,
                    ..
                },
                Ok(_),
            ) => {
                *position += *step;
                if *position < *end {
                    self.zero(io, slot);
                } else if *fua {
                    self.flush(io, slot);
                } else {
                    self.finish(slot, Ok(Bytes::new()), done);
                }
            }
        }
    }

    /// The memory that the operation in `slot` waited for.
    pub(super) fn on_memory(&mut self, io: &mut Io, slot: u32, buffer: Buffer) {
        let slot = slot as usize;
        match self.operations[slot].stage {
            Stage::Reading { offset } => self.read(io, slot, offset, buffer),
            Stage::Copying { .. } => self.copy_into(io, slot, buffer),
            _ => unreachable!("only reads and copies wait for memory"),
        }
    }

    fn begin(&mut self, id: u64, stage: Stage) -> usize {
        self.operations.insert(Pending { id, stage })
    }

    fn finish(&mut self, slot: usize, result: DiskResult, done: &mut Vec<StorageCompletion>) {
        let id = self.operations.remove(slot).id;
        self.counters.faults += u64::from(result.is_err());
        done.push(StorageCompletion::Disk(DiskCompletion {
            disk: self.id,
            id,
            result,
        }));
    }

    /// Where in the store a range of the data lies. The core asks for nothing outside.
    fn place(&self, offset: u64, len: u64) -> u64 {
        let page = PAGE as u64;
        assert!(
            offset.is_multiple_of(page) && len.is_multiple_of(page) && len > 0,
            "{len} bytes at {offset} are not whole blocks"
        );
        assert!(
            offset
                .checked_add(len)
                .is_some_and(|end| end <= self.area.len),
            "{len} bytes at {offset} end beyond the {} of the disk",
            self.area.len
        );
        self.area.start + offset
    }

    fn read(&mut self, io: &mut Io, slot: usize, offset: u64, buffer: Buffer) {
        let tag = Tag::disk(self.id, slot);
        io.push(self.store, tag, offset, Operation::Read(buffer));
    }

    fn write(&mut self, io: &mut Io, id: u64, offset: u64, data: Bytes, fua: bool) {
        let dsync = fua && io.store(self.store).capabilities.dsync;
        if io.is_aligned(self.store, &data) {
            let slot = self.begin(
                id,
                Stage::Writing {
                    then_flush: fua && !dsync,
                    durable: dsync,
                },
            );
            let tag = Tag::disk(self.id, slot);
            io.write(self.store, tag, offset, Payload::Bytes(data), dsync);
        } else {
            let slot = self.begin(
                id,
                Stage::Copying {
                    offset,
                    rest: data,
                    fua,
                    is_first: true,
                    durable: false,
                },
            );
            self.copy(io, slot);
        }
    }

    /// Copies and writes the next part of a payload, or waits for memory to do so. A part frees its
    /// memory when it is written, so copies always get on with whatever there is.
    fn copy(&mut self, io: &mut Io, slot: usize) {
        let Stage::Copying { rest, .. } = &self.operations[slot].stage else {
            unreachable!("the operation copies");
        };
        let mut len = rest.len().min(BOUNCE_STEP);
        loop {
            if let Some(buffer) = io.alloc_copy(len) {
                return self.copy_into(io, slot, buffer);
            }
            if len <= BOUNCE_STARVED {
                return io.starve_copy(Tag::disk(self.id, slot), len);
            }
            len = (len / 2).next_multiple_of(PAGE);
        }
    }

    fn copy_into(&mut self, io: &mut Io, slot: usize, mut buffer: Buffer) {
        let can_dsync = io.store(self.store).capabilities.dsync;
        let Stage::Copying {
            offset,
            rest,
            fua,
            is_first,
            durable,
        } = &mut self.operations[slot].stage
        else {
            unreachable!("the operation copies");
        };
        // Only a payload in one part gets a durable write; several share one flush at the end.
        let is_whole = *is_first && buffer.len() == rest.len();
        *is_first = false;
        let part = rest.split_to(buffer.len());
        buffer.copy_from_slice(&part);
        *durable = *fua && can_dsync && is_whole;
        let (at, dsync) = (*offset, *durable);
        *offset += part.len() as u64;
        self.counters.copies += 1;
        self.counters.copied_bytes += part.len() as u64;
        let tag = Tag::disk(self.id, slot);
        io.write(self.store, tag, at, Payload::Buffer(buffer), dsync);
    }

    fn flush(&mut self, io: &mut Io, slot: usize) {
        self.operations[slot].stage = Stage::Flushing;
        io.flush(self.store, Tag::disk(self.id, slot));
    }

    /// Zeroes the next part of a range, by the best way that the store has not refused.
    fn zero(&mut self, io: &mut Io, slot: usize) {
        let store = io.store(self.store);
        let (no_punch, no_zero_range) = (store.no_punch, store.no_zero_range);
        let fallocate_step = match store.capabilities.kind {
            StoreKind::File => FILE_ZERO_STEP,
            StoreKind::BlockDevice => DEVICE_ZERO_STEP,
        };
        let Stage::Zeroing {
            position,
            end,
            method,
            unmap,
            step,
            ..
        } = &mut self.operations[slot].stage
        else {
            unreachable!("the operation zeroes");
        };
        *method = if *unmap && !no_punch {
            ZeroMethod::Punch
        } else if !no_zero_range {
            ZeroMethod::ZeroRange
        } else {
            ZeroMethod::Write
        };
        let left = *end - *position;
        *step = match method {
            ZeroMethod::Write => left.min(io.zeroes.len() as u64),
            ZeroMethod::Punch | ZeroMethod::ZeroRange => left.min(fallocate_step),
        };
        // Without KEEP_SIZE a device refuses to punch.
        let operation = match method {
            ZeroMethod::Punch => Operation::Fallocate {
                mode: FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                len: *step,
            },
            ZeroMethod::ZeroRange => Operation::Fallocate {
                mode: FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                len: *step,
            },
            ZeroMethod::Write => Operation::Write {
                data: Payload::Bytes(io.zeroes.slice(..*step as usize)),
                dsync: false,
            },
        };
        let position = *position;
        io.push(self.store, Tag::disk(self.id, slot), position, operation);
    }

    /// A part of a range was not zeroed: falls back to the next way if the store lacks this one.
    fn on_zero_refused(
        &mut self,
        io: &mut Io,
        slot: usize,
        error: Errno,
        done: &mut Vec<StorageCompletion>,
    ) {
        let Stage::Zeroing { method, .. } = self.operations[slot].stage else {
            unreachable!("the operation zeroes");
        };
        let lacks_it = matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL);
        let store = io.store(self.store);
        match method {
            ZeroMethod::Punch if lacks_it => store.no_punch = true,
            ZeroMethod::ZeroRange if lacks_it => store.no_zero_range = true,
            _ => return self.finish(slot, Err(fault(error)), done),
        }
        self.zero(io, slot);
    }
}
