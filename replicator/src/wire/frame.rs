//! The frame: what every message travels in, on every stream of a session.
//!
//! ```text
//!   0        4     6  7  8          12          16                 24        28        32
//!   | magic  | ver |kd|fl| head_len | payload_len | sequence        | reserved| crc32c |
//!   | head: head_len bytes                                                            |
//!   | checksums: a crc32c (u32) for each 4096-byte block of the payload, the last short |
//!   | payload: payload_len bytes                                                      |
//! ```
//!
//! All integers are little-endian. The header's crc32c covers its own first 28 bytes, the head and
//! the checksums, so that everything but the payload is checked by one sum and each block of the
//! payload by its own. What the head says is the business of the messages; this module bounds it,
//! carries it and proves it unchanged.
//!
//! Encoding copies no payload: a frame becomes one piece with header, head and checksums and one
//! with the payload as it was given. Decoding takes the stream in pieces of any size and copies the
//! payload once, into a buffer that the caller supplies when [`Decoder::feed`] asks for it: so the
//! caller may wait for memory, and nothing is allocated on the peer's word alone.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::limits::{CHECKSUM_BLOCK, HEADER_LEN, MAX_CHECKSUMS, MAX_HEAD, MAX_PAYLOAD};

/// The first four bytes of every frame: "KGMF".
pub const MAGIC: u32 = u32::from_le_bytes(*b"KGMF");

/// The kind of frame that the link itself speaks: the other side closes the session, and why.
/// Messages use kinds from 1.
pub const KIND_CLOSE: u8 = 0;

/// Bytes of the header before its checksum.
const CHECKED: usize = HEADER_LEN - 4;

/// A class of streams; a session has one stream of each. Lower ones go first where both have
/// something to send, and none waits for another's receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Handshake, states, acknowledgements, pings.
    Control = 0,
    /// The application's writes and reads.
    Data = 1,
    /// Resynchronisation and verify.
    Resync = 2,
}

impl Class {
    /// All classes, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Control, Self::Data, Self::Resync];

    /// The class with this number on the wire.
    pub fn from_wire(value: u8) -> Option<Self> {
        Self::ALL.get(usize::from(value)).copied()
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Data => "data",
            Self::Resync => "resync",
        })
    }
}

/// A frame to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutFrame {
    /// What the head is; opaque here, never [`KIND_CLOSE`] from outside the link.
    pub kind: u8,
    /// The message, at most [`MAX_HEAD`] bytes.
    pub head: Bytes,
    /// Data that goes with it, 1 to [`MAX_PAYLOAD`] bytes.
    pub payload: Option<Bytes>,
}

impl OutFrame {
    /// Bytes of the frame on the wire.
    pub fn wire_len(&self) -> usize {
        let payload = self.payload.as_ref().map_or(0, Bytes::len);
        HEADER_LEN + self.head.len() + 4 * checksums_of(payload) + payload
    }
}

/// A frame received, every checksum of it verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFrame {
    /// What the head is; opaque here.
    pub kind: u8,
    /// The message.
    pub head: Bytes,
    /// Data that goes with it, in a buffer of the caller's.
    pub payload: Option<Bytes>,
}

/// What a peer did wrong: framing that this protocol doesn't have, or damage on the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// The bytes are no frame: another protocol, or a sender that lost its place.
    #[error("no frame where one must start: found {found:#010x} instead of {MAGIC:#010x}")]
    BadMagic {
        /// The four bytes there, as a little-endian number.
        found: u32,
    },
    /// A frame of another protocol version than the one agreed on for this connection.
    #[error("a frame of protocol version {found} on a connection of version {agreed}")]
    WrongVersion {
        /// The version in the header.
        found: u16,
        /// The version agreed on.
        agreed: u16,
    },
    /// Bits are set that this version keeps zero.
    #[error("reserved bits are set in a frame of kind {kind}")]
    ReservedBits {
        /// The frame's kind.
        kind: u8,
    },
    /// The head is over the bound; nothing was allocated for it.
    #[error("a head of {len} bytes in a frame of kind {kind}, at most {MAX_HEAD} are allowed")]
    HeadTooLarge {
        /// The frame's kind.
        kind: u8,
        /// The length announced.
        len: u32,
    },
    /// The payload is over the bound; nothing was allocated for it.
    #[error(
        "a payload of {len} bytes in a frame of kind {kind}, at most {MAX_PAYLOAD} are allowed"
    )]
    PayloadTooLarge {
        /// The frame's kind.
        kind: u8,
        /// The length announced.
        len: u32,
    },
    /// A frame is missing or repeated on an ordered stream: the peer's bookkeeping is broken.
    #[error("frame {found} where {expected} is due on this stream")]
    OutOfSequence {
        /// The number in the header.
        found: u64,
        /// The number due.
        expected: u64,
    },
    /// Header, head or checksums were damaged.
    #[error("frame {sequence} has a bad checksum ({found:#010x}, must be {computed:#010x})")]
    BadChecksum {
        /// The frame's number on its stream.
        sequence: u64,
        /// The sum in the header.
        found: u32,
        /// The sum of what arrived.
        computed: u32,
    },
    /// A block of the payload was damaged. The payload is never handed out.
    #[error(
        "block {block} of the payload of frame {sequence} has a bad checksum ({found:#010x}, must be {computed:#010x})"
    )]
    BadPayload {
        /// The frame's number on its stream.
        sequence: u64,
        /// The block within the payload.
        block: usize,
        /// The sum sent with it.
        found: u32,
        /// The sum of what arrived.
        computed: u32,
    },
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
}

impl FrameFault {
    /// Whether only data was damaged: the peer speaks the protocol and the session alone is closed.
    /// Any other fault closes the whole connection.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::BadPayload { .. })
    }
}

/// Checksums that go with a payload of `len` bytes.
fn checksums_of(len: usize) -> usize {
    len.div_ceil(CHECKSUM_BLOCK)
}

/// Encodes the frames of one stream, in order.
#[derive(Debug)]
pub struct Encoder {
    version: u16,
    sequence: u64,
    arena: BytesMut,
}

/// Bytes that the encoder takes from the allocator at once.
const ARENA: usize = 32 * 1024;

impl Encoder {
    /// An encoder at the start of a stream of a connection of this protocol version.
    pub fn new(version: u16) -> Self {
        Self {
            version,
            sequence: 0,
            arena: BytesMut::new(),
        }
    }

    /// Encodes `frame` behind what `pieces` holds: the frame's pieces, in the order to be sent. A
    /// small frame that follows another without a payload becomes part of the same piece.
    ///
    /// # Panics
    ///
    /// When the frame is over the bounds of the protocol: the sender's own bug.
    pub fn encode(&mut self, frame: &OutFrame, pieces: &mut Vec<Bytes>) {
        let payload_len = frame.payload.as_ref().map_or(0, Bytes::len);
        assert!(
            frame.head.len() <= MAX_HEAD,
            "kind {}: head of {} bytes",
            frame.kind,
            frame.head.len()
        );
        assert!(
            payload_len <= MAX_PAYLOAD,
            "kind {}: payload of {payload_len} bytes",
            frame.kind
        );
        assert!(
            frame.payload.is_none() || payload_len > 0,
            "kind {}: empty payload",
            frame.kind
        );

        let front = frame.wire_len() - payload_len;
        if self.arena.capacity() - self.arena.len() < front {
            self.flush(pieces);
            self.arena.reserve(front.max(ARENA));
        }
        let start = self.arena.len();
        self.arena.put_u32_le(MAGIC);
        self.arena.put_u16_le(self.version);
        self.arena.put_u8(frame.kind);
        self.arena.put_u8(0);
        self.arena.put_u32_le(frame.head.len() as u32);
        self.arena.put_u32_le(payload_len as u32);
        self.arena.put_u64_le(self.sequence);
        self.arena.put_u32_le(0);
        let sum_at = self.arena.len();
        self.arena.put_u32_le(0);
        self.arena.put_slice(&frame.head);
        for block in frame
            .payload
            .iter()
            .flat_map(|payload| payload.chunks(CHECKSUM_BLOCK))
        {
            self.arena.put_u32_le(crc32c::crc32c(block));
        }
        let sum = crc32c::crc32c(&self.arena[start..sum_at]);
        let sum = crc32c::crc32c_append(sum, &self.arena[sum_at + 4..]);
        self.arena[sum_at..sum_at + 4].copy_from_slice(&sum.to_le_bytes());
        self.sequence += 1;

        if let Some(payload) = &frame.payload {
            self.flush(pieces);
            pieces.push(payload.clone());
        }
    }

    /// Gives out what [`Encoder::encode`] kept back to join small frames. Call it after the last.
    pub fn flush(&mut self, pieces: &mut Vec<Bytes>) {
        if !self.arena.is_empty() {
            pieces.push(self.arena.split().freeze());
        }
    }
}

/// Memory that a payload is gathered into.
pub trait PayloadBuffer {
    /// The memory, at least as long as was asked for.
    fn as_mut_slice(&mut self) -> &mut [u8];
    /// Gives it out for reading; the last clone returns the memory to its owner.
    fn freeze(self) -> Bytes;
}

impl PayloadBuffer for Vec<u8> {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        self
    }

    fn freeze(self) -> Bytes {
        Bytes::from(self)
    }
}

/// What the decoder has come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// All bytes are taken in; the next ones may go on.
    Hungry,
    /// A payload of this many bytes follows: call [`Decoder::supply`], then feed on.
    NeedsBuffer {
        /// Length of the payload in bytes.
        len: usize,
    },
    /// A frame is complete; there may be more in the bytes that are left.
    Frame(InFrame),
}

/// Decodes the frames of one stream from pieces of any size. After a fault it must not be used on.
#[derive(Debug)]
pub struct Decoder<B> {
    version: u16,
    sequence: u64,
    /// Header, then header and head and checksums, of the frame under way.
    front: BytesMut,
    state: State<B>,
    /// Checksums of the payload under way; its capacity is kept.
    sums: Vec<u32>,
}

#[derive(Debug)]
enum State<B> {
    /// Fewer than [`HEADER_LEN`] bytes are there.
    Header,
    /// The header is checked as far as it goes by itself; `total` is where the payload starts.
    Front { header: Header, total: usize },
    /// Everything but the payload is checked.
    Waiting { kind: u8, head: Bytes, len: usize },
    /// The payload is being gathered: `filled` bytes are there, `checked` blocks are proven.
    Payload {
        kind: u8,
        head: Bytes,
        len: usize,
        buffer: B,
        filled: usize,
        checked: usize,
    },
}

#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u8,
    head_len: usize,
    payload_len: usize,
    sum: u32,
}

impl<B: PayloadBuffer> Decoder<B> {
    /// A decoder at the start of a stream of a connection of this protocol version.
    pub fn new(version: u16) -> Self {
        Self {
            version,
            sequence: 0,
            front: BytesMut::new(),
            state: State::Header,
            sums: Vec::new(),
        }
    }

    /// Whether the stream may end here: no frame is under way.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Header) && self.front.is_empty()
    }

    /// Whether a payload is under way, in memory that was supplied for it.
    pub fn is_within_payload(&self) -> bool {
        matches!(self.state, State::Payload { .. })
    }

    /// Takes bytes from `input` up to the end of a frame, the need for a buffer or its own end.
    ///
    /// # Errors
    ///
    /// What the peer did wrong; the stream can't be read on.
    pub fn feed(&mut self, input: &mut Bytes) -> Result<Decoded, FrameFault> {
        loop {
            match &mut self.state {
                State::Header => {
                    if !gather(&mut self.front, input, HEADER_LEN) {
                        return Ok(Decoded::Hungry);
                    }
                    let header = self.check_header()?;
                    let total = HEADER_LEN + header.head_len + 4 * checksums_of(header.payload_len);
                    self.state = State::Front { header, total };
                }
                State::Front { header, total } => {
                    let (header, total) = (*header, *total);
                    if !gather(&mut self.front, input, total) {
                        return Ok(Decoded::Hungry);
                    }
                    let head = self.check_front(header)?;
                    if header.payload_len == 0 {
                        return Ok(self.complete(header.kind, head, None));
                    }
                    self.state = State::Waiting {
                        kind: header.kind,
                        head,
                        len: header.payload_len,
                    };
                }
                State::Waiting { len, .. } => return Ok(Decoded::NeedsBuffer { len: *len }),
                State::Payload {
                    len,
                    buffer,
                    filled,
                    checked,
                    ..
                } => {
                    let (len, memory) = (*len, buffer.as_mut_slice());
                    let n = input.len().min(len - *filled);
                    input.copy_to_slice(&mut memory[*filled..*filled + n]);
                    *filled += n;
                    // Each block is summed as soon as it is whole, while the cache holds it.
                    let whole = if *filled == len {
                        self.sums.len()
                    } else {
                        *filled / CHECKSUM_BLOCK
                    };
                    for block in *checked..whole {
                        let start = block * CHECKSUM_BLOCK;
                        let end = (start + CHECKSUM_BLOCK).min(len);
                        let computed = crc32c::crc32c(&memory[start..end]);
                        if computed != self.sums[block] {
                            return Err(FrameFault::BadPayload {
                                sequence: self.sequence,
                                block,
                                found: self.sums[block],
                                computed,
                            });
                        }
                    }
                    *checked = whole;
                    if *filled < len {
                        return Ok(Decoded::Hungry);
                    }
                    let State::Payload {
                        kind, head, buffer, ..
                    } = std::mem::replace(&mut self.state, State::Header)
                    else {
                        unreachable!("matched above");
                    };
                    let payload = buffer.freeze().slice(..len);
                    return Ok(self.complete(kind, head, Some(payload)));
                }
            }
        }
    }

    /// Hands over the memory for the payload that [`Decoded::NeedsBuffer`] announced.
    ///
    /// # Panics
    ///
    /// When none was asked for, or the buffer is too short: the caller's own bug.
    pub fn supply(&mut self, mut buffer: B) {
        let State::Waiting { kind, head, len } = std::mem::replace(&mut self.state, State::Header)
        else {
            panic!("a buffer was supplied that no frame waits for");
        };
        assert!(
            buffer.as_mut_slice().len() >= len,
            "a buffer shorter than the {len} bytes asked for"
        );
        self.state = State::Payload {
            kind,
            head,
            len,
            buffer,
            filled: 0,
            checked: 0,
        };
    }

    /// Judges a header by itself, before anything is gathered on its word.
    fn check_header(&self) -> Result<Header, FrameFault> {
        let mut h = &self.front[..HEADER_LEN];
        let magic = h.get_u32_le();
        if magic != MAGIC {
            return Err(FrameFault::BadMagic { found: magic });
        }
        let version = h.get_u16_le();
        if version != self.version {
            return Err(FrameFault::WrongVersion {
                found: version,
                agreed: self.version,
            });
        }
        let kind = h.get_u8();
        let flags = h.get_u8();
        let head_len = h.get_u32_le();
        let payload_len = h.get_u32_le();
        let sequence = h.get_u64_le();
        let reserved = h.get_u32_le();
        let sum = h.get_u32_le();
        if flags != 0 || reserved != 0 {
            return Err(FrameFault::ReservedBits { kind });
        }
        if head_len as usize > MAX_HEAD {
            return Err(FrameFault::HeadTooLarge {
                kind,
                len: head_len,
            });
        }
        if payload_len as usize > MAX_PAYLOAD {
            return Err(FrameFault::PayloadTooLarge {
                kind,
                len: payload_len,
            });
        }
        if sequence != self.sequence {
            return Err(FrameFault::OutOfSequence {
                found: sequence,
                expected: self.sequence,
            });
        }
        Ok(Header {
            kind,
            head_len: head_len as usize,
            payload_len: payload_len as usize,
            sum,
        })
    }

    /// Proves header, head and checksums; keeps the checksums and gives the head.
    fn check_front(&mut self, header: Header) -> Result<Bytes, FrameFault> {
        let computed = crc32c::crc32c(&self.front[..CHECKED]);
        let computed = crc32c::crc32c_append(computed, &self.front[HEADER_LEN..]);
        if computed != header.sum {
            return Err(FrameFault::BadChecksum {
                sequence: self.sequence,
                found: header.sum,
                computed,
            });
        }
        let mut front = self.front.split();
        front.advance(HEADER_LEN);
        let mut sums = front.split_off(header.head_len);
        self.sums.clear();
        while sums.has_remaining() {
            self.sums.push(sums.get_u32_le());
        }
        assert!(
            self.sums.len() <= MAX_CHECKSUMS,
            "bounded by the payload's length"
        );
        Ok(front.freeze())
    }

    fn complete(&mut self, kind: u8, head: Bytes, payload: Option<Bytes>) -> Decoded {
        self.state = State::Header;
        self.sequence += 1;
        Decoded::Frame(InFrame {
            kind,
            head,
            payload,
        })
    }
}

/// Bytes that the decoder takes from the allocator at once: some dozens of small heads.
const HEADS: usize = 4096;

/// Moves bytes from `input` until `front` has `want`; tells whether it has.
fn gather(front: &mut BytesMut, input: &mut Bytes, want: usize) -> bool {
    let n = input.len().min(want - front.len());
    if front.capacity() < want {
        // Small heads share an allocation; a large one is bounded by what actually arrived twice
        // over, so that an announced length alone takes no memory.
        front.reserve((want - front.len()).min(2 * n).max(HEADS));
    }
    front.extend_from_slice(&input[..n]);
    input.advance(n);
    front.len() == want
}
