//! The commands' side of the control channel.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::frame::{self, ANSWER_MAX, FrameError};
use super::message::{Answer, Ask, Request};

/// Why the daemon was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no daemon.
    #[error("no daemon answers on {}: {why}\n  next: start one with `kagami up` (or `systemctl start kagami`); --config names the configuration it runs by", path.display())]
    NoDaemon {
        /// The control socket.
        path: PathBuf,
        /// "there is no such socket", ….
        why: &'static str,
    },
    /// This user may not.
    #[error("not permitted to use {}\n  next: run the command as the user that runs the daemon, or name a `control-group` in [node]", path.display())]
    NotPermitted {
        /// The control socket.
        path: PathBuf,
    },
    /// The daemon went away in the middle.
    #[error(
        "the daemon went away before it answered; whether the command was carried out is not known ({0})\n  next: `kagami status` when it is back"
    )]
    WentAway(FrameError),
    /// It did not understand the command.
    #[error(
        "the daemon did not understand: {why}\n  next: use the same build for command and daemon (`kagami --version`; `kagami status --json` names the daemon's)"
    )]
    NotUnderstood {
        /// Its words.
        why: String,
    },
}

/// A connection to the daemon, for one request.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    /// What was received and not yet taken.
    received: BytesMut,
}

/// A connection is there within, or the daemon hangs.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// There is no daemon, or this user may not ask it.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let no_daemon = |why| ClientError::NoDaemon {
            path: path.to_owned(),
            why,
        };
        match timeout(CONNECT_PATIENCE, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => Ok(Self {
                stream,
                path: path.to_owned(),
                received: BytesMut::new(),
            }),
            Ok(Err(error)) => Err(match error.kind() {
                ErrorKind::NotFound => no_daemon("there is no such socket"),
                ErrorKind::ConnectionRefused => no_daemon("nobody listens on it"),
                ErrorKind::PermissionDenied => ClientError::NotPermitted {
                    path: path.to_owned(),
                },
                _ => no_daemon("it is no socket that can be connected to"),
            }),
            Err(_) => Err(no_daemon("it takes no connection within 5 s")),
        }
    }

    /// Sends the request.
    ///
    /// # Errors
    /// The daemon went away.
    pub async fn send(&mut self, ask: Ask) -> Result<(), ClientError> {
        frame::write(&mut self.stream, &Request::new(ask))
            .await
            .map_err(ClientError::WentAway)
    }

    /// The next answer; `None` when the daemon ended the stream. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The daemon went away in the middle of an answer, or did not understand.
    pub async fn next(&mut self) -> Result<Option<Answer>, ClientError> {
        loop {
            match frame::take(&mut self.received, ANSWER_MAX) {
                Ok(Some(Answer::NotUnderstood { why, .. })) => {
                    return Err(ClientError::NotUnderstood { why });
                }
                Ok(Some(answer)) => return Ok(Some(answer)),
                Ok(None) => {}
                Err(FrameError::Garbage(error)) => {
                    return Err(ClientError::NotUnderstood {
                        why: format!("its answer makes no sense to this command: {error}"),
                    });
                }
                Err(error) => return Err(ClientError::WentAway(error)),
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) if self.received.is_empty() => return Ok(None),
                Ok(0) => {
                    return Err(ClientError::WentAway(
                        std::io::Error::from(ErrorKind::UnexpectedEof).into(),
                    ));
                }
                Ok(_) => {}
                // A daemon that dies hard resets the socket: the stream is over.
                Err(error)
                    if self.received.is_empty() && error.kind() == ErrorKind::ConnectionReset =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(ClientError::WentAway(error.into())),
            }
        }
    }

    /// Sends a request that has one answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ask(&mut self, ask: Ask) -> Result<Answer, ClientError> {
        self.send(ask).await?;
        self.next().await?.ok_or_else(|| {
            ClientError::WentAway(std::io::Error::from(ErrorKind::UnexpectedEof).into())
        })
    }

    /// The daemon's process, as the kernel tells.
    pub fn process(&self) -> Option<u32> {
        let pid = self.stream.peer_cred().ok()?.pid()?;
        u32::try_from(pid).ok()
    }

    /// The control socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
