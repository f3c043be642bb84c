//! The control socket: made where nobody can connect before its permissions are right, and never
//! taken from a daemon that lives.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use tokio::net::UnixListener;

use super::StartError;
use crate::config::Node;
use crate::control::client::Client;

/// A listening control socket; its file goes away with it.
#[derive(Debug)]
pub struct ControlSocket {
    /// Where clients come in.
    pub listener: UnixListener,
    path: PathBuf,
    /// Held as long as the socket is this daemon's.
    _lock: fs::File,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The lock is still held: this is our own socket.
        let _ = fs::remove_file(&self.path);
    }
}

impl ControlSocket {
    /// Binds the socket with permissions 0600, or 0660 for the configured group.
    ///
    /// # Errors
    /// A daemon answers there already, or the system refuses.
    pub async fn bind(node: &Node) -> Result<Self, StartError> {
        let path = node.control.clone();
        let io = |path: &Path, doing, next| {
            let path = path.to_owned();
            move |source| StartError::Socket {
                path,
                doing,
                source,
                next,
            }
        };
        let may = "run kagami as a user who may, or name another `control` in [node]";
        let group = node.control_group.as_deref().map(group_id).transpose()?;
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        // 0755: the sockets in it carry the permissions.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&folder)
            .map_err(io(&folder, "making the folder of sockets", may))?;
        let lock_path = path.with_extension("lock");
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            // Who could open it could lock it, and keep the daemon from starting.
            .mode(0o600)
            .open(&lock_path)
            .map_err(io(&lock_path, "opening it", may))?;
        if let Err(errno) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            return Err(match errno {
                rustix::io::Errno::WOULDBLOCK => StartError::RunsAlready {
                    pid: pid_of(&path).await.unwrap_or(0),
                    path,
                },
                errno => io(&lock_path, "locking it", may)(errno.into()),
            });
        }
        let temporary = path.with_extension("new");
        for old in [&temporary, &path] {
            // A socket of a daemon that died: the lock says that nobody lives behind it.
            match fs::remove_file(old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io(old, "removing what a daemon that died left", may)(error));
                }
                _ => {}
            }
        }
        let listener =
            UnixListener::bind(&temporary).map_err(io(&temporary, "binding the socket", may))?;
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        std::os::unix::fs::chown(&temporary, None, group)
            .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(mode)))
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(io(&temporary, "setting its owner and permissions", may))?;
        Ok(Self {
            listener,
            path,
            _lock: lock,
        })
    }
}

/// The process behind a control socket, whether or not it answers.
async fn pid_of(path: &Path) -> Option<u32> {
    Client::connect(path).await.ok()?.process()
}

/// The number of a group, by its name in /etc/group or itself.
fn group_id(name: &str) -> Result<u32, StartError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let missing = || StartError::NoGroup(name.to_owned());
    let table = fs::read_to_string("/etc/group").map_err(|_| missing())?;
    table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find_map(|fields| match fields[..] {
            [group, _, number, ..] if group == name => number.parse().ok(),
            _ => None,
        })
        .ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_by_name_and_number() {
        assert_eq!(group_id("root").unwrap(), 0);
        assert_eq!(group_id("77").unwrap(), 77);
        let said = group_id("nobody-has-this-group").unwrap_err().to_string();
        assert!(
            said.contains("there is no group `nobody-has-this-group`"),
            "{said}"
        );
    }
}
