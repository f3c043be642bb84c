//! A write's life: its span locked, its extents hot, the blocks that it covers in part read,
//! then on both copies at once, and answered when enough of them have it.
//!
//! *Read-your-writes*: of two overlapping writes the later one waits until the earlier one has
//! ended on both copies, so both end in the same order. *Marked-before-different*: nothing is
//! submitted before every extent of it is hot.

use bytes::Bytes;
use kagami_bitmap::Run;
use kagami_bitmap::planted::{Defect, planted};

use super::event::IoError;
use super::message::Message;
use super::request::JobKey;
use super::state::{Protocol, Seq, SessionId};
use super::{Actions, DiskFault, DiskOp, DiskWork, Mirror, Store};

/// Key of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WriteKey(pub usize);

/// Who asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A front end.
    Front(JobKey),
    /// A front end that was told already: the write only ends.
    Answered,
    /// The peer.
    Peer { session: SessionId, seq: Seq },
}

/// What is written.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// Whole blocks.
    Whole(Bytes),
    /// Part of the span's first or last block, or of both.
    Partial { at: usize, data: Bytes },
    /// Zeroes.
    Zero { unmap: bool },
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// An earlier write overlaps it.
    Blocked,
    /// An extent is not hot.
    Cold,
    /// Blocks that it covers in part are being read; as many operations are under way.
    Edges(u8),
    /// An edge could not be read, and nobody may answer it at the moment: once as many operations have ended, it is parked.
    Again(u8),
    /// Nobody may answer it at the moment.
    Parked,
    /// Submitted.
    Started,
    /// Given up while edges were being read; as many operations are under way.
    Dropped(u8),
}

/// What a copy has of a started write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// It is not asked to write it.
    None,
    /// Not yet.
    Owed,
    /// In the peer's memory (protocol B).
    Received,
    /// On its disk, perhaps in a volatile cache.
    Done,
    /// The session ended before it was answered: nothing is known.
    Lost,
    /// The store is full; the block's content is undefined there.
    NoSpace,
}

/// A write of a front end or of the peer.
#[derive(Debug)]
pub(super) struct Write {
    pub origin: Origin,
    pub span: Run,
    pub work: Work,
    pub fua: bool,
    pub stage: Stage,
    pub local: Copy,
    pub peer: Copy,
    /// Its number in the session it was sent in.
    pub sent: Option<(SessionId, Seq)>,
    pub pinned: bool,
    pub locked: bool,
    /// It went to the source that answers for this guest, and not to the local disk.
    pub forwarded: bool,
    pub edges: [Option<Bytes>; 2],
    /// They are asked of the peer, since this node has no copy to read them from.
    pub edges_there: bool,
}

impl Mirror {
    /// Takes on a write of whole blocks or parts of them.
    pub(super) fn add_write(
        &mut self,
        origin: Origin,
        span: Run,
        work: Work,
        fua: bool,
        out: &mut Actions,
    ) {
        let key = self.insert_write(origin, span, work, fua);
        let waits = self
            .blocked
            .iter()
            .any(|k| self.writes[k.0].span.overlaps(span));
        if planted(Defect::OverlappingWritesRace) {
            self.heat_for(key, out);
        } else if waits || !self.spans.try_lock(span) {
            self.blocked.push_back(key);
        } else {
            self.writes[key.0].locked = true;
            self.heat_for(key, out);
        }
    }

    pub(super) fn insert_write(
        &mut self,
        origin: Origin,
        span: Run,
        work: Work,
        fua: bool,
    ) -> WriteKey {
        WriteKey(self.writes.insert(Write {
            origin,
            span,
            work,
            fua,
            stage: Stage::Blocked,
            local: Copy::None,
            peer: Copy::None,
            sent: None,
            pinned: false,
            locked: false,
            forwarded: false,
            edges: [None, None],
            edges_there: false,
        }))
    }

    /// Lets go on what waited for a span that is free now, in order of arrival.
    pub(super) fn wake_blocked(&mut self, out: &mut Actions) {
        if self.blocked.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.blocked);
        let mut ready = Vec::new();
        for key in waiting {
            let span = self.writes[key.0].span;
            let behind = self
                .blocked
                .iter()
                .any(|k| self.writes[k.0].span.overlaps(span));
            if !behind && self.spans.try_lock(span) {
                self.writes[key.0].locked = true;
                ready.push(key);
            } else {
                self.blocked.push_back(key);
            }
        }
        for key in ready {
            self.heat_for(key, out);
        }
    }

    /// True if what the source of this guest sent is on its way to these blocks still: the guest's lock on them
    /// let it pass. Whoever forces the guest's copy writes there only after it has landed.
    fn waits_for_landing(&self, key: WriteKey) -> bool {
        let span = self.writes[key.0].span;
        self.has_copy()
            && !matches!(self.writes[key.0].origin, Origin::Peer { .. })
            && self
                .unlocked
                .iter()
                .any(|k| self.writes[k.0].span.overlaps(span))
    }

    pub(super) fn park(&mut self, key: WriteKey) {
        self.writes[key.0].stage = Stage::Parked;
        self.parked.push(key);
    }

    /// All extents are hot.
    pub(super) fn on_heated(&mut self, key: WriteKey, out: &mut Actions) {
        if self.waits_for_landing(key) {
            self.park(key);
        } else if matches!(self.writes[key.0].work, Work::Partial { .. }) {
            self.read_edges(key, out);
        } else {
            self.start_write(key, out);
        }
    }

    /// Submits the write to the local disk and sends it to the peer, as the state demands.
    pub(super) fn start_write(&mut self, key: WriteKey, out: &mut Actions) {
        if self.waits_for_landing(key) {
            return self.park(key);
        }
        if matches!(self.writes[key.0].work, Work::Partial { .. }) {
            return self.read_edges(key, out);
        }
        let from_peer = matches!(self.writes[key.0].origin, Origin::Peer { .. });
        let may = if from_peer {
            // What a guest writes is answered by this copy alone.
            !self.is_source() || self.alone.is_some()
        } else {
            self.may_write()
        };
        if !may {
            return self.park(key);
        }
        let local = self.has_copy();
        if local && !self.writes[key.0].pinned {
            // A guest's write that waited, and its copy is good now.
            return self.heat_for(key, out);
        }
        let write = &self.writes[key.0];
        let (span, fua) = (write.span, write.fua);
        for extent in span.extents() {
            assert!(
                self.log.is_hot(extent) || !local,
                "Marked-before-different: {extent} is cold"
            );
        }
        let mirrors = self.is_mirroring() && (!from_peer || self.is_source());
        if mirrors && (local || self.is_guest() || self.is_carried()) {
            // (Without a copy of its own: so that it flushes, and knows what the peer may lose.)
            let forgotten = planted(Defect::UnflushedForgotten)
                || (from_peer && planted(Defect::GuestWritesUnmarked));
            if !forgotten {
                self.unflushed.write(span);
            }
            self.note_unflushed();
        } else if local {
            self.bitmap.mark(span);
        }
        let mut sent = None;
        if mirrors {
            sent = self.send_write(key, out);
        }
        let forwarded = self.is_guest();
        let write = &mut self.writes[key.0];
        write.forwarded = forwarded;
        write.stage = Stage::Started;
        write.sent = sent;
        write.peer = if sent.is_some() {
            Copy::Owed
        } else {
            Copy::None
        };
        write.local = if local { Copy::Owed } else { Copy::None };
        if local {
            let offset = span.byte_offset();
            let op = match &write.work {
                Work::Whole(data) => DiskOp::Write {
                    offset,
                    data: data.clone(),
                    fua,
                },
                Work::Zero { unmap } => DiskOp::Zero {
                    offset,
                    len: span.byte_len(),
                    unmap: *unmap,
                    fua,
                },
                Work::Partial { .. } => panic!("a partial write is merged before it starts"),
            };
            self.submit(DiskWork::Write(key), op, out);
        }
    }

    fn send_write(&mut self, key: WriteKey, out: &mut Actions) -> Option<(SessionId, Seq)> {
        let early = self.settings.protocol == Protocol::B && !self.is_guest();
        let write = &self.writes[key.0];
        let (offset, len, fua) = (write.span.byte_offset(), write.span.byte_len(), write.fua);
        let work = write.work.clone();
        let now = self.now;
        let up = self.up_mut()?;
        let seq = up.next_seq();
        up.owed.insert(seq, (super::link::Owed::Write(key), now));
        let message = match work {
            Work::Whole(data) => Message::Write {
                seq,
                offset,
                data,
                fua,
                early: early && !fua,
            },
            Work::Zero { unmap } => Message::Zero {
                seq,
                offset,
                len,
                unmap,
                fua,
            },
            Work::Partial { .. } => panic!("a partial write is merged before it is sent"),
        };
        self.counters.replicated_bytes += len;
        let session = self.send(message, out)?;
        self.watch_acks();
        Some((session, seq))
    }

    /// The local disk has carried out a write.
    pub(super) fn on_write_local(
        &mut self,
        key: WriteKey,
        result: Result<(), DiskFault>,
        out: &mut Actions,
    ) {
        match result {
            Ok(()) => self.writes[key.0].local = Copy::Done,
            Err(DiskFault::NoSpace) if !self.gives_way_when_full() => {
                return self.on_store_full(key, out);
            }
            // The peer may be gone, or as full: this copy gives way once that one has the write.
            Err(DiskFault::NoSpace) if self.has_word_to_wait_for(key) => {
                self.writes[key.0].local = Copy::NoSpace;
            }
            Err(_) if planted(Defect::FailedWriteAnswered) => {
                self.writes[key.0].local = Copy::Done;
            }
            Err(fault) => {
                // First, since the failure may end the write.
                self.writes[key.0].local = Copy::None;
                self.advance_write(key, out);
                self.on_local_failed(fault, "writing", out);
                return;
            }
        }
        self.advance_write(key, out);
    }

    /// The peer has a write in memory.
    pub(super) fn on_peer_received(&mut self, key: WriteKey, out: &mut Actions) {
        if self.writes[key.0].peer == Copy::Owed {
            self.writes[key.0].peer = Copy::Received;
        }
        self.advance_write(key, out);
    }

    /// The peer has carried out a write.
    pub(super) fn on_peer_wrote(&mut self, key: WriteKey, out: &mut Actions) {
        let write = &mut self.writes[key.0];
        write.peer = Copy::Done;
        if write.local == Copy::NoSpace {
            return self.give_way(key, out);
        }
        self.advance_write(key, out);
    }

    /// Answers the write if it may be, and ends it if nothing of it is under way.
    pub(super) fn advance_write(&mut self, key: WriteKey, out: &mut Actions) {
        if self.may_answer(&self.writes[key.0]) {
            let write = &self.writes[key.0];
            let full = write.local == Copy::NoSpace || write.peer == Copy::NoSpace;
            self.answer_write(key, if full { Err(IoError::NoSpace) } else { Ok(()) }, out);
        }
        let lost = {
            let write = &self.writes[key.0];
            // (A guest's write is answered when its source has it: one that is, failed.)
            let waits = write.forwarded && matches!(write.origin, Origin::Front(_));
            (self.local.store != Store::Usable || waits)
                && write.stage == Stage::Started
                && write.local != Copy::Owed
                && write.peer == Copy::Lost
                && !matches!(write.origin, Origin::Peer { .. })
                && !(planted(Defect::EarlyWritesForgotten)
                    && matches!(write.origin, Origin::Answered))
        };
        if lost {
            // Without a disk only the peer can have it: sent again once the peer carries, even if
            // protocol A or B answered it before.
            return self.park_again(key);
        }
        let write = &self.writes[key.0];
        let answered = !matches!(write.origin, Origin::Front(_));
        let idle = write.local != Copy::Owed && !matches!(write.peer, Copy::Owed | Copy::Received);
        if answered && idle {
            self.end_write(key, out);
        }
    }

    /// Nobody has the write, as far as is known: it is begun anew once it may be.
    fn park_again(&mut self, key: WriteKey) {
        let write = &mut self.writes[key.0];
        write.stage = Stage::Parked;
        write.local = Copy::None;
        write.peer = Copy::None;
        write.sent = None;
        write.forwarded = false;
        self.parked.push(key);
    }

    /// docs/protocol.md §2: in sync when both copies have it, alone when this one has, for a
    /// Primary without a disk when the peer that carries has; sooner in protocols A and B,
    /// under the lease.
    #[allow(clippy::match_same_arms)] // each arm is a rule
    fn may_answer(&self, write: &Write) -> bool {
        if write.stage != Stage::Started || matches!(write.origin, Origin::Answered) {
            return false;
        }
        if let Origin::Peer { .. } = write.origin {
            return write.local != Copy::Owed;
        }
        match (write.local, write.peer) {
            (Copy::Owed, peer) => peer == Copy::Done && planted(Defect::AnswerBeforeTheDisk),
            (Copy::Done, Copy::Owed) if planted(Defect::AnswerBeforeThePeer) => true,
            (Copy::NoSpace, peer) => !matches!(peer, Copy::Owed | Copy::Received),
            (Copy::None, Copy::NoSpace) => true,
            (Copy::Done, Copy::Done) => self.local.store == Store::Usable || self.is_carried(),
            (Copy::Done, Copy::None | Copy::Lost) => self.alone.is_some(),
            (Copy::Done, peer) => {
                let early = match self.settings.protocol {
                    Protocol::A => true,
                    Protocol::B => peer == Copy::Received,
                    Protocol::C => false,
                };
                early && !write.fua && self.is_in_sync() && self.has_lease()
            }
            (Copy::None, Copy::Done) => self.is_carried() || write.forwarded,
            _ => false,
        }
    }

    pub(super) fn answer_write(
        &mut self,
        key: WriteKey,
        result: Result<(), IoError>,
        out: &mut Actions,
    ) {
        match std::mem::replace(&mut self.writes[key.0].origin, Origin::Answered) {
            Origin::Front(job) => self.end_piece(job, result.err(), out),
            Origin::Peer { session, seq } => {
                let local = self.writes[key.0].local;
                let result = match local {
                    Copy::Done => Ok(()),
                    Copy::NoSpace => Err(DiskFault::NoSpace),
                    _ => Err(DiskFault::Io(5)),
                };
                let blocks = self.writes[key.0].span.count;
                self.on_applied(session, seq, blocks, result, out);
            }
            Origin::Answered => {}
        }
    }

    /// Nothing of the write is under way any more.
    pub(super) fn end_write(&mut self, key: WriteKey, out: &mut Actions) {
        let write = self.writes.remove(key.0);
        if write.pinned {
            self.heat.unpin(write.span);
        }
        if write.stage == Stage::Cold {
            self.heat.forget(key);
        }
        if write.locked {
            self.spans.unlock(write.span);
            self.wake_blocked(out);
        } else if !self.unlocked.is_empty() {
            self.unlocked.retain(|k| *k != key);
        }
    }

    /// The session is gone: what it owed is lost, and answered once this copy may go on alone.
    pub(super) fn lose_peer_of_writes(&mut self, out: &mut Actions) {
        let keys: Vec<WriteKey> = self.started_writes().collect();
        for key in keys {
            let write = &mut self.writes[key.0];
            if write.sent.is_some() {
                let answered = matches!(write.origin, Origin::Answered);
                let early = answered && self.alone.is_none();
                if early && write.peer != Copy::Done && self.local.store == Store::Usable {
                    self.local.ahead = !planted(Defect::AheadForgotten);
                }
                write.peer = Copy::Lost;
            }
            // A copy that was alone in the session already needs nobody to answer.
            self.advance_write(key, out);
        }
    }

    /// This copy may go on alone: what waited for that is answered.
    pub(super) fn answer_waiting_writes(&mut self, out: &mut Actions) {
        let keys: Vec<WriteKey> = self.started_writes().collect();
        for key in keys {
            if self.writes.contains(key.0) {
                self.advance_write(key, out);
            }
        }
    }

    fn started_writes(&self) -> impl Iterator<Item = WriteKey> + '_ {
        self.writes
            .iter()
            .filter(|(_, w)| w.stage == Stage::Started)
            .map(|(key, _)| WriteKey(key))
    }

    /// Runs of started writes that have not ended, on this copy or the peer's.
    pub(super) fn runs_in_flight(&self) -> impl Iterator<Item = Run> + '_ {
        self.writes
            .iter()
            .filter(|(_, w)| w.stage == Stage::Started)
            .map(|(_, w)| w.span)
    }

    /// True if a write of the peer's is not answered, however far it is.
    pub(super) fn has_writes_of_peer(&self) -> bool {
        let of_peer = |w: &Write| matches!(w.origin, Origin::Peer { .. });
        self.writes.iter().any(|(_, w)| of_peer(w))
    }

    /// The session is gone: what the peer sent and was not begun never is.
    pub(super) fn drop_parked_of_peer(&mut self, out: &mut Actions) {
        for key in std::mem::take(&mut self.parked) {
            if matches!(self.writes[key.0].origin, Origin::Peer { .. }) {
                self.end_write(key, out);
            } else {
                self.parked.push(key);
            }
        }
    }

    /// True if something of an older session has not landed on the disk (docs/protocol.md §5).
    pub(super) fn has_old_writes(&self) -> bool {
        self.has_repairs()
            || self.writes.iter().any(|(_, w)| {
                matches!(w.origin, Origin::Peer { .. })
                    || (w.local == Copy::Owed && w.sent.is_some())
            })
    }

    /// True if a block that could not be read here is being written back. It is no request's any more, and what the
    /// peer writes there as a Primary must not be overtaken by it (*Read-your-writes*).
    pub(super) fn has_repairs(&self) -> bool {
        let mut disk = self.disk.iter();
        disk.any(|(_, under_way)| matches!(under_way.work, DiskWork::Repair(_)))
    }

    /// True if a disk write is under way.
    pub(super) fn owes_disk_writes(&self, is: impl Fn(&Write) -> bool) -> bool {
        self.writes
            .iter()
            .any(|(_, w)| w.local == Copy::Owed && is(w))
    }

    /// Fails all writes of front ends; those under way end by themselves.
    pub(super) fn fail_writes(&mut self, error: IoError, out: &mut Actions) {
        self.parked.clear();
        let keys: Vec<WriteKey> = self.writes.iter().map(|(key, _)| WriteKey(key)).collect();
        for key in keys {
            let Some(write) = self.writes.get(key.0) else {
                continue;
            };
            if matches!(write.origin, Origin::Peer { .. }) {
                continue;
            }
            let stage = write.stage;
            self.answer_write(key, Err(error), out);
            match stage {
                Stage::Started => {
                    let write = &self.writes[key.0];
                    if write.local != Copy::Owed
                        && !matches!(write.peer, Copy::Owed | Copy::Received)
                    {
                        self.end_write(key, out);
                    }
                }
                Stage::Edges(left) | Stage::Again(left) => {
                    self.writes[key.0].stage = Stage::Dropped(left);
                }
                Stage::Dropped(_) => {}
                Stage::Blocked | Stage::Cold | Stage::Parked => {
                    self.blocked.retain(|k| *k != key);
                    self.end_write(key, out);
                }
            }
        }
        self.parked.clear();
    }
}
