//! The channel between the two managers: TCP on the addresses of the LAN heartbeats, TLS with both
//! nodes' pinned keys (whoever makes the settings sees to that).
//!
//! A connection carries one request and its answer, JSON, a line each, as the control socket does. It
//! carries what people ask for, files of groups, and the questions of leases ([`crate::right::lease`]);
//! nothing that the core decides by.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::{Cluster, HeartbeatKind};
use crate::control::line::{self, Received};
use crate::control::{Answer, Ask, Unreached};
use crate::core::Node;
use crate::lock;
use crate::resource::files::Image;
use crate::right::lease::{Question, Word};

/// The longest document, in bytes.
pub(crate) const LINE_MAX: usize = 64 << 20;
/// A connection, its handshake included, is there within.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// An answer is there within.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Connections at a time; more wait.
const CONNECTIONS_MAX: usize = 32;
/// Keys are looked for anew this often at most: often in the time of a lease, which may rest on the other node's word.
const ANEW: Duration = Duration::from_millis(500);
/// An address that is not there yet is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// What one manager asks the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerAsk {
    /// What a command would ask on the control socket.
    Control(Ask),
    /// Install this file of a group's resource.
    File {
        /// The group.
        group: String,
        /// The resource.
        resource: String,
        /// The file.
        image: Image,
    },
    /// Promise not to challenge for the right to run a group that has no mirror.
    Lease(LeaseAsk),
}

/// A question for a promise.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LeaseAsk {
    /// The group.
    pub group: String,
    /// The asker's, and this question's alone; comes back in the answer.
    pub nonce: u64,
    /// What is asked.
    pub question: Question,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerAnswer {
    /// As the control socket answers.
    Control(Answer),
    /// Installed; or why not.
    File(Result<(), String>),
    /// What became of the question with this nonce.
    Lease(u64, Word),
}

/// The addresses of the channel: this node's and the other's, pair by pair, in the order of
/// priority.
pub fn addresses(cluster: &Cluster, me: Node) -> Vec<(SocketAddr, SocketAddr)> {
    let pair = |kind: &HeartbeatKind| match kind {
        HeartbeatKind::Lan(lan) => {
            let own = lan.addresses.get(&cluster.nodes[me])?;
            let other = lan.addresses.get(&cluster.nodes[1 - me])?;
            Some((*own, *other))
        }
        _ => None,
    };
    cluster
        .heartbeats
        .iter()
        .filter_map(|h| pair(&h.kind))
        .collect()
}

/// The settings of connections: this node's key, and the other one's, pinned.
pub type Settings = (rustls::ClientConfig, rustls::ServerConfig);

/// What connections are made and taken with. Clones are the same.
///
/// Keys are replaced while a manager runs, the other node's as well as this one's: where a handshake fails, and where the
/// nodes were not paired, they are looked for anew.
#[derive(Clone)]
pub struct Keys(Arc<Inside>);

struct Inside {
    look: Box<dyn Fn() -> Option<Settings> + Send + Sync>,
    known: Mutex<Known>,
}

struct Known {
    settings: Option<(TlsConnector, TlsAcceptor)>,
    looked: Instant,
}

fn both_ends(settings: Settings) -> (TlsConnector, TlsAcceptor) {
    let (client, server) = settings;
    (Arc::new(client).into(), Arc::new(server).into())
}

impl Keys {
    /// These; `look` says what they are later, `None` where that can't be said. It may block.
    pub fn new(
        now: Option<Settings>,
        look: impl Fn() -> Option<Settings> + Send + Sync + 'static,
    ) -> Self {
        let known = Known {
            settings: now.map(both_ends),
            looked: Instant::now(),
        };
        Self(Arc::new(Inside {
            look: Box::new(look),
            known: Mutex::new(known),
        }))
    }

    fn known(&self) -> Option<(TlsConnector, TlsAcceptor)> {
        lock(&self.0.known).settings.clone()
    }

    /// They may be others by now: whoever asks next finds those.
    async fn look_anew(&self) {
        {
            let mut known = lock(&self.0.known);
            if known.looked.elapsed() < ANEW {
                return;
            }
            known.looked = Instant::now();
        }
        let keys = self.clone();
        // What waits for it may be given up: it is put in place all the same.
        let looked = tokio::task::spawn_blocking(move || {
            let Some(found) = (keys.0.look)() else {
                return;
            };
            lock(&keys.0.known).settings = Some(both_ends(found));
        });
        if let Err(error) = looked.await {
            tracing::warn!("the keys of the channel between the managers: {error}");
        }
    }

    async fn connector(&self) -> Option<TlsConnector> {
        if self.known().is_none() {
            self.look_anew().await;
        }
        Some(self.known()?.0)
    }
}

/// The way to the other manager.
#[derive(Clone)]
pub struct Channel {
    node: String,
    others: Vec<SocketAddr>,
    keys: Keys,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Channel({})", self.node)
    }
}

impl Channel {
    /// To the other node of this cluster.
    pub fn new(cluster: &Cluster, me: Node, keys: Keys) -> Self {
        let others = addresses(cluster, me);
        Self {
            node: cluster.nodes[1 - me].clone(),
            others: others.into_iter().map(|(_, other)| other).collect(),
            keys,
        }
    }

    /// Asks the other manager, by the first address that answers.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ask(&self, ask: &PeerAsk) -> Result<PeerAnswer, Unreached> {
        let node = &self.node;
        let unreached = |why, asked| Unreached { why, asked };
        let Some(connector) = self.keys.connector().await else {
            let why = format!("node {node} is not paired with this one");
            return Err(unreached(why, false));
        };
        let mut why = "no heartbeat has an address of it".to_owned();
        for address in &self.others {
            let connected = connect(&self.keys, &connector, *address);
            match timeout(CONNECT_WITHIN, connected).await {
                Ok(Ok(stream)) => {
                    // What was sent may have been carried out: it is not sent again elsewhere.
                    let asked = exchange(&self.keys, stream, ask);
                    let asked = timeout(ANSWER_WITHIN, asked).await;
                    let said = asked.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                    return said.map_err(|why| {
                        unreached(format!("node {node} does not answer: {why}"), true)
                    });
                }
                Ok(Err(error)) => why = format!("{address}: {error}"),
                Err(_) => why = format!("{address}: no connection in time"),
            }
        }
        let why = format!("node {node} does not answer: {why}");
        Err(unreached(why, false))
    }

    /// Asks the other manager by all addresses at once; the first answer counts. Only for what may be
    /// asked twice.
    ///
    /// # Errors
    /// It does not answer within that time; in words.
    pub async fn ask_everywhere(
        &self,
        ask: &PeerAsk,
        within: Duration,
    ) -> Result<PeerAnswer, String> {
        let node = &self.node;
        let Some(connector) = self.keys.connector().await else {
            return Err(format!("node {node} is not paired with this one"));
        };
        let mut ways = JoinSet::new();
        for address in self.others.iter().copied() {
            let (keys, connector, ask) = (self.keys.clone(), connector.clone(), ask.clone());
            ways.spawn(async move {
                let stream = connect(&keys, &connector, address).await;
                let stream = stream.map_err(|error| format!("{address}: {error}"))?;
                exchange(&keys, stream, &ask).await
            });
        }
        let first = async {
            let mut why = "no heartbeat has an address of it".to_owned();
            while let Some(answered) = ways.join_next().await {
                match answered {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(failed)) => why = failed,
                    Err(error) => why = error.to_string(),
                }
            }
            Err(why)
        };
        let answered = timeout(within, first).await;
        answered
            .unwrap_or_else(|_| Err("no answer in time".to_owned()))
            .map_err(|why| format!("node {node} does not answer: {why}"))
    }
}

type Client = tokio_rustls::client::TlsStream<TcpStream>;

async fn connect(keys: &Keys, connector: &TlsConnector, address: SocketAddr) -> io::Result<Client> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // Certificates count by their keys: the name is compared with nothing.
    let name = ServerName::try_from("kagami").map_err(io::Error::other)?;
    let connected = connector.connect(name, stream).await;
    if connected.is_err() {
        keys.look_anew().await;
    }
    connected
}

async fn exchange(keys: &Keys, mut stream: Client, ask: &PeerAsk) -> Result<PeerAnswer, String> {
    let exchanged = async {
        line::write(&mut stream, ask).await?;
        let mut received = Received::default();
        received.next(&mut stream, LINE_MAX).await
    };
    match exchanged.await {
        Ok(answer) => {
            let _ = stream.shutdown().await;
            answer.ok_or_else(|| "it hung up".to_owned())
        }
        Err(error) => {
            // Whoever does not know this node's key says so after the handshake.
            keys.look_anew().await;
            Err(error.to_string())
        }
    }
}

/// Answers the other manager on these addresses for as long as the future is polled.
pub async fn serve<A, F>(own: Vec<SocketAddr>, keys: Keys, answer: A)
where
    A: Fn(PeerAsk) -> F + Clone + Send + 'static,
    F: Future<Output = PeerAnswer> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut listeners = JoinSet::new();
    for address in own {
        let (keys, places) = (keys.clone(), Arc::clone(&places));
        listeners.spawn(listen(address, keys, places, answer.clone()));
    }
    while listeners.join_next().await.is_some() {}
}

async fn listen<A, F>(address: SocketAddr, keys: Keys, places: Arc<Semaphore>, answer: A)
where
    A: Fn(PeerAsk) -> F + Clone + Send + 'static,
    F: Future<Output = PeerAnswer> + Send + 'static,
{
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::warn!("the other manager can't ask on {address} yet: {error}");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    };
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, from)) = listener.accept().await else {
            sleep(AGAIN / 10).await;
            continue;
        };
        let (keys, answer) = (keys.clone(), answer.clone());
        clients.spawn(async move {
            if let Err(error) = client(stream, &keys, answer).await {
                tracing::debug!("{from}: {error}");
            }
            drop(place);
        });
    }
}

async fn client<A, F>(stream: TcpStream, keys: &Keys, answer: A) -> Result<(), String>
where
    A: Fn(PeerAsk) -> F,
    F: Future<Output = PeerAnswer>,
{
    let Some((_, acceptor)) = keys.known() else {
        keys.look_anew().await;
        return Err("the nodes are not paired".to_owned());
    };
    let accepted = timeout(CONNECT_WITHIN, acceptor.accept(stream)).await;
    let accepted = accepted.map_err(|_| "no handshake in time".to_owned())?;
    let mut stream = match accepted {
        Ok(stream) => stream,
        Err(error) => {
            keys.look_anew().await;
            return Err(error.to_string());
        }
    };
    let mut received = Received::default();
    let asked = timeout(ANSWER_WITHIN, received.next(&mut stream, LINE_MAX)).await;
    let asked = asked.map_err(|_| "no request in time".to_owned())?;
    let Some(asked) = asked.map_err(|error| error.to_string())? else {
        return Ok(());
    };
    let is_order = matches!(asked, PeerAsk::Control(Ask::Order { .. }));
    let answering = answer(asked);
    let answered = async {
        tokio::select! {
            answer = answering => Some(answer),
            // Who gave the order does not wait any more. What changes files is not left half-way.
            _ = stream.read_u8(), if is_order => None,
        }
    };
    // Who asked has given it up by then; what hangs here must not keep a place from who asks next.
    let answer = timeout(ANSWER_WITHIN, answered).await;
    let answer = answer.map_err(|_| "no answer was found in time".to_owned())?;
    let Some(answer) = answer else {
        return Ok(());
    };
    let written = timeout(ANSWER_WITHIN, line::write(&mut stream, &answer)).await;
    written
        .map_err(|_| "the answer was not taken in time".to_owned())?
        .map_err(|error| error.to_string())?;
    let _ = stream.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One key for both ends.
    fn settings() -> Settings {
        let own = rcgen::generate_simple_self_signed(vec!["kagami".to_owned()]).expect("made");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(own.cert.der().clone()).expect("a certificate");
        let client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("there are some")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("there are some")
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key.into())
            .expect("they belong together");
        (client, server)
    }

    #[tokio::test]
    async fn a_question_that_was_sent_may_have_been_got() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let (keys, own) = (settings(), listener.local_addr().expect("bound"));
        let acceptor = both_ends(keys.clone()).1;
        let channel = Channel {
            node: "beta".to_owned(),
            others: vec![own],
            keys: Keys::new(Some(keys), || None),
        };
        let ask = PeerAsk::Control(Ask::View);
        let hangs_up = async {
            let (stream, _) = listener.accept().await.expect("it comes");
            let mut stream = acceptor.accept(stream).await.expect("it knows the key");
            let asked = Received::default()
                .next::<PeerAsk>(&mut stream, LINE_MAX)
                .await;
            assert!(matches!(asked, Ok(Some(PeerAsk::Control(Ask::View)))));
        };
        let (answered, ()) = tokio::join!(channel.ask(&ask), hangs_up);
        let unreached = answered.expect_err("nobody answers");
        assert!(unreached.asked, "{unreached}");
        assert!(
            unreached.why.starts_with("node beta does not answer: "),
            "{unreached}"
        );
        drop(listener);
        let unreached = channel.ask(&ask).await.expect_err("nobody listens");
        assert!(!unreached.asked, "{unreached}");
    }
}
