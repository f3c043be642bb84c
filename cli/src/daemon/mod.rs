//! The daemon: the engine's handle on one side, the control channel on the other.
//!
//! It decides nothing about mirrors. It keeps the configuration that is in force, samples counters,
//! passes events on, and stops the engine cleanly on a signal or an order. [`mirrors`] is the engine with
//! its front ends, as `kagami up` runs it.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Mutex, broadcast, watch};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

pub mod attach;
pub mod engine;
mod front_end;
pub mod keys;
pub mod log;
pub mod mirrors;
pub mod notice;
pub mod reload;
pub mod report;
pub mod rights;
pub mod server;
pub mod service;
pub mod settings;
pub mod socket;

use crate::config::Config;
use crate::control::report::{EventReport, NodeReport, StatusReport};
use engine::Engine;
use report::{Memory, Now};
use service::Service;

/// Why the daemon did not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another daemon answers on the control socket.
    #[error(
        "not started: a daemon (process {pid}) answers on {} already\n  next: `kagami status` asks it, `kagami down` stops it; a second one needs a `control` and stores of its own",
        path.display()
    )]
    RunsAlready {
        /// The control socket.
        path: PathBuf,
        /// Its process.
        pid: u32,
    },
    /// The control socket can't be made.
    #[error("not started: {}: {doing}: {source}\n  next: {next}", path.display())]
    Socket {
        /// The file or folder.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's word.
        source: std::io::Error,
        /// What to do.
        next: &'static str,
    },
    /// No such group.
    #[error(
        "not started: [node] control-group: there is no group `{0}`\n  next: name a group of /etc/group, or its number"
    )]
    NoGroup(String),
}

/// What connections and background work share.
#[derive(Debug)]
pub struct Shared<E> {
    engine: E,
    config: Mutex<Config>,
    node: NodeReport,
    /// The key that this node shows.
    fingerprint: watch::Sender<Option<String>>,
    memory: Mutex<Memory>,
    events: broadcast::Sender<EventReport>,
    /// Mirrors whose roles are a failover manager's business.
    in_hand: rights::InHand,
    set_log_level: log::LevelSetter,
    service: Service,
    stop: watch::Sender<bool>,
    stopped: watch::Sender<bool>,
    /// What was not stopped cleanly, once it has stopped.
    unclean: OnceLock<Vec<String>>,
}

/// Events kept for a slow listener.
const EVENTS_KEPT: usize = 1024;

impl<E: Engine> Shared<E> {
    /// The state of everything, now.
    pub async fn report(&self) -> StatusReport {
        let statuses = self.engine.status().await;
        let config = self.config.lock().await;
        let memory = self.memory.lock().await;
        let node = NodeReport {
            fingerprint: self.fingerprint.borrow().clone(),
            ..self.node.clone()
        };
        report::report(&config, &node, &statuses, &memory, Now::read())
    }
}

/// Runs the daemon until it is told to stop, by `terminate` or over the control channel; then stops
/// the engine cleanly. `socket` was bound before the engine was started: it says that no other daemon
/// runs, and holds commands back until there is somebody to answer them. `service` hears of it all.
pub async fn run<E: Engine>(
    engine: E,
    config: Config,
    socket: socket::ControlSocket,
    fingerprint: Option<String>,
    set_log_level: log::LevelSetter,
    service: Service,
    terminate: impl Future<Output = ()>,
) {
    let node = NodeReport {
        name: config.node.name.clone(),
        id: config.node.id,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        since_ms: report::wall_ms(),
        fingerprint: fingerprint.clone(),
    };
    info!(
        node = node.name,
        mirrors = config.mirrors.len(),
        control = %config.node.control.display(),
        "kagami {} serves", node.version
    );
    let (events, _) = broadcast::channel(EVENTS_KEPT);
    let shared = Arc::new(Shared {
        engine,
        config: Mutex::new(config),
        node,
        fingerprint: watch::Sender::new(fingerprint),
        memory: Mutex::new(Memory::default()),
        events,
        in_hand: rights::InHand::default(),
        set_log_level,
        service: service.clone(),
        stop: watch::Sender::new(false),
        stopped: watch::Sender::new(false),
        unclean: OnceLock::new(),
    });
    let listener = tokio::spawn(listen(Arc::clone(&shared)));
    let sampler = tokio::spawn(sample(Arc::clone(&shared)));
    let key_keeper = tokio::spawn(keys::listen(Arc::clone(&shared)));
    let server = tokio::spawn(server::serve(Arc::clone(&shared), socket));
    let life = tokio::spawn({
        let (service, engine) = (service.clone(), shared.engine.clone());
        let stopping = shared.stop.subscribe();
        async move { service.live(engine, stopping).await }
    });
    service.ready().await;
    let mut stop = shared.stop.subscribe();
    tokio::select! {
        () = terminate => info!("stopping: a signal said so"),
        _ = stop.wait_for(|stop| *stop) => info!("stopping: a command said so"),
    }
    shared.stop.send_replace(true);
    service.stopping().await;
    let unclean = shared.engine.stop().await;
    if unclean.is_empty() {
        info!("stopped cleanly");
    }
    // Nobody else sets it.
    let _ = shared.unclean.set(unclean);
    sampler.abort();
    key_keeper.abort();
    listener.abort();
    // Whoever asked hears that it is done; the server ends when it was told.
    shared.stopped.send_replace(true);
    if tokio::time::timeout(Duration::from_secs(5), server)
        .await
        .is_err()
    {
        warn!("a client of the control channel did not take its last answer");
    }
    life.abort();
}

/// The engine's notices, to whoever listens. (The engine itself writes them to the log.)
async fn listen<E: Engine>(shared: Arc<Shared<E>>) {
    let mut notices = shared.engine.events();
    loop {
        let noticed = match notices.recv().await {
            Ok(noticed) => noticed,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                warn!(missed, "events came faster than they were written down");
                continue;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        shared.memory.lock().await.note(&noticed);
        let event = notice::event(&noticed, &*shared.config.lock().await);
        // Nobody may be listening.
        let _ = shared.events.send(event);
    }
}

/// Once a second: counters for the load, the service manager's line of state, and repeated lines of
/// the log written out.
async fn sample<E: Engine>(shared: Arc<Shared<E>>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let statuses = shared.engine.status().await;
        shared.memory.lock().await.sample(&statuses, Now::read());
        log::write_repeats();
        shared
            .service
            .status(&service::line(&shared.report().await));
    }
}
