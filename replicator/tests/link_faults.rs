//! A peer that holds a pinned key and breaks the protocol: it loses its connection, with the reason,
//! and nothing else happens.

mod link_support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kagami_replicator::shell::identity::NodeKey;
use kagami_replicator::shell::quic::{
    DownReason, LinkEvent, LinkFault, MirrorId, OpeningFault, PeerConfig, PeerFault, SessionId,
    Tuning, code,
};
use kagami_replicator::shell::tls::{self, Admit, Pins};
use kagami_replicator::wire::frame::{Class, Encoder, FrameFault, OutFrame};
use link_support::*;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt};

/// A peer of our own making, by the description in docs/wire-protocol.md.
struct Rogue {
    _endpoint: Endpoint,
    connection: Connection,
    streams: Vec<(SendStream, RecvStream)>,
}

fn sum(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc32c::crc32c(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

fn hello() -> Vec<u8> {
    hello_of(1)
}

fn hello_of(agreed: u16) -> Vec<u8> {
    let mut out = b"KGMH".to_vec();
    out.extend(agreed.to_le_bytes());
    out.extend(1_u16.to_le_bytes()); // one version follows
    out.extend(A.0.to_le_bytes());
    out.extend([0; 4]); // thread, reserved
    out.extend(1_u16.to_le_bytes());
    sum(out)
}

fn preamble(class: u8, nonce: u64) -> Vec<u8> {
    preamble_of(PG, class, nonce)
}

fn preamble_of(mirror: MirrorId, class: u8, nonce: u64) -> Vec<u8> {
    let mut out = b"KGMP".to_vec();
    out.extend(1_u16.to_le_bytes());
    out.extend([class, 0]);
    out.extend(nonce.to_le_bytes());
    out.extend(mirror.0.to_le_bytes());
    out.extend([0; 12]); // accepted, no text, reserved
    sum(out)
}

impl Rogue {
    async fn dial(key: &NodeKey, address: SocketAddr, pins: Pins) -> Self {
        let endpoint = Endpoint::client(any_port()).expect("a socket");
        let names = vec![b"kagami/1".to_vec()];
        let mut config = tls::quic_client(key, Admit::Pinned(pins), names).expect("TLS");
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_millis(200)));
        config.transport_config(Arc::new(transport));
        let connection = endpoint
            .connect_with(config, address, tls::SERVER_NAME)
            .expect("dialled")
            .await
            .expect("connected");
        Self {
            _endpoint: endpoint,
            connection,
            streams: Vec::new(),
        }
    }

    async fn say_hello(&self) {
        let mut send = self.connection.open_uni().await.expect("a stream");
        send.write_all(&hello()).await.expect("sent");
        send.finish().expect("open");
        let mut recv = self.connection.accept_uni().await.expect("a stream");
        let theirs = recv.read_to_end(200).await.expect("a hello");
        assert_eq!(theirs[..4], *b"KGMH");
        assert_eq!(theirs[8..24], B.0.to_le_bytes());
    }

    async fn open(&mut self, first: &[u8]) {
        let (mut send, recv) = self.connection.open_bi().await.expect("a stream");
        // Whether it arrives is the other's word.
        let _ = send.write_all(first).await;
        self.streams.push((send, recv));
    }

    async fn open_session(&mut self, nonce: u64) {
        for class in 0..3 {
            self.open(&preamble(class, nonce)).await;
        }
        for (class, (_, recv)) in self.streams.iter_mut().enumerate() {
            let mut answer = [0; 48];
            recv.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(answer[..], preamble(class as u8, nonce));
        }
    }

    /// Why the other closed the connection.
    async fn closed(&self) -> (u64, String) {
        let closed = tokio::time::timeout(DEADLINE, self.connection.closed());
        match closed.await.expect("closed before the deadline") {
            ConnectionError::ApplicationClosed(close) => (
                close.error_code.into_inner(),
                String::from_utf8_lossy(&close.reason).into_owned(),
            ),
            other => panic!("{other:?}"),
        }
    }
}

/// A node with a rogue that has said hello.
async fn with_rogue(timeout: Duration) -> (Node, Rogue) {
    with_rogue_and(timeout, |_| {}).await
}

async fn with_rogue_and(timeout: Duration, tune: impl Fn(&mut Tuning)) -> (Node, Rogue) {
    let (key_a, key_b) = (key(), key());
    let mut config_b = config(B);
    tune(&mut config_b.tuning);
    config_b.peers = vec![PeerConfig {
        timeout,
        ..peer(A, vec![], &key_a)
    }];
    let pins = Pins::new([key_b.fingerprint()]);
    let b = Node::new(config_b, key_b);
    want(&b, A, &[PG]);
    let rogue = Rogue::dial(&key_a, b.address(), pins).await;
    rogue.say_hello().await;
    (b, rogue)
}

async fn with_session() -> (Node, SessionId, Rogue) {
    let (mut b, mut rogue) = with_rogue(TIMEOUT).await;
    rogue.open_session(77).await;
    let (session, nonce) = b.up_with_nonce().await;
    assert_eq!(nonce, 77);
    (b, session, rogue)
}

fn encoded(head: &[u8], payload: Option<&[u8]>) -> Vec<u8> {
    let mut pieces = Vec::new();
    let mut encoder = Encoder::new(1);
    let frame = OutFrame {
        kind: 1,
        head: Bytes::copy_from_slice(head),
        payload: payload.map(Bytes::copy_from_slice),
    };
    encoder.encode(&frame, &mut pieces);
    encoder.flush(&mut pieces);
    pieces.concat()
}

/// What a class of bytes leads to, on a session of its own.
async fn fault_after(bytes: &[u8], class: Class) -> (FrameFault, (u64, String)) {
    let (mut b, session, mut rogue) = with_session().await;
    let (send, _) = &mut rogue.streams[class as usize];
    let _ = send.write_all(bytes).await;
    let reason = b.down(session).await;
    let DownReason::PeerFault(PeerFault::Frame {
        class: found,
        fault,
    }) = reason
    else {
        panic!("{reason:?}")
    };
    assert_eq!(found, class);
    (fault, rogue.closed().await)
}

#[test]
fn the_documented_bytes_open_a_session_and_carry_frames() {
    run(async {
        let (mut b, session, mut rogue) = with_session().await;
        let payload = pattern(5000, 1);
        let frame = encoded(b"by the book", Some(&payload));
        rogue.streams[1].0.write_all(&frame).await.expect("sent");
        let (class, frame) = b.frame(session).await;
        assert_eq!((class, &frame.head[..]), (Class::Data, &b"by the book"[..]));
        assert_eq!(frame.payload, Some(payload));
    });
}

/// A stolen key, a connection kept in store with it, and the operator who takes the key out.
#[test]
fn a_connection_from_before_its_key_was_unpinned_is_nobodys() {
    run(async {
        let (b, mut rogue) = with_rogue(TIMEOUT).await;
        let other = key();
        b.link.set_peers(vec![peer(A, vec![], &other)]);
        for class in 0..3 {
            rogue.open(&preamble(class, 77)).await;
        }
        let (number, _) = rogue.closed().await;
        assert_eq!(number, u64::from(code::UNPINNED));

        // Nor where the whole peer is gone.
        let (b, mut rogue) = with_rogue(TIMEOUT).await;
        b.link.set_peers(Vec::new());
        for class in 0..3 {
            rogue.open(&preamble(class, 78)).await;
        }
        let (number, _) = rogue.closed().await;
        assert_eq!(number, u64::from(code::UNPINNED));
    });
}

#[test]
fn wrong_frames_close_the_connection_with_their_fault() {
    run(async {
        let (fault, (number, text)) = fault_after(&[0xee; 64], Class::Data).await;
        assert_eq!(fault, FrameFault::BadMagic { found: 0xeeee_eeee });
        assert_eq!(number, u64::from(code::PROTOCOL));
        assert!(
            text.contains("data stream: no frame where one must start"),
            "{text}"
        );

        let mut oversized = encoded(b"x", None);
        oversized[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let (fault, (_, text)) = fault_after(&oversized, Class::Resync).await;
        assert_eq!(
            fault,
            FrameFault::PayloadTooLarge {
                kind: 1,
                len: u32::MAX
            }
        );
        assert!(text.contains("4294967295 bytes"), "{text}");

        let mut oversized = encoded(b"x", None);
        oversized[8..12].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        let (fault, _) = fault_after(&oversized, Class::Control).await;
        assert_eq!(
            fault,
            FrameFault::HeadTooLarge {
                kind: 1,
                len: 1 << 20
            }
        );

        let mut damaged = encoded(b"damaged", None);
        damaged[33] ^= 1;
        let (fault, _) = fault_after(&damaged, Class::Control).await;
        assert!(
            matches!(fault, FrameFault::BadChecksum { sequence: 0, .. }),
            "{fault:?}"
        );

        let mut other = encoded(b"x", None);
        other[4] = 9;
        let (fault, _) = fault_after(&other, Class::Control).await;
        assert_eq!(
            fault,
            FrameFault::WrongVersion {
                found: 9,
                agreed: 1
            }
        );

        let twice = encoded(b"x", None).repeat(2);
        let (fault, _) = fault_after(&twice, Class::Control).await;
        assert_eq!(
            fault,
            FrameFault::OutOfSequence {
                found: 0,
                expected: 1
            }
        );
    });
}

#[test]
fn a_damaged_payload_ends_the_session_alone_and_is_never_handed_out() {
    run(async {
        let (mut b, session, mut rogue) = with_session().await;
        let mut frame = encoded(b"", Some(&pattern(3 * 4096, 1)));
        let last = frame.len() - 1;
        frame[last] ^= 0x80;
        rogue.streams[1].0.write_all(&frame).await.expect("sent");
        let event = b.next().await;
        let LinkEvent::Down {
            session: ended,
            reason,
            ..
        } = event
        else {
            panic!("{event:?}")
        };
        assert_eq!(ended, session);
        assert!(
            matches!(
                reason,
                DownReason::PeerFault(PeerFault::Frame {
                    class: Class::Data,
                    fault: FrameFault::BadPayload {
                        sequence: 0,
                        block: 2,
                        ..
                    }
                })
            ),
            "{reason:?}"
        );
        // The reason comes on the control stream, the connection lives, the next session comes up.
        let (_, control) = &mut rogue.streams[0];
        let word = control.read_to_end(2000).await.expect("the last word");
        assert_eq!(word[6], 0, "a frame of the link's own kind");
        assert_eq!(word[32..36], code::DAMAGED.to_le_bytes());
        assert!(String::from_utf8_lossy(&word[36..]).contains("bad checksum"));
        rogue.streams.clear();
        rogue.open_session(78).await;
        assert_eq!(b.up_with_nonce().await.1, 78);
    });
}

#[test]
fn wrong_openings_close_the_connection() {
    async fn fault_after(streams: &[&[u8]]) -> PeerFault {
        let (mut b, mut rogue) = with_rogue(TIMEOUT).await;
        for bytes in streams {
            rogue.open(bytes).await;
        }
        let fault = b.failure().await;
        assert_eq!(rogue.closed().await.0, u64::from(code::PROTOCOL));
        let LinkFault::PeerFault(fault) = fault else {
            panic!("{fault:?}")
        };
        fault
    }
    run(async {
        let opening = |fault| PeerFault::Opening(fault);
        let garbage = fault_after(&[&[7; 48]]).await;
        assert_eq!(
            garbage,
            opening(OpeningFault::Magic("preamble", 0x0707_0707))
        );
        let mut damaged = preamble(0, 1);
        damaged[20] ^= 4;
        assert_eq!(
            fault_after(&[&damaged]).await,
            opening(OpeningFault::Checksum("preamble"))
        );
        let class = fault_after(&[&preamble(3, 1)]).await;
        assert_eq!(class, opening(OpeningFault::Class(3)));
        let twice = fault_after(&[&preamble(1, 1), &preamble(1, 1)]).await;
        assert_eq!(twice, opening(OpeningFault::Repeated(Class::Data)));
    });
}

#[test]
fn a_stream_that_says_nothing_closes_the_connection_in_time() {
    run(async {
        let timeout = Duration::from_secs(2);
        let (mut b, mut rogue) = with_rogue(timeout).await;
        rogue.open(b"KGM").await;
        let LinkFault::PeerFault(fault) = b.failure().await else {
            panic!("another fault")
        };
        assert_eq!(fault, PeerFault::Slow("a stream's preamble", timeout));
        assert_eq!(rogue.closed().await.0, u64::from(code::SLOW));
    });
}

#[test]
fn a_connection_that_opens_nothing_is_not_kept() {
    run(async {
        let timeout = Duration::from_secs(2);
        let (_b, rogue) = with_rogue(timeout).await;
        assert_eq!(rogue.closed().await.0, u64::from(code::SLOW));
    });
}

#[test]
fn a_peer_that_connects_without_end_is_refused() {
    run(async {
        // Long, so that none of the connections is given up meanwhile.
        let timeout = Duration::from_secs(30);
        let (key_a, key_b) = (key(), key());
        let mut config_b = config(B);
        config_b.peers = vec![PeerConfig {
            timeout,
            ..peer(A, vec![], &key_a)
        }];
        let pins = Pins::new([key_b.fingerprint()]);
        let mut b = Node::new(config_b, key_b);
        want(&b, A, &[PG]);
        let mut kept = Vec::new();
        for _ in 0..70 {
            let rogue = Rogue::dial(&key_a, b.address(), pins.clone()).await;
            rogue.say_hello().await;
            kept.push(rogue);
        }
        let fault = b.failure().await;
        let LinkFault::PeerFault(fault) = fault else {
            panic!("{fault:?}")
        };
        assert_eq!(fault, PeerFault::TooManyConnections(64));
        let last = kept.pop().expect("one of them");
        assert_eq!(last.closed().await.0, u64::from(code::TOO_MANY));
        // One of those that were let in opens its session as ever.
        kept[0].open_session(5).await;
        assert_eq!(b.up_with_nonce().await.1, 5);
    });
}

#[test]
fn a_peer_with_many_mirrors_that_are_not_open_here_keeps_the_one_that_is() {
    run(async {
        let (mut b, mut rogue) = with_rogue(TIMEOUT).await;
        for nonce in 0..40 {
            for class in 0..3 {
                let unknown = MirrorId(1000 + u128::from(nonce));
                rogue.open(&preamble_of(unknown, class, nonce)).await;
            }
            rogue.streams.clear();
        }
        rogue.open_session(77).await;
        assert_eq!(b.up_with_nonce().await.1, 77);
    });
}

#[test]
fn a_hello_of_another_version_than_was_agreed_on_is_refused() {
    run(async {
        let (key_a, key_b) = (key(), key());
        let mut config_b = config(B);
        config_b.peers = vec![peer(A, vec![], &key_a)];
        let pins = Pins::new([key_b.fingerprint()]);
        let b = Node::new(config_b, key_b);
        want(&b, A, &[PG]);
        let rogue = Rogue::dial(&key_a, b.address(), pins).await;
        let mut send = rogue.connection.open_uni().await.expect("a stream");
        send.write_all(&hello_of(2)).await.expect("sent");
        send.finish().expect("open");
        let (number, why) = rogue.closed().await;
        assert_eq!(number, u64::from(code::PROTOCOL), "{why}");
    });
}

#[test]
fn endless_streams_close_the_connection() {
    run(async {
        let one = |tuning: &mut Tuning| tuning.max_mirrors = 1;
        let (mut b, rogue) = with_rogue_and(TIMEOUT, one).await;
        let flood = async {
            for nonce in 0..200 {
                let Ok((mut send, _recv)) = rogue.connection.open_bi().await else {
                    return;
                };
                let _ = send.write_all(&preamble(0, nonce)).await;
                let _ = send.reset(VarInt::from_u32(code::NORMAL));
            }
        };
        let find = b.until("fault", |event| match event {
            LinkEvent::ConnectFailed {
                error: LinkFault::PeerFault(fault),
                ..
            } => Some(fault),
            _ => None,
        });
        let ((), fault) = tokio::join!(flood, find);
        assert!(matches!(fault, PeerFault::TooManyStreams(_)), "{fault:?}");
        assert_eq!(rogue.closed().await.0, u64::from(code::TOO_MANY));
    });
}

#[test]
fn more_streams_than_allowed_are_not_taken() {
    run(async {
        let (mut b, mut rogue) = with_rogue(TIMEOUT).await;
        // Control streams alone: each is an opening that is never completed.
        let mut opened = 0;
        let more = async {
            for nonce in 0..100 {
                rogue.open(&preamble(0, nonce)).await;
                opened += 1;
            }
        };
        let within = tokio::time::timeout(Duration::from_millis(300), more);
        assert!(within.await.is_err(), "a hundred streams were taken");
        assert_eq!(opened, 3 * (2 + 4));
        assert!(rogue.connection.close_reason().is_none());
        rogue.connection.close(VarInt::from_u32(0), b"");
        assert!(b.next_within(Duration::from_millis(100)).await.is_none());
    });
}

#[test]
fn a_stream_that_ends_without_a_word_closes_the_connection() {
    run(async {
        let (mut b, session, mut rogue) = with_session().await;
        rogue.streams[2].0.finish().expect("open");
        let reason = b.down(session).await;
        assert_eq!(
            reason,
            DownReason::PeerFault(PeerFault::StreamEnded(Class::Resync))
        );

        let (mut b, session, mut rogue) = with_session().await;
        let half = &encoded(b"half a frame", None)[..40];
        rogue.streams[0].0.write_all(half).await.expect("sent");
        rogue.streams[0].0.finish().expect("open");
        let reason = b.down(session).await;
        let fault = FrameFault::Truncated;
        assert_eq!(
            reason,
            DownReason::PeerFault(PeerFault::Frame {
                class: Class::Control,
                fault
            })
        );
    });
}

#[test]
fn another_protocol_is_recognised() {
    run(async {
        let (key_a, key_b) = (key(), key());
        let mut config_b = config(B);
        config_b.peers = vec![peer(A, vec![], &key_a)];
        let pins = Pins::new([key_b.fingerprint()]);
        let mut b = Node::new(config_b, key_b);
        let endpoint = Endpoint::client(any_port()).expect("a socket");
        let names = vec![b"kagami-witness/1".to_vec()];
        let config = tls::quic_client(&key_a, Admit::Pinned(pins), names).expect("TLS");
        let dialled = endpoint
            .connect_with(config, b.address(), tls::SERVER_NAME)
            .expect("dialled");
        assert!(dialled.await.is_err());
        assert_eq!(b.failure().await, LinkFault::OtherProtocol);
    });
}

/// It costs its memory, and nothing else comes: the stream alone is silent, the connection is not.
#[test]
fn a_payload_that_does_not_go_on_ends_its_session_alone() {
    let within = Duration::from_secs(2);
    for class in [Class::Data, Class::Resync] {
        run(async {
            let (mut b, mut rogue) = with_rogue(within).await;
            rogue.open_session(77).await;
            let session = b.up().await;
            let frame = encoded(b"begun", Some(&pattern(5000, 1)));
            let (send, _) = &mut rogue.streams[class as usize];
            send.write_all(&frame[..frame.len() - 1])
                .await
                .expect("sent");
            let reason = b.down(session).await;
            let fault = PeerFault::Stalled { class, within };
            assert_eq!(reason, DownReason::PeerFault(fault.clone()));
            // What the other is told.
            let (_, control) = &mut rogue.streams[0];
            let told = control.read_to_end(1 << 16).await.expect("a last word");
            let told = String::from_utf8_lossy(&told).into_owned();
            assert!(told.contains(&fault.to_string()), "{told}");
            assert!(rogue.connection.close_reason().is_none());
        });
    }
}

/// A resynchronisation's payload has its turn behind the application's.
#[test]
fn a_payload_that_more_urgent_ones_overtake_goes_on() {
    run(async {
        let within = Duration::from_secs(2);
        let (mut b, mut rogue) = with_rogue(within).await;
        rogue.open_session(77).await;
        let session = b.up().await;
        let late = encoded(b"late", Some(&pattern(5000, 1)));
        let (first, rest) = late.split_at(late.len() - 1);
        rogue.streams[2].0.write_all(first).await.expect("sent");
        let mut encoder = Encoder::new(1);
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < within * 2 {
            let frame = OutFrame {
                kind: 1,
                head: Bytes::from_static(b"urgent"),
                payload: None,
            };
            let mut pieces = Vec::new();
            encoder.encode(&frame, &mut pieces);
            encoder.flush(&mut pieces);
            rogue.streams[1]
                .0
                .write_all(&pieces.concat())
                .await
                .expect("sent");
            assert_eq!(&b.frame(session).await.1.head[..], b"urgent");
        }
        rogue.streams[2].0.write_all(rest).await.expect("sent");
        assert_eq!(&b.frame(session).await.1.head[..], b"late");
    });
}
