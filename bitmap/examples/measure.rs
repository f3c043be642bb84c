//! Measures the dirty bitmap, and `bitvec` beside it.
//!
//! `cargo run --release -p kagami-bitmap --example measure` prints the figures of
//! docs/decisions/0001-bitmap-words.md. Takes 2 GiB of memory and a minute.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bitvec::prelude::{BitVec, Lsb0};
use kagami_bitmap::{BLOCK, Block, DirtyBitmap, EXTENT, Extent, Run};

const SIZE: u64 = 16 << 40;
const BLOCKS: u64 = SIZE / BLOCK;

/// A small generator with good bits; the figures need no better.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let product = u128::from(self.0) * u128::from(bound);
        (product >> 64) as u64
    }
}

/// The median of `rounds` runs.
fn median(rounds: usize, mut f: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[rounds / 2]
}

fn show(what: &str, time: Duration) {
    println!("{what:<58} {time:>12.3?}");
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = status
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    (pages * 4096) >> 20
}

#[expect(clippy::too_many_lines, reason = "one measurement after the other")]
fn main() {
    let mut map = DirtyBitmap::new(BLOCKS);
    println!(
        "16 TiB, {BLOCKS} blocks; resident when new: {} MiB",
        resident_mib()
    );

    println!("\nthe next marked block");
    let next = |map: &DirtyBitmap| map.next_marked(black_box(Block(1)));
    show(
        "  words, all clean",
        median(1001, || assert!(next(&map).is_none())),
    );
    map.mark(Run::new(Block(BLOCKS - 1), 1));
    show(
        "  words, the last block alone",
        median(1001, || assert!(next(&map).is_some())),
    );
    // The farthest any level can be from its end: behind the first block of each.
    let from = |from| assert!(map.next_marked(black_box(Block(from))).is_some());
    let worst = [1, 63, 4095, (1 << 18) - 1, (1 << 24) - 1, (1 << 30) - 1]
        .map(|block| median(1001, || from(block)));
    show(
        "  words, the last block alone, worst start",
        worst.into_iter().max().unwrap_or_default(),
    );
    map.clear_all();
    let mut bits: BitVec<u64, Lsb0> = BitVec::repeat(false, BLOCKS as usize);
    show(
        "  bitvec, all clean",
        median(5, || assert!(black_box(&bits).first_one().is_none())),
    );

    println!("\nmarking and clearing one block of a hot word");
    hot_words(&mut map);
    let time = median(5, || {
        for n in 0..1_000_000usize {
            let n = black_box(n % 64);
            bits.set(n, true);
            bits.set(n, false);
        }
    });
    show("  bitvec, mark and clear", time / 1_000_000);

    println!("\n1 % random marks");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let start = Instant::now();
    for _ in 0..BLOCKS / 100 {
        map.mark(Run::new(Block(random.below(BLOCKS)), 1));
    }
    show(
        "  words, making them, each",
        start.elapsed() / (BLOCKS / 100) as u32,
    );
    let start = Instant::now();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..BLOCKS / 100 {
        bits.set(random.below(BLOCKS) as usize, true);
    }
    show(
        "  bitvec, making them, each",
        start.elapsed() / (BLOCKS / 100) as u32,
    );
    let count = map.count();
    println!(
        "  {count} marks; resident with both maps: {} MiB",
        resident_mib()
    );
    let all = map.all();
    show(
        "  words, count()",
        median(1001, || assert_eq!(black_box(&map).count(), count)),
    );
    show(
        "  words, counting all",
        median(3, || assert_eq!(map.count_in(black_box(all)), count)),
    );
    show(
        "  bitvec, counting all",
        median(3, || assert_eq!(bits.count_ones() as u64, count)),
    );
    let sum = |runs: &mut dyn Iterator<Item = u64>| assert_eq!(runs.sum::<u64>(), count);
    show(
        "  words, iterating runs",
        median(3, || sum(&mut map.runs().map(|run| run.count))),
    );
    show(
        "  bitvec, iterating ones",
        median(3, || sum(&mut bits.iter_ones().map(|_| 1))),
    );

    println!("\npages");
    drop(bits);
    let start = Instant::now();
    let pages: Vec<_> = map.stale_pages().take(10_000).collect();
    for (seq, &page) in (1..).zip(&pages) {
        black_box(map.page_image(page, seq));
        map.page_written(page, seq);
    }
    show(
        "  cutting and settling an image",
        start.elapsed() / pages.len() as u32,
    );
    show("  mark_all", median(1, || assert!(map.mark_all() > 0)));
    println!("  resident, everything marked: {} MiB", resident_mib());
    show("  clear_all", median(1, || assert!(map.clear_all() > 0)));
    println!("  resident after it: {} MiB", resident_mib());
}

/// A write's marks: set, found not lacking once cleared.
fn hot_words(map: &mut DirtyBitmap) {
    const ROUNDS: u32 = 1_000_000;
    let extent = EXTENT / BLOCK;
    let each = |name: &str, mut f: Box<dyn FnMut(u64) + '_>| {
        let time = median(5, || (0..u64::from(ROUNDS)).for_each(&mut f));
        show(name, time / ROUNDS);
    };
    let block = |n: u64| Run::new(Block(7 * extent + black_box(n % 64)), 1);
    each(
        "  words, mark and clear, extent else clean",
        Box::new(|n| {
            map.mark(block(n));
            map.clear(block(n));
        }),
    );
    map.mark(Run::new(Block(7 * extent + 64), 1));
    each(
        "  words, mark and clear, extent with other marks",
        Box::new(|n| {
            map.mark(block(n));
            map.clear(block(n));
        }),
    );
    map.mark(Run::new(Block(7 * extent), 64));
    each(
        "  words, mark of a marked block",
        Box::new(|n| {
            map.mark(block(n));
        }),
    );
    each(
        "  words, lacks_marks",
        Box::new(|n| {
            black_box(map.lacks_marks(Extent(7 + (n & 1) as u32)));
        }),
    );
    map.clear_all();
}
