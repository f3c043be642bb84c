//! The frame's encoding: what goes in comes out, in pieces of any size, and nothing else does.

use bytes::Bytes;
use kagami_replicator::wire::frame::{
    Class, Decoded, Decoder, Encoder, FrameFault, InFrame, OutFrame,
};
use kagami_replicator::wire::limits::{HEADER_LEN, MAX_HEAD, MAX_PAYLOAD};
use proptest::prelude::*;

fn encode(frames: &[OutFrame]) -> Vec<Bytes> {
    let mut encoder = Encoder::new(1);
    let mut pieces = Vec::new();
    for frame in frames {
        encoder.encode(frame, &mut pieces);
    }
    encoder.flush(&mut pieces);
    pieces
}

/// Decodes a stream that arrives in pieces of these sizes, over and over.
fn decode(stream: &Bytes, sizes: &[usize]) -> Result<(Vec<InFrame>, bool), FrameFault> {
    let mut decoder = Decoder::<Vec<u8>>::new(1);
    let mut frames = Vec::new();
    let mut rest = stream.clone();
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let size = (*sizes.next().expect("endless")).clamp(1, rest.len());
        let mut input = rest.split_to(size);
        loop {
            match decoder.feed(&mut input)? {
                Decoded::Hungry => break,
                Decoded::NeedsBuffer { len } => {
                    assert!(len <= MAX_PAYLOAD);
                    decoder.supply(vec![0; len]);
                }
                Decoded::Frame(frame) => frames.push(frame),
            }
        }
        assert!(input.is_empty(), "hungry with bytes left");
    }
    Ok((frames, decoder.is_between_frames()))
}

fn frame() -> impl Strategy<Value = OutFrame> {
    let head = prop::collection::vec(any::<u8>(), 0..200);
    let payload = prop::option::of(prop_oneof![
        prop::collection::vec(any::<u8>(), 1..100),
        (1_usize..20_000, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ]);
    (any::<u8>(), head, payload).prop_map(|(kind, head, payload)| OutFrame {
        kind,
        head: head.into(),
        payload: payload.map(Bytes::from),
    })
}

fn same(sent: &[OutFrame], got: &[InFrame]) -> bool {
    let as_in = |f: &OutFrame| InFrame {
        kind: f.kind,
        head: f.head.clone(),
        payload: f.payload.clone(),
    };
    sent.len() == got.len() && sent.iter().zip(got).all(|(sent, got)| as_in(sent) == *got)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_goes_in_comes_out(
        frames in prop::collection::vec(frame(), 0..12),
        sizes in prop::collection::vec(1_usize..9000, 1..8),
    ) {
        let stream = Bytes::from(encode(&frames).concat());
        prop_assert_eq!(stream.len(), frames.iter().map(OutFrame::wire_len).sum::<usize>());
        let (got, whole) = decode(&stream, &sizes).expect("no fault");
        prop_assert!(whole && same(&frames, &got));
    }

    #[test]
    fn one_changed_bit_is_found(
        frames in prop::collection::vec(frame(), 1..4),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let mut stream = encode(&frames).concat();
        let at = at.index(stream.len());
        stream[at] ^= 1_u8 << bit;
        // A length made longer waits for bytes that don't come: no frame is made up meanwhile.
        if let Ok((got, whole)) = decode(&stream.into(), &[usize::MAX]) {
            prop_assert!(!whole && got.len() < frames.len());
            prop_assert!(same(&frames[..got.len()], &got));
        }
    }

    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        genuine in any::<bool>(),
        sizes in prop::collection::vec(1_usize..50, 1..4),
    ) {
        let mut stream = bytes;
        if genuine && stream.len() >= 6 {
            stream[..6].copy_from_slice(b"KGMF\x01\x00");
        }
        if let Ok((got, _)) = decode(&stream.into(), &sizes) {
            prop_assert!(got.is_empty());
        }
    }
}

#[test]
fn the_header_is_as_documented() {
    let frame = OutFrame {
        kind: 5,
        head: Bytes::from_static(b"abc"),
        payload: Some(Bytes::from(vec![9; 4097])),
    };
    let bytes = encode(std::slice::from_ref(&frame)).concat();
    let mut expected = b"KGMF".to_vec();
    expected.extend([1, 0, 5, 0]); // version, kind, flags
    expected.extend(3_u32.to_le_bytes()); // head
    expected.extend(4097_u32.to_le_bytes()); // payload
    expected.extend(0_u64.to_le_bytes()); // sequence
    expected.extend([0; 4]); // reserved
    let mut covered = expected.clone();
    covered.extend(b"abc");
    covered.extend(crc32c::crc32c(&[9; 4096]).to_le_bytes());
    covered.extend(crc32c::crc32c(&[9]).to_le_bytes());
    expected.extend(crc32c::crc32c(&covered).to_le_bytes());
    expected.extend(&covered[HEADER_LEN - 4..]);
    expected.extend([9; 4097]);
    assert!(bytes == expected);
    assert_eq!(bytes.len(), frame.wire_len());
}

#[test]
fn the_payload_is_sent_uncopied_and_small_frames_together() {
    let payload = Bytes::from(vec![1; 8192]);
    let small = OutFrame {
        kind: 1,
        head: Bytes::from_static(b"ack"),
        payload: None,
    };
    let big = OutFrame {
        kind: 2,
        head: Bytes::new(),
        payload: Some(payload.clone()),
    };
    let pieces = encode(&[small.clone(), small.clone(), big, small.clone(), small]);
    assert_eq!(pieces.len(), 3);
    assert_eq!(pieces[1].as_ptr(), payload.as_ptr());
}

#[test]
fn the_bounds_are_checked_before_anything_is_waited_for() {
    let header = |head: u32, payload: u32| {
        let mut bytes = b"KGMF\x01\x00\x01\x00".to_vec();
        bytes.extend(head.to_le_bytes());
        bytes.extend(payload.to_le_bytes());
        bytes.extend([0; 16]);
        decode(&bytes.into(), &[usize::MAX])
    };
    let over = MAX_HEAD as u32 + 1;
    assert_eq!(
        header(over, 0),
        Err(FrameFault::HeadTooLarge { kind: 1, len: over })
    );
    let over = MAX_PAYLOAD as u32 + 1;
    assert_eq!(
        header(0, over),
        Err(FrameFault::PayloadTooLarge { kind: 1, len: over })
    );
    assert_eq!(
        header(MAX_HEAD as u32, MAX_PAYLOAD as u32),
        Ok((vec![], false))
    );
}

#[test]
fn a_payload_needs_a_buffer_before_it_is_read() {
    let frame = OutFrame {
        kind: 1,
        head: Bytes::new(),
        payload: Some(Bytes::from(vec![3; 10])),
    };
    let mut stream = Bytes::from(encode(&[frame]).concat());
    let mut decoder = Decoder::<Vec<u8>>::new(1);
    for _ in 0..2 {
        assert_eq!(
            decoder.feed(&mut stream),
            Ok(Decoded::NeedsBuffer { len: 10 })
        );
        assert_eq!(stream.len(), 10);
    }
    decoder.supply(vec![0; 4096]);
    let Ok(Decoded::Frame(frame)) = decoder.feed(&mut stream) else {
        panic!("no frame")
    };
    assert_eq!(frame.payload.as_deref(), Some(&[3; 10][..]));
}

#[test]
fn classes_have_their_numbers() {
    for class in Class::ALL {
        assert_eq!(Class::from_wire(class as u8), Some(class));
    }
    assert_eq!(Class::from_wire(3), None);
}
