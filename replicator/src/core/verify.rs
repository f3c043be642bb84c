//! Comparing both copies while they are in use (docs/design.md §8).
//!
//! Chunks are compared by hash without a lock; a chunk that seems to differ is compared again
//! with its span locked against writes, so that a busy device gives no false alarm. What
//! differs then is marked. It runs from the Primary, or from either node while there is none.

use std::collections::BTreeSet;

use bytes::Bytes;
use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::{BLOCK, Block, Page, Run};

use super::durable::After;
use super::event::{Refusal, Reply};
use super::message::{Doing, Message};
use super::read::PeerRead;
use super::secondary::hash_blocks;
use super::state::{CommandId, DiskState, Role, SessionId, Time};
use super::status::Progress;
use super::{Action, Actions, DiskFault, DiskOp, DiskResult, DiskWork, Mirror, Notice, Store};

/// Blocks compared by one message.
const CHUNK: u64 = 256;
/// Why a session is closed at the end of a verification that marked blocks.
pub const FOUND_BY_VERIFY: &str = "what the verification found is resynchronised";
/// Chunks under way.
const DEPTH: usize = 4;

/// A verification under way.
#[derive(Debug)]
pub(super) struct Verify {
    command: CommandId,
    repair: bool,
    cursor: Block,
    asked: Vec<Asked>,
    /// Being read here, or, where that failed, by the peer.
    reading: usize,
    /// To be compared again, locked.
    suspects: Vec<Run>,
    /// How many have not come to their end before it: its comparisons are numbered from `number << 32`. What is asked for one
    /// number is no other one's.
    number: u64,
    next_id: u64,
    compared: u64,
    different: u64,
    /// The bitmap pages of what differs: they are to be on disk before it is said to be marked.
    marked: BTreeSet<Page>,
    /// Blocks that neither node can read.
    unreadable: u64,
    since: Time,
}

/// What the peer was asked to compare.
#[derive(Debug)]
struct Asked {
    id: u64,
    run: Run,
    /// Its span is.
    locked: bool,
    since: Time,
}

impl Verify {
    /// Since when the peer owes the answer to the oldest comparison.
    pub fn asks_since(&self) -> Option<Time> {
        self.asked.iter().map(|asked| asked.since).min()
    }
}

impl Mirror {
    pub(super) fn begin_verify(&mut self, command: CommandId, repair: bool, out: &mut Actions) {
        let refuse = |what: &str, next: &str| Refusal {
            what: what.into(),
            facts: vec![],
            next: next.into(),
        };
        let refused = if self.verify.is_some() {
            Some(refuse(
                "not verified: a verification runs",
                "watch it with `kagami status --watch`",
            ))
        } else if !self.is_in_sync() {
            Some(refuse(
                "not verified: the copies are not in sync",
                "wait until `kagami status` says in sync",
            ))
        } else if self.peer_may_write() {
            Some(refuse(
                "not verified: the other node is Primary",
                "run `kagami verify` there",
            ))
        } else {
            None
        };
        if let Some(refused) = refused {
            return self.answer(command, Err(refused), out);
        }
        // (One that has come to its end awaits nothing: it leaves its number.)
        self.verify = Some(Verify {
            number: self.verifications,
            command,
            repair,
            cursor: Block(0),
            asked: Vec::new(),
            reading: 0,
            suspects: Vec::new(),
            next_id: self.verifications << 32,
            compared: 0,
            different: 0,
            marked: BTreeSet::new(),
            unreadable: 0,
            since: self.now,
        });
        self.send(
            Message::Progress {
                doing: Doing::Verify,
            },
            out,
        );
    }

    /// The peer is Primary, or about to be. (The locks that a verification relies on hold back
    /// this node's writes, not the peer's.)
    pub(super) fn peer_may_write(&self) -> bool {
        self.up()
            .is_some_and(|up| up.granted || up.peer.role == Role::Primary)
    }

    /// The peer is or becomes Primary: a verification from here could give false alarms.
    pub(super) fn yield_verify(&mut self, out: &mut Actions) {
        if self.verify.is_none() || !self.peer_may_write() {
            return;
        }
        let refusal = Refusal {
            what: "the verification was stopped: the other node is Primary now".into(),
            facts: vec![],
            next: "run `kagami verify` there".into(),
        };
        self.drop_verify(Err(refusal), out);
    }

    /// There is nothing here to compare any more, in no session to come.
    pub(super) fn end_verify_without_disk(&mut self, fault: DiskFault, out: &mut Actions) {
        let refusal = Refusal {
            what: "the verification was stopped: the local disk failed".into(),
            facts: vec![fault.to_string()],
            next: "replace this node's disk".into(),
        };
        self.drop_verify(Err(refusal), out);
    }

    /// Keeps a few chunks under way; suspects first.
    pub(super) fn advance_verify(&mut self, out: &mut Actions) {
        self.yield_verify(out);
        let Some(session) = self.session().filter(|_| self.is_in_sync()) else {
            return;
        };
        let blocks = self.geometry.blocks();
        loop {
            let Some(verify) = &mut self.verify else {
                return;
            };
            if verify.asked.len() + verify.reading >= DEPTH {
                return;
            }
            let free = verify
                .suspects
                .iter()
                .position(|run| self.spans.is_free(*run));
            let (run, locked) = if let Some(at) = free {
                let run = verify.suspects.swap_remove(at);
                assert!(self.spans.try_lock(run), "{run} was free");
                (run, true)
            } else if verify.cursor.0 < blocks {
                let run = Run::new(verify.cursor, CHUNK.min(blocks - verify.cursor.0));
                verify.cursor = run.end();
                (run, false)
            } else {
                break;
            };
            verify.reading += 1;
            let number = verify.number;
            let op = DiskOp::Read {
                offset: run.byte_offset(),
                len: run.byte_len() as u32,
            };
            self.submit(
                DiskWork::Verify {
                    session,
                    run,
                    locked,
                    number,
                },
                op,
                out,
            );
        }
        let has_compared = self
            .verify
            .as_ref()
            .is_some_and(|v| v.asked.is_empty() && v.reading == 0 && v.suspects.is_empty());
        if has_compared && self.is_found_durable() {
            self.end_verify(out);
        }
    }

    /// True if what differs is found marked after a crash, too.
    fn is_found_durable(&mut self) -> bool {
        let Some(verify) = &mut self.verify else {
            return true;
        };
        while let Some(page) = verify.marked.first()
            && !self.bitmap.page_lacks_marks(*page)
        {
            verify.marked.pop_first();
        }
        // (The record tells that a verification found it.)
        verify.different == 0 || verify.marked.is_empty() && !self.durable.is_changing()
    }

    pub(super) fn on_verify_read(
        &mut self,
        session: SessionId,
        run: Run,
        locked: bool,
        number: u64,
        result: DiskResult,
        out: &mut Actions,
    ) {
        let is_mine = self.verify.as_ref().is_some_and(|v| v.number == number);
        if !self.is_session(session) || !is_mine {
            if locked {
                self.spans.unlock(run);
                self.wake_blocked(out);
            }
            return;
        }
        let Some(verify) = &mut self.verify else {
            return;
        };
        verify.reading -= 1;
        match result {
            Ok(data) => {
                let id = verify.next_id;
                verify.next_id += 1;
                verify.asked.push(Asked {
                    id,
                    run,
                    locked,
                    since: self.now,
                });
                self.ask_to_compare(id, run, &data, out);
                self.watch_acks();
            }
            Err(fault) => {
                out.push(Action::Report(Notice::DiskFailed {
                    fault,
                    doing: "reading for a verification",
                }));
                self.on_verify_unread(run, locked, out);
            }
        }
    }

    /// A chunk can't be read here: its blocks are looked at one by one, and one that is bad is written back from the peer.
    /// (Marked, it would make the peer's copy a target of what can't be read.)
    fn on_verify_unread(&mut self, run: Run, locked: bool, out: &mut Actions) {
        let readable_there = self
            .up()
            .is_some_and(|up| up.peer.disk == DiskState::UpToDate);
        let Some(verify) = &mut self.verify else {
            return;
        };
        if !locked {
            verify.compared += run.count;
            let blocks = run.first.0..run.end().0;
            verify
                .suspects
                .extend(blocks.map(|at| Run::new(Block(at), 1)));
        } else if readable_there {
            verify.reading += 1;
            let number = verify.number;
            let read = PeerRead::Verified { run, number };
            self.ask_peer(read, run.byte_offset(), run.byte_len() as u32, out);
        } else {
            verify.unreadable += run.count;
            self.spans.unlock(run);
            self.wake_blocked(out);
        }
    }

    /// The peer's answer for a locked block that can't be read here.
    pub(super) fn on_verified_by_peer(
        &mut self,
        run: Run,
        number: u64,
        result: DiskResult,
        out: &mut Actions,
    ) {
        let mine = self
            .verify
            .as_mut()
            .filter(|verify| verify.number == number);
        // *Read-your-writes*: one that is over may have ended with a grant, and the peer have written there since.
        let writes_back = mine.is_some() || planted(Defect::RepairOutlivesTheVerification);
        if let Some(verify) = mine {
            verify.reading -= 1;
            verify.unreadable += if result.is_err() { run.count } else { 0 };
        }
        match result {
            Ok(data) if writes_back && self.local.store == Store::Usable => {
                self.repair(run, data, out);
            }
            _ => {
                self.spans.unlock(run);
                self.wake_blocked(out);
            }
        }
    }

    fn ask_to_compare(&mut self, id: u64, run: Run, data: &Bytes, out: &mut Actions) {
        let hashes = hash_blocks(data);
        self.send(
            Message::Compare {
                id,
                offset: run.byte_offset(),
                hashes,
            },
            out,
        );
    }

    /// Errors: an answer to nothing, or with impossible indices.
    pub(super) fn on_verify_compared(
        &mut self,
        id: u64,
        result: Result<Vec<u32>, DiskFault>,
        out: &mut Actions,
    ) -> Result<(), String> {
        let Some(verify) = &mut self.verify else {
            // Stopped meanwhile by an operator.
            return Ok(());
        };
        if id >> 32 != verify.number {
            return Ok(()); // of one that was stopped
        }
        let Some(at) = verify.asked.iter().position(|asked| asked.id == id) else {
            return Err(format!("it answers comparison {id}, which was not asked"));
        };
        let Asked { run, locked, .. } = verify.asked[at];
        let different = result.unwrap_or_else(|_| (0..run.count as u32).collect());
        if different.iter().any(|i| u64::from(*i) >= run.count) {
            return Err(format!(
                "its answer to comparison {id} names blocks that were not asked"
            ));
        }
        verify.asked.swap_remove(at);
        if !locked {
            verify.compared += run.count;
            // Each is looked at again by itself, with its block locked.
            verify.suspects.extend(
                different
                    .iter()
                    .map(|i| Run::new(Block(run.first.0 + u64::from(*i)), 1)),
            );
            return Ok(());
        }
        if different.is_empty() {
            self.spans.unlock(run);
            self.wake_blocked(out);
        } else {
            self.found_different(run, true, out);
        }
        Ok(())
    }

    /// These blocks differ, or can't be read there: they are marked, durably soon.
    fn found_different(&mut self, run: Run, locked: bool, out: &mut Actions) {
        self.bitmap.mark(run);
        self.want_pages();
        if !self.record().verify_found {
            self.change_record(After::Nothing, |r| r.verify_found = true);
        }
        if let Some(verify) = &mut self.verify {
            verify.different += run.count;
            verify.marked.extend(run.extents().map(Page::of));
        }
        out.push(Action::Report(Notice::VerifyFound { run }));
        if locked {
            self.spans.unlock(run);
            self.wake_blocked(out);
        }
    }

    fn end_verify(&mut self, out: &mut Actions) {
        let Some(verify) = self.verify.take() else {
            return;
        };
        let (compared, different, unreadable) =
            (verify.compared, verify.different, verify.unreadable);
        out.push(Action::Report(Notice::VerifyDone {
            compared,
            different,
            unreadable,
        }));
        self.send(
            Message::Progress {
                doing: Doing::Nothing,
            },
            out,
        );
        let found = match (different, unreadable) {
            (0, 0) => format!("{} compared, no difference", compared * BLOCK),
            (0, bad) => format!("{bad} blocks can be read on neither node"),
            (differ, 0) => format!("{differ} blocks differ; they are marked"),
            (differ, bad) => format!(
                "{differ} blocks differ; they are marked; {bad} more can be read on neither node"
            ),
        };
        self.answer(verify.command, Ok(Reply::Nothing(found)), out);
        if verify.repair && self.bitmap.count() > 0 {
            // The handshake finds the marks, and makes the Primary, or the lower id, their source.
            self.close_session(FOUND_BY_VERIFY, out);
        }
    }

    /// The session ended under a verification, or an operator stops it: what it found stays marked.
    pub(super) fn forget_verify(&mut self) {
        if let Some(verify) = &mut self.verify {
            for asked in std::mem::take(&mut verify.asked) {
                if asked.locked {
                    self.spans.unlock(asked.run);
                }
            }
            // From the start again, once the copies are in sync.
            verify.reading = 0;
            verify.suspects.clear();
            verify.cursor = Block(0);
            verify.compared = 0;
            verify.unreadable = 0;
            // What is still asked of the disk or the peer ends without it.
            self.verifications += 1;
            verify.number = self.verifications;
            verify.next_id = self.verifications << 32;
        }
    }

    pub(super) fn stop_verify(&mut self, command: CommandId, out: &mut Actions) {
        if self.verify.is_none() {
            return self.answer(
                command,
                Ok(Reply::Nothing("no verification runs".into())),
                out,
            );
        }
        self.drop_verify(Ok(Reply::Nothing("stopped".into())), out);
        self.answer(command, Ok(Reply::Done), out);
    }

    /// Ends a verification before its end; who ordered it is told.
    pub(super) fn drop_verify(&mut self, answer: Result<Reply, Refusal>, out: &mut Actions) {
        self.forget_verify();
        if let Some(verify) = self.verify.take() {
            self.answer(verify.command, answer, out);
            if self.up().is_some() {
                let doing = Doing::Nothing;
                self.send(Message::Progress { doing }, out);
            }
            self.wake_blocked(out);
        }
    }

    pub(super) fn verify_progress(&self) -> Option<Progress> {
        self.verify.as_ref().map(|verify| Progress {
            total_blocks: self.geometry.blocks(),
            done_blocks: verify.compared,
            sent_bytes: 0,
            since: verify.since,
            rate: 0,
            paused_here: false,
            paused_there: false,
            different: verify.different,
        })
    }
}
