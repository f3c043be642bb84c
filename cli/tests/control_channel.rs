//! The control socket against everything that is not a command of kagami.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kagami_replicator::core::notice::Notice;
use kagami_replicator::core::state::{Connection, DiskState, Replication, Role, Time};
use kagami_replicator::core::status::Standing;
use support::{Node, eventually};

fn connect(node: &Node) -> UnixStream {
    let stream = UnixStream::connect(node.socket()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

/// Sends bytes and reads one answer.
fn say(node: &Node, bytes: &[u8]) -> String {
    let mut stream = connect(node);
    stream.write_all(bytes).unwrap();
    answer(&mut stream)
}

fn answer(stream: &mut UnixStream) -> String {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

fn framed(body: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(body.as_bytes());
    bytes
}

#[test]
fn only_the_owner_may_connect() {
    let node = Node::with_daemon();
    let mode = node.socket().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn garbage_is_told_and_harms_nobody() {
    let node = Node::with_daemon();
    for (bytes, words) in [
        (framed("{]"), "a message was not understood"),
        (framed(""), "a message was not understood"),
        (
            framed("{\"protocol\":1}"),
            "the request makes no sense: missing field `ask`",
        ),
        (
            framed("{\"protocol\":1,\"ask\":\"dance\"}"),
            "unknown variant `dance`",
        ),
        (
            framed(
                "{\"protocol\":1,\"ask\":{\"mirror\":{\"mirror\":\"pg\",\"order\":{\"promote\":{\"force\":\"yes\"}}}}}",
            ),
            "invalid type",
        ),
        (
            framed("{\"protocol\":99,\"ask\":\"whatever\",\"new\":1}"),
            "the command speaks version 99 of the control protocol, the daemon version 1: use the same build for both",
        ),
        (framed("[[[[[[[[[["), "a message was not understood"),
        (
            b"\xff\xff\xff\xff".to_vec(),
            "a message of 4294967295 bytes is longer than 65536",
        ),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "is longer than 65536"),
    ] {
        let said = say(&node, &bytes);
        assert!(said.starts_with("{\"not-understood\""), "{said}");
        assert!(said.contains(words), "{said}");
    }
    // A client that hangs up at once, in a length, in a body; after a request.
    for bytes in [
        &b""[..],
        b"\x02",
        b"\x40\0\0\0{",
        &framed("{\"protocol\":1,\"ask\":\"events\"}"),
    ] {
        connect(&node).write_all(bytes).unwrap();
    }
    assert!(node.engine.orders.lock().unwrap().is_empty());
    assert_eq!(node.run(&["status"]).code, 0);
}

#[test]
fn silent_clients_do_not_keep_others_out() {
    let node = Node::with_daemon();
    let _silent: Vec<UnixStream> = (0..40).map(|_| connect(&node)).collect();
    assert_eq!(node.run(&["status"]).code, 0);
}

/// Promotes, in one line.
const PROMOTE: &str = "{\"protocol\":1,\"ask\":{\"mirror\":{\"mirror\":\"pg\",\"order\":{\"promote\":{\"force\":false}}}}}";

/// Whether a question is answered; whoever has no place waits.
fn is_answered(node: &Node) {
    let said = say(node, &framed("{\"protocol\":1,\"ask\":\"status\"}"));
    assert!(said.starts_with("{\"status\""), "{said}");
}

#[test]
fn who_listens_keeps_nobody_from_asking() {
    let node = Node::with_daemon();
    let asks = [
        (
            "{\"rights\":{\"mirrors\":[\"pg\"],\"every_ms\":3600000,\"take_in_hand\":false}}",
            256,
        ),
        ("\"events\"", 64),
    ];
    let mut listeners = Vec::new();
    for (ask, most) in asks {
        let request = framed(&format!("{{\"protocol\":1,\"ask\":{ask}}}"));
        for _ in 0..most {
            let mut stream = connect(&node);
            stream.write_all(&request).unwrap();
            answer(&mut stream);
            listeners.push(stream);
        }
        is_answered(&node);
        let refused = say(&node, &request);
        assert!(refused.starts_with("{\"refused\""), "{refused}");
        // One goes, another comes.
        listeners.pop();
        eventually("a place is free", || {
            !say(&node, &request).starts_with("{\"refused\"")
        });
    }
}

#[test]
fn the_place_of_a_client_that_has_gone_is_free_and_its_order_goes_on() {
    let node = Node::with_daemon();
    node.engine.waits.send_replace(true);
    for _ in 0..80 {
        connect(&node).write_all(&framed(PROMOTE)).unwrap();
    }
    let mut waits = connect(&node);
    waits.write_all(&framed(PROMOTE)).unwrap();
    is_answered(&node);
    // None was taken back: who ended the command was told that it goes on.
    eventually("every order was given", || {
        node.engine.orders.lock().unwrap().len() == 81
    });
    node.engine.waits.send_replace(false);
    assert_eq!(answer(&mut waits), "\"done\"");
}

/// As `socat` leaves its end.
#[test]
fn a_client_that_sends_no_more_is_answered() {
    let node = Node::with_daemon();
    node.engine.waits.send_replace(true);
    let mut stream = connect(&node);
    stream.write_all(&framed(PROMOTE)).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    eventually("the order was given", || {
        node.engine.orders.lock().unwrap().len() == 1
    });
    node.engine.waits.send_replace(false);
    assert_eq!(answer(&mut stream), "\"done\"");
}

#[test]
fn a_second_daemon_is_refused_and_the_first_serves_on() {
    let node = Node::with_daemon();
    let ended = node.run(&["up", "--detach"]);
    assert_eq!(ended.code, 1);
    assert!(
        ended.err.starts_with(&format!(
            "not started: a daemon (process {}) answers on",
            std::process::id()
        )),
        "{}",
        ended.err
    );
    let ended = node.run(&["up"]);
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert!(ended.err.contains("answers on"), "{}", ended.err);
    assert_eq!(node.run(&["status"]).code, 0);
}

#[test]
fn a_daemon_that_does_not_answer_keeps_nobody_waiting_for_ever() {
    let node = Node::without_daemon();
    std::fs::create_dir_all(node.socket().parent().unwrap()).unwrap();
    let _mute = std::os::unix::net::UnixListener::bind(node.socket()).unwrap();
    let lock = std::fs::File::create(node.socket().with_extension("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    // Its own word is told, and who it is by the kernel's.
    let ended = node.run(&["up", "--detach"]);
    assert_eq!(ended.code, 1, "{}", ended.err);
    let who = format!("a daemon (process {}) answers on", std::process::id());
    assert!(ended.err.contains(&who), "{}", ended.err);
}

#[test]
fn what_the_system_refused_to_a_daemon_is_told_as_that() {
    let node = Node::without_daemon();
    let text = std::fs::read_to_string(node.file()).unwrap();
    // A folder can't be made in a file.
    let text = text.replace("/run\"", "/kagami.toml/run\"");
    std::fs::write(node.file(), text).unwrap();
    for arguments in [&["up"][..], &["up", "--detach"]] {
        let ended = node.run(arguments);
        assert_eq!(ended.code, 6, "{arguments:?}: {}", ended.err);
    }
}

#[test]
fn what_a_dead_daemon_left_is_replaced() {
    let node = Node::without_daemon();
    std::fs::create_dir_all(node.socket().parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(node.socket()).unwrap());
    let text = std::fs::read_to_string(node.file()).unwrap();
    let config = kagami::config::Config::parse(
        &node.file(),
        &text,
        &kagami::config::places::Places::of_root(),
    )
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let socket = kagami::daemon::socket::ControlSocket::bind(&config.node)
            .await
            .unwrap();
        assert!(UnixStream::connect(node.socket()).is_ok());
        drop(socket);
    });
    assert!(!node.socket().exists());
}

/// The next right that is told, as JSON.
fn right(stream: &mut UnixStream) -> serde_json::Value {
    let said: serde_json::Value = serde_json::from_str(&answer(stream)).unwrap();
    said["right"].clone()
}

#[test]
fn what_being_primary_rests_on_is_told_at_once_and_when_it_changes() {
    let node = Node::with_daemon();
    let mut stream = connect(&node);
    stream
        .write_all(&framed(
            "{\"protocol\":1,\"ask\":{\"rights\":{\"mirrors\":[\"pg\",\"other\"],\"every_ms\":3600000,\"take_in_hand\":false}}}",
        ))
        .unwrap();
    let first = right(&mut stream);
    assert_eq!(first["mirror"], "pg");
    assert_eq!(first["standing"], "session");
    assert_eq!(first["lease_ends_ms"], 9000);
    assert_eq!(first["in_sync"], true);
    // A lease that ended, told as a notice of the engine; and nothing again before it changes.
    node.engine.set(|status| {
        status.standing = Standing::Sought;
        status.connection = Connection::Connecting;
        status.replication = Replication::Off;
    });
    for _ in 0..2 {
        node.engine.notice(Notice::Released);
    }
    let second = right(&mut stream);
    assert_eq!(second["standing"], "sought");
    assert_eq!(second["in_sync"], false);
    node.engine.set(|status| status.standing = Standing::Alone);
    node.engine.notice(Notice::Released);
    assert_eq!(right(&mut stream)["standing"], "alone");
}

#[test]
fn a_copy_that_carries_a_peer_without_a_disk_is_told_as_the_only_one() {
    let node = Node::with_daemon();
    let mut stream = connect(&node);
    stream
        .write_all(&framed(
            "{\"protocol\":1,\"ask\":{\"rights\":{\"mirrors\":[\"pg\"],\"every_ms\":3600000,\"take_in_hand\":false}}}",
        ))
        .unwrap();
    let first = right(&mut stream);
    assert_eq!(
        [&first["in_sync"], &first["only_copy"], &first["diskless"]],
        [true, false, false]
    );
    // The Primary's disk has failed; this copy has no generation of its own yet.
    node.engine.set(|status| {
        status.standing = Standing::Secondary;
        status.role = Role::Secondary;
        status.peer_role = Some(Role::Primary);
        status.peer_disk = DiskState::Failed;
        status.replication = Replication::Off;
    });
    node.engine.notice(Notice::Released);
    let lost = right(&mut stream);
    assert_eq!([&lost["in_sync"], &lost["only_copy"]], [false, false]);
    // Now it has; and that is news, at once.
    node.engine.set(|status| {
        status.disk = DiskState::UpToDate;
        status.alone_since = Some(Time(5));
    });
    node.engine.notice(Notice::Released);
    let carries = right(&mut stream);
    assert_eq!(
        [
            &carries["in_sync"],
            &carries["only_copy"],
            &carries["diskless"]
        ],
        [false, true, false]
    );
    // Without the session nobody is ready.
    node.engine
        .set(|status| status.connection = Connection::Connecting);
    node.engine.notice(Notice::Released);
    assert_eq!(right(&mut stream)["only_copy"], false);
    // The other side of it.
    node.engine.set(|status| status.disk = DiskState::Failed);
    node.engine.notice(Notice::Released);
    let gone = right(&mut stream);
    assert_eq!([&gone["only_copy"], &gone["diskless"]], [false, true]);
    assert_eq!(gone["untrusted"], false);
    // Nor is a copy that is half overwritten a good one.
    for bad in [DiskState::Inconsistent, DiskState::Outdated] {
        node.engine.set(|status| status.disk = bad);
        node.engine.notice(Notice::Released);
        let told = right(&mut stream);
        assert_eq!([&told["untrusted"], &told["diskless"]], [true, false]);
        node.engine.set(|status| status.disk = DiskState::UpToDate);
        node.engine.notice(Notice::Released);
        assert_eq!(right(&mut stream)["untrusted"], false);
    }
}

#[test]
fn roles_that_a_manager_has_in_hand_are_its_own_business() {
    let node = Node::with_daemon();
    let mut stream = connect(&node);
    stream
        .write_all(&framed(
            "{\"protocol\":1,\"ask\":{\"rights\":{\"mirrors\":[\"pg\"],\"every_ms\":3600000,\"take_in_hand\":true}}}",
        ))
        .unwrap();
    right(&mut stream);
    let refused = node.run(&["promote", "pg"]);
    assert_eq!(refused.code, 1, "{}", refused.err);
    assert!(
        refused.err.contains("the failover manager decides") && refused.err.contains("next:"),
        "{}",
        refused.err
    );
    assert_eq!(node.run(&["demote", "pg"]).code, 1);
    assert!(node.engine.orders.lock().unwrap().is_empty());
    // The manager's own order, a forced one, and any order when the manager has gone.
    let said = say(
        &node,
        &framed(
            "{\"protocol\":1,\"ask\":{\"managed\":{\"mirror\":\"pg\",\"order\":{\"promote\":{\"force\":false}}}}}",
        ),
    );
    assert_eq!(said, "\"done\"");
    assert_eq!(node.run(&["promote", "pg", "--force"]).code, 0);
    drop(stream);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while node.run(&["promote", "pg"]).code != 0 {
        assert!(std::time::Instant::now() < deadline, "still in hand");
    }
}
