//! Applying what the peer sends: its writes, its flushes, its reads of blocks it can't give itself.
//!
//! The sender never has two overlapping writes under way, so they are applied as they come.
//! *Durable-both*: a flush waits until everything sent before it is applied, since it travels on
//! another stream and overtakes.

use bytes::Bytes;
use kagami_bitmap::Run;
use kagami_bitmap::planted::{Defect, planted};

use super::diskless::Serve;
use super::flush::FlushOf;
use super::link::{Owed, Phase};
use super::message::{BlockHash, Message};
use super::read::PEER_READ;
use super::served::Late;
use super::state::{Seq, SessionId};
use super::write::{Copy, Origin, Stage, Work};
use super::{Actions, DiskFault, DiskOp, DiskResult, DiskWork, Mirror, Store};

/// What a source answers to a write of its guest that comes when the generation is offered:
/// the guest carries it out itself, in sync. (errno EAGAIN, which no disk of ours gives.)
pub(super) const NOT_NOW: DiskFault = DiskFault::Io(11);

/// Longest write that the peer may send, in bytes.
const LONGEST: u64 = 64 << 20;

impl Mirror {
    /// The run that the peer names.
    ///
    /// Errors: not whole blocks, or behind the end of the mirror.
    fn run_from_peer(&self, offset: u64, len: u64) -> Result<Run, String> {
        let bad = || {
            format!(
                "it names bytes {offset}+{len} of a mirror of {} bytes",
                self.geometry.size()
            )
        };
        let run = Run::from_bytes(offset, len).ok_or_else(bad)?;
        if run.is_empty() || run.end().0 > self.geometry.blocks() || len > LONGEST {
            return Err(bad());
        }
        Ok(run)
    }

    fn receive(&mut self, seq: Seq) -> Result<(), String> {
        let primary = self.is_primary();
        let Some(up) = self.up_mut() else {
            return Ok(());
        };
        if primary && !matches!(up.phase, Phase::Target(_)) {
            return Err(format!("it sends write {seq} to a Primary"));
        }
        up.applied.receive(seq)
    }

    pub(super) fn on_peer_write(
        &mut self,
        seq: Seq,
        offset: u64,
        data: Bytes,
        fua: bool,
        early: bool,
        out: &mut Actions,
    ) -> Result<(), String> {
        let span = self.run_from_peer(offset, data.len() as u64)?;
        self.receive(seq)?;
        if early {
            self.send(Message::Received { seq }, out);
        }
        self.take_in(seq, span, Work::Whole(data), fua, out)
    }

    pub(super) fn on_peer_zero(
        &mut self,
        seq: Seq,
        offset: u64,
        len: u64,
        unmap: bool,
        fua: bool,
        out: &mut Actions,
    ) -> Result<(), String> {
        let span = self.run_from_peer(offset, len)?;
        self.receive(seq)?;
        self.take_in(seq, span, Work::Zero { unmap }, fua, out)
    }

    /// A change of the peer: of a Primary, or of this source's guest.
    fn take_in(
        &mut self,
        seq: Seq,
        span: Run,
        work: Work,
        fua: bool,
        out: &mut Actions,
    ) -> Result<(), String> {
        if self.is_source() {
            let late = Late {
                seq,
                span,
                work,
                fua,
            };
            return self.on_guest_write(late, out);
        }
        self.apply(seq, span, work, fua, out);
        Ok(())
    }

    pub(super) fn on_resync_blocks(
        &mut self,
        seq: Seq,
        offset: u64,
        data: Bytes,
        out: &mut Actions,
    ) -> Result<(), String> {
        let span = self.run_from_peer(offset, data.len() as u64)?;
        let Some(Phase::Target(target)) = self.up_mut().map(|up| &mut up.phase) else {
            return Err("it resynchronises a copy that is not its target".into());
        };
        target.reached_blocks += span.count;
        self.receive(seq)?;
        self.apply(seq, span, Work::Whole(data), false, out);
        Ok(())
    }

    fn apply(&mut self, seq: Seq, span: Run, work: Work, fua: bool, out: &mut Actions) {
        let Some(session) = self.session() else {
            return;
        };
        self.counters.applied_blocks += span.count;
        let origin = Origin::Peer { session, seq };
        if matches!(self.up().map(|up| &up.phase), Some(Phase::Serve(_)))
            && !planted(Defect::OnlyTheServerMarks)
        {
            // This copy answers for both: its marks are the only ones (§7).
            self.add_write(origin, span, work, fua, out);
            return;
        }
        let fua = fua && !planted(Defect::FuaLostOnTheWay);
        let offset = span.byte_offset();
        let op = match &work {
            Work::Zero { unmap } => DiskOp::Zero {
                offset,
                len: span.byte_len(),
                unmap: *unmap,
                fua,
            },
            Work::Whole(data) | Work::Partial { data, .. } => DiskOp::Write {
                offset,
                data: data.clone(),
                fua,
            },
        };
        let key = self.apply_at_once(origin, span, work, fua);
        self.submit(DiskWork::Write(key), op, out);
    }

    /// A write of the peer was carried out here, or could not be.
    pub(super) fn on_applied(
        &mut self,
        session: SessionId,
        seq: Seq,
        _blocks: u64,
        result: Result<(), DiskFault>,
        out: &mut Actions,
    ) {
        if !self.is_session(session) {
            return;
        }
        if let Some(up) = self.up_mut() {
            up.applied.apply(seq);
        }
        self.send(Message::Done { seq, result }, out);
        self.begin_peer_flushes(out);
    }

    /// Errors: a flush out of order.
    pub(super) fn on_peer_flush(
        &mut self,
        id: u64,
        after: Seq,
        out: &mut Actions,
    ) -> Result<(), String> {
        if let Some(up) = self.up_mut() {
            up.asked.flush()?;
            up.peer_flushes.push((id, after));
        }
        self.begin_peer_flushes(out);
        Ok(())
    }

    pub(super) fn begin_peer_flushes(&mut self, out: &mut Actions) {
        let Some(session) = self.session() else {
            return;
        };
        let Some(up) = self.up_mut() else { return };
        let mut ready = Vec::new();
        let applied = &up.applied;
        up.peer_flushes.retain(|(id, after)| {
            let covered = applied.covers(*after) || planted(Defect::PeerAppliesOutOfOrder);
            if covered {
                ready.push(*id);
            }
            !covered
        });
        for id in ready {
            if self.local.store == Store::Usable {
                self.submit(
                    DiskWork::Flush(FlushOf::Peer { session, id }),
                    DiskOp::Flush,
                    out,
                );
            } else {
                self.on_flushed_for_peer(session, id, Err(DiskFault::Io(5)), out);
            }
        }
    }

    pub(super) fn on_flushed_for_peer(
        &mut self,
        session: SessionId,
        id: u64,
        result: Result<(), DiskFault>,
        out: &mut Actions,
    ) {
        if !self.is_session(session) {
            return;
        }
        if let Some(up) = self.up_mut() {
            up.asked.end_flush();
        }
        self.send(Message::Flushed { id, result }, out);
    }

    /// The peer has a write in memory.
    ///
    /// Errors: it was not sent.
    pub(super) fn on_received(&mut self, seq: Seq, out: &mut Actions) -> Result<(), String> {
        match self.up().and_then(|up| up.owed.get(&seq)).copied() {
            Some((Owed::Write(key), _)) => {
                self.on_peer_received(key, out);
                Ok(())
            }
            _ => Err(format!(
                "it has received write {seq}, which it was not sent"
            )),
        }
    }

    /// The peer has applied a write.
    ///
    /// Errors: it was not sent, or is answered already.
    pub(super) fn on_done(
        &mut self,
        seq: Seq,
        result: Result<(), DiskFault>,
        out: &mut Actions,
    ) -> Result<(), String> {
        let Some((owed, sent)) = self.up_mut().and_then(|up| up.owed.remove(&seq)) else {
            return Err(format!("it answers write {seq}, which it does not owe"));
        };
        if let (Err(fault), Owed::Write(key)) = (result, owed)
            && self.on_write_refused(key, fault, out)
        {
            return Ok(());
        }
        if let Err(fault) = result {
            // A failed write ends the session, whoever closes it.
            if let Some(up) = self.up_mut() {
                up.owed.insert(seq, (owed, super::Time(0)));
            }
            self.close_session(&format!("the peer's disk failed: {fault}"), out);
            return Ok(());
        }
        match owed {
            Owed::Write(key) => self.on_peer_wrote(key, out),
            Owed::Chunk(chunk) => {
                self.pace.arrived(self.now.since(sent));
                self.on_chunk_done(chunk, out);
            }
        }
        Ok(())
    }

    /// A Primary that can't read a block itself asks for it.
    ///
    /// Errors: an impossible range.
    pub(super) fn on_read_for_peer(
        &mut self,
        id: u64,
        offset: u64,
        len: u32,
        out: &mut Actions,
    ) -> Result<(), String> {
        let run = self.run_from_peer(offset, u64::from(len))?;
        if u64::from(len) > PEER_READ {
            return Err(format!("it asks for {len} bytes at once"));
        }
        let Some(session) = self.session() else {
            return Ok(());
        };
        if self.is_good() && self.local.up_to_date {
            if let Some(up) = self.up_mut() {
                up.asked.read()?;
            }
            let op = DiskOp::Read {
                offset: run.byte_offset(),
                len,
            };
            self.submit(DiskWork::PeerRead { session, id }, op, out);
        } else {
            self.send(
                Message::ReadReply {
                    id,
                    result: Err(DiskFault::Io(5)),
                },
                out,
            );
        }
        Ok(())
    }

    pub(super) fn on_peer_read(
        &mut self,
        session: SessionId,
        id: u64,
        result: DiskResult,
        out: &mut Actions,
    ) {
        if !self.is_session(session) {
            return;
        }
        if let Some(up) = self.up_mut() {
            up.asked.end_read();
        }
        self.send(Message::ReadReply { id, result }, out);
    }

    /// The peer asks which of these blocks are not as it has them.
    ///
    /// Errors: an impossible range.
    pub(super) fn on_compare(
        &mut self,
        id: u64,
        offset: u64,
        hashes: Vec<BlockHash>,
        out: &mut Actions,
    ) -> Result<(), String> {
        let len = hashes.len() as u64 * kagami_bitmap::BLOCK;
        let run = self.run_from_peer(offset, len)?;
        let Some(session) = self.session() else {
            return Ok(());
        };
        if self.local.store == Store::Usable {
            if let Some(up) = self.up_mut() {
                up.asked.compare(hashes.len())?;
            }
            let op = DiskOp::Read {
                offset: run.byte_offset(),
                len: len as u32,
            };
            self.submit(
                DiskWork::PeerCompare {
                    session,
                    id,
                    hashes,
                },
                op,
                out,
            );
        } else {
            self.send(
                Message::Compared {
                    id,
                    result: Err(DiskFault::Io(5)),
                },
                out,
            );
        }
        Ok(())
    }

    pub(super) fn on_peer_compare(
        &mut self,
        session: SessionId,
        id: u64,
        hashes: &[BlockHash],
        result: DiskResult,
        out: &mut Actions,
    ) {
        if !self.is_session(session) {
            return;
        }
        if let Some(up) = self.up_mut() {
            up.asked.end_compare(hashes.len());
        }
        // *Cleared-only-when-equal*: of a copy that may have lost writes to a failing disk, a cache may read as the
        // peer's does, and the disk hold something else. It is written anew.
        let doubted = self.local.doubted && !planted(Defect::DoubtedCopyCompared);
        let result: Result<Vec<u32>, _> = result.map(|data| {
            let mine = hash_blocks(&data);
            (0..hashes.len() as u32)
                .filter(|i| doubted || mine.get(*i as usize) != hashes.get(*i as usize))
                .filter(|_| !planted(Defect::ComparedAsEqual))
                .collect()
        });
        if let Ok(different) = &result
            && let Some(Phase::Target(target)) = self.up_mut().map(|up| &mut up.phase)
        {
            target.reached_blocks += (hashes.len() - different.len()) as u64;
        }
        self.send(Message::Compared { id, result }, out);
    }

    /// The Primary's disk or role changed.
    ///
    /// Errors: two Primaries in one session.
    pub(super) fn on_peer_state(
        &mut self,
        role: super::Role,
        disk: super::DiskState,
        out: &mut Actions,
    ) -> Result<(), String> {
        let primary = self.is_primary();
        let Some(up) = self.up_mut() else {
            return Ok(());
        };
        if role == super::Role::Primary && primary {
            return Err(
                "One-writer: it is Primary in a session of which this node is Primary".into(),
            );
        }
        // A grant holds until the peer, once Primary, is Secondary again.
        if up.peer.role == super::Role::Primary && role == super::Role::Secondary {
            up.granted = false;
            if let Phase::Source(source) = &mut up.phase {
                source.serves = false;
                source.asked = false;
                source.guest_stays = false;
            }
        }
        up.peer.role = role;
        up.peer.disk = disk;
        let lost_disk = matches!(disk, super::DiskState::Failed | super::DiskState::Diskless);
        if lost_disk && matches!(up.phase, Phase::InSync) {
            up.phase = Phase::Serve(Serve::default());
            self.local.up_to_date = true;
            self.seek_to_carry(out);
        }
        Ok(())
    }

    /// A write that is neither locked nor heated: the sender's marks cover it.
    fn apply_at_once(
        &mut self,
        origin: Origin,
        span: Run,
        work: Work,
        fua: bool,
    ) -> super::write::WriteKey {
        let key = self.insert_write(origin, span, work, fua);
        // *Read-your-writes*: should this node be Primary before it has landed, what is written
        // then waits for it. (The sender sends no two that overlap; a liar harms its own copy.)
        let locked = self.spans.try_lock(span);
        if !locked {
            self.unlocked.push(key);
        }
        let write = &mut self.writes[key.0];
        write.locked = locked;
        write.stage = Stage::Started;
        write.local = Copy::Owed;
        key
    }
}

/// Cuts the data into blocks and hashes each.
pub(super) fn hash_blocks(data: &[u8]) -> Vec<BlockHash> {
    data.chunks(kagami_bitmap::BLOCK as usize)
        .map(|block| {
            let mut short = [0; 16];
            short.copy_from_slice(&blake3::hash(block).as_bytes()[..16]);
            if planted(Defect::FirstHalfCompared) {
                short.copy_from_slice(&blake3::hash(&block[..block.len() / 2]).as_bytes()[..16]);
            }
            short
        })
        .collect()
}
