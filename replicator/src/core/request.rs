//! Admission: what a front end asks for is checked, cut to pieces that fit, and begun when this
//! copy may answer it; until then it is held.

use bytes::Bytes;
use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::{EXTENT, Run};

use super::event::{IoError, Request};
use super::settings::Settings;
use super::state::{RequestId, Solo, Time};
use super::timers::Timer;
use super::write::{Origin, Work};
use super::{Actions, Mirror, Role, Store};

/// Longest run of a write-zeroes or discard that is carried out as one piece.
const PIECE: u64 = 16 * EXTENT;

/// What is written where a write-zeroes covers blocks in part: at most two, neither of them whole.
static ZEROES: [u8; 2 * 4096] = [0; 2 * 4096];

/// Key of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JobKey(pub usize);

/// A request of a front end, until it is answered.
#[derive(Debug)]
pub(super) struct Job {
    pub id: RequestId,
    pub arrived: Time,
    pub is_write: bool,
    /// Pieces that have not ended.
    pub pieces: u32,
    /// The first failure of a piece.
    pub failed: Option<IoError>,
    /// There is memory for what the peer is asked for.
    pub has_room: bool,
}

/// A request that is not begun.
#[derive(Debug)]
pub(super) struct Held {
    pub job: JobKey,
    pub request: Request,
    /// It is not begun before nothing is under way there: it would be held again at once.
    pub behind: Option<Run>,
}

/// Whether requests are begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Gate {
    #[default]
    Open,
    /// Writes wait for a moment: a resynchronisation ends (docs/protocol.md §5 step 4).
    Frozen,
    /// This node stops being Primary: requests are refused.
    Closing,
}

impl Mirror {
    pub(super) fn on_request(&mut self, id: RequestId, request: Request, out: &mut Actions) {
        if self.role != Role::Primary || self.gate == Gate::Closing {
            return Self::complete(id, Err(IoError::NotPrimary), out);
        }
        let is_write = match self.admit_request(&request) {
            Ok(is_write) => is_write,
            Err(error) => return Self::complete(id, Err(error), out),
        };
        if self.has_lost_all() {
            return Self::complete(id, Err(IoError::Io), out);
        }
        let job = Job {
            id,
            arrived: self.now,
            is_write,
            pieces: 1,
            failed: None,
            has_room: false,
        };
        let job = JobKey(self.jobs.insert(job));
        if self.held.is_empty() && self.may_begin(&request) {
            self.begin(job, request, out);
        } else {
            let behind = None;
            self.held.push_back(Held {
                job,
                request,
                behind,
            });
        }
    }

    /// Checks bounds and counts. True for what changes data.
    fn admit_request(&mut self, request: &Request) -> Result<bool, IoError> {
        let (offset, len, is_write) = match request {
            Request::Flush => {
                self.counters.flushes += 1;
                return Ok(false);
            }
            Request::Read { offset, len } => (*offset, u64::from(*len), false),
            Request::Write { offset, data, .. } => (*offset, data.len() as u64, true),
            Request::WriteZeroes { offset, len, .. } | Request::Discard { offset, len, .. } => {
                (*offset, *len, true)
            }
        };
        let end = offset.checked_add(len).ok_or(IoError::OutOfRange)?;
        if end > self.geometry.size() {
            return Err(IoError::OutOfRange);
        }
        if len == 0 || (offset | len) % 512 != 0 {
            return Err(IoError::Unaligned);
        }
        if is_write {
            self.counters.writes += 1;
            self.counters.write_bytes += len;
        } else {
            self.counters.reads += 1;
            self.counters.read_bytes += len;
        }
        Ok(is_write)
    }

    fn may_begin(&self, request: &Request) -> bool {
        match request {
            Request::Read { .. } => self.may_read(),
            Request::Flush => self.may_write(),
            // While closing, what was accepted before is still carried out.
            _ => {
                (self.gate != Gate::Frozen || planted(Defect::NoFreezeAtTheEnd)) && self.may_write()
            }
        }
    }

    /// True if a write begun now can be answered: by both copies, by this one alone, or by the
    /// peer that carries (docs/protocol.md §2).
    pub(super) fn may_write(&self) -> bool {
        if self.role != Role::Primary {
            return false;
        }
        match self.local.store {
            Store::Usable => self.alone.is_some() || self.must_both_hold() || self.is_served(),
            Store::Failed | Store::Diskless => self.is_carried(),
        }
    }

    /// True if a read may be answered now (docs/protocol.md §8).
    pub(super) fn may_read(&self) -> bool {
        if self.role != Role::Primary {
            return false;
        }
        match self.local.store {
            Store::Usable if self.is_guest() => self.is_served() && self.has_lease(),
            Store::Usable => {
                self.is_good()
                    && (self.alone.is_some()
                        || self.has_lease()
                        || planted(Defect::ReadWithoutLease)
                        || (self.solo_rule() == Solo::Always && self.link.is_none()))
            }
            Store::Failed | Store::Diskless => self.is_carried() && self.has_lease(),
        }
    }

    fn begin(&mut self, job: JobKey, request: Request, out: &mut Actions) {
        match request {
            Request::Read { offset, len } => self.begin_read(job, offset, len, out),
            Request::Flush => self.flush.requests.push(job),
            Request::Write { offset, data, fua } => self.begin_write(job, offset, data, fua, out),
            Request::WriteZeroes {
                offset,
                len,
                unmap,
                fua,
            } => self.begin_zeroes(job, offset, len, unmap, fua, out),
            Request::Discard { offset, len, fua } => self.begin_discard(job, offset, len, fua, out),
        }
    }

    /// Whole blocks are written as they are. Those at either end that are covered in part are written by
    /// themselves: what is read and put together for a write is then these blocks and no more.
    fn begin_write(&mut self, job: JobKey, offset: u64, data: Bytes, fua: bool, out: &mut Actions) {
        let end = offset + data.len() as u64;
        let (first, last) = (offset.next_multiple_of(4096), end / 4096 * 4096);
        if first >= last || (offset == first && end == last) {
            return self.begin_piece(job, offset, data, fua, out);
        }
        let cuts = [(offset, first), (first, last), (last, end)];
        let pieces = || cuts.iter().filter(|(from, upto)| from < upto);
        self.jobs[job.0].pieces = pieces().count() as u32;
        for (from, upto) in pieces() {
            let piece = data.slice((from - offset) as usize..(upto - offset) as usize);
            self.begin_piece(job, *from, piece, fua, out);
        }
    }

    /// Writes whole blocks, or parts of at most two.
    fn begin_piece(&mut self, job: JobKey, offset: u64, data: Bytes, fua: bool, out: &mut Actions) {
        let len = data.len() as u64;
        let span = self.span_of(offset, len);
        let work = if offset.is_multiple_of(4096) && len.is_multiple_of(4096) {
            Work::Whole(data)
        } else {
            Work::Partial {
                at: (offset - span.byte_offset()) as usize,
                data,
            }
        };
        self.add_write(Origin::Front(job), span, work, fua, out);
    }

    /// Whole blocks become zero runs of bounded length; what is left at either end is written.
    fn begin_zeroes(
        &mut self,
        job: JobKey,
        offset: u64,
        len: u64,
        unmap: bool,
        fua: bool,
        out: &mut Actions,
    ) {
        let end = offset + len;
        let (first, last) = (offset.next_multiple_of(4096), end / 4096 * 4096);
        let mut pieces: Vec<(u64, u64, bool)> = Vec::new();
        if first >= last {
            pieces.push((offset, len, false));
        } else {
            if offset < first {
                pieces.push((offset, first - offset, false));
            }
            let mut at = first;
            while at < last {
                let upto = last.min((at / PIECE + 1) * PIECE);
                pieces.push((at, upto - at, true));
                at = upto;
            }
            if last < end {
                pieces.push((last, end - last, false));
            }
        }
        self.jobs[job.0].pieces = pieces.len() as u32;
        for (at, len, whole) in pieces {
            if whole {
                let span = self.span_of(at, len);
                self.add_write(Origin::Front(job), span, Work::Zero { unmap }, fua, out);
            } else {
                // Parts of at most two blocks: a range without a whole one, or an end of a longer one.
                let zeroes = Bytes::from_static(&ZEROES[..len as usize]);
                self.begin_piece(job, at, zeroes, fua, out);
            }
        }
    }

    /// Whole blocks of the range become zeroes where both stores unmap to zeroes; else nothing
    /// happens on either (docs/design.md §5.7).
    fn begin_discard(&mut self, job: JobKey, offset: u64, len: u64, fua: bool, out: &mut Actions) {
        let (first, last) = (offset.next_multiple_of(4096), (offset + len) / 4096 * 4096);
        if first >= last || !self.discards() {
            return self.end_piece(job, None, out);
        }
        self.begin_zeroes(job, first, last - first, true, fua, out);
    }

    /// True if a discard has an effect.
    pub fn discards(&self) -> bool {
        self.unmap_zeroes && self.up().is_none_or(|up| up.peer.unmap_zeroes)
    }

    fn span_of(&self, offset: u64, len: u64) -> Run {
        let span = Run::touching_bytes(offset, len);
        assert!(span.is_some(), "{offset}+{len} was checked");
        span.unwrap_or(self.geometry.all())
    }

    /// A piece of a job has ended; the last one answers the request.
    pub(super) fn end_piece(&mut self, key: JobKey, failed: Option<IoError>, out: &mut Actions) {
        let job = &mut self.jobs[key.0];
        assert!(job.pieces > 0, "a job ends once");
        job.pieces -= 1;
        job.failed = job.failed.or(failed);
        if job.pieces == 0 {
            let job = self.jobs.remove(key.0);
            if job.is_write && job.failed.is_none() {
                let latency = self.now.since(job.arrived);
                self.counters.write_ns += latency;
                if self.is_source() {
                    self.pace.wrote(latency);
                }
            }
            Self::complete(job.id, job.failed.map_or(Ok(Bytes::new()), Err), out);
        }
    }

    /// Answers a read.
    pub(super) fn end_read(
        &mut self,
        key: JobKey,
        result: Result<Bytes, IoError>,
        out: &mut Actions,
    ) {
        let job = self.jobs.remove(key.0);
        Self::complete(job.id, result, out);
    }

    /// Begins what was held and may go on now.
    pub(super) fn advance_requests(&mut self, out: &mut Actions) {
        if !self.parked.is_empty() && self.may_write() {
            for key in std::mem::take(&mut self.parked) {
                self.start_write(key, out);
            }
        }
        if self.held.is_empty() || !(self.may_read() || self.may_write()) {
            return;
        }
        for held in std::mem::take(&mut self.held) {
            let is_free = held.behind.is_none_or(|run| self.spans.is_free(run));
            if is_free && self.may_begin(&held.request) {
                self.begin(held.job, held.request, out);
            } else {
                self.held.push_back(held);
            }
        }
    }

    /// Fails everything that a front end waits for: this node is not Primary any more.
    pub(super) fn fail_requests(&mut self, error: IoError, out: &mut Actions) {
        for held in std::mem::take(&mut self.held) {
            let job = self.jobs.remove(held.job.0);
            Self::complete(job.id, Err(error), out);
        }
        for job in self.flush.take_jobs() {
            self.end_piece(job, Some(error), out);
        }
        self.fail_writes(error, out);
        // Reads under way on the local disk find out when they end.
    }

    /// True if a front end waits for permission or for the peer.
    pub(super) fn is_holding(&self) -> bool {
        self.role == Role::Primary
            && !self.may_write()
            && self.gate != Gate::Frozen
            && !self.jobs.is_empty()
    }

    /// Why requests are held, for people.
    pub(super) fn held_because(&self) -> Option<String> {
        self.is_holding().then(|| self.why_held())
    }

    /// New settings from the operator.
    pub(super) fn set(&mut self, settings: Settings, out: &mut Actions) {
        self.settings = settings;
        // It may be for another arbiter: an instance that the one before may hold is not created
        // there a second time (*One-writer*).
        self.solo.fresh = None;
        self.solo.drawn = None;
        // What is owed may be overdue sooner now.
        let overdue = self.now.after_ms(self.settings.ack_timeout_ms);
        self.timers.set_by(Timer::AckOverdue, overdue);
        self.seek_permission(out);
        // It may be a new arbiter, whose register is to be made while both copies are there; or the first one: who is
        // alone looks whether it is named. Who has nothing to ask asks nothing.
        self.timers.set_by(Timer::AskAgain, self.now);
    }
}
