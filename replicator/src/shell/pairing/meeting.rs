//! The meeting: one side offers and waits, the other joins with the token.
//!
//! The offering side takes the first joiner that proves the secret, and that one alone: the token is
//! used up from then on, whatever comes of it. Wrong proofs are counted; too many of late, and nobody is
//! listened to for a while. Nothing of a joiner is read beyond its proof before the proof holds.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, TransportConfig, VarInt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::PROTOCOL;
use super::error::PairError;
use super::message::{Message, ReadError, Why};
use super::proof::{Side, Transcript, exported};
use super::token::{MAX_ADDRESSES, Purpose, SECRET_LEN, Token};
use crate::shell::identity::{Fingerprint, NodeKey};
use crate::shell::quic::lasting_endpoint;
use crate::shell::race::{self, Sockets};
use crate::shell::tls::{self, Admit, Pins};

/// How long `kagami pair` waits, and the token is valid.
pub const DEFAULT_VALID: Duration = Duration::from_secs(600);
/// Joiners that may be at their proof at a time.
const MAX_UNPROVEN: usize = 16;
/// A handshake, a proof, or one answer may take so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the addresses in a token are tried.
const REACH_PATIENCE: Duration = Duration::from_secs(5);
/// A joiner that is making its store may take so long.
const STORE_PATIENCE: Duration = Duration::from_secs(1800);
/// Wrong proofs within [`TRIES_WINDOW`] after which nobody is listened to.
const MAX_TRIES: usize = 5;
const TRIES_WINDOW: Duration = Duration::from_secs(30);
/// Silence that ends a meeting: the other side is gone. Each side gives signs of life.
const IDLE: Duration = Duration::from_secs(15);

/// What is offered.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What the token is for.
    pub purpose: Purpose,
    /// The mirror's or witness's name, for the other side's messages.
    pub name: String,
    /// Where to wait; port 0 takes any.
    pub listen: Vec<SocketAddr>,
    /// How the other machine reaches that, the best first; port 0 stands for the port waited on.
    /// Empty: the addresses of `listen`, where they are of one machine.
    pub advertise: Vec<SocketAddr>,
    /// How long the token is valid.
    pub valid: Duration,
}

/// What the tasks of an offering share.
struct Shared {
    secret: [u8; SECRET_LEN],
    fingerprint: Fingerprint,
    until: Instant,
    used: AtomicBool,
    wrong: Mutex<VecDeque<Instant>>,
}

impl Shared {
    /// Whether there were too many wrong proofs of late.
    fn is_besieged(&self) -> bool {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        while wrong
            .front()
            .is_some_and(|first| first.elapsed() > TRIES_WINDOW)
        {
            wrong.pop_front();
        }
        wrong.len() >= MAX_TRIES
    }

    fn note_wrong(&self) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.push_back(Instant::now());
    }
}

/// A token that is waited on. Dropping it ends its validity.
pub struct Offering {
    token: Token,
    valid: Duration,
    shared: Arc<Shared>,
    endpoints: Vec<Endpoint>,
    proven: mpsc::Receiver<Proven>,
    _listeners: JoinSet<()>,
}

impl fmt::Debug for Offering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offering")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// A joiner whose proof holds.
struct Proven {
    fingerprint: Fingerprint,
    transcript: Transcript,
    line: Line,
}

/// One conversation.
struct Line {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
}

impl Line {
    async fn read(&mut self, patience: Duration) -> Result<Message, PairError> {
        match timeout(patience, Message::read(&mut self.receive)).await {
            Ok(Ok(Message::Refused(why, text))) => Err((why, text).into()),
            Ok(message) => Ok(message?),
            Err(_) => Err(PairError::Broken(format!("no answer within {patience:?}"))),
        }
    }

    /// Says the last word, and waits a little until it has arrived.
    async fn end(mut self, last: Message) -> Result<(), ReadError> {
        last.write(&mut self.send).await?;
        self.send
            .finish()
            .map_err(|error| ReadError::Lost(error.to_string()))?;
        let taken = timeout(PATIENCE, self.send.stopped()).await;
        self.connection.close(VarInt::from_u32(0), b"");
        match taken {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(ReadError::Lost(error.to_string())),
            Err(_) => Err(ReadError::Lost("the last word was not taken".to_owned())),
        }
    }
}

fn unexpected(message: &Message) -> PairError {
    let what = match message {
        Message::Proof(_) => "a proof",
        Message::Facts(_) => "facts",
        Message::Agreed => "an agreement",
        Message::Refused(..) => "a refusal",
    };
    PairError::Broken(format!("{what} came out of turn"))
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(64 * 1024))
        .keep_alive_interval(Some(IDLE / 3))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE.as_millis() as u32).into()));
    Arc::new(transport)
}

impl Offering {
    /// Begins to wait; the token is valid from here on.
    ///
    /// # Errors
    ///
    /// [`PairError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn open(key: &NodeKey, terms: &Terms) -> Result<Self, PairError> {
        let mut secret = [0; SECRET_LEN];
        getrandom::fill(&mut secret).map_err(|error| PairError::Random(error.to_string()))?;
        let mut server = tls::quic_server(key, Admit::Anyone, vec![PROTOCOL.to_vec()])?;
        server.transport_config(transport()).migration(false);
        let endpoints = terms
            .listen
            .iter()
            .map(|&address| {
                lasting_endpoint(address, Some(server.clone()))
                    .map_err(|error| PairError::Listen { address, error })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let expires = SystemTime::now() + terms.valid;
        let token = Token {
            purpose: terms.purpose,
            addresses: addresses(&endpoints, &terms.advertise)?,
            fingerprint: key.fingerprint(),
            secret,
            name: terms.name.clone(),
            expires: expires
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        };
        let shared = Arc::new(Shared {
            secret,
            fingerprint: key.fingerprint(),
            until: Instant::now() + terms.valid,
            used: AtomicBool::new(false),
            wrong: Mutex::default(),
        });
        let (sender, proven) = mpsc::channel(1);
        let places = Arc::new(Semaphore::new(MAX_UNPROVEN));
        let mut listeners = JoinSet::new();
        for endpoint in &endpoints {
            listeners.spawn(listen(
                endpoint.clone(),
                Arc::clone(&shared),
                Arc::clone(&places),
                sender.clone(),
            ));
        }
        Ok(Self {
            token,
            valid: terms.valid,
            shared,
            endpoints,
            proven,
            _listeners: listeners,
        })
    }

    /// What the other side needs; its `Display` is the line to paste.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Waits for the joiner and hears its facts, having told `facts`. Nothing is agreed before
    /// [`Met::confirm`]. Call it once.
    ///
    /// # Errors
    ///
    /// Nobody came, or who came left or refused: the token is used up then.
    pub async fn meet(&mut self, facts: &[u8]) -> Result<Met, PairError> {
        let proven = timeout_at(self.shared.until, self.proven.recv()).await;
        let Ok(Some(Proven {
            fingerprint,
            transcript,
            mut line,
        })) = proven
        else {
            return Err(PairError::NobodyCame(self.valid));
        };
        let answer = Message::Proof(transcript.prove(Side::Offering));
        answer.write(&mut line.send).await?;
        Message::Facts(facts.to_vec()).write(&mut line.send).await?;
        match line.read(STORE_PATIENCE).await? {
            Message::Facts(facts) => Ok(Met {
                fingerprint,
                facts,
                line,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Stops waiting, when all that was said has arrived.
    pub async fn close(self) {
        for endpoint in &self.endpoints {
            endpoint.close(VarInt::from_u32(0), b"nobody is waited for any more");
            let _ = timeout(PATIENCE, endpoint.wait_idle()).await;
        }
    }
}

impl Drop for Offering {
    fn drop(&mut self) {
        for endpoint in &self.endpoints {
            endpoint.close(VarInt::from_u32(0), b"nobody is waited for any more");
        }
    }
}

/// The addresses for the token.
fn addresses(
    endpoints: &[Endpoint],
    advertise: &[SocketAddr],
) -> Result<Vec<SocketAddr>, PairError> {
    let bound: Vec<_> = endpoints
        .iter()
        .filter_map(|endpoint| endpoint.local_addr().ok())
        .collect();
    let mut out: Vec<SocketAddr> = Vec::new();
    let mut add = |address: SocketAddr| {
        if !address.ip().is_unspecified() && !out.contains(&address) && out.len() < MAX_ADDRESSES {
            out.push(address);
        }
    };
    if advertise.is_empty() {
        bound.iter().copied().for_each(&mut add);
    }
    for address in advertise {
        if address.port() != 0 {
            add(*address);
            continue;
        }
        // [::] takes IPv4 as well where the system lets it.
        let serves =
            |bound: &&SocketAddr| bound.ip() == address.ip() || bound.ip().is_unspecified();
        for bound in bound.iter().filter(serves) {
            add(SocketAddr::new(address.ip(), bound.port()));
        }
    }
    if out.is_empty() {
        Err(PairError::NoAddress)
    } else {
        Ok(out)
    }
}

async fn listen(
    endpoint: Endpoint,
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    proven: mpsc::Sender<Proven>,
) {
    let mut joiners = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while joiners.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (shared, proven) = (Arc::clone(&shared), proven.clone());
        joiners.spawn(async move {
            let from = incoming.remote_address();
            match timeout(PATIENCE, examine(incoming, &shared)).await {
                Ok(Ok(joiner)) => drop(proven.send(joiner).await),
                Ok(Err(why)) => tracing::warn!(%from, "a joiner was refused: {why}"),
                Err(_) => tracing::warn!(%from, "a joiner did not go on within {PATIENCE:?}"),
            }
            drop(place);
        });
    }
}

/// One joiner's handshake and proof.
async fn examine(incoming: Incoming, shared: &Shared) -> Result<Proven, PairError> {
    let connection = incoming
        .await
        .map_err(|error| PairError::Broken(error.to_string()))?;
    let (send, receive) = connection
        .accept_bi()
        .await
        .map_err(|error| PairError::Broken(error.to_string()))?;
    let mut line = Line {
        connection,
        send,
        receive,
    };
    let keys = (
        tls::peer_fingerprint(&line.connection),
        exported(&line.connection),
    );
    let (Some(fingerprint), Some(exported)) = keys else {
        return Err(PairError::Broken(
            "a TLS session without a certificate".to_owned(),
        ));
    };
    if shared.is_besieged() {
        line.end(Message::Refused(Why::TooMany, String::new()))
            .await?;
        return Err(PairError::TooManyTries);
    }
    let transcript = Transcript::new(&shared.secret, shared.fingerprint, fingerprint, exported);
    let holds = match line.read(PATIENCE).await? {
        Message::Proof(proof) => transcript.holds(Side::Joining, &proof),
        other => return Err(unexpected(&other)),
    };
    let why = if !holds {
        shared.note_wrong();
        Why::Wrong
    } else if Instant::now() >= shared.until {
        Why::Expired
    } else if shared.used.swap(true, Ordering::AcqRel) {
        Why::Used
    } else {
        return Ok(Proven {
            fingerprint,
            transcript,
            line,
        });
    };
    line.end(Message::Refused(why, String::new())).await?;
    Err((why, String::new()).into())
}

/// The joiner, its proof given and its facts told, waiting for yes or no.
pub struct Met {
    /// The joiner's key, as its TLS session proved.
    pub fingerprint: Fingerprint,
    /// What it told.
    pub facts: Vec<u8>,
    line: Line,
}

impl fmt::Debug for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Met")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Met {
    /// Where the joiner is.
    pub fn from(&self) -> SocketAddr {
        self.line.connection.remote_address()
    }

    /// Says yes, when the caller has kept what it learned. The joiner keeps its part when it hears it.
    ///
    /// # Errors
    ///
    /// The joiner may not have heard it; pairing again with a new token is harmless.
    pub async fn confirm(self) -> Result<(), PairError> {
        Ok(self.line.end(Message::Agreed).await?)
    }

    /// Says no.
    pub async fn refuse(self, why: &str) {
        // Whether it is heard makes no difference: nothing was agreed.
        let _ = self
            .line
            .end(Message::Refused(Why::Declined, why.to_owned()))
            .await;
    }
}

/// The joining side, after both proofs, with what the offering side told.
pub struct Joining {
    /// The offering side's facts.
    pub facts: Vec<u8>,
    fingerprint: Fingerprint,
    line: Line,
    sockets: RefCell<Sockets>,
}

impl fmt::Debug for Joining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joining")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Joining {
    /// Reaches who made the token, proves its secret and hears the facts. The token is used up.
    ///
    /// # Errors
    ///
    /// [`PairError`].
    pub async fn connect(key: &NodeKey, token: &Token) -> Result<Self, PairError> {
        let pins = Pins::new([token.fingerprint]);
        let mut config = tls::quic_client(key, Admit::Pinned(pins), vec![PROTOCOL.to_vec()])?;
        config.transport_config(transport());
        let sockets = RefCell::default();
        let connected = race::connect(
            &sockets,
            &config,
            &token.addresses,
            Instant::now() + REACH_PATIENCE,
        )
        .await;
        let connection = connected.map_err(|failures| PairError::NotReached {
            place: token.name.clone(),
            failures,
            hint: hint(token),
        })?;
        let exported =
            exported(&connection).ok_or_else(|| PairError::Broken("no TLS exporter".to_owned()))?;
        let (send, receive) = connection
            .open_bi()
            .await
            .map_err(|error| PairError::Broken(error.to_string()))?;
        let mut line = Line {
            connection,
            send,
            receive,
        };
        let transcript = Transcript::new(
            &token.secret,
            token.fingerprint,
            key.fingerprint(),
            exported,
        );
        Message::Proof(transcript.prove(Side::Joining))
            .write(&mut line.send)
            .await?;
        match line.read(2 * PATIENCE).await? {
            Message::Proof(proof) if transcript.holds(Side::Offering, &proof) => {}
            Message::Proof(_) => return Err(PairError::Impostor),
            other => return Err(unexpected(&other)),
        }
        match line.read(PATIENCE).await? {
            Message::Facts(facts) => Ok(Self {
                facts,
                fingerprint: token.fingerprint,
                line,
                sockets,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// The offering side's key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Tells this side's facts and waits for the yes. Then both know each other.
    ///
    /// # Errors
    ///
    /// The other side refused, or was lost: it may have kept this node all the same, which is
    /// harmless; a new token settles it.
    pub async fn accept(mut self, facts: &[u8]) -> Result<(), PairError> {
        Message::Facts(facts.to_vec())
            .write(&mut self.line.send)
            .await?;
        match self.line.read(6 * PATIENCE).await? {
            Message::Agreed => {}
            other => return Err(unexpected(&other)),
        }
        self.line.connection.close(VarInt::from_u32(0), b"");
        let sockets = self.sockets.into_inner();
        let _ = timeout(PATIENCE, sockets.wait_idle()).await;
        Ok(())
    }

    /// Ends it without a pair (no store could be made, the operator said no).
    pub async fn refuse(self, why: &str) {
        let _ = self
            .line
            .end(Message::Refused(Why::Declined, why.to_owned()))
            .await;
    }
}

/// What to look at when nobody answers.
fn hint(token: &Token) -> String {
    let command = match token.purpose {
        Purpose::Mirror => "kagami pair",
        Purpose::Witness => "kagami witness enrol",
    };
    match token.time_left() {
        None => {
            format!("by this machine's clock the token has expired: run `{command}` there again")
        }
        Some(_) => format!(
            "is `{command}` still waiting there (a token works once), and does the network let UDP through to that port?"
        ),
    }
}
