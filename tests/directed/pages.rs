//! Which bitmap pages are written, when, and how many at once, seen on a mirror that has many of them.

use std::collections::BTreeSet;

use kagami_bitmap::Page;
use kagami_bitmap::sector::{Kind, field};
use kagami_bitmap::superblock::Generation;
use kagami_replicator::core::state::{NodeId, Solo, Time};
use kagami_replicator::core::{Command, Settings};

use super::pair::{PROMOTE, Pair, start, write};

/// Bytes and blocks of an extent, and extents of a page.
const EXTENT: u64 = 4 << 20;
const BLOCKS: u64 = 1024;
const PER_PAGE: u64 = 24;
/// Extents that are hot at most.
const HOT: u64 = 64;

/// A mirror of so many pages, of which there is node 0 only.
fn single(pages: u64, has_peer: bool) -> Pair {
    let settings = Settings {
        solo: Solo::Always,
        ..Settings::default()
    };
    let mut starts = [0, 1].map(|node| start(node, &settings, pages * PER_PAGE * EXTENT));
    if has_peer {
        let record = &mut starts[0].recovered.superblock.record;
        record.current = Some(Generation { counter: 1, tag: 5 });
        record.zeroed = false;
    } else {
        starts[0].peer = NodeId::NOBODY;
        starts[0].recovered.superblock.record.peer = None;
    }
    let mut pair = Pair::of(starts);
    pair.linked = false;
    pair.pump();
    pair
}

/// Images of such a kind in each metadata write that was asked for: their places, and the numbers of their write.
fn images(pair: &Pair, kinds: &[Kind]) -> Vec<Vec<(u64, u64)>> {
    let of_kind = |image: &[u8]| kinds.iter().any(|kind| image.starts_with(kind.magic()));
    let number = |image: &[u8]| {
        let bytes = &image[field::SEQ..field::SEQ + 8];
        u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
    };
    let writes = pair.sides[0].stored.iter().map(|steps| {
        let images = steps.iter().flatten().filter(|(_, image)| of_kind(image));
        images.map(|(at, image)| (*at, number(image))).collect()
    });
    writes
        .filter(|images: &Vec<_>| !images.is_empty())
        .collect()
}

fn pages(pair: &Pair) -> Vec<Vec<(u64, u64)>> {
    images(pair, &[Kind::Page, Kind::Directory])
}

fn records(pair: &Pair) -> usize {
    images(pair, &[Kind::Superblock]).len()
}

#[test]
fn all_pages_are_written_sixty_four_at_a_time_and_four_times_at_once() {
    let mut pair = single(300, true);
    pair.sides[0].hold.metadata = true;
    pair.order(0, Command::Invalidate);
    let batch = |pair: &Pair| pages(pair).iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(batch(&pair), [64; 4]);
    pair.end_metadata(0, 0, Ok(()));
    assert!(pair.sides[0].mirror.record().all_marked);
    assert_eq!((batch(&pair).len(), records(&pair)), (4, 1));
    pair.end_metadata(0, 0, Ok(()));
    assert_eq!(batch(&pair).len(), 5, "one more for one that has ended");
    assert_eq!(records(&pair), 1, "the other pages say what was before");
    pair.sides[0].hold.metadata = false;
    pair.done(0, Command::Stop);
    assert!(!pair.sides[0].mirror.record().all_marked);
    assert_eq!(records(&pair), 2);
    let all: Vec<(u64, u64)> = pages(&pair).into_iter().flatten().collect();
    let places: BTreeSet<u64> = all.iter().map(|(at, _)| *at).collect();
    let numbers: BTreeSet<u64> = all.iter().map(|(_, number)| *number).collect();
    assert_eq!(places.len(), 300 + 1, "and the one that lists them");
    assert_eq!(
        numbers.len(),
        all.len(),
        "each write has a number of its own"
    );
    let counters = pair.sides[0].mirror.status(Time(pair.now)).counters;
    assert_eq!((counters.pages, counters.records), (all.len() as u64, 2));
}

/// An extent cools once its page has its marks: the pages of all that are hot, each of them once.
#[test]
fn pages_that_keep_extents_hot_are_written_when_another_one_is_to_be_hot() {
    let mut pair = single(4, false);
    pair.done(0, PROMOTE);
    for extent in 0..HOT {
        pair.write(0, extent * BLOCKS);
    }
    assert!(pages(&pair).is_empty());
    pair.sides[0].hold.metadata = true;
    let (first, _) = pair.request(0, write(HOT * BLOCKS));
    let (second, _) = pair.request(0, write((HOT + 1) * BLOCKS));
    pair.pump();
    let written = pages(&pair);
    assert_eq!(written.len(), 1);
    assert_eq!(written[0].len() as u64, HOT.div_ceil(PER_PAGE));
    assert_eq!((pair.reply(0, first), pair.reply(0, second)), (None, None));
    pair.sides[0].hold.metadata = false;
    pair.pump();
    for id in [first, second] {
        assert!(matches!(pair.reply(0, id), Some(Ok(_))));
    }
}

/// *Damage is never read as fewer marks*: a page that the disk loses is missed only if the directory names it, and a copy
/// that is alone for a week writes its pages in that week.
#[test]
fn a_page_that_is_written_for_the_first_time_is_named_in_the_directory_at_once() {
    let mut pair = single(4, false);
    pair.done(0, PROMOTE);
    for extent in 0..=HOT {
        pair.write(0, extent * BLOCKS);
    }
    assert!(!images(&pair, &[Kind::Page]).is_empty());
    let directory = Page::directory(0);
    assert!(!pair.sides[0].mirror.dirty().is_page_stale(directory));
    assert_eq!(images(&pair, &[Kind::Directory]).len(), 1);
}
