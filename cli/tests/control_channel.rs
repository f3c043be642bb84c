//! The control socket against everything that is not a command of kagami.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use support::Node;

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
