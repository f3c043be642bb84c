//! The pure part against arbitrary bytes: it never panics, keeps its bounds, and what it accepts
//! is what it says.

use std::collections::VecDeque;

use bytes::Bytes;
use kagami_nbd_server::meta_context::Contexts;
use kagami_nbd_server::negotiate::{
    Catalog, Found, Incoming, Listed, MAX_OPTION_DATA, MAX_OPTION_SKIP, Negotiation, Step, Terms,
    TlsMode,
};
use kagami_nbd_server::option::ClientOption;
use kagami_nbd_server::proto::{OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader, chunk, cmd, rep};
use kagami_nbd_server::reply::{Asked, Body, Segment, encode};
use kagami_nbd_server::request::{Command, RequestHeader};
use kagami_nbd_server::{Answer, DeviceInfo, Errno, IoError, ReadData, ReadPart, Refusal};
use proptest::prelude::*;

struct Shop;

impl Catalog for Shop {
    fn list(&self) -> Vec<Listed> {
        ["", "disk", "refused", "secret"].map(listed).into()
    }

    fn find(&self, name: &str) -> Option<Found> {
        let listed = self.list().into_iter().find(|listed| listed.name == name)?;
        let info = if name == "refused" {
            Err(Refusal::policy("x".repeat(10_000)))
        } else {
            Ok(DeviceInfo::new(1 << 30))
        };
        Some(Found { listed, info })
    }
}

fn listed(name: &str) -> Listed {
    let tls_only = name == "secret";
    Listed {
        name: name.to_owned(),
        description: "é".repeat(3000),
        tls_only,
    }
}

fn tls_mode() -> impl Strategy<Value = TlsMode> {
    prop_oneof![
        Just(TlsMode::Off),
        Just(TlsMode::Optional),
        Just(TlsMode::Required)
    ]
}

/// Options as a fuzzer would find them after a while: plausible, then broken somewhere.
fn option() -> impl Strategy<Value = (u32, Vec<u8>)> {
    let name = prop_oneof![
        Just("disk"),
        Just(""),
        Just("secret"),
        Just("refused"),
        Just("none")
    ];
    let query = prop_oneof![
        Just("base:allocation"),
        Just("kagami:"),
        Just("x"),
        Just(":"),
        Just("q:y")
    ];
    let data = (name, prop::collection::vec(query, 0..4), any::<bool>()).prop_map(
        |(name, queries, contexts)| {
            let mut data = (name.len() as u32).to_be_bytes().to_vec();
            data.extend(name.as_bytes());
            if contexts {
                data.extend((queries.len() as u32).to_be_bytes());
                for query in queries {
                    data.extend((query.len() as u32).to_be_bytes());
                    data.extend(query.as_bytes());
                }
            } else {
                data.extend((queries.len() as u16).to_be_bytes());
                data.extend((0..queries.len() as u16).flat_map(u16::to_be_bytes));
            }
            data
        },
    );
    let broken = (data.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        |(mut data, at, byte)| {
            let at = at.index(data.len());
            data[at] = byte;
            data
        },
    );
    let data = prop_oneof![
        3 => data,
        2 => broken,
        1 => Just(Vec::new()),
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ];
    (prop_oneof![9 => 0_u32..14, 1 => any::<u32>()], data)
}

/// Splits option replies; panics where they are malformed.
fn replies(mut bytes: &[u8], option: u32) -> Vec<u32> {
    let mut kinds = Vec::new();
    while !bytes.is_empty() {
        let mut reader = Reader(bytes);
        assert_eq!(reader.u64(), Some(OPTION_REPLY_MAGIC));
        assert_eq!(reader.u32(), Some(option));
        kinds.push(reader.u32().expect("a type"));
        let len = reader.u32().expect("a length") as usize;
        let data = reader.take(len).expect("its data");
        if kinds.last().is_some_and(|kind| kind >> 31 == 1) {
            assert!(len <= 4096 && std::str::from_utf8(data).is_ok());
        }
        bytes = reader.0;
    }
    kinds
}

proptest! {
    // A failing case prints itself; it is then written down as a test of its own.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn options_decode_or_fail(option: u32, data in prop::collection::vec(any::<u8>(), 0..300)) {
        for option in [option, option % 12] {
            let _ = ClientOption::decode(option, &data);
        }
    }

    #[test]
    fn headers_are_bounded_before_data_is_read(bytes: [u8; 16], magic: bool) {
        let mut bytes = bytes;
        if magic {
            bytes[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        }
        let mut negotiation = Negotiation::new(TlsMode::Off, 3);
        negotiation.client_flags(3).expect("offered");
        match negotiation.header(&bytes) {
            Ok(Incoming::Take(header)) => prop_assert!(header.len <= MAX_OPTION_DATA),
            Ok(Incoming::Skip(header)) => prop_assert!(header.len <= MAX_OPTION_SKIP),
            Err(_) => {}
        }
    }

    /// Any conversation: each option gets intermediate replies and exactly one final one, and
    /// nothing passes without TLS where TLS is demanded.
    #[test]
    fn every_option_has_one_final_reply(
        mode in tls_mode(),
        options in prop::collection::vec((option(), any::<bool>()), 1..20),
    ) {
        let mut negotiation = Negotiation::new(mode, 128);
        negotiation.client_flags(3).expect("offered");
        let mut encrypted = false;
        for ((option, data), long) in options {
            let mut out = Vec::new();
            let step = if long {
                if option == 1 {
                    continue; // closed by the header already
                }
                negotiation.too_long(option, &mut out)
            } else {
                let Ok(step) = negotiation.option(option, &data, &Shop, &mut out) else {
                    prop_assert_eq!(option, 1);
                    break;
                };
                step
            };
            if let Step::Open(chosen) = &step {
                prop_assert!(mode != TlsMode::Required || encrypted);
                prop_assert!(chosen.name != "secret" || encrypted);
                prop_assert!(chosen.terms.structured || chosen.terms.contexts.is_empty());
                prop_assert!(out.is_empty());
                if option == 1 {
                    prop_assert_eq!(chosen.accepted.len(), 10);
                    break;
                }
                out.clone_from(&chosen.accepted);
            }
            let kinds = replies(&out, option);
            let is_final = |kind: &&u32| **kind == rep::ACK || **kind >> 31 == 1;
            prop_assert_eq!(kinds.iter().filter(is_final).count(), 1);
            prop_assert!(kinds.last().is_some_and(|kind| is_final(&kind)));
            if mode == TlsMode::Off || encrypted {
                prop_assert!(!kinds.contains(&rep::ERR_TLS_REQD));
            }
            if step == Step::StartTls {
                prop_assert!(mode != TlsMode::Off && !encrypted);
                negotiation.tls_started();
                encrypted = true;
            }
        }
    }

    /// What passes the check is inside the device, aligned, and within the limits.
    #[test]
    fn checked_requests_are_safe(
        flags in 0_u16..64, command in 0_u16..10, cookie: u64,
        offset in prop_oneof![0_u64..1 << 31, any::<u64>(), Just(1_u64 << 30)],
        len in prop_oneof![0_u32..1 << 20, any::<u32>(), Just(4096)],
        shift in 0_u32..17, structured: bool, read_only: bool, fast_zero: bool, aligned: bool,
    ) {
        let unit = 1_u32 << shift;
        let info = DeviceInfo {
            min_block: unit,
            preferred_block: unit.max(4096),
            read_only,
            fast_zero,
            ..DeviceInfo::new(1 << 30)
        };
        let contexts = Contexts { allocation: structured, dirty: false };
        let (offset, len) = if aligned {
            (offset & !u64::from(unit - 1), len & !(unit - 1))
        } else {
            (offset, len)
        };
        let header = RequestHeader { flags, command, cookie, offset, len };
        let terms = Terms { structured, contexts };
        match header.check(&info, terms) {
            Ok(Command::Disconnect) => {}
            Ok(Command::Flush) => prop_assert!(offset == 0 && len == 0),
            Ok(checked) => {
                prop_assert!(offset + u64::from(len) <= info.size && len > 0);
                prop_assert!(offset % u64::from(unit) == 0 && len % unit == 0);
                match checked {
                    Command::Write { .. } => prop_assert!(!read_only && len <= info.max_payload),
                    Command::Read { dont_fragment } => {
                        prop_assert!(len <= info.max_payload && (structured || !dont_fragment));
                    }
                    Command::Trim { .. } => prop_assert!(!read_only),
                    Command::WriteZeroes { fast, .. } => {
                        prop_assert!(!read_only && (fast_zero || !fast));
                    }
                    Command::BlockStatus { .. } => prop_assert!(structured),
                    _ => {}
                }
            }
            Err(error) => prop_assert!(!error.message.is_empty()),
        }
    }

    #[test]
    fn requests_decode_or_fail(bytes: [u8; 28]) {
        let _ = RequestHeader::decode(&bytes);
    }

    /// However a device cuts a read, the client puts together the same bytes.
    #[test]
    fn reads_arrive_whole(
        pieces in prop::collection::vec((any::<bool>(), 0_usize..2000), 1..12),
        structured: bool, dont_fragment: bool, cookie: u64, offset in 0_u64..1 << 40,
    ) {
        let mut expected = Vec::new();
        let mut parts = Vec::new();
        for (i, (zero, len)) in pieces.into_iter().enumerate() {
            if zero {
                expected.resize(expected.len() + len, 0);
                parts.push(ReadPart::Zeroes(len as u32));
            } else {
                let data = vec![i as u8 + 1; len];
                expected.extend(&data);
                parts.push(ReadPart::Data(data.into()));
            }
        }
        prop_assume!(!expected.is_empty());
        let asked = Asked {
            cookie,
            command: Some(Command::Read { dont_fragment: structured && dont_fragment }),
            offset,
            len: expected.len() as u32,
        };
        let terms = Terms { structured, ..Terms::default() };
        let mut out = VecDeque::new();
        encode(&mut out, &asked, terms, Ok(Answer::Data(ReadData::Parts(parts))), 77);
        let credits: Vec<u32> = out.iter().filter_map(|segment| segment.ends_reply).collect();
        prop_assert_eq!(credits, [77]);
        prop_assert_eq!(out.back().and_then(|segment| segment.ends_reply), Some(77));
        let stream = flatten(&out);
        if structured {
            let (bytes, chunks) = reassemble(&stream, &asked);
            prop_assert!(bytes == expected);
            prop_assert!(!dont_fragment || chunks == 1);
        } else {
            prop_assert_eq!(&stream[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
            prop_assert_eq!(&stream[8..16], cookie.to_be_bytes());
            prop_assert!(stream[16..] == expected);
        }
    }

    /// An error is one chunk, its message cut to the protocol's string, its place in the range.
    #[test]
    fn errors_are_well_formed(
        message in ".{0,3000}", offset in 0_u64..10_000, place in prop::option::of(0_u64..20_000),
        flush: bool,
    ) {
        let command = if flush { Command::Flush } else { Command::Cache };
        let asked = Asked { cookie: 1, command: Some(command), offset, len: 4096 };
        let error = IoError { offset: place, ..IoError::new(Errno::Io, message) };
        let mut out = VecDeque::new();
        let terms = Terms { structured: true, ..Terms::default() };
        encode(&mut out, &asked, terms, Err(error), 0);
        let stream = flatten(&out);
        let mut reader = Reader(&stream);
        reader.take(4);
        prop_assert_eq!(reader.u16(), Some(chunk::FLAG_DONE));
        let kind = reader.u16().expect("a type");
        reader.u64();
        let len = reader.u32().expect("a length") as usize;
        prop_assert_eq!(reader.0.len(), len);
        prop_assert_eq!(reader.u32(), Some(5));
        let text = usize::from(reader.u16().expect("a length"));
        prop_assert!(text <= 4096 && std::str::from_utf8(reader.take(text).expect("a text")).is_ok());
        let inside = !flush && place.is_some_and(|at| (offset..offset + 4096).contains(&at));
        prop_assert_eq!(kind, if inside { chunk::ERROR_OFFSET } else { chunk::ERROR });
        prop_assert_eq!(reader.u64(), if inside { place } else { None });
        prop_assert!(reader.is_empty());
    }
}

fn flatten(segments: &VecDeque<Segment>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        bytes.extend(segment.head());
        match &segment.body {
            Body::None => {}
            Body::Bytes(body) => bytes.extend(body),
            Body::Zeroes(len) => bytes.resize(bytes.len() + *len as usize, 0),
        }
    }
    bytes
}

/// Puts the chunks of a read together as a client does: content once everywhere, DONE at the end.
fn reassemble(stream: &[u8], asked: &Asked) -> (Vec<u8>, usize) {
    let mut bytes = vec![None; asked.len as usize];
    let mut chunks = 0;
    let mut reader = Reader(stream);
    let mut done = false;
    while !reader.is_empty() {
        assert!(!done, "a chunk after the last one");
        assert_eq!(reader.u32(), Some(0x668e_33ef));
        done = reader.u16() == Some(chunk::FLAG_DONE);
        let kind = reader.u16();
        assert_eq!(reader.u64(), Some(asked.cookie));
        let len = reader.u32().expect("a length") as usize;
        let mut payload = Reader(reader.take(len).expect("a payload"));
        let at = (payload.u64().expect("an offset") - asked.offset) as usize;
        let content = match kind {
            Some(chunk::OFFSET_DATA) => payload.0.to_vec(),
            Some(chunk::OFFSET_HOLE) => vec![0; payload.u32().expect("a length") as usize],
            other => panic!("chunk {other:?}"),
        };
        assert!(!content.is_empty());
        for (place, byte) in bytes[at..at + content.len()].iter_mut().zip(content) {
            assert!(place.replace(byte).is_none(), "told twice");
        }
        chunks += 1;
    }
    assert!(done, "no last chunk");
    (
        bytes.into_iter().map(|byte| byte.expect("told")).collect(),
        chunks,
    )
}

#[test]
#[should_panic(expected = "something else")]
fn a_short_read_is_a_bug_of_the_device() {
    let command = Some(Command::Read {
        dont_fragment: false,
    });
    let asked = Asked {
        cookie: 1,
        command,
        offset: 0,
        len: 512,
    };
    let data = ReadData::Whole(Bytes::from_static(&[0; 511]));
    encode(
        &mut VecDeque::new(),
        &asked,
        Terms::default(),
        Ok(Answer::Data(data)),
        0,
    );
}

#[test]
fn every_command_number_is_known_or_refused() {
    for command in 0..=u16::MAX {
        let header = RequestHeader {
            flags: 0,
            command,
            cookie: 0,
            offset: 0,
            len: 0,
        };
        let checked = header.check(&DeviceInfo::new(1 << 20), Terms::default());
        let harmless = command == cmd::DISC || command == cmd::FLUSH;
        assert_eq!(checked.is_ok(), harmless, "command {command}");
    }
}
