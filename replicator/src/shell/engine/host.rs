//! One mirror on its thread: its core, and what the core's numbers stand for outside.
//!
//! Keeps no policy and takes no decision: which store a disk operation goes to, who waits for a
//! request or a command, when the core wants to be called. The thread hands events in and carries
//! actions out ([`super::plane`]).

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use slab::Slab;
use tokio::sync::oneshot;

use super::config::MirrorConfig;
use super::device::{Payload, Requester};
use super::holes::Holes;
use super::latency::Recorder;
use crate::core::event::{IoError, Refusal, Reply, Request};
use crate::core::state::{CommandId, RequestId, Time};
use crate::core::status::Footing;
use crate::core::{Event, Mirror, PEER_READ};
use crate::shell::arbiter::Arbiter;
use crate::shell::arbiter::together::Gate;
use crate::shell::boot::Token;
use crate::shell::buffers::{Account, Buffer, PAGE};
use crate::shell::quic::{MirrorId, SessionId};
use crate::shell::storage::{DiskId, MetadataId, StoreId};

/// A mirror and what belongs to it.
pub(super) struct Host {
    pub(super) name: Arc<str>,
    pub(super) id: MirrorId,
    /// Its place on the thread.
    pub(super) slot: usize,
    pub(super) config: MirrorConfig,
    pub(super) mirror: Mirror,
    pub(super) token: Token,
    pub(super) arbiter: Rc<dyn Arbiter>,
    /// Where it follows another mirror, or is followed.
    pub(super) gate: Option<Rc<Gate>>,
    /// What it stands on, as the board has it; none where there is no gate.
    pub(super) footing: Option<Footing>,
    pub(super) stores: Stores,
    /// Its part of the thread's memory.
    pub(super) account: Account,
    /// When the core wants to be called.
    pub(super) timer: Option<Time>,
    /// From when on the link is to look for the peer: the core backs off.
    pub(super) want_from: Option<Time>,
    /// The core looks for its peer, now or after a while.
    pub(super) wants_session: bool,
    pub(super) session: Option<SessionId>,
    pub(super) requests: Requests,
    commands: HashMap<CommandId, Answerer>,
    next_command: u64,
    pub(super) latency: Recorder,
    pub(super) findings: Vec<String>,
    /// Why there is no connection, as the link said last.
    pub(super) link_trouble: Option<String>,
    /// It was removed: nothing reaches its core any more, and its stores go when they are idle.
    pub(super) is_leaving: bool,
}

/// Who waits for a command.
pub(super) type Answerer = oneshot::Sender<Result<Reply, Refusal>>;

/// The stores of a mirror, and what is on its way to them.
pub(super) struct Stores {
    /// `None`: the copy is diskless; the text says why.
    pub(super) disk: Result<(StoreId, DiskId), String>,
    /// The metadata's own store, if it is not the data's.
    pub(super) metadata_store: Option<StoreId>,
    pub(super) metadata: MetadataId,
    /// Submissions to either that haven't come back.
    pub(super) in_flight: usize,
    /// For `base:allocation`, where the backing store is a file.
    pub(super) holes: Option<Holes>,
    pub(super) rotational: bool,
}

impl Host {
    /// This copy may have lost a completed write since boot, as the next daemon finds.
    pub(super) fn break_token(&self) {
        if let Err(error) = self.token.break_it() {
            tracing::error!(mirror = &*self.name, path = %self.token.path().display(), %error,
                "the token of an unbroken copy can't be removed: remove the file before the daemon starts again");
        }
    }

    /// From here on a lost write removes the token.
    pub(super) fn make_token(&self) {
        if let Err(error) = self.token.make() {
            tracing::warn!(mirror = &*self.name, path = %self.token.path().display(), %error,
                "no token can be made: after a restart of the daemon this copy counts as one that lost writes");
        }
    }

    /// Takes a command in; its event.
    pub(super) fn command(&mut self, command: crate::core::Command, answerer: Answerer) -> Event {
        let id = CommandId(self.next_command);
        self.next_command += 1;
        self.commands.insert(id, answerer);
        Event::Command { id, command }
    }

    /// Answers a command; who waited for it may be gone.
    pub(super) fn answer_command(&mut self, id: CommandId, result: Result<Reply, Refusal>) {
        if let Some(answerer) = self.commands.remove(&id) {
            let _ = answerer.send(result);
        }
    }

    /// The earliest moment at which something is to be done.
    pub(super) fn deadline(&self) -> Option<Time> {
        if self.is_leaving {
            return None;
        }
        [self.timer, self.want_from].into_iter().flatten().min()
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a host, once")]
    pub(super) fn new(
        name: Arc<str>,
        config: MirrorConfig,
        mirror: Mirror,
        token: Token,
        arbiter: Rc<dyn Arbiter>,
        stores: Stores,
        account: Account,
        findings: Vec<String>,
        now: Time,
    ) -> Self {
        Self {
            name,
            id: MirrorId(config.mirror),
            slot: usize::MAX,
            config,
            mirror,
            token,
            arbiter,
            gate: None,
            footing: None,
            stores,
            account,
            timer: None,
            want_from: None,
            wants_session: false,
            session: None,
            requests: Requests::default(),
            commands: HashMap::new(),
            next_command: 1,
            latency: Recorder::new(now),
            findings,
            link_trouble: None,
            is_leaving: false,
        }
    }
}

/// Requests of front ends that the core hasn't answered.
///
/// A request longer than a frame's payload is handed to the core in pieces and answered whole.
#[derive(Default)]
pub(super) struct Requests {
    pieces: Slab<Piece>,
    wholes: Slab<Whole>,
}

struct Piece {
    whole: usize,
    /// Its place among the pieces.
    index: usize,
    /// Where its bytes go, if the peer was asked for them: those of the link are for what the peer sends alone.
    room: Option<Buffer>,
}

struct Whole {
    requester: Rc<dyn Requester>,
    ticket: u64,
    began: Time,
    is_write: bool,
    left: usize,
    failed: Option<IoError>,
    /// The bytes of a read, in order; one place for each piece.
    parts: Vec<Bytes>,
    single: Bytes,
}

/// An answer that is ready to be given.
pub(super) struct Ready {
    pub(super) requester: Rc<dyn Requester>,
    pub(super) ticket: u64,
    pub(super) result: Result<Payload, IoError>,
}

/// The blocks of a core's request are at most as many bytes: the payload of one frame.
pub(super) const PIECE: u64 = PEER_READ;

impl Requests {
    /// Takes a request in and gives its pieces to `each`, in order.
    pub(super) fn begin(
        &mut self,
        request: Request,
        requester: Rc<dyn Requester>,
        ticket: u64,
        now: Time,
        each: &mut Vec<Event>,
    ) {
        let (range, is_read) = match &request {
            Request::Read { offset, len } => (Some((*offset, u64::from(*len))), true),
            Request::Write { offset, data, .. } => (Some((*offset, data.len() as u64)), false),
            // The core cuts these by itself.
            Request::WriteZeroes { .. } | Request::Discard { .. } | Request::Flush => (None, false),
        };
        let is_write = !is_read && !matches!(request, Request::Flush);
        let count = range.map_or(1, |(offset, len)| pieces_of(offset, len));
        let whole = self.wholes.insert(Whole {
            requester,
            ticket,
            began: now,
            is_write,
            left: count,
            failed: None,
            parts: if is_read && count > 1 {
                vec![Bytes::new(); count]
            } else {
                Vec::new()
            },
            single: Bytes::new(),
        });
        if count == 1 {
            let id = self.piece(whole, 0);
            each.push(Event::Request { id, request });
            return;
        }
        let (offset, len) = range.unwrap_or_default();
        let end = offset + len;
        let mut at = offset;
        for index in 0..count {
            let next = (at / PIECE + 1).saturating_mul(PIECE).min(end);
            let piece = match &request {
                Request::Write { data, fua, .. } => Request::Write {
                    offset: at,
                    data: data.slice((at - offset) as usize..(next - offset) as usize),
                    fua: *fua,
                },
                _ => Request::Read {
                    offset: at,
                    len: (next - at) as u32,
                },
            };
            let id = self.piece(whole, index);
            each.push(Event::Request { id, request: piece });
            at = next;
        }
    }

    fn piece(&mut self, whole: usize, index: usize) -> RequestId {
        let piece = Piece {
            whole,
            index,
            room: None,
        };
        RequestId(self.pieces.insert(piece) as u64)
    }

    /// The bytes of this piece are answered in that memory.
    pub(super) fn give_room(&mut self, id: RequestId, room: Buffer) {
        self.pieces[id.0 as usize].room = Some(room);
    }

    /// The core answered one piece; the whole's answer, if it was the last.
    pub(super) fn end(
        &mut self,
        id: RequestId,
        result: Result<Bytes, IoError>,
        now: Time,
        latency: &mut Recorder,
    ) -> Option<Ready> {
        let piece = self.pieces.remove(id.0 as usize);
        let whole = &mut self.wholes[piece.whole];
        whole.left -= 1;
        let result = match (result, piece.room) {
            (Ok(bytes), Some(mut room)) => {
                room.copy_from_slice(&bytes);
                Ok(room.freeze())
            }
            (result, _) => result,
        };
        match result {
            Err(error) => {
                whole.failed.get_or_insert(error);
            }
            Ok(bytes) if whole.parts.is_empty() => whole.single = bytes,
            Ok(bytes) => whole.parts[piece.index] = bytes,
        }
        if whole.left > 0 {
            return None;
        }
        let whole = self.wholes.remove(piece.whole);
        if whole.is_write && whole.failed.is_none() {
            latency.record(now, now.since(whole.began));
        }
        let result = match whole.failed {
            Some(error) => Err(error),
            None if whole.parts.is_empty() => Ok(Payload::Whole(whole.single)),
            None => Ok(Payload::Parts(whole.parts)),
        };
        Some(Ready {
            requester: whole.requester,
            ticket: whole.ticket,
            result,
        })
    }

    /// Fails everything: the mirror is gone.
    pub(super) fn fail_all(&mut self, out: &mut Vec<Ready>) {
        self.pieces.clear();
        out.extend(self.wholes.drain().map(|whole| Ready {
            requester: whole.requester,
            ticket: whole.ticket,
            result: Err(IoError::Io),
        }));
    }

    pub(super) fn len(&self) -> usize {
        self.wholes.len()
    }
}

/// How many pieces a range makes: it is cut at multiples of [`PIECE`].
fn pieces_of(offset: u64, len: u64) -> usize {
    let block = PAGE as u64;
    let end = offset.checked_add(len);
    let Some(last) = end.and_then(|end| end.checked_next_multiple_of(block)) else {
        return 1; // out of range: the core says so
    };
    if last - offset / block * block <= PIECE {
        return 1;
    }
    let end = offset + len;
    (end.div_ceil(PIECE) - offset / PIECE) as usize
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Nobody;

    impl Requester for Nobody {
        fn complete(&self, _ticket: u64, _result: Result<Payload, IoError>) {}
    }

    fn begin(requests: &mut Requests, request: Request) -> Vec<(RequestId, Request)> {
        let mut events = Vec::new();
        requests.begin(request, Rc::new(Nobody), 7, Time(1), &mut events);
        let pieces = events.into_iter().map(|event| match event {
            Event::Request { id, request } => (id, request),
            other => panic!("{other:?}"),
        });
        pieces.collect()
    }

    #[test]
    fn a_long_read_is_cut_and_joined_in_order() {
        let recorder = RefCell::new(Recorder::new(Time(1)));
        let mut requests = Requests::default();
        let mib = PIECE as u32;
        let pieces = begin(
            &mut requests,
            Request::Read {
                offset: 512,
                len: 2 * mib,
            },
        );
        let spans: Vec<_> = pieces
            .iter()
            .map(|(_, piece)| match piece {
                Request::Read { offset, len } => (*offset, *len),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(spans, [(512, mib - 512), (PIECE, mib), (2 * PIECE, 512)]);
        let mut ready = None;
        for (nth, (id, _)) in pieces.iter().enumerate().rev() {
            assert!(ready.is_none());
            let bytes = Bytes::from(vec![nth as u8]);
            ready = requests.end(*id, Ok(bytes), Time(2), &mut recorder.borrow_mut());
        }
        let ready = ready.expect("whole");
        let Ok(Payload::Parts(parts)) = ready.result else {
            panic!("parts")
        };
        assert_eq!(parts, [vec![0], vec![1], vec![2]]);
        assert_eq!((ready.ticket, requests.len()), (7, 0));
    }

    #[test]
    fn one_failed_piece_fails_the_whole_when_all_are_back() {
        let mut recorder = Recorder::new(Time(1));
        let mut requests = Requests::default();
        let data = Bytes::from(vec![1; 3 * PIECE as usize]);
        let pieces = begin(
            &mut requests,
            Request::Write {
                offset: 0,
                data,
                fua: true,
            },
        );
        assert_eq!(pieces.len(), 3);
        assert!(
            requests
                .end(pieces[0].0, Err(IoError::NoSpace), Time(2), &mut recorder)
                .is_none()
        );
        assert!(
            requests
                .end(pieces[1].0, Err(IoError::Io), Time(2), &mut recorder)
                .is_none()
        );
        let ready = requests
            .end(pieces[2].0, Ok(Bytes::new()), Time(2), &mut recorder)
            .expect("whole");
        assert!(
            matches!(ready.result, Err(IoError::NoSpace)),
            "the first failure is told"
        );
    }

    #[test]
    fn short_ones_are_left_whole() {
        let mut requests = Requests::default();
        let data = Bytes::from(vec![1; PIECE as usize]);
        assert_eq!(
            begin(
                &mut requests,
                Request::Write {
                    offset: 4096,
                    data,
                    fua: false
                }
            )
            .len(),
            1
        );
        assert_eq!(begin(&mut requests, Request::Flush).len(), 1);
        assert_eq!(
            begin(
                &mut requests,
                Request::Read {
                    offset: u64::MAX,
                    len: u32::MAX
                }
            )
            .len(),
            1
        );
        let zeroes = Request::WriteZeroes {
            offset: 0,
            len: 1 << 40,
            unmap: false,
            fua: false,
        };
        assert_eq!(begin(&mut requests, zeroes).len(), 1);
    }
}
