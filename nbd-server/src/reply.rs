//! Replies of the transmission phase: answers in, segments of bytes out. Pure.
//!
//! A segment is a short head of its own and a body that belongs to the device; heads and bodies go
//! to the socket in one vectored write, uncopied. Successes without data are simple replies, with
//! structured replies negotiated as well: the protocol allows it and they are 4 bytes shorter.
//! Reads then are always structured, and so are errors, which carry their sentence.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use crate::device::{Answer, IoError, ReadData, ReadPart};
use crate::meta_context::{self, Contexts};
use crate::negotiate::Terms;
use crate::proto::{self, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use crate::request::Command;

/// Longest head: that of an `NBD_REPLY_TYPE_OFFSET_HOLE` chunk.
const MAX_HEAD: usize = 32;

/// A piece of the stream to the client.
#[derive(Debug)]
pub struct Segment {
    head: [u8; MAX_HEAD],
    head_len: u8,
    /// What follows the head.
    pub body: Body,
    /// Set on the last segment of a reply: how many bytes of the connection's budget it gives
    /// back.
    pub ends_reply: Option<u32>,
}

/// What follows a segment's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    None,
    /// Bytes.
    Bytes(Bytes),
    /// So many zero bytes.
    Zeroes(u32),
}

impl Body {
    /// Bytes of the body.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Bytes(bytes) => bytes.len(),
            Self::Zeroes(len) => *len as usize,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Segment {
    fn new(head: &[u8], body: Body) -> Self {
        let mut segment = Self {
            head: [0; MAX_HEAD],
            head_len: head.len() as u8,
            body,
            ends_reply: None,
        };
        segment.head[..head.len()].copy_from_slice(head);
        segment
    }

    /// The bytes before the body.
    pub fn head(&self) -> &[u8] {
        &self.head[..usize::from(self.head_len)]
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        usize::from(self.head_len) + self.body.len()
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A request that waits for its answer, as far as the reply needs it.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The client's cookie.
    pub cookie: u64,
    /// What was asked; `None` if the request didn't get as far as a command.
    pub command: Option<Command>,
    /// Where.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
}

impl Asked {
    /// Whether an answer is of the kind and the length that was asked for. If not, the device is
    /// broken, and sending it would corrupt the stream.
    fn assert_fits(&self, answer: &Answer, terms: Terms) {
        let fits = match (self.command, answer) {
            (Some(Command::Read { .. }), Answer::Data(data)) => match data {
                ReadData::Whole(bytes) => bytes.len() == self.len as usize,
                ReadData::Zeroes => true,
                ReadData::Parts(parts) => {
                    parts.iter().map(ReadPart::len).sum::<u64>() == u64::from(self.len)
                }
            },
            (Some(Command::BlockStatus { .. }), Answer::Status { allocation, dirty }) => {
                let Contexts {
                    allocation: a,
                    dirty: d,
                } = terms.contexts;
                a != allocation.is_empty() && d != dirty.is_empty()
            }
            (Some(Command::Read { .. } | Command::BlockStatus { .. }) | None, _) => false,
            (Some(_), answer) => *answer == Answer::Done,
        };
        assert!(
            fits,
            "the device answered {self:?} with something else: {answer:?}"
        );
    }
}

/// Appends the reply to `asked`. The last segment carries `credit`.
pub fn encode(
    out: &mut VecDeque<Segment>,
    asked: &Asked,
    terms: Terms,
    result: Result<Answer, IoError>,
    credit: u32,
) {
    match result {
        Ok(answer) => {
            asked.assert_fits(&answer, terms);
            match answer {
                Answer::Done => out.push_back(Segment::new(&simple(asked.cookie, 0), Body::None)),
                // The usual read, without a list of pieces.
                Answer::Data(ReadData::Whole(bytes)) => {
                    out.push_back(if terms.structured {
                        let head = data_head(asked, asked.offset, bytes.len(), true);
                        head.with(Body::Bytes(bytes))
                    } else {
                        Segment::new(&simple(asked.cookie, 0), Body::Bytes(bytes))
                    });
                }
                Answer::Data(data) if terms.structured => encode_chunks(out, asked, data),
                Answer::Data(data) => {
                    out.push_back(Segment::new(&simple(asked.cookie, 0), Body::None));
                    append_bodies(out, bodies(data, asked.len));
                }
                Answer::Status { allocation, dirty } => {
                    encode_status(out, asked, &allocation, &dirty, terms.contexts);
                }
            }
        }
        Err(error) if terms.structured => encode_error(out, asked, &error),
        Err(error) => {
            out.push_back(Segment::new(
                &simple(asked.cookie, error.code as u32),
                Body::None,
            ));
        }
    }
    if let Some(last) = out.back_mut() {
        last.ends_reply = Some(credit);
    }
}

fn simple(cookie: u64, error: u32) -> [u8; 16] {
    let mut head = [0; 16];
    let mut out = &mut head[..];
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error);
    out.put_u64(cookie);
    head
}

/// Head of a chunk: 20 bytes, then what the chunk's type has before its variable part.
fn chunk_head(asked: &Asked, kind: u16, payload: usize) -> ChunkHead {
    let mut head = ChunkHead {
        bytes: [0; MAX_HEAD],
        len: 0,
    };
    head.put(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    head.put(&[0, 0]);
    head.put(&kind.to_be_bytes());
    head.put(&asked.cookie.to_be_bytes());
    let payload = u32::try_from(payload).expect("a chunk within the maximum payload");
    head.put(&payload.to_be_bytes());
    head
}

struct ChunkHead {
    bytes: [u8; MAX_HEAD],
    len: usize,
}

impl ChunkHead {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn done(&mut self, done: bool) {
        let flags = if done { chunk::FLAG_DONE } else { 0 };
        self.bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    }

    fn with(self, body: Body) -> Segment {
        Segment::new(&self.bytes[..self.len], body)
    }
}

/// A read as content chunks: runs of data and of zeroes, in order.
fn encode_chunks(out: &mut VecDeque<Segment>, asked: &Asked, data: ReadData) {
    let dont_fragment = matches!(
        asked.command,
        Some(Command::Read {
            dont_fragment: true
        })
    );
    let mut bodies = bodies(data, asked.len);
    let mut offset = asked.offset;
    let only_zeroes = bodies.iter().all(|body| matches!(body, Body::Zeroes(_)));
    if dont_fragment && !only_zeroes {
        // One chunk, with the zeroes written out.
        data_chunk(out, asked, offset, bodies, true);
        return;
    }
    while let Some(first) = bodies.front() {
        let hole = matches!(first, Body::Zeroes(_));
        let end = bodies
            .iter()
            .position(|body| matches!(body, Body::Zeroes(_)) != hole)
            .unwrap_or(bodies.len());
        let rest = bodies.split_off(end);
        let run = std::mem::replace(&mut bodies, rest);
        let len: usize = run.iter().map(Body::len).sum();
        let last = bodies.is_empty();
        if hole {
            let mut head = chunk_head(asked, chunk::OFFSET_HOLE, 12);
            head.done(last);
            head.put(&offset.to_be_bytes());
            head.put(&(len as u32).to_be_bytes());
            out.push_back(head.with(Body::None));
        } else {
            data_chunk(out, asked, offset, run, last);
        }
        offset += len as u64;
    }
}

fn data_chunk(
    out: &mut VecDeque<Segment>,
    asked: &Asked,
    offset: u64,
    bodies: VecDeque<Body>,
    last: bool,
) {
    let len: usize = bodies.iter().map(Body::len).sum();
    out.push_back(data_head(asked, offset, len, last).with(Body::None));
    append_bodies(out, bodies);
}

fn data_head(asked: &Asked, offset: u64, len: usize, last: bool) -> ChunkHead {
    let mut head = chunk_head(asked, chunk::OFFSET_DATA, 8 + len);
    head.done(last);
    head.put(&offset.to_be_bytes());
    head
}

/// Puts the first body into the segment whose head was pushed just before, the others after it.
fn append_bodies(out: &mut VecDeque<Segment>, bodies: VecDeque<Body>) {
    for body in bodies {
        match out.back_mut() {
            Some(segment) if segment.body == Body::None => segment.body = body,
            _ => out.push_back(Segment::new(&[], body)),
        }
    }
}

/// The pieces of a read that are not empty.
fn bodies(data: ReadData, len: u32) -> VecDeque<Body> {
    match data {
        ReadData::Whole(bytes) => VecDeque::from([Body::Bytes(bytes)]),
        ReadData::Zeroes => VecDeque::from([Body::Zeroes(len)]),
        ReadData::Parts(parts) => parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(|part| match part {
                ReadPart::Data(bytes) => Body::Bytes(bytes),
                ReadPart::Zeroes(len) => Body::Zeroes(len),
            })
            .collect(),
    }
}

fn encode_status(
    out: &mut VecDeque<Segment>,
    asked: &Asked,
    allocation: &[crate::device::Extent],
    dirty: &[crate::device::DirtyExtent],
    contexts: Contexts,
) {
    let one = matches!(asked.command, Some(Command::BlockStatus { one: true }));
    let max = if one { 1 } else { meta_context::MAX_EXTENTS };
    let mut push = |id: u32, descriptors: Bytes, last: bool| {
        let mut head = chunk_head(asked, chunk::BLOCK_STATUS, 4 + descriptors.len());
        head.done(last);
        head.put(&id.to_be_bytes());
        out.push_back(head.with(Body::Bytes(descriptors)));
    };
    if contexts.allocation {
        let descriptors = meta_context::allocation_descriptors(allocation, asked.len, max);
        push(meta_context::ALLOCATION_ID, descriptors, !contexts.dirty);
    }
    if contexts.dirty {
        let descriptors = meta_context::dirty_descriptors(dirty, asked.len, max);
        push(meta_context::DIRTY_ID, descriptors, true);
    }
}

fn encode_error(out: &mut VecDeque<Segment>, asked: &Asked, error: &IoError) {
    let message = proto::clip(&error.message);
    // An offset must lie inside the request; without a command there is none.
    let may_have_offset = !matches!(asked.command, None | Some(Command::Flush));
    let end = asked.offset.saturating_add(u64::from(asked.len));
    let offset = error
        .offset
        .filter(|offset| may_have_offset && (asked.offset..end).contains(offset));
    let mut body = BytesMut::with_capacity(6 + message.len() + 8);
    body.put_u32(error.code as u32);
    body.put_u16(message.len() as u16);
    body.put_slice(message.as_bytes());
    let kind = match offset {
        Some(offset) => {
            body.put_u64(offset);
            chunk::ERROR_OFFSET
        }
        None => chunk::ERROR,
    };
    let mut head = chunk_head(asked, kind, body.len());
    head.done(true);
    out.push_back(head.with(Body::Bytes(body.freeze())));
}
