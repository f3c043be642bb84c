//! The engine and its front ends, from the configuration: what `kagami up` runs.
//!
//! Each mirror has a Unix socket of its own; TCP, where configured, serves all mirrors of a
//! data-plane thread (thread k listens on port + k). A mirror whose stores can't be opened is reported
//! and does not keep the others from running.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use kagami_nbd_server::tls::Clients;
use kagami_nbd_server::{
    Export, Exports, Limits, Listener, Server, TlsFiles, TlsPolicy, TlsServer,
};
use kagami_replicator::core::event::{Command, Refusal, Reply};
use kagami_replicator::core::state::{Connection, NodeId};
use kagami_replicator::shell::boot::Boot;
use kagami_replicator::shell::engine::{
    ArbiterConfig, DEFAULT_FENCE_WAIT, Engine as Shell, EngineConfig, MirrorConfig, PeerEvent,
    Plane,
};
use kagami_replicator::shell::identity::Fingerprint;
use kagami_replicator::shell::quic::{NodeId as LinkNode, Note, PeerConfig};
use kagami_replicator::shell::witness::ClientConfig;
use tokio::sync::{broadcast, oneshot, watch};
use tracing::{error, info, warn};

use super::attach::Attachments;
use super::attach::device::Kernel;
use super::attach::driver::Wanted;
use super::attach::host;
use super::engine::{Attached, Engine, MirrorStatus, Noticed, PeerLink, WriteLatency};
use super::front_end::Served;
use super::service::Service;
use super::settings;
use crate::commands::key_folder;
use crate::config::{self, Config};
use crate::exit::Failure;

/// Mirrors that don't stop cleanly within are left as a crash would leave them.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Opening one mirror takes no longer: a dead daemon's last writes are waited for, names are looked up.
const OPEN_PATIENCE: Duration = Duration::from_secs(120);
/// A device that is a store and is not there at the start is waited for.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Clients may finish what they have begun within.
const FRONT_END_GRACE: Duration = Duration::from_secs(5);
/// They are cut off by then; what a mirror holds is left to its stop.
const FRONT_END_PATIENCE: Duration = Duration::from_secs(6);

/// A running node: engine and front ends. Clones are handles on the same.
#[derive(Clone, Debug)]
pub struct Mirrors {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shell: Shell,
    /// Mirrors that were not opened, and why.
    refused: BTreeMap<String, String>,
    /// Where each mirror is served.
    served: BTreeMap<String, Vec<String>>,
    attachments: Attachments<host::Engine>,
    events: broadcast::Sender<Noticed>,
    closing: watch::Sender<bool>,
    /// Each is answered when a thread's front ends are shut down.
    fronts: Mutex<Vec<oneshot::Receiver<()>>>,
}

impl Mirrors {
    /// Starts the engine, its mirrors and their front ends.
    ///
    /// # Errors
    /// What keeps the node as a whole from running; a mirror that can't be opened does not.
    pub async fn start(config: &Config, service: &Service) -> Result<Self, Failure> {
        let failed = |what: &str, why: &dyn std::fmt::Display| {
            Failure::system(format!(
                "not started: {what}: {why}\n  next: put it right in {} or on this machine, and start kagami again",
                config.file.display()
            ))
        };
        let run_dir = &config.node.run_dir;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(run_dir)
            .map_err(|error| failed(&run_dir.display().to_string(), &error))?;
        let boot = Boot::of_this_machine(run_dir).map_err(|error| failed("this boot", &error))?;
        let mut told = EngineConfig::new(NodeId(config.node.id), key_folder(config), boot);
        told.listen.clone_from(&config.node.listen);
        told.threads = u16::try_from(config.node.threads).unwrap_or(u16::MAX);
        told.buffers = usize::try_from(config.node.buffers).unwrap_or(usize::MAX);
        told.newest_version = config.node.link_version;
        told.peers = peers(config).await;
        let shell = Shell::start(&told).map_err(|error| failed("the engine", &error))?;
        let (events, _) = broadcast::channel(1024);
        tokio::spawn(forward(shell.events(), events.clone()));
        let attachments = attachments(config, &shell);
        let mut refused = BTreeMap::new();
        shell.set_follows(&settings::follows(config));
        devices_appear(config, service).await;
        for mirror in &config.mirrors {
            let peer = mirror.peer.as_deref().and_then(|name| config.peer(name));
            if peer.is_none() {
                warn!(
                    mirror = mirror.name,
                    "no other node has a copy: `kagami pair {}` brings one", mirror.name
                );
            }
            service.starting(&format!("opening {}", mirror.name), OPEN_PATIENCE);
            let told = MirrorConfig {
                name: mirror.name.clone(),
                mirror: u128::from_be_bytes(mirror.uuid),
                size: Some(mirror.size),
                backing: mirror.backing.clone(),
                metadata: Some(mirror.metadata.clone()),
                peer: peer.map_or(NodeId::NOBODY, |peer| NodeId(peer.id)),
                thread: u16::try_from(mirror.thread).unwrap_or(u16::MAX),
                settings: settings::of(config, mirror),
                arbiter: arbiter(config, mirror).await,
                fence_wait: DEFAULT_FENCE_WAIT,
            };
            if let Err(why) = shell.add_mirror(told).await {
                error!(mirror = mirror.name, "not opened: {why}");
                refused.insert(mirror.name.clone(), why.to_string());
            }
        }
        warn_of_clear_text(config);
        let closing = watch::Sender::new(false);
        let (served, fronts) = front_ends(config, &shell, &refused, &tcp(config), &closing).await;
        attachments.resume().await;
        Ok(Self {
            inner: Arc::new(Inner {
                shell,
                refused,
                served,
                attachments,
                events,
                closing,
                fronts: Mutex::new(fronts),
            }),
        })
    }
}

impl Engine for Mirrors {
    async fn command(&self, mirror: &str, command: Command) -> Result<Reply, Refusal> {
        if let Some(why) = self.inner.refused.get(mirror) {
            return Err(Refusal {
                what: "its stores are not open".to_owned(),
                facts: vec![why.clone()],
                next: "put it right and start kagami again".to_owned(),
            });
        }
        if let Command::Demote { .. } = command
            && let Some(device) = self.inner.attachments.device_of(mirror)
        {
            // By force, too: what waits in the kernel would wait for a Primary that is no more.
            return Err(Refusal {
                what: "not demoted: it is attached".to_owned(),
                facts: vec![format!("{device} is served from here")],
                next: format!("detach it first: `kagami detach {mirror}`"),
            });
        }
        self.inner.shell.command(mirror, command).await
    }

    async fn attach(
        &self,
        mirror: &str,
        wanted: Wanted,
        unless_primary: Option<Refusal>,
    ) -> Result<Attached, Refusal> {
        if let Some(why) = self.inner.refused.get(mirror) {
            return Err(Refusal {
                what: "not attached: its stores are not open".to_owned(),
                facts: vec![why.clone()],
                next: "put it right and start kagami again".to_owned(),
            });
        }
        let attachments = &self.inner.attachments;
        attachments.attach(mirror, wanted, unless_primary).await
    }

    async fn detach(&self, mirror: &str, force: bool) -> Result<Reply, Refusal> {
        if let Some(why) = self.inner.refused.get(mirror) {
            return Err(Refusal {
                what: "not detached: its stores are not open, and what the kernel holds for it can't be written".to_owned(),
                facts: vec![why.clone()],
                next: "put it right and start kagami again".to_owned(),
            });
        }
        self.inner.attachments.detach(mirror, force).await
    }

    async fn peer(&self, mirror: &str) -> Option<u64> {
        let all = self.inner.shell.status().await;
        let found = all.into_iter().find(|status| &*status.name == mirror)?;
        (found.peer != NodeId::NOBODY).then_some(found.peer.0)
    }

    async fn links(&self) -> Vec<PeerLink> {
        let mut links: BTreeMap<NodeId, PeerLink> = BTreeMap::new();
        for status in self.inner.shell.status().await {
            if let Some(link) = &status.link {
                let is_used = status.core.connection == Connection::Connected;
                let peer = status.peer;
                let new = PeerLink {
                    peer,
                    version: link.version,
                    key: link.key,
                    is_used,
                };
                links.entry(peer).or_insert(new).is_used |= is_used;
            }
        }
        links.into_values().collect()
    }

    async fn tell(&self, peer: NodeId, note: &Note) {
        self.inner.shell.tell(peer, note);
    }

    fn peer_events(&self) -> Option<broadcast::Receiver<PeerEvent>> {
        Some(self.inner.shell.peer_events())
    }

    async fn show_new_key(&self) -> Result<(), String> {
        let shown = self.inner.shell.show_new_key().await;
        shown.map_err(|error| error.to_string())
    }

    async fn relink(&self, config: &Config) {
        self.inner.shell.set_peers(&peers(config).await);
        self.inner.shell.set_follows(&settings::follows(config));
        for mirror in &config.mirrors {
            if self.inner.refused.contains_key(&mirror.name) {
                continue;
            }
            let arbiter = arbiter(config, mirror).await;
            if let Err(why) = self.inner.shell.set_arbiter(&mirror.name, arbiter).await {
                warn!(
                    mirror = mirror.name,
                    "its arbiter is the old one still: {why}"
                );
            }
        }
    }

    async fn status(&self) -> Vec<MirrorStatus> {
        let running = self.inner.shell.status().await.into_iter().map(|status| {
            let served_at = self.inner.served.get(&*status.name).cloned();
            let device = self.inner.attachments.report(&status.name);
            MirrorStatus {
                name: status.name.to_string(),
                device,
                disk_fault: status.diskless.clone(),
                held_back: status.held_back.clone(),
                peer_address: status.link.as_ref().map(|link| link.address.to_string()),
                link_version: status.link.as_ref().map(|link| link.version),
                served_at: served_at.unwrap_or_default(),
                write_latency: (status.writes.count > 0).then_some(WriteLatency {
                    p50_ns: status.writes.p50,
                    p99_ns: status.writes.p99,
                }),
                core: Ok(status.core),
            }
        });
        let refused = self.inner.refused.iter().map(|(name, why)| MirrorStatus {
            name: name.clone(),
            core: Err(why.clone()),
            disk_fault: None,
            held_back: None,
            peer_address: None,
            link_version: None,
            served_at: Vec::new(),
            device: None,
            write_latency: None,
        });
        running.chain(refused).collect()
    }

    fn events(&self) -> broadcast::Receiver<Noticed> {
        self.inner.events.subscribe()
    }

    async fn beat(&self) {
        for thread in 0..self.inner.shell.threads() {
            if !self.inner.shell.beat(thread).await {
                error!(thread, "this data-plane thread has ended");
                // By no order: nothing of its mirrors is served any more.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn stop(&self) -> Vec<String> {
        // What the kernel has begun is finished; what it has not stays with it.
        self.inner.attachments.stop().await;
        // Front ends first: what clients have begun is finished, nothing new begins.
        self.inner.closing.send_replace(true);
        let mut fronts = std::mem::take(
            &mut *self
                .inner
                .fronts
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let ended = tokio::time::timeout(FRONT_END_PATIENCE, async {
            for front in &mut fronts {
                // An error: its thread is gone, and its clients with it.
                let _ = front.await;
            }
        });
        if ended.await.is_err() {
            // Stopping fails them; a client that has them neither keeps its own mirror from that nor another.
            warn!("clients have requests that a mirror holds: they fail as it stops");
        }
        let unclean = self.inner.shell.clone().stop(STOP_PATIENCE).await;
        unclean
            .into_iter()
            .map(|(mirror, refusal)| {
                warn!(
                    mirror,
                    "not stopped cleanly: {}; {}", refusal.what, refusal.next
                );
                format!("{}; {}", refusal.what, refusal.next)
            })
            .collect()
    }
}

/// Waits a while for stores that are devices and not there: while a machine starts, LVM and its like come
/// when they come, and a mirror that was not opened stays so until the next start.
async fn devices_appear(config: &Config, service: &Service) {
    let stores = config
        .mirrors
        .iter()
        .flat_map(|mirror| [&mirror.backing, &mirror.metadata]);
    let mut missing: Vec<_> = stores
        .filter(|store| store.starts_with("/dev") && !store.exists())
        .collect();
    let deadline = Instant::now() + DEVICE_PATIENCE;
    if let Some(first) = missing.first() {
        let what = format!("waiting for {}", first.display());
        info!("{what}, for up to {} s", DEVICE_PATIENCE.as_secs());
        service.starting(&what, OPEN_PATIENCE);
    }
    while !missing.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(LOOK_EVERY).await;
        missing.retain(|store| !store.exists());
    }
}

/// Of all mirrors; those that are not open are refused by the engine.
fn attachments(config: &Config, shell: &Shell) -> Attachments<host::Engine> {
    let places = config.mirrors.iter().map(|mirror| {
        let thread = u16::try_from(mirror.thread).unwrap_or(u16::MAX);
        let peer = mirror.peer.clone().unwrap_or_default();
        (mirror.name.clone(), (thread, peer))
    });
    let host = host::Engine::new(shell.clone(), places.collect());
    Attachments::new(host, Kernel::default(), config, &config.node.state_dir)
}

/// The engine's events, in the daemon's words.
async fn forward(
    mut from: broadcast::Receiver<kagami_replicator::shell::engine::MirrorEvent>,
    to: broadcast::Sender<Noticed>,
) {
    loop {
        match from.recv().await {
            Ok(event) => {
                let since = event.at.duration_since(UNIX_EPOCH).unwrap_or_default();
                // Nobody may be listening.
                let _ = to.send(Noticed {
                    mirror: event.mirror.to_string(),
                    time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
                    notice: event.notice,
                });
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                warn!(missed, "events came faster than they were passed on");
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// The peers as the link knows them.
async fn peers(config: &Config) -> Vec<PeerConfig> {
    let mut peers = Vec::new();
    for peer in &config.peers {
        peers.push(PeerConfig {
            node: LinkNode(u128::from(peer.id)),
            name: peer.name.clone(),
            addresses: resolve(&peer.addresses).await,
            fingerprints: fingerprints(&peer.fingerprints),
            timeout: peer.timeout,
        });
    }
    peers
}

/// Addresses of `address:port` and `name:port`. A name that does not resolve has the addresses that it
/// had last, if it had any; else it is a warning.
pub async fn resolve(texts: &[String]) -> Vec<SocketAddr> {
    static LAST: Mutex<BTreeMap<String, Vec<SocketAddr>>> = Mutex::new(BTreeMap::new());
    let last = || LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = Vec::new();
    for text in texts {
        match tokio::net::lookup_host(text).await {
            Ok(addresses) => {
                let addresses: Vec<_> = addresses.collect();
                last().insert(text.clone(), addresses.clone());
                found.extend(addresses);
            }
            Err(why) => {
                if let Some(addresses) = last().get(text) {
                    found.extend(addresses);
                } else {
                    warn!(
                        "{text} has no address now ({why}); it is left out until `kagami reload` or a restart"
                    );
                }
            }
        }
    }
    found.dedup();
    found
}

/// Keys of a checked configuration.
///
/// # Panics
/// On texts that are none.
pub fn fingerprints(texts: &[String]) -> Vec<Fingerprint> {
    texts
        .iter()
        .map(|text| {
            text.parse()
                .expect("the reader of the configuration checked it")
        })
        .collect()
}

async fn arbiter(config: &Config, mirror: &config::Mirror) -> ArbiterConfig {
    let Some(arbiter) = mirror
        .arbiter
        .as_deref()
        .and_then(|name| config.arbiter(name))
    else {
        return ArbiterConfig::None;
    };
    match arbiter.as_etcd() {
        Some(etcd) => ArbiterConfig::Etcd {
            etcd,
            register: None,
        },
        None => ArbiterConfig::Witness {
            witness: witness(arbiter).await,
            register: None,
        },
    }
}

/// A witness as it is asked.
pub async fn witness(arbiter: &config::Arbiter) -> ClientConfig {
    ClientConfig {
        name: arbiter.name.clone(),
        addresses: resolve(&arbiter.addresses).await,
        fingerprints: fingerprints(&arbiter.fingerprints),
        timeout: arbiter.timeout,
    }
}

/// Tells of each arbiter that is asked in clear text.
fn warn_of_clear_text(config: &Config) {
    for etcd in config.arbiters.iter().filter_map(config::Arbiter::as_etcd) {
        if etcd.is_clear_text() {
            warn!(
                arbiter = etcd.name,
                "etcd is asked in clear text: whoever is on the way can change what it says of who may go on alone; use https:// and certificates"
            );
        }
    }
}

/// Where mirrors are served over TCP, and how.
#[derive(Default)]
struct Tcp {
    listen: Vec<SocketAddr>,
    tls: Option<TlsServer>,
}

/// What is configured of it; nothing where its files can't be used. Never in the clear instead; and mirrors that are
/// served to this machine do not stand still for a certificate.
fn tcp(config: &Config) -> Tcp {
    let Some(nbd) = &config.nbd else {
        return Tcp::default();
    };
    let mut tcp = Tcp {
        listen: nbd.listen.clone(),
        tls: None,
    };
    let Some(files) = &nbd.tls else {
        return tcp;
    };
    let files = TlsFiles {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        clients: files
            .client_ca
            .clone()
            .map_or(Clients::Anybody, Clients::SignedBy),
    };
    match TlsServer::load(&files) {
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

/// What one thread's front ends are to serve.
struct Front {
    /// Mirror, its peer's name, its socket.
    mirrors: Vec<(String, String, PathBuf)>,
    tcp: Vec<SocketAddr>,
    tls: Option<TlsServer>,
    closing: watch::Receiver<bool>,
}

/// Where each mirror is served.
type Places = BTreeMap<String, Vec<String>>;

async fn front_ends(
    config: &Config,
    shell: &Shell,
    refused: &BTreeMap<String, String>,
    tcp: &Tcp,
    closing: &watch::Sender<bool>,
) -> (Places, Vec<oneshot::Receiver<()>>) {
    let (mut places, mut fronts) = (Places::new(), Vec::new());
    for thread in 0..shell.threads() {
        let mirrors: Vec<_> = config
            .mirrors
            .iter()
            .filter(|mirror| mirror.thread == usize::from(thread))
            .filter(|mirror| !refused.contains_key(&mirror.name))
            .map(|mirror| {
                let peer = mirror.peer.clone().unwrap_or_default();
                (mirror.name.clone(), peer, mirror.nbd_socket.clone())
            })
            .collect();
        if mirrors.is_empty() {
            continue;
        }
        let front = Front {
            mirrors,
            tcp: tcp
                .listen
                .iter()
                .map(|address| {
                    let port = match address.port() {
                        0 => 0,
                        port => port.saturating_add(thread),
                    };
                    SocketAddr::new(address.ip(), port)
                })
                .collect(),
            tls: tcp.tls.clone(),
            closing: closing.subscribe(),
        };
        let (tell, told) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        shell.spawn_on(thread, move |plane| serve(plane, front, tell, ended));
        // An error: the thread is gone, and whoever asks for its mirrors is told so.
        if let Ok(found) = told.await {
            places.extend(found);
        }
        fronts.push(end);
    }
    (places, fronts)
}

/// Listens for the mirrors of one thread until the daemon stops.
async fn serve(
    plane: Plane,
    mut front: Front,
    tell: oneshot::Sender<Places>,
    ended: oneshot::Sender<()>,
) {
    let mut places = Places::new();
    let mut servers = Vec::new();
    let all = Rc::new(Exports::new());
    for (name, peer, socket) in &front.mirrors {
        let Some(device) = plane.device(name) else {
            continue;
        };
        let device = Rc::new(Served::new(device, peer.clone()));
        let own = Rc::new(Exports::new());
        for exports in [&own, &all] {
            if let Err(why) = exports.add(Export::new(name.as_str(), Rc::clone(&device))) {
                error!(mirror = name, "not served: {why}");
            }
        }
        // Its own socket serves it to clients that name no export.
        own.set_default(Some(name));
        match Listener::unix(socket, 0o600) {
            Ok(listener) => {
                let server = Server::new(own, Limits::default());
                server.listen(listener, TlsPolicy::Off);
                servers.push(server);
                info!(
                    mirror = name,
                    "served at {} where Primary",
                    socket.display()
                );
                let uri = format!("nbd+unix:///{name}?socket={}", socket.display());
                places.entry(name.clone()).or_default().push(uri);
            }
            Err(why) => error!(mirror = name, "not served on its socket: {why}"),
        }
    }
    if !front.tcp.is_empty() {
        let server = Server::new(Rc::clone(&all), Limits::default());
        for address in &front.tcp {
            match Listener::tcp(*address).await {
                Ok(listener) => {
                    let at = listener.tcp_address().unwrap_or(*address);
                    let scheme = if front.tls.is_some() { "nbds" } else { "nbd" };
                    for (name, ..) in &front.mirrors {
                        let uri = format!("{scheme}://{at}/{name}");
                        places.entry(name.clone()).or_default().push(uri);
                    }
                    let policy = front
                        .tls
                        .clone()
                        .map_or(TlsPolicy::Off, TlsPolicy::Required);
                    server.listen(listener, policy);
                    info!("mirrors served at {scheme}://{at}");
                }
                Err(why) => error!("mirrors not served on {address}: {why}"),
            }
        }
        servers.push(server);
    }
    // The starter may have given up; then this is dropped with its thread.
    let _ = tell.send(places);
    let _ = front.closing.wait_for(|closing| *closing).await;
    let mut closing = tokio::task::JoinSet::new();
    for server in servers {
        closing.spawn_local(async move { server.shut_down(FRONT_END_GRACE).await });
    }
    closing.join_all().await;
    let _ = ended.send(());
}

#[cfg(test)]
mod tests {
    use super::super::attach::LEAVE_ALL_PATIENCE;
    use super::*;

    #[test]
    fn the_unit_gives_a_stop_the_time_that_it_takes() {
        let unit = include_str!("../../package/kagami.service");
        let mut lines = unit.lines();
        let given = lines.find_map(|line| line.strip_prefix("TimeoutStopSec="));
        let given: u64 = given
            .and_then(|given| given.strip_suffix('s'))
            .and_then(|seconds| seconds.parse().ok())
            .expect("seconds");
        let taken = LEAVE_ALL_PATIENCE + FRONT_END_PATIENCE + STOP_PATIENCE;
        assert!(taken < Duration::from_secs(given), "{taken:?}");
    }
}
