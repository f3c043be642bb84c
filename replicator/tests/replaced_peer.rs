//! What a peer holds that was replaced, or removed, never comes back: whatever it did meanwhile, and
//! whoever of the new pair meets it, it is overwritten whole or refused (docs/protocol.md §5, *Another
//! peer*). By every record that the survivor and the old peer can have.

use kagami_bitmap::Record;
use kagami_bitmap::superblock::StoredDisk;
use kagami_replicator::core::NodeId;
use kagami_replicator::core::decide::{Strategy, decide};
use kagami_replicator::core::message::Hello;
use kagami_replicator::core::settings::Settings;

const SURVIVOR: u64 = 1;
const OLD: u64 = 2;
const NEW: u64 = 3;

/// Tags that nobody has had.
struct Tags(u64);

impl Tags {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

fn hello(record: &Record, marks: u64) -> Hello {
    Hello {
        marks,
        ..Hello::of(record, &Settings::default())
    }
}

/// `to` adopts what `from` has, and both settle (docs/protocol.md §5, steps 4 to 6).
fn adopt(from: &mut Record, to: &mut Record) {
    from.alone = false;
    to.current = from.current;
    to.history.clone_from(&from.history);
    to.base = None;
    to.alone = false;
    to.disk = StoredDisk::Consistent;
    to.forced_bad = false;
    to.zeroed = false;
    from.base = None;
    from.forced_bad = false;
}

fn record(node: u64, peer: u64) -> Record {
    let mut record = Record::new(7, node, 1 << 20);
    record.peer = Some(peer);
    record
}

/// What a copy may do without its peer: nothing, leave, be cut as a target, go on, be forced.
fn apart(record: &Record, tags: &mut Tags) -> Vec<Record> {
    let with = |change: &mut dyn FnMut(&mut Record)| {
        let mut record = record.clone();
        change(&mut record);
        record
    };
    let mut all = vec![
        record.clone(),
        with(&mut |r| r.disk = StoredDisk::Outdated),
        with(&mut |r| r.disk = StoredDisk::Inconsistent),
        with(&mut |r| r.mint(tags.next())),
    ];
    all.push(with(&mut |r| {
        r.mint(tags.next());
        r.mint(tags.next());
    }));
    all.push(with(&mut |r| {
        r.disk = StoredDisk::Outdated;
        r.mint(tags.next());
        r.disk = StoredDisk::Consistent;
        r.forced_bad = true;
    }));
    all
}

#[test]
fn a_replaced_copy_is_never_believed() {
    let mut tags = Tags(100);
    let (mut survivor, mut old) = (record(SURVIVOR, OLD), record(OLD, SURVIVOR));
    survivor.mint(tags.next());
    adopt(&mut survivor, &mut old);
    // Some history: they were apart once, and came together again.
    survivor.mint(tags.next());
    adopt(&mut survivor, &mut old);

    let mut compared = 0;
    // The survivor may have gone on before it was told; it is good, or the command refuses.
    for survivor in apart(&survivor, &mut tags) {
        if survivor.is_bad() {
            continue;
        }
        let mut parted = survivor.clone();
        parted.set_peer(Some(NEW), tags.next());
        assert_ne!(parted.current, survivor.current);
        assert!(parted.base.is_none() && parted.all_marked && parted.alone);
        // Those who can meet the old copy: the survivor, at once and later, and the new node.
        let mut new = record(NEW, SURVIVOR);
        let mut settled = parted.clone();
        adopt(&mut settled, &mut new);
        let mut removed = survivor.clone();
        removed.set_peer(None, tags.next());
        let mut meeting: Vec<Record> = vec![parted.clone(), settled.clone(), new.clone(), removed];
        meeting.extend(apart(&settled, &mut tags));
        meeting.extend(apart(&new, &mut tags));
        for theirs in apart(&old, &mut tags) {
            for mine in meeting.iter().filter(|mine| !mine.is_bad()) {
                for marks in [(0, 0), (5, 0), (0, 5), (5, 5)] {
                    let (mine, theirs) = (hello(mine, marks.0), hello(&theirs, marks.1));
                    let verdict = decide(&mine, &theirs);
                    compared += 1;
                    match verdict.strategy {
                        Strategy::Refuse(_) => {}
                        Strategy::Full { source } => {
                            assert_ne!(source, NodeId(OLD), "{verdict:?}: {mine:?} / {theirs:?}");
                        }
                        other => panic!("{other:?}: {mine:?} / {theirs:?}"),
                    }
                }
            }
        }
        // The new node's copy is filled whole.
        let empty = hello(&record(NEW, SURVIVOR), 0);
        let verdict = decide(&hello(&parted, 9), &empty);
        let source = NodeId(SURVIVOR);
        assert_eq!(verdict.strategy, Strategy::Full { source });
    }
    assert!(compared > 500, "{compared}");
}

#[test]
fn a_first_peer_changes_nothing() {
    let mut record = Record::new(7, SURVIVOR, 1 << 20);
    record.mint(5);
    let before = record.clone();
    record.set_peer(Some(NEW), 6);
    assert_eq!(record.current, before.current);
    assert_eq!(record.peer, Some(NEW));
    // Nor does the same one again.
    let before = record.clone();
    record.set_peer(Some(NEW), 7);
    assert_eq!(record, before);
}
