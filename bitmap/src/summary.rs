//! Summary levels over an array of words: which words are not zero.
//!
//! Keeps one bit for each word below, level upon level, until the top is a handful of cache
//! lines. Decides how the next non-zero word is found; what the words mean is its owner's.
//!
//! A bit is set if and only if its word is not zero: a set or clear of a word that stays
//! non-zero touches no summary, so the cost of a level is paid at the edges alone.

/// The top level is scanned in a row, so it has at most this many words (2 KiB).
const TOP_WORDS: usize = 256;

/// The levels, finest first: three for 16 TiB of blocks, two up to 256 GiB, at least one.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    levels: Vec<Vec<u64>>,
}

impl Summary {
    /// A summary of `words` words, all zero.
    pub(crate) fn new(words: usize) -> Self {
        let mut levels = Vec::new();
        let mut below = words;
        loop {
            below = below.div_ceil(64);
            // vec! of zeroes is alloc_zeroed: untouched pages cost no memory.
            levels.push(vec![0u64; below]);
            if below <= TOP_WORDS {
                return Self { levels };
            }
        }
    }

    /// The word at `index` is no longer zero.
    pub(crate) fn set(&mut self, index: usize) {
        if crate::planted::planted(crate::planted::Defect::SummaryBitDropped) {
            return;
        }
        let mut index = index;
        for level in &mut self.levels {
            let word = &mut level[index / 64];
            let before = *word;
            *word |= 1 << (index % 64);
            if before != 0 {
                return;
            }
            index /= 64;
        }
    }

    /// The word at `index` is zero again.
    pub(crate) fn clear(&mut self, index: usize) {
        let mut index = index;
        for level in &mut self.levels {
            let word = &mut level[index / 64];
            *word &= !(1 << (index % 64));
            if *word != 0 {
                return;
            }
            index /= 64;
        }
    }

    /// Bits of the finest level: bit `i` of word `w` stands for the owner's word `64 w + i`.
    pub(crate) fn finest(&self) -> &[u64] {
        &self.levels[0]
    }

    /// The first non-zero word at or after `from`.
    pub(crate) fn next(&self, from: usize) -> Option<usize> {
        let mut position = from;
        for (depth, level) in self.levels.iter().enumerate() {
            let word = *level.get(position / 64)? & (!0 << (position % 64));
            if word != 0 {
                let found = position / 64 * 64 + word.trailing_zeros() as usize;
                return Some(self.descend(depth, found));
            }
            position = position / 64 + 1;
        }
        let top = self.levels.last()?;
        let skipped = top.get(position..)?.iter().position(|&word| word != 0)?;
        let word = position + skipped;
        let found = word * 64 + top[word].trailing_zeros() as usize;
        Some(self.descend(self.levels.len() - 1, found))
    }

    /// From a bit at `depth` down to the first non-zero word under it.
    fn descend(&self, depth: usize, found: usize) -> usize {
        self.levels[..depth]
            .iter()
            .rev()
            .fold(found, |word, level| {
                word * 64 + level[word].trailing_zeros() as usize
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_fit_the_size() {
        let depth = |words| Summary::new(words).levels.len();
        assert_eq!(
            (depth(1), depth(1 << 14), depth(1 << 20), depth(1 << 26)),
            (1, 1, 2, 3)
        );
    }

    #[test]
    fn finds_the_next_across_every_level() {
        let mut summary = Summary::new(1 << 26);
        let marks = [
            0,
            1,
            63,
            64,
            4095,
            4096,
            1 << 18,
            (1 << 24) + 5,
            (1 << 26) - 1,
        ];
        for &word in &marks {
            summary.set(word);
        }
        for pair in marks.windows(2) {
            assert_eq!(summary.next(pair[0] + 1), Some(pair[1]));
            assert_eq!(summary.next(pair[1]), Some(pair[1]));
        }
        assert_eq!(summary.next(1 << 26), None);
        for &word in &marks {
            assert_eq!(summary.next(0), Some(word));
            summary.clear(word);
        }
        assert_eq!(summary.next(0), None);
        assert!(summary.levels.iter().flatten().all(|&word| word == 0));
    }
}
