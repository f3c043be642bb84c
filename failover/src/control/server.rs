//! The side of the control socket that answers: one request a connection, its answers ([`super::answer`]), nothing else.

use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tracing::debug;

use super::answer::{answer, not_understood, status};
use super::desk::Desk;
use super::line::{self, LineError, REQUEST_MAX, Received};
use super::message::{Answer, Ask, PROTOCOL, Request};

/// Clients at a time; more wait.
const CONNECTIONS_MAX: usize = 64;
/// A request must be there within.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// A client that does not take an answer within is given up.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// A control socket; its file goes away with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Held as long as the socket is this manager's.
    _lock: std::fs::File,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The lock is still held: this is our own socket.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A manager runs already.
    #[error("a failover manager runs already (it holds {})\n  next: nothing to do, or stop it first", .0.display())]
    RunsAlready(PathBuf),
    /// The system refused.
    #[error("{}: {source}\n  next: run the failover manager as a user who may write there", path.display())]
    Io {
        /// What was being made.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Socket {
    /// Binds the socket where nobody but this user can connect, and never takes it from a manager
    /// that lives.
    ///
    /// # Errors
    /// A manager has it, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io { path, source }
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed(folder))?;
        }
        let lock_path = path.with_extension("lock");
        let lock = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            // Who could open it could lock it, and keep the manager from starting.
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        lock.set_permissions(std::fs::Permissions::from_mode(0o600))
            .map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(SocketError::RunsAlready(lock_path));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(&lock_path)(error)),
        }
        let temporary = path.with_extension("new");
        for old in [temporary.as_path(), path] {
            match std::fs::remove_file(old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(old)(error));
                }
                _ => {}
            }
        }
        let listener = UnixListener::bind(&temporary).map_err(failed(&temporary))?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&temporary, path))
            .map_err(failed(path))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            _lock: lock,
        })
    }
}

/// Serves clients until `stop` says true, and those that are being answered to their end, or its own: a client may
/// be slow, and is cut off with the task. Clients that come between two lives of a manager wait for the next.
pub async fn serve<D: Desk>(desk: Arc<D>, socket: Arc<Socket>, stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut clients = JoinSet::new();
    let mut stopped = stop.clone();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&socket.listener, &places) => accepted,
            // Whoever could say so has gone: that is the end, too.
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        let Some((stream, place)) = accepted else {
            continue;
        };
        let desk = Arc::clone(&desk);
        let stop = stop.clone();
        clients.spawn(async move {
            if let Err(error) = client(desk.as_ref(), stream, stop).await {
                debug!("a client of the control socket: {error}");
            }
            drop(place);
        });
        while clients.try_join_next().is_some() {}
    }
    while clients.join_next().await.is_some() {}
}

async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> Option<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            // Out of descriptors, most likely: others must end first.
            debug!("the control socket took no client: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn client<D: Desk>(
    desk: &D,
    mut stream: UnixStream,
    stop: watch::Receiver<bool>,
) -> Result<(), LineError> {
    let mut received = Received::default();
    let request = received.next::<serde_json::Value>(&mut stream, REQUEST_MAX);
    let request = match timeout(REQUEST_PATIENCE, request).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error @ LineError::Io(_))) => return Err(error),
        Ok(Err(error)) => return say(&mut stream, &not_understood(error.to_string())).await,
        Err(_) => {
            let why = "no request came within 10 s".to_owned();
            return say(&mut stream, &not_understood(why)).await;
        }
    };
    match understood(request) {
        Ok(Ask::Watch { every_ms }) => watch_status(desk, &mut stream, every_ms, stop).await,
        Ok(Ask::Follow { filter }) => {
            let mut alerts = desk.follow();
            let mut stop = stop;
            loop {
                let answer = tokio::select! {
                    biased;
                    alert = alerts.recv() => match alert {
                        Ok(alert) if !filter.wants(&alert) => continue,
                        Ok(alert) => Answer::Alert(alert),
                        Err(broadcast::error::RecvError::Lagged(alerts)) => Answer::Missed { alerts },
                        Err(broadcast::error::RecvError::Closed) => return Ok(()),
                    },
                    () = hung_up(&mut stream) => return Ok(()),
                    _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
                };
                say(&mut stream, &answer).await?;
            }
        }
        // A disk that takes no state holds an order's answer up for as long as it likes.
        Ok(ask @ Ask::Order { .. }) => {
            let answer = tokio::select! {
                answer = answer(desk, ask) => answer,
                () = hung_up(&mut stream) => return Ok(()),
            };
            say(&mut stream, &answer).await
        }
        // What changes files is not left half-way.
        Ok(ask) => {
            let answer = answer(desk, ask).await;
            say(&mut stream, &answer).await
        }
        Err(why) => say(&mut stream, &not_understood(why)).await,
    }
}

/// The request, if this manager speaks its version.
fn understood(request: serde_json::Value) -> Result<Ask, String> {
    if let Some(version) = request.get("protocol").and_then(serde_json::Value::as_u64)
        && version != u64::from(PROTOCOL)
    {
        return Err(format!(
            "the request is of version {version} of the protocol, this manager speaks version {PROTOCOL}"
        ));
    }
    serde_json::from_value::<Request>(request)
        .map(|request| request.ask)
        .map_err(|error| format!("the request makes no sense: {error}"))
}

async fn say(stream: &mut UnixStream, answer: &Answer) -> Result<(), LineError> {
    timeout(ANSWER_PATIENCE, line::write(stream, answer))
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

/// Ends when the client has gone, or says what has no meaning here.
async fn hung_up(stream: &mut UnixStream) {
    let mut byte = [0; 1];
    let _ = stream.read(&mut byte).await;
}

async fn watch_status<D: Desk>(
    desk: &D,
    stream: &mut UnixStream,
    every_ms: u64,
    mut stop: watch::Receiver<bool>,
) -> Result<(), LineError> {
    let mut tick = tokio::time::interval(Duration::from_millis(every_ms.clamp(50, 3_600_000)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = hung_up(stream) => return Ok(()),
            _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
        }
        let report = status(desk).await;
        say(stream, &Answer::Cluster(Box::new(report))).await?;
    }
}
