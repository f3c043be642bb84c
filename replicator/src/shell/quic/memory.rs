//! The shell's pool as the place where received payloads go.

use bytes::Bytes;

use super::config::MirrorId;
use super::streams::BufferSource;
use crate::shell::buffers::{Buffer, Pool, Share};
use crate::wire::frame::{Class, PayloadBuffer};

impl PayloadBuffer for Buffer {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        self
    }

    fn freeze(self) -> Bytes {
        Buffer::freeze(self)
    }
}

impl BufferSource for Pool {
    type Buffer = Buffer;

    async fn take(&self, _mirror: MirrorId, _class: Class, len: usize) -> Option<Buffer> {
        self.wait_alloc(len, Share::Peer).await.ok()
    }
}
