//! Blocks that were written on both copies and not flushed on both: they differ if a machine
//! loses power now (docs/protocol.md §7).
//!
//! Two sets are kept apart (docs/design.md §5.5): `writing`, since the last flush was sent, and
//! `flushing`, what that flush covers. A block rewritten after the flush left is in `writing`
//! and stays marked when the flush is done. Each hot extent with such blocks has one entry.

use std::collections::HashMap;

use kagami_bitmap::planted::{Defect, planted};
use kagami_bitmap::{DirtyBitmap, Extent, ExtentWords, Run, WORDS_PER_EXTENT};

#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    writing: ExtentWords,
    flushing: ExtentWords,
}

/// The unflushed blocks of all extents.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    extents: HashMap<Extent, Box<Marks>>,
}

fn each_word(run: Run, mut f: impl FnMut(Extent, usize, u64)) {
    for (extent, part) in run.by_extent() {
        let first = (part.first.0 - extent.first_block().0) as usize;
        let end = first + part.count as usize;
        let mut bit = first;
        while bit < end {
            let word = bit / 64;
            let upto = end.min((word + 1) * 64);
            let width = upto - bit;
            let mask = if width == 64 {
                u64::MAX
            } else {
                ((1u64 << width) - 1) << (bit % 64)
            };
            f(extent, word, mask);
            bit = upto;
        }
    }
}

impl Unflushed {
    /// A write to `run` begins.
    pub fn write(&mut self, run: Run) {
        let run = if planted(Defect::SecondExtentUnmarked) {
            run.by_extent().next().map_or(run, |(_, first)| first)
        } else {
            run
        };
        for (extent, _) in run.by_extent() {
            self.extents.entry(extent).or_default();
        }
        each_word(run, |extent, word, mask| {
            if let Some(marks) = self.extents.get_mut(&extent) {
                marks.writing[word] |= mask;
            }
        });
    }

    /// A flush begins. It covers all but `in_flight`, the runs of writes that have not ended.
    pub fn begin_flush(&mut self, in_flight: impl Iterator<Item = Run>) {
        for marks in self.extents.values_mut() {
            assert_eq!(marks.flushing, [0; WORDS_PER_EXTENT], "one flush at a time");
            marks.flushing = marks.writing;
            marks.writing = [0; WORDS_PER_EXTENT];
        }
        for run in in_flight {
            each_word(run, |extent, word, mask| {
                if let Some(marks) = self.extents.get_mut(&extent) {
                    marks.writing[word] |= marks.flushing[word] & mask;
                    marks.flushing[word] &= !mask;
                }
            });
        }
    }

    /// Both copies have flushed: what the flush covered does not differ any more. `covered` sees it.
    pub fn end_flush(&mut self, mut covered: impl FnMut(Extent, &ExtentWords)) {
        self.extents.retain(|extent, marks| {
            if marks.flushing != [0; WORDS_PER_EXTENT] {
                covered(*extent, &marks.flushing);
                marks.flushing = [0; WORDS_PER_EXTENT];
            }
            marks.writing != [0; WORDS_PER_EXTENT]
        });
    }

    /// The flush came to nothing: what it covered is unflushed again.
    pub fn cancel_flush(&mut self) {
        for marks in self.extents.values_mut() {
            for (writing, flushing) in marks.writing.iter_mut().zip(&mut marks.flushing) {
                *writing |= std::mem::take(flushing);
            }
        }
    }

    /// The peer is lost: all of it is different from now on.
    pub fn move_into(&mut self, bitmap: &mut DirtyBitmap) {
        for (extent, marks) in self.extents.drain() {
            let mut all = marks.writing;
            for (word, flushing) in all.iter_mut().zip(&marks.flushing) {
                *word |= flushing;
            }
            bitmap.or_extent(extent, &all);
        }
    }

    /// True if a block of the extent is unflushed.
    pub fn touches(&self, extent: Extent) -> bool {
        self.extents.contains_key(&extent)
    }

    /// True if a block of the run is unflushed.
    pub fn any(&self, run: Run) -> bool {
        let mut any = false;
        each_word(run, |extent, word, mask| {
            if let Some(marks) = self.extents.get(&extent) {
                any |= (marks.writing[word] | marks.flushing[word]) & mask != 0;
            }
        });
        any
    }

    /// Number of extents with unflushed blocks.
    pub fn extents(&self) -> usize {
        self.extents.len()
    }

    /// True if the other holds every block that this holds.
    pub fn is_within(&self, other: &Self) -> bool {
        self.extents.iter().all(|(extent, marks)| {
            let other = other.extents.get(extent).map(|marks| &marks.writing);
            let mut words = marks.writing.iter().zip(&marks.flushing).enumerate();
            words.all(|(at, (writing, flushing))| {
                (writing | flushing) & !other.map_or(0, |other| other[at]) == 0
            })
        })
    }

    /// True if everything is flushed.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use kagami_bitmap::Block;

    use super::*;

    #[test]
    fn a_block_rewritten_after_the_flush_left_stays() {
        let mut unflushed = Unflushed::default();
        let (a, b, c) = (
            Run::new(Block(0), 3),
            Run::new(Block(1023), 2),
            Run::new(Block(1), 1),
        );
        unflushed.write(a);
        unflushed.write(b);
        unflushed.begin_flush(std::iter::once(b));
        unflushed.write(c);
        let mut covered = Vec::new();
        unflushed.end_flush(|extent, words| covered.push((extent, words[0], words[15])));
        assert_eq!(covered, [(Extent(0), 0b111, 0)]);
        assert!(unflushed.any(b), "it was in flight");
        assert!(unflushed.any(c), "it was written after the flush left");
        assert!(!unflushed.any(Run::new(Block(0), 1)));
        let mut under_way = Unflushed::default();
        under_way.write(b);
        assert!(!unflushed.is_within(&under_way), "a flush would cover c");
        under_way.write(c);
        assert!(
            unflushed.is_within(&under_way),
            "a flush would cover nothing"
        );
        let mut bitmap = DirtyBitmap::new(4096);
        unflushed.move_into(&mut bitmap);
        assert_eq!(bitmap.count(), 3);
        assert!(unflushed.is_empty());
    }

    #[test]
    fn a_flush_that_comes_to_nothing_has_flushed_nothing() {
        let (first, second) = (Run::new(Block(0), 4), Run::new(Block(2000), 1));
        let mut unflushed = Unflushed::default();
        unflushed.write(first);
        unflushed.begin_flush(std::iter::empty());
        unflushed.write(second);
        unflushed.cancel_flush();
        assert!(unflushed.any(first) && unflushed.any(second));
        // The next one covers all of it.
        unflushed.begin_flush(std::iter::empty());
        let mut covered = Vec::new();
        unflushed.end_flush(|extent, words| covered.push((extent, words.map(u64::count_ones))));
        covered.sort_unstable_by_key(|(extent, _)| *extent);
        let ones: Vec<_> = covered
            .iter()
            .map(|(_, ones)| ones.iter().sum::<u32>())
            .collect();
        assert_eq!(ones, [4, 1]);
        assert!(unflushed.is_empty());
    }

    #[test]
    fn of_a_word_only_what_is_in_flight_stays_out_of_the_flush() {
        let block = |at| Run::new(Block(at), 1);
        let mut unflushed = Unflushed::default();
        unflushed.write(Run::new(Block(0), 4));
        unflushed.begin_flush(std::iter::once(block(1)));
        unflushed.end_flush(|_, words| assert_eq!(words[0], 0b1101));
        let left: Vec<_> = (0..6).filter(|at| unflushed.any(block(*at))).collect();
        assert_eq!(left, [1]);
    }

    #[test]
    fn what_is_written_again_during_a_flush_is_unflushed_once() {
        let run = Run::new(Block(1024), 3);
        let mut unflushed = Unflushed::default();
        unflushed.write(run);
        unflushed.begin_flush(std::iter::empty());
        unflushed.write(run);
        assert!(unflushed.any(run));
        assert!(!unflushed.is_within(&Unflushed::default()));
        assert!(unflushed.touches(Extent(1)) && !unflushed.touches(Extent(0)));
        unflushed.write(Run::new(Block(5000), 2000));
        assert_eq!(unflushed.extents(), 4);
    }
}
