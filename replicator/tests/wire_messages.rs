//! Every message survives its spelling, and nothing else is taken for one.

use bytes::Bytes;
use kagami_bitmap::superblock::{Generation, StoredDisk};
use kagami_bitmap::{Block, Run};
use kagami_replicator::core::disk::DiskFault;
use kagami_replicator::core::message::{Doing, Hello, Message};
use kagami_replicator::core::settings::{AfterSb0, AfterSb1, AfterSb2, SplitBrainPolicy};
use kagami_replicator::core::state::{DiskState, NodeId, Protocol, Role, Seq, Solo};
use kagami_replicator::wire::message::{
    Kind, MAX_HASHES_PER_MESSAGE, MAX_HEAD, MAX_PAYLOAD, MAX_RUNS_PER_MESSAGE, MAX_TEXT,
    MessageFault, decode, encode,
};
use proptest::prelude::*;

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let pair = (
        prop_oneof![0u64..200, 0u64..1 << 30],
        prop_oneof![1u64..5, 1u64..1 << 25],
    );
    prop::collection::vec(pair, 0..40).prop_map(|pairs| {
        let mut end = 0;
        pairs
            .into_iter()
            .map(|(gap, count)| {
                let run = Run::new(Block(end + gap), count);
                end = run.end().0;
                run
            })
            .collect()
    })
}

fn generation() -> impl Strategy<Value = Generation> {
    (any::<u64>(), any::<u64>()).prop_map(|(counter, tag)| Generation { counter, tag })
}

fn blocks() -> impl Strategy<Value = Bytes> {
    (1usize..4, any::<u8>()).prop_map(|(count, byte)| Bytes::from(vec![byte; count * 4096]))
}

fn offset() -> impl Strategy<Value = u64> {
    (0u64..1 << 36).prop_map(|block| block * 4096)
}

fn seq() -> impl Strategy<Value = Seq> {
    (1u64..).prop_map(Seq)
}

fn fault() -> impl Strategy<Value = DiskFault> {
    prop_oneof![
        Just(DiskFault::NoSpace),
        any::<i32>().prop_map(DiskFault::Io)
    ]
}

fn outcome() -> impl Strategy<Value = Result<(), DiskFault>> {
    prop_oneof![Just(Ok(())), fault().prop_map(Err)]
}

fn role() -> impl Strategy<Value = Role> {
    prop::sample::select(vec![Role::Primary, Role::Secondary])
}

fn disk() -> impl Strategy<Value = DiskState> {
    prop::sample::select(vec![
        DiskState::Diskless,
        DiskState::Failed,
        DiskState::Inconsistent,
        DiskState::Outdated,
        DiskState::Consistent,
        DiskState::UpToDate,
        DiskState::Unknown,
    ])
}

fn split_brain() -> impl Strategy<Value = SplitBrainPolicy> {
    let sb0 = vec![
        AfterSb0::Disconnect,
        AfterSb0::DiscardZeroChanges,
        AfterSb0::DiscardLeastChanges,
    ];
    let sb1 = vec![
        AfterSb1::Disconnect,
        AfterSb1::DiscardSecondary,
        AfterSb1::Consensus,
    ];
    (prop::sample::select(sb0), prop::sample::select(sb1)).prop_map(
        |(after_sb_0pri, after_sb_1pri)| SplitBrainPolicy {
            after_sb_0pri,
            after_sb_1pri,
            after_sb_2pri: AfterSb2::Disconnect,
        },
    )
}

fn hello() -> impl Strategy<Value = Message> {
    let identity = (
        any::<u128>(),
        any::<u64>(),
        any::<u64>(),
        any::<Option<u64>>(),
        any::<u64>(),
        any::<Option<u128>>(),
    );
    let line = (
        prop::option::of(generation()),
        prop::collection::vec(generation(), 0..40),
        prop::option::of(generation()),
    );
    let disks = vec![
        StoredDisk::Consistent,
        StoredDisk::Outdated,
        StoredDisk::Inconsistent,
    ];
    let worth = (prop::sample::select(disks), role(), any::<[bool; 8]>());
    let wishes = (
        prop::sample::select(vec![Protocol::A, Protocol::B, Protocol::C]),
        prop::sample::select(vec![Solo::Never, Solo::Arbiter, Solo::Always]),
        any::<u64>(),
        split_brain(),
        any::<Option<u64>>(),
    );
    (identity, line, worth, wishes).prop_map(|(identity, line, worth, wishes)| {
        let (mirror, node, size, arbiter, marks, boot) = identity;
        let (current, history, base) = line;
        let (disk, role, flag) = worth;
        let (protocol, solo, timeout_ms, split_brain, keep) = wishes;
        Message::Hello(Box::new(Hello {
            mirror,
            node: NodeId(node),
            size,
            arbiter,
            current,
            history,
            base,
            alone: flag[0],
            was_primary: flag[1],
            disk,
            diskless: flag[2],
            forced_bad: flag[3],
            zeroed: flag[4],
            marks,
            role,
            unbroken: flag[5],
            unmap_zeroes: flag[6],
            protocol,
            solo,
            timeout_ms,
            split_brain,
            keep: keep.map(NodeId),
            full: flag[7],
            boot,
        }))
    })
}

fn transfers() -> impl Strategy<Value = Message> {
    let ids = prop::collection::btree_set(0..MAX_HASHES_PER_MESSAGE as u32, 0..50);
    prop_oneof![
        (seq(), offset(), blocks(), any::<bool>(), any::<bool>()).prop_map(
            |(seq, offset, data, fua, early)| {
                Message::Write {
                    seq,
                    offset,
                    data,
                    fua,
                    early,
                }
            }
        ),
        (seq(), offset(), 1u64..1 << 36, any::<bool>(), any::<bool>()).prop_map(
            |(seq, offset, len, unmap, fua)| {
                Message::Zero {
                    seq,
                    offset,
                    len: len * 4096,
                    unmap,
                    fua,
                }
            }
        ),
        (seq(), offset(), blocks()).prop_map(|(seq, offset, data)| Message::ResyncBlocks {
            seq,
            offset,
            data
        }),
        seq().prop_map(|seq| Message::Received { seq }),
        (seq(), outcome()).prop_map(|(seq, result)| Message::Done { seq, result }),
        (any::<u64>(), any::<u64>()).prop_map(|(id, after)| Message::Flush {
            id,
            after: Seq(after)
        }),
        (any::<u64>(), outcome()).prop_map(|(id, result)| Message::Flushed { id, result }),
        (any::<u64>(), offset(), 1u32..257).prop_map(|(id, offset, len)| Message::Read {
            id,
            offset,
            len: len * 4096
        }),
        (any::<u64>(), blocks()).prop_map(|(id, data)| Message::ReadReply {
            id,
            result: Ok(data)
        }),
        (any::<u64>(), fault()).prop_map(|(id, fault)| Message::ReadReply {
            id,
            result: Err(fault)
        }),
        (
            any::<u64>(),
            offset(),
            prop::collection::vec(any::<[u8; 16]>(), 1..50)
        )
            .prop_map(|(id, offset, hashes)| Message::Compare { id, offset, hashes }),
        (any::<u64>(), ids).prop_map(|(id, different)| Message::Compared {
            id,
            result: Ok(different.into_iter().collect())
        }),
        (any::<u64>(), fault()).prop_map(|(id, fault)| Message::Compared {
            id,
            result: Err(fault)
        }),
    ]
}

fn talk() -> impl Strategy<Value = Message> {
    let doings = vec![Doing::Nothing, Doing::Sync, Doing::Paused, Doing::Verify];
    prop_oneof![
        prop::sample::select(vec![
            Message::Ready,
            Message::Adopted,
            Message::Settled,
            Message::PromoteAsk,
            Message::PromoteGrant,
            Message::Carrying,
            Message::Leave,
            Message::Bye,
        ]),
        (runs(), any::<bool>()).prop_map(|(runs, last)| Message::Marks { runs, last }),
        runs().prop_map(|runs| Message::Cleared { runs }),
        any::<u64>().prop_map(|sent| Message::Ping { sent }),
        any::<u64>().prop_map(|sent| Message::Pong { sent }),
        (role(), disk()).prop_map(|(role, disk)| Message::State { role, disk }),
        (generation(), prop::collection::vec(generation(), 0..64))
            .prop_map(|(current, history)| Message::Offer { current, history }),
        "\\PC{0,80}".prop_map(|why| Message::PromoteRefuse { why }),
        prop::sample::select(doings).prop_map(|doing| Message::Progress { doing }),
        any::<Option<u64>>().prop_map(|instance| Message::ArbiterInstance { instance }),
        any::<Option<u64>>().prop_map(|instance| Message::ArbiterRecorded { instance }),
        (any::<u64>(), any::<bool>()).prop_map(|(node, full)| Message::Resolve {
            keep: NodeId(node),
            full
        }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![hello(), transfers(), talk()]
}

proptest! {
    #[test]
    fn a_message_survives_its_spelling(message in message()) {
        let spelled = encode(&message);
        prop_assert!(spelled.head.len() <= MAX_HEAD);
        prop_assert!(Kind::from_wire(spelled.kind).is_some());
        let read = decode(spelled.kind, &spelled.head, spelled.payload);
        prop_assert_eq!(read, Ok(message));
    }

    #[test]
    fn a_shorter_or_longer_head_is_refused(message in message(), cut in any::<prop::sample::Index>()) {
        let spelled = encode(&message);
        let mut longer = spelled.head.to_vec();
        longer.push(0);
        prop_assert!(decode(spelled.kind, &Bytes::from(longer), spelled.payload.clone()).is_err());
        if !spelled.head.is_empty() {
            let cut = cut.index(spelled.head.len());
            let shorter = spelled.head.slice(..cut);
            // A hello without the boot at its end is one of version 1.
            let older = matches!(&message, Message::Hello(hello) if hello.boot.is_some())
                && cut == spelled.head.len() - size_of::<u128>();
            prop_assert_eq!(decode(spelled.kind, &shorter, spelled.payload).is_ok(), older);
        }
    }

    /// Any bytes are refused, or are the one spelling of what they are read as.
    #[test]
    fn arbitrary_bytes_never_panic(
        kind in prop_oneof![any::<u8>(), prop::sample::select(Kind::ALL.to_vec()).prop_map(|kind| kind as u8)],
        head in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..300),
        payload in prop::option::of(prop_oneof![Just(4096usize), 0usize..9000]),
    ) {
        let head = Bytes::from(head);
        let payload = payload.map(|len| Bytes::from(vec![0; len]));
        if let Ok(message) = decode(kind, &head, payload.clone()) {
            let again = encode(&message);
            prop_assert_eq!(again.kind, kind);
            prop_assert_eq!(again.head, head);
            prop_assert_eq!(again.payload, payload);
        }
    }

    /// A flipped bit is refused, or gives another message that is sound by itself.
    #[test]
    fn a_flipped_bit_never_panics(message in message(), bit in any::<prop::sample::Index>()) {
        let spelled = encode(&message);
        if !spelled.head.is_empty() {
            let mut head = spelled.head.to_vec();
            let at = bit.index(head.len() * 8);
            head[at / 8] ^= 1 << (at % 8);
            let head = Bytes::from(head);
            if let Ok(other) = decode(spelled.kind, &head, spelled.payload) {
                prop_assert_ne!(&other, &message);
                prop_assert_eq!(encode(&other).head, head);
            }
        }
    }
}

/// 1 % of the blocks of 1 TiB, at random places.
#[test]
fn random_marks_of_a_tebibyte_take_two_bytes_a_run() {
    let mut state = 1u64;
    let mut end = 0u64;
    let mut runs = Vec::new();
    for _ in 0..MAX_RUNS_PER_MESSAGE {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        end += 1 + (state >> 33) % 200;
        runs.push(Run::new(Block(end), 1));
        end += 1;
    }
    let count = runs.len();
    let spelled = encode(&Message::Marks { runs, last: false });
    assert!(
        spelled.head.len() < count * 5 / 2,
        "{} bytes for {count} runs",
        spelled.head.len()
    );
}

#[test]
fn the_largest_messages_fit_a_head() {
    let limit = (256u64 << 40) / 4096;
    let step = limit / MAX_RUNS_PER_MESSAGE as u64;
    let runs = (0..MAX_RUNS_PER_MESSAGE as u64)
        .map(|i| Run::new(Block(i * step), step - 1))
        .collect();
    let hashes = vec![[0xff; 16]; MAX_HASHES_PER_MESSAGE];
    for message in [
        Message::Marks { runs, last: true },
        Message::Compare {
            id: 1,
            offset: 0,
            hashes,
        },
    ] {
        let spelled = encode(&message);
        assert!(spelled.head.len() <= MAX_HEAD);
        assert_eq!(decode(spelled.kind, &spelled.head, None), Ok(message));
    }
    let data = Bytes::from(vec![0; MAX_PAYLOAD]);
    let message = Message::ResyncBlocks {
        seq: Seq(1),
        offset: 0,
        data,
    };
    let spelled = encode(&message);
    assert_eq!(
        decode(spelled.kind, &spelled.head, spelled.payload),
        Ok(message)
    );
}

#[test]
fn a_long_reason_is_cut_at_a_character() {
    let why = "鏡".repeat(MAX_TEXT);
    let spelled = encode(&Message::PromoteRefuse { why });
    let Ok(Message::PromoteRefuse { why }) = decode(spelled.kind, &spelled.head, None) else {
        panic!("not a refusal");
    };
    assert_eq!(why, "鏡".repeat(MAX_TEXT / 3));
}

/// What a peer must not make us believe or allocate, each with its fault.
#[test]
fn misuse_is_named() {
    let write = encode(&Message::Write {
        seq: Seq(1),
        offset: 4096,
        data: Bytes::from(vec![0; 4096]),
        fua: false,
        early: false,
    });
    let with = |at: usize, bytes: &[u8]| {
        let mut head = write.head.to_vec();
        head[at..at + bytes.len()].copy_from_slice(bytes);
        decode(write.kind, &Bytes::from(head), write.payload.clone()).unwrap_err()
    };
    let field = |fault: MessageFault| match fault {
        MessageFault::BadValue { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(with(0, &[0; 8])), "seq");
    assert_eq!(field(with(8, &[1])), "offset", "not aligned");
    let last = (u64::MAX - 4095).to_le_bytes();
    assert_eq!(field(with(8, &last)), "offset", "it would pass 2^64");
    assert_eq!(field(with(16, &[4])), "flags");
    for payload in [None, Some(0), Some(512), Some(MAX_PAYLOAD + 4096)] {
        let payload = payload.map(|len| Bytes::from(vec![0; len]));
        let fault = decode(write.kind, &write.head, payload);
        assert!(
            matches!(fault, Err(MessageFault::BadPayload { .. })),
            "{fault:?}"
        );
    }
    let ready = decode(
        Kind::Ready as u8,
        &Bytes::new(),
        Some(Bytes::from(vec![0; 4096])),
    );
    assert!(
        matches!(ready, Err(MessageFault::BadPayload { .. })),
        "{ready:?}"
    );
    let unknown = decode(0, &Bytes::new(), None);
    assert_eq!(unknown, Err(MessageFault::UnknownKind { kind: 0 }));

    let cleared = |head: &'static [u8]| {
        decode(Kind::Cleared as u8, &Bytes::from_static(head), None).unwrap_err()
    };
    // 65,535 runs announced by a head of three bytes: nothing is allocated for them
    assert!(matches!(
        cleared(&[0xff, 0xff, 0]),
        MessageFault::TooMany { .. }
    ));
    assert!(matches!(
        cleared(&[0xff, 0x0f, 0]),
        MessageFault::Short { .. }
    ));
    // a number spelled longer than it need be
    assert_eq!(field(cleared(&[1, 0, 0x80, 0, 0])), "runs");
    // a run beyond the largest mirror, and a number beyond 64 bits
    assert_eq!(
        field(cleared(&[
            1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0
        ])),
        "runs"
    );
    assert_eq!(
        field(cleared(&[
            1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0
        ])),
        "runs"
    );
}
