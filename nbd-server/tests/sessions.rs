//! Connections over their lives: many, stalled, cut off, drained, adopted.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kagami_nbd_server::negotiate::Terms;
use kagami_nbd_server::proto::{chunk, cmd, cmd_flag, opt, rep};
use kagami_nbd_server::{
    AdoptFault, ClientSocket, DeviceInfo, Errno, Limits, ListenFault, Listener, Request, TlsPolicy,
};
use tokio::sync::Semaphore;

use support::client::{
    Client, Reply, context_data, export_data, option_bytes, request_bytes, tcp_stream, unix_stream,
    write_bytes,
};
use support::{DEADLINE, SIZE, TestServer};

#[test]
fn requests_run_side_by_side_and_flags_arrive() {
    let server = TestServer::start();
    server.run(|bench| {
        bench.device("disk").hold.set(true);
        *bench.device("disk").log.borrow_mut() = Some(Vec::new());
    });
    let mut client = Client::connected(&server.path, "disk", false);
    client.send(&write_bytes(cmd_flag::FUA, 1, 0, &[7; 512]));
    client.request(cmd_flag::FUA, cmd::TRIM, 2, 4096, 8192);
    let zero_flags = cmd_flag::FUA | cmd_flag::NO_HOLE;
    client.request(zero_flags, cmd::WRITE_ZEROES, 3, 0, 512);
    // FUA is allowed with any command.
    client.request(cmd_flag::FUA, cmd::FLUSH, 4, 0, 0);
    client.request(cmd_flag::FUA, cmd::CACHE, 5, 0, 512);
    client.request(cmd_flag::FUA, cmd::READ, 6, 1 << 20, 512);
    server.wait_for("six requests", |bench| {
        bench.device("disk").held.borrow().len() == 6
    });
    let log = server.run(|bench| bench.device("disk").log.take().expect("a log"));
    assert_eq!(
        log,
        [
            Request::Write {
                offset: 0,
                data: vec![7; 512].into(),
                fua: true
            },
            Request::Trim {
                offset: 4096,
                len: 8192,
                fua: true
            },
            Request::WriteZeroes {
                offset: 0,
                len: 512,
                fua: true,
                no_hole: true,
                fast: false
            },
            Request::Flush,
            Request::Cache {
                offset: 0,
                len: 512
            },
            Request::Read {
                offset: 1 << 20,
                len: 512
            },
        ]
    );
    server.run(|bench| bench.device("disk").release());
    // Released newest first, and answered so.
    assert_eq!(client.error(6), 0);
    client.take(512);
    for cookie in [5, 4, 3, 2, 1] {
        assert_eq!(client.error(cookie), 0);
    }
}

#[test]
fn large_writes_and_pipelines_arrive_whole() {
    let server = TestServer::start();
    let mut client = Client::connected(&server.path, "disk", false);
    // Lengths around the reader's buffer, back to back, so that headers straddle it.
    let lens = [
        512,
        65_536,
        65_024,
        16_384,
        15_872,
        4096,
        1 << 20,
        32 << 20,
        512,
    ];
    let payload: Vec<u8> = (0..33_u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut offset = 0;
    for (cookie, &len) in lens.iter().enumerate() {
        client.send(&write_bytes(0, cookie as u64, offset, &payload[..len]));
        offset += len as u64;
    }
    for cookie in 0..lens.len() as u64 {
        assert_eq!(client.error(cookie), 0);
    }
    let mut offset = 0;
    for &len in &lens {
        client.request(0, cmd::READ, 1, offset, len as u32);
        assert_eq!(client.error(1), 0);
        assert!(
            client.take(len) == payload[..len],
            "{len} bytes at {offset}"
        );
        offset += len as u64;
    }
}

#[test]
fn a_lost_completion_is_an_error_and_not_a_hang() {
    let server = TestServer::start();
    server.run(|bench| bench.device("disk").hold.set(true));
    let mut client = Client::connected(&server.path, "disk", true);
    client.request(0, cmd::READ, 1, 0, 512);
    server.wait_for("the request", |bench| {
        bench.device("disk").held.borrow().len() == 1
    });
    server.run(|bench| bench.device("disk").held.borrow_mut().clear());
    assert_eq!(client.error(1), Errno::Io as u32);
}

/// A client that doesn't read its replies: bounded memory, others unharmed, cut off in the end.
#[test]
fn a_client_that_stops_reading_is_bounded_and_cut_off() {
    let limits = Limits {
        max_in_flight: 64,
        max_in_flight_bytes: 8 << 20,
        stall_timeout: Some(Duration::from_millis(600)),
        ..Limits::default()
    };
    let server = TestServer::with(limits, TlsPolicy::Off);
    let mut stuck = Client::connected(&server.path, "disk", false);
    let mut requests = Vec::new();
    for cookie in 0..2000 {
        requests.extend(request_bytes(0, cmd::READ, cookie, 0, 1 << 20));
    }
    stuck.send(&requests);
    server.wait_for("some reads", |bench| {
        bench.device("disk").submitted.get() >= 8
    });
    let mut other = Client::connected(&server.path, "disk", false);
    for _ in 0..100 {
        other.expect_alive();
    }
    let submitted = server.run(|bench| bench.device("disk").submitted.get());
    assert!(submitted < 100 + 30, "{submitted} requests were let in");
    server.wait_for("the stuck client cut off", |bench| {
        bench.server.sessions().len() == 1
    });
    other.expect_alive();
}

/// The same with a payload that never comes to its end, and with a handshake that doesn't.
#[test]
fn a_client_that_stops_sending_is_cut_off() {
    let limits = Limits {
        negotiation_timeout: Duration::from_millis(300),
        stall_timeout: Some(Duration::from_millis(300)),
        ..Limits::default()
    };
    let server = TestServer::with(limits, TlsPolicy::Off);
    let mut half = Client::connected(&server.path, "disk", false);
    half.send(&write_bytes(0, 1, 0, &[1; 4096])[..2000]);
    let mut idle = Client::connected(&server.path, "disk", false);
    let mut silent = Client::unix(&server.path);
    let mut slow = Client::greeted(&server.path);
    slow.send(&option_bytes(opt::LIST, &[])[..7]);
    for client in [&mut half, &mut silent, &mut slow] {
        client.expect_closed();
    }
    // Idle is no fault: this one stays.
    idle.expect_alive();
    assert_eq!(server.run(|bench| bench.device("disk").submitted.get()), 1);
}

/// A client that is slow but moves is left alone.
#[test]
fn a_slow_client_is_not_cut_off() {
    let limits = Limits {
        stall_timeout: Some(Duration::from_secs(2)),
        ..Limits::default()
    };
    let server = TestServer::with(limits, TlsPolicy::Off);
    let mut slow = Client::connected(&server.path, "disk", false);
    let start = Instant::now();
    let bytes = write_bytes(0, 1, 0, &[1; 4096]);
    // Pieces a tenth of a second apart: more than the time-out in all.
    for piece in bytes.chunks(bytes.len().div_ceil(25)) {
        slow.send(piece);
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert!(start.elapsed() > Duration::from_secs(2));
    assert_eq!(slow.error(1), 0);
}

#[test]
fn no_more_in_flight_than_allowed() {
    let limits = Limits {
        max_in_flight: 10,
        ..Limits::default()
    };
    let server = TestServer::with(limits, TlsPolicy::Off);
    server.run(|bench| bench.device("disk").hold.set(true));
    let mut client = Client::connected(&server.path, "disk", false);
    for cookie in 0..50 {
        client.send(&write_bytes(0, cookie, cookie * 512, &[1; 512]));
    }
    server.wait_for("ten", |bench| {
        bench.device("disk").held.borrow().len() == 10
    });
    // A round trip on another connection: the server has had its chance to take more.
    server.run(|bench| bench.add("other", DeviceInfo::new(SIZE)));
    Client::connected(&server.path, "other", false).expect_alive();
    assert_eq!(
        server.run(|bench| bench.device("disk").held.borrow().len()),
        10
    );
    server.run(|bench| bench.device("disk").release());
    let mut seen: Vec<u64> = (0..50)
        .map(|_| match client.reply() {
            Reply::Simple { error: 0, cookie } => cookie,
            other => panic!("{other:?}"),
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
}

/// Its answers are in no pool.
#[test]
fn few_block_status_are_in_flight() {
    let server = TestServer::start();
    server.run(|bench| bench.device("disk").hold.set(true));
    let mut client = Client::greeted(&server.path);
    client.expect_ack(opt::STRUCTURED_REPLY, &[]);
    let queries = context_data("disk", &["base:allocation", "kagami:dirty"]);
    client.expect_ack(opt::SET_META_CONTEXT, &queries);
    client.go("disk");
    for cookie in 0..50 {
        client.request(0, cmd::BLOCK_STATUS, cookie, 0, 4096);
    }
    server.wait_for("four", |bench| {
        bench.device("disk").held.borrow().len() == 4
    });
    // A round trip on another connection: the server has had its chance to take more.
    server.run(|bench| bench.add("other", DeviceInfo::new(SIZE)));
    Client::connected(&server.path, "other", false).expect_alive();
    assert_eq!(
        server.run(|bench| bench.device("disk").held.borrow().len()),
        4
    );
    server.run(|bench| bench.device("disk").release());
    for _ in 0..100 {
        assert!(matches!(
            client.reply(),
            Reply::Chunk {
                kind: chunk::BLOCK_STATUS,
                ..
            }
        ));
    }
}

/// The device's memory is back-pressure: a write waits for it, other clients read meanwhile.
#[test]
fn writes_wait_for_buffers() {
    let server = TestServer::start();
    server.run(|bench| {
        let device = bench.device("disk");
        *device.buffers.borrow_mut() = Arc::new(Semaphore::new(1));
        device.hold.set(true);
    });
    let mut writer = Client::connected(&server.path, "disk", false);
    for cookie in 0..4 {
        writer.send(&write_bytes(0, cookie, cookie * 4096, &[1; 4096]));
    }
    server.wait_for("the first write", |bench| {
        bench.device("disk").held.borrow().len() == 1
    });
    // The second waits for memory; a reader needs none.
    let mut reader = Client::connected(&server.path, "disk", false);
    reader.request(0, cmd::READ, 9, 0, 512);
    server.wait_for("the read", |bench| {
        bench.device("disk").held.borrow().len() == 2
    });
    assert_eq!(server.run(|bench| bench.device("disk").submitted.get()), 2);
    server.run(|bench| bench.device("disk").release());
    assert_eq!(reader.error(9), 0);
    for cookie in 0..4 {
        assert_eq!(writer.error(cookie), 0);
    }
}

/// When a client dies, what the device has runs on, its opening lasts as long, nothing more comes.
#[test]
fn a_dead_clients_requests_run_on() {
    let server = TestServer::start();
    server.run(|bench| bench.device("disk").hold.set(true));
    let mut client = Client::connected(&server.path, "disk", false);
    client.send(&write_bytes(0, 1, 0, &[5; 4096]));
    server.wait_for("the write", |bench| {
        bench.device("disk").held.borrow().len() == 1
    });
    drop(client);
    // Another client still gets through, and the dead one still counts.
    Client::greeted(&server.path).expect_ack(opt::LIST, &[]);
    server.run(|bench| {
        let device = bench.device("disk");
        assert_eq!(device.openings.get(), 1);
        device.release();
    });
    server.wait_for("the end", |bench| bench.device("disk").openings.get() == 0);
    let bytes = server.run(|bench| bench.device("disk").memory.peek(0, 4096));
    assert_eq!(bytes, [5; 4096]);
}

#[test]
fn disc_waits_for_what_is_in_flight() {
    let server = TestServer::start();
    server.run(|bench| bench.device("disk").hold.set(true));
    let mut client = Client::connected(&server.path, "disk", false);
    client.send(&write_bytes(0, 1, 0, &[5; 4096]));
    client.request(0, cmd::DISC, 2, 0, 0);
    server.wait_for("the write", |bench| {
        bench.device("disk").held.borrow().len() == 1
    });
    server.run(|bench| bench.device("disk").release());
    assert_eq!(client.error(1), 0);
    client.expect_closed();
}

/// Cut off: what is unread in the socket is never carried out (facts about the kernel's re-sent
/// requests), and the end is told only when the device is done.
#[test]
fn an_aborted_session_submits_nothing_more() {
    let limits = Limits {
        max_in_flight: 2,
        ..Limits::default()
    };
    let server = TestServer::with(limits, TlsPolicy::Off);
    server.run(|bench| bench.device("disk").hold.set(true));
    let mut client = Client::connected(&server.path, "disk", false);
    for cookie in 0..6 {
        client.send(&write_bytes(0, cookie, cookie * 4096, &[5; 4096]));
    }
    server.wait_for("two writes", |bench| {
        bench.device("disk").held.borrow().len() == 2
    });
    let ended = server.run(|bench| {
        let session = bench.server.sessions().remove(0);
        assert_eq!(session.export().as_deref(), Some("disk"));
        session.abort();
        session.has_ended()
    });
    assert!(!ended, "two writes are in flight");
    client.expect_closed();
    server.run(|bench| bench.device("disk").release());
    server.wait_for("the end", |bench| bench.server.sessions().is_empty());
    assert_eq!(server.run(|bench| bench.device("disk").submitted.get()), 2);
}

/// Stop accepting, finish what is in flight, refuse what is new.
#[test]
fn shutdown_drains() {
    // Long enough for a client that haggles on a busy machine.
    let limits = Limits {
        linger: Duration::from_secs(1),
        ..Limits::default()
    };
    let server = TestServer::with(limits, TlsPolicy::Off);
    server.run(|bench| bench.device("disk").hold.set(true));
    let mut busy = Client::connected(&server.path, "disk", true);
    let mut idle = Client::connected(&server.path, "disk", true);
    let mut haggling = Client::greeted(&server.path);
    haggling.expect_ack(opt::LIST, &[]);
    busy.send(&write_bytes(0, 1, 0, &[5; 4096]));
    server.wait_for("the write", |bench| {
        bench.device("disk").held.borrow().len() == 1
    });
    let (done, wait) = std::sync::mpsc::channel();
    server.post(move |bench| {
        tokio::task::spawn_local(async move {
            bench.server.shut_down(DEADLINE).await;
            let _ = done.send(());
        });
    });
    let start = Instant::now();
    while UnixStream::connect(&server.path).is_ok() {
        assert!(start.elapsed() < DEADLINE, "it still listens");
    }
    let replies = haggling.option(opt::GO, &export_data("disk", &[]));
    assert_eq!(replies[0].0, rep::ERR_SHUTDOWN);
    haggling.expect_ack(opt::ABORT, &[]);
    haggling.expect_closed();
    idle.expect_closed();
    // The write is held, so this connection is open; what comes now is refused.
    busy.send(&write_bytes(0, 2, 0, &[6; 4096]));
    assert_eq!(busy.error(2), Errno::Shutdown as u32);
    server.run(|bench| bench.device("disk").release());
    assert_eq!(busy.error(1), 0);
    busy.expect_closed();
    wait.recv_timeout(DEADLINE).expect("shut down");
    assert_eq!(
        server.run(|bench| bench.device("disk").memory.peek(0, 1)),
        [5]
    );
    assert!(UnixStream::connect(&server.path).is_err(), "nobody listens");
    assert!(!server.path.exists(), "the socket's file is gone");
}

#[test]
fn shutdown_cuts_off_after_its_grace() {
    let server = TestServer::start();
    server.run(|bench| bench.device("disk").hold.set(true));
    let mut busy = Client::connected(&server.path, "disk", false);
    busy.request(0, cmd::READ, 1, 0, 512);
    server.wait_for("the read", |bench| {
        bench.device("disk").held.borrow().len() == 1
    });
    let (done, wait) = std::sync::mpsc::channel();
    server.post(move |bench| {
        tokio::task::spawn_local(async move {
            bench.server.shut_down(Duration::from_millis(50)).await;
            let _ = done.send(());
        });
    });
    busy.expect_closed();
    assert!(wait.try_recv().is_err(), "the device still has a request");
    server.run(|bench| bench.device("disk").release());
    wait.recv_timeout(DEADLINE).expect("shut down");
}

/// A thousand connections at once, each served; the next is turned away; memory stays small.
#[test]
fn a_thousand_connections() {
    let limit = rustix::process::Resource::Nofile;
    let mut files = rustix::process::getrlimit(limit);
    files.current = files.maximum;
    rustix::process::setrlimit(limit, files).expect("more descriptors");
    let server = TestServer::start();
    let mut clients: Vec<Client> = Vec::new();
    for i in 0..1000 {
        let mut client = if i % 2 == 0 {
            Client::unix(&server.path)
        } else {
            Client {
                stream: Box::new(tcp_stream(server.tcp)),
            }
        };
        client.greet(3);
        client.go("disk");
        clients.push(client);
    }
    let mut refused = unix_stream(&server.path);
    let mut rest = Vec::new();
    assert_eq!(refused.read_to_end(&mut rest).expect("closed"), 0);
    for (i, client) in clients.iter_mut().enumerate() {
        client.send(&write_bytes(0, i as u64, i as u64 * 4096, &[i as u8; 4096]));
    }
    for (i, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.error(i as u64), 0);
    }
    for (i, client) in clients.iter_mut().enumerate() {
        client.request(0, cmd::READ, 1, (999 - i as u64) * 4096, 4096);
    }
    // All writes were answered before the first read was sent, on whichever connection.
    for (i, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.error(1), 0);
        assert_eq!(client.take(4096), [(999 - i) as u8; 4096]);
    }
    assert_eq!(server.run(|bench| bench.server.sessions().len()), 1000);
    drop(clients);
    server.wait_for("all gone", |bench| bench.server.sessions().is_empty());
    Client::connected(&server.path, "disk", false).expect_alive();
}

/// Bytes of a generator with a fixed seed, in place of each phase of the conversation.
#[test]
fn garbage_ends_its_own_connection_alone() {
    let server = TestServer::start();
    let mut good = Client::connected(&server.path, "disk", true);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..200 {
        let mut client = match round % 4 {
            0 => Client::unix(&server.path),
            1 => Client::greeted(&server.path),
            2 => Client::connected(&server.path, "disk", false),
            _ => Client::connected(&server.path, "disk", true),
        };
        let len = random() % 5000;
        let mut bytes: Vec<u8> = (0..len).map(|_| random() as u8).collect();
        if round % 3 == 0 && bytes.len() > 16 {
            // Past the magic words, so that more is reached.
            let magic: &[u8] = if round % 4 < 2 {
                b"IHAVEOPT\0\0\0\x07\0\0"
            } else {
                &[0x25, 0x60, 0x95, 0x13, 0, 0, 0]
            };
            bytes[..magic.len()].copy_from_slice(magic);
        }
        let _ = client.stream.write_all(&bytes);
        drop(client);
        if round % 20 == 0 {
            good.expect_alive();
        }
    }
    good.expect_alive();
    drop(good);
    server.wait_for("all gone", |bench| bench.server.sessions().is_empty());
}

/// A socket that is past its handshake, as the kernel's is.
#[test]
fn an_adopted_socket_is_served() {
    let server = TestServer::start();
    let adopt = |socket: UnixStream, export: &'static str| {
        server.run(move |bench| {
            let limits = Limits {
                stall_timeout: None,
                ..Limits::default()
            };
            let terms = Terms::default();
            bench
                .server
                .adopt(ClientSocket::Unix(socket), export, terms, limits)
                .map(|session| {
                    assert!(!session.has_ended());
                    session.id()
                })
        })
    };
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let id = adopt(theirs, "disk").expect("served");
    ours.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    let mut client = Client {
        stream: Box::new(ours),
    };
    client.send(&write_bytes(0, 1, 0, &[1; 512]));
    assert_eq!(client.error(1), 0);
    client.expect_alive();
    assert_eq!(server.run(|bench| bench.server.sessions()[0].id()), id);
    drop(client);
    server.wait_for("the end", |bench| bench.server.sessions().is_empty());
    let (_ours, theirs) = UnixStream::pair().expect("a pair");
    assert!(matches!(
        adopt(theirs, "nothing"),
        Err(AdoptFault::Refused(_))
    ));
}

#[test]
fn unix_sockets_are_taken_over_only_from_the_dead() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("nbd.sock");
    let listen = |path: &Path| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let _inside = runtime.enter();
        Listener::unix(path, 0o640).map(|listener| (runtime, listener))
    };
    std::fs::write(&path, "precious").expect("written");
    assert!(matches!(listen(&path), Err(ListenFault::NotASocket(_))));
    assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
    std::fs::remove_file(&path).expect("removed");

    let alive = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    assert!(matches!(listen(&path), Err(ListenFault::InUse(_))));
    drop(alive); // leaves its file behind, as a killed daemon does
    let (_runtime, ours) = listen(&path).expect("taken over");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&path).expect("there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o640);
    UnixStream::connect(&path).expect("somebody listens");
    drop(ours);
    assert!(!path.exists());
    let long = dir.path().join("n".repeat(100));
    assert!(matches!(
        listen(&long),
        Err(ListenFault::PathTooLong { .. })
    ));
}
