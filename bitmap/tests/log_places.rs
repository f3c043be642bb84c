//! Where the activity log's records go and what they name, from the first of a new store on: by records that
//! are written to a store and read back from it.

mod common;

use common::Store;
use kagami_bitmap::record::CHANGES_PER_RECORD;
use kagami_bitmap::{ActivityLog, CutRecord, Extent, Fill, mirror_tag};

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
