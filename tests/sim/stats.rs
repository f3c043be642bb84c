//! What is counted: so that a run that reached nothing shows.

use std::collections::BTreeMap;

use bytes::Bytes;
use kagami_replicator::core::decide::Verdict;
use kagami_replicator::core::event::{Command, Event, IoError};
use kagami_replicator::core::situation::Situation;
use kagami_replicator::core::state::{Role, Time};
use kagami_replicator::core::{Mirror, Notice};

use super::faults::Fault;
use super::workload::Op;

/// The counts of a run, or of many.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Seeds run.
    pub seeds: u64,
    /// Events handed to cores.
    pub steps: u64,
    /// Nanoseconds of the worlds' time.
    pub virtual_ns: u64,
    /// Requests of front ends.
    pub requests: u64,
    /// Messages sent.
    pub messages: u64,
    /// Sessions opened.
    pub sessions: u64,
    /// Questions to the arbiter.
    pub questions: u64,
    /// Records written.
    pub records: u64,
    /// Pairs of fates looked at.
    pub foresights: u64,
    /// Bytes that were marked when a resynchronisation ended.
    pub resync_marked: u64,
    /// Bytes that it sent.
    pub resync_sent: u64,
    faults: BTreeMap<Fault, u64>,
    verdicts: BTreeMap<String, u64>,
    marks: BTreeMap<String, u64>,
    cells: BTreeMap<(Situation, &'static str), u64>,
}

impl Stats {
    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.virtual_ns += other.virtual_ns;
        self.requests += other.requests;
        self.messages += other.messages;
        self.sessions += other.sessions;
        self.questions += other.questions;
        self.records += other.records;
        self.foresights += other.foresights;
        self.resync_marked += other.resync_marked;
        self.resync_sent += other.resync_sent;
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        for (cell, count) in &other.cells {
            *self.cells.entry(*cell).or_default() += count;
        }
        for (theirs, ours) in [
            (&other.verdicts, &mut self.verdicts),
            (&other.marks, &mut self.marks),
        ] {
            for (name, count) in theirs {
                match ours.get_mut(name) {
                    Some(here) => *here += count,
                    None => drop(ours.insert(name.clone(), *count)),
                }
            }
        }
    }

    /// Something worth knowing that it is reached was reached.
    pub fn mark(&mut self, name: &str) {
        match self.marks.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(self.marks.insert(name.to_owned(), 1)),
        }
    }

    /// A fault was injected.
    pub fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// How often.
    pub fn count(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).copied().unwrap_or(0)
    }

    /// The faults, and how often each.
    pub fn faults(&self) -> impl Iterator<Item = (Fault, u64)> + '_ {
        self.faults.iter().map(|(fault, count)| (*fault, *count))
    }

    /// The rows of the handshake's table, and how often each.
    pub fn verdicts(&self) -> &BTreeMap<String, u64> {
        &self.verdicts
    }

    /// What else was reached, and how often.
    pub fn marks(&self) -> &BTreeMap<String, u64> {
        &self.marks
    }

    /// What happened to a core in which situation, and how often.
    pub fn cells(&self) -> &BTreeMap<(Situation, &'static str), u64> {
        &self.cells
    }

    /// A handshake came to this.
    pub fn verdict(&mut self, verdict: Verdict) {
        let name = super::coverage::verdict_name(verdict);
        *self.verdicts.entry(name).or_default() += 1;
    }

    /// An event came to a core that stood there.
    pub fn reached(&mut self, situation: Situation, event: &'static str) {
        *self.cells.entry((situation, event)).or_default() += 1;
    }

    /// A core is handed an event.
    pub fn event(&mut self, mirror: &Mirror, now: Time, event: &Event) {
        self.reached(mirror.situation(), mirror.occasion(now, event));
        if mirror.role() == Role::Primary
            && let Event::LinkDown { .. } = event
        {
            self.mark("link down at a Primary");
        }
    }

    /// A core tells something.
    pub fn notice(&mut self, notice: &Notice) {
        let name = match notice {
            Notice::Held { .. } => "held",
            Notice::Released => "released",
            Notice::ArbiterRefused { .. } => "arbiter refused",
            Notice::ArbiterUnreachable { .. } => "arbiter unreachable",
            Notice::DiskFailed { .. } => "disk failed",
            Notice::ReadRepaired { .. } => "read repaired",
            Notice::VerifyDone { .. } => "verify done",
            Notice::VerifyFound { .. } => "verify found differences",
            Notice::Stalled { .. } => "stalled",
            _ => return,
        };
        self.mark(name);
    }

    /// An operator orders.
    pub fn order(&mut self, command: &Command) {
        let name = match command {
            Command::Promote { force: false, .. } => "order: promote",
            Command::Promote { force: true, .. } => "order: promote --force",
            Command::PromoteFenced => "order: promote, fenced",
            Command::Demote { .. } => "order: demote",
            Command::Resync { .. } => "order: resync",
            Command::PauseSync => "order: pause-sync",
            Command::ResumeSync => "order: resume-sync",
            Command::Verify { .. } => "order: verify",
            Command::StopVerify => "order: stop verify",
            Command::Invalidate => "order: invalidate",
            Command::Disconnect => "order: disconnect",
            Command::Connect => "order: connect",
            Command::SetPeer { .. } => "order: remove-peer",
            Command::Stop => "order: down",
            Command::Set(_) => "order: reload",
        };
        self.mark(name);
    }

    /// And is told.
    pub fn order_done(&mut self, done: bool) {
        self.mark(if done {
            "orders carried out"
        } else {
            "orders refused"
        });
    }

    /// A request is answered.
    pub fn answer(&mut self, op: &Op, result: &Result<Bytes, IoError>) {
        let name = match (op, result) {
            (_, Err(IoError::NotPrimary)) => "answered: not Primary",
            (_, Err(IoError::Io)) => "answered: I/O error",
            (_, Err(IoError::NoSpace)) => "answered: no space",
            (_, Err(_)) => "answered: refused",
            (Op::Read { .. }, Ok(_)) => "answered: read",
            (Op::Write { .. }, Ok(_)) => "answered: write",
            (Op::Zero { .. }, Ok(_)) => "answered: zeroes",
            (Op::Discard { .. }, Ok(_)) => "answered: discard",
            (Op::Flush, Ok(_)) => "answered: flush",
        };
        self.mark(name);
    }
}
