//! Every option that a client can get wrong, and what it gets for it.

mod support;

use kagami_nbd_server::proto::{opt, rep};
use kagami_nbd_server::{DeviceInfo, Limits, TlsPolicy};
use support::client::{Client, context_data, export_data, option_bytes};
use support::{SIZE, TestServer};

/// Options that are refused while the handshake goes on.
#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn bad_options_are_answered_and_the_handshake_goes_on() {
    let server = TestServer::start();
    let long_name = "n".repeat(4097);
    let raw = |words: &[u32]| {
        words
            .iter()
            .flat_map(|w| w.to_be_bytes())
            .collect::<Vec<u8>>()
    };
    let mut trailing = export_data("disk", &[3]);
    trailing.push(0);
    let nul = export_data("di\0k", &[]);
    let not_utf8 = [&[0, 0, 0, 2, 0xff, 0xfe][..], &[0, 0]].concat();
    let table: &[(&str, u32, Vec<u8>, u32)] = &[
        ("unknown", 99, vec![], rep::ERR_UNSUP),
        (
            "unknown with data",
            0xffff_ffff,
            vec![7; 1000],
            rep::ERR_UNSUP,
        ),
        (
            "unknown with much data",
            99,
            vec![7; 100_000],
            rep::ERR_UNSUP,
        ),
        ("the withdrawn PEEK_EXPORT", 4, vec![], rep::ERR_UNSUP),
        ("EXTENDED_HEADERS", 11, vec![], rep::ERR_UNSUP),
        ("LIST with data", opt::LIST, vec![0], rep::ERR_INVALID),
        (
            "LIST with much data",
            opt::LIST,
            vec![0; 100_000],
            rep::ERR_INVALID,
        ),
        (
            "STRUCTURED_REPLY with data",
            opt::STRUCTURED_REPLY,
            vec![0],
            rep::ERR_INVALID,
        ),
        (
            "STARTTLS without TLS",
            opt::STARTTLS,
            vec![],
            rep::ERR_POLICY,
        ),
        (
            "STARTTLS with data",
            opt::STARTTLS,
            vec![0],
            rep::ERR_INVALID,
        ),
        ("GO without data", opt::GO, vec![], rep::ERR_INVALID),
        (
            "GO cut in the name's length",
            opt::GO,
            vec![0, 0],
            rep::ERR_INVALID,
        ),
        (
            "GO with a name past the end",
            opt::GO,
            raw(&[1000]),
            rep::ERR_INVALID,
        ),
        (
            "GO with a name of 4 GiB",
            opt::GO,
            raw(&[u32::MAX, 0]),
            rep::ERR_INVALID,
        ),
        (
            "GO without a count",
            opt::GO,
            export_data("disk", &[])[..8].to_vec(),
            rep::ERR_INVALID,
        ),
        (
            "GO with too few requests",
            opt::GO,
            [raw(&[0]), vec![0, 9, 0, 3]].concat(),
            rep::ERR_INVALID,
        ),
        (
            "GO with bytes left over",
            opt::GO,
            trailing,
            rep::ERR_INVALID,
        ),
        ("GO with a NUL", opt::GO, nul, rep::ERR_INVALID),
        ("GO that is not UTF-8", opt::GO, not_utf8, rep::ERR_INVALID),
        (
            "GO with a long name",
            opt::GO,
            export_data(&long_name, &[]),
            rep::ERR_INVALID,
        ),
        (
            "GO with much data",
            opt::GO,
            vec![0; 100_000],
            rep::ERR_TOO_BIG,
        ),
        (
            "GO for nothing",
            opt::GO,
            export_data("nothing", &[]),
            rep::ERR_UNKNOWN,
        ),
        (
            "INFO for nothing",
            opt::INFO,
            export_data("nothing", &[]),
            rep::ERR_UNKNOWN,
        ),
        ("INFO without data", opt::INFO, vec![], rep::ERR_INVALID),
        (
            "contexts before structured replies",
            opt::LIST_META_CONTEXT,
            context_data("disk", &[]),
            rep::ERR_INVALID,
        ),
        (
            "contexts before structured replies",
            opt::SET_META_CONTEXT,
            context_data("disk", &["base:allocation"]),
            rep::ERR_INVALID,
        ),
    ];
    let mut client = Client::greeted(&server.path);
    for (what, option, data, expected) in table {
        let replies = client.option(*option, data);
        assert_eq!(replies.len(), 1, "{what}");
        assert_eq!(replies[0].0, *expected, "{what}");
        let text = std::str::from_utf8(&replies[0].1).expect("a text");
        assert!(text.len() > 10, "{what}: '{text}' explains nothing");
    }
    client.expect_ack(opt::STRUCTURED_REPLY, &[]);
    let contexts: &[(&str, Vec<u8>, u32)] = &[
        ("no data", vec![], rep::ERR_INVALID),
        (
            "a count without queries",
            [context_data("disk", &[])[..8].to_vec(), raw(&[1])].concat(),
            rep::ERR_INVALID,
        ),
        (
            "a count of 4 billion",
            [context_data("disk", &[])[..8].to_vec(), raw(&[u32::MAX])].concat(),
            rep::ERR_INVALID,
        ),
        (
            "a query past the end",
            [context_data("disk", &[])[..8].to_vec(), raw(&[1, 50])].concat(),
            rep::ERR_INVALID,
        ),
        (
            "no colon",
            context_data("disk", &["base"]),
            rep::ERR_INVALID,
        ),
        (
            "no namespace",
            context_data("disk", &[":allocation"]),
            rep::ERR_INVALID,
        ),
        (
            "no such export",
            context_data("nothing", &["base:allocation"]),
            rep::ERR_UNKNOWN,
        ),
        ("much data", vec![0; 100_000], rep::ERR_TOO_BIG),
    ];
    for (what, data, expected) in contexts {
        for option in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
            assert_eq!(client.option(option, data)[0].0, *expected, "{what}");
        }
    }
    client.go("disk");
    client.expect_alive();
}

/// What can't be answered, or can't be trusted any more: the server hangs up.
#[test]
fn bad_handshakes_are_closed() {
    let server = TestServer::with(
        Limits {
            max_options: 5,
            ..Limits::default()
        },
        TlsPolicy::Off,
    );
    server.run(|bench| {
        bench.add(
            "large",
            DeviceInfo {
                min_block: 4096,
                ..DeviceInfo::new(SIZE)
            },
        );
    });
    let flags = |flags: u32| flags.to_be_bytes().to_vec();
    let header = |option: u32, len: u32| {
        let mut bytes = option_bytes(option, &[]);
        bytes[12..].copy_from_slice(&len.to_be_bytes());
        bytes
    };
    let fixed = |bytes: Vec<u8>| [flags(3), bytes].concat();
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("flags that were not offered", flags(4)),
        ("all flags", flags(u32::MAX)),
        ("an option without magic", fixed(vec![0; 16])),
        (
            "a web browser",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        ),
        ("an option of 4 GiB", fixed(header(99, u32::MAX))),
        ("an option of 2 MiB", fixed(header(opt::GO, 2 << 20))),
        (
            "a long EXPORT_NAME",
            fixed(header(opt::EXPORT_NAME, 65_537)),
        ),
        (
            "EXPORT_NAME of nothing",
            fixed(option_bytes(opt::EXPORT_NAME, b"nothing")),
        ),
        (
            "EXPORT_NAME with a NUL",
            fixed(option_bytes(opt::EXPORT_NAME, b"di\0k")),
        ),
        (
            "EXPORT_NAME with 4097 bytes",
            fixed(option_bytes(opt::EXPORT_NAME, &[b'n'; 4097])),
        ),
        (
            "EXPORT_NAME with 4 KiB sectors",
            fixed(option_bytes(opt::EXPORT_NAME, b"large")),
        ),
        (
            "GO without fixed newstyle",
            [flags(0), option_bytes(opt::GO, &export_data("disk", &[]))].concat(),
        ),
        (
            "too many options",
            fixed(option_bytes(opt::LIST, &[]).repeat(6)),
        ),
        ("ABORT", fixed(option_bytes(opt::ABORT, &[]))),
        (
            "ABORT with data",
            fixed(option_bytes(opt::ABORT, &[1; 100])),
        ),
    ];
    for (what, bytes) in table {
        let mut client = Client::unix(&server.path);
        client.take(18);
        // The server may hang up before all of it is sent.
        let _ = client.stream.write_all(&bytes);
        eprintln!("{what}");
        client.expect_closed();
    }
    server.wait_for("all connections gone", |bench| {
        bench.server.sessions().is_empty()
    });
}
