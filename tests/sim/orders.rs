//! The operators: what they order, when, and what they are told.
//!
//! Somebody (a person or a failover manager) always wants a Primary; the other orders come at
//! any moment. An order that would give up data is given only in runs that allow for it.

use kagami_replicator::core::event::{Command, Event, From, Refusal, Reply};
use kagami_replicator::core::state::{CommandId, NodeId, Role};
use kagami_replicator::core::{Connection, DiskState};

use super::profile::Cause;
use super::world::{Checked, Happening, Phase, World};

/// A kind of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Become Primary, where nobody is.
    Promote,
    /// Become Primary while the copy is being resynchronised: its source answers for it.
    PromoteTarget,
    /// Stop being Primary.
    Demote,
    /// Stop being Primary, giving up what can't be finished.
    DemoteForce,
    /// Resynchronise again.
    Resync,
    /// Hold the resynchronisation, and go on later.
    Pause,
    /// Leave the session, and come back later.
    Disconnect,
    /// Compare the copies.
    Verify,
    /// Distrust a copy whose peer is good.
    Invalidate,
    /// Stop the daemon cleanly, and start it later.
    Stop,
    /// Become Primary against the rules.
    Force,
    /// A failover manager promotes the Secondary that has lost its Primary.
    TakeOver,
    /// A failover manager moves the service away from the node whose disk failed: demoted there, then
    /// promoted where the copy is that carries it.
    MoveAway,
    /// A failover manager has the other machine switched off, and promotes the Secondary that has lost it by that word.
    Fence,
    /// Give up the other copy for good; and a while later take that very node in again, with
    /// whatever its copy holds by then.
    Part,
    /// Become Primary against the rules, both at once.
    ForceBoth,
    /// Answer writes by another protocol from now on.
    Protocol,
    /// Another arbiter, on one node after the other.
    Arbiter,
    /// Another disk in the place of one whose peer has everything.
    Disk,
    /// A larger mirror, on one node after the other.
    Grow,
}

impl Order {
    /// Those that [`super::faults::kit::Kit`] draws.
    pub const MORE: &'static [Self] = &[
        Self::ForceBoth,
        Self::Protocol,
        Self::Arbiter,
        Self::Disk,
        Self::Grow,
    ];

    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Promote,
        Self::Demote,
        Self::DemoteForce,
        Self::Resync,
        Self::Pause,
        Self::Disconnect,
        Self::Verify,
        Self::Invalidate,
        Self::Stop,
        Self::Force,
        Self::Part,
        Self::TakeOver,
        Self::MoveAway,
    ];

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::PromoteTarget => "promote --while-resyncing",
            Self::Demote => "demote",
            Self::DemoteForce => "demote --force",
            Self::Resync => "resync",
            Self::Pause => "pause-sync",
            Self::Disconnect => "disconnect",
            Self::Verify => "verify",
            Self::Invalidate => "invalidate",
            Self::Stop => "down",
            Self::Force => "promote --force",
            Self::Part => "remove-peer",
            Self::ForceBoth => "promote --force on both",
            Self::Protocol => "reload with another protocol",
            Self::Arbiter => "arbiter join --replace",
            Self::Disk => "replace-disk",
            Self::Grow => "resize",
            Self::TakeOver => "take over",
            Self::Fence => "fence and take over",
            Self::MoveAway => "move away from a failed disk",
        }
    }

    /// How often it comes where it comes at all.
    pub fn weight(self) -> u64 {
        match self {
            Self::Promote => 12,
            Self::Demote => 3,
            Self::Force | Self::Invalidate | Self::Part => 1,
            _ => 2,
        }
    }
}

/// A command without an answer.
#[derive(Clone, Debug)]
pub struct Ordered {
    /// To whom.
    pub node: usize,
    /// What.
    pub command: Command,
}

impl World {
    /// An operator orders something, and the next order is planned.
    pub(super) fn order(&mut self) -> Checked {
        if self.phase != Phase::Storm {
            return Ok(());
        }
        let delay = self.fault_rng.around(self.options.order_every_ns);
        self.plan(delay, Happening::Order);
        self.order_one()
    }

    /// One of the orders that this run knows, to a node.
    pub(super) fn order_one(&mut self) -> Checked {
        let weights: Vec<u64> = self
            .options
            .orders
            .iter()
            .map(|(_, weight)| *weight)
            .collect();
        let Some(nth) = self.fault_rng.weighted(&weights) else {
            return Ok(());
        };
        let order = self.options.orders[nth].0;
        let node = self.fault_rng.node();
        self.sequels(Cause::Order(order), node);
        self.give(order, node)
    }

    /// An operator gives an order, to this node if it has a choice.
    pub(super) fn give(&mut self, order: Order, node: usize) -> Checked {
        let primary = (0..2).find(|node| self.nodes[*node].seen.role == Role::Primary);
        match order {
            Order::Promote => {
                if primary.is_none() {
                    // Every other operator would have the service at once.
                    let while_resyncing = self.sent.is_multiple_of(2);
                    return self.promote(node, while_resyncing);
                }
                Ok(())
            }
            Order::PromoteTarget => self.promote_target(primary),
            Order::TakeOver => {
                let lost = |node: &usize| {
                    self.nodes[*node].seen.role == Role::Secondary
                        && self.connection(*node) != Connection::Connected
                };
                match (0..2).find(lost) {
                    Some(node) => self.promote(node, false),
                    None => Ok(()),
                }
            }
            Order::Fence => self.fence(),
            Order::MoveAway => self.move_away(primary),
            Order::Demote | Order::DemoteForce => {
                let force = order == Order::DemoteForce;
                // A service on a guest without its source hangs: the one that serves is stopped.
                let guest = |node: usize| self.nodes[node].seen.disk == DiskState::Inconsistent;
                let serves = (0..2)
                    .find(|node| self.nodes[*node].seen.role == Role::Primary && !guest(*node));
                match serves.or(primary) {
                    Some(node) => self.command(node, Command::Demote { force }),
                    None => Ok(()),
                }
            }
            Order::Resync => {
                let from =
                    [None, Some(From::Local), Some(From::Peer)][self.fault_rng.below(3) as usize];
                let full = self.fault_rng.percent(20);
                self.command_resync(node, from, full)
            }
            Order::Pause => {
                self.command(node, Command::PauseSync)?;
                self.later(node, Command::ResumeSync);
                Ok(())
            }
            Order::Disconnect => {
                self.command(node, Command::Disconnect)?;
                self.later(node, Command::Connect);
                Ok(())
            }
            Order::Verify => {
                let repair = self.fault_rng.coin();
                self.command(node, Command::Verify { repair })
            }
            Order::Invalidate => {
                // where an operator forces anyhow, also the only good one, if there is one yet
                let record = self.nodes[node].meta.record();
                let foolish = self.options.forced && record.is_some_and(|r| r.current.is_some());
                if self.nodes[1 - node].seen.disk == DiskState::UpToDate || foolish {
                    self.ghost.invalidated = true;
                    return self.command(node, Command::Invalidate);
                }
                Ok(())
            }
            Order::Stop => self.command(node, Command::Stop),
            Order::Force => {
                self.ghost.operator_chose = true;
                self.command(
                    node,
                    Command::Promote {
                        force: true,
                        while_resyncing: false,
                    },
                )
            }
            Order::Part => {
                self.ghost.operator_chose = true;
                let again = self.nodes[1 - node].id;
                let peer = NodeId::NOBODY;
                self.command(node, Command::SetPeer { peer })?;
                self.later(node, Command::SetPeer { peer: again });
                Ok(())
            }
            Order::ForceBoth | Order::Protocol | Order::Arbiter | Order::Disk | Order::Grow => {
                self.order_more(order, node)
            }
        }
    }

    pub(super) fn promote(&mut self, node: usize, while_resyncing: bool) -> Checked {
        let force = false;
        self.command(
            node,
            Command::Promote {
                force,
                while_resyncing,
            },
        )
    }

    /// The service is wanted on the node that is behind: where it came from lets go of it first.
    fn promote_target(&mut self, primary: Option<usize>) -> Checked {
        let target = |node: &usize| {
            self.nodes[*node].seen.disk == DiskState::Inconsistent
                && self.connection(*node) == Connection::Connected
        };
        match ((0..2).find(target), primary) {
            (Some(target), None) => self.promote(target, true),
            (Some(target), Some(primary)) if primary != target => {
                self.command(primary, Command::Demote { force: false })
            }
            _ => Ok(()),
        }
    }

    /// The fence script of a manager without an arbiter. (It knows whose copy is the older one: the manager asks neither for the
    /// service there, nor for a fence.)
    fn fence(&mut self) -> Checked {
        let lost = |node: &usize| {
            let at = &self.nodes[*node];
            let apart = self.connection(*node) != Connection::Connected;
            at.mirror.is_some() && at.seen.role == Role::Secondary && apart && self.is_as_new(*node)
        };
        let Some(node) = (0..2).find(lost) else {
            return Ok(());
        };
        let down = self.fault_rng.around(self.options.order_every_ns);
        self.power_off(1 - node, down);
        self.ghost.last_fault = self.ghost.last_fault.max(self.now);
        self.command(node, Command::PromoteFenced)
    }

    /// Nothing was answered in a generation that this node's copy does not know.
    fn is_as_new(&self, node: usize) -> bool {
        let current = |node: usize| self.nodes[node].meta.record()?.current;
        let Some(theirs) = current(1 - node) else {
            return true;
        };
        let record = self.nodes[node].meta.record();
        record.is_some_and(|mine| mine.in_line(theirs.tag))
    }

    /// The service leaves the node whose disk failed.
    fn move_away(&mut self, primary: Option<usize>) -> Checked {
        let failed = |node: &usize| {
            let disk = self.nodes[*node].seen.disk;
            matches!(disk, DiskState::Failed | DiskState::Diskless)
        };
        let (Some(sick), false) = ((0..2).find(failed), (0..2).all(|node| failed(&node))) else {
            return Ok(());
        };
        if primary == Some(sick) && !self.fault_rng.one_in(4) {
            self.command(sick, Command::Demote { force: false })?;
            let promote = Command::Promote {
                force: false,
                while_resyncing: false,
            };
            self.later(1 - sick, promote);
            return Ok(());
        }
        if primary == Some(1 - sick) {
            return Ok(());
        }
        // (A manager that goes by old news asks while the other one is Primary still.)
        self.promote(1 - sick, false)
    }

    /// A resynchronisation by the operator's word, where that gives up nothing: in sync, or in
    /// runs whose copies may fork anyhow.
    fn command_resync(&mut self, node: usize, from: Option<From>, full: bool) -> Checked {
        let in_sync = self.nodes[node].seen.disk == DiskState::UpToDate
            && self.nodes[1 - node].seen.disk == DiskState::UpToDate
            && self.net.used_by(node).is_some();
        if from.is_some() && !in_sync && !self.options.forced {
            return Ok(());
        }
        if from.is_some() {
            self.ghost.operator_chose = true;
        }
        self.command(node, Command::Resync { from, full })
    }

    /// Orders something in a while.
    fn later(&mut self, node: usize, command: Command) {
        let delay = self.fault_rng.around(self.options.order_every_ns);
        self.plan(
            delay,
            Happening::Command {
                node,
                command: Box::new(command),
            },
        );
    }

    /// Gives a daemon a command, if it lives.
    pub(super) fn command(&mut self, node: usize, command: Command) -> Checked {
        if self.nodes[node].mirror.is_none() {
            return Ok(());
        }
        self.sent += 1;
        self.ghost.last_order = self.now;
        self.stats.order(&command);
        if matches!(command, Command::Resync { from: Some(_), .. }) {
            self.tell_word(node);
        }
        let id = self.sent;
        let ordered = Ordered {
            node,
            command: command.clone(),
        };
        self.ordered.insert(id, ordered);
        let id = CommandId(id);
        self.feed(node, Event::Command { id, command })
    }

    /// A core answers a command.
    pub(super) fn command_done(
        &mut self,
        node: usize,
        id: u64,
        result: Result<Reply, Refusal>,
    ) -> Checked {
        let Some(ordered) = self
            .ordered
            .remove(&id)
            .filter(|ordered| ordered.node == node)
        else {
            return Err(self.violation(
                "Once",
                format!("command {id} is answered at {node} and was not given there"),
            ));
        };
        self.stats.order_done(result.is_ok());
        self.ghost.damage_due[node] |= ordered.command == Command::Invalidate && result.is_ok();
        if ordered.command == Command::Stop && result.is_ok() {
            self.check_clean_stop(node)?;
            self.stopped(node);
            let delay = self.fault_rng.around(self.options.order_every_ns);
            self.start_in(node, delay);
        }
        Ok(())
    }

    /// The daemon is gone: nobody will answer its commands.
    pub(super) fn give_up_orders(&mut self, node: usize) {
        self.ordered.retain(|_, ordered| ordered.node != node);
    }

    /// What a node's status says of the connection.
    pub(super) fn connection(&self, node: usize) -> Connection {
        let at = &self.nodes[node];
        at.mirror.as_ref().map_or(Connection::StandAlone, |mirror| {
            mirror.status(self.local(node)).connection
        })
    }
}
