//! The front ends of each data-plane thread: a Unix socket for each mirror, and TCP where it is configured.
//!
//! A mirror is served from when it joins. TCP is not listened on before one has: a client that comes too early is
//! to try again, and not to be told that there is no such export.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kagami_nbd_server::{Export, Exports, Limits, Listener, Server, TlsPolicy, TlsServer};
use kagami_replicator::shell::engine::{Engine as Shell, Plane};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::super::front_end::Served;
use crate::config::{Config, Mirror};

/// Clients may finish what they have begun within.
const GRACE: Duration = Duration::from_secs(5);
/// They are cut off by then; what a mirror holds is left to its stop.
pub(super) const PATIENCE: Duration = Duration::from_secs(6);

/// The front ends of a daemon.
#[derive(Debug)]
pub(super) struct Fronts {
    /// One for each data-plane thread.
    threads: Vec<mpsc::UnboundedSender<Joining>>,
    closing: watch::Sender<bool>,
    /// Each is answered when a thread's front ends are shut down.
    ended: Mutex<Vec<oneshot::Receiver<()>>>,
}

/// A mirror that is to be served.
#[derive(Debug)]
struct Joining {
    mirror: String,
    /// Its peer's name.
    peer: String,
    socket: PathBuf,
    /// Told where it is served.
    tell: oneshot::Sender<Vec<String>>,
}

impl Fronts {
    /// Nothing is served yet.
    pub(super) fn start(config: &Config, shell: &Shell) -> Self {
        let Tcp { listen, tls } = Tcp::of(config);
        let closing = watch::Sender::new(false);
        let (mut threads, mut ended) = (Vec::new(), Vec::new());
        for thread in 0..shell.threads() {
            let shifted = |address: &SocketAddr| {
                let port = match address.port() {
                    0 => 0,
                    port => port.saturating_add(thread),
                };
                SocketAddr::new(address.ip(), port)
            };
            let tcp = Tcp {
                listen: listen.iter().map(shifted).collect(),
                tls: tls.clone(),
            };
            let (join, joining) = mpsc::unbounded_channel();
            let (end, has_ended) = oneshot::channel();
            let closing = closing.subscribe();
            shell.spawn_on(thread, move |plane| {
                serve(plane, tcp, joining, closing, end)
            });
            threads.push(join);
            ended.push(has_ended);
        }
        Self {
            threads,
            closing,
            ended: Mutex::new(ended),
        }
    }

    /// Serves a mirror that is open; where.
    pub(super) async fn add(&self, mirror: &Mirror) -> Vec<String> {
        let (tell, told) = oneshot::channel();
        let joining = Joining {
            mirror: mirror.name.clone(),
            peer: mirror.peer.clone().unwrap_or_default(),
            socket: mirror.nbd_socket.clone(),
            tell,
        };
        // An error: the thread is gone, and whoever asks for its mirrors is told so, or the daemon stops.
        match self.threads.get(mirror.thread) {
            Some(thread) if thread.send(joining).is_ok() => told.await.unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// What clients have begun is finished, nothing new begins.
    pub(super) async fn close(&self) {
        self.closing.send_replace(true);
        let mut ended = {
            let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *ended)
        };
        let all = tokio::time::timeout(PATIENCE, async {
            for front in &mut ended {
                // An error: its thread is gone, and its clients with it.
                let _ = front.await;
            }
        });
        if all.await.is_err() {
            // Stopping fails them; a client that has them neither keeps its own mirror from that nor another.
            warn!("clients have requests that a mirror holds: they fail as it stops");
        }
    }
}

/// Where mirrors are served over TCP, and how.
#[derive(Default)]
struct Tcp {
    listen: Vec<SocketAddr>,
    tls: Option<TlsServer>,
}

impl Tcp {
    /// What is configured of it; nothing where its files can't be used. Never in the clear instead; and mirrors that
    /// are served to this machine do not stand still for a certificate.
    fn of(config: &Config) -> Self {
        let Some(nbd) = &config.nbd else {
            return Self::default();
        };
        let mut tcp = Self {
            listen: nbd.listen.clone(),
            tls: None,
        };
        let Some(files) = &nbd.tls else {
            return tcp;
        };
        match TlsServer::load(&files.files()) {
            Ok(server) => tcp.tls = Some(server),
            Err(why) => {
                error!(
                    "mirrors not served over TCP: [nbd] of {}: {why}; put the files right and start the daemon again",
                    config.file.display()
                );
                tcp.listen.clear();
            }
        }
        tcp
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "nbds" } else { "nbd" }
    }

    /// Listens on all of them; the addresses that it got.
    async fn listen(&self, server: &Server<Served>) -> Vec<SocketAddr> {
        let mut got = Vec::new();
        for address in &self.listen {
            match Listener::tcp(*address).await {
                Ok(listener) => {
                    let at = listener.tcp_address().unwrap_or(*address);
                    let policy = self.tls.clone().map_or(TlsPolicy::Off, TlsPolicy::Required);
                    server.listen(listener, policy);
                    info!("mirrors served at {}://{at}", self.scheme());
                    got.push(at);
                }
                Err(why) => error!("mirrors not served on {address}: {why}"),
            }
        }
        got
    }
}

/// Serves the mirrors of one thread as they join, until the daemon stops.
async fn serve(
    plane: Plane,
    tcp: Tcp,
    mut joining: mpsc::UnboundedReceiver<Joining>,
    mut closing: watch::Receiver<bool>,
    ended: oneshot::Sender<()>,
) {
    let all = Rc::new(Exports::new());
    let mut servers = Vec::new();
    let mut over_tcp: Option<Vec<SocketAddr>> = None;
    loop {
        let new = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => break,
            new = joining.recv() => new,
        };
        let Some(new) = new else { break };
        let Some(device) = plane.device(&new.mirror) else {
            continue;
        };
        let mirror = &new.mirror;
        let device = Rc::new(Served::new(device, new.peer));
        let own = Rc::new(Exports::new());
        for exports in [&own, &all] {
            if let Err(why) = exports.add(Export::new(mirror.as_str(), Rc::clone(&device))) {
                error!(mirror, "not served: {why}");
            }
        }
        // Its own socket serves it to clients that name no export.
        own.set_default(Some(mirror));
        let mut places = Vec::new();
        match Listener::unix(&new.socket, 0o600) {
            Ok(listener) => {
                let server = Server::new(own, Limits::default());
                server.listen(listener, TlsPolicy::Off);
                servers.push(server);
                let socket = new.socket.display();
                info!(mirror, "served at {socket} where Primary");
                places.push(format!("nbd+unix:///{mirror}?socket={socket}"));
            }
            Err(why) => error!(mirror, "not served on its socket: {why}"),
        }
        let addresses = if let Some(addresses) = &over_tcp {
            addresses
        } else {
            let server = Server::new(Rc::clone(&all), Limits::default());
            let got = tcp.listen(&server).await;
            servers.push(server);
            over_tcp.insert(got)
        };
        let uri = |at: &SocketAddr| format!("{}://{at}/{mirror}", tcp.scheme());
        places.extend(addresses.iter().map(uri));
        // Who asked may have been dropped with a daemon that ends.
        let _ = new.tell.send(places);
    }
    let mut closing = tokio::task::JoinSet::new();
    for server in servers {
        closing.spawn_local(async move { server.shut_down(GRACE).await });
    }
    closing.join_all().await;
    let _ = ended.send(());
}
