//! The front ends: what they ask for, and whether the answers are right.
//!
//! Most requests go to a few blocks, so that they overlap each other, a resynchronisation and
//! whatever a fault left there. An answer is checked against the history the moment it is given.

use bytes::Bytes;
use kagami_replicator::core::event::{Event, IoError, Request};
use kagami_replicator::core::state::{RequestId, Role};
use kagami_replicator::shell::buffers::Buffer;

use super::content::{self, SECTORS, Value, ZERO};
use super::room::request_in;
use super::world::{Checked, Happening, Phase, World};

/// What a front end asked for. Units are sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads.
    Read { sector: u64, count: u64 },
    /// Writes; `fua`: to stable storage.
    Write {
        sector: u64,
        values: Vec<Value>,
        fua: bool,
    },
    /// Writes zeroes.
    Zero {
        sector: u64,
        count: u64,
        unmap: bool,
        fua: bool,
    },
    /// Discards.
    Discard { sector: u64, count: u64, fua: bool },
    /// Flushes.
    Flush,
}

/// A request without an answer.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Whom it was sent to.
    pub node: usize,
    /// What it asks.
    pub op: Op,
    /// The event it came with.
    pub start: u64,
    /// When, ns.
    pub since: u64,
}

impl Op {
    pub(super) fn request(&self) -> Request {
        let bytes = |sectors: u64| sectors * content::SECTOR as u64;
        match self {
            Self::Read { sector, count } => Request::Read {
                offset: bytes(*sector),
                len: bytes(*count) as u32,
            },
            Self::Write {
                sector,
                values,
                fua,
            } => Request::Write {
                offset: bytes(*sector),
                data: content::to_bytes(values),
                fua: *fua,
            },
            Self::Zero {
                sector,
                count,
                unmap,
                fua,
            } => Request::WriteZeroes {
                offset: bytes(*sector),
                len: bytes(*count),
                unmap: *unmap,
                fua: *fua,
            },
            Self::Discard { sector, count, fua } => Request::Discard {
                offset: bytes(*sector),
                len: bytes(*count),
                fua: *fua,
            },
            Self::Flush => Request::Flush,
        }
    }

    /// The sectors that it may change, and what it puts there.
    pub fn writes(&self) -> Box<dyn Iterator<Item = (u64, Value)> + '_> {
        match self {
            Self::Write { sector, values, .. } => Box::new((*sector..).zip(values.iter().copied())),
            Self::Zero { sector, count, .. } | Self::Discard { sector, count, .. } => {
                Box::new((*sector..sector + count).map(|sector| (sector, ZERO)))
            }
            Self::Read { .. } | Self::Flush => Box::new(std::iter::empty()),
        }
    }

    /// True if its answer says that the data are there (a discard may do nothing).
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zero { .. })
    }

    /// True if its answer says that it is on stable storage.
    pub fn is_fua(&self) -> bool {
        matches!(
            self,
            Self::Write { fua: true, .. } | Self::Zero { fua: true, .. }
        )
    }
}

/// A span of sectors around a hot spot, or anywhere.
fn draw_span(world: &mut World) -> (u64, u64) {
    let sectors = world.options.sectors();
    let rng = &mut world.load_rng;
    let unit = SECTORS as u64;
    let block = if world.options.in_turn {
        world.options.hot_spots[world.sent as usize % world.options.hot_spots.len()]
    } else if rng.percent(90) {
        rng.pick(&world.options.hot_spots)
    } else {
        rng.below(sectors.div_ceil(unit))
    };
    let (sector, count) = match rng.below(10) {
        // whole blocks
        0..6 => (block * unit, unit * rng.pick(&[1, 1, 1, 2, 4, 16])),
        // within one block or across its edge
        6..9 => (block * unit + rng.below(unit), rng.between(1, 12)),
        _ => (block * unit + rng.below(unit), rng.between(1, 200)),
    };
    let sector = sector.min(sectors - 1);
    (sector, count.min(sectors - sector))
}

impl World {
    /// A front end sends its next request, if its turn has come.
    pub(super) fn client(&mut self) -> Checked {
        if self.phase != Phase::Storm {
            return Ok(());
        }
        let think = self.load_rng.around(self.options.think_ns);
        if self.sent_requests() >= self.options.requests || self.now > super::calm::LONGEST_STORM {
            if !self.waits_for_others() {
                self.calm();
            }
            return Ok(());
        }
        self.ask_next_daemon()?;
        let served = self
            .nodes
            .iter()
            .any(|node| node.seen.role == Role::Primary);
        let node = self.draw_node();
        let waits = self.pending.len() + self.asked() >= self.options.depth
            || !served && !self.load_rng.percent(5);
        if self.nodes[node].mirror.is_none() || waits {
            self.plan(think.max(5_000_000), Happening::Client);
            return Ok(());
        }
        self.plan(think, Happening::Client);
        let op = self.draw_op();
        self.request(node, op)
    }

    fn sent_requests(&self) -> u64 {
        self.stats.requests
    }

    /// Mostly the Primary; now and then the other, which must refuse.
    fn draw_node(&mut self) -> usize {
        let primary = |node: usize| self.nodes[node].seen.role == Role::Primary;
        let likely = match (primary(0), primary(1)) {
            (true, false) => 0,
            (false, true) => 1,
            _ => self.load_rng.node(),
        };
        if self.load_rng.percent(3) {
            1 - likely
        } else {
            likely
        }
    }

    pub(super) fn draw_op(&mut self) -> Op {
        let (sector, count) = draw_span(self);
        let kind = self.load_rng.below(100);
        let fua = self.load_rng.percent(15);
        match kind {
            0..25 => Op::Read { sector, count },
            25..80 => {
                self.writes += 1;
                let number = self.writes;
                let values = (sector..sector + count)
                    .map(|sector| content::value(sector, number))
                    .collect();
                Op::Write {
                    sector,
                    values,
                    fua,
                }
            }
            80..85 => Op::Zero {
                sector,
                count,
                unmap: self.load_rng.coin(),
                fua,
            },
            85..88 => Op::Discard { sector, count, fua },
            _ => Op::Flush,
        }
    }

    /// Sends a request to a node.
    pub(super) fn request(&mut self, node: usize, op: Op) -> Checked {
        match self.room_to_ask(node, op) {
            Some((op, buffer)) => self.ask(node, op, buffer),
            None => Ok(()),
        }
    }

    /// The node's daemon has all of it, in this memory where that has a bound.
    pub(super) fn ask(&mut self, node: usize, op: Op, buffer: Option<Buffer>) -> Checked {
        self.sent += 1;
        self.stats.requests += 1;
        let (id, start) = (self.sent, self.tick + 1);
        for (sector, value) in op.writes() {
            self.history.begin(sector, value, start, node);
        }
        let request = request_in(&op, buffer);
        let since = self.now;
        let pending = Pending {
            node,
            op,
            start,
            since,
        };
        self.pending.insert(id, pending);
        self.feed(
            node,
            Event::Request {
                id: RequestId(id),
                request,
            },
        )
    }

    /// A core answers a request.
    pub(super) fn complete(
        &mut self,
        node: usize,
        id: u64,
        result: Result<Bytes, IoError>,
    ) -> Checked {
        self.answer_taken(node, RequestId(id), result.as_ref());
        if self.is_abandoned(node, id) {
            return Ok(());
        }
        let Some(pending) = self
            .pending
            .remove(&id)
            .filter(|pending| pending.node == node)
        else {
            return Err(self.violation(
                "Once",
                format!("request {id} is answered at {node} and was not asked there"),
            ));
        };
        self.stats.answer(&pending.op, &result);
        let answered = result.is_ok() && pending.op.is_write();
        let end = self.tick;
        for (sector, _) in pending.op.writes() {
            self.history.end(sector, pending.start, end, answered);
        }
        if result.is_ok() {
            self.check_one_service(node, &pending)?;
            self.mark_guest(node, &pending.op);
        }
        match (&pending.op, result) {
            (_, Err(error)) => self.check_refusal(node, &pending, error),
            (Op::Read { sector, count }, Ok(bytes)) => {
                self.check_read(node, &pending, *sector, *count, &bytes)
            }
            (Op::Flush, Ok(_)) => self.check_flush(node, &pending),
            (Op::Write { .. } | Op::Zero { .. }, Ok(_)) => self.check_write(node, &pending),
            (Op::Discard { .. }, Ok(_)) => Ok(()),
        }
    }

    /// The daemon is gone: nobody will answer its requests.
    pub(super) fn give_up_requests(&mut self, node: usize) {
        let gone: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, one)| one.node == node)
            .map(|(id, _)| *id)
            .collect();
        self.abandoned.retain(|_, asked| *asked != node);
        for id in gone {
            if let Some(pending) = self.pending.remove(&id) {
                self.remember_unanswered(node, &pending.op);
                for (sector, _) in pending.op.writes() {
                    self.history.end(sector, pending.start, self.tick, false);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_stay_within_the_mirror() {
        for seed in 0..30 {
            let profile = super::super::profile::Profile::General;
            let mut world = World::new(profile, seed, super::super::replay::Trace::off());
            let sectors = world.options.sectors();
            for _ in 0..200 {
                let (sector, count) = draw_span(&mut world);
                assert!(count > 0 && sector + count <= sectors);
            }
        }
    }
}
