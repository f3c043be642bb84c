//! The session with the peer: how it begins and ends, who is alive (pings), and the lease.
//!
//! A session is one set of streams. It begins as a meeting (`handshake`) and is then up, in a
//! phase. *Close, then ask* (docs/protocol.md §2): its end on this side is one function,
//! [`Mirror::end_session`], which takes away everything that rested on it before anything else
//! is done.

use std::collections::BTreeMap;

use kagami_bitmap::planted::{Defect, planted};

use super::applied::{Applied, Asked};
use super::diskless::Serve;
use super::handshake::Meeting;
use super::message::Message;
use super::read::PeerRead;
use super::resync::{Source, Target};
use super::state::{Connection, DiskState, Replication, Role, Seq, SessionId, Time};
use super::timers::Timer;
use super::verify::Verify;
use super::write::WriteKey;
use super::{Action, Actions, Mirror, Notice};

/// A set of streams to the peer.
#[derive(Debug)]
pub(super) struct Link {
    pub id: SessionId,
    /// The protocol's version.
    pub version: u16,
    opened: Time,
    /// When the newest ping that the peer echoed was sent.
    echoed: Option<Time>,
    pub round_trip_ns: Option<u64>,
    /// The peer's time-out, once it said hello.
    pub peer_timeout_ms: u64,
    pub stage: LinkStage,
}

#[derive(Debug)]
pub(super) enum LinkStage {
    Meeting(Box<Meeting>),
    Up(Box<Up>),
}

/// What is known of the peer in a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub role: Role,
    pub disk: DiskState,
    pub unmap_zeroes: bool,
    pub arbiter: Option<u64>,
    /// The boot of its machine.
    pub boot: Option<u128>,
}

/// A session that is up.
#[derive(Debug)]
pub(super) struct Up {
    pub peer: Peer,
    pub phase: Phase,
    // What this side sent and the peer owes.
    seq: Seq,
    pub owed: BTreeMap<Seq, (Owed, Time)>,
    pub flushed_id: u64,
    /// (the peer's number, the cycle's number, since when)
    pub owed_flushes: BTreeMap<u64, (u64, Time)>,
    pub reads: BTreeMap<u64, (PeerRead, u32, Time)>,
    pub next_read: u64,
    pub awaited: Vec<(Awaited, Time)>,
    // What the peer sent.
    pub applied: Applied,
    pub peer_flushes: Vec<(u64, Seq)>,
    pub asked: Asked,
    /// The peer may be Primary in this session: it asked, and this node said yes.
    pub granted: bool,
    /// It asked at a moment at which it could not be answered.
    pub asked_late: bool,
    /// An operator paused the resynchronisation, here or there.
    pub paused_here: bool,
    pub paused_there: bool,
    pub verified_there: bool,
    /// An operator made the peer's copy a target: the session ends, and grants nothing any more.
    pub resolved: bool,
}

/// What the two copies are doing.
#[derive(Debug)]
pub(super) enum Phase {
    /// Every write goes to both.
    InSync,
    /// This copy brings the peer's up to date.
    Source(Box<Source>),
    /// The other way round.
    Target(Target),
    /// One has no disk.
    Serve(Serve),
}

/// What the peer has to answer by its number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owed {
    Write(WriteKey),
    /// A piece of a resynchronisation's chunk.
    Chunk(u64),
}

/// A step of the protocol that the peer is to answer, beside writes, flushes, reads and comparisons. Each may have to
/// wait for the peer's disks, and meanwhile holds something back here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// *Offer*: requests are held until it has adopted.
    Adoption,
    /// *Adopted*: a guest's requests are held until its source has settled.
    Settlement,
    /// *`PromoteAsk`*: a promotion waits.
    Grant,
}

impl Up {
    pub fn new(peer: Peer, phase: Phase) -> Self {
        Self {
            peer,
            phase,
            seq: Seq(0),
            owed: BTreeMap::new(),
            flushed_id: 0,
            owed_flushes: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_read: 1,
            awaited: Vec::new(),
            applied: Applied::default(),
            peer_flushes: Vec::new(),
            asked: Asked::default(),
            granted: false,
            asked_late: false,
            paused_here: false,
            paused_there: false,
            verified_there: false,
            resolved: false,
        }
    }

    pub fn next_seq(&mut self) -> Seq {
        self.seq.0 += 1;
        self.seq
    }

    pub fn last_seq(&self) -> Seq {
        self.seq
    }

    /// Since when the peer owes its oldest answer.
    fn owes_since(&self) -> Option<Time> {
        let write = self.owed.first_key_value().map(|(_, (_, at))| *at);
        let flush = self.owed_flushes.first_key_value().map(|(_, (_, at))| *at);
        let read = self.reads.first_key_value().map(|(_, (_, _, at))| *at);
        let step = self.awaited.iter().map(|(_, at)| *at).min();
        let compared = match &self.phase {
            Phase::Source(source) => source.compares_since(),
            _ => None,
        };
        let owed = [write, flush, read, step, compared];
        owed.into_iter().flatten().min()
    }
}

/// Whether this node looks for its peer.
#[derive(Debug)]
pub(super) struct Door {
    /// An operator said to stay without a session, or the daemon stops.
    pub shut: bool,
    /// Handshakes refused in a row.
    pub refused: u32,
    /// Why the connection is what it is.
    pub cause: String,
    pub since: Time,
}

impl Default for Door {
    fn default() -> Self {
        Self {
            shut: false,
            refused: 0,
            cause: "its daemon began".to_owned(),
            since: Time::default(),
        }
    }
}

/// Longest wait after a refused handshake.
const BACK_OFF_MS: u64 = 10_000;

impl Mirror {
    /// Looks for the peer, after a wait if it was refused.
    pub(super) fn open_door(&mut self, out: &mut Actions) {
        let lost_disk = self.local.store != super::Store::Usable && !self.is_primary();
        let from = if self.door.shut || lost_disk || !self.has_peer() {
            None
        } else if self.door.refused == 0 {
            Some(self.now)
        } else {
            let wait = 250u64 << self.door.refused.min(8);
            Some(self.now.after_ms(wait.min(BACK_OFF_MS)))
        };
        out.push(Action::WantSession { from });
    }

    pub(super) fn on_link_up(&mut self, session: SessionId, version: u16, out: &mut Actions) {
        if self.link.is_some() {
            self.end_session("the peer opened a new session", out);
        }
        if self.door.shut {
            let reason = "this node is told to stay without a session".to_owned();
            out.push(Action::CloseSession { session, reason });
            return;
        }
        self.link = Some(Link {
            id: session,
            version,
            opened: self.now,
            echoed: None,
            round_trip_ns: None,
            peer_timeout_ms: self.settings.timeout_ms,
            stage: LinkStage::Meeting(Box::default()),
        });
        self.timers.set(
            Timer::PeerSilent,
            self.now.after_ms(self.settings.timeout_ms),
        );
        self.watch_acks();
        self.on_ping_due(out);
    }

    pub(super) fn on_link_down(&mut self, session: SessionId, reason: &str, out: &mut Actions) {
        if self.link.as_ref().is_some_and(|link| link.id == session) {
            self.end_session(reason, out);
        }
    }

    /// Closes the session on this side and tells the shell.
    pub(super) fn close_session(&mut self, reason: &str, out: &mut Actions) {
        if let Some(link) = &self.link {
            let session = link.id;
            out.push(Action::CloseSession {
                session,
                reason: reason.to_owned(),
            });
            self.end_session(reason, out);
        }
    }

    /// Takes away everything that rested on the session.
    pub(super) fn end_session(&mut self, reason: &str, out: &mut Actions) {
        let Some(link) = self.link.take() else { return };
        self.door.cause = reason.to_owned();
        for timer in [
            Timer::PeerSilent,
            Timer::Ping,
            Timer::AckOverdue,
            Timer::Resync,
        ] {
            self.timers.clear(timer);
        }
        // What a store owes is overdue when it would have been.
        let owed = [self.disk_owes_since(), self.metadata_owes_since()];
        if let Some(since) = owed.into_iter().flatten().min() {
            let due = since.after_ms(self.settings.ack_timeout_ms);
            self.timers.set(Timer::AckOverdue, due);
        }
        if let LinkStage::Up(up) = link.stage {
            self.cancel_cycle();
            // *Marked-before-different*: what was not flushed on both differs from now on. Its
            // extents are hot, and stay so until the pages say it.
            if planted(Defect::UnflushedLostWithTheLink) {
                self.unflushed = super::unflushed::Unflushed::default();
            }
            self.remember_unflushed();
            self.unflushed.move_into(&mut self.bitmap);
            self.timers.clear(Timer::AutoFlush);
            let up = *up;
            self.forget_verify();
            if let Phase::Source(source) = up.phase {
                self.drop_chunks(&source);
            }
            self.wake_blocked(out);
            self.gate = if self.demoting.is_some() {
                super::request::Gate::Closing
            } else {
                super::request::Gate::Open
            };
            self.drop_parked_of_peer(out);
            self.lose_peer_of_writes(out);
            self.lose_peer_reads(up.reads.into_values().map(|(read, ..)| read).collect(), out);
        }
        self.local.up_to_date = self.alone.is_some();
        self.forget_rejoin();
        self.on_session_end_promoting();
        self.open_door(out);
        self.seek_permission(out);
    }

    /// The session that is up, if one is.
    pub(super) fn up(&self) -> Option<&Up> {
        match self.link.as_ref().map(|link| &link.stage) {
            Some(LinkStage::Up(up)) => Some(up),
            _ => None,
        }
    }

    pub(super) fn up_mut(&mut self) -> Option<&mut Up> {
        match self.link.as_mut().map(|link| &mut link.stage) {
            Some(LinkStage::Up(up)) => Some(up),
            _ => None,
        }
    }

    /// The session that is up, by its id.
    pub(super) fn session(&self) -> Option<SessionId> {
        self.up().and(self.link.as_ref()).map(|link| link.id)
    }

    pub(super) fn is_session(&self, session: SessionId) -> bool {
        self.session() == Some(session)
    }

    /// Sends a message in the session there is, meeting or up.
    pub(super) fn send(&mut self, message: Message, out: &mut Actions) -> Option<SessionId> {
        let session = self.link.as_ref()?.id;
        out.push(Action::Send {
            session,
            class: message.class(),
            message,
        });
        Some(session)
    }

    /// The lease T: the smaller of both time-outs.
    fn lease_ms(&self) -> u64 {
        let theirs = self
            .link
            .as_ref()
            .map_or(u64::MAX, |link| link.peer_timeout_ms);
        self.settings.timeout_ms.min(theirs)
    }

    /// docs/protocol.md §8: until T after this node sent the newest ping that came back.
    pub(super) fn has_lease(&self) -> bool {
        let Some(link) = &self.link else { return false };
        matches!(link.stage, LinkStage::Up(_))
            && link
                .echoed
                .is_some_and(|sent| self.now < sent.after_ms(self.lease_ms()))
    }

    /// When the lease of the session ends; `None`: there is no session.
    pub(super) fn lease_ends(&self) -> Option<Time> {
        Some(self.heard()?.after_ms(self.lease_ms()))
    }

    /// When the newest ping was sent that the peer has echoed in this session.
    pub(super) fn heard(&self) -> Option<Time> {
        let link = self.link.as_ref()?;
        let up = matches!(link.stage, LinkStage::Up(_));
        up.then(|| link.echoed.unwrap_or(Time(0)))
    }

    pub(super) fn on_ping_due(&mut self, out: &mut Actions) {
        let sent = self.now.0;
        if self.send(Message::Ping { sent }, out).is_some() {
            self.timers
                .set(Timer::Ping, self.now.after_ms((self.lease_ms() / 8).max(1)));
        }
        let idle = !std::mem::take(&mut self.flush.busy) && self.runs_in_flight().next().is_none();
        if idle && !self.unflushed.is_empty() {
            self.flush.wanted = true;
        }
    }

    pub(super) fn on_ping(&mut self, sent: u64, out: &mut Actions) {
        self.echoed_peer = Some(self.now);
        self.send(Message::Pong { sent }, out);
    }

    /// Errors: an echo of a ping that was not sent yet.
    pub(super) fn on_pong(&mut self, sent: u64) -> Result<(), String> {
        let (now, lease) = (self.now, self.lease_ms());
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let sent = Time(sent);
        if sent > now || sent < link.opened {
            return Err("it echoes a ping that was not sent".into());
        }
        link.round_trip_ns = Some(now.since(sent));
        let newest = link.echoed.map_or(sent, |echoed| echoed.max(sent));
        link.echoed = Some(newest);
        self.timers.set(Timer::PeerSilent, newest.after_ms(lease));
        Ok(())
    }

    pub(super) fn on_peer_silent(&mut self, out: &mut Actions) {
        // A daemon that was stopped for longer finds the echoes after the timer: the lease has
        // ended all the same, and the session with it.
        self.close_session("the peer is silent", out);
    }

    pub(super) fn watch_acks(&mut self) {
        self.timers.set_once(
            Timer::AckOverdue,
            self.now.after_ms(self.settings.ack_timeout_ms),
        );
    }

    /// From now on the peer owes the answer to that step.
    pub(super) fn await_answer(&mut self, step: Awaited) {
        let now = self.now;
        if let Some(up) = self.up_mut() {
            up.awaited.push((step, now));
            self.watch_acks();
        }
    }

    pub(super) fn on_answered(&mut self, step: Awaited) {
        if let Some(up) = self.up_mut() {
            up.awaited.retain(|(awaited, _)| *awaited != step);
        }
    }

    /// Something may be owed for as long as `ack-timeout` (docs/protocol.md §5).
    pub(super) fn on_overdue(&mut self, out: &mut Actions) {
        let peer_due = self.on_ack_overdue(out);
        let disk = self.disk_owes_since();
        let was_told = self.told_disk;
        let disk_due = self.on_store_overdue(disk, "local disk", |m| &mut m.told_disk, out);
        if self.told_disk && !was_told && !planted(Defect::HangKeepsToken) {
            // Should this daemon end before the disk answers, nobody hears of a flush that fails then.
            out.push(Action::BreakToken);
        }
        let metadata = self.metadata_owes_since();
        let metadata_due =
            self.on_store_overdue(metadata, "metadata store", |m| &mut m.told_metadata, out);
        let due = [peer_due, disk_due, metadata_due];
        if let Some(at) = due.into_iter().flatten().min() {
            self.timers.set(Timer::AckOverdue, at);
        }
    }

    /// A peer that answers pings and nothing else is lost. When the oldest answer that it owes will be overdue.
    fn on_ack_overdue(&mut self, out: &mut Actions) -> Option<Time> {
        let link = self.link.as_ref()?;
        let since = match &link.stage {
            LinkStage::Meeting(_) => Some(link.opened),
            LinkStage::Up(up) => {
                let verified = self.verify.as_ref().and_then(Verify::asks_since);
                [up.owes_since(), verified].into_iter().flatten().min()
            }
        };
        let due = since?.after_ms(self.settings.ack_timeout_ms);
        if self.now < due {
            return Some(due);
        }
        if planted(Defect::AckOverdueIgnored) {
            return Some(self.now.after_ms(self.settings.ack_timeout_ms));
        }
        out.push(Action::Report(Notice::Stalled { who: "peer" }));
        self.solo.ask_before_hello = true;
        self.door.refused += 1;
        self.close_session("the peer does not answer", out);
        None
    }

    /// When the oldest operation began that the local disk has under way.
    fn disk_owes_since(&self) -> Option<Time> {
        self.disk.iter().map(|(_, op)| op.since).min()
    }

    /// When the oldest metadata write began that is under way.
    fn metadata_owes_since(&self) -> Option<Time> {
        self.metadata.values().map(|write| write.since).min()
    }

    fn is_overdue(&self, since: Option<Time>) -> bool {
        since.is_some_and(|since| self.now >= since.after_ms(self.settings.ack_timeout_ms))
    }

    /// The local disk has ended an operation. That it hangs is over with the last one that is overdue, and this daemon has
    /// heard what came of it all: the token is as it was before.
    pub(super) fn on_disk_answers(&mut self, out: &mut Actions) {
        let hung = self.told_disk;
        let owes_since = self.disk_owes_since();
        self.told_disk = hung && self.is_overdue(owes_since);
        if !hung || self.told_disk {
            return;
        }
        let was_whole = self.local.token && self.local.store == super::Store::Usable;
        if was_whole && self.record().boot == Some(self.boot) {
            out.push(Action::MakeToken);
        }
        if let Some(since) = owes_since {
            let due = since.after_ms(self.settings.ack_timeout_ms);
            self.timers.set_by(Timer::AckOverdue, due);
        }
    }

    /// The same of the metadata store.
    pub(super) fn on_metadata_answers(&mut self) {
        self.told_metadata = self.told_metadata && self.is_overdue(self.metadata_owes_since());
    }

    /// A store of this node that leaves something unanswered is told, once until it has answered that. (Nothing can be done
    /// about it: what it was given may still be carried out.) `since`: when its oldest operation began. When that will be overdue.
    fn on_store_overdue(
        &mut self,
        since: Option<Time>,
        who: &'static str,
        told: fn(&mut Self) -> &mut bool,
        out: &mut Actions,
    ) -> Option<Time> {
        if !self.is_overdue(since) {
            return Some(since?.after_ms(self.settings.ack_timeout_ms));
        }
        if !std::mem::replace(told(self), true) {
            out.push(Action::Report(Notice::Stalled { who }));
        }
        Some(self.now.after_ms(self.settings.ack_timeout_ms))
    }

    /// The peer broke a rule: the session ends, the daemon does not.
    pub(super) fn on_peer_fault(&mut self, what: String, out: &mut Actions) {
        let reason = format!("the peer broke the protocol: {what}");
        out.push(Action::Report(Notice::PeerFault { what }));
        self.door.refused += 1;
        self.close_session(&reason, out);
    }

    pub(super) fn connection(&self) -> Connection {
        match &self.link {
            Some(Link {
                stage: LinkStage::Up(_),
                ..
            }) => Connection::Connected,
            _ if self.door.shut
                || !self.has_peer()
                || (self.door.refused > 0 && self.last_verdict.is_some_and(is_refusal)) =>
            {
                Connection::StandAlone
            }
            _ => Connection::Connecting,
        }
    }

    pub(super) fn replication(&self) -> Replication {
        let Some(up) = self.up() else {
            return Replication::Off;
        };
        let paused = up.paused_here || up.paused_there;
        match &up.phase {
            Phase::Source(_) | Phase::Target(_) if paused => Replication::PausedSync,
            Phase::Source(_) => Replication::SyncSource,
            Phase::Target(_) => Replication::SyncTarget,
            Phase::InSync if self.verify.is_some() => Replication::VerifySource,
            Phase::InSync if up.verified_there => Replication::VerifyTarget,
            Phase::InSync => Replication::Established,
            Phase::Serve(_) => Replication::Off,
        }
    }

    /// True if both copies hold every write that is answered.
    pub(super) fn is_in_sync(&self) -> bool {
        matches!(self.up().map(|up| &up.phase), Some(Phase::InSync))
    }

    /// In sync, writes are answered when both have them.
    pub(super) fn must_both_hold(&self) -> bool {
        self.is_in_sync()
    }

    pub(super) fn is_source(&self) -> bool {
        matches!(self.up().map(|up| &up.phase), Some(Phase::Source(_)))
    }

    /// True if writes go to the peer too.
    pub(super) fn is_mirroring(&self) -> bool {
        self.is_in_sync() || self.is_source() || self.is_carried() || self.is_served()
    }

    pub(super) fn tell_peer_state(&mut self, out: &mut Actions) {
        if self.up().is_some() {
            let (role, disk) = (self.role, self.disk_state());
            self.send(Message::State { role, disk }, out);
        }
    }

    pub(super) fn on_message(&mut self, session: SessionId, message: Message, out: &mut Actions) {
        let Some(link) = &mut self.link else { return };
        if link.id != session {
            return;
        }
        let result = match (message, &mut link.stage) {
            (Message::Ping { sent }, _) => {
                self.on_ping(sent, out);
                Ok(())
            }
            (Message::Pong { sent }, _) => self.on_pong(sent),
            (message, LinkStage::Meeting(_)) => self.on_meeting_message(message),
            (message, LinkStage::Up(_)) => self.on_up_message(message, out),
        };
        if let Err(what) = result {
            self.on_peer_fault(what, out);
        }
    }

    /// Errors: what the message breaks; the session is closed.
    pub(super) fn on_up_message(
        &mut self,
        message: Message,
        out: &mut Actions,
    ) -> Result<(), String> {
        match message {
            Message::Write {
                seq,
                offset,
                data,
                fua,
                early,
            } => self.on_peer_write(seq, offset, data, fua, early, out),
            Message::Zero {
                seq,
                offset,
                len,
                unmap,
                fua,
            } => self.on_peer_zero(seq, offset, len, unmap, fua, out),
            Message::ResyncBlocks { seq, offset, data } => {
                self.on_resync_blocks(seq, offset, data, out)
            }
            Message::Received { seq } => self.on_received(seq, out),
            Message::Done { seq, result } => self.on_done(seq, result, out),
            Message::Flush { id, after } => self.on_peer_flush(id, after, out),
            Message::Flushed { id, result } => self.on_flushed(id, result, out),
            Message::Cleared { runs } => self.on_cleared(&runs),
            Message::Offer { current, history } => self.on_offer(current, history),
            Message::Adopted => self.on_adopted(out),
            Message::Settled => self.on_settled(out),
            Message::State { role, disk } => self.on_peer_state(role, disk, out),
            Message::PromoteAsk => self.on_promote_ask(out),
            Message::PromoteGrant => self.on_promote_grant(out),
            Message::PromoteRefuse { why } => self.on_promote_refuse(&why, out),
            Message::Carrying => self.on_carrying(out),
            Message::Read { id, offset, len } => self.on_read_for_peer(id, offset, len, out),
            Message::ReadReply { id, result } => self.on_read_reply(id, result, out),
            Message::Compare { id, offset, hashes } => self.on_compare(id, offset, hashes, out),
            Message::Compared { id, result } => self.on_compared(id, result, out),
            Message::Progress { doing } => self.on_peer_progress(doing),
            Message::ArbiterInstance { instance } => self.on_arbiter_instance(instance),
            Message::ArbiterRecorded { instance } => self.on_arbiter_recorded(instance),
            Message::Leave => self.on_peer_leave(out),
            Message::Bye => self.on_peer_bye(out),
            Message::Resolve { keep, full } => self.on_resolve(keep, full, out),
            Message::Hello(_)
            | Message::Marks { .. }
            | Message::Ready
            | Message::Ping { .. }
            | Message::Pong { .. } => Err("it greets twice".into()),
        }
    }
}

fn is_refusal(verdict: super::decide::Verdict) -> bool {
    matches!(verdict.strategy, super::decide::Strategy::Refuse(_))
}
