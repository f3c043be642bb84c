//! The fuzzer's bytes as choices: what a target draws its structure from.
//!
//! Bytes that have run out read as zero, so that every input is a whole story.

/// Bytes that are taken from the front.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Choices from these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// True if nothing is left to choose by.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, as many as there are up to `len`.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One byte's worth of choice below `limit`.
    pub fn below(&mut self, limit: u8) -> u8 {
        self.u8() % limit.max(1)
    }

    /// Yes or no.
    pub fn coin(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// A number that is often at an edge: near zero, near `edge`, near the top, or any.
    pub fn near(&mut self, edge: u64) -> u64 {
        match self.below(6) {
            0 => u64::from(self.u8()),
            1 => edge.saturating_add(u64::from(self.u8())),
            2 => edge.saturating_sub(u64::from(self.u8())),
            3 => u64::MAX - u64::from(self.u8()),
            4 => u64::from(self.u16()),
            _ => self.u64(),
        }
    }

    /// Writes what the input says over `bytes`, some pieces of it: (where, how long, what).
    pub fn patch(&mut self, bytes: &mut [u8]) {
        for _ in 0..self.below(16) {
            if bytes.is_empty() {
                return;
            }
            let at = self.u32() as usize % bytes.len();
            let len = usize::from(self.below(64)) + 1;
            let new = self.take(len);
            let room = new.len().min(bytes.len() - at);
            bytes[at..at + room].copy_from_slice(&new[..room]);
        }
    }
}
