//! A client that keeps what is not answered and sends it again on another socket, as the kernel does.

mod support;

use std::io::Read as _;
use std::os::unix::net::UnixStream;

use kagami_nbd_server::negotiate::Terms;
use kagami_nbd_server::{ClientSocket, Errno, IoError, Limits, Request, SessionHandle};

use support::client::{Client, write_bytes};
use support::{Bench, DEADLINE, TestServer};

/// The client's end of a socket that is served.
fn attach(server: &TestServer) -> Client {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    server.run(move |bench| {
        let socket = ClientSocket::Unix(theirs);
        let adopted = bench
            .server
            .adopt(socket, "disk", Terms::default(), Limits::kernel());
        adopted.map(drop).expect("served");
    });
    ours.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    Client {
        stream: Box::new(ours),
    }
}

fn session(bench: &Bench) -> SessionHandle {
    bench.server.sessions().pop().expect("a session")
}

/// Nothing but the end of the stream is left.
fn expect_silence(client: &mut Client) {
    let mut rest = Vec::new();
    // Unread requests make it a reset, which says no more.
    let _ = client.stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "it was told {rest:?}");
}

/// The offsets of the writes that reached the device.
fn written(server: &TestServer) -> Vec<u64> {
    server.run(|bench| {
        let log = bench.device("disk").log.borrow_mut().take();
        let log = log.unwrap_or_default();
        log.iter()
            .filter_map(|request| match request {
                Request::Write { offset, .. } => Some(*offset),
                _ => None,
            })
            .collect()
    })
}

fn with_log(hold: bool) -> TestServer {
    let server = TestServer::start();
    server.run(move |bench| {
        let device = bench.device("disk");
        *device.log.borrow_mut() = Some(Vec::new());
        device.hold.set(hold);
    });
    server
}

#[test]
fn what_is_refused_for_the_moment_is_never_said() {
    for code in [Errno::Perm, Errno::Shutdown] {
        let server = with_log(false);
        server.run(move |bench| {
            let refusal = IoError::new(code, "not Primary");
            *bench.device("disk").fault.borrow_mut() = Some((0, refusal));
        });
        let mut client = attach(&server);
        client.send(&write_bytes(0, 1, 0, &[1; 512]));
        expect_silence(&mut client);
        server.wait_for("its end", |bench| bench.server.sessions().is_empty());
        // What is wrong for good is said.
        server.run(|bench| {
            let fault = IoError::new(Errno::Io, "the disk is broken");
            *bench.device("disk").fault.borrow_mut() = Some((0, fault));
        });
        let mut client = attach(&server);
        client.send(&write_bytes(0, 1, 0, &[1; 512]));
        assert_eq!(client.error(1), 5);
        server.run(|bench| *bench.device("disk").fault.borrow_mut() = None);
        client.expect_alive();
    }
}

#[test]
fn a_session_that_leaves_answers_what_it_began_and_reads_nothing_more() {
    let server = with_log(true);
    let mut client = attach(&server);
    client.send(&write_bytes(0, 1, 0, &[1; 512]));
    server.wait_for("the first", |bench| {
        bench.device("disk").submitted.get() == 1
    });
    server.run(|bench| session(&bench).leave());
    // These come after the word: another session is asked for them.
    client.send(&write_bytes(0, 2, 4096, &[2; 512]));
    server.run(|bench| {
        assert!(!session(&bench).has_ended(), "the first is not done yet");
        bench.device("disk").release();
    });
    assert_eq!(client.error(1), 0);
    expect_silence(&mut client);
    server.wait_for("its end", |bench| bench.server.sessions().is_empty());
    assert_eq!(written(&server), [0]);
}

#[test]
fn a_session_that_is_cut_has_ended_only_when_the_device_is_done() {
    let server = with_log(true);
    let mut client = attach(&server);
    client.send(&write_bytes(0, 1, 0, &[1; 512]));
    server.wait_for("the first", |bench| {
        bench.device("disk").submitted.get() == 1
    });
    server.run(|bench| session(&bench).abort());
    expect_silence(&mut client);
    // The old write is still on its way: nothing may be sent again yet.
    server.run(|bench| {
        assert!(!session(&bench).has_ended());
        bench.device("disk").release();
    });
    server.wait_for("its end", |bench| bench.server.sessions().is_empty());
    assert_eq!(written(&server), [0]);
}

/// The kernel takes replies when it has memory for them.
#[test]
fn a_reply_may_be_left_as_long_as_the_client_likes() {
    assert_eq!(Limits::kernel().stall_timeout, None);
    assert!(Limits::kernel().client_resends && !Limits::default().client_resends);
}
