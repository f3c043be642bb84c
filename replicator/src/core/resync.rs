//! Bringing one copy up to date from the other (docs/protocol.md §5, docs/design.md §8).
//!
//! The source walks its marks in passes. A chunk's span is locked while it is read, sent and
//! applied, so a write to it is ordered with it; writes elsewhere go to both copies meanwhile.
//! *Cleared-only-when-equal*: a chunk's marks go when both copies have flushed after it was
//! applied. What follows with no marks left is in `settle`.

use std::collections::BTreeMap;

use bytes::Bytes;
use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::superblock::Generation;
use kagami_bitmap::{BLOCK, BLOCKS_PER_EXTENT, Block, Run};

use super::compare::Compared;
use super::handshake::RUNS;
use super::link::{Owed, Phase};
use super::message::{Doing, Message};
use super::pace::{Admission, Flow};
use super::secondary::hash_blocks;
use super::served::Late;
use super::state::{SessionId, Solo, Time};
use super::status::Progress;
use super::timers::Timer;
use super::{Action, Actions, DiskOp, DiskResult, DiskWork, Mirror, Notice};

/// Blocks of a chunk.
pub(super) const CHUNK: u64 = 256;
/// Flush when this many blocks were applied and not flushed.
const FLUSH_BLOCKS: u64 = 16 * 1024;
/// Pages are written this often, so that a resync that is broken goes on where it stopped.
const PAGES_MS: u64 = 3_000;
/// A pass that could not read some blocks is done again after this.
pub(super) const RETRY_MS: u64 = 1_000;

/// What blocks of the source were read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Send,
    Compare,
}

/// How far the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Copying,
    /// No marks left: is the arbiter there, to take this copy back into {A, B}?
    Probing,
    /// New writes wait until the ones under way are on both disks.
    Freezing,
    /// `alone` is being switched off, durably.
    Leaving,
    Offered,
    Settling,
}

/// What a source that does nothing for a while waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Blocks that could not be read are tried again. A write of them says it sooner.
    Reads,
    /// The arbiter did not answer. Its answer to any other question says it sooner.
    Arbiter,
}

/// A run on its way to the target; locked.
#[derive(Debug)]
struct Chunk {
    run: Run,
    /// Messages that the target owes an answer to.
    pieces: u32,
    /// Kept until the target says which blocks differ, and since when it owes that.
    data: Option<(Bytes, Time)>,
}

/// The source's side.
#[derive(Debug)]
pub(super) struct Source {
    pub stage: Stage,
    pub cursor: Block,
    chunks: BTreeMap<u64, Chunk>,
    next_chunk: u64,
    in_flight: u64,
    /// Applied at the target, not yet covered by a flush of both.
    acked: Vec<Run>,
    acked_blocks: u64,
    /// The pass met blocks that could not be read.
    failed_reads: bool,
    /// An earlier one did: what is left is read block by block, so that one bad block keeps back no other.
    singly: bool,
    pub compared: Compared,
    /// Nothing is sent and nothing asked until then.
    pub wait_until: Option<(Time, Wait)>,
    /// The target asked to be Primary, and is not answered yet.
    pub asked: bool,
    /// The target came as a guest, and is to be served again.
    pub guest_stays: bool,
    /// This copy answers for the target.
    pub serves: bool,
    /// It did, in this session.
    pub served: bool,
    /// What the guest wrote at the end of the resynchronisation.
    pub late: Vec<Late>,
    pub marked_at_start: u64,
    /// Blocks whose marks are gone.
    done_blocks: u64,
    /// Blocks found equal, or applied at the target, whether or not both have flushed since.
    reached_blocks: u64,
    pub sent_bytes: u64,
    pub since: Time,
}

/// The target's side.
#[derive(Debug)]
pub(super) struct Target {
    marked_at_start: u64,
    /// Blocks found equal, or received.
    pub reached_blocks: u64,
    since: Time,
    /// The source answers for this node, which is Primary.
    pub served: bool,
    /// The source's generation and its history, to be adopted.
    pub offer: Option<(Generation, Vec<Generation>)>,
    pub adopted: bool,
}

impl Source {
    pub fn new(marked: u64, now: Time) -> Self {
        Self {
            stage: Stage::Copying,
            cursor: Block(0),
            chunks: BTreeMap::new(),
            next_chunk: 1,
            in_flight: 0,
            acked: Vec::new(),
            acked_blocks: 0,
            failed_reads: false,
            singly: false,
            compared: Compared::default(),
            wait_until: None,
            asked: false,
            guest_stays: false,
            serves: false,
            served: false,
            late: Vec::new(),
            marked_at_start: marked,
            done_blocks: 0,
            reached_blocks: 0,
            sent_bytes: 0,
            since: now,
        }
    }

    /// Since when the target owes the answer to its oldest comparison.
    pub fn compares_since(&self) -> Option<Time> {
        let asked = |chunk: &Chunk| chunk.data.as_ref().map(|(_, at)| *at);
        self.chunks.values().filter_map(asked).min()
    }
}

impl Target {
    pub fn new(marked: u64, now: Time) -> Self {
        Self {
            marked_at_start: marked,
            reached_blocks: 0,
            since: now,
            served: false,
            offer: None,
            adopted: false,
        }
    }
}

impl Mirror {
    pub(super) fn source(&mut self) -> Option<&mut Source> {
        match self.up_mut().map(|up| &mut up.phase) {
            Some(Phase::Source(source)) => Some(source),
            _ => None,
        }
    }

    pub(super) fn source_stage(&self) -> Option<Stage> {
        match self.up().map(|up| &up.phase) {
            Some(Phase::Source(source)) => Some(source.stage),
            _ => None,
        }
    }

    /// True while a Primary may still be made of the source, or the target be brought up to date.
    pub(super) fn is_copying(&self) -> bool {
        self.source_stage() == Some(Stage::Copying)
    }

    /// The session came up for a resynchronisation.
    pub(super) fn begin_resync(&mut self, out: &mut Actions) {
        self.timers
            .set(Timer::WritePages, self.now.after_ms(PAGES_MS));
        let flow = self.flow();
        self.pace.begin(self.now, flow, &self.settings);
        self.timers.set(Timer::Resync, self.pace.next_tick());
        if self.is_source() && self.is_primary() && self.alone.is_none() {
            self.go_on_by_consent(out);
        }
    }

    /// How far the resynchronisation of this session is.
    fn flow(&self) -> Flow {
        match self.up().map(|up| &up.phase) {
            Some(Phase::Source(source)) => Flow {
                sent: source.sent_bytes,
                done: source.reached_blocks * BLOCK,
                in_flight: source.in_flight,
            },
            Some(Phase::Target(target)) => Flow {
                sent: self.counters.applied_blocks * BLOCK,
                done: target.reached_blocks * BLOCK,
                in_flight: 0,
            },
            _ => Flow::default(),
        }
    }

    pub(super) fn on_resync_timer(&mut self, _out: &mut Actions) {
        let phase = self.up().map(|up| &up.phase);
        if !matches!(phase, Some(Phase::Source(_) | Phase::Target(_))) {
            return;
        }
        if self.pace.next_tick() <= self.now {
            let flow = self.flow();
            self.pace.tick(self.now, flow, &self.settings);
        }
        self.timers.set(Timer::Resync, self.pace.next_tick());
        self.timers
            .set_once(Timer::WritePages, self.now.after_ms(PAGES_MS));
    }

    /// Takes the resynchronisation as far as it can go.
    pub(super) fn advance_resync(&mut self, out: &mut Actions) {
        match self.source_stage() {
            Some(Stage::Copying) => {
                self.end_wait();
                self.send_chunks(out);
                self.end_pass(out);
                if self.source_stage() == Some(Stage::Freezing) {
                    self.leave_when_quiet();
                }
            }
            Some(Stage::Freezing) => self.leave_when_quiet(),
            Some(Stage::Probing | Stage::Leaving | Stage::Offered | Stage::Settling) => {}
            None => self.advance_adoption(),
        }
    }

    /// A wait is over when its time is, or when nothing is left to wait for.
    fn end_wait(&mut self) {
        let (now, nothing_left) = (self.now, self.bitmap.count() == 0);
        if let Some(source) = self.source()
            && let Some((at, what)) = source.wait_until
            && (at <= now || what == Wait::Reads && nothing_left)
        {
            source.wait_until = None;
        }
    }

    fn send_chunks(&mut self, out: &mut Actions) {
        let Some(up) = self.up() else { return };
        if up.paused_here || up.paused_there {
            return;
        }
        let Some(session) = self.session() else {
            return;
        };
        loop {
            let Some(source) = self.source() else { return };
            if source.wait_until.is_some() {
                return;
            }
            let (cursor, in_flight) = (source.cursor, source.in_flight);
            let most = if source.singly {
                1
            } else {
                CHUNK.min(self.pace.longest_chunk() / BLOCK)
            };
            let Some(run) = self.next_chunk(cursor, most) else {
                // The pass has come to its end.
                let end = Block(self.geometry.blocks());
                if let Some(source) = self.source() {
                    source.cursor = end;
                }
                return;
            };
            match self.pace.admits(self.now, run.byte_len(), in_flight) {
                Admission::Now => {}
                Admission::WhenLess => return,
                Admission::At(time) => {
                    self.timers.set_by(Timer::Resync, time);
                    return;
                }
            }
            if !self.spans.try_lock(run) {
                // An application's write is under way there; it goes to both, or the next pass does.
                if let Some(source) = self.source() {
                    source.cursor = run.end();
                }
                continue;
            }
            let purpose = if self.is_worth_comparing(run) {
                Purpose::Compare
            } else {
                Purpose::Send
            };
            if let Some(source) = self.source() {
                source.cursor = run.end();
                source.in_flight += run.byte_len();
            }
            let op = DiskOp::Read {
                offset: run.byte_offset(),
                len: run.byte_len() as u32,
            };
            self.submit(
                DiskWork::Resync {
                    session,
                    run,
                    purpose,
                },
                op,
                out,
            );
        }
    }

    /// The next marked run from the cursor on, within an extent, of so many blocks at most.
    fn next_chunk(&self, cursor: Block, most: u64) -> Option<Run> {
        let run = self.bitmap.next_run(cursor, most)?;
        let extent_end = (run.first.0 / BLOCKS_PER_EXTENT + 1) * BLOCKS_PER_EXTENT;
        Some(Run::new(run.first, run.count.min(extent_end - run.first.0)))
    }

    pub(super) fn on_resync_read(
        &mut self,
        session: SessionId,
        run: Run,
        purpose: Purpose,
        result: DiskResult,
        out: &mut Actions,
    ) {
        if !self.is_session(session) {
            self.spans.unlock(run);
            return self.wake_blocked(out);
        }
        let data = match result {
            Ok(data) => data,
            Err(fault) => {
                out.push(Action::Report(Notice::DiskFailed {
                    fault,
                    doing: "reading for a resynchronisation",
                }));
                if let Some(source) = self.source() {
                    source.failed_reads = true;
                    if planted(Defect::ReadErrorSkipped) {
                        source.acked.push(run);
                    }
                    source.in_flight -= run.byte_len();
                }
                self.spans.unlock(run);
                return self.wake_blocked(out);
            }
        };
        let now = self.now;
        let Some(source) = self.source() else { return };
        let id = source.next_chunk;
        source.next_chunk += 1;
        match purpose {
            Purpose::Send => {
                source.chunks.insert(
                    id,
                    Chunk {
                        run,
                        pieces: 0,
                        data: None,
                    },
                );
                self.send_piece(id, run, data, out);
            }
            Purpose::Compare => {
                let hashes = hash_blocks(&data);
                source.chunks.insert(
                    id,
                    Chunk {
                        run,
                        pieces: 1,
                        data: Some((data, now)),
                    },
                );
                self.send(
                    Message::Compare {
                        id,
                        offset: run.byte_offset(),
                        hashes,
                    },
                    out,
                );
                self.watch_acks();
            }
        }
    }

    fn send_piece(&mut self, chunk: u64, run: Run, data: Bytes, out: &mut Actions) {
        let now = self.now;
        let Some(up) = self.up_mut() else { return };
        let seq = up.next_seq();
        up.owed.insert(seq, (Owed::Chunk(chunk), now));
        if let Some(source) = self.source() {
            source.sent_bytes += run.byte_len();
            if let Some(chunk) = source.chunks.get_mut(&chunk) {
                chunk.pieces += 1;
            }
        }
        self.counters.resync_bytes += run.byte_len();
        self.send(
            Message::ResyncBlocks {
                seq,
                offset: run.byte_offset(),
                data,
            },
            out,
        );
        self.watch_acks();
    }

    /// The peer says which blocks of a chunk, or of a verification, differ.
    ///
    /// Errors: an answer to nothing, or with impossible indices.
    pub(super) fn on_compared(
        &mut self,
        id: u64,
        result: Result<Vec<u32>, super::DiskFault>,
        out: &mut Actions,
    ) -> Result<(), String> {
        if self.source_stage().is_none() {
            return self.on_verify_compared(id, result, out);
        }
        let Some((run, data)) = self
            .source()
            .and_then(|source| source.chunks.get_mut(&id))
            .and_then(|chunk| chunk.data.take().map(|(data, _)| (chunk.run, data)))
        else {
            return Err(format!("it answers comparison {id}, which was not asked"));
        };
        // A block that the target can't read is sent.
        let different = result.unwrap_or_else(|_| (0..run.count as u32).collect());
        if different.iter().any(|i| u64::from(*i) >= run.count)
            || different.windows(2).any(|w| w[0] >= w[1])
        {
            return Err(format!(
                "its answer to comparison {id} names blocks that were not asked"
            ));
        }
        let equal = run.count - different.len() as u64;
        self.counters.resync_equal_blocks += equal;
        if let Some(source) = self.source() {
            source.compared.found(run.count, equal);
        }
        let mut at = 0;
        while at < different.len() {
            let first = u64::from(different[at]);
            let mut count = 1;
            while at + (count as usize) < different.len()
                && u64::from(different[at + count as usize]) == first + count
            {
                count += 1;
            }
            at += count as usize;
            let piece = data.slice((first * BLOCK) as usize..((first + count) * BLOCK) as usize);
            self.send_piece(id, Run::new(Block(run.first.0 + first), count), piece, out);
        }
        self.on_chunk_done(id, out);
        Ok(())
    }

    /// The target has applied a piece of a chunk, or compared it.
    pub(super) fn on_chunk_done(&mut self, id: u64, out: &mut Actions) {
        let Some(source) = self.source() else { return };
        let Some(chunk) = source.chunks.get_mut(&id) else {
            return;
        };
        chunk.pieces -= 1;
        if chunk.pieces > 0 {
            return;
        }
        let run = chunk.run;
        source.chunks.remove(&id);
        source.in_flight -= run.byte_len();
        source.acked.push(run);
        if planted(Defect::ClearOnAcknowledgement) {
            self.on_synced(vec![run], out);
        }
        let Some(source) = self.source() else { return };
        source.acked_blocks += run.count;
        source.reached_blocks += run.count;
        let enough = source.acked_blocks >= FLUSH_BLOCKS;
        self.flush.wanted |= enough;
        self.spans.unlock(run);
        self.wake_blocked(out);
    }

    pub(super) fn resync_acked(&self) -> bool {
        matches!(self.up().map(|up| &up.phase), Some(Phase::Source(source)) if !source.acked.is_empty())
    }

    pub(super) fn take_resync_acked(&mut self) -> Vec<Run> {
        self.source().map_or_else(Vec::new, |source| {
            source.acked_blocks = 0;
            std::mem::take(&mut source.acked)
        })
    }

    /// Both copies have flushed these runs: step 3, cleared.
    pub(super) fn on_synced(&mut self, mut runs: Vec<Run>, out: &mut Actions) {
        // A block that was copied and then written is in both lists.
        runs.sort_by_key(|run| run.first);
        runs.dedup_by(|later, run| {
            let joins = later.first <= run.end();
            if joins {
                run.count = run.count.max(later.end().0 - run.first.0);
            }
            joins
        });
        let mut cleared = 0;
        for run in &runs {
            cleared += self.bitmap.clear(*run);
        }
        if let Some(source) = self.source() {
            source.done_blocks += cleared;
        }
        for runs in runs.chunks(RUNS) {
            self.send(
                Message::Cleared {
                    runs: runs.to_vec(),
                },
                out,
            );
        }
    }

    /// Errors: blocks behind the end, or a peer that is not the source.
    pub(super) fn on_cleared(&mut self, runs: &[Run]) -> Result<(), String> {
        let blocks = self.geometry.blocks();
        if runs.iter().any(|run| run.end().0 > blocks) {
            return Err("it clears blocks behind the end".into());
        }
        if !matches!(self.up().map(|up| &up.phase), Some(Phase::Target(_))) {
            return Err("it clears marks of a copy that is not its target".into());
        }
        for run in runs {
            self.bitmap.clear(*run);
        }
        Ok(())
    }

    /// A pass that has nothing more to send: flush, then the next one, or the end.
    fn end_pass(&mut self, out: &mut Actions) {
        let end = Block(self.geometry.blocks());
        let now = self.now;
        let flushing = self.flush.is_running();
        let marks = self.bitmap.count();
        let asks = self.alone.is_some()
            && self.solo_rule() == Solo::Arbiter
            && self.record().arbiter.is_some();
        let Some(source) = self.source() else { return };
        if source.wait_until.is_some() || source.cursor < end || source.in_flight > 0 {
            return;
        }
        if !source.serves && (source.asked || source.guest_stays) {
            return; // first the guest is answered
        }
        if !source.acked.is_empty() {
            self.flush.wanted = true;
            return;
        }
        if flushing {
            return;
        }
        if marks > 0 {
            source.cursor = Block(0);
            if std::mem::take(&mut source.failed_reads) {
                source.singly = true;
                source.wait_until = Some((now.after_ms(RETRY_MS), Wait::Reads));
            }
            return;
        }
        if asks {
            source.stage = Stage::Probing;
            self.probe_arbiter(out);
        } else {
            self.freeze();
        }
    }

    /// The session has gone: spans of chunks whose blocks were read are free again. (The others
    /// are freed when their read ends.)
    pub(super) fn drop_chunks(&mut self, source: &Source) {
        for chunk in source.chunks.values() {
            self.spans.unlock(chunk.run);
        }
    }

    /// An operator pauses or resumes, here.
    pub(super) fn pause(&mut self, pause: bool, out: &mut Actions) {
        if let Some(up) = self.up_mut() {
            up.paused_here = pause;
            let doing = if pause { Doing::Paused } else { Doing::Sync };
            self.send(Message::Progress { doing }, out);
        }
    }

    pub(super) fn on_peer_progress(&mut self, doing: Doing) -> Result<(), String> {
        if let Some(up) = self.up_mut() {
            up.paused_there = doing == Doing::Paused;
            up.verified_there = doing == Doing::Verify;
        }
        Ok(())
    }

    /// How far the resynchronisation or the verification is. Marks go only when both have flushed, which is seldom: what
    /// was reached since counts, too.
    pub(super) fn progress(&self, _now: Time) -> Option<Progress> {
        let up = self.up()?;
        let (paused_here, paused_there) = (up.paused_here, up.paused_there);
        match &up.phase {
            Phase::Source(source) => {
                let total = source.done_blocks + self.bitmap.count();
                let total_blocks = total.max(source.marked_at_start);
                Some(Progress {
                    total_blocks,
                    done_blocks: source
                        .done_blocks
                        .max(source.reached_blocks.min(total_blocks)),
                    sent_bytes: source.sent_bytes,
                    since: source.since,
                    rate: self.pace.done_rate,
                    paused_here,
                    paused_there,
                    different: 0,
                })
            }
            Phase::Target(target) => {
                let total_blocks = target.marked_at_start;
                let cleared = total_blocks.saturating_sub(self.bitmap.count());
                Some(Progress {
                    total_blocks,
                    done_blocks: cleared.max(target.reached_blocks.min(total_blocks)),
                    sent_bytes: 0,
                    since: target.since,
                    rate: self.pace.done_rate,
                    paused_here,
                    paused_there,
                    different: 0,
                })
            }
            _ => self.verify_progress(),
        }
    }
}
