//! What a peer sends: frames, the messages in them, and what opens connections and streams.

use bytes::Bytes;
use kagami_replicator::wire::frame::{
    Class, Decoded, Decoder, Encoder, FrameFault, InFrame, MAGIC, OutFrame,
};
use kagami_replicator::wire::limits::{CHECKSUM_BLOCK, HEADER_LEN, MAX_HEAD, MAX_PAYLOAD};
use kagami_replicator::wire::message;

use crate::input::Input;

/// A stream of frames, in pieces of any size, of either protocol version; the checksums are put
/// right or not.
pub fn frames(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.u8();
    let version = 1 + u16::from(how & 1);
    let pieces = [input.u8(), input.u8(), input.u8()];
    let mut stream = input.rest().to_vec();
    if how & 2 != 0 {
        put_right(&mut stream, version);
    }
    let (decoded, consumed, fault) = decode(&stream, version, &pieces);
    let whole = decode(&stream, version, &[0]);
    assert_eq!(
        (&decoded, consumed, &fault),
        (&whole.0, whole.1, &whole.2),
        "the cut into pieces changes nothing"
    );
    // What was understood has one spelling: the one that came.
    let mut encoder = Encoder::new(version);
    let mut spelled = Vec::new();
    for frame in decoded {
        let frame = OutFrame {
            kind: frame.kind,
            head: frame.head,
            payload: frame.payload,
        };
        assert!(frame.head.len() <= MAX_HEAD);
        encoder.encode(&frame, &mut spelled);
    }
    encoder.flush(&mut spelled);
    assert!(
        spelled.concat() == stream[..consumed],
        "a frame has two spellings"
    );
}

/// All frames, where the last of them ended, and the fault that ended it.
fn decode(stream: &[u8], version: u16, pieces: &[u8]) -> (Vec<InFrame>, usize, Option<FrameFault>) {
    let mut decoder = Decoder::<Vec<u8>>::new(version);
    let stream = Bytes::copy_from_slice(stream);
    let (mut at, mut nth, mut end) = (0, 0, 0);
    let mut frames = Vec::new();
    while at < stream.len() {
        let len = match pieces[nth % pieces.len()] {
            0 => stream.len(),
            len => usize::from(len),
        };
        nth += 1;
        let upto = (at + len).min(stream.len());
        let mut piece = stream.slice(at..upto);
        loop {
            match decoder.feed(&mut piece) {
                Ok(Decoded::Hungry) => break,
                Ok(Decoded::NeedsBuffer { len }) => {
                    assert!((1..=MAX_PAYLOAD).contains(&len));
                    decoder.supply(vec![0; len]);
                }
                Ok(Decoded::Frame(frame)) => {
                    assert!(decoder.is_between_frames());
                    end = upto - piece.len();
                    frames.push(frame);
                }
                Err(fault) => return (frames, end, Some(fault)),
            }
        }
        assert!(piece.is_empty(), "hungry with food left");
        at = upto;
    }
    (frames, end, None)
}

/// Makes the bytes frames as far as they go: magic, version, numbers and checksums.
fn put_right(stream: &mut [u8], version: u16) {
    let (mut at, mut sequence) = (0, 0u64);
    while stream.len() - at >= HEADER_LEN {
        let header = &mut stream[at..at + HEADER_LEN];
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..6].copy_from_slice(&version.to_le_bytes());
        header[7] = 0;
        // Small ones, so that there is room for several.
        header[10..12].fill(0);
        header[14..16].fill(0);
        header[16..24].copy_from_slice(&sequence.to_le_bytes());
        header[24..28].fill(0);
        let head_len = usize::from(u16::from_le_bytes([header[8], header[9]]));
        let payload_len = usize::from(u16::from_le_bytes([header[12], header[13]]));
        let sums = payload_len.div_ceil(CHECKSUM_BLOCK);
        let payload_at = at + HEADER_LEN + head_len + 4 * sums;
        let end = payload_at + payload_len;
        if end > stream.len() {
            return;
        }
        for nth in 0..sums {
            let from = payload_at + nth * CHECKSUM_BLOCK;
            let sum = crc32c::crc32c(&stream[from..(from + CHECKSUM_BLOCK).min(end)]);
            let sum_at = at + HEADER_LEN + head_len + 4 * nth;
            stream[sum_at..sum_at + 4].copy_from_slice(&sum.to_le_bytes());
        }
        let sum = crc32c::crc32c(&stream[at..at + HEADER_LEN - 4]);
        let sum = crc32c::crc32c_append(sum, &stream[at + HEADER_LEN..payload_at]);
        stream[at + HEADER_LEN - 4..at + HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
        sequence += 1;
        at = end;
    }
}

/// One message: a kind, a payload of some length, a head.
pub fn messages(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.u8();
    let how = input.u8();
    let payload = match how & 7 {
        0..=3 => None,
        4 => Some(vec![how; 4096]),
        5 => Some(vec![how; 4096 * (1 + usize::from(how >> 3))]),
        6 => Some(vec![how; usize::from(input.u16())]),
        _ => Some(vec![how; MAX_PAYLOAD + usize::from(how >> 6) * 4096]),
    };
    let payload = payload.map(Bytes::from);
    let head = input.rest();
    let Ok(decoded) = message::decode(kind, head, payload.clone()) else {
        return;
    };
    let spelled = message::encode(&decoded);
    assert_eq!(
        (spelled.kind, &spelled.head[..]),
        (kind, head),
        "{decoded:?}"
    );
    assert_eq!(spelled.payload, payload);
    assert!(Class::ALL.len() > decoded.class() as usize);
}

/// Hellos, preambles and notes; the checksum is put right or not.
pub fn openings(bytes: &[u8]) {
    use kagami_replicator::shell::quic::respell;
    let mut input = Input::new(bytes);
    let how = input.u8();
    let agreed = 1 + u16::from(how & 1);
    let mut bytes = input.rest().to_vec();
    let magic: &[u8; 4] = match how >> 2 & 3 {
        0 => b"KGMH",
        1 => b"KGMP",
        _ => b"KGMN",
    };
    if how & 2 != 0 && bytes.len() >= 8 {
        bytes[..4].copy_from_slice(magic);
        let end = bytes.len() - 4;
        let sum = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_le_bytes());
    }
    let spelled = match how >> 2 & 3 {
        0 => respell::hello(&bytes),
        1 => respell::preamble(&bytes, agreed),
        _ => respell::note(&bytes, agreed),
    };
    let Some(spelled) = spelled else { return };
    if how >> 2 & 3 < 2 {
        assert_eq!(spelled, bytes, "what opens a stream has two spellings");
    } else {
        // A note's text is cleaned on its way to people: once.
        assert_eq!(respell::note(&spelled, agreed), Some(spelled));
    }
}
