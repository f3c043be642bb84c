//! Where the core puts blocks together: memory that its host counts as it counts payloads.

use std::fmt::Debug;

use bytes::Bytes;

/// Gives the core memory for blocks.
pub trait Memory: Debug {
    /// `len` bytes of memory (whole blocks, one or two of them), as `fill` leaves them. `fill` writes every byte: what
    /// it finds there is anything. Never waits, since as many bytes that the host gave for a read are dropped with the
    /// same event.
    fn put_together(&self, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> Bytes;
}

/// Memory of the process that nobody counts: for hosts without a bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

impl Memory for Heap {
    fn put_together(&self, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> Bytes {
        let mut memory = vec![0; len];
        fill(&mut memory);
        memory.into()
    }
}
