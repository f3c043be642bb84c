//! Listening sockets: TCP, and Unix sockets that appear whole, with their permissions, and go with
//! their listener.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::connection::Socket;

/// A socket that accepts clients.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    // Declared in the order of dropping: the socket closes, then its file goes.
    Unix(UnixListener, SocketFile),
}

/// An address that can't be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenFault {
    /// TCP.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Unix socket.
    #[error("cannot listen on {}: {source}", path.display())]
    Unix {
        /// The path asked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process listens there.
    #[error("{} is in use: another server answers there", .0.display())]
    InUse(PathBuf),
    /// Something else has that name.
    #[error("{} exists and is no socket; it is left alone", .0.display())]
    NotASocket(PathBuf),
    /// The kernel takes 107 bytes.
    #[error("{} is too long for a Unix socket (at most {max} bytes)", path.display())]
    PathTooLong {
        /// The path asked for.
        path: PathBuf,
        /// Bytes that fit.
        max: usize,
    },
}

/// Longest path, with the temporary ending that a socket has while it is made.
const MAX_PATH: usize = 107 - TEMPORARY.len();
const TEMPORARY: &str = ".new";

impl Listener {
    /// Listens on a TCP address; port 0 lets the kernel choose one.
    ///
    /// # Errors
    /// Why the address can't be had.
    pub async fn tcp(address: SocketAddr) -> Result<Self, ListenFault> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ListenFault::Tcp { address, source })?;
        Ok(Self {
            kind: Kind::Tcp(listener),
        })
    }

    /// Listens on a Unix socket with these permission bits, replacing one that nobody listens on
    /// any more. The file appears only when it has its permissions, and is removed with the
    /// listener.
    ///
    /// # Errors
    /// Why the path can't be had.
    pub fn unix(path: &Path, mode: u32) -> Result<Self, ListenFault> {
        if path.as_os_str().len() > MAX_PATH {
            return Err(ListenFault::PathTooLong {
                path: path.to_owned(),
                max: MAX_PATH,
            });
        }
        let fault = |source| ListenFault::Unix {
            path: path.to_owned(),
            source,
        };
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fault(error)),
            Ok(found) => {
                use std::os::unix::fs::FileTypeExt;
                if !found.file_type().is_socket() {
                    return Err(ListenFault::NotASocket(path.to_owned()));
                }
                match std::os::unix::net::UnixStream::connect(path) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(fault(error)),
                    Ok(_) => return Err(ListenFault::InUse(path.to_owned())),
                }
            }
        }
        let mut temporary = OsString::from(path);
        temporary.push(TEMPORARY);
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&temporary).map_err(fault)?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))
            .and_then(|()| std::fs::rename(&temporary, path))
            .map_err(fault)?;
        let inode = std::fs::symlink_metadata(path).map_err(fault)?.ino();
        Ok(Self {
            kind: Kind::Unix(
                listener,
                SocketFile {
                    path: path.to_owned(),
                    inode,
                },
            ),
        })
    }

    /// The TCP address that the kernel gave, or nothing for a Unix socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix(..) => None,
        }
    }

    /// The next client, who it is, and its address on the network.
    pub(crate) async fn accept(&self) -> io::Result<(Socket, String, Option<IpAddr>)> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                tune(&stream)?;
                Ok((Socket::Tcp(stream), address.to_string(), Some(address.ip())))
            }
            Kind::Unix(listener, file) => {
                let (stream, _) = listener.accept().await?;
                let peer = unix_peer(&stream, &file.path);
                Ok((Socket::Unix(stream), peer, None))
            }
        }
    }
}

/// Small replies leave at once, and a client whose machine died is noticed within a minute.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

fn unix_peer(stream: &UnixStream, path: &Path) -> String {
    match stream.peer_cred() {
        Ok(cred) => match cred.pid() {
            Some(pid) => format!("process {pid} of user {} at {}", cred.uid(), path.display()),
            None => format!("user {} at {}", cred.uid(), path.display()),
        },
        Err(_) => path.display().to_string(),
    }
}

/// Removes a socket's file, unless somebody put another one in its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            // Nothing depends on it: the next listener replaces a dead socket.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
