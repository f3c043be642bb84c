//! The mirrors, their link and the arbiter, as far as the right to run goes: docs/protocol.md §§3, 4, 8.
//!
//! A mirror has one holder at most. Connected and in sync, either node may be it. When the link is
//! lost, the holder's lease ends after the time-out, and it asks the arbiter; the other one asks
//! after a wait that is longer. The register names who may go on alone.
//!
//! A disk that fails under the holder is carried by the other copy, in their session, and that one may be
//! the holder once the first has let go; under the other one it ends the session of this mirror (§5).

use kagami_failover::core::guard::{Deed, Word};
use kagami_failover::core::{Event, Right, Time};

use super::check::Violation;
use super::world::{Item, World};

/// What a node holds of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    No,
    /// With the peer's consent, under the lease.
    Together,
    /// Its lease has ended; the arbiter is asked.
    Asking,
    /// By the register's word.
    Alone,
}

/// The mirrors of one group.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Who the register names.
    pub register: [bool; 2],
    /// Both copies are the same, as far as a holder was ever alone.
    pub equal: bool,
    /// A copy that is being overwritten.
    pub bad: [bool; 2],
    /// A copy whose disk has failed.
    pub dead: [bool; 2],
    /// Since when its node keeps away from the session.
    pub apart: Option<u64>,
    pub hold: [Hold; 2],
    /// The guard has said that the right is lost: the mirror stays as it is until the group has stopped.
    pub lost: [bool; 2],
    /// The question of a node that wants to go on alone.
    pub ask: [Option<u64>; 2],
    /// It was permitted to, and the other node may still have the group's address: until when.
    pub margin: [Option<u64>; 2],
}

impl Mirror {
    pub fn new() -> Self {
        Self {
            register: [true; 2],
            equal: true,
            bad: [false; 2],
            dead: [false; 2],
            apart: None,
            hold: [Hold::No; 2],
            lost: [false; 2],
            ask: [None; 2],
            margin: [None; 2],
        }
    }
}

impl World {
    fn right(&mut self, node: usize, group: usize, change: Right) {
        if self.mirrors[group].lost[node] && change == Right::Renewed {
            // What comes now is not for what was lost.
            return;
        }
        self.note(|| format!("right of g{group} at {}: {change:?}", name(node)));
        let life = self.nodes[node].life;
        // In order: the daemon has one voice.
        let at = self.told_at[node].max(self.now + self.rng.below(3));
        self.told_at[node] = at;
        let delay = at - self.now;
        self.later(
            delay,
            Item::Deliver {
                node,
                life,
                event: Event::Right { group, change },
            },
        );
    }

    /// The two have a session of this mirror.
    pub fn joined(&self, group: usize) -> bool {
        self.connected && self.mirrors[group].apart.is_none()
    }

    /// The link is whole and both machines are there: they will meet.
    pub fn try_connect(&mut self) {
        if self.link_up && !self.connected && self.nodes.iter().all(|node| node.up) {
            let delay = self.rng.between(20, 400);
            let epoch = self.connection;
            self.later(delay, Item::Connect { epoch });
        }
    }

    pub fn on_connect(&mut self, epoch: u64) -> Result<(), Violation> {
        let possible = self.link_up && self.nodes.iter().all(|node| node.up);
        if epoch != self.connection || self.connected || !possible {
            return Ok(());
        }
        self.connected = true;
        self.note(|| "mirror link: connected".to_owned());
        for group in 0..self.mirrors.len() {
            self.join(group);
        }
        self.tell_ready();
        Ok(())
    }

    /// The two meet over this mirror.
    fn join(&mut self, group: usize) {
        if let Some(dead) = self.dead_of(group) {
            return self.join_without_a_disk(group, dead);
        }
        self.mirrors[group].apart = None;
        let asking = std::mem::take(&mut self.mirrors[group].ask);
        let mirror = &mut self.mirrors[group];
        if mirror.equal {
            mirror.register = [true; 2];
            for node in 0..2 {
                if self.mirrors[group].hold[node] == Hold::Asking {
                    self.mirrors[group].hold[node] = Hold::Together;
                    self.guard(node, group, Word::Renewed);
                    self.right(node, group, Right::Renewed);
                }
            }
        } else {
            let source = usize::from(mirror.register[1]);
            assert!(!mirror.register[1 - source], "two copies went on alone");
            mirror.bad[1 - source] = true;
            if mirror.hold[1 - source] != Hold::No {
                self.lose(1 - source, group);
            }
            let delay = self.rng.between(300, 20_000);
            let epoch = self.connection;
            self.later(delay, Item::Synced { group, epoch });
        }
        for (node, asked) in asking.into_iter().enumerate() {
            if asked.is_some() {
                self.ask(node, group);
            }
        }
    }

    fn dead_of(&self, group: usize) -> Option<usize> {
        self.mirrors[group].dead.iter().position(|dead| *dead)
    }

    /// A holder without a disk is carried again, unless the other one was it meanwhile; whoever has no
    /// disk and holds nothing keeps away.
    fn join_without_a_disk(&mut self, group: usize, dead: usize) {
        let hold = self.mirrors[group].hold;
        if hold[dead] == Hold::No || hold[1 - dead] != Hold::No {
            if hold[dead] != Hold::No {
                self.lose(dead, group);
            }
            self.mirrors[group].apart = Some(self.disconnected_at);
            return;
        }
        self.mirrors[group].apart = None;
        let asked = std::mem::take(&mut self.mirrors[group].ask)[1 - dead].is_some();
        if hold[dead] == Hold::Asking {
            self.mirrors[group].hold[dead] = Hold::Together;
            self.guard(dead, group, Word::Renewed);
            self.right(dead, group, Right::Renewed);
        }
        if asked {
            self.ask(1 - dead, group);
        }
    }

    /// The disk of a node fails, where both copies are the same. False: it is not that time.
    pub fn fail_disk(&mut self, node: usize, group: usize) -> bool {
        if self.options.fenced {
            return false;
        }
        let carries = self.arbiter_up && self.arbiter_reached[1 - node];
        let in_sync = self.joined(group) && self.mirrors[group].equal;
        if !in_sync || !carries || self.dead_of(group).is_some() {
            return false;
        }
        self.note(|| format!("mirror of g{group}: the disk of {} fails", name(node)));
        let mirror = &mut self.mirrors[group];
        mirror.dead[node] = true;
        if mirror.hold[node] == Hold::Together {
            mirror.register = [true; 2];
            mirror.register[node] = false;
            mirror.equal = false;
        } else {
            mirror.apart = Some(self.now);
            self.begin_lease_end(1 - node, group);
        }
        self.tell_ready();
        true
    }

    /// It has another disk. Not while a group runs beside it: its daemon starts anew with it.
    pub fn replace_disk(&mut self, node: usize, group: usize) -> bool {
        if !self.mirrors[group].dead[node] || self.mirrors[group].hold[node] != Hold::No {
            return false;
        }
        self.note(|| format!("mirror of g{group}: the disk of {} is replaced", name(node)));
        self.mirrors[group].dead[node] = false;
        if self.connected {
            self.join(group);
        }
        self.tell_ready();
        true
    }

    pub fn on_synced(&mut self, group: usize, epoch: u64) {
        if epoch != self.connection || !self.joined(group) {
            return;
        }
        let mirror = &mut self.mirrors[group];
        mirror.equal = true;
        mirror.bad = [false; 2];
        mirror.register = [true; 2];
        for hold in &mut mirror.hold {
            if *hold == Hold::Alone {
                *hold = Hold::Together;
            }
        }
        self.note(|| format!("mirror of g{group}: in sync"));
        self.tell_ready();
    }

    pub fn disconnect(&mut self) {
        if !self.connected {
            return;
        }
        self.connection += 1;
        self.connected = false;
        self.disconnected_at = self.now;
        self.note(|| "mirror link: lost".to_owned());
        for group in 0..self.mirrors.len() {
            for node in 0..2 {
                self.begin_lease_end(node, group);
            }
        }
        self.tell_ready();
    }

    /// The session is gone: the lease of whoever rests on it ends.
    fn begin_lease_end(&mut self, node: usize, group: usize) {
        if self.mirrors[group].hold[node] == Hold::Together {
            // It began with the newest message that was echoed, sent some time ago.
            let timeout = self.options.link_timeout;
            let left = timeout - self.rng.below(timeout / 4);
            let epoch = self.connection;
            self.later(left, Item::LeaseEnd { group, node, epoch });
        }
    }

    pub fn on_lease_end(&mut self, group: usize, node: usize, epoch: u64) {
        let again = self.joined(group) || epoch != self.connection;
        if again || self.mirrors[group].hold[node] != Hold::Together {
            return;
        }
        self.mirrors[group].hold[node] = Hold::Asking;
        self.guard(node, group, Word::LeaseEnded);
        self.right(node, group, Right::LeaseEnded);
        self.begin_attempt(node, group, 0);
    }

    fn begin_attempt(&mut self, node: usize, group: usize, wait: u64) {
        self.attempts += 1;
        let attempt = self.attempts;
        self.mirrors[group].ask[node] = Some(attempt);
        self.later(
            wait,
            Item::Attempt {
                group,
                node,
                attempt,
            },
        );
    }

    pub fn on_attempt(&mut self, group: usize, node: usize, attempt: u64) {
        if self.mirrors[group].ask[node] != Some(attempt) {
            return;
        }
        if self.arbiter_up && self.arbiter_reached[node] {
            let delay = self.rng.between(1, 60);
            self.later(
                delay,
                Item::Answer {
                    group,
                    node,
                    attempt,
                },
            );
        } else if self.mirrors[group].hold[node] == Hold::Asking {
            self.later(
                200,
                Item::Attempt {
                    group,
                    node,
                    attempt,
                },
            );
        } else {
            self.mirrors[group].ask[node] = None;
            self.right(
                node,
                group,
                Right::Refused("the arbiter is not reached".to_owned()),
            );
        }
    }

    pub fn on_answer(&mut self, group: usize, node: usize, attempt: u64) {
        let open = self.mirrors[group].ask[node] == Some(attempt);
        let reached = self.arbiter_up && self.arbiter_reached[node];
        if !open {
            // The swap of a question that nobody asks any more may land all the same.
            let lands =
                self.rng.coin() && !self.joined(group) && self.mirrors[group].register[node];
            if lands && self.mirrors[group].equal {
                self.mirrors[group].register[1 - node] = false;
            }
            return;
        }
        if !reached {
            self.later(
                200,
                Item::Attempt {
                    group,
                    node,
                    attempt,
                },
            );
            return;
        }
        let mirror = &mut self.mirrors[group];
        mirror.ask[node] = None;
        let was_holder = mirror.hold[node] == Hold::Asking;
        if mirror.register[node] {
            mirror.register[1 - node] = false;
            mirror.equal = false;
            mirror.hold[node] = Hold::Alone;
            if was_holder {
                self.guard(node, group, Word::Renewed);
                self.right(node, group, Right::Renewed);
            } else {
                self.grant_after_the_margin(node, group);
            }
        } else if was_holder {
            self.lose(node, group);
        } else {
            let why = "the register names the other node".to_owned();
            self.right(node, group, Right::Refused(why));
        }
    }

    /// The mirrors are this node's. The other one may be frozen with its address until its margin is over.
    fn grant_after_the_margin(&mut self, node: usize, group: usize) {
        let over = self.others_lease_ends(node, group) + self.options.margin;
        if over <= self.now {
            return self.right(node, group, Right::Granted);
        }
        self.mirrors[group].margin[node] = Some(over);
        self.right(node, group, Right::MirrorsOnly);
        let boot = self.nodes[node].boot;
        self.later(over - self.now, Item::MarginOver { group, node, boot });
    }

    pub fn on_margin_over(&mut self, group: usize, node: usize, boot: u128) {
        let over = self.mirrors[group].margin[node].is_some_and(|over| over <= self.now);
        if over && self.nodes[node].boot == boot {
            self.mirrors[group].margin[node] = None;
            self.right(node, group, Right::Granted);
        }
    }

    /// When the other node's lease has surely ended, by this node's clock.
    fn others_lease_ends(&self, node: usize, group: usize) -> u64 {
        let apart = self.mirrors[group].apart.unwrap_or_default();
        let lost = self.disconnected_at.max(apart);
        let since = lost.max(self.nodes[node].started);
        since + self.options.link_timeout * 102 / 100 + 20
    }

    /// The guard takes it from here.
    fn lose(&mut self, node: usize, group: usize) {
        self.mirrors[group].hold[node] = Hold::No;
        self.mirrors[group].ask[node] = None;
        self.mirrors[group].margin[node] = None;
        self.guard(node, group, Word::Lost);
    }

    /// The manager asks for the right.
    pub fn ask(&mut self, node: usize, group: usize) {
        if self.options.fenced {
            self.mirrors[group].hold[node] = Hold::Alone;
            self.right(node, group, Right::Granted);
            return;
        }
        if self.nodes[node].guards[group].is_stopping() {
            self.right(node, group, Right::Lost);
            return;
        }
        let mirror = &self.mirrors[group];
        if mirror.margin[node].is_some() {
            // Of a manager before this one: the right follows.
            return;
        }
        match mirror.hold[node] {
            Hold::Together | Hold::Alone => {
                self.right(node, group, Right::Granted);
                return;
            }
            Hold::Asking => {
                self.right(node, group, Right::LeaseEnded);
                return;
            }
            Hold::No => {}
        }
        let refuse = |why: &str| Right::Refused(why.to_owned());
        if mirror.dead[node] {
            self.right(node, group, refuse("this copy has no usable disk"));
        } else if mirror.bad[node] {
            self.right(node, group, refuse("this copy is not in sync"));
        } else if !self.joined(group) {
            let begin = self.others_lease_ends(node, group);
            self.begin_attempt(node, group, begin.saturating_sub(self.now));
        } else if mirror.hold[1 - node] != Hold::No {
            self.right(node, group, refuse("the other node is Primary"));
        } else {
            let equal = mirror.equal;
            self.mirrors[group].hold[node] = if equal { Hold::Together } else { Hold::Alone };
            self.right(node, group, Right::Granted);
        }
    }

    pub fn release(&mut self, node: usize, group: usize) {
        self.demote(node, group);
        self.right(node, group, Right::Released);
    }

    /// Nothing of the group runs there.
    pub fn demote(&mut self, node: usize, group: usize) {
        let mirror = &mut self.mirrors[group];
        mirror.hold[node] = Hold::No;
        mirror.ask[node] = None;
        mirror.margin[node] = None;
        mirror.lost[node] = false;
    }

    /// A guard hears a word and does what it does.
    pub fn guard(&mut self, node: usize, group: usize, word: Word) {
        let now = Time(self.now);
        let deeds = self.nodes[node].guards[group].handle(now, word);
        for deed in deeds {
            self.note(|| format!("guard of g{group} at {}: {deed:?}", name(node)));
            match deed {
                Deed::Freeze => self.nodes[node].frozen[group] = true,
                Deed::Thaw => self.nodes[node].frozen[group] = false,
                Deed::DropAddresses => {
                    self.nodes[node].dropped[group] = true;
                    self.guard(node, group, Word::Dropped);
                }
                Deed::SayLost => {
                    self.mirrors[group].lost[node] = true;
                    self.nodes[node].lost_at[group] = Some((self.now, self.nodes[node].life));
                    self.right(node, group, Right::Lost);
                }
                Deed::Reset => {
                    self.check_reset(node, group);
                    self.crash_node(node, true);
                    return;
                }
            }
        }
        if let Some(at) = self.nodes[node].guards[group].deadline() {
            let boot = self.nodes[node].boot;
            self.later(
                at.0.saturating_sub(self.now),
                Item::Guard { node, group, boot },
            );
        }
    }

    /// Copies in sync are what the managers call ready, and the only one of two.
    pub fn tell_ready(&mut self) {
        // Without a mirror nothing has to be ready.
        if self.options.fenced {
            return;
        }
        for group in 0..self.mirrors.len() {
            for node in 0..2 {
                let mirror = &self.mirrors[group];
                let copies = match mirror.dead {
                    [false, false] => mirror.equal,
                    dead => dead[1 - node] && mirror.register == [node == 0, node == 1],
                };
                let diskless = mirror.dead[node];
                let ready = self.joined(group) && copies;
                let life = self.nodes[node].life;
                self.later(
                    0,
                    Item::Deliver {
                        node,
                        life,
                        event: Event::Ready { group, ready },
                    },
                );
                let event = Event::Diskless { group, diskless };
                self.later(0, Item::Deliver { node, life, event });
            }
        }
    }
}

pub fn name(node: usize) -> &'static str {
    ["a", "b"][node]
}
