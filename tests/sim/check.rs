//! What must hold, checked from outside the cores: one function for each name of
//! docs/design.md §4 that answers show, but for *Liveness* (`refusals`, `in_time`) and
//! *Converges* (`calm`). `marked` and `lines` hold those that stores and records show; a core's
//! own assertions are those that one node alone can check.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kagami_bitmap::superblock::Record;
use kagami_replicator::core::decide::{Refused, Verdict};
use kagami_replicator::core::disk::DiskOp;
use kagami_replicator::core::register::Register;
use kagami_replicator::core::state::{Attempt, Protocol, Role};
use kagami_replicator::core::{Connection, DiskState};

use super::content::{self, SECTORS, Value};
use super::history::Level;
use super::lines::Term;
use super::workload::{Op, Pending};
use super::world::{Checked, World};

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: String,
    /// What is, and what must be.
    pub what: String,
}

impl Violation {
    /// A violation of `invariant`.
    pub fn new(invariant: &str, what: impl Into<String>) -> Self {
        Self {
            invariant: invariant.to_owned(),
            what: what.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// What the checks remember.
#[derive(Clone, Debug, Default)]
pub struct Ghost {
    /// Blocks that may differ from zeroes on a copy.
    pub touched: BTreeSet<u64>,
    /// The record that each node had last.
    pub records: [Option<Record>; 2],
    /// Every generation, with the one before it.
    pub parents: BTreeMap<u64, Option<u64>>,
    /// The times that a node was Primary.
    pub terms: Vec<Term>,
    /// The event at which each node closed its session to have resynchronised what a verification found.
    pub met_anew: [u64; 2],
    /// When each copy was last not up to date.
    pub not_good: [u64; 2],
    /// Generations in which a node was Primary.
    pub served: BTreeSet<u64>,
    /// Questions to the arbiter whose answer was heard: one that comes twice is waited for no more.
    pub answered: BTreeSet<Attempt>,
    /// When each node answered a request with success, in order, and when the newest of those that it
    /// has answered by then had begun.
    pub answers: [Vec<(u64, u64)>; 2],
    /// A guest is without its source.
    pub guest_waits: [bool; 2],
    /// Who answered writes last in each generation: the term, and whose copy held them.
    pub answered_in: BTreeMap<u64, (usize, usize)>,
    /// The first verdict of each session.
    pub verdicts: BTreeMap<u64, Verdict>,
    /// The arbiter's register before the newest swap.
    pub register: Option<Register>,
    /// Of the arbiter that is being replaced.
    pub old_register: Option<Register>,
    /// When the nodes last refused each other, ns, and why.
    pub refused: Option<(u64, Refused)>,
    /// An operator's word overrode a rule.
    pub operator_chose: bool,
    /// An operator invalidated a copy.
    pub invalidated: bool,
    /// A session ended.
    pub cut: bool,
    /// The last requests were sent.
    pub last_words: bool,
    /// A copy was invalidated for a reason: what it held is gone once nobody counts on it.
    pub damage_due: [bool; 2],
    /// Old images of the nodes' disks.
    pub images: [Option<super::restore::Image>; 2],
    /// When each node's disk last had a block that could not be read, ns, if it has none now.
    pub unreadable_until: [Option<u64>; 2],
    /// When the last fault was injected, ns.
    pub last_fault: u64,
    /// When an operator gave the last order, ns.
    pub last_order: u64,
    /// What began while a disk or the link was slow ends by then, ns.
    pub drags_until: u64,
    /// A question to the arbiter whose answer does not come in time is asked again by then, ns.
    pub unanswered_until: u64,
    /// What stood in the way of each node's answers.
    pub hindered: [super::in_time::Hindered; 2],
    /// A source has had nothing left to copy since then, ns, in this session.
    pub nothing_left: [Option<(u64, u64)>; 2],
    /// Whose copy is to stay.
    pub words: super::words::Words,
}

impl Ghost {
    /// True if the last handshake led nowhere without an operator.
    pub fn refused_lately(&self) -> bool {
        self.refused.is_some()
    }
}

impl World {
    /// A violation that shows now.
    pub fn violation(&self, invariant: &str, what: impl Into<String>) -> Violation {
        Violation::new(invariant, what)
    }

    /// No promise about reads: the copies may have forked.
    pub(super) fn is_weak(&self) -> bool {
        // (Or an operator gave up the newest copy, and then took the other one.)
        let chosen = self.ghost.operator_chose;
        self.options.may_fork() && (self.ghost.cut || chosen) || self.ghost.invalidated && chosen
    }

    /// *Read-your-writes*, one half: two writes of a block are never under way on a disk at once,
    /// whose order would be chance. *Integrity*: nothing is written that nobody sent.
    pub(super) fn check_disk_op(&mut self, node: usize, op: &DiskOp) -> Checked {
        let (offset, len) = match op {
            DiskOp::Write { offset, data, .. } => (*offset, data.len() as u64),
            DiskOp::Zero { offset, len, .. } => (*offset, *len),
            DiskOp::Read { offset, len } => {
                if offset + u64::from(*len) > self.options.store_blocks() * 4096 {
                    return Err(
                        self.violation("Integrity", format!("a read beyond the store: {op:?}"))
                    );
                }
                return Ok(());
            }
            DiskOp::Flush => return Ok(()),
        };
        let blocks = offset / 4096..(offset + len) / 4096;
        if blocks.end > self.options.store_blocks() {
            return Err(self.violation(
                "Integrity",
                format!("a write beyond the store at {offset}+{len}"),
            ));
        }
        if let Some(block) = self.nodes[node].store.write_under_way(&blocks) {
            let name = self.nodes[node].name;
            let what =
                format!("two writes of block {block} are under way to {name}'s disk at once");
            return Err(self.violation("Read-your-writes", what));
        }
        if let DiskOp::Write { data, .. } = op {
            let sectors = blocks.start * SECTORS as u64..;
            for (sector, value) in sectors.zip(content::from_bytes(data)) {
                match value {
                    Some(value) if content::belongs(value, sector) => {
                        if value != self.nodes[node].store.sector(sector) {
                            self.ghost.touched.insert(sector / SECTORS as u64);
                        }
                    }
                    other => {
                        let what = format!("{other:x?} is written to sector {sector}");
                        return Err(self.violation("Integrity", what));
                    }
                }
            }
        } else {
            let store = &self.nodes[node].store;
            let changed = blocks.filter(|block| store.block(*block) != content::ZEROES);
            self.ghost.touched.extend(changed);
        }
        Ok(())
    }

    /// Only a Primary answers.
    fn check_answerer(&self, node: usize, pending: &Pending) -> Checked {
        let now = self.nodes[node].mirror.as_ref().map(|mirror| mirror.role());
        if now == Some(Role::Primary) || self.nodes[node].seen.role == Role::Primary {
            return Ok(());
        }
        let what = format!(
            "{} answers {} as Secondary",
            self.nodes[node].name,
            brief(&pending.op)
        );
        Err(self.violation("One-writer", what))
    }

    /// *One-writer*, as an application sees it: nothing was asked of the other node after this one became
    /// Primary, and answered before this request began. What an application remembers of the data is
    /// true then. (A discard may come to nothing: whoever answers one has not said anything of the data.)
    pub(super) fn check_one_service(&mut self, node: usize, pending: &Pending) -> Checked {
        if matches!(pending.op, Op::Discard { .. }) {
            return Ok(());
        }
        let answers = &mut self.ghost.answers[node];
        let newest = answers.last().map_or(0, |(_, begun)| *begun);
        answers.push((self.tick, newest.max(pending.start)));
        let Some(term) = self.nodes[node].seen.term else {
            return Ok(()); // it became Primary with this very event
        };
        let began = self.ghost.terms[term].began;
        let others = &self.ghost.answers[1 - node];
        let before = others.partition_point(|(at, _)| *at < pending.start);
        let newest = before.checked_sub(1).map(|nth| others[nth].1);
        if newest.is_none_or(|at| at < began) || self.options.may_fork() || self.is_weak() {
            return Ok(());
        }
        let what = format!(
            "{} answers {}, and has been Primary since before {} answered something",
            self.nodes[node].name,
            brief(&pending.op),
            self.nodes[1 - node].name
        );
        Err(self.violation("One-writer", what))
    }

    /// *Read-your-writes* and *Integrity*: a read finds the newest write answered before it
    /// began, or a later one; after a loss that is allowed, what was flushed.
    pub(super) fn check_read(
        &mut self,
        node: usize,
        pending: &Pending,
        sector: u64,
        count: u64,
        bytes: &[u8],
    ) -> Checked {
        self.check_answerer(node, pending)?;
        let name = self.nodes[node].name;
        if bytes.len() as u64 != count * content::SECTOR as u64 {
            return Err(self.violation(
                "Integrity",
                format!("{name} answers {count} sectors with {} bytes", bytes.len()),
            ));
        }
        for (sector, value) in (sector..).zip(content::from_bytes(bytes)) {
            let Some(value) = value.filter(|value| content::belongs(*value, sector)) else {
                return Err(self.violation(
                    "Integrity",
                    format!("{name} reads at sector {sector} what nobody wrote there"),
                ));
            };
            self.check_found(node, sector, value, pending.start)?;
        }
        Ok(())
    }

    fn check_found(&mut self, node: usize, sector: u64, value: Value, bound: u64) -> Checked {
        if self.history.may_find(sector, value, bound, Level::Newest) {
            return Ok(());
        }
        let flushed = self.history.may_find(sector, value, bound, Level::Flushed);
        let counted = self.counted(node);
        // It answers from its own copy, if that counts.
        let on = if counted.contains(&node) {
            [node == 0, node == 1]
        } else {
            [true; 2]
        };
        if self.is_weak() || flushed && self.may_be_lost(sector, value, bound, on) {
            for copy in counted {
                self.doubt_what_lands(copy, sector, value, bound);
            }
            self.history.settle(sector, value, bound);
            return Ok(());
        }
        let what = format!(
            "{} reads w{} at sector {sector} (block {}); there are: {}{}",
            self.nodes[node].name,
            content::writer(value),
            sector / SECTORS as u64,
            self.history.describe(sector),
            if flushed {
                ""
            } else {
                "; a flushed write is missing"
            },
        );
        Err(self.violation("Read-your-writes", what))
    }

    /// True if an unflushed write there may be gone (docs/protocol.md §10): a crash took it from one of
    /// these copies, or the protocol answered it early and the other node took over since.
    fn may_be_lost(&self, sector: u64, value: Value, bound: u64, on: [bool; 2]) -> bool {
        let surviving = Level::Surviving { on };
        if self.history.may_find(sector, value, bound, surviving) {
            return true;
        }
        let early = self.may_answer_early();
        let replaced = self.history.replaced_at(sector, value);
        let changed_hands = self
            .ghost
            .terms
            .iter()
            .any(|term| replaced.is_some_and(|at| term.began > at));
        early && changed_hands
    }

    /// *Durable-both*, and *One-writer* by the copies that hold the write.
    pub(super) fn check_write(&mut self, node: usize, pending: &Pending) -> Checked {
        self.check_answerer(node, pending)?;
        self.check_held(node, pending)?;
        self.check_line_of_write(node)?;
        if pending.op.is_fua() {
            self.history.early = self.may_answer_early();
            let sectors: Vec<u64> = pending.op.writes().map(|(sector, _)| sector).collect();
            let oldest = self.oldest_request();
            for sector in sectors {
                let level = Level::Write {
                    start: pending.start,
                };
                self.check_durable(node, sector, self.tick, level, "FUA write")?;
                self.history.flushed_one(sector, pending.start, oldest);
            }
        }
        Ok(())
    }

    /// *Durable-both*: what had been answered before the flush began is on stable storage on
    /// each copy that counts.
    pub(super) fn check_flush(&mut self, node: usize, pending: &Pending) -> Checked {
        self.check_answerer(node, pending)?;
        let stands = !self.counted(node).is_empty() || self.has_lost_peer(node) || self.is_weak();
        if !stands && self.history.owes_flush(pending.start) {
            let what = format!(
                "{} answers a flush, and no copy counts",
                self.nodes[node].name
            );
            return Err(self.violation("Durable-both", what));
        }
        for sector in self.history.unflushed().collect::<Vec<_>>() {
            self.check_durable(node, sector, pending.start, Level::Newest, "flush")?;
        }
        self.history.early = self.may_answer_early();
        self.history.flushed(pending.start, self.oldest_request());
        Ok(())
    }

    /// When the oldest request without an answer began.
    fn oldest_request(&self) -> u64 {
        self.pending
            .values()
            .map(|pending| pending.start)
            .min()
            .unwrap_or(self.tick)
    }

    /// The copies that count as UpToDate for the Primary.
    fn counted(&self, node: usize) -> Vec<usize> {
        let Some(mirror) = &self.nodes[node].mirror else {
            return Vec::new();
        };
        let status = mirror.status(self.local(node));
        let mut counted = Vec::new();
        if !by_the_other(status.disk) {
            counted.push(node);
        }
        let there = status.connection == Connection::Connected && !self.has_lost_peer(node);
        if there && status.peer_disk == DiskState::UpToDate {
            counted.push(1 - node);
        }
        counted
    }

    /// True if the disk that the node's session counts on was taken away, and the node has not
    /// noticed yet: an operator saw to it that nothing is lost with it.
    fn has_lost_peer(&self, node: usize) -> bool {
        let peer = 1 - node;
        self.net
            .life_met(node)
            .is_some_and(|life| life < self.nodes[peer].disk_since)
    }

    /// What the peer sent before it went may be under way to this disk still, on which `value` was found.
    fn doubt_what_lands(&mut self, copy: usize, sector: u64, value: Value, bound: u64) {
        let (block, nth) = (sector / SECTORS as u64, sector as usize % SECTORS);
        let landed = self.nodes[copy].store.after_all_landed(block)[nth];
        if landed != value {
            self.history.doubt(sector, landed, bound);
        }
    }

    pub(super) fn check_durable(
        &mut self,
        node: usize,
        sector: u64,
        bound: u64,
        level: Level,
        what: &str,
    ) -> Checked {
        let (block, nth) = (sector / SECTORS as u64, sector as usize % SECTORS);
        for copy in self.counted(node) {
            if self.rot.is_of(copy, block) {
                continue;
            }
            let value = self.nodes[copy].store.durable(block)[nth];
            if self.history.may_find(sector, value, bound, level) {
                continue;
            }
            let on = [copy == 0, copy == 1];
            if self.is_weak() || self.may_be_lost(sector, value, bound, on) {
                self.doubt_what_lands(copy, sector, value, bound);
                self.history.settle(sector, value, bound);
                continue;
            }
            let text = format!(
                "{} answers a {what}, and {} has w{} of sector {sector} (block {block}) on stable storage; there are: {}",
                self.nodes[node].name,
                self.nodes[copy].name,
                content::writer(value),
                self.history.describe(sector),
            );
            return Err(self.violation("Durable-both", text));
        }
        Ok(())
    }

    /// Which copies hold what the history says of these sectors.
    fn holds(&self, copy: usize, pending: &Pending) -> bool {
        let store = &self.nodes[copy].store;
        let mut sectors = pending.op.writes().map(|(sector, _)| sector);
        sectors.all(|sector| {
            self.history
                .may_find(sector, store.sector(sector), self.tick, Level::Newest)
        })
    }

    /// *One-writer*: a write that only one copy holds is answered only in a generation that the
    /// other copy does not have.
    fn check_held(&mut self, node: usize, pending: &Pending) -> Checked {
        let lost = pending
            .op
            .writes()
            .any(|(sector, _)| self.history.is_lost(sector, pending.start));
        let name = self.nodes[node].name;
        let (here, there) = (self.holds(node, pending), self.holds(1 - node, pending));
        let copy = match (here, there) {
            (true, true) => return Ok(()),
            (false, false) => {
                // (Of a fork, the history knows the newest write of either side.)
                if lost || self.is_weak() {
                    return Ok(());
                }
                // A part of it was answered early, before the disk failed: on its way to the carrier.
                if self.answers_early(node) && !self.counted(node).contains(&node) {
                    return Ok(());
                }
                let what = format!("{name} answers {}, which no copy holds", brief(&pending.op));
                return Err(self.violation("Read-your-writes", what));
            }
            (true, false) => node,
            (false, true) => 1 - node,
        };
        if lost || self.has_lost_peer(node) || self.answers_early(node) {
            return Ok(());
        }
        let (Some(holder), Some(other)) = (
            self.nodes[copy].meta.record(),
            self.nodes[1 - copy].meta.record(),
        ) else {
            return Ok(());
        };
        let shared = holder
            .current
            .is_none_or(|current| other.in_line(current.tag));
        if shared {
            let what = format!(
                "{name} answers {}, which only {} holds, in generation {:?}, which the other copy has",
                brief(&pending.op),
                self.nodes[copy].name,
                holder.current.map(|current| current.counter),
            );
            return Err(self.violation("One-writer", what));
        }
        Ok(())
    }

    pub(super) fn may_answer_early(&self) -> bool {
        self.options.settings.protocol != Protocol::C || self.options.kit.protocols
    }

    /// Protocols A and B, in sync: an unflushed write is answered before the peer has it on disk.
    fn answers_early(&self, node: usize) -> bool {
        self.may_answer_early() && self.counted(node).contains(&(1 - node))
    }
}

/// A request in a few words.
pub fn brief(op: &Op) -> String {
    match op {
        Op::Read { sector, count } => format!("read {sector}+{count}"),
        Op::Write {
            sector,
            values,
            fua,
        } => {
            let writer = values.first().map_or(0, |value| content::writer(*value));
            let fua = if *fua { " fua" } else { "" };
            format!("write w{writer} {sector}+{}{fua}", values.len())
        }
        Op::Zero {
            sector, count, fua, ..
        } => format!("zero {sector}+{count}{}", if *fua { " fua" } else { "" }),
        Op::Discard { sector, count, .. } => format!("discard {sector}+{count}"),
        Op::Flush => "flush".to_owned(),
    }
}

/// True if a Primary with such a copy is answered for by the other node: its disk is gone, or it
/// is still being resynchronised.
pub fn by_the_other(disk: DiskState) -> bool {
    matches!(
        disk,
        DiskState::Failed | DiskState::Diskless | DiskState::Inconsistent
    )
}
