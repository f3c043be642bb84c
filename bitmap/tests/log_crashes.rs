//! The activity log through crashes: what may be dirty is always found hot or marked again.

mod common;

use std::collections::BTreeSet;

use common::{MIRROR, Store};
use kagami_bitmap::{
    ActivityLog, CutRecord, Extent, Fill, Finding, Geometry, Recovered, mirror_tag,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    /// Asks for as many extents as given, from the first on.
    Want(u32, u32),
    Touch(u32),
    /// Writes into the extent, if it is hot: from then on it may be dirty.
    Write(u32),
    /// Its marks are durable, or it is equal on both copies.
    Settle(u32),
    Cool(u32),
    Cut,
    Done,
    Fail(u8),
    Crash(u8),
    Reset,
}

fn op(extents: u32) -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..extents, 1..80u32).prop_map(|(first, count)| Op::Want(first, count)),
        2 => (0..extents).prop_map(Op::Touch),
        8 => (0..extents).prop_map(Op::Write),
        6 => (0..extents).prop_map(Op::Settle),
        2 => (0..extents).prop_map(Op::Cool),
        10 => Just(Op::Cut),
        8 => Just(Op::Done),
        1 => any::<u8>().prop_map(Op::Fail),
        2 => any::<u8>().prop_map(Op::Crash),
        1 => Just(Op::Reset),
    ]
}

struct World {
    extents: u32,
    store: Store,
    log: ActivityLog,
    on_its_way: Option<CutRecord>,
    /// A record failed since the last that succeeded: disk may have either.
    uncertain: bool,
    dirty: BTreeSet<Extent>,
}

impl World {
    fn new(extents: u32, capacity: u32) -> Self {
        let store = Store::new(extents, capacity, Fill::Blank);
        let log = store.look().log;
        Self {
            extents,
            store,
            log: ActivityLog::resume(log, mirror_tag(MIRROR)),
            on_its_way: None,
            uncertain: false,
            dirty: BTreeSet::new(),
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Want(first, count) => {
                let wanted = first..self.extents.min(first + count);
                wanted.for_each(|extent| self.log.want(Extent(extent)));
            }
            Op::Touch(extent) => self.log.touch(Extent(extent)),
            Op::Write(extent) => {
                if self.log.is_hot(Extent(extent)) {
                    self.dirty.insert(Extent(extent));
                }
            }
            Op::Settle(extent) => {
                self.dirty.remove(&Extent(extent));
            }
            Op::Cool(extent) => self.log.cool(Extent(extent)),
            Op::Cut => {
                let dirty = &self.dirty;
                if let Some(cut) = self.log.cut_record(|extent| !dirty.contains(&extent)) {
                    assert!(self.on_its_way.is_none());
                    self.on_its_way = Some(cut);
                }
            }
            Op::Reset => {
                if self.on_its_way.is_none() {
                    self.dirty.clear();
                    self.on_its_way = Some(self.log.cut_reset());
                }
            }
            Op::Done => {
                if let Some(cut) = self.on_its_way.take() {
                    self.land(&cut, 0xff);
                    for extent in self.log.record_done(cut.seq) {
                        assert!(self.log.is_hot(extent));
                    }
                    self.uncertain = false;
                }
            }
            Op::Fail(mask) => {
                if let Some(cut) = self.on_its_way.take() {
                    self.land(&cut, mask);
                    self.log.record_failed(cut.seq);
                    self.uncertain = true;
                }
            }
            Op::Crash(mask) => {
                if let Some(cut) = self.on_its_way.take() {
                    self.land(&cut, mask);
                }
                let recovered = self.store.recover();
                self.check_recovered(&recovered);
                self.log = ActivityLog::resume(recovered.log, mirror_tag(MIRROR));
                self.uncertain = false;
            }
        }
    }

    fn land(&mut self, cut: &CutRecord, mask: u8) {
        let offset = self.store.layout.log_offset + cut.offset;
        assert_eq!(offset, self.store.layout.record_offset(cut.index));
        self.store.tear(offset, &cut.image, mask);
    }

    fn check(&self, masks: &[u8]) {
        assert!(self.log.len() <= self.log.capacity());
        for &extent in &self.dirty {
            assert!(self.log.is_hot(extent), "{extent} cooled while dirty");
        }
        let by_age: BTreeSet<_> = self.log.by_age().collect();
        assert_eq!(by_age, self.log.hot().collect());
        let Some(cut) = &self.on_its_way else {
            let recovered = self.store.look();
            self.check_recovered(&recovered);
            if !self.uncertain {
                let hot: BTreeSet<_> = recovered.hot.iter().copied().collect();
                assert_eq!(hot, by_age, "acknowledged changes are on disk, all of them");
            }
            return;
        };
        for &mask in masks {
            let mut store = self.store.clone();
            store.tear(store.layout.log_offset + cut.offset, &cut.image, mask);
            self.check_recovered(&store.look());
        }
    }

    fn check_recovered(&self, recovered: &Recovered) {
        let crash = |finding: &Finding| !finding.is_damage();
        assert!(
            recovered.findings.iter().all(crash),
            "{:?}",
            recovered.findings
        );
        let geometry = Geometry::new(recovered.superblock.record.size).unwrap();
        let hot: BTreeSet<_> = recovered.hot.iter().copied().collect();
        for extent in &self.dirty {
            assert!(hot.contains(extent), "{extent} is dirty, and not found hot");
        }
        for &extent in &hot {
            let run = geometry.extent_run(extent);
            assert_eq!(recovered.bitmap.count_in(run), run.count);
        }
    }
}

fn run(extents: u32, capacity: u32, ops: &[Op], masks: &[u8]) {
    let mut world = World::new(extents, capacity);
    for op in ops {
        world.apply(op);
        world.check(masks);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_small_log_survives(ops in prop::collection::vec(op(90), 1..150), mask: u8) {
        run(90, 64, &ops, &[0, 0xff, 0x01, 0x80, 0x0f, 0xf0, mask]);
    }

    #[test]
    fn a_log_of_several_records_survives(ops in prop::collection::vec(op(1200), 1..150), mask: u8) {
        run(1200, 1000, &ops, &[mask]);
    }
}

#[test]
fn a_long_ring_turns_over_and_over() {
    // 7,000 slots: 10 records tell about all of them, the ring has 12.
    let mut world = World::new(9000, 7000);
    for round in 0..400u32 {
        world.apply(&Op::Want(round * 61 % 9000, 61));
        world.apply(&Op::Cut);
        world.apply(&Op::Done);
        if (8..22).contains(&(round % 40)) {
            world.check(&[]);
        }
        if round % 40 == 7 {
            world.apply(&Op::Write(round * 61 % 9000));
            world.check(&[]);
            world.apply(&Op::Want(round * 17 % 9000, 9));
            world.apply(&Op::Cut);
            world.apply(&Op::Crash(round as u8));
        }
    }
    world.check(&[]);
    assert!(world.log.len() > 6000);
}

#[test]
fn every_mix_of_sectors_of_a_record_is_safe() {
    let mut world = World::new(90, 64);
    for op in [
        Op::Want(0, 64),
        Op::Cut,
        Op::Done,
        Op::Write(5),
        Op::Want(70, 20),
        Op::Cut,
    ] {
        world.apply(&op);
    }
    let masks: Vec<u8> = (0..=255).collect();
    world.check(&masks);
    // What the torn record would have heated is marked, as far as it can be read.
    let cut = world.on_its_way.clone().unwrap();
    world.land(&cut, 0x01);
    let recovered = world.store.look();
    let torn = recovered.findings.iter().find_map(|finding| match finding {
        Finding::TornRecord { extents, .. } => Some(*extents),
        _ => None,
    });
    assert!(torn.is_some_and(|extents| extents > 0));
    let marked = (70..90).filter(|&extent| recovered.bitmap.any_in_extent(Extent(extent)));
    assert_eq!(marked.count(), torn.unwrap());
}

#[test]
fn a_lost_record_marks_everything() {
    let mut world = World::new(1200, 1000);
    for first in [0, 64, 128, 192] {
        world.apply(&Op::Want(first, 64));
        world.apply(&Op::Cut);
        if first == 128 {
            // The disk says yes, and writes nothing.
            let cut = world.on_its_way.take().unwrap();
            world.log.record_done(cut.seq);
        } else {
            world.apply(&Op::Done);
        }
    }
    let recovered = world.store.look();
    assert!(recovered.findings.iter().any(Finding::is_damage));
    assert_eq!(recovered.bitmap.count(), recovered.bitmap.blocks());
    assert!(recovered.superblock.record.all_marked);
    // The repair makes the marks durable first, and the ring sound.
    let [first, .., ring] = &recovered.repair[..] else {
        panic!("{} steps", recovered.repair.len());
    };
    assert_eq!(
        (first.len(), ring.len()),
        (1, world.store.layout.log_records as usize)
    );
    for steps in 0..=recovered.repair.len() {
        let mut store = world.store.clone();
        for (offset, bytes) in recovered.repair[..steps].iter().flatten() {
            store.write(*offset, bytes);
        }
        let again = store.look();
        assert_eq!(
            again.bitmap.count(),
            again.bitmap.blocks(),
            "after step {steps}"
        );
    }
    world.store.recover();
    let again = world.store.look();
    assert_eq!(again.findings, [Finding::AllMarked]);
    assert!(again.hot.is_empty() && again.repair.is_empty());
}
