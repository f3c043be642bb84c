//! The NBD front end over a device that does nothing, in a process of its own.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use bytes::BytesMut;
use kagami_nbd_server::{
    Access, BlockDevice, Completion, DeviceInfo, Export, Exports, Limits, Listener, NullDevice,
    Refusal, Request, Server, TlsPolicy,
};
use kagami_replicator::shell::patience::Awaits;
use kagami_replicator::shell::runtime::has_worked;

use crate::candidate::{Room, Served};
use crate::error::BenchError;
use crate::process::Process;

/// The export's name.
const EXPORT: &str = "null";

/// A null device whose thread looks for the next request before it sleeps.
struct Looking(NullDevice);

impl BlockDevice for Looking {
    type Buffer = BytesMut;
    type Opening = ();

    fn info(&self, access: Access) -> Result<DeviceInfo, Refusal> {
        self.0.info(access)
    }

    fn open(&self, access: Access) -> Result<(), Refusal> {
        self.0.open(access)
    }

    async fn buffer(&self, len: usize) -> BytesMut {
        self.0.buffer(len).await
    }

    fn submit(&self, opening: &(), request: Request, completion: Completion) {
        has_worked(Awaits::Requests);
        self.0.submit(opening, request, completion);
    }
}

/// Serves the null device at `socket` until SIGTERM.
///
/// # Errors
/// The socket can't be had.
pub fn serve(socket: &Path, size: u64) -> Result<(), BenchError> {
    super::run_part(async {
        let exports = Rc::new(Exports::new());
        exports
            .add(Export::new(EXPORT, Rc::new(Looking(NullDevice::new(size)))))
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
