//! qemu-storage-daemon: one local file, and its quorum driver over a local file and NBD to a second process.
//!
//! The quorum is the nearest that qemu has to a mirror. It runs over a Unix socket, over TCP in clear, with
//! TLS by a pre-shared key, and with TLS by certificates of both ends (x509), which is what kagami's link
//! does. Over TCP its client meets the kernel's delayed acknowledgements; so the address that these
//! candidates use has a route with quick ones, and one more candidate uses an address without.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use super::{shared_file, sparse, start, tls};
use crate::candidate::{Room, START, Served};
use crate::error::BenchError;
use crate::process::{self, Process};

/// One local file.
pub const LOCAL: &str = "qemu, one local file";
/// The candidate that kagami is compared with: replicated, and both ends prove who they are.
pub const QUORUM_X509: &str = "qemu quorum, TCP, x509";

/// How the two processes of a quorum talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// A Unix socket, in clear.
    Unix,
    /// TCP in clear.
    Tcp,
    /// TCP in clear, at the address without quick acknowledgements.
    TcpDelayed,
    /// TCP, TLS with a pre-shared key.
    Psk,
    /// TCP, TLS with certificates of both ends.
    X509,
}

impl Between {
    /// In the order of the table.
    pub const ALL: [Self; 5] = [
        Self::Unix,
        Self::Tcp,
        Self::TcpDelayed,
        Self::Psk,
        Self::X509,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Unix => "qemu quorum, Unix socket",
            Self::Tcp => "qemu quorum, TCP in clear",
            Self::TcpDelayed => "qemu quorum, TCP, delayed ACK",
            Self::Psk => "qemu quorum, TCP, TLS-PSK",
            Self::X509 => QUORUM_X509,
        }
    }

    fn tag(self) -> &'static str {
        match self {
            Self::Unix => "quorum-unix",
            Self::Tcp => "quorum-tcp",
            Self::TcpDelayed => "quorum-delayed",
            Self::Psk => "quorum-psk",
            Self::X509 => "quorum-x509",
        }
    }

    /// The loopback address of the second process.
    fn address(self) -> &'static str {
        match self {
            Self::TcpDelayed => "127.0.0.2",
            _ => "127.0.0.1",
        }
    }
}

/// qemu-storage-daemon with the shared local file.
///
/// # Errors
/// It does not start.
pub fn local(room: &Room) -> Result<Served, BenchError> {
    let socket = room.dir.join("qemu-local.sock");
    let mut command = qemu()?;
    command.args(["--blockdev", &file_node("disk", &shared_file(room))]);
    export(&mut command, &unix(&socket), "disk");
    let process = start("qemu-local", &mut command, &socket, room)?;
    let watched = vec![("server".to_owned(), process.id())];
    Served::connect(LOCAL, vec![process], watched, &socket, "disk", room)
}

/// Where a quorum's processes run, and how the first reaches the second.
#[derive(Clone, Debug)]
pub struct Ends {
    /// What each process is started by: nothing, or a program that enters a namespace.
    pub within: [Vec<String>; 2],
    /// The second one's address.
    pub address: String,
    /// What the candidate is called.
    pub name: &'static str,
    /// What its files begin with.
    pub tag: &'static str,
}

/// qemu's quorum driver on this machine.
///
/// # Errors
/// It does not start.
pub fn quorum(room: &Room, between: Between) -> Result<Served, BenchError> {
    let ends = Ends {
        within: [Vec::new(), Vec::new()],
        address: between.address().to_owned(),
        name: between.name(),
        tag: between.tag(),
    };
    quorum_at(room, between, &ends)
}

/// qemu's quorum driver: a local file, and NBD to a second process with another, at these `ends`.
///
/// # Errors
/// It does not start.
pub fn quorum_at(room: &Room, between: Between, ends: &Ends) -> Result<Served, BenchError> {
    let tag = ends.tag;
    let place = |what: &str| room.dir.join(format!("{tag}-{what}"));
    let image = |number: u32| sparse(&room.dir.join(format!("quorum-{number}.img")), room.region);
    let (socket, second_socket) = (place("1.sock"), place("2.sock"));
    let (mut server, mut child) = if between == Between::Unix {
        (
            unix(&second_socket),
            format!("server.type=unix,server.path={}", second_socket.display()),
        )
    } else {
        let (host, port) = (&ends.address, free_port()?);
        (
            format!("addr.type=inet,addr.host={host},addr.port={port}"),
            format!("server.type=inet,server.host={host},server.port={port}"),
        )
    };
    let credentials = match between {
        Between::Psk => Some(tls::pre_shared_key(&place("psk"))?),
        Between::X509 => Some(tls::certificates(&place("x509"), &ends.address)?),
        _ => None,
    };
    if credentials.is_some() {
        server += ",tls-creds=tls";
        child += ",tls-creds=tls";
    }
    let mut second = process::within(&ends.within[1], &qemu()?);
    if let Some(credentials) = &credentials {
        second.args(["--object", &credentials.server]);
    }
    second.args(["--blockdev", &file_node("disk", &image(2)?)]);
    export(&mut second, &server, "disk");
    second.args(["--pidfile", &place("2.pid").display().to_string()]);
    let mut second = Process::start(&format!("{tag}-2"), &mut second, &room.dir)?;
    // The file is written when everything asked for is set up.
    second.wait_for("pid file", START, || place("2.pid").exists())?;
    let mut first = process::within(&ends.within[0], &qemu()?);
    if let Some(credentials) = &credentials {
        first.args(["--object", &credentials.client]);
    }
    first.args(["--blockdev", &file_node("here", &image(1)?)]);
    first.args([
        "--blockdev",
        &format!("driver=nbd,node-name=there,export=disk,{child}"),
    ]);
    first.args([
        "--blockdev",
        "driver=quorum,node-name=disk,vote-threshold=2,children.0=here,children.1=there",
    ]);
    export(&mut first, &unix(&socket), "disk");
    let first = start(&format!("{tag}-1"), &mut first, &socket, room)?;
    let watched = vec![
        ("primary".to_owned(), first.id()),
        ("secondary".to_owned(), second.id()),
    ];
    let processes = vec![second, first];
    Served::connect(ends.name, processes, watched, &socket, "disk", room)
}

fn qemu() -> Result<Command, BenchError> {
    process::program("qemu-storage-daemon").map(Command::new)
}

/// No lock: its file is another candidate's too, and only one of them is at work.
fn file_node(name: &str, file: &Path) -> String {
    format!(
        "driver=file,node-name={name},filename={},cache.direct=on,aio=io_uring,locking=off",
        file.display()
    )
}

fn unix(socket: &Path) -> String {
    format!("addr.type=unix,addr.path={}", socket.display())
}

fn export(command: &mut Command, server: &str, node: &str) {
    command.args(["--nbd-server", server]).args([
        "--export",
        &format!("type=nbd,id=export,node-name={node},name={node},writable=on"),
    ]);
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16, BenchError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(BenchError::io("a free port"))?;
    let address = listener
        .local_addr()
        .map_err(BenchError::io("a free port"))?;
    Ok(address.port())
}
