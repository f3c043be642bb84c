//! Two nodes hear each other over each kind of line, and nobody else.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use super::*;
use crate::core::Phase;
use crate::core::durable::Stamp;

/// Something that should come has come within.
const PATIENCE: Duration = Duration::from_secs(20);

fn snapshot(incarnation: u64, seq: u64) -> Snapshot {
    Snapshot {
        incarnation,
        echo: 0,
        met: 0,
        seq,
        revision: 1,
        phase: Phase::Running,
        suspended: Stamp::default(),
        shutdown: Stamp::default(),
        groups: Vec::new(),
    }
}

fn cluster(heartbeat: &str) -> Cluster {
    let text = format!(
        r#"
[cluster]
name = "shop"
revision = 1
nodes = ["alpha", "beta"]
[arbiter]
kind = "none"
accepted-risk = "both nodes may run a group at once and their data may differ"
[heartbeat.line]
priority = 1
interval = "20ms"
timeout = "2s"
{heartbeat}
[group.g]
nodes = ["alpha", "beta"]
[group.g.resource.r]
type = "exec"
start = "/bin/true"
"#
    );
    Cluster::parse(Path::new("cluster.toml"), &text).expect("a right configuration")
}

fn key(byte: u8) -> Key {
    Key::new(&[byte; 32])
}

fn start(cluster: &Cluster, me: Node, key: &Key) -> (Heartbeats, UnboundedReceiver<Heard>) {
    let (told, heard) = unbounded_channel();
    let listener: Listener = Arc::new(move |what| {
        let _ = told.send(what);
    });
    let started = Heartbeats::start(cluster, me, key, &listener).expect("started");
    (started, heard)
}

async fn beat(heard: &mut UnboundedReceiver<Heard>) -> Snapshot {
    let wait = async {
        loop {
            if let Heard::Beat { message, .. } = heard.recv().await.expect("a listener") {
                return *message;
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("heard in time")
}

async fn alert(heard: &mut UnboundedReceiver<Heard>, words: &str) {
    let wait = async {
        loop {
            match heard.recv().await.expect("a listener") {
                Heard::Alert(alert) if alert.to_string().contains(words) => return,
                other => tracing::debug!("{other:?}"),
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("told in time");
}

/// Sends until the other side has heard it: a line may still be on its way up.
async fn exchange(
    from: &mut Heartbeats,
    to: &mut UnboundedReceiver<Heard>,
    incarnation: u64,
    first: u64,
) -> u64 {
    let mut seq = first;
    let sending = async {
        loop {
            from.send(0, &snapshot(incarnation, seq));
            if let Ok(heard) = timeout(Duration::from_millis(50), beat(to)).await {
                assert_eq!(heard.incarnation, incarnation);
                assert!(heard.seq <= seq);
                return seq;
            }
            seq += 1;
        }
    };
    timeout(PATIENCE, sending).await.expect("heard in time")
}

fn free_ports() -> [u16; 2] {
    let sockets = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
    sockets.map(|socket| socket.local_addr().expect("bound").port())
}

#[tokio::test]
async fn by_datagrams_and_what_strangers_say_is_refused() {
    let [a, b] = free_ports();
    let cluster = cluster(&format!(
        "type = \"lan\"\naddresses = {{ alpha = \"127.0.0.1:{a}\", beta = \"127.0.0.1:{b}\" }}"
    ));
    let (mut alpha, mut by_alpha) = start(&cluster, 0, &key(1));
    let (mut beta, mut by_beta) = start(&cluster, 1, &key(1));
    exchange(&mut alpha, &mut by_beta, 5, 1).await;
    exchange(&mut beta, &mut by_alpha, 9, 1).await;

    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let send = |bytes: &[u8]| {
        let to = format!("127.0.0.1:{b}");
        stranger.send_to(bytes, to).expect("sent");
    };
    let seal = |key: Key, name: &str| Seal::new(key, name, "line", 0);
    send(b"good day");
    alert(&mut by_beta, "no heartbeat").await;
    let frame = seal(key(2), "shop").close(&snapshot(6, 1)).expect("short");
    send(&frame);
    alert(&mut by_beta, "a stranger").await;
    let frame = seal(key(1), "bank").close(&snapshot(6, 1)).expect("short");
    send(&frame);
    alert(&mut by_beta, "another cluster").await;
    // Recorded, and sent again; and a higher number of an earlier life.
    let recorded = seal(key(1), "shop").close(&snapshot(5, 1)).expect("short");
    send(&recorded);
    alert(&mut by_beta, "heard before").await;
    let last = exchange(&mut alpha, &mut by_beta, 6, 1).await;
    let early = seal(key(1), "shop").close(&snapshot(5, 9000));
    send(&early.expect("short"));
    alert(&mut by_beta, "from before").await;
    // None of it has kept the other node from being heard.
    exchange(&mut alpha, &mut by_beta, 6, last + 1).await;
}

#[tokio::test]
async fn over_a_serial_line_with_noise() {
    // Two ttys and a cable between them, which a thread is.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ends: Vec<(fs::File, PathBuf)> = (0..2)
        .map(|_| {
            let master = openpt(flags).expect("a pty");
            grantpt(&master).expect("granted");
            unlockpt(&master).expect("unlocked");
            let name = ptsname(&master, Vec::new()).expect("named");
            let name = PathBuf::from(name.into_string().expect("a path"));
            (fs::File::from(master), name)
        })
        .collect();
    // A tty that nobody has open would hang up.
    let _kept: Vec<fs::File> = ends
        .iter()
        .map(|(_, name)| {
            fs::File::options()
                .read(true)
                .write(true)
                .open(name)
                .expect("open")
        })
        .collect();
    let cluster = cluster(&format!(
        "type = \"serial\"\ndevices = {{ alpha = \"{}\", beta = \"{}\" }}",
        ends[0].1.display(),
        ends[1].1.display()
    ));
    for (from, to) in [(0, 1), (1, 0)] {
        let mut from = ends[from].0.try_clone().expect("cloned");
        let mut to = ends[to].0.try_clone().expect("cloned");
        std::thread::spawn(move || {
            let mut buffer = [0; 100];
            let mut turn = 0;
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                turn += 1;
                if turn % 3 == 0 && to.write_all(b"~~noise~~").is_err() {
                    return;
                }
                if to.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        });
    }
    let (mut alpha, mut by_alpha) = start(&cluster, 0, &key(1));
    let (mut beta, mut by_beta) = start(&cluster, 1, &key(1));
    let mut last = 0;
    for _ in 0..10 {
        last = exchange(&mut alpha, &mut by_beta, 5, last + 1).await;
    }
    exchange(&mut beta, &mut by_alpha, 9, 1).await;
}

#[tokio::test]
async fn through_a_shared_file_and_nothing_else_is_overwritten() {
    // A file system that takes O_DIRECT: where this was built.
    let built = std::env::current_exe().expect("this program");
    let folder = tempfile::tempdir_in(built.with_file_name("")).expect("a folder");
    let path = folder.path().join("shared");
    fs::write(&path, b"somebody's data").expect("written");
    let shown = path.display();
    let cluster = cluster(&format!(
        "type = \"disk\"\npaths = {{ alpha = \"{shown}\", beta = \"{shown}\" }}"
    ));
    let (mut alpha, mut by_alpha) = start(&cluster, 0, &key(1));
    alpha.send(0, &snapshot(5, 1));
    alert(&mut by_alpha, "hold something else").await;
    let found = fs::read(&path).expect("read");
    assert!(found.starts_with(b"somebody's data"));
    // It is a new, empty file now; the line is tried again by itself.
    fs::write(&path, b"").expect("written");
    fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(16384))
        .expect("long enough");
    let (mut beta, mut by_beta) = start(&cluster, 1, &key(1));
    let last = exchange(&mut alpha, &mut by_beta, 5, 2).await;
    exchange(&mut beta, &mut by_alpha, 9, 1).await;
    // One slot is torn: the heartbeat before it is what counts, then the next one.
    let mut bytes = fs::read(&path).expect("read");
    bytes[100] ^= 0xff;
    fs::write(&path, &bytes).expect("written");
    exchange(&mut alpha, &mut by_beta, 5, last + 1).await;
}
