//! The dirty bitmap against a plain vector of booleans, and its pages against what a crash
//! would leave of them.

mod common;

use common::Store;
use kagami_bitmap::{Block, DirtyBitmap, Extent, Fill, Page, Run, WORDS_PER_EXTENT};
use proptest::prelude::*;

const EXTENTS: u32 = 50;
const BLOCKS: u64 = EXTENTS as u64 * 1024 - 37;

#[derive(Clone, Debug)]
enum Op {
    Mark(u64, u64),
    Clear(u64, u64),
    Or(u32, Vec<u64>),
    MarkAll,
    ClearAll,
    Cut(u32),
    Written,
    Failed(u8),
    Crash(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let run = (0..BLOCKS, prop_oneof![1..70u64, 900..3000u64, Just(1u64)]);
    prop_oneof![
        6 => run.clone().prop_map(|(first, count)| Op::Mark(first, count)),
        6 => run.prop_map(|(first, count)| Op::Clear(first, count)),
        1 => (0..EXTENTS, prop::collection::vec(any::<u64>(), WORDS_PER_EXTENT))
            .prop_map(|(extent, words)| Op::Or(extent, words)),
        1 => Just(Op::MarkAll),
        1 => Just(Op::ClearAll),
        6 => (0..3u32).prop_map(Op::Cut),
        4 => Just(Op::Written),
        1 => any::<u8>().prop_map(Op::Failed),
        1 => any::<u8>().prop_map(Op::Crash),
    ]
}

/// The bitmap, the model of it, the store, and the image on its way.
struct World {
    bitmap: DirtyBitmap,
    model: Vec<bool>,
    store: Store,
    flight: Option<(Page, u64, Vec<u8>)>,
    seq: u64,
}

impl World {
    fn new() -> Self {
        let superblock = {
            let size = BLOCKS * 4096;
            common::superblock(size, 64, kagami_bitmap::Placement::Own)
        };
        let mut store = Store::format(&superblock, Fill::Blank);
        let recovered = store.recover();
        assert_eq!(recovered.findings, []);
        Self {
            bitmap: recovered.bitmap,
            model: vec![false; BLOCKS as usize],
            store,
            flight: None,
            seq: 1,
        }
    }

    fn set(&mut self, run: Run, to: bool) -> u64 {
        let blocks = &mut self.model[run.first.0 as usize..run.end().0 as usize];
        let changed = blocks.iter().filter(|&&was| was != to).count();
        blocks.fill(to);
        changed as u64
    }

    fn apply(&mut self, op: &Op) {
        let run = |first: u64, count: u64| Run::new(Block(first), count.min(BLOCKS - first));
        match op {
            Op::Mark(first, count) => {
                let run = run(*first, *count);
                assert_eq!(self.bitmap.mark(run), self.set(run, true));
            }
            Op::Clear(first, count) => {
                let run = run(*first, *count);
                assert_eq!(self.bitmap.clear(run), self.set(run, false));
            }
            Op::Or(extent, words) => {
                let words: [u64; WORDS_PER_EXTENT] = words[..].try_into().unwrap();
                let mut newly = 0;
                for bit in (0..1024).filter(|bit| words[bit / 64] >> (bit % 64) & 1 == 1) {
                    let block = u64::from(*extent) * 1024 + bit as u64;
                    if block < BLOCKS {
                        newly += self.set(Run::new(Block(block), 1), true);
                    }
                }
                assert_eq!(self.bitmap.or_extent(Extent(*extent), &words), newly);
            }
            Op::MarkAll => {
                let newly = self.set(run(0, BLOCKS), true);
                assert_eq!(self.bitmap.mark_all(), newly);
            }
            Op::ClearAll => {
                let newly = self.set(run(0, BLOCKS), false);
                assert_eq!(self.bitmap.clear_all(), newly);
            }
            Op::Cut(index) => {
                if self.flight.is_none() {
                    let page = Page::bitmap(*index);
                    let image = self.bitmap.page_image(page, self.seq);
                    self.flight = Some((page, self.seq, image.to_vec()));
                    self.seq += 1;
                }
            }
            Op::Written => {
                if let Some((page, seq, image)) = self.flight.take() {
                    self.store
                        .write(self.store.layout.page_offset(page), &image);
                    self.bitmap.page_written(page, seq);
                }
            }
            Op::Failed(mask) => {
                if let Some((page, seq, image)) = self.flight.take() {
                    let offset = self.store.layout.page_offset(page);
                    self.store.tear(offset, &image, *mask);
                    self.bitmap.page_failed(page, seq);
                }
            }
            Op::Crash(mask) => {
                if let Some((page, _, image)) = self.flight.take() {
                    let offset = self.store.layout.page_offset(page);
                    self.store.tear(offset, &image, *mask);
                }
                let recovered = self.store.recover();
                assert!(recovered.findings.is_empty(), "{:?}", recovered.findings);
                self.seq = self.seq.max(recovered.next_page_seq);
                self.bitmap = recovered.bitmap;
                for (nth, marked) in self.model.iter_mut().enumerate() {
                    *marked = self.bitmap.is_marked(Block(nth as u64));
                }
                assert_eq!(
                    self.bitmap
                        .stale_pages()
                        .filter(|p| !p.is_directory())
                        .count(),
                    0
                );
            }
        }
    }

    fn check(&self) {
        let marked = self.model.iter().filter(|&&marked| marked).count() as u64;
        assert_eq!(self.bitmap.count(), marked);
        let mut runs = Vec::new();
        let mut from = 0;
        while let Some(first) = (from..self.model.len()).find(|&block| self.model[block]) {
            let end = (first..self.model.len()).find(|&block| !self.model[block]);
            from = end.unwrap_or(self.model.len());
            runs.push(Run::new(Block(first as u64), (from - first) as u64));
        }
        assert!(self.bitmap.runs().eq(runs.iter().copied()));
        let split: u64 = self.bitmap.runs_up_to(3).map(|run| run.count.min(3)).sum();
        assert_eq!(split, marked);
        let span = Run::new(Block(1000), 20_000);
        let inside = |run: &Run| run.intersect(span).map_or(0, |part| part.count);
        assert_eq!(self.bitmap.count_in(span), runs.iter().map(inside).sum());
        assert_eq!(
            self.bitmap.any(span),
            runs.iter().any(|run| run.overlaps(span))
        );
        self.check_pages();
    }

    /// What the pages on disk say, with an image on its way landed, lost or torn in halves.
    fn check_pages(&self) {
        for mask in [0x00, 0xff, 0x0f, 0xf0] {
            let mut store = self.store.clone();
            if let Some((page, _, image)) = &self.flight {
                store.tear(store.layout.page_offset(*page), image, mask);
            }
            let disk = store.look().bitmap;
            for extent in (0..EXTENTS).map(Extent) {
                let (memory, disk) = (self.bitmap.extent_words(extent), disk.extent_words(extent));
                let lacks = memory
                    .iter()
                    .zip(&disk)
                    .any(|(memory, disk)| memory & !disk != 0);
                assert!(
                    !lacks || self.bitmap.lacks_marks(extent),
                    "{extent} lacks marks"
                );
                let page = Page::of(extent);
                let settled =
                    !self.bitmap.is_page_stale(page) && !self.bitmap.is_page_in_flight(page);
                assert!(
                    !settled || memory == disk,
                    "{extent} differs, and its page is not stale"
                );
                let landed = !self.bitmap.is_page_stale(page) && mask == 0xff;
                assert!(
                    !landed || memory == disk,
                    "{extent} would differ once written"
                );
            }
            if self.flight.is_none() {
                break;
            }
        }
        for page in (0..3).map(Page::bitmap) {
            let lacking = page
                .extents()
                .any(|e| e.0 < EXTENTS && self.bitmap.lacks_marks(e));
            assert_eq!(self.bitmap.page_lacks_marks(page), lacking);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn behaves_as_the_model(ops in prop::collection::vec(op(), 1..40)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
            world.check();
        }
    }
}

#[test]
fn a_write_that_came_and_went_needs_no_page() {
    let mut world = World::new();
    let run = Run::new(Block(5000), 10);
    world.bitmap.mark(run);
    assert!(world.bitmap.lacks_marks(Extent(4)));
    world.bitmap.clear(run);
    assert!(!world.bitmap.lacks_marks(Extent(4)));
    assert_eq!(world.bitmap.stale_page_count(), 0);
}

#[test]
fn a_failed_write_leaves_the_page_as_stale_as_it_was() {
    let mut world = World::new();
    let ops = [
        Op::Mark(0, 1),
        Op::Cut(0),
        Op::Written,
        Op::Clear(0, 1),
        Op::Cut(0),
    ];
    for op in &ops {
        world.apply(op);
        world.check();
    }
    assert!(!world.bitmap.is_page_stale(Page::bitmap(0)));
    world.apply(&Op::Failed(0));
    world.check();
    assert!(
        world.bitmap.is_page_stale(Page::bitmap(0)),
        "the mark is on disk still"
    );
    assert!(!world.bitmap.page_lacks_marks(Page::bitmap(0)));
}

#[test]
fn a_first_write_of_a_page_is_entered_in_the_directory() {
    let mut world = World::new();
    world.apply(&Op::Mark(0, 1));
    world.apply(&Op::Cut(0));
    world.apply(&Op::Written);
    let directory = Page::directory(0);
    assert_eq!(world.bitmap.stale_pages().collect::<Vec<_>>(), [directory]);
    // Until the directory is written, a wiped page passes for one never written.
    let page = world.store.layout.page_offset(Page::bitmap(0));
    let wiped = |store: &Store| {
        let mut store = store.clone();
        store.write(page, &[0; 4096]);
        store.look()
    };
    assert!(wiped(&world.store).findings.is_empty());
    let image = world.bitmap.page_image(directory, 9);
    let offset = world.store.layout.page_offset(directory);
    world.store.write(offset, &image);
    world.bitmap.page_written(directory, 9);
    assert_eq!(world.bitmap.stale_page_count(), 0);
    let recovered = wiped(&world.store);
    assert_eq!(
        recovered.bitmap.count_in(Run::new(Block(0), 24 * 1024)),
        24 * 1024
    );
    assert!(
        recovered
            .findings
            .iter()
            .all(kagami_bitmap::Finding::is_damage)
    );
    assert_eq!(recovered.next_page_seq, 10);
}

#[test]
fn an_all_clean_map_of_16_tib_costs_no_memory() {
    let bitmap = DirtyBitmap::new((16u64 << 40) / 4096);
    assert_eq!((bitmap.next_marked(Block(0)), bitmap.count()), (None, 0));
    assert_eq!((bitmap.extents(), bitmap.pages()), (4 << 20, 174_763));
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident: u64 = status.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(resident * 4096 < 256 << 20, "{resident} pages resident");
}
