//! A set of numbers below a bound: plain 64-bit words with summary levels over them.
//!
//! Keeps the words, their summary and the number of set bits in step. The dirty bitmap uses
//! it for blocks, the page tracking for stale pages.
//! docs/decisions/0001-bitmap-words.md says why words and not `bitvec`.

use crate::summary::Summary;

/// The set. Indices are `usize`: a 64-bit machine is assumed (checked in lib.rs).
#[derive(Clone, Debug)]
pub(crate) struct Bits {
    words: Vec<u64>,
    summary: Summary,
    len: usize,
    count: u64,
}

/// The bits `from..to` of a word; `from < to <= 64`.
fn mask(from: usize, to: usize) -> u64 {
    (!0 << from) & (!0 >> (64 - to))
}

impl Bits {
    /// The empty set of numbers below `len`.
    pub(crate) fn new(len: usize) -> Self {
        let words = len.div_ceil(64);
        Self {
            words: vec![0; words],
            summary: Summary::new(words),
            len,
            count: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many are in the set; maintained, never counted.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        assert!(index < self.len, "bit {index} of {}", self.len);
        self.words[index / 64] >> (index % 64) & 1 == 1
    }

    /// Adds `from..to`; gives how many were not in the set.
    pub(crate) fn set(&mut self, from: usize, to: usize) -> u64 {
        self.each_word(from, to, |word, mask| word | mask)
    }

    /// Removes `from..to`; gives how many were in the set.
    pub(crate) fn clear(&mut self, from: usize, to: usize) -> u64 {
        self.each_word(from, to, |word, mask| word & !mask)
    }

    /// Adds the set bits of `bits` to the word `index`; gives how many were not in the set.
    /// Bits at or behind the set's bound are dropped.
    pub(crate) fn or_word(&mut self, index: usize, bits: u64) -> u64 {
        let bits = bits & self.valid(index);
        let before = self.words[index];
        self.store(index, before | bits)
    }

    /// The bits of word `index` that are below the bound.
    fn valid(&self, index: usize) -> u64 {
        mask(0, (self.len - index * 64).min(64))
    }

    /// Rewrites every word that `from..to` touches; gives how many bits changed.
    fn each_word(&mut self, from: usize, to: usize, change: impl Fn(u64, u64) -> u64) -> u64 {
        assert!(
            from <= to && to <= self.len,
            "bits {from}..{to} of {}",
            self.len
        );
        let mut changed = 0;
        let mut position = from;
        while position < to {
            let index = position / 64;
            let end = to.min((index + 1) * 64);
            let mask = mask(position % 64, end - index * 64);
            let before = self.words[index];
            changed += self.store(index, change(before, mask));
            position = end;
        }
        changed
    }

    /// Replaces a word, and keeps summary and count in step; gives how many bits changed.
    fn store(&mut self, index: usize, after: u64) -> u64 {
        let before = self.words[index];
        let changed = before ^ after;
        if changed == 0 {
            return 0;
        }
        self.words[index] = after;
        if before == 0 {
            self.summary.set(index);
        } else if after == 0 {
            self.summary.clear(index);
        }
        self.count = self.count + u64::from(after.count_ones()) - u64::from(before.count_ones());
        u64::from(changed.count_ones())
    }

    /// Empties the set, and gives its memory back.
    pub(crate) fn clear_all(&mut self) {
        if self.count > 0 {
            *self = Self::new(self.len);
        }
    }

    /// How many of `from..to` are in the set: skips 64 empty words at a time.
    pub(crate) fn count_in(&self, from: usize, to: usize) -> u64 {
        assert!(
            from <= to && to <= self.len,
            "bits {from}..{to} of {}",
            self.len
        );
        if from == to {
            return 0;
        }
        let (first, last) = (from / 64, (to - 1) / 64);
        let ones = |index: usize, mask: u64| u64::from((self.words[index] & mask).count_ones());
        if first == last {
            return ones(first, mask(from % 64, to - first * 64));
        }
        let edges = ones(first, mask(from % 64, 64)) + ones(last, mask(0, to - last * 64));
        let mut inner = 0;
        let mut index = first + 1;
        while index < last {
            let end = last.min((index / 64 + 1) * 64);
            if self.summary.finest()[index / 64] != 0 {
                inner += self.words[index..end]
                    .iter()
                    .map(|word| u64::from(word.count_ones()))
                    .sum::<u64>();
            }
            index = end;
        }
        edges + inner
    }

    /// The first number at or after `from` that is in the set.
    pub(crate) fn next(&self, from: usize) -> Option<usize> {
        let index = from / 64;
        let word = *self.words.get(index)? & (!0 << (from % 64));
        if word != 0 {
            return Some(index * 64 + word.trailing_zeros() as usize);
        }
        let index = self.summary.next(index + 1)?;
        Some(index * 64 + self.words[index].trailing_zeros() as usize)
    }

    /// True if any of `from..to` is in the set; for spans of at most 64.
    pub(crate) fn any_in(&self, from: usize, to: usize) -> bool {
        debug_assert!(from < to && to - from <= 64);
        let (first, last) = (from / 64, (to - 1) / 64);
        if first == last {
            self.words[first] & mask(from % 64, to - first * 64) != 0
        } else {
            self.words[first] & mask(from % 64, 64) != 0
                || self.words[last] & mask(0, to - last * 64) != 0
        }
    }

    /// The first number at or after `from` that is not in the set, at most `to`.
    pub(crate) fn next_absent(&self, from: usize, to: usize) -> usize {
        let to = to.min(self.len);
        let mut position = from;
        while position < to {
            let index = position / 64;
            let absent = !self.words[index] & (!0 << (position % 64));
            if absent != 0 {
                return to.min(index * 64 + absent.trailing_zeros() as usize);
            }
            position = (index + 1) * 64;
        }
        to
    }

    /// True if any of the `words` words from `first` is not zero: one look at the summary.
    /// `words` divides 64 and `first`.
    pub(crate) fn any_of_words(&self, first: usize, words: usize) -> bool {
        debug_assert!(64 % words == 0 && first.is_multiple_of(words));
        let bits = self.summary.finest()[first / 64] >> (first % 64);
        bits & mask(0, words) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_and_clears_across_words() {
        let mut bits = Bits::new(1000);
        assert_eq!(bits.set(60, 200), 140);
        assert_eq!(bits.set(100, 201), 1);
        assert_eq!(bits.count(), 141);
        assert_eq!(bits.clear(64, 128), 64);
        assert_eq!(bits.clear(64, 128), 0);
        assert_eq!(
            (bits.next(0), bits.next(64), bits.next(201)),
            (Some(60), Some(128), None)
        );
        assert_eq!(
            (bits.next_absent(128, 1000), bits.next_absent(128, 150)),
            (201, 150)
        );
        assert_eq!((bits.count_in(0, 1000), bits.count_in(63, 129)), (77, 2));
        bits.clear_all();
        assert_eq!((bits.count(), bits.next(0)), (0, None));
    }

    #[test]
    fn bits_behind_the_bound_are_dropped() {
        let mut bits = Bits::new(70);
        assert_eq!(bits.or_word(1, !0), 6);
        assert_eq!(bits.set(0, 70), 64);
        assert_eq!(bits.next_absent(0, 1000), 70);
        assert_eq!(bits.next(70), None);
    }

    #[test]
    fn counts_skip_but_miss_nothing() {
        let mut bits = Bits::new(64 * 64 * 4 + 17);
        for index in (0..bits.len()).step_by(4097) {
            bits.set(index, index + 1);
        }
        let count = |from, to| (from..to).filter(|&i| bits.contains(i)).count() as u64;
        for (from, to) in [
            (0, 16401),
            (1, 16385),
            (4097, 4098),
            (64, 128),
            (8194, 12291),
        ] {
            assert_eq!(bits.count_in(from, to), count(from, to), "{from}..{to}");
        }
    }

    #[test]
    fn sees_short_spans() {
        let mut bits = Bits::new(200);
        bits.set(63, 65);
        for (from, to) in (0..199).flat_map(|from| [(from, from + 1), (from, (from + 24).min(200))])
        {
            let expected = (from..to).any(|bit| bit == 63 || bit == 64);
            assert_eq!(bits.any_in(from, to), expected, "{from}..{to}");
        }
    }

    #[test]
    fn sees_short_spans_on_each_side_of_a_words_end() {
        for only in [5, 63, 64] {
            let mut bits = Bits::new(200);
            bits.set(only, only + 1);
            for (from, to) in (0..150).flat_map(|from| [(from, from + 10), (from, from + 24)]) {
                let expected = (from..to).contains(&only);
                assert_eq!(bits.any_in(from, to), expected, "{only} in {from}..{to}");
            }
        }
    }

    #[test]
    fn sees_whether_a_group_of_words_is_empty() {
        let mut bits = Bits::new(1 << 14);
        bits.set(1024 * 5 + 1023, 1024 * 5 + 1024);
        let any: Vec<_> = (0..16).filter(|&e| bits.any_of_words(e * 16, 16)).collect();
        assert_eq!(any, [5]);
    }
}
