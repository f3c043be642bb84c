//! The registers of the cluster's groups at its arbiter, a witness or an etcd, asked from a thread of
//! their own: an arbiter's connections stay on one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kagami_failover::config::Cluster;
use kagami_failover::place::Pending;
use kagami_failover::right::lease::Terms;
use kagami_failover::right::register::{Content, Id, Registers, Swap};
use kagami_replicator::shell::arbiter::raw::{self, RawRegister, RegisterId};
use kagami_replicator::shell::etcd;
use kagami_replicator::shell::identity::{Fingerprint, NodeKey, NodeKeys};
use kagami_replicator::shell::witness;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::config::{Arbiter, Config};
use crate::daemon::mirrors;

use super::settings::own_anew;

/// An arbiter that gave no answer is looked for anew (its addresses, this node's key), this often at
/// most.
const ANEW: Duration = Duration::from_secs(5);

enum Wanted {
    Read(oneshot::Sender<Result<Option<Content>, String>>),
    Swap {
        expect: Option<Id>,
        nonce: u64,
        new: Content,
        answer: oneshot::Sender<Result<Swap, String>>,
    },
}

/// The registers, as the manager asks for them.
#[derive(Debug)]
pub struct AtArbiter {
    asks: mpsc::UnboundedSender<(u128, Wanted)>,
}

/// What tells a file from another in its place.
type Stamp = (u64, i64, i64);

fn stamp(file: &Path) -> Option<Stamp> {
    let facts = std::fs::metadata(file).ok()?;
    Some((facts.ino(), facts.mtime(), facts.mtime_nsec()))
}

/// What the thread knows.
struct Asker {
    /// This node's own, and of which file it was read.
    config: RefCell<Rc<Config>>,
    read_of: Cell<Option<Stamp>>,
    /// The NAME of `[arbiter.NAME]`.
    name: String,
    other: String,
    /// A question without an answer for as long is unanswered.
    within: Duration,
    clients: RefCell<BTreeMap<u128, Rc<dyn RawRegister>>>,
    way: RefCell<Option<Way>>,
    looked: RefCell<Option<Instant>>,
}

#[derive(Clone)]
enum Way {
    Witness(Rc<witness::Remote>, Members),
    Etcd(Rc<etcd::Remote>),
}

/// The keys of the two nodes, to which a witness binds a register.
type Members = Vec<Fingerprint>;

impl AtArbiter {
    /// Starts the thread; the arbiter is the one that the cluster's file names. It ends with the last
    /// handle.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(config: &Config, cluster: &Cluster, other: &str) -> std::io::Result<Self> {
        let (asks, queue) = mpsc::unbounded_channel();
        let config = config.clone();
        let name = cluster.arbiter.name.clone().unwrap_or_default();
        let other = other.to_owned();
        // The manager gives a question up after half a lease: there has to be an outcome before.
        let within = Duration::from_millis(Terms::of(cluster).length * 9 / 20);
        let thread = std::thread::Builder::new().name("registers".to_owned());
        thread.spawn(move || {
            let asker = Asker {
                config: RefCell::new(Rc::new(config)),
                read_of: Cell::new(None),
                name,
                other,
                within,
                clients: RefCell::default(),
                way: RefCell::default(),
                looked: RefCell::default(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => LocalSet::new().block_on(&runtime, serve(asker, queue)),
                Err(error) => tracing::error!("the arbiter can't be asked: {error}"),
            }
        })?;
        Ok(Self { asks })
    }
}

async fn serve(asker: Asker, mut queue: mpsc::UnboundedReceiver<(u128, Wanted)>) {
    let asker = Rc::new(asker);
    while let Some((register, wanted)) = queue.recv().await {
        let asker = Rc::clone(&asker);
        tokio::task::spawn_local(async move {
            // Who asked may have given up.
            match wanted {
                Wanted::Read(answer) => {
                    let _ = answer.send(asker.read(register).await);
                }
                Wanted::Swap {
                    expect,
                    nonce,
                    new,
                    answer,
                } => {
                    let _ = answer.send(asker.swap(register, expect, nonce, new).await);
                }
            }
        });
    }
}

fn content(content: raw::Content) -> Content {
    let raw::Content {
        instance,
        seq,
        bytes,
        nonce: _,
    } = content;
    (Id { instance, seq }, bytes)
}

impl Asker {
    async fn read(&self, register: u128) -> Result<Option<Content>, String> {
        let client = self.client(register).await?;
        match client.read().await {
            Ok(found) => {
                if found.is_some() {
                    // The other node may have another key since the register was made.
                    client.bind().await;
                }
                Ok(found.map(content))
            }
            Err(error) => Err(self.forget(&error)),
        }
    }

    async fn swap(
        &self,
        register: u128,
        expect: Option<Id>,
        nonce: u64,
        (id, bytes): Content,
    ) -> Result<Swap, String> {
        let client = self.client(register).await?;
        let new = raw::Content {
            instance: id.instance,
            seq: id.seq,
            nonce,
            bytes,
        };
        let expect = expect.map(|id| (id.instance, id.seq));
        match client.swap(expect, new).await {
            Ok(raw::Swap::Done) => Ok(Swap::Done),
            Ok(raw::Swap::Other(found)) => Ok(Swap::Other(found.map(content))),
            Err(error) => Err(self.forget(&error)),
        }
    }

    /// What is known of the arbiter may be out of date.
    fn forget(&self, why: &raw::NoAnswer) -> String {
        let looked = *self.looked.borrow();
        if looked.is_none_or(|at| at.elapsed() >= ANEW) {
            self.clients.borrow_mut().clear();
            self.way.borrow_mut().take();
        }
        why.to_string()
    }

    /// Another key of the other node, to which registers are bound, is no fault that an arbiter would tell.
    fn notice_changes(&self) {
        let config = Rc::clone(&self.config.borrow());
        let now = stamp(&config.file);
        if self.read_of.replace(now) == now {
            return;
        }
        match own_anew(&config) {
            Ok(config) => {
                *self.config.borrow_mut() = Rc::new(config);
                self.clients.borrow_mut().clear();
                self.way.borrow_mut().take();
            }
            Err(failure) => tracing::warn!("the arbiter is asked as before: {}", failure.words),
        }
    }

    async fn client(&self, register: u128) -> Result<Rc<dyn RawRegister>, String> {
        self.notice_changes();
        if let Some(client) = self.clients.borrow().get(&register) {
            return Ok(Rc::clone(client));
        }
        let id = RegisterId(register);
        let config = Rc::clone(&self.config.borrow());
        let client: Rc<dyn RawRegister> = match self.way().await? {
            Way::Witness(remote, members) => witness::Client::new(remote, id, members),
            Way::Etcd(remote) => etcd::Client::new(remote, id),
        };
        if self.is_in_force(&config) {
            let known = Rc::clone(&client);
            self.clients.borrow_mut().insert(register, known);
        }
        Ok(client)
    }

    async fn way(&self) -> Result<Way, String> {
        if let Some(way) = &*self.way.borrow() {
            return Ok(way.clone());
        }
        let name = &self.name;
        let config = Rc::clone(&self.config.borrow());
        let arbiter = config.arbiter(name);
        let arbiter = arbiter.ok_or_else(|| missing(&config, name))?;
        *self.looked.borrow_mut() = Some(Instant::now());
        let way = match arbiter.as_etcd() {
            Some(mut config) => {
                config.timeout = config.timeout.min(self.within);
                Way::Etcd(etcd::Remote::new(config))
            }
            None => self.witness(&config, arbiter).await?,
        };
        if self.is_in_force(&config) {
            *self.way.borrow_mut() = Some(way.clone());
        }
        Ok(way)
    }

    /// No other configuration was taken over while a name was resolved: what follows from this one may be kept.
    fn is_in_force(&self, config: &Rc<Config>) -> bool {
        Rc::ptr_eq(config, &self.config.borrow())
    }

    async fn witness(&self, config: &Config, arbiter: &Arbiter) -> Result<Way, String> {
        let keys = NodeKeys::load(&config.key_folder()).map_err(|e| e.to_string())?;
        let mut settings = mirrors::witness(arbiter).await;
        settings.timeout = settings.timeout.min(self.within);
        let remote = witness::Remote::new(&keys.current, settings).map_err(|e| e.to_string())?;
        let mine = [Some(&keys.current), keys.next.as_ref()];
        let mine = mine.into_iter().flatten().map(NodeKey::fingerprint);
        let peer = config.peer(&self.other);
        let theirs = peer.map(|peer| mirrors::fingerprints(&peer.fingerprints));
        let members = mine.chain(theirs.into_iter().flatten().take(2)).collect();
        Ok(Way::Witness(remote, members))
    }
}

/// The cluster's file names an arbiter that the node's does not have.
pub fn missing(config: &Config, name: &str) -> String {
    let file = config.file.display();
    format!("{file} has no [arbiter.{name}], which cluster.toml names")
}

impl Registers for AtArbiter {
    fn read(&self, register: u128) -> Pending<'_, Result<Option<Content>, String>> {
        let (answer, answered) = oneshot::channel();
        let _ = self.asks.send((register, Wanted::Read(answer)));
        Box::pin(async move { answered.await.unwrap_or_else(|_| Err(ended())) })
    }

    fn swap(
        &self,
        register: u128,
        expect: Option<Id>,
        nonce: u64,
        new: Content,
    ) -> Pending<'_, Result<Swap, String>> {
        let (answer, answered) = oneshot::channel();
        let wanted = Wanted::Swap {
            expect,
            nonce,
            new,
            answer,
        };
        let _ = self.asks.send((register, wanted));
        Box::pin(async move { answered.await.unwrap_or_else(|_| Err(ended())) })
    }
}

fn ended() -> String {
    "what asks the arbiter has ended".to_owned()
}
