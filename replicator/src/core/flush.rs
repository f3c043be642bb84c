//! Flushes: a front end's, and the core's own that keep few blocks unflushed.
//!
//! One cycle at a time flushes both copies (docs/design.md §5.5). *Durable-both*: it covers
//! every write that had ended on both when it was sent; the peer holds it until everything sent
//! before is applied. *Cleared-only-when-equal*: marks go when **both** copies have flushed.

use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::{Block, Extent, Run};

use super::message::Message;
use super::request::JobKey;
use super::state::{CommandId, SessionId};
use super::timers::Timer;
use super::unflushed::Unflushed;
use super::{Actions, DiskFault, DiskOp, DiskWork, Mirror};

/// The flushes of one mirror.
#[derive(Debug, Default)]
pub(super) struct Flushing {
    /// Front ends that wait for the next cycle.
    pub requests: Vec<JobKey>,
    /// The core itself wants a cycle.
    pub wanted: bool,
    cycle: Option<Cycle>,
    next_id: u64,
    /// Writes ended since the last look whether the mirror is idle.
    pub busy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    None,
    Owed,
    Done,
}

/// A flush under way.
#[derive(Debug)]
struct Cycle {
    id: u64,
    session: Option<SessionId>,
    local: Half,
    peer: Half,
    requests: Vec<JobKey>,
    /// Blocks that a resynchronisation brought over since the cycle before.
    resynced: Vec<Run>,
}

/// What a flush of the local disk is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum FlushOf {
    /// A cycle of this node.
    Cycle(u64),
    /// A flush that the peer asked for.
    Peer { session: SessionId, id: u64 },
    /// The Secondary leaves cleanly.
    Leave(CommandId),
    /// A Primary without a session stops being one, in this term.
    Demote { term: u64 },
    /// The daemon stops.
    Stop,
}

impl Flushing {
    pub fn is_running(&self) -> bool {
        self.cycle.is_some()
    }

    /// Takes the front ends that wait, also those of the running cycle.
    pub fn take_jobs(&mut self) -> Vec<JobKey> {
        let mut jobs = std::mem::take(&mut self.requests);
        if let Some(cycle) = &mut self.cycle {
            jobs.append(&mut cycle.requests);
        }
        jobs
    }
}

impl Mirror {
    /// A block is unflushed from now on.
    pub(super) fn note_unflushed(&mut self) {
        self.flush.busy = true;
        self.timers.set_once(
            Timer::AutoFlush,
            self.now.after_ms(self.settings.flush_after_ms),
        );
        if self.unflushed.extents() * 2 >= self.log.capacity() as usize {
            self.flush.wanted = true;
        }
    }

    /// Begins a cycle if one is wanted and can be answered.
    pub(super) fn advance_flush(&mut self, out: &mut Actions) {
        if self.flush.cycle.is_some() {
            return;
        }
        let mirrors = self.is_mirroring();
        if planted(Defect::FlushWithoutACopy) && !mirrors && !self.has_copy() {
            for job in std::mem::take(&mut self.flush.requests) {
                self.end_piece(job, None, out);
            }
        }
        let resynced = self.resync_acked();
        // (Whether a write has ended is looked for among those in flight.)
        let covers = || resynced || self.is_answerer_unflushed() || self.has_ended_unflushed();
        let own = self.flush.wanted && mirrors && covers();
        let asked = !self.flush.requests.is_empty() && self.may_write();
        if !own && !asked {
            if self.flush.wanted && self.unflushed.is_empty() {
                self.flush.wanted = false;
                self.timers.clear(Timer::AutoFlush);
            }
            return;
        }
        self.begin_cycle(out);
    }

    /// True if a flush would cover a write. While all that is unflushed is still under way it would
    /// cover nothing, and the next one would be wanted at once: as fast as both disks can, for as
    /// long as a disk stands still.
    fn has_ended_unflushed(&self) -> bool {
        let mut under_way = Unflushed::default();
        self.runs_in_flight().for_each(|run| under_way.write(run));
        !self.unflushed.is_within(&under_way)
    }

    fn begin_cycle(&mut self, out: &mut Actions) {
        self.flush.wanted = false;
        self.flush.next_id += 1;
        let id = self.flush.next_id;
        let mut in_flight: Vec<Run> = self.runs_in_flight().collect();
        if planted(Defect::FlushCoversUnderWay) {
            in_flight.clear();
        }
        self.unflushed.begin_flush(in_flight.into_iter());
        let mut cycle = Cycle {
            id,
            session: None,
            local: Half::None,
            peer: Half::None,
            requests: std::mem::take(&mut self.flush.requests),
            resynced: Vec::new(),
        };
        if self.has_copy() {
            cycle.local = Half::Owed;
            self.submit(DiskWork::Flush(FlushOf::Cycle(id)), DiskOp::Flush, out);
        }
        if self.is_mirroring() {
            cycle.resynced = self.take_resync_acked();
            let now = self.now;
            if let Some(up) = self.up_mut() {
                let after = up.last_seq();
                up.flushed_id += 1;
                let number = up.flushed_id;
                up.owed_flushes.insert(number, (id, now));
                cycle.session = self.send(Message::Flush { id: number, after }, out);
                cycle.peer = Half::Owed;
                if planted(Defect::FlushOfOneDisk) {
                    cycle.peer = Half::Done;
                }
                self.watch_acks();
            }
        }
        self.flush.cycle = Some(cycle);
    }

    /// The local disk has flushed, or failed to: then nothing it holds is trusted (facts: a later
    /// flush succeeds and lies).
    pub(super) fn on_flush_local(
        &mut self,
        of: FlushOf,
        result: Result<(), DiskFault>,
        out: &mut Actions,
    ) {
        let result = if planted(Defect::FailedFlushTrusted) {
            Ok(())
        } else {
            result
        };
        if let Err(fault) = result {
            self.on_local_failed(fault, "flushing", out);
        }
        match of {
            FlushOf::Cycle(id) => {
                let Some(cycle) = self.flush.cycle.as_mut().filter(|c| c.id == id) else {
                    return;
                };
                cycle.local = Half::Done;
                if result.is_err() {
                    // What it covered is as unflushed as before, for ever on this copy.
                    return self.cancel_cycle();
                }
                self.advance_cycle(out);
            }
            FlushOf::Peer { session, id } => self.on_flushed_for_peer(session, id, result, out),
            FlushOf::Leave(command) => self.on_flushed_to_leave(command, result, out),
            FlushOf::Demote { term } => self.on_flushed_to_demote(term),
            FlushOf::Stop => self.on_flushed_to_stop(),
        }
    }

    /// The peer has flushed.
    ///
    /// Errors: an answer to nothing.
    pub(super) fn on_flushed(
        &mut self,
        id: u64,
        result: Result<(), DiskFault>,
        out: &mut Actions,
    ) -> Result<(), String> {
        // One of a cycle that came to nothing may be answered after the next one's.
        let owed = self.up_mut().and_then(|up| up.owed_flushes.remove(&id));
        let Some((cycle_id, _)) = owed else {
            return Err(format!("it answers flush {id}, which was not asked"));
        };
        if result.is_err() {
            self.close_session("the peer's disk failed to flush", out);
            return Ok(());
        }
        if let Some(cycle) = self.flush.cycle.as_mut().filter(|c| c.id == cycle_id) {
            cycle.peer = Half::Done;
            self.advance_cycle(out);
        }
        Ok(())
    }

    fn advance_cycle(&mut self, out: &mut Actions) {
        if self
            .flush
            .cycle
            .as_ref()
            .is_none_or(|c| c.local == Half::Owed || c.peer == Half::Owed)
        {
            return;
        }
        let Some(cycle) = self.flush.cycle.take() else {
            return;
        };
        if cycle.session.is_some() {
            let mut covered: Vec<Run> = Vec::new();
            let source = self.is_source();
            self.unflushed.end_flush(|extent, words| {
                if source {
                    push_runs(extent, words, &mut covered);
                }
            });
            covered.extend(cycle.resynced);
            if source {
                self.on_synced(covered, out);
            }
            self.guest_flushed();
        }
        if self.unflushed.is_empty() {
            self.timers.clear(Timer::AutoFlush);
        } else {
            self.timers.set_once(
                Timer::AutoFlush,
                self.now.after_ms(self.settings.flush_after_ms),
            );
        }
        for job in cycle.requests {
            self.end_piece(job, None, out);
        }
    }

    /// The running cycle comes to nothing; who waited for it waits for the next one. (A source's ends with its session,
    /// and with that what it sent.)
    pub(super) fn cancel_cycle(&mut self) {
        if let Some(cycle) = self.flush.cycle.take() {
            self.unflushed.cancel_flush();
            let mut requests = cycle.requests;
            requests.append(&mut self.flush.requests);
            self.flush.requests = requests;
        }
    }
}

/// The runs of set bits of an extent.
fn push_runs(extent: Extent, words: &kagami_bitmap::ExtentWords, runs: &mut Vec<Run>) {
    let first = extent.first_block().0;
    let mut at = 0;
    while at < 1024 {
        let word = words[at / 64] >> (at % 64);
        if word == 0 {
            at = (at / 64 + 1) * 64;
            continue;
        }
        at += word.trailing_zeros() as usize;
        let start = at;
        while at < 1024 && words[at / 64] >> (at % 64) & 1 == 1 {
            let ones = (words[at / 64] >> (at % 64)).trailing_ones() as usize;
            at += ones;
        }
        runs.push(Run::new(Block(first + start as u64), (at - start) as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_set_bits() {
        let mut words = [0; kagami_bitmap::WORDS_PER_EXTENT];
        words[0] = 0b1011;
        words[1] = 1 << 63;
        words[2] = u64::MAX;
        words[15] = 1 << 63;
        let mut runs = Vec::new();
        push_runs(Extent(2), &words, &mut runs);
        let at = |first: u64, count: u64| Run::new(Block(2048 + first), count);
        assert_eq!(runs, [at(0, 2), at(3, 1), at(127, 65), at(1023, 1)]);
    }
}
