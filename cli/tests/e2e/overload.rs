//! More asked of a daemon than it can do: it takes the memory that docs/threat-model.md states, lets
//! the others wait, and serves them all in the end.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use kagami::commands::bench::client::Client;
use kagami::commands::demo::node::{Node, wait_until};
use kagami::commands::demo::scratch::{MIRROR, Scratch};
use rustix::process::Signal;

use crate::support::{DEADLINE, MIB, ok, pair};

const CLIENTS: u64 = 64;
const WRITES: u64 = 128;
const WRITE: u64 = 64 << 10;
/// Memory for payloads (docs/configuration.md, `buffers`).
const POOL: u64 = 64 * MIB;

/// Most memory that the daemon ever had resident, bytes.
fn peak(node: &Node) -> u64 {
    let id = node.daemon_id().expect("a daemon");
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let words: Vec<&str> = line.expect("VmHWM").split_whitespace().collect();
    words[0].parse::<u64>().expect("a number") << 10
}

#[test]
fn clients_at_full_depth_over_a_peer_that_stands_still_take_the_pool_and_no_more() {
    // The daemon inherits it.
    let limit = rustix::process::Resource::Nofile;
    let mut files = rustix::process::getrlimit(limit);
    files.current = files.maximum;
    rustix::process::setrlimit(limit, files).expect("more descriptors");
    let mut pair = pair("never", "64M");
    let socket = ok(Scratch::socket(&pair.nodes.alpha));
    let before = peak(&pair.nodes.alpha);
    ok(pair.nodes.beta.signal(Signal::STOP));
    let sent = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|nth| {
            let (socket, sent) = (socket.clone(), Arc::clone(&sent));
            thread::spawn(move || {
                let mut client = Client::connect(&socket, MIRROR, DEADLINE * 2)?;
                let data = vec![nth as u8; WRITE as usize];
                for write in 0..WRITES {
                    let offset = (nth * WRITES + write) * WRITE % (64 * MIB);
                    client.submit_write(offset, &data, false)?;
                    sent.fetch_add(WRITE, Ordering::Relaxed);
                }
                client.settle()
            })
        })
        .collect();
    // All that fits is taken, and then nothing more.
    let mut last = 0;
    let mut looks = 0;
    ok(wait_until("the clients", "a full daemon", DEADLINE, || {
        let now = sent.load(Ordering::Relaxed);
        looks = if now == std::mem::replace(&mut last, now) {
            looks + 1
        } else {
            0
        };
        (now > POOL / 2 && looks > 20).then_some(())
    }));
    let taken = sent.load(Ordering::Relaxed);
    assert!(taken < CLIENTS * WRITES * WRITE, "nobody had to wait");
    ok(pair.nodes.beta.signal(Signal::CONT));
    for client in clients {
        let end = client.join().expect("no panic");
        end.unwrap_or_else(|error| panic!("a client was not served: {error}"));
    }
    let grown = peak(&pair.nodes.alpha) - before;
    assert!(grown < POOL + 64 * MIB, "{} MiB more", grown / MIB);
    pair.stop_and_compare();
}

#[test]
fn a_thousand_connections_that_say_nothing_take_little_and_keep_nobody_out_of_the_control_channel()
{
    let mut pair = pair("never", "64M");
    let socket = ok(Scratch::socket(&pair.nodes.alpha));
    let before = peak(&pair.nodes.alpha);
    let silent: Vec<_> = (0..1_200)
        .filter_map(|_| UnixStream::connect(&socket).ok())
        .collect();
    assert!(silent.len() >= 1_000, "{}", silent.len());
    ok(pair.nodes.alpha.status());
    let grown = peak(&pair.nodes.alpha) - before;
    assert!(grown < 64 * MIB, "{} MiB for silence", grown / MIB);
    drop(silent);
    // There is room again.
    let mut client = ok(wait_until("a client", "room", DEADLINE, || {
        Client::connect(&socket, MIRROR, DEADLINE).ok()
    }));
    client.write(0, &[1; 4096]).expect("served");
    client.disconnect();
    pair.stop_and_compare();
}
