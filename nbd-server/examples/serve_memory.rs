//! Serves memory (`disk`) and nothing at all (`null`) on a Unix socket, until it is interrupted:
//! to try clients, and to see what the front end costs by itself.
//!
//! `cargo run --release -p kagami-nbd-server --example serve_memory -- /tmp/nbd.sock`

use std::error::Error;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use kagami_nbd_server::{
    Export, Exports, Limits, Listener, MemoryDevice, NullDevice, Server, TlsPolicy,
};

const SIZE: u64 = 1 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let base = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .ok_or("usage: serve_memory SOCKET")?;
    let null = base.with_extension("null");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let exports = Rc::new(Exports::new());
        exports.add(Export::new("disk", Rc::new(MemoryDevice::new(SIZE))))?;
        let memory = Server::new(exports, Limits::default());
        memory.listen(Listener::unix(&base, 0o600)?, TlsPolicy::Off);

        let exports = Rc::new(Exports::new());
        exports.add(Export::new("null", Rc::new(NullDevice::new(SIZE))))?;
        let nothing = Server::new(exports, Limits::default());
        nothing.listen(Listener::unix(&null, 0o600)?, TlsPolicy::Off);

        println!("nbd+unix:///disk?socket={}", base.display());
        println!("nbd+unix:///null?socket={}", null.display());
        tokio::signal::ctrl_c().await?;
        memory.shut_down(Duration::from_secs(1)).await;
        nothing.shut_down(Duration::from_secs(1)).await;
        Ok(())
    })
}
