//! Asking a witness: one connection for each thread, and a register's question over it.
//!
//! A witness may have several addresses; they are tried side by side, each a little after the one
//! before, and the first that answers with a pinned key is used until it fails. A question that got no
//! answer on a connection of long standing is put again on a new one: that is safe, since the same swap
//! twice is one swap (the second time it is refused, or found to have taken place). After the time-out
//! the outcome is unknown, and said to be.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, TransportConfig, VarInt};
use tokio::time::{Instant, timeout_at};

use super::wire::{Answer, MAX_ANSWER, Op, Outcome, Reason, Request};
use super::{PROTOCOL_1, RegisterId, protocols};
use crate::shell::arbiter::raw::{Answering, Content, NoAnswer, RawRegister, Swap};
use crate::shell::fields::FieldFault;
use crate::shell::identity::{Fingerprint, NodeKey};
use crate::shell::race::{self, NotReached, Sockets, describe};
use crate::shell::tls::{self, Admit, Pins, TlsError};

/// A connection that nobody used for as long is closed; the next question makes a new one.
const IDLE: Duration = Duration::from_secs(20);
/// First guess of the round trip: how soon a lost first packet is repeated.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(50);

/// Where a witness is, and who it is.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Its name, for people.
    pub name: String,
    /// Where it listens, the best first.
    pub addresses: Vec<SocketAddr>,
    /// Its key, or two while it is being replaced.
    pub fingerprints: Vec<Fingerprint>,
    /// A question without an answer for as long is unanswered.
    pub timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No address is configured.
    #[error("it has no address: give `addresses` in its [arbiter] section")]
    NoAddress,
    /// Each address failed.
    #[error(transparent)]
    NotReached(#[from] NotReached),
    /// The time is over.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The connection ended before the answer was there.
    #[error("the connection ended: {0}")]
    Lost(String),
    /// What came back is no answer to the question.
    #[error("it answered with something else: {0}")]
    Garbage(FieldFault),
    /// It is of the version before, and can't do what was asked.
    #[error("its kagami is too old for that: upgrade it first")]
    TooOld,
    /// It answered another question.
    #[error("it answered another question than the one asked")]
    OtherQuestion,
}

/// A witness as one thread sees it; the mirrors of the thread share it.
#[derive(Debug)]
pub struct Remote {
    config: ClientConfig,
    quic: quinn::ClientConfig,
    sockets: RefCell<Sockets>,
    connection: RefCell<Option<Connection>>,
}

impl Remote {
    /// Says where a witness is; nothing is dialled before the first question.
    ///
    /// # Errors
    ///
    /// The node's key can't be used.
    pub fn new(key: &NodeKey, config: ClientConfig) -> Result<Rc<Self>, TlsError> {
        let pins = Pins::new(config.fingerprints.iter().copied());
        let mut quic = tls::quic_client(key, Admit::Pinned(pins), protocols())?;
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .initial_rtt(FIRST_ROUND_TRIP)
            .max_idle_timeout(Some(VarInt::from_u32(IDLE.as_millis() as u32).into()));
        quic.transport_config(Arc::new(transport));
        Ok(Rc::new(Self {
            config,
            quic,
            sockets: RefCell::default(),
            connection: RefCell::default(),
        }))
    }

    /// Puts a question and waits for its answer, by any address.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; the outcome of a swap is then unknown.
    pub async fn exchange(&self, request: &Request) -> Result<Outcome, ClientError> {
        let whole = self.config.timeout;
        let start = Instant::now();
        let bytes = request.encode();
        let standing = self.connection.borrow().clone();
        if let Some(connection) = standing {
            // Half of the time is left for a new connection, should the witness have restarted.
            match exchange_on(&connection, request, &bytes, start + whole / 2, whole / 2).await {
                Err(ClientError::Lost(_) | ClientError::TimedOut(_)) => {
                    self.connection.borrow_mut().take();
                }
                answered => return answered,
            }
        }
        let deadline = start + whole;
        let connection = self.connect(deadline).await?;
        let outcome = exchange_on(&connection, request, &bytes, deadline, whole).await;
        if outcome.is_ok() {
            *self.connection.borrow_mut() = Some(connection);
        }
        outcome
    }

    async fn connect(&self, deadline: Instant) -> Result<Connection, ClientError> {
        if self.config.addresses.is_empty() {
            return Err(ClientError::NoAddress);
        }
        Ok(race::connect(&self.sockets, &self.quic, &self.config.addresses, deadline).await?)
    }
}

async fn exchange_on(
    connection: &Connection,
    request: &Request,
    bytes: &[u8],
    deadline: Instant,
    allowed: Duration,
) -> Result<Outcome, ClientError> {
    let is_old = tls::agreed_protocol(connection).is_none_or(|name| name == PROTOCOL_1);
    if is_old && matches!(request.op, Op::Bind { .. } | Op::Succeed { .. }) {
        return Err(ClientError::TooOld);
    }
    let exchange = async {
        let (mut send, mut receive) = connection
            .open_bi()
            .await
            .map_err(|error| describe(&error))?;
        send.write_all(bytes)
            .await
            .map_err(|error| error.to_string())?;
        send.finish().map_err(|error| error.to_string())?;
        receive
            .read_to_end(MAX_ANSWER)
            .await
            .map_err(|error| match error {
                quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error)) => {
                    describe(&error)
                }
                other => other.to_string(),
            })
    };
    let answer = timeout_at(deadline, exchange)
        .await
        .map_err(|_| ClientError::TimedOut(allowed))?
        .map_err(ClientError::Lost)?;
    let answer = Answer::decode(&answer).map_err(ClientError::Garbage)?;
    let swapped_by_reading = request.op == Op::Read && answer.outcome == Outcome::Swapped;
    if answer.register != request.register || answer.nonce != request.nonce || swapped_by_reading {
        return Err(ClientError::OtherQuestion);
    }
    Ok(answer.outcome)
}

/// One register at a witness.
#[derive(Debug)]
pub struct Client {
    remote: Rc<Remote>,
    register: RegisterId,
    members: Vec<Fingerprint>,
    /// The register is bound to `members`, or can't be: nothing is to be asked any more.
    is_bound: Cell<bool>,
    /// Questions put that change nothing: each has a number of its own, which the answer repeats.
    asked: Cell<u64>,
}

impl Client {
    /// The register of the mirror or group `register`. `members` are the keys of this node and of its
    /// peer: a register that is created is bound to them.
    pub fn new(remote: Rc<Remote>, register: RegisterId, members: Vec<Fingerprint>) -> Rc<Self> {
        Rc::new(Self {
            remote,
            register,
            members,
            is_bound: Cell::new(false),
            asked: Cell::new(0),
        })
    }

    async fn put(&self, nonce: u64, op: Op) -> Result<Outcome, NoAnswer> {
        let request = Request {
            register: self.register,
            nonce,
            op,
        };
        match self.remote.exchange(&request).await {
            Ok(Outcome::Refused(Reason::NotAMember, text)) => Err(NoAnswer::NotOurs(text)),
            Ok(Outcome::Refused(_, text)) => Err(self.nothing(text)),
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(self.nothing(error)),
        }
    }

    fn nothing(&self, why: impl Display) -> NoAnswer {
        NoAnswer::Unreachable(format!("witness {}: {why}", self.remote.config.name))
    }

    async fn bind_to_members(&self) {
        if self.is_bound.get() {
            return;
        }
        let request = Request {
            register: self.register,
            nonce: 0,
            op: Op::Bind {
                members: self.members.clone(),
            },
        };
        match self.remote.exchange(&request).await {
            Ok(Outcome::Swapped) | Err(ClientError::TooOld) => self.is_bound.set(true),
            // Asked again with the next look at the register.
            Ok(Outcome::Refused(_, why)) => {
                tracing::warn!(witness = self.remote.config.name, register = %self.register,
                    "the register can't be used by both nodes yet: {why}");
            }
            Ok(Outcome::State(_)) | Err(_) => {}
        }
    }
}

impl RawRegister for Client {
    fn read(&self) -> Answering<'_, Option<Content>> {
        let nonce = self.asked.get().wrapping_add(1);
        self.asked.set(nonce);
        Box::pin(async move {
            match self.put(nonce, Op::Read).await? {
                Outcome::State(content) => Ok(content),
                Outcome::Swapped | Outcome::Refused(..) => {
                    Err(self.nothing(ClientError::OtherQuestion))
                }
            }
        })
    }

    fn swap(&self, expect: Option<(u64, u64)>, new: Content) -> Answering<'_, Swap> {
        Box::pin(async move {
            let op = Op::Swap {
                expect,
                instance: new.instance,
                seq: new.seq,
                bytes: new.bytes,
                members: self.members.clone(),
            };
            match self.put(new.nonce, op).await? {
                Outcome::Swapped => Ok(Swap::Done),
                Outcome::State(content) => Ok(Swap::Other(content)),
                Outcome::Refused(..) => Err(self.nothing(ClientError::OtherQuestion)),
            }
        })
    }

    fn bind(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(self.bind_to_members())
    }

    fn describe(&self) -> String {
        let config = &self.remote.config;
        let addresses = config
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        format!("witness {} ({})", config.name, addresses.join(", "))
    }
}
