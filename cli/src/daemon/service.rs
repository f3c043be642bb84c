//! What the service manager hears of the daemon (systemd's `Type=notify` and `WatchdogSec=`).
//!
//! A datagram on the socket that `NOTIFY_SOCKET` names: READY when every mirror is open or its failure
//! is stated, or when the others have waited long enough for it, a line of state, RELOADING, STOPPING, and a
//! sign of life for as long as the loops of the data-plane threads turn. Without that variable nothing is
//! sent. What can't be sent is no fault of the daemon's: a line of state comes again, and for READY it waits.
//!
//! Whether a loop turns is the engine's word ([`Engine::beat`]); here is only when it is asked.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{error, warn};

use super::engine::Engine;
use crate::control::report::{MirrorReport, Role, StatusReport};

/// READY is offered again for so long when the manager's socket is full, ...
const READY_PATIENCE: Duration = Duration::from_secs(10);
/// ... and what it can do without.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is offered.
const OFFER_EVERY: Duration = Duration::from_millis(20);
/// Signs of life in the time that the manager allows between two.
const SIGNS_IN_LIMIT: u32 = 4;

/// The service manager, if the daemon runs under one. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Service {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    socket: UnixDatagram,
    manager: SocketAddr,
    /// Without a sign of life for so long the manager ends the daemon.
    limit: Option<Duration>,
    /// The last line of state.
    status: Mutex<String>,
}

impl Service {
    /// Nobody listens.
    pub fn none() -> Self {
        Self::default()
    }

    /// As the environment says.
    pub fn of_this_process() -> Self {
        let Some(place) = env::var_os("NOTIFY_SOCKET").filter(|place| !place.is_empty()) else {
            return Self::none();
        };
        let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let limit = number("WATCHDOG_USEC")
            .filter(|limit| is_ours && *limit > 0)
            .map(Duration::from_micros);
        match Self::at(&place, limit) {
            Ok(service) => service,
            Err(error) => {
                warn!(
                    "the service manager hears nothing of this daemon: {}: {error}",
                    place.display()
                );
                Self::none()
            }
        }
    }

    /// A manager that listens at `place`: a path, or `@` and an abstract name.
    ///
    /// # Errors
    /// No socket can be made, or the place is none.
    pub fn at(place: &OsStr, limit: Option<Duration>) -> std::io::Result<Self> {
        let manager = match place.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(place)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that is slow, in a machine that is short of memory, must not hold the daemon up.
        socket.set_nonblocking(true)?;
        Ok(Self {
            inner: Some(Arc::new(Inner {
                socket,
                manager,
                limit,
                status: Mutex::default(),
            })),
        })
    }

    /// Whether it was taken.
    fn say(&self, words: &str) -> bool {
        let Some(inner) = &self.inner else {
            return true;
        };
        let sent = inner.socket.send_to_addr(words.as_bytes(), &inner.manager);
        sent.is_ok()
    }

    /// Says it until it is taken, or `patience` is over.
    async fn insist(&self, words: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.say(words) {
            if Instant::now() >= deadline {
                return error!("the service manager does not listen: it is not told {words:?}");
            }
            tokio::time::sleep(OFFER_EVERY).await;
        }
    }

    /// Every mirror is open, its failure was stated, or it joins later; commands are answered.
    pub async fn ready(&self) {
        self.insist("READY=1", READY_PATIENCE).await;
    }

    /// The configuration is being read again; [`ready`](Self::ready) says that it is done.
    pub async fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        let words = format!("RELOADING=1\nMONOTONIC_USEC={now}");
        self.insist(&words, PATIENCE).await;
    }

    /// The daemon stops.
    pub async fn stopping(&self) {
        let words = "STOPPING=1\nSTATUS=stopping: mirrors are flushed and left";
        self.insist(words, PATIENCE).await;
    }

    /// A start that is still going on may take so much longer, from now.
    pub fn starting(&self, what: &str, longer: Duration) {
        let longer = longer.as_micros();
        let line = one_line(what);
        // Lost: then the manager's own limit counts.
        let _ = self.say(&format!("STATUS={line}\nEXTEND_TIMEOUT_USEC={longer}"));
    }

    /// A line of state, when it is another than the last.
    pub fn status(&self, line: &str) {
        let Some(inner) = &self.inner else { return };
        let line = one_line(line);
        let mut last = inner.status.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != line && self.say(&format!("STATUS={line}")) {
            *last = line;
        }
    }

    /// Shows signs of life for as long as the engine's loops turn. Once `stopping`, the loops are ended one
    /// after the other: the time that a stop may take bounds them then.
    pub async fn live<E: Engine>(&self, engine: E, mut stopping: watch::Receiver<bool>) {
        let Some(every) = self.every() else { return };
        let mut tick = tokio::time::interval(every);
        loop {
            tick.tick().await;
            let mut slow = false;
            let mut beat = std::pin::pin!(engine.beat());
            loop {
                tokio::select! {
                    biased;
                    () = &mut beat => break,
                    _ = stopping.wait_for(|stopping| *stopping) => break,
                    () = tokio::time::sleep(every) => if !std::mem::replace(&mut slow, true) {
                        error!("a data-plane thread is stuck: without a turn of it the service manager ends this daemon");
                    },
                }
            }
            if slow {
                warn!("all data-plane threads turn again");
            }
            // Lost: there are more of them than the manager needs.
            let _ = self.say("WATCHDOG=1");
        }
    }

    /// Shows signs of life for as long as this runtime turns: for a witness, which has no other loop.
    pub async fn live_alone(&self) {
        let Some(every) = self.every() else {
            return std::future::pending().await;
        };
        let mut tick = tokio::time::interval(every);
        loop {
            tick.tick().await;
            let _ = self.say("WATCHDOG=1");
        }
    }

    fn every(&self) -> Option<Duration> {
        let limit = self.inner.as_ref()?.limit?;
        Some((limit / SIGNS_IN_LIMIT).max(Duration::from_millis(1)))
    }
}

/// Its socket takes lines.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The state of all mirrors in a line: `pg in sync, Primary here; home alone`.
pub fn line(report: &StatusReport) -> String {
    if report.mirrors.is_empty() {
        return "no mirrors: `kagami init` makes one".to_owned();
    }
    let of = |mirror: &MirrorReport| {
        let condition = mirror.condition.word().replace('-', " ");
        let role = if mirror.fault.is_none() && mirror.role == Role::Primary {
            ", Primary here"
        } else {
            ""
        };
        format!("{} {condition}{role}", mirror.name)
    };
    let all: Vec<_> = report.mirrors.iter().map(of).collect();
    all.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_hears_what_is_said_to_a_path_and_to_an_abstract_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("bound");
        let name = format!("kagami-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("an address");
        let by_name = UnixDatagram::bind_addr(&address).expect("bound");
        let at_name = format!("@{name}");
        for (place, manager) in [(path.as_os_str(), by_path), (OsStr::new(&at_name), by_name)] {
            let service = Service::at(place, None).expect("a service");
            service.status("pg in sync");
            service.status("pg in sync");
            service.status("pg\nalone");
            for heard in ["STATUS=pg in sync", "STATUS=pg alone"] {
                let mut text = [0; 64];
                let len = manager.recv(&mut text).expect("heard");
                assert_eq!(std::str::from_utf8(&text[..len]), Ok(heard));
            }
        }
    }
}
