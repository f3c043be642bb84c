//! The witness's listener: enrolled keys alone, one request for each stream, bounded in everything.
//!
//! Whoever holds no enrolled key is told so by name and disconnected before a byte of a request is
//! read. Requests are carried out one after the other on a blocking thread; the order in which two
//! askers' swaps get there is the race's result.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kagami_strangers::Strangers;
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, TransportConfig, VarInt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::clients::Clients;
use super::protocols;
use super::store::{Store, StoreError};
use super::wire::{Answer, MAX_REQUEST, Op, Outcome, Request};
use crate::shell::identity::{Fingerprint, NodeKey};
use crate::shell::quic::lasting_endpoint;
use crate::shell::tls::{self, Admit, TlsError};

/// Connections that a witness holds at most.
const MAX_CONNECTIONS: usize = 512;
/// Of these, how many one key has: a pair has half of them at most, and locks nobody out. A node has one for each of its
/// threads, and few for its commands.
const MAX_OF_KEY: usize = MAX_CONNECTIONS / 4;
/// Requests of one connection that are carried out at a time.
const MAX_REQUESTS: u32 = 16;
/// A handshake or a request that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection without a word for as long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// Closing codes.
pub(super) mod code {
    /// The witness stops.
    pub(crate) const STOPPING: u32 = 1;
    /// The key isn't enrolled.
    pub(crate) const STRANGER: u32 = 2;
    /// A request that breaks the protocol.
    pub(crate) const PROTOCOL: u32 = 3;
    /// Who is enrolled can't be looked up now.
    pub(crate) const STORAGE: u32 = 4;
    /// A newer connection of the same key took its place.
    pub(crate) const REPLACED: u32 = 5;
}

/// What a witness is told.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen; port 0 takes any.
    pub listen: Vec<SocketAddr>,
    /// The folder of registers and enrolled keys.
    pub state: PathBuf,
    /// Keys that may use it, beside those enrolled in the folder.
    pub clients: Vec<Fingerprint>,
}

/// Why a witness can't run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its folder can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its key can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address can't be listened on.
    #[error(
        "can't listen on {address}: {error}; is another program there, or the address not this machine's?"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        error: std::io::Error,
    },
    /// No address is configured.
    #[error("a witness needs an address to listen on: give `listen`")]
    NoAddress,
}

/// A connection among those of its key, until it is dropped.
struct OfKey {
    shared: Arc<Shared>,
    key: Fingerprint,
    id: usize,
}

impl OfKey {
    /// Takes a connection in. Where its key has [`MAX_OF_KEY`] the oldest of them goes, which is likelier than the newest
    /// to be one that nobody is at the other end of; it is told.
    fn enter(
        shared: &Arc<Shared>,
        key: Fingerprint,
        connection: &Connection,
    ) -> (Self, Option<Connection>) {
        let mut all = lock(&shared.of_keys);
        let own = all.entry(key).or_default();
        let oldest = (own.len() >= MAX_OF_KEY).then(|| own.pop_front()).flatten();
        own.push_back(connection.clone());
        drop(all);
        let entered = Self {
            shared: Arc::clone(shared),
            key,
            id: connection.stable_id(),
        };
        (entered, oldest)
    }
}

impl Drop for OfKey {
    fn drop(&mut self) {
        let mut all = lock(&self.shared.of_keys);
        if let Some(own) = all.get_mut(&self.key) {
            own.retain(|connection| connection.stable_id() != self.id);
            if own.is_empty() {
                all.remove(&self.key);
            }
        }
    }
}

/// A witness that listens. Dropping it closes its connections.
#[derive(Debug)]
pub struct Server {
    endpoints: Vec<Endpoint>,
    shared: Arc<Shared>,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    clients: Clients,
    /// For connections.
    places: Arc<Semaphore>,
    strangers: Strangers,
    /// The connections of each key, the oldest first.
    of_keys: Mutex<HashMap<Fingerprint, VecDeque<Connection>>>,
}

impl Server {
    /// Opens the folder and listens; nothing is answered before [`Server::serve`].
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(key: &NodeKey, config: ServerConfig) -> Result<Self, ServerError> {
        if config.listen.is_empty() {
            return Err(ServerError::NoAddress);
        }
        let store = Store::open(&config.state, config.clients)?;
        // Anyone may finish a handshake; who holds no enrolled key is sent away with the reason.
        let mut server = tls::quic_server(key, Admit::Anyone, protocols())?;
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(MAX_REQUESTS))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(MAX_REQUEST as u32))
            .receive_window(VarInt::from_u32(MAX_REQUEST as u32 * MAX_REQUESTS))
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(Some(VarInt::from_u32(IDLE.as_millis() as u32).into()));
        server
            .transport_config(Arc::new(transport))
            .migration(false);
        let endpoints = config
            .listen
            .iter()
            .map(|&address| {
                lasting_endpoint(address, Some(server.clone()))
                    .map_err(|error| ServerError::Listen { address, error })
            })
            .collect::<Result<_, _>>()?;
        let shared = Shared {
            clients: store.clients(),
            store: Mutex::new(store),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            strangers: Strangers::default(),
            of_keys: Mutex::default(),
        };
        Ok(Self {
            endpoints,
            shared: Arc::new(shared),
        })
    }

    /// Where it listens, with the ports that the system chose.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.endpoints
            .iter()
            .filter_map(|endpoint| endpoint.local_addr().ok())
            .collect()
    }

    /// Answers until `stop` is done, then closes. A change that is under way is finished.
    ///
    /// # Panics
    ///
    /// Nobody can be listened to any more.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let mut listeners = JoinSet::new();
        for endpoint in &self.endpoints {
            listeners.spawn(listen(endpoint.clone(), Arc::clone(&self.shared)));
        }
        tokio::select! {
            () = stop => {}
            // One that nobody can ask would look as if it were alive.
            Some(ended) = listeners.join_next() => {
                panic!("a socket of the witness has lost its driver: {ended:?}");
            }
        }
        for endpoint in &self.endpoints {
            endpoint.close(VarInt::from_u32(code::STOPPING), b"the witness stops");
        }
        listeners.shutdown().await;
        for endpoint in &self.endpoints {
            endpoint.wait_idle().await;
        }
    }
}

async fn listen(endpoint: Endpoint, shared: Arc<Shared>) {
    let places = &shared.places;
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while connections.try_join_next().is_some() {}
        // When it gets tight, an address is proven first: one that is made up takes no place.
        if places.available_permits() < MAX_CONNECTIONS / 2 && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            let from = incoming.remote_address();
            if shared.strangers.may_tell(from.ip()) {
                tracing::warn!(%from, "connection refused: {MAX_CONNECTIONS} are open");
            }
            incoming.refuse();
            continue;
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            converse(incoming, shared).await;
            drop(place);
        });
    }
}

/// One connection, from its handshake to its end.
async fn converse(incoming: Incoming, shared: Arc<Shared>) {
    let from = incoming.remote_address();
    let connection = match tokio::time::timeout(PATIENCE, async { incoming.await }).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%from, %error, "no handshake"),
        Err(_) => return tracing::debug!(%from, "no handshake in time"),
    };
    let Some(asker) = tls::peer_fingerprint(&connection) else {
        return connection.close(VarInt::from_u32(code::STRANGER), b"no certificate");
    };
    // Not by the store, nor on this thread: a disk that stands still keeps a request, and nobody who only knocks.
    let looks = Arc::clone(&shared);
    let known = tokio::task::spawn_blocking(move || {
        looks.clients.is_enrolled(&asker) || looks.clients.is_forgotten(&asker)
    });
    let Ok(Ok(is_known)) = tokio::time::timeout(PATIENCE, known).await else {
        if shared.strangers.may_tell(from.ip()) {
            tracing::warn!(%from, key = %asker, "nobody is let in: the folder of the enrolled keys does not answer");
        }
        let text = b"the witness's disk does not answer";
        return connection.close(VarInt::from_u32(code::STORAGE), text);
    };
    // Who was taken out is answered, and by nothing else than that.
    if !is_known {
        if shared.strangers.may_tell(from.ip()) {
            tracing::warn!(%from, key = %asker, "stranger refused: its key is not enrolled");
        }
        let text = format!(
            "key {asker} is not enrolled at this witness: `kagami witness enrol` there makes a token for it"
        );
        return connection.close(VarInt::from_u32(code::STRANGER), text.as_bytes());
    }
    tracing::debug!(%from, key = %asker, "connected");
    let (_entered, oldest) = OfKey::enter(&shared, asker, &connection);
    if let Some(oldest) = oldest {
        // Known or not: it can do so as often as it likes.
        if shared.strangers.may_tell(from.ip()) {
            tracing::warn!(%from, key = %asker, "its oldest connection is closed: one key has {MAX_OF_KEY}");
        }
        let text = format!("a newer connection of this key took its place: it has {MAX_OF_KEY}");
        oldest.close(VarInt::from_u32(code::REPLACED), text.as_bytes());
    }
    let mut requests = JoinSet::new();
    // The transport bounds the streams, and so the tasks.
    while let Ok((send, receive)) = connection.accept_bi().await {
        while requests.try_join_next().is_some() {}
        requests.spawn(answer(
            connection.clone(),
            asker,
            Arc::clone(&shared),
            send,
            receive,
        ));
    }
    // The asker may be gone; a change of its that has begun ends all the same.
    while requests.join_next().await.is_some() {}
}

async fn answer(
    connection: Connection,
    asker: Fingerprint,
    shared: Arc<Shared>,
    mut send: SendStream,
    mut receive: RecvStream,
) {
    let Ok(Ok(bytes)) = tokio::time::timeout(PATIENCE, receive.read_to_end(MAX_REQUEST)).await
    else {
        return connection.close(
            VarInt::from_u32(code::PROTOCOL),
            b"a request is too long, or was not finished in time",
        );
    };
    let request = match Request::decode(&bytes) {
        Ok(request) => request,
        Err(fault) => {
            tracing::warn!(key = %asker, %fault, "a request that can't be read");
            let text = format!("the request can't be read: {fault}");
            return connection.close(VarInt::from_u32(code::PROTOCOL), text.as_bytes());
        }
    };
    let work = tokio::task::spawn_blocking(move || {
        let outcome = lock(&shared.store).answer(&asker, &request);
        (request, outcome)
    });
    // Only a panic ends the work without a result: then the asker gets no answer, and assumes none.
    let Ok((request, outcome)) = work.await else {
        return;
    };
    log(&asker, &request, &outcome);
    let answer = Answer {
        register: request.register,
        nonce: request.nonce,
        outcome,
    }
    .encode();
    let sent = async {
        send.write_all(&answer).await?;
        send.finish().map_err(|_| quinn::WriteError::ClosedStream)?;
        // Until it is acknowledged: closing the connection at once would drop it.
        send.stopped().await.ok();
        Ok::<_, quinn::WriteError>(())
    };
    if !matches!(tokio::time::timeout(PATIENCE, sent).await, Ok(Ok(()))) {
        tracing::debug!(key = %asker, "an answer was not taken");
    }
}

fn log(asker: &Fingerprint, request: &Request, outcome: &Outcome) {
    let register = request.register;
    match (&request.op, outcome) {
        (Op::Swap { instance, seq, .. }, Outcome::Swapped) => {
            tracing::info!(%register, %asker, instance, seq, nonce = request.nonce, "register changed");
        }
        (Op::Swap { .. }, Outcome::State(_)) => {
            tracing::info!(%register, %asker, nonce = request.nonce, "change refused: another was first");
        }
        (_, Outcome::Refused(reason, text)) => {
            tracing::warn!(%register, %asker, ?reason, "refused: {text}")
        }
        // The store told of what it did.
        (Op::Read | Op::Bind { .. } | Op::Succeed { .. }, _) => {}
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic leaves nothing half done here: of the store the files are the state, and the connections are whole
    // between any two statements.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::mpsc;

    use super::super::{ClientConfig, RegisterId, Remote};
    use super::*;

    /// As under a swap that a slow disk keeps. The thread also has to hear signals, and give a sign of life.
    #[tokio::test]
    async fn who_knocks_while_the_store_is_busy_stops_nobody() {
        let folder = tempfile::tempdir().expect("tempdir");
        let key = || NodeKey::generate().expect("key");
        let (witness, stranger) = (key(), key());
        let config = ServerConfig {
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            state: folder.path().to_owned(),
            clients: Vec::new(),
        };
        let server = Server::start(&witness, config).expect("witness");
        let addresses = server.addresses();
        let shared = Arc::clone(&server.shared);
        let serving = tokio::spawn(server.serve(std::future::pending()));
        tokio::task::yield_now().await;
        let (locked, is_locked) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let holder = std::thread::spawn(move || {
            let _store = lock(&shared.store);
            locked.send(()).expect("the test waits");
            // Where the thread of the test stands still, that is for a time only.
            let _ = released.recv_timeout(Duration::from_secs(20));
        });
        is_locked.recv().expect("locked");
        let config = ClientConfig {
            name: "w".to_owned(),
            addresses,
            fingerprints: vec![witness.fingerprint()],
            timeout: Duration::from_secs(10),
        };
        let remote = Remote::new(&stranger, config).expect("remote");
        let request = Request {
            register: RegisterId(7),
            nonce: 1,
            op: Op::Read,
        };
        let answered = remote.exchange(&request).await.expect_err("a stranger");
        assert!(answered.to_string().contains("not enrolled"), "{answered}");
        // It was nobody's end that let it go on.
        release.send(()).expect("it is held still");
        holder.join().expect("released");
        serving.abort();
    }
}
