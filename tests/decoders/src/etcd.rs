//! The value of etcd's key: a register as it is kept, what a mirror or a group reads in it, and what a
//! change of it comes to. Whoever may write the key can write anything.

use kagami_failover::right::register as group;
use kagami_replicator::shell::arbiter::kept::{Kept, KeptFault, MAX_KEPT, MAX_MEMBERS};
use kagami_replicator::shell::arbiter::raw::{Content, Judgement, MAX_CONTENT, RegisterId, judge};
use kagami_replicator::shell::arbiter::register as mirror;
use kagami_replicator::shell::identity::Fingerprint;

use crate::input::Input;

/// The register that is asked for.
const REGISTER: RegisterId = RegisterId(0x6b61_6761_6d69);

/// A value: any bytes, or a register with some of its bytes changed, under a checksum that is right or not.
pub fn value(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (is_whole, is_sealed) = (input.coin(), input.coin());
    let (expect, new) = change(&mut input);
    let mut value = if is_whole {
        let content = content(&mut input);
        let members = (0..input.below(MAX_MEMBERS as u8 + 1))
            .map(|_| Fingerprint::from_bytes([input.u8(); 32]))
            .collect();
        let mut value = Kept { content, members }.encode(REGISTER);
        input.patch(&mut value);
        value
    } else {
        input.rest().to_vec()
    };
    if let Some((body, sum)) = value.split_last_chunk_mut::<4>()
        && is_sealed
    {
        *sum = crc32c::crc32c(body).to_le_bytes();
    }
    match Kept::decode(REGISTER, &value) {
        Ok(kept) => found(&value, &kept, expect, &new),
        Err(fault) => assert!(!fault.to_string().is_empty()),
    }
}

/// What a node finds, and what its change comes to.
fn found(value: &[u8], kept: &Kept, expect: Option<(u64, u64)>, new: &Content) {
    assert!(value.len() <= MAX_KEPT, "{} bytes", value.len());
    assert_eq!(kept.encode(REGISTER), value);
    let other = RegisterId(!REGISTER.0);
    assert!(
        matches!(Kept::decode(other, value), Err(KeptFault::Other(id)) if id == REGISTER),
        "a value in another's place"
    );
    let Content {
        instance,
        seq,
        nonce,
        bytes,
    } = &kept.content;
    let of_mirror = mirror::decode(*instance, *seq, *nonce, bytes);
    let of_group = group::decode(bytes);
    assert!(of_mirror.is_err() || of_group.is_err(), "whose is it?");
    if let Ok(register) = of_mirror {
        assert_eq!(mirror::encode(&register), *bytes);
        assert!(*seq < u64::MAX, "a register that is stuck");
    }
    if let Ok(record) = of_group {
        assert_eq!(group::encode(&record), *bytes);
        assert!(record.run.checked_add(1).is_some(), "no run after it");
    }
    let present = &kept.content;
    for expect in [Some((*instance, *seq)), expect, None] {
        match judge(Some(present), expect, new) {
            Judgement::Write => {
                assert_eq!(expect, Some((*instance, *seq)), "not what was expected");
                assert!(new.instance == *instance && new.seq > *seq);
                // Asked a second time it comes to the same, and a change can follow.
                assert_eq!(judge(Some(new), expect, new), Judgement::Done);
                assert!(new.seq < u64::MAX);
            }
            Judgement::Done => assert_eq!(present, new),
            Judgement::Other => assert_ne!(expect, Some((*instance, *seq))),
            Judgement::Senseless(_) => {
                assert_eq!(expect, Some((*instance, *seq)));
                assert!(new.instance != *instance || new.seq <= *seq || new.seq == u64::MAX);
            }
        }
    }
}

/// What a node would have it hold, and what it expects there.
fn change(input: &mut Input<'_>) -> (Option<(u64, u64)>, Content) {
    let expect = input.coin().then(|| (numbers(input), numbers(input)));
    (expect, content(input))
}

fn content(input: &mut Input<'_>) -> Content {
    let (instance, seq, nonce) = (numbers(input), numbers(input), numbers(input));
    let len = usize::from(input.u16()) % (MAX_CONTENT + 1);
    let bytes = input.take(len).to_vec();
    Content {
        instance,
        seq,
        nonce,
        bytes,
    }
}

/// Few, so that some are equal, and those at the edge.
fn numbers(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0xff => u64::MAX,
        0xfe => u64::MAX - 1,
        low => u64::from(low),
    }
}
