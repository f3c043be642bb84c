//! A mirror as a block device on its own thread: what front ends hold.
//!
//! A request is queued for the thread's loop, which hands it to the core in the same turn as what else
//! happened; its answer comes back through the [`Requester`]. Nothing is boxed for it and no task is
//! made. Payloads live in the thread's pool, so a front end that runs out of it waits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use kagami_bitmap::{BLOCK, Block, Run};
use tokio::sync::Notify;

use super::host::Host;
use crate::core::NodeId;
use crate::core::event::{IoError, Request};
use crate::core::register::ArbiterAnswer;
use crate::core::state::{Attempt, RequestId, Role};
use crate::shell::buffers::{Account, Buffer, Share};

/// Where answers go: a front end, which gave the ticket with the request.
pub trait Requester {
    /// The request is done. Called once for each; must not call the device.
    fn complete(&self, ticket: u64, result: Result<Payload, IoError>);
}

/// The bytes of a read; empty for everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// In one piece.
    Whole(Bytes),
    /// In several, in order.
    Parts(Vec<Bytes>),
}

/// What the loop finds in its inbox.
pub(super) enum Item {
    Request {
        host: Rc<RefCell<Host>>,
        /// It is answered in no other.
        term: u64,
        request: Request,
        requester: Rc<dyn Requester>,
        ticket: u64,
    },
    /// Memory that a read of the peer's copy waited for.
    Room {
        /// The mirror that asked, if it is still there.
        host: std::rc::Weak<RefCell<Host>>,
        id: RequestId,
        room: Buffer,
    },
    Arbiter {
        /// The mirror that asked, if it is still there.
        host: std::rc::Weak<RefCell<Host>>,
        attempt: Attempt,
        answer: ArbiterAnswer,
    },
}

/// What the tasks of the thread have for its loop.
#[derive(Default)]
pub(super) struct Inbox {
    items: RefCell<VecDeque<Item>>,
    ready: Notify,
}

impl Inbox {
    pub(super) fn push(&self, item: Item) {
        self.items.borrow_mut().push_back(item);
        self.ready.notify_one();
    }

    pub(super) async fn ready(&self) {
        while self.items.borrow().is_empty() {
            self.ready.notified().await;
        }
    }

    pub(super) fn take(&self, out: &mut VecDeque<Item>) {
        std::mem::swap(&mut *self.items.borrow_mut(), out);
    }
}

/// What front ends tell their clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block, 512 or 4096.
    pub logical_block: u32,
    /// The longest payload that the thread's memory can ever hold.
    pub max_payload: usize,
    /// The disk below turns.
    pub rotational: bool,
}

/// A stretch of the device that is stored in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Bytes.
    pub len: u64,
    /// For [`MirrorDevice::dirty`]: the peer may lack it. For [`MirrorDevice::allocation`]: it is a hole
    /// that reads as zeroes.
    pub is_set: bool,
}

/// Blocks and extents that one answer to [`MirrorDevice::dirty`] looks at: a client may ask for four GiB, 256 times,
/// and the thread has other work.
const MAX_LOOKED: usize = 1 << 14;

/// A mirror on its own thread.
#[derive(Clone)]
pub struct MirrorDevice {
    pub(super) host: Rc<RefCell<Host>>,
    pub(super) inbox: Rc<Inbox>,
    /// What its payloads are charged to.
    pub(super) account: Account,
}

impl std::fmt::Debug for MirrorDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MirrorDevice")
            .field("mirror", &self.name())
            .finish_non_exhaustive()
    }
}

impl MirrorDevice {
    /// The mirror's name.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.host.borrow().name)
    }

    /// Size and units.
    pub fn facts(&self) -> DeviceFacts {
        let host = self.host.borrow();
        let record = host.mirror.record();
        DeviceFacts {
            size: record.size,
            logical_block: record.logical_block,
            max_payload: self.account.pool().limit(Share::FrontEnd),
            rotational: host.stores.rotational,
        }
    }

    /// Why the mirror is not served here at this moment, with the next step; `None`: it is.
    ///
    /// `peer` is the peer's name, for the text.
    pub fn refusal(&self, peer: &str) -> Option<String> {
        let host = self.host.borrow();
        if host.is_leaving {
            return Some(format!(
                "mirror {}: it was removed from this node",
                host.name
            ));
        }
        if host.mirror.role() == Role::Primary {
            return None;
        }
        let status = host.mirror.status(crate::shell::time::now());
        let text = match status.peer_role {
            Some(Role::Primary) => {
                format!(
                    "node {peer} is Primary, this one Secondary; use the mirror there, or hand it over: `kagami demote` there, `kagami promote {}` here",
                    host.name
                )
            }
            Some(Role::Secondary) => {
                format!(
                    "this node and {peer} are both Secondary; choose one: `kagami promote {}`",
                    host.name
                )
            }
            None if host.mirror.peer() == NodeId::NOBODY => format!(
                "this node is Secondary, and no other has a copy; begin here: `kagami promote {}`",
                host.name
            ),
            None => format!(
                "this node is Secondary, and {peer} is not connected; look at `kagami status {}`",
                host.name
            ),
        };
        Some(format!("mirror {}: {text}", host.name))
    }

    /// Memory for the payload of a write, `len` bytes (1 to [`DeviceFacts::max_payload`]). Waits while
    /// there is none, or this mirror holds its part of what the thread's mirrors share.
    ///
    /// # Panics
    ///
    /// When `len` is 0 or more than that.
    pub async fn buffer(&self, len: usize) -> Buffer {
        match self.account.wait_alloc(len, Share::FrontEnd).await {
            Ok(buffer) => buffer,
            Err(error) => panic!("the front end was told what fits: {error}"),
        }
    }

    /// How often this node has stopped being Primary. Who was served before it did so last may hold what is true no
    /// more: its requests name the term in which it began.
    pub fn term(&self) -> u64 {
        self.host.borrow().mirror.term()
    }

    /// Hands a request over. `requester` gets `ticket` back with the answer, exactly once. In any [term](Self::term)
    /// but this one, that is [`IoError::NotPrimary`].
    pub fn submit(&self, term: u64, request: Request, requester: Rc<dyn Requester>, ticket: u64) {
        let host = Rc::clone(&self.host);
        self.inbox.push(Item::Request {
            host,
            term,
            request,
            requester,
            ticket,
        });
    }

    /// Which parts of a range the peer may lack, alternating, at most `max` of them; they may end before
    /// the range does.
    pub fn dirty(&self, offset: u64, len: u64, max: usize) -> Vec<Stretch> {
        let host = self.host.borrow();
        let end = offset.saturating_add(len).min(host.mirror.record().size);
        let mut out = Stretches::new(max);
        let mut at = offset;
        let mut looked = 0;
        while at < end && !out.is_full() && looked < MAX_LOOKED {
            looked += 1;
            let block = Block(at / BLOCK);
            // Extents that lack nothing are passed over whole.
            let extent = block.extent().run();
            let (until, lacks) = if block == extent.first && !host.mirror.lacks(extent) {
                (extent.end().byte_offset(), false)
            } else {
                ((block.0 + 1) * BLOCK, host.mirror.lacks(Run::new(block, 1)))
            };
            let until = until.min(end);
            out.add(until - at, lacks);
            at = until;
        }
        out.finish()
    }

    /// Which parts of a range are holes that read as zeroes, alternating, at most `max` of them; they may
    /// end before the range does. What can't be known counts as data.
    pub async fn allocation(&self, offset: u64, len: u64, max: usize) -> Vec<Stretch> {
        let term = self.term();
        let (end, looks) = {
            let host = self.host.borrow();
            let end = offset.saturating_add(len).min(host.mirror.record().size);
            // The holes of a file are no answer where the other copy answers, nor where it may have been written since: a
            // client that stayed through a demotion or the end of a lease would take for zeroes what is not.
            let holes = host.stores.holes.as_ref();
            let holes = holes.filter(|_| offset < end && host.mirror.reads_here());
            (end, holes.map(|holes| holes.look(offset, end, max)))
        };
        if let Some(looks) = looks {
            let found = looks.await;
            if self.term() == term && self.host.borrow().mirror.reads_here() {
                return found;
            }
        }
        let mut out = Stretches::new(max);
        if offset < end {
            out.add(end - offset, false);
        }
        out.finish()
    }
}

/// Collects stretches, joining equal neighbours.
pub(super) struct Stretches {
    list: Vec<Stretch>,
    max: usize,
}

impl Stretches {
    pub(super) fn new(max: usize) -> Self {
        Self {
            list: Vec::new(),
            max: max.max(1),
        }
    }

    /// One more than wanted is there: the last one wanted has its end.
    pub(super) fn is_full(&self) -> bool {
        self.list.len() > self.max
    }

    pub(super) fn add(&mut self, len: u64, is_set: bool) {
        match self.list.last_mut() {
            Some(last) if last.is_set == is_set => last.len += len,
            _ => self.list.push(Stretch { len, is_set }),
        }
    }

    pub(super) fn finish(mut self) -> Vec<Stretch> {
        self.list.truncate(self.max);
        self.list
    }
}
