//! Who may use a register changes over the years: nodes are replaced, taken out, and change their keys.

use std::path::Path;

use kagami_replicator::shell::identity::Fingerprint;
use kagami_replicator::shell::witness::RegisterId;
use kagami_replicator::shell::witness::store::{self, Store};
use kagami_replicator::shell::witness::wire::{Op, Outcome, Reason, Request};

const A: Fingerprint = Fingerprint::from_bytes([1; 32]);
const B: Fingerprint = Fingerprint::from_bytes([2; 32]);
const NEW: Fingerprint = Fingerprint::from_bytes([3; 32]);
const NEXT: Fingerprint = Fingerprint::from_bytes([4; 32]);
const PG: RegisterId = RegisterId(0x7067);

fn ask(store: &mut Store, asker: &Fingerprint, op: Op) -> Outcome {
    let request = Request {
        register: PG,
        nonce: 9,
        op,
    };
    store.answer(asker, &request)
}

fn bind(members: &[Fingerprint]) -> Op {
    Op::Bind {
        members: members.to_vec(),
    }
}

fn reason(outcome: &Outcome) -> Option<Reason> {
    match outcome {
        Outcome::Refused(reason, _) => Some(*reason),
        _ => None,
    }
}

/// A register of A and B.
fn made(folder: &Path) -> Store {
    store::enrol(folder, &A, "alpha").expect("enrol");
    store::enrol(folder, &B, "beta").expect("enrol");
    let mut store = Store::open(folder, []).expect("store");
    let op = Op::Swap {
        expect: None,
        instance: 7,
        seq: 1,
        bytes: b"who may go on".to_vec(),
        members: vec![A, B],
    };
    assert_eq!(ask(&mut store, &A, op), Outcome::Swapped);
    store
}

fn names(folder: &Path) -> Vec<(Fingerprint, String)> {
    store::enrolled(folder, &[]).expect("list")
}

#[test]
fn a_new_node_takes_the_place_of_one_that_is_gone() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut store = made(folder.path());
    // Not before it is enrolled, not by itself, and not without the asker.
    assert_eq!(
        reason(&ask(&mut store, &A, bind(&[A, NEW]))),
        Some(Reason::Stranger)
    );
    store::enrol(folder.path(), &NEW, "gamma").expect("enrol");
    assert_eq!(
        reason(&ask(&mut store, &NEW, bind(&[A, NEW]))),
        Some(Reason::NotAMember)
    );
    assert_eq!(
        reason(&ask(&mut store, &A, bind(&[B, NEW]))),
        Some(Reason::Invalid)
    );
    let before = ask(&mut store, &A, Op::Read);
    assert_eq!(ask(&mut store, &A, bind(&[A, NEW])), Outcome::Swapped);
    assert_eq!(
        ask(&mut store, &NEW, Op::Read),
        before,
        "what it says has not changed"
    );
    assert_eq!(
        reason(&ask(&mut store, &B, Op::Read)),
        Some(Reason::NotAMember)
    );
    drop(store);
    let mut store = Store::open(folder.path(), []).expect("again");
    assert_eq!(ask(&mut store, &NEW, Op::Read), before, "after a restart");
}

#[test]
fn a_node_that_was_taken_out_hears_so() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut store = made(folder.path());
    assert_eq!(
        store::forget(folder.path(), "beta", &[]).expect("forget"),
        [(B, "beta".to_owned())]
    );
    assert!(store.is_forgotten(&B) && !store.is_enrolled(&B));
    // No stranger, and no silence: its register is other nodes'.
    let outcome = ask(&mut store, &B, Op::Read);
    let Outcome::Refused(Reason::NotAMember, text) = &outcome else {
        panic!("{outcome:?}")
    };
    assert!(text.contains("taken out"), "{text}");
    assert_eq!(
        reason(&ask(&mut store, &A, Op::Succeed { key: B })),
        Some(Reason::Invalid)
    );
    assert!(
        store::forget(folder.path(), "beta", &[])
            .expect("again")
            .is_empty()
    );
    // By its key, and in again.
    assert_eq!(
        store::forget(folder.path(), &A.to_string(), &[])
            .expect("forget")
            .len(),
        1
    );
    store::enrol(folder.path(), &A, "alpha").expect("enrol");
    assert!(store.is_enrolled(&A) && !store.is_forgotten(&A));
}

/// The witness's own configuration names peers, and their keys count.
#[test]
fn a_node_that_the_configuration_names_is_taken_out_as_well() {
    let folder = tempfile::tempdir().expect("tempdir");
    drop(made(folder.path()));
    let mut store = Store::open(folder.path(), [B, NEW]).expect("store");
    let configured = [(B, "beta".to_owned()), (NEW, "gamma".to_owned())];
    assert_eq!(
        store::enrolled(folder.path(), &configured)
            .expect("list")
            .len(),
        3
    );
    for (key, name) in configured.clone() {
        assert_eq!(
            store::forget(folder.path(), &name, &configured).expect("forget"),
            [(key, name)]
        );
        assert_eq!(
            reason(&ask(&mut store, &key, Op::Read)),
            Some(Reason::NotAMember)
        );
    }
    assert_eq!(
        store::enrolled(folder.path(), &configured).expect("list"),
        [(A, "alpha".to_owned())]
    );
    // Enrolling goes before both.
    store::enrol(folder.path(), &B, "beta").expect("enrol");
    assert!(matches!(
        ask(&mut store, &B, Op::Read),
        Outcome::State(Some(_))
    ));
}

#[test]
fn a_key_is_succeeded_by_another() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut store = made(folder.path());
    // Named twice: the second word stands.
    let unused = Op::Succeed { key: NEW };
    assert_eq!(ask(&mut store, &A, unused), Outcome::Swapped);
    assert_eq!(
        ask(&mut store, &A, Op::Succeed { key: NEXT }),
        Outcome::Swapped
    );
    assert!(!store.is_enrolled(&NEW) && store.is_enrolled(&NEXT) && store.is_enrolled(&A));
    // Both are A: the register is bound to both, then the new one asks, and the old one is out.
    assert_eq!(ask(&mut store, &A, bind(&[A, NEXT, B])), Outcome::Swapped);
    assert!(matches!(
        ask(&mut store, &A, Op::Read),
        Outcome::State(Some(_))
    ));
    assert!(matches!(
        ask(&mut store, &NEXT, Op::Read),
        Outcome::State(Some(_))
    ));
    assert_eq!(
        reason(&ask(&mut store, &A, Op::Read)),
        Some(Reason::Stranger)
    );
    assert_eq!(
        names(folder.path()),
        [(B, "beta".to_owned()), (NEXT, "alpha".to_owned())]
    );
    assert!(matches!(
        ask(&mut store, &B, Op::Read),
        Outcome::State(Some(_))
    ));
}

#[test]
fn a_key_that_has_named_its_successor_is_not_taken_out_by_the_one_before_it() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut store = made(folder.path());
    let mut succeed = |asker, key| ask(&mut store, asker, Op::Succeed { key });
    // NEW is in use: naming the next key is the first that it asks.
    assert_eq!(succeed(&A, NEW), Outcome::Swapped);
    assert_eq!(succeed(&NEW, NEXT), Outcome::Swapped);
    // So A is worth nothing any more, wherever a copy of it may be.
    let other = Fingerprint::from_bytes([5; 32]);
    assert_eq!(reason(&succeed(&A, other)), Some(Reason::Stranger));
    assert!(store.is_enrolled(&NEW) && store.is_enrolled(&NEXT) && !store.is_enrolled(&other));
    assert!(matches!(
        ask(&mut store, &NEXT, bind(&[NEXT, B])),
        Outcome::Refused(Reason::NotAMember, _)
    ));
    assert_eq!(
        names(folder.path()),
        [(B, "beta".to_owned()), (NEXT, "alpha".to_owned())]
    );
}

#[test]
fn a_key_that_was_taken_out_does_not_come_back_by_what_the_witness_writes_of_it() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut store = made(folder.path());
    let hex = |key: &Fingerprint| key.to_string().trim_start_matches("sha256:").to_owned();
    let file = folder.path().join("clients").join(hex(&B));
    let before = std::fs::read(&file).expect("it is enrolled");
    assert_eq!(
        store::forget(folder.path(), "beta", &[])
            .expect("forget")
            .len(),
        1
    );
    // The witness was just noting that the key asked; or whoever took it out died half-way.
    std::fs::write(&file, before).expect("written");
    assert!(store.is_forgotten(&B) && !store.is_enrolled(&B));
    assert_eq!(
        reason(&ask(&mut store, &B, Op::Read)),
        Some(Reason::NotAMember)
    );
    assert_eq!(names(folder.path()), [(A, "alpha".to_owned())]);
    // It can be taken out again, and let in again.
    assert_eq!(
        store::forget(folder.path(), "beta", &[])
            .expect("forget")
            .len(),
        1
    );
    assert!(!file.exists());
    store::enrol(folder.path(), &B, "beta").expect("enrol");
    assert!(matches!(
        ask(&mut store, &B, Op::Read),
        Outcome::State(Some(_))
    ));
}

#[test]
fn what_does_not_exist_is_not_bound() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut store = Store::open(folder.path(), [A, B]).expect("store");
    assert_eq!(
        reason(&ask(&mut store, &A, bind(&[A, B]))),
        Some(Reason::Invalid)
    );
}
