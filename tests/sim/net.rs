//! The link: sessions of three ordered streams each way, and the directions that they need.
//!
//! Decides what arrives where and in which order: messages of a class in the order sent, classes
//! past each other; nothing over a blocked direction, where it waits and may still arrive; each
//! end closes on its own, and what was on its way then arrives in part or not at all. When
//! anything happens is the world's business: this keeps the queues and the states.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kagami_replicator::core::action::Class;
use kagami_replicator::wire::message::Encoded;

use super::rng::Rng;

/// The classes, in the order of the queues.
pub const CLASSES: [Class; 3] = [Class::Control, Class::Data, Class::Resync];

/// The queue of a class.
pub fn class_index(class: Class) -> usize {
    match class {
        Class::Control => 0,
        Class::Data => 1,
        Class::Resync => 2,
    }
}

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The node has not been told of it yet.
    Opening,
    /// The node uses it.
    Up,
    /// The node has closed it, or was told of its end.
    Closed,
}

/// A message on its way.
#[derive(Clone, Debug)]
struct Flight {
    due: u64,
    message: Encoded,
}

/// A session: two ends, and what is on its way from each.
#[derive(Clone, Debug)]
pub struct Session {
    /// Of node 0 and node 1.
    pub ends: [End; 2],
    /// Which life of each daemon it belongs to.
    pub lives: [u64; 2],
    /// The protocol version of each end.
    pub version: u16,
    /// When the nodes began it, ns.
    pub opened: u64,
    on_way: [[VecDeque<Flight>; 3]; 2],
}

/// The link between the two nodes.
#[derive(Clone, Debug)]
pub struct Net {
    sessions: BTreeMap<u64, Session>,
    newest: u64,
    /// Nothing gets through from this node.
    pub blocked: [bool; 2],
    /// Counts changes of `blocked`, to tell one blockade from the next.
    pub changes: u64,
    /// Messages take this many times as long.
    pub slow: u64,
    /// A class of streams from a node moves nothing until then.
    pub stalled_until: [[u64; 3]; 2],
}

impl Default for Net {
    fn default() -> Self {
        Self {
            sessions: BTreeMap::new(),
            newest: 0,
            blocked: [false; 2],
            changes: 0,
            slow: 1,
            stalled_until: [[0; 3]; 2],
        }
    }
}

impl Net {
    /// A session between these lives of the daemons; neither end knows of it yet.
    pub fn open(&mut self, lives: [u64; 2], version: u16) -> u64 {
        self.newest += 1;
        let session = Session {
            ends: [End::Opening; 2],
            lives,
            version,
            opened: 0,
            on_way: Default::default(),
        };
        self.sessions.insert(self.newest, session);
        self.newest
    }

    /// The session, if an end of it is open.
    pub fn session(&mut self, id: u64) -> Option<&mut Session> {
        self.sessions.get_mut(&id)
    }

    /// The open sessions.
    pub fn ids(&self) -> Vec<u64> {
        self.sessions.keys().copied().collect()
    }

    /// The session that this node uses.
    pub fn used_by(&self, node: usize) -> Option<u64> {
        let mut up = self
            .sessions
            .iter()
            .filter(|(_, session)| session.ends[node] == End::Up);
        up.next_back().map(|(id, _)| *id)
    }

    /// Which daemon of the other node is at the far end of the session that this node uses.
    pub fn life_met(&self, node: usize) -> Option<u64> {
        let session = self.sessions.get(&self.used_by(node)?)?;
        Some(session.lives[1 - node])
    }

    /// True if this node uses a session or is about to.
    pub fn is_busy(&self, node: usize) -> bool {
        self.sessions
            .values()
            .any(|session| session.ends[node] != End::Closed)
    }

    /// True if both directions are open.
    pub fn is_whole(&self) -> bool {
        self.blocked == [false, false]
    }

    /// Closes one end. True if it was open.
    pub fn close(&mut self, id: u64, node: usize) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else {
            return false;
        };
        let was_open = session.ends[node] != End::Closed;
        session.ends[node] = End::Closed;
        if session.ends == [End::Closed; 2] {
            self.sessions.remove(&id);
        }
        was_open
    }

    /// Some of what the node had sent never arrives.
    pub fn lose_tails(&mut self, id: u64, from: usize, rng: &mut Rng) {
        if let Some(session) = self.sessions.get_mut(&id) {
            for queue in &mut session.on_way[from] {
                let keep = match rng.below(3) {
                    0 => 0,
                    1 => queue.len(),
                    _ => rng.below(queue.len() as u64 + 1) as usize,
                };
                queue.truncate(keep);
            }
        }
    }

    /// Sends a message that takes `delay`; the time at which it is due, not before the one ahead
    /// of it. `None` if the end is not open.
    pub fn send(
        &mut self,
        id: u64,
        from: usize,
        class: usize,
        message: Encoded,
        now: u64,
        delay: u64,
    ) -> Option<u64> {
        let session = self
            .sessions
            .get_mut(&id)
            .filter(|session| session.ends[from] == End::Up)?;
        let queue = &mut session.on_way[from][class];
        let ahead = queue.back().map_or(0, |flight| flight.due);
        let stalled = self.stalled_until[from][class];
        let due = (now.max(stalled) + delay).max(ahead);
        queue.push_back(Flight { due, message });
        Some(due)
    }

    /// The next message of a stream, if it may arrive now.
    pub fn arrive(&mut self, id: u64, from: usize, class: usize, now: u64) -> Option<Encoded> {
        if self.blocked[from] {
            return None;
        }
        let session = self
            .sessions
            .get_mut(&id)
            .filter(|session| session.ends[1 - from] == End::Up)?;
        let queue = &mut session.on_way[from][class];
        if queue.front().is_none_or(|flight| flight.due > now) {
            return None;
        }
        queue.pop_front().map(|flight| flight.message)
    }

    /// How long the payload of what may arrive now is, if anything may and it has one.
    pub fn next_payload(&self, id: u64, from: usize, class: usize, now: u64) -> Option<usize> {
        let session = self.sessions.get(&id)?;
        let open = !self.blocked[from] && session.ends[1 - from] == End::Up;
        let first = session.on_way[from][class].front();
        let first = first.filter(|flight| open && flight.due <= now)?;
        first.message.payload.as_ref().map(Bytes::len)
    }

    /// What waits on the streams from a node: (session, class, how many).
    pub fn waiting(&self, from: usize) -> Vec<(u64, usize, usize)> {
        let all = self.sessions.iter().flat_map(|(id, session)| {
            let queues = session.on_way[from].iter().enumerate();
            queues.map(|(class, queue)| (*id, class, queue.len()))
        });
        all.filter(|(_, _, len)| *len > 0).collect()
    }

    /// What waits on the streams of one session from a node.
    pub fn waiting_in(&self, id: u64, from: usize) -> Vec<(usize, usize)> {
        let waiting = self.waiting(from);
        let ours = waiting.into_iter().filter(|(session, _, _)| *session == id);
        ours.map(|(_, class, len)| (class, len)).collect()
    }
}

#[cfg(test)]
mod tests {
    use kagami_replicator::core::message::Message;
    use kagami_replicator::wire::message::encode;

    use super::*;

    fn ping(sent: u64) -> Encoded {
        encode(&Message::Ping { sent })
    }

    fn pair() -> (Net, u64) {
        let mut net = Net::default();
        let id = net.open([1, 1], 2);
        net.session(id).unwrap().ends = [End::Up; 2];
        (net, id)
    }

    #[test]
    fn a_class_keeps_its_order_and_classes_overtake() {
        let (mut net, id) = pair();
        assert_eq!(net.send(id, 0, 1, ping(1), 0, 50), Some(50));
        assert_eq!(
            net.send(id, 0, 1, ping(2), 1, 5),
            Some(50),
            "behind the one ahead of it"
        );
        assert_eq!(net.send(id, 0, 0, ping(3), 2, 5), Some(7));
        assert_eq!(net.arrive(id, 0, 1, 7), None);
        assert_eq!(net.arrive(id, 0, 0, 7), Some(ping(3)));
        assert_eq!(net.arrive(id, 0, 1, 50), Some(ping(1)));
        assert_eq!(net.arrive(id, 0, 1, 50), Some(ping(2)));
    }

    #[test]
    fn a_blocked_direction_holds_and_the_other_does_not() {
        let (mut net, id) = pair();
        net.blocked = [true, false];
        net.send(id, 0, 0, ping(1), 0, 1);
        net.send(id, 1, 0, ping(2), 0, 1);
        assert_eq!(net.arrive(id, 0, 0, 9), None);
        assert_eq!(net.arrive(id, 1, 0, 9), Some(ping(2)));
        net.blocked = [false, false];
        assert_eq!(net.waiting(0), [(id, 0, 1)]);
        assert_eq!(net.arrive(id, 0, 0, 9), Some(ping(1)));
    }

    #[test]
    fn ends_close_one_by_one() {
        let (mut net, id) = pair();
        net.send(id, 0, 0, ping(1), 0, 1);
        assert!(net.close(id, 0) && !net.close(id, 0));
        assert_eq!(net.send(id, 0, 0, ping(2), 0, 1), None);
        assert_eq!(net.arrive(id, 0, 0, 9), Some(ping(1)), "it was on its way");
        assert_eq!((net.used_by(0), net.used_by(1)), (None, Some(id)));
        assert!(net.close(id, 1) && net.session(id).is_none());
    }
}
