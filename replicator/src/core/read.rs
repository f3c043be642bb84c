//! A read's life: from the local copy, or from the peer's where this one can't give the block.
//!
//! *Read-your-writes*: whether this node may answer is checked after the data was read, since
//! the lease may have ended meanwhile (docs/protocol.md §8); a read that may not be answered
//! is held and done again.

use bytes::Bytes;
use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::{Block, Run};

use super::event::{IoError, Request};
use super::link::Phase;
use super::message::Message;
use super::request::{Held, JobKey};
use super::resync::Stage;
use super::state::RequestId;
use super::write::WriteKey;
use super::{Actions, DiskFault, DiskOp, DiskResult, DiskState, DiskWork, Mirror, Notice, Store};

/// Most bytes that one message asks the peer for. The blocks of a front end's read are as many at most.
pub const PEER_READ: u64 = 1 << 20;

/// Key of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadKey(pub usize);

/// A read of a front end.
#[derive(Debug)]
pub(super) struct Read {
    job: JobKey,
    /// The term of this Primary in which it was asked; no other one answers it.
    term: u64,
    offset: u64,
    len: u32,
    /// The whole blocks that hold it.
    span: Run,
    /// The local copy could not give it.
    failed: Option<DiskFault>,
    /// The peer is asked in its stead: its span is locked until it is written back, so that
    /// no newer write lies between.
    repair: bool,
}

/// What the peer was asked to send.
#[derive(Clone, Copy, Debug)]
pub(super) enum PeerRead {
    Read(ReadKey),
    Edge {
        write: WriteKey,
        last: bool,
    },
    /// A verification can't read this locked block here.
    Verified {
        run: Run,
        number: u64,
    },
}

impl Mirror {
    pub(super) fn begin_read(&mut self, job: JobKey, offset: u64, len: u32, out: &mut Actions) {
        let span = Run::touching_bytes(offset, u64::from(len));
        assert!(span.is_some(), "{offset}+{len} was checked");
        let span = span.unwrap_or(self.geometry.all());
        let read = Read {
            job,
            term: self.term,
            offset,
            len,
            span,
            failed: None,
            repair: false,
        };
        let key = ReadKey(self.reads.insert(read));
        if self.has_copy() {
            self.read_here(key, out);
        } else {
            self.read_there(key, out);
        }
    }

    fn read_here(&mut self, key: ReadKey, out: &mut Actions) {
        let span = self.reads[key.0].span;
        let op = DiskOp::Read {
            offset: span.byte_offset(),
            len: span.byte_len() as u32,
        };
        self.submit(DiskWork::Read(key), op, out);
    }

    /// Reads from the peer, once there is memory for what it sends.
    fn read_there(&mut self, key: ReadKey, out: &mut Actions) {
        let read = &self.reads[key.0];
        let job = &self.jobs[read.job.0];
        if job.has_room {
            return self.read_with_room(key, out);
        }
        self.rooms.insert(job.id, key);
        out.push(super::Action::Room {
            id: job.id,
            len: read.len,
        });
    }

    /// There is memory for the answer of a read. What it found when it asked may have changed.
    pub(super) fn on_room(&mut self, id: RequestId, out: &mut Actions) {
        let key = self.rooms.remove(&id);
        assert!(key.is_some(), "{id} asked for no memory");
        let Some(key) = key else { return };
        let job = self.reads[key.0].job;
        self.jobs[job.0].has_room = true;
        self.read_with_room(key, out);
    }

    fn read_with_room(&mut self, key: ReadKey, out: &mut Actions) {
        if self.is_of_past(key) {
            return self.end_read_of_past(key, out);
        }
        if !self.may_read() && !planted(Defect::ReadCheckedTooEarly) {
            return self.put_off_read(key, out);
        }
        let read = &self.reads[key.0];
        let (span, failed) = (read.span, read.failed);
        match failed {
            Some(fault) if self.can_read_from_peer() => {
                if planted(Defect::RepairOverNewer) {
                    // below: written back without a lock
                } else if !self.spans.try_lock(span) {
                    // A write is under way there; what the peer has may be older than it.
                    return self.hold_read(key, Some(span), out);
                }
                self.reads[key.0].repair = true;
                let doing = "reading (the peer's block is used)";
                out.push(super::Action::Report(Notice::DiskFailed { fault, doing }));
                self.read_from_peer(key, out);
            }
            Some(_) => {
                let read = self.reads.remove(key.0);
                self.end_read(read.job, Err(IoError::Io), out);
            }
            None if self.has_copy() => self.read_here(key, out),
            None if self.spans.is_free(span) => self.read_from_peer(key, out),
            // With protocols A and B a write there may be answered, and not yet be on its disk.
            None => self.hold_read(key, Some(span), out),
        }
    }

    pub(super) fn on_read_local(&mut self, key: ReadKey, result: DiskResult, out: &mut Actions) {
        match result {
            // Nothing is written back, either: it would be beneath what is copied here by now.
            _ if self.is_of_past(key) => self.end_read_of_past(key, out),
            Ok(data) => {
                assert_eq!(
                    data.len() as u64,
                    self.reads[key.0].span.byte_len(),
                    "a short read"
                );
                self.finish_read(key, &data, out);
            }
            Err(fault) if self.can_read_from_peer() && !planted(Defect::BadBlockRefused) => {
                self.reads[key.0].failed = Some(fault);
                self.read_there(key, out);
            }
            // Also where the disk is dying: the peer may be about to answer for this node.
            Err(_) if !self.may_read() && !planted(Defect::ReadDiesWithTheDisk) => {
                self.put_off_read(key, out);
            }
            Err(_) => {
                let read = self.reads.remove(key.0);
                self.end_read(read.job, Err(IoError::Io), out);
            }
        }
    }

    /// Answers the read, or holds it to be done again if this node may not answer any more.
    fn finish_read(&mut self, key: ReadKey, data: &Bytes, out: &mut Actions) {
        if !self.may_read() && !planted(Defect::ReadCheckedTooEarly) {
            return self.put_off_read(key, out);
        }
        let read = self.reads.remove(key.0);
        let skip = (read.offset - read.span.byte_offset()) as usize;
        let data = data.slice(skip..skip + read.len as usize);
        self.end_read(read.job, Ok(data), out);
    }

    /// This node may not answer the read: it is held to be done again, or fails where it never may.
    fn put_off_read(&mut self, key: ReadKey, out: &mut Actions) {
        if self.has_lost_all() {
            let read = self.reads.remove(key.0);
            self.end_read(read.job, Err(IoError::Io), out);
        } else {
            self.hold_read(key, None, out);
        }
    }

    /// True if this node has lost its role since it began the read. It may be Primary again, as a guest even, and its
    /// copy have been overwritten under the read.
    fn is_of_past(&self, key: ReadKey) -> bool {
        self.reads[key.0].term != self.term && !planted(Defect::ReadCheckedTooEarly)
    }

    fn end_read_of_past(&mut self, key: ReadKey, out: &mut Actions) {
        let read = self.reads.remove(key.0);
        self.end_read(read.job, Err(IoError::NotPrimary), out);
    }

    /// Reads of front ends under way on the local disk that may be answered.
    pub(super) fn reads_local(&self) -> impl Iterator<Item = ReadKey> + '_ {
        let keys = self
            .disk
            .iter()
            .filter_map(|(_, under_way)| match &under_way.work {
                DiskWork::Read(key) => Some(*key),
                _ => None,
            });
        keys.filter(|key| !self.is_of_past(*key))
    }

    /// Does the read again, later: when nothing is under way in the run `behind` any more. (A bad block would be read
    /// again and again, as fast as the disk fails, for as long as a write of it takes.)
    fn hold_read(&mut self, key: ReadKey, behind: Option<Run>, out: &mut Actions) {
        if self.is_of_past(key) {
            return self.end_read_of_past(key, out);
        }
        let read = self.reads.remove(key.0);
        let request = Request::Read {
            offset: read.offset,
            len: read.len,
        };
        self.held.push_back(Held {
            job: read.job,
            request,
            behind,
        });
    }

    /// True if the peer's copy is as good as this one.
    pub(super) fn can_read_from_peer(&self) -> bool {
        // Between *Adopted* and *Settled* both have all of it, too, and nothing is written.
        let in_sync = match self.up().map(|up| &up.phase) {
            Some(Phase::InSync) => true,
            Some(Phase::Source(source)) => source.stage == Stage::Settling,
            Some(Phase::Target(target)) => target.adopted && self.local.up_to_date,
            Some(Phase::Serve(_)) | None => false,
        };
        self.has_lease()
            && (self.is_carried()
                || self.is_served()
                || (in_sync
                    && self
                        .up()
                        .is_some_and(|up| up.peer.disk == DiskState::UpToDate)))
    }

    fn read_from_peer(&mut self, key: ReadKey, out: &mut Actions) {
        let span = self.reads[key.0].span;
        assert!(span.byte_len() <= PEER_READ, "the host cuts longer reads");
        let (offset, len) = (span.byte_offset(), span.byte_len() as u32);
        self.ask_peer(PeerRead::Read(key), offset, len, out);
    }

    pub(super) fn read_edge_from_peer(
        &mut self,
        write: WriteKey,
        block: Block,
        last: bool,
        out: &mut Actions,
    ) {
        self.ask_peer(
            PeerRead::Edge { write, last },
            block.byte_offset(),
            4096,
            out,
        );
    }

    pub(super) fn ask_peer(&mut self, read: PeerRead, offset: u64, len: u32, out: &mut Actions) {
        let now = self.now;
        let Some(up) = self.up_mut() else {
            return self.on_peer_data(read, Err(DiskFault::Io(5)), out);
        };
        let id = up.next_read;
        up.next_read += 1;
        up.reads.insert(id, (read, len, now));
        self.send(Message::Read { id, offset, len }, out);
        self.watch_acks();
    }

    /// The peer's answer to a read.
    ///
    /// Errors: an answer to nothing, or of another length.
    pub(super) fn on_read_reply(
        &mut self,
        id: u64,
        result: DiskResult,
        out: &mut Actions,
    ) -> Result<(), String> {
        let Some((read, len, _)) = self.up_mut().and_then(|up| up.reads.remove(&id)) else {
            return Err(format!("it answers read {id}, which was not asked"));
        };
        if result.as_ref().is_ok_and(|data| data.len() != len as usize) {
            return Err(format!(
                "its answer to read {id} has another length than asked"
            ));
        }
        self.on_peer_data(read, result, out);
        Ok(())
    }

    fn on_peer_data(&mut self, read: PeerRead, result: DiskResult, out: &mut Actions) {
        let key = match read {
            PeerRead::Edge { write, last } => return self.on_edge(write, last, result, true, out),
            PeerRead::Verified { run, number } => {
                return self.on_verified_by_peer(run, number, result, out);
            }
            PeerRead::Read(key) => key,
        };
        let Ok(data) = result else {
            let read = self.reads.remove(key.0);
            if read.repair {
                self.unlock_repair(read.span);
                self.wake_blocked(out);
            }
            return self.end_read(read.job, Err(IoError::Io), out);
        };
        let read = &self.reads[key.0];
        let (span, repair) = (read.span, read.repair);
        if repair && self.local.store != Store::Usable {
            self.unlock_repair(span);
            self.wake_blocked(out);
        } else if repair {
            self.repair(span, data.clone(), out);
        }
        self.finish_read(key, &data, out);
    }

    /// Writes back what the peer has for a locked span that can't be read here.
    pub(super) fn repair(&mut self, span: Run, data: Bytes, out: &mut Actions) {
        let op = DiskOp::Write {
            offset: span.byte_offset(),
            data,
            fua: false,
        };
        self.submit(DiskWork::Repair(span), op, out);
    }

    fn unlock_repair(&mut self, run: Run) {
        if !planted(Defect::RepairOverNewer) {
            self.spans.unlock(run);
        }
    }

    /// What the peer gave for a block that could not be read here is written back, or can't be.
    pub(super) fn on_repaired(
        &mut self,
        run: Run,
        result: Result<(), DiskFault>,
        out: &mut Actions,
    ) {
        self.unlock_repair(run);
        let doing = "writing back a block that could not be read";
        match result {
            Ok(()) => out.push(super::Action::Report(Notice::ReadRepaired { run })),
            // Nothing is lost by it: the block could not be read before either (docs/design.md §5). While the other copy has
            // all of it, a disk that takes no writes is given up as ever.
            Err(fault) if fault == DiskFault::NoSpace || !self.is_in_sync() => {
                out.push(super::Action::Report(Notice::DiskFailed { fault, doing }));
            }
            Err(fault) => self.on_local_failed(fault, doing, out),
        }
        self.wake_blocked(out);
    }

    /// The session is gone: what the peer was asked for is held, to be read again.
    pub(super) fn lose_peer_reads(&mut self, reads: Vec<PeerRead>, out: &mut Actions) {
        for read in reads {
            match read {
                PeerRead::Edge { write, .. } if self.reads_edges_again(write) => {}
                PeerRead::Edge { .. } | PeerRead::Verified { .. } => {
                    self.on_peer_data(read, Err(DiskFault::Io(5)), out);
                }
                PeerRead::Read(key) => {
                    if self.reads[key.0].repair {
                        let read = self.reads.remove(key.0);
                        // The local copy failed at it, and the peer is gone.
                        self.unlock_repair(read.span);
                        self.wake_blocked(out);
                        self.end_read(read.job, Err(IoError::Io), out);
                    } else {
                        self.hold_read(key, None, out);
                    }
                }
            }
        }
    }
}
