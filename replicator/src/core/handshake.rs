//! Meeting the peer (docs/protocol.md §6): hello, verdict, what the verdict demands, ready.
//!
//! From its hello until the session is up a node is frozen: a mint, a change of role or of the
//! disk closes the session. Sending it ends an open attempt at the arbiter. *No-silent-fork*:
//! a verdict that refuses changes nothing on either side.

use kagami_bitmap::Run;
use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::superblock::StoredDisk;

use super::decide::{self, Refused, Strategy, Verdict};
use super::diskless::Serve;
use super::durable::After;
use super::event::IoError;
use super::link::{LinkStage, Peer, Phase, Up};
use super::message::{Hello, Message};
use super::resync::{Source, Target};
use super::served;
use super::state::{DiskState, Role, SessionId};
use super::{Action, Actions, Mirror, Notice, Store};

/// A session before it is up.
#[derive(Debug, Default)]
pub(super) struct Meeting {
    sent: Option<Hello>,
    theirs: Option<Hello>,
    verdict: Option<Verdict>,
    /// The peer has sent all its marks.
    marks_complete: bool,
    /// What the verdict demands of this side is durable.
    prepared: bool,
    ready_sent: bool,
    ready_received: bool,
    /// What overtook the peer's ready on another stream.
    early: Vec<Message>,
    /// Block hashes in these.
    early_hashes: usize,
}

/// Most messages that may overtake a ready.
const EARLY: usize = 4096;
/// Most block hashes in these: 1 MiB. (Data lie in the memory for received payloads.)
const EARLY_HASHES: usize = 65_536;
/// Most runs in one message.
pub(super) const RUNS: usize = 4096;

impl Meeting {
    /// The verdict is to resynchronise by marks. (It is found as soon as both hellos are there, and
    /// the peer, which sends marks behind its own, had this node's.)
    fn wants_marks(&self) -> bool {
        matches!(
            self.verdict,
            Some(Verdict {
                strategy: Strategy::Marks { .. },
                ..
            })
        )
    }
}

impl Mirror {
    fn meeting(&mut self) -> Option<&mut Meeting> {
        match self.link.as_mut().map(|link| &mut link.stage) {
            Some(LinkStage::Meeting(meeting)) => Some(meeting),
            _ => None,
        }
    }

    /// True from this node's hello until the session is up.
    pub(super) fn is_frozen(&self) -> bool {
        matches!(self.link.as_ref().map(|l| &l.stage), Some(LinkStage::Meeting(m)) if m.sent.is_some())
    }

    pub(super) fn is_meeting(&self) -> bool {
        matches!(
            self.link.as_ref().map(|l| &l.stage),
            Some(LinkStage::Meeting(_))
        )
    }

    fn hello(&self) -> Hello {
        let (keep, full) = self.word();
        Hello {
            diskless: self.local.store != Store::Usable,
            marks: self.bitmap.count(),
            role: self.role,
            unbroken: self.local.unbroken,
            unmap_zeroes: self.unmap_zeroes,
            keep,
            full,
            boot: self.told_boot(),
            ..Hello::of(self.record(), &self.settings)
        }
    }

    /// The hello waits until nothing of an older session is on its way to the disk (§5), no
    /// change of the record is, and an attempt that has to end first has ended.
    fn may_greet(&self) -> bool {
        let lands = self.has_old_writes();
        let asks_first = self.solo.ask_before_hello && self.attempt.is_some();
        !self.durable.is_changing() && !lands && !asks_first
    }

    /// Takes the meeting as far as it can go.
    pub(super) fn advance_handshake(&mut self, out: &mut Actions) {
        if !self.is_meeting() {
            return;
        }
        if !self.is_frozen() && self.may_greet() {
            if !planted(Defect::AttemptSurvivesHandshake) {
                self.end_attempt();
            }
            self.solo.ask_before_hello = false;
            let hello = self.hello();
            if let Some(meeting) = self.meeting() {
                meeting.sent = Some(hello.clone());
            }
            self.solo.told_timeout_ms = self.solo.told_timeout_ms.max(self.settings.timeout_ms);
            self.send(Message::Hello(Box::new(hello)), out);
        }
        if let Some(Meeting {
            sent: Some(mine),
            theirs: Some(theirs),
            verdict: None,
            ..
        }) = self.meeting()
        {
            let (mine, theirs) = (mine.clone(), theirs.clone());
            let verdict = decide::decide(&mine, &theirs);
            assert_eq!(
                verdict,
                decide::decide(&theirs, &mine),
                "the table is symmetric"
            );
            self.on_verdict(verdict, &mine, &theirs, out);
        }
        let draining = self.owes_disk_writes(|_| true);
        let me = self.me;
        let Some(meeting) = self.meeting() else {
            return;
        };
        let Some(verdict) = meeting.verdict else {
            return;
        };
        let needs_marks = matches!(verdict.strategy, Strategy::Marks { .. });
        let is_target = verdict.source().is_some_and(|source| source != me);
        let ready = meeting.prepared
            && (!needs_marks || meeting.marks_complete)
            && !(is_target && draining);
        if ready && !meeting.ready_sent {
            meeting.ready_sent = true;
            self.send(Message::Ready, out);
        }
        if let Some(Meeting {
            ready_sent: true,
            ready_received: true,
            ..
        }) = self.meeting()
        {
            self.come_up(verdict, out);
        }
    }

    /// Errors: a message out of turn.
    pub(super) fn on_meeting_message(&mut self, message: Message) -> Result<(), String> {
        let geometry = self.geometry;
        let Some(meeting) = self.meeting() else {
            return Ok(());
        };
        match message {
            Message::Hello(hello) if meeting.theirs.is_none() => {
                if hello.timeout_ms == 0 {
                    return Err("its time-out is zero".into());
                }
                let timeout = hello.timeout_ms;
                meeting.theirs = Some(*hello);
                if let Some(link) = &mut self.link {
                    link.peer_timeout_ms = timeout;
                }
            }
            Message::Marks { runs, last } if meeting.wants_marks() && !meeting.marks_complete => {
                if runs
                    .iter()
                    .any(|run| run.is_empty() || run.end().0 > geometry.blocks())
                {
                    return Err("it marks blocks behind the end".into());
                }
                meeting.marks_complete = last;
                // *Marked-before-different*: both go on with the union (§5 step 2). Each piece is
                // joined as it comes, so that no stream of them takes memory; what a session that
                // ends here has marked is compared, or copied, by the next.
                for run in runs {
                    if !planted(Defect::MarksNotJoined) {
                        self.bitmap.mark(run);
                    }
                }
            }
            Message::Ready if meeting.theirs.is_some() && !meeting.ready_received => {
                meeting.ready_received = true
            }
            Message::Write { .. }
            | Message::Zero { .. }
            | Message::Read { .. }
            | Message::ReadReply { .. }
            | Message::ResyncBlocks { .. }
            | Message::Compare { .. }
            | Message::Compared { .. } => {
                if let Message::Compare { hashes, .. } = &message {
                    meeting.early_hashes += hashes.len();
                }
                let too_many = meeting.early.len() >= EARLY || meeting.early_hashes > EARLY_HASHES;
                if !meeting.ready_sent || too_many {
                    return Err("it sends data before the session is up".into());
                }
                meeting.early.push(message);
            }
            _ => return Err("it sends a message before the session is up".into()),
        }
        Ok(())
    }

    fn on_verdict(&mut self, verdict: Verdict, mine: &Hello, theirs: &Hello, out: &mut Actions) {
        let again = self.last_verdict == Some(verdict) && self.door.refused > 0;
        self.last_verdict = Some(verdict);
        if !again {
            out.push(Action::Report(Notice::Verdict {
                verdict,
                mine: mine.current,
                theirs: theirs.current,
            }));
        }
        if let Strategy::Refuse(refused) = verdict.strategy {
            return self.on_refused(refused, mine, theirs, out);
        }
        if verdict.strategy == Strategy::Serve
            && let Some(why) = self.is_displaced(theirs)
        {
            self.stop_being_primary(why, out);
            self.fail_requests(IoError::NotPrimary, out);
            self.close_session(&format!("this node has no disk, and {why}"), out);
            return;
        }
        if let Some(meeting) = self.meeting() {
            meeting.verdict = Some(verdict);
        }
        let Some(session) = self.link.as_ref().map(|link| link.id) else {
            return;
        };
        if let Some(source) = verdict.source() {
            let newest = theirs.current;
            if planted(Defect::AdoptAtTheStart) && source != self.me && newest.is_some() {
                let history = theirs.history.clone();
                self.change_record(After::Nothing, |r| {
                    r.current = newest;
                    r.history = history;
                });
            }
            if planted(Defect::PeersIdsIntoHistory) && source == self.me {
                let known = theirs.current.filter(|g| !self.record().in_line(g.tag));
                self.change_record(After::Nothing, |r| r.history.extend(known));
            }
        }
        match verdict.strategy {
            Strategy::Nothing => {
                let (boot, record) = (self.boot, self.record());
                if record.boot == Some(boot) && record.base.is_none() {
                    self.on_met_durable(session);
                } else {
                    // `boot` is written when the copies become in sync, before the first write (§1).
                    self.change_record(After::Met { session }, |r| {
                        r.boot = Some(boot);
                        r.base = None;
                    });
                }
            }
            Strategy::Marks { source } => {
                self.send_marks(out);
                if source == self.me {
                    self.on_met_durable(session);
                } else {
                    let stays = self.stays_guest(mine, theirs);
                    self.become_target(session, false, stays, out);
                }
            }
            Strategy::Full { source } => {
                self.bitmap.mark_all();
                self.want_pages();
                if source == self.me {
                    let all = !planted(Defect::AllMarkedNotWritten);
                    self.change_record(After::Met { session }, |r| r.all_marked = all);
                } else {
                    let stays = self.stays_guest(mine, theirs);
                    self.become_target(session, true, stays, out);
                }
            }
            Strategy::First { source } => {
                if source == self.me {
                    let tag = self.draw_tag();
                    self.change_record(After::Met { session }, |r| {
                        r.mint(tag);
                        r.alone = false;
                    });
                } else {
                    self.on_met_durable(session);
                }
            }
            Strategy::Serve | Strategy::Refuse(_) => self.on_met_durable(session),
        }
    }

    /// §5 step 1: demoted (a guest may stay Primary), Inconsistent durably, before the first block
    /// arrives.
    fn become_target(&mut self, session: SessionId, full: bool, stays: bool, out: &mut Actions) {
        if !stays {
            self.stop_being_primary("its copy is to be overwritten", out);
            self.fail_requests(IoError::NotPrimary, out);
        }
        self.alone = None;
        // What it asked as the copy that goes on alone is nothing to one that is overwritten.
        self.end_attempt();
        self.local.up_to_date = false;
        let boot = self.boot;
        self.change_record(After::Met { session }, |r| {
            if !planted(Defect::TargetNotInconsistent) {
                r.disk = StoredDisk::Inconsistent;
            }
            r.zeroed = false;
            r.may_lose_writes_of(boot);
            r.all_marked |= full && !planted(Defect::AllMarkedNotWritten);
        });
    }

    fn send_marks(&mut self, out: &mut Actions) {
        let mut runs = Vec::new();
        let mut all: Vec<Run> = self.bitmap.runs().collect();
        if planted(Defect::MarksNotSent) {
            all.clear();
        }
        for run in all {
            runs.push(run);
            if runs.len() == RUNS {
                self.send(
                    Message::Marks {
                        runs: std::mem::take(&mut runs),
                        last: false,
                    },
                    out,
                );
            }
        }
        self.send(Message::Marks { runs, last: true }, out);
    }

    pub(super) fn on_met_durable(&mut self, session: SessionId) {
        if self.link.as_ref().is_some_and(|link| link.id == session)
            && let Some(meeting) = self.meeting()
        {
            meeting.prepared = true;
        }
    }

    /// Both are ready: the session is up.
    fn come_up(&mut self, verdict: Verdict, out: &mut Actions) {
        let (early, mine, theirs) = match self.meeting() {
            Some(meeting) => (
                std::mem::take(&mut meeting.early),
                meeting.sent.take(),
                meeting.theirs.take(),
            ),
            None => return,
        };
        let (Some(mine), Some(theirs)) = (mine, theirs) else {
            return;
        };
        let source = verdict.source();
        let disk = match (theirs.diskless, source) {
            (true, _) => DiskState::Diskless,
            (_, Some(source)) if source == self.me => DiskState::Inconsistent,
            _ => DiskState::UpToDate,
        };
        // A target was demoted by its side of the verdict, unless it is a guest.
        let guest_stays = source == Some(self.me) && served::stays_primary(&theirs, &mine);
        let role = if source == Some(self.me) && !guest_stays {
            Role::Secondary
        } else {
            theirs.role
        };
        let peer = Peer {
            role,
            disk,
            unmap_zeroes: theirs.unmap_zeroes,
            arbiter: theirs.arbiter,
            boot: theirs.boot,
        };
        let phase = match verdict.strategy {
            Strategy::Nothing => {
                assert!(
                    self.alone.is_none(),
                    "One-writer: alone in a generation that the peer has"
                );
                Phase::InSync
            }
            Strategy::Marks { source } | Strategy::Full { source } if source == self.me => {
                let mut source = Source::new(self.bitmap.count(), self.now);
                source.guest_stays = guest_stays;
                Phase::Source(Box::new(source))
            }
            // Nothing to copy: both read as zeroes, and the generation is minted. It is offered in a moment.
            Strategy::First { source } if source == self.me => {
                Phase::Source(Box::new(Source::new(0, self.now)))
            }
            Strategy::Marks { .. } | Strategy::Full { .. } | Strategy::First { .. } => {
                Phase::Target(Target::new(self.bitmap.count(), self.now))
            }
            Strategy::Serve | Strategy::Refuse(_) => Phase::Serve(Serve::default()),
        };
        let good = matches!(phase, Phase::InSync | Phase::Source(_));
        if let Some(link) = &mut self.link {
            link.stage = LinkStage::Up(Box::new(Up::new(peer, phase)));
        }
        self.door.refused = 0;
        self.solo.word = None;
        self.door.cause = "the peer is there".to_owned();
        if good {
            self.local.up_to_date = true;
        }
        self.tell_peer_state(out);
        self.on_session_up(verdict, out);
        let session = self.session();
        for message in early {
            // A fault in one of them ends the session, and with it the rest.
            if self.session() == session
                && let Err(what) = self.on_up_message(message, out)
            {
                self.on_peer_fault(what, out);
            }
        }
    }

    fn on_session_up(&mut self, verdict: Verdict, out: &mut Actions) {
        match verdict.strategy {
            Strategy::Nothing => self.on_in_sync(out),
            Strategy::First { source } if source == self.me => {
                if let Some(session) = self.session() {
                    self.on_left_durable(session, out);
                }
            }
            Strategy::Marks { .. } | Strategy::Full { .. } | Strategy::First { .. } => {
                self.begin_resync(out);
            }
            Strategy::Serve => self.seek_to_carry(out),
            Strategy::Refuse(_) => {}
        }
    }

    /// Refused: disconnect and tell, back off, and carry out an operator's word if there is one.
    fn on_refused(&mut self, refused: Refused, mine: &Hello, theirs: &Hello, out: &mut Actions) {
        let keep = decide::kept(mine, theirs);
        self.door.refused += 1;
        let contradict = matches!((mine.keep, theirs.keep), (Some(a), Some(b)) if a != b);
        let reason = if contradict {
            format!(
                "refused: {refused:?}, and each node was told to keep its own copy: say `kagami resync --from peer` on the one that is to lose"
            )
        } else {
            format!("refused: {refused:?}")
        };
        if keep == Some(self.me) && refused.waits_for_any_word() {
            // The kept copy mints; the next handshake finds it ahead.
            self.renew_word(mine.full || theirs.full);
            self.door.refused = 0;
            self.close_session(&reason, out);
            self.force(None, false, out);
            return;
        }
        if refused == Refused::BothStale && keep.is_none() {
            self.on_both_stale(theirs);
        }
        self.close_session(&reason, out);
        self.word_refused(refused, mine, theirs, out);
    }
}
