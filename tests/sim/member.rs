//! A mirror among others: what it shares with them, and how they hear of what happens to that.
//!
//! Mirrors of one pair of nodes share the machines with their clocks, the daemons, the connection, the arbiter's being
//! there, and each daemon's memory (`room`). Each [`World`] is one mirror and has its own view of all that; what changes
//! it is a [`Ground`], which the world that caused it notes down, and which `fleet` hands to the others before anything
//! else happens. A mirror that is alone has no [`Member`], and notes nothing.

use kagami_replicator::core::Mirror;
use kagami_replicator::core::state::Role;
use kagami_replicator::shell::buffers::Pool;
use kagami_replicator::shell::quic::SUPPORTED;

use super::faults::Fault;
use super::net::End;
use super::node::Clock;
use super::room::{self, Room};
use super::stall::Stall;
use super::world::{Checked, Happening, MS, World};

/// A daemon's end, as all its mirrors meet it.
#[derive(Clone, Debug)]
pub struct Death {
    /// How long the other node takes to notice, ns.
    parting_ns: u64,
    /// The link protocol version of the next daemon.
    version: u16,
    /// The memory of the next daemon.
    pool: Pool,
}

/// Something that happens to what mirrors share.
#[derive(Clone, Debug)]
pub enum Ground {
    /// A daemon dies, alone or with its machine.
    Death {
        node: usize,
        machine: bool,
        death: Death,
    },
    /// The next one starts.
    Start { node: usize, delay: u64 },
    /// A machine boots.
    Boot {
        node: usize,
        clock: Clock,
        boot: u128,
        delay: u64,
    },
    /// A daemon stands still.
    Pause { node: usize, until: u64 },
    /// What gets through between the nodes.
    Block([bool; 2]),
    /// How many times as long messages take.
    Slow(u64),
    /// The arbiter answers nobody, or does again.
    ArbiterDown(bool),
    /// The connection ends at a node; the other notices so much later.
    Ends {
        node: usize,
        reason: &'static str,
        parting_ns: u64,
    },
    /// A node has a connection with the peer's present daemon: one with an earlier daemon ends.
    Connected { node: usize },
}

/// What a mirror has of what it shares.
#[derive(Debug)]
pub struct Member {
    /// What it did to the ground since the others were told.
    pub ground: Vec<Ground>,
    /// Its memory at each node.
    pub rooms: [Room; 2],
    /// All its requests were sent: it waits for the others' last ones.
    pub spent: bool,
    /// It is kept from coming to rest, so that the others show that they do.
    pub stall: Option<Stall>,
    /// Sessions that end now are noticed at the other end after this time, ns.
    parting_ns: Option<u64>,
    /// This mirror killed the daemon, and says when the next one starts.
    restarts: [bool; 2],
    /// No daemon runs before then.
    down_until: [u64; 2],
    /// When the last daemon died.
    died: [u64; 2],
}

impl Member {
    /// A mirror of daemons with this memory.
    pub fn new(pools: &[Pool; 2]) -> Self {
        Self {
            ground: Vec::new(),
            rooms: pools.clone().map(Room::new),
            spent: false,
            stall: None,
            parting_ns: None,
            restarts: [false; 2],
            down_until: [0; 2],
            died: [0; 2],
        }
    }
}

/// Faults of what is shared: they are drawn for the first mirror alone, since they are all mirrors'.
pub const SHARED: &[Fault] = &[
    Fault::DaemonDies,
    Fault::BothDie,
    Fault::MachineCrashes,
    Fault::BothCrash,
    Fault::LinkCut,
    Fault::LinkCutOneWay,
    Fault::SessionEnds,
    Fault::ArbiterDown,
    Fault::DaemonPauses,
    Fault::LinkFlaps,
    Fault::LinkSlow,
    Fault::OldCopy,
];

impl World {
    /// The names of the nodes of the `nth` mirror.
    pub(super) fn names(nth: usize) -> [&'static str; 2] {
        [["a", "b"], ["a2", "b2"], ["a3", "b3"], ["a4", "b4"]][nth]
    }

    /// Becomes the `nth` mirror of the daemons that `first` is a mirror of.
    pub(super) fn join(&mut self, nth: usize, pools: &[Pool; 2], first: Option<&Self>) {
        self.member = Some(Box::new(Member::new(pools)));
        for (node, name) in Self::names(nth).into_iter().enumerate() {
            self.nodes[node].name = name;
            if let Some(first) = first {
                self.nodes[node].clock = first.nodes[node].clock;
                self.nodes[node].boot = first.nodes[node].boot;
            }
        }
    }

    /// What it did to the ground is for the others to know.
    pub(super) fn tell(&mut self, ground: impl FnOnce() -> Ground) {
        if let Some(member) = &mut self.member {
            member.ground.push(ground());
        }
    }

    /// How long a session's other end takes to notice, where the mirrors' connection ended.
    pub(super) fn parting(&self) -> Option<u64> {
        self.member.as_ref().and_then(|member| member.parting_ns)
    }

    fn parting_in(&mut self, parting_ns: Option<u64>) {
        if let Some(member) = &mut self.member {
            member.parting_ns = parting_ns;
        }
    }

    /// The daemon dies, for all its mirrors. Whoever calls it plans the next one's start.
    pub(super) fn kill_daemon(&mut self, node: usize) {
        if self.member.is_none() {
            return self.die(node);
        }
        let death = self.draw_death(node);
        self.meet_death(node, false, &death);
        if let Some(member) = &mut self.member {
            member.restarts[node] = true;
        }
        let machine = false;
        self.tell(|| Ground::Death {
            node,
            machine,
            death,
        });
    }

    /// The machine crashes, for all its mirrors.
    pub(super) fn crash(&mut self, node: usize) {
        if self.member.is_none() {
            return self.crash_copy(node);
        }
        let death = self.draw_death(node);
        self.meet_death(node, true, &death);
        let machine = true;
        self.tell(|| Ground::Death {
            node,
            machine,
            death,
        });
    }

    fn draw_death(&mut self, node: usize) -> Death {
        let timeout = self.options.settings.timeout_ms * MS;
        let parting_ns = if self.rng.percent(40) {
            MS
        } else {
            self.rng.between(timeout / 3, 3 * timeout)
        };
        let mut version = self.nodes[node].version;
        if self.options.kit.versions {
            version = self.fault_rng.pick(SUPPORTED);
            if version != self.nodes[node].version {
                self.stats.fault(Fault::VersionChanges);
            }
        }
        Death {
            parting_ns,
            version,
            pool: room::pool(self.options.room_pages),
        }
    }

    fn meet_death(&mut self, node: usize, machine: bool, death: &Death) {
        self.parting_in(Some(death.parting_ns));
        let at = &self.nodes[node];
        if machine && at.up {
            self.crash_copy(node);
        } else if !machine && (at.mirror.is_some() || at.repairing.is_some()) {
            self.die(node);
        }
        self.parting_in(None);
        self.nodes[node].version = death.version;
        let now = self.now;
        if let Some(member) = &mut self.member {
            member.rooms[node] = Room::new(death.pool.clone());
            member.died[node] = now;
        }
    }

    /// The next daemon's start is planned: it starts its other mirrors, too.
    pub(super) fn tell_start(&mut self, node: usize, delay: u64) {
        let until = self.now + delay;
        if let Some(member) = &mut self.member
            && std::mem::take(&mut member.restarts[node])
        {
            member.down_until[node] = until;
            member.ground.push(Ground::Start { node, delay });
        }
    }

    /// When there will be a daemon again that can start this mirror, if there is none.
    pub(super) fn daemon_is_down(&self, node: usize) -> Option<u64> {
        let until = self.member.as_ref()?.down_until[node];
        (until > self.now).then_some(until)
    }

    /// The connection ends at this node: every session on it does.
    pub(super) fn connection_ends(&mut self, node: usize, reason: &'static str) -> Checked {
        let timeout = self.options.settings.timeout_ms * MS;
        let heard = !self.net.blocked[node] && self.rng.percent(90);
        let parting_ns = if heard {
            self.rng.around(self.options.net_ns)
        } else {
            self.rng.between(timeout / 2, 3 * timeout)
        };
        self.tell(|| Ground::Ends {
            node,
            reason,
            parting_ns,
        });
        self.end_sessions(node, reason, parting_ns)
    }

    fn end_sessions(&mut self, node: usize, reason: &str, parting_ns: u64) -> Checked {
        for session in self.net.ids() {
            let open = self.net.session(session);
            if open.is_none_or(|open| open.ends[node] == End::Closed) {
                continue;
            }
            self.parting_in(Some(parting_ns));
            let ended = self.link_down(session, node, reason);
            self.parting_in(None);
            ended?;
        }
        Ok(())
    }

    /// Sessions with a daemon that has died since are over, as there is a connection with its successor.
    fn end_earlier(&mut self, node: usize) -> Checked {
        let died = self.member.as_ref().map_or(0, |one| one.died[1 - node]);
        for session in self.net.ids() {
            let open = self.net.session(session);
            if open.is_some_and(|open| open.ends[node] != End::Closed && open.opened < died) {
                self.link_down(session, node, "replaced by a newer connection")?;
            }
        }
        Ok(())
    }

    /// Something happened to what this mirror shares with another, which did its part of it.
    pub(super) fn meet(&mut self, ground: &Ground) -> Checked {
        self.ghost.last_fault = self.ghost.last_fault.max(self.now);
        match *ground {
            Ground::Death {
                node,
                machine,
                ref death,
            } => self.meet_death(node, machine, death),
            Ground::Start { node, delay } => {
                let until = self.now + delay;
                if let Some(member) = &mut self.member {
                    member.down_until[node] = until;
                }
                self.start_in(node, delay);
            }
            Ground::Boot {
                node,
                clock,
                boot,
                delay,
            } => {
                let at = &mut self.nodes[node];
                if !at.up {
                    (at.up, at.token, at.token_broken) = (true, false, false);
                    (at.clock, at.boot) = (clock, boot);
                    self.start_in(node, delay);
                }
            }
            Ground::Pause { node, until } => {
                let at = &mut self.nodes[node];
                if at.mirror.is_some() {
                    at.paused_until = until;
                    self.plan_at(until, Happening::Resume { node });
                } else if let Some(member) = &mut self.member {
                    // It starts nothing meanwhile either.
                    member.down_until[node] = until.max(member.down_until[node]);
                }
            }
            Ground::Block(blocked) => self.block_here(blocked),
            Ground::Slow(times) => self.net.slow = times,
            Ground::ArbiterDown(down) => self.arbiter.down = down,
            Ground::Ends {
                node,
                reason,
                parting_ns,
            } => return self.end_sessions(node, reason, parting_ns),
            Ground::Connected { node } => return self.end_earlier(node),
        }
        Ok(())
    }

    /// The faults are over: a daemon that is down may start at once.
    pub(super) fn mend_ground(&mut self) {
        if let Some(member) = &mut self.member {
            member.down_until = [0; 2];
        }
    }

    /// What it did to the ground since it was asked last.
    pub(super) fn told(&mut self) -> Vec<Ground> {
        let member = self.member.as_mut();
        member.map_or_else(Vec::new, |one| std::mem::take(&mut one.ground))
    }

    /// True if its front end has sent all that it was to send.
    pub(super) fn is_spent(&self) -> bool {
        self.member.as_ref().is_some_and(|member| member.spent)
    }

    /// Bytes of its daemons' memory that somebody holds.
    pub(super) fn memory_in_use(&self) -> usize {
        let rooms = self.member.iter().flat_map(|member| &member.rooms);
        rooms.map(|room| room.pool.stats().in_use).sum()
    }

    /// True if another mirror's front end still has requests to send.
    pub(super) fn waits_for_others(&mut self) -> bool {
        self.member
            .as_mut()
            .map(|member| member.spent = true)
            .is_some()
    }

    /// Which node serves, if one does.
    pub(super) fn server(&self) -> Option<usize> {
        let serves = |node: &usize| {
            let mirror = self.nodes[*node].mirror.as_ref();
            mirror.map(Mirror::role) == Some(Role::Primary)
        };
        (0..2).find(serves)
    }
}
