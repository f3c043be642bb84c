//! A mirror as the NBD server sees it: requests go to the core's thread, answers come back.
//!
//! No policy and no copies: payloads live in the thread's pool from the socket to the disk. A mirror
//! is served only where it is Primary; who asks elsewhere is told where to go. And only as long as it is: what was
//! opened before this node stopped being Primary may remember data that another has replaced since, and stays
//! refused when this node is Primary again. A network client connects anew; of the kernel's device its keeper
//! decides ([`Served::permitted`]).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kagami_nbd_server::device::DEFAULT_MAX_PAYLOAD;
use kagami_nbd_server::{
    Access, Answer, BlockDevice, Completion, DeviceInfo, DirtyExtent, Errno, Extent, IoError,
    ReadData, ReadPart, Refusal, Request, WriteBuffer,
};
use kagami_replicator::core::event;
use kagami_replicator::shell::buffers::Buffer;
use kagami_replicator::shell::engine::{MirrorDevice, Payload, Requester};
use slab::Slab;

/// What a session is told that was opened before this node stopped being Primary.
const NOT_WITHOUT_A_BREAK: &str = "this node stopped being Primary since this was opened, and its data may be others now; open it anew";

/// One mirror, served on its own thread.
#[derive(Debug)]
pub struct Served {
    device: MirrorDevice,
    /// The peer's name, for refusals.
    peer: String,
    answers: Rc<Answers>,
    permitted: Option<Term>,
}

/// A node's term as Primary that something is served in.
#[derive(Clone, Debug)]
pub struct Term(Arc<AtomicU64>);

impl Term {
    /// That one.
    pub fn of(number: u64) -> Self {
        Self(Arc::new(AtomicU64::new(number)))
    }

    /// Which it is.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// From now on it is that one.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Release);
    }
}

impl Served {
    /// Serves `device`; each session in the term that it is opened in.
    pub fn new(device: MirrorDevice, peer: String) -> Self {
        Self {
            device,
            peer,
            answers: Rc::default(),
            permitted: None,
        }
    }

    /// Serves `device` in that term alone.
    pub fn permitted(device: MirrorDevice, peer: String, term: Term) -> Self {
        Self {
            permitted: Some(term),
            ..Self::new(device, peer)
        }
    }

    async fn status(
        device: &MirrorDevice,
        offset: u64,
        len: u32,
        wanted: (bool, bool),
        max: usize,
    ) -> Answer {
        let len = u64::from(len);
        let (allocation, dirty) = wanted;
        Answer::Status {
            allocation: if allocation {
                let stretches = device.allocation(offset, len, max).await;
                stretches
                    .into_iter()
                    .map(|stretch| Extent {
                        len: stretch.len,
                        hole: stretch.is_set,
                        zero: stretch.is_set,
                    })
                    .collect()
            } else {
                Vec::new()
            },
            dirty: if dirty {
                let stretches = device.dirty(offset, len, max);
                stretches
                    .into_iter()
                    .map(|stretch| DirtyExtent {
                        len: stretch.len,
                        dirty: stretch.is_set,
                    })
                    .collect()
            } else {
                Vec::new()
            },
        }
    }
}

/// Requests in flight, by ticket.
#[derive(Debug, Default)]
struct Answers {
    pending: RefCell<Slab<Pending>>,
}

#[derive(Debug)]
struct Pending {
    completion: Completion,
    is_read: bool,
}

impl Requester for Answers {
    fn complete(&self, ticket: u64, result: Result<Payload, event::IoError>) {
        // Taken out first: the completion may start the next request.
        let Pending {
            completion,
            is_read,
        } = self.pending.borrow_mut().remove(ticket as usize);
        completion.complete(match result {
            Ok(_) if !is_read => Ok(Answer::Done),
            Ok(Payload::Whole(bytes)) => Ok(Answer::Data(ReadData::Whole(bytes))),
            Ok(Payload::Parts(parts)) => Ok(Answer::Data(ReadData::Parts(
                parts.into_iter().map(ReadPart::Data).collect(),
            ))),
            Err(error) => Err(IoError::new(errno(error), error.to_string())),
        });
    }
}

fn errno(error: event::IoError) -> Errno {
    match error {
        event::IoError::NotPrimary => Errno::Perm,
        event::IoError::OutOfRange | event::IoError::Unaligned => Errno::Inval,
        event::IoError::Io => Errno::Io,
        event::IoError::NoSpace => Errno::NoSpc,
    }
}

/// A write's payload in the thread's pool.
#[derive(Debug)]
pub struct Memory(Buffer);

impl AsMut<[u8]> for Memory {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl WriteBuffer for Memory {
    fn freeze(self) -> Bytes {
        self.0.freeze()
    }
}

impl BlockDevice for Served {
    type Buffer = Memory;
    type Opening = Term;

    fn info(&self, _: Access) -> Result<DeviceInfo, Refusal> {
        if let Some(why) = self.device.refusal(&self.peer) {
            return Err(Refusal::policy(why));
        }
        if let Some(term) = &self.permitted
            && term.get() != self.device.term()
        {
            return Err(Refusal::policy(format!(
                "mirror {}: {NOT_WITHOUT_A_BREAK}",
                self.device.name()
            )));
        }
        let facts = self.device.facts();
        Ok(DeviceInfo {
            min_block: facts.logical_block,
            max_payload: u32::try_from(facts.max_payload)
                .unwrap_or(u32::MAX)
                .min(DEFAULT_MAX_PAYLOAD),
            rotational: facts.rotational,
            // Whether zeroing is faster than writing depends on both disks: it is not promised.
            fast_zero: false,
            ..DeviceInfo::new(facts.size)
        })
    }

    fn open(&self, access: Access) -> Result<Term, Refusal> {
        self.info(access)?;
        let permitted = self.permitted.clone();
        Ok(permitted.unwrap_or_else(|| Term::of(self.device.term())))
    }

    async fn buffer(&self, len: usize) -> Memory {
        Memory(self.device.buffer(len).await)
    }

    fn submit(&self, opening: &Term, request: Request, completion: Completion) {
        let term = opening.get();
        if term != self.device.term() {
            return completion.fail(IoError::new(Errno::Perm, NOT_WITHOUT_A_BREAK));
        }
        let is_read = matches!(request, Request::Read { .. });
        let request = match request {
            Request::Read { offset, len } => event::Request::Read { offset, len },
            Request::Write { offset, data, fua } => event::Request::Write { offset, data, fua },
            Request::Flush => event::Request::Flush,
            Request::Trim { offset, len, fua } => event::Request::Discard {
                offset,
                len: u64::from(len),
                fua,
            },
            Request::WriteZeroes { fast: true, .. } => {
                return completion.fail(IoError::new(
                    Errno::NotSup,
                    "zeroing may be as slow as writing",
                ));
            }
            Request::WriteZeroes {
                offset,
                len,
                fua,
                no_hole,
                fast: false,
            } => event::Request::WriteZeroes {
                offset,
                len: u64::from(len),
                unmap: !no_hole,
                fua,
            },
            // A hint; the kernel's cache is not used, so there is nothing to warm.
            Request::Cache { .. } => return completion.done(),
            Request::BlockStatus {
                offset,
                len,
                allocation,
                dirty,
                max_extents,
            } => {
                // The file system may take its time; nothing else waits for it.
                let device = self.device.clone();
                tokio::task::spawn_local(async move {
                    let wanted = (allocation, dirty);
                    let answer = Self::status(&device, offset, len, wanted, max_extents).await;
                    if term == device.term() {
                        completion.complete(Ok(answer));
                    } else {
                        completion.fail(IoError::new(Errno::Perm, NOT_WITHOUT_A_BREAK));
                    }
                });
                return;
            }
        };
        let ticket = self.answers.pending.borrow_mut().insert(Pending {
            completion,
            is_read,
        });
        let requester: Rc<dyn Requester> = self.answers.clone();
        // It may be another's before the request is begun.
        self.device.submit(term, request, requester, ticket as u64);
    }
}
