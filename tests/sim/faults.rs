//! What breaks, and how it is mended.
//!
//! Only faults that the design survives are injected, each at any moment: during a metadata
//! write, a handshake, a resynchronisation or another fault. What a fault broke is mended after
//! a while, so that runs come back to the states in which more can happen.

mod front_end;
pub mod kit;
mod link;
pub(super) mod metadata;
pub(super) mod orders;
pub(super) mod rot;
mod unheard;
mod versions;

use kagami_replicator::core::DiskState;

use super::member::Ground;
use super::node::Node;
use super::profile::Cause;
use super::world::{Checked, Happening, MS, Phase, World};

/// Mends what is no fault of the disk.
const RESTART: u64 = 1;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A daemon dies; its machine goes on.
    DaemonDies,
    /// Both daemons die.
    BothDie,
    /// A machine crashes.
    MachineCrashes,
    /// Both machines crash.
    BothCrash,
    /// The link is cut.
    LinkCut,
    /// The link is cut one way.
    LinkCutOneWay,
    /// A session ends at one end; the other learns of it later.
    SessionEnds,
    /// A disk is slow.
    DiskSlow,
    /// A disk does nothing for a while.
    DiskStalls,
    /// A block can't be read.
    ReadFails,
    /// A disk fails whole, and is back, perhaps without what was not flushed, after a restart.
    DiskFails,
    /// A flush fails, and the next one succeeds.
    FlushFails,
    /// A disk hangs for longer than `ack-timeout`, its daemon dies, and a flush fails that nobody hears of.
    FlushFailsUnheard,
    /// A store is full.
    StoreFull,
    /// The arbiter is down.
    ArbiterDown,
    /// A machine is set back to an old image of its disks, with the copy's metadata.
    OldCopy,
    /// A daemon stands still (SIGSTOP, a machine that swaps), and finds all at once what came
    /// meanwhile.
    DaemonPauses,
    /// A metadata write or its flush fails, and so do all later ones of that daemon; the next
    /// daemon's succeed.
    MetadataFails,
    /// A metadata store does nothing for a while.
    MetadataStalls,
    /// Sectors of a metadata store go bad before the daemon starts.
    MetadataDamage,
    /// The link is cut and whole again many times within a second.
    LinkFlaps,
    /// Messages take many times as long.
    LinkSlow,
    /// One class of streams does not move for a while.
    StreamStalls,
    /// Other mirrors fill the link that they share with this one.
    LinkCrowded,
    /// An answer of the arbiter comes very late, twice, or to the daemon after the asker.
    ArbiterLate,
    /// A front end asks again for what was not answered.
    AsksAgain,
    /// A clock of another rate than at the boot before.
    ClockChanges,
    /// A daemon starts with another link protocol version.
    VersionChanges,
    /// Data of one copy go bad in silence.
    DataDamage,
}

impl Fault {
    /// Those that [`kit::Kit`] draws.
    pub const MORE: &'static [Self] = &[
        Self::MetadataFails,
        Self::MetadataStalls,
        Self::MetadataDamage,
        Self::LinkFlaps,
        Self::LinkSlow,
        Self::StreamStalls,
        Self::LinkCrowded,
        Self::ArbiterLate,
        Self::AsksAgain,
    ];

    /// The common ones.
    pub const ALL: &'static [Self] = &[
        Self::DaemonDies,
        Self::BothDie,
        Self::MachineCrashes,
        Self::BothCrash,
        Self::LinkCut,
        Self::LinkCutOneWay,
        Self::SessionEnds,
        Self::DiskSlow,
        Self::DiskStalls,
        Self::ReadFails,
        Self::DiskFails,
        Self::FlushFails,
        Self::StoreFull,
        Self::ArbiterDown,
        Self::DaemonPauses,
    ];

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::DaemonDies => "daemon dies",
            Self::BothDie => "both daemons die",
            Self::MachineCrashes => "machine crashes",
            Self::BothCrash => "both machines crash",
            Self::LinkCut => "link cut",
            Self::LinkCutOneWay => "link cut one way",
            Self::SessionEnds => "session ends",
            Self::DiskSlow => "disk slow",
            Self::DiskStalls => "disk stalls",
            Self::ReadFails => "read fails",
            Self::DiskFails => "disk fails",
            Self::FlushFails => "flush fails",
            Self::FlushFailsUnheard => "flush fails unheard",
            Self::StoreFull => "store full",
            Self::ArbiterDown => "arbiter down",
            Self::DaemonPauses => "daemon pauses",
            Self::MetadataFails => "metadata write fails",
            Self::MetadataStalls => "metadata stalls",
            Self::MetadataDamage => "metadata damaged",
            Self::LinkFlaps => "link flaps",
            Self::LinkSlow => "link slow",
            Self::StreamStalls => "stream stalls",
            Self::LinkCrowded => "link crowded by other mirrors",
            Self::ArbiterLate => "arbiter late or twice",
            Self::AsksAgain => "front end asks again",
            Self::ClockChanges => "clock of another rate",
            Self::VersionChanges => "link version changes",
            Self::DataDamage => "data damaged",
            Self::OldCopy => "old copy put back",
        }
    }
}

impl World {
    /// Something breaks, and the next fault is planned.
    pub(super) fn break_something(&mut self) -> Checked {
        if self.phase != Phase::Storm {
            return Ok(());
        }
        if let Some(every) = self.options.fault_every_ns {
            let delay = self.fault_rng.around(every);
            self.plan(delay, Happening::Break);
        }
        let weights: Vec<u64> = self
            .options
            .faults
            .iter()
            .map(|(_, weight)| *weight)
            .collect();
        if let Some(nth) = self.fault_rng.weighted(&weights) {
            let node = self.fault_rng.node();
            return self.inject(self.options.faults[nth].0, node);
        }
        Ok(())
    }

    pub(super) fn inject(&mut self, fault: Fault, node: usize) -> Checked {
        let timeout = self.options.settings.timeout_ms * MS;
        let name = self.nodes[node].name;
        let line = self.trace.len();
        let lasts = match self.fault_rng.below(20) {
            0..12 => self.fault_rng.around(timeout / 8),
            12..17 => self.fault_rng.around(timeout),
            _ => self.fault_rng.around(timeout * 4),
        };
        let lasts = match self.options.faults_last_ns {
            Some(mean) => self.fault_rng.around(mean),
            None => lasts,
        };
        let change = 0;
        let mend = Happening::Mend {
            fault,
            node,
            change,
        };
        let injected = match fault {
            Fault::DaemonDies => self.kill(node, lasts),
            Fault::BothDie => {
                let later = self.fault_rng.around(timeout);
                self.kill(node, lasts) | self.kill(1 - node, lasts / 2 + later)
            }
            Fault::MachineCrashes => self.power_off(node, lasts),
            Fault::BothCrash => {
                let later = self.fault_rng.around(timeout);
                self.power_off(node, lasts) | self.power_off(1 - node, lasts / 2 + later)
            }
            Fault::LinkCut | Fault::LinkCutOneWay => {
                let whole = self.net.is_whole();
                let mut blocked = [true, true];
                blocked[1 - node] = fault == Fault::LinkCut;
                self.block(blocked);
                let change = self.net.changes;
                self.plan(
                    lasts,
                    Happening::Mend {
                        fault,
                        node,
                        change,
                    },
                );
                whole
            }
            Fault::SessionEnds => match self.net.used_by(node) {
                Some(session) => {
                    let reason = "the network dropped it";
                    if self.member.is_some() {
                        self.connection_ends(node, reason)?;
                    } else {
                        self.link_down(session, node, reason)?;
                    }
                    true
                }
                None => false,
            },
            Fault::DiskSlow => {
                self.nodes[node].slow = self.fault_rng.between(10, 200);
                self.plan(lasts, mend);
                true
            }
            Fault::DiskStalls => {
                let stalled = &mut self.nodes[node].stalled_until;
                *stalled = (*stalled).max(self.now + lasts);
                true
            }
            Fault::ReadFails => {
                let block = self.fault_rng.pick(&self.options.hot_spots);
                // on one node only: what neither can read is lost to any mirror
                let other = self.nodes[1 - node].store.unreadable.is_empty();
                other && self.nodes[node].store.unreadable.insert(block)
            }
            Fault::DiskFails => self.fail_disk(node, lasts),
            Fault::FlushFails => {
                // one disk at a time: of two that lose what they acknowledged nothing is promised
                let fits = self.may_fail_disk(node);
                self.nodes[node].store.fail_flush |= fits;
                if fits {
                    self.nodes[node].store_suspect = true;
                    self.plan(
                        lasts + 2 * timeout,
                        Happening::Mend {
                            fault: Fault::DiskFails,
                            node,
                            change,
                        },
                    );
                }
                fits
            }
            Fault::StoreFull => {
                self.nodes[node].store.full = true;
                self.plan(lasts, mend);
                true
            }
            Fault::ArbiterDown => {
                self.arbiter.down = true;
                self.tell(|| Ground::ArbiterDown(true));
                self.plan(lasts, mend);
                true
            }
            Fault::OldCopy => self.put_back(node, lasts),
            Fault::DaemonPauses => {
                let lives = self.nodes[node].mirror.is_some();
                if lives {
                    let until = self.now + lasts;
                    self.nodes[node].paused_until = until;
                    self.tell(|| Ground::Pause { node, until });
                    self.plan(lasts, Happening::Resume { node });
                }
                lives
            }
            Fault::MetadataFails | Fault::MetadataStalls | Fault::MetadataDamage => {
                self.inject_metadata(fault, node, lasts)
            }
            Fault::LinkFlaps | Fault::LinkSlow | Fault::StreamStalls | Fault::LinkCrowded => {
                self.inject_link(fault, node, lasts)
            }
            Fault::AsksAgain => self.ask_again(node)?,
            Fault::FlushFailsUnheard => self.hang_unheard(node),
            // these are drawn elsewhere, and counted there
            Fault::ArbiterLate
            | Fault::ClockChanges
            | Fault::VersionChanges
            | Fault::DataDamage => false,
        };
        if injected {
            self.ghost.last_fault = self.ghost.last_fault.max(self.now);
            self.sequels(Cause::Fault(fault), node);
            self.stats.fault(fault);
            self.trace.line_at(line, || {
                format!("{:>10} fault: {} ({name})", self.now / 1000, fault.name())
            });
        }
        Ok(())
    }

    fn kill(&mut self, node: usize, down: u64) -> bool {
        if self.nodes[node].mirror.is_none() && self.nodes[node].repairing.is_none() {
            return false;
        }
        self.kill_daemon(node);
        self.start_in(node, down);
        true
    }

    pub(super) fn power_off(&mut self, node: usize, down: u64) -> bool {
        if !self.nodes[node].up {
            return false;
        }
        self.crash(node);
        self.plan(down, Happening::Boot { node });
        true
    }

    pub(super) fn may_fail_disk(&self, node: usize) -> bool {
        let fine = |at: &Node| !at.store.failed && !at.store_suspect && !at.hangs;
        self.nodes.iter().all(fine) && self.nodes[node].up
    }

    fn fail_disk(&mut self, node: usize, lasts: u64) -> bool {
        if !self.may_fail_disk(node) {
            return false;
        }
        let at = &mut self.nodes[node];
        at.store.failed = true;
        at.store_suspect = true;
        let (fault, change) = (Fault::DiskFails, 0);
        self.plan(
            lasts,
            Happening::Mend {
                fault,
                node,
                change,
            },
        );
        true
    }

    /// What a fault broke is as before; `change` names the blockade of the link.
    pub(super) fn mend(&mut self, fault: Fault, node: usize, change: u64) -> Checked {
        let name = self.nodes[node].name;
        self.ghost.last_fault = self.ghost.last_fault.max(self.now);
        match fault {
            Fault::LinkCut | Fault::LinkCutOneWay => {
                if self.net.changes == change {
                    self.trace
                        .line(|| format!("{:>10} link whole", self.now / 1000));
                    self.block([false, false]);
                }
            }
            Fault::LinkFlaps => self.flap(change),
            Fault::FlushFailsUnheard => self.die_unheard(node, change),
            Fault::LinkSlow => {
                self.net.slow = 1;
                self.tell(|| Ground::Slow(1));
            }
            Fault::DiskSlow => self.nodes[node].slow = 1,
            Fault::StoreFull => self.nodes[node].store.full = false,
            Fault::ArbiterDown => {
                self.arbiter.down = false;
                self.tell(|| Ground::ArbiterDown(false));
            }
            Fault::DiskFails if change == RESTART => {
                let at = &self.nodes[node];
                if !at.store_suspect && at.seen.disk == DiskState::Failed {
                    self.kill_daemon(node);
                    self.start_in(node, MS);
                }
            }
            Fault::DiskFails => {
                if self.nodes[node].store_suspect {
                    self.trace
                        .line(|| format!("{:>10} {name} disk is back", self.now / 1000));
                    self.replace_disk(node);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The copy counts as failed, though the disk does not (it was full): an operator restarts
    /// the daemon.
    pub(super) fn restart_later(&mut self, node: usize) {
        if self.stall().is_some() {
            return; // it would fail again, and its daemon is the others', too
        }
        let delay = self.fault_rng.around(self.options.order_every_ns);
        let (fault, change) = (Fault::DiskFails, RESTART);
        self.plan(
            delay,
            Happening::Mend {
                fault,
                node,
                change,
            },
        );
    }

    /// The copy counts as failed since before: nobody has restarted the daemon for it.
    pub(super) fn restart_if_failed(&mut self, node: usize) {
        if self.nodes[node].seen.disk == DiskState::Failed && !self.nodes[node].store_suspect {
            self.restart_later(node);
        }
    }

    /// An operator restarts the daemon with the disk that had failed: it is there again, with
    /// any part of what no flush had covered.
    pub(super) fn replace_disk(&mut self, node: usize) {
        if self.nodes[node].mirror.is_some() || self.nodes[node].repairing.is_some() {
            self.kill_daemon(node);
        }
        self.nodes[node].store_suspect = false;
        self.open_store(node);
        let delay = self.rng.around(5 * MS);
        self.start_in(node, delay);
    }
}
