//! The NBD front end over a device that does nothing, in a process of its own.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use kagami_nbd_server::{Export, Exports, Limits, Listener, NullDevice, Server, TlsPolicy};

use crate::candidate::{Room, Served};
use crate::error::BenchError;
use crate::process::Process;

/// The export's name.
const EXPORT: &str = "null";

/// Serves the null device at `socket` until SIGTERM.
///
/// # Errors
/// The socket can't be had.
pub fn serve(socket: &Path, size: u64) -> Result<(), BenchError> {
    kagami_replicator::shell::runtime::start(async {
        let exports = Rc::new(Exports::new());
        exports
            .add(Export::new(EXPORT, Rc::new(NullDevice::new(size))))
            .map_err(BenchError::part("the front end"))?;
        let server = Server::new(exports, Limits::default());
        let listener = Listener::unix(socket, 0o600).map_err(BenchError::part("the front end"))?;
        server.listen(listener, TlsPolicy::Off);
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(BenchError::io("waiting for signals"))?;
        end.recv().await;
        server.shut_down(std::time::Duration::from_secs(1)).await;
        Ok(())
    })
}

/// The candidate: this program again, serving.
///
/// # Errors
/// It does not start.
pub fn candidate(room: &Room) -> Result<Served, BenchError> {
    let socket = room.dir.join("null.sock");
    let program = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
    let mut command = Command::new(program);
    command
        .arg("serve-null")
        .arg("--socket")
        .arg(&socket)
        .arg("--size")
        .arg(room.region.to_string());
    let process = Process::start("front-end", &mut command, &room.dir)?;
    let watched = vec![("server".to_owned(), process.id())];
    Served::connect(
        super::FRONT_END,
        vec![process],
        watched,
        &socket,
        EXPORT,
        room,
    )
}
