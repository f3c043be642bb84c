//! How two managers hear each other: every heartbeat of the configuration, sent and received.
//!
//! [`frame`] has the bytes and says which are believed, by the cluster's [`key`]; [`lan`], [`serial`]
//! and [`disk`] carry them. What is believed goes to the core as it is; what is refused is counted,
//! and people are told of it once in a while. A line that can't be opened is tried again for ever:
//! its silence is what the other node, and the status, see of it.
//!
//! A line that is slower than what is sent carries the newest: each heartbeat says everything.

pub mod disk;
pub mod frame;
pub mod key;
pub mod lan;
pub mod serial;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock;
use crate::config::{Cluster, HeartbeatKind, Severity};
use crate::core::{Alert, Node, Object, Snapshot};
use crate::lock;

use frame::{Gate, Refused, Seal};
use key::Key;

/// A line that could not be opened, or failed, is opened again after this long.
const AGAIN: Duration = Duration::from_secs(1);

/// What a heartbeat brings.
#[derive(Debug)]
pub enum Heard {
    /// The other node's words.
    Beat {
        /// Which of the configuration's heartbeats.
        heartbeat: usize,
        /// What it says.
        message: Box<Snapshot>,
    },
    /// Something that people should know.
    Alert(Alert),
}

/// Who is told of what was heard.
pub type Listener = Arc<dyn Fn(Heard) + Send + Sync>;

/// The newest bytes to be sent.
type Newest = watch::Receiver<Arc<[u8]>>;

/// Receives the bytes of one heartbeat.
#[derive(Clone)]
pub(crate) struct Ear {
    heartbeat: usize,
    name: String,
    seal: Seal,
    gate: Arc<Mutex<Gate>>,
    listener: Listener,
}

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ear({})", self.name)
    }
}

impl Ear {
    /// Bytes have come. `again`: they are looked at again and again (a disk's): what was heard
    /// before is no fault.
    fn hear(&self, bytes: &[u8], again: bool) {
        let mut gate = lock(&self.gate);
        let opened = self.seal.open(bytes).and_then(|snapshot| {
            gate.admit(&snapshot)?;
            Ok(snapshot)
        });
        match opened {
            Ok(snapshot) => {
                drop(gate);
                (self.listener)(Heard::Beat {
                    heartbeat: self.heartbeat,
                    message: Box::new(snapshot),
                });
            }
            Err(Refused::Repeated | Refused::EarlierLife) if again => {}
            Err(why) => {
                let told = gate.count(why, clock::now().0);
                drop(gate);
                if let Some(count) = told {
                    let what = format!("{count} refused");
                    self.alert(Severity::Warning, what, why.to_string());
                }
            }
        }
    }

    fn alert(&self, severity: Severity, what: impl Into<String>, cause: impl Into<String>) {
        (self.listener)(Heard::Alert(Alert {
            severity,
            object: Object::Heartbeat(self.name.clone()),
            what: what.into(),
            cause: cause.into(),
        }));
    }

    fn failed(&self, told: &mut bool, doing: &str, error: &io::Error) {
        if !std::mem::replace(told, true) {
            let what = format!("{doing}: {error}");
            self.alert(Severity::Warning, what, "it is tried again every second");
        }
    }
}

/// All heartbeats of a node. Dropped, they end.
#[derive(Debug)]
pub struct Heartbeats {
    lines: Vec<Line>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Line {
    ear: Ear,
    newest: watch::Sender<Arc<[u8]>>,
    most: usize,
    too_long_told: bool,
}

impl Heartbeats {
    /// Starts them, for node `me`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The system gives no thread for a disk.
    pub fn start(cluster: &Cluster, me: Node, key: &Key, listener: &Listener) -> io::Result<Self> {
        let mut lines = Vec::new();
        let mut tasks = JoinSet::new();
        let (mine, theirs) = (&cluster.nodes[me], &cluster.nodes[1 - me]);
        for (heartbeat, config) in cluster.heartbeats.iter().enumerate() {
            let ear = Ear {
                heartbeat,
                name: config.name.clone(),
                seal: Seal::new(key.clone(), &cluster.name, &config.name, me),
                gate: Arc::default(),
                listener: Arc::clone(listener),
            };
            let (newest, to_send) = watch::channel(Arc::from(Vec::new()));
            let most = match &config.kind {
                HeartbeatKind::Lan(lan) => {
                    if let (Some(own), Some(peer)) =
                        (lan.addresses.get(mine), lan.addresses.get(theirs))
                    {
                        tasks.spawn(lan::run(*own, *peer, ear.clone(), to_send));
                    }
                    frame::FRAME_MAX
                }
                HeartbeatKind::Serial(line) => {
                    if let Some(tty) = line.devices.get(mine) {
                        tasks.spawn(serial::run(tty.clone(), line.baud, ear.clone(), to_send));
                    }
                    serial::FRAME_MAX
                }
                HeartbeatKind::Disk(disk) => {
                    if let Some(path) = disk.paths.get(mine) {
                        let every = Duration::from_millis(config.interval.0);
                        disk::start(path.clone(), me, every, ear.clone(), to_send)?;
                    }
                    disk::FRAME_MAX
                }
            };
            lines.push(Line {
                ear,
                newest,
                most,
                too_long_told: false,
            });
        }
        Ok(Self {
            lines,
            _tasks: tasks,
        })
    }

    /// Sends this by one of the configuration's heartbeats.
    pub fn send(&mut self, heartbeat: usize, message: &Snapshot) {
        let Some(line) = self.lines.get_mut(heartbeat) else {
            return;
        };
        match line.ear.seal.close(message) {
            Some(frame) if frame.len() <= line.most => {
                line.newest.send_replace(Arc::from(frame));
            }
            frame => {
                if !std::mem::replace(&mut line.too_long_told, true) {
                    let length = frame.map_or("more".to_owned(), |f| f.len().to_string());
                    let cause = format!("{length} bytes, {} fit", line.most);
                    let what = "not sent: too much is to be said for it";
                    line.ear.alert(Severity::Error, what, cause);
                }
            }
        }
    }
}
