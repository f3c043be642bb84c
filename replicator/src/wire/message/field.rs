//! The fields of a head: how each sort is spelled, and what it must satisfy when it is read.

use bytes::{BufMut, Bytes, BytesMut};
use kagami_bitmap::superblock::Generation;
use kagami_bitmap::{Block, Run};

use super::{
    BLOCK, Kind, MAX_HASHES_PER_MESSAGE, MAX_HEAD, MAX_HISTORY_PER_MESSAGE, MAX_PAYLOAD,
    MAX_RUNS_PER_MESSAGE, MAX_TEXT, MessageFault, fault_code, generation_bytes, payload_fits,
};
use crate::core::disk::DiskFault;
use crate::core::message::BlockHash;
use crate::core::state::Seq;

/// One more than the highest block that any mirror can have.
const BLOCK_LIMIT: u64 = kagami_bitmap::geometry::MAX_SIZE / kagami_bitmap::geometry::BLOCK;

/// Spells fields one after the other, behind what is there of other heads.
pub(super) struct HeadWriter<'a>(&'a mut BytesMut);

/// Room for the head of any message that each write needs.
pub(super) const USUAL: usize = 32;

/// Bytes that are taken from the allocator at once.
const ARENA: usize = 4096;

impl<'a> HeadWriter<'a> {
    pub fn new(arena: &'a mut BytesMut) -> Self {
        assert!(arena.is_empty(), "each head was taken out");
        if arena.capacity() < USUAL {
            arena.reserve(ARENA);
        }
        Self(arena)
    }

    pub fn finish(self) -> Bytes {
        assert!(self.0.len() <= MAX_HEAD, "a head of {} bytes", self.0.len());
        self.0.split().freeze()
    }

    pub fn u8(&mut self, value: u8) {
        self.0.put_u8(value);
    }

    pub fn u16(&mut self, value: usize) {
        let value = u16::try_from(value).expect("a count within its bound");
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u128(&mut self, value: u128) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub fn option_u64(&mut self, value: Option<u64>) {
        self.flag(value.is_some());
        if let Some(value) = value {
            self.u64(value);
        }
    }

    pub fn generation(&mut self, value: Generation) {
        self.0.extend_from_slice(&generation_bytes(value));
    }

    pub fn option_generation(&mut self, value: Option<Generation>) {
        self.flag(value.is_some());
        if let Some(value) = value {
            self.generation(value);
        }
    }

    pub fn history(&mut self, history: &[Generation]) {
        assert!(
            history.len() <= MAX_HISTORY_PER_MESSAGE,
            "a history of {} generations",
            history.len()
        );
        self.u16(history.len());
        for generation in history {
            self.generation(*generation);
        }
    }

    pub fn outcome(&mut self, fault: Option<DiskFault>) {
        let (code, errno) = fault_code(fault);
        self.u8(code);
        self.0.extend_from_slice(&errno.to_le_bytes());
    }

    /// Cut at a character's end if it is too long, control characters replaced: it is for people.
    pub fn text(&mut self, text: &str) {
        let text = text.replace(char::is_control, " ");
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.u16(end);
        self.0.extend_from_slice(&text.as_bytes()[..end]);
    }

    pub fn hashes(&mut self, hashes: &[BlockHash]) {
        assert!(
            !hashes.is_empty() && hashes.len() <= MAX_HASHES_PER_MESSAGE,
            "{} hashes",
            hashes.len()
        );
        self.u16(hashes.len());
        for hash in hashes {
            self.0.extend_from_slice(hash);
        }
    }

    /// Each as the difference to the one before, less one.
    pub fn indices(&mut self, indices: &[u32]) {
        assert!(
            indices.len() <= MAX_HASHES_PER_MESSAGE,
            "{} indices",
            indices.len()
        );
        self.u16(indices.len());
        let mut next = 0;
        for &index in indices {
            assert!(next <= index, "indices must ascend: {index} after {next}");
            self.varint(u64::from(index - next));
            next = index + 1;
        }
    }

    /// Each as the blocks between it and the one before, and its own length less one.
    pub fn runs(&mut self, runs: &[Run]) {
        assert!(runs.len() <= MAX_RUNS_PER_MESSAGE, "{} runs", runs.len());
        self.u16(runs.len());
        let mut end = 0;
        for run in runs {
            assert!(
                end <= run.first.0 && run.count > 0,
                "runs must ascend and not be empty: {run:?} after {end}"
            );
            self.varint(run.first.0 - end);
            self.varint(run.count - 1);
            end = run.end().0;
        }
    }

    /// Seven bits a byte, the lowest first; the top bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.u8(value as u8);
    }
}

/// Reads fields one after the other, out of bytes that a peer chose.
pub(super) struct HeadReader<'a> {
    kind: Kind,
    rest: &'a [u8],
}

type Read<T> = Result<T, MessageFault>;

impl<'a> HeadReader<'a> {
    pub fn new(kind: Kind, head: &'a [u8]) -> Self {
        Self { kind, rest: head }
    }

    /// Nothing may be left.
    pub fn end(&self) -> Read<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(MessageFault::Long {
            kind: self.kind,
            extra: self.rest.len(),
        })
    }

    /// A field that older versions of the protocol end before.
    pub fn rest<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Read<T>,
    ) -> Read<Option<T>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        read(self, field).map(Some)
    }

    fn take<const N: usize>(&mut self, field: &'static str) -> Read<[u8; N]> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(MessageFault::Short {
                kind: self.kind,
                field,
            });
        };
        self.rest = rest;
        Ok(*bytes)
    }

    pub fn u8(&mut self, field: &'static str) -> Read<u8> {
        Ok(self.take::<1>(field)?[0])
    }

    pub fn u32(&mut self, field: &'static str) -> Read<u32> {
        Ok(u32::from_le_bytes(self.take(field)?))
    }

    pub fn u64(&mut self, field: &'static str) -> Read<u64> {
        Ok(u64::from_le_bytes(self.take(field)?))
    }

    pub fn u128(&mut self, field: &'static str) -> Read<u128> {
        Ok(u128::from_le_bytes(self.take(field)?))
    }

    pub fn flag(&mut self, field: &'static str) -> Read<bool> {
        Ok(self.flags(field, 1)? != 0)
    }

    /// A byte with only these bits.
    pub fn flags(&mut self, field: &'static str, known: u8) -> Read<u8> {
        let value = self.u8(field)?;
        if value & !known != 0 {
            return Err(self.bad(field, u64::from(value)));
        }
        Ok(value)
    }

    /// A byte that stands for something.
    pub fn coded<T>(&mut self, field: &'static str, meaning: impl Fn(u8) -> Option<T>) -> Read<T> {
        let code = self.u8(field)?;
        meaning(code).ok_or(self.bad(field, u64::from(code)))
    }

    pub fn option_u64(&mut self, field: &'static str) -> Read<Option<u64>> {
        Ok(if self.flag(field)? {
            Some(self.u64(field)?)
        } else {
            None
        })
    }

    pub fn generation(&mut self, field: &'static str) -> Read<Generation> {
        Ok(Generation {
            counter: self.u64(field)?,
            tag: self.u64(field)?,
        })
    }

    pub fn option_generation(&mut self, field: &'static str) -> Read<Option<Generation>> {
        Ok(if self.flag(field)? {
            Some(self.generation(field)?)
        } else {
            None
        })
    }

    pub fn history(&mut self) -> Read<Vec<Generation>> {
        let count = self.count("history", MAX_HISTORY_PER_MESSAGE, 16)?;
        (0..count).map(|_| self.generation("history")).collect()
    }

    /// Numbers of writes start at 1.
    pub fn seq(&mut self) -> Read<Seq> {
        let seq = self.u64("seq")?;
        if seq == 0 {
            return Err(self.bad("seq", seq));
        }
        Ok(Seq(seq))
    }

    pub fn outcome(&mut self) -> Read<Option<DiskFault>> {
        let code = self.u8("outcome")?;
        let errno = i32::from_le_bytes(self.take("outcome")?);
        match (code, errno) {
            (0, 0) => Ok(None),
            (1, 0) => Ok(Some(DiskFault::NoSpace)),
            (2, errno) => Ok(Some(DiskFault::Io(errno))),
            _ => Err(self.bad("outcome", u64::from(code))),
        }
    }

    pub fn text(&mut self, field: &'static str) -> Read<String> {
        let len = self.count(field, MAX_TEXT, 1)?;
        let (text, rest) = self.rest.split_at(len);
        self.rest = rest;
        match std::str::from_utf8(text) {
            // It is shown on terminals.
            Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
            _ => Err(MessageFault::NotText {
                kind: self.kind,
                field,
            }),
        }
    }

    /// A multiple of the block size.
    pub fn block_offset(&mut self, field: &'static str) -> Read<u64> {
        let value = self.u64(field)?;
        if !value.is_multiple_of(BLOCK as u64) {
            return Err(self.bad(field, value));
        }
        Ok(value)
    }

    /// Whole blocks, at least one, that start at `offset` and don't pass 2^64.
    pub fn block_len(&mut self, field: &'static str, offset: u64, limit: u64) -> Read<u64> {
        let len = self.u64(field)?;
        self.check_len(field, offset, len, limit)?;
        Ok(len)
    }

    pub fn read_len(&mut self, offset: u64) -> Read<u32> {
        let len = self.u32("len")?;
        self.check_len("len", offset, u64::from(len), MAX_PAYLOAD as u64)?;
        Ok(len)
    }

    fn check_len(&self, field: &'static str, offset: u64, len: u64, limit: u64) -> Read<()> {
        let whole = len != 0 && len.is_multiple_of(BLOCK as u64);
        if !whole || len > limit || offset.checked_add(len).is_none() {
            return Err(self.bad(field, len));
        }
        Ok(())
    }

    /// The payload of a message that must have one.
    pub fn blocks(&self, payload: Option<Bytes>) -> Read<Bytes> {
        match payload {
            Some(data) if payload_fits(data.len()) => Ok(data),
            other => Err(MessageFault::BadPayload {
                kind: self.kind,
                len: other.map_or(0, |data| data.len()),
                wanted: "it must be whole blocks of 4096 bytes, 1 to 257 of them",
            }),
        }
    }

    /// As [`Self::blocks`]; it must not pass 2^64 either.
    pub fn blocks_at(&self, offset: u64, payload: Option<Bytes>) -> Read<Bytes> {
        let data = self.blocks(payload)?;
        self.check_len("offset", offset, data.len() as u64, MAX_PAYLOAD as u64)?;
        Ok(data)
    }

    pub fn hashes(&mut self, offset: u64) -> Read<Vec<BlockHash>> {
        let count = self.count("hashes", MAX_HASHES_PER_MESSAGE, 16)?;
        self.check_len("hashes", offset, (count * BLOCK) as u64, u64::MAX)?;
        (0..count).map(|_| self.take::<16>("hashes")).collect()
    }

    pub fn indices(&mut self) -> Read<Vec<u32>> {
        let count = self.count("indices", MAX_HASHES_PER_MESSAGE, 1)?;
        let mut indices = Vec::with_capacity(count);
        let mut next = 0u64;
        for _ in 0..count {
            let index = next.saturating_add(self.varint("indices")?);
            if index >= MAX_HASHES_PER_MESSAGE as u64 {
                return Err(self.bad("indices", index));
            }
            indices.push(index as u32);
            next = index + 1;
        }
        Ok(indices)
    }

    pub fn runs(&mut self) -> Read<Vec<Run>> {
        let count = self.count("runs", MAX_RUNS_PER_MESSAGE, 2)?;
        let mut runs = Vec::with_capacity(count);
        let mut end = 0u64;
        for _ in 0..count {
            let first = end.saturating_add(self.varint("runs")?);
            let last = first.saturating_add(self.varint("runs")?);
            if last >= BLOCK_LIMIT {
                return Err(self.bad("runs", last));
            }
            end = last + 1;
            runs.push(Run::new(Block(first), end - first));
        }
        Ok(runs)
    }

    /// How many entries follow: within the bound, and not more than the head has bytes for
    /// (`least` for each), so that what is allocated for them is bounded by what was received.
    fn count(&mut self, field: &'static str, limit: usize, least: usize) -> Read<usize> {
        let count = usize::from(u16::from_le_bytes(self.take(field)?));
        if count > limit {
            return Err(MessageFault::TooMany {
                kind: self.kind,
                field,
                count: count as u64,
                limit,
            });
        }
        if count * least > self.rest.len() {
            return Err(MessageFault::Short {
                kind: self.kind,
                field,
            });
        }
        Ok(count)
    }

    /// The shortest spelling only: a value has one.
    fn varint(&mut self, field: &'static str) -> Read<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(field)?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(self.bad(field, u64::MAX));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift != 0 {
                    return Err(self.bad(field, value));
                }
                return Ok(value);
            }
        }
        Err(self.bad(field, u64::MAX))
    }

    fn bad(&self, field: &'static str, value: u64) -> MessageFault {
        MessageFault::BadValue {
            kind: self.kind,
            field,
            value,
        }
    }
}
