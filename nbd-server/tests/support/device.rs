//! A memory device that can hold its answers, fail, and run out of buffers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kagami_nbd_server::{
    Access, BlockDevice, Completion, DeviceInfo, IoError, MemoryDevice, Refusal, Request,
    WriteBuffer,
};
use tokio::sync::Semaphore;

pub struct TestDevice {
    pub memory: MemoryDevice,
    /// Requests are kept until they are released.
    pub hold: Cell<bool>,
    pub held: RefCell<VecDeque<(Request, Completion)>>,
    /// Reads and writes that touch this byte fail so.
    pub fault: RefCell<Option<(u64, IoError)>>,
    pub submitted: Cell<u64>,
    pub openings: Rc<Cell<usize>>,
    /// Buffers that may be out at once.
    pub buffers: RefCell<Arc<Semaphore>>,
    /// How often a buffer was asked for.
    pub asked: Cell<u64>,
    /// What was submitted, if that is wanted: it keeps the payloads.
    pub log: RefCell<Option<Vec<Request>>>,
}

impl TestDevice {
    pub fn new(info: DeviceInfo) -> Self {
        Self {
            memory: MemoryDevice::with_info(info),
            hold: Cell::new(false),
            held: RefCell::default(),
            fault: RefCell::default(),
            submitted: Cell::new(0),
            openings: Rc::default(),
            buffers: RefCell::new(Arc::new(Semaphore::new(1 << 20))),
            asked: Cell::new(0),
            log: RefCell::default(),
        }
    }

    /// Lets what is held go on, newest first: answers come out of order.
    pub fn release(&self) {
        self.hold.set(false);
        while let Some((request, completion)) = { self.held.borrow_mut().pop_back() } {
            self.memory.submit(&(), request, completion);
        }
    }

    fn is_hit(&self, request: &Request) -> Option<IoError> {
        let (at, error) = self.fault.borrow().clone()?;
        let (offset, len) = match request {
            Request::Read { offset, len } => (*offset, u64::from(*len)),
            Request::Write { offset, data, .. } => (*offset, data.len() as u64),
            Request::Flush => return Some(error),
            _ => return None,
        };
        (offset..offset + len).contains(&at).then_some(error)
    }
}

pub struct Open(Rc<Cell<usize>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Memory that holds a permit of the device until its last user is gone, as pooled memory does.
pub struct Buffer(BytesMut, #[allow(dead_code)] Permit);

struct Permit(Arc<Semaphore>);

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl WriteBuffer for Buffer {
    fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

impl BlockDevice for TestDevice {
    type Buffer = Buffer;
    type Opening = Open;

    fn info(&self, access: Access) -> Result<DeviceInfo, Refusal> {
        self.memory.info(access)
    }

    fn open(&self, access: Access) -> Result<Open, Refusal> {
        self.memory.open(access)?;
        self.openings.set(self.openings.get() + 1);
        Ok(Open(Rc::clone(&self.openings)))
    }

    async fn buffer(&self, len: usize) -> Buffer {
        self.asked.set(self.asked.get() + 1);
        let buffers = Arc::clone(&self.buffers.borrow());
        buffers.acquire().await.expect("never closed").forget();
        Buffer(BytesMut::zeroed(len), Permit(buffers))
    }

    fn submit(&self, _: &Open, request: Request, completion: Completion) {
        self.submitted.set(self.submitted.get() + 1);
        if let Some(log) = &mut *self.log.borrow_mut() {
            log.push(request.clone());
        }
        if let Some(error) = self.is_hit(&request) {
            completion.fail(error);
        } else if self.hold.get() {
            self.held.borrow_mut().push_back((request, completion));
        } else {
            self.memory.submit(&(), request, completion);
        }
    }
}
