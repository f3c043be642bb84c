//! The witness's registers on disk: compare-and-swap, what survives a restart, what is refused.

use std::fs;
use std::path::Path;

use kagami_replicator::shell::identity::Fingerprint;
use kagami_replicator::shell::witness::RegisterId;
use kagami_replicator::shell::witness::store::{self, Store, StoreError};
use kagami_replicator::shell::witness::wire::{Content, Op, Outcome, Reason, Request};

const A: Fingerprint = Fingerprint::from_bytes([1; 32]);
const B: Fingerprint = Fingerprint::from_bytes([2; 32]);
const STRANGER: Fingerprint = Fingerprint::from_bytes([3; 32]);
const PG: RegisterId = RegisterId(0x7067);

fn swap(expect: Option<(u64, u64)>, new: (u64, u64), nonce: u64) -> Request {
    let op = Op::Swap {
        expect,
        instance: new.0,
        seq: new.1,
        bytes: format!("content {nonce}").into_bytes(),
        members: vec![A, B],
    };
    Request {
        register: PG,
        nonce,
        op,
    }
}

fn read(register: RegisterId) -> Request {
    Request {
        register,
        nonce: 99,
        op: Op::Read,
    }
}

fn state(instance: u64, seq: u64, nonce: u64) -> Outcome {
    let bytes = format!("content {nonce}").into_bytes();
    Outcome::State(Some(Content {
        instance,
        seq,
        nonce,
        bytes,
    }))
}

fn open(folder: &Path) -> Store {
    Store::open(folder, [A, B]).expect("store")
}

fn reason(outcome: &Outcome) -> Option<Reason> {
    match outcome {
        Outcome::Refused(reason, _) => Some(*reason),
        _ => None,
    }
}

#[test]
fn a_swap_needs_what_it_expects() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut store = open(folder.path());
    assert_eq!(
        store.answer(&A, &read(PG)),
        Outcome::State(None),
        "empty at first"
    );
    assert_eq!(
        store.answer(&A, &swap(Some((7, 1)), (7, 2), 1)),
        Outcome::State(None),
        "there is nothing to change"
    );
    assert_eq!(store.answer(&A, &swap(None, (7, 1), 2)), Outcome::Swapped);
    assert_eq!(
        store.answer(&B, &swap(None, (8, 1), 3)),
        state(7, 1, 2),
        "created once only"
    );
    assert_eq!(
        store.answer(&B, &swap(Some((7, 1)), (7, 2), 4)),
        Outcome::Swapped
    );
    assert_eq!(
        store.answer(&A, &swap(Some((7, 1)), (7, 2), 5)),
        state(7, 2, 4),
        "too late"
    );
    assert_eq!(
        store.answer(&B, &swap(Some((7, 1)), (7, 2), 4)),
        Outcome::Swapped,
        "the same again: it took place"
    );
    assert_eq!(store.answer(&A, &read(PG)), state(7, 2, 4));
}

#[test]
fn a_change_keeps_the_instance_and_raises_seq() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut store = open(folder.path());
    assert_eq!(store.answer(&A, &swap(None, (7, 5), 1)), Outcome::Swapped);
    for wrong in [(8, 6), (7, 5), (7, 4)] {
        assert_eq!(
            reason(&store.answer(&A, &swap(Some((7, 5)), wrong, 2))),
            Some(Reason::Invalid),
            "{wrong:?}"
        );
    }
    assert_eq!(store.answer(&A, &read(PG)), state(7, 5, 1));
}

#[test]
fn what_was_answered_is_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("tempdir");
    {
        let mut store = open(folder.path());
        assert_eq!(store.answer(&A, &swap(None, (7, 1), 1)), Outcome::Swapped);
        for seq in 1..20 {
            let change = swap(Some((7, seq)), (7, seq + 1), seq + 1);
            assert_eq!(store.answer(&A, &change), Outcome::Swapped);
        }
    }
    // A crash while a newer state was being written: that was never answered.
    fs::write(
        folder.path().join("registers").join(format!("{PG}.new")),
        b"half",
    )
    .expect("write");
    let mut store = open(folder.path());
    assert_eq!(store.answer(&B, &read(PG)), state(7, 20, 20));
    assert!(
        !folder
            .path()
            .join("registers")
            .join(format!("{PG}.new"))
            .exists()
    );
}

#[test]
fn one_witness_for_a_folder() {
    let folder = tempfile::tempdir().expect("tempdir");
    let store = open(folder.path());
    assert!(matches!(
        Store::open(folder.path(), [A]),
        Err(StoreError::InUse(_))
    ));
    drop(store);
    open(folder.path());
}

#[test]
fn registers_belong_to_their_two_nodes() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut store = Store::open(folder.path(), [A, B]).expect("store");
    assert_eq!(
        reason(&store.answer(&STRANGER, &read(PG))),
        Some(Reason::Stranger)
    );
    assert_eq!(store.answer(&A, &swap(None, (7, 1), 1)), Outcome::Swapped);
    // Enrolled while the witness runs, for a mirror of its own: A's and B's stays closed to it.
    store::enrol(folder.path(), &STRANGER, "gamma").expect("enrol");
    assert_eq!(
        store::enrolled(folder.path(), &[]).expect("list"),
        [(STRANGER, "gamma".to_owned())]
    );
    assert_eq!(
        reason(&store.answer(&STRANGER, &read(PG))),
        Some(Reason::NotAMember)
    );
    let change = swap(Some((7, 1)), (7, 2), 2);
    assert_eq!(
        reason(&store.answer(&STRANGER, &change)),
        Some(Reason::NotAMember)
    );
    assert_eq!(
        store.answer(&STRANGER, &read(RegisterId(1))),
        Outcome::State(None)
    );
    assert_eq!(store.answer(&A, &read(PG)), state(7, 1, 1));
}

#[test]
fn a_register_is_bound_to_nodes_that_are_known() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut store = Store::open(folder.path(), [A]).expect("store");
    let outcome = store.answer(&A, &swap(None, (7, 1), 1));
    let Outcome::Refused(Reason::Stranger, text) = &outcome else {
        panic!("{outcome:?}")
    };
    assert!(
        text.contains(&B.to_string()),
        "names the key that is missing: {text}"
    );
    let mut alone = swap(None, (7, 1), 1);
    if let Op::Swap { members, .. } = &mut alone.op {
        *members = vec![B];
    }
    assert_eq!(
        reason(&store.answer(&A, &alone)),
        Some(Reason::Invalid),
        "the asker must be among them"
    );
    assert_eq!(store.answer(&A, &read(PG)), Outcome::State(None));
}

#[test]
fn one_flipped_bit_anywhere_is_never_an_empty_register() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut store = open(folder.path());
    assert_eq!(store.answer(&A, &swap(None, (7, 1), 1)), Outcome::Swapped);
    let file = folder.path().join("registers").join(PG.to_string());
    let whole = fs::read(&file).expect("read");
    let damaged = (0..whole.len() * 8).map(|bit| {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });
    let cut = (0..whole.len()).map(|len| whole[..len].to_vec());
    for bytes in damaged.chain(cut) {
        fs::write(&file, &bytes).expect("write");
        let outcome = store.answer(&A, &read(PG));
        assert_eq!(reason(&outcome), Some(Reason::Corrupt));
        assert_eq!(
            reason(&store.answer(&A, &swap(None, (9, 1), 2))),
            Some(Reason::Corrupt),
            "nor created anew"
        );
        assert_eq!(fs::read(&file).expect("read"), bytes, "nor touched");
    }
    // Other registers go on.
    assert_eq!(store.answer(&A, &read(RegisterId(5))), Outcome::State(None));
    // The file of another register in its place is not believed either.
    fs::write(&file, &whole).expect("write");
    fs::copy(
        &file,
        folder
            .path()
            .join("registers")
            .join(RegisterId(5).to_string()),
    )
    .expect("copy");
    assert_eq!(
        reason(&store.answer(&A, &read(RegisterId(5)))),
        Some(Reason::Corrupt)
    );
    assert_eq!(store.answer(&A, &read(PG)), state(7, 1, 1));
}
