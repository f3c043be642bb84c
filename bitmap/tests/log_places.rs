//! Where the activity log's records go and what they name, from the first of a new store on: by records that
//! are written to a store and read back from it.

mod common;

use common::Store;
use kagami_bitmap::record::{CHANGES_PER_RECORD, Record, RecordKind};
use kagami_bitmap::replay::LogDamage;
use kagami_bitmap::{ActivityLog, CutRecord, Extent, Fill, Finding, LogState, mirror_tag};

/// More than one record tells about: the others are found by the numbers that they name.
const CAPACITY: u32 = 1024;

fn fresh() -> (Store, ActivityLog) {
    let store = Store::new(300, CAPACITY, Fill::Clean);
    let log = ActivityLog::new(CAPACITY, 0, mirror_tag(common::MIRROR));
    (store, log)
}

fn write(store: &mut Store, record: &CutRecord) {
    store.write(store.layout.log_offset + record.offset, &record.image);
}

fn heat(store: &mut Store, log: &mut ActivityLog, extents: std::ops::Range<u32>) {
    extents.for_each(|extent| log.want(Extent(extent)));
    let record = log.cut_record(|_| true).expect("something to record");
    assert!(log.is_record_on_its_way());
    write(store, &record);
    log.record_done(record.seq);
    assert!(!log.is_record_on_its_way());
}

/// What recovery finds hot, and that it finds nothing wrong.
fn hot(store: &Store) -> Vec<Extent> {
    let found = store.look();
    assert!(found.findings.is_empty(), "{:?}", found.findings);
    let log = ActivityLog::resume(found.log, mirror_tag(common::MIRROR));
    let mut hot: Vec<_> = log.hot().collect();
    hot.sort_unstable();
    hot
}

#[test]
fn the_first_record_names_the_last_of_the_empty_ring() {
    let (mut store, mut log) = fresh();
    assert!(log.is_empty());
    heat(&mut store, &mut log, 0..3);
    assert!(!log.is_empty());
    assert_eq!(hot(&store), [0, 1, 2].map(Extent));
}

#[test]
fn a_reset_takes_the_next_place_of_the_ring() {
    let (mut store, mut log) = fresh();
    for first in 0..5 {
        heat(&mut store, &mut log, first * 8..first * 8 + 8);
    }
    let reset = log.cut_reset();
    assert_eq!((reset.index, reset.offset), (5, 5 * 4096));
    write(&mut store, &reset);
    log.record_done(reset.seq);
    assert_eq!(hot(&store), []);
}

#[test]
fn a_record_cools_no_more_than_it_can_name() {
    let (mut store, mut log) = fresh();
    for first in 0..2 {
        heat(&mut store, &mut log, first * 64..first * 64 + 64);
    }
    (0..128).for_each(|extent| log.cool(Extent(extent)));
    for left in [128 - CHANGES_PER_RECORD, 128 - 2 * CHANGES_PER_RECORD] {
        let record = log.cut_record(|_| true).expect("something to cool");
        write(&mut store, &record);
        log.record_done(record.seq);
        assert_eq!(hot(&store).len(), left);
    }
}

#[test]
fn what_was_not_yet_hot_when_it_was_to_cool_stays_hot() {
    let (_, mut log) = fresh();
    log.want(Extent(7));
    let record = log.cut_record(|_| true).expect("something to record");
    log.cool(Extent(7));
    log.record_done(record.seq);
    assert!(log.cut_record(|_| true).is_none(), "nothing is asked for");
    assert!(log.is_hot(Extent(7)));
}

/// The ring of 8 records goes round more than twice: what is hot is then known from the windows alone, which two records
/// together show all of.
#[test]
fn what_is_hot_is_found_wherever_in_the_ring_the_newest_record_is() {
    for resumed in [false, true] {
        let (mut store, mut log) = fresh();
        for extent in 0..20 {
            if resumed {
                log = ActivityLog::resume(store.look().log, mirror_tag(common::MIRROR));
            }
            heat(&mut store, &mut log, extent..extent + 1);
            assert_eq!(hot(&store), (0..=extent).map(Extent).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_record_that_is_cut_short_names_what_it_would_have_heated() {
    let (mut store, mut log) = fresh();
    for nth in 0..20 {
        (0..8).for_each(|extent| log.want(Extent(nth * 8 + extent)));
        let record = log.cut_record(|_| true).expect("something to record");
        assert_eq!(record.index, nth % 8);
        for mask in [0x01, 0xf0, 0x7f_u8] {
            let mut torn = store.clone();
            torn.tear(torn.layout.log_offset + record.offset, &record.image, mask);
            let found = torn.look();
            let [Finding::TornRecord { index, extents }] = found.findings[..] else {
                panic!("{:?}", found.findings);
            };
            assert_eq!(index, record.index);
            // Each sector has one of the eight changes, and its window others.
            assert!((mask.count_ones() as usize..=8).contains(&extents));
            assert_eq!(found.hot.len(), nth as usize * 8);
            let marked = (nth as usize * 8 + extents) * 1024;
            assert_eq!(found.bitmap.count(), marked as u64, "record {nth}");
        }
        write(&mut store, &record);
        log.record_done(record.seq);
    }
}

#[test]
fn a_ring_made_anew_for_a_damaged_one_is_sound_and_everything_stays_marked() {
    let (mut store, mut log) = fresh();
    for first in 0..5 {
        heat(&mut store, &mut log, first * 8..first * 8 + 8);
    }
    store.flip((store.layout.log_offset as usize + 4 * 4096 + 100) * 8);
    let damaged = store.recover();
    assert_eq!(damaged.repair.len(), 3, "both slots, then the ring");
    let found = store.look();
    assert_eq!(found.findings, [Finding::AllMarked]);
    assert!(found.repair.is_empty() && found.hot.is_empty());
    assert_eq!(found.bitmap.count(), found.bitmap.blocks());
    let place = |log: &LogState| (log.newest_seq, log.newest_index, log.next_seq);
    assert_eq!(place(&found.log), place(&damaged.log));
    // What the record says already is not written once more.
    store.flip((store.layout.log_offset as usize + 7 * 4096 + 100) * 8);
    assert_eq!(store.recover().repair.len(), 1, "the ring");
    assert_eq!(store.look().findings, [Finding::AllMarked]);
}

/// A record with the number 9, in the place behind the newest of a new ring.
const NINTH: Record<'static> = Record {
    kind: RecordKind::Changes,
    seq: 9,
    previous: 8,
    changes: &[3],
    window: 0,
    slots: &[None; CAPACITY as usize],
};

#[test]
fn sectors_of_one_record_that_contradict_each_other_are_damage() {
    let tag = mirror_tag(common::MIRROR);
    let look = |sectors: [&Record<'_>; 8]| {
        let (mut store, _) = fresh();
        for (nth, record) in sectors.into_iter().enumerate() {
            let offset = store.layout.log_offset;
            store.tear(offset, &record.encode(0, tag), 1 << nth);
        }
        store.look().findings
    };
    assert_eq!(look([&NINTH; 8]), []);
    let kind = RecordKind::Reset;
    for other in [
        Record { kind, ..NINTH },
        Record {
            previous: 7,
            ..NINTH
        },
        Record { window: 1, ..NINTH },
    ] {
        let mut sectors = [&NINTH; 8];
        sectors[3] = &other;
        let found = look(sectors);
        assert_eq!(found[0], Finding::Log(LogDamage::Nonsense { index: 0 }));
    }
    // One that names itself as the one before it.
    let found = look(
        [&Record {
            previous: 9,
            ..NINTH
        }; 8],
    );
    assert_eq!(found[0], Finding::Log(LogDamage::Nonsense { index: 0 }));
}

#[test]
fn a_mix_of_two_old_records_behind_the_newest_is_what_no_crash_leaves() {
    let (mut store, mut log) = fresh();
    for first in 0..5 {
        heat(&mut store, &mut log, first * 8..first * 8 + 8);
    }
    let older = NINTH.encode(5, mirror_tag(common::MIRROR));
    store.tear(store.layout.record_offset(5), &older, 0b11);
    let found = store.look().findings;
    assert_eq!(found[0], Finding::Log(LogDamage::Torn { index: 5 }));
}
