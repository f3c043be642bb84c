//! Where a mirror stands, in few words, and what an event is to it: the axes of the simulator's
//! coverage (docs/simulation.md). Nothing is decided here.
//!
//! A [`Situation`] is coarser than the state: what a person would tell to explain a trace. An
//! [`Event`] is told with what it belongs to, as far as the core knows: "the local half of a
//! write" and not "disk operation 17".

use std::fmt;

use super::event::{Command, Event, Request};
use super::flush::FlushOf;
use super::link::{LinkStage, Phase};
use super::message::Message;
use super::register::ArbiterAnswer;
use super::request::Gate;
use super::resync::Purpose;
use super::state::{DiskId, Role, SessionId, Time};
use super::timers::Timer;
use super::{DiskResult, DiskWork, Mirror, Store};
use kagami_bitmap::superblock::StoredDisk;

/// A mirror on one node, as a person would tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Situation {
    /// The local role.
    pub primary: bool,
    /// The local copy.
    pub copy: Worth,
    /// What there is with the peer.
    pub peer: With,
    /// Permission to answer what only this copy holds.
    pub solo: Permission,
    /// A command that takes its time.
    pub doing: Procedure,
}

/// What the local copy is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Worth {
    /// Consistent.
    Good,
    /// Inconsistent or Outdated.
    Bad,
    /// Failed, or never there.
    Gone,
}

/// What there is with the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum With {
    /// No session.
    Nobody,
    /// The handshake.
    Meeting,
    /// In sync.
    InSync,
    /// This copy brings the peer's up to date.
    Source,
    /// The same, and writes wait for its last step.
    SourceFrozen,
    /// The other way round.
    Target,
    /// One copy has no disk.
    Serving,
}

/// Permission to go on alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// None.
    No,
    /// The arbiter is being asked.
    Asked,
    /// Given, and minted.
    Given,
}

/// A command that takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Procedure {
    /// None.
    Nothing,
    /// A promotion.
    Promoting,
    /// A demotion.
    Demoting,
    /// The end of the daemon.
    Stopping,
    /// A verification that this node began.
    Verifying,
}

impl fmt::Display for Situation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.primary { "Primary" } else { "Secondary" })?;
        f.write_str(match self.copy {
            Worth::Good => ", good copy",
            Worth::Bad => ", bad copy",
            Worth::Gone => ", no copy",
        })?;
        f.write_str(match self.peer {
            With::Nobody => ", no session",
            With::Meeting => ", handshake",
            With::InSync => ", in sync",
            With::Source => ", source",
            With::SourceFrozen => ", source at its end",
            With::Target => ", target",
            With::Serving => ", one disk",
        })?;
        f.write_str(match self.solo {
            Permission::No => "",
            Permission::Asked => ", asking",
            Permission::Given => ", alone",
        })?;
        f.write_str(match self.doing {
            Procedure::Nothing => "",
            Procedure::Promoting => ", promoting",
            Procedure::Demoting => ", demoting",
            Procedure::Stopping => ", stopping",
            Procedure::Verifying => ", verifying",
        })
    }
}

impl Mirror {
    /// Where the mirror stands.
    pub fn situation(&self) -> Situation {
        let peer = match self.link.as_ref().map(|link| &link.stage) {
            None => With::Nobody,
            Some(LinkStage::Meeting(_)) => With::Meeting,
            Some(LinkStage::Up(up)) => match &up.phase {
                Phase::InSync => With::InSync,
                Phase::Source(_) if self.gate == Gate::Frozen => With::SourceFrozen,
                Phase::Source(_) => With::Source,
                Phase::Target(_) => With::Target,
                Phase::Serve(_) => With::Serving,
            },
        };
        let doing = if self.stopping.is_some() {
            Procedure::Stopping
        } else if self.promoting.is_some() {
            Procedure::Promoting
        } else if self.demoting.is_some() {
            Procedure::Demoting
        } else if self.verify.is_some() {
            Procedure::Verifying
        } else {
            Procedure::Nothing
        };
        Situation {
            primary: self.role == Role::Primary,
            copy: match (self.local.store, self.record().disk) {
                (Store::Failed | Store::Diskless, _) => Worth::Gone,
                (Store::Usable, StoredDisk::Consistent) => Worth::Good,
                (Store::Usable, _) => Worth::Bad,
            },
            peer,
            solo: if self.alone.is_some() {
                Permission::Given
            } else if self.attempt.is_some() {
                Permission::Asked
            } else {
                Permission::No
            },
            doing,
        }
    }

    /// What an event is to this mirror, before it is handled at `now`.
    pub fn occasion(&self, now: Time, event: &Event) -> &'static str {
        match event {
            Event::Request { request, .. } => match request {
                Request::Read { .. } => "request: read",
                Request::Write { fua: false, .. } => "request: write",
                Request::Write { fua: true, .. } => "request: write, FUA",
                Request::WriteZeroes { .. } => "request: zeroes",
                Request::Discard { .. } => "request: discard",
                Request::Flush => "request: flush",
            },
            Event::Room { .. } => "room",
            Event::Disk { id, result } => self.disk_occasion(*id, result),
            Event::MetadataDone { result: Ok(()), .. } => "metadata: durable",
            Event::MetadataDone { .. } => "metadata: failed",
            Event::LinkUp { .. } => "link: up",
            Event::LinkDown { session, .. } if self.is_stale(*session) => "link: down, stale",
            Event::LinkDown { .. } => "link: down",
            Event::Message { session, .. } if self.is_stale(*session) => "message: stale",
            Event::Message { message, .. } => message_occasion(message),
            Event::Arbiter { attempt, answer } => {
                let asked = self.attempt.as_ref().is_some_and(|a| a.id == *attempt);
                match answer {
                    _ if !asked => "arbiter: late answer",
                    ArbiterAnswer::Register(_) => "arbiter: register",
                    ArbiterAnswer::Swapped => "arbiter: swapped",
                    ArbiterAnswer::NotOurs(_) => "arbiter: not ours",
                    ArbiterAnswer::Unreachable(_) => "arbiter: unreachable",
                }
            }
            Event::Timer => self
                .timers
                .first_due(now)
                .map_or("timer: none due", timer_occasion),
            Event::Command { command, .. } => command_occasion(command),
            Event::Tags(_) => "tags",
        }
    }

    fn is_stale(&self, session: SessionId) -> bool {
        self.link.as_ref().is_none_or(|link| link.id != session)
    }

    fn disk_occasion(&self, id: DiskId, result: &DiskResult) -> &'static str {
        let Some(work) = self.disk.get(id.0 as usize) else {
            return "disk: unknown";
        };
        match (&work.work, result.is_ok()) {
            (DiskWork::Write(_), true) => "disk: write",
            (DiskWork::Write(_), false) => "disk: write failed",
            (DiskWork::Edge { .. }, true) => "disk: edge",
            (DiskWork::Edge { .. }, false) => "disk: edge failed",
            (DiskWork::Read(_), true) => "disk: read",
            (DiskWork::Read(_), false) => "disk: read failed",
            (DiskWork::Flush(FlushOf::Cycle(_)), true) => "disk: flush",
            (DiskWork::Flush(FlushOf::Peer { .. }), true) => "disk: flush for the peer",
            (DiskWork::Flush(FlushOf::Leave(_)), true) => "disk: flush to leave",
            (DiskWork::Flush(FlushOf::Demote { .. }), true) => "disk: flush to demote",
            (DiskWork::Flush(FlushOf::Stop), true) => "disk: flush to stop",
            (DiskWork::Flush(_), false) => "disk: flush failed",
            (DiskWork::Repair(_), true) => "disk: repair",
            (DiskWork::Repair(_), false) => "disk: repair failed",
            (DiskWork::PeerRead { .. }, true) => "disk: read for the peer",
            (DiskWork::PeerRead { .. }, false) => "disk: read for the peer failed",
            (DiskWork::PeerCompare { .. }, true) => "disk: compare for the peer",
            (DiskWork::PeerCompare { .. }, false) => "disk: compare for the peer failed",
            (DiskWork::Resync { purpose, .. }, true) => match purpose {
                Purpose::Send => "disk: read to send",
                Purpose::Compare => "disk: read to compare",
            },
            (DiskWork::Resync { .. }, false) => "disk: read to send failed",
            (DiskWork::Verify { .. }, true) => "disk: read to verify",
            (DiskWork::Verify { .. }, false) => "disk: read to verify failed",
        }
    }
}

fn message_occasion(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "message: Hello",
        Message::Marks { last: false, .. } => "message: Marks",
        Message::Marks { last: true, .. } => "message: Marks, the last",
        Message::Ready => "message: Ready",
        Message::Ping { .. } => "message: Ping",
        Message::Pong { .. } => "message: Pong",
        Message::State { .. } => "message: State",
        Message::Write { .. } => "message: Write",
        Message::Zero { .. } => "message: Zero",
        Message::ResyncBlocks { .. } => "message: ResyncBlocks",
        Message::Received { .. } => "message: Received",
        Message::Done { result: Ok(()), .. } => "message: Done",
        Message::Done { .. } => "message: Done, failed",
        Message::Flush { .. } => "message: Flush",
        Message::Flushed { result: Ok(()), .. } => "message: Flushed",
        Message::Flushed { .. } => "message: Flushed, failed",
        Message::Cleared { .. } => "message: Cleared",
        Message::Offer { .. } => "message: Offer",
        Message::Adopted => "message: Adopted",
        Message::Settled => "message: Settled",
        Message::PromoteAsk => "message: PromoteAsk",
        Message::PromoteGrant => "message: PromoteGrant",
        Message::PromoteRefuse { .. } => "message: PromoteRefuse",
        Message::Carrying => "message: Carrying",
        Message::Read { .. } => "message: Read",
        Message::ReadReply { result: Ok(_), .. } => "message: ReadReply",
        Message::ReadReply { .. } => "message: ReadReply, failed",
        Message::Compare { .. } => "message: Compare",
        Message::Compared { result: Ok(_), .. } => "message: Compared",
        Message::Compared { .. } => "message: Compared, failed",
        Message::Progress { .. } => "message: Progress",
        Message::ArbiterInstance { .. } => "message: ArbiterInstance",
        Message::ArbiterRecorded { .. } => "message: ArbiterRecorded",
        Message::Leave => "message: Leave",
        Message::Bye => "message: Bye",
        Message::Resolve { .. } => "message: Resolve",
    }
}

fn timer_occasion(timer: Timer) -> &'static str {
    match timer {
        Timer::Ping => "timer: Ping",
        Timer::PeerSilent => "timer: PeerSilent",
        Timer::AckOverdue => "timer: AckOverdue",
        Timer::Attempt => "timer: Attempt",
        Timer::AskAgain => "timer: AskAgain",
        Timer::AutoFlush => "timer: AutoFlush",
        Timer::WritePages => "timer: WritePages",
        Timer::Resync => "timer: Resync",
        Timer::Count => "timer: none due",
    }
}

fn command_occasion(command: &Command) -> &'static str {
    match command {
        Command::Promote { force: false, .. } => "command: promote",
        Command::Promote { force: true, .. } => "command: promote --force",
        Command::PromoteFenced => "command: promote, fenced",
        Command::Demote { force: false } => "command: demote",
        Command::Demote { force: true } => "command: demote --force",
        Command::Resync { .. } => "command: resync",
        Command::PauseSync => "command: pause-sync",
        Command::ResumeSync => "command: resume-sync",
        Command::Verify { .. } => "command: verify",
        Command::StopVerify => "command: stop verify",
        Command::Invalidate => "command: invalidate",
        Command::Disconnect => "command: disconnect",
        Command::Connect => "command: connect",
        Command::SetPeer { .. } => "command: set peer",
        Command::Stop => "command: down",
        Command::Set(_) => "command: reload",
    }
}
