//! Messages as bytes: a kind, a head, and at most one payload. docs/wire-messages.md is the table.
//!
//! Decides how each [`Message`] is spelled and what a spelling must satisfy by itself: lengths,
//! alignments, orders, known values. Left to others: framing, checksums and the bound on a head
//! before it is allocated (`frame`), whether a range lies within the mirror and whether a message
//! fits the state (the core).
//!
//! Every integer is little-endian and of fixed size, except in lists of runs, where a difference is
//! a base-128 number: 1 % of a TiB marked at random is sent in 2 bytes for each run.
//! There is one spelling for each message: what was decoded encodes to the same bytes.

mod field;
mod kind;

use bytes::{Bytes, BytesMut};
use kagami_bitmap::superblock::{Generation, StoredDisk};

use self::field::{HeadReader, HeadWriter, USUAL};
pub use self::kind::Kind;
use crate::core::disk::DiskFault;
use crate::core::message::{Doing, Hello, Message};
use crate::core::settings::{AfterSb0, AfterSb1, AfterSb2, SplitBrainPolicy};
use crate::core::state::{DiskState, NodeId, Protocol, Role, Seq, Solo};

/// Most runs in one Marks or Cleared: even the most spread-out ones fit in a head.
pub const MAX_RUNS_PER_MESSAGE: usize = 16_384;
/// Most block hashes in one Compare, and so most indices in one Compared.
pub const MAX_HASHES_PER_MESSAGE: usize = 8_192;
/// Most generations in a Hello's or an Offer's history.
pub const MAX_HISTORY_PER_MESSAGE: usize = 256;
/// Longest text of a refusal, bytes of UTF-8; a longer one is cut.
pub const MAX_TEXT: usize = 1_024;
/// Longest head, bytes.
pub const MAX_HEAD: usize = 256 << 10;
/// Longest payload: 1 MiB that begins and ends within a block.
pub const MAX_PAYLOAD: usize = (1 << 20) + BLOCK;

const BLOCK: usize = kagami_bitmap::geometry::BLOCK as usize;

/// A message ready for a frame. The payload is the message's own buffer, not a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Which message: a [`Kind`] as its number.
    pub kind: u8,
    /// Its fields, at most [`MAX_HEAD`] bytes.
    pub head: Bytes,
    /// Blocks that go with it, 4096 to [`MAX_PAYLOAD`] bytes.
    pub payload: Option<Bytes>,
}

/// What a peer's message gets wrong. The link closes the session with this as the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageFault {
    /// No message of this protocol version has this number.
    #[error("a message of unknown kind {kind}")]
    UnknownKind {
        /// The number.
        kind: u8,
    },
    /// The head ends within a field.
    #[error("{kind:?}: the head ends within {field}")]
    Short {
        /// The message.
        kind: Kind,
        /// The field.
        field: &'static str,
    },
    /// Bytes are left after the last field.
    #[error("{kind:?}: {extra} bytes after the last field")]
    Long {
        /// The message.
        kind: Kind,
        /// How many.
        extra: usize,
    },
    /// A field holds a value that it can't have.
    #[error("{kind:?}: {field} can't be {value}")]
    BadValue {
        /// The message.
        kind: Kind,
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// More entries than one message may have.
    #[error("{kind:?}: {count} entries in {field}, at most {limit} are allowed")]
    TooMany {
        /// The message.
        kind: Kind,
        /// The list.
        field: &'static str,
        /// How many it announces.
        count: u64,
        /// How many it may.
        limit: usize,
    },
    /// A text that is not UTF-8, or holds control characters.
    #[error("{kind:?}: {field} is not UTF-8 without control characters")]
    NotText {
        /// The message.
        kind: Kind,
        /// The field.
        field: &'static str,
    },
    /// A payload where none belongs, none where one does, or one of a wrong length.
    #[error("{kind:?}: a payload of {len} bytes, {wanted}")]
    BadPayload {
        /// The message.
        kind: Kind,
        /// Its length; 0 for none.
        len: usize,
        /// What would be right.
        wanted: &'static str,
    },
}

/// Spells messages. Their heads share memory: each by itself would cost two allocations.
#[derive(Debug, Default)]
pub struct Speller {
    arena: BytesMut,
}

impl Speller {
    /// Spells a message. Panics if its lists exceed the bounds above: the core cuts them to pieces.
    pub fn encode(&mut self, message: &Message) -> Encoded {
        spell(message, HeadWriter::new(&mut self.arena))
    }
}

/// Spells a message, as [`Speller::encode`], in memory of its own.
pub fn encode(message: &Message) -> Encoded {
    // Not an arena's size: whoever keeps many would keep an arena for each.
    let mut own = BytesMut::with_capacity(USUAL);
    spell(message, HeadWriter::new(&mut own))
}

#[expect(clippy::too_many_lines, reason = "an arm for each message")]
fn spell(message: &Message, mut w: HeadWriter<'_>) -> Encoded {
    let mut payload = None;
    let kind = Kind::of(message);
    match message {
        Message::Hello(hello) => put_hello(&mut w, hello),
        Message::Marks { runs, last } => {
            w.flag(*last);
            w.runs(runs);
        }
        Message::Ready
        | Message::Adopted
        | Message::Settled
        | Message::PromoteAsk
        | Message::PromoteGrant
        | Message::Carrying
        | Message::Leave
        | Message::Bye => {}
        Message::Ping { sent } | Message::Pong { sent } => w.u64(*sent),
        Message::State { role, disk } => {
            w.u8(role_code(*role));
            w.u8(disk_code(*disk));
        }
        Message::Write {
            seq,
            offset,
            data,
            fua,
            early,
        } => {
            w.u64(seq.0);
            w.u64(*offset);
            w.u8(u8::from(*fua) | u8::from(*early) << 1);
            payload = Some(data.clone());
        }
        Message::Zero {
            seq,
            offset,
            len,
            unmap,
            fua,
        } => {
            w.u64(seq.0);
            w.u64(*offset);
            w.u64(*len);
            w.u8(u8::from(*fua) | u8::from(*unmap) << 1);
        }
        Message::ResyncBlocks { seq, offset, data } => {
            w.u64(seq.0);
            w.u64(*offset);
            payload = Some(data.clone());
        }
        Message::Received { seq } => w.u64(seq.0),
        Message::Done { seq, result } => {
            w.u64(seq.0);
            w.outcome(result.err());
        }
        Message::Flush { id, after } => {
            w.u64(*id);
            w.u64(after.0);
        }
        Message::Flushed { id, result } => {
            w.u64(*id);
            w.outcome(result.err());
        }
        Message::Cleared { runs } => w.runs(runs),
        Message::Offer { current, history } => {
            w.generation(*current);
            w.history(history);
        }
        Message::PromoteRefuse { why } => w.text(why),
        Message::Read { id, offset, len } => {
            w.u64(*id);
            w.u64(*offset);
            w.u32(*len);
        }
        Message::ReadReply { id, result } => {
            w.u64(*id);
            match result {
                Ok(data) => {
                    w.outcome(None);
                    payload = Some(data.clone());
                }
                Err(fault) => w.outcome(Some(*fault)),
            }
        }
        Message::Compare { id, offset, hashes } => {
            w.u64(*id);
            w.u64(*offset);
            w.hashes(hashes);
        }
        Message::Compared { id, result } => {
            w.u64(*id);
            match result {
                Ok(different) => {
                    w.outcome(None);
                    w.indices(different);
                }
                Err(fault) => w.outcome(Some(*fault)),
            }
        }
        Message::Progress { doing } => w.u8(doing_code(*doing)),
        Message::ArbiterInstance { instance } | Message::ArbiterRecorded { instance } => {
            w.option_u64(*instance);
        }
        Message::Resolve { keep, full } => {
            w.u64(keep.0);
            w.flag(*full);
        }
    }
    if let Some(data) = &payload {
        assert!(
            payload_fits(data.len()),
            "{kind:?}: a payload of {} bytes",
            data.len()
        );
    }
    Encoded {
        kind: kind as u8,
        head: w.finish(),
        payload,
    }
}

/// Reads a message that a peer sent.
///
/// # Errors
/// Whatever is not exactly what [`encode`] makes of some message.
#[expect(clippy::too_many_lines, reason = "an arm for each message")]
pub fn decode(kind: u8, head: &[u8], payload: Option<Bytes>) -> Result<Message, MessageFault> {
    let kind = Kind::from_wire(kind).ok_or(MessageFault::UnknownKind { kind })?;
    let mut r = HeadReader::new(kind, head);
    let mut payload = payload;
    let message = match kind {
        Kind::Hello => Message::Hello(Box::new(take_hello(&mut r)?)),
        Kind::Marks => {
            let last = r.flag("last")?;
            Message::Marks {
                runs: r.runs()?,
                last,
            }
        }
        Kind::Ready => Message::Ready,
        Kind::Ping => Message::Ping {
            sent: r.u64("sent")?,
        },
        Kind::Pong => Message::Pong {
            sent: r.u64("sent")?,
        },
        Kind::State => Message::State {
            role: take_role(&mut r)?,
            disk: r.coded("disk", disk_of_code)?,
        },
        Kind::Write => {
            let seq = r.seq()?;
            let offset = r.block_offset("offset")?;
            let flags = r.flags("flags", 0b11)?;
            let data = r.blocks_at(offset, payload.take())?;
            Message::Write {
                seq,
                offset,
                data,
                fua: flags & 1 != 0,
                early: flags & 2 != 0,
            }
        }
        Kind::Zero => {
            let seq = r.seq()?;
            let offset = r.block_offset("offset")?;
            let len = r.block_len("len", offset, u64::MAX)?;
            let flags = r.flags("flags", 0b11)?;
            Message::Zero {
                seq,
                offset,
                len,
                unmap: flags & 2 != 0,
                fua: flags & 1 != 0,
            }
        }
        Kind::ResyncBlocks => {
            let seq = r.seq()?;
            let offset = r.block_offset("offset")?;
            let data = r.blocks_at(offset, payload.take())?;
            Message::ResyncBlocks { seq, offset, data }
        }
        Kind::Received => Message::Received { seq: r.seq()? },
        Kind::Done => {
            let seq = r.seq()?;
            Message::Done {
                seq,
                result: r.outcome()?.map_or(Ok(()), Err),
            }
        }
        Kind::Flush => Message::Flush {
            id: r.u64("id")?,
            // 0: nothing was sent before it
            after: Seq(r.u64("after")?),
        },
        Kind::Flushed => {
            let id = r.u64("id")?;
            Message::Flushed {
                id,
                result: r.outcome()?.map_or(Ok(()), Err),
            }
        }
        Kind::Cleared => Message::Cleared { runs: r.runs()? },
        Kind::Offer => Message::Offer {
            current: r.generation("current")?,
            history: r.history()?,
        },
        Kind::Adopted => Message::Adopted,
        Kind::Settled => Message::Settled,
        Kind::PromoteAsk => Message::PromoteAsk,
        Kind::PromoteGrant => Message::PromoteGrant,
        Kind::PromoteRefuse => Message::PromoteRefuse {
            why: r.text("why")?,
        },
        Kind::Carrying => Message::Carrying,
        Kind::Read => {
            let id = r.u64("id")?;
            let offset = r.block_offset("offset")?;
            let len = r.read_len(offset)?;
            Message::Read { id, offset, len }
        }
        Kind::ReadReply => {
            let id = r.u64("id")?;
            let result = match r.outcome()? {
                None => Ok(r.blocks(payload.take())?),
                Some(fault) => Err(fault),
            };
            Message::ReadReply { id, result }
        }
        Kind::Compare => {
            let id = r.u64("id")?;
            let offset = r.block_offset("offset")?;
            let hashes = r.hashes(offset)?;
            Message::Compare { id, offset, hashes }
        }
        Kind::Compared => {
            let id = r.u64("id")?;
            let result = match r.outcome()? {
                None => Ok(r.indices()?),
                Some(fault) => Err(fault),
            };
            Message::Compared { id, result }
        }
        Kind::Progress => Message::Progress {
            doing: r.coded("doing", doing_of_code)?,
        },
        Kind::ArbiterInstance => Message::ArbiterInstance {
            instance: r.option_u64("instance")?,
        },
        Kind::ArbiterRecorded => Message::ArbiterRecorded {
            instance: r.option_u64("instance")?,
        },
        Kind::Leave => Message::Leave,
        Kind::Bye => Message::Bye,
        Kind::Resolve => Message::Resolve {
            keep: NodeId(r.u64("keep")?),
            full: r.flag("full")?,
        },
    };
    if let Some(extra) = payload {
        return Err(MessageFault::BadPayload {
            kind,
            len: extra.len(),
            wanted: "none belongs here",
        });
    }
    r.end()?;
    Ok(message)
}

/// Whole blocks, and not too many.
fn payload_fits(len: usize) -> bool {
    len != 0 && len.is_multiple_of(BLOCK) && len <= MAX_PAYLOAD
}

fn put_hello(w: &mut HeadWriter<'_>, hello: &Hello) {
    w.u128(hello.mirror);
    w.u64(hello.node.0);
    w.u64(hello.size);
    w.u64(hello.marks);
    w.u64(hello.timeout_ms);
    w.u8(role_code(hello.role));
    w.u8(stored_code(hello.disk));
    w.u8(protocol_code(hello.protocol));
    w.u8(solo_code(hello.solo));
    w.u8(match hello.split_brain.after_sb_0pri {
        AfterSb0::Disconnect => 0,
        AfterSb0::DiscardZeroChanges => 1,
        AfterSb0::DiscardLeastChanges => 2,
    });
    w.u8(match hello.split_brain.after_sb_1pri {
        AfterSb1::Disconnect => 0,
        AfterSb1::DiscardSecondary => 1,
        AfterSb1::Consensus => 2,
    });
    w.u8(match hello.split_brain.after_sb_2pri {
        AfterSb2::Disconnect => 0,
    });
    let bits = [
        hello.alone,
        hello.was_primary,
        hello.diskless,
        hello.forced_bad,
        hello.zeroed,
        hello.unbroken,
        hello.unmap_zeroes,
        hello.full,
    ];
    w.u8(bits
        .iter()
        .rev()
        .fold(0, |all, bit| all << 1 | u8::from(*bit)));
    w.option_u64(hello.arbiter);
    w.option_u64(hello.keep.map(|node| node.0));
    w.option_generation(hello.current);
    w.option_generation(hello.base);
    w.history(&hello.history);
    if let Some(boot) = hello.boot {
        w.u128(boot); // from protocol version 2 on
    }
}

fn take_hello(r: &mut HeadReader<'_>) -> Result<Hello, MessageFault> {
    let mirror = r.u128("mirror")?;
    let node = NodeId(r.u64("node")?);
    let size = r.u64("size")?;
    let marks = r.u64("marks")?;
    let timeout_ms = r.u64("timeout")?;
    let role = take_role(r)?;
    let disk = r.coded("disk", |code| match code {
        0 => Some(StoredDisk::Consistent),
        1 => Some(StoredDisk::Outdated),
        2 => Some(StoredDisk::Inconsistent),
        _ => None,
    })?;
    let protocol = r.coded("protocol", |code| match code {
        0 => Some(Protocol::A),
        1 => Some(Protocol::B),
        2 => Some(Protocol::C),
        _ => None,
    })?;
    let solo = r.coded("solo", |code| match code {
        0 => Some(Solo::Never),
        1 => Some(Solo::Arbiter),
        2 => Some(Solo::Always),
        _ => None,
    })?;
    let split_brain = SplitBrainPolicy {
        after_sb_0pri: r.coded("after-sb-0pri", |code| match code {
            0 => Some(AfterSb0::Disconnect),
            1 => Some(AfterSb0::DiscardZeroChanges),
            2 => Some(AfterSb0::DiscardLeastChanges),
            _ => None,
        })?,
        after_sb_1pri: r.coded("after-sb-1pri", |code| match code {
            0 => Some(AfterSb1::Disconnect),
            1 => Some(AfterSb1::DiscardSecondary),
            2 => Some(AfterSb1::Consensus),
            _ => None,
        })?,
        after_sb_2pri: r.coded("after-sb-2pri", |code| {
            (code == 0).then_some(AfterSb2::Disconnect)
        })?,
    };
    let bits = r.flags("flags", 0xff)?;
    let bit = |n: u8| bits >> n & 1 != 0;
    Ok(Hello {
        mirror,
        node,
        size,
        marks,
        timeout_ms,
        role,
        disk,
        protocol,
        solo,
        split_brain,
        alone: bit(0),
        was_primary: bit(1),
        diskless: bit(2),
        forced_bad: bit(3),
        zeroed: bit(4),
        unbroken: bit(5),
        unmap_zeroes: bit(6),
        full: bit(7),
        arbiter: r.option_u64("arbiter")?,
        keep: r.option_u64("keep")?.map(NodeId),
        current: r.option_generation("current")?,
        base: r.option_generation("base")?,
        history: r.history()?,
        boot: r.rest("boot", HeadReader::u128)?,
    })
}

fn take_role(r: &mut HeadReader<'_>) -> Result<Role, MessageFault> {
    r.coded("role", |code| match code {
        0 => Some(Role::Secondary),
        1 => Some(Role::Primary),
        _ => None,
    })
}

fn role_code(role: Role) -> u8 {
    match role {
        Role::Secondary => 0,
        Role::Primary => 1,
    }
}

fn stored_code(disk: StoredDisk) -> u8 {
    match disk {
        StoredDisk::Consistent => 0,
        StoredDisk::Outdated => 1,
        StoredDisk::Inconsistent => 2,
    }
}

fn protocol_code(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::A => 0,
        Protocol::B => 1,
        Protocol::C => 2,
    }
}

fn solo_code(solo: Solo) -> u8 {
    match solo {
        Solo::Never => 0,
        Solo::Arbiter => 1,
        Solo::Always => 2,
    }
}

fn disk_code(disk: DiskState) -> u8 {
    match disk {
        DiskState::Unknown => 0,
        DiskState::Diskless => 1,
        DiskState::Failed => 2,
        DiskState::Inconsistent => 3,
        DiskState::Outdated => 4,
        DiskState::Consistent => 5,
        DiskState::UpToDate => 6,
    }
}

fn disk_of_code(code: u8) -> Option<DiskState> {
    Some(match code {
        0 => DiskState::Unknown,
        1 => DiskState::Diskless,
        2 => DiskState::Failed,
        3 => DiskState::Inconsistent,
        4 => DiskState::Outdated,
        5 => DiskState::Consistent,
        6 => DiskState::UpToDate,
        _ => return None,
    })
}

fn doing_code(doing: Doing) -> u8 {
    match doing {
        Doing::Nothing => 0,
        Doing::Sync => 1,
        Doing::Paused => 2,
        Doing::Verify => 3,
    }
}

fn doing_of_code(code: u8) -> Option<Doing> {
    Some(match code {
        0 => Doing::Nothing,
        1 => Doing::Sync,
        2 => Doing::Paused,
        3 => Doing::Verify,
        _ => return None,
    })
}

/// A failed operation as (code, errno); code 0 is success.
fn fault_code(fault: Option<DiskFault>) -> (u8, i32) {
    match fault {
        None => (0, 0),
        Some(DiskFault::NoSpace) => (1, 0),
        Some(DiskFault::Io(errno)) => (2, errno),
    }
}

fn generation_bytes(generation: Generation) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&generation.counter.to_le_bytes());
    bytes[8..].copy_from_slice(&generation.tag.to_le_bytes());
    bytes
}
