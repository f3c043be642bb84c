//! A client that keeps what is not answered and sends it again on another socket, as the kernel does.

mod support;

use std::io::Read as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kagami_nbd_server::negotiate::Terms;
use kagami_nbd_server::{ClientSocket, Errno, IoError, Limits, Request, SessionHandle};
use tokio::sync::Semaphore;

use support::client::{Client, write_bytes};
use support::{Bench, DEADLINE, TestServer};

/// The client's end of a socket that is served.
fn attach(server: &TestServer) -> Client {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    attach_pair(server, ours, theirs)
}

fn attach_pair(server: &TestServer, ours: UnixStream, theirs: UnixStream) -> Client {
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

/// Buffers are given in the order in which they were asked for; who has left is not among those that wait.
#[test]
fn a_session_that_leaves_gives_up_its_place_in_the_queue_for_memory() {
    let server = with_log(true);
    server.run(|bench| {
        *bench.device("disk").buffers.borrow_mut() = Arc::new(Semaphore::new(1));
    });
    let asked = |count| {
        server.wait_for("its place", move |bench| {
            bench.device("disk").asked.get() == count
        });
    };
    let mut leaving = attach(&server);
    leaving.send(&write_bytes(0, 1, 0, &[1; 512]));
    leaving.send(&write_bytes(0, 2, 4096, &[2; 512]));
    asked(2);
    let left = server.run(|bench| {
        let session = session(&bench);
        let id = session.id();
        session.leave();
        id
    });
    let mut other = attach(&server);
    other.send(&write_bytes(0, 3, 8192, &[3; 512]));
    asked(3);
    server.run(|bench| bench.device("disk").buffers.borrow().add_permits(1));
    server.wait_for("the other's write", |bench| {
        bench.device("disk").submitted.get() == 2
    });
    server.run(move |bench| {
        let sessions = bench.server.sessions();
        assert!(sessions.iter().any(|session| session.id() == left));
        bench.device("disk").release();
    });
    assert_eq!(other.error(3), 0);
    assert_eq!(leaving.error(1), 0);
    expect_silence(&mut leaving);
    assert_eq!(written(&server), [0, 8192]);
}

/// No write gets the memory that it asks for before the test gives some.
fn without_memory() -> TestServer {
    let server = with_log(false);
    server.run(|bench| {
        *bench.device("disk").buffers.borrow_mut() = Arc::new(Semaphore::new(0));
    });
    server
}

/// Its memory may never come, and nobody waits for it.
#[test]
fn a_client_that_goes_while_it_waits_for_memory_is_missed() {
    let server = without_memory();
    let mut client = attach(&server);
    client.send(&write_bytes(0, 1, 0, &[1; 512]));
    server.wait_for("its place", |bench| bench.device("disk").asked.get() == 1);
    drop(client);
    server.wait_for("its end", |bench| bench.server.sessions().is_empty());
    assert!(written(&server).is_empty());
}

/// Also where memory comes at the moment at which it goes.
#[test]
fn memory_that_comes_for_a_client_that_is_gone_carries_nothing_out() {
    let server = without_memory();
    let mut client = attach(&server);
    client.send(&write_bytes(0, 1, 0, &[1; 512]));
    server.wait_for("its place", |bench| bench.device("disk").asked.get() == 1);
    drop(client);
    server.run(|bench| bench.device("disk").buffers.borrow().add_permits(1));
    server.wait_for("its end", |bench| bench.server.sessions().is_empty());
    assert!(written(&server).is_empty());
}

/// The end of what a client sends is not its own end: it may wait for answers.
#[test]
fn a_client_that_only_says_no_more_is_served() {
    let server = without_memory();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let mut client = attach_pair(&server, ours.try_clone().expect("a second handle"), theirs);
    client.send(&write_bytes(0, 1, 0, &[1; 512]));
    ours.shutdown(Shutdown::Write).expect("half closed");
    server.wait_for("its place", |bench| bench.device("disk").asked.get() == 1);
    server.run(|bench| bench.device("disk").buffers.borrow().add_permits(1));
    assert_eq!(client.error(1), 0);
    expect_silence(&mut client);
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
