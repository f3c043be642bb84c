//! A mirror as an NBD export: between the NBD server's block device and the engine's.
//!
//! Both sides live on the mirror's data-plane thread and meet without a copy, a task or an allocation for
//! a request: a write's payload was read from the socket into the engine's own memory, a read's goes to the
//! socket from there. Decides nothing but how each side's words are the other's.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;

use bytes::Bytes;
use kagami_nbd_server as nbd;
use kagami_nbd_server::{
    Answer, Completion, DeviceInfo, DirtyExtent, Errno, Export, Exports, Extent,
};
use kagami_nbd_server::{Limits, Listener, Opening, ReadData, ReadPart, Server, TlsPolicy};
use kagami_replicator::core;
use kagami_replicator::core::event::IoError;
use kagami_replicator::shell::buffers::Buffer;
use kagami_replicator::shell::engine::{Engine, MirrorDevice, Payload, Requester, Stretch};
use slab::Slab;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The longest payload that clients are told of; the engine's memory may allow less.
const MAX_PAYLOAD: usize = nbd::device::DEFAULT_MAX_PAYLOAD as usize;

/// A mirror that NBD clients are served.
#[derive(Debug)]
pub struct ExportedMirror {
    device: MirrorDevice,
    /// The peer's name, for texts.
    peer: String,
    desk: Rc<Desk>,
}

impl ExportedMirror {
    /// The mirror `device`, whose peer people call `peer`.
    pub fn new(device: MirrorDevice, peer: impl Into<String>) -> Self {
        Self {
            device,
            peer: peer.into(),
            desk: Rc::default(),
        }
    }
}

/// Requests that the engine has, by ticket; whether bytes are expected.
#[derive(Debug, Default)]
struct Desk {
    waiting: RefCell<Slab<(Completion, bool)>>,
}

impl Requester for Desk {
    fn complete(&self, ticket: u64, result: Result<Payload, IoError>) {
        let (completion, is_read) = self.waiting.borrow_mut().remove(ticket as usize);
        match result {
            Ok(payload) if is_read => completion.complete(Ok(Answer::Data(read_data(payload)))),
            Ok(_) => completion.done(),
            Err(error) => completion.fail(nbd_error(error)),
        }
    }
}

fn read_data(payload: Payload) -> ReadData {
    match payload {
        Payload::Whole(bytes) => ReadData::Whole(bytes),
        Payload::Parts(parts) => ReadData::Parts(parts.into_iter().map(ReadPart::Data).collect()),
    }
}

fn nbd_error(error: IoError) -> nbd::IoError {
    match error {
        IoError::NotPrimary => nbd::IoError::new(
            Errno::Perm,
            "this node is not Primary any more; connect to the other one",
        ),
        IoError::OutOfRange => nbd::IoError::new(Errno::Inval, "beyond the end of the mirror"),
        IoError::Unaligned => nbd::IoError::new(Errno::Inval, "not in units of 512 bytes"),
        IoError::Io => nbd::IoError::new(Errno::Io, "no copy of the mirror could carry it out"),
        IoError::NoSpace => nbd::IoError::new(Errno::NoSpc, "the backing store is full"),
    }
}

/// Memory of the engine that a payload is read into.
#[derive(Debug)]
pub struct EngineBuffer(Buffer);

impl AsMut<[u8]> for EngineBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl nbd::WriteBuffer for EngineBuffer {
    fn freeze(self) -> Bytes {
        self.0.freeze()
    }
}

impl nbd::BlockDevice for ExportedMirror {
    type Buffer = EngineBuffer;

    fn info(&self, _access: nbd::Access) -> Result<DeviceInfo, nbd::Refusal> {
        if let Some(refusal) = self.device.refusal(&self.peer) {
            return Err(nbd::Refusal::policy(refusal));
        }
        let facts = self.device.facts();
        let mut info = DeviceInfo::new(facts.size);
        info.min_block = facts.logical_block;
        info.max_payload = facts.max_payload.min(MAX_PAYLOAD) as u32;
        info.rotational = facts.rotational;
        // Zeroing may have to write, on either copy; nobody is promised that it is fast.
        info.fast_zero = false;
        info.cache = false;
        Ok(info)
    }

    fn open(&self, _access: nbd::Access) -> Result<Opening, nbd::Refusal> {
        match self.device.refusal(&self.peer) {
            Some(refusal) => Err(nbd::Refusal::policy(refusal)),
            None => Ok(Box::new(())),
        }
    }

    async fn buffer(&self, len: usize) -> EngineBuffer {
        EngineBuffer(self.device.buffer(len).await)
    }

    fn submit(&self, request: nbd::Request, completion: Completion) {
        use core::Request as Core;
        let is_read = matches!(request, nbd::Request::Read { .. });
        let request = match request {
            nbd::Request::Read { offset, len } => Core::Read { offset, len },
            nbd::Request::Write { offset, data, fua } => Core::Write { offset, data, fua },
            nbd::Request::Flush => Core::Flush,
            nbd::Request::Trim { offset, len, fua } => Core::Discard {
                offset,
                len: len.into(),
                fua,
            },
            nbd::Request::WriteZeroes { fast: true, .. } => return completion.fail(Errno::NotSup),
            nbd::Request::WriteZeroes {
                offset,
                len,
                fua,
                no_hole,
                fast: false,
            } => Core::WriteZeroes {
                offset,
                len: len.into(),
                unmap: !no_hole,
                fua,
            },
            nbd::Request::Cache { .. } => return completion.done(),
            nbd::Request::BlockStatus {
                offset,
                len,
                allocation,
                dirty,
                max_extents,
            } => {
                let len = len.into();
                let allocation = if allocation {
                    self.device.allocation(offset, len, max_extents)
                } else {
                    Vec::new()
                };
                let dirty = if dirty {
                    self.device.dirty(offset, len, max_extents)
                } else {
                    Vec::new()
                };
                let hole = |Stretch { len, is_set }| Extent {
                    len,
                    hole: is_set,
                    zero: is_set,
                };
                let lacks = |Stretch { len, is_set }| DirtyExtent { len, dirty: is_set };
                return completion.complete(Ok(Answer::Status {
                    allocation: allocation.into_iter().map(hole).collect(),
                    dirty: dirty.into_iter().map(lacks).collect(),
                }));
            }
        };
        let ticket = self.desk.waiting.borrow_mut().insert((completion, is_read));
        self.device.submit(
            request,
            Rc::clone(&self.desk) as Rc<dyn Requester>,
            ticket as u64,
        );
    }
}

/// Where a mirror is served.
#[derive(Clone, Debug)]
pub struct ServeAt {
    /// The Unix socket, with its permission bits.
    pub unix: Option<(PathBuf, u32)>,
    /// A TCP address, with what it demands of clients.
    pub tcp: Option<(SocketAddr, TlsPolicy)>,
}

/// The NBD listeners of a mirror, on its own thread. Dropped, they end.
#[derive(Debug)]
pub struct Served {
    /// The TCP address that the system gave.
    pub tcp: Option<SocketAddr>,
    end: oneshot::Sender<oneshot::Sender<()>>,
}

impl Served {
    /// Takes no new clients, and ends the sessions there are: what they asked is answered first, where
    /// that doesn't take long. `false`: requests are left that the mirror holds (it has no permission to
    /// answer them); they end with the mirror, or when it is stopped.
    pub async fn end(self) -> bool {
        let (ended, wait) = oneshot::channel();
        match self.end.send(ended) {
            Ok(()) => timeout(2 * GRACE, wait).await.is_ok(),
            Err(_) => true,
        }
    }
}

/// How long clients' requests are waited for at the end.
const GRACE: std::time::Duration = std::time::Duration::from_secs(2);

/// Serves a mirror of `engine` under its name. The sockets are there when this returns.
///
/// # Errors
///
/// In words: an address can't be listened on, or the mirror doesn't run.
pub async fn serve(
    engine: &Engine,
    thread: u16,
    mirror: &str,
    peer: &str,
    at: ServeAt,
) -> Result<Served, String> {
    let (end, ended) = oneshot::channel::<oneshot::Sender<()>>();
    let (up, started) = oneshot::channel();
    let (name, peer) = (mirror.to_owned(), peer.to_owned());
    let spawned = engine.spawn_on(thread, move |plane| async move {
        let Some(device) = plane.device(&name) else {
            return drop(up.send(Err(format!("mirror {name} does not run here"))));
        };
        let exports = Rc::new(Exports::new());
        let added = exports.add(Export::new(
            name.as_str(),
            Rc::new(ExportedMirror::new(device, peer)),
        ));
        exports.set_default(Some(&name));
        let server = Server::new(exports, Limits::default());
        let listening = match added {
            Ok(()) => listen(&server, at).await,
            Err(fault) => Err(fault.to_string()),
        };
        let failed = listening.is_err();
        let _ = up.send(listening);
        if failed {
            return;
        }
        // Either an order to end, or nobody is left to give one.
        let ended = ended.await;
        server.shut_down(GRACE).await;
        if let Ok(ended) = ended {
            // Who ended it may have stopped waiting.
            let _ = ended.send(());
        }
    });
    let gone = || format!("mirror {mirror} is not served: the engine stops");
    if !spawned {
        return Err(gone());
    }
    let tcp = started.await.map_err(|_| gone())??;
    Ok(Served { tcp, end })
}

async fn listen(
    server: &Server<ExportedMirror>,
    at: ServeAt,
) -> Result<Option<SocketAddr>, String> {
    let fault = |fault: nbd::ListenFault| fault.to_string();
    if let Some((path, mode)) = at.unix {
        server.listen(Listener::unix(&path, mode).map_err(fault)?, TlsPolicy::Off);
    }
    let Some((address, tls)) = at.tcp else {
        return Ok(None);
    };
    let listener = Listener::tcp(address).await.map_err(fault)?;
    let address = listener.tcp_address();
    server.listen(listener, tls);
    Ok(address)
}
