//! A connection with one peer: who is at the other end, which sessions it carries, how it ends.
//!
//! Right after the handshake both sides say hello (versions, node, thread). A connection that the
//! peer dialled becomes *the* connection with it when its first session is opened, not before: a
//! dialer that races its addresses drops the losers unused. The newer one then replaces the older,
//! whose sessions go down first. A peer that breaks the protocol loses the connection with all its
//! sessions, and is told why.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{ConnectionError, ReadExactError, RecvStream, SendStream, TransportErrorCode, VarInt};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::Inner;
use super::config::{MirrorId, NodeId};
use super::event::{DownReason, LinkFault, PeerFault, code};
use super::note::{self, NOTES_SINCE};
use super::opening::{Hello, MAX_HELLO, OpeningFault, PREAMBLE_LEN, Preamble, cut};
use super::peer::Peer;
use super::session::{Session, reason_of};
use super::streams::{RecvHalf, SendHalf};
use crate::shell::fields::shown;
use crate::shell::identity::Fingerprint;
use crate::shell::tls;
use crate::wire::frame::Class;
use crate::wire::limits::MAX_REASON;

/// Sessions that a peer may open within a second, beside those of its mirrors.
const OPENINGS: u32 = 8;
/// Sessions that a peer may open within a second for each mirror that a connection can carry: its pauses between attempts
/// allow for four. (How many of them are open here says nothing: the peer asks for all that it has.)
const OPENINGS_OF_A_MIRROR: u32 = 8;
/// TLS alerts (RFC 8446, section 6.2) by which a peer refuses a key or a protocol.
const ALERT_BAD_CERTIFICATE: u8 = 42;
const ALERT_CERTIFICATE_UNKNOWN: u8 = 46;
const ALERT_ACCESS_DENIED: u8 = 49;
const ALERT_NO_APPLICATION_PROTOCOL: u8 = 120;

/// An established connection.
pub(super) struct Conn {
    pub quic: quinn::Connection,
    pub peer: Rc<Peer>,
    pub version: u16,
    pub key: Fingerprint,
    /// The silence that counts as death on this connection.
    pub timeout: Duration,
    /// Whether a session ever came up on it.
    pub was_used: Cell<bool>,
    /// Bytes of all its sessions' data streams.
    pub data_received: Cell<u64>,
    /// Why it ended, once it has.
    ended: RefCell<Option<DownReason>>,
    sessions: RefCell<Vec<Rc<Session>>>,
    opening: RefCell<HashMap<u64, Opening>>,
    /// When the present second of counting began, and the streams that the peer opened in it.
    opened: Cell<(Instant, u32)>,
    /// Its receivers are the last words that the peer has not acknowledged.
    last_words: watch::Sender<()>,
}

/// What a session says last is on its way to the peer for as long as this lives.
pub(super) struct LastWord {
    _said: watch::Receiver<()>,
}

/// A session of which not all streams are here yet.
struct Opening {
    mirror: MirrorId,
    streams: [Option<(SendHalf, RecvHalf)>; 3],
}

impl Conn {
    pub(super) fn new(
        quic: quinn::Connection,
        peer: Rc<Peer>,
        version: u16,
        key: Fingerprint,
        timeout: Duration,
    ) -> Rc<Self> {
        Rc::new(Self {
            quic,
            peer,
            version,
            key,
            timeout,
            was_used: Cell::new(false),
            data_received: Cell::new(0),
            ended: RefCell::new(None),
            sessions: RefCell::default(),
            opening: RefCell::default(),
            opened: Cell::new((Instant::now(), 0)),
            last_words: watch::Sender::new(()),
        })
    }

    pub(super) fn begin_last_word(&self) -> LastWord {
        LastWord {
            _said: self.last_words.subscribe(),
        }
    }

    /// Waits until the peer has acknowledged the last words of all sessions that have ended, or can't any more.
    pub(super) async fn last_words_arrived(&self) {
        self.last_words.closed().await;
    }

    /// Listens to what the peer tells of itself, where both speak a version that has notes.
    pub(super) fn take_notes(self: &Rc<Self>, inner: &Rc<Inner>) {
        if self.version >= NOTES_SINCE {
            spawn_local(note::serve(Rc::clone(inner), Rc::clone(self)));
        }
    }

    pub(super) fn count_received(&self, class: Class, bytes: usize) {
        if class == Class::Data {
            let before = self.data_received.get();
            self.data_received.set(before + bytes as u64);
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.ended.borrow().is_none()
    }

    pub(super) fn add_session(&self, session: &Rc<Session>) {
        self.was_used.set(true);
        self.sessions.borrow_mut().push(Rc::clone(session));
    }

    pub(super) fn remove_session(&self, session: &Rc<Session>) {
        self.sessions
            .borrow_mut()
            .retain(|other| other.id != session.id);
    }

    /// Watches over the connection until it ends.
    pub(super) async fn watch(self: Rc<Self>) {
        let error = self.quic.closed().await;
        self.on_lost(error);
    }

    /// Takes the sessions that the peer opens, until the connection ends.
    pub(super) async fn serve(self: Rc<Self>, inner: Rc<Inner>) {
        while let Ok((send, recv)) = self.quic.accept_bi().await {
            if !self.count_stream(&inner) {
                return;
            }
            spawn_local(Rc::clone(&self).on_stream(Rc::clone(&inner), send, recv));
        }
    }

    /// The transport says that the connection is over.
    pub(super) fn on_lost(&self, error: ConnectionError) {
        let reason = match error {
            ConnectionError::TimedOut => DownReason::TimedOut(self.timeout),
            ConnectionError::Reset => DownReason::PeerRestarted,
            ConnectionError::ApplicationClosed(close) => DownReason::ClosedByPeer(reason_of(
                close.error_code,
                shown(&close.reason, MAX_REASON),
            )),
            other => DownReason::Transport(other.to_string()),
        };
        self.end(&reason);
    }

    /// The peer broke the protocol: it loses the connection and hears why.
    pub(super) fn fail(&self, inner: &Inner, fault: PeerFault) {
        if !self.is_open() {
            return;
        }
        let address = self.quic.remote_address();
        tracing::warn!(peer = %self.peer.name(), %address, %fault, "the peer broke the protocol, connection closed");
        let number = match fault {
            PeerFault::Slow(..) => code::SLOW,
            PeerFault::TooManyStreams(_) | PeerFault::TooManyConnections(_) => code::TOO_MANY,
            _ => code::PROTOCOL,
        };
        self.hang_up(number, &fault.to_string());
        inner.report(Some(self.peer.node), Some(address), fault.clone().into());
        self.end(&DownReason::PeerFault(fault));
    }

    /// Closes the connection, and its sessions for this reason.
    pub(super) fn close(&self, reason: &DownReason) {
        let (number, text) = match reason {
            DownReason::ClosedHere(reason) => (reason.code, reason.text.clone()),
            DownReason::Replaced => (code::REPLACED, "replaced by a newer connection".to_owned()),
            other => (code::NORMAL, other.to_string()),
        };
        self.hang_up(number, &text);
        self.end(reason);
    }

    fn hang_up(&self, number: u32, text: &str) {
        self.quic
            .close(VarInt::from_u32(number), cut(text).as_bytes());
    }

    fn end(&self, reason: &DownReason) {
        if !self.is_open() {
            return;
        }
        *self.ended.borrow_mut() = Some(reason.clone());
        self.opening.borrow_mut().clear();
        for session in self.sessions.take() {
            session.down(reason.clone());
        }
        self.peer.forget(self);
        tracing::info!(peer = %self.peer.name(), %reason, "connection ended");
    }

    /// The peer opened a stream: its preamble says for what.
    async fn on_stream(self: Rc<Self>, inner: Rc<Inner>, send: SendStream, recv: RecvStream) {
        let mut recv = RecvHalf::new(recv);
        let mut bytes = [0; PREAMBLE_LEN];
        match timeout(self.timeout, recv.stream.read_exact(&mut bytes)).await {
            Err(_) => {
                return self.fail(&inner, PeerFault::Slow("a stream's preamble", self.timeout));
            }
            Ok(Err(ReadExactError::FinishedEarly(len))) => {
                return self.fail(&inner, OpeningFault::Length("a preamble", len).into_fault());
            }
            // Given up by the dialer, or the connection is over.
            Ok(Err(ReadExactError::ReadError(_))) => return,
            Ok(Ok(())) => {}
        }
        let preamble = match Preamble::decode(&bytes, self.version) {
            Ok(preamble) if preamble.code == 0 => preamble,
            Ok(_) => return self.fail(&inner, OpeningFault::Reserved("preamble").into_fault()),
            Err(fault) => return self.fail(&inner, fault.into_fault()),
        };
        if self.is_open() {
            let send = SendHalf::new(send, preamble.class);
            self.on_preamble(&inner, preamble, send, recv);
        }
    }

    fn on_preamble(
        self: &Rc<Self>,
        inner: &Rc<Inner>,
        preamble: Preamble,
        send: SendHalf,
        recv: RecvHalf,
    ) {
        if !self.peer.adopt(inner, self) {
            return;
        }
        let Preamble {
            nonce,
            mirror,
            class,
            ..
        } = preamble;
        let mut all = self.opening.borrow_mut();
        let opening = all.entry(nonce).or_insert_with(|| {
            spawn_local(Rc::clone(self).give_up_opening(nonce));
            Opening {
                mirror,
                streams: Default::default(),
            }
        });
        let slot = &mut opening.streams[class as usize];
        if opening.mirror != mirror || slot.is_some() {
            drop(all);
            return self.fail(inner, OpeningFault::Repeated(class).into_fault());
        }
        *slot = Some((send, recv));
        if opening.streams.iter().any(Option::is_none) {
            return;
        }
        let opening = all.remove(&nonce);
        drop(all);
        let Some(Opening {
            streams: [Some(control), Some(data), Some(resync)],
            ..
        }) = opening
        else {
            unreachable!("all three were there");
        };
        let preamble = Preamble {
            class: Class::Control,
            ..preamble
        };
        self.answer(inner, preamble, [control, data, resync]);
    }

    /// Drops what came of an opening that the dialer gave up half-way.
    async fn give_up_opening(self: Rc<Self>, nonce: u64) {
        tokio::time::sleep(self.timeout).await;
        self.opening.borrow_mut().remove(&nonce);
    }

    /// Counts a stream opened; false, and the connection closed, when there are too many.
    fn count_stream(&self, inner: &Inner) -> bool {
        let (since, count) = self.opened.get();
        let (since, count) = if since.elapsed() < Duration::from_secs(1) {
            (since, count + 1)
        } else {
            (Instant::now(), 1)
        };
        self.opened.set((since, count));
        let sessions = OPENINGS + OPENINGS_OF_A_MIRROR * inner.config.tuning.max_mirrors;
        let too_many = count > Class::ALL.len() as u32 * sessions;
        if too_many {
            self.fail(inner, PeerFault::TooManyStreams(count));
        }
        !too_many
    }

    /// Admits a session whose streams are all here, or says why not.
    fn answer(
        self: &Rc<Self>,
        inner: &Rc<Inner>,
        preamble: Preamble,
        streams: super::session::Streams,
    ) {
        let mirror = preamble.mirror;
        match inner.may_open(mirror, self.peer.node) {
            Ok(older) => {
                if let Some(older) = older {
                    older.down(DownReason::Replaced);
                }
                let first = Class::ALL
                    .map(|class| Bytes::copy_from_slice(&Preamble { class, ..preamble }.encode()));
                Session::start(inner, self, mirror, preamble.nonce, streams, first);
            }
            Err(refusal) => {
                tracing::debug!(peer = %self.peer.name(), %mirror, %refusal, "session refused");
                let [(mut control, _recv), ..] = streams;
                let text = cut(&refusal.text);
                let answer = Preamble {
                    code: refusal.code,
                    text_len: text.len(),
                    ..preamble
                };
                let mut pieces = [
                    Bytes::copy_from_slice(&answer.encode()),
                    Bytes::copy_from_slice(text.as_bytes()),
                ];
                spawn_local(async move {
                    if control.write(&mut pieces).await.is_ok() {
                        drop(control.finish());
                    }
                });
            }
        }
    }
}

impl OpeningFault {
    fn into_fault(self) -> PeerFault {
        PeerFault::Opening(self)
    }
}

/// Says hello and hears the other's.
///
/// # Errors
///
/// The connection broke, or the other end speaks something else.
pub(super) async fn hello(
    inner: &Inner,
    quic: &quinn::Connection,
    within: Duration,
) -> Result<Hello, LinkFault> {
    let Some(version) = tls::agreed_protocol(quic).and_then(|name| version_of(&name)) else {
        return Err(LinkFault::OtherProtocol);
    };
    let ours = Hello {
        version,
        node: inner.config.node,
        thread: inner.config.thread,
        versions: inner.config.versions.clone(),
    };
    let exchange = async {
        let lost = |error| fault_of(inner, within, error);
        let mut send = quic.open_uni().await.map_err(lost)?;
        // A write fails with the connection, whose error the next step shows.
        let _ = send.write_all(&ours.encode()).await;
        let _ = send.finish();
        let mut recv = quic.accept_uni().await.map_err(lost)?;
        let bytes = recv
            .read_to_end(MAX_HELLO)
            .await
            .map_err(|error| match error {
                quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error)) => lost(error),
                other => LinkFault::Transport(other.to_string()),
            })?;
        let theirs = Hello::decode(&bytes).map_err(PeerFault::from)?;
        if version == 0 {
            // The other must have ours before the connection goes.
            let _ = timeout(Duration::from_millis(500), send.stopped()).await;
            let ours = inner.config.versions.clone();
            return Err(LinkFault::NoCommonVersion {
                theirs: theirs.versions,
                ours,
            });
        }
        Ok(theirs)
    };
    match timeout(within, exchange).await {
        Ok(Ok(theirs)) => Ok(theirs),
        Ok(Err(fault)) => {
            let number = if version == 0 {
                code::NO_COMMON_VERSION
            } else {
                code::PROTOCOL
            };
            quic.close(VarInt::from_u32(number), cut(&fault.to_string()).as_bytes());
            Err(fault)
        }
        Err(_) => {
            quic.close(VarInt::from_u32(code::SLOW), b"no hello in time");
            Err(PeerFault::Slow("the hello", within).into())
        }
    }
}

/// Checks that the other end is the node and thread it should be; closes the connection if not.
pub(super) fn check_hello(
    inner: &Inner,
    quic: &quinn::Connection,
    peer: NodeId,
    theirs: &Hello,
) -> Result<(), LinkFault> {
    let agreed = tls::agreed_protocol(quic).and_then(|name| version_of(&name));
    if let Some(agreed) = agreed.filter(|agreed| *agreed != theirs.version) {
        let found = theirs.version;
        let fault = PeerFault::Opening(OpeningFault::Version { found, agreed });
        let fault = LinkFault::from(fault);
        refuse(quic, code::PROTOCOL, &fault);
        return Err(fault);
    }
    let fault = if theirs.node != peer {
        LinkFault::WrongNode {
            found: theirs.node,
            expected: peer,
        }
    } else if theirs.thread != inner.config.thread {
        LinkFault::WrongThread {
            found: theirs.thread,
            expected: inner.config.thread,
        }
    } else {
        return Ok(());
    };
    refuse(quic, code::WRONG_NODE, &fault);
    Err(fault)
}

/// Closes a connection that was never used.
pub(super) fn refuse(quic: &quinn::Connection, number: u32, fault: &LinkFault) {
    quic.close(VarInt::from_u32(number), cut(&fault.to_string()).as_bytes());
}

/// The names by which protocol versions are agreed on in the handshake, the best first. The last is
/// for nodes with no version in common: they tell each other which they have, and part.
pub(super) fn protocols(versions: &[u16]) -> Vec<Vec<u8>> {
    let named = versions
        .iter()
        .map(|version| format!("kagami/{version}").into_bytes());
    named.chain([b"kagami-versions".to_vec()]).collect()
}

/// The version that a protocol name stands for; 0 for the talk about versions.
fn version_of(name: &[u8]) -> Option<u16> {
    if name == b"kagami-versions" {
        return Some(0);
    }
    std::str::from_utf8(name.strip_prefix(b"kagami/")?)
        .ok()?
        .parse()
        .ok()
        .filter(|v| *v != 0)
}

/// What a failed handshake or connection means to people.
pub(super) fn fault_of(inner: &Inner, within: Duration, error: ConnectionError) -> LinkFault {
    let alert = |code: TransportErrorCode, alerts: &[u8]| {
        alerts
            .iter()
            .any(|alert| code == TransportErrorCode::crypto(*alert))
    };
    let key = [
        ALERT_BAD_CERTIFICATE,
        ALERT_CERTIFICATE_UNKNOWN,
        ALERT_ACCESS_DENIED,
    ];
    match error {
        ConnectionError::TimedOut => LinkFault::NoAnswer(within),
        ConnectionError::TransportError(e) if alert(e.code, &key) => {
            LinkFault::UnknownKey(e.reason)
        }
        ConnectionError::ConnectionClosed(c) if alert(c.error_code, &key) => {
            LinkFault::KeyRefused(inner.key().fingerprint())
        }
        ConnectionError::TransportError(e) if alert(e.code, &[ALERT_NO_APPLICATION_PROTOCOL]) => {
            LinkFault::OtherProtocol
        }
        ConnectionError::ConnectionClosed(c)
            if alert(c.error_code, &[ALERT_NO_APPLICATION_PROTOCOL]) =>
        {
            LinkFault::OtherProtocol
        }
        ConnectionError::ApplicationClosed(close) => {
            let text = shown(&close.reason, MAX_REASON);
            LinkFault::Refused(reason_of(close.error_code, text))
        }
        other => LinkFault::Transport(other.to_string()),
    }
}
