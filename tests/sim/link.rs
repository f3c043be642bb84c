//! How the nodes meet, talk and part.
//!
//! Both ends must want a session; each is told of it at its own time, and may have changed its
//! mind by then. Messages travel as the bytes of the wire. An end that closes tells the other,
//! if that gets through; else the other notices in its own time.

use bytes::Bytes;
use kagami_replicator::core::Class;
use kagami_replicator::core::event::Event;
use kagami_replicator::core::message::Message;
use kagami_replicator::core::state::SessionId;
use kagami_replicator::wire::message::{decode, encode};

use super::check::Violation;
use super::member::Ground;
use super::net::{CLASSES, End, class_index};
use super::room::received_in;
use super::world::{Checked, Happening, MS, World};

impl World {
    /// The nodes look for each other; the one with the lower id dials.
    pub(super) fn dial(&mut self) -> Checked {
        let wants = |node: usize| {
            let at = &self.nodes[node];
            at.mirror.is_some()
                && at.paused_until <= self.now
                && at.want.is_some_and(|from| from <= at.clock.local(self.now))
        };
        let dialer = usize::from(self.nodes[1].id < self.nodes[0].id);
        if !wants(0) || !wants(1) || !self.net.is_whole() || self.net.is_busy(dialer) {
            return Ok(());
        }
        let lives = [self.nodes[0].life, self.nodes[1].life];
        let version = self.nodes[0].version.min(self.nodes[1].version);
        let session = self.net.open(lives, version);
        if let Some(open) = self.net.session(session) {
            open.opened = self.now;
        }
        self.stats.sessions += 1;
        for node in 0..2 {
            let delay = self.rng.around(self.options.net_ns);
            self.plan(delay, Happening::LinkUp { session, node });
        }
        Ok(())
    }

    /// Plans that the nodes look for each other again soon.
    pub(super) fn dial_soon(&mut self) {
        let delay = self.rng.around(20 * MS);
        self.plan(delay, Happening::Dial);
    }

    pub(super) fn link_up(&mut self, session: u64, node: usize) -> Checked {
        let Some(open) = self.net.session(session) else {
            return Ok(());
        };
        let life = open.lives[node];
        if open.ends[node] != End::Opening || !self.lives(node, life) {
            return Ok(());
        }
        let now = self.local(node);
        let wants = self.nodes[node].want.is_some_and(|from| from <= now);
        if !wants || !self.net.is_whole() {
            self.hang_up(session, node);
            return Ok(());
        }
        if let Some(old) = self.net.used_by(node) {
            self.link_down(old, node, "the peer opened another session")?;
        }
        if let Some(open) = self.net.session(session) {
            open.ends[node] = End::Up;
        }
        self.tell(|| Ground::Connected { node });
        for (class, len) in self.net.waiting_in(session, 1 - node) {
            for _ in 0..len {
                let from = 1 - node;
                self.plan(
                    1000,
                    Happening::Arrive {
                        session,
                        from,
                        class,
                    },
                );
            }
        }
        let version = self.net.session(session).map_or(0, |open| open.version);
        let session = Self::node_session(session, node);
        self.feed(node, Event::LinkUp { session, version })
    }

    /// A node has heard nothing of the other for too long: that is the connection's end, for every mirror on it.
    pub(super) fn hear_nothing(&mut self, session: u64, node: usize) -> Checked {
        let reason = "nothing heard";
        if self.member.is_none() {
            return self.link_down(session, node, reason);
        }
        match self.net.session(session) {
            Some(open) if open.ends[node] != End::Closed => self.connection_ends(node, reason),
            _ => Ok(()),
        }
    }

    /// An end is told that its session is gone.
    pub(super) fn link_down(&mut self, session: u64, node: usize, reason: &str) -> Checked {
        let Some(open) = self.net.session(session) else {
            return Ok(());
        };
        let (end, life) = (open.ends[node], open.lives[node]);
        self.hang_up(session, node);
        if end == End::Up && self.lives(node, life) {
            let session = Self::node_session(session, node);
            let reason = reason.to_owned();
            return self.feed(node, Event::LinkDown { session, reason });
        }
        Ok(())
    }

    /// The core closes a session.
    pub(super) fn close(&mut self, session: SessionId, node: usize) {
        let session = Self::world_session(session, node);
        self.hang_up(session, node);
    }

    /// An end closes: what it had sent may be lost, and the other end learns of it, soon if a
    /// last word gets through.
    pub(super) fn hang_up(&mut self, session: u64, node: usize) {
        self.net.lose_tails(session, node, &mut self.rng);
        if !self.net.close(session, node) {
            return;
        }
        self.ghost.cut = true;
        let timeout = self.options.settings.timeout_ms * MS;
        let delay = if let Some(parting) = self.parting() {
            parting
        } else if !self.net.blocked[node] && self.rng.percent(90) {
            self.rng.around(self.options.net_ns)
        } else {
            self.rng.between(timeout / 2, 3 * timeout)
        };
        self.plan(
            delay,
            Happening::LinkDown {
                session,
                node: 1 - node,
            },
        );
        self.dial_soon();
    }

    /// A daemon has died: its ends are gone without a word.
    pub(super) fn drop_ends(&mut self, node: usize) {
        for session in self.net.ids() {
            self.net.lose_tails(session, node, &mut self.rng);
            if self.net.close(session, node) {
                self.ghost.cut = true;
                let timeout = self.options.settings.timeout_ms * MS;
                let delay = if let Some(parting) = self.parting() {
                    parting
                } else if self.rng.percent(40) {
                    MS
                } else {
                    self.rng.between(timeout / 3, 3 * timeout)
                };
                self.plan(
                    delay,
                    Happening::LinkDown {
                        session,
                        node: 1 - node,
                    },
                );
            }
        }
    }

    /// Blocks or opens the directions of the link.
    pub(super) fn block(&mut self, blocked: [bool; 2]) {
        self.tell(|| Ground::Block(blocked));
        self.block_here(blocked);
    }

    pub(super) fn block_here(&mut self, blocked: [bool; 2]) {
        let before = self.net.blocked;
        self.net.blocked = blocked;
        self.net.changes += 1;
        let timeout = self.options.settings.timeout_ms * MS;
        let change = self.net.changes;
        for from in 0..2 {
            if blocked[from] {
                for session in self.net.ids() {
                    // the receiver hears nothing, the sender no acknowledgement
                    for (node, most) in [(1 - from, 2), (from, 4)] {
                        let delay = self.rng.between(timeout / 2, most * timeout);
                        self.plan(
                            delay,
                            Happening::Silence {
                                session,
                                node,
                                change,
                            },
                        );
                    }
                }
            } else if before[from] {
                for (session, class, len) in self.net.waiting(from) {
                    for _ in 0..len {
                        let delay = self.rng.around(self.options.net_ns);
                        self.plan(
                            delay,
                            Happening::Arrive {
                                session,
                                from,
                                class,
                            },
                        );
                    }
                }
            }
        }
        if blocked == [false, false] {
            self.dial_soon();
        }
    }

    pub(super) fn send(
        &mut self,
        node: usize,
        session: SessionId,
        class: Class,
        message: &Message,
    ) -> Checked {
        if class != message.class() {
            return Err(Violation::new(
                "Wire",
                format!("{message:?} is sent on {class:?}"),
            ));
        }
        self.stats.messages += 1;
        let session = Self::world_session(session, node);
        let class = class_index(class);
        let mut encoded = encode(message);
        if self.member.is_some() {
            // The transport copies it into packets: what is on its way is in nobody's memory.
            let payload = encoded.payload.as_deref();
            encoded.payload = payload.map(Bytes::copy_from_slice);
        }
        let delay = self.rng.around(self.options.net_ns * self.net.slow);
        self.drags(self.net.slow, delay);
        if let Some(due) = self
            .net
            .send(session, node, class, encoded, self.now, delay)
        {
            let from = node;
            self.plan_at(
                due,
                Happening::Arrive {
                    session,
                    from,
                    class,
                },
            );
        }
        Ok(())
    }

    pub(super) fn arrive(&mut self, session: u64, from: usize, class: usize) -> Checked {
        let Some(buffer) = self.room_to_arrive(session, from, class) else {
            return Ok(());
        };
        let Some(encoded) = self.net.arrive(session, from, class, self.now) else {
            return Ok(());
        };
        let encoded = received_in(self.framed(session, encoded)?, buffer);
        let head: &Bytes = &encoded.head;
        let message = decode(encoded.kind, head, encoded.payload.clone()).map_err(|fault| {
            Violation::new("Wire", format!("an encoded message is refused: {fault}"))
        })?;
        if message.class() != CLASSES[class] {
            return Err(Violation::new(
                "Wire",
                format!("{message:?} changed its class"),
            ));
        }
        let to = 1 - from;
        let life = self.net.session(session).map_or(0, |open| open.lives[to]);
        if self.lives(to, life) {
            let session = Self::node_session(session, to);
            return self.feed(to, Event::Message { session, message });
        }
        Ok(())
    }
}
