//! The channel between the two managers: TCP on the addresses of the LAN heartbeats, TLS with both
//! nodes' pinned keys (whoever makes the settings sees to that).
//!
//! A connection carries one request and its answer, JSON, a line each, as the control socket does. It
//! carries what people ask for, files of groups, and the questions of leases ([`crate::right::lease`]);
//! nothing that the core decides by.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::{Cluster, HeartbeatKind};
use crate::control::line::{self, Received};
use crate::control::{Answer, Ask};
use crate::core::Node;
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

/// The way to the other manager.
#[derive(Clone)]
pub struct Channel {
    node: String,
    others: Vec<SocketAddr>,
    connector: Option<TlsConnector>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Channel({})", self.node)
    }
}

impl Channel {
    /// To the other node of this cluster; without `settings` it is never reached.
    pub fn new(cluster: &Cluster, me: Node, settings: Option<rustls::ClientConfig>) -> Self {
        let others = addresses(cluster, me);
        Self {
            node: cluster.nodes[1 - me].clone(),
            others: others.into_iter().map(|(_, other)| other).collect(),
            connector: settings.map(|settings| TlsConnector::from(Arc::new(settings))),
        }
    }

    /// Asks the other manager, by the first address that answers.
    ///
    /// # Errors
    /// It does not answer; in words.
    pub async fn ask(&self, ask: &PeerAsk) -> Result<PeerAnswer, String> {
        let node = &self.node;
        let Some(connector) = &self.connector else {
            return Err(format!("node {node} is not paired with this one"));
        };
        let mut why = "no heartbeat has an address of it".to_owned();
        for address in &self.others {
            match timeout(CONNECT_WITHIN, connect(connector, *address)).await {
                Ok(Ok(stream)) => {
                    // What was sent may have been carried out: it is not sent again elsewhere.
                    let asked = timeout(ANSWER_WITHIN, exchange(stream, ask)).await;
                    let said = asked.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                    return said.map_err(|why| format!("node {node} does not answer: {why}"));
                }
                Ok(Err(error)) => why = format!("{address}: {error}"),
                Err(_) => why = format!("{address}: no connection in time"),
            }
        }
        Err(format!("node {node} does not answer: {why}"))
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
        let Some(connector) = &self.connector else {
            return Err(format!("node {node} is not paired with this one"));
        };
        let mut ways = JoinSet::new();
        for address in self.others.iter().copied() {
            let (connector, ask) = (connector.clone(), ask.clone());
            ways.spawn(async move {
                let stream = connect(&connector, address).await;
                let stream = stream.map_err(|error| format!("{address}: {error}"))?;
                exchange(stream, &ask).await
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

async fn connect(connector: &TlsConnector, address: SocketAddr) -> io::Result<Client> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // Certificates count by their keys: the name is compared with nothing.
    let name = ServerName::try_from("kagami").map_err(io::Error::other)?;
    connector.connect(name, stream).await
}

async fn exchange(mut stream: Client, ask: &PeerAsk) -> Result<PeerAnswer, String> {
    line::write(&mut stream, ask)
        .await
        .map_err(|e| e.to_string())?;
    let mut received = Received::default();
    let answer = received.next(&mut stream, LINE_MAX).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let _ = stream.shutdown().await;
    answer.ok_or_else(|| "it hung up".to_owned())
}

/// Answers the other manager on these addresses for as long as the future is polled.
pub async fn serve<A, F>(own: Vec<SocketAddr>, settings: rustls::ServerConfig, answer: A)
where
    A: Fn(PeerAsk) -> F + Clone + Send + 'static,
    F: Future<Output = PeerAnswer> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(settings));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut listeners = JoinSet::new();
    for address in own {
        let (acceptor, places) = (acceptor.clone(), Arc::clone(&places));
        listeners.spawn(listen(address, acceptor, places, answer.clone()));
    }
    while listeners.join_next().await.is_some() {}
}

async fn listen<A, F>(address: SocketAddr, acceptor: TlsAcceptor, places: Arc<Semaphore>, answer: A)
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
        let (acceptor, answer) = (acceptor.clone(), answer.clone());
        clients.spawn(async move {
            if let Err(error) = client(stream, &acceptor, answer).await {
                tracing::debug!("{from}: {error}");
            }
            drop(place);
        });
    }
}

async fn client<A, F>(stream: TcpStream, acceptor: &TlsAcceptor, answer: A) -> Result<(), String>
where
    A: Fn(PeerAsk) -> F,
    F: Future<Output = PeerAnswer>,
{
    let accepted = timeout(CONNECT_WITHIN, acceptor.accept(stream)).await;
    let accepted = accepted.map_err(|_| "no handshake in time".to_owned())?;
    let mut stream = accepted.map_err(|error| error.to_string())?;
    let mut received = Received::default();
    let asked = timeout(ANSWER_WITHIN, received.next(&mut stream, LINE_MAX)).await;
    let asked = asked.map_err(|_| "no request in time".to_owned())?;
    let Some(asked) = asked.map_err(|error| error.to_string())? else {
        return Ok(());
    };
    // Who asked has given it up by then; what hangs here must not keep a place from who asks next.
    let answer = timeout(ANSWER_WITHIN, answer(asked)).await;
    let answer = answer.map_err(|_| "no answer was found in time".to_owned())?;
    let written = timeout(ANSWER_WITHIN, line::write(&mut stream, &answer)).await;
    written
        .map_err(|_| "the answer was not taken in time".to_owned())?
        .map_err(|error| error.to_string())?;
    let _ = stream.shutdown().await;
    Ok(())
}
