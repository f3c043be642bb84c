//! Every request that a client can get wrong, and what it gets for it.

mod support;

use kagami_nbd_server::proto::{chunk, cmd, cmd_flag, opt, rep};
use kagami_nbd_server::{DeviceInfo, Errno, IoError};
use support::client::{Client, Reply, export_data, option_bytes, request_bytes};
use support::{SIZE, TestServer};

#[test]
fn sectors_over_512_bytes_must_be_asked_for() {
    let server = TestServer::start();
    server.run(|bench| {
        bench.add(
            "large",
            DeviceInfo {
                min_block: 4096,
                ..DeviceInfo::new(SIZE)
            },
        );
    });
    let mut client = Client::greeted(&server.path);
    for option in [opt::INFO, opt::GO] {
        let replies = client.option(option, &export_data("large", &[]));
        let kinds: Vec<u32> = replies.iter().map(|reply| reply.0).collect();
        assert_eq!(kinds, [rep::INFO, rep::INFO, rep::ERR_BLOCK_SIZE_REQD]);
        assert_eq!(replies[1].1, [0, 3, 0, 0, 16, 0, 0, 0, 16, 0, 2, 0, 0, 0]);
    }
    client.go("large");
    client.request(0, cmd::READ, 1, 512, 4096);
    assert_eq!(client.error(1), Errno::Inval as u32);
    client.expect_alive();
}

struct Case {
    what: &'static str,
    flags: u16,
    command: u16,
    offset: u64,
    len: u32,
    simple: Errno,
    structured: Errno,
}

fn case(what: &'static str, flags: u16, command: u16, offset: u64, len: u32, error: Errno) -> Case {
    Case {
        what,
        flags,
        command,
        offset,
        len,
        simple: error,
        structured: error,
    }
}

/// Requests that are answered with an error while the connection goes on.
#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn bad_requests_are_answered_and_the_connection_goes_on() {
    use Errno::{Inval, NoSpc, Overflow};
    let server = TestServer::start();
    let mut table = vec![
        case("an unknown command", 0, 42, 0, 0, Inval),
        case("RESIZE", 0, 8, 0, 4096, Inval),
        case(
            "command 65535 with all flags",
            0xffff,
            0xffff,
            u64::MAX,
            u32::MAX,
            Inval,
        ),
        case("a flush with a length", 0, cmd::FLUSH, 0, 512, Inval),
        case("a flush with an offset", 0, cmd::FLUSH, 512, 0, Inval),
        case("a flush with DF", cmd_flag::DF, cmd::FLUSH, 0, 0, Inval),
        case(
            "block status without contexts",
            0,
            cmd::BLOCK_STATUS,
            0,
            4096,
            Inval,
        ),
        case(
            "a read that wraps",
            0,
            cmd::READ,
            u64::MAX - 511,
            512,
            Inval,
        ),
        case("a read past the end", 0, cmd::READ, SIZE - 512, 1024, Inval),
        case("a read at the end", 0, cmd::READ, SIZE, 512, Inval),
        case(
            "a write past the end",
            0,
            cmd::WRITE,
            SIZE - 512,
            1024,
            NoSpc,
        ),
        case(
            "a write that wraps",
            0,
            cmd::WRITE,
            u64::MAX - 511,
            1024,
            NoSpc,
        ),
        case(
            "zeroes past the end",
            0,
            cmd::WRITE_ZEROES,
            SIZE - 512,
            1024,
            NoSpc,
        ),
        case("a trim past the end", 0, cmd::TRIM, SIZE - 512, 1024, Inval),
        case("a trim of 4 GiB", 0, cmd::TRIM, 0, !511, Inval),
        case("a cache past the end", 0, cmd::CACHE, SIZE, 1024, Inval),
        case("a write of 64 MiB", 0, cmd::WRITE, 0, 64 << 20, Inval),
        case(
            "a write just too long",
            0,
            cmd::WRITE,
            0,
            (32 << 20) + 512,
            Inval,
        ),
    ];
    for command in [
        cmd::READ,
        cmd::WRITE,
        cmd::TRIM,
        cmd::CACHE,
        cmd::WRITE_ZEROES,
    ] {
        table.push(case("an odd offset", 0, command, 1, 512, Inval));
        table.push(case("an odd length", 0, command, 0, 513, Inval));
        table.push(case("a length of 0", 0, command, 0, 0, Inval));
        table.push(case("a reserved flag", 1 << 15, command, 0, 512, Inval));
        table.push(case("REQ_ONE", cmd_flag::REQ_ONE, command, 0, 512, Inval));
        if command != cmd::WRITE_ZEROES {
            table.push(case("NO_HOLE", cmd_flag::NO_HOLE, command, 0, 512, Inval));
            table.push(case(
                "FAST_ZERO",
                cmd_flag::FAST_ZERO,
                command,
                0,
                512,
                Inval,
            ));
        }
        if command != cmd::READ {
            table.push(case("DF", cmd_flag::DF, command, 0, 512, Inval));
        }
    }
    let long = case("a long read", 0, cmd::READ, 0, (32 << 20) + 512, Inval);
    table.push(Case {
        structured: Overflow,
        ..long
    });
    for structured in [false, true] {
        let mut client = Client::connected(&server.path, "disk", structured);
        for (cookie, case) in table.iter().enumerate() {
            let cookie = cookie as u64 + (1 << 60);
            let Case {
                what,
                flags,
                command,
                offset,
                len,
                ..
            } = *case;
            let mut bytes = request_bytes(flags, command, cookie, offset, len);
            if command == cmd::WRITE {
                bytes.resize(bytes.len() + len as usize, 0x55);
            }
            client.send(&bytes);
            let expected = if structured {
                case.structured
            } else {
                case.simple
            };
            assert_eq!(
                client.error(cookie),
                expected as u32,
                "{what}, command {command}"
            );
        }
        client.expect_alive();
    }
    assert_eq!(
        server.run(|bench| bench.device("disk").submitted.get()),
        2,
        "flushes alone"
    );
}

#[test]
fn df_needs_structured_replies() {
    let server = TestServer::start();
    let mut client = Client::connected(&server.path, "disk", false);
    client.request(cmd_flag::DF, cmd::READ, 5, 0, 512);
    assert_eq!(client.error(5), Errno::Inval as u32);
    client.expect_alive();
}

#[test]
fn streams_that_cannot_be_trusted_are_closed() {
    let server = TestServer::start();
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("no magic", vec![0; 28]),
        (
            "the magic of replies",
            [&0x6744_6698_u32.to_be_bytes()[..], &[0; 24]].concat(),
        ),
        ("an option", option_bytes(opt::LIST, &[]).repeat(2)),
        (
            "a write of more than 64 MiB",
            request_bytes(0, cmd::WRITE, 1, 0, (64 << 20) + 512),
        ),
        ("goodbye", request_bytes(0, cmd::DISC, 1, 0, 0)),
        (
            "goodbye with flags and range",
            request_bytes(0xffff, cmd::DISC, 1, 5, 5),
        ),
    ];
    for (what, bytes) in table {
        eprintln!("{what}");
        let mut client = Client::connected(&server.path, "disk", true);
        client.send(&bytes);
        client.expect_closed();
    }
    server.wait_for("no opening left", |bench| {
        bench.device("disk").openings.get() == 0
    });
    assert_eq!(server.run(|bench| bench.device("disk").submitted.get()), 0);
}

#[test]
fn read_only_exports_refuse_writes() {
    let server = TestServer::start();
    server.run(|bench| {
        bench.add(
            "fixed",
            DeviceInfo {
                read_only: true,
                ..DeviceInfo::new(SIZE)
            },
        );
    });
    let mut client = Client::greeted(&server.path);
    let replies = client.option(opt::GO, &export_data("fixed", &[]));
    // HAS_FLAGS, READ_ONLY, FLUSH, FUA, MULTI_CONN, CACHE; no TRIM, no WRITE_ZEROES, no FAST_ZERO.
    assert_eq!(replies[0].1[10..], [0x05, 0x0f]);
    for command in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
        let mut bytes = request_bytes(0, command, 7, 0, 4096);
        if command == cmd::WRITE {
            bytes.resize(28 + 4096, 1);
        }
        client.send(&bytes);
        assert_eq!(client.error(7), Errno::Perm as u32, "command {command}");
    }
    client.expect_alive();
}

#[test]
fn fast_zero_is_an_error_where_it_was_not_offered() {
    let server = TestServer::start();
    server.run(|bench| {
        bench.add(
            "slow",
            DeviceInfo {
                fast_zero: false,
                ..DeviceInfo::new(SIZE)
            },
        );
    });
    let mut slow = Client::connected(&server.path, "slow", true);
    slow.request(cmd_flag::FAST_ZERO, cmd::WRITE_ZEROES, 1, 0, 4096);
    assert_eq!(slow.error(1), Errno::Inval as u32);
    let mut fast = Client::connected(&server.path, "disk", true);
    fast.request(cmd_flag::FAST_ZERO, cmd::WRITE_ZEROES, 1, 0, 4096);
    assert_eq!(fast.error(1), 0);
    fast.request(
        cmd_flag::FAST_ZERO | cmd_flag::NO_HOLE,
        cmd::WRITE_ZEROES,
        2,
        0,
        4096,
    );
    assert_eq!(fast.error(2), Errno::NotSup as u32);
}

/// Each error of the device arrives as it is, with its place and its sentence.
#[test]
fn device_errors_arrive_with_place_and_text() {
    let server = TestServer::start();
    for code in [
        Errno::Io,
        Errno::NoMem,
        Errno::NoSpc,
        Errno::Shutdown,
        Errno::Perm,
    ] {
        server.run(move |bench| {
            let error = IoError::new(code, "the disk says no").at(8192);
            *bench.device("disk").fault.borrow_mut() = Some((8192, error));
        });
        let mut client = Client::connected(&server.path, "disk", false);
        client.request(0, cmd::READ, 1, 4096, 8192);
        assert_eq!(client.error(1), code as u32);
        client.expect_reading();

        let mut client = Client::connected(&server.path, "disk", true);
        client.request(0, cmd::READ, 2, 4096, 8192);
        let mut payload = (code as u32).to_be_bytes().to_vec();
        payload.extend([0, 16]);
        payload.extend(b"the disk says no");
        payload.extend(8192_u64.to_be_bytes());
        let flags = chunk::FLAG_DONE;
        let kind = chunk::ERROR_OFFSET;
        assert_eq!(
            client.reply(),
            Reply::Chunk {
                flags,
                kind,
                cookie: 2,
                payload: payload.clone()
            }
        );
        // A flush has no range, so no place either.
        client.request(0, cmd::FLUSH, 3, 0, 0);
        payload.truncate(22);
        let kind = chunk::ERROR;
        assert_eq!(
            client.reply(),
            Reply::Chunk {
                flags,
                kind,
                cookie: 3,
                payload
            }
        );
    }
}

impl Client {
    /// Flushes fail as well while a fault is set: a read elsewhere shows that the stream is whole.
    fn expect_reading(&mut self) {
        self.request(0, cmd::READ, 9, 0, 512);
        assert_eq!(self.error(9), 0);
        assert_eq!(self.take(512), [0; 512]);
    }
}
