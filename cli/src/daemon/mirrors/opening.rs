//! Mirrors that are opened, each in a task of its own: one whose stores don't answer keeps no other from being served.
//!
//! A store may hang for ever, and half an opening can't be taken back: the task waits as long as the store does. One
//! that somebody else holds is tried again, with growing pauses, for who holds it may end. Any other
//! failure is stated and stays until the next start: it takes a person.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kagami_replicator::core::event::{Command, Refusal};
use kagami_replicator::core::state::NodeId;
use kagami_replicator::shell::engine::{DEFAULT_FENCE_WAIT, MirrorConfig};
use tracing::{error, info, warn};

use super::super::engine::NotOpen;
use super::super::settings;
use super::Inner;
use super::addresses::{self, Addresses};
use crate::config::{Config, Mirror};

/// A device that is a store and is not there at the start is waited for: while a machine starts, LVM and its like
/// come when they come.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The start waits so long for all mirrors; those that are not open by then join later.
    pub start: Duration,
    /// A store that somebody holds is tried so long at a time, ...
    pub held: Duration,
    /// ... and again after a pause of this, which doubles ...
    pub pause: Duration,
    /// ... up to this.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            start: DEVICE_PATIENCE + Duration::from_secs(5),
            held: DEFAULT_FENCE_WAIT,
            pause: Duration::from_secs(10),
            longest_pause: Duration::from_secs(300),
        }
    }
}

/// What is in force, and what is not open.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) config: Config,
    pub(super) addresses: Addresses,
    /// Counts the changes of both.
    pub(super) changes: u64,
    /// Every mirror that has not joined.
    pub(super) closed: BTreeMap<String, Closed>,
    /// Where each mirror is served.
    pub(super) served: BTreeMap<String, Vec<String>>,
}

/// Why a mirror is not open.
#[derive(Clone, Debug)]
pub(super) enum Closed {
    /// Its stores have not answered yet.
    Opening {
        stores: String,
        since: Instant,
    },
    /// Somebody else holds one.
    Held {
        why: String,
        again: Instant,
    },
    Refused(String),
}

impl Closed {
    fn opening(mirror: &Mirror) -> Self {
        let (backing, metadata) = (mirror.backing.display(), mirror.metadata.display());
        Self::Opening {
            stores: format!("{backing} and {metadata}"),
            since: Instant::now(),
        }
    }

    /// For the status.
    pub(super) fn told(&self) -> NotOpen {
        match self {
            Self::Opening { stores, since } => NotOpen {
                why: format!(
                    "its stores, {stores}, have not answered for {} s",
                    since.elapsed().as_secs()
                ),
                opening: true,
            },
            Self::Held { why, again } => NotOpen {
                why: format!(
                    "{why}; tried again in {} s",
                    again.saturating_duration_since(Instant::now()).as_secs()
                ),
                opening: true,
            },
            Self::Refused(why) => NotOpen {
                why: why.clone(),
                opening: false,
            },
        }
    }

    /// An order's refusal.
    pub(super) fn refusal(&self, what: &str) -> Refusal {
        let NotOpen { why, opening } = self.told();
        let next = if opening {
            "it is served by itself once they can be opened: look after them if that lasts, and try again"
        } else {
            "put it right and start kagami again"
        };
        Refusal {
            what: what.to_owned(),
            facts: vec![why],
            next: next.to_owned(),
        }
    }
}

impl Book {
    /// Nothing is open.
    pub(super) fn new(config: &Config, addresses: Addresses) -> Self {
        let closed = |mirror: &Mirror| (mirror.name.clone(), Closed::opening(mirror));
        Self {
            config: config.clone(),
            addresses,
            changes: 0,
            closed: config.mirrors.iter().map(closed).collect(),
            served: BTreeMap::new(),
        }
    }

    /// The mirrors whose stores have not answered yet.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = (&String, &Closed)> {
        let is_opening =
            |(_, closed): &(&String, &Closed)| matches!(closed, Closed::Opening { .. });
        self.closed.iter().filter(is_opening)
    }
}

/// Opens a mirror, however long its stores take, and lets it join.
pub(super) async fn open(inner: Arc<Inner>, mirror: Mirror) {
    let name = &mirror.name;
    if mirror.peer.is_none() {
        warn!(
            mirror = name,
            "no other node has a copy: `kagami pair {name}` brings one"
        );
    }
    devices_appear(&mirror).await;
    let mut pause = inner.patience.pause;
    loop {
        let (told, changes) = {
            let book = inner.book.borrow();
            (told(&book, &mirror, inner.patience.held), book.changes)
        };
        // From before it is open.
        inner.attachments.hear(name);
        let why = match inner.shell.add_mirror(told).await {
            Ok(()) => return join(&inner, &mirror, changes).await,
            Err(why) => why,
        };
        if !why.is_held() {
            error!(mirror = name, "not opened: {why}");
            return inner.is_closed(name, Closed::Refused(why.to_string()));
        }
        warn!(
            mirror = name,
            "not opened yet: {why}; tried again in {} s",
            pause.as_secs()
        );
        let held = Closed::Held {
            why: why.to_string(),
            again: Instant::now() + pause,
        };
        inner.is_closed(name, held);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(inner.patience.longest_pause);
    }
}

/// Its stores that are devices and not there.
pub(super) fn missing(mirror: &Mirror) -> Vec<&PathBuf> {
    let mut stores = vec![&mirror.backing, &mirror.metadata];
    stores.retain(|store| store.starts_with("/dev") && !store.exists());
    stores
}

/// Waits a while for its stores that are devices and not there.
async fn devices_appear(mirror: &Mirror) {
    let mut missing = missing(mirror);
    let deadline = Instant::now() + DEVICE_PATIENCE;
    if let Some(first) = missing.first() {
        info!(
            mirror = mirror.name,
            "waiting for {}, for up to {} s",
            first.display(),
            DEVICE_PATIENCE.as_secs()
        );
    }
    while !missing.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(LOOK_EVERY).await;
        missing.retain(|store| !store.exists());
    }
}

/// What the engine is told of a mirror.
fn told(book: &Book, mirror: &Mirror, fence_wait: Duration) -> MirrorConfig {
    let config = &book.config;
    // What a reload has changed of it counts.
    let mirror = config.mirror(&mirror.name).unwrap_or(mirror);
    let peer = mirror.peer.as_deref().and_then(|name| config.peer(name));
    MirrorConfig {
        name: mirror.name.clone(),
        mirror: u128::from_be_bytes(mirror.uuid),
        size: Some(mirror.size),
        backing: mirror.backing.clone(),
        metadata: Some(mirror.metadata.clone()),
        peer: peer.map_or(NodeId::NOBODY, |peer| NodeId(peer.id)),
        thread: u16::try_from(mirror.thread).unwrap_or(u16::MAX),
        settings: settings::of(config, mirror),
        arbiter: addresses::arbiter(config, mirror, &book.addresses),
        fence_wait,
    }
}

/// Serves a mirror that is open, and takes its device back. `changes`: of the book, when it was begun to be opened.
async fn join(inner: &Inner, mirror: &Mirror, mut changes: u64) {
    let name = &mirror.name;
    let served = inner.fronts.add(mirror).await;
    inner.attachments.resume(name).await;
    loop {
        let mut now = None;
        inner.book.send_if_modified(|book| {
            if book.changes != changes {
                // Nobody else told it of these: it was not open.
                now = Some((told(book, mirror, inner.patience.held), book.changes));
                return false;
            }
            book.closed.remove(name);
            book.served.insert(name.clone(), served.clone());
            true
        });
        let Some((told, newer)) = now else { return };
        changes = newer;
        let set = Command::Set(told.settings);
        if let Err(refusal) = inner.shell.command(name, set).await {
            warn!(
                mirror = name,
                "its settings are the old ones: {}", refusal.what
            );
        }
        inner.set_arbiter(name, told.arbiter).await;
    }
}
