//! The engine and its front ends, from the configuration: what `kagami up` runs.
//!
//! Each mirror has a Unix socket of its own; TCP, where configured, serves all mirrors of a
//! data-plane thread (thread k listens on port + k). Each is [opened](opening) by itself: one whose stores can't be
//! opened, or don't answer, is reported and does not keep the others from running.

pub mod addresses;
mod fronts;
pub mod opening;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use kagami_replicator::core::event::{Command, Refusal, Reply};
use kagami_replicator::core::state::{Connection, NodeId};
use kagami_replicator::shell::boot::Boot;
use kagami_replicator::shell::engine::{ArbiterConfig, Engine as Shell, EngineConfig, PeerEvent};
use kagami_replicator::shell::quic::Note;
use tokio::sync::{broadcast, watch};
use tracing::{error, warn};

use super::attach::Attachments;
use super::attach::device::Kernel;
use super::attach::host;
use super::engine::{Attached, Engine, MirrorStatus, Noticed, PeerLink, WriteLatency};
use super::service::Service;
use super::settings;
use crate::config::Config;
use crate::control::driver::Wanted;
use crate::exit::Failure;
use addresses::Addresses;
pub use addresses::{fingerprints, witness};
use fronts::Fronts;
use opening::{Book, Closed, Patience};

/// Mirrors that don't stop cleanly within are left as a crash would leave them.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// The start waits so long for the addresses of names; what is found later is taken over then.
const LOOK_UP_PATIENCE: Duration = Duration::from_secs(10);
/// Names without an address are looked up again after so long, at first and in the end.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(300)];
/// The start takes no longer than what is waited for, and this for the rest.
const START_MARGIN: Duration = Duration::from_secs(30);

/// A running node: engine and front ends. Clones are handles on the same.
#[derive(Clone, Debug)]
pub struct Mirrors {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shell: Shell,
    book: watch::Sender<Book>,
    /// Held while the engine is told of peers and arbiters.
    linking: tokio::sync::Mutex<()>,
    patience: Patience,
    fronts: Fronts,
    attachments: Attachments<host::Engine>,
    events: broadcast::Sender<Noticed>,
}

impl Mirrors {
    /// Starts the engine, its mirrors and their front ends. Mirrors that are not open after a while join later, each by
    /// itself.
    ///
    /// # Errors
    /// What keeps the node as a whole from running; a mirror that can't be opened does not.
    pub async fn start(
        config: &Config,
        service: &Service,
        patience: Patience,
    ) -> Result<Self, Failure> {
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
        let longest = LOOK_UP_PATIENCE + patience.start + START_MARGIN;
        let missing = config.mirrors.iter().flat_map(opening::missing).next();
        let what = missing.map_or("opening its mirrors".to_owned(), |device| {
            format!("waiting for {}", device.display())
        });
        service.starting(&what, longest);
        let texts = addresses::names(config);
        let mut looking = tokio::spawn(async move {
            // None was known before.
            Addresses::look_up(&texts, &Addresses::default()).await
        });
        let found = tokio::time::timeout(LOOK_UP_PATIENCE, &mut looking).await;
        let is_late = found.is_err();
        let found = found.ok().and_then(Result::ok).unwrap_or_default();
        let mut told = EngineConfig::new(NodeId(config.node.id), config.key_folder(), boot);
        told.listen.clone_from(&config.node.listen);
        told.threads = u16::try_from(config.node.threads).unwrap_or(u16::MAX);
        told.buffers = usize::try_from(config.node.buffers).unwrap_or(usize::MAX);
        told.busy_poll = config.node.busy_poll;
        told.newest_version = config.node.link_version;
        told.peers = addresses::peers(config, &found);
        let shell = Shell::start(&told).map_err(|error| failed("the engine", &error))?;
        let (events, _) = broadcast::channel(1024);
        tokio::spawn(forward(shell.events(), events.clone()));
        shell.set_follows(&settings::follows(config));
        addresses::warn_of_clear_text(config);
        let inner = Arc::new(Inner {
            fronts: Fronts::start(config, &shell),
            attachments: attachments(config, &shell),
            book: watch::Sender::new(Book::new(config, found)),
            linking: tokio::sync::Mutex::new(()),
            patience,
            events,
            shell,
        });
        let this = Self { inner };
        if is_late {
            warn!(
                "names are still being looked up: their addresses are taken over when they are known"
            );
            let this = this.clone();
            tokio::spawn(async move {
                if let Ok(found) = looking.await {
                    this.take_addresses(&found).await;
                }
            });
        }
        for mirror in &config.mirrors {
            tokio::spawn(opening::open(Arc::clone(&this.inner), mirror.clone()));
        }
        this.opened().await;
        tokio::spawn(this.clone().keep_looking());
        Ok(this)
    }

    /// After a power cut the nodes may be there before the name server is.
    async fn keep_looking(self) {
        let missing = || {
            let book = self.inner.book.borrow();
            book.addresses.missing(addresses::names(&book.config))
        };
        let take = async |found: Addresses| self.take_addresses(&found).await;
        addresses::look_again(LOOK_AGAIN, missing, Addresses::look_up_again, take).await;
    }

    /// Tells the engine what is in force, with the addresses that were found.
    async fn take_addresses(&self, found: &Addresses) {
        let inner = &self.inner;
        // One after the other, with what is in force then: the last word is the newest.
        let _one = inner.linking.lock().await;
        let (mut config, mut addresses) = (None, Addresses::default());
        inner.book.send_modify(|book| {
            book.addresses.update(found);
            book.changes += 1;
            (config, addresses) = (Some(book.config.clone()), book.addresses.clone());
        });
        let config = config.expect("the book was read");
        inner
            .shell
            .set_peers(&addresses::peers(&config, &addresses));
        inner.shell.set_follows(&settings::follows(&config));
        for mirror in &config.mirrors {
            // One that is not open is told when it joins.
            if inner.closed(&mirror.name).is_none() {
                let arbiter = addresses::arbiter(&config, mirror, &addresses);
                inner.set_arbiter(&mirror.name, arbiter).await;
            }
        }
    }

    /// Waits until every mirror has joined or its failure is stated, for as long as the start may take.
    async fn opened(&self) {
        let mut book = self.inner.book.subscribe();
        let answered = book.wait_for(|book| book.unanswered().next().is_none());
        if tokio::time::timeout(self.inner.patience.start, answered)
            .await
            .is_ok()
        {
            return;
        }
        for (mirror, closed) in self.inner.book.borrow().unanswered() {
            warn!(mirror, "{}: it joins when they do", closed.told().why);
        }
    }
}

impl Inner {
    fn is_closed(&self, mirror: &str, closed: Closed) {
        self.book.send_modify(|book| {
            book.closed.insert(mirror.to_owned(), closed);
        });
    }

    /// Why a mirror is not open; `None`: it is.
    fn closed(&self, mirror: &str) -> Option<Closed> {
        self.book.borrow().closed.get(mirror).cloned()
    }

    async fn set_arbiter(&self, mirror: &str, arbiter: ArbiterConfig) {
        if let Err(why) = self.shell.set_arbiter(mirror, arbiter).await {
            warn!(mirror, "its arbiter is the old one still: {why}");
        }
    }
}

impl Engine for Mirrors {
    async fn command(&self, mirror: &str, command: Command) -> Result<Reply, Refusal> {
        match self.inner.closed(mirror) {
            // It is told them when it joins.
            Some(Closed::Opening { .. } | Closed::Held { .. })
                if matches!(command, Command::Set(_)) =>
            {
                return Ok(Reply::Done);
            }
            Some(closed) => return Err(closed.refusal("its stores are not open")),
            None => {}
        }
        if !matches!(command, Command::Demote { .. }) {
            return self.inner.shell.command(mirror, command).await;
        }
        let demotion = self.inner.attachments.demotion(mirror)?;
        let (inner, name) = (Arc::clone(&self.inner), mirror.to_owned());
        // It goes on where nobody waits for its answer any more.
        let demoting = tokio::spawn(async move {
            let answer = inner.shell.command(&name, command).await;
            drop(demotion);
            answer
        });
        demoting
            .await
            .unwrap_or_else(|error| panic!("an order of the daemon's own was lost: {error}"))
    }

    async fn attach(
        &self,
        mirror: &str,
        wanted: Wanted,
        unless_primary: Option<Refusal>,
    ) -> Result<Attached, Refusal> {
        if let Some(closed) = self.inner.closed(mirror) {
            return Err(closed.refusal("not attached: its stores are not open"));
        }
        let attachments = &self.inner.attachments;
        attachments.attach(mirror, wanted, unless_primary).await
    }

    async fn detach(&self, mirror: &str, force: bool) -> Result<Reply, Refusal> {
        if let Some(closed) = self.inner.closed(mirror) {
            return Err(closed.refusal("not detached: its stores are not open, and what the kernel holds for it can't be written"));
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

    async fn look_up(&self, names: &BTreeSet<String>) -> Addresses {
        let before = self.inner.book.borrow().addresses.clone();
        Addresses::look_up(names, &before).await
    }

    fn in_force(&self, config: &Config) {
        self.inner.book.send_modify(|book| {
            book.config = config.clone();
            book.changes += 1;
        });
    }

    async fn relink(&self, found: &Addresses) {
        self.take_addresses(found).await;
    }

    async fn status(&self) -> Vec<MirrorStatus> {
        let running = self.inner.shell.status().await;
        let book = self.inner.book.borrow();
        // Between the opening and the joining the engine knows it already.
        let running = running
            .into_iter()
            .filter(|status| !book.closed.contains_key(&*status.name));
        let running = running.map(|status| {
            let served_at = book.served.get(&*status.name).cloned();
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
        let closed = book.closed.iter().map(|(name, closed)| MirrorStatus {
            name: name.clone(),
            core: Err(closed.told()),
            disk_fault: None,
            held_back: None,
            peer_address: None,
            link_version: None,
            served_at: Vec::new(),
            device: None,
            write_latency: None,
        });
        running.chain(closed).collect()
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
        self.inner.fronts.close().await;
        let unclean = self.inner.shell.stop(STOP_PATIENCE).await;
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

#[cfg(test)]
mod tests {
    use kagami_replicator::shell::engine::END_PATIENCE;

    use super::super::attach::LEAVE_ALL_PATIENCE;
    use super::*;

    #[test]
    fn the_unit_gives_a_stop_the_time_that_it_takes() {
        let unit = include_str!("../../../package/kagami.service");
        let mut lines = unit.lines();
        let given = lines.find_map(|line| line.strip_prefix("TimeoutStopSec="));
        let given: u64 = given
            .and_then(|given| given.strip_suffix('s'))
            .and_then(|seconds| seconds.parse().ok())
            .expect("seconds");
        let taken = LEAVE_ALL_PATIENCE + fronts::PATIENCE + STOP_PATIENCE + END_PATIENCE;
        assert!(taken < Duration::from_secs(given), "{taken:?}");
    }
}
