//! The side of the control socket that asks.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::line::{self, ANSWER_MAX, LineError, Received};
use super::message::{Answer, Ask, Request};

/// Why a manager was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is none.
    #[error("no failover manager answers on {}: {why}\n  next: start it on this node (`systemctl start kagami-failover`); --config names the configuration it runs by", path.display())]
    NoManager {
        /// The control socket.
        path: PathBuf,
        /// "there is no such socket", ….
        why: &'static str,
    },
    /// This user may not.
    #[error("not permitted to use {}\n  next: run the command as the user that runs the failover manager", path.display())]
    NotPermitted {
        /// The control socket.
        path: PathBuf,
    },
    /// It went away in the middle.
    #[error(
        "the failover manager went away before it answered; whether the command was carried out is not known ({0})\n  next: `kagami cluster status` when it is back"
    )]
    WentAway(LineError),
    /// It did not understand, or was not understood.
    #[error(
        "the failover manager did not understand: {why}\n  next: use the same build for command and manager (`kagami --version`; `kagami cluster status --json` names the manager's)"
    )]
    NotUnderstood {
        /// Its words.
        why: String,
    },
}

/// A connection to a manager, for one request.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    received: Received,
}

/// A connection is there within, or the manager hangs.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// There is no manager, or this user may not ask it.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let no_manager = |why| ClientError::NoManager {
            path: path.to_owned(),
            why,
        };
        match timeout(CONNECT_PATIENCE, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => Ok(Self {
                stream,
                received: Received::default(),
            }),
            Ok(Err(error)) => Err(match error.kind() {
                ErrorKind::NotFound => no_manager("there is no such socket"),
                ErrorKind::ConnectionRefused => no_manager("nobody listens on it"),
                ErrorKind::PermissionDenied => ClientError::NotPermitted {
                    path: path.to_owned(),
                },
                _ => no_manager("it is no socket that can be connected to"),
            }),
            Err(_) => Err(no_manager("it takes no connection within 5 s")),
        }
    }

    /// Sends the request.
    ///
    /// # Errors
    /// The manager went away.
    pub async fn send(&mut self, ask: Ask) -> Result<(), ClientError> {
        line::write(&mut self.stream, &Request::new(ask))
            .await
            .map_err(ClientError::WentAway)
    }

    /// The next answer; `None` when the manager ended the stream. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The manager went away in the middle of an answer, or did not understand.
    pub async fn next(&mut self) -> Result<Option<Answer>, ClientError> {
        match self.received.next(&mut self.stream, ANSWER_MAX).await {
            Ok(Some(Answer::NotUnderstood { why, .. })) => Err(ClientError::NotUnderstood { why }),
            Ok(answer) => Ok(answer),
            Err(LineError::Garbage(error)) => Err(ClientError::NotUnderstood {
                why: format!("its answer makes no sense to this command: {error}"),
            }),
            // A manager that dies hard resets the socket: the stream is over.
            Err(LineError::Io(error)) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(ClientError::WentAway(error)),
        }
    }

    /// Sends a request that has one answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ask(&mut self, ask: Ask) -> Result<Answer, ClientError> {
        self.send(ask).await?;
        self.next()
            .await?
            .ok_or_else(|| ClientError::WentAway(io::Error::from(ErrorKind::UnexpectedEof).into()))
    }
}
