//! What a client learns of an export, and what it reads of it.

mod support;

use kagami_nbd_server::proto::{chunk, cmd, cmd_flag, opt, rep};
use kagami_nbd_server::{DeviceInfo, Errno, Export, Refusal};

use support::client::{Client, Reply, context_data, export_data, write_bytes};
use support::{SIZE, TestServer};

#[test]
fn export_name_with_and_without_zeroes() {
    let server = TestServer::start();
    for (flags, zeroes) in [(0, 124), (1, 124), (2, 0), (3, 0)] {
        let mut client = Client::unix(&server.path);
        client.greet(flags);
        client.send_option(opt::EXPORT_NAME, b"disk");
        assert_eq!(client.u64(), SIZE);
        assert_eq!(client.take(2), [0x0d, 0x6d], "flags without DF");
        assert_eq!(client.take(zeroes), vec![0; zeroes]);
        client.expect_alive();
    }
}

#[test]
fn info_tells_all_and_go_tells_the_same() {
    let server = TestServer::start();
    server.run(|bench| {
        let mut export = Export::new(
            "pg",
            std::rc::Rc::clone(&bench.exports.get("disk").expect("disk").device),
        );
        export.description = "the database".to_owned();
        bench.exports.add(export).expect("a new name");
        bench.exports.set_default(Some("pg"));
    });
    let mut client = Client::greeted(&server.path);
    client.expect_ack(opt::STRUCTURED_REPLY, &[]);
    // The default export by the empty name; unknown information is ignored.
    let data = export_data("", &[3, 1, 2, 77]);
    let info = client.option(opt::INFO, &data);
    let expected: Vec<(u32, Vec<u8>)> = vec![
        (
            rep::INFO,
            [&[0, 0][..], &SIZE.to_be_bytes(), &[0x0d, 0xed]].concat(),
        ),
        (rep::INFO, b"\0\x01pg".to_vec()),
        (rep::INFO, b"\0\x02the database".to_vec()),
        (rep::INFO, vec![0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]),
        (rep::ACK, vec![]),
    ];
    assert_eq!(info, expected);
    let list = client.option(opt::LIST, &[]);
    assert_eq!(list[0], (rep::SERVER, b"\0\0\0\x04disk".to_vec()));
    assert_eq!(list[1], (rep::SERVER, b"\0\0\0\x02pgthe database".to_vec()));
    assert_eq!(list.len(), 3);
    assert_eq!(client.option(opt::GO, &data), expected);
    client.expect_alive();
}

#[test]
fn contexts_count_for_the_export_they_were_selected_for() {
    let server = TestServer::start();
    server.run(|bench| {
        bench.add(
            "other",
            DeviceInfo {
                dirty: false,
                ..DeviceInfo::new(SIZE)
            },
        );
    });
    let mut client = Client::greeted(&server.path);
    client.expect_ack(opt::STRUCTURED_REPLY, &[]);
    let list = client.option(opt::LIST_META_CONTEXT, &context_data("disk", &[]));
    assert_eq!(
        list[0],
        (rep::META_CONTEXT, b"\0\0\0\0base:allocation".to_vec())
    );
    assert_eq!(
        list[1],
        (rep::META_CONTEXT, b"\0\0\0\0kagami:dirty".to_vec())
    );
    assert_eq!(
        client
            .option(opt::LIST_META_CONTEXT, &context_data("other", &["kagami:"]))
            .len(),
        1
    );
    let set = client.option(
        opt::SET_META_CONTEXT,
        &context_data("disk", &["qemu:x", "kagami:dirty"]),
    );
    assert_eq!(
        set[0],
        (rep::META_CONTEXT, b"\0\0\0\x02kagami:dirty".to_vec())
    );
    assert_eq!(set.len(), 2);
    client.go("other");
    client.request(0, cmd::BLOCK_STATUS, 1, 0, 4096);
    assert_eq!(client.error(1), Errno::Inval as u32);

    // A SET that fails forgets the one before.
    let mut client = Client::greeted(&server.path);
    client.expect_ack(opt::STRUCTURED_REPLY, &[]);
    client.expect_ack(
        opt::SET_META_CONTEXT,
        &context_data("disk", &["base:allocation"]),
    );
    client.option(opt::SET_META_CONTEXT, &[1]);
    client.go("disk");
    client.request(0, cmd::BLOCK_STATUS, 1, 0, 4096);
    assert_eq!(client.error(1), Errno::Inval as u32);
}

#[test]
fn block_status_shows_allocation_and_what_the_peer_lacks() {
    let server = TestServer::start();
    server.run(|bench| bench.device("disk").memory.mark_dirty(4096..12_288));
    let mut client = Client::greeted(&server.path);
    client.expect_ack(opt::STRUCTURED_REPLY, &[]);
    let queries = ["base:allocation", "kagami:dirty"];
    client.expect_ack(opt::SET_META_CONTEXT, &context_data("disk", &queries));
    client.go("disk");
    client.send(&write_bytes(0, 1, 8192, &[1; 4096]));
    assert_eq!(client.error(1), 0);
    let status = |client: &mut Client, flags, len| {
        client.request(flags, cmd::BLOCK_STATUS, 2, 0, len);
        [0, chunk::FLAG_DONE].map(|expected| match client.reply() {
            Reply::Chunk {
                flags,
                kind: chunk::BLOCK_STATUS,
                cookie: 2,
                payload,
            } => {
                assert_eq!(flags, expected);
                payload
                    .chunks(4)
                    .map(|w| u32::from_be_bytes(w.try_into().expect("4")))
                    .collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        })
    };
    let all = status(&mut client, 0, 16_384);
    assert_eq!(
        all,
        [
            vec![1, 8192, 3, 4096, 0, 4096, 3],
            vec![2, 4096, 0, 8192, 1, 4096, 0]
        ]
    );
    let one = status(&mut client, cmd_flag::REQ_ONE, 16_384);
    assert_eq!(one, [vec![1, 8192, 3], vec![2, 4096, 0]]);
    // The longest request there is.
    let whole = status(&mut client, 0, SIZE as u32);
    assert_eq!(whole[1], [2, 4096, 0, 8192, 1, SIZE as u32 - 12_288, 0]);
}

#[test]
fn reads_carry_holes_and_df_reads_do_not() {
    let server = TestServer::start();
    let mut client = Client::connected(&server.path, "disk", true);
    client.send(&write_bytes(cmd_flag::FUA, 1, 4096, &[9; 4096]));
    assert_eq!(client.error(1), 0);
    client.request(0, cmd::READ, 2, 0, 12_288);
    let chunk = |flags, kind, payload: Vec<u8>| Reply::Chunk {
        flags,
        kind,
        cookie: 2,
        payload,
    };
    let hole = |offset: u64| [&offset.to_be_bytes()[..], &4096_u32.to_be_bytes()].concat();
    assert_eq!(client.reply(), chunk(0, chunk::OFFSET_HOLE, hole(0)));
    let data = [&4096_u64.to_be_bytes()[..], &[9; 4096]].concat();
    assert_eq!(client.reply(), chunk(0, chunk::OFFSET_DATA, data));
    assert_eq!(client.reply(), chunk(1, chunk::OFFSET_HOLE, hole(8192)));
    client.request(cmd_flag::DF, cmd::READ, 2, 0, 12_288);
    let data = [&0_u64.to_be_bytes()[..], &[0; 4096], &[9; 4096], &[0; 4096]].concat();
    assert_eq!(client.reply(), chunk(1, chunk::OFFSET_DATA, data));
    // A read of nothing but zeroes is one chunk anyway.
    client.request(cmd_flag::DF, cmd::READ, 2, 1 << 20, 4096);
    assert_eq!(client.reply(), chunk(1, chunk::OFFSET_HOLE, hole(1 << 20)));
    // The same bytes for a client without structured replies, at odd sectors.
    let mut simple = Client::connected(&server.path, "disk", false);
    simple.request(0, cmd::READ, 3, 3584, 5120);
    assert_eq!(simple.error(3), 0);
    let bytes = simple.take(5120);
    assert!(bytes[..512] == [0; 512] && bytes[512..4608] == [9; 4096] && bytes[4608..] == [0; 512]);
}

#[test]
fn a_secondary_says_who_is_primary() {
    let server = TestServer::start();
    let text = "mirror pg is Secondary here; node beta is Primary: connect there";
    server.run(move |bench| {
        bench
            .device("disk")
            .memory
            .set_refusal(Some(Refusal::policy(text)));
    });
    let mut client = Client::greeted(&server.path);
    for option in [opt::INFO, opt::GO] {
        let replies = client.option(option, &export_data("disk", &[]));
        assert_eq!(replies, [(rep::ERR_POLICY, text.as_bytes().to_vec())]);
    }
    server.run(|bench| bench.device("disk").memory.set_refusal(None));
    client.go("disk");
    client.expect_alive();
}
