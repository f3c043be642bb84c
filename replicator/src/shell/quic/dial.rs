//! Dialling: every way to a peer is tried, staggered, for ever, with growing pauses; and on each
//! connection a session is opened for every mirror that wants one.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{ConnectError, VarInt};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{sleep, timeout};

use super::Inner;
use super::config::{MirrorId, Tuning};
use super::connection::{self, Conn};
use super::endpoint::{Allowance, transport};
use super::event::{CloseReason, LinkFault, PeerFault, code};
use super::opening::{OpeningFault, PREAMBLE_LEN, Preamble};
use super::peer::Peer;
use super::session::{Session, Streams};
use super::streams::{RecvHalf, SendHalf};
use crate::shell::fields::shown;
use crate::shell::tls::{self, Admit};
use crate::wire::frame::Class;
use crate::wire::limits::MAX_REASON;

/// A session or connection that lasted as long was no failure.
const LASTED: Duration = Duration::from_secs(1);

/// Growing pauses between attempts, spread so that nodes don't fall into step.
struct Pauses {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Pauses {
    fn new(tuning: &Tuning) -> Self {
        Self {
            first: tuning.first_pause,
            longest: tuning.longest_pause,
            next: tuning.first_pause,
        }
    }

    fn reset(&mut self) {
        self.next = self.first;
    }

    /// Sleeps for the next pause, shortened by up to a quarter, and doubles it.
    async fn sleep(&mut self) {
        let pause = self.next;
        self.next = (self.next * 2).min(self.longest);
        sleep(pause.mul_f64(1.0 - (super::random() % 1024) as f64 / 4096.0)).await;
    }
}

/// Keeps a connection with a peer while a mirror wants one.
pub(super) async fn dial(inner: Rc<Inner>, peer: Rc<Peer>) {
    let mut wanted = peer.wanted.subscribe();
    let mut pauses = Pauses::new(&inner.config.tuning);
    // Errs only when the peer is gone, and this task with it.
    while wanted.wait_for(|wanted| *wanted).await.is_ok() {
        let connected = Instant::now();
        match race(&inner, &peer).await {
            Ok(conn) => {
                if !peer.adopt(&inner, &conn) {
                    pauses.sleep().await;
                    continue;
                }
                spawn_local(Rc::clone(&conn).watch());
                conn.take_notes(&inner);
                // Errs as above.
                let _ = peer.conn.subscribe().wait_for(Option::is_none).await;
                if conn.was_used.get() && connected.elapsed() > LASTED {
                    // It was good and is lost: other addresses are tried at once.
                    pauses.reset();
                    continue;
                }
            }
            Err(faults) => {
                for (address, fault) in faults {
                    inner.report(Some(peer.node), address, fault);
                }
            }
        }
        pauses.sleep().await;
    }
}

/// Tries all ways to the peer, the last good one first; the first that answers wins.
async fn race(
    inner: &Rc<Inner>,
    peer: &Rc<Peer>,
) -> Result<Rc<Conn>, Vec<(Option<SocketAddr>, LinkFault)>> {
    let addresses = peer.config.borrow().addresses.clone();
    let mut order: Vec<_> = (0..addresses.len()).collect();
    if let Some(good) = order
        .iter()
        .position(|index| *index == peer.last_good.get())
    {
        order[..=good].rotate_right(1);
    }
    let mut ways = Vec::new();
    for index in order {
        let address = addresses[index];
        let endpoints = inner.endpoints_for(address);
        ways.extend(
            endpoints
                .into_iter()
                .map(|endpoint| (index, address, endpoint)),
        );
    }
    if ways.is_empty() {
        return Err(vec![(None, LinkFault::NoAddress(peer.name()))]);
    }
    let mut ways = ways.into_iter();
    let mut attempts = JoinSet::new();
    let mut faults = Vec::new();
    loop {
        if let Some((index, address, endpoint)) = ways.next() {
            let (inner, peer) = (Rc::clone(inner), Rc::clone(peer));
            attempts.spawn_local(async move {
                let outcome = attempt(&inner, &peer, &endpoint, address).await;
                (index, address, outcome)
            });
        }
        let more = ways.len() > 0;
        tokio::select! {
            Some(joined) = attempts.join_next() => match joined {
                Ok((index, _, Ok(conn))) => {
                    peer.last_good.set(index);
                    while let Some(late) = attempts.try_join_next() {
                        if let Ok((_, _, Ok(late))) = late {
                            late.quic.close(VarInt::from_u32(code::RACE_LOST), b"");
                        }
                    }
                    // The others end as they are dropped.
                    return Ok(conn);
                }
                Ok((_, address, Err(fault))) => faults.push((Some(address), fault)),
                // Cancelled with the runtime: a panic would have ended the process.
                Err(_) => {}
            },
            () = sleep(inner.config.tuning.stagger), if more => continue,
            else => return Err(faults),
        }
        if attempts.is_empty() && !more {
            return Err(faults);
        }
    }
}

async fn attempt(
    inner: &Rc<Inner>,
    peer: &Rc<Peer>,
    endpoint: &quinn::Endpoint,
    address: SocketAddr,
) -> Result<Rc<Conn>, LinkFault> {
    let within = peer.config.borrow().timeout;
    let names = connection::protocols(&inner.config.versions);
    let other = |error: &dyn std::fmt::Display| LinkFault::Transport(error.to_string());
    let mut config = tls::quic_client(&inner.key(), Admit::Pinned(peer.pins.clone()), names)
        .map_err(|error| other(&error))?;
    let tuning = &inner.config.tuning;
    // The peer opens no streams but its hello.
    let allow = Allowance {
        streams: 0,
        ..Allowance::for_mirrors(tuning, inner.mirrors_with(peer.node))
    };
    config.transport_config(transport(tuning, within, allow).into());
    let connecting = endpoint
        .connect_with(config, address, tls::SERVER_NAME)
        .map_err(|error| {
            if error == ConnectError::EndpointStopping {
                inner.assert_stopping(endpoint);
            }
            other(&error)
        })?;
    let quic = timeout(within, connecting)
        .await
        .map_err(|_| LinkFault::NoAnswer(within))?
        .map_err(|error| connection::fault_of(inner, within, error))?;
    let theirs = connection::hello(inner, &quic, within).await?;
    connection::check_hello(inner, &quic, peer.node, &theirs)?;
    let key = tls::peer_fingerprint(&quic)
        .ok_or_else(|| LinkFault::Transport("the peer showed no certificate".to_owned()))?;
    Ok(Conn::new(
        quic,
        Rc::clone(peer),
        theirs.version,
        key,
        within,
    ))
}

/// Keeps a session of a mirror while it is wanted and there is a connection.
pub(super) async fn keep_session(inner: Rc<Inner>, peer: Rc<Peer>, mirror: MirrorId) {
    let mut conns = peer.conn.subscribe();
    let mut pauses = Pauses::new(&inner.config.tuning);
    loop {
        let conn = match conns.wait_for(Option::is_some).await {
            Ok(conn) => conn.clone(),
            // The peer is gone, and this task with it.
            Err(_) => return,
        };
        let Some(conn) = conn else { continue };
        match open(&inner, &conn, mirror).await {
            Ok(session) => {
                let since = Instant::now();
                session.wait_gone().await;
                if since.elapsed() > LASTED {
                    pauses.reset();
                    continue;
                }
            }
            Err(fault) if conn.is_open() => {
                inner.report(Some(peer.node), Some(conn.quic.remote_address()), fault);
            }
            // The connection went, and whoever found out has said so.
            Err(_) => {}
        }
        pauses.sleep().await;
    }
}

/// Opens a session: three streams, a preamble on each, the answers.
async fn open(
    inner: &Rc<Inner>,
    conn: &Rc<Conn>,
    mirror: MirrorId,
) -> Result<Rc<Session>, LinkFault> {
    let nonce = super::random();
    let (streams, nonce) = timeout(conn.timeout, open_streams(inner, conn, mirror, nonce))
        .await
        .map_err(|_| LinkFault::NoAnswer(conn.timeout))??;
    if !conn.is_open() {
        return Err(LinkFault::Transport("the connection ended".to_owned()));
    }
    Ok(Session::start(
        inner,
        conn,
        mirror,
        nonce,
        streams,
        Default::default(),
    ))
}

async fn open_streams(
    inner: &Rc<Inner>,
    conn: &Rc<Conn>,
    mirror: MirrorId,
    nonce: u64,
) -> Result<(Streams, u64), LinkFault> {
    let lost = |error| connection::fault_of(inner, conn.timeout, error);
    let asked = Preamble {
        version: conn.version,
        class: Class::Control,
        nonce,
        mirror,
        code: 0,
        text_len: 0,
    };
    let mut halves = Vec::with_capacity(Class::ALL.len());
    for class in Class::ALL {
        let (send, recv) = conn.quic.open_bi().await.map_err(lost)?;
        let (mut send, recv) = (SendHalf::new(send, class), RecvHalf::new(recv));
        let mut preamble = [Bytes::copy_from_slice(
            &Preamble { class, ..asked }.encode(),
        )];
        send.write(&mut preamble)
            .await
            .map_err(|error| LinkFault::Transport(error.to_string()))?;
        halves.push((send, recv));
    }
    for (class, (_, recv)) in Class::ALL.into_iter().zip(&mut halves) {
        let mut bytes = [0; PREAMBLE_LEN];
        recv.stream
            .read_exact(&mut bytes)
            .await
            .map_err(unanswered)?;
        let answer = match Preamble::decode(&bytes, conn.version) {
            Ok(answer) => answer,
            Err(fault) => return Err(wrong_answer(inner, conn, fault)),
        };
        if answer.nonce != nonce || answer.mirror != mirror || answer.class != class {
            return Err(wrong_answer(inner, conn, OpeningFault::OtherSession));
        }
        if answer.code != 0 {
            let mut text = vec![0; answer.text_len];
            recv.stream
                .read_exact(&mut text)
                .await
                .map_err(unanswered)?;
            let text = shown(&text, MAX_REASON);
            return Err(LinkFault::Refused(CloseReason {
                code: answer.code,
                text,
            }));
        }
    }
    let streams = halves
        .try_into()
        .unwrap_or_else(|_| unreachable!("one for each class"));
    Ok((streams, nonce))
}

fn unanswered(error: impl std::fmt::Display) -> LinkFault {
    LinkFault::Transport(format!("no answer to the opening of a session: {error}"))
}

fn wrong_answer(inner: &Inner, conn: &Conn, fault: OpeningFault) -> LinkFault {
    conn.fail(inner, PeerFault::Opening(fault.clone()));
    LinkFault::PeerFault(PeerFault::Opening(fault))
}
